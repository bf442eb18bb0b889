//! Blocks of a run, and the sorted entries in them. The drawing is in [`super::run`].
//!
//! A block is checked whole when it is read: its checksum, its lengths, the order of its keys. Entries that parsed cannot make a
//! later lookup fail.

use std::ops::Range;
use std::rc::Rc;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{get_varint, put_varint};

/// Where a block is in its run, how long, and which checksum it must have: the value of an entry of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRef {
    /// From the start of the run, bytes.
    pub offset: u64,
    /// Length on the disk, header included.
    pub bytes: u32,
    /// CRC32C, as in the block's header.
    pub crc: u32,
}

impl BlockRef {
    fn to_value(self) -> [u8; 16] {
        let record = BlockRefRecord { offset: self.offset.into(), bytes: self.bytes.into(), crc: self.crc.into() };
        zerocopy::transmute!(record)
    }

    fn from_value(value: &[u8]) -> Option<BlockRef> {
        let record = BlockRefRecord::read_from_bytes(value).ok()?;
        Some(BlockRef { offset: record.offset.get(), bytes: record.bytes.get(), crc: record.crc.get() })
    }
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct BlockRefRecord {
    offset: U64,
    bytes: U32,
    crc: U32,
}
const _: () = assert!(size_of::<BlockRefRecord>() == 16);

/// What a block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum BlockKind {
    /// Entries of the tree.
    Data = 1,
    /// Filter and index of some data blocks.
    Partition = 2,
    /// Index of the partitions.
    Footer = 3,
}

/// In front of every block. The checksum covers everything behind it, the rest of the header included.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct BlockHeader {
    crc: U32,
    kind: u8,
    codec: u8,
    reserved: U16,
    /// Length of the payload as it follows.
    stored_bytes: U32,
    /// Length of the payload when decompressed; the same for codec 0.
    raw_bytes: U32,
}
const _: () = assert!(size_of::<BlockHeader>() == BLOCK_HEADER_BYTES);

/// Why a piece of a run is rejected, in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage(pub &'static str);

/// Appends a block to `out` and returns its checksum.
///
/// # Panics
/// When the payload is longer than [`BLOCK_STORED_BYTES_MAX`].
pub fn encode_block(kind: BlockKind, payload: &[u8], compress: bool, out: &mut Vec<u8>) -> u32 {
    assert!(payload.len() <= BLOCK_STORED_BYTES_MAX - BLOCK_HEADER_BYTES, "a block of {} bytes", payload.len());
    let start = out.len();
    out.resize(start + BLOCK_HEADER_BYTES, 0);
    let mut codec = CODEC_NONE;
    if compress {
        let body = start + BLOCK_HEADER_BYTES;
        out.resize(body + lz4_flex::block::get_maximum_output_size(payload.len()), 0);
        // The output has the size that lz4 asks for, so that it cannot fail; if it did, the block would just stay as it is.
        let length = lz4_flex::block::compress_into(payload, &mut out[body..]).unwrap_or(payload.len());
        // Less than an eighth gained is not worth the time of a reader.
        if length < payload.len() - payload.len() / 8 {
            codec = CODEC_LZ4;
            out.truncate(body + length);
        } else {
            out.truncate(body);
        }
    }
    if codec == CODEC_NONE {
        out.extend_from_slice(payload);
    }
    let mut header = BlockHeader {
        crc: 0.into(),
        kind: kind as u8,
        codec,
        reserved: 0.into(),
        stored_bytes: ((out.len() - start - BLOCK_HEADER_BYTES) as u32).into(),
        raw_bytes: (payload.len() as u32).into(),
    };
    out[start..start + BLOCK_HEADER_BYTES].copy_from_slice(header.as_bytes());
    let crc = crc32c(&out[start + CRC_BYTES..]);
    header.crc = crc.into();
    out[start..start + BLOCK_HEADER_BYTES].copy_from_slice(header.as_bytes());
    crc
}

/// The payload of a block, when it is the one that was written: right checksum, right kind, right lengths.
pub fn decode_block(stored: &[u8], kind: BlockKind, crc: u32) -> Result<Vec<u8>, Damage> {
    let (header, body) = BlockHeader::ref_from_prefix(stored).map_err(|_| Damage("shorter than a block header"))?;
    if crc32c(&stored[CRC_BYTES..]) != header.crc.get() {
        return Err(Damage("checksum does not match"));
    }
    if header.crc.get() != crc {
        return Err(Damage("another block than the index names (checksum differs)"));
    }
    let (stored_bytes, raw_bytes) = (header.stored_bytes.get() as usize, header.raw_bytes.get() as usize);
    if header.kind != kind as u8 || header.reserved.get() != 0 {
        return Err(Damage("block of another kind"));
    }
    if stored_bytes != body.len() || raw_bytes > BLOCK_STORED_BYTES_MAX {
        return Err(Damage("block length out of bounds"));
    }
    match header.codec {
        CODEC_NONE if raw_bytes == stored_bytes => Ok(body.to_vec()),
        // lz4 cannot shrink by more than 255: a longer claim is a lie and not worth an allocation.
        CODEC_LZ4 if raw_bytes <= stored_bytes.saturating_mul(255) => {
            let mut raw = vec![0; raw_bytes];
            match lz4_flex::block::decompress_into(body, &mut raw) {
                Ok(length) if length == raw_bytes => Ok(raw),
                _ => Err(Damage("compressed bytes do not decompress")),
            }
        }
        _ => Err(Damage("unknown compression")),
    }
}

