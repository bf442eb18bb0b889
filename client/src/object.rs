//! One object of a file at its OST: what is dirty, what was read ahead, what is known of its attributes.
//!
//! ```text
//!   write ──► dirty ──take──► sending ──answered──► (the OST has it)
//! ```
//!
//! Reads see `dirty` over `sending` over what was read ahead over the OST. A range is in `sending` at most once, so that two
//! writes of a place reach the OST in their order. Attributes are those the OST told last, moved on by our own writes; they
//! are true while a lock on the whole object is held ([`Ost::holds_everything`]).

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::{Rc, Weak};
use std::time::Duration;

use nacre_reactor::Bytes;
use nacre_transport::stubs::{SpaceChange, WriteRange};
use nacre_wire::op::{io_flags, space_mode};
use nacre_wire::{Attr, Fid, Status, Time};
use tokio::sync::Notify;

use crate::cache::{BLOCK_BYTES, CleanCache, DirtyMap, Found, KernelHas, RangeSet, Segment, blocks};
use crate::file::File;
use crate::ost::Ost;
use crate::stable::Stability;
use crate::stats::add;
use crate::writeback;

/// One object.
pub(crate) struct Object {
    /// Which.
    pub fid: Fid,
    /// Where.
    pub ost: Rc<Ost>,
    /// The file it is a part of.
    pub file_fid: Fid,
    /// Which part.
    pub stripe: usize,
    /// Something ended: a lock request, a write-back, a read ahead.
    pub changed: Notify,
    /// A lock request is under way.
    pub enqueueing: Cell<bool>,
    /// Operations under a lock of it.
    pub users: Cell<u32>,
    /// Made by this client and never locked by anybody yet.
    pub fresh: Cell<bool>,
    /// In the OST's queue of dirty objects.
    pub queued: Cell<bool>,
    /// What of it is on the OST's stable media.
    pub stability: Stability,
    /// Revocations that are emptying the kernel's cache of it.
    pub emptying: Cell<u32>,
    file: Weak<File>,
    kernel: RefCell<KernelHas>,
    tickets: Cell<u64>,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    dirty: DirtyMap,
    dirty_blocks: RangeSet,
    reserved_bytes: u64,
    sending: Vec<Batch>,
    sending_ranges: RangeSet,
    clean: CleanCache,
    attr: Option<Attr>,
    /// `allocated_bytes` of `attr` is a guess.
    blocks_unknown: bool,
    /// Questions under way whose answers bring attributes.
    questions: u32,
    /// Their answers may be from before a truncate of ours.
    answers_stale: bool,
    /// Our writes that were answered since the first of them was asked: end and time.
    written_since: Option<(u64, Time)>,
}

/// Dirty data on its way.
#[derive(Clone)]
pub(crate) struct Batch {
    id: u64,
    segments: Vec<(u64, Segment)>,
    bytes: u64,
    reserved_bytes: u64,
}

impl Batch {
    /// Bytes of data.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// A part of what a reader wants.
#[derive(Debug)]
pub(crate) enum Part {
    /// Known here.
    Bytes(Bytes),
    /// To be read from the OST.
    Ask(Range<u64>),
}

impl Object {
    /// An object of a file's layout.
    pub fn new(fid: Fid, ost: Rc<Ost>, file: Weak<File>, file_fid: Fid, stripe: usize) -> Rc<Object> {
        let object = Rc::new(Object {
            fid,
            ost: ost.clone(),
            file_fid,
            stripe,
            changed: Notify::new(),
            enqueueing: Cell::new(false),
            users: Cell::new(0),
            fresh: Cell::new(false),
            queued: Cell::new(false),
            stability: Stability::default(),
            emptying: Cell::new(0),
            file,
            kernel: RefCell::default(),
            tickets: Cell::new(0),
            state: RefCell::default(),
        });
        ost.register(&object);
        object
    }

