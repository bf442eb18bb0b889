//! The conversation with one kernel mount, on the reactor's thread.
//!
//! ```text
//!            INIT answered                unmounted, aborted
//! Starting ───────────────► Serving ───────────────────────────► Ended
//!     └──────────── unmounted, a kernel too old ────────────────────┘
//! ```
//!
//! The reactor itself waits for `/dev/fuse` and reads from it: a request costs two wake-ups, the reactor's and the
//! caller's, which is the least there is. Every request is a task; its answer is written from the task, in the same turn
//! in which the filesystem's call completed, so nothing happens between them. FUSE_INTERRUPT drops the task and answers
//! EINTR ([`crate::signal`] says when). When the session ends all tasks are dropped.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nacre_client::{Entry, FileSystem, HandleId};
use nacre_reactor::Bytes;
use nacre_wire::{Fid, Status};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use zerocopy::IntoBytes;

use crate::abi::{self, InHeader, InitFlags, opcode};
use crate::control::Control;
use crate::device::{Device, IO_BYTES_MAX, Message, Pool};
use crate::dirs::Dirs;
use crate::gate::Reading;
use crate::notify::{KernelNotifier, ROOT_NODE};
use crate::request::Request;
use crate::signal;

/// See the drawing at the top.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The kernel has not said yet what it can do.
    Starting,
    /// Requests are answered.
    Serving,
    /// The mount is gone.
    Ended(End),
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// umount(2).
    Unmounted,
    /// By force, from here or through `abort` below /sys/fs/fuse.
    Aborted,
    /// The kernel speaks a FUSE protocol that is too old or another one.
    Refused,
    /// Reading from `/dev/fuse` failed.
    Failed(i32),
}

/// What INIT settled.
#[derive(Clone, Copy, Debug)]
pub struct Negotiated {
    /// Protocol version in use, minor.
    pub minor: u32,
    /// Features in use.
    pub flags: InitFlags,
}

/// One mount.
pub struct Session<F> {
    device: Arc<Device>,
    pool: Pool,
    pub(crate) fs: Rc<F>,
    pub(crate) kernel: KernelNotifier,
    pub(crate) dirs: Dirs,
    pub(crate) control: Control,
    negotiated: Cell<Negotiated>,
    in_flight: RefCell<HashMap<u64, InFlight>>,
    pub(crate) flushes: Flushes,
    state: watch::Sender<State>,
}

struct InFlight {
    task: AbortHandle,
    pid: u32,
    on_interrupt: OnInterrupt,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum OnInterrupt {
    /// Drop the call if the signal is one to stop for.
    Drop,
    /// F_SETLKW: every signal ends it, as fcntl(2) says.
    DropAtOnce,
    /// FLUSH: a process that was killed still gives its locks back, so the call runs on without it.
    Detach,
}

impl OnInterrupt {
    fn of(request: &Request) -> OnInterrupt {
        match request {
            Request::Setlk { wait: true, .. } => OnInterrupt::DropAtOnce,
            Request::Flush(_) => OnInterrupt::Detach,
            _ => OnInterrupt::Drop,
        }
    }
}

/// FLUSHes of handles. One that was interrupted runs on, and the kernel already sends RELEASE, which has to wait for it.
#[derive(Default)]
pub struct Flushes {
    running: RefCell<HashMap<u64, u32>>,
    ended: Notify,
}

impl Flushes {
    /// Runs a FLUSH.
    pub async fn run<T>(&self, handle: u64, flush: impl Future<Output = T>) -> T {
        let _ends = FlushEnds { flushes: self, handle };
        *self.running.borrow_mut().entry(handle).or_insert(0) += 1;
        flush.await
    }

    /// Waits until none of a handle runs.
    pub async fn wait(&self, handle: u64) {
        loop {
            let ended = self.ended.notified();
            if !self.running.borrow().contains_key(&handle) {
                return;
            }
            ended.await;
        }
    }
}

struct FlushEnds<'a> {
    flushes: &'a Flushes,
    handle: u64,
}

impl Drop for FlushEnds<'_> {
    fn drop(&mut self) {
        let mut running = self.flushes.running.borrow_mut();
        if let Some(count) = running.get_mut(&self.handle) {
            *count -= 1;
            if *count == 0 {
                running.remove(&self.handle);
                self.flushes.ended.notify_waiters();
            }
        }
    }
}

