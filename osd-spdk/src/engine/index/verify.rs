//! Checking a run whole: every block, the order of all keys, the filters, the counts.

use std::rc::Rc;

use super::RunIo;
use super::blocks::{Run, device_pieces, read_data, read_partition};
use crate::format::filter::{hash_key, hash_prefix};
use crate::format::run::{BlockRef, Cursor, Entries, Partition, RunHandle};
use crate::store::StoreError;

/// What a run holds, and what of it is damaged.
#[derive(Default)]
pub(crate) struct RunCheck {
    pub(crate) keys: u64,
    pub(crate) tombstones: u64,
    pub(crate) data_blocks: u64,
    pub(crate) partitions: u64,
    /// In the order of their keys.
    pub(crate) damage: Vec<RunDamage>,
}

/// A part of a run that cannot be trusted.
pub(crate) struct RunDamage {
    /// Keys after this one, up to `to`, may be concerned.
    pub(crate) from: Vec<u8>,
    pub(crate) to: Vec<u8>,
    pub(crate) device_offset: Option<u64>,
    pub(crate) what: String,
}

/// Reads all of a run. Fails when not even its footer can be read.
pub(crate) async fn verify_run(io: &dyn RunIo, handle: &RunHandle) -> Result<RunCheck, StoreError> {
    let run = Run::open(io, handle.clone()).await?;
    let mut verifier = Verifier { io, run: &run, check: RunCheck::default(), last: Vec::new(), first_key_seen: false };
    let mut top = Cursor::first(Rc::clone(&run.footer.partitions));
    while let Some(at) = top.block() {
        verifier.partition(at, top.key()).await;
        top.advance();
        tokio::task::yield_now().await;
    }
    let mut check = verifier.check;
    let counted = (check.keys, check.tombstones);
    if check.damage.is_empty() && counted != (handle.keys, handle.tombstones) {
        let what = format!(
            "holds {} keys and {} tombstones, its handle says {} and {}",
            counted.0, counted.1, handle.keys, handle.tombstones
        );
        let (from, to) = (Vec::new(), run.footer.largest.to_vec());
        check.damage.push(RunDamage { from, to, device_offset: None, what });
    }
    Ok(check)
}

struct Verifier<'a> {
    io: &'a dyn RunIo,
    run: &'a Run,
    check: RunCheck,
    /// Last key that was passed.
    last: Vec<u8>,
    first_key_seen: bool,
}

impl Verifier<'_> {
    async fn partition(&mut self, at: BlockRef, last_key: &[u8]) {
        self.check.partitions += 1;
        match read_partition(self.io, &self.run.handle, at).await {
            Ok(partition) => {
                let mut index = Cursor::first(Rc::clone(&partition.index));
                while let Some(at) = index.block() {
                    self.data(at, index.key(), &partition).await;
                    index.advance();
                }
                if self.last != last_key {
                    self.damaged(at, last_key, "a partition ends with another key than the footer says".into());
                }
            }
            Err(error) => self.damaged(at, last_key, error.context),
        }
    }

    async fn data(&mut self, at: BlockRef, last_key: &[u8], partition: &Partition) {
        self.check.data_blocks += 1;
        let entries = match read_data(self.io, &self.run.handle, at).await {
            Ok(entries) => entries,
            Err(error) => return self.damaged(at, last_key, error.context),
        };
        match self.entries(&entries, last_key, partition) {
            Ok(()) => {
                self.check.keys += entries.keys as u64;
                self.check.tombstones += entries.tombstones as u64;
                self.last = last_key.to_vec();
            }
            Err(what) => self.damaged(at, last_key, what.into()),
        }
    }

    fn entries(&mut self, entries: &Rc<Entries>, last_key: &[u8], partition: &Partition) -> Result<(), &'static str> {
        let footer = &self.run.footer;
        let mut cursor = Cursor::first(Rc::clone(entries));
        if self.first_key_seen && cursor.key() <= self.last.as_slice() {
            return Err("a block begins before the end of the one before");
        }
        if !self.first_key_seen && self.check.damage.is_empty() && cursor.key() != &*footer.smallest {
            return Err("the first key is not the smallest key of the footer");
        }
        self.first_key_seen = true;
        let mut end = Vec::new();
        while cursor.valid() {
            let prefix = footer.filter_prefix_bytes;
            let prefix = cursor.key().get(..prefix).filter(|prefix| !prefix.is_empty());
            let in_filter = partition.filter.may_contain(hash_key(cursor.key()))
                && prefix.is_none_or(|prefix| partition.filter.may_contain(hash_prefix(prefix)));
            if !in_filter {
                return Err("the filter denies a key that is there");
            }
            end.clear();
            end.extend_from_slice(cursor.key());
            cursor.advance();
        }
        if end == last_key { Ok(()) } else { Err("a block ends with another key than its index says") }
    }

    fn damaged(&mut self, at: BlockRef, last_key: &[u8], what: String) {
        let piece = device_pieces(&self.run.handle.extents, at.offset, 1);
        let from = std::mem::replace(&mut self.last, last_key.to_vec());
        self.first_key_seen |= !from.is_empty();
        let device_offset = piece.first().map(|piece| piece.offset);
        self.check.damage.push(RunDamage { from, to: last_key.to_vec(), device_offset, what });
    }
}