    /// The kernel is given pages of a range.
    pub fn note_kernel_data(&self, range: &Range<u64>) {
        self.kernel.borrow_mut().note_data(range);
    }

    /// The kernel is given attributes that a lock of this object keeps true.
    pub fn note_kernel_attr(&self) {
        self.kernel.borrow_mut().note_attr();
    }

    /// Whether the kernel may keep anything that a lock on a range protects.
    pub fn kernel_may_have(&self, range: &Range<u64>) -> bool {
        self.kernel.borrow().may_have(range)
    }

    /// See [`KernelHas::notes`].
    pub fn kernel_notes(&self) -> u64 {
        self.kernel.borrow().notes()
    }

    /// See [`KernelHas::forgot`].
    pub fn kernel_forgot(&self, range: &Range<u64>, notes: u64) -> bool {
        self.kernel.borrow_mut().forgot(range, notes)
    }

    /// The range of the file that a range of the object lies in; whole file for what has no end.
    pub fn file_range(&self, range: Range<u64>) -> Range<u64> {
        let Some(file) = self.file.upgrade() else { return 0..u64::MAX };
        let start = file.layout.file_offset_of(self.stripe, range.start);
        if range.end == u64::MAX {
            return start..u64::MAX;
        }
        start..file.layout.file_offset_of(self.stripe, range.end - 1).saturating_add(1)
    }

    /// Whether nothing is dirty, travelling or under way.
    pub fn is_idle(&self) -> bool {
        let state = self.state.borrow();
        state.dirty.is_empty() && state.sending.is_empty() && self.users.get() == 0 && !self.enqueueing.get()
    }

    // ---- attributes ----

    /// A question whose answer brings attributes goes out.
    pub fn note_question(&self) {
        let mut state = self.state.borrow_mut();
        if state.questions == 0 {
            state.written_since = None;
        }
        state.questions += 1;
    }

    /// It was answered, or will not be.
    pub fn question_answered(&self) {
        let mut state = self.state.borrow_mut();
        state.questions = state.questions.saturating_sub(1);
        state.answers_stale &= state.questions > 0;
    }

    /// The OST told attributes.
    pub fn learn(&self, told: Attr) {
        let mut state = self.state.borrow_mut();
        if state.answers_stale {
            return;
        }
        if state.attr.as_ref().is_some_and(|known| told.version < known.version) {
            // An answer that others have overtaken, and perhaps a revocation between them.
            return;
        }
        let mut attr = told;
        if let Some((end, time)) = state.written_since {
            // The answer may be from before these writes.
            attr.size = attr.size.max(end);
            if time > attr.ctime {
                (attr.mtime, attr.ctime) = (time, time);
            }
        }
        state.blocks_unknown = state.written_since.is_some();
        state.attr = Some(attr);
    }

    /// The OST has restarted: what is known may be of a life that a power failure has undone.
    pub fn forget_attr(&self) {
        self.state.borrow_mut().attr = None;
    }

    /// Attributes with everything done here, as far as they are known.
    pub fn attr(&self) -> Option<Attr> {
        let state = self.state.borrow();
        let mut attr = state.attr.clone()?;
        state.add_unwritten(&mut attr);
        Some(attr)
    }

    /// What the OST cannot know: size and times with what is not written yet.
    pub fn unwritten_attr(&self) -> Option<Attr> {
        let state = self.state.borrow();
        if state.dirty.is_empty() && state.sending.is_empty() {
            return None;
        }
        let mut attr = state.attr.clone().unwrap_or_default();
        state.add_unwritten(&mut attr);
        Some(attr)
    }

    /// Whether the attributes are known and true now, allocated space included.
    pub fn attr_is_true(&self) -> bool {
        let known = {
            let state = self.state.borrow();
            state.attr.is_some() && !state.blocks_unknown
        };
        known && self.ost.holds_everything(self.fid)
    }

