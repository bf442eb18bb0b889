//! The superblock: what a device says about itself, where its log and space are, and the newest checkpoint.
//!
//! ```text
//! block 0   block 1                                      last but one   last
//! [even A]  [odd A]  ... log ring ... space ...          [even B]       [odd B]
//! ```
//!
//! A superblock of an even generation goes to `even A`, is flushed, then to `even B`, and is flushed; an odd one to the
//! others. So a crash at any moment leaves at least one superblock whole, and its predecessor with everything it names.

use nacre_wire::Uuid;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::run::Extent;
use crate::store::LABEL_BYTES_MAX;

/// Size of a superblock and of everything that is allocated, bytes.
pub const BLOCK_BYTES: u64 = 4096;
/// Pieces that the checkpoint may be in.
pub const ROOT_EXTENTS_MAX: usize = 64;
/// Smallest device that can be formatted, bytes.
pub const DEVICE_BYTES_MIN: u64 = 48 << 20;
/// Feature bits known here that a reader must know too.
pub const FEATURES_KNOWN: u64 = 0;

const MAGIC: [u8; 8] = *b"NacreOSD";
const VERSION: u32 = 1;

/// A decoded superblock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Of the store, made at format.
    pub uuid: Uuid,
    /// Counts superblocks written; the largest valid one holds.
    pub generation: u64,
    /// Size of the device when it was formatted, bytes.
    pub device_bytes: u64,
    /// The log ring.
    pub log: Extent,
    /// Everything that is allocated.
    pub space: Extent,
    /// What mkfs wrote.
    pub label: Vec<u8>,
    /// Whether the store was closed.
    pub clean: bool,
    /// The checkpoint.
    pub root: RootPointer,
}

/// Where replay starts and where the rest of the checkpoint is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RootPointer {
    /// Last transaction that the checkpoint holds.
    pub transno: u64,
    /// Where in the log the next frame is, counted from format on (the ring position is this modulo the ring's length).
    pub log_position: u64,
    /// Sequence of that frame.
    pub log_sequence: u64,
    /// Frames at and after `log_position` are of this epoch or a later one; every open starts a new epoch.
    pub log_epoch: u64,
    /// What that frame's `previous_crc` says.
    pub log_previous_crc: u32,
    /// CRC32C of the checkpoint's bytes.
    pub crc: u32,
    /// Length of the checkpoint, bytes; 0: none, the store is as it was formatted.
    pub bytes: u64,
    /// Where it is.
    pub extents: Vec<Extent>,
}

/// What four blocks say.
#[derive(Debug)]
pub enum Found {
    /// No superblock.
    Nothing,
    /// A superblock of this format.
    Valid(Box<Superblock>),
    /// A superblock of another version, or with features unknown here.
    Newer {
        /// Its version.
        version: u32,
        /// Feature bits that are not known here.
        unknown_features: u64,
    },
    /// There was a superblock, but none is whole.
    Damaged,
}

/// On the disk, little-endian, 4096 bytes.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    magic: [u8; 8],
    /// CRC32C of everything after this field.
    crc: U32,
    version: U32,
    features: U64,
    uuid: [u8; 16],
    generation: U64,
    device_bytes: U64,
    log_offset: U64,
    log_bytes: U64,
    space_offset: U64,
    space_bytes: U64,
    block_bytes: U32,
    /// 1: closed.
    clean: U32,
    root_transno: U64,
    root_log_position: U64,
    root_log_sequence: U64,
    root_log_epoch: U64,
    root_log_previous_crc: U32,
    root_crc: U32,
    root_bytes: U64,
    root_extents: U32,
    label_bytes: U32,
    extents: [RawExtent; ROOT_EXTENTS_MAX],
    label: [u8; LABEL_BYTES_MAX],
    reserved: [u8; 872],
}
const _: () = assert!(size_of::<Raw>() == BLOCK_BYTES as usize);

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawExtent {
    offset: U64,
    bytes: U64,
}

