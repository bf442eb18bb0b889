//! The host's side of one connection (a queue): commands out, data both ways, completions in.
//!
//! A command holds a slot (its CID) until it is completed, whether or not anybody still waits for it. When all slots are
//! taken, commands wait in line; the last slots are kept for what lets others finish: lock cancels, answers to glimpses
//! and writes. Otherwise a queue full of calls that wait for a lock would keep out the call that gives it up.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use nacre_reactor::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::Fault;
use super::pdu::{CapsuleCmd, Common, FatalStatus, Head, Transfer, Violation, flag, kind};
use super::rx::{Received, Rx};
use super::space::Space;
use super::tx::Tx;
use crate::CallError;
use crate::nvme::{Sgl, Sqe, StatusField};

/// Limits that the controller told.
#[derive(Clone, Copy)]
pub(super) struct QueueLimits {
    /// Data that may travel in a command's capsule.
    pub(super) capsule_data_bytes: usize,
    /// Data of one H2CData.
    pub(super) h2c_data_bytes: usize,
    /// Commands at once.
    pub(super) commands: u16,
}

/// A completion with its data.
#[derive(Clone, Debug)]
pub(super) struct Completion {
    pub(super) status: StatusField,
    pub(super) result: u64,
    pub(super) data: Bytes,
}

/// A command to be sent.
pub(super) struct Request {
    pub(super) sqe: Sqe,
    pub(super) data: Vec<Bytes>,
    pub(super) reply_bytes_max: u32,
    /// `None`: the command's success goes without saying, its failure ends the link.
    pub(super) answer: Option<oneshot::Sender<Completion>>,
}

pub(super) struct Queue {
    tx: RefCell<Tx>,
    waker: RefCell<Option<Waker>>,
    awake: Cell<bool>,
    closing: Cell<bool>,
    limits: Cell<QueueLimits>,
    slots: RefCell<Slots>,
    /// Something came since the keep-alive looked last.
    alive: Cell<bool>,
}

#[derive(Default)]
struct Slots {
    busy: Vec<Option<Busy>>,
    free: Vec<u16>,
    /// Each element is sent whole: one command, or the two of an RPC.
    urgent: VecDeque<Vec<Request>>,
    ordinary: VecDeque<Vec<Request>>,
}

struct Busy {
    /// What an R2T asks for.
    data: Vec<Bytes>,
    data_bytes: usize,
    reply_bytes_max: usize,
    space: Option<Space>,
    received_bytes: usize,
    answer: Option<oneshot::Sender<Completion>>,
}

impl Queue {
    pub(super) fn new(tx: Tx, limits: QueueLimits) -> Rc<Queue> {
        let slots = Slots {
            busy: (0..limits.commands).map(|_| None).collect(),
            free: (0..limits.commands).rev().collect(),
            ..Slots::default()
        };
        Rc::new(Queue {
            tx: RefCell::new(tx),
            waker: RefCell::default(),
            awake: Cell::new(false),
            closing: Cell::new(false),
            limits: Cell::new(limits),
            slots: RefCell::new(slots),
            alive: Cell::new(true),
        })
    }

    pub(super) fn set_capsule_data_bytes(&self, bytes: usize) {
        self.limits.set(QueueLimits { capsule_data_bytes: bytes, ..self.limits.get() });
    }

    /// Commands that could be sent at once.
    pub(super) fn free(&self) -> usize {
        self.slots.borrow().free.len()
    }

    /// Sends commands next to each other, or puts them in line. `urgent` ones may take the last slots.
    pub(super) fn submit(&self, requests: Vec<Request>, urgent: bool) {
        if self.closing.get() {
            // Dropping the senders tells those who wait.
            return;
        }
        let mut slots = self.slots.borrow_mut();
        let line = if urgent { &mut slots.urgent } else { &mut slots.ordinary };
        line.push_back(requests);
        self.start(&mut slots);
        drop(slots);
        self.wake();
    }

