//! `bdev_uring_create`: a file or a block device through the reactor's io_uring, with O_DIRECT.
//!
//! What holds: the file is locked against every other opener that locks (another Nacre, qemu), and a block device also
//! against mounts; I/O under way owns its buffers until the kernel is done; a completed write is on the device, and on
//! stable media after the flush.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use futures_util::FutureExt;
use nacre_reactor::{Bytes, DmaBuf, ring};
use nacre_wire::Uuid;
use rustix::fs::{AtFlags, FallocateFlags, FileType, FlockOperation, Mode, OFlags, SeekFrom, StatxFlags};
use rustix::io::Errno;
use serde::Deserialize;
use tokio::time::{Instant, sleep};

use super::{Bdev, BdevError, BdevErrorKind, BdevFuture, BdevInfo, ready};

/// Parameters of `bdev_uring_create` and `bdev_aio_create`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Name.
    pub name: String,
    /// The file or block device.
    pub filename: PathBuf,
    /// Bytes of a block: 512 or 4096. Default: the block device's, 4096 for files.
    #[serde(default)]
    pub block_size: u32,
    /// Identity.
    #[serde(default, deserialize_with = "super::uuid_text")]
    pub uuid: Option<Uuid>,
}

/// A file or block device.
pub struct Uring {
    info: BdevInfo,
    fd: Rc<OwnedFd>,
    access: Access,
    /// What the kernel wants of addresses for O_DIRECT, bytes.
    memory_alignment: usize,
    /// What the system can do with ranges, learned at the first refusal.
    zero_range: Rc<Cell<bool>>,
}

/// Makes a file of a size, which must not be there. `reserve`: its space is allocated at once, so that the
/// filesystem under it cannot run full later; else it is sparse.
pub fn create_file(path: &Path, bytes: u64, reserve: bool) -> io::Result<()> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?;
    rustix::fs::ftruncate(&fd, bytes)?;
    if reserve {
        match rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, bytes) {
            // A filesystem that cannot reserve: sparse it is.
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(errno) => {
                rustix::fs::unlink(path)?;
                return Err(errno.into());
            }
        }
    }
    rustix::fs::fsync(&fd)?;
    Ok(())
}

impl Uring {
    /// Opens and locks, for this process alone.
    pub async fn open(params: &Params) -> Result<Uring, BdevError> {
        Uring::open_for(params, Access::ReadWrite).await
    }

    /// Opens to look: nothing can be written through it, others may look too, but nobody has it for writing.
    pub async fn open_read_only(params: &Params) -> Result<Uring, BdevError> {
        Uring::open_for(params, Access::ReadOnly).await
    }

    async fn open_for(params: &Params, access: Access) -> Result<Uring, BdevError> {
        let failed = |source: io::Error| BdevError {
            kind: BdevErrorKind::Open,
            bdev: params.name.clone(),
            op: "open",
            offset: 0,
            source: Some(source),
        };
        let opened = open_and_lock(&params.filename, access).await.map_err(failed)?;
        let block_bytes = match params.block_size {
            0 => opened.block_bytes,
            given => given,
        };
        if ![512, 4096].contains(&block_bytes) || block_bytes < opened.block_bytes_min {
            return Err(failed(invalid(format!(
                "block_size of {} is {block_bytes}; it must be 512 or 4096 and at least {}",
                params.filename.display(),
                opened.block_bytes_min
            ))));
        }
        let blocks = opened.bytes / u64::from(block_bytes);
        if blocks == 0 {
            return Err(failed(invalid(format!(
                "{} has {} bytes, less than one block of {block_bytes}",
                params.filename.display(),
                opened.bytes
            ))));
        }
        let info = BdevInfo {
            name: params.name.clone(),
            product: "URING bdev",
            uuid: params.uuid.unwrap_or(Uuid::NIL),
            block_bytes,
            blocks,
            atomic_bytes: block_bytes,
            volatile_cache: true,
            unmap: opened.unmap,
        };
        Ok(Uring {
            info,
            fd: Rc::new(opened.fd),
            access,
            memory_alignment: opened.memory_alignment,
            zero_range: Rc::new(Cell::new(true)),
        })
    }

