//! Extent locks: bytes `start..=end` of an object, grown beyond what was asked for so that the next request of the same
//! client needs no lock of its own.

use nacre_wire::ldlm::Mode;

use crate::mode::{compatible, writes};

/// A range with both ends in it.
pub type Range = (u64, u64);

/// From so many conflicting locks on, growing stops at the request's own start: somebody is busy below.
pub const CONTENDED_DOWN: usize = 4;
/// From so many conflicting locks on, a write lock grows by [`GROWN_BYTES_MAX`] at most: many writers share the object.
pub const CONTENDED_UP: usize = 32;
/// See [`CONTENDED_UP`]; 32 MiB as in Lustre.
pub const GROWN_BYTES_MAX: u64 = 32 << 20;

/// Whether two ranges share a byte.
pub fn overlaps(a: Range, b: Range) -> bool {
    a.0 <= b.1 && b.0 <= a.1
}

/// The range to grant for a request that can be granted: as large as the others leave free. `others` are the locks,
/// granted and waiting, of all parties; those of compatible modes do not count.
pub fn grow(request: Range, mode: Mode, others: impl Iterator<Item = (Mode, Range)>) -> Range {
    let (mut low, mut high) = (0, u64::MAX);
    let mut conflicting = 0;
    for (_, other) in others.filter(|(theirs, _)| !compatible(*theirs, mode)) {
        conflicting += 1;
        // A waiter in the middle of the request keeps it from growing on the sides where it sticks out.
        if other.1 < request.0 {
            low = low.max(other.1 + 1);
        } else if other.0 <= request.0 {
            low = request.0;
        }
        if other.0 > request.1 {
            high = high.min(other.0 - 1);
        } else if other.1 >= request.1 {
            high = request.1;
        }
    }
    if conflicting > CONTENDED_DOWN {
        low = request.0;
    }
    if conflicting > CONTENDED_UP && writes(mode) {
        high = high.min(request.0.saturating_add(GROWN_BYTES_MAX - 1));
    }
    (low.min(request.0), high.max(request.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_between_its_neighbours() {
        let others = [(Mode::Pw, (0, 99)), (Mode::Pr, (1000, 1999)), (Mode::Nl, (150, 160))];
        assert_eq!(grow((200, 299), Mode::Pw, others.into_iter()), (100, 999));
        assert_eq!(grow((200, 299), Mode::Pr, others.into_iter()), (100, u64::MAX));
        assert_eq!(grow((5, 6), Mode::Pw, [].into_iter()), (0, u64::MAX));
        assert_eq!(grow((0, u64::MAX), Mode::Pw, [].into_iter()), (0, u64::MAX));
    }

    #[test]
    fn waiters_inside_the_request_stop_the_growth_on_their_side() {
        assert_eq!(grow((100, 199), Mode::Pw, [(Mode::Pw, (150, 500))].into_iter()), (0, 199));
        assert_eq!(grow((100, 199), Mode::Pw, [(Mode::Pw, (50, 150))].into_iter()), (100, u64::MAX));
        assert_eq!(grow((100, 199), Mode::Pw, [(Mode::Pw, (0, u64::MAX))].into_iter()), (100, 199));
    }

    #[test]
    fn contended_objects_give_smaller_locks() {
        let base = 1 << 40;
        let others = |n: u64| (0..n).map(|i| (Mode::Pw, (i * 10, i * 10 + 9)));
        assert_eq!(grow((base, base + 9), Mode::Pw, others(4)), (40, u64::MAX));
        assert_eq!(grow((base, base + 9), Mode::Pw, others(5)), (base, u64::MAX));
        assert_eq!(grow((base, base + 9), Mode::Pw, others(33)), (base, base + GROWN_BYTES_MAX - 1));
        let large = (base, base + 2 * GROWN_BYTES_MAX);
        assert_eq!(grow(large, Mode::Pw, others(33)), large);
        assert_eq!(grow((base, base + 9), Mode::Pr, others(33)), (base, u64::MAX));
    }
}
