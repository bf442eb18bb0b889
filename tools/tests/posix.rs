//! What POSIX and Linux promise and filesystems over a network often do not keep; on two mounts, so that nothing passes
//! because a cache says so. Mappings are tested by fsx and fio in `programs.rs`, those
//! of two mounts in the simulator.

mod support;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{FallocateFlags, FlockOperation, RenameFlags, SeekFrom};
use rustix::io::Errno;
use support::*;

fn striped(path: &Path, count: &str) -> File {
    run_ok(nacre(["lfs", "setstripe", "-c", count, "-S", "64K"]).arg(path));
    File::options().read(true).write(true).open(path).unwrap()
}

fn read_write(path: impl AsRef<Path>) -> File {
    File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

/// A shell as user 1, in this supplementary group only.
fn as_user(group: &str, script: &str, paths: &[&Path]) -> std::process::Output {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=1", "--regid=1", &format!("--groups={group}"), "sh", "-ec", script, "sh"]);
    run(command.args(paths))
}

#[test]
fn times_have_nanoseconds_and_follow_changes() {
    if !can_mount() {
        return;
    }
    let cluster = Cluster::start(2, "2G");
    let (a, b) = (cluster.mount("a"), cluster.mount("b"));
    let (here, there) = (a.join("f"), b.join("f"));
    fs::write(&here, "x").unwrap();
    let before_1970 = UNIX_EPOCH - Duration::new(5, 1);
    let after_2038 = UNIX_EPOCH + Duration::new(1 << 33, 7);
    for time in [before_1970, after_2038, UNIX_EPOCH + Duration::new(1_234_567_890, 123_456_789)] {
        let times = fs::FileTimes::new().set_accessed(time).set_modified(time);
        File::options().write(true).open(&here).unwrap().set_times(times).unwrap();
        for path in [&here, &there] {
            let seen = fs::metadata(path).unwrap();
            assert_eq!((seen.accessed().unwrap(), seen.modified().unwrap()), (time, time));
        }
    }

    let ctime = |path: &Path| {
        let seen = fs::metadata(path).unwrap();
        (seen.ctime(), seen.ctime_nsec())
    };
    let mtime = || -> SystemTime { fs::metadata(&there).unwrap().modified().unwrap() };
    let changes: [(&str, bool, &dyn Fn()); 9] = [
        ("chmod", false, &|| fs::set_permissions(&here, fs::Permissions::from_mode(0o600)).unwrap()),
        ("chmod to the same", false, &|| fs::set_permissions(&here, fs::Permissions::from_mode(0o600)).unwrap()),
        ("chown", false, &|| std::os::unix::fs::chown(&here, Some(5), Some(6)).unwrap()),
        ("link", false, &|| fs::hard_link(&here, a.join("g")).unwrap()),
        ("rename", false, &|| fs::rename(&there, b.join("h")).and_then(|()| fs::rename(a.join("h"), &here)).unwrap()),
        ("unlink", false, &|| fs::remove_file(b.join("g")).unwrap()),
        ("setxattr", false, &|| {
            rustix::fs::setxattr(&here, "user.x", b"1", rustix::fs::XattrFlags::empty()).unwrap();
        }),
        ("write", true, &|| File::options().append(true).open(&here).unwrap().write_all(b"more").unwrap()),
        ("truncate", true, &|| File::options().write(true).open(&here).unwrap().set_len(1).unwrap()),
    ];
    for (what, modifies, change) in changes {
        let before = (ctime(&here), mtime());
        assert_eq!(before.0, ctime(&there), "{what}");
        std::thread::sleep(Duration::from_millis(2));
        change();
        assert!(ctime(&here) > before.0, "{what} moves ctime");
        assert_eq!(ctime(&here), ctime(&there), "{what}");
        assert_eq!(mtime() > before.1, modifies, "{what} and mtime");
    }
    a.umount();
    b.umount();
}

#[test]
fn space_holes_and_sizes_are_true() {
    if !can_mount() {
        return;
    }
    let cluster = Cluster::start(2, "2G");
    let (a, b) = (cluster.mount("a"), cluster.mount("b"));
    const UNIT: u64 = 64 << 10;
    for stripes in ["1", "2"] {
        let name = format!("space{stripes}");
        let file = striped(&a.join(&name), stripes);
        let blocks = || {
            let here = file.metadata().unwrap().blocks();
            assert_eq!(fs::metadata(b.join(&name)).unwrap().blocks(), here, "{stripes}: both mounts");
            here
        };
        assert_eq!(blocks(), 0);
        file.set_len(1 << 30).unwrap();
        assert_eq!(blocks(), 0, "sparse");
        file.write_all_at(&[1; 4096], 512 << 20).unwrap();
        file.sync_all().unwrap();
        assert_eq!(blocks(), 8);
        rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 1 << 20).unwrap();
        assert_eq!(blocks(), 8 + 2048);
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&file, punch, 0, 1 << 20).unwrap();
        assert_eq!(blocks(), 8);

        // Holes.
        file.set_len(0).unwrap();
        assert_eq!(rustix::fs::seek(&file, SeekFrom::Data(0)), Err(Errno::NXIO));
        file.write_all_at(&vec![2; UNIT as usize], 16 * UNIT).unwrap();
        file.set_len(64 * UNIT).unwrap();
        file.write_all_at(&[3; 300_000], 32 * UNIT).unwrap();
        let other = File::open(b.join(&name)).unwrap();
        for file in [&file, &other] {
            assert_eq!(rustix::fs::seek(file, SeekFrom::Hole(0)), Ok(0));
            assert_eq!(rustix::fs::seek(file, SeekFrom::Data(0)), Ok(16 * UNIT));
            assert_eq!(rustix::fs::seek(file, SeekFrom::Hole(16 * UNIT)), Ok(17 * UNIT));
            assert_eq!(rustix::fs::seek(file, SeekFrom::Data(17 * UNIT)), Ok(32 * UNIT));
            let hole = rustix::fs::seek(file, SeekFrom::Hole(32 * UNIT)).unwrap();
            assert!((300_000..300_000 + 4096).contains(&(hole - 32 * UNIT)), "{hole}");
            assert_eq!(rustix::fs::seek(file, SeekFrom::Data(hole)), Err(Errno::NXIO));
            assert_eq!(rustix::fs::seek(file, SeekFrom::Hole(64 * UNIT)), Err(Errno::NXIO));
        }
        rustix::fs::fallocate(&file, punch, 33 * UNIT, UNIT).unwrap();
        assert_eq!(rustix::fs::seek(&other, SeekFrom::Hole(32 * UNIT)), Ok(33 * UNIT));
        assert_eq!(rustix::fs::seek(&other, SeekFrom::Data(33 * UNIT)), Ok(34 * UNIT));
    }

    // What is not written back yet counts as well.
    fs::write(a.join("fresh"), [1; 65536]).unwrap();
    for mount in [&a, &b] {
        assert_eq!(fs::metadata(mount.join("fresh")).unwrap().blocks(), 128);
    }

    // Beyond 16 TiB, where each of two objects is beyond what most disk filesystems hold.
    let huge = striped(&a.join("huge"), "2");
    const FAR: u64 = 34 << 40;
    huge.write_all_at(b"hello", FAR).unwrap();
    assert_eq!(fs::metadata(b.join("huge")).unwrap().len(), FAR + 5);
    let mut seen = [9; 10];
    File::open(b.join("huge")).unwrap().read_exact_at(&mut seen, FAR - 5).unwrap();
    assert_eq!(&seen, b"\0\0\0\0\0hello");
    let data = rustix::fs::seek(&huge, SeekFrom::Data(0)).unwrap();
    assert!((FAR - UNIT..=FAR).contains(&data), "{data}");
    huge.set_len(FAR + (1 << 40) + 1).unwrap();
    assert_eq!(fs::metadata(b.join("huge")).unwrap().len(), FAR + (1 << 40) + 1);
    // The OSTs tell the largest that an off_t holds: the last byte there can be, and none after it.
    huge.set_len(i64::MAX as u64).unwrap();
    huge.write_all_at(b"x", i64::MAX as u64 - 1).unwrap();
    let refused = huge.write_all_at(b"x", i64::MAX as u64).unwrap_err();
    assert!(matches!(Errno::from_io_error(&refused), Some(Errno::FBIG | Errno::INVAL)), "{refused}");
    drop(huge);
    a.umount();
    b.umount();
}

