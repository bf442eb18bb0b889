//! From a transaction to a record.
//!
//! ```text
//! check ─► wait for room ─► lock objects ─► validate ─► promise space ─► move data ─► commit (record, index, memory) ─► unlock
//! ```
//!
//! Everything up to the commit may wait and fail, and changes nothing that anybody can see: data goes to fresh space, or to
//! blocks that are written already, before the end of the object, and where the caller asked for it (bytes overwritten in place by a transaction that a
//! crash then undoes may be the old or the new ones, sector by sector). The commit is one synchronous step.

use std::ops::Range;
use std::rc::Rc;

use futures_util::future::join_all;
use nacre_reactor::{Bytes, DmaBuf};
use nacre_wire::Fid;
use nacre_wire::fid::SEQ_LOCAL;

use super::extents::{Edit, ExtentMap, Outcome, Piece};
use super::object::Object;
use super::ranges::{Claim, Held};
use super::space::{Promise, Purpose, Reservation};
use super::{Inner, OpenState, error, io_error};
use crate::format::object::{Kind, Mapping, key, key_after};
use crate::format::run::Extent;
use crate::format::superblock::BLOCK_BYTES;
use crate::model::check_op;
use crate::store::{OBJECT_BYTES_MAX, Op, StoreError, StoreErrorKind, Transaction, Transno};

/// First block that no object has.
pub(crate) const BLOCKS_MAX: u64 = (OBJECT_BYTES_MAX + 1) / BLOCK_BYTES;
const BLOCK: usize = BLOCK_BYTES as usize;

/// An object that a transaction changes, locked.
pub(crate) struct Target {
    pub object: Rc<Object>,
    /// As the locked part will be, if the transaction touches the map more than once.
    view: Option<ExtentMap>,
    _held: Held,
}

/// What was decided and done for a transaction before its commit.
#[derive(Default)]
pub(crate) struct Plan {
    /// Per operation.
    pub edits: Vec<Vec<Edit>>,
    /// Per operation: keys of extended attributes and of the index that go with a destroyed object.
    pub removals: Vec<Vec<Box<[u8]>>>,
    /// Space taken; given up again if the plan is dropped.
    pub reservations: Vec<Reservation>,
    /// Checksums of what was written to fresh space.
    pub data: Vec<(Extent, u32)>,
}

impl Inner {
    pub(crate) async fn submit(self: Rc<Inner>, transaction: Transaction) -> Result<Transno, StoreError> {
        self.check_usable("submit")?;
        let _submitting = Submitting::new(&self);
        for op in &transaction.ops {
            check_op(op)?;
        }
        self.wait_for_room(&transaction).await?;
        let mut targets = self.lock_targets(&transaction).await?;
        self.validate(&transaction, &targets)?;
        let promise = self.promise(&transaction, &targets).await?;
        let mut plan = Plan::default();
        for op in &transaction.ops {
            let at = position(&targets, op);
            let target = &mut targets[at];
            let (mut edits, mut removals) = (Vec::new(), Vec::new());
            self.plan_op(op, target, &promise, &mut plan, &mut edits, &mut removals).await?;
            if let Some(view) = &mut target.view {
                // Born in the future: a later operation of this transaction must not write over it.
                edits.iter().for_each(|edit| view.apply(edit, Transno::MAX, &mut Outcome::default()));
            }
            plan.edits.push(edits);
            plan.removals.push(removals);
        }
        self.wait_for_frame(&transaction, &targets, &plan).await?;
        Ok(self.commit(transaction, &targets, plan))
    }

    /// Waits until log, memory and reserve can take the transaction.
    async fn wait_for_room(&self, transaction: &Transaction) -> Result<(), StoreError> {
        loop {
            let changed = self.log.changed();
            if !self.log.is_full() && !self.index_is_behind() {
                break;
            }
            self.check_usable("submit")?;
            // It is tried again and again, but who knows for how long.
            if let Some((kind, why)) = &*self.checkpoint_failed.borrow() {
                let context = format!("the log is full, and it cannot be emptied: {why}");
                return Err(error(*kind, "submit", None, &context));
            }
            changed.await;
        }
        let gives = |op: &Op| {
            matches!(op, Op::Destroy { .. } | Op::Truncate { .. } | Op::Punch { .. } | Op::Delete { .. })
                || matches!(op, Op::RemoveXattr { .. })
        };
        if self.space.has_room_for_metadata() || transaction.ops.iter().any(gives) {
            return Ok(());
        }
        self.log.prove().await?;
        self.space.proven(self.log.proven());
        if self.space.has_room_for_metadata() {
            return Ok(());
        }
        Err(error(StoreErrorKind::NoSpace, "submit", None, "the device is full"))
    }

