//! Random operations through [`FileSystem`], one at a time, each checked against the model on every mount.
//!
//! What an operation answers must be what the model answers, errors included; afterwards every mount must see what it
//! touched as the model has it. Contents are not always looked at from other mounts: that would leave nothing dirty.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use nacre_client::{FileSystem, HandleId, LockOwner, OpenMode, SpaceMode, WriteMode};
use nacre_reactor::Bytes;
use nacre_wire::attr::mode;
use nacre_wire::mdt::{Cred, OpenFlags, RenameFlags};
use nacre_wire::{AttrPatch, Fid, Status};
use tokio::time::{sleep, timeout};

use crate::cluster::{Cluster, Mount};
use crate::env::Rng;
use crate::model::{Model, Node, ROOT};
use crate::tree::{self, Tree};

/// An open file.
#[derive(Clone, Copy, Debug)]
struct Open {
    mount: usize,
    handle: HandleId,
    number: u64,
    append: bool,
    direct: bool,
}

/// Random operations on one tree.
pub struct Workload {
    cluster: Rc<Cluster>,
    mounts: Vec<Mount>,
    top: Fid,
    model: Model,
    fids: BTreeMap<u64, Fid>,
    opens: Vec<Open>,
    rng: Rng,
    done: u64,
    story: Story,
    /// Files that a mount has written and nobody else has read since: what a dead client takes along.
    unseen: BTreeMap<u64, usize>,
    /// Files whose contents were made stable and not changed since.
    synced: BTreeMap<u64, Vec<u8>>,
    /// Every tree there was, if [`Workload::remember`] was called.
    pictures: Option<Vec<Tree>>,
    /// Which of them was the first after the last change of names or attributes of an inode.
    touched: BTreeMap<u64, usize>,
    /// The first that a power loss may leave.
    stable_picture: usize,
}

/// The last operations, printed when a test fails.
struct Story {
    seed: u64,
    lines: VecDeque<String>,
}

impl Drop for Story {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for line in &self.lines {
                eprintln!("    {line}");
            }
            eprintln!("seed {0}: run this test again with NACRE_SIM_SEED={0}", self.seed);
        }
    }
}

impl Workload {
    /// Operations of these mounts below the directory `top`, which is empty.
    pub fn new(cluster: &Rc<Cluster>, mounts: Vec<Mount>, top: Fid, seed: u64) -> Workload {
        Workload {
            cluster: cluster.clone(),
            mounts,
            top,
            model: Model::default(),
            fids: BTreeMap::from([(ROOT, top)]),
            opens: Vec::new(),
            rng: Rng::new(seed.wrapping_mul(0x5851_f42d_4c95_7f2d)),
            done: 0,
            story: Story { seed, lines: VecDeque::new() },
            unseen: BTreeMap::new(),
            synced: BTreeMap::new(),
            pictures: None,
            touched: BTreeMap::new(),
            stable_picture: 0,
        }
    }

    /// Keeps what a power loss may leave, from now on.
    pub fn remember(&mut self) {
        self.pictures = Some(vec![tree::of_model(&self.model)]);
    }

    /// Operations done.
    pub fn done(&self) -> u64 {
        self.done
    }

    /// The mounts, to kill.
    pub fn mounts(&self) -> &[Mount] {
        &self.mounts
    }

    /// So many operations, a comparison of everything now and then.
    pub async fn run(&mut self, operations: u64) {
        for _ in 0..operations {
            self.step().await;
            if self.rng.below(200) == 0 {
                self.compare_all().await;
            }
        }
    }

    /// One operation and its checks.
    pub async fn step(&mut self) {
        self.done += 1;
        let mount = self.rng.below(self.mounts.len() as u64) as usize;
        match self.rng.below(100) {
            0..10 => self.create(mount).await,
            10..14 => self.mkdir(mount).await,
            14..17 => self.symlink(mount).await,
            17..20 => self.link(mount).await,
            20..26 => self.unlink(mount).await,
            26..28 => self.rmdir(mount).await,
            28..34 => self.rename(mount).await,
            34..40 => self.open(mount).await,
            40..45 => self.close().await,
            45..63 => self.write().await,
            63..68 => self.truncate(mount).await,
            68..76 => self.read().await,
            76..80 => self.xattr(mount).await,
            80..83 => self.chmod(mount).await,
            83..87 => self.fsync().await,
            87..89 => self.fsync_dir(mount).await,
            89..92 => self.space().await,
            92..95 => self.list(mount).await,
            95..97 => self.seek().await,
            _ => {
                let pause = Duration::from_millis(self.rng.below(2500));
                self.tell(format_args!("sleep {} ms", pause.as_millis()));
                sleep(pause).await;
            }
        }
        self.cluster.note(self.done);
        if let Some(pictures) = &mut self.pictures {
            let now = tree::of_model(&self.model);
            if pictures.last() != Some(&now) {
                pictures.push(now);
            }
        }
    }

