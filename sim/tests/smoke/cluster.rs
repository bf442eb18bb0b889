//! An MGS, an MDT, two OSTs on model stores and any number of clients, on one thread with virtual time.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use nacre_client::{Client, FileSystem, HandleId, KernelCache, MountError, MountSpec, OpenMode, Opened, WriteMode};
use nacre_mdt::{Mdt, MdtConfig};
use nacre_mgs::Mgs;
use nacre_osd::model::ModelStore;
use nacre_osd::store::Store;
use nacre_ost::{Ost, OstConfig};
use nacre_reactor::{Bytes, Env, Source};
use nacre_transport::Service;
use nacre_transport::host::{Import, PeerSpec, Unobserved};
use nacre_transport::local::{LocalConnector, LocalNet, LocalServer, serve_local};
use nacre_transport::stubs::MgsClient;
use nacre_wire::map::{MGS_NQN, TargetKind};
use nacre_wire::mdt::{Cred, OpenFlags};
use nacre_wire::mgs::{Register, RegisterReply};
use nacre_wire::session::ConnectRequest;
use nacre_wire::{ClusterMap, Fid, Nid, Status, Time, Uuid};
use tokio::task::LocalSet;

/// Virtual wall clock and counted randomness.
struct Clock {
    start: tokio::time::Instant,
    random: Cell<u64>,
}

impl Source for Clock {
    fn wall(&self) -> Time {
        let now = self.start.elapsed();
        Time { seconds: 1_000_000 + now.as_secs() as i64, nanoseconds: now.subsec_nanos() }
    }

    fn random(&self) -> u64 {
        // splitmix64.
        let next = self.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.random.set(next);
        let mixed = (next ^ next >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }
}

/// Remembers what it was told to forget.
#[derive(Default)]
pub struct Kernel {
    pub attrs: RefCell<Vec<Fid>>,
    pub data: RefCell<Vec<(Fid, Range<u64>)>>,
    pub names: Cell<u32>,
}

impl KernelCache for Kernel {
    async fn invalidate_attr(&self, fid: Fid) {
        self.attrs.borrow_mut().push(fid);
    }

    async fn invalidate_data(&self, fid: Fid, range: Range<u64>) {
        self.data.borrow_mut().push((fid, range));
    }

    async fn invalidate_names(&self) {
        self.names.set(self.names.get() + 1);
    }
}

pub struct Cluster {
    pub env: Env,
    pub net: LocalNet,
    pub stores: Vec<Rc<ModelStore>>,
    pub mdt_store: Rc<ModelStore>,
    pub osts: RefCell<Vec<(Rc<Ost>, LocalServer)>>,
    pub mdt: RefCell<Option<(Rc<Mdt>, LocalServer)>>,
    mgs: (Rc<Mgs>, LocalServer),
    fs_uuid: Uuid,
    uuids: Vec<Uuid>,
    clients: Cell<u16>,
}

pub struct Mounted {
    pub client: Rc<Client>,
    pub kernel: Rc<Kernel>,
    pub nid: Nid,
}

/// Runs a test in virtual time; an hour of it is too long.
pub fn simulate<F: Future<Output = ()>>(test: impl FnOnce() -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let local = LocalSet::new();
    runtime.block_on(local.run_until(async {
        tokio::time::timeout(Duration::from_secs(3600), test()).await.expect("an hour of virtual time has passed");
    }));
}

fn ost_nid(index: usize) -> Nid {
    Nid::local(10 + index as u16)
}

const MGS_NID: u16 = 1;
const MDT_NID: u16 = 2;

impl Cluster {
    pub async fn new() -> Cluster {
        Cluster::with_capacity(1 << 30).await
    }

