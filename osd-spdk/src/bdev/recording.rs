//! `Recorder`: a device in memory that remembers what was issued, completed and flushed, and makes the device as a
//! crash at any moment may leave it.
//!
//! ```text
//!  issued ──► completed ──► flush issued ──► flush completed
//!  └─ may be lost, torn at 512 B, reordered ─┘ └─ is there ─┘
//! ```
//!
//! A change is durable when a flush that was issued after its completion has completed. Of all others each 512-byte
//! sector may or may not have reached the medium, in any order. Unmapped ranges read garbage, so that nobody relies on
//! zeros.
//!
//! ```
//! # use nacre_osd::bdev::{Bdev, recording::{Fate, Recorder}};
//! # use nacre_reactor::Bytes;
//! # futures_util::FutureExt::now_or_never(async {
//! let device = Recorder::new("crash", 16 << 20, 1);
//! device.write(0, vec![Bytes::from(vec![7; 4096])]).await.unwrap();
//! device.flush().await.unwrap();
//! let history = device.history();
//! for moment in 0..=history.len() {
//!     let after = history.crash(moment, Fate::Random(moment as u64));
//!     // Opens the store on `after` and compares.
//!     # drop(after);
//! }
//! # }).unwrap();
//! ```

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use futures_util::FutureExt;
use nacre_reactor::{Bytes, DmaBuf};
use nacre_wire::Uuid;

use super::image::Image;
use super::{Bdev, BdevFuture, BdevInfo, ready};

/// What a device tears a write into, bytes.
pub const SECTOR_BYTES: u64 = 512;

/// A recording device.
pub struct Recorder {
    info: BdevInfo,
    state: Rc<RefCell<State>>,
}

/// How many operations a device has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Reads issued.
    pub reads: u64,
    /// Writes issued, zeroes and unmaps included.
    pub writes: u64,
    /// Bytes of them.
    pub written_bytes: u64,
    /// Flushes issued.
    pub flushes: u64,
}

/// What becomes of the changes that are not durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// All are lost: the longest cache.
    Lost,
    /// All are there, those not completed too: no cache.
    Kept,
    /// kill −9: what was completed is there; of the rest each is there or not.
    Killed(u64),
    /// Power loss: each is lost, kept or torn, in any order. The seed decides.
    Random(u64),
}

impl Recorder {
    /// A device of so many bytes in 4 KiB blocks; it reads zeros. Operations complete at once.
    pub fn new(name: &str, bytes: u64, seed: u64) -> Recorder {
        let info = BdevInfo {
            name: name.to_owned(),
            product: "Recording disk",
            uuid: Uuid::NIL,
            block_bytes: 4096,
            blocks: bytes / 4096,
            atomic_bytes: SECTOR_BYTES as u32,
            volatile_cache: true,
            unmap: true,
        };
        let image = Image::zeroed(info.bytes());
        Recorder::with_image(info, image, 0, seed)
    }

    /// Operations complete after 0 to `turns` polls, so that they overtake each other. The seed decides.
    pub fn slow(self, turns: u64) -> Recorder {
        self.state.borrow_mut().turns_max = turns;
        self
    }

    /// What happened until now.
    pub fn history(&self) -> History {
        let state = self.state.borrow();
        let cursor = RefCell::new(Cursor::new(state.initial.clone()));
        History { info: self.info.clone(), initial: state.initial.clone(), events: state.events.clone(), cursor }
    }

    /// Number of events until now: [`History::crash`] at this moment is a crash now.
    pub fn moment(&self) -> usize {
        self.state.borrow().events.len()
    }

    /// Operations until now.
    pub fn counts(&self) -> Counts {
        self.state.borrow().counts
    }

    fn with_image(info: BdevInfo, image: Image, turns_max: u64, seed: u64) -> Recorder {
        let state = State {
            initial: image.clone(),
            current: image,
            events: Vec::new(),
            next_id: 0,
            turns_max,
            random: Random(seed),
            counts: Counts::default(),
        };
        Recorder { info, state: Rc::new(RefCell::new(state)) }
    }

