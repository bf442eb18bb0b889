//! `ModelStore`: the reference implementation of [`Store`], in memory, simple enough to be read as the specification.
//!
//! The engine is tested against it, and services use it in their tests. Everything is visible at once; what would
//! survive a crash is tracked on request: [`ModelStore::crashable`] keeps the transactions that are not stable yet, and
//! [`ModelStore::crash`] gives the store that a restart would find, while the old handle fails every change from then on
//! (tasks of the "dead" server that still run can do no harm).
//!
//! What the interface leaves open is decided here, and the engine does the same:
//! - space is counted in blocks of 4 KiB; a written byte makes its whole block written (the rest reads zeros);
//! - an empty write changes nothing; an empty or inverted range is `Invalid`; a punch may reach to `u64::MAX`;
//! - `version` is set by every operation that names the object, except `Put` and `Delete`;
//! - `get` and `scan` of an object that is not there find nothing; everything else says `NotFound`.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::{Bound, Range};
use std::rc::Rc;

use futures_util::future::LocalBoxFuture;
use nacre_reactor::Bytes;
use nacre_wire::fid::SEQ_LOCAL;
use nacre_wire::{Attr, Fid};

use crate::store::{
    Durability, ExtentInfo, Fut, KEY_BYTES_MAX, LABEL_BYTES_MAX, OBJECT_BYTES_MAX, Op, Seek, Space, Store, StoreError,
    StoreErrorKind, Transaction, Transno, VALUE_BYTES_MAX, XATTR_NAME_BYTES_MAX,
};

/// Allocation unit, bytes.
const BLOCK: u64 = 4096;

/// What a crash takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The process ends (kill −9): what was written stays.
    Kill,
    /// The power goes: what was flushed stays.
    PowerLoss,
}

/// Called by every [`Store::wait`] before anything becomes safer; a test delays commits with it.
pub type WaitHook = Rc<dyn Fn(Transno, Durability) -> LocalBoxFuture<'static, ()>>;

/// The store in memory.
pub struct ModelStore {
    state: RefCell<State>,
    /// The state at `stable` and what came after, if crashes are to be simulated.
    journal: Option<RefCell<Journal>>,
    capacity_bytes: u64,
    written: Cell<Transno>,
    stable: Cell<Transno>,
    ended: Cell<Option<&'static str>>,
    wait_hook: RefCell<Option<WaitHook>>,
}

#[derive(Clone, Default)]
struct State {
    transno: Transno,
    label: Vec<u8>,
    objects: BTreeMap<Fid, Object>,
    /// Keys of all index objects; `(fid, key)` orders as the store does.
    keys: BTreeMap<(Fid, Vec<u8>), Vec<u8>>,
    taken_blocks: u64,
}

struct Journal {
    base: State,
    since: Vec<Transaction>,
}

#[derive(Clone, Default)]
struct Object {
    attr: Attr,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Written blocks, by block number; 4 KiB each.
    written: BTreeMap<u64, Vec<u8>>,
    /// Reserved blocks: start → end, disjoint, never touching each other, never overlapping `written`.
    unwritten: BTreeMap<u64, u64>,
}

impl Default for ModelStore {
    fn default() -> ModelStore {
        ModelStore::new()
    }
}

impl ModelStore {
    /// An empty store of 1 PiB that does not track what a crash would leave.
    pub fn new() -> ModelStore {
        ModelStore::with_capacity(1 << 50)
    }

    /// An empty store with room for this many bytes of file data (metadata is free of charge here).
    pub fn with_capacity(capacity_bytes: u64) -> ModelStore {
        ModelStore::from_state(State::default(), capacity_bytes, false)
    }

    /// An empty store that [`ModelStore::crash`] can be called on.
    pub fn crashable() -> ModelStore {
        ModelStore::from_state(State::default(), 1 << 50, true)
    }

    fn from_state(state: State, capacity_bytes: u64, crashable: bool) -> ModelStore {
        let transno = state.transno;
        let journal = crashable.then(|| RefCell::new(Journal { base: state.clone(), since: Vec::new() }));
        ModelStore {
            state: RefCell::new(state),
            journal,
            capacity_bytes,
            written: Cell::new(transno),
            stable: Cell::new(transno),
            ended: Cell::new(None),
            wait_hook: RefCell::new(None),
        }
    }

