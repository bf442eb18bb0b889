use std::cell::Cell;
use std::collections::BTreeMap;

use futures_util::FutureExt;
use proptest::prelude::*;

use super::*;

/// A device in memory. Space comes in small pieces; reads and writes let others run in between.
struct Memory {
    bytes: Rc<RefCell<Vec<u8>>>,
    free: Rc<RefCell<Vec<Extent>>>,
    reads: Rc<Cell<usize>>,
    written_bytes: Rc<Cell<u64>>,
}

impl Memory {
    fn new(pages: u64, piece_pages: u64) -> Rc<Memory> {
        let mut free = Vec::new();
        // Every other piece first, so that pieces of one run do not touch.
        for parity in [1, 0] {
            for piece in (0..pages / piece_pages).rev().filter(|piece| piece % 2 == parity) {
                let length = piece_pages * RUN_ALIGN_BYTES;
                free.push(Extent { offset: piece * length, length });
            }
        }
        let bytes = vec![0xa5; (pages * RUN_ALIGN_BYTES) as usize];
        Rc::new(Memory {
            bytes: Rc::new(RefCell::new(bytes)),
            free: Rc::new(RefCell::new(free)),
            reads: Rc::default(),
            written_bytes: Rc::default(),
        })
    }

    fn free_bytes(&self) -> u64 {
        self.free.borrow().iter().map(|extent| extent.length).sum()
    }
}

impl RunIo for Memory {
    fn allocate(&self, bytes: u64) -> Fut<'static, Result<Vec<Extent>, StoreError>> {
        assert!(bytes.is_multiple_of(RUN_ALIGN_BYTES));
        let mut free = self.free.borrow_mut();
        let (mut got, mut left) = (Vec::new(), bytes);
        while left > 0 {
            let Some(mut extent) = free.pop() else {
                free.extend(got);
                let (kind, context) = (StoreErrorKind::NoSpace, "full".into());
                return async move { Err(StoreError { kind, op: "allocate", fid: None, context, source: None }) }
                    .boxed_local();
            };
            if extent.length > left {
                free.push(Extent { offset: extent.offset + left, length: extent.length - left });
                extent.length = left;
            }
            left -= extent.length;
            got.push(extent);
        }
        async { Ok(got) }.boxed_local()
    }

    fn free(&self, extents: &[Extent]) {
        for extent in extents {
            // Space given back must not look as if it still held anything.
            let range = extent.offset as usize..(extent.offset + extent.length) as usize;
            self.bytes.borrow_mut()[range].fill(0x5a);
            self.free.borrow_mut().push(*extent);
        }
    }

    fn read(&self, extent: Extent) -> Fut<'static, Result<DmaBuf, StoreError>> {
        assert!(
            extent.offset.is_multiple_of(RUN_ALIGN_BYTES)
                && extent.length.is_multiple_of(RUN_ALIGN_BYTES)
                && extent.length > 0
        );
        self.reads.set(self.reads.get() + 1);
        let bytes = Rc::clone(&self.bytes);
        async move {
            tokio::task::yield_now().await;
            let range = extent.offset as usize..(extent.offset + extent.length) as usize;
            Ok(DmaBuf::copy_from(&bytes.borrow()[range]))
        }
        .boxed_local()
    }

    fn write(&self, offset: u64, data: Vec<Bytes>) -> Fut<'static, Result<(), StoreError>> {
        let bytes = Rc::clone(&self.bytes);
        let written = Rc::clone(&self.written_bytes);
        async move {
            tokio::task::yield_now().await;
            let mut at = offset as usize;
            assert!(offset.is_multiple_of(RUN_ALIGN_BYTES));
            for piece in data {
                assert!((piece.len() as u64).is_multiple_of(RUN_ALIGN_BYTES));
                bytes.borrow_mut()[at..at + piece.len()].copy_from_slice(&piece);
                at += piece.len();
            }
            written.set(written.get() + at as u64 - offset);
            Ok(())
        }
        .boxed_local()
    }

    fn flush(&self) -> Fut<'static, Result<(), StoreError>> {
        async { Ok(()) }.boxed_local()
    }
}

