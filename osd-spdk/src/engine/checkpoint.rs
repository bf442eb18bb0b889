//! Checkpoints: what the log built up goes to runs, then the log's tail moves.
//!
//! ```text
//! load dirty regions ─► freeze: space map into the memtable, memtable closed, log position noted (one step)
//!                    ─► write runs ─► write root ─► flush ─► superblock A ─► flush ─► superblock B ─► flush
//!                    ─► install runs, move the tail, free the old root and old runs
//! ```
//!
//! Writers go on all the while, in a new memtable. A merge does the second half only: the same transaction and log
//! position, other runs.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use nacre_reactor::{Bytes, DmaBuf};

use super::index::{ManifestEdit, RunIo};
use super::space::{Purpose, Space};
use super::{Inner, OpenState, error, io_error};
use crate::bdev::BdevRef;
use crate::format::log::Cursor;
use crate::format::root::Root;
use crate::format::run::Extent;
use crate::format::superblock::{BLOCK_BYTES, ROOT_EXTENTS_MAX, RootPointer, Superblock};
use crate::store::{Fut, StoreError, StoreErrorKind, Transno};

/// The moment that a checkpoint stands for.
#[derive(Clone, Debug)]
pub(crate) struct RootInfo {
    pub transno: Transno,
    pub cursor: Cursor,
    pub taken_blocks: u64,
    pub objects: u64,
}

impl Inner {
    /// Whether memtable or log are large enough to be checkpointed.
    pub(crate) fn checkpoint_is_due(&self) -> bool {
        self.tree.memtable_bytes() > self.options.memtable_bytes_max || self.log.is_half_full()
    }

    /// Whether writers must wait for a checkpoint, because memory would not stay bounded.
    pub(crate) fn index_is_behind(&self) -> bool {
        let behind = self.tree.memtable_bytes() > 2 * self.options.memtable_bytes_max
            || (self.tree.frozen_bytes() > 0 && self.tree.memtable_bytes() > self.options.memtable_bytes_max * 3 / 2);
        if behind {
            self.log.wants_checkpoint.notify_one();
        }
        behind
    }

    /// Makes a checkpoint of everything visible.
    pub(crate) async fn checkpoint(&self, clean: bool) -> Result<(), StoreError> {
        let result = self.make_checkpoint(clean).await;
        self.checkpoint_failed.replace(result.as_ref().err().map(|error| (error.kind, error.to_string())));
        result
    }

    async fn make_checkpoint(&self, clean: bool) -> Result<(), StoreError> {
        let _guard = self.checkpoint_lock.lock().await;
        self.space.load_dirty().await?;
        // One step: nothing commits between here and the end of the block.
        let info = {
            self.tree.apply(self.space.snapshot());
            self.tree.freeze();
            let (transno, cursor) = self.log.mark();
            let (taken_blocks, objects) = (self.space.taken_blocks(), self.object_count.get());
            RootInfo { transno, cursor, taken_blocks, objects }
        };
        let edit = self.no_lost_flush(self.tree.flush_frozen().await)?;
        self.write_root(Some(info.clone()), edit, clean).await?;
        self.log.checkpointed(info.transno, &info.cursor);
        self.space.proven(self.log.proven());
        Ok(())
    }

