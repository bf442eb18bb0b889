//! Object storage target: objects, their bytes and attributes, extent locks on them, space grants.
//!
//! - A change is answered when it is *written* (survives the end of the process); with `io_flags::SYNC`, and for SYNC, when
//!   it is *stable* (survives power loss). Every change may be repeated: resends need no memory here.
//! - I/O is done under a lock: the client's own, named by its cookie and checked, or one that the server takes for the time
//!   of the command on the client's behalf (the client's own locks do not conflict with that one; keeping its own cache in
//!   step is its own business).
//! - Space granted to a client is never given to anybody else, so that what it caches can be written later.
//! - After a restart, clients that had locks are waited for ([`recovery`]) before anything new is done.
//!
//! Object ids: the top 8 of an id's 48 bits are the index of the MDT whose object it is.
//!
//! Objects private to the target: `Fid::local(1)`: clients with locks, UUID → name; `Fid::local(2)`: counters.
#![forbid(unsafe_code)]

mod grants;
mod locks;
mod ops;
mod params;
pub mod recovery;
mod session;
mod target;

pub use grants::Grants;
pub use params::{ParamError, ParamInfo, Params};
pub use target::{Ost, OstConfig, OstError, OstStats};

#[cfg(test)]
mod tests;
