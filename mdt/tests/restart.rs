//! Exactly-once and restarts: what was answered is there afterwards, once; what belongs to nobody goes.

mod rig;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use nacre_mdt::Phase;
use nacre_osd::Store;
use nacre_osd::model::Crash;
use nacre_wire::ldlm::{Ibits, Mode, OP_REPLAY_LOCKS, Policy, ReplayLocks};
use nacre_wire::mdt::*;
use nacre_wire::session::{OP_DISCONNECT, OP_REPLAY_DONE};
use nacre_wire::{Fid, Status};
use rig::*;

const ROOT: Fid = Fid::ROOT;

fn new_file(peer: &Peer, name: &str) -> Create {
    peer.create_request(ROOT, name, WITH_OBJECTS, 0o644)
}

#[test]
fn a_change_sent_again_is_answered_and_not_repeated() {
    on_virtual_time(async {
        let rig = Rig::new().await;
        let peer = rig.peer(1).await;
        let request = new_file(&peer, "f");
        let first = peer.create_as(request.clone()).await.unwrap();
        // EEXIST would be the answer of a second execution.
        assert_eq!(peer.create_as(request.clone()).await.unwrap(), first);
        let unlink = peer.unlink_request(ROOT, "f", false);
        let gone: UnlinkReply = peer.caller.call(op::UNLINK, &unlink).await.unwrap();
        assert_eq!(peer.caller.call::<_, UnlinkReply>(op::UNLINK, &unlink).await.unwrap(), gone);
        // A failure is remembered as well.
        let again = peer.unlink_request(ROOT, "f", false);
        for _ in 0..2 {
            let refused = peer.caller.call::<_, UnlinkReply>(op::UNLINK, &again).await;
            assert_eq!(refused.unwrap_err(), Status::ENOENT);
        }
        // The slot has gone on: what was there before is too old.
        let next = Create { slot: Slot { index: request.slot.index, xid: 1 << 40 }, ..new_file(&peer, "g") };
        peer.create_as(next).await.unwrap();
        assert_eq!(peer.create_as(request).await.unwrap_err(), Status::ESTALE);
        let outside = Create { slot: Slot { index: 1 << 20, xid: 1 }, ..new_file(&peer, "h") };
        assert_eq!(peer.create_as(outside).await.unwrap_err(), Status::EINVAL);
    });
}

#[test]
fn a_change_sent_again_while_it_runs_is_joined() {
    on_virtual_time(async {
        let rig = Rig::new().await;
        let peer = Rc::new(rig.peer(1).await);
        let waits = Rc::new(Cell::new(0));
        let counted = waits.clone();
        rig.store.set_wait_hook(Some(Rc::new(move |_, _| {
            counted.set(counted.get() + 1);
            Box::pin(tokio::time::sleep(Duration::from_secs(5)))
        })));
        let request = new_file(&peer, "f");
        let (one, two) = (peer.clone(), peer.clone());
        let (first, second) = (request.clone(), request);
        let first = tokio::task::spawn_local(async move { one.create_as(first).await });
        tokio::time::sleep(Duration::from_secs(1)).await;
        let second = tokio::task::spawn_local(async move { two.create_as(second).await });
        tokio::time::sleep(Duration::from_secs(1)).await;
        // Who has sent it first is gone; the change goes on.
        first.abort();
        let answer = second.await.unwrap().unwrap();
        assert!(answer.created);
        assert_eq!(waits.get(), 1);
        assert_eq!(peer.names(ROOT).await, ["f"]);
    });
}

#[test]
fn an_open_sent_again_finds_its_handle() {
    on_virtual_time(async {
        let rig = Rig::new().await;
        let peer = rig.peer(1).await;
        let fid = peer.file(ROOT, "f").await.unwrap();
        let request =
            Open { cred: Cred::default(), fid, flags: OpenFlags::READ, lock: Ibits::empty(), time: peer.time() };
        let xid = peer.caller.next_xid();
        let first: CreateReply = peer.caller.call_as(op::OPEN, &request, xid, 0).await.unwrap();
        let again: CreateReply = peer.caller.call_as(op::OPEN, &request, xid, 1).await.unwrap();
        assert_eq!(first.handle, again.handle);
        assert_eq!(rig.stat("open_files"), "1");
    });
}

