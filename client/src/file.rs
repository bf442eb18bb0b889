//! The data of one file, striped over objects (Lustre's LOV). File ranges become object ranges here and nowhere else.
//!
//! Locks of several objects are taken in the order of the stripes, by everybody, and a contiguous range of a file is one
//! range of each object; so two writers of overlapping ranges, or two appenders, never see half of each other.

use std::cell::Cell;
use std::ops::Range;
use std::rc::{Rc, Weak};
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use nacre_reactor::Bytes;
use nacre_wire::layout::Piece;
use nacre_wire::ldlm::Mode;
use nacre_wire::op::space_mode;
use nacre_wire::{Attr, Fid, Layout, Status, Time};
use tokio::sync::Mutex;
use tokio::task::spawn_local;

use crate::api::SpaceMode;
use crate::client::Client;
use crate::object::{Object, Part};
use crate::ost::{LockUse, policy_of};
use crate::readahead::chunks;
use crate::stats::add;
use crate::writeback;

/// The data of a file that has objects.
pub(crate) struct File {
    /// Where its bytes are.
    pub layout: Layout,
    /// One for each stripe.
    pub objects: Vec<Rc<Object>>,
    /// Appends of this mount go one after the other.
    append: Mutex<()>,
    errors: Cell<(u64, Option<Status>)>,
}

/// How data is written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WriteHow {
    /// At the end, wherever that is.
    pub append: bool,
    /// Past the caches.
    pub direct: bool,
    /// To stable media.
    pub sync: bool,
    /// mtime and ctime of the write.
    pub time: Time,
}

/// How data is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadHow {
    /// Past the caches.
    Direct,
    /// Under read locks.
    Cached,
    /// Under write locks: into pages that a mapping may change without a word.
    ForMapping,
}

impl File {
    /// The data side of a file; ESTALE when the layout names an OST that the cluster map does not.
    pub fn new(client: &Rc<Client>, fid: Fid, layout: Layout, fresh: bool) -> Result<Rc<File>, Status> {
        layout.validate()?;
        let mut osts = Vec::new();
        for stripe in layout.stripes() {
            osts.push((stripe.object, client.ost(stripe.ost_index).ok_or(Status::STALE_MAP)?));
        }
        Ok(Rc::new_cyclic(|me: &Weak<File>| {
            let object = |(stripe, (object, ost))| Object::new(object, ost, me.clone(), fid, stripe);
            let objects: Vec<Rc<Object>> = osts.into_iter().enumerate().map(object).collect();
            objects.iter().for_each(|object| object.fresh.set(fresh));
            File { layout, objects, append: Mutex::new(()), errors: Cell::default() }
        }))
    }

    /// Whether nothing of it is dirty or under way.
    pub fn is_idle(&self) -> bool {
        self.objects.iter().all(|object| object.is_idle())
    }

    /// Whether anything is dirty.
    pub fn is_dirty(&self) -> bool {
        self.objects.iter().any(|object| object.unwritten_attr().is_some())
    }

    /// A write-back failed.
    pub fn failed(&self, status: Status) {
        self.errors.set((self.errors.get().0 + 1, Some(status)));
    }

    /// Failures so far.
    pub fn failures(&self) -> u64 {
        self.errors.get().0
    }

    /// The last failure after the first `seen`.
    pub fn failure_since(&self, seen: u64) -> Option<Status> {
        let (count, last) = self.errors.get();
        if count > seen { last } else { None }
    }

    /// Largest size the file can have, given the largest object of each OST.
    pub fn bytes_max(&self) -> u64 {
        let most = |(stripe, object): (usize, &Rc<Object>)| {
            let object_max = object.ost.stub.import.connect_reply().map_or(u64::MAX, |reply| reply.object_bytes_max);
            // The first byte of this object that does not fit.
            self.layout.file_offset_of(stripe, object_max)
        };
        let max = self.objects.iter().enumerate().map(most).min().unwrap_or(u64::MAX);
        max.min(i64::MAX as u64)
    }

