//! [`FileSystem`] for [`Client`]: open files and their data here; names, attributes and locks in their own modules.

use std::ops::Range;
use std::rc::Rc;

use nacre_reactor::Bytes;
use nacre_wire::layout::StripeHint;
use nacre_wire::mdt::{self, Cred, NewKind, OpenFlags, RenameFlags};
use nacre_wire::{AttrPatch, Fid, Layout, Status};

use crate::api::{
    DirEntry, Entry, FileSystem, HandleId, LockOwner, LockRange, MountStatfs, OpenMode, Opened, SpaceMode, WriteMode,
};
use crate::client::{Client, run};
use crate::file::{File, ReadHow, WriteHow};
use crate::handles::Handle;
use crate::inode::{ALL_BITS, Inode};
use crate::stats::add;

impl Client {
    pub(crate) async fn finish_open(
        self: &Rc<Client>,
        inode: &Rc<Inode>,
        reply: &mdt::CreateReply,
        mode: OpenMode,
        truncate: bool,
        fresh: bool,
    ) -> Result<Opened, Status> {
        if let Some(layout) = &reply.inode.layout {
            inode.set_layout(&reply.inode.layout);
            let opened = match self.file_of(inode, layout, fresh) {
                // The MDT has cleared privileges and set times with the open; the data is ours to cut.
                Ok(file) if truncate => file.truncate(0, self.time_of_change(inode)).await,
                Ok(_) => Ok(()),
                Err(status) => Err(status),
            };
            if let Err(status) = opened {
                self.close_later(mdt::Close { fid: inode.fid, handle: reply.handle, attr: None });
                return Err(status);
            }
        }
        let handle = self.handles.add(inode.clone(), mode, reply.handle);
        let entry = if fresh {
            // Nobody has written yet: the OSTs need not be asked.
            let attr = crate::attr_merge::without_objects(&reply.inode.attr);
            let keep_name = inode.bits().contains(nacre_wire::ldlm::Ibits::LOOKUP);
            inode.kernel_keeps(crate::inode::KernelHolds { name: keep_name, ..Default::default() });
            Ok(Entry { fid: inode.fid, attr, keep_attr: false, keep_name })
        } else {
            self.entry(inode, &reply.inode.attr, &reply.inode.layout).await
        };
        match entry {
            // Pages that are there were read under read locks; a mapping could write to them.
            Ok(entry) => Ok(Opened { handle, entry, keep_data: !mode.direct && !mode.can_map_for_writing() }),
            Err(status) => {
                self.close_handle(handle)?;
                Err(status)
            }
        }
    }

    /// The data side of an open file; `None`: no objects, so nothing but zeros of length zero.
    async fn data(self: &Rc<Client>, handle: &Handle) -> Result<Option<Rc<File>>, Status> {
        if let Some(file) = handle.inode.file() {
            return Ok(Some(file));
        }
        let (inode, _, layout) = self.mdt_attr(handle.inode.fid).await?;
        layout.map(|layout| self.file_of(&inode, &layout, false)).transpose()
    }

    fn close_handle(&self, id: HandleId) -> Result<(), Status> {
        let handle = self.handles.remove(id)?;
        let inode = &handle.inode;
        if handle.mdt_handle != 0 {
            let attr = inode.file().filter(|_| handle.wrote.get()).and_then(|file| {
                let objects = file.attrs_known()?;
                let merged = crate::attr_merge::merge(&inode.attr()?, &file.layout, &objects);
                Some(AttrPatch { size: Some(merged.size), mtime: Some(merged.mtime), ..AttrPatch::default() })
            });
            self.close_later(mdt::Close { fid: inode.fid, handle: handle.mdt_handle, attr });
        }
        Ok(())
    }

    async fn sync_mdt(&self, inode: &Inode) -> Result<(), Status> {
        let request = mdt::Sync { fid: inode.fid };
        inode.stability.ensure(inode.stability.now(), self.mdt.sync(&request)).await?;
        Ok(())
    }
}

impl FileSystem for Client {
    fn root(&self) -> Fid {
        self.root.get()
    }

    fn file_bytes_max(&self) -> u64 {
        self.largest_file()
    }

    async fn lookup(&self, parent: Fid, name: &[u8]) -> Result<Option<Entry>, Status> {
        self.rc().lookup_name(parent, name).await
    }

    async fn getattr(&self, fid: Fid) -> Result<Entry, Status> {
        self.rc().getattr_of(fid).await
    }

