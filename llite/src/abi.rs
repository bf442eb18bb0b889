//! The FUSE protocol of Linux, as far as it is spoken here: the structs that cross `/dev/fuse`, native-endian, named as
//! in `include/uapi/linux/fuse.h` (protocol 7.45) without the `fuse_` prefix. Requests are read from bytes, never
//! trusted to be long enough.

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Major version; the only one there is.
pub const MAJOR: u32 = 7;
/// Newest minor version whose messages are known here.
pub const MINOR: u32 = 45;
/// Below it INIT's answer has another form (Linux 4.20).
pub const MINOR_MIN: u32 = 28;
/// From here on the kernel takes [`NOTIFY_INC_EPOCH`] (Linux 6.16).
pub const MINOR_EPOCH: u32 = 44;
/// From here on the kernel drops cached pages after a write to an FOPEN_DIRECT_IO handle, not only before it
/// (Linux 6.14).
pub const MINOR_DIRECT_WRITE_INVALIDATES: u32 = 42;

/// "Attributes, names or pages of this inode are no longer good."
pub const NOTIFY_INVAL_INODE: i32 = 2;
/// "No name that was looked up before now is good any more."
pub const NOTIFY_INC_EPOCH: i32 = 8;

#[allow(missing_docs, reason = "FUSE_LOOKUP and so on; the header names them all")]
pub mod opcode {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const GETLK: u32 = 31;
    pub const SETLK: u32 = 32;
    pub const SETLKW: u32 = 33;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const IOCTL: u32 = 39;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const STATX: u32 = 52;
}

bitflags! {
    /// What the kernel offers and the filesystem takes, INIT `flags` below and `flags2` above bit 32.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct InitFlags: u64 {
        /// Several reads of a file at once.
        const ASYNC_READ = 1 << 0;
        /// fcntl(2) locks come here.
        const POSIX_LOCKS = 1 << 1;
        /// O_TRUNC is part of OPEN.
        const ATOMIC_O_TRUNC = 1 << 3;
        /// Writes over 4 KiB.
        const BIG_WRITES = 1 << 5;
        /// flock(2) locks come here.
        const FLOCK_LOCKS = 1 << 10;
        /// READDIRPLUS is there,
        const DO_READDIRPLUS = 1 << 13;
        /// and the kernel decides when it pays.
        const READDIRPLUS_AUTO = 1 << 14;
        /// Asynchronous direct I/O.
        const ASYNC_DIO = 1 << 15;
        /// Lookups and readdirs of one directory in parallel.
        const PARALLEL_DIROPS = 1 << 18;
        /// Reading from the device tells an abort from an unmount.
        const ABORT_ERROR = 1 << 21;
        /// `max_pages` is in INIT's answer.
        const MAX_PAGES = 1 << 22;
        /// Targets of symbolic links stay in the kernel (they never change).
        const CACHE_SYMLINKS = 1 << 23;
        /// Pages go when we say so, not when the kernel sees another mtime.
        const EXPLICIT_INVAL_DATA = 1 << 25;
        /// setuid and setgid are cleared here, when the kernel says that it is time.
        const HANDLE_KILLPRIV_V2 = 1 << 28;
        /// `flags2` is there.
        const INIT_EXT = 1 << 30;
        /// Shared mmap of a file that is open with FOPEN_DIRECT_IO.
        const DIRECT_IO_ALLOW_MMAP = 1 << 36;
        /// No file handles (NFS export): nodes cannot be found again by number.
        const NO_EXPORT_SUPPORT = 1 << 38;
    }
}

bitflags! {
    /// What SETATTR sets.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct SetattrValid: u32 {
        /// Permissions.
        const MODE = 1 << 0;
        /// Owner.
        const UID = 1 << 1;
        /// Group.
        const GID = 1 << 2;
        /// Truncation.
        const SIZE = 1 << 3;
        /// Time of access.
        const ATIME = 1 << 4;
        /// Time of modification.
        const MTIME = 1 << 5;
        /// A handle comes with it.
        const FH = 1 << 6;
        /// The time is now.
        const ATIME_NOW = 1 << 7;
        /// The time is now.
        const MTIME_NOW = 1 << 8;
        /// Time of change (only with a writeback cache).
        const CTIME = 1 << 10;
        /// Clear setuid and setgid.
        const KILL_SUIDGID = 1 << 11;
    }
}