    /// Installs the hook of [`Store::wait`].
    pub fn set_wait_hook(&self, hook: Option<WaitHook>) {
        *self.wait_hook.borrow_mut() = hook;
    }

    /// Ends this store and returns what a restart finds: everything stable and, after a kill, everything written.
    ///
    /// # Panics
    /// When the store was not made with [`ModelStore::crashable`] (or is not the result of a crash).
    pub fn crash(&self, how: Crash) -> ModelStore {
        self.crash_at(match how {
            Crash::Kill => self.written.get().max(self.stable.get()),
            Crash::PowerLoss => self.stable.get(),
        })
    }

    /// As [`ModelStore::crash`], with exactly the transactions up to `transno`, which must be at least the stable ones.
    ///
    /// # Panics
    /// When there is no such state, or the store is not crashable.
    pub fn crash_at(&self, transno: Transno) -> ModelStore {
        self.ended.set(Some("the store has crashed"));
        let journal = self.journal.as_ref().expect("crash() needs ModelStore::crashable()").borrow();
        let mut state = journal.base.clone();
        assert!(transno >= state.transno && transno <= self.state.borrow().transno, "no state at {transno}");
        for transaction in &journal.since[..(transno - state.transno) as usize] {
            state.apply(transaction);
        }
        ModelStore::from_state(state, self.capacity_bytes, true)
    }

    fn submit_now(&self, transaction: Transaction) -> Result<Transno, StoreError> {
        if let Some(why) = self.ended.get() {
            return Err(error(StoreErrorKind::ReadOnly, "submit", None, why));
        }
        let mut state = self.state.borrow_mut();
        state.check(&transaction, self.capacity_bytes)?;
        state.apply(&transaction);
        if let Some(journal) = &self.journal {
            journal.borrow_mut().since.push(transaction);
        }
        Ok(state.transno)
    }

    async fn wait_for(&self, transno: Transno, durability: Durability) -> Result<(), StoreError> {
        let hook = self.wait_hook.borrow().clone();
        if let Some(hook) = hook {
            hook(transno, durability).await;
        }
        if let Some(why) = self.ended.get() {
            return Err(error(StoreErrorKind::ReadOnly, "wait", None, why));
        }
        if transno > self.last_transno() {
            return Err(error(StoreErrorKind::Invalid, "wait", None, "there is no such transaction yet"));
        }
        self.written.set(self.written.get().max(transno));
        if durability == Durability::Stable {
            self.stable.set(self.stable.get().max(transno));
            if let Some(journal) = &self.journal {
                let journal = &mut *journal.borrow_mut();
                let done = self.stable.get().saturating_sub(journal.base.transno) as usize;
                journal.since.drain(..done).for_each(|transaction| journal.base.apply(&transaction));
            }
        }
        Ok(())
    }

    fn with_object<T>(&self, op: &'static str, fid: Fid, f: impl FnOnce(&Object) -> T) -> Result<T, StoreError> {
        match self.state.borrow().objects.get(&fid) {
            Some(object) => Ok(f(object)),
            None => Err(error(StoreErrorKind::NotFound, op, Some(fid), "no such object")),
        }
    }
}

