//! DESTROY: objects of files that are gone. Each is locked whole first, so that nobody caches anything of it; an object that
//! is gone already is no error, so the MDT may ask again after any failure.

use nacre_osd::store::{Durability, Op, StoreErrorKind};
use nacre_transport::target::dispatch;
use nacre_transport::{Answer, Call};
use nacre_wire::ldlm::{Mode, Policy};
use nacre_wire::ost::Destroy;
use nacre_wire::{Fid, Status};

use crate::locks::WHOLE;
use crate::target::Context;

pub(crate) async fn destroy(context: &Context, call: &Call) -> Result<Answer, Status> {
    let ost = &context.ost;
    let Destroy { mut objects } = dispatch::rpc_body(call)?;
    objects.sort_unstable();
    objects.dedup();
    for object in &objects {
        ost.own_object(*object)?;
    }
    for batch in objects.chunks(BATCH) {
        // All holders of the batch are asked at once.
        let policy = Policy::Extent { start: WHOLE.0, end: WHOLE.1 };
        let lines: Vec<_> = batch.iter().map(|object| ost.locks.local(*object, Mode::Ex, policy, None)).collect();
        let mut locks = Vec::with_capacity(lines.len());
        for line in lines {
            locks.push(line.await?);
        }
        for object in batch {
            remove(context, *object).await?;
        }
        drop(locks);
    }
    // The MDT takes them off its log for good. All of them: an earlier answer may have been lost.
    ost.wait(ost.store.last_transno(), Durability::Stable).await?;
    Ok(dispatch::rpc_answer(&(), ost.store.last_committed()))
}

/// One object, under its lock, if it is there.
async fn remove(context: &Context, object: Fid) -> Result<(), Status> {
    let ost = &context.ost;
    let transaction = nacre_osd::store::Transaction { ops: vec![Op::Destroy { fid: object }] };
    match ost.store.submit(transaction).await {
        Ok(_) => {
            ost.count(|stats| stats.objects_destroyed += 1);
            // Whoever waits for a lock on it would wait for nothing.
            ost.locks.refuse_waiters(object, Status::ENOENT);
            Ok(())
        }
        Err(error) if error.kind == StoreErrorKind::NotFound => Ok(()),
        Err(error) => Err(ost.status(error)),
    }
}

/// Objects locked at once.
const BATCH: usize = 64;
