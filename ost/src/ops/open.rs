//! OPEN_OBJECT: a handle, without a lock.

use nacre_transport::target::dispatch;
use nacre_transport::{Answer, Call};
use nacre_wire::Status;
use nacre_wire::ost::{OpenObject, OpenObjectReply};

use crate::target::Context;

pub(crate) async fn open(context: &Context, call: &Call) -> Result<Answer, Status> {
    let ost = &context.ost;
    let OpenObject { object } = dispatch::rpc_body(call)?;
    ost.own_object(object)?;
    let attr = ost.store.attr(object).await.map_err(|error| ost.status(error))?;
    let handle = context.open_handle(object)?;
    Ok(dispatch::rpc_answer(&OpenObjectReply { handle, attr }, ost.store.last_committed()))
}
