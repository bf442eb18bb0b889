//! The index: an ordered map from bytes to bytes, log-structured.
//!
//! Changes go to the memtable in memory; the log, which is the caller's, makes them durable. A memtable that is large enough is
//! frozen and written as an immutable sorted run; runs are merged in the background. Which runs there are is the caller's to
//! keep: a flush and a merge return a [`ManifestEdit`], the caller makes it durable and then installs it.
//!
//! ```text
//! apply ──► active ──freeze──► frozen ──flush_frozen──► edit ──install──► runs ──merge_step──► edit ──install──► fewer runs
//!                                                        └─abandon─► frozen again            └─abandon─► as before
//! ```
//!
//! An answer is the truth of one moment between call and return: lookups run over what is in memory in one go and are repeated
//! when a block had to be read first (see `blocks`). A removed run stays readable until its last reader is done;
//! [`Tree::take_unused`] says when.

mod blocks;
mod lookup;
mod memtable;
mod merge;
#[cfg(test)]
mod tests;
mod verify;
mod write;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::ops::Bound;
use std::rc::Rc;

use futures_util::future::try_join_all;

use nacre_reactor::{Bytes, DmaBuf};

use self::blocks::{Blocks, Cache, Missing, Run};
use self::lookup::RunCursor;
use self::memtable::{Memtable, Remains};
use self::merge::RunStream;
pub(crate) use self::verify::{RunDamage, verify_run};
use self::write::RunWriter;
use crate::format::filter::hash_key;
pub use crate::format::run::{Extent, KEY_BYTES_MAX, RUN_ALIGN_BYTES, RunHandle, VALUE_BYTES_MAX};
use crate::store::{Fut, StoreError, StoreErrorKind};

/// One change: a value to put, or `None` to delete.
pub type Change = (Box<[u8]>, Option<Box<[u8]>>);
/// A key and its value.
pub type Entry = (Vec<u8>, Vec<u8>);

/// Where runs are kept. Offsets and lengths are multiples of [`RUN_ALIGN_BYTES`].
pub trait RunIo {
    /// Takes space: `bytes` (a multiple of [`RUN_ALIGN_BYTES`]) in as few pieces as it can.
    fn allocate(&self, bytes: u64) -> Fut<'static, Result<Vec<Extent>, StoreError>>;
    /// Gives space of a run back that no manifest has ever named.
    fn free(&self, extents: &[Extent]);
    /// Reads a piece.
    fn read(&self, extent: Extent) -> Fut<'static, Result<DmaBuf, StoreError>>;
    /// Writes from `offset` on.
    fn write(&self, offset: u64, data: Vec<Bytes>) -> Fut<'static, Result<(), StoreError>>;
    /// Makes what was written stable.
    fn flush(&self) -> Fut<'static, Result<(), StoreError>>;
}

/// How a tree behaves.
#[derive(Clone, Debug)]
pub struct TreeOptions {
    /// Uncompressed size at which a block is closed.
    pub block_bytes: usize,
    /// Whether blocks are compressed (lz4) where that helps.
    pub compress: bool,
    /// Limit of the block cache.
    pub cache_bytes: usize,
    /// Runs of one level that are merged into one of the next.
    pub fanout: usize,
    /// Leading bytes of a key that are in the filters too: scans and floors that stay within one such prefix
    /// skip runs that have none of it.
    pub filter_prefix_bytes: usize,
}

impl Default for TreeOptions {
    fn default() -> TreeOptions {
        TreeOptions { block_bytes: 8192, compress: true, cache_bytes: 32 << 20, fanout: 6, filter_prefix_bytes: 17 }
    }
}

/// What is known without I/O.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TryGet {
    /// The value, or that there is none.
    Known(Option<Vec<u8>>),
    /// Ask [`Tree::get`].
    NeedsIo,
}

