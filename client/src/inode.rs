//! What the client knows of inodes, names and directories, and the MDT locks under which it knows it. No I/O here.
//!
//! - Attributes are kept under UPDATE and PERM, the layout under LAYOUT, extended attributes under XATTR, the names of an
//!   inode under its LOOKUP, "no such name" and listings under UPDATE of the directory. A symbolic link's target never
//!   changes. When a lock goes, what it protected is forgotten before anybody is told.
//! - The MDT does not revoke our locks for our own changes: the client keeps its caches true itself. Every change is
//!   bracketed by a [`Change`]; an answer that was asked for before or during a change of the same inode is used for its
//!   caller but not kept, unless its version shows that it is newer than what is known.
//! - A revocation may overtake the reply that carries the lock: cookies that were revoked unknown are remembered and their
//!   locks refused later.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::rc::Rc;

use nacre_wire::ldlm::{Granted, Ibits, Mode, Policy};
use nacre_wire::{Attr, Fid, Layout, mdt};

use crate::file::File;
use crate::stable::Stability;

/// Bits under which attributes may be kept.
pub(crate) const ATTR_BITS: Ibits = Ibits::UPDATE.union(Ibits::PERM);
/// What is asked for with every inode.
pub(crate) const ALL_BITS: Ibits =
    Ibits::LOOKUP.union(Ibits::UPDATE).union(Ibits::PERM).union(Ibits::LAYOUT).union(Ibits::XATTR);

/// All inodes known.
#[derive(Default)]
pub(crate) struct InodeTable {
    // Looked up by key and never iterated in an order that shows; `clock` has the order.
    inodes: RefCell<HashMap<Fid, Rc<Inode>>>,
    clock: RefCell<VecDeque<Fid>>,
    /// Counts beginnings and ends of our own changes.
    sequence: Cell<u64>,
    dead_cookies: RefCell<(BTreeSet<u64>, VecDeque<u64>)>,
    superseded: RefCell<Vec<u64>>,
    listed: Cell<usize>,
}

/// One inode.
pub(crate) struct Inode {
    /// Which.
    pub fid: Fid,
    /// Open files of this mount on it.
    pub opens: Cell<u32>,
    /// Those of them that may be mapped for writing.
    pub mappable: Cell<u32>,
    /// What of it is on the MDT's stable media.
    pub stability: Stability,
    file: RefCell<Option<Rc<File>>>,
    state: RefCell<State>,
    used: Cell<bool>,
}

#[derive(Default)]
struct State {
    locks: Vec<(u64, Ibits)>,
    attr: Option<Attr>,
    version: u64,
    layout: Option<Option<Layout>>,
    link_target: Option<Vec<u8>>,
    xattrs: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    xattr_lists: BTreeMap<bool, Vec<Vec<u8>>>,
    /// Names that resolve to this inode.
    names: Vec<(Fid, Vec<u8>)>,
    /// Directory: names that resolve, and names known not to.
    children: BTreeMap<Vec<u8>, Fid>,
    negative: BTreeSet<Vec<u8>>,
    /// Directory: all its names, where they are known; what is not among them does not exist.
    entries: Option<BTreeSet<Vec<u8>>>,
    pages: BTreeMap<u64, Rc<DirPage>>,
    parent: Option<Fid>,
    /// Own changes under way, whether two of them overlapped, and when the last began or ended.
    changing: u32,
    overlapped: bool,
    last_change: u64,
    /// When a lock was last taken from us: an answer from before may be from before somebody else's change, too, and
    /// must not be kept under a lock that came later.
    last_revoke: u64,
    kernel: KernelHolds,
}

/// What the kernel keeps of an inode on our word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct KernelHolds {
    /// Attributes.
    pub attr: bool,
    /// Names that resolve to it.
    pub name: bool,
    /// Directory: names that do not resolve.
    pub negative: bool,
}

/// Part of a listing.
#[derive(Debug)]
pub(crate) struct DirPage {
    /// In cookie order, without `.` and `..`.
    pub entries: Vec<(u64, Vec<u8>, Fid, u32)>,
    /// Nothing comes after these.
    pub end: bool,
}

/// When a question was asked, on the clock of own changes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stamp(u64);

/// An own change under way; ends when dropped.
pub(crate) struct Change {
    table: Rc<InodeTable>,
    inodes: Vec<Rc<Inode>>,
}

/// A name, as far as the cache knows.
pub(crate) enum Name {
    /// It resolves.
    Child(Rc<Inode>),
    /// It does not exist.
    Absent,
    /// Ask.
    Unknown,
}

