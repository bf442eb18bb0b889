//! The service: RPCs in, state in the store, one change at a time.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use futures_util::future::LocalBoxFuture;
use nacre_osd::store::{Durability, Op, Store, StoreError, Transaction};
use nacre_reactor::Env;
use nacre_transport::target::dispatch::{rpc_args, rpc_body};
use nacre_transport::{Answer, Call, Service, Session};
use nacre_wire::codec::encode;
use nacre_wire::mgs::{
    GetMap, GetParams, OP_GET_MAP, OP_GET_PARAMS, OP_LIST_FILESYSTEMS, OP_REGISTER, OP_SET_PARAM, Register,
    RegisterReply, SetParam,
};
use nacre_wire::op::{DATA_BYTES_MAX, Opcode};
use nacre_wire::session::{ConnectReply, ConnectRequest, OP_CONNECT, OP_DISCONNECT, OP_REPLAY_DONE};
use nacre_wire::{Fid, Status, Uuid, map};
use tokio::sync::Mutex;

use crate::registry::{self, Filesystem};
use crate::session::Sessions;

/// Index object of the filesystems: name → JSON text of [`Filesystem`].
const FILESYSTEMS: Fid = Fid::local(0x10);
/// Index object of the MGS itself: `incarnation` → 8 bytes, little-endian.
const SELF: Fid = Fid::local(0x11);
/// Longest parameter name and value, bytes.
const PARAM_BYTES_MAX: usize = 4096;

/// A management service on a store.
pub struct Mgs {
    store: Rc<dyn Store>,
    env: Env,
    incarnation: u64,
    filesystems: RefCell<BTreeMap<String, Filesystem>>,
    sessions: RefCell<Sessions>,
    /// Held over a change from reading the state to replacing it.
    changing: Mutex<()>,
}

/// Why an MGS does not start.
#[derive(Debug, thiserror::Error)]
pub enum MgsError {
    /// The store failed.
    #[error("MGS: {0}")]
    Store(#[from] StoreError),
    /// What the store holds is not a state of ours.
    #[error("MGS: the state of filesystem \"{fsname}\" cannot be read: {why}")]
    State {
        /// Which.
        fsname: String,
        /// What is wrong.
        why: String,
    },
}

impl Mgs {
    /// Reads the state of every filesystem and counts the start.
    pub async fn start(env: Env, store: Rc<dyn Store>) -> Result<Rc<Mgs>, MgsError> {
        let mut filesystems = BTreeMap::new();
        let mut after: Option<Vec<u8>> = None;
        loop {
            let page = store.scan(FILESYSTEMS, after.as_deref(), 64).await?;
            let Some((last, _)) = page.last() else { break };
            after = Some(last.clone());
            for (key, value) in page {
                let fsname = String::from_utf8_lossy(&key).into_owned();
                let state: Filesystem = serde_json::from_slice(&value)
                    .map_err(|error| MgsError::State { fsname: fsname.clone(), why: error.to_string() })?;
                filesystems.insert(fsname, state);
            }
        }
        let incarnation = match store.get(SELF, b"incarnation").await?.map(<[u8; 8]>::try_from) {
            None => 1,
            Some(Ok(bytes)) => u64::from_le_bytes(bytes) + 1,
            Some(Err(_)) => {
                let why = "the start counter is not 8 bytes".to_owned();
                return Err(MgsError::State { fsname: "MGS".to_owned(), why });
            }
        };
        let value = incarnation.to_le_bytes().to_vec();
        let count = Op::Put { index: SELF, key: b"incarnation".to_vec(), value };
        let transno = store.submit(Transaction { ops: vec![count] }).await?;
        store.wait(transno, Durability::Stable).await?;
        let (filesystems, sessions) = (RefCell::new(filesystems), RefCell::default());
        Ok(Rc::new(Mgs { store, env, incarnation, filesystems, sessions, changing: Mutex::new(()) }))
    }

    /// All filesystems as they are now, for `lctl` and the control socket.
    pub fn filesystems(&self) -> BTreeMap<String, Filesystem> {
        self.filesystems.borrow().clone()
    }

    async fn rpc(&self, session: &Rc<Session>, call: &Call) -> Result<Vec<u8>, Status> {
        match rpc_args(call)?.operation.get() {
            OP_CONNECT => self.connect(session, &rpc_body(call)?),
            OP_DISCONNECT => {
                self.sessions.borrow_mut().remove(session);
                Ok(Vec::new())
            }
            OP_REPLAY_DONE => Ok(Vec::new()),
            _ if session.client_uuid.get().is_none() => Err(Status::NO_SESSION),
            OP_GET_MAP => {
                let GetMap { fsname } = rpc_body(call)?;
                let map = self.with(&fsname, |state| encode(&state.map))?;
                self.sessions.borrow_mut().watch(session, &fsname);
                Ok(map)
            }
            OP_REGISTER => self.register(&rpc_body(call)?).await.map(|reply| encode(&reply)),
            OP_SET_PARAM => self.set_param(rpc_body(call)?).await,
            OP_GET_PARAMS => {
                let GetParams { fsname } = rpc_body(call)?;
                self.with(&fsname, |state| encode(&state.params.iter().collect::<Vec<_>>()))
            }
            OP_LIST_FILESYSTEMS => Ok(encode(&self.filesystems.borrow().keys().collect::<Vec<_>>())),
            _ => Err(Status::UNKNOWN_OPERATION),
        }
    }

