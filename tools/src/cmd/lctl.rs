//! `nacre lctl`: parameters and devices of this machine's servers and mounts, through their control sockets.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::cli::{Lctl, LctlCommand};
use crate::jsonrpc;
use crate::mountinfo::nacre_mounts;
use crate::output::{Context, Error, Output, Result};

pub fn run(arguments: &Lctl, output: &Output) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // `ping` connects as clients do, with tasks of its own.
    tokio::task::LocalSet::new().block_on(&runtime, do_command(arguments, output))
}

async fn do_command(arguments: &Lctl, output: &Output) -> Result<ExitCode> {
    let sockets = Sockets::find(arguments.rpc_socket.clone())?;
    match &arguments.command {
        LctlCommand::Dl => {
            let mut devices = Vec::new();
            for answer in sockets.ask_all("nacre_get_devices", json!({})).await? {
                devices.extend(serde_json::from_value::<Vec<Device>>(answer)?);
            }
            output.result(&Devices(devices));
        }
        LctlCommand::Ping { nid } => {
            let answer = crate::node::ping(*nid).await?;
            output.result(&answer);
        }
        LctlCommand::GetParam { names_only, values_only, patterns } => {
            let params = sockets.params(patterns).await?;
            output.result(&Params { params, names: !values_only, values: !names_only });
        }
        LctlCommand::ListParam { patterns } => {
            let params = sockets.params(patterns).await?;
            output.result(&Params { params, names: true, values: false });
        }
        LctlCommand::SetParam { permanent, delete, settings } => {
            for setting in settings {
                let (name, value) = match setting.split_once('=') {
                    Some((name, value)) => (name, Some(value)),
                    None if *delete => (setting.as_str(), None),
                    None => return Err(Error::new(format!("\"{setting}\": write NAME=VALUE"))),
                };
                sockets.set(name, value.filter(|_| !delete), *permanent).await.context(name)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The control sockets to ask.
struct Sockets(Vec<PathBuf>);

impl Sockets {
    fn find(named: Option<PathBuf>) -> Result<Sockets> {
        if let Some(named) = named {
            return Ok(Sockets(vec![named]));
        }
        let mut sockets = vec![PathBuf::from(jsonrpc::DEFAULT_SOCKET)];
        sockets.extend(nacre_mounts()?.iter().map(|mount| mount.socket()));
        sockets.retain(|socket| socket.exists());
        sockets.dedup();
        Ok(Sockets(sockets))
    }

    /// Asks everybody. Nobody there is an error; one of several that is going away is not.
    async fn ask_all(&self, method: &str, params: Value) -> Result<Vec<Value>> {
        let mut answers = Vec::new();
        let mut failure = None;
        for socket in &self.0 {
            match jsonrpc::call(socket, method, params.clone()).await {
                Ok(answer) => answers.push(answer),
                Err(error) => failure = Some(error),
            }
        }
        match failure {
            Some(error) if answers.is_empty() => Err(error.into()),
            _ if self.0.is_empty() => Err(Error::new(
                "no server or mount runs on this machine; -r names the socket of one that listens elsewhere",
            )),
            _ => Ok(answers),
        }
    }

    async fn params(&self, patterns: &[String]) -> Result<BTreeMap<String, String>> {
        let mut all = BTreeMap::new();
        for answer in self.ask_all("nacre_get_params", json!({})).await? {
            all.extend(serde_json::from_value::<BTreeMap<String, String>>(answer)?);
        }
        let mut chosen = BTreeMap::new();
        for pattern in patterns {
            let before = chosen.len();
            chosen.extend(all.iter().filter(|(name, _)| matches(pattern, name)).map(|(n, v)| (n.clone(), v.clone())));
            if chosen.len() == before && !pattern.contains('*') {
                return Err(Error::new(format!("no parameter \"{pattern}\"; list_param shows all")));
            }
        }
        Ok(chosen)
    }

    async fn set(&self, name: &str, value: Option<&str>, permanent: bool) -> Result<()> {
        let (mut done, mut failure) = (false, None);
        for socket in &self.0 {
            let params = json!({"name": name, "value": value, "permanent": permanent});
            match jsonrpc::call(socket, "nacre_set_param", params).await {
                // One that does not have the parameter says how many it has set: none.
                Ok(answer) => done |= answer.as_u64().unwrap_or(0) > 0,
                Err(error) => failure = Some(error),
            }
            if done && permanent {
                break;
            }
        }
        match failure {
            _ if done => Ok(()),
            Some(error) => Err(error.into()),
            None => Err(Error::new("no such parameter here; list_param shows all")),
        }
    }
}

/// Whether a name fits a pattern in which `*` stands for anything.
pub fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let parts: Vec<_> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// A device as `lctl dl` lists it.
#[derive(Serialize, Deserialize)]
struct Device {
    /// `UP` or what it does instead.
    state: String,
    /// `mgs`, `mdt`, `ost`, or a client's half: `mgc`, `mdc`, `osc`.
    kind: String,
    /// `nacre-OST0000`.
    label: String,
    /// Its own identity.
    uuid: String,
    /// A server's target: its NVMe subsystem and the bdev it stands on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nqn: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bdev: Option<String>,
}

#[derive(Serialize)]
#[serde(transparent)]
struct Devices(Vec<Device>);

impl fmt::Display for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, device) in self.0.iter().enumerate() {
            if number > 0 {
                writeln!(f)?;
            }
            write!(f, "{number:3} {} {} {} {}", device.state, device.kind, device.label, device.uuid)?;
        }
        Ok(())
    }
}

#[derive(Serialize)]
struct Params {
    #[serde(flatten)]
    params: BTreeMap<String, String>,
    #[serde(skip)]
    names: bool,
    #[serde(skip)]
    values: bool,
}

impl fmt::Display for Params {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (name, value)) in self.params.iter().enumerate() {
            if number > 0 {
                writeln!(f)?;
            }
            match (self.names, self.values) {
                (true, true) => write!(f, "{name}={value}")?,
                (true, false) => write!(f, "{name}")?,
                _ => write!(f, "{value}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, name, fits) in [
            ("*", "a.b", true),
            ("ost.*.grant", "ost.nacre-OST0000.grant", true),
            ("ost.*.grant", "ost.nacre-OST0000.grants", false),
            ("a", "ab", false),
            ("a*a", "a", false),
            ("*b*", "abc", true),
        ] {
            assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
        }
    }
}