/// What went with a lock or an inode.
pub(crate) struct Lost {
    /// Which.
    pub inode: Rc<Inode>,
    /// What the kernel has to forget.
    pub kernel: KernelHolds,
    /// Locks to give back.
    pub cookies: Vec<u64>,
}

impl InodeTable {
    /// An inode that is known.
    pub fn get(&self, fid: Fid) -> Option<Rc<Inode>> {
        let inode = self.inodes.borrow().get(&fid).cloned()?;
        inode.used.set(true);
        Some(inode)
    }

    /// An inode, known from now on.
    pub fn get_or_insert(&self, fid: Fid) -> Rc<Inode> {
        let mut inodes = self.inodes.borrow_mut();
        let inode = inodes.entry(fid).or_insert_with(|| {
            self.clock.borrow_mut().push_back(fid);
            Rc::new(Inode {
                fid,
                opens: Cell::new(0),
                mappable: Cell::new(0),
                stability: Stability::default(),
                file: RefCell::default(),
                state: RefCell::default(),
                used: Cell::new(true),
            })
        });
        inode.used.set(true);
        inode.clone()
    }

    /// Inodes known.
    pub fn len(&self) -> usize {
        self.inodes.borrow().len()
    }

    /// All inodes, in the order of the clock.
    pub fn all(&self) -> Vec<Rc<Inode>> {
        let inodes = self.inodes.borrow();
        self.clock.borrow().iter().filter_map(|fid| inodes.get(fid).cloned()).collect()
    }

    /// Before a question is sent.
    pub fn stamp(&self) -> Stamp {
        Stamp(self.sequence.get())
    }

    /// Before a change is sent; keep the answer until its reply has been taken in.
    pub fn begin_change(self: &Rc<Self>, fids: &[Fid]) -> Change {
        let now = self.tick();
        let mut inodes: Vec<Rc<Inode>> = Vec::new();
        for fid in fids {
            if inodes.iter().any(|inode| inode.fid == *fid) {
                continue;
            }
            let inode = self.get_or_insert(*fid);
            {
                let mut state = inode.state.borrow_mut();
                state.overlapped |= state.changing > 0;
                state.changing += 1;
                state.last_change = now;
            }
            inodes.push(inode);
        }
        Change { table: self.clone(), inodes }
    }

    /// Takes in an inode as the MDT told it. `change`: the own change that this is the answer to.
    pub fn accept(&self, told: &mdt::Inode, stamp: Stamp, change: Option<&Change>) -> Rc<Inode> {
        let inode = self.get_or_insert(told.fid);
        // It may be news to us, and not be stable yet.
        inode.stability.changed();
        self.add_lock(&inode, &told.lock);
        match change {
            Some(change) if change.has(told.fid) => inode.take_changed_attr(&told.attr),
            _ => inode.take_told_attr(&told.attr, stamp),
        }
        let mut state = inode.state.borrow_mut();
        // Objects are given once: an answer without them is an old one.
        let forgets = told.layout.is_none() && matches!(state.layout, Some(Some(_)));
        if state.bits().contains(Ibits::LAYOUT) && !forgets {
            state.layout = Some(told.layout.clone());
        }
        drop(state);
        inode
    }

    /// Takes in attributes that came with the answer to an own change, if the inode is known.
    pub fn accept_attr(&self, fid: Fid, attr: &Attr, stamp: Stamp, change: Option<&Change>) {
        let Some(inode) = self.get(fid) else { return };
        match change {
            Some(change) if change.has(fid) => inode.take_changed_attr(attr),
            _ => inode.take_told_attr(attr, stamp),
        }
    }

    /// Takes in a lock on an inode.
    pub fn add_lock(&self, inode: &Inode, lock: &Granted) {
        let Policy::Ibits(bits) = lock.policy else { return };
        if lock.cookie == 0 || self.dead_cookies.borrow().0.contains(&lock.cookie) {
            return;
        }
        let mut state = inode.state.borrow_mut();
        let mut superseded = self.superseded.borrow_mut();
        state.locks.retain(|(cookie, had)| {
            if *cookie != lock.cookie && bits.contains(*had) {
                superseded.push(*cookie);
                self.bury_cookie(*cookie);
            }
            !(*cookie == lock.cookie || bits.contains(*had))
        });
        state.locks.push((lock.cookie, bits));
    }

    /// A lock is being given back. The server may have named it in an answer that is still on its way: that one holds
    /// nothing any more.
    fn bury_cookie(&self, cookie: u64) {
        let (cookies, order) = &mut *self.dead_cookies.borrow_mut();
        if cookies.insert(cookie) {
            order.push_back(cookie);
        }
        if order.len() > DEAD_COOKIES_MAX
            && let Some(oldest) = order.pop_front()
        {
            cookies.remove(&oldest);
        }
    }

