//! A store as recovery would find it, read and never written.

use std::ops::Bound;
use std::rc::Rc;

use futures_util::FutureExt;
use nacre_reactor::{Bytes, DmaBuf};

use crate::bdev::BdevRef;
use crate::engine::index::{Change, Extent, RunHandle, RunIo, Tree, TreeOptions};
use crate::format::log::{self, Cursor, Item, Start, records};
use crate::format::root::Root;
use crate::format::run::crc32c;
use crate::format::superblock::{BLOCK_BYTES, Found, Superblock};
use crate::store::{Fut, StoreError, StoreErrorKind};

/// One of the four places of superblocks.
pub(super) struct Place {
    pub(super) offset: u64,
    pub(super) found: Found,
}

/// What the superblocks lead to.
pub(super) struct Offline {
    pub(super) bdev: BdevRef,
    pub(super) places: Vec<Place>,
    pub(super) superblock: Superblock,
    pub(super) root: Root,
    /// Checkpoint and log together. Damaged runs are not in it.
    pub(super) tree: Tree,
    pub(super) runs: Vec<RunHandle>,
    pub(super) log: LogSummary,
    /// `Take` (true) and `Give` of the log, in order.
    pub(super) space_changes: Vec<(bool, Extent)>,
    /// What could not be read: what it is, where it is on the device, what is wrong.
    pub(super) damage: Vec<(Option<u64>, String)>,
}

/// The log from the checkpoint to its end.
#[derive(Clone, Debug)]
pub(super) struct LogSummary {
    pub(super) frames: u64,
    pub(super) records: u64,
    /// Last transaction.
    pub(super) transno: u64,
    /// Transactions up to here are known to be on stable media.
    pub(super) stable_transno: u64,
    /// Change of the number of objects.
    pub(super) objects: i64,
    /// Something behind `end` was not applied: data that it names is not there, or it means nothing.
    pub(super) cut: bool,
    /// Where the next frame goes.
    pub(super) end: Cursor,
}

/// A frame of the log, as it was read.
pub(super) struct Frame {
    /// On the device.
    pub(super) offset: u64,
    pub(super) payload: Vec<u8>,
    pub(super) stable_transno: u64,
    /// Behind it.
    pub(super) cursor: Cursor,
}

impl Offline {
    /// Reads superblocks, checkpoint, footers of the runs and the log. Fails only when there is no superblock to start from.
    pub(super) async fn open(bdev: BdevRef) -> Result<Offline, StoreError> {
        let places = read_superblocks(&bdev).await?;
        let superblock = newest(&bdev, &places)?;
        let mut damage = Vec::new();
        let root = match read_root(&bdev, &superblock).await {
            Ok(root) => root,
            Err(error) => {
                let at = superblock.root.extents.first().map(|extent| extent.offset);
                damage.push((at, format!("the checkpoint cannot be read: {}", plain(&error))));
                Root::default()
            }
        };
        let io: Rc<dyn RunIo> = Rc::new(ReadOnly { bdev: bdev.clone(), space: superblock.space });
        let mut runs = Vec::new();
        for handle in &root.runs {
            match Tree::open(io.clone(), options(), std::slice::from_ref(handle)).await {
                Ok(_) => runs.push(handle.clone()),
                Err(error) => {
                    let at = handle.extents.first().map(|extent| extent.offset);
                    damage.push((at, format!("run {} cannot be opened: {}", handle.id, plain(&error))));
                }
            }
        }
        let tree = match Tree::open(io.clone(), options(), &runs).await {
            Ok(tree) => tree,
            Err(error) => {
                damage.push((None, format!("the runs do not fit together: {}", plain(&error))));
                runs.clear();
                Tree::open(io, options(), &[]).await?
            }
        };
        let mut frames = Frames::new(&bdev, &superblock);
        let mut all = Vec::new();
        while let Some(frame) = frames.next().await? {
            all.push(frame);
        }
        let mut offline = Offline {
            bdev,
            places,
            root,
            tree,
            runs,
            log: LogSummary {
                frames: 0,
                records: 0,
                transno: superblock.root.transno,
                stable_transno: superblock.root.transno,
                objects: 0,
                cut: false,
                end: start_cursor(&superblock),
            },
            space_changes: Vec::new(),
            damage,
            superblock,
        };
        offline.replay(&all).await?;
        Ok(offline)
    }

