//! A reactor: one thread, one tokio runtime, one io_uring.
//!
//! ```text
//!        ┌──────────────────────── turn ────────────────────────┐
//!  tasks run ──► driver task: submit, reap ──► (more tasks?) ──► park: submit, reap, sleep
//!        ▲                                                        │ socket, timer, message, eventfd of the ring
//!        └────────────────────────────────────────────────────────┘
//! ```
//!
//! The driver task becomes runnable with the first operation queued in a turn. It runs behind all tasks that were
//! runnable then, so that one system call submits what all of them queued; and it runs also when the thread never parks.

use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::Poll;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::{Builder, LocalOptions, LocalRuntime};

use crate::ring::{self, Ring};
use crate::stats::Stats;

/// How a reactor behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long to look for work before sleeping.
    pub spin: Spin,
    /// Entries of the submission queue.
    pub ring_entries: u32,
    /// Name in [`crate::stats::all`].
    pub name: String,
    /// The CPU that the thread is bound to, for [`crate::stats::all`].
    pub cpu: Option<usize>,
}

impl Default for Options {
    fn default() -> Options {
        Options { spin: Spin::For(Duration::ZERO), ring_entries: 256, name: "reactor".to_owned(), cpu: None }
    }
}

/// What an idle reactor does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spin {
    /// Polls for so long after the last work, then sleeps.
    For(Duration),
    /// Never sleeps (`--poll`).
    Always,
}

/// Why a reactor could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// io_uring is missing or forbidden.
    #[error("io_uring_setup: {source}{hint}")]
    Ring {
        /// The kernel's word.
        source: io::Error,
        /// What to do.
        hint: String,
    },
    /// Anything else.
    #[error("cannot start a reactor: {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's word.
        source: io::Error,
    },
}

/// A reactor on the thread that made it. [`run_on_this_thread`] is the short way.
pub struct Runtime {
    // In this order: the runtime drops its tasks, then the ring waits for what they left under way.
    runtime: Option<LocalRuntime>,
    ring: Rc<Ring>,
    before: Option<Rc<Ring>>,
    stats: Arc<Stats>,
}

impl Runtime {
    /// Makes the runtime and the ring, and makes it this thread's ring.
    pub fn new(options: &Options) -> Result<Runtime, StartError> {
        let system = |what| move |source| StartError::System { what, source };
        let signal = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| system("eventfd")(errno.into()))?;
        let ring = Rc::new(Ring::new(options.ring_entries, &signal).map_err(ring_error)?);
        let stats = Stats::register(options.name.clone(), options.cpu);

        let (parking, unparking) = (stats.clone(), stats.clone());
        let spinning = Arc::new(Spinning::new(options.spin));
        let spinning_on = spinning.clone();
        let runtime = Builder::new_current_thread()
            .enable_all()
            .on_thread_park(move || before_sleep(&spinning, &parking))
            .on_thread_unpark(move || {
                unparking.unpark();
                spinning_on.woke();
                if let Some(ring) = ring::current() {
                    ring.turn();
                }
            })
            .build_local(LocalOptions::default())
            .map_err(system("tokio runtime"))?;

        let before = ring::install(Some(ring.clone()));
        let runtime = Runtime { runtime: Some(runtime), ring, before, stats };
        let local = runtime.runtime.as_ref().expect("just made");
        let guard = local.enter();
        // SAFETY: an OwnedFd answers with the same open descriptor until it is dropped, and the AsyncFd owns it.
        let signal = unsafe { AsyncFd::register_with_interest(signal, Interest::READABLE) }
            .map_err(|error| system("watching the ring")(error.into_parts().1))?;
        drop(guard);
        local.spawn_local(drive(runtime.ring.clone(), signal));
        Ok(runtime)
    }

    /// Runs a future to its end, and the tasks that it spawns (`tokio::task::spawn_local`) while it runs.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.stats.enter();
        let output = self.runtime.as_ref().expect("taken by drop only").block_on(future);
        self.stats.leave();
        output
    }

    /// Busy and idle time of this reactor.
    pub fn stats(&self) -> Arc<Stats> {
        self.stats.clone()
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.runtime = None;
        self.ring.drain();
        ring::install(self.before.take());
    }
}

/// Runs `main` on this thread as a reactor, then drops the tasks that it left and waits for the I/O under way.
///
/// ```
/// use nacre_reactor::{Options, run_on_this_thread};
/// let sum = run_on_this_thread(&Options::default(), async {
///     tokio::task::spawn_local(async { 1 + 1 }).await.unwrap()
/// });
/// assert_eq!(sum.unwrap(), 2);
/// ```
pub fn run_on_this_thread<F: Future>(options: &Options, main: F) -> Result<F::Output, StartError> {
    let runtime = Runtime::new(options)?;
    Ok(runtime.block_on(main))
}