/// A good answer.
#[derive(Default)]
pub struct Answer {
    /// Structs.
    pub fixed: Vec<u8>,
    /// Data after them, as they came.
    pub data: Vec<Bytes>,
    /// Nodes that this answer gives the kernel a reference on.
    pub references: Vec<u64>,
    /// To be released if nobody takes the answer.
    pub opened: Option<HandleId>,
    /// Ends when the answer is out.
    pub reading: Option<Reading>,
}

impl Answer {
    /// Just this.
    pub fn fixed(value: &(impl IntoBytes + zerocopy::Immutable)) -> Answer {
        Answer { fixed: value.as_bytes().to_vec(), ..Answer::default() }
    }
}

impl<F: FileSystem + 'static> Session<F> {
    /// A session over a mounted device.
    pub fn new(device: Arc<Device>, fs: Rc<F>, kernel: KernelNotifier, control: Control) -> Rc<Session<F>> {
        Rc::new(Session {
            device,
            pool: Pool::default(),
            fs,
            kernel,
            dirs: Dirs::default(),
            control,
            negotiated: Cell::new(Negotiated { minor: 0, flags: InitFlags::empty() }),
            in_flight: RefCell::default(),
            flushes: Flushes::default(),
            state: watch::Sender::new(State::Starting),
        })
    }

    /// Follows the state.
    pub fn watch(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// What INIT settled.
    pub fn negotiated(&self) -> Negotiated {
        self.negotiated.get()
    }

    /// Serves until the mount is gone or `stop` is notified. Then the device is closed, which ends every call that waits
    /// in the kernel.
    pub async fn run(self: Rc<Session<F>>, stop: Rc<Notify>) {
        let served = tokio::select! {
            served = self.serve_requests() => served,
            () = stop.notified() => Ok(End::Aborted),
        };
        let end = match served {
            Ok(end) => end,
            Err(error) => {
                tracing::error!(%error, "reading from /dev/fuse failed, the mount ends");
                End::Failed(error.raw_os_error().unwrap_or(0))
            }
        };
        for (_, call) in self.in_flight.borrow_mut().drain() {
            call.task.abort();
        }
        self.kernel.detach();
        self.state.send_replace(State::Ended(end));
    }

    async fn serve_requests(self: &Rc<Self>) -> std::io::Result<End> {
        // EPOLLERR is how an unmounted device reports.
        let wanted = Interest::READABLE | Interest::ERROR;
        #[allow(
            deprecated,
            reason = "the new call is unsafe; `Polled` keeps one open descriptor for as long as it lives"
        )]
        let ready = AsyncFd::with_interest(Polled(self.device.clone()), wanted)?;
        loop {
            let mut guard = ready.ready(wanted).await?;
            // In batches: what was read must get its turn before more is read.
            for _ in 0..BATCH_REQUESTS {
                match self.device.receive(&self.pool) {
                    Ok(Some(message)) => {
                        if let Some(end) = self.dispatch(message) {
                            return Ok(end);
                        }
                    }
                    Ok(None) => {
                        guard.clear_ready();
                        break;
                    }
                    Err(Errno::NODEV) => return Ok(End::Unmounted),
                    Err(Errno::CONNABORTED) => return Ok(End::Aborted),
                    Err(Errno::BADMSG) => tracing::warn!("a FUSE message of impossible length was dropped"),
                    Err(errno) => return Err(errno.into()),
                }
            }
            drop(guard);
            tokio::task::yield_now().await;
        }
    }

    fn dispatch(self: &Rc<Self>, message: Message) -> Option<End> {
        let Message { header, arguments, data } = message;
        if matches!(header.opcode, opcode::FORGET | opcode::BATCH_FORGET) {
            for forget in Request::parse_forget(&header, &arguments) {
                self.kernel.forget(forget.nodeid, forget.nlookup);
            }
            return None;
        }
        let request = match Request::parse(header.opcode, &arguments) {
            Ok(Some(request)) => request,
            Ok(None) => {
                self.reply_error(header.unique, ENOSYS);
                return None;
            }
            Err(status) => {
                self.reply_error(header.unique, status.errno());
                return None;
            }
        };
        match request {
            Request::Init(init, flags2) => self.init(&header, init, flags2),
            Request::Interrupt(interrupt) => {
                self.interrupt(interrupt.unique);
                None
            }
            Request::Destroy => {
                self.reply_error(header.unique, 0);
                None
            }
            request => {
                let on_interrupt = OnInterrupt::of(&request);
                let session = self.clone();
                let task = tokio::task::spawn_local(async move {
                    let outcome = session.serve(&header, request, data).await;
                    session.finish(&header, outcome);
                });
                // The task has not run yet: it runs after this turn.
                let call = InFlight { task: task.abort_handle(), pid: header.pid, on_interrupt };
                self.in_flight.borrow_mut().insert(header.unique, call);
                None
            }
        }
    }

    fn finish(self: &Rc<Self>, header: &InHeader, outcome: Result<Answer, Status>) {
        if self.in_flight.borrow_mut().remove(&header.unique).is_none() {
            // Interrupted, in this very turn or with the call running on; EINTR was the answer.
            if let Ok(Answer { opened: Some(handle), .. }) = outcome {
                self.release_unclaimed(handle);
            }
            return;
        }
        let answer = match outcome {
            Ok(answer) => answer,
            Err(status) => return self.reply_error(header.unique, status.errno()),
        };
        answer.references.iter().for_each(|node| self.kernel.reference(*node));
        let mut parts: Vec<&[u8]> = Vec::with_capacity(1 + answer.data.len());
        parts.push(&answer.fixed);
        parts.extend(answer.data.iter().map(|bytes| &bytes[..]));
        if let Err(errno) = self.device.reply(header.unique, 0, &parts) {
            answer.references.iter().for_each(|node| self.kernel.forget(*node, 1));
            if let Some(handle) = answer.opened {
                self.release_unclaimed(handle);
            }
            if !matches!(errno, Errno::NOENT | Errno::NODEV | Errno::NOTCONN) {
                tracing::error!(opcode = header.opcode, %errno, "the kernel refused an answer");
                self.reply_error(header.unique, Status::EIO.errno());
            }
        }
        // Not before the answer is out.
        drop(answer.reading);
    }

    /// `errno` 0: done, with nothing to say.
    fn reply_error(&self, unique: u64, errno: i32) {
        if let Err(error) = self.device.reply(unique, errno, &[]) {
            // Gone, as its process or the mount is.
            tracing::debug!(unique, errno, %error, "nobody took an answer");
        }
    }

    /// Nobody will close it.
    fn release_unclaimed(self: &Rc<Self>, handle: HandleId) {
        let session = self.clone();
        tokio::task::spawn_local(async move {
            if let Err(status) = session.fs.release(handle, None).await {
                tracing::warn!(%status, "closing a file that its opener did not wait for");
            }
        });
    }

    fn interrupt(self: &Rc<Self>, unique: u64) {
        let calls = self.in_flight.borrow();
        // Not there: answered already, and the kernel knows or will.
        let Some(call) = calls.get(&unique) else { return };
        let (pid, at_once) = (call.pid, call.on_interrupt == OnInterrupt::DropAtOnce);
        drop(calls);
        if at_once || signal::wants_out(pid) {
            return self.cancel(unique);
        }
        // The kernel says it once; a later, fatal signal would go unheard.
        let session = self.clone();
        tokio::task::spawn_local(async move {
            loop {
                tokio::time::sleep(SIGNAL_POLL).await;
                if !session.in_flight.borrow().contains_key(&unique) {
                    return;
                }
                if signal::wants_out(pid) {
                    return session.cancel(unique);
                }
            }
        });
    }

    fn cancel(&self, unique: u64) {
        let call = self.in_flight.borrow_mut().remove(&unique);
        if let Some(call) = call {
            if call.on_interrupt != OnInterrupt::Detach {
                call.task.abort();
            }
            self.reply_error(unique, Status::EINTR.errno());
        }
    }

    fn init(&self, header: &InHeader, init: abi::InitIn, flags2: u32) -> Option<End> {
        if init.major != abi::MAJOR || init.minor < abi::MINOR_MIN {
            tracing::error!(
                "this kernel speaks FUSE {}.{}; {}.{} (Linux 4.20) or later is needed",
                init.major,
                init.minor,
                abi::MAJOR,
                abi::MINOR_MIN
            );
            self.reply_error(header.unique, Status::EPROTO.errno());
            return Some(End::Refused);
        }
        let offered = InitFlags::from_bits_retain(u64::from(flags2) << 32 | u64::from(init.flags));
        let offered = match offered.contains(InitFlags::INIT_EXT) {
            true => offered,
            false => InitFlags::from_bits_retain(offered.bits() & u64::from(u32::MAX)),
        };
        let negotiated = Negotiated { minor: init.minor.min(abi::MINOR), flags: InitFlags::all() & offered };
        self.negotiated.set(negotiated);
        self.kernel.set_keeps_names(self.keeps_names());
        let bits = negotiated.flags.bits();
        let answer = abi::InitOut {
            major: abi::MAJOR,
            minor: negotiated.minor,
            max_readahead: READAHEAD_BYTES_MAX,
            flags: bits as u32,
            flags2: (bits >> 32) as u32,
            max_background: BACKGROUND_MAX,
            congestion_threshold: BACKGROUND_MAX / 4 * 3,
            max_write: IO_BYTES_MAX as u32,
            time_gran: 1,
            max_pages: (IO_BYTES_MAX / PAGE_BYTES) as u16,
            ..abi::InitOut::default()
        };
        match self.device.reply(header.unique, 0, &[answer.as_bytes()]) {
            Ok(()) => {
                self.state.send_replace(State::Serving);
                None
            }
            Err(_) => Some(End::Unmounted),
        }
    }

    /// Whether the kernel may keep names, because there is a way to make it ask again.
    pub(crate) fn keeps_names(&self) -> bool {
        self.negotiated.get().minor >= abi::MINOR_EPOCH
    }

    pub(crate) fn fid(&self, node: u64) -> Fid {
        if node == ROOT_NODE { self.fs.root() } else { Fid::from_inode_number(node) }
    }

    pub(crate) fn node(&self, fid: Fid) -> u64 {
        if fid == self.fs.root() { ROOT_NODE } else { fid.inode_number() }
    }

    pub(crate) fn entry_out(&self, entry: &Entry) -> abi::EntryOut {
        abi::EntryOut {
            nodeid: self.node(entry.fid),
            entry_valid: if entry.keep_name && self.keeps_names() { FOREVER_SECONDS } else { 0 },
            attr_valid: if entry.keep_attr { FOREVER_SECONDS } else { 0 },
            attr: attr(entry),
            ..abi::EntryOut::default()
        }
    }

    pub(crate) fn attr_out(&self, entry: &Entry) -> abi::AttrOut {
        let attr_valid = if entry.keep_attr { FOREVER_SECONDS } else { 0 };
        abi::AttrOut { attr_valid, attr: attr(entry), ..abi::AttrOut::default() }
    }
}

