//! `Mdt`: one metadata target over a store.
//!
//! It owns nothing but its store; everything in memory can be made again from there. Operations run as tasks of their
//! own: a change that has begun ends, whether or not anybody still waits for its answer.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::Future;
use std::rc::Rc;

use futures_util::future::LocalBoxFuture;
use nacre_osd::store::{Durability, Op, Store, Transaction, Transno};
use nacre_osd::{StoreError, store::StoreErrorKind};
use nacre_reactor::{Bytes, Env};
use nacre_transport::target::dispatch::{rpc_args, rpc_body};
use nacre_transport::target::locks::LockHooks;
use nacre_transport::{Answer, Call, Connector, Service, Session};
use nacre_wire::attr::mode;
use nacre_wire::layout::StripeHint;
use nacre_wire::ldlm::{Ibits, OP_CANCEL, OP_ENQUEUE, OP_GLIMPSE_REPLY, OP_REPLAY_LOCKS, ReplayLocks};
use nacre_wire::map::{TargetKind, target_label, target_nqn};
use nacre_wire::mdt::{CreateReply, Inode, ReplayOpens, Slot, op};
use nacre_wire::op::{Opcode, rpc_flags};
use nacre_wire::session::{OP_CONNECT, OP_DISCONNECT, OP_REPLAY_DONE};
use nacre_wire::{Attr, AttrPatch, ClusterMap, Fid, Layout, Status, Uuid, codec};
use serde::Serialize;
use tokio::sync::Mutex;

use crate::fids::{FidSource, NewFid};
use crate::guards::{Guard, Guards};
use crate::locks::{Change, Hooks, Locks, NO_LOCK};
use crate::names::{self, Target};
use crate::objects::Objects;
use crate::params::{ParamError, ParamInfo, Params, Stats};
use crate::recovery::{Phase, Recovery};
use crate::session::{Caller, Client, ClientState, OpenFile, REPLY_SLOTS};
use crate::slots::{self, Begin, Outcome, Record, SlotReply};
use crate::{disk, ops, status_of};

/// Who the target is.
#[derive(Clone, Debug)]
pub struct MdtConfig {
    /// The filesystem.
    pub fsname: String,
    /// Index among the MDTs.
    pub index: u16,
    /// The target; from its label.
    pub uuid: Uuid,
    /// The filesystem; from its label.
    pub fs_uuid: Uuid,
}

/// Why a target did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store.
    #[error("{label}: {source}")]
    Store {
        /// The target.
        label: String,
        /// The store's word.
        source: StoreError,
    },
    /// What the store holds is not an MDT's.
    #[error("{label}: the target's own records are damaged ({what}); run nacre fsck on its device")]
    Damaged {
        /// The target.
        label: String,
        /// Which.
        what: &'static str,
    },
    /// Several MDTs are for later.
    #[error("{label}: only MDT0000 is supported; this filesystem keeps all names on one MDT")]
    Index {
        /// The target.
        label: String,
    },
}

/// A metadata target.
pub struct Mdt {
    pub(crate) store: Rc<dyn Store>,
    pub(crate) config: MdtConfig,
    pub(crate) incarnation: u64,
    pub(crate) guards: Guards,
    pub(crate) locks: Locks,
    pub(crate) clients: RefCell<BTreeMap<Uuid, Rc<Client>>>,
    /// Held while the records of clients change.
    pub(crate) client_changes: Mutex<()>,
    /// How often each inode is open. Never iterated.
    pub(crate) open_counts: RefCell<HashMap<Fid, u32>>,
    pub(crate) objects: Rc<Objects>,
    pub(crate) recovery: Recovery,
    pub(crate) params: Rc<Params>,
    /// Counts changes of names; see `Mdt::lookup`.
    pub(crate) names_changed: Cell<u64>,
    fids: FidSource,
    /// Directories as they are on disk. Read and written under the directory's guard only. Never iterated.
    dirs: RefCell<HashMap<Fid, Dir>>,
    /// Counters on disk only grow because their transactions are built and submitted in turn.
    pub(crate) counters: Mutex<()>,
    next_handle: Cell<u64>,
    stats: Stats,
    /// The lock server knows them weakly.
    hooks: RefCell<Option<Rc<dyn LockHooks>>>,
}

