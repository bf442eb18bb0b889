//! A filesystem in memory, as simple as it can be and still right: the other side of the mount in these tests.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;

use nacre_client::{
    DirEntry, Entry, FileSystem, HandleId, LockOwner, LockRange, MountStatfs, OpenMode, Opened, SpaceMode, WriteMode,
};
use nacre_reactor::{Bytes, Env};
use nacre_wire::attr::mode;
use nacre_wire::fid::SEQ_NORMAL;
use nacre_wire::layout::{Stripe, StripeHint};
use nacre_wire::mdt::{Cred, OpenFlags, RenameFlags};
use nacre_wire::{Attr, AttrPatch, Fid, Layout, Status};
use tokio::sync::Notify;

pub const FILE_BYTES_MAX: u64 = 1 << 50;
const CHUNK: u64 = 64 << 10;

pub struct MemFs {
    root: Fid,
    env: Env,
    nodes: RefCell<BTreeMap<Fid, Node>>,
    handles: RefCell<BTreeMap<u64, (Fid, OpenMode)>>,
    next: Cell<u64>,
    locks: RefCell<Vec<(Fid, LockOwner, LockRange)>>,
    unlocked: Notify,
    /// Calls named here ("read", "lookup hang") wait until the name is taken out and `resume` notified.
    pub stalled: RefCell<BTreeSet<String>>,
    pub resume: Notify,
    /// Whether the kernel may cache.
    pub keep: Cell<bool>,
    /// How often each call was made.
    pub calls: RefCell<BTreeMap<&'static str, u64>>,
}

#[derive(Default)]
struct Node {
    attr: Attr,
    parent: Fid,
    /// Name to (cookie, child); a cookie is never reused.
    names: BTreeMap<Vec<u8>, (u64, Fid)>,
    by_cookie: BTreeMap<u64, Vec<u8>>,
    chunks: BTreeMap<u64, Bytes>,
    target: Vec<u8>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    stripe: StripeHint,
    opens: u32,
}

impl MemFs {
    pub fn new(root: Fid) -> Rc<MemFs> {
        let env = Env::system();
        let now = env.wall();
        let attr = Attr {
            mode: mode::DIR | 0o777,
            nlink: 2,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            ..Attr::default()
        };
        let node = Node { attr, parent: root, ..Node::default() };
        Rc::new(MemFs {
            root,
            env,
            nodes: RefCell::new(BTreeMap::from([(root, node)])),
            handles: RefCell::default(),
            next: Cell::new(10),
            locks: RefCell::default(),
            unlocked: Notify::new(),
            stalled: RefCell::default(),
            resume: Notify::new(),
            keep: Cell::new(true),
            calls: RefCell::default(),
        })
    }

    /// Changes a file behind the kernel's back.
    pub fn poke(&self, path: &str, data: &[u8]) -> Fid {
        let fid = path.split('/').fold(self.root, |fid, name| self.nodes.borrow()[&fid].names[name.as_bytes()].1);
        self.with(fid, |node| {
            node.chunks.clear();
            node.write(0, Bytes::copy_from_slice(data));
            node.attr.size = data.len() as u64;
            self.touch(node, true);
            fid
        })
        .unwrap()
    }

    /// Removes a name behind the kernel's back.
    pub fn poke_unlink(&self, name: &str) {
        self.with(self.root, |root| root.remove(name.as_bytes())).unwrap();
    }

    fn number(&self) -> u64 {
        self.next.set(self.next.get() + 1);
        self.next.get()
    }

    async fn call(&self, op: &'static str, detail: &[u8]) {
        *self.calls.borrow_mut().entry(op).or_default() += 1;
        loop {
            let resumed = self.resume.notified();
            let stalled = {
                let stalled = self.stalled.borrow();
                !stalled.is_empty()
                    && (stalled.contains(op) || stalled.contains(&format!("{op} {}", String::from_utf8_lossy(detail))))
            };
            if !stalled {
                return;
            }
            resumed.await;
        }
    }

    fn with<R>(&self, fid: Fid, work: impl FnOnce(&mut Node) -> R) -> Result<R, Status> {
        self.nodes.borrow_mut().get_mut(&fid).map(work).ok_or(Status::ESTALE)
    }

    fn touch(&self, node: &mut Node, data: bool) {
        let now = self.env.wall();
        node.attr.ctime = now;
        if data {
            node.attr.mtime = now;
        }
    }

