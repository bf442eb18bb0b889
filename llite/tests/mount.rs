//! The mount as applications see it, on a real kernel.

mod support;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::time::{Duration, Instant};

use nacre_client::KernelCache;
use nacre_llite::End;
use nacre_wire::Fid;
use nacre_wire::fid::SEQ_NORMAL;
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FlockOperation, Mode, OFlags, RenameFlags, Timespec, Timestamps, XattrFlags,
};
use rustix::io::Errno;
use support::{Mount, sh};

#[test]
fn a_tree_is_copied_and_compared() {
    let Some(mount) = Mount::new() else { return };
    let source = env!("CARGO_MANIFEST_DIR");
    let out =
        sh(&mount.dir, &format!("cp -a {source}/src {source}/tests . && diff -r {source}/src src && find . | wc -l"));
    assert!(out.trim().parse::<u32>().unwrap() > 10);
    sh(&mount.dir, "mkdir -p a/b/c && ln -s ../x a/link && test \"$(readlink a/link)\" = ../x");
    sh(
        &mount.dir,
        "tar cf t.tar src && mkdir u && tar xf t.tar -C u && diff -r src u/src && rm -r u src && test ! -e src",
    );
    let lines = fs::read_to_string("/proc/self/mounts").unwrap();
    let wanted = format!("192.0.2.1@tcp:/test {} fuse.nacre", mount.dir.display());
    assert!(lines.contains(&wanted), "{wanted} not in\n{lines}");
    assert!(mount.unmount());
}

#[test]
fn data_of_all_sizes() {
    let Some(mount) = Mount::new() else { return };
    let data: Vec<u8> = (0..5_000_001u32).map(|i| (i.wrapping_mul(2654435761) >> 13) as u8).collect();
    fs::write(mount.path("f"), &data).unwrap();
    assert_eq!(fs::read(mount.path("f")).unwrap(), data);
    let file = OpenOptions::new().read(true).write(true).open(mount.path("f")).unwrap();
    file.write_all_at(b"xyz", 4_999_999).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 5_000_002);
    let mut back = [0; 5];
    file.read_exact_at(&mut back, 4_999_997).unwrap();
    assert_eq!(&back[2..], b"xyz");
    file.set_len(10).unwrap();
    assert_eq!(fs::read(mount.path("f")).unwrap(), &data[..10]);
    // A hole far out, and the limit the filesystem told.
    file.write_all_at(b"end", (17 << 40) + 1).unwrap();
    assert_eq!(fs::metadata(mount.path("f")).unwrap().len(), (17 << 40) + 4);
    let error = file.write_at(b"x", support::memfs::FILE_BYTES_MAX).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::FBIG.raw_os_error()));
    assert_eq!(file.write_at(b"xy", support::memfs::FILE_BYTES_MAX - 1).unwrap(), 1);
    assert!(file.set_len(support::memfs::FILE_BYTES_MAX + 1).is_err());
}

#[test]
fn appends_and_open_flags() {
    let Some(mount) = Mount::new() else { return };
    let path = mount.path("log");
    let mut one = OpenOptions::new().append(true).create(true).open(&path).unwrap();
    let mut two = OpenOptions::new().append(true).open(&path).unwrap();
    for _ in 0..100 {
        one.write_all(b"one\n").unwrap();
        two.write_all(b"two\n").unwrap();
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), "one\ntwo\n".repeat(100));
    let exclusive = OpenOptions::new().write(true).create_new(true).open(&path).unwrap_err();
    assert_eq!(exclusive.raw_os_error(), Some(Errno::EXIST.raw_os_error()));
    File::create(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    let direct = OFlags::DIRECT.bits() as i32;
    let file = OpenOptions::new().read(true).write(true).custom_flags(direct).open(&path).unwrap();
    let block = nacre_reactor::DmaBuf::copy_from(&[5; 4096]);
    file.write_all_at(&block, 0).unwrap();
    assert_eq!(fs::read(&path).unwrap(), [5; 4096]);
    // Unlinked while open.
    fs::remove_file(&path).unwrap();
    file.write_all_at(&block, 4096).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 8192);
    assert_eq!(file.metadata().unwrap().nlink(), 0);
}