/// A directory as the operations in it need it.
#[derive(Clone, Debug)]
pub(crate) struct Dir {
    pub(crate) attr: Attr,
    /// Default striping of its own; fields may be missing.
    pub(crate) stripe: StripeHint,
}

/// Directories remembered. More than that, and all are forgotten: simple, and the same in every run.
const DIRS_MAX: usize = 1 << 16;

/// An inode nobody else works on, whose bits no other client holds.
pub(crate) struct Held {
    /// Let go first: who comes next must find the lock free.
    _change: Option<Change>,
    _guard: Guard,
}

/// A change that is visible, and what to tell.
pub(crate) struct Done<T> {
    pub(crate) reply: T,
    /// `None`: nothing had to be changed.
    pub(crate) transno: Option<Transno>,
    /// The reply as it went into the slot, if it is still the same.
    pub(crate) encoded: Option<Vec<u8>>,
}

impl<T> Done<T> {
    /// Nothing had to be changed.
    pub(crate) fn nothing(reply: T) -> Done<T> {
        Done { reply, transno: None, encoded: None }
    }
}

impl Mdt {
    /// Starts a target: reads its records, makes the root at the first start, and waits for the clients of its last life in
    /// the background. OSTs are reached through `connector` once [`Mdt::set_map`] has told of them.
    pub async fn start(
        env: Env,
        store: Rc<dyn Store>,
        config: MdtConfig,
        connector: Rc<dyn Connector>,
    ) -> Result<Rc<Mdt>, StartError> {
        Mdt::start_with(env, store, config, connector, Params::default()).await
    }

    /// [`Mdt::start`] with parameters that are already known.
    pub async fn start_with(
        env: Env,
        store: Rc<dyn Store>,
        config: MdtConfig,
        connector: Rc<dyn Connector>,
        params: Params,
    ) -> Result<Rc<Mdt>, StartError> {
        let label = target_label(&config.fsname, TargetKind::Mdt, config.index);
        if config.index != 0 {
            return Err(StartError::Index { label });
        }
        let failed = |source| StartError::Store { label: label.clone(), source };
        let damaged = |what| StartError::Damaged { label: label.clone(), what };
        let counter = async |key| match store.get(disk::STATE, key).await.map_err(failed)? {
            None => Ok(None),
            Some(value) => disk::parse_counter(&value).map(Some).map_err(|_| damaged("counters")),
        };
        let incarnation = counter(disk::KEY_INCARNATION).await?.unwrap_or(0) + 1;
        let fid_mark = counter(disk::KEY_FID).await?;
        let mut first = vec![Op::Put {
            index: disk::STATE,
            key: disk::KEY_INCARNATION.to_vec(),
            value: incarnation.to_le_bytes().to_vec(),
        }];
        match store.attr(Fid::ROOT).await {
            Ok(_) => {}
            Err(error) if error.kind == StoreErrorKind::NotFound => {
                let now = env.wall();
                let attr = Attr {
                    mode: mode::DIR | 0o755,
                    nlink: 2,
                    atime: now,
                    mtime: now,
                    ctime: now,
                    btime: now,
                    ..Attr::default()
                };
                first.push(Op::Create { fid: Fid::ROOT, attr });
            }
            Err(error) => return Err(failed(error)),
        }
        let transno = store.submit(Transaction { ops: first }).await.map_err(failed)?;
        // Stable: an incarnation that was shown to a client must never come again.
        store.wait(transno, Durability::Stable).await.map_err(failed)?;

        let clients = load_clients(&*store).await.map_err(failed)?;
        let awaited: BTreeSet<Uuid> = clients.keys().copied().collect();
        let params = Rc::new(params);
        let objects = Objects::new(env.clone(), store.clone(), connector, params.clone(), config.uuid, config.index);
        let locks = Locks::new(&env, incarnation, &params);
        let mdt = Rc::new(Mdt {
            fids: FidSource::new(config.index, fid_mark),
            store,
            config,
            incarnation,
            guards: Guards::default(),
            locks,
            clients: RefCell::new(clients),
            client_changes: Mutex::new(()),
            open_counts: RefCell::default(),
            objects,
            recovery: Recovery::new(awaited),
            params,
            names_changed: Cell::new(0),
            dirs: RefCell::default(),
            counters: Mutex::new(()),
            // Handles of an earlier life, which clients replay, are below.
            next_handle: Cell::new(incarnation << 32 | 1),
            stats: Stats::default(),
            hooks: RefCell::new(None),
        });
        let hooks: Rc<dyn LockHooks> = Rc::new(Hooks(Rc::downgrade(&mdt)));
        mdt.locks.server.set_hooks(Rc::downgrade(&hooks));
        *mdt.hooks.borrow_mut() = Some(hooks);
        let window = mdt.params.recovery_window();
        tokio::task::spawn_local(mdt.clone().recover(window));
        Ok(mdt)
    }

