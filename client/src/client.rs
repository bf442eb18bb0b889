//! One mounted filesystem: what its parts share, and what happens without being asked for (events, memory bounds).

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::rc::{Rc, Weak};
use std::time::Duration;

use futures_util::future::{LocalBoxFuture, join_all};
use nacre_reactor::Env;
use nacre_transport::CallError;
use nacre_transport::host::{ImportLink, ImportObserver, ImportState};
use nacre_transport::stubs::{MdtClient, MgsClient, replay_locks};
use nacre_wire::ldlm::Event;
use nacre_wire::session::ConnectReply;
use nacre_wire::{ClusterMap, Fid, Status, Uuid};
use tokio::sync::Notify;
use tokio::task::spawn_local;

use crate::file::File;
use crate::flock::Flocks;
use crate::handles::Handles;
use crate::inode::{InodeTable, KernelHolds, Lost};
use crate::kernel::Kernel;
use crate::ost::Ost;
use crate::params::Params;
use crate::statfs::StatfsCache;
use crate::stats::{Stats, add};

/// A mounted filesystem; see [`crate::FileSystem`] for what it does and [`Client::mount`] for how to get one.
pub struct Client {
    pub(crate) me: Weak<Client>,
    pub(crate) env: Env,
    /// Tunables.
    pub params: Params,
    /// Counters.
    pub stats: Stats,
    pub(crate) uuid: Uuid,
    pub(crate) name: String,
    pub(crate) fsname: String,
    pub(crate) root: Cell<Fid>,
    pub(crate) kernel: Rc<dyn Kernel>,
    pub(crate) connector: Rc<dyn nacre_transport::Connector>,
    pub(crate) mgs: MgsClient,
    pub(crate) mdt: MdtClient,
    pub(crate) osts: RefCell<BTreeMap<u16, Rc<Ost>>>,
    pub(crate) map: RefCell<ClusterMap>,
    pub(crate) inodes: Rc<InodeTable>,
    pub(crate) handles: Handles,
    pub(crate) flocks: Flocks,
    pub(crate) statfs: StatfsCache,
    pub(crate) dirty_bytes: Cell<u64>,
    pub(crate) dirty_room: Notify,
    /// Writers that wait for room.
    pub(crate) room_waiters: Cell<u32>,
    pub(crate) ahead_bytes: Cell<u64>,
    pub(crate) ahead_pending: Cell<u64>,
    pub(crate) ahead_files: RefCell<VecDeque<Weak<File>>>,
    pub(crate) closed: Cell<bool>,
    /// Background work at the MDT (CLOSE) that unmount waits for.
    pub(crate) background: Cell<u32>,
    pub(crate) background_done: Notify,
    cancels: RefCell<Vec<u64>>,
    lazy_cancels: RefCell<Vec<u64>>,
    shrinking: Cell<bool>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("fsname", &self.fsname).field("uuid", &self.uuid).finish_non_exhaustive()
    }
}

/// One server, for `lctl dl`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// `nacre-OST0000`.
    pub label: String,
    /// Where the connection is.
    pub state: ImportState,
    /// Why the last attempt to connect failed; empty when it did not.
    pub trouble: String,
    /// Data locks held there (OSTs).
    pub locks: usize,
    /// Space granted for write-behind, bytes (OSTs).
    pub grant_bytes: u64,
}

/// What [`Client`] is made of.
pub(crate) struct Parts {
    pub env: Env,
    pub params: Params,
    pub uuid: Uuid,
    pub name: String,
    pub kernel: Rc<dyn Kernel>,
    pub connector: Rc<dyn nacre_transport::Connector>,
    pub mgs: MgsClient,
    pub map: ClusterMap,
}

/// Runs something to its end even if the caller stops waiting.
pub(crate) async fn run<T: 'static>(work: impl Future<Output = Result<T, Status>> + 'static) -> Result<T, Status> {
    match spawn_local(work).await {
        Ok(outcome) => outcome,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime is being shut down.
        Err(_) => Err(Status::ESHUTDOWN),
    }
}

impl Client {
    pub(crate) fn new(parts: Parts, mdt: impl FnOnce(Rc<dyn ImportObserver>) -> MdtClient) -> Rc<Client> {
        let fsname = parts.map.fsname.clone();
        Rc::new_cyclic(|me: &Weak<Client>| Client {
            me: me.clone(),
            env: parts.env,
            params: parts.params,
            stats: Stats::default(),
            uuid: parts.uuid,
            name: parts.name,
            fsname,
            root: Cell::new(Fid::ROOT),
            kernel: parts.kernel,
            connector: parts.connector,
            mgs: parts.mgs,
            mdt: mdt(Rc::new(MdtObserver { client: me.clone() })),
            osts: RefCell::default(),
            map: RefCell::new(parts.map),
            inodes: Rc::default(),
            handles: Handles::default(),
            flocks: Flocks::default(),
            statfs: StatfsCache::default(),
            dirty_bytes: Cell::new(0),
            dirty_room: Notify::new(),
            room_waiters: Cell::new(0),
            ahead_bytes: Cell::new(0),
            ahead_pending: Cell::new(0),
            ahead_files: RefCell::default(),
            closed: Cell::new(false),
            background: Cell::new(0),
            background_done: Notify::new(),
            cancels: RefCell::default(),
            lazy_cancels: RefCell::default(),
            shrinking: Cell::new(false),
        })
    }