    /// Locks all objects in the order of their FIDs.
    async fn lock_targets(&self, transaction: &Transaction) -> Result<Vec<Target>, StoreError> {
        let mut claims: Vec<(Fid, Claim, u32)> = Vec::with_capacity(transaction.ops.len());
        for op in &transaction.ops {
            let (fid, (claim, map)) = (op.fid(), claim(op));
            match claims.iter_mut().find(|(other, ..)| *other == fid) {
                Some((_, joined, maps)) => {
                    *joined = std::mem::replace(joined, Claim::Presence).joined(claim);
                    *maps += map;
                }
                None => claims.push((fid, claim, map)),
            }
        }
        claims.sort_unstable_by_key(|(fid, ..)| *fid);
        let mut targets = Vec::with_capacity(claims.len());
        for (fid, claim, maps) in claims {
            let object = self.objects.get(fid, self.log.proven());
            let range = match &claim {
                Claim::Exclusive(range) => range.start.saturating_sub(1)..range.end,
                _ => 0..BLOCKS_MAX,
            };
            let held = object.locks.lock(claim).await;
            if maps > 0 {
                object.load_extents(&self.tree, self.space.blocks_end()).await?;
            } else {
                object.load(&self.tree).await?;
            }
            let view = (maps > 1).then(|| object.extents.borrow().part(range));
            targets.push(Target { object, view, _held: held });
        }
        Ok(targets)
    }

    /// Everything that does not depend on space: whether objects are there.
    fn validate(&self, transaction: &Transaction, targets: &[Target]) -> Result<(), StoreError> {
        let mut there: Vec<bool> = targets.iter().map(|target| target.object.attr.borrow().is_some()).collect();
        for op in &transaction.ops {
            let there = &mut there[position(targets, op)];
            match op {
                Op::Create { fid, .. } => {
                    if *there {
                        return Err(error(StoreErrorKind::Exists, op.name(), Some(*fid), "the object exists"));
                    }
                    *there = true;
                    continue;
                }
                Op::Put { index, .. } | Op::Delete { index, .. } if index.seq == SEQ_LOCAL => continue,
                _ => {}
            }
            if !*there {
                return Err(error(StoreErrorKind::NotFound, op.name(), Some(op.fid()), "no such object"));
            }
            if matches!(op, Op::Destroy { .. }) {
                *there = false;
            }
        }
        Ok(())
    }

    /// Makes sure of the space that the transaction may need.
    async fn promise(&self, transaction: &Transaction, targets: &[Target]) -> Result<Promise, StoreError> {
        let (blocks, purpose) = self.space_needed(transaction, targets);
        match self.space.promise(blocks, purpose) {
            // What is proven may be used again, and be written in place.
            Err(error)
                if error.kind == StoreErrorKind::NoSpace
                    && (self.space.has_dying() || self.log.proven() < self.log.last()) =>
            {
                self.log.prove().await?;
                self.space.proven(self.log.proven());
                let (blocks, purpose) = self.space_needed(transaction, targets);
                self.space.promise(blocks, purpose)
            }
            result => result,
        }
    }

