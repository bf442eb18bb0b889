//! LIST_XATTR: listxattr(2). The server's own attributes are not listed, `trusted.` ones only to the superuser.
//!
//! Lock order: none.

use nacre_wire::Status;
use nacre_wire::mdt::ListXattr;

use crate::session::Caller;
use crate::target::Mdt;
use crate::{disk, permission, status_of};

pub(crate) async fn run(mdt: &Mdt, _who: &Caller, request: ListXattr) -> Result<Vec<Vec<u8>>, Status> {
    mdt.attr(request.fid).await?;
    let all = mdt.store.xattrs(request.fid).await.map_err(status_of)?;
    let root = permission::is_root(&request.cred);
    let shown = |name: &Vec<u8>| !disk::is_internal(name) && (root || !name.starts_with(b"trusted."));
    Ok(all.into_iter().map(|(name, _)| name).filter(shown).collect())
}
