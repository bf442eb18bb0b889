//! `Reactors`: reactor threads, and messages to them.

use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::thread::JoinHandle as Thread;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tokio::sync::{mpsc, oneshot};

use crate::runtime::{Options, Runtime, Spin, StartError};
use crate::stats::Stats;

/// The CPUs to run reactors on, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuMask(Vec<usize>);

impl CpuMask {
    /// These CPUs.
    pub fn new(cpus: Vec<usize>) -> CpuMask {
        CpuMask(cpus)
    }

    /// SPDK's notations: `0x3` (a hexadecimal mask) or `[0,2-3]` (a list).
    pub fn parse(text: &str) -> Result<CpuMask, ParseCpuMaskError> {
        let wrong = || ParseCpuMaskError(text.to_owned());
        let mut cpus = Vec::new();
        if let Some(list) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            for part in list.split(',') {
                let (first, last) = part.split_once('-').unwrap_or((part, part));
                let first: usize = first.trim().parse().map_err(|_| wrong())?;
                let last: usize = last.trim().parse().map_err(|_| wrong())?;
                if first > last || last >= CpuSet::MAX_CPU {
                    return Err(wrong());
                }
                cpus.extend(first..=last);
            }
        } else {
            let digits = text.strip_prefix("0x").unwrap_or(text);
            let mask = u128::from_str_radix(digits, 16).map_err(|_| wrong())?;
            cpus.extend((0..128).filter(|cpu| mask >> cpu & 1 == 1));
        }
        cpus.sort_unstable();
        cpus.dedup();
        if cpus.is_empty() { Err(wrong()) } else { Ok(CpuMask(cpus)) }
    }

    /// The CPUs.
    pub fn cpus(&self) -> &[usize] {
        &self.0
    }
}

/// A text that is no CPU mask.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is no CPU mask: write a hexadecimal mask such as 0x3 or a list such as [0,2-3]")]
pub struct ParseCpuMaskError(String);

/// Where reactors run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placement {
    /// So many threads, wherever the system puts them.
    Anywhere(usize),
    /// One thread bound to each CPU.
    Bound(CpuMask),
}

/// The reactor threads of a process. Dropping stops them without waiting; [`Reactors::join`] waits.
pub struct Reactors {
    handles: Vec<ReactorHandle>,
    threads: Vec<Thread<()>>,
}

impl Reactors {
    /// Starts the threads; returns when all of them run.
    pub fn start(placement: &Placement, spin: Spin) -> Result<Reactors, StartError> {
        let cpus: Vec<Option<usize>> = match placement {
            Placement::Anywhere(count) => vec![None; *count],
            Placement::Bound(mask) => mask.cpus().iter().copied().map(Some).collect(),
        };
        let mut reactors = Reactors { handles: Vec::new(), threads: Vec::new() };
        for (index, cpu) in cpus.into_iter().enumerate() {
            let options = Options { spin, cpu, name: format!("reactor_{index}"), ..Options::default() };
            let (jobs, inbox) = mpsc::unbounded_channel();
            let (started, start) = std::sync::mpsc::channel();
            let thread = std::thread::Builder::new()
                .name(options.name.clone())
                .spawn(move || run(&options, inbox, &started))
                .map_err(|source| StartError::System { what: "spawning a thread", source })?;
            reactors.threads.push(thread);
            let stats = start.recv().expect("a reactor thread answers before it ends")?;
            reactors.handles.push(ReactorHandle { jobs, stats });
        }
        Ok(reactors)
    }

    /// A handle on each reactor, in the order of the CPUs.
    pub fn handles(&self) -> &[ReactorHandle] {
        &self.handles
    }

    /// Stops all reactors: tasks are dropped, I/O under way is waited for.
    ///
    /// # Panics
    /// When a reactor's own loop panicked. (A panic of a task ends that task alone.)
    pub fn join(mut self) {
        self.stop();
        for thread in self.threads.drain(..) {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    }

    fn stop(&mut self) {
        for handle in self.handles.drain(..) {
            // A reactor that has gone needs no stopping.
            let _ = handle.jobs.send(Job::Stop);
        }
    }
}

impl Drop for Reactors {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Sends work to one reactor from any thread.
#[derive(Clone)]
pub struct ReactorHandle {
    jobs: mpsc::UnboundedSender<Job>,
    stats: Arc<Stats>,
}

impl ReactorHandle {
    /// Calls `make` on the reactor and runs its future there as a task. The future need not be `Send`. Dropping the
    /// answer does not stop the task.
    pub fn spawn<M, F, T>(&self, make: M) -> Answer<T>
    where
        M: FnOnce() -> F + Send + 'static,
        F: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        let job: Box<dyn FnOnce() + Send> = Box::new(move || {
            let future = make();
            tokio::task::spawn_local(async move {
                // Nobody may be waiting for it.
                let _ = sender.send(future.await);
            });
        });
        // To a reactor that has gone: dropping the job drops the sender, and the answer says so.
        let _ = self.jobs.send(Job::Run(job));
        Answer { receiver }
    }

