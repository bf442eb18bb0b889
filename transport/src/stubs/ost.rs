//! Calls of an OST. Objects are named by FID; the session handles that the object commands need are opened, and opened
//! again after a reconnect, in here.
//!
//! Object commands are repeated after a lost link: reading and writing the same bytes twice is the same as once. A write
//! under a lock that did not survive is refused by the server (NO_LOCK).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use nacre_reactor::{Bytes, DmaBuf};
use nacre_wire::ldlm::{Enqueue, EnqueueReply, GlimpseReply};
use nacre_wire::op::{DATA_BYTES_MAX, MwriteEntry, ObjectIo, ObjectMwrite, ObjectSeek, ObjectSpace, Opcode};
use nacre_wire::ost::{
    Destroy, OP_DESTROY, OP_OPEN_OBJECT, OP_PRECREATE, OP_SET_OWNER, OP_STATFS, OpenObject, OpenObjectReply, OstStatfs,
    Precreate, PrecreateReply, SetOwner,
};
use nacre_wire::{Attr, AttrPatch, Fid, Status, Time, codec};
use tokio::time::sleep;
use zerocopy::{Immutable, IntoBytes};

use super::{REPLY_SMALL_BYTES, ldlm};
use crate::host::{Import, ImportError, Rpc};
use crate::target::dispatch::MWRITE_ENTRIES_MAX;
use crate::{Answer, Call, CallError};

/// Calls an OST.
#[derive(Clone)]
pub struct OstClient {
    /// What the calls go through.
    pub import: Rc<Import>,
    handles: Rc<RefCell<BTreeMap<Fid, Handle>>>,
}

#[derive(Clone, Copy)]
struct Handle {
    number: u32,
    generation: u64,
}

/// One range of [`OstClient::mwrite`].
#[derive(Clone, Debug)]
pub struct WriteRange {
    /// The object.
    pub object: Fid,
    /// In the object.
    pub offset_bytes: u64,
    /// mtime and ctime of the write.
    pub time: Time,
    /// The lock it is done under; 0: the server locks for it.
    pub lock_cookie: u64,
    /// Low bits of the layout's generation.
    pub layout_generation: u16,
    /// The bytes, in order; sent from where they are.
    pub data: Vec<Bytes>,
}

/// Arguments of [`OstClient::space`].
#[derive(Clone, Copy, Debug)]
pub struct SpaceChange {
    /// [`nacre_wire::op::space_mode`].
    pub mode: u16,
    /// Truncate: the new size.
    pub offset_bytes: u64,
    /// Truncate: 0.
    pub length_bytes: u64,
    /// mtime and ctime of the change.
    pub time: Time,
    /// Low bits of the layout's generation.
    pub layout_generation: u16,
}

impl OstClient {
    /// Calls through `import`.
    pub fn new(import: Rc<Import>) -> OstClient {
        OstClient { import, handles: Rc::default() }
    }

    /// Reads; fewer bytes than asked for where the object ends.
    pub async fn read(
        &self,
        object: Fid,
        offset_bytes: u64,
        length_bytes: u32,
        lock_cookie: u64,
    ) -> Result<Bytes, ImportError> {
        let io = ObjectIo {
            offset_bytes: offset_bytes.into(),
            length_bytes: length_bytes.into(),
            lock_cookie: lock_cookie.into(),
            ..ObjectIo::default()
        };
        let answer = self.object_io(Opcode::Read, object, io, Bytes::new(), length_bytes).await?;
        Ok(answer.data)
    }

    /// Writes with the server's time; at most [`DATA_BYTES_MAX`].
    pub async fn write(
        &self,
        object: Fid,
        offset_bytes: u64,
        data: Bytes,
        lock_cookie: u64,
        flags: u16,
    ) -> Result<(), ImportError> {
        let io = ObjectIo {
            flags: flags.into(),
            offset_bytes: offset_bytes.into(),
            length_bytes: (data.len() as u32).into(),
            lock_cookie: lock_cookie.into(),
            ..ObjectIo::default()
        };
        self.object_io(Opcode::Write, object, io, data, 0).await?;
        Ok(())
    }

