//! What the tests of the engine share: a runtime, seeded random transactions, and the comparison with the model.
#![allow(dead_code, reason = "every test takes what it needs")]

use std::future::Future;
use std::rc::Rc;

use nacre_osd::bdev::BdevRef;
use nacre_osd::engine::{FormatOptions, Options, Osd};
use nacre_osd::store::{Op, Seek, Store, Transaction};
use nacre_reactor::Bytes;
use nacre_wire::{Attr, AttrPatch, Fid, Time, Uuid};

/// Runs a test as on a reactor, bounded in time.
pub fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        tokio::time::timeout(std::time::Duration::from_secs(300), future).await.expect("the test hangs")
    })
}

/// An empty store.
pub async fn format(bdev: &BdevRef) {
    let options = FormatOptions { uuid: Uuid::from_random(1, 2), label: b"test".to_vec(), log_bytes: None };
    Osd::format(bdev, &options).await.unwrap();
}

pub async fn open(bdev: &BdevRef) -> Rc<Osd> {
    Osd::open(bdev.clone(), Options::default()).await.unwrap_or_else(|error| panic!("open: {error}"))
}

/// SplitMix64.
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// How random transactions look.
#[derive(Clone, Copy)]
pub struct Shape {
    pub objects: u64,
    pub size_max: u64,
    pub ops_max: u64,
    /// Whether data may be overwritten where it is; without, the content of every crash is exact.
    pub overwrites: bool,
}

pub const SHAPE: Shape = Shape { objects: 5, size_max: 200_000, ops_max: 4, overwrites: true };

/// A transaction; some of them fail, which is a case too.
pub fn transaction(random: &mut Random, shape: Shape) -> Transaction {
    let count = if random.one_in(3) { 1 + random.below(shape.ops_max) } else { 1 };
    Transaction { ops: (0..count).map(|_| op(random, shape)).collect() }
}

fn range(random: &mut Random, shape: Shape) -> std::ops::Range<u64> {
    let align = if random.one_in(2) { 4096 } else { 1 };
    let start = random.below(shape.size_max) / align * align;
    let length = if random.one_in(3) { random.below(shape.size_max) } else { random.below(9000) };
    start..start + (length / align * align).max(1)
}

fn op(random: &mut Random, shape: Shape) -> Op {
    let fid = Fid::new(0x2_0000_0401, 1 + random.below(shape.objects) as u32);
    let keep_size = random.one_in(2);
    let name = format!("name{}", random.below(6)).into_bytes();
    let value = vec![random.next() as u8; random.below(300) as usize];
    match random.below(20) {
        0..=2 => Op::Create { fid, attr: Attr { mode: 0o100_644, uid: random.below(9) as u32, ..Attr::default() } },
        3 => Op::Destroy { fid },
        4 => {
            let size = random.one_in(4).then(|| random.below(shape.size_max));
            let mtime = Some(Time { seconds: random.below(1 << 40) as i64, nanoseconds: 5 });
            Op::SetAttr { fid, patch: AttrPatch { size, mtime, ..AttrPatch::default() } }
        }
        5..=9 => {
            let range = range(random, shape);
            let seed = random.next();
            let data: Vec<u8> = (range.clone()).map(|at| ((at / 7) ^ seed) as u8 | 1).collect();
            Op::Write { fid, offset: range.start, data: Bytes::from(data) }
        }
        10 => Op::Truncate { fid, size: random.below(shape.size_max) },
        11 => Op::Punch { fid, range: range(random, shape) },
        12 => Op::Allocate { fid, range: range(random, shape), keep_size },
        13 => Op::Zero { fid, range: range(random, shape), keep_size },
        14 => Op::SetXattr { fid, name, value },
        15 => Op::RemoveXattr { fid, name },
        16 => Op::Put { index: fid, key: name, value },
        17 => Op::Delete { index: fid, key: name },
        18 => Op::Put { index: Fid::local(1), key: name, value },
        _ => Op::Delete { index: Fid::local(1), key: name },
    }
}

/// Everything that can be seen of a store, as text; data as a checksum per block.
pub async fn picture(store: &dyn Store) -> Vec<String> {
    let mut out = vec![format!("transno {} objects {}", store.last_transno(), store.space().objects)];
    for fid in store.objects(None, usize::MAX).await.unwrap() {
        let attr = store.attr(fid).await.unwrap();
        out.push(format!("{fid} {attr:?}"));
        for (name, value) in store.xattrs(fid).await.unwrap() {
            out.push(format!("{fid} xattr {} {value:?}", String::from_utf8_lossy(&name)));
        }
        let mut extents: Vec<(u64, u64, bool)> = Vec::new();
        for extent in store.extents(fid, 0..u64::MAX, usize::MAX).await.unwrap() {
            match extents.last_mut() {
                Some((start, length, unwritten))
                    if *start + *length == extent.logical && *unwritten == extent.unwritten =>
                {
                    *length += extent.length;
                }
                _ => extents.push((extent.logical, extent.length, extent.unwritten)),
            }
        }
        out.push(format!("{fid} extents {extents:?}"));
        let mut seeks = Vec::new();
        for i in 0..8 {
            let at = i * attr.size / 8;
            seeks
                .push((store.seek(fid, at, Seek::Data).await.unwrap(), store.seek(fid, at, Seek::Hole).await.unwrap()));
        }
        out.push(format!("{fid} seeks {seeks:?}"));
        let data = store.read(fid, 0, attr.size as usize).await.unwrap();
        for (block, bytes) in data.chunks(4096).enumerate() {
            if bytes.iter().any(|byte| *byte != 0) {
                out.push(format!("{fid} block {block} {:x}", crc_fast_like(bytes)));
            }
        }
        out.extend(keys(store, fid).await);
    }
    out.extend(keys(store, Fid::local(1)).await);
    out
}

async fn keys(store: &dyn Store, fid: Fid) -> Vec<String> {
    let entries = store.scan(fid, None, usize::MAX).await.unwrap();
    entries.iter().map(|(key, value)| format!("{fid} key {} {value:?}", String::from_utf8_lossy(key))).collect()
}

/// FNV-1a: tells blocks apart.
fn crc_fast_like(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Asserts that two stores look the same.
#[track_caller]
pub fn assert_same(found: &[String], expected: &[String], when: &str) {
    if found == expected {
        return;
    }
    let only =
        |a: &[String], b: &[String]| a.iter().filter(|line| !b.contains(line)).take(12).cloned().collect::<Vec<_>>();
    panic!("{when}:\nfound    {:#?}\nexpected {:#?}", only(found, expected), only(expected, found));
}
