//! Sorted runs on disk: blocks of entries, their index, filters, the footer, and the handle by which a checkpoint names a run.
//!
//! Nothing here does I/O. What is read is checked whole before anything of it is used: a block that parses cannot make a
//! later lookup fail. Every block is named by a [`BlockRef`] that carries its checksum, so a stale or misplaced block is
//! rejected just as a damaged one is: the handle vouches for the footer, the footer for the partitions, they for the data.
//!
//! ```text
//! run (its extents, one after the other)
//! ┌──────┬──────┬─┬──────┬───────────┬──────┬──────┬─┬───────────┬─┬────────┐
//! │ data │ data │…│ data │ partition │ data │ data │…│ partition │…│ footer │   no padding between blocks
//! └──▲───┴──▲───┴─┴──▲───┴──┬────▲───┴──────┴──────┴─┴────▲──────┴─┴───┬────┘
//!    └──────┴────────┴──────┘    └─────────────────────────┴───────────┘
//! block            header (16 bytes) · payload, lz4-compressed or not
//! data payload     entries
//! partition        filter length (4) · filter · entries: last key of a data block → BlockRef
//! footer           FooterRecord (56) · smallest key · entries: last key of a partition → BlockRef
//! entries          entry… · offsets of the restarts (4 each) · number of restarts (4)
//! entry            shared key bytes · own key bytes · 0 (deleted) or value bytes + 1   (three LEB128)
//!                  · own key bytes · value
//! ```

use std::rc::Rc;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub use super::block::{
    BLOCK_HEADER_BYTES, BLOCK_STORED_BYTES_MAX, BlockKind, BlockRef, Cursor, Damage, Entries, EntriesWriter,
    KEY_BYTES_MAX, VALUE_BYTES_MAX, crc32c, decode_block, encode_block,
};
pub use super::filter::Filter;

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
            let aligned =
                extent.offset.is_multiple_of(RUN_ALIGN_BYTES) && extent.length.is_multiple_of(RUN_ALIGN_BYTES);
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

/// Filter and index of some data blocks.
pub struct Partition {
    /// Which keys and prefixes may be here.
    pub filter: Filter,
    /// Last key of each data block → where it is.
    pub index: Rc<Entries>,
}

impl Partition {
    /// The payload of a partition block.
    pub fn encode(filter: &Filter, index: &mut EntriesWriter) -> Vec<u8> {
        let filter = filter.as_bytes();
        let mut payload = Vec::with_capacity(4 + filter.len() + index.bytes());
        payload.extend_from_slice(&(filter.len() as u32).to_le_bytes());
        payload.extend_from_slice(filter);
        index.finish(&mut payload);
        payload
    }

    /// Checks a payload.
    pub fn parse(payload: Vec<u8>) -> Result<Partition, Damage> {
        let (length, rest) = payload.split_first_chunk::<4>().ok_or(Damage("partition shorter than its header"))?;
        let length = u32::from_le_bytes(*length) as usize;
        let filter = rest.get(..length).and_then(Filter::from_bytes).ok_or(Damage("filter length out of bounds"))?;
        let index = Rc::new(Entries::parse(payload, 4 + length)?);
        check_index(&index)?;
        Ok(Partition { filter, index })
    }

    /// Memory taken.
    pub fn memory_bytes(&self) -> usize {
        self.filter.as_bytes().len() + self.index.memory_bytes()
    }
}

/// What ends a run: who it is, and where its partitions are.
pub struct Footer {
    /// As in the handle.
    pub id: u64,
    /// As in the handle.
    pub sequence_first: u64,
    /// As in the handle.
    pub sequence_last: u64,
    /// As in the handle.
    pub keys: u64,
    /// As in the handle.
    pub tombstones: u64,
    /// Leading bytes of keys that are in the filters too.
    pub filter_prefix_bytes: usize,
    /// Smallest key.
    pub smallest: Box<[u8]>,
    /// Largest key.
    pub largest: Box<[u8]>,
    /// Last key of each partition → where it is.
    pub partitions: Rc<Entries>,
}

/// Front of a footer's payload.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct FooterRecord {
    magic: [u8; 8],
    version: U16,
    smallest_bytes: U16,
    filter_prefix_bytes: U32,
    id: U64,
    sequence_first: U64,
    sequence_last: U64,
    keys: U64,
    tombstones: U64,
}
const _: () = assert!(size_of::<FooterRecord>() == 56);

impl Footer {
    /// The payload of the footer of the run of this handle (whose footer fields are not looked at).
    pub fn encode(
        handle: &RunHandle,
        filter_prefix_bytes: usize,
        smallest: &[u8],
        index: &mut EntriesWriter,
    ) -> Vec<u8> {
        let record = FooterRecord {
            magic: FOOTER_MAGIC,
            version: RUN_VERSION.into(),
            smallest_bytes: (smallest.len() as u16).into(),
            filter_prefix_bytes: (filter_prefix_bytes as u32).into(),
            id: handle.id.into(),
            sequence_first: handle.sequence_first.into(),
            sequence_last: handle.sequence_last.into(),
            keys: handle.keys.into(),
            tombstones: handle.tombstones.into(),
        };
        let mut payload = record.as_bytes().to_vec();
        payload.extend_from_slice(smallest);
        index.finish(&mut payload);
        payload
    }

