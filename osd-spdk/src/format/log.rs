//! The log: frames of records in a ring.
//!
//! ```text
//! frame, at a 4 KiB boundary                            record
//! [header 64 B][record][record]...[zeros to 4 KiB]      [length u32][objects i32][transno u64][item]...
//! ```
//!
//! A frame never wraps: one that does not fit before the end of the ring starts at its beginning. A reader at position
//! `p` therefore looks at `p` and then at the next beginning of the ring. A frame belongs to the log when its checksum,
//! position and sequence are the expected ones, its epoch is not smaller than its predecessor's, and `previous_crc` is
//! the checksum of its predecessor: an old frame that happens to lie there has another one.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::run::Extent;
use super::superblock::BLOCK_BYTES;
use super::{get_varint, put_varint};

/// Longest frame, bytes. A record is in one frame.
pub const FRAME_BYTES_MAX: u64 = 256 << 20;
/// Size of a frame's header.
pub const HEADER_BYTES: usize = size_of::<Header>();

const MAGIC: u32 = 0x4c43_614e; // "NaCL"

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: U32,
    /// CRC32C of everything after this field, `payload_bytes` included.
    crc: U32,
    previous_crc: U32,
    payload_bytes: U32,
    position: U64,
    sequence: U64,
    epoch: U64,
    /// When this frame was made, everything up to this transaction was on stable media.
    stable_transno: U64,
    reserved: [u8; 16],
}
const _: () = assert!(size_of::<Header>() == 64);

/// What identifies the next frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Bytes since format.
    pub position: u64,
    /// Frames since format.
    pub sequence: u64,
    /// Of the frames before; a frame may have a larger one.
    pub epoch: u64,
    /// Checksum of the frame before.
    pub previous_crc: u32,
}

impl Cursor {
    /// Where a frame of `bytes` goes in a ring.
    pub fn place(&self, bytes: u64, ring_bytes: u64) -> u64 {
        let left = ring_bytes - self.position % ring_bytes;
        if bytes <= left { self.position } else { self.position + left }
    }
}

/// Makes a frame of `payload`, which has [`HEADER_BYTES`] free bytes in front, at the cursor, and moves the cursor behind it.
/// The position is where the frame goes, from [`Cursor::place`].
pub fn seal(frame: &mut Vec<u8>, cursor: &mut Cursor, position: u64, stable_transno: u64) {
    let payload_bytes = frame.len() - HEADER_BYTES;
    let mut header = Header {
        magic: MAGIC.into(),
        crc: 0.into(),
        previous_crc: cursor.previous_crc.into(),
        payload_bytes: (payload_bytes as u32).into(),
        position: position.into(),
        sequence: cursor.sequence.into(),
        epoch: cursor.epoch.into(),
        stable_transno: stable_transno.into(),
        reserved: [0; 16],
    };
    frame[..HEADER_BYTES].copy_from_slice(header.as_bytes());
    let crc = crc_fast::crc32_iscsi(&frame[8..]);
    header.crc = crc.into();
    frame[..HEADER_BYTES].copy_from_slice(header.as_bytes());
    frame.resize(frame.len().next_multiple_of(BLOCK_BYTES as usize), 0);
    *cursor = Cursor {
        position: position + frame.len() as u64,
        sequence: cursor.sequence + 1,
        epoch: cursor.epoch,
        previous_crc: crc,
    };
}

/// What a block at a possible start of a frame says.
#[derive(Debug, PartialEq, Eq)]
pub enum Start {
    /// Not the next frame.
    None,
    /// It may be; so many bytes, whole blocks, are needed to tell.
    Frame(u64),
}

/// Looks at the first block of what may be the frame at `position`.
pub fn start(block: &[u8], cursor: &Cursor, position: u64, ring_bytes: u64) -> Start {
    let Ok((header, _)) = Header::ref_from_prefix(block) else { return Start::None };
    let bytes = (HEADER_BYTES as u64 + u64::from(header.payload_bytes.get())).next_multiple_of(BLOCK_BYTES);
    let expected = header.magic.get() == MAGIC
        && header.position.get() == position
        && header.sequence.get() == cursor.sequence
        && header.previous_crc.get() == cursor.previous_crc
        && header.epoch.get() >= cursor.epoch
        && bytes <= ring_bytes - position % ring_bytes
        && bytes <= FRAME_BYTES_MAX;
    if expected { Start::Frame(bytes) } else { Start::None }
}

