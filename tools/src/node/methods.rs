//! The control socket's methods: SPDK's by SPDK's names, ours as `nacre_*`.

use std::collections::BTreeMap;
use std::rc::Rc;

use futures_util::future::LocalBoxFuture;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Node, targets};
use crate::config::{Call, Method, MethodError, typed};
use crate::jsonrpc::Handler;

/// Methods that ask, beside those that create ([`Method::names`]).
const QUESTIONS: [&str; 10] = [
    "rpc_get_methods",
    "spdk_get_version",
    "framework_get_subsystems",
    "framework_get_config",
    "framework_get_reactors",
    "bdev_get_bdevs",
    "nacre_get_devices",
    "nacre_get_params",
    "nacre_set_param",
    "nacre_get_stats",
];

/// Answers the control socket of a node.
pub struct NodeHandler(pub Rc<Node>);

impl Handler for NodeHandler {
    fn call(&self, method: String, params: Value) -> LocalBoxFuture<'_, Result<Value, MethodError>> {
        Box::pin(async move { self.0.call(&method, params).await })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NoParams {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ByName {
    #[serde(default)]
    name: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SetParam {
    name: String,
    value: Option<String>,
    #[serde(default)]
    permanent: bool,
}

impl Node {
    async fn call(&self, method: &str, params: Value) -> Result<Value, MethodError> {
        match method {
            // SPDK's client asks with parameters of its own (`current`, `include_aliases`); all methods are current here.
            "rpc_get_methods" => Ok(json!(QUESTIONS.into_iter().chain(Method::names()).collect::<Vec<_>>())),
            "spdk_get_version" => {
                let NoParams {} = typed(method, params)?;
                let version = env!("CARGO_PKG_VERSION");
                let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
                let mut next = || numbers.next().unwrap_or(0);
                let fields = json!({"major": next(), "minor": next(), "patch": next(), "suffix": ""});
                Ok(json!({"version": format!("Nacre {version}"), "fields": fields}))
            }
            "framework_get_subsystems" => {
                Ok(json!([{"subsystem": "bdev", "depends_on": []}, {"subsystem": "nacre", "depends_on": ["bdev"]}]))
            }
            "framework_get_config" => {
                let ByName { name } = typed(method, params)?;
                let name = name.ok_or_else(|| MethodError::params(method, "name: missing"))?;
                let calls: Vec<Call> = self.state.borrow().calls.clone();
                let prefix = format!("{name}_");
                Ok(json!(calls.into_iter().filter(|call| call.method.starts_with(&prefix)).collect::<Vec<_>>()))
            }
            "framework_get_reactors" => Ok(reactors()),
            "bdev_get_bdevs" => {
                let ByName { name } = typed(method, params)?;
                self.bdevs(name.as_deref()).await
            }
            "nacre_get_devices" => {
                let NoParams {} = typed(method, params)?;
                Ok(self.devices())
            }
            "nacre_get_params" => {
                let NoParams {} = typed(method, params)?;
                let mut all = BTreeMap::new();
                for (reactor, label) in self.where_targets_are() {
                    let answer = self.running_reactor(reactor)?.spawn(move || targets::params(label)).await;
                    all.extend(answer.map_err(MethodError::state)?);
                }
                Ok(json!(all))
            }
            "nacre_set_param" => self.set_param(typed(method, params)?).await,
            "nacre_get_stats" => {
                let NoParams {} = typed(method, params)?;
                let mut all = BTreeMap::new();
                for (reactor, label) in self.where_targets_are() {
                    let name = label.clone();
                    let answer = self.running_reactor(reactor)?.spawn(move || targets::stats(label)).await;
                    all.insert(name, answer.map_err(MethodError::state)?);
                }
                Ok(json!(all))
            }
            _ => {
                let call = Call { method: method.to_owned(), params: params.clone() };
                self.create(Method::parse(method, params)?, call).await
            }
        }
    }

    fn where_targets_are(&self) -> Vec<(usize, String)> {
        self.state.borrow().targets.iter().map(|target| (target.reactor, target.label.clone())).collect()
    }

    fn devices(&self) -> Value {
        let state = self.state.borrow();
        let device = |target: &super::TargetEntry| {
            json!({
                "state": "UP",
                "kind": format!("{:?}", target.kind).to_lowercase(),
                "label": target.label,
                "uuid": target.uuid,
                "nqn": target.nqn,
                "bdev": target.bdev,
            })
        };
        state.targets.iter().map(device).collect()
    }

    async fn bdevs(&self, name: Option<&str>) -> Result<Value, MethodError> {
        let mut found = Vec::new();
        let all: Vec<_> = self.state.borrow().bdevs.iter().map(|(name, index)| (name.clone(), *index)).collect();
        for (bdev, reactor) in all.into_iter().filter(|(bdev, _)| name.is_none_or(|name| name == bdev)) {
            let user = self.state.borrow().targets.iter().find(|t| t.bdev == bdev).map(|t| t.label.clone());
            let info = self.running_reactor(reactor)?.spawn(move || targets::bdev_info(bdev)).await;
            let Some(info) = info.map_err(MethodError::state)? else { continue };
            found.push(json!({
                "name": info.name,
                "product_name": info.product,
                "uuid": info.uuid.to_string(),
                "block_size": info.block_bytes,
                "num_blocks": info.blocks,
                "claimed": user.is_some(),
                "driver_specific": {"used_by": user},
            }));
        }
        match name {
            Some(name) if found.is_empty() => {
                Err(MethodError { code: -19, message: format!("there is no bdev \"{name}\"") })
            }
            _ => Ok(Value::Array(found)),
        }
    }

    /// Sets a parameter at the target whose it is, or at the MGS for all. Answers how many were set.
    async fn set_param(&self, set: SetParam) -> Result<Value, MethodError> {
        let refused = |why: String| MethodError::params("nacre_set_param", why);
        let targets = self.where_targets_are();
        if set.permanent {
            let mut known = false;
            for (reactor, label) in &targets {
                let (label, name, value) = (label.clone(), set.name.clone(), set.value.clone());
                let answer = self.running_reactor(*reactor)?.spawn(|| targets::set_permanent(label, name, value)).await;
                known = answer.map_err(MethodError::state)?.map_err(refused)?;
                if known {
                    break;
                }
            }
            if let (true, Some(value)) = (known, &set.value) {
                for (reactor, label) in targets {
                    let (name, value) = (set.name.clone(), value.clone());
                    let taken = self.running_reactor(reactor)?.spawn(|| targets::take_permanent(label, name, value));
                    taken.await.map_err(MethodError::state)?;
                }
            }
            return Ok(json!(u32::from(known)));
        }
        let value = set.value.ok_or_else(|| refused("value: missing".to_owned()))?;
        let mut done = 0;
        for (reactor, label) in targets {
            let (name, value) = (set.name.clone(), value.clone());
            let answer = self.running_reactor(reactor)?.spawn(|| targets::set_param(label, name, value)).await;
            done += u32::from(answer.map_err(MethodError::state)?.map_err(refused)?);
        }
        Ok(json!(done))
    }
}

/// `framework_get_reactors`: SPDK's form; times in ticks of a nanosecond.
fn reactors() -> Value {
    let reactors: Vec<_> = nacre_reactor::stats::all()
        .into_iter()
        .enumerate()
        .map(|(index, times)| {
            json!({
                "lcore": times.cpu.unwrap_or(index),
                "busy": times.busy.as_nanos() as u64,
                "idle": times.idle.as_nanos() as u64,
                "in_interrupt": true,
                "lw_threads": [{"name": times.name, "id": index}],
            })
        })
        .collect();
    json!({"tick_rate": 1_000_000_000u64, "reactors": reactors})
}
