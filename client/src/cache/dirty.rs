//! Bytes of one object that were written here and not sent yet, newest write on top.
//!
//! Segments are slices of the buffers that came down with the writes; nothing is copied until a batch is sent. Each keeps
//! the time of its write, because that is the object's mtime afterwards.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use nacre_reactor::Bytes;
use nacre_wire::Time;

use super::RangeSet;

/// A run of dirty bytes from one write.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    /// The bytes, never none.
    pub data: Bytes,
    /// Wall-clock time of the write.
    pub time: Time,
    /// When it became dirty, on the monotonic clock.
    pub since: Duration,
}

/// Dirty segments by offset; they do not overlap.
#[derive(Debug, Default)]
pub(crate) struct DirtyMap {
    segments: BTreeMap<u64, Segment>,
    bytes: u64,
}

impl DirtyMap {
    /// Puts a write on top of what is there.
    pub fn insert(&mut self, offset: u64, mut segment: Segment) {
        if segment.data.is_empty() {
            return;
        }
        let length = segment.data.len() as u64;
        // An fsync under way waits for what was here: it must find what has taken its place.
        let under = self.take(offset..offset + length, u64::MAX, &RangeSet::default(), Duration::MAX);
        segment.since = under.iter().map(|(_, old)| old.since).fold(segment.since, Duration::min);
        self.bytes += length;
        self.segments.insert(offset, segment);
    }

    /// Forgets a range; answers how many dirty bytes were in it.
    pub fn remove(&mut self, range: Range<u64>) -> u64 {
        self.take(range, u64::MAX, &RangeSet::default(), Duration::MAX).iter().map(|(_, s)| s.data.len() as u64).sum()
    }

    /// Takes segments out of a range, from its start, at most `bytes_max` bytes (segments are cut to fit) and nothing
    /// that touches `not` or became dirty after `until`.
    pub fn take(&mut self, range: Range<u64>, bytes_max: u64, not: &RangeSet, until: Duration) -> Vec<(u64, Segment)> {
        let mut taken = Vec::new();
        let mut room = bytes_max;
        for (start, segment) in self.overlapping(&range) {
            let end = start + segment.data.len() as u64;
            let (from, to) = (start.max(range.start), end.min(range.end));
            if room == 0 {
                break;
            }
            let to = to.min(from.saturating_add(room));
            if segment.since > until || not.touches(&(from..to)) {
                continue;
            }
            self.segments.remove(&start);
            let slice = |a: u64, b: u64| segment.data.slice((a - start) as usize..(b - start) as usize);
            if start < from {
                self.segments.insert(start, Segment { data: slice(start, from), ..segment.clone() });
            }
            if to < end {
                self.segments.insert(to, Segment { data: slice(to, end), ..segment.clone() });
            }
            room -= to - from;
            self.bytes -= to - from;
            taken.push((from, Segment { data: slice(from, to), ..segment.clone() }));
        }
        taken
    }

    /// The dirty bytes of a range, cut to it, in order.
    pub fn read(&self, range: &Range<u64>) -> Vec<(u64, Bytes)> {
        let cut = |(start, segment): (u64, Segment)| {
            let end = start + segment.data.len() as u64;
            let (from, to) = (start.max(range.start), end.min(range.end));
            (from, segment.data.slice((from - start) as usize..(to - start) as usize))
        };
        self.overlapping(range).into_iter().map(cut).collect()
    }

    /// Offset, length and time of everything dirty.
    pub fn times(&self) -> impl Iterator<Item = (u64, u64, Time)> {
        self.segments.iter().map(|(offset, segment)| (*offset, segment.data.len() as u64, segment.time))
    }

    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether nothing is dirty.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Whether anything in a range is dirty.
    pub fn touches(&self, range: &Range<u64>) -> bool {
        self.segments
            .range(..range.end)
            .next_back()
            .is_some_and(|(start, segment)| start + segment.data.len() as u64 > range.start)
    }

    /// Whether anything in a range has been dirty since `until` or longer.
    pub fn touches_until(&self, range: &Range<u64>, until: Duration) -> bool {
        until == Duration::MAX && self.touches(range)
            || until != Duration::MAX && self.overlapping(range).iter().any(|(_, segment)| segment.since <= until)
    }

    /// Since when the oldest of it is dirty.
    pub fn oldest(&self) -> Option<Duration> {
        self.segments.values().map(|segment| segment.since).min()
    }

    fn overlapping(&self, range: &Range<u64>) -> Vec<(u64, Segment)> {
        if range.is_empty() {
            return Vec::new();
        }
        let first = self.segments.range(..=range.start).next_back().map_or(range.start, |(&start, _)| start);
        self.segments
            .range(first..range.end)
            .filter(|(start, segment)| **start + segment.data.len() as u64 > range.start)
            .map(|(start, segment)| (*start, segment.clone()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Op {
        Write { at: u64, length: u64, byte: u8 },
        Remove { at: u64, length: u64 },
        Take { at: u64, length: u64, bytes_max: u64, not: Range<u64> },
    }

    fn op() -> impl Strategy<Value = Op> {
        let place = || (0u64..64, 0u64..20);
        prop_oneof![
            3 => (place(), any::<u8>()).prop_map(|((at, length), byte)| Op::Write { at, length, byte }),
            1 => place().prop_map(|(at, length)| Op::Remove { at, length }),
            1 => (place(), 0u64..30, place()).prop_map(|((at, length), bytes_max, (from, size))| {
                Op::Take { at, length, bytes_max, not: from..from + size }
            }),
        ]
    }

    proptest! {
        /// Against an array with one optional byte for each offset.
        #[test]
        fn agrees_with_an_array_of_bytes(ops in prop::collection::vec(op(), 1..60)) {
            let mut map = DirtyMap::default();
            let mut model: Vec<Option<u8>> = vec![None; 96];
            for op in ops {
                match op {
                    Op::Write { at, length, byte } => {
                        let data = Bytes::from(vec![byte; length as usize]);
                        map.insert(at, Segment { data, time: Time::default(), since: Duration::ZERO });
                        model[at as usize..(at + length) as usize].fill(Some(byte));
                    }
                    Op::Remove { at, length } => {
                        let slots = &mut model[at as usize..(at + length) as usize];
                        let had = slots.iter().filter(|slot| slot.is_some()).count() as u64;
                        prop_assert_eq!(map.remove(at..at + length), had);
                        slots.fill(None);
                    }
                    Op::Take { at, length, bytes_max, not } => {
                        let mut kept = RangeSet::default();
                        kept.insert(not.clone());
                        let taken = map.take(at..at + length, bytes_max, &kept, Duration::MAX);
                        let total: u64 = taken.iter().map(|(_, s)| s.data.len() as u64).sum();
                        prop_assert!(total <= bytes_max);
                        for (start, segment) in taken {
                            for (i, byte) in segment.data.iter().enumerate() {
                                let here = start + i as u64;
                                prop_assert!((at..at + length).contains(&here) && !not.contains(&here));
                                prop_assert_eq!(model[here as usize].take(), Some(*byte));
                            }
                        }
                    }
                }
                let mut seen = vec![None; 96];
                for (start, data) in map.read(&(0..96)) {
                    for (i, byte) in data.iter().enumerate() {
                        seen[start as usize + i] = Some(*byte);
                    }
                }
                prop_assert_eq!(&seen, &model);
                prop_assert_eq!(map.bytes(), model.iter().flatten().count() as u64);
                prop_assert_eq!(map.touches(&(10..20)), model[10..20].iter().any(|slot| slot.is_some()));
            }
        }
    }
}