impl Store for ModelStore {
    fn submit(&self, transaction: Transaction) -> Fut<'_, Result<Transno, StoreError>> {
        Box::pin(async move { self.submit_now(transaction) })
    }

    fn wait(&self, transno: Transno, durability: Durability) -> Fut<'_, Result<(), StoreError>> {
        Box::pin(self.wait_for(transno, durability))
    }

    fn last_transno(&self) -> Transno {
        self.state.borrow().transno
    }

    fn last_committed(&self) -> Transno {
        self.stable.get()
    }

    fn attr(&self, fid: Fid) -> Fut<'_, Result<Attr, StoreError>> {
        Box::pin(async move { self.with_object("attr", fid, Object::attr) })
    }

    fn read(&self, fid: Fid, offset: u64, length: usize) -> Fut<'_, Result<Bytes, StoreError>> {
        Box::pin(async move { self.with_object("read", fid, |object| object.read(offset, length)) })
    }

    fn xattr<'a>(&'a self, fid: Fid, name: &'a [u8]) -> Fut<'a, Result<Option<Vec<u8>>, StoreError>> {
        Box::pin(async move { self.with_object("xattr", fid, |object| object.xattrs.get(name).cloned()) })
    }

    fn xattrs(&self, fid: Fid) -> Fut<'_, Result<Vec<(Vec<u8>, Vec<u8>)>, StoreError>> {
        Box::pin(async move {
            self.with_object("xattrs", fid, |object| {
                object.xattrs.iter().map(|(name, value)| (name.clone(), value.clone())).collect()
            })
        })
    }

    fn get<'a>(&'a self, index: Fid, key: &'a [u8]) -> Fut<'a, Result<Option<Vec<u8>>, StoreError>> {
        Box::pin(async move { Ok(self.state.borrow().keys.get(&(index, key.to_vec())).cloned()) })
    }

    fn scan<'a>(
        &'a self,
        index: Fid,
        after: Option<&'a [u8]>,
        limit: usize,
    ) -> Fut<'a, Result<Vec<(Vec<u8>, Vec<u8>)>, StoreError>> {
        Box::pin(async move {
            let from = match after {
                Some(key) => Bound::Excluded((index, key.to_vec())),
                None => Bound::Included((index, Vec::new())),
            };
            let state = self.state.borrow();
            let keys = state.keys.range((from, Bound::Unbounded)).take_while(|((fid, _), _)| *fid == index);
            Ok(keys.take(limit).map(|((_, key), value)| (key.clone(), value.clone())).collect())
        })
    }

    fn seek(&self, fid: Fid, offset: u64, what: Seek) -> Fut<'_, Result<Option<u64>, StoreError>> {
        Box::pin(async move { self.with_object("seek", fid, |object| object.seek(offset, what)) })
    }

    fn extents(&self, fid: Fid, range: Range<u64>, limit: usize) -> Fut<'_, Result<Vec<ExtentInfo>, StoreError>> {
        Box::pin(async move { self.with_object("extents", fid, |object| object.extents(range, limit)) })
    }

    fn objects(&self, after: Option<Fid>, limit: usize) -> Fut<'_, Result<Vec<Fid>, StoreError>> {
        Box::pin(async move {
            let from = after.map_or(Bound::Unbounded, Bound::Excluded);
            Ok(self.state.borrow().objects.range((from, Bound::Unbounded)).take(limit).map(|(fid, _)| *fid).collect())
        })
    }

    fn space(&self) -> Space {
        let state = self.state.borrow();
        Space {
            total_bytes: self.capacity_bytes,
            free_bytes: self.capacity_bytes.saturating_sub(state.taken_blocks * BLOCK),
            objects: state.objects.len() as u64,
            block_bytes: BLOCK as u32,
        }
    }

    fn object_bytes_max(&self) -> u64 {
        OBJECT_BYTES_MAX
    }

    fn label(&self) -> Vec<u8> {
        self.state.borrow().label.clone()
    }

    fn set_label(&self, label: Vec<u8>) -> Fut<'_, Result<(), StoreError>> {
        Box::pin(async move {
            if label.len() > LABEL_BYTES_MAX {
                return Err(error(StoreErrorKind::TooBig, "set_label", None, "a label has at most 2048 bytes"));
            }
            if let Some(journal) = &self.journal {
                journal.borrow_mut().base.label = label.clone();
            }
            self.state.borrow_mut().label = label;
            Ok(())
        })
    }

    fn close(&self) -> Fut<'_, Result<(), StoreError>> {
        Box::pin(async move {
            self.wait_for(self.last_transno(), Durability::Stable).await?;
            self.ended.set(Some("the store is closed"));
            Ok(())
        })
    }
}

