//! How fast a target is, called directly: no client, no wire. And [`NullOst`], which makes a target startable without
//! OSTs: for this, and for tests.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{LocalBoxFuture, join_all};
use nacre_osd::store::Store;
use nacre_reactor::Env;
use nacre_transport::local::{LocalConnector, LocalNet, LocalServer, serve_local};
use nacre_transport::target::dispatch::{rpc_answer, rpc_args, rpc_body};
use nacre_transport::{Answer, Call, Service, Session};
use nacre_wire::layout::StripeHint;
use nacre_wire::ldlm::Ibits;
use nacre_wire::map::{TargetInfo, TargetKind, target_label, target_nqn};
use nacre_wire::mdt::{Create, CreateReply, Cred, GetAttr, Inode, NewKind, Slot, Unlink, UnlinkReply, op};
use nacre_wire::op::{Opcode, RpcArgs};
use nacre_wire::ost::{Destroy, OP_DESTROY, OP_PRECREATE, OP_STATFS, OstStatfs, Precreate, PrecreateReply};
use nacre_wire::session::{ConnectReply, ConnectRequest, OP_CONNECT, OP_DISCONNECT, OP_REPLAY_DONE};
use nacre_wire::{ClusterMap, Fid, Nid, Status, Uuid, codec};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use zerocopy::IntoBytes;

use crate::target::{Mdt, MdtConfig, StartError};

/// What to do.
#[derive(Clone, Copy, Debug)]
pub struct BenchConfig {
    /// Files in all.
    pub files: u32,
    /// Calls under way at once; at most 256.
    pub concurrency: u32,
    /// Directories that the files are spread over.
    pub directories: u32,
}

/// How long one kind of operation took.
#[derive(Clone, Debug, PartialEq)]
pub struct BenchPhase {
    /// `create`, `stat`, `unlink`.
    pub name: &'static str,
    /// How many.
    pub operations: u64,
    /// From the first call to the last answer.
    pub elapsed: Duration,
    /// Likewise by the clock that was given, such as the CPU time of the thread.
    pub elapsed_other: Duration,
}