    /// The name of the filesystem.
    pub fn fsname(&self) -> &str {
        &self.fsname
    }

    /// This mount's identity at every server.
    pub fn client_uuid(&self) -> Uuid {
        self.uuid
    }

    /// The cluster map in use.
    pub fn cluster_map(&self) -> ClusterMap {
        self.map.borrow().clone()
    }

    /// The servers and how the connections to them are: MGS, MDT, then the OSTs by index.
    pub fn peers(&self) -> Vec<PeerStatus> {
        let status = |import: &nacre_transport::host::Import, locks, grant_bytes| PeerStatus {
            label: import.label(),
            state: import.state(),
            trouble: import.last_trouble(),
            locks,
            grant_bytes,
        };
        let mut peers = vec![status(&self.mgs.import, 0, 0), status(&self.mdt.import, self.inodes.locks().len(), 0)];
        for ost in self.osts.borrow().values() {
            peers.push(status(&ost.stub.import, ost.locks_held(), ost.grant_bytes()));
        }
        peers
    }

    /// Bytes written here and not sent yet, or on their way.
    pub fn dirty_bytes(&self) -> u64 {
        self.dirty_bytes.get()
    }

    pub(crate) fn rc(&self) -> Rc<Client> {
        self.me.upgrade().expect("called through an Rc")
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.get()
    }

    pub(crate) fn ost(&self, index: u16) -> Option<Rc<Ost>> {
        self.osts.borrow().get(&index).cloned()
    }

    pub(crate) fn all_osts(&self) -> Vec<Rc<Ost>> {
        self.osts.borrow().values().cloned().collect()
    }

    // ---- read-ahead memory ----

    pub(crate) fn note_read_ahead(&self, file: &Rc<File>) {
        let mut files = self.ahead_files.borrow_mut();
        if !files.back().is_some_and(|last| std::ptr::eq(last.as_ptr(), &**file)) {
            files.retain(|known| known.strong_count() > 0 && !std::ptr::eq(known.as_ptr(), &**file));
            files.push_back(Rc::downgrade(file));
        }
    }

    /// Forgets what was read ahead of the files that were read longest ago, until this much is left.
    pub(crate) fn drop_old_read_ahead(&self, bytes: u64) {
        while self.ahead_bytes.get() > bytes {
            let Some(file) = self.ahead_files.borrow_mut().pop_front() else { return };
            let Some(file) = file.upgrade() else { continue };
            for object in &file.objects {
                if object.ahead_bytes() > 0 {
                    object.discard_clean(&(0..u64::MAX));
                }
            }
        }
    }

    // ---- MDT locks ----

    /// What the kernel has to forget, when a lock or an inode went.
    pub(crate) async fn tell_kernel(&self, fid: Fid, holds: KernelHolds) {
        if holds.attr {
            self.kernel.attr(fid).await;
        }
        if holds.name || holds.negative {
            self.kernel.names().await;
        }
    }

    async fn mdt_revoked(self: Rc<Client>, fid: Fid, cookie: u64) {
        add(&self.stats.lock_revokes, 1);
        if let Some(lost) = self.inodes.revoke(fid, cookie) {
            self.tell_kernel(fid, lost.kernel).await;
        }
        self.cancel_soon([cookie]);
    }

    /// Gives MDT locks back, many in one request.
    pub(crate) fn cancel_soon(&self, cookies: impl IntoIterator<Item = u64>) {
        let mut waiting = self.cancels.borrow_mut();
        let idle = waiting.is_empty();
        waiting.extend(cookies);
        if !idle || waiting.is_empty() {
            return;
        }
        drop(waiting);
        let client = self.rc();
        spawn_local(async move {
            // Whatever this turn of the loop brings goes along.
            tokio::task::yield_now().await;
            let cookies = client.cancels.take();
            for batch in cookies.chunks(CANCEL_BATCH) {
                if let Err(error) = client.mdt.cancel(batch.to_vec()).await {
                    tracing::debug!("MDT locks not cancelled: {error}");
                }
            }
        });
    }

    /// Gives back MDT locks that nobody waits for, some time.
    fn cancel_later(&self, cookies: Vec<u64>) {
        let mut waiting = self.lazy_cancels.borrow_mut();
        let idle = waiting.is_empty();
        waiting.extend(cookies);
        if !idle || waiting.is_empty() {
            return;
        }
        drop(waiting);
        let client = self.rc();
        spawn_local(async move {
            tokio::time::sleep(LAZY_CANCEL).await;
            let cookies = client.lazy_cancels.take();
            client.cancel_soon(cookies);
        });
    }