impl State {
    /// Whether the transaction can be applied. Everything that can fail, fails here.
    fn check(&self, transaction: &Transaction, capacity_bytes: u64) -> Result<(), StoreError> {
        // Objects that the operations so far created (true) or destroyed (false).
        let mut changed = BTreeMap::new();
        let mut more_blocks = 0;
        for op in &transaction.ops {
            check_op(op)?;
            let fid = op.fid();
            let there = changed.get(&fid).copied().unwrap_or_else(|| self.objects.contains_key(&fid));
            let needed = match op {
                Op::Create { .. } => {
                    if there {
                        return Err(error(StoreErrorKind::Exists, op.name(), Some(fid), "the object exists"));
                    }
                    changed.insert(fid, true);
                    continue;
                }
                Op::Destroy { .. } => {
                    changed.insert(fid, false);
                    true
                }
                Op::Put { .. } | Op::Delete { .. } => fid.seq != SEQ_LOCAL,
                _ => true,
            };
            if needed && !there {
                return Err(error(StoreErrorKind::NotFound, op.name(), Some(fid), "no such object"));
            }
            let range = match op {
                Op::Write { offset, data, .. } => *offset..*offset + data.len() as u64,
                Op::Allocate { range, .. } | Op::Zero { range, .. } => range.clone(),
                _ => continue,
            };
            let blocks = blocks_touching(&range);
            let taken = self.objects.get(&fid).map_or(0, |object| object.taken(&blocks));
            more_blocks += blocks.end - blocks.start - taken;
        }
        if (self.taken_blocks + more_blocks).saturating_mul(BLOCK) > capacity_bytes {
            return Err(error(StoreErrorKind::NoSpace, "submit", None, "the store is full"));
        }
        Ok(())
    }

    /// Applies a transaction that [`State::check`] has passed.
    fn apply(&mut self, transaction: &Transaction) {
        self.transno += 1;
        for op in &transaction.ops {
            self.apply_op(op);
        }
    }

    fn apply_op(&mut self, op: &Op) {
        let fid = op.fid();
        match op {
            Op::Create { attr, .. } => {
                let attr = Attr { size: 0, allocated_bytes: 0, version: self.transno, ..attr.clone() };
                self.objects.insert(fid, Object { attr, ..Object::default() });
                return;
            }
            Op::Destroy { .. } => {
                let object = self.objects.remove(&fid).expect("checked");
                self.taken_blocks -= object.taken(&(0..u64::MAX));
                let keys: Vec<_> = self.keys.range((fid, Vec::new())..).map(|(key, _)| key.clone()).collect();
                for key in keys.into_iter().take_while(|(owner, _)| *owner == fid) {
                    self.keys.remove(&key);
                }
                return;
            }
            Op::Put { key, value, .. } => {
                self.keys.insert((fid, key.clone()), value.clone());
                return;
            }
            Op::Delete { key, .. } => {
                self.keys.remove(&(fid, key.clone()));
                return;
            }
            _ => {}
        }
        let object = self.objects.get_mut(&fid).expect("checked");
        self.taken_blocks -= object.attr.allocated_bytes / BLOCK;
        object.apply_op(op);
        object.attr.version = self.transno;
        object.attr.allocated_bytes = object.taken(&(0..u64::MAX)) * BLOCK;
        self.taken_blocks += object.attr.allocated_bytes / BLOCK;
    }
}

impl Object {
    fn apply_op(&mut self, op: &Op) {
        match op {
            Op::SetAttr { patch, .. } => self.attr.apply(patch),
            Op::Write { offset, data, .. } => {
                let range = *offset..*offset + data.len() as u64;
                self.write(&range, |at| data[(at - *offset) as usize]);
                if !data.is_empty() {
                    self.attr.size = self.attr.size.max(range.end);
                }
            }
            Op::Truncate { size, .. } => {
                self.punch(&(*size..u64::MAX));
                self.attr.size = *size;
            }
            Op::Punch { range, .. } => self.punch(range),
            Op::Allocate { range, keep_size, .. } => {
                self.reserve(&blocks_touching(range));
                self.grow(range.end, *keep_size);
            }
            Op::Zero { range, keep_size, .. } => {
                self.punch(range);
                self.reserve(&blocks_touching(range));
                self.grow(range.end, *keep_size);
            }
            Op::SetXattr { name, value, .. } => {
                self.xattrs.insert(name.clone(), value.clone());
            }
            Op::RemoveXattr { name, .. } => {
                self.xattrs.remove(name);
            }
            Op::Create { .. } | Op::Destroy { .. } | Op::Put { .. } | Op::Delete { .. } => {
                unreachable!("not an operation on the inside of an object")
            }
        }
    }

    fn attr(&self) -> Attr {
        self.attr.clone()
    }

    fn grow(&mut self, end: u64, keep_size: bool) {
        if !keep_size {
            self.attr.size = self.attr.size.max(end);
        }
    }

