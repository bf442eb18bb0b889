//! A service in memory and an observer that writes down what it hears.
#![allow(dead_code, reason = "each test file uses a part")]

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;

use futures_util::future::LocalBoxFuture;
use nacre_reactor::{Bytes, Env};
use nacre_transport::host::{Import, ImportLink, ImportObserver, PeerSpec};
use nacre_transport::target::dispatch;
use nacre_transport::{Answer, Call, CallError, Connector, Service, Session};
use nacre_wire::ldlm::Event;
use nacre_wire::op::{ObjectIo, Opcode, rpc_flags};
use nacre_wire::session::{ConnectReply, ConnectRequest, OP_CONNECT, OP_DISCONNECT, OP_REPLAY_DONE};
use nacre_wire::{Nid, Status, Uuid};
use tokio::task::LocalSet;
use zerocopy::IntoBytes;

/// Answers its body.
pub const OP_ECHO: u16 = 0x7001;

/// Runs on a thread with a real clock.
pub fn local<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, future)
}

/// Runs in virtual time.
pub fn run_virtual<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    LocalSet::new().block_on(&runtime, future)
}

/// One write stays as it came; reads find the write that starts at their offset.
pub struct TestService {
    pub nqn: String,
    pub incarnation: u64,
    pub recovering: bool,
    /// Echoes are held for ever while set.
    pub hold: Cell<bool>,
    /// The next echo answers NO_SESSION and the client is forgotten.
    pub forget: Cell<bool>,
    pub resent: Cell<u32>,
    pub closed: Cell<u32>,
    pub known: RefCell<Vec<Uuid>>,
    writes: RefCell<BTreeMap<u64, Bytes>>,
    sessions: RefCell<Vec<Rc<Session>>>,
}

impl TestService {
    pub fn new(label: &str) -> Rc<TestService> {
        Rc::new(TestService {
            nqn: format!("nqn.2026-11.io.nacre:test:{label}"),
            incarnation: 1,
            recovering: false,
            hold: Cell::new(false),
            forget: Cell::new(false),
            resent: Cell::new(0),
            closed: Cell::new(0),
            known: RefCell::default(),
            writes: RefCell::default(),
            sessions: RefCell::default(),
        })
    }

    /// The next life of the same target.
    pub fn restarted(&self, recovering: bool) -> Rc<TestService> {
        let mut next = Rc::into_inner(TestService::new("")).unwrap();
        next.nqn = self.nqn.clone();
        next.incarnation = self.incarnation + 1;
        next.recovering = recovering;
        Rc::new(next)
    }

    pub fn send_event(&self, epoch: u64) {
        self.sessions.borrow().last().unwrap().send_event(Event::MapChanged { epoch });
    }

    async fn rpc(&self, call: Call) -> Result<Answer, Status> {
        let args = dispatch::rpc_args(&call)?;
        match args.operation.get() {
            OP_CONNECT => {
                let request: ConnectRequest = dispatch::rpc_body(&call)?;
                let resumed = self.known.borrow().contains(&request.client_uuid);
                self.known.borrow_mut().push(request.client_uuid);
                let reply = ConnectReply {
                    incarnation: self.incarnation,
                    resumed: resumed && request.last_incarnation == self.incarnation,
                    recovering: self.recovering,
                    last_committed: 0,
                    features: Vec::new(),
                    io_bytes_max: 1 << 20,
                    object_bytes_max: 1 << 40,
                    grant_bytes: 0,
                    reply_slots: 8,
                };
                Ok(dispatch::rpc_answer(&reply, 0))
            }
            OP_DISCONNECT | OP_REPLAY_DONE => Ok(Answer::default()),
            OP_ECHO => {
                if self.forget.replace(false) {
                    self.known.borrow_mut().clear();
                    return Err(Status::NO_SESSION);
                }
                if self.hold.get() {
                    std::future::pending().await
                }
                if args.flags.get() & rpc_flags::RESENT != 0 {
                    self.resent.set(self.resent.get() + 1);
                }
                Ok(Answer { result: 0, data: call.data })
            }
            _ => Err(Status::UNKNOWN_OPERATION),
        }
    }
}