    fn change(&self, offset: u64, length: u64, what: What) -> BdevFuture<()> {
        let mut state = self.state.borrow_mut();
        state.counts.writes += 1;
        state.counts.written_bytes += length;
        let id = state.next_id();
        let change = Rc::new(Change { offset, length, what });
        state.events.push(Event::Issued(id, change.clone()));
        self.operation(&mut state, move |state| {
            change.apply(&mut state.current);
            state.events.push(Event::Completed(id));
        })
    }

    fn operation<T: 'static>(
        &self,
        state: &mut State,
        finish: impl FnOnce(&mut State) -> T + 'static,
    ) -> BdevFuture<T> {
        let turns = match state.turns_max {
            0 => 0,
            max => state.random.next() % (max + 1),
        };
        Operation { state: self.state.clone(), turns, finish: Some(Box::new(finish)) }.map(Ok).boxed_local()
    }
}

impl Bdev for Recorder {
    fn info(&self) -> &BdevInfo {
        &self.info
    }

    fn read(&self, offset: u64, length: usize) -> BdevFuture<DmaBuf> {
        if let Err(error) = self.info.check("read", offset, length as u64) {
            return ready(Err(error));
        }
        let mut state = self.state.borrow_mut();
        state.counts.reads += 1;
        self.operation(&mut state, move |state| {
            let mut buf = DmaBuf::uncleared(length);
            state.current.read(offset, &mut buf);
            buf
        })
    }

    fn write(&self, offset: u64, data: Vec<Bytes>) -> BdevFuture<()> {
        match self.info.check_write(offset, &data) {
            Ok(length) => self.change(offset, length, What::Data(data)),
            Err(error) => ready(Err(error)),
        }
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> BdevFuture<()> {
        match self.info.check("write_zeroes", offset, length) {
            Ok(()) => self.change(offset, length, What::Fill(0)),
            Err(error) => ready(Err(error)),
        }
    }

    fn unmap(&self, offset: u64, length: u64) -> BdevFuture<()> {
        match self.info.check("unmap", offset, length) {
            Ok(()) => self.change(offset, length, What::Fill(GARBAGE)),
            Err(error) => ready(Err(error)),
        }
    }

    fn flush(&self) -> BdevFuture<()> {
        let mut state = self.state.borrow_mut();
        state.counts.flushes += 1;
        let id = state.next_id();
        state.events.push(Event::FlushIssued(id));
        self.operation(&mut state, move |state| state.events.push(Event::FlushCompleted(id)))
    }
}

/// What happened to a device.
pub struct History {
    info: BdevInfo,
    initial: Image,
    events: Vec<Event>,
    /// Moments are usually visited in order; the durable part is then carried along.
    cursor: RefCell<Cursor>,
}

impl History {
    /// Number of events; a crash may come after 0 to `len` of them.
    #[allow(clippy::len_without_is_empty, reason = "a number of moments, not a container")]
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// The device after a crash behind the first `moment` events, ready to be recorded again.
    ///
    /// # Panics
    /// When there are fewer events.
    pub fn crash(&self, moment: usize, fate: Fate) -> Recorder {
        assert!(moment <= self.events.len(), "{moment} of {} events", self.events.len());
        let mut cursor = self.cursor.borrow_mut();
        if cursor.at > moment {
            *cursor = Cursor::new(self.initial.clone());
        }
        for event in &self.events[cursor.at..moment] {
            cursor.step(event);
        }
        let mut image = cursor.image.clone();
        let seed = cursor.apply(&mut image, fate);
        Recorder::with_image(self.info.clone(), image, 0, seed)
    }
}

/// The durable part at a moment, and what is not durable yet.
struct Cursor {
    at: usize,
    image: Image,
    /// By the order of issue.
    unsure: BTreeMap<u64, Unsure>,
    completions: u64,
    /// What each flush under way will have made durable.
    flushes: BTreeMap<u64, Vec<u64>>,
}

struct Unsure {
    change: Rc<Change>,
    /// The how-manieth completion.
    completed: Option<u64>,
}

impl Cursor {
    fn new(image: Image) -> Cursor {
        Cursor { at: 0, image, unsure: BTreeMap::new(), completions: 0, flushes: BTreeMap::new() }
    }

