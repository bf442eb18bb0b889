//! Where new FIDs come from: a counter over the sequences of this MDT. None is ever given out twice.
//!
//! On disk stands a mark above everything given out. It is moved ahead in ranges, and by every transaction that uses a
//! FID at or above the mark known to be submitted; so whichever of several such transactions survives a crash brings
//! the mark along.

use std::cell::Cell;

use nacre_osd::store::Op;
use nacre_wire::Fid;
use nacre_wire::fid::SEQ_NORMAL;

use crate::disk;

/// FIDs that one move of the mark covers.
const RANGE: u64 = 1 << 16;
/// Sequences of one MDT.
const SEQUENCES: u64 = 1 << 20;

/// The counter.
pub(crate) struct FidSource {
    first_sequence: u64,
    /// Next number; the low 32 bits are the object id, the rest the sequence.
    next: Cell<u64>,
    /// On disk as of the last submit.
    mark: Cell<u64>,
}

/// A FID that is being used, and the mark that has to go with it.
pub(crate) struct NewFid {
    pub(crate) fid: Fid,
    mark: Option<u64>,
}

impl FidSource {
    /// Goes on from the mark on disk, or from the beginning.
    pub(crate) fn new(mdt_index: u16, mark: Option<u64>) -> FidSource {
        let mark = mark.unwrap_or(0);
        let first_sequence = SEQ_NORMAL + 1 + u64::from(mdt_index) * SEQUENCES;
        FidSource { first_sequence, next: Cell::new(mark), mark: Cell::new(mark) }
    }

    /// The next one.
    pub(crate) fn take(&self) -> NewFid {
        let mut number = self.next.get();
        // Object id 0 is no object.
        if number as u32 == 0 {
            number += 1;
        }
        self.next.set(number + 1);
        let fid = Fid::new(self.first_sequence + (number >> 32), number as u32);
        let mark = (number >= self.mark.get()).then_some(number + RANGE);
        NewFid { fid, mark }
    }

    /// Notes that the transaction with [`NewFid::op`] has been submitted.
    pub(crate) fn submitted(&self, new: &NewFid) {
        if let Some(mark) = new.mark {
            self.mark.set(self.mark.get().max(mark));
        }
    }

    /// Whether a FID is of this MDT and has been given out, or may have been before the last restart.
    #[cfg(test)]
    fn mark(&self) -> u64 {
        self.mark.get()
    }
}

impl NewFid {
    /// What the transaction must contain.
    pub(crate) fn op(&self) -> Option<Op> {
        self.mark.map(|mark| Op::Put {
            index: disk::STATE,
            key: disk::KEY_FID.to_vec(),
            value: mark.to_le_bytes().to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_cover_what_was_given_out() {
        let fids = FidSource::new(0, None);
        let first = fids.take();
        let second = fids.take();
        assert_eq!(first.fid, Fid::new(SEQ_NORMAL + 1, 1));
        assert_eq!(second.fid, Fid::new(SEQ_NORMAL + 1, 2));
        // Neither has been submitted: each brings the mark.
        assert!(first.op().is_some() && second.op().is_some());
        fids.submitted(&second);
        assert!(fids.take().op().is_none());
        let after_restart = FidSource::new(0, Some(fids.mark()));
        assert!(after_restart.take().fid > fids.take().fid);
    }

    #[test]
    fn a_full_sequence_goes_over_into_the_next() {
        let fids = FidSource::new(1, Some((1 << 32) - 1));
        assert_eq!(fids.take().fid, Fid::new(SEQ_NORMAL + 1 + SEQUENCES, u32::MAX));
        assert_eq!(fids.take().fid, Fid::new(SEQ_NORMAL + 2 + SEQUENCES, 1));
    }
}
