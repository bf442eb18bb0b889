//! Thread-per-core runtime: one tokio `current_thread` runtime per core, one io_uring per thread, owned buffers.
//!
//! A buffer under I/O is owned by the operation. Dropping the future that waits for it leaks nothing and frees nothing
//! early: the buffer stays with the ring until the device is done with it.
//!
//! [`run_on_this_thread`] makes a reactor of the calling thread, [`Reactors`] starts threads. On a reactor,
//! `tokio::task::spawn_local` starts tasks and [`ring`] does file I/O.

mod buf;
mod env;
mod reactors;
pub mod ring;
mod runtime;
pub mod stats;

pub use buf::DmaBuf;
pub use bytes::Bytes;
pub use env::{Env, Source};
pub use reactors::{Answer, CpuMask, ParseCpuMaskError, Placement, ReactorGone, ReactorHandle, Reactors};
pub use runtime::{Options, Runtime, Spin, StartError, run_on_this_thread};
