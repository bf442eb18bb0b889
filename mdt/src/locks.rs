//! LDLM locks of the MDT: inode bits under which clients cache, and file locks.
//!
//! A change takes a [`LocalLock`] on every inode whose cached bits it makes wrong; clients other than the one that asked
//! give theirs back first. A reading operation hands a lock out if that takes no waiting, *before* it reads what the
//! lock protects.

use std::rc::{Rc, Weak};

use futures_util::future::LocalBoxFuture;
use nacre_ldlm::{ClientId, Limits};
use nacre_reactor::Env;
use nacre_transport::target::locks::{LocalLock, LockHooks, LockReply, LockServer};
use nacre_wire::ldlm::{Cancel, Enqueue, EnqueueReply, Event, Granted, Ibits, Mode, Policy, ReplayLocks};
use nacre_wire::{Attr, Fid, Status, Uuid};

use crate::params::Params;
use crate::session::Client;
use crate::target::Mdt;

/// While it lives, no client but the one who asked holds the bits.
pub(crate) type Change = LocalLock;

/// "No lock": the answer may not be cached.
pub(crate) const NO_LOCK: Granted = Granted { cookie: 0, mode: Mode::Nl, policy: Policy::Plain };

/// The locks of one MDT.
pub(crate) struct Locks {
    pub(crate) server: Rc<LockServer>,
}

impl Locks {
    pub(crate) fn new(env: &Env, incarnation: u64, params: &Params) -> Locks {
        let limits = Limits { disconnect_grace: params.client_grace(), ..Limits::default() };
        Locks { server: LockServer::new(env.clone(), limits, incarnation) }
    }

    /// The grace time of clients may have been changed.
    pub(crate) fn set_grace(&self, params: &Params) {
        self.server.set_limits(Limits { disconnect_grace: params.client_grace(), ..self.server.limits() });
    }

    /// Takes bits of an inode from every other client.
    pub(crate) async fn change(&self, client: &Client, fid: Fid, bits: Ibits) -> Result<Change, Status> {
        self.server.local(fid, Mode::Ex, Policy::Ibits(bits), client.lock_id.get()).await
    }

    /// A read lock on the bits that are free, for the client to cache under; [`NO_LOCK`] if none are.
    pub(crate) fn try_grant(&self, client: &Client, fid: Fid, bits: Ibits) -> Granted {
        let Some(lock_id) = client.lock_id.get() else { return NO_LOCK };
        self.server.try_ibits(lock_id, fid, Mode::Pr, bits).unwrap_or(NO_LOCK)
    }

    /// Takes back what was granted for an answer that turned out to be wrong. It may be a lock that the client has had
    /// for longer: so the client is asked, and not just forgotten.
    pub(crate) fn give_back(&self, client: &Client, fid: Fid, granted: Granted) {
        if let (Some(lock_id), true) = (client.lock_id.get(), granted.cookie != 0) {
            let event = Event::Revoke { cookie: granted.cookie, resource: fid, wanted: Mode::Ex };
            self.server.send_event(lock_id, event);
        }
    }

    /// ENQUEUE of a client: file locks, and read locks on bits.
    pub(crate) fn enqueue(&self, client: &Client, xid: u64, request: &Enqueue) -> Result<EnqueueReply, Status> {
        let lock_id = client.lock_id.get().ok_or(Status::NO_SESSION)?;
        match request.policy {
            // Changes are made here: nobody else needs more than to read.
            Policy::Ibits(_) if !matches!(request.mode, Mode::Cr | Mode::Pr) => return Err(Status::EINVAL),
            Policy::Extent { .. } => return Err(Status::EINVAL),
            Policy::Ibits(_) | Policy::Plain | Policy::Flock { .. } => {}
        }
        let (granted, waiting) = match self.server.enqueue(lock_id, xid, request)? {
            LockReply::Granted(granted) | LockReply::Conflict(granted) => (granted, false),
            LockReply::Waiting(granted) => (granted, true),
        };
        Ok(EnqueueReply { granted, waiting, handle: 0, attr: None, grant_bytes: 0 })
    }

    /// CANCEL of a client.
    pub(crate) fn cancel(&self, client: &Client, request: &Cancel) {
        if let Some(lock_id) = client.lock_id.get() {
            self.server.cancel(lock_id, &request.cookies);
        }
    }

    /// REPLAY_LOCKS of a client.
    pub(crate) fn replay(&self, client: &Client, request: &ReplayLocks) -> Result<(), Status> {
        let lock_id = client.lock_id.get().ok_or(Status::NO_SESSION)?;
        for (resource, lock) in self.server.replay(lock_id, &request.locks) {
            // Two clients that claim to have held what excludes each other. The later one loses it.
            tracing::error!(client = *client.name.borrow(), %resource, ?lock, "a replayed lock conflicts; revoking it");
            self.server.send_event(lock_id, Event::Revoke { cookie: lock.cookie, resource, wanted: Mode::Ex });
        }
        Ok(())
    }

    /// Counters, by name.
    pub(crate) fn stats(&self) -> [(String, String); 5] {
        let stats = self.server.stats();
        [
            ("locks.granted".to_owned(), stats.granted.to_string()),
            ("locks.waiting".to_owned(), stats.waiting.to_string()),
            ("locks.resources".to_owned(), stats.resources.to_string()),
            ("locks.revokes".to_owned(), stats.revokes.to_string()),
            ("locks.evictions".to_owned(), stats.evictions.to_string()),
        ]
    }
}

/// The lock server's way to the MDT.
pub(crate) struct Hooks(pub(crate) Weak<Mdt>);

impl LockHooks for Hooks {
    fn value(&self, resource: Fid) -> LocalBoxFuture<'static, Option<Attr>> {
        let mdt = self.0.upgrade();
        Box::pin(async move { mdt?.attr(resource).await.ok() })
    }

    fn evicted(&self, client: ClientId, uuid: Uuid) {
        let Some(mdt) = self.0.upgrade() else { return };
        let known = mdt.clients.borrow().get(&uuid).cloned();
        if let Some(known) = known.filter(|known| known.lock_id.get() == Some(client)) {
            known.lock_id.set(None);
            mdt.dismiss(&known);
            tokio::task::spawn_local(async move { mdt.bury(&known).await });
        }
    }
}
