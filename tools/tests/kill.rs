//! kill −9 under load: the server's, the client's; servers that are away; bounded unmounts.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use support::*;

/// What has been acknowledged: path → contents that fsync said are safe.
type Acknowledged = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

/// What a load and the test share.
#[derive(Clone)]
struct Load {
    root: PathBuf,
    thread: usize,
    stop: Arc<AtomicBool>,
    /// Rounds done.
    rounds: Arc<AtomicUsize>,
}

impl Load {
    fn start(root: &Path, thread: usize, work: impl FnOnce(&Load) + Send + 'static) -> (Load, JoinHandle<()>) {
        let load = Load { root: root.to_owned(), thread, stop: Arc::default(), rounds: Arc::default() };
        let own = load.clone();
        (load, std::thread::spawn(move || work(&own)))
    }

    fn done(&self) -> usize {
        self.rounds.load(Ordering::SeqCst)
    }

    /// Makes a directory and does `round` until told to stop.
    fn each_round(&self, mut round: impl FnMut(&Path, usize)) {
        let dir = self.root.join(format!("thread{}", self.thread));
        fs::create_dir_all(&dir).unwrap();
        while !self.stop.load(Ordering::SeqCst) {
            round(&dir, self.done());
            self.rounds.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// Writes files and fsyncs them until told to stop. Names carry the thread, contents the number: what is found later can be
/// checked against what was acknowledged.
fn synced(load: &Load, acknowledged: &Acknowledged) {
    let thread = load.thread;
    load.each_round(|dir, number| {
        let name = format!("thread{thread}/file{}", number % 50);
        let contents = format!("{thread} {number} ").repeat(1 + number * 131 % 4000).into_bytes();
        let fresh = format!("{name}.new");
        let mut file = fs::File::create(load.root.join(&fresh)).unwrap();
        file.write_all(&contents).unwrap();
        file.sync_all().unwrap();
        drop(file);
        // Between the rename and its fsync either content may be found.
        acknowledged.lock().unwrap().remove(&name);
        fs::rename(load.root.join(&fresh), load.root.join(&name)).unwrap();
        fs::File::open(dir).unwrap().sync_all().unwrap();
        acknowledged.lock().unwrap().insert(name, contents);
    });
}

/// Changes names and never syncs. The client lives, so every call is done once and for good, however often the server was
/// killed under it: the directory is what the calls' answers say, at every moment.
fn exact(load: &Load) {
    let mut model: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut state = 77 + load.thread as u64;
    let mut random = move |below: u64| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) % below
    };
    load.each_round(|dir, number| {
        let (one, two) = (format!("n{}", random(20)), format!("n{}", random(20)));
        let has = model.contains_key(&one);
        match random(6) {
            0 | 1 => {
                let made = fs::File::options().write(true).create_new(true).open(dir.join(&one));
                assert_eq!(made.as_ref().err().map(std::io::Error::kind), has.then_some(ErrorKind::AlreadyExists));
                if let Ok(mut file) = made {
                    let contents = format!("{number} ").repeat(random(9000) as usize).into_bytes();
                    file.write_all(&contents).unwrap();
                    model.insert(one, contents);
                }
            }
            2 => {
                let removed = fs::remove_file(dir.join(&one));
                assert_eq!(removed.is_ok(), has, "unlink {one}: {removed:?}");
                model.remove(&one);
            }
            3 => {
                let renamed = fs::rename(dir.join(&one), dir.join(&two));
                assert_eq!(renamed.is_ok(), has, "rename {one} {two}: {renamed:?}");
                if let Some(contents) = model.remove(&one) {
                    model.insert(two, contents);
                }
            }
            4 if has => {
                let mut file = fs::File::options().append(true).open(dir.join(&one)).unwrap();
                file.write_all(b"more").unwrap();
                model.get_mut(&one).unwrap().extend(b"more");
            }
            4 => {
                fs::create_dir(dir.join("dir")).unwrap();
                fs::remove_dir(dir.join("dir")).unwrap();
            }
            _ => {
                let found = fs::read(dir.join(&one)).ok();
                let (found, wanted) = (found.as_deref(), model.get(&one).map(Vec::as_slice));
                assert!(
                    found == wanted,
                    "{one}: {:?} bytes, not {:?}",
                    found.map(<[u8]>::len),
                    wanted.map(<[u8]>::len)
                );
            }
        }
        if number % 32 == 0 {
            let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let names: std::collections::BTreeSet<String> = names.collect();
            assert!(names.iter().eq(model.keys()), "{names:?}, not {:?}", model.keys());
        }
    });
    let dir = load.root.join(format!("thread{}", load.thread));
    for (name, contents) in &model {
        assert!(fs::read(dir.join(name)).unwrap() == *contents, "{name}");
    }
}

/// Reads, writes and cuts one file of two stripes at random places, without syncing: it is always what was last written.
fn one_file(load: &Load) {
    let mut model: Vec<u8> = Vec::new();
    let mut state = 99u64;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % below
    };
    let path = load.root.join("one_file");
    run_ok(nacre(["lfs", "setstripe", "-c", "2", "-S", "64K"]).arg(&path));
    let file = fs::File::options().read(true).write(true).open(&path).unwrap();
    load.each_round(|_, number| {
        let (at, length) = (random(2 << 20), 1 + random(200_000));
        match random(8) {
            0..4 => {
                let data = vec![number as u8; length];
                file.write_all_at(&data, at as u64).unwrap();
                model.resize(model.len().max(at + length), 0);
                model[at..at + length].fill(number as u8);
            }
            4..7 => {
                let mut data = vec![0; length];
                let mut got = 0;
                while got < length {
                    match file.read_at(&mut data[got..], (at + got) as u64).unwrap() {
                        0 => break,
                        more => got += more,
                    }
                }
                let end = (at + length).min(model.len());
                assert!(data[..got] == model[at.min(end)..end], "round {number}: {length} at {at}, {got} read");
            }
            _ => {
                file.set_len(at as u64).unwrap();
                model.resize(at, 0);
            }
        }
        assert_eq!(file.metadata().unwrap().len(), model.len() as u64, "round {number}");
    });
    assert!(fs::read(&path).unwrap() == model);
}

