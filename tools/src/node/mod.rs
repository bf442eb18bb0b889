//! A server: reactors, the bdevs and targets on them, and where it listens. `nacred` and `quickstart` are thin over it.
//!
//! The control plane runs on the thread that made the node. A bdev lives on one reactor (the next in turn); a target lives
//! where its bdev lives. What the control plane wants from there it asks by message ([`targets`]).

mod methods;
mod registration;
mod targets;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use nacre_osd::bdev::{Reply, Request};
use nacre_reactor::{Placement, ReactorHandle, Reactors, Spin};
use nacre_transport::tcp::{TcpListening, TcpTarget};
use nacre_wire::Nid;
use nacre_wire::map::TargetKind;

use crate::config::{Call, Method, MethodError, TargetParams};
use crate::output::{Context, Error, Result};

pub use methods::NodeHandler;
pub use registration::ping;

/// How long an idle reactor looks for work before it sleeps: about what waking it would cost.
pub const SPIN: Spin = Spin::For(Duration::from_micros(20));
/// Longest that stopping one target may take.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// A server.
pub struct Node {
    reactors: RefCell<Option<Reactors>>,
    tcp: TcpTarget,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    /// Bdev → its reactor.
    bdevs: BTreeMap<String, usize>,
    next_reactor: usize,
    listeners: Vec<TcpListening>,
    targets: Vec<TargetEntry>,
    /// What made all this, for `save_config`.
    calls: Vec<Call>,
}

/// A target that runs.
#[derive(Clone)]
struct TargetEntry {
    kind: TargetKind,
    label: String,
    nqn: String,
    uuid: String,
    bdev: String,
    reactor: usize,
}

impl Node {
    /// Starts the reactors.
    pub fn new(placement: &Placement, spin: Spin) -> Result<Node> {
        let reactors = Reactors::start(placement, spin)?;
        Ok(Node { reactors: RefCell::new(Some(reactors)), tcp: TcpTarget::new(), state: RefCell::default() })
    }

    /// Does one call of a configuration.
    pub async fn create(&self, method: Method, call: Call) -> Result<serde_json::Value, MethodError> {
        let answer = match method {
            Method::Bdev(request) => self.bdev(request).await?,
            Method::Listener(params) => {
                let address = params.address()?;
                self.listen(address).await.map_err(|error| MethodError::state(error.words()))?;
                serde_json::Value::Bool(true)
            }
            Method::Target(kind, params) => serde_json::Value::String(self.target(kind, params).await?),
        };
        self.state.borrow_mut().calls.push(call);
        Ok(answer)
    }

    /// Where clients find this server.
    pub fn nids(&self) -> Vec<Nid> {
        self.state.borrow().listeners.iter().map(|listener| Nid::tcp(listener.address())).collect()
    }

    /// [`Node::nids`], for people.
    pub fn where_it_listens(&self) -> String {
        self.nids().iter().map(Nid::to_string).collect::<Vec<_>>().join(",")
    }

    /// Targets that run.
    pub fn target_count(&self) -> usize {
        self.state.borrow().targets.len()
    }

    /// Stops the targets, newest first, each within a bounded time, then the reactors.
    pub async fn stop(&self) {
        let (targets, listeners) = {
            let mut state = self.state.borrow_mut();
            (std::mem::take(&mut state.targets), std::mem::take(&mut state.listeners))
        };
        // Nobody new; who is connected sees the connection end and comes back when we do.
        drop(listeners);
        for target in targets.into_iter().rev() {
            let label = target.label.clone();
            let Some(reactor) = self.reactor(target.reactor) else { continue };
            let stopped = reactor.spawn(move || targets::stop(target.label));
            match tokio::time::timeout(STOP_LIMIT, stopped).await {
                Ok(Ok(Ok(()))) => tracing::info!("{label}: stopped"),
                Ok(Ok(Err(why))) => tracing::error!("{label}: {why}"),
                Ok(Err(gone)) => tracing::error!("{label}: {gone}"),
                Err(_) => tracing::error!("{label}: not stopped within {STOP_LIMIT:?}; its log will be replayed"),
            }
        }
        let reactors = self.reactors.borrow_mut().take();
        if let Some(reactors) = reactors {
            // Threads are joined: not on a reactor's own time.
            let joined = tokio::task::spawn_blocking(move || reactors.join());
            if tokio::time::timeout(STOP_LIMIT, joined).await.is_err() {
                tracing::error!("the reactors do not end");
            }
        }
    }

    fn reactor(&self, index: usize) -> Option<ReactorHandle> {
        self.reactors.borrow().as_ref().map(|reactors| reactors.handles()[index].clone())
    }

    fn running_reactor(&self, index: usize) -> Result<ReactorHandle, MethodError> {
        self.reactor(index).ok_or_else(|| MethodError::state("the server is stopping"))
    }

