//! Plain locks cover a whole resource: every other plain lock, extent and set of bits in it, but not flocks, which live in
//! a space of their own.

use nacre_wire::ldlm::Policy;

/// Whether a plain lock and `other`, on the same resource, touch the same thing.
pub fn intersects(other: &Policy) -> bool {
    !matches!(other, Policy::Flock { .. })
}
