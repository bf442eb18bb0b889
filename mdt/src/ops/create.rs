//! CREATE: open(2) with O_CREAT, mknod(2), mkdir(2), symlink(2).
//!
//! - The directory must be searchable (EACCES). A name that is there is EEXIST, unless a regular file is asked for without
//!   `exclusive` and with `open`: then what is there is opened, under the permission checks of an open; a directory is
//!   EISDIR if opened for writing.
//! - Without the name the directory must be writable (EACCES). Making device nodes is for the superuser (EPERM).
//! - The inode belongs to the caller; its group comes from the directory where that has setgid, and a new directory then
//!   has setgid as well. All four times are the request's, and so are mtime and ctime of the directory.
//! - A regular file that is opened as well, or comes with a wish for its striping, has its layout and objects from the
//!   start (ENOSPC if no OST has room). One that is only made (mknod) leaves its striping to be chosen: it gets objects
//!   with its first open for writing. A file opened by its creator is opened whatever its mode says.
//!
//! Lock order: directory (UPDATE), then, only if the name is there, the inode (`open`).
//!
//! The transaction is kept small, because this is the operation that there are most of: inode, layout, link, name,
//! times of the directory, last object id, reply slot.

use nacre_osd::store::Op;
use nacre_wire::attr::mode;
use nacre_wire::layout::StripeHint;
use nacre_wire::ldlm::Ibits;
use nacre_wire::mdt::{Create, CreateReply, Inode, NewKind, OpenFlags};
use nacre_wire::{Attr, AttrPatch, Layout, Status, codec};

use super::open::{self, Opening};
use crate::locks::NO_LOCK;
use crate::names::{self, Target};
use crate::session::{Caller, OpenFile};
use crate::target::{Dir, Done, Mdt, New, touched};
use crate::{disk, linkea, permission};

pub(crate) type Request = Create;

/// Longest target of a symbolic link, bytes (PATH_MAX without its NUL).
const SYMLINK_BYTES_MAX: usize = 4095;

pub(crate) async fn run(mdt: &Mdt, who: &Caller, request: Create) -> Result<Done<CreateReply>, Status> {
    names::validate(&request.name)?;
    if names::is_dot(&request.name) {
        return Err(Status::EEXIST);
    }
    let held = mdt.hold(who, request.parent, Ibits::UPDATE).await?;
    let dir = mdt.dir(request.parent).await?;
    permission::access(&dir.attr, &request.cred, permission::EXEC)?;
    if let Some(target) = mdt.entry(request.parent, &request.name).await? {
        // Boxed: the rare case must not make every create's state larger.
        return Box::pin(existing(mdt, who, &request, &dir, target)).await;
    }
    permission::access(&dir.attr, &request.cred, permission::WRITE | permission::EXEC)?;
    let made = make(mdt, who, &request, dir).await;
    drop(held);
    let done = made?;
    let fid = done.reply.inode.fid;
    Ok(mdt.with_lock(who, done, fid, request.lock, |reply| &mut reply.inode.lock))
}

