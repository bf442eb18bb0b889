//! Attributes: merged from MDT and OSTs, changed at both; extended attributes; striping information.

use std::rc::Rc;

use nacre_wire::layout::StripeHint;
use nacre_wire::ldlm::Ibits;
use nacre_wire::mdt::{self, Cred, OpenFlags, Slot};
use nacre_wire::{Attr, AttrPatch, Fid, Layout, Status, Time, attr};

use crate::api::{Entry, HandleId};
use crate::attr_merge;
use crate::client::{Client, run};
use crate::file::File;
use crate::inode::{ALL_BITS, Inode, KernelHolds};
use crate::stats::add;

/// Filled in where the request is sent.
const SLOT: Slot = Slot { index: 0, xid: 0 };

impl Client {
    /// An inode as its user sees it, from what the MDT told.
    pub(crate) async fn entry(
        self: &Rc<Client>,
        inode: &Rc<Inode>,
        told: &Attr,
        layout: &Option<Layout>,
    ) -> Result<Entry, Status> {
        let fid = inode.fid;
        if !told.is_file() {
            let keep_attr = inode.attr().is_some();
            return Ok(self.keep(inode, Entry { fid, attr: told.clone(), keep_attr, keep_name: false }));
        }
        let Some(layout) = layout else {
            let keep_attr = inode.attr().is_some() && inode.bits().contains(Ibits::LAYOUT);
            let attr = attr_merge::without_objects(told);
            return Ok(self.keep(inode, Entry { fid, attr, keep_attr, keep_name: false }));
        };
        let file = self.file_of(inode, layout, false)?;
        let objects = file.attrs().await?;
        // The MDT's side may have moved while the OSTs were asked.
        let told = inode.attr().unwrap_or_else(|| told.clone());
        let attr = attr_merge::merge(&told, &file.layout, &objects);
        let keep_attr = inode.attr().is_some() && file.attrs_known().is_some();
        if keep_attr {
            // A revocation of a data lock has to reach the kernel's attributes as well.
            file.objects.iter().for_each(|object| object.note_kernel_attr());
        }
        Ok(self.keep(inode, Entry { fid, attr, keep_attr, keep_name: false }))
    }

    fn keep(&self, inode: &Inode, mut entry: Entry) -> Entry {
        entry.keep_name = inode.bits().contains(Ibits::LOOKUP);
        inode.kernel_keeps(KernelHolds { attr: entry.keep_attr, name: entry.keep_name, negative: false });
        entry
    }

    /// The data side of a file with this layout. `fresh`: it was made just now, by us.
    pub(crate) fn file_of(
        self: &Rc<Client>,
        inode: &Rc<Inode>,
        layout: &Layout,
        fresh: bool,
    ) -> Result<Rc<File>, Status> {
        if let Some(file) = inode.file()
            && file.layout == *layout
        {
            return Ok(file);
        }
        let file = File::new(self, inode.fid, layout.clone(), fresh)?;
        inode.set_file(Some(file.clone()));
        Ok(file)
    }

    /// Attributes and layout as the MDT has them, from memory where that is allowed.
    pub(crate) async fn mdt_attr(self: &Rc<Client>, fid: Fid) -> Result<(Rc<Inode>, Attr, Option<Layout>), Status> {
        if let Some(inode) = self.inodes.get(fid)
            && let (Some(attr), Some(layout)) = (inode.attr(), inode.layout())
        {
            add(&self.stats.attr_hits, 1);
            return Ok((inode, attr, layout));
        }
        add(&self.stats.attr_misses, 1);
        let client = self.clone();
        run(async move {
            let stamp = client.inodes.stamp();
            add(&client.stats.mdt_calls, 1);
            let told = client.mdt.get_attr(&mdt::GetAttr { fid, lock: ALL_BITS }).await?;
            let inode = client.inodes.accept(&told, stamp, None);
            client.tidy();
            Ok((inode, told.attr, told.layout))
        })
        .await
    }

    pub(crate) async fn getattr_of(self: &Rc<Client>, fid: Fid) -> Result<Entry, Status> {
        let (inode, attr, layout) = self.mdt_attr(fid).await?;
        self.entry(&inode, &attr, &layout).await
    }

