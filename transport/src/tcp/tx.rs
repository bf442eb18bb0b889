//! The sending half of a connection: PDUs gather here and leave with vectored writes. Data is sent from where it is.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use nacre_reactor::Bytes;
use tokio::io::AsyncWrite;
use tokio::net::tcp::OwnedWriteHalf;
use zerocopy::{Immutable, IntoBytes};

use super::pdu::{self, Common, DIGEST_BYTES, Digests, FatalStatus, TermReq, Violation, flag, kind};
use crate::nvme::StatusField;

#[derive(Default)]
pub(super) struct Tx {
    /// Headers, digests and little data, in the order of the segments that name them.
    inline: Vec<u8>,
    inline_at: usize,
    segments: VecDeque<Segment>,
    /// Bytes of `segments`.
    bytes: usize,
    digests: Digests,
}

enum Segment {
    /// So many of the next inline bytes.
    Inline(usize),
    Shared(Bytes),
}

impl Tx {
    pub(super) fn set_digests(&mut self, digests: Digests) {
        self.digests = digests;
    }

    /// Bytes that wait to be sent.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds a PDU. `header` starts with a [`Common`], which is filled in here.
    pub(super) fn push<H: IntoBytes + Immutable>(&mut self, kind: u8, flags: u8, header: &H, data: &[Bytes]) {
        let header = header.as_bytes();
        let data_bytes: usize = data.iter().map(Bytes::len).sum();
        let bare = matches!(kind, kind::IC_REQ | kind::IC_RESP | kind::H2C_TERM_REQ | kind::C2H_TERM_REQ);
        let header_digest = self.digests.header && !bare;
        let data_digest = self.digests.data && data_bytes > 0 && !bare;
        let head_bytes = header.len() + if header_digest { DIGEST_BYTES } else { 0 };
        let whole_bytes = head_bytes + data_bytes + if data_digest { DIGEST_BYTES } else { 0 };
        let header_flag = if header_digest { flag::HEADER_DIGEST } else { 0 };
        let data_flag = if data_digest { flag::DATA_DIGEST } else { 0 };
        let common = Common {
            kind,
            flags: flags | header_flag | data_flag,
            header_bytes: header.len() as u8,
            data_offset: if data_bytes > 0 && !bare { head_bytes as u8 } else { 0 },
            whole_bytes: (whole_bytes as u32).into(),
        };
        let start = self.inline.len();
        self.inline.extend_from_slice(common.as_bytes());
        self.inline.extend_from_slice(&header[size_of::<Common>()..]);
        if header_digest {
            let digest = pdu::digest(&self.inline[start..]);
            self.inline.extend_from_slice(&digest.to_le_bytes());
        }
        self.inline_segment(head_bytes);
        for piece in data {
            if piece.len() <= INLINE_BYTES_MAX {
                self.inline.extend_from_slice(piece);
                self.inline_segment(piece.len());
            } else {
                self.bytes += piece.len();
                self.segments.push_back(Segment::Shared(piece.clone()));
            }
        }
        if data_digest {
            let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
            data.iter().for_each(|piece| digest.update(piece));
            self.inline.extend_from_slice(&(digest.finalize() as u32).to_le_bytes());
            self.inline_segment(DIGEST_BYTES);
        }
    }

    /// Adds a termination request: what was wrong, and the header that was.
    pub(super) fn push_termination(&mut self, kind: u8, violation: &Violation, offending: &[u8]) {
        let request = TermReq {
            common: Common::default(),
            status: (violation.status as u16).into(),
            information: match violation.status {
                FatalStatus::HeaderField | FatalStatus::Unsupported | FatalStatus::HeaderDigest => {
                    violation.information
                }
                _ => 0,
            }
            .into(),
            reserved: [0; 10],
        };
        self.push(kind, 0, &request, &[Bytes::copy_from_slice(offending)]);
    }

    /// Writes until everything is gone.
    pub(super) fn poll_flush(&mut self, to: &mut OwnedWriteHalf, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.segments.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let mut at = self.inline_at;
            let mut count = 0;
            for (slot, segment) in slices.iter_mut().zip(&self.segments) {
                *slot = match segment {
                    Segment::Inline(bytes) => {
                        at += bytes;
                        IoSlice::new(&self.inline[at - bytes..at])
                    }
                    Segment::Shared(bytes) => IoSlice::new(bytes),
                };
                count += 1;
            }
            let written = ready!(Pin::new(&mut *to).poll_write_vectored(cx, &slices[..count]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.advance(written);
        }
        Poll::Ready(Ok(()))
    }

    fn inline_segment(&mut self, bytes: usize) {
        self.bytes += bytes;
        if let Some(Segment::Inline(last)) = self.segments.back_mut() {
            *last += bytes;
        } else {
            self.segments.push_back(Segment::Inline(bytes));
        }
    }

    fn advance(&mut self, written: usize) {
        self.bytes -= written;
        let mut rest = written;
        while rest > 0 {
            let Some(segment) = self.segments.front_mut() else { break };
            let length = match segment {
                Segment::Inline(bytes) => *bytes,
                Segment::Shared(bytes) => bytes.len(),
            };
            let taken = length.min(rest);
            rest -= taken;
            match segment {
                Segment::Inline(bytes) => {
                    *bytes -= taken;
                    self.inline_at += taken;
                }
                Segment::Shared(bytes) => drop(bytes.split_to(taken)),
            }
            if taken == length {
                self.segments.pop_front();
            }
        }
        if self.segments.is_empty() {
            self.inline.clear();
            self.inline_at = 0;
        } else if self.inline_at > COMPACT_FROM_BYTES {
            self.inline.drain(..self.inline_at);
            self.inline_at = 0;
        }
    }
}

/// The status field as it stands in a completion.
pub(super) fn status_bits(status: StatusField) -> u16 {
    status.0 << 1
}

/// Up to here a copy costs less than another element of the vector.
const INLINE_BYTES_MAX: usize = 1024;
const SLICES_MAX: usize = 128;
const COMPACT_FROM_BYTES: usize = 256 << 10;
