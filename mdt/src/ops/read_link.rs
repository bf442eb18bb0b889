//! READ_LINK: readlink(2). What is no symbolic link is EINVAL.
//!
//! Lock order: none; the target of a link never changes.

use nacre_wire::Status;
use nacre_wire::attr::mode;
use nacre_wire::mdt::ReadLink;

use crate::session::Caller;
use crate::target::Mdt;
use crate::{disk, status_of};

pub(crate) async fn run(mdt: &Mdt, _who: &Caller, request: ReadLink) -> Result<Vec<u8>, Status> {
    let attr = mdt.attr(request.fid).await?;
    if attr.mode & mode::TYPE != mode::SYMLINK {
        return Err(Status::EINVAL);
    }
    let target = mdt.store.xattr(request.fid, disk::XATTR_TARGET).await.map_err(status_of)?;
    target.ok_or(Status::EBADMSG)
}
