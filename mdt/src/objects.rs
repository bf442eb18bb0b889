//! OST objects for files: a pool of precreated ones per OST, and the log of those to destroy.
//!
//! ```text
//!   OST creates ids in batches         files take them in order
//!  ─────────────┬──────────────────────────────┬──────────────────►  ids
//!   given to files (last one is on disk)        pool
//! ```
//! The last id given away is on disk with the transaction that gave it. After a restart the OST destroys what it has
//! beyond it and starts a new batch; so nothing is lost and nothing is given twice.
//!
//! Objects of removed files are listed in an index object by the transaction that removes the file. Once that
//! transaction is on stable media the objects are destroyed and taken off the list; while an OST is away its part waits.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::{Rc, Weak};
use std::time::Duration;

use nacre_osd::store::{Durability, Op, Store, Transaction};
use nacre_reactor::Env;
use nacre_transport::Connector;
use nacre_transport::host::{Import, ImportState, PeerSpec, Unobserved};
use nacre_transport::stubs::OstClient;
use nacre_wire::layout::{STRIPE_COUNT_MAX, Stripe, StripeHint};
use nacre_wire::map::{TargetInfo, TargetKind, target_label, target_nqn};
use nacre_wire::ost::Precreate;
use nacre_wire::session::ConnectRequest;
use nacre_wire::{ClusterMap, Fid, Status, Uuid};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::layout_choice::{Candidate, Chooser};
use crate::params::Params;
use crate::{disk, status_of};

/// How long an OST may take to answer before it counts as away.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a failure.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// How long removed files gather before their objects are destroyed together.
const DESTROY_PAUSE: Duration = Duration::from_millis(200);
/// How fast an OST may be filled, for [`measure_pause`]: 2 GB/s.
const FILLED_BYTES_PER_MS: u64 = 2_000_000;
/// A full OST is not asked more often than this, unless the parameter says so.
const MEASURE_PAUSE_MIN: Duration = Duration::from_millis(200);
/// Most ids of one batch.
const BATCH_MAX: u64 = 1 << 15;
/// Objects destroyed by one request.
const DESTROY_BATCH: usize = 512;
/// Objects to destroy that are remembered besides the log; more than that are read from there.
const DOOMED_MAX: usize = 1 << 16;
/// An OST with less free space than this gets no new files, bytes.
const FREE_BYTES_MIN: u64 = 8 << 20;

/// Pools of all OSTs.
pub(crate) struct Objects {
    env: Env,
    store: Rc<dyn Store>,
    connector: Rc<dyn Connector>,
    params: Rc<Params>,
    mdt_uuid: Uuid,
    mdt_index: u16,
    pools: RefCell<BTreeMap<u16, Rc<Pool>>>,
    chooser: RefCell<Chooser>,
    /// Candidates and choice of the call under way, kept for their memory.
    scratch: RefCell<(Vec<Candidate>, Vec<u16>)>,
    /// A pool has more than before, or an OST is there that was not.
    more: Notify,
    stopped: Cell<bool>,
}

/// Objects of one OST.
struct Pool {
    ost_index: u16,
    client: OstClient,
    nids: RefCell<Vec<nacre_wire::Nid>>,
    /// Next id to give away.
    next_id: Cell<u64>,
    /// Last id that exists; below `next_id` when the pool is empty.
    last_id: Cell<u64>,
    /// After the start nothing is given away before the OST has been told where to go on from.
    synchronised: Cell<bool>,
    batch: Cell<u64>,
    /// Bytes in all, bytes free.
    space: Cell<Option<(u64, u64)>>,
    refill: Notify,
    /// Objects in the destroy log that were put there since the log was last read through.
    doomed: RefCell<VecDeque<Fid>>,
    /// The log has more than `doomed`: what was there at start, and what did not fit.
    read_log: Cell<bool>,
    destroy: Notify,
}

