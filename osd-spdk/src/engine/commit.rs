//! The commit: one synchronous step that numbers a transaction, writes its record and makes it visible.

use std::ops::Range;

use nacre_wire::Attr;

use super::extents::{Edit, Outcome};
use super::index::Change;
use super::submit::{Plan, Target, position};
use super::{Inner, error};
use crate::format::log::Item;
use crate::format::object::{Kind, encode_attr, encode_mapping, key, key_after};
use crate::format::run::Extent;
use crate::format::superblock::BLOCK_BYTES;
use crate::store::{Op, StoreError, StoreErrorKind, Transaction, Transno};

/// From the first key on, up to before the second.
type KeyRange = (Box<[u8]>, Box<[u8]>);

/// What becomes of one object.
struct Fate {
    attr: Option<Attr>,
    changed: bool,
    extents: Outcome,
    /// Blocks whose keys the record removes as a range.
    unmapped: Vec<Range<u64>>,
}

impl Inner {
    /// Waits until the log can take the record. Many transactions at once may have found room before they had their locks.
    pub(crate) async fn wait_for_frame(
        &self,
        transaction: &Transaction,
        targets: &[Target],
        plan: &Plan,
    ) -> Result<(), StoreError> {
        let bytes = record_bytes_estimate(transaction, targets, plan);
        if bytes > self.log.record_bytes_max() {
            return Err(error(StoreErrorKind::TooBig, "submit", None, "the transaction does not fit the log"));
        }
        loop {
            let changed = self.log.changed();
            self.check_usable("submit")?;
            if self.log.has_room(bytes) {
                return Ok(());
            }
            changed.await;
        }
    }

    /// Cannot fail, so that nothing is done by half. There is room: [`Inner::wait_for_frame`].
    pub(crate) fn commit(&self, transaction: Transaction, targets: &[Target], plan: Plan) -> Transno {
        let transno = self.log.last() + 1;
        let mut fates: Vec<Fate> = targets
            .iter()
            .map(|target| Fate {
                attr: target.object.attr.borrow().clone(),
                changed: false,
                extents: Outcome::default(),
                unmapped: Vec::new(),
            })
            .collect();
        let mut changes: Vec<Change> = Vec::with_capacity(transaction.ops.len() + 2);
        // Removals that the record tells as ranges, before everything else.
        let mut ranges: Vec<KeyRange> = Vec::new();
        let mut in_ranges: Vec<Change> = Vec::new();
        let mut objects = 0;
        let Plan { edits, mut removals, reservations, data } = plan;
        for (i, op) in transaction.ops.into_iter().enumerate() {
            let at = position(targets, &op);
            let fate = &mut fates[at];
            {
                let object = &targets[at].object;
                let mut map = object.extents.borrow_mut();
                edits[i].iter().for_each(|edit| map.apply(edit, transno, &mut fate.extents));
                if edits[i].iter().any(|edit| edit.gives_birth(self.log.checks_data())) {
                    object.born.set(transno);
                }
            }
            let removals = std::mem::take(&mut removals[i]);
            if removals.len() > RANGE_KEYS_MIN {
                let fid = op.fid();
                ranges.extend([Kind::Xattr, Kind::Index].map(|kind| (key(kind, fid, &[]), key_after(kind, fid))));
                in_ranges.extend(removals.into_iter().map(|key| (key, None)));
                objects += fate.apply(op, transno, Vec::new(), &mut changes);
            } else {
                objects += fate.apply(op, transno, removals, &mut changes);
            }
            if fate.extents.touched.len() > RANGE_KEYS_MIN {
                fate.unmapped.extend(edits[i].iter().filter_map(|edit| match edit {
                    Edit::Unmap(range) => Some(range.clone()),
                    _ => None,
                }));
            }
        }

        let mut given: Vec<Extent> = Vec::new();
        for (fate, target) in fates.iter_mut().zip(targets) {
            let object = &target.object;
            let map = object.extents.borrow();
            let extent_key = |logical: u64| key(Kind::Extent, object.fid, &logical.to_be_bytes());
            ranges.extend(fate.unmapped.iter().map(|range| (extent_key(range.start), extent_key(range.end))));
            for logical in std::mem::take(&mut fate.extents.touched) {
                let value = map.at(logical).map(encode_mapping);
                let in_range = value.is_none() && fate.unmapped.iter().any(|range| range.contains(&logical));
                let changes = if in_range { &mut in_ranges } else { &mut changes };
                changes.push((extent_key(logical), value));
            }
            given.append(&mut fate.extents.given);
            if !fate.changed {
                continue;
            }
            if let Some(attr) = &mut fate.attr {
                attr.version = transno;
                let blocks = (attr.allocated_bytes / BLOCK_BYTES).saturating_add_signed(fate.extents.blocks);
                attr.allocated_bytes = blocks * BLOCK_BYTES;
            }
            let size = |attr: &Option<Attr>| attr.as_ref().map_or(0, |attr| attr.size);
            if size(&fate.attr) > size(&object.attr.borrow()) {
                object.note_growth(self.log.proven(), transno);
            }
            changes.push((key(Kind::Attr, object.fid, &[]), fate.attr.as_ref().map(encode_attr)));
            *object.attr.borrow_mut() = fate.attr.take();
        }

        let taken: Vec<Extent> = reservations.into_iter().flat_map(|reservation| reservation.take()).collect();
        let puts = changes.iter().map(|(key, value)| match value {
            Some(value) => Item::Put(key, value),
            None => Item::Delete(key),
        });
        let ranges = ranges.iter().map(|(from, to)| Item::DeleteRange(from, to));
        let takes = taken.iter().map(|extent| Item::Take(*extent));
        let gives = given.iter().map(|extent| Item::Give(*extent));
        let checks = data.iter().map(|(extent, crc)| Item::Data(*extent, *crc));
        let appended = self.log.append(objects, checks.chain(takes).chain(gives).chain(ranges).chain(puts));
        debug_assert_eq!(appended, transno);
        taken.into_iter().for_each(|extent| self.space.commit(extent));
        given.into_iter().for_each(|extent| self.space.give(extent, transno));
        self.object_count.set(self.object_count.get().saturating_add_signed(i64::from(objects)));
        self.tree.apply(in_ranges);
        self.tree.apply(changes);
        if self.checkpoint_is_due() {
            self.log.wants_checkpoint.notify_one();
        }
        transno
    }
}

