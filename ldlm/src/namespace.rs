//! A server's locks: who holds what, who waits for what, who has been asked to give way.
//!
//! ```text
//!              enqueue                       all conflicts gone
//!   (nothing) ────────► Waiting ─────────────────────────────► Granted ──► cancel, evict ──► (nothing)
//!       │                  └─ cancel, evict, refuse ─► (nothing)  │ ▲
//!       └─ enqueue, nobody in the way ────────────────────────────┘ │ a conflict is enqueued: Revoke, clock starts
//!                                                                   └─ not cancelled in time: Evict{client}
//! ```
//!
//! Waiters are served in order: a request waits for every conflicting lock that is held *and* for every conflicting
//! request before it. One exception keeps a client from waiting for itself: an operation on behalf of client C passes
//! a waiter that C's own locks hold up anyway.
//!
//! Flocks follow the rules of fcntl(2) and flock(2) instead: a request passes earlier waiters if nothing *held* is in its
//! way, as it does on a local filesystem.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use nacre_wire::ldlm::{Enqueue, EnqueueFlags, Granted, Ibits, Mode, Policy};
use nacre_wire::{Fid, Status};

use crate::flock::{Flock, FlockOwner, FlockTable};
use crate::mode::{compatible, covers, writes};
use crate::{extent, ibits, policy};

/// A holder of locks, as the service numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(pub u64);

impl ClientId {
    /// The server itself, for its own operations: never revoked, never evicted.
    pub const SERVER: ClientId = ClientId(0);
}

/// How long holders may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From a revoke to its cancel, while the client is connected. I/O under the lock starts it again.
    pub callback_timeout: Duration,
    /// Likewise, from the end of the client's link.
    pub callback_timeout_gone: Duration,
    /// A client whose link is gone keeps locks that nobody wants for so long.
    pub disconnect_grace: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            callback_timeout: Duration::from_secs(30),
            callback_timeout_gone: Duration::from_secs(5),
            disconnect_grace: Duration::from_secs(30),
        }
    }
}

/// What the caller must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A waiting lock has been granted.
    Grant {
        /// To whom; [`ClientId::SERVER`] for the server's own.
        client: ClientId,
        /// The lock.
        granted: Granted,
        /// Where.
        resource: Fid,
    },
    /// Ask a holder to give way.
    Revoke {
        /// The holder.
        client: ClientId,
        /// The lock.
        cookie: u64,
        /// Where.
        resource: Fid,
        /// What is wanted.
        wanted: Mode,
    },
    /// A waiting lock will never be granted.
    Refuse {
        /// Who waited.
        client: ClientId,
        /// For what.
        cookie: u64,
        /// Why.
        status: Status,
    },
    /// The client has lost everything here: forget its session and whatever else it had.
    Evict {
        /// Which.
        client: ClientId,
    },
}

/// Answer to an enqueue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enqueued {
    /// Held now. An unlock (NL) of a flock is granted with cookie 0.
    Granted(Granted),
    /// Queued; [`Action::Grant`] or [`Action::Refuse`] will name the cookie.
    Waiting {
        /// The lock to be.
        cookie: u64,
    },
    /// Not granted, not queued.
    Refused(Status),
    /// TEST: the lock in the way (a flock's policy tells its owner's pid). GLIMPSE: somebody is in the way, ask
    /// [`Namespace::glimpse_targets`]; the cookie is 0.
    Conflict(Granted),
}

/// What an operation of the server asks for.
#[derive(Clone, Copy, Debug)]
pub struct LocalRequest {
    /// Where.
    pub resource: Fid,
    /// Strength.
    pub mode: Mode,
    /// Extent; no flock.
    pub policy: Policy,
    /// The client whose own locks do not conflict.
    pub on_behalf_of: Option<ClientId>,
    /// NOWAIT or TEST.
    pub flags: EnqueueFlags,
}

/// Counters, for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Locks held now (flocks not counted).
    pub granted: u64,
    /// Requests waiting now.
    pub waiting: u64,
    /// Resources with anything on them now.
    pub resources: u64,
    /// Enqueues so far.
    pub enqueues: u64,
    /// Revokes sent so far.
    pub revokes: u64,
    /// Clients evicted so far.
    pub evictions: u64,
}

