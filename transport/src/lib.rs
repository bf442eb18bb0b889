//! NVMe-oF host and target, and typed calls over them.
//!
//! A *service* (mgs, mdt, ost) implements [`Service`] and is given to a target. A *client* of it opens a [`Link`] through a
//! [`Connector`], keeps it alive with an [`host::Import`], and speaks through the typed functions in [`stubs`].
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use futures_util::future::LocalBoxFuture;
use nacre_reactor::{Bytes, DmaBuf};
use nacre_wire::ldlm::Event;
use nacre_wire::op::Opcode;
use nacre_wire::{Nid, Status, Uuid};
use tokio::sync::Notify;

pub mod host;
pub mod local;
pub mod nvme;
pub mod stubs;
pub mod target;
pub mod tcp;
mod watched;

/// One command, on its way to a service.
#[derive(Clone, Debug)]
pub struct Call {
    /// What. RPC_SEND stands for the pair: the transport splits and joins it.
    pub op: Opcode,
    /// CDW2–3, CDW10–15.
    pub args: [u8; 32],
    /// Data for the service. For an RPC: the request body.
    pub data: Bytes,
    /// Most data the caller takes back.
    pub reply_bytes_max: u32,
}

/// A command's success.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The 64-bit result of the completion. For an RPC: the target's last committed transaction, 0 where there is none.
    pub result: u64,
    /// Data for the caller. For an RPC: the reply body.
    pub data: Bytes,
}

/// A command's failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The service said no.
    #[error("{0}")]
    Status(Status),
    /// It was done, but the answer is larger than `reply_bytes_max`: ask again (RPCs: with the same xid) with this much.
    #[error("the reply needs {bytes} bytes")]
    ReplyTooLarge {
        /// What the answer takes.
        bytes: u32,
    },
    /// The link ended before the answer came: it may have been done or not.
    #[error("the connection was lost")]
    Lost,
}

/// A service behind a target: an OST, an MDT or the MGS. Lives on one reactor.
pub trait Service {
    /// NVMe qualified name of its subsystem.
    fn nqn(&self) -> String;

    /// Identity of the target; NIL for an MGS.
    fn uuid(&self) -> Uuid;

    /// Serves one command of a session. Calls of one session run concurrently and complete in any order.
    fn serve(self: Rc<Self>, session: Rc<Session>, call: Call) -> LocalBoxFuture<'static, Result<Answer, Status>>;

    /// The session's association ended (link lost, disconnected, keep-alive ran out). What it holds is for the service to
    /// judge: the client may be back soon, under a new session with the same client UUID.
    fn closed(self: Rc<Self>, session: Rc<Session>);
}

/// A client's association with a service, seen from the service.
pub struct Session {
    /// Unique in this process.
    pub id: u64,
    /// Where it comes from, for people.
    pub peer: String,
    /// Host NQN of the association.
    pub host_nqn: String,
    /// Set by the service when the CONNECT RPC has been taken.
    pub client_uuid: Cell<Option<Uuid>>,
    events: RefCell<EventQueue>,
    notify: Notify,
    closed: Cell<bool>,
}

#[derive(Default)]
struct EventQueue {
    /// Sequence number of the first event in `waiting`.
    first: u64,
    waiting: VecDeque<Event>,
}

impl Session {
    /// A fresh session; transports make them.
    pub fn new(id: u64, peer: String, host_nqn: String) -> Rc<Session> {
        Rc::new(Session {
            id,
            peer,
            host_nqn,
            client_uuid: Cell::new(None),
            events: RefCell::new(EventQueue { first: 1, waiting: VecDeque::new() }),
            notify: Notify::new(),
            closed: Cell::new(false),
        })
    }

    /// Queues an event for the client; it travels with the next EVENT_WAIT. Lost if the session ends first.
    pub fn send_event(&self, event: Event) {
        self.events.borrow_mut().waiting.push_back(event);
        self.notify.notify_one();
    }

    /// For transports: events not acknowledged yet after dropping those up to `acknowledged`, waiting until there is one or
    /// the session closes. Returns the sequence number of the first.
    pub async fn next_events(&self, acknowledged: u64, limit: usize) -> (u64, Vec<Event>) {
        loop {
            {
                let mut queue = self.events.borrow_mut();
                while queue.first <= acknowledged && queue.waiting.pop_front().is_some() {
                    queue.first += 1;
                }
                if !queue.waiting.is_empty() || self.closed.get() {
                    return (queue.first, queue.waiting.iter().take(limit).cloned().collect());
                }
            }
            self.notify.notified().await;
        }
    }

    /// For transports: the association has ended.
    pub fn close(&self) {
        self.closed.set(true);
        self.notify.notify_waiters();
        self.notify.notify_one();
    }

    /// Whether the association has ended.
    pub fn is_closed(&self) -> bool {
        self.closed.get()
    }
}

/// A client's association with a service, seen from the client. When it ends, all calls answer [`CallError::Lost`].
pub trait Link {
    /// Sends a command and waits for its completion. Dropping the future abandons the answer; the command runs on.
    fn call(&self, call: Call) -> LocalBoxFuture<'static, Result<Answer, CallError>>;

    /// Like [`Link::call`]; the command's data is `call.data` followed by `more`. Transports that can, send the pieces from
    /// where they are; the service sees one buffer.
    fn call_gather(&self, mut call: Call, more: Vec<Bytes>) -> LocalBoxFuture<'static, Result<Answer, CallError>> {
        call.data = gather(call.data, &more);
        self.call(call)
    }

    /// The next events of the service, in order, each once. Waits; `Lost` when the link ends.
    fn events(&self) -> LocalBoxFuture<'static, Result<Vec<Event>, CallError>>;

    /// Completes when the link has ended.
    fn ended(&self) -> LocalBoxFuture<'static, ()>;

    /// Ends the link at once.
    fn close(&self);

    /// Largest data of one command either way, bytes.
    fn data_bytes_max(&self) -> u32;
}

/// `head` and `more` as one page-aligned buffer; without a copy when there is nothing to join.
fn gather(head: Bytes, more: &[Bytes]) -> Bytes {
    if more.iter().all(Bytes::is_empty) {
        return head;
    }
    let mut whole = DmaBuf::zeroed(head.len() + more.iter().map(Bytes::len).sum::<usize>());
    let mut at = 0;
    for piece in std::iter::once(&head).chain(more) {
        whole[at..at + piece.len()].copy_from_slice(piece);
        at += piece.len();
    }
    whole.freeze()
}

/// Opens links. One for TCP, one inside a process (which the simulator injects faults into).
pub trait Connector {
    /// Opens an association with the subsystem `nqn` at `nid`.
    fn connect(&self, nid: Nid, nqn: String) -> LocalBoxFuture<'static, Result<Rc<dyn Link>, ConnectError>>;
}

/// Why a link could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody there (yet): try again.
    #[error("{nid}: {source}")]
    Unreachable {
        /// Where.
        nid: Nid,
        /// The system's word.
        source: std::io::Error,
    },
    /// Somebody is there who does not have, or does not give, what was asked for.
    #[error("{nid}: {reason}")]
    Refused {
        /// Where.
        nid: Nid,
        /// Why.
        reason: String,
    },
    /// What answers does not speak NVMe/TCP as we do.
    #[error("{nid}: not an NVMe-oF target of Nacre: {reason}")]
    Protocol {
        /// Where.
        nid: Nid,
        /// What was wrong.
        reason: String,
    },
}