#[test]
fn names_and_large_directories() {
    if !can_mount() {
        return;
    }
    let cluster = Cluster::start(2, "2G");
    let (a, b) = (cluster.mount("a"), cluster.mount("b"));
    let longest = format!("{}x", "ü".repeat(127));
    fs::write(a.join(&longest), "1").unwrap();
    assert_eq!(fs::read_to_string(b.join(&longest)).unwrap(), "1");
    assert!(fs::read_dir(&b.dir).unwrap().any(|entry| entry.unwrap().file_name() == longest.as_str()));
    let refused = fs::write(a.join(&format!("{longest}y")), "1").unwrap_err();
    assert_eq!(Errno::from_io_error(&refused), Some(Errno::NAMETOOLONG));
    symlink("t".repeat(4095), a.join("link")).unwrap();
    assert_eq!(fs::read_link(b.join("link")).unwrap().as_os_str().len(), 4095);

    // What was there all the time is listed once, whatever else comes and goes.
    let dir = a.join("large");
    fs::create_dir(&dir).unwrap();
    std::thread::scope(|scope| {
        for part in 0..4 {
            let dir = &dir;
            scope.spawn(move || {
                for number in 0..ENTRIES / 4 {
                    File::create_new(dir.join(format!("stays{part}-{number}"))).unwrap();
                }
            });
        }
    });
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for root in [&a, &b] {
            let (dir, stop) = (root.join("large"), &stop);
            let who = root.dir.file_name().unwrap().to_str().unwrap().to_owned();
            scope.spawn(move || {
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    File::create_new(dir.join(format!("{who}{number}"))).unwrap();
                    if number >= 20 {
                        fs::remove_file(dir.join(format!("{who}{}", number - 20))).unwrap();
                    }
                }
            });
        }
        for mount in [&a, &b, &a, &b] {
            let names: Vec<_> =
                fs::read_dir(mount.join("large")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            let once: BTreeSet<_> = names.iter().collect();
            let stayed = names.iter().filter(|name| name.to_str().unwrap().starts_with("stays")).count();
            let complete = once.len() == names.len() && stayed == ENTRIES;
            if !complete {
                stop.store(true, Ordering::Relaxed);
            }
            assert!(complete, "{} names, {} different, {stayed} that stay", names.len(), once.len());
        }
        stop.store(true, Ordering::Relaxed);
    });
    fs::remove_dir_all(b.join("large")).unwrap();
    assert!(!dir.exists());
    a.umount();
    b.umount();
}

