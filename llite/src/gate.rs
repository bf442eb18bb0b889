//! Reads that fill the kernel's page cache, and invalidations of what they fill: who waits for whom.
//!
//! The kernel holds a page locked while it waits for a READ of it, and an invalidation waits for that lock. So:
//! - reads that are under way when an invalidation starts are answered while it runs (under the lock that is about to be
//!   given up: [`nacre_client::KernelCache`]);
//! - reads that arrive while it runs are held for [`HOLD_MAX`], because mostly it does not meet their pages; then they
//!   go on like the others;
//! - what was answered during a pass may have put pages behind its back, so another pass follows until one is clean.
//!
//! After that no page of the range holds anything that was read under the old lock.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// How long a new read waits for an invalidation that may not even meet it.
const HOLD_MAX: Duration = Duration::from_millis(1);
/// An invalidation gives up when for this long nothing that it could be waiting for was answered.
const STALL_MAX: Duration = Duration::from_secs(5);
/// More passes than a reader in a loop can force; the last resort against one that does.
const PASSES_MAX: u32 = 1000;

/// All inodes with reads or invalidations under way.
#[derive(Clone, Default)]
pub struct Gate {
    nodes: Rc<RefCell<BTreeMap<u64, Node>>>,
}

#[derive(Default)]
struct Node {
    next_id: u64,
    /// READs in the client.
    reads: BTreeMap<u64, Range<u64>>,
    invalidations: BTreeMap<u64, Pass>,
    changed: Rc<Notify>,
}

struct Pass {
    range: Range<u64>,
    /// READs answered since this pass started.
    answered: u64,
    progress: Instant,
}

impl Gate {
    /// A READ starts; it ends, answered or not, when the guard is dropped.
    pub async fn read(&self, node: u64, range: Range<u64>) -> Reading {
        let held_until = Instant::now() + HOLD_MAX;
        while let Some(changed) = self.invalidation_of(node, &range) {
            if tokio::time::timeout_at(held_until, changed.notified()).await.is_err() {
                break;
            }
        }
        let mut nodes = self.nodes.borrow_mut();
        let entry = nodes.entry(node).or_default();
        let id = entry.id();
        entry.reads.insert(id, range);
        Reading { gate: self.clone(), node, id }
    }

    /// Something an invalidation may wait for was answered: a page written back.
    pub fn progress(&self, node: u64) {
        if let Some(entry) = self.nodes.borrow_mut().get_mut(&node) {
            entry.invalidations.values_mut().for_each(|pass| pass.progress = Instant::now());
        }
    }

    /// Runs `pass` until no READ of the range came between. False: it was given up.
    pub async fn invalidate<P>(&self, node: u64, range: Range<u64>, mut pass: impl FnMut() -> P) -> bool
    where
        P: Future<Output = ()>,
    {
        let guard = self.start_invalidation(node, range);
        for _ in 0..PASSES_MAX {
            guard.with(|_, pass| pass.answered = 0);
            let mut running = std::pin::pin!(pass());
            loop {
                match tokio::time::timeout(STALL_MAX / 10, &mut running).await {
                    Ok(()) => break,
                    Err(_) if guard.stalled() => return false,
                    Err(_) => {}
                }
            }
            loop {
                let (answered, in_client, changed) = guard.with(|node, pass| {
                    let in_client = node.reads.values().any(|read| overlap(read, &pass.range));
                    (pass.answered, in_client, node.changed.clone())
                });
                match (answered, in_client) {
                    (0, false) => return true,
                    // Another pass now, which drops what they brought; the rest is waited for after it.
                    (1.., _) => break,
                    (0, true) => {
                        let _ = tokio::time::timeout(STALL_MAX / 10, changed.notified()).await;
                        if guard.stalled() {
                            return false;
                        }
                    }
                }
            }
        }
        false
    }

    fn invalidation_of(&self, node: u64, range: &Range<u64>) -> Option<Rc<Notify>> {
        let nodes = self.nodes.borrow();
        let entry = nodes.get(&node)?;
        entry.invalidations.values().any(|pass| overlap(&pass.range, range)).then(|| entry.changed.clone())
    }

