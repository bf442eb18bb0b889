//! What is on the disk, and nothing else: types, encoding, checks. `docs/disk.md` has the words.

pub mod block;
pub mod filter;
pub mod log;
pub mod object;
pub mod root;
pub mod run;
pub mod superblock;

/// Appends a number, seven bits per byte, least significant first (LEB128).
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Reads a number off the front of `input`.
pub fn get_varint(input: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = input.split_first()?;
        *input = rest;
        if shift == 63 && byte > 1 {
            return None;
        }
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}
