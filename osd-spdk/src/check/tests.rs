use std::rc::Rc;

use nacre_reactor::Bytes;
use nacre_wire::attr::mode;
use nacre_wire::{Attr, Fid, Uuid};
use proptest::prelude::*;

use super::offline::Offline;
use super::repair::{Fix, repair_log};
use super::*;
use crate::bdev::BdevRef;
use crate::bdev::malloc::Malloc;
use crate::engine::index::Extent;
use crate::engine::{FormatOptions, Options, Osd};
use crate::format::object::{Kind, Mapping, encode_attr, encode_mapping, key};
use crate::store::{Durability, Op, Store, StoreErrorKind, Transaction};

fn run_local<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, future)
}

fn device() -> BdevRef {
    Rc::new(Malloc::with_bytes("Malloc0", DEVICE_BYTES).unwrap())
}

async fn format(bdev: &BdevRef) {
    let options = FormatOptions { uuid: Uuid::from_random(1, 2), label: b"nacre-OST0000".to_vec(), log_bytes: None };
    Osd::format(bdev, &options).await.unwrap();
}

async fn open(bdev: &BdevRef) -> Rc<Osd> {
    let options = Options { memtable_bytes_max: 64 << 10, ..Options::default() };
    Osd::open(bdev.clone(), options).await.unwrap()
}

fn fid(n: u32) -> Fid {
    Fid::ost_object(1, u64::from(n) + 1)
}

async fn submit(store: &Osd, ops: Vec<Op>) {
    store.submit(Transaction { ops }).await.unwrap();
}

/// Objects 0 to 29 with data, extended attributes and keys; some changed again, some gone.
async fn fill(store: &Osd, checkpoints: bool) {
    for n in 0..30 {
        let attr = Attr { mode: mode::FILE | 0o644, nlink: 1, ..Attr::default() };
        let pattern = vec![n as u8 + 1; 3 * 4096 + 100];
        submit(
            store,
            vec![
                Op::Create { fid: fid(n), attr },
                Op::Write { fid: fid(n), offset: u64::from(n % 3) * 5000, data: Bytes::from(pattern) },
                Op::SetXattr { fid: fid(n), name: b"trusted.link".to_vec(), value: vec![1; 40] },
                Op::Put { index: fid(n), key: vec![n as u8; 20], value: vec![2; 24] },
                Op::Put { index: Fid::local(9), key: vec![n as u8], value: vec![3; 8] },
            ],
        )
        .await;
        match n % 5 {
            1 => submit(store, vec![Op::Punch { fid: fid(n), range: 4096..8192 }]).await,
            2 => submit(store, vec![Op::Truncate { fid: fid(n), size: 5000 }]).await,
            3 => submit(store, vec![Op::Allocate { fid: fid(n), range: 0..1 << 20, keep_size: true }]).await,
            4 => submit(store, vec![Op::Destroy { fid: fid(n) }]).await,
            _ => {}
        }
        if checkpoints && n % 9 == 8 {
            store.checkpoint().await.unwrap();
        }
    }
    store.wait(store.last_transno(), Durability::Written).await.unwrap();
}

async fn image(bdev: &BdevRef) -> nacre_reactor::DmaBuf {
    bdev.read(0, DEVICE_BYTES as usize).await.unwrap()
}

async fn flip(bdev: &BdevRef, offset: u64, mask: u8) {
    let start = offset / 4096 * 4096;
    let mut block = bdev.read(start, 4096).await.unwrap().to_vec();
    block[(offset - start) as usize] ^= mask;
    bdev.write(start, vec![Bytes::from(block)]).await.unwrap();
}

fn kinds(report: &Fsck) -> Vec<ProblemKind> {
    let mut kinds: Vec<_> = report.problems.iter().map(|problem| problem.kind).collect();
    kinds.dedup();
    kinds
}

