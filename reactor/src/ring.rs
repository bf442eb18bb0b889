//! The io_uring of a reactor thread, and operations on it.
//!
//! What holds:
//! - An operation owns its buffers and its file from the call until the completion. Dropping the future abandons the
//!   answer, not the I/O: buffer and file stay in the ring's slot until the kernel is done with them.
//! - An operation is queued by the call, before its future is polled. What was queued is submitted when the tasks that
//!   are runnable now have had their turn, before the thread sleeps, or when the submission queue is full; it never
//!   waits for another event.
//! - Short transfers are continued by the ring; a read is short only at the end of the file.
//! - A reactor ends after the last of its completions.
//!
//! ```text
//!            queue              submit (driver task, park)         completion
//!  call ──► Waiting ─────────────────────────────────────────► Done(result) ──► future takes it, slot free
//!              │ future dropped                                      ▲
//!              └──► Abandoned ──────────── completion ──► slot free  │ short: queued again for the rest
//! ```

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{Ordering, fence};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use io_uring::{IoUring, opcode, squeue, types};

use crate::DmaBuf;

/// Most buffers of one [`writev`] (IOV_MAX).
pub const BUFFERS_MAX: usize = 1024;

/// What [`fallocate`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FallocateMode {
    /// Reserves space; the file grows as needed.
    Allocate,
    /// Gives the space back; the range reads zeros. The size stays.
    PunchHole,
    /// The range reads zeros, its space is reserved. The size stays.
    ZeroRange,
}

impl FallocateMode {
    /// FALLOC_FL_* (linux/falloc.h).
    fn flags(self) -> i32 {
        const KEEP_SIZE: i32 = 0x01;
        const PUNCH_HOLE: i32 = 0x02;
        const ZERO_RANGE: i32 = 0x10;
        match self {
            FallocateMode::Allocate => 0,
            FallocateMode::PunchHole => PUNCH_HOLE | KEEP_SIZE,
            FallocateMode::ZeroRange => ZERO_RANGE | KEEP_SIZE,
        }
    }
}

/// Reads into `buf`, from `offset` on, as many bytes as it is long. Comes back shorter only at the end of the file.
pub fn read(fd: &Rc<OwnedFd>, offset: u64, buf: DmaBuf) -> Operation<DmaBuf> {
    start(fd, Payload::Read { buf, offset })
}

/// Writes the buffers one after the other from `offset` on; at most [`BUFFERS_MAX`].
pub fn writev(fd: &Rc<OwnedFd>, offset: u64, data: Vec<Bytes>) -> Operation<()> {
    if data.len() > BUFFERS_MAX {
        return Operation::failed(io::Error::new(
            io::ErrorKind::InvalidInput,
            "more buffers than IOV_MAX in one write",
        ));
    }
    let vectors: Vec<IoVector> = data
        .iter()
        .filter(|bytes| !bytes.is_empty())
        .map(|bytes| IoVector { base: bytes.as_ptr(), len: bytes.len() })
        .collect();
    let remaining = vectors.iter().map(|vector| vector.len).sum();
    start(fd, Payload::Write { _data: data, vectors, next: 0, offset, remaining })
}

/// Data and metadata of the file to stable media.
pub fn fsync(fd: &Rc<OwnedFd>) -> Operation<()> {
    start(fd, Payload::Sync { flags: types::FsyncFlags::empty() })
}

/// Data, and what is needed to read it back, to stable media.
pub fn fdatasync(fd: &Rc<OwnedFd>) -> Operation<()> {
    start(fd, Payload::Sync { flags: types::FsyncFlags::DATASYNC })
}

/// Reserves, zeroes or gives back space of a range.
pub fn fallocate(fd: &Rc<OwnedFd>, mode: FallocateMode, offset: u64, length: u64) -> Operation<()> {
    start(fd, Payload::Fallocate { mode: mode.flags(), offset, length })
}

