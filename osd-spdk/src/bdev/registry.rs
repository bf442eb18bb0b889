//! `Registry`: the devices of one reactor by name, and SPDK's calls that make and remove them.
//!
//! ```
//! # use nacre_osd::bdev::{Registry, Request};
//! # let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
//! # runtime.block_on(async {
//! use serde::de::value::{Error, MapDeserializer};
//! let registry = Registry::new();
//! // In a server the parameters come from the configuration, as a `serde_json::Value`.
//! let params = MapDeserializer::<_, Error>::new([("num_blocks", 256u64), ("block_size", 4096)].into_iter());
//! let request = Request::parse("bdev_malloc_create", params).expect("a method of ours").expect("its parameters");
//! registry.execute(request).await.unwrap();
//! assert_eq!(registry.get("Malloc0").unwrap().info().bytes(), 1 << 20);
//! # });
//! ```

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use serde::{Deserialize, Deserializer};

use super::delay::{self, Delay};
use super::error::{self, ErrorBdev};
use super::malloc::{self, Malloc};
use super::null::{self, Null};
use super::uring::{self, Uring};
use super::{BdevError, BdevInfo, BdevRef};

/// A call that concerns devices, named as SPDK names it.
#[derive(Clone, Debug)]
pub enum Request {
    /// `bdev_malloc_create`
    MallocCreate(malloc::Params),
    /// `bdev_null_create`
    NullCreate(null::Params),
    /// `bdev_uring_create`, `bdev_aio_create`
    UringCreate(uring::Params),
    /// `bdev_delay_create`
    DelayCreate(delay::Params),
    /// `bdev_delay_update_latency`
    DelayUpdateLatency(delay::UpdateLatency),
    /// `bdev_error_create`
    ErrorCreate(error::Params),
    /// `bdev_error_inject_error`
    ErrorInject(error::Inject),
    /// `bdev_malloc_delete` and the like.
    Delete(Delete),
}

/// Parameters of the calls that delete.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delete {
    /// Name.
    pub name: String,
}

/// Answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Name of the device made.
    Name(String),
    /// Done: SPDK's `true`.
    Done,
}

impl Request {
    /// The methods that [`Request::parse`] knows.
    pub const METHODS: &'static [&'static str] = &[
        "bdev_malloc_create",
        "bdev_malloc_delete",
        "bdev_null_create",
        "bdev_null_delete",
        "bdev_uring_create",
        "bdev_uring_delete",
        "bdev_aio_create",
        "bdev_aio_delete",
        "bdev_delay_create",
        "bdev_delay_delete",
        "bdev_delay_update_latency",
        "bdev_error_create",
        "bdev_error_delete",
        "bdev_error_inject_error",
    ];

    /// Takes the parameters of a method apart. `None`: not a method of ours.
    pub fn parse<'de, D: Deserializer<'de>>(method: &str, params: D) -> Option<Result<Request, D::Error>> {
        Some(match method {
            "bdev_malloc_create" => Deserialize::deserialize(params).map(Request::MallocCreate),
            "bdev_null_create" => Deserialize::deserialize(params).map(Request::NullCreate),
            "bdev_uring_create" => Deserialize::deserialize(params).map(Request::UringCreate),
            "bdev_aio_create" => AioParams::deserialize(params).and_then(|aio| {
                if aio.readonly {
                    return Err(serde::de::Error::custom("readonly: a target writes to its device"));
                }
                Ok(Request::UringCreate(aio.into()))
            }),
            "bdev_delay_create" => Deserialize::deserialize(params).map(Request::DelayCreate),
            "bdev_delay_update_latency" => Deserialize::deserialize(params).map(Request::DelayUpdateLatency),
            "bdev_error_create" => Deserialize::deserialize(params).map(Request::ErrorCreate),
            "bdev_error_inject_error" => Deserialize::deserialize(params).map(Request::ErrorInject),
            "bdev_malloc_delete" | "bdev_null_delete" | "bdev_uring_delete" | "bdev_aio_delete"
            | "bdev_delay_delete" | "bdev_error_delete" => Deserialize::deserialize(params).map(Request::Delete),
            _ => return None,
        })
    }
}

/// `bdev_aio_create` has parameters that `bdev_uring_create` has not.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AioParams {
    name: String,
    filename: std::path::PathBuf,
    #[serde(default)]
    block_size: u32,
    #[serde(default, deserialize_with = "super::uuid_text")]
    uuid: Option<nacre_wire::Uuid>,
    #[serde(default)]
    readonly: bool,
    /// We punch holes wherever the system can.
    #[serde(default, rename = "fallocate")]
    _fallocate: bool,
}