    // ---- names ----

    async fn create(&mut self, mount: usize) {
        let (parent, name) = (self.a_dir(), self.a_name());
        let exclusive = self.rng.percent(50);
        let bits = 0o600 | self.rng.below(0o100) as u32;
        let how = self.an_open_mode();
        self.tell(format_args!("{mount}: create {parent}/{} exclusive {exclusive} {how:?}", show(&name)));
        let client = self.mounts[mount].client.clone();
        let there = self.model.lookup(parent, &name).ok();
        let want = match there.map(|number| &self.model.inode(number).node) {
            Some(_) if exclusive => Err(Status::EEXIST),
            Some(Node::Dir(_)) => Err(Status::EISDIR),
            // The kernel follows links; what a filesystem says here does not matter.
            Some(Node::Symlink(_)) => return,
            Some(Node::File(_)) | None => Ok(()),
        };
        let parent_fid = self.fids[&parent];
        let got = within(client.create(&root(), parent_fid, &name, bits, exclusive, how)).await;
        assert_eq!(got.as_ref().map(|_| ()).map_err(|status| *status), want, "create");
        let Ok(opened) = got else { return };
        let number = match there {
            Some(number) => number,
            None => {
                let number = self.model.create(parent, &name, Node::File(Vec::new()), bits).expect("not there");
                self.fids.insert(number, opened.entry.fid);
                number
            }
        };
        assert_eq!(opened.entry.fid, self.fids[&number]);
        if there.is_none() {
            self.touch(&[parent, number]);
        }
        self.opened(mount, opened.handle, number, how);
        self.check(&[parent, number]).await;
        self.check_name(parent, &name).await;
    }

    async fn mkdir(&mut self, mount: usize) {
        let (parent, name) = (self.a_dir(), self.a_name());
        self.tell(format_args!("{mount}: mkdir {parent}/{}", show(&name)));
        let got = within(self.mounts[mount].client.mkdir(&root(), self.fids[&parent], &name, 0o755)).await;
        let want = self.model.create(parent, &name, Node::Dir(BTreeMap::new()), 0o755);
        self.made(parent, &name, want, got.map(|entry| entry.fid)).await;
    }

    async fn symlink(&mut self, mount: usize) {
        let (parent, name) = (self.a_dir(), self.a_name());
        let target = vec![b't'; 1 + self.rng.below(300) as usize];
        self.tell(format_args!("{mount}: symlink {parent}/{}", show(&name)));
        let got = within(self.mounts[mount].client.symlink(&root(), self.fids[&parent], &name, &target)).await;
        let want = self.model.create(parent, &name, Node::Symlink(target), 0o777);
        self.made(parent, &name, want, got.map(|entry| entry.fid)).await;
    }

    async fn made(&mut self, parent: u64, name: &[u8], want: Result<u64, Status>, got: Result<Fid, Status>) {
        assert_eq!(got.map(|_| ()), want.map(|_| ()));
        if let (Ok(number), Ok(fid)) = (want, got) {
            self.fids.insert(number, fid);
            self.touch(&[parent, number]);
            self.check(&[parent, number]).await;
        }
        self.check_name(parent, name).await;
    }

    async fn link(&mut self, mount: usize) {
        let (parent, name) = (self.a_dir(), self.a_name());
        let Some(number) = self.a_named_file() else { return };
        self.tell(format_args!("{mount}: link {number} as {parent}/{}", show(&name)));
        let (fid, parent_fid) = (self.fids[&number], self.fids[&parent]);
        let got = within(self.mounts[mount].client.link(&root(), fid, parent_fid, &name)).await;
        let want = self.model.link(number, parent, &name);
        assert_eq!(got.map(|entry| entry.fid), want.map(|()| fid), "link");
        if want.is_ok() {
            self.touch(&[parent, number]);
        }
        self.check(&[parent, number]).await;
        self.check_name(parent, &name).await;
    }