    async fn setattr(
        &self,
        cred: &Cred,
        fid: Fid,
        patch: AttrPatch,
        handle: Option<HandleId>,
        kill_privileges: bool,
    ) -> Result<Entry, Status> {
        self.rc().setattr_of(cred, fid, patch, handle, kill_privileges).await
    }

    async fn mknod(&self, cred: &Cred, parent: Fid, name: &[u8], mode: u32, rdev: u64) -> Result<Entry, Status> {
        self.rc().make_node(cred, parent, name, mode, rdev).await
    }

    async fn mkdir(&self, cred: &Cred, parent: Fid, name: &[u8], mode: u32) -> Result<Entry, Status> {
        self.rc().make(cred, parent, name, NewKind::Dir(StripeHint::default()), mode).await
    }

    async fn symlink(&self, cred: &Cred, parent: Fid, name: &[u8], target: &[u8]) -> Result<Entry, Status> {
        let client = self.rc();
        let entry = client.make(cred, parent, name, NewKind::Symlink(target.to_vec()), 0o777).await?;
        if let Some(inode) = client.inodes.get(entry.fid) {
            inode.set_link_target(target);
        }
        Ok(entry)
    }

    async fn readlink(&self, fid: Fid) -> Result<Vec<u8>, Status> {
        let inode = self.inodes.get_or_insert(fid);
        if let Some(target) = inode.link_target() {
            return Ok(target);
        }
        add(&self.stats.mdt_calls, 1);
        let target = self.mdt.read_link(&mdt::ReadLink { fid }).await?;
        inode.set_link_target(&target);
        Ok(target)
    }

    async fn link(&self, cred: &Cred, fid: Fid, parent: Fid, name: &[u8]) -> Result<Entry, Status> {
        self.rc().make_link(cred, fid, parent, name).await
    }

    async fn unlink(&self, cred: &Cred, parent: Fid, name: &[u8], directory: bool) -> Result<(), Status> {
        self.rc().remove_name(cred, parent, name, directory).await
    }

    async fn rename(
        &self,
        cred: &Cred,
        parent: Fid,
        name: &[u8],
        new_parent: Fid,
        new_name: &[u8],
        flags: RenameFlags,
    ) -> Result<(), Status> {
        self.rc().move_name(cred, parent, name, new_parent, new_name, flags).await
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
        let (client, cred, name) = (self.rc(), cred.clone(), name.to_vec());
        let opened = AbandonedOpen::new(&client);
        let taken = opened.clone();
        let answer = run(async move {
            let answer = client.create_open(&cred, parent, &name, mode, exclusive, open).await;
            taken.arrived(&answer);
            answer
        })
        .await;
        opened.keep();
        answer
    }

    async fn open(&self, cred: &Cred, fid: Fid, mode: OpenMode) -> Result<Opened, Status> {
        let (client, cred) = (self.rc(), cred.clone());
        let opened = AbandonedOpen::new(&client);
        let taken = opened.clone();
        let answer = run(async move {
            let answer = client.open_fid(cred, fid, mode).await;
            taken.arrived(&answer);
            answer
        })
        .await;
        opened.keep();
        answer
    }

    async fn flush(&self, handle: HandleId, owner: LockOwner) -> Result<(), Status> {
        let handle = self.handles.get(handle)?;
        let dropped = self.rc().flock_drop(handle.inode.fid, owner, false).await;
        // What is dirty goes out in the background: its space is granted, and locks show it to everybody meanwhile.
        handle.take_failure()?;
        dropped
    }

    async fn release(&self, handle: HandleId, bsd_owner: Option<LockOwner>) -> Result<(), Status> {
        let fid = self.handles.get(handle)?.inode.fid;
        let client = self.rc();
        let dropped = match bsd_owner {
            Some(owner) => client.flock_drop(fid, owner, true).await,
            None => Ok(()),
        };
        client.close_handle(handle)?;
        dropped
    }

    async fn fsync(&self, handle: HandleId, _data_only: bool) -> Result<(), Status> {
        let handle = self.handles.get(handle)?;
        let data = async {
            match handle.inode.file() {
                Some(file) => file.sync(self.env.now()).await,
                None => Ok(()),
            }
        };
        // fdatasync may leave out what is not needed to find the data; that the file exists is needed.
        let (data, meta) = tokio::join!(data, self.sync_mdt(&handle.inode));
        handle.take_failure()?;
        data.and(meta)
    }

    async fn fsync_dir(&self, fid: Fid) -> Result<(), Status> {
        self.sync_mdt(&self.inodes.get_or_insert(fid)).await
    }