fn small_options() -> TreeOptions {
    TreeOptions { block_bytes: 128, compress: true, cache_bytes: 4096, fanout: 3, filter_prefix_bytes: 2 }
}

fn run_local<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, future)
}

async fn open(io: &Rc<Memory>, options: &TreeOptions, manifest: &[RunHandle]) -> Result<Tree, StoreError> {
    Tree::open(Rc::clone(io) as Rc<dyn RunIo>, options.clone(), manifest).await
}

async fn flush(tree: &Tree) {
    tree.freeze();
    if let Some(edit) = tree.flush_frozen().await.unwrap() {
        tree.install(edit);
    }
}

async fn merge(tree: &Tree, io: &Memory) {
    if let Some(edit) = tree.merge_step().await.unwrap() {
        tree.install(edit);
    }
    for handle in tree.take_unused() {
        io.free(&handle.extents);
    }
}

fn put(key: &[u8], value: &[u8]) -> Change {
    (key.into(), Some(value.into()))
}

#[derive(Clone, Debug)]
enum Step {
    Put(Vec<u8>, Vec<u8>),
    Delete(Vec<u8>),
    Get(Vec<u8>),
    Scan(Bound<Vec<u8>>, Bound<Vec<u8>>, usize),
    Floor(Vec<u8>, Vec<u8>),
    Freeze,
    Flush,
    Merge,
    MergeAll,
    /// A flush or merge whose manifest could not be written.
    Abandon(bool),
    Reopen,
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    // Few prefixes, short alphabet: neighbours, shared prefixes, keys that are prefixes of others.
    proptest::collection::vec(prop_oneof![Just(b'a'), Just(b'b'), Just(0u8), Just(255u8)], 0..7)
}