    /// Attributes, asked for where they are not known.
    pub async fn getattr(self: &Rc<Object>) -> Result<Attr, Status> {
        // What a glimpse told may be overtaken, or forgotten because the OST has restarted, before it is used.
        for _ in 0..GLIMPSE_RETRIES {
            if let Some(attr) = self.glimpsed_attr().await? {
                return Ok(attr);
            }
        }
        self.ask_attr().await
    }

    /// One attempt of [`Object::getattr`].
    async fn glimpsed_attr(self: &Rc<Object>) -> Result<Option<Attr>, Status> {
        if !self.ost.holds_everything(self.fid) || self.state.borrow().attr.is_none() {
            self.ost.glimpse(self).await?;
        }
        if self.state.borrow().blocks_unknown {
            self.note_question();
            let told = self.ost.stub.getattr(self.fid).await;
            self.question_answered();
            let told = told?;
            // Size and times are better known here while a lock is held; others' writes count otherwise.
            let mut state = self.state.borrow_mut();
            let quiet = state.written_since.is_none() && state.sending.is_empty();
            if let Some(attr) = &mut state.attr {
                attr.allocated_bytes = told.allocated_bytes;
            }
            state.blocks_unknown = !quiet;
        }
        Ok(self.attr())
    }

    /// Attributes as the OST has them, with what is not written yet; under a lock on everything that the caller uses.
    pub async fn ask_attr(&self) -> Result<Attr, Status> {
        self.note_question();
        let told = self.ost.stub.getattr(self.fid).await;
        if let Ok(told) = &told {
            self.learn(told.clone());
        }
        self.question_answered();
        let told = told?;
        Ok(self.attr().unwrap_or(told))
    }

    // ---- writing ----

    /// Makes data dirty under a write lock that the caller uses. False: too little space is granted, nothing was done.
    pub fn write_behind(self: &Rc<Object>, offset: u64, data: Bytes, time: Time, now: Duration) -> bool {
        let range = offset..offset + data.len() as u64;
        let mut state = self.state.borrow_mut();
        let new_blocks: u64 =
            state.dirty_blocks.gaps(blocks(range.clone())).iter().map(|gap| gap.end - gap.start).sum();
        if !self.ost.reserve(new_blocks) {
            return false;
        }
        state.reserved_bytes += new_blocks;
        state.dirty_blocks.insert(blocks(range.clone()));
        state.clean.discard(&range);
        let before = state.dirty.bytes();
        state.dirty.insert(offset, Segment { data, time, since: now });
        let added = state.dirty.bytes() - before;
        drop(state);
        self.stability.changed();
        writeback::made_dirty(self, added);
        true
    }

    /// Writes at once: after what is dirty in the range, so that the order of writes holds.
    pub async fn write_through(
        self: &Rc<Object>,
        offset: u64,
        data: Bytes,
        time: Time,
        lock_cookie: u64,
        sync: bool,
    ) -> Result<(), Status> {
        let range = offset..offset + data.len() as u64;
        self.drop_or_flush(&range).await;
        self.discard_clean(&range);
        let write = WriteRange {
            object: self.fid,
            offset_bytes: offset,
            time,
            lock_cookie,
            layout_generation: self.layout_generation(),
            data: vec![data],
        };
        let flags = if sync { io_flags::SYNC } else { 0 };
        let outcome = self.ost.stub.mwrite(vec![write], flags).await;
        self.stability.changed();
        let delta = outcome?;
        self.ost.grant_changed(delta);
        self.state.borrow_mut().written(&range, time);
        Ok(())
    }

    /// Waits until nothing of a range is dirty or travelling. Errors are kept with the file.
    pub async fn flush(self: &Rc<Object>, range: Range<u64>) {
        self.flush_until(range, Duration::MAX).await;
    }