impl Service for TestService {
    fn nqn(&self) -> String {
        self.nqn.clone()
    }

    fn uuid(&self) -> Uuid {
        Uuid::from_random(1, 2)
    }

    fn serve(self: Rc<Self>, session: Rc<Session>, call: Call) -> LocalBoxFuture<'static, Result<Answer, Status>> {
        Box::pin(async move {
            if !self.sessions.borrow().iter().any(|known| known.id == session.id) {
                self.sessions.borrow_mut().push(session);
            }
            match call.op {
                Opcode::Ping => Ok(Answer::default()),
                Opcode::RpcSend => self.rpc(call).await,
                Opcode::Write => {
                    let io = dispatch::object_io(&call)?;
                    let result = call.data.len() as u64;
                    self.writes.borrow_mut().insert(io.offset_bytes.get(), call.data);
                    Ok(Answer { result, data: Bytes::new() })
                }
                Opcode::Read => {
                    let io = dispatch::object_io(&call)?;
                    let found = self.writes.borrow().get(&io.offset_bytes.get()).cloned().unwrap_or_default();
                    let data = found.slice(..found.len().min(io.length_bytes.get() as usize));
                    Ok(Answer { result: data.len() as u64, data })
                }
                _ => Err(Status::EOPNOTSUPP),
            }
        })
    }

    fn closed(self: Rc<Self>, _session: Rc<Session>) {
        self.closed.set(self.closed.get() + 1);
    }
}

pub fn write_call(offset: u64, data: Bytes) -> Call {
    let length = data.len() as u32;
    let io = ObjectIo { offset_bytes: offset.into(), length_bytes: length.into(), ..ObjectIo::default() };
    Call { op: Opcode::Write, args: io.as_bytes().try_into().unwrap(), data, reply_bytes_max: 0 }
}

pub fn read_call(offset: u64, length: u32) -> Call {
    let io = ObjectIo { offset_bytes: offset.into(), length_bytes: length.into(), ..ObjectIo::default() };
    let args = io.as_bytes().try_into().unwrap();
    Call { op: Opcode::Read, args, data: Bytes::new(), reply_bytes_max: length }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    Connected,
    Disconnected,
    Replay,
    Evicted,
    Event(u64),
}

#[derive(Default)]
pub struct Recorder {
    heard: RefCell<Vec<Heard>>,
}

impl Recorder {
    pub fn new() -> Rc<Recorder> {
        Rc::default()
    }

    pub fn take(&self) -> Vec<Heard> {
        self.heard.take()
    }

    fn hear(&self, what: Heard) {
        self.heard.borrow_mut().push(what);
    }
}

impl ImportObserver for Recorder {
    fn event(&self, event: Event) {
        if let Event::MapChanged { epoch } = event {
            self.hear(Heard::Event(epoch));
        }
    }

    fn will_replay(&self) -> bool {
        true
    }

    fn replay(&self, _link: ImportLink, _reply: ConnectReply) -> LocalBoxFuture<'static, Result<(), CallError>> {
        self.hear(Heard::Replay);
        Box::pin(async { Ok(()) })
    }

    fn evicted(&self) {
        self.hear(Heard::Evicted);
    }

    fn connected(&self, _reply: &ConnectReply) {
        self.hear(Heard::Connected);
    }

    fn disconnected(&self) {
        self.hear(Heard::Disconnected);
    }
}

pub fn spec_for(nid: Nid, service: &TestService) -> PeerSpec {
    let connect = ConnectRequest {
        client_uuid: Uuid::from_random(3, 4),
        client_name: "tester".to_owned(),
        fsname: "nacre".to_owned(),
        target_uuid: None,
        features: Vec::new(),
        last_incarnation: 0,
        will_replay: false,
    };
    PeerSpec { label: "test".to_owned(), nqn: service.nqn.clone(), nids: vec![nid], connect }
}

pub fn import_over(connector: Rc<dyn Connector>, nid: Nid, service: &TestService) -> (Rc<Import>, Rc<Recorder>) {
    let recorder = Recorder::new();
    (Import::new(Env::system(), connector, spec_for(nid, service), recorder.clone()), recorder)
}
