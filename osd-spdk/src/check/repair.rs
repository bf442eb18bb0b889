//! Mending a store. What is wrong in the index is put right by transactions at the end of the log: they hold after the flush or not at
//! all, as every transaction does, and the next open replays them.

use nacre_reactor::Bytes;

use super::offline::{Offline, io, wrong};
use crate::engine::index::Extent;
use crate::format::log::{HEADER_BYTES, Item, RecordWriter, seal};
use crate::format::superblock::{BLOCK_BYTES, Superblock};
use crate::store::{StoreError, StoreErrorKind};

/// One change to mend something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fix {
    Put(Vec<u8>, Vec<u8>),
    Delete(Vec<u8>),
    Take(Extent),
    Give(Extent),
    /// There are so many more objects than was counted.
    Objects(i64),
}

/// Writes the newest superblock again, as the next two generations, which takes all four places.
pub(super) async fn repair_superblocks(offline: &Offline) -> Result<(), StoreError> {
    let bdev = &offline.bdev;
    for step in 1..=2 {
        let superblock = Superblock { generation: offline.superblock.generation + step, ..offline.superblock.clone() };
        for place in superblock.places() {
            let block = Bytes::from(superblock.encode());
            bdev.write(place, vec![block]).await.map_err(|error| io("write", error))?;
            bdev.flush().await.map_err(|error| io("flush", error))?;
        }
    }
    Ok(())
}

/// Appends transactions that make the changes.
pub(super) async fn repair_log(offline: &Offline, fixes: &[Fix]) -> Result<(), StoreError> {
    if offline.log.cut {
        let context =
            "the log ends in a transaction whose data was lost in a power failure; start the store once, then repair";
        return Err(wrong(StoreErrorKind::Invalid, context.into()));
    }
    // Space is taken before any is given.
    let mut ordered: Vec<&Fix> = fixes.iter().collect();
    ordered.sort_by_key(|fix| match fix {
        Fix::Put(..) | Fix::Delete(..) | Fix::Objects(_) => 0,
        Fix::Take(_) => 1,
        Fix::Give(_) => 2,
    });
    let ring = offline.superblock.log;
    let mut cursor = offline.log.end;
    // As every open does: frames that lie behind the end from before are of an older epoch.
    cursor.epoch += 1;
    let mut transno = offline.log.transno;
    let mut frames = Vec::new();
    for batch in ordered.chunks(FIXES_PER_RECORD) {
        let objects: i64 = batch.iter().map(|fix| if let Fix::Objects(more) = fix { *more } else { 0 }).sum();
        let objects = i32::try_from(objects)
            .map_err(|_| wrong(StoreErrorKind::Invalid, "the number of objects is too far off to be mended".into()))?;
        transno += 1;
        let mut frame = vec![0; HEADER_BYTES];
        let mut record = RecordWriter::new(&mut frame, transno, objects);
        for fix in batch {
            match fix {
                Fix::Put(key, value) => record.push(Item::Put(key, value)),
                Fix::Delete(key) => record.push(Item::Delete(key)),
                Fix::Take(extent) => record.push(Item::Take(*extent)),
                Fix::Give(extent) => record.push(Item::Give(*extent)),
                Fix::Objects(_) => {}
            }
        }
        record.finish();
        let bytes = (frame.len() as u64).next_multiple_of(BLOCK_BYTES);
        let position = cursor.place(bytes, ring.length);
        if position + bytes - offline.superblock.root.log_position > ring.length {
            let context = "there is no room for repairs in the log; start and stop the store once, then repair";
            return Err(wrong(StoreErrorKind::NoSpace, context.into()));
        }
        seal(&mut frame, &mut cursor, position, offline.log.stable_transno);
        frames.push((ring.offset + position % ring.length, frame));
    }
    for (offset, frame) in frames {
        offline.bdev.write(offset, vec![Bytes::from(frame)]).await.map_err(|error| io("write", error))?;
    }
    offline.bdev.flush().await.map_err(|error| io("flush", error))
}

/// Changes in one transaction: some hundred kilobytes at most.
const FIXES_PER_RECORD: usize = 1000;
