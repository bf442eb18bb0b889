//! After a start: clients of the last incarnation come back, tell which locks and opens they hold, and only then is
//! anybody served.
//!
//! ```text
//!            nobody known
//!  (start) ───────────────────────────────────► Serving ──stop──► Stopped
//!     │                                            ▲
//!     └─clients known─► Recovering ────────────────┘
//!                       all replayed, or window over; the absent are evicted
//! ```
//! Once serving, unlinked files that nobody has replayed as open are removed.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use nacre_wire::Uuid;
use tokio::sync::Notify;

use crate::session::{Client, ClientState};
use crate::target::Mdt;

/// Where the target is in the drawing above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Takes connects and replay; everything else is answered RECOVERING.
    Recovering,
    /// Serves.
    Serving,
    /// Answers ESHUTDOWN.
    Stopped,
}

/// The state of recovery.
pub(crate) struct Recovery {
    phase: Cell<Phase>,
    /// Who has not finished replay.
    awaited: RefCell<BTreeSet<Uuid>>,
    fewer: Notify,
}

impl Recovery {
    pub(crate) fn new(awaited: BTreeSet<Uuid>) -> Recovery {
        let phase = if awaited.is_empty() { Phase::Serving } else { Phase::Recovering };
        Recovery { phase: Cell::new(phase), awaited: RefCell::new(awaited), fewer: Notify::new() }
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase.get()
    }

    pub(crate) fn is_recovering(&self) -> bool {
        self.phase.get() == Phase::Recovering
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.phase.get() == Phase::Stopped
    }

    pub(crate) fn stop(&self) {
        self.phase.set(Phase::Stopped);
        self.fewer.notify_one();
    }

    /// A client need not be waited for.
    pub(crate) fn forget(&self, client: Uuid) {
        self.awaited.borrow_mut().remove(&client);
        self.fewer.notify_one();
    }

    /// Clients that are still waited for.
    pub(crate) fn awaited(&self) -> Vec<Uuid> {
        self.awaited.borrow().iter().copied().collect()
    }

    async fn everybody_done(&self) {
        while !self.awaited.borrow().is_empty() && !self.is_stopped() {
            self.fewer.notified().await;
        }
    }
}

impl Mdt {
    /// REPLAY_DONE.
    pub(crate) fn replay_done(&self, client: &Client) {
        if client.state.get() == ClientState::Replaying {
            client.state.set(ClientState::Active);
        }
        self.recovery.forget(client.uuid);
    }

    /// Waits for the recovery window, then opens the target to everybody.
    pub(crate) async fn recover(self: Rc<Mdt>, window: Duration) {
        if self.recovery.is_recovering() {
            tracing::info!(clients = self.recovery.awaited().len(), ?window, "recovering: waiting for clients");
            let in_time = tokio::time::timeout(window, self.recovery.everybody_done()).await.is_ok();
            if self.recovery.is_stopped() {
                return;
            }
            for uuid in self.recovery.awaited() {
                let Some(client) = self.clients.borrow().get(&uuid).cloned() else { continue };
                tracing::warn!(client = *client.name.borrow(), "evicting a client that did not come back in time");
                self.evict(&client).await;
            }
            if self.recovery.is_stopped() {
                return;
            }
            tracing::info!(in_time, "recovery is over");
            self.recovery.phase.set(Phase::Serving);
        }
        self.remove_orphans().await;
    }
}
