//! The target's side of one connection (a queue): commands in, data both ways, completions out.
//!
//! Memory is bounded: data on its way in by [`INBOUND_BYTES_MAX`] (further transfers wait for their R2T), replies by
//! [`OUTBOUND_BYTES_MAX`] (reads wait; beyond, nothing is read from the socket), commands by the queue's size.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use nacre_reactor::Bytes;
use nacre_wire::Status;
use nacre_wire::op::{DATA_BYTES_MAX, Opcode};
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use super::Fault;
use super::admin;
use super::association::{Association, Command};
use super::pdu::{self, CapsuleResp, Common, FatalStatus, Head, Transfer, Violation, flag, kind};
use super::rx::{Received, Rx};
use super::space::Space;
use super::tx::{Tx, status_bits};
use crate::Answer;
use crate::nvme::{Cqe, Sgl, Sqe, StatusField, fabrics};

/// Memory that a command takes until it is answered, counted against the connection's limits.
#[derive(Clone, Copy, Default)]
pub(super) struct Held {
    /// Of its data.
    pub(super) inbound_bytes: usize,
    /// Of the data it will answer with.
    pub(super) reading_bytes: usize,
}

/// The sending side, shared with everything that answers over this connection.
pub(super) struct Line {
    tx: RefCell<Tx>,
    waker: RefCell<Option<Waker>>,
    /// The task is running, or has been woken: no need to wake it.
    awake: Cell<bool>,
    closing: Cell<bool>,
    queue_entries: u16,
    flow_control: bool,
    sq_head: Cell<u16>,
    outstanding: Cell<u32>,
    inbound_bytes: Cell<usize>,
    reading_bytes: Cell<usize>,
}

impl Line {
    pub(super) fn new(tx: Tx, queue_entries: u16, flow_control: bool) -> Rc<Line> {
        Rc::new(Line {
            tx: RefCell::new(tx),
            waker: RefCell::default(),
            awake: Cell::new(false),
            closing: Cell::new(false),
            queue_entries,
            flow_control,
            // Connect itself was the first entry.
            sq_head: Cell::new(1 % queue_entries),
            outstanding: Cell::new(0),
            inbound_bytes: Cell::new(0),
            reading_bytes: Cell::new(0),
        })
    }

    /// Ends the connection, once what is queued has been given to the system as far as it takes it.
    pub(super) fn close(&self) {
        self.closing.set(true);
        self.wake();
    }

    /// The answer of a service.
    pub(super) fn answer(&self, cid: u16, held: Held, answer: Result<Answer, Status>, reply_bytes_max: u32) {
        let answer = match answer {
            Ok(answer) => answer,
            Err(status) => return self.complete(cid, held, StatusField::from_service(status), 0),
        };
        if answer.data.len() > reply_bytes_max as usize {
            let status = StatusField::from_service(Status::REPLY_TOO_LARGE);
            return self.complete(cid, held, status, answer.data.len() as u64);
        }
        if answer.data.is_empty() {
            return self.complete(cid, held, StatusField::SUCCESS, answer.result);
        }
        let length_bytes = answer.data.len() as u32;
        // SUCCESS stands for a completion whose result is the number of bytes; only where the host asked not to be told
        // the queue's head.
        let whole = !self.flow_control && answer.result == u64::from(length_bytes);
        let flags = flag::LAST | if whole { flag::SUCCESS } else { 0 };
        let header = transfer(cid, 0, 0, length_bytes);
        self.tx.borrow_mut().push(kind::C2H_DATA, flags, &header, std::slice::from_ref(&answer.data));
        if whole {
            self.done(held);
        } else {
            self.complete(cid, held, StatusField::SUCCESS, answer.result);
        }
    }