impl From<AioParams> for uring::Params {
    fn from(aio: AioParams) -> uring::Params {
        uring::Params { name: aio.name, filename: aio.filename, block_size: aio.block_size, uuid: aio.uuid }
    }
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// No such device.
    #[error("there is no bdev \"{0}\"")]
    NotFound(String),
    /// The name is taken.
    #[error("there is a bdev \"{0}\" already")]
    Exists(String),
    /// Something stands on the device.
    #[error("bdev \"{0}\" is in use; remove what uses it first")]
    InUse(String),
    /// The device is of another kind.
    #[error("bdev \"{name}\" is no {wanted} device")]
    WrongKind {
        /// Name.
        name: String,
        /// `delay` or `error`.
        wanted: &'static str,
    },
    /// The device could not be made.
    #[error(transparent)]
    Bdev(#[from] BdevError),
}

/// The devices of one reactor.
#[derive(Default)]
pub struct Registry {
    entries: RefCell<BTreeMap<String, Entry>>,
    unnamed: Cell<u64>,
}

/// A device, and what it can be told beyond [`Bdev`].
#[derive(Clone)]
enum Entry {
    Plain(BdevRef),
    Delay(Rc<Delay>),
    Error(Rc<ErrorBdev>),
}

impl Entry {
    fn bdev(&self) -> BdevRef {
        match self {
            Entry::Plain(bdev) => bdev.clone(),
            Entry::Delay(bdev) => bdev.clone(),
            Entry::Error(bdev) => bdev.clone(),
        }
    }

    fn users(&self) -> usize {
        match self {
            Entry::Plain(bdev) => Rc::strong_count(bdev) - 1,
            Entry::Delay(bdev) => Rc::strong_count(bdev) - 1,
            Entry::Error(bdev) => Rc::strong_count(bdev) - 1,
        }
    }
}

impl Registry {
    /// An empty one.
    pub fn new() -> Registry {
        Registry::default()
    }

    /// Does what a call asks.
    pub async fn execute(&self, request: Request) -> Result<Reply, RegistryError> {
        let entry = match request {
            Request::MallocCreate(mut params) => {
                params.name.get_or_insert_with(|| self.invent("Malloc"));
                Entry::Plain(Rc::new(Malloc::new(&params)?))
            }
            Request::NullCreate(params) => Entry::Plain(Rc::new(Null::new(&params)?)),
            Request::UringCreate(params) => {
                // Before the file is touched.
                self.vacant(&params.name)?;
                Entry::Plain(Rc::new(Uring::open(&params).await?))
            }
            Request::DelayCreate(params) => {
                let base = self.find(&params.base_bdev_name)?.bdev();
                Entry::Delay(Rc::new(Delay::new(&params, base)))
            }
            Request::ErrorCreate(params) => {
                let base = self.find(&params.base_name)?.bdev();
                Entry::Error(Rc::new(ErrorBdev::new(&params, base)))
            }
            Request::DelayUpdateLatency(update) => {
                match self.find(&update.delay_bdev_name)? {
                    Entry::Delay(delay) => delay.set_latency(update.latency_type, update.latency_us),
                    _ => return Err(RegistryError::WrongKind { name: update.delay_bdev_name, wanted: "delay" }),
                }
                return Ok(Reply::Done);
            }
            Request::ErrorInject(inject) => {
                self.error_bdev(&inject.name)?.inject(inject);
                return Ok(Reply::Done);
            }
            Request::Delete(delete) => {
                self.remove(&delete.name)?;
                return Ok(Reply::Done);
            }
        };
        let name = entry.bdev().info().name.clone();
        self.insert(entry)?;
        Ok(Reply::Name(name))
    }

    /// Adds a device that was made elsewhere.
    pub fn add(&self, bdev: BdevRef) -> Result<(), RegistryError> {
        self.insert(Entry::Plain(bdev))
    }

    /// A device by name.
    pub fn get(&self, name: &str) -> Option<BdevRef> {
        self.entries.borrow().get(name).map(Entry::bdev)
    }

    /// The error device of a name.
    pub fn error_bdev(&self, name: &str) -> Result<Rc<ErrorBdev>, RegistryError> {
        match self.find(name)? {
            Entry::Error(bdev) => Ok(bdev),
            _ => Err(RegistryError::WrongKind { name: name.to_owned(), wanted: "error" }),
        }
    }

    /// All devices, by name.
    pub fn infos(&self) -> Vec<BdevInfo> {
        self.entries.borrow().values().map(|entry| entry.bdev().info().clone()).collect()
    }

    /// Removes a device that nothing uses.
    pub fn remove(&self, name: &str) -> Result<(), RegistryError> {
        let mut entries = self.entries.borrow_mut();
        match entries.get(name) {
            None => return Err(RegistryError::NotFound(name.to_owned())),
            Some(entry) if entry.users() > 0 => return Err(RegistryError::InUse(name.to_owned())),
            Some(_) => {}
        }
        let removed = entries.remove(name);
        drop(entries);
        drop(removed);
        Ok(())
    }

    fn find(&self, name: &str) -> Result<Entry, RegistryError> {
        self.entries.borrow().get(name).cloned().ok_or_else(|| RegistryError::NotFound(name.to_owned()))
    }

