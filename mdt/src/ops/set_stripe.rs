//! SET_STRIPE: `lfs setstripe`. Of a directory: what new files in it get; an empty wish takes its own wish away. Of a file
//! without objects: its objects; one that has some is EEXIST. For the owner and the superuser (EPERM).
//!
//! Lock order: the inode (directory: XATTR, UPDATE; file: LAYOUT, UPDATE).

use nacre_osd::store::Op;
use nacre_wire::layout::StripeHint;
use nacre_wire::ldlm::Ibits;
use nacre_wire::mdt::{Inode, SetStripe};
use nacre_wire::{AttrPatch, Status, codec};

use super::open::give_objects;
use crate::locks::NO_LOCK;
use crate::session::Caller;
use crate::target::{Done, Mdt};
use crate::{disk, permission};

pub(crate) type Request = SetStripe;

pub(crate) async fn run(mdt: &Mdt, who: &Caller, request: SetStripe) -> Result<Done<Inode>, Status> {
    request.hint.validate()?;
    let fid = request.fid;
    let _held = mdt.hold(who, fid, Ibits::XATTR | Ibits::LAYOUT | Ibits::UPDATE).await?;
    let mut attr = mdt.attr(fid).await?;
    if !permission::is_root(&request.cred) && request.cred.uid != attr.uid {
        return Err(Status::EPERM);
    }
    let mut ops = Vec::new();
    let mut layout = None;
    if attr.is_dir() {
        let name = disk::XATTR_DMV.to_vec();
        ops.push(if request.hint == StripeHint::default() {
            Op::RemoveXattr { fid, name }
        } else {
            Op::SetXattr { fid, name, value: codec::encode(&request.hint) }
        });
    } else if attr.is_file() {
        if mdt.layout(fid).await?.is_some() {
            return Err(Status::EEXIST);
        }
        layout = Some(give_objects(mdt, fid, request.hint, &mut ops).await?);
    } else {
        return Err(Status::EINVAL);
    }
    attr.ctime = attr.ctime.max(request.time);
    ops.push(Op::SetAttr { fid, patch: AttrPatch { ctime: Some(attr.ctime), ..AttrPatch::default() } });
    let reply = Inode { fid, attr, layout, lock: NO_LOCK };
    let done = mdt.commit(who, request.slot, ops, reply).await?;
    mdt.dir_forget(fid);
    Ok(done)
}
