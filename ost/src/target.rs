//! The service: what a target is made of, where commands go, who may ask.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::{Rc, Weak};

use futures_util::future::LocalBoxFuture;
use nacre_ldlm::ClientId;
use nacre_osd::store::{Durability, Op, Store, StoreError, Transaction, Transno};
use nacre_reactor::Env;
use nacre_transport::target::dispatch;
use nacre_transport::target::locks::LockServer;
use nacre_transport::{Answer, Call, Service, Session};
use nacre_wire::map::{TargetKind, target_label, target_nqn};
use nacre_wire::op::Opcode;
use nacre_wire::{Fid, Status, Time, Uuid, ldlm, ost, session};
use tokio::sync::Mutex;
use tokio::task::spawn_local;
use tokio::time::sleep;

use crate::grants::{GrantLimits, Grants};
use crate::ops;
use crate::params::{ParamError, Params};
use crate::recovery::Recovery;
use crate::session::Handles;

/// Index object: clients that have or had locks. UUID (16 bytes) → name, for people.
const CLIENTS: Fid = Fid::local(1);
/// Index object: `incarnation` → u64; `last_id` ‖ MDT index (big-endian u16) → u64. Values are little-endian.
pub(crate) const COUNTERS: Fid = Fid::local(2);
const INCARNATION: &[u8] = b"incarnation";
pub(crate) const LAST_ID: &[u8] = b"last_id";

/// Who a target is.
pub struct OstConfig {
    /// The filesystem.
    pub fsname: String,
    /// Its number among the OSTs.
    pub index: u16,
    /// Made by mkfs.
    pub uuid: Uuid,
    /// Tunables.
    pub params: Params,
}

/// Why an OST does not start.
#[derive(Debug, thiserror::Error)]
pub enum OstError {
    /// The store failed.
    #[error("{label}: {source}")]
    Store {
        /// The target.
        label: String,
        /// The store's word.
        source: Box<StoreError>,
    },
    /// What the store holds is no state of an OST.
    #[error("{label}: {what} is damaged; run nacre fsck on its device")]
    State {
        /// The target.
        label: String,
        /// What cannot be read.
        what: String,
    },
}

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OstStats {
    /// READ commands.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// WRITE and MWRITE commands.
    pub writes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// SYNC commands.
    pub syncs: u64,
    /// Truncates, punches, allocations.
    pub space_changes: u64,
    /// Locks asked for.
    pub enqueues: u64,
    /// Glimpses among them.
    pub glimpses: u64,
    /// Objects made.
    pub objects_created: u64,
    /// Objects removed.
    pub objects_destroyed: u64,
    /// Requests refused for want of space.
    pub no_space: u64,
    /// Clients evicted.
    pub evictions: u64,
}

/// An object storage target on a store. Lives on one reactor.
pub struct Ost {
    pub(crate) env: Env,
    pub(crate) store: Rc<dyn Store>,
    pub(crate) fsname: String,
    pub(crate) index: u16,
    pub(crate) uuid: Uuid,
    pub(crate) incarnation: u64,
    pub(crate) params: Params,
    pub(crate) locks: Rc<LockServer>,
    pub(crate) handles: RefCell<Handles>,
    pub(crate) grants: RefCell<Grants>,
    pub(crate) recovery: RefCell<Recovery>,
    /// The table of clients with locks, and the transaction that put each in.
    known: RefCell<BTreeMap<Uuid, Transno>>,
    /// Last object id made, by MDT.
    pub(crate) last_ids: RefCell<BTreeMap<u16, u64>>,
    /// Held over a PRECREATE.
    pub(crate) precreating: Mutex<()>,
    /// Newest change time on its way into each object, and how many changes are on their way.
    changing: RefCell<BTreeMap<Fid, (usize, Time)>>,
    stats: Cell<OstStats>,
}

/// A command's surroundings.
pub(crate) struct Context {
    pub(crate) ost: Rc<Ost>,
    pub(crate) session: Rc<Session>,
    pub(crate) client: ClientId,
}

