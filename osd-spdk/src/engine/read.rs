//! Reading: objects, maps, keys. Nothing here changes anything.

use std::ops::{Bound, Range};

use futures_util::future::join_all;
use nacre_reactor::{Bytes, DmaBuf};
use nacre_wire::{Attr, Fid};

use super::extents::Piece;
use super::index::Entry;
use super::object::lookup;
use super::ranges::Claim;
use super::submit::{BLOCKS_MAX, touching};
use super::{Inner, corrupt, error, io_error};
use crate::format::object::{Kind, PREFIX_BYTES, key, key_after, split_key};
use crate::format::superblock::BLOCK_BYTES;
use crate::store::{ExtentInfo, Seek, StoreError, StoreErrorKind};

impl Inner {
    pub(crate) async fn attr(&self, fid: Fid) -> Result<Attr, StoreError> {
        let object = self.objects.get(fid, self.log.proven());
        object.load(&self.tree).await?;
        let attr = object.attr.borrow().clone();
        attr.ok_or_else(|| not_found("attr", fid))
    }

    async fn check_there(&self, op: &'static str, fid: Fid) -> Result<(), StoreError> {
        let object = self.objects.get(fid, self.log.proven());
        object.load(&self.tree).await?;
        if object.attr.borrow().is_some() { Ok(()) } else { Err(not_found(op, fid)) }
    }

    pub(crate) async fn read(&self, fid: Fid, offset: u64, length: usize) -> Result<Bytes, StoreError> {
        let object = self.objects.get(fid, self.log.proven());
        let wanted = offset..offset.saturating_add(length as u64);
        // The lock keeps the blocks from being given away and used by another object while the device reads them.
        let _held = object.locks.lock(Claim::Shared(touching(&wanted))).await;
        object.load_extents(&self.tree, self.space.blocks_end()).await?;
        let size = object.attr.borrow().as_ref().map(|attr| attr.size).ok_or_else(|| not_found("read", fid))?;
        let range = offset..wanted.end.min(size);
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let blocks = touching(&range);
        let first = blocks.start * BLOCK_BYTES;
        let written = |(_, piece): &(u64, Piece)| !piece.mapping.unwritten;
        let pieces: Vec<_> = object.extents.borrow().pieces(blocks.clone()).filter(written).collect();
        let reads = pieces.iter().map(|(_, piece)| {
            let (physical, bytes) = (piece.mapping.physical * BLOCK_BYTES, piece.mapping.blocks * BLOCK_BYTES);
            self.bdev.read(physical, bytes as usize)
        });
        let cut = (offset - first) as usize..(range.end - first) as usize;
        if let [(_, piece)] = &pieces[..]
            && piece.mapping.blocks == blocks.end - blocks.start
        {
            let mut reads = reads;
            let read = reads.next().expect("one piece").await;
            let buffer = read.map_err(|source| io_error("read", Some(fid), source))?.freeze();
            return Ok(buffer.slice(cut));
        }
        let mut out = DmaBuf::zeroed(((blocks.end - blocks.start) * BLOCK_BYTES) as usize);
        for ((logical, _), read) in pieces.iter().zip(join_all(reads).await) {
            let buffer = read.map_err(|source| io_error("read", Some(fid), source))?;
            let at = (logical * BLOCK_BYTES - first) as usize;
            out[at..at + buffer.len()].copy_from_slice(&buffer);
        }
        Ok(out.freeze().slice(cut))
    }

    pub(crate) async fn xattr(&self, fid: Fid, name: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.check_there("xattr", fid).await?;
        lookup(&self.tree, &key(Kind::Xattr, fid, name)).await
    }

    pub(crate) async fn xattrs(&self, fid: Fid) -> Result<Vec<Entry>, StoreError> {
        self.check_there("xattrs", fid).await?;
        self.scan_kind(Kind::Xattr, fid, None, usize::MAX).await
    }

    pub(crate) async fn index_get(&self, index: Fid, name: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        lookup(&self.tree, &key(Kind::Index, index, name)).await
    }

    /// Entries of one kind of one object, without their prefix.
    pub(crate) async fn scan_kind(
        &self,
        kind: Kind,
        fid: Fid,
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        let from = key(kind, fid, after.unwrap_or_default());
        let from = if after.is_some() { Bound::Excluded(&from[..]) } else { Bound::Included(&from[..]) };
        let to = key_after(kind, fid);
        let mut entries = self.tree.scan(from, Bound::Excluded(&to), limit).await?;
        for (key, _) in &mut entries {
            key.drain(..PREFIX_BYTES);
        }
        Ok(entries)
    }

    pub(crate) async fn seek(&self, fid: Fid, offset: u64, what: Seek) -> Result<Option<u64>, StoreError> {
        let object = self.objects.get(fid, self.log.proven());
        object.load_extents(&self.tree, self.space.blocks_end()).await?;
        let size = object.attr.borrow().as_ref().map(|attr| attr.size).ok_or_else(|| not_found("seek", fid))?;
        if offset >= size {
            return Ok(None);
        }
        let map = object.extents.borrow();
        let mut written = map.pieces(offset / BLOCK_BYTES..BLOCKS_MAX).filter(|(_, piece)| !piece.mapping.unwritten);
        let found = match what {
            Seek::Data => written.next().map_or(u64::MAX, |(logical, _)| logical * BLOCK_BYTES),
            Seek::Hole => {
                let mut end = offset / BLOCK_BYTES;
                for (logical, piece) in written {
                    if logical > end {
                        break;
                    }
                    end = logical + piece.mapping.blocks;
                }
                return Ok(Some((end * BLOCK_BYTES).max(offset).min(size)));
            }
        };
        let found = found.max(offset);
        Ok((found < size).then_some(found))
    }

    pub(crate) async fn extents(
        &self,
        fid: Fid,
        range: Range<u64>,
        limit: usize,
    ) -> Result<Vec<ExtentInfo>, StoreError> {
        let object = self.objects.get(fid, self.log.proven());
        object.load_extents(&self.tree, self.space.blocks_end()).await?;
        if object.attr.borrow().is_none() {
            return Err(not_found("extents", fid));
        }
        let map = object.extents.borrow();
        let info = |(logical, piece): (u64, Piece)| ExtentInfo {
            logical: logical * BLOCK_BYTES,
            physical: piece.mapping.physical * BLOCK_BYTES,
            length: piece.mapping.blocks * BLOCK_BYTES,
            unwritten: piece.mapping.unwritten,
        };
        Ok(map.pieces(touching(&range)).take(limit).map(info).collect())
    }

    pub(crate) async fn object_fids(&self, after: Option<Fid>, limit: usize) -> Result<Vec<Fid>, StoreError> {
        let from = after.map(|fid| key(Kind::Attr, fid, &[]));
        let from = from.as_ref().map_or(Bound::Included(&[Kind::Attr as u8][..]), |key| Bound::Excluded(&key[..]));
        let entries = self.tree.scan(from, Bound::Excluded(&[Kind::Attr as u8 + 1]), limit).await?;
        entries
            .iter()
            .map(|(key, _)| {
                split_key(key).map(|(fid, _)| fid).ok_or_else(|| corrupt(Fid::NONE, "the table of objects"))
            })
            .collect()
    }
}

fn not_found(op: &'static str, fid: Fid) -> StoreError {
    error(StoreErrorKind::NotFound, op, Some(fid), "no such object")
}
