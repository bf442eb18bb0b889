//! MWRITE: many ranges of many objects, in one transaction: all or nothing. Each range comes with the time of its write and
//! its own lock, or without one.

use std::collections::BTreeMap;

use nacre_osd::store::Op;
use nacre_transport::target::dispatch;
use nacre_transport::{Answer, Call};
use nacre_wire::{Fid, Status, Time};

use super::write::known_flags;
use crate::locks::range_of;
use crate::target::Context;

pub(crate) async fn mwrite(context: &Context, call: &Call) -> Result<Answer, Status> {
    let ost = &context.ost;
    let (head, entries) = dispatch::mwrite(call)?;
    let flags = known_flags(head.flags.get())?;
    let mut ops = Vec::with_capacity(entries.len());
    let mut times: BTreeMap<Fid, Time> = BTreeMap::new();
    let mut ranges = Vec::with_capacity(entries.len());
    for (entry, data) in entries {
        let object = ost.handles.borrow().object(context.session.id, entry.handle.get())?;
        let (offset, length) = (entry.offset_bytes.get(), data.len() as u64);
        let nanoseconds = entry.time_nanoseconds.get();
        if nanoseconds >= 1_000_000_000 {
            return Err(Status::EINVAL);
        }
        context.fits(offset, length)?;
        ranges.push((object, entry.lock_cookie.get(), range_of(offset, length)));
        let time = Time { seconds: entry.time_seconds.get() as i64, nanoseconds };
        let newest = times.entry(object).or_insert(time);
        *newest = time.max(*newest);
        ops.push(Op::Write { fid: object, offset, data });
    }
    if ops.is_empty() {
        return Ok(Answer::default());
    }
    let locks = context.write_locks(&ranges).await?;
    context.commit_writes(ops, times.into_iter().collect(), flags, locks).await
}
