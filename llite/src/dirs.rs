//! Open directories. One answer of the client (up to a megabyte of names) feeds many READDIRs.
//!
//! A position is a cookie: that of the last name seen. Cookies grow, so any position inside what is buffered continues
//! there (seekdir), and any other asks the client again; position 0 (rewinddir) always asks again. Names that come or
//! go while a directory is read appear or not, and nothing else moves. Attributes that were fetched before something
//! changed are left out: the kernel then looks the name up.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use nacre_client::{DirEntry, FileSystem};
use nacre_wire::{Fid, Status};
use zerocopy::IntoBytes;

use crate::abi;
use crate::session::{Answer, Session};

/// The directories that are open.
#[derive(Default)]
pub struct Dirs {
    open: RefCell<Open>,
}

#[derive(Default)]
struct Open {
    last: u64,
    buffers: HashMap<u64, Rc<RefCell<Buffer>>>,
}

/// Names from one answer. Two threads may read one descriptor: each takes what fits its position.
#[derive(Default)]
struct Buffer {
    /// Position before the first.
    after: u64,
    entries: Rc<Vec<DirEntry>>,
    /// The directory's end follows the last.
    end: bool,
    /// Of [`crate::notify::KernelNotifier::generation`], when it was asked for.
    generation: u64,
    fetched: bool,
}

impl Dirs {
    pub(crate) fn open(&self) -> u64 {
        let mut open = self.open.borrow_mut();
        open.last += 1;
        let number = open.last;
        open.buffers.insert(number, Rc::default());
        number
    }

    pub(crate) fn close(&self, number: u64) {
        self.open.borrow_mut().buffers.remove(&number);
    }

    fn get(&self, number: u64) -> Result<Rc<RefCell<Buffer>>, Status> {
        self.open.borrow().buffers.get(&number).cloned().ok_or(Status::EBADF)
    }
}

impl Buffer {
    /// Index of the first name after a position; `None`: not in here.
    fn index_after(&self, position: u64) -> Option<usize> {
        if !self.fetched || position == 0 || position < self.after {
            return None;
        }
        let index = self.entries.partition_point(|entry| entry.cookie <= position);
        (index < self.entries.len() || self.end).then_some(index)
    }
}

impl<F: FileSystem + 'static> Session<F> {
    pub(crate) async fn readdir(&self, fid: Fid, read: &abi::ReadIn, plus: bool) -> Result<Answer, Status> {
        let buffer = self.dirs.get(read.fh)?;
        let known = buffer.borrow().index_after(read.offset);
        let index = match known {
            Some(index) => index,
            None => {
                let first = read.offset == 0;
                let generation = self.kernel.generation();
                let bytes_max = if first { FIRST_BYTES } else { NEXT_BYTES };
                let entries = match self.fs.readdir(fid, read.offset, bytes_max, plus).await {
                    Ok(entries) => entries,
                    // Removed while open: it is empty.
                    Err(Status::ENOENT) => Vec::new(),
                    Err(status) => return Err(status),
                };
                let end = entries.is_empty();
                let entries = Rc::new(entries);
                *buffer.borrow_mut() = Buffer { after: read.offset, entries, end, generation, fetched: true };
                0
            }
        };
        let (entries, fresh) = {
            let buffer = buffer.borrow();
            (buffer.entries.clone(), buffer.generation == self.kernel.generation())
        };
        let mut answer = Answer::default();
        for entry in &entries[index..] {
            if !self.put(&mut answer, entry, plus, fresh, read.size as usize) {
                break;
            }
        }
        Ok(answer)
    }

    /// False: does not fit any more.
    fn put(&self, answer: &mut Answer, entry: &DirEntry, plus: bool, fresh: bool, bytes_max: usize) -> bool {
        let head = if plus { size_of::<abi::EntryOut>() } else { 0 } + size_of::<abi::Dirent>();
        let length = (head + entry.name.len()).next_multiple_of(8);
        let end = answer.fixed.len() + length;
        if end > bytes_max {
            return false;
        }
        if plus {
            let dots = matches!(&entry.name[..], b"." | b"..");
            let known = entry.entry.as_ref().filter(|_| fresh && !dots);
            // Node 0: a name only.
            let out = known.map(|entry| self.entry_out(entry)).unwrap_or_default();
            if out.nodeid != 0 {
                answer.references.push(out.nodeid);
            }
            answer.fixed.extend_from_slice(out.as_bytes());
        }
        let dirent = abi::Dirent {
            ino: entry.fid.inode_number(),
            off: entry.cookie,
            namelen: entry.name.len() as u32,
            kind: entry.kind >> 12 & 0xf,
        };
        answer.fixed.extend_from_slice(dirent.as_bytes());
        answer.fixed.extend_from_slice(&entry.name);
        answer.fixed.resize(end, 0);
        true
    }
}

/// Most directories fit; of those that do not, the start.
const FIRST_BYTES: u32 = 128 << 10;
const NEXT_BYTES: u32 = 1 << 20;
