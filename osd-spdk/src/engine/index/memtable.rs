//! The memtable: changes since the last flush, in memory. Only the active one changes; a frozen one never does.

use std::collections::BTreeMap;
use std::collections::btree_map;
use std::ops::Bound;

use super::Change;

/// Newest value of each key; `None` is a tombstone.
#[derive(Default)]
pub(super) struct Memtable {
    map: BTreeMap<Box<[u8]>, Option<Box<[u8]>>>,
    bytes: usize,
}

impl Memtable {
    pub(super) fn apply(&mut self, (key, value): Change) {
        let value_bytes = value.as_ref().map_or(0, |value| value.len());
        let key_bytes = key.len();
        self.bytes += value_bytes;
        match self.map.insert(key, value) {
            Some(old) => self.bytes -= old.map_or(0, |old| old.len()),
            None => self.bytes += key_bytes + ENTRY_OVERHEAD_BYTES,
        }
    }

    /// `None`: nothing is known of the key here. `Some(None)`: it is deleted.
    pub(super) fn get(&self, key: &[u8]) -> Option<Option<&[u8]>> {
        self.map.get(key).map(|value| value.as_deref())
    }

    pub(super) fn range(&self, from: Bound<&[u8]>, to: Bound<&[u8]>) -> Range<'_> {
        self.map.range::<[u8], _>((from, to))
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.map.is_empty()
    }
}

/// A memtable that is not needed any more. Freeing hundreds of thousands of entries takes milliseconds, in which nothing else would run.
pub(super) struct Remains(btree_map::IntoIter<Box<[u8]>, Option<Box<[u8]>>>);

impl Remains {
    pub(super) fn of(memtable: Memtable) -> Remains {
        Remains(memtable.map.into_iter())
    }

    /// Frees some entries; true when there are no more.
    pub(super) fn free_some(&mut self, entries: usize) -> bool {
        self.0.by_ref().take(entries).count() < entries
    }
}

/// Entries of a memtable in order.
pub(super) type Range<'a> = btree_map::Range<'a, Box<[u8]>, Option<Box<[u8]>>>;

/// What an entry takes beside its bytes: two fat pointers, its share of a tree node, two heap headers.
const ENTRY_OVERHEAD_BYTES: usize = 80;