    async fn read(&self, handle: HandleId, offset: u64, length: usize) -> Result<Vec<Bytes>, Status> {
        self.read_for(handle, offset, length, false).await
    }

    async fn read_page(&self, handle: HandleId, offset: u64, length: usize) -> Result<Vec<Bytes>, Status> {
        self.read_for(handle, offset, length, true).await
    }

    async fn write(
        &self,
        cred: &Cred,
        handle: HandleId,
        offset: u64,
        data: Bytes,
        mode: WriteMode,
    ) -> Result<(), Status> {
        let client = self.rc();
        let handle = self.handles.get(handle)?;
        if !handle.mode.flags.contains(OpenFlags::WRITE) && !mode.from_cache {
            return Err(Status::EBADF);
        }
        if data.is_empty() {
            return Ok(());
        }
        if mode.kill_privileges && !mode.from_cache {
            client.kill_privileges(cred, handle.inode.fid).await?;
        }
        let file = match client.data(&handle).await? {
            Some(file) => file,
            None => client.give_objects(cred, &handle.inode).await?,
        };
        handle.wrote.set(true);
        let bytes = data.len() as u64;
        let how = WriteHow {
            append: handle.mode.append && !mode.from_cache,
            direct: handle.mode.direct && !mode.from_cache,
            sync: handle.mode.sync && !mode.from_cache,
            time: self.time_of_change(&handle.inode),
        };
        file.write(&client, offset, data, how).await?;
        if how.sync {
            self.sync_mdt(&handle.inode).await?;
        }
        add(&self.stats.write_calls, 1);
        add(&self.stats.write_bytes, bytes);
        Ok(())
    }

    async fn space(&self, handle: HandleId, range: Range<u64>, mode: SpaceMode) -> Result<(), Status> {
        let client = self.rc();
        let handle = self.handles.get(handle)?;
        if !handle.mode.flags.contains(OpenFlags::WRITE) {
            return Err(Status::EBADF);
        }
        if range.is_empty() {
            return Err(Status::EINVAL);
        }
        if range.end > i64::MAX as u64 {
            return Err(Status::EFBIG);
        }
        let file = match client.data(&handle).await? {
            Some(file) => file,
            None => return Err(Status::EIO),
        };
        handle.wrote.set(true);
        let time = self.time_of_change(&handle.inode);
        run(async move { file.space(range, mode, time).await }).await
    }

    async fn seek(&self, handle: HandleId, offset: u64, hole: bool) -> Result<u64, Status> {
        let handle = self.handles.get(handle)?;
        match self.rc().data(&handle).await? {
            Some(file) => file.seek(offset, hole).await,
            None => Err(Status::ENXIO),
        }
    }

    async fn readdir(&self, fid: Fid, after: u64, bytes_max: u32, plus: bool) -> Result<Vec<DirEntry>, Status> {
        self.rc().list(fid, after, bytes_max, plus).await
    }

    async fn getxattr(&self, cred: &Cred, fid: Fid, name: &[u8]) -> Result<Vec<u8>, Status> {
        self.rc().xattr_get(cred, fid, name).await
    }

    async fn listxattr(&self, cred: &Cred, fid: Fid) -> Result<Vec<Vec<u8>>, Status> {
        self.rc().xattr_list(cred, fid).await
    }

    async fn setxattr(
        &self,
        cred: &Cred,
        fid: Fid,
        name: &[u8],
        value: &[u8],
        create: bool,
        replace: bool,
    ) -> Result<(), Status> {
        self.rc().xattr_change(cred, fid, name, Some(value.to_vec()), create, replace).await
    }

    async fn removexattr(&self, cred: &Cred, fid: Fid, name: &[u8]) -> Result<(), Status> {
        self.rc().xattr_change(cred, fid, name, None, false, false).await
    }

    async fn test_lock(&self, fid: Fid, owner: LockOwner, lock: LockRange) -> Result<Option<LockRange>, Status> {
        self.flock_test(fid, owner, lock).await
    }

    async fn set_lock(&self, fid: Fid, owner: LockOwner, lock: LockRange, wait: bool) -> Result<(), Status> {
        self.rc().flock_set(fid, owner, lock, wait).await
    }

    async fn statfs(&self) -> Result<MountStatfs, Status> {
        self.statfs_sum().await
    }

    async fn layout(&self, fid: Fid) -> Result<Option<Layout>, Status> {
        Ok(self.rc().mdt_attr(fid).await?.2)
    }

    async fn stripe_default(&self, fid: Fid) -> Result<StripeHint, Status> {
        add(&self.stats.mdt_calls, 1);
        Ok(self.mdt.get_stripe(&mdt::GetStripe { fid }).await?)
    }

