//! READ: bytes of an object, cut at its end; holes read zeros. Under the client's lock (PR or stronger on the range), or
//! under one taken here for the time of the command.

use nacre_transport::target::dispatch;
use nacre_transport::{Answer, Call};
use nacre_wire::Status;
use nacre_wire::ldlm::Mode;

use crate::locks::range_of;
use crate::target::Context;

pub(crate) async fn read(context: &Context, call: &Call) -> Result<Answer, Status> {
    let ost = &context.ost;
    let io = dispatch::object_io(call)?;
    let object = ost.handles.borrow().object(context.session.id, io.handle.get())?;
    let (offset, length) = (io.offset_bytes.get(), io.length_bytes.get());
    let range = range_of(offset, u64::from(length));
    let _lock = ost.io_lock(context.client, object, io.lock_cookie.get(), Mode::Pr, range).await?;
    let data = ost.store.read(object, offset, length as usize).await.map_err(|error| ost.status(error))?;
    ost.count(|stats| {
        stats.reads += 1;
        stats.read_bytes += data.len() as u64;
    });
    Ok(Answer { result: data.len() as u64, data })
}