impl Objects {
    pub(crate) fn new(
        env: Env,
        store: Rc<dyn Store>,
        connector: Rc<dyn Connector>,
        params: Rc<Params>,
        mdt_uuid: Uuid,
        mdt_index: u16,
    ) -> Rc<Objects> {
        Rc::new(Objects {
            env,
            store,
            connector,
            params,
            mdt_uuid,
            mdt_index,
            pools: RefCell::default(),
            chooser: RefCell::default(),
            scratch: RefCell::default(),
            more: Notify::new(),
            stopped: Cell::new(false),
        })
    }

    /// Takes notice of a map: OSTs that are new get a pool, others may have moved.
    pub(crate) async fn set_map(self: &Rc<Objects>, map: &ClusterMap) -> Result<(), Status> {
        for target in map.osts() {
            let known = self.pools.borrow().get(&target.index).cloned();
            match known {
                Some(pool) => {
                    if *pool.nids.borrow() != target.nids {
                        pool.nids.replace(target.nids.clone());
                        pool.client.import.reconnect_now(target.nids.clone());
                    }
                }
                None => self.add(map, target).await?,
            }
        }
        Ok(())
    }

    async fn add(self: &Rc<Objects>, map: &ClusterMap, target: &TargetInfo) -> Result<(), Status> {
        let key = disk::key_lov(target.index);
        let last_used = match self.store.get(disk::STATE, &key).await.map_err(status_of)? {
            Some(value) => disk::parse_counter(&value)?,
            None => 0,
        };
        if self.stopped.get() || self.pools.borrow().contains_key(&target.index) {
            return Ok(());
        }
        let label = target_label(&map.fsname, TargetKind::Ost, target.index);
        let connect = ConnectRequest {
            client_uuid: self.mdt_uuid,
            client_name: target_label(&map.fsname, TargetKind::Mdt, self.mdt_index),
            fsname: map.fsname.clone(),
            target_uuid: Some(target.uuid),
            features: Vec::new(),
            last_incarnation: 0,
            will_replay: false,
        };
        let nqn = target_nqn(target.uuid, &label);
        let spec = PeerSpec { label, nqn, nids: target.nids.clone(), connect };
        let import = Import::new(self.env.clone(), self.connector.clone(), spec, Rc::new(Unobserved));
        let pool = Rc::new(Pool {
            ost_index: target.index,
            client: OstClient::new(import),
            nids: RefCell::new(target.nids.clone()),
            next_id: Cell::new(last_used + 1),
            last_id: Cell::new(last_used),
            synchronised: Cell::new(false),
            batch: Cell::new(self.params.precreate_batch.get()),
            space: Cell::new(None),
            refill: Notify::new(),
            doomed: RefCell::default(),
            read_log: Cell::new(true),
            destroy: Notify::new(),
        });
        self.pools.borrow_mut().insert(target.index, pool.clone());
        tokio::task::spawn_local(keep_filled(Rc::downgrade(self), pool.clone()));
        tokio::task::spawn_local(keep_measured(Rc::downgrade(self), pool.clone()));
        tokio::task::spawn_local(keep_destroying(Rc::downgrade(self), pool));
        Ok(())
    }

    /// Objects for a new file, and its stripe size. Waits a bounded time for pools to fill. ENOSPC if no OST has room (or
    /// the one asked for has none), EINVAL for an OST that does not exist.
    pub(crate) async fn take(&self, hint: StripeHint) -> Result<(u32, Vec<Stripe>), Status> {
        let hint = hint.or(self.params.stripe_default());
        hint.validate()?;
        let size_bytes = hint.size_bytes.unwrap_or(nacre_wire::layout::STRIPE_SIZE_DEFAULT);
        if let Some(stripes) = self.try_take(hint)? {
            return Ok((size_bytes, stripes));
        }
        Ok((size_bytes, Box::pin(self.wait_and_take(hint)).await?))
    }