    /// Tells the target where the OSTs are.
    pub async fn set_map(&self, map: &ClusterMap) -> Result<(), Status> {
        self.objects.set_map(map).await
    }

    /// Ends service: nobody is answered any more but with ESHUTDOWN; background work stops. The store is left open, with
    /// everything answered written to it.
    pub async fn stop(&self) {
        self.recovery.stop();
        self.objects.stop().await;
    }

    /// Number of this start.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// The target's name.
    pub fn label(&self) -> String {
        target_label(&self.config.fsname, TargetKind::Mdt, self.config.index)
    }

    /// Whether it serves.
    pub fn phase(&self) -> Phase {
        self.recovery.phase()
    }

    /// All tunables.
    pub fn params(&self) -> Vec<ParamInfo> {
        self.params.list()
    }

    /// Sets a tunable from text.
    pub fn set_param(&self, name: &str, value: &str) -> Result<(), ParamError> {
        self.params.set(name, value)?;
        self.locks.set_grace(&self.params);
        Ok(())
    }

    /// Counters and figures, by name, as text.
    pub fn stats(&self) -> Vec<(String, String)> {
        let mut list: Vec<(String, String)> =
            self.stats.list().into_iter().map(|(name, count)| (format!("calls.{name}"), count.to_string())).collect();
        list.push(("incarnation".into(), self.incarnation.to_string()));
        list.push(("phase".into(), format!("{:?}", self.phase()).to_lowercase()));
        list.push(("clients".into(), self.clients.borrow().len().to_string()));
        list.push(("clients_awaited".into(), self.recovery.awaited().len().to_string()));
        let opens: usize = self.clients.borrow().values().map(|client| client.opens.borrow().len()).sum();
        list.push(("open_files".into(), opens.to_string()));
        for (ost, pool, state, free) in self.objects.describe() {
            list.push((format!("ost{ost:04x}.state"), format!("{state:?}").to_lowercase()));
            list.push((format!("ost{ost:04x}.precreated"), pool.to_string()));
            let free = free.map_or("unknown".to_owned(), |bytes| bytes.to_string());
            list.push((format!("ost{ost:04x}.free_bytes"), free));
        }
        list.extend(self.locks.stats());
        list
    }

