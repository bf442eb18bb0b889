//! CLOSE: the end of an open.
//!
//! - The last close of an inode without names removes it, and says so.
//! - Closing what is not open is no error: the close may be sent again, or the open may have ended with an eviction.
//! - The closer's size and times are kept as a hint for who scans inodes without asking the OSTs. Nothing is revoked for
//!   it, because nobody relies on it.
//!
//! Lock order: the inode (no bits).

use nacre_osd::store::Op;
use nacre_wire::mdt::{Close, CloseReply, OpenFlags};
use nacre_wire::{AttrPatch, Fid, Status};

use crate::session::{Caller, Client, OpenFile};
use crate::target::Mdt;

pub(crate) async fn run(mdt: &Mdt, who: &Caller, request: Close) -> Result<CloseReply, Status> {
    let known = who.client.opens.borrow().get(&request.handle).copied();
    let Some(open) = known.filter(|open| open.fid == request.fid) else { return Ok(CloseReply::default()) };
    if let Some(hint) = &request.attr {
        keep_hint(mdt, &open, hint).await?;
    }
    Ok(CloseReply { gone: forget(mdt, &who.client, request.handle).await? })
}

/// Ends an open of a client. Answers whether the inode is gone.
pub(crate) async fn forget(mdt: &Mdt, client: &Client, handle: u64) -> Result<bool, Status> {
    // Taken out before anything is waited for: two closes of one handle count once.
    let open = client.opens.borrow_mut().remove(&handle);
    match open {
        Some(open) => closed(mdt, open.fid).await,
        None => Ok(false),
    }
}

/// An open has been taken off its client's list. Answers whether the inode is gone.
pub(crate) async fn closed(mdt: &Mdt, fid: Fid) -> Result<bool, Status> {
    let last = {
        let mut counts = mdt.open_counts.borrow_mut();
        match counts.get_mut(&fid) {
            Some(count) if *count > 1 => {
                *count -= 1;
                false
            }
            _ => counts.remove(&fid).is_some(),
        }
    };
    if !last {
        return Ok(false);
    }
    // Under the guard: an unlink that is under way may have counted this open, and leaves the rest to us.
    let guard = mdt.guards.lock(fid).await;
    match mdt.attr(fid).await {
        Ok(attr) if attr.nlink == 0 => mdt.remove_orphan(fid, guard).await,
        Ok(_) => Ok(false),
        Err(Status::ENOENT) => Ok(true),
        Err(status) => Err(status),
    }
}

async fn keep_hint(mdt: &Mdt, open: &OpenFile, hint: &AttrPatch) -> Result<(), Status> {
    let fid = open.fid;
    let _held = mdt.hold_quietly(fid).await;
    let attr = match mdt.attr(fid).await {
        Ok(attr) if attr.is_file() && attr.nlink > 0 => attr,
        Ok(_) | Err(Status::ENOENT) => return Ok(()),
        Err(status) => return Err(status),
    };
    let mut patch = AttrPatch { atime: hint.atime.filter(|atime| *atime > attr.atime), ..AttrPatch::default() };
    if open.flags.contains(OpenFlags::WRITE) {
        patch.size = hint.size.filter(|size| *size != attr.size);
    }
    if patch != AttrPatch::default() {
        mdt.submit(vec![Op::SetAttr { fid, patch }]).await?;
    }
    Ok(())
}