    /// One command and its completion; `Lost` when the queue ends first.
    pub(super) fn command(
        &self,
        sqe: Sqe,
        data: Bytes,
        reply_bytes_max: u32,
    ) -> impl Future<Output = Result<Completion, CallError>> + use<> {
        let (answer, wait) = oneshot::channel();
        let data = if data.is_empty() { Vec::new() } else { vec![data] };
        self.submit(vec![Request { sqe, data, reply_bytes_max, answer: Some(answer) }], true);
        async move { wait.await.map_err(|_| CallError::Lost) }
    }

    /// Ends the queue.
    pub(super) fn close(&self) {
        self.closing.set(true);
        self.wake();
    }

    /// Whether anything has come since the last time this was asked.
    pub(super) fn take_sign_of_life(&self) -> bool {
        self.alive.replace(false)
    }

    /// Sends what fits.
    fn start(&self, slots: &mut Slots) {
        let reserve = usize::from(self.limits.get().commands) / RESERVED_PART;
        loop {
            let (line, free) = match slots.urgent.front() {
                Some(_) => (&mut slots.urgent, slots.free.len()),
                None => (&mut slots.ordinary, slots.free.len().saturating_sub(reserve)),
            };
            if line.front().is_none_or(|requests| requests.len() > free) {
                return;
            }
            for request in line.pop_front().unwrap_or_default() {
                self.send(slots, request);
            }
        }
    }

    fn send(&self, slots: &mut Slots, request: Request) {
        let Request { mut sqe, data, reply_bytes_max, answer } = request;
        let Some(cid) = slots.free.pop() else { return };
        let data_bytes: usize = data.iter().map(Bytes::len).sum();
        let in_capsule = data_bytes <= self.limits.get().capsule_data_bytes;
        sqe.cid = cid.into();
        sqe.flags = Sqe::FLAGS_SGL;
        sqe.sgl = match (data_bytes, in_capsule) {
            (0, _) => Sgl::new(Sgl::TRANSPORT, reply_bytes_max),
            (_, true) => Sgl::new(Sgl::IN_CAPSULE, data_bytes as u32),
            (_, false) => Sgl::new(Sgl::TRANSPORT, data_bytes as u32),
        };
        let capsule = CapsuleCmd { common: Common::default(), sqe };
        let with: &[Bytes] = if in_capsule { &data } else { &[] };
        self.tx.borrow_mut().push(kind::CAPSULE_CMD, 0, &capsule, with);
        slots.busy[usize::from(cid)] = Some(Busy {
            data: if in_capsule { Vec::new() } else { data },
            data_bytes,
            reply_bytes_max: reply_bytes_max as usize,
            space: None,
            received_bytes: 0,
            answer,
        });
    }

    fn wake(&self) {
        if !self.awake.replace(true)
            && let Some(waker) = self.waker.borrow_mut().take()
        {
            waker.wake();
        }
    }
}

/// Runs the connection of a queue.
pub(super) struct HostConnection {
    pub(super) queue: Rc<Queue>,
    pub(super) rx: Rx,
    pub(super) read: OwnedReadHalf,
    pub(super) write: OwnedWriteHalf,
    /// The C2HData being received: its command, and whether it stands for a completion too.
    pub(super) receiving: Option<(u16, bool)>,
}