/// Attributes as the kernel wants them.
pub(crate) fn attr(entry: &Entry) -> abi::Attr {
    use nacre_wire::attr::mode;
    let attr = &entry.attr;
    let device = matches!(attr.mode & mode::TYPE, mode::CHAR | mode::BLOCK);
    abi::Attr {
        ino: entry.fid.inode_number(),
        size: attr.size,
        blocks: attr.allocated_bytes.div_ceil(512),
        atime: attr.atime.seconds as u64,
        mtime: attr.mtime.seconds as u64,
        ctime: attr.ctime.seconds as u64,
        atimensec: attr.atime.nanoseconds,
        mtimensec: attr.mtime.nanoseconds,
        ctimensec: attr.ctime.nanoseconds,
        mode: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        // On other inodes the field has another meaning.
        rdev: if device { attr.rdev as u32 } else { 0 },
        // What tools take as the size of a good read or write.
        blksize: if attr.is_file() { IO_BYTES_MAX as u32 } else { PAGE_BYTES as u32 },
        flags: 0,
    }
}

/// The device, for polling.
struct Polled(Arc<Device>);

impl AsRawFd for Polled {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// "Function not implemented": the kernel does not ask again.
pub(crate) const ENOSYS: i32 = 38;
/// Until it is invalidated; a year, because the kernel counts in jiffies.
pub(crate) const FOREVER_SECONDS: u64 = 365 * 24 * 3600;
/// Requests read before those read before get their turn.
const BATCH_REQUESTS: usize = 32;
/// Asynchronous requests (read-ahead, direct I/O) that the kernel keeps in flight.
const BACKGROUND_MAX: u16 = 256;
/// The kernel takes the smaller of this and the mount's read_ahead_kb, which [`crate::mount`] raises.
pub(crate) const READAHEAD_BYTES_MAX: u32 = 4 << 20;
const PAGE_BYTES: usize = 4096;
const SIGNAL_POLL: Duration = Duration::from_millis(200);
