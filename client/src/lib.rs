//! The client: one mounted filesystem, spoken to by FID. Striping (lov), object clients (osc), metadata client (mdc), locks
//! and caches live here; llite (FUSE) and lloop (block devices) translate to it and hold no policy.
//!
//! - What is cached is cached under a lock of the server it came from, and forgotten, the kernel's copies included, before
//!   the lock is given back.
//! - What was sent runs on when its caller stops waiting; what was not sent is not.
//! - A change acknowledged here is visible to every other client at once. Written data is dirty here first: it survives the
//!   caller's death, not this process's, until fsync.
//!
//! | module | what |
//! |---|---|
//! | `mount` | servers, cluster map, unmount |
//! | `fs` | [`FileSystem`], open files |
//! | `names`, `attrs`, `flock` | the MDT side |
//! | `inode` | what is known of inodes and names, and under which locks |
//! | `file` | striping |
//! | `object`, `ost` | one object; one OST with its locks |
//! | `writeback`, `readahead` | when data travels |
#![forbid(unsafe_code)]

mod api;
mod attr_merge;
mod attrs;
mod cache;
mod client;
mod file;
mod flock;
mod fs;
mod handles;
mod inode;
mod kernel;
mod mount;
mod names;
mod object;
mod ost;
mod params;
mod readahead;
mod stable;
mod statfs;
mod stats;
mod writeback;

pub use api::{
    DirEntry, Entry, FileSystem, HandleId, KernelCache, LockOwner, LockRange, MountStatfs, OpenMode, Opened, SpaceMode,
    WriteMode,
};
pub use client::{Client, PeerStatus};
pub use kernel::NoKernel;
pub use mount::{MountError, MountSpec, Unmounted};
pub use params::{PARAMS, ParamError, ParamInfo, Params};
pub use stats::Stats;
