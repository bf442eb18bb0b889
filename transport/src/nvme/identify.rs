//! Identify data structures, with names for the fields that we fill. Base, 5.17.2.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Controller or namespace structure: the CNS values. Base, 5.17.1.
#[allow(missing_docs, reason = "each doc would repeat the name")]
pub mod cns {
    pub const NAMESPACE: u8 = 0x00;
    pub const CONTROLLER: u8 = 0x01;
    pub const ACTIVE_NAMESPACES: u8 = 0x02;
    pub const NAMESPACE_DESCRIPTORS: u8 = 0x03;
    pub const NAMESPACE_FOR_CSI: u8 = 0x05;
    pub const CONTROLLER_FOR_CSI: u8 = 0x06;
    pub const ACTIVE_NAMESPACES_FOR_CSI: u8 = 0x07;
    pub const NAMESPACE_INDEPENDENT: u8 = 0x08;
    pub const COMMAND_SETS: u8 = 0x1C;
}

/// Identify Controller. Base, 5.17.2.1.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[allow(missing_docs, reason = "the names are the specification's, in its order")]
pub struct Controller {
    pub vid: U16,
    pub ssvid: U16,
    /// Serial number, ASCII, padded with spaces.
    pub sn: [u8; 20],
    /// Model number, ASCII, padded with spaces.
    pub mn: [u8; 40],
    /// Firmware revision, ASCII, padded with spaces.
    pub fr: [u8; 8],
    pub rab: u8,
    pub ieee: [u8; 3],
    pub cmic: u8,
    pub mdts: u8,
    pub cntlid: U16,
    pub ver: U32,
    pub rtd3r: U32,
    pub rtd3e: U32,
    pub oaes: U32,
    pub ctratt: U32,
    pub rrls: U16,
    pub reserved_102: [u8; 9],
    /// 1: I/O controller, 2: discovery controller.
    pub cntrltype: u8,
    pub fguid: [u8; 16],
    pub reserved_128: [u8; 128],
    pub oacs: U16,
    pub acl: u8,
    pub aerl: u8,
    pub frmw: u8,
    pub lpa: u8,
    pub elpe: u8,
    pub npss: u8,
    pub reserved_264: [u8; 56],
    /// Keep-alive granularity, 100 ms units.
    pub kas: U16,
    pub reserved_322: [u8; 190],
    pub sqes: u8,
    pub cqes: u8,
    pub maxcmd: U16,
    pub nn: U32,
    pub oncs: U16,
    pub fuses: U16,
    pub fna: u8,
    pub vwc: u8,
    pub awun: U16,
    pub awupf: U16,
    pub icsvscc: u8,
    pub nwpc: u8,
    pub acwu: U16,
    pub cdfs: U16,
    pub sgls: U32,
    pub mnan: U32,
    pub reserved_544: [u8; 224],
    pub subnqn: [u8; 256],
    pub reserved_1024: [u8; 768],
    /// I/O capsule size of commands, 16-byte units.
    pub ioccsz: U32,
    /// I/O capsule size of responses, 16-byte units.
    pub iorcsz: U32,
    /// In-capsule data offset, 16-byte units.
    pub icdoff: U16,
    pub fcatt: u8,
    pub msdbd: u8,
    pub ofcs: U16,
    pub dctype: u8,
    pub reserved_1807: [u8; 2289],
}
const _: () = {
    assert!(size_of::<Controller>() == 4096);
    assert!(std::mem::offset_of!(Controller, cntrltype) == 111);
    assert!(std::mem::offset_of!(Controller, oacs) == 256);
    assert!(std::mem::offset_of!(Controller, kas) == 320);
    assert!(std::mem::offset_of!(Controller, sqes) == 512);
    assert!(std::mem::offset_of!(Controller, sgls) == 536);
    assert!(std::mem::offset_of!(Controller, subnqn) == 768);
    assert!(std::mem::offset_of!(Controller, ioccsz) == 1792);
};

impl Controller {
    /// All zeros.
    pub fn zeroed() -> Box<Controller> {
        Controller::new_box_zeroed().expect("4 KiB can be had")
    }
}

/// ASCII field padded with spaces. Base, 1.4 (ASCII strings).
pub fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [b' '; N];
    for (slot, byte) in field.iter_mut().zip(text.bytes()) {
        *slot = if byte.is_ascii_graphic() || byte == b' ' { byte } else { b'?' };
    }
    field
}

/// I/O Command Set Independent Identify Namespace, CNS 08h. Base, 5.17.2.8.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[allow(missing_docs, reason = "the names are the specification's, in its order")]
pub struct IndependentNamespace {
    pub nsfeat: u8,
    /// Bit 0: may be shared by several controllers.
    pub nmic: u8,
    pub rescap: u8,
    pub fpi: u8,
    pub anagrpid: U32,
    pub nsattr: u8,
    pub reserved_9: u8,
    pub nvmsetid: U16,
    pub endgid: U16,
    /// Bit 0: ready. Linux takes no namespace without it.
    pub nstat: u8,
    pub reserved_15: [u8; 4081],
}
const _: () = assert!(size_of::<IndependentNamespace>() == 4096);

/// Head of a namespace identification descriptor, CNS 03h. Base, 5.17.2.3.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DescriptorHead {
    /// 1: EUI64, 2: NGUID, 3: UUID, 4: CSI.
    pub kind: u8,
    /// Bytes that follow.
    pub length: u8,
    /// Zero.
    pub reserved: U16,
}
const _: () = assert!(size_of::<DescriptorHead>() == 4);

/// CNS 06h for our command set: what it can do. docs/wire.md, section 10.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ObjectController {
    /// Version of the command set, major in the high half.
    pub version: U32,
    /// Largest data of one command, bytes.
    pub data_bytes_max: U32,
    /// Largest MWRITE table, entries.
    pub mwrite_entries_max: U32,
    /// Zero.
    pub reserved: U32,
    /// Identity of the target.
    pub target_uuid: [u8; 16],
    /// Zero.
    pub reserved_tail: [[u8; 2032]; 2],
}
const _: () = assert!(size_of::<ObjectController>() == 4096);

/// Version 1.0 of the object command set.
pub const OBJECT_VERSION: u32 = 1 << 16;

/// One of the 512 I/O command set combinations, CNS 1Ch: a bit for each CSI. Base, 5.17.2.21.
pub fn command_set_combination() -> U64 {
    U64::new(1 << nacre_wire::op::CSI_OBJECT)
}