/// A change of the set of runs, made by a flush or a merge. Persist `added` and `removed`, then [`Tree::install`] it.
#[must_use = "an edit is installed or abandoned"]
pub struct ManifestEdit {
    /// Runs that are there from now on.
    pub added: Vec<RunHandle>,
    /// Runs that are not.
    pub removed: Vec<RunHandle>,
    opened: Vec<Rc<Run>>,
    work: Work,
}

/// None or one, as a handle and open.
type NewRuns = (Vec<RunHandle>, Vec<Rc<Run>>);

/// What an edit came from.
enum Work {
    /// A flush of so many memtables, the oldest ones.
    Flush(usize),
    Merge,
}

/// An ordered map over immutable runs.
pub struct Tree {
    io: Rc<dyn RunIo>,
    options: TreeOptions,
    cache: Cache,
    state: RefCell<State>,
    next_run: Cell<u64>,
    next_sequence: Cell<u64>,
    /// A flush is under way, or its edit not yet installed.
    flushing: Cell<bool>,
    /// The same of a merge.
    merging: Cell<bool>,
    /// Runs that a merge could not read: they are not tried again.
    damaged: RefCell<BTreeSet<u64>>,
}

struct State {
    active: Memtable,
    /// Newest first.
    frozen: Vec<Rc<Memtable>>,
    /// Newest first.
    runs: Vec<Rc<Run>>,
    /// Removed; somebody may still read them.
    retired: Vec<Rc<Run>>,
    /// Flushed; to be freed bit by bit.
    remains: Vec<Remains>,
}

impl Tree {
    /// Opens a tree of the runs of a manifest (none: an empty tree); reads their footers.
    pub async fn open(io: Rc<dyn RunIo>, options: TreeOptions, manifest: &[RunHandle]) -> Result<Tree, StoreError> {
        let opens = manifest.iter().map(|handle| Run::open(&*io, handle.clone()));
        let mut runs: Vec<Rc<Run>> = try_join_all(opens).await?.into_iter().map(Rc::new).collect();
        runs.sort_by_key(|run| std::cmp::Reverse(run.handle.sequence_last));
        for pair in runs.windows(2) {
            if pair[1].handle.sequence_last >= pair[0].handle.sequence_first {
                return Err(StoreError {
                    kind: StoreErrorKind::Corrupt,
                    op: "index",
                    fid: None,
                    context: format!("runs {} and {} claim the same flushes", pair[0].handle.id, pair[1].handle.id),
                    source: None,
                });
            }
        }
        let next_run = manifest.iter().map(|handle| handle.id.saturating_add(1)).max().unwrap_or(1);
        let next_sequence = runs.first().map_or(1, |run| run.handle.sequence_last.saturating_add(1));
        let state =
            State { active: Memtable::default(), frozen: Vec::new(), runs, retired: Vec::new(), remains: Vec::new() };
        Ok(Tree {
            cache: Cache::new(options.cache_bytes),
            io,
            options,
            state: RefCell::new(state),
            next_run: Cell::new(next_run),
            next_sequence: Cell::new(next_sequence),
            flushing: Cell::new(false),
            merging: Cell::new(false),
            damaged: RefCell::default(),
        })
    }

    /// Makes changes, in order, in the active memtable.
    ///
    /// # Panics
    /// When a key is longer than [`KEY_BYTES_MAX`] or a value than [`VALUE_BYTES_MAX`]: the caller checks what comes from outside.
    pub fn apply(&self, changes: impl IntoIterator<Item = Change>) {
        let active = &mut self.state.borrow_mut().active;
        for change in changes {
            assert!(change.0.len() <= KEY_BYTES_MAX, "a key of {} bytes", change.0.len());
            let value_bytes = change.1.as_ref().map_or(0, |value| value.len());
            assert!(value_bytes <= VALUE_BYTES_MAX, "a value of {value_bytes} bytes");
            active.apply(change);
        }
    }

