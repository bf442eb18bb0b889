//! Directory entries: the keys and values of a directory's index object.
//!
//! ```text
//! key    hash63(name), 8 bytes big-endian │ name, 1..=255 bytes
//! value  type, 1 byte (mode >> 12)        │ FID, 16 bytes as in `Fid::to_key`
//! ```
//!
//! Entries are stored, and listed, in the order of the hash. The hash is the readdir cookie: it does not move when other
//! names come and go. Names whose hashes are equal stay apart by the name that follows.

use nacre_wire::{Fid, Status};
use xxhash_rust::xxh3::xxh3_64;

/// Longest name, bytes.
pub const NAME_BYTES_MAX: usize = 255;

/// The readdir cookie of a name: 3..=2^63 − 1. 0 is the beginning; 1 and 2 are the client's, for `.` and `..`.
pub fn hash63(name: &[u8]) -> u64 {
    (xxh3_64(name) >> 1).max(3)
}

/// The index key of a name.
pub fn key(name: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(8 + name.len());
    key.extend_from_slice(&hash63(name).to_be_bytes());
    key.extend_from_slice(name);
    key
}

/// What `scan` has to start after so that every entry above `cookie` comes: no entry has this key, because no name is
/// empty.
pub fn key_after(cookie: u64) -> [u8; 8] {
    cookie.saturating_add(1).to_be_bytes()
}

/// Cookie and name of an index key; `None` for what is no entry.
pub fn parse_key(key: &[u8]) -> Option<(u64, &[u8])> {
    let (hash, name) = key.split_first_chunk::<8>()?;
    if name.is_empty() {
        return None;
    }
    Some((u64::from_be_bytes(*hash), name))
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The inode.
    pub fid: Fid,
    /// Its type: the type bits of mode.
    pub kind: u32,
}

impl Target {
    /// The index value.
    pub fn to_value(self) -> Vec<u8> {
        let mut value = Vec::with_capacity(17);
        value.push((self.kind >> 12) as u8);
        value.extend_from_slice(&self.fid.to_key());
        value
    }

    /// Inverse of [`Target::to_value`]; EBADMSG for what cannot have been written by it.
    pub fn from_value(value: &[u8]) -> Result<Target, Status> {
        let Some((kind, fid)) = value.split_first() else { return Err(Status::EBADMSG) };
        let fid: &[u8; 16] = fid.try_into().map_err(|_| Status::EBADMSG)?;
        Ok(Target { fid: Fid::from_key(fid), kind: u32::from(*kind) << 12 })
    }
}

/// Refuses what cannot be the name of an entry: ENAMETOOLONG above 255 bytes, EINVAL for an empty name, `/` or NUL.
pub fn validate(name: &[u8]) -> Result<(), Status> {
    if name.len() > NAME_BYTES_MAX {
        return Err(Status::ENAMETOOLONG);
    }
    if name.is_empty() || name.iter().any(|byte| *byte == b'/' || *byte == 0) {
        return Err(Status::EINVAL);
    }
    Ok(())
}

/// Whether a name is `.` or `..`, which no directory index holds.
pub fn is_dot(name: &[u8]) -> bool {
    name == b"." || name == b".."
}

#[cfg(test)]
mod tests {
    use super::*;
    use nacre_wire::attr::mode;
    use proptest::prelude::*;

    #[test]
    fn golden_bytes() {
        // The format is on disk: if this changes, directories written before cannot be read.
        let target = Target { fid: Fid::new(0x2_0000_0401, 7), kind: mode::DIR };
        assert_eq!(target.to_value(), [4, 0, 0, 0, 2, 0, 0, 4, 1, 0, 0, 0, 7, 0, 0, 0, 0]);
        assert_eq!(hash63(b"a"), 0xE6C6_32B6_1E96_4E1F >> 1);
        assert_eq!(key(b"a")[8..], *b"a");
    }

    #[test]
    fn names_that_cannot_be() {
        assert_eq!(validate(&[b'x'; 255]), Ok(()));
        assert_eq!(validate(&[b'x'; 256]), Err(Status::ENAMETOOLONG));
        for bad in [&b""[..], b"a/b", b"a\0"] {
            assert_eq!(validate(bad), Err(Status::EINVAL));
        }
    }

    proptest! {
        #[test]
        fn keys_and_values_have_inverses(name in proptest::collection::vec(1u8.., 1..255), seq: u64, oid: u32) {
            let key = key(&name);
            let (cookie, parsed) = parse_key(&key).unwrap();
            prop_assert_eq!(parsed, &name[..]);
            prop_assert!(cookie > 2 && cookie < 1 << 63);
            prop_assert!(key_after(cookie)[..] > key[..]);
            prop_assert!(key_after(cookie - 1)[..] < key[..]);
            let target = Target { fid: Fid::new(seq, oid), kind: mode::FILE };
            prop_assert_eq!(Target::from_value(&target.to_value()), Ok(target));
        }
    }
}
