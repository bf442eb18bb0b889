//! The side that asks: an [`Import`] keeps one service connected and sends what must arrive.

mod import;
mod state;

pub use import::{Import, ImportLink, ImportObserver, PeerSpec, Rpc, RpcReply, Unobserved};
pub use state::{ImportInput, ImportState, Unexpected};

use nacre_wire::Status;

/// Why a request through an [`Import`] was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    /// The service said no.
    #[error("{0}")]
    Status(Status),
    /// The request was under way when the server threw this client out: nobody knows whether it was done.
    #[error("evicted by the server while the request was under way")]
    Evicted,
    /// The import was closed.
    #[error("the connection was closed")]
    Closed,
}

impl From<ImportError> for Status {
    fn from(error: ImportError) -> Status {
        match error {
            ImportError::Status(status) => status,
            ImportError::Evicted => Status::EIO,
            ImportError::Closed => Status::ESHUTDOWN,
        }
    }
}

impl From<Status> for ImportError {
    fn from(status: Status) -> ImportError {
        ImportError::Status(status)
    }
}