impl Ost {
    /// Reads the target's state, counts the start (on stable media) and begins to serve, or to wait for the clients of the
    /// life before.
    pub async fn start(env: Env, store: Rc<dyn Store>, config: OstConfig) -> Result<Rc<Ost>, OstError> {
        let label = target_label(&config.fsname, TargetKind::Ost, config.index);
        let failed = |source: StoreError| OstError::Store { label: label.clone(), source: Box::new(source) };
        let number = |what: &str, value: &[u8]| match <[u8; 8]>::try_from(value) {
            Ok(bytes) => Ok(u64::from_le_bytes(bytes)),
            Err(_) => Err(OstError::State { label: label.clone(), what: what.to_owned() }),
        };
        let mut incarnation = 1;
        let mut last_ids = BTreeMap::new();
        for (key, value) in scan_all(&*store, COUNTERS).await.map_err(failed)? {
            if key == INCARNATION {
                incarnation = number("the start counter", &value)? + 1;
            } else if let Some(mdt) = key.strip_prefix(LAST_ID).and_then(|mdt| <[u8; 2]>::try_from(mdt).ok()) {
                last_ids.insert(u16::from_be_bytes(mdt), number("the counter of object ids", &value)?);
            }
        }
        let mut known = BTreeMap::new();
        for (key, _) in scan_all(&*store, CLIENTS).await.map_err(failed)? {
            let damaged = |_| OstError::State { label: label.clone(), what: "the table of clients".to_owned() };
            known.insert(Uuid(<[u8; 16]>::try_from(key).map_err(damaged)?), 0);
        }
        let value = incarnation.to_le_bytes().to_vec();
        let count = Op::Put { index: COUNTERS, key: INCARNATION.to_vec(), value };
        let transno = store.submit(Transaction { ops: vec![count] }).await.map_err(failed)?;
        store.wait(transno, Durability::Stable).await.map_err(failed)?;

        let pending: BTreeSet<Uuid> = known.keys().copied().collect();
        let window = config.params.recovery_window();
        let locks = LockServer::new(env.clone(), config.params.lock_limits(), incarnation);
        locks.set_glimpse_timeout(config.params.glimpse_timeout());
        let ost = Rc::new(Ost {
            recovery: RefCell::new(Recovery::start(env.now(), window, pending)),
            env,
            store,
            fsname: config.fsname,
            index: config.index,
            uuid: config.uuid,
            incarnation,
            params: config.params,
            locks,
            handles: RefCell::default(),
            grants: RefCell::default(),
            known: RefCell::new(known),
            last_ids: RefCell::new(last_ids),
            precreating: Mutex::new(()),
            changing: RefCell::default(),
            stats: Cell::default(),
        });
        let weak: Weak<Ost> = Rc::downgrade(&ost);
        ost.locks.set_hooks(weak.clone());
        if !ost.recovery.borrow().is_full() {
            tracing::info!("{label}: waiting for {} clients, {} s at most", ost.known.borrow().len(), window.as_secs());
            spawn_local(async move {
                sleep(window).await;
                if let Some(ost) = weak.upgrade() {
                    ost.end_recovery();
                }
            });
        }
        Ok(ost)
    }

    /// `nacre-OST0000`.
    pub fn label(&self) -> String {
        target_label(&self.fsname, TargetKind::Ost, self.index)
    }

    /// Grows with every start.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Whether clients of the life before are still waited for.
    pub fn is_recovering(&self) -> bool {
        !self.recovery.borrow().is_full()
    }

    /// Ends recovery now: clients that have not replayed are evicted.
    pub fn end_recovery(self: &Rc<Ost>) {
        let absent = self.recovery.borrow_mut().end();
        for uuid in absent {
            tracing::warn!("{}: client {uuid} did not come back in time; evicted", self.label());
            match self.locks.client_of_uuid(uuid) {
                Some(client) => self.locks.evict(client),
                None => self.strike(uuid),
            }
        }
    }

