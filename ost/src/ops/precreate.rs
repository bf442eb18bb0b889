//! PRECREATE: objects for an MDT to give to files. Afterwards the objects up to the id in the answer exist; a target short
//! of space makes fewer than asked for.
//!
//! With `orphans_after_id` (the MDT has restarted) the objects after that id were given to no file that exists: the objects
//! from there to the last one exist *and are empty* afterwards. One that was written to, by a client whose create was lost
//! with the MDT, is made anew.

use nacre_osd::store::{Durability, Op, StoreErrorKind};
use nacre_transport::target::dispatch;
use nacre_transport::{Answer, Call};
use nacre_wire::ldlm::{Mode, Policy};
use nacre_wire::ost::{Precreate, PrecreateReply};
use nacre_wire::{Attr, Fid, Status, attr};

use crate::locks::WHOLE;
use crate::target::{COUNTERS, Context, LAST_ID};

/// Object ids of one MDT: 2^40 of them.
const ID_BITS: u32 = 40;

pub(crate) async fn precreate(context: &Context, call: &Call) -> Result<Answer, Status> {
    let ost = &context.ost;
    let request: Precreate = dispatch::rpc_body(call)?;
    let mdt_index = request.mdt_index;
    let first_id = u64::from(mdt_index) << ID_BITS;
    let is_own = |id: u64| id >> ID_BITS == u64::from(mdt_index);
    if mdt_index > 0xff || !is_own(request.up_to_id) || !request.orphans_after_id.is_none_or(is_own) {
        return Err(Status::EINVAL);
    }
    let _turn = ost.precreating.lock().await;
    let known = ost.last_ids.borrow().get(&mdt_index).copied();
    let mut last_id = known.unwrap_or(first_id);
    if let Some(given_id) = request.orphans_after_id {
        if given_id > last_id {
            // The MDT knows of objects that this target does not: it was set back. Those are lost; go on behind them.
            tracing::error!("{}: objects {last_id:#x}..={given_id:#x} of MDT {mdt_index} are missing", ost.label());
            last_id = given_id;
        }
        for id in given_id + 1..=last_id {
            renew(context, Fid::ost_object(ost.index, id)).await?;
        }
    }
    let up_to_id = request.up_to_id.min(last_id.saturating_add(ost.params.precreate_max.get()));
    while last_id < up_to_id {
        if ost.grants.borrow().for_anybody(ost.free_bytes(), ost.grant_limits()) < FREE_BYTES_MIN {
            break;
        }
        let batch_end = up_to_id.min(last_id + BATCH);
        let mut ops: Vec<Op> = (last_id + 1..=batch_end)
            .map(|id| Op::Create { fid: Fid::ost_object(ost.index, id), attr: empty_object() })
            .collect();
        ops.push(Op::Put { index: COUNTERS, key: counter_key(mdt_index), value: batch_end.to_le_bytes().to_vec() });
        match ost.submit(ops).await {
            Ok(_) => {}
            Err(Status::ENOSPC) => break,
            Err(status) => return Err(status),
        }
        ost.count(|stats| stats.objects_created += batch_end - last_id);
        last_id = batch_end;
        ost.last_ids.borrow_mut().insert(mdt_index, last_id);
    }
    // The MDT gives them to files that outlive a power failure. All of them: an earlier answer may have been lost.
    ost.wait(ost.store.last_transno(), Durability::Stable).await?;
    Ok(dispatch::rpc_answer(&PrecreateReply { last_id }, ost.store.last_committed()))
}

/// Makes sure that an object exists and is empty.
async fn renew(context: &Context, object: Fid) -> Result<(), Status> {
    let ost = &context.ost;
    let create = Op::Create { fid: object, attr: empty_object() };
    let pristine = match ost.store.attr(object).await {
        Ok(attr) => attr.size == 0 && attr.allocated_bytes == 0 && ost.locks.is_idle(object),
        Err(error) if error.kind == StoreErrorKind::NotFound => return ost.submit(vec![create]).await.map(drop),
        Err(error) => return Err(ost.status(error)),
    };
    if pristine {
        return Ok(());
    }
    let policy = Policy::Extent { start: WHOLE.0, end: WHOLE.1 };
    let _lock = ost.locks.local(object, Mode::Ex, policy, None).await?;
    ost.submit(vec![Op::Destroy { fid: object }, create]).await.map(drop)
}

fn empty_object() -> Attr {
    // Times are zero: whatever the file's inode says is newer.
    Attr { mode: attr::mode::FILE | 0o600, nlink: 1, ..Attr::default() }
}

fn counter_key(mdt_index: u16) -> Vec<u8> {
    [LAST_ID, &mdt_index.to_be_bytes()].concat()
}

/// Objects made in one transaction.
const BATCH: u64 = 256;
/// Below this an object that could not be written to is of no use to anybody.
const FREE_BYTES_MIN: u64 = 64 << 10;
