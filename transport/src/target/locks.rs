//! `LockServer`: a target's lock namespace, its clients' sessions, and the events between them. OST and MDT each own one.
//!
//! - A client's enqueue is answered at once. Where it must wait the answer says so, and the grant follows as an event.
//! - An operation of the server waits for its lock ([`LockServer::local`]) and holds it as a guard; dropping the guard, or
//!   the future that waits for it, gives the lock back.
//! - Events reach a client in the order in which they happened; those that carry attributes hold later ones back.
//! - A client whose link is gone keeps what it has for the grace time; when it is evicted, [`LockHooks::evicted`] is called
//!   after its locks are gone, and every later request of its sessions is answered NO_SESSION.
//!
//! ```text
//! attach(uuid, session) ─► connected ──detach──► gone ──attach in time──► connected, resumed: true
//!                            │                    └─ grace over, or asked to give way and did not ─┐
//!                            ├─ remove (OP_DISCONNECT) ─► forgotten                                ▼
//!                            └─ asked to give way and did not ───────────────────────────────► evicted
//! ```

use std::cell::{Cell, RefCell};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::Future;
use std::rc::{Rc, Weak};
use std::time::Duration;

use futures_util::future::{LocalBoxFuture, join_all};
use nacre_ldlm::namespace::Stats;
use nacre_ldlm::{Action, ClientId, Enqueued, Limits, LocalRequest, Namespace, mode};
use nacre_reactor::Env;
use nacre_wire::ldlm::{Enqueue, EnqueueFlags, Event, GlimpseReply, Granted, Ibits, Mode, Policy};
use nacre_wire::{Attr, Fid, Status, Uuid};
use tokio::sync::{Notify, oneshot};
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

use crate::Session;

/// What the service adds.
pub trait LockHooks {
    /// The attributes that travel with a grant (lock value block), as they are when it is sent. `None`: no such object, or
    /// the service sends none.
    fn value(&self, resource: Fid) -> LocalBoxFuture<'static, Option<Attr>>;

    /// The client has lost all its locks and its sessions: drop whatever else it had.
    fn evicted(&self, client: ClientId, uuid: Uuid);
}

/// Answer to a client's enqueue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockReply {
    /// Held now.
    Granted(Granted),
    /// Queued: reply `waiting: true`; mode and policy are as asked.
    Waiting(Granted),
    /// TEST found this holder, or GLIMPSE found somebody in the way (cookie 0): ask [`LockServer::glimpse`].
    Conflict(Granted),
}

/// A client's attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Its number here, until it is evicted or says goodbye.
    pub client: ClientId,
    /// It was known: its locks are still held.
    pub resumed: bool,
}

/// The locks of one target.
pub struct LockServer {
    env: Env,
    state: RefCell<State>,
    hooks: RefCell<Option<Weak<dyn LockHooks>>>,
    glimpse_timeout: Cell<Duration>,
    /// There may be a deadline earlier than the one that the tick task sleeps to.
    deadlines: Rc<Notify>,
}

struct State {
    locks: Namespace,
    next_client: u64,
    by_uuid: BTreeMap<Uuid, ClientId>,
    clients: BTreeMap<ClientId, Client>,
    /// Sessions that may ask, by number. Looked up, never iterated.
    by_session: HashMap<u64, ClientId>,
    /// Operations of the server that wait, by cookie.
    local_waiters: HashMap<u64, oneshot::Sender<Status>>,
}

struct Client {
    uuid: Uuid,
    session: Option<Rc<Session>>,
    /// Events that wait for one before them.
    outbox: VecDeque<Outgoing>,
    pumping: bool,
    /// Glimpses under way, by lock.
    glimpses: BTreeMap<u64, Glimpse>,
}

/// A question under way. Who asks meanwhile must not be given its answer, which may be from before what they have to see:
/// they share the next question.
struct Glimpse {
    resource: Fid,
    asked: Vec<oneshot::Sender<Option<Attr>>>,
    next: Vec<oneshot::Sender<Option<Attr>>>,
}

enum Outgoing {
    Event(Event),
    GrantWithValue { granted: Granted, resource: Fid },
}