/// One target's locks.
pub struct Namespace {
    limits: Limits,
    next_cookie: u64,
    /// Looked up, never iterated: the order of a HashMap is not the simulator's to repeat.
    resources: HashMap<Fid, Resource>,
    /// Where a client's lock is. The server's own are found by their resource. Never iterated.
    index: HashMap<u64, Fid>,
    clients: BTreeMap<ClientId, Client>,
    /// Revoked, not cancelled yet: holder and when it was asked.
    revoking: BTreeMap<u64, (ClientId, Duration)>,
    flock_waits: BTreeMap<FlockOwner, BTreeSet<(Fid, u64)>>,
    stats: Stats,
}

#[derive(Default)]
struct Client {
    gone_since: Option<Duration>,
    /// Everything in `index` that is its own.
    cookies: BTreeSet<u64>,
    /// Resources where it may hold flocks.
    flocks: BTreeSet<Fid>,
    /// Flocks granted by event: what a cancel that crosses the grant takes back, and what a reconnect tells again.
    flock_grants: VecDeque<(Fid, Granted)>,
    /// Refusals told by event: what a reconnect tells again.
    refused: VecDeque<(u64, Status)>,
}

/// How many flock grants are remembered per client; as many may be under way when its link breaks.
const FLOCK_GRANTS_MAX: usize = 1024;

/// How many refusals are remembered per client.
const REFUSED_MAX: usize = 1024;

#[derive(Default)]
struct Resource {
    granted: Vec<Lock>,
    waiting: VecDeque<Lock>,
    flocks: FlockTable,
    flock_waiting: VecDeque<FlockWaiter>,
}

#[derive(Clone, Copy)]
struct Lock {
    cookie: u64,
    client: ClientId,
    on_behalf_of: Option<ClientId>,
    mode: Mode,
    policy: Policy,
    /// The extent may grow as it is granted.
    grows: bool,
    replaces: u64,
    xid: u64,
    /// Granted after waiting: the client learns it by an event, which a broken link may lose.
    by_event: bool,
    /// What it was asked to give way to.
    revoked: Option<Mode>,
}

#[derive(Clone, Copy)]
struct FlockWaiter {
    cookie: u64,
    xid: u64,
    lock: Flock,
}

impl Namespace {
    /// An empty namespace. `incarnation` grows with every start of the target, so that cookies of an earlier life, which
    /// clients replay, are not given out again.
    pub fn new(limits: Limits, incarnation: u64) -> Namespace {
        Namespace {
            limits,
            // 2^36 locks per life before the range of the next life is touched; `fresh_cookie` steps over what is in use.
            next_cookie: ((incarnation & 0x0fff_ffff) << 36) + 1,
            resources: HashMap::new(),
            index: HashMap::new(),
            clients: BTreeMap::new(),
            revoking: BTreeMap::new(),
            flock_waits: BTreeMap::new(),
            stats: Stats::default(),
        }
    }

    /// Asks for a lock for a client. `xid` names the request (0: nothing does): an enqueue that is sent again with the same
    /// number finds the lock it made the first time.
    pub fn enqueue(
        &mut self,
        now: Duration,
        client: ClientId,
        xid: u64,
        request: &Enqueue,
        out: &mut Vec<Action>,
    ) -> Enqueued {
        debug_assert!(client != ClientId::SERVER);
        self.stats.enqueues += 1;
        if !policy::is_valid(&request.policy) {
            return Enqueued::Refused(Status::EINVAL);
        }
        if let Some(flock) = Flock::from_wire(client, request.mode, &request.policy) {
            return self.enqueue_flock(now, xid, request, flock, out);
        }
        let exact = request.flags.intersects(EnqueueFlags::EXACT);
        // Only what is held can be given in exchange.
        let replaced = self.held(client, request.replaces).filter(|(at, _)| *at == request.resource);
        let lock = Lock {
            cookie: 0,
            client,
            on_behalf_of: None,
            mode: request.mode,
            policy: request.policy,
            grows: !exact && matches!(request.policy, Policy::Extent { .. }),
            replaces: replaced.map_or(0, |(_, lock)| lock.cookie),
            xid,
            by_event: false,
            revoked: None,
        };
        if let Some(known) = self.resent(request.resource, &lock) {
            return known;
        }
        self.enqueue_lock(now, request.resource, lock, request.flags, out)
    }

