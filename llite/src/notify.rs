//! Invalidation of what the kernel caches.
//!
//! A notification about an inode may wait inside the kernel: for pages that are being read (see [`crate::gate`]) or
//! written back. Requests must be served meanwhile, so these calls are made on threads of their own, never on the
//! reactor. INC_EPOCH waits for nothing and is made at once.
//!
//! The kernel is asked only about inodes that it knows, by count of lookups answered less forgets received. "Unknown"
//! from the kernel about an inode with references means that the answer that makes it known was sent, and its process
//! has not run yet: asked again.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::rc::Rc;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use nacre_client::KernelCache;
use nacre_wire::Fid;
use rustix::io::Errno;
use tokio::sync::oneshot;

use crate::abi::NotifyInvalInodeOut;
use crate::device::Device;
use crate::gate::Gate;

/// FUSE's number of the root of a mount.
pub const ROOT_NODE: u64 = 1;

/// The kernel's caches of one mount. Made before the client (which invalidates through it) and given to
/// [`crate::mount`] afterwards; until then there is nothing to invalidate.
#[derive(Clone, Default)]
pub struct KernelNotifier {
    inner: Rc<Inner>,
}

#[derive(Default)]
struct Inner {
    attached: RefCell<Option<Attached>>,
    /// References that the kernel holds on nodes, as FORGET counts them.
    references: RefCell<HashMap<u64, u64>>,
    /// Grows with every change and invalidation; see [`KernelNotifier::generation`].
    generation: Cell<u64>,
    gate: Gate,
}

struct Attached {
    root: Fid,
    device: Arc<Device>,
    workers: Workers,
    keeps_names: bool,
}

impl KernelNotifier {
    /// A notifier without a mount.
    pub fn new() -> KernelNotifier {
        KernelNotifier::default()
    }

    /// The mount is there.
    pub(crate) fn attach(&self, root: Fid, device: Arc<Device>) {
        let workers = Workers::default();
        *self.inner.attached.borrow_mut() = Some(Attached { root, device, workers, keeps_names: false });
    }

    /// Whether the kernel takes INC_EPOCH.
    pub(crate) fn set_keeps_names(&self, keeps_names: bool) {
        if let Some(attached) = self.inner.attached.borrow_mut().as_mut() {
            attached.keeps_names = keeps_names;
        }
    }

    /// The mount is gone.
    pub(crate) fn detach(&self) {
        self.inner.attached.borrow_mut().take();
        self.inner.references.borrow_mut().clear();
    }

    /// The answer about to be sent gives the kernel a reference.
    pub(crate) fn reference(&self, node: u64) {
        *self.inner.references.borrow_mut().entry(node).or_insert(0) += 1;
    }

    /// The kernel dropped references (or never got them).
    pub(crate) fn forget(&self, node: u64, count: u64) {
        let mut references = self.inner.references.borrow_mut();
        if let Some(left) = references.get_mut(&node) {
            *left = left.saturating_sub(count);
            if *left == 0 {
                references.remove(&node);
            }
        }
    }

    /// Attributes that were obtained under another generation must not be given to the kernel any more.
    pub(crate) fn generation(&self) -> u64 {
        self.inner.generation.get()
    }

    /// Something changed: here, or (invalidation) elsewhere.
    pub(crate) fn changed(&self) {
        self.inner.generation.set(self.inner.generation.get() + 1);
    }

    pub(crate) fn gate(&self) -> &Gate {
        &self.inner.gate
    }

    /// Drops pages. For kernels that keep them over a direct write; see [`crate::abi::MINOR_DIRECT_WRITE_INVALIDATES`].
    pub(crate) async fn drop_pages(&self, node: u64, range: Range<u64>) {
        self.inval_inode(node, Some(range)).await;
    }

    fn node(&self, fid: Fid) -> Option<u64> {
        let attached = self.inner.attached.borrow();
        let root = attached.as_ref()?.root;
        let node = if fid == root { ROOT_NODE } else { fid.inode_number() };
        (node == ROOT_NODE || self.inner.references.borrow().contains_key(&node)).then_some(node)
    }

