//! Damaged and strange devices: a clear error, or damage that stays local. Never a panic, never silence.

mod support;

use std::rc::Rc;

use nacre_osd::bdev::malloc::Malloc;
use nacre_osd::bdev::recording::{Fate, Recorder};
use nacre_osd::bdev::{Bdev, BdevRef};
use nacre_osd::engine::{Options, Osd, Probe};
use nacre_osd::store::{Op, Store, StoreErrorKind, Transaction};
use nacre_reactor::Bytes;
use nacre_wire::{Attr, Fid};
use support::{Random, SHAPE, format, open, run, transaction};

const BYTES: u64 = 48 << 20;

/// A store with some contents in checkpoint and log.
async fn example(seed: u64) -> Rc<Recorder> {
    let device = Rc::new(Recorder::new("damage", BYTES, seed));
    let bdev: BdevRef = device.clone();
    format(&bdev).await;
    let osd = open(&bdev).await;
    let mut random = Random(seed);
    for i in 0..120 {
        let _ = osd.submit(transaction(&mut random, SHAPE)).await;
        if i == 80 {
            osd.checkpoint().await.unwrap();
        }
    }
    osd.wait(osd.last_transno(), nacre_osd::store::Durability::Stable).await.unwrap();
    device
}

/// Uses everything that can be reached; errors are fine.
async fn walk(osd: &Osd) {
    let Ok(fids) = osd.objects(None, 1000).await else { return };
    for fid in fids {
        let Ok(attr) = osd.attr(fid).await else { continue };
        let _ = osd.xattrs(fid).await;
        let _ = osd.scan(fid, None, 1000).await;
        let _ = osd.extents(fid, 0..u64::MAX, 1000).await;
        let _ = osd.read(fid, 0, attr.size.min(1 << 20) as usize).await;
        let write = Op::Write { fid, offset: 10, data: Bytes::from_static(b"after") };
        let _ = osd.submit(Transaction { ops: vec![write] }).await;
        let _ = osd.submit(Transaction { ops: vec![Op::Destroy { fid }] }).await;
    }
    let _ = osd.close().await;
}

#[test]
fn flipped_bits_anywhere() {
    run(async {
        let device = example(3).await;
        let history = device.history();
        let mut random = Random(9);
        let (mut refused, mut opened) = (0, 0);
        for i in 0..600 {
            let copy = history.crash(history.len(), Fate::Kept);
            // Where something is: superblocks, the start of the log, the start of the space.
            let place = match i % 4 {
                0 => random.below(8192),
                1 => 8192 + random.below(400_000),
                2 => 8192 + (16 << 20) + random.below(2 << 20),
                _ => BYTES - 1 - random.below(8192),
            };
            for _ in 0..1 + random.below(3) {
                let at = place / 4096 * 4096;
                let mut block = copy.read(at, 4096).await.unwrap();
                block[(place % 4096) as usize] ^= 1 << random.below(8);
                copy.write(at, vec![block.freeze()]).await.unwrap();
            }
            match Osd::open(Rc::new(copy), Options::default()).await {
                Ok(osd) => {
                    opened += 1;
                    walk(&osd).await;
                }
                Err(error) => {
                    refused += 1;
                    assert!(matches!(error.kind, StoreErrorKind::Corrupt | StoreErrorKind::NotAStore), "{error}");
                }
            }
        }
        assert!(opened > 50, "{opened} opened, {refused} refused");
    });
}

#[test]
fn overwritten_and_cut_devices() {
    run(async {
        let device = example(4).await;
        let history = device.history();
        let mut random = Random(5);
        for start in (0..BYTES).step_by(3 << 20) {
            let copy = history.crash(history.len(), Fate::Kept);
            let garbage: Vec<u8> = (0..1 << 20).map(|_| random.next() as u8).collect();
            copy.write(start, vec![Bytes::from(garbage)]).await.unwrap();
            if let Ok(osd) = Osd::open(Rc::new(copy), Options::default()).await {
                walk(&osd).await;
            }
        }
        // The front of a device, as after a copy that was cut off.
        let whole = history.crash(history.len(), Fate::Kept);
        let cut = Malloc::with_bytes("cut", BYTES - (1 << 20)).unwrap();
        for at in (0..BYTES - (1 << 20)).step_by(1 << 20) {
            cut.write(at, vec![whole.read(at, 1 << 20).await.unwrap().freeze()]).await.unwrap();
        }
        let error = Osd::open(Rc::new(cut), Options::default()).await.err().expect("it is cut");
        assert_eq!(error.kind, StoreErrorKind::Corrupt);
        assert!(error.to_string().contains("was made for"), "{error}");
    });
}