fn bound() -> impl Strategy<Value = Bound<Vec<u8>>> {
    prop_oneof![
        4 => key().prop_map(Bound::Included),
        4 => key().prop_map(Bound::Excluded),
        1 => Just(Bound::Unbounded),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let value = prop_oneof![
        8 => proptest::collection::vec(any::<u8>(), 0..20),
        1 => proptest::collection::vec(any::<u8>(), 300..9000),
        1 => (200..20_000usize).prop_map(|length| vec![7; length]),
    ];
    prop_oneof![
        30 => (key(), value).prop_map(|(key, value)| Step::Put(key, value)),
        12 => key().prop_map(Step::Delete),
        8 => key().prop_map(Step::Get),
        8 => (bound(), bound(), 0..40usize).prop_map(|(from, to, limit)| Step::Scan(from, to, limit)),
        8 => (key(), key()).prop_map(|(lowest, highest)| Step::Floor(lowest, highest)),
        2 => Just(Step::Freeze),
        5 => Just(Step::Flush),
        4 => Just(Step::Merge),
        1 => Just(Step::MergeAll),
        1 => any::<bool>().prop_map(Step::Abandon),
        1 => Just(Step::Reopen),
    ]
}

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

fn model_scan(model: &Model, from: Bound<&[u8]>, to: Bound<&[u8]>, limit: usize) -> Vec<Entry> {
    if is_empty_range(from, to) {
        return Vec::new();
    }
    let range = model.range::<[u8], _>((from, to));
    range.take(limit).map(|(key, value)| (key.clone(), value.clone())).collect()
}

async fn check_all(tree: &Tree, model: &Model) {
    let all = tree.scan(Bound::Unbounded, Bound::Unbounded, usize::MAX).await.unwrap();
    assert_eq!(all, model.clone().into_iter().collect::<Vec<_>>());
    for (key, value) in model {
        assert_eq!(tree.get(key).await.unwrap().as_ref(), Some(value));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 80, ..ProptestConfig::default() })]

    #[test]
    fn behaves_as_a_map(steps in proptest::collection::vec(step(), 1..250), prefix in 0usize..4) {
        run_local(async {
            let io = Memory::new(4096, 3);
            let total = io.free_bytes();
            let options = TreeOptions { filter_prefix_bytes: prefix, ..small_options() };
            let mut tree = open(&io, &options, &[]).await.unwrap();
            let mut model = Model::new();
            for step in steps {
                match step {
                    Step::Put(key, value) => {
                        tree.apply([put(&key, &value)]);
                        model.insert(key, value);
                    }
                    Step::Delete(key) => {
                        tree.apply([(key.as_slice().into(), None)]);
                        model.remove(&key);
                    }
                    Step::Get(key) => {
                        let expected = model.get(&key).cloned();
                        if let TryGet::Known(value) = tree.try_get(&key) {
                            assert_eq!(value, expected);
                        }
                        assert_eq!(tree.get(&key).await.unwrap(), expected);
                        // What a get has read is there without I/O.
                        if options.cache_bytes > 1 << 20 {
                            assert_eq!(tree.try_get(&key), TryGet::Known(expected));
                        }
                    }
                    Step::Scan(from, to, limit) => {
                        let (from, to) = (from.as_ref().map(Vec::as_slice), to.as_ref().map(Vec::as_slice));
                        assert_eq!(tree.scan(from, to, limit).await.unwrap(), model_scan(&model, from, to, limit));
                    }
                    Step::Floor(lowest, highest) => {
                        let range = (Bound::Included(&*lowest), Bound::Included(&*highest));
                        let expected = model_scan(&model, range.0, range.1, usize::MAX).pop();
                        assert_eq!(tree.floor(&lowest, &highest).await.unwrap(), expected);
                    }
                    Step::Freeze => tree.freeze(),
                    Step::Flush => flush(&tree).await,
                    Step::Merge => merge(&tree, &io).await,
                    Step::MergeAll => {
                        if let Some(edit) = tree.merge_all().await.unwrap() {
                            tree.install(edit);
                        }
                        for handle in tree.take_unused() {
                            io.free(&handle.extents);
                        }
                    }
                    Step::Abandon(flush) => {
                        let edit = if flush { tree.flush_frozen().await } else { tree.merge_all().await };
                        if let Some(edit) = edit.unwrap() {
                            tree.abandon(edit);
                        }
                    }
                    Step::Reopen => {
                        flush(&tree).await;
                        let mut encoded = Vec::new();
                        tree.manifest().iter().for_each(|handle| handle.encode(&mut encoded));
                        let mut input = encoded.as_slice();
                        let mut manifest = Vec::new();
                        while !input.is_empty() {
                            manifest.push(RunHandle::decode(&mut input).unwrap());
                        }
                        assert_eq!(manifest, tree.manifest());
                        tree = open(&io, &options, &manifest).await.unwrap();
                    }
                }
            }
            check_all(&tree, &model).await;
            flush(&tree).await;
            check_all(&tree, &model).await;
            // Nothing leaks: what is not free belongs to a run.
            let used: u64 = tree.manifest().iter().flat_map(|run| &run.extents).map(|extent| extent.length).sum();
            assert_eq!(io.free_bytes() + used, total);
        });
    }
}