    /// Blocks that the transaction may take, and what for.
    fn space_needed(&self, transaction: &Transaction, targets: &[Target]) -> (u64, Purpose) {
        let (mut blocks, mut purpose) = (0u64, Purpose::Internal);
        let proven = self.log.proven();
        for op in &transaction.ops {
            let target = &targets[position(targets, op)];
            let (range, edges) = match op {
                Op::Write { offset, data, .. } => (*offset..*offset + data.len() as u64, 0),
                Op::Allocate { range, .. } => (range.clone(), 0),
                Op::Zero { range, .. } => (range.clone(), 2),
                Op::Truncate { .. } => (0..0, 1),
                Op::Punch { .. } => (0..0, 2),
                _ => continue,
            };
            let range = touching(&range);
            if range.start < range.end {
                purpose = Purpose::Data;
            }
            let needed = match (&target.view, op) {
                // What earlier operations leave is not known yet.
                (Some(_), _) => range.end - range.start,
                (None, Op::Write { offset, data, .. }) => {
                    let cover = target.object.extents.borrow().cover(range);
                    let places = place(cover, &(*offset..*offset + data.len() as u64), &target.object, proven);
                    let fresh = places.filter(|(_, place)| matches!(place, Placement::Fresh(_)));
                    fresh.map(|(range, _)| range.end - range.start).sum()
                }
                _ => {
                    let cover = target.object.extents.borrow().cover(range);
                    cover
                        .into_iter()
                        .filter(|(_, piece)| piece.is_none())
                        .map(|(range, _)| range.end - range.start)
                        .sum()
                }
            };
            blocks = blocks.saturating_add(needed).saturating_add(edges);
        }
        (blocks, purpose)
    }

    async fn plan_op(
        &self,
        op: &Op,
        target: &Target,
        promise: &Promise,
        plan: &mut Plan,
        edits: &mut Vec<Edit>,
        removals: &mut Vec<Box<[u8]>>,
    ) -> Result<(), StoreError> {
        let mut mover = Mover { inner: self, target, promise, plan, edits };
        match op {
            Op::Write { offset, data, .. } => mover.write(*offset, data).await,
            Op::Truncate { size, .. } => mover.punch(*size..OBJECT_BYTES_MAX + 1).await,
            Op::Punch { range, .. } => mover.punch(range.start..range.end.min(OBJECT_BYTES_MAX + 1)).await,
            Op::Allocate { range, .. } => mover.reserve(range).await,
            Op::Zero { range, .. } => mover.zero(range).await,
            Op::Destroy { fid } => {
                edits.push(Edit::Unmap(0..BLOCKS_MAX));
                for kind in [Kind::Xattr, Kind::Index] {
                    let (from, to) = (key(kind, *fid, &[]), key_after(kind, *fid));
                    let (from, to) = (std::ops::Bound::Included(&from[..]), std::ops::Bound::Excluded(&to[..]));
                    let entries = self.tree.scan(from, to, usize::MAX).await?;
                    removals.extend(entries.into_iter().map(|(key, _)| key.into_boxed_slice()));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// Counts a submit; [`crate::Store::close`] waits for all of them.
struct Submitting<'a>(&'a Inner);

impl Submitting<'_> {
    fn new(inner: &Inner) -> Submitting<'_> {
        inner.submits.set(inner.submits.get() + 1);
        Submitting(inner)
    }
}

impl Drop for Submitting<'_> {
    fn drop(&mut self) {
        self.0.submits.set(self.0.submits.get() - 1);
        if self.0.state.get() == OpenState::Closed {
            self.0.log.tell_change();
        }
    }
}

/// Which of the sorted targets an operation changes.
pub(crate) fn position(targets: &[Target], op: &Op) -> usize {
    let fid = op.fid();
    targets.binary_search_by(|target| target.object.fid.cmp(&fid)).expect("every object of the transaction was locked")
}

/// What an operation needs locked, and whether (1) it uses the extent map.
fn claim(op: &Op) -> (Claim, u32) {
    match op {
        Op::Create { .. } => (Claim::All, 0),
        Op::Destroy { .. } => (Claim::All, 1),
        Op::Write { offset, data, .. } => {
            (Claim::Exclusive(touching(&(*offset..*offset + data.len() as u64))), u32::from(!data.is_empty()))
        }
        Op::Truncate { size, .. } => (Claim::Exclusive(size / BLOCK_BYTES..BLOCKS_MAX), 1),
        Op::Punch { range, .. } | Op::Allocate { range, .. } | Op::Zero { range, .. } => {
            (Claim::Exclusive(touching(range)), 1)
        }
        _ => (Claim::Presence, 0),
    }
}

/// Numbers of the blocks that hold a byte of the range.
pub(crate) fn touching(range: &Range<u64>) -> Range<u64> {
    if range.is_empty() { 0..0 } else { range.start / BLOCK_BYTES..range.end.div_ceil(BLOCK_BYTES).min(BLOCKS_MAX) }
}

/// Where a written block goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Placement {
    /// Over the old contents.
    InPlace(u64),
    /// Into reserved space, which becomes written.
    Reserved(u64),
    /// Into fresh space; old contents, if any, are there.
    Fresh(Option<u64>),
}