/// Builds the entries of a block. Keys come in strictly ascending order.
#[derive(Default)]
pub struct EntriesWriter {
    bytes: Vec<u8>,
    restarts: Vec<u32>,
    last_key: Vec<u8>,
    entries: usize,
}

impl EntriesWriter {
    /// Adds an entry; `None` is a tombstone.
    pub fn add(&mut self, key: &[u8], value: Option<&[u8]>) {
        debug_assert!(self.entries == 0 || key > self.last_key.as_slice(), "keys out of order");
        let shared = if self.entries.is_multiple_of(RESTART_INTERVAL) {
            self.restarts.push(self.bytes.len() as u32);
            0
        } else {
            std::iter::zip(key, &self.last_key).take_while(|(left, right)| left == right).count()
        };
        put_varint(&mut self.bytes, shared as u64);
        put_varint(&mut self.bytes, (key.len() - shared) as u64);
        put_varint(&mut self.bytes, value.map_or(0, |value| value.len() + 1) as u64);
        self.bytes.extend_from_slice(&key[shared..]);
        self.bytes.extend_from_slice(value.unwrap_or_default());
        self.last_key.truncate(shared);
        self.last_key.extend_from_slice(&key[shared..]);
        self.entries += 1;
    }

    /// Adds an entry of an index.
    pub fn add_ref(&mut self, last_key: &[u8], block: BlockRef) {
        self.add(last_key, Some(&block.to_value()));
    }

    /// Entries so far.
    pub fn len(&self) -> usize {
        self.entries
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Bytes so far.
    pub fn bytes(&self) -> usize {
        self.bytes.len() + (self.restarts.len() + 1) * 4
    }

    /// The last key added.
    pub fn last_key(&self) -> &[u8] {
        &self.last_key
    }

    /// Appends the entries to `out` and starts anew.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.bytes);
        for restart in &self.restarts {
            out.extend_from_slice(&restart.to_le_bytes());
        }
        out.extend_from_slice(&(self.restarts.len() as u32).to_le_bytes());
        self.restarts.clear();
        self.last_key.clear();
        self.entries = 0;
    }
}

/// Entries that were checked whole: in order, all lengths inside, restarts where they should be.
pub struct Entries {
    raw: Vec<u8>,
    /// Where the entries start and end in `raw`; the restarts follow.
    entries: Range<usize>,
    restarts: usize,
    /// Number of entries.
    pub keys: usize,
    /// Number of those that are tombstones.
    pub tombstones: usize,
}

impl Entries {
    /// Checks `raw[start..]`.
    pub fn parse(raw: Vec<u8>, start: usize) -> Result<Entries, Damage> {
        let short = Damage("entries shorter than their restarts");
        let body = raw.get(start..).ok_or(short)?;
        let (rest, count) = body.split_last_chunk::<4>().ok_or(short)?;
        let restarts = u32::from_le_bytes(*count) as usize;
        let end = restarts.checked_mul(4).and_then(|bytes| rest.len().checked_sub(bytes)).ok_or(short)?;
        if restarts == 0 {
            return Err(Damage("no entries"));
        }
        let mut entries = Entries { entries: start..start + end, restarts, raw, keys: 0, tombstones: 0 };
        entries.check()?;
        Ok(entries)
    }

    fn check(&mut self) -> Result<(), Damage> {
        let mut key: Vec<u8> = Vec::with_capacity(64);
        let mut previous: Vec<u8> = Vec::with_capacity(64);
        let (mut at, mut restart) = (0, 0);
        let (mut keys, mut tombstones) = (0, 0);
        while at < self.entries.len() {
            let entry = self.entry(at).ok_or(Damage("an entry reaches beyond its block"))?;
            if restart < self.restarts && self.restart(restart) == at {
                if entry.shared != 0 {
                    return Err(Damage("a restart shares a key"));
                }
                restart += 1;
            }
            if entry.shared > key.len() || entry.shared + entry.own.len() > KEY_BYTES_MAX {
                return Err(Damage("key length out of bounds"));
            }
            key.truncate(entry.shared);
            key.extend_from_slice(&self.raw[entry.own.clone()]);
            if keys > 0 && key <= previous {
                return Err(Damage("keys out of order"));
            }
            previous.clone_from(&key);
            keys += 1;
            tombstones += usize::from(entry.value.is_none());
            at = entry.next;
        }
        if restart != self.restarts || self.restart(0) != 0 {
            return Err(Damage("restarts do not meet entries"));
        }
        (self.keys, self.tombstones) = (keys, tombstones);
        Ok(())
    }