/// A lock held by an operation of the server.
#[must_use = "the lock is given back when this is dropped"]
pub struct LocalLock {
    server: Rc<LockServer>,
    resource: Fid,
    cookie: u64,
}

impl LockServer {
    /// Starts the background task of a namespace, on this reactor. `incarnation`: see [`Namespace::new`].
    pub fn new(env: Env, limits: Limits, incarnation: u64) -> Rc<LockServer> {
        let deadlines = Rc::new(Notify::new());
        let server = Rc::new(LockServer {
            env,
            state: RefCell::new(State {
                locks: Namespace::new(limits, incarnation),
                next_client: 1,
                by_uuid: BTreeMap::new(),
                clients: BTreeMap::new(),
                by_session: HashMap::new(),
                local_waiters: HashMap::new(),
            }),
            hooks: RefCell::new(None),
            glimpse_timeout: Cell::new(Duration::from_secs(10)),
            deadlines: deadlines.clone(),
        });
        spawn_local(tick_forever(Rc::downgrade(&server), deadlines));
        server
    }

    /// Sets whom to ask for attributes and to tell of evictions.
    pub fn set_hooks(&self, hooks: Weak<dyn LockHooks>) {
        *self.hooks.borrow_mut() = Some(hooks);
    }

    /// How long a glimpse waits for a client, with or without a link (10 s unless set). After that it is answered without.
    pub fn set_glimpse_timeout(&self, limit: Duration) {
        self.glimpse_timeout.set(limit);
    }

    /// Changes the limits.
    pub fn set_limits(&self, limits: Limits) {
        self.state.borrow_mut().locks.set_limits(limits);
        self.deadlines.notify_one();
    }

    /// The limits in force.
    pub fn limits(&self) -> Limits {
        self.state.borrow().locks.limits()
    }

    /// Counters of the namespace.
    pub fn stats(&self) -> Stats {
        self.state.borrow().locks.stats()
    }
}

/// Clients and their sessions.
impl LockServer {
    /// A CONNECT was taken: the client speaks through this session from now on; an older session of it may ask no more.
    pub fn attach(self: &Rc<Self>, uuid: Uuid, session: &Rc<Session>) -> Attached {
        let attached = {
            let mut guard = self.state.borrow_mut();
            let state = &mut *guard;
            let known = state.by_uuid.get(&uuid).copied();
            let client = known.unwrap_or_else(|| {
                let client = ClientId(state.next_client);
                state.next_client += 1;
                state.by_uuid.insert(uuid, client);
                client
            });
            let entry = state.clients.entry(client).or_insert_with(|| Client {
                uuid,
                session: None,
                outbox: VecDeque::new(),
                pumping: false,
                glimpses: BTreeMap::new(),
            });
            if let Some(old) = entry.session.replace(session.clone()) {
                state.by_session.remove(&old.id);
            }
            // What it was told through the old session is told again below.
            entry.outbox.clear();
            // Questions that went through the old session are asked again: what the client has not written yet counts.
            for glimpse in entry.glimpses.values_mut() {
                let next = std::mem::take(&mut glimpse.next);
                glimpse.asked.extend(next);
            }
            state.by_session.insert(session.id, client);
            Attached { client, resumed: known.is_some() }
        };
        session.client_uuid.set(Some(uuid));
        if attached.resumed {
            self.act(|locks, now, out| locks.reconnect(now, attached.client, out));
            let questions: Vec<(u64, Fid)> = {
                let state = self.state.borrow();
                let glimpses = state.clients.get(&attached.client).into_iter().flat_map(|entry| &entry.glimpses);
                glimpses.map(|(cookie, glimpse)| (*cookie, glimpse.resource)).collect()
            };
            for (cookie, resource) in questions {
                self.send(attached.client, Outgoing::Event(Event::Glimpse { cookie, resource }));
            }
        }
        attached
    }

    /// The session's link ended. Nothing happens if the client has another one by now.
    pub fn detach(self: &Rc<Self>, session: &Session) {
        let client = {
            let mut state = self.state.borrow_mut();
            let Some(client) = state.by_session.remove(&session.id) else { return };
            let Some(entry) = state.clients.get_mut(&client) else { return };
            entry.session = None;
            entry.outbox.clear();
            client
        };
        self.act(|locks, now, _| locks.disconnect(now, client));
        self.deadlines.notify_one();
    }

