//! Names: lookup, and everything that makes, moves and removes them. Each change is one request to the MDT, seen through
//! even if the caller stops waiting; its reply keeps our caches true.

use std::rc::Rc;

use nacre_wire::layout::StripeHint;
use nacre_wire::mdt::{self, Cred, NewKind, OpenFlags, RenameFlags, Slot};
use nacre_wire::{Fid, Status, attr};

use crate::api::{DirEntry, Entry, OpenMode, Opened};
use crate::client::{Client, run};
use crate::inode::{ALL_BITS, DirPage, Inode, KernelHolds, Name};
use crate::stats::add;

/// Filled in where the request is sent.
const SLOT: Slot = Slot { index: 0, xid: 0 };
/// Longest name, bytes.
const NAME_BYTES_MAX: usize = 255;

impl Client {
    pub(crate) async fn lookup_name(self: &Rc<Client>, parent: Fid, name: &[u8]) -> Result<Option<Entry>, Status> {
        check_name_length(name)?;
        let dir = self.inodes.get_or_insert(parent);
        match self.inodes.find_name(&dir, name) {
            Name::Child(child) => {
                add(&self.stats.lookup_hits, 1);
                match self.getattr_of(child.fid).await {
                    Err(Status::ENOENT) => self.inodes.forget_name(&dir, name),
                    outcome => return outcome.map(Some),
                }
            }
            Name::Absent => {
                add(&self.stats.lookup_hits, 1);
                dir.kernel_keeps(KernelHolds { negative: true, ..KernelHolds::default() });
                return Ok(None);
            }
            Name::Unknown => {}
        }
        add(&self.stats.lookup_misses, 1);
        let (client, name) = (self.clone(), name.to_vec());
        let found = run(async move {
            let stamp = client.inodes.stamp();
            let request = mdt::Lookup { parent, name, lock: ALL_BITS };
            add(&client.stats.mdt_calls, 1);
            let reply = client.mdt.lookup(&request).await?;
            let name = &request.name[..];
            let Some(told) = reply.inode else {
                client.inodes.add_lock(&dir, &reply.parent_lock);
                let kept = client.inodes.add_absent(&dir, name, stamp);
                client.tidy();
                return if kept { Ok(None) } else { Err(Status::ENOENT) };
            };
            let child = client.inodes.accept(&told, stamp, None);
            if name != b".." && name != b"." {
                client.inodes.add_name(&dir, name, &child, stamp);
            }
            client.tidy();
            Ok(Some((child, told)))
        })
        .await?;
        match found {
            Some((child, told)) => self.entry(&child, &told.attr, &told.layout).await.map(Some),
            None => {
                let dir = self.inodes.get_or_insert(parent);
                dir.kernel_keeps(KernelHolds { negative: true, ..KernelHolds::default() });
                Ok(None)
            }
        }
    }

    pub(crate) async fn make(
        self: &Rc<Client>,
        cred: &Cred,
        parent: Fid,
        name: &[u8],
        kind: NewKind,
        mode: u32,
    ) -> Result<Entry, Status> {
        let (inode, reply) = self.send_create(cred, parent, name, kind, mode, true, None).await?;
        self.entry(&inode, &reply.inode.attr, &reply.inode.layout).await
    }

    pub(crate) async fn make_node(
        self: &Rc<Client>,
        cred: &Cred,
        parent: Fid,
        name: &[u8],
        mode: u32,
        rdev: u64,
    ) -> Result<Entry, Status> {
        let kind = match mode & attr::mode::TYPE {
            0 | attr::mode::FILE => NewKind::File(StripeHint::default()),
            _ => NewKind::Special(rdev),
        };
        self.make(cred, parent, name, kind, mode).await
    }

