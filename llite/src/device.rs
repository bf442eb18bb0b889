//! `/dev/fuse`: one message per read, one per write, and the buffers that messages are read into.
//!
//! A message is read into two pieces: 80 bytes, which is exactly what stands before the data of a WRITE, and a
//! page-aligned megabyte after it. Data of a write so arrive in the buffer that goes down to the network or the disk,
//! without another copy. Buffers come back to a pool when the last reference goes, wherever that is.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use nacre_reactor::{Bytes, DmaBuf};
use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use crate::abi::{InHeader, NotifyInvalInodeOut, OutHeader, WriteIn};

/// Largest WRITE and READ, bytes: 256 pages, the most that a kernel allows unless its administrator raised
/// `fs.fuse.max_pages_limit`.
pub const IO_BYTES_MAX: usize = 1 << 20;

/// The open device of one mount. Reads and writes are system calls on a shared descriptor: any thread may make them.
pub struct Device {
    file: File,
}

impl Device {
    /// Takes an open `/dev/fuse`; reads on it must not block.
    pub fn new(fd: OwnedFd) -> Device {
        Device { file: File::from(fd) }
    }

    /// Reads one request. `None`: there is none now.
    ///
    /// # Errors
    /// `ENODEV` (unmounted) and `ECONNABORTED` (aborted) end the session. A message that is no message is `EBADMSG`.
    pub fn receive(&self, pool: &Pool) -> Result<Option<Message>, Errno> {
        let mut head = [0u8; HEAD_BYTES];
        let mut body = pool.take();
        let read = loop {
            let mut pieces = [IoSliceMut::new(&mut head), IoSliceMut::new(&mut body)];
            match rustix::io::readv(&self.file, &mut pieces) {
                Ok(read) => break read,
                // The request was taken back (its process was killed) between being queued and being read.
                Err(Errno::NOENT | Errno::INTR) => continue,
                Err(Errno::AGAIN) => {
                    pool.put(body);
                    return Ok(None);
                }
                Err(errno) => return Err(errno),
            }
        };
        match Message::new(head, body, read, pool) {
            Some(message) => Ok(Some(message)),
            None => Err(Errno::BADMSG),
        }
    }

    /// Answers a request: `error` 0 and the bytes of `parts` one after the other, or a positive errno and no bytes.
    ///
    /// # Errors
    /// `ENOENT`: nobody waits for this answer any more.
    pub fn reply(&self, unique: u64, error: i32, parts: &[&[u8]]) -> Result<(), Errno> {
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        let len = (size_of::<OutHeader>() + bytes) as u32;
        let header = OutHeader { len, error: -error, unique };
        if parts.len() < VECTORS_MAX {
            let mut slices = Vec::with_capacity(1 + parts.len());
            slices.push(IoSlice::new(header.as_bytes()));
            slices.extend(parts.iter().map(|part| IoSlice::new(part)));
            rustix::io::writev(&self.file, &slices)?;
        } else {
            let joined = parts.concat();
            rustix::io::writev(&self.file, &[IoSlice::new(header.as_bytes()), IoSlice::new(&joined)])?;
        }
        Ok(())
    }

    /// Tells the kernel something. May wait for pages that are being read or written back.
    pub fn notify_inval_inode(&self, inval: NotifyInvalInodeOut) -> Result<(), Errno> {
        self.notify(crate::abi::NOTIFY_INVAL_INODE, inval.as_bytes())
    }

    /// Makes every name that the kernel holds be asked for again. Waits for nothing.
    pub fn notify_inc_epoch(&self) -> Result<(), Errno> {
        self.notify(crate::abi::NOTIFY_INC_EPOCH, &[])
    }