    /// Writes `byte(at)` to every byte of the range.
    fn write(&mut self, range: &Range<u64>, byte: impl Fn(u64) -> u8) {
        let blocks = blocks_touching(range);
        self.unreserve(&blocks);
        for block in blocks {
            let data = self.written.entry(block).or_insert_with(|| vec![0; BLOCK as usize]);
            let from = range.start.max(block * BLOCK);
            for at in from..range.end.min((block + 1) * BLOCK) {
                data[(at % BLOCK) as usize] = byte(at);
            }
        }
    }

    /// Whole blocks become holes; bytes of written blocks at the edges become zeros.
    fn punch(&mut self, range: &Range<u64>) {
        for block in [range.start / BLOCK, range.end / BLOCK] {
            let Some(data) = self.written.get_mut(&block) else { continue };
            let from = range.start.max(block * BLOCK);
            for at in from..range.end.min((block + 1) * BLOCK) {
                data[(at % BLOCK) as usize] = 0;
            }
        }
        let whole = range.start.div_ceil(BLOCK)..range.end / BLOCK;
        if whole.start < whole.end {
            let gone: Vec<u64> = self.written.range(whole.clone()).map(|(block, _)| *block).collect();
            gone.iter().for_each(|block| drop(self.written.remove(block)));
            self.unreserve(&whole);
        }
    }

    /// Holes among the blocks become unwritten.
    fn reserve(&mut self, blocks: &Range<u64>) {
        let mut merged = blocks.clone();
        self.unwritten.retain(|start, end| {
            let touches = *start <= merged.end && *end >= merged.start;
            if touches {
                merged = merged.start.min(*start)..merged.end.max(*end);
            }
            !touches
        });
        self.unwritten.insert(merged.start, merged.end);
        let written: Vec<u64> = self.written.range(blocks.clone()).map(|(block, _)| *block).collect();
        written.iter().for_each(|block| self.unreserve(&(*block..*block + 1)));
    }

    /// Unwritten blocks of the range become holes.
    fn unreserve(&mut self, blocks: &Range<u64>) {
        let touched: Vec<_> = self.unwritten.range(..blocks.end).map(|(start, end)| (*start, *end)).collect();
        for (start, end) in touched.into_iter().filter(|(_, end)| *end > blocks.start) {
            self.unwritten.remove(&start);
            if start < blocks.start {
                self.unwritten.insert(start, blocks.start);
            }
            if end > blocks.end {
                self.unwritten.insert(blocks.end, end);
            }
        }
    }

    /// Blocks of the range that are written or reserved.
    fn taken(&self, blocks: &Range<u64>) -> u64 {
        let written = self.written.range(blocks.clone()).count() as u64;
        let unwritten = self.unwritten.iter().map(|(start, end)| {
            let (start, end) = (*start.max(&blocks.start), *end.min(&blocks.end));
            end.saturating_sub(start)
        });
        written + unwritten.sum::<u64>()
    }

    fn read(&self, offset: u64, length: usize) -> Bytes {
        let end = self.attr.size.min(offset.saturating_add(length as u64));
        if offset >= end {
            return Bytes::new();
        }
        let mut out = vec![0; (end - offset) as usize];
        for (block, data) in self.written.range(blocks_touching(&(offset..end))) {
            let start = block * BLOCK;
            let (from, to) = (start.max(offset), (start + BLOCK).min(end));
            out[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&data[(from - start) as usize..(to - start) as usize]);
        }
        Bytes::from(out)
    }

    fn seek(&self, offset: u64, what: Seek) -> Option<u64> {
        let size = self.attr.size;
        if offset >= size {
            return None;
        }
        let first = offset / BLOCK;
        let found = match what {
            Seek::Data => *self.written.range(first..).next()?.0,
            Seek::Hole => {
                let mut block = first;
                while self.written.contains_key(&block) {
                    block += 1;
                }
                return Some((block * BLOCK).max(offset).min(size));
            }
        };
        let found = (found * BLOCK).max(offset);
        (found < size).then_some(found)
    }