    async fn unlink(&mut self, mount: usize) {
        let (parent, name) = self.an_entry();
        self.tell(format_args!("{mount}: unlink {parent}/{}", show(&name)));
        let got = within(self.mounts[mount].client.unlink(&root(), self.fids[&parent], &name, false)).await;
        let number = self.model.lookup(parent, &name).ok();
        let want = self.model.unlink(parent, &name, false);
        assert_eq!(got, want, "unlink");
        if want.is_ok() {
            self.touch(&[parent]);
            self.touch(number.as_slice());
        }
        self.check(&[parent]).await;
        self.check(number.as_slice()).await;
        self.check_name(parent, &name).await;
    }

    async fn rmdir(&mut self, mount: usize) {
        let (parent, name) = self.an_entry();
        self.tell(format_args!("{mount}: rmdir {parent}/{}", show(&name)));
        let got = within(self.mounts[mount].client.unlink(&root(), self.fids[&parent], &name, true)).await;
        let want = self.model.unlink(parent, &name, true);
        assert_eq!(got, want, "rmdir");
        if want.is_ok() {
            self.touch(&[parent]);
        }
        self.check(&[parent]).await;
        self.check_name(parent, &name).await;
    }

    async fn rename(&mut self, mount: usize) {
        let (from, name) = self.an_entry();
        let (to, new_name) = if self.rng.percent(40) { self.an_entry() } else { (self.a_dir(), self.a_name()) };
        let flags = match self.rng.below(6) {
            0 => RenameFlags::NOREPLACE,
            1 => RenameFlags::EXCHANGE,
            _ => RenameFlags::empty(),
        };
        self.tell(format_args!("{mount}: rename {from}/{} to {to}/{} {flags:?}", show(&name), show(&new_name)));
        let client = self.mounts[mount].client.clone();
        let (from_fid, to_fid) = (self.fids[&from], self.fids[&to]);
        let got = within(client.rename(&root(), from_fid, &name, to_fid, &new_name, flags)).await;
        let moved = [self.model.lookup(from, &name).ok(), self.model.lookup(to, &new_name).ok()];
        let want = if flags == RenameFlags::EXCHANGE {
            self.model.exchange(from, &name, to, &new_name)
        } else if flags == RenameFlags::NOREPLACE && moved[0].is_some() && moved[1].is_some() {
            Err(Status::EEXIST)
        } else {
            self.model.rename(from, &name, to, &new_name)
        };
        assert_eq!(got, want, "rename");
        // Both names of one file: nothing happens.
        if want.is_ok() && moved[0] != moved[1] {
            self.touch(&[from, to]);
            moved.into_iter().flatten().for_each(|number| self.touch(&[number]));
        }
        self.check(&[from, to]).await;
        for number in moved.into_iter().flatten() {
            self.check(&[number]).await;
        }
        self.check_name(from, &name).await;
        self.check_name(to, &new_name).await;
    }

    async fn list(&mut self, mount: usize) {
        let dir = self.a_dir();
        self.tell(format_args!("{mount}: list {dir}"));
        self.check_list(mount, dir).await;
    }

    // ---- open files ----

    async fn open(&mut self, mount: usize) {
        let Some(number) = self.a_file() else { return };
        let mut how = self.an_open_mode();
        let truncates = self.rng.percent(15);
        if truncates {
            how.flags |= OpenFlags::TRUNCATE;
        }
        self.tell(format_args!("{mount}: open {number} {how:?}"));
        let opened = within(self.mounts[mount].client.open(&root(), self.fids[&number], how)).await;
        let opened = opened.unwrap_or_else(|status| panic!("open: {status}"));
        if truncates {
            self.model.truncate(number, 0);
            self.changed(number, None);
        }
        self.opened(mount, opened.handle, number, how);
        self.check(&[number]).await;
    }

    fn opened(&mut self, mount: usize, handle: HandleId, number: u64, how: OpenMode) {
        self.model.open(number);
        self.opens.push(Open { mount, handle, number, append: how.append, direct: how.direct || how.sync });
    }

    async fn close(&mut self) {
        let Some(at) = self.an_open() else { return };
        let Open { mount, handle, number, .. } = self.opens.swap_remove(at);
        self.tell(format_args!("{mount}: close {number} {handle:?}"));
        let client = self.mounts[mount].client.clone();
        assert_eq!(within(client.flush(handle, LockOwner(1))).await, Ok(()), "flush");
        assert_eq!(within(client.release(handle, None)).await, Ok(()), "release");
        self.model.close(number);
        if self.model.exists(number) {
            self.check(&[number]).await;
        }
    }

