//! What the index costs: puts of a create-heavy load, gets that hit and miss, floors, bytes written per put.
//!
//! `cargo bench -p nacre-osd --bench index -- [CREATES]`; a create is five puts. The device is memory, so that what is
//! measured is the index and not the device.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use nacre_osd::StoreError;
use nacre_osd::engine::index::{Change, Extent, RUN_ALIGN_BYTES, RunIo, Tree, TreeOptions, TryGet};
use nacre_osd::format::object::{Kind, key};
use nacre_osd::store::Fut;
use nacre_reactor::{Bytes, DmaBuf};
use nacre_wire::Fid;

fn main() {
    let number = |argument: String| argument.parse::<u32>().ok();
    let creates = std::env::args().skip(1).find_map(number).unwrap_or(200_000);
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(measure(creates));
}

async fn measure(creates: u32) {
    let io = Rc::new(Memory::of((64 << 20) | (creates as usize * 512)));
    let options = TreeOptions { cache_bytes: 256 << 20, ..TreeOptions::default() };
    let tree = Tree::open(Rc::clone(&io) as Rc<dyn RunIo>, options, &[]).await.expect("an empty tree opens");
    let (mut putting, mut flushing, mut merging) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    let mut put_bytes = 0;
    for first in (0..creates).step_by(1000) {
        let batch: Vec<Vec<Change>> = (first..first + 1000).map(create).collect();
        put_bytes += batch.iter().flatten().map(bytes_of).sum::<u64>();
        putting += timed(|| batch.into_iter().for_each(|changes| tree.apply(changes)));
        if tree.memtable_bytes() < MEMTABLE_BYTES && first + 1000 < creates {
            continue;
        }
        let start = Instant::now();
        tree.freeze();
        if let Some(edit) = tree.flush_frozen().await.expect("memory does not fail") {
            tree.install(edit);
        }
        flushing += start.elapsed();
        let start = Instant::now();
        while let Some(edit) = tree.merge_step().await.expect("memory does not fail") {
            tree.install(edit);
            io.release(&tree);
        }
        merging += start.elapsed();
    }
    let puts = creates * 5;
    println!("{puts} puts, five per create, {} runs", tree.manifest().len());
    report("create: memtable", putting, creates);
    report("create: flush", flushing, creates);
    report("create: merge", merging, creates);
    let per_put = |bytes: u64| bytes as f64 / f64::from(puts);
    println!("{:<28} {:>8.1} B given, {:.1} B written", "put", per_put(put_bytes), per_put(io.written.get()));

    let mut random = Random(1);
    for round in ["cold", "warm"] {
        let gets = 200_000.min(creates);
        let keys: Vec<_> = (0..gets).map(|_| key(Kind::Attr, fid(random.below(creates)), &[])).collect();
        let (reads, start) = (io.reads.get(), Instant::now());
        for key in &keys {
            assert!(tree.get(key).await.expect("memory does not fail").is_some());
        }
        report(&format!("get hit, {round}"), start.elapsed(), gets);
        println!("{:<28} {:>8.3} reads per get", "", f64::from(io.reads.get() - reads) / f64::from(gets));
    }
    let absent: Vec<_> = (0..200_000).map(|n| key(Kind::Attr, fid(creates + n), b"x")).collect();
    let present_range: Vec<_> = (0..200_000).map(|_| key(Kind::Attr, fid(random.below(creates)), b"x")).collect();
    for (what, keys) in [("get miss, beyond all keys", absent), ("get miss, between keys", present_range)] {
        let (reads, mut unknown) = (io.reads.get(), 0);
        let start = Instant::now();
        for key in &keys {
            unknown += u32::from(tree.try_get(key) == TryGet::NeedsIo);
        }
        report(what, start.elapsed(), 200_000);
        assert_eq!(io.reads.get(), reads);
        println!("{:<28} {:>8.4} would need a read", "", f64::from(unknown) / 200_000.0);
    }
    let start = Instant::now();
    for _ in 0..100_000 {
        let fid = fid(random.below(creates));
        let (lowest, highest) = (key(Kind::Xattr, fid, b""), key(Kind::Xattr, fid, b"trusted.z"));
        assert!(tree.floor(&lowest, &highest).await.expect("memory does not fail").is_some());
    }
    report("floor within an object", start.elapsed(), 100_000);
}