    fn connect(&self, session: &Rc<Session>, request: &ConnectRequest) -> Result<Vec<u8>, Status> {
        if request.target_uuid.is_some() {
            return Err(Status::WRONG_TARGET);
        }
        if !request.features.is_empty() {
            return Err(Status::UNKNOWN_FEATURE);
        }
        session.client_uuid.set(Some(request.client_uuid));
        let reply = ConnectReply {
            incarnation: self.incarnation,
            // A session here holds nothing, so there is nothing to replay and nothing that could have been lost.
            resumed: true,
            recovering: false,
            last_committed: self.store.last_committed(),
            features: Vec::new(),
            io_bytes_max: DATA_BYTES_MAX,
            object_bytes_max: 0,
            grant_bytes: 0,
            reply_slots: 0,
        };
        Ok(encode(&reply))
    }

    async fn register(&self, request: &Register) -> Result<RegisterReply, Status> {
        let _changing = self.changing.lock().await;
        let known = self.filesystems.borrow().get(&request.fsname).cloned();
        match registry::register(known.as_ref(), request, self.env.uuid()) {
            Ok((state, reply)) => {
                if known.as_ref() != Some(&state) {
                    self.replace(state).await?;
                }
                Ok(reply)
            }
            Err(why) => {
                tracing::warn!(target = %request.target_uuid, "registration refused: {why}");
                Ok(RegisterReply::Refused(why))
            }
        }
    }

    async fn set_param(&self, request: SetParam) -> Result<Vec<u8>, Status> {
        let _changing = self.changing.lock().await;
        let mut state = self.filesystems.borrow().get(&request.fsname).cloned().ok_or(Status::ENOENT)?;
        let sized = |text: &str| text.len() <= PARAM_BYTES_MAX;
        if request.name.is_empty() || !sized(&request.name) || !request.value.as_deref().is_none_or(sized) {
            return Err(Status::EINVAL);
        }
        match request.value {
            Some(value) => state.params.insert(request.name, value),
            None => Some(state.params.remove(&request.name).ok_or(Status::ENOENT)?),
        };
        self.replace(state).await?;
        Ok(Vec::new())
    }

    /// Makes a state stable, then the one that is read, then tells those who watch.
    async fn replace(&self, state: Filesystem) -> Result<(), Status> {
        let text = serde_json::to_vec(&state).expect("a state is text, numbers and lists");
        let put = Op::Put { index: FILESYSTEMS, key: state.map.fsname.clone().into_bytes(), value: text };
        let failed = |error: StoreError| {
            tracing::error!("MGS: the new state could not be kept: {error}");
            error.kind.status()
        };
        let transno = self.store.submit(Transaction { ops: vec![put] }).await.map_err(failed)?;
        self.store.wait(transno, Durability::Stable).await.map_err(failed)?;
        let (fsname, epoch) = (state.map.fsname.clone(), state.map.epoch);
        self.filesystems.borrow_mut().insert(fsname.clone(), state);
        self.sessions.borrow().announce(&fsname, epoch);
        Ok(())
    }

    fn with<T>(&self, fsname: &str, read: impl FnOnce(&Filesystem) -> T) -> Result<T, Status> {
        self.filesystems.borrow().get(fsname).map(read).ok_or(Status::ENOENT)
    }
}

impl Service for Mgs {
    fn nqn(&self) -> String {
        map::MGS_NQN.to_owned()
    }

    fn uuid(&self) -> Uuid {
        Uuid::NIL
    }

    fn serve(self: Rc<Self>, session: Rc<Session>, call: Call) -> LocalBoxFuture<'static, Result<Answer, Status>> {
        Box::pin(async move {
            match call.op {
                Opcode::Ping => Ok(Answer::default()),
                Opcode::RpcSend => {
                    let body = self.rpc(&session, &call).await?;
                    Ok(Answer { result: self.store.last_committed(), data: body.into() })
                }
                _ => Err(Status::UNKNOWN_OPERATION),
            }
        })
    }

    fn closed(self: Rc<Self>, session: Rc<Session>) {
        self.sessions.borrow_mut().remove(&session);
    }
}
