//! SPACE: truncate, punch, allocate, zero. The command names no lock: the client may hold one, which does not conflict with
//! the one taken here for the bytes concerned, and for a truncate for the whole object.

use nacre_osd::store::{Durability, Op};
use nacre_transport::target::dispatch;
use nacre_transport::{Answer, Call};
use nacre_wire::ldlm::{Mode, Policy};
use nacre_wire::op::space_mode;
use nacre_wire::{AttrPatch, Status, Time};

use crate::grants::blocks_of;
use crate::locks::WHOLE;
use crate::target::Context;

pub(crate) async fn space(context: &Context, call: &Call) -> Result<Answer, Status> {
    let ost = &context.ost;
    let args = dispatch::object_space(call)?;
    let fid = ost.handles.borrow().object(context.session.id, args.handle.get())?;
    let (offset, length) = (args.offset_bytes.get(), args.length_bytes.get());
    let keep_size = args.mode.get() & space_mode::KEEP_SIZE != 0;
    let range = offset..offset.saturating_add(length);
    let mut new_bytes = 0;
    let op = match args.mode.get() & !space_mode::KEEP_SIZE {
        space_mode::TRUNCATE if !keep_size => {
            context.fits(offset, 0)?;
            if length != 0 {
                return Err(Status::EINVAL);
            }
            Op::Truncate { fid, size: offset }
        }
        _ if length == 0 => return Err(Status::EINVAL),
        space_mode::PUNCH if !keep_size => Op::Punch { fid, range: range.clone() },
        space_mode::ALLOCATE | space_mode::ZERO => {
            context.fits(offset, length)?;
            new_bytes = blocks_of(offset, length);
            if args.mode.get() & !space_mode::KEEP_SIZE == space_mode::ALLOCATE {
                Op::Allocate { fid, range: range.clone(), keep_size }
            } else {
                Op::Zero { fid, range: range.clone(), keep_size }
            }
        }
        _ => return Err(Status::EINVAL),
    };
    // A truncate concerns everybody who knows where the object ends.
    let (start, end) = if matches!(op, Op::Truncate { .. }) { WHOLE } else { (offset, range.end - 1) };
    let policy = Policy::Extent { start, end };
    let lock = ost.locks.local(fid, Mode::Pw, policy, Some(context.client)).await?;
    let attr = ost.store.attr(fid).await.map_err(|error| ost.status(error))?;
    let for_anybody = ost.grants.borrow().for_anybody(ost.free_bytes(), ost.grant_limits());
    if new_bytes > for_anybody {
        // What is allocated in the range already costs nothing. More than a page of extents is not worth counting.
        let there = ost.store.extents(fid, range.clone(), 1024).await.map_err(|error| ost.status(error))?;
        let there_bytes: u64 = there
            .iter()
            .map(|extent| {
                (extent.logical + extent.length).min(range.end).saturating_sub(extent.logical.max(range.start))
            })
            .sum();
        if new_bytes.saturating_sub(there_bytes) > for_anybody {
            return Err(Status::ENOSPC);
        }
    }
    let change = ost.begin_change(fid, attr.ctime, time_of(args.time_ns.get()));
    let mut ops = vec![op];
    if let Some(time) = change.time {
        let patch = AttrPatch { mtime: Some(time), ctime: Some(time), ..AttrPatch::default() };
        ops.push(Op::SetAttr { fid, patch });
    }
    let transno = ost.submit(ops).await?;
    drop((lock, change));
    ost.wait(transno, Durability::Written).await?;
    ost.count(|stats| stats.space_changes += 1);
    Ok(Answer::default())
}

/// Nanoseconds since 1970, signed: before 1970 the number is negative.
fn time_of(time_ns: u64) -> Time {
    let time_ns = time_ns as i64;
    let (seconds, nanoseconds) = (time_ns.div_euclid(1_000_000_000), time_ns.rem_euclid(1_000_000_000));
    Time { seconds, nanoseconds: nanoseconds as u32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970() {
        assert_eq!(time_of(1_500_000_000), Time { seconds: 1, nanoseconds: 500_000_000 });
        assert_eq!(time_of(-1i64 as u64), Time { seconds: -1, nanoseconds: 999_999_999 });
    }
}
