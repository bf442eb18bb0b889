//! One OST, as a client sees it (Lustre's OSC): its locks, the space it granted, its events.
//!
//! - A lock is asked for by one task for each object at a time; others of the object wait for its end and look again. The
//!   task runs on when its caller stops waiting: the lock is then in the cache, unused.
//! - A revocation first empties the kernel's cache while the lock can still be used, because what the kernel waits for in
//!   there may be a read of ours; then the lock takes no new uses; after the last use dirty data is written, read-ahead
//!   dropped, the lock given back.
//! - Granted space is a revolving limit: dirty and travelling data together stay below it.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::rc::{Rc, Weak};
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use nacre_ldlm::LockCache;
use nacre_ldlm::cache::{Added, Revoked};
use nacre_transport::CallError;
use nacre_transport::host::{Import, ImportLink, ImportObserver};
use nacre_transport::stubs::{OstClient, replay_locks};
use nacre_wire::ldlm::{Enqueue, EnqueueFlags, Event, GlimpseReply, Granted, Mode, Policy};
use nacre_wire::session::ConnectReply;
use nacre_wire::{Attr, Fid, Status};
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::task::spawn_local;

use crate::Client;
use crate::cache::blocks;
use crate::client::run;
use crate::object::Object;
use crate::stats::add;

/// One OST.
pub(crate) struct Ost {
    /// Its index in the cluster map.
    pub index: u16,
    /// Its calls.
    pub stub: OstClient,
    /// The mount.
    pub client: Weak<Client>,
    locks: RefCell<LockCache>,
    waiting: RefCell<BTreeMap<u64, oneshot::Sender<Verdict>>>,
    /// Grants that came before the reply that names them.
    early: RefCell<BTreeMap<u64, Verdict>>,
    // Looked up by key only.
    objects: RefCell<HashMap<Fid, Weak<Object>>>,
    /// Objects with dirty data, those dirty longest first.
    pub dirty: RefCell<VecDeque<Rc<Object>>>,
    /// Wakes the write-back task.
    pub flush: Notify,
    /// Whether the write-back task runs.
    pub flushing: Cell<bool>,
    /// Writers that wait for granted space.
    pub grant_waiters: Cell<u32>,
    /// Dirty data was written or dropped.
    pub freed: Notify,
    /// Bounds write-back requests under way.
    pub rpcs: Semaphore,
    /// What `rpcs` was made for.
    pub rpcs_max: Cell<usize>,
    grant_limit: Cell<i64>,
    grant_used: Cell<u64>,
}

/// What becomes of a lone read lock that could not be made the write lock that is wanted, because others read, too.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Converts {
    /// It is given back.
    OrRevokes,
    /// It stays until the server wants it.
    OrWaits,
}

/// How a wait for a lock ended.
enum Verdict {
    Granted(Granted, Option<Attr>),
    Refused(Status),
    /// The server restarted or threw us out: ask again.
    Again,
}

/// A use of a lock; the lock stays while it lives.
pub(crate) struct LockUse {
    object: Rc<Object>,
    /// Names the lock to the server.
    pub cookie: u64,
}

impl Drop for LockUse {
    fn drop(&mut self) {
        let ost = &self.object.ost;
        let last = ost.locks.borrow_mut().release(ost.now(), self.cookie);
        self.object.users.set(self.object.users.get() - 1);
        if last {
            spawn_local(ost.clone().finish_cancel(self.cookie));
        }
    }
}

/// The whole of an object.
pub(crate) const EVERYTHING: Policy = Policy::Extent { start: 0, end: u64::MAX };

impl Ost {
    /// An OST whose import is made by `import`, which is given the observer.
    pub fn new(
        index: u16,
        client: Weak<Client>,
        rpcs_max: usize,
        import: impl FnOnce(Rc<dyn ImportObserver>) -> Rc<Import>,
    ) -> Rc<Ost> {
        Rc::new_cyclic(|me: &Weak<Ost>| Ost {
            index,
            stub: OstClient::new(import(Rc::new(Observer { ost: me.clone() }))),
            client,
            locks: RefCell::default(),
            waiting: RefCell::default(),
            early: RefCell::default(),
            objects: RefCell::default(),
            dirty: RefCell::default(),
            flush: Notify::new(),
            flushing: Cell::new(false),
            grant_waiters: Cell::new(0),
            freed: Notify::new(),
            rpcs: Semaphore::new(rpcs_max),
            rpcs_max: Cell::new(rpcs_max),
            grant_limit: Cell::new(0),
            grant_used: Cell::new(0),
        })
    }