#[test]
fn answered_changes_survive_a_kill_and_resends_find_their_answers() {
    on_virtual_time(async {
        let rig = Rig::new().await;
        let peer = rig.peer(1).await;
        let request = new_file(&peer, "f");
        let before = peer.create_as(request.clone()).await.unwrap();
        let mut open = new_file(&peer, "o");
        open.open = Some(OpenFlags::WRITE);
        let opened = peer.create_as(open.clone()).await.unwrap();
        let incarnation = rig.mdt.incarnation();

        let rig = rig.crash(Crash::Kill).await;
        assert_eq!(rig.mdt.incarnation(), incarnation + 1);
        assert_eq!(rig.mdt.phase(), Phase::Recovering);
        let peer = rig.peer_again(1, incarnation).await;
        assert!(peer.caller.welcome.recovering && !peer.caller.welcome.resumed);
        assert_eq!(peer.create_as(request.clone()).await.unwrap_err(), Status::RECOVERING);
        peer.caller.call::<_, ()>(OP_REPLAY_DONE, &()).await.unwrap();
        rig.serving().await;
        assert_eq!(peer.create_as(request).await.unwrap().inode, before.inode);
        // The handle of an answer that had not arrived is good.
        let again = peer.create_as(open).await.unwrap();
        assert_eq!(again.handle, opened.handle);
        peer.unlink(ROOT, "o").await.unwrap();
        assert_eq!(peer.attr(again.inode.fid).await.unwrap().nlink, 0);
        peer.close(again.inode.fid, again.handle).await.unwrap();
        assert_eq!(peer.attr(again.inode.fid).await, Err(Status::ENOENT));
        assert_eq!(peer.names(ROOT).await, ["f"]);
    });
}

#[test]
fn fids_and_objects_are_never_given_twice() {
    on_virtual_time(async {
        let mut rig = Rig::new().await;
        let mut fids = std::collections::BTreeSet::new();
        let mut objects = std::collections::BTreeSet::new();
        for (round, how) in [Crash::Kill, Crash::PowerLoss, Crash::Kill].into_iter().enumerate() {
            rig.serving().await;
            let peer = rig.peer(round as u8 + 1).await;
            let mut last = [0; 2];
            for i in 0..50 {
                let made = peer.create_as(new_file(&peer, &format!("f{round}-{i}"))).await.unwrap().inode;
                assert!(fids.insert(made.fid), "{} again", made.fid);
                let stripe = made.layout.unwrap().stripes()[0];
                assert!(objects.insert(stripe.object), "{} again", stripe.object);
                let id = stripe.object.as_ost_object().unwrap().1;
                last[usize::from(stripe.ost_index)] = id;
            }
            // Power loss takes what nobody was told is stable; then nothing counts before it is synced.
            peer.caller.call::<_, ()>(op::SYNC, &Sync { fid: Fid::NONE }).await.unwrap();
            rig = rig.crash(how).await;
            rig.serving().await;
            tokio::time::sleep(Duration::from_secs(10)).await;
            for ost in &rig.osts {
                assert_eq!(ost.orphans_after.borrow().last(), Some(&last[usize::from(ost.index)]));
            }
        }
        let peer = rig.peer(9).await;
        assert_eq!(peer.names(ROOT).await.len(), 150);
    });
}

