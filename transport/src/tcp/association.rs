//! An association: the admin connection of a host, its I/O connections, and the session that a service sees.
//!
//! The association lives as long as its admin connection and the host's signs of life. RPC halves are joined here,
//! wherever they arrive, and held EVENT_WAITs are answered from here.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::{Rc, Weak};
use std::time::Duration;

use futures_util::FutureExt;
use nacre_reactor::Bytes;
use nacre_wire::ldlm::EventBatch;
use nacre_wire::op::{Opcode, RpcArgs};
use nacre_wire::{Status, codec};
use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep, timeout_at};
use zerocopy::FromBytes;

use super::connection::{Held, Line};
use super::target::Subject;
use crate::nvme::{Sqe, StatusField};
use crate::{Answer, Call, Session};

pub(super) struct Association {
    pub(super) subject: Subject,
    pub(super) controller_id: u16,
    pub(super) host_id: [u8; 16],
    pub(super) session: Rc<Session>,
    /// Controller configuration as the host set it.
    pub(super) configuration: Cell<u32>,
    /// Asynchronous event requests held.
    pub(super) held_requests: Cell<u32>,
    pub(super) keep_alive: Cell<Duration>,
    lines: RefCell<Vec<Weak<Line>>>,
    alive: Cell<bool>,
    ended: Cell<bool>,
    halves: RefCell<BTreeMap<u32, Half>>,
    waits: RefCell<VecDeque<EventWait>>,
    wait_came: Notify,
}

/// A command that is answered over its connection.
pub(super) struct Command {
    pub(super) line: Rc<Line>,
    pub(super) cid: u16,
    pub(super) held: Held,
}

/// One half of an RPC that waits for the other.
enum Half {
    Send { command: Command, args: [u8; 32], data: Bytes },
    Receive { command: Command, bytes_max: u32 },
}

struct EventWait {
    command: Command,
    bytes_max: u32,
    deadline: Instant,
}

impl Association {
    pub(super) fn new(
        subject: Subject,
        controller_id: u16,
        host_id: [u8; 16],
        session: Rc<Session>,
        keep_alive: Duration,
    ) -> Rc<Association> {
        let association = Rc::new(Association {
            subject,
            controller_id,
            host_id,
            session,
            configuration: Cell::new(0),
            held_requests: Cell::new(0),
            keep_alive: Cell::new(keep_alive),
            lines: RefCell::default(),
            alive: Cell::new(true),
            ended: Cell::new(false),
            halves: RefCell::default(),
            waits: RefCell::default(),
            wait_came: Notify::new(),
        });
        spawn_local(watch_signs_of_life(Rc::downgrade(&association)));
        spawn_local(answer_event_waits(Rc::downgrade(&association)));
        association
    }

    /// The connection belongs to it from now on.
    pub(super) fn join(&self, line: &Rc<Line>) {
        let mut lines = self.lines.borrow_mut();
        lines.retain(|line| line.strong_count() > 0);
        lines.push(Rc::downgrade(line));
    }

    pub(super) fn connections(&self) -> usize {
        self.lines.borrow().iter().filter(|line| line.strong_count() > 0).count()
    }

    /// The host gave a sign of life.
    pub(super) fn is_alive(&self) {
        self.alive.set(true);
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.get()
    }

    /// Ends everything; once.
    pub(super) fn end(&self, why: &str) {
        if self.ended.replace(true) {
            return;
        }
        tracing::debug!(
            "{}: association {} of {} ended: {why}",
            self.session.peer,
            self.controller_id,
            self.session.host_nqn
        );
        for line in self.lines.take() {
            if let Some(line) = line.upgrade() {
                line.close();
            }
        }
        self.halves.take();
        self.waits.take();
        self.wait_came.notify_one();
        self.session.close();
        self.subject.closed(&self.session);
    }

    /// A command of the object command set, with its data.
    pub(super) fn execute(self: &Rc<Association>, command: Command, sqe: &Sqe, data: Bytes, reply_bytes_max: u32) {
        use nacre_wire::op::{NSID_EVENT, NSID_RPC};
        let Some(op) = Opcode::from_byte(sqe.opcode) else { return command.fail(StatusField::INVALID_OPCODE) };
        match (sqe.nsid.get(), op) {
            (NSID_EVENT, Opcode::EventWait) => {
                let deadline = Instant::now() + EVENT_WAIT_MAX;
                self.waits.borrow_mut().push_back(EventWait { command, bytes_max: reply_bytes_max, deadline });
                self.wait_came.notify_one();
            }
            (NSID_RPC, Opcode::RpcSend) => self.join_send(command, sqe.args(), data),
            (NSID_RPC, Opcode::RpcRecv) => self.join_receive(command, sqe.args(), reply_bytes_max),
            (NSID_RPC, Opcode::EventWait) | (NSID_EVENT, _) => command.fail(StatusField::INVALID_FIELD),
            (NSID_RPC, op) => {
                let call = Call { op, args: sqe.args(), data, reply_bytes_max };
                self.serve(call, move |answer| command.answer(answer, reply_bytes_max));
            }
            _ => command.fail(StatusField::INVALID_NAMESPACE),
        }
    }