#[test]
fn a_good_store_is_clean_and_untouched() {
    run_local(async {
        for checkpoints in [false, true] {
            let bdev = device();
            format(&bdev).await;
            assert_eq!(fsck(&bdev, true).await.unwrap().verdict, Verdict::Clean);
            let store = open(&bdev).await;
            fill(&store, checkpoints).await;
            // The process ends here, without closing.
            drop(store);
            let before = image(&bdev).await;
            let report = fsck(&bdev, true).await.unwrap();
            assert_eq!(report.verdict, Verdict::Clean, "{report}");
            assert_eq!((report.objects, report.xattrs, report.keys), (24, 24, 24 + 30), "{report}");
            let inspection = inspect(&bdev, &Inspect { records_max: 1000, ..Inspect::default() }).await.unwrap();
            assert_eq!(inspection.damage, Vec::<String>::new());
            assert!(*image(&bdev).await == *before, "looking has changed the device");

            let store = open(&bdev).await;
            store.close().await.unwrap();
            let report = fsck(&bdev, false).await.unwrap();
            assert_eq!(report.verdict, Verdict::Clean, "{report}");
            assert_eq!((report.objects, report.log_records), (24, 0));
        }
    });
}

#[test]
fn inspect_shows_what_is_there() {
    run_local(async {
        let bdev = device();
        format(&bdev).await;
        let store = open(&bdev).await;
        fill(&store, true).await;
        drop(store);
        let what = Inspect { records_max: 10, objects_max: 3, object: Some(fid(0)), ..Inspect::default() };
        let inspection = inspect(&bdev, &what).await.unwrap();
        assert_eq!(inspection.objects.len(), 3);
        let object = inspection.object.as_ref().unwrap();
        assert_eq!(object.fid, fid(0).to_string());
        assert_eq!(object.attr.as_ref().unwrap().size, 3 * 4096 + 100);
        assert_eq!(object.extents.iter().map(|extent| extent.length).sum::<u64>(), 4 * 4096);
        let physical = object.extents[0].physical;
        assert_eq!(bdev.read(physical, 4096).await.unwrap()[0], 1);
        assert_eq!((object.xattrs[0].key.as_str(), object.keys.len()), ("trusted.link", 1));
        assert!(!inspection.runs.is_empty() && !inspection.log.records.is_empty());
        let text = inspection.to_string();
        for expected in ["label \"nacre-OST0000\"", "run ", "  extent 0+", "xattr trusted.link", "transaction "] {
            assert!(text.contains(expected), "no {expected:?} in\n{text}");
        }
    });
}

#[test]
fn what_holds_no_store_is_refused_in_words() {
    run_local(async {
        let bdev = device();
        let error = fsck(&bdev, true).await.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::NotAStore);
        assert!(error.to_string().contains("bdev \"Malloc0\" holds no store"), "{error}");
        format(&bdev).await;
        for place in [0, 4096, DEVICE_BYTES - 8192, DEVICE_BYTES - 4096] {
            flip(&bdev, place + 100, 1).await;
        }
        let error = inspect(&bdev, &Inspect::default()).await.err().unwrap();
        assert_eq!(error.kind, StoreErrorKind::Corrupt);
        assert!(error.to_string().contains("no superblock of the four is whole"), "{error}");
    });
}

#[test]
fn damaged_superblocks_are_written_again() {
    run_local(async {
        let bdev = device();
        format(&bdev).await;
        let store = open(&bdev).await;
        fill(&store, true).await;
        store.close().await.unwrap();
        for place in [4096, DEVICE_BYTES - 8192] {
            flip(&bdev, place + 200, 1).await;
        }
        let report = fsck(&bdev, false).await.unwrap();
        assert_eq!((report.verdict, kinds(&report)), (Verdict::Damaged, vec![ProblemKind::Superblock]));
        assert_eq!(report.problems[0].device_offset, Some(4096));
        let report = fsck(&bdev, true).await.unwrap();
        assert_eq!(report.verdict, Verdict::Repaired, "{report}");
        assert!(report.problems.iter().all(|problem| problem.repaired));
        assert_eq!(fsck(&bdev, false).await.unwrap().verdict, Verdict::Clean);
        open(&bdev).await.close().await.unwrap();
    });
}