    /// A device tells once that it lost what it had in its cache, and that may be anybody's: the next flush would succeed.
    fn no_lost_flush<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        if let Err(error) = &result
            && error.op == FLUSH_INDEX
        {
            self.log.fail(format!(
                "the device could not be flushed ({error}); the store takes no changes until it is restarted"
            ));
        }
        result
    }

    /// Persists the runs as edited, and a new moment if there is one; then readers switch.
    async fn write_root(
        &self,
        info: Option<RootInfo>,
        edit: Option<ManifestEdit>,
        clean: bool,
    ) -> Result<(), StoreError> {
        let _guard = self.root_lock.lock().await;
        let info = info.unwrap_or_else(|| self.root.borrow().clone());
        let mut runs = self.tree.manifest();
        if let Some(edit) = &edit {
            runs.retain(|run| !edit.removed.iter().any(|gone| gone.id == run.id));
            runs.extend(edit.added.iter().cloned());
        }
        runs.sort_by_key(|run| std::cmp::Reverse(run.sequence_last));
        let root = Root { taken_blocks: info.taken_blocks, objects: info.objects, runs };
        let old = self.superblock.borrow().root.extents.clone();
        let result = match self.write_root_blocks(&root, &info, clean).await {
            Ok(superblock) => self.replace_superblock(superblock).await,
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            // The superblock may or may not be on the disk: only a restart can tell which runs are named.
            if error.kind == StoreErrorKind::Io {
                self.log.fail(format!("a checkpoint could not be written ({error})"));
            } else if let Some(edit) = edit {
                self.tree.abandon(edit);
            }
            return Err(error);
        }
        old.into_iter().for_each(|extent| self.space.set_busy(extent, false));
        if let Some(edit) = edit {
            self.tree.install(edit);
        }
        *self.root.borrow_mut() = info;
        self.space.set_index_bytes(root.runs.iter().map(|run| run.bytes).sum());
        self.free_unused_runs();
        Ok(())
    }

    /// Writes the root into fresh space; the answer is the superblock that names it.
    async fn write_root_blocks(&self, root: &Root, info: &RootInfo, clean: bool) -> Result<Superblock, StoreError> {
        // After a failed checkpoint its runs are named by nobody, or by a superblock that may or may not be on the disk:
        // a root without them would move the log's tail past what they hold.
        self.log.check("checkpoint")?;
        let bytes = root.encode();
        let blocks = (bytes.len() as u64).div_ceil(BLOCK_BYTES);
        let promise = self.space.promise(blocks, Purpose::Internal)?;
        let reservation = self.space.allocate(&promise, blocks, None).await?;
        if reservation.extents.len() > ROOT_EXTENTS_MAX {
            return Err(error(StoreErrorKind::NoSpace, "checkpoint", None, "free space is in too small pieces"));
        }
        let mut padded = DmaBuf::zeroed((blocks * BLOCK_BYTES) as usize);
        padded[..bytes.len()].copy_from_slice(&bytes);
        let padded = padded.freeze();
        let mut at = 0;
        for extent in &reservation.extents {
            let part = padded.slice(at..at + extent.length as usize);
            let written = self.bdev.write(extent.offset, vec![part]).await;
            written.map_err(|source| io_error("checkpoint", None, source))?;
            at += extent.length as usize;
        }
        // The root, and the data of every transaction that the checkpoint holds.
        self.bdev.flush().await.map_err(|source| io_error("checkpoint", None, source))?;
        // A flush of the log that failed meanwhile may have lost what this one was to make stable.
        self.log.check("checkpoint")?;
        let root = RootPointer {
            transno: info.transno,
            log_position: info.cursor.position,
            log_sequence: info.cursor.sequence,
            log_epoch: info.cursor.epoch,
            log_previous_crc: info.cursor.previous_crc,
            crc: crc_fast::crc32_iscsi(&bytes),
            bytes: bytes.len() as u64,
            extents: reservation.take(),
        };
        Ok(Superblock { root, clean, ..self.superblock.borrow().clone() })
    }

    /// Writes the next generation. Under the root lock.
    pub(crate) async fn replace_superblock(&self, mut superblock: Superblock) -> Result<(), StoreError> {
        superblock.generation = self.superblock.borrow().generation + 1;
        write_superblock(&self.bdev, &superblock).await?;
        *self.superblock.borrow_mut() = superblock;
        Ok(())
    }

    fn free_unused_runs(&self) {
        for run in self.tree.take_unused() {
            run.extents.into_iter().for_each(|extent| self.space.set_busy(extent, false));
        }
    }

    /// Makes checkpoints when they are due. Runs for as long as the store is open.
    pub(crate) async fn run_checkpoints(self: Rc<Inner>) {
        loop {
            self.log.wants_checkpoint.notified().await;
            if self.state.get() != OpenState::Open || self.log.check("checkpoint").is_err() {
                return;
            }
            if !self.checkpoint_is_due() {
                continue;
            }
            if let Err(error) = self.checkpoint(false).await {
                tracing::warn!(%error, "a checkpoint failed");
                self.log.tell_change();
                // Out of space, most likely: a merge may make room meanwhile.
                tokio::time::sleep(RETRY).await;
                self.log.wants_checkpoint.notify_one();
            }
            self.log.tell_change();
        }
    }

    /// Merges runs in the background. Runs for as long as the store is open.
    pub(crate) async fn run_merges(self: Rc<Inner>) {
        loop {
            let changed = self.log.changed();
            if self.state.get() != OpenState::Open || self.log.check("merge").is_err() {
                return;
            }
            self.space.proven(self.log.proven());
            self.free_unused_runs();
            let merged = match self.no_lost_flush(self.tree.merge_step().await) {
                Ok(Some(edit)) => self.write_root(None, Some(edit), false).await.map(|()| true),
                Ok(None) => Ok(false),
                Err(error) => Err(error),
            };
            match merged {
                Ok(true) => {}
                Ok(false) => changed.await,
                Err(_) if self.state.get() != OpenState::Open => return,
                Err(error) => {
                    tracing::warn!(%error, "runs could not be merged");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }
}

/// Writes a superblock to both its places, one after the other: one of them is whole at any moment.
pub(crate) async fn write_superblock(bdev: &BdevRef, superblock: &Superblock) -> Result<(), StoreError> {
    let device = |source| io_error("write the superblock", None, source);
    let block = Bytes::from(superblock.encode());
    for place in superblock.places() {
        bdev.write(place, vec![block.clone()]).await.map_err(device)?;
        bdev.flush().await.map_err(device)?;
    }
    Ok(())
}

/// Where the index keeps its runs: in the space.
pub(crate) struct EngineIo {
    pub bdev: BdevRef,
    pub space: Rc<Space>,
    /// Nothing more is written.
    pub stopped: Rc<Cell<bool>>,
}

impl RunIo for EngineIo {
    fn allocate(&self, bytes: u64) -> Fut<'static, Result<Vec<Extent>, StoreError>> {
        let space = self.space.clone();
        Box::pin(async move {
            let blocks = bytes.div_ceil(BLOCK_BYTES);
            let promise = space.promise(blocks, Purpose::Internal)?;
            Ok(space.allocate(&promise, blocks, None).await?.take())
        })
    }

    fn free(&self, extents: &[Extent]) {
        extents.iter().for_each(|extent| self.space.set_busy(*extent, false));
    }

    fn read(&self, extent: Extent) -> Fut<'static, Result<DmaBuf, StoreError>> {
        let read = self.bdev.read(extent.offset, extent.length as usize);
        Box::pin(async move { read.await.map_err(|source| io_error("read the index", None, source)) })
    }

    fn write(&self, offset: u64, data: Vec<Bytes>) -> Fut<'static, Result<(), StoreError>> {
        if self.stopped.get() {
            let stopped = error(StoreErrorKind::ReadOnly, "write the index", None, "the store is being closed");
            return Box::pin(async move { Err(stopped) });
        }
        let write = self.bdev.write(offset, data);
        Box::pin(async move { write.await.map_err(|source| io_error("write the index", None, source)) })
    }

    fn flush(&self) -> Fut<'static, Result<(), StoreError>> {
        let flush = self.bdev.flush();
        Box::pin(async move { flush.await.map_err(|source| io_error(FLUSH_INDEX, None, source)) })
    }
}

const FLUSH_INDEX: &str = "flush the index";
const RETRY: Duration = Duration::from_secs(1);
