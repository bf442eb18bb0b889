//! Two mounts with kernels above them do random operations; every answer is compared with a model in memory. The kernels
//! here keep what real ones may keep: names, attributes and pages, until they are told to forget.
//!
//! `NACRE_SEED=n` runs one seed.

#[path = "smoke/cluster.rs"]
#[allow(dead_code, reason = "shared between tests")]
mod cluster;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use cluster::{Cluster, root, simulate};
use nacre_client::{
    Client, Entry, FileSystem, HandleId, KernelCache, LockOwner, LockRange, OpenMode, SpaceMode, WriteMode,
};
use nacre_reactor::Bytes;
use nacre_wire::layout::StripeHint;
use nacre_wire::mdt::{OpenFlags, RenameFlags};
use nacre_wire::{AttrPatch, Fid, Status};
use tokio::time::sleep;

const PAGE: u64 = 4096;
const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
const SIZE_MAX: u64 = 300_000;

/// What a kernel keeps.
#[derive(Default)]
struct Kernel {
    attrs: RefCell<BTreeMap<Fid, Entry>>,
    names: RefCell<BTreeMap<String, Option<Fid>>>,
    pages: RefCell<BTreeMap<(Fid, u64), Vec<u8>>>,
}

impl KernelCache for Kernel {
    async fn invalidate_attr(&self, fid: Fid) {
        self.attrs.borrow_mut().remove(&fid);
    }

    async fn invalidate_data(&self, fid: Fid, range: Range<u64>) {
        // It takes its time, as a kernel does.
        tokio::task::yield_now().await;
        self.attrs.borrow_mut().remove(&fid);
        self.pages.borrow_mut().retain(|(of, page), _| {
            *of != fid || (page + 1).saturating_mul(PAGE) <= range.start || page * PAGE >= range.end
        });
    }

    async fn invalidate_names(&self) {
        self.names.borrow_mut().clear();
    }
}

struct Mount {
    client: Rc<Client>,
    kernel: Rc<Kernel>,
    open: BTreeMap<Fid, HandleId>,
}

impl Mount {
    async fn lookup(&self, name: &str) -> Option<Fid> {
        if let Some(known) = self.kernel.names.borrow().get(name) {
            return *known;
        }
        match self.client.lookup(self.client.root(), name.as_bytes()).await {
            Ok(Some(entry)) => {
                if entry.keep_name {
                    self.kernel.names.borrow_mut().insert(name.to_owned(), Some(entry.fid));
                }
                self.keep(&entry);
                Some(entry.fid)
            }
            Ok(None) => {
                self.kernel.names.borrow_mut().insert(name.to_owned(), None);
                None
            }
            Err(Status::ENOENT) => None,
            Err(status) => panic!("lookup {name}: {status}"),
        }
    }

    fn keep(&self, entry: &Entry) {
        if entry.keep_attr {
            self.kernel.attrs.borrow_mut().insert(entry.fid, entry.clone());
        } else {
            self.kernel.attrs.borrow_mut().remove(&entry.fid);
        }
    }

    async fn stat(&self, fid: Fid) -> Entry {
        if let Some(known) = self.kernel.attrs.borrow().get(&fid) {
            return known.clone();
        }
        let entry = self.client.getattr(fid).await.unwrap();
        self.keep(&entry);
        entry
    }

    async fn handle(&mut self, fid: Fid) -> HandleId {
        if let Some(handle) = self.open.get(&fid) {
            return *handle;
        }
        let mode = OpenMode { flags: OpenFlags::READ | OpenFlags::WRITE, ..OpenMode::default() };
        let opened = self.client.open(&root(), fid, mode).await.unwrap();
        if !opened.keep_data {
            self.kernel.pages.borrow_mut().retain(|(of, _), _| *of != fid);
        }
        self.keep(&opened.entry);
        self.open.insert(fid, opened.handle);
        opened.handle
    }

    async fn read(&mut self, fid: Fid, range: Range<u64>) -> Vec<u8> {
        let handle = self.handle(fid).await;
        let size = self.stat(fid).await.attr.size;
        let mut out = Vec::new();
        for page in range.start / PAGE..range.end.div_ceil(PAGE) {
            let known = self.kernel.pages.borrow().get(&(fid, page)).cloned();
            let bytes = match known {
                Some(bytes) => bytes,
                None => {
                    let mut bytes = self.client.read(handle, page * PAGE, PAGE as usize).await.unwrap().concat();
                    bytes.resize(PAGE as usize, 0);
                    self.kernel.pages.borrow_mut().insert((fid, page), bytes.clone());
                    bytes
                }
            };
            out.extend(bytes);
        }
        let first = range.start / PAGE * PAGE;
        out.truncate((range.end.min(size)).saturating_sub(first) as usize);
        out.drain(..out.len().min((range.start - first) as usize));
        out
    }