    /// Maps the ring's answer to the device's.
    fn answer<T: 'static>(
        &self,
        op: &'static str,
        offset: u64,
        operation: ring::Operation<T>,
    ) -> impl Future<Output = Result<T, BdevError>> + use<T>
    where
        ring::Operation<T>: Future<Output = io::Result<T>>,
    {
        let name = self.info.name.clone();
        async move {
            operation.await.map_err(|source| {
                let kind = match source.raw_os_error().map(Errno::from_raw_os_error) {
                    Some(Errno::NOSPC | Errno::DQUOT) => BdevErrorKind::NoSpace,
                    _ => BdevErrorKind::Io,
                };
                BdevError { kind, bdev: name, op, offset, source: Some(source) }
            })
        }
    }

    /// Memory as O_DIRECT wants it, in as few pieces as one operation takes.
    fn aligned(&self, data: Vec<Bytes>) -> Vec<Bytes> {
        let is_aligned = |bytes: &Bytes| (bytes.as_ptr() as usize).is_multiple_of(self.memory_alignment);
        if data.len() > ring::BUFFERS_MAX {
            let mut all = DmaBuf::uncleared(data.iter().map(Bytes::len).sum());
            let mut at = 0;
            for bytes in &data {
                all[at..at + bytes.len()].copy_from_slice(bytes);
                at += bytes.len();
            }
            return vec![all.freeze()];
        }
        data.into_iter()
            .map(|bytes| if is_aligned(&bytes) { bytes } else { DmaBuf::copy_from(&bytes).freeze() })
            .collect()
    }

    /// The first operation is under way when this returns; the others follow one by one.
    fn write_zero_bytes(&self, op: &'static str, offset: u64, length: u64) -> BdevFuture<()> {
        let zeros = DmaBuf::zeroed(length.min(ZERO_BYTES_MAX) as usize).freeze();
        let operation_bytes_max = ZERO_BYTES_MAX * ZERO_PIECES_MAX;
        let this = self.clone_for_io();
        let write = move |done: u64| {
            let mut rest = (length - done).min(operation_bytes_max);
            let mut pieces = Vec::new();
            while rest > 0 {
                let piece = rest.min(zeros.len() as u64);
                pieces.push(zeros.slice(..piece as usize));
                rest -= piece;
            }
            this.answer(op, offset + done, ring::writev(&this.fd, offset + done, pieces))
        };
        let first = write(0);
        async move {
            first.await?;
            let mut done = operation_bytes_max;
            while done < length {
                write(done).await?;
                done += operation_bytes_max;
            }
            Ok(())
        }
        .boxed_local()
    }

    /// What every operation that changes the device passes first.
    fn check_writable(&self, op: &'static str, offset: u64) -> Result<(), BdevError> {
        match self.access {
            Access::ReadWrite => Ok(()),
            Access::ReadOnly => Err(self.info.error(BdevErrorKind::Io, op, offset, Some(Errno::ROFS.into()))),
        }
    }

    fn clone_for_io(&self) -> Uring {
        Uring {
            info: self.info.clone(),
            fd: self.fd.clone(),
            access: self.access,
            memory_alignment: self.memory_alignment,
            zero_range: self.zero_range.clone(),
        }
    }
}

impl Bdev for Uring {
    fn info(&self) -> &BdevInfo {
        &self.info
    }

    fn read(&self, offset: u64, length: usize) -> BdevFuture<DmaBuf> {
        if let Err(error) = self.info.check("read", offset, length as u64) {
            return ready(Err(error));
        }
        let answer = self.answer("read", offset, ring::read(&self.fd, offset, DmaBuf::uncleared(length)));
        let name = self.info.name.clone();
        async move {
            let buf = answer.await?;
            if buf.len() < length {
                let source = io::Error::new(io::ErrorKind::UnexpectedEof, "the file was cut while it was open");
                return Err(BdevError {
                    kind: BdevErrorKind::Io,
                    bdev: name,
                    op: "read",
                    offset: offset + buf.len() as u64,
                    source: Some(source),
                });
            }
            Ok(buf)
        }
        .boxed_local()
    }

    fn write(&self, offset: u64, data: Vec<Bytes>) -> BdevFuture<()> {
        if let Err(error) = self.info.check_write(offset, &data).and_then(|_| self.check_writable("write", offset)) {
            return ready(Err(error));
        }
        self.answer("write", offset, ring::writev(&self.fd, offset, self.aligned(data))).boxed_local()
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> BdevFuture<()> {
        let checked = self.info.check("write_zeroes", offset, length);
        if let Err(error) = checked.and_then(|()| self.check_writable("write_zeroes", offset)) {
            return ready(Err(error));
        }
        if length <= ZERO_BYTES_MAX || !self.zero_range.get() {
            return self.write_zero_bytes("write_zeroes", offset, length);
        }
        let operation = ring::fallocate(&self.fd, ring::FallocateMode::ZeroRange, offset, length);
        let answer = self.answer("write_zeroes", offset, operation);
        let this = self.clone_for_io();
        async move {
            match answer.await {
                Err(error) if is_unsupported(&error) => {
                    this.zero_range.set(false);
                    this.write_zero_bytes("write_zeroes", offset, length).await
                }
                other => other,
            }
        }
        .boxed_local()
    }

    fn unmap(&self, offset: u64, length: u64) -> BdevFuture<()> {
        let checked = self.info.check("unmap", offset, length).and_then(|()| self.check_writable("unmap", offset));
        // fallocate refuses an empty range.
        if checked.is_err() || length == 0 || !self.info.unmap {
            return ready(checked);
        }
        let operation = ring::fallocate(&self.fd, ring::FallocateMode::PunchHole, offset, length);
        let answer = self.answer("unmap", offset, operation);
        async move {
            match answer.await {
                // Unmap is advice.
                Err(error) if is_unsupported(&error) => Ok(()),
                other => other,
            }
        }
        .boxed_local()
    }

    fn flush(&self) -> BdevFuture<()> {
        self.answer("flush", 0, ring::fdatasync(&self.fd)).boxed_local()
    }
}

impl fmt::Debug for Uring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uring").field("info", &self.info).finish_non_exhaustive()
    }
}

