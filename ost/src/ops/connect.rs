//! CONNECT, DISCONNECT and replay.
//!
//! A client is *resumed* if this life of the target knows it. One that recovery waits for is not resumed until it has said
//! REPLAY_DONE, however often its link breaks meanwhile. One that was connected before and holds nothing has lost
//! nothing but its place in queues: it is let replay (nothing) at any time, and asks again for what it waited for.

use std::rc::Rc;

use nacre_osd::store::Durability;
use nacre_transport::target::dispatch;
use nacre_transport::{Answer, Call, Session};
use nacre_wire::ldlm::ReplayLocks;
use nacre_wire::op::DATA_BYTES_MAX;
use nacre_wire::session::{ConnectReply, ConnectRequest};
use nacre_wire::{Fid, Status};

use crate::Ost;

pub(crate) fn connect(ost: &Rc<Ost>, session: &Rc<Session>, call: &Call) -> Result<Answer, Status> {
    let request: ConnectRequest = dispatch::rpc_body(call)?;
    if request.target_uuid != Some(ost.uuid) || request.fsname != ost.fsname {
        return Err(Status::WRONG_TARGET);
    }
    if !request.features.is_empty() {
        return Err(Status::UNKNOWN_FEATURE);
    }
    let attached = ost.locks.attach(request.client_uuid, session);
    if ost.recovery.borrow().awaits(request.client_uuid) && !request.will_replay {
        ost.recovery_done(request.client_uuid);
    }
    let awaited = ost.recovery.borrow().awaits(request.client_uuid);
    let resumed = attached.resumed && !awaited;
    let holds_nothing = request.last_incarnation != 0 && !request.will_replay;
    let grant_bytes = ost.grants.borrow_mut().fill(attached.client, ost.free_bytes(), ost.grant_limits());
    tracing::info!(
        "{}: client {} ({}) from {}{}",
        ost.label(),
        request.client_name,
        request.client_uuid,
        session.peer,
        if attached.resumed { ", again" } else { "" }
    );
    let reply = ConnectReply {
        incarnation: ost.incarnation,
        resumed,
        recovering: awaited || (!resumed && holds_nothing),
        last_committed: ost.store.last_committed(),
        features: Vec::new(),
        io_bytes_max: DATA_BYTES_MAX,
        object_bytes_max: ost.store.object_bytes_max(),
        grant_bytes,
        reply_slots: 0,
    };
    Ok(dispatch::rpc_answer(&reply, ost.store.last_committed()))
}

pub(crate) async fn disconnect(ost: &Rc<Ost>, session: &Rc<Session>, call: &Call) -> Result<Answer, Status> {
    let () = dispatch::rpc_body(call)?;
    let client = ost.locks.client(session)?;
    ost.locks.remove(client);
    ost.handles.borrow_mut().close(session.id);
    if let Some(uuid) = session.client_uuid.get() {
        ost.forget_and_wait(client, uuid).await?;
    }
    // A clean goodbye leaves everything safe.
    ost.wait(ost.store.last_transno(), Durability::Stable).await?;
    Ok(dispatch::rpc_answer(&(), ost.store.last_committed()))
}

pub(crate) fn replay_locks(ost: &Rc<Ost>, session: &Rc<Session>, call: &Call) -> Result<Answer, Status> {
    let client = ost.locks.client(session)?;
    let ReplayLocks { locks } = dispatch::rpc_body(call)?;
    if !session.client_uuid.get().is_some_and(|uuid| ost.recovery.borrow().awaits(uuid)) {
        // Too late: others may have been given what it held.
        return Err(Status::NO_SESSION);
    }
    if locks.iter().any(|(resource, _): &(Fid, _)| ost.own_object(*resource).is_err()) {
        return Err(Status::WRONG_TARGET);
    }
    let refused = ost.locks.replay(client, &locks);
    if let Some((resource, lock)) = refused.first() {
        tracing::warn!(
            "{}: {} of {} locks of {} cannot be taken back; the first: {:#x} on {resource}",
            ost.label(),
            refused.len(),
            locks.len(),
            session.peer,
            lock.cookie
        );
        // It believes to hold what it does not: all of its caches are in doubt.
        ost.locks.evict(client);
        return Err(Status::NO_SESSION);
    }
    Ok(dispatch::rpc_answer(&(), ost.store.last_committed()))
}

pub(crate) fn replay_done(ost: &Rc<Ost>, session: &Rc<Session>, call: &Call) -> Result<Answer, Status> {
    let () = dispatch::rpc_body(call)?;
    ost.locks.client(session)?;
    if let Some(uuid) = session.client_uuid.get() {
        ost.recovery_done(uuid);
    }
    Ok(dispatch::rpc_answer(&(), ost.store.last_committed()))
}
