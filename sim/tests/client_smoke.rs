//! The client against the real services: what one mount does, another sees.

#[path = "smoke/cluster.rs"]
#[allow(dead_code, reason = "shared between tests")]
mod cluster;

use std::time::Duration;

use cluster::{Cluster, pattern, root, rw, simulate};
use nacre_client::{FileSystem, LockOwner, LockRange, OpenMode, SpaceMode, WriteMode};
use nacre_reactor::Bytes;
use nacre_wire::layout::StripeHint;
use nacre_wire::mdt::{OpenFlags, RenameFlags};
use nacre_wire::{AttrPatch, Status, Time};
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

const NOBODY: LockOwner = LockOwner(1);

#[test]
fn a_file_is_made_written_read_and_seen_by_another_mount() {
    simulate(|| async {
        let cluster = Cluster::new().await;
        let (a, b) = (cluster.mount().await, cluster.mount().await);
        let file = a.create("f").await;
        let data = pattern(7, 3 << 20);
        a.write(file.handle, 0, &data).await.unwrap();
        assert!(a.client.dirty_bytes() > 0, "written behind");
        assert_eq!(a.read(file.handle, 0, data.len() + 10).await, data, "reads see what is dirty");
        // The other mount sees it at once: size by glimpse, data by revocation.
        let seen = b.stat("f").await.unwrap();
        assert_eq!(seen.attr.size, data.len() as u64);
        let there = b.open("f").await;
        assert_eq!(b.read(there.handle, 0, data.len() + 10).await, data);
        assert_eq!(b.read(there.handle, 1 << 20, 5).await, data[1 << 20..][..5]);
        assert_eq!(a.client.dirty_bytes(), 0);
        // And back.
        b.write(there.handle, 5, b"hello").await.unwrap();
        assert_eq!(a.read(file.handle, 4, 7).await[1..6], b"hello"[..]);
        assert_eq!(a.stat("f").await.unwrap().attr.size, data.len() as u64);
        for (mount, handle) in [(&a, file.handle), (&b, there.handle)] {
            mount.client.flush(handle, NOBODY).await.unwrap();
            mount.client.release(handle, None).await.unwrap();
        }
        let left = a.client.unmount(false, Duration::from_secs(10)).await;
        assert_eq!(left, nacre_client::Unmounted::default());
        assert_eq!(b.stat("f").await.unwrap().attr.size, data.len() as u64);
    });
}

#[test]
fn small_files_cost_one_mdt_request_and_stat_is_free() {
    simulate(|| async {
        let cluster = Cluster::new().await;
        let a = cluster.mount().await;
        a.stat("nothing").await.unwrap_err();
        let before = a.client.stats.mdt_calls.get();
        let file = a.create("small").await;
        a.write(file.handle, 0, b"contents").await.unwrap();
        a.client.flush(file.handle, NOBODY).await.unwrap();
        let entry = a.stat("small").await.unwrap();
        assert_eq!((entry.attr.size, entry.attr.allocated_bytes), (8, 4096));
        assert_eq!(a.client.stats.mdt_calls.get() - before, 1);
        assert_eq!(a.client.stats.glimpses.get(), 0);
        assert!(entry.keep_attr && entry.keep_name);
        a.client.release(file.handle, None).await.unwrap();
        assert_eq!(a.client.stats.write_back_calls.get(), 0);
        sleep(Duration::from_secs(3)).await;
        assert_eq!((a.client.stats.write_back_calls.get(), a.client.dirty_bytes()), (1, 0));
        let entry = a.stat("small").await.unwrap();
        assert_eq!((entry.attr.size, entry.attr.allocated_bytes), (8, 4096));
        assert_eq!(a.client.stats.mdt_calls.get() - before, 1);
    });
}