    pub(crate) async fn setattr_of(
        self: &Rc<Client>,
        cred: &Cred,
        fid: Fid,
        patch: AttrPatch,
        handle: Option<HandleId>,
        kill_privileges: bool,
    ) -> Result<Entry, Status> {
        let mut patch = patch;
        let size = patch.size.take();
        let mut time = self.env.wall();
        let mut kill = kill_privileges;
        if let Some(size) = size {
            let (inode, told, layout) = self.mdt_attr(fid).await?;
            match told.mode & attr::mode::TYPE {
                attr::mode::FILE => {}
                attr::mode::DIR => return Err(Status::EISDIR),
                _ => return Err(Status::EINVAL),
            }
            match handle {
                Some(handle) if !self.handles.get(handle)?.mode.flags.contains(OpenFlags::WRITE) => {
                    return Err(Status::EINVAL);
                }
                Some(_) => {}
                None => may_write(cred, &told)?,
            }
            let cut = self.time_of_change(&inode);
            self.truncate(cred, &inode, layout, size, cut).await?;
            kill &= told.mode & (attr::mode::SETUID | attr::mode::SETGID) != 0;
            let nothing_else = patch == AttrPatch::default() && !kill;
            // Only the objects' times have moved: the MDT need not hear of it, unless there are no objects to move.
            if nothing_else && inode.file().is_some() {
                return self.getattr_of(fid).await;
            }
            if inode.file().is_none() {
                patch.mtime.get_or_insert(time);
            }
        }
        if let Some(file) = self.inodes.get(fid).and_then(|inode| inode.file()) {
            time = time.max(just_after(file.newest_ctime()));
        }
        let client = self.clone();
        let cred = cred.clone();
        let kill_privileges = kill;
        let (inode, told) = run(async move {
            let change = client.inodes.begin_change(&[fid]);
            let stamp = client.inodes.stamp();
            let request = mdt::SetAttr { slot: SLOT, cred, fid, patch, kill_privileges, time, lock: ALL_BITS };
            add(&client.stats.mdt_calls, 1);
            let told = client.mdt.set_attr(request).await?;
            let inode = client.inodes.accept(&told, stamp, Some(&change));
            drop(change);
            client.tidy();
            Ok((inode, told))
        })
        .await?;
        self.entry(&inode, &told.attr, &told.layout).await
    }

    /// Clears setuid and setgid as a write by this user must.
    pub(crate) async fn kill_privileges(self: &Rc<Client>, cred: &Cred, fid: Fid) -> Result<(), Status> {
        let (_, told, _) = self.mdt_attr(fid).await?;
        if told.mode & (attr::mode::SETUID | attr::mode::SETGID) != 0 {
            self.setattr_of(cred, fid, AttrPatch::default(), None, true).await?;
        }
        Ok(())
    }

    async fn truncate(
        self: &Rc<Client>,
        cred: &Cred,
        inode: &Rc<Inode>,
        layout: Option<Layout>,
        size: u64,
        time: Time,
    ) -> Result<(), Status> {
        if size > self.largest_file() {
            return Err(Status::EFBIG);
        }
        // What this file's own stripes can hold is checked with the truncate.
        let file = match (inode.file(), layout) {
            (Some(file), _) => file,
            (None, Some(layout)) => self.file_of(inode, &layout, false)?,
            (None, None) if size == 0 => return Ok(()),
            (None, None) => self.give_objects(cred, inode).await?,
        };
        let (client, inode) = (self.clone(), inode.clone());
        run(async move {
            let outcome = file.truncate(size, time).await;
            drop((client, inode));
            outcome
        })
        .await
    }

    /// A file that was never opened for writing has no objects: an open for writing makes them.
    pub(crate) async fn give_objects(self: &Rc<Client>, cred: &Cred, inode: &Rc<Inode>) -> Result<Rc<File>, Status> {
        let (client, cred, fid, time) = (self.clone(), cred.clone(), inode.fid, self.env.wall());
        let layout = run(async move {
            let change = client.inodes.begin_change(&[fid]);
            let stamp = client.inodes.stamp();
            add(&client.stats.mdt_calls, 2);
            // Whether this user may write was asked before; a handle may have been opened under other permissions.
            let cred = Cred { uid: 0, ..cred };
            let request = mdt::Open { cred, fid, flags: OpenFlags::WRITE, lock: ALL_BITS, time };
            let reply = client.mdt.open(&request).await?;
            let inode = client.inodes.accept(&reply.inode, stamp, Some(&change));
            inode.set_layout(&reply.inode.layout);
            client.close_later(mdt::Close { fid, handle: reply.handle, attr: None });
            Ok(reply.inode.layout)
        })
        .await?;
        self.file_of(inode, &layout.ok_or(Status::EPROTO)?, false)
    }

    // ---- extended attributes ----

    pub(crate) async fn xattr_get(self: &Rc<Client>, cred: &Cred, fid: Fid, name: &[u8]) -> Result<Vec<u8>, Status> {
        let inode = self.inodes.get_or_insert(fid);
        let shared = !name.starts_with(b"trusted.");
        if shared && let Some(known) = inode.xattr(name) {
            return known.ok_or(Status::ENODATA);
        }
        let (client, cred, name) = (self.clone(), cred.clone(), name.to_vec());
        run(async move {
            let stamp = client.inodes.stamp();
            add(&client.stats.mdt_calls, 1);
            let request = mdt::GetXattr { cred, fid, name };
            let answer = client.mdt.get_xattr(&request).await.map_err(Status::from);
            if shared {
                match &answer {
                    Ok(value) => inode.add_xattr(&request.name, Some(value.clone()), stamp),
                    Err(Status::ENODATA) => inode.add_xattr(&request.name, None, stamp),
                    Err(_) => {}
                }
            }
            answer
        })
        .await
    }