impl BenchPhase {
    /// Operations per second.
    pub fn rate(&self) -> f64 {
        self.operations as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

/// A target with OSTs that do nothing, over any store.
pub struct BenchTarget {
    /// The target.
    pub mdt: Rc<Mdt>,
    /// Its OSTs.
    pub osts: Vec<Rc<NullOst>>,
    _servers: Vec<LocalServer>,
}

impl BenchTarget {
    /// Starts an MDT over `store` with `ost_count` null OSTs.
    pub async fn start(env: Env, store: Rc<dyn Store>, ost_count: u16) -> Result<BenchTarget, StartError> {
        let net = LocalNet::new();
        let config = MdtConfig { fsname: "bench".into(), index: 0, uuid: env.uuid(), fs_uuid: env.uuid() };
        let osts: Vec<_> = (0..ost_count).map(|index| NullOst::new(&config.fsname, index, env.uuid())).collect();
        let servers = osts.iter().map(|ost| serve_local(&net, ost.nid(), ost.clone())).collect();
        let connector = Rc::new(LocalConnector::new(&net, Nid::local(0), "bench-MDT0000"));
        let label = target_label(&config.fsname, TargetKind::Mdt, 0);
        let map = map_of(&config.fsname, config.fs_uuid, &osts);
        let mdt = Mdt::start(env, store, config, connector).await?;
        // Nothing was read from the store for OSTs that are new.
        mdt.set_map(&map).await.map_err(|_| StartError::Damaged { label, what: "counters" })?;
        Ok(BenchTarget { mdt, osts, _servers: servers })
    }
}

/// A cluster map of these OSTs and nothing else.
pub fn map_of(fsname: &str, fs_uuid: Uuid, osts: &[Rc<NullOst>]) -> ClusterMap {
    let target = |ost: &Rc<NullOst>| TargetInfo {
        kind: TargetKind::Ost,
        index: ost.index,
        uuid: ost.uuid,
        nids: vec![ost.nid()],
        incarnation: 1,
    };
    ClusterMap { epoch: 1, fsname: fsname.to_owned(), fs_uuid, targets: osts.iter().map(target).collect() }
}

/// Creates, stats and unlinks files, straight at the service. `clock` is a second clock to measure by.
pub async fn run(mdt: &Rc<Mdt>, config: BenchConfig, clock: impl Fn() -> Duration) -> Result<Vec<BenchPhase>, Status> {
    let caller = Rc::new(DirectCaller::connect(mdt.clone(), "bench").await?);
    let mut directories = Vec::new();
    for i in 0..config.directories.max(1) {
        let request = create(&caller, Fid::ROOT, format!("bench-{i}"), NewKind::Dir(StripeHint::default()), 0);
        let reply: CreateReply = caller.call(op::CREATE, &request).await?;
        directories.push(reply.inode.fid);
    }
    let concurrency = config.concurrency.clamp(1, crate::session::REPLY_SLOTS);
    let share = config.files.div_ceil(concurrency);
    let files = Rc::new(RefCell::new(vec![Fid::NONE; (share * concurrency) as usize]));
    let mut phases = Vec::new();
    let place = |worker: u32, i: u32| {
        let number = worker * share + i;
        (directories[number as usize % directories.len()], format!("file-{number:09}"), number as usize)
    };
    let place = &place;
    let operations = u64::from(share * concurrency);
    let timed = async |name, work: Vec<LocalBoxFuture<'_, Result<(), Status>>>| {
        let (start, start_other) = (Instant::now(), clock());
        for result in join_all(work).await {
            result?;
        }
        Ok::<_, Status>(BenchPhase { name, operations, elapsed: start.elapsed(), elapsed_other: clock() - start_other })
    };

    // With objects from the start, as open(2) with O_CREAT asks for them.
    let one_stripe = StripeHint { count: Some(1), ..StripeHint::default() };
    let mut work: Vec<LocalBoxFuture<'_, Result<(), Status>>> = Vec::new();
    for worker in 0..concurrency {
        let (caller, files) = (caller.clone(), files.clone());
        work.push(Box::pin(async move {
            for i in 0..share {
                let (parent, name, at) = place(worker, i);
                let request = create(&caller, parent, name, NewKind::File(one_stripe), worker);
                let reply: CreateReply = caller.call(op::CREATE, &request).await?;
                files.borrow_mut()[at] = reply.inode.fid;
            }
            Ok(())
        }));
    }
    phases.push(timed("create", work).await?);

    let mut work: Vec<LocalBoxFuture<'_, Result<(), Status>>> = Vec::new();
    for worker in 0..concurrency {
        let (caller, files) = (caller.clone(), files.clone());
        work.push(Box::pin(async move {
            for i in 0..share {
                let (_, _, at) = place(worker, i);
                let fid = files.borrow()[at];
                let _: Inode = caller.call(op::GET_ATTR, &GetAttr { fid, lock: Ibits::empty() }).await?;
            }
            Ok(())
        }));
    }
    phases.push(timed("stat", work).await?);

    let mut work: Vec<LocalBoxFuture<'_, Result<(), Status>>> = Vec::new();
    for worker in 0..concurrency {
        let caller = caller.clone();
        work.push(Box::pin(async move {
            for i in 0..share {
                let (parent, name, _) = place(worker, i);
                let _: UnlinkReply = caller.call(op::UNLINK, &unlink(&caller, parent, name, false, worker)).await?;
            }
            Ok(())
        }));
    }
    phases.push(timed("unlink", work).await?);

    for i in 0..directories.len() {
        let request = unlink(&caller, Fid::ROOT, format!("bench-{i}"), true, 0);
        let _: UnlinkReply = caller.call(op::UNLINK, &request).await?;
    }
    caller.call::<_, ()>(OP_DISCONNECT, &()).await?;
    Ok(phases)
}

fn create(caller: &DirectCaller, parent: Fid, name: String, kind: NewKind, slot: u32) -> Create {
    Create {
        slot: Slot { index: slot, xid: caller.next_xid() },
        cred: Cred::default(),
        parent,
        name: name.into_bytes(),
        kind,
        mode: 0o644,
        time: Default::default(),
        exclusive: true,
        open: None,
        lock: Ibits::empty(),
    }
}

fn unlink(caller: &DirectCaller, parent: Fid, name: String, directory: bool, slot: u32) -> Unlink {
    Unlink {
        slot: Slot { index: slot, xid: caller.next_xid() },
        cred: Cred::default(),
        parent,
        name: name.into_bytes(),
        directory,
        time: Default::default(),
    }
}

/// A client that calls a service in the same thread.
pub struct DirectCaller {
    service: Rc<dyn Service>,
    /// What the service sees; its events are here.
    pub session: Rc<Session>,
    /// The server's answer to CONNECT.
    pub welcome: ConnectReply,
    next_xid: Cell<u64>,
}

impl DirectCaller {
    /// Connects to a target as a new client.
    pub async fn connect(mdt: Rc<Mdt>, name: &str) -> Result<DirectCaller, Status> {
        let mut bytes = [0; 16];
        for (to, from) in bytes.iter_mut().zip(name.bytes()) {
            *to = from;
        }
        DirectCaller::connect_as(mdt, Uuid(bytes), name, 0).await
    }

