//! An MGS, an MDT, OSTs and any number of mounts. Each server has a disk that outlives it.
//!
//! A server that is killed is cut off the net and its store taken away in one step: what it had answered was
//! written, what its tasks still do reaches nobody.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use nacre_client::{Client, FileSystem, MountSpec, NoKernel};
use nacre_mdt::{Mdt, MdtConfig};
use nacre_mgs::Mgs;
use nacre_osd::bdev::BdevRef;
use nacre_osd::bdev::recording::{Fate, Recorder};
use nacre_osd::engine::{FormatOptions, Options, Osd};
use nacre_osd::model::{Crash, ModelStore};
use nacre_osd::store::Store;
use nacre_ost::{Ost, OstConfig};
use nacre_reactor::Env;
use nacre_transport::Service;
use nacre_transport::host::{Import, PeerSpec, Unobserved};
use nacre_transport::local::{Direction, LinkEnds, LocalConnector, LocalNet, LocalServer, serve_local};
use nacre_transport::stubs::MgsClient;
use nacre_wire::layout::StripeHint;
use nacre_wire::map::{MGS_NQN, TargetKind};
use nacre_wire::mdt::Cred;
use nacre_wire::mgs::{Register, RegisterReply};
use nacre_wire::session::ConnectRequest;
use nacre_wire::{ClusterMap, Nid, Uuid};
use tokio::task::spawn_local;
use tokio::time::{Instant, timeout};

use crate::env::{self, Rng};

/// OSTs of every simulated cluster.
pub const OSTS: u16 = 2;

/// One server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// The MGS.
    Mgs,
    /// The MDT.
    Mdt,
    /// The OST of this index.
    Ost(u16),
}

impl Target {
    /// All, in the order in which they start.
    pub fn all() -> Vec<Target> {
        [Target::Mgs, Target::Mdt].into_iter().chain((0..OSTS).map(Target::Ost)).collect()
    }

    /// Where it serves.
    pub fn nid(self) -> Nid {
        Nid::local(match self {
            Target::Mgs => 1,
            Target::Mdt => 2,
            Target::Ost(index) => 10 + index,
        })
    }
}

/// What the servers keep their objects in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stores {
    /// The reference store in memory.
    Model,
    /// The engine, on devices that remember what was flushed.
    Engine,
}

/// What the net does to every message, and a hash over all of them.
struct Trace {
    hash: u64,
    messages: u64,
    rng: Rng,
    late_percent: u64,
    late_ms_max: u64,
    start: Instant,
    /// `NACRE_SIM_TRACE` is set: every message is printed, to find where two runs part.
    prints: bool,
}

impl Trace {
    fn mix(&mut self, number: u64) {
        // FNV-1a, a word at a time.
        self.hash = (self.hash ^ number).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
    }

    fn message(&mut self, ends: LinkEnds, direction: Direction) -> Duration {
        self.messages += 1;
        if self.prints {
            eprintln!("{} {} {} {direction:?}", self.start.elapsed().as_millis(), ends.host, ends.target);
        }
        let nodes =
            [ends.host, ends.target].map(|nid| nid.to_string().bytes().fold(0, |sum, byte| sum * 31 + u64::from(byte)));
        self.mix(self.start.elapsed().as_nanos() as u64);
        self.mix(nodes[0].wrapping_mul(31).wrapping_add(nodes[1]) << 1 | u64::from(direction == Direction::ToHost));
        if self.rng.percent(self.late_percent) {
            Duration::from_millis(1 + self.rng.below(self.late_ms_max))
        } else {
            Duration::ZERO
        }
    }
}

/// A server that runs.
struct Running {
    service: Runs,
    server: LocalServer,
}