    fn start_invalidation(&self, node: u64, range: Range<u64>) -> Invalidating {
        let mut nodes = self.nodes.borrow_mut();
        let entry = nodes.entry(node).or_default();
        let id = entry.id();
        entry.invalidations.insert(id, Pass { range, answered: 0, progress: Instant::now() });
        Invalidating { gate: self.clone(), node, id }
    }

    /// After a change of a node: wakes who waits, and forgets it when nothing is left.
    fn settle(nodes: &mut BTreeMap<u64, Node>, node: u64) {
        if let Some(entry) = nodes.get(&node) {
            entry.changed.notify_waiters();
            if entry.reads.is_empty() && entry.invalidations.is_empty() {
                nodes.remove(&node);
            }
        }
    }
}

impl Node {
    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

/// A READ in the client.
pub struct Reading {
    gate: Gate,
    node: u64,
    id: u64,
}

impl Drop for Reading {
    fn drop(&mut self) {
        let mut nodes = self.gate.nodes.borrow_mut();
        if let Some(entry) = nodes.get_mut(&self.node) {
            if let Some(range) = entry.reads.remove(&self.id) {
                for pass in entry.invalidations.values_mut().filter(|pass| overlap(&pass.range, &range)) {
                    pass.answered += 1;
                    pass.progress = Instant::now();
                }
            }
            Gate::settle(&mut nodes, self.node);
        }
    }
}

struct Invalidating {
    gate: Gate,
    node: u64,
    id: u64,
}

impl Invalidating {
    fn with<R>(&self, change: impl FnOnce(&Node, &mut Pass) -> R) -> R {
        let mut nodes = self.gate.nodes.borrow_mut();
        let entry = nodes.get_mut(&self.node).expect("kept while this guard lives");
        let mut pass = entry.invalidations.remove(&self.id).expect("kept while this guard lives");
        let result = change(entry, &mut pass);
        entry.invalidations.insert(self.id, pass);
        result
    }

    fn stalled(&self) -> bool {
        self.with(|_, pass| pass.progress.elapsed() >= STALL_MAX)
    }
}

impl Drop for Invalidating {
    fn drop(&mut self) {
        let mut nodes = self.gate.nodes.borrow_mut();
        if let Some(entry) = nodes.get_mut(&self.node) {
            entry.invalidations.remove(&self.id);
            Gate::settle(&mut nodes, self.node);
        }
    }
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, test);
    }

    #[test]
    fn a_read_answered_during_a_pass_causes_another() {
        run(async {
            let gate = Gate::default();
            let early = Cell::new(Some(gate.read(7, 0..10).await));
            let passes = Cell::new(0);
            let clean = gate
                .invalidate(7, 5..20, || {
                    passes.set(passes.get() + 1);
                    early.take();
                    async {}
                })
                .await;
            assert_eq!((clean, passes.get()), (true, 2));
            assert!(gate.nodes.borrow().is_empty());
        });
    }

    #[test]
    fn a_new_read_is_held_and_then_let_go() {
        run(async {
            let gate = Gate::default();
            let other = gate.clone();
            let read = tokio::task::spawn_local(async move {
                tokio::task::yield_now().await;
                let start = Instant::now();
                let _reading = other.read(7, 0..10).await;
                start.elapsed()
            });
            // A pass that meets the page of that read: ends only after the read does.
            let mut read = Some(read);
            let held = Rc::new(Cell::new(None));
            let clean = gate
                .invalidate(7, 0..u64::MAX, || {
                    let (read, held) = (read.take(), held.clone());
                    async move {
                        if let Some(read) = read {
                            held.set(read.await.ok());
                        }
                    }
                })
                .await;
            assert!(clean);
            let held = held.get().unwrap();
            assert!(held >= HOLD_MAX && held < 2 * HOLD_MAX + Duration::from_millis(1), "{held:?}");
        });
    }

    #[test]
    fn what_never_ends_is_given_up_and_other_ranges_do_not_matter() {
        run(async {
            let gate = Gate::default();
            let _elsewhere = gate.read(7, 100..200).await;
            assert!(gate.invalidate(7, 0..100, || async {}).await);
            let _stuck = gate.read(7, 0..10).await;
            let start = Instant::now();
            assert!(!gate.invalidate(7, 0..100, || async {}).await);
            assert!(start.elapsed() < 2 * STALL_MAX);
            assert!(!gate.invalidate(8, 0..100, std::future::pending).await);
        });
    }
}
