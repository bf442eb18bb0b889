//! Mount and unmount, and the cluster map in between.
//!
//! A mount needs the MGS and the MDT; OSTs may be away, operations on their objects wait for them. Everything here is
//! bounded in time.

use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::time::Duration;

use futures_util::future::{LocalBoxFuture, join_all};
use nacre_reactor::Env;
use nacre_transport::host::{Import, ImportLink, ImportObserver, ImportState, PeerSpec};
use nacre_transport::stubs::{MdtClient, MgsClient};
use nacre_transport::{CallError, Connector};
use nacre_wire::ldlm::Event;
use nacre_wire::map::{MGS_NQN, TargetInfo, TargetKind, target_label, target_nqn};
use nacre_wire::session::{ConnectReply, ConnectRequest};
use nacre_wire::{ClusterMap, Fid, Nid, Status, Uuid};
use tokio::task::spawn_local;
use tokio::time::{Instant, timeout, timeout_at};

use crate::KernelCache;
use crate::client::{Client, GOODBYE_MAX, Parts, PeerStatus};
use crate::ost::Ost;
use crate::params::{ParamError, Params};

/// What to mount.
#[derive(Clone, Debug)]
pub struct MountSpec {
    /// Where the MGS may be found.
    pub mgs_nids: Vec<Nid>,
    /// The filesystem.
    pub fsname: String,
    /// Directory of it to mount, a path from its root; `None`: the root.
    pub subdir: Option<Vec<u8>>,
    /// Who mounts, for people: `host:pid`.
    pub client_name: String,
    /// Parameters to begin with, by name; see [`crate::PARAMS`].
    pub options: Vec<(String, String)>,
    /// How long to try.
    pub limit: Duration,
}

impl MountSpec {
    /// The root of a filesystem, with defaults: half a minute to find the servers.
    pub fn new(mgs_nids: Vec<Nid>, fsname: &str) -> MountSpec {
        MountSpec {
            mgs_nids,
            fsname: fsname.to_owned(),
            subdir: None,
            client_name: String::new(),
            options: Vec::new(),
            limit: Duration::from_secs(30),
        }
    }
}

/// Why a mount failed.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// No MGS answers.
    #[error("no MGS answers at {tried}: {reason}; check the address and that the server runs")]
    NoMgs {
        /// Where it was sought.
        tried: String,
        /// The last trouble.
        reason: String,
    },
    /// The MGS does not know the filesystem.
    #[error("the MGS at {mgs} has no filesystem \"{fsname}\"; it has: {known}")]
    NoFilesystem {
        /// Asked for.
        fsname: String,
        /// Where.
        mgs: String,
        /// What there is.
        known: String,
    },
    /// The filesystem has no MDT yet.
    #[error("filesystem \"{0}\" has no MDT yet; start it first")]
    NoMdt(String),
    /// The MDT does not answer.
    #[error("{label} does not answer at {tried}: {reason}")]
    MdtAway {
        /// The MDT.
        label: String,
        /// Where it was sought.
        tried: String,
        /// The last trouble.
        reason: String,
    },
    /// The directory to mount is not there, or is none.
    #[error("cannot mount directory \"{path}\" of \"{fsname}\": {reason}")]
    Subdir {
        /// As asked for.
        path: String,
        /// The filesystem.
        fsname: String,
        /// Why.
        reason: String,
    },
    /// A parameter is wrong.
    #[error(transparent)]
    Option(#[from] ParamError),
}

/// What an unmount left behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unmounted {
    /// Dirty bytes that were not written.
    pub lost_bytes: u64,
    /// Files that they belong to.
    pub lost_files: Vec<Fid>,
}