/// Waits. On a reactor short times are kept to the microsecond (tokio's timer has milliseconds); elsewhere it is tokio's.
pub async fn sleep(duration: std::time::Duration) {
    if duration < SHORT_SLEEP_MAX
        && let Some(ring) = current()
    {
        let time = types::Timespec::from(duration);
        let slot = Slot {
            fd: None,
            payload: Payload::Sleep(Box::new(time)),
            done: 0,
            retries: 0,
            state: SlotState::Waiting(None),
        };
        let index = ring.queue(slot);
        let slept = Operation::<()> { state: OperationState::Queued(ring, index), answer: std::marker::PhantomData };
        if slept.await.is_ok() {
            return;
        }
        // The kernel was out of memory for it.
    }
    tokio::time::sleep(duration).await;
}

/// An operation under way; waits for its answer.
#[must_use = "without its answer nobody knows whether the operation succeeded"]
pub struct Operation<T> {
    state: OperationState,
    answer: std::marker::PhantomData<T>,
}

enum OperationState {
    Queued(Rc<Ring>, usize),
    Failed(io::Error),
    Taken,
}

impl<T> Operation<T> {
    fn failed(error: io::Error) -> Operation<T> {
        Operation { state: OperationState::Failed(error), answer: std::marker::PhantomData }
    }
}

impl<T: Answer> Future for Operation<T> {
    type Output = io::Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if let OperationState::Queued(ring, slot) = &self.state
            && !ring.poll_slot(*slot, cx)
        {
            return Poll::Pending;
        }
        match std::mem::replace(&mut self.state, OperationState::Taken) {
            OperationState::Queued(ring, slot) => Poll::Ready(ring.take(slot).map(T::from_payload)),
            OperationState::Failed(error) => Poll::Ready(Err(error)),
            OperationState::Taken => panic!("polled after it completed"),
        }
    }
}

impl<T> Unpin for Operation<T> {}

impl<T> Drop for Operation<T> {
    fn drop(&mut self) {
        if let OperationState::Queued(ring, slot) = &self.state {
            ring.abandon(*slot);
        }
    }
}

/// What an operation answers with.
trait Answer {
    fn from_payload(payload: Payload) -> Self;
}

impl Answer for () {
    fn from_payload(_: Payload) {}
}

impl Answer for DmaBuf {
    fn from_payload(payload: Payload) -> DmaBuf {
        match payload {
            Payload::Read { buf, .. } => buf,
            _ => unreachable!("only reads answer with a buffer"),
        }
    }
}

fn start<T>(fd: &Rc<OwnedFd>, payload: Payload) -> Operation<T> {
    match current() {
        Some(ring) => {
            let slot = ring.queue(Slot {
                fd: Some(fd.clone()),
                payload,
                done: 0,
                retries: 0,
                state: SlotState::Waiting(None),
            });
            Operation { state: OperationState::Queued(ring, slot), answer: std::marker::PhantomData }
        }
        None => Operation::failed(io::Error::new(
            io::ErrorKind::Unsupported,
            "no io_uring on this thread: file I/O works on a reactor only",
        )),
    }
}

thread_local! {
    static RING: RefCell<Option<Rc<Ring>>> = const { RefCell::new(None) };
}

/// The ring of this thread.
pub(crate) fn current() -> Option<Rc<Ring>> {
    RING.with(|ring| ring.borrow().clone())
}

/// Sets or removes the ring of this thread; answers with the one before.
pub(crate) fn install(ring: Option<Rc<Ring>>) -> Option<Rc<Ring>> {
    RING.with(|current| current.replace(ring))
}

/// One io_uring and the operations on it. Only ever touched by the thread that made it.
pub(crate) struct Ring {
    inner: RefCell<Inner>,
    /// Wakes the driver task, which submits.
    driver: RefCell<Option<Waker>>,
    /// Whether the driver was woken since its last turn.
    driver_woken: Cell<bool>,
}

