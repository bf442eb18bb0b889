//! `bdev_error_create`: a device that fails when told. Faults are armed and cleared while it runs.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use nacre_reactor::{Bytes, DmaBuf};
use nacre_wire::Uuid;
use rustix::io::Errno;
use serde::Deserialize;
use tokio::sync::Notify;

use super::delay::delayed;
use super::{Bdev, BdevErrorKind, BdevFuture, BdevInfo, BdevRef, ready};

/// Parameters of `bdev_error_create`. The device is called `EE_` and the name of the one below.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// The device below.
    pub base_name: String,
    /// Identity.
    #[serde(default, deserialize_with = "super::uuid_text")]
    pub uuid: Option<Uuid>,
}

/// Parameters of `bdev_error_inject_error`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inject {
    /// Name of the error device.
    pub name: String,
    /// Which operations.
    pub io_type: IoType,
    /// What happens to them.
    pub error_type: ErrorType,
    /// To how many.
    #[serde(default = "one")]
    pub num: u64,
    /// Only while at least so many operations are under way.
    #[serde(default)]
    pub queue_depth: u64,
    /// `corrupt_data`: which byte of the operation.
    #[serde(default)]
    pub corrupt_offset: u64,
    /// `corrupt_data`: what it is XORed with, 1–255.
    #[serde(default = "one_byte")]
    pub corrupt_value: u8,
    /// `delayed`: by how much, µs. Ours, not SPDK's.
    #[serde(default)]
    pub delay_us: u64,
}

impl Inject {
    /// A fault for the next `num` operations of a type, with no further conditions.
    pub fn new(io_type: IoType, error_type: ErrorType, num: u64) -> Inject {
        Inject {
            name: String::new(),
            io_type,
            error_type,
            num,
            queue_depth: 0,
            corrupt_offset: 0,
            corrupt_value: 1,
            delay_us: 0,
        }
    }
}

/// Operations that a fault hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IoType {
    /// Disarms everything; what is pending fails.
    Clear,
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Zeroes.
    WriteZeroes,
    /// Unmaps.
    Unmap,
    /// Flushes.
    Flush,
    /// All of them.
    All,
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorType {
    /// Nothing is done; EIO.
    Failure,
    /// Nothing is done; no answer until the fault is cleared, then EIO.
    Pending,
    /// A byte of what is read or written is changed; no error.
    CorruptData,
    /// Nothing is done; ENOMEM.
    Nomem,
    /// Nothing is done; no space. Ours, not SPDK's.
    Nospace,
    /// The first half (in whole blocks) is done, then EIO: a torn write. Ours, not SPDK's.
    Short,
    /// It is done, and takes `delay_us` longer. Ours, not SPDK's.
    Delayed,
}

/// A device with faults.
pub struct ErrorBdev {
    info: BdevInfo,
    base: BdevRef,
    armed: RefCell<BTreeMap<IoType, Inject>>,
    /// Operations under way.
    depth: Rc<Cell<u64>>,
    cleared: Arc<Notify>,
}

impl ErrorBdev {
    /// Makes one over a device; nothing is armed.
    pub fn new(params: &Params, base: BdevRef) -> ErrorBdev {
        let name = format!("EE_{}", params.base_name);
        let uuid = params.uuid.unwrap_or(Uuid::NIL);
        let info = BdevInfo { name, product: "Error Injection Disk", uuid, ..base.info().clone() };
        ErrorBdev { info, base, armed: RefCell::default(), depth: Rc::default(), cleared: Arc::new(Notify::new()) }
    }

    /// Arms a fault in place of the one that the type had.
    pub fn inject(&self, inject: Inject) {
        let mut armed = self.armed.borrow_mut();
        match inject.io_type {
            IoType::Clear => {
                armed.clear();
                self.cleared.notify_waiters();
            }
            IoType::All => {
                for io_type in [IoType::Read, IoType::Write, IoType::WriteZeroes, IoType::Unmap, IoType::Flush] {
                    armed.insert(io_type, inject.clone());
                }
            }
            io_type => {
                armed.insert(io_type, inject);
            }
        }
    }

    /// The fault that hits the next operation, which counts.
    fn hit(&self, io_type: IoType) -> Option<Inject> {
        let mut armed = self.armed.borrow_mut();
        let fault = armed.get_mut(&io_type)?;
        if self.depth.get() < fault.queue_depth || fault.num == 0 {
            return None;
        }
        fault.num -= 1;
        Some(fault.clone())
    }