    /// The client says goodbye: its locks and sessions are gone at once. [`LockHooks::evicted`] is not called.
    pub fn remove(self: &Rc<Self>, client: ClientId) {
        self.state.borrow_mut().forget_client(client);
        self.act(|locks, now, out| locks.remove_client(now, client, out));
    }

    /// Throws a client out.
    pub fn evict(self: &Rc<Self>, client: ClientId) {
        self.act(|locks, now, out| locks.evict(now, client, out));
    }

    /// Who speaks through this session; NO_SESSION if it never connected, was evicted or has a newer session.
    pub fn client(&self, session: &Session) -> Result<ClientId, Status> {
        self.state.borrow().by_session.get(&session.id).copied().ok_or(Status::NO_SESSION)
    }

    /// The client with this UUID.
    pub fn client_of_uuid(&self, uuid: Uuid) -> Option<ClientId> {
        self.state.borrow().by_uuid.get(&uuid).copied()
    }

    /// All clients: number, UUID, where from (`None`: its link is gone).
    pub fn clients(&self) -> Vec<(ClientId, Uuid, Option<String>)> {
        let state = self.state.borrow();
        let peer = |client: &Client| client.session.as_ref().map(|session| session.peer.clone());
        state.clients.iter().map(|(id, client)| (*id, client.uuid, peer(client))).collect()
    }

    /// Tells one client something, behind what it is being told already.
    pub fn send_event(self: &Rc<Self>, client: ClientId, event: Event) {
        self.send(client, Outgoing::Event(event));
    }
}

/// Locks of clients.
impl LockServer {
    /// A client asks for a lock. `xid` is its request's number, so that asking again finds the same lock.
    pub fn enqueue(self: &Rc<Self>, client: ClientId, xid: u64, request: &Enqueue) -> Result<LockReply, Status> {
        self.must_be_known(client)?;
        match self.act(|locks, now, out| locks.enqueue(now, client, xid, request, out)) {
            Enqueued::Granted(granted) => Ok(LockReply::Granted(granted)),
            Enqueued::Waiting { cookie } => {
                Ok(LockReply::Waiting(Granted { cookie, mode: request.mode, policy: request.policy }))
            }
            Enqueued::Conflict(held) => Ok(LockReply::Conflict(held)),
            Enqueued::Refused(status) => Err(status),
        }
    }

    /// A lock for a client to ride along with a reply: those of the bits that are free, if any. Nobody is disturbed.
    pub fn try_ibits(&self, client: ClientId, resource: Fid, mode: Mode, bits: Ibits) -> Option<Granted> {
        self.must_be_known(client).ok()?;
        self.state.borrow_mut().locks.try_ibits(client, resource, mode, bits)
    }

    /// A client gives locks back.
    pub fn cancel(self: &Rc<Self>, client: ClientId, cookies: &[u64]) {
        self.act(|locks, now, out| cookies.iter().for_each(|cookie| locks.cancel(now, client, *cookie, out)));
    }

    /// A client tells what it held before this server's restart. Answers the locks that could not be taken back.
    pub fn replay(&self, client: ClientId, held: &[(Fid, Granted)]) -> Vec<(Fid, Granted)> {
        if self.must_be_known(client).is_err() {
            return held.to_vec();
        }
        let mut state = self.state.borrow_mut();
        let refused = held.iter().filter(|(resource, lock)| state.locks.replay(client, *resource, *lock).is_err());
        refused.copied().collect()
    }

    /// Where a client's lock is and what it covers, while it is held; NO_LOCK. Counts as a sign of life under the lock.
    pub fn held(&self, client: ClientId, cookie: u64) -> Result<(Fid, Granted), Status> {
        let mut state = self.state.borrow_mut();
        let held = state.locks.held(client, cookie).ok_or(Status::NO_LOCK)?;
        let now = self.env.now();
        state.locks.prolong(now, client, cookie);
        Ok(held)
    }

