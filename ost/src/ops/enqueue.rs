//! ENQUEUE, CANCEL and the answers to glimpses. Extent locks; the answer brings a handle on the object and its attributes.
//!
//! A GLIMPSE is answered with a lock if nobody is in the way, otherwise with attributes into which the answers of those who
//! may have unwritten data are merged: the largest size, and the times of whoever changed last.

use std::rc::Rc;

use nacre_transport::target::dispatch;
use nacre_transport::target::locks::LockReply;
use nacre_transport::{Answer, Call, Session};
use nacre_wire::ldlm::{Cancel, Enqueue, EnqueueFlags, EnqueueReply, GlimpseReply, Granted, Mode, Policy};
use nacre_wire::{Attr, Status};

use crate::Ost;
use crate::target::Context;

pub(crate) async fn enqueue(context: &Context, xid: u64, call: &Call) -> Result<Answer, Status> {
    let (ost, client) = (&context.ost, context.client);
    let request: Enqueue = dispatch::rpc_body(call)?;
    ost.own_object(request.resource)?;
    if !matches!(request.policy, Policy::Extent { .. } | Policy::Plain) {
        return Err(Status::EINVAL);
    }
    // Before anything is granted: no lock on what is not there, and no lock that a restart would not wait for.
    ost.store.attr(request.resource).await.map_err(|error| ost.status(error))?;
    if let Some(uuid) = context.session.client_uuid.get() {
        ost.remember(uuid, &context.session.peer).await?;
    }
    ost.count(|stats| stats.enqueues += 1);
    let reply = match ost.locks.enqueue(client, xid, &request) {
        Err(Status::NO_SESSION) => {
            // Evicted while it was put into the table: out again.
            ost.forget_evicted(context.session.client_uuid.get());
            return Err(Status::NO_SESSION);
        }
        reply => reply?,
    };
    let glimpses = request.flags.contains(EnqueueFlags::GLIMPSE);
    let (granted, waiting) = match reply {
        LockReply::Granted(granted) => (granted, false),
        LockReply::Waiting(granted) => (granted, true),
        LockReply::Conflict(held) if !glimpses => (held, false),
        LockReply::Conflict(_) => (Granted { cookie: 0, mode: Mode::Nl, policy: request.policy }, false),
    };
    let unwritten = match reply {
        LockReply::Conflict(_) if glimpses => {
            ost.count(|stats| stats.glimpses += 1);
            ost.locks.glimpse(request.resource, client).await
        }
        _ => Vec::new(),
    };
    let attr = match ost.store.attr(request.resource).await {
        Ok(attr) => unwritten.iter().fold(attr, merge),
        Err(error) => {
            // Destroyed meanwhile.
            ost.locks.cancel(client, &[granted.cookie]);
            return Err(ost.status(error));
        }
    };
    let handle = context.open_handle(request.resource)?;
    let grant_bytes = ost.grants.borrow().of(client);
    let reply = EnqueueReply { granted, waiting, handle, attr: Some(attr), grant_bytes };
    Ok(dispatch::rpc_answer(&reply, ost.store.last_committed()))
}

pub(crate) fn cancel(ost: &Rc<Ost>, session: &Rc<Session>, call: &Call) -> Result<Answer, Status> {
    let client = ost.locks.client(session)?;
    let Cancel { cookies } = dispatch::rpc_body(call)?;
    ost.locks.cancel(client, &cookies);
    Ok(dispatch::rpc_answer(&(), ost.store.last_committed()))
}

pub(crate) fn glimpse_reply(ost: &Rc<Ost>, session: &Rc<Session>, call: &Call) -> Result<Answer, Status> {
    let client = ost.locks.client(session)?;
    let reply: GlimpseReply = dispatch::rpc_body(call)?;
    ost.locks.glimpse_reply(client, reply);
    Ok(dispatch::rpc_answer(&(), ost.store.last_committed()))
}

fn merge(mut attr: Attr, unwritten: &Attr) -> Attr {
    attr.size = attr.size.max(unwritten.size);
    // Space for it is granted already.
    attr.allocated_bytes = attr.allocated_bytes.max(unwritten.allocated_bytes);
    attr.atime = attr.atime.max(unwritten.atime);
    if unwritten.ctime > attr.ctime {
        attr.ctime = unwritten.ctime;
        attr.mtime = unwritten.mtime;
    }
    attr
}
