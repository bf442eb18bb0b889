//! GET_XATTR: getxattr(2). What is not there, what the caller may not know of (`trusted.` for all but the superuser) and
//! the server's own attributes are ENODATA. Reading `user.` needs read permission (EACCES). The caller's buffer is the
//! client's affair (ERANGE).
//!
//! Lock order: none.

use nacre_wire::Status;
use nacre_wire::attr::mode;
use nacre_wire::mdt::GetXattr;

use super::set_xattr::Namespace;
use crate::session::Caller;
use crate::target::Mdt;
use crate::{disk, permission, status_of};

pub(crate) async fn run(mdt: &Mdt, _who: &Caller, request: GetXattr) -> Result<Vec<u8>, Status> {
    let namespace = Namespace::of(&request.name)?;
    let attr = mdt.attr(request.fid).await?;
    let hidden = match namespace {
        Namespace::User => !matches!(attr.mode & mode::TYPE, mode::FILE | mode::DIR),
        Namespace::Trusted => !permission::is_root(&request.cred),
        Namespace::Security => false,
    };
    if hidden || disk::is_internal(&request.name) {
        return Err(Status::ENODATA);
    }
    if namespace == Namespace::User {
        permission::access(&attr, &request.cred, permission::READ)?;
    }
    let value = mdt.store.xattr(request.fid, &request.name).await.map_err(status_of)?;
    value.ok_or(Status::ENODATA)
}