    /// Locks that newer ones have made needless: to be given back.
    pub fn take_superseded(&self) -> Vec<u64> {
        self.superseded.take()
    }

    /// What is known of a name.
    pub fn find_name(&self, parent: &Inode, name: &[u8]) -> Name {
        let state = parent.state.borrow();
        if let Some(child) = state.children.get(name) {
            return match self.get(*child) {
                Some(inode) => Name::Child(inode),
                None => Name::Unknown,
            };
        }
        let not_listed = state.entries.as_ref().is_some_and(|entries| !entries.contains(name));
        if not_listed || state.negative.contains(name) { Name::Absent } else { Name::Unknown }
    }

    /// Keeps a name that was told, if the child's lock allows it and no own change of the directory came between.
    pub fn add_name(&self, parent: &Inode, name: &[u8], child: &Inode, stamp: Stamp) {
        if parent.quiet_since(stamp) {
            self.set_name(parent, name, child, stamp);
        }
    }

    /// Keeps a name that we made.
    pub fn set_name(&self, parent: &Inode, name: &[u8], child: &Inode, stamp: Stamp) {
        self.forget_name(parent, name);
        let certain = !parent.is_crossed() && !child.revoked_since(stamp);
        if certain && child.state.borrow().bits().contains(Ibits::LOOKUP) {
            parent.state.borrow_mut().children.insert(name.to_vec(), child.fid);
            child.state.borrow_mut().names.push((parent.fid, name.to_vec()));
        }
    }

    /// A directory that we made, or have listed whole: from now on its names are known.
    pub fn set_entries(&self, dir: &Inode, names: impl IntoIterator<Item = Vec<u8>>, stamp: Stamp) {
        if dir.quiet_since(stamp) && dir.bits().contains(Ibits::UPDATE) {
            dir.state.borrow_mut().entries = Some(names.into_iter().collect());
        }
    }

    /// We have made a name.
    pub fn entry_made(&self, dir: &Inode, name: &[u8]) {
        let mut state = dir.state.borrow_mut();
        if let Some(entries) = &mut state.entries {
            entries.insert(name.to_vec());
            if entries.len() > ENTRIES_MAX {
                state.entries = None;
            }
        }
    }

    /// We have removed a name.
    pub fn entry_removed(&self, dir: &Inode, name: &[u8], stamp: Stamp) {
        if dir.is_crossed() || dir.revoked_since(stamp) {
            self.entries_unknown(dir);
        }
        if let Some(entries) = &mut dir.state.borrow_mut().entries {
            entries.remove(name);
        }
    }

    /// A change failed, or nobody knows whether it was done.
    pub fn entries_unknown(&self, dir: &Inode) {
        dir.state.borrow_mut().entries = None;
    }

    /// Forgets what is known of a name.
    pub fn forget_name(&self, parent: &Inode, name: &[u8]) {
        let mut state = parent.state.borrow_mut();
        state.negative.remove(name);
        if let Some(child) = state.children.remove(name) {
            drop(state);
            if let Some(child) = self.inodes.borrow().get(&child) {
                let mut state = child.state.borrow_mut();
                state.names.retain(|(dir, known)| *dir != parent.fid || known != name);
            }
        }
    }

    /// Keeps "no such name", if the directory's lock allows it. Answers whether it did.
    pub fn add_absent(&self, parent: &Inode, name: &[u8], stamp: Stamp) -> bool {
        if !parent.quiet_since(stamp) {
            return false;
        }
        self.set_absent(parent, name, stamp)
    }

    /// Keeps that a name is gone since we removed it.
    pub fn set_absent(&self, parent: &Inode, name: &[u8], stamp: Stamp) -> bool {
        self.forget_name(parent, name);
        if parent.is_crossed() || parent.revoked_since(stamp) {
            return false;
        }
        let mut state = parent.state.borrow_mut();
        let may = state.bits().contains(Ibits::UPDATE);
        if may {
            if state.negative.len() >= NEGATIVE_MAX {
                state.negative.clear();
            }
            state.negative.insert(name.to_vec());
        }
        may
    }

    /// A part of a listing that has what comes after a cookie.
    pub fn page(&self, dir: &Inode, after: u64) -> Option<Rc<DirPage>> {
        let state = dir.state.borrow();
        let (_, page) = state.pages.range(..=after).next_back()?;
        let last = page.entries.last().map_or(0, |entry| entry.0);
        (page.end || after < last).then(|| page.clone())
    }

