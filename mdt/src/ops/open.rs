//! OPEN: open(2) by FID, and the opening half of CREATE.
//!
//! - The inode's mode must allow what the flags ask for (EACCES). Directories open for reading only (EISDIR), symbolic
//!   links not at all (ELOOP).
//! - An open keeps the inode alive after its last name has gone. What has no name and is not open any more is ENOENT.
//! - `TRUNCATE` sets mtime and ctime, and unless it is the superuser who truncates takes setuid and setgid away; the bytes
//!   are the client's to cut.
//! - `WRITE` on a file that has no objects yet gives it some.
//! - An open that is sent again finds the handle that it made the first time.
//!
//! Lock order: the inode (UPDATE and PERM for `TRUNCATE`, LAYOUT where objects are given, else none).

use nacre_osd::store::{Durability, Op, Transaction};
use nacre_wire::attr::mode;
use nacre_wire::layout::StripeHint;
use nacre_wire::ldlm::Ibits;
use nacre_wire::mdt::{CreateReply, Cred, Open, OpenFlags};
use nacre_wire::{Attr, AttrPatch, Fid, Layout, Status, Time, codec};

use crate::session::{Caller, OpenFile};
use crate::target::{Done, Mdt};
use crate::{disk, permission, status_of};

/// What is to be opened, how, and for whom.
pub(crate) struct Opening<'a> {
    pub(crate) cred: &'a Cred,
    pub(crate) fid: Fid,
    pub(crate) flags: OpenFlags,
    pub(crate) lock: Ibits,
    pub(crate) time: Time,
}

pub(crate) async fn run(mdt: &Mdt, who: &Caller, request: Open) -> Result<CreateReply, Status> {
    let _opening = who.client.begin_open(who.xid).await;
    if who.resent
        && let Some(handle) = handle_of(who, request.fid)
    {
        let inode = mdt.inode(who, request.fid, request.lock).await?;
        return Ok(CreateReply { inode, created: false, handle, parent: None });
    }
    let Open { cred, fid, flags, lock, time } = &request;
    let opening = Opening { cred, fid: *fid, flags: *flags, lock: *lock, time: *time };
    let done = open(mdt, who, opening).await?;
    if let Some(transno) = done.transno {
        mdt.store.wait(transno, Durability::Written).await.map_err(status_of)?;
    }
    Ok(done.reply)
}

/// Opens what is there. Waits for the inode itself.
pub(crate) async fn open(mdt: &Mdt, who: &Caller, opening: Opening<'_>) -> Result<Done<CreateReply>, Status> {
    let Opening { cred, fid, flags, lock, time } = opening;
    let truncate = flags.contains(OpenFlags::TRUNCATE);
    let writes = flags.contains(OpenFlags::WRITE);
    let held = if truncate {
        mdt.hold(who, fid, Ibits::UPDATE | Ibits::PERM | Ibits::LAYOUT).await?
    } else {
        let quietly = mdt.hold_quietly(fid).await;
        if writes && mdt.layout(fid).await?.is_none() {
            // Rare enough to take directories and devices along; everybody who knows that there are no objects forgets it.
            drop(quietly);
            mdt.hold(who, fid, Ibits::LAYOUT).await?
        } else {
            quietly
        }
    };
    let mut attr = mdt.attr(fid).await?;
    if attr.nlink == 0 && mdt.open_count(fid) == 0 {
        return Err(Status::ENOENT);
    }
    match attr.mode & mode::TYPE {
        mode::SYMLINK => return Err(Status::ELOOP),
        mode::DIR if flags.intersects(OpenFlags::WRITE | OpenFlags::TRUNCATE) => return Err(Status::EISDIR),
        _ => {}
    }
    permission::access(&attr, cred, permission::for_open(flags))?;

    let mut ops = Vec::new();
    if attr.is_file() && truncate {
        if !permission::is_root(cred) {
            attr.mode = permission::without_privileges(attr.mode);
        }
        truncated(fid, &mut attr, time, &mut ops);
    }
    let mut transno = None;
    if attr.is_file() && writes && mdt.layout(fid).await?.is_none() {
        give_objects(mdt, fid, StripeHint::default(), &mut ops).await?;
    }
    if !ops.is_empty() {
        transno = Some(mdt.submit(ops).await?);
    }
    let handle = mdt.next_handle();
    mdt.add_open(&who.client, handle, OpenFile { fid, flags, xid: who.xid })?;
    drop(held);
    let inode = match mdt.inode(who, fid, lock).await {
        Ok(inode) => inode,
        Err(status) => {
            super::close::forget(mdt, &who.client, handle).await?;
            return Err(status);
        }
    };
    let reply = CreateReply { inode, created: false, handle, parent: None };
    Ok(Done { reply, transno, encoded: None })
}

/// Chooses a layout for a file that has none: as wished, else as its directory was set when it was made. The file is held.
/// The ids are on disk before the layout is.
pub(crate) async fn give_objects(mdt: &Mdt, fid: Fid, hint: StripeHint, ops: &mut Vec<Op>) -> Result<Layout, Status> {
    let inherited = mdt.stripe_of(fid).await?;
    let (stripe_size_bytes, stripes) = mdt.objects.take(hint.or(inherited)).await?;
    let layout = Layout::raid0(stripe_size_bytes, stripes);
    mdt.objects_given(&layout).await?;
    ops.push(Op::SetXattr { fid, name: disk::XATTR_LOV.to_vec(), value: codec::encode(&layout) });
    if inherited != StripeHint::default() {
        ops.push(Op::RemoveXattr { fid, name: disk::XATTR_DMV.to_vec() });
    }
    Ok(layout)
}

/// A file that is cut; `attr` has its new mode.
fn truncated(fid: Fid, attr: &mut Attr, time: Time, ops: &mut Vec<Op>) {
    attr.mtime = time;
    attr.ctime = attr.ctime.max(time);
    let patch = AttrPatch {
        mode: Some(attr.mode),
        size: Some(0),
        rdev: Some(time.to_ns()),
        mtime: Some(attr.mtime),
        ctime: Some(attr.ctime),
        ..AttrPatch::default()
    };
    ops.push(Op::SetAttr { fid, patch });
}

/// The handle that this very request has made before.
fn handle_of(who: &Caller, fid: Fid) -> Option<u64> {
    let opens = who.client.opens.borrow();
    opens.iter().find(|(_, open)| open.xid == who.xid && open.fid == fid).map(|(handle, _)| *handle)
}

impl Mdt {
    /// Notes on disk that these objects are given away, ahead of the transaction that uses them.
    async fn objects_given(&self, layout: &Layout) -> Result<(), Status> {
        let _turn = self.counters.lock().await;
        let mut ops = Vec::new();
        self.objects.ops(layout.stripes(), &mut ops);
        self.store.submit(Transaction { ops }).await.map_err(status_of)?;
        Ok(())
    }
}
