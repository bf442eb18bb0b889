//! SETATTR, GETATTR, SET_OWNER. An object has an owner (for accounting) and times; everything else about a file is the
//! MDT's. Times are set under a lock on the whole object, so that no write cached elsewhere brings them back.

use nacre_osd::store::{Durability, Op};
use nacre_transport::target::dispatch;
use nacre_transport::{Answer, Call};
use nacre_wire::ldlm::Mode;
use nacre_wire::ost::SetOwner;
use nacre_wire::{AttrPatch, Status, codec};

use crate::locks::WHOLE;
use crate::target::Context;

pub(crate) async fn setattr(context: &Context, call: &Call) -> Result<Answer, Status> {
    let ost = &context.ost;
    let io = dispatch::object_io(call)?;
    let object = ost.handles.borrow().object(context.session.id, io.handle.get())?;
    let patch: AttrPatch = codec::decode(&call.data)?;
    let AttrPatch { uid, gid, projid, atime, mtime, ctime, .. } = patch;
    let kept = AttrPatch { uid, gid, projid, atime, mtime, ctime, ..AttrPatch::default() };
    let nanoseconds_fit = [atime, mtime, ctime].into_iter().flatten().all(|time| time.nanoseconds < 1_000_000_000);
    // A size is set by a truncate; type, links and flags are not an object's.
    if kept != patch || !nanoseconds_fit {
        return Err(Status::EINVAL);
    }
    let lock = match mtime.or(ctime) {
        Some(_) => ost.io_lock(context.client, object, io.lock_cookie.get(), Mode::Pw, WHOLE).await?,
        None => None,
    };
    let transno = ost.submit(vec![Op::SetAttr { fid: object, patch }]).await?;
    drop(lock);
    ost.wait(transno, Durability::Written).await?;
    Ok(Answer::default())
}

pub(crate) async fn getattr(context: &Context, call: &Call) -> Result<Answer, Status> {
    let ost = &context.ost;
    let io = dispatch::object_io(call)?;
    let object = ost.handles.borrow().object(context.session.id, io.handle.get())?;
    let attr = ost.store.attr(object).await.map_err(|error| ost.status(error))?;
    Ok(Answer { result: 0, data: codec::encode(&attr).into() })
}

pub(crate) async fn set_owner(context: &Context, call: &Call) -> Result<Answer, Status> {
    let ost = &context.ost;
    let SetOwner { object, uid, gid, projid } = dispatch::rpc_body(call)?;
    ost.own_object(object)?;
    let patch = AttrPatch { uid: Some(uid), gid: Some(gid), projid: Some(projid), ..AttrPatch::default() };
    let transno = ost.submit(vec![Op::SetAttr { fid: object, patch }]).await?;
    ost.wait(transno, Durability::Written).await?;
    Ok(dispatch::rpc_answer(&(), ost.store.last_committed()))
}
