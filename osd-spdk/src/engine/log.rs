//! The running log: group commit, and how safe each transaction is.
//!
//! ```text
//! append ──► visible ──► written ──────────► stable ─────────────► proven
//!            (memory)    (frame handed        (flush completed)     (a frame that says "stable up to here" is itself stable)
//!                         to the device)
//! ```
//!
//! One frame is under way at a time; records that arrive meanwhile go into the next one, so waits share frames, and waits for
//! `Stable` share flushes. A frame carries the stable transaction known when it was made: replay trusts everything up to
//! there and checks the data of later records, because an unflushed device writes in any order. What is not proven may
//! therefore still be checked, and its blocks must stay as they are.
//!
//! After a failed write or flush the log takes nothing more.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use nacre_reactor::Bytes;
use tokio::sync::Notify;

use super::error;
use crate::bdev::BdevRef;
use crate::format::log::{Cursor, FRAME_BYTES_MAX, HEADER_BYTES, Item, RecordWriter, seal};
use crate::format::run::Extent;
use crate::format::superblock::BLOCK_BYTES;
use crate::store::{Durability, StoreError, StoreErrorKind, Transno};

pub(crate) struct Log {
    bdev: BdevRef,
    ring: Extent,
    /// Whether a completed write can be lost.
    volatile: bool,
    state: RefCell<State>,
    writer: Notify,
    flusher: Notify,
    ticker: Notify,
    /// Told whenever something became safer, room came back, or the log failed.
    progress: Notify,
    /// Told when the log fills up.
    pub wants_checkpoint: Notify,
}

struct State {
    /// Records of the next frame, behind room for its header.
    pending: Vec<u8>,
    cursor: Cursor,
    /// Where replay would start.
    tail_position: u64,
    last: Transno,
    written: Transno,
    stable: Transno,
    proven: Transno,
    /// What the newest frame made, and the newest frame written, say is stable.
    mark_made: Transno,
    mark_written: Transno,
    written_wanted: Transno,
    stable_wanted: Transno,
    proof_wanted: Transno,
    unflushed_data_bytes: u64,
    failed: Option<String>,
    stopped: bool,
}

impl Log {
    pub fn new(bdev: BdevRef, ring: Extent, cursor: Cursor, last: Transno) -> Rc<Log> {
        let volatile = bdev.info().volatile_cache;
        Rc::new(Log {
            bdev,
            ring,
            volatile,
            state: RefCell::new(State {
                pending: vec![0; HEADER_BYTES],
                cursor,
                tail_position: cursor.position,
                last,
                written: last,
                stable: last,
                proven: last,
                mark_made: last,
                mark_written: last,
                written_wanted: 0,
                stable_wanted: 0,
                proof_wanted: 0,
                unflushed_data_bytes: 0,
                failed: None,
                stopped: false,
            }),
            writer: Notify::new(),
            flusher: Notify::new(),
            ticker: Notify::new(),
            progress: Notify::new(),
            wants_checkpoint: Notify::new(),
        })
    }

    /// Whether data in records needs a checksum: only a device that may lose completed writes can tear them from their record.
    pub fn checks_data(&self) -> bool {
        self.volatile
    }