    /// Tunables, for lists.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// Sets a tunable from text, with effect at once.
    pub fn set_param(&self, name: &str, value: &str) -> Result<(), ParamError> {
        self.params.set(name, value)?;
        self.locks.set_limits(self.params.lock_limits());
        self.locks.set_glimpse_timeout(self.params.glimpse_timeout());
        Ok(())
    }

    /// Counters since the start.
    pub fn stats(&self) -> OstStats {
        self.stats.get()
    }

    /// Counters and gauges by name, for `lctl get_param`.
    pub fn stats_list(&self) -> Vec<(&'static str, u64)> {
        let (stats, locks) = (self.stats(), self.locks.stats());
        vec![
            ("reads", stats.reads),
            ("read_bytes", stats.read_bytes),
            ("writes", stats.writes),
            ("write_bytes", stats.write_bytes),
            ("syncs", stats.syncs),
            ("space_changes", stats.space_changes),
            ("enqueues", stats.enqueues),
            ("glimpses", stats.glimpses),
            ("objects_created", stats.objects_created),
            ("objects_destroyed", stats.objects_destroyed),
            ("no_space", stats.no_space),
            ("evictions", stats.evictions),
            ("locks_granted", locks.granted),
            ("locks_waiting", locks.waiting),
            ("lock_resources", locks.resources),
            ("lock_revokes", locks.revokes),
            ("granted_bytes", self.grants.borrow().total_bytes()),
            ("clients", self.locks.clients().len() as u64),
        ]
    }

    /// The locks, for lists of clients.
    pub fn lock_server(&self) -> &Rc<LockServer> {
        &self.locks
    }
}

impl Service for Ost {
    fn nqn(&self) -> String {
        target_nqn(self.uuid, &self.label())
    }

    fn uuid(&self) -> Uuid {
        self.uuid
    }

    fn serve(self: Rc<Self>, session: Rc<Session>, call: Call) -> LocalBoxFuture<'static, Result<Answer, Status>> {
        Box::pin(async move {
            let result = self.clone().dispatch(session, &call).await;
            if result == Err(Status::ENOSPC) {
                self.count(|stats| stats.no_space += 1);
            }
            result
        })
    }

    fn closed(self: Rc<Self>, session: Rc<Session>) {
        self.handles.borrow_mut().close(session.id);
        self.locks.detach(&session);
    }
}

impl Ost {
    async fn dispatch(self: Rc<Ost>, session: Rc<Session>, call: &Call) -> Result<Answer, Status> {
        match call.op {
            Opcode::Ping => return Ok(Answer::default()),
            Opcode::RpcSend => return self.rpc(session, call).await,
            _ => {}
        }
        let context = self.context(session)?;
        match call.op {
            Opcode::Read => ops::read::read(&context, call).await,
            Opcode::Write => ops::write::write(&context, call).await,
            Opcode::Mwrite => ops::mwrite::mwrite(&context, call).await,
            Opcode::Space => ops::space::space(&context, call).await,
            Opcode::SetAttr => ops::attr::setattr(&context, call).await,
            Opcode::GetAttr => ops::attr::getattr(&context, call).await,
            Opcode::Sync => ops::sync::sync(&context, call).await,
            Opcode::Seek => ops::seek::seek(&context, call).await,
            Opcode::Ping | Opcode::RpcSend | Opcode::RpcRecv | Opcode::EventWait => Err(Status::UNKNOWN_OPERATION),
        }
    }

