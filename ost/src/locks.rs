//! Locks of an OST: what an I/O is done under, and what the lock server asks of the target.

use std::rc::Rc;

use futures_util::future::LocalBoxFuture;
use nacre_ldlm::{ClientId, mode, policy};
use nacre_transport::target::locks::{LocalLock, LockHooks};
use nacre_wire::ldlm::{Mode, Policy};
use nacre_wire::{Attr, Fid, Status, Uuid};

use crate::Ost;

/// A range with both ends in it.
pub(crate) type Range = (u64, u64);

/// Everything in an object.
pub(crate) const WHOLE: Range = (0, u64::MAX);

impl Ost {
    /// The lock that I/O on a range is done under: the client's own, which is checked, or one for the time of the command,
    /// which is answered and must be kept until the change is visible.
    pub(crate) async fn io_lock(
        self: &Rc<Ost>,
        client: ClientId,
        object: Fid,
        cookie: u64,
        wanted: Mode,
        range: Range,
    ) -> Result<Option<LocalLock>, Status> {
        if cookie == 0 {
            let policy = Policy::Extent { start: range.0, end: range.1 };
            return Ok(Some(self.locks.local(object, wanted, policy, Some(client)).await?));
        }
        self.check_lock(client, object, cookie, wanted, range)?;
        Ok(None)
    }

    /// Whether the client holds what it says it does.
    pub(crate) fn check_lock(
        &self,
        client: ClientId,
        object: Fid,
        cookie: u64,
        wanted: Mode,
        range: Range,
    ) -> Result<(), Status> {
        let (resource, held) = self.locks.held(client, cookie)?;
        let wanted_policy = Policy::Extent { start: range.0, end: range.1 };
        if resource == object && mode::covers(held.mode, wanted) && policy::contains(&held.policy, &wanted_policy) {
            Ok(())
        } else {
            Err(Status::NO_LOCK)
        }
    }
}

/// The range of an I/O; an empty one is where it starts.
pub(crate) fn range_of(offset_bytes: u64, length_bytes: u64) -> Range {
    (offset_bytes, offset_bytes.saturating_add(length_bytes.max(1) - 1))
}

impl LockHooks for Ost {
    fn value(&self, resource: Fid) -> LocalBoxFuture<'static, Option<Attr>> {
        let store = self.store.clone();
        Box::pin(async move {
            // The object may have been destroyed since; whoever is granted the lock will find out.
            store.attr(resource).await.ok()
        })
    }

    fn evicted(&self, client: ClientId, uuid: Uuid) {
        self.count(|stats| stats.evictions += 1);
        self.forget(client, uuid);
    }
}