    /// Busy and idle time of the reactor.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Whether the reactor still takes work.
    pub fn is_running(&self) -> bool {
        !self.jobs.is_closed()
    }
}

/// The answer of a task on another reactor.
pub struct Answer<T> {
    receiver: oneshot::Receiver<T>,
}

impl<T> Answer<T> {
    /// Waits on a thread that is no reactor.
    pub fn wait(self) -> Result<T, ReactorGone> {
        self.receiver.blocking_recv().map_err(|_| ReactorGone)
    }
}

impl<T> Future for Answer<T> {
    type Output = Result<T, ReactorGone>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<Self::Output> {
        Pin::new(&mut self.receiver).poll(cx).map_err(|_| ReactorGone)
    }
}

/// The task panicked, or its reactor was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the reactor was stopped, or its task panicked")]
pub struct ReactorGone;

enum Job {
    Run(Box<dyn FnOnce() + Send>),
    Stop,
}

fn run(
    options: &Options,
    mut inbox: mpsc::UnboundedReceiver<Job>,
    started: &std::sync::mpsc::Sender<Result<Arc<Stats>, StartError>>,
) {
    let made = bind(options.cpu).and_then(|()| Runtime::new(options));
    let (runtime, answer) = match made {
        Ok(runtime) => {
            let stats = runtime.stats();
            (Some(runtime), Ok(stats))
        }
        Err(error) => (None, Err(error)),
    };
    // The starter waits for it.
    let _ = started.send(answer);
    if let Some(runtime) = runtime {
        runtime.block_on(async {
            while let Some(Job::Run(job)) = inbox.recv().await {
                // A panic in `make` is that caller's: its answer says so. The panic hook has reported it.
                let _ = catch_unwind(AssertUnwindSafe(job));
            }
            inbox.close();
        });
    }
}

fn bind(cpu: Option<usize>) -> Result<(), StartError> {
    let Some(cpu) = cpu else { return Ok(()) };
    let allowed = sched_getaffinity(None)
        .map_err(|errno| StartError::System { what: "sched_getaffinity", source: errno.into() })?;
    if cpu >= CpuSet::MAX_CPU || !allowed.is_set(cpu) {
        let source =
            io::Error::other(format!("CPU {cpu} is not among those that this process may use; change the CPU mask"));
        return Err(StartError::System { what: "binding to a CPU", source });
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).map_err(|errno| StartError::System { what: "binding to a CPU", source: errno.into() })
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn masks_as_spdk_writes_them() {
        assert_eq!(CpuMask::parse("0x5").unwrap().cpus(), [0, 2]);
        assert_eq!(CpuMask::parse("3").unwrap().cpus(), [0, 1]);
        assert_eq!(CpuMask::parse("[4,0-1]").unwrap().cpus(), [0, 1, 4]);
        for bad in ["", "0", "0x", "[]", "[3-1]", "[0-99999999]", "x", "[1"] {
            assert!(CpuMask::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn tasks_that_cannot_be_sent_run_where_they_are_sent_to() {
        let reactors = Reactors::start(&Placement::Anywhere(2), Spin::For(Duration::ZERO)).unwrap();
        let [first, second] = reactors.handles() else { panic!("two reactors") };
        let other = second.clone();
        let answer = first.spawn(move || {
            let local = Rc::new(20);
            async move {
                tokio::time::sleep(Duration::from_millis(1)).await;
                *local + other.spawn(|| async { 22 }).await.unwrap()
            }
        });
        assert_eq!(answer.wait(), Ok(42));
        assert_eq!(
            first.spawn(|| async { std::thread::current().name().unwrap().to_owned() }).wait().unwrap(),
            "reactor_0"
        );

        let gone = second.spawn(std::future::pending::<()>);
        let panics = second.spawn(|| async { panic!("on purpose") });
        assert_eq!(panics.wait(), Err(ReactorGone));
        let panics = second.spawn(|| -> std::future::Ready<()> { panic!("before the first await, on purpose") });
        assert_eq!(panics.wait(), Err(ReactorGone));
        assert_eq!(second.spawn(|| async { 1 }).wait(), Ok(1), "the reactor survives a task's panic");
        let second = second.clone();
        reactors.join();
        assert_eq!(gone.wait(), Err(ReactorGone));
        assert_eq!(second.spawn(|| async {}).wait(), Err(ReactorGone));
        assert!(!second.is_running());
    }

    #[test]
    fn an_idle_reactor_sleeps_and_says_so() {
        let reactors = Reactors::start(&Placement::Anywhere(1), Spin::For(Duration::from_micros(50))).unwrap();
        let reactor = &reactors.handles()[0];
        let cpu = || {
            let clock = rustix::time::ClockId::ThreadCPUTime;
            let time = reactor.spawn(move || async move { rustix::time::clock_gettime(clock) }).wait().unwrap();
            Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
        };
        let (cpu_before, before, start) = (cpu(), reactor.stats().times(), Instant::now());
        std::thread::sleep(Duration::from_millis(200));
        let (after, elapsed, cpu_after) = (reactor.stats().times(), start.elapsed(), cpu());
        assert!(after.idle - before.idle > elapsed / 2, "{before:?} {after:?}");
        assert!(after.parks - before.parks < 20, "{before:?} {after:?}");
        assert!(cpu_after - cpu_before < Duration::from_millis(10), "{cpu_before:?} {cpu_after:?}");
        let known = crate::stats::all().into_iter().find(|times| times.thread_id == after.thread_id).unwrap();
        assert_eq!(known.name, "reactor_0");
        reactors.join();
    }

    #[test]
    fn a_polling_reactor_still_hears_its_sockets_and_timers() {
        let reactors = Reactors::start(&Placement::Anywhere(1), Spin::Always).unwrap();
        let slept = reactors.handles()[0].spawn(|| async {
            let start = Instant::now();
            tokio::time::sleep(Duration::from_millis(5)).await;
            start.elapsed()
        });
        assert!(slept.wait().unwrap() >= Duration::from_millis(5));
        reactors.join();
    }

    #[test]
    fn a_cpu_that_is_not_there_is_refused_in_words() {
        let error = Reactors::start(&Placement::Bound(CpuMask::new(vec![1000])), Spin::Always).err().unwrap();
        assert!(error.to_string().contains("CPU 1000"), "{error}");
    }
}