/// Opens a whole frame: its payload and stable transaction, and the cursor behind it. `None`: its checksum is wrong.
pub fn open(frame: &[u8], position: u64) -> Option<(&[u8], u64, Cursor)> {
    let (header, _) = Header::ref_from_prefix(frame).ok()?;
    let end = HEADER_BYTES.checked_add(header.payload_bytes.get() as usize)?;
    let checked = frame.get(8..end)?;
    if crc_fast::crc32_iscsi(checked) != header.crc.get() {
        return None;
    }
    let cursor = Cursor {
        position: position + frame.len() as u64,
        sequence: header.sequence.get() + 1,
        epoch: header.epoch.get(),
        previous_crc: header.crc.get(),
    };
    Some((&frame[HEADER_BYTES..end], header.stable_transno.get(), cursor))
}

/// One thing that a transaction does to the disk. Extents are bytes on the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// Sets an index key.
    Put(&'a [u8], &'a [u8]),
    /// Removes an index key.
    Delete(&'a [u8]),
    /// Removes all index keys from the first on, up to before the second. Comes before all `Put`s of its record.
    DeleteRange(&'a [u8], &'a [u8]),
    /// Space is taken.
    Take(Extent),
    /// Space is given back. Comes after all `Take`s.
    Give(Extent),
    /// What was written to fresh space, with its CRC32C. Replay checks it where it may have been lost: data and log reach
    /// the medium in any order.
    Data(Extent, u32),
}

/// Writes records.
pub struct RecordWriter<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
}

impl<'a> RecordWriter<'a> {
    /// Begins a record at the end of `out`; `objects` is by how many objects there are more (or fewer).
    pub fn new(out: &'a mut Vec<u8>, transno: u64, objects: i32) -> RecordWriter<'a> {
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&objects.to_le_bytes());
        out.extend_from_slice(&transno.to_le_bytes());
        RecordWriter { out, start }
    }

    /// Adds an item.
    pub fn push(&mut self, item: Item<'_>) {
        let out = &mut *self.out;
        match item {
            Item::Put(key, value) => {
                out.push(TAG_PUT);
                put_varint(out, key.len() as u64);
                put_varint(out, value.len() as u64);
                out.extend_from_slice(key);
                out.extend_from_slice(value);
            }
            Item::Delete(key) => {
                out.push(TAG_DELETE);
                put_varint(out, key.len() as u64);
                out.extend_from_slice(key);
            }
            Item::DeleteRange(from, to) => {
                out.push(TAG_DELETE_RANGE);
                put_varint(out, from.len() as u64);
                put_varint(out, to.len() as u64);
                out.extend_from_slice(from);
                out.extend_from_slice(to);
            }
            Item::Take(extent) => put_extent(out, TAG_TAKE, extent),
            Item::Give(extent) => put_extent(out, TAG_GIVE, extent),
            Item::Data(extent, crc) => {
                put_extent(out, TAG_DATA, extent);
                out.extend_from_slice(&crc.to_le_bytes());
            }
        }
    }

    /// Ends the record.
    pub fn finish(self) {
        let bytes = (self.out.len() - self.start) as u32;
        self.out[self.start..self.start + 4].copy_from_slice(&bytes.to_le_bytes());
    }
}

/// A record read back.
#[derive(Debug)]
pub struct Record<'a> {
    /// Number of the transaction.
    pub transno: u64,
    /// Change of the number of objects.
    pub objects: i32,
    /// In order.
    pub items: Vec<Item<'a>>,
}

/// Reads the records of a payload. `None`: they do not follow the format, although the checksum is right.
pub fn records(mut payload: &[u8]) -> Option<Vec<Record<'_>>> {
    let mut out = Vec::new();
    while !payload.is_empty() {
        let bytes = u32::from_le_bytes(payload.get(..4)?.try_into().ok()?) as usize;
        let record = payload.get(..bytes).filter(|record| record.len() >= 16)?;
        payload = &payload[bytes..];
        let objects = i32::from_le_bytes(record[4..8].try_into().ok()?);
        let transno = u64::from_le_bytes(record[8..16].try_into().ok()?);
        let (mut rest, mut items) = (&record[16..], Vec::new());
        while let Some((&tag, after)) = rest.split_first() {
            rest = after;
            items.push(match tag {
                TAG_PUT => {
                    let (key, value) = (get_varint(&mut rest)?, get_varint(&mut rest)?);
                    Item::Put(take(&mut rest, key)?, take(&mut rest, value)?)
                }
                TAG_DELETE => {
                    let key = get_varint(&mut rest)?;
                    Item::Delete(take(&mut rest, key)?)
                }
                TAG_DELETE_RANGE => {
                    let (from, to) = (get_varint(&mut rest)?, get_varint(&mut rest)?);
                    Item::DeleteRange(take(&mut rest, from)?, take(&mut rest, to)?)
                }
                TAG_TAKE => Item::Take(get_extent(&mut rest)?),
                TAG_GIVE => Item::Give(get_extent(&mut rest)?),
                TAG_DATA => {
                    let extent = get_extent(&mut rest)?;
                    Item::Data(extent, u32::from_le_bytes(take(&mut rest, 4)?.try_into().ok()?))
                }
                _ => return None,
            });
        }
        out.push(Record { transno, objects, items });
    }
    Some(out)
}

