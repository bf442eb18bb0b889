//! Devices that fail once: what was acknowledged stays, and nobody waits for ever.

mod support;

use std::cell::Cell;
use std::rc::Rc;

use nacre_osd::bdev::error::{ErrorBdev, ErrorType, Inject, IoType, Params};
use nacre_osd::bdev::malloc::Malloc;
use nacre_osd::bdev::recording::Recorder;
use nacre_osd::bdev::{Bdev, BdevError, BdevErrorKind, BdevFuture, BdevInfo, BdevRef, ready};
use nacre_osd::store::{Durability, Op, Store, StoreErrorKind, Transaction};
use nacre_reactor::{Bytes, DmaBuf};
use nacre_wire::{Attr, Fid};
use support::{format, open, run};

const FID: Fid = Fid::new(9, 1);

/// Fails one operation: the one after so many of its type.
struct FailsOnce {
    base: BdevRef,
    countdown: Cell<Option<(IoType, u32)>>,
}

impl FailsOnce {
    fn new(base: BdevRef) -> FailsOnce {
        FailsOnce { base, countdown: Cell::new(None) }
    }

    fn fails(&self, io_type: IoType) -> Option<BdevError> {
        let (wanted, left) = self.countdown.get().filter(|(wanted, _)| *wanted == io_type)?;
        self.countdown.set(left.checked_sub(1).map(|left| (wanted, left)));
        (left == 0).then(|| self.base.info().error(BdevErrorKind::Io, "test", 0, None))
    }
}

impl Bdev for FailsOnce {
    fn info(&self) -> &BdevInfo {
        self.base.info()
    }

    fn read(&self, offset: u64, length: usize) -> BdevFuture<DmaBuf> {
        self.base.read(offset, length)
    }

    fn write(&self, offset: u64, data: Vec<Bytes>) -> BdevFuture<()> {
        self.fails(IoType::Write).map_or_else(|| self.base.write(offset, data), |error| ready(Err(error)))
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> BdevFuture<()> {
        self.base.write_zeroes(offset, length)
    }

    fn unmap(&self, offset: u64, length: u64) -> BdevFuture<()> {
        self.base.unmap(offset, length)
    }

    fn flush(&self) -> BdevFuture<()> {
        self.fails(IoType::Flush).map_or_else(|| self.base.flush(), |error| ready(Err(error)))
    }
}

fn faulty(base: BdevRef) -> Rc<ErrorBdev> {
    Rc::new(ErrorBdev::new(&Params { base_name: base.info().name.clone(), uuid: None }, base))
}

/// Whatever write or flush of a checkpoint fails, once: a second try, or closing, does not lose what only the first had.
#[test]
fn a_checkpoint_that_failed_is_not_forgotten() {
    run(async {
        for (io_type, failing) in (0..6).map(|i| (IoType::Write, i)).chain((0..5).map(|i| (IoType::Flush, i))) {
            for close in [false, true] {
                let device = Rc::new(FailsOnce::new(Rc::new(Malloc::with_bytes("m", 64 << 20).unwrap())));
                let bdev: BdevRef = device.clone();
                format(&bdev).await;
                let osd = open(&bdev).await;
                let ops = vec![
                    Op::Create { fid: FID, attr: Attr::default() },
                    Op::Write { fid: FID, offset: 0, data: Bytes::from_static(b"kept") },
                ];
                let transno = osd.submit(Transaction { ops }).await.unwrap();
                osd.wait(transno, Durability::Stable).await.unwrap();
                device.countdown.set(Some((io_type, failing)));
                let failed = osd.checkpoint().await.is_err();
                device.countdown.set(None);
                let result = if close { osd.close().await } else { osd.checkpoint().await };
                drop(osd);
                let osd = open(&bdev).await;
                let read = osd.read(FID, 0, 10).await;
                assert_eq!(read.unwrap(), "kept", "{io_type:?} {failing} close {close} failed {failed} {result:?}");
            }
        }
    });
}

/// After the log failed everybody is told, and closing brings the rest to an end.
#[test]
fn a_log_that_fails_is_told_to_all() {
    run(async {
        let device = faulty(Rc::new(Recorder::new("r", 64 << 20, 1)));
        let bdev: BdevRef = device.clone();
        format(&bdev).await;
        let osd = open(&bdev).await;
        let transno =
            osd.submit(Transaction { ops: vec![Op::Create { fid: FID, attr: Attr::default() }] }).await.unwrap();
        device.inject(Inject::new(IoType::Write, ErrorType::Failure, 1));
        let (first, second) =
            tokio::join!(osd.wait(transno, Durability::Written), osd.wait(transno, Durability::Stable));
        assert_eq!(first.unwrap_err().kind, StoreErrorKind::ReadOnly);
        assert_eq!(second.unwrap_err().kind, StoreErrorKind::ReadOnly);
        let write = Op::Write { fid: FID, offset: 0, data: Bytes::from_static(b"late") };
        assert_eq!(osd.submit(Transaction { ops: vec![write] }).await.unwrap_err().kind, StoreErrorKind::ReadOnly);
        assert_eq!(osd.close().await.unwrap_err().kind, StoreErrorKind::ReadOnly);
        drop(osd);
        let osd = open(&bdev).await;
        assert_eq!(osd.attr(FID).await.unwrap_err().kind, StoreErrorKind::NotFound);
        osd.close().await.unwrap();
    });
}