    /// Writes many ranges of many objects; `flags` are [`nacre_wire::op::io_flags`]. More than fits one command is divided over
    /// several, in order. After an error the caller does not know which ranges were written. Answers by how many bytes the
    /// space granted to this session has changed.
    pub async fn mwrite(&self, ranges: Vec<WriteRange>, flags: u16) -> Result<i64, ImportError> {
        let mut grant_delta_bytes = 0;
        let mut rest = ranges.into_iter().peekable();
        while rest.peek().is_some() {
            let mut batch = Vec::new();
            let mut room_bytes = (DATA_BYTES_MAX - MWRITE_TABLE_BYTES_MAX) as usize;
            while batch.len() < MWRITE_ENTRIES_MAX
                && room_bytes > 0
                && let Some(range) = rest.peek_mut()
            {
                let part = cut(range, room_bytes);
                room_bytes -= data_bytes(&part);
                batch.push(part);
                if range.data.is_empty() {
                    rest.next();
                }
            }
            let answer = self.mwrite_once(&batch, flags).await?;
            grant_delta_bytes += i64::from((answer.result >> 32) as u32 as i32);
        }
        Ok(grant_delta_bytes)
    }

    /// Truncate, punch, allocate, zero.
    pub async fn space(&self, object: Fid, change: SpaceChange) -> Result<(), ImportError> {
        let args = |handle: u32| ObjectSpace {
            handle: handle.into(),
            mode: change.mode.into(),
            layout_generation: change.layout_generation.into(),
            offset_bytes: change.offset_bytes.into(),
            length_bytes: change.length_bytes.into(),
            time_ns: change.time.to_ns().into(),
        };
        self.object(Opcode::Space, object, args, Bytes::new(), 0).await?;
        Ok(())
    }

    /// Changes attributes of an object.
    pub async fn setattr(&self, object: Fid, patch: &AttrPatch, lock_cookie: u64) -> Result<(), ImportError> {
        let data: Bytes = codec::encode(patch).into();
        let io = ObjectIo {
            length_bytes: (data.len() as u32).into(),
            lock_cookie: lock_cookie.into(),
            ..ObjectIo::default()
        };
        self.object_io(Opcode::SetAttr, object, io, data, 0).await?;
        Ok(())
    }

    /// Attributes of an object.
    pub async fn getattr(&self, object: Fid) -> Result<Attr, ImportError> {
        let io = ObjectIo { length_bytes: ATTR_BYTES_MAX.into(), ..ObjectIo::default() };
        let answer = self.object_io(Opcode::GetAttr, object, io, Bytes::new(), ATTR_BYTES_MAX).await?;
        Ok(codec::decode(&answer.data)?)
    }

    /// Everything written to the object before is on stable media afterwards.
    pub async fn sync(&self, object: Fid) -> Result<(), ImportError> {
        self.object_io(Opcode::Sync, object, ObjectIo::default(), Bytes::new(), 0).await?;
        Ok(())
    }

    /// Everything written to the target before is on stable media afterwards.
    pub async fn sync_all(&self) -> Result<(), ImportError> {
        let args = ObjectIo::default();
        self.attempts(async |generation| {
            let call = object_call(Opcode::Sync, &args, Bytes::new(), 0);
            self.import.object_call(generation, call, Vec::new()).await
        })
        .await?;
        Ok(())
    }

    /// Next data (or hole) at or after an offset; ENXIO.
    pub async fn seek(&self, object: Fid, offset_bytes: u64, hole: bool) -> Result<u64, ImportError> {
        let args = |handle: u32| ObjectSeek {
            handle: handle.into(),
            what: u16::from(hole).into(),
            offset_bytes: offset_bytes.into(),
            ..ObjectSeek::default()
        };
        Ok(self.object(Opcode::Seek, object, args, Bytes::new(), 0).await?.result)
    }

    /// Objects for an MDT.
    pub async fn precreate(&self, request: &Precreate) -> Result<PrecreateReply, ImportError> {
        self.import.ask(OP_PRECREATE, request, REPLY_SMALL_BYTES).await
    }

    /// Removes objects.
    pub async fn destroy(&self, objects: Vec<Fid>) -> Result<(), ImportError> {
        for object in &objects {
            self.forget(*object);
        }
        self.import.ask(OP_DESTROY, &Destroy { objects }, 0).await
    }