    /// An object that is in use.
    pub fn object(&self, fid: Fid) -> Option<Rc<Object>> {
        self.objects.borrow().get(&fid).and_then(Weak::upgrade)
    }

    /// Makes an object known to events.
    pub fn register(&self, object: &Rc<Object>) {
        self.objects.borrow_mut().insert(object.fid, Rc::downgrade(object));
    }

    /// The object is not used any more: gives its locks back and forgets it.
    pub async fn let_go(self: Rc<Ost>, object: Rc<Object>) {
        let cookies: Vec<u64> = self.locks.borrow().of_resource(object.fid).map(|lock| lock.cookie).collect();
        for cookie in cookies {
            if self.locks.borrow_mut().begin_revoke(object.fid, cookie) == Revoked::CancelNow {
                self.clone().finish_cancel(cookie).await;
            }
        }
        let mut objects = self.objects.borrow_mut();
        if objects.get(&object.fid).is_some_and(|known| std::ptr::eq(known.as_ptr(), &*object)) {
            objects.remove(&object.fid);
            drop(objects);
            self.stub.forget(object.fid);
        }
    }

    /// Takes space for data about to become dirty; false if less than that is granted.
    pub fn reserve(&self, bytes: u64) -> bool {
        let used = self.grant_used.get() + bytes;
        let fits = i64::try_from(used).is_ok_and(|used| used <= self.grant_limit.get());
        if fits {
            self.grant_used.set(used);
        }
        fits
    }

    /// Gives it back, when the data has been written or dropped.
    pub fn unreserve(&self, bytes: u64) {
        self.grant_used.set(self.grant_used.get().saturating_sub(bytes));
    }

    /// The server has granted more, or taken back.
    pub fn grant_changed(&self, delta_bytes: i64) {
        self.grant_limit.set(self.grant_limit.get().saturating_add(delta_bytes));
    }

    /// Space granted for write-behind, bytes.
    pub fn grant_bytes(&self) -> u64 {
        self.grant_limit.get().max(0) as u64
    }

    /// What of it is in use.
    pub fn grant_used_bytes(&self) -> u64 {
        self.grant_used.get()
    }

    /// Whether a lock protects the whole object now, so that what is known of its attributes is true.
    pub fn holds_everything(&self, object: Fid) -> bool {
        self.locks.borrow().peek(object, Mode::Pr, &EVERYTHING).is_some()
    }

    /// The lock, in whatever state, under which dirty data of a range was written.
    pub fn write_lock_of(&self, object: Fid, range: &Range<u64>) -> Option<u64> {
        let covers = |lock: &Granted| match lock.policy {
            Policy::Extent { start, end } => {
                lock.mode >= Mode::Pw && start <= range.start && (end == u64::MAX || end + 1 >= range.end)
            }
            _ => false,
        };
        self.locks.borrow().of_resource(object).find(covers).map(|lock| lock.cookie)
    }

    /// Gets a lock on a range of an object and uses it.
    pub async fn lock(self: &Rc<Ost>, object: &Rc<Object>, mode: Mode, range: &Range<u64>) -> Result<LockUse, Status> {
        let wanted = policy_of(range);
        loop {
            if let Some(held) = self.try_lock(object, mode, &wanted) {
                return Ok(held);
            }
            if let Some(outcome) = self.clone().enqueue_alone(object, mode, wanted, Converts::OrRevokes).await {
                match outcome? {
                    Some(lock) => return Ok(lock),
                    // The server gave what we are just giving back: it will have noticed soon.
                    None => drop(tokio::time::timeout(GONE_PAUSE, object.changed.notified()).await),
                }
            }
        }
    }

