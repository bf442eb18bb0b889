//! The extent map of one object, in memory: logical blocks → [`Mapping`]s. Pure logic; neighbours that continue each
//! other are one extent.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::format::object::Mapping;
use crate::format::run::Extent;
use crate::format::superblock::BLOCK_BYTES;
use crate::store::Transno;

/// What lies somewhere, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub mapping: Mapping,
    /// Transaction whose record holds a checksum of these blocks, or makes them unwritten; until it is proven, they must not
    /// be overwritten in place, or replay would take the record for lost, or the former contents be lost with it undone.
    pub birth: Transno,
}

/// A change of a map, decided while the range is locked and made when the transaction is.
#[derive(Clone, Debug)]
pub(crate) enum Edit {
    /// Maps logical blocks from here on; what was there is given back. Checksummed data if `born`.
    Map { logical: u64, mapping: Mapping, born: bool },
    /// Makes a hole.
    Unmap(Range<u64>),
    /// Written ↔ unwritten; the blocks stay where they are. Checksummed data if `born`.
    Convert { range: Range<u64>, unwritten: bool, born: bool },
}

impl Edit {
    /// Whether it leaves pieces with a birth.
    pub fn gives_birth(&self, checks_data: bool) -> bool {
        checks_data || matches!(self, Edit::Convert { unwritten: true, .. })
    }

    /// Logical blocks that it changes.
    pub fn range(&self) -> Range<u64> {
        match self {
            Edit::Map { logical, mapping, .. } => *logical..*logical + mapping.blocks,
            Edit::Unmap(range) | Edit::Convert { range, .. } => range.clone(),
        }
    }
}

/// What an edit did, for the record.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Logical blocks whose key changed; a key that is not in the map any more is gone.
    pub touched: BTreeSet<u64>,
    /// Space that nobody names any more.
    pub given: Vec<Extent>,
    /// Change of the number of mapped blocks.
    pub blocks: i64,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct ExtentMap {
    map: BTreeMap<u64, Piece>,
}

impl ExtentMap {
    /// Of loaded extents; `None` if they overlap.
    pub fn from_sorted(extents: impl IntoIterator<Item = (u64, Mapping)>) -> Option<ExtentMap> {
        let mut map = BTreeMap::new();
        let mut end = 0u64;
        for (logical, mapping) in extents {
            if logical < end {
                return None;
            }
            end = logical.checked_add(mapping.blocks)?;
            map.insert(logical, Piece { mapping, birth: 0 });
        }
        Some(ExtentMap { map })
    }

    /// What touches the range, cut to it.
    pub fn part(&self, range: Range<u64>) -> ExtentMap {
        ExtentMap { map: self.pieces(range).collect() }
    }

    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Extents that touch the range.
    pub fn count(&self, range: Range<u64>) -> usize {
        if self.map.is_empty() { 0 } else { self.pieces(range).count() }
    }

    /// The extent that starts at exactly this block.
    pub fn at(&self, logical: u64) -> Option<&Mapping> {
        self.map.get(&logical).map(|piece| &piece.mapping)
    }

    /// Extents that touch the range, cut to it.
    pub fn pieces(&self, range: Range<u64>) -> impl Iterator<Item = (u64, Piece)> + '_ {
        let before = self.map.range(..range.start).next_back();
        let before = before.filter(|(logical, piece)| *logical + piece.mapping.blocks > range.start);
        let from = before.map_or(range.start, |(logical, _)| *logical);
        self.map.range(from..range.end.max(from)).map(move |(logical, piece)| {
            let start = (*logical).max(range.start);
            let end = (*logical + piece.mapping.blocks).min(range.end);
            (start, piece.cut(start - logical, end - start))
        })
    }

    /// The whole range in order: holes are `None`.
    pub fn cover(&self, range: Range<u64>) -> Vec<(Range<u64>, Option<Piece>)> {
        let mut out = Vec::new();
        let mut at = range.start;
        for (logical, piece) in self.pieces(range.clone()) {
            if at < logical {
                out.push((at..logical, None));
            }
            at = logical + piece.mapping.blocks;
            out.push((logical..at, Some(piece)));
        }
        if at < range.end {
            out.push((at..range.end, None));
        }
        out
    }

    /// Makes an edit. `transno` is the birth of what is born by it.
    pub fn apply(&mut self, edit: &Edit, transno: Transno, outcome: &mut Outcome) {
        match edit {
            Edit::Map { logical, mapping, born } => {
                let removed = self.remove(*logical..*logical + mapping.blocks, outcome);
                give(removed, outcome);
                outcome.blocks += mapping.blocks as i64;
                self.insert(*logical, Piece { mapping: *mapping, birth: if *born { transno } else { 0 } }, outcome);
            }
            Edit::Unmap(range) => {
                let removed = self.remove(range.clone(), outcome);
                give(removed, outcome);
            }
            Edit::Convert { range, unwritten, born } => {
                for (logical, mut piece) in self.remove(range.clone(), outcome) {
                    piece.mapping.unwritten = *unwritten;
                    if *born || *unwritten {
                        piece.birth = transno;
                    }
                    outcome.blocks += piece.mapping.blocks as i64;
                    self.insert(logical, piece, outcome);
                }
            }
        }
    }

    /// Takes the range out of the map; parts of extents that reach beyond it stay.
    fn remove(&mut self, range: Range<u64>, outcome: &mut Outcome) -> Vec<(u64, Piece)> {
        let removed: Vec<_> = self.pieces(range.clone()).collect();
        for (start, part) in &removed {
            let (logical, whole) = self.map.range(..=*start).next_back().expect("the piece is of an extent");
            let (logical, whole) = (*logical, *whole);
            let (end, part_end) = (logical + whole.mapping.blocks, start + part.mapping.blocks);
            self.map.remove(&logical);
            outcome.touched.insert(logical);
            if logical < *start {
                self.map.insert(logical, whole.cut(0, start - logical));
            }
            if part_end < end {
                self.map.insert(part_end, whole.cut(part_end - logical, end - part_end));
                outcome.touched.insert(part_end);
            }
            outcome.blocks -= part.mapping.blocks as i64;
        }
        removed
    }

    fn insert(&mut self, mut logical: u64, mut piece: Piece, outcome: &mut Outcome) {
        if let Some((before, left)) = self.map.range(..logical).next_back().map(|(key, value)| (*key, *value))
            && before + left.mapping.blocks == logical
            && left.continues_with(&piece)
        {
            self.map.remove(&before);
            logical = before;
            piece = left.joined(&piece);
        }
        let end = logical + piece.mapping.blocks;
        if let Some(right) = self.map.get(&end).copied()
            && piece.continues_with(&right)
        {
            self.map.remove(&end);
            outcome.touched.insert(end);
            piece = piece.joined(&right);
        }
        outcome.touched.insert(logical);
        self.map.insert(logical, piece);
    }
}