impl Client {
    /// Mounts. `kernel` is what keeps data above the client.
    pub async fn mount<K: KernelCache + 'static>(
        env: Env,
        connector: Rc<dyn Connector>,
        spec: MountSpec,
        kernel: Rc<K>,
    ) -> Result<Rc<Client>, MountError> {
        let params = Params::default();
        for (name, value) in &spec.options {
            params.set(name, value)?;
        }
        let deadline = Instant::now() + spec.limit;
        let uuid = env.uuid();
        let tried = list(&spec.mgs_nids);
        let observer = Rc::new(MgsObserver { client: RefCell::new(Weak::new()) });
        let mgs_peer = PeerSpec {
            label: "MGS".to_owned(),
            nqn: MGS_NQN.to_owned(),
            nids: spec.mgs_nids.clone(),
            connect: introduction(uuid, &spec.client_name, &spec.fsname, None),
        };
        let mgs = MgsClient { import: Import::new(env.clone(), connector.clone(), mgs_peer, observer.clone()) };
        let map = match timeout_at(deadline, mgs.map(&spec.fsname)).await {
            Ok(Ok(map)) => map,
            Ok(Err(error)) => {
                let status = Status::from(error);
                let known = match timeout_at(deadline, mgs.filesystems()).await {
                    Ok(Ok(names)) => names.join(", "),
                    _ => String::new(),
                };
                mgs.import.close(GOODBYE_MAX).await;
                return Err(match status {
                    Status::ENOENT => MountError::NoFilesystem { fsname: spec.fsname, mgs: tried, known },
                    _ => MountError::NoMgs { tried, reason: status.to_string() },
                });
            }
            Err(_) => {
                let reason = trouble(&mgs.import);
                mgs.import.close(Duration::ZERO).await;
                return Err(MountError::NoMgs { tried, reason });
            }
        };
        let Some(mdt_info) = map.target(TargetKind::Mdt, 0).cloned() else {
            mgs.import.close(GOODBYE_MAX).await;
            return Err(MountError::NoMdt(spec.fsname));
        };
        let connect = |info: &TargetInfo| peer(&map.fsname, info, uuid, &spec.client_name);
        let mdt_peer = connect(&mdt_info);
        let (env_copy, connector_copy) = (env.clone(), connector.clone());
        let parts =
            Parts { env, params, uuid, name: spec.client_name.clone(), kernel, connector, mgs, map: map.clone() };
        let client =
            Client::new(parts, |observer| MdtClient::new(Import::new(env_copy, connector_copy, mdt_peer, observer)));
        *observer.client.borrow_mut() = Rc::downgrade(&client);
        client.adopt(map);
        let root = client.find_root(&spec, &mdt_info, deadline).await;
        match root {
            Ok(root) => client.root.set(root),
            Err(error) => {
                client.unmount(true, GOODBYE_MAX).await;
                return Err(error);
            }
        }
        Ok(client)
    }

    /// Before an unmount that may still be called off: waits until all servers answer and all that is dirty is written, for
    /// `limit` at most. The services that are away; none: it was done.
    pub async fn settle(&self, limit: Duration) -> Vec<PeerStatus> {
        let client = self.rc();
        let work = async {
            let osts = client.all_osts();
            let imports = osts.iter().map(|ost| &ost.stub.import).chain([&client.mdt.import]);
            // An import that is closed will not come back and is not waited for.
            join_all(imports.map(|import| import.wait_full())).await;
            let files = client.inodes.all().into_iter().filter_map(|inode| inode.file());
            join_all(files.map(async |file| file.flush().await)).await;
        };
        match timeout(limit, work).await {
            Ok(()) => Vec::new(),
            Err(_) => self.peers().into_iter().filter(|peer| peer.state != ImportState::Full).collect(),
        }
    }

    /// Unmounts: writes everything back, gives all locks back, says goodbye, all within `limit`. `force` does not wait for
    /// servers and drops what is not written. What was lost is in the answer.
    pub async fn unmount(&self, force: bool, limit: Duration) -> Unmounted {
        if self.closed.replace(true) {
            return Unmounted::default();
        }
        let client = self.rc();
        let deadline = Instant::now() + limit;
        let mut left = Unmounted::default();
        if !force {
            let leave = async {
                let files = client.inodes.all().into_iter().filter_map(|inode| inode.file());
                join_all(files.map(async |file| file.flush().await)).await;
                join_all(client.all_osts().iter().map(|ost| ost.give_all_back())).await;
                loop {
                    let done = client.background_done.notified();
                    if client.background.get() == 0 {
                        break;
                    }
                    done.await;
                }
            };
            if timeout_at(deadline, leave).await.is_err() {
                tracing::warn!("{}: unmount gave up waiting for servers", self.fsname);
            }
        }
        left.lost_bytes = client.dirty_bytes();
        for inode in client.inodes.all() {
            if let Some(file) = inode.file()
                && file.is_dirty()
            {
                left.lost_files.push(inode.fid);
                file.drop_dirty();
            }
        }
        // Nothing is known any more: whoever asks is told so by the closed imports.
        client.inodes.drop_locks();
        // With force the servers may be gone; without it they have had their time.
        let patience = if force { Duration::ZERO } else { GOODBYE_MAX };
        let imports = client.all_osts().into_iter().map(|ost| ost.stub.import.clone());
        let imports: Vec<_> = imports.chain([client.mdt.import.clone(), client.mgs.import.clone()]).collect();
        join_all(imports.iter().map(|import| import.close(patience))).await;
        left
    }

    /// Takes a map: new OSTs are connected, those that moved or restarted are told to hurry.
    pub(crate) fn adopt(self: &Rc<Client>, map: ClusterMap) {
        if map.fs_uuid != self.map.borrow().fs_uuid {
            tracing::error!("the MGS now has another filesystem named \"{}\"; its map is ignored", self.fsname);
            return;
        }
        for info in map.osts() {
            let known = self.ost(info.index);
            match known {
                Some(ost) => follow(&ost.stub.import, info),
                None => {
                    let peer = peer(&self.fsname, info, self.uuid, &self.name);
                    let rpcs = self.params.max_rpcs_in_flight.get() as usize;
                    let import = |observer| Import::new(self.env.clone(), self.connector.clone(), peer, observer);
                    let ost = Ost::new(info.index, self.me.clone(), rpcs, import);
                    self.osts.borrow_mut().insert(info.index, ost);
                }
            }
        }
        if let Some(info) = map.target(TargetKind::Mdt, 0) {
            follow(&self.mdt.import, info);
        }
        let newer = map.epoch >= self.map.borrow().epoch;
        if newer {
            *self.map.borrow_mut() = map;
        }
    }

    async fn find_root(
        self: &Rc<Client>,
        spec: &MountSpec,
        mdt: &TargetInfo,
        deadline: Instant,
    ) -> Result<Fid, MountError> {
        let away = || MountError::MdtAway {
            label: target_label(&spec.fsname, TargetKind::Mdt, 0),
            tried: list(&mdt.nids),
            reason: trouble(&self.mdt.import),
        };
        let mut fid = Fid::ROOT;
        match timeout_at(deadline, self.getattr_of(fid)).await {
            Ok(Ok(_)) => {}
            Ok(Err(status)) => {
                let reason = format!("its root directory cannot be read: {status}");
                return Err(MountError::Subdir { path: "/".to_owned(), fsname: spec.fsname.clone(), reason });
            }
            Err(_) => return Err(away()),
        }
        let path = spec.subdir.as_deref().unwrap_or_default();
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".") {
            let wrong = |reason: String| MountError::Subdir {
                path: String::from_utf8_lossy(path).into_owned(),
                fsname: spec.fsname.clone(),
                reason,
            };
            let found = match timeout_at(deadline, self.lookup_name(fid, name)).await {
                Ok(found) => found,
                Err(_) => return Err(away()),
            };
            let there = String::from_utf8_lossy(name);
            match found {
                Ok(Some(entry)) if entry.attr.is_dir() => fid = entry.fid,
                Ok(Some(_)) => return Err(wrong(format!("\"{there}\" is not a directory"))),
                Ok(None) | Err(Status::ENOENT) => return Err(wrong(format!("\"{there}\" does not exist"))),
                Err(status) => return Err(wrong(format!("\"{there}\": {status}"))),
            }
        }
        Ok(fid)
    }

    async fn refresh_map(self: Rc<Client>, epoch: u64) {
        if epoch <= self.map.borrow().epoch {
            return;
        }
        match timeout(MAP_MAX, self.mgs.map(&self.fsname)).await {
            Ok(Ok(map)) => self.adopt(map),
            Ok(Err(error)) => tracing::warn!("the new cluster map could not be read: {error}"),
            Err(_) => tracing::warn!("the new cluster map could not be read: no answer from the MGS"),
        }
    }
}