/// Without optimisation an entry costs a millisecond or three.
const ENTRIES: usize = if cfg!(debug_assertions) { 8_000 } else { 20_000 };

#[test]
fn file_locks() {
    if !can_mount() {
        return;
    }
    let cluster = Cluster::start(2, "2G");
    let (a, b) = (cluster.mount("a"), cluster.mount("b"));
    let (here, there) = (read_write(a.join("f")), read_write(b.join("f")));
    // A mount is a node: the same process on two of them is two owners.
    rustix::fs::fcntl_lock(&here, FlockOperation::NonBlockingLockExclusive).unwrap();
    let refused = rustix::fs::fcntl_lock(&there, FlockOperation::NonBlockingLockExclusive);
    assert!(matches!(refused, Err(Errno::AGAIN | Errno::ACCESS)), "{refused:?}");
    // POSIX: closing any descriptor of the file drops the process's locks.
    drop(File::open(a.join("f")).unwrap());
    rustix::fs::fcntl_lock(&there, FlockOperation::NonBlockingLockExclusive).unwrap();
    rustix::fs::fcntl_lock(&there, FlockOperation::Unlock).unwrap();

    // flock(2) belongs to the open file: closing another one changes nothing, the last descriptor of this one does.
    rustix::fs::flock(&here, FlockOperation::LockExclusive).unwrap();
    drop(File::open(a.join("f")).unwrap());
    assert_eq!(rustix::fs::flock(&there, FlockOperation::NonBlockingLockShared), Err(Errno::AGAIN));
    let same_mount = File::open(a.join("f")).unwrap();
    assert_eq!(rustix::fs::flock(&same_mount, FlockOperation::NonBlockingLockShared), Err(Errno::AGAIN));
    let duplicate = here.try_clone().unwrap();
    drop(here);
    assert_eq!(rustix::fs::flock(&there, FlockOperation::NonBlockingLockShared), Err(Errno::AGAIN));
    // One that waits gets it.
    let waits = std::thread::spawn(move || {
        rustix::fs::flock(&there, FlockOperation::LockExclusive).unwrap();
        there
    });
    std::thread::sleep(Duration::from_millis(200));
    assert!(!waits.is_finished());
    drop(duplicate);
    eventually("the waiter has the lock", PATIENCE, || waits.is_finished());
    drop((waits.join().unwrap(), same_mount));
    a.umount();
    b.umount();
}