    /// After an answer was taken in: gives back what it made needless and keeps the number of inodes bounded.
    pub(crate) fn tidy(&self) {
        let superseded = self.inodes.take_superseded();
        if !superseded.is_empty() {
            self.cancel_later(superseded);
        }
        let limit = self.params.max_cached_inodes.get() as usize;
        if self.inodes.len() > limit + limit / 16 && !self.shrinking.replace(true) {
            let client = self.rc();
            spawn_local(async move {
                client.shrink(limit).await;
                client.shrinking.set(false);
            });
        }
    }

    /// Forgets inodes that are not used, until `limit` are left.
    pub(crate) async fn shrink(self: &Rc<Client>, limit: usize) {
        loop {
            let lost = self.inodes.shrink(limit, SHRINK_BATCH);
            if lost.is_empty() {
                return;
            }
            let names = lost.iter().any(|lost| lost.kernel.name || lost.kernel.negative);
            for Lost { inode, kernel, cookies } in lost {
                if kernel.attr {
                    self.kernel.attr(inode.fid).await;
                }
                self.cancel_later(cookies);
                if let Some(file) = inode.file() {
                    self.let_go(&file).await;
                }
            }
            if names {
                self.kernel.names().await;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Gives back all data locks of a file.
    pub(crate) async fn let_go(&self, file: &Rc<File>) {
        join_all(file.objects.iter().map(|object| object.ost.clone().let_go(object.clone()))).await;
    }

    /// The file's last name and our last open are gone. Another client may have it open, so dirty data is not dropped
    /// here; the OST tells when the object goes ([`Ost`]), which mostly is before the data is old enough to be sent.
    pub(crate) fn bury(&self, inode: &Rc<crate::inode::Inode>) {
        self.cancel_later(self.inodes.remove(inode));
        if let Some(file) = inode.file() {
            let client = self.rc();
            let patience = Duration::from_millis(client.params.dirty_age_ms.get());
            spawn_local(async move {
                if file.is_dirty() {
                    tokio::time::sleep(patience).await;
                }
                client.let_go(&file).await;
            });
        }
    }

    fn mdt_evicted(&self) {
        for Lost { inode, kernel, .. } in self.inodes.drop_locks() {
            if kernel != KernelHolds::default() {
                let client = self.rc();
                spawn_local(async move { client.tell_kernel(inode.fid, kernel).await });
            }
        }
        self.flocks.evicted();
    }

    async fn mdt_replay(self: Rc<Client>, link: ImportLink) -> Result<(), CallError> {
        let mut locks = self.inodes.locks();
        locks.extend(self.flocks.replay_list());
        replay_locks(&link, &locks).await?;
        let opens = self.handles.opens();
        for batch in opens.chunks(OPENS_BATCH) {
            MdtClient::replay_opens(&link, batch.to_vec()).await?;
        }
        self.flocks.again();
        Ok(())
    }
}

struct MdtObserver {
    client: Weak<Client>,
}

impl ImportObserver for MdtObserver {
    fn event(&self, event: Event) {
        let Some(client) = self.client.upgrade() else { return };
        match event {
            Event::Revoke { cookie, resource, .. } => drop(spawn_local(client.mdt_revoked(resource, cookie))),
            Event::Granted { lock, .. } => client.flocks.granted(lock.cookie),
            Event::Refused { cookie, status } => client.flocks.refused(cookie, status),
            Event::Glimpse { .. } | Event::MapChanged { .. } => {}
        }
    }

    fn will_replay(&self) -> bool {
        self.client.upgrade().is_some_and(|client| {
            !client.handles.opens().is_empty() || !client.inodes.locks().is_empty() || !client.flocks.is_empty()
        })
    }

    fn replay(&self, link: ImportLink, _reply: ConnectReply) -> LocalBoxFuture<'static, Result<(), CallError>> {
        let client = self.client.upgrade();
        Box::pin(async move {
            match client {
                Some(client) => client.mdt_replay(link).await,
                None => Ok(()),
            }
        })
    }

    fn evicted(&self) {
        if let Some(client) = self.client.upgrade() {
            client.mdt_evicted();
        }
    }

    fn connected(&self, reply: &ConnectReply) {
        if let Some(client) = self.client.upgrade()
            && !reply.resumed
        {
            client.flocks.again();
        }
    }
}

/// How long locks that nobody waits for are collected before they are given back.
const LAZY_CANCEL: Duration = Duration::from_millis(200);
/// Locks of one cancel request.
const CANCEL_BATCH: usize = 4096;
/// Opens of one replay request.
const OPENS_BATCH: usize = 4096;
/// Inodes forgotten in one turn of the loop.
const SHRINK_BATCH: usize = 256;
/// How long a background request may keep an unmount waiting; used by [`Client::unmount`].
pub(crate) const GOODBYE_MAX: Duration = Duration::from_secs(2);
