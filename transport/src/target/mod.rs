//! The side that serves.

pub mod dispatch;
pub mod locks;