    /// [`Object::flush`] of what has been dirty since `until` or longer: ends even if a writer goes on.
    pub async fn flush_until(self: &Rc<Object>, range: Range<u64>, until: Duration) {
        loop {
            let done = self.changed.notified();
            tokio::pin!(done);
            // From here on no notification is missed.
            done.as_mut().enable();
            let mut sent = Vec::new();
            while let Some(batch) = self.take_batch(&range, self.batch_bytes_max(), until) {
                sent.push(writeback::send(self.ost.clone(), vec![(self.clone(), batch)]));
            }
            if !sent.is_empty() {
                for task in sent {
                    // The task's end is seen through `changed`, too; a panic in it is not ours to hide.
                    if let Err(error) = task.await
                        && error.is_panic()
                    {
                        std::panic::resume_unwind(error.into_panic());
                    }
                }
                continue;
            }
            if !self.state.borrow().touches_until(&range, until) {
                return;
            }
            done.await;
        }
    }

    /// The next dirty data of a range, moved to `sending`; nothing that overlaps what is travelling.
    pub fn take_batch(&self, range: &Range<u64>, bytes_max: u64, until: Duration) -> Option<Batch> {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let segments = state.dirty.take(range.clone(), bytes_max, &state.sending_ranges, until);
        if segments.is_empty() {
            return None;
        }
        let bytes = segments.iter().map(|(_, segment)| segment.data.len() as u64).sum();
        let mut taken = RangeSet::default();
        for (offset, segment) in &segments {
            let range = *offset..offset + segment.data.len() as u64;
            state.sending_ranges.insert(range.clone());
            taken.insert(blocks(range));
        }
        let reserved_bytes = state.forget_dirty_blocks(&taken);
        let id = self.ticket();
        let batch = Batch { id, segments, bytes, reserved_bytes };
        state.sending.push(batch.clone());
        Some(batch)
    }

    /// The batch as the OST takes it; `None` for data whose lock is gone.
    pub fn write_ranges(&self, batch: &Batch) -> Option<Vec<WriteRange>> {
        let mut ranges: Vec<WriteRange> = Vec::new();
        let mut end = 0;
        for (offset, segment) in &batch.segments {
            let range = *offset..offset + segment.data.len() as u64;
            let lock_cookie = self.ost.write_lock_of(self.fid, &range)?;
            match ranges.last_mut() {
                Some(last) if end == *offset && last.lock_cookie == lock_cookie => {
                    last.time = last.time.max(segment.time);
                    last.data.push(segment.data.clone());
                }
                _ => ranges.push(WriteRange {
                    object: self.fid,
                    offset_bytes: *offset,
                    time: segment.time,
                    lock_cookie,
                    layout_generation: self.layout_generation(),
                    data: vec![segment.data.clone()],
                }),
            }
            end = range.end;
        }
        Some(ranges)
    }

    /// A batch was answered.
    pub fn batch_done(&self, batch: &Batch, outcome: Result<(), Status>) {
        let mut state = self.state.borrow_mut();
        state.sending.retain(|other| other.id != batch.id);
        for (offset, segment) in &batch.segments {
            let range = *offset..offset + segment.data.len() as u64;
            state.sending_ranges.remove(range.clone());
            if outcome.is_ok() {
                state.written(&range, segment.time);
            }
        }
        drop(state);
        self.ost.unreserve(batch.reserved_bytes);
        if let (Err(status), Some(file)) = (outcome, self.file.upgrade()) {
            file.failed(status);
        }
        self.changed.notify_waiters();
    }

    /// When its dirty data began to wait, and how much there is.
    pub fn dirty_since(&self) -> Option<(Duration, u64)> {
        let state = self.state.borrow();
        Some((state.dirty.oldest()?, state.dirty.bytes()))
    }

    /// Dirty bytes.
    pub fn dirty_bytes(&self) -> u64 {
        self.state.borrow().dirty.bytes()
    }