    /// Asks for a lock for an operation of the server. Locks that `on_behalf_of` itself holds do not conflict; other
    /// operations on its behalf do. Given back by [`Namespace::release_local`].
    pub fn enqueue_local(&mut self, now: Duration, request: LocalRequest, out: &mut Vec<Action>) -> Enqueued {
        let LocalRequest { resource, mode, policy, on_behalf_of, flags } = request;
        self.stats.enqueues += 1;
        if !policy::is_valid(&policy) || matches!(policy, Policy::Flock { .. }) {
            return Enqueued::Refused(Status::EINVAL);
        }
        let lock = Lock {
            cookie: 0,
            client: ClientId::SERVER,
            on_behalf_of,
            mode,
            policy,
            grows: false,
            replaces: 0,
            xid: 0,
            by_event: false,
            revoked: None,
        };
        self.enqueue_lock(now, resource, lock, flags, out)
    }

    /// Grants a client as many of the bits as nobody stands against, asking nobody to give way: for locks that ride along
    /// with a reply. Operations on this client's behalf do not stand against it. `None`: none are free.
    pub fn try_ibits(&mut self, client: ClientId, resource: Fid, mode: Mode, bits: Ibits) -> Option<Granted> {
        let lock = Lock {
            cookie: 0,
            client,
            on_behalf_of: None,
            mode,
            policy: Policy::Ibits(bits),
            grows: false,
            replaces: 0,
            xid: 0,
            by_event: false,
            revoked: None,
        };
        if bits.is_empty() {
            return None;
        }
        if let Some(granted) = self.covering(resource, &lock) {
            return Some(granted);
        }
        let free = match self.resources.get(&resource) {
            None => bits,
            Some(there) => {
                let others = there.granted.iter().chain(&there.waiting).filter(|other| !same_party(other, &lock));
                let others = others.map(|other| match other.policy {
                    Policy::Ibits(theirs) => (other.mode, theirs),
                    _ => (other.mode, Ibits::all()),
                });
                ibits::free_bits(bits, mode, others)
            }
        };
        if free.is_empty() {
            return None;
        }
        self.stats.enqueues += 1;
        Some(self.grant_new(resource, Lock { policy: Policy::Ibits(free), ..lock }))
    }

    /// Gives a client's lock back, granted or waiting. Unknown cookies, and those of others, are ignored: the server may
    /// have forgotten first.
    pub fn cancel(&mut self, now: Duration, client: ClientId, cookie: u64, out: &mut Vec<Action>) {
        if let Some(state) = self.clients.get_mut(&client) {
            if let Some(at) = state.flock_grants.iter().position(|(_, granted)| granted.cookie == cookie) {
                // The caller gave up as the grant was on its way: it does not know that it holds the range.
                if let Some((resource, granted)) = state.flock_grants.remove(at) {
                    self.unlock_flock(now, client, resource, &granted, out);
                }
                return;
            }
            if !state.cookies.contains(&cookie) {
                return;
            }
        }
        let Some(resource) = self.forget(client, cookie) else { return };
        let Some(there) = self.resources.get_mut(&resource) else { return };
        if let Some(at) = there.flock_waiting.iter().position(|waiter| waiter.cookie == cookie) {
            if let Some(waiter) = there.flock_waiting.remove(at) {
                self.stats.waiting -= 1;
                self.forget_flock_wait(waiter.lock.owner, resource, cookie);
            }
        } else {
            self.take_out(resource, cookie);
        }
        self.reprocess(now, resource, out);
    }

    /// Gives one of the server's own locks back, granted or waiting.
    pub fn release_local(&mut self, now: Duration, resource: Fid, cookie: u64, out: &mut Vec<Action>) {
        self.take_out(resource, cookie);
        self.reprocess(now, resource, out);
    }

    /// The lock a client names, while it is granted.
    pub fn held(&self, client: ClientId, cookie: u64) -> Option<(Fid, Granted)> {
        let resource = *self.index.get(&cookie)?;
        let lock = self.resources.get(&resource)?.granted.iter().find(|lock| lock.cookie == cookie)?;
        (lock.client == client).then_some((resource, granted(lock)))
    }

    /// The client works under this lock: a revoke that it has not answered is not held against it yet.
    pub fn prolong(&mut self, now: Duration, client: ClientId, cookie: u64) {
        if let Some((holder, since)) = self.revoking.get_mut(&cookie)
            && *holder == client
        {
            *since = now;
        }
    }

    /// The client's link has ended; it keeps its locks for the grace time.
    pub fn disconnect(&mut self, now: Duration, client: ClientId) {
        self.clients.entry(client).or_default().gone_since.get_or_insert(now);
    }

