//! The engine.

pub mod index;