/// Readers that wait for blocks while everything is flushed, merged and freed around them still answer right.
#[test]
fn readers_see_one_moment_while_runs_come_and_go() {
    run_local(async {
        let io = Memory::new(8192, 5);
        let tree = Rc::new(open(&io, &small_options(), &[]).await.unwrap());
        // Pairs of keys always change together: (a…, b…) hold the same value.
        let pair = |n: u32, value: u32| {
            let value = value.to_be_bytes();
            [put(format!("a{n:04}").as_bytes(), &value), put(format!("b{n:04}").as_bytes(), &value)]
        };
        for n in 0..300 {
            tree.apply(pair(n, 0));
        }
        let done = Rc::new(Cell::new(false));
        let mut readers = Vec::new();
        for reader in 0..4u32 {
            let (tree, done) = (Rc::clone(&tree), Rc::clone(&done));
            readers.push(tokio::task::spawn_local(async move {
                let mut rounds = 0;
                let mut n = reader * 31;
                while !done.get() {
                    n = (n + 7) % 300;
                    let all = tree.scan(Bound::Unbounded, Bound::Unbounded, usize::MAX).await.unwrap();
                    assert_eq!(all.len(), 600);
                    for (left, right) in std::iter::zip(&all[..300], &all[300..]) {
                        assert_eq!((&left.0[1..], &left.1), (&right.0[1..], &right.1));
                    }
                    let key = format!("b{n:04}");
                    let got = tree.get(key.as_bytes()).await.unwrap();
                    assert!(got.is_some(), "{key}");
                    let floor = tree.floor(b"a", key.as_bytes()).await.unwrap().unwrap();
                    assert_eq!(floor.0, key.as_bytes());
                    rounds += 1;
                    tokio::task::yield_now().await;
                }
                rounds
            }));
        }
        for round in 1..60u32 {
            for n in 0..40 {
                tree.apply(pair((round * 17 + n * 3) % 300, round));
                if n % 8 == 0 {
                    tokio::task::yield_now().await;
                }
            }
            flush(&tree).await;
            merge(&tree, &io).await;
        }
        done.set(true);
        for reader in readers {
            assert!(reader.await.unwrap() > 3);
        }
        for _ in 0..3 {
            merge(&tree, &io).await;
        }
        let used: u64 = tree.manifest().iter().flat_map(|run| &run.extents).map(|extent| extent.length).sum();
        assert_eq!(io.free_bytes() + used, 8192 / 5 * 5 * RUN_ALIGN_BYTES);
    });
}

#[test]
fn long_scans_come_in_parts_that_join() {
    run_local(async {
        let io = Memory::new(4096, 64);
        let options = TreeOptions { cache_bytes: 0, ..TreeOptions::default() };
        let tree = open(&io, &options, &[]).await.unwrap();
        for n in 0..3 * SCAN_MOMENT_ENTRIES as u32 {
            tree.apply([put(&n.to_be_bytes(), b"value")]);
        }
        flush(&tree).await;
        for limit in [SCAN_MOMENT_ENTRIES, SCAN_MOMENT_ENTRIES + 1, usize::MAX] {
            let all = tree.scan(Bound::Unbounded, Bound::Unbounded, limit).await.unwrap();
            assert_eq!(all.len(), limit.min(3 * SCAN_MOMENT_ENTRIES));
            assert!(all.iter().zip(0u32..).all(|((key, _), n)| *key == n.to_be_bytes()));
        }
    });
}

#[test]
fn absent_keys_cost_no_reads() {
    run_local(async {
        let io = Memory::new(4096, 64);
        let options = TreeOptions { block_bytes: 1024, ..TreeOptions::default() };
        let tree = open(&io, &options, &[]).await.unwrap();
        for round in 0..4u32 {
            for n in 0..2000u32 {
                tree.apply([put(&(n * 10 + round).to_be_bytes().repeat(5), b"value")]);
            }
            flush(&tree).await;
        }
        let before = io.reads.get();
        let mut needing_io = 0;
        for n in 0..2000u32 {
            match tree.try_get(&(n * 10 + 7).to_be_bytes().repeat(5)) {
                TryGet::Known(value) => assert_eq!(value, None),
                TryGet::NeedsIo => needing_io += 1,
            }
        }
        assert_eq!(io.reads.get(), before);
        assert!(needing_io < 2000 * 4 * 2 / 100, "{needing_io} of 2000");
    });
}