    /// As the kernel does for a write past its cache: what it has of the range is not true any more.
    fn forget(&self, fid: Fid, range: Range<u64>) {
        self.kernel.attrs.borrow_mut().remove(&fid);
        self.kernel.pages.borrow_mut().retain(|(of, page), _| {
            *of != fid || (page + 1).saturating_mul(PAGE) <= range.start || page * PAGE >= range.end
        });
    }
}

#[derive(Default)]
struct Model {
    names: BTreeMap<&'static str, Fid>,
    files: BTreeMap<Fid, (Vec<u8>, u32)>,
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn range(&mut self) -> Range<u64> {
        let start = self.below(SIZE_MAX);
        let length = match self.below(3) {
            0 => 1 + self.below(10),
            1 => 1 + self.below(10_000),
            _ => 1 + self.below(150_000),
        };
        start..(start + length).min(SIZE_MAX)
    }
}

fn mount(cluster: &Cluster, number: u16) -> impl Future<Output = Mount> {
    let kernel = Rc::new(Kernel::default());
    let mounting = cluster.mount_under(100 + number, kernel.clone(), &[("dirty_age_ms", "100")]);
    async move { Mount { client: mounting.await, kernel, open: BTreeMap::new() } }
}

async fn run(seed: u64, steps: usize, faults: bool) {
    let cluster = Cluster::new().await;
    let mut random = Random(seed);
    let mut mounts = [mount(&cluster, 1).await, mount(&cluster, 2).await];
    let top = mounts[0].client.root();
    let hint = StripeHint { count: Some(1 + (seed % 2) as i32), size_bytes: Some(64 << 10), offset: None };
    mounts[0].client.set_stripe(&root(), top, hint).await.unwrap();
    let mut model = Model::default();
    for step in 0..steps {
        let me = random.below(2) as usize;
        let name = NAMES[random.below(NAMES.len() as u64) as usize];
        let at = format!("seed {seed} step {step} mount {me} name {name}");
        let mount = &mut mounts[me];
        let found = mount.lookup(name).await;
        assert_eq!(found, model.names.get(name).copied(), "{at}: lookup");
        let Some(fid) = found else {
            let mode = OpenMode { flags: OpenFlags::READ | OpenFlags::WRITE, ..OpenMode::default() };
            let made = mount.client.create(&root(), top, name.as_bytes(), 0o644, true, mode).await.expect(&at);
            mount.kernel.names.borrow_mut().remove(name);
            mount.open.insert(made.entry.fid, made.handle);
            model.names.insert(name, made.entry.fid);
            model.files.insert(made.entry.fid, (Vec::new(), 1));
            continue;
        };
        let (contents, nlink) = model.files.get_mut(&fid).unwrap();
        match random.below(20) {
            0..=4 => {
                let range = random.range();
                let handle = mount.handle(fid).await;
                let data: Vec<u8> = (range.clone()).map(|_| random.next() as u8).collect();
                let bytes = Bytes::from(data.clone());
                let mode = WriteMode::default();
                let written = mount.client.write(&root(), handle, range.start, bytes, mode).await;
                written.unwrap_or_else(|status| panic!("{at}: write {range:?}: {status}"));
                mount.forget(fid, range.clone());
                if contents.len() < range.end as usize {
                    contents.resize(range.end as usize, 0);
                }
                contents[range.start as usize..range.end as usize].copy_from_slice(&data);
            }
            5..=9 => {
                let range = random.range();
                let got = mount.read(fid, range.clone()).await;
                let end = contents.len().min(range.end as usize);
                let want = contents.get(range.start as usize..end).unwrap_or_default();
                let same = got == want;
                let first = got.iter().zip(want).position(|(a, b)| a != b);
                assert!(same, "{at}: read {range:?} got {} of {}, first wrong {first:?}", got.len(), want.len());
            }
            10..=12 => {
                let attr = mount.stat(fid).await.attr;
                assert_eq!((attr.size, attr.nlink), (contents.len() as u64, *nlink), "{at}: stat");
                let other = mounts[1 - me].stat(fid).await.attr;
                assert_eq!((other.mtime, other.ctime), (attr.mtime, attr.ctime), "{at}: times");
            }
            13 => {
                let size = random.below(SIZE_MAX);
                let patch = AttrPatch { size: Some(size), ..AttrPatch::default() };
                let entry = mount.client.setattr(&root(), fid, patch, None, false).await.expect(&at);
                assert_eq!(entry.attr.size, size, "{at}: truncate");
                mount.forget(fid, size.min(contents.len() as u64)..u64::MAX);
                mount.keep(&entry);
                contents.resize(size as usize, 0);
            }
            14 => {
                let range = random.range();
                let handle = mount.handle(fid).await;
                let keep_size = random.below(2) == 0;
                let (mode, zeroes, grows) = match random.below(3) {
                    0 => (SpaceMode::Punch, true, false),
                    1 => (SpaceMode::Zero { keep_size }, true, !keep_size),
                    _ => (SpaceMode::Allocate { keep_size }, false, !keep_size),
                };
                mount.client.space(handle, range.clone(), mode).await.expect(&at);
                mount.forget(fid, range.clone());
                if grows && contents.len() < range.end as usize {
                    contents.resize(range.end as usize, 0);
                }
                if zeroes {
                    let end = contents.len().min(range.end as usize);
                    if let Some(part) = contents.get_mut(range.start as usize..end) {
                        part.fill(0);
                    }
                }
            }
            15 => {
                let other = NAMES[random.below(NAMES.len() as u64) as usize];
                let kinds = [RenameFlags::empty(), RenameFlags::NOREPLACE, RenameFlags::EXCHANGE];
                let flags = kinds[random.below(3) as usize];
                let (old, new) = (name.as_bytes(), other.as_bytes());
                let outcome = mount.client.rename(&root(), top, old, top, new, flags).await;
                mount.kernel.names.borrow_mut().clear();
                mount.kernel.attrs.borrow_mut().clear();
                let there = model.names.get(other).copied();
                match (flags, there) {
                    (RenameFlags::NOREPLACE, Some(_)) => assert_eq!(outcome, Err(Status::EEXIST), "{at}"),
                    (RenameFlags::EXCHANGE, None) => assert_eq!(outcome, Err(Status::ENOENT), "{at}"),
                    (RenameFlags::EXCHANGE, Some(there)) => {
                        outcome.expect(&at);
                        model.names.insert(name, there);
                        model.names.insert(other, fid);
                    }
                    (_, Some(there)) if there == fid => outcome.expect(&at),
                    (_, there) => {
                        outcome.expect(&at);
                        model.names.remove(name);
                        model.names.insert(other, fid);
                        if let Some(there) = there {
                            model.files.get_mut(&there).unwrap().1 -= 1;
                        }
                    }
                }
            }
            16 => {
                let other = NAMES[random.below(NAMES.len() as u64) as usize];
                let outcome = mount.client.link(&root(), fid, top, other.as_bytes()).await;
                mount.kernel.names.borrow_mut().remove(other);
                mount.kernel.attrs.borrow_mut().remove(&fid);
                if model.names.contains_key(other) {
                    assert_eq!(outcome, Err(Status::EEXIST), "{at}");
                } else {
                    outcome.expect(&at);
                    model.names.insert(other, fid);
                    *nlink += 1;
                }
            }
            17 => {
                mount.client.unlink(&root(), top, name.as_bytes(), false).await.expect(&at);
                mount.kernel.names.borrow_mut().remove(name);
                mount.kernel.attrs.borrow_mut().remove(&fid);
                model.names.remove(name);
                *nlink -= 1;
            }
            18 => {
                if let Some(handle) = mount.open.remove(&fid) {
                    mount.client.release(handle, None).await.expect(&at);
                }
                let entries = mount.client.readdir(top, 2, 1 << 20, random.below(2) == 0).await.expect(&at);
                let mut listed: Vec<_> = entries.into_iter().map(|e| String::from_utf8(e.name).unwrap()).collect();
                listed.sort();
                assert_eq!(listed, model.names.keys().copied().collect::<Vec<_>>(), "{at}: readdir");
            }
            _ => {
                let handle = mount.handle(fid).await;
                match random.below(5) {
                    0 => mount.client.fsync(handle, false).await.expect(&at),
                    1 => sleep(Duration::from_millis(random.below(300))).await,
                    2 if faults => cluster.net.faults().cut_all(),
                    3 if faults && random.below(3) == 0 => {
                        let ost = random.below(2) as usize;
                        cluster.stop_ost(ost);
                        cluster.start_ost(ost).await;
                    }
                    4 if faults && random.below(3) == 0 => {
                        cluster.stop_mdt().await;
                        cluster.start_mdt().await;
                    }
                    _ => {
                        let from = random.below(SIZE_MAX);
                        let found = mount.client.seek(handle, from, true).await;
                        let size = contents.len() as u64;
                        match found {
                            Ok(hole) => {
                                assert!((from..=size).contains(&hole), "{at}: SEEK_HOLE {from} gave {hole} of {size}");
                                let zeros = contents[hole as usize..].iter().take(1).all(|byte| *byte == 0);
                                assert!(zeros, "{at}: a hole holds data");
                            }
                            Err(status) => assert!(status == Status::ENXIO && from >= size, "{at}: {status}"),
                        }
                    }
                }
            }
        }
    }
    for mount in mounts {
        for (fid, handle) in mount.open {
            mount.client.fsync(handle, false).await.unwrap_or_else(|status| panic!("seed {seed}: {fid}: {status}"));
            mount.client.release(handle, None).await.unwrap();
        }
        let left = mount.client.unmount(false, Duration::from_secs(60)).await;
        assert_eq!(left.lost_bytes, 0, "seed {seed}");
    }
}

