//! The lock manager, as pure logic: no I/O, no clock. Every call takes the time and returns actions.
//!
//! [`Namespace`] is a server's half: resources, granted and waiting locks, callbacks, eviction. [`LockCache`] is a client's
//! half: what it holds, what uses it, what must go. [`FlockTable`] is the POSIX lock arithmetic that both need (the client
//! keeps one to replay from).
//!
//! Rules that a client keeps:
//! - A lock being revoked is written back, invalidated, then cancelled; cancelling needs no other lock.
//! - Nobody waits for one lock of a resource while using another lock of the same resource; locks of several resources are
//!   taken in one global order.
//! - A grant or a revoke may arrive twice (after a reconnect) and before the reply that names the lock; [`LockCache`]
//!   handles both.
#![forbid(unsafe_code)]

pub mod cache;
pub mod extent;
pub mod flock;
pub mod ibits;
pub mod mode;
pub mod namespace;
pub mod plain;
pub mod policy;

pub use cache::LockCache;
pub use flock::FlockTable;
pub use namespace::{Action, ClientId, Enqueued, Limits, LocalRequest, Namespace};