    /// The client is back in time. What it may have missed is told again: grants, refusals and revokes.
    pub fn reconnect(&mut self, now: Duration, client: ClientId, out: &mut Vec<Action>) {
        let Some(state) = self.clients.get_mut(&client) else { return };
        state.gone_since = None;
        for (resource, granted) in &state.flock_grants {
            out.push(Action::Grant { client, granted: *granted, resource: *resource });
        }
        out.extend(state.refused.iter().map(|&(cookie, status)| Action::Refuse { client, cookie, status }));
        for &cookie in &state.cookies {
            let Some(&resource) = self.index.get(&cookie) else { continue };
            let Some(there) = self.resources.get(&resource) else { continue };
            let Some(lock) = there.granted.iter().find(|lock| lock.cookie == cookie) else { continue };
            if lock.by_event {
                out.push(Action::Grant { client, granted: granted(lock), resource });
            }
            if let Some(wanted) = lock.revoked {
                self.revoking.insert(cookie, (client, now));
                out.push(Action::Revoke { client, cookie, resource, wanted });
            }
        }
    }

    /// Takes everything from a client. Says so with [`Action::Evict`] before the grants that follow from it.
    pub fn evict(&mut self, now: Duration, client: ClientId, out: &mut Vec<Action>) {
        self.stats.evictions += 1;
        out.push(Action::Evict { client });
        self.remove_client(now, client, out);
    }

    /// A client says goodbye: as [`Namespace::evict`], without an [`Action::Evict`].
    pub fn remove_client(&mut self, now: Duration, client: ClientId, out: &mut Vec<Action>) {
        let Some(state) = self.clients.remove(&client) else { return };
        let mut touched = state.flocks;
        for cookie in state.cookies {
            self.revoking.remove(&cookie);
            let Some(resource) = self.index.remove(&cookie) else { continue };
            touched.insert(resource);
            self.take_out(resource, cookie);
        }
        for resource in &touched {
            let Some(there) = self.resources.get_mut(resource) else { continue };
            there.flocks.remove_client(client);
            let before = there.flock_waiting.len();
            there.flock_waiting.retain(|waiter| waiter.lock.owner.client != client);
            self.stats.waiting -= (before - there.flock_waiting.len()) as u64;
        }
        self.flock_waits.retain(|owner, _| owner.client != client);
        for resource in touched {
            self.reprocess(now, resource, out);
        }
    }

    /// Takes a lock that a client held before the server went away. Nobody is asked; a lock that cannot be, because another
    /// client holds what conflicts, is refused (ESTALE): its client must drop what it cached under it.
    pub fn replay(&mut self, client: ClientId, resource: Fid, lock: Granted) -> Result<(), Status> {
        if !policy::is_valid(&lock.policy) {
            return Err(Status::EINVAL);
        }
        if let Some(flock) = Flock::from_wire(client, lock.mode, &lock.policy) {
            let there = self.resources.entry(resource).or_default();
            if there.flocks.first_conflict(&flock).is_some() {
                return Err(Status::ESTALE);
            }
            there.flocks.set(flock);
            self.clients.entry(client).or_default().flocks.insert(resource);
            return Ok(());
        }
        if let Some((held_at, held)) = self.held(client, lock.cookie) {
            // Sent again.
            return if held_at == resource && held == lock { Ok(()) } else { Err(Status::EINVAL) };
        }
        if lock.cookie == 0 || self.index.contains_key(&lock.cookie) {
            return Err(Status::EINVAL);
        }
        let replayed = Lock {
            cookie: lock.cookie,
            client,
            on_behalf_of: None,
            mode: lock.mode,
            policy: lock.policy,
            grows: false,
            replaces: 0,
            xid: 0,
            by_event: false,
            revoked: None,
        };
        let there = self.resources.get(&resource);
        if there
            .is_some_and(|there| there.granted.iter().any(|held| held.client != client && conflicts(held, &replayed)))
        {
            return Err(Status::ESTALE);
        }
        self.remember(client, lock.cookie, resource);
        self.resources.entry(resource).or_default().push_granted(replayed);
        self.stats.granted += 1;
        Ok(())
    }

