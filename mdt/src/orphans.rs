//! Inodes without a name. One that is open somewhere stays, listed in the orphan index, until its last close; after a
//! restart those that nobody has replayed as open are removed.
//!
//! Removing a file moves its objects into the destroy log in the same transaction; `objects` does the rest.

use std::rc::Rc;

use nacre_osd::store::{Op, StoreErrorKind};
use nacre_wire::{Attr, Fid, Layout, Status};

use crate::guards::Guard;
use crate::target::Mdt;
use crate::{disk, status_of};

/// Orphans removed per page of the index.
const PAGE: usize = 128;

impl Mdt {
    /// What a transaction has to do so that an inode that has lost its last name goes: at once, or with its last close.
    /// `true`: at once. The inode's guard is held.
    pub(crate) async fn drop_inode(&self, fid: Fid, attr: &Attr, ops: &mut Vec<Op>) -> Result<bool, Status> {
        if self.open_count(fid) > 0 {
            ops.push(Op::Put { index: disk::ORPHANS, key: fid.to_key().to_vec(), value: Vec::new() });
            return Ok(false);
        }
        self.destroy_inode(fid, attr, ops).await?;
        Ok(true)
    }

    /// What a transaction has to do to remove an inode and its objects.
    pub(crate) async fn destroy_inode(&self, fid: Fid, attr: &Attr, ops: &mut Vec<Op>) -> Result<(), Status> {
        if attr.is_file()
            && let Some(layout) = self.layout(fid).await?
        {
            log_destroys(&layout, ops);
        }
        ops.push(Op::Destroy { fid });
        Ok(())
    }

    /// Removes an orphan after its last close. Does nothing if it has been opened again or is gone. Answers whether
    /// it is gone now. The guard is the inode's.
    pub(crate) async fn remove_orphan(&self, fid: Fid, _guard: Guard) -> Result<bool, Status> {
        if self.open_count(fid) > 0 {
            return Ok(false);
        }
        let mut ops = vec![Op::Delete { index: disk::ORPHANS, key: fid.to_key().to_vec() }];
        let mut gone = true;
        match self.store.attr(fid).await {
            Ok(attr) if attr.nlink == 0 => self.destroy_inode(fid, &attr, &mut ops).await?,
            // It has a name after all: only the entry in the index is wrong.
            Ok(_) => gone = false,
            Err(error) if error.kind == StoreErrorKind::NotFound => {}
            Err(error) => return Err(status_of(error)),
        }
        self.submit(ops).await?;
        Ok(gone)
    }

    /// Removes all orphans that nobody has open.
    pub(crate) async fn remove_orphans(self: &Rc<Mdt>) {
        let mut after: Option<Vec<u8>> = None;
        let mut removed = 0u64;
        loop {
            let page = match self.store.scan(disk::ORPHANS, after.as_deref(), PAGE).await {
                Ok(page) => page,
                Err(error) => {
                    tracing::error!(%error, "could not read the orphan index; its files stay until the next start");
                    return;
                }
            };
            for (key, _) in &page {
                if self.recovery.is_stopped() {
                    return;
                }
                let Ok(key) = <&[u8; 16]>::try_from(&key[..]) else { continue };
                let fid = Fid::from_key(key);
                if self.open_count(fid) > 0 {
                    continue;
                }
                match self.remove_orphan(fid, self.guards.lock(fid).await).await {
                    Ok(_) => removed += 1,
                    Err(status) => tracing::error!(%fid, %status, "could not remove an orphan; the next start will"),
                }
            }
            match page.last() {
                Some((key, _)) if page.len() == PAGE => after = Some(key.clone()),
                _ => break,
            }
        }
        if removed > 0 {
            tracing::info!(removed, "removed unlinked files that nobody has open");
        }
    }
}

/// Lists all objects of a file for destruction.
fn log_destroys(layout: &Layout, ops: &mut Vec<Op>) {
    for stripe in layout.components.iter().flat_map(|component| &component.stripes) {
        let key = disk::key_destroy(stripe.ost_index, stripe.object);
        ops.push(Op::Put { index: disk::DESTROYS, key, value: Vec::new() });
    }
}