    async fn wait_and_take(&self, hint: StripeHint) -> Result<Vec<Stripe>, Status> {
        let waited = async {
            loop {
                // Asked for before looking, so that nothing is missed in between.
                let more = self.more.notified();
                if let Some(stripes) = self.try_take(hint)? {
                    return Ok::<_, Status>(stripes);
                }
                more.await;
            }
        };
        match timeout(self.params.precreate_wait(), waited).await {
            Ok(stripes) => stripes,
            Err(_) => {
                tracing::warn!("no OST has an object for a new file (away, full, or none registered)");
                Err(Status::ENOSPC)
            }
        }
    }

    fn try_take(&self, hint: StripeHint) -> Result<Option<Vec<Stripe>>, Status> {
        let pools = self.pools.borrow();
        let mut scratch = self.scratch.borrow_mut();
        let (candidates, chosen) = &mut *scratch;
        candidates.clear();
        candidates.extend(pools.values().filter_map(|pool| pool.candidate()));
        let mut first_index = None;
        if let Some(first) = hint.offset {
            if !pools.contains_key(&first) {
                // Before the first map nobody can say that it does not exist.
                return if pools.is_empty() { Ok(None) } else { Err(Status::EINVAL) };
            }
            if !candidates.iter().any(|candidate| candidate.ost_index == first) {
                return Ok(None);
            }
            first_index = Some(first);
        }
        let count = match hint.count {
            Some(-1) => STRIPE_COUNT_MAX,
            Some(count) if count > 0 => count as usize,
            _ => 1,
        };
        self.chooser.borrow_mut().choose(candidates, count, first_index, chosen);
        if chosen.is_empty() {
            return Ok(None);
        }
        let stripes = chosen.iter().filter_map(|ost_index| pools.get(ost_index)).map(|pool| pool.take()).collect();
        Ok(Some(stripes))
    }

    /// What a transaction that uses these stripes must contain. Built and submitted in one order for all transactions.
    pub(crate) fn ops(&self, stripes: &[Stripe], ops: &mut Vec<Op>) {
        let pools = self.pools.borrow();
        for pool in stripes.iter().filter_map(|stripe| pools.get(&stripe.ost_index)) {
            let value = (pool.next_id.get() - 1).to_le_bytes().to_vec();
            ops.push(Op::Put { index: disk::STATE, key: disk::key_lov(pool.ost_index), value });
        }
    }

    /// A transaction with these entries in the destroy log has been submitted. An OST that is not known yet reads its part
    /// of the log when it is.
    pub(crate) fn destroys_logged(&self, logged: &[(u16, Fid)]) {
        let pools = self.pools.borrow();
        for (ost_index, object) in logged {
            let Some(pool) = pools.get(ost_index) else { continue };
            let mut doomed = pool.doomed.borrow_mut();
            if doomed.len() < DOOMED_MAX {
                doomed.push_back(*object);
            } else {
                pool.read_log.set(true);
            }
            pool.destroy.notify_one();
        }
    }

    /// Per OST: its index, objects in the pool, state of the connection, free bytes. For people.
    pub(crate) fn describe(&self) -> Vec<(u16, u64, ImportState, Option<u64>)> {
        let pools = self.pools.borrow();
        let describe = |pool: &Rc<Pool>| {
            let free = pool.space.get().map(|(_, free)| free);
            (pool.ost_index, pool.level(), pool.client.import.state(), free)
        };
        pools.values().map(describe).collect()
    }

    /// Ends all background work and the connections.
    pub(crate) async fn stop(&self) {
        self.stopped.set(true);
        let pools = std::mem::take(&mut *self.pools.borrow_mut());
        for pool in pools.into_values() {
            pool.refill.notify_one();
            pool.destroy.notify_one();
            pool.client.import.close(Duration::from_secs(1)).await;
        }
        self.more.notify_waiters();
    }
}