/// The number of runs stays small and every entry is rewritten only a few times.
#[test]
fn merges_bound_reads_and_writes() {
    run_local(async {
        let io = Memory::new(16384, 256);
        let options = TreeOptions { fanout: 4, compress: false, ..TreeOptions::default() };
        let tree = open(&io, &options, &[]).await.unwrap();
        let mut put_bytes = 0;
        let mut seed = 1u64;
        for _ in 0..120 {
            for _ in 0..400 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                tree.apply([put(&seed.to_be_bytes().repeat(3), &[3; 60])]);
                put_bytes += 84;
            }
            flush(&tree).await;
            for _ in 0..4 {
                merge(&tree, &io).await;
            }
            assert!(tree.manifest().len() <= 3 * 3, "{} runs", tree.manifest().len());
        }
        let factor = io.written_bytes.get() / put_bytes;
        assert!(factor <= 12, "every byte was written {factor} times");
    });
}

#[test]
fn tombstones_go_away() {
    run_local(async {
        let io = Memory::new(16384, 256);
        let tree = open(&io, &TreeOptions::default(), &[]).await.unwrap();
        for n in 0..70_000u32 {
            tree.apply([put(&n.to_be_bytes(), b"x")]);
        }
        flush(&tree).await;
        for n in 0..70_000u32 {
            tree.apply([(n.to_be_bytes().as_slice().into(), None)]);
        }
        flush(&tree).await;
        merge(&tree, &io).await;
        assert_eq!(tree.manifest(), []);
        assert_eq!(io.free_bytes(), 16384 * RUN_ALIGN_BYTES);
        assert_eq!(tree.scan(Bound::Unbounded, Bound::Unbounded, 1).await.unwrap(), []);
    });
}

#[test]
fn a_full_device_fails_flush_and_merge_and_loses_nothing() {
    run_local(async {
        let io = Memory::new(16, 4);
        let options = TreeOptions { compress: false, ..small_options() };
        let tree = open(&io, &options, &[]).await.unwrap();
        let mut model = Model::new();
        for n in 0..1000u32 {
            tree.apply([put(&n.to_be_bytes(), &[1; 100])]);
            model.insert(n.to_be_bytes().to_vec(), vec![1; 100]);
        }
        tree.freeze();
        for _ in 0..2 {
            let error = tree.flush_frozen().await.err().unwrap();
            assert_eq!(error.kind, StoreErrorKind::NoSpace);
            assert_eq!(io.free_bytes(), 16 * RUN_ALIGN_BYTES);
        }
        check_all(&tree, &model).await;
    });
}

/// Memory takes more than the run that comes of it: what counts on a full device is the run.
#[test]
fn a_flush_needs_no_more_room_than_its_run() {
    run_local(async {
        let io = Memory::new(16, 4);
        let tree = open(&io, &small_options(), &[]).await.unwrap();
        let mut model = Model::new();
        for n in 0..1000u32 {
            tree.apply([put(&n.to_be_bytes(), &[1; 8])]);
            model.insert(n.to_be_bytes().to_vec(), vec![1; 8]);
        }
        assert!(tree.memtable_bytes() as u64 > io.free_bytes());
        flush(&tree).await;
        assert!(tree.frozen_bytes() == 0 && io.free_bytes() > 0);
        check_all(&tree, &model).await;
    });
}