    async fn serve_call(self: Rc<Mdt>, session: Rc<Session>, call: Call) -> Result<Answer, Status> {
        if self.recovery.is_stopped() {
            return Err(Status::ESHUTDOWN);
        }
        match call.op {
            Opcode::Ping => return Ok(Answer::default()),
            Opcode::RpcSend => {}
            _ => return Err(Status::UNKNOWN_OPERATION),
        }
        let args = rpc_args(&call)?;
        let operation = args.operation.get();
        self.stats.count(operation);
        if operation == OP_CONNECT {
            let reply = self.connect(session, rpc_body(&call)?).await?;
            return self.answer(&reply);
        }
        let client = self.client_of(&session)?;
        let resent = args.flags.get() & rpc_flags::RESENT != 0;
        let who = Caller { client, xid: args.xid.get(), resent };
        if self.recovery.is_recovering() {
            return self.serve_recovering(&who, operation, &call).await;
        }
        macro_rules! read {
            ($module:ident) => {{
                let request = rpc_body(&call)?;
                let reply = ops::$module::run(&self, &who, request).await?;
                self.answer(&reply)
            }};
        }
        macro_rules! change {
            ($module:ident) => {{
                let request: ops::$module::Request = rpc_body(&call)?;
                let slot = request.slot;
                let body =
                    self.once(who, slot, move |mdt, who| async move { ops::$module::run(&mdt, &who, request).await });
                Ok(self.answer_of(body.await?))
            }};
        }
        match operation {
            OP_DISCONNECT => {
                self.evict(&who.client).await;
                self.answer(&())
            }
            // A client that was done already, or had nothing to replay.
            OP_REPLAY_DONE => {
                self.replay_done(&who.client);
                self.answer(&())
            }
            OP_ENQUEUE => read!(enqueue),
            OP_CANCEL => {
                self.locks.cancel(&who.client, &rpc_body(&call)?);
                self.answer(&())
            }
            // Who had nothing to replay is let replay nothing, also after the others have been served.
            OP_REPLAY_LOCKS if rpc_body::<ReplayLocks>(&call)?.locks.is_empty() => self.answer(&()),
            op::REPLAY_OPENS if rpc_body::<ReplayOpens>(&call)?.opens.is_empty() => self.answer(&()),
            OP_REPLAY_LOCKS | op::REPLAY_OPENS => Err(Status::EPROTO),
            // Sizes are asked of OSTs.
            OP_GLIMPSE_REPLY => self.answer(&()),
            op::GET_ATTR => read!(get_attr),
            op::LOOKUP => read!(lookup),
            op::CREATE => change!(create),
            op::OPEN => read!(open),
            op::CLOSE => read!(close),
            op::UNLINK => change!(unlink),
            op::LINK => change!(link),
            op::RENAME => change!(rename),
            op::SET_ATTR => change!(set_attr),
            op::READ_DIR => {
                let reply = ops::read_dir::run(&self, &who, rpc_body(&call)?, call.reply_bytes_max).await?;
                self.answer(&reply)
            }
            op::GET_XATTR => read!(get_xattr),
            op::SET_XATTR => change!(set_xattr),
            op::LIST_XATTR => read!(list_xattr),
            op::READ_LINK => read!(read_link),
            op::STATFS => self.answer(&ops::statfs::run(&self)),
            op::SYNC => read!(sync),
            op::SET_STRIPE => change!(set_stripe),
            op::GET_STRIPE => read!(get_stripe),
            op::FID_TO_PATH => read!(fid_to_path),
            _ => Err(Status::UNKNOWN_OPERATION),
        }
    }

    async fn serve_recovering(self: &Rc<Mdt>, who: &Caller, operation: u16, call: &Call) -> Result<Answer, Status> {
        match operation {
            OP_REPLAY_LOCKS if who.client.state.get() == ClientState::Replaying => {
                self.locks.replay(&who.client, &rpc_body(call)?)?;
            }
            op::REPLAY_OPENS => self.replay_opens(&who.client, rpc_body(call)?).await?,
            OP_REPLAY_DONE => self.replay_done(&who.client),
            OP_DISCONNECT => self.evict(&who.client).await,
            // Revocation does not happen yet, but a client may give back what it has replayed.
            OP_CANCEL => self.locks.cancel(&who.client, &rpc_body(call)?),
            _ => return Err(Status::RECOVERING),
        }
        self.answer(&())
    }

    /// Does a change once; sent again, it is answered from its slot. It runs to its end whoever waits.
    async fn once<T, Run, Work>(self: &Rc<Mdt>, who: Caller, slot: Slot, work: Work) -> Outcome
    where
        T: SlotReply,
        Run: Future<Output = Result<Done<T>, Status>> + 'static,
        Work: FnOnce(Rc<Mdt>, Caller) -> Run,
    {
        if slot.index >= REPLY_SLOTS {
            return Err(Status::EINVAL);
        }
        let result = loop {
            match who.client.slots.begin(slot)? {
                Begin::Run(result) => break result,
                Begin::Join(result) => return result.await.map_err(|_| Status::EIO)?,
                Begin::Answer(outcome) => return outcome,
                Begin::Restore(record) => return self.restore(&who.client, record),
                Begin::Busy(earlier) => {
                    // Its answer is of no interest, only that it is over.
                    let _ = earlier.await;
                }
            }
        };
        let client = who.client.clone();
        // Boxed at once: the state of an operation is some kilobytes, and it would be moved with every step below.
        let run = Box::pin(work(self.clone(), who));
        let mdt = self.clone();
        tokio::task::spawn_local(async move {
            let outcome = match run.await {
                Err(status) => Err(status),
                Ok(done) => mdt.written(done).await,
            };
            client.slots.finish(slot, outcome);
        });
        result.await.map_err(|_| Status::EIO)?
    }