    /// The value of a key, if that can be told without I/O.
    pub fn try_get(&self, key: &[u8]) -> TryGet {
        match self.state.borrow().get(key, &mut Blocks::new(&self.cache, &[])) {
            Ok(value) => TryGet::Known(value),
            Err(Missing) => TryGet::NeedsIo,
        }
    }

    /// The value of a key.
    pub async fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.look_up(|state, blocks| state.get(key, blocks)).await
    }

    /// Up to `limit` entries between the bounds, in order. Every [`SCAN_MOMENT_ENTRIES`] of them are the truth of one moment, later ones
    /// of a later moment. Bounds that share the filter prefix let runs without that prefix be skipped. Bounds that are the wrong
    /// way round contain nothing.
    pub async fn scan(&self, from: Bound<&[u8]>, to: Bound<&[u8]>, limit: usize) -> Result<Vec<Entry>, StoreError> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut from = from.map(<[u8]>::to_vec);
        while entries.len() < limit {
            let start = from.as_ref().map(Vec::as_slice);
            if is_empty_range(start, to) {
                break;
            }
            let part = (limit - entries.len()).min(SCAN_MOMENT_ENTRIES);
            let more = self.look_up(|state, blocks| state.scan(start, to, part, blocks)).await?;
            let done = more.len() < part;
            entries.extend(more);
            match entries.last() {
                Some((last, _)) if !done => from = Bound::Excluded(last.clone()),
                _ => break,
            }
        }
        Ok(entries)
    }

    /// Last entry with `lowest ≤ key ≤ highest`.
    pub async fn floor(&self, lowest: &[u8], highest: &[u8]) -> Result<Option<Entry>, StoreError> {
        if lowest > highest {
            return Ok(None);
        }
        self.look_up(|state, blocks| state.floor(lowest, highest, blocks)).await
    }

    /// Memory taken by the active memtable.
    pub fn memtable_bytes(&self) -> usize {
        self.state.borrow().active.bytes()
    }

    /// Memory taken by memtables that are frozen and not flushed and installed yet.
    pub fn frozen_bytes(&self) -> usize {
        self.state.borrow().frozen.iter().map(|memtable| memtable.bytes()).sum()
    }

    /// Swaps in an empty memtable; the old one stays readable. Nothing happens when it is empty.
    pub fn freeze(&self) {
        let mut state = self.state.borrow_mut();
        if !state.active.is_empty() {
            let frozen = std::mem::take(&mut state.active);
            state.frozen.insert(0, Rc::new(frozen));
        }
    }

    /// Writes all frozen memtables into a run and flushes the device. `None`: nothing is frozen. One flush at a time: until its
    /// edit is installed or abandoned, another answers `None`. The future must not be dropped before it completes.
    pub async fn flush_frozen(&self) -> Result<Option<ManifestEdit>, StoreError> {
        let (memtables, drop_tombstones) = {
            let state = self.state.borrow();
            (state.frozen.clone(), state.runs.is_empty())
        };
        if memtables.is_empty() || self.flushing.replace(true) {
            return Ok(None);
        }
        let result = self.write_memtables(&memtables, drop_tombstones).await;
        if result.is_err() {
            self.flushing.set(false);
        }
        let (added, opened) = result?;
        Ok(Some(ManifestEdit { added, removed: Vec::new(), opened, work: Work::Flush(memtables.len()) }))
    }

    /// Merges runs, if there is something to merge; otherwise `None`. Frees old memtables on the way. Yields between units. May run beside a flush; one merge at a
    /// time (another answers `None` until the edit is installed or abandoned). A run that cannot be read is told once, and left
    /// out of later merges. The future must not be dropped before it completes.
    pub async fn merge_step(&self) -> Result<Option<ManifestEdit>, StoreError> {
        self.free_remains().await;
        let picked = {
            let state = self.state.borrow();
            let all = state.runs.len();
            merge::pick(&state.runs, self.options.fanout, &self.damaged.borrow())
                .map(|range| (range.end == all, state.runs[range].to_vec()))
        };
        let Some((oldest_takes_part, runs)) = picked else { return Ok(None) };
        self.merge_runs(runs, oldest_takes_part).await
    }

    /// Merges all runs into one, whatever their sizes; `None` when there is at most one.
    pub async fn merge_all(&self) -> Result<Option<ManifestEdit>, StoreError> {
        let runs = self.state.borrow().runs.clone();
        if runs.len() < 2 { Ok(None) } else { self.merge_runs(runs, true).await }
    }

    /// Readers switch to the edited set of runs. To be called when the edit is in a stable manifest.
    pub fn install(&self, edit: ManifestEdit) {
        let state = &mut *self.state.borrow_mut();
        let removed = |run: &Rc<Run>| edit.removed.iter().any(|handle| handle.id == run.handle.id);
        let (retired, mut runs): (Vec<_>, Vec<_>) = std::mem::take(&mut state.runs).into_iter().partition(removed);
        state.retired.extend(retired);
        runs.extend(edit.opened);
        runs.sort_by_key(|run| std::cmp::Reverse(run.handle.sequence_last));
        state.runs = runs;
        match edit.work {
            Work::Flush(memtables) => {
                // What was frozen since the flush began is in front.
                let flushed = state.frozen.split_off(state.frozen.len() - memtables);
                state.remains.extend(flushed.into_iter().filter_map(Rc::into_inner).map(Remains::of));
                self.flushing.set(false);
            }
            Work::Merge => self.merging.set(false),
        }
    }

    /// Gives up an edit that could not be persisted: its new runs are freed, the tree stays as it is.
    pub fn abandon(&self, edit: ManifestEdit) {
        for handle in &edit.added {
            self.io.free(&handle.extents);
        }
        match edit.work {
            Work::Flush(_) => self.flushing.set(false),
            Work::Merge => self.merging.set(false),
        }
    }

    /// Runs that were removed by installed edits and that no reader uses any more: each is returned once, and its space may be
    /// freed. To be asked after `install` and from time to time.
    pub fn take_unused(&self) -> Vec<RunHandle> {
        let retired = &mut self.state.borrow_mut().retired;
        let (unused, used): (Vec<_>, Vec<_>) =
            std::mem::take(retired).into_iter().partition(|run| Rc::strong_count(run) == 1);
        *retired = used;
        unused.into_iter().map(|run| run.handle.clone()).collect()
    }

    /// The installed runs, newest first: what a checkpoint must keep.
    pub fn manifest(&self) -> Vec<RunHandle> {
        self.state.borrow().runs.iter().map(|run| run.handle.clone()).collect()
    }

    /// Frees what flushes have left behind.
    async fn free_remains(&self) {
        loop {
            {
                let remains = &mut self.state.borrow_mut().remains;
                match remains.last_mut().map(|last| last.free_some(REMAINS_ENTRIES)) {
                    None => return,
                    Some(true) => drop(remains.pop()),
                    Some(false) => {}
                }
            }
            tokio::task::yield_now().await;
        }
    }

    /// Makes a lookup until it has all blocks that it needs.
    async fn look_up<T>(
        &self,
        mut attempt: impl FnMut(&State, &mut Blocks<'_>) -> Result<T, Missing>,
    ) -> Result<T, StoreError> {
        let mut pinned = Vec::new();
        loop {
            let mut blocks = Blocks::new(&self.cache, &pinned);
            let answer = attempt(&self.state.borrow(), &mut blocks);
            let wanted = match answer {
                Ok(answer) => return Ok(answer),
                Err(Missing) => blocks.wanted,
            };
            let loaded = try_join_all(wanted.iter().map(|wanted| wanted.load(&*self.io))).await?;
            for (id, block) in &loaded {
                self.cache.insert(*id, block.clone());
            }
            pinned.extend(loaded);
        }
    }

    async fn write_memtables(&self, memtables: &[Rc<Memtable>], drop_tombstones: bool) -> Result<NewRuns, StoreError> {
        let sequence = self.next_sequence.replace(self.next_sequence.get() + 1);
        let bytes = memtables.iter().map(|memtable| memtable.bytes() as u64).sum();
        let mut writer = self.writer(bytes);
        let all = (Bound::Unbounded, Bound::Unbounded);
        let mut sources: Vec<_> = memtables.iter().map(|memtable| memtable.range(all.0, all.1).peekable()).collect();
        let mut since_yield = 0;
        loop {
            let heads = sources.iter_mut().enumerate();
            let next = heads.filter_map(|(index, source)| source.peek().map(|(key, _)| (&***key, index))).min();
            let Some((key, newest)) = next.map(|(key, index)| (key.to_vec(), index)) else { break };
            let mut full = false;
            for (index, source) in sources.iter_mut().enumerate() {
                let Some((_, value)) = source.next_if(|(other, _)| ***other == *key) else { continue };
                if index == newest && (value.is_some() || !drop_tombstones) {
                    full = writer.add(&key, value.as_deref());
                }
            }
            if full && let Err(error) = writer.write_out().await {
                writer.discard();
                return Err(error);
            }
            since_yield += 1;
            if since_yield == YIELD_ENTRIES {
                since_yield = 0;
                tokio::task::yield_now().await;
            }
        }
        self.close_run(writer, (sequence, sequence), 0).await
    }

    /// Merges neighbouring runs, given newest first.
    async fn merge_runs(
        &self,
        runs: Vec<Rc<Run>>,
        oldest_takes_part: bool,
    ) -> Result<Option<ManifestEdit>, StoreError> {
        if self.merging.replace(true) {
            return Ok(None);
        }
        let result = self.write_merged(&runs, oldest_takes_part).await;
        if result.is_err() {
            self.merging.set(false);
        }
        let (added, opened) = result?;
        let removed = runs.iter().map(|run| run.handle.clone()).collect();
        Ok(Some(ManifestEdit { added, removed, opened, work: Work::Merge }))
    }

    async fn write_merged(&self, runs: &[Rc<Run>], drop_tombstones: bool) -> Result<NewRuns, StoreError> {
        let new = |run| RunStream::new(Rc::clone(&self.io), Rc::clone(run));
        let mut streams: Vec<RunStream> = runs.iter().map(new).collect();
        let mut writer = self.writer(runs.iter().map(|run| run.handle.bytes).sum());
        if let Err(error) = merge_into(&mut streams, &mut writer, drop_tombstones).await {
            writer.discard();
            if error.kind == StoreErrorKind::Corrupt {
                self.damaged.borrow_mut().extend(streams.iter().filter_map(RunStream::failed));
            }
            return Err(error);
        }
        let first = runs.iter().map(|run| run.handle.sequence_first).min().unwrap_or(0);
        let last = runs.iter().map(|run| run.handle.sequence_last).max().unwrap_or(0);
        let level = runs.iter().map(|run| run.handle.level).max().unwrap_or(0).saturating_add(1);
        self.close_run(writer, (first, last), level).await
    }

    fn writer(&self, expected_bytes: u64) -> RunWriter {
        let id = self.next_run.replace(self.next_run.get() + 1);
        RunWriter::new(Rc::clone(&self.io), self.options.clone(), id, expected_bytes)
    }

    /// Ends a run and reads its footer back, so that a run that cannot be opened is never named by a manifest.
    async fn close_run(&self, writer: RunWriter, sequences: (u64, u64), level: u8) -> Result<NewRuns, StoreError> {
        let Some(handle) = writer.finish(sequences, level, &self.cache).await? else { return Ok((vec![], vec![])) };
        match Run::open(&*self.io, handle.clone()).await {
            Ok(run) => Ok((vec![handle], vec![Rc::new(run)])),
            Err(error) => {
                self.io.free(&handle.extents);
                Err(error)
            }
        }
    }
}