    fn entry(&self, fid: Fid) -> Result<Entry, Status> {
        self.with(fid, |node| {
            let mut attr = node.attr.clone();
            attr.allocated_bytes = node.chunks.values().map(|chunk| chunk.len().next_multiple_of(4096) as u64).sum();
            Entry { fid, attr, keep_attr: self.keep.get(), keep_name: self.keep.get() }
        })
    }

    fn file(&self, handle: HandleId) -> Result<(Fid, OpenMode), Status> {
        self.handles.borrow().get(&handle.0).copied().ok_or(Status::EBADF)
    }

    fn child(&self, parent: Fid, name: &[u8]) -> Result<Option<Fid>, Status> {
        self.with(parent, |node| node.names.get(name).map(|(_, fid)| *fid))
    }

    fn make(
        &self,
        cred: &Cred,
        parent: Fid,
        name: &[u8],
        mode: u32,
        change: impl FnOnce(&mut Node),
    ) -> Result<Entry, Status> {
        if name.len() > 255 {
            return Err(Status::ENAMETOOLONG);
        }
        if self.child(parent, name)?.is_some() {
            return Err(Status::EEXIST);
        }
        let (now, fid) = (self.env.wall(), Fid::new(SEQ_NORMAL + 1, self.number() as u32));
        let dir = mode & mode::TYPE == mode::DIR;
        let nlink = if dir { 2 } else { 1 };
        let (uid, gid) = (cred.uid, cred.gid);
        let attr = Attr { mode, uid, gid, nlink, atime: now, mtime: now, ctime: now, btime: now, ..Attr::default() };
        let mut node = Node { attr, parent, ..Node::default() };
        change(&mut node);
        self.nodes.borrow_mut().insert(fid, node);
        let cookie = self.number();
        self.with(parent, |node| {
            node.insert(name, cookie, fid);
            node.attr.nlink += u32::from(dir);
            self.touch(node, true);
        })?;
        self.entry(fid)
    }

    fn dropped_name(&self, fid: Fid) {
        let gone = self.with(fid, |node| {
            node.attr.nlink = node.attr.nlink.saturating_sub(if node.attr.is_dir() { 2 } else { 1 });
            self.touch(node, false);
            node.attr.nlink == 0 && node.opens == 0
        });
        if gone == Ok(true) {
            self.nodes.borrow_mut().remove(&fid);
        }
    }

    fn opened(&self, fid: Fid, mode: OpenMode) -> Result<Opened, Status> {
        let handle = HandleId(self.number());
        self.handles.borrow_mut().insert(handle.0, (fid, mode));
        self.with(fid, |node| {
            node.opens += 1;
            if mode.flags.contains(OpenFlags::TRUNCATE) {
                node.truncate(0);
                self.touch(node, true);
            }
        })?;
        Ok(Opened {
            handle,
            entry: self.entry(fid)?,
            keep_data: self.keep.get() && !mode.flags.contains(OpenFlags::TRUNCATE),
        })
    }
}

impl Node {
    fn insert(&mut self, name: &[u8], cookie: u64, fid: Fid) {
        self.remove(name);
        self.names.insert(name.to_vec(), (cookie, fid));
        self.by_cookie.insert(cookie, name.to_vec());
    }

    fn remove(&mut self, name: &[u8]) -> Option<Fid> {
        let (cookie, fid) = self.names.remove(name)?;
        self.by_cookie.remove(&cookie);
        Some(fid)
    }

    fn write(&mut self, offset: u64, mut data: Bytes) {
        let mut at = offset;
        while !data.is_empty() {
            let (number, within) = (at / CHUNK, (at % CHUNK) as usize);
            let piece = data.split_to(data.len().min(CHUNK as usize - within));
            at += piece.len() as u64;
            let old = self.chunks.remove(&number).unwrap_or_default();
            let chunk = if within == 0 && piece.len() >= old.len() {
                piece
            } else {
                let mut whole = old.to_vec();
                whole.resize(whole.len().max(within + piece.len()), 0);
                whole[within..within + piece.len()].copy_from_slice(&piece);
                whole.into()
            };
            self.chunks.insert(number, chunk);
        }
        self.attr.size = self.attr.size.max(at);
    }

