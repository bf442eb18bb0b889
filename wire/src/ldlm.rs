//! Locks on the wire: modes, policies, requests, and the events that servers send.

use bitflags::bitflags;
use serde::{Deserialize, Serialize};

use crate::{Attr, Fid};

/// Operation number of [`Enqueue`] (MDT and OST).
pub const OP_ENQUEUE: u16 = 0x0401;
/// Operation number of [`Cancel`]; empty reply.
pub const OP_CANCEL: u16 = 0x0402;
/// Operation number of [`ReplayLocks`]; empty reply.
pub const OP_REPLAY_LOCKS: u16 = 0x0403;
/// Operation number of [`GlimpseReply`]; empty reply.
pub const OP_GLIMPSE_REPLY: u16 = 0x0404;

/// Lock modes as in VAX/VMS and Lustre.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Mode {
    /// Null: holds a place, conflicts with nothing.
    Nl,
    /// Concurrent read.
    Cr,
    /// Concurrent write.
    Cw,
    /// Protected read.
    Pr,
    /// Protected write.
    Pw,
    /// Exclusive.
    Ex,
}

bitflags! {
    /// What an inode-bit lock protects.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
    pub struct Ibits: u32 {
        /// The names under which the inode is known.
        const LOOKUP = 1;
        /// Attributes; of a directory also its entries.
        const UPDATE = 2;
        /// Open state.
        const OPEN = 4;
        /// The layout.
        const LAYOUT = 8;
        /// Owner, group, mode.
        const PERM = 16;
        /// Extended attributes.
        const XATTR = 32;
    }
}

/// What a lock covers within its resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Policy {
    /// The whole resource.
    Plain,
    /// Bytes `start..=end` of an object (inclusive, as in Lustre; `u64::MAX` is the end of everything).
    Extent {
        /// First byte.
        start: u64,
        /// Last byte.
        end: u64,
    },
    /// Parts of an inode.
    Ibits(Ibits),
    /// POSIX or BSD lock of one owner on bytes `start..=end`.
    Flock {
        /// Who holds it, within the client: the kernel's lock owner.
        owner: u64,
        /// First byte.
        start: u64,
        /// Last byte.
        end: u64,
        /// Process, for F_GETLK.
        pid: u32,
        /// flock(2) locks and fcntl(2) locks do not see each other.
        bsd: bool,
    },
}

bitflags! {
    /// How to enqueue.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
    pub struct EnqueueFlags: u32 {
        /// EAGAIN instead of waiting; conflicting holders are not asked to give way.
        const NOWAIT = 1;
        /// Report the conflict, grant nothing (F_GETLK).
        const TEST = 2;
        /// Attributes are wanted rather than the lock: grant it only if nobody is in the way, ask holders of write
        /// locks for their size and times otherwise (glimpse).
        const GLIMPSE = 4;
        /// Do not grow the extent.
        const EXACT = 8;
    }
}

/// Asks for a lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enqueue {
    /// The inode or object.
    pub resource: Fid,
    /// Strength.
    pub mode: Mode,
    /// Extent of it.
    pub policy: Policy,
    /// How.
    pub flags: EnqueueFlags,
    /// A conversion: this lock of the same client is given back as the new one is granted. 0: none.
    pub replaces: u64,
}

/// The lock as granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Granted {
    /// Names the lock at this target. 0: none was granted (glimpse, test).
    pub cookie: u64,
    /// Strength granted.
    pub mode: Mode,
    /// Extent granted; may be larger than asked.
    pub policy: Policy,
}

/// Answer to [`Enqueue`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnqueueReply {
    /// The lock, or the holder found by TEST. With status WAIT in [`EnqueueReply::waiting`] its cookie is valid and its
    /// grant follows as [`Event::Granted`].
    pub granted: Granted,
    /// The lock is queued.
    pub waiting: bool,
    /// OST: session handle of the object for object commands.
    pub handle: u32,
    /// Attributes as the server knows them (lock value block).
    pub attr: Option<Attr>,
    /// OST: space granted so far to this session, bytes.
    pub grant_bytes: u64,
}

/// Gives locks back. Dirty data has been written before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancel {
    /// The locks. Unknown ones are ignored: the server may have forgotten them first.
    pub cookies: Vec<u64>,
}

/// Locks that a client held when the server went away; granted without asking anybody.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayLocks {
    /// Each lock under the cookie that the client knows.
    pub locks: Vec<(Fid, Granted)>,
}

/// Answer to [`Event::Glimpse`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GlimpseReply {
    /// The lock asked about.
    pub cookie: u64,
    /// What the client knows better: size and times of what it has not written yet. `None`: nothing.
    pub attr: Option<Attr>,
}

/// What a server tells a client unasked, in order. EVENT_WAIT's data is a batch: [`EventBatch`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// Somebody wants what conflicts with this lock: write back, invalidate, cancel (blocking callback).
    Revoke {
        /// The lock.
        cookie: u64,
        /// Its resource.
        resource: Fid,
        /// What is wanted.
        wanted: Mode,
    },
    /// A lock that was waited for (completion callback).
    Granted {
        /// As granted.
        lock: Granted,
        /// Its resource.
        resource: Fid,
        /// Attributes at the time of the grant.
        attr: Option<Attr>,
    },
    /// A lock that was waited for will never come (the resource is gone, a deadlock, shutdown).
    Refused {
        /// The lock.
        cookie: u64,
        /// Why.
        status: crate::Status,
    },
    /// Tell size and times of what is not written yet ([`GlimpseReply`]).
    Glimpse {
        /// A write lock of the client.
        cookie: u64,
        /// Its resource.
        resource: Fid,
    },
    /// The cluster map has a new epoch (MGS).
    MapChanged {
        /// The new epoch.
        epoch: u64,
    },
}

/// Events as they travel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventBatch {
    /// Number of the first event; the next batch goes on from here. The host acknowledges the last it has seen.
    pub first_sequence: u64,
    /// In order.
    pub events: Vec<Event>,
}