    /// Space of the target.
    pub async fn statfs(&self) -> Result<OstStatfs, ImportError> {
        self.import.ask(OP_STATFS, &(), REPLY_SMALL_BYTES).await
    }

    /// Changes for whom the space counts.
    pub async fn set_owner(&self, request: &SetOwner) -> Result<(), ImportError> {
        self.import.ask(OP_SET_OWNER, request, 0).await
    }

    /// Asks for a lock; the handle in the reply is kept here.
    pub async fn enqueue(&self, request: &Enqueue) -> Result<EnqueueReply, ImportError> {
        let (reply, generation) = ldlm::enqueue(&self.import, request).await?;
        if reply.handle != 0 {
            self.handles.borrow_mut().insert(request.resource, Handle { number: reply.handle, generation });
        }
        Ok(reply)
    }

    /// Gives locks back.
    pub async fn cancel(&self, cookies: Vec<u64>) -> Result<(), ImportError> {
        ldlm::cancel(&self.import, cookies).await
    }

    /// Answers a glimpse.
    pub async fn glimpse_reply(&self, reply: &GlimpseReply) -> Result<(), ImportError> {
        ldlm::glimpse_reply(&self.import, reply).await
    }

    /// The object will not be used soon: its handle need not be remembered.
    pub fn forget(&self, object: Fid) {
        self.handles.borrow_mut().remove(&object);
    }

    async fn mwrite_once(&self, batch: &[WriteRange], flags: u16) -> Result<Answer, ImportError> {
        let table_bytes = size_of::<MwriteEntry>() * batch.len();
        let bytes: usize = batch.iter().map(data_bytes).sum();
        // A large write is worth a gap that brings its bytes to a page boundary in the server's buffer.
        let start = if bytes < ALIGN_FROM_BYTES { table_bytes } else { table_bytes.next_multiple_of(PAGE_BYTES) };
        let head = ObjectMwrite {
            entries: (batch.len() as u32).into(),
            flags: flags.into(),
            data_offset_bytes: (start as u32).into(),
            length_bytes: ((start + bytes) as u32).into(),
            xid: self.import.next_xid().into(),
            ..ObjectMwrite::default()
        };
        let pieces: Vec<Bytes> = batch.iter().flat_map(|range| range.data.iter().cloned()).collect();
        self.attempts(async |generation| {
            let mut table = DmaBuf::zeroed(start);
            for (range, slot) in batch.iter().zip(table.chunks_exact_mut(size_of::<MwriteEntry>())) {
                let handle = match self.handle_in(generation, range.object).await? {
                    Some(handle) => handle,
                    None => return Err(CallError::Lost),
                };
                let entry = MwriteEntry {
                    handle: handle.into(),
                    length_bytes: (data_bytes(range) as u32).into(),
                    offset_bytes: range.offset_bytes.into(),
                    lock_cookie: range.lock_cookie.into(),
                    time_seconds: (range.time.seconds as u64).into(),
                    time_nanoseconds: range.time.nanoseconds.into(),
                    layout_generation: range.layout_generation.into(),
                    reserved: 0.into(),
                };
                slot.copy_from_slice(entry.as_bytes());
            }
            let call = object_call(Opcode::Mwrite, &head, table.freeze(), 0);
            let answer = self.import.object_call(generation, call, pieces.clone()).await;
            if answer == Err(CallError::Status(Status::EBADF)) {
                // As in `object`; which of them it is nobody says.
                batch.iter().for_each(|range| self.forget(range.object));
            }
            answer
        })
        .await
    }

    async fn object_io(
        &self,
        op: Opcode,
        object: Fid,
        io: ObjectIo,
        data: Bytes,
        reply_bytes_max: u32,
    ) -> Result<Answer, ImportError> {
        let xid = self.import.next_xid() as u32;
        let args = |handle: u32| ObjectIo { handle: handle.into(), xid: xid.into(), ..io };
        self.object(op, object, args, data, reply_bytes_max).await
    }

