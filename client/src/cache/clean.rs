//! Bytes of one object that were read ahead and not asked for yet.
//!
//! A chunk is pending while its read is under way; whoever wants it waits for the object's notification and looks again.
//! A chunk that has been read to its end is dropped: from then on the kernel's page cache has it.

use std::collections::BTreeMap;
use std::ops::Range;

use nacre_reactor::Bytes;

/// Chunks by offset; they do not overlap.
#[derive(Debug, Default)]
pub(crate) struct CleanCache {
    chunks: BTreeMap<u64, Chunk>,
    bytes: u64,
}

#[derive(Debug)]
enum Chunk {
    /// Being read; the number tells this read from a later one of the same place.
    Pending { length: u64, ticket: u64 },
    /// Here. Shorter than what was asked for at the end of the object.
    Ready(Bytes),
}

/// What is known about a place.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// These bytes (at least one).
    Bytes(Bytes),
    /// A read is under way.
    Pending,
    /// Nothing up to this offset.
    Nothing(u64),
}

impl CleanCache {
    /// What there is at `range.start`.
    pub fn find(&self, range: &Range<u64>) -> Found {
        let Some((&start, chunk)) = self.chunks.range(..=range.start).next_back() else {
            return Found::Nothing(self.next_start(range));
        };
        match chunk {
            Chunk::Pending { length, .. } if range.start < start + length => Found::Pending,
            Chunk::Ready(data) if range.start < start + data.len() as u64 => {
                let end = range.end.min(start + data.len() as u64);
                Found::Bytes(data.slice((range.start - start) as usize..(end - start) as usize))
            }
            Chunk::Pending { .. } | Chunk::Ready(_) => Found::Nothing(self.next_start(range)),
        }
    }

    /// Whether any chunk touches the range.
    pub fn touches(&self, range: &Range<u64>) -> bool {
        let before = self.chunks.range(..range.end).next_back();
        before.is_some_and(|(start, chunk)| start + chunk.length() > range.start)
    }

    /// Announces a read of a range that nothing touches.
    pub fn reserve(&mut self, range: Range<u64>, ticket: u64) {
        debug_assert!(!self.touches(&range), "reserved twice");
        self.chunks.insert(range.start, Chunk::Pending { length: range.end - range.start, ticket });
    }

    /// The read of `reserve` ended; no data: it failed or found nothing. Answers whether the data is kept: not if it was
    /// discarded meanwhile.
    pub fn fill(&mut self, start: u64, ticket: u64, data: Option<Bytes>) -> bool {
        match self.chunks.get(&start) {
            Some(Chunk::Pending { ticket: mine, .. }) if *mine == ticket => {}
            _ => return false,
        }
        match data.filter(|data| !data.is_empty()) {
            Some(data) => {
                self.bytes += data.len() as u64;
                self.chunks.insert(start, Chunk::Ready(data));
                true
            }
            None => {
                self.chunks.remove(&start);
                false
            }
        }
    }

    /// Bytes up to `end` of the chunk that holds the byte before it have been read: drops it if that was its last.
    /// Answers the bytes freed.
    pub fn consumed(&mut self, end: u64) -> u64 {
        let Some((&start, Chunk::Ready(data))) = self.chunks.range(..end).next_back() else { return 0 };
        if start + data.len() as u64 != end {
            return 0;
        }
        self.drop_chunk(start)
    }

    /// Forgets every chunk that touches the range, pending ones too. Answers the bytes freed.
    pub fn discard(&mut self, range: &Range<u64>) -> u64 {
        let touched: Vec<u64> = self
            .chunks
            .range(..range.end)
            .rev()
            .take_while(|(start, chunk)| **start + chunk.length() > range.start)
            .map(|(start, _)| *start)
            .collect();
        touched.into_iter().map(|start| self.drop_chunk(start)).sum()
    }

    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn drop_chunk(&mut self, start: u64) -> u64 {
        let freed = match self.chunks.remove(&start) {
            Some(Chunk::Ready(data)) => data.len() as u64,
            Some(Chunk::Pending { .. }) | None => 0,
        };
        self.bytes -= freed;
        freed
    }

    fn next_start(&self, range: &Range<u64>) -> u64 {
        self.chunks.range(range.start + 1..).next().map_or(range.end, |(start, _)| range.end.min(*start))
    }
}

impl Chunk {
    fn length(&self) -> u64 {
        match self {
            Chunk::Pending { length, .. } => *length,
            Chunk::Ready(data) => data.len() as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_lives_from_its_announcement_to_its_last_byte() {
        let mut cache = CleanCache::default();
        assert_eq!(cache.find(&(0..10)), Found::Nothing(10));
        cache.reserve(4..8, 1);
        assert_eq!(cache.find(&(0..10)), Found::Nothing(4));
        assert_eq!(cache.find(&(5..10)), Found::Pending);
        assert!(cache.touches(&(7..9)) && !cache.touches(&(8..9)) && !cache.touches(&(0..4)));
        assert!(cache.fill(4, 1, Some(Bytes::from_static(b"abcd"))));
        assert_eq!(cache.find(&(5..10)), Found::Bytes(Bytes::from_static(b"bcd")));
        assert_eq!((cache.consumed(7), cache.bytes()), (0, 4));
        assert_eq!((cache.consumed(8), cache.bytes()), (4, 0));
        assert_eq!(cache.find(&(5..10)), Found::Nothing(10));
    }

    #[test]
    fn a_read_that_was_discarded_under_way_is_not_kept() {
        let mut cache = CleanCache::default();
        cache.reserve(0..4, 1);
        assert_eq!(cache.discard(&(3..9)), 0);
        cache.reserve(0..4, 2);
        assert!(!cache.fill(0, 1, Some(Bytes::from_static(b"old!"))));
        assert!(cache.fill(0, 2, Some(Bytes::from_static(b"new"))));
        assert_eq!(cache.find(&(0..4)), Found::Bytes(Bytes::from_static(b"new")));
        assert_eq!(cache.find(&(3..4)), Found::Nothing(4));
        assert_eq!(cache.discard(&(0..u64::MAX)), 3);
        assert!(!cache.fill(9, 9, None));
    }
}
