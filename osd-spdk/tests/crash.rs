//! Crash enumeration: after every prefix of what was issued to the device, with unflushed writes lost, reordered or torn
//! at 512 B, the store opens and holds what the model holds after some transaction between the last one that was
//! acknowledged as stable and the last one submitted; after a kill, after at least the last one acknowledged as written.

mod support;

use std::rc::Rc;

use nacre_osd::bdev::BdevRef;
use nacre_osd::bdev::recording::{Fate, Recorder};
use nacre_osd::engine::{Options, Osd};
use nacre_osd::model::ModelStore;
use nacre_osd::store::{Durability, Store, Transno};
use support::{Random, SHAPE, Shape, assert_same, format, open, picture, run, transaction};

/// What was known at a moment of the recording.
#[derive(Clone, Copy)]
struct Promise {
    moment: usize,
    stable: Transno,
    written: Transno,
}

async fn enumerate(seed: u64, steps: u64, every: usize, device_bytes: u64) {
    let device = Rc::new(Recorder::new("crash", device_bytes, seed).slow(3));
    let bdev: BdevRef = device.clone();
    format(&bdev).await;
    let first = device.moment();
    let osd = open(&bdev).await;
    let model = ModelStore::new();
    let mut random = Random(seed);
    // Overwriting in place is not atomic; here everything that is seen must be exact, so written blocks are only
    // overwritten while the engine moves them (unproven), or not at all.
    let shape = Shape { overwrites: false, size_max: 60_000, ..SHAPE };
    let mut pictures = vec![picture(&model).await];
    let mut promises = vec![Promise { moment: 0, stable: 0, written: 0 }];
    for _ in 0..steps {
        let transaction = exact(transaction(&mut random, shape), &model).await;
        if model.submit(transaction.clone()).await.is_ok() {
            osd.submit(transaction).await.unwrap();
            pictures.push(picture(&model).await);
        }
        let (mut stable, mut written) = (osd.last_committed(), 0);
        match random.below(12) {
            0 | 1 => {
                osd.wait(osd.last_transno(), Durability::Stable).await.unwrap();
                stable = osd.last_committed();
            }
            2..=4 => {
                written = osd.last_transno();
                osd.wait(written, Durability::Written).await.unwrap();
            }
            5 if random.one_in(2) => osd.checkpoint().await.unwrap(),
            _ => {}
        }
        promises.push(Promise { moment: device.moment(), stable, written });
    }
    drop(osd);
    let history = device.history();
    let (mut at, mut stable, mut written) = (0, 0, 0);
    for moment in (first..=history.len()).step_by(every) {
        while at < promises.len() && promises[at].moment <= moment {
            stable = stable.max(promises[at].stable);
            written = written.max(promises[at].written).max(stable);
            at += 1;
        }
        for (fate, least) in [
            (Fate::Lost, stable),
            (Fate::Kept, written),
            (Fate::Killed(moment as u64), written),
            (Fate::Random(moment as u64 * 2), stable),
            (Fate::Random(moment as u64 * 2 + 1), stable),
        ] {
            let when = format!("seed {seed} moment {moment} of {} {fate:?}", history.len());
            let crashed: BdevRef = Rc::new(history.crash(moment, fate));
            let osd = match Osd::open(crashed.clone(), Options::default()).await {
                Ok(osd) => osd,
                Err(error) => panic!("{when}: {error}"),
            };
            let transno = osd.last_transno();
            assert!(transno >= least, "{when}: {transno} survived, {least} was promised");
            assert_same(&picture(&*osd).await, &pictures[transno as usize], &when);
            // And once more: a recovery that is itself cut off must not have lost anything.
            if moment % 7 == 0 {
                drop(osd);
                let again = open(&crashed).await;
                assert_eq!(again.last_transno(), transno, "{when}");
                assert_same(&picture(&*again).await, &pictures[transno as usize], &when);
            }
        }
    }
}

/// Drops writes to blocks that are written already.
async fn exact(mut transaction: nacre_osd::Transaction, model: &ModelStore) -> nacre_osd::Transaction {
    use nacre_osd::Op;
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

#[test]
fn every_moment_of_short_histories() {
    for seed in 0..12 {
        run(enumerate(seed, 40, 1, 48 << 20));
    }
}

#[test]
fn some_moments_of_long_histories() {
    for seed in 50..54 {
        run(enumerate(seed, 400, 37, 64 << 20));
    }
}
