//! Protocol data units of NVMe/TCP. NVMe/TCP Transport 1.0, 3.6.
//!
//! ```text
//! ┌──────┬───────┬──────┬─────┬──────┬─ ─ ─ ─ ─ ─ ─┬────────┬ ─ ─ ─ ─┬────────┐
//! │ type │ flags │ hlen │ pdo │ plen │ rest of head │ hdgst? │  data  │ ddgst? │
//! └──────┴───────┴──────┴─────┴──────┴─ ─ ─ ─ ─ ─ ─┴────────┴ ─ ─ ─ ─┴────────┘
//!    1       1      1      1     4      hlen − 8        4                 4
//! ```
//!
//! [`Head::decode`] is strict: what the specification forbids is a [`Violation`] that says which byte was wrong, and
//! becomes a termination request.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::nvme::{Cqe, Sqe};

/// First eight bytes of every PDU. 3.6.1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Common {
    /// [`kind`].
    pub kind: u8,
    /// [`flag`].
    pub flags: u8,
    /// Bytes of the header, digest aside.
    pub header_bytes: u8,
    /// Where data starts; 0 without data.
    pub data_offset: u8,
    /// Bytes of everything.
    pub whole_bytes: U32,
}
const _: () = assert!(size_of::<Common>() == 8);

/// PDU types.
#[allow(missing_docs, reason = "the names are the specification's")]
pub mod kind {
    pub const IC_REQ: u8 = 0x00;
    pub const IC_RESP: u8 = 0x01;
    pub const H2C_TERM_REQ: u8 = 0x02;
    pub const C2H_TERM_REQ: u8 = 0x03;
    pub const CAPSULE_CMD: u8 = 0x04;
    pub const CAPSULE_RESP: u8 = 0x05;
    pub const H2C_DATA: u8 = 0x06;
    pub const C2H_DATA: u8 = 0x07;
    pub const R2T: u8 = 0x09;
}

/// Flags of the common header.
pub mod flag {
    /// A header digest follows the header.
    pub const HEADER_DIGEST: u8 = 1;
    /// A data digest follows the data.
    pub const DATA_DIGEST: u8 = 2;
    /// Last data of the transfer.
    pub const LAST: u8 = 4;
    /// The command succeeded; no response capsule follows.
    pub const SUCCESS: u8 = 8;
}

/// Initialize connection, request and response: the same shape. 3.6.2.2, 3.6.2.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Ic {
    /// Header.
    pub common: Common,
    /// PDU format version: 0.
    pub version: U16,
    /// Alignment of data that the sender wants to receive: 0.
    pub data_alignment: u8,
    /// Bit 0 header digests, bit 1 data digests.
    pub digests: u8,
    /// Request: outstanding R2Ts for a command, 0's based. Response: largest data of one H2CData, bytes.
    pub limit: U32,
    /// Zero.
    pub reserved: [[u8; 56]; 2],
}
const _: () = assert!(size_of::<Ic>() == 128);

/// Command capsule. 3.6.2.6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CapsuleCmd {
    /// Header.
    pub common: Common,
    /// The command.
    pub sqe: Sqe,
}
const _: () = assert!(size_of::<CapsuleCmd>() == 72);

/// Response capsule. 3.6.2.7.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CapsuleResp {
    /// Header.
    pub common: Common,
    /// The completion.
    pub cqe: Cqe,
}
const _: () = assert!(size_of::<CapsuleResp>() == 24);

/// H2CData, C2HData and R2T: the same shape. 3.6.2.8–10.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Transfer {
    /// Header.
    pub common: Common,
    /// The command.
    pub cid: U16,
    /// The controller's name of the transfer; C2HData: reserved.
    pub tag: U16,
    /// In the command's data, bytes.
    pub offset_bytes: U32,
    /// Bytes.
    pub length_bytes: U32,
    /// Zero.
    pub reserved: U32,
}
const _: () = assert!(size_of::<Transfer>() == 24);

/// Termination request; up to 128 bytes of the offending header follow. 3.6.2.4, 3.6.2.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct TermReq {
    /// Header.
    pub common: Common,
    /// [`FatalStatus`].
    pub status: U16,
    /// Which byte, or the digest received.
    pub information: U32,
    /// Zero.
    pub reserved: [u8; 10],
}
const _: () = assert!(size_of::<TermReq>() == 24);

