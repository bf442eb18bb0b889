//! Opening: superblock, checkpoint, log. Bounded by the size of the log.
//!
//! The log is walked twice: first to find its end and what was surely stable, then to apply it. A record beyond what was
//! stable is applied only if the data it names is there; where it is not, the history ends. What was acknowledged as stable
//! is never beyond.

use std::cell::{Cell, RefCell};
use std::ops::{Bound, Range};
use std::rc::Rc;

use nacre_reactor::{Bytes, DmaBuf};

use super::checkpoint::{EngineIo, RootInfo};
use super::index::{Change, Tree, TreeOptions};
use super::log::Log;
use super::object::Objects;
use super::space::Space;
use super::{Inner, OpenState, Options, error, io_error};
use crate::bdev::BdevRef;
use crate::format::log::{self as frames, Cursor, Item, Start};
use crate::format::root::Root;
use crate::format::run::Extent;
use crate::format::superblock::{BLOCK_BYTES, Found, Superblock};
use crate::store::{StoreError, StoreErrorKind, Transno};

/// The newest whole superblock of a device.
pub(crate) async fn find_superblock(bdev: &BdevRef) -> Result<Found, StoreError> {
    let device_bytes = bdev.info().bytes();
    if device_bytes < 4 * BLOCK_BYTES {
        return Ok(Found::Nothing);
    }
    let mut blocks: Vec<DmaBuf> = Vec::new();
    for place in Superblock::all_places(device_bytes) {
        // One that cannot be read is as good as a damaged one; the others may do.
        match bdev.read(place, BLOCK_BYTES as usize).await {
            Ok(block) => blocks.push(block),
            Err(error) => tracing::warn!(%error, "a superblock cannot be read"),
        }
    }
    if blocks.is_empty() {
        return Err(error(StoreErrorKind::Io, "open", None, "no superblock can be read"));
    }
    let blocks: Vec<&[u8]> = blocks.iter().map(|block| &block[..]).collect();
    Ok(Superblock::newest(&blocks))
}

/// Rebuilds the state of the last transaction that survived.
pub(crate) async fn recover(bdev: BdevRef, options: Options) -> Result<Inner, StoreError> {
    let superblock = load_superblock(&bdev).await?;
    let root = load_root(&bdev, &superblock).await?;
    let reserve = (superblock.space.length / 64).max(superblock.log.length).min(superblock.space.length / 4);
    let space = Space::new(superblock.space, reserve, root.taken_blocks);
    let named = root.runs.iter().flat_map(|run| &run.extents).chain(&superblock.root.extents);
    for extent in named {
        check_extent(&space, *extent)?;
        space.set_busy(*extent, true);
    }
    let index_stopped = Rc::new(Cell::new(false));
    let io = Rc::new(EngineIo { bdev: bdev.clone(), space: space.clone(), stopped: index_stopped.clone() });
    let tree_options = TreeOptions { cache_bytes: options.cache_bytes, ..TreeOptions::default() };
    let tree = Rc::new(Tree::open(io, tree_options, &root.runs).await?);
    space.set_index(&tree);

    let start = Cursor {
        position: superblock.root.log_position,
        sequence: superblock.root.log_sequence,
        epoch: superblock.root.log_epoch,
        previous_crc: superblock.root.log_previous_crc,
    };
    let mut replay = Replay {
        reader: Reader { bdev: bdev.clone(), ring: superblock.log, window: DmaBuf::zeroed(0), window_start: 0 },
        space: space.clone(),
        tree: tree.clone(),
        last: superblock.root.transno,
        objects: root.objects,
    };
    let (end, stable) = replay.reader.walk(start, superblock.root.transno).await?;
    replay.run(start, end, stable).await?;
    let Replay { last, objects, .. } = replay;

    let epoch = end.epoch + 1;
    let cursor = Cursor { epoch, previous_crc: first_crc(&superblock, epoch), ..end };
    let log = Log::new(bdev.clone(), superblock.log, cursor, last);
    let root = RootInfo { transno: last, cursor, taken_blocks: space.taken_blocks(), objects };
    Ok(Inner {
        bdev,
        tree,
        space,
        log,
        objects: Objects::new(options.objects_max),
        object_count: Cell::new(objects),
        state: Cell::new(if options.read_only { OpenState::ReadOnly } else { OpenState::Open }),
        options,
        superblock: RefCell::new(superblock),
        root: RefCell::new(root),
        checkpoint_lock: tokio::sync::Mutex::new(()),
        root_lock: tokio::sync::Mutex::new(()),
        checkpoint_failed: RefCell::default(),
        submits: Cell::new(0),
        index_stopped,
    })
}