/// Writes the newest entry of each key of the streams (newest first).
async fn merge_into(
    streams: &mut [RunStream],
    writer: &mut RunWriter,
    drop_tombstones: bool,
) -> Result<(), StoreError> {
    for stream in streams.iter_mut() {
        stream.next_block().await?;
    }
    let mut key = Vec::new();
    let mut since_yield = 0;
    loop {
        let heads = streams.iter().enumerate();
        let next = heads.filter_map(|(index, stream)| stream.entry().map(|(key, _)| (key, index))).min();
        let Some((smallest, newest)) = next else { return Ok(()) };
        key.clear();
        key.extend_from_slice(smallest);
        let mut full = false;
        for (index, stream) in streams.iter_mut().enumerate().skip(newest) {
            let Some((_, value)) = stream.entry().filter(|(other, _)| *other == key) else { continue };
            if index == newest && (value.is_some() || !drop_tombstones) {
                full = writer.add(&key, value);
            }
            if !stream.advance() {
                stream.next_block().await?;
            }
        }
        if full {
            writer.write_out().await?;
        }
        since_yield += 1;
        if since_yield == YIELD_ENTRIES {
            since_yield = 0;
            tokio::task::yield_now().await;
        }
    }
}

impl State {
    fn get(&self, key: &[u8], blocks: &mut Blocks<'_>) -> Result<Option<Vec<u8>>, Missing> {
        for memtable in self.memtables() {
            if let Some(value) = memtable.get(key) {
                return Ok(value.map(<[u8]>::to_vec));
            }
        }
        let hash = hash_key(key);
        for run in &self.runs {
            if let Some(value) = lookup::get(run, key, hash, blocks)? {
                return Ok(value);
            }
        }
        Ok(None)
    }

