//! Sets of blocks of the space, a bit each. Extents given to it lie inside the space; the caller has looked.

use crate::engine::index::Extent;
use crate::format::superblock::BLOCK_BYTES;

/// A bit per block of the space.
pub(super) struct BlockMap {
    space: Extent,
    words: Vec<u64>,
}

impl BlockMap {
    pub(super) fn new(space: Extent) -> BlockMap {
        BlockMap { space, words: vec![0; (space.length / BLOCK_BYTES).div_ceil(64) as usize] }
    }

    /// Sets the bits of an extent inside the space; false when one was set already.
    pub(super) fn set(&mut self, extent: Extent) -> bool {
        let free = !self.touches(extent);
        self.each(extent, |word, mask| *word |= mask);
        free
    }

    pub(super) fn clear(&mut self, extent: Extent) {
        self.each(extent, |word, mask| *word &= !mask);
    }

    pub(super) fn touches(&self, extent: Extent) -> bool {
        self.masks(extent).any(|(word, mask)| self.words[word] & mask != 0)
    }

    pub(super) fn covers(&self, extent: Extent) -> bool {
        self.masks(extent).all(|(word, mask)| self.words[word] & mask == mask)
    }

    pub(super) fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    pub(super) fn minus(&self, other: &BlockMap) -> Vec<Extent> {
        self.extents_of(other, |own, other| own & !other)
    }

    pub(super) fn intersection(&self, other: &BlockMap) -> Vec<Extent> {
        self.extents_of(other, |own, other| own & other)
    }

    fn each(&mut self, extent: Extent, mut change: impl FnMut(&mut u64, u64)) {
        for (word, mask) in self.masks(extent) {
            change(&mut self.words[word], mask);
        }
    }

    /// Words and the bits in them that an extent inside the space has.
    fn masks(&self, extent: Extent) -> impl Iterator<Item = (usize, u64)> + use<> {
        let first = (extent.offset - self.space.offset) / BLOCK_BYTES;
        let end = first + extent.length / BLOCK_BYTES;
        (first / 64..end.div_ceil(64)).map(move |word| {
            let (low, high) = (first.max(word * 64) - word * 64, end.min(word * 64 + 64) - word * 64);
            (word as usize, (u64::MAX >> (64 - (high - low))) << low)
        })
    }

    fn extents_of(&self, other: &BlockMap, combine: impl Fn(u64, u64) -> u64) -> Vec<Extent> {
        let mut extents: Vec<Extent> = Vec::new();
        for (index, (own, other)) in std::iter::zip(&self.words, &other.words).enumerate() {
            let mut bits = combine(*own, *other);
            while bits != 0 {
                let start = bits.trailing_zeros();
                let length = (bits >> start).trailing_ones();
                let offset = self.space.offset + (index as u64 * 64 + u64::from(start)) * BLOCK_BYTES;
                let length_bytes = u64::from(length) * BLOCK_BYTES;
                match extents.last_mut() {
                    Some(last) if last.offset + last.length == offset => last.length += length_bytes,
                    _ => extents.push(Extent { offset, length: length_bytes }),
                }
                bits &= !((u64::MAX >> (64 - length)) << start);
            }
        }
        extents
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_of_extents() {
        let at = |block: u64, blocks: u64| Extent { offset: (block + 3) * BLOCK_BYTES, length: blocks * BLOCK_BYTES };
        let space = at(0, 300);
        let (mut left, mut right) = (BlockMap::new(space), BlockMap::new(space));
        assert!(left.is_empty() && left.set(at(10, 200)) && !left.set(at(209, 1)));
        assert!(right.set(at(0, 64)) && right.set(at(128, 172)));
        right.clear(at(130, 2));
        assert_eq!(left.minus(&right), [at(64, 64), at(130, 2)]);
        assert_eq!(left.intersection(&right), [at(10, 54), at(128, 2), at(132, 78)]);
        assert!(left.touches(at(9, 2)) && !left.touches(at(0, 10)));
        assert!(left.covers(at(10, 200)) && !left.covers(at(10, 201)));
        assert_eq!((left.count(), right.count()), (200, 64 + 170));
    }
}