/// Bytes of one appended record.
const RECORD_BYTES: usize = 700;

/// Appends records to a file that other mounts append to as well.
fn appends(load: &Load) {
    let mut file = fs::File::options().create(true).append(true).open(load.root.join("appends")).unwrap();
    load.each_round(|_, number| {
        let mut record = format!("{} {number} ", load.thread).into_bytes();
        record.resize(RECORD_BYTES, b'.');
        assert_eq!(file.write(&record).unwrap(), RECORD_BYTES);
    });
}

/// Every record is there once, whole, in its writer's order.
fn check_appends(root: &Path, rounds: &BTreeMap<usize, usize>) {
    let text = fs::read(root.join("appends")).unwrap();
    let mut next: BTreeMap<usize, usize> = rounds.keys().map(|thread| (*thread, 0)).collect();
    for (index, record) in text.chunks(RECORD_BYTES).enumerate() {
        let words = String::from_utf8_lossy(record);
        let mut numbers = words.split(' ').map_while(|word| word.parse().ok());
        let (Some(thread), Some(number)) = (numbers.next(), numbers.next()) else {
            panic!("record {index} is torn: {words:.20}")
        };
        let wanted = next.get_mut(&thread).unwrap();
        assert_eq!(number, *wanted, "record {index} of writer {thread}");
        *wanted += 1;
        assert!(record.len() == RECORD_BYTES && record.ends_with(b"."), "record {index} is torn");
    }
    assert_eq!(next, *rounds, "records lost");
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
    let other = cluster.mount("other");
    let acknowledged = Acknowledged::default();
    let mut loads = Vec::new();
    for thread in 0..3 {
        let acknowledged = Arc::clone(&acknowledged);
        let root = if thread == 2 { &other.dir } else { &mount.dir };
        loads.push(Load::start(root, thread, move |load| synced(load, &acknowledged)));
    }
    for thread in 3..5 {
        loads.push(Load::start(&mount.dir, thread, exact));
    }
    loads.push(Load::start(&other.dir, 5, one_file));
    loads.push(Load::start(&mount.dir, 6, appends));
    loads.push(Load::start(&other.dir, 7, appends));
    let mut state = std::env::var("NACRE_SEED").map_or(u64::from(std::process::id()), |seed| seed.parse().unwrap());
    println!("NACRE_SEED={state}");
    let mut longest = Duration::ZERO;
    for round in 0..20 {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        std::thread::sleep(Duration::from_millis(20 + (state >> 33) % 1000));
        cluster.kill_server();
        cluster.fsck();
        if round % 4 == 3 {
            // Again, while clients come back.
            cluster.start_server();
            std::thread::sleep(Duration::from_millis((state >> 43) % 150));
            cluster.kill_server();
            cluster.fsck();
        }
        let before: Vec<_> = loads.iter().map(|(load, _)| load.done()).collect();
        let start = Instant::now();
        cluster.start_server();
        for ((load, thread), before) in loads.iter().zip(before) {
            eventually(&format!("load {} goes on", load.thread), PATIENCE, || {
                assert!(!thread.is_finished(), "load {} has met an error", load.thread);
                load.done() > before + 1
            });
        }
        longest = longest.max(start.elapsed());
    }
    println!("longest from start to everybody going on: {longest:?}");
    // All known clients came back: nobody had to wait for the recovery window.
    assert!(longest < Duration::from_secs(25), "{longest:?}");
    loads.iter().for_each(|(load, _)| load.stop.store(true, Ordering::SeqCst));
    let mut appended = BTreeMap::new();
    for (load, thread) in loads {
        thread.join().expect("the load met an error");
        println!("load {}: {} rounds", load.thread, load.done());
        if load.thread >= 6 {
            appended.insert(load.thread, load.done());
        }
    }
    check_appends(&mount.dir, &appended);
    for log in ["mnt.log", "other.log", "nacred.log"] {
        let text = fs::read_to_string(cluster.path(log)).unwrap();
        assert!(!text.contains("evict"), "somebody was evicted, {log}:\n{text}");
    }
    let checked = check(&mount.dir, &acknowledged);
    assert!(checked > 20, "only {checked} files were acknowledged");
    other.umount();
    mount.umount();
    let again = cluster.mount("again");
    check(&again.dir, &acknowledged);
    check_appends(&again.dir, &appended);
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
    drop(file);
    drop(a);
    b.umount();
}

#[test]
fn a_client_that_died_with_the_server_is_waited_for_and_no_longer() {
    if !can_mount() {
        return;
    }
    let mut cluster = Cluster::start(1, "1G");
    let mut a = cluster.mount("a");
    let b = cluster.mount("b");
    let held = fs::File::create(a.join("held")).unwrap();
    held.write_all_at(b"a", 0).unwrap();
    a.daemon.kill_9();
    cluster.kill_server();
    cluster.fsck();
    let start = Instant::now();
    cluster.start_server();
    fs::write(b.join("held"), b"b").unwrap();
    // The recovery window is 30 s.
    assert!(start.elapsed() < Duration::from_secs(50), "the other mount waited {:?}", start.elapsed());
    assert_eq!(fs::read(b.join("held")).unwrap(), b"b");
    // It is forgotten: the next start waits for nobody but b.
    cluster.kill_server();
    let start = Instant::now();
    cluster.start_server();
    fs::write(b.join("held"), b"c").unwrap();
    assert!(start.elapsed() < Duration::from_secs(20), "waited {:?} for a client long gone", start.elapsed());
    drop(held);
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
