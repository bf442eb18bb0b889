//! Clients: who is connected, what each has open, and how each one ends.
//!
//! A client outlives its links. A link that ends leaves it as it was for a grace time; a client that is back by then
//! goes on, one that is not is evicted: its locks go, its opens are closed, its reply slots are forgotten.
//!
//! ```text
//!            connect                 link lost
//!  New ─────────────► Active ───────────────────► Active, no session
//!                     ▲   ▲  ◄── connect ───────────  │
//!         replay done │                               │ grace over, or DISCONNECT
//!                     │                               ▼
//!  Awaited ─connect─► Replaying ──window over───────► Gone
//! ```
//! Clients of before a restart start as `Awaited`.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use nacre_ldlm::ClientId;
use nacre_osd::store::{Durability, Op, Transaction};
use nacre_transport::Session;
use nacre_wire::mdt::{OpenFlags, ReplayOpens};
use nacre_wire::session::{ConnectReply, ConnectRequest};
use nacre_wire::{Fid, Status, Uuid};
use tokio::sync::Notify;

use crate::slots::Slots;
use crate::target::Mdt;
use crate::{disk, ops, slots, status_of};

/// Reply slots of each client.
pub(crate) const REPLY_SLOTS: u32 = 256;
/// Features that can be asked for at connect; none yet.
const FEATURES: &[&str] = &[];

/// A client, through all of its links.
pub(crate) struct Client {
    pub(crate) uuid: Uuid,
    /// Names the client in the lock namespace, once it has connected.
    pub(crate) lock_id: Cell<Option<ClientId>>,
    pub(crate) name: RefCell<String>,
    pub(crate) state: Cell<ClientState>,
    pub(crate) session: RefCell<Option<Rc<Session>>>,
    pub(crate) slots: Slots,
    pub(crate) opens: RefCell<BTreeMap<u64, OpenFile>>,
    /// Opens under way, by request.
    opening: RefCell<BTreeMap<u64, Rc<Notify>>>,
}

/// An open under way; over when dropped.
pub(crate) struct OpenUnderWay {
    client: Rc<Client>,
    xid: u64,
}

/// See the drawing above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClientState {
    /// Being connected for the first time.
    New,
    /// Was connected before the restart, not seen since.
    Awaited,
    /// Has come back and tells what it holds.
    Replaying,
    /// Served.
    Active,
    /// Evicted or disconnected; what still runs for it leaves nothing behind.
    Gone,
}

/// One open of one client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OpenFile {
    pub(crate) fid: Fid,
    pub(crate) flags: OpenFlags,
    /// The request that opened it; 0 after a replay.
    pub(crate) xid: u64,
}

/// On whose behalf an operation runs.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) client: Rc<Client>,
    pub(crate) xid: u64,
    /// Sent before; the answer may have been lost.
    pub(crate) resent: bool,
}

impl Client {
    pub(crate) fn new(uuid: Uuid, name: String, state: ClientState) -> Rc<Client> {
        Rc::new(Client {
            uuid,
            lock_id: Cell::new(None),
            name: RefCell::new(name),
            state: Cell::new(state),
            session: RefCell::new(None),
            slots: Slots::default(),
            opens: RefCell::new(BTreeMap::new()),
            opening: RefCell::new(BTreeMap::new()),
        })
    }

    /// Begins an open; waits for the same one, which came through a link that has ended since and runs on.
    pub(crate) async fn begin_open(self: &Rc<Self>, xid: u64) -> OpenUnderWay {
        loop {
            let earlier = self.opening.borrow().get(&xid).cloned();
            let Some(earlier) = earlier else { break };
            earlier.notified().await;
        }
        self.opening.borrow_mut().insert(xid, Rc::default());
        OpenUnderWay { client: self.clone(), xid }
    }

    /// Whether the client has this file open for writing.
    pub(crate) fn writes(&self, fid: Fid) -> bool {
        self.opens.borrow().values().any(|open| open.fid == fid && open.flags.contains(OpenFlags::WRITE))
    }
}

impl Drop for OpenUnderWay {
    fn drop(&mut self) {
        if let Some(opening) = self.client.opening.borrow_mut().remove(&self.xid) {
            opening.notify_waiters();
        }
    }
}

