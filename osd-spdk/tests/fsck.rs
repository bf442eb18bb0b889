//! Whatever happened to a store, a kill or a power loss at any moment, `fsck` finds nothing wrong with it, before it is opened
//! again and after; and it finds what random damage does to it, or the store reads as if nothing had happened.

mod support;

use std::rc::Rc;

use nacre_osd::bdev::BdevRef;
use nacre_osd::bdev::malloc::Malloc;
use nacre_osd::bdev::recording::{Fate, Recorder};
use nacre_osd::check::{Fsck, ProblemKind, Verdict, fsck};
use nacre_osd::engine::{Options, Osd};
use nacre_osd::store::{Durability, Store};
use nacre_reactor::Bytes;
use support::{Random, SHAPE, Shape, format, picture, run, transaction};

const DEVICE_BYTES: u64 = 48 << 20;

/// Small memtables: many runs, and merges of them.
fn options() -> Options {
    Options { memtable_bytes_max: 8 << 10, ..Options::default() }
}

async fn work(osd: &Osd, random: &mut Random, steps: u64) {
    let shape = Shape { objects: 12, ..SHAPE };
    for _ in 0..steps {
        // Some fail, which is a case too.
        let _ = osd.submit(transaction(random, shape)).await;
        match random.below(12) {
            0 => osd.wait(osd.last_transno(), Durability::Stable).await.unwrap(),
            1..=3 => osd.wait(osd.last_transno(), Durability::Written).await.unwrap(),
            4 => osd.checkpoint().await.unwrap(),
            _ => {}
        }
    }
}

/// A superblock may be torn when power fails while it is written; there are others.
fn is_sound(report: &Fsck) -> bool {
    report.problems.iter().all(|problem| problem.kind == ProblemKind::Superblock)
}

async fn crashes(seed: u64) {
    let device = Rc::new(Recorder::new("crash", DEVICE_BYTES, seed).slow(3));
    let bdev: BdevRef = device.clone();
    format(&bdev).await;
    let first = device.moment();
    let osd = Osd::open(bdev.clone(), options()).await.unwrap();
    let mut random = Random(seed);
    work(&osd, &mut random, 250).await;
    drop(osd);
    let history = device.history();
    for _ in 0..40 {
        let moment = first + random.below((history.len() - first) as u64 + 1) as usize;
        for fate in [Fate::Lost, Fate::Kept, Fate::Killed(random.next()), Fate::Random(random.next())] {
            let when = format!("seed {seed} moment {moment} of {} {fate:?}", history.len());
            let crashed: BdevRef = Rc::new(history.crash(moment, fate));
            let report = fsck(&crashed, false).await.unwrap_or_else(|error| panic!("{when}: {error}"));
            assert!(is_sound(&report), "{when}:\n{report}");
            if !matches!(fate, Fate::Random(_)) {
                assert_eq!(report.verdict, Verdict::Clean, "{when}:\n{report}");
            }
            let osd = Osd::open(crashed.clone(), options()).await.unwrap();
            assert_eq!(osd.last_transno(), report.transno, "{when}");
            assert_eq!(osd.space().objects, report.objects, "{when}");
            osd.close().await.unwrap();
            let report = fsck(&crashed, false).await.unwrap();
            assert_eq!(report.verdict, Verdict::Clean, "{when}, opened and closed:\n{report}");
        }
    }
}

#[test]
fn every_crash_leaves_a_clean_store() {
    for seed in 0..6 {
        run(crashes(seed));
    }
}

/// Damage in space that holds data is not seen by a check of the structure; anything else is.
async fn damage(seed: u64) {
    let bdev: BdevRef = Rc::new(Malloc::with_bytes("Malloc0", DEVICE_BYTES).unwrap());
    format(&bdev).await;
    let osd = Osd::open(bdev.clone(), options()).await.unwrap();
    let mut random = Random(seed);
    work(&osd, &mut random, 300).await;
    osd.close().await.unwrap();
    let expected = picture(&*osd).await;
    drop(osd);
    assert_eq!(fsck(&bdev, false).await.unwrap().verdict, Verdict::Clean);
    let used = nacre_osd::check::inspect(&bdev, &Default::default()).await.unwrap();
    let runs = used.runs.iter().flat_map(|run| run.extents.clone());
    let index: Vec<(u64, u64)> = used.root.extents.iter().copied().chain(runs).collect();
    for _ in 0..30 {
        let (start, length) = index[random.below(index.len() as u64) as usize];
        let page = (start + random.below(length)) / 4096 * 4096;
        let good = bdev.read(page, 4096).await.unwrap();
        let mut bad = good.to_vec();
        match random.below(3) {
            0 => bad.fill(0),
            1 => bad[random.below(4096) as usize] ^= 1 << random.below(8),
            _ => bad = bdev.read(index[0].0, 4096).await.unwrap().to_vec(),
        }
        bdev.write(page, vec![Bytes::from(bad)]).await.unwrap();
        let report = fsck(&bdev, false).await.unwrap();
        if report.verdict == Verdict::Clean {
            // Padding behind the end of a run or of the checkpoint was hit.
            let osd = Osd::open(bdev.clone(), Options { read_only: true, ..options() }).await.unwrap();
            assert_eq!(picture(&*osd).await, expected, "seed {seed} page {page}");
        }
        bdev.write(page, vec![Bytes::copy_from_slice(&good)]).await.unwrap();
    }
    assert_eq!(fsck(&bdev, true).await.unwrap().verdict, Verdict::Clean);
}

#[test]
fn damage_is_found_or_harmless() {
    for seed in 100..106 {
        run(damage(seed));
    }
}