fn put_extent(out: &mut Vec<u8>, tag: u8, extent: Extent) {
    out.push(tag);
    put_varint(out, extent.offset / BLOCK_BYTES);
    put_varint(out, extent.length / BLOCK_BYTES);
}

fn get_extent(input: &mut &[u8]) -> Option<Extent> {
    let (offset, length) = (get_varint(input)?, get_varint(input)?);
    let extent = Extent { offset: offset.checked_mul(BLOCK_BYTES)?, length: length.checked_mul(BLOCK_BYTES)? };
    extent.offset.checked_add(extent.length)?;
    (extent.length > 0).then_some(extent)
}

fn take<'a>(input: &mut &'a [u8], bytes: u64) -> Option<&'a [u8]> {
    let (taken, rest) = input.split_at_checked(usize::try_from(bytes).ok()?)?;
    *input = rest;
    Some(taken)
}

const TAG_PUT: u8 = 1;
const TAG_DELETE: u8 = 2;
const TAG_TAKE: u8 = 3;
const TAG_GIVE: u8 = 4;
const TAG_DATA: u8 = 5;
const TAG_DELETE_RANGE: u8 = 6;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CURSOR: Cursor = Cursor { position: 0, sequence: 1, epoch: 1, previous_crc: 0 };

    fn frame(cursor: &mut Cursor) -> Vec<u8> {
        let mut frame = vec![0; HEADER_BYTES];
        let mut record = RecordWriter::new(&mut frame, 9, -1);
        record.push(Item::Put(b"key", b"value"));
        record.push(Item::Delete(b"gone"));
        record.push(Item::Take(Extent { offset: 4096, length: 8192 }));
        record.push(Item::Data(Extent { offset: 4096, length: 4096 }, 77));
        record.push(Item::Give(Extent { offset: 1 << 40, length: 4096 }));
        record.push(Item::DeleteRange(b"a", b"bc"));
        record.finish();
        let position = cursor.place(4096, 8192);
        seal(&mut frame, cursor, position, 8);
        frame
    }

    #[test]
    fn reads_what_it_wrote() {
        let mut cursor = CURSOR;
        let frame = frame(&mut cursor);
        assert_eq!(start(&frame, &CURSOR, 0, 8192), Start::Frame(4096));
        let (payload, stable, after) = open(&frame, 0).unwrap();
        assert_eq!((stable, after), (8, cursor));
        let records = records(payload).unwrap();
        assert_eq!((records.len(), records[0].transno, records[0].objects, records[0].items.len()), (1, 9, -1, 6));
        assert_eq!(records[0].items[0], Item::Put(b"key", b"value"));
        assert_eq!(records[0].items[4], Item::Give(Extent { offset: 1 << 40, length: 4096 }));
        assert_eq!(records[0].items[5], Item::DeleteRange(b"a", b"bc"));
    }

    #[test]
    fn a_frame_belongs_to_one_place_in_one_history() {
        let frame = frame(&mut CURSOR.clone());
        for other in
            [Cursor { sequence: 2, ..CURSOR }, Cursor { previous_crc: 1, ..CURSOR }, Cursor { epoch: 2, ..CURSOR }]
        {
            assert_eq!(start(&frame, &other, 0, 8192), Start::None);
        }
        assert_eq!(start(&frame, &CURSOR, 4096, 8192), Start::None);
        let mut torn = frame.clone();
        torn[80] ^= 1;
        assert!(open(&torn, 0).is_none());
    }

    #[test]
    fn frames_do_not_wrap() {
        let cursor = Cursor { position: 3 * 8192 + 4096, ..CURSOR };
        assert_eq!(cursor.place(4096, 8192), 3 * 8192 + 4096);
        assert_eq!(cursor.place(8192, 8192), 4 * 8192);
    }

    proptest! {
        #[test]
        fn garbage_is_refused_without_a_panic(garbage in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = records(&garbage);
            let _ = open(&garbage, 0);
            let _ = start(&garbage, &CURSOR, 0, 8192);
        }
    }
}