    /// Most bytes of one batch.
    pub fn batch_bytes_max(&self) -> u64 {
        self.ost.client.upgrade().map_or(1 << 20, |client| client.params.max_pages_per_rpc.get() * BLOCK_BYTES)
    }

    /// The server has thrown this client out: dirty data of a range is lost, which the file remembers as EIO.
    pub fn lose(self: &Rc<Object>, range: &Range<u64>) {
        self.discard_clean(range);
        if self.drop_dirty(range) > 0
            && let Some(file) = self.file.upgrade()
        {
            file.failed(Status::EIO);
        }
        self.state.borrow_mut().attr = None;
        self.changed.notify_waiters();
    }

    /// Drops dirty data that nobody wants any more. Answers how much.
    pub fn drop_dirty(self: &Rc<Object>, range: &Range<u64>) -> u64 {
        let mut state = self.state.borrow_mut();
        let dropped = state.dirty.remove(range.clone());
        if state.dirty.is_empty() {
            state.dirty_blocks.clear();
            self.ost.unreserve(std::mem::take(&mut state.reserved_bytes));
        }
        drop(state);
        writeback::made_clean(self, dropped);
        dropped
    }

    // ---- changes of space ----

    /// Truncates, punches, allocates, zeroes under a write lock that the caller uses. Dirty data that the change removes is
    /// dropped, other dirty data in its way is written before.
    pub async fn space(self: &Rc<Object>, mode: u16, offset: u64, length: u64, time: Time) -> Result<(), Status> {
        let kind = mode & !space_mode::KEEP_SIZE;
        let range = match kind {
            space_mode::TRUNCATE => offset..u64::MAX,
            _ => offset..offset.saturating_add(length),
        };
        match kind {
            space_mode::ALLOCATE => {}
            space_mode::TRUNCATE => {
                self.drop_dirty(&range);
                self.flush(range.clone()).await;
            }
            // Its end may be what makes the object as long as it is.
            _ => self.flush(range.clone()).await,
        }
        self.discard_clean(&range);
        let change = SpaceChange {
            mode,
            offset_bytes: offset,
            length_bytes: length,
            time,
            layout_generation: self.layout_generation(),
        };
        let outcome = self.ost.stub.space(self.fid, change).await;
        self.stability.changed();
        outcome?;
        let mut state = self.state.borrow_mut();
        if let Some(attr) = &mut state.attr {
            match kind {
                space_mode::TRUNCATE => attr.size = offset,
                space_mode::PUNCH => {}
                _ if mode & space_mode::KEEP_SIZE == 0 => attr.size = attr.size.max(range.end),
                _ => {}
            }
            if time >= attr.ctime {
                (attr.mtime, attr.ctime) = (time, time);
            }
            let empty = kind == space_mode::TRUNCATE && offset == 0;
            if empty {
                attr.allocated_bytes = 0;
            }
            state.blocks_unknown = !empty;
        }
        state.written_since = None;
        state.answers_stale = state.questions > 0;
        Ok(())
    }

    /// What has been dirty since `until` or longer, and everything sent before, is on stable media afterwards.
    pub async fn sync(self: &Rc<Object>, until: Duration) -> Result<(), Status> {
        let upto = self.stability.now();
        self.flush_until(0..u64::MAX, until).await;
        self.stability.ensure(upto, self.ost.stub.sync(self.fid)).await?;
        Ok(())
    }

    // ---- reading ----

    /// What a reader of a range, under a lock that it uses, finds here and has to ask for, in order. Waits for what is being
    /// read ahead.
    pub async fn parts(self: &Rc<Object>, range: Range<u64>) -> Vec<Part> {
        let mut parts = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let found = self.state.borrow_mut().find(&(at..range.end));
            match found {
                Here::Bytes(bytes, ahead) => {
                    at += bytes.len() as u64;
                    if ahead {
                        self.used_ahead(&(at - bytes.len() as u64..at));
                    }
                    parts.push(Part::Bytes(bytes));
                }
                Here::Pending => changed.await,
                Here::Nothing(end) => {
                    parts.push(Part::Ask(at..end));
                    at = end;
                }
            }
        }
        parts
    }

