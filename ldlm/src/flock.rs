//! File locks as applications know them: fcntl(2) byte ranges of an owner, which split, merge, are upgraded and
//! downgraded; and flock(2), one lock on the whole file, in a space of its own.
//!
//! ```text
//! held      R─────────────R        set W on the middle:    R───R W───W R───R
//! held      R───R     R───R        set R on the gap:       R─────────────R
//! held      W─────────────W        unlock the middle:      W───W     W───W
//! ```
//!
//! Invariant: ranges of one owner do not overlap, and neighbours of one mode that touch are one range.

use nacre_wire::ldlm::{Mode, Policy};

use crate::namespace::ClientId;

/// Who a file lock belongs to. bsd locks and POSIX locks do not see each other, so the kind is part of the owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlockOwner {
    /// The mount.
    pub client: ClientId,
    /// The owner within it.
    pub owner: u64,
    /// flock(2) rather than fcntl(2).
    pub bsd: bool,
}

/// One range that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flock {
    /// By whom.
    pub owner: FlockOwner,
    /// First byte.
    pub start: u64,
    /// Last byte.
    pub end: u64,
    /// F_WRLCK rather than F_RDLCK.
    pub write: bool,
    /// For F_GETLK.
    pub pid: u32,
}

impl Flock {
    /// As it travels.
    pub fn policy(&self) -> Policy {
        let (owner, bsd) = (self.owner.owner, self.owner.bsd);
        Policy::Flock { owner, start: self.start, end: self.end, pid: self.pid, bsd }
    }

    /// As it travels.
    pub fn mode(&self) -> Mode {
        if self.write { Mode::Pw } else { Mode::Pr }
    }

    /// The request that `mode` and `policy` of a client make; `None` when it is no flock. NL (unlock) gives `write: false`.
    pub fn from_wire(client: ClientId, mode: Mode, policy: &Policy) -> Option<Flock> {
        let Policy::Flock { owner, start, end, pid, bsd } = *policy else { return None };
        let owner = FlockOwner { client, owner, bsd };
        Some(Flock { owner, start, end, write: crate::mode::writes(mode), pid })
    }

    /// Whether one of two parties has to wait for the other.
    pub fn conflicts(&self, other: &Flock) -> bool {
        self.owner != other.owner
            && self.owner.bsd == other.owner.bsd
            && (self.write || other.write)
            && crate::extent::overlaps((self.start, self.end), (other.start, other.end))
    }
}

/// All file locks held on one file.
#[derive(Clone, Debug, Default)]
pub struct FlockTable {
    /// Sorted by owner, then start.
    held: Vec<Flock>,
}

impl FlockTable {
    /// Locks held that stand against `wanted`, lowest owner first.
    pub fn conflicts<'a>(&'a self, wanted: &'a Flock) -> impl Iterator<Item = &'a Flock> {
        self.held.iter().filter(move |held| held.conflicts(wanted))
    }

    /// The conflict that F_GETLK reports: the one that starts lowest.
    pub fn first_conflict(&self, wanted: &Flock) -> Option<Flock> {
        self.conflicts(wanted).min_by_key(|held| (held.start, held.owner)).copied()
    }

    /// Makes the owner hold exactly this on the range, whatever it held there before. Conflicts are the caller's business.
    pub fn set(&mut self, lock: Flock) {
        self.carve(lock.owner, lock.start, lock.end);
        let mut merged = lock;
        self.held.retain(|held| {
            let touches = held.owner == lock.owner
                && held.write == lock.write
                && (held.end.checked_add(1) == Some(merged.start) || merged.end.checked_add(1) == Some(held.start));
            if touches {
                merged.start = merged.start.min(held.start);
                merged.end = merged.end.max(held.end);
            }
            !touches
        });
        self.insert(merged);
    }

    /// Makes the owner hold nothing on the range.
    pub fn unlock(&mut self, owner: FlockOwner, start: u64, end: u64) {
        self.carve(owner, start, end);
    }

    /// Drops everything of one client. Says whether there was anything.
    pub fn remove_client(&mut self, client: ClientId) -> bool {
        let before = self.held.len();
        self.held.retain(|held| held.owner.client != client);
        self.held.len() != before
    }

    /// What is held, by owner and start.
    pub fn iter(&self) -> impl Iterator<Item = &Flock> {
        self.held.iter()
    }

    /// Whether nobody holds anything.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Cuts a range out of what the owner holds.
    fn carve(&mut self, owner: FlockOwner, start: u64, end: u64) {
        let mut rests = Vec::new();
        self.held.retain(|held| {
            if held.owner != owner || !crate::extent::overlaps((held.start, held.end), (start, end)) {
                return true;
            }
            if held.start < start {
                rests.push(Flock { end: start - 1, ..*held });
            }
            if held.end > end {
                rests.push(Flock { start: end + 1, ..*held });
            }
            false
        });
        rests.into_iter().for_each(|rest| self.insert(rest));
    }

    fn insert(&mut self, lock: Flock) {
        let at = self.held.partition_point(|held| (held.owner, held.start) < (lock.owner, lock.start));
        self.held.insert(at, lock);
    }
}
