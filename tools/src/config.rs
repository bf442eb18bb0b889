//! SPDK's configuration file: subsystems, each a list of method calls, replayed in order.
//!
//! `{"subsystems":[{"subsystem":"bdev","config":[{"method":"bdev_malloc_create","params":{…}}]}, …]}`
//!
//! The whole file is checked, form, methods and parameters, before anything is done: a file with a mistake changes
//! nothing. Our own methods are in the subsystem `nacre`.

use std::path::Path;

use nacre_osd::bdev::Request;
use nacre_wire::map::TargetKind;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// One call that makes something, with checked parameters.
#[derive(Clone, Debug)]
pub enum Method {
    /// `bdev_*`
    Bdev(Request),
    /// `nacre_listener_create`
    Listener(ListenerParams),
    /// `nacre_mgs_create`, `nacre_mdt_create`, `nacre_ost_create`
    Target(TargetKind, TargetParams),
}

/// Where the server is reached; parameters as in SPDK's `nvmf_subsystem_add_listener`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListenerParams {
    /// `TCP`.
    pub trtype: String,
    /// Address.
    pub traddr: std::net::IpAddr,
    /// Port; 4420 where none is given.
    #[serde(default = "default_service")]
    pub trsvcid: String,
}

fn default_service() -> String {
    nacre_wire::nid::DEFAULT_PORT.to_string()
}

impl ListenerParams {
    /// The socket address; an error names the parameter.
    pub fn address(&self) -> Result<std::net::SocketAddr, MethodError> {
        if !self.trtype.eq_ignore_ascii_case("tcp") {
            let why = format!("trtype: \"{}\" is not served here; TCP is", self.trtype);
            return Err(MethodError::params("nacre_listener_create", why));
        }
        let port: u16 = self.trsvcid.parse().map_err(|_| {
            MethodError::params("nacre_listener_create", format!("trsvcid: \"{}\" is not a port", self.trsvcid))
        })?;
        Ok((self.traddr, port).into())
    }
}

/// A target on a bdev that mkfs.nacre has formatted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetParams {
    /// The bdev.
    pub bdev_name: String,
    /// Refuse to start if the device's label names another filesystem.
    #[serde(default)]
    pub fsname: Option<String>,
}

/// Why a method was not done, as JSON-RPC has it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct MethodError {
    /// −32601 unknown method, −32602 bad parameters, −1 wrong state.
    pub code: i64,
    /// What, to what, and what to do.
    pub message: String,
}

impl MethodError {
    /// The method is not known.
    pub fn unknown(method: &str) -> MethodError {
        MethodError { code: -32601, message: format!("method \"{method}\" is not known here") }
    }

    /// A parameter is wrong; `why` starts with its name.
    pub fn params(method: &str, why: impl std::fmt::Display) -> MethodError {
        MethodError { code: -32602, message: format!("{method}: parameter {why}") }
    }

    /// The parameters are fine, but not now.
    pub fn state(why: impl std::fmt::Display) -> MethodError {
        MethodError { code: -1, message: why.to_string() }
    }
}

impl Method {
    /// Reads a call; the method must make something (be fit for a configuration file).
    pub fn parse(name: &str, params: Value) -> Result<Method, MethodError> {
        let params = if params.is_null() { json!({}) } else { params };
        let mut track = serde_path_to_error::Track::new();
        match Request::parse(name, serde_path_to_error::Deserializer::new(&params, &mut track)) {
            Some(Ok(request)) => return Ok(Method::Bdev(request)),
            Some(Err(error)) => return Err(wrong_parameter(name, &track.path().to_string(), &error)),
            None => {}
        }
        Ok(match name {
            "nacre_listener_create" => {
                let listener: ListenerParams = typed(name, params)?;
                listener.address()?;
                Method::Listener(listener)
            }
            "nacre_mgs_create" => Method::Target(TargetKind::Mgs, typed(name, params)?),
            "nacre_mdt_create" => Method::Target(TargetKind::Mdt, typed(name, params)?),
            "nacre_ost_create" => Method::Target(TargetKind::Ost, typed(name, params)?),
            _ => return Err(MethodError::unknown(name)),
        })
    }

    /// Names that [`Method::parse`] takes.
    pub fn names() -> impl Iterator<Item = &'static str> {
        let own = ["nacre_listener_create", "nacre_mgs_create", "nacre_mdt_create", "nacre_ost_create"];
        Request::METHODS.iter().copied().chain(own)
    }
}

