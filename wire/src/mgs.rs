//! RPCs of the MGS.

use serde::{Deserialize, Serialize};

use crate::map::TargetKind;
use crate::{ClusterMap, Nid, Uuid};

/// Operation number of [`GetMap`]; reply [`ClusterMap`].
pub const OP_GET_MAP: u16 = 0x0101;
/// Operation number of [`Register`].
pub const OP_REGISTER: u16 = 0x0102;
/// Operation number of [`SetParam`]; empty reply.
pub const OP_SET_PARAM: u16 = 0x0103;
/// Operation number of [`GetParams`].
pub const OP_GET_PARAMS: u16 = 0x0104;
/// Operation number of a request for the names of all filesystems (empty body): `Vec<String>`.
pub const OP_LIST_FILESYSTEMS: u16 = 0x0105;

/// Asks for the map. With `newer_than`, changes are announced by [`crate::ldlm::Event::MapChanged`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetMap {
    /// The filesystem.
    pub fsname: String,
}

/// A target that starts tells who it is; repeating it changes nothing but incarnation and NIDs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Register {
    /// The filesystem.
    pub fsname: String,
    /// The filesystem's identity, once known to the target.
    pub fs_uuid: Option<Uuid>,
    /// The target's identity.
    pub target_uuid: Uuid,
    /// What it is.
    pub kind: TargetKind,
    /// The index it has or wants; `None`: any.
    pub index: Option<u16>,
    /// Where it listens.
    pub nids: Vec<Nid>,
    /// Of this start.
    pub incarnation: u64,
}

/// Answer to [`Register`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RegisterReply {
    /// Welcome.
    Registered {
        /// The filesystem's identity: the target keeps it.
        fs_uuid: Uuid,
        /// The target's index: kept too.
        index: u16,
        /// The map that has it.
        map: ClusterMap,
    },
    /// No, and why, for people.
    Refused(String),
}

/// Sets (or, without a value, unsets) a permanent parameter of one filesystem, `lctl set_param -P`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetParam {
    /// The filesystem.
    pub fsname: String,
    /// Its full name.
    pub name: String,
    /// Its value as text; validated by who declared it.
    pub value: Option<String>,
}

/// Asks for all permanent parameters of a filesystem; reply: `Vec<(String, String)>`, by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetParams {
    /// The filesystem.
    pub fsname: String,
}

/// Who a target is: written by mkfs into the label area of the device, read before anything else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetLabel {
    /// The filesystem.
    pub fsname: String,
    /// What it is.
    pub kind: TargetKind,
    /// Index; `None` until registered.
    pub index: Option<u16>,
    /// Made by mkfs.
    pub target_uuid: Uuid,
    /// Learnt at registration.
    pub fs_uuid: Option<Uuid>,
    /// Where the MGS is.
    pub mgs_nids: Vec<Nid>,
}