async fn load_superblock(bdev: &BdevRef) -> Result<Superblock, StoreError> {
    let name = &bdev.info().name;
    let refuse = |kind, context: String| Err(error(kind, "open", None, &context));
    match find_superblock(bdev).await? {
        Found::Valid(superblock) if superblock.device_bytes > bdev.info().bytes() => refuse(
            StoreErrorKind::Corrupt,
            format!(
                "bdev \"{name}\" has {} bytes, but the store on it was made for {}",
                bdev.info().bytes(),
                superblock.device_bytes
            ),
        ),
        Found::Valid(superblock) => Ok(*superblock),
        Found::Nothing => refuse(StoreErrorKind::NotAStore, format!("bdev \"{name}\" holds no store; format it first")),
        Found::Damaged => refuse(StoreErrorKind::Corrupt, format!("all superblocks of bdev \"{name}\" are damaged")),
        Found::Newer { version, unknown_features } => refuse(
            StoreErrorKind::NotAStore,
            format!(
                "bdev \"{name}\" holds a store of version {version} with unknown features {unknown_features:#x}; \
                 use the software that made it, or a newer one"
            ),
        ),
    }
}

async fn load_root(bdev: &BdevRef, superblock: &Superblock) -> Result<Root, StoreError> {
    let pointer = &superblock.root;
    if pointer.bytes == 0 {
        return Ok(Root::default());
    }
    let damaged = || error(StoreErrorKind::Corrupt, "open", None, "the checkpoint is damaged");
    let mut bytes = Vec::new();
    for extent in &pointer.extents {
        let left = (pointer.bytes - bytes.len() as u64).min(extent.length);
        let read = bdev.read(extent.offset, left.next_multiple_of(BLOCK_BYTES) as usize).await;
        bytes.extend_from_slice(&read.map_err(|source| io_error("open", None, source))?[..left as usize]);
    }
    if bytes.len() as u64 != pointer.bytes || crc_fast::crc32_iscsi(&bytes) != pointer.crc {
        return Err(damaged());
    }
    Root::decode(&bytes).ok_or_else(damaged)
}

/// What the first frame of an epoch says is before it: nothing that an older frame could say.
fn first_crc(superblock: &Superblock, epoch: u64) -> u32 {
    crc_fast::crc32_iscsi(&[&superblock.uuid.0[..], &epoch.to_le_bytes()].concat())
}

fn check_extent(space: &Space, extent: Extent) -> Result<(), StoreError> {
    if extent.length > 0 && space.contains(extent) {
        return Ok(());
    }
    let context = format!("an extent at byte {} lies outside of the space", extent.offset);
    Err(error(StoreErrorKind::Corrupt, "open", None, &context))
}

/// Reads the ring through a window.
struct Reader {
    bdev: BdevRef,
    ring: Extent,
    window: DmaBuf,
    /// Ring offset of the window.
    window_start: u64,
}

impl Reader {
    /// Follows the frames: the cursor behind the last one, and what it says is stable.
    async fn walk(&mut self, start: Cursor, stable: Transno) -> Result<(Cursor, Transno), StoreError> {
        let (mut cursor, mut stable) = (start, stable);
        while let Some((_, says, next)) = self.frame(&cursor).await? {
            stable = stable.max(says);
            cursor = next;
        }
        Ok((cursor, stable))
    }

