//! A closed loop: so many operations under way at all times, for so long; counts and latencies.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::task::JoinSet;

/// What one measurement found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Measured {
    /// Operations per second.
    pub per_second: f64,
    /// Bytes per second, where operations move bytes.
    pub bytes_per_second: f64,
    /// Median latency, µs.
    pub p50_us: f64,
    /// 99th percentile, µs.
    pub p99_us: f64,
}

/// Keeps `depth` calls of `operation` under way for `duration`. `operation` is given the number of the call. The first error
/// ends the measurement.
pub async fn closed_loop<F, R, E>(
    depth: usize,
    duration: Duration,
    bytes_each: usize,
    operation: F,
) -> Result<Measured, E>
where
    F: Fn(u64) -> R + 'static,
    R: Future<Output = Result<(), E>> + 'static,
    E: 'static,
{
    let operation = Rc::new(operation);
    let (next, latencies) = (Rc::new(Cell::new(0u64)), Rc::new(RefCell::new(Vec::new())));
    let start = Instant::now();
    let mut workers = JoinSet::new();
    for _ in 0..depth {
        let (operation, next, latencies) = (operation.clone(), next.clone(), latencies.clone());
        workers.spawn_local(async move {
            while start.elapsed() < duration {
                let number = next.replace(next.get() + 1);
                let began = Instant::now();
                operation(number).await?;
                latencies.borrow_mut().push(began.elapsed().as_nanos() as u64);
            }
            Ok(())
        });
    }
    while let Some(worker) = workers.join_next().await {
        worker.expect("a worker of the bench panicked")?;
    }
    let seconds = start.elapsed().as_secs_f64();
    let mut latencies = latencies.take();
    Ok(summarise(&mut latencies, seconds, bytes_each))
}

/// Rates and percentiles of latencies in nanoseconds.
pub fn summarise(latencies: &mut [u64], seconds: f64, bytes_each: usize) -> Measured {
    latencies.sort_unstable();
    let at = |part: f64| match latencies.len() {
        0 => 0.0,
        count => latencies[((count as f64 * part) as usize).min(count - 1)] as f64 / 1000.0,
    };
    let per_second = latencies.len() as f64 / seconds;
    Measured { per_second, bytes_per_second: per_second * bytes_each as f64, p50_us: at(0.5), p99_us: at(0.99) }
}

/// The measurement with the median rate.
pub fn median(mut rounds: Vec<Measured>) -> Measured {
    rounds.sort_by(|a, b| a.per_second.total_cmp(&b.per_second));
    let middle = rounds.len() / 2;
    rounds.into_iter().nth(middle).unwrap_or_default()
}

/// Offsets of whole blocks in a range, spread by a fixed sequence: the same in every run and for every target.
pub fn random_block(number: u64, block_bytes: u64, range_bytes: u64) -> u64 {
    // SplitMix64's mixer over the number: no state to share between workers.
    let mut mixed = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed ^ (mixed >> 31)) % (range_bytes / block_bytes) * block_bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_and_medians() {
        let mut latencies: Vec<u64> = (1..=1000).rev().map(|n| n * 1000).collect();
        let measured = summarise(&mut latencies, 2.0, 4096);
        assert_eq!((measured.per_second, measured.p50_us, measured.p99_us), (500.0, 501.0, 991.0));
        assert_eq!(measured.bytes_per_second, 500.0 * 4096.0);
        let of = |per_second| Measured { per_second, ..Measured::default() };
        assert_eq!(median(vec![of(3.0), of(1.0), of(2.0)]).per_second, 2.0);
        assert_eq!(summarise(&mut [], 1.0, 1).per_second, 0.0);
    }

    #[test]
    fn random_blocks_lie_in_the_range() {
        for number in 0..1000 {
            let offset = random_block(number, 4096, 1 << 20);
            assert!(offset.is_multiple_of(4096) && offset < 1 << 20);
        }
    }

    #[tokio::test(flavor = "local")]
    async fn the_loop_counts_what_it_did_and_stops_at_errors() {
        let done = Rc::new(Cell::new(0));
        let count = done.clone();
        let work = move |_| {
            count.set(count.get() + 1);
            async {
                tokio::task::yield_now().await;
                Ok::<_, ()>(())
            }
        };
        let measured = closed_loop(4, Duration::from_millis(50), 1, work).await.unwrap();
        assert!(done.get() > 4 && measured.per_second > 0.0);
        let failing = |number| async move { if number > 10 { Err("no") } else { Ok(()) } };
        assert!(matches!(closed_loop(2, Duration::from_secs(60), 1, failing).await, Err("no")));
    }
}
