//! Calls of an MGS.

use std::rc::Rc;

use nacre_wire::ClusterMap;
use nacre_wire::mgs::{
    GetMap, GetParams, OP_GET_MAP, OP_GET_PARAMS, OP_LIST_FILESYSTEMS, OP_REGISTER, OP_SET_PARAM, Register,
    RegisterReply, SetParam,
};

use super::REPLY_SMALL_BYTES;
use crate::host::{Import, ImportError};

/// Calls an MGS.
#[derive(Clone)]
pub struct MgsClient {
    /// What the calls go through.
    pub import: Rc<Import>,
}

impl MgsClient {
    /// The map of a filesystem; ENOENT.
    pub async fn map(&self, fsname: &str) -> Result<ClusterMap, ImportError> {
        self.import.ask(OP_GET_MAP, &GetMap { fsname: fsname.to_owned() }, REPLY_SMALL_BYTES).await
    }

    /// Announces a target.
    pub async fn register(&self, request: &Register) -> Result<RegisterReply, ImportError> {
        self.import.ask(OP_REGISTER, request, REPLY_SMALL_BYTES).await
    }

    /// Sets or unsets a permanent parameter.
    pub async fn set_param(&self, request: &SetParam) -> Result<(), ImportError> {
        self.import.ask(OP_SET_PARAM, request, 0).await
    }

    /// All permanent parameters of a filesystem, by name.
    pub async fn params(&self, fsname: &str) -> Result<Vec<(String, String)>, ImportError> {
        self.import.ask(OP_GET_PARAMS, &GetParams { fsname: fsname.to_owned() }, REPLY_SMALL_BYTES).await
    }

    /// Names of all filesystems.
    pub async fn filesystems(&self) -> Result<Vec<String>, ImportError> {
        self.import.ask(OP_LIST_FILESYSTEMS, &(), REPLY_SMALL_BYTES).await
    }
}