    // ---- attributes ----

    /// Attributes of all objects, asked for where they are not known.
    pub async fn attrs(&self) -> Result<Vec<Attr>, Status> {
        if let Some(known) = self.attrs_known() {
            return Ok(known);
        }
        try_join_all(self.objects.iter().map(|object| object.getattr())).await
    }

    /// Attributes of all objects, if they are known and true.
    pub fn attrs_known(&self) -> Option<Vec<Attr>> {
        self.objects.iter().map(|object| if object.attr_is_true() { object.attr() } else { None }).collect()
    }

    /// Newest ctime that is known of any object.
    pub fn newest_ctime(&self) -> Time {
        self.objects.iter().filter_map(|object| object.attr()).map(|attr| attr.ctime).max().unwrap_or_default()
    }

    /// The file's size, if it is known for sure.
    pub fn size_known(&self) -> Option<u64> {
        let attrs: Option<Vec<Attr>> = self
            .objects
            .iter()
            .map(|object| if object.ost.holds_everything(object.fid) { object.attr() } else { None })
            .collect();
        attrs.map(|attrs| self.size_of(&attrs))
    }

    /// The file's size.
    pub async fn size(&self) -> Result<u64, Status> {
        Ok(self.size_of(&self.attrs().await?))
    }

    // ---- reading ----

    /// Bytes of a range, in order, cut at the end of the file. Holes read zeros.
    pub async fn read(&self, range: Range<u64>, how: ReadHow) -> Result<Vec<Bytes>, Status> {
        for _ in 0..LOST_LOCK_RETRIES {
            match self.read_once(&range, how).await {
                Err(Status::NO_LOCK) => continue,
                outcome => return outcome,
            }
        }
        Err(Status::EIO)
    }

    /// Reads ahead, as far as the mount's bound allows. Nobody waits for it.
    pub fn read_ahead(self: &Rc<File>, client: &Rc<Client>, range: Range<u64>) {
        let limit = client.params.max_read_ahead_mb.get() << 20;
        for chunk in chunks(range) {
            for (stripe, object) in self.objects.iter().enumerate() {
                let Some(there) = self.layout.object_range(stripe, chunk.clone()) else { continue };
                let pending = client.ahead_pending.get();
                if client.ahead_bytes.get() + pending + (there.end - there.start) > limit {
                    client.drop_old_read_ahead(limit / 2);
                    return;
                }
                let Some(ticket) = object.begin_read_ahead(&there) else { continue };
                client.ahead_pending.set(pending + there.end - there.start);
                client.note_read_ahead(self);
                let (client, object) = (client.clone(), object.clone());
                spawn_local(async move {
                    let data = async {
                        let held = object.ost.lock(&object, Mode::Pr, &there).await?;
                        let data = object.fetch(&there, held.cookie).await?;
                        // Filled while the lock is in use: a revocation finds it.
                        object.end_read_ahead(there.start, ticket, Some(data));
                        Ok::<(), Status>(())
                    };
                    if data.await.is_err() {
                        object.end_read_ahead(there.start, ticket, None);
                    }
                    client.ahead_pending.set(client.ahead_pending.get() - (there.end - there.start));
                });
            }
        }
    }

    // ---- writing ----

