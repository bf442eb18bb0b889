//! Inode-bit locks: one inode, several things to protect. Bits conflict only where they intersect; what was asked for is
//! what is granted, except where a caller says that fewer bits will do.

use nacre_wire::ldlm::{Ibits, Mode};

use crate::mode::compatible;

/// The bits of `wanted` that none of the locks (mode and bits) of other parties stands against.
pub fn free_bits(wanted: Ibits, mode: Mode, others: impl Iterator<Item = (Mode, Ibits)>) -> Ibits {
    others.filter(|(theirs, _)| !compatible(*theirs, mode)).fold(wanted, |left, (_, bits)| left - bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_intersecting_incompatible_bits_are_taken_off() {
        let others = [(Mode::Ex, Ibits::UPDATE), (Mode::Pr, Ibits::LOOKUP), (Mode::Ex, Ibits::XATTR)];
        let wanted = Ibits::LOOKUP | Ibits::UPDATE | Ibits::PERM;
        assert_eq!(free_bits(wanted, Mode::Pr, others.into_iter()), Ibits::LOOKUP | Ibits::PERM);
        assert_eq!(free_bits(wanted, Mode::Ex, others.into_iter()), Ibits::PERM);
    }
}