impl HostConnection {
    /// To the end; whoever still waits then hears `Lost`.
    pub(super) async fn run(mut self) -> Fault {
        let fault = poll_fn(|cx| self.poll(cx)).await;
        self.queue.closing.set(true);
        self.queue.slots.take();
        if let Fault::Violation(violation) = &fault {
            let offending = self.rx.offending();
            self.queue.tx.borrow_mut().push_termination(kind::H2C_TERM_REQ, violation, offending);
        }
        if !matches!(fault, Fault::Io(_)) {
            let flush = async {
                poll_fn(|cx| self.queue.tx.borrow_mut().poll_flush(&mut self.write, cx)).await?;
                self.write.shutdown().await
            };
            // As on the other side: a moment, and no matter what comes of it.
            let _ = timeout(LAST_WORDS_MAX, flush).await;
        }
        fault
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Fault> {
        self.queue.awake.set(true);
        loop {
            if self.queue.closing.get() {
                return Poll::Ready(Fault::Closed);
            }
            let mut progress = false;
            match self.rx.poll_read(&mut self.read, cx) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Fault::Closed),
                Poll::Ready(Ok(_)) => {
                    progress = true;
                    self.queue.alive.set(true);
                    if let Err(fault) = self.handle() {
                        return Poll::Ready(fault);
                    }
                }
                Poll::Ready(Err(error)) => return Poll::Ready(error.into()),
                Poll::Pending => {}
            }
            let flushed = self.queue.tx.borrow_mut().poll_flush(&mut self.write, cx);
            match flushed {
                Poll::Ready(Err(error)) => return Poll::Ready(error.into()),
                Poll::Ready(Ok(())) if progress => {}
                Poll::Ready(Ok(())) | Poll::Pending => break,
            }
        }
        let mut waker = self.queue.waker.borrow_mut();
        match &mut *waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => *waker = Some(cx.waker().clone()),
        }
        self.queue.awake.set(false);
        Poll::Pending
    }

    fn handle(&mut self) -> Result<(), Fault> {
        loop {
            if self.rx.is_receiving() {
                let Some(received) = self.rx.received() else { return Ok(()) };
                self.received(received)?;
                continue;
            }
            let Some(arrived) = self.rx.head()? else { return Ok(()) };
            match arrived.head {
                Head::Response(cqe) => {
                    self.complete(cqe.cid.get(), cqe.status(), cqe.result.get())?;
                }
                Head::Data(part) => self.data(&part, arrived.data_bytes)?,
                Head::Ready(ready) => self.ready(&ready)?,
                Head::Term(request) => {
                    let (status, information) = (request.status.get(), request.information.get());
                    return Err(Fault::Terminated(format!("fatal status {status}, information {information:#x}")));
                }
                Head::Ic(_) => return Err(Violation::sequence("a second ICResp").into()),
                Head::Command(_) => return Err(Violation::sequence("meant for a controller").into()),
            }
        }
    }

    fn data(&mut self, part: &Transfer, data_bytes: usize) -> Result<(), Fault> {
        let cid = part.cid.get();
        let mut slots = self.queue.slots.borrow_mut();
        let busy = slots.busy.get_mut(usize::from(cid)).and_then(Option::as_mut);
        let busy = busy.ok_or(Violation::field(8, "no such command"))?;
        let end = busy.received_bytes + data_bytes;
        let last = part.common.flags & flag::LAST != 0;
        let success = part.common.flags & flag::SUCCESS != 0;
        if part.offset_bytes.get() as usize != busy.received_bytes || end > busy.reply_bytes_max {
            let (status, what) = (FatalStatus::DataRange, "data out of order or outside the transfer");
            return Err(Violation { status, information: 0, what }.into());
        }
        if data_bytes == 0 || success && !last {
            return Err(Violation::field(1, "flags of C2HData").into());
        }
        // All in one PDU, usually: then the space is as large as the data.
        let whole = if last { end } else { busy.reply_bytes_max };
        let space = busy.space.take().unwrap_or_else(|| Space::new(whole));
        self.rx.receive(space, busy.received_bytes, data_bytes);
        busy.received_bytes = end;
        self.receiving = Some((cid, success));
        Ok(())
    }

    fn received(&mut self, received: Received) -> Result<(), Fault> {
        let Some((cid, success)) = self.receiving.take() else {
            return Err(Violation::sequence("data for nothing").into());
        };
        if !received.intact {
            // Data that cannot be trusted: the link is given up, and whoever waits asks again on the next.
            return Err(Fault::Terminated(format!("data digest of command {cid} is wrong")));
        }
        let mut slots = self.queue.slots.borrow_mut();
        let Some(busy) = slots.busy.get_mut(usize::from(cid)).and_then(Option::as_mut) else {
            return Err(Violation::sequence("data for nothing").into());
        };
        busy.space = Some(received.space);
        let result = busy.received_bytes as u64;
        drop(slots);
        if success { self.complete(cid, StatusField::SUCCESS, result) } else { Ok(()) }
    }

    fn ready(&mut self, ready: &Transfer) -> Result<(), Fault> {
        let slots = self.queue.slots.borrow();
        let busy = slots.busy.get(usize::from(ready.cid.get())).and_then(Option::as_ref);
        let busy = busy.ok_or(Violation::field(8, "no such command"))?;
        let (start, length) = (ready.offset_bytes.get() as usize, ready.length_bytes.get() as usize);
        let end = start.checked_add(length).filter(|end| *end <= busy.data_bytes && length > 0);
        let Some(end) = end.filter(|_| !busy.data.is_empty()) else {
            let (status, what) = (FatalStatus::DataRange, "R2T outside the command's data");
            return Err(Violation { status, information: 0, what }.into());
        };
        let mut tx = self.queue.tx.borrow_mut();
        let mut at = start;
        while at < end {
            let part = (end - at).min(self.queue.limits.get().h2c_data_bytes);
            let header = Transfer {
                common: Common::default(),
                offset_bytes: (at as u32).into(),
                length_bytes: (part as u32).into(),
                reserved: 0.into(),
                ..*ready
            };
            let flags = if at + part == end { flag::LAST } else { 0 };
            tx.push(kind::H2C_DATA, flags, &header, &slice_of(&busy.data, at, part));
            at += part;
        }
        Ok(())
    }

    fn complete(&mut self, cid: u16, status: StatusField, result: u64) -> Result<(), Fault> {
        let mut slots = self.queue.slots.borrow_mut();
        let slot = slots.busy.get_mut(usize::from(cid)).and_then(Option::take);
        let busy = slot.ok_or(Violation::field(8 + 12, "completes no command"))?;
        slots.free.push(cid);
        self.queue.start(&mut slots);
        drop(slots);
        match busy.answer {
            Some(answer) => {
                let data = busy.space.map(|mut space| {
                    space.truncate(busy.received_bytes);
                    space.freeze()
                });
                // The caller may have stopped waiting.
                let _ = answer.send(Completion { status, result, data: data.unwrap_or_default() });
            }
            None if status == StatusField::SUCCESS => {}
            None => return Err(Fault::Terminated(format!("RPC_SEND failed with status {:#x}", status.0))),
        }
        Ok(())
    }
}

/// `length` bytes from `start` of pieces that follow each other.
fn slice_of(pieces: &[Bytes], start: usize, length: usize) -> Vec<Bytes> {
    let (mut skip, mut left) = (start, length);
    let mut slices = Vec::new();
    for piece in pieces {
        if skip >= piece.len() {
            skip -= piece.len();
            continue;
        }
        if left == 0 {
            break;
        }
        let end = piece.len().min(skip + left);
        slices.push(piece.slice(skip..end));
        left -= end - skip;
        skip = 0;
    }
    slices
}

/// One slot in so many is kept for urgent commands.
const RESERVED_PART: usize = 8;
const LAST_WORDS_MAX: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_over_pieces() {
        let pieces = [Bytes::from_static(b"abc"), Bytes::from_static(b""), Bytes::from_static(b"defg")];
        for start in 0..7 {
            for length in 0..=7 - start {
                let joined: Vec<u8> = slice_of(&pieces, start, length).concat();
                assert_eq!(joined, b"abcdefg"[start..start + length]);
            }
        }
    }
}