    fn scan(
        &self,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
        limit: usize,
        blocks: &mut Blocks<'_>,
    ) -> Result<Vec<Entry>, Missing> {
        let ahead = (limit / ENTRIES_PER_BLOCK).min(AHEAD_BLOCKS_MAX);
        let memtables = self.memtables().map(|memtable| Ok(Source::Memory(memtable.range(from, to).peekable())));
        let runs = self.runs.iter().map(|run| Ok(Source::Run(RunCursor::seek(run, from, to, ahead, blocks)?)));
        // All are asked before giving up, so that what they miss is read at once.
        let sources: Vec<Result<Source<'_>, Missing>> = memtables.chain(runs).collect();
        let mut sources = sources.into_iter().collect::<Result<Vec<_>, Missing>>()?;
        let mut entries = Vec::new();
        while entries.len() < limit {
            let heads = sources.iter_mut().enumerate();
            let next = heads.filter_map(|(index, source)| source.entry().map(|(key, value)| (key, index, value))).min();
            let Some((key, _, value)) = next.filter(|(key, ..)| is_within(key, to)) else { break };
            let key = key.to_vec();
            if let Some(value) = value {
                entries.push((key.clone(), value.to_vec()));
            }
            for source in &mut sources {
                if source.entry().is_some_and(|(other, _)| other == key) {
                    source.advance(blocks)?;
                }
            }
        }
        Ok(entries)
    }