    fn extents(&self, range: Range<u64>, limit: usize) -> Vec<ExtentInfo> {
        let blocks = blocks_touching(&range);
        let written = self.written.range(blocks.clone()).map(|(block, _)| (*block, *block + 1, false));
        let unwritten = self.unwritten.iter().map(|(start, end)| (*start, *end, true));
        let mut pieces: Vec<_> = written.chain(unwritten).collect();
        pieces.sort_unstable();
        let mut out: Vec<ExtentInfo> = Vec::new();
        for (start, end, unwritten) in pieces {
            let (start, end) = (start.max(blocks.start) * BLOCK, end.min(blocks.end) * BLOCK);
            if start >= end {
                continue;
            }
            match out.last_mut() {
                Some(last) if last.logical + last.length == start && last.unwritten == unwritten => {
                    last.length += end - start;
                }
                _ => out.push(ExtentInfo { logical: start, physical: 0, length: end - start, unwritten }),
            }
        }
        out.truncate(limit);
        out
    }
}

/// Checks what can be checked without a store: sizes, ranges, lengths.
pub(crate) fn check_op(op: &Op) -> Result<(), StoreError> {
    let wrong = |kind, context: &str| Err(error(kind, op.name(), Some(op.fid()), context));
    let end = match op {
        Op::Write { offset, data, .. } => offset.checked_add(data.len() as u64),
        Op::Truncate { size, .. } => Some(*size),
        Op::SetAttr { patch, .. } => Some(patch.size.unwrap_or(0)),
        Op::Allocate { range, .. } | Op::Zero { range, .. } => Some(range.end),
        _ => Some(0),
    };
    if end.is_none_or(|end| end > OBJECT_BYTES_MAX) {
        return wrong(StoreErrorKind::TooBig, "beyond the largest size of an object");
    }
    match op {
        Op::Punch { range, .. } | Op::Allocate { range, .. } | Op::Zero { range, .. } if range.is_empty() => {
            wrong(StoreErrorKind::Invalid, "the range is empty")
        }
        Op::SetXattr { name, value, .. } if name.len() > XATTR_NAME_BYTES_MAX || value.len() > VALUE_BYTES_MAX => {
            wrong(StoreErrorKind::TooBig, "the name has more than 255 bytes or the value more than 64 KiB")
        }
        Op::Put { key, value, .. } if key.len() > KEY_BYTES_MAX || value.len() > VALUE_BYTES_MAX => {
            wrong(StoreErrorKind::TooBig, "the key has more than 1024 bytes or the value more than 64 KiB")
        }
        _ => Ok(()),
    }
}

/// Numbers of the blocks that hold a byte of the range.
fn blocks_touching(range: &Range<u64>) -> Range<u64> {
    if range.is_empty() {
        return 0..0;
    }
    range.start / BLOCK..range.end.div_ceil(BLOCK)
}