struct Opened {
    fd: OwnedFd,
    bytes: u64,
    /// What to use unless told otherwise.
    block_bytes: u32,
    /// What O_DIRECT allows at least.
    block_bytes_min: u32,
    memory_alignment: usize,
    unmap: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    ReadWrite,
    ReadOnly,
}

async fn open_and_lock(path: &Path, access: Access) -> io::Result<Opened> {
    let named = |what: &str, errno: Errno| {
        io::Error::new(io::Error::from(errno).kind(), format!("{what} {}: {}", path.display(), io::Error::from(errno)))
    };
    let (mode, lock) = match access {
        Access::ReadWrite => (OFlags::RDWR, FlockOperation::NonBlockingLockExclusive),
        Access::ReadOnly => (OFlags::RDONLY, FlockOperation::NonBlockingLockShared),
    };
    let flags = mode | OFlags::DIRECT | OFlags::CLOEXEC;
    let kind = FileType::from_raw_mode(rustix::fs::stat(path).map_err(|errno| named("stat", errno))?.st_mode);
    let exclusive = match kind {
        FileType::RegularFile => OFlags::empty(),
        // Refuses what is mounted or part of a RAID.
        FileType::BlockDevice if access == Access::ReadWrite => OFlags::EXCL,
        FileType::BlockDevice => OFlags::empty(),
        _ => return Err(invalid(format!("{} is neither a file nor a block device", path.display()))),
    };
    let deadline = Instant::now() + IN_USE_PATIENCE;
    let fd = loop {
        let attempt = match rustix::fs::open(path, flags | exclusive, Mode::empty()) {
            Ok(fd) => rustix::fs::flock(&fd, lock).map(|()| fd),
            Err(errno) => Err(errno),
        };
        match attempt {
            Ok(fd) => break fd,
            // EWOULDBLOCK: locked. EBUSY: a mounted block device. A process that was just killed holds its files until
            // its last I/O is over, so it is worth a moment.
            Err(Errno::WOULDBLOCK | Errno::BUSY) if Instant::now() < deadline => sleep(IN_USE_PAUSE).await,
            Err(Errno::WOULDBLOCK | Errno::BUSY) => {
                return Err(io::Error::new(
                    io::ErrorKind::ResourceBusy,
                    format!("{} is in use by another process or mounted; stop that first", path.display()),
                ));
            }
            Err(Errno::INVAL) => {
                return Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    format!("the filesystem of {} does not support O_DIRECT; put the file elsewhere", path.display()),
                ));
            }
            Err(errno) => return Err(named("open", errno)),
        }
    };
    let bytes = rustix::fs::seek(&fd, SeekFrom::End(0)).map_err(|errno| named("seek to the end of", errno))?;
    let (offset_alignment, memory_alignment) = direct_alignment(&fd);
    let opened = if kind == FileType::BlockDevice {
        let block = rustix::fs::ioctl_blksszget(&fd).map_err(|errno| named("BLKSSZGET of", errno))?;
        let unmap = discards(&fd);
        Opened { bytes, block_bytes: block, block_bytes_min: block, memory_alignment, unmap, fd }
    } else {
        // Behind the end: changes nothing, tells whether holes can be punched.
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let unmap = rustix::fs::fallocate(&fd, hole, bytes.next_multiple_of(4096), 4096).is_ok();
        Opened { bytes, block_bytes: 4096, block_bytes_min: offset_alignment, memory_alignment, unmap, fd }
    };
    Ok(opened)
}

/// What O_DIRECT wants of offsets and of memory (statx(2), STATX_DIOALIGN, Linux 6.1).
fn direct_alignment(fd: &OwnedFd) -> (u32, usize) {
    match rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) {
        Ok(stat) if stat.stx_dio_offset_align != 0 => {
            (stat.stx_dio_offset_align, (stat.stx_dio_mem_align as usize).clamp(1, 4096))
        }
        _ => (512, 512),
    }
}

/// Whether a block device discards.
fn discards(fd: &OwnedFd) -> bool {
    let Ok(stat) = rustix::fs::fstat(fd) else { return false };
    let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    // A partition's queue is its disk's.
    ["queue", "../queue"].iter().any(|queue| {
        std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/{queue}/discard_max_bytes"))
            .is_ok_and(|text| text.trim().parse::<u64>().is_ok_and(|bytes| bytes > 0))
    })
}

fn is_unsupported(error: &BdevError) -> bool {
    let errno = error.source.as_ref().and_then(io::Error::raw_os_error).map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::OPNOTSUPP | Errno::NOSYS))
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

/// Up to here zeros are written: cheaper than changing extents, which the kernel does in a worker thread.
const ZERO_BYTES_MAX: u64 = 128 << 10;
/// 16 MiB in one operation.
const ZERO_PIECES_MAX: u64 = 128;
/// How long to wait for a device in use.
const IN_USE_PATIENCE: Duration = Duration::from_secs(5);
const IN_USE_PAUSE: Duration = Duration::from_millis(20);