    /// A write lock for pages that the kernel fills and may make dirty. The kernel holds these pages meanwhile, and a
    /// revocation waits for them: so a read lock of ours is not given up for this, and when somebody else wants one back,
    /// the pages are filled under that, to be dropped again.
    pub async fn lock_for_mapping(self: &Rc<Ost>, object: &Rc<Object>, range: &Range<u64>) -> Result<LockUse, Status> {
        let wanted = policy_of(range);
        loop {
            let changed = object.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(held) = self.try_lock(object, Mode::Pw, &wanted) {
                return Ok(held);
            }
            if object.emptying.get() > 0
                && let Some(held) = self.try_lock(object, Mode::Pr, &wanted)
            {
                return Ok(held);
            }
            let enqueued = self.clone().enqueue_alone(object, Mode::Pw, wanted, Converts::OrWaits);
            tokio::select! {
                biased;
                outcome = enqueued => if let Some(Some(lock)) = outcome.transpose()? {
                    return Ok(lock);
                },
                () = changed => {}
            }
        }
    }

    /// A use of a lock that is held already.
    pub fn try_lock(&self, object: &Rc<Object>, mode: Mode, wanted: &Policy) -> Option<LockUse> {
        let cookie = self.locks.borrow_mut().match_lock(object.fid, mode, wanted)?;
        object.users.set(object.users.get() + 1);
        Some(LockUse { object: object.clone(), cookie })
    }

    /// Brings the attributes of an object up to date: gets a read lock on all of it when nobody is in the way, or asks
    /// those who write. Waits for no lock, so the caller may use some.
    pub async fn glimpse(self: &Rc<Ost>, object: &Rc<Object>) -> Result<(), Status> {
        let (ost, object) = (self.clone(), object.clone());
        run(async move { ost.enqueue(&object, Mode::Pr, EVERYTHING, None).await.map(drop) }).await
    }

    /// Everything held, for replay.
    pub fn held(&self) -> Vec<(Fid, Granted)> {
        self.locks.borrow().replay_list()
    }

    /// Number of locks held.
    pub fn locks_held(&self) -> usize {
        self.locks.borrow().len()
    }

    /// Revokes every lock from our own side, writing back what is dirty.
    pub async fn give_all_back(self: &Rc<Ost>) {
        let held = self.held();
        let cancels = held.into_iter().filter_map(|(fid, lock)| {
            let now = self.locks.borrow_mut().begin_revoke(fid, lock.cookie) == Revoked::CancelNow;
            now.then(|| self.clone().finish_cancel(lock.cookie))
        });
        futures_util::future::join_all(cancels).await;
    }

    /// Enqueues, unless somebody does so for this object already: then waits for the end of that and answers `None`. The
    /// inner `None`: the lock came and is gone; look again.
    async fn enqueue_alone(
        self: Rc<Ost>,
        object: &Rc<Object>,
        mode: Mode,
        policy: Policy,
        converts: Converts,
    ) -> Option<Result<Option<LockUse>, Status>> {
        let ended = object.changed.notified();
        if object.enqueueing.get() {
            ended.await;
            return None;
        }
        drop(ended);
        object.enqueueing.set(true);
        let (sender, outcome) = oneshot::channel();
        let object = object.clone();
        spawn_local(async move {
            let outcome = self.enqueue(&object, mode, policy, Some(converts)).await;
            object.enqueueing.set(false);
            object.changed.notify_waiters();
            // A caller that has stopped waiting leaves the lock in the cache: the use ends here.
            drop(sender.send(outcome));
        });
        Some(outcome.await.unwrap_or(Err(Status::ESHUTDOWN)))
    }

