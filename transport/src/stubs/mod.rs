//! Typed calls: one function for each message of [`nacre_wire`]. Each answers once, over any number of links; see
//! [`crate::host::Import`].

mod ldlm;
mod mdt;
mod mgs;
mod ost;

pub use ldlm::replay_locks;
pub use mdt::MdtClient;
pub use mgs::MgsClient;
pub use ost::{OstClient, SpaceChange, WriteRange};

/// Expected size of a reply that holds an inode or less.
const REPLY_SMALL_BYTES: u32 = 16 << 10;