fn seeds(count: u64) -> Vec<u64> {
    match std::env::var("NACRE_SEED") {
        Ok(seed) => vec![seed.parse().expect("NACRE_SEED is a number")],
        Err(_) => (0..count).collect(),
    }
}

/// Tasks of two mounts count up under file locks while others read, truncate elsewhere, list and stat: no count is lost, and
/// everything ends.
async fn count(seed: u64) {
    const TASKS: u64 = 6;
    const ROUNDS: u64 = 25;
    let cluster = Cluster::new().await;
    cluster.net.faults().set_delay({
        let mut random = Random(seed);
        move |_, _| Duration::from_micros(random.below(400))
    });
    let mounts = [mount(&cluster, 1).await, mount(&cluster, 2).await];
    let top = mounts[0].client.root();
    let hint = StripeHint { count: Some(2), size_bytes: Some(64 << 10), offset: None };
    mounts[0].client.set_stripe(&root(), top, hint).await.unwrap();
    let mode = OpenMode { flags: OpenFlags::READ | OpenFlags::WRITE, ..OpenMode::default() };
    let counters: [u64; 3] = [0, 4090, 70_000];
    let mut tasks = Vec::new();
    for task in 0..TASKS {
        let client = mounts[task as usize % 2].client.clone();
        let mut random = Random(seed * 100 + task);
        tasks.push(tokio::task::spawn_local(async move {
            let file = client.create(&root(), top, b"counters", 0o644, false, mode).await.unwrap();
            for round in 0..ROUNDS {
                let at = counters[(round % 3) as usize];
                let lock = LockRange { start: at, end: at + 7, exclusive: Some(true), pid: 1, bsd: false };
                client.set_lock(file.entry.fid, LockOwner(task), lock, true).await.unwrap();
                let old = client.read(file.handle, at, 8).await.unwrap().concat();
                let count = old.try_into().map_or(0, u64::from_le_bytes) + 1;
                let new = Bytes::copy_from_slice(&count.to_le_bytes());
                client.write(&root(), file.handle, at, new, WriteMode::default()).await.unwrap();
                let unlock = LockRange { exclusive: None, ..lock };
                client.set_lock(file.entry.fid, LockOwner(task), unlock, false).await.unwrap();
                match random.below(8) {
                    0 => drop(client.getattr(file.entry.fid).await.unwrap()),
                    1 => client.fsync(file.handle, false).await.unwrap(),
                    2 => drop(client.readdir(top, 0, 4096, true).await.unwrap()),
                    3 => {
                        let name = format!("own{task}");
                        let own = client.create(&root(), top, name.as_bytes(), 0o644, false, mode).await.unwrap();
                        let data = Bytes::from(vec![1; 100_000]);
                        client.write(&root(), own.handle, 0, data, WriteMode::default()).await.unwrap();
                        client.release(own.handle, None).await.unwrap();
                        client.unlink(&root(), top, name.as_bytes(), false).await.unwrap();
                    }
                    4 => {
                        let patch = AttrPatch { size: Some(200_000 + random.below(1000)), ..AttrPatch::default() };
                        client.setattr(&root(), file.entry.fid, patch, None, false).await.unwrap();
                    }
                    // A caller that gives up in the middle.
                    5 => {
                        let impatient = client.read(file.handle, 0, 100_000);
                        let _ = tokio::time::timeout(Duration::from_micros(random.below(800)), impatient).await;
                    }
                    _ => {}
                }
            }
            client.flush(file.handle, LockOwner(task)).await.unwrap();
            client.release(file.handle, None).await.unwrap();
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let file = mounts[0].client.create(&root(), top, b"counters", 0o644, false, mode).await.unwrap();
    let mut total = 0;
    for at in counters {
        let bytes = mounts[0].client.read(file.handle, at, 8).await.unwrap().concat();
        total += u64::from_le_bytes(bytes.try_into().unwrap());
    }
    assert_eq!(total, TASKS * ROUNDS, "seed {seed}");
    for mount in mounts {
        assert_eq!(mount.client.unmount(false, Duration::from_secs(60)).await.lost_bytes, 0, "seed {seed}");
    }
}

#[test]
fn counts_under_file_locks_are_not_lost() {
    for seed in seeds(15) {
        simulate(|| count(seed));
    }
}

#[test]
fn two_mounts_agree_with_a_model() {
    for seed in seeds(6) {
        simulate(|| run(seed, 400, false));
    }
}

#[test]
fn and_do_so_while_servers_come_and_go() {
    for seed in seeds(6) {
        simulate(|| run(seed, 400, true));
    }
}
