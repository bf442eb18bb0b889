//! `inspect`: what is on a device, for people and for `--json`.

use std::fmt;
use std::ops::Bound;

use nacre_wire::{Attr, Fid};
use serde::Serialize;

use super::fsck::Hex;
use super::offline::{Frames, Offline, newest, plain, read_superblocks};
use crate::bdev::BdevRef;
use crate::format::log::{Item, records};
use crate::format::object::{Kind, PREFIX_BYTES, decode_attr, decode_mapping, key, key_after, split_key};
use crate::format::superblock::{BLOCK_BYTES, Found};
use crate::store::StoreError;

/// What to show beside superblocks, checkpoint, runs and the sums of the log.
#[derive(Clone, Debug)]
pub struct Inspect {
    /// Records of the log, at most; 0: none.
    pub records_max: usize,
    /// Objects, at most; 0: none.
    pub objects_max: usize,
    /// First object to list.
    pub objects_from: Option<Fid>,
    /// One object with everything that belongs to it.
    pub object: Option<Fid>,
    /// Extents, extended attributes and keys of that object, at most of each.
    pub entries_max: usize,
}

impl Default for Inspect {
    fn default() -> Inspect {
        Inspect { records_max: 0, objects_max: 20, objects_from: None, object: None, entries_max: 1000 }
    }
}

/// What is on a device.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// Name of the device.
    pub bdev: String,
    /// Its size, bytes.
    pub device_bytes: u64,
    /// The four places of superblocks.
    pub superblocks: Vec<SuperblockView>,
    /// The checkpoint.
    pub root: RootView,
    /// The log behind it.
    pub log: LogView,
    /// The runs of the index, newest first.
    pub runs: Vec<RunView>,
    /// Some objects.
    pub objects: Vec<ObjectView>,
    /// The object that was asked for.
    pub object: Option<ObjectView>,
    /// What could not be read.
    pub damage: Vec<String>,
}

/// A superblock.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SuperblockView {
    /// On the device, bytes.
    pub offset: u64,
    /// `none`, `valid`, `newer` or `damaged`.
    pub state: &'static str,
    /// Counts superblocks written.
    pub generation: u64,
    /// Of the store.
    pub uuid: String,
    /// Whether the store was closed.
    pub clean: bool,
    /// Size of the device when it was formatted, bytes.
    pub device_bytes: u64,
    /// Log ring, bytes on the device.
    pub log_offset: u64,
    /// Its length, bytes.
    pub log_bytes: u64,
    /// Space, bytes on the device.
    pub space_offset: u64,
    /// Its length, bytes.
    pub space_bytes: u64,
    /// What mkfs wrote, as text; what is not text is hexadecimal.
    pub label: String,
}

/// A checkpoint.
#[derive(Clone, Debug, Serialize)]
pub struct RootView {
    /// Last transaction in it.
    pub transno: u64,
    /// Objects.
    pub objects: u64,
    /// Blocks taken by data.
    pub taken_blocks: u64,
    /// Its length, bytes.
    pub bytes: u64,
    /// Where it is: offset and length on the device.
    pub extents: Vec<(u64, u64)>,
}

/// The log from the checkpoint on.
#[derive(Clone, Debug, Serialize)]
pub struct LogView {
    /// Position of the first frame, counted from format.
    pub first_position: u64,
    /// Position behind the last.
    pub end_position: u64,
    /// Sequence of the next frame.
    pub next_sequence: u64,
    /// Epoch of the last frame.
    pub epoch: u64,
    /// Frames.
    pub frames: u64,
    /// Records.
    pub frame_records: u64,
    /// Last transaction.
    pub transno: u64,
    /// Last transaction that the log knows to be stable.
    pub stable_transno: u64,
    /// Records, as far as they were asked for.
    pub records: Vec<RecordView>,
}

/// A record of the log.
#[derive(Clone, Debug, Serialize)]
pub struct RecordView {
    /// Its frame, bytes on the device.
    pub frame_offset: u64,
    /// Transaction.
    pub transno: u64,
    /// Change of the number of objects.
    pub objects: i32,
    /// What it does, in words.
    pub items: Vec<String>,
}

