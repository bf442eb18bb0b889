//! Mutual exclusion of the server's own operations, per inode: who comes first goes first.
//!
//! A [`Guard`] is held while an operation reads what it depends on and until its transaction has been submitted. It keeps
//! other *operations* out; the caches of *clients* are kept out by LDLM locks (`locks.rs`).
//!
//! Order, so that nobody waits in a circle: directories that hold the names first, ancestor before descendant (unrelated
//! ones by FID); then the inodes named, directories before others, by FID. An operation on two directories holds
//! [`Guards::topology`] first, so that ancestry stays as it found it.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use nacre_wire::Fid;
use tokio::sync::oneshot;

/// All guards of a target. The map is never iterated.
#[derive(Clone, Default)]
pub(crate) struct Guards {
    /// Present: held. The queue: who waits. A waiter is handed the guard itself, so one who has left in the meantime
    /// gives it on by dropping it.
    held: Rc<RefCell<HashMap<Fid, VecDeque<oneshot::Sender<Guard>>>>>,
}

/// The right to work on one inode; dropping it lets the next in.
pub(crate) struct Guard {
    guards: Guards,
    fid: Fid,
    released: bool,
}

impl Guards {
    /// Waits for an inode.
    pub(crate) async fn lock(&self, fid: Fid) -> Guard {
        let waiter = {
            let mut held = self.held.borrow_mut();
            match held.get_mut(&fid) {
                None => {
                    held.insert(fid, VecDeque::new());
                    None
                }
                Some(queue) => {
                    let (sender, receiver) = oneshot::channel();
                    queue.push_back(sender);
                    Some(receiver)
                }
            }
        };
        match waiter {
            None => Guard { guards: self.clone(), fid, released: false },
            Some(receiver) => receiver.await.expect("a holder hands its guard on when it goes"),
        }
    }

    /// Waits for the right to change which directory is above which.
    pub(crate) async fn topology(&self) -> Guard {
        self.lock(Fid::NONE).await
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.released {
            return;
        }
        loop {
            let next = {
                let mut held = self.guards.held.borrow_mut();
                let queue = held.get_mut(&self.fid).expect("held until now");
                let next = queue.pop_front();
                if next.is_none() {
                    held.remove(&self.fid);
                }
                next
            };
            let Some(next) = next else { return };
            let guard = Guard { guards: self.guards.clone(), fid: self.fid, released: false };
            match next.send(guard) {
                Ok(()) => return,
                // That one has given up: what comes back must not be dropped as a guard, we still are the holder.
                Err(mut refused) => refused.released = true,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[tokio::test(flavor = "current_thread")]
    async fn first_come_first_served_and_leavers_are_passed_over() {
        let guards = Guards::default();
        let fid = Fid::new(1, 1);
        let first = guards.lock(fid).await;
        let mut second = Box::pin(guards.lock(fid));
        let mut third = Box::pin(guards.lock(fid));
        let mut fourth = Box::pin(guards.lock(fid));
        assert!((&mut second).now_or_never().is_none());
        assert!((&mut third).now_or_never().is_none());
        assert!((&mut fourth).now_or_never().is_none());
        // One leaves before it is its turn, one after it was handed the guard and before it looked.
        drop(second);
        drop(first);
        drop(third);
        let fourth = fourth.now_or_never().expect("the last one in the queue is next");
        drop(fourth);
        assert!(guards.held.borrow().is_empty());
        assert!(guards.lock(Fid::new(1, 2)).now_or_never().is_some());
    }
}