    fn floor(&self, lowest: &[u8], highest: &[u8], blocks: &mut Blocks<'_>) -> Result<Option<Entry>, Missing> {
        let memtables: Vec<&Memtable> = self.memtables().collect();
        let mut candidates: Vec<Option<Found>> = vec![None; memtables.len() + self.runs.len()];
        let mut stale: Vec<usize> = (0..candidates.len()).collect();
        let mut bound = Bound::Included(highest.to_vec());
        loop {
            let limit = bound.as_ref().map(Vec::as_slice);
            let mut missing = false;
            for index in std::mem::take(&mut stale) {
                candidates[index] = match memtables.get(index) {
                    Some(memtable) => {
                        let last = memtable.range(Bound::Included(lowest), limit).next_back();
                        last.map(|(key, value)| (key.to_vec(), value.as_deref().map(<[u8]>::to_vec)))
                    }
                    None => match lookup::floor(&self.runs[index - memtables.len()], lowest, limit, blocks) {
                        Ok(found) => found,
                        Err(Missing) => {
                            missing = true;
                            None
                        }
                    },
                };
            }
            if missing {
                return Err(Missing);
            }
            // The largest key; of equal ones the newest, which is the first.
            let mut best: Option<usize> = None;
            for (index, candidate) in candidates.iter().enumerate() {
                let Some((key, _)) = candidate else { continue };
                let best_key = best.and_then(|best| candidates[best].as_ref()).map(|(key, _)| key);
                if best_key.is_none_or(|best_key| key > best_key) {
                    best = Some(index);
                }
            }
            let Some((key, value)) = best.and_then(|best| candidates[best].clone()) else { return Ok(None) };
            if let Some(value) = value {
                return Ok(Some((key, value)));
            }
            // Deleted: those who stand there step back.
            let stands_there = |index: &usize| candidates[*index].as_ref().is_some_and(|(other, _)| *other == key);
            stale = (0..candidates.len()).filter(stands_there).collect();
            if key == lowest {
                return Ok(None);
            }
            bound = Bound::Excluded(key);
        }
    }

