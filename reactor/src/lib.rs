//! Thread-per-core runtime: one tokio `current_thread` runtime per core, one io_uring per thread, owned buffers.
//!
//! A buffer under I/O is owned by the operation. Dropping the future that waits for it leaks nothing and frees nothing
//! early: the buffer stays with the ring until the device is done with it.

mod buf;
mod env;

pub use buf::DmaBuf;
pub use bytes::Bytes;
pub use env::{Env, Source};