    /// Adds a record; its transaction is visible from now on.
    pub fn append<'a>(&self, objects: i32, items: impl Iterator<Item = Item<'a>>) -> Transno {
        let state = &mut *self.state.borrow_mut();
        state.last += 1;
        let mut record = RecordWriter::new(&mut state.pending, state.last, objects);
        items.for_each(|item| record.push(item));
        record.finish();
        self.ticker.notify_one();
        if state.pending.len() > FRAME_BYTES_EAGER {
            state.written_wanted = state.last;
            self.writer.notify_one();
        }
        state.last
    }

    /// Counts data written outside of the log; much of it brings a flush on, which bounds what replay has to check.
    pub fn note_data(&self, bytes: u64) {
        let state = &mut *self.state.borrow_mut();
        state.unflushed_data_bytes += bytes;
        if self.volatile && state.unflushed_data_bytes > UNFLUSHED_DATA_BYTES_MAX {
            state.written_wanted = state.last;
            state.stable_wanted = state.last;
            self.writer.notify_one();
            self.flusher.notify_one();
        }
    }

    pub fn last(&self) -> Transno {
        self.state.borrow().last
    }

    pub fn stable(&self) -> Transno {
        self.state.borrow().stable
    }

    pub fn proven(&self) -> Transno {
        self.state.borrow().proven
    }

    /// Longest record, bytes.
    pub fn record_bytes_max(&self) -> usize {
        (self.ring.length / 4).min(FRAME_BYTES_MAX / 2) as usize
    }

    /// Why nothing more is taken, if so.
    pub fn check(&self, op: &'static str) -> Result<(), StoreError> {
        match &self.state.borrow().failed {
            None => Ok(()),
            Some(why) => Err(error(StoreErrorKind::ReadOnly, op, None, why)),
        }
    }

    /// Takes nothing more.
    pub fn fail(&self, why: String) {
        let mut state = self.state.borrow_mut();
        if state.failed.is_none() {
            state.failed = Some(why);
        }
        drop(state);
        self.progress.notify_waiters();
        self.writer.notify_one();
    }

    /// Lets writer and flusher end when what they are doing is done.
    pub fn stop(&self) {
        self.state.borrow_mut().stopped = true;
        self.writer.notify_one();
        self.flusher.notify_one();
    }

    fn is_stopped(&self) -> bool {
        self.state.borrow().stopped
    }

    /// Waits until something changed. Made before a condition is looked at, it misses nothing.
    pub fn changed(&self) -> impl Future<Output = ()> + '_ {
        self.progress.notified()
    }

    pub fn tell_change(&self) {
        self.progress.notify_waiters();
    }

    /// Whether records should wait for a checkpoint before they are added.
    pub fn is_full(&self) -> bool {
        let state = self.state.borrow();
        let used = state.cursor.position - state.tail_position;
        let full = used + state.pending.len() as u64 > self.ring.length * 5 / 8
            || state.pending.len() as u64 > self.ring.length / 8;
        drop(state);
        if full {
            self.wants_checkpoint.notify_one();
            self.want(self.last(), None);
        }
        full
    }

    /// Whether a checkpoint is due.
    pub fn is_half_full(&self) -> bool {
        let state = self.state.borrow();
        state.cursor.position - state.tail_position + state.pending.len() as u64 > self.ring.length / 2
    }

    fn want_proof(&self, transno: Transno) {
        let mut state = self.state.borrow_mut();
        state.proof_wanted = state.proof_wanted.max(transno);
    }

    /// Whether the next frame has room for a record of so many bytes. One that is alone in its frame has.
    pub fn has_room(&self, bytes: usize) -> bool {
        let state = self.state.borrow();
        let frame = (state.pending.len() + bytes) as u64;
        let room = state.pending.len() == HEADER_BYTES || frame <= (self.ring.length * 3 / 8).min(FRAME_BYTES_MAX);
        drop(state);
        if !room {
            self.want(self.last(), None);
        }
        room
    }

    fn want(&self, transno: Transno, durability: Option<Durability>) {
        let mut state = self.state.borrow_mut();
        state.written_wanted = state.written_wanted.max(transno);
        if durability == Some(Durability::Stable) {
            state.stable_wanted = state.stable_wanted.max(transno);
        }
        drop(state);
        self.writer.notify_one();
        self.flusher.notify_one();
    }

    /// Waits until a transaction is as safe as asked.
    pub async fn wait(&self, transno: Transno, durability: Durability) -> Result<(), StoreError> {
        loop {
            let changed = self.progress.notified();
            {
                let state = self.state.borrow();
                if transno > state.last {
                    return Err(error(StoreErrorKind::Invalid, "wait", None, "there is no such transaction yet"));
                }
                let reached = if durability == Durability::Stable { state.stable } else { state.written };
                if reached >= transno {
                    return Ok(());
                }
            }
            self.check("wait")?;
            self.want(transno, Some(durability));
            changed.await;
        }
    }

    /// Waits until everything up to now is proven, so that given space can be used again.
    pub async fn prove(&self) -> Result<(), StoreError> {
        let transno = self.last();
        loop {
            let changed = self.progress.notified();
            if self.proven() >= transno {
                return Ok(());
            }
            self.check("prove")?;
            self.want_proof(transno);
            self.want(transno, Some(Durability::Stable));
            changed.await;
        }
    }

    /// A checkpoint may begin: transactions up to the first number are in it, replay starts at the cursor.
    pub fn mark(&self) -> (Transno, Cursor) {
        let state = self.state.borrow();
        (state.last, state.cursor)
    }

    /// The checkpoint of that mark is stable.
    pub fn checkpointed(&self, transno: Transno, cursor: &Cursor) {
        let mut state = self.state.borrow_mut();
        state.tail_position = cursor.position;
        state.written = state.written.max(transno);
        state.stable = state.stable.max(transno);
        state.proven = state.proven.max(transno);
        drop(state);
        self.writer.notify_one();
        self.progress.notify_waiters();
    }

    /// Writes frames. Runs for as long as the store is open.
    pub async fn run_writer(self: Rc<Log>) {
        while !self.is_stopped() {
            let Some((position, frame, last, mark)) = self.make_frame() else {
                self.writer.notified().await;
                continue;
            };
            let offset = self.ring.offset + position % self.ring.length;
            if let Err(error) = self.bdev.write(offset, vec![Bytes::from(frame)]).await {
                tracing::error!(%error, "the log cannot be written");
                self.fail(format!(
                    "the log could not be written ({error}); the store takes no changes until it is restarted"
                ));
                return;
            }
            {
                let mut state = self.state.borrow_mut();
                state.written = state.written.max(last);
                state.mark_written = mark;
                if !self.volatile {
                    state.stable = state.written;
                    state.proven = state.written;
                }
            }
            self.progress.notify_waiters();
            self.flusher.notify_one();
        }
    }

    /// The next frame, if somebody waits for it and there is room: position, bytes, last transaction, its stable mark.
    fn make_frame(&self) -> Option<(u64, Vec<u8>, Transno, Transno)> {
        let state = &mut *self.state.borrow_mut();
        let proof = state.proof_wanted > state.mark_made && state.stable > state.mark_made;
        // What a checkpoint made safe may not be wanted any more, but must not fill memory either.
        let records = state.pending.len() > FRAME_BYTES_EAGER
            || state.pending.len() > HEADER_BYTES && state.written_wanted > state.written;
        if state.failed.is_some() || !(proof || records) {
            return None;
        }
        let bytes = (state.pending.len() as u64).next_multiple_of(BLOCK_BYTES);
        let position = state.cursor.place(bytes, self.ring.length);
        if position + bytes - state.tail_position > self.ring.length {
            self.wants_checkpoint.notify_one();
            return None;
        }
        let mut frame = std::mem::replace(&mut state.pending, vec![0; HEADER_BYTES]);
        state.mark_made = state.stable;
        seal(&mut frame, &mut state.cursor, position, state.stable);
        if state.cursor.position - state.tail_position > self.ring.length / 2 {
            self.wants_checkpoint.notify_one();
        }
        Some((position, frame, state.last, state.mark_made))
    }

    /// Flushes when somebody waits for it. Runs for as long as the store is open.
    pub async fn run_flusher(self: Rc<Log>) {
        while !self.is_stopped() {
            let due = {
                let state = &mut *self.state.borrow_mut();
                let stable = state.stable_wanted > state.stable && state.written > state.stable;
                let proof = state.proof_wanted > state.proven && state.mark_written > state.proven;
                (stable || proof).then(|| {
                    state.unflushed_data_bytes = 0;
                    (state.written, state.mark_written)
                })
            };
            let Some((written, mark)) = due else {
                self.flusher.notified().await;
                continue;
            };
            if let Err(error) = self.bdev.flush().await {
                tracing::error!(%error, "the device cannot be flushed");
                self.fail(format!(
                    "the device could not be flushed ({error}); the store takes no changes until it is restarted"
                ));
                return;
            }
            {
                let mut state = self.state.borrow_mut();
                state.stable = state.stable.max(written);
                state.proven = state.proven.max(mark);
            }
            self.writer.notify_one();
            self.progress.notify_waiters();
        }
    }

    /// Brings everything to rest: what nobody waits for is written, flushed and proven a little later. Sleeps when there is nothing.
    pub async fn run_ticker(self: Rc<Log>) {
        loop {
            let rest = {
                let state = self.state.borrow();
                state.failed.is_some() || state.proven >= state.last
            };
            if rest {
                self.ticker.notified().await;
            }
            tokio::time::sleep(TICK).await;
            let last = self.last();
            let stable = self.stable();
            self.want_proof(stable);
            self.want(last, Some(Durability::Stable));
        }
    }
}

/// A frame of this size is written without being asked for.
const FRAME_BYTES_EAGER: usize = 256 << 10;
/// Replay has to check at most about twice this much data.
const UNFLUSHED_DATA_BYTES_MAX: u64 = 256 << 20;
/// What nobody waits for is safe after about three of these.
const TICK: Duration = Duration::from_secs(1);
