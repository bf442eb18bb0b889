//! The client: one mounted filesystem, spoken to by FID. Striping (lov), object clients (osc), metadata client (mdc), locks
//! and caches live here; llite (FUSE) and lloop (block devices) translate to it and hold no policy.
#![forbid(unsafe_code)]

mod api;

pub use api::{
    DirEntry, Entry, FileSystem, HandleId, KernelCache, LockOwner, LockRange, MountStatfs, OpenMode, Opened, SpaceMode,
    WriteMode,
};
