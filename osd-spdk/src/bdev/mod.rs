//! `Bdev`: a block device, whatever is under it. Names and parameters are SPDK's.

use std::fmt;
use std::rc::Rc;

use futures_util::future::LocalBoxFuture;
use nacre_reactor::{Bytes, DmaBuf};

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BdevInfo {
    /// Name in the configuration, such as `Nvme0n1` or `Malloc0`.
    pub name: String,
    /// Which backend, as SPDK's `product_name`: `Malloc disk`, `URING bdev`.
    pub product: &'static str,
    /// Logical block, bytes: 512 or 4096.
    pub block_bytes: u32,
    /// Number of logical blocks.
    pub blocks: u64,
    /// Bytes that the device writes whole or not at all; at least one logical block.
    pub atomic_bytes: u32,
    /// Whether a completed write may still be lost until `flush`.
    pub volatile_cache: bool,
    /// Whether unmap gives space back.
    pub unmap: bool,
}

impl BdevInfo {
    /// Size of the device.
    pub fn bytes(&self) -> u64 {
        self.blocks * u64::from(self.block_bytes)
    }
}

/// A block device on this reactor. Offsets and lengths are bytes and multiples of the logical block; what is not is
/// [`BdevErrorKind::Misaligned`], what lies outside is [`BdevErrorKind::OutOfRange`]. Many operations may be under way;
/// they complete in any order. An operation owns its buffer: dropping its future abandons the answer, not the I/O.
pub trait Bdev {
    /// What the device is.
    fn info(&self) -> &BdevInfo;

    /// Reads `length` bytes into a fresh buffer.
    fn read(&self, offset: u64, length: usize) -> LocalBoxFuture<'static, Result<DmaBuf, BdevError>>;

    /// Writes the buffers one after the other from `offset` on. Each buffer's length is a multiple of the logical block;
    /// memory that is not aligned to 512 bytes may be copied first.
    fn write(&self, offset: u64, data: Vec<Bytes>) -> LocalBoxFuture<'static, Result<(), BdevError>>;

    /// Makes a range read zeros; the space stays allocated.
    fn write_zeroes(&self, offset: u64, length: u64) -> LocalBoxFuture<'static, Result<(), BdevError>>;

    /// Tells that a range is not needed; it may read anything afterwards.
    fn unmap(&self, offset: u64, length: u64) -> LocalBoxFuture<'static, Result<(), BdevError>>;

    /// All writes that completed before the call are on stable media when this completes.
    fn flush(&self) -> LocalBoxFuture<'static, Result<(), BdevError>>;
}

/// A shared device.
pub type BdevRef = Rc<dyn Bdev>;

/// Why a device operation failed.
#[derive(Debug)]
pub struct BdevError {
    /// What to act on.
    pub kind: BdevErrorKind,
    /// Name of the device.
    pub bdev: String,
    /// `read`, `write`, …
    pub op: &'static str,
    /// Where on the device.
    pub offset: u64,
    /// The system's word, if it had one.
    pub source: Option<std::io::Error>,
}

/// Kinds of [`BdevError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BdevErrorKind {
    /// The device could not be opened or made.
    Open,
    /// The device failed the operation.
    Io,
    /// The device or the file under it is full.
    NoSpace,
    /// Offset or length is no multiple of the logical block.
    Misaligned,
    /// Beyond the end.
    OutOfRange,
}

impl fmt::Display for BdevError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            BdevErrorKind::Open => "cannot be opened",
            BdevErrorKind::Io => "input/output error",
            BdevErrorKind::NoSpace => "no space",
            BdevErrorKind::Misaligned => "not aligned to the logical block",
            BdevErrorKind::OutOfRange => "beyond the end of the device",
        };
        write!(f, "bdev \"{}\": {} at byte {}: {what}", self.bdev, self.op, self.offset)?;
        if let Some(source) = &self.source {
            write!(f, " ({source})")?;
        }
        Ok(())
    }
}

impl std::error::Error for BdevError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| source as _)
    }
}
