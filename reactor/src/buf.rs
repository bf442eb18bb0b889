//! `DmaBuf`: page-aligned owned memory. Shared and sliced it is a [`bytes::Bytes`] ([`DmaBuf::freeze`]).
//!
//! Memory of up to [`POOLED_BYTES_MAX`] goes back to a small pool of the thread that drops it: new pages cost a fault each,
//! for 1 MiB more than the copy of its bytes. All memory is initialised, once; [`DmaBuf::zeroed`] clears it again,
//! [`DmaBuf::uncleared`] does not.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use bytes::Bytes;

/// Alignment of every buffer, bytes: what O_DIRECT and NVMe want.
pub const ALIGNMENT: usize = 4096;
/// Larger memory is given back at once, bytes.
pub const POOLED_BYTES_MAX: usize = 4 << 20;
/// What the pool of one thread keeps at most, bytes.
pub const POOL_BYTES_MAX: usize = 16 << 20;

/// Owned bytes at a page boundary. Moves through the layers by value; `freeze` makes it shareable without a copy.
pub struct DmaBuf {
    memory: Memory,
    len: usize,
}

/// Initialised memory of whole pages.
struct Memory {
    start: NonNull<u8>,
    capacity: usize,
}

// SAFETY: the memory belongs to this value alone, as with Vec<u8>.
unsafe impl Send for Memory {}
// SAFETY: shared access is read-only, as with Vec<u8>.
unsafe impl Sync for Memory {}

impl DmaBuf {
    /// `len` zero bytes, and zeros behind them up to the capacity.
    pub fn zeroed(len: usize) -> DmaBuf {
        let (mut memory, reused) = Memory::take(len);
        if reused {
            memory.bytes_mut().fill(0);
        }
        DmaBuf { memory, len }
    }

    /// `len` bytes of any content: what an earlier buffer left, or zeros. For buffers that are filled before they are read.
    pub fn uncleared(len: usize) -> DmaBuf {
        DmaBuf { memory: Memory::take(len).0, len }
    }

    /// A copy of `bytes`.
    pub fn copy_from(bytes: &[u8]) -> DmaBuf {
        let mut buf = DmaBuf::uncleared(bytes.len());
        buf.copy_from_slice(bytes);
        buf
    }

    /// Bytes that the memory can hold: at least the length asked for.
    pub fn capacity(&self) -> usize {
        self.memory.capacity
    }

    /// Shortens, or lengthens within the capacity by what is there: zeros in a buffer made by `zeroed`.
    ///
    /// # Panics
    /// When `len` is above the capacity.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.memory.capacity, "{len} bytes in a buffer of {}", self.memory.capacity);
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
        &self.memory.bytes()[..self.len]
    }
}

impl DerefMut for DmaBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        let len = self.len;
        &mut self.memory.bytes_mut()[..len]
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
        let nothing = Memory { start: NonNull::dangling(), capacity: 0 };
        let memory = std::mem::replace(&mut self.memory, nothing);
        // Without a pool (the thread is ending), or when it is full, the memory is freed by being dropped.
        let _ = POOL.try_with(|pool| pool.try_borrow_mut().map(|mut pool| pool.keep(memory)));
    }
}

impl Memory {
    /// Room for `len` bytes, and whether it was used before.
    fn take(len: usize) -> (Memory, bool) {
        let capacity = if len <= POOLED_BYTES_MAX {
            len.next_power_of_two().max(ALIGNMENT)
        } else {
            len.next_multiple_of(ALIGNMENT)
        };
        let kept = POOL.try_with(|pool| pool.try_borrow_mut().ok()?.take(capacity));
        match kept {
            Ok(Some(memory)) => (memory, true),
            _ => (Memory::allocate(capacity), false),
        }
    }

    fn allocate(capacity: usize) -> Memory {
        let layout = Layout::from_size_align(capacity, ALIGNMENT).expect("buffers are far below isize::MAX");
        assert!(capacity > 0);
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        let start = NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout));
        Memory { start, capacity }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: `capacity` bytes from `start` are ours and initialised (zeroed at allocation), or there are none.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.capacity) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.capacity) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.capacity > 0 {
            let layout = Layout::from_size_align(self.capacity, ALIGNMENT).expect("the layout it was allocated with");
            // SAFETY: allocated in `allocate` with this layout, freed only here.
            unsafe { dealloc(self.start.as_ptr(), layout) }
        }
    }
}

/// Memory that waits for its next use: powers of two from [`ALIGNMENT`] to [`POOLED_BYTES_MAX`].
struct Pool {
    kept: [Vec<Memory>; CLASSES],
    bytes: usize,
}

impl Pool {
    fn take(&mut self, capacity: usize) -> Option<Memory> {
        let memory = self.kept.get_mut(class(capacity)?)?.pop()?;
        self.bytes -= capacity;
        Some(memory)
    }

    fn keep(&mut self, memory: Memory) {
        if let Some(class) = class(memory.capacity)
            && self.bytes + memory.capacity <= POOL_BYTES_MAX
        {
            self.bytes += memory.capacity;
            self.kept[class].push(memory);
        }
    }
}

fn class(capacity: usize) -> Option<usize> {
    let fits = capacity.is_power_of_two() && (ALIGNMENT..=POOLED_BYTES_MAX).contains(&capacity);
    fits.then(|| (capacity / ALIGNMENT).trailing_zeros() as usize)
}

const CLASSES: usize = (POOLED_BYTES_MAX / ALIGNMENT).trailing_zeros() as usize + 1;

thread_local! {
    static POOL: RefCell<Pool> = const { RefCell::new(Pool { kept: [const { Vec::new() }; CLASSES], bytes: 0 }) };
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

    #[test]
    fn memory_is_used_again_cleared_when_asked_and_the_pool_is_bounded() {
        let mut buf = DmaBuf::zeroed(6000);
        assert_eq!(buf.capacity(), 8192);
        buf.fill(7);
        let address = buf.as_ptr();
        drop(buf);
        let buf = DmaBuf::uncleared(8000);
        assert_eq!((buf.as_ptr(), buf[5999], buf.len()), (address, 7, 8000));
        drop(buf);
        let mut buf = DmaBuf::zeroed(1 << 12 | 1);
        assert_eq!(buf.as_ptr(), address);
        buf.set_len(8192);
        assert!(buf.iter().all(|byte| *byte == 0), "behind the length too");

        let many: Vec<DmaBuf> = (0..10).map(|_| DmaBuf::uncleared(POOLED_BYTES_MAX)).collect();
        drop(many);
        let large = DmaBuf::zeroed(POOLED_BYTES_MAX + 1);
        assert_eq!(large.capacity(), POOLED_BYTES_MAX + ALIGNMENT);
        drop(large);
        POOL.with_borrow(|pool| {
            assert_eq!(pool.bytes, POOL_BYTES_MAX);
            assert_eq!(pool.kept.iter().flatten().map(|memory| memory.capacity).sum::<usize>(), pool.bytes);
        });
    }

    #[test]
    fn dropped_on_another_thread() {
        let bytes = DmaBuf::copy_from(b"abc").freeze();
        std::thread::spawn(move || assert_eq!(bytes, "abc")).join().unwrap();
    }
}