#[test]
fn names_and_renames() {
    let Some(mount) = Mount::new() else { return };
    let dir = rustix::fs::open(&mount.dir, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
    fs::write(mount.path("a"), "a").unwrap();
    fs::write(mount.path("b"), "b").unwrap();
    let rename = |from: &str, to: &str, flags| rustix::fs::renameat_with(&dir, from, &dir, to, flags);
    assert_eq!(rename("a", "b", RenameFlags::NOREPLACE), Err(Errno::EXIST));
    rename("a", "b", RenameFlags::EXCHANGE).unwrap();
    assert_eq!(fs::read_to_string(mount.path("a")).unwrap(), "b");
    assert_eq!(rename("a", "b", RenameFlags::WHITEOUT), Err(Errno::INVAL));
    rename("a", "b", RenameFlags::empty()).unwrap();
    assert!(!mount.path("a").exists());
    fs::hard_link(mount.path("b"), mount.path("c")).unwrap();
    assert_eq!(fs::metadata(mount.path("b")).unwrap().nlink(), 2);
    let longest = "n".repeat(255);
    fs::write(mount.path(&longest), "").unwrap();
    assert_eq!(fs::write(mount.path(&"n".repeat(256)), "").unwrap_err().raw_os_error(), Some(36));
    fs::create_dir(mount.path("d")).unwrap();
    assert_eq!(fs::metadata(&mount.dir).unwrap().nlink(), 3);
    fs::write(mount.path("d/x"), "").unwrap();
    assert_eq!(fs::remove_dir(mount.path("d")).unwrap_err().raw_os_error(), Some(39));
    sh(
        &mount.dir,
        "mknod fifo p && test -p fifo && mknod null c 1 3 && echo x > null && test \"$(stat -c %t:%T null)\" = 1:3",
    );
}

#[test]
fn attributes_and_times() {
    let Some(mount) = Mount::new() else { return };
    let path = mount.path("f");
    fs::write(&path, "x").unwrap();
    let time = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
    let times = Timestamps { last_access: time(-5, 999_999_999), last_modification: time(1_600_000_000, 123_456_789) };
    rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty()).unwrap();
    let attr = fs::metadata(&path).unwrap();
    assert_eq!((attr.atime(), attr.atime_nsec()), (-5, 999_999_999));
    assert_eq!((attr.mtime(), attr.mtime_nsec()), (1_600_000_000, 123_456_789));
    let before = std::time::SystemTime::now() - Duration::from_secs(1);
    sh(&mount.dir, "touch f && chmod 4751 f && chown 7:8 f");
    let attr = fs::metadata(&path).unwrap();
    assert!(attr.modified().unwrap() > before);
    assert_eq!((attr.mode(), attr.uid(), attr.gid()), (0o104751, 7, 8));
    assert_eq!((attr.blksize(), attr.blocks()), (1 << 20, 8));
    assert!(attr.created().unwrap() > before);
    let space = rustix::fs::statvfs(&mount.dir).unwrap();
    assert_eq!((space.f_frsize * space.f_blocks, space.f_files, space.f_namemax), (1 << 40, 1000, 255));
}

#[test]
fn maps_and_files_agree() {
    let Some(mount) = Mount::new() else { return };
    let script = r#"
import mmap, os
f = open("m", "w+b"); f.write(b"a" * 10000); f.flush()
m = mmap.mmap(f.fileno(), 10000)
assert m[9999:10000] == b"a"
m[5000:5003] = b"map"
assert os.pread(f.fileno(), 3, 5000) == b"map", "a mapping's change is seen by read"
os.pwrite(f.fileno(), b"write", 8000)
assert m[8000:8005] == b"write", "a write is seen by a mapping"
m.flush(); m.close(); f.close()
g = open("m", "rb"); r = mmap.mmap(g.fileno(), 0, prot=mmap.PROT_READ)
assert r[5000:5003] == b"map" and r[8000:8005] == b"write"
h = open("m", "r+b"); os.pwrite(h.fileno(), b"later", 0)
assert r[0:5] == b"later"
assert os.pread(g.fileno(), 5, 0) == b"later"
"#;
    fs::write(mount.path("script.py"), script).unwrap();
    sh(&mount.dir, "python3 script.py");
}