    async fn enqueue(
        self: &Rc<Ost>,
        object: &Rc<Object>,
        mut mode: Mode,
        policy: Policy,
        converts: Option<Converts>,
    ) -> Result<Option<LockUse>, Status> {
        let glimpse = converts.is_none();
        let Some(client) = self.client.upgrade() else { return Err(Status::ESHUTDOWN) };
        let mut flags = EnqueueFlags::empty();
        let mut wanted = policy;
        let mut replaces = 0;
        if glimpse {
            add(&client.stats.glimpses, 1);
            flags |= EnqueueFlags::GLIMPSE;
            if object.fresh.get() {
                // Made here and never locked: whoever made it will write it, and nobody else can be in the way.
                mode = Mode::Pw;
            }
        } else {
            add(&client.stats.lock_enqueues, 1);
            if mode == Mode::Pw
                && let Some((old, hull)) = self.read_lock_to_convert(object.fid, &wanted)
            {
                // Kept pages and read-ahead stay good if nobody else is interested.
                replaces = old;
                wanted = hull;
                flags |= EnqueueFlags::NOWAIT;
            }
        }
        loop {
            let request = Enqueue { resource: object.fid, mode, policy: wanted, flags, replaces };
            self.locks.borrow_mut().enqueue_started(object.fid);
            object.note_question();
            let reply = self.stub.enqueue(&request).await;
            let outcome = match reply {
                Ok(reply) if reply.waiting => self.wait(reply.granted.cookie).await,
                Ok(reply) => Verdict::Granted(reply.granted, reply.attr),
                Err(error) => Verdict::Refused(error.into()),
            };
            let taken = match outcome {
                Verdict::Granted(lock, attr) => {
                    if let Some(attr) = attr {
                        object.learn(attr);
                    }
                    if replaces != 0 && lock.cookie != 0 {
                        self.locks.borrow_mut().remove(replaces);
                    }
                    // Others may have written, and not synced, until now.
                    object.stability.changed();
                    object.fresh.set(false);
                    Ok(self.take_in(object, lock, !glimpse))
                }
                Verdict::Refused(status) => Err(status),
                Verdict::Again => Err(Status::NO_SESSION),
            };
            let strays = self.locks.borrow_mut().enqueue_ended(object.fid);
            self.cancel(strays);
            object.question_answered();
            match taken {
                Err(Status::EAGAIN) if replaces != 0 => {
                    let gives_up = converts == Some(Converts::OrRevokes);
                    let now =
                        gives_up && self.locks.borrow_mut().begin_revoke(object.fid, replaces) == Revoked::CancelNow;
                    if now {
                        self.clone().finish_cancel(replaces).await;
                    }
                    flags -= EnqueueFlags::NOWAIT;
                    (replaces, wanted) = (0, policy);
                }
                Err(Status::NO_SESSION) if !client.is_closed() => {}
                other => return other,
            }
        }
    }

    fn take_in(self: &Rc<Ost>, object: &Rc<Object>, lock: Granted, used: bool) -> Option<LockUse> {
        if lock.cookie == 0 {
            return None;
        }
        let added = self.locks.borrow_mut().add(self.now(), object.fid, lock, used);
        match added {
            Added::Held | Added::Revoked if used => {
                object.users.set(object.users.get() + 1);
                Some(LockUse { object: object.clone(), cookie: lock.cookie })
            }
            Added::Revoked => {
                spawn_local(self.clone().finish_cancel(lock.cookie));
                None
            }
            Added::Held | Added::Gone => None,
        }
    }

    /// A lone read lock that the write lock wanted would meet, and what covers both.
    fn read_lock_to_convert(&self, object: Fid, wanted: &Policy) -> Option<(u64, Policy)> {
        let Policy::Extent { start, end } = *wanted else { return None };
        let locks = self.locks.borrow();
        let mut there = locks.of_resource(object);
        let (lock, None) = (there.next()?, there.next()) else { return None };
        let Policy::Extent { start: held_start, end: held_end } = lock.policy else { return None };
        let meets = lock.mode == Mode::Pr && held_start <= end && start <= held_end;
        meets.then_some((lock.cookie, Policy::Extent { start: start.min(held_start), end: end.max(held_end) }))
    }

    async fn wait(&self, cookie: u64) -> Verdict {
        if let Some(verdict) = self.early.borrow_mut().remove(&cookie) {
            return verdict;
        }
        let (sender, verdict) = oneshot::channel();
        self.waiting.borrow_mut().insert(cookie, sender);
        verdict.await.unwrap_or(Verdict::Again)
    }