struct Inner {
    uring: IoUring,
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    /// Waits for room in the submission queue.
    backlog: VecDeque<squeue::Entry>,
    /// Slots whose completion has not come.
    in_flight: usize,
    completed: u64,
}

struct Slot {
    /// `None` for a sleep.
    fd: Option<Rc<OwnedFd>>,
    payload: Payload,
    /// Bytes transferred so far.
    done: usize,
    /// How often the kernel said EAGAIN or EINTR.
    retries: u32,
    state: SlotState,
}

enum SlotState {
    Waiting(Option<Waker>),
    Abandoned,
    Done(io::Result<()>),
}

enum Payload {
    Read { buf: DmaBuf, offset: u64 },
    Write { _data: Vec<Bytes>, vectors: Vec<IoVector>, next: usize, offset: u64, remaining: usize },
    Sync { flags: types::FsyncFlags },
    // Boxed: slots move.
    Sleep(Box<types::Timespec>),
    Fallocate { mode: i32, offset: u64, length: u64 },
}

/// `struct iovec`.
#[repr(C)]
struct IoVector {
    base: *const u8,
    len: usize,
}

impl Ring {
    /// A new ring whose completions are signalled to `eventfd`.
    pub(crate) fn new(entries: u32, eventfd: &OwnedFd) -> io::Result<Ring> {
        // With DEFER_TASKRUN (6.1) completions are processed when we ask, not by interrupting us.
        let mut builder = IoUring::builder();
        builder.setup_clamp().setup_cqsize(entries * 8);
        let mut best = builder.clone();
        best.setup_single_issuer().setup_coop_taskrun().setup_taskrun_flag().setup_defer_taskrun();
        let uring = match best.build(entries) {
            // EINVAL: a kernel before 6.1.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => {
                builder.build(entries)?
            }
            other => other?,
        };
        uring.submitter().register_eventfd(eventfd.as_raw_fd())?;
        Ok(Ring {
            inner: RefCell::new(Inner {
                uring,
                slots: Vec::new(),
                free: Vec::new(),
                backlog: VecDeque::new(),
                in_flight: 0,
                completed: 0,
            }),
            driver: RefCell::new(None),
            driver_woken: Cell::new(false),
        })
    }

    /// The driver task's waker, for [`Ring::wake_driver`]; the driver is about to take a turn.
    pub(crate) fn set_driver(&self, waker: &Waker) {
        self.driver_woken.set(false);
        let mut driver = self.driver.borrow_mut();
        match &*driver {
            Some(current) if current.will_wake(waker) => {}
            _ => *driver = Some(waker.clone()),
        }
    }

    /// Makes the driver task runnable.
    pub(crate) fn wake_driver(&self) {
        if !self.driver_woken.replace(true) {
            let waker = self.driver.borrow().clone();
            match waker {
                Some(waker) => waker.wake(),
                // The driver has not run yet; its first turn submits everything.
                None => self.driver_woken.set(false),
            }
        }
    }

    /// Submits what is queued, takes what is complete, wakes who waits for it. Answers with how many completed.
    pub(crate) fn turn(&self) -> u64 {
        let mut aftermath = Aftermath::default();
        let (completed, pending) = {
            let mut inner = self.inner.borrow_mut();
            if inner.in_flight == 0 {
                return 0;
            }
            let before = inner.completed;
            inner.exchange(&mut aftermath, 0);
            (inner.completed - before, inner.pending())
        };
        if pending {
            // The kernel was short of memory: nobody else would come back to it.
            self.wake_driver();
        }
        aftermath.settle();
        completed
    }

    /// Waits until every operation is complete. Nobody is left who could queue more.
    pub(crate) fn drain(&self) {
        let mut aftermath = Aftermath::default();
        let mut inner = self.inner.borrow_mut();
        while inner.in_flight > 0 {
            inner.exchange(&mut aftermath, 1);
        }
        drop(inner);
        aftermath.settle();
    }

    fn queue(&self, slot: Slot) -> usize {
        let index = self.inner.borrow_mut().queue(slot);
        self.wake_driver();
        index
    }

    /// Whether the slot is done; if not, the task is woken when it is.
    fn poll_slot(&self, index: usize, cx: &mut Context<'_>) -> bool {
        let mut inner = self.inner.borrow_mut();
        let replaced = match &mut inner.slots[index].as_mut().expect("an operation holds its slot").state {
            SlotState::Done(_) => return true,
            SlotState::Waiting(Some(waker)) if waker.will_wake(cx.waker()) => None,
            SlotState::Waiting(waker) => waker.replace(cx.waker().clone()),
            SlotState::Abandoned => unreachable!("its future is being polled"),
        };
        drop(inner);
        drop(replaced);
        false
    }

    fn take(&self, index: usize) -> io::Result<Payload> {
        let slot = self.inner.borrow_mut().release(index);
        match slot.state {
            SlotState::Done(result) => result.map(|()| slot.payload),
            _ => unreachable!("taken only when done"),
        }
    }

    fn abandon(&self, index: usize) {
        let mut inner = self.inner.borrow_mut();
        let slot = inner.slots[index].as_mut().expect("an operation holds its slot");
        if matches!(slot.state, SlotState::Done(_)) {
            let slot = inner.release(index);
            drop(inner);
            drop(slot);
        } else {
            slot.state = SlotState::Abandoned;
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // The kernel may still write to the buffers of what is under way.
        self.drain();
    }
}

