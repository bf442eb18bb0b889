//! What runs on a reactor: its bdevs by name, its targets by label. Every function here is called on that reactor.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use nacre_mdt::{Mdt, MdtConfig};
use nacre_mgs::Mgs;
use nacre_osd::bdev::{BdevInfo, Registry, Reply, Request};
use nacre_osd::engine::{Options, Osd};
use nacre_osd::store::Store;
use nacre_ost::{Ost, OstConfig};
use nacre_reactor::Env;
use nacre_transport::Service;
use nacre_transport::tcp::{TcpConnector, TcpOptions, TcpService, TcpTarget};
use nacre_wire::codec::{decode, encode};
use nacre_wire::map::{TargetKind, target_label};
use nacre_wire::mgs::{SetParam, TargetLabel};
use nacre_wire::{Nid, Uuid};

use super::registration::{Registered, Registration};
use crate::config::TargetParams;
use crate::device::label;

thread_local! {
    static BDEVS: Rc<Registry> = Rc::new(Registry::new());
    static TARGETS: RefCell<BTreeMap<String, Rc<Running>>> = const { RefCell::new(BTreeMap::new()) };
}

/// A target on this reactor.
struct Running {
    service: Kind,
    store: Rc<dyn Store>,
    fsname: String,
    /// What the MGS knows it by; `None` for the MGS itself.
    registration: Option<Rc<Registration>>,
    /// Where it is reached; taken when it stops.
    served: RefCell<Option<TcpService>>,
}

enum Kind {
    Mgs(Rc<Mgs>),
    Mdt(Rc<Mdt>),
    Ost(Rc<Ost>),
}

/// What the control plane learns of a target that has started.
pub struct Started {
    pub label: String,
    pub nqn: String,
    pub uuid: String,
}

/// Makes, changes or removes a bdev.
pub async fn bdev(request: Request) -> Result<Reply, String> {
    let registry = BDEVS.with(Rc::clone);
    registry.execute(request).await.map_err(|error| error.to_string())
}

/// What a bdev is.
pub async fn bdev_info(name: String) -> Option<BdevInfo> {
    BDEVS.with(Rc::clone).get(&name).map(|bdev| bdev.info().clone())
}

/// Opens the store on a bdev and serves it. In words, why not; nothing is left behind then.
pub async fn start(kind: TargetKind, params: TargetParams, nids: Vec<Nid>, tcp: TcpTarget) -> Result<Started, String> {
    let bdev_name = &params.bdev_name;
    let fail = |why: String| format!("bdev \"{bdev_name}\": {why}");
    let bdev = BDEVS.with(Rc::clone).get(bdev_name).ok_or_else(|| fail("there is none of that name".to_owned()))?;
    // Opening writes. What does not belong here is refused before.
    let label = label(&bdev).await.map_err(fail)?;
    let admitted = admit(kind, &params, &nids, &label).await.map_err(fail)?;
    let store = Osd::open(bdev, Options::default()).await.map_err(|error| fail(error.to_string()))?;
    let store: Rc<dyn Store> = store;
    let result = start_on(admitted, &nids, store.clone()).await;
    let running = match result {
        Ok(running) => running,
        Err(why) => {
            if let Err(error) = store.close().await {
                tracing::warn!("bdev \"{bdev_name}\": {error}");
            }
            return Err(fail(why));
        }
    };
    let (label, service, uuid): (String, Rc<dyn Service>, Uuid) = match &running.service {
        Kind::Mgs(mgs) => ("MGS".to_owned(), mgs.clone(), mgs.uuid()),
        Kind::Mdt(mdt) => (mdt.label(), mdt.clone(), mdt.uuid()),
        Kind::Ost(ost) => (ost.label(), ost.clone(), ost.uuid()),
    };
    let nqn = service.nqn();
    *running.served.borrow_mut() = Some(tcp.serve(service));
    TARGETS.with_borrow_mut(|targets| targets.insert(label.clone(), Rc::new(running)));
    Ok(Started { label, nqn, uuid: uuid.to_string() })
}

/// A device that belongs here, and what is known of it before it is opened.
struct Admitted {
    label: TargetLabel,
    /// `None` for the MGS itself.
    registered: Option<(Rc<Registration>, Registered)>,
}