enum Runs {
    Mgs(#[allow(dead_code, reason = "kept alive")] Rc<Mgs>),
    Mdt(Rc<Mdt>, Nid),
    Ost(#[allow(dead_code, reason = "kept alive")] Rc<Ost>),
}

#[derive(Clone)]
enum Disk {
    Model(Rc<ModelStore>),
    Engine(Rc<Recorder>),
}

impl Disk {
    async fn new(stores: Stores, seed: u64) -> Disk {
        match stores {
            Stores::Model => Disk::Model(Rc::new(ModelStore::crashable())),
            Stores::Engine => {
                let device = Rc::new(Recorder::new("sim", DEVICE_BYTES, seed));
                let uuid = Uuid::from_random(seed, !seed);
                let options = FormatOptions { uuid, label: Vec::new(), log_bytes: Some(LOG_BYTES) };
                let bdev: BdevRef = device.clone();
                Osd::format(&bdev, &options).await.expect("an empty device can be formatted");
                Disk::Engine(device)
            }
        }
    }

    async fn open(&self) -> Rc<dyn Store> {
        match self {
            Disk::Model(store) => store.clone(),
            Disk::Engine(device) => match Osd::open(device.clone(), Options::default()).await {
                Ok(store) => store,
                Err(error) => panic!("a store does not open after a crash: {error}"),
            },
        }
    }

    fn crash(&self, how: Crash, seed: u64) -> Disk {
        match self {
            Disk::Model(store) => Disk::Model(Rc::new(store.crash(how))),
            Disk::Engine(device) => {
                let fate = match how {
                    Crash::Kill => Fate::Killed(seed),
                    Crash::PowerLoss => Fate::Random(seed),
                };
                Disk::Engine(Rc::new(device.history().crash(device.moment(), fate)))
            }
        }
    }
}

/// A mount of the cluster.
#[derive(Clone)]
pub struct Mount {
    /// The filesystem.
    pub client: Rc<Client>,
    /// Its node.
    pub nid: Nid,
}

/// All of it.
pub struct Cluster {
    /// Clock and randomness of all nodes.
    pub env: Env,
    /// The net, to break.
    pub net: LocalNet,
    trace: Arc<Mutex<Trace>>,
    disks: RefCell<BTreeMap<Target, Disk>>,
    running: RefCell<BTreeMap<Target, Running>>,
    uuids: BTreeMap<Target, Uuid>,
    fs_uuid: Cell<Uuid>,
    next_nid: Cell<u16>,
    crashes: Cell<u64>,
    seed: u64,
}

impl Cluster {
    /// Starts everything, with an empty filesystem whose root stripes files over all OSTs.
    pub async fn start(seed: u64, stores: Stores) -> Rc<Cluster> {
        let env = env::env(seed);
        let net = LocalNet::new();
        let mut disks = BTreeMap::new();
        for (number, target) in Target::all().into_iter().enumerate() {
            disks.insert(target, Disk::new(stores, seed.wrapping_mul(31).wrapping_add(number as u64)).await);
        }
        let uuids = Target::all().into_iter().map(|target| (target, env.uuid())).collect();
        let trace = Trace {
            hash: 0xcbf2_9ce4_8422_2325,
            messages: 0,
            rng: Rng::new(!seed),
            late_percent: 0,
            late_ms_max: 1,
            start: Instant::now(),
            prints: std::env::var_os("NACRE_SIM_TRACE").is_some(),
        };
        let trace = Arc::new(Mutex::new(trace));
        let seen = trace.clone();
        net.faults().set_delay(move |ends, direction| {
            seen.lock().expect("nothing panics under this lock").message(ends, direction)
        });
        let cluster = Rc::new(Cluster {
            env,
            net,
            trace,
            disks: RefCell::new(disks),
            running: RefCell::default(),
            uuids,
            fs_uuid: Cell::new(Uuid::NIL),
            next_nid: Cell::new(100),
            crashes: Cell::new(0),
            seed,
        });
        for target in Target::all() {
            cluster.start_target(target).await;
        }
        let mount = cluster.mount().await;
        let hint = StripeHint { count: Some(i32::from(OSTS)), size_bytes: Some(STRIPE_BYTES), offset: None };
        mount.client.set_stripe(&Cred::default(), mount.client.root(), hint).await.expect("the root can be striped");
        mount.client.unmount(false, Duration::from_secs(10)).await;
        cluster
    }

    /// From now on this part of all messages takes up to this long.
    pub fn set_delay(&self, late_percent: u64, late_ms_max: u64) {
        let mut trace = self.trace();
        trace.late_percent = late_percent;
        trace.late_ms_max = late_ms_max.max(1);
    }

    /// Takes something into the hash of what happened.
    pub fn note(&self, number: u64) {
        self.trace().mix(number);
    }

    /// Prints it if the trace is printed.
    pub fn tell(&self, what: &str) {
        if self.trace().prints {
            eprintln!("{what}");
        }
    }

    /// Hash of all that happened, and how many messages that was.
    pub fn trace_hash(&self) -> (u64, u64) {
        let trace = self.trace();
        (trace.hash, trace.messages)
    }

    fn trace(&self) -> MutexGuard<'_, Trace> {
        self.trace.lock().expect("nothing panics under this lock")
    }

    /// Whether a server runs.
    pub fn is_running(&self, target: Target) -> bool {
        self.running.borrow().contains_key(&target)
    }

    /// Starts a server on its disk and makes it known.
    pub async fn start_target(&self, target: Target) {
        let disk = self.disks.borrow()[&target].clone();
        let store = disk.open().await;
        let running = match target {
            Target::Mgs => {
                let mgs = Mgs::start(self.env.clone(), store).await.expect("the MGS starts");
                let server = self.serve(target, mgs.clone());
                Running { service: Runs::Mgs(mgs), server }
            }
            Target::Mdt => {
                if self.fs_uuid.get() == Uuid::NIL {
                    self.fs_uuid.set(self.register(target, 1).await.fs_uuid);
                }
                let (uuid, fs_uuid) = (self.uuids[&target], self.fs_uuid.get());
                let config = MdtConfig { fsname: FSNAME.to_owned(), index: 0, uuid, fs_uuid };
                // A node of its own in each life: the dead one is kept off the net.
                let nid = self.fresh_nid();
                let connector = Rc::new(LocalConnector::new(&self.net, nid, "mdt"));
                let mdt = Mdt::start(self.env.clone(), store, config, connector).await.expect("the MDT starts");
                let server = self.serve(target, mdt.clone());
                let map = self.register(target, mdt.incarnation()).await;
                mdt.set_map(&map).await.expect("a running MDT takes a map");
                Running { service: Runs::Mdt(mdt, nid), server }
            }
            Target::Ost(index) => {
                let (uuid, params) = (self.uuids[&target], nacre_ost::Params::default());
                let config = OstConfig { fsname: FSNAME.to_owned(), index, uuid, params };
                let ost = Ost::start(self.env.clone(), store, config).await.expect("the OST starts");
                let server = self.serve(target, ost.clone());
                let map = self.register(target, ost.incarnation()).await;
                let mdt = match self.running.borrow().get(&Target::Mdt) {
                    Some(Running { service: Runs::Mdt(mdt, _), .. }) => Some(mdt.clone()),
                    _ => None,
                };
                if let Some(mdt) = mdt {
                    mdt.set_map(&map).await.expect("a running MDT takes a map");
                }
                Running { service: Runs::Ost(ost), server }
            }
        };
        self.running.borrow_mut().insert(target, running);
    }

    fn serve(&self, target: Target, service: Rc<dyn Service>) -> LocalServer {
        serve_local(&self.net, target.nid(), service)
    }

    /// The server's process dies (or its power goes); its disk is what that leaves.
    pub fn kill(&self, target: Target, how: Crash) {
        self.crashes.set(self.crashes.get() + 1);
        let Some(Running { service, server }) = self.running.borrow_mut().remove(&target) else { return };
        let faults = self.net.faults();
        if let Runs::Mdt(mdt, nid) = service {
            for peer in Target::all() {
                faults.part(nid, peer.nid());
            }
            faults.cut(nid);
            spawn_local(async move { mdt.stop().await });
        }
        faults.cut(target.nid());
        drop(server);
        let mut disks = self.disks.borrow_mut();
        let after = disks[&target].crash(how, self.seed.wrapping_add(self.crashes.get()));
        disks.insert(target, after);
    }

    async fn register(&self, target: Target, incarnation: u64) -> ClusterMap {
        let connect = ConnectRequest {
            client_uuid: self.env.uuid(),
            client_name: "registrar".to_owned(),
            fsname: FSNAME.to_owned(),
            target_uuid: None,
            features: Vec::new(),
            last_incarnation: 0,
            will_replay: false,
        };
        let nids = vec![Target::Mgs.nid()];
        let peer = PeerSpec { label: "MGS".to_owned(), nqn: MGS_NQN.to_owned(), nids, connect };
        let connector = Rc::new(LocalConnector::new(&self.net, target.nid(), "registrar"));
        let mgs = MgsClient { import: Import::new(self.env.clone(), connector, peer, Rc::new(Unobserved)) };
        let (kind, index) = match target {
            Target::Ost(index) => (TargetKind::Ost, index),
            _ => (TargetKind::Mdt, 0),
        };
        let request = Register {
            fsname: FSNAME.to_owned(),
            fs_uuid: None,
            target_uuid: self.uuids[&target],
            kind,
            index: Some(index),
            nids: vec![target.nid()],
            incarnation,
        };
        let map = match mgs.register(&request).await {
            Ok(RegisterReply::Registered { map, .. }) => map,
            Ok(RegisterReply::Refused(why)) => panic!("{target:?} is refused by the MGS: {why}"),
            Err(error) => panic!("{target:?} cannot register: {error}"),
        };
        mgs.import.close(Duration::from_secs(1)).await;
        map
    }

    fn fresh_nid(&self) -> Nid {
        self.next_nid.set(self.next_nid.get() + 1);
        Nid::local(self.next_nid.get())
    }

    /// Another client.
    pub async fn mount(&self) -> Mount {
        let nid = self.fresh_nid();
        let connector = Rc::new(LocalConnector::new(&self.net, nid, "client"));
        let mut spec = MountSpec::new(vec![Target::Mgs.nid()], FSNAME);
        // Recovery of a server may take its whole window.
        spec.limit = Duration::from_secs(120);
        match Client::mount(self.env.clone(), connector, spec, Rc::new(NoKernel)).await {
            Ok(client) => Mount { client, nid },
            Err(error) => panic!("the filesystem cannot be mounted: {error}"),
        }
    }

    /// The client's node is gone from one moment to the next.
    pub fn kill_mount(&self, mount: Mount) {
        let faults = self.net.faults();
        for peer in Target::all() {
            faults.part(mount.nid, peer.nid());
        }
        faults.cut(mount.nid);
        // Nothing of this gets through; it ends the tasks.
        spawn_local(async move { timeout(Duration::from_secs(5), mount.client.unmount(true, Duration::ZERO)).await });
    }
}

const FSNAME: &str = "nacre";
/// Small, so that files of a test have many.
const STRIPE_BYTES: u32 = 64 << 10;
const DEVICE_BYTES: u64 = 1 << 30;
const LOG_BYTES: u64 = 16 << 20;
