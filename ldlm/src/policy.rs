//! Policies against each other: what touches what, what contains what, what makes sense at all.

use nacre_wire::ldlm::Policy;

use crate::{extent, plain};

/// Whether two locks of one resource touch the same thing, so that their modes matter.
pub fn intersects(a: &Policy, b: &Policy) -> bool {
    match (a, b) {
        (Policy::Plain, other) | (other, Policy::Plain) => plain::intersects(other),
        (Policy::Extent { start: a0, end: a1 }, Policy::Extent { start: b0, end: b1 }) => {
            extent::overlaps((*a0, *a1), (*b0, *b1))
        }
        (Policy::Ibits(a), Policy::Ibits(b)) => a.intersects(*b),
        // Flocks are kept apart, in a FlockTable; extents and bits never meet on one resource.
        _ => false,
    }
}

/// Whether a lock on `held` protects everything that one on `wanted` would.
pub fn contains(held: &Policy, wanted: &Policy) -> bool {
    match (held, wanted) {
        (Policy::Plain, other) => plain::intersects(other),
        (Policy::Extent { start: h0, end: h1 }, Policy::Extent { start: w0, end: w1 }) => h0 <= w0 && h1 >= w1,
        (Policy::Ibits(held), Policy::Ibits(wanted)) => held.contains(*wanted),
        _ => false,
    }
}

/// Whether a policy means something: ranges are not reversed, bits are not empty.
pub fn is_valid(policy: &Policy) -> bool {
    match policy {
        Policy::Plain => true,
        Policy::Extent { start, end } | Policy::Flock { start, end, .. } => start <= end,
        Policy::Ibits(bits) => !bits.is_empty(),
    }
}
