//! FID_TO_PATH: every path of an inode, from its links upwards. A path that is being moved while it is walked may be
//! missing; an inode without names is ENOENT. The root's path is empty.
//!
//! Lock order: none.

use nacre_wire::mdt::FidToPath;
use nacre_wire::{Fid, Status};

use crate::session::Caller;
use crate::target::Mdt;

/// Longest path given, bytes: as in Lustre, longer than any that can be used.
const PATH_BYTES_MAX: usize = 1 << 16;

pub(crate) async fn run(mdt: &Mdt, _who: &Caller, request: FidToPath) -> Result<Vec<Vec<u8>>, Status> {
    mdt.attr(request.fid).await?;
    if request.fid == Fid::ROOT {
        return Ok(vec![Vec::new()]);
    }
    let mut paths = Vec::new();
    for link in mdt.links(request.fid).await? {
        paths.extend(path(mdt, link.parent, link.name).await?);
    }
    if paths.is_empty() { Err(Status::ENOENT) } else { Ok(paths) }
}

async fn path(mdt: &Mdt, mut at: Fid, name: Vec<u8>) -> Result<Option<Vec<u8>>, Status> {
    let mut path = name;
    while at != Fid::ROOT {
        let links = match mdt.links(at).await {
            Ok(links) => links,
            Err(Status::ENOENT) => return Ok(None),
            Err(status) => return Err(status),
        };
        let Some(link) = links.into_iter().next() else { return Ok(None) };
        let mut longer = link.name;
        longer.push(b'/');
        longer.extend_from_slice(&path);
        path = longer;
        if path.len() > PATH_BYTES_MAX {
            return Err(Status::ENAMETOOLONG);
        }
        at = link.parent;
    }
    Ok(Some(path))
}
