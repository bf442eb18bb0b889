//! A full device: writers get `NoSpace` and nothing else happens, deleting always works, and the space comes back.

mod support;

use std::rc::Rc;

use nacre_osd::bdev::BdevRef;
use nacre_osd::bdev::malloc::Malloc;
use nacre_osd::bdev::recording::Recorder;
use nacre_osd::engine::Osd;
use nacre_osd::store::{Op, Store, StoreErrorKind, Transaction, Transno};
use nacre_reactor::Bytes;
use nacre_wire::{Attr, Fid};
use support::{format, open, run};

async fn submit(osd: &Osd, ops: Vec<Op>) -> Result<Transno, StoreErrorKind> {
    osd.submit(Transaction { ops }).await.map_err(|error| error.kind)
}

fn write(fid: Fid, offset: u64, length: usize) -> Op {
    Op::Write { fid, offset, data: Bytes::from(vec![offset as u8 | 1; length]) }
}

async fn fill_with_data(bdev: BdevRef) {
    format(&bdev).await;
    let mut osd = open(&bdev).await;
    let empty = osd.space().free_bytes;
    for round in 0..5u32 {
        let fid = Fid::new(9, round + 1);
        submit(&osd, vec![Op::Create { fid, attr: Attr::default() }]).await.unwrap();
        let mut offset = 0;
        let error = loop {
            match submit(&osd, vec![write(fid, offset, 300_000)]).await {
                Ok(_) => offset += 300_000,
                Err(error) => break error,
            }
        };
        assert_eq!(error, StoreErrorKind::NoSpace);
        assert!(offset + (2 << 20) > empty, "round {round}: only {offset} of {empty} bytes could be used");
        let attr = osd.attr(fid).await.unwrap();
        assert_eq!(attr.size, offset, "a failed write changes nothing");
        assert!(attr.allocated_bytes >= offset && attr.allocated_bytes < offset + 4096);
        // What is there can still be overwritten and read.
        submit(&osd, vec![write(fid, 4096, 8192)]).await.unwrap();
        assert_eq!(osd.read(fid, 600_000, 1).await.unwrap()[0], 600_000u64 as u8 | 1);
        if round % 2 == 0 {
            osd.close().await.unwrap();
            osd = open(&bdev).await;
        }
        // A truncate into a block takes a fresh one from the reserve.
        submit(&osd, vec![Op::Truncate { fid, size: 5000 }]).await.unwrap();
        assert_eq!(osd.attr(fid).await.unwrap().allocated_bytes, 8192);
        submit(&osd, vec![Op::Destroy { fid }]).await.unwrap();
        let free = osd.space().free_bytes;
        assert!(free + (1 << 20) > empty, "round {round}: {free} of {empty} bytes came back");
    }
}

#[test]
fn data_fills_a_device_and_goes() {
    run(fill_with_data(Rc::new(Malloc::with_bytes("m", 64 << 20).unwrap())));
    run(fill_with_data(Rc::new(Recorder::new("r", 64 << 20, 1))));
}

#[test]
fn metadata_fills_a_device_and_goes() {
    run(async {
        let bdev: BdevRef = Rc::new(Malloc::with_bytes("m", 64 << 20).unwrap());
        format(&bdev).await;
        let osd = open(&bdev).await;
        let filler = Fid::new(9, u32::MAX);
        let range = 0..osd.space().free_bytes;
        let fill = Op::Allocate { fid: filler, range, keep_size: true };
        submit(&osd, vec![Op::Create { fid: filler, attr: Attr::default() }, fill]).await.unwrap();
        let mut random = support::Random(1);
        let mut value = || (0..60_000).map(|_| random.next() as u8).collect::<Vec<u8>>();
        let mut count = 0;
        // Values that do not compress, until the reserve is half used.
        loop {
            count += 1;
            let fid = Fid::new(9, count);
            let ops = vec![
                Op::Create { fid, attr: Attr::default() },
                Op::SetXattr { fid, name: b"user.x".to_vec(), value: value() },
            ];
            match submit(&osd, ops).await {
                Ok(_) if count % 16 == 0 => osd.checkpoint().await.unwrap(),
                Ok(_) => {}
                Err(error) => break assert_eq!(error, StoreErrorKind::NoSpace),
            }
            assert!(count < 4000, "the device never fills");
        }
        assert!(osd.attr(Fid::new(9, count)).await.is_err());
        for oid in 1..count {
            submit(&osd, vec![Op::Destroy { fid: Fid::new(9, oid) }]).await.unwrap();
        }
        submit(&osd, vec![Op::Destroy { fid: filler }]).await.unwrap();
        osd.close().await.unwrap();
        let osd = open(&bdev).await;
        assert_eq!(osd.space().objects, 0);
        let fid = Fid::new(9, 1);
        submit(&osd, vec![Op::Create { fid, attr: Attr::default() }, write(fid, 0, 1 << 20)]).await.unwrap();
    });
}

