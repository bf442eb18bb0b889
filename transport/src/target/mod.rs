//! The side that serves.

pub mod dispatch;
