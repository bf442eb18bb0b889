//! What is on the disk, and nothing else: types, encoding, checks. `docs/disk.md` has the words.

pub mod run;