    pub(crate) async fn create_open(
        self: &Rc<Client>,
        cred: &Cred,
        parent: Fid,
        name: &[u8],
        mode: u32,
        exclusive: bool,
        open: OpenMode,
    ) -> Result<Opened, Status> {
        let kind = NewKind::File(StripeHint::default());
        let (inode, reply) = self.send_create(cred, parent, name, kind, mode, exclusive, Some(open.flags)).await?;
        let truncate = open.flags.contains(OpenFlags::TRUNCATE) && !reply.created;
        self.finish_open(&inode, &reply, open, truncate, reply.created).await
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of one message")]
    async fn send_create(
        self: &Rc<Client>,
        cred: &Cred,
        parent: Fid,
        name: &[u8],
        kind: NewKind,
        mode: u32,
        exclusive: bool,
        open: Option<OpenFlags>,
    ) -> Result<(Rc<Inode>, mdt::CreateReply), Status> {
        check_name_length(name)?;
        let (client, time) = (self.clone(), self.env.wall());
        let request = mdt::Create {
            slot: SLOT,
            cred: cred.clone(),
            parent,
            name: name.to_vec(),
            kind,
            mode,
            time,
            exclusive,
            open,
            lock: ALL_BITS,
        };
        run(async move {
            let change = client.inodes.begin_change(&[parent]);
            let stamp = client.inodes.stamp();
            let name = request.name.clone();
            add(&client.stats.mdt_calls, 1);
            let reply = match client.mdt.create(request).await {
                Ok(reply) => reply,
                Err(error) => {
                    // Somebody else's file may be there by now.
                    let dir = client.inodes.get_or_insert(parent);
                    client.inodes.forget_name(&dir, &name);
                    client.inodes.entries_unknown(&dir);
                    return Err(error.into());
                }
            };
            let dir = client.inodes.get_or_insert(parent);
            let child = client.inodes.accept(&reply.inode, stamp, None);
            if let Some(attr) = &reply.parent {
                dir.take_changed_attr(attr);
            }
            if reply.created {
                client.inodes.forget_pages(&dir);
                if reply.inode.attr.is_dir() {
                    client.inodes.set_entries(&child, [], stamp);
                }
            }
            client.inodes.entry_made(&dir, &name);
            client.inodes.set_name(&dir, &name, &child, stamp);
            drop(change);
            client.tidy();
            Ok((child, reply))
        })
        .await
    }

    pub(crate) async fn make_link(
        self: &Rc<Client>,
        cred: &Cred,
        fid: Fid,
        parent: Fid,
        name: &[u8],
    ) -> Result<Entry, Status> {
        check_name_length(name)?;
        let (client, time) = (self.clone(), self.env.wall());
        let request =
            mdt::Link { slot: SLOT, cred: cred.clone(), fid, parent, name: name.to_vec(), time, lock: ALL_BITS };
        let (inode, told) = run(async move {
            let change = client.inodes.begin_change(&[fid, parent]);
            let stamp = client.inodes.stamp();
            let name = request.name.clone();
            add(&client.stats.mdt_calls, 1);
            let outcome = client.mdt.link(request).await;
            let dir = client.inodes.get_or_insert(parent);
            let reply = match outcome {
                Ok(reply) => reply,
                Err(error) => {
                    client.inodes.forget_name(&dir, &name);
                    client.inodes.entries_unknown(&dir);
                    return Err(error.into());
                }
            };
            client.inodes.entry_made(&dir, &name);
            let inode = client.inodes.accept(&reply.inode, stamp, Some(&change));
            if let Some(attr) = &reply.parent {
                dir.take_changed_attr(attr);
            }
            client.inodes.forget_pages(&dir);
            client.inodes.set_name(&dir, &name, &inode, stamp);
            drop(change);
            client.tidy();
            Ok((inode, reply.inode))
        })
        .await?;
        self.entry(&inode, &told.attr, &told.layout).await
    }

    pub(crate) async fn remove_name(
        self: &Rc<Client>,
        cred: &Cred,
        parent: Fid,
        name: &[u8],
        directory: bool,
    ) -> Result<(), Status> {
        check_name_length(name)?;
        let (client, time) = (self.clone(), self.env.wall());
        let request = mdt::Unlink { slot: SLOT, cred: cred.clone(), parent, name: name.to_vec(), directory, time };
        run(async move {
            let dir = client.inodes.get_or_insert(parent);
            let mut fids = vec![parent];
            if let Name::Child(child) = client.inodes.find_name(&dir, &request.name) {
                fids.push(child.fid);
            }
            let change = client.inodes.begin_change(&fids);
            let stamp = client.inodes.stamp();
            let name = request.name.clone();
            add(&client.stats.mdt_calls, 1);
            let outcome = client.mdt.unlink(request).await;
            client.inodes.forget_name(&dir, &name);
            if outcome.is_err() {
                client.inodes.entries_unknown(&dir);
            }
            let reply = outcome?;
            client.inodes.forget_pages(&dir);
            client.inodes.entry_removed(&dir, &name, stamp);
            client.inodes.set_absent(&dir, &name, stamp);
            dir.take_changed_attr(&reply.parent);
            if let Some((fid, attr)) = &reply.victim {
                client.inodes.accept_attr(*fid, attr, stamp, Some(&change));
            }
            drop(change);
            if let Some((fid, _)) = reply.victim {
                client.lost_a_name(fid, reply.gone);
            }
            Ok(())
        })
        .await
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of one message")]
    pub(crate) async fn move_name(
        self: &Rc<Client>,
        cred: &Cred,
        parent: Fid,
        name: &[u8],
        new_parent: Fid,
        new_name: &[u8],
        flags: RenameFlags,
    ) -> Result<(), Status> {
        check_name_length(name)?;
        check_name_length(new_name)?;
        let (client, time) = (self.clone(), self.env.wall());
        let request = mdt::Rename {
            slot: SLOT,
            cred: cred.clone(),
            parent,
            name: name.to_vec(),
            new_parent,
            new_name: new_name.to_vec(),
            flags,
            time,
        };
        run(async move {
            let (dir, new_dir) = (client.inodes.get_or_insert(parent), client.inodes.get_or_insert(new_parent));
            let (name, new_name) = (request.name.clone(), request.new_name.clone());
            let new_was_absent = matches!(client.inodes.find_name(&new_dir, &new_name), Name::Absent);
            let mut fids = vec![parent, new_parent];
            for (dir, name) in [(&dir, &name), (&new_dir, &new_name)] {
                if let Name::Child(child) = client.inodes.find_name(dir, name) {
                    fids.push(child.fid);
                }
            }
            let change = client.inodes.begin_change(&fids);
            let stamp = client.inodes.stamp();
            add(&client.stats.mdt_calls, 1);
            let outcome = client.mdt.rename(request).await;
            client.inodes.forget_name(&dir, &name);
            client.inodes.forget_name(&new_dir, &new_name);
            if outcome.is_err() {
                client.inodes.entries_unknown(&dir);
                client.inodes.entries_unknown(&new_dir);
            }
            let reply = outcome?;
            client.inodes.forget_pages(&dir);
            client.inodes.forget_pages(&new_dir);
            dir.take_changed_attr(&reply.parent);
            if let Some(attr) = &reply.new_parent {
                new_dir.take_changed_attr(attr);
            }
            for (fid, attr) in reply.moved.iter().chain(&reply.victim) {
                client.inodes.accept_attr(*fid, attr, stamp, Some(&change));
                if let Some(inode) = client.inodes.get(*fid) {
                    inode.forget_parent();
                }
            }
            let exchange = flags.contains(RenameFlags::EXCHANGE);
            if reply.moved.is_none() {
                // A server that does not say what it did.
                client.inodes.entries_unknown(&dir);
                client.inodes.entries_unknown(&new_dir);
            }
            if !exchange && let Some((fid, attr)) = &reply.moved {
                client.inodes.entry_made(&new_dir, &new_name);
                // Two names of one file: rename(2) leaves both as they are, and the answer does not say so.
                let one_name = parent == new_parent && name == new_name;
                let linked = reply.victim.is_none() && !attr.is_dir() && attr.nlink > 1 && !new_was_absent;
                let same_file = one_name || linked;
                if same_file {
                    client.inodes.entries_unknown(&dir);
                } else {
                    client.inodes.entry_removed(&dir, &name, stamp);
                }
                if !same_file && let Some(inode) = client.inodes.get(*fid) {
                    client.inodes.set_name(&new_dir, &new_name, &inode, stamp);
                }
            }
            drop(change);
            if !exchange && let Some((fid, _)) = reply.victim {
                client.lost_a_name(fid, reply.gone);
            }
            Ok(())
        })
        .await
    }

    pub(crate) async fn list(
        self: &Rc<Client>,
        fid: Fid,
        after: u64,
        bytes_max: u32,
        plus: bool,
    ) -> Result<Vec<DirEntry>, Status> {
        let dir = self.inodes.get_or_insert(fid);
        let mut entries = Vec::new();
        if after < 2 {
            let parent = if fid == self.root.get() { fid } else { self.parent_of(&dir).await? };
            let dots = [(1, &b"."[..], fid), (2, &b".."[..], parent)];
            for (cookie, name, fid) in dots.into_iter().filter(|dot| dot.0 > after) {
                let name = name.to_vec();
                entries.push(DirEntry { cookie, name, fid, kind: attr::mode::DIR, entry: None });
            }
        }
        let after = if after <= 2 { 0 } else { after };
        if !plus && let Some(page) = self.inodes.page(&dir, after) {
            let rest = page.entries.iter().filter(|entry| entry.0 > after);
            entries.extend(rest.map(|(cookie, name, fid, kind)| DirEntry {
                cookie: *cookie,
                name: name.clone(),
                fid: *fid,
                kind: *kind,
                entry: None,
            }));
            return Ok(entries);
        }
        let client = self.clone();
        let told = run(async move {
            let stamp = client.inodes.stamp();
            add(&client.stats.mdt_calls, 1);
            let reply = client.mdt.read_dir(&mdt::ReadDir { fid, after, bytes_max, plus }).await?;
            client.inodes.add_lock(&dir, &reply.lock);
            dir.set_parent(reply.parent, stamp);
            let names = reply.entries.iter().map(|entry| (entry.cookie, entry.name.clone(), entry.fid, entry.kind));
            let page = Rc::new(DirPage { entries: names.collect(), end: reply.end });
            if after == 0 && page.end {
                client.inodes.set_entries(&dir, page.entries.iter().map(|entry| entry.1.clone()), stamp);
            }
            client.inodes.add_page(&dir, after, page, stamp);
            let mut told = Vec::new();
            for entry in reply.entries {
                let mut inode = None;
                if let Some(answer) = &entry.inode {
                    let child = client.inodes.accept(answer, stamp, None);
                    client.inodes.add_name(&dir, &entry.name, &child, stamp);
                    inode = Some(child);
                }
                told.push((entry, inode));
            }
            client.tidy();
            Ok(told)
        })
        .await?;
        let mut told = told.into_iter().peekable();
        while told.peek().is_some() {
            // Sizes are asked for together, but not a whole directory's at once.
            let batch: Vec<_> = told.by_ref().take(GLIMPSE_BATCH).collect();
            let filled = batch.into_iter().map(async |(named, inode)| {
                let entry = match (&named.inode, &inode) {
                    // Without it the name is still good; whoever wants more asks.
                    (Some(told), Some(inode)) => self.entry(inode, &told.attr, &told.layout).await.ok(),
                    _ => None,
                };
                DirEntry { cookie: named.cookie, name: named.name, fid: named.fid, kind: named.kind, entry }
            });
            entries.extend(futures_util::future::join_all(filled).await);
        }
        Ok(entries)
    }

    async fn parent_of(self: &Rc<Client>, dir: &Rc<Inode>) -> Result<Fid, Status> {
        if let Some(parent) = dir.parent() {
            return Ok(parent);
        }
        let client = self.clone();
        let dir = dir.clone();
        run(async move {
            let stamp = client.inodes.stamp();
            add(&client.stats.mdt_calls, 1);
            let reply =
                client.mdt.read_dir(&mdt::ReadDir { fid: dir.fid, after: 0, bytes_max: 0, plus: false }).await?;
            client.inodes.add_lock(&dir, &reply.lock);
            dir.set_parent(reply.parent, stamp);
            client.tidy();
            Ok(reply.parent)
        })
        .await
    }

    /// An inode has one name less. Without any it lives on for as long as somebody has it open, on any client, and so does
    /// what was written to it: only the MDT knows.
    fn lost_a_name(&self, fid: Fid, gone: bool) {
        if gone && let Some(inode) = self.inodes.get(fid) {
            self.bury(&inode);
        }
    }
}

fn check_name_length(name: &[u8]) -> Result<(), Status> {
    if name.len() > NAME_BYTES_MAX { Err(Status::ENAMETOOLONG) } else { Ok(()) }
}

/// Files whose sizes are asked for at once by a listing with attributes.
const GLIMPSE_BATCH: usize = 64;