/// Checks by its label what a store is; the MGS says whether it belongs to the filesystem, and which index it has.
async fn admit(kind: TargetKind, params: &TargetParams, nids: &[Nid], label: &[u8]) -> Result<Admitted, String> {
    let label: TargetLabel =
        decode(label).map_err(|_| "the store has no target's label; it was not made by mkfs.nacre".to_owned())?;
    if label.kind != kind {
        return Err(format!("was formatted as {:?}, not as {kind:?}", label.kind));
    }
    if let Some(fsname) = params.fsname.as_ref().filter(|fsname| **fsname != label.fsname) {
        return Err(format!("belongs to filesystem \"{}\", not to \"{fsname}\"", label.fsname));
    }
    if kind == TargetKind::Mgs {
        return Ok(Admitted { label, registered: None });
    }
    let name = match label.index {
        Some(index) => target_label(&label.fsname, kind, index),
        None => format!("{}-{kind:?}-{}", label.fsname, label.target_uuid),
    };
    let registration = Registration::new(&Env::system(), &label, &name);
    // Index and filesystem are learnt first; the incarnation is told when the target has counted its start.
    let registered = registration.register(&label, nids, 0).await?;
    Ok(Admitted { label, registered: Some((registration, registered)) })
}

async fn start_on(admitted: Admitted, nids: &[Nid], store: Rc<dyn Store>) -> Result<Running, String> {
    let env = Env::system();
    let Admitted { mut label, registered } = admitted;
    let (fsname, kind) = (label.fsname.clone(), label.kind);
    let served = RefCell::default();
    let Some((registration, registered)) = registered else {
        let mgs = Mgs::start(env, store.clone()).await.map_err(|error| error.to_string())?;
        return Ok(Running { service: Kind::Mgs(mgs), store, fsname, registration: None, served });
    };
    if (label.index, label.fs_uuid) != (Some(registered.index), Some(registered.fs_uuid)) {
        label.index = Some(registered.index);
        label.fs_uuid = Some(registered.fs_uuid);
        store.set_label(encode(&label)).await.map_err(|error| error.to_string())?;
    }
    let (index, uuid, fs_uuid) = (registered.index, label.target_uuid, registered.fs_uuid);
    let service = match kind {
        TargetKind::Mdt => {
            let connector = Rc::new(TcpConnector::new(TcpOptions::new(&env)));
            let config = MdtConfig { fsname: fsname.clone(), index, uuid, fs_uuid };
            let mdt = Mdt::start(env, store.clone(), config, connector).await.map_err(|error| error.to_string())?;
            Kind::Mdt(mdt)
        }
        _ => {
            let config = OstConfig { fsname: fsname.clone(), index, uuid, params: nacre_ost::Params::default() };
            Kind::Ost(Ost::start(env, store.clone(), config).await.map_err(|error| error.to_string())?)
        }
    };
    let incarnation = match &service {
        Kind::Mdt(mdt) => mdt.incarnation(),
        Kind::Ost(ost) => ost.incarnation(),
        Kind::Mgs(_) => unreachable!("an MGS does not register"),
    };
    let registered = registration.register(&label, nids, incarnation).await?;
    let running = Running { service, store, fsname, registration: Some(registration.clone()), served };
    for (name, value) in registration.params().await {
        running.take_permanent(&name, &value);
    }
    if let Kind::Mdt(mdt) = &running.service {
        mdt.set_map(&registered.map).await.map_err(|status| format!("the cluster map: {status}"))?;
        let mdt = Rc::downgrade(mdt);
        registration.watch(Box::new(move |map| {
            let Some(mdt) = mdt.upgrade() else { return };
            tokio::task::spawn_local(async move {
                if let Err(status) = mdt.set_map(&map).await {
                    tracing::error!("{}: cluster map {}: {status}", mdt.label(), map.epoch);
                }
            });
        }));
    }
    Ok(running)
}

/// Ends a target and closes its store.
pub async fn stop(label: String) -> Result<(), String> {
    let Some(running) = TARGETS.with_borrow_mut(|targets| targets.remove(&label)) else { return Ok(()) };
    running.served.take();
    match &running.service {
        Kind::Mgs(_) => {}
        Kind::Mdt(mdt) => mdt.stop().await,
        Kind::Ost(_) => {}
    }
    running.store.close().await.map_err(|error| error.to_string())
}