    /// Applies the log. It ends with the first record whose data did not reach the medium: that, and all after it, was never
    /// acknowledged as stable.
    async fn replay(&mut self, frames: &[Frame]) -> Result<(), StoreError> {
        let stable = frames.iter().map(|frame| frame.stable_transno).max().unwrap_or(0);
        self.log.stable_transno = self.log.stable_transno.max(stable);
        for frame in frames {
            self.log.cut = true;
            let Some(records) = records(&frame.payload) else {
                self.damage.push((Some(frame.offset), "a log frame with a right checksum holds no records".into()));
                return Ok(());
            };
            for record in records {
                // The checkpoint may have been made while its last records were still on their way into a frame.
                if record.transno <= self.log.transno {
                    continue;
                }
                if record.transno != self.log.transno + 1 {
                    let (expected, found) = (self.log.transno + 1, record.transno);
                    let what = format!("the log goes from transaction {expected} to {found}");
                    self.damage.push((Some(frame.offset), what));
                    return Ok(());
                }
                if record.transno > stable && !self.data_is_there(&record.items).await? {
                    return Ok(());
                }
                self.log.transno = record.transno;
                self.log.records += 1;
                self.log.objects += i64::from(record.objects);
                for item in &record.items {
                    self.apply(item).await?;
                }
            }
            self.log.cut = false;
            self.log.frames += 1;
            self.log.end = frame.cursor;
        }
        Ok(())
    }

    async fn apply(&mut self, item: &Item<'_>) -> Result<(), StoreError> {
        match item {
            Item::Put(key, value) => {
                let change: Change = ((*key).into(), Some((*value).into()));
                self.tree.apply([change]);
            }
            Item::Delete(key) => self.tree.apply([((*key).into(), None)]),
            Item::DeleteRange(from, to) => {
                let entries = self.tree.scan(Bound::Included(from), Bound::Excluded(to), usize::MAX).await?;
                self.tree.apply(entries.into_iter().map(|(key, _)| (key.into_boxed_slice(), None)));
            }
            Item::Take(extent) => self.space_changes.push((true, *extent)),
            Item::Give(extent) => self.space_changes.push((false, *extent)),
            Item::Data(..) => {}
        }
        Ok(())
    }