    /// Asks every client other than `asking` that may have unwritten changes of the object for its size and times. Whoever
    /// does not answer in time is left out: what the store knows stands for it.
    pub async fn glimpse(self: &Rc<Self>, resource: Fid, asking: ClientId) -> Vec<Attr> {
        let mut answers = Vec::new();
        let targets = self.state.borrow().locks.glimpse_targets(resource, asking);
        for (client, cookie) in targets {
            let (sender, receiver) = oneshot::channel();
            let first = {
                let mut state = self.state.borrow_mut();
                let Some(entry) = state.clients.get_mut(&client) else { continue };
                let is_there = entry.session.is_some();
                match entry.glimpses.entry(cookie) {
                    Entry::Occupied(mut under_way) => {
                        under_way.get_mut().next.push(sender);
                        false
                    }
                    Entry::Vacant(free) => {
                        free.insert(Glimpse { resource, asked: vec![sender], next: Vec::new() });
                        // Who has no link at the moment is asked when it is back: its dirty data is as good as written.
                        is_there
                    }
                }
            };
            if first {
                self.send(client, Outgoing::Event(Event::Glimpse { cookie, resource }));
            }
            answers.push(async move {
                let answer = timeout(self.glimpse_timeout.get(), receiver).await;
                if answer.is_err() {
                    self.give_up_glimpse(client, cookie);
                }
                answer.ok()?.unwrap_or(None)
            });
        }
        join_all(answers).await.into_iter().flatten().collect()
    }

    /// A client's answer to a glimpse.
    pub fn glimpse_reply(self: &Rc<Self>, client: ClientId, reply: GlimpseReply) {
        for sender in self.next_glimpse(client, reply.cookie) {
            // Who asked may have stopped waiting.
            let _ = sender.send(reply.attr.clone());
        }
    }

    /// Whether nobody holds or waits for anything there.
    pub fn is_idle(&self, resource: Fid) -> bool {
        self.state.borrow().locks.is_idle(resource)
    }

    /// Refuses all who wait for a resource: it is gone.
    pub fn refuse_waiters(self: &Rc<Self>, resource: Fid, status: Status) {
        self.act(|locks, _, out| locks.refuse_waiters(resource, status, out));
    }

    /// An operation may have waited while its client was evicted: the namespace must not hear of it again.
    fn must_be_known(&self, client: ClientId) -> Result<(), Status> {
        if self.state.borrow().clients.contains_key(&client) { Ok(()) } else { Err(Status::NO_SESSION) }
    }

    /// Somebody has stopped waiting; the question is over when nobody waits for it.
    fn give_up_glimpse(self: &Rc<Self>, client: ClientId, cookie: u64) {
        let over = {
            let state = self.state.borrow();
            let glimpse = state.clients.get(&client).and_then(|entry| entry.glimpses.get(&cookie));
            glimpse.is_some_and(|glimpse| glimpse.asked.iter().all(oneshot::Sender::is_closed))
        };
        if over {
            self.next_glimpse(client, cookie);
        }
    }

    /// A question is over, answered or given up: asks the next one, if there is one. Answers who asked this one.
    fn next_glimpse(self: &Rc<Self>, client: ClientId, cookie: u64) -> Vec<oneshot::Sender<Option<Attr>>> {
        let (asked, again) = {
            let mut state = self.state.borrow_mut();
            let Some(entry) = state.clients.get_mut(&client) else { return Vec::new() };
            let Some(Glimpse { resource, asked, mut next }) = entry.glimpses.remove(&cookie) else { return Vec::new() };
            next.retain(|sender| !sender.is_closed());
            let again = (!next.is_empty()).then_some(resource);
            if again.is_some() {
                entry.glimpses.insert(cookie, Glimpse { resource, asked: next, next: Vec::new() });
            }
            (asked, again)
        };
        if let Some(resource) = again {
            self.send(client, Outgoing::Event(Event::Glimpse { cookie, resource }));
        }
        asked
    }
}

