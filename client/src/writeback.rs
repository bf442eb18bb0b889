//! Write-back: who sends dirty data, and when.
//!
//! One task for each OST with dirty data. It sends what is old enough, what fills a request, and everything while somebody
//! waits for space (memory or grant); objects share requests. fsync, revocations and truncates send what they need
//! themselves ([`Object::flush`]). The task ends when nothing is dirty: an idle mount does nothing.

use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use nacre_transport::stubs::WriteRange;
use nacre_wire::Status;
use nacre_wire::op::io_flags;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::timeout;

use crate::Client;
use crate::cache::BLOCK_BYTES;
use crate::object::{Batch, Object};
use crate::ost::Ost;
use crate::stats::add;

const WHOLE: Range<u64> = 0..u64::MAX;

/// An object has this many more dirty bytes.
pub(crate) fn made_dirty(object: &Rc<Object>, bytes: u64) {
    let ost = &object.ost;
    let Some(client) = ost.client.upgrade() else { return };
    client.dirty_bytes.set(client.dirty_bytes.get() + bytes);
    if !object.queued.replace(true) {
        ost.dirty.borrow_mut().push_back(object.clone());
    }
    if !ost.flushing.replace(true) {
        spawn_local(run(ost.clone()));
    } else if object.dirty_bytes() >= object.batch_bytes_max() {
        ost.flush.notify_one();
    }
}

/// Dirty or travelling bytes went away.
pub(crate) fn made_clean(object: &Rc<Object>, bytes: u64) {
    let Some(client) = object.ost.client.upgrade() else { return };
    client.dirty_bytes.set(client.dirty_bytes.get().saturating_sub(bytes));
    client.dirty_room.notify_waiters();
    object.ost.freed.notify_waiters();
}

/// Waits until the mount has room for more dirty data. The caller uses no lock: what makes room may need it.
pub(crate) async fn wait_for_room(client: &Rc<Client>) {
    loop {
        let room = client.dirty_room.notified();
        tokio::pin!(room);
        room.as_mut().enable();
        if client.dirty_bytes.get() < client.params.max_dirty_mb.get() << 20 {
            return;
        }
        let _waiting = Waiting::new(&client.room_waiters);
        client.all_osts().iter().for_each(|ost| ost.flush.notify_one());
        room.await;
    }
}

/// Waits for space granted by an OST to come back; false when there is none to come back. The caller may use locks: what is
/// being written has its own.
pub(crate) async fn wait_for_grant(ost: &Rc<Ost>) -> bool {
    let freed = ost.freed.notified();
    tokio::pin!(freed);
    freed.as_mut().enable();
    if ost.grant_used_bytes() == 0 {
        return false;
    }
    let _waiting = Waiting::new(&ost.grant_waiters);
    ost.flush.notify_one();
    freed.await;
    true
}

/// Counts somebody who waits.
struct Waiting<'a>(&'a Cell<u32>);

