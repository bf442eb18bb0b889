//! Crash enumeration: after every prefix of what was issued to the device, with unflushed writes lost, reordered or torn
//! at 512 B, the store opens and holds what the model holds after some transaction between the last one that was
//! acknowledged as stable and the last one submitted; after a kill, after at least the last one acknowledged as written.
//!
//! The device is nearly full from the start, so that freed space is used again at once. Bytes that are overwritten in
//! place are not part of a transaction; a test of their own checks that every sector is an old or a new one.

mod support;

use std::collections::BTreeMap;
use std::rc::Rc;

use nacre_osd::bdev::BdevRef;
use nacre_osd::bdev::recording::{Fate, Recorder};
use nacre_osd::engine::{Options, Osd};
use nacre_osd::model::ModelStore;
use nacre_osd::store::{Durability, Op, Store, Transaction, Transno};
use nacre_wire::{Attr, Fid};
use support::{Random, SHAPE, Shape, assert_same, format, open, picture, run, transaction};

/// What was known at a moment of the recording.
#[derive(Clone, Copy)]
struct Promise {
    moment: usize,
    stable: Transno,
    written: Transno,
    last: Transno,
}

/// A workload that was recorded.
struct Recording {
    device: Rc<Recorder>,
    first: usize,
    promises: Vec<Promise>,
    /// By transaction.
    pictures: BTreeMap<Transno, Vec<String>>,
    /// 512-byte sectors of written blocks, by transaction.
    sectors: BTreeMap<Transno, Sectors>,
    model: ModelStore,
}

/// Sector of an object → its contents.
type Sectors = BTreeMap<(Fid, u64), Vec<u8>>;

const FILLER: Fid = Fid::new(1, 1);

/// A store of 48 MiB with little room.
async fn nearly_full(seed: u64) -> (Rc<Recorder>, ModelStore) {
    let device = Rc::new(Recorder::new("crash", 48 << 20, seed).slow(3));
    let bdev: BdevRef = device.clone();
    format(&bdev).await;
    let osd = open(&bdev).await;
    let model = ModelStore::crashable();
    let range = 0..osd.space().free_bytes - (3 << 20);
    let fill = Op::Allocate { fid: FILLER, range, keep_size: true };
    let fill = Transaction { ops: vec![Op::Create { fid: FILLER, attr: Attr::default() }, fill] };
    osd.submit(fill.clone()).await.unwrap();
    model.submit(fill).await.unwrap();
    osd.close().await.unwrap();
    (device, model)
}

/// Runs random transactions on a device that holds what the model holds.
async fn record(device: Rc<Recorder>, model: ModelStore, seed: u64, steps: u64, in_place: bool) -> Recording {
    let first = device.moment();
    let bdev: BdevRef = device.clone();
    let osd = open(&bdev).await;
    assert_eq!(osd.last_transno(), model.last_transno());
    let start = model.last_transno();
    let mut random = Random(seed);
    let shape = Shape { objects: 4, size_max: 50_000, ..SHAPE };
    let mut pictures = BTreeMap::from([(start, picture(&model).await)]);
    let mut sectors = BTreeMap::new();
    let mut promises = Vec::new();
    for _ in 0..steps {
        let mut transaction = transaction(&mut random, shape);
        if !in_place {
            transaction = without_overwrites(transaction, &model).await;
        }
        if model.submit(transaction.clone()).await.is_ok() {
            // The model has no other opinion on space.
            let transno = osd.submit(transaction).await.unwrap();
            pictures.insert(transno, picture(&model).await);
            if in_place {
                sectors.insert(transno, contents(&model).await);
            }
        }
        let mut written = 0;
        match random.below(12) {
            0 | 1 => osd.wait(osd.last_transno(), Durability::Stable).await.unwrap(),
            2..=4 => {
                written = osd.last_transno();
                osd.wait(written, Durability::Written).await.unwrap();
            }
            5 if random.one_in(2) => osd.checkpoint().await.unwrap(),
            _ => {}
        }
        let (stable, last) = (osd.last_committed(), osd.last_transno());
        promises.push(Promise { moment: device.moment(), stable, written: written.max(stable), last });
    }
    drop(osd);
    Recording { device, first, promises, pictures, sectors, model }
}

/// Drops writes to blocks that are written already.
async fn without_overwrites(mut transaction: Transaction, model: &ModelStore) -> Transaction {
    let mut keep = Vec::new();
    for op in transaction.ops.drain(..) {
        if let Op::Write { fid, offset, data } = &op
            && let Ok(extents) = model.extents(*fid, *offset..offset + data.len() as u64, usize::MAX).await
            && extents.iter().any(|extent| !extent.unwritten)
        {
            continue;
        }
        keep.push(op);
    }
    transaction.ops = keep;
    transaction
}

async fn contents(store: &dyn Store) -> Sectors {
    let mut out = BTreeMap::new();
    for fid in store.objects(None, usize::MAX).await.unwrap() {
        let size = store.attr(fid).await.unwrap().size;
        let data = store.read(fid, 0, size as usize).await.unwrap();
        for (i, sector) in data.chunks(512).enumerate() {
            out.insert((fid, i as u64), sector.to_vec());
        }
    }
    out
}