/// A store with something planted in it by a transaction of its own.
async fn planted(fixes: &[Fix]) -> BdevRef {
    let bdev = device();
    format(&bdev).await;
    let store = open(&bdev).await;
    fill(&store, true).await;
    drop(store);
    let offline = Offline::open(bdev.clone()).await.unwrap();
    repair_log(&offline, fixes).await.unwrap();
    bdev
}

async fn first_extent(n: u32) -> Extent {
    let bdev = planted(&[]).await;
    let inspection = inspect(&bdev, &Inspect { object: Some(fid(n)), ..Inspect::default() }).await.unwrap();
    let extent = &inspection.object.unwrap().extents[0];
    Extent { offset: extent.physical, length: extent.length }
}

#[test]
fn planted_contradictions_are_found_and_mended() {
    run_local(async {
        let own = first_extent(0).await;
        let attr_key = |n| Vec::from(key(Kind::Attr, fid(n), &[]));
        let wrong_attr = Attr { mode: mode::FILE, size: 9, allocated_bytes: 77, ..Attr::default() };
        let last = DEVICE_BYTES - 64 * 4096;
        let free = Extent { offset: last, length: 8192 };
        let cases = [
            (vec![Fix::Give(own)], vec![ProblemKind::NotTaken], None),
            (vec![Fix::Take(free)], vec![ProblemKind::Leak], None),
            (vec![Fix::Objects(2)], vec![ProblemKind::Count], None),
            (vec![Fix::Put(attr_key(0), encode_attr(&wrong_attr).into())], vec![ProblemKind::Attribute], Some(fid(0))),
            (vec![Fix::Delete(attr_key(5)), Fix::Objects(-1)], vec![ProblemKind::Orphan], Some(fid(5))),
        ];
        for (fixes, expected, of) in cases {
            let bdev = planted(&fixes).await;
            let before = image(&bdev).await;
            let report = fsck(&bdev, false).await.unwrap();
            assert_eq!((report.verdict, kinds(&report)), (Verdict::Damaged, expected), "{report}");
            assert!(of.is_none() || report.problems[0].fid == of, "{report}");
            assert!(*image(&bdev).await == *before, "a check without repair has written");
            let report = fsck(&bdev, true).await.unwrap();
            assert_eq!(report.verdict, Verdict::Repaired, "{report}");
            let report = fsck(&bdev, false).await.unwrap();
            assert_eq!(report.verdict, Verdict::Clean, "{report}");
            // What was mended serves, and stays right.
            let store = open(&bdev).await;
            assert_eq!(store.read(fid(1), 9000, 1).await.unwrap()[0], 2);
            store.close().await.unwrap();
            let report = fsck(&bdev, false).await.unwrap();
            assert_eq!(report.verdict, Verdict::Clean, "{report}");
        }
    });
}

#[test]
fn what_cannot_be_mended_is_told_and_left_alone() {
    run_local(async {
        let own = first_extent(0).await;
        let extent_key = |n, block: u64| Vec::from(key(Kind::Extent, fid(n), &block.to_be_bytes()));
        let mapping = |offset: u64| {
            let mapping =
                Mapping { physical: offset / 4096, blocks: own.length / 4096, unwritten: false, shared: false };
            Vec::from(encode_mapping(&mapping))
        };
        let log_block = 8192;
        let cases = [
            (Fix::Put(extent_key(5, 1000), mapping(own.offset)), ProblemKind::Overlap, Some(fid(5))),
            (Fix::Put(extent_key(5, 1000), mapping(log_block)), ProblemKind::Extent, Some(fid(5))),
            (Fix::Put(extent_key(5, 1000), mapping(DEVICE_BYTES)), ProblemKind::Extent, Some(fid(5))),
            (Fix::Put(extent_key(0, 1), mapping(own.offset)), ProblemKind::Extent, Some(fid(0))),
            (Fix::Put(vec![Kind::Attr as u8; 5], vec![]), ProblemKind::Entry, None),
            (Fix::Put(Vec::from(key(Kind::Attr, fid(5), &[])), vec![1]), ProblemKind::Entry, Some(fid(5))),
            (Fix::Put(vec![0x77], vec![]), ProblemKind::Entry, None),
            (Fix::Put(vec![Kind::Space as u8, 0, 0, 0, 0], vec![9]), ProblemKind::Entry, None),
        ];
        for (fix, expected, of) in cases {
            let bdev = planted(std::slice::from_ref(&fix)).await;
            let before = image(&bdev).await;
            for repair in [false, true] {
                let report = fsck(&bdev, repair).await.unwrap();
                assert_eq!(report.verdict, Verdict::Damaged, "{fix:?}");
                let found = |problem: &Problem| problem.kind == expected && problem.fid == of;
                assert!(report.problems.iter().any(found), "{fix:?}: {report}");
            }
            assert!(*image(&bdev).await == *before, "{fix:?}: something was written");
        }
    });
}