impl Mdt {
    /// The client that speaks through a session; NO_SESSION if it never connected, was evicted, or has another session by
    /// now.
    pub(crate) fn client_of(&self, session: &Session) -> Result<Rc<Client>, Status> {
        let uuid = session.client_uuid.get().ok_or(Status::NO_SESSION)?;
        let client = self.clients.borrow().get(&uuid).cloned().ok_or(Status::NO_SESSION)?;
        let current = client.session.borrow().as_ref().is_some_and(|current| current.id == session.id);
        if current { Ok(client) } else { Err(Status::NO_SESSION) }
    }

    /// CONNECT. A new client is on disk before it is answered: a restart has to wait for everybody who may hold something.
    pub(crate) async fn connect(
        self: &Rc<Mdt>,
        session: Rc<Session>,
        request: ConnectRequest,
    ) -> Result<ConnectReply, Status> {
        if request.fsname != self.config.fsname || request.target_uuid.is_some_and(|uuid| uuid != self.config.uuid) {
            tracing::warn!(client = request.client_name, fsname = request.fsname, "refused a client of another target");
            return Err(Status::WRONG_TARGET);
        }
        if let Some(unknown) = request.features.iter().find(|name| !FEATURES.contains(&name.as_str())) {
            tracing::warn!(client = request.client_name, feature = unknown, "refused a client with an unknown feature");
            return Err(Status::UNKNOWN_FEATURE);
        }
        // One connect or eviction at a time: they change the same records.
        let _turn = self.client_changes.lock().await;
        let known = self.clients.borrow().get(&request.client_uuid).cloned();
        let client = match known {
            Some(client) => client,
            None => {
                let name = request.client_name.clone();
                let key = request.client_uuid.0.to_vec();
                let put = Op::Put { index: disk::CLIENTS, key, value: name.clone().into_bytes() };
                self.store_now(vec![put]).await?;
                let client = Client::new(request.client_uuid, name, ClientState::New);
                self.clients.borrow_mut().insert(client.uuid, client.clone());
                client
            }
        };
        client.name.replace(request.client_name.clone());
        client.lock_id.set(Some(self.locks.server.attach(client.uuid, &session).client));
        if let Some(before) = client.session.replace(Some(session.clone())) {
            // The old link of a client that has come back faster than its loss was noticed.
            before.client_uuid.set(None);
        }
        if session.is_closed() {
            // It ended while we waited, and nobody will say so again.
            self.link_lost(&session);
            return Err(Status::NO_SESSION);
        }
        // An Active client whose answer to REPLAY_DONE was lost comes with the old incarnation; we hold all it has.
        let resumed = client.state.get() == ClientState::Active;
        match client.state.get() {
            ClientState::New => client.state.set(ClientState::Active),
            ClientState::Awaited => client.state.set(ClientState::Replaying),
            ClientState::Replaying | ClientState::Active | ClientState::Gone => {}
        }
        let recovering = client.state.get() == ClientState::Replaying;
        if recovering && !request.will_replay {
            // It says REPLAY_DONE all the same; nobody has to wait for that.
            self.recovery.forget(client.uuid);
        }
        tracing::info!(client = request.client_name, uuid = %client.uuid, resumed, recovering, "client connected");
        Ok(ConnectReply {
            incarnation: self.incarnation,
            resumed,
            recovering,
            last_committed: self.store.last_committed(),
            features: request.features,
            io_bytes_max: nacre_wire::op::DATA_BYTES_MAX,
            object_bytes_max: self.store.object_bytes_max(),
            grant_bytes: 0,
            reply_slots: REPLY_SLOTS,
        })
    }

    /// A session's link has ended. The lock server gives the client its grace time; in the recovery window absence is
    /// judged when the window ends.
    pub(crate) fn link_lost(self: &Rc<Mdt>, session: &Session) {
        if let Ok(client) = self.client_of(session) {
            client.session.replace(None);
        }
        self.locks.server.detach(session);
    }

