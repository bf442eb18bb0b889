//! What the NVMe specifications lay down in bytes, as types. Sections are those of NVM Express Base 2.0 ("Base") and NVMe
//! over TCP Transport 1.0 unless said otherwise. Nothing here does anything.

pub mod fabrics;
pub mod identify;
pub mod log;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Submission queue entry. Base, 3.3.3.1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Sqe {
    /// [`admin`], [`fabrics::OPCODE`] or [`nacre_wire::op::Opcode`].
    pub opcode: u8,
    /// FUSE (bits 1:0) and PSDT (bits 7:6).
    pub flags: u8,
    /// Names the command on its queue.
    pub cid: U16,
    /// Namespace; fabrics commands: the command's type in the low byte.
    pub nsid: U32,
    /// Command dword 2.
    pub cdw2: U32,
    /// Command dword 3.
    pub cdw3: U32,
    /// Metadata: not used on fabrics.
    pub metadata: U64,
    /// Where the data is.
    pub sgl: Sgl,
    /// Command dwords 10–15.
    pub cdw10_15: [U32; 6],
}
const _: () = assert!(size_of::<Sqe>() == 64);

impl Sqe {
    /// PSDT 01b: SGLs, metadata in a contiguous buffer. Fabrics require it. Base, 3.3.3.1.
    pub const FLAGS_SGL: u8 = 0x40;

    /// CDW2–3 and CDW10–15, the 32 argument bytes of our command set.
    pub fn args(&self) -> [u8; 32] {
        let mut args = [0; 32];
        args[..4].copy_from_slice(self.cdw2.as_bytes());
        args[4..8].copy_from_slice(self.cdw3.as_bytes());
        args[8..].copy_from_slice(self.cdw10_15.as_bytes());
        args
    }

    /// Inverse of [`Sqe::args`].
    pub fn set_args(&mut self, args: &[u8; 32]) {
        let dword = |i: usize| U32::from_bytes(args[4 * i..4 * i + 4].try_into().expect("four bytes"));
        (self.cdw2, self.cdw3) = (dword(0), dword(1));
        self.cdw10_15 = std::array::from_fn(|i| dword(i + 2));
    }

    /// Command dword 10–15.
    pub fn cdw(&self, number: usize) -> u32 {
        self.cdw10_15[number - 10].get()
    }
}

/// SGL descriptor. Base, 4.1.2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Sgl {
    /// Offset for data in the capsule; nothing for transport data.
    pub address: U64,
    /// Bytes.
    pub length: U32,
    /// Zero.
    pub reserved: [u8; 3],
    /// Type (high four bits) and subtype.
    pub kind: u8,
}
const _: () = assert!(size_of::<Sgl>() == 16);

impl Sgl {
    /// Data block, offset subtype: the data is in the capsule.
    pub const IN_CAPSULE: u8 = 0x01;
    /// Transport data block, transport subtype: the data travels in PDUs of its own.
    pub const TRANSPORT: u8 = 0x5A;

    /// A descriptor.
    pub fn new(kind: u8, length_bytes: u32) -> Sgl {
        Sgl { address: 0.into(), length: length_bytes.into(), reserved: [0; 3], kind }
    }
}

/// Completion queue entry. Base, 3.3.3.2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Cqe {
    /// Command specific, 64 bits.
    pub result: U64,
    /// Submission queue head.
    pub sq_head: U16,
    /// Submission queue: reserved on fabrics.
    pub sq_id: U16,
    /// The command.
    pub cid: U16,
    /// [`StatusField`] shifted left by the phase tag, which fabrics do not use.
    pub status: U16,
}
const _: () = assert!(size_of::<Cqe>() == 16);

impl Cqe {
    /// The status.
    pub fn status(&self) -> StatusField {
        StatusField(self.status.get() >> 1)
    }
}

/// Status field of a completion, without the phase tag: SC in bits 7:0, SCT in 10:8, More in 13, DNR in 14. Base, 3.3.3.2.1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatusField(pub u16);