    /// Refuses everybody who waits for a resource (it is gone). What is held stays.
    pub fn refuse_waiters(&mut self, resource: Fid, status: Status, out: &mut Vec<Action>) {
        let Some(there) = self.resources.get_mut(&resource) else { return };
        let waiters: Vec<(ClientId, u64)> = there.waiting.drain(..).map(|lock| (lock.client, lock.cookie)).collect();
        let flocks: Vec<FlockWaiter> = there.flock_waiting.drain(..).collect();
        self.stats.waiting -= (waiters.len() + flocks.len()) as u64;
        for waiter in &flocks {
            self.forget_flock_wait(waiter.lock.owner, resource, waiter.cookie);
        }
        let flocks = flocks.iter().map(|waiter| (waiter.lock.owner.client, waiter.cookie));
        for (client, cookie) in waiters.into_iter().chain(flocks) {
            self.forget(client, cookie);
            if let Some(state) = self.clients.get_mut(&client) {
                if state.refused.len() == REFUSED_MAX {
                    state.refused.pop_front();
                }
                state.refused.push_back((cookie, status));
            }
            out.push(Action::Refuse { client, cookie, status });
        }
        self.drop_if_idle(resource);
    }

    /// Evicts whoever has had its time.
    pub fn tick(&mut self, now: Duration, out: &mut Vec<Action>) {
        let late = |deadline: Duration| deadline <= now;
        let mut evicted: BTreeSet<ClientId> = BTreeSet::new();
        for (client, since) in self.revoking.values() {
            if late(self.callback_deadline(*client, *since)) {
                evicted.insert(*client);
            }
        }
        for (client, state) in &self.clients {
            if state.gone_since.is_some_and(|since| late(since + self.limits.disconnect_grace)) {
                evicted.insert(*client);
            }
        }
        for client in evicted {
            self.evict(now, client, out);
        }
    }

    /// When [`Namespace::tick`] will have something to do; `None`: not before another call.
    pub fn next_deadline(&self) -> Option<Duration> {
        let revoked = self.revoking.values().map(|(client, since)| self.callback_deadline(*client, *since));
        let gone = self.clients.values().filter_map(|client| client.gone_since);
        revoked.chain(gone.map(|since| since + self.limits.disconnect_grace)).min()
    }

    /// Whom to ask for size and times that the server does not know: of each client other than `asking` that may have
    /// written, the write lock that reaches furthest.
    pub fn glimpse_targets(&self, resource: Fid, asking: ClientId) -> Vec<(ClientId, u64)> {
        let mut best: BTreeMap<ClientId, (u64, u64)> = BTreeMap::new();
        let Some(there) = self.resources.get(&resource) else { return Vec::new() };
        for lock in &there.granted {
            if lock.client == asking || lock.client == ClientId::SERVER || !writes(lock.mode) {
                continue;
            }
            let end = if let Policy::Extent { end, .. } = lock.policy { end } else { u64::MAX };
            let entry = best.entry(lock.client).or_insert((end, lock.cookie));
            if end > entry.0 {
                *entry = (end, lock.cookie);
            }
        }
        best.into_iter().map(|(client, (_, cookie))| (client, cookie)).collect()
    }

    /// Whether anybody holds or waits for anything there.
    pub fn is_idle(&self, resource: Fid) -> bool {
        !self.resources.contains_key(&resource)
    }

    /// Whether the client is known here and its link is gone.
    pub fn is_gone(&self, client: ClientId) -> bool {
        self.clients.get(&client).is_some_and(|state| state.gone_since.is_some())
    }

    /// The limits in force.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Changes the limits; they hold for what is under way too.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Counters.
    pub fn stats(&self) -> Stats {
        Stats { resources: self.resources.len() as u64, ..self.stats }
    }
}

/// Locks with modes: plain, extents, bits.
impl Namespace {
    /// The answer to a request that was sent before.
    fn resent(&self, resource: Fid, wanted: &Lock) -> Option<Enqueued> {
        let there = self.resources.get(&resource).filter(|_| wanted.xid != 0)?;
        let same = |lock: &&Lock| lock.client == wanted.client && lock.xid == wanted.xid;
        if let Some(lock) = there.granted.iter().find(same) {
            return Some(Enqueued::Granted(granted(lock)));
        }
        there.waiting.iter().find(same).map(|lock| Enqueued::Waiting { cookie: lock.cookie })
    }