    async fn rpc(self: Rc<Ost>, session: Rc<Session>, call: &Call) -> Result<Answer, Status> {
        let args = dispatch::rpc_args(call)?;
        match args.operation.get() {
            session::OP_CONNECT => return ops::connect::connect(&self, &session, call),
            session::OP_DISCONNECT => return ops::connect::disconnect(&self, &session, call).await,
            session::OP_REPLAY_DONE => return ops::connect::replay_done(&self, &session, call),
            ldlm::OP_REPLAY_LOCKS => return ops::connect::replay_locks(&self, &session, call),
            // Locks may be given back, and glimpses answered, at any time.
            ldlm::OP_CANCEL => return ops::enqueue::cancel(&self, &session, call),
            ldlm::OP_GLIMPSE_REPLY => return ops::enqueue::glimpse_reply(&self, &session, call),
            // So may space be looked at.
            ost::OP_STATFS => {
                self.locks.client(&session)?;
                return ops::statfs::statfs(&self, call);
            }
            _ => {}
        }
        let context = self.context(session)?;
        match args.operation.get() {
            ldlm::OP_ENQUEUE => ops::enqueue::enqueue(&context, args.xid.get(), call).await,
            ost::OP_OPEN_OBJECT => ops::open::open(&context, call).await,
            ost::OP_PRECREATE => ops::precreate::precreate(&context, call).await,
            ost::OP_DESTROY => ops::destroy::destroy(&context, call).await,
            ost::OP_SET_OWNER => ops::attr::set_owner(&context, call).await,
            _ => Err(Status::UNKNOWN_OPERATION),
        }
    }

    /// Who asks, where new requests are taken.
    fn context(self: Rc<Ost>, session: Rc<Session>) -> Result<Context, Status> {
        let client = self.locks.client(&session)?;
        if self.is_recovering() {
            return Err(Status::RECOVERING);
        }
        Ok(Context { ost: self, session, client })
    }

    /// Puts a client into the table of those that a restart waits for, and waits until it is there.
    pub(crate) async fn remember(&self, uuid: Uuid, name: &str) -> Result<(), Status> {
        let transno = self.known.borrow().get(&uuid).copied();
        let transno = match transno {
            Some(0) => return Ok(()),
            Some(transno) => transno,
            None => {
                let value = name.bytes().take(255).collect();
                let put = Op::Put { index: CLIENTS, key: uuid.0.to_vec(), value };
                let transno = self.submit(vec![put]).await?;
                self.known.borrow_mut().insert(uuid, transno);
                transno
            }
        };
        self.wait(transno, Durability::Written).await?;
        if let Some(entry) = self.known.borrow_mut().get_mut(&uuid) {
            *entry = 0;
        }
        Ok(())
    }

    /// The client is gone: its grant, its place in the table, and recovery's interest in it.
    pub(crate) fn forget(&self, client: ClientId, uuid: Uuid) {
        self.grants.borrow_mut().remove(client);
        self.strike(uuid);
        self.recovery_done(uuid);
    }

    /// Takes a client out of the table, unless it is back already.
    pub(crate) fn forget_evicted(&self, uuid: Option<Uuid>) {
        if let Some(uuid) = uuid.filter(|uuid| self.locks.client_of_uuid(*uuid).is_none()) {
            self.strike(uuid);
        }
    }

    /// As [`Ost::forget`], and the change of the table is in the store when it answers.
    pub(crate) async fn forget_and_wait(&self, client: ClientId, uuid: Uuid) -> Result<(), Status> {
        self.grants.borrow_mut().remove(client);
        self.recovery_done(uuid);
        if self.known.borrow_mut().remove(&uuid).is_some() {
            self.submit(vec![Op::Delete { index: CLIENTS, key: uuid.0.to_vec() }]).await?;
        }
        Ok(())
    }

    /// The client has replayed, or has nothing to replay.
    pub(crate) fn recovery_done(&self, client: Uuid) {
        if self.recovery.borrow_mut().done(client) {
            tracing::info!("{}: recovered, all clients are back", self.label());
        }
    }

    /// Takes a client out of the table. A crash before it is written costs the next start a wait, nothing else.
    fn strike(&self, uuid: Uuid) {
        if self.known.borrow_mut().remove(&uuid).is_none() {
            return;
        }
        let (store, label) = (self.store.clone(), self.label());
        spawn_local(async move {
            let delete = Op::Delete { index: CLIENTS, key: uuid.0.to_vec() };
            if let Err(error) = store.submit(Transaction { ops: vec![delete] }).await {
                tracing::warn!("{label}: client {uuid} stays in the table of clients: {error}");
            }
        });
    }

