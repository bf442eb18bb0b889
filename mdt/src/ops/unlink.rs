//! UNLINK: unlink(2) and, with `directory`, rmdir(2).
//!
//! - The directory must be searchable and writable (EACCES); under its sticky bit only the owner of it, of the victim, or
//!   the superuser removes (EPERM).
//! - unlink of a directory is EISDIR, rmdir of anything else ENOTDIR, rmdir of a directory that is not empty ENOTEMPTY.
//! - mtime and ctime of the directory and ctime of the victim are the request's time; the parent of a removed directory
//!   has one link less.
//! - The inode goes with its last name, or, if it is open somewhere, with its last close.
//!
//! Lock order: directory (UPDATE), victim (LOOKUP, UPDATE).

use nacre_osd::store::Op;
use nacre_wire::ldlm::Ibits;
use nacre_wire::mdt::{Unlink, UnlinkReply};
use nacre_wire::{Attr, AttrPatch, Fid, Status, Time};

use crate::names;
use crate::session::Caller;
use crate::target::{Done, Mdt, touched};
use crate::{disk, linkea, permission};

pub(crate) type Request = Unlink;

pub(crate) async fn run(mdt: &Mdt, who: &Caller, request: Unlink) -> Result<Done<UnlinkReply>, Status> {
    names::validate(&request.name)?;
    if names::is_dot(&request.name) {
        return Err(Status::EINVAL);
    }
    let _parent = mdt.hold(who, request.parent, Ibits::UPDATE).await?;
    let dir = mdt.dir(request.parent).await?;
    permission::access(&dir.attr, &request.cred, permission::EXEC)?;
    let Some(target) = mdt.entry(request.parent, &request.name).await? else { return Err(Status::ENOENT) };
    permission::access(&dir.attr, &request.cred, permission::WRITE | permission::EXEC)?;
    let _victim = mdt.hold(who, target.fid, Ibits::LOOKUP | Ibits::UPDATE).await?;
    let mut victim = match mdt.attr(target.fid).await {
        Ok(attr) => Some(attr),
        // A name that leads nowhere can only be removed.
        Err(Status::ENOENT) => {
            tracing::error!(parent = %request.parent, fid = %target.fid, "a name without an inode; removing it");
            None
        }
        Err(status) => return Err(status),
    };
    let mut parent = dir.attr;
    let mut ops = vec![Op::Delete { index: request.parent, key: names::key(&request.name) }];
    let mut patch = touched(&mut parent, request.time);
    let mut gone = false;
    if let Some(victim) = &mut victim {
        permission::sticky(&parent, victim, &request.cred)?;
        match (victim.is_dir(), request.directory) {
            (true, false) => return Err(Status::EISDIR),
            (false, true) => return Err(Status::ENOTDIR),
            _ => {}
        }
        if victim.is_dir() {
            mdt.require_empty(target.fid).await?;
            parent.nlink = parent.nlink.saturating_sub(1);
            patch.nlink = Some(parent.nlink);
        }
        let name = Name { parent: request.parent, name: &request.name };
        gone = mdt.drop_name(target.fid, victim, name, request.time, &mut ops).await?;
    }
    ops.push(Op::SetAttr { fid: request.parent, patch });
    let reply = UnlinkReply {
        victim: victim.map(|attr| (target.fid, attr)),
        gone,
        parent: parent.clone(),
        new_parent: None,
        moved: None,
    };
    let done = mdt.commit(who, request.slot, ops, reply).await?;
    mdt.dir_changed(request.parent, &parent);
    mdt.dir_forget(target.fid);
    mdt.names_changed();
    Ok(done)
}

/// A name in a directory.
#[derive(Clone, Copy)]
pub(crate) struct Name<'a> {
    pub(crate) parent: Fid,
    pub(crate) name: &'a [u8],
}

impl Mdt {
    /// ENOTEMPTY unless a directory, which is held, has no names.
    pub(crate) async fn require_empty(&self, fid: Fid) -> Result<(), Status> {
        let some = self.store.scan(fid, None, 1).await.map_err(crate::status_of)?;
        if some.is_empty() { Ok(()) } else { Err(Status::ENOTEMPTY) }
    }

    /// What a transaction has to do to an inode, which is held, that loses a name. `attr` is as it will be. Answers whether
    /// the inode goes, too.
    pub(crate) async fn drop_name(
        &self,
        fid: Fid,
        attr: &mut Attr,
        name: Name<'_>,
        time: Time,
        ops: &mut Vec<Op>,
    ) -> Result<bool, Status> {
        attr.nlink = if attr.is_dir() { 0 } else { attr.nlink.saturating_sub(1) };
        attr.ctime = attr.ctime.max(time);
        let patch = AttrPatch { nlink: Some(attr.nlink), ctime: Some(attr.ctime), ..AttrPatch::default() };
        if attr.nlink == 0 && self.drop_inode(fid, attr, ops).await? {
            return Ok(true);
        }
        ops.push(Op::SetAttr { fid, patch });
        let mut links = self.links(fid).await?;
        linkea::remove(&mut links, name.parent, name.name);
        ops.push(Op::SetXattr { fid, name: disk::XATTR_LINK.to_vec(), value: linkea::encode(&links) });
        Ok(false)
    }
}