    fn join_send(self: &Rc<Association>, command: Command, args: [u8; 32], data: Bytes) {
        let rpc = rpc_args(&args);
        if rpc.request_bytes.get() as usize != data.len() {
            return command.answer(Err(Status::MALFORMED), 0);
        }
        let tag = rpc.tag.get();
        let other = self.halves.borrow_mut().remove(&tag);
        match other {
            Some(Half::Receive { command: receive, bytes_max }) => self.rpc(command, args, data, receive, bytes_max),
            Some(earlier @ Half::Send { .. }) => {
                self.halves.borrow_mut().insert(tag, earlier);
                command.answer(Err(Status::MALFORMED), 0);
            }
            None => drop(self.halves.borrow_mut().insert(tag, Half::Send { command, args, data })),
        }
    }

    fn join_receive(self: &Rc<Association>, command: Command, args: [u8; 32], bytes_max: u32) {
        let rpc = rpc_args(&args);
        let bytes_max = bytes_max.min(rpc.reply_bytes_max.get());
        let tag = rpc.tag.get();
        let other = self.halves.borrow_mut().remove(&tag);
        match other {
            Some(Half::Send { command: send, args, data }) => self.rpc(send, args, data, command, bytes_max),
            Some(earlier @ Half::Receive { .. }) => {
                self.halves.borrow_mut().insert(tag, earlier);
                command.answer(Err(Status::MALFORMED), 0);
            }
            None => drop(self.halves.borrow_mut().insert(tag, Half::Receive { command, bytes_max })),
        }
    }

    /// Both halves are there. The answer, good or bad, is RPC_RECV's; RPC_SEND only says that the request was taken.
    fn rpc(self: &Rc<Association>, send: Command, args: [u8; 32], data: Bytes, receive: Command, bytes_max: u32) {
        let call = Call { op: Opcode::RpcSend, args, data, reply_bytes_max: bytes_max };
        self.serve(call, move |answer| {
            send.answer(Ok(Answer::default()), 0);
            receive.answer(answer, bytes_max);
        });
    }

    /// Serves in this very turn where the service answers at once, in a task of its own otherwise.
    fn serve(self: &Rc<Association>, call: Call, done: impl FnOnce(Result<Answer, Status>) + 'static) {
        let Subject::Service(service) = &self.subject else { return done(Err(Status::UNKNOWN_OPERATION)) };
        let mut answer = service.clone().serve(self.session.clone(), call);
        match (&mut answer).now_or_never() {
            Some(answer) => done(answer),
            None => drop(spawn_local(async move { done(answer.await) })),
        }
    }
}

impl Command {
    pub(super) fn answer(&self, answer: Result<Answer, Status>, reply_bytes_max: u32) {
        self.line.answer(self.cid, self.held, answer, reply_bytes_max);
    }

    pub(super) fn fail(&self, status: StatusField) {
        self.line.complete(self.cid, self.held, status, 0);
    }
}

fn rpc_args(args: &[u8; 32]) -> RpcArgs {
    RpcArgs::read_from_bytes(args).expect("RpcArgs is 32 bytes")
}

/// Ends the association when a whole keep-alive time passes without anything from the host.
async fn watch_signs_of_life(association: Weak<Association>) {
    loop {
        let period = match association.upgrade() {
            Some(association) if !association.has_ended() => association.keep_alive.get(),
            _ => return,
        };
        // Zero: the host wants no keep-alive; it may still set one later.
        sleep(if period.is_zero() { IDLE_LOOK } else { period }).await;
        let Some(association) = association.upgrade() else { return };
        if !association.alive.replace(false) && !period.is_zero() {
            tracing::info!(
                "{}: {} gave no sign of life for {} ms",
                association.session.peer,
                association.session.host_nqn,
                period.as_millis()
            );
            association.end("keep-alive timeout");
        }
    }
}

/// Answers held EVENT_WAITs, the oldest first: with events, or empty when its time is up.
async fn answer_event_waits(association: Weak<Association>) {
    let mut sent = 0;
    loop {
        let Some(association) = association.upgrade() else { return };
        if association.has_ended() {
            return;
        }
        let deadline = association.waits.borrow().front().map(|wait| wait.deadline);
        let Some(deadline) = deadline else {
            association.wait_came.notified().await;
            continue;
        };
        let events = timeout_at(deadline, association.session.next_events(sent, EVENTS_PER_BATCH)).await;
        let Some(wait) = association.waits.borrow_mut().pop_front() else { continue };
        let (first_sequence, mut events) = events.unwrap_or((sent + 1, Vec::new()));
        let data = loop {
            let batch = EventBatch { first_sequence, events };
            let data = codec::encode(&batch);
            if data.len() <= wait.bytes_max as usize || batch.events.len() <= 1 {
                events = batch.events;
                break data;
            }
            events = batch.events;
            events.truncate(events.len() / 2);
        };
        let fits = data.len() <= wait.bytes_max as usize;
        wait.command.answer(Ok(Answer { result: events.len() as u64, data: data.into() }), wait.bytes_max);
        if fits && !events.is_empty() {
            sent = first_sequence + events.len() as u64 - 1;
        }
    }
}

/// A held EVENT_WAIT is answered empty after this time: a stock kernel's rescan waits for held commands.
const EVENT_WAIT_MAX: Duration = Duration::from_secs(8);
const EVENTS_PER_BATCH: usize = 256;
const IDLE_LOOK: Duration = Duration::from_secs(5);