#[test]
fn orphans_stay_for_who_replays_them_and_go_otherwise() {
    on_virtual_time(async {
        let rig = Rig::new().await;
        let (one, two) = (rig.peer(1).await, rig.peer(2).await);
        let mut kept = one.open_new(ROOT, "kept").await.unwrap();
        let lost = two.open_new(ROOT, "lost").await.unwrap();
        for name in ["kept", "lost"] {
            one.unlink(ROOT, name).await.unwrap();
        }
        let incarnation = rig.mdt.incarnation();
        let rig = rig.crash(Crash::Kill).await;
        let one = rig.peer_again(1, incarnation).await;
        let opens = vec![(kept.inode.fid, kept.handle, OpenFlags::READ)];
        // Twice, as after a lost answer.
        for _ in 0..2 {
            let replay = ReplayOpens { opens: opens.clone() };
            one.caller.call::<_, ()>(op::REPLAY_OPENS, &replay).await.unwrap();
        }
        one.caller.call::<_, ()>(OP_REPLAY_DONE, &()).await.unwrap();
        // The other client never comes: the window ends.
        tokio::time::sleep(Duration::from_secs(29)).await;
        assert_eq!(rig.mdt.phase(), Phase::Recovering);
        rig.serving().await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        kept.inode.attr = one.attr(kept.inode.fid).await.unwrap();
        assert_eq!(kept.inode.attr.nlink, 0);
        assert_eq!(one.attr(lost.inode.fid).await, Err(Status::ENOENT));
        assert_eq!(rig.stat("clients"), "1");
        one.close(kept.inode.fid, kept.handle).await.unwrap();
        assert_eq!(one.attr(kept.inode.fid).await, Err(Status::ENOENT));
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(rig.osts.iter().map(|ost| ost.destroyed.borrow().len()).sum::<usize>(), 2);
        assert!(rig.store.scan(nacre_mdt::disk::ORPHANS, None, 1).await.unwrap().is_empty());
    });
}

/// A client's answer to REPLAY_DONE is lost. It comes with the incarnation it knew before, and must not be taken for one that
/// was evicted: it would drop what the server holds for it.
#[test]
fn a_client_that_has_replayed_is_resumed_however_old_what_it_knows() {
    on_virtual_time(async {
        let rig = Rig::new().await;
        let (one, _two) = (rig.peer(1).await, rig.peer(2).await);
        let made = one.open_new(ROOT, "f").await.unwrap();
        let incarnation = rig.mdt.incarnation();
        let rig = rig.crash(Crash::Kill).await;
        let one = rig.peer_again(1, incarnation).await;
        one.caller.lose();
        let one = rig.peer_again(1, incarnation).await;
        assert!(one.caller.welcome.recovering && !one.caller.welcome.resumed);
        let replay = ReplayOpens { opens: vec![(made.inode.fid, made.handle, OpenFlags::WRITE)] };
        one.caller.call::<_, ()>(op::REPLAY_OPENS, &replay).await.unwrap();
        one.caller.call::<_, ()>(OP_REPLAY_DONE, &()).await.unwrap();
        one.caller.lose();
        let one = rig.peer_again(1, incarnation).await;
        assert!(one.caller.welcome.resumed && !one.caller.welcome.recovering);
        assert_eq!(rig.stat("open_files"), "1");
        // A stranger who claims to have been here is told that nothing of it is left.
        let stranger = rig.peer_again(7, incarnation).await;
        assert!(!stranger.caller.welcome.resumed && !stranger.caller.welcome.recovering);
    });
}

#[test]
fn a_server_nobody_was_connected_to_serves_at_once() {
    on_virtual_time(async {
        let rig = Rig::new().await;
        let peer = rig.peer(1).await;
        peer.file(ROOT, "f").await.unwrap();
        peer.caller.call::<_, ()>(OP_DISCONNECT, &()).await.unwrap();
        assert_eq!(peer.attr(ROOT).await, Err(Status::NO_SESSION));
        let rig = rig.crash(Crash::Kill).await;
        assert_eq!(rig.mdt.phase(), Phase::Serving);
        assert!(rig.store.scan(nacre_mdt::disk::SLOTS, None, 1).await.unwrap().is_empty());
    });
}