    async fn write(&mut self) {
        let Some(at) = self.an_open() else { return };
        let Open { mount, handle, number, append, direct } = self.opens[at];
        let size = self.model.file(number).map_or(0, <[u8]>::len) as u64;
        let offset = match self.rng.below(4) {
            0 => size,
            1 => self.rng.below(FILE_BYTES_MAX),
            2 => self.rng.below(size + 1),
            _ => self.rng.below(FILE_BYTES_MAX) & !4095,
        };
        let length = match self.rng.below(4) {
            0 => 1 + self.rng.below(100),
            1 => 4096,
            2 => 1 + self.rng.below(5000),
            _ => 1 + self.rng.below(90_000),
        };
        let data: Vec<u8> = {
            let start = self.rng.next();
            (0..length).map(|at| (start.wrapping_add(at.wrapping_mul(7)) % 251) as u8 + 1).collect()
        };
        let at = if append { size } else { offset };
        if at + length > 2 * FILE_BYTES_MAX {
            return;
        }
        self.tell(format_args!("{mount}: write {number} {at}+{length} append {append} direct {direct}"));
        let client = self.mounts[mount].client.clone();
        let bytes = Bytes::from(data.clone());
        assert_eq!(within(client.write(&root(), handle, offset, bytes, WriteMode::default())).await, Ok(()), "write");
        self.model.write(number, at as usize, &data);
        self.changed(number, (!direct).then_some(mount));
        self.check_contents(mount, number).await;
        self.check(&[number]).await;
        if self.rng.percent(25) {
            self.check_contents(self.mounts.len() - 1 - mount, number).await;
        }
    }

    async fn truncate(&mut self, mount: usize) {
        let Some(number) = self.a_file() else { return };
        let size = match self.rng.below(3) {
            0 => 0,
            1 => self.rng.below(self.model.file(number).map_or(0, <[u8]>::len) as u64 + 1),
            _ => self.rng.below(FILE_BYTES_MAX),
        };
        self.tell(format_args!("{mount}: truncate {number} to {size}"));
        let patch = AttrPatch { size: Some(size), ..AttrPatch::default() };
        let client = self.mounts[mount].client.clone();
        let got = within(client.setattr(&root(), self.fids[&number], patch, None, false)).await;
        let entry = got.unwrap_or_else(|status| panic!("truncate: {status}"));
        assert_eq!(entry.attr.size, size, "size after truncate");
        self.model.truncate(number, size as usize);
        self.changed(number, None);
        self.check_contents(mount, number).await;
        self.check(&[number]).await;
    }

    async fn space(&mut self) {
        let Some(at) = self.an_open() else { return };
        let Open { mount, handle, number, .. } = self.opens[at];
        let keep_size = self.rng.percent(50);
        let how = match self.rng.below(3) {
            0 => SpaceMode::Punch,
            1 => SpaceMode::Allocate { keep_size },
            _ => SpaceMode::Zero { keep_size },
        };
        let start = self.rng.below(FILE_BYTES_MAX);
        let end = start + 1 + self.rng.below(100_000);
        // Files without objects have nothing to reserve yet; `write` makes some.
        if within(self.mounts[mount].client.layout(self.fids[&number])).await == Ok(None) {
            return;
        }
        self.tell(format_args!("{mount}: space {number} {start}..{end} {how:?}"));
        let got = within(self.mounts[mount].client.space(handle, start..end, how)).await;
        assert_eq!(got, Ok(()), "fallocate");
        let size = self.model.file(number).map_or(0, <[u8]>::len);
        let grows = matches!(how, SpaceMode::Allocate { keep_size: false } | SpaceMode::Zero { keep_size: false });
        if !matches!(how, SpaceMode::Allocate { .. }) && (start as usize) < size {
            let zeros = vec![0; size.min(end as usize) - start as usize];
            self.model.write(number, start as usize, &zeros);
        }
        if grows && end as usize > size {
            self.model.truncate(number, end as usize);
        }
        self.changed(number, Some(mount));
        self.check_contents(mount, number).await;
        self.check(&[number]).await;
    }

