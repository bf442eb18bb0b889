//! Programs that people run on filesystems, on real input.

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use support::*;

const LONG: Duration = Duration::from_secs(900);

fn sysroot() -> PathBuf {
    let output = run_ok(Command::new("rustc").args(["--print", "sysroot"]));
    PathBuf::from(output.trim())
}

/// What is copied of the toolchain: all of it, but without optimisation only what is left without the documentation of
/// `core`, which is four fifths of the files (ten thousand stay) and less than a half of the bytes.
fn parts(sysroot: &Path) -> Vec<PathBuf> {
    let html = Path::new("share/doc/rust/html");
    if !cfg!(debug_assertions) || !sysroot.join(html).is_dir() {
        return vec![PathBuf::from(".")];
    }
    let mut parts = Vec::new();
    for dir in [Path::new(""), html] {
        for entry in fs::read_dir(sysroot.join(dir)).unwrap() {
            let name = entry.unwrap().file_name();
            if name != "core" && name != "share" {
                parts.push(dir.join(name));
            }
        }
    }
    parts.sort();
    parts
}

#[test]
fn the_toolchains_own_files() {
    if !can_mount() {
        return;
    }
    let mut cluster = Cluster::start(2, "8G");
    let mount = cluster.mount("mnt");
    let source = sysroot();
    // Two stripes, so that every larger file has a part on each OST.
    run_ok(nacre(["lfs", "setstripe", "-c", "2", "-S", "256K"]).arg(&mount.dir));
    let copy = mount.join("toolchain");
    fs::create_dir(&copy).unwrap();
    let parts = parts(&source);
    run_ok_within(Command::new("cp").args(["-a", "--parents"]).args(&parts).arg(&copy).current_dir(&source), LONG);
    for part in &parts {
        let mut diff = Command::new("diff");
        run_ok_within(diff.args(["-r", "--no-dereference"]).arg(source.join(part)).arg(copy.join(part)), LONG);
    }
    let files = run_ok_within(Command::new("find").arg(&copy).args(["-type", "f"]), LONG).lines().count();
    println!("{files} files");
    assert!(files > 1000, "only {files} files: not a real tree");

    // After a restart of everything, read cold, by checksum.
    mount.umount();
    cluster.stop_server();
    cluster.fsck();
    cluster.start_server();
    let mount = cluster.mount("mnt");
    let sums = |root: &Path| {
        let script = "find \"$@\" -type f -print0 | sort -z | xargs -0 sha256sum; find \"$@\" -type f -o -type d | sort | \
                      xargs -d '\\n' stat -c '%n %a %s %Y %F'; find \"$@\" -type l -printf '%p %l\\n' | sort";
        let mut sh = Command::new("sh");
        let text = run_ok_within(sh.args(["-c", script, "sums"]).args(&parts).current_dir(root), LONG);
        // The size of a directory is the filesystem's own affair.
        text.lines()
            .map(|line| if line.ends_with(" directory") { strip_size(line) } else { line.to_owned() })
            .collect::<Vec<_>>()
    };
    let (want, got) = (sums(&source), sums(&mount.join("toolchain")));
    for (want, got) in want.iter().zip(&got) {
        assert_eq!(want, got);
    }
    assert_eq!(want.len(), got.len());

    // A true st_blocks, to within what allocation rounds.
    let big = fs::metadata(mount.join("toolchain").join("bin/rustc")).unwrap();
    assert!(big.blocks() * 512 >= big.len() && big.blocks() * 512 < big.len() + (1 << 20), "{big:?}");
    run_ok_within(Command::new("rm").arg("-r").arg(mount.join("toolchain")), LONG);
    mount.umount();
}

fn strip_size(line: &str) -> String {
    let mut words: Vec<_> = line.split(' ').collect();
    words.remove(words.len() - 3);
    words.join(" ")
}

