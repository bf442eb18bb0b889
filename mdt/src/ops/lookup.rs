//! LOOKUP: one step of a path.
//!
//! - `..` of the root is the root. A directory that has been removed has no names (ENOENT). What is no directory is
//!   ENOTDIR.
//! - Search permission is checked by the client's kernel: a lookup has no caller, its answer is cached for everybody.
//!
//! Lock order: none. Client's locks (the child, or the directory where there is no such name) are granted before what
//! they protect is read; the name is read again if any name has changed in between.

use nacre_wire::ldlm::Ibits;
use nacre_wire::mdt::{Lookup, LookupReply};
use nacre_wire::{Fid, Status};

use crate::locks::NO_LOCK;
use crate::session::Caller;
use crate::target::Mdt;
use crate::{linkea, names};

pub(crate) async fn run(mdt: &Mdt, who: &Caller, request: Lookup) -> Result<LookupReply, Status> {
    if request.name == b".." {
        let parent = mdt.parent_of(request.parent).await?;
        let inode = mdt.inode(who, parent, request.lock).await?;
        return Ok(LookupReply { inode: Some(inode), parent_lock: NO_LOCK });
    }
    names::validate(&request.name)?;
    loop {
        let before = mdt.names_changed.get();
        let target = mdt.entry(request.parent, &request.name).await?;
        let unchanged = || mdt.names_changed.get() == before;
        match target {
            Some(target) => match mdt.inode(who, target.fid, request.lock).await {
                Ok(inode) if unchanged() => {
                    return Ok(LookupReply { inode: Some(inode), parent_lock: NO_LOCK });
                }
                Ok(inode) if mdt.entry(request.parent, &request.name).await? == Some(target) => {
                    return Ok(LookupReply { inode: Some(inode), parent_lock: NO_LOCK });
                }
                Ok(inode) => mdt.locks.give_back(&who.client, inode.fid, inode.lock),
                // Removed since its name was read, or a name that leads nowhere.
                Err(Status::ENOENT) if !unchanged() => {}
                Err(status) => return Err(status),
            },
            None => {
                let attr = mdt.attr(request.parent).await?;
                if !attr.is_dir() {
                    return Err(Status::ENOTDIR);
                }
                if attr.nlink == 0 {
                    return Err(Status::ENOENT);
                }
                let wanted = !request.lock.is_empty();
                let parent_lock =
                    if wanted { mdt.locks.try_grant(&who.client, request.parent, Ibits::UPDATE) } else { NO_LOCK };
                if unchanged() {
                    return Ok(LookupReply { inode: None, parent_lock });
                }
                mdt.locks.give_back(&who.client, request.parent, parent_lock);
            }
        }
    }
}

impl Mdt {
    /// Where `..` leads.
    pub(crate) async fn parent_of(&self, fid: Fid) -> Result<Fid, Status> {
        if fid == Fid::ROOT {
            return Ok(fid);
        }
        let attr = self.attr(fid).await?;
        if !attr.is_dir() {
            return Err(Status::ENOTDIR);
        }
        let links = self.links(fid).await?;
        links.first().map(|link| link.parent).ok_or(Status::ENOENT)
    }

    /// Names of an inode; none if it has none.
    pub(crate) async fn links(&self, fid: Fid) -> Result<Vec<linkea::Link>, Status> {
        match self.store.xattr(fid, crate::disk::XATTR_LINK).await {
            Ok(Some(value)) => linkea::decode(&value),
            Ok(None) => Ok(Vec::new()),
            Err(error) => Err(crate::status_of(error)),
        }
    }
}