    fn step(&mut self, event: &Event) {
        self.at += 1;
        match event {
            Event::Issued(id, change) => {
                self.unsure.insert(*id, Unsure { change: change.clone(), completed: None });
            }
            Event::Completed(id) => {
                self.completions += 1;
                self.unsure.get_mut(id).expect("issued before").completed = Some(self.completions);
            }
            Event::FlushIssued(id) => {
                let mut covered: Vec<_> =
                    self.unsure.iter().filter_map(|(id, unsure)| Some((unsure.completed?, *id))).collect();
                covered.sort_unstable();
                self.flushes.insert(*id, covered.into_iter().map(|(_, id)| id).collect());
            }
            Event::FlushCompleted(id) => {
                for id in self.flushes.remove(id).expect("issued before") {
                    // Another flush may have been there first.
                    if let Some(unsure) = self.unsure.remove(&id) {
                        unsure.change.apply(&mut self.image);
                    }
                }
            }
        }
    }

    /// Applies what is not durable to the durable image; answers with a seed for what follows.
    fn apply(&self, image: &mut Image, fate: Fate) -> u64 {
        // What is not completed comes last.
        let mut unsure: Vec<&Unsure> = self.unsure.values().collect();
        unsure.sort_by_key(|unsure| unsure.completed.unwrap_or(u64::MAX));
        match fate {
            Fate::Lost => 0,
            Fate::Kept => {
                unsure.iter().for_each(|unsure| unsure.change.apply(image));
                0
            }
            Fate::Killed(seed) => {
                let mut random = Random(seed);
                for unsure in unsure {
                    if unsure.completed.is_some() || random.next().is_multiple_of(2) {
                        unsure.change.apply(image);
                    }
                }
                random.next()
            }
            Fate::Random(seed) => {
                let mut random = Random(seed);
                for last in (1..unsure.len()).rev() {
                    unsure.swap(last, (random.next() % (last as u64 + 1)) as usize);
                }
                for unsure in unsure {
                    match random.next() % 3 {
                        0 => {}
                        1 => unsure.change.apply(image),
                        _ => unsure.change.apply_torn(image, || random.next().is_multiple_of(2)),
                    }
                }
                random.next()
            }
        }
    }
}

struct State {
    initial: Image,
    current: Image,
    events: Vec<Event>,
    next_id: u64,
    turns_max: u64,
    random: Random,
    counts: Counts,
}

impl State {
    fn next_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

#[derive(Clone)]
enum Event {
    Issued(u64, Rc<Change>),
    Completed(u64),
    FlushIssued(u64),
    FlushCompleted(u64),
}

struct Change {
    offset: u64,
    length: u64,
    what: What,
}

enum What {
    Data(Vec<Bytes>),
    Fill(u8),
}

impl Change {
    fn apply(&self, image: &mut Image) {
        self.pieces(CHUNK_BYTES, |at, piece| image.write(at, piece));
    }

    /// Applies the sectors that `keep` wants.
    fn apply_torn(&self, image: &mut Image, mut keep: impl FnMut() -> bool) {
        self.pieces(SECTOR_BYTES as usize, |at, sector| {
            if keep() {
                image.write(at, sector);
            }
        });
    }

    fn pieces(&self, piece_bytes: usize, mut write: impl FnMut(u64, &[u8])) {
        let mut at = self.offset;
        match &self.what {
            What::Data(data) => {
                for piece in data.iter().flat_map(|bytes| bytes.chunks(piece_bytes)) {
                    write(at, piece);
                    at += piece.len() as u64;
                }
            }
            What::Fill(byte) => {
                let fill = [*byte; CHUNK_BYTES];
                let end = self.offset + self.length;
                while at < end {
                    let piece = piece_bytes.min((end - at) as usize);
                    write(at, &fill[..piece]);
                    at += piece as u64;
                }
            }
        }
    }
}

/// Finishes after some polls, or when it is dropped: dropping abandons the answer, not the I/O.
struct Operation<T> {
    state: Rc<RefCell<State>>,
    turns: u64,
    finish: Option<Finish<T>>,
}

type Finish<T> = Box<dyn FnOnce(&mut State) -> T>;

impl<T> Unpin for Operation<T> {}

impl<T> Future for Operation<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        if self.turns > 0 {
            self.turns -= 1;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let finish = self.finish.take().expect("polled after it completed");
        Poll::Ready(finish(&mut self.state.borrow_mut()))
    }
}

impl<T> Drop for Operation<T> {
    fn drop(&mut self) {
        if let Some(finish) = self.finish.take() {
            finish(&mut self.state.borrow_mut());
        }
    }
}

/// SplitMix64: small, seeded, the same everywhere.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// What is applied at once when nothing is torn; a multiple of the sector.
const CHUNK_BYTES: usize = 4096;
/// What an unmapped range is filled with.
const GARBAGE: u8 = 0xdb;

#[cfg(test)]
mod tests {
    use super::*;

