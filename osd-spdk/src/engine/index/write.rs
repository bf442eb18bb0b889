//! Writing a run: entries in, blocks out, in writes of half a mebibyte.

use std::rc::Rc;

use nacre_reactor::DmaBuf;

use super::blocks::{Cache, Cached, device_pieces};
use super::{Extent, RunIo, TreeOptions};
use crate::format::filter::{Filter, hash_key, hash_prefix};
use crate::format::run::{
    BlockKind, BlockRef, EntriesWriter, Footer, Partition, RUN_ALIGN_BYTES, RUN_EXTENTS_MAX, RunHandle, encode_block,
};
use crate::store::{StoreError, StoreErrorKind};

/// A run being written. Space is taken as it grows and what is too much goes back at the end. A writer that is not finished must
/// be [`RunWriter::discard`]ed.
pub(super) struct RunWriter {
    io: Rc<dyn RunIo>,
    options: TreeOptions,
    handle: RunHandle,
    /// Bytes that are still expected: how much to allocate at once.
    expected_bytes: u64,
    data: EntriesWriter,
    index: EntriesWriter,
    hashes: Vec<u64>,
    partitions: EntriesWriter,
    partition_blocks: Vec<(u64, Rc<Partition>)>,
    smallest: Option<Box<[u8]>>,
    last_prefix: Vec<u8>,
    scratch: Vec<u8>,
    /// Encoded and not written; starts at a page of the run.
    pending: Vec<u8>,
    pending_offset: u64,
}

impl RunWriter {
    /// A writer of a run of about `expected_bytes`.
    pub(super) fn new(io: Rc<dyn RunIo>, options: TreeOptions, id: u64, expected_bytes: u64) -> RunWriter {
        let handle = RunHandle {
            id,
            sequence_first: 0,
            sequence_last: 0,
            keys: 0,
            tombstones: 0,
            bytes: 0,
            footer_offset: 0,
            footer_crc: 0,
            level: 0,
            extents: Vec::new(),
        };
        RunWriter {
            io,
            options,
            handle,
            expected_bytes,
            data: EntriesWriter::default(),
            index: EntriesWriter::default(),
            hashes: Vec::new(),
            partitions: EntriesWriter::default(),
            partition_blocks: Vec::new(),
            smallest: None,
            last_prefix: Vec::new(),
            scratch: Vec::new(),
            pending: Vec::new(),
            pending_offset: 0,
        }
    }

    /// Adds an entry; keys ascend. True: enough is gathered, call [`RunWriter::write_out`].
    pub(super) fn add(&mut self, key: &[u8], value: Option<&[u8]>) -> bool {
        if self.smallest.is_none() {
            self.smallest = Some(key.into());
        }
        self.handle.keys += 1;
        self.handle.tombstones += u64::from(value.is_none());
        self.hashes.push(hash_key(key));
        let prefix_bytes = self.options.filter_prefix_bytes;
        if prefix_bytes > 0 && key.len() >= prefix_bytes && key[..prefix_bytes] != *self.last_prefix {
            self.last_prefix = key[..prefix_bytes].to_vec();
            self.hashes.push(hash_prefix(&self.last_prefix));
        }
        self.data.add(key, value);
        if self.data.bytes() >= self.options.block_bytes {
            self.close_data();
            if self.index.len() >= PARTITION_BLOCKS {
                self.close_partition();
            }
        }
        self.pending.len() >= WRITE_BYTES
    }

    /// Writes whole pages of what is gathered.
    pub(super) async fn write_out(&mut self) -> Result<(), StoreError> {
        let bytes = self.pending.len() / RUN_ALIGN_BYTES as usize * RUN_ALIGN_BYTES as usize;
        self.write_pending(bytes).await
    }

    /// Writes the rest and the footer. The handle is complete but for sequence numbers and level, which are `handle`'s to set before.
    /// `None`: there was no entry, nothing was written.
    pub(super) async fn finish(
        mut self,
        sequences: (u64, u64),
        level: u8,
        cache: &Cache,
    ) -> Result<Option<RunHandle>, StoreError> {
        let Some(smallest) = self.smallest.take() else {
            self.discard();
            return Ok(None);
        };
        self.close_data();
        self.close_partition();
        (self.handle.sequence_first, self.handle.sequence_last) = sequences;
        self.handle.level = level;
        let prefix_bytes = self.options.filter_prefix_bytes;
        let payload = Footer::encode(&self.handle, prefix_bytes, &smallest, &mut self.partitions);
        self.handle.footer_offset = self.pending_offset + self.pending.len() as u64;
        self.handle.footer_crc = encode_block(BlockKind::Footer, &payload, self.options.compress, &mut self.pending);
        self.handle.bytes = self.pending_offset + self.pending.len() as u64;
        self.pending.resize(self.pending.len().next_multiple_of(RUN_ALIGN_BYTES as usize), 0);
        let written = match self.write_pending(self.pending.len()).await {
            Ok(()) => self.io.flush().await,
            Err(error) => Err(error),
        };
        if let Err(error) = written {
            self.discard();
            return Err(error);
        }
        self.give_back_rest();
        for (offset, partition) in self.partition_blocks {
            cache.insert((self.handle.id, offset), Cached::Partition(partition));
        }
        Ok(Some(self.handle))
    }