    async fn data_is_there(&self, items: &[Item<'_>]) -> Result<bool, StoreError> {
        for item in items {
            if let Item::Data(extent, crc) = item
                && read(&self.bdev, *extent, self.superblock.space).await.is_none_or(|data| crc32c(&data) != *crc)
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// For reading runs beside the tree.
    pub(super) fn run_io(&self) -> Rc<dyn RunIo> {
        Rc::new(ReadOnly { bdev: self.bdev.clone(), space: self.superblock.space })
    }

    /// First block behind the space.
    pub(super) fn blocks_end(&self) -> u64 {
        (self.superblock.space.offset + self.superblock.space.length) / BLOCK_BYTES
    }
}

/// Reads the frames of the log, one after the other.
pub(super) struct Frames<'a> {
    bdev: &'a BdevRef,
    ring: Extent,
    cursor: Cursor,
    first_position: u64,
}

impl<'a> Frames<'a> {
    pub(super) fn new(bdev: &'a BdevRef, superblock: &Superblock) -> Frames<'a> {
        let cursor = start_cursor(superblock);
        Frames { bdev, ring: superblock.log, cursor, first_position: cursor.position }
    }

    /// The next frame; `None` at the end of the log.
    pub(super) async fn next(&mut self) -> Result<Option<Frame>, StoreError> {
        let left = self.ring.length - self.cursor.position % self.ring.length;
        for position in [self.cursor.position, self.cursor.position.saturating_add(left)] {
            // One turn of the ring is all there can be.
            let Some(turned) = position.checked_sub(self.first_position) else { continue };
            if turned >= self.ring.length {
                continue;
            }
            let offset = self.ring.offset + position % self.ring.length;
            let block = self.bdev.read(offset, BLOCK_BYTES as usize).await.map_err(|error| io("read", error))?;
            let Start::Frame(bytes) = log::start(&block, &self.cursor, position, self.ring.length) else { continue };
            if turned.saturating_add(bytes) > self.ring.length {
                continue;
            }
            let frame = self.bdev.read(offset, bytes as usize).await.map_err(|error| io("read", error))?;
            if let Some((payload, stable_transno, cursor)) = log::open(&frame, position) {
                self.cursor = cursor;
                return Ok(Some(Frame { offset, payload: payload.to_vec(), stable_transno, cursor }));
            }
        }
        Ok(None)
    }
}

/// Reads all places of superblocks.
pub(super) async fn read_superblocks(bdev: &BdevRef) -> Result<Vec<Place>, StoreError> {
    let bytes = bdev.info().bytes();
    if bytes < 4 * BLOCK_BYTES {
        let context = format!("bdev \"{}\" has {bytes} bytes: too small for a store", bdev.info().name);
        return Err(wrong(StoreErrorKind::NotAStore, context));
    }
    let mut places = Vec::new();
    for offset in Superblock::all_places(bytes) {
        let block = bdev.read(offset, BLOCK_BYTES as usize).await.map_err(|error| io("read", error))?;
        places.push(Place { offset, found: Superblock::decode(&block) });
    }
    Ok(places)
}

/// The superblock that holds.
pub(super) fn newest(bdev: &BdevRef, places: &[Place]) -> Result<Superblock, StoreError> {
    let name = &bdev.info().name;
    let valid = places.iter().filter_map(|place| match &place.found {
        Found::Valid(superblock) => Some(superblock),
        _ => None,
    });
    if let Some(superblock) = valid.max_by_key(|superblock| superblock.generation) {
        let fits = superblock.device_bytes <= bdev.info().bytes();
        if !fits {
            let (then, now) = (superblock.device_bytes, bdev.info().bytes());
            let context =
                format!("bdev \"{name}\" has {now} bytes, the store on it was made for {then}: is it cut off?");
            return Err(wrong(StoreErrorKind::Corrupt, context));
        }
        return Ok((**superblock).clone());
    }
    for place in places {
        if let Found::Newer { version, unknown_features } = place.found {
            let context = format!(
                "bdev \"{name}\" holds a store of version {version} with unknown features {unknown_features:#x}; use a newer nacre"
            );
            return Err(wrong(StoreErrorKind::NotAStore, context));
        }
    }
    if places.iter().any(|place| matches!(place.found, Found::Damaged)) {
        let context = format!("bdev \"{name}\" held a store, but no superblock of the four is whole");
        return Err(wrong(StoreErrorKind::Corrupt, context));
    }
    Err(wrong(StoreErrorKind::NotAStore, format!("bdev \"{name}\" holds no store; mkfs.nacre makes one")))
}

async fn read_root(bdev: &BdevRef, superblock: &Superblock) -> Result<Root, StoreError> {
    let pointer = &superblock.root;
    if pointer.bytes == 0 {
        return Ok(Root::default());
    }
    let mut bytes = Vec::new();
    for extent in &pointer.extents {
        let Some(piece) = read(bdev, *extent, superblock.space).await else {
            return Err(wrong(StoreErrorKind::Corrupt, "it is not inside the space, or the device fails".into()));
        };
        bytes.extend_from_slice(&piece);
    }
    bytes.truncate(usize::try_from(pointer.bytes).unwrap_or(usize::MAX));
    if bytes.len() as u64 != pointer.bytes || crc32c(&bytes) != pointer.crc {
        return Err(wrong(StoreErrorKind::Corrupt, "checksum does not match".into()));
    }
    Root::decode(&bytes).ok_or_else(|| wrong(StoreErrorKind::Corrupt, "it does not follow the format".into()))
}

/// Bytes of an extent, if it is inside `space`.
async fn read(bdev: &BdevRef, extent: Extent, space: Extent) -> Option<DmaBuf> {
    if !is_inside(extent, space) {
        return None;
    }
    bdev.read(extent.offset, usize::try_from(extent.length).ok()?).await.ok()
}

pub(super) fn is_inside(extent: Extent, space: Extent) -> bool {
    let end = extent.offset.checked_add(extent.length);
    extent.offset >= space.offset && end.is_some_and(|end| end <= space.offset + space.length)
}

fn start_cursor(superblock: &Superblock) -> Cursor {
    let root = &superblock.root;
    Cursor {
        position: root.log_position,
        sequence: root.log_sequence,
        epoch: root.log_epoch,
        previous_crc: root.log_previous_crc,
    }
}

/// The device, for reading runs.
struct ReadOnly {
    bdev: BdevRef,
    space: Extent,
}

impl RunIo for ReadOnly {
    fn allocate(&self, _: u64) -> Fut<'static, Result<Vec<Extent>, StoreError>> {
        async { Err(read_only()) }.boxed_local()
    }

    fn free(&self, _: &[Extent]) {}

    fn read(&self, extent: Extent) -> Fut<'static, Result<DmaBuf, StoreError>> {
        let length = usize::try_from(extent.length).ok().filter(|_| is_inside(extent, self.space));
        let Some(length) = length else {
            let context = format!("byte {} on the device, which a run names, is outside of the space", extent.offset);
            return async { Err(wrong(StoreErrorKind::Corrupt, context)) }.boxed_local();
        };
        let reading = self.bdev.read(extent.offset, length);
        async move { reading.await.map_err(|error| io("read", error)) }.boxed_local()
    }

    fn write(&self, _: u64, _: Vec<Bytes>) -> Fut<'static, Result<(), StoreError>> {
        async { Err(read_only()) }.boxed_local()
    }

    fn flush(&self) -> Fut<'static, Result<(), StoreError>> {
        async { Err(read_only()) }.boxed_local()
    }
}

fn read_only() -> StoreError {
    wrong(StoreErrorKind::ReadOnly, "a store that is only looked at is not written".into())
}

pub(super) fn wrong(kind: StoreErrorKind, context: String) -> StoreError {
    StoreError { kind, op: "check", fid: None, context, source: None }
}

pub(super) fn io(op: &'static str, error: crate::bdev::BdevError) -> StoreError {
    StoreError {
        kind: StoreErrorKind::Io,
        op,
        fid: None,
        context: "the device fails".into(),
        source: Some(Box::new(error)),
    }
}

/// The words of an error without the operation in front.
pub(super) fn plain(error: &StoreError) -> String {
    match &error.source {
        Some(source) => format!("{}: {source}", error.context),
        None => error.context.clone(),
    }
}

fn options() -> TreeOptions {
    TreeOptions { cache_bytes: 16 << 20, ..TreeOptions::default() }
}