    /// Keeps a part of a listing, if the directory's lock allows it.
    pub fn add_page(&self, dir: &Inode, after: u64, page: Rc<DirPage>, stamp: Stamp) {
        if !dir.quiet_since(stamp) || self.listed.get() + page.entries.len() > LISTED_MAX {
            return;
        }
        let mut state = dir.state.borrow_mut();
        if state.bits().contains(Ibits::UPDATE) {
            self.listed.set(self.listed.get() + page.entries.len());
            if let Some(old) = state.pages.insert(after, page) {
                self.listed.set(self.listed.get() - old.entries.len());
            }
        }
    }

    /// Our own change has made listings of a directory untrue.
    pub fn forget_pages(&self, dir: &Inode) {
        let pages = std::mem::take(&mut dir.state.borrow_mut().pages);
        let entries: usize = pages.values().map(|page| page.entries.len()).sum();
        self.listed.set(self.listed.get() - entries);
    }

    /// The MDT wants a lock back: what it protected is forgotten now. `None`: not known (yet); it will be refused.
    pub fn revoke(&self, fid: Fid, cookie: u64) -> Option<Lost> {
        let early = !self.dead_cookies.borrow().0.contains(&cookie);
        self.bury_cookie(cookie);
        let inode = self.inodes.borrow().get(&fid).cloned();
        // Not known, and its lock is still to come: the answer that brings it has to find the time of this.
        let inode = inode.or_else(|| early.then(|| self.get_or_insert(fid)))?;
        inode.state.borrow_mut().last_revoke = self.tick();
        if !inode.state.borrow().locks.iter().any(|(held, _)| *held == cookie) {
            return None;
        }
        let before = inode.bits();
        inode.state.borrow_mut().locks.retain(|(held, _)| *held != cookie);
        let kernel = self.forget_bits(&inode, before - inode.bits());
        // Somebody else is about to change it.
        inode.stability.changed();
        Some(Lost { inode, kernel, cookies: vec![cookie] })
    }

    /// The MDT has thrown this client out: no lock is held any more.
    pub fn drop_locks(&self) -> Vec<Lost> {
        let mut lost = Vec::new();
        for inode in self.all() {
            let before = inode.bits();
            inode.state.borrow_mut().locks.clear();
            let kernel = self.forget_bits(&inode, before);
            lost.push(Lost { inode, kernel, cookies: Vec::new() });
        }
        lost
    }

    /// All locks held, as the MDT knows them.
    pub fn locks(&self) -> Vec<(Fid, Granted)> {
        let mut locks = Vec::new();
        for inode in self.all() {
            for (cookie, bits) in &inode.state.borrow().locks {
                let lock = Granted { cookie: *cookie, mode: Mode::Pr, policy: Policy::Ibits(*bits) };
                locks.push((inode.fid, lock));
            }
        }
        locks
    }

    /// Forgets inodes that nobody uses until `limit` are left, those not used lately first; at most `batch` at once.
    pub fn shrink(&self, limit: usize, batch: usize) -> Vec<Lost> {
        let mut lost = Vec::new();
        let mut steps = self.clock.borrow().len();
        while self.len() > limit && lost.len() < batch && steps > 0 {
            steps -= 1;
            let Some(fid) = self.clock.borrow_mut().pop_front() else { break };
            let Some(inode) = self.inodes.borrow().get(&fid).cloned() else { continue };
            if inode.used.replace(false) || !inode.is_idle() {
                self.clock.borrow_mut().push_back(fid);
                continue;
            }
            let locks = std::mem::take(&mut inode.state.borrow_mut().locks);
            let bits = locks.iter().fold(Ibits::empty(), |all, (_, bits)| all | *bits);
            let kernel = self.forget_bits(&inode, bits);
            self.forget_children(&inode);
            self.inodes.borrow_mut().remove(&fid);
            locks.iter().for_each(|(cookie, _)| self.bury_cookie(*cookie));
            lost.push(Lost { inode, kernel, cookies: locks.into_iter().map(|(cookie, _)| cookie).collect() });
        }
        lost
    }

    /// Forgets one inode that is gone for good. Answers the locks to be given back.
    pub fn remove(&self, inode: &Rc<Inode>) -> Vec<u64> {
        let bits = inode.bits();
        let locks = std::mem::take(&mut inode.state.borrow_mut().locks);
        self.forget_bits(inode, bits);
        self.forget_children(inode);
        self.inodes.borrow_mut().remove(&inode.fid);
        self.compact_clock();
        locks.iter().for_each(|(cookie, _)| self.bury_cookie(*cookie));
        locks.into_iter().map(|(cookie, _)| cookie).collect()
    }