#[test]
fn striped_files_keep_their_bytes_holes_and_ends() {
    simulate(|| async {
        let cluster = Cluster::new().await;
        let (a, b) = (cluster.mount().await, cluster.mount().await);
        let dir = a.client.mkdir(&root(), a.client.root(), b"d", 0o755).await.unwrap();
        let hint = StripeHint { count: Some(2), size_bytes: Some(64 << 10), offset: None };
        a.client.set_stripe(&root(), dir.fid, hint).await.unwrap();
        let file = a.client.create(&root(), dir.fid, b"f", 0o644, true, rw()).await.unwrap();
        let layout = a.client.layout(file.entry.fid).await.unwrap().unwrap();
        assert_eq!((layout.stripes().len(), layout.stripe_size_bytes()), (2, 64 << 10));
        let unit = 64 << 10;
        let data = pattern(3, 3 * unit + 100);
        a.write(file.handle, 10 * unit as u64, &data).await.unwrap();
        let size = (10 * unit + data.len()) as u64;
        let there = b.client.open(&root(), file.entry.fid, rw()).await.unwrap();
        assert_eq!(there.entry.attr.size, size);
        let all = b.read(there.handle, 0, 20 * unit).await;
        assert_eq!(all.len() as u64, size);
        assert!(all[..10 * unit].iter().all(|byte| *byte == 0));
        assert_eq!(all[10 * unit..], data);
        // SEEK_DATA and SEEK_HOLE.
        assert_eq!(b.client.seek(there.handle, 0, false).await, Ok(10 * unit as u64));
        assert_eq!(b.client.seek(there.handle, 0, true).await, Ok(0));
        assert_eq!(b.client.seek(there.handle, 10 * unit as u64, true).await, Ok(size));
        assert_eq!(b.client.seek(there.handle, size, false).await, Err(Status::ENXIO));
        // Truncate in the middle of a unit, then grow again: zeros.
        let cut = 11 * unit as u64 + 7;
        let patch = |size| AttrPatch { size: Some(size), ..AttrPatch::default() };
        let entry = b.client.setattr(&root(), file.entry.fid, patch(cut), None, false).await.unwrap();
        assert_eq!(entry.attr.size, cut);
        b.client.setattr(&root(), file.entry.fid, patch(size), None, false).await.unwrap();
        let all = a.read(file.handle, 0, 20 * unit).await;
        assert_eq!(all.len() as u64, size);
        assert_eq!(all[10 * unit..cut as usize], data[..unit + 7]);
        assert!(all[cut as usize..].iter().all(|byte| *byte == 0));
        // fallocate.
        a.client.space(file.handle, 0..unit as u64, SpaceMode::Zero { keep_size: true }).await.unwrap();
        a.client.space(file.handle, size..size + 5, SpaceMode::Allocate { keep_size: false }).await.unwrap();
        assert_eq!(b.client.getattr(file.entry.fid).await.unwrap().attr.size, size + 5);
        a.client.space(file.handle, 10 * unit as u64..11 * unit as u64, SpaceMode::Punch).await.unwrap();
        assert!(b.read(there.handle, 10 * unit as u64, unit).await.iter().all(|byte| *byte == 0));
        let limit = a.client.file_bytes_max();
        assert_eq!(a.write(file.handle, u64::MAX - 10, b"12345").await, Err(Status::EFBIG));
        assert!(limit >= 1 << 44, "files over 16 TiB");
    });
}