    async fn written<T: Serialize>(&self, done: Done<T>) -> Outcome {
        if let Some(transno) = done.transno {
            self.store.wait(transno, Durability::Written).await.map_err(status_of)?;
        }
        Ok(done.encoded.unwrap_or_else(|| codec::encode(&done.reply)).into())
    }

    /// An answer of before the restart: its handle is valid again.
    fn restore(&self, client: &Client, record: Record) -> Outcome {
        if record.kind == slots::ReplyKind::Create {
            let reply: CreateReply = codec::decode(&record.body).map_err(|_| Status::EBADMSG)?;
            if reply.handle != 0 {
                let flags = nacre_wire::mdt::OpenFlags::from_bits_truncate(record.open_flags);
                self.add_open(client, reply.handle, OpenFile { fid: reply.inode.fid, flags, xid: 0 })?;
            }
        }
        Ok(record.body.into())
    }

    fn answer<T: Serialize>(&self, reply: &T) -> Result<Answer, Status> {
        Ok(self.answer_of(codec::encode(reply).into()))
    }

    /// An answer larger than the caller's buffer is the transport's affair: it asks again with more room.
    fn answer_of(&self, data: Bytes) -> Answer {
        Answer { result: self.store.last_committed(), data }
    }

    pub(crate) fn next_handle(&self) -> u64 {
        let handle = self.next_handle.get();
        self.next_handle.set(handle + 1);
        handle
    }

    pub(crate) fn new_fid(&self) -> NewFid {
        self.fids.take()
    }

    /// Waits for an inode, and for other clients to give its bits back.
    pub(crate) async fn hold(&self, who: &Caller, fid: Fid, bits: Ibits) -> Result<Held, Status> {
        let guard = self.guards.lock(fid).await;
        let change = self.locks.change(&who.client, fid, bits).await?;
        Ok(Held { _change: Some(change), _guard: guard })
    }

    /// Waits for an inode whose cached bits stay right.
    pub(crate) async fn hold_quietly(&self, fid: Fid) -> Held {
        Held { _change: None, _guard: self.guards.lock(fid).await }
    }

    /// A directory that is held. ENOENT if it is gone or has been removed, ENOTDIR if it is none.
    pub(crate) async fn dir(&self, fid: Fid) -> Result<Dir, Status> {
        if let Some(dir) = self.dirs.borrow().get(&fid) {
            return Ok(dir.clone());
        }
        let attr = self.attr(fid).await?;
        if !attr.is_dir() {
            return Err(Status::ENOTDIR);
        }
        if attr.nlink == 0 {
            return Err(Status::ENOENT);
        }
        let stripe = self.stripe_of(fid).await?;
        let dir = Dir { attr, stripe };
        let mut dirs = self.dirs.borrow_mut();
        if dirs.len() >= DIRS_MAX {
            dirs.clear();
        }
        dirs.insert(fid, dir.clone());
        Ok(dir)
    }

    /// A submitted transaction has changed a directory that is held.
    pub(crate) fn dir_changed(&self, fid: Fid, attr: &Attr) {
        if let Some(dir) = self.dirs.borrow_mut().get_mut(&fid) {
            dir.attr.clone_from(attr);
        }
    }

    /// A directory that is held must be read again, or is gone.
    pub(crate) fn dir_forget(&self, fid: Fid) {
        self.dirs.borrow_mut().remove(&fid);
    }

