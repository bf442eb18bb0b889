//! Locks that clients cache under, and file locks, between two sessions.

mod rig;

use std::rc::Rc;
use std::time::Duration;

use nacre_wire::ldlm::{Enqueue, EnqueueFlags, EnqueueReply, Event, Ibits, Mode, OP_ENQUEUE, Policy};
use nacre_wire::mdt::*;
use nacre_wire::{Fid, Status};
use rig::*;

const ROOT: Fid = Fid::ROOT;

fn bits(lock: &nacre_wire::ldlm::Granted) -> Ibits {
    match lock.policy {
        Policy::Ibits(bits) if lock.cookie != 0 => bits,
        _ => Ibits::empty(),
    }
}

async fn caching(rig: &Rig, number: u8) -> Rc<Peer> {
    let mut peer = rig.peer(number).await;
    peer.lock = ALL;
    Rc::new(peer)
}

#[test]
fn a_change_by_another_takes_the_lock_first() {
    on_virtual_time(async {
        let rig = Rig::new().await;
        let (one, two) = (caching(&rig, 1).await, caching(&rig, 2).await);
        let fid = one.file(ROOT, "f").await.unwrap();
        let cached = two.lookup_reply(ROOT, "f").await.unwrap().inode.unwrap();
        assert_eq!(bits(&cached.lock), ALL);
        let change = tokio::task::spawn_local({
            let two = two.clone();
            async move { two.chmod(fid, 0o640).await }
        });
        let (_, event) = one.event(0).await;
        let Event::Revoke { cookie, resource, .. } = event else { panic!("{event:?}") };
        assert_eq!(resource, fid);
        assert!(!change.is_finished());
        one.cancel(cookie).await;
        let changed = change.await.unwrap().unwrap();
        assert_eq!(bits(&changed.lock), ALL);
        // Its own locks do not stand in a client's way, and are not asked back.
        let start = tokio::time::Instant::now();
        two.chmod(fid, 0o600).await.unwrap();
        two.unlink(ROOT, "f").await.unwrap();
        assert_eq!(start.elapsed(), Duration::ZERO);
    });
}

#[test]
fn an_open_that_is_sent_again_while_it_runs_is_one_open() {
    on_virtual_time(async {
        let rig = Rig::new().await;
        let (one, two) = (caching(&rig, 1).await, caching(&rig, 2).await);
        let fid = one.file(ROOT, "f").await.unwrap();
        assert_eq!(bits(&two.lookup_reply(ROOT, "f").await.unwrap().inode.unwrap().lock), ALL);
        let flags = OpenFlags::WRITE | OpenFlags::TRUNCATE;
        let request = Open { cred: one.cred.clone(), fid, flags, lock: ALL, time: one.time() };
        let xid = one.caller.next_xid();
        let open = async |flags| one.caller.call_as::<_, CreateReply>(op::OPEN, &request, xid, flags).await.unwrap();
        let give_way = async {
            let (_, event) = two.event(0).await;
            let Event::Revoke { cookie, .. } = event else { panic!("{event:?}") };
            two.cancel(cookie).await;
        };
        let (first, again, ()) = tokio::join!(open(0), open(nacre_wire::op::rpc_flags::RESENT), give_way);
        assert_eq!(first.handle, again.handle);
        assert_eq!(rig.stat("open_files"), "1");
    });
}

#[test]
fn names_that_are_not_there_can_be_cached_until_they_are() {
    on_virtual_time(async {
        let rig = Rig::new().await;
        let (one, two) = (caching(&rig, 1).await, caching(&rig, 2).await);
        let nothing = one.lookup_reply(ROOT, "f").await.unwrap();
        assert!(nothing.inode.is_none());
        assert_eq!(bits(&nothing.parent_lock), Ibits::UPDATE);
        let create = tokio::task::spawn_local({
            let two = two.clone();
            async move { two.file(ROOT, "f").await }
        });
        let (_, event) = one.event(0).await;
        let Event::Revoke { cookie, resource, .. } = event else { panic!("{event:?}") };
        assert_eq!((cookie, resource), (nothing.parent_lock.cookie, ROOT));
        assert!(!create.is_finished());
        // While the change waits nobody is given a lock that it would have to take back.
        let listing = one.read_dir(ROOT, 0, 4096, true).await.unwrap();
        assert_ne!(bits(&listing.lock), Ibits::UPDATE | Ibits::LOOKUP);
        one.cancel(cookie).await;
        create.await.unwrap().unwrap();
        assert!(one.lookup(ROOT, "f").await.is_some());
    });
}

