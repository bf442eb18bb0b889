//! Measurements, side by side in one run.

pub mod io;
pub mod md;
pub mod work;