    /// Newest first.
    fn memtables(&self) -> impl Iterator<Item = &Memtable> {
        std::iter::once(&self.active).chain(self.frozen.iter().map(|memtable| &**memtable))
    }
}

/// A key and its value or tombstone.
type Found = (Vec<u8>, Option<Vec<u8>>);

/// Where a scan takes entries from.
enum Source<'a> {
    Memory(std::iter::Peekable<memtable::Range<'a>>),
    Run(RunCursor),
}

impl Source<'_> {
    fn entry(&mut self) -> Option<(&[u8], Option<&[u8]>)> {
        match self {
            Source::Memory(range) => range.peek().map(|(key, value)| (&***key, value.as_deref())),
            Source::Run(cursor) => cursor.entry(),
        }
    }

    fn advance(&mut self, blocks: &mut Blocks<'_>) -> Result<(), Missing> {
        match self {
            Source::Memory(range) => {
                range.next();
                Ok(())
            }
            Source::Run(cursor) => cursor.advance(blocks),
        }
    }
}

fn is_within(key: &[u8], to: Bound<&[u8]>) -> bool {
    match to {
        Bound::Included(to) => key <= to,
        Bound::Excluded(to) => key < to,
        Bound::Unbounded => true,
    }
}

/// BTreeMap panics on ranges that are the wrong way round; here they are just empty.
fn is_empty_range(from: Bound<&[u8]>, to: Bound<&[u8]>) -> bool {
    match (from, to) {
        (Bound::Included(from), Bound::Included(to)) => from > to,
        (Bound::Included(from) | Bound::Excluded(from), Bound::Included(to) | Bound::Excluded(to)) => from >= to,
        _ => false,
    }
}

/// Entries between two yields: some ten microseconds of merging.
const YIELD_ENTRIES: usize = 64;
/// Entries of an old memtable freed between two yields: some ten microseconds.
const REMAINS_ENTRIES: usize = 500;
/// Entries that a scan collects in one go. A lookup is repeated for blocks that must be read; without a bound a long scan of many
/// blocks would begin anew too often.
pub const SCAN_MOMENT_ENTRIES: usize = 4096;
/// For the estimate how many blocks a scan will need.
const ENTRIES_PER_BLOCK: usize = 100;
/// Most blocks that a scan reads ahead in one run.
const AHEAD_BLOCKS_MAX: usize = 16;