#[test]
fn appends_of_two_mounts_are_neither_lost_nor_torn() {
    simulate(|| async {
        let cluster = Cluster::new().await;
        let (a, b) = (cluster.mount().await, cluster.mount().await);
        let append = OpenMode { append: true, ..rw() };
        let mut tasks = Vec::new();
        for (who, mount) in [(b'a', &a), (b'b', &b)] {
            let file = mount.create_as("log", append).await;
            let client = mount.client.clone();
            tasks.push(spawn_local(async move {
                for number in 0..50u32 {
                    let mut line = vec![who; 3000 + number as usize];
                    line.push(b'\n');
                    client.write(&root(), file.handle, 0, line.into(), WriteMode::default()).await.unwrap();
                    if number % 7 == 0 {
                        sleep(Duration::from_millis(3)).await;
                    }
                }
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        let file = a.open("log").await;
        let all = a.read(file.handle, 0, 1 << 20).await;
        let mut lines = [0, 0];
        for line in all.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            assert!(line.iter().all(|byte| *byte == line[0]), "torn");
            let who = usize::from(line[0] - b'a');
            assert_eq!(line.len(), 3000 + lines[who], "lost or out of order");
            lines[who] += 1;
        }
        assert_eq!(lines, [50, 50]);
    });
}

#[test]
fn names_made_moved_and_removed_are_seen_at_once() {
    simulate(|| async {
        let cluster = Cluster::new().await;
        let (a, b) = (cluster.mount().await, cluster.mount().await);
        let top = a.client.root();
        assert_eq!(b.stat("x").await.unwrap_err(), Status::ENOENT);
        a.client.mkdir(&root(), top, b"x", 0o755).await.unwrap();
        let x = b.stat("x").await.unwrap();
        assert!(x.attr.is_dir());
        assert_eq!(b.client.getattr(top).await.unwrap().attr.nlink, 3);
        let f = a.create("f").await;
        a.client.rename(&root(), top, b"f", x.fid, b"g", RenameFlags::empty()).await.unwrap();
        assert_eq!(b.stat("f").await.unwrap_err(), Status::ENOENT);
        assert_eq!(b.client.lookup(x.fid, b"g").await.unwrap().unwrap().fid, f.entry.fid);
        let linked = b.client.link(&root(), f.entry.fid, top, b"h").await.unwrap();
        assert_eq!(linked.attr.nlink, 2);
        assert_eq!(a.client.getattr(f.entry.fid).await.unwrap().attr.nlink, 2);
        b.client.symlink(&root(), top, b"s", b"x/g").await.unwrap();
        let s = a.stat("s").await.unwrap();
        assert_eq!(a.client.readlink(s.fid).await.unwrap(), b"x/g");
        let names = |entries: Vec<nacre_client::DirEntry>| {
            let mut names: Vec<_> = entries.into_iter().map(|e| String::from_utf8(e.name).unwrap()).collect();
            names.sort();
            names
        };
        for plus in [false, true] {
            let listed = a.client.readdir(top, 0, 65536, plus).await.unwrap();
            assert_eq!(names(listed), [".", "..", "h", "s", "x"]);
        }
        b.client.unlink(&root(), top, b"s", false).await.unwrap();
        assert_eq!(names(a.client.readdir(top, 0, 65536, false).await.unwrap()), [".", "..", "h", "x"]);
        assert_eq!(b.client.unlink(&root(), top, b"x", true).await, Err(Status::ENOTEMPTY));
        assert_eq!(a.client.fid_to_path(f.entry.fid).await.unwrap().len(), 2);
        // Unlinked but open: the data stays for who has it open.
        a.write(f.handle, 0, b"alive").await.unwrap();
        b.client.unlink(&root(), top, b"h", false).await.unwrap();
        b.client.unlink(&root(), x.fid, b"g", false).await.unwrap();
        assert_eq!(a.read(f.handle, 0, 10).await, b"alive");
        assert_eq!(a.client.getattr(f.entry.fid).await.unwrap().attr.nlink, 0);
        a.client.release(f.handle, None).await.unwrap();
        sleep(Duration::from_secs(20)).await;
        assert_eq!(a.client.getattr(f.entry.fid).await.unwrap_err(), Status::ENOENT);
    });
}

/// The writer removed a file, closed it, and dropped what it had not sent yet, because the file was gone for itself;
/// another mount had it open and read zeros.
#[test]
fn what_was_written_to_an_unlinked_file_is_there_for_other_mounts() {
    simulate(|| async {
        let cluster = Cluster::new().await;
        let (a, b) = (cluster.mount().await, cluster.mount().await);
        let file = a.create("f").await;
        let there = b.open("f").await;
        a.write(file.handle, 0, b"still read").await.unwrap();
        a.client.unlink(&root(), a.client.root(), b"f", false).await.unwrap();
        a.client.release(file.handle, None).await.unwrap();
        assert_eq!(b.read(there.handle, 0, 100).await, b"still read");
        b.client.release(there.handle, None).await.unwrap();
        // Where nobody has it open, nothing is sent.
        let brief = a.create("brief").await;
        a.write(brief.handle, 0, b"never sent").await.unwrap();
        let before = a.client.stats.write_back_calls.get();
        a.client.unlink(&root(), a.client.root(), b"brief", false).await.unwrap();
        a.client.release(brief.handle, None).await.unwrap();
        sleep(Duration::from_secs(10)).await;
        assert_eq!((a.client.stats.write_back_calls.get() - before, a.client.dirty_bytes()), (0, 0));
    });
}

#[test]
fn times_follow_writes_utimens_and_links() {
    simulate(|| async {
        let cluster = Cluster::new().await;
        let (a, b) = (cluster.mount().await, cluster.mount().await);
        let file = a.create("f").await;
        let fid = file.entry.fid;
        sleep(Duration::from_secs(1)).await;
        a.write(file.handle, 0, b"1").await.unwrap();
        let written = a.client.getattr(fid).await.unwrap().attr;
        assert!(written.mtime > file.entry.attr.mtime && written.mtime == written.ctime);
        sleep(Duration::from_secs(1)).await;
        // A link moves ctime and leaves mtime, although the MDT knows nothing of the write.
        b.client.link(&root(), fid, b.client.root(), b"g").await.unwrap();
        let linked = b.client.getattr(fid).await.unwrap().attr;
        assert_eq!(linked.mtime, written.mtime);
        assert!(linked.ctime > written.ctime);
        let long_ago = Time { seconds: -5, nanoseconds: 123_456_789 };
        let patch = AttrPatch { mtime: Some(long_ago), atime: Some(long_ago), ..AttrPatch::default() };
        b.client.setattr(&root(), fid, patch, None, false).await.unwrap();
        for mount in [&a, &b] {
            let set = mount.client.getattr(fid).await.unwrap().attr;
            assert_eq!((set.mtime, set.atime), (long_ago, long_ago));
        }
        // Dirty data from before the utimens that is written back after it does not move the time.
        sleep(Duration::from_secs(5)).await;
        assert_eq!(b.client.getattr(fid).await.unwrap().attr.mtime, long_ago);
        a.write(file.handle, 0, b"2").await.unwrap();
        assert!(b.client.getattr(fid).await.unwrap().attr.mtime > written.mtime);
        let patch = AttrPatch { mode: Some(0o600), ..AttrPatch::default() };
        let changed = a.client.setattr(&root(), fid, patch, None, false).await.unwrap().attr;
        assert_eq!(changed.mode & 0o7777, 0o600);
        assert_eq!(b.client.getattr(fid).await.unwrap().attr.mode & 0o7777, 0o600);
    });
}

/// A page of a file that is open for reading and writing may be stored to without a word, so nobody else may read that
/// place before the kernel has been asked for it.
#[test]
fn pages_that_may_be_mapped_are_taken_back_before_others_read() {
    simulate(|| async {
        let cluster = Cluster::new().await;
        let (a, b) = (cluster.mount().await, cluster.mount().await);
        let file = a.create("f").await;
        a.write(file.handle, 0, &pattern(1, 9000)).await.unwrap();
        let there = b.open("f").await;
        // Both have read it: read locks on both sides.
        b.read(there.handle, 0, 9000).await;
        a.read(file.handle, 0, 9000).await;
        let asked = |kernel: &cluster::Kernel| std::mem::take(&mut *kernel.data.borrow_mut()).len();
        asked(&a.kernel);
        b.read(there.handle, 0, 9000).await;
        assert_eq!(asked(&a.kernel), 0, "what only reads is left alone");

        let page = async |mount: &cluster::Mounted, handle| {
            let read = timeout(Duration::from_secs(1), mount.client.read_page(handle, 0, 4096)).await;
            read.expect("waits for nobody for long").unwrap().concat()
        };
        assert_eq!(page(&a, file.handle).await, pattern(1, 4096));
        assert!(asked(&b.kernel) > 0, "its pages go, too");
        b.read(there.handle, 0, 10).await;
        assert!(asked(&a.kernel) > 0, "a mapping here would have been written back now");
        // Two mappings, in turns.
        for _ in 0..5 {
            page(&a, file.handle).await;
            page(&b, there.handle).await;
            assert!(asked(&a.kernel) > 0);
        }
        // Nobody can map it for writing: read locks are enough.
        let reads = OpenMode { flags: OpenFlags::READ, ..OpenMode::default() };
        for (mount, handle) in [(&a, file.handle), (&b, there.handle)] {
            mount.client.release(handle, None).await.unwrap();
        }
        let (one, two) = (
            a.client.open(&root(), file.entry.fid, reads).await.unwrap(),
            b.client.open(&root(), file.entry.fid, reads).await.unwrap(),
        );
        // The write lock of before goes; then nothing more has to.
        page(&a, one.handle).await;
        page(&b, two.handle).await;
        asked(&a.kernel);
        asked(&b.kernel);
        page(&a, one.handle).await;
        page(&b, two.handle).await;
        assert_eq!(asked(&a.kernel) + asked(&b.kernel), 0);
    });
}

#[test]
fn extended_attributes_and_file_locks() {
    simulate(|| async {
        let cluster = Cluster::new().await;
        let (a, b) = (cluster.mount().await, cluster.mount().await);
        let file = a.create("f").await;
        let fid = file.entry.fid;
        assert_eq!(b.client.getxattr(&root(), fid, b"user.x").await, Err(Status::ENODATA));
        a.client.setxattr(&root(), fid, b"user.x", b"1", true, false).await.unwrap();
        assert_eq!(b.client.getxattr(&root(), fid, b"user.x").await.unwrap(), b"1");
        assert_eq!(b.client.listxattr(&root(), fid).await.unwrap(), [b"user.x".to_vec()]);
        b.client.removexattr(&root(), fid, b"user.x").await.unwrap();
        assert_eq!(a.client.getxattr(&root(), fid, b"user.x").await, Err(Status::ENODATA));
        // POSIX locks between mounts.
        let lock = LockRange { start: 0, end: 9, exclusive: Some(true), pid: 42, bsd: false };
        let (one, two) = (LockOwner(1), LockOwner(2));
        a.client.set_lock(fid, one, lock, false).await.unwrap();
        assert_eq!(b.client.set_lock(fid, two, lock, false).await, Err(Status::EAGAIN));
        let found = b.client.test_lock(fid, two, lock).await.unwrap().unwrap();
        assert_eq!((found.pid, found.start, found.end, found.exclusive), (42, 0, 9, Some(true)));
        assert_eq!(b.client.test_lock(fid, two, LockRange { start: 10, end: 20, ..lock }).await, Ok(None));
        let (waiter, gone) = (b.client.clone(), b.client.clone());
        let waits = spawn_local(async move { waiter.set_lock(fid, two, lock, true).await });
        // A second waiter gives up: its lock must never come.
        let three = LockOwner(3);
        assert!(timeout(Duration::from_millis(50), gone.set_lock(fid, three, lock, true)).await.is_err());
        assert!(!waits.is_finished());
        a.client.flush(file.handle, one).await.unwrap();
        waits.await.unwrap().unwrap();
        let unlock = LockRange { exclusive: None, ..lock };
        b.client.set_lock(fid, two, unlock, false).await.unwrap();
        sleep(Duration::from_millis(100)).await;
        assert_eq!(a.client.test_lock(fid, one, lock).await, Ok(None));
    });
}

#[test]
fn direct_and_synchronous_writes() {
    simulate(|| async {
        let cluster = Cluster::new().await;
        let (a, b) = (cluster.mount().await, cluster.mount().await);
        let direct = OpenMode { direct: true, ..rw() };
        let plain = a.create("f").await;
        a.write(plain.handle, 0, &[1; 8192]).await.unwrap();
        let raw = a.client.open(&root(), plain.entry.fid, direct).await.unwrap();
        a.write(raw.handle, 4096, &[2; 4096]).await.unwrap();
        assert_eq!(a.client.dirty_bytes(), 4096, "what the direct write covers is not dirty any more");
        assert_eq!(a.read(raw.handle, 0, 8192).await, [[1; 4096], [2; 4096]].concat());
        let there = b.client.open(&root(), plain.entry.fid, direct).await.unwrap();
        b.write(there.handle, 0, &[3; 4096]).await.unwrap();
        assert_eq!(a.read(plain.handle, 0, 8192).await, [[3; 4096], [2; 4096]].concat());
        let sync = OpenMode { sync: true, ..rw() };
        let synced = b.client.open(&root(), plain.entry.fid, sync).await.unwrap();
        b.write(synced.handle, 100, b"now").await.unwrap();
        assert_eq!(b.client.dirty_bytes(), 0);
        assert_eq!(a.read(plain.handle, 99, 5).await, b"\x03now\x03");
        a.client.fsync(plain.handle, false).await.unwrap();
        a.client.fsync_dir(a.client.root()).await.unwrap();
    });
}

#[test]
fn a_full_ost_tells_the_writer() {
    simulate(|| async {
        let cluster = Cluster::with_capacity(24 << 20).await;
        let a = cluster.mount().await;
        let file = a.create("f").await;
        let chunk = vec![5; 1 << 20];
        let mut outcome = Ok(());
        for number in 0..64 {
            outcome = a.write(file.handle, number << 20, &chunk).await;
            if outcome.is_err() {
                break;
            }
        }
        assert_eq!(outcome, Err(Status::ENOSPC));
        assert_eq!(a.client.fsync(file.handle, false).await, Ok(()), "what was taken was granted");
        a.client.release(file.handle, None).await.unwrap();
        a.client.unlink(&root(), a.client.root(), b"f", false).await.unwrap();
        sleep(Duration::from_secs(30)).await;
        let again = a.create("g").await;
        a.write(again.handle, 0, &chunk).await.unwrap();
        a.client.fsync(again.handle, false).await.unwrap();
        let space = a.client.statfs().await.unwrap();
        assert!(space.total_bytes >= 40 << 20 && space.free_bytes > 10 << 20, "{space:?}");
    });
}

#[test]
fn servers_come_and_go() {
    simulate(|| async {
        let cluster = Cluster::new().await;
        let (a, b) = (cluster.mount().await, cluster.mount().await);
        let file = a.create("f").await;
        a.write(file.handle, 0, b"before").await.unwrap();
        cluster.net.faults().cut_all();
        assert_eq!(a.read(file.handle, 0, 10).await, b"before");
        a.client.fsync(file.handle, false).await.unwrap();
        let gone = a.create("gone").await;
        b.client.unlink(&root(), b.client.root(), b"gone", false).await.unwrap();
        // The MDT dies and comes back: opens and locks are replayed.
        cluster.stop_mdt().await;
        let client = a.client.clone();
        let stat = spawn_local(async move { client.lookup(client.root(), b"unheard-of").await });
        sleep(Duration::from_secs(5)).await;
        assert!(!stat.is_finished(), "waits for the server");
        cluster.start_mdt().await;
        assert_eq!(stat.await.unwrap().unwrap_or(None).map(|entry| entry.fid), None);
        assert_eq!(a.client.getattr(gone.entry.fid).await.unwrap().attr.nlink, 0, "still open");
        a.write(file.handle, 6, b", after").await.unwrap();
        // An OST dies with dirty data of ours still here: locks are replayed and the data follows.
        cluster.stop_ost(0);
        cluster.stop_ost(1);
        cluster.start_ost(0).await;
        cluster.start_ost(1).await;
        a.client.fsync(file.handle, false).await.unwrap();
        let there = b.open("f").await;
        assert_eq!(b.read(there.handle, 0, 100).await, b"before, after");
        assert_eq!(cluster.filesystems(), 1);
    });
}

#[test]
fn an_evicted_client_reports_what_it_lost_once() {
    simulate(|| async {
        let cluster = Cluster::new().await;
        let (a, b) = (cluster.mount_with(&[("dirty_age_ms", "3600000")]).await, cluster.mount().await);
        let file = a.create("f").await;
        a.write(file.handle, 0, b"doomed").await.unwrap();
        let faults = cluster.net.faults();
        for ost in [10, 11] {
            faults.part(a.nid, nacre_wire::Nid::local(ost));
        }
        // The other mount gets its lock after the grace time.
        let there = b.open("f").await;
        b.write(there.handle, 0, b"mine").await.unwrap();
        b.client.fsync(there.handle, false).await.unwrap();
        faults.heal_all();
        sleep(Duration::from_secs(60)).await;
        assert_eq!(a.client.fsync(file.handle, false).await, Err(Status::EIO));
        assert_eq!(a.client.fsync(file.handle, false).await, Ok(()));
        assert_eq!(a.read(file.handle, 0, 10).await, b"mine");
        let left = a.client.unmount(true, Duration::from_secs(1)).await;
        assert_eq!(left.lost_bytes, 0);
    });
}

#[test]
fn open_for_reading_only_does_not_write() {
    simulate(|| async {
        let cluster = Cluster::new().await;
        let a = cluster.mount().await;
        let file = a.create("f").await;
        let reader = OpenMode { flags: OpenFlags::READ, ..OpenMode::default() };
        let reader = a.client.open(&root(), file.entry.fid, reader).await.unwrap();
        assert_eq!(a.write(reader.handle, 0, b"x").await, Err(Status::EBADF));
        let data = Bytes::from_static(b"x");
        // A page that was dirtied through a mapping comes with whatever handle there is.
        let mapped = WriteMode { from_cache: true, ..WriteMode::default() };
        a.client.write(&root(), reader.handle, 0, data, mapped).await.unwrap();
        assert_eq!(a.read(file.handle, 0, 9).await, b"x");
        // Truncation by open.
        let truncate = OpenMode { flags: OpenFlags::WRITE | OpenFlags::TRUNCATE, ..OpenMode::default() };
        let cut = a.client.open(&root(), file.entry.fid, truncate).await.unwrap();
        assert_eq!(cut.entry.attr.size, 0);
        assert_eq!(a.read(file.handle, 0, 9).await, b"");
    });
}

#[test]
fn unmount_is_bounded_and_tells_what_was_lost() {
    simulate(|| async {
        let cluster = Cluster::new().await;
        for force in [false, true] {
            let a = cluster.mount_with(&[("dirty_age_ms", "3600000")]).await;
            let file = a.create("f").await;
            a.write(file.handle, 0, &[9; 5000]).await.unwrap();
            let faults = cluster.net.faults();
            [10, 11].into_iter().for_each(|ost| faults.part(a.nid, nacre_wire::Nid::local(ost)));
            let client = a.client.clone();
            let reader = spawn_local(async move { client.read(file.handle, 100_000_000, 10).await });
            let before = cluster.env.now();
            let left = a.client.unmount(force, Duration::from_secs(30)).await;
            let took = cluster.env.now() - before;
            assert!(took <= Duration::from_secs(if force { 5 } else { 40 }), "{took:?}");
            assert_eq!((left.lost_bytes, left.lost_files), (5000, vec![file.entry.fid]));
            reader.await.unwrap().unwrap_err();
            assert_eq!(a.client.getattr(file.entry.fid).await.unwrap_err(), Status::ESHUTDOWN);
            faults.heal_all();
        }
    });
}

#[test]
fn what_is_remembered_of_inodes_is_bounded() {
    simulate(|| async {
        let cluster = Cluster::new().await;
        let (a, b) = (cluster.mount_with(&[("max_cached_inodes", "16")]).await, cluster.mount().await);
        for number in 0..200u32 {
            let name = format!("f{number}");
            let file = a.create(&name).await;
            a.write(file.handle, 0, name.as_bytes()).await.unwrap();
            a.client.release(file.handle, None).await.unwrap();
            if number % 50 == 0 {
                sleep(Duration::from_secs(2)).await;
            }
        }
        sleep(Duration::from_secs(5)).await;
        a.stat("f0").await.unwrap();
        sleep(Duration::from_secs(1)).await;
        let mdt_locks = a.client.peers()[1].locks;
        assert!(mdt_locks <= 40, "{mdt_locks} locks");
        let data_locks: usize = a.client.peers()[2..].iter().map(|peer| peer.locks).sum();
        assert!(data_locks <= 40, "{data_locks} locks");
        for number in [0u32, 77, 199] {
            let name = format!("f{number}");
            let there = b.open(&name).await;
            assert_eq!(b.read(there.handle, 0, 100).await, name.as_bytes());
        }
        assert!(a.kernel.names.get() > 0, "the kernel was told");
    });
}

#[test]
fn mounts_with_servers_missing() {
    simulate(|| async {
        let cluster = Cluster::new().await;
        let a = cluster.mount().await;
        let files = [a.create("f").await, a.create("g").await];
        for file in &files {
            a.write(file.handle, 0, b"there").await.unwrap();
            a.client.fsync(file.handle, false).await.unwrap();
        }
        // One OST is away: the other one's files can be read.
        let faults = cluster.net.faults();
        faults.part(nacre_wire::Nid::local(102), nacre_wire::Nid::local(10));
        let b = cluster.mount().await;
        let mut read = 0;
        for (name, file) in ["f", "g"].iter().zip(&files) {
            if a.client.layout(file.entry.fid).await.unwrap().unwrap().stripes()[0].ost_index == 1 {
                let there = b.open(name).await;
                assert_eq!(b.read(there.handle, 0, 9).await, b"there");
                read += 1;
            } else {
                let opening = timeout(Duration::from_secs(5), b.stat(name)).await;
                assert!(opening.is_err(), "waits for the OST, and can be given up");
            }
        }
        assert_eq!(read, 1, "files are spread over the OSTs");
        faults.heal_all();
        let there = b.open("f").await;
        assert_eq!(b.read(there.handle, 0, 9).await, b"there");
        // What cannot be mounted says why.
        let wrong = cluster.try_mount("nacer", None).await.unwrap_err().to_string();
        assert_eq!(wrong, "the MGS at 1@local has no filesystem \"nacer\"; it has: nacre");
        let wrong = cluster.try_mount("nacre", Some("no/such")).await.unwrap_err().to_string();
        assert_eq!(wrong, "cannot mount directory \"no/such\" of \"nacre\": \"no\" does not exist");
        a.client.mkdir(&root(), a.client.root(), b"sub", 0o755).await.unwrap();
        let sub = cluster.try_mount("nacre", Some("/sub/")).await.unwrap();
        assert_ne!(sub.root(), nacre_wire::Fid::ROOT);
        sub.mkdir(&root(), sub.root(), b"below", 0o755).await.unwrap();
        assert_eq!(a.client.lookup(sub.root(), b"below").await.unwrap().map(|e| e.attr.is_dir()), Some(true));
    });
}

#[test]
fn sequential_readers_find_their_data_here() {
    simulate(|| async {
        let cluster = Cluster::new().await;
        let (a, b) = (cluster.mount().await, cluster.mount().await);
        let file = a.create("f").await;
        let data = pattern(11, 12 << 20);
        for (number, chunk) in data.chunks(1 << 20).enumerate() {
            a.write(file.handle, (number << 20) as u64, chunk).await.unwrap();
        }
        let there = b.open("f").await;
        let mut got = Vec::new();
        while got.len() < data.len() {
            let part = b.read(there.handle, got.len() as u64, 128 << 10).await;
            assert!(!part.is_empty());
            got.extend(part);
        }
        assert!(got == data);
        let stats = &b.client.stats;
        let (ahead, hits) = (stats.read_ahead_bytes.get(), stats.read_ahead_hits_bytes.get());
        assert!(hits >= 11 << 20 && ahead >= hits, "read ahead {ahead}, used {hits}");
        // A write elsewhere makes what was read ahead useless.
        let there = b.open("f").await;
        b.read(there.handle, 0, 128 << 10).await;
        a.write(file.handle, 0, &vec![0; 4 << 20]).await.unwrap();
        assert!(b.read(there.handle, 128 << 10, 1 << 20).await.iter().all(|byte| *byte == 0));
    });
}

#[test]
fn data_of_a_file_that_is_unlinked_while_open_elsewhere() {
    simulate(|| async {
        let cluster = Cluster::new().await;
        let (a, b) = (cluster.mount().await, cluster.mount().await);
        let file = a.create("f").await;
        a.write(file.handle, 0, b"written behind").await.unwrap();
        a.client.release(file.handle, None).await.unwrap();
        let there = b.client.open(&root(), file.entry.fid, rw()).await.unwrap();
        a.client.unlink(&root(), a.client.root(), b"f", false).await.unwrap();
        assert_eq!(b.read(there.handle, 0, 100).await, b"written behind");
        // Nobody wants the data of this one: it is not even sent.
        let sent = a.client.stats.write_back_bytes.get();
        let brief = a.create("brief").await;
        a.write(brief.handle, 0, b"never mind").await.unwrap();
        a.client.release(brief.handle, None).await.unwrap();
        a.client.unlink(&root(), a.client.root(), b"brief", false).await.unwrap();
        sleep(Duration::from_secs(10)).await;
        assert_eq!((a.client.stats.write_back_bytes.get(), a.client.dirty_bytes()), (sent, 0));
    });
}

#[test]
fn fsync_ends_while_a_writer_goes_on() {
    simulate(|| async {
        let cluster = Cluster::new().await;
        cluster.net.faults().set_delay(|_, _| Duration::from_millis(1));
        let a = cluster.mount().await;
        let file = a.create("f").await;
        let client = a.client.clone();
        let writer = spawn_local(async move {
            for number in 0.. {
                let data = Bytes::from(vec![number as u8; 4096]);
                client.write(&root(), file.handle, (number % 64) * 4096, data, WriteMode::default()).await.unwrap();
                sleep(Duration::from_micros(100)).await;
            }
        });
        sleep(Duration::from_millis(50)).await;
        timeout(Duration::from_secs(2), a.client.fsync(file.handle, false)).await.expect("it ends").unwrap();
        writer.abort();
    });
}