    /// Drops all that a client holds. Its next call is answered NO_SESSION.
    pub(crate) async fn evict(self: &Rc<Mdt>, client: &Rc<Client>) {
        self.dismiss(client);
        if let Some(lock_id) = client.lock_id.take() {
            self.locks.server.remove(lock_id);
        }
        self.bury(client).await;
    }

    /// From here on the client is not known any more. What it had open is still counted.
    pub(crate) fn dismiss(&self, client: &Rc<Client>) {
        client.state.set(ClientState::Gone);
        let mut clients = self.clients.borrow_mut();
        if clients.get(&client.uuid).is_some_and(|known| Rc::ptr_eq(known, client)) {
            clients.remove(&client.uuid);
        }
        if let Some(session) = client.session.take() {
            session.client_uuid.set(None);
        }
        self.recovery.forget(client.uuid);
    }

    /// Closes what a dismissed client had open and forgets its records.
    pub(crate) async fn bury(&self, client: &Client) {
        let opens = std::mem::take(&mut *client.opens.borrow_mut());
        for open in opens.into_values() {
            if let Err(status) = ops::close::closed(self, open.fid).await {
                // The inode stays in the orphan index; the next start removes it.
                tracing::error!(fid = %open.fid, %status, "could not remove an unlinked file after its last close");
            }
        }
        let _turn = self.client_changes.lock().await;
        if self.clients.borrow().contains_key(&client.uuid) {
            // It has connected anew meanwhile and the records are that life's.
            return;
        }
        if let Err(status) = self.forget_records(client.uuid).await {
            tracing::error!(client = %client.uuid, %status, "could not forget a client; the next start waits for it");
        }
    }

    /// Deletes a client's record and its slots.
    async fn forget_records(&self, uuid: Uuid) -> Result<(), Status> {
        let mut ops = vec![Op::Delete { index: disk::CLIENTS, key: uuid.0.to_vec() }];
        let mut after = uuid.0.to_vec();
        // Slots are few; still, one transaction takes only so many.
        loop {
            let page = self.store.scan(disk::SLOTS, Some(&after), 256).await.map_err(status_of)?;
            let end = page.len() < 256;
            for (key, _) in page {
                if slots::parse_key(&key).is_none_or(|(owner, _)| owner != uuid) {
                    return self.store_now(ops).await;
                }
                after.clone_from(&key);
                ops.push(Op::Delete { index: disk::SLOTS, key });
            }
            if end {
                return self.store_now(ops).await;
            }
        }
    }

    /// REPLAY_OPENS: the client's open files as it knows them.
    pub(crate) async fn replay_opens(self: &Rc<Mdt>, client: &Rc<Client>, request: ReplayOpens) -> Result<(), Status> {
        if client.state.get() != ClientState::Replaying {
            return Err(Status::EPROTO);
        }
        for (fid, handle, flags) in request.opens {
            // A client that is told again what it has told is no trouble: the handle is the same.
            let _guard = self.guards.lock(fid).await;
            // A file that was closed and removed by a change whose answer the client has not seen is not there any more.
            if self.store.attr(fid).await.is_ok() {
                self.add_open(client, handle, OpenFile { fid, flags, xid: 0 })?;
            }
        }
        Ok(())
    }

    /// Counts an open. NO_SESSION if the client has gone meanwhile.
    pub(crate) fn add_open(&self, client: &Client, handle: u64, open: OpenFile) -> Result<(), Status> {
        if client.state.get() == ClientState::Gone {
            return Err(Status::NO_SESSION);
        }
        if client.opens.borrow_mut().insert(handle, open).is_none() {
            *self.open_counts.borrow_mut().entry(open.fid).or_insert(0) += 1;
        }
        Ok(())
    }

    /// How often a file is open.
    pub(crate) fn open_count(&self, fid: Fid) -> u32 {
        self.open_counts.borrow().get(&fid).copied().unwrap_or(0)
    }

    /// Submits a change of the target's own records and waits until it is written.
    pub(crate) async fn store_now(&self, ops: Vec<Op>) -> Result<(), Status> {
        let transno = self.store.submit(Transaction { ops }).await.map_err(status_of)?;
        self.store.wait(transno, Durability::Written).await.map_err(status_of)
    }
}
