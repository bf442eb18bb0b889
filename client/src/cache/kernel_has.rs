//! What the kernel may keep of one object on our word: pages, by range, and attributes.
//!
//! An object may be under several locks. When one goes the kernel forgets that range only; the others' pages stay, and
//! have to be forgotten with their locks. Nothing is taken off here before the kernel has forgotten it, so that the end of
//! another lock on the same bytes does not pass over them meanwhile.

use std::ops::Range;

use super::{RangeSet, blocks};

/// What the kernel may have.
#[derive(Debug, Default)]
pub(crate) struct KernelHas {
    data: RangeSet,
    attr: bool,
    notes: u64,
}

/// More ranges are taken for one.
const RANGES_MAX: usize = 4096;

impl KernelHas {
    /// The kernel is given pages of a range.
    pub fn note_data(&mut self, range: &Range<u64>) {
        self.notes += 1;
        self.data.insert(blocks(range.clone()));
        if self.data.len() > RANGES_MAX {
            self.data.insert(0..u64::MAX);
        }
    }

    /// The kernel is given attributes, which any lock of the object keeps true.
    pub fn note_attr(&mut self) {
        self.notes += 1;
        self.attr = true;
    }

    /// Whether the kernel may have anything that a lock on this range protects.
    pub fn may_have(&self, range: &Range<u64>) -> bool {
        self.attr || self.data.touches(range)
    }

    /// Grows with everything that the kernel is given.
    pub fn notes(&self) -> u64 {
        self.notes
    }

    /// The kernel was told to forget a range and the attributes when [`KernelHas::notes`] was `notes`, and has done so.
    /// Answers false, and believes nothing, if it was given anything since.
    pub fn forgot(&mut self, range: &Range<u64>, notes: u64) -> bool {
        if self.notes != notes {
            return false;
        }
        self.attr = false;
        self.data.remove(range.clone());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_locks_end_leaves_the_pages_of_the_others() {
        let mut kernel = KernelHas::default();
        kernel.note_data(&(0..100));
        kernel.note_data(&(1 << 20..(1 << 20) + 1));
        let notes = kernel.notes();
        assert!(kernel.may_have(&(4000..4096)), "pages are whole");
        assert!(kernel.forgot(&(0..4096), notes));
        assert!(!kernel.may_have(&(0..1 << 20)));
        assert!(kernel.may_have(&(4096..u64::MAX)));
    }

    #[test]
    fn what_comes_in_meanwhile_is_not_taken_for_forgotten() {
        let mut kernel = KernelHas::default();
        kernel.note_attr();
        let notes = kernel.notes();
        kernel.note_data(&(0..1));
        assert!(!kernel.forgot(&(0..u64::MAX), notes));
        assert!(kernel.may_have(&(0..1)));
        assert!(kernel.forgot(&(0..u64::MAX), kernel.notes()));
        assert!(!kernel.may_have(&(0..u64::MAX)));
    }

    #[test]
    fn very_many_ranges_are_one() {
        let mut kernel = KernelHas::default();
        (0..2 * RANGES_MAX as u64).for_each(|i| kernel.note_data(&(i * 8192..i * 8192 + 1)));
        assert!(kernel.data.len() <= RANGES_MAX);
        assert!(kernel.may_have(&(8192..8193)));
    }
}