#[test]
fn renames_of_every_kind() {
    if !can_mount() {
        return;
    }
    let cluster = Cluster::start(2, "2G");
    let (a, b) = (cluster.mount("a"), cluster.mount("b"));
    let rename = |old: &str, new: &str, flags| {
        rustix::fs::renameat_with(rustix::fs::CWD, a.join(old), rustix::fs::CWD, a.join(new), flags)
    };
    fs::write(a.join("one"), "1").unwrap();
    fs::write(a.join("two"), "2").unwrap();
    assert_eq!(rename("one", "two", RenameFlags::NOREPLACE), Err(Errno::EXIST));
    rename("one", "two", RenameFlags::EXCHANGE).unwrap();
    for mount in [&a, &b] {
        assert_eq!(fs::read_to_string(mount.join("one")).unwrap(), "2");
        assert_eq!(fs::read_to_string(mount.join("two")).unwrap(), "1");
    }
    rename("one", "three", RenameFlags::NOREPLACE).unwrap();
    assert!(!b.join("one").exists() && b.join("three").exists());
    assert_eq!(rename("one", "three", RenameFlags::EXCHANGE), Err(Errno::NOENT));
    fs::create_dir_all(a.join("dir/sub")).unwrap();
    rename("dir", "three", RenameFlags::EXCHANGE).unwrap();
    assert!(b.join("three/sub").is_dir() && b.join("dir").is_file());
    assert_eq!(rename("three", "three/sub/x", RenameFlags::empty()), Err(Errno::INVAL));
    assert_eq!(rename("three", "three/sub", RenameFlags::EXCHANGE), Err(Errno::INVAL));
    assert_eq!(rename("two", "x", RenameFlags::NOREPLACE | RenameFlags::EXCHANGE), Err(Errno::INVAL));
    assert_eq!(fs::metadata(b.join("three")).unwrap().nlink(), 3);
    fs::rename(a.join("three/sub"), a.join("sub")).unwrap();
    assert_eq!(fs::metadata(b.join("three")).unwrap().nlink(), 2);
    a.umount();
    b.umount();
}

