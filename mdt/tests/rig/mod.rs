//! An MDT over the model store with OSTs that do nothing, and clients that call it directly.
#![allow(dead_code, reason = "every test uses its part")]

use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use nacre_mdt::bench::{DirectCaller, NullOst, map_of};
use nacre_mdt::{Mdt, MdtConfig, Phase};
use nacre_osd::model::{Crash, ModelStore};
use nacre_reactor::Env;
use nacre_transport::local::{LocalConnector, LocalNet, LocalServer, serve_local};
use nacre_wire::attr::mode;
use nacre_wire::layout::StripeHint;
use nacre_wire::ldlm::{Event, Ibits};
use nacre_wire::mdt::*;
use nacre_wire::{Attr, AttrPatch, Fid, Nid, Status, Time, Uuid};
use tokio::task::LocalSet;

/// Asks for objects from the start without an open, with the default striping all the same.
pub const WITH_OBJECTS: NewKind =
    NewKind::File(StripeHint { count: None, size_bytes: Some(nacre_wire::layout::STRIPE_SIZE_DEFAULT), offset: None });

/// Runs a test on virtual time, for at most a virtual hour.
pub fn on_virtual_time<T>(test: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().start_paused(true).build().unwrap();
    let bounded = async { tokio::time::timeout(Duration::from_secs(3600), test).await.expect("the test hangs") };
    LocalSet::new().block_on(&runtime, bounded)
}

pub struct Rig {
    pub store: Rc<ModelStore>,
    pub mdt: Rc<Mdt>,
    pub osts: Vec<Rc<NullOst>>,
    net: LocalNet,
    servers: Vec<LocalServer>,
}

pub const MDT_UUID: Uuid = Uuid([9; 16]);

impl Rig {
    pub async fn new() -> Rig {
        Rig::with_osts(2).await
    }

    pub async fn with_osts(count: u16) -> Rig {
        let net = LocalNet::new();
        let osts: Vec<_> = (0..count).map(|i| NullOst::new("test", i, Uuid([100 + i as u8; 16]))).collect();
        let servers = osts.iter().map(|ost| serve_local(&net, ost.nid(), ost.clone())).collect();
        let store = Rc::new(ModelStore::crashable());
        let mdt = Rig::mdt(&net, &osts, store.clone()).await;
        Rig { store, mdt, osts, net, servers }
    }

    async fn mdt(net: &LocalNet, osts: &[Rc<NullOst>], store: Rc<ModelStore>) -> Rc<Mdt> {
        let config = MdtConfig { fsname: "test".into(), index: 0, uuid: MDT_UUID, fs_uuid: Uuid([8; 16]) };
        let connector = Rc::new(LocalConnector::new(net, Nid::local(1), "test-MDT0000"));
        let mdt = Mdt::start(Env::system(), store, config, connector).await.unwrap();
        mdt.set_map(&map_of("test", Uuid([8; 16]), osts)).await.unwrap();
        mdt
    }

    /// The server dies; another one starts on what is left.
    pub async fn crash(self, how: Crash) -> Rig {
        let Rig { store, mdt, osts, net, servers } = self;
        let left = Rc::new(store.crash(how));
        mdt.stop().await;
        let mdt = Rig::mdt(&net, &osts, left.clone()).await;
        Rig { store: left, mdt, osts, net, servers }
    }

