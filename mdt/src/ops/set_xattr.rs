//! SET_XATTR: setxattr(2) and removexattr(2).
//!
//! - `user.` is for files and directories (EPERM on others) and needs write permission; in a sticky directory's own
//!   attributes only its owner writes (EPERM). `trusted.` and `security.` are the superuser's (EPERM). Other namespaces do
//!   not exist (EOPNOTSUPP); the server's own attributes cannot be touched (EPERM).
//! - `create`: EEXIST if it is there. `replace`, and removing: ENODATA if it is not.
//! - ctime of the inode is the request's time.
//!
//! Lock order: the inode (XATTR, UPDATE).

use nacre_osd::store::Op;
use nacre_wire::attr::mode;
use nacre_wire::ldlm::Ibits;
use nacre_wire::mdt::{Cred, Inode, SetXattr};
use nacre_wire::{Attr, AttrPatch, Status};

use crate::locks::NO_LOCK;
use crate::session::Caller;
use crate::target::{Done, Mdt};
use crate::{disk, permission, status_of};

pub(crate) type Request = SetXattr;

/// Longest name, bytes (XATTR_NAME_MAX).
const NAME_BYTES_MAX: usize = 255;
/// Largest value, bytes (XATTR_SIZE_MAX).
const VALUE_BYTES_MAX: usize = 64 << 10;
/// E2BIG of Linux.
const E2BIG: Status = Status(7);

pub(crate) async fn run(mdt: &Mdt, who: &Caller, request: SetXattr) -> Result<Done<Inode>, Status> {
    let namespace = Namespace::of(&request.name)?;
    if request.name.len() > NAME_BYTES_MAX {
        return Err(Status::ERANGE);
    }
    if request.value.as_ref().is_some_and(|value| value.len() > VALUE_BYTES_MAX) {
        return Err(E2BIG);
    }
    if disk::is_internal(&request.name) {
        return Err(Status::EPERM);
    }
    let fid = request.fid;
    let _held = mdt.hold(who, fid, Ibits::XATTR | Ibits::UPDATE).await?;
    let mut attr = mdt.attr(fid).await?;
    may_write(namespace, &attr, &request.cred)?;
    let there = mdt.store.xattr(fid, &request.name).await.map_err(status_of)?.is_some();
    if there && request.create && request.value.is_some() {
        return Err(Status::EEXIST);
    }
    if !there && (request.replace || request.value.is_none()) {
        return Err(Status::ENODATA);
    }
    let layout = if attr.is_file() { mdt.layout(fid).await? } else { None };
    attr.ctime = attr.ctime.max(request.time);
    let change = match request.value {
        Some(value) => Op::SetXattr { fid, name: request.name, value },
        None => Op::RemoveXattr { fid, name: request.name },
    };
    let patch = AttrPatch { ctime: Some(attr.ctime), ..AttrPatch::default() };
    let ops = vec![change, Op::SetAttr { fid, patch }];
    let reply = Inode { fid, attr: attr.clone(), layout, lock: NO_LOCK };
    let done = mdt.commit(who, request.slot, ops, reply).await?;
    mdt.dir_changed(fid, &attr);
    Ok(done)
}

/// Namespaces of extended attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Namespace {
    User,
    Trusted,
    Security,
}

impl Namespace {
    /// EOPNOTSUPP for one that does not exist, EINVAL for a name that is only a prefix.
    pub(crate) fn of(name: &[u8]) -> Result<Namespace, Status> {
        let known =
            [(&b"user."[..], Namespace::User), (b"trusted.", Namespace::Trusted), (b"security.", Namespace::Security)];
        let (prefix, namespace) =
            known.into_iter().find(|(prefix, _)| name.starts_with(prefix)).ok_or(Status::EOPNOTSUPP)?;
        if name.len() == prefix.len() { Err(Status::EINVAL) } else { Ok(namespace) }
    }
}

fn may_write(namespace: Namespace, attr: &Attr, cred: &Cred) -> Result<(), Status> {
    match namespace {
        Namespace::User => match attr.mode & mode::TYPE {
            mode::FILE => permission::access(attr, cred, permission::WRITE),
            mode::DIR => {
                let protected = attr.mode & mode::STICKY != 0 && cred.uid != attr.uid;
                if protected && !permission::is_root(cred) {
                    return Err(Status::EPERM);
                }
                permission::access(attr, cred, permission::WRITE)
            }
            _ => Err(Status::EPERM),
        },
        Namespace::Trusted | Namespace::Security if permission::is_root(cred) => Ok(()),
        Namespace::Trusted | Namespace::Security => Err(Status::EPERM),
    }
}
