//! The management service: which targets a filesystem has, where they are, and its permanent parameters.
//!
//! [`registry`] is the logic, pure: a filesystem's state and what a registration makes of it. [`Mgs`] is the service
//! around it, which keeps the state in an object store as JSON text and answers only when a change is stable.
#![forbid(unsafe_code)]

pub mod registry;
mod session;
mod target;

pub use target::{Mgs, MgsError};
