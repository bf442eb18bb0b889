//! A client's locks at one target: what it holds, what uses it, what must go.
//!
//! ```text
//!                 use/release              begin_revoke, expire
//!   add ──► Held ◄───────────► Held, used ───────────────────────► Held, used, revoked
//!            │ begin_revoke, expire                                     │ last release
//!            ▼                                                          ▼
//!        Cancelling: write back, invalidate, send Cancel ──► removed ──► (cookie remembered as gone)
//! ```
//!
//! A lock in `Cancelling` matches nothing new, but is still held: what was cached under it is written back under it.
//!
//! Events and replies race. A revoke may come before the reply that names the lock: it is kept while an enqueue of that
//! resource is under way ([`LockCache::enqueue_started`]), and the lock starts its life revoked. A reply may name a lock that
//! was cancelled after the server wrote it: such a cookie is never taken in again ([`Added::Gone`]). No cookie ever names
//! two locks. A grant by event may even come before the reply that says `waiting`: add it, unused; when that reply comes,
//! [`LockCache::waited_for`] tells what has become of it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use nacre_wire::Fid;
use nacre_wire::ldlm::{Granted, Mode, Policy};

use crate::mode::covers;
use crate::policy;

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub struct CacheLimits {
    /// Unused locks kept, oldest go first (`lru_size`).
    pub unused_max: usize,
    /// Unused locks are given back after so long (`lru_max_age`).
    pub unused_age_max: Duration,
}

impl Default for CacheLimits {
    fn default() -> CacheLimits {
        CacheLimits { unused_max: 20_000, unused_age_max: Duration::from_secs(3900) }
    }
}

/// Answer to [`LockCache::add`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// Held; if a use was asked for, it counts.
    Held,
    /// Held, and already revoked: do with it the one thing it was wanted for, release it, then cancel it. Without a use it
    /// is in `Cancelling` at once: cancel it now.
    Revoked,
    /// The lock was cancelled before this answer came: it is not held. Enqueue again.
    Gone,
}

/// Answer to [`LockCache::begin_revoke`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revoked {
    /// Nobody uses it; it is in `Cancelling`: write back, invalidate, cancel.
    CancelNow,
    /// The last [`LockCache::release`] will say so.
    AfterUse,
    /// On its way already, or the reply that names it is awaited.
    Known,
    /// Nobody here knows it: send the Cancel, so that the server does not wait for it.
    Unknown,
}

/// Answer to [`LockCache::waited_for`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// The event will come.
    NotYet,
    /// It has come: [`LockCache::use_lock`] works.
    Held,
    /// It has come, and the lock has been revoked since: enqueue again.
    Gone,
}

/// The locks held at one target.
#[derive(Default)]
pub struct LockCache {
    limits: CacheLimits,
    held: BTreeMap<u64, Held>,
    by_resource: BTreeMap<Fid, Vec<u64>>,
    /// Unused locks, oldest first.
    unused: BTreeSet<(Duration, u64)>,
    /// Enqueues under way, and revokes that came for locks not known yet.
    awaited: BTreeMap<Fid, Awaited>,
    gone: Tombstones,
}

#[derive(Clone, Copy)]
struct Held {
    resource: Fid,
    lock: Granted,
    uses: u32,
    state: State,
    used_at: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Held,
    Revoked,
    Cancelling,
}

#[derive(Default)]
struct Awaited {
    enqueues: u32,
    early: BTreeSet<u64>,
}

impl LockCache {
    /// An empty cache.
    pub fn new(limits: CacheLimits) -> LockCache {
        LockCache { limits, ..LockCache::default() }
    }

    /// Finds a lock that protects what is wanted and counts a use of it; [`LockCache::release`] ends the use.
    pub fn match_lock(&mut self, resource: Fid, mode: Mode, wanted: &Policy) -> Option<u64> {
        let cookie = self.peek(resource, mode, wanted)?;
        self.use_lock(cookie).then_some(cookie)
    }

    /// As [`LockCache::match_lock`], without a use: whether what is cached is good now.
    pub fn peek(&self, resource: Fid, mode: Mode, wanted: &Policy) -> Option<u64> {
        let matches = |cookie: &&u64| {
            self.held.get(cookie).is_some_and(|held| {
                held.state == State::Held && covers(held.lock.mode, mode) && policy::contains(&held.lock.policy, wanted)
            })
        };
        self.by_resource.get(&resource)?.iter().find(matches).copied()
    }