/// Locks of the server's own operations.
impl LockServer {
    /// Takes a lock for an operation, on behalf of a client whose own locks do not conflict. Waits in line; holders are
    /// asked to give way. Refused only when the resource is gone ([`LockServer::refuse_waiters`]) or nonsense is asked.
    pub fn local(
        self: &Rc<Self>,
        resource: Fid,
        mode: Mode,
        policy: Policy,
        on_behalf_of: Option<ClientId>,
    ) -> impl Future<Output = Result<LocalLock, Status>> + use<> {
        let request = LocalRequest { resource, mode, policy, on_behalf_of, flags: EnqueueFlags::empty() };
        // In line from now on, not from the first poll.
        let answer = self.act(|locks, now, out| locks.enqueue_local(now, request, out));
        let (sender, receiver) = oneshot::channel();
        let lock = match answer {
            Enqueued::Granted(granted) => Ok((self.guard(resource, granted.cookie), false)),
            Enqueued::Waiting { cookie } => {
                self.state.borrow_mut().local_waiters.insert(cookie, sender);
                Ok((self.guard(resource, cookie), true))
            }
            Enqueued::Refused(status) => Err(status),
            Enqueued::Conflict(_) => Err(Status::EAGAIN),
        };
        async move {
            let (lock, waits) = lock?;
            if waits {
                // The sender is dropped when the lock is granted, used when it is refused.
                if let Ok(status) = receiver.await {
                    return Err(status);
                }
            }
            Ok(lock)
        }
    }

    /// Takes several locks, in the order of their FIDs so that no two operations wait for each other. Bits asked for twice
    /// on one FID are joined, under the stronger mode.
    pub async fn local_many(
        self: &Rc<Self>,
        wanted: &[(Fid, Mode, Ibits)],
        on_behalf_of: Option<ClientId>,
    ) -> Result<Vec<LocalLock>, Status> {
        let mut joined: BTreeMap<Fid, (Mode, Ibits)> = BTreeMap::new();
        for &(fid, wanted_mode, bits) in wanted {
            let entry = joined.entry(fid).or_insert((wanted_mode, bits));
            if !mode::covers(entry.0, wanted_mode) {
                entry.0 = if mode::covers(wanted_mode, entry.0) { wanted_mode } else { Mode::Ex };
            }
            entry.1 |= bits;
        }
        let mut locks = Vec::with_capacity(joined.len());
        for (fid, (mode, bits)) in joined {
            locks.push(self.local(fid, mode, Policy::Ibits(bits), on_behalf_of).await?);
        }
        Ok(locks)
    }

    fn guard(self: &Rc<Self>, resource: Fid, cookie: u64) -> LocalLock {
        LocalLock { server: self.clone(), resource, cookie }
    }
}

impl LocalLock {
    /// What is locked.
    pub fn resource(&self) -> Fid {
        self.resource
    }
}

impl Drop for LocalLock {
    fn drop(&mut self) {
        let (server, resource, cookie) = (&self.server, self.resource, self.cookie);
        server.state.borrow_mut().local_waiters.remove(&cookie);
        server.act(|locks, now, out| locks.release_local(now, resource, cookie, out));
    }
}

/// From actions to events.
impl LockServer {
    /// Does something to the namespace, then what follows from it.
    fn act<T>(self: &Rc<Self>, change: impl FnOnce(&mut Namespace, Duration, &mut Vec<Action>) -> T) -> T {
        let mut actions = Vec::new();
        let now = self.env.now();
        let result = change(&mut self.state.borrow_mut().locks, now, &mut actions);
        for action in actions {
            self.apply(action);
        }
        result
    }

