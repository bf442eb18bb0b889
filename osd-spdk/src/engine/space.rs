//! Space: which blocks of the device are taken.
//!
//! ```text
//!          allocate               commit                    give                   proven
//! free ──────────────► reserved ───────────► taken ───────────────────► dying ───────────────► free
//!   ▲                     │ dropped           (in the log)               (in the log)
//!   └─────────────────────┘
//! ```
//!
//! Two bits per block. `taken` is exactly what the log says up to the last transaction; a checkpoint puts the changed
//! regions of it into the index. `busy` is everything else that must not be allocated now: reservations, blocks of runs
//! and checkpoints (whoever names them knows them), and dying blocks. A dying block may be used again when its giving is
//! proven: until then a crash could bring the former owner back, or make replay check the former contents.
//!
//! Regions are loaded when they are needed, so opening a store does not take longer on a larger device.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::rc::{Rc, Weak};

use super::error;
use super::index::{Change, Tree};
use crate::format::object::space_key;
use crate::format::run::Extent;
use crate::format::superblock::BLOCK_BYTES;
use crate::format::{get_varint, put_varint};
use crate::store::{StoreError, StoreErrorKind, Transno};

/// Blocks of one region: 128 MiB.
const REGION_BLOCKS: u64 = 32768;
const WORDS: usize = REGION_BLOCKS as usize / 64;

/// What space is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// File data: leaves the reserve alone.
    Data,
    /// What lets something be deleted: may use it up.
    Internal,
}

pub(crate) struct Space {
    /// First block and number of blocks, on the device.
    first: u64,
    blocks: u64,
    reserve_blocks: u64,
    state: RefCell<State>,
    index: RefCell<Weak<Tree>>,
    /// What merging the whole index takes besides.
    index_blocks: Cell<u64>,
    /// Promised to operations that have not allocated yet.
    promised: Cell<u64>,
}

struct State {
    regions: Vec<Region>,
    /// Regions whose `taken` bits changed since the last snapshot.
    dirty: BTreeSet<u32>,
    taken: u64,
    busy: u64,
    /// Where the next search begins.
    cursor: u64,
    dying: VecDeque<(Transno, Extent)>,
}

enum Region {
    /// In the index; what happened since it was written there.
    Unloaded(Vec<(Extent, Mark)>),
    Loaded(Box<Bits>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    Take,
    Give,
    Busy,
    Idle,
}

struct Bits {
    taken: [u64; WORDS],
    busy: [u64; WORDS],
    /// No free run is longer.
    longest_run_max: u64,
}

/// Space counted on; given up when dropped.
pub(crate) struct Promise {
    space: Rc<Space>,
    blocks: Cell<u64>,
}

/// Space found; given up when dropped, unless it is committed.
pub(crate) struct Reservation {
    space: Rc<Space>,
    pub extents: Vec<Extent>,
}

impl Space {
    pub fn new(space: Extent, reserve_bytes: u64, taken_blocks: u64) -> Rc<Space> {
        let blocks = space.length / BLOCK_BYTES;
        let regions = (0..blocks.div_ceil(REGION_BLOCKS)).map(|_| Region::Unloaded(Vec::new())).collect();
        Rc::new(Space {
            first: space.offset / BLOCK_BYTES,
            blocks,
            reserve_blocks: reserve_bytes / BLOCK_BYTES,
            state: RefCell::new(State {
                regions,
                dirty: BTreeSet::new(),
                taken: taken_blocks,
                busy: 0,
                cursor: 0,
                dying: VecDeque::new(),
            }),
            index: RefCell::default(),
            index_blocks: Cell::new(0),
            promised: Cell::new(0),
        })
    }

    /// Where regions are loaded from.
    pub fn set_index(&self, index: &Rc<Tree>) {
        *self.index.borrow_mut() = Rc::downgrade(index);
    }

    /// How large the index is: so much is left free for merges, without which deleting would only make it larger.
    pub fn set_index_bytes(&self, bytes: u64) {
        self.index_blocks.set(bytes.div_ceil(BLOCK_BYTES));
    }