    fn forget_bits(&self, inode: &Rc<Inode>, lost: Ibits) -> KernelHolds {
        let mut holds = KernelHolds::default();
        if lost.intersects(ATTR_BITS) {
            let mut state = inode.state.borrow_mut();
            state.attr = None;
            holds.attr = std::mem::take(&mut state.kernel.attr);
        }
        if lost.contains(Ibits::LAYOUT) {
            inode.state.borrow_mut().layout = None;
        }
        if lost.contains(Ibits::XATTR) {
            let mut state = inode.state.borrow_mut();
            state.xattrs.clear();
            state.xattr_lists.clear();
        }
        if lost.contains(Ibits::UPDATE) {
            {
                let mut state = inode.state.borrow_mut();
                state.negative.clear();
                state.entries = None;
                state.parent = None;
                holds.negative = std::mem::take(&mut state.kernel.negative);
            }
            self.forget_pages(inode);
        }
        if lost.contains(Ibits::LOOKUP) {
            let names = std::mem::take(&mut inode.state.borrow_mut().names);
            for (parent, name) in names {
                if let Some(parent) = self.inodes.borrow().get(&parent) {
                    parent.state.borrow_mut().children.remove(&name);
                }
            }
            holds.name = std::mem::take(&mut inode.state.borrow_mut().kernel.name);
        }
        holds
    }

    fn forget_children(&self, dir: &Inode) {
        let children = std::mem::take(&mut dir.state.borrow_mut().children);
        for (name, child) in children {
            if let Some(child) = self.inodes.borrow().get(&child) {
                child.state.borrow_mut().names.retain(|(parent, known)| *parent != dir.fid || *known != name);
            }
        }
    }

    /// Takes those that were removed out of the clock, when they are many.
    fn compact_clock(&self) {
        let mut clock = self.clock.borrow_mut();
        let inodes = self.inodes.borrow();
        if clock.len() > 2 * inodes.len() + CLOCK_SLACK {
            let mut seen = BTreeSet::new();
            clock.retain(|fid| inodes.contains_key(fid) && seen.insert(*fid));
        }
    }

    fn tick(&self) -> u64 {
        self.sequence.set(self.sequence.get() + 1);
        self.sequence.get()
    }
}

impl Inode {
    /// Attributes as the MDT has them, while they may be kept.
    pub fn attr(&self) -> Option<Attr> {
        self.state.borrow().attr.clone()
    }

    /// The layout, while it may be kept.
    pub fn layout(&self) -> Option<Option<Layout>> {
        self.state.borrow().layout.clone()
    }

    /// Lock bits held.
    pub fn bits(&self) -> Ibits {
        self.state.borrow().bits()
    }

    /// The data side of a regular file with objects.
    pub fn file(&self) -> Option<Rc<File>> {
        self.file.borrow().clone()
    }

    /// Sets the data side.
    pub fn set_file(&self, file: Option<Rc<File>>) {
        *self.file.borrow_mut() = file;
    }

    /// The attributes answered to an own change of this inode.
    pub fn take_changed_attr(&self, attr: &Attr) {
        let mut state = self.state.borrow_mut();
        let newer = attr.version > state.version;
        if !newer && state.overlapped {
            // Two changes crossed and nothing says which answer is the later one.
            if attr.version == 0 {
                state.attr = None;
            }
            return;
        }
        state.keep(attr);
    }

    /// Remembers that the kernel keeps things on our word.
    pub fn kernel_keeps(&self, holds: KernelHolds) {
        let kernel = &mut self.state.borrow_mut().kernel;
        kernel.attr |= holds.attr;
        kernel.name |= holds.name;
        kernel.negative |= holds.negative;
    }

    /// A symbolic link's target, once known.
    pub fn link_target(&self) -> Option<Vec<u8>> {
        self.state.borrow().link_target.clone()
    }

    /// Keeps it for good.
    pub fn set_link_target(&self, target: &[u8]) {
        self.state.borrow_mut().link_target = Some(target.to_vec());
    }

    /// An extended attribute: unknown, known not to be there, or its value.
    pub fn xattr(&self, name: &[u8]) -> Option<Option<Vec<u8>>> {
        self.state.borrow().xattrs.get(name).cloned()
    }

    /// Keeps one if the lock allows it.
    pub fn add_xattr(&self, name: &[u8], value: Option<Vec<u8>>, stamp: Stamp) {
        if self.quiet_since(stamp) {
            let mut state = self.state.borrow_mut();
            if state.bits().contains(Ibits::XATTR) && state.xattrs.len() < XATTRS_MAX {
                state.xattrs.insert(name.to_vec(), value);
            }
        }
    }

