//! Reply slots: each change is done once, however often it is sent.
//!
//! A client has one change at a time in each slot, and numbers them upwards. The answer of the last one is kept in memory
//! and, written by the same transaction as the change itself, on disk. A change that is sent again is answered from
//! there; one that is still running is joined.
//!
//! ```text
//!  (none) ──change──► Running ──done──► Done ──next change──► Running …
//!     └─ loaded at start ─► OnDisk ──────────next change──────────┘
//! ```

use std::cell::RefCell;
use std::collections::BTreeMap;

use nacre_osd::store::Op;
use nacre_reactor::Bytes;
use nacre_wire::mdt::{CreateReply, Slot, UnlinkReply};
use nacre_wire::{Status, Uuid, codec, mdt};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::disk;

/// What the caller of a change gets.
pub(crate) type Outcome = Result<Bytes, Status>;

/// An answer as it is on disk (postcard).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The change.
    pub xid: u64,
    /// What `body` is.
    pub kind: ReplyKind,
    /// How the file was opened, for a reply with a handle; else 0.
    pub open_flags: u32,
    /// The reply, encoded as it travels, without locks.
    pub body: Vec<u8>,
}

/// Types of replies that may hold what does not survive a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReplyKind {
    /// Nothing of the kind.
    Plain,
    /// May hold an open handle.
    Create,
}

/// Replies of changes.
pub(crate) trait SlotReply: Serialize + 'static {
    /// What goes into [`Record::kind`].
    const KIND: ReplyKind = ReplyKind::Plain;
}
impl SlotReply for UnlinkReply {}
impl SlotReply for mdt::Inode {}
impl SlotReply for CreateReply {
    const KIND: ReplyKind = ReplyKind::Create;
}

/// The slots of one client.
#[derive(Default)]
pub(crate) struct Slots {
    states: RefCell<BTreeMap<u32, State>>,
}

enum State {
    Running { xid: u64, waiters: Vec<oneshot::Sender<Outcome>> },
    Done { xid: u64, outcome: Outcome },
    OnDisk(Record),
}

/// What to do with a change that has arrived.
pub(crate) enum Begin {
    /// It is new: do it, then call [`Slots::finish`]; its answer comes here too.
    Run(oneshot::Receiver<Outcome>),
    /// It is running.
    Join(oneshot::Receiver<Outcome>),
    /// It was done.
    Answer(Outcome),
    /// It was done before the server restarted.
    Restore(Record),
    /// The slot is taken by an earlier change, whose sender has given up: wait for it, then ask again.
    Busy(oneshot::Receiver<Outcome>),
}

impl Slots {
    /// What was on disk at start.
    pub(crate) fn load(&self, index: u32, record: Record) {
        self.states.borrow_mut().insert(index, State::OnDisk(record));
    }

    /// A change has arrived. ESTALE for one that was followed by another in its slot.
    pub(crate) fn begin(&self, slot: Slot) -> Result<Begin, Status> {
        let mut states = self.states.borrow_mut();
        let (sender, receiver) = oneshot::channel();
        let last_xid = match states.get_mut(&slot.index) {
            Some(State::Running { xid, waiters }) if slot.xid >= *xid => {
                waiters.push(sender);
                return Ok(if slot.xid == *xid { Begin::Join(receiver) } else { Begin::Busy(receiver) });
            }
            Some(State::Done { xid, outcome }) if *xid == slot.xid => return Ok(Begin::Answer(outcome.clone())),
            Some(State::OnDisk(record)) if record.xid == slot.xid => return Ok(Begin::Restore(record.clone())),
            Some(State::Running { xid, .. } | State::Done { xid, .. } | State::OnDisk(Record { xid, .. })) => *xid,
            None => 0,
        };
        if slot.xid < last_xid {
            return Err(Status::ESTALE);
        }
        states.insert(slot.index, State::Running { xid: slot.xid, waiters: vec![sender] });
        Ok(Begin::Run(receiver))
    }

    /// A change has been done or refused.
    pub(crate) fn finish(&self, slot: Slot, outcome: Outcome) {
        let done = State::Done { xid: slot.xid, outcome: outcome.clone() };
        if let Some(State::Running { waiters, .. }) = self.states.borrow_mut().insert(slot.index, done) {
            for waiter in waiters {
                // Who has left does not need the answer.
                let _ = waiter.send(outcome.clone());
            }
        }
    }
}

/// The part of a change's transaction that keeps its answer.
pub(crate) fn op(client: Uuid, slot: Slot, record: &Record) -> Op {
    Op::Put { index: disk::SLOTS, key: key(client, slot.index), value: codec::encode(record) }
}

/// Key in [`disk::SLOTS`].
pub(crate) fn key(client: Uuid, index: u32) -> Vec<u8> {
    let mut key = Vec::with_capacity(20);
    key.extend_from_slice(&client.0);
    key.extend_from_slice(&index.to_be_bytes());
    key
}

/// Inverse of [`key`].
pub(crate) fn parse_key(key: &[u8]) -> Option<(Uuid, u32)> {
    let (uuid, index) = key.split_first_chunk::<16>()?;
    Some((Uuid(*uuid), u32::from_be_bytes(index.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(xid: u64) -> Slot {
        Slot { index: 3, xid }
    }

    #[test]
    fn a_change_runs_once() {
        let slots = Slots::default();
        let Ok(Begin::Run(mut first)) = slots.begin(slot(5)) else { panic!("new") };
        let Ok(Begin::Join(mut again)) = slots.begin(slot(5)) else { panic!("running") };
        let Ok(Begin::Busy(mut next)) = slots.begin(slot(6)) else { panic!("slot taken") };
        assert_eq!(slots.begin(slot(4)).err(), Some(Status::ESTALE));
        let outcome = Ok(Bytes::from_static(b"done"));
        slots.finish(slot(5), outcome.clone());
        assert_eq!(first.try_recv().unwrap(), outcome);
        assert_eq!(again.try_recv().unwrap(), outcome);
        assert_eq!(next.try_recv().unwrap(), outcome);
        assert!(matches!(slots.begin(slot(5)), Ok(Begin::Answer(kept)) if kept == outcome));
        assert!(matches!(slots.begin(slot(6)), Ok(Begin::Run(_))));
    }

    #[test]
    fn what_was_on_disk_is_given_back() {
        let slots = Slots::default();
        let record = Record { xid: 9, kind: ReplyKind::Plain, open_flags: 0, body: vec![1] };
        slots.load(3, record.clone());
        assert!(matches!(slots.begin(slot(9)), Ok(Begin::Restore(kept)) if kept == record));
        assert_eq!(slots.begin(slot(8)).err(), Some(Status::ESTALE));
        assert!(matches!(slots.begin(slot(10)), Ok(Begin::Run(_))));
        let uuid = Uuid([7; 16]);
        assert_eq!(parse_key(&key(uuid, 300)), Some((uuid, 300)));
    }
}
