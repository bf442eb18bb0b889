//! SYNC: what was written before is on stable media when it answers. One log serves all objects, so syncing one is syncing
//! all; the range is a hint that is not needed.

use nacre_osd::store::Durability;
use nacre_transport::target::dispatch;
use nacre_transport::{Answer, Call};
use nacre_wire::Status;

use crate::target::Context;

pub(crate) async fn sync(context: &Context, call: &Call) -> Result<Answer, Status> {
    let ost = &context.ost;
    let io = dispatch::object_io(call)?;
    if io.handle.get() != 0 {
        ost.handles.borrow().object(context.session.id, io.handle.get())?;
    }
    ost.wait(ost.store.last_transno(), Durability::Stable).await?;
    ost.count(|stats| stats.syncs += 1);
    Ok(Answer { result: ost.store.last_committed(), data: Default::default() })
}
