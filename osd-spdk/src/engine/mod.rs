//! The engine: [`Osd`] keeps a [`Store`] on a block device.
//!
//! ```text
//! [superblocks][log ring][space: data extents, index runs, checkpoints][superblocks]      docs/disk.md
//!
//! submit ─► plan: move data ─► commit: one record ─► log (group commit)          submit.rs commit.rs log.rs
//!                                    │
//!                                    └─► index memtable ─► runs, at checkpoints  index/ checkpoint.rs
//! ```
//!
//! The log is the only place where a transaction becomes durable. A checkpoint writes what the log built up (index, space
//! map) to runs and moves the log's tail; opening reads a superblock, a checkpoint and the log. Dropping an [`Osd`] stops
//! its tasks at once, as a crash would; [`Store::close`] is the orderly way.

mod checkpoint;
mod commit;
mod extents;
pub mod index;
mod log;
mod object;
mod ranges;
mod read;
mod recovery;
mod space;
mod submit;

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;

use futures_util::future::LocalBoxFuture;
use nacre_reactor::Bytes;
use nacre_wire::{Attr, Fid, Uuid};
use tokio::task::JoinHandle;

use self::checkpoint::RootInfo;
use self::index::Tree;
use self::log::Log;
use self::object::Objects;
use self::space::Space;
use crate::bdev::{BdevError, BdevRef};
use crate::format::object::Kind;
use crate::format::run::Extent;
use crate::format::superblock::{BLOCK_BYTES, DEVICE_BYTES_MIN, Found, RootPointer, Superblock};
use crate::store::{
    Durability, ExtentInfo, Fut, LABEL_BYTES_MAX, OBJECT_BYTES_MAX, Seek, Space as SpaceInfo, Store, StoreError,
    StoreErrorKind, Transaction, Transno,
};

/// What a new store is to be.
#[derive(Clone, Debug)]
pub struct FormatOptions {
    /// Names the store for ever.
    pub uuid: Uuid,
    /// What [`Store::label`] says.
    pub label: Vec<u8>,
    /// Size of the log, bytes; default: 1/64 of the device, 16 MiB to 1 GiB.
    pub log_bytes: Option<u64>,
}

/// How a store is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Changes nothing on the device: what the log holds is replayed in memory.
    pub read_only: bool,
    /// Limit of the cache of index blocks.
    pub cache_bytes: usize,
    /// A checkpoint begins when the memtable has grown to this.
    pub memtable_bytes_max: usize,
    /// Objects kept in memory although nobody uses them.
    pub objects_max: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options { read_only: false, cache_bytes: 32 << 20, memtable_bytes_max: 32 << 20, objects_max: 32 << 10 }
    }
}

/// What is on a device, as far as its superblocks tell.
#[derive(Debug)]
pub enum Probe {
    /// No store.
    Nothing,
    /// A store of this format.
    Store(StoreInfo),
    /// A store of another version, or with features that are not known here.
    Newer {
        /// Its version.
        version: u32,
        /// Feature bits unknown here.
        unknown_features: u64,
    },
    /// There are superblocks, but none is whole.
    Damaged,
}

/// What a superblock says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreInfo {
    /// Of the store.
    pub uuid: Uuid,
    /// What mkfs wrote.
    pub label: Vec<u8>,
    /// Size of the device when it was formatted.
    pub device_bytes: u64,
    /// Superblocks written so far.
    pub generation: u64,
    /// Whether it was closed.
    pub clean: bool,
    /// Last transaction in the checkpoint.
    pub checkpoint_transno: Transno,
    /// The log, on the device.
    pub log: Range<u64>,
    /// Space for data and index.
    pub space: Range<u64>,
}

/// A store on a block device.
pub struct Osd {
    inner: Rc<Inner>,
    tasks: RefCell<Option<Tasks>>,
}

/// What runs beside the callers while a store is open.
struct Tasks {
    writer: JoinHandle<()>,
    flusher: JoinHandle<()>,
    ticker: JoinHandle<()>,
    checkpoints: JoinHandle<()>,
    merges: JoinHandle<()>,
}

