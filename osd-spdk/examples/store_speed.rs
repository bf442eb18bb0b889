//! Speed of the engine on one core, side by side with the raw device:
//!
//! ```text
//! cargo run --release -p nacre-osd --example store_speed [-- SECONDS]
//! ```
//!
//! Rates are per second of processor time, so that a busy machine does not change them.
//!
//! A create is five puts: an object with attributes and an extended attribute, its name in a directory, the directory's times,
//! and a counter; waits share commits as the services' do.

use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::join_all;
use nacre_osd::bdev::BdevRef;
use nacre_osd::bdev::malloc::Malloc;
use nacre_osd::engine::{FormatOptions, Options, Osd};
use nacre_osd::store::{Durability, Op, Store, Transaction};
use nacre_reactor::{Bytes, DmaBuf};
use nacre_wire::{Attr, AttrPatch, Fid, Time, Uuid};

fn main() {
    let seconds = std::env::args().nth(1).map_or(3.0, |text| text.parse().expect("a number of seconds"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, measure(Duration::from_secs_f64(seconds)));
}

async fn measure(time: Duration) {
    let bdev = malloc(4 << 30);
    let options = FormatOptions { uuid: Uuid::NIL, label: Vec::new(), log_bytes: None };
    Osd::format(&bdev, &options).await.expect("format");
    let osd = Osd::open(bdev.clone(), Options::default()).await.expect("open");

    creates(&osd, time).await;
    lookups(&osd, time).await;
    let raw = malloc(1 << 30);
    overwrites(&raw, &osd, time).await;
    appends(&raw, &osd, time).await;
    osd.close().await.expect("close");
}

fn malloc(bytes: u64) -> BdevRef {
    Rc::new(Malloc::with_bytes("Malloc0", bytes).expect("a malloc bdev"))
}

const DIRECTORY: Fid = Fid::ROOT;

async fn creates(osd: &Rc<Osd>, time: Duration) {
    let attr = Attr { mode: 0o100_644, nlink: 1, ..Attr::default() };
    submit(osd, vec![Op::Create { fid: DIRECTORY, attr: attr.clone() }]).await;
    let next = Rc::new(std::cell::Cell::new(0u32));
    let start = Cpu::now();
    let workers = (0..64).map(|_| {
        let (osd, next, attr) = (osd.clone(), next.clone(), attr.clone());
        tokio::task::spawn_local(async move {
            while start.elapsed() < time {
                let i = next.get() + 1;
                next.set(i);
                let fid = Fid::new(0x2_0000_0401, i);
                let name = format!("file-with-a-name-{i}");
                let key =
                    [&(u64::from(i).wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_be_bytes()[..], name.as_bytes()].concat();
                let now = Some(Time { seconds: i64::from(i), nanoseconds: 0 });
                let ops = vec![
                    Op::Create { fid, attr: attr.clone() },
                    Op::SetXattr { fid, name: b"trusted.lov".to_vec(), value: vec![i as u8; 60] },
                    Op::Put { index: DIRECTORY, key, value: vec![1; 17] },
                    Op::SetAttr { fid: DIRECTORY, patch: AttrPatch { mtime: now, ctime: now, ..AttrPatch::default() } },
                    Op::Put { index: Fid::local(1), key: b"last".to_vec(), value: i.to_le_bytes().to_vec() },
                ];
                let transno = osd.submit(Transaction { ops }).await.expect("create");
                osd.wait(transno, Durability::Written).await.expect("written");
            }
        })
    });
    join_all(workers.collect::<Vec<_>>()).await;
    report("creates (5 puts, 64 waiting)", u64::from(next.get()), start.elapsed(), 0);
}

async fn lookups(osd: &Rc<Osd>, time: Duration) {
    let objects = osd.space().objects.max(2) as u32 - 1;
    let (start, mut count) = (Cpu::now(), 0u64);
    while start.elapsed() < time {
        for _ in 0..100 {
            count += 1;
            let oid = 1 + (count.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) as u32 % objects;
            osd.attr(Fid::new(0x2_0000_0401, oid)).await.expect("attr");
        }
    }
    report("attributes of random objects", count, start.elapsed(), 0);
}

async fn overwrites(raw: &BdevRef, osd: &Rc<Osd>, time: Duration) {
    const BYTES: u64 = 512 << 20;
    let block = DmaBuf::copy_from(&[7; 4096]).freeze();
    let at = |i: u64| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) % (BYTES / 4096) * 4096;
    for i in 0..BYTES >> 20 {
        raw.write(i << 20, vec![Bytes::from(vec![1; 1 << 20])]).await.expect("write");
    }
    let raw_count = hammer("raw 4 KiB random writes, QD 32", time, 4096, |i| {
        let write = raw.write(at(i), vec![block.clone()]);
        async move { write.await.expect("write") }
    })
    .await;
    let fid = Fid::new(0x1_0000_0000, 1);
    submit(osd, vec![Op::Create { fid, attr: Attr::default() }]).await;
    for i in 0..BYTES >> 20 {
        submit(osd, vec![Op::Write { fid, offset: i << 20, data: Bytes::from(vec![1; 1 << 20]) }]).await;
    }
    let count = hammer("store 4 KiB random overwrites, QD 32", time, 4096, |i| {
        let (osd, block) = (osd.clone(), block.clone());
        async move {
            let transno = submit(&osd, vec![Op::Write { fid, offset: at(i), data: block }]).await;
            osd.wait(transno, Durability::Written).await.expect("written");
        }
    })
    .await;
    println!("{:>44} {:.2}", "of raw", count / raw_count);
    let raw_count = hammer("raw 4 KiB random reads, QD 32", time, 4096, |i| {
        let read = raw.read(at(i), 4096);
        async move { drop(read.await.expect("read")) }
    })
    .await;
    let count = hammer("store 4 KiB random reads, QD 32", time, 4096, |i| {
        let osd = osd.clone();
        async move { drop(osd.read(fid, at(i), 4096).await.expect("read")) }
    })
    .await;
    println!("{:>44} {:.2}", "of raw", count / raw_count);
    submit(osd, vec![Op::Destroy { fid }]).await;
}

async fn appends(raw: &BdevRef, osd: &Rc<Osd>, time: Duration) {
    const PIECE: u64 = 1 << 20;
    let data = DmaBuf::copy_from(&vec![7; PIECE as usize]).freeze();
    let raw_count = hammer("raw 1 MiB writes, QD 8 of 32", time, PIECE, |i| {
        let write = raw.write(i % 512 * PIECE, vec![data.clone()]);
        async move { write.await.expect("write") }
    })
    .await;
    let next = Rc::new(std::cell::Cell::new(0u32));
    let count = hammer("store 1 MiB appends, QD 8 of 32", time, PIECE, |i| {
        let (osd, data, next) = (osd.clone(), data.clone(), next.clone());
        async move {
            // A file of 512 MiB, then the next.
            let fid = Fid::new(0x1_0000_0000, 2 + (i / 512) as u32);
            if i % 512 == 0 {
                if i > 0 {
                    submit(&osd, vec![Op::Destroy { fid: Fid::new(0x1_0000_0000, fid.oid - 1) }]).await;
                }
                submit(&osd, vec![Op::Create { fid, attr: Attr::default() }]).await;
                next.set(fid.oid);
            }
            if next.get() != fid.oid {
                return;
            }
            let write = Op::Write { fid, offset: i % 512 * PIECE, data };
            // Stragglers of a destroyed file fail, which is fine.
            if let Ok(transno) = osd.submit(Transaction { ops: vec![write] }).await {
                osd.wait(transno, Durability::Written).await.expect("written");
            }
        }
    })
    .await;
    println!("{:>44} {:.2}", "of raw", count / raw_count);
}

/// Keeps 32 operations under way; the answer is operations per second.
async fn hammer<F: Future<Output = ()>>(what: &str, time: Duration, bytes: u64, operation: impl Fn(u64) -> F) -> f64 {
    let (start, next) = (Cpu::now(), std::cell::Cell::new(0u64));
    let worker = || async {
        while start.elapsed() < time {
            let i = next.get();
            next.set(i + 1);
            operation(i).await;
            // Devices in memory are always ready; the others want their turn.
            tokio::task::yield_now().await;
        }
    };
    join_all((0..32).map(|_| worker())).await;
    report(what, next.get(), start.elapsed(), bytes)
}

async fn submit(osd: &Osd, ops: Vec<Op>) -> u64 {
    osd.submit(Transaction { ops }).await.expect("submit")
}

/// Processor time of this thread.
#[derive(Clone, Copy)]
struct Cpu(Duration);

impl Cpu {
    fn now() -> Cpu {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Cpu(Duration::new(now.tv_sec as u64, now.tv_nsec as u32))
    }

    fn elapsed(self) -> Duration {
        Cpu::now().0 - self.0
    }
}

fn report(what: &str, count: u64, time: Duration, bytes: u64) -> f64 {
    let rate = count as f64 / time.as_secs_f64();
    let bandwidth =
        if bytes > 0 { format!("{:8.0} MiB/s", rate * bytes as f64 / (1 << 20) as f64) } else { String::new() };
    println!("{what:>44} {rate:>10.0}/s  {:>7.2} µs {bandwidth}", 1e6 / rate);
    rate
}