async fn make(mdt: &Mdt, who: &Caller, request: &Create, dir: Dir) -> Result<Done<CreateReply>, Status> {
    let (new_mode, rdev) = mode_and_device(request)?;
    let (uid, gid, new_mode) = permission::for_new(&dir.attr, &request.cred, new_mode);
    let is_dir = new_mode & mode::TYPE == mode::DIR;
    let time = request.time;
    let mut attr = Attr {
        mode: new_mode,
        uid,
        gid,
        nlink: if is_dir { 2 } else { 1 },
        rdev,
        atime: time,
        mtime: time,
        ctime: time,
        btime: time,
        ..Attr::default()
    };

    let new_fid = mdt.new_fid();
    let fid = new_fid.fid;
    let mut ops = Vec::with_capacity(10);
    let mut layout = None;
    let mut size = None;
    match &request.kind {
        NewKind::File(hint) if request.open.is_some() || *hint != StripeHint::default() => {
            let (stripe_size_bytes, stripes) = mdt.objects.take(hint.or(dir.stripe)).await?;
            layout = Some(Layout::raid0(stripe_size_bytes, stripes));
        }
        NewKind::Symlink(target) => {
            attr.size = target.len() as u64;
            size = Some(attr.size);
        }
        NewKind::File(_) | NewKind::Dir(_) | NewKind::Special(_) => {}
    }
    ops.push(Op::Create { fid, attr: attr.clone() });
    if size.is_some() {
        ops.push(Op::SetAttr { fid, patch: AttrPatch { size, ..AttrPatch::default() } });
    }
    let mut set = |name: &[u8], value: Vec<u8>| ops.push(Op::SetXattr { fid, name: name.to_vec(), value });
    set(disk::XATTR_LINK, linkea::encode_one(request.parent, &request.name));
    if let Some(layout) = &layout {
        set(disk::XATTR_LOV, codec::encode(layout));
    }
    match &request.kind {
        NewKind::Symlink(target) => set(disk::XATTR_TARGET, target.clone()),
        // A file without objects remembers what it would have got here, as a directory does for its files.
        NewKind::Dir(hint) | NewKind::File(hint) if layout.is_none() => {
            hint.validate()?;
            let stripe = hint.or(dir.stripe);
            if stripe != StripeHint::default() {
                set(disk::XATTR_DMV, codec::encode(&stripe));
            }
        }
        NewKind::File(_) | NewKind::Dir(_) | NewKind::Special(_) => {}
    }
    let target = Target { fid, kind: new_mode & mode::TYPE };
    ops.push(Op::Put { index: request.parent, key: names::key(&request.name), value: target.to_value() });
    let mut parent = dir.attr;
    let mut patch = touched(&mut parent, time);
    if is_dir {
        parent.nlink = parent.nlink.checked_add(1).ok_or(Status::EMLINK)?;
        patch.nlink = Some(parent.nlink);
    }
    ops.push(Op::SetAttr { fid: request.parent, patch });

    let opened = request.open.filter(|_| attr.is_file());
    let handle = if opened.is_some() { mdt.next_handle() } else { 0 };
    let new = New { fid: Some(&new_fid), layout: layout.as_ref(), open_flags: opened.unwrap_or_default().bits() };
    let reply = CreateReply {
        inode: Inode { fid, attr, layout: layout.clone(), lock: NO_LOCK },
        created: true,
        handle,
        parent: Some(parent.clone()),
    };
    let done = mdt.commit_new(who, request.slot, ops, new, reply).await?;
    mdt.dir_changed(request.parent, &parent);
    mdt.names_changed();
    if let Some(flags) = opened {
        mdt.add_open(&who.client, handle, OpenFile { fid, flags, xid: who.xid })?;
    }
    Ok(done)
}

/// The name is there.
async fn existing(
    mdt: &Mdt,
    who: &Caller,
    request: &Create,
    dir: &Dir,
    target: Target,
) -> Result<Done<CreateReply>, Status> {
    let (NewKind::File(_), Some(flags), false) = (&request.kind, request.open, request.exclusive) else {
        return Err(Status::EEXIST);
    };
    if target.kind == mode::DIR && flags.intersects(OpenFlags::WRITE | OpenFlags::TRUNCATE) {
        return Err(Status::EISDIR);
    }
    let opening = Opening { cred: &request.cred, fid: target.fid, flags, lock: request.lock, time: request.time };
    let mut reply = open::open(mdt, who, opening).await?;
    reply.reply.parent = Some(dir.attr.clone());
    Ok(reply)
}

fn mode_and_device(request: &Create) -> Result<(u32, u64), Status> {
    let permissions = request.mode & 0o7777;
    Ok(match &request.kind {
        // See `Attr::rdev`: regular files keep there when mtime was set.
        NewKind::File(_) => (mode::FILE | permissions, request.time.to_ns()),
        NewKind::Dir(_) => (mode::DIR | permissions, 0),
        NewKind::Symlink(target) => {
            if target.is_empty() {
                return Err(Status::ENOENT);
            }
            if target.len() > SYMLINK_BYTES_MAX {
                return Err(Status::ENAMETOOLONG);
            }
            (mode::SYMLINK | 0o777, 0)
        }
        NewKind::Special(rdev) => {
            let kind = request.mode & mode::TYPE;
            match kind {
                mode::FIFO | mode::SOCKET => (kind | permissions, 0),
                mode::CHAR | mode::BLOCK if permission::is_root(&request.cred) => (kind | permissions, *rdev),
                mode::CHAR | mode::BLOCK => return Err(Status::EPERM),
                _ => return Err(Status::EINVAL),
            }
        }
    })
}
