//! The simulator's world: random numbers from a seed, a wall clock that follows tokio's virtual time.

use std::cell::Cell;
use std::rc::Rc;

use nacre_reactor::{Env, Source};
use nacre_wire::Time;
use tokio::time::Instant;

/// SplitMix64 (Steele, Lea, Flood 2014): small, seedable, and every seed gives another sequence.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A sequence of its own.
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    /// The next number.
    #[allow(clippy::should_implement_trait, reason = "it has no end, so there is no Option")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// 0..bound; the bias of a modulus does not matter to a test.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// Whether something of this chance in a hundred happens.
    pub fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }
}

struct Seeded {
    state: Cell<u64>,
    start: Instant,
}

impl Source for Seeded {
    fn wall(&self) -> Time {
        let elapsed = self.start.elapsed();
        // Somewhere in 2026, so that times look like times.
        Time { seconds: 1_790_000_000 + elapsed.as_secs() as i64, nanoseconds: elapsed.subsec_nanos() }
    }

    fn random(&self) -> u64 {
        let mut rng = Rng(self.state.get());
        let number = rng.next();
        self.state.set(rng.0);
        number
    }
}

/// An environment of the simulator. All environments of one run must be made from different seeds.
pub fn env(seed: u64) -> Env {
    Env::new(Rc::new(Seeded { state: Cell::new(seed), start: Instant::now() }))
}
