//! The receiving half of a connection: bytes become headers, and data lands where it stays.
//!
//! Small PDUs are taken from a buffer that one read fills with as many of them as there are. The rest of large data is read
//! straight into its own pages.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::tcp::OwnedReadHalf;
use zerocopy::FromBytes;

use super::pdu::{self, Common, DIGEST_BYTES, Digests, FatalStatus, Head, Receiver, Sizes, Violation};
use super::space::Space;

pub(super) struct Rx {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    receiver: Receiver,
    digests: Digests,
    sink: Option<Sink>,
}

/// Data on its way in.
struct Sink {
    space: Space,
    first: usize,
    at: usize,
    end: usize,
}

/// A header, and how much data follows it.
pub(super) struct Arrived {
    pub(super) head: Head,
    pub(super) data_bytes: usize,
}

/// Data that has arrived whole.
pub(super) struct Received {
    pub(super) space: Space,
    /// The data digest, where there is one, agrees.
    pub(super) intact: bool,
}

impl Rx {
    pub(super) fn new(receiver: Receiver) -> Rx {
        let buffer = vec![0; BUFFER_BYTES].into_boxed_slice();
        Rx { buffer, start: 0, end: 0, receiver, digests: Digests::default(), sink: None }
    }

    /// Digests have been negotiated; for all PDUs from here on.
    pub(super) fn set_digests(&mut self, digests: Digests) {
        self.digests = digests;
    }

    /// Reads once. `Ok(0)` is the end.
    pub(super) fn poll_read(&mut self, from: &mut OwnedReadHalf, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if let Some(sink) = &mut self.sink
                && sink.end - sink.at >= DIRECT_FROM_BYTES
                && !sink.space.is_nowhere()
            {
                let mut buf = ReadBuf::new(&mut sink.space.slice_mut()[sink.at..sink.end]);
                ready!(Pin::new(from).poll_read(cx, &mut buf))?;
                let bytes = buf.filled().len();
                sink.at += bytes;
                return Poll::Ready(Ok(bytes));
            }
        } else if self.end > self.buffer.len() - ROOM_BYTES {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let mut buf = ReadBuf::new(&mut self.buffer[self.end..]);
        ready!(Pin::new(from).poll_read(cx, &mut buf))?;
        let bytes = buf.filled().len();
        self.end += bytes;
        Poll::Ready(Ok(bytes))
    }

    /// The next header, if it is there whole; its bytes are gone from here then. Data has to be received before the next.
    pub(super) fn head(&mut self) -> Result<Option<Arrived>, Violation> {
        debug_assert!(self.sink.is_none());
        let bytes = &self.buffer[self.start..self.end];
        let Ok((common, _)) = Common::read_from_prefix(bytes) else { return Ok(None) };
        let sizes = Sizes::decode(&common, self.receiver, self.digests)?;
        if bytes.len() < sizes.head_bytes {
            return Ok(None);
        }
        let header = &bytes[..sizes.header_bytes];
        if self.digests.header && sizes.head_bytes >= sizes.header_bytes + DIGEST_BYTES {
            let (sent, _) = u32_at(bytes, sizes.header_bytes);
            if sent != pdu::digest(header) {
                let status = FatalStatus::HeaderDigest;
                return Err(Violation { status, information: sent, what: "header digest" });
            }
        }
        let head = Head::decode(header, sizes.data_bytes)?;
        self.start += sizes.head_bytes;
        Ok(Some(Arrived { head, data_bytes: sizes.data_bytes }))
    }

    /// The header that [`Rx::head`] refused, for the termination request.
    pub(super) fn offending(&self) -> &[u8] {
        let bytes = &self.buffer[self.start..self.end];
        &bytes[..bytes.len().min(72)]
    }

    /// Lets the data of the PDU just begun land in `space[first..first + bytes]`.
    pub(super) fn receive(&mut self, space: Space, first: usize, bytes: usize) {
        debug_assert!(first + bytes <= space.len());
        self.sink = Some(Sink { space, first, at: first, end: first + bytes });
    }

    /// Whether data is being received.
    pub(super) fn is_receiving(&self) -> bool {
        self.sink.is_some()
    }

    /// Moves what has been read to where it lands; the whole when it is there.
    pub(super) fn received(&mut self) -> Option<Received> {
        let sink = self.sink.as_mut()?;
        let bytes = (sink.end - sink.at).min(self.end - self.start);
        if !sink.space.is_nowhere() {
            let from = &self.buffer[self.start..self.start + bytes];
            sink.space.slice_mut()[sink.at..sink.at + bytes].copy_from_slice(from);
        }
        self.start += bytes;
        sink.at += bytes;
        if sink.at < sink.end {
            return None;
        }
        let mut intact = true;
        if self.digests.data {
            if self.end - self.start < DIGEST_BYTES {
                return None;
            }
            let (sent, _) = u32_at(&self.buffer, self.start);
            let range = sink.first..sink.end;
            intact = sink.space.is_nowhere() || sent == pdu::digest(&sink.space.slice_mut()[range]);
            self.start += DIGEST_BYTES;
        }
        let space = self.sink.take()?.space;
        Some(Received { space, intact })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> (u32, usize) {
    let field: [u8; 4] = bytes[at..at + 4].try_into().expect("four bytes");
    (u32::from_le_bytes(field), at + 4)
}

/// One read takes a whole queue of commands and their little data.
const BUFFER_BYTES: usize = 128 << 10;
/// A read is worth that much room at least.
const ROOM_BYTES: usize = 32 << 10;
/// From here on, one more read costs less than the copy.
const DIRECT_FROM_BYTES: usize = 32 << 10;