    pub async fn with_capacity(ost_capacity_bytes: u64) -> Cluster {
        let env = Env::new(Rc::new(Clock { start: tokio::time::Instant::now(), random: Cell::new(1) }));
        let net = LocalNet::new();
        let mgs = Mgs::start(env.clone(), Rc::new(ModelStore::new())).await.unwrap();
        let mgs_service: Rc<dyn Service> = mgs.clone();
        let mgs_server = serve_local(&net, Nid::local(MGS_NID), mgs_service);
        let uuids = vec![env.uuid(), env.uuid(), env.uuid()];
        let stores = vec![
            Rc::new(ModelStore::with_capacity(ost_capacity_bytes)),
            Rc::new(ModelStore::with_capacity(ost_capacity_bytes)),
        ];
        let mut cluster = Cluster {
            env,
            net,
            stores,
            mdt_store: Rc::new(ModelStore::new()),
            osts: RefCell::default(),
            mdt: RefCell::default(),
            mgs: (mgs, mgs_server),
            fs_uuid: Uuid::NIL,
            uuids,
            clients: Cell::new(0),
        };
        let map = cluster.register(TargetKind::Mdt, 0, 1).await;
        cluster.fs_uuid = map.fs_uuid;
        cluster.start_ost(0).await;
        cluster.start_ost(1).await;
        cluster.start_mdt().await;
        cluster
    }

    pub async fn start_ost(&self, index: usize) {
        let config = OstConfig {
            fsname: "nacre".to_owned(),
            index: index as u16,
            uuid: self.uuids[index + 1],
            params: nacre_ost::Params::default(),
        };
        let store: Rc<dyn Store> = self.stores[index].clone();
        let ost = Ost::start(self.env.clone(), store, config).await.unwrap();
        let service: Rc<dyn Service> = ost.clone();
        let server = serve_local(&self.net, ost_nid(index), service);
        self.register(TargetKind::Ost, index as u16, ost.incarnation()).await;
        let mut osts = self.osts.borrow_mut();
        if osts.len() > index {
            osts[index] = (ost, server);
        } else {
            osts.push((ost, server));
        }
    }

    pub async fn start_mdt(&self) {
        let config = MdtConfig { fsname: "nacre".to_owned(), index: 0, uuid: self.uuids[0], fs_uuid: self.fs_uuid };
        let connector = Rc::new(LocalConnector::new(&self.net, Nid::local(MDT_NID), "mdt"));
        let store: Rc<dyn Store> = self.mdt_store.clone();
        let mdt = Mdt::start(self.env.clone(), store, config, connector).await.unwrap();
        let service: Rc<dyn Service> = mdt.clone();
        let server = serve_local(&self.net, Nid::local(MDT_NID), service);
        let map = self.register(TargetKind::Mdt, 0, mdt.incarnation()).await;
        mdt.set_map(&map).await.unwrap();
        *self.mdt.borrow_mut() = Some((mdt, server));
    }

    /// The server's process dies; what was written is kept.
    pub async fn stop_mdt(&self) {
        let (mdt, server) = self.mdt.borrow_mut().take().unwrap();
        drop(server);
        mdt.stop().await;
    }

    /// Cuts an OST off the net and forgets its process.
    pub fn stop_ost(&self, index: usize) -> Rc<Ost> {
        self.net.faults().cut(ost_nid(index));
        self.osts.borrow()[index].0.clone()
    }

    async fn register(&self, kind: TargetKind, index: u16, incarnation: u64) -> ClusterMap {
        let (uuid, nid) = match kind {
            TargetKind::Mdt => (self.uuids[0], Nid::local(MDT_NID)),
            _ => (self.uuids[1 + usize::from(index)], ost_nid(usize::from(index))),
        };
        let connect = ConnectRequest {
            client_uuid: self.env.uuid(),
            client_name: "registrar".to_owned(),
            fsname: "nacre".to_owned(),
            target_uuid: None,
            features: Vec::new(),
            last_incarnation: 0,
            will_replay: false,
        };
        let nqn = MGS_NQN.to_owned();
        let peer = PeerSpec { label: "MGS".to_owned(), nqn, nids: vec![Nid::local(MGS_NID)], connect };
        let connector = Rc::new(LocalConnector::new(&self.net, nid, "registrar"));
        let mgs = MgsClient { import: Import::new(self.env.clone(), connector, peer, Rc::new(Unobserved)) };
        let request = Register {
            fsname: "nacre".to_owned(),
            fs_uuid: None,
            target_uuid: uuid,
            kind,
            index: Some(index),
            nids: vec![nid],
            incarnation,
        };
        match mgs.register(&request).await.unwrap() {
            RegisterReply::Registered { map, .. } => map,
            RegisterReply::Refused(why) => panic!("{why}"),
        }
    }