impl Superblock {
    /// Offsets of the two places for this generation, in the order in which they are written.
    pub fn places(&self) -> [u64; 2] {
        let odd = self.generation % 2;
        [odd * BLOCK_BYTES, self.device_bytes - (2 - odd) * BLOCK_BYTES]
    }

    /// Offsets of all superblocks of a device.
    pub fn all_places(device_bytes: u64) -> [u64; 4] {
        let end = device_bytes / BLOCK_BYTES * BLOCK_BYTES;
        [0, BLOCK_BYTES, end - 2 * BLOCK_BYTES, end - BLOCK_BYTES]
    }

    /// The block to write.
    ///
    /// # Panics
    /// When label or extents are longer than the constants allow; callers check.
    pub fn encode(&self) -> Vec<u8> {
        let mut raw = Raw::new_zeroed();
        raw.magic = MAGIC;
        raw.version = VERSION.into();
        raw.uuid = self.uuid.0;
        raw.generation = self.generation.into();
        raw.device_bytes = self.device_bytes.into();
        raw.log_offset = self.log.offset.into();
        raw.log_bytes = self.log.length.into();
        raw.space_offset = self.space.offset.into();
        raw.space_bytes = self.space.length.into();
        raw.block_bytes = (BLOCK_BYTES as u32).into();
        raw.clean = u32::from(self.clean).into();
        raw.root_transno = self.root.transno.into();
        raw.root_log_position = self.root.log_position.into();
        raw.root_log_sequence = self.root.log_sequence.into();
        raw.root_log_epoch = self.root.log_epoch.into();
        raw.root_log_previous_crc = self.root.log_previous_crc.into();
        raw.root_crc = self.root.crc.into();
        raw.root_bytes = self.root.bytes.into();
        raw.root_extents = (self.root.extents.len() as u32).into();
        for (raw, extent) in raw.extents[..self.root.extents.len()].iter_mut().zip(&self.root.extents) {
            *raw = RawExtent { offset: extent.offset.into(), bytes: extent.length.into() };
        }
        raw.label_bytes = (self.label.len() as u32).into();
        raw.label[..self.label.len()].copy_from_slice(&self.label);
        raw.crc = crc_fast::crc32_iscsi(&raw.as_bytes()[12..]).into();
        raw.as_bytes().to_vec()
    }

    /// Reads one block.
    pub fn decode(block: &[u8]) -> Found {
        let Ok((raw, _)) = Raw::ref_from_prefix(block) else { return Found::Nothing };
        if raw.magic != MAGIC {
            return Found::Nothing;
        }
        if crc_fast::crc32_iscsi(&raw.as_bytes()[12..]) != raw.crc.get() {
            return Found::Damaged;
        }
        let unknown_features = raw.features.get() & !FEATURES_KNOWN;
        if raw.version.get() != VERSION || unknown_features != 0 {
            return Found::Newer { version: raw.version.get(), unknown_features };
        }
        match Superblock::from_raw(raw) {
            Some(superblock) => Found::Valid(Box::new(superblock)),
            None => Found::Damaged,
        }
    }

    /// The newest of the blocks read from [`Superblock::all_places`].
    pub fn newest(blocks: &[&[u8]]) -> Found {
        let mut best = Found::Nothing;
        for block in blocks {
            let found = Superblock::decode(block);
            let better = match (&best, &found) {
                (_, Found::Nothing) => false,
                (Found::Nothing, _) => true,
                (Found::Valid(best), Found::Valid(found)) => found.generation > best.generation,
                (Found::Damaged, Found::Valid(_) | Found::Newer { .. }) => true,
                (Found::Newer { .. }, _) | (_, Found::Damaged) => false,
                (_, Found::Newer { .. }) => true,
            };
            if better {
                best = found;
            }
        }
        best
    }

