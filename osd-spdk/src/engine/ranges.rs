//! Locks on ranges of one object, for as long as an operation runs. First come, first served: a request waits for every
//! earlier one that it conflicts with, granted or not.

use std::cell::RefCell;
use std::future::poll_fn;
use std::ops::Range;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// What an operation needs of an object. Every request keeps the object from being created or destroyed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// That it stays.
    Presence,
    /// Blocks that must not change.
    Shared(Range<u64>),
    /// Blocks that are to change.
    Exclusive(Range<u64>),
    /// Everything.
    All,
}

impl Claim {
    fn conflicts(&self, other: &Claim) -> bool {
        let overlap = |a: &Range<u64>, b: &Range<u64>| a.start < b.end && b.start < a.end;
        match (self, other) {
            (Claim::All, _) | (_, Claim::All) => true,
            (Claim::Exclusive(a), Claim::Exclusive(b) | Claim::Shared(b)) | (Claim::Shared(a), Claim::Exclusive(b)) => {
                overlap(a, b)
            }
            _ => false,
        }
    }

    /// What covers both.
    pub fn joined(self, other: Claim) -> Claim {
        match (self, other) {
            (Claim::All, _) | (_, Claim::All) => Claim::All,
            (Claim::Presence, other) | (other, Claim::Presence) => other,
            (Claim::Shared(a), Claim::Shared(b)) => Claim::Shared(hull(a, b)),
            (Claim::Exclusive(a) | Claim::Shared(a), Claim::Exclusive(b) | Claim::Shared(b)) => {
                Claim::Exclusive(hull(a, b))
            }
        }
    }
}

fn hull(a: Range<u64>, b: Range<u64>) -> Range<u64> {
    a.start.min(b.start)..a.end.max(b.end)
}

#[derive(Debug, Default)]
pub(crate) struct RangeLocks {
    queue: RefCell<Vec<Request>>,
}

#[derive(Debug)]
struct Request {
    id: u64,
    claim: Claim,
    granted: bool,
    waker: Option<Waker>,
}

/// Released when dropped.
pub(crate) struct Held {
    locks: Rc<RangeLocks>,
    id: u64,
}

impl RangeLocks {
    /// Waits for its turn.
    pub async fn lock(self: &Rc<RangeLocks>, claim: Claim) -> Held {
        let (id, granted) = {
            let mut queue = self.queue.borrow_mut();
            let id = queue.last().map_or(0, |request| request.id + 1);
            let granted = queue.iter().all(|request| !request.claim.conflicts(&claim));
            queue.push(Request { id, claim, granted, waker: None });
            (id, granted)
        };
        let held = Held { locks: self.clone(), id };
        if !granted {
            poll_fn(|context| {
                let mut queue = self.queue.borrow_mut();
                let request = queue.iter_mut().find(|request| request.id == id).expect("removed only by `held`");
                if request.granted {
                    return Poll::Ready(());
                }
                request.waker = Some(context.waker().clone());
                Poll::Pending
            })
            .await;
        }
        held
    }

    fn release(&self, id: u64) {
        let mut queue = self.queue.borrow_mut();
        queue.retain(|request| request.id != id);
        let mut wake = Vec::new();
        for i in 0..queue.len() {
            if queue[i].granted {
                continue;
            }
            let free = queue[..i].iter().all(|earlier| !earlier.claim.conflicts(&queue[i].claim));
            if free {
                queue[i].granted = true;
                wake.extend(queue[i].waker.take());
            }
        }
        drop(queue);
        wake.into_iter().for_each(Waker::wake);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.locks.release(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[test]
    fn first_come_first_served_and_strangers_pass() {
        let locks = Rc::new(RangeLocks::default());
        let now = |claim| locks.lock(claim).now_or_never();
        let first = now(Claim::Exclusive(0..10)).unwrap();
        let stranger = now(Claim::Exclusive(10..20)).unwrap();
        let here = now(Claim::Presence).unwrap();
        let mut all = Box::pin(locks.lock(Claim::All));
        assert!(all.as_mut().now_or_never().is_none());
        // Behind the one that wants everything, even what would be free waits.
        let mut later = Box::pin(locks.lock(Claim::Shared(50..60)));
        assert!(later.as_mut().now_or_never().is_none());
        drop((first, stranger));
        assert!(all.as_mut().now_or_never().is_none());
        drop(here);
        let all = all.now_or_never().unwrap();
        assert!(later.as_mut().now_or_never().is_none());
        drop(all);
        let _later = later.now_or_never().unwrap();
        let _readers = now(Claim::Shared(55..70)).unwrap();
        assert!(now(Claim::Exclusive(56..57)).is_none());
        assert!(locks.queue.borrow().len() == 2, "a dropped request leaves nothing");
    }
}