    /// Gives all space back.
    pub(super) fn discard(self) {
        if !self.handle.extents.is_empty() {
            self.io.free(&self.handle.extents);
        }
    }

    fn close_data(&mut self) {
        if self.data.is_empty() {
            return;
        }
        let last_key = self.data.last_key().to_vec();
        self.scratch.clear();
        self.data.finish(&mut self.scratch);
        let block = push_block(BlockKind::Data, &self.scratch, &self.options, self.pending_offset, &mut self.pending);
        self.index.add_ref(&last_key, block);
    }

    fn close_partition(&mut self) {
        if self.index.is_empty() {
            return;
        }
        let last_key = self.index.last_key().to_vec();
        let payload = Partition::encode(&Filter::build(&self.hashes), &mut self.index);
        self.hashes.clear();
        // A prefix that goes on in the next partition must be in that one's filter too.
        self.last_prefix.clear();
        let block = push_block(BlockKind::Partition, &payload, &self.options, self.pending_offset, &mut self.pending);
        self.partitions.add_ref(&last_key, block);
        if let Ok(partition) = Partition::parse(payload) {
            self.partition_blocks.push((block.offset, Rc::new(partition)));
        }
    }

    async fn write_pending(&mut self, bytes: usize) -> Result<(), StoreError> {
        let room: u64 = self.handle.extents.iter().map(|extent| extent.length).sum();
        let end = self.pending_offset + bytes as u64;
        if end > room {
            let needed = (end - room).next_multiple_of(RUN_ALIGN_BYTES);
            let expected = self.expected_bytes.saturating_sub(room).min(ALLOCATE_BYTES_MAX);
            let more = match self.io.allocate(expected.next_multiple_of(RUN_ALIGN_BYTES).max(needed)).await {
                // The expectation counts memory, and knows nothing of compression: a full device may still have enough.
                Err(error) if error.kind == StoreErrorKind::NoSpace && expected > needed => {
                    self.io.allocate(needed).await?
                }
                other => other?,
            };
            for extent in more {
                match self.handle.extents.last_mut() {
                    Some(last) if last.offset + last.length == extent.offset => last.length += extent.length,
                    _ => self.handle.extents.push(extent),
                }
            }
            if self.handle.extents.len() > RUN_EXTENTS_MAX {
                return Err(StoreError {
                    kind: StoreErrorKind::NoSpace,
                    op: "index",
                    fid: None,
                    context: format!("free space is in too many pieces for run {}", self.handle.id),
                    source: None,
                });
            }
        }
        let mut done = 0;
        for piece in device_pieces(&self.handle.extents, self.pending_offset, bytes as u64) {
            let length = piece.length as usize;
            let data = DmaBuf::copy_from(&self.pending[done..done + length]).freeze();
            self.io.write(piece.offset, vec![data]).await?;
            done += length;
        }
        self.pending.drain(..bytes);
        self.pending_offset += bytes as u64;
        Ok(())
    }

    fn give_back_rest(&mut self) {
        let mut left = self.handle.bytes.next_multiple_of(RUN_ALIGN_BYTES);
        let mut rest = Vec::new();
        for extent in std::mem::take(&mut self.handle.extents) {
            let kept = left.min(extent.length);
            left -= kept;
            if kept > 0 {
                self.handle.extents.push(Extent { offset: extent.offset, length: kept });
            }
            if kept < extent.length {
                rest.push(Extent { offset: extent.offset + kept, length: extent.length - kept });
            }
        }
        if !rest.is_empty() {
            self.io.free(&rest);
        }
    }
}

fn push_block(kind: BlockKind, payload: &[u8], options: &TreeOptions, base: u64, pending: &mut Vec<u8>) -> BlockRef {
    let start = pending.len();
    let crc = encode_block(kind, payload, options.compress, pending);
    BlockRef { offset: base + start as u64, bytes: (pending.len() - start) as u32, crc }
}

/// Data blocks under one partition: with 8 KiB blocks a mebibyte, whose filter and index take about 20 KiB.
const PARTITION_BLOCKS: usize = 128;
/// Bytes per write.
const WRITE_BYTES: usize = 512 << 10;
/// Most space taken at once.
const ALLOCATE_BYTES_MAX: u64 = 64 << 20;
