//! Connect: the first RPC of every session, the same for all services.

use serde::{Deserialize, Serialize};

use crate::Uuid;

/// Operation number of [`ConnectRequest`].
pub const OP_CONNECT: u16 = 0x0001;
/// Operation number of a clean goodbye (empty body): the session's state is dropped at once.
pub const OP_DISCONNECT: u16 = 0x0002;
/// Operation number of the end of replay (empty body): all locks and opens have been replayed.
pub const OP_REPLAY_DONE: u16 = 0x0003;

/// Who connects and what it can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectRequest {
    /// The client's life: made at mount, kept through reconnects.
    pub client_uuid: Uuid,
    /// Who speaks, for people: `host:pid` or a target's label.
    pub client_name: String,
    /// The filesystem meant.
    pub fsname: String,
    /// The target meant; a server that is another one answers WRONG_TARGET. `None`: an MGS.
    pub target_uuid: Option<Uuid>,
    /// Features wanted, by name; one that the server does not know is UNKNOWN_FEATURE with its name in the message.
    pub features: Vec<String>,
    /// The server incarnation that the client was last connected to; 0: never.
    pub last_incarnation: u64,
    /// Locks and opens that the client holds and will replay.
    pub will_replay: bool,
}

/// What the server is and how it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectReply {
    /// Grows with every start of the target.
    pub incarnation: u64,
    /// Whether the server still holds this client's locks and handles (same incarnation, not evicted).
    pub resumed: bool,
    /// Whether the server is in its recovery window and takes replay from this client now.
    pub recovering: bool,
    /// Last transaction on stable media.
    pub last_committed: u64,
    /// Features both know.
    pub features: Vec<String>,
    /// Largest data of one read or write, bytes.
    pub io_bytes_max: u32,
    /// Largest object this target can hold, bytes.
    pub object_bytes_max: u64,
    /// Space granted for write-behind, bytes.
    pub grant_bytes: u64,
    /// Reply slots this client may use at once (MDT).
    pub reply_slots: u32,
}