impl Recording {
    /// What had been promised at a moment, and the last transaction that may be seen.
    fn promised(&self, moment: usize) -> Promise {
        let start = *self.pictures.keys().next().unwrap();
        let mut known = Promise { moment, stable: start, written: start, last: start };
        for promise in &self.promises {
            known.last = known.last.max(promise.last);
            if promise.moment > moment {
                break;
            }
            known.stable = known.stable.max(promise.stable);
            known.written = known.written.max(promise.written);
        }
        known
    }

    async fn check(&self, every: usize) {
        let history = self.device.history();
        for moment in (self.first..=history.len()).step_by(every) {
            let known = self.promised(moment);
            for (fate, least) in [
                (Fate::Lost, known.stable),
                (Fate::Kept, known.written),
                (Fate::Killed(moment as u64), known.written),
                (Fate::Random(moment as u64 * 2), known.stable),
                (Fate::Random(moment as u64 * 2 + 1), known.stable),
            ] {
                let when = format!("moment {moment} of {} {fate:?}", history.len());
                let crashed: BdevRef = Rc::new(history.crash(moment, fate));
                let osd = match Osd::open(crashed.clone(), Options::default()).await {
                    Ok(osd) => osd,
                    Err(error) => panic!("{when}: {error}"),
                };
                let transno = osd.last_transno();
                assert!(transno >= least, "{when}: {transno} survived, {least} was promised");
                assert!(transno <= known.last, "{when}: {transno} was not yet submitted");
                self.compare(&osd, least, known.last, &when).await;
                // A recovery that is itself cut off must not have lost anything.
                if moment % 7 == 0 {
                    drop(osd);
                    let again = open(&crashed).await;
                    assert_eq!(again.last_transno(), transno, "{when}");
                    self.compare(&again, least, known.last, &when).await;
                }
            }
        }
    }

    async fn compare(&self, osd: &Osd, least: Transno, last: Transno, when: &str) {
        let found = picture(osd).await;
        let expected = &self.pictures[&osd.last_transno()];
        if self.sectors.is_empty() {
            return assert_same(&found, expected, when);
        }
        let structure = |lines: &[String]| -> Vec<String> {
            lines.iter().filter(|line| !line.contains(" block ")).cloned().collect()
        };
        assert_same(&structure(&found), &structure(expected), when);
        for (at, found) in contents(osd).await {
            // Anything that the sector held since the last promise; what is cut off reads zeros.
            let mut seen = (self.sectors.range(..=least).next_back().into_iter())
                .chain(self.sectors.range(least + 1..=last.max(least + 1)))
                .filter_map(|(_, sectors)| sectors.get(&at));
            let zeros = found.iter().all(|byte| *byte == 0);
            let fits = |old: &Vec<u8>| old.iter().zip(&found).all(|(old, found)| old == found || *found == 0);
            assert!(zeros || seen.any(fits), "{when}: {at:?} holds what it never held");
        }
    }
}

async fn enumerate(seed: u64, steps: u64, every: usize, in_place: bool) {
    println!("seed {seed}");
    let (device, model) = nearly_full(seed).await;
    record(device, model, seed, steps, in_place).await.check(every).await;
}

#[test]
fn every_moment_of_short_histories() {
    for seed in 0..10 {
        run(enumerate(seed, 40, 1, false));
    }
}

#[test]
fn some_moments_of_long_histories() {
    for seed in 50..53 {
        run(enumerate(seed, 300, 37, false));
    }
}

#[test]
fn sectors_overwritten_in_place_are_old_or_new() {
    for seed in 100..106 {
        run(enumerate(seed, 60, 3, true));
    }
}

/// Crash, go on, crash again: what one recovery leaves must not mislead the next.
#[test]
fn crashes_in_a_row() {
    for seed in 200..206u64 {
        run(async {
            println!("seed {seed}");
            let mut random = Random(seed);
            let (mut device, mut model) = nearly_full(seed).await;
            for generation in 0..6 {
                let recording = record(device, model, random.next(), 30, false).await;
                let history = recording.device.history();
                let moment = recording.first + random.below((history.len() - recording.first) as u64 + 1) as usize;
                let known = recording.promised(moment);
                let fates = [Fate::Lost, Fate::Kept, Fate::Killed(random.next()), Fate::Random(random.next())];
                let fate = fates[random.below(4) as usize];
                let when = format!("generation {generation} moment {moment} {fate:?}");
                device = Rc::new(history.crash(moment, fate).slow(3));
                // Some recoveries are abandoned before anything is done.
                for _ in 0..random.below(3) {
                    drop(open(&(device.clone() as BdevRef)).await);
                }
                let osd = open(&(device.clone() as BdevRef)).await;
                let transno = osd.last_transno();
                assert!((known.stable..=known.last).contains(&transno), "{when}: {transno}");
                recording.compare(&osd, known.stable, known.last, &when).await;
                drop(osd);
                model = recording.model.crash_at(transno);
            }
        });
    }
}