/// Inode, layout, link, directory entry, last id of the OST.
fn create(n: u32) -> Vec<Change> {
    let fid = fid(n);
    let hash = (u64::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 1).to_be_bytes();
    let mut attr = [0u8; 104];
    attr[..8].copy_from_slice(&hash);
    let entry = [&hash[..], format!("file-{n:09}").as_bytes()].concat();
    vec![
        (key(Kind::Attr, fid, &[]), Some(Box::from(attr))),
        (key(Kind::Xattr, fid, b"trusted.lov"), Some([&hash[..], &[0; 40]].concat().into())),
        (key(Kind::Xattr, fid, b"trusted.link"), Some([&hash[..], &[0; 30]].concat().into())),
        (key(Kind::Index, Fid::ROOT, &entry), Some(Box::from(fid.to_key()))),
        (key(Kind::Index, Fid::local(3), &[n as u8 % 2]), Some(Box::from(n.to_le_bytes()))),
    ]
}

fn fid(n: u32) -> Fid {
    Fid::new(0x2_0000_0401, n + 1)
}

fn bytes_of((key, value): &Change) -> u64 {
    (key.len() + value.as_ref().map_or(0, |value| value.len())) as u64
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn report(what: &str, time: Duration, operations: u32) {
    println!("{what:<28} {:>8.0} ns", time.as_nanos() as f64 / f64::from(operations));
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (((self.0 >> 32) * u64::from(limit)) >> 32) as u32
    }
}

/// A device. What is freed is used again when it fits.
struct Memory {
    bytes: Rc<RefCell<Vec<u8>>>,
    free: RefCell<Vec<Extent>>,
    reads: Cell<u32>,
    written: Cell<u64>,
}

impl Memory {
    /// All pages are touched here, so that the kernel's zeroing of them is not in the numbers.
    fn of(bytes: usize) -> Memory {
        let free = Extent { offset: 0, length: bytes as u64 / RUN_ALIGN_BYTES * RUN_ALIGN_BYTES };
        Memory {
            bytes: Rc::new(RefCell::new(vec![0xff; bytes])),
            free: RefCell::new(vec![free]),
            reads: Cell::new(0),
            written: Cell::new(0),
        }
    }

    fn release(&self, tree: &Tree) {
        for run in tree.take_unused() {
            self.free(&run.extents);
        }
    }
}

impl RunIo for Memory {
    fn allocate(&self, bytes: u64) -> Fut<'static, Result<Vec<Extent>, StoreError>> {
        let mut free = self.free.borrow_mut();
        let found = free.iter().position(|extent| extent.length >= bytes).expect("the device is large enough");
        let Extent { offset, length } = free.swap_remove(found);
        if length > bytes {
            free.push(Extent { offset: offset + bytes, length: length - bytes });
        }
        async move { Ok(vec![Extent { offset, length: bytes }]) }.boxed_local()
    }

    fn free(&self, extents: &[Extent]) {
        let mut free = self.free.borrow_mut();
        free.extend_from_slice(extents);
        free.sort_by_key(|extent| extent.offset);
        free.dedup_by(|next, extent| {
            let touch = extent.offset + extent.length == next.offset;
            extent.length += if touch { next.length } else { 0 };
            touch
        });
    }

    fn read(&self, extent: Extent) -> Fut<'static, Result<DmaBuf, StoreError>> {
        assert!(extent.offset.is_multiple_of(RUN_ALIGN_BYTES));
        self.reads.set(self.reads.get() + 1);
        let bytes = Rc::clone(&self.bytes);
        let range = extent.offset as usize..(extent.offset + extent.length) as usize;
        async move { Ok(DmaBuf::copy_from(&bytes.borrow()[range])) }.boxed_local()
    }

    fn write(&self, offset: u64, data: Vec<Bytes>) -> Fut<'static, Result<(), StoreError>> {
        let mut at = offset as usize;
        for piece in data {
            self.bytes.borrow_mut()[at..at + piece.len()].copy_from_slice(&piece);
            at += piece.len();
        }
        self.written.set(self.written.get() + at as u64 - offset);
        async { Ok(()) }.boxed_local()
    }

    fn flush(&self) -> Fut<'static, Result<(), StoreError>> {
        async { Ok(()) }.boxed_local()
    }
}

/// As much as the engine lets a memtable grow.
const MEMTABLE_BYTES: usize = 32 << 20;