impl Piece {
    fn cut(&self, skip: u64, blocks: u64) -> Piece {
        Piece { mapping: Mapping { physical: self.mapping.physical + skip, blocks, ..self.mapping }, birth: self.birth }
    }

    fn continues_with(&self, next: &Piece) -> bool {
        let (a, b) = (&self.mapping, &next.mapping);
        a.physical + a.blocks == b.physical && a.unwritten == b.unwritten && a.shared == b.shared
    }

    fn joined(&self, next: &Piece) -> Piece {
        let mapping = Mapping { blocks: self.mapping.blocks + next.mapping.blocks, ..self.mapping };
        Piece { mapping, birth: self.birth.max(next.birth) }
    }
}

fn give(removed: Vec<(u64, Piece)>, outcome: &mut Outcome) {
    // Shared space is given back by whoever counts the sharers; nothing shares yet.
    outcome.given.extend(removed.into_iter().filter(|(_, piece)| !piece.mapping.shared).map(|(_, piece)| Extent {
        offset: piece.mapping.physical * BLOCK_BYTES,
        length: piece.mapping.blocks * BLOCK_BYTES,
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn map(logical: u64, physical: u64, blocks: u64, unwritten: bool) -> Edit {
        Edit::Map { logical, mapping: Mapping { physical, blocks, unwritten, shared: false }, born: true }
    }

    fn edits() -> impl Strategy<Value = (u8, u64, u64, bool)> {
        (0u8..3, 0u64..40, 1u64..20, any::<bool>())
    }

    proptest! {
        /// Against one entry per block: contents, keys touched and space given back agree.
        #[test]
        fn behaves_as_a_map_of_single_blocks(script in proptest::collection::vec(edits(), 1..40)) {
            let mut extents = ExtentMap::default();
            let mut keys: BTreeMap<u64, Mapping> = BTreeMap::new();
            let mut model: BTreeMap<u64, (u64, bool)> = BTreeMap::new();
            let mut fresh = 1000;
            for (what, start, len, unwritten) in script {
                let range = start..start + len;
                let edit = match what {
                    0 => { fresh += len + u64::from(unwritten); map(start, fresh - len, len, unwritten) }
                    1 => Edit::Unmap(range.clone()),
                    _ => Edit::Convert { range: range.clone(), unwritten, born: false },
                };
                let mut outcome = Outcome::default();
                extents.apply(&edit, 1, &mut outcome);
                let mut given = BTreeSet::new();
                let before = model.len() as i64;
                for block in range.clone() {
                    match &edit {
                        Edit::Map { mapping, .. } => {
                            let new = (mapping.physical + block - start, unwritten);
                            given.extend(model.insert(block, new).map(|(physical, _)| physical));
                        }
                        Edit::Unmap(_) => given.extend(model.remove(&block).map(|(physical, _)| physical)),
                        Edit::Convert { .. } => {
                            if let Some(entry) = model.get_mut(&block) { entry.1 = unwritten; }
                        }
                    }
                }
                prop_assert_eq!(outcome.blocks, model.len() as i64 - before);
                let mut given_back = BTreeSet::new();
                for extent in &outcome.given {
                    for block in extent.offset / BLOCK_BYTES..(extent.offset + extent.length) / BLOCK_BYTES {
                        prop_assert!(given_back.insert(block));
                    }
                }
                prop_assert_eq!(given, given_back);
                for logical in outcome.touched {
                    match extents.at(logical) {
                        Some(mapping) => { keys.insert(logical, *mapping); }
                        None => { keys.remove(&logical); }
                    }
                }
                let flat: BTreeMap<_, _> = extents.pieces(0..100).flat_map(|(logical, piece)| {
                    let mapping = piece.mapping;
                    (0..mapping.blocks).map(move |i| (logical + i, (mapping.physical + i, mapping.unwritten)))
                }).collect();
                prop_assert_eq!(&flat, &model);
                let loaded = ExtentMap::from_sorted(keys.clone()).unwrap();
                let kept: Vec<_> = loaded.map.iter().map(|(key, piece)| (*key, piece.mapping)).collect();
                let held: Vec<_> = extents.map.iter().map(|(key, piece)| (*key, piece.mapping)).collect();
                prop_assert_eq!(kept, held);
                let covered: u64 = extents.cover(5..50).iter().map(|(range, _)| range.end - range.start).sum();
                prop_assert_eq!(covered, 45);
            }
        }
    }
}
