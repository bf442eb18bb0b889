//! WRITE: bytes into an object, which grows as needed; mtime and ctime become the target's now. Under the client's lock
//! (PW on the range), or without. The result: bytes written, and how the client's grant has changed.
//!
//! Order: lock, space, times; then one transaction; the lock goes as the write is visible, the answer when it is as safe as
//! asked.

use nacre_osd::store::{Durability, Op};
use nacre_transport::target::dispatch;
use nacre_transport::target::locks::LocalLock;
use nacre_transport::{Answer, Call};
use nacre_wire::ldlm::{Mode, Policy};
use nacre_wire::op::io_flags;
use nacre_wire::{AttrPatch, Fid, Status, Time};

use crate::grants::blocks_of;
use crate::locks::{Range, range_of};
use crate::target::{ChangeTime, Context};

pub(crate) async fn write(context: &Context, call: &Call) -> Result<Answer, Status> {
    let io = dispatch::object_io(call)?;
    let flags = known_flags(io.flags.get())?;
    let object = context.ost.handles.borrow().object(context.session.id, io.handle.get())?;
    let offset = io.offset_bytes.get();
    context.fits(offset, call.data.len() as u64)?;
    let range = range_of(offset, call.data.len() as u64);
    let locks = context.write_locks(&[(object, io.lock_cookie.get(), range)]).await?;
    let time = context.ost.env.wall();
    let write = Op::Write { fid: object, offset, data: call.data.clone() };
    context.commit_writes(vec![write], vec![(object, time)], flags, locks).await
}

/// Flags that mean something.
pub(crate) fn known_flags(flags: u16) -> Result<u16, Status> {
    if flags & !(io_flags::SYNC | io_flags::GRANTED) == 0 { Ok(flags) } else { Err(Status::EINVAL) }
}

impl Context {
    /// Whether an object may reach so far; EFBIG.
    pub(crate) fn fits(&self, offset_bytes: u64, length_bytes: u64) -> Result<(), Status> {
        match offset_bytes.checked_add(length_bytes) {
            Some(end) if end <= self.ost.store.object_bytes_max() => Ok(()),
            _ => Err(Status::EFBIG),
        }
    }

    /// The locks that writes are done under: of each range the client's own, if its cookie is not 0, is checked; and all
    /// ranges are locked here on the client's behalf. That second lock keeps everybody out until the write is visible even
    /// if the client loses its own meanwhile.
    pub(crate) async fn write_locks(&self, ranges: &[(Fid, u64, Range)]) -> Result<Vec<LocalLock>, Status> {
        let check = || {
            let mut own = ranges.iter().filter(|(_, cookie, _)| *cookie != 0);
            own.try_for_each(|(object, cookie, range)| {
                self.ost.check_lock(self.client, *object, *cookie, Mode::Pw, *range)
            })
        };
        check()?;
        let mut sorted: Vec<(Fid, Range)> = ranges.iter().map(|(object, _, range)| (*object, *range)).collect();
        sorted.sort_unstable();
        // Ranges that meet become one: a command must not wait for itself.
        sorted.dedup_by(|next, last| {
            let meets = next.0 == last.0 && next.1.0 <= last.1.1.saturating_add(1);
            if meets {
                last.1.1 = last.1.1.max(next.1.1);
            }
            meets
        });
        // All take their place in line now, so that two commands cannot each wait for the other.
        let lines: Vec<_> = sorted
            .into_iter()
            .map(|(object, (start, end))| {
                self.ost.locks.local(object, Mode::Pw, Policy::Extent { start, end }, Some(self.client))
            })
            .collect();
        let mut locks = Vec::with_capacity(lines.len());
        for line in lines {
            locks.push(line.await?);
        }
        check()?;
        Ok(locks)
    }

    /// Writes, in one transaction, with the newest time of each object.
    pub(crate) async fn commit_writes(
        &self,
        mut ops: Vec<Op>,
        times: Vec<(Fid, Time)>,
        flags: u16,
        locks: Vec<LocalLock>,
    ) -> Result<Answer, Status> {
        let ost = &self.ost;
        let mut changes: Vec<ChangeTime> = Vec::with_capacity(times.len());
        for (object, time) in times {
            let attr = ost.store.attr(object).await.map_err(|error| ost.status(error))?;
            changes.push(ost.begin_change(object, attr.ctime, time));
        }
        let (mut bytes, mut space_bytes) = (0, 0);
        for op in &ops {
            if let Op::Write { offset, data, .. } = op {
                bytes += data.len() as u64;
                space_bytes += blocks_of(*offset, data.len() as u64);
            }
        }
        let limits = ost.grant_limits();
        let granted = flags & io_flags::GRANTED != 0;
        let free_bytes = ost.free_bytes();
        let reserved = ost.grants.borrow_mut().begin(self.client, space_bytes, granted, free_bytes, limits);
        if reserved.is_none() && !self.overwrites(&ops).await? {
            return Err(Status::ENOSPC);
        }
        for change in &changes {
            if let Some(time) = change.time {
                let patch = AttrPatch { mtime: Some(time), ctime: Some(time), ..AttrPatch::default() };
                ops.push(Op::SetAttr { fid: change.object(), patch });
            }
        }
        let reserved = ReservedGuard { context: self, reserved };
        let submitted = ost.submit(ops).await;
        let delta = reserved.end(submitted.is_ok());
        drop((changes, locks));
        let transno = submitted?;
        let durability = if flags & io_flags::SYNC != 0 { Durability::Stable } else { Durability::Written };
        ost.wait(transno, durability).await?;
        ost.count(|stats| {
            stats.writes += 1;
            stats.write_bytes += bytes;
        });
        let delta = delta.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32;
        // DW0: bytes done; DW1: the grant's change.
        Ok(Answer { result: bytes | u64::from(delta as u32) << 32, data: Default::default() })
    }

    /// Whether all that is written has space already, so that a full target can take it.
    async fn overwrites(&self, ops: &[Op]) -> Result<bool, Status> {
        for op in ops {
            let Op::Write { fid, offset, data } = op else { continue };
            let (mut at, end) = (*offset, *offset + data.len() as u64);
            while at < end {
                let extents = self.ost.store.extents(*fid, at..end, EXTENTS_PAGE).await;
                let extents = extents.map_err(|error| self.ost.status(error))?;
                if extents.is_empty() {
                    return Ok(false);
                }
                for extent in extents {
                    if extent.logical > at {
                        return Ok(false);
                    }
                    at = at.max(extent.logical + extent.length);
                }
            }
        }
        Ok(true)
    }
}

/// Space under way, given back even if the command is dropped while it waits.
struct ReservedGuard<'a> {
    context: &'a Context,
    reserved: Option<crate::grants::Reserved>,
}

impl ReservedGuard<'_> {
    fn end(mut self, done: bool) -> i64 {
        self.finish(done)
    }

    fn finish(&mut self, done: bool) -> i64 {
        let ost = &self.context.ost;
        let Some(reserved) = self.reserved.take() else { return 0 };
        ost.grants.borrow_mut().end(reserved, done, ost.free_bytes(), ost.grant_limits())
    }
}

impl Drop for ReservedGuard<'_> {
    fn drop(&mut self) {
        // Nobody knows whether the write was done: the space it took of the grant is gone, which is safe.
        self.finish(true);
    }
}

const EXTENTS_PAGE: usize = 256;