    pub async fn serving(&self) {
        while self.mdt.phase() != Phase::Serving {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    pub async fn peer(&self, number: u8) -> Peer {
        self.peer_again(number, 0).await
    }

    pub async fn peer_again(&self, number: u8, last_incarnation: u64) -> Peer {
        let uuid = Uuid([number; 16]);
        let caller = DirectCaller::connect_as(self.mdt.clone(), uuid, "peer", last_incarnation).await.unwrap();
        Peer { caller, cred: Cred::default(), seconds: Cell::new(1000), lock: Ibits::empty(), slot: Cell::new(0) }
    }

    pub fn stat(&self, name: &str) -> String {
        let stats = self.mdt.stats();
        stats.into_iter().find(|(known, _)| known == name).map(|(_, value)| value).unwrap_or_default()
    }
}

pub const ALL: Ibits = Ibits::LOOKUP.union(Ibits::UPDATE).union(Ibits::PERM).union(Ibits::LAYOUT).union(Ibits::XATTR);

/// A client. Its clock goes forward by a second with every change.
pub struct Peer {
    pub caller: DirectCaller,
    pub cred: Cred,
    pub seconds: Cell<i64>,
    pub lock: Ibits,
    slot: Cell<u32>,
}

impl Peer {
    pub fn time(&self) -> Time {
        self.seconds.set(self.seconds.get() + 1);
        Time { seconds: self.seconds.get(), nanoseconds: 0 }
    }

    pub fn slot(&self) -> Slot {
        self.slot.set((self.slot.get() + 1) % 64);
        Slot { index: self.slot.get(), xid: self.caller.next_xid() }
    }

    pub fn for_user(mut self, uid: u32, gid: u32) -> Peer {
        self.become_user(uid, gid);
        self
    }

    pub fn become_user(&mut self, uid: u32, gid: u32) {
        self.cred = Cred { uid, gid, ..Cred::default() };
    }

    pub fn create_request(&self, parent: Fid, name: &str, kind: NewKind, mode: u32) -> Create {
        Create {
            slot: self.slot(),
            cred: self.cred.clone(),
            parent,
            name: name.as_bytes().to_vec(),
            kind,
            mode,
            time: self.time(),
            exclusive: true,
            open: None,
            lock: self.lock,
        }
    }

    pub async fn create_as(&self, request: Create) -> Result<CreateReply, Status> {
        self.caller.call(op::CREATE, &request).await
    }

    /// A file with objects that nobody has open.
    pub async fn file(&self, parent: Fid, name: &str) -> Result<Fid, Status> {
        let request = self.create_request(parent, name, WITH_OBJECTS, 0o644);
        Ok(self.create_as(request).await?.inode.fid)
    }

    pub async fn open_new(&self, parent: Fid, name: &str) -> Result<CreateReply, Status> {
        let mut request = self.create_request(parent, name, NewKind::File(StripeHint::default()), 0o644);
        request.open = Some(OpenFlags::READ | OpenFlags::WRITE);
        request.exclusive = false;
        self.create_as(request).await
    }

    pub async fn mknod(&self, parent: Fid, name: &str) -> Result<Fid, Status> {
        let request = self.create_request(parent, name, NewKind::File(StripeHint::default()), 0o644);
        Ok(self.create_as(request).await?.inode.fid)
    }

    pub async fn mkdir(&self, parent: Fid, name: &str) -> Result<Fid, Status> {
        self.mkdir_mode(parent, name, 0o755).await
    }

    pub async fn mkdir_mode(&self, parent: Fid, name: &str, mode: u32) -> Result<Fid, Status> {
        let request = self.create_request(parent, name, NewKind::Dir(StripeHint::default()), mode);
        Ok(self.create_as(request).await?.inode.fid)
    }

    pub fn unlink_request(&self, parent: Fid, name: &str, directory: bool) -> Unlink {
        let name = name.as_bytes().to_vec();
        Unlink { slot: self.slot(), cred: self.cred.clone(), parent, name, directory, time: self.time() }
    }

    pub async fn unlink(&self, parent: Fid, name: &str) -> Result<UnlinkReply, Status> {
        self.caller.call(op::UNLINK, &self.unlink_request(parent, name, false)).await
    }

    pub async fn rmdir(&self, parent: Fid, name: &str) -> Result<UnlinkReply, Status> {
        self.caller.call(op::UNLINK, &self.unlink_request(parent, name, true)).await
    }

    pub async fn link(&self, fid: Fid, parent: Fid, name: &str) -> Result<CreateReply, Status> {
        let (cred, name, time, lock) = (self.cred.clone(), name.as_bytes().to_vec(), self.time(), self.lock);
        self.caller.call(op::LINK, &Link { slot: self.slot(), cred, fid, parent, name, time, lock }).await
    }

    pub async fn rename(&self, from: (Fid, &str), to: (Fid, &str)) -> Result<UnlinkReply, Status> {
        self.rename_with(from, to, RenameFlags::empty()).await
    }

    pub async fn rename_with(
        &self,
        from: (Fid, &str),
        to: (Fid, &str),
        flags: RenameFlags,
    ) -> Result<UnlinkReply, Status> {
        let request = Rename {
            slot: self.slot(),
            cred: self.cred.clone(),
            parent: from.0,
            name: from.1.as_bytes().to_vec(),
            new_parent: to.0,
            new_name: to.1.as_bytes().to_vec(),
            flags,
            time: self.time(),
        };
        self.caller.call(op::RENAME, &request).await
    }

    pub async fn lookup_reply(&self, parent: Fid, name: &str) -> Result<LookupReply, Status> {
        let request = Lookup { parent, name: name.as_bytes().to_vec(), lock: self.lock };
        self.caller.call(op::LOOKUP, &request).await
    }

    /// The FID behind a name, if there is one.
    pub async fn lookup(&self, parent: Fid, name: &str) -> Option<Fid> {
        self.lookup_reply(parent, name).await.unwrap().inode.map(|inode| inode.fid)
    }

    pub async fn inode(&self, fid: Fid) -> Result<Inode, Status> {
        self.caller.call(op::GET_ATTR, &GetAttr { fid, lock: self.lock }).await
    }

    pub async fn attr(&self, fid: Fid) -> Result<Attr, Status> {
        Ok(self.inode(fid).await?.attr)
    }

    pub async fn open(&self, fid: Fid, flags: OpenFlags) -> Result<u64, Status> {
        let request = Open { cred: self.cred.clone(), fid, flags, lock: self.lock, time: self.time() };
        let reply: CreateReply = self.caller.call(op::OPEN, &request).await?;
        Ok(reply.handle)
    }

    pub async fn close(&self, fid: Fid, handle: u64) -> Result<(), Status> {
        self.caller.call::<_, CloseReply>(op::CLOSE, &Close { fid, handle, attr: None }).await.map(drop)
    }

    pub async fn set_attr(&self, fid: Fid, patch: AttrPatch) -> Result<Inode, Status> {
        let (slot, cred, time, lock) = (self.slot(), self.cred.clone(), self.time(), self.lock);
        let request = SetAttr { slot, cred, fid, patch, kill_privileges: false, time, lock };
        self.caller.call(op::SET_ATTR, &request).await
    }

    pub async fn chmod(&self, fid: Fid, mode: u32) -> Result<Inode, Status> {
        self.set_attr(fid, AttrPatch { mode: Some(mode), ..AttrPatch::default() }).await
    }

    pub async fn chown(&self, fid: Fid, uid: u32, gid: u32) -> Result<Inode, Status> {
        self.set_attr(fid, AttrPatch { uid: Some(uid), gid: Some(gid), ..AttrPatch::default() }).await
    }

    pub async fn read_dir(&self, fid: Fid, after: u64, bytes_max: u32, plus: bool) -> Result<ReadDirReply, Status> {
        self.caller.call(op::READ_DIR, &ReadDir { fid, after, bytes_max, plus }).await
    }

    /// All names of a directory, sorted.
    pub async fn names(&self, fid: Fid) -> Vec<String> {
        let mut names = Vec::new();
        let mut after = 0;
        loop {
            let reply = self.read_dir(fid, after, 2000, false).await.unwrap();
            names.extend(reply.entries.iter().map(|entry| String::from_utf8(entry.name.clone()).unwrap()));
            if reply.end {
                names.sort();
                return names;
            }
            after = reply.entries.last().unwrap().cookie;
        }
    }

    pub async fn paths(&self, fid: Fid) -> Result<Vec<String>, Status> {
        let paths: Vec<Vec<u8>> = self.caller.call(op::FID_TO_PATH, &FidToPath { fid }).await?;
        Ok(paths.into_iter().map(|path| String::from_utf8(path).unwrap()).collect())
    }

    pub async fn set_xattr(&self, fid: Fid, name: &str, value: Option<&[u8]>, how: &str) -> Result<Inode, Status> {
        let request = SetXattr {
            slot: self.slot(),
            cred: self.cred.clone(),
            fid,
            name: name.as_bytes().to_vec(),
            value: value.map(<[u8]>::to_vec),
            create: how == "create",
            replace: how == "replace",
            time: self.time(),
        };
        self.caller.call(op::SET_XATTR, &request).await
    }

    pub async fn get_xattr(&self, fid: Fid, name: &str) -> Result<Vec<u8>, Status> {
        let request = GetXattr { cred: self.cred.clone(), fid, name: name.as_bytes().to_vec() };
        self.caller.call(op::GET_XATTR, &request).await
    }

    /// Waits for the next event that was not acknowledged yet.
    pub async fn event(&self, acknowledged: u64) -> (u64, Event) {
        let (first, events) = self.caller.session.next_events(acknowledged, 1).await;
        (first, events.into_iter().next().expect("an event or a closed session"))
    }

    pub async fn cancel(&self, cookie: u64) {
        let request = nacre_wire::ldlm::Cancel { cookies: vec![cookie] };
        self.caller.call::<_, ()>(nacre_wire::ldlm::OP_CANCEL, &request).await.unwrap();
    }
}

pub const FILE: u32 = mode::FILE;