pub(crate) struct Inner {
    pub(crate) bdev: BdevRef,
    pub(crate) tree: Rc<Tree>,
    pub(crate) space: Rc<Space>,
    pub(crate) log: Rc<Log>,
    pub(crate) objects: Objects,
    pub(crate) object_count: Cell<u64>,
    options: Options,
    superblock: RefCell<Superblock>,
    /// What the newest checkpoint stands for. Merges write the same again with other runs.
    root: RefCell<RootInfo>,
    /// Held while a checkpoint is made, and while superblocks are written.
    checkpoint_lock: tokio::sync::Mutex<()>,
    root_lock: tokio::sync::Mutex<()>,
    state: Cell<OpenState>,
    /// Why the last checkpoint failed, if it did.
    checkpoint_failed: RefCell<Option<(StoreErrorKind, String)>>,
    /// Submits that may have I/O under way.
    submits: Cell<usize>,
    /// Index writes fail: merges end.
    index_stopped: Rc<Cell<bool>>,
}

/// ```text
/// Open ──► Closed        ReadOnly
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OpenState {
    Open,
    ReadOnly,
    Closed,
}

impl Osd {
    /// Writes an empty store. Whatever was on the device is gone.
    pub async fn format(bdev: &BdevRef, options: &FormatOptions) -> Result<(), StoreError> {
        let device_bytes = bdev.info().bytes() / BLOCK_BYTES * BLOCK_BYTES;
        if device_bytes < DEVICE_BYTES_MIN {
            let context = format!("the device has {device_bytes} bytes; a store needs {DEVICE_BYTES_MIN}");
            return Err(error(StoreErrorKind::Invalid, "format", None, &context));
        }
        check_label(&options.label)?;
        let log_bytes = options.log_bytes.unwrap_or(device_bytes / 64).clamp(LOG_BYTES_MIN, LOG_BYTES_MAX);
        let log_bytes = log_bytes.min(device_bytes / 3) / BLOCK_BYTES * BLOCK_BYTES;
        let log = Extent { offset: 2 * BLOCK_BYTES, length: log_bytes };
        let start = log.offset + log.length;
        let superblock = Superblock {
            uuid: options.uuid,
            generation: 1,
            device_bytes,
            log,
            space: Extent { offset: start, length: device_bytes - 2 * BLOCK_BYTES - start },
            label: options.label.clone(),
            clean: true,
            root: RootPointer {
                log_sequence: 1,
                log_epoch: 1,
                log_previous_crc: crc_fast::crc32_iscsi(&options.uuid.0),
                ..RootPointer::default()
            },
        };
        let device = |source| io_error("format", None, source);
        // An older store must not be found again if this is interrupted.
        let zeros = Bytes::from(vec![0; BLOCK_BYTES as usize]);
        for place in Superblock::all_places(device_bytes) {
            bdev.write(place, vec![zeros.clone()]).await.map_err(device)?;
        }
        // Nor the first frame of its log, if it had this UUID.
        bdev.write(log.offset, vec![zeros]).await.map_err(device)?;
        bdev.flush().await.map_err(device)?;
        checkpoint::write_superblock(bdev, &superblock).await
    }

    /// Reads only the superblocks.
    pub async fn probe(bdev: &BdevRef) -> Result<Probe, StoreError> {
        Ok(match recovery::find_superblock(bdev).await? {
            Found::Nothing => Probe::Nothing,
            Found::Damaged => Probe::Damaged,
            Found::Newer { version, unknown_features } => Probe::Newer { version, unknown_features },
            Found::Valid(superblock) => Probe::Store(StoreInfo {
                uuid: superblock.uuid,
                device_bytes: superblock.device_bytes,
                generation: superblock.generation,
                clean: superblock.clean,
                checkpoint_transno: superblock.root.transno,
                log: superblock.log.offset..superblock.log.offset + superblock.log.length,
                space: superblock.space.offset..superblock.space.offset + superblock.space.length,
                label: superblock.label,
            }),
        })
    }

    /// Opens a store: superblock, checkpoint, log. Must be called on a reactor (a tokio `LocalSet`); background tasks run there
    /// until the store is closed or dropped.
    pub async fn open(bdev: BdevRef, options: Options) -> Result<Rc<Osd>, StoreError> {
        let read_only = options.read_only;
        let inner = Rc::new(recovery::recover(bdev, options).await?);
        let osd = Rc::new(Osd { inner: inner.clone(), tasks: RefCell::default() });
        if read_only {
            return Ok(osd);
        }
        // The new epoch must be on the disk before its first frame. What was replayed goes to runs, so the old log is done with.
        inner.checkpoint(false).await?;
        let log = &inner.log;
        *osd.tasks.borrow_mut() = Some(Tasks {
            writer: tokio::task::spawn_local(log.clone().run_writer()),
            flusher: tokio::task::spawn_local(log.clone().run_flusher()),
            ticker: tokio::task::spawn_local(log.clone().run_ticker()),
            checkpoints: tokio::task::spawn_local(inner.clone().run_checkpoints()),
            merges: tokio::task::spawn_local(inner.clone().run_merges()),
        });
        Ok(osd)
    }