    pub(crate) fn grant_limits(&self) -> GrantLimits {
        GrantLimits {
            client_bytes_max: self.params.grant_client_bytes_max.get(),
            divisor: self.params.grant_divisor.get(),
            reserved_bytes: self.params.reserved_bytes.get(),
        }
    }

    pub(crate) fn free_bytes(&self) -> u64 {
        self.store.space().free_bytes
    }

    pub(crate) fn count(&self, change: impl FnOnce(&mut OstStats)) {
        let mut stats = self.stats.get();
        change(&mut stats);
        self.stats.set(stats);
    }

    pub(crate) async fn submit(&self, ops: Vec<Op>) -> Result<Transno, Status> {
        self.store.submit(Transaction { ops }).await.map_err(|error| self.status(error))
    }

    pub(crate) async fn wait(&self, transno: Transno, durability: Durability) -> Result<(), Status> {
        self.store.wait(transno, durability).await.map_err(|error| self.status(error))
    }

    /// What travels of an error; what does not is logged.
    pub(crate) fn status(&self, error: StoreError) -> Status {
        use nacre_osd::store::StoreErrorKind::{Corrupt, Io, ReadOnly};
        if matches!(error.kind, Io | Corrupt | ReadOnly) {
            tracing::error!("{}: {error}", self.label());
        }
        error.kind.status()
    }

    /// A FID that names an object of this target.
    pub(crate) fn own_object(&self, object: Fid) -> Result<u64, Status> {
        match object.as_ost_object() {
            Some((index, id)) if index == self.index && object.ver == 0 => Ok(id),
            Some(_) => Err(Status::WRONG_TARGET),
            None => Err(Status::EINVAL),
        }
    }

    /// The times that a change at `time` gives an object whose attributes say `ctime`: none, if a newer change is there or
    /// on its way. The answer must be kept until the change is visible.
    pub(crate) fn begin_change(self: &Rc<Ost>, object: Fid, ctime: Time, time: Time) -> ChangeTime {
        let mut changing = self.changing.borrow_mut();
        let entry = changing.entry(object).or_insert((0, ctime));
        entry.0 += 1;
        let newest = entry.1.max(ctime);
        entry.1 = newest.max(time);
        ChangeTime { ost: self.clone(), object, time: (time >= newest).then_some(time) }
    }
}

impl Context {
    /// A handle on an object. None for a session that has ended meanwhile: nobody would close it.
    pub(crate) fn open_handle(&self, object: Fid) -> Result<u32, Status> {
        if self.session.is_closed() {
            return Err(Status::NO_SESSION);
        }
        Ok(self.ost.handles.borrow_mut().open(self.session.id, object))
    }
}

/// See [`Ost::begin_change`].
pub(crate) struct ChangeTime {
    ost: Rc<Ost>,
    object: Fid,
    pub(crate) time: Option<Time>,
}

impl ChangeTime {
    pub(crate) fn object(&self) -> Fid {
        self.object
    }
}

impl Drop for ChangeTime {
    fn drop(&mut self) {
        let mut changing = self.ost.changing.borrow_mut();
        if let Some(entry) = changing.get_mut(&self.object) {
            entry.0 -= 1;
            if entry.0 == 0 {
                changing.remove(&self.object);
            }
        }
    }
}

#[allow(clippy::type_complexity, reason = "pairs of key and value")]
async fn scan_all(store: &dyn Store, index: Fid) -> Result<Vec<(Vec<u8>, Vec<u8>)>, StoreError> {
    let mut all: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    loop {
        let page = store.scan(index, all.last().map(|(key, _)| &key[..]), SCAN_PAGE).await?;
        if page.is_empty() {
            return Ok(all);
        }
        all.extend(page);
    }
}

const SCAN_PAGE: usize = 256;
