//! Virtual time, and which seeds to run.

use std::future::Future;
use std::time::Duration;

use tokio::task::LocalSet;

/// Runs a simulation in virtual time, which ends after `limit` of it whatever happens.
///
/// # Panics
/// When it takes longer.
pub fn simulate<T>(limit: Duration, simulation: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().start_paused(true).build().expect("a runtime without threads can be made");
    runtime.block_on(LocalSet::new().run_until(async {
        match tokio::time::timeout(limit, simulation).await {
            Ok(outcome) => outcome,
            Err(_) => panic!("{} s of virtual time have passed", limit.as_secs()),
        }
    }))
}

/// The seeds to run: the one in `NACRE_SIM_SEED`, or else these.
///
/// # Panics
/// When the variable is not a number.
pub fn seeds(defaults: std::ops::Range<u64>) -> Vec<u64> {
    match std::env::var("NACRE_SIM_SEED") {
        Ok(seed) => vec![seed.parse().expect("NACRE_SIM_SEED is a number")],
        Err(_) => defaults.collect(),
    }
}
