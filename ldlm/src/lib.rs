//! The lock manager, as pure logic: no I/O, no clock. Every call takes the time and returns actions.
//!
//! [`Namespace`] is a server's half: resources, granted and waiting locks, callbacks, eviction. [`LockCache`] is a client's
//! half: what it holds, what uses it, what must go.
#![forbid(unsafe_code)]