#[test]
fn tar_git_cargo_and_sqlite() {
    if !can_mount() {
        return;
    }
    let cluster = Cluster::start(2, "4G");
    let mount = cluster.mount("mnt");
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();

    let tar = mount.join("source.tar");
    run_ok(
        Command::new("tar")
            .arg("-cf")
            .arg(&tar)
            .args(["--exclude=./target", "--exclude=./.git", "."])
            .current_dir(here),
    );
    fs::create_dir(mount.join("untarred")).unwrap();
    run_ok(Command::new("tar").arg("-xf").arg(&tar).arg("-C").arg(mount.join("untarred")));
    run_ok(Command::new("tar").arg("-df").arg(&tar).arg("-C").arg(mount.join("untarred")));

    // A repository of our own making: the project may have been unpacked without one.
    let repository = cluster.path("repository");
    let git = |dir: &Path, arguments: &[&str]| {
        let identity = ["-c", "user.name=nacre", "-c", "user.email=nacre@localhost", "-c", "safe.directory=*"];
        run_ok(Command::new("git").args(identity).args(arguments).current_dir(dir))
    };
    fs::create_dir(&repository).unwrap();
    git(&repository, &["init", "-q"]);
    for commit in 0..20 {
        for file in 0..20 {
            let text = format!("{commit} {file}\n").repeat(1 + commit * file);
            fs::write(repository.join(format!("file{file}")), text).unwrap();
        }
        git(&repository, &["add", "-A"]);
        git(&repository, &["commit", "-qm", &format!("commit {commit}")]);
    }
    git(&mount.dir, &["clone", "-q", "--no-hardlinks", repository.to_str().unwrap(), "clone"]);
    let clone = mount.join("clone");
    git(&clone, &["fsck", "--full", "--strict"]);
    git(&clone, &["gc", "-q", "--aggressive"]);
    git(&clone, &["checkout", "-q", "HEAD~7"]);
    git(&clone, &["fsck", "--full"]);
    assert_eq!(git(&clone, &["status", "--porcelain"]), "");

    // A small crate, built and tested on the mount.
    let krate = mount.join("small");
    run_ok(Command::new("cargo").args(["new", "--quiet", "--vcs", "none", "--name", "small"]).arg(&krate));
    for _ in 0..2 {
        run_ok(
            Command::new("cargo")
                .args(["build", "--quiet", "--offline"])
                .current_dir(&krate)
                .env_remove("CARGO_TARGET_DIR"),
        );
        let says = run_ok(&mut Command::new(krate.join("target/debug/small")));
        assert_eq!(says.trim(), "Hello, world!");
        fs::write(krate.join("src/lib.rs"), "//! Changed, so that it is built again.\n").unwrap();
    }

    if let Some(sqlite) = program("sqlite3") {
        for journal in ["delete", "wal"] {
            let database = mount.join(&format!("{journal}.db"));
            let sql = format!(
                "pragma journal_mode={journal}; create table t(id integer primary key, text text); begin; \
                 with recursive n(i) as (select 1 union all select i + 1 from n where i < 20000) \
                 insert into t select i, hex(randomblob(50)) from n; commit; \
                 update t set text = text || 'x' where id % 3 = 0; delete from t where id % 7 = 0; \
                 vacuum; pragma integrity_check; select count(*) from t;"
            );
            let says = run_ok(Command::new(&sqlite).arg(&database).arg(sql));
            let lines: Vec<_> = says.lines().collect();
            assert_eq!(lines[lines.len() - 2..], ["ok", "17143"], "{says}");
        }
    }
    mount.umount();
}

#[test]
fn fsx_for_100_000_operations() {
    if !can_mount() {
        return;
    }
    let Some(fsx) = program("fsx") else { return };
    let cluster = Cluster::start(2, "2G");
    let mount = cluster.mount("mnt");
    // Everything it can do; with two stripes also without msync after stores to mapped pages.
    let weights = "[weights]\nclose_open = 1\ninvalidate = 1\nfsync = 1\nfdatasync = 1\nposix_fallocate = 5\n\
                   punch_hole = 5\nsendfile = 5\nposix_fadvise = 1\ncopy_file_range = 5\n";
    for (name, stripes, operations, config) in
        [("one", "1", "60000", "flen = 600000\n"), ("two", "2", "40000", "flen = 1000000\nnomsyncafterwrite = true\n")]
    {
        run_ok(nacre(["lfs", "setstripe", "-c", stripes, "-S", "64K"]).arg(mount.join(name)));
        let config_path = cluster.path(&format!("{name}.toml"));
        fs::write(&config_path, format!("{config}{weights}")).unwrap();
        let mut command = Command::new(&fsx);
        command.args(["-N", operations, "-S", "7", "-f"]).arg(config_path);
        run_ok_within(command.arg("-P").arg(cluster.dir.path()).arg(mount.join(name)), LONG);
    }
    mount.umount();
}

#[test]
fn fio_with_verify() {
    if !can_mount() {
        return;
    }
    let Some(fio) = program("fio") else { return };
    let cluster = Cluster::start(2, "4G");
    let mount = cluster.mount("mnt");
    run_ok(nacre(["lfs", "setstripe", "-c", "2", "-S", "256K"]).arg(&mount.dir));
    for (name, arguments) in [
        ("buffered", &["--ioengine=psync", "--bs=5k"][..]),
        ("direct", &["--ioengine=libaio", "--direct=1", "--iodepth=16", "--bs=4k-128k"]),
        ("mmap", &["--ioengine=mmap", "--bs=4k"]),
        ("fsynced", &["--ioengine=psync", "--bs=16k", "--fsync=8"]),
    ] {
        let mut command = Command::new(&fio);
        command.arg(format!("--name={name}")).arg(format!("--directory={}", mount.dir.display()));
        command.args(["--rw=randrw", "--size=48m", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1"]);
        // Its state files land where it runs.
        run_ok_within(command.args(arguments).current_dir(cluster.dir.path()), LONG);
    }
    mount.umount();
}

#[test]
fn pjdfstest_passes_whole() {
    if !can_mount() {
        return;
    }
    let Some(pjdfstest) = program("pjdfstest") else { return };
    let cluster = Cluster::start(2, "2G");
    let mount = cluster.mount("mnt");
    // Other users need to get to the mount through its parents.
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(cluster.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // Creation times are not in FUSE's attributes, so stat_st_birthtime stays off; chflags is not Linux's.
    let config = "[features]\nposix_fallocate = {}\nrename_ctime = {}\nutime_now = {}\nutimensat = {}\n\
                  [settings]\nnaptime = 0.001\nallow_remount = false\n\
                  [dummy_auth]\nentries = [[\"daemon\", \"daemon\"], [\"bin\", \"bin\"]]\n";
    let path = cluster.path("pjdfstest.toml");
    fs::write(&path, config).unwrap();
    let mut command = Command::new(pjdfstest);
    command.arg("-c").arg(&path).arg("-p").arg(&mount.dir);
    let output = run_within(&mut command, LONG);
    let text = said(&output);
    let summary = text.lines().last().unwrap_or_default();
    println!("{summary}");
    let failures: Vec<_> = text.lines().filter(|line| line.contains("FAILED")).collect();
    assert!(output.status.success() && failures.is_empty(), "{summary}\n{}", failures.join("\n"));
    mount.umount();
}