    fn apply(self: &Rc<Self>, action: Action) {
        match action {
            Action::Grant { client: ClientId::SERVER, granted, .. } => {
                // Dropping the sender is the grant.
                drop(self.state.borrow_mut().local_waiters.remove(&granted.cookie));
            }
            Action::Grant { client, granted, resource } => {
                let with_value = matches!(granted.policy, Policy::Extent { .. } | Policy::Ibits(_));
                let outgoing = if with_value && self.hooks.borrow().is_some() {
                    Outgoing::GrantWithValue { granted, resource }
                } else {
                    Outgoing::Event(Event::Granted { lock: granted, resource, attr: None })
                };
                self.send(client, outgoing);
            }
            Action::Revoke { client, cookie, resource, wanted } => {
                self.send(client, Outgoing::Event(Event::Revoke { cookie, resource, wanted }));
                self.deadlines.notify_one();
            }
            Action::Refuse { client: ClientId::SERVER, cookie, status } => {
                if let Some(waiter) = self.state.borrow_mut().local_waiters.remove(&cookie) {
                    // Who waits may have been dropped just now.
                    let _ = waiter.send(status);
                }
            }
            Action::Refuse { client, cookie, status } => {
                self.send(client, Outgoing::Event(Event::Refused { cookie, status }));
            }
            Action::Evict { client } => {
                let forgotten = self.state.borrow_mut().forget_client(client);
                let hooks = self.hooks.borrow().as_ref().and_then(Weak::upgrade);
                if let (Some((uuid, peer)), Some(hooks)) = (forgotten, hooks) {
                    tracing::warn!(client = %uuid, peer, "evicted: it did not give its locks back in time");
                    hooks.evicted(client, uuid);
                }
            }
        }
    }

    fn send(self: &Rc<Self>, client: ClientId, outgoing: Outgoing) {
        let mut state = self.state.borrow_mut();
        // A client whose link is gone is told when it is back.
        let Some(entry) = state.clients.get_mut(&client) else { return };
        let Some(session) = &entry.session else { return };
        match outgoing {
            Outgoing::Event(event) if entry.outbox.is_empty() && !entry.pumping => session.send_event(event),
            outgoing => {
                entry.outbox.push_back(outgoing);
                if !entry.pumping {
                    entry.pumping = true;
                    spawn_local(self.clone().pump(client));
                }
            }
        }
    }

    /// Sends a client's events one after the other, fetching attributes as each one's turn comes.
    async fn pump(self: Rc<Self>, client: ClientId) {
        loop {
            let (session, outgoing) = {
                let mut state = self.state.borrow_mut();
                let Some(entry) = state.clients.get_mut(&client) else { return };
                match (entry.session.clone(), entry.outbox.pop_front()) {
                    (Some(session), Some(outgoing)) => (session, outgoing),
                    _ => {
                        entry.pumping = false;
                        return;
                    }
                }
            };
            // If the client changes sessions during this, the event goes to the old one and is told again in the new.
            let event = match outgoing {
                Outgoing::Event(event) => event,
                Outgoing::GrantWithValue { granted, resource } => {
                    let hooks = self.hooks.borrow().as_ref().and_then(Weak::upgrade);
                    let attr = match hooks {
                        Some(hooks) => hooks.value(resource).await,
                        None => None,
                    };
                    Event::Granted { lock: granted, resource, attr }
                }
            };
            session.send_event(event);
        }
    }
}

impl State {
    fn forget_client(&mut self, client: ClientId) -> Option<(Uuid, String)> {
        let entry = self.clients.remove(&client)?;
        self.by_uuid.remove(&entry.uuid);
        let peer = entry.session.map(|session| {
            self.by_session.remove(&session.id);
            session.peer.clone()
        });
        Some((entry.uuid, peer.unwrap_or_else(|| "gone".to_owned())))
    }
}

/// Evicts whoever is late, until the server is dropped.
async fn tick_forever(server: Weak<LockServer>, deadlines: Rc<Notify>) {
    loop {
        let Some(wait) = server.upgrade().map(|server| {
            server.act(|locks, now, out| locks.tick(now, out));
            let deadline = server.state.borrow().locks.next_deadline();
            deadline.map(|deadline| deadline.saturating_sub(server.env.now()))
        }) else {
            return;
        };
        let sooner = deadlines.notified();
        match wait {
            // Never spin, even if the clock stands still between a deadline and its tick.
            Some(wait) => drop(timeout(wait.max(TICK_MIN), sooner).await),
            None => sooner.await,
        }
        // Revokes come in crowds: one look at the deadlines serves all of them.
        sleep(TICK_MIN).await;
    }
}

const TICK_MIN: Duration = Duration::from_millis(10);

impl Drop for LockServer {
    fn drop(&mut self) {
        // The tick task sees that nobody is left.
        self.deadlines.notify_one();
    }
}

#[cfg(test)]
mod tests;