/// Fatal error status. 3.6.2.4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum FatalStatus {
    /// A header field is wrong; the information is its offset.
    HeaderField = 1,
    /// Not expected now.
    Sequence = 2,
    /// Header digest error; the information is the digest received.
    HeaderDigest = 3,
    /// Data outside the transfer.
    DataRange = 4,
    /// More data than the limit (to the host: more R2Ts).
    DataLimit = 5,
    /// A parameter that is not supported; the information is its offset.
    Unsupported = 6,
}

/// What is wrong with what the peer sent; fatal to the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("protocol error {status:?} ({information:#x}): {what}")]
pub struct Violation {
    /// For the termination request.
    pub status: FatalStatus,
    /// For the termination request.
    pub information: u32,
    /// For people.
    pub what: &'static str,
}

impl Violation {
    /// A header field at a byte offset.
    pub fn field(offset: usize, what: &'static str) -> Violation {
        Violation { status: FatalStatus::HeaderField, information: offset as u32, what }
    }

    /// Something not expected now.
    pub fn sequence(what: &'static str) -> Violation {
        Violation { status: FatalStatus::Sequence, information: 0, what }
    }
}

/// Which side is receiving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receiver {
    /// The controller.
    Target,
    /// The host.
    Host,
}

/// Digests in use on a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digests {
    /// CRC32C after headers.
    pub header: bool,
    /// CRC32C after data.
    pub data: bool,
}

/// A decoded header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// ICReq or ICResp.
    Ic(Ic),
    /// H2CTermReq or C2HTermReq.
    Term(TermReq),
    /// CapsuleCmd.
    Command(Sqe),
    /// CapsuleResp.
    Response(Cqe),
    /// H2CData or C2HData.
    Data(Transfer),
    /// R2T.
    Ready(Transfer),
}

/// Sizes of a PDU, as its first eight bytes tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Header with its digest and padding: where data starts, if there is any.
    pub head_bytes: usize,
    /// Header proper.
    pub header_bytes: usize,
    /// Data, digest aside.
    pub data_bytes: usize,
}

impl Sizes {
    /// Judges the first eight bytes.
    pub fn decode(common: &Common, receiver: Receiver, digests: Digests) -> Result<Sizes, Violation> {
        let target = receiver == Receiver::Target;
        let (header_bytes, may_have_data, flags, data_bytes_max) = match common.kind {
            kind::IC_REQ if target => (128, false, 0, 0),
            kind::IC_RESP if !target => (128, false, 0, 0),
            kind::H2C_TERM_REQ if target => (24, true, 0, TERM_DATA_BYTES_MAX),
            kind::C2H_TERM_REQ if !target => (24, true, 0, TERM_DATA_BYTES_MAX),
            kind::CAPSULE_CMD if target => (72, true, DIGESTS, CAPSULE_DATA_BYTES_MAX),
            kind::CAPSULE_RESP if !target => (24, false, flag::HEADER_DIGEST, 0),
            kind::H2C_DATA if target => (24, true, DIGESTS | flag::LAST, DATA_BYTES_MAX),
            kind::C2H_DATA if !target => (24, true, DIGESTS | flag::LAST | flag::SUCCESS, DATA_BYTES_MAX),
            kind::R2T if !target => (24, false, flag::HEADER_DIGEST, 0),
            _ => return Err(Violation::field(0, "this type of PDU is not sent to us")),
        };
        if common.flags & !flags != 0 {
            return Err(Violation::field(1, "reserved flags"));
        }
        if usize::from(common.header_bytes) != header_bytes {
            return Err(Violation::field(2, "header length"));
        }
        let header_digest = digests.header && flags & flag::HEADER_DIGEST != 0;
        if flags & flag::HEADER_DIGEST != 0 && (common.flags & flag::HEADER_DIGEST != 0) != digests.header {
            return Err(Violation::field(1, "header digest not as negotiated"));
        }
        let bare_bytes = header_bytes + if header_digest { DIGEST_BYTES } else { 0 };
        let whole_bytes = common.whole_bytes.get() as usize;
        if whole_bytes == bare_bytes {
            // PDO is reserved without data; hosts differ in what they put there.
            return Ok(Sizes { head_bytes: bare_bytes, header_bytes, data_bytes: 0 });
        }
        if !may_have_data || whole_bytes < bare_bytes {
            return Err(Violation::field(4, "PDU length"));
        }
        let termination = matches!(common.kind, kind::H2C_TERM_REQ | kind::C2H_TERM_REQ);
        if termination {
            let data_bytes = whole_bytes - header_bytes;
            let fits = data_bytes <= data_bytes_max;
            let sizes = Sizes { head_bytes: header_bytes, header_bytes, data_bytes };
            return if fits { Ok(sizes) } else { Err(Violation::field(4, "PDU length")) };
        }
        if (common.flags & flag::DATA_DIGEST != 0) != digests.data {
            return Err(Violation::field(1, "data digest not as negotiated"));
        }
        let head_bytes = usize::from(common.data_offset);
        if head_bytes < bare_bytes {
            return Err(Violation::field(3, "data inside the header"));
        }
        let digest_bytes = if digests.data { DIGEST_BYTES } else { 0 };
        match whole_bytes.checked_sub(head_bytes + digest_bytes) {
            None | Some(0) => Err(Violation::field(4, "PDU length")),
            Some(data_bytes) if data_bytes > data_bytes_max => Err(Violation {
                status: FatalStatus::DataLimit,
                information: 0,
                what: "more data than one PDU may carry",
            }),
            Some(data_bytes) => Ok(Sizes { head_bytes, header_bytes, data_bytes }),
        }
    }
}