    pub async fn mount(&self) -> Mounted {
        self.mount_with(&[]).await
    }

    pub async fn mount_with(&self, options: &[(&str, &str)]) -> Mounted {
        self.clients.set(self.clients.get() + 1);
        let number = 100 + self.clients.get();
        let kernel = Rc::new(Kernel::default());
        let client = self.mount_under(number, kernel.clone(), options).await;
        Mounted { client, kernel, nid: Nid::local(number) }
    }

    /// Mounts under a kernel of the caller's.
    pub fn mount_under<K: KernelCache + 'static>(
        &self,
        number: u16,
        kernel: Rc<K>,
        options: &[(&str, &str)],
    ) -> impl Future<Output = Rc<Client>> + use<K> {
        let connector = Rc::new(LocalConnector::new(&self.net, Nid::local(number), "client"));
        let mut spec = MountSpec::new(vec![Nid::local(MGS_NID)], "nacre");
        spec.options = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let env = self.env.clone();
        async move { Client::mount(env, connector, spec, kernel).await.unwrap() }
    }

    /// Mounts something that may not be there.
    pub async fn try_mount(&self, fsname: &str, subdir: Option<&str>) -> Result<Rc<Client>, MountError> {
        let connector = Rc::new(LocalConnector::new(&self.net, Nid::local(99), "client"));
        let mut spec = MountSpec::new(vec![Nid::local(MGS_NID)], fsname);
        spec.subdir = subdir.map(|path| path.as_bytes().to_vec());
        Client::mount(self.env.clone(), connector, spec, Rc::new(Kernel::default())).await
    }

    pub fn filesystems(&self) -> usize {
        self.mgs.0.filesystems().len()
    }
}

pub fn root() -> Cred {
    Cred::default()
}

pub fn rw() -> OpenMode {
    OpenMode { flags: OpenFlags::READ | OpenFlags::WRITE, ..OpenMode::default() }
}

/// Shorthands.
impl Mounted {
    pub async fn create(&self, name: &str) -> Opened {
        self.create_as(name, rw()).await
    }

    pub async fn create_as(&self, name: &str, mode: OpenMode) -> Opened {
        let client = &self.client;
        client.create(&root(), client.root(), name.as_bytes(), 0o644, false, mode).await.unwrap()
    }

    pub async fn open(&self, name: &str) -> Opened {
        let fid = self.stat(name).await.unwrap().fid;
        self.client.open(&root(), fid, rw()).await.unwrap()
    }

    pub async fn stat(&self, name: &str) -> Result<nacre_client::Entry, Status> {
        self.client.lookup(self.client.root(), name.as_bytes()).await?.ok_or(Status::ENOENT)
    }

    pub async fn write(&self, handle: HandleId, offset: u64, data: &[u8]) -> Result<(), Status> {
        let data = Bytes::copy_from_slice(data);
        self.client.write(&root(), handle, offset, data, WriteMode::default()).await
    }

    pub async fn read(&self, handle: HandleId, offset: u64, length: usize) -> Vec<u8> {
        self.client.read(handle, offset, length).await.unwrap().concat()
    }
}

/// Bytes that tell where they are.
pub fn pattern(seed: u64, length: usize) -> Vec<u8> {
    (0..length as u64).map(|at| (at.wrapping_mul(seed | 1).wrapping_add(at >> 12) % 251) as u8).collect()
}