    /// Attributes; ENOENT.
    pub(crate) async fn attr(&self, fid: Fid) -> Result<Attr, Status> {
        is_inode(fid)?;
        self.store.attr(fid).await.map_err(status_of)
    }

    /// Layout of a regular file.
    pub(crate) async fn layout(&self, fid: Fid) -> Result<Option<Layout>, Status> {
        match self.store.xattr(fid, disk::XATTR_LOV).await {
            Ok(None) => Ok(None),
            Ok(Some(value)) => codec::decode(&value).map(Some).map_err(|_| Status::EBADMSG),
            Err(error) => Err(status_of(error)),
        }
    }

    /// Default striping of a directory; of a file without objects, what it had when the file was made.
    pub(crate) async fn stripe_of(&self, fid: Fid) -> Result<StripeHint, Status> {
        match self.store.xattr(fid, disk::XATTR_DMV).await.map_err(status_of)? {
            Some(value) => codec::decode(&value).map_err(|_| Status::EBADMSG),
            None => Ok(StripeHint::default()),
        }
    }

    /// What a name stands for.
    pub(crate) async fn entry(&self, dir: Fid, name: &[u8]) -> Result<Option<Target>, Status> {
        let value = self.store.get(dir, &names::key(name)).await.map_err(status_of)?;
        value.map(|value| Target::from_value(&value)).transpose()
    }

    /// An inode for a client, under a lock if one is free. The lock comes first: what is read then is what it protects.
    pub(crate) async fn inode(&self, who: &Caller, fid: Fid, bits: Ibits) -> Result<Inode, Status> {
        is_inode(fid)?;
        let lock = if bits.is_empty() { NO_LOCK } else { self.locks.try_grant(&who.client, fid, bits) };
        let read = async {
            let attr = self.attr(fid).await?;
            let layout = if attr.is_file() { self.layout(fid).await? } else { None };
            Ok(Inode { fid, attr, layout, lock })
        };
        let result = read.await;
        if result.is_err() {
            self.locks.give_back(&who.client, fid, lock);
        }
        result
    }

    /// Submits a change together with its answer; both or neither.
    pub(crate) async fn commit<T: SlotReply>(
        &self,
        who: &Caller,
        slot: Slot,
        mut ops: Vec<Op>,
        reply: T,
    ) -> Result<Done<T>, Status> {
        let body = codec::encode(&reply);
        let record = Record { xid: slot.xid, kind: T::KIND, open_flags: 0, body };
        ops.push(slots::op(who.client.uuid, slot, &record));
        let transno = self.submit(ops).await?;
        Ok(Done { reply, transno: Some(transno), encoded: Some(record.body) })
    }

    /// [`Mdt::commit`] for what gives FIDs or objects away, and for opens.
    pub(crate) async fn commit_new(
        &self,
        who: &Caller,
        slot: Slot,
        mut ops: Vec<Op>,
        new: New<'_>,
        reply: CreateReply,
    ) -> Result<Done<CreateReply>, Status> {
        let body = codec::encode(&reply);
        let record = Record { xid: slot.xid, kind: CreateReply::KIND, open_flags: new.open_flags, body };
        ops.push(slots::op(who.client.uuid, slot, &record));
        let _turn = self.counters.lock().await;
        ops.extend(new.fid.and_then(NewFid::op));
        if let Some(layout) = new.layout {
            self.objects.ops(layout.stripes(), &mut ops);
        }
        let transno = self.submit(ops).await?;
        if let Some(fid) = new.fid {
            self.fids.submitted(fid);
        }
        Ok(Done { reply, transno: Some(transno), encoded: Some(record.body) })
    }

    /// Makes a transaction visible.
    pub(crate) async fn submit(&self, ops: Vec<Op>) -> Result<Transno, Status> {
        if self.recovery.is_stopped() {
            return Err(Status::ESHUTDOWN);
        }
        let logged: Vec<(u16, Fid)> = ops.iter().filter_map(destroy_logged).collect();
        let transno = self.store.submit(Transaction { ops }).await.map_err(status_of)?;
        if !logged.is_empty() {
            self.objects.destroys_logged(&logged);
        }
        Ok(transno)
    }