impl Head {
    /// Decodes a whole header whose first eight bytes [`Sizes::decode`] has accepted; `bytes` are `header_bytes` long.
    pub fn decode(bytes: &[u8], data_bytes: usize) -> Result<Head, Violation> {
        let short = |_| Violation::field(2, "header length");
        fn read<T: FromBytes>(bytes: &[u8]) -> Result<T, ()> {
            T::read_from_bytes(bytes).map_err(|_| ())
        }
        Ok(match bytes.first() {
            Some(&(kind::IC_REQ | kind::IC_RESP)) => Head::Ic(read(bytes).map_err(short)?),
            Some(&(kind::H2C_TERM_REQ | kind::C2H_TERM_REQ)) => Head::Term(read(bytes).map_err(short)?),
            Some(&kind::CAPSULE_CMD) => Head::Command(read::<CapsuleCmd>(bytes).map_err(short)?.sqe),
            Some(&kind::CAPSULE_RESP) => Head::Response(read::<CapsuleResp>(bytes).map_err(short)?.cqe),
            Some(&kind::R2T) => Head::Ready(read(bytes).map_err(short)?),
            Some(&(kind::H2C_DATA | kind::C2H_DATA)) => {
                let data: Transfer = read(bytes).map_err(short)?;
                if data.length_bytes.get() as usize != data_bytes {
                    return Err(Violation::field(16, "data length does not agree with the PDU's"));
                }
                Head::Data(data)
            }
            _ => return Err(Violation::field(0, "unknown type of PDU")),
        })
    }
}