    fn zero(&mut self, range: Range<u64>) {
        let numbers = range.start / CHUNK..range.end.div_ceil(CHUNK);
        for number in self.chunks.range(numbers).map(|(number, _)| *number).collect::<Vec<_>>() {
            let start = number * CHUNK;
            let mut chunk = self.chunks.remove(&number).unwrap().to_vec();
            let from = range.start.saturating_sub(start).min(chunk.len() as u64) as usize;
            let to = (range.end - start).min(chunk.len() as u64) as usize;
            chunk[from..to].fill(0);
            if from > 0 || to < chunk.len() {
                self.chunks.insert(number, chunk.into());
            }
        }
    }

    fn truncate(&mut self, size: u64) {
        self.zero(size..u64::MAX - CHUNK);
        self.attr.size = size;
    }

    fn read(&self, range: Range<u64>) -> Vec<Bytes> {
        let end = range.end.min(self.attr.size);
        let (mut at, mut out) = (range.start, Vec::new());
        while at < end {
            let (number, within) = (at / CHUNK, (at % CHUNK) as usize);
            let length = (CHUNK - within as u64).min(end - at) as usize;
            let chunk = self.chunks.get(&number);
            let have = chunk.map_or(0, |chunk| chunk.len().saturating_sub(within)).min(length);
            if let Some(chunk) = chunk.filter(|_| have > 0) {
                out.push(chunk.slice(within..within + have));
            }
            if have < length {
                out.push(Bytes::from(vec![0; length - have]));
            }
            at += length as u64;
        }
        out
    }
}

impl FileSystem for MemFs {
    fn root(&self) -> Fid {
        self.root
    }
    fn file_bytes_max(&self) -> u64 {
        FILE_BYTES_MAX
    }

    async fn lookup(&self, parent: Fid, name: &[u8]) -> Result<Option<Entry>, Status> {
        self.call("lookup", name).await;
        self.child(parent, name)?.map(|fid| self.entry(fid)).transpose()
    }
    async fn getattr(&self, fid: Fid) -> Result<Entry, Status> {
        self.call("getattr", b"").await;
        self.entry(fid)
    }
    async fn setattr(
        &self,
        cred: &Cred,
        fid: Fid,
        patch: AttrPatch,
        _handle: Option<HandleId>,
        kill_privileges: bool,
    ) -> Result<Entry, Status> {
        self.call("setattr", b"").await;
        self.with(fid, |node| {
            if let Some(size) = patch.size {
                node.truncate(size);
                node.attr.mtime = self.env.wall();
            }
            if kill_privileges && cred.uid != 0 {
                node.attr.mode &= !mode::SETUID;
            }
            node.attr.apply(&patch);
            self.touch(node, false);
        })?;
        self.entry(fid)
    }
    async fn mknod(&self, cred: &Cred, parent: Fid, name: &[u8], mode: u32, rdev: u64) -> Result<Entry, Status> {
        self.call("mknod", name).await;
        self.make(cred, parent, name, mode, |node| node.attr.rdev = rdev)
    }
    async fn mkdir(&self, cred: &Cred, parent: Fid, name: &[u8], mode: u32) -> Result<Entry, Status> {
        self.call("mkdir", name).await;
        self.make(cred, parent, name, mode, |_| ())
    }
    async fn symlink(&self, cred: &Cred, parent: Fid, name: &[u8], target: &[u8]) -> Result<Entry, Status> {
        self.call("symlink", name).await;
        self.make(cred, parent, name, mode::SYMLINK | 0o777, |node| {
            node.attr.size = target.len() as u64;
            node.target = target.to_vec();
        })
    }
    async fn readlink(&self, fid: Fid) -> Result<Vec<u8>, Status> {
        self.call("readlink", b"").await;
        self.with(fid, |node| node.target.clone())
    }
    async fn link(&self, _cred: &Cred, fid: Fid, parent: Fid, name: &[u8]) -> Result<Entry, Status> {
        self.call("link", name).await;
        if self.child(parent, name)?.is_some() {
            return Err(Status::EEXIST);
        }
        let cookie = self.number();
        self.with(parent, |node| {
            node.insert(name, cookie, fid);
            self.touch(node, true);
        })?;
        self.with(fid, |node| {
            node.attr.nlink += 1;
            self.touch(node, false);
        })?;
        self.entry(fid)
    }
    async fn unlink(&self, _cred: &Cred, parent: Fid, name: &[u8], directory: bool) -> Result<(), Status> {
        self.call("unlink", name).await;
        let fid = self.child(parent, name)?.ok_or(Status::ENOENT)?;
        let (is_dir, empty) = self.with(fid, |node| (node.attr.is_dir(), node.names.is_empty()))?;
        match (directory, is_dir) {
            (true, false) => return Err(Status::ENOTDIR),
            (false, true) => return Err(Status::EISDIR),
            (true, true) if !empty => return Err(Status::ENOTEMPTY),
            _ => {}
        }
        self.with(parent, |node| {
            node.remove(name);
            node.attr.nlink -= u32::from(is_dir);
            self.touch(node, true);
        })?;
        self.dropped_name(fid);
        Ok(())
    }
    async fn rename(
        &self,
        _cred: &Cred,
        parent: Fid,
        name: &[u8],
        new_parent: Fid,
        new_name: &[u8],
        flags: RenameFlags,
    ) -> Result<(), Status> {
        self.call("rename", name).await;
        let fid = self.child(parent, name)?.ok_or(Status::ENOENT)?;
        let victim = self.child(new_parent, new_name)?;
        if flags.contains(RenameFlags::NOREPLACE) && victim.is_some() {
            return Err(Status::EEXIST);
        }
        let (one, two) = (self.number(), self.number());
        let is_dir = |fid| self.with(fid, |node| node.attr.is_dir());
        if flags.contains(RenameFlags::EXCHANGE) {
            let other = victim.ok_or(Status::ENOENT)?;
            self.with(parent, |node| node.insert(name, one, other))?;
            self.with(new_parent, |node| node.insert(new_name, two, fid))?;
            for (moved, to) in [(fid, new_parent), (other, parent)] {
                self.with(moved, |node| node.parent = to)?;
            }
            return Ok(());
        }
        if victim == Some(fid) {
            return Ok(());
        }
        if let Some(victim) = victim
            && !self.with(victim, |node| node.names.is_empty())?
        {
            return Err(Status::ENOTEMPTY);
        }
        let directory = is_dir(fid)?;
        self.with(parent, |node| {
            node.remove(name);
            node.attr.nlink -= u32::from(directory);
            self.touch(node, true);
        })?;
        let replaced_dir = victim.is_some_and(|victim| is_dir(victim) == Ok(true));
        self.with(new_parent, |node| {
            node.insert(new_name, two, fid);
            node.attr.nlink = node.attr.nlink + u32::from(directory) - u32::from(replaced_dir);
            self.touch(node, true);
        })?;
        self.with(fid, |node| {
            node.parent = new_parent;
            self.touch(node, false);
        })?;
        victim.into_iter().for_each(|victim| self.dropped_name(victim));
        Ok(())
    }