    /// What data leaves alone.
    fn kept_blocks(&self) -> u64 {
        self.reserve_blocks.max(self.reserve_blocks / 2 + self.index_blocks.get())
    }

    pub fn total_bytes(&self) -> u64 {
        (self.blocks - self.reserve_blocks) * BLOCK_BYTES
    }

    /// What data may still take; dying space counts as free.
    pub fn free_bytes(&self) -> u64 {
        let state = self.state.borrow();
        let dying: u64 = state.dying.iter().map(|(_, extent)| extent.length / BLOCK_BYTES).sum();
        let used = state.taken + state.busy - dying + self.promised.get() + self.kept_blocks();
        self.blocks.saturating_sub(used) * BLOCK_BYTES
    }

    pub fn taken_blocks(&self) -> u64 {
        self.state.borrow().taken
    }

    /// Whether new metadata may be taken: half of the reserve is left for deleting, and room for the index once more.
    pub fn has_room_for_metadata(&self) -> bool {
        self.unused() >= self.reserve_blocks / 2 + self.index_blocks.get()
    }

    /// Whether some space waits for its giving to be proven.
    pub fn has_dying(&self) -> bool {
        !self.state.borrow().dying.is_empty()
    }

    fn unused(&self) -> u64 {
        let state = self.state.borrow();
        self.blocks.saturating_sub(state.taken + state.busy + self.promised.get())
    }

    /// Makes sure of this many blocks.
    pub fn promise(self: &Rc<Space>, blocks: u64, purpose: Purpose) -> Result<Promise, StoreError> {
        let keep = if purpose == Purpose::Data { self.kept_blocks() } else { 0 };
        if blocks > 0 && self.unused() < blocks.saturating_add(keep) {
            return Err(error(StoreErrorKind::NoSpace, "allocate", None, "the device is full"));
        }
        self.promised.set(self.promised.get() + blocks);
        Ok(Promise { space: self.clone(), blocks: Cell::new(blocks) })
    }

    /// Finds blocks that were promised, at `goal` (a block of the device) if they are free there, in few pieces.
    pub async fn allocate(
        self: &Rc<Space>,
        promise: &Promise,
        blocks: u64,
        goal: Option<u64>,
    ) -> Result<Reservation, StoreError> {
        let mut reservation = Reservation { space: self.clone(), extents: Vec::new() };
        let mut left = blocks;
        if let Some(goal) = goal.and_then(|goal| goal.checked_sub(self.first)).filter(|goal| *goal < self.blocks) {
            self.load((goal / REGION_BLOCKS) as u32).await?;
            let run = self.state.borrow().free_at(goal, left);
            self.reserve(&mut reservation, promise, &mut left, goal, run);
        }
        let regions = self.blocks.div_ceil(REGION_BLOCKS);
        let mut shortest = left.min(REGION_BLOCKS);
        while left > 0 {
            let begin = self.state.borrow().cursor;
            let mut found = false;
            // The region of the cursor comes first, from the cursor on, and once more at the end, whole.
            for step in 0..=regions {
                let region = (begin / REGION_BLOCKS + step) % regions;
                self.load(region as u32).await?;
                loop {
                    let from = if step == 0 { self.state.borrow().cursor % REGION_BLOCKS } else { 0 };
                    let Some((start, run)) = self.state.borrow_mut().find(region, from, shortest.min(left), left)
                    else {
                        break;
                    };
                    found = true;
                    self.reserve(&mut reservation, promise, &mut left, start, run);
                    let end = start + run;
                    self.state.borrow_mut().cursor = if end < self.blocks { end } else { 0 };
                    if left == 0 {
                        break;
                    }
                }
                if left == 0 {
                    break;
                }
            }
            if left > 0 && shortest == 1 && !found {
                return Err(error(StoreErrorKind::NoSpace, "allocate", None, "the device is full"));
            }
            shortest = (shortest / 8).max(1);
        }
        Ok(reservation)
    }

