//! Looking into a store without opening it: [`inspect()`] shows what is there, [`fsck()`] says whether it is right.
//!
//! Both read the device as recovery does: newest superblock, checkpoint, runs, log. Neither writes, except [`fsck()`] when it is asked to
//! repair; then the store must not be open anywhere. What the device holds is not believed: damage is reported, with the object,
//! the offset in it and the byte on the device wherever they are known, and the rest is still looked at.

mod block_map;
mod fsck;
mod inspect;
mod offline;
mod repair;
#[cfg(test)]
mod tests;

pub use fsck::{Fsck, PROBLEMS_MAX, Problem, ProblemKind, Verdict, fsck};
pub use inspect::{
    ExtentView, Inspect, Inspection, KeyView, LogView, ObjectView, RecordView, RootView, RunView, SuperblockView,
    inspect,
};
