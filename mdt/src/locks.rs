//! LDLM locks of the MDT: inode bits under which clients cache, and file locks.
//!
//! A change takes a [`Change`] on every inode whose cached bits it makes wrong; clients other than the one that asked
//! give theirs back first. A reading operation hands a lock out if that takes no waiting, *before* it reads what the
//! lock protects.

use std::rc::Rc;

use nacre_wire::ldlm::{Granted, Ibits, Mode, Policy};
use nacre_wire::{Fid, Status};

use crate::session::Client;

/// The lock server of one MDT.
pub(crate) struct Locks {}

/// While it lives, no client but the one who asked holds the bits.
pub(crate) struct Change {}

/// "No lock": the answer may not be cached.
pub(crate) const NO_LOCK: Granted = Granted { cookie: 0, mode: Mode::Nl, policy: Policy::Plain };

impl Locks {
    pub(crate) fn new() -> Locks {
        Locks {}
    }

    /// Takes bits of an inode from every other client.
    pub(crate) async fn change(&self, _client: &Client, _fid: Fid, _bits: Ibits) -> Result<Change, Status> {
        Ok(Change {})
    }

    /// A read lock on the bits that are free, for the client to cache under; [`NO_LOCK`] if none are.
    pub(crate) fn try_grant(&self, _client: &Rc<Client>, _fid: Fid, _bits: Ibits) -> Granted {
        NO_LOCK
    }

    /// Gives back what was granted for an answer that turned out to be nothing.
    pub(crate) fn give_back(&self, _client: &Rc<Client>, _granted: Granted) {}
}