/// Whatever byte of a run is damaged: reads answer right or say `Corrupt`.
#[test]
fn every_flipped_byte_is_noticed() {
    run_local(async {
        for compress in [false, true] {
            let io = Memory::new(64, 2);
            let options = TreeOptions { compress, ..small_options() };
            let tree = open(&io, &options, &[]).await.unwrap();
            let mut model = Model::new();
            for n in 0..60u32 {
                let key = format!("key{:03}", n * 2).into_bytes();
                tree.apply([put(&key, &[n as u8; 5])]);
                model.insert(key, vec![n as u8; 5]);
            }
            flush(&tree).await;
            let manifest = tree.manifest();
            let handle = &manifest[0];
            let mut noticed = 0;
            for offset in 0..handle.bytes {
                let at = blocks::device_pieces(&handle.extents, offset, 1)[0].offset as usize;
                let flip = 1 << (offset % 8);
                io.bytes.borrow_mut()[at] ^= flip;
                noticed += usize::from(!reads_right_or_corrupt(&io, &options, &manifest, &model).await);
                io.bytes.borrow_mut()[at] ^= flip;
            }
            // There is no padding between blocks: every byte counts.
            assert_eq!(noticed as u64, handle.bytes);
            assert!(reads_right_or_corrupt(&io, &options, &manifest, &model).await);
            // The same for the handle.
            let mut encoded = Vec::new();
            handle.encode(&mut encoded);
            for index in 0..encoded.len() {
                let mut damaged = encoded.clone();
                damaged[index] ^= 1 << (index % 8);
                let Some(damaged) = RunHandle::decode(&mut damaged.as_slice()) else { continue };
                if damaged.extents.iter().all(|extent| extent.offset + extent.length <= 64 * RUN_ALIGN_BYTES) {
                    reads_right_or_corrupt(&io, &options, &[damaged], &model).await;
                }
            }
        }
    });
}

/// A merge that meets a damaged block fails once; the run stays, what is newer is merged without it, all else stays readable.
#[test]
fn a_damaged_run_is_left_out_of_merges() {
    run_local(async {
        let io = Memory::new(4096, 8);
        let tree = open(&io, &small_options(), &[]).await.unwrap();
        for round in 0..3u8 {
            for n in 0..50u8 {
                tree.apply([put(&[round, n], &[n; 30])]);
            }
            flush(&tree).await;
        }
        let second = &tree.manifest()[1];
        io.bytes.borrow_mut()[second.extents[0].offset as usize + 40] ^= 1;
        assert_eq!(tree.merge_step().await.err().unwrap().kind, StoreErrorKind::Corrupt);
        assert!(tree.merge_step().await.unwrap().is_none());
        for round in 3..6u8 {
            tree.apply([put(&[round, 0], b"new")]);
            flush(&tree).await;
        }
        merge(&tree, &io).await;
        assert_eq!(tree.manifest().len(), 3);
        assert_eq!(tree.manifest()[1].id, second.id);
        for key in [[0, 7], [1, 49], [2, 0], [5, 0]] {
            assert!(tree.get(&key).await.unwrap().is_some(), "{key:?}");
        }
        assert_eq!(tree.get(&[1, 0]).await.err().unwrap().kind, StoreErrorKind::Corrupt);
    });
}

async fn reads_right_or_corrupt(io: &Rc<Memory>, options: &TreeOptions, manifest: &[RunHandle], model: &Model) -> bool {
    let mut clean = true;
    let mut allow = |error: StoreError| {
        assert_eq!(error.kind, StoreErrorKind::Corrupt, "{error}");
        assert!(error.context.contains("run "), "{error}");
        clean = false;
    };
    let tree = match open(io, options, manifest).await {
        Ok(tree) => tree,
        Err(error) => {
            allow(error);
            return false;
        }
    };
    for (key, value) in model {
        match tree.get(key).await {
            Ok(got) => assert_eq!(got.as_ref(), Some(value)),
            Err(error) => allow(error),
        }
    }
    match tree.scan(Bound::Unbounded, Bound::Unbounded, usize::MAX).await {
        Ok(all) => assert_eq!(all, model.clone().into_iter().collect::<Vec<_>>()),
        Err(error) => allow(error),
    }
    match tree.floor(b"key", b"key051").await {
        Ok(found) => assert_eq!(found.unwrap().0, b"key050"),
        Err(error) => allow(error),
    }
    clean
}
