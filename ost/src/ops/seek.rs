//! SEEK: the next data or hole. Under a lock from the offset on: what others have cached is written first. The end of an
//! object is a hole; past it there is nothing (ENXIO).

use nacre_osd::store::Seek;
use nacre_transport::target::dispatch;
use nacre_transport::{Answer, Call};
use nacre_wire::Status;
use nacre_wire::ldlm::{Mode, Policy};

use crate::target::Context;

pub(crate) async fn seek(context: &Context, call: &Call) -> Result<Answer, Status> {
    let ost = &context.ost;
    let args = dispatch::object_seek(call)?;
    let object = ost.handles.borrow().object(context.session.id, args.handle.get())?;
    let offset = args.offset_bytes.get();
    let what = if args.what.get() == 0 { Seek::Data } else { Seek::Hole };
    let policy = Policy::Extent { start: offset, end: u64::MAX };
    let _lock = ost.locks.local(object, Mode::Pr, policy, Some(context.client)).await?;
    let found = ost.store.seek(object, offset, what).await.map_err(|error| ost.status(error))?;
    Ok(Answer { result: found.ok_or(Status::ENXIO)?, data: Default::default() })
}