    /// Memory taken.
    pub fn memory_bytes(&self) -> usize {
        self.raw.len() + 64
    }

    /// Offset of a restart within the entries.
    fn restart(&self, index: usize) -> usize {
        let at = self.entries.end + index * 4;
        u32::from_le_bytes([self.raw[at], self.raw[at + 1], self.raw[at + 2], self.raw[at + 3]]) as usize
    }

    /// The entry at an offset within the entries; `None` when it does not fit.
    fn entry(&self, at: usize) -> Option<EntryAt> {
        let base = self.entries.start;
        let mut input = self.raw.get(base + at..self.entries.end)?;
        let shared = usize::try_from(get_varint(&mut input)?).ok()?;
        let own_bytes = usize::try_from(get_varint(&mut input)?).ok()?;
        let value_tag = usize::try_from(get_varint(&mut input)?).ok()?;
        let own = self.entries.end - input.len();
        let value = own.checked_add(own_bytes)?;
        let next = value.checked_add(value_tag.saturating_sub(1))?;
        if next > self.entries.end {
            return None;
        }
        Some(EntryAt { shared, own: own..value, value: (value_tag > 0).then_some(value..next), next: next - base })
    }
}

struct EntryAt {
    shared: usize,
    own: Range<usize>,
    value: Option<Range<usize>>,
    next: usize,
}

/// A place in [`Entries`].
pub struct Cursor {
    entries: Rc<Entries>,
    key: Vec<u8>,
    value: Option<Range<usize>>,
    /// Offset of the entry behind this one.
    next: usize,
    valid: bool,
}

impl Cursor {
    /// At the first entry.
    pub fn first(entries: Rc<Entries>) -> Cursor {
        let mut cursor = Cursor { entries, key: Vec::with_capacity(64), value: None, next: 0, valid: false };
        cursor.advance();
        cursor
    }

    /// At the first entry whose key is not less than `target`; nowhere if there is none.
    pub fn seek(entries: Rc<Entries>, target: &[u8]) -> Cursor {
        let mut cursor = Cursor { entries, key: Vec::with_capacity(64), value: None, next: 0, valid: false };
        cursor.go_to_restart(|key| key < target);
        while cursor.valid && cursor.key.as_slice() < target {
            cursor.advance();
        }
        cursor
    }

    /// At the last entry whose key is not greater than `target`; nowhere if there is none.
    pub fn seek_back(entries: Rc<Entries>, target: &[u8]) -> Cursor {
        Cursor::last_where(entries, |key| key <= target)
    }

    /// At the last entry whose key is less than `target`; nowhere if there is none.
    pub fn seek_before(entries: Rc<Entries>, target: &[u8]) -> Cursor {
        Cursor::last_where(entries, |key| key < target)
    }

    /// At the last entry for which `wanted` holds; it holds for a first part of the keys.
    fn last_where(entries: Rc<Entries>, wanted: impl Fn(&[u8]) -> bool) -> Cursor {
        let mut cursor = Cursor { entries, key: Vec::with_capacity(64), value: None, next: 0, valid: false };
        cursor.go_to_restart(&wanted);
        cursor.valid = cursor.valid && wanted(&cursor.key);
        // Step while the following entry is wanted too; its key is put together beside this one.
        let mut following = Vec::with_capacity(64);
        while cursor.valid && cursor.next < cursor.entries.entries.len() {
            let Some(entry) = cursor.entries.entry(cursor.next) else { break };
            following.clear();
            following.extend_from_slice(&cursor.key[..entry.shared]);
            following.extend_from_slice(&cursor.entries.raw[entry.own.clone()]);
            if !wanted(&following) {
                break;
            }
            cursor.advance();
        }
        cursor
    }

    /// Moves on; nowhere after the last entry.
    pub fn advance(&mut self) {
        if self.next >= self.entries.entries.len() {
            self.valid = false;
            return;
        }
        let Some(entry) = self.entries.entry(self.next) else {
            self.valid = false;
            return;
        };
        self.key.truncate(entry.shared);
        self.key.extend_from_slice(&self.entries.raw[entry.own]);
        self.value = entry.value;
        self.next = entry.next;
        self.valid = true;
    }

    /// Whether it is at an entry.
    pub fn valid(&self) -> bool {
        self.valid
    }

