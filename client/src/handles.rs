//! Open files.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use nacre_wire::mdt::OpenFlags;
use nacre_wire::{Fid, Status};

use crate::api::{HandleId, OpenMode};
use crate::inode::Inode;
use crate::readahead::ReadAhead;

/// All open files of a mount.
#[derive(Default)]
pub(crate) struct Handles {
    open: RefCell<BTreeMap<u64, Rc<Handle>>>,
    last: Cell<u64>,
}

/// One open file.
pub(crate) struct Handle {
    /// What is open.
    pub inode: Rc<Inode>,
    /// How.
    pub mode: OpenMode,
    /// The MDT's name for it; 0: the MDT does not know (directories).
    pub mdt_handle: u64,
    /// Where its reader is.
    pub ahead: RefCell<ReadAhead>,
    /// Failures of the file that this descriptor has been told of.
    pub failures_seen: Cell<u64>,
    /// Whether anything was written through it.
    pub wrote: Cell<bool>,
}

impl Handle {
    /// A write-back that failed since this was last asked: each failure is told once to each handle.
    pub fn take_failure(&self) -> Result<(), Status> {
        let Some(file) = self.inode.file() else { return Ok(()) };
        let seen = self.failures_seen.replace(file.failures());
        file.failure_since(seen).map_or(Ok(()), Err)
    }
}

impl Handles {
    /// A new open file.
    pub fn add(&self, inode: Rc<Inode>, mode: OpenMode, mdt_handle: u64) -> HandleId {
        let id = self.last.get() + 1;
        self.last.set(id);
        inode.opens.set(inode.opens.get() + 1);
        if mode.can_map_for_writing() {
            inode.mappable.set(inode.mappable.get() + 1);
        }
        let failures = inode.file().map_or(0, |file| file.failures());
        let handle = Handle {
            inode,
            mode,
            mdt_handle,
            ahead: RefCell::default(),
            failures_seen: Cell::new(failures),
            wrote: Cell::new(false),
        };
        self.open.borrow_mut().insert(id, Rc::new(handle));
        HandleId(id)
    }

    /// An open file.
    pub fn get(&self, id: HandleId) -> Result<Rc<Handle>, Status> {
        self.open.borrow().get(&id.0).cloned().ok_or(Status::EBADF)
    }

    /// Forgets one.
    pub fn remove(&self, id: HandleId) -> Result<Rc<Handle>, Status> {
        let handle = self.open.borrow_mut().remove(&id.0).ok_or(Status::EBADF)?;
        handle.inode.opens.set(handle.inode.opens.get() - 1);
        if handle.mode.can_map_for_writing() {
            handle.inode.mappable.set(handle.inode.mappable.get() - 1);
        }
        Ok(handle)
    }

    /// What the MDT has open for us.
    pub fn opens(&self) -> Vec<(Fid, u64, OpenFlags)> {
        let open = self.open.borrow();
        let known = open.values().filter(|handle| handle.mdt_handle != 0);
        // What an open did once, truncating, is not for a replay.
        let lasting = OpenFlags::READ | OpenFlags::WRITE | OpenFlags::EXEC;
        known.map(|handle| (handle.inode.fid, handle.mdt_handle, handle.mode.flags & lasting)).collect()
    }
}