    fn reserve(&self, reservation: &mut Reservation, promise: &Promise, left: &mut u64, start: u64, blocks: u64) {
        if blocks == 0 {
            return;
        }
        let extent = Extent { offset: (self.first + start) * BLOCK_BYTES, length: blocks * BLOCK_BYTES };
        self.mark(extent, Mark::Busy);
        *left -= blocks;
        let kept = promise.blocks.get().min(blocks);
        promise.blocks.set(promise.blocks.get() - kept);
        self.promised.set(self.promised.get() - kept);
        match reservation.extents.last_mut() {
            Some(last) if last.offset + last.length == extent.offset => last.length += extent.length,
            _ => reservation.extents.push(extent),
        }
    }

    /// Whether an extent lies in the space.
    pub fn contains(&self, extent: Extent) -> bool {
        let first = self.first * BLOCK_BYTES;
        let end = (self.first + self.blocks) * BLOCK_BYTES;
        let aligned = extent.offset.is_multiple_of(BLOCK_BYTES) && extent.length.is_multiple_of(BLOCK_BYTES);
        aligned && extent.offset >= first && extent.length <= end && extent.offset <= end - extent.length
    }

    /// First block behind the space, on the device.
    pub fn blocks_end(&self) -> u64 {
        self.first + self.blocks
    }

    /// A record takes reserved space.
    pub fn commit(&self, extent: Extent) {
        self.mark(extent, Mark::Idle);
        self.mark(extent, Mark::Take);
    }

    /// A record gives space back.
    pub fn give(&self, extent: Extent, transno: Transno) {
        self.mark(extent, Mark::Give);
        self.mark(extent, Mark::Busy);
        self.state.borrow_mut().dying.push_back((transno, extent));
    }

    /// Replay takes space.
    pub fn replay_take(&self, extent: Extent) {
        self.mark(extent, Mark::Take);
    }

    /// Everything up to `proven` will survive whatever happens: dying space may be used again.
    pub fn proven(&self, proven: Transno) -> bool {
        let mut any = false;
        loop {
            let extent = {
                let mut state = self.state.borrow_mut();
                match state.dying.front() {
                    Some((transno, extent)) if *transno <= proven => {
                        let extent = *extent;
                        state.dying.pop_front();
                        extent
                    }
                    _ => return any,
                }
            };
            self.release(extent);
            any = true;
        }
    }

    /// Space of runs and checkpoints.
    pub fn set_busy(&self, extent: Extent, busy: bool) {
        if busy { self.mark(extent, Mark::Busy) } else { self.release(extent) }
    }

    /// Busy space is free. The next search begins here, if this is in front: the device fills from its start, and a thin one
    /// stays small.
    fn release(&self, extent: Extent) {
        self.mark(extent, Mark::Idle);
        let state = &mut *self.state.borrow_mut();
        state.cursor = state.cursor.min(extent.offset / BLOCK_BYTES - self.first);
    }

    fn mark(&self, extent: Extent, mark: Mark) {
        let state = &mut *self.state.borrow_mut();
        let blocks = extent.length / BLOCK_BYTES;
        match mark {
            Mark::Take => state.taken += blocks,
            Mark::Give => state.taken = state.taken.saturating_sub(blocks),
            Mark::Busy => state.busy += blocks,
            Mark::Idle => state.busy = state.busy.saturating_sub(blocks),
        }
        let mut start = extent.offset / BLOCK_BYTES - self.first;
        let end = start + blocks;
        while start < end {
            let region = start / REGION_BLOCKS;
            let stop = end.min((region + 1) * REGION_BLOCKS);
            if matches!(mark, Mark::Take | Mark::Give) {
                state.dirty.insert(region as u32);
            }
            match &mut state.regions[region as usize] {
                Region::Loaded(bits) => bits.mark(start % REGION_BLOCKS, stop - start, mark),
                Region::Unloaded(since) => {
                    since.push((Extent { offset: start % REGION_BLOCKS, length: stop - start }, mark))
                }
            }
            start = stop;
        }
    }