    /// Counts an operation as under way until its future is gone.
    fn counted<T: 'static>(&self, operation: BdevFuture<T>) -> BdevFuture<T> {
        let guard = Depth::new(&self.depth);
        async move {
            let _guard = guard;
            operation.await
        }
        .boxed_local()
    }

    /// An operation with a fault that does not depend on its data. `half` does a part of it.
    fn faulty<T: 'static>(
        &self,
        fault: &Inject,
        op: &'static str,
        offset: u64,
        whole: impl FnOnce() -> BdevFuture<T>,
        half: impl FnOnce() -> BdevFuture<T>,
    ) -> BdevFuture<T> {
        let error = |kind, errno: Errno| self.info.error(kind, op, offset, Some(io::Error::from(errno)));
        match fault.error_type {
            ErrorType::Failure => ready(Err(error(BdevErrorKind::Io, Errno::IO))),
            ErrorType::Nomem => ready(Err(error(BdevErrorKind::Io, Errno::NOMEM))),
            ErrorType::Nospace => ready(Err(error(BdevErrorKind::NoSpace, Errno::NOSPC))),
            ErrorType::Pending => {
                let error = error(BdevErrorKind::Io, Errno::IO);
                let cleared = self.cleared.clone().notified_owned();
                async move {
                    cleared.await;
                    Err(error)
                }
                .boxed_local()
            }
            ErrorType::Short => {
                let error = error(BdevErrorKind::Io, Errno::IO);
                let half = half();
                async move {
                    half.await?;
                    Err(error)
                }
                .boxed_local()
            }
            ErrorType::Delayed => delayed(Duration::from_micros(fault.delay_us), whole()),
            // Nothing to corrupt in an operation without data.
            ErrorType::CorruptData => whole(),
        }
    }

    fn half(&self, length: u64) -> u64 {
        let block = u64::from(self.info.block_bytes);
        length / block / 2 * block
    }
}

impl Bdev for ErrorBdev {
    fn info(&self) -> &BdevInfo {
        &self.info
    }

    fn read(&self, offset: u64, length: usize) -> BdevFuture<DmaBuf> {
        if let Err(error) = self.info.check("read", offset, length as u64) {
            return ready(Err(error));
        }
        let whole = || self.base.read(offset, length);
        let operation = match self.hit(IoType::Read) {
            None => whole(),
            Some(fault) if fault.error_type == ErrorType::CorruptData => {
                let read = whole();
                async move {
                    let mut buf = read.await?;
                    corrupt(&fault, &mut buf);
                    Ok(buf)
                }
                .boxed_local()
            }
            Some(fault) => {
                let half = || self.base.read(offset, self.half(length as u64) as usize);
                self.faulty(&fault, "read", offset, whole, half)
            }
        };
        self.counted(operation)
    }

