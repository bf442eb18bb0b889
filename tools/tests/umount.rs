//! Ends: orderly unmounts that cannot be, mounts whose process was killed, servers told to stop.

mod support;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use support::*;

fn umount(mount: &Mount, more: &[&str]) -> (Option<i32>, String, Duration) {
    let start = Instant::now();
    let output = run_within(nacre(["umount"]).args(more).arg(&mount.dir), Duration::from_secs(60));
    (output.status.code(), said(&output), start.elapsed())
}

fn mounted(dir: &Path) -> usize {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    text.lines().filter(|line| line.contains(dir.to_str().unwrap())).count()
}

#[test]
fn a_busy_mount_says_so_and_stays() {
    if !can_mount() {
        return;
    }
    let cluster = Cluster::start(1, "1G");
    let mount = cluster.mount("mnt");
    let mut file = fs::File::create(mount.join("open")).unwrap();
    file.write_all(b"before").unwrap();
    let (code, text, took) = umount(&mount, &[]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("busy") && text.contains("-f"), "{text}");
    assert!(took < Duration::from_secs(15), "{took:?}");
    assert_eq!(mounted(&mount.dir), 1);
    file.write_all(b" and after").unwrap();
    file.sync_all().unwrap();
    drop(file);
    assert_eq!(fs::read(mount.join("open")).unwrap(), b"before and after");
    mount.umount();
}

#[test]
fn without_servers_an_orderly_unmount_says_so_in_time_and_loses_nothing() {
    if !can_mount() {
        return;
    }
    let mut cluster = Cluster::start(1, "1G");
    let mount = cluster.mount("mnt");
    fs::write(mount.join("dirty"), vec![5; 300_000]).unwrap();
    cluster.kill_server();
    let (code, text, took) = umount(&mount, &["--timeout", "3"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("do not answer") && text.contains("nacre-MDT0000"), "{text}");
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(mounted(&mount.dir), 1);

    cluster.start_server();
    assert_eq!(fs::read(mount.join("dirty")).unwrap(), vec![5; 300_000]);
    mount.umount();

    // Who has left in good order is not waited for, even by a server that was killed.
    cluster.kill_server();
    let start = Instant::now();
    cluster.start_server();
    let again = cluster.mount("again");
    assert_eq!(fs::read(again.join("dirty")).unwrap(), vec![5; 300_000]);
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    again.umount();
}

#[test]
fn dead_mounts_are_taken_away_and_live_ones_are_not_hidden() {
    if !can_mount() {
        return;
    }
    let cluster = Cluster::start(1, "1G");
    let mut mount = cluster.mount("mnt");
    let source = format!("{}:/nacre", cluster.nid());
    // What is not synced goes with the mount's process.
    let mut file = fs::File::create(mount.join("file")).unwrap();
    file.write_all(b"here").unwrap();
    file.sync_all().unwrap();
    drop(file);

    let second = run(nacre(["mount", &source]).arg(&mount.dir));
    assert_eq!(second.status.code(), Some(1), "{}", said(&second));
    assert!(said(&second).contains("already"), "{}", said(&second));
    assert_eq!(mounted(&mount.dir), 1);
    assert_eq!(fs::read(mount.join("file")).unwrap(), b"here");

    let device = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let device = device.lines().find(|line| line.contains(mount.dir.to_str().unwrap())).unwrap();
    let socket = Path::new("/var/tmp").join(format!("nacre-mount-{}.sock", device.split(' ').nth(2).unwrap()));
    assert!(socket.exists(), "{socket:?}");
    mount.daemon.kill_9();
    let (code, text, took) = umount(&mount, &[]);
    assert_eq!(code, Some(0), "{text}");
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(mounted(&mount.dir), 0);
    assert!(!socket.exists(), "{socket:?} is left behind");
    let (code, text, _) = umount(&mount, &[]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("not mounted"), "{text}");

    // Its control socket is still there, under a device number that the next mount may get; and a dead mount may be mounted
    // over at once.
    let mut mount = cluster.mount("mnt");
    mount.daemon.kill_9();
    let again = cluster.mount("mnt");
    assert_eq!(mounted(&again.dir), 1);
    assert_eq!(fs::read(again.join("file")).unwrap(), b"here");
    std::mem::forget(mount);
    again.umount();
}

#[test]
fn servers_stop_quickly_when_told_to_even_while_starting() {
    if !can_mount() {
        return;
    }
    let mut cluster = Cluster::start(2, "1G");
    let mount = cluster.mount("mnt");
    let mut file = fs::File::create(mount.join("file")).unwrap();
    file.write_all(b"one").unwrap();
    let start = Instant::now();
    cluster.stop_server();
    assert!(start.elapsed() < Duration::from_secs(10), "stopping took {:?}", start.elapsed());
    let log = fs::read_to_string(cluster.path("nacred.log")).unwrap();
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "a good end is noisy:\n{log}");
    cluster.fsck();
    cluster.start_server();
    file.write_all(b" two").unwrap();
    file.sync_all().unwrap();
    drop(file);
    assert_eq!(fs::read(mount.join("file")).unwrap(), b"one two");
    mount.umount();
    cluster.stop_server();

    // An OST whose MGS is away: it is still starting when it is told to stop.
    let mut config: serde_json::Value = serde_json::from_str(&cluster.config()).unwrap();
    for subsystem in config["subsystems"].as_array_mut().unwrap() {
        subsystem["config"].as_array_mut().unwrap().retain(|call| {
            let params = &call["params"];
            ![&params["name"], &params["bdev_name"]].iter().any(|name| *name == "mgs" || *name == "mdt0")
        });
    }
    // The MGS' address must not be its own.
    let text = config.to_string().replace(&cluster.port.to_string(), "0");
    fs::write(cluster.path("alone.json"), text).unwrap();
    let mut command = nacre(["nacred", "-c"]);
    command.arg(cluster.path("alone.json")).arg("-r").arg(cluster.path("alone.sock"));
    let mut child = command.stderr(std::process::Stdio::null()).stdout(std::process::Stdio::null()).spawn().unwrap();
    eventually("it is starting", PATIENCE, || cluster.path("alone.sock").exists());
    std::thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none(), "it did not wait for its MGS");
    let pid = rustix::process::Pid::from_raw(child.id() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    eventually("it ends", Duration::from_secs(10), || child.try_wait().unwrap().is_some());
    assert!(!cluster.path("alone.sock").exists(), "its control socket is left behind");
    cluster.fsck();
}
