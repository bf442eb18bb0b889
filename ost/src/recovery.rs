//! After a restart: the clients that had locks are waited for, so that nobody is given what they may still hold.
//!
//! ```text
//!   start ──► Recovering{pending, until} ──┬─ last pending client said REPLAY_DONE ─► Full
//!     │                                    └─ the window ended: the absent are evicted ─► Full
//!     └─ nobody had locks ─► Full
//! ```
//!
//! While recovering, a pending client replays its locks; everything else is answered RECOVERING and tried again by the
//! client. The table of clients with locks is an index object: a client is in it before the reply that grants its first
//! lock leaves.

use std::collections::BTreeSet;
use std::time::Duration;

use nacre_wire::Uuid;

/// Where the target is. Pure: time is an argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// Waiting for clients of the life before.
    Recovering {
        /// Who has not finished replay.
        pending: BTreeSet<Uuid>,
        /// When waiting ends.
        until: Duration,
    },
    /// Serving.
    Full,
}

impl Recovery {
    /// The state of a start at `now`, with the clients found in the table.
    pub fn start(now: Duration, window: Duration, clients: BTreeSet<Uuid>) -> Recovery {
        if clients.is_empty() { Recovery::Full } else { Recovery::Recovering { pending: clients, until: now + window } }
    }

    /// Whether this client is waited for.
    pub fn awaits(&self, client: Uuid) -> bool {
        matches!(self, Recovery::Recovering { pending, .. } if pending.contains(&client))
    }

    /// The client has replayed, or has nothing to replay. `true`: it was the last.
    pub fn done(&mut self, client: Uuid) -> bool {
        let Recovery::Recovering { pending, .. } = self else { return false };
        pending.remove(&client);
        if pending.is_empty() {
            *self = Recovery::Full;
            return true;
        }
        false
    }

    /// The window has ended: answers who is to be evicted.
    pub fn end(&mut self) -> BTreeSet<Uuid> {
        match std::mem::replace(self, Recovery::Full) {
            Recovery::Recovering { pending, .. } => pending,
            Recovery::Full => BTreeSet::new(),
        }
    }

    /// Whether new requests are taken.
    pub fn is_full(&self) -> bool {
        *self == Recovery::Full
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_moves() {
        let (a, b) = (Uuid([1; 16]), Uuid([2; 16]));
        let window = Duration::from_secs(30);
        assert!(Recovery::start(Duration::ZERO, window, BTreeSet::new()).is_full());
        let mut state = Recovery::start(Duration::ZERO, window, BTreeSet::from([a, b]));
        assert!(state.awaits(a) && !state.is_full());
        assert!(!state.done(a));
        assert!(!state.awaits(a));
        assert!(!state.done(Uuid::NIL));
        assert!(state.done(b));
        assert!(state.is_full() && !state.done(b));
        let mut state = Recovery::start(Duration::ZERO, window, BTreeSet::from([a, b]));
        state.done(a);
        assert_eq!(state.end(), BTreeSet::from([b]));
        assert!(state.is_full() && state.end().is_empty());
    }
}