impl Inner {
    fn queue(&mut self, slot: Slot) -> usize {
        let index = match self.free.pop() {
            Some(index) => {
                self.slots[index] = Some(slot);
                index
            }
            None => {
                self.slots.push(Some(slot));
                self.slots.len() - 1
            }
        };
        self.in_flight += 1;
        self.push(index);
        index
    }

    fn release(&mut self, index: usize) -> Slot {
        self.free.push(index);
        self.slots[index].take().expect("released once")
    }

    /// Queues the (rest of the) operation in a slot.
    fn push(&mut self, index: usize) {
        let slot = self.slots[index].as_mut().expect("queued slots are there");
        let entry = slot.entry().user_data(index as u64);
        self.backlog.push_back(entry);
        if self.backlog.len() >= self.uring.params().sq_entries() as usize {
            self.submit(0);
        }
    }

    /// Hands the backlog to the kernel, as far as it takes it, and lets it post completions; waits for `want` of them.
    fn submit(&mut self, want: u32) {
        loop {
            {
                let mut queue = self.uring.submission();
                while !queue.is_full()
                    && let Some(entry) = self.backlog.pop_front()
                {
                    // SAFETY: the entry points into the payload of its slot (heap memory of a DmaBuf, of Bytes or of the
                    // vector of IoVectors) and names the slot's file; the slot is released only after the completion.
                    // There is room: the queue is not full.
                    unsafe { queue.push(&entry).expect("the queue is not full") };
                }
            }
            let queued = {
                let queue = self.uring.submission();
                if queue.is_empty() && want == 0 && !queue.taskrun() && !queue.cq_overflow() {
                    return;
                }
                queue.len() as u32
            };
            // Completions that the kernel posts while we are there need no signal: the caller looks for them afterwards.
            self.uring.completion().disable_eventfd();
            // SAFETY: no argument is passed; the flags are valid for every ring.
            let entered = unsafe { self.uring.submitter().enter::<()>(queued, want, ENTER_GETEVENTS, None) };
            self.uring.completion().enable_eventfd();
            match entered {
                Ok(taken) if taken as u32 == queued && self.backlog.is_empty() => return,
                // All entries of a turn were taken, or a bad one ended the batch early (it completes with its error).
                Ok(taken) if taken > 0 => {}
                Ok(_) => return,
                Err(error) => match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
                    Some(rustix::io::Errno::INTR) => {}
                    // Short of memory, or too many completions unseen: after reaping the next turn tries again.
                    Some(rustix::io::Errno::AGAIN | rustix::io::Errno::BUSY) => return,
                    _ => panic!("io_uring_enter on a ring of this thread: {error}"),
                },
            }
        }
    }

    /// Submits and reaps until there is nothing to submit and nothing to reap.
    fn exchange(&mut self, aftermath: &mut Aftermath, want: u32) {
        let mut want = want;
        loop {
            self.submit(want);
            want = 0;
            let reaped = self.reap(aftermath);
            // What was posted between the call and the eventfd being enabled gave no signal: look once more.
            fence(Ordering::SeqCst);
            let taskrun = {
                let queue = self.uring.submission();
                queue.taskrun() || queue.cq_overflow()
            };
            if !(taskrun || (self.pending() && reaped > 0) || !self.uring.completion().is_empty()) {
                return;
            }
        }
    }

    /// Whether something is queued that the kernel has not taken.
    fn pending(&mut self) -> bool {
        !self.backlog.is_empty() || !self.uring.submission().is_empty()
    }

    fn reap(&mut self, aftermath: &mut Aftermath) -> usize {
        let mut count = 0;
        loop {
            // One at a time: handling one may queue the rest of a short transfer.
            let Some(entry) = self.uring.completion().next() else { return count };
            count += 1;
            self.complete(entry.user_data() as usize, entry.result(), aftermath);
        }
    }

    fn complete(&mut self, index: usize, result: i32, aftermath: &mut Aftermath) {
        let slot = self.slots[index].as_mut().expect("a slot is there until its completion");
        let outcome = match slot.advance(result) {
            Progress::Again => return self.push(index),
            Progress::Done(outcome) => outcome,
        };
        self.in_flight -= 1;
        self.completed += 1;
        match std::mem::replace(&mut slot.state, SlotState::Done(outcome)) {
            SlotState::Waiting(waker) => aftermath.wakers.extend(waker),
            SlotState::Abandoned => aftermath.abandoned.push(self.release(index)),
            SlotState::Done(_) => unreachable!("one completion each"),
        }
    }
}