    async fn read(&mut self) {
        let Some(at) = self.an_open() else { return };
        let Open { mount, handle, number, .. } = self.opens[at];
        let offset = self.rng.below(FILE_BYTES_MAX) as usize;
        let length = 1 + self.rng.below(150_000) as usize;
        self.tell(format_args!("{mount}: read {number} {offset}+{length}"));
        let got = within(self.mounts[mount].client.read(handle, offset as u64, length)).await;
        let got = got.unwrap_or_else(|status| panic!("read: {status}")).concat();
        let all = self.model.file(number).expect("files are opened");
        let want = &all[offset.min(all.len())..(offset + length).min(all.len())];
        if let Some(what) = tree::difference_of_bytes(want, &got) {
            panic!("read {number} at {offset}: {what}");
        }
    }

    async fn seek(&mut self) {
        let Some(at) = self.an_open() else { return };
        let Open { mount, handle, number, .. } = self.opens[at];
        let all = self.model.file(number).expect("files are opened").to_vec();
        let offset = self.rng.below(all.len() as u64 + 10);
        self.tell(format_args!("{mount}: seek data {number} from {offset}"));
        let got = within(self.mounts[mount].client.seek(handle, offset, false)).await;
        let first = all.iter().skip(offset as usize).position(|byte| *byte != 0).map(|at| at as u64 + offset);
        match (got, first) {
            // Zeros may be data; data is never a hole.
            (Ok(found), Some(first)) => assert!(found >= offset && found <= first, "data at {first}, found {found}"),
            (Ok(found), None) => assert!(found >= offset && found < all.len() as u64, "data past the end at {found}"),
            (Err(Status::ENXIO), first) => assert_eq!(first, None, "data not found"),
            (Err(status), _) => panic!("seek: {status}"),
        }
    }

    async fn fsync(&mut self) {
        let Some(at) = self.an_open() else { return };
        let Open { mount, handle, number, .. } = self.opens[at];
        self.tell(format_args!("{mount}: fsync {number}"));
        assert_eq!(within(self.mounts[mount].client.fsync(handle, false)).await, Ok(()), "fsync");
        // What is dirty at another client stays so.
        if self.unseen.get(&number).is_none_or(|writer| *writer == mount) {
            self.unseen.remove(&number);
            let bytes = self.model.file(number).expect("files are opened").to_vec();
            self.synced.insert(number, bytes);
        }
        self.made_stable(number);
    }

    async fn fsync_dir(&mut self, mount: usize) {
        let dir = self.a_dir();
        self.tell(format_args!("{mount}: fsync directory {dir}"));
        assert_eq!(within(self.mounts[mount].client.fsync_dir(self.fids[&dir])).await, Ok(()), "fsync of a directory");
        self.made_stable(dir);
    }

    // ---- attributes ----

    async fn xattr(&mut self, mount: usize) {
        let Some(number) = self.a_named() else { return };
        // user.* is for files and directories (xattr(7)).
        if matches!(self.model.inode(number).node, Node::Symlink(_)) {
            return;
        }
        let name = format!("user.x{}", self.rng.below(3)).into_bytes();
        let client = self.mounts[mount].client.clone();
        let fid = self.fids[&number];
        let there = self.model.inode(number).xattrs.contains_key(&name);
        if self.rng.percent(30) {
            self.tell(format_args!("{mount}: remove xattr {number} {}", show(&name)));
            let want = if there { Ok(()) } else { Err(Status::ENODATA) };
            assert_eq!(within(client.removexattr(&root(), fid, &name)).await, want, "removexattr");
            self.model.inode_mut(number).xattrs.remove(&name);
        } else {
            let length = if self.rng.percent(10) { self.rng.below(9000) } else { self.rng.below(50) };
            let value = vec![self.rng.below(255) as u8; length as usize];
            let (create, replace) = match self.rng.below(4) {
                0 => (true, false),
                1 => (false, true),
                _ => (false, false),
            };
            self.tell(format_args!("{mount}: set xattr {number} {} {length} bytes {create} {replace}", show(&name)));
            let want = match there {
                true if create => Err(Status::EEXIST),
                false if replace => Err(Status::ENODATA),
                _ => Ok(()),
            };
            assert_eq!(within(client.setxattr(&root(), fid, &name, &value, create, replace)).await, want, "setxattr");
            if want.is_ok() {
                self.model.inode_mut(number).xattrs.insert(name, value);
            }
        }
        self.touch(&[number]);
        for mount in self.mounts.clone() {
            let names = within(mount.client.listxattr(&root(), fid)).await.unwrap_or_else(|s| panic!("listxattr: {s}"));
            let names: BTreeSet<Vec<u8>> = names.into_iter().collect();
            let want: BTreeSet<Vec<u8>> = self.model.inode(number).xattrs.keys().cloned().collect();
            assert_eq!(names, want, "listxattr");
            for (name, value) in &self.model.inode(number).xattrs {
                assert_eq!(within(mount.client.getxattr(&root(), fid, name)).await.as_ref(), Ok(value), "getxattr");
            }
        }
    }