    fn notify(&self, code: i32, body: &[u8]) -> Result<(), Errno> {
        let len = (size_of::<OutHeader>() + body.len()) as u32;
        let header = OutHeader { len, error: code, unique: 0 };
        rustix::io::writev(&self.file, &[IoSlice::new(header.as_bytes()), IoSlice::new(body)])?;
        Ok(())
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// One request.
pub struct Message {
    /// Who asks for what.
    pub header: InHeader,
    /// Everything after the header, except the data of a WRITE.
    pub arguments: Vec<u8>,
    /// Data of a WRITE.
    pub data: Bytes,
}

impl Message {
    /// `None`: `read` bytes are no message.
    fn new(head: [u8; HEAD_BYTES], body: DmaBuf, read: usize, pool: &Pool) -> Option<Message> {
        let header = InHeader::read_from_bytes(&head[..size_of::<InHeader>()]).ok()?;
        if read < size_of::<InHeader>() || header.len as usize != read {
            return None;
        }
        let in_head = read.min(HEAD_BYTES);
        let in_body = read - in_head;
        let mut arguments = head[size_of::<InHeader>()..in_head].to_vec();
        if header.opcode != crate::abi::opcode::WRITE {
            arguments.extend_from_slice(&body[..in_body]);
            pool.put(body);
            return Some(Message { header, arguments, data: Bytes::new() });
        }
        let data = if in_body >= SHARED_BYTES_MIN {
            Bytes::from_owner(Lent { body: Some(body), pool: pool.clone() }).slice(..in_body)
        } else {
            // A small write must not keep a megabyte busy for as long as it is cached.
            let data = DmaBuf::copy_from(&body[..in_body]).freeze();
            pool.put(body);
            data
        };
        Some(Message { header, arguments, data })
    }
}

/// Megabyte buffers that are not in use.
#[derive(Clone, Default)]
pub struct Pool {
    free: Arc<Mutex<Vec<DmaBuf>>>,
}

impl Pool {
    fn take(&self) -> DmaBuf {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        free.unwrap_or_else(|| DmaBuf::zeroed(IO_BYTES_MAX))
    }

    fn put(&self, buf: DmaBuf) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < POOL_BUFFERS_MAX {
            free.push(buf);
        }
    }
}

/// A buffer of the pool inside a [`Bytes`].
struct Lent {
    body: Option<DmaBuf>,
    pool: Pool,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        self.body.as_deref().unwrap_or_default()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(body) = self.body.take() {
            self.pool.put(body);
        }
    }
}

/// What stands before the data of a WRITE.
const HEAD_BYTES: usize = size_of::<InHeader>() + size_of::<WriteIn>();
const _: () = assert!(HEAD_BYTES == 80);
/// Writes from here on keep the buffer that they were read into; below, a copy costs less than the memory held.
const SHARED_BYTES_MIN: usize = 256 << 10;
/// 16 MiB stay with an idle mount at most.
const POOL_BUFFERS_MAX: usize = 16;
/// IOV_MAX is 1024; one is the header's.
const VECTORS_MAX: usize = 1023;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::opcode;

    fn message(opcode: u32, rest: &[u8], claimed: usize, pool: &Pool) -> Option<Message> {
        let header = InHeader { len: claimed as u32, opcode, unique: 9, ..InHeader::default() };
        let whole = [header.as_bytes(), rest].concat();
        let (mut head, mut body) = ([0; HEAD_BYTES], pool.take());
        let in_head = whole.len().min(HEAD_BYTES);
        head[..in_head].copy_from_slice(&whole[..in_head]);
        body[..whole.len() - in_head].copy_from_slice(&whole[in_head..]);
        Message::new(head, body, whole.len(), pool)
    }

    #[test]
    fn names_over_the_first_piece_are_joined() {
        let pool = Pool::default();
        let name = [b'n'; 255];
        let message = message(opcode::LOOKUP, &name, 40 + 255, &pool).unwrap();
        assert_eq!(message.arguments, name);
        assert!(message.data.is_empty());
    }

    #[test]
    fn a_large_write_keeps_its_buffer_and_gives_it_back() {
        let pool = Pool::default();
        let rest = [vec![0; 40], vec![7; 300 << 10]].concat();
        let write = message(opcode::WRITE, &rest, 40 + rest.len(), &pool).unwrap();
        assert_eq!((write.arguments.len(), write.data.len()), (40, 300 << 10));
        assert_eq!(write.data.as_ptr() as usize % 4096, 0);
        assert_eq!(pool.free.lock().unwrap().len(), 0);
        drop(write);
        assert_eq!(pool.free.lock().unwrap().len(), 1);
        let small = message(opcode::WRITE, &[1; 50], 90, &pool).unwrap();
        assert_eq!((small.data.len(), pool.free.lock().unwrap().len()), (10, 1));
    }

    #[test]
    fn a_length_that_is_not_what_was_read_is_refused() {
        let pool = Pool::default();
        assert!(message(opcode::LOOKUP, b"name", 40 + 5, &pool).is_none());
        assert!(message(opcode::LOOKUP, b"name", 3, &pool).is_none());
    }
}