fn error(kind: StoreErrorKind, op: &'static str, fid: Option<Fid>, context: &str) -> StoreError {
    StoreError { kind, op, fid, context: context.to_owned(), source: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    const FID: Fid = Fid::new(0x2_0000_0401, 1);

    fn now<T>(future: Fut<'_, T>) -> T {
        future.now_or_never().expect("the model waits for nothing")
    }

    fn submit(store: &ModelStore, ops: Vec<Op>) -> Result<Transno, StoreErrorKind> {
        now(store.submit(Transaction { ops })).map_err(|error| error.kind)
    }

    fn with_object() -> ModelStore {
        let store = ModelStore::crashable();
        submit(&store, vec![Op::Create { fid: FID, attr: Attr::default() }]).unwrap();
        store
    }

    fn write(offset: u64, data: &'static [u8]) -> Op {
        Op::Write { fid: FID, offset, data: Bytes::from_static(data) }
    }

    fn shape(store: &ModelStore) -> Vec<(u64, u64, bool)> {
        let extents = now(store.extents(FID, 0..u64::MAX, 100)).unwrap();
        extents.iter().map(|extent| (extent.logical / BLOCK, extent.length / BLOCK, extent.unwritten)).collect()
    }

    #[test]
    fn holes_unwritten_extents_and_data() {
        let store = with_object();
        submit(&store, vec![Op::Allocate { fid: FID, range: 0..40_000, keep_size: false }, write(9_000, b"abc")])
            .unwrap();
        assert_eq!(shape(&store), [(0, 2, true), (2, 1, false), (3, 7, true)]);
        assert_eq!(now(store.attr(FID)).unwrap().allocated_bytes, 10 * BLOCK);
        assert_eq!(now(store.seek(FID, 0, Seek::Data)).unwrap(), Some(8192));
        assert_eq!(now(store.seek(FID, 8200, Seek::Hole)).unwrap(), Some(12288));
        assert_eq!(now(store.seek(FID, 12288, Seek::Data)).unwrap(), None);
        submit(&store, vec![Op::Punch { fid: FID, range: 9_001..u64::MAX }]).unwrap();
        assert_eq!(&now(store.read(FID, 8_999, 4)).unwrap()[..], b"\0a\0\0");
        assert_eq!(shape(&store), [(0, 2, true), (2, 1, false)]);
        submit(&store, vec![Op::Zero { fid: FID, range: 100..12_289, keep_size: true }]).unwrap();
        // Written blocks at the edges of a zeroed range stay written; here block 2 lies inside.
        assert_eq!(shape(&store), [(0, 4, true)]);
    }

    #[test]
    fn a_shrunk_and_grown_object_reads_zeros() {
        let store = with_object();
        submit(&store, vec![write(0, b"abcdef")]).unwrap();
        submit(&store, vec![Op::Truncate { fid: FID, size: 2 }, Op::Truncate { fid: FID, size: 6 }]).unwrap();
        assert_eq!(&now(store.read(FID, 0, 100)).unwrap()[..], b"ab\0\0\0\0");
    }

    #[test]
    fn a_failed_transaction_changes_nothing() {
        let store = with_object();
        let other = Fid::new(9, 9);
        let failed = submit(&store, vec![write(0, b"x"), Op::Destroy { fid: other }]);
        assert_eq!(failed, Err(StoreErrorKind::NotFound));
        assert_eq!(now(store.attr(FID)).unwrap().size, 0);
        assert_eq!(submit(&store, vec![write(OBJECT_BYTES_MAX, b"x")]), Err(StoreErrorKind::TooBig));
        let small = ModelStore::with_capacity(2 * BLOCK);
        submit(&small, vec![Op::Create { fid: FID, attr: Attr::default() }, write(0, b"x")]).unwrap();
        let too_much = Op::Allocate { fid: FID, range: 0..3 * BLOCK, keep_size: true };
        assert_eq!(submit(&small, vec![too_much]), Err(StoreErrorKind::NoSpace));
    }

    #[test]
    fn keys_go_with_their_object() {
        let store = with_object();
        let put = |key: &[u8]| Op::Put { index: FID, key: key.to_vec(), value: b"v".to_vec() };
        submit(&store, vec![put(b"b"), put(b"a"), put(b"c")]).unwrap();
        let keys: Vec<_> = now(store.scan(FID, Some(b"a"), 9)).unwrap().into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, [b"b", b"c"]);
        submit(&store, vec![Op::Destroy { fid: FID }]).unwrap();
        assert_eq!(now(store.get(FID, b"a")).unwrap(), None);
        assert_eq!(submit(&store, vec![put(b"a")]), Err(StoreErrorKind::NotFound));
        let local = Fid::local(3);
        submit(&store, vec![Op::Put { index: local, key: vec![], value: vec![] }]).unwrap();
        assert_eq!(now(store.get(local, b"")).unwrap(), Some(vec![]));
    }

    #[test]
    fn crashes_leave_what_was_safe() {
        let store = with_object();
        let numbers: Vec<_> = [b"1", b"2", b"3"].iter().map(|b| submit(&store, vec![write(0, *b)]).unwrap()).collect();
        now(store.wait(numbers[0], Durability::Stable)).unwrap();
        now(store.wait(numbers[1], Durability::Written)).unwrap();
        assert_eq!(store.last_committed(), numbers[0]);
        let killed = store.crash(Crash::Kill);
        assert_eq!(&now(killed.read(FID, 0, 9)).unwrap()[..], b"2");
        let lost = store.crash(Crash::PowerLoss);
        assert_eq!(&now(lost.read(FID, 0, 9)).unwrap()[..], b"1");
        assert_eq!(lost.last_transno(), numbers[0]);
        assert_eq!(submit(&store, vec![]), Err(StoreErrorKind::ReadOnly));
        assert_eq!(submit(&lost, vec![]), Ok(numbers[1]));
    }
}
