//! Memory that data lands in.
//!
//! Large buffers go round: when the last holder of the data lets go, the pages come back to the thread that it happened on and
//! take the next transfer, without being cleared. Nothing of an earlier transfer can be seen, because only bytes that
//! have been received are ever shown.

use std::cell::RefCell;

use nacre_reactor::{Bytes, DmaBuf};

/// Where data lands.
pub(super) enum Space {
    /// Requests and little writes.
    Small(Vec<u8>),
    /// What a device may read from: aligned.
    Pages(DmaBuf),
    /// Nowhere: the command has failed already.
    Nowhere(usize),
}

impl Space {
    pub(super) fn new(bytes: usize) -> Space {
        match bytes {
            0..PAGES_FROM_BYTES => Space::Small(vec![0; bytes]),
            PAGES_FROM_BYTES..RECYCLED_FROM_BYTES => Space::Pages(DmaBuf::zeroed(bytes)),
            _ => Space::Pages(used(bytes).unwrap_or_else(|| DmaBuf::zeroed(bytes))),
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Space::Small(bytes) => bytes.len(),
            Space::Pages(buf) => buf.len(),
            Space::Nowhere(bytes) => *bytes,
        }
    }

    /// Keeps the first `bytes`: those that have been received.
    pub(super) fn truncate(&mut self, bytes: usize) {
        match self {
            Space::Small(vec) => vec.truncate(bytes),
            Space::Pages(buf) => buf.set_len(bytes.min(buf.len())),
            Space::Nowhere(length) => *length = bytes.min(*length),
        }
    }

    /// Shares what was received. All of it must have been: see [`Space::truncate`].
    pub(super) fn freeze(self) -> Bytes {
        match self {
            Space::Small(bytes) => bytes.into(),
            Space::Pages(buf) if buf.capacity() >= RECYCLED_FROM_BYTES => Bytes::from_owner(Recycled(Some(buf))),
            Space::Pages(buf) => buf.freeze(),
            Space::Nowhere(_) => Bytes::new(),
        }
    }

    pub(super) fn is_nowhere(&self) -> bool {
        matches!(self, Space::Nowhere(_))
    }

    pub(super) fn slice_mut(&mut self) -> &mut [u8] {
        match self {
            Space::Small(bytes) => bytes,
            Space::Pages(buf) => buf,
            Space::Nowhere(_) => &mut [],
        }
    }
}

/// Gives its pages back when the last reference to it goes.
struct Recycled(Option<DmaBuf>);

impl AsRef<[u8]> for Recycled {
    fn as_ref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

impl Drop for Recycled {
    fn drop(&mut self) {
        let Some(buf) = self.0.take() else { return };
        // A thread that is ending has no pool any more; the buffer is freed then.
        let _ = POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            let pooled_bytes: usize = pool.iter().map(DmaBuf::capacity).sum();
            if pooled_bytes + buf.capacity() <= POOL_BYTES_MAX {
                pool.push(buf);
            }
        });
    }
}

/// A used buffer that fits and wastes no more than half.
fn used(bytes: usize) -> Option<DmaBuf> {
    POOL.with_borrow_mut(|pool| {
        let fits = |buf: &DmaBuf| buf.capacity() >= bytes && buf.capacity() / 2 <= bytes;
        let at = pool.iter().rposition(fits)?;
        let mut buf = pool.swap_remove(at);
        buf.set_len(bytes);
        Some(buf)
    })
}

thread_local! {
    static POOL: RefCell<Vec<DmaBuf>> = const { RefCell::new(Vec::new()) };
}

/// From here on data goes to pages.
const PAGES_FROM_BYTES: usize = 2048;
/// From here on clearing costs more than looking for a used buffer.
const RECYCLED_FROM_BYTES: usize = 64 << 10;
/// Of a thread.
const POOL_BYTES_MAX: usize = 16 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_buffers_go_round_and_the_pool_is_bounded() {
        let first = Space::new(1 << 20).freeze();
        let address = first.as_ptr();
        let slice = first.slice(5..);
        drop(first);
        assert!(used(1 << 20).is_none(), "a slice still holds it");
        drop(slice);
        assert!(used(64 << 10).is_none(), "far too large for that");
        let mut again = Space::new((1 << 20) - 5);
        assert_eq!(again.slice_mut().as_ptr(), address);
        again.truncate(3);
        assert_eq!(again.freeze().len(), 3);
        let many: Vec<_> = (0..64).map(|_| Space::new(1 << 20).freeze()).collect();
        drop(many);
        assert!(POOL.with_borrow(|pool| pool.len()) <= 16);
    }
}
