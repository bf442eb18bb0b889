//! `Image`: the bytes of a device in memory. Sparse, and cheap to copy: copies share pages until one writes.

use std::rc::Rc;

/// Granularity of sharing and of holes, bytes.
const PAGE_BYTES: usize = 65536;

#[derive(Clone)]
pub(super) struct Image {
    /// `None` reads zeros.
    pages: Vec<Option<Rc<[u8; PAGE_BYTES]>>>,
}

impl Image {
    pub(super) fn zeroed(bytes: u64) -> Image {
        Image { pages: vec![None; bytes.div_ceil(PAGE_BYTES as u64) as usize] }
    }

    pub(super) fn read(&self, offset: u64, target: &mut [u8]) {
        for (page, within, part) in pieces(offset, target.len()) {
            let target = &mut target[part.clone()];
            match &self.pages[page] {
                Some(bytes) => target.copy_from_slice(&bytes[within..within + part.len()]),
                None => target.fill(0),
            }
        }
    }

    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        for (page, within, part) in pieces(offset, data.len()) {
            self.page(page)[within..within + part.len()].copy_from_slice(&data[part]);
        }
    }

    /// Whole pages are given back.
    pub(super) fn zero(&mut self, offset: u64, length: u64) {
        for (page, within, part) in pieces(offset, length as usize) {
            if part.len() == PAGE_BYTES {
                self.pages[page] = None;
            } else if self.pages[page].is_some() {
                self.page(page)[within..within + part.len()].fill(0);
            }
        }
    }

    fn page(&mut self, index: usize) -> &mut [u8; PAGE_BYTES] {
        let page = self.pages[index].get_or_insert_with(|| {
            let zeros: Rc<[u8]> = Rc::from(vec![0; PAGE_BYTES]);
            zeros.try_into().expect("the length is right")
        });
        Rc::make_mut(page)
    }
}

/// Cuts a range at page boundaries: page, offset in it, part of the range.
fn pieces(offset: u64, length: usize) -> impl Iterator<Item = (usize, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == length {
            return None;
        }
        let at = offset + done as u64;
        let within = (at % PAGE_BYTES as u64) as usize;
        let part = done..length.min(done + PAGE_BYTES - within);
        done = part.end;
        Some(((at / PAGE_BYTES as u64) as usize, within, part))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_share_until_written_and_holes_read_zeros() {
        let mut image = Image::zeroed(1 << 30);
        let at = PAGE_BYTES as u64 * 3 - 2;
        image.write(at, b"abcd");
        let copy = image.clone();
        image.zero(at + 1, 2);
        let mut bytes = [9; 6];
        image.read(at - 1, &mut bytes);
        assert_eq!(&bytes, b"\0a\0\0d\0");
        copy.read(at - 1, &mut bytes);
        assert_eq!(&bytes, b"\0abcd\0");
        image.zero(0, PAGE_BYTES as u64 * 5);
        assert!(image.pages.iter().all(Option::is_none));
    }
}
