//! kill −9 under load: the server's, the client's; servers that are away; bounded unmounts.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use support::*;

/// What has been acknowledged: path → contents that fsync said are safe.
type Acknowledged = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

/// Writes files and fsyncs them until told to stop. Names carry the thread, contents the number: what is found later can be
/// checked against what was acknowledged.
fn load(root: std::path::PathBuf, thread: usize, stop: Arc<AtomicBool>, acknowledged: Acknowledged) {
    let dir = root.join(format!("thread{thread}"));
    fs::create_dir_all(&dir).unwrap();
    let mut number = 0usize;
    while !stop.load(Ordering::Relaxed) {
        let name = format!("thread{thread}/file{}", number % 50);
        let contents = format!("{thread} {number} ").repeat(1 + number * 131 % 4000).into_bytes();
        let fresh = format!("{name}.new");
        let mut file = fs::File::create(root.join(&fresh)).unwrap();
        file.write_all(&contents).unwrap();
        file.sync_all().unwrap();
        drop(file);
        // Between the rename and its fsync either content may be found.
        acknowledged.lock().unwrap().remove(&name);
        fs::rename(root.join(&fresh), root.join(&name)).unwrap();
        fs::File::open(&dir).unwrap().sync_all().unwrap();
        acknowledged.lock().unwrap().insert(name, contents);
        number += 1;
    }
}

fn check(root: &Path, acknowledged: &Acknowledged) -> usize {
    let acknowledged = acknowledged.lock().unwrap();
    for (name, contents) in acknowledged.iter() {
        let found = fs::read(root.join(name)).unwrap_or_else(|error| panic!("{name} was acknowledged: {error}"));
        assert!(found == *contents, "{name}: {} bytes found, {} acknowledged", found.len(), contents.len());
    }
    acknowledged.len()
}

#[test]
fn twenty_kills_of_the_server_lose_nothing_acknowledged() {
    if !can_mount() {
        return;
    }
    let mut cluster = Cluster::start(2, "4G");
    let mount = cluster.mount("mnt");
    let stop = Arc::new(AtomicBool::new(false));
    let acknowledged = Acknowledged::default();
    let threads: Vec<_> = (0..3)
        .map(|thread| {
            let (root, stop, acknowledged) = (mount.dir.clone(), Arc::clone(&stop), Arc::clone(&acknowledged));
            std::thread::spawn(move || load(root, thread, stop, acknowledged))
        })
        .collect();
    let mut state = u64::from(std::process::id());
    println!("seed {state}");
    for round in 0..20 {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        std::thread::sleep(Duration::from_millis(100 + (state >> 33) % 900));
        cluster.kill_server();
        if round % 5 == 4 {
            cluster.fsck();
        }
        cluster.start_server();
    }
    let before = acknowledged.lock().unwrap().len();
    eventually("the load goes on after the last kill", PATIENCE, || {
        let now = acknowledged.lock().unwrap();
        now.len() >= before && !now.is_empty()
    });
    stop.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().expect("the load met an error");
    }
    let checked = check(&mount.dir, &acknowledged);
    assert!(checked > 20, "only {checked} files were acknowledged");
    mount.umount();
    let again = cluster.mount("again");
    check(&again.dir, &acknowledged);
    again.umount();
    cluster.stop_server();
    cluster.fsck();
}

#[test]
fn a_killed_client_gives_its_locks_back() {
    if !can_mount() {
        return;
    }
    let cluster = Cluster::start(2, "2G");
    let mut a = cluster.mount("a");
    let b = cluster.mount("b");
    // a holds a write lock with dirty data, a POSIX lock, and an open unlinked file.
    fs::write(b.join("shared"), b"old").unwrap();
    let held = fs::File::options().write(true).open(a.join("shared")).unwrap();
    held.write_all_at(b"new", 0).unwrap();
    rustix::fs::fcntl_lock(&held, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    let _unlinked = fs::File::create(a.join("unlinked")).unwrap();
    fs::remove_file(a.join("unlinked")).unwrap();
    a.daemon.kill_9();

    let start = Instant::now();
    let text = fs::read(b.join("shared")).unwrap();
    assert!(text == b"old" || text == b"new", "torn: {text:?}");
    fs::write(b.join("shared"), b"after").unwrap();
    let file = fs::File::options().write(true).open(b.join("shared")).unwrap();
    rustix::fs::fcntl_lock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
    assert!(start.elapsed() < Duration::from_secs(60), "the other mount waited {:?}", start.elapsed());
    drop(a);
    b.umount();
}

#[test]
fn operations_wait_for_a_server_and_can_be_interrupted() {
    if !can_mount() {
        return;
    }
    let mut cluster = Cluster::start(1, "2G");
    let mount = cluster.mount("mnt");
    fs::write(mount.join("file"), vec![7; 1 << 20]).unwrap();
    cluster.kill_server();

    // Interrupted by a signal.
    let mut waiting = Command::new("stat").arg(mount.join("unknown")).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(1));
    assert!(waiting.try_wait().unwrap().is_none(), "it did not wait");
    kill(waiting.id());
    eventually("a killed process ends", Duration::from_secs(10), || waiting.try_wait().unwrap().is_some());

    // Goes on when the server is back.
    let path = mount.join("unknown2");
    let waiting = std::thread::spawn(move || fs::write(path, b"patience"));
    std::thread::sleep(Duration::from_secs(1));
    cluster.start_server();
    waiting.join().unwrap().unwrap();
    assert_eq!(fs::read(mount.join("unknown2")).unwrap(), b"patience");
    assert_eq!(fs::read(mount.join("file")).unwrap(), vec![7; 1 << 20]);
    mount.umount();
}

#[test]
fn a_forced_unmount_is_bounded() {
    if !can_mount() {
        return;
    }
    let mut cluster = Cluster::start(1, "2G");
    let mut mount = cluster.mount("mnt");
    let file = fs::File::create(mount.join("dirty")).unwrap();
    file.write_all_at(&[1; 100_000], 0).unwrap();
    cluster.kill_server();
    let mut stuck: Vec<_> =
        (0..4).map(|i| Command::new("stat").arg(mount.join(&format!("x{i}"))).spawn().unwrap()).collect();
    std::thread::sleep(Duration::from_millis(500));

    let start = Instant::now();
    let output = run_within(nacre(["umount", "-f", "--timeout", "10"]).arg(&mount.dir), Duration::from_secs(40));
    assert!(start.elapsed() < Duration::from_secs(25), "umount -f took {:?}: {}", start.elapsed(), said(&output));
    for process in &mut stuck {
        eventually("a stuck process ends", Duration::from_secs(10), || process.try_wait().unwrap().is_some());
    }
    drop(file);
    eventually("the mount is gone", Duration::from_secs(10), || {
        !fs::read_to_string("/proc/self/mountinfo").unwrap().contains(mount.dir.to_str().unwrap())
    });
    // Data was lost, and the mount process says so by its status; what matters here is that it ends.
    let _ = mount.daemon.ended_well(Duration::from_secs(30));
}