/// A run of the index.
#[derive(Clone, Debug, Serialize)]
pub struct RunView {
    /// Its number.
    pub id: u64,
    /// How often its contents were merged.
    pub level: u8,
    /// First flush in it.
    pub sequence_first: u64,
    /// Last flush in it.
    pub sequence_last: u64,
    /// Entries.
    pub keys: u64,
    /// Those of them that delete.
    pub tombstones: u64,
    /// Length, bytes.
    pub bytes: u64,
    /// Where it is: offset and length on the device.
    pub extents: Vec<(u64, u64)>,
}

/// An object.
#[derive(Clone, Debug, Serialize)]
pub struct ObjectView {
    /// Its name.
    pub fid: String,
    /// Attributes; `None`: it has none (or they mean nothing).
    pub attr: Option<Attr>,
    /// Extended attributes: name and value.
    pub xattrs: Vec<KeyView>,
    /// Extents.
    pub extents: Vec<ExtentView>,
    /// Keys of an index object.
    pub keys: Vec<KeyView>,
}

/// A name or key with its value, as text; what is not text is hexadecimal.
#[derive(Clone, Debug, Serialize)]
pub struct KeyView {
    /// Name or key.
    pub key: String,
    /// Value.
    pub value: String,
}

/// An extent, bytes.
#[derive(Clone, Debug, Serialize)]
pub struct ExtentView {
    /// In the object.
    pub logical: u64,
    /// On the device.
    pub physical: u64,
    /// Length.
    pub length: u64,
    /// Reserved, reads zeros.
    pub unwritten: bool,
    /// Other objects may have it too.
    pub shared: bool,
}

/// Looks at a device. Fails when there is no store to look at; what is damaged in a store is told in the answer.
pub async fn inspect(bdev: &BdevRef, what: &Inspect) -> Result<Inspection, StoreError> {
    let places = read_superblocks(bdev).await?;
    newest(bdev, &places)?;
    let superblocks = places.iter().map(|place| superblock_view(place.offset, &place.found)).collect();
    let offline = Offline::open(bdev.clone()).await?;
    let root = &offline.superblock.root;
    let end = offline.log.end;
    let mut inspection = Inspection {
        bdev: bdev.info().name.clone(),
        device_bytes: bdev.info().bytes(),
        superblocks,
        root: RootView {
            transno: root.transno,
            objects: offline.root.objects,
            taken_blocks: offline.root.taken_blocks,
            bytes: root.bytes,
            extents: root.extents.iter().map(|extent| (extent.offset, extent.length)).collect(),
        },
        log: LogView {
            first_position: root.log_position,
            end_position: end.position,
            next_sequence: end.sequence,
            epoch: end.epoch,
            frames: offline.log.frames,
            frame_records: offline.log.records,
            transno: offline.log.transno,
            stable_transno: offline.log.stable_transno,
            records: Vec::new(),
        },
        runs: offline.root.runs.iter().map(run_view).collect(),
        objects: Vec::new(),
        object: None,
        damage: offline.damage.iter().map(|(at, what)| with_place(*at, what)).collect(),
    };
    if what.records_max > 0 {
        inspection.log.records = log_records(&offline, what.records_max).await?;
    }
    let first = what.objects_from.unwrap_or(Fid::NONE);
    match objects(&offline, first, what.objects_max).await {
        Ok(objects) => inspection.objects = objects,
        Err(error) => inspection.damage.push(plain(&error)),
    }
    if let Some(fid) = what.object {
        match object(&offline, fid, what.entries_max).await {
            Ok(object) => inspection.object = Some(object),
            Err(error) => inspection.damage.push(plain(&error)),
        }
    }
    Ok(inspection)
}

fn with_place(at: Option<u64>, what: &str) -> String {
    at.map_or_else(|| what.to_owned(), |at| format!("{what} (device byte {at})"))
}

fn superblock_view(offset: u64, found: &Found) -> SuperblockView {
    match found {
        Found::Nothing => SuperblockView { offset, state: "none", ..SuperblockView::default() },
        Found::Damaged => SuperblockView { offset, state: "damaged", ..SuperblockView::default() },
        Found::Newer { .. } => SuperblockView { offset, state: "newer", ..SuperblockView::default() },
        Found::Valid(superblock) => SuperblockView {
            offset,
            state: "valid",
            generation: superblock.generation,
            uuid: superblock.uuid.to_string(),
            clean: superblock.clean,
            device_bytes: superblock.device_bytes,
            log_offset: superblock.log.offset,
            log_bytes: superblock.log.length,
            space_offset: superblock.space.offset,
            space_bytes: superblock.space.length,
            label: text(&superblock.label),
        },
    }
}

