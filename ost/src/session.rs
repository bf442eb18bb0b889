//! Object handles: short numbers for objects, good for one session.

use std::collections::{BTreeMap, HashMap};

use nacre_wire::{Fid, Status};

/// Most handles of one session; the one opened first is closed for the next. Its client is told EBADF and opens again.
const HANDLES_MAX: usize = 1 << 20;

/// The handles of all sessions. Maps are looked up, never iterated.
#[derive(Default)]
pub(crate) struct Handles {
    sessions: HashMap<u64, SessionHandles>,
}

#[derive(Default)]
struct SessionHandles {
    last: u32,
    objects: BTreeMap<u32, Fid>,
    numbers: HashMap<Fid, u32>,
}

impl Handles {
    /// The handle of an object in a session.
    pub(crate) fn open(&mut self, session_id: u64, object: Fid) -> u32 {
        let session = self.sessions.entry(session_id).or_default();
        if let Some(number) = session.numbers.get(&object) {
            return *number;
        }
        if session.objects.len() >= HANDLES_MAX
            && let Some((_, oldest)) = session.objects.pop_first()
        {
            session.numbers.remove(&oldest);
        }
        // 0 is no handle. After four thousand million opens numbers come round to those long closed.
        session.last = session.last.checked_add(1).unwrap_or(1);
        if let Some(old) = session.objects.insert(session.last, object) {
            session.numbers.remove(&old);
        }
        session.numbers.insert(object, session.last);
        session.last
    }

    /// The object of a handle; EBADF.
    pub(crate) fn object(&self, session_id: u64, handle: u32) -> Result<Fid, Status> {
        let session = self.sessions.get(&session_id).ok_or(Status::EBADF)?;
        session.objects.get(&handle).copied().ok_or(Status::EBADF)
    }

    /// The session has ended.
    pub(crate) fn close(&mut self, session_id: u64) {
        self.sessions.remove(&session_id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_belong_to_their_session() {
        let mut handles = Handles::default();
        let (one, two) = (Fid::new(1, 1), Fid::new(1, 2));
        let first = handles.open(7, one);
        assert_eq!(handles.open(7, one), first);
        let second = handles.open(7, two);
        assert_eq!(handles.object(7, second), Ok(two));
        assert_eq!(handles.object(8, first), Err(Status::EBADF));
        assert_eq!(handles.object(7, 0), Err(Status::EBADF));
        handles.close(7);
        assert_eq!(handles.object(7, first), Err(Status::EBADF));
    }
}
