//! Log pages. Base, 5.16.1.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Log page identifiers.
#[allow(missing_docs, reason = "each doc would repeat the name")]
pub mod lid {
    pub const SUPPORTED: u8 = 0x00;
    pub const ERRORS: u8 = 0x01;
    pub const SMART: u8 = 0x02;
    pub const FIRMWARE: u8 = 0x03;
    pub const CHANGED_NAMESPACES: u8 = 0x04;
    pub const EFFECTS: u8 = 0x05;
    pub const DISCOVERY: u8 = 0x70;
}

/// Commands Supported and Effects. Base, 5.16.1.6.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Effects {
    /// By admin opcode.
    pub admin: [U32; 256],
    /// By I/O opcode of the command set asked about.
    pub io: [U32; 256],
    /// Zero.
    pub reserved: [u8; 2048],
}
const _: () = assert!(size_of::<Effects>() == 4096);

/// CSUPP: the command is supported.
pub const EFFECT_SUPPORTED: u32 = 1;
/// LBCC: it may change contents. Any bit beside these two makes Linux ask for CAP_SYS_ADMIN.
pub const EFFECT_CHANGES: u32 = 2;

/// Head of the discovery log. Base, 5.16.1.23.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DiscoveryHead {
    /// Changes when the log does.
    pub generation: U64,
    /// Entries that follow.
    pub records: U64,
    /// 0.
    pub format: U16,
    /// Zero.
    pub reserved: [[u8; 503]; 2],
}
const _: () = assert!(size_of::<DiscoveryHead>() == 1024);

/// One entry of the discovery log. Base, 5.16.1.23.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[allow(missing_docs, reason = "the names are the specification's, in its order")]
pub struct DiscoveryEntry {
    /// 3: TCP.
    pub trtype: u8,
    /// 1: IPv4, 2: IPv6.
    pub adrfam: u8,
    /// 1: another discovery service, 2: an NVM subsystem, 3: this discovery service.
    pub subtype: u8,
    /// Secure channel: bits 1:0, 2 = not required. Bit 2: flow control may be disabled.
    pub treq: u8,
    pub portid: U16,
    /// FFFFh: dynamic.
    pub cntlid: U16,
    pub asqsz: U16,
    pub eflags: U16,
    pub reserved_12: [u8; 20],
    /// Port as text, padded with spaces.
    pub trsvcid: [u8; 32],
    pub reserved_64: [u8; 192],
    pub subnqn: [u8; 256],
    /// Address as text, padded with spaces.
    pub traddr: [u8; 256],
    /// First byte: security, 0 = none.
    pub tsas: [u8; 256],
}
const _: () = {
    assert!(size_of::<DiscoveryEntry>() == 1024);
    assert!(std::mem::offset_of!(DiscoveryEntry, subnqn) == 256);
    assert!(std::mem::offset_of!(DiscoveryEntry, traddr) == 512);
};