    async fn set_stripe(&self, cred: &Cred, fid: Fid, hint: StripeHint) -> Result<(), Status> {
        self.rc().stripe_set(cred, fid, hint).await
    }

    async fn fid_to_path(&self, fid: Fid) -> Result<Vec<Vec<u8>>, Status> {
        add(&self.stats.mdt_calls, 1);
        Ok(self.mdt.fid_to_path(&mdt::FidToPath { fid }).await?)
    }
}

impl Client {
    /// `page`: for the kernel's page cache.
    async fn read_for(&self, handle: HandleId, offset: u64, length: usize, page: bool) -> Result<Vec<Bytes>, Status> {
        let client = self.rc();
        let handle = self.handles.get(handle)?;
        if !handle.mode.flags.intersects(OpenFlags::READ | OpenFlags::EXEC | OpenFlags::WRITE) {
            return Err(Status::EBADF);
        }
        let Some(file) = client.data(&handle).await? else { return Ok(Vec::new()) };
        let range = offset..offset.saturating_add(length as u64).min(i64::MAX as u64);
        if range.is_empty() {
            return Ok(Vec::new());
        }
        add(&self.stats.read_calls, 1);
        if !handle.mode.direct {
            // Where the file's end is not known for sure, somebody else is writing it: what is read ahead would not last.
            let (window, size) = match file.size_known() {
                Some(size) => (self.params.max_read_ahead_per_file_mb.get() << 20, size),
                None => (0, u64::MAX),
            };
            let ahead = handle.ahead.borrow_mut().read(&range, window, size);
            if let Some(ahead) = ahead {
                file.read_ahead(&client, ahead);
            }
        }
        let how = match handle.mode.direct && !page {
            true => ReadHow::Direct,
            false if page && handle.inode.mappable.get() > 0 => ReadHow::ForMapping,
            false => ReadHow::Cached,
        };
        let found = file.read(range, how).await?;
        add(&self.stats.read_bytes, found.iter().map(|bytes| bytes.len() as u64).sum());
        Ok(found)
    }

    async fn open_fid(self: &Rc<Client>, cred: Cred, fid: Fid, mode: OpenMode) -> Result<Opened, Status> {
        let (inode, told, layout) = self.mdt_attr(fid).await?;
        if told.is_dir() {
            if mode.flags.contains(OpenFlags::WRITE) {
                return Err(Status::EISDIR);
            }
            let entry = self.entry(&inode, &told, &layout).await?;
            return Ok(Opened { handle: self.handles.add(inode, mode, 0), entry, keep_data: false });
        }
        let stamp = self.inodes.stamp();
        // An open for writing may make objects, one that truncates moves times: both are changes of ours.
        let changes = mode.flags.intersects(OpenFlags::WRITE | OpenFlags::TRUNCATE);
        let change = changes.then(|| self.inodes.begin_change(&[fid]));
        let request = mdt::Open { cred, fid, flags: mode.flags, lock: ALL_BITS, time: self.time_of_change(&inode) };
        add(&self.stats.mdt_calls, 1);
        let reply = self.mdt.open(&request).await?;
        let inode = self.inodes.accept(&reply.inode, stamp, change.as_ref());
        drop(change);
        self.tidy();
        self.finish_open(&inode, &reply, mode, mode.flags.contains(OpenFlags::TRUNCATE), false).await
    }
}

/// An open whose caller may be gone when it succeeds: then it is closed again.
#[derive(Clone)]
struct AbandonedOpen {
    shared: Rc<AbandonedShared>,
}

struct AbandonedShared {
    client: Rc<Client>,
    handle: std::cell::Cell<Option<HandleId>>,
    kept: std::cell::Cell<bool>,
}

impl AbandonedOpen {
    fn new(client: &Rc<Client>) -> AbandonedOpen {
        let (handle, kept) = (std::cell::Cell::new(None), std::cell::Cell::new(false));
        AbandonedOpen { shared: Rc::new(AbandonedShared { client: client.clone(), handle, kept }) }
    }

    fn arrived(&self, answer: &Result<Opened, Status>) {
        self.shared.handle.set(answer.as_ref().ok().map(|opened| opened.handle));
    }

    fn keep(&self) {
        self.shared.kept.set(true);
    }
}

impl Drop for AbandonedShared {
    fn drop(&mut self) {
        if let (Some(handle), false) = (self.handle.get(), self.kept.get()) {
            // The handle is this open's own; nobody else can have closed it.
            let _ = self.client.close_handle(handle);
        }
    }
}
