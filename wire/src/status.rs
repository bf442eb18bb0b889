//! The result of a call, as it travels: one byte, the NVMe status code under status code type 7 (vendor specific).
//!
//! 1–133 are Linux error numbers, so a file operation's error reaches the application unchanged. From C0h on are the
//! protocol's own.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a call was not done. Success has no `Status`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Status(pub u8);

macro_rules! statuses {
    ($($(#[$doc:meta])* $name:ident = $number:expr;)*) => {
        impl Status {
            $($(#[$doc])* pub const $name: Status = Status($number);)*

            /// The name of a number, as in errno(3) or as below.
            pub fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($number => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

statuses! {
    /// Operation not permitted.
    EPERM = 1;
    /// No such file, directory or object.
    ENOENT = 2;
    /// Interrupted.
    EINTR = 4;
    /// The device failed.
    EIO = 5;
    /// No such device or address (SEEK_DATA past the end).
    ENXIO = 6;
    /// Bad file handle.
    EBADF = 9;
    /// Try again (a lock that may not wait).
    EAGAIN = 11;
    /// Out of memory.
    ENOMEM = 12;
    /// Permission denied.
    EACCES = 13;
    /// Busy.
    EBUSY = 16;
    /// Already exists.
    EEXIST = 17;
    /// Across filesystems.
    EXDEV = 18;
    /// Not a directory.
    ENOTDIR = 20;
    /// Is a directory.
    EISDIR = 21;
    /// Invalid argument.
    EINVAL = 22;
    /// File too large.
    EFBIG = 27;
    /// No space left.
    ENOSPC = 28;
    /// Read-only.
    EROFS = 30;
    /// Too many links.
    EMLINK = 31;
    /// Result out of range (attribute larger than the buffer).
    ERANGE = 34;
    /// A lock would deadlock.
    EDEADLK = 35;
    /// Name too long.
    ENAMETOOLONG = 36;
    /// Directory not empty.
    ENOTEMPTY = 39;
    /// Too many symbolic links.
    ELOOP = 40;
    /// No such extended attribute.
    ENODATA = 61;
    /// The protocol was violated.
    EPROTO = 71;
    /// Stored data fails its checksum.
    EBADMSG = 74;
    /// Value too large.
    EOVERFLOW = 75;
    /// Not supported.
    EOPNOTSUPP = 95;
    /// The target is gone.
    ESHUTDOWN = 108;
    /// Nobody answered in time.
    ETIMEDOUT = 110;
    /// The handle or layout is out of date.
    ESTALE = 116;
    /// Over quota.
    EDQUOT = 122;

    /// The lock is not granted yet; the grant arrives as an event.
    WAIT = 0xC0;
    /// The server does not know this session (never connected, or evicted): connect again, locks are gone.
    NO_SESSION = 0xC1;
    /// The request was made under a cluster map older than the one needed.
    STALE_MAP = 0xC2;
    /// This target is another one than the request means.
    WRONG_TARGET = 0xC3;
    /// The target is recovering; only replay is taken now.
    RECOVERING = 0xC4;
    /// The reply is larger than the caller's buffer; the result holds the size needed.
    REPLY_TOO_LARGE = 0xC5;
    /// The operation is not known here.
    UNKNOWN_OPERATION = 0xC6;
    /// The message could not be decoded.
    MALFORMED = 0xC7;
    /// A feature asked for at connect is not known here.
    UNKNOWN_FEATURE = 0xC8;
    /// The lock named by the request is not held.
    NO_LOCK = 0xC9;
    /// The file's layout has changed since the caller read it.
    STALE_LAYOUT = 0xCA;
}

impl Status {
    /// The error number an application sees (positive).
    pub fn errno(self) -> i32 {
        match self {
            Status(number) if number <= 133 => i32::from(number),
            Status::NO_SESSION | Status::NO_LOCK | Status::STALE_LAYOUT | Status::STALE_MAP => {
                i32::from(Status::ESTALE.0)
            }
            Status::WAIT | Status::RECOVERING => i32::from(Status::EAGAIN.0),
            _ => i32::from(Status::EPROTO.0),
        }
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "Status({})", self.0),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl std::error::Error for Status {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_an_errno() {
        for number in 1..=255 {
            let errno = Status(number).errno();
            assert!((1..=133).contains(&errno), "{number} gives {errno}");
        }
        assert_eq!(Status::ENOENT.errno(), 2);
        assert_eq!(Status::NO_SESSION.errno(), 116);
    }
}