    /// Names of extended attributes as this kind of user sees them.
    pub fn xattr_list(&self, root: bool) -> Option<Vec<Vec<u8>>> {
        self.state.borrow().xattr_lists.get(&root).cloned()
    }

    /// Keeps them if the lock allows it.
    pub fn add_xattr_list(&self, root: bool, names: Vec<Vec<u8>>, stamp: Stamp) {
        if self.quiet_since(stamp) {
            let mut state = self.state.borrow_mut();
            if state.bits().contains(Ibits::XATTR) {
                state.xattr_lists.insert(root, names);
            }
        }
    }

    /// After an own change of extended attributes.
    pub fn forget_xattrs(&self) {
        let mut state = self.state.borrow_mut();
        state.xattrs.clear();
        state.xattr_lists.clear();
    }

    /// A directory's parent, while it may be kept.
    pub fn parent(&self) -> Option<Fid> {
        self.state.borrow().parent
    }

    /// Keeps it.
    pub fn set_parent(&self, parent: Fid, stamp: Stamp) {
        if self.quiet_since(stamp) && self.bits().contains(Ibits::UPDATE) {
            self.state.borrow_mut().parent = Some(parent);
        }
    }

    /// After an own move of a directory.
    pub fn forget_parent(&self) {
        self.state.borrow_mut().parent = None;
    }

    /// Sets the layout that an answer to an own change brought.
    pub fn set_layout(&self, layout: &Option<Layout>) {
        let mut state = self.state.borrow_mut();
        if state.bits().contains(Ibits::LAYOUT) {
            state.layout = Some(layout.clone());
        }
    }

    fn take_told_attr(&self, attr: &Attr, stamp: Stamp) {
        let quiet = self.quiet_since(stamp);
        let mut state = self.state.borrow_mut();
        if attr.version > state.version || (quiet && attr.version == state.version) {
            state.keep(attr);
        }
    }

    /// Own changes of it overlap, and nothing says in which order the server made them: of a directory, whether a name
    /// that one of them has made or removed is there afterwards.
    fn is_crossed(&self) -> bool {
        self.state.borrow().overlapped
    }

    fn revoked_since(&self, stamp: Stamp) -> bool {
        self.state.borrow().last_revoke > stamp.0
    }

    fn quiet_since(&self, stamp: Stamp) -> bool {
        let state = self.state.borrow();
        state.changing == 0 && state.last_change.max(state.last_revoke) <= stamp.0
    }

    fn is_idle(&self) -> bool {
        self.fid != Fid::ROOT
            && self.opens.get() == 0
            && self.state.borrow().changing == 0
            && self.file.borrow().as_ref().is_none_or(|file| file.is_idle())
    }
}

impl State {
    fn bits(&self) -> Ibits {
        self.locks.iter().fold(Ibits::empty(), |all, (_, bits)| all | *bits)
    }

    fn keep(&mut self, attr: &Attr) {
        self.version = attr.version;
        self.attr = self.bits().contains(ATTR_BITS).then(|| attr.clone());
    }
}

impl Change {
    /// Whether the change is one of this inode.
    pub fn has(&self, fid: Fid) -> bool {
        self.inodes.iter().any(|inode| inode.fid == fid)
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        let now = self.table.tick();
        for inode in &self.inodes {
            inode.stability.changed();
            let mut state = inode.state.borrow_mut();
            state.last_change = now;
            state.changing -= 1;
            if state.changing == 0 {
                state.overlapped = false;
            }
        }
    }
}

/// Remembered cookies of locks that were revoked before they were known.
const DEAD_COOKIES_MAX: usize = 64 << 10;
/// Removed inodes left in the clock before it is gone through.
const CLOCK_SLACK: usize = 1024;
/// Names of one directory that are known as a whole.
const ENTRIES_MAX: usize = 100_000;
/// Absent names kept for one directory.
const NEGATIVE_MAX: usize = 10_000;
/// Extended attributes kept for one inode.
const XATTRS_MAX: usize = 64;
/// Listed names kept in all.
const LISTED_MAX: usize = 500_000;

#[cfg(test)]
mod tests {
    use super::*;

    const DIR: Fid = Fid::new(0x2_0000_0401, 1);
    const CHILD: Fid = Fid::new(0x2_0000_0401, 2);

