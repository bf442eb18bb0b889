//! Flocks in a namespace: no modes and no line to stand in, but ranges that split and merge, and deadlocks to be seen.

use std::collections::BTreeSet;
use std::time::Duration;

use nacre_wire::ldlm::{Enqueue, EnqueueFlags, Granted, Mode};
use nacre_wire::{Fid, Status};

use super::{Action, ClientId, Enqueued, FLOCK_GRANTS_MAX, FlockWaiter, Namespace};
use crate::flock::{Flock, FlockOwner};

impl Namespace {
    pub(super) fn enqueue_flock(
        &mut self,
        now: Duration,
        xid: u64,
        request: &Enqueue,
        wanted: Flock,
        out: &mut Vec<Action>,
    ) -> Enqueued {
        let (owner, resource) = (wanted.owner, request.resource);
        let nothing = Granted { cookie: 0, mode: request.mode, policy: request.policy };
        if request.mode == Mode::Nl {
            self.unlock_flock(now, owner.client, resource, &nothing, out);
            return Enqueued::Granted(nothing);
        }
        let there = self.resources.entry(resource).or_default();
        if request.flags.contains(EnqueueFlags::TEST) {
            let conflict = there.flocks.first_conflict(&wanted);
            self.drop_if_idle(resource);
            return match conflict {
                Some(held) => Enqueued::Conflict(Granted { cookie: 0, mode: held.mode(), policy: held.policy() }),
                None => Enqueued::Granted(nothing),
            };
        }
        let resent = |waiter: &&FlockWaiter| xid != 0 && waiter.xid == xid && waiter.lock.owner == owner;
        if let Some(waiter) = there.flock_waiting.iter().find(resent) {
            return Enqueued::Waiting { cookie: waiter.cookie };
        }
        // flock(2): a conversion is not atomic, the old lock goes first, even if the new one is then refused.
        let converts = owner.bsd && there.flocks.iter().any(|held| held.owner == owner && held.write != wanted.write);
        if converts {
            there.flocks.unlock(owner, 0, u64::MAX);
        }
        let answer = if there.flocks.first_conflict(&wanted).is_none() {
            there.flocks.set(wanted);
            let cookie = self.fresh_cookie();
            self.clients.entry(owner.client).or_default().flocks.insert(resource);
            Enqueued::Granted(Granted { cookie, ..nothing })
        } else if request.flags.contains(EnqueueFlags::NOWAIT) {
            Enqueued::Refused(Status::EAGAIN)
        } else if !owner.bsd && self.would_deadlock(resource, &wanted) {
            Enqueued::Refused(Status::EDEADLK)
        } else {
            let cookie = self.fresh_cookie();
            self.remember(owner.client, cookie, resource);
            self.flock_waits.entry(owner).or_default().insert((resource, cookie));
            let there = self.resources.entry(resource).or_default();
            there.flock_waiting.push_back(FlockWaiter { cookie, xid, lock: wanted });
            self.stats.waiting += 1;
            Enqueued::Waiting { cookie }
        };
        // A conversion or a downgrade may have made room for others.
        self.reprocess_flocks(resource, out);
        self.drop_if_idle(resource);
        answer
    }

    pub(super) fn unlock_flock(
        &mut self,
        now: Duration,
        client: ClientId,
        resource: Fid,
        lock: &Granted,
        out: &mut Vec<Action>,
    ) {
        let Some(flock) = Flock::from_wire(client, lock.mode, &lock.policy) else { return };
        if let Some(there) = self.resources.get_mut(&resource) {
            there.flocks.unlock(flock.owner, flock.start, flock.end);
        }
        if let Some(state) = self.clients.get_mut(&client) {
            // Grants that this undoes are history: neither to be told again nor to be taken back.
            state.flock_grants.retain(|(at, granted)| {
                let told = Flock::from_wire(client, granted.mode, &granted.policy);
                *at != resource || told.is_none_or(|told| told.owner != flock.owner)
            });
        }
        self.reprocess(now, resource, out);
    }

    pub(super) fn reprocess_flocks(&mut self, resource: Fid, out: &mut Vec<Action>) {
        let mut at = 0;
        while let Some(there) = self.resources.get_mut(&resource) {
            let Some(waiter) = there.flock_waiting.get(at).copied() else { break };
            if there.flocks.first_conflict(&waiter.lock).is_some() {
                at += 1;
                continue;
            }
            there.flock_waiting.remove(at);
            there.flocks.set(waiter.lock);
            self.stats.waiting -= 1;
            let client = waiter.lock.owner.client;
            self.forget(client, waiter.cookie);
            self.forget_flock_wait(waiter.lock.owner, resource, waiter.cookie);
            let granted = Granted { cookie: waiter.cookie, mode: waiter.lock.mode(), policy: waiter.lock.policy() };
            let state = self.clients.entry(client).or_default();
            state.flocks.insert(resource);
            if state.flock_grants.len() == FLOCK_GRANTS_MAX {
                state.flock_grants.pop_front();
            }
            state.flock_grants.push_back((resource, granted));
            out.push(Action::Grant { client, granted, resource });
            // An upgrade that was granted may be a downgrade of a part: earlier waiters may go now.
            at = 0;
        }
    }

    pub(super) fn forget_flock_wait(&mut self, owner: FlockOwner, resource: Fid, cookie: u64) {
        if let Some(waits) = self.flock_waits.get_mut(&owner) {
            waits.remove(&(resource, cookie));
            if waits.is_empty() {
                self.flock_waits.remove(&owner);
            }
        }
    }

    /// Whether the owners that `wanted` would wait for wait, through whomever, for its owner.
    fn would_deadlock(&self, resource: Fid, wanted: &Flock) -> bool {
        let mut seen: BTreeSet<FlockOwner> = BTreeSet::new();
        let mut next = vec![(resource, *wanted)];
        while let Some((resource, waiting)) = next.pop() {
            let Some(there) = self.resources.get(&resource) else { continue };
            for holder in there.flocks.conflicts(&waiting) {
                if holder.owner == wanted.owner {
                    return true;
                }
                if !seen.insert(holder.owner) {
                    continue;
                }
                for (at, cookie) in self.flock_waits.get(&holder.owner).into_iter().flatten() {
                    let Some(there) = self.resources.get(at) else { continue };
                    let waits = there.flock_waiting.iter().filter(|waiter| waiter.cookie == *cookie);
                    next.extend(waits.map(|waiter| (*at, waiter.lock)));
                }
            }
        }
        false
    }
}
