//! Lookups in one run, over blocks in memory.

use std::ops::Bound;
use std::rc::Rc;

use super::Found;
use super::blocks::{Blocks, Missing, Run};
use crate::format::filter::hash_prefix;
use crate::format::run::Cursor;

/// What a run says of a key: `None` nothing, `Some(None)` deleted.
pub(super) fn get(
    run: &Rc<Run>,
    key: &[u8],
    key_hash: u64,
    blocks: &mut Blocks<'_>,
) -> Result<Option<Option<Vec<u8>>>, Missing> {
    if !run.spans(key) {
        return Ok(None);
    }
    let Some(at) = Cursor::seek(Rc::clone(&run.footer.partitions), key).block() else { return Ok(None) };
    let partition = blocks.partition(run, at)?;
    if !partition.filter.may_contain(key_hash) {
        return Ok(None);
    }
    let Some(at) = Cursor::seek(Rc::clone(&partition.index), key).block() else { return Ok(None) };
    let cursor = Cursor::seek(blocks.data(run, at)?, key);
    if !cursor.valid() || cursor.key() != key {
        return Ok(None);
    }
    Ok(Some(cursor.value().map(<[u8]>::to_vec)))
}

/// Last entry of a run with `lowest ≤ key` and `key` not beyond `highest`.
pub(super) fn floor(
    run: &Rc<Run>,
    lowest: &[u8],
    highest: Bound<&[u8]>,
    blocks: &mut Blocks<'_>,
) -> Result<Option<Found>, Missing> {
    let (Bound::Included(limit) | Bound::Excluded(limit)) = highest else { return Ok(None) };
    if *limit < *run.footer.smallest || *lowest > *run.footer.largest {
        return Ok(None);
    }
    let prefix = common_prefix_hash(run, Some(lowest), Some(limit));
    // Everything not beyond `limit` is in the first partition that ends at or after it, or in an earlier one.
    let partitions = &run.footer.partitions;
    let mut top = Cursor::seek(Rc::clone(partitions), limit);
    if !top.valid() {
        top = Cursor::seek_back(Rc::clone(partitions), limit);
    }
    loop {
        let Some(at) = top.block() else { return Ok(None) };
        let partition = blocks.partition(run, at)?;
        if prefix.is_none_or(|prefix| partition.filter.may_contain(prefix)) {
            let mut index = Cursor::seek(Rc::clone(&partition.index), limit);
            if !index.valid() {
                index = Cursor::seek_back(Rc::clone(&partition.index), limit);
            }
            while let Some(at) = index.block() {
                let data = blocks.data(run, at)?;
                let mut cursor = Cursor::seek_back(Rc::clone(&data), limit);
                if cursor.valid() && highest == Bound::Excluded(cursor.key()) {
                    cursor = Cursor::seek_before(data, limit);
                }
                if cursor.valid() {
                    if cursor.key() < lowest {
                        return Ok(None);
                    }
                    return Ok(Some((cursor.key().to_vec(), cursor.value().map(<[u8]>::to_vec))));
                }
                index = Cursor::seek_before(Rc::clone(&partition.index), index.key());
                if index.valid() && index.key() < lowest {
                    return Ok(None);
                }
            }
        }
        top = Cursor::seek_before(Rc::clone(partitions), top.key());
        // The last key of that partition is below everything that is asked for.
        if top.valid() && top.key() < lowest {
            return Ok(None);
        }
    }
}

/// A forward walk through a run.
pub(super) struct RunCursor {
    run: Rc<Run>,
    top: Cursor,
    index: Option<Cursor>,
    data: Option<Cursor>,
    /// Hash of the prefix that all wanted keys have, if they have one.
    prefix: Option<u64>,
    /// Last key that is wanted; later blocks are not looked at.
    limit: Option<Box<[u8]>>,
    /// Data blocks to ask for when one is missing.
    ahead: usize,
}