impl Waiting<'_> {
    fn new(count: &Cell<u32>) -> Waiting<'_> {
        count.set(count.get() + 1);
        Waiting(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Whether everything dirty is due, because somebody waits for it to go.
fn is_pressed(ost: &Ost) -> bool {
    ost.grant_waiters.get() > 0 || ost.client.upgrade().is_some_and(|client| client.room_waiters.get() > 0)
}

/// Sends batches of any objects of one OST in one request. What the task does is done when it ends.
pub(crate) fn send(ost: Rc<Ost>, batches: Vec<(Rc<Object>, Batch)>) -> JoinHandle<()> {
    spawn_local(async move {
        let outcome = request(&ost, &batches).await;
        match outcome {
            Err(_) if batches.len() > 1 => {
                // One object's trouble (gone, evicted, no space) is not the others': find out whose it is.
                for (object, batch) in batches {
                    let one = [(object, batch)];
                    let outcome = request(&ost, &one).await;
                    finish(&one, outcome);
                }
            }
            outcome => finish(&batches, outcome),
        }
    })
}

async fn request(ost: &Rc<Ost>, batches: &[(Rc<Object>, Batch)]) -> Result<(), Status> {
    let mut ranges: Vec<WriteRange> = Vec::new();
    for (object, batch) in batches {
        // Its lock went with an eviction.
        ranges.extend(object.write_ranges(batch).ok_or(Status::EIO)?);
    }
    let bytes = batches.iter().map(|(_, batch)| batch.bytes()).sum();
    if let Some(client) = ost.client.upgrade() {
        add(&client.stats.write_back_calls, 1);
        add(&client.stats.write_back_bytes, bytes);
    }
    let delta = ost.stub.mwrite(ranges, io_flags::GRANTED).await.map_err(Status::from)?;
    ost.grant_changed(delta);
    Ok(())
}

fn finish(batches: &[(Rc<Object>, Batch)], outcome: Result<(), Status>) {
    for (object, batch) in batches {
        let outcome = outcome.map_err(|status| match status {
            // The lock was lost on the way: so is the data.
            Status::NO_LOCK | Status::NO_SESSION | Status::ESTALE => Status::EIO,
            other => other,
        });
        if let Err(status) = outcome {
            tracing::warn!(
                "{}: {} bytes of file {} could not be written: {status}",
                object.ost.stub.import.label(),
                batch.bytes(),
                object.file_fid
            );
        }
        object.batch_done(batch, outcome);
        made_clean(object, batch.bytes());
    }
}

/// The task of one OST.
async fn run(ost: Rc<Ost>) {
    loop {
        let Some(client) = ost.client.upgrade() else { return };
        let age = Duration::from_millis(client.params.dirty_age_ms.get());
        let wait = match next_due(&ost, client.env.now(), age) {
            None => break,
            Some(wait) => wait,
        };
        resize(&ost, client.params.max_rpcs_in_flight.get() as usize);
        let now = client.env.now();
        drop(client);
        if wait > Duration::ZERO {
            // Woken early: somebody is in a hurry, or something is full.
            let _ = timeout(wait, ost.flush.notified()).await;
            continue;
        }
        let Ok(permit) = ost.rpcs.acquire().await else { break };
        let batches = collect(&ost, now, age);
        if batches.is_empty() {
            drop(permit);
            // All that is due overlaps what is travelling: its end wakes the writers of it, and us.
            let _ = timeout(RETRY, ost.freed.notified()).await;
            continue;
        }
        permit.forget();
        let (task_ost, task) = (ost.clone(), send(ost.clone(), batches));
        spawn_local(async move {
            if let Err(error) = task.await {
                tracing::error!("{}: write-back failed: {error}", task_ost.stub.import.label());
            }
            task_ost.rpcs.add_permits(1);
        });
    }
    ost.flushing.set(false);
}

/// How long until something has to be sent; `None`: nothing is dirty. Objects that are clean leave the queue.
fn next_due(ost: &Ost, now: Duration, age: Duration) -> Option<Duration> {
    let mut queue = ost.dirty.borrow_mut();
    queue.retain(|object| {
        let dirty = object.dirty_bytes() > 0;
        if !dirty {
            object.queued.set(false);
        }
        dirty
    });
    if queue.is_empty() {
        return None;
    }
    if is_pressed(ost) || queue.iter().any(|object| object.dirty_bytes() >= object.batch_bytes_max()) {
        return Some(Duration::ZERO);
    }
    // Sorted by when they became dirty, but for those sent in part: their turn comes with the next round.
    let oldest = queue.iter().filter_map(|object| object.dirty_since()).map(|(since, _)| since).min()?;
    Some((oldest + age).saturating_sub(now))
}

/// Takes what is due, as much as one request holds.
fn collect(ost: &Ost, now: Duration, age: Duration) -> Vec<(Rc<Object>, Batch)> {
    let mut batches = Vec::new();
    let mut room = match ost.dirty.borrow().front() {
        Some(object) => object.batch_bytes_max(),
        None => return batches,
    };
    let pressed = is_pressed(ost);
    let queue: Vec<Rc<Object>> = ost.dirty.borrow().iter().cloned().collect();
    for object in queue {
        if room < BLOCK_BYTES || batches.len() >= OBJECTS_MAX {
            break;
        }
        let Some((since, bytes)) = object.dirty_since() else { continue };
        let due = pressed || since + age <= now || bytes >= object.batch_bytes_max();
        if due && let Some(batch) = object.take_batch(&WHOLE, room, Duration::MAX) {
            room -= batch.bytes();
            batches.push((object, batch));
        }
    }
    batches
}

/// `max_rpcs_in_flight` may have been changed.
fn resize(ost: &Ost, wanted: usize) {
    let have = ost.rpcs_max.replace(wanted);
    if wanted > have {
        ost.rpcs.add_permits(wanted - have);
    } else if wanted < have {
        let taken = ost.rpcs.forget_permits(have - wanted);
        ost.rpcs_max.set(have - taken);
    }
}

/// Objects of one request.
const OBJECTS_MAX: usize = 64;
const RETRY: Duration = Duration::from_millis(50);
