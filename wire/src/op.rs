//! Opcodes of the object command set (CSI 30h) and their 32 argument bytes: CDW2, CDW3, CDW10–15, in this order.
//!
//! The low two bits of an opcode are NVMe's data direction: 00 none, 01 host to controller, 10 controller to host.
//! Opcode + 80h is an alias. `docs/wire.md`, "Object commands".

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// I/O command set identifier of the object command set.
pub const CSI_OBJECT: u8 = 0x30;
/// Namespace of objects and RPCs.
pub const NSID_RPC: u32 = 1;
/// Namespace whose commands are held until an event happens.
pub const NSID_EVENT: u32 = 2;
/// Largest data of one command either way.
pub const DATA_BYTES_MAX: u32 = 4 << 20;

/// A command of the object command set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
#[allow(missing_docs, reason = "docs/wire.md has the table; the names are the wire's")]
pub enum Opcode {
    Ping = 0x40,
    /// [`ObjectIo`]; data: the bytes. mtime and ctime become the server's now.
    Write = 0x41,
    /// [`ObjectIo`].
    Read = 0x42,
    /// [`ObjectSpace`].
    Space = 0x44,
    /// [`ObjectIo`] (handle, lock cookie); data: an encoded [`crate::AttrPatch`].
    SetAttr = 0x45,
    /// [`ObjectIo`] (handle); reply data: an encoded [`crate::Attr`].
    GetAttr = 0x46,
    /// [`ObjectIo`] (handle, range); everything before is on stable media when it answers. Handle 0: the whole target.
    Sync = 0x48,
    /// [`ObjectSeek`]; result: the offset.
    Seek = 0x4E,
    /// [`ObjectMwrite`]; data: table of [`MwriteEntry`], then the bytes.
    Mwrite = 0x51,
    /// [`RpcArgs`]; the request.
    RpcSend = 0x59,
    /// [`RpcArgs`]; the reply.
    RpcRecv = 0x5A,
    /// CDW10–11: cumulative acknowledgement. Held until events are there. NSID 2 only.
    EventWait = 0x5E,
}

impl Opcode {
    /// The opcode of a byte; the alias + 80h is accepted.
    pub fn from_byte(byte: u8) -> Option<Opcode> {
        use Opcode::*;
        [Ping, Write, Read, Space, SetAttr, GetAttr, Sync, Seek, Mwrite, RpcSend, RpcRecv, EventWait]
            .into_iter()
            .find(|op| *op as u8 == byte & 0x7f)
    }
}

/// READ, WRITE, SYNC, SETATTR, GETATTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ObjectIo {
    /// From the reply that opened the object; belongs to the session.
    pub handle: U32,
    /// [`io_flags`].
    pub flags: U16,
    /// Low bits of the layout's generation.
    pub layout_generation: U16,
    /// In the object.
    pub offset_bytes: U64,
    /// Of the data.
    pub length_bytes: U32,
    /// The lock this I/O is done under; 0: none, the server locks for it.
    pub lock_cookie: U64,
    /// Low bits of the request's number.
    pub xid: U32,
}
const _: () = assert!(size_of::<ObjectIo>() == 32);

/// Flags of [`ObjectIo`] and [`ObjectMwrite`].
pub mod io_flags {
    /// Answer when the data is on stable media (O_SYNC).
    pub const SYNC: u16 = 1;
    /// The space was granted: the write must not fail for want of space.
    pub const GRANTED: u16 = 2;
}

/// SPACE: punch, allocate, zero, truncate. There is no room for a cookie: the server locks for it, and the locks of the
/// calling client are not in the way (nor are they revoked); our client holds a write lock over the range when it calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ObjectSpace {
    /// From the reply that opened the object.
    pub handle: U32,
    /// [`space_mode`].
    pub mode: U16,
    /// Low bits of the layout's generation.
    pub layout_generation: U16,
    /// In the object. Truncate: the new size.
    pub offset_bytes: U64,
    /// Bytes; 64 bits, because an allocation may be large. Truncate: 0.
    pub length_bytes: U64,
    /// mtime and ctime of the change: nanoseconds since 1970.
    pub time_ns: U64,
}
const _: () = assert!(size_of::<ObjectSpace>() == 32);