#[test]
fn a_probe_tells_what_is_there() {
    run(async {
        let bdev: BdevRef = Rc::new(Malloc::with_bytes("m", BYTES).unwrap());
        assert!(matches!(Osd::probe(&bdev).await.unwrap(), Probe::Nothing));
        let error = Osd::open(bdev.clone(), Options::default()).await.err().expect("empty");
        assert_eq!(error.kind, StoreErrorKind::NotAStore);
        format(&bdev).await;
        let Probe::Store(info) = Osd::probe(&bdev).await.unwrap() else { panic!("a store") };
        assert_eq!((info.label.as_slice(), info.clean, info.device_bytes), (&b"test"[..], true, BYTES));
        let osd = open(&bdev).await;
        osd.set_label(b"other".to_vec()).await.unwrap();
        drop(osd);
        let Probe::Store(info) = Osd::probe(&bdev).await.unwrap() else { panic!("a store") };
        assert_eq!((info.label.as_slice(), info.clean), (&b"other"[..], false));
        open(&bdev).await.close().await.unwrap();
        let Probe::Store(info) = Osd::probe(&bdev).await.unwrap() else { panic!("a store") };
        assert!(info.clean);
        for place in [0, 4096, BYTES - 8192, BYTES - 4096] {
            let mut block = bdev.read(place, 4096).await.unwrap();
            block[100] ^= 1;
            bdev.write(place, vec![block.freeze()]).await.unwrap();
        }
        assert!(matches!(Osd::probe(&bdev).await.unwrap(), Probe::Damaged));
    });
}

#[test]
fn read_only_changes_nothing_and_shows_everything() {
    run(async {
        let device = example(6).await;
        let history = device.history();
        let copy = Rc::new(history.crash(history.len(), Fate::Kept));
        let bdev: BdevRef = copy.clone();
        let osd = Osd::open(bdev.clone(), Options { read_only: true, ..Options::default() }).await.unwrap();
        let seen = support::picture(&*osd).await;
        let refused = osd.submit(Transaction { ops: vec![] }).await;
        assert_eq!(refused.unwrap_err().kind, StoreErrorKind::ReadOnly);
        assert_eq!(copy.counts().writes, 0);
        drop(osd);
        support::assert_same(&support::picture(&*open(&bdev).await).await, &seen, "read-write");
    });
}

#[test]
fn a_failing_log_makes_the_store_read_only() {
    use nacre_osd::bdev::error::{ErrorBdev, ErrorType, Inject, IoType, Params};
    run(async {
        let base: BdevRef = Rc::new(Malloc::with_bytes("m", BYTES).unwrap());
        format(&base).await;
        let params = Params { base_name: "m".to_owned(), uuid: None };
        let device = Rc::new(ErrorBdev::new(&params, base.clone()));
        let osd = Osd::open(device.clone(), Options::default()).await.unwrap();
        let fid = Fid::new(9, 1);
        let create = |oid| Transaction { ops: vec![Op::Create { fid: Fid::new(9, oid), attr: Attr::default() }] };
        let transno = osd.submit(create(1)).await.unwrap();
        osd.wait(transno, nacre_osd::store::Durability::Stable).await.unwrap();
        device.inject(Inject::new(IoType::Write, ErrorType::Failure, 1));
        let transno = osd.submit(create(2)).await.unwrap();
        let error = osd.wait(transno, nacre_osd::store::Durability::Written).await.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::ReadOnly, "{error}");
        assert_eq!(osd.submit(create(3)).await.unwrap_err().kind, StoreErrorKind::ReadOnly);
        assert!(osd.attr(fid).await.is_ok(), "reading goes on");
        drop(osd);
        let osd = open(&base).await;
        assert_eq!(osd.space().objects, 1);
    });
}
