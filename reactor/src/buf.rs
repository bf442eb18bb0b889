//! `DmaBuf`: page-aligned owned memory. Shared and sliced it is a [`bytes::Bytes`] ([`DmaBuf::freeze`]).

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use bytes::Bytes;

/// Alignment of every buffer, bytes: what O_DIRECT and NVMe want.
pub const ALIGNMENT: usize = 4096;

/// Owned bytes at a page boundary. Moves through the layers by value; `freeze` makes it shareable without a copy.
pub struct DmaBuf {
    start: NonNull<u8>,
    len: usize,
    capacity: usize,
}

// SAFETY: the memory belongs to this value alone, as with Vec<u8>.
unsafe impl Send for DmaBuf {}
// SAFETY: shared access is read-only, as with Vec<u8>.
unsafe impl Sync for DmaBuf {}

impl DmaBuf {
    /// `len` zero bytes. The capacity is rounded up to whole pages.
    pub fn zeroed(len: usize) -> DmaBuf {
        let capacity = len.max(1).next_multiple_of(ALIGNMENT);
        let layout = Layout::from_size_align(capacity, ALIGNMENT).expect("buffers are far below isize::MAX");
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        let start = NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout));
        DmaBuf { start, len, capacity }
    }

    /// `len` bytes of any content: what an earlier buffer left, or zeros. For buffers that are filled before they are read.
    pub fn uncleared(len: usize) -> DmaBuf {
        DmaBuf::zeroed(len)
    }

    /// A copy of `bytes`.
    pub fn copy_from(bytes: &[u8]) -> DmaBuf {
        let mut buf = DmaBuf::uncleared(bytes.len());
        buf.copy_from_slice(bytes);
        buf
    }

    /// Bytes that the memory can hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Shortens (or, within the capacity, lengthens by bytes that are zero or were there before).
    ///
    /// # Panics
    /// When `len` is above the capacity.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity, "{len} bytes in a buffer of {}", self.capacity);
        self.len = len;
    }

    /// Makes it shareable; slices of it keep it alive.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for DmaBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `capacity` bytes from `start` are initialised (zeroed at allocation) and len never exceeds it.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for DmaBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for DmaBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl std::fmt::Debug for DmaBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DmaBuf({} bytes)", self.len)
    }
}

impl Drop for DmaBuf {
    fn drop(&mut self) {
        let layout = Layout::from_size_align(self.capacity, ALIGNMENT).expect("the layout it was allocated with");
        // SAFETY: allocated in `zeroed` with this layout, freed only here.
        unsafe { dealloc(self.start.as_ptr(), layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligned_zeroed_and_shared_without_a_copy() {
        let mut buf = DmaBuf::zeroed(5000);
        assert_eq!(buf.as_ptr() as usize % ALIGNMENT, 0);
        assert!(buf.iter().all(|byte| *byte == 0));
        buf[4999] = 7;
        let address = buf.as_ptr();
        let shared = buf.freeze();
        assert_eq!(shared.as_ptr(), address);
        assert_eq!(shared.slice(4999..)[0], 7);
        assert_eq!(DmaBuf::zeroed(0).len(), 0);
    }
}