    fn write(&self, offset: u64, data: Vec<Bytes>) -> BdevFuture<()> {
        if let Err(error) = self.info.check_write(offset, &data) {
            return ready(Err(error));
        }
        let operation = match self.hit(IoType::Write) {
            None => self.base.write(offset, data),
            Some(fault) if fault.error_type == ErrorType::CorruptData => {
                let mut changed = joined(&data);
                corrupt(&fault, &mut changed);
                self.base.write(offset, vec![changed.freeze()])
            }
            Some(fault) => {
                let half = || {
                    let all = joined(&data).freeze();
                    let length = self.half(all.len() as u64) as usize;
                    self.base.write(offset, vec![all.slice(..length)])
                };
                self.faulty(&fault, "write", offset, || self.base.write(offset, data.clone()), half)
            }
        };
        self.counted(operation)
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> BdevFuture<()> {
        if let Err(error) = self.info.check("write_zeroes", offset, length) {
            return ready(Err(error));
        }
        let whole = || self.base.write_zeroes(offset, length);
        let half = || self.base.write_zeroes(offset, self.half(length));
        self.counted(match self.hit(IoType::WriteZeroes) {
            None => whole(),
            Some(fault) => self.faulty(&fault, "write_zeroes", offset, whole, half),
        })
    }

    fn unmap(&self, offset: u64, length: u64) -> BdevFuture<()> {
        if let Err(error) = self.info.check("unmap", offset, length) {
            return ready(Err(error));
        }
        let whole = || self.base.unmap(offset, length);
        let half = || self.base.unmap(offset, self.half(length));
        self.counted(match self.hit(IoType::Unmap) {
            None => whole(),
            Some(fault) => self.faulty(&fault, "unmap", offset, whole, half),
        })
    }

    fn flush(&self) -> BdevFuture<()> {
        let whole = || self.base.flush();
        // Half a flush is none.
        let half = || ready(Ok(()));
        self.counted(match self.hit(IoType::Flush) {
            None => whole(),
            Some(fault) => self.faulty(&fault, "flush", 0, whole, half),
        })
    }
}

fn joined(data: &[Bytes]) -> DmaBuf {
    let mut all = DmaBuf::uncleared(data.iter().map(Bytes::len).sum());
    let mut at = 0;
    for bytes in data {
        all[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    }
    all
}

fn corrupt(fault: &Inject, buf: &mut DmaBuf) {
    if let Some(byte) = buf.get_mut(fault.corrupt_offset as usize) {
        *byte ^= fault.corrupt_value;
    }
}

/// One operation under way.
struct Depth(Rc<Cell<u64>>);

impl Depth {
    fn new(depth: &Rc<Cell<u64>>) -> Depth {
        depth.set(depth.get() + 1);
        Depth(depth.clone())
    }
}

impl Drop for Depth {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

fn one() -> u64 {
    1
}

fn one_byte() -> u8 {
    1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bdev::malloc::Malloc;

    fn device() -> ErrorBdev {
        let base = Rc::new(Malloc::with_bytes("Malloc0", 1 << 20).unwrap());
        ErrorBdev::new(&Params { base_name: "Malloc0".to_owned(), uuid: None }, base)
    }

    fn now<T>(future: BdevFuture<T>) -> Result<T, super::super::BdevError> {
        future.now_or_never().expect("completes at once")
    }

    fn blocks(byte: u8, count: usize) -> Vec<Bytes> {
        vec![Bytes::from(vec![byte; 4096]); count]
    }

    #[test]
    fn faults_hit_as_often_as_told_and_only_their_type() {
        let device = device();
        assert_eq!(device.info().name, "EE_Malloc0");
        device.inject(Inject::new(IoType::Write, ErrorType::Failure, 2));
        assert_eq!(now(device.write(0, blocks(1, 1))).unwrap_err().kind, BdevErrorKind::Io);
        now(device.flush()).unwrap();
        assert_eq!(now(device.write(0, blocks(1, 1))).unwrap_err().kind, BdevErrorKind::Io);
        now(device.write(0, blocks(1, 1))).unwrap();
        device.inject(Inject::new(IoType::All, ErrorType::Nospace, 1));
        assert_eq!(now(device.unmap(0, 4096)).unwrap_err().kind, BdevErrorKind::NoSpace);
        assert_eq!(now(device.flush()).unwrap_err().kind, BdevErrorKind::NoSpace);
        device.inject(Inject::new(IoType::Clear, ErrorType::Failure, 0));
        assert_eq!(now(device.read(0, 4096)).unwrap()[0], 1);
    }

    #[test]
    fn short_writes_are_torn_and_corrupt_ones_succeed() {
        let device = device();
        device.inject(Inject::new(IoType::Write, ErrorType::Short, 1));
        assert!(now(device.write(0, blocks(7, 4))).is_err());
        let buf = now(device.read(0, 4 * 4096)).unwrap();
        assert!(buf[..8192].iter().all(|byte| *byte == 7) && buf[8192..].iter().all(|byte| *byte == 0));
        device.inject(Inject {
            corrupt_offset: 5000,
            corrupt_value: 0x80,
            ..Inject::new(IoType::Write, ErrorType::CorruptData, 1)
        });
        now(device.write(0, blocks(7, 2))).unwrap();
        assert_eq!(now(device.read(4096, 4096)).unwrap()[904], 0x87);
        device.inject(Inject::new(IoType::Read, ErrorType::CorruptData, 1));
        assert_eq!(now(device.read(0, 4096)).unwrap()[0], 6);
        assert_eq!(now(device.read(0, 4096)).unwrap()[0], 7);
    }

    #[test]
    fn pending_until_cleared_and_depth_counts() {
        let device = device();
        device.inject(Inject { queue_depth: 1, ..Inject::new(IoType::Read, ErrorType::Pending, 1) });
        now(device.read(0, 4096)).unwrap();
        let first = device.read(0, 4096);
        let mut pending = device.read(0, 4096);
        assert!((&mut pending).now_or_never().is_none());
        assert!(now(first).is_ok());
        device.inject(Inject::new(IoType::Clear, ErrorType::Failure, 0));
        assert!(now(pending).is_err());
        assert_eq!(device.depth.get(), 0);
    }
}
