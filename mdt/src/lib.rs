//! Metadata target: names, inodes, layouts, opens and metadata locks of one filesystem.
//!
//! Every change is one transaction of the store: the inode, the names, the parent's times, the answer in the reply slot
//! and the ids of the objects used. It is visible when it has been submitted, and then its locks go; the client is
//! answered once it is written, so that an answered change survives kill −9 of the server.
//!
//! - `target`: start, stop, the way from a command to an operation
//! - `ops`: one operation a file
//! - `session`, `slots`, `recovery`: clients, exactly-once, restarts
//! - `guards`, `locks`: operations against each other, operations against the caches of clients
//! - `objects`, `layout_choice`, `orphans`: what belongs to files on the OSTs, and what belongs to nobody any more
//! - `names`, `linkea`, `disk`: formats, see also `docs/disk.md`
#![forbid(unsafe_code)]

pub mod bench;
pub mod disk;
mod fids;
mod guards;
pub mod layout_choice;
pub mod linkea;
mod locks;
pub mod names;
mod objects;
mod ops;
mod orphans;
pub mod params;
pub mod permission;
mod recovery;
mod session;
pub mod slots;
mod target;

use nacre_osd::StoreError;
use nacre_osd::store::StoreErrorKind;
use nacre_wire::Status;

pub use params::{ParamError, ParamInfo, Params};
pub use recovery::Phase;
pub use target::{Mdt, MdtConfig, StartError};

/// The status of a store's error. What people have to look into is logged here, where the details are.
pub(crate) fn status_of(error: StoreError) -> Status {
    match error.kind {
        StoreErrorKind::NotFound | StoreErrorKind::Exists | StoreErrorKind::NoSpace => {}
        _ => tracing::error!(%error, "the metadata store failed"),
    }
    error.kind.status()
}