/// What runs foreign code (wakers, owners of buffers) and so must wait until the ring is not borrowed.
#[derive(Default)]
struct Aftermath {
    wakers: Vec<Waker>,
    abandoned: Vec<Slot>,
}

impl Aftermath {
    fn settle(self) {
        self.wakers.into_iter().for_each(Waker::wake);
    }
}

enum Progress {
    Again,
    Done(io::Result<()>),
}

impl Slot {
    /// The submission for what is left.
    fn entry(&mut self) -> squeue::Entry {
        let fd = types::Fd(self.fd.as_ref().map_or(-1, |fd| fd.as_raw_fd()));
        match &mut self.payload {
            Payload::Read { buf, offset } => {
                let rest = &mut buf[self.done..];
                let length = rest.len().min(TRANSFER_BYTES_MAX) as u32;
                opcode::Read::new(fd, rest.as_mut_ptr(), length).offset(*offset + self.done as u64).build()
            }
            Payload::Write { vectors, next, offset, .. } => {
                let rest = &vectors[*next..];
                let offset = *offset + self.done as u64;
                match rest {
                    [one] => {
                        opcode::Write::new(fd, one.base, one.len.min(TRANSFER_BYTES_MAX) as u32).offset(offset).build()
                    }
                    _ => opcode::Writev::new(fd, rest.as_ptr().cast(), rest.len() as u32).offset(offset).build(),
                }
            }
            Payload::Sleep(time) => opcode::Timeout::new(&**time).build(),
            Payload::Sync { flags } => opcode::Fsync::new(fd).flags(*flags).build(),
            Payload::Fallocate { mode, offset, length } => {
                opcode::Fallocate::new(fd, *length).offset(*offset).mode(*mode).build()
            }
        }
    }