    fn decide(&self, cookie: u64, verdict: Verdict) {
        let waiter = self.waiting.borrow_mut().remove(&cookie);
        match waiter {
            Some(waiter) => drop(waiter.send(verdict)),
            None => {
                let mut early = self.early.borrow_mut();
                early.insert(cookie, verdict);
                // A grant told again after a reconnect has nobody waiting for it; the oldest are such.
                if early.len() > EARLY_MAX {
                    early.pop_first();
                }
            }
        }
    }

    /// Nothing that the server held for us is there any more; what waits asks again.
    fn decide_all_again(&self) {
        self.early.borrow_mut().clear();
        // Dropping the senders says Again.
        self.waiting.borrow_mut().clear();
    }

    /// The server wants a lock back.
    async fn revoked(self: Rc<Ost>, object: Fid, cookie: u64, wanted: Mode) {
        let Some(client) = self.client.upgrade() else { return };
        add(&client.stats.lock_revokes, 1);
        if wanted == Mode::Ex
            && let Some(object) = self.object(object)
        {
            // Only the end of an object asks for so much: nobody will read what is dirty.
            object.drop_dirty(&(0..u64::MAX));
        }
        let held = self.locks.borrow().get(cookie);
        if let (Some((_, lock)), Some(object)) = (held, self.object(object)) {
            object.emptying.set(object.emptying.get() + 1);
            object.changed.notify_waiters();
            self.empty_kernel(&client, &object, &lock).await;
            object.emptying.set(object.emptying.get() - 1);
        }
        let revoked = self.locks.borrow_mut().begin_revoke(object, cookie);
        match revoked {
            Revoked::CancelNow => self.finish_cancel(cookie).await,
            Revoked::AfterUse | Revoked::Known => {}
            Revoked::Unknown => self.cancel(vec![cookie]),
        }
    }

    /// Empties the kernel's cache of what a lock protects until nothing came in meanwhile. Reads and writes go on under the
    /// lock: the kernel waits for pages that they are filling.
    async fn empty_kernel(&self, client: &Rc<Client>, object: &Rc<Object>, lock: &Granted) {
        let Policy::Extent { start, end } = lock.policy else { return };
        let range = start..end.saturating_add(1);
        for _ in 0..KERNEL_PASSES_MAX {
            if !object.kernel_may_have(&range) {
                break;
            }
            let notes = object.kernel_notes();
            client.kernel.data(object.file_fid, object.file_range(range.clone())).await;
            if object.kernel_forgot(&range, notes) && object.users.get() == 0 {
                break;
            }
        }
    }

    /// A lock in `Cancelling`: writes back what is dirty under it, drops what was read, gives it back.
    pub async fn finish_cancel(self: Rc<Ost>, cookie: u64) {
        let held = self.locks.borrow().get(cookie);
        let Some((fid, lock)) = held else { return };
        if let (Some(object), Policy::Extent { start, end }) = (self.object(fid), lock.policy) {
            let range = start..end.saturating_add(1);
            if object.kernel_may_have(&range)
                && let Some(client) = self.client.upgrade()
            {
                // Uses that were under way when the lock was closed have filled pages since. A page that waits for
                // a lock we are about to give back must not hold it up for ever.
                let notes = object.kernel_notes();
                let emptied = client.kernel.data(object.file_fid, object.file_range(range.clone()));
                if tokio::time::timeout(KERNEL_LAST_PASS_MAX, emptied).await.is_err() {
                    tracing::warn!("{}: the kernel is slow to forget {}", self.stub.import.label(), object.file_fid);
                }
                object.kernel_forgot(&range, notes);
            }
            object.flush(range.clone()).await;
            object.discard_clean(&range);
            self.locks.borrow_mut().remove(cookie);
            object.changed.notify_waiters();
        } else {
            self.locks.borrow_mut().remove(cookie);
        }
        if let Err(error) = self.stub.cancel(vec![cookie]).await {
            tracing::debug!("{}: lock {cookie:#x} not cancelled: {error}", self.stub.import.label());
        }
    }

