//! Counters of a mount: they only grow.

use std::cell::Cell;

macro_rules! stats {
    ($($name:ident: $about:expr;)*) => {
        /// What a mount has done so far.
        #[derive(Debug, Default)]
        pub struct Stats {
            $(#[doc = $about] pub $name: Cell<u64>,)*
        }

        impl Stats {
            /// All counters by name.
            pub fn list(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.get()),)*]
            }
        }
    };
}

stats! {
    attr_hits: "getattr calls answered from memory.";
    attr_misses: "getattr calls that asked a server.";
    glimpses: "Glimpse requests sent to OSTs.";
    lock_enqueues: "Data locks asked for.";
    lock_revokes: "Locks that servers asked back.";
    lookup_hits: "Names resolved from memory.";
    lookup_misses: "Names that the MDT was asked for.";
    mdt_calls: "Requests to the MDT.";
    read_ahead_bytes: "Bytes read ahead.";
    read_ahead_hits_bytes: "Bytes read that had been read ahead.";
    read_bytes: "Bytes given to readers.";
    read_calls: "Reads.";
    write_back_bytes: "Bytes written back.";
    write_back_calls: "Write-back requests sent.";
    write_bytes: "Bytes taken from writers.";
    write_calls: "Writes.";
    write_through_calls: "Writes sent at once, for want of granted space or because the caller wanted it.";
}

/// Counts.
pub(crate) fn add(counter: &Cell<u64>, by: u64) {
    counter.set(counter.get().wrapping_add(by));
}