    /// A completion.
    pub(super) fn complete(&self, cid: u16, held: Held, status: StatusField, result: u64) {
        let cqe = Cqe {
            result: result.into(),
            sq_head: if self.flow_control { self.sq_head.get() } else { 0 }.into(),
            sq_id: 0.into(),
            cid: cid.into(),
            status: status_bits(status).into(),
        };
        self.tx.borrow_mut().push(kind::CAPSULE_RESP, 0, &CapsuleResp { common: Common::default(), cqe }, &[]);
        self.done(held);
    }

    /// Connect succeeded, without flow control: FFFFh in place of the queue's head says so. Base, 6.3.
    pub(super) fn complete_connect(&self, cid: u16, controller_id: u16) {
        let result = u64::from(controller_id).into();
        let cqe = Cqe { result, sq_head: 0xffff.into(), cid: cid.into(), ..Cqe::default() };
        self.tx.borrow_mut().push(kind::CAPSULE_RESP, 0, &CapsuleResp { common: Common::default(), cqe }, &[]);
    }

    /// Writes everything; for connections that are not served.
    pub(super) async fn flush(&self, write: &mut OwnedWriteHalf) -> io::Result<()> {
        poll_fn(|cx| self.tx.borrow_mut().poll_flush(write, cx)).await
    }

    fn done(&self, held: Held) {
        self.inbound_bytes.set(self.inbound_bytes.get() - held.inbound_bytes);
        self.reading_bytes.set(self.reading_bytes.get() - held.reading_bytes);
        self.outstanding.set(self.outstanding.get().saturating_sub(1));
        self.wake();
    }

    fn wake(&self) {
        if !self.awake.replace(true)
            && let Some(waker) = self.waker.borrow_mut().take()
        {
            waker.wake();
        }
    }
}

fn transfer(cid: u16, tag: u16, offset_bytes: u32, length_bytes: u32) -> Transfer {
    Transfer {
        common: Common::default(),
        cid: cid.into(),
        tag: tag.into(),
        offset_bytes: offset_bytes.into(),
        length_bytes: length_bytes.into(),
        reserved: 0.into(),
    }
}

/// Runs a connection that has been accepted into an association, to its end.
pub(super) struct Connection {
    pub(super) association: Rc<Association>,
    pub(super) line: Rc<Line>,
    pub(super) rx: Rx,
    pub(super) read: OwnedReadHalf,
    pub(super) write: OwnedWriteHalf,
    pub(super) peer: SocketAddr,
    pub(super) queue_id: u16,
    state: State,
    /// Data announced with R2T and not here yet, by tag.
    inbound: Vec<Option<Inbound>>,
    /// Commands whose R2T waits for memory.
    waiting: VecDeque<Sqe>,
    /// Reads that wait for the replies before them to leave.
    waiting_reads: VecDeque<Sqe>,
}

/// What the data being received is for.
enum State {
    Idle,
    /// Data of this command, in its capsule; it may have failed already.
    Capsule(Sqe, Option<StatusField>),
    /// A part of the transfer with this tag.
    Part(u16),
}

struct Inbound {
    sqe: Sqe,
    /// Gone while a part of it is being received.
    space: Option<Space>,
    received_bytes: usize,
    length_bytes: usize,
    intact: bool,
}

impl Connection {
    pub(super) fn new(
        association: Rc<Association>,
        line: Rc<Line>,
        rx: Rx,
        halves: (OwnedReadHalf, OwnedWriteHalf),
        peer: SocketAddr,
        queue_id: u16,
    ) -> Connection {
        let (read, write) = halves;
        let (waiting, waiting_reads) = (VecDeque::new(), VecDeque::new());
        let inbound = Vec::new();
        let state = State::Idle;
        Connection { association, line, rx, read, write, peer, queue_id, state, inbound, waiting, waiting_reads }
    }

