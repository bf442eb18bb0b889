//! STATFS: space as a writer sees it: what others were promised is not free.

use nacre_transport::target::dispatch;
use nacre_transport::{Answer, Call};
use nacre_wire::Status;
use nacre_wire::ost::OstStatfs;

use crate::Ost;

pub(crate) fn statfs(ost: &Ost, call: &Call) -> Result<Answer, Status> {
    let () = dispatch::rpc_body(call)?;
    let space = ost.store.space();
    let grants = ost.grants.borrow();
    let reply = OstStatfs {
        total_bytes: space.total_bytes,
        free_bytes: grants.for_anybody(space.free_bytes, ost.grant_limits()),
        granted_bytes: grants.total_bytes(),
        objects: space.objects,
        target_uuid: ost.uuid,
    };
    Ok(dispatch::rpc_answer(&reply, ost.store.last_committed()))
}