    /// Counts a use of a lock that is held and not being cancelled. Says whether it is.
    pub fn use_lock(&mut self, cookie: u64) -> bool {
        let Some(held) = self.held.get_mut(&cookie) else { return false };
        if held.state == State::Cancelling {
            return false;
        }
        held.uses += 1;
        self.unused.remove(&(held.used_at, cookie));
        true
    }

    /// Ends a use. `true`: it was the last use of a lock that is to go, now in `Cancelling`: write back, invalidate, cancel.
    #[must_use = "a revoked lock must be cancelled by whoever used it last"]
    pub fn release(&mut self, now: Duration, cookie: u64) -> bool {
        // Gone with `clear`.
        let Some(held) = self.held.get_mut(&cookie) else { return false };
        debug_assert!(held.uses > 0, "lock {cookie:#x} released more often than used");
        held.uses = held.uses.saturating_sub(1);
        if held.uses > 0 {
            return false;
        }
        if held.state == State::Revoked {
            held.state = State::Cancelling;
            return true;
        }
        held.used_at = now;
        if held.state == State::Held {
            self.unused.insert((now, cookie));
        }
        false
    }

    /// An enqueue of this resource goes out, or an operation whose reply may carry locks on it.
    pub fn enqueue_started(&mut self, resource: Fid) {
        self.awaited.entry(resource).or_default().enqueues += 1;
    }

    /// Its reply has been taken in (with [`LockCache::add`]), or there is none. Returns the revoked locks that no reply
    /// named: send Cancel for them.
    #[must_use = "the server waits for these to be cancelled"]
    pub fn enqueue_ended(&mut self, resource: Fid) -> Vec<u64> {
        let Some(awaited) = self.awaited.get_mut(&resource) else { return Vec::new() };
        awaited.enqueues = awaited.enqueues.saturating_sub(1);
        if awaited.enqueues > 0 {
            return Vec::new();
        }
        let early = self.awaited.remove(&resource).map(|awaited| awaited.early).unwrap_or_default();
        early.iter().for_each(|cookie| self.gone.insert(*cookie));
        early.into_iter().collect()
    }

    /// A reply says that this lock is waited for: whether its grant has come already, as an event.
    pub fn waited_for(&self, cookie: u64) -> Waited {
        match self.held.get(&cookie) {
            Some(held) if held.state != State::Cancelling => Waited::Held,
            None if !self.gone.contains(cookie) => Waited::NotYet,
            _ => Waited::Gone,
        }
    }

    /// Takes in a lock that a reply or an event granted; `used`: with one use. A lock already held is kept (and used).
    pub fn add(&mut self, now: Duration, resource: Fid, lock: Granted, used: bool) -> Added {
        if self.gone.contains(lock.cookie) {
            return Added::Gone;
        }
        let early = self.awaited.get_mut(&resource).is_some_and(|awaited| awaited.early.remove(&lock.cookie));
        let cookie = lock.cookie;
        if let Some(held) = self.held.get_mut(&cookie) {
            if held.state == State::Cancelling {
                return Added::Gone;
            }
            let was = held.state;
            if used {
                self.use_lock(cookie);
            }
            return if was == State::Held { Added::Held } else { Added::Revoked };
        }
        let state = match (early, used) {
            (false, _) => State::Held,
            (true, true) => State::Revoked,
            (true, false) => State::Cancelling,
        };
        self.held.insert(cookie, Held { resource, lock, uses: u32::from(used), state, used_at: now });
        self.by_resource.entry(resource).or_default().push(cookie);
        if state == State::Held && !used {
            self.unused.insert((now, cookie));
        }
        if early { Added::Revoked } else { Added::Held }
    }

    /// The server wants a lock back, or the client itself gives it up.
    pub fn begin_revoke(&mut self, resource: Fid, cookie: u64) -> Revoked {
        let Some(held) = self.held.get_mut(&cookie) else {
            if self.gone.contains(cookie) {
                // The Cancel is under way or has been answered.
                return Revoked::Known;
            }
            return match self.awaited.get_mut(&resource) {
                Some(awaited) => {
                    awaited.early.insert(cookie);
                    Revoked::Known
                }
                None => {
                    // It will be cancelled: whatever names it later is too late.
                    self.gone.insert(cookie);
                    Revoked::Unknown
                }
            };
        };
        if held.state != State::Held {
            return Revoked::Known;
        }
        if held.uses > 0 {
            held.state = State::Revoked;
            return Revoked::AfterUse;
        }
        held.state = State::Cancelling;
        self.unused.remove(&(held.used_at, cookie));
        Revoked::CancelNow
    }

