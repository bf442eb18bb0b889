//! A set of byte ranges, kept merged: neighbours that touch are one.

use std::collections::BTreeMap;
use std::ops::Range;

/// Disjoint, non-touching ranges: start → end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RangeSet {
    ranges: BTreeMap<u64, u64>,
}

impl RangeSet {
    /// Adds a range; answers how many of its bytes were not in the set.
    pub fn insert(&mut self, range: Range<u64>) -> u64 {
        if range.is_empty() {
            return 0;
        }
        let (mut start, mut end) = (range.start, range.end);
        let mut had = 0;
        while let Some((&other_start, &other_end)) = self.ranges.range(..=end).next_back() {
            if other_end < start {
                break;
            }
            self.ranges.remove(&other_start);
            had += other_end.min(range.end).saturating_sub(other_start.max(range.start));
            start = start.min(other_start);
            end = end.max(other_end);
        }
        self.ranges.insert(start, end);
        (range.end - range.start) - had
    }

    /// Takes a range out.
    pub fn remove(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        while let Some((&other_start, &other_end)) = self.ranges.range(..range.end).next_back() {
            if other_end <= range.start {
                break;
            }
            self.ranges.remove(&other_start);
            if other_end > range.end {
                self.ranges.insert(range.end, other_end);
            }
            if other_start < range.start {
                self.ranges.insert(other_start, range.start);
            }
        }
    }

    /// Whether any byte of the range is in the set.
    pub fn touches(&self, range: &Range<u64>) -> bool {
        !range.is_empty() && self.ranges.range(..range.end).next_back().is_some_and(|(_, &end)| end > range.start)
    }

    /// The parts of a range that are not in the set.
    pub fn gaps(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut gaps = Vec::new();
        let mut at = range.start;
        let first = self.ranges.range(..=at).next_back().map_or(at, |(&start, _)| start);
        for (&start, &end) in self.ranges.range(first..range.end) {
            if start > at {
                gaps.push(at..start);
            }
            at = at.max(end);
        }
        if at < range.end {
            gaps.push(at..range.end);
        }
        gaps
    }

    /// The ranges, in order.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> {
        self.ranges.iter().map(|(start, end)| *start..*end)
    }

    /// Bytes in the set.
    pub fn bytes(&self) -> u64 {
        self.ranges.iter().map(|(start, end)| end - start).sum()
    }

    /// How many ranges there are.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.ranges.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn agrees_with_a_set_of_bytes(
            steps in prop::collection::vec((any::<bool>(), 0u64..64, 0u64..24), 1..40),
            (probe, length) in (0u64..64, 0u64..24),
        ) {
            let mut set = RangeSet::default();
            let mut model = [false; 96];
            for (add, start, length) in steps {
                let range = start..start + length;
                let slots = start as usize..(start + length) as usize;
                if add {
                    let fresh = model[slots.clone()].iter().filter(|in_set| !**in_set).count() as u64;
                    prop_assert_eq!(set.insert(range), fresh);
                } else {
                    set.remove(range);
                }
                model[slots].fill(add);
            }
            let probe_slots = &model[probe as usize..(probe + length) as usize];
            let range = probe..probe + length;
            prop_assert_eq!(set.touches(&range), probe_slots.iter().any(|x| *x));
            let mut gaps = [false; 96];
            for gap in set.gaps(range.clone()) {
                prop_assert!(!gap.is_empty());
                gaps[gap.start as usize..gap.end as usize].fill(true);
            }
            for at in range {
                prop_assert_eq!(gaps[at as usize], !model[at as usize]);
            }
            prop_assert_eq!(set.bytes(), model.iter().filter(|x| **x).count() as u64);
        }
    }
}