    /// Connects under a UUID, as one that has seen `last_incarnation` (0: none).
    pub async fn connect_as(
        mdt: Rc<Mdt>,
        client_uuid: Uuid,
        name: &str,
        last_incarnation: u64,
    ) -> Result<DirectCaller, Status> {
        thread_local!(static SESSIONS: Cell<u64> = const { Cell::new(1 << 40) });
        let id = SESSIONS.replace(SESSIONS.get() + 1);
        let session = Session::new(id, name.to_owned(), format!("nqn.2026-11.io.nacre:host:{name}"));
        let request = ConnectRequest {
            client_uuid,
            client_name: name.to_owned(),
            fsname: mdt.config.fsname.clone(),
            target_uuid: Some(mdt.config.uuid),
            features: Vec::new(),
            last_incarnation,
            will_replay: last_incarnation != 0,
        };
        let next_xid = Cell::new(1);
        let welcome = call(mdt.clone(), &session, OP_CONNECT, 0, 0, &request).await?;
        Ok(DirectCaller { service: mdt, session, welcome, next_xid })
    }

    /// A fresh request number.
    pub fn next_xid(&self) -> u64 {
        self.next_xid.replace(self.next_xid.get() + 1)
    }

    /// One call.
    pub async fn call<Q: Serialize, R: DeserializeOwned>(&self, operation: u16, request: &Q) -> Result<R, Status> {
        self.call_as(operation, request, self.next_xid(), 0).await
    }

    /// One call, with its number and flags.
    pub async fn call_as<Q: Serialize, R: DeserializeOwned>(
        &self,
        operation: u16,
        request: &Q,
        xid: u64,
        flags: u16,
    ) -> Result<R, Status> {
        call(self.service.clone(), &self.session, operation, xid, flags, request).await
    }