    /// The lock is given back: what was cached under it is gone, the Cancel is about to be sent (or a conversion has
    /// replaced it).
    pub fn remove(&mut self, cookie: u64) -> Option<(Fid, Granted)> {
        let held = self.held.remove(&cookie)?;
        self.unused.remove(&(held.used_at, cookie));
        if let Some(there) = self.by_resource.get_mut(&held.resource) {
            there.retain(|other| *other != cookie);
            if there.is_empty() {
                self.by_resource.remove(&held.resource);
            }
        }
        self.gone.insert(cookie);
        Some((held.resource, held.lock))
    }

    /// Unused locks over the limit or too old, now in `Cancelling`: write back, invalidate, cancel. At most `batch`.
    pub fn expire(&mut self, now: Duration, batch: usize) -> Vec<u64> {
        let mut expired = Vec::new();
        while expired.len() < batch {
            let Some(&(used_at, cookie)) = self.unused.first() else { break };
            let old = now.saturating_sub(used_at) >= self.limits.unused_age_max;
            if !old && self.unused.len() <= self.limits.unused_max {
                break;
            }
            self.unused.pop_first();
            if let Some(held) = self.held.get_mut(&cookie) {
                held.state = State::Cancelling;
                expired.push(cookie);
            }
        }
        expired
    }

    /// When [`LockCache::expire`] will have something to do because of age.
    pub fn next_expiry(&self) -> Option<Duration> {
        self.unused.first().map(|(used_at, _)| *used_at + self.limits.unused_age_max)
    }

    /// The lock of a cookie, in whatever state.
    pub fn get(&self, cookie: u64) -> Option<(Fid, Granted)> {
        self.held.get(&cookie).map(|held| (held.resource, held.lock))
    }

    /// All locks of one resource, in whatever state.
    pub fn of_resource(&self, resource: Fid) -> impl Iterator<Item = Granted> {
        let cookies = self.by_resource.get(&resource).into_iter().flatten();
        cookies.filter_map(|cookie| self.held.get(cookie)).map(|held| held.lock)
    }

    /// Everything held, for [`nacre_wire::ldlm::ReplayLocks`] after a server restart. Locks in `Cancelling` are in it: what
    /// is cached under them is still being written back.
    pub fn replay_list(&self) -> Vec<(Fid, Granted)> {
        self.held.values().map(|held| (held.resource, held.lock)).collect()
    }

    /// Forgets everything: the server has evicted this client. Returns what was held, so that what was cached under it is
    /// dropped. Uses that are under way end without effect.
    pub fn clear(&mut self) -> Vec<(Fid, Granted)> {
        let held = std::mem::take(&mut self.held);
        self.by_resource.clear();
        self.unused.clear();
        self.awaited.values_mut().for_each(|awaited| awaited.early.clear());
        held.into_iter()
            .map(|(cookie, held)| {
                self.gone.insert(cookie);
                (held.resource, held.lock)
            })
            .collect()
    }

    /// Locks held.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Locks that nothing uses.
    pub fn unused_len(&self) -> usize {
        self.unused.len()
    }

    /// Changes the limits; the next [`LockCache::expire`] goes by them.
    pub fn set_limits(&mut self, limits: CacheLimits) {
        self.limits = limits;
    }
}

/// The cookies given back last. A reply older than so many cancels does not exist: a session has far fewer commands.
#[derive(Default)]
struct Tombstones {
    set: BTreeSet<u64>,
    order: VecDeque<u64>,
}

const TOMBSTONES_MAX: usize = 64 << 10;

impl Tombstones {
    fn contains(&self, cookie: u64) -> bool {
        self.set.contains(&cookie)
    }