    async fn create(
        &self,
        cred: &Cred,
        parent: Fid,
        name: &[u8],
        mode: u32,
        exclusive: bool,
        open: OpenMode,
    ) -> Result<Opened, Status> {
        self.call("create", name).await;
        match self.child(parent, name)? {
            Some(_) if exclusive => Err(Status::EEXIST),
            Some(fid) => self.opened(fid, open),
            None => self.opened(self.make(cred, parent, name, mode, |_| ())?.fid, open),
        }
    }
    async fn open(&self, _cred: &Cred, fid: Fid, mode: OpenMode) -> Result<Opened, Status> {
        self.call("open", b"").await;
        self.opened(fid, mode)
    }
    async fn flush(&self, handle: HandleId, owner: LockOwner) -> Result<(), Status> {
        self.call("flush", b"").await;
        let (fid, _) = self.file(handle)?;
        self.locks.borrow_mut().retain(|lock| lock.0 != fid || lock.1 != owner || lock.2.bsd);
        self.unlocked.notify_waiters();
        Ok(())
    }
    async fn release(&self, handle: HandleId, bsd_owner: Option<LockOwner>) -> Result<(), Status> {
        self.call("release", b"").await;
        let (fid, _) = self.file(handle)?;
        self.handles.borrow_mut().remove(&handle.0);
        self.locks.borrow_mut().retain(|lock| lock.0 != fid || Some(lock.1) != bsd_owner || !lock.2.bsd);
        self.unlocked.notify_waiters();
        let gone = self.with(fid, |node| {
            node.opens -= 1;
            node.opens == 0 && node.attr.nlink == 0
        })?;
        if gone {
            self.nodes.borrow_mut().remove(&fid);
        }
        Ok(())
    }
    async fn fsync(&self, handle: HandleId, _data_only: bool) -> Result<(), Status> {
        self.call("fsync", b"").await;
        self.file(handle).map(|_| ())
    }
    async fn fsync_dir(&self, _fid: Fid) -> Result<(), Status> {
        self.call("fsync_dir", b"").await;
        Ok(())
    }
    async fn read(&self, handle: HandleId, offset: u64, length: usize) -> Result<Vec<Bytes>, Status> {
        self.call("read", offset.to_string().as_bytes()).await;
        let (fid, _) = self.file(handle)?;
        self.with(fid, |node| node.read(offset..offset + length as u64))
    }
    async fn write(
        &self,
        cred: &Cred,
        handle: HandleId,
        offset: u64,
        data: Bytes,
        mode: WriteMode,
    ) -> Result<(), Status> {
        self.call("write", b"").await;
        let (fid, open) = self.file(handle)?;
        self.with(fid, |node| {
            let offset = if open.append && !mode.from_cache { node.attr.size } else { offset };
            if mode.kill_privileges && cred.uid != 0 {
                node.attr.mode &= !mode::SETUID;
            }
            node.write(offset, data);
            self.touch(node, true);
        })
    }
    async fn space(&self, handle: HandleId, range: Range<u64>, mode: SpaceMode) -> Result<(), Status> {
        self.call("space", b"").await;
        let (fid, _) = self.file(handle)?;
        self.with(fid, |node| {
            if !matches!(mode, SpaceMode::Allocate { .. }) {
                node.zero(range.clone());
            }
            if matches!(mode, SpaceMode::Allocate { keep_size: false } | SpaceMode::Zero { keep_size: false }) {
                node.attr.size = node.attr.size.max(range.end);
            }
            self.touch(node, true);
        })
    }
    async fn seek(&self, handle: HandleId, offset: u64, hole: bool) -> Result<u64, Status> {
        self.call("seek", b"").await;
        let (fid, _) = self.file(handle)?;
        self.with(fid, |node| {
            if offset >= node.attr.size {
                return Err(Status::ENXIO);
            }
            let mut at = offset;
            while at < node.attr.size {
                if node.chunks.contains_key(&(at / CHUNK)) != hole {
                    return Ok(at);
                }
                at = (at / CHUNK + 1) * CHUNK;
            }
            if hole { Ok(node.attr.size) } else { Err(Status::ENXIO) }
        })?
    }

