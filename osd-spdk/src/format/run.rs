//! Sorted runs on disk.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A piece of the device, bytes. Multiples of [`RUN_ALIGN_BYTES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// On the device.
    pub offset: u64,
    /// Length.
    pub length: u64,
}

/// Alignment of everything a run asks of the device: extents, reads and writes.
pub const RUN_ALIGN_BYTES: u64 = 4096;

/// What a checkpoint keeps of a run: where it is and what its footer must look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunHandle {
    /// Unique in the tree, never reused while the run is referenced.
    pub id: u64,
    /// First flush whose contents are in it.
    pub sequence_first: u64,
    /// Last flush whose contents are in it; of two runs the one with the larger number is newer.
    pub sequence_last: u64,
    /// Entries, tombstones included.
    pub keys: u64,
    /// Tombstones.
    pub tombstones: u64,
    /// Bytes used from the start of the first extent; the extents together may be up to a page longer.
    pub bytes: u64,
    /// Where the footer starts, counted over the extents.
    pub footer_offset: u64,
    /// CRC32C of the footer's block.
    pub footer_crc: u32,
    /// How often its contents were merged.
    pub level: u8,
    /// Where it is, in order.
    pub extents: Vec<Extent>,
}

impl RunHandle {
    /// Appends the record that [`RunHandle::decode`] reads.
    ///
    /// # Panics
    /// With more than [`RUN_EXTENTS_MAX`] extents, which no run gets.
    pub fn encode(&self, out: &mut Vec<u8>) {
        assert!(self.extents.len() <= RUN_EXTENTS_MAX, "run {} has {} extents", self.id, self.extents.len());
        let record = HandleRecord {
            id: self.id.into(),
            sequence_first: self.sequence_first.into(),
            sequence_last: self.sequence_last.into(),
            keys: self.keys.into(),
            tombstones: self.tombstones.into(),
            bytes: self.bytes.into(),
            footer_offset: self.footer_offset.into(),
            footer_crc: self.footer_crc.into(),
            level: self.level,
            reserved: 0,
            extents: (self.extents.len() as u16).into(),
        };
        out.extend_from_slice(record.as_bytes());
        for extent in &self.extents {
            out.extend_from_slice(
                ExtentRecord { offset: extent.offset.into(), length: extent.length.into() }.as_bytes(),
            );
        }
    }

    /// Reads a record off the front of `input`, which moves on. `None`: that is no handle.
    pub fn decode(input: &mut &[u8]) -> Option<RunHandle> {
        let (record, rest) = HandleRecord::read_from_prefix(input).ok()?;
        let count = usize::from(record.extents.get());
        let (extents, rest) = <[ExtentRecord]>::ref_from_prefix_with_elems(rest, count).ok()?;
        let extents: Vec<Extent> =
            extents.iter().map(|extent| Extent { offset: extent.offset.get(), length: extent.length.get() }).collect();
        let handle = RunHandle {
            id: record.id.get(),
            sequence_first: record.sequence_first.get(),
            sequence_last: record.sequence_last.get(),
            keys: record.keys.get(),
            tombstones: record.tombstones.get(),
            bytes: record.bytes.get(),
            footer_offset: record.footer_offset.get(),
            footer_crc: record.footer_crc.get(),
            level: record.level,
            extents,
        };
        let mut room = 0u64;
        for extent in &handle.extents {
            let aligned = extent.offset % RUN_ALIGN_BYTES == 0 && extent.length % RUN_ALIGN_BYTES == 0;
            if !aligned || extent.length == 0 || extent.offset.checked_add(extent.length).is_none() {
                return None;
            }
            room = room.checked_add(extent.length)?;
        }
        let footer_fits =
            handle.footer_offset < handle.bytes && handle.bytes - handle.footer_offset <= BLOCK_STORED_BYTES_MAX as u64;
        let sensible = record.reserved == 0
            && handle.sequence_first <= handle.sequence_last
            && handle.tombstones <= handle.keys
            && handle.bytes <= room
            && footer_fits;
        *input = rest;
        sensible.then_some(handle)
    }
}

/// A [`RunHandle`] in a checkpoint; as many [`ExtentRecord`]s as it says follow.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct HandleRecord {
    id: U64,
    sequence_first: U64,
    sequence_last: U64,
    keys: U64,
    tombstones: U64,
    bytes: U64,
    footer_offset: U64,
    footer_crc: U32,
    level: u8,
    reserved: u8,
    extents: U16,
}
const _: () = assert!(size_of::<HandleRecord>() == 64);

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ExtentRecord {
    offset: U64,
    length: U64,
}
const _: () = assert!(size_of::<ExtentRecord>() == 16);

/// Most pieces that a run may be in.
pub const RUN_EXTENTS_MAX: usize = u16::MAX as usize;
/// Longest block on the disk, header included. The footer of the largest runs is the longest.
pub const BLOCK_STORED_BYTES_MAX: usize = 64 << 20;