fn placement(piece: Option<Piece>, proven: Transno) -> Placement {
    let Some(Piece { mapping, birth }) = piece else { return Placement::Fresh(None) };
    match (mapping.unwritten, mapping.shared || birth > proven) {
        (true, false) => Placement::Reserved(mapping.physical),
        (true, true) => Placement::Fresh(None),
        (false, false) => Placement::InPlace(mapping.physical),
        (false, true) => Placement::Fresh(Some(mapping.physical)),
    }
}

/// Where the blocks that bytes are written to go. What a crash may leave behind the end of the object is not written in place.
fn place(
    cover: Vec<(Range<u64>, Option<Piece>)>,
    bytes: &Range<u64>,
    object: &Object,
    proven: Transno,
) -> impl Iterator<Item = (Range<u64>, Placement)> + use<> {
    let floor = object.size_floor(proven);
    let in_place_end = if bytes.end > floor { floor / BLOCK_BYTES } else { u64::MAX };
    cover.into_iter().flat_map(move |(blocks, piece)| {
        let first = placement(piece, proven);
        let Placement::InPlace(physical) = first else { return [Some((blocks, first)), None].into_iter().flatten() };
        let middle = in_place_end.clamp(blocks.start, blocks.end);
        let before = (blocks.start < middle).then_some((blocks.start..middle, first));
        let behind = Placement::Fresh(Some(physical + (middle - blocks.start)));
        let behind = (middle < blocks.end).then_some((middle..blocks.end, behind));
        [before, behind].into_iter().flatten()
    })
}

/// Moves the data of one operation.
struct Mover<'a> {
    inner: &'a Inner,
    target: &'a Target,
    promise: &'a Promise,
    plan: &'a mut Plan,
    edits: &'a mut Vec<Edit>,
}