    async fn readdir(&self, fid: Fid, after: u64, bytes_max: u32, plus: bool) -> Result<Vec<DirEntry>, Status> {
        self.call("readdir", b"").await;
        let mut out = Vec::new();
        let mut room = bytes_max as usize;
        let nodes = self.nodes.borrow();
        let node = nodes.get(&fid).ok_or(Status::ENOENT)?;
        for (cookie, name, fid) in [(1, ".", fid), (2, "..", node.parent)] {
            if cookie > after {
                out.push(DirEntry { cookie, name: name.into(), fid, kind: mode::DIR, entry: None });
            }
        }
        let names: Vec<_> = node.by_cookie.range(after + 1..).take(room / 64 + 1).collect();
        let children: Vec<_> = names.iter().map(|(_, name)| node.names[*name].1).collect();
        let names: Vec<_> = names.into_iter().map(|(cookie, name)| (*cookie, name.clone())).collect();
        let kinds: Vec<_> = children.iter().map(|fid| nodes[fid].attr.mode & mode::TYPE).collect();
        drop(nodes);
        for (((cookie, name), fid), kind) in names.into_iter().zip(children).zip(kinds) {
            let entry = if plus { Some(self.entry(fid)?) } else { None };
            room = room.saturating_sub(name.len() + if plus { 200 } else { 32 });
            out.push(DirEntry { cookie, name, fid, kind, entry });
            if room == 0 {
                break;
            }
        }
        Ok(out)
    }

