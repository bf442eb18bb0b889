//! Keys and values of the index: attributes, extended attributes, extents, keys of index objects, the space map.
//!
//! | key | value |
//! |---|---|
//! | `01` FID | attributes, [`encode_attr`] |
//! | `02` FID name | extended attribute |
//! | `03` FID logical block (u64, big-endian) | extent, [`encode_mapping`] |
//! | `04` FID key | value of an index object's key |
//! | `05` region (u32, big-endian) | which blocks are taken, [`crate::engine`] |
//! | `06` FID | nothing: extents and keys of a destroyed object are still to be removed |
//!
//! FIDs are 16 bytes that sort as FIDs do ([`Fid::to_key`]).

use nacre_wire::{Attr, Fid, Time};
use zerocopy::little_endian::{I64, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// What a key is about; its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Attributes of an object.
    Attr = 1,
    /// Extended attribute.
    Xattr = 2,
    /// Extent.
    Extent = 3,
    /// Key of an index object.
    Index = 4,
    /// Space map.
    Space = 5,
    /// What is left of a destroyed object.
    Doomed = 6,
}

/// Length of kind and FID.
pub const PREFIX_BYTES: usize = 17;

/// `kind ‖ FID ‖ rest`.
pub fn key(kind: Kind, fid: Fid, rest: &[u8]) -> Box<[u8]> {
    let mut key = Vec::with_capacity(PREFIX_BYTES + rest.len());
    key.push(kind as u8);
    key.extend_from_slice(&fid.to_key());
    key.extend_from_slice(rest);
    key.into_boxed_slice()
}

/// The first key after all that begin with `kind ‖ FID`.
pub fn key_after(kind: Kind, fid: Fid) -> Box<[u8]> {
    let mut key = key(kind, fid, &[]);
    for byte in key.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            break;
        }
    }
    key
}

/// Key of a region of the space map.
pub fn space_key(region: u32) -> Box<[u8]> {
    let mut key = vec![Kind::Space as u8];
    key.extend_from_slice(&region.to_be_bytes());
    key.into_boxed_slice()
}

/// FID of a key of the first four kinds, and the rest of the key.
pub fn split_key(key: &[u8]) -> Option<(Fid, &[u8])> {
    let (fid, rest) = key.get(1..)?.split_first_chunk::<16>()?;
    Some((Fid::from_key(fid), rest))
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawTime {
    seconds: I64,
    nanoseconds: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawAttr {
    mode: U32,
    uid: U32,
    gid: U32,
    projid: U32,
    nlink: U32,
    flags: U32,
    rdev: U64,
    size: U64,
    allocated_bytes: U64,
    version: U64,
    atime: RawTime,
    mtime: RawTime,
    ctime: RawTime,
    btime: RawTime,
}
const _: () = assert!(size_of::<RawAttr>() == 104);

/// Attributes as they are kept.
pub fn encode_attr(attr: &Attr) -> Box<[u8]> {
    let time = |time: Time| RawTime { seconds: time.seconds.into(), nanoseconds: time.nanoseconds.into() };
    let raw = RawAttr {
        mode: attr.mode.into(),
        uid: attr.uid.into(),
        gid: attr.gid.into(),
        projid: attr.projid.into(),
        nlink: attr.nlink.into(),
        flags: attr.flags.into(),
        rdev: attr.rdev.into(),
        size: attr.size.into(),
        allocated_bytes: attr.allocated_bytes.into(),
        version: attr.version.into(),
        atime: time(attr.atime),
        mtime: time(attr.mtime),
        ctime: time(attr.ctime),
        btime: time(attr.btime),
    };
    raw.as_bytes().into()
}

/// Inverse of [`encode_attr`].
pub fn decode_attr(bytes: &[u8]) -> Option<Attr> {
    let raw = RawAttr::ref_from_bytes(bytes).ok()?;
    let time = |time: &RawTime| Time { seconds: time.seconds.get(), nanoseconds: time.nanoseconds.get() };
    Some(Attr {
        mode: raw.mode.get(),
        uid: raw.uid.get(),
        gid: raw.gid.get(),
        projid: raw.projid.get(),
        nlink: raw.nlink.get(),
        flags: raw.flags.get(),
        rdev: raw.rdev.get(),
        size: raw.size.get(),
        allocated_bytes: raw.allocated_bytes.get(),
        version: raw.version.get(),
        atime: time(&raw.atime),
        mtime: time(&raw.mtime),
        ctime: time(&raw.ctime),
        btime: time(&raw.btime),
    })
}

/// Where a run of blocks of an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First block on the device.
    pub physical: u64,
    /// Number of blocks.
    pub blocks: u64,
    /// Reserved; reads zeros.
    pub unwritten: bool,
    /// Other objects may hold it too: never overwritten in place, never freed without asking.
    pub shared: bool,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawMapping {
    physical: U64,
    blocks: U64,
    /// Bit 0: unwritten, bit 1: shared. Bit 2 is kept for "checksums follow" (one CRC32C per block behind the fixed part).
    flags: U32,
    reserved: U32,
}
const _: () = assert!(size_of::<RawMapping>() == 24);

const UNWRITTEN: u32 = 1;
const SHARED: u32 = 2;

/// An extent as it is kept.
pub fn encode_mapping(mapping: &Mapping) -> Box<[u8]> {
    let flags = if mapping.unwritten { UNWRITTEN } else { 0 } | if mapping.shared { SHARED } else { 0 };
    let raw = RawMapping {
        physical: mapping.physical.into(),
        blocks: mapping.blocks.into(),
        flags: flags.into(),
        reserved: 0.into(),
    };
    raw.as_bytes().into()
}

/// Inverse of [`encode_mapping`]; `blocks_end` is the first block behind the device's space.
pub fn decode_mapping(bytes: &[u8], blocks_end: u64) -> Option<Mapping> {
    let raw = RawMapping::ref_from_bytes(bytes).ok()?;
    let flags = raw.flags.get();
    let end = raw.physical.get().checked_add(raw.blocks.get())?;
    let sane = flags & !(UNWRITTEN | SHARED) == 0 && raw.reserved.get() == 0 && raw.blocks.get() > 0;
    (sane && end <= blocks_end).then_some(Mapping {
        physical: raw.physical.get(),
        blocks: raw.blocks.get(),
        unwritten: flags & UNWRITTEN != 0,
        shared: flags & SHARED != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back() {
        let attr = Attr {
            mode: 0o100_644,
            size: 1 << 62,
            mtime: Time { seconds: -3, nanoseconds: 999_999_999 },
            version: 8,
            ..Attr::default()
        };
        assert_eq!(decode_attr(&encode_attr(&attr)), Some(attr));
        let mapping = Mapping { physical: 7, blocks: 3, unwritten: true, shared: false };
        assert_eq!(decode_mapping(&encode_mapping(&mapping), 10), Some(mapping));
        assert_eq!(decode_mapping(&encode_mapping(&mapping), 9), None);
        assert_eq!(
            &encode_mapping(&mapping)[..],
            &[7, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]
        );
    }

    #[test]
    fn a_prefix_ends_before_the_next_object() {
        let fid = Fid { seq: 5, oid: u32::MAX, ver: u32::MAX };
        let last = key(Kind::Index, fid, &[0xff; 40]);
        assert!(last < key_after(Kind::Index, fid));
        assert!(key_after(Kind::Index, fid) <= key(Kind::Index, Fid { seq: 6, oid: 0, ver: 0 }, &[]));
        assert_eq!(split_key(&last), Some((fid, &[0xff; 40][..])));
    }
}
