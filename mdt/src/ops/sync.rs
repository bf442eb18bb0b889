//! SYNC: fsync(2) of a directory or of an inode's attributes. The log is one: all that was done before is made stable.
//!
//! Lock order: none.

use nacre_osd::store::Durability;
use nacre_wire::Status;
use nacre_wire::mdt::Sync;

use crate::session::Caller;
use crate::status_of;
use crate::target::Mdt;

pub(crate) async fn run(mdt: &Mdt, _who: &Caller, _request: Sync) -> Result<(), Status> {
    let transno = mdt.store.last_transno();
    mdt.store.wait(transno, Durability::Stable).await.map_err(status_of)
}