fn run_view(handle: &crate::format::run::RunHandle) -> RunView {
    RunView {
        id: handle.id,
        level: handle.level,
        sequence_first: handle.sequence_first,
        sequence_last: handle.sequence_last,
        keys: handle.keys,
        tombstones: handle.tombstones,
        bytes: handle.bytes,
        extents: handle.extents.iter().map(|extent| (extent.offset, extent.length)).collect(),
    }
}

async fn log_records(offline: &Offline, records_max: usize) -> Result<Vec<RecordView>, StoreError> {
    let mut views = Vec::new();
    let mut frames = Frames::new(&offline.bdev, &offline.superblock);
    while let Some(frame) = frames.next().await? {
        for record in records(&frame.payload).unwrap_or_default() {
            if views.len() == records_max {
                return Ok(views);
            }
            views.push(RecordView {
                frame_offset: frame.offset,
                transno: record.transno,
                objects: record.objects,
                items: record.items.iter().map(item_text).collect(),
            });
        }
    }
    Ok(views)
}

fn item_text(item: &Item<'_>) -> String {
    match item {
        Item::Put(key, value) => format!("put {} = {} bytes", key_text(key), value.len()),
        Item::Delete(key) => format!("delete {}", key_text(key)),
        Item::DeleteRange(from, to) => format!("delete from {} to before {}", key_text(from), key_text(to)),
        Item::Take(extent) => format!("take {} bytes at {}", extent.length, extent.offset),
        Item::Give(extent) => format!("give {} bytes at {}", extent.length, extent.offset),
        Item::Data(extent, crc) => format!("data {} bytes at {}, checksum {crc:#010x}", extent.length, extent.offset),
    }
}

fn key_text(key: &[u8]) -> String {
    let kind = key.first().copied().unwrap_or_default();
    let name = [Kind::Attr, Kind::Xattr, Kind::Extent, Kind::Index, Kind::Doomed]
        .into_iter()
        .find(|known| *known as u8 == kind);
    match (name, split_key(key)) {
        (Some(name @ Kind::Extent), Some((fid, rest))) if rest.len() == 8 => {
            let block = rest.iter().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
            format!("{name:?} {fid} at byte {}", u128::from(block) * u128::from(BLOCK_BYTES))
        }
        (Some(name), Some((fid, []))) => format!("{name:?} {fid}"),
        (Some(name), Some((fid, rest))) => format!("{name:?} {fid} {}", text(rest)),
        _ => Hex(key).to_string(),
    }
}

async fn objects(offline: &Offline, first: Fid, objects_max: usize) -> Result<Vec<ObjectView>, StoreError> {
    let (from, to) = (key(Kind::Attr, first, &[]), [Kind::Attr as u8 + 1]);
    let entries = offline.tree.scan(Bound::Included(&from), Bound::Excluded(&to), objects_max).await?;
    let object = |(key, value): &(Vec<u8>, Vec<u8>)| {
        let (fid, _) = split_key(key)?;
        Some(ObjectView {
            fid: fid.to_string(),
            attr: decode_attr(value),
            xattrs: Vec::new(),
            extents: Vec::new(),
            keys: Vec::new(),
        })
    };
    Ok(entries.iter().filter_map(object).collect())
}

async fn object(offline: &Offline, fid: Fid, entries_max: usize) -> Result<ObjectView, StoreError> {
    let attr = offline.tree.get(&key(Kind::Attr, fid, &[])).await?;
    let entries = async |kind| {
        let (from, to) = (key(kind, fid, &[]), key_after(kind, fid));
        offline.tree.scan(Bound::Included(&from), Bound::Excluded(&to), entries_max).await
    };
    let view = |(key, value): &(Vec<u8>, Vec<u8>)| KeyView { key: text(&key[PREFIX_BYTES..]), value: text(value) };
    let xattrs = entries(Kind::Xattr).await?.iter().map(view).collect();
    let keys = entries(Kind::Index).await?.iter().map(view).collect();
    let extent = |(key, value): &(Vec<u8>, Vec<u8>)| {
        let block = u64::from_be_bytes(key[PREFIX_BYTES..].try_into().ok()?);
        let mapping = decode_mapping(value, u64::MAX)?;
        Some(ExtentView {
            logical: block.checked_mul(BLOCK_BYTES)?,
            physical: mapping.physical.checked_mul(BLOCK_BYTES)?,
            length: mapping.blocks.checked_mul(BLOCK_BYTES)?,
            unwritten: mapping.unwritten,
            shared: mapping.shared,
        })
    };
    let extents = entries(Kind::Extent).await?.iter().filter_map(extent).collect();
    let attr = attr.as_deref().and_then(decode_attr);
    Ok(ObjectView { fid: fid.to_string(), attr, xattrs, extents, keys })
}