    /// Takes all of the data or fails. Answers where it went.
    pub async fn write(
        &self,
        client: &Rc<Client>,
        offset: u64,
        data: Bytes,
        how: WriteHow,
    ) -> Result<Range<u64>, Status> {
        if !how.direct {
            writeback::wait_for_room(client).await;
        }
        if !how.append {
            let range = self.checked_range(offset, data.len())?;
            for _ in 0..LOST_LOCK_RETRIES {
                // Data that goes past the caches needs no lock of ours: the server takes one for it.
                let locks = if how.direct { self.locks_held(&range) } else { self.lock(&range).await? };
                match self.write_at(client, &range, &data, &locks, how).await {
                    Err(Status::NO_LOCK) => continue,
                    outcome => return outcome.map(|()| range),
                }
            }
            return Err(Status::EIO);
        }
        let _turn = self.append.lock().await;
        for _ in 0..LOST_LOCK_RETRIES {
            let locks = self.lock(&(0..u64::MAX)).await?;
            let mut size = 0;
            for (stripe, object) in self.objects.iter().enumerate() {
                // The lock brought the attributes with it.
                let attr = match object.attr() {
                    Some(attr) => attr,
                    None => object.ask_attr().await?,
                };
                size = size.max(self.layout.file_size_from(stripe, attr.size));
            }
            let range = self.checked_range(size, data.len())?;
            match self.write_at(client, &range, &data, &locks, how).await {
                Err(Status::NO_LOCK) => continue,
                outcome => return outcome.map(|()| range),
            }
        }
        Err(Status::EIO)
    }

    /// Sends everything dirty and waits for it. Errors are in [`File::failure_since`].
    pub async fn flush(&self) {
        join_all(self.objects.iter().map(|object| object.flush(0..u64::MAX))).await;
    }

    /// Everything written until now on stable media.
    pub async fn sync(&self, now: Duration) -> Result<(), Status> {
        let synced = join_all(self.objects.iter().map(|object| object.sync(now))).await;
        synced.into_iter().collect()
    }

    /// Nobody wants the data any more: the file is gone.
    pub fn drop_dirty(&self) {
        for object in &self.objects {
            object.drop_dirty(&(0..u64::MAX));
        }
    }

    // ---- changes of space ----

    /// Makes the file exactly this long.
    pub async fn truncate(&self, size: u64, time: Time) -> Result<(), Status> {
        if size > self.bytes_max() {
            return Err(Status::EFBIG);
        }
        let _turn = self.append.lock().await;
        let mut locks = Vec::new();
        for (stripe, object) in self.objects.iter().enumerate() {
            let from = self.layout.object_size_at(stripe, size);
            locks.push(object.ost.lock(object, Mode::Pw, &(from..u64::MAX)).await?);
        }
        let cuts = self.objects.iter().enumerate().map(|(stripe, object)| {
            let object_size = self.layout.object_size_at(stripe, size);
            object.space(space_mode::TRUNCATE, object_size, 0, time)
        });
        try_join_all(cuts).await?;
        Ok(())
    }

    /// fallocate(2).
    pub async fn space(&self, range: Range<u64>, mode: SpaceMode, time: Time) -> Result<(), Status> {
        let (mode, grows) = match mode {
            SpaceMode::Allocate { keep_size } => (space_mode::ALLOCATE, !keep_size),
            SpaceMode::Punch => (space_mode::PUNCH, false),
            SpaceMode::Zero { keep_size } => (space_mode::ZERO, !keep_size),
        };
        let mode = if grows || mode == space_mode::PUNCH { mode } else { mode | space_mode::KEEP_SIZE };
        if mode != space_mode::PUNCH && range.end > self.bytes_max() {
            return Err(Status::EFBIG);
        }
        let locks = self.lock(&range).await?;
        let parts = self.objects.iter().enumerate().filter_map(|(stripe, object)| {
            let there = self.layout.object_range(stripe, range.clone())?;
            Some(object.space(mode, there.start, there.end - there.start, time))
        });
        let outcome = try_join_all(parts).await.map(drop);
        drop(locks);
        outcome
    }

    /// SEEK_DATA, SEEK_HOLE.
    pub async fn seek(&self, offset: u64, hole: bool) -> Result<u64, Status> {
        self.flush().await;
        let size = self.size().await?;
        if offset >= size {
            return Err(Status::ENXIO);
        }
        let asks = self.objects.iter().enumerate().map(async |(stripe, object)| {
            let from = self.layout.object_size_at(stripe, offset);
            match object.ost.stub.seek(object.fid, from, hole).await.map_err(Status::from) {
                Ok(found) => Ok(Some(self.layout.file_offset_of(stripe, found))),
                // Past the end of the object: what the file has there is a hole.
                Err(Status::ENXIO) => Ok(hole.then(|| self.layout.file_offset_of(stripe, from))),
                Err(status) => Err(status),
            }
        });
        let found = try_join_all(asks).await?.into_iter().flatten().min();
        match found {
            Some(found) if found < size => Ok(found),
            _ if hole => Ok(size),
            _ => Err(Status::ENXIO),
        }
    }

