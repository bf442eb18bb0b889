//! What has to be asked of a server before something counts as being on stable media.
//!
//! A flag would not do: it has to be cleared either before the server is asked, and then a second fsync meanwhile would not
//! wait, or after, and then a change meanwhile would be forgotten. So changes are counted.

use std::cell::Cell;
use std::future::Future;

/// Changes of one thing, and how many of them are known to be stable.
pub(crate) struct Stability {
    changes: Cell<u64>,
    stable: Cell<u64>,
}

/// Changes that the next answer will cover.
#[derive(Clone, Copy)]
pub(crate) struct Upto(u64);

impl Default for Stability {
    /// Others may have changed it: nothing is known.
    fn default() -> Stability {
        Stability { changes: Cell::new(1), stable: Cell::new(0) }
    }
}

impl Stability {
    /// Something has changed, here or as somebody else's lock has let it.
    pub fn changed(&self) {
        self.changes.set(self.changes.get() + 1);
    }

    /// All changes that have been noted until now; what of them is only in this client's memory must be sent before
    /// [`Stability::ensure`].
    pub fn now(&self) -> Upto {
        Upto(self.changes.get())
    }

    /// Asks the server, unless it has answered for all these changes before.
    pub async fn ensure<E>(&self, upto: Upto, ask: impl Future<Output = Result<(), E>>) -> Result<(), E> {
        if self.stable.get() < upto.0 {
            ask.await?;
            self.stable.set(self.stable.get().max(upto.0));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_sync_under_way_answers_for_nobody_else() {
        let stability = Stability::default();
        let first = stability.ensure(stability.now(), pending::<Result<(), ()>>());
        assert_eq!(Box::pin(first).now_or_never(), None);
        assert_eq!(stability.ensure(stability.now(), ready(Err(()))).now_or_never(), Some(Err(())));
        let before = stability.now();
        stability.changed();
        assert_eq!(stability.ensure(before, ready(Ok::<(), ()>(()))).now_or_never(), Some(Ok(())));
        let after = stability.now();
        let mut reached = false;
        let second = stability.ensure(after, async {
            reached = true;
            Ok::<(), ()>(())
        });
        assert_eq!(second.now_or_never(), Some(Ok(())));
        assert!(reached, "the change came after what the first answer is for");
        let mut again = false;
        let third = stability.ensure(after, async {
            again = true;
            Ok::<(), ()>(())
        });
        assert_eq!(third.now_or_never(), Some(Ok(())));
        assert!(!again, "all of it is stable");
    }
}