impl Fate {
    /// Applies what is not in the extent map; the answer is by how many objects there are more.
    fn apply(&mut self, op: Op, transno: Transno, removals: Vec<Box<[u8]>>, changes: &mut Vec<Change>) -> i32 {
        let fid = op.fid();
        self.changed |= !matches!(op, Op::Put { .. } | Op::Delete { .. });
        match op {
            Op::Create { attr, .. } => {
                self.attr = Some(Attr { size: 0, allocated_bytes: 0, version: transno, ..attr });
                // What is counted from here on belongs to the new object.
                self.extents.blocks = 0;
                return 1;
            }
            Op::Destroy { .. } => {
                self.attr = None;
                // Entries that this transaction put before go too.
                let own = [key(Kind::Xattr, fid, &[]), key(Kind::Index, fid, &[])];
                let earlier = changes.iter().filter(|(key, _)| own.iter().any(|own| key.starts_with(own)));
                let earlier: Vec<_> = earlier.map(|(key, _)| (key.clone(), None)).collect();
                changes.extend(earlier);
                changes.extend(removals.into_iter().map(|key| (key, None)));
                return -1;
            }
            Op::SetXattr { name, value, .. } => {
                changes.push((key(Kind::Xattr, fid, &name), Some(value.into_boxed_slice())));
            }
            Op::RemoveXattr { name, .. } => changes.push((key(Kind::Xattr, fid, &name), None)),
            Op::Put { key: name, value, .. } => {
                changes.push((key(Kind::Index, fid, &name), Some(value.into_boxed_slice())));
            }
            Op::Delete { key: name, .. } => changes.push((key(Kind::Index, fid, &name), None)),
            Op::SetAttr { patch, .. } => self.with_attr(|attr| attr.apply(&patch)),
            Op::Write { offset, data, .. } if !data.is_empty() => self.grow(offset + data.len() as u64),
            Op::Truncate { size, .. } => self.with_attr(|attr| attr.size = size),
            Op::Allocate { range, keep_size, .. } | Op::Zero { range, keep_size, .. } if !keep_size => {
                self.grow(range.end);
            }
            Op::Write { .. } | Op::Allocate { .. } | Op::Zero { .. } | Op::Punch { .. } => {}
        }
        0
    }

    fn with_attr(&mut self, change: impl FnOnce(&mut Attr)) {
        // Validated: the object is there.
        if let Some(attr) = &mut self.attr {
            change(attr);
        }
    }

    fn grow(&mut self, end: u64) {
        self.with_attr(|attr| attr.size = attr.size.max(end));
    }
}

/// An upper bound of the record's size.
fn record_bytes_estimate(transaction: &Transaction, targets: &[Target], plan: &Plan) -> usize {
    let ops = transaction.ops.iter().map(|op| match op {
        Op::Put { key, value, .. } => key.len() + value.len() + 64,
        Op::SetXattr { name, value, .. } => name.len() + value.len() + 64,
        _ => 320,
    });
    let few = plan.removals.iter().filter(|keys| keys.len() <= RANGE_KEYS_MIN);
    let removals = few.flatten().map(|key| key.len() + 8);
    let pieces = plan.edits.iter().zip(&transaction.ops).map(|(edits, op)| {
        let map = targets[position(targets, op)].object.extents.borrow();
        let bytes = |edit: &Edit| match (map.count(edit.range()), edit) {
            (count, Edit::Unmap(_)) if count > RANGE_KEYS_MIN => count * GIVEN_RECORD_BYTES + 4 * EXTENT_RECORD_BYTES,
            (count, _) => (count + 2) * EXTENT_RECORD_BYTES,
        };
        edits.iter().map(bytes).sum::<usize>()
    });
    let space: usize = plan.reservations.iter().map(|reservation| reservation.extents.len() * 64).sum();
    ops.sum::<usize>() + removals.sum::<usize>() + pieces.sum::<usize>() + space + plan.data.len() * 32 + 16
}

/// With more removals than this, a record names their range.
const RANGE_KEYS_MIN: usize = 64;
/// Space given back.
const GIVEN_RECORD_BYTES: usize = 14;
/// A key with its extent, or its removal and the space given.
const EXTENT_RECORD_BYTES: usize = 80;
