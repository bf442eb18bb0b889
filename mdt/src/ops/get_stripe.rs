//! GET_STRIPE: what a new file in a directory gets when nobody asks for anything: the directory's wish, filled up from the
//! filesystem's. ENOTDIR for others.
//!
//! Lock order: none.

use nacre_wire::layout::StripeHint;
use nacre_wire::mdt::GetStripe;
use nacre_wire::{Status, codec};

use crate::session::Caller;
use crate::target::Mdt;
use crate::{disk, status_of};

pub(crate) async fn run(mdt: &Mdt, _who: &Caller, request: GetStripe) -> Result<StripeHint, Status> {
    if !mdt.attr(request.fid).await?.is_dir() {
        return Err(Status::ENOTDIR);
    }
    let own: StripeHint = match mdt.store.xattr(request.fid, disk::XATTR_DMV).await.map_err(status_of)? {
        Some(value) => codec::decode(&value).map_err(|_| Status::EBADMSG)?,
        None => StripeHint::default(),
    };
    Ok(own.or(mdt.params.stripe_default()))
}