    /// Takes a completion into account.
    fn advance(&mut self, result: i32) -> Progress {
        if result < 0 {
            let error = io::Error::from_raw_os_error(-result);
            return match rustix::io::Errno::from_raw_os_error(-result) {
                rustix::io::Errno::INTR | rustix::io::Errno::AGAIN if self.retries < RETRIES_MAX => {
                    self.retries += 1;
                    Progress::Again
                }
                // So a timeout says that the time is over.
                rustix::io::Errno::TIME => Progress::Done(Ok(())),
                _ => Progress::Done(Err(error)),
            };
        }
        let count = result as usize;
        match &mut self.payload {
            Payload::Read { buf, .. } => {
                self.done += count;
                if count > 0 && self.done < buf.len() {
                    return Progress::Again;
                }
                let done = self.done;
                buf.set_len(done);
            }
            Payload::Write { vectors, next, remaining, .. } => {
                if count == 0 && *remaining > 0 {
                    return Progress::Done(Err(io::ErrorKind::WriteZero.into()));
                }
                self.done += count;
                *remaining -= count;
                if *remaining > 0 {
                    let mut skip = count;
                    while skip >= vectors[*next].len {
                        skip -= vectors[*next].len;
                        *next += 1;
                    }
                    let vector = &mut vectors[*next];
                    vector.base = vector.base.wrapping_add(skip);
                    vector.len -= skip;
                    return Progress::Again;
                }
            }
            Payload::Sleep(_) | Payload::Sync { .. } | Payload::Fallocate { .. } => {}
        }
        Progress::Done(Ok(()))
    }
}

