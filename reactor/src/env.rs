//! Where services get the wall clock and random numbers from. The simulator supplies its own source; nothing in ost,
//! mdt, mgs, ldlm or client asks the operating system.

use std::rc::Rc;
use std::time::Duration;

use nacre_wire::{Time, Uuid};
use tokio::time::Instant;

/// Wall clock and randomness.
pub trait Source {
    /// Wall-clock time.
    fn wall(&self) -> Time;
    /// Uniform random bits.
    fn random(&self) -> u64;
}

/// A handle on the [`Source`] of this reactor, and its monotonic clock, which is tokio's (virtual in the simulator).
#[derive(Clone)]
pub struct Env {
    source: Rc<dyn Source>,
    start: Instant,
}

impl Env {
    /// An environment over a source; its monotonic clock starts at zero now.
    pub fn new(source: Rc<dyn Source>) -> Env {
        Env { source, start: Instant::now() }
    }

    /// The operating system's clock and randomness.
    pub fn system() -> Env {
        Env::new(Rc::new(System))
    }

    /// Wall-clock time.
    pub fn wall(&self) -> Time {
        self.source.wall()
    }

    /// Time since this environment was made.
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Uniform random bits.
    pub fn random(&self) -> u64 {
        self.source.random()
    }

    /// A new UUID.
    pub fn uuid(&self) -> Uuid {
        Uuid::from_random(self.random(), self.random())
    }
}

struct System;

impl Source for System {
    fn wall(&self) -> Time {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        Time { seconds: now.tv_sec, nanoseconds: now.tv_nsec as u32 }
    }

    fn random(&self) -> u64 {
        let mut bytes = [0u8; 8];
        // Up to 256 bytes are never short once the pool is initialised (getrandom(2)); before that the call waits.
        rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())
            .expect("getrandom is in every kernel since 3.17");
        u64::from_le_bytes(bytes)
    }
}
