//! Busy and idle time of the reactors of this process, readable from any thread.

use std::sync::atomic::{AtomicI32, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Times of one reactor. Written by its thread alone.
#[derive(Debug)]
pub struct Stats {
    name: String,
    cpu: Option<usize>,
    /// 0 outside, 1 busy, 2 idle.
    state: AtomicU8,
    /// Since when the state holds, ns since the process began to count.
    since_ns: AtomicU64,
    busy_ns: AtomicU64,
    idle_ns: AtomicU64,
    parks: AtomicU64,
    thread_id: AtomicI32,
}

/// What [`all`] answers with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReactorTimes {
    /// Name of the thread.
    pub name: String,
    /// The CPU that it is bound to.
    pub cpu: Option<usize>,
    /// The system's number of its thread.
    pub thread_id: i32,
    /// Time spent running tasks.
    pub busy: Duration,
    /// Time spent asleep, or polling and finding nothing.
    pub idle: Duration,
    /// How often it went to sleep.
    pub parks: u64,
}

/// The reactors that there are, oldest first.
pub fn all() -> Vec<ReactorTimes> {
    let mut known = REACTORS.lock().unwrap_or_else(PoisonError::into_inner);
    known.retain(|stats| stats.strong_count() > 0);
    known.iter().filter_map(Weak::upgrade).map(|stats| stats.times()).collect()
}

impl Stats {
    pub(crate) fn register(name: String, cpu: Option<usize>) -> Arc<Stats> {
        let stats = Arc::new(Stats {
            name,
            cpu,
            state: AtomicU8::new(OUTSIDE),
            since_ns: AtomicU64::new(now_ns()),
            busy_ns: AtomicU64::new(0),
            idle_ns: AtomicU64::new(0),
            parks: AtomicU64::new(0),
            thread_id: AtomicI32::new(rustix::thread::gettid().as_raw_nonzero().get()),
        });
        REACTORS.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&stats));
        stats
    }

    /// The times until now.
    pub fn times(&self) -> ReactorTimes {
        let running = now_ns().saturating_sub(self.since_ns.load(Relaxed));
        let (busy, idle) = match self.state.load(Relaxed) {
            BUSY => (running, 0),
            IDLE => (0, running),
            _ => (0, 0),
        };
        ReactorTimes {
            name: self.name.clone(),
            cpu: self.cpu,
            thread_id: self.thread_id.load(Relaxed),
            busy: Duration::from_nanos(self.busy_ns.load(Relaxed) + busy),
            idle: Duration::from_nanos(self.idle_ns.load(Relaxed) + idle),
            parks: self.parks.load(Relaxed),
        }
    }

    pub(crate) fn enter(&self) {
        self.change(BUSY, false);
    }

    pub(crate) fn leave(&self) {
        self.change(OUTSIDE, false);
    }

    /// `polling`: the reactor will only look for events. If its turn found nothing in the ring and was short, nothing
    /// else ran and it counts as idle.
    pub(crate) fn park(&self, polling: bool) {
        self.parks.fetch_add(u64::from(!polling), Relaxed);
        self.change(IDLE, polling);
    }

    pub(crate) fn unpark(&self) {
        self.change(BUSY, false);
    }

    fn change(&self, state: u8, looked_only: bool) {
        let now = now_ns();
        let passed = now.saturating_sub(self.since_ns.swap(now, Relaxed));
        match self.state.swap(state, Relaxed) {
            BUSY if looked_only && passed < LOOK_NS => add(&self.idle_ns, passed),
            BUSY => add(&self.busy_ns, passed),
            IDLE => add(&self.idle_ns, passed),
            _ => {}
        }
    }
}

/// One writer: cheaper than a locked addition.
fn add(counter: &AtomicU64, value: u64) {
    counter.store(counter.load(Relaxed) + value, Relaxed);
}

fn now_ns() -> u64 {
    since_start_ns(Instant::now())
}

fn since_start_ns(now: Instant) -> u64 {
    now.saturating_duration_since(*START).as_nanos() as u64
}

static REACTORS: Mutex<Vec<Weak<Stats>>> = Mutex::new(Vec::new());
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

const OUTSIDE: u8 = 0;
const BUSY: u8 = 1;
const IDLE: u8 = 2;
/// A turn of a polling reactor that finds nothing takes less.
const LOOK_NS: u64 = 1_000;
