//! Calls of an MDT.
//!
//! A change takes a reply slot for as long as it is under way, and its number is the slot's: the `slot` field of a request is
//! filled in here. A change that was begun is seen through even when its caller stops waiting, because the slot must not
//! be used for another before.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;

use nacre_wire::layout::StripeHint;
use nacre_wire::ldlm::{Enqueue, EnqueueReply, GlimpseReply};
use nacre_wire::mdt::*;
use nacre_wire::{Fid, codec};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, oneshot};
use tokio::task::spawn_local;

use super::{REPLY_SMALL_BYTES, ldlm};
use crate::CallError;
use crate::host::{Import, ImportError, ImportLink, Rpc};

/// Calls an MDT.
#[derive(Clone)]
pub struct MdtClient {
    /// What the calls go through.
    pub import: Rc<Import>,
    slots: Rc<Slots>,
}

macro_rules! changes {
    ($($(#[$doc:meta])* $name:ident($request:ty) -> $reply:ty = $op:expr;)*) => {
        impl MdtClient {
            $($(#[$doc])*
            pub async fn $name(&self, mut request: $request) -> Result<$reply, ImportError> {
                let slot = self.slots.take(&self.import).await?;
                let xid = self.import.next_xid();
                request.slot = Slot { index: slot.index, xid };
                self.change($op, xid, &request, slot).await
            })*
        }
    };
}

macro_rules! queries {
    ($($(#[$doc:meta])* $name:ident($request:ty) -> $reply:ty = $op:expr, $bytes:expr;)*) => {
        impl MdtClient {
            $($(#[$doc])*
            pub async fn $name(&self, request: &$request) -> Result<$reply, ImportError> {
                self.import.ask($op, request, $bytes).await
            })*
        }
    };
}

changes! {
    /// Makes a name and an inode, and opens it where asked.
    create(Create) -> CreateReply = op::CREATE;
    /// Removes a name.
    unlink(Unlink) -> UnlinkReply = op::UNLINK;
    /// Gives an inode another name.
    link(Link) -> CreateReply = op::LINK;
    /// Moves a name.
    rename(Rename) -> UnlinkReply = op::RENAME;
    /// Changes attributes.
    set_attr(SetAttr) -> Inode = op::SET_ATTR;
    /// Sets or removes an extended attribute.
    set_xattr(SetXattr) -> Inode = op::SET_XATTR;
    /// Sets striping.
    set_stripe(SetStripe) -> Inode = op::SET_STRIPE;
}

queries! {
    /// Attributes by FID.
    get_attr(GetAttr) -> Inode = op::GET_ATTR, REPLY_SMALL_BYTES;
    /// A name in a directory.
    lookup(Lookup) -> LookupReply = op::LOOKUP, REPLY_SMALL_BYTES;
    /// Opens by FID. Sent again after a lost answer, it finds the handle that it made.
    open(Open) -> CreateReply = op::OPEN, REPLY_SMALL_BYTES;
    /// Ends an open.
    close(Close) -> CloseReply = op::CLOSE, CLOSE_REPLY_BYTES;
    /// One extended attribute.
    get_xattr(GetXattr) -> Vec<u8> = op::GET_XATTR, REPLY_SMALL_BYTES;
    /// Names of the extended attributes.
    list_xattr(ListXattr) -> Vec<Vec<u8>> = op::LIST_XATTR, REPLY_SMALL_BYTES;
    /// Target of a symbolic link.
    read_link(ReadLink) -> Vec<u8> = op::READ_LINK, REPLY_SMALL_BYTES;
    /// Waits for stable media.
    sync(Sync) -> () = op::SYNC, 0;
    /// Default striping of a directory.
    get_stripe(GetStripe) -> StripeHint = op::GET_STRIPE, REPLY_SMALL_BYTES;
    /// Paths of an inode.
    fid_to_path(FidToPath) -> Vec<Vec<u8>> = op::FID_TO_PATH, REPLY_SMALL_BYTES;
}

impl MdtClient {
    /// Calls through `import`.
    pub fn new(import: Rc<Import>) -> MdtClient {
        MdtClient { import, slots: Rc::default() }
    }

    /// Names of a directory.
    pub async fn read_dir(&self, request: &ReadDir) -> Result<ReadDirReply, ImportError> {
        // The reply is "about" as large as asked for: room for one more entry of the largest kind.
        let room = request.bytes_max.saturating_add(REPLY_SMALL_BYTES);
        self.import.ask(op::READ_DIR, request, room).await
    }

    /// Space and inodes.
    pub async fn statfs(&self) -> Result<MdtStatfs, ImportError> {
        self.import.ask(op::STATFS, &(), REPLY_SMALL_BYTES).await
    }

    /// Asks for a lock.
    pub async fn enqueue(&self, request: &Enqueue) -> Result<EnqueueReply, ImportError> {
        Ok(ldlm::enqueue(&self.import, request).await?.0)
    }

    /// Gives locks back.
    pub async fn cancel(&self, cookies: Vec<u64>) -> Result<(), ImportError> {
        ldlm::cancel(&self.import, cookies).await
    }

    /// Answers a glimpse.
    pub async fn glimpse_reply(&self, reply: &GlimpseReply) -> Result<(), ImportError> {
        ldlm::glimpse_reply(&self.import, reply).await
    }

    /// Tells a restarted MDT what is open; for [`crate::host::ImportObserver::replay`].
    pub async fn replay_opens(link: &ImportLink, opens: Vec<(Fid, u64, OpenFlags)>) -> Result<(), CallError> {
        link.ask(op::REPLAY_OPENS, &ReplayOpens { opens }, 0).await
    }

    async fn change<Request: Serialize, Reply: DeserializeOwned>(
        &self,
        operation: u16,
        xid: u64,
        request: &Request,
        slot: SlotGuard,
    ) -> Result<Reply, ImportError> {
        let body = codec::encode(request).into();
        let rpc = Rpc { operation, xid, body, reply_bytes_max: REPLY_SMALL_BYTES, once: true };
        let (sender, answer) = oneshot::channel();
        let import = self.import.clone();
        spawn_local(async move {
            let answer = import.rpc_with_xid(rpc).await;
            drop(slot);
            // The caller may have stopped waiting.
            let _ = sender.send(answer);
        });
        let reply = answer.await.unwrap_or(Err(ImportError::Closed))?;
        Ok(codec::decode(&reply.body)?)
    }
}

/// Reply slots not in use.
#[derive(Default)]
struct Slots {
    free: RefCell<BTreeSet<u32>>,
    /// Slots with smaller numbers have been in use.
    begun: Cell<u32>,
    freed: Notify,
}

struct SlotGuard {
    slots: Rc<Slots>,
    index: u32,
}

impl Slots {
    async fn take(self: &Rc<Slots>, import: &Import) -> Result<SlotGuard, ImportError> {
        import.wait_full().await?;
        loop {
            // A server that gives none still takes one change at a time.
            let limit = import.connect_reply().map_or(1, |reply| reply.reply_slots.max(1));
            let reused = self.free.borrow_mut().pop_first();
            match reused {
                Some(index) if index < limit => return Ok(SlotGuard { slots: self.clone(), index }),
                // The server gives fewer than it did: the slot is kept for a server that gives more again.
                Some(index) => drop(self.free.borrow_mut().insert(index)),
                None if self.begun.get() < limit => {
                    let index = self.begun.replace(self.begun.get() + 1);
                    return Ok(SlotGuard { slots: self.clone(), index });
                }
                None => {}
            }
            self.freed.notified().await;
        }
    }
}

impl Drop for SlotGuard {
    fn drop(&mut self) {
        self.slots.free.borrow_mut().insert(self.index);
        self.slots.freed.notify_one();
    }
}

/// One byte of postcard.
const CLOSE_REPLY_BYTES: u32 = 16;