    pub(super) async fn run(mut self) {
        let fault = poll_fn(|cx| self.poll(cx)).await;
        match &fault {
            Fault::Closed => tracing::debug!("{}: queue {} closed", self.peer, self.queue_id),
            Fault::Io(_) | Fault::Terminated(_) => tracing::info!("{}: queue {}: {fault}", self.peer, self.queue_id),
            Fault::Violation(_) => tracing::warn!("{}: queue {}: {fault}", self.peer, self.queue_id),
        }
        self.line.closing.set(true);
        if let Fault::Violation(violation) = &fault {
            let offending = self.rx.offending();
            self.line.tx.borrow_mut().push_termination(kind::C2H_TERM_REQ, violation, offending);
        }
        if self.queue_id == 0 {
            self.association.end(&fault.to_string());
        }
        if !matches!(fault, Fault::Io(_)) {
            let flush = async {
                poll_fn(|cx| self.line.tx.borrow_mut().poll_flush(&mut self.write, cx)).await?;
                self.write.shutdown().await
            };
            // The peer has a moment to take what was queued; what it does with it does not matter any more.
            let _ = timeout(LAST_WORDS_MAX, flush).await;
        }
    }

    /// One turn: read, handle, write.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Fault> {
        self.line.awake.set(true);
        loop {
            if self.line.closing.get() {
                return Poll::Ready(Fault::Closed);
            }
            let mut progress = false;
            if self.line.tx.borrow().bytes() < OUTBOUND_BYTES_MAX {
                match self.rx.poll_read(&mut self.read, cx) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Fault::Closed),
                    Poll::Ready(Ok(_)) => {
                        progress = true;
                        self.association.is_alive();
                        if let Err(fault) = self.handle() {
                            return Poll::Ready(fault);
                        }
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(error.into()),
                    Poll::Pending => {}
                }
            }
            progress |= self.start_waiting();
            let flushed = self.line.tx.borrow_mut().poll_flush(&mut self.write, cx);
            match flushed {
                Poll::Ready(Err(error)) => return Poll::Ready(error.into()),
                Poll::Ready(Ok(())) if !progress && self.nothing_can_start() => break,
                Poll::Ready(Ok(())) => {}
                Poll::Pending => break,
            }
        }
        // Kept up to date in the same turn in which it may be needed: nothing can answer between here and the return.
        let mut waker = self.line.waker.borrow_mut();
        match &mut *waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => *waker = Some(cx.waker().clone()),
        }
        self.line.awake.set(false);
        Poll::Pending
    }

    /// Handles everything that has been read.
    fn handle(&mut self) -> Result<(), Fault> {
        loop {
            if self.rx.is_receiving() {
                let Some(received) = self.rx.received() else { return Ok(()) };
                self.received(received)?;
            } else {
                let Some(arrived) = self.rx.head()? else { return Ok(()) };
                match arrived.head {
                    Head::Command(sqe) => self.command(sqe, arrived.data_bytes)?,
                    Head::Data(transfer) => self.data(&transfer, arrived.data_bytes)?,
                    Head::Term(request) => {
                        let (status, information) = (request.status.get(), request.information.get());
                        return Err(Fault::Terminated(format!("fatal status {status}, information {information:#x}")));
                    }
                    Head::Ic(_) => return Err(Violation::sequence("a second ICReq").into()),
                    Head::Response(_) | Head::Ready(_) => return Err(Violation::sequence("meant for a host").into()),
                }
            }
        }
    }

    fn command(&mut self, sqe: Sqe, data_bytes: usize) -> Result<(), Fault> {
        let line = &self.line;
        line.sq_head.set((line.sq_head.get() + 1) % line.queue_entries);
        line.outstanding.set(line.outstanding.get() + 1);
        if line.outstanding.get() > u32::from(line.queue_entries) {
            return Err(Violation::sequence("more commands than the queue holds").into());
        }
        let length_bytes = sqe.sgl.length.get();
        let to_target = direction(&sqe) == 1;
        let verdict = match sqe.sgl.kind {
            _ if length_bytes > DATA_BYTES_MAX => Some(StatusField::SGL_LENGTH),
            Sgl::IN_CAPSULE if to_target && sqe.sgl.address.get() != 0 => Some(StatusField::INVALID_FIELD),
            Sgl::IN_CAPSULE if to_target && length_bytes as usize != data_bytes => Some(StatusField::SGL_LENGTH),
            Sgl::IN_CAPSULE if to_target => None,
            _ if data_bytes != 0 => Some(StatusField::INVALID_FIELD),
            Sgl::TRANSPORT => None,
            // No data, and nothing said about it.
            _ if length_bytes == 0 => None,
            _ => Some(StatusField::SGL_TYPE),
        };
        if data_bytes > 0 {
            let space = if verdict.is_some() { Space::Nowhere(data_bytes) } else { Space::new(data_bytes) };
            line.inbound_bytes.set(line.inbound_bytes.get() + data_bytes);
            self.rx.receive(space, 0, data_bytes);
            self.state = State::Capsule(sqe, verdict);
            return Ok(());
        }
        if let Some(status) = verdict {
            line.complete(sqe.cid.get(), Held::default(), status, 0);
        } else if to_target && length_bytes > 0 {
            self.waiting.push_back(sqe);
            self.start_waiting();
        } else if sqe.opcode & 0x7f == Opcode::Read as u8 && self.queue_id != 0 {
            if self.waiting_reads.is_empty() && self.room_for_read(length_bytes) {
                self.read_command(&sqe);
            } else {
                self.waiting_reads.push_back(sqe);
            }
        } else {
            self.execute(&sqe, Bytes::new(), Held::default());
        }
        Ok(())
    }

    /// Starts transfers and reads that waited, as far as there is room now; whether any did.
    fn start_waiting(&mut self) -> bool {
        let mut started = false;
        while let Some(sqe) = self.waiting.front() {
            let length_bytes = sqe.sgl.length.get() as usize;
            let inbound_bytes = self.line.inbound_bytes.get();
            if inbound_bytes > 0 && inbound_bytes + length_bytes > INBOUND_BYTES_MAX {
                break;
            }
            let sqe = *sqe;
            self.waiting.pop_front();
            self.line.inbound_bytes.set(inbound_bytes + length_bytes);
            let space = Some(Space::new(length_bytes));
            let inbound = Inbound { sqe, space, received_bytes: 0, length_bytes, intact: true };
            let tag = match self.inbound.iter().position(Option::is_none) {
                Some(free) => free,
                None => {
                    self.inbound.push(None);
                    self.inbound.len() - 1
                }
            };
            self.inbound[tag] = Some(inbound);
            let ready = transfer(sqe.cid.get(), tag as u16, 0, length_bytes as u32);
            self.line.tx.borrow_mut().push(kind::R2T, 0, &ready, &[]);
            started = true;
        }
        while let Some(sqe) = self.waiting_reads.front().copied() {
            if !self.room_for_read(sqe.sgl.length.get()) {
                break;
            }
            self.waiting_reads.pop_front();
            self.read_command(&sqe);
            started = true;
        }
        started
    }

    fn nothing_can_start(&self) -> bool {
        let read_fits = |sqe: &Sqe| self.room_for_read(sqe.sgl.length.get());
        !self.waiting_reads.front().is_some_and(read_fits)
    }

    fn room_for_read(&self, length_bytes: u32) -> bool {
        let taken = self.line.reading_bytes.get() + self.line.tx.borrow().bytes();
        taken == 0 || taken + length_bytes as usize <= OUTBOUND_BYTES_MAX
    }

    fn read_command(&mut self, sqe: &Sqe) {
        let reading_bytes = sqe.sgl.length.get() as usize;
        self.line.reading_bytes.set(self.line.reading_bytes.get() + reading_bytes);
        self.execute(sqe, Bytes::new(), Held { inbound_bytes: 0, reading_bytes });
    }

    fn data(&mut self, part: &Transfer, data_bytes: usize) -> Result<(), Fault> {
        let tag = part.tag.get();
        let inbound = self.inbound.get_mut(usize::from(tag)).and_then(Option::as_mut);
        let inbound = inbound.ok_or(Violation::field(10, "no such transfer"))?;
        if inbound.sqe.cid != part.cid {
            return Err(Violation::field(8, "the transfer belongs to another command").into());
        }
        let end = inbound.received_bytes + data_bytes;
        if part.offset_bytes.get() as usize != inbound.received_bytes || end > inbound.length_bytes {
            let (status, what) = (FatalStatus::DataRange, "data out of order or outside the transfer");
            return Err(Violation { status, information: 0, what }.into());
        }
        let last = part.common.flags & flag::LAST != 0;
        if data_bytes == 0 || last != (end == inbound.length_bytes) {
            return Err(Violation::field(1, "LAST on another PDU than the last").into());
        }
        let space = inbound.space.take().ok_or(Violation::sequence("two parts of one transfer at once"))?;
        self.rx.receive(space, inbound.received_bytes, data_bytes);
        inbound.received_bytes = end;
        self.state = State::Part(tag);
        Ok(())
    }

    fn received(&mut self, received: Received) -> Result<(), Fault> {
        let Received { space, intact } = received;
        match std::mem::replace(&mut self.state, State::Idle) {
            State::Idle => return Err(Violation::sequence("data for nothing").into()),
            State::Capsule(sqe, verdict) => {
                let held = Held { inbound_bytes: space.len(), reading_bytes: 0 };
                match verdict {
                    Some(status) => self.line.complete(sqe.cid.get(), held, status, 0),
                    None if !intact => self.line.complete(sqe.cid.get(), held, TRANSIENT_TRANSPORT_ERROR, 0),
                    None => self.execute(&sqe, space.freeze(), held),
                }
            }
            State::Part(tag) => {
                let slot = &mut self.inbound[usize::from(tag)];
                let Some(mut inbound) = slot.take() else {
                    return Err(Violation::sequence("data for nothing").into());
                };
                inbound.intact &= intact;
                inbound.space = Some(space);
                let held = Held { inbound_bytes: inbound.length_bytes, reading_bytes: 0 };
                if inbound.received_bytes < inbound.length_bytes {
                    *slot = Some(inbound);
                } else if let (Some(space), true) = (inbound.space, inbound.intact) {
                    self.execute(&inbound.sqe, space.freeze(), held);
                } else {
                    self.line.complete(inbound.sqe.cid.get(), held, TRANSIENT_TRANSPORT_ERROR, 0);
                }
            }
        }
        Ok(())
    }

    fn execute(&mut self, sqe: &Sqe, data: Bytes, held: Held) {
        let command = Command { line: self.line.clone(), cid: sqe.cid.get(), held };
        let reply_bytes_max = if direction(sqe) == 2 { sqe.sgl.length.get() } else { 0 };
        if self.queue_id == 0 {
            return admin::execute(&self.association, command, sqe, &data, reply_bytes_max);
        }
        self.association.execute(command, sqe, data, reply_bytes_max);
    }
}

/// Data direction, from the low bits of the opcode; of fabrics commands, from those of their type. Base, 3.3.3.1 and 6.
fn direction(sqe: &Sqe) -> u8 {
    if sqe.opcode == fabrics::OPCODE { sqe.nsid.get() as u8 & 3 } else { sqe.opcode & 3 }
}

/// Transient transport error. Base, 3.3.3.2.1.1 (generic status 22h): the data digest was wrong, the connection is fine.
const TRANSIENT_TRANSPORT_ERROR: StatusField = StatusField(0x22);
const INBOUND_BYTES_MAX: usize = 32 << 20;
const OUTBOUND_BYTES_MAX: usize = 32 << 20;
const LAST_WORDS_MAX: Duration = Duration::from_secs(1);
const _: () = assert!(pdu::DATA_BYTES_MAX <= INBOUND_BYTES_MAX);