/// Modes of [`ObjectSpace`].
pub mod space_mode {
    /// Cut off or extend to `offset_bytes`.
    pub const TRUNCATE: u16 = 1;
    /// Give space back; reads zeros.
    pub const PUNCH: u16 = 2;
    /// Reserve space; what is there stays.
    pub const ALLOCATE: u16 = 3;
    /// Reads zeros, space stays reserved.
    pub const ZERO: u16 = 4;
    /// Added to ALLOCATE or ZERO: the size does not grow.
    pub const KEEP_SIZE: u16 = 0x100;
}

/// SEEK: the next data or hole at or after an offset; ENXIO when there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ObjectSeek {
    /// From the reply that opened the object.
    pub handle: U32,
    /// 0: data, 1: hole.
    pub what: U16,
    /// Zero.
    pub reserved: U16,
    /// Where to start.
    pub offset_bytes: U64,
    /// Zero.
    pub reserved_tail: [u8; 16],
}
const _: () = assert!(size_of::<ObjectSeek>() == 32);

/// MWRITE: many ranges of many objects in one command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ObjectMwrite {
    /// Entries in the table at the start of the data.
    pub entries: U32,
    /// [`io_flags`].
    pub flags: U16,
    /// Zero.
    pub reserved: U16,
    /// Where the bytes begin in the command's data: at least the table's size. A multiple of 4096 keeps large writes
    /// aligned for the device.
    pub data_offset_bytes: U32,
    /// Of table, gap and bytes together.
    pub length_bytes: U32,
    /// Low bits of the request's number.
    pub xid: U64,
    /// Zero.
    pub reserved_tail: [u8; 8],
}
const _: () = assert!(size_of::<ObjectMwrite>() == 32);

/// One range of an MWRITE. The bytes of the entries follow each other without gaps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct MwriteEntry {
    /// From the reply that opened the object.
    pub handle: U32,
    /// Bytes of this range.
    pub length_bytes: U32,
    /// In the object.
    pub offset_bytes: U64,
    /// The lock it is done under; 0: the server locks for it.
    pub lock_cookie: U64,
    /// mtime and ctime of the write, seconds since 1970 (signed).
    pub time_seconds: U64,
    /// Nanoseconds of the time.
    pub time_nanoseconds: U32,
    /// Low bits of the layout's generation.
    pub layout_generation: U16,
    /// Zero.
    pub reserved: U16,
}
const _: () = assert!(size_of::<MwriteEntry>() == 40);

/// RPC_SEND and RPC_RECV: the two halves of one remote call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RpcArgs {
    /// Pairs the halves within a session.
    pub tag: U32,
    /// One of the operation numbers in [`crate::mgs`], [`crate::mdt`], [`crate::ost`], [`crate::ldlm`].
    pub operation: U16,
    /// [`rpc_flags`].
    pub flags: U16,
    /// Number of the request, unique in the life of the client; a resend keeps it.
    pub xid: U64,
    /// Bytes of the request.
    pub request_bytes: U32,
    /// Largest reply that RECV can take.
    pub reply_bytes_max: U32,
    /// Everything up to this transaction is known committed to the client.
    pub committed: U64,
}
const _: () = assert!(size_of::<RpcArgs>() == 32);

/// Flags of [`RpcArgs`].
pub mod rpc_flags {
    /// Sent before, no answer seen.
    pub const RESENT: u16 = 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn direction_follows_the_low_bits() {
        assert_eq!(Opcode::Write as u8 & 3, 1);
        assert_eq!(Opcode::Mwrite as u8 & 3, 1);
        assert_eq!(Opcode::RpcSend as u8 & 3, 1);
        assert_eq!(Opcode::Read as u8 & 3, 2);
        assert_eq!(Opcode::RpcRecv as u8 & 3, 2);
        assert_eq!(Opcode::EventWait as u8 & 3, 2);
        assert_eq!(Opcode::Space as u8 & 3, 0);
        assert_eq!(Opcode::from_byte(0xC2), Some(Opcode::Read));
        assert_eq!(Opcode::from_byte(0x02), None);
    }

    #[test]
    fn object_io_golden_bytes() {
        let io = ObjectIo {
            handle: 0x0403_0201.into(),
            flags: 0x0605.into(),
            layout_generation: 0x0807.into(),
            offset_bytes: 0x100f_0e0d_0c0b_0a09.into(),
            length_bytes: 0x1413_1211.into(),
            lock_cookie: 0x1c1b_1a19_1817_1615.into(),
            xid: 0x201f_1e1d.into(),
        };
        let want: Vec<u8> = (1..=32).collect();
        assert_eq!(io.as_bytes(), want);
    }
}
