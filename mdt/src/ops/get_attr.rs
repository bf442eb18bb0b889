//! GET_ATTR: stat(2) by FID. An inode that is gone is ENOENT; one that is only open still answers.
//!
//! Lock order: none. The client's lock is granted before the attributes are read.

use nacre_wire::Status;
use nacre_wire::mdt::{GetAttr, Inode};

use crate::session::Caller;
use crate::target::Mdt;

pub(crate) async fn run(mdt: &Mdt, who: &Caller, request: GetAttr) -> Result<Inode, Status> {
    mdt.inode(who, request.fid, request.lock).await
}
