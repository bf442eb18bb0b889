//! The index: an ordered map from bytes to bytes, log-structured.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::rc::Rc;

use nacre_reactor::{Bytes, DmaBuf};

pub use crate::format::run::{Extent, RUN_ALIGN_BYTES, RunHandle};
use crate::store::{Fut, StoreError};

/// One change: a value to put, or `None` to delete.
pub type Change = (Box<[u8]>, Option<Box<[u8]>>);
/// A key and its value.
pub type Entry = (Vec<u8>, Vec<u8>);

/// Where runs are kept. Offsets and lengths are multiples of [`RUN_ALIGN_BYTES`].
pub trait RunIo {
    /// Takes space: `bytes` (a multiple of [`RUN_ALIGN_BYTES`]) in as few pieces as it can.
    fn allocate(&self, bytes: u64) -> Fut<'static, Result<Vec<Extent>, StoreError>>;
    /// Gives space of a run back that no manifest has ever named.
    fn free(&self, extents: &[Extent]);
    /// Reads a piece.
    fn read(&self, extent: Extent) -> Fut<'static, Result<DmaBuf, StoreError>>;
    /// Writes from `offset` on.
    fn write(&self, offset: u64, data: Vec<Bytes>) -> Fut<'static, Result<(), StoreError>>;
    /// Makes what was written stable.
    fn flush(&self) -> Fut<'static, Result<(), StoreError>>;
}

/// How a tree behaves.
#[derive(Clone, Debug)]
pub struct TreeOptions {
    /// Uncompressed size at which a block is closed.
    pub block_bytes: usize,
    /// Whether blocks are compressed (lz4) where that helps.
    pub compress: bool,
    /// Limit of the block cache.
    pub cache_bytes: usize,
    /// Runs of one level that are merged into one of the next.
    pub fanout: usize,
    /// Leading bytes of a key that are in the filters too: scans and floors that stay within one such prefix
    /// skip runs that have none of it.
    pub filter_prefix_bytes: usize,
}

impl Default for TreeOptions {
    fn default() -> TreeOptions {
        TreeOptions { block_bytes: 8192, compress: true, cache_bytes: 32 << 20, fanout: 6, filter_prefix_bytes: 17 }
    }
}

/// What is known without I/O.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TryGet {
    /// The value, or that there is none.
    Known(Option<Vec<u8>>),
    /// Ask [`Tree::get`].
    NeedsIo,
}

/// A change of the set of runs, made by a flush or a merge. Persist `added` and `removed`, then [`Tree::install`] it.
#[derive(Debug, Default)]
pub struct ManifestEdit {
    /// Runs that are there from now on.
    pub added: Vec<RunHandle>,
    /// Runs that are not.
    pub removed: Vec<RunHandle>,
}

/// An ordered map over immutable runs.
pub struct Tree {
    map: RefCell<BTreeMap<Box<[u8]>, Box<[u8]>>>,
}

impl Tree {
    /// Opens a tree of the runs of a manifest (none: an empty tree); reads their footers.
    pub async fn open(io: Rc<dyn RunIo>, options: TreeOptions, manifest: &[RunHandle]) -> Result<Tree, StoreError> {
        let _ = (io, options, manifest);
        Ok(Tree { map: RefCell::default() })
    }
    /// Makes changes, in order, in the active memtable.
    pub fn apply(&self, changes: impl IntoIterator<Item = Change>) {
        let mut map = self.map.borrow_mut();
        for (key, value) in changes {
            match value {
                Some(value) => map.insert(key, value),
                None => map.remove(&key),
            };
        }
    }
    /// The value of a key, if that can be told without I/O.
    pub fn try_get(&self, key: &[u8]) -> Result<TryGet, StoreError> {
        Ok(TryGet::Known(self.map.borrow().get(key).map(|value| value.to_vec())))
    }
    /// The value of a key.
    pub async fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.map.borrow().get(key).map(|value| value.to_vec()))
    }
    /// Up to `limit` entries between the bounds, in order, as they are at one moment before it returns.
    pub async fn scan(&self, from: Bound<&[u8]>, to: Bound<&[u8]>, limit: usize) -> Result<Vec<Entry>, StoreError> {
        let map = self.map.borrow();
        Ok(map.range::<[u8], _>((from, to)).take(limit).map(|(key, value)| (key.to_vec(), value.to_vec())).collect())
    }
    /// Last entry with `lowest ≤ key ≤ highest`.
    pub async fn floor(&self, lowest: &[u8], highest: &[u8]) -> Result<Option<Entry>, StoreError> {
        let map = self.map.borrow();
        let last = map.range::<[u8], _>((Bound::Included(lowest), Bound::Included(highest))).next_back();
        Ok(last.map(|(key, value)| (key.to_vec(), value.to_vec())))
    }
    /// Memory taken by the active memtable.
    pub fn memtable_bytes(&self) -> usize {
        0
    }
    /// Memory taken by memtables that are frozen and not flushed and installed yet.
    pub fn frozen_bytes(&self) -> usize {
        0
    }
    /// Swaps in an empty memtable; the old one stays readable. Nothing happens when it is empty.
    pub fn freeze(&self) {}
    /// Writes all frozen memtables into a run and flushes the device. `None`: nothing is frozen. One flush at a time: until its
    /// edit is installed or abandoned, another answers `None`. The future must not be dropped before it completes.
    pub async fn flush_frozen(&self) -> Result<Option<ManifestEdit>, StoreError> {
        Ok(None)
    }
    /// Merges runs, if there is something to merge; otherwise `None`. Yields between units. May run beside a flush; one merge at a
    /// time (another answers `None`). The future must not be dropped before it completes.
    pub async fn merge_step(&self) -> Result<Option<ManifestEdit>, StoreError> {
        Ok(None)
    }
    /// Readers switch to the edited set of runs. To be called when the edit is in a stable manifest.
    pub fn install(&self, edit: ManifestEdit) {
        let _ = edit;
    }
    /// Gives up an edit that could not be persisted: its new runs are freed, the tree stays as it is.
    pub fn abandon(&self, edit: ManifestEdit) {
        let _ = edit;
    }
    /// Runs that were removed by installed edits and that no reader uses any more: each is returned once, and its space may be
    /// freed. To be asked after `install` and from time to time.
    pub fn take_unused(&self) -> Vec<RunHandle> {
        Vec::new()
    }
    /// The installed runs, newest first: what a checkpoint must keep.
    pub fn manifest(&self) -> Vec<RunHandle> {
        Vec::new()
    }
}
