//! When to read ahead, and how far: a window for each open file that doubles while reads go on where the last ended.

use std::ops::Range;

/// Reads ahead start and end at multiples of this, bytes.
pub(crate) const CHUNK_BYTES: u64 = 1 << 20;

/// How far out of order two reads of one sequential reader may arrive, bytes (the kernel sends them concurrently).
const SLACK_BYTES: u64 = 1 << 20;

/// State of one open file.
#[derive(Debug, Default)]
pub(crate) struct ReadAhead {
    /// Where the next read is expected.
    next: u64,
    /// Bytes wanted ahead of the reader; 0: reads are random.
    window_bytes: u64,
    /// Everything up to here has been asked for.
    ahead_to: u64,
}

impl ReadAhead {
    /// A read arrives; answers what should be read ahead now, if anything.
    pub fn read(&mut self, range: &Range<u64>, window_bytes_max: u64, file_size: u64) -> Option<Range<u64>> {
        let near =
            range.start <= self.next.saturating_add(SLACK_BYTES) && range.end.saturating_add(SLACK_BYTES) > self.next;
        if !near {
            *self = ReadAhead { next: range.end, window_bytes: 0, ahead_to: 0 };
            return None;
        }
        self.next = self.next.max(range.end);
        if self.window_bytes == 0 && range.start == 0 && range.end >= file_size {
            return None;
        }
        let reached = range.end.saturating_add(self.window_bytes / 2);
        if self.window_bytes != 0 && self.ahead_to > reached {
            return None;
        }
        self.window_bytes = (self.window_bytes * 2).max(CHUNK_BYTES).min(window_bytes_max);
        if self.window_bytes == 0 {
            return None;
        }
        let from = self.ahead_to.max(range.end);
        let to = range.end.saturating_add(self.window_bytes).checked_next_multiple_of(CHUNK_BYTES)?.min(file_size);
        self.ahead_to = self.ahead_to.max(to);
        (from < to).then_some(from..to)
    }
}

/// Cuts a range at multiples of [`CHUNK_BYTES`].
pub(crate) fn chunks(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        let end = (at / CHUNK_BYTES + 1).saturating_mul(CHUNK_BYTES).min(range.end);
        let chunk = at..end;
        at = end;
        (!chunk.is_empty()).then_some(chunk)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const M: u64 = 1 << 20;

    #[test]
    fn the_window_grows_with_a_sequential_reader_and_stays_ahead() {
        let mut state = ReadAhead::default();
        let mut asked = 0;
        for read in 0..64 {
            let range = read * M / 8..(read + 1) * M / 8;
            if let Some(ahead) = state.read(&range, 4 * M, 100 * M) {
                assert_eq!(ahead.start, asked.max(range.end));
                asked = ahead.end;
            }
            assert!(asked > range.end, "read {read}: asked up to {asked}");
        }
        assert_eq!(state.window_bytes, 4 * M);
        assert!(asked <= 8 * M + 5 * M);
    }

    #[test]
    fn random_readers_and_small_files_read_nothing_ahead() {
        let mut state = ReadAhead::default();
        assert_eq!(state.read(&(0..4096), 8 * M, 4096), None);
        for at in [50 * M, 10 * M, 90 * M] {
            assert_eq!(state.read(&(at..at + 4096), 8 * M, 100 * M), None);
        }
        assert_eq!(state.read(&(90 * M + 4096..90 * M + 8192), 0, 100 * M), None);
    }

    #[test]
    fn chunks_cut_at_their_multiples() {
        let cut: Vec<_> = chunks(M - 1..2 * M + 5).collect();
        assert_eq!(cut, [M - 1..M, M..2 * M, 2 * M..2 * M + 5]);
        assert_eq!(chunks(7..7).count(), 0);
    }
}