#[test]
fn a_client_that_does_not_give_way_is_evicted_and_the_change_goes_on() {
    on_virtual_time(async {
        let rig = Rig::new().await;
        let (one, two) = (caching(&rig, 1).await, caching(&rig, 2).await);
        let fid = two.file(ROOT, "f").await.unwrap();
        let open = one.open(fid, OpenFlags::READ).await.unwrap();
        assert_ne!(open, 0);
        assert_ne!(one.inode(fid).await.unwrap().lock.cookie, 0);
        let start = tokio::time::Instant::now();
        two.chmod(fid, 0o600).await.unwrap();
        assert!(start.elapsed() >= Duration::from_secs(5) && start.elapsed() < Duration::from_secs(60));
        assert_eq!(one.attr(fid).await, Err(Status::NO_SESSION));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(rig.stat("open_files"), "0");
        assert_eq!(rig.stat("clients"), "1");
    });
}

#[test]
fn file_locks_exclude_wait_and_end_with_their_client() {
    on_virtual_time(async {
        let rig = Rig::new().await;
        let (one, two) = (rig.peer(1).await, rig.peer(2).await);
        let fid = one.file(ROOT, "f").await.unwrap();
        let ask = |mode, owner, flags| Enqueue {
            resource: fid,
            mode,
            policy: Policy::Flock { owner, start: 0, end: 99, pid: 77, bsd: false },
            flags,
            replaces: 0,
        };
        let held: EnqueueReply = one.caller.call(OP_ENQUEUE, &ask(Mode::Pw, 1, EnqueueFlags::empty())).await.unwrap();
        assert!(!held.waiting);
        let refused: Result<EnqueueReply, _> =
            two.caller.call(OP_ENQUEUE, &ask(Mode::Pr, 1, EnqueueFlags::NOWAIT)).await;
        assert_eq!(refused, Err(Status::EAGAIN));
        let told: EnqueueReply = two.caller.call(OP_ENQUEUE, &ask(Mode::Pr, 1, EnqueueFlags::TEST)).await.unwrap();
        assert!(matches!(told.granted.policy, Policy::Flock { pid: 77, .. }));
        let waiting: EnqueueReply =
            two.caller.call(OP_ENQUEUE, &ask(Mode::Pr, 1, EnqueueFlags::empty())).await.unwrap();
        assert!(waiting.waiting);
        one.caller.lose();
        let (_, event) = two.event(0).await;
        let Event::Granted { lock, resource, .. } = event else { panic!("{event:?}") };
        assert_eq!((lock.cookie, resource), (waiting.granted.cookie, fid));
        // Clients do not take write locks on bits.
        let write =
            Enqueue { mode: Mode::Ex, policy: Policy::Ibits(Ibits::UPDATE), ..ask(Mode::Ex, 1, EnqueueFlags::empty()) };
        assert_eq!(two.caller.call::<_, EnqueueReply>(OP_ENQUEUE, &write).await, Err(Status::EINVAL));
    });
}

#[test]
fn opposite_renames_and_removals_never_wait_in_a_circle() {
    on_virtual_time(async {
        let rig = Rig::new().await;
        let peer = Rc::new(rig.peer(1).await);
        let mut dirs = vec![ROOT];
        for i in 0..4 {
            let parent = dirs[i / 2];
            dirs.push(peer.mkdir(parent, &format!("d{i}")).await.unwrap());
        }
        let dirs = Rc::new(dirs);
        let mut tasks = Vec::new();
        for worker in 0..24usize {
            let (peer, dirs) = (peer.clone(), dirs.clone());
            tasks.push(tokio::task::spawn_local(async move {
                for round in 0..40usize {
                    let pick = |n: usize| {
                        (dirs[(worker * 7 + round * 3 + n) % dirs.len()], format!("d{}", (worker + round + n) % 4))
                    };
                    let ((from, name), (to, new_name)) = (pick(0), pick(round % 5));
                    // Most of it is refused; all of it has to end, and the tree has to stay a tree.
                    match (worker + round) % 5 {
                        0 => drop(peer.rmdir(from, &name).await),
                        1 => drop(peer.mkdir(from, &name).await),
                        2 => drop(peer.rename_with((from, &name), (to, &new_name), RenameFlags::EXCHANGE).await),
                        3 => drop(peer.link(dirs[1], to, &new_name).await),
                        _ => drop(peer.rename((from, &name), (to, &new_name)).await),
                    }
                    if round % 7 == worker % 7 {
                        tokio::task::yield_now().await;
                    }
                }
            }));
        }
        for task in tasks {
            tokio::time::timeout(Duration::from_secs(600), task).await.expect("a deadlock").unwrap();
        }
        check_tree(&peer, ROOT, ROOT).await;
    });
}

/// Every directory is where its `..` says, and counts its subdirectories.
async fn check_tree(peer: &Peer, dir: Fid, parent: Fid) {
    let listing = peer.read_dir(dir, 0, 1 << 20, true).await.unwrap();
    assert!(listing.end);
    assert_eq!(listing.parent, parent);
    assert_eq!(peer.attr(dir).await.unwrap().nlink as usize, 2 + listing.entries.len());
    for entry in listing.entries {
        Box::pin(check_tree(peer, entry.fid, dir)).await;
    }
}
