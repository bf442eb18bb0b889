//! Attributes of files and objects: one struct for both, because an OST object carries the owner and the times of the
//! stripe it holds (accounting, merging) and an MDT inode carries everything else.

use serde::{Deserialize, Serialize};

/// A point in wall-clock time, as in `struct timespec`. Ordered; negative seconds are before 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Time {
    /// Seconds since the epoch.
    pub seconds: i64,
    /// 0..1 000 000 000, always counted forward.
    pub nanoseconds: u32,
}

impl Time {
    /// Nanoseconds since the epoch, 0 before it; saturates in the year 2554.
    pub fn to_ns(self) -> u64 {
        let seconds = u64::try_from(self.seconds).unwrap_or(0);
        seconds.saturating_mul(1_000_000_000).saturating_add(u64::from(self.nanoseconds))
    }

    /// Inverse of [`Time::to_ns`].
    pub fn from_ns(ns: u64) -> Time {
        Time { seconds: (ns / 1_000_000_000) as i64, nanoseconds: (ns % 1_000_000_000) as u32 }
    }
}

/// File type bits of `mode` (`<sys/stat.h>`).
pub mod mode {
    /// Mask of the type.
    pub const TYPE: u32 = 0o170_000;
    /// Regular file.
    pub const FILE: u32 = 0o100_000;
    /// Directory.
    pub const DIR: u32 = 0o040_000;
    /// Symbolic link.
    pub const SYMLINK: u32 = 0o120_000;
    /// FIFO.
    pub const FIFO: u32 = 0o010_000;
    /// Socket.
    pub const SOCKET: u32 = 0o140_000;
    /// Character device.
    pub const CHAR: u32 = 0o020_000;
    /// Block device.
    pub const BLOCK: u32 = 0o060_000;
    /// Set user id.
    pub const SETUID: u32 = 0o4000;
    /// Set group id.
    pub const SETGID: u32 = 0o2000;
    /// Sticky.
    pub const STICKY: u32 = 0o1000;
}

/// Attributes of one inode (MDT) or object (OST).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attr {
    /// Type and permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Project, for accounting.
    pub projid: u32,
    /// Hard links (directories: 2 + subdirectories).
    pub nlink: u32,
    /// Inode flags.
    pub flags: u32,
    /// Device number of character and block devices, as in `dev_t`. On an MDT inode of a regular file: when `mtime` was
    /// last set there on purpose (create, utimens, O_TRUNC), [`Time::to_ns`]; link, rename, chmod and xattrs leave it. A
    /// client that merges times needs it, because those move `ctime` and say nothing about `mtime`.
    pub rdev: u64,
    /// Bytes. On an MDT inode of a striped file: a hint only, the OSTs know.
    pub size: u64,
    /// Bytes of space taken. Kept by the store, not settable.
    pub allocated_bytes: u64,
    /// Last read.
    pub atime: Time,
    /// Last change of contents.
    pub mtime: Time,
    /// Last change of anything.
    pub ctime: Time,
    /// Creation.
    pub btime: Time,
    /// Transaction that last changed this object (version-based recovery).
    pub version: u64,
}

/// A change of attributes; `None` leaves the field as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttrPatch {
    /// Type and permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Project.
    pub projid: Option<u32>,
    /// Hard links.
    pub nlink: Option<u32>,
    /// Inode flags.
    pub flags: Option<u32>,
    /// See [`Attr::rdev`]. Kept by the MDT; refused from clients.
    pub rdev: Option<u64>,
    /// Bytes; sets the recorded size only. Cutting data off is a truncate.
    pub size: Option<u64>,
    /// Last read.
    pub atime: Option<Time>,
    /// Last change of contents.
    pub mtime: Option<Time>,
    /// Last change of anything.
    pub ctime: Option<Time>,
}

impl Attr {
    /// Whether the type bits say directory.
    pub fn is_dir(&self) -> bool {
        self.mode & mode::TYPE == mode::DIR
    }

    /// Whether the type bits say regular file.
    pub fn is_file(&self) -> bool {
        self.mode & mode::TYPE == mode::FILE
    }

    /// Applies a change.
    pub fn apply(&mut self, patch: &AttrPatch) {
        macro_rules! take {
            ($($field:ident),*) => { $(if let Some(value) = patch.$field { self.$field = value; })* };
        }
        take!(mode, uid, gid, projid, nlink, flags, rdev, size, atime, mtime, ctime);
    }
}
