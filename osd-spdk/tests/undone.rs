//! What a crash undoes leaves nothing behind: not behind the end of an object, and not in ranges that it had zeroed.

mod support;

use std::rc::Rc;

use nacre_osd::bdev::BdevRef;
use nacre_osd::bdev::malloc::Malloc;
use nacre_osd::bdev::recording::Recorder;
use nacre_osd::engine::Osd;
use nacre_osd::store::{Op, Store, Transaction};
use nacre_reactor::Bytes;
use nacre_wire::{Attr, Fid};
use support::{format, open, run};

const FID: Fid = Fid::new(9, 1);

async fn submit(osd: &Osd, ops: Vec<Op>) {
    osd.submit(Transaction { ops }).await.unwrap();
}

fn write(offset: u64, byte: u8, length: usize) -> Op {
    Op::Write { fid: FID, offset, data: Bytes::from(vec![byte; length]) }
}

/// Makes a stable object of so many ones, does what a crash will undo, crashes, and answers with the object grown to 9000 bytes.
async fn undone(bdev: BdevRef, size: usize, transactions: Vec<Vec<Op>>) -> Bytes {
    format(&bdev).await;
    let osd = open(&bdev).await;
    submit(&osd, vec![Op::Create { fid: FID, attr: Attr::default() }, write(0, 1, size)]).await;
    osd.checkpoint().await.unwrap();
    for ops in transactions {
        submit(&osd, ops).await;
    }
    drop(osd);
    let osd = open(&bdev).await;
    assert_eq!(osd.attr(FID).await.unwrap().size, size as u64, "nothing of the rest was written to the log");
    submit(&osd, vec![Op::Truncate { fid: FID, size: 9000 }]).await;
    osd.read(FID, 0, 9000).await.unwrap()
}

fn devices() -> [BdevRef; 2] {
    [Rc::new(Malloc::with_bytes("m", 64 << 20).unwrap()), Rc::new(Recorder::new("r", 64 << 20, 1))]
}

#[test]
fn bytes_behind_the_old_end() {
    run(async {
        let size = |size| Op::Truncate { fid: FID, size };
        for scripts in [
            vec![vec![write(50, 2, 200)]],
            vec![vec![write(100, 2, 4000)], vec![write(4000, 3, 300)]],
            vec![vec![size(6000)], vec![write(200, 2, 300)]],
            vec![vec![size(6000), write(200, 2, 300)]],
            vec![vec![size(60)], vec![size(6000)], vec![write(200, 2, 300)]],
        ] {
            for bdev in devices() {
                let read = undone(bdev, 100, scripts.clone()).await;
                assert!(read[100..].iter().all(|byte| *byte == 0), "{scripts:?}");
            }
        }
    });
}

#[test]
fn a_range_that_was_zeroed_and_written_again() {
    run(async {
        let zero = || Op::Zero { fid: FID, range: 0..8192, keep_size: true };
        for scripts in [vec![vec![zero()], vec![write(50, 2, 10)]], vec![vec![zero(), write(50, 2, 10)]]] {
            for bdev in devices() {
                let read = undone(bdev, 8192, scripts.clone()).await;
                assert!(read[..50].iter().chain(&read[60..8192]).all(|byte| *byte == 1), "{scripts:?}");
            }
        }
    });
}