impl Pool {
    /// Objects left.
    fn level(&self) -> u64 {
        (self.last_id.get() + 1).saturating_sub(self.next_id.get())
    }

    /// Whether, and how gladly, it gives an object.
    fn candidate(&self) -> Option<Candidate> {
        let there = self.client.import.state() == ImportState::Full && self.synchronised.get();
        if !there || self.level() == 0 {
            self.refill.notify_one();
            return None;
        }
        let (total_bytes, free_bytes) = self.space.get()?;
        let enough = free_bytes >= FREE_BYTES_MIN.min(total_bytes / 100).max(1);
        enough.then_some(Candidate { ost_index: self.ost_index, free_bytes })
    }

    /// Takes one; the pool is not empty.
    fn take(&self) -> Stripe {
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        if self.level() < self.batch.get() / 2 {
            self.refill.notify_one();
        }
        Stripe { ost_index: self.ost_index, object: Fid::ost_object(self.ost_index, id) }
    }

    /// The next batch to destroy.
    fn take_doomed(&self) -> Vec<Fid> {
        let mut doomed = self.doomed.borrow_mut();
        let count = doomed.len().min(DESTROY_BATCH);
        doomed.drain(..count).collect()
    }

    /// One batch. Answers whether the pool is as full as it should be.
    async fn fill(&self, mdt_index: u16) -> Result<(), Status> {
        // Drained before it was filled again: files come faster than batches.
        if self.synchronised.get() && self.level() == 0 {
            self.batch.set((self.batch.get() * 2).min(BATCH_MAX));
        }
        let given = self.next_id.get() - 1;
        let orphans_after_id = (!self.synchronised.get()).then_some(given);
        let request = Precreate { mdt_index, up_to_id: given + self.batch.get(), orphans_after_id };
        let answer = timeout(ANSWER_TIMEOUT, self.client.precreate(&request)).await;
        let reply = answer.map_err(|_| Status::ETIMEDOUT)?.map_err(Status::from)?;
        // An OST that has created fewer than asked is full, or was set back.
        self.last_id.set(reply.last_id.min(request.up_to_id));
        self.synchronised.set(true);
        if self.level() == 0 { Err(Status::ENOSPC) } else { Ok(()) }
    }
}

/// Background: keeps a pool above its low-water mark.
async fn keep_filled(objects: Weak<Objects>, pool: Rc<Pool>) {
    loop {
        let Some(alive) = objects.upgrade().filter(|objects| !objects.stopped.get()) else { return };
        if pool.synchronised.get() && pool.level() >= pool.batch.get() / 2 {
            drop(alive);
            pool.refill.notified().await;
            continue;
        }
        match pool.fill(alive.mdt_index).await {
            Ok(()) => {
                alive.more.notify_waiters();
                if pool.level() < pool.batch.get() / 2 {
                    // The OST is nearly full and gave fewer than asked for.
                    drop(alive);
                    sleep(RETRY_PAUSE).await;
                }
            }
            Err(status) => {
                tracing::debug!(ost = pool.ost_index, %status, "no new objects");
                drop(alive);
                sleep(RETRY_PAUSE).await;
            }
        }
    }
}

/// Background: asks for the free space.
async fn keep_measured(objects: Weak<Objects>, pool: Rc<Pool>) {
    loop {
        let Some(alive) = objects.upgrade().filter(|objects| !objects.stopped.get()) else { return };
        let pause = match timeout(ANSWER_TIMEOUT, pool.client.statfs()).await {
            Ok(Ok(space)) => {
                if pool.space.replace(Some((space.total_bytes, space.free_bytes))).is_none() {
                    alive.more.notify_waiters();
                }
                measure_pause(space.free_bytes, alive.params.ost_statfs_interval())
            }
            // Away: the last known figures stay, the state of the connection says the rest.
            Ok(Err(_)) | Err(_) => RETRY_PAUSE,
        };
        drop(alive);
        sleep(pause).await;
    }
}