    /// Name of the store.
    pub fn uuid(&self) -> Uuid {
        self.inner.superblock.borrow().uuid
    }

    /// Makes a checkpoint now. The store makes them when they are due; tests and tools may ask.
    pub async fn checkpoint(&self) -> Result<(), StoreError> {
        self.inner.checkpoint(false).await
    }
}

impl Drop for Osd {
    fn drop(&mut self) {
        if let Some(tasks) = self.tasks.get_mut() {
            for task in [&tasks.writer, &tasks.flusher, &tasks.ticker, &tasks.checkpoints, &tasks.merges] {
                task.abort();
            }
            // Submits are tasks of their own: what they have not begun they leave.
            self.inner.log.fail("the store was dropped".to_owned());
        }
    }
}

impl Inner {
    fn check_usable(&self, op: &'static str) -> Result<(), StoreError> {
        match self.state.get() {
            OpenState::Open => self.log.check(op),
            OpenState::ReadOnly => Err(error(StoreErrorKind::ReadOnly, op, None, "the store was opened read-only")),
            OpenState::Closed => Err(error(StoreErrorKind::ReadOnly, op, None, "the store is closed")),
        }
    }

    async fn wait(&self, transno: Transno, durability: Durability) -> Result<(), StoreError> {
        self.log.wait(transno, durability).await
    }

    async fn set_label(&self, label: Vec<u8>) -> Result<(), StoreError> {
        check_label(&label)?;
        let _guard = self.root_lock.lock().await;
        self.check_usable("set label")?;
        let mut superblock = self.superblock.borrow().clone();
        superblock.label = label;
        self.replace_superblock(superblock).await
    }
}

impl Osd {
    /// Every write that is under way is waited for: nothing may reach the device once somebody else has opened it.
    async fn close_all(&self) -> Result<(), StoreError> {
        let inner = &self.inner;
        // A store whose log failed is brought to rest too; then the error is told.
        if inner.state.get() != OpenState::Open {
            inner.check_usable("close")?;
        }
        inner.state.set(OpenState::Closed);
        let Some(tasks) = self.tasks.borrow_mut().take() else { return Ok(()) };
        tasks.ticker.abort();
        // A merge may have far to go: its next write fails instead, and what it wrote is nobody's.
        inner.index_stopped.set(true);
        inner.log.tell_change();
        let ended = tasks.merges.await;
        inner.index_stopped.set(false);
        while inner.submits.get() > 0 {
            inner.log.changed().await;
        }
        let closed = match ended {
            Ok(()) => match inner.log.check("close") {
                Ok(()) => inner.checkpoint(true).await,
                failed => failed,
            },
            Err(stopped) => Err(error(StoreErrorKind::Io, "close", None, &stopped.to_string())),
        };
        // One that is under way is not cut off in the middle of a write.
        drop(inner.checkpoint_lock.lock().await);
        tasks.checkpoints.abort();
        inner.log.stop();
        for task in [tasks.writer, tasks.flusher] {
            // A task that panicked has said so itself.
            let _ = task.await;
        }
        if closed.is_err() {
            // Nobody will write what somebody may still wait for.
            inner.log.fail("the store was closed with an error".to_owned());
        }
        closed
    }
}