    /// The link is lost.
    pub fn lose(&self) {
        self.session.close();
        self.service.clone().closed(self.session.clone());
    }
}

async fn call<Q: Serialize, R: DeserializeOwned>(
    service: Rc<dyn Service>,
    session: &Rc<Session>,
    operation: u16,
    xid: u64,
    flags: u16,
    request: &Q,
) -> Result<R, Status> {
    let data = codec::encode(request);
    let reply_bytes_max = 1 << 20;
    let args = RpcArgs {
        operation: operation.into(),
        flags: flags.into(),
        xid: xid.into(),
        request_bytes: (data.len() as u32).into(),
        reply_bytes_max: reply_bytes_max.into(),
        ..RpcArgs::default()
    };
    let mut bytes = [0; 32];
    bytes.copy_from_slice(args.as_bytes());
    let call = Call { op: Opcode::RpcSend, args: bytes, data: data.into(), reply_bytes_max };
    let answer = service.serve(session.clone(), call).await?;
    codec::decode(&answer.data)
}

/// An OST that has all objects anybody wants and keeps none.
pub struct NullOst {
    /// Its index.
    pub index: u16,
    /// Its identity.
    pub uuid: Uuid,
    /// What it claims to have free, bytes.
    pub free_bytes: Cell<u64>,
    /// Last object created.
    pub last_id: Cell<u64>,
    /// Where the MDT said that given objects end, each time it started.
    pub orphans_after: RefCell<Vec<u64>>,
    /// What was destroyed.
    pub destroyed: RefCell<BTreeSet<Fid>>,
    /// Requests are refused with this.
    pub trouble: Cell<Option<Status>>,
    label: String,
}

impl NullOst {
    /// A fresh one.
    pub fn new(fsname: &str, index: u16, uuid: Uuid) -> Rc<NullOst> {
        Rc::new(NullOst {
            index,
            uuid,
            free_bytes: Cell::new(1 << 40),
            last_id: Cell::new(0),
            orphans_after: RefCell::default(),
            destroyed: RefCell::default(),
            trouble: Cell::new(None),
            label: target_label(fsname, TargetKind::Ost, index),
        })
    }

    /// Where it is served.
    pub fn nid(&self) -> Nid {
        Nid::local(100 + self.index)
    }

    fn answer(&self, call: &Call) -> Result<Answer, Status> {
        let operation = rpc_args(call)?.operation.get();
        if let (Some(status), false) = (self.trouble.get(), operation == OP_CONNECT) {
            return Err(status);
        }
        match operation {
            OP_CONNECT => {
                let request: ConnectRequest = rpc_body(call)?;
                let reply = ConnectReply {
                    incarnation: 1,
                    resumed: request.last_incarnation == 1,
                    recovering: false,
                    last_committed: 0,
                    features: Vec::new(),
                    io_bytes_max: 1 << 20,
                    object_bytes_max: 1 << 60,
                    grant_bytes: 0,
                    reply_slots: 1,
                };
                Ok(rpc_answer(&reply, 0))
            }
            OP_PRECREATE => {
                let request: Precreate = rpc_body(call)?;
                if let Some(after) = request.orphans_after_id {
                    self.orphans_after.borrow_mut().push(after);
                }
                self.last_id.set(self.last_id.get().max(request.up_to_id));
                Ok(rpc_answer(&PrecreateReply { last_id: request.up_to_id }, 0))
            }
            OP_DESTROY => {
                let request: Destroy = rpc_body(call)?;
                self.destroyed.borrow_mut().extend(request.objects);
                Ok(rpc_answer(&(), 0))
            }
            OP_STATFS => {
                let free_bytes = self.free_bytes.get();
                let reply =
                    OstStatfs { total_bytes: 1 << 40, free_bytes, target_uuid: self.uuid, ..OstStatfs::default() };
                Ok(rpc_answer(&reply, 0))
            }
            OP_DISCONNECT | OP_REPLAY_DONE => Ok(rpc_answer(&(), 0)),
            _ => Err(Status::UNKNOWN_OPERATION),
        }
    }
}

impl Service for NullOst {
    fn nqn(&self) -> String {
        target_nqn(self.uuid, &self.label)
    }

    fn uuid(&self) -> Uuid {
        self.uuid
    }

    fn serve(self: Rc<Self>, _session: Rc<Session>, call: Call) -> LocalBoxFuture<'static, Result<Answer, Status>> {
        Box::pin(async move { self.answer(&call) })
    }

    fn closed(self: Rc<Self>, _session: Rc<Session>) {}
}