    /// Reads from the OST: fewer bytes where the object ends.
    pub async fn fetch(&self, range: &Range<u64>, lock_cookie: u64) -> Result<Bytes, Status> {
        let length = u32::try_from(range.end - range.start).map_err(|_| Status::EINVAL)?;
        Ok(self.ost.stub.read(self.fid, range.start, length, lock_cookie).await?)
    }

    /// Announces a read ahead of a range; `None` when some of it is here, dirty or announced already.
    pub fn begin_read_ahead(&self, range: &Range<u64>) -> Option<u64> {
        let mut state = self.state.borrow_mut();
        if state.clean.touches(range) || state.touches(range) {
            return None;
        }
        let ticket = self.ticket();
        state.clean.reserve(range.clone(), ticket);
        Some(ticket)
    }

    /// The read ahead ended; no data: it failed.
    pub fn end_read_ahead(&self, start: u64, ticket: u64, data: Option<Bytes>) {
        let bytes = data.as_ref().map_or(0, |data| data.len() as u64);
        let kept = self.state.borrow_mut().clean.fill(start, ticket, data);
        if kept && let Some(client) = self.ost.client.upgrade() {
            add(&client.stats.read_ahead_bytes, bytes);
            client.ahead_bytes.set(client.ahead_bytes.get() + bytes);
        }
        self.changed.notify_waiters();
    }

    /// Forgets what was read ahead in a range.
    pub fn discard_clean(&self, range: &Range<u64>) {
        let freed = self.state.borrow_mut().clean.discard(range);
        self.freed_ahead(freed);
        self.changed.notify_waiters();
    }

    /// Bytes read ahead and not used yet.
    pub fn ahead_bytes(&self) -> u64 {
        self.state.borrow().clean.bytes()
    }

    fn used_ahead(&self, range: &Range<u64>) {
        let freed = self.state.borrow_mut().clean.consumed(range.end);
        self.freed_ahead(freed);
        if let Some(client) = self.ost.client.upgrade() {
            add(&client.stats.read_ahead_hits_bytes, range.end - range.start);
        }
    }

    fn freed_ahead(&self, freed: u64) {
        if let Some(client) = self.ost.client.upgrade() {
            client.ahead_bytes.set(client.ahead_bytes.get().saturating_sub(freed));
        }
    }

    /// A write of all of a dirty range makes the dirty data needless, unless it is cut by the range.
    async fn drop_or_flush(self: &Rc<Object>, range: &Range<u64>) {
        if self.state.borrow().touches(range) {
            self.flush(range.clone()).await;
        }
    }

    fn layout_generation(&self) -> u16 {
        self.file.upgrade().map_or(0, |file| file.layout.generation as u16)
    }

    fn ticket(&self) -> u64 {
        self.tickets.set(self.tickets.get() + 1);
        self.tickets.get()
    }
}

/// What is at one place.
enum Here {
    /// Bytes; whether they were read ahead.
    Bytes(Bytes, bool),
    Pending,
    /// Nothing, up to here.
    Nothing(u64),
}

impl State {
    fn touches(&self, range: &Range<u64>) -> bool {
        self.dirty.touches(range) || self.sending_ranges.touches(range)
    }

    fn touches_until(&self, range: &Range<u64>, until: Duration) -> bool {
        let travels = |batch: &Batch| {
            batch.segments.iter().any(|(offset, segment)| {
                let end = offset + segment.data.len() as u64;
                segment.since <= until && *offset < range.end && range.start < end
            })
        };
        self.dirty.touches_until(range, until) || self.sending.iter().any(travels)
    }

