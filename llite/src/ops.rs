//! Every request to its call: what the kernel says in FUSE, said to [`FileSystem`], and the answer back.
//!
//! Permissions were checked by the kernel (`default_permissions`), the umask is applied. Handles open for writing pass
//! the kernel's page cache by (FOPEN_DIRECT_IO): through it, a write would hold a page locked while it waits for a lock
//! that another client gives up only after this one dropped that page. Nothing is lost by that, because without a
//! writeback cache every write(2) comes here anyway, and it saves a copy. Such files can still be mapped.

use nacre_client::{FileSystem, HandleId, LockOwner, LockRange, OpenMode, Opened, SpaceMode, WriteMode};
use nacre_reactor::{Bytes, Env};
use nacre_wire::attr::mode;
use nacre_wire::mdt::{Cred, OpenFlags, RenameFlags};
use nacre_wire::{AttrPatch, Status, Time};
use rustix::fs::OFlags;
use zerocopy::IntoBytes;

use crate::abi::{self, FopenFlags, InHeader, InitFlags, SetattrValid};
use crate::request::Request;
use crate::session::{Answer, FOREVER_SECONDS, Session, attr};
use crate::signal;

impl<F: FileSystem + 'static> Session<F> {
    /// Answers one request.
    pub(crate) async fn serve(&self, header: &InHeader, request: Request, data: Bytes) -> Result<Answer, Status> {
        let changes = request.changes();
        let outcome = match request {
            Request::Read(read) => self.read(header.nodeid, &read).await,
            Request::Write(write) => self.write(header, &write, data).await,
            request => self.serve_as_member(header, &request).await,
        };
        if changes {
            // Also after a failure: it may have happened all the same.
            self.kernel.changed();
        }
        outcome
    }

    /// FUSE tells no supplementary groups, and asking for them costs more than most calls. So they are asked for where
    /// the server, which checks permissions as well, refuses without them what the kernel has allowed, and where it would
    /// silently take a setgid away that only members give.
    async fn serve_as_member(&self, header: &InHeader, request: &Request) -> Result<Answer, Status> {
        let mut cred = cred(header);
        if cred.uid != 0 && request.gives_setgid() {
            cred.groups = signal::groups(header.pid);
        }
        let outcome = self.serve_names(header, request, &cred).await;
        let refused = matches!(outcome, Err(Status::EACCES | Status::EPERM));
        if refused && cred.uid != 0 && cred.groups.is_empty() {
            cred.groups = signal::groups(header.pid);
            if !cred.groups.is_empty() {
                return self.serve_names(header, request, &cred).await;
            }
        }
        outcome
    }

    async fn serve_names(&self, header: &InHeader, request: &Request, cred: &Cred) -> Result<Answer, Status> {
        let fid = self.fid(header.nodeid);
        let done = |()| Answer::default();
        match request {
            Request::Lookup(name) => match self.fs.lookup(fid, name).await? {
                Some(entry) => Ok(self.entry(&entry)),
                None if self.keeps_names() => {
                    let nothing = abi::EntryOut { entry_valid: FOREVER_SECONDS, ..abi::EntryOut::default() };
                    Ok(Answer::fixed(&nothing))
                }
                None => Err(Status::ENOENT),
            },
            Request::Getattr => Ok(Answer::fixed(&self.attr_out(&self.fs.getattr(fid).await?))),
            Request::Statx => Ok(Answer::fixed(&self.statx(&self.fs.getattr(fid).await?))),
            Request::Setattr(set) => self.setattr(header, cred, set).await,
            Request::Readlink => {
                let target = self.fs.readlink(fid).await?;
                Ok(Answer { fixed: target, ..Answer::default() })
            }
            Request::Symlink(name, target) => Ok(self.entry(&self.fs.symlink(cred, fid, name, target).await?)),
            Request::Mknod(node, name) => {
                let entry = self.fs.mknod(cred, fid, name, node.mode, u64::from(node.rdev)).await?;
                Ok(self.entry(&entry))
            }
            Request::Mkdir(node, name) => {
                let entry = self.fs.mkdir(cred, fid, name, mode::DIR | node.mode & 0o7777).await?;
                Ok(self.entry(&entry))
            }
            Request::Unlink { name, directory } => self.fs.unlink(cred, fid, name, *directory).await.map(done),
            Request::Rename(rename, old, new) => {
                let flags = RenameFlags::from_bits(rename.flags).ok_or(Status::EINVAL)?;
                self.fs.rename(cred, fid, old, self.fid(rename.newdir), new, flags).await.map(done)
            }
            Request::Link(link, name) => {
                let entry = self.fs.link(cred, self.fid(link.oldnodeid), fid, name).await?;
                Ok(self.entry(&entry))
            }
            Request::Open(open) => {
                let opened = self.fs.open(cred, fid, open_mode(open.flags)).await?;
                Ok(self.opened(Answer::default(), &opened, open.flags))
            }
            Request::Create(create, name) => {
                let exclusive = OFlags::from_bits_retain(create.flags).contains(OFlags::EXCL);
                let mode = mode::FILE | create.mode & 0o7777;
                let opened = self.fs.create(cred, fid, name, mode, exclusive, open_mode(create.flags)).await?;
                Ok(self.opened(self.entry(&opened.entry), &opened, create.flags))
            }
            Request::Release(release) => {
                let owner = release.release_flags & abi::RELEASE_FLOCK_UNLOCK != 0;
                let owner = owner.then_some(LockOwner(release.lock_owner));
                self.flushes.wait(release.fh).await;
                self.fs.release(HandleId(release.fh), owner).await.map(done)
            }
            Request::Flush(flush) => {
                let call = self.fs.flush(HandleId(flush.fh), LockOwner(flush.lock_owner));
                self.flushes.run(flush.fh, call).await.map(done)
            }
            Request::Fsync(fsync) => {
                let data_only = fsync.fsync_flags & abi::FSYNC_FDATASYNC != 0;
                self.fs.fsync(HandleId(fsync.fh), data_only).await.map(done)
            }
            Request::Fsyncdir => self.fs.fsync_dir(fid).await.map(done),
            Request::Opendir => {
                let open = abi::OpenOut { fh: self.dirs.open(), ..abi::OpenOut::default() };
                Ok(Answer::fixed(&open))
            }
            Request::Readdir { read, plus } => self.readdir(fid, read, *plus).await,
            Request::Releasedir(release) => {
                self.dirs.close(release.fh);
                Ok(Answer::default())
            }
            Request::Statfs => self.statfs().await,
            Request::Setxattr(set, name, value) => {
                if crate::control::is_control(name) {
                    return self.control_set(cred, fid, name, value).await.map(done);
                }
                let (create, replace) = (set.flags & XATTR_CREATE != 0, set.flags & XATTR_REPLACE != 0);
                self.fs.setxattr(cred, fid, name, value, create, replace).await.map(done)
            }
            Request::Getxattr(get, name) => {
                let value = if crate::control::is_control(name) {
                    self.control_get(fid, name).await?
                } else {
                    self.fs.getxattr(cred, fid, name).await?
                };
                sized(value, get.size)
            }
            Request::Listxattr(list) => {
                let mut names = self.fs.listxattr(cred, fid).await?;
                names.iter_mut().for_each(|name| name.push(0));
                sized(names.concat(), list.size)
            }
            Request::Removexattr(name) if crate::control::is_control(name) => Err(Status::EPERM),
            Request::Removexattr(name) => self.fs.removexattr(cred, fid, name).await.map(done),
            Request::Getlk(lock) => {
                let found = self.fs.test_lock(fid, LockOwner(lock.owner), lock_range(lock)?).await?;
                Ok(Answer::fixed(&lock_out(found)))
            }
            Request::Setlk { lock, wait } => {
                self.fs.set_lock(fid, LockOwner(lock.owner), lock_range(lock)?, *wait).await.map(done)
            }
            Request::Fallocate(space) => self.fallocate(header, cred, space).await.map(done),
            Request::Lseek(seek) => {
                let hole = match seek.whence {
                    SEEK_DATA => false,
                    SEEK_HOLE => true,
                    _ => return Err(Status::EINVAL),
                };
                let offset = self.fs.seek(HandleId(seek.fh), seek.offset, hole).await?;
                Ok(Answer::fixed(&abi::LseekOut { offset }))
            }
            Request::Ioctl => Err(ENOTTY),
            // Answered before it comes here.
            Request::Read(_) | Request::Write(_) | Request::Init(..) | Request::Interrupt(_) | Request::Destroy => {
                Err(Status::EIO)
            }
        }
    }

    fn entry(&self, entry: &nacre_client::Entry) -> Answer {
        let out = self.entry_out(entry);
        Answer { references: vec![out.nodeid], ..Answer::fixed(&out) }
    }

    fn opened(&self, mut answer: Answer, opened: &Opened, flags: u32) -> Answer {
        let flags = OFlags::from_bits_retain(flags);
        let writes = flags.intersects(OFlags::WRONLY | OFlags::RDWR);
        // Where a file that is open for direct I/O cannot be mapped, O_RDWR has to go through the page cache.
        let can_map = self.negotiated().flags.contains(InitFlags::DIRECT_IO_ALLOW_MMAP);
        let direct = flags.contains(OFlags::DIRECT) || writes && (can_map || !flags.contains(OFlags::RDWR));
        let mut open_flags = FopenFlags::empty();
        open_flags.set(FopenFlags::DIRECT_IO | FopenFlags::PARALLEL_DIRECT_WRITES, direct);
        open_flags.set(FopenFlags::KEEP_CACHE, opened.keep_data);
        let open = abi::OpenOut { fh: opened.handle.0, open_flags: open_flags.bits(), ..abi::OpenOut::default() };
        answer.fixed.extend_from_slice(open.as_bytes());
        answer.opened = Some(opened.handle);
        answer
    }

    async fn setattr(&self, header: &InHeader, cred: &Cred, set: &abi::SetattrIn) -> Result<Answer, Status> {
        let valid = SetattrValid::from_bits_retain(set.valid);
        let time = |flag, now, seconds: u64, nanoseconds| {
            let given = Time { seconds: seconds as i64, nanoseconds };
            valid.contains(flag).then(|| if valid.contains(now) { Env::system().wall() } else { given })
        };
        let patch = AttrPatch {
            mode: valid.contains(SetattrValid::MODE).then_some(set.mode),
            uid: valid.contains(SetattrValid::UID).then_some(set.uid),
            gid: valid.contains(SetattrValid::GID).then_some(set.gid),
            size: valid.contains(SetattrValid::SIZE).then_some(set.size),
            atime: time(SetattrValid::ATIME, SetattrValid::ATIME_NOW, set.atime, set.atimensec),
            mtime: time(SetattrValid::MTIME, SetattrValid::MTIME_NOW, set.mtime, set.mtimensec),
            ..AttrPatch::default()
        };
        if patch.size.is_some_and(|size| size > self.fs.file_bytes_max()) {
            return Err(Status::EFBIG);
        }
        let handle = valid.contains(SetattrValid::FH).then_some(HandleId(set.fh));
        let kill = valid.contains(SetattrValid::KILL_SUIDGID);
        let entry = self.fs.setattr(cred, self.fid(header.nodeid), patch, handle, kill).await?;
        Ok(Answer::fixed(&self.attr_out(&entry)))
    }

    async fn read(&self, node: u64, read: &abi::ReadIn) -> Result<Answer, Status> {
        let (handle, length) = (HandleId(read.fh), read.size as usize);
        // A read(2) past the page cache comes with its process; no invalidation waits for it. What does not fills pages.
        if read.read_flags & abi::READ_LOCKOWNER != 0 {
            let data = self.fs.read(handle, read.offset, length).await?;
            return Ok(Answer { data, ..Answer::default() });
        }
        let end = read.offset.saturating_add(u64::from(read.size));
        let reading = self.kernel.gate().read(node, read.offset..end).await;
        let data = self.fs.read_page(handle, read.offset, length).await?;
        Ok(Answer { data, reading: Some(reading), ..Answer::default() })
    }

    async fn write(&self, header: &InHeader, write: &abi::WriteIn, mut data: Bytes) -> Result<Answer, Status> {
        if data.len() != write.size as usize {
            return Err(Status::EIO);
        }
        let mode = WriteMode {
            from_cache: write.write_flags & abi::WRITE_CACHE != 0,
            kill_privileges: write.write_flags & abi::WRITE_KILL_SUIDGID != 0,
        };
        let room = self.fs.file_bytes_max().saturating_sub(write.offset);
        if room == 0 && !data.is_empty() {
            return Err(Status::EFBIG);
        }
        data.truncate(usize::try_from(room).unwrap_or(usize::MAX));
        let size = data.len() as u32;
        let outcome = self.fs.write(&cred(header), HandleId(write.fh), write.offset, data, mode).await;
        if mode.from_cache {
            self.kernel.gate().progress(header.nodeid);
        } else if self.negotiated().minor < abi::MINOR_DIRECT_WRITE_INVALIDATES {
            let end = write.offset.saturating_add(u64::from(size));
            self.kernel.drop_pages(header.nodeid, write.offset..end).await;
        }
        outcome?;
        Ok(Answer::fixed(&abi::WriteOut { size, padding: 0 }))
    }

    async fn fallocate(&self, header: &InHeader, cred: &Cred, space: &abi::FallocateIn) -> Result<(), Status> {
        let keep_size = space.mode & FALLOC_KEEP_SIZE != 0;
        let how = match space.mode & !FALLOC_KEEP_SIZE {
            0 => SpaceMode::Allocate { keep_size },
            FALLOC_PUNCH_HOLE if keep_size => SpaceMode::Punch,
            FALLOC_ZERO_RANGE => SpaceMode::Zero { keep_size },
            _ => return Err(Status::EOPNOTSUPP),
        };
        let end = space.offset.checked_add(space.length).ok_or(Status::EFBIG)?;
        if end > self.fs.file_bytes_max() && how != SpaceMode::Punch {
            return Err(Status::EFBIG);
        }
        let fid = self.fid(header.nodeid);
        // WRITE and SETATTR say when privileges go; here it is left to the filesystem.
        if cred.uid != 0 && self.fs.getattr(fid).await?.attr.mode & (mode::SETUID | mode::SETGID) != 0 {
            let handle = Some(HandleId(space.fh));
            self.fs.setattr(cred, fid, AttrPatch::default(), handle, true).await?;
        }
        self.fs.space(HandleId(space.fh), space.offset..end, how).await
    }

    async fn statfs(&self) -> Result<Answer, Status> {
        let space = self.fs.statfs().await?;
        Ok(Answer::fixed(&abi::StatfsOut {
            blocks: space.total_bytes / STATFS_BLOCK_BYTES,
            bfree: space.free_bytes / STATFS_BLOCK_BYTES,
            bavail: space.free_bytes / STATFS_BLOCK_BYTES,
            files: space.inodes,
            ffree: space.inodes_free,
            bsize: STATFS_BLOCK_BYTES as u32,
            frsize: STATFS_BLOCK_BYTES as u32,
            namelen: NAME_BYTES_MAX,
            ..abi::StatfsOut::default()
        }))
    }

    fn statx(&self, entry: &nacre_client::Entry) -> abi::StatxOut {
        let basic = attr(entry);
        let time = |time: Time| abi::SxTime { seconds: time.seconds, nanoseconds: time.nanoseconds, reserved: 0 };
        abi::StatxOut {
            attr_valid: if entry.keep_attr { FOREVER_SECONDS } else { 0 },
            mask: STATX_BASIC_STATS | STATX_BTIME,
            blksize: basic.blksize,
            nlink: basic.nlink,
            uid: basic.uid,
            gid: basic.gid,
            mode: basic.mode as u16,
            ino: basic.ino,
            size: basic.size,
            blocks: basic.blocks,
            atime: time(entry.attr.atime),
            btime: time(entry.attr.btime),
            ctime: time(entry.attr.ctime),
            mtime: time(entry.attr.mtime),
            // dev_t's low half: 8 bits of minor, 12 of major, the rest of minor.
            rdev_major: basic.rdev >> 8 & 0xfff,
            rdev_minor: basic.rdev & 0xff | basic.rdev >> 12 & 0xf_ff00,
            ..abi::StatxOut::default()
        }
    }
}