    /// What the client holds already that covers the request, so that locks that ride along with replies do not pile up. A
    /// lock under revoke is not given again. The client may be giving it back by itself: then it takes no second lock
    /// from the answer, which is only a lock it does not get; who *asks* for a lock must be given one that lasts.
    fn covering(&self, resource: Fid, wanted: &Lock) -> Option<Granted> {
        let there = self.resources.get(&resource)?;
        let covering = there.granted.iter().find(|lock| {
            lock.client == wanted.client
                && lock.revoked.is_none()
                && covers(lock.mode, wanted.mode)
                && policy::contains(&lock.policy, &wanted.policy)
        })?;
        Some(granted(covering))
    }

    fn enqueue_lock(
        &mut self,
        now: Duration,
        resource: Fid,
        lock: Lock,
        flags: EnqueueFlags,
        out: &mut Vec<Action>,
    ) -> Enqueued {
        let blocker = self.resources.get(&resource).and_then(|there| there.blocker(&lock, there.waiting.len()));
        let Some(blocker) = blocker else {
            if flags.contains(EnqueueFlags::TEST) {
                return Enqueued::Granted(Granted { cookie: 0, mode: lock.mode, policy: lock.policy });
            }
            let granted = self.grant_new(resource, lock);
            if lock.replaces != 0 {
                // The new lock may leave room that the old one did not.
                self.reprocess(now, resource, out);
            }
            return Enqueued::Granted(granted);
        };
        if flags.contains(EnqueueFlags::TEST) {
            return Enqueued::Conflict(blocker);
        }
        if flags.contains(EnqueueFlags::GLIMPSE) {
            return Enqueued::Conflict(Granted { cookie: 0, ..blocker });
        }
        if flags.contains(EnqueueFlags::NOWAIT) {
            return Enqueued::Refused(Status::EAGAIN);
        }
        let lock = Lock { cookie: self.fresh_cookie(), ..lock };
        self.remember(lock.client, lock.cookie, resource);
        self.resources.entry(resource).or_default().waiting.push_back(lock);
        self.stats.waiting += 1;
        self.revoke_for(now, resource, &lock, out);
        Enqueued::Waiting { cookie: lock.cookie }
    }

    /// Grants a lock that nobody stands against.
    fn grant_new(&mut self, resource: Fid, lock: Lock) -> Granted {
        let lock = Lock { cookie: self.fresh_cookie(), ..lock };
        self.remember(lock.client, lock.cookie, resource);
        self.place(resource, lock)
    }

    /// Puts a lock among the granted, grown, in the place of the one it replaces.
    fn place(&mut self, resource: Fid, mut lock: Lock) -> Granted {
        if lock.replaces != 0 && self.index.get(&lock.replaces) == Some(&resource) {
            let own = |held: &Lock| held.cookie == lock.replaces && held.client == lock.client;
            let there = self.resources.entry(resource).or_default();
            if there.granted.iter().any(own) {
                self.forget(lock.client, lock.replaces);
                self.take_out(resource, lock.replaces);
            }
        }
        let there = self.resources.entry(resource).or_default();
        if let (true, Policy::Extent { start, end }) = (lock.grows, lock.policy) {
            let others = there.granted.iter().chain(&there.waiting).filter_map(|other| match other.policy {
                Policy::Extent { start, end } => Some((other.mode, (start, end))),
                _ => None,
            });
            let (start, end) = extent::grow((start, end), lock.mode, others);
            lock.policy = Policy::Extent { start, end };
        }
        there.push_granted(lock);
        self.stats.granted += 1;
        granted(&lock)
    }

    /// Something of the resource went away: grants whoever can be granted now, in order.
    fn reprocess(&mut self, now: Duration, resource: Fid, out: &mut Vec<Action>) {
        let mut at = 0;
        while let Some(there) = self.resources.get_mut(&resource) {
            let Some(lock) = there.waiting.get(at).copied() else { break };
            if there.blocker(&lock, at).is_some() {
                // Who was granted just now may stand against it and does not know yet.
                self.revoke_for(now, resource, &lock, out);
                at += 1;
                continue;
            }
            there.waiting.remove(at);
            self.stats.waiting -= 1;
            let granted = self.place(resource, Lock { by_event: true, ..lock });
            out.push(Action::Grant { client: lock.client, granted, resource });
            if lock.replaces != 0 {
                at = 0;
            }
        }
        self.reprocess_flocks(resource, out);
        self.drop_if_idle(resource);
    }