/// How long a figure of free space is good: no longer than a fast writer needs to make it wrong, so that new files stop
/// going to an OST about when it is full.
fn measure_pause(free_bytes: u64, interval: Duration) -> Duration {
    let filled_in = Duration::from_millis(free_bytes / FILLED_BYTES_PER_MS);
    filled_in.clamp(MEASURE_PAUSE_MIN.min(interval), interval)
}

/// Background: destroys what the log lists for this OST. The log is read through at start and when memory did not hold all
/// of it; not for each batch, because what was deleted lately slows a scan down.
async fn keep_destroying(objects: Weak<Objects>, pool: Rc<Pool>) {
    loop {
        let Some(alive) = objects.upgrade().filter(|objects| !objects.stopped.get()) else { return };
        let doomed = pool.take_doomed();
        let done = if !doomed.is_empty() {
            destroy(&alive, &pool, doomed).await
        } else if pool.read_log.take() {
            let done = destroy_listed(&alive, &pool).await;
            pool.read_log.set(pool.read_log.get() || done.is_err());
            done
        } else {
            drop(alive);
            pool.destroy.notified().await;
            sleep(DESTROY_PAUSE).await;
            continue;
        };
        if let Err(status) = done {
            tracing::debug!(ost = pool.ost_index, %status, "objects wait to be destroyed");
            drop(alive);
            sleep(RETRY_PAUSE).await;
        }
    }
}

/// Reads the log through and destroys what it lists.
async fn destroy_listed(objects: &Objects, pool: &Pool) -> Result<(), Status> {
    // Shorter than any key of this OST, so before all of them.
    let mut after = pool.ost_index.to_be_bytes().to_vec();
    loop {
        let page = objects.store.scan(disk::DESTROYS, Some(&after), DESTROY_BATCH).await.map_err(status_of)?;
        let mut listed = Vec::new();
        let mut end = page.len() < DESTROY_BATCH;
        for (key, _) in page {
            match disk::parse_key_destroy(&key) {
                Some((ost_index, object)) if ost_index == pool.ost_index => listed.push(object),
                Some(_) => {
                    end = true;
                    break;
                }
                None => tracing::error!(?key, "a key in the destroy log means nothing"),
            }
            after = key;
        }
        if !listed.is_empty() {
            destroy(objects, pool, listed).await?;
        }
        if end || objects.stopped.get() {
            return Ok(());
        }
    }
}

/// Destroys objects and takes them off the log. If it fails they are destroyed another time.
async fn destroy(objects: &Objects, pool: &Pool, listed: Vec<Fid>) -> Result<(), Status> {
    let store = &objects.store;
    let attempt = async {
        // Power loss must not bring a file back whose bytes are gone.
        store.wait(store.last_transno(), Durability::Stable).await.map_err(status_of)?;
        let answer = timeout(ANSWER_TIMEOUT, pool.client.destroy(listed.clone())).await;
        answer.map_err(|_| Status::ETIMEDOUT)?.map_err(Status::from)?;
        let delete = |object| Op::Delete { index: disk::DESTROYS, key: disk::key_destroy(pool.ost_index, object) };
        let ops = listed.iter().copied().map(delete).collect();
        store.submit(Transaction { ops }).await.map_err(status_of)
    };
    let done = attempt.await.map(|_| ());
    if done.is_err() {
        pool.read_log.set(true);
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nearly_full_ost_is_looked_at_often() {
        let interval = Duration::from_secs(5);
        assert_eq!(measure_pause(1 << 40, interval), interval);
        assert_eq!(measure_pause(1_000_000_000, interval), Duration::from_millis(500));
        assert_eq!(measure_pause(0, interval), MEASURE_PAUSE_MIN);
        let often = Duration::from_millis(10);
        assert_eq!(measure_pause(0, often), often);
    }
}
