//! A target's relation to its MGS: it registers when it starts, and an MDT hears of every change of the map.

use std::cell::RefCell;
use std::fmt;
use std::rc::{Rc, Weak};
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use nacre_reactor::Env;
use nacre_transport::host::{Import, ImportLink, ImportObserver, PeerSpec};
use nacre_transport::stubs::MgsClient;
use nacre_transport::tcp::{TcpConnector, TcpOptions};
use nacre_transport::{CallError, ConnectError, Connector};
use nacre_wire::ldlm::Event;
use nacre_wire::map::MGS_NQN;
use nacre_wire::mgs::{Register, RegisterReply, TargetLabel};
use nacre_wire::session::{ConnectReply, ConnectRequest};
use nacre_wire::{ClusterMap, Nid, Uuid};
use serde::Serialize;

/// Longest that a starting target waits for its MGS.
const MGS_LIMIT: Duration = Duration::from_secs(60);

/// What to do with a new map.
pub type OnMap = Box<dyn Fn(ClusterMap)>;

/// A target's connection to its MGS. Dropping it ends it.
pub struct Registration {
    client: MgsClient,
    fsname: String,
    on_map: RefCell<Option<OnMap>>,
}

/// What registering gave.
pub struct Registered {
    pub fs_uuid: Uuid,
    pub index: u16,
    pub map: ClusterMap,
}

impl Registration {
    /// Connects in the background.
    pub fn new(env: &Env, label: &TargetLabel, name: &str) -> Rc<Registration> {
        let connect = ConnectRequest {
            client_uuid: env.uuid(),
            client_name: name.to_owned(),
            fsname: label.fsname.clone(),
            target_uuid: None,
            features: Vec::new(),
            last_incarnation: 0,
            will_replay: false,
        };
        let nids = label.mgs_nids.clone();
        let spec = PeerSpec { label: "MGS".to_owned(), nqn: MGS_NQN.to_owned(), nids, connect };
        let connector = Rc::new(TcpConnector::new(TcpOptions::new(env)));
        Rc::new_cyclic(|weak: &Weak<Registration>| {
            let import = Import::new(env.clone(), connector, spec, Rc::new(Watch(weak.clone())));
            Registration { client: MgsClient { import }, fsname: label.fsname.clone(), on_map: RefCell::new(None) }
        })
    }

    /// Tells the MGS who the target is and learns index and map. In words, why not.
    pub async fn register(&self, label: &TargetLabel, nids: &[Nid], incarnation: u64) -> Result<Registered, String> {
        let request = Register {
            fsname: label.fsname.clone(),
            fs_uuid: label.fs_uuid,
            target_uuid: label.target_uuid,
            kind: label.kind,
            index: label.index,
            nids: nids.to_vec(),
            incarnation,
        };
        match tokio::time::timeout(MGS_LIMIT, self.client.register(&request)).await {
            Ok(Ok(RegisterReply::Registered { fs_uuid, index, map })) => Ok(Registered { fs_uuid, index, map }),
            Ok(Ok(RegisterReply::Refused(why))) => Err(format!("the MGS refuses: {why}")),
            Ok(Err(error)) => Err(format!("the MGS answers: {error}")),
            Err(_) => {
                let nids: Vec<_> = label.mgs_nids.iter().map(Nid::to_string).collect();
                let trouble = self.client.import.last_trouble();
                Err(format!("no MGS at {} within {MGS_LIMIT:?}: {trouble}", nids.join(",")))
            }
        }
    }

    /// From now on every new map is given to `on_map`.
    pub fn watch(self: &Rc<Self>, on_map: OnMap) {
        *self.on_map.borrow_mut() = Some(on_map);
        self.fetch();
    }

    /// Permanent parameters of the filesystem.
    pub async fn params(&self) -> Vec<(String, String)> {
        match self.client.params(&self.fsname).await {
            Ok(params) => params,
            Err(error) => {
                tracing::warn!("permanent parameters of {} were not read: {error}", self.fsname);
                Vec::new()
            }
        }
    }

    /// The calls of the MGS.
    pub fn mgs(&self) -> MgsClient {
        self.client.clone()
    }

    fn fetch(self: &Rc<Self>) {
        let this = Rc::clone(self);
        tokio::task::spawn_local(async move {
            if this.on_map.borrow().is_none() {
                return;
            }
            match this.client.map(&this.fsname).await {
                Ok(map) => {
                    if let Some(on_map) = &*this.on_map.borrow() {
                        on_map(map);
                    }
                }
                Err(error) => tracing::warn!("the cluster map of {} was not read: {error}", this.fsname),
            }
        });
    }
}

/// Hears of changes, and of reconnections, after which a change may have been missed.
struct Watch(Weak<Registration>);

impl ImportObserver for Watch {
    fn event(&self, event: Event) {
        if let (Event::MapChanged { .. }, Some(registration)) = (event, self.0.upgrade()) {
            registration.fetch();
        }
    }

    fn will_replay(&self) -> bool {
        false
    }

    fn replay(&self, _: ImportLink, _: ConnectReply) -> LocalBoxFuture<'static, Result<(), CallError>> {
        Box::pin(async { Ok(()) })
    }

    fn evicted(&self) {}

    fn connected(&self, _: &ConnectReply) {
        if let Some(registration) = self.0.upgrade() {
            registration.fetch();
        }
    }
}

/// Answer of `lctl ping`.
#[derive(Debug, Serialize)]
pub struct Pinged {
    nid: String,
    /// Whether an MGS answered; otherwise another target's server did.
    mgs: bool,
}

impl fmt::Display for Pinged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.nid, if self.mgs { "MGS" } else { "a server without MGS" })
    }
}

/// Reaches a server.
pub async fn ping(nid: Nid) -> Result<Pinged, ConnectError> {
    let connector = TcpConnector::new(TcpOptions::new(&Env::system()));
    let mgs = match connector.connect(nid, MGS_NQN.to_owned()).await {
        Ok(link) => {
            link.close();
            true
        }
        // Somebody who speaks the protocol and has no MGS.
        Err(ConnectError::Refused { .. }) => false,
        Err(error) => return Err(error),
    };
    Ok(Pinged { nid: nid.to_string(), mgs })
}