    /// Dirty data first, then what travels, then what was read ahead.
    fn find(&mut self, range: &Range<u64>) -> Here {
        let mut end = range.end;
        if let Some((offset, bytes)) = self.dirty.read(range).into_iter().next() {
            if offset == range.start {
                return Here::Bytes(bytes, false);
            }
            end = offset;
        }
        for (offset, segment) in self.sending.iter().flat_map(|batch| &batch.segments) {
            let segment_end = offset + segment.data.len() as u64;
            if *offset <= range.start && range.start < segment_end {
                let from = (range.start - offset) as usize;
                let to = (segment_end.min(end) - offset) as usize;
                return Here::Bytes(segment.data.slice(from..to), false);
            }
            if *offset > range.start {
                end = end.min(*offset);
            }
        }
        match self.clean.find(&(range.start..end)) {
            Found::Bytes(bytes) => Here::Bytes(bytes, true),
            Found::Pending => Here::Pending,
            Found::Nothing(clean_end) => Here::Nothing(end.min(clean_end)),
        }
    }

    /// Our write of a range is at the OST.
    fn written(&mut self, range: &Range<u64>, time: Time) {
        let (end, newest) = self.written_since.unwrap_or((0, time));
        self.written_since = Some((end.max(range.end), newest.max(time)));
        let Some(attr) = &mut self.attr else { return };
        if range.start >= attr.size.next_multiple_of(BLOCK_BYTES) {
            // Fresh space beyond all there was: known without asking.
            let touched = blocks(range.clone());
            attr.allocated_bytes += touched.end - touched.start;
        } else {
            let fresh = range.end.next_multiple_of(BLOCK_BYTES).saturating_sub(attr.size.next_multiple_of(BLOCK_BYTES));
            let appends = range.start >= attr.size;
            attr.allocated_bytes += fresh;
            self.blocks_unknown |= !appends;
        }
        attr.size = attr.size.max(range.end);
        if time >= attr.ctime {
            (attr.mtime, attr.ctime) = (time, time);
        }
    }

    fn add_unwritten(&self, attr: &mut Attr) {
        let old_end = attr.size;
        let mut fresh = RangeSet::default();
        let mut add = |offset: u64, length: u64, time: Option<Time>| {
            let end = offset + length;
            attr.size = attr.size.max(end);
            let unallocated = blocks(offset.max(old_end.next_multiple_of(BLOCK_BYTES)).min(end)..end);
            fresh.insert(unallocated);
            if let Some(time) = time
                && time >= attr.ctime
            {
                (attr.mtime, attr.ctime) = (time, time);
            }
        };
        for (offset, segment) in self.sending.iter().flat_map(|batch| &batch.segments) {
            add(*offset, segment.data.len() as u64, Some(segment.time));
        }
        for (offset, length, time) in self.dirty.times() {
            add(offset, length, Some(time));
        }
        attr.allocated_bytes += fresh.bytes();
    }

    /// The dirty data of these blocks has been taken; answers the space that was reserved for what is not dirty any more.
    fn forget_dirty_blocks(&mut self, taken: &RangeSet) -> u64 {
        if self.dirty.is_empty() {
            self.dirty_blocks.clear();
            return std::mem::take(&mut self.reserved_bytes);
        }
        let mut freed = 0;
        for range in taken.iter() {
            // A block that other dirty bytes share stays reserved.
            let mut from = range.start;
            let mut to = range.end;
            if self.dirty.touches(&(from..from + BLOCK_BYTES)) {
                from += BLOCK_BYTES;
            }
            if from < to && self.dirty.touches(&(to - BLOCK_BYTES..to)) {
                to -= BLOCK_BYTES;
            }
            if from < to {
                self.dirty_blocks.remove(from..to);
                freed += to - from;
            }
        }
        let freed = freed.min(self.reserved_bytes);
        self.reserved_bytes -= freed;
        freed
    }
}

/// How often a glimpse is repeated whose answer was worth nothing when it came.
const GLIMPSE_RETRIES: usize = 4;