    /// Asks the holders that stand against `wanted` to give way, each once.
    fn revoke_for(&mut self, now: Duration, resource: Fid, wanted: &Lock, out: &mut Vec<Action>) {
        let Some(there) = self.resources.get_mut(&resource) else { return };
        for held in &mut there.granted {
            if held.client == ClientId::SERVER || held.revoked.is_some() || !conflicts(held, wanted) {
                continue;
            }
            held.revoked = Some(wanted.mode);
            self.revoking.insert(held.cookie, (held.client, now));
            self.stats.revokes += 1;
            out.push(Action::Revoke { client: held.client, cookie: held.cookie, resource, wanted: wanted.mode });
        }
    }

    fn callback_deadline(&self, client: ClientId, since: Duration) -> Duration {
        let connected = since + self.limits.callback_timeout;
        match self.clients.get(&client).and_then(|state| state.gone_since) {
            Some(gone) => connected.min(since.max(gone) + self.limits.callback_timeout_gone),
            None => connected,
        }
    }

    fn fresh_cookie(&mut self) -> u64 {
        loop {
            let cookie = self.next_cookie;
            self.next_cookie = self.next_cookie.wrapping_add(1).max(1);
            if !self.index.contains_key(&cookie) {
                return cookie;
            }
        }
    }

    fn remember(&mut self, client: ClientId, cookie: u64, resource: Fid) {
        if client != ClientId::SERVER {
            self.index.insert(cookie, resource);
            self.clients.entry(client).or_default().cookies.insert(cookie);
        }
    }

    /// Takes a client's lock out of all tables but its resource's.
    fn forget(&mut self, client: ClientId, cookie: u64) -> Option<Fid> {
        self.clients.get_mut(&client)?.cookies.remove(&cookie);
        self.revoking.remove(&cookie);
        self.index.remove(&cookie)
    }

    /// Takes a lock out of its resource.
    fn take_out(&mut self, resource: Fid, cookie: u64) {
        let Some(there) = self.resources.get_mut(&resource) else { return };
        if let Some(at) = there.granted.iter().position(|lock| lock.cookie == cookie) {
            there.granted.swap_remove(at);
            self.stats.granted -= 1;
        } else if let Some(at) = there.waiting.iter().position(|lock| lock.cookie == cookie) {
            there.waiting.remove(at);
            self.stats.waiting -= 1;
        }
    }

    fn drop_if_idle(&mut self, resource: Fid) {
        if self.resources.get(&resource).is_some_and(Resource::is_idle) {
            self.resources.remove(&resource);
        }
    }
}

impl Resource {
    /// What stands against `wanted`, which is or would be the waiter at `position`: a lock that is held, or a request
    /// before it.
    fn blocker(&self, wanted: &Lock, position: usize) -> Option<Granted> {
        if let Some(held) = self.granted.iter().find(|held| conflicts(held, wanted)) {
            return Some(granted(held));
        }
        let before = self.waiting.iter().take(position).find(|waiter| {
            conflicts(waiter, wanted) && !wanted.on_behalf_of.is_some_and(|client| self.is_held_up_by(client, waiter))
        })?;
        Some(granted(before))
    }

    /// Whether a lock of `client` is what `waiter` waits for.
    fn is_held_up_by(&self, client: ClientId, waiter: &Lock) -> bool {
        self.granted.iter().any(|held| held.client == client && conflicts(held, waiter))
    }

    fn push_granted(&mut self, lock: Lock) {
        // Most resources have one lock, and an MDT has a million resources: a Vec would begin with room for four.
        if self.granted.is_empty() {
            self.granted.reserve_exact(1);
        }
        self.granted.push(lock);
    }

    fn is_idle(&self) -> bool {
        self.granted.is_empty() && self.waiting.is_empty() && self.flocks.is_empty() && self.flock_waiting.is_empty()
    }
}

fn conflicts(there: &Lock, wanted: &Lock) -> bool {
    !compatible(there.mode, wanted.mode)
        && policy::intersects(&there.policy, &wanted.policy)
        && !same_party(there, wanted)
        && (wanted.replaces == 0 || there.cookie != wanted.replaces || there.client != wanted.client)
}

/// A client, and the server working for it, do not stand in each other's way. Two operations of the server do, and so do
/// two locks of one client.
fn same_party(a: &Lock, b: &Lock) -> bool {
    a.on_behalf_of == Some(b.client) || b.on_behalf_of == Some(a.client)
}

fn granted(lock: &Lock) -> Granted {
    Granted { cookie: lock.cookie, mode: lock.mode, policy: lock.policy }
}

mod flocks;
#[cfg(test)]
mod tests;