#[test]
fn space_holes_and_seek() {
    let Some(mount) = Mount::new() else { return };
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(mount.path("f")).unwrap();
    file.write_all_at(&[1; 300_000], 0).unwrap();
    let fallocate = |flags, offset, length| rustix::fs::fallocate(&file, flags, offset, length);
    fallocate(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 65536, 131072).unwrap();
    let mut back = vec![9; 300_000];
    file.read_exact_at(&mut back, 0).unwrap();
    assert!(back[..65536].iter().all(|b| *b == 1) && back[65536..196608].iter().all(|b| *b == 0) && back[196608] == 1);
    let seek = |how| rustix::fs::seek(&file, how);
    assert_eq!(seek(rustix::fs::SeekFrom::Hole(10)), Ok(65536));
    assert_eq!(seek(rustix::fs::SeekFrom::Data(65536)), Ok(196608));
    assert_eq!(seek(rustix::fs::SeekFrom::Data(300_000)), Err(Errno::NXIO));
    assert_eq!((&file).seek(SeekFrom::End(-1)).unwrap(), 299_999);
    fallocate(FallocateFlags::ZERO_RANGE, 299_990, 100).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 300_090);
    fallocate(FallocateFlags::KEEP_SIZE, 300_000, 1 << 20).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 300_090);
    fallocate(FallocateFlags::empty(), 0, 400_000).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 400_000);
    assert_eq!(fallocate(FallocateFlags::COLLAPSE_RANGE, 0, 65536), Err(Errno::OPNOTSUPP));
    // copy_file_range falls back to the kernel's own copy.
    let copy = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(mount.path("g")).unwrap();
    let copied = rustix::fs::copy_file_range(&file, Some(&mut 0), &copy, Some(&mut 0), 100_000).unwrap();
    assert!(copied > 0);
}