    async fn chmod(&mut self, mount: usize) {
        let Some(number) = self.a_named() else { return };
        if matches!(self.model.inode(number).node, Node::Symlink(_)) {
            return;
        }
        let bits = 0o400 | self.rng.below(0o1000) as u32;
        self.tell(format_args!("{mount}: chmod {number} {bits:o}"));
        let patch = AttrPatch { mode: Some(bits), ..AttrPatch::default() };
        let got = within(self.mounts[mount].client.setattr(&root(), self.fids[&number], patch, None, false)).await;
        assert_eq!(got.map(|entry| entry.attr.mode & 0o7777), Ok(bits), "chmod");
        self.model.inode_mut(number).mode = bits;
        self.touch(&[number]);
        self.check(&[number]).await;
    }

    // ---- checks ----

    /// Every mount sees the attributes that the model has.
    async fn check(&mut self, numbers: &[u64]) {
        for number in numbers {
            if !self.model.exists(*number) {
                continue;
            }
            let fid = self.fids[number];
            let mut times = Vec::new();
            for (at, mount) in self.mounts.clone().into_iter().enumerate() {
                let attr = match within(mount.client.getattr(fid)).await {
                    Ok(entry) => entry.attr,
                    Err(status) => panic!("mount {at} cannot see {number}: {status}"),
                };
                let inode = self.model.inode(*number);
                let kind = match &inode.node {
                    Node::File(_) => mode::FILE,
                    Node::Dir(_) => mode::DIR,
                    Node::Symlink(_) => mode::SYMLINK,
                };
                assert_eq!(
                    (attr.mode, attr.nlink),
                    (kind | inode.mode, inode.nlink),
                    "mode, nlink of {number} at {at}"
                );
                match &inode.node {
                    Node::File(bytes) => assert_eq!(attr.size, bytes.len() as u64, "size of {number} at {at}"),
                    Node::Symlink(target) => assert_eq!(attr.size, target.len() as u64, "size of {number} at {at}"),
                    Node::Dir(_) => {}
                }
                times.push((attr.mtime, attr.ctime));
            }
            times.dedup();
            assert_eq!(times.len(), 1, "times of {number} differ: {times:?}");
        }
        self.cluster.note(numbers.len() as u64);
    }

    /// Every mount finds a name, or does not.
    async fn check_name(&mut self, parent: u64, name: &[u8]) {
        if !self.model.exists(parent) {
            return;
        }
        let want = self.model.lookup(parent, name).ok().map(|number| self.fids[&number]);
        for (at, mount) in self.mounts.clone().into_iter().enumerate() {
            let got = match within(mount.client.lookup(self.fids[&parent], name)).await {
                Ok(entry) => entry.map(|entry| entry.fid),
                Err(Status::ENOENT) => None,
                Err(status) => panic!("lookup of {} at {at}: {status}", show(name)),
            };
            assert_eq!(got, want, "{parent}/{} at mount {at}", show(name));
        }
        if self.rng.percent(20) {
            let mount = self.rng.below(self.mounts.len() as u64) as usize;
            self.check_list(mount, parent).await;
        }
    }

    async fn check_list(&mut self, mount: usize, dir: u64) {
        let page_bytes = 100 + self.rng.below(4000) as u32;
        let plus = self.rng.percent(50);
        let got = within(tree::list(&self.mounts[mount], self.fids[&dir], page_bytes, plus)).await;
        let got = got.unwrap_or_else(|status| panic!("listing {dir}: {status}"));
        let entries = self.model.dir(dir).expect("it is a directory");
        let want: BTreeMap<Vec<u8>, Fid> = entries.iter().map(|(name, n)| (name.clone(), self.fids[n])).collect();
        assert_eq!(got, want, "listing of {dir} at mount {mount}");
    }