    fn now<T>(future: impl Future<Output = T>) -> T {
        future.now_or_never().expect("completes at once")
    }

    fn block(byte: u8) -> Vec<Bytes> {
        vec![Bytes::from(vec![byte; 4096])]
    }

    fn first(device: &Recorder, offset: u64) -> u8 {
        now(device.read(offset, 4096)).unwrap()[0]
    }

    #[test]
    fn durable_after_the_flush_only() {
        let device = Recorder::new("r", 1 << 20, 1);
        now(device.write(0, block(1))).unwrap();
        now(device.flush()).unwrap();
        now(device.write(0, block(2))).unwrap();
        let history = device.history();
        // issued, completed, flush issued, flush completed, issued, completed
        assert_eq!(history.len(), 6);
        let lost: Vec<u8> = (0..=6).map(|moment| first(&history.crash(moment, Fate::Lost), 0)).collect();
        assert_eq!(lost, [0, 0, 0, 0, 1, 1, 1]);
        let kept: Vec<u8> = (0..=6).map(|moment| first(&history.crash(moment, Fate::Kept), 0)).collect();
        assert_eq!(kept, [0, 1, 1, 1, 1, 2, 2]);
        assert_eq!(first(&history.crash(6, Fate::Killed(3)), 0), 2);
        assert_eq!(first(&history.crash(2, Fate::Killed(3)), 0), 1, "going back works");
        assert_eq!(device.counts(), Counts { reads: 0, writes: 2, written_bytes: 8192, flushes: 1 });
    }

    #[test]
    fn a_flush_covers_only_what_was_completed_when_it_was_issued() {
        let device = Recorder::new("r", 1 << 20, 1);
        // Never polled, finished by the drop: under way while the flush is issued.
        let write = device.write(0, block(1));
        let flush = device.flush();
        drop(write);
        drop(flush);
        let history = device.history();
        assert_eq!(first(&history.crash(history.len(), Fate::Lost), 0), 0);
    }

    #[test]
    fn random_fates_lose_keep_tear_and_reorder_and_a_seed_replays() {
        let device = Recorder::new("r", 1 << 20, 1);
        now(device.write(0, block(1))).unwrap();
        now(device.write(0, block(2))).unwrap();
        let history = device.history();
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..500 {
            let read = || now(history.crash(history.len(), Fate::Random(seed)).read(0, 4096)).unwrap();
            let bytes = read();
            assert_eq!(*bytes, *read());
            assert!(bytes.chunks(512).all(|sector| sector.iter().all(|byte| *byte == sector[0] && *byte <= 2)));
            let torn = bytes.iter().any(|byte| *byte != bytes[0]);
            seen.insert(if torn { 9 } else { bytes[0] });
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [0, 1, 2, 9]);
    }

    #[test]
    fn slow_operations_overtake_each_other() {
        let device = Recorder::new("r", 1 << 20, 5).slow(8);
        let writes: Vec<_> = (0..16).map(|i| device.write(i * 4096, block(i as u8 + 1))).collect();
        futures_util::future::join_all(writes).now_or_never();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let writes: Vec<_> = (0..16).map(|i| device.write(i * 4096, block(i as u8 + 1))).collect();
            futures_util::future::join_all(writes).await;
        });
        let completions: Vec<u64> = (device.state.borrow().events.iter())
            .filter_map(|event| if let Event::Completed(id) = event { Some(*id) } else { None })
            .collect();
        assert_eq!(completions.len(), 32);
        assert!(!completions.is_sorted());
    }
}