    async fn load(&self, number: u32) -> Result<(), StoreError> {
        if matches!(self.state.borrow().regions[number as usize], Region::Loaded(_)) {
            return Ok(());
        }
        let index = self.index.borrow().upgrade();
        let value = match index {
            Some(index) => index.get(&space_key(number)).await?,
            None => None,
        };
        let state = &mut *self.state.borrow_mut();
        let region = &mut state.regions[number as usize];
        // Somebody else may have loaded it meanwhile.
        let Region::Unloaded(since) = region else { return Ok(()) };
        let mut bits = Box::new(Bits { taken: [0; WORDS], busy: [0; WORDS], longest_run_max: REGION_BLOCKS });
        if let Some(value) = value
            && !bits.decode(&value)
        {
            let context = format!("the space map of region {number} is damaged");
            return Err(error(StoreErrorKind::Corrupt, "allocate", None, &context));
        }
        let start = u64::from(number) * REGION_BLOCKS;
        let blocks = (self.blocks - start).min(REGION_BLOCKS);
        set(&mut bits.busy, blocks, REGION_BLOCKS - blocks, true);
        since.iter().for_each(|(extent, mark)| bits.mark(extent.offset, extent.length, *mark));
        *region = Region::Loaded(bits);
        Ok(())
    }

    /// Loads everything that [`Space::snapshot`] needs.
    pub async fn load_dirty(&self) -> Result<(), StoreError> {
        loop {
            let next = {
                let state = self.state.borrow();
                let unloaded = |region: &&u32| matches!(state.regions[**region as usize], Region::Unloaded(_));
                state.dirty.iter().find(unloaded).copied()
            };
            match next {
                Some(region) => self.load(region).await?,
                None => return Ok(()),
            }
        }
    }

    /// Index entries of all regions that changed since the last snapshot. Right after [`Space::load_dirty`].
    pub fn snapshot(&self) -> Vec<Change> {
        let state = &mut *self.state.borrow_mut();
        let dirty = std::mem::take(&mut state.dirty);
        let mut out = Vec::new();
        for number in dirty {
            match &state.regions[number as usize] {
                Region::Loaded(bits) => out.push((space_key(number), bits.encode())),
                // Not loaded since: it stays dirty, with what is in the list.
                Region::Unloaded(_) => drop(state.dirty.insert(number)),
            }
        }
        out
    }
}

impl State {
    /// Length of the free run at exactly this block, at most `most`, within its region, which is loaded.
    fn free_at(&self, start: u64, most: u64) -> u64 {
        let Region::Loaded(bits) = &self.regions[(start / REGION_BLOCKS) as usize] else { return 0 };
        bits.run_at(start % REGION_BLOCKS, most)
    }

    /// First free run of at least `shortest` blocks in a region, from a block on; cut to `most`.
    fn find(&mut self, region: u64, from: u64, shortest: u64, most: u64) -> Option<(u64, u64)> {
        let Region::Loaded(bits) = &mut self.regions[region as usize] else { return None };
        let (start, run) = bits.find(from, shortest, most)?;
        Some((region * REGION_BLOCKS + start, run))
    }
}

impl Bits {
    fn mark(&mut self, start: u64, blocks: u64, mark: Mark) {
        match mark {
            Mark::Take => set(&mut self.taken, start, blocks, true),
            Mark::Give => set(&mut self.taken, start, blocks, false),
            Mark::Busy => set(&mut self.busy, start, blocks, true),
            Mark::Idle => set(&mut self.busy, start, blocks, false),
        }
        if matches!(mark, Mark::Give | Mark::Idle) {
            self.longest_run_max = REGION_BLOCKS;
        }
    }