    async fn check_contents(&mut self, mount: usize, number: u64) {
        let got = within(tree::contents(&self.mounts[mount], self.fids[&number])).await;
        let got = got.unwrap_or_else(|status| panic!("mount {mount} cannot read {number}: {status}"));
        if let Some(what) = tree::difference_of_bytes(self.model.file(number).expect("it is a file"), &got) {
            panic!("contents of {number} at mount {mount}: {what}");
        }
        if self.unseen.get(&number).is_some_and(|writer| *writer != mount) {
            self.unseen.remove(&number);
        }
    }

    /// Every mount sees all of the model.
    ///
    /// # Panics
    /// When one does not.
    pub async fn compare_all(&mut self) {
        self.tell(format_args!("compare everything"));
        let want = tree::of_model(&self.model);
        for (at, mount) in self.mounts.clone().iter().enumerate() {
            let page_bytes = 100 + self.rng.below(4000) as u32;
            let plus = self.rng.percent(50);
            let got = timeout(LONG, tree::of_mount(mount, self.top, page_bytes, plus)).await.expect("a walk ends");
            let got = got.unwrap_or_else(|status| panic!("mount {at} cannot be walked: {status}"));
            if let Some(what) = tree::difference(&want, &got) {
                panic!("mount {at}: {what}");
            }
        }
        if self.mounts.len() > 1 {
            self.unseen.clear();
        }
    }

    /// Closes all files.
    pub async fn close_all(&mut self) {
        while !self.opens.is_empty() {
            self.close().await;
        }
    }

    // ---- what dies ----

    /// A client dies, and another mounts in its place. What it had written and nobody had seen may be lost: that is taken
    /// from what is left, so long as it is a state that those bytes could be in.
    pub async fn replace_mount(&mut self, at: usize) {
        self.tell(format_args!("{at}: the client dies"));
        let cluster = self.cluster.clone();
        let dead = self.mounts[at].clone();
        cluster.kill_mount(dead);
        let mount = timeout(LONG, cluster.mount()).await.expect("a mount ends");
        self.mounts[at] = mount.clone();
        let (gone, left) = self.opens.drain(..).partition(|open: &Open| open.mount == at);
        self.opens = left;
        let gone: Vec<Open> = gone;
        for open in gone {
            self.model.close(open.number);
        }
        let unseen: Vec<u64> = self.unseen.iter().filter(|(_, writer)| **writer == at).map(|(file, _)| *file).collect();
        for number in unseen {
            self.unseen.remove(&number);
            if !self.model.exists(number) {
                continue;
            }
            let found = timeout(LONG, tree::contents(&mount, self.fids[&number])).await.expect("a read ends");
            let found = found.unwrap_or_else(|status| panic!("{number} cannot be read: {status}"));
            let was = self.model.file(number).expect("it is a file");
            assert!(found.len() <= was.len().max(2 * FILE_BYTES_MAX as usize), "{number} has grown");
            self.model.truncate(number, found.len());
            self.model.write(number, 0, &found);
        }
        self.compare_all().await;
    }

    /// All mounts are gone and the servers have lost their power. A new mount must see the tree of some moment since all
    /// that was synced, and the contents of every file that was synced and not touched since.
    ///
    /// # Panics
    /// When it does not, or when [`Workload::remember`] was not called.
    pub async fn compare_after_power_loss(self, mount: &Mount) {
        let pictures = self.pictures.as_ref().expect("remember() was called");
        let got = timeout(LONG, tree::of_mount(mount, self.top, 4096, false)).await.expect("a walk ends");
        let got = got.unwrap_or_else(|status| panic!("what is left cannot be walked: {status}"));
        let bare = |tree: &Tree| -> Tree {
            let without_data = |seen: &tree::Seen| tree::Seen { data: None, ..seen.clone() };
            tree.iter().map(|(path, seen)| (path.clone(), without_data(seen))).collect()
        };
        let left = bare(&got);
        let pictures = &pictures[self.stable_picture..];
        if !pictures.iter().any(|picture| bare(picture) == left) {
            let first = tree::difference(&bare(&pictures[0]), &left);
            let last = tree::difference(&bare(&pictures[pictures.len() - 1]), &left);
            panic!("no tree of {} since the last sync is left; first: {first:?}, last: {last:?}", pictures.len());
        }
        for (number, want) in &self.synced {
            let fid = self.fids[number];
            match tree::contents(mount, fid).await {
                Ok(found) => {
                    if let Some(what) = tree::difference_of_bytes(want, &found) {
                        panic!("{number} was synced: {what}");
                    }
                }
                // Its last name went later, or it had none.
                Err(Status::ENOENT) => {
                    let gone = !self.model.exists(*number) || self.model.inode(*number).nlink == 0;
                    assert!(gone, "{number} was synced and is gone");
                }
                Err(status) => panic!("{number} was synced and cannot be read: {status}"),
            }
        }
    }