    fn insert(&mut self, cookie: u64) {
        if !self.set.insert(cookie) {
            return;
        }
        self.order.push_back(cookie);
        if self.order.len() > TOMBSTONES_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.set.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OBJECT: Fid = Fid::new(7, 1);
    const ALL: Policy = Policy::Extent { start: 0, end: u64::MAX };

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn lock(cookie: u64, mode: Mode) -> Granted {
        Granted { cookie, mode, policy: Policy::Extent { start: 0, end: 99 } }
    }

    #[test]
    fn matches_by_mode_and_range_and_counts_uses() {
        let mut cache = LockCache::default();
        assert_eq!(cache.add(at(0), OBJECT, lock(1, Mode::Pr), false), Added::Held);
        let inside = Policy::Extent { start: 10, end: 20 };
        assert_eq!(cache.match_lock(OBJECT, Mode::Pw, &inside), None);
        assert_eq!(cache.match_lock(OBJECT, Mode::Pr, &ALL), None);
        assert_eq!(cache.match_lock(OBJECT, Mode::Pr, &inside), Some(1));
        assert_eq!(cache.unused_len(), 0);
        assert_eq!(cache.begin_revoke(OBJECT, 1), Revoked::AfterUse);
        assert_eq!(cache.match_lock(OBJECT, Mode::Pr, &inside), None, "a revoked lock takes no new uses");
        assert!(cache.release(at(1), 1));
        assert_eq!(cache.remove(1), Some((OBJECT, lock(1, Mode::Pr))));
        assert!(cache.is_empty());
    }

    #[test]
    fn a_revoke_before_the_reply_is_not_lost() {
        let mut cache = LockCache::default();
        assert_eq!(cache.begin_revoke(OBJECT, 5), Revoked::Unknown);
        cache.enqueue_started(OBJECT);
        assert_eq!(cache.begin_revoke(OBJECT, 6), Revoked::Known);
        assert_eq!(cache.begin_revoke(OBJECT, 7), Revoked::Known);
        assert_eq!(cache.add(at(0), OBJECT, lock(6, Mode::Pw), true), Added::Revoked);
        assert_eq!(cache.enqueue_ended(OBJECT), vec![7], "what no reply named is cancelled all the same");
        assert!(cache.release(at(0), 6));
        // Without a use it is to be cancelled at once.
        cache.enqueue_started(OBJECT);
        assert_eq!(cache.begin_revoke(OBJECT, 8), Revoked::Known);
        assert_eq!(cache.add(at(0), OBJECT, lock(8, Mode::Pw), false), Added::Revoked);
        assert!(!cache.use_lock(8));
        assert!(cache.enqueue_ended(OBJECT).is_empty());
    }

    #[test]
    fn a_grant_before_the_reply_that_says_waiting() {
        let mut cache = LockCache::default();
        cache.enqueue_started(OBJECT);
        assert_eq!(cache.waited_for(3), Waited::NotYet);
        cache.add(at(0), OBJECT, lock(3, Mode::Pw), false);
        assert_eq!(cache.waited_for(3), Waited::Held);
        assert_eq!(cache.begin_revoke(OBJECT, 3), Revoked::CancelNow);
        assert_eq!(cache.waited_for(3), Waited::Gone);
        cache.remove(3);
        assert_eq!(cache.waited_for(3), Waited::Gone);
    }

    #[test]
    fn a_reply_after_the_cancel_gives_nothing() {
        let mut cache = LockCache::default();
        cache.add(at(0), OBJECT, lock(1, Mode::Pw), false);
        assert_eq!(cache.begin_revoke(OBJECT, 1), Revoked::CancelNow);
        assert_eq!(cache.add(at(0), OBJECT, lock(1, Mode::Pw), true), Added::Gone);
        cache.remove(1);
        assert_eq!(cache.add(at(0), OBJECT, lock(1, Mode::Pw), true), Added::Gone);
        assert_eq!(cache.begin_revoke(OBJECT, 1), Revoked::Known);
    }

    #[test]
    fn unused_locks_go_by_age_and_number_oldest_first() {
        let mut cache = LockCache::new(CacheLimits { unused_max: 2, unused_age_max: at(100) });
        for cookie in 1..=4 {
            cache.add(at(cookie), OBJECT, lock(cookie, Mode::Pr), false);
        }
        assert!(cache.use_lock(1));
        assert_eq!(cache.expire(at(5), 10), vec![2]);
        assert_eq!(cache.expire(at(103), 1), vec![3]);
        assert_eq!(cache.next_expiry(), Some(at(104)));
        assert!(!cache.release(at(103), 1));
        assert_eq!(cache.expire(at(104), 10), vec![4]);
        assert_eq!(cache.replay_list().len(), 4, "locks being cancelled are still held");
    }

    #[test]
    fn eviction_forgets_all_and_open_uses_end_quietly() {
        let mut cache = LockCache::default();
        cache.add(at(0), OBJECT, lock(1, Mode::Pw), true);
        assert_eq!(cache.clear(), vec![(OBJECT, lock(1, Mode::Pw))]);
        assert!(!cache.release(at(1), 1));
        assert_eq!(cache.add(at(1), OBJECT, lock(1, Mode::Pw), false), Added::Gone);
    }
}
