//! Which runs to merge, and the sequential reading that merges (and fsck) do.
//!
//! Runs are ordered by age. Each has a size class: the power of the fan-out that its size is of a mebibyte. Going from new to
//! old the class never falls (a small old run counts as one of the class before it). As soon as a class has as many runs as the
//! fan-out, they become one. So every entry is rewritten once per class, and there are at most fan-out − 1 runs per class to
//! look into. Tombstones go when the oldest run takes part; when they get many, everything is merged for their sake.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::rc::Rc;

use futures_util::future::try_join_all;

use super::RunIo;
use super::blocks::{Run, read_data, read_partition};
use crate::format::run::{Cursor, Entries};
use crate::store::StoreError;

/// The part of `runs` (newest first) to merge into one; `None`: all is well. Runs that are known to be damaged stay as they are, and
/// what is newer and what is older than them stays apart.
pub(super) fn pick(runs: &[Rc<Run>], fanout: usize, damaged: &BTreeSet<u64>) -> Option<Range<usize>> {
    let mut start = 0;
    for part in runs.split(|run| damaged.contains(&run.handle.id)) {
        if let Some(range) = pick_part(part, fanout.max(2)) {
            return Some(start + range.start..start + range.end);
        }
        start += part.len() + 1;
    }
    None
}

fn pick_part(runs: &[Rc<Run>], fanout: usize) -> Option<Range<usize>> {
    let keys: u64 = runs.iter().map(|run| run.handle.keys).sum();
    let tombstones: u64 = runs.iter().map(|run| run.handle.tombstones).sum();
    if tombstones >= TOMBSTONES_MIN && tombstones > keys / 4 {
        return Some(0..runs.len());
    }
    let mut groups: Vec<(u32, Range<usize>)> = Vec::new();
    for (index, run) in runs.iter().enumerate() {
        let class = size_class(run.handle.bytes, fanout);
        match groups.last_mut() {
            Some((group_class, group)) if class <= *group_class => group.end = index + 1,
            _ => groups.push((class, index..index + 1)),
        }
    }
    let first = groups.iter().position(|(_, group)| group.len() >= fanout)?;
    let mut picked = groups[first].1.clone();
    // If the result would fill the next class, that is merged in the same go.
    for (class, group) in &groups[first + 1..] {
        let bytes: u64 = runs[picked.clone()].iter().map(|run| run.handle.bytes).sum();
        if size_class(bytes, fanout) < *class || group.len() + 1 < fanout {
            break;
        }
        picked.end = group.end;
    }
    Some(picked)
}

fn size_class(bytes: u64, fanout: usize) -> u32 {
    (bytes >> 20).checked_ilog(fanout as u64).map_or(0, |class| class + 1)
}

/// The entries of a run from the first to the last, read in long strides and around the cache.
pub(super) struct RunStream {
    io: Rc<dyn RunIo>,
    run: Rc<Run>,
    partitions: Cursor,
    index: Option<Cursor>,
    ahead: VecDeque<Rc<Entries>>,
    data: Option<Cursor>,
    failed: bool,
}

impl RunStream {
    /// Before the first entry; [`RunStream::next_block`] must follow.
    pub(super) fn new(io: Rc<dyn RunIo>, run: Rc<Run>) -> RunStream {
        let partitions = Cursor::first(Rc::clone(&run.footer.partitions));
        RunStream { io, run, partitions, index: None, ahead: VecDeque::new(), data: None, failed: false }
    }

    /// The run that could not be read, if this is what ended the walk.
    pub(super) fn failed(&self) -> Option<u64> {
        self.failed.then_some(self.run.handle.id)
    }

    /// Key and value here; `None` at the end.
    pub(super) fn entry(&self) -> Option<(&[u8], Option<&[u8]>)> {
        let data = self.data.as_ref()?;
        data.valid().then(|| (data.key(), data.value()))
    }

    /// Moves on within the block. False: [`RunStream::next_block`] must follow.
    pub(super) fn advance(&mut self) -> bool {
        let Some(data) = &mut self.data else { return true };
        data.advance();
        data.valid()
    }

    /// Goes to the first entry of the next block; to the end if there is none.
    pub(super) async fn next_block(&mut self) -> Result<(), StoreError> {
        self.failed = true;
        self.read_next_block().await?;
        self.failed = false;
        Ok(())
    }

    async fn read_next_block(&mut self) -> Result<(), StoreError> {
        loop {
            if let Some(entries) = self.ahead.pop_front() {
                self.data = Some(Cursor::first(entries));
                return Ok(());
            }
            let mut refs = Vec::new();
            if let Some(index) = &mut self.index {
                while refs.len() < READ_AHEAD_BLOCKS
                    && let Some(at) = index.block()
                {
                    refs.push(at);
                    index.advance();
                }
            }
            if !refs.is_empty() {
                let reads = refs.into_iter().map(|at| read_data(&*self.io, &self.run.handle, at));
                self.ahead = try_join_all(reads).await?.into();
                continue;
            }
            let Some(at) = self.partitions.block() else {
                self.data = None;
                return Ok(());
            };
            self.partitions.advance();
            let partition = read_partition(&*self.io, &self.run.handle, at).await?;
            self.index = Some(Cursor::first(Rc::clone(&partition.index)));
        }
    }
}

/// Blocks that a stream reads at once.
const READ_AHEAD_BLOCKS: usize = 32;
/// Fewer tombstones than this are not worth a merge of everything.
const TOMBSTONES_MIN: u64 = 64 << 10;
