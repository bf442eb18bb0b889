//! Bad input: each a clear message and status 1, nothing written.

mod support;

use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use support::*;

/// Runs, expects status 1 and words.
fn refused(command: &mut std::process::Command, words: &[&str]) {
    let output = run(command);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "{command:?}\n{text}");
    for word in words {
        assert!(text.contains(word), "{command:?} does not say \"{word}\":\n{text}");
    }
    assert!(!text.contains("panicked"), "{text}");
}

fn mkfs(cluster: &Cluster, fsname: &str, device: &str, more: &[&str]) -> std::process::Command {
    let mut command = nacre(["mkfs.nacre", "--ost", "--fsname", fsname, "--mgsnode", &cluster.nid()]);
    command.args(more).arg(cluster.path(device));
    command
}

#[test]
fn mkfs_refuses_what_is_formatted_and_repeats_itself() {
    let cluster = Cluster::format(1, "1G");
    let before = std::fs::read(cluster.path("mgs.img")).unwrap();
    run_ok(&mut mkfs(&cluster, "nacre", "ost0.img", &[]));
    refused(&mut mkfs(&cluster, "other", "ost0.img", &[]), &["ost0.img", "fsname=nacre", "--reformat"]);
    refused(&mut mkfs(&cluster, "nacre", "mgs.img", &[]), &["mgs.img", "--reformat"]);
    assert!(before == std::fs::read(cluster.path("mgs.img")).unwrap(), "a refusal wrote something");
    run_ok(&mut mkfs(&cluster, "other", "ost0.img", &["--reformat", "--dryrun"]));
    refused(&mut mkfs(&cluster, "other", "ost0.img", &[]), &["fsname=nacre"]);
    run_ok(&mut mkfs(&cluster, "other", "ost0.img", &["--reformat"]));

    refused(&mut mkfs(&cluster, "nacre", "absent.img", &[]), &["absent.img"]);
    assert!(!cluster.path("absent.img").exists());
    refused(&mut mkfs(&cluster, "waytoolong", "new.img", &["--size", "1G"]), &["waytoolong"]);
    refused(&mut mkfs(&cluster, "nacre", "tiny.img", &["--size", "64K"]), &["tiny.img"]);
    std::fs::create_dir(cluster.path("folder")).unwrap();
    refused(&mut mkfs(&cluster, "nacre", "folder", &[]), &["folder"]);
    let ext4 = cluster.path("ext4.img");
    std::fs::File::create(&ext4).unwrap().set_len(256 << 20).unwrap();
    if let Some(mkfs_ext4) = program("mkfs.ext4") {
        run_ok(std::process::Command::new(mkfs_ext4).arg("-q").arg(&ext4));
        refused(&mut mkfs(&cluster, "nacre", "ext4.img", &[]), &["ext4.img", "ext", "--reformat"]);
    }
    let misuse = run(&mut nacre(["mkfs.nacre", "--ost", "x"]));
    assert_eq!(misuse.status.code(), Some(2));
}

#[test]
fn configurations_with_mistakes_start_nothing() {
    let cluster = Cluster::format(1, "1G");
    let nacred = |text: &str| {
        std::fs::write(cluster.path("bad.json"), text).unwrap();
        let mut command = nacre(["nacred", "-c"]);
        command.arg(cluster.path("bad.json")).arg("-r").arg(cluster.path("bad.sock"));
        command
    };
    let good = cluster.config();
    refused(&mut nacred("not json"), &["bad.json", "line 1"]);
    refused(&mut nacred(&good.replace("bdev_uring_create", "bdev_unknown_create")), &["bdev_unknown_create"]);
    refused(&mut nacred(&good.replace("\"filename\"", "\"filenames\"")), &["filenames"]);
    refused(&mut nacred(&good.replace("\"bdev_name\":\"ost0\"", "\"bdev_name\":17")), &["bdev_name"]);
    refused(&mut nacred(&good.replace("\"bdev_name\":\"ost0\"", "\"bdev_name\":\"nobody\"")), &["nobody"]);
    refused(&mut nacred(&good.replace("ost0.img", "gone.img")), &["gone.img"]);
    refused(&mut nacre(["nacred", "-c", "/nonexistent.json"]), &["/nonexistent.json"]);
}

