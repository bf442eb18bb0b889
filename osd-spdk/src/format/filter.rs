//! The filter of a partition: a split-block Bloom filter, as in Parquet. A key is in one block of 256 bits, where it sets one bit
//! in each of the eight words: one cache line per question, about 1 % of wrong yeses at ten bits per key, never a wrong no.

/// Which hashes may be among those it was built from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    bytes: Box<[u8]>,
}

impl Filter {
    /// A filter of these hashes.
    pub fn build(hashes: &[u64]) -> Filter {
        let blocks = (hashes.len() * BITS_PER_KEY).div_ceil(BLOCK_BYTES * 8).max(1);
        let mut bytes = vec![0; blocks * BLOCK_BYTES].into_boxed_slice();
        for hash in hashes {
            let block = block_of(*hash, blocks);
            for (word, salt) in SALTS.into_iter().enumerate() {
                let bit = bit_of(*hash, salt);
                bytes[block * BLOCK_BYTES + word * 4 + bit / 8] |= 1 << (bit % 8);
            }
        }
        Filter { bytes }
    }

    /// Whether a hash may be in it.
    pub fn may_contain(&self, hash: u64) -> bool {
        let block = block_of(hash, self.bytes.len() / BLOCK_BYTES) * BLOCK_BYTES;
        SALTS.into_iter().enumerate().all(|(word, salt)| {
            let bit = bit_of(hash, salt);
            self.bytes[block + word * 4 + bit / 8] & 1 << (bit % 8) != 0
        })
    }

    /// As on the disk: blocks of eight little-endian words.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Inverse of [`Filter::as_bytes`]; `None` when the length is not that of a filter.
    pub fn from_bytes(bytes: &[u8]) -> Option<Filter> {
        (!bytes.is_empty() && bytes.len().is_multiple_of(BLOCK_BYTES)).then(|| Filter { bytes: bytes.into() })
    }
}

/// Hash of a key.
pub fn hash_key(key: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(key)
}

/// Hash of a prefix of keys; differs from that of a key with the same bytes.
pub fn hash_prefix(prefix: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(prefix, PREFIX_SEED)
}

fn block_of(hash: u64, blocks: usize) -> usize {
    // Multiply-shift maps the upper half evenly onto the blocks without a division.
    (((hash >> 32) * blocks as u64) >> 32) as usize
}

fn bit_of(hash: u64, salt: u32) -> usize {
    ((hash as u32).wrapping_mul(salt) >> 27) as usize
}

const BLOCK_BYTES: usize = 32;
const BITS_PER_KEY: usize = 10;
/// Seed of [`hash_prefix`].
const PREFIX_SEED: u64 = 1;
/// Odd constants of the Parquet format ("SBBF").
const SALTS: [u32; 8] =
    [0x47b6_137b, 0x4497_4d91, 0x8824_ad5b, 0xa2b7_289d, 0x7054_95c7, 0x2df1_424b, 0x9efc_4947, 0x5c6b_fb31];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_denies_and_seldom_errs() {
        let hashes: Vec<u64> = (0..10_000u64).map(|n| hash_key(&n.to_be_bytes())).collect();
        let filter = Filter::build(&hashes);
        assert!(hashes.iter().all(|hash| filter.may_contain(*hash)));
        let wrong = (10_000..30_000u64).filter(|n| filter.may_contain(hash_key(&n.to_be_bytes()))).count();
        assert!(wrong < 20_000 * 2 / 100, "{wrong} of 20000 wrong");
        assert_eq!(Filter::from_bytes(filter.as_bytes()), Some(filter));
        assert_eq!(Filter::from_bytes(&[0; 31]), None);
    }

    #[test]
    fn format_is_pinned() {
        let filter = Filter::build(&[hash_key(b"nacre")]);
        let set: Vec<usize> = (0..256).filter(|bit| filter.as_bytes()[bit / 8] & 1 << (bit % 8) != 0).collect();
        assert_eq!(set.len(), 8);
        assert_eq!(set, GOLDEN_BITS);
        assert_ne!(hash_key(b"nacre"), hash_prefix(b"nacre"));
    }

    const GOLDEN_BITS: [usize; 8] = [1, 59, 67, 116, 138, 162, 193, 237];
}