struct MgsObserver {
    client: RefCell<Weak<Client>>,
}

impl ImportObserver for MgsObserver {
    fn event(&self, event: Event) {
        if let (Event::MapChanged { epoch }, Some(client)) = (event, self.client.borrow().upgrade()) {
            spawn_local(client.refresh_map(epoch));
        }
    }

    fn will_replay(&self) -> bool {
        false
    }

    fn replay(&self, _link: ImportLink, _reply: ConnectReply) -> LocalBoxFuture<'static, Result<(), CallError>> {
        Box::pin(async { Ok(()) })
    }

    fn evicted(&self) {}

    fn connected(&self, _reply: &ConnectReply) {
        // Changes of the map while the MGS was away were not announced; asking also subscribes again.
        if let Some(client) = self.client.borrow().upgrade() {
            spawn_local(client.refresh_map(u64::MAX));
        }
    }
}

/// A target that has restarted or moved is reconnected to at once.
fn follow(import: &Rc<Import>, info: &TargetInfo) {
    let behind = import.connect_reply().is_none_or(|reply| reply.incarnation < info.incarnation);
    if behind && import.generation() > 0 {
        import.reconnect_now(info.nids.clone());
    }
}

fn peer(fsname: &str, info: &TargetInfo, uuid: Uuid, name: &str) -> PeerSpec {
    let label = target_label(fsname, info.kind, info.index);
    let nqn = target_nqn(info.uuid, &label);
    PeerSpec { nqn, label, nids: info.nids.clone(), connect: introduction(uuid, name, fsname, Some(info.uuid)) }
}

fn introduction(uuid: Uuid, name: &str, fsname: &str, target: Option<Uuid>) -> ConnectRequest {
    ConnectRequest {
        client_uuid: uuid,
        client_name: name.to_owned(),
        fsname: fsname.to_owned(),
        target_uuid: target,
        features: Vec::new(),
        last_incarnation: 0,
        will_replay: false,
    }
}

fn list(nids: &[Nid]) -> String {
    nids.iter().map(Nid::to_string).collect::<Vec<_>>().join(", ")
}

fn trouble(import: &Import) -> String {
    match import.last_trouble() {
        trouble if trouble.is_empty() => "no answer in time".to_owned(),
        trouble => trouble,
    }
}

/// For the map after a change.
const MAP_MAX: Duration = Duration::from_secs(30);