    // ---- helpers ----

    fn size_of(&self, attrs: &[Attr]) -> u64 {
        let ends = attrs.iter().enumerate().map(|(stripe, attr)| self.layout.file_size_from(stripe, attr.size));
        ends.max().unwrap_or(0)
    }

    fn checked_range(&self, offset: u64, length: usize) -> Result<Range<u64>, Status> {
        let end = offset.checked_add(length as u64).ok_or(Status::EFBIG)?;
        if end > self.bytes_max() { Err(Status::EFBIG) } else { Ok(offset..end) }
    }

    /// Write locks on a range, in the order of the stripes.
    async fn lock(&self, range: &Range<u64>) -> Result<Vec<Option<LockUse>>, Status> {
        let mut locks = Vec::new();
        for (stripe, object) in self.objects.iter().enumerate() {
            locks.push(match self.layout.object_range(stripe, range.clone()) {
                Some(there) => Some(object.ost.lock(object, Mode::Pw, &there).await?),
                None => None,
            });
        }
        Ok(locks)
    }

    /// Those of the write locks on a range that are held already.
    fn locks_held(&self, range: &Range<u64>) -> Vec<Option<LockUse>> {
        let held = |(stripe, object): (usize, &Rc<Object>)| {
            let there = self.layout.object_range(stripe, range.clone())?;
            object.ost.try_lock(object, Mode::Pw, &policy_of(&there))
        };
        self.objects.iter().enumerate().map(held).collect()
    }

    async fn write_at(
        &self,
        client: &Rc<Client>,
        range: &Range<u64>,
        data: &Bytes,
        locks: &[Option<LockUse>],
        how: WriteHow,
    ) -> Result<(), Status> {
        let time = how.time;
        let mut through = Vec::new();
        for piece in self.layout.split(range.clone()) {
            let object = &self.objects[piece.stripe];
            let part = slice_of(data, range.start, &piece);
            if !how.direct {
                object.note_kernel_data(&(piece.object_offset..piece.object_offset + piece.length));
            }
            let behind = !how.direct
                && !how.sync
                && loop {
                    if object.write_behind(piece.object_offset, part.clone(), time, client.env.now()) {
                        break true;
                    }
                    if !writeback::wait_for_grant(&object.ost).await {
                        break false;
                    }
                };
            if !behind {
                let cookie = locks[piece.stripe].as_ref().map_or(0, |held| held.cookie);
                add(&client.stats.write_through_calls, 1);
                through.push(object.write_through(piece.object_offset, part, time, cookie, how.sync));
            }
        }
        try_join_all(through).await?;
        Ok(())
    }