/// Parameters of a target: `ost.nacre-OST0000.NAME` → value.
pub async fn params(label: String) -> BTreeMap<String, String> {
    running(&label).map(|running| running.params(&label)).unwrap_or_default()
}

/// Counters of a target.
pub async fn stats(label: String) -> BTreeMap<String, String> {
    let Some(running) = running(&label) else { return BTreeMap::new() };
    let mut stats: BTreeMap<String, String> = match &running.service {
        Kind::Mgs(_) => BTreeMap::new(),
        Kind::Mdt(mdt) => mdt.stats().into_iter().collect(),
        Kind::Ost(ost) => {
            ost.stats_list().into_iter().map(|(name, value)| (name.to_owned(), value.to_string())).collect()
        }
    };
    let space = running.store.space();
    stats.insert("store.total_bytes".to_owned(), space.total_bytes.to_string());
    stats.insert("store.free_bytes".to_owned(), space.free_bytes.to_string());
    stats.insert("store.objects".to_owned(), space.objects.to_string());
    stats
}

/// Sets a parameter by its full name (`ost.nacre-OST0000.NAME`). False: it is not this target's.
pub async fn set_param(label: String, name: String, value: String) -> Result<bool, String> {
    let Some(running) = running(&label) else { return Ok(false) };
    match name.strip_prefix(&running.prefix(&label)) {
        Some(own) => running.set(own, &value).map(|()| true),
        None => Ok(false),
    }
}

/// Gives a permanent parameter to the MGS that this target registered with. False: it has none.
pub async fn set_permanent(label: String, name: String, value: Option<String>) -> Result<bool, String> {
    let Some(running) = running(&label) else { return Ok(false) };
    let Some(registration) = &running.registration else { return Ok(false) };
    let set = SetParam { fsname: running.fsname.clone(), name, value };
    registration.mgs().set_param(&set).await.map_err(|error| format!("name: the MGS answers {error}"))?;
    Ok(true)
}

/// Takes a permanent parameter over, if it is meant for this target.
pub async fn take_permanent(label: String, name: String, value: String) {
    if let Some(running) = running(&label) {
        running.take_permanent(&name, &value);
    }
}

fn running(label: &str) -> Option<Rc<Running>> {
    TARGETS.with_borrow(|targets| targets.get(label).cloned())
}

impl Running {
    fn kind(&self) -> &'static str {
        match self.service {
            Kind::Mgs(_) => "mgs",
            Kind::Mdt(_) => "mdt",
            Kind::Ost(_) => "ost",
        }
    }

    fn prefix(&self, label: &str) -> String {
        format!("{}.{label}.", self.kind())
    }

    fn params(&self, label: &str) -> BTreeMap<String, String> {
        let prefix = self.prefix(label);
        let list: Vec<(&str, u64)> = match &self.service {
            Kind::Mgs(_) => Vec::new(),
            Kind::Mdt(mdt) => mdt.params().into_iter().map(|param| (param.name, param.value)).collect(),
            Kind::Ost(ost) => ost.params().list().into_iter().map(|param| (param.name, param.value)).collect(),
        };
        list.into_iter().map(|(name, value)| (format!("{prefix}{name}"), value.to_string())).collect()
    }

    fn set(&self, name: &str, value: &str) -> Result<(), String> {
        match &self.service {
            Kind::Mgs(_) => Err(format!("name: the MGS has no parameter \"{name}\"")),
            Kind::Mdt(mdt) => mdt.set_param(name, value).map_err(|error| error.to_string()),
            Kind::Ost(ost) => ost.set_param(name, value).map_err(|error| error.to_string()),
        }
    }

    /// A permanent parameter: `ost.NAME` is for every OST, `ost.LABEL.NAME` for one.
    fn take_permanent(&self, name: &str, value: &str) {
        let Some(rest) = name.strip_prefix(self.kind()).and_then(|rest| rest.strip_prefix('.')) else { return };
        let label = match &self.service {
            Kind::Mgs(_) => "MGS".to_owned(),
            Kind::Mdt(mdt) => mdt.label(),
            Kind::Ost(ost) => ost.label(),
        };
        let own = match rest.split_once('.') {
            Some((target, own)) if target == label || target == "*" => own,
            Some(_) => return,
            None => rest,
        };
        if let Err(why) = self.set(own, value) {
            tracing::warn!("{label}: permanent parameter {name}={value}: {why}");
        }
    }
}
