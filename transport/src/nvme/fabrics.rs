//! Fabrics commands: Connect, Property Get and Set. Base, 6.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Sqe;

/// Opcode of all fabrics commands; the type is the low byte of the NSID field.
pub const OPCODE: u8 = 0x7F;
/// Command type of Property Set. Base, 6.6.
pub const PROPERTY_SET: u8 = 0x00;
/// Command type of Connect. Base, 6.3.
pub const CONNECT: u8 = 0x01;
/// Command type of Property Get. Base, 6.5.
pub const PROPERTY_GET: u8 = 0x04;

/// NQN of every discovery service. Base, 4.5.
pub const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";

/// Controller properties. Base, 3.1.3.
pub mod property {
    /// Controller capabilities, 8 bytes.
    pub const CAP: u32 = 0x00;
    /// Version.
    pub const VS: u32 = 0x08;
    /// Controller configuration.
    pub const CC: u32 = 0x14;
    /// Controller status.
    pub const CSTS: u32 = 0x1C;
    /// NVM subsystem reset.
    pub const NSSR: u32 = 0x20;
    /// Controller ready timeouts.
    pub const CRTO: u32 = 0x68;
}

/// CAP: MQES 1023 (0's based), CQR 1, TO 15 s, CSS bits 0 and 6 (NVM, and I/O command sets by CSI: CAP bit 43, without which Linux makes
/// no generic node), MPSMIN and MPSMAX 4 KiB. Base, 3.1.3.1.
pub const CAP: u64 = 1023 | 1 << 16 | 30 << 24 | (1 | 1 << 6) << 37;
/// Version 2.0.
pub const VERSION: u32 = 0x0002_0000;
/// Largest queue, entries.
pub const QUEUE_ENTRIES_MAX: u16 = 1024;

/// Submission queue entry of Connect. Base, 6.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ConnectSqe {
    /// [`OPCODE`].
    pub opcode: u8,
    /// As in every entry.
    pub flags: u8,
    /// As in every entry.
    pub cid: U16,
    /// [`CONNECT`].
    pub kind: u8,
    /// Zero.
    pub reserved: [u8; 19],
    /// Where the [`ConnectData`] is.
    pub sgl: super::Sgl,
    /// Record format: 0.
    pub record_format: U16,
    /// Queue; 0 is the admin queue.
    pub queue_id: U16,
    /// Entries, 0's based.
    pub sq_size: U16,
    /// [`CATTR_NO_FLOW_CONTROL`].
    pub attributes: u8,
    /// Zero.
    pub reserved_middle: u8,
    /// Keep-alive timeout, milliseconds; admin queue only.
    pub keep_alive_ms: U32,
    /// Zero.
    pub reserved_tail: [u8; 12],
}
const _: () = assert!(size_of::<ConnectSqe>() == 64);

/// CATTR bit 2: the host does not want submission queue flow control.
pub const CATTR_NO_FLOW_CONTROL: u8 = 4;

impl ConnectSqe {
    /// The same 64 bytes.
    pub fn from_sqe(sqe: &Sqe) -> ConnectSqe {
        ConnectSqe::read_from_bytes(sqe.as_bytes()).expect("both are 64 bytes")
    }

    /// The same 64 bytes.
    pub fn to_sqe(&self) -> Sqe {
        Sqe::read_from_bytes(self.as_bytes()).expect("both are 64 bytes")
    }
}

/// Data of Connect. Base, 6.3.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ConnectData {
    /// Host identifier.
    pub host_id: [u8; 16],
    /// FFFFh: any (admin queue, dynamic model).
    pub controller_id: U16,
    /// Zero.
    pub reserved: [u8; 238],
    /// NUL-terminated.
    pub subsystem_nqn: [u8; 256],
    /// NUL-terminated.
    pub host_nqn: [u8; 256],
    /// Zero.
    pub reserved_tail: [u8; 256],
}
const _: () = assert!(size_of::<ConnectData>() == 1024);

/// Dynamic controller. Base, 6.3.
pub const CONTROLLER_ANY: u16 = 0xFFFF;

/// IPO of an invalid-parameters answer to Connect: offset of the field, and whether it is in the data. Base, 6.3, result dword 0.
pub fn invalid_parameter(offset: usize, in_data: bool) -> u64 {
    offset as u64 | u64::from(in_data) << 16
}

/// The NQN in a NUL-terminated field; `None` when it is no text or not terminated.
pub fn nqn_of(field: &[u8; 256]) -> Option<&str> {
    let end = field.iter().position(|byte| *byte == 0)?;
    std::str::from_utf8(&field[..end]).ok().filter(|text| !text.is_empty())
}

/// An NQN as a field; longer ones are cut.
pub fn nqn_field(nqn: &str) -> [u8; 256] {
    let mut field = [0; 256];
    let length = nqn.len().min(255);
    field[..length].copy_from_slice(&nqn.as_bytes()[..length]);
    field
}

/// Argument of Property Get and Set: CDW10 size, CDW11 offset, CDW12–13 value. Base, 6.5, 6.6.
pub fn property_value(sqe: &Sqe) -> u64 {
    U64::from_bytes(sqe.cdw10_15[2..4].as_bytes().try_into().expect("eight bytes")).get()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_the_specification_puts_them() {
        assert_eq!(std::mem::offset_of!(ConnectSqe, record_format), 40);
        assert_eq!(std::mem::offset_of!(ConnectSqe, attributes), 46);
        assert_eq!(std::mem::offset_of!(ConnectSqe, keep_alive_ms), 48);
        assert_eq!(std::mem::offset_of!(ConnectData, subsystem_nqn), 256);
        assert_eq!(std::mem::offset_of!(ConnectData, host_nqn), 512);
        assert_eq!(CAP >> 43 & 1, 1);
        assert_eq!(nqn_of(&nqn_field("nqn.x")), Some("nqn.x"));
        assert_eq!(nqn_of(&[b'a'; 256]), None);
        assert_eq!(nqn_of(&[0; 256]), None);
    }
}
