//! Blocks of runs in memory: reading them from the device, and the cache.
//!
//! Readers never wait inside a lookup. They compute their answer in one go over what is in memory ([`Blocks`]); what is missing
//! is noted, read, pinned, and the lookup is made again. So every answer is the truth of one moment, whatever flushes, merges
//! and installs happened while it waited.

use std::cell::RefCell;
use std::hash::{BuildHasherDefault, Hasher};
use std::rc::Rc;

use super::{Extent, RunIo};
use crate::format::run::{
    BlockKind, BlockRef, Damage, Entries, Footer, Partition, RUN_ALIGN_BYTES, RunHandle, decode_block,
};
use crate::store::{StoreError, StoreErrorKind};

/// An open run: its handle and its footer.
pub(super) struct Run {
    pub(super) handle: RunHandle,
    pub(super) footer: Footer,
}

impl Run {
    /// Reads the footer.
    pub(super) async fn open(io: &dyn RunIo, handle: RunHandle) -> Result<Run, StoreError> {
        let bytes = handle.bytes.saturating_sub(handle.footer_offset);
        let bytes =
            u32::try_from(bytes).map_err(|_| damaged(&handle, handle.footer_offset, Damage("footer too long")))?;
        let at = BlockRef { offset: handle.footer_offset, bytes, crc: handle.footer_crc };
        let payload = read_block(io, &handle, at, BlockKind::Footer).await?;
        let footer = Footer::parse(payload, &handle).map_err(|damage| damaged(&handle, at.offset, damage))?;
        Ok(Run { handle, footer })
    }

    /// Whether the key lies between the smallest and the largest.
    pub(super) fn spans(&self, key: &[u8]) -> bool {
        *key >= *self.footer.smallest && *key <= *self.footer.largest
    }
}

/// Reads a data block.
pub(super) async fn read_data(io: &dyn RunIo, handle: &RunHandle, at: BlockRef) -> Result<Rc<Entries>, StoreError> {
    let payload = read_block(io, handle, at, BlockKind::Data).await?;
    Ok(Rc::new(Entries::parse(payload, 0).map_err(|damage| damaged(handle, at.offset, damage))?))
}

/// Reads a partition block.
pub(super) async fn read_partition(
    io: &dyn RunIo,
    handle: &RunHandle,
    at: BlockRef,
) -> Result<Rc<Partition>, StoreError> {
    let payload = read_block(io, handle, at, BlockKind::Partition).await?;
    Ok(Rc::new(Partition::parse(payload).map_err(|damage| damaged(handle, at.offset, damage))?))
}

async fn read_block(io: &dyn RunIo, handle: &RunHandle, at: BlockRef, kind: BlockKind) -> Result<Vec<u8>, StoreError> {
    let end = at.offset.checked_add(u64::from(at.bytes)).filter(|end| *end <= handle.bytes);
    let end = end.ok_or_else(|| damaged(handle, at.offset, Damage("block beyond the end of its run")))?;
    let first = at.offset / RUN_ALIGN_BYTES * RUN_ALIGN_BYTES;
    let pieces = device_pieces(&handle.extents, first, end.next_multiple_of(RUN_ALIGN_BYTES) - first);
    let skip = (at.offset - first) as usize;
    let decode = |stored: &[u8]| {
        let stored = stored.get(skip..skip + at.bytes as usize).ok_or(Damage("block beyond the end of its run"))?;
        decode_block(stored, kind, at.crc)
    };
    let payload = match pieces.as_slice() {
        [piece] => decode(&io.read(*piece).await?),
        pieces => {
            let mut stored = Vec::new();
            for piece in pieces {
                stored.extend_from_slice(&io.read(*piece).await?);
            }
            decode(&stored)
        }
    };
    payload.map_err(|damage| damaged(handle, at.offset, damage))
}

/// Where `length` bytes at `offset` of a run are on the device; less, when the extents end before.
pub(super) fn device_pieces(extents: &[Extent], offset: u64, length: u64) -> Vec<Extent> {
    let (mut skip, mut left) = (offset, length);
    let mut pieces = Vec::with_capacity(1);
    for extent in extents {
        if left == 0 {
            break;
        }
        if skip >= extent.length {
            skip -= extent.length;
            continue;
        }
        let length = left.min(extent.length - skip);
        pieces.push(Extent { offset: extent.offset + skip, length });
        left -= length;
        skip = 0;
    }
    pieces
}

/// The error for a bad block: which run, where in it, where on the device, what is wrong.
pub(super) fn damaged(handle: &RunHandle, offset: u64, damage: Damage) -> StoreError {
    let piece = device_pieces(&handle.extents, offset, 1);
    let device =
        piece.first().map_or_else(|| "outside its extents".into(), |piece| format!("device byte {}", piece.offset));
    StoreError {
        kind: StoreErrorKind::Corrupt,
        op: "index",
        fid: None,
        context: format!("run {}, block at byte {offset} ({device}): {}", handle.id, damage.0),
        source: None,
    }
}