    fn told(fid: Fid, version: u64, nlink: u32, cookie: u64) -> mdt::Inode {
        let attr = Attr { version, nlink, ..Attr::default() };
        let lock = Granted { cookie, mode: Mode::Pr, policy: Policy::Ibits(ALL_BITS) };
        mdt::Inode { fid, attr, layout: None, lock }
    }

    fn nlink(inode: &Inode) -> Option<u32> {
        inode.attr().map(|attr| attr.nlink)
    }

    #[test]
    fn attributes_and_names_live_as_long_as_their_lock() {
        let table = Rc::new(InodeTable::default());
        let dir = table.accept(&told(DIR, 1, 2, 10), table.stamp(), None);
        let child = table.accept(&told(CHILD, 1, 1, 11), table.stamp(), None);
        table.add_name(&dir, b"a", &child, table.stamp());
        assert!(table.add_absent(&dir, b"b", table.stamp()));
        assert!(matches!(table.find_name(&dir, b"a"), Name::Child(inode) if inode.fid == CHILD));
        assert!(matches!(table.find_name(&dir, b"b"), Name::Absent));
        child.kernel_keeps(KernelHolds { attr: true, name: true, negative: false });
        let lost = table.revoke(CHILD, 11).unwrap();
        assert_eq!(lost.kernel, KernelHolds { attr: true, name: true, negative: false });
        assert_eq!((nlink(&child), nlink(&dir)), (None, Some(2)));
        assert!(matches!(table.find_name(&dir, b"a"), Name::Unknown));
        table.revoke(DIR, 10).unwrap();
        assert!(matches!(table.find_name(&dir, b"b"), Name::Unknown));
    }

    #[test]
    fn a_revocation_that_overtakes_its_lock_wins() {
        let table = Rc::new(InodeTable::default());
        assert!(table.revoke(CHILD, 11).is_none());
        let child = table.accept(&told(CHILD, 1, 1, 11), table.stamp(), None);
        assert_eq!((child.bits(), nlink(&child)), (Ibits::empty(), None));
    }

    #[test]
    fn an_answer_older_than_a_revocation_is_not_kept_under_a_later_lock() {
        let table = Rc::new(InodeTable::default());
        let dir = table.accept(&told(DIR, 1, 2, 10), table.stamp(), None);
        let child = table.accept(&told(CHILD, 1, 1, 11), table.stamp(), None);
        let asked = table.stamp();
        // Somebody else renames the child and makes another name; the answers to our next questions bring new locks.
        table.revoke(CHILD, 11).unwrap();
        table.revoke(DIR, 10).unwrap();
        table.accept(&told(CHILD, 2, 1, 13), table.stamp(), None);
        table.accept(&told(DIR, 2, 2, 12), table.stamp(), None);
        table.add_name(&dir, b"old", &child, asked);
        assert!(!table.add_absent(&dir, b"new", asked));
        assert!(matches!(table.find_name(&dir, b"old"), Name::Unknown));
        table.add_name(&dir, b"new", &child, table.stamp());
        assert!(matches!(table.find_name(&dir, b"new"), Name::Child(_)));
    }

    #[test]
    fn answers_older_than_an_own_change_are_not_kept() {
        let table = Rc::new(InodeTable::default());
        let child = table.accept(&told(CHILD, 5, 1, 11), table.stamp(), None);
        let before = table.stamp();
        let change = table.begin_change(&[CHILD]);
        table.accept(&told(CHILD, 6, 2, 0), before, Some(&change));
        drop(change);
        table.accept(&told(CHILD, 5, 1, 0), before, None);
        assert_eq!(nlink(&child), Some(2));
        // Crossing changes whose answers come in the other order: the later version stays.
        let (one, two) = (table.begin_change(&[CHILD]), table.begin_change(&[CHILD]));
        table.accept(&told(CHILD, 8, 4, 0), before, Some(&two));
        table.accept(&told(CHILD, 7, 3, 0), before, Some(&one));
        assert_eq!(nlink(&child), Some(4));
    }

    #[test]
    fn a_directory_that_we_made_needs_no_questions() {
        let table = Rc::new(InodeTable::default());
        let dir = table.accept(&told(DIR, 1, 2, 10), table.stamp(), None);
        table.set_entries(&dir, [], table.stamp());
        assert!(matches!(table.find_name(&dir, b"a"), Name::Absent));
        table.entry_made(&dir, b"a");
        assert!(matches!(table.find_name(&dir, b"a"), Name::Unknown));
        assert!(matches!(table.find_name(&dir, b"b"), Name::Absent));
        table.entry_removed(&dir, b"a", table.stamp());
        assert!(matches!(table.find_name(&dir, b"a"), Name::Absent));
        table.revoke(DIR, 10).unwrap();
        assert!(matches!(table.find_name(&dir, b"b"), Name::Unknown), "somebody else may make names now");
    }