impl Request {
    /// Asks for a mode with setgid.
    fn gives_setgid(&self) -> bool {
        match self {
            Request::Mknod(node, _) => node.mode & mode::SETGID != 0,
            Request::Create(create, _) => create.mode & mode::SETGID != 0,
            Request::Setattr(set) => set.valid & SetattrValid::MODE.bits() != 0 && set.mode & mode::SETGID != 0,
            _ => false,
        }
    }

    /// Attributes or names may be others afterwards.
    fn changes(&self) -> bool {
        match self {
            Request::Open(open) => OFlags::from_bits_retain(open.flags).contains(OFlags::TRUNC),
            Request::Setattr(_)
            | Request::Symlink(..)
            | Request::Mknod(..)
            | Request::Mkdir(..)
            | Request::Unlink { .. }
            | Request::Rename(..)
            | Request::Link(..)
            | Request::Create(..)
            | Request::Write(_)
            | Request::Setxattr(..)
            | Request::Removexattr(_)
            | Request::Fallocate(_) => true,
            _ => false,
        }
    }
}

fn cred(header: &InHeader) -> Cred {
    Cred { uid: header.uid, gid: header.gid, ..Cred::default() }
}

fn open_mode(flags: u32) -> OpenMode {
    let given = OFlags::from_bits_retain(flags);
    let mut flags = match given & OFlags::ACCMODE {
        OFlags::WRONLY => OpenFlags::WRITE,
        OFlags::RDWR => OpenFlags::READ | OpenFlags::WRITE,
        _ => OpenFlags::READ,
    };
    flags.set(OpenFlags::TRUNCATE, given.contains(OFlags::TRUNC));
    flags.set(OpenFlags::EXEC, given.bits() & FMODE_EXEC != 0);
    OpenMode {
        flags,
        append: given.contains(OFlags::APPEND),
        direct: given.contains(OFlags::DIRECT),
        sync: given.contains(OFlags::DSYNC),
    }
}

