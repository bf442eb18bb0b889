//! What a mount can do: the interface between the client and the views on it.
//!
//! Times of changes come from the client's environment. Errors are [`Status`]; what reaches an application is
//! [`Status::errno`]. Every call may be dropped: what it has sent runs on, and nothing half-done stays in the caches.

use std::ops::Range;

use nacre_reactor::Bytes;
use nacre_wire::layout::StripeHint;
use nacre_wire::mdt::{Cred, OpenFlags, RenameFlags};
use nacre_wire::{Attr, AttrPatch, Fid, Layout, Status};

/// An inode as a view sees it: attributes merged from MDT and OSTs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Which.
    pub fid: Fid,
    /// True size, blocks and times.
    pub attr: Attr,
    /// The client holds locks under which a kernel may keep the attributes until [`KernelCache::invalidate_attr`].
    pub keep_attr: bool,
    /// Likewise for the name, until [`KernelCache::invalidate_names`].
    pub keep_name: bool,
}

/// How to open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenMode {
    /// Read, write, truncate, execute.
    pub flags: OpenFlags,
    /// O_APPEND: every write goes to the end, wherever that is by then.
    pub append: bool,
    /// O_DIRECT: no caching of this handle's data in the client.
    pub direct: bool,
    /// O_SYNC or O_DSYNC: a write is on stable media when it completes.
    pub sync: bool,
}

impl OpenMode {
    /// Whether mmap(2) takes it for MAP_SHARED with PROT_WRITE.
    pub fn can_map_for_writing(self) -> bool {
        self.flags.contains(OpenFlags::READ | OpenFlags::WRITE)
    }
}

/// An open file of this mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HandleId(pub u64);

/// Answer to open and create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// For read, write, close.
    pub handle: HandleId,
    /// The inode.
    pub entry: Entry,
    /// A kernel may keep pages it has from before: nothing has changed since, and
    /// [`KernelCache::invalidate_data`] will tell.
    pub keep_data: bool,
}

/// Flags of one write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteMode {
    /// Comes from a page cache (mmap): the offset holds even if the handle appends, privileges are not cleared.
    pub from_cache: bool,
    /// Clear setuid/setgid.
    pub kill_privileges: bool,
}

/// fallocate(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpaceMode {
    /// Reserve.
    Allocate {
        /// FALLOC_FL_KEEP_SIZE.
        keep_size: bool,
    },
    /// Give back; reads zeros.
    Punch,
    /// Reserve; reads zeros.
    Zero {
        /// FALLOC_FL_KEEP_SIZE.
        keep_size: bool,
    },
}

/// One name of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// Read on after it with this.
    pub cookie: u64,
    /// The name; `.` and `..` are among them, with cookies 1 and 2.
    pub name: Vec<u8>,
    /// The inode.
    pub fid: Fid,
    /// Type bits of mode.
    pub kind: u32,
    /// With `plus`, where it is known: everything.
    pub entry: Option<Entry>,
}

/// Who holds a file lock: a process (POSIX) or an open file (BSD, OFD), as the kernel numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LockOwner(pub u64);

/// A file lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockRange {
    /// First byte.
    pub start: u64,
    /// Last byte; `u64::MAX`: the end of everything.
    pub end: u64,
    /// F_WRLCK, F_RDLCK; `None`: F_UNLCK.
    pub exclusive: Option<bool>,
    /// Process, for F_GETLK.
    pub pid: u32,
    /// flock(2), which fcntl(2) locks do not see.
    pub bsd: bool,
}

/// statfs(2), bytes and inodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MountStatfs {
    /// Of all OSTs.
    pub total_bytes: u64,
    /// Of all OSTs.
    pub free_bytes: u64,
    /// Inodes in use and free together.
    pub inodes: u64,
    /// Inodes free.
    pub inodes_free: u64,
}

/// Caches above the client that live under the client's locks. A lock is given back only after these complete.
/// Must not wait for calls into [`FileSystem`] of the same mount other than those they cause themselves (write-back).
#[allow(async_fn_in_trait, reason = "one reactor; never sent between threads")]
pub trait KernelCache {
    /// Forget the attributes of an inode.
    async fn invalidate_attr(&self, fid: Fid);
    /// Write back and forget data in a byte range, and the attributes.
    ///
    /// A kernel waits here for pages that are just being read or written back ([`FileSystem::read`], and
    /// [`FileSystem::write`] with [`WriteMode::from_cache`]). So until this completes, such calls for the range go on
    /// under the lock that is about to be given up: they must not wait for a new one, which would wait for this. A read
    /// that used the old lock completes before this does; what it filled is dropped again.
    async fn invalidate_data(&self, fid: Fid, range: Range<u64>);
    /// Ask again for every name (a name went or changed its meaning somewhere).
    async fn invalidate_names(&self);
}

/// A mounted filesystem.
#[allow(async_fn_in_trait, reason = "one reactor; never sent between threads")]
pub trait FileSystem {
    /// The directory that was mounted (a subdirectory mount has another than [`Fid::ROOT`]).
    fn root(&self) -> Fid;
    /// Largest file, bytes, for O_LARGEFILE limits and EFBIG.
    fn file_bytes_max(&self) -> u64;