#[test]
fn devices_in_use_mixed_up_or_damaged() {
    let mut cluster = Cluster::start(1, "256M");
    // In use.
    refused(&mut mkfs(&cluster, "other", "ost0.img", &["--reformat"]), &["ost0.img", "in use"]);
    refused(nacre(["fsck"]).arg(cluster.path("ost0.img")), &["ost0.img", "in use"]);
    let mut second = nacre(["nacred", "-c"]);
    second.arg(cluster.path("server.json")).arg("-r").arg(cluster.path("second.sock"));
    refused(&mut second, &["in use"]);
    cluster.stop_server();

    // Two filesystems mixed up: an OST that has been registered with another filesystem, of the same name and with its MGS
    // at the same address.
    let mut other = Cluster::format_at(cluster.port, 1, "256M").started();
    other.stop_server();
    let original = std::fs::read(cluster.path("ost0.img")).unwrap();
    std::fs::copy(other.path("ost0.img"), cluster.path("ost0.img")).unwrap();
    let foreign = std::fs::read(cluster.path("ost0.img")).unwrap();
    refused(&mut cluster.server_command(), &["another filesystem"]);
    assert!(foreign == std::fs::read(cluster.path("ost0.img")).unwrap(), "a refusal wrote something");

    // Truncated, bit-flipped, empty, and of the wrong kind.
    let device = cluster.path("ost0.img");
    std::fs::write(&device, &original[..original.len() / 2]).unwrap();
    refused(&mut cluster.server_command(), &["ost0"]);
    let mut zeroed = original.clone();
    zeroed[..64 << 10].fill(0);
    let length = zeroed.len();
    zeroed[length - (64 << 10)..].fill(0);
    std::fs::write(&device, &zeroed).unwrap();
    refused(&mut cluster.server_command(), &["ost0", "mkfs.nacre"]);
    std::fs::write(&device, &original).unwrap();
    std::fs::copy(cluster.path("mdt0.img"), &device).unwrap();
    refused(&mut cluster.server_command(), &["ost0"]);

    // Random flips: inspect and fsck say what they find, or why they cannot look; they never panic.
    std::fs::write(&device, &original).unwrap();
    let mut state = 0x1234_5678_9abc_def0u64;
    for round in 0..12 {
        let file = std::fs::File::options().read(true).write(true).open(&device).unwrap();
        file.write_all_at(&original[..24 << 20], 0).unwrap();
        for _ in 0..200 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let at = (state >> 16) % (24 << 20);
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ (1 << (state & 7))], at).unwrap();
        }
        drop(file);
        for command in ["inspect", "fsck"] {
            let output = run(nacre([command]).arg(&device));
            assert!(matches!(output.status.code(), Some(0 | 1)), "{command} round {round}: {}", said(&output));
            assert!(!said(&output).contains("panicked"), "{command} round {round}: {}", said(&output));
        }
    }
    std::fs::write(&device, &original).unwrap();
    cluster.start_server();
    cluster.stop_server();
    cluster.fsck();
}

#[test]
fn garbage_on_the_port_disturbs_nobody() {
    let mut cluster = Cluster::start(1, "1G");
    let mut state = 1u64;
    for round in 0..200 {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", cluster.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut bytes = Vec::new();
        for _ in 0..(round * 7 % 600) {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            bytes.push((state >> 33) as u8);
        }
        if round % 3 == 0 {
            // The start of a proper ICReq, then noise.
            bytes.splice(0..0, [0, 0, 128, 0, 128, 0, 0, 0]);
        }
        // The server may hang up at any point.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
    }
    run_ok(nacre(["lctl", "ping", &cluster.nid()]).arg("--json"));
    cluster.stop_server();
    let log = std::fs::read_to_string(cluster.path("nacred.log")).unwrap();
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn mounts_that_cannot_be() {
    if !can_mount() {
        return;
    }
    let cluster = Cluster::start(1, "1G");
    let dir = cluster.path("mnt");
    std::fs::create_dir(&dir).unwrap();
    let mount = |source: &str| {
        let mut command = nacre(["mount", source]);
        command.arg(&dir);
        command
    };
    refused(&mut mount(&format!("{}:/absent", cluster.nid())), &["absent"]);
    refused(&mut mount(&format!("{}:/nacre/no/such/dir", cluster.nid())), &["no/such/dir"]);
    refused(&mut mount("127.0.0.1:1@tcp:/nacre"), &["127.0.0.1:1@tcp"]);
    refused(&mut mount("somewhere:/nacre"), &["somewhere", "NID"]);
    refused(nacre(["mount", &format!("{}:/nacre", cluster.nid())]).arg(cluster.path("nowhere")), &["nowhere"]);
    refused(nacre(["umount"]).arg(&dir), &["not mounted"]);
}