impl RunCursor {
    /// At the first entry not before `from`.
    pub(super) fn seek(
        run: &Rc<Run>,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
        ahead: usize,
        blocks: &mut Blocks<'_>,
    ) -> Result<RunCursor, Missing> {
        let start = match from {
            Bound::Included(key) | Bound::Excluded(key) => Some(key),
            Bound::Unbounded => None,
        };
        let limit = match to {
            Bound::Included(key) | Bound::Excluded(key) => Some(key),
            Bound::Unbounded => None,
        };
        let prefix = common_prefix_hash(run, start, limit).or_else(|| whole_prefix_hash(run, start, to));
        let start = start.unwrap_or_default();
        let beyond = limit.is_some_and(|limit| *limit < *run.footer.smallest) || *start > *run.footer.largest;
        let top = Cursor::seek(Rc::clone(&run.footer.partitions), start);
        let limit = limit.map(Box::from);
        let mut cursor = RunCursor { run: Rc::clone(run), top, index: None, data: None, prefix, limit, ahead };
        if beyond {
            return Ok(cursor);
        }
        cursor.enter_partition(start, blocks)?;
        if let (Bound::Excluded(key), Some((at, _))) = (from, cursor.entry())
            && at == key
        {
            cursor.advance(blocks)?;
        }
        Ok(cursor)
    }

    /// Key and value here; `None` at the end.
    pub(super) fn entry(&self) -> Option<(&[u8], Option<&[u8]>)> {
        let data = self.data.as_ref()?;
        data.valid().then(|| (data.key(), data.value()))
    }

    /// Moves on.
    pub(super) fn advance(&mut self, blocks: &mut Blocks<'_>) -> Result<(), Missing> {
        let Some(data) = &mut self.data else { return Ok(()) };
        data.advance();
        if data.valid() {
            return Ok(());
        }
        if let Some(index) = &mut self.index
            && self.limit.as_deref().is_none_or(|limit| index.key() < limit)
        {
            index.advance();
            if self.enter_data(&[], blocks)? {
                return Ok(());
            }
            if self.limit.as_deref().is_none_or(|limit| self.top.key() < limit) {
                self.top.advance();
                return self.enter_partition(&[], blocks);
            }
        }
        self.data = None;
        Ok(())
    }

    /// Goes to the first entry not before `start` in the partition under `top` or a later one.
    fn enter_partition(&mut self, start: &[u8], blocks: &mut Blocks<'_>) -> Result<(), Missing> {
        self.data = None;
        while let Some(at) = self.top.block() {
            let partition = blocks.partition(&self.run, at)?;
            if self.prefix.is_none_or(|prefix| partition.filter.may_contain(prefix)) {
                self.index = Some(Cursor::seek(Rc::clone(&partition.index), start));
                if self.enter_data(start, blocks)? {
                    return Ok(());
                }
            }
            if self.limit.as_deref().is_some_and(|limit| self.top.key() >= limit) {
                break;
            }
            self.top.advance();
        }
        Ok(())
    }

    /// Goes to the first entry not before `start` in the data block under `index`; false at the end of the partition.
    fn enter_data(&mut self, start: &[u8], blocks: &mut Blocks<'_>) -> Result<bool, Missing> {
        let Some(index) = &mut self.index else { return Ok(false) };
        let Some(at) = index.block() else { return Ok(false) };
        match blocks.data(&self.run, at) {
            Ok(data) => {
                let cursor = Cursor::seek(data, start);
                let valid = cursor.valid();
                self.data = Some(cursor);
                Ok(valid)
            }
            Err(Missing) => {
                for _ in 0..self.ahead {
                    if self.limit.as_deref().is_some_and(|limit| index.key() >= limit) {
                        break;
                    }
                    index.advance();
                    let Some(at) = index.block() else { break };
                    blocks.want_ahead(&self.run, at);
                }
                Err(Missing)
            }
        }
    }
}

/// Hash of the filter prefix, when both bounds have the same.
fn common_prefix_hash(run: &Run, from: Option<&[u8]>, to: Option<&[u8]>) -> Option<u64> {
    let length = run.footer.filter_prefix_bytes;
    let (from, to) = (from?.get(..length)?, to?.get(..length)?);
    (length > 0 && from == to).then(|| hash_prefix(from))
}

/// The same when the bounds are a prefix and, excluded, the next one: all keys with that prefix.
fn whole_prefix_hash(run: &Run, from: Option<&[u8]>, to: Bound<&[u8]>) -> Option<u64> {
    let length = run.footer.filter_prefix_bytes;
    let (prefix, Bound::Excluded(to)) = (from?.get(..length)?, to) else { return None };
    let mut next = prefix.to_vec();
    while let Some(last) = next.pop() {
        if last < u8::MAX {
            next.push(last + 1);
            // Trailing bytes that wrapped around are zero in the other usual way to write the next prefix.
            let tail = to.strip_prefix(next.as_slice())?;
            let same = tail.len() <= length - next.len() && tail.iter().all(|byte| *byte == 0);
            return same.then(|| hash_prefix(prefix));
        }
    }
    None
}