    fn cancel(&self, cookies: Vec<u64>) {
        if cookies.is_empty() {
            return;
        }
        let stub = self.stub.clone();
        spawn_local(async move {
            if let Err(error) = stub.cancel(cookies).await {
                tracing::debug!("{}: locks not cancelled: {error}", stub.import.label());
            }
        });
    }

    async fn glimpsed(self: Rc<Ost>, object: Fid, cookie: u64) {
        let attr = self.object(object).and_then(|object| object.unwritten_attr());
        if let Err(error) = self.stub.glimpse_reply(&GlimpseReply { cookie, attr }).await {
            tracing::debug!("{}: glimpse not answered: {error}", self.stub.import.label());
        }
    }

    fn evicted(&self) {
        let lost = self.locks.borrow_mut().clear();
        self.decide_all_again();
        self.grant_limit.set(0);
        for (fid, lock) in lost {
            let (Some(object), Policy::Extent { start, end }) = (self.object(fid), lock.policy) else { continue };
            let range = start..end.saturating_add(1);
            object.lose(&range);
            if let (Some(client), true) = (self.client.upgrade(), object.kernel_may_have(&range)) {
                let file_range = object.file_range(range);
                spawn_local(async move { client.kernel.data(object.file_fid, file_range).await });
            }
        }
    }

    fn now(&self) -> Duration {
        self.client.upgrade().map_or(Duration::ZERO, |client| client.env.now())
    }
}

/// What the import tells.
struct Observer {
    ost: Weak<Ost>,
}

impl ImportObserver for Observer {
    fn event(&self, event: Event) {
        let Some(ost) = self.ost.upgrade() else { return };
        match event {
            Event::Revoke { cookie, resource, wanted } => drop(spawn_local(ost.revoked(resource, cookie, wanted))),
            Event::Granted { lock, attr, .. } => ost.decide(lock.cookie, Verdict::Granted(lock, attr)),
            Event::Refused { cookie, status } => ost.decide(cookie, Verdict::Refused(status)),
            Event::Glimpse { cookie, resource } => drop(spawn_local(ost.glimpsed(resource, cookie))),
            Event::MapChanged { .. } => {}
        }
    }

    fn will_replay(&self) -> bool {
        self.ost.upgrade().is_some_and(|ost| ost.locks_held() > 0)
    }

    fn replay(&self, link: ImportLink, _reply: ConnectReply) -> LocalBoxFuture<'static, Result<(), CallError>> {
        let ost = self.ost.upgrade();
        Box::pin(async move {
            let Some(ost) = ost else { return Ok(()) };
            let held = ost.held();
            replay_locks(&link, &held).await?;
            ost.decide_all_again();
            Ok(())
        })
    }

    fn evicted(&self) {
        if let Some(ost) = self.ost.upgrade() {
            ost.evicted();
        }
    }

    fn connected(&self, reply: &ConnectReply) {
        if let Some(ost) = self.ost.upgrade() {
            if !reply.resumed {
                ost.decide_all_again();
                // The order does not matter.
                ost.objects.borrow().values().filter_map(Weak::upgrade).for_each(|object| object.forget_attr());
            }
            ost.grant_limit.set(i64::try_from(reply.grant_bytes).unwrap_or(i64::MAX));
            ost.flush.notify_one();
        }
    }
}

/// Byte ranges are locked in whole blocks, because the kernel keeps whole pages.
pub(crate) fn policy_of(range: &Range<u64>) -> Policy {
    let range = blocks(range.clone());
    let end = if range.end == u64::MAX { u64::MAX } else { range.end - 1 };
    Policy::Extent { start: range.start, end }
}

/// Before asking again for a lock that is on its way back.
const GONE_PAUSE: Duration = Duration::from_millis(5);
/// Grants kept that nobody has asked for yet.
const EARLY_MAX: usize = 4096;
/// Rounds of emptying the kernel's cache before the lock is closed to new uses.
const KERNEL_PASSES_MAX: usize = 8;
const KERNEL_LAST_PASS_MAX: Duration = Duration::from_secs(2);