    fn vacant(&self, name: &str) -> Result<(), RegistryError> {
        if self.entries.borrow().contains_key(name) {
            return Err(RegistryError::Exists(name.to_owned()));
        }
        Ok(())
    }

    fn insert(&self, entry: Entry) -> Result<(), RegistryError> {
        let name = entry.bdev().info().name.clone();
        self.vacant(&name)?;
        self.entries.borrow_mut().insert(name, entry);
        Ok(())
    }

    fn invent(&self, kind: &str) -> String {
        loop {
            let name = format!("{kind}{}", self.unnamed.replace(self.unnamed.get() + 1));
            if self.vacant(&name).is_ok() {
                return name;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use serde_json::json;

    use super::*;

    fn execute(registry: &Registry, method: &str, params: serde_json::Value) -> Result<Reply, String> {
        let request = Request::parse(method, params).expect("a known method").map_err(|error| error.to_string())?;
        registry.execute(request).now_or_never().expect("completes at once").map_err(|error| error.to_string())
    }

    #[test]
    fn a_configuration_builds_a_stack_and_takes_it_down() {
        let registry = Registry::new();
        let malloc = json!({"num_blocks": 64, "block_size": 512, "uuid": "00112233-4455-4677-8899-aabbccddeeff"});
        assert_eq!(execute(&registry, "bdev_malloc_create", malloc).unwrap(), Reply::Name("Malloc0".to_owned()));
        assert_eq!(registry.infos()[0].uuid.to_string(), "00112233-4455-4677-8899-aabbccddeeff");
        execute(&registry, "bdev_error_create", json!({"base_name": "Malloc0"})).unwrap();
        let delay = json!({"base_bdev_name": "EE_Malloc0", "name": "D", "avg_read_latency": 1, "p99_read_latency": 2,
            "avg_write_latency": 3, "p99_write_latency": 4});
        execute(&registry, "bdev_delay_create", delay.clone()).unwrap();
        assert!(execute(&registry, "bdev_delay_create", delay).unwrap_err().contains("already"));
        let update = json!({"delay_bdev_name": "D", "latency_type": "p99_write", "latency_us": 0});
        execute(&registry, "bdev_delay_update_latency", update).unwrap();
        let inject = json!({"name": "EE_Malloc0", "io_type": "read", "error_type": "failure", "num": 1});
        execute(&registry, "bdev_error_inject_error", inject).unwrap();
        let inject = json!({"name": "Malloc0", "io_type": "read", "error_type": "failure"});
        assert!(execute(&registry, "bdev_error_inject_error", inject).unwrap_err().contains("no error device"));

        let delete = |method, name| execute(&registry, method, json!({ "name": name }));
        assert!(delete("bdev_malloc_delete", "Malloc0").unwrap_err().contains("in use"));
        assert!(delete("bdev_malloc_delete", "Malloc7").unwrap_err().contains("no bdev"));
        delete("bdev_delay_delete", "D").unwrap();
        delete("bdev_error_delete", "EE_Malloc0").unwrap();
        delete("bdev_malloc_delete", "Malloc0").unwrap();
        assert!(registry.infos().is_empty());
    }

    #[test]
    fn every_method_is_parsed_and_mistakes_name_the_parameter() {
        for method in Request::METHODS {
            let error = Request::parse(method, json!({"nonsense": 1})).expect(method).unwrap_err();
            assert!(error.to_string().contains("nonsense"), "{method}: {error}");
        }
        let aio = json!({"name": "A", "filename": "x", "readonly": true, "fallocate": true});
        let error = Request::parse("bdev_aio_create", aio).unwrap().unwrap_err();
        assert!(error.to_string().contains("readonly"));
        let aio = json!({"name": "A", "filename": "x", "readonly": false, "block_size": 512});
        assert!(matches!(Request::parse("bdev_aio_create", aio), Some(Ok(Request::UringCreate(_)))));
        assert!(Request::parse("bdev_ocf_create", json!({})).is_none());
        let registry = Registry::new();
        let error = execute(&registry, "bdev_malloc_create", json!({"num_blocks": "many", "block_size": 512}));
        assert!(error.unwrap_err().contains("many"));
        let error = execute(&registry, "bdev_malloc_create", json!({"num_blocks": 1, "block_size": 777}));
        assert!(error.unwrap_err().contains("block_size is 777"));
        let error = execute(&registry, "bdev_null_create", json!({"num_blocks": 0, "block_size": 512, "name": "N"}));
        assert!(error.unwrap_err().contains("num_blocks is 0"));
        let error = execute(&registry, "bdev_null_create", json!({"block_size": 512, "name": "N"}));
        assert!(error.unwrap_err().contains("num_blocks"));
        let error =
            execute(&registry, "bdev_malloc_create", json!({"num_blocks": 1, "block_size": 512, "uuid": "not one"}));
        assert!(error.unwrap_err().contains("not one"));
    }
}
