//! ENQUEUE: fcntl(2) and flock(2) locks, and read locks on inode bits. The lock server decides; what has to wait is
//! granted by an event.
//!
//! Lock order: none.

use nacre_wire::Status;
use nacre_wire::ldlm::{Enqueue, EnqueueReply, Policy};

use crate::session::Caller;
use crate::target::Mdt;

pub(crate) async fn run(mdt: &Mdt, who: &Caller, request: Enqueue) -> Result<EnqueueReply, Status> {
    let mut reply = mdt.locks.enqueue(&who.client, who.xid, &request)?;
    if let (Policy::Ibits(_), false) = (request.policy, reply.waiting) {
        reply.attr = Some(mdt.attr(request.resource).await?);
    }
    Ok(reply)
}