impl StatusField {
    /// Do not retry.
    pub const DNR: u16 = 1 << 14;
    /// Successful completion.
    pub const SUCCESS: StatusField = StatusField(0);
    /// Invalid command opcode.
    pub const INVALID_OPCODE: StatusField = StatusField(0x01 | Self::DNR);
    /// Invalid field in command.
    pub const INVALID_FIELD: StatusField = StatusField(0x02 | Self::DNR);
    /// Internal error.
    pub const INTERNAL: StatusField = StatusField(0x06);
    /// Invalid namespace or format.
    pub const INVALID_NAMESPACE: StatusField = StatusField(0x0B | Self::DNR);
    /// Command sequence error.
    pub const SEQUENCE_ERROR: StatusField = StatusField(0x0C | Self::DNR);
    /// Data SGL length invalid.
    pub const SGL_LENGTH: StatusField = StatusField(0x0F | Self::DNR);
    /// SGL descriptor type invalid.
    pub const SGL_TYPE: StatusField = StatusField(0x11 | Self::DNR);
    /// Invalid log page.
    pub const INVALID_LOG_PAGE: StatusField = StatusField(0x109 | Self::DNR);
    /// Feature identifier not saveable or not changeable, as a class: feature not changeable.
    pub const FEATURE_NOT_CHANGEABLE: StatusField = StatusField(0x10E | Self::DNR);
    /// Asynchronous event request limit exceeded.
    pub const EVENT_LIMIT: StatusField = StatusField(0x105 | Self::DNR);
    /// Connect: incompatible format. Base, 3.3.3.2.1.2 (fabrics command specific).
    pub const CONNECT_FORMAT: StatusField = StatusField(0x180 | Self::DNR);
    /// Connect: controller busy.
    pub const CONNECT_BUSY: StatusField = StatusField(0x181);
    /// Connect: invalid parameters.
    pub const CONNECT_INVALID: StatusField = StatusField(0x182 | Self::DNR);
    /// Connect: restart discovery.
    pub const CONNECT_RESTART_DISCOVERY: StatusField = StatusField(0x183 | Self::DNR);
    /// Connect: invalid host.
    pub const CONNECT_HOST: StatusField = StatusField(0x184 | Self::DNR);

    /// Ours: status code type 7 (vendor specific), the code a number of [`nacre_wire::Status`], not to be retried.
    pub fn from_service(status: nacre_wire::Status) -> StatusField {
        StatusField(u16::from(status.0) | 7 << 8 | Self::DNR)
    }

    /// What a service said, or the nearest to what the controller said; `None` for success.
    pub fn to_service(self) -> Option<nacre_wire::Status> {
        use nacre_wire::Status;
        let (code, kind) = (self.0 as u8, self.0 >> 8 & 7);
        match (kind, code) {
            (0, 0) => None,
            (7, code) => Some(Status(code)),
            (0, 0x01) => Some(Status::UNKNOWN_OPERATION),
            (0, 0x02 | 0x0F | 0x11) => Some(Status::EINVAL),
            (0, 0x04 | 0x06) => Some(Status::EIO),
            _ => Some(Status::EPROTO),
        }
    }
}

/// Opcodes of the admin command set. Base, 5.
#[allow(missing_docs, reason = "the names are the specification's")]
pub mod admin {
    pub const GET_LOG_PAGE: u8 = 0x02;
    pub const IDENTIFY: u8 = 0x06;
    pub const ABORT: u8 = 0x08;
    pub const SET_FEATURES: u8 = 0x09;
    pub const GET_FEATURES: u8 = 0x0A;
    pub const ASYNC_EVENT_REQUEST: u8 = 0x0C;
    pub const KEEP_ALIVE: u8 = 0x18;
}

/// Feature identifiers. Base, 5.27.1.
#[allow(missing_docs, reason = "the names are the specification's")]
pub mod feature {
    pub const NUMBER_OF_QUEUES: u8 = 0x07;
    pub const ASYNC_EVENT_CONFIGURATION: u8 = 0x0B;
    pub const KEEP_ALIVE_TIMER: u8 = 0x0F;
    pub const HOST_BEHAVIOR: u8 = 0x16;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_ride_in_the_dwords_of_the_specification() {
        let mut sqe = Sqe::default();
        let args: [u8; 32] = std::array::from_fn(|i| i as u8 + 1);
        sqe.set_args(&args);
        assert_eq!(sqe.args(), args);
        let bytes = sqe.as_bytes();
        // CDW2–3 are bytes 8–15 of the entry, CDW10–15 bytes 40–63.
        assert_eq!(bytes[8..16], args[..8]);
        assert_eq!(bytes[40..64], args[8..]);
    }

    #[test]
    fn golden_bytes() {
        let sqe = Sqe {
            opcode: 0x42,
            flags: Sqe::FLAGS_SGL,
            cid: 0x0102.into(),
            nsid: 1.into(),
            sgl: Sgl::new(Sgl::TRANSPORT, 0x1000),
            ..Sqe::default()
        };
        let mut want = [0u8; 64];
        want[..8].copy_from_slice(&[0x42, 0x40, 0x02, 0x01, 1, 0, 0, 0]);
        want[32..40].copy_from_slice(&[0x00, 0x10, 0, 0, 0, 0, 0, 0x5A]);
        assert_eq!(sqe.as_bytes(), want);
        let status = StatusField::from_service(nacre_wire::Status::ENOENT);
        let cqe = Cqe { cid: 7.into(), status: (status.0 << 1).into(), ..Cqe::default() };
        assert_eq!(cqe.as_bytes()[12..], [7, 0, 0x04, 0x8E]);
        assert_eq!(cqe.status().to_service(), Some(nacre_wire::Status::ENOENT));
    }
}