    /// The server named a lock again that was just being given back (superseded, or revoked by an event that overtook
    /// the answer); the client held on to it, and saw the directory as it was for ever.
    #[test]
    fn a_lock_on_its_way_back_is_not_held_again() {
        let table = Rc::new(InodeTable::default());
        let lock = |cookie, bits| Granted { cookie, mode: Mode::Pr, policy: Policy::Ibits(bits) };
        let dir = table.get_or_insert(DIR);
        table.add_lock(&dir, &lock(1, Ibits::UPDATE));
        table.add_lock(&dir, &lock(2, ALL_BITS));
        table.add_lock(&dir, &lock(1, Ibits::UPDATE));
        assert_eq!(table.take_superseded(), [1]);
        table.revoke(DIR, 2).unwrap();
        assert_eq!(dir.bits(), Ibits::empty());
        table.add_lock(&dir, &lock(2, ALL_BITS));
        assert_eq!(dir.bits(), Ibits::empty());
    }

    #[test]
    fn names_that_crossing_changes_answer_for_are_not_kept() {
        let table = Rc::new(InodeTable::default());
        let dir = table.accept(&told(DIR, 1, 2, 10), table.stamp(), None);
        let child = table.accept(&told(CHILD, 1, 1, 11), table.stamp(), None);
        table.set_entries(&dir, [], table.stamp());
        // The name was removed and made again; the answers come in the other order.
        let (removes, makes) = (table.begin_change(&[DIR]), table.begin_change(&[DIR]));
        table.entry_made(&dir, b"a");
        table.set_name(&dir, b"a", &child, table.stamp());
        drop(makes);
        table.entry_removed(&dir, b"a", table.stamp());
        table.set_absent(&dir, b"a", table.stamp());
        drop(removes);
        assert!(matches!(table.find_name(&dir, b"a"), Name::Unknown));
        // And made, then removed.
        let (makes, removes) = (table.begin_change(&[DIR]), table.begin_change(&[DIR]));
        table.entry_removed(&dir, b"a", table.stamp());
        table.set_absent(&dir, b"a", table.stamp());
        drop(removes);
        table.entry_made(&dir, b"a");
        table.set_name(&dir, b"a", &child, table.stamp());
        drop(makes);
        assert!(matches!(table.find_name(&dir, b"a"), Name::Unknown));
        drop(table.begin_change(&[DIR]));
        assert!(table.set_absent(&dir, b"a", table.stamp()));
    }

    #[test]
    fn a_listing_serves_reads_from_its_middle() {
        let table = Rc::new(InodeTable::default());
        let dir = table.accept(&told(DIR, 1, 2, 10), table.stamp(), None);
        let entry = |cookie| (cookie, vec![cookie as u8], CHILD, 0);
        let page = Rc::new(DirPage { entries: vec![entry(5), entry(9)], end: false });
        table.add_page(&dir, 0, page, table.stamp());
        assert!(table.page(&dir, 0).is_some() && table.page(&dir, 5).is_some());
        assert!(table.page(&dir, 9).is_none(), "what comes after 9 is not known");
        drop(table.begin_change(&[DIR]));
        table.forget_pages(&dir);
        assert!(table.page(&dir, 0).is_none());
    }

    #[test]
    fn inodes_that_come_and_go_leave_nothing() {
        let table = Rc::new(InodeTable::default());
        for oid in 1..10_000 {
            let cookie = u64::from(oid);
            let inode = table.accept(&told(Fid::new(0x2_0000_0401, oid), 1, 1, cookie), table.stamp(), None);
            assert_eq!(table.remove(&inode), [cookie]);
        }
        assert!(table.clock.borrow().len() <= CLOCK_SLACK + 1);
    }

    #[test]
    fn shrinking_takes_those_not_used_lately() {
        let table = Rc::new(InodeTable::default());
        for oid in 1..=10 {
            table.accept(&told(Fid::new(0x2_0000_0401, oid), 1, 1, oid.into()), table.stamp(), None);
        }
        assert_eq!(table.shrink(10, 100).len(), 0);
        assert_eq!(table.shrink(9, 100).len(), 0, "all were used since the last round");
        table.get(Fid::new(0x2_0000_0401, 1)).unwrap();
        let lost = table.shrink(8, 100);
        assert_eq!(lost.iter().map(|lost| lost.cookies[0]).collect::<Vec<_>>(), [2, 3]);
        assert_eq!(table.len(), 8);
    }
}