    /// `range` None: attributes only.
    async fn inval_inode(&self, node: u64, range: Option<Range<u64>>) {
        let (off, len) = match range {
            None => (-1, 0),
            Some(range) => {
                let Ok(off) = i64::try_from(range.start) else { return };
                // 0: to the end.
                (off, i64::try_from(range.end.saturating_sub(range.start)).unwrap_or(0))
            }
        };
        let inval = NotifyInvalInodeOut { ino: node, off, len };
        for _ in 0..RETRIES_MAX {
            let done = match self.inner.attached.borrow().as_ref() {
                Some(attached) => attached.workers.run(attached.device.clone(), inval),
                None => return,
            };
            match done.await {
                Ok(Err(Errno::NOENT)) if self.inner.references.borrow().contains_key(&node) => {
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                // Gone from the kernel, or the whole mount is: nothing is cached.
                Ok(Ok(()) | Err(Errno::NOENT | Errno::NOTCONN | Errno::NODEV)) | Err(_) => return,
                Ok(Err(errno)) => {
                    tracing::warn!(node, %errno, "the kernel refused to drop what it caches of an inode");
                    return;
                }
            }
        }
    }
}

impl KernelCache for KernelNotifier {
    async fn invalidate_attr(&self, fid: Fid) {
        self.changed();
        if let Some(node) = self.node(fid) {
            self.inval_inode(node, None).await;
        }
    }

    async fn invalidate_data(&self, fid: Fid, range: Range<u64>) {
        self.changed();
        let Some(node) = self.node(fid) else { return };
        if range.is_empty() {
            return self.inval_inode(node, None).await;
        }
        let clean =
            self.inner.gate.invalidate(node, range.clone(), || self.inval_inode(node, Some(range.clone()))).await;
        if !clean {
            tracing::warn!(%fid, ?range, "gave up waiting for the kernel to drop pages; a read of them does not end");
        }
    }

    async fn invalidate_names(&self) {
        self.changed();
        let attached = self.inner.attached.borrow();
        let Some(attached) = attached.as_ref().filter(|attached| attached.keeps_names) else { return };
        match attached.device.notify_inc_epoch() {
            Ok(()) | Err(Errno::NOTCONN | Errno::NODEV) => {}
            Err(errno) => tracing::warn!(%errno, "the kernel refused to ask again for names"),
        }
    }
}

/// Threads that wait inside the kernel: as many as there are calls waiting, up to [`WORKERS_MAX`]; they stay. Dropping
/// this ends them (one that still waits in the kernel when its call returns).
struct Workers {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    idle: usize,
    threads: usize,
    closed: bool,
}

struct Job {
    device: Arc<Device>,
    inval: NotifyInvalInodeOut,
    done: oneshot::Sender<Result<(), Errno>>,
}

impl Default for Workers {
    fn default() -> Workers {
        Workers { shared: Arc::new(Shared::default()) }
    }
}

impl Workers {
    fn run(&self, device: Arc<Device>, inval: NotifyInvalInodeOut) -> oneshot::Receiver<Result<(), Errno>> {
        let (done, receiver) = oneshot::channel();
        let mut state = self.shared.lock();
        state.jobs.push_back(Job { device, inval, done });
        if state.idle < state.jobs.len() && state.threads < WORKERS_MAX {
            let shared = self.shared.clone();
            let spawned = std::thread::Builder::new().name("nacre-notify".into()).spawn(move || shared.work());
            match spawned {
                Ok(_) => state.threads += 1,
                Err(error) => tracing::warn!(%error, threads = state.threads, "no thread for an invalidation"),
            }
        }
        drop(state);
        self.shared.wake.notify_one();
        receiver
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut state = self.lock();
        while !state.closed {
            let Some(job) = state.jobs.pop_front() else {
                state.idle += 1;
                state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
                continue;
            };
            drop(state);
            let result = job.device.notify_inval_inode(job.inval);
            // Nobody waits any more: the invalidation was given up.
            let _ = job.done.send(result);
            state = self.lock();
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.wake.notify_all();
    }
}

/// Calls that wait at the same time; more queue up behind them.
const WORKERS_MAX: usize = 16;
/// A process that was answered and has not run for this many pauses is stopped; it gets the attributes when it goes on.
const RETRIES_MAX: u32 = 100;
const RETRY_PAUSE: Duration = Duration::from_millis(1);