/// CRC32C of NVMe/TCP digests. 3.3.1.1.
pub fn digest(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// Bytes of a digest.
pub const DIGEST_BYTES: usize = 4;
/// 64 KiB: the largest data in a capsule that we take without an R2T round trip.
pub const CAPSULE_DATA_BYTES_MAX: usize = 64 << 10;
/// Largest data of one data PDU; announced as MAXH2CDATA.
pub const DATA_BYTES_MAX: usize = nacre_wire::op::DATA_BYTES_MAX as usize;
/// Data of a termination request: the offending header.
const TERM_DATA_BYTES_MAX: usize = 128;
const DIGESTS: u8 = flag::HEADER_DIGEST | flag::DATA_DIGEST;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn common(kind: u8, flags: u8, header_bytes: u8, data_offset: u8, whole_bytes: u32) -> Common {
        Common { kind, flags, header_bytes, data_offset, whole_bytes: whole_bytes.into() }
    }

    #[test]
    fn golden_bytes() {
        let transfer = Transfer {
            common: common(kind::H2C_DATA, flag::LAST, 24, 24, 24 + 512),
            cid: 0x0102.into(),
            tag: 0x0304.into(),
            offset_bytes: 0x0506_0708.into(),
            length_bytes: 512.into(),
            reserved: 0.into(),
        };
        let want =
            [6, 4, 24, 24, 0x18, 2, 0, 0, 0x02, 0x01, 0x04, 0x03, 0x08, 0x07, 0x06, 0x05, 0, 2, 0, 0, 0, 0, 0, 0];
        assert_eq!(transfer.as_bytes(), want);
        assert_eq!(Head::decode(&want, 512), Ok(Head::Data(transfer)));
        assert!(Head::decode(&want, 511).is_err());
        // RFC 3720, B.4: 32 bytes of zeros.
        assert_eq!(digest(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn every_wrong_field_is_named() {
        let none = Digests::default();
        let all = Digests { header: true, data: true };
        let at = |common: Common, digests| {
            Sizes::decode(&common, Receiver::Target, digests).map_err(|wrong| (wrong.status, wrong.information))
        };
        let field = |offset| Err((FatalStatus::HeaderField, offset));
        assert_eq!(at(common(0x47, 0, 72, 0, 72), none), field(0));
        assert_eq!(at(common(kind::CAPSULE_RESP, 0, 24, 0, 24), none), field(0));
        assert_eq!(at(common(kind::CAPSULE_CMD, 0x80, 72, 0, 72), none), field(1));
        assert_eq!(at(common(kind::CAPSULE_CMD, 0, 71, 0, 72), none), field(2));
        assert_eq!(at(common(kind::CAPSULE_CMD, 0, 72, 71, 80), none), field(3));
        assert_eq!(at(common(kind::CAPSULE_CMD, 0, 72, 72, 71), none), field(4));
        assert_eq!(at(common(kind::CAPSULE_CMD, 0, 72, 0, 76), all), field(1));
        assert_eq!(at(common(kind::CAPSULE_CMD, 3, 72, 76, 80), all), field(4));
        let limit = Err((FatalStatus::DataLimit, 0));
        assert_eq!(at(common(kind::CAPSULE_CMD, 0, 72, 72, 72 + (64 << 10) + 1), none), limit);
        let fine = Sizes { head_bytes: 76, header_bytes: 72, data_bytes: 100 };
        assert_eq!(at(common(kind::CAPSULE_CMD, 3, 72, 76, 180), all), Ok(fine));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_and_never_promise_more_than_the_limits(
            bytes in proptest::collection::vec(any::<u8>(), 8..160), header: bool, data: bool, host: bool,
        ) {
            let receiver = if host { Receiver::Host } else { Receiver::Target };
            let (common, _) = Common::read_from_prefix(&bytes).unwrap();
            if let Ok(sizes) = Sizes::decode(&common, receiver, Digests { header, data }) {
                prop_assert!(sizes.data_bytes <= DATA_BYTES_MAX);
                prop_assert!(sizes.head_bytes <= 255 && sizes.header_bytes <= 128);
                if bytes.len() >= sizes.header_bytes {
                    let _ = Head::decode(&bytes[..sizes.header_bytes], sizes.data_bytes);
                }
            }
        }

        #[test]
        fn headers_survive_the_round_trip(cid: u16, tag: u16, offset_bytes: u32, length in 1usize..DATA_BYTES_MAX) {
            let transfer = Transfer {
                common: common(kind::C2H_DATA, 0, 24, 24, (24 + length) as u32),
                cid: cid.into(),
                tag: tag.into(),
                offset_bytes: offset_bytes.into(),
                length_bytes: (length as u32).into(),
                reserved: 0.into(),
            };
            let sizes = Sizes::decode(&transfer.common, Receiver::Host, Digests::default()).unwrap();
            prop_assert_eq!(sizes.data_bytes, length);
            prop_assert_eq!(Head::decode(transfer.as_bytes(), length), Ok(Head::Data(transfer)));
        }
    }
}
