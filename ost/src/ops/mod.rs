//! One operation, one file.

pub(crate) mod attr;
pub(crate) mod connect;
pub(crate) mod destroy;
pub(crate) mod enqueue;
pub(crate) mod mwrite;
pub(crate) mod open;
pub(crate) mod precreate;
pub(crate) mod read;
pub(crate) mod seek;
pub(crate) mod space;
pub(crate) mod statfs;
pub(crate) mod sync;
pub(crate) mod write;