impl Mover<'_> {
    fn cover(&self, blocks: Range<u64>) -> Vec<(Range<u64>, Option<Piece>)> {
        match &self.target.view {
            Some(view) => view.cover(blocks),
            None => self.target.object.extents.borrow().cover(blocks),
        }
    }

    async fn write(&mut self, offset: u64, data: &Bytes) -> Result<(), StoreError> {
        let proven = self.inner.log.proven();
        let range = offset..offset + data.len() as u64;
        // Pieces that are fresh and touch each other are one: they are allocated together.
        let mut pieces: Vec<(Range<u64>, Placement, Placement)> = Vec::new();
        let cover = self.cover(touching(&range));
        for (blocks, place) in place(cover, &range, &self.target.object, proven) {
            let last = match place {
                Placement::Fresh(Some(physical)) => Placement::Fresh(Some(physical + (blocks.end - blocks.start) - 1)),
                Placement::InPlace(physical) => Placement::InPlace(physical + (blocks.end - blocks.start) - 1),
                other => other,
            };
            match pieces.last_mut() {
                Some((before, Placement::Fresh(_), end)) if matches!(place, Placement::Fresh(_)) => {
                    before.end = blocks.end;
                    *end = last;
                }
                _ => pieces.push((blocks, place, last)),
            }
        }
        let mut writes = Vec::new();
        for (blocks, first, last) in pieces {
            let buffers = self.fill(&blocks, first, last, &range, data).await?;
            match first {
                Placement::InPlace(physical) => writes.push((physical, buffers)),
                Placement::Reserved(physical) => {
                    self.record_data(physical, &buffers);
                    let born = self.inner.log.checks_data();
                    self.edits.push(Edit::Convert { range: blocks, unwritten: false, born });
                    writes.push((physical, buffers));
                }
                Placement::Fresh(_) => self.place_fresh(blocks, buffers, &mut writes).await?,
            }
        }
        self.run(writes).await
    }

    /// Allocates space for the blocks and decides what goes where.
    async fn place_fresh(
        &mut self,
        blocks: Range<u64>,
        buffers: Vec<Bytes>,
        writes: &mut Vec<(u64, Vec<Bytes>)>,
    ) -> Result<(), StoreError> {
        let mut rest: std::collections::VecDeque<Bytes> = buffers.into();
        let mut logical = blocks.start;
        for extent in self.allocate(&blocks).await? {
            let (physical, count) = (extent.offset / BLOCK_BYTES, extent.length / BLOCK_BYTES);
            let part = split(&mut rest, extent.length as usize);
            self.record_data(physical, &part);
            let mapping = Mapping { physical, blocks: count, unwritten: false, shared: false };
            self.edits.push(Edit::Map { logical, mapping, born: self.inner.log.checks_data() });
            logical += count;
            writes.push((physical, part));
        }
        Ok(())
    }

    /// Space for logical blocks, behind what precedes them if possible.
    async fn allocate(&mut self, blocks: &Range<u64>) -> Result<Vec<Extent>, StoreError> {
        let goal = blocks.start.checked_sub(1).and_then(|before| {
            let (_, piece) = self.cover(before..before + 1).pop()?;
            piece.map(|piece| piece.mapping.physical + 1)
        });
        let reservation = self.inner.space.allocate(self.promise, blocks.end - blocks.start, goal).await?;
        let extents = reservation.extents.clone();
        self.plan.reservations.push(reservation);
        Ok(extents)
    }

    /// The bytes of whole blocks: the caller's, and at the edges what was there.
    async fn fill(
        &self,
        blocks: &Range<u64>,
        first: Placement,
        last: Placement,
        range: &Range<u64>,
        data: &Bytes,
    ) -> Result<Vec<Bytes>, StoreError> {
        let (start, end) = (blocks.start * BLOCK_BYTES, blocks.end * BLOCK_BYTES);
        let (from, to) = (range.start.max(start), range.end.min(end));
        let bytes = |from: u64, to: u64| data.slice((from - range.start) as usize..(to - range.start) as usize);
        let mut out = Vec::with_capacity(3);
        let mut at = from;
        if from > start {
            let stop = to.min(start + BLOCK_BYTES);
            let mut block = self.base(first).await?;
            block[(from - start) as usize..(stop - start) as usize].copy_from_slice(&bytes(from, stop));
            out.push(block.freeze());
            at = stop;
        }
        let whole_end = if to < end { (end - BLOCK_BYTES).max(at) } else { to };
        if at < whole_end && whole_end <= to {
            out.push(bytes(at, whole_end));
            at = whole_end;
        }
        if at < to {
            let block_start = end - BLOCK_BYTES;
            let mut block = self.base(last).await?;
            block[(at - block_start) as usize..(to - block_start) as usize].copy_from_slice(&bytes(at, to));
            out.push(block.freeze());
        }
        Ok(out)
    }

    /// What an edge block held.
    async fn base(&self, placement: Placement) -> Result<DmaBuf, StoreError> {
        match placement {
            Placement::InPlace(physical) | Placement::Fresh(Some(physical)) => self.read_block(physical).await,
            Placement::Reserved(_) | Placement::Fresh(None) => Ok(DmaBuf::zeroed(BLOCK)),
        }
    }

    async fn read_block(&self, physical: u64) -> Result<DmaBuf, StoreError> {
        let read = self.inner.bdev.read(physical * BLOCK_BYTES, BLOCK).await;
        read.map_err(|source| io_error("read", Some(self.target.object.fid), source))
    }

    /// Punches a hole: whole blocks go, bytes at the edges are zeroed in fresh blocks, so that a crash undoes all or nothing.
    async fn punch(&mut self, range: Range<u64>) -> Result<(), StoreError> {
        self.zero_edges(&range).await?;
        let whole = whole_blocks(&range);
        if whole.start < whole.end {
            self.edits.push(Edit::Unmap(whole));
        }
        Ok(())
    }

    async fn zero(&mut self, range: &Range<u64>) -> Result<(), StoreError> {
        self.zero_edges(range).await?;
        self.reserve(range).await?;
        let whole = whole_blocks(range);
        if whole.start >= whole.end {
            return Ok(());
        }
        for (blocks, piece) in self.cover(whole) {
            if piece.is_some_and(|piece| !piece.mapping.unwritten) {
                self.edits.push(Edit::Convert { range: blocks, unwritten: true, born: false });
            }
        }
        Ok(())
    }

    /// Holes of the range become unwritten extents.
    async fn reserve(&mut self, range: &Range<u64>) -> Result<(), StoreError> {
        for (blocks, _) in self.cover(touching(range)).into_iter().filter(|(_, piece)| piece.is_none()) {
            let mut logical = blocks.start;
            for extent in self.allocate(&blocks).await? {
                let (physical, blocks) = (extent.offset / BLOCK_BYTES, extent.length / BLOCK_BYTES);
                let mapping = Mapping { physical, blocks, unwritten: true, shared: false };
                self.edits.push(Edit::Map { logical, mapping, born: false });
                logical += blocks;
            }
        }
        Ok(())
    }

    /// Zeroes the bytes of the range that do not fill a block.
    async fn zero_edges(&mut self, range: &Range<u64>) -> Result<(), StoreError> {
        let first_end = range.start.next_multiple_of(BLOCK_BYTES).min(range.end);
        if !range.start.is_multiple_of(BLOCK_BYTES) {
            self.zero_in_block(range.start..first_end).await?;
        }
        let last_start = (range.end / BLOCK_BYTES * BLOCK_BYTES).max(first_end).max(range.start);
        if last_start < range.end && !range.end.is_multiple_of(BLOCK_BYTES) {
            self.zero_in_block(last_start..range.end).await?;
        }
        Ok(())
    }

    async fn zero_in_block(&mut self, range: Range<u64>) -> Result<(), StoreError> {
        let block = range.start / BLOCK_BYTES;
        let physical = match self.cover(block..block + 1).pop() {
            Some((_, Some(piece))) if !piece.mapping.unwritten => piece.mapping.physical,
            _ => return Ok(()),
        };
        let mut contents = self.read_block(physical).await?;
        let start = (range.start % BLOCK_BYTES) as usize;
        let zeroed = &mut contents[start..start + (range.end - range.start) as usize];
        if zeroed.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        zeroed.fill(0);
        let mut writes = Vec::new();
        self.place_fresh(block..block + 1, vec![contents.freeze()], &mut writes).await?;
        self.run(writes).await
    }

    /// Notes the checksum of data in fresh space, where a crash could lose it.
    fn record_data(&mut self, physical: u64, buffers: &[Bytes]) {
        if !self.inner.log.checks_data() {
            return;
        }
        let length: usize = buffers.iter().map(Bytes::len).sum();
        let extent = Extent { offset: physical * BLOCK_BYTES, length: length as u64 };
        self.plan.data.push((extent, crc(buffers)));
    }

    /// Writes everything and waits for all of it, even if some fails: nothing may arrive in space that was given up.
    async fn run(&self, writes: Vec<(u64, Vec<Bytes>)>) -> Result<(), StoreError> {
        // Not after the log failed, nor after the store was dropped.
        self.inner.log.check("write")?;
        let bytes: usize = writes.iter().flat_map(|(_, buffers)| buffers).map(Bytes::len).sum();
        let writes = writes.into_iter().map(|(physical, data)| self.inner.bdev.write(physical * BLOCK_BYTES, data));
        let failed = join_all(writes).await.into_iter().find_map(Result::err);
        self.inner.log.note_data(bytes as u64);
        match failed {
            Some(source) => Err(io_error("write", Some(self.target.object.fid), source)),
            None => Ok(()),
        }
    }
}

/// Blocks that lie in the range whole.
fn whole_blocks(range: &Range<u64>) -> Range<u64> {
    range.start.div_ceil(BLOCK_BYTES)..range.end / BLOCK_BYTES
}

/// Takes the first `bytes` off the buffers.
fn split(buffers: &mut std::collections::VecDeque<Bytes>, bytes: usize) -> Vec<Bytes> {
    let (mut out, mut left) = (Vec::new(), bytes);
    while left > 0 {
        let Some(mut buffer) = buffers.pop_front() else { break };
        if buffer.len() > left {
            buffers.push_front(buffer.split_off(left));
        }
        left -= buffer.len();
        out.push(buffer);
    }
    out
}

/// CRC32C of buffers one after the other.
pub(crate) fn crc(buffers: &[Bytes]) -> u32 {
    if let [buffer] = buffers {
        return crc_fast::crc32_iscsi(buffer);
    }
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    buffers.iter().for_each(|buffer| digest.update(buffer));
    digest.finalize() as u32
}