    /// The frame at the cursor: payload, what it says is stable, the cursor behind it.
    async fn frame(&mut self, cursor: &Cursor) -> Result<Option<(Bytes, Transno, Cursor)>, StoreError> {
        let ring = self.ring.length;
        let beginning = cursor.place(ring, ring);
        let mut places = vec![cursor.position];
        if beginning != cursor.position {
            places.push(beginning);
        }
        for position in places {
            let block = self.bytes(position, BLOCK_BYTES).await?;
            let Start::Frame(bytes) = frames::start(&self.window[block], cursor, position, ring) else { continue };
            let frame = self.bytes(position, bytes).await?;
            if let Some((payload, stable, next)) = frames::open(&self.window[frame], position) {
                return Ok(Some((Bytes::copy_from_slice(payload), stable, next)));
            }
        }
        Ok(None)
    }

    /// Where in the window some bytes of the ring are; reads ahead.
    async fn bytes(&mut self, position: u64, bytes: u64) -> Result<Range<usize>, StoreError> {
        let at = position % self.ring.length;
        let window = self.window_start..self.window_start + self.window.len() as u64;
        if !(window.start <= at && at + bytes <= window.end) {
            let ahead = bytes.max(WINDOW_BYTES).min(self.ring.length - at);
            let read = self.bdev.read(self.ring.offset + at, ahead as usize).await;
            self.window = read.map_err(|source| io_error("read the log", None, source))?;
            self.window_start = at;
        }
        let start = (at - self.window_start) as usize;
        Ok(start..start + bytes as usize)
    }
}

struct Replay {
    reader: Reader,
    space: Rc<Space>,
    tree: Rc<Tree>,
    last: Transno,
    objects: u64,
}

impl Replay {
    async fn run(&mut self, start: Cursor, end: Cursor, stable: Transno) -> Result<(), StoreError> {
        let mut cursor = start;
        while cursor != end {
            let Some((payload, _, next)) = self.reader.frame(&cursor).await? else {
                return Err(error(StoreErrorKind::Io, "open", None, "the log reads differently the second time"));
            };
            cursor = next;
            let records = frames::records(&payload).ok_or_else(|| damaged("a frame holds no records"))?;
            for record in records {
                if record.transno <= self.last {
                    continue;
                }
                if record.transno != self.last + 1 {
                    return Err(damaged(&format!("transaction {} follows {}", record.transno, self.last)));
                }
                if record.transno > stable && !self.data_is_there(&record.items).await? {
                    tracing::info!(
                        transno = record.transno,
                        "the log ends here: the data of later transactions never reached the medium"
                    );
                    return Ok(());
                }
                self.apply(record).await?;
            }
        }
        Ok(())
    }

    async fn data_is_there(&self, items: &[Item<'_>]) -> Result<bool, StoreError> {
        for item in items {
            let Item::Data(extent, crc) = item else { continue };
            check_extent(&self.space, *extent)?;
            let read = self.reader.bdev.read(extent.offset, extent.length as usize).await;
            let data = read.map_err(|source| io_error("check data", None, source))?;
            if crc_fast::crc32_iscsi(&data) != *crc {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn apply(&mut self, record: frames::Record<'_>) -> Result<(), StoreError> {
        let mut changes: Vec<Change> = Vec::new();
        for item in record.items {
            match item {
                Item::Put(key, value) => changes.push((key.into(), Some(value.into()))),
                Item::Delete(key) => changes.push((key.into(), None)),
                Item::DeleteRange(from, to) => {
                    self.tree.apply(std::mem::take(&mut changes));
                    let entries = self.tree.scan(Bound::Included(from), Bound::Excluded(to), usize::MAX).await?;
                    changes.extend(entries.into_iter().map(|(key, _)| (key.into_boxed_slice(), None)));
                }
                Item::Take(extent) => {
                    check_extent(&self.space, extent)?;
                    self.space.replay_take(extent);
                }
                Item::Give(extent) => {
                    check_extent(&self.space, extent)?;
                    self.space.give(extent, record.transno);
                }
                Item::Data(..) => {}
            }
        }
        self.tree.apply(changes);
        self.last = record.transno;
        self.objects = self.objects.saturating_add_signed(i64::from(record.objects));
        Ok(())
    }
}

fn damaged(what: &str) -> StoreError {
    error(StoreErrorKind::Corrupt, "open", None, &format!("the log is damaged: {what}"))
}

/// Read at a time.
const WINDOW_BYTES: u64 = 1 << 20;