/// getxattr(2), listxattr(2): `size` 0 asks how much it is.
fn sized(value: Vec<u8>, size: u32) -> Result<Answer, Status> {
    if value.len() > XATTR_BYTES_MAX {
        return Err(E2BIG);
    }
    if size == 0 {
        return Ok(Answer::fixed(&abi::GetxattrOut { size: value.len() as u32, padding: 0 }));
    }
    if value.len() > size as usize {
        return Err(Status::ERANGE);
    }
    Ok(Answer { fixed: value, ..Answer::default() })
}

fn lock_range(lock: &abi::LkIn) -> Result<LockRange, Status> {
    let exclusive = match lock.kind {
        F_RDLCK => Some(false),
        F_WRLCK => Some(true),
        F_UNLCK => None,
        _ => return Err(Status::EINVAL),
    };
    let end = if lock.end >= OFFSET_MAX { u64::MAX } else { lock.end };
    Ok(LockRange { start: lock.start, end, exclusive, pid: lock.pid, bsd: lock.lk_flags & abi::LK_FLOCK != 0 })
}

fn lock_out(found: Option<LockRange>) -> abi::LkOut {
    match found {
        None => abi::LkOut { kind: F_UNLCK, ..abi::LkOut::default() },
        Some(lock) => abi::LkOut {
            start: lock.start,
            end: lock.end.min(OFFSET_MAX),
            kind: if lock.exclusive == Some(true) { F_WRLCK } else { F_RDLCK },
            pid: lock.pid,
        },
    }
}

const E2BIG: Status = Status(7);
const ENOTTY: Status = Status(25);
const F_RDLCK: u32 = 0;
const F_WRLCK: u32 = 1;
const F_UNLCK: u32 = 2;
/// The last byte of a file, to the kernel.
const OFFSET_MAX: u64 = i64::MAX as u64;
const SEEK_DATA: u32 = 3;
const SEEK_HOLE: u32 = 4;
const FALLOC_KEEP_SIZE: u32 = 1;
const FALLOC_PUNCH_HOLE: u32 = 2;
const FALLOC_ZERO_RANGE: u32 = 0x10;
const XATTR_CREATE: u32 = 1;
const XATTR_REPLACE: u32 = 2;
/// XATTR_SIZE_MAX.
const XATTR_BYTES_MAX: usize = 65536;
/// execve(2) opens with it; the kernel's own flag.
const FMODE_EXEC: u32 = 0x20;
const STATFS_BLOCK_BYTES: u64 = 4096;
const NAME_BYTES_MAX: u32 = 255;
const STATX_BASIC_STATS: u32 = 0x7ff;
const STATX_BTIME: u32 = 0x800;
