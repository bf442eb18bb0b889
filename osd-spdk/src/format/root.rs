//! The root of a checkpoint: what does not fit the superblock. Its checksum is in the superblock.
//!
//! ```text
//! [header 64 B][run handle]...
//! ```

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::run::RunHandle;

/// A decoded root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Root {
    /// Blocks taken by data.
    pub taken_blocks: u64,
    /// Objects there are.
    pub objects: u64,
    /// The index, newest first.
    pub runs: Vec<RunHandle>,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    taken_blocks: U64,
    objects: U64,
    runs: U32,
    reserved: [u8; 44],
}
const _: () = assert!(size_of::<Header>() == 64);

impl Root {
    /// The bytes to write.
    pub fn encode(&self) -> Vec<u8> {
        let header = Header {
            taken_blocks: self.taken_blocks.into(),
            objects: self.objects.into(),
            runs: (self.runs.len() as u32).into(),
            reserved: [0; 44],
        };
        let mut out = header.as_bytes().to_vec();
        self.runs.iter().for_each(|run| run.encode(&mut out));
        out
    }

    /// Inverse of [`Root::encode`].
    pub fn decode(bytes: &[u8]) -> Option<Root> {
        let (header, mut rest) = Header::ref_from_prefix(bytes).ok()?;
        let mut runs = Vec::new();
        for _ in 0..header.runs.get() {
            runs.push(RunHandle::decode(&mut rest)?);
        }
        let root = Root { taken_blocks: header.taken_blocks.get(), objects: header.objects.get(), runs };
        rest.is_empty().then_some(root)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back_whole_or_not_at_all() {
        let root = Root { taken_blocks: 1, objects: 2, runs: Vec::new() };
        let bytes = root.encode();
        assert_eq!(Root::decode(&bytes), Some(root));
        assert_eq!(Root::decode(&bytes[1..]), None);
        assert_eq!(Root::decode(&[&bytes[..], b"x"].concat()), None);
    }
}