    pub(crate) async fn xattr_list(self: &Rc<Client>, cred: &Cred, fid: Fid) -> Result<Vec<Vec<u8>>, Status> {
        let inode = self.inodes.get_or_insert(fid);
        let root = cred.uid == 0;
        if let Some(known) = inode.xattr_list(root) {
            return Ok(known);
        }
        let (client, cred) = (self.clone(), cred.clone());
        run(async move {
            let stamp = client.inodes.stamp();
            add(&client.stats.mdt_calls, 1);
            let names = client.mdt.list_xattr(&mdt::ListXattr { cred, fid }).await?;
            inode.add_xattr_list(root, names.clone(), stamp);
            Ok(names)
        })
        .await
    }

    pub(crate) async fn xattr_change(
        self: &Rc<Client>,
        cred: &Cred,
        fid: Fid,
        name: &[u8],
        value: Option<Vec<u8>>,
        create: bool,
        replace: bool,
    ) -> Result<(), Status> {
        let request = mdt::SetXattr {
            slot: SLOT,
            cred: cred.clone(),
            fid,
            name: name.to_vec(),
            value,
            create,
            replace,
            time: self.env.wall(),
        };
        let client = self.clone();
        run(async move {
            let change = client.inodes.begin_change(&[fid]);
            let stamp = client.inodes.stamp();
            add(&client.stats.mdt_calls, 1);
            let told = client.mdt.set_xattr(request).await;
            client.inodes.get_or_insert(fid).forget_xattrs();
            client.inodes.accept(&told?, stamp, Some(&change));
            drop(change);
            client.tidy();
            Ok(())
        })
        .await
    }

    // ---- striping ----

    pub(crate) async fn stripe_set(self: &Rc<Client>, cred: &Cred, fid: Fid, hint: StripeHint) -> Result<(), Status> {
        hint.validate()?;
        let request = mdt::SetStripe { slot: SLOT, cred: cred.clone(), fid, hint, time: self.env.wall() };
        let client = self.clone();
        run(async move {
            let change = client.inodes.begin_change(&[fid]);
            let stamp = client.inodes.stamp();
            add(&client.stats.mdt_calls, 1);
            let told = client.mdt.set_stripe(request).await?;
            let inode = client.inodes.accept(&told, stamp, Some(&change));
            inode.set_layout(&told.layout);
            drop(change);
            client.tidy();
            Ok(())
        })
        .await
    }

    /// Now, or just after the last change that the MDT knows: times of one file tell the order of its changes.
    pub(crate) fn time_of_change(&self, inode: &Inode) -> Time {
        let known = inode.attr().map_or(Time::default(), |attr| attr.ctime);
        self.env.wall().max(just_after(known))
    }

    /// Sends CLOSE behind the caller's back.
    pub(crate) fn close_later(&self, request: mdt::Close) {
        let client = self.rc();
        self.background.set(self.background.get() + 1);
        tokio::task::spawn_local(async move {
            match client.mdt.close(&request).await {
                Ok(reply) => {
                    if reply.gone
                        && let Some(inode) = client.inodes.get(request.fid)
                    {
                        client.bury(&inode);
                    }
                }
                Err(error) => tracing::debug!("{}: close failed: {error}", request.fid),
            }
            client.background.set(client.background.get() - 1);
            client.background_done.notify_waiters();
        });
    }

    /// Largest file there can be: striped over all OSTs. Files with fewer stripes end earlier ([`File::bytes_max`]).
    pub(crate) fn largest_file(&self) -> u64 {
        let osts = self.all_osts();
        let limits = osts.iter().filter_map(|ost| ost.stub.import.connect_reply());
        let object_max = limits.map(|reply| reply.object_bytes_max).min().unwrap_or(u64::MAX);
        // The kernel's loff_t ends there.
        object_max.saturating_mul(osts.len() as u64).min(i64::MAX as u64)
    }
}

/// Classic permission bits, for the one check that no server makes: truncate(2) changes objects, which know no modes.
fn may_write(cred: &Cred, attr: &Attr) -> Result<(), Status> {
    let bit = if cred.uid == attr.uid {
        0o200
    } else if cred.gid == attr.gid || cred.groups.contains(&attr.gid) {
        0o020
    } else {
        0o002
    };
    if cred.uid == 0 || attr.mode & bit != 0 { Ok(()) } else { Err(Status::EACCES) }
}

fn just_after(time: Time) -> Time {
    match time.nanoseconds {
        999_999_999 => Time { seconds: time.seconds + 1, nanoseconds: 0 },
        nanoseconds => Time { nanoseconds: nanoseconds + 1, ..time },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncate_asks_for_the_right_bit() {
        let attr = Attr { mode: 0o100_420, uid: 1, gid: 2, ..Attr::default() };
        let cred = |uid, gid, groups: &[u32]| Cred { uid, gid, groups: groups.to_vec(), job: String::new() };
        assert_eq!(may_write(&cred(0, 0, &[]), &attr), Ok(()));
        assert_eq!(may_write(&cred(1, 2, &[]), &attr), Err(Status::EACCES), "the owner's bits count for the owner");
        assert_eq!(may_write(&cred(3, 2, &[]), &attr), Ok(()));
        assert_eq!(may_write(&cred(3, 4, &[5, 2]), &attr), Ok(()));
        assert_eq!(may_write(&cred(3, 4, &[]), &attr), Err(Status::EACCES));
    }
}