    /// ENOENT where there is no such name; `Ok(None)` where that may be cached as well.
    async fn lookup(&self, parent: Fid, name: &[u8]) -> Result<Option<Entry>, Status>;
    /// Attributes.
    async fn getattr(&self, fid: Fid) -> Result<Entry, Status>;
    /// Attributes and, with `size`, truncation. A handle, where there is one, gives the right to truncate.
    async fn setattr(
        &self,
        cred: &Cred,
        fid: Fid,
        patch: AttrPatch,
        handle: Option<HandleId>,
        kill_privileges: bool,
    ) -> Result<Entry, Status>;
    /// New regular file, not opened.
    async fn mknod(&self, cred: &Cred, parent: Fid, name: &[u8], mode: u32, rdev: u64) -> Result<Entry, Status>;
    /// New directory.
    async fn mkdir(&self, cred: &Cred, parent: Fid, name: &[u8], mode: u32) -> Result<Entry, Status>;
    /// New symbolic link.
    async fn symlink(&self, cred: &Cred, parent: Fid, name: &[u8], target: &[u8]) -> Result<Entry, Status>;
    /// Its target.
    async fn readlink(&self, fid: Fid) -> Result<Vec<u8>, Status>;
    /// Another name.
    async fn link(&self, cred: &Cred, fid: Fid, parent: Fid, name: &[u8]) -> Result<Entry, Status>;
    /// Removes a name (`directory`: rmdir).
    async fn unlink(&self, cred: &Cred, parent: Fid, name: &[u8], directory: bool) -> Result<(), Status>;
    /// Moves a name.
    async fn rename(
        &self,
        cred: &Cred,
        parent: Fid,
        name: &[u8],
        new_parent: Fid,
        new_name: &[u8],
        flags: RenameFlags,
    ) -> Result<(), Status>;

    /// Makes (or, without `exclusive`, finds) and opens.
    async fn create(
        &self,
        cred: &Cred,
        parent: Fid,
        name: &[u8],
        mode: u32,
        exclusive: bool,
        open: OpenMode,
    ) -> Result<Opened, Status>;
    /// Opens a file or directory.
    async fn open(&self, cred: &Cred, fid: Fid, mode: OpenMode) -> Result<Opened, Status>;
    /// close(2) of one descriptor: reports errors of earlier write-back (what is dirty goes out in the background); POSIX locks
    /// of the owner go.
    async fn flush(&self, handle: HandleId, owner: LockOwner) -> Result<(), Status>;
    /// The last descriptor went. `bsd_owner`: flock(2) locks of this owner go.
    async fn release(&self, handle: HandleId, bsd_owner: Option<LockOwner>) -> Result<(), Status>;
    /// Data and attributes on stable media (`data_only`: fdatasync).
    async fn fsync(&self, handle: HandleId, data_only: bool) -> Result<(), Status>;
    /// Directory changes on stable media.
    async fn fsync_dir(&self, fid: Fid) -> Result<(), Status>;
    /// Bytes, in order; fewer than asked only at the end of the file.
    async fn read(&self, handle: HandleId, offset: u64, length: usize) -> Result<Vec<Bytes>, Status>;
    /// As [`FileSystem::read`], into a kernel's page cache. Where the file is open for reading and writing, it may be
    /// mapped, and such a page becomes dirty without a word; so it is read under a write lock then. Others see what is
    /// stored there as they see what is written.
    async fn read_page(&self, handle: HandleId, offset: u64, length: usize) -> Result<Vec<Bytes>, Status> {
        self.read(handle, offset, length).await
    }
    /// Takes all bytes or fails.
    async fn write(
        &self,
        cred: &Cred,
        handle: HandleId,
        offset: u64,
        data: Bytes,
        mode: WriteMode,
    ) -> Result<(), Status>;
    /// fallocate(2).
    async fn space(&self, handle: HandleId, range: Range<u64>, mode: SpaceMode) -> Result<(), Status>;
    /// lseek(2) with SEEK_DATA (`hole` false) or SEEK_HOLE; ENXIO past the end.
    async fn seek(&self, handle: HandleId, offset: u64, hole: bool) -> Result<u64, Status>;

    /// Names after `after` (0: from the start), about `bytes_max` bytes of them; empty at the end.
    async fn readdir(&self, fid: Fid, after: u64, bytes_max: u32, plus: bool) -> Result<Vec<DirEntry>, Status>;

    /// One extended attribute.
    async fn getxattr(&self, cred: &Cred, fid: Fid, name: &[u8]) -> Result<Vec<u8>, Status>;
    /// Names of all.
    async fn listxattr(&self, cred: &Cred, fid: Fid) -> Result<Vec<Vec<u8>>, Status>;
    /// Sets; `create` and `replace` as in setxattr(2).
    async fn setxattr(
        &self,
        cred: &Cred,
        fid: Fid,
        name: &[u8],
        value: &[u8],
        create: bool,
        replace: bool,
    ) -> Result<(), Status>;
    /// Removes.
    async fn removexattr(&self, cred: &Cred, fid: Fid, name: &[u8]) -> Result<(), Status>;

    /// F_GETLK: the lock in the way.
    async fn test_lock(&self, fid: Fid, owner: LockOwner, lock: LockRange) -> Result<Option<LockRange>, Status>;
    /// F_SETLK, F_SETLKW (`wait`), flock. Dropping the call while it waits gives up.
    async fn set_lock(&self, fid: Fid, owner: LockOwner, lock: LockRange, wait: bool) -> Result<(), Status>;

    /// Space of the whole filesystem.
    async fn statfs(&self) -> Result<MountStatfs, Status>;

    /// Layout of a file (`None`: no objects yet).
    async fn layout(&self, fid: Fid) -> Result<Option<Layout>, Status>;
    /// Default striping of a directory.
    async fn stripe_default(&self, fid: Fid) -> Result<StripeHint, Status>;
    /// `lfs setstripe` on a directory or on a file without objects.
    async fn set_stripe(&self, cred: &Cred, fid: Fid, hint: StripeHint) -> Result<(), Status>;
    /// `lfs fid2path`.
    async fn fid_to_path(&self, fid: Fid) -> Result<Vec<Vec<u8>>, Status>;
}