#[test]
fn replayed_locks_are_held() {
    on_virtual_time(async {
        let rig = Rig::new().await;
        let mut peer = rig.peer(1).await;
        peer.lock = ALL;
        let fid = peer.file(ROOT, "f").await.unwrap();
        let lock = peer.inode(fid).await.unwrap().lock;
        assert_ne!(lock.cookie, 0);
        let incarnation = rig.mdt.incarnation();
        let rig = rig.crash(Crash::Kill).await;
        let peer = rig.peer_again(1, incarnation).await;
        let replay = ReplayLocks { locks: vec![(fid, lock)] };
        peer.caller.call::<_, ()>(OP_REPLAY_LOCKS, &replay).await.unwrap();
        peer.caller.call::<_, ()>(OP_REPLAY_DONE, &()).await.unwrap();
        rig.serving().await;
        assert_eq!(peer.caller.call::<_, ()>(OP_REPLAY_LOCKS, &replay).await, Err(Status::EPROTO));
        let other = Rc::new(rig.peer(2).await);
        let changing = other.clone();
        let change = tokio::task::spawn_local(async move { changing.chmod(fid, 0o600).await });
        let (_, event) = peer.event(0).await;
        let nacre_wire::ldlm::Event::Revoke { cookie, .. } = event else { panic!("{event:?}") };
        assert_eq!(cookie, lock.cookie);
        assert!(!change.is_finished());
        peer.cancel(cookie).await;
        change.await.unwrap().unwrap();
        assert!(matches!((lock.mode, lock.policy), (Mode::Pr, Policy::Ibits(_))));
    });
}

#[test]
fn a_client_that_comes_back_in_time_goes_on_and_a_late_one_does_not() {
    on_virtual_time(async {
        let rig = Rig::new().await;
        let peer = rig.peer(1).await;
        let made = peer.open_new(ROOT, "f").await.unwrap();
        peer.unlink(ROOT, "f").await.unwrap();
        peer.caller.lose();
        assert_eq!(peer.attr(ROOT).await, Err(Status::NO_SESSION));
        tokio::time::sleep(Duration::from_secs(20)).await;
        let back = rig.peer_again(1, rig.mdt.incarnation()).await;
        assert!(back.caller.welcome.resumed);
        assert_eq!(back.attr(made.inode.fid).await.unwrap().nlink, 0);
        back.caller.lose();
        tokio::time::sleep(Duration::from_secs(60)).await;
        let late = rig.peer_again(1, rig.mdt.incarnation()).await;
        assert!(!late.caller.welcome.resumed);
        assert_eq!(late.attr(made.inode.fid).await, Err(Status::ENOENT));
        assert_eq!(rig.stat("open_files"), "0");
    });
}

#[test]
fn objects_wait_for_an_ost_that_is_away_also_over_a_restart() {
    on_virtual_time(async {
        let rig = Rig::with_osts(1).await;
        let peer = rig.peer(1).await;
        for i in 0..10 {
            peer.file(ROOT, &format!("f{i}")).await.unwrap();
        }
        rig.osts[0].trouble.set(Some(Status::EIO));
        for i in 0..10 {
            peer.unlink(ROOT, &format!("f{i}")).await.unwrap();
        }
        peer.caller.call::<_, ()>(OP_DISCONNECT, &()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(rig.osts[0].destroyed.borrow().is_empty());
        let rig = rig.crash(Crash::Kill).await;
        rig.osts[0].trouble.set(None);
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(rig.osts[0].destroyed.borrow().len(), 10);
        assert!(rig.store.scan(nacre_mdt::disk::DESTROYS, None, 1).await.unwrap().is_empty());
    });
}

#[test]
fn a_stopped_server_answers_nothing_more() {
    on_virtual_time(async {
        let rig = Rig::new().await;
        let peer = rig.peer(1).await;
        peer.file(ROOT, "f").await.unwrap();
        rig.mdt.stop().await;
        assert_eq!(peer.attr(ROOT).await, Err(Status::ESHUTDOWN));
        assert_eq!(rig.mdt.phase(), Phase::Stopped);
    });
}