    fn from_raw(raw: &Raw) -> Option<Superblock> {
        let aligned = |value: u64| value.is_multiple_of(BLOCK_BYTES);
        let extent = |offset: U64, length: U64| {
            let (offset, length) = (offset.get(), length.get());
            let fits = offset.checked_add(length)? <= raw.device_bytes.get();
            (aligned(offset) && aligned(length) && length > 0 && fits).then_some(Extent { offset, length })
        };
        let log = extent(raw.log_offset, raw.log_bytes)?;
        let space = extent(raw.space_offset, raw.space_bytes)?;
        let extents = raw.extents.get(..raw.root_extents.get() as usize)?;
        let extents = extents.iter().map(|raw| extent(raw.offset, raw.bytes)).collect::<Option<Vec<_>>>()?;
        let room: u64 = extents.iter().map(|extent| extent.length).try_fold(0u64, u64::checked_add)?;
        let sane = raw.block_bytes.get() as u64 == BLOCK_BYTES
            && aligned(raw.device_bytes.get())
            && raw.device_bytes.get() >= DEVICE_BYTES_MIN
            && raw.root_bytes.get() <= room
            && aligned(raw.root_log_position.get());
        let superblock = Superblock {
            uuid: Uuid(raw.uuid),
            generation: raw.generation.get(),
            device_bytes: raw.device_bytes.get(),
            log,
            space,
            label: raw.label.get(..raw.label_bytes.get() as usize)?.to_vec(),
            clean: raw.clean.get() == 1,
            root: RootPointer {
                transno: raw.root_transno.get(),
                log_position: raw.root_log_position.get(),
                log_sequence: raw.root_log_sequence.get(),
                log_epoch: raw.root_log_epoch.get(),
                log_previous_crc: raw.root_log_previous_crc.get(),
                crc: raw.root_crc.get(),
                bytes: raw.root_bytes.get(),
                extents,
            },
        };
        sane.then_some(superblock)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Superblock {
        Superblock {
            uuid: Uuid::from_random(1, 2),
            generation: 7,
            device_bytes: 1 << 30,
            log: Extent { offset: 8192, length: 16 << 20 },
            space: Extent { offset: 8192 + (16 << 20), length: 1 << 29 },
            label: b"nacre-OST0000".to_vec(),
            clean: true,
            root: RootPointer {
                transno: 5,
                log_position: 4096,
                log_sequence: 6,
                log_epoch: 2,
                log_previous_crc: 9,
                crc: 10,
                bytes: 100,
                extents: vec![Extent { offset: 1 << 25, length: 4096 }],
            },
        }
    }

    #[test]
    fn reads_what_it_wrote_and_refuses_every_flipped_bit() {
        let block = example().encode();
        assert!(matches!(Superblock::decode(&block), Found::Valid(found) if *found == example()));
        for bit in (0..block.len() * 8).step_by(7) {
            let mut damaged = block.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(!matches!(Superblock::decode(&damaged), Found::Valid(_)), "bit {bit}");
        }
    }

    #[test]
    fn the_bytes_are_pinned() {
        let block = example().encode();
        assert_eq!(&block[..16], b"NacreOSDd\x0fB\x11\x01\0\0\0".as_slice());
        assert_eq!(&block[96..104], &[5, 0, 0, 0, 0, 0, 0, 0][..]);
    }

    #[test]
    fn the_newest_whole_one_holds() {
        let old = example().encode();
        let new = Superblock { generation: 8, ..example() }.encode();
        let mut torn = new.clone();
        torn[600] ^= 1;
        let generation = |blocks: &[&[u8]]| match Superblock::newest(blocks) {
            Found::Valid(superblock) => Some(superblock.generation),
            _ => None,
        };
        let zeros = vec![0; 4096];
        assert_eq!(generation(&[&old, &new, &zeros]), Some(8));
        assert_eq!(generation(&[&torn, &old]), Some(7));
        assert!(matches!(Superblock::newest(&[&zeros, &torn]), Found::Damaged));
        assert!(matches!(Superblock::newest(&[&zeros]), Found::Nothing));
    }

    #[test]
    fn each_generation_has_its_places() {
        let places = example().places();
        assert_eq!(places, [4096, (1 << 30) - 4096]);
        assert_eq!(Superblock { generation: 8, ..example() }.places(), [0, (1 << 30) - 8192]);
    }
}
