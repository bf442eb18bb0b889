//! Object store over a block device.
//!
//! [`bdev`] is the narrow waist under the store: a device with SPDK's names and faults as just another backend.
//! [`store`] is the interface above it: objects, index objects and transactions. The engine keeps them on a bdev; the
//! model keeps them in memory and is what the engine is tested against.
#![forbid(unsafe_code)]

pub mod bdev;
pub mod check;
pub mod engine;
pub mod format;
pub mod model;
pub mod store;

pub use store::{Op, Store, StoreError, Transaction, Transno};
