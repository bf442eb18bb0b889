//! What the client keeps in memory: bytes not written yet, bytes read ahead, and sets of ranges to reason with.

mod clean;
mod dirty;
mod kernel_has;
mod ranges;

pub(crate) use clean::{CleanCache, Found};
pub(crate) use dirty::{DirtyMap, Segment};
pub(crate) use kernel_has::KernelHas;
pub(crate) use ranges::RangeSet;

/// Allocation unit of the stores, bytes: space is granted and counted in it.
pub(crate) const BLOCK_BYTES: u64 = 4096;

/// The whole blocks that a range touches.
pub(crate) fn blocks(range: std::ops::Range<u64>) -> std::ops::Range<u64> {
    let end = range.end.checked_next_multiple_of(BLOCK_BYTES).unwrap_or(u64::MAX);
    range.start / BLOCK_BYTES * BLOCK_BYTES..end
}