    /// One command on one object.
    async fn object<Args: IntoBytes + Immutable>(
        &self,
        op: Opcode,
        object: Fid,
        args: impl Fn(u32) -> Args,
        data: Bytes,
        reply_bytes_max: u32,
    ) -> Result<Answer, ImportError> {
        self.attempts(async |generation| {
            let Some(handle) = self.handle_in(generation, object).await? else { return Err(CallError::Lost) };
            let call = object_call(op, &args(handle), data.clone(), reply_bytes_max);
            let answer = self.import.object_call(generation, call, Vec::new()).await;
            if answer == Err(CallError::Status(Status::EBADF)) {
                // The server closed the handle by itself; the next attempt opens another.
                self.forget(object);
            }
            answer
        })
        .await
    }

    /// Repeats an attempt until it is answered for good.
    async fn attempts(
        &self,
        mut attempt: impl AsyncFnMut(u64) -> Result<Answer, CallError>,
    ) -> Result<Answer, ImportError> {
        let mut bad_handles = 0;
        loop {
            let generation = self.import.wait_full().await?;
            match attempt(generation).await {
                Ok(answer) => return Ok(answer),
                // The import sees the end of the link in its own task; give it a turn.
                Err(CallError::Lost) => tokio::task::yield_now().await,
                Err(CallError::Status(Status::RECOVERING)) => sleep(RECOVERING_PAUSE).await,
                Err(CallError::Status(Status::EBADF)) if bad_handles < 3 => bad_handles += 1,
                Err(CallError::Status(status)) => return Err(status.into()),
                Err(CallError::ReplyTooLarge { .. }) => return Err(Status::EPROTO.into()),
            }
        }
    }

    /// The handle of an object in one session; `None` when the session is over.
    async fn handle_in(&self, generation: u64, object: Fid) -> Result<Option<u32>, CallError> {
        let known = self.handles.borrow().get(&object).copied();
        if let Some(handle) = known.filter(|handle| handle.generation == generation) {
            return Ok(Some(handle.number));
        }
        let body = codec::encode(&OpenObject { object }).into();
        let rpc = Rpc {
            operation: OP_OPEN_OBJECT,
            xid: self.import.next_xid(),
            body,
            reply_bytes_max: REPLY_SMALL_BYTES,
            once: false,
        };
        let reply = match self.import.rpc_with_xid(rpc).await {
            Ok(reply) => reply,
            Err(ImportError::Status(status)) => return Err(CallError::Status(status)),
            Err(ImportError::Evicted | ImportError::Closed) => return Err(CallError::Lost),
        };
        let opened: OpenObjectReply = codec::decode(&reply.body).map_err(CallError::Status)?;
        let handle = Handle { number: opened.handle, generation: reply.generation };
        self.handles.borrow_mut().insert(object, handle);
        Ok((handle.generation == generation).then_some(handle.number))
    }
}

fn object_call(op: Opcode, args: &(impl IntoBytes + Immutable), data: Bytes, reply_bytes_max: u32) -> Call {
    let args = args.as_bytes().try_into().expect("arguments are 32 bytes; asserted beside the types");
    Call { op, args, data, reply_bytes_max }
}

fn data_bytes(range: &WriteRange) -> usize {
    range.data.iter().map(Bytes::len).sum()
}

/// Takes up to `room_bytes` off the front of a range.
fn cut(range: &mut WriteRange, room_bytes: usize) -> WriteRange {
    let mut part = WriteRange { data: Vec::new(), ..range.clone() };
    let mut room = room_bytes;
    while room > 0 && !range.data.is_empty() {
        let piece = if range.data[0].len() <= room { range.data.remove(0) } else { range.data[0].split_to(room) };
        room -= piece.len();
        range.offset_bytes += piece.len() as u64;
        part.data.push(piece);
    }
    part
}

const ATTR_BYTES_MAX: u32 = 4096;
const MWRITE_TABLE_BYTES_MAX: u32 = (MWRITE_ENTRIES_MAX * size_of::<MwriteEntry>()) as u32;
const PAGE_BYTES: usize = 4096;
/// Below this, a gap costs more than an unaligned copy.
const ALIGN_FROM_BYTES: usize = 16 << 10;
const RECOVERING_PAUSE: Duration = Duration::from_millis(200);