/// Printable text as it is, anything else in hexadecimal.
fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if text.chars().all(|char| !char.is_control()) => text.to_owned(),
        _ => format!("0x{}", Hex(bytes)),
    }
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {} bytes", self.bdev, self.device_bytes)?;
        for superblock in &self.superblocks {
            write!(f, "superblock at byte {}: {}", superblock.offset, superblock.state)?;
            if superblock.state == "valid" {
                let closed = if superblock.clean { "closed" } else { "not closed" };
                write!(f, ", generation {}, {closed}, uuid {}", superblock.generation, superblock.uuid)?;
                write!(f, ", log {} bytes at {}", superblock.log_bytes, superblock.log_offset)?;
                write!(f, ", space {} bytes at {}", superblock.space_bytes, superblock.space_offset)?;
                write!(f, ", label \"{}\"", superblock.label)?;
            }
            writeln!(f)?;
        }
        let root = &self.root;
        let (transno, bytes) = (root.transno, root.bytes);
        writeln!(
            f,
            "checkpoint: transaction {transno}, {} objects, {} blocks, {bytes} bytes{}",
            root.objects,
            root.taken_blocks,
            Places(&root.extents)
        )?;
        let log = &self.log;
        writeln!(
            f,
            "log: position {} to {}, epoch {}, {} frames, {} records, transaction {}, stable {}",
            log.first_position,
            log.end_position,
            log.epoch,
            log.frames,
            log.frame_records,
            log.transno,
            log.stable_transno
        )?;
        for record in &log.records {
            writeln!(
                f,
                "  transaction {} (frame at byte {}), objects {:+}",
                record.transno, record.frame_offset, record.objects
            )?;
            record.items.iter().try_for_each(|item| writeln!(f, "    {item}"))?;
        }
        for run in &self.runs {
            write!(f, "run {}: level {}, flushes {} to {}", run.id, run.level, run.sequence_first, run.sequence_last)?;
            writeln!(
                f,
                ", {} keys, {} tombstones, {} bytes{}",
                run.keys,
                run.tombstones,
                run.bytes,
                Places(&run.extents)
            )?;
        }
        self.objects.iter().try_for_each(|object| write!(f, "{object}"))?;
        if let Some(object) = &self.object {
            write!(f, "{object}")?;
        }
        self.damage.iter().try_for_each(|damage| writeln!(f, "damage: {damage}"))
    }
}

impl fmt::Display for ObjectView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.attr {
            Some(attr) => writeln!(
                f,
                "object {}: mode {:o}, {}:{}, {} links, {} bytes, {} allocated, version {}",
                self.fid, attr.mode, attr.uid, attr.gid, attr.nlink, attr.size, attr.allocated_bytes, attr.version
            )?,
            None => writeln!(f, "object {}: no attributes", self.fid)?,
        }
        for xattr in &self.xattrs {
            writeln!(f, "  xattr {} = {}", xattr.key, xattr.value)?;
        }
        for extent in &self.extents {
            let unwritten = if extent.unwritten { ", unwritten" } else { "" };
            let shared = if extent.shared { ", shared" } else { "" };
            let (logical, length, physical) = (extent.logical, extent.length, extent.physical);
            writeln!(f, "  extent {logical}+{length} at byte {physical}{unwritten}{shared}")?;
        }
        self.keys.iter().try_for_each(|key| writeln!(f, "  key {} = {}", key.key, key.value))
    }
}

/// ", at OFFSET+LENGTH OFFSET+LENGTH".
struct Places<'a>(&'a [(u64, u64)]);

impl fmt::Display for Places<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (offset, length)) in self.0.iter().enumerate() {
            write!(f, "{}{offset}+{length}", if index == 0 { ", at " } else { " " })?;
        }
        Ok(())
    }
}