    /// Names or attributes of inodes have changed; the next picture is the first to show it.
    fn touch(&mut self, numbers: &[u64]) {
        if let Some(pictures) = &self.pictures {
            self.touched.extend(numbers.iter().map(|number| (*number, pictures.len())));
        }
    }

    /// An inode is on stable media, and with it all that happened before its last change.
    fn made_stable(&mut self, number: u64) {
        if let Some(pictures) = &self.pictures {
            let touched = self.touched.get(&number).copied().unwrap_or(0);
            self.stable_picture = self.stable_picture.max(touched.min(pictures.len() - 1));
        }
    }

    // ---- choices ----

    /// Contents of a file change; `dirty`: the mount that may still hold the change.
    fn changed(&mut self, number: u64, dirty: Option<usize>) {
        self.synced.remove(&number);
        if let Some(mount) = dirty {
            self.unseen.insert(number, mount);
        }
    }

    fn a_dir(&mut self) -> u64 {
        let dirs: Vec<u64> = self.numbers(|node| matches!(node, Node::Dir(_)));
        // The top is always there.
        dirs[self.rng.below(dirs.len() as u64) as usize]
    }

    fn a_file(&mut self) -> Option<u64> {
        let files = self.numbers(|node| matches!(node, Node::File(_)));
        self.pick(&files)
    }

    fn a_named_file(&mut self) -> Option<u64> {
        let mut files = self.numbers(|node| !matches!(node, Node::Dir(_)));
        files.retain(|number| self.model.inode(*number).nlink > 0);
        self.pick(&files)
    }

    fn a_named(&mut self) -> Option<u64> {
        let mut files = self.numbers(|_| true);
        files.retain(|number| self.model.inode(*number).nlink > 0);
        self.pick(&files)
    }

    fn numbers(&self, wanted: impl Fn(&Node) -> bool) -> Vec<u64> {
        self.model.numbers().filter(|number| wanted(&self.model.inode(*number).node)).collect()
    }

    fn pick(&mut self, from: &[u64]) -> Option<u64> {
        (!from.is_empty()).then(|| from[self.rng.below(from.len() as u64) as usize])
    }

    fn an_open(&mut self) -> Option<usize> {
        (!self.opens.is_empty()).then(|| self.rng.below(self.opens.len() as u64) as usize)
    }

    /// A name that is mostly there.
    fn an_entry(&mut self) -> (u64, Vec<u8>) {
        let names = self.model.walk();
        if names.is_empty() || self.rng.percent(10) {
            return (self.a_dir(), self.a_name());
        }
        let (parent, name, _) = names[self.rng.below(names.len() as u64) as usize].clone();
        (parent, name)
    }

    /// One of few names, so that they meet; some are as long as names get.
    fn a_name(&mut self) -> Vec<u8> {
        let letter = b'a' + self.rng.below(8) as u8;
        let length = if self.rng.percent(5) { 255 } else { 1 };
        vec![letter; length]
    }

    fn an_open_mode(&mut self) -> OpenMode {
        OpenMode {
            flags: OpenFlags::READ | OpenFlags::WRITE,
            append: self.rng.percent(20),
            direct: self.rng.percent(8),
            sync: self.rng.percent(5),
        }
    }

    fn tell(&mut self, what: fmt::Arguments<'_>) {
        if self.story.lines.len() == STORY_LINES {
            self.story.lines.pop_front();
        }
        let line = format!("{} at {} ms: {what}", self.done, self.cluster.env.now().as_millis());
        self.cluster.tell(&line);
        self.story.lines.push_back(line);
    }
}

/// Waits for an operation, for as long as recovery of everything may take.
async fn within<T>(operation: impl Future<Output = T>) -> T {
    timeout(LONG, operation).await.unwrap_or_else(|_| panic!("no answer in {} s", LONG.as_secs()))
}

fn root() -> Cred {
    Cred::default()
}

fn show(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    if name.len() > 8 { format!("{}…", &text[..1]) } else { text.into_owned() }
}

/// Writes begin below this.
const FILE_BYTES_MAX: u64 = 400_000;
const LONG: Duration = Duration::from_secs(300);
const STORY_LINES: usize = 60;
