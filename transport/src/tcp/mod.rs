//! NVMe over TCP, both sides.
//!
//! A connection is one task. It reads what there is, handles every PDU in it, lets the answers gather and writes them with one
//! vectored write in the same turn: replies for a whole queue depth cost one system call. Calls that a service answers at once
//! never leave the task.

mod admin;
mod association;
mod connection;
mod host;
mod host_queue;
pub mod pdu;
mod rx;
mod space;
mod target;
mod tx;

pub use host::{TcpConnector, TcpOptions};
pub use target::{TcpListening, TcpService, TcpTarget};

use std::io;

use pdu::Violation;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("closed by the other side")]
    Closed,
    #[error("{0}")]
    Violation(#[from] Violation),
    #[error("the other side reports: {0}")]
    Terminated(String),
}