    /// Checks a payload against the handle that led to it.
    pub fn parse(payload: Vec<u8>, handle: &RunHandle) -> Result<Footer, Damage> {
        let (record, rest) = FooterRecord::read_from_prefix(&payload).map_err(|_| Damage("footer too short"))?;
        if record.magic != FOOTER_MAGIC {
            return Err(Damage("no run footer"));
        }
        if record.version.get() != RUN_VERSION {
            return Err(Damage("run format of another version"));
        }
        let same = record.id.get() == handle.id
            && record.sequence_first.get() == handle.sequence_first
            && record.sequence_last.get() == handle.sequence_last
            && record.keys.get() == handle.keys
            && record.tombstones.get() == handle.tombstones;
        if !same {
            return Err(Damage("footer of another run"));
        }
        let smallest_bytes = usize::from(record.smallest_bytes.get());
        let smallest: Box<[u8]> = rest.get(..smallest_bytes).ok_or(Damage("footer too short"))?.into();
        let partitions = Rc::new(Entries::parse(payload, size_of::<FooterRecord>() + smallest_bytes)?);
        let largest = check_index(&partitions)?;
        if *smallest > *largest {
            return Err(Damage("smallest key above the largest"));
        }
        let filter_prefix_bytes = record.filter_prefix_bytes.get() as usize;
        Ok(Footer {
            id: handle.id,
            sequence_first: handle.sequence_first,
            sequence_last: handle.sequence_last,
            keys: handle.keys,
            tombstones: handle.tombstones,
            filter_prefix_bytes,
            smallest,
            largest,
            partitions,
        })
    }
}

/// An index names blocks and nothing else. Returns its last key.
fn check_index(index: &Rc<Entries>) -> Result<Box<[u8]>, Damage> {
    let mut cursor = Cursor::first(Rc::clone(index));
    while cursor.valid() {
        let fits = cursor.block().is_some_and(|block| {
            let bytes = block.bytes as usize;
            (BLOCK_HEADER_BYTES..=BLOCK_STORED_BYTES_MAX).contains(&bytes) && block.offset < 1 << 62
        });
        if !fits {
            return Err(Damage("an index entry names no block"));
        }
        cursor.advance();
    }
    Ok(cursor.key().into())
}

/// Most pieces that a run may be in.
pub const RUN_EXTENTS_MAX: usize = u16::MAX as usize;
/// Version of the format of runs.
pub const RUN_VERSION: u16 = 1;
const FOOTER_MAGIC: [u8; 8] = *b"NACRERUN";

#[cfg(test)]
mod tests {
    use super::*;

    fn handle() -> RunHandle {
        RunHandle {
            id: 7,
            sequence_first: 3,
            sequence_last: 4,
            keys: 2,
            tombstones: 1,
            bytes: 4500,
            footer_offset: 4400,
            footer_crc: 0x1122_3344,
            level: 1,
            extents: vec![Extent { offset: 0x10000, length: 0x1000 }, Extent { offset: 0x30000, length: 0x1000 }],
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn handle_bytes_are_pinned() {
        let mut bytes = Vec::new();
        handle().encode(&mut bytes);
        assert_eq!(hex(&bytes), GOLDEN_HANDLE);
        let mut input = bytes.as_slice();
        assert_eq!(RunHandle::decode(&mut input), Some(handle()));
        assert!(input.is_empty());
        for length in 0..bytes.len() {
            assert_eq!(RunHandle::decode(&mut &bytes[..length]), None);
        }
    }

    #[test]
    fn footer_bytes_are_pinned() {
        let mut index = EntriesWriter::default();
        index.add_ref(b"z", BlockRef { offset: 4096, bytes: 300, crc: 9 });
        let payload = Footer::encode(&handle(), 17, b"a", &mut index);
        assert_eq!(hex(&payload), GOLDEN_FOOTER);
        let footer = Footer::parse(payload.clone(), &handle()).ok().unwrap();
        assert_eq!((&*footer.smallest, &*footer.largest, footer.filter_prefix_bytes), (&b"a"[..], &b"z"[..], 17));
        let other = RunHandle { id: 8, ..handle() };
        assert_eq!(Footer::parse(payload, &other).err(), Some(Damage("footer of another run")));
    }

    #[test]
    fn partition_bytes_are_pinned() {
        let mut index = EntriesWriter::default();
        index.add_ref(b"k", BlockRef { offset: 0, bytes: 20, crc: 1 });
        let payload = Partition::encode(&Filter::build(&[]), &mut index);
        assert_eq!(hex(&payload), GOLDEN_PARTITION);
        assert!(Partition::parse(payload).is_ok());
    }

    const GOLDEN_HANDLE: &str = concat!(
        "070000000000000003000000000000000400000000000000020000000000000001000000000000009411000000000000",
        "301100000000000044332211010002000000010000000000001000000000000000000300000000000010000000000000",
    );
    const GOLDEN_FOOTER: &str = concat!(
        "4e4143524552554e01000100110000000700000000000000030000000000000004000000000000000200000000000000",
        "0100000000000000610001117a00100000000000002c010000090000000000000001000000",
    );
    const GOLDEN_PARTITION: &str = concat!(
        "2000000000000000000000000000000000000000000000000000000000000000000000000001116b0000000000000000",
        "14000000010000000000000001000000",
    );
}