/// Parameters of a method; what is wrong is said with the parameter's name.
pub fn typed<T: DeserializeOwned>(method: &str, params: Value) -> Result<T, MethodError> {
    // A call without parameters is one with none: `{}`.
    let params = if params.is_null() { json!({}) } else { params };
    serde_path_to_error::deserialize(params)
        .map_err(|error| wrong_parameter(method, &error.path().to_string(), error.inner()))
}

fn wrong_parameter(method: &str, path: &str, what: &serde_json::Error) -> MethodError {
    MethodError::params(method, if path == "." { what.to_string() } else { format!("{path}: {what}") })
}

/// A configuration file, checked.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// All calls, in order, as parsed and as they were written (for `save_config`).
    pub calls: Vec<(Method, Call)>,
}

/// A call as written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    /// Name.
    pub method: String,
    /// Parameters.
    #[serde(default)]
    pub params: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    subsystems: Vec<Subsystem>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Subsystem {
    subsystem: String,
    // SPDK writes null for a subsystem that has nothing to say.
    config: Option<Vec<Call>>,
}

/// A configuration file that is not usable: where, and why.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {what}")]
pub struct ConfigError {
    file: String,
    what: String,
}

impl Config {
    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Config, ConfigError> {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError { file: file.clone(), what: format!("cannot be read: {error}") })?;
        Config::parse(&text).map_err(|what| ConfigError { file, what })
    }

    /// Checks a text.
    pub fn parse(text: &str) -> Result<Config, String> {
        let mut reader = serde_json::Deserializer::from_str(text);
        let file: File = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
            let path = error.path().to_string();
            format!("{path}: {}", error.into_inner())
        })?;
        reader.end().map_err(|error| format!("after the configuration: {error}"))?;
        let mut calls = Vec::new();
        for subsystem in file.subsystems {
            let name = &subsystem.subsystem;
            for (number, call) in subsystem.config.unwrap_or_default().into_iter().enumerate() {
                let place = format!("subsystem \"{name}\", call {}", number + 1);
                let owner = call.method.split('_').next().unwrap_or_default();
                if !["bdev", "nacre"].contains(&name.as_str()) || owner != name {
                    return Err(format!("{place}: {}", MethodError::unknown(&call.method)));
                }
                let method = Method::parse(&call.method, call.params.clone())
                    .map_err(|error| format!("{place}: {}", error.message))?;
                calls.push((method, call));
            }
        }
        Ok(Config { calls })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(subsystem: &str, method: &str, params: &str) -> Result<Config, String> {
        Config::parse(&format!(
            r#"{{"subsystems":[{{"subsystem":"{subsystem}","config":[{{"method":"{method}","params":{params}}}]}}]}}"#
        ))
    }

    #[test]
    fn an_spdk_file_is_read() {
        let config = one("bdev", "bdev_malloc_create", r#"{"name":"Malloc0","num_blocks":32768,"block_size":512}"#);
        assert_eq!(config.unwrap().calls.len(), 1);
        assert!(Config::parse(r#"{"subsystems":[{"subsystem":"iobuf","config":null}]}"#).is_ok());
        let listener = one("nacre", "nacre_listener_create", r#"{"trtype":"TCP","traddr":"127.0.0.1"}"#).unwrap();
        let Method::Listener(params) = &listener.calls[0].0 else { panic!("not a listener") };
        assert_eq!(params.address().unwrap().to_string(), "127.0.0.1:4420");
    }

    #[test]
    fn mistakes_are_named() {
        let says = |result: Result<Config, String>, words: &[&str]| {
            let error = result.unwrap_err();
            for word in words {
                assert!(error.contains(word), "\"{error}\" does not say {word}");
            }
        };
        says(one("bdev", "bdev_raid_create", "{}"), &["call 1", "bdev_raid_create", "not known"]);
        says(one("bdev", "bdev_malloc_create", r#"{"num_blocks":"many","block_size":512}"#), &["num_blocks", "string"]);
        says(one("bdev", "bdev_malloc_create", r#"{"block_size":512}"#), &["num_blocks"]);
        says(one("bdev", "bdev_malloc_create", r#"{"num_blocks":8,"block_size":512,"colour":1}"#), &["colour"]);
        says(one("sock", "sock_impl_set_options", "{}"), &["sock_impl_set_options"]);
        says(one("nacre", "nacre_listener_create", r#"{"trtype":"FC","traddr":"127.0.0.1"}"#), &["trtype", "FC"]);
        says(one("nacre", "nacre_ost_create", r#"{"bdev_name":7}"#), &["bdev_name"]);
        says(Config::parse("{"), &["line 1"]);
        says(Config::parse(r#"{"subsystems":{}}"#), &["subsystems"]);
        says(Config::parse(r#"{"subsystems":[]} x"#), &["after the configuration"]);
    }
}
