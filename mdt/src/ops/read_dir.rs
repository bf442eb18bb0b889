//! READ_DIR: readdir(3) in large pieces, with the attributes of everything on request.
//!
//! - Entries come in the order of their cookies, hashes of their names: a name that is there all the time comes exactly
//!   once, whatever else is created or removed meanwhile.
//! - A directory that has been removed but is still open is empty.
//! - With `plus` every child comes with its attributes and, where one is free, a lock to keep them under.
//!
//! Lock order: none. The client's lock on the directory is granted before the names are read; a child's before its
//! attributes are, and its name is looked up again if any name has changed since the names were read.

use nacre_wire::Status;
use nacre_wire::ldlm::Ibits;
use nacre_wire::mdt::{DirEntry, ReadDir, ReadDirReply};

use crate::locks::NO_LOCK;
use crate::names::{self, Target};
use crate::session::Caller;
use crate::status_of;
use crate::target::Mdt;

/// Names read from the index at once.
const PAGE: usize = 256;
/// What an entry takes in the reply beside its name, at most, bytes.
const ENTRY_BYTES: usize = 48;
/// What attributes, lock and a layout without stripes take at most, bytes.
const PLUS_BYTES: usize = 256;
/// What a stripe takes at most, bytes.
const STRIPE_BYTES: usize = 24;
/// Room kept in the reply for what is not entries, bytes.
const FRAME_BYTES: usize = 128;

pub(crate) async fn run(
    mdt: &Mdt,
    who: &Caller,
    request: ReadDir,
    reply_bytes_max: u32,
) -> Result<ReadDirReply, Status> {
    let attr = mdt.attr(request.fid).await?;
    if !attr.is_dir() {
        return Err(Status::ENOTDIR);
    }
    let lock = mdt.locks.try_grant(&who.client, request.fid, Ibits::UPDATE);
    if attr.nlink == 0 {
        return Ok(ReadDirReply { entries: Vec::new(), end: true, parent: request.fid, lock: NO_LOCK });
    }
    let parent = mdt.parent_of(request.fid).await?;
    let budget = request.bytes_max.min(reply_bytes_max.saturating_sub(FRAME_BYTES as u32)) as usize;
    let mut listing = Listing { mdt, who, request: &request, entries: Vec::new(), bytes: 0, budget };
    let end = listing.fill().await?;
    Ok(ReadDirReply { entries: listing.entries, end, parent, lock })
}

struct Listing<'a> {
    mdt: &'a Mdt,
    who: &'a Caller,
    request: &'a ReadDir,
    entries: Vec<DirEntry>,
    bytes: usize,
    budget: usize,
}

impl Listing<'_> {
    /// Adds entries until the budget is spent, and then up to the end of the cookie. Answers whether nothing comes after.
    async fn fill(&mut self) -> Result<bool, Status> {
        let mut after = names::key_after(self.request.after).to_vec();
        let mut cookie_before = None;
        loop {
            let changes = self.mdt.names_changed.get();
            let scanned = self.mdt.store.scan(self.request.fid, Some(&after), PAGE).await;
            let page = scanned.map_err(status_of)?;
            let last_page = page.len() < PAGE;
            for (key, value) in page {
                let (Some((cookie, name)), Ok(target)) = (names::parse_key(&key), Target::from_value(&value)) else {
                    tracing::error!(dir = %self.request.fid, ?key, "an entry cannot be read; run nacre fsck");
                    return Err(Status::EBADMSG);
                };
                let boundary = cookie_before.is_some_and(|before| before != cookie);
                if boundary && self.bytes >= self.budget {
                    return Ok(false);
                }
                let (entry, bytes) = self.entry(cookie, name, target, changes).await?;
                if let Some(entry) = entry {
                    // One more might not fit the caller's buffer, which is hard where the budget is soft.
                    if boundary && self.bytes + bytes > self.budget {
                        return Ok(false);
                    }
                    self.bytes += bytes;
                    self.entries.push(entry);
                    cookie_before = Some(cookie);
                }
                after = key;
            }
            if last_page {
                return Ok(true);
            }
        }
    }

    /// An entry and its size. No entry: the name has gone since it was read.
    async fn entry(
        &self,
        cookie: u64,
        name: &[u8],
        target: Target,
        changes: u64,
    ) -> Result<(Option<DirEntry>, usize), Status> {
        let mut entry = DirEntry { cookie, name: name.to_vec(), fid: target.fid, kind: target.kind, inode: None };
        let mut bytes = ENTRY_BYTES + name.len();
        if !self.request.plus {
            return Ok((Some(entry), bytes));
        }
        let bits = Ibits::LOOKUP | Ibits::UPDATE | Ibits::PERM | Ibits::LAYOUT | Ibits::XATTR;
        let inode = match self.mdt.inode(self.who, target.fid, bits).await {
            Ok(inode) => Some(inode),
            // Removed since, or a name that leads nowhere: the first is not listed, the second so that it can be seen.
            Err(Status::ENOENT) => None,
            Err(status) => return Err(status),
        };
        if self.mdt.names_changed.get() != changes && self.mdt.entry(self.request.fid, name).await? != Some(target) {
            if let Some(inode) = inode {
                self.mdt.locks.give_back(&self.who.client, inode.fid, inode.lock);
            }
            return Ok((None, 0));
        }
        let stripes = inode.as_ref().and_then(|inode| inode.layout.as_ref()).map_or(0, |layout| layout.stripes().len());
        bytes += PLUS_BYTES + stripes * STRIPE_BYTES;
        entry.inode = inode;
        Ok((Some(entry), bytes))
    }
}