    async fn getxattr(&self, _cred: &Cred, fid: Fid, name: &[u8]) -> Result<Vec<u8>, Status> {
        self.call("getxattr", name).await;
        self.with(fid, |node| node.xattrs.get(name).cloned().ok_or(Status::ENODATA))?
    }
    async fn listxattr(&self, _cred: &Cred, fid: Fid) -> Result<Vec<Vec<u8>>, Status> {
        self.call("listxattr", b"").await;
        self.with(fid, |node| node.xattrs.keys().cloned().collect())
    }
    async fn setxattr(
        &self,
        _cred: &Cred,
        fid: Fid,
        name: &[u8],
        value: &[u8],
        create: bool,
        replace: bool,
    ) -> Result<(), Status> {
        self.call("setxattr", name).await;
        self.with(fid, |node| match node.xattrs.contains_key(name) {
            true if create => Err(Status::EEXIST),
            false if replace => Err(Status::ENODATA),
            _ => {
                node.xattrs.insert(name.to_vec(), value.to_vec());
                self.touch(node, false);
                Ok(())
            }
        })?
    }
    async fn removexattr(&self, _cred: &Cred, fid: Fid, name: &[u8]) -> Result<(), Status> {
        self.call("removexattr", name).await;
        self.with(fid, |node| node.xattrs.remove(name).map(|_| ()).ok_or(Status::ENODATA))?
    }

    async fn test_lock(&self, fid: Fid, owner: LockOwner, lock: LockRange) -> Result<Option<LockRange>, Status> {
        self.call("test_lock", b"").await;
        Ok(self.conflict(fid, owner, &lock))
    }
    async fn set_lock(&self, fid: Fid, owner: LockOwner, lock: LockRange, wait: bool) -> Result<(), Status> {
        self.call("set_lock", b"").await;
        loop {
            let unlocked = self.unlocked.notified();
            if self.conflict(fid, owner, &lock).is_none() {
                break;
            }
            if !wait {
                return Err(Status::EAGAIN);
            }
            unlocked.await;
        }
        let mut locks = self.locks.borrow_mut();
        let mut next = Vec::new();
        for (at, who, have) in locks.drain(..) {
            if at != fid || who != owner || have.bsd != lock.bsd || have.end < lock.start || lock.end < have.start {
                next.push((at, who, have));
                continue;
            }
            if have.start < lock.start {
                next.push((at, who, LockRange { end: lock.start - 1, ..have }));
            }
            if have.end > lock.end {
                next.push((at, who, LockRange { start: lock.end + 1, ..have }));
            }
        }
        if lock.exclusive.is_some() {
            next.push((fid, owner, lock));
        }
        *locks = next;
        self.unlocked.notify_waiters();
        Ok(())
    }

    async fn statfs(&self) -> Result<MountStatfs, Status> {
        self.call("statfs", b"").await;
        Ok(MountStatfs { total_bytes: 1 << 40, free_bytes: 1 << 39, inodes: 1000, inodes_free: 900 })
    }

    async fn layout(&self, fid: Fid) -> Result<Option<Layout>, Status> {
        let file = self.with(fid, |node| node.attr.is_file())?;
        Ok(file.then(|| Layout::raid0(1 << 20, vec![Stripe { ost_index: 3, object: Fid::ost_object(3, 77) }])))
    }
    async fn stripe_default(&self, fid: Fid) -> Result<StripeHint, Status> {
        self.with(fid, |node| node.stripe)
    }
    async fn set_stripe(&self, _cred: &Cred, fid: Fid, hint: StripeHint) -> Result<(), Status> {
        self.with(fid, |node| node.stripe = hint)
    }
    async fn fid_to_path(&self, fid: Fid) -> Result<Vec<Vec<u8>>, Status> {
        let nodes = self.nodes.borrow();
        let (mut at, mut path) = (fid, Vec::new());
        while at != self.root {
            let parent = nodes.get(&at).ok_or(Status::ENOENT)?.parent;
            let (name, _) = nodes[&parent].names.iter().find(|(_, (_, fid))| *fid == at).ok_or(Status::ENOENT)?;
            path = [b"/".to_vec(), name.clone(), path].concat();
            at = parent;
        }
        Ok(vec![path])
    }
}

impl MemFs {
    fn conflict(&self, fid: Fid, owner: LockOwner, lock: &LockRange) -> Option<LockRange> {
        let exclusive = lock.exclusive?;
        let locks = self.locks.borrow();
        let found = locks.iter().find(|(at, who, have)| {
            *at == fid
                && *who != owner
                && have.bsd == lock.bsd
                && have.start <= lock.end
                && lock.start <= have.end
                && (exclusive || have.exclusive == Some(true))
        });
        found.map(|(_, _, have)| *have)
    }
}