#[test]
fn reserved_space_can_be_written_when_nothing_else_can() {
    run(write_reserved_space(Rc::new(Malloc::with_bytes("m", 64 << 20).unwrap())));
    run(write_reserved_space(Rc::new(Recorder::new("r", 64 << 20, 1))));
}

async fn write_reserved_space(bdev: BdevRef) {
    format(&bdev).await;
    let osd = open(&bdev).await;
    let fid = Fid::new(9, 1);
    let range = 0..osd.space().free_bytes;
    let fill = Op::Allocate { fid, range: range.clone(), keep_size: false };
    submit(&osd, vec![Op::Create { fid, attr: Attr::default() }, fill]).await.unwrap();
    assert_eq!(submit(&osd, vec![write(fid, range.end, 1)]).await, Err(StoreErrorKind::NoSpace));
    for offset in (0..range.end - 100_000).step_by(100_000) {
        submit(&osd, vec![write(fid, offset, 100_000)]).await.unwrap();
    }
}

/// Transactions that found room in the log while their data was on its way: together they would be longer than the log.
#[test]
fn many_long_transactions_at_once_fit_the_log() {
    run(async {
        let bdev: BdevRef = Rc::new(Recorder::new("r", 512 << 20, 1).slow(3));
        format(&bdev).await;
        let osd = open(&bdev).await;
        let mut random = support::Random(1);
        let value: Vec<u8> = (0..60_000).map(|_| random.next() as u8).collect();
        let tasks: Vec<_> = (1..=20)
            .map(|oid| {
                let (osd, value, fid) = (osd.clone(), value.clone(), Fid::new(9, oid));
                tokio::task::spawn_local(async move {
                    let mut ops = vec![Op::Create { fid, attr: Attr::default() }, write(fid, 0, 5000)];
                    ops.extend((0..48u8).map(|i| Op::SetXattr { fid, name: vec![i], value: value.clone() }));
                    let transno = submit(&osd, ops).await.unwrap();
                    osd.wait(transno, nacre_osd::store::Durability::Stable).await.unwrap();
                })
            })
            .collect();
        for task in tasks {
            tokio::time::timeout(std::time::Duration::from_secs(60), task).await.expect("the log is stuck").unwrap();
        }
        drop(osd);
        let osd = open(&bdev).await;
        for oid in 1..=20 {
            assert_eq!(osd.xattrs(Fid::new(9, oid)).await.unwrap().len(), 48);
        }
    });
}

/// Regression: removing an object with more extents and keys than its record could name one by one.
#[test]
fn an_object_of_very_many_pieces_can_be_cut_and_destroyed() {
    run(async {
        let bdev: BdevRef = Rc::new(Malloc::with_bytes("m", 1 << 30).unwrap());
        format(&bdev).await;
        let mut osd = open(&bdev).await;
        let fid = Fid::new(9, 1);
        submit(&osd, vec![Op::Create { fid, attr: Attr::default() }]).await.unwrap();
        let pieces = 60_000u64;
        for i in 0..pieces / 50 {
            let ops = (0..50).map(|j| Op::Allocate {
                fid,
                range: (i * 50 + j) * 8192..(i * 50 + j) * 8192 + 1,
                keep_size: false,
            });
            submit(&osd, ops.collect()).await.unwrap();
        }
        for i in 0..5000u64 {
            submit(&osd, vec![Op::Put { index: fid, key: i.to_be_bytes().to_vec(), value: vec![1; 600] }])
                .await
                .unwrap();
        }
        submit(&osd, vec![Op::Truncate { fid, size: 40 * 8192 }]).await.unwrap();
        osd.wait(osd.last_transno(), nacre_osd::store::Durability::Written).await.unwrap();
        drop(osd);
        osd = open(&bdev).await;
        assert_eq!(osd.extents(fid, 0..u64::MAX, 1000).await.unwrap().len(), 40);
        assert_eq!(osd.attr(fid).await.unwrap().allocated_bytes, 40 * 4096);
        submit(&osd, vec![Op::Destroy { fid }]).await.unwrap();
        osd.wait(osd.last_transno(), nacre_osd::store::Durability::Written).await.unwrap();
        drop(osd);
        osd = open(&bdev).await;
        assert!(osd.scan(fid, None, 1).await.unwrap().is_empty());
        let create = Op::Create { fid, attr: Attr::default() };
        submit(&osd, vec![create]).await.unwrap();
        assert!(osd.extents(fid, 0..u64::MAX, 1000).await.unwrap().is_empty());
    });
}