    async fn read_once(&self, range: &Range<u64>, how: ReadHow) -> Result<Vec<Bytes>, Status> {
        let direct = how == ReadHow::Direct;
        let touched: Vec<(usize, Range<u64>)> = (0..self.objects.len())
            .filter_map(|stripe| Some((stripe, self.layout.object_range(stripe, range.clone())?)))
            .collect();
        let mut locks = Vec::new();
        for (stripe, there) in &touched {
            let object = &self.objects[*stripe];
            locks.push(if direct {
                object.flush(there.clone()).await;
                object.discard_clean(there);
                object.ost.try_lock(object, Mode::Pr, &policy_of(there))
            } else {
                object.note_kernel_data(there);
                Some(match how {
                    ReadHow::ForMapping => object.ost.lock_for_mapping(object, there).await?,
                    _ => object.ost.lock(object, Mode::Pr, there).await?,
                })
            });
        }
        let reads = touched.iter().zip(&locks).map(|((stripe, there), held)| {
            let cookie = held.as_ref().map_or(0, |held| held.cookie);
            read_object(&self.objects[*stripe], there.clone(), cookie)
        });
        let found = try_join_all(reads).await?;
        let short = touched.iter().zip(&found).any(|((_, there), bytes)| {
            bytes.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>() < there.end - there.start
        });
        let end = if short { range.end.min(self.size().await?) } else { range.end };
        if !direct {
            for (stripe, there) in &touched {
                self.objects[*stripe].note_kernel_data(there);
            }
        }
        drop(locks);
        let mut out = Vec::new();
        for piece in self.layout.split(range.start..end.max(range.start)) {
            let Some(at) = touched.iter().position(|(stripe, _)| *stripe == piece.stripe) else { continue };
            copy_piece(&found[at], &piece, &mut out);
        }
        Ok(out)
    }
}

/// What there is of a range of an object: offset and bytes, in order, nothing where the object has ended.
async fn read_object(object: &Rc<Object>, range: Range<u64>, cookie: u64) -> Result<Vec<(u64, Bytes)>, Status> {
    let parts = object.parts(range.clone()).await;
    let mut at = range.start;
    let mut reads = Vec::new();
    for part in parts {
        match part {
            Part::Bytes(bytes) => {
                let start = at;
                at += bytes.len() as u64;
                reads.push((start, Some(bytes), start..at));
            }
            Part::Ask(ask) => {
                at = ask.end;
                // One command carries so much.
                let mut from = ask.start;
                while from < ask.end {
                    let to = ask.end.min(from + READ_BYTES_MAX);
                    reads.push((from, None, from..to));
                    from = to;
                }
            }
        }
    }
    let found = try_join_all(reads.into_iter().map(async |(start, bytes, range)| {
        let bytes = match bytes {
            Some(bytes) => bytes,
            None => object.fetch(&range, cookie).await?,
        };
        Ok::<_, Status>((start, bytes))
    }));
    Ok(found.await?.into_iter().filter(|(_, bytes)| !bytes.is_empty()).collect())
}

/// The part of a write that is a piece.
fn slice_of(data: &Bytes, start: u64, piece: &Piece) -> Bytes {
    let from = (piece.file_offset - start) as usize;
    data.slice(from..from + piece.length as usize)
}

/// Appends a piece of a file to `out`, zeros where there is nothing.
fn copy_piece(found: &[(u64, Bytes)], piece: &Piece, out: &mut Vec<Bytes>) {
    let end = piece.object_offset + piece.length;
    let mut at = piece.object_offset;
    for (start, bytes) in found {
        let bytes_end = start + bytes.len() as u64;
        if bytes_end <= at || *start >= end {
            continue;
        }
        zeros(start.saturating_sub(at), out);
        at = at.max(*start);
        let to = bytes_end.min(end);
        out.push(bytes.slice((at - start) as usize..(to - start) as usize));
        at = to;
    }
    zeros(end - at, out);
}

fn zeros(mut length: u64, out: &mut Vec<Bytes>) {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    while length > 0 {
        let part = length.min(ZEROS.len() as u64);
        out.push(Bytes::from_static(&ZEROS[..part as usize]));
        length -= part;
    }
}

/// How often an operation starts again because a lock was lost under it.
const LOST_LOCK_RETRIES: usize = 8;
/// Of one read command.
const READ_BYTES_MAX: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_is_filled_with_zeros_where_the_object_has_nothing() {
        let found = [(10, Bytes::from_static(b"abc")), (20, Bytes::from_static(b"defgh"))];
        let piece = Piece { stripe: 0, object_offset: 11, file_offset: 0, length: 12 };
        let mut out = Vec::new();
        copy_piece(&found, &piece, &mut out);
        assert_eq!(out.concat(), b"bc\0\0\0\0\0\0\0def");
    }
}
