//! Lock messages that are the same for MDT and OST.

use nacre_wire::Fid;
use nacre_wire::ldlm::{
    Cancel, Enqueue, EnqueueReply, GlimpseReply, Granted, OP_CANCEL, OP_ENQUEUE, OP_GLIMPSE_REPLY, OP_REPLAY_LOCKS,
    ReplayLocks,
};

use super::REPLY_SMALL_BYTES;
use crate::CallError;
use crate::host::{Import, ImportError, ImportLink, Rpc};

/// Asks for a lock. The second value is the session that answered: what the handle in the reply is valid for.
pub(super) async fn enqueue(import: &Import, request: &Enqueue) -> Result<(EnqueueReply, u64), ImportError> {
    let body = nacre_wire::codec::encode(request).into();
    let rpc =
        Rpc { operation: OP_ENQUEUE, xid: import.next_xid(), body, reply_bytes_max: REPLY_SMALL_BYTES, once: false };
    let reply = import.rpc_with_xid(rpc).await?;
    Ok((nacre_wire::codec::decode(&reply.body)?, reply.generation))
}

/// Gives locks back.
pub(super) async fn cancel(import: &Import, cookies: Vec<u64>) -> Result<(), ImportError> {
    import.ask(OP_CANCEL, &Cancel { cookies }, 0).await
}

/// Answers a glimpse.
pub(super) async fn glimpse_reply(import: &Import, reply: &GlimpseReply) -> Result<(), ImportError> {
    import.ask(OP_GLIMPSE_REPLY, reply, 0).await
}

/// Tells a restarted server which locks this client holds; for [`crate::host::ImportObserver::replay`].
pub async fn replay_locks(link: &ImportLink, locks: &[(Fid, Granted)]) -> Result<(), CallError> {
    // A batch stays far below the largest request.
    for batch in locks.chunks(REPLAY_BATCH) {
        link.ask::<_, ()>(OP_REPLAY_LOCKS, &ReplayLocks { locks: batch.to_vec() }, 0).await?;
    }
    Ok(())
}

const REPLAY_BATCH: usize = 4096;