#[test]
fn privileges_and_groups() {
    if !can_mount() || program("setpriv").is_none() {
        return;
    }
    let cluster = Cluster::start(2, "2G");
    fs::set_permissions(cluster.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (a, b) = (cluster.mount("a"), cluster.mount("b"));
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    let (file, there) = (a.join("f"), b.join("f"));
    fs::write(&file, "some contents").unwrap();
    for script in
        ["echo y > $1", "echo y >> $1", "truncate -s 1 $1", "fallocate -l 100 $1", "printf x | dd of=$1 conv=notrunc"]
    {
        fs::set_permissions(&file, fs::Permissions::from_mode(0o6777)).unwrap();
        assert_eq!(mode(&there), 0o6777);
        let output = as_user("1", script, &[&file]);
        assert!(output.status.success(), "{script}: {}", said(&output));
        for path in [&file, &there] {
            assert_eq!(mode(path), 0o777, "{script} takes setuid and setgid away");
        }
    }
    fs::set_permissions(&file, fs::Permissions::from_mode(0o4755)).unwrap();
    std::os::unix::fs::chown(&file, Some(1), Some(1)).unwrap();
    assert_eq!(mode(&there), 0o755, "so does chown");

    // Supplementary groups count, at the server as well.
    let dir = a.join("team");
    fs::create_dir(&dir).unwrap();
    std::os::unix::fs::chown(&dir, Some(0), Some(777)).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o2770)).unwrap();
    let script = "cd $1; echo x > f; mkdir sub; mv f sub/g; ln sub/g h; ln -s h s; cat s; chmod 2755 h; \
                  touch -d 2001-02-03 h; stat -c '%a %g' h; rm -r sub s h; echo done > last";
    let output = as_user("777", script, &[&dir]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(said(&output), "x\n2755 777\n");
    assert!(!as_user("778", "cd $1", &[&dir]).status.success(), "and others do not");
    assert_eq!(fs::read_to_string(b.join("team/last")).unwrap(), "done\n");
    a.umount();
    b.umount();
}

#[test]
fn a_subdirectory_is_mounted_alone() {
    if !can_mount() {
        return;
    }
    let cluster = Cluster::start(2, "2G");
    let a = cluster.mount("a");
    fs::create_dir_all(a.join("home/user")).unwrap();
    fs::write(a.join("home/user/f"), "contents").unwrap();
    let sub = cluster.mount_source("sub", &format!("{}:/nacre/home/user", cluster.nid()));
    assert_eq!(fs::read_to_string(sub.join("f")).unwrap(), "contents");
    fs::write(sub.join("g"), "from there").unwrap();
    assert_eq!(fs::read_to_string(a.join("home/user/g")).unwrap(), "from there");
    // Nothing leads out.
    let names: BTreeSet<_> =
        fs::read_dir(sub.join("..").join("sub")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["f", "g"].map(Into::into).into());
    assert_eq!(fs::metadata(sub.join("..")).unwrap().ino(), fs::metadata(cluster.dir.path()).unwrap().ino());
    let mut output = nacre(["mount", "--foreground", &format!("{}:/nacre/home/nobody", cluster.nid())]);
    fs::create_dir(cluster.path("none")).unwrap();
    let output = run(output.arg(cluster.path("none")));
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    sub.umount();
    a.umount();
}

#[test]
fn unlinked_but_open() {
    if !can_mount() {
        return;
    }
    let cluster = Cluster::start(2, "2G");
    let (a, b) = (cluster.mount("a"), cluster.mount("b"));
    let mut file = read_write(a.join("f"));
    file.write_all(b"abc").unwrap();
    fs::remove_file(b.join("f")).unwrap();
    assert!(!a.join("f").exists());
    file.write_all(b"def").unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    file.set_len(5).unwrap();
    file.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
    file.sync_all().unwrap();
    let mut again = File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file))).unwrap();
    let mut text = String::new();
    again.read_to_string(&mut text).unwrap();
    assert_eq!(text, "abcde");
    drop((file, again));
    a.umount();
    b.umount();
}
