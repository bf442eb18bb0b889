//! What a service does first with a [`Call`]: take the arguments apart, strictly, and put an answer together.

use nacre_reactor::Bytes;
use nacre_wire::op::{MwriteEntry, ObjectIo, ObjectMwrite, ObjectSeek, ObjectSpace, Opcode, RpcArgs};
use nacre_wire::{Status, codec};
use serde::Serialize;
use serde::de::DeserializeOwned;
use zerocopy::FromBytes;

use crate::{Answer, Call};

/// Most entries of one MWRITE.
pub const MWRITE_ENTRIES_MAX: usize = 4096;

/// The arguments of an RPC.
pub fn rpc_args(call: &Call) -> Result<RpcArgs, Status> {
    match call.op {
        Opcode::RpcSend => args(call),
        _ => Err(Status::UNKNOWN_OPERATION),
    }
}

/// The body of an RPC, whole and exact. An empty body is `()`.
pub fn rpc_body<T: DeserializeOwned>(call: &Call) -> Result<T, Status> {
    codec::decode(&call.data)
}

/// An RPC's answer: what it says, and the target's last committed transaction (0 where there is none).
pub fn rpc_answer<T: Serialize>(reply: &T, last_committed: u64) -> Answer {
    Answer { result: last_committed, data: codec::encode(reply).into() }
}

/// Arguments of READ, WRITE, SYNC, SETATTR, GETATTR. For a WRITE the length is that of the data.
pub fn object_io(call: &Call) -> Result<ObjectIo, Status> {
    let io: ObjectIo = args(call)?;
    if io.offset_bytes.get().checked_add(u64::from(io.length_bytes.get())).is_none() && call.op != Opcode::Sync {
        return Err(Status::EINVAL);
    }
    match call.op {
        Opcode::Write if io.length_bytes.get() as usize != call.data.len() => Err(Status::MALFORMED),
        Opcode::Read if io.length_bytes.get() > call.reply_bytes_max => Err(Status::MALFORMED),
        _ => Ok(io),
    }
}

/// Arguments of SPACE.
pub fn object_space(call: &Call) -> Result<ObjectSpace, Status> {
    args(call)
}

/// Arguments of SEEK.
pub fn object_seek(call: &Call) -> Result<ObjectSeek, Status> {
    let seek: ObjectSeek = args(call)?;
    if seek.what.get() > 1 { Err(Status::EINVAL) } else { Ok(seek) }
}

/// Arguments of an MWRITE and its ranges, each with its bytes (slices of the command's data, not copies).
pub fn mwrite(call: &Call) -> Result<(ObjectMwrite, Vec<(MwriteEntry, Bytes)>), Status> {
    let head: ObjectMwrite = args(call)?;
    let entries = head.entries.get() as usize;
    let start = head.data_offset_bytes.get() as usize;
    if entries > MWRITE_ENTRIES_MAX || head.length_bytes.get() as usize != call.data.len() || start > call.data.len() {
        return Err(Status::MALFORMED);
    }
    let (table, _) =
        <[MwriteEntry]>::ref_from_prefix_with_elems(&call.data[..start], entries).map_err(|_| Status::MALFORMED)?;
    let mut at = start;
    let mut ranges = Vec::with_capacity(entries);
    for entry in table {
        let length = entry.length_bytes.get() as usize;
        let end = at.checked_add(length).filter(|end| *end <= call.data.len()).ok_or(Status::MALFORMED)?;
        if entry.offset_bytes.get().checked_add(length as u64).is_none() {
            return Err(Status::EINVAL);
        }
        ranges.push((*entry, call.data.slice(at..end)));
        at = end;
    }
    if at == call.data.len() { Ok((head, ranges)) } else { Err(Status::MALFORMED) }
}

fn args<T: FromBytes>(call: &Call) -> Result<T, Status> {
    T::read_from_bytes(&call.args).map_err(|_| Status::MALFORMED)
}
