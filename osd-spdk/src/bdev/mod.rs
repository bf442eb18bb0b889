//! `Bdev`: a block device, whatever is under it. Names and parameters are SPDK's.
//!
//! ```text
//!  engine ──► Bdev ──► delay, error ──► malloc · uring · null · recording
//! ```
//!
//! A backend validates a call ([`BdevInfo::check`]) and starts it before it returns; the future only waits.

pub mod delay;
pub mod error;
mod image;
pub mod malloc;
pub mod null;
pub mod recording;
pub mod registry;
pub mod uring;

use std::fmt;
use std::rc::Rc;

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use nacre_reactor::{Bytes, DmaBuf};
use nacre_wire::Uuid;
use serde::{Deserialize, Deserializer};

pub use registry::{Registry, RegistryError, Reply, Request};

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BdevInfo {
    /// Name in the configuration, such as `Nvme0n1` or `Malloc0`.
    pub name: String,
    /// Which backend, as SPDK's `product_name`: `Malloc disk`, `URING bdev`.
    pub product: &'static str,
    /// Identity; [`Uuid::NIL`] when nobody gave it one.
    pub uuid: Uuid,
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

    /// Whether a range is one of this device: whole blocks, inside.
    pub fn check(&self, op: &'static str, offset: u64, length: u64) -> Result<(), BdevError> {
        let block = u64::from(self.block_bytes);
        if !offset.is_multiple_of(block) || !length.is_multiple_of(block) {
            return Err(self.error(BdevErrorKind::Misaligned, op, offset, None));
        }
        if offset.checked_add(length).is_none_or(|end| end > self.bytes()) {
            return Err(self.error(BdevErrorKind::OutOfRange, op, offset, None));
        }
        Ok(())
    }

    /// As [`BdevInfo::check`], for the buffers of a write; answers with their length.
    pub fn check_write(&self, offset: u64, data: &[Bytes]) -> Result<u64, BdevError> {
        for bytes in data {
            if !bytes.len().is_multiple_of(self.block_bytes as usize) {
                return Err(self.error(BdevErrorKind::Misaligned, "write", offset, None));
            }
        }
        let length = data.iter().map(|bytes| bytes.len() as u64).sum();
        self.check("write", offset, length)?;
        Ok(length)
    }

    /// An error of this device.
    pub fn error(
        &self,
        kind: BdevErrorKind,
        op: &'static str,
        offset: u64,
        source: Option<std::io::Error>,
    ) -> BdevError {
        BdevError { kind, bdev: self.name.clone(), op, offset, source }
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
        write!(f, "bdev \"{}\": ", self.bdev)?;
        match self.kind {
            BdevErrorKind::Open => f.write_str(what)?,
            _ => write!(f, "{} at byte {}: {what}", self.op, self.offset)?,
        }
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

/// What every operation answers with.
pub type BdevFuture<T> = LocalBoxFuture<'static, Result<T, BdevError>>;

/// An answer that is known already.
pub fn ready<T: 'static>(result: Result<T, BdevError>) -> BdevFuture<T> {
    std::future::ready(result).boxed_local()
}

/// Checks the shape that `bdev_*_create` was asked for.
fn check_shape(bdev: &str, block_bytes: u32, blocks: u64) -> Result<(), BdevError> {
    let wrong = |what: String| BdevError {
        kind: BdevErrorKind::Open,
        bdev: bdev.to_owned(),
        op: "create",
        offset: 0,
        source: Some(std::io::Error::new(std::io::ErrorKind::InvalidInput, what)),
    };
    if ![512, 4096].contains(&block_bytes) {
        return Err(wrong(format!("block_size is {block_bytes}, not 512 or 4096")));
    }
    if blocks == 0 || blocks.checked_mul(u64::from(block_bytes)).is_none_or(|bytes| bytes > i64::MAX as u64) {
        return Err(wrong(format!("num_blocks is {blocks}; a device has 1 block to 2^63 bytes")));
    }
    Ok(())
}

/// A UUID as the configuration writes it.
fn uuid_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Uuid>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|text| text.parse().map_err(serde::de::Error::custom)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_messages() {
        let info = BdevInfo {
            name: "Malloc0".to_owned(),
            product: "Malloc disk",
            uuid: Uuid::NIL,
            block_bytes: 512,
            blocks: 8,
            atomic_bytes: 512,
            volatile_cache: false,
            unmap: true,
        };
        info.check("read", 0, 4096).unwrap();
        info.check("read", 4096, 0).unwrap();
        let kind = |offset, length| info.check("read", offset, length).unwrap_err().kind;
        assert_eq!(kind(1, 512), BdevErrorKind::Misaligned);
        assert_eq!(kind(512, 4096), BdevErrorKind::OutOfRange);
        assert_eq!(kind(u64::MAX - 511, 512), BdevErrorKind::OutOfRange);
        let error = info.check("read", 512, 4096).unwrap_err();
        assert_eq!(error.to_string(), "bdev \"Malloc0\": read at byte 512: beyond the end of the device");
        let two = [Bytes::from_static(&[0; 100]), Bytes::from_static(&[0; 412])];
        assert_eq!(
            info.check_write(0, &two).unwrap_err().kind,
            BdevErrorKind::Misaligned,
            "each buffer is whole blocks"
        );
    }
}
