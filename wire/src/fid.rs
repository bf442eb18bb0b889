//! File identifiers, as in Lustre (`lustre_idl.h`, `lustre_fid.h`): a sequence, an object in it, a version.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Names one object in the whole filesystem, for ever: a FID is never reused.
///
/// Prints as `[0x200000401:0x1:0x0]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Fid {
    /// Sequence: a range of objects that belongs to one target.
    pub seq: u64,
    /// Object within the sequence.
    pub oid: u32,
    /// Version; 0 for everything alive.
    pub ver: u32,
}

/// First sequence of ordinary files and directories; MDT 0 starts here.
pub const SEQ_NORMAL: u64 = 0x2_0000_0400;
/// Sequence of objects that never leave their target (session tables, logs, counters).
pub const SEQ_LOCAL: u64 = 0x2_0000_0001;
/// First sequence of OST objects, as Lustre's IDIF: `SEQ_OST | ost_index << 16 | id[47:32]`.
pub const SEQ_OST: u64 = 0x1_0000_0000;

impl Fid {
    /// The filesystem's root directory.
    pub const ROOT: Fid = Fid { seq: 0x2_0000_0007, oid: 1, ver: 0 };
    /// No object.
    pub const NONE: Fid = Fid { seq: 0, oid: 0, ver: 0 };

    /// A file or directory.
    pub const fn new(seq: u64, oid: u32) -> Fid {
        Fid { seq, oid, ver: 0 }
    }

    /// An object private to its target.
    pub const fn local(oid: u32) -> Fid {
        Fid { seq: SEQ_LOCAL, oid, ver: 0 }
    }

    /// Object `id` (48 bits) of the OST with index `ost_index` (16 bits).
    ///
    /// # Panics
    /// When `id` needs more than 48 bits; ids come from our own counter.
    pub const fn ost_object(ost_index: u16, id: u64) -> Fid {
        assert!(id < 1 << 48);
        Fid { seq: SEQ_OST | (ost_index as u64) << 16 | id >> 32, oid: id as u32, ver: 0 }
    }

    /// OST index and object id, when this is an OST object.
    pub const fn as_ost_object(self) -> Option<(u16, u64)> {
        if self.seq >> 32 != 1 {
            return None;
        }
        Some(((self.seq >> 16) as u16, (self.seq & 0xffff) << 32 | self.oid as u64))
    }

    /// Whether this names nothing.
    pub const fn is_none(self) -> bool {
        self.seq == 0 && self.oid == 0
    }

    /// The inode number shown to users: `(seq − SEQ_NORMAL) << 32 | oid`, and 1 for the root. The mapping has an inverse
    /// ([`Fid::from_inode_number`]), so no table of inode numbers is kept anywhere.
    pub const fn inode_number(self) -> u64 {
        if self.seq == Self::ROOT.seq {
            return 1;
        }
        (self.seq.wrapping_sub(SEQ_NORMAL)) << 32 | self.oid as u64
    }

    /// The file behind an inode number; see [`Fid::inode_number`].
    pub const fn from_inode_number(ino: u64) -> Fid {
        if ino == 1 {
            return Self::ROOT;
        }
        Fid { seq: SEQ_NORMAL + (ino >> 32), oid: ino as u32, ver: 0 }
    }

    /// Sixteen bytes that sort as FIDs do (big-endian): the form used in index keys.
    pub fn to_key(self) -> [u8; 16] {
        let mut key = [0; 16];
        key[..8].copy_from_slice(&self.seq.to_be_bytes());
        key[8..12].copy_from_slice(&self.oid.to_be_bytes());
        key[12..].copy_from_slice(&self.ver.to_be_bytes());
        key
    }

    /// Inverse of [`Fid::to_key`].
    pub fn from_key(key: &[u8; 16]) -> Fid {
        let seq = u64::from_be_bytes(key[..8].try_into().expect("8 of 16 bytes"));
        let oid = u32::from_be_bytes(key[8..12].try_into().expect("4 of 16 bytes"));
        let ver = u32::from_be_bytes(key[12..].try_into().expect("4 of 16 bytes"));
        Fid { seq, oid, ver }
    }
}

impl fmt::Display for Fid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{:#x}:{:#x}:{:#x}]", self.seq, self.oid, self.ver)
    }
}

/// A text that is not a FID.
#[derive(Debug, thiserror::Error)]
#[error("\"{0}\" is not a FID; a FID looks like [0x200000401:0x1:0x0]")]
pub struct ParseFidError(String);

impl FromStr for Fid {
    type Err = ParseFidError;

    /// Accepts the printed form, with or without brackets and `0x`.
    fn from_str(text: &str) -> Result<Fid, ParseFidError> {
        let wrong = || ParseFidError(text.to_owned());
        let inner = text.trim();
        let inner = match inner.strip_prefix('[') {
            Some(rest) => rest.strip_suffix(']').ok_or_else(wrong)?,
            None => inner,
        };
        let mut parts = inner.split(':').map(|part| {
            let digits = part.strip_prefix("0x").unwrap_or(part);
            // from_str_radix takes a sign; a FID has none.
            if digits.starts_with('+') { None } else { u64::from_str_radix(digits, 16).ok() }
        });
        let mut next = || parts.next().flatten().ok_or_else(wrong);
        let (seq, oid, ver) = (next()?, next()?, next()?);
        if parts.next().is_some() {
            return Err(wrong());
        }
        let narrow = |value: u64| u32::try_from(value).map_err(|_| wrong());
        Ok(Fid { seq, oid: narrow(oid)?, ver: narrow(ver)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_and_parses_as_lustre_does() {
        let fid = Fid::new(0x2_0000_0401, 1);
        assert_eq!(fid.to_string(), "[0x200000401:0x1:0x0]");
        assert_eq!("[0x200000401:0x1:0x0]".parse::<Fid>().unwrap(), fid);
        assert_eq!("0x200000401:0x1:0x0".parse::<Fid>().unwrap(), fid);
        for bad in ["", "[0x1:0x2]", "[1:2:3:4]", "[0x1:0x1ffffffff:0x0]", "[0x1:0x2:0x3", "x:y:z", "[+1:2:3]"] {
            assert!(bad.parse::<Fid>().is_err(), "{bad}");
        }
    }

    #[test]
    fn inode_numbers_have_an_inverse() {
        for fid in [Fid::ROOT, Fid::new(SEQ_NORMAL + 1, 1), Fid::new(SEQ_NORMAL + 77, u32::MAX)] {
            assert_eq!(Fid::from_inode_number(fid.inode_number()), fid);
        }
    }

    #[test]
    fn ost_objects_name_their_target() {
        let fid = Fid::ost_object(3, 0x1234_5678_9abc);
        assert_eq!(fid.as_ost_object(), Some((3, 0x1234_5678_9abc)));
        assert_eq!(Fid::ROOT.as_ost_object(), None);
    }

    #[test]
    fn keys_sort_as_fids() {
        let mut fids = [Fid::new(2, 1), Fid::new(1, 300), Fid::new(1, 2)];
        fids.sort();
        let keys: Vec<_> = fids.iter().map(|fid| fid.to_key()).collect();
        assert!(keys.is_sorted());
        assert_eq!(Fid::from_key(&keys[0]), fids[0]);
    }
}
