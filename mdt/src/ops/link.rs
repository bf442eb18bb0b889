//! LINK: link(2).
//!
//! - The directory must be searchable and writable (EACCES). The name must not be there (EEXIST). A directory cannot be
//!   linked (EPERM), an inode without names cannot be given one again (ENOENT). More than 65 000 names are EMLINK.
//! - ctime of the inode, and mtime and ctime of the directory, are the request's time.
//!
//! Lock order: directory (UPDATE), inode (UPDATE).

use nacre_osd::store::Op;
use nacre_wire::attr::mode;
use nacre_wire::ldlm::Ibits;
use nacre_wire::mdt::{CreateReply, Inode, Link};
use nacre_wire::{AttrPatch, Status};

use super::LINKS_MAX;
use crate::locks::NO_LOCK;
use crate::names::{self, Target};
use crate::session::Caller;
use crate::target::{Done, Mdt, touched};
use crate::{disk, linkea, permission};

pub(crate) type Request = Link;

pub(crate) async fn run(mdt: &Mdt, who: &Caller, request: Link) -> Result<Done<CreateReply>, Status> {
    names::validate(&request.name)?;
    if names::is_dot(&request.name) || request.fid == request.parent {
        return Err(if names::is_dot(&request.name) { Status::EEXIST } else { Status::EPERM });
    }
    let parent_held = mdt.hold(who, request.parent, Ibits::UPDATE).await?;
    let dir = mdt.dir(request.parent).await?;
    permission::access(&dir.attr, &request.cred, permission::EXEC)?;
    // Directories are refused before they are waited for: one may be above the parent, against the lock order.
    if mdt.attr(request.fid).await?.is_dir() {
        let there = mdt.entry(request.parent, &request.name).await?.is_some();
        permission::access(&dir.attr, &request.cred, permission::WRITE | permission::EXEC)?;
        return Err(if there { Status::EEXIST } else { Status::EPERM });
    }
    let inode_held = mdt.hold(who, request.fid, Ibits::UPDATE).await?;
    let mut attr = mdt.attr(request.fid).await?;
    if attr.nlink == 0 {
        return Err(Status::ENOENT);
    }
    if mdt.entry(request.parent, &request.name).await?.is_some() {
        return Err(Status::EEXIST);
    }
    permission::access(&dir.attr, &request.cred, permission::WRITE | permission::EXEC)?;
    if attr.nlink >= LINKS_MAX {
        return Err(Status::EMLINK);
    }
    let layout = if attr.is_file() { mdt.layout(request.fid).await? } else { None };
    attr.nlink += 1;
    attr.ctime = attr.ctime.max(request.time);
    let patch = AttrPatch { nlink: Some(attr.nlink), ctime: Some(attr.ctime), ..AttrPatch::default() };
    let mut links = mdt.links(request.fid).await?;
    linkea::add(&mut links, request.parent, &request.name);
    let mut parent = dir.attr;
    let target = Target { fid: request.fid, kind: attr.mode & mode::TYPE };
    let ops = vec![
        Op::Put { index: request.parent, key: names::key(&request.name), value: target.to_value() },
        Op::SetAttr { fid: request.fid, patch },
        Op::SetXattr { fid: request.fid, name: disk::XATTR_LINK.to_vec(), value: linkea::encode(&links) },
        Op::SetAttr { fid: request.parent, patch: touched(&mut parent, request.time) },
    ];
    let reply = CreateReply {
        inode: Inode { fid: request.fid, attr, layout, lock: NO_LOCK },
        created: true,
        handle: 0,
        parent: Some(parent.clone()),
    };
    let done = mdt.commit(who, request.slot, ops, reply).await?;
    mdt.dir_changed(request.parent, &parent);
    mdt.names_changed();
    drop((inode_held, parent_held));
    Ok(mdt.with_lock(who, done, request.fid, request.lock, |reply| &mut reply.inode.lock))
}