/// A block in memory.
#[derive(Clone)]
pub(super) enum Cached {
    Data(Rc<Entries>),
    Partition(Rc<Partition>),
}

impl Cached {
    fn memory_bytes(&self) -> usize {
        match self {
            Cached::Data(entries) => entries.memory_bytes(),
            Cached::Partition(partition) => partition.memory_bytes(),
        }
    }
}

/// Names a block: run and offset in it.
type BlockId = (u64, u64);

/// Blocks read lately, up to a number of bytes.
pub(super) struct Cache {
    blocks: RefCell<quick_cache::unsync::Cache<BlockId, Cached, Weighter, BuildHasherDefault<IdHasher>>>,
}

impl Cache {
    pub(super) fn new(bytes: usize) -> Cache {
        let blocks_expected = (bytes / 8192).max(16);
        let cache = quick_cache::unsync::Cache::with(
            blocks_expected,
            bytes as u64,
            Weighter,
            BuildHasherDefault::default(),
            quick_cache::unsync::DefaultLifecycle::default(),
        );
        Cache { blocks: RefCell::new(cache) }
    }

    fn get(&self, id: BlockId) -> Option<Cached> {
        self.blocks.borrow().get(&id).cloned()
    }

    pub(super) fn insert(&self, id: BlockId, block: Cached) {
        self.blocks.borrow_mut().insert(id, block);
    }
}

#[derive(Clone)]
struct Weighter;

impl quick_cache::Weighter<BlockId, Cached> for Weighter {
    fn weight(&self, _: &BlockId, block: &Cached) -> u64 {
        block.memory_bytes() as u64
    }
}

/// Two integers need no keyed hash, and a fixed one keeps runs of the simulator alike.
#[derive(Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }
    fn write_u64(&mut self, value: u64) {
        // Murmur3's finaliser: every input bit reaches every output bit.
        let mut hash = (self.0.rotate_left(23) ^ value).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash ^= hash >> 33;
        hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        self.0 = hash ^ hash >> 33;
    }
}

/// A block that a lookup needs and memory does not have.
pub(super) struct Wanted {
    run: Rc<Run>,
    at: BlockRef,
    kind: BlockKind,
}

impl Wanted {
    /// Reads it.
    pub(super) async fn load(&self, io: &dyn RunIo) -> Result<(BlockId, Cached), StoreError> {
        let block = match self.kind {
            BlockKind::Partition => Cached::Partition(read_partition(io, &self.run.handle, self.at).await?),
            BlockKind::Data | BlockKind::Footer => Cached::Data(read_data(io, &self.run.handle, self.at).await?),
        };
        Ok(((self.run.handle.id, self.at.offset), block))
    }
}

/// A lookup had to stop; [`Blocks::wanted`] says for what.
#[derive(Debug)]
pub(super) struct Missing;

/// The blocks that a lookup may use.
pub(super) struct Blocks<'a> {
    cache: &'a Cache,
    /// Read for this lookup: there whatever the cache has dropped meanwhile.
    pinned: &'a [(BlockId, Cached)],
    /// What is missing.
    pub(super) wanted: Vec<Wanted>,
}

impl<'a> Blocks<'a> {
    pub(super) fn new(cache: &'a Cache, pinned: &'a [(BlockId, Cached)]) -> Blocks<'a> {
        Blocks { cache, pinned, wanted: Vec::new() }
    }

    pub(super) fn data(&mut self, run: &Rc<Run>, at: BlockRef) -> Result<Rc<Entries>, Missing> {
        match self.find(run, at) {
            Some(Cached::Data(entries)) => Ok(entries),
            _ => self.want(run, at, BlockKind::Data),
        }
    }

    pub(super) fn partition(&mut self, run: &Rc<Run>, at: BlockRef) -> Result<Rc<Partition>, Missing> {
        match self.find(run, at) {
            Some(Cached::Partition(partition)) => Ok(partition),
            _ => self.want(run, at, BlockKind::Partition),
        }
    }

    /// Asks for a data block that will be needed soon, together with one that is missing now.
    pub(super) fn want_ahead(&mut self, run: &Rc<Run>, at: BlockRef) {
        if self.find(run, at).is_none() {
            self.wanted.push(Wanted { run: Rc::clone(run), at, kind: BlockKind::Data });
        }
    }

    fn find(&self, run: &Rc<Run>, at: BlockRef) -> Option<Cached> {
        let id = (run.handle.id, at.offset);
        let pinned = self.pinned.iter().find(|(pinned, _)| *pinned == id);
        pinned.map(|(_, block)| block.clone()).or_else(|| self.cache.get(id))
    }

    fn want<T>(&mut self, run: &Rc<Run>, at: BlockRef, kind: BlockKind) -> Result<T, Missing> {
        self.wanted.push(Wanted { run: Rc::clone(run), at, kind });
        Err(Missing)
    }
}
