//! What crosses a machine: identifiers, layouts, opcodes, messages and status numbers. `docs/wire.md` is the
//! specification; this crate is its executable form.
//!
//! Two encodings are used and nothing else. Command arguments are fixed 32-byte little-endian structs ([`op`]), because
//! they ride in CDW2–3 and CDW10–15 of an NVMe command. RPC bodies are the structs of [`mgs`], [`mdt`], [`ost`] and
//! [`ldlm`] in the postcard encoding ([`codec`]). There is no I/O here and no clock.
#![forbid(unsafe_code)]

pub mod attr;
pub mod codec;
pub mod fid;
pub mod layout;
pub mod ldlm;
pub mod map;
pub mod mdt;
pub mod mgs;
pub mod nid;
pub mod op;
pub mod ost;
pub mod session;
pub mod status;
pub mod uuid;

pub use attr::{Attr, AttrPatch, Time};
pub use fid::Fid;
pub use layout::Layout;
pub use map::ClusterMap;
pub use nid::Nid;
pub use status::Status;
pub use uuid::Uuid;