    /// First block at or after `from` that is free (or not).
    fn next(&self, from: u64, free: bool) -> u64 {
        let mut at = from;
        while at < REGION_BLOCKS {
            let word = self.taken[at as usize / 64] | self.busy[at as usize / 64];
            let wanted = if free { !word } else { word } >> (at % 64);
            if wanted != 0 {
                return at + u64::from(wanted.trailing_zeros());
            }
            at = (at / 64 + 1) * 64;
        }
        REGION_BLOCKS
    }

    fn run_at(&self, start: u64, most: u64) -> u64 {
        if self.next(start, true) != start { 0 } else { (self.next(start, false) - start).min(most) }
    }

    fn find(&mut self, from: u64, shortest: u64, most: u64) -> Option<(u64, u64)> {
        if self.longest_run_max < shortest {
            return None;
        }
        let (mut at, mut longest) = (from, 0);
        loop {
            let start = self.next(at, true);
            if start == REGION_BLOCKS {
                if from == 0 {
                    self.longest_run_max = longest;
                }
                return None;
            }
            at = self.next(start, false);
            longest = longest.max(at - start);
            if at - start >= shortest {
                return Some((start, (at - start).min(most)));
            }
        }
    }

    /// `None`: nothing is taken, no key. Otherwise `1` and runs (free, taken, free, …; varints), or `2` and the bitmap, whichever is
    /// shorter.
    fn encode(&self) -> Option<Box<[u8]>> {
        let mut runs = vec![1u8];
        let (mut at, mut taken) = (0, false);
        while at < REGION_BLOCKS && runs.len() < 4096 {
            let end = next_bit(&self.taken, at, !taken);
            put_varint(&mut runs, end - at);
            (at, taken) = (end, !taken);
        }
        if self.taken.iter().all(|word| *word == 0) {
            return None;
        }
        if at < REGION_BLOCKS {
            runs = vec![2];
            self.taken.iter().for_each(|word| runs.extend_from_slice(&word.to_le_bytes()));
        }
        Some(runs.into_boxed_slice())
    }