bitflags! {
    /// Answer to OPEN.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct FopenFlags: u32 {
        /// read(2) and write(2) pass the page cache by.
        const DIRECT_IO = 1 << 0;
        /// The pages that are there stay.
        const KEEP_CACHE = 1 << 1;
        /// Several direct writes inside the file at once.
        const PARALLEL_DIRECT_WRITES = 1 << 6;
    }
}

/// WRITE comes from the page cache.
pub const WRITE_CACHE: u32 = 1 << 0;
/// WRITE clears setuid and setgid.
pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// RELEASE drops flock(2) locks of `lock_owner`.
pub const RELEASE_FLOCK_UNLOCK: u32 = 1 << 1;
/// The process that reads is told: read(2) past the page cache.
pub const READ_LOCKOWNER: u32 = 1 << 1;
/// The lock is flock(2)'s.
pub const LK_FLOCK: u32 = 1 << 0;
/// FSYNC is fdatasync(2).
pub const FSYNC_FDATASYNC: u32 = 1 << 0;

macro_rules! structs {
    ($($(#[$doc:meta])* $name:ident($size:expr) { $($(#[$field_doc:meta])* $field:ident: $kind:ty,)* })*) => { $(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        #[allow(missing_docs, reason = "fields are the kernel header's")]
        pub struct $name { $($(#[$field_doc])* pub $field: $kind,)* }
        const _: () = assert!(size_of::<$name>() == $size);
    )* };
}

structs! {
    /// Before every request.
    InHeader(40) {
        len: u32, opcode: u32, unique: u64, nodeid: u64, uid: u32, gid: u32, pid: u32,
        extension_words: u16, padding: u16,
    }
    /// Before every answer and notification. `error` is a negative errno, or the number of the notification.
    OutHeader(16) { len: u32, error: i32, unique: u64, }
    /// Attributes. Times are signed seconds in an unsigned field.
    Attr(88) {
        ino: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64, atimensec: u32, mtimensec: u32,
        ctimensec: u32, mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32, blksize: u32, flags: u32,
    }
    /// A name was found.
    EntryOut(128) {
        nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64, entry_valid_nsec: u32, attr_valid_nsec: u32,
        attr: Attr,
    }
    /// GETATTR, SETATTR.
    AttrOut(104) { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: Attr, }
    /// The kernel dropped `nlookup` references.
    ForgetIn(8) { nlookup: u64, }
    /// Several of them follow.
    BatchForgetIn(8) { count: u32, dummy: u32, }
    /// One of several.
    ForgetOne(16) { nodeid: u64, nlookup: u64, }
    /// GETATTR.
    GetattrIn(16) { getattr_flags: u32, dummy: u32, fh: u64, }
    /// SETATTR.
    SetattrIn(88) {
        valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64, atime: u64, mtime: u64, ctime: u64,
        atimensec: u32, mtimensec: u32, ctimensec: u32, mode: u32, unused4: u32, uid: u32, gid: u32, unused5: u32,
    }
    /// MKNOD; a name follows.
    MknodIn(16) { mode: u32, rdev: u32, umask: u32, padding: u32, }
    /// MKDIR; a name follows.
    MkdirIn(8) { mode: u32, umask: u32, }
    /// RENAME; two names follow.
    RenameIn(8) { newdir: u64, }
    /// RENAME2; two names follow.
    Rename2In(16) { newdir: u64, flags: u32, padding: u32, }
    /// LINK; a name follows.
    LinkIn(8) { oldnodeid: u64, }
    /// OPEN, OPENDIR.
    OpenIn(8) { flags: u32, open_flags: u32, }
    /// CREATE; a name follows.
    CreateIn(16) { flags: u32, mode: u32, umask: u32, open_flags: u32, }
    /// OPEN, OPENDIR; CREATE after an [`EntryOut`].
    OpenOut(16) { fh: u64, open_flags: u32, backing_id: u32, }
    /// RELEASE, RELEASEDIR.
    ReleaseIn(24) { fh: u64, flags: u32, release_flags: u32, lock_owner: u64, }
    /// FLUSH.
    FlushIn(24) { fh: u64, unused: u32, padding: u32, lock_owner: u64, }
    /// READ, READDIR, READDIRPLUS.
    ReadIn(40) { fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32, padding: u32, }
    /// WRITE; data follow.
    WriteIn(40) { fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32, padding: u32, }
    /// WRITE.
    WriteOut(8) { size: u32, padding: u32, }
    /// STATFS.
    StatfsOut(80) {
        blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64, bsize: u32, namelen: u32, frsize: u32,
        padding: u32, spare: [u32; 6],
    }
    /// FSYNC, FSYNCDIR.
    FsyncIn(16) { fh: u64, fsync_flags: u32, padding: u32, }
    /// SETXATTR without SETXATTR_EXT; name and value follow.
    SetxattrIn(8) { size: u32, flags: u32, }
    /// GETXATTR (a name follows), LISTXATTR.
    GetxattrIn(8) { size: u32, padding: u32, }
    /// GETXATTR, LISTXATTR with size 0.
    GetxattrOut(8) { size: u32, padding: u32, }
    /// GETLK, SETLK, SETLKW. `kind`: 0 read, 1 write, 2 unlock.
    LkIn(48) { fh: u64, owner: u64, start: u64, end: u64, kind: u32, pid: u32, lk_flags: u32, padding: u32, }
    /// GETLK.
    LkOut(24) { start: u64, end: u64, kind: u32, pid: u32, }
    /// INTERRUPT.
    InterruptIn(8) { unique: u64, }
    /// FALLOCATE.
    FallocateIn(32) { fh: u64, offset: u64, length: u64, mode: u32, padding: u32, }
    /// LSEEK.
    LseekIn(24) { fh: u64, offset: u64, whence: u32, padding: u32, }
    /// LSEEK.
    LseekOut(8) { offset: u64, }
    /// INIT; shorter from kernels without INIT_EXT.
    InitIn(16) { major: u32, minor: u32, max_readahead: u32, flags: u32, }
    /// INIT.
    InitOut(64) {
        major: u32, minor: u32, max_readahead: u32, flags: u32, max_background: u16, congestion_threshold: u16,
        max_write: u32, time_gran: u32, max_pages: u16, map_alignment: u16, flags2: u32, max_stack_depth: u32,
        request_timeout: u16, unused: [u16; 11],
    }
    /// READDIR; the name follows, and zeros up to a multiple of eight bytes.
    Dirent(24) { ino: u64, off: u64, namelen: u32, kind: u32, }
    /// STATX.
    StatxIn(24) { getattr_flags: u32, reserved: u32, fh: u64, sx_flags: u32, sx_mask: u32, }
    /// A time in STATX.
    SxTime(16) { seconds: i64, nanoseconds: u32, reserved: i32, }
    /// STATX.
    StatxOut(288) {
        attr_valid: u64, attr_valid_nsec: u32, flags: u32, spare: [u64; 2],
        mask: u32, blksize: u32, attributes: u64, nlink: u32, uid: u32, gid: u32, mode: u16, spare0: u16, ino: u64,
        size: u64, blocks: u64, attributes_mask: u64, atime: SxTime, btime: SxTime, ctime: SxTime, mtime: SxTime,
        rdev_major: u32, rdev_minor: u32, dev_major: u32, dev_minor: u32, spare2: [u64; 14],
    }
    /// NOTIFY_INVAL_INODE. `off` −1: attributes only; `len` 0: to the end.
    NotifyInvalInodeOut(24) { ino: u64, off: i64, len: i64, }
}