    /// Notes that names have changed: a lookup that is under way reads again.
    pub(crate) fn names_changed(&self) {
        self.names_changed.set(self.names_changed.get() + 1);
    }

    /// Hands out a lock with the answer of a change, now that it is visible and its own locks are gone.
    pub(crate) fn with_lock<T>(
        &self,
        who: &Caller,
        mut done: Done<T>,
        fid: Fid,
        bits: Ibits,
        place: impl FnOnce(&mut T) -> &mut nacre_wire::ldlm::Granted,
    ) -> Done<T> {
        if !bits.is_empty() {
            let lock = self.locks.try_grant(&who.client, fid, bits);
            if lock.cookie != 0 {
                *place(&mut done.reply) = lock;
                done.encoded = None;
            }
        }
        done
    }
}

/// What a transaction gives away for the first time.
pub(crate) struct New<'a> {
    pub(crate) fid: Option<&'a NewFid>,
    pub(crate) layout: Option<&'a Layout>,
    /// How the reply's handle was opened.
    pub(crate) open_flags: u32,
}

impl Service for Mdt {
    fn nqn(&self) -> String {
        target_nqn(self.config.uuid, &self.label())
    }

    fn uuid(&self) -> Uuid {
        self.config.uuid
    }

    fn serve(self: Rc<Self>, session: Rc<Session>, call: Call) -> LocalBoxFuture<'static, Result<Answer, Status>> {
        Box::pin(self.serve_call(session, call))
    }

    fn closed(self: Rc<Self>, session: Rc<Session>) {
        self.link_lost(&session);
    }
}

/// The object that an operation puts into the destroy log.
fn destroy_logged(op: &Op) -> Option<(u16, Fid)> {
    match op {
        Op::Put { index, key, .. } if *index == disk::DESTROYS => disk::parse_key_destroy(key),
        _ => None,
    }
}

/// ENOENT for FIDs that are no inode's: the target's own records cannot be reached by guessing their FIDs.
fn is_inode(fid: Fid) -> Result<(), Status> {
    let inode = fid == Fid::ROOT || fid.seq > nacre_wire::fid::SEQ_NORMAL;
    if inode { Ok(()) } else { Err(Status::ENOENT) }
}

/// A change of a directory's times; nothing goes backwards but what its owner sets.
pub(crate) fn touched(attr: &mut Attr, time: nacre_wire::Time) -> AttrPatch {
    attr.mtime = time;
    attr.ctime = attr.ctime.max(time);
    AttrPatch { mtime: Some(attr.mtime), ctime: Some(attr.ctime), ..AttrPatch::default() }
}

async fn load_clients(store: &dyn Store) -> Result<BTreeMap<Uuid, Rc<Client>>, StoreError> {
    const PAGE: usize = 512;
    let mut clients = BTreeMap::new();
    for (key, name) in scan_all(store, disk::CLIENTS, PAGE).await? {
        let Ok(uuid) = <[u8; 16]>::try_from(key) else { continue };
        let name = String::from_utf8_lossy(&name).into_owned();
        clients.insert(Uuid(uuid), Client::new(Uuid(uuid), name, ClientState::Awaited));
    }
    for (key, value) in scan_all(store, disk::SLOTS, PAGE).await? {
        let Some((uuid, index)) = slots::parse_key(&key) else { continue };
        match (clients.get(&uuid), codec::decode::<Record>(&value)) {
            (Some(client), Ok(record)) => client.slots.load(index, record),
            // A client that is gone; its next life clears the rest away.
            (None, _) => {}
            (Some(client), Err(_)) => {
                tracing::error!(
                    client = *client.name.borrow(),
                    index,
                    "a reply slot cannot be read; a resend will run again"
                );
            }
        }
    }
    Ok(clients)
}

async fn scan_all(store: &dyn Store, index: Fid, page: usize) -> Result<Vec<(Vec<u8>, Vec<u8>)>, StoreError> {
    let mut all: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    loop {
        let after = all.last().map(|(key, _)| key.clone());
        let mut some = store.scan(index, after.as_deref(), page).await?;
        let end = some.len() < page;
        all.append(&mut some);
        if end {
            return Ok(all);
        }
    }
}