#[test]
fn extended_attributes_and_control() {
    let Some(mount) = Mount::new() else { return };
    let path = mount.path("f");
    fs::write(&path, "x").unwrap();
    let set = |name: &str, value: &[u8], flags| rustix::fs::setxattr(&path, name, value, flags);
    let get = |name: &str| {
        let mut value = vec![0; 65536];
        rustix::fs::getxattr(&path, name, &mut value[..])
            .map(|length| String::from_utf8_lossy(&value[..length]).into_owned())
    };
    set("user.a", b"one", XattrFlags::CREATE).unwrap();
    assert_eq!(set("user.a", b"", XattrFlags::CREATE), Err(Errno::EXIST));
    assert_eq!(set("user.b", b"", XattrFlags::REPLACE), Err(Errno::NODATA));
    set("trusted.t", b"two", XattrFlags::empty()).unwrap();
    assert_eq!(get("user.a").unwrap(), "one");
    sh(&mount.dir, "python3 -c 'import ctypes; assert ctypes.CDLL(None).getxattr(b\"f\", b\"user.a\", None, 0) == 3'");
    assert_eq!(rustix::fs::getxattr(&path, "user.a", &mut [0u8; 2][..]), Err(Errno::RANGE));
    let mut list = [0u8; 100];
    let length = rustix::fs::listxattr(&path, &mut list[..]).unwrap();
    assert_eq!(&list[..length], b"trusted.t\0user.a\0");
    rustix::fs::removexattr(&path, "user.a").unwrap();
    assert_eq!(get("user.a"), Err(Errno::NODATA));

    let fid: Fid = get("nacre.fid").unwrap().parse().unwrap();
    assert_eq!(fid.inode_number(), fs::metadata(&path).unwrap().ino());
    assert!(get("nacre.layout").unwrap().contains(r#""ost_index":3"#));
    assert_eq!(get("nacre.nothing"), Err(Errno::NODATA));
    assert_eq!(get(&format!("nacre.path.{fid}")).unwrap(), "/f");
    assert!(get("nacre.mount").unwrap().contains("192.0.2.1@tcp:/test"));
    set("nacre.stripe", br#"{"count":-1,"size_bytes":1048576}"#, XattrFlags::empty()).unwrap();
    assert_eq!(get("nacre.stripe").unwrap(), r#"{"count":-1,"size_bytes":1048576,"offset":null}"#);
    assert_eq!(set("nacre.stripe", br#"{"count":-2}"#, XattrFlags::empty()), Err(Errno::INVAL));
    assert_eq!(set("nacre.fid", b"x", XattrFlags::empty()), Err(Errno::PERM));
}

#[test]
fn locks_of_both_kinds() {
    let Some(mount) = Mount::new() else { return };
    let path = mount.path("f");
    fs::write(&path, "x").unwrap();
    let (one, two) = (File::open(&path).unwrap(), File::open(&path).unwrap());
    rustix::fs::flock(&one, FlockOperation::LockExclusive).unwrap();
    assert_eq!(rustix::fs::flock(&two, FlockOperation::NonBlockingLockShared), Err(Errno::WOULDBLOCK));
    // fcntl(2) locks are others.
    sh(&mount.dir, "python3 -c 'import fcntl; fcntl.lockf(open(\"f\", \"r+\"), fcntl.LOCK_EX | fcntl.LOCK_NB)'");
    drop(one);
    rustix::fs::flock(&two, FlockOperation::NonBlockingLockExclusive).unwrap();
    let script = r#"
import fcntl, os, signal, struct, time
f = open("f", "r+b")
fcntl.lockf(f, fcntl.LOCK_EX, 10, 0)
fcntl.lockf(f, fcntl.LOCK_UN, 2, 4)
r, w = os.pipe()
if os.fork() == 0:
    g = open("f", "r+b")
    fcntl.lockf(g, fcntl.LOCK_EX | fcntl.LOCK_NB, 2, 4)
    q = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 4, 0)
    kind, _, start, length, pid = struct.unpack("hhqqi4x", fcntl.fcntl(g, fcntl.F_GETLK, q))
    assert (kind, start, length) == (fcntl.F_WRLCK, 0, 4), (kind, start, length)
    def alarm(*_): raise TimeoutError
    signal.signal(signal.SIGALRM, alarm); signal.setitimer(signal.ITIMER_REAL, 0.2)
    try: fcntl.lockf(g, fcntl.LOCK_EX, 1, 0); os._exit(3)
    except TimeoutError: pass
    os.write(w, b"x"); fcntl.lockf(g, fcntl.LOCK_EX, 1, 0); os._exit(0)
os.read(r, 1); time.sleep(0.1)
# Closing any descriptor of the file drops the process's locks.
open("f").close()
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
"#;
    fs::write(mount.path("script.py"), script).unwrap();
    sh(&mount.dir, "python3 script.py");
}

#[test]
fn many_names_under_change() {
    let Some(mount) = Mount::new() else { return };
    const NAMES: usize = 50_000;
    fs::create_dir(mount.path("d")).unwrap();
    for i in 0..NAMES {
        rustix::fs::mknodat(
            CWD,
            mount.path(&format!("d/stays{i:06}")),
            rustix::fs::FileType::RegularFile,
            Mode::RUSR,
            0,
        )
        .unwrap();
    }
    let dir = mount.path("d");
    let changer = std::thread::spawn({
        let dir = dir.clone();
        move || {
            for i in 0..3000 {
                fs::write(dir.join(format!("comes{i}")), "").unwrap();
                if i % 2 == 0 {
                    fs::remove_file(dir.join(format!("comes{i}"))).unwrap();
                }
            }
        }
    });
    let mut seen = std::collections::BTreeSet::new();
    for entry in fs::read_dir(&dir).unwrap() {
        assert!(seen.insert(entry.unwrap().file_name()), "a name twice");
    }
    changer.join().unwrap();
    assert_eq!(seen.iter().filter(|name| name.to_string_lossy().starts_with("stays")).count(), NAMES);
    // telldir, seekdir, rewinddir.
    let handle = rustix::fs::open(&dir, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
    let mut buffer = Vec::with_capacity(8192);
    let mut raw = rustix::fs::RawDir::new(&handle, buffer.spare_capacity_mut());
    let mut all = Vec::new();
    while let Some(entry) = raw.next() {
        let entry = entry.unwrap();
        all.push((entry.next_entry_cookie(), entry.file_name().to_owned()));
    }
    assert_eq!(all.len(), NAMES + 1500 + 2);
    for at in [0, 1, 2, 777, 40_000] {
        rustix::fs::seek(&handle, rustix::fs::SeekFrom::Start(all[at].0)).unwrap();
        let mut buffer = Vec::with_capacity(8192);
        let mut raw = rustix::fs::RawDir::new(&handle, buffer.spare_capacity_mut());
        assert_eq!(raw.next().unwrap().unwrap().file_name(), &*all[at + 1].1);
    }
    let before = mount.calls("readdir");
    assert_eq!(fs::read_dir(&dir).unwrap().count(), NAMES + 1500);
    let used = mount.calls("readdir") - before;
    assert!(used < 40, "{used} calls for {NAMES} names");
}

#[test]
fn changes_behind_the_kernel_are_seen_after_invalidation() {
    let Some(mount) = Mount::new() else { return };
    fs::create_dir(mount.path("d")).unwrap();
    fs::write(mount.path("d/f"), "old data").unwrap();
    let read = || fs::read_to_string(mount.path("d/f")).unwrap();
    assert_eq!(read(), "old data");
    assert_eq!(fs::metadata(mount.path("d/f")).unwrap().len(), 8);
    let asked = || (mount.calls("getattr"), mount.calls("lookup"), mount.calls("read"));
    let before = asked();
    for _ in 0..10 {
        assert_eq!(fs::metadata(mount.path("d/f")).unwrap().len(), 8);
        assert_eq!(read(), "old data");
    }
    let after = asked();
    assert!(after.0 - before.0 <= 1 && after.2 == before.2, "cached: {before:?} {after:?}");
    for round in 0..50 {
        let text = format!("new data, longer, {round}");
        let wanted = text.clone();
        mount.run(move |inside| async move {
            let fid = inside.fs.poke("d/f", text.as_bytes());
            inside.kernel.invalidate_data(fid, 0..u64::MAX).await;
        });
        assert_eq!(fs::metadata(mount.path("d/f")).unwrap().len(), wanted.len() as u64);
        assert_eq!(read(), wanted);
    }
    fs::write(mount.path("gone"), "x").unwrap();
    assert!(mount.path("gone").exists() && !mount.path("never").exists());
    mount.run(|inside| async move {
        inside.fs.poke_unlink("gone");
        inside.kernel.invalidate_names().await;
    });
    assert!(!mount.path("gone").exists());
}

#[test]
fn an_open_file_and_directory_survive_an_epoch() {
    let Some(mount) = Mount::new() else { return };
    fs::create_dir(mount.path("d")).unwrap();
    fs::write(mount.path("d/f"), "data").unwrap();
    let file = File::open(mount.path("d/f")).unwrap();
    let mut shell = std::process::Command::new("sh")
        .args(["-c", "read x; pwd -P; ls; read x; cat f"])
        .current_dir(mount.path("d"))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    for _ in 0..3 {
        mount.run(|inside| async move { inside.kernel.invalidate_names().await });
        assert_eq!(fs::read_to_string(mount.path("d/f")).unwrap(), "data");
    }
    writeln!(shell.stdin.as_mut().unwrap(), "\n").unwrap();
    let out = String::from_utf8(shell.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!(out, format!("{}\nf\ndata", mount.dir.canonicalize().unwrap().join("d").display()));
    let mut text = String::new();
    (&file).read_to_string(&mut text).unwrap();
    assert_eq!(text, "data");
}

#[test]
fn invalidation_does_not_wait_for_calls_in_the_same_directory() {
    let Some(mount) = Mount::new() else { return };
    fs::create_dir(mount.path("d")).unwrap();
    fs::write(mount.path("d/f"), "x").unwrap();
    let dir = mount.run(|inside| async move { inside.fs.poke("d/f", b"y") });
    mount.stall("create slow");
    let path = mount.path("d/slow");
    let creator = std::thread::spawn(move || File::create(path).unwrap());
    mount.wait_for_call("create", 2);
    let parent = Fid::from_inode_number(fs::metadata(mount.path("d")).unwrap().ino());
    let start = Instant::now();
    mount.run(move |inside| async move {
        inside.kernel.invalidate_names().await;
        inside.kernel.invalidate_attr(parent).await;
        inside.kernel.invalidate_data(dir, 0..u64::MAX).await;
    });
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert!(!creator.is_finished());
    mount.resume();
    creator.join().unwrap();
}

#[test]
fn invalidation_meets_a_read_in_flight() {
    let Some(mount) = Mount::new() else { return };
    fs::write(mount.path("f"), "old").unwrap();
    mount.stall("read");
    let path = mount.path("f");
    let reader = std::thread::spawn(move || fs::read_to_string(path).unwrap());
    mount.wait_for_call("read", 1);
    // The kernel holds the page locked; the invalidation ends when the read does, and what it brought does not stay.
    let invalidated = mount.start(|inside| async move {
        let fid = inside.fs.poke("f", b"new");
        inside.kernel.invalidate_data(fid, 0..u64::MAX).await;
    });
    assert!(invalidated.recv_timeout(Duration::from_millis(200)).is_err());
    mount.resume();
    invalidated.recv_timeout(Duration::from_secs(3)).unwrap();
    reader.join().unwrap();
    assert_eq!(fs::read_to_string(mount.path("f")).unwrap(), "new");
}

#[test]
fn dirty_mapped_pages_are_written_back_by_invalidation() {
    let Some(mount) = Mount::new() else { return };
    let script = r#"
import mmap, sys
f = open("m", "w+b"); f.write(b"." * 4096); f.flush()
m = mmap.mmap(f.fileno(), 4096); m[0:5] = b"dirty"
print("ready", flush=True); sys.stdin.readline(); print(m[0:5].decode())
"#;
    fs::write(mount.path("script.py"), script).unwrap();
    let mut python = std::process::Command::new("python3")
        .arg("script.py")
        .current_dir(&mount.dir)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = [0; 6];
    python.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    let before = mount.calls("write");
    let fid = Fid::from_inode_number(fs::metadata(mount.path("m")).unwrap().ino());
    mount.run(move |inside| async move { inside.kernel.invalidate_data(fid, 0..4096).await });
    assert!(mount.calls("write") > before);
    assert!(fs::read(mount.path("m")).unwrap().starts_with(b"dirty"));
    python.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    assert_eq!(python.wait_with_output().unwrap().stdout, b"dirty\n");
}

#[test]
fn who_waits_can_be_killed_and_a_timer_does_not_hurt() {
    let Some(mount) = Mount::new() else { return };
    mount.stall("lookup hang");
    for signal in ["KILL", "INT"] {
        let calls = mount.calls("lookup");
        let mut stat = std::process::Command::new("stat")
            .arg(mount.path("hang"))
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        mount.wait_for_call("lookup", calls + 1);
        std::thread::sleep(Duration::from_millis(20));
        sh(&mount.dir, &format!("kill -{signal} {}", stat.id()));
        let start = Instant::now();
        assert!(!stat.wait().unwrap().success());
        assert!(start.elapsed() < Duration::from_secs(2), "{signal}: {:?}", start.elapsed());
    }
    // A handler for SIGALRM with the call going on: EINTR must not come out of stat(2).
    let script = "import os, signal\nsignal.signal(signal.SIGALRM, lambda *_: None)\nsignal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)\n\
                  print('go', flush=True)\ntry: os.stat('hang')\nexcept FileNotFoundError: print('right')\n";
    let mut python = std::process::Command::new("python3")
        .args(["-c", script])
        .current_dir(&mount.dir)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    python.stdout.as_mut().unwrap().read_exact(&mut [0; 3]).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let before = mount.calls("lookup");
    std::thread::sleep(Duration::from_millis(400));
    let during = mount.calls("lookup");
    mount.resume();
    assert_eq!(python.wait_with_output().unwrap().stdout, b"right\n");
    assert_eq!(during, before, "the call was not repeated");
}

#[test]
fn unmounting_is_bounded_when_a_call_never_returns() {
    let Some(mount) = Mount::new() else { return };
    mount.stall("lookup hang");
    let path = mount.path("hang");
    let waiting = std::thread::spawn(move || fs::metadata(path).unwrap_err());
    mount.wait_for_call("lookup", 1);
    let start = Instant::now();
    let dir = mount.dir.clone();
    assert!(!mount.unmount(), "by force");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    let error = waiting.join().unwrap();
    assert!(matches!(Errno::from_io_error(&error), Some(Errno::CONNABORTED | Errno::NOTCONN)), "{error}");
    assert!(!fs::read_to_string("/proc/self/mounts").unwrap().contains(dir.to_str().unwrap()));
}

#[test]
fn a_killed_process_gives_its_locks_back() {
    let Some(mount) = Mount::new() else { return };
    fs::write(mount.path("f"), "x").unwrap();
    let script = "import fcntl, time\nf = open('f', 'r+')\nfcntl.lockf(f, fcntl.LOCK_EX)\nprint('locked', flush=True)\ntime.sleep(60)";
    let mut python = std::process::Command::new("python3")
        .args(["-c", script])
        .current_dir(&mount.dir)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    python.stdout.as_mut().unwrap().read_exact(&mut [0; 7]).unwrap();
    // It dies while the server does not answer.
    mount.stall("flush");
    python.kill().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    mount.resume();
    python.wait().unwrap();
    sh(&mount.dir, "timeout 5 python3 -c 'import fcntl; fcntl.lockf(open(\"f\", \"r+\"), fcntl.LOCK_EX)'");
}

#[test]
fn umount_from_outside_ends_it() {
    for (flags, wanted) in [(&[][..], End::Unmounted), (&["-l"], End::Unmounted), (&["-f"], End::Unmounted)] {
        let Some(mount) = Mount::new() else { return };
        fs::write(mount.path("f"), "x").unwrap();
        let status = std::process::Command::new("umount").args(flags).arg(&mount.dir).status().unwrap();
        assert!(status.success());
        let dir = mount.dir.clone();
        assert_eq!(mount.ended(), wanted);
        assert!(!fs::read_to_string("/proc/self/mounts").unwrap().contains(dir.to_str().unwrap()));
    }
}

#[test]
fn a_subdirectory_is_mounted_and_a_second_mount_is_refused() {
    let root = Fid::new(SEQ_NORMAL + 5, 9);
    let Some(mount) = Mount::with_root(root) else { return };
    assert_eq!(fs::metadata(&mount.dir).unwrap().ino(), root.inode_number());
    fs::create_dir(mount.path("d")).unwrap();
    assert_eq!(fs::metadata(mount.path("d/..")).unwrap().ino(), root.inode_number());
    let at = mount.dir.clone();
    let refused = mount.run(|inside| async move {
        let options = nacre_llite::MountOptions::new("192.0.2.1@tcp:/test", at);
        nacre_llite::mount(&options, inside.fs.clone(), &nacre_llite::KernelNotifier::new(), None).await.map(drop)
    });
    assert!(refused.unwrap_err().to_string().contains("already has \"192.0.2.1@tcp:/test\" mounted"));
}
