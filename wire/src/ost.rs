//! RPCs of an OST beside the object commands and [`crate::ldlm`].

use serde::{Deserialize, Serialize};

use crate::{Fid, Uuid};

/// Operation number of [`Precreate`].
pub const OP_PRECREATE: u16 = 0x0301;
/// Operation number of [`Destroy`]; empty reply.
pub const OP_DESTROY: u16 = 0x0302;
/// Operation number of a request for [`OstStatfs`] (empty body).
pub const OP_STATFS: u16 = 0x0303;
/// Operation number of [`OpenObject`].
pub const OP_OPEN_OBJECT: u16 = 0x0304;
/// Operation number of [`SetOwner`]; empty reply.
pub const OP_SET_OWNER: u16 = 0x0305;

/// The MDT asks for objects to give to files. Idempotent: objects up to `up_to_id` exist afterwards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Precreate {
    /// The MDT; each has ids of its own.
    pub mdt_index: u16,
    /// Last object id wanted.
    pub up_to_id: u64,
    /// After an MDT restart: objects after this id that were never given to a file are destroyed. `None`: keep all.
    pub orphans_after_id: Option<u64>,
}

/// Answer to [`Precreate`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrecreateReply {
    /// Last object id that exists.
    pub last_id: u64,
}

/// Objects to remove; those already gone are no error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Destroy {
    /// The objects.
    pub objects: Vec<Fid>,
}

/// Changes the owner that an object's space is counted for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetOwner {
    /// The object.
    pub object: Fid,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Project.
    pub projid: u32,
}

/// Gets a handle without a lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenObject {
    /// The object.
    pub object: Fid,
}

/// Answer to [`OpenObject`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenObjectReply {
    /// For object commands of this session.
    pub handle: u32,
    /// The object's attributes.
    pub attr: crate::Attr,
}

/// Space of one OST.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OstStatfs {
    /// Bytes in all.
    pub total_bytes: u64,
    /// Bytes that can still be written, grants taken off.
    pub free_bytes: u64,
    /// Bytes granted to clients and not used yet.
    pub granted_bytes: u64,
    /// Objects there are.
    pub objects: u64,
    /// Which target answers.
    pub target_uuid: Uuid,
}