/// IORING_ENTER_GETEVENTS (io_uring_enter(2)).
const ENTER_GETEVENTS: u32 = 1;
/// Then EAGAIN and EINTR are answers: a file that always says so would keep the reactor busy for ever.
const RETRIES_MAX: u32 = 1000;
/// A stopping reactor waits for sleeps of the ring.
const SHORT_SLEEP_MAX: std::time::Duration = std::time::Duration::from_millis(20);
/// More would not fit the length of a submission; the rest is continued.
const TRANSFER_BYTES_MAX: usize = 1 << 30;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Options, run_on_this_thread};

    fn file() -> Rc<OwnedFd> {
        Rc::new(tempfile::tempfile().unwrap().into())
    }

    fn on_reactor<F: Future>(main: F) -> F::Output {
        let options = Options { ring_entries: 8, ..Options::default() };
        run_on_this_thread(&options, async { tokio::time::timeout(Duration::from_secs(30), main).await })
            .expect("io_uring works here")
            .expect("in time")
    }

    #[test]
    fn what_is_written_in_pieces_is_read_back_and_cut_at_the_end() {
        on_reactor(async {
            let fd = file();
            let pieces = vec![Bytes::from_static(b"ab"), Bytes::new(), Bytes::from(vec![b'c'; 5000])];
            writev(&fd, 10, pieces).await.unwrap();
            fdatasync(&fd).await.unwrap();
            fsync(&fd).await.unwrap();
            let buf = read(&fd, 11, DmaBuf::zeroed(10_000)).await.unwrap();
            assert_eq!(buf.len(), 5001);
            assert_eq!(&buf[..3], b"bcc");
            assert_eq!(read(&fd, 1 << 40, DmaBuf::zeroed(10)).await.unwrap().len(), 0);
            writev(&fd, 0, Vec::new()).await.unwrap();
        });
    }

    #[test]
    fn many_more_operations_than_entries_complete() {
        on_reactor(async {
            let fd = file();
            let writes: Vec<_> =
                (0..1000u64).map(|i| writev(&fd, i * 8, vec![Bytes::copy_from_slice(&i.to_le_bytes())])).collect();
            for write in writes {
                write.await.unwrap();
            }
            let reads: Vec<_> = (0..1000u64).map(|i| (i, read(&fd, i * 8, DmaBuf::zeroed(8)))).collect();
            for (i, read) in reads {
                assert_eq!(*read.await.unwrap(), i.to_le_bytes());
            }
        });
    }

    #[test]
    fn a_dropped_operation_still_happens_and_the_end_waits_for_it() {
        let fd = file();
        let keep = fd.try_clone().unwrap();
        let runtime = crate::Runtime::new(&Options::default()).unwrap();
        let fd_count = runtime.block_on(async move {
            for i in 0..64u64 {
                drop(writev(&fd, i * 4096, vec![Bytes::from(vec![7; 4096])]));
                drop(read(&fd, i * 4096, DmaBuf::zeroed(4096)));
            }
            Rc::strong_count(&fd)
        });
        assert_eq!(fd_count, 129, "every operation holds the file");
        let ring = Rc::downgrade(&current().unwrap());
        drop(runtime);
        assert!(ring.upgrade().is_none() && current().is_none(), "nothing holds the ring");
        assert_eq!(rustix::fs::fstat(&keep).unwrap().st_size, 64 * 4096);
    }

    #[test]
    fn a_busy_reactor_that_never_parks_submits_and_reaps() {
        on_reactor(async {
            let spinner = tokio::task::spawn_local(async {
                loop {
                    tokio::task::yield_now().await;
                }
            });
            let fd = file();
            for i in 0..50 {
                writev(&fd, i, vec![Bytes::from_static(b"x")]).await.unwrap();
                fdatasync(&fd).await.unwrap();
            }
            spinner.abort();
        });
    }

    #[test]
    fn fallocate_reserves_punches_and_zeroes() {
        on_reactor(async {
            let fd = file();
            fallocate(&fd, FallocateMode::Allocate, 0, 65536).await.unwrap();
            writev(&fd, 0, vec![Bytes::from(vec![1; 65536])]).await.unwrap();
            match fallocate(&fd, FallocateMode::PunchHole, 4096, 4096).await {
                // Not every filesystem can.
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::OPNOTSUPP.raw_os_error()) => return,
                other => other.unwrap(),
            }
            let buf = read(&fd, 0, DmaBuf::zeroed(65536)).await.unwrap();
            assert!(buf[4096..8192].iter().all(|byte| *byte == 0) && buf[8192] == 1);
        });
    }

    #[test]
    fn errors_come_back_with_the_buffer_freed() {
        on_reactor(async {
            let fd: Rc<OwnedFd> = Rc::new(std::fs::File::open("/dev/null").unwrap().into());
            let error = writev(&fd, 0, vec![Bytes::from_static(b"x")]).await.unwrap_err();
            assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::BADF.raw_os_error()));
            assert!(writev(&fd, 0, vec![Bytes::new(); BUFFERS_MAX + 1]).await.is_err());
        });
    }

    #[test]
    fn without_a_reactor_it_says_so() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let error = runtime.block_on(fsync(&file())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
    }

    #[test]
    fn a_short_write_continues_in_the_middle_of_a_buffer() {
        let data = vec![Bytes::from(vec![0; 10]), Bytes::from(vec![1; 20]), Bytes::from(vec![2; 30])];
        let vectors = data.iter().map(|bytes| IoVector { base: bytes.as_ptr(), len: bytes.len() }).collect();
        let middle = data[1].as_ptr().wrapping_add(5);
        let payload = Payload::Write { _data: data, vectors, next: 0, offset: 0, remaining: 60 };
        let mut slot = Slot { fd: Some(file()), payload, done: 0, retries: 0, state: SlotState::Waiting(None) };
        assert!(matches!(slot.advance(15), Progress::Again));
        match &slot.payload {
            Payload::Write { vectors, next, remaining, .. } => {
                assert_eq!((*next, *remaining, vectors[1].base, vectors[1].len), (1, 45, middle, 15));
            }
            _ => unreachable!(),
        }
        assert!(matches!(slot.advance(-4), Progress::Again), "EINTR");
        assert!(matches!(slot.advance(0), Progress::Done(Err(_))));
        assert!(matches!(slot.advance(45), Progress::Done(Ok(()))));
    }
}