    fn decode(&mut self, value: &[u8]) -> bool {
        match value.split_first() {
            Some((1, mut runs)) => {
                let (mut at, mut taken) = (0u64, false);
                while !runs.is_empty() {
                    let Some(run) = get_varint(&mut runs).filter(|run| *run <= REGION_BLOCKS - at) else {
                        return false;
                    };
                    set(&mut self.taken, at, if taken { run } else { 0 }, true);
                    (at, taken) = (at + run, !taken);
                }
                at == REGION_BLOCKS
            }
            Some((2, words)) if words.len() == WORDS * 8 => {
                for (word, bytes) in self.taken.iter_mut().zip(words.chunks_exact(8)) {
                    *word = u64::from_le_bytes(bytes.try_into().expect("chunks of eight"));
                }
                true
            }
            _ => false,
        }
    }
}

fn set(words: &mut [u64; WORDS], start: u64, blocks: u64, value: bool) {
    let (mut at, end) = (start, start + blocks);
    while at < end {
        let (word, bit) = (at as usize / 64, at % 64);
        let count = (64 - bit).min(end - at);
        let mask = (u64::MAX >> (64 - count)) << bit;
        if value {
            words[word] |= mask
        } else {
            words[word] &= !mask
        }
        at += count;
    }
}

fn next_bit(words: &[u64; WORDS], from: u64, value: bool) -> u64 {
    let mut at = from;
    while at < REGION_BLOCKS {
        let word = words[at as usize / 64];
        let wanted = if value { word } else { !word } >> (at % 64);
        if wanted != 0 {
            return at + u64::from(wanted.trailing_zeros());
        }
        at = (at / 64 + 1) * 64;
    }
    REGION_BLOCKS
}

impl Promise {
    /// More of it, without asking: what is already allowed by its purpose.
    #[cfg(test)]
    fn left(&self) -> u64 {
        self.blocks.get()
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.space.promised.set(self.space.promised.get() - self.blocks.get());
    }
}

impl Reservation {
    /// Whoever commits it (or names it otherwise) has it now.
    pub fn take(mut self) -> Vec<Extent> {
        std::mem::take(&mut self.extents)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        for extent in std::mem::take(&mut self.extents) {
            self.space.release(extent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    const SPACE: Extent = Extent { offset: 1 << 20, length: 300 << 20 };

    fn space() -> Rc<Space> {
        Space::new(SPACE, 10 << 20, 0)
    }

    fn allocate(space: &Rc<Space>, blocks: u64, goal: Option<u64>) -> Result<Vec<Extent>, StoreErrorKind> {
        let promise = space.promise(blocks, Purpose::Data).map_err(|error| error.kind)?;
        let reservation = space.allocate(&promise, blocks, goal).now_or_never().expect("no I/O");
        assert_eq!(promise.left(), 0);
        Ok(reservation.map_err(|error| error.kind)?.take())
    }

    #[test]
    fn everything_can_be_taken_and_comes_back_when_it_is_proven() {
        let space = space();
        let mut taken = Vec::new();
        while let Ok(extents) = allocate(&space, 1000, None) {
            extents.iter().for_each(|extent| space.commit(*extent));
            taken.extend(extents);
        }
        assert_eq!(space.taken_blocks(), 290 * 256 / 1000 * 1000);
        let mut sorted = taken.clone();
        sorted.sort_by_key(|extent| extent.offset);
        assert!(sorted.windows(2).all(|pair| pair[0].offset + pair[0].length <= pair[1].offset), "no block twice");
        assert!(sorted.iter().all(|extent| space.contains(*extent)));
        for extent in &taken {
            space.give(*extent, 7);
        }
        assert_eq!(allocate(&space, 1000, None), Err(StoreErrorKind::NoSpace));
        assert_eq!(space.free_bytes(), 290 << 20);
        assert!(!space.proven(6) && space.proven(7));
        allocate(&space, 40_000, None).unwrap();
    }

    #[test]
    fn data_leaves_the_reserve_and_scattered_blocks_are_found() {
        let space = space();
        let total = 290 * 256;
        let all = allocate(&space, total, None).unwrap();
        all.iter().for_each(|extent| space.commit(*extent));
        assert_eq!(allocate(&space, 1, None), Err(StoreErrorKind::NoSpace));
        assert!(space.promise(100, Purpose::Internal).is_ok());
        let block = |i: u64| Extent { offset: SPACE.offset + i * BLOCK_BYTES, length: BLOCK_BYTES };
        (0..200).for_each(|i| space.give(block(i * 300), 1));
        space.proven(1);
        let pieces = allocate(&space, 200, None).unwrap();
        assert_eq!(pieces.iter().map(|extent| extent.length).sum::<u64>(), 200 * BLOCK_BYTES);
    }

    #[test]
    fn a_goal_is_met_where_it_is_free() {
        let space = space();
        let first = allocate(&space, 10, None).unwrap()[0];
        allocate(&space, 10, None).unwrap();
        let goal = (first.offset + first.length) / BLOCK_BYTES + 100;
        assert_eq!(allocate(&space, 5, Some(goal)).unwrap()[0].offset / BLOCK_BYTES, goal);
        assert_ne!(allocate(&space, 5, Some(goal)).unwrap()[0].offset / BLOCK_BYTES, goal);
    }

    #[test]
    fn regions_come_back_in_both_forms() {
        for step in [3, 700] {
            let mut bits = Bits { taken: [0; WORDS], busy: [0; WORDS], longest_run_max: 0 };
            (0..REGION_BLOCKS).step_by(step).for_each(|i| set(&mut bits.taken, i, 1, true));
            let value = bits.encode().unwrap();
            assert_eq!(value[0], if step == 3 { 2 } else { 1 });
            let mut back = Bits { taken: [0; WORDS], busy: [0; WORDS], longest_run_max: 0 };
            assert!(back.decode(&value));
            assert_eq!(back.taken, bits.taken);
            assert!(!back.decode(&value[..value.len() - 1]));
        }
    }
}
