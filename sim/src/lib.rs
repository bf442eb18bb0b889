//! The simulator: MGS, MDT, OSTs and clients, the real ones, on one thread with virtual time and one seed.
//!
//! Everything that happens follows from the seed: which operations, which messages are late, which links break, which
//! server dies and when. A test that fails prints its seed; `NACRE_SIM_SEED` runs it again.
//!
//! | module | what |
//! |---|---|
//! | `env` | clock and random numbers |
//! | `model` | what a filesystem should do, in the plainest words |
//! | `cluster` | servers that start, die and come back; mounts |
//! | `tree` | everything a mount or a model shows, to compare |
//! | `workload` | random operations, checked against the model |
//! | `chaos` | faults while they run |
#![forbid(unsafe_code)]

pub mod chaos;
pub mod cluster;
pub mod env;
pub mod model;
pub mod tree;
pub mod workload;