impl Store for Osd {
    fn submit(&self, transaction: Transaction) -> Fut<'_, Result<Transno, StoreError>> {
        let mut submit: LocalBoxFuture<'static, _> = Box::pin(self.inner.clone().submit(transaction));
        Box::pin(async move {
            // Most changes need no I/O and are done here. Others go on in a task of their own: if the caller goes away in the
            // middle, locks must stay held and space reserved until the device is done.
            let first = poll_fn(|context| Poll::Ready(Pin::new(&mut submit).poll(context))).await;
            if let Poll::Ready(result) = first {
                return result;
            }
            match tokio::task::spawn_local(submit).await {
                Ok(result) => result,
                Err(stopped) => Err(error(StoreErrorKind::ReadOnly, "submit", None, &stopped.to_string())),
            }
        })
    }

    fn wait(&self, transno: Transno, durability: Durability) -> Fut<'_, Result<(), StoreError>> {
        Box::pin(self.inner.wait(transno, durability))
    }

    fn last_transno(&self) -> Transno {
        self.inner.log.last()
    }

    fn last_committed(&self) -> Transno {
        self.inner.log.stable()
    }

    fn attr(&self, fid: Fid) -> Fut<'_, Result<Attr, StoreError>> {
        Box::pin(self.inner.attr(fid))
    }

    fn read(&self, fid: Fid, offset: u64, length: usize) -> Fut<'_, Result<Bytes, StoreError>> {
        Box::pin(self.inner.read(fid, offset, length))
    }

    fn xattr<'a>(&'a self, fid: Fid, name: &'a [u8]) -> Fut<'a, Result<Option<Vec<u8>>, StoreError>> {
        Box::pin(self.inner.xattr(fid, name))
    }

    fn xattrs(&self, fid: Fid) -> Fut<'_, Result<Vec<(Vec<u8>, Vec<u8>)>, StoreError>> {
        Box::pin(self.inner.xattrs(fid))
    }

    fn get<'a>(&'a self, index: Fid, key: &'a [u8]) -> Fut<'a, Result<Option<Vec<u8>>, StoreError>> {
        Box::pin(self.inner.index_get(index, key))
    }

    fn scan<'a>(
        &'a self,
        index: Fid,
        after: Option<&'a [u8]>,
        limit: usize,
    ) -> Fut<'a, Result<Vec<(Vec<u8>, Vec<u8>)>, StoreError>> {
        Box::pin(self.inner.scan_kind(Kind::Index, index, after, limit))
    }

    fn seek(&self, fid: Fid, offset: u64, what: Seek) -> Fut<'_, Result<Option<u64>, StoreError>> {
        Box::pin(self.inner.seek(fid, offset, what))
    }

    fn extents(&self, fid: Fid, range: Range<u64>, limit: usize) -> Fut<'_, Result<Vec<ExtentInfo>, StoreError>> {
        Box::pin(self.inner.extents(fid, range, limit))
    }

    fn objects(&self, after: Option<Fid>, limit: usize) -> Fut<'_, Result<Vec<Fid>, StoreError>> {
        Box::pin(self.inner.object_fids(after, limit))
    }

    fn space(&self) -> SpaceInfo {
        SpaceInfo {
            total_bytes: self.inner.space.total_bytes(),
            free_bytes: self.inner.space.free_bytes(),
            objects: self.inner.object_count.get(),
            block_bytes: BLOCK_BYTES as u32,
        }
    }

    fn object_bytes_max(&self) -> u64 {
        OBJECT_BYTES_MAX
    }

    fn label(&self) -> Vec<u8> {
        self.inner.superblock.borrow().label.clone()
    }

    fn set_label(&self, label: Vec<u8>) -> Fut<'_, Result<(), StoreError>> {
        let inner = self.inner.clone();
        Box::pin(async move {
            // In a task of its own: an abandoned superblock could arrive after the next one.
            let set = tokio::task::spawn_local(async move { inner.set_label(label).await });
            set.await
                .unwrap_or_else(|stopped| Err(error(StoreErrorKind::ReadOnly, "set label", None, &stopped.to_string())))
        })
    }

    fn close(&self) -> Fut<'_, Result<(), StoreError>> {
        Box::pin(self.close_all())
    }
}

fn check_label(label: &[u8]) -> Result<(), StoreError> {
    if label.len() > LABEL_BYTES_MAX {
        return Err(error(StoreErrorKind::TooBig, "set label", None, "a label has at most 2048 bytes"));
    }
    Ok(())
}

pub(crate) fn error(kind: StoreErrorKind, op: &'static str, fid: Option<Fid>, context: &str) -> StoreError {
    StoreError { kind, op, fid, context: context.to_owned(), source: None }
}

pub(crate) fn io_error(op: &'static str, fid: Option<Fid>, source: BdevError) -> StoreError {
    StoreError {
        kind: StoreErrorKind::Io,
        op,
        fid,
        context: "the device failed".to_owned(),
        source: Some(Box::new(source)),
    }
}

fn corrupt(fid: Fid, what: &str) -> StoreError {
    error(StoreErrorKind::Corrupt, "read", Some(fid), &format!("{what} cannot be what was written"))
}

const LOG_BYTES_MIN: u64 = 16 << 20;
const LOG_BYTES_MAX: u64 = 1 << 30;
