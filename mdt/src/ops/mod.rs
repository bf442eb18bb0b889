//! One operation a file. Each opens with what POSIX wants of it, then the order of its locks, then the code.

pub(crate) mod close;
pub(crate) mod create;
pub(crate) mod enqueue;
pub(crate) mod fid_to_path;
pub(crate) mod get_attr;
pub(crate) mod get_stripe;
pub(crate) mod get_xattr;
pub(crate) mod link;
pub(crate) mod list_xattr;
pub(crate) mod lookup;
pub(crate) mod open;
pub(crate) mod read_dir;
pub(crate) mod read_link;
pub(crate) mod rename;
pub(crate) mod set_attr;
pub(crate) mod set_stripe;
pub(crate) mod set_xattr;
pub(crate) mod statfs;
pub(crate) mod sync;
pub(crate) mod unlink;

/// Most names a file has, as in Lustre on ldiskfs. Directories have no such limit.
pub(crate) const LINKS_MAX: u32 = 65_000;