/// Every byte of the checkpoint and the runs counts, and the place is told.
#[test]
fn damage_in_the_index_is_found_with_its_place() {
    run_local(async {
        let bdev = device();
        format(&bdev).await;
        let store = open(&bdev).await;
        fill(&store, true).await;
        store.close().await.unwrap();
        let inspection = inspect(&bdev, &Inspect::default()).await.unwrap();
        let root = inspection.root.extents[0].0;
        let mut places: Vec<u64> = (0..inspection.root.bytes).step_by(13).map(|offset| root + offset).collect();
        for run in &inspection.runs {
            places.extend((0..run.bytes.min(run.extents[0].1)).step_by(41).map(|offset| run.extents[0].0 + offset));
        }
        assert!(places.len() > 50);
        for place in places {
            flip(&bdev, place, 0x10).await;
            let report = fsck(&bdev, true).await.unwrap();
            assert_eq!(report.verdict, Verdict::Damaged, "byte {place}");
            let near = report
                .problems
                .iter()
                .filter_map(|problem| problem.device_offset)
                .any(|at| at.abs_diff(place) < 1 << 20);
            assert!(near, "byte {place}: {report}");
            flip(&bdev, place, 0x10).await;
        }
        assert_eq!(fsck(&bdev, false).await.unwrap().verdict, Verdict::Clean);
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever the device holds: no panic, an answer, nothing written.
    #[test]
    fn garbage_is_survived(
        seeds in proptest::collection::vec((0u8..5, any::<u64>(), any::<u8>()), 1..12),
        cut in proptest::option::of(1u64..DEVICE_BYTES / 4096),
    ) {
        run_local(async {
            let bdev = device();
            format(&bdev).await;
            let store = open(&bdev).await;
            fill(&store, true).await;
            drop(store);
            let inspection = inspect(&bdev, &Inspect::default()).await.unwrap();
            for (area, random, mask) in seeds {
                let run = &inspection.runs[random as usize % inspection.runs.len()];
                let offset = match area {
                    0 => [0, 4096, DEVICE_BYTES - 8192, DEVICE_BYTES - 4096][random as usize % 4] + random / 4 % 1500,
                    1 => inspection.root.extents[0].0 + random % inspection.root.bytes,
                    2 => run.extents[0].0 + random % run.extents[0].1,
                    3 => 8192 + inspection.log.first_position + random % (1 << 16),
                    _ => random % DEVICE_BYTES,
                };
                flip(&bdev, offset, mask).await;
            }
            let bdev = match cut {
                None => bdev,
                Some(blocks) => {
                    let short: BdevRef = Rc::new(Malloc::with_bytes("Short", blocks * 4096).unwrap());
                    short.write(0, vec![Bytes::from(image(&bdev).await[..blocks as usize * 4096].to_vec())]).await.unwrap();
                    short
                }
            };
            let all = Inspect { records_max: 1000, objects_max: 1000, object: Some(fid(3)), ..Inspect::default() };
            if let Ok(inspection) = inspect(&bdev, &all).await {
                assert!(!inspection.to_string().is_empty());
            }
            match fsck(&bdev, false).await {
                Ok(report) => assert!(!report.to_string().is_empty()),
                Err(error) => assert!(matches!(error.kind, StoreErrorKind::Corrupt | StoreErrorKind::NotAStore), "{error}"),
            }
        });
    }
}

const DEVICE_BYTES: u64 = 48 << 20;
