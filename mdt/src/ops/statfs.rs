//! STATFS: space and inodes of this target.
//!
//! Lock order: none.

use nacre_wire::mdt::MdtStatfs;

use crate::target::Mdt;

/// What an inode takes on disk, about, bytes: attributes, layout, link, name, and their share of the index.
const INODE_BYTES: u64 = 1024;

pub(crate) fn run(mdt: &Mdt) -> MdtStatfs {
    let space = mdt.store.space();
    MdtStatfs {
        total_bytes: space.total_bytes,
        free_bytes: space.free_bytes,
        inodes: space.objects,
        inodes_free: space.free_bytes / INODE_BYTES,
    }
}