/// Submits and reaps whenever something was queued or the ring signalled.
async fn drive(ring: Rc<Ring>, signal: AsyncFd<OwnedFd>) {
    std::future::poll_fn(|cx| -> Poll<()> {
        ring.set_driver(cx.waker());
        // Registers for the next signal before looking at the ring. The eventfd is never read: tokio watches it
        // edge-triggered, and every signal is an edge.
        while let Poll::Ready(Ok(mut guard)) = signal.poll_read_ready(cx) {
            guard.clear_ready();
        }
        ring.turn();
        Poll::Pending
    })
    .await;
}

fn before_sleep(spinning: &Spinning, stats: &Stats) {
    let Some(ring) = ring::current() else { return };
    let completed = ring.turn();
    let keep_awake = spinning.keeps_awake(completed > 0);
    if keep_awake {
        // A runnable task turns the sleep into a look at the sockets.
        ring.wake_driver();
    }
    stats.park(keep_awake && completed == 0);
}

/// Whether an idle reactor still polls. Used by its thread alone; tokio wants its hooks `Sync`.
struct Spinning {
    spin: Spin,
    start: Instant,
    /// Time of the last sign of work, ns since `start`: a completion, or an event that ended a sleep.
    worked_ns: AtomicU64,
    slept: AtomicBool,
}

impl Spinning {
    fn new(spin: Spin) -> Spinning {
        Spinning { spin, start: Instant::now(), worked_ns: AtomicU64::new(0), slept: AtomicBool::new(false) }
    }

    fn keeps_awake(&self, worked: bool) -> bool {
        let limit = match self.spin {
            Spin::Always => return true,
            Spin::For(Duration::ZERO) => return false,
            Spin::For(limit) => limit,
        };
        let now_ns = self.start.elapsed().as_nanos() as u64;
        if worked {
            self.worked_ns.store(now_ns, Relaxed);
        }
        let awake = now_ns.saturating_sub(self.worked_ns.load(Relaxed)) < limit.as_nanos() as u64;
        self.slept.store(!awake, Relaxed);
        awake
    }

    fn woke(&self) {
        if self.slept.load(Relaxed) {
            self.slept.store(false, Relaxed);
            self.worked_ns.store(self.start.elapsed().as_nanos() as u64, Relaxed);
        }
    }
}

fn ring_error(source: io::Error) -> StartError {
    use rustix::io::Errno;
    let hint = match source.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::PERM) => {
            let setting = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
            match setting.as_deref().map(str::trim) {
                Ok("0") => "; a seccomp filter forbids io_uring (containers: run with a profile that allows \
                            io_uring_setup, io_uring_enter and io_uring_register)"
                    .to_owned(),
                Ok(value) => {
                    format!("; kernel.io_uring_disabled={value}: set it to 0 (sysctl kernel.io_uring_disabled=0)")
                }
                Err(_) => "; io_uring is forbidden here: allow it in the container's seccomp profile".to_owned(),
            }
        }
        Some(Errno::NOSYS) => "; this kernel has no io_uring: Linux 5.11 or later is needed".to_owned(),
        Some(Errno::NOMEM) => "; raise the limit of locked memory (ulimit -l)".to_owned(),
        Some(Errno::MFILE | Errno::NFILE) => "; raise the limit of open files (ulimit -n)".to_owned(),
        _ => String::new(),
    };
    StartError::Ring { source, hint }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn a_refused_ring_says_what_to_do() {
        for (errno, word) in [(Errno::PERM, "seccomp"), (Errno::NOSYS, "Linux 5.11"), (Errno::NOMEM, "ulimit -l")] {
            let text = ring_error(errno.into()).to_string();
            assert!(
                text.starts_with("io_uring_setup: ") && (text.contains(word) || text.contains("io_uring_disabled="))
            );
        }
    }

    #[test]
    fn spinning_ends_after_the_time_and_begins_with_work() {
        let spinning = Spinning::new(Spin::For(Duration::from_millis(20)));
        assert!(spinning.keeps_awake(true));
        std::thread::sleep(Duration::from_millis(30));
        assert!(!spinning.keeps_awake(false));
        spinning.woke();
        assert!(spinning.keeps_awake(false), "an event ended the sleep");
        std::thread::sleep(Duration::from_millis(30));
        spinning.woke();
        assert!(!spinning.keeps_awake(false), "it had not slept");
        assert!(Spinning::new(Spin::Always).keeps_awake(false));
        assert!(!Spinning::new(Spin::For(Duration::ZERO)).keeps_awake(true));
    }

    #[test]
    fn runtimes_follow_each_other_on_a_thread() {
        for _ in 0..3 {
            let answer = run_on_this_thread(&Options::default(), async {
                tokio::task::spawn_local(std::future::pending::<()>());
                tokio::time::sleep(Duration::from_millis(1)).await;
                ring::sleep(Duration::from_micros(100)).await;
                5
            });
            assert_eq!(answer.unwrap(), 5);
            assert!(ring::current().is_none());
        }
    }
}
