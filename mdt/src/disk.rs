//! What the MDT keeps in its store beside inodes and directories, and the names of its internal extended attributes.
//!
//! | index object | key | value |
//! |---|---|---|
//! | [`STATE`] | `incarnation`, `fid`, `lov` + OST index | counters, 8 bytes little-endian |
//! | [`CLIENTS`] | client UUID | the client's name |
//! | [`SLOTS`] | client UUID, slot index (big-endian) | [`crate::slots::Record`] |
//! | [`ORPHANS`] | FID | nothing |
//! | [`DESTROYS`] | OST index (big-endian), FID of the object | nothing |

use nacre_wire::{Fid, Status};

/// Counters.
pub const STATE: Fid = Fid::local(0x100);
/// Clients that are connected, or were when the server stopped.
pub const CLIENTS: Fid = Fid::local(0x101);
/// Last answer of every reply slot.
pub const SLOTS: Fid = Fid::local(0x102);
/// Inodes without a name that somebody has open.
pub const ORPHANS: Fid = Fid::local(0x103);
/// OST objects that belong to no file any more and are still to be destroyed.
pub const DESTROYS: Fid = Fid::local(0x104);

/// [`STATE`]: grows with every start.
pub const KEY_INCARNATION: &[u8] = b"incarnation";
/// [`STATE`]: FIDs from this number on have never been given out.
pub const KEY_FID: &[u8] = b"fid";

/// Layout of a regular file (a postcard [`nacre_wire::Layout`]).
pub const XATTR_LOV: &[u8] = b"trusted.lov";
/// Names of the inode, see [`crate::linkea`].
pub const XATTR_LINK: &[u8] = b"trusted.link";
/// Default striping of a directory (a postcard [`nacre_wire::layout::StripeHint`]); of a file without objects, what its
/// objects will be like.
pub const XATTR_DMV: &[u8] = b"trusted.dmv";
/// Target of a symbolic link.
pub const XATTR_TARGET: &[u8] = b"trusted.target";

/// Whether an extended attribute is the server's own: users neither see nor touch it.
pub fn is_internal(name: &[u8]) -> bool {
    [XATTR_LOV, XATTR_LINK, XATTR_DMV, XATTR_TARGET].contains(&name)
}

/// [`STATE`]: last object id of an OST that a file was given.
pub fn key_lov(ost_index: u16) -> Vec<u8> {
    let mut key = b"lov".to_vec();
    key.extend_from_slice(&ost_index.to_be_bytes());
    key
}

/// Key in [`DESTROYS`].
pub fn key_destroy(ost_index: u16, object: Fid) -> Vec<u8> {
    let mut key = Vec::with_capacity(18);
    key.extend_from_slice(&ost_index.to_be_bytes());
    key.extend_from_slice(&object.to_key());
    key
}

/// Inverse of [`key_destroy`].
pub fn parse_key_destroy(key: &[u8]) -> Option<(u16, Fid)> {
    let (ost_index, fid) = key.split_first_chunk::<2>()?;
    Some((u16::from_be_bytes(*ost_index), Fid::from_key(fid.try_into().ok()?)))
}

/// A counter's value.
pub fn parse_counter(value: &[u8]) -> Result<u64, Status> {
    value.try_into().map(u64::from_le_bytes).map_err(|_| Status::EBADMSG)
}