    /// The key here.
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// The value here; `None` is a tombstone.
    pub fn value(&self) -> Option<&[u8]> {
        self.value.clone().map(|range| &self.entries.raw[range])
    }

    /// The block named here, when this is an index (an index is checked for it when it is parsed) and the cursor is anywhere.
    pub fn block(&self) -> Option<BlockRef> {
        if !self.valid {
            return None;
        }
        BlockRef::from_value(self.value()?)
    }

    /// Goes to the last restart for whose key `before` holds; to the first if there is none.
    fn go_to_restart(&mut self, before: impl Fn(&[u8]) -> bool) {
        let entries = Rc::clone(&self.entries);
        let (mut low, mut high) = (0, entries.restarts);
        while low < high {
            let middle = low.midpoint(high);
            let entry = entries.entry(entries.restart(middle));
            if entry.is_some_and(|entry| before(&entries.raw[entry.own])) { low = middle + 1 } else { high = middle }
        }
        self.next = entries.restart(low.saturating_sub(1));
        self.key.clear();
        self.advance();
    }
}

/// CRC32C (Castagnoli) as every structure of the store uses it.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// Longest block on the disk, header included. The footer of the largest runs is the longest.
pub const BLOCK_STORED_BYTES_MAX: usize = 64 << 20;
/// Length of a block's header.
pub const BLOCK_HEADER_BYTES: usize = 16;
/// Longest key.
pub const KEY_BYTES_MAX: usize = 4096;
/// Longest value.
pub const VALUE_BYTES_MAX: usize = 1 << 20;
const CRC_BYTES: usize = 4;
const CODEC_NONE: u8 = 0;
const CODEC_LZ4: u8 = 1;
/// Entries per restart: a seek rebuilds at most this many keys.
const RESTART_INTERVAL: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn block_bytes_are_pinned() {
        let mut entries = EntriesWriter::default();
        entries.add(b"apple", Some(b"red"));
        entries.add(b"apricot", None);
        entries.add(b"b", Some(b""));
        let mut payload = Vec::new();
        entries.finish(&mut payload);
        let mut block = Vec::new();
        let crc = encode_block(BlockKind::Data, &payload, true, &mut block);
        assert_eq!(hex(&block), GOLDEN_BLOCK);
        assert_eq!(decode_block(&block, BlockKind::Data, crc), Ok(payload.clone()));
        let parsed = Rc::new(Entries::parse(payload, 0).ok().unwrap());
        assert_eq!((parsed.keys, parsed.tombstones), (3, 1));
        let cursor = Cursor::seek(Rc::clone(&parsed), b"apq");
        assert_eq!((cursor.key(), cursor.value()), (&b"apricot"[..], None));
        let cursor = Cursor::seek_before(parsed, b"apricot");
        assert_eq!((cursor.key(), cursor.value()), (&b"apple"[..], Some(&b"red"[..])));
    }

    /// Payloads that carry a right checksum and are nonsense all the same.
    #[test]
    fn nonsense_is_refused_in_words() {
        let cases: [(&[u8], &str); 8] = [
            (&[], "entries shorter than their restarts"),
            (&[0, 0, 0, 0], "no entries"),
            (&[0, 0, 0, 0, 255, 255, 255, 255], "entries shorter than their restarts"),
            (&[0, 1, 1, b'a', 0, 0, 0, 0, 9, 0, 0, 0, 2, 0, 0, 0], "restarts do not meet entries"),
            (&[0, 5, 1, b'a', 0, 0, 0, 0, 1, 0, 0, 0], "an entry reaches beyond its block"),
            (&[1, 1, 1, b'a', 0, 0, 0, 0, 1, 0, 0, 0], "a restart shares a key"),
            (&[0, 1, 1, b'b', 0, 1, 1, b'a', 0, 0, 0, 0, 1, 0, 0, 0], "keys out of order"),
            (&[0, 1, 1, b'b', 2, 1, 1, b'a', 0, 0, 0, 0, 1, 0, 0, 0], "key length out of bounds"),
        ];
        for (payload, words) in cases {
            assert_eq!(Entries::parse(payload.to_vec(), 0).err(), Some(Damage(words)), "{payload:?}");
        }
        // A claim of more than lz4 can have packed costs no memory.
        let mut block = Vec::new();
        encode_block(BlockKind::Data, &[0; 1000], true, &mut block);
        block[12..16].copy_from_slice(&(BLOCK_STORED_BYTES_MAX as u32).to_le_bytes());
        let crc = crc32c(&block[4..]);
        block[..4].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(decode_block(&block, BlockKind::Data, crc).err(), Some(Damage("unknown compression")));
    }

    const GOLDEN_BLOCK: &str =
        "863c318c010000001f0000001f0000000005046170706c657265640205007269636f74000101620000000001000000";
}