    /// Makes, changes or removes a bdev on its reactor.
    async fn bdev(&self, mut request: Request) -> Result<serde_json::Value, MethodError> {
        let count = self.reactors.borrow().as_ref().map_or(1, |reactors| reactors.handles().len());
        let deletes = matches!(request, Request::Delete(_));
        let known = |name: &str| {
            let index = self.state.borrow().bdevs.get(name).copied();
            index.ok_or_else(|| MethodError::state(format!("there is no bdev \"{name}\"")))
        };
        let index = match &request {
            // What stands on another lives with it.
            Request::DelayCreate(params) => known(&params.base_bdev_name)?,
            Request::ErrorCreate(params) => known(&params.base_name)?,
            Request::DelayUpdateLatency(params) => known(&params.delay_bdev_name)?,
            Request::ErrorInject(params) => known(&params.name)?,
            Request::Delete(params) => known(&params.name)?,
            Request::MallocCreate(_) | Request::NullCreate(_) | Request::UringCreate(_) => {
                let mut state = self.state.borrow_mut();
                state.next_reactor += 1;
                (state.next_reactor - 1) % count
            }
        };
        let made = match &request {
            Request::Delete(params) => Some(params.name.clone()),
            _ => None,
        };
        // Names are the server's, not one reactor's.
        if let Request::MallocCreate(params) = &mut request {
            let state = self.state.borrow();
            let free = |number: &u32| !state.bdevs.contains_key(&format!("Malloc{number}"));
            params.name.get_or_insert_with(|| format!("Malloc{}", (0..).find(free).unwrap_or_default()));
        }
        let new_name = match &request {
            Request::MallocCreate(params) => params.name.as_deref(),
            Request::NullCreate(params) => Some(params.name.as_str()),
            Request::UringCreate(params) => Some(params.name.as_str()),
            Request::DelayCreate(params) => Some(params.name.as_str()),
            Request::ErrorCreate(_) | Request::DelayUpdateLatency(_) | Request::ErrorInject(_) | Request::Delete(_) => {
                None
            }
        };
        if let Some(name) = new_name.filter(|name| self.state.borrow().bdevs.contains_key(*name)) {
            return Err(MethodError::state(format!("there is a bdev \"{name}\" already")));
        }
        let reply = self.running_reactor(index)?.spawn(move || targets::bdev(request)).await;
        let reply = reply.map_err(MethodError::state)?.map_err(MethodError::state)?;
        let mut state = self.state.borrow_mut();
        if deletes {
            state.bdevs.remove(&made.expect("a delete has a name"));
        }
        Ok(match reply {
            Reply::Name(name) => {
                state.bdevs.insert(name.clone(), index);
                serde_json::Value::String(name)
            }
            Reply::Done => serde_json::Value::Bool(true),
        })
    }

    async fn listen(&self, address: SocketAddr) -> Result<()> {
        if address.ip().is_unspecified() {
            let words = format!("traddr {}: clients are told where a target is; name an address", address.ip());
            return Err(Error::new(words));
        }
        let listener = self.tcp.listen(address).await.context(format!("{address}"))?;
        tracing::info!("listening on {}", Nid::tcp(listener.address()));
        self.state.borrow_mut().listeners.push(listener);
        Ok(())
    }

    /// Starts a target on its bdev's reactor; answers its label.
    async fn target(&self, kind: TargetKind, params: TargetParams) -> Result<String, MethodError> {
        let nids = self.nids();
        if nids.is_empty() {
            return Err(MethodError::state("a target needs a listener: nacre_listener_create comes first"));
        }
        let reactor = {
            let state = self.state.borrow();
            let Some(&reactor) = state.bdevs.get(&params.bdev_name) else {
                let words = format!("bdev \"{}\" does not exist; create it first", params.bdev_name);
                return Err(MethodError::state(words));
            };
            if let Some(user) = state.targets.iter().find(|target| target.bdev == params.bdev_name) {
                let words = format!("bdev \"{}\" is in use by {}", params.bdev_name, user.label);
                return Err(MethodError::state(words));
            }
            reactor
        };
        let bdev = params.bdev_name.clone();
        let tcp = self.tcp.clone();
        let started = self.running_reactor(reactor)?.spawn(move || targets::start(kind, params, nids, tcp)).await;
        let started = started.map_err(MethodError::state)?.map_err(MethodError::state)?;
        tracing::info!("{}: serving on bdev \"{bdev}\", reactor {reactor}", started.label);
        let label = started.label.clone();
        let (nqn, uuid) = (started.nqn, started.uuid);
        self.state.borrow_mut().targets.push(TargetEntry { kind, label: started.label, nqn, uuid, bdev, reactor });
        Ok(label)
    }
}
