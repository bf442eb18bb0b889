//! fcntl(2) and flock(2) locks: granted by the MDT, remembered here to be replayed after its restart and to know at close
//! whether there is anything to give up.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use nacre_ldlm::flock::{Flock, FlockOwner};
use nacre_ldlm::{ClientId, FlockTable};
use nacre_wire::ldlm::{Enqueue, EnqueueFlags, Granted, Mode, Policy};
use nacre_wire::{Fid, Status};
use tokio::sync::oneshot;
use tokio::task::spawn_local;

use crate::api::{LockOwner, LockRange};
use crate::client::{Client, run};

/// The file locks of a mount.
#[derive(Default)]
pub(crate) struct Flocks {
    held: RefCell<BTreeMap<Fid, FlockTable>>,
    waiting: RefCell<BTreeMap<u64, oneshot::Sender<Verdict>>>,
    /// Grants that came before the reply that names them.
    early: RefCell<BTreeMap<u64, Verdict>>,
}

#[derive(Clone, Copy)]
enum Verdict {
    Granted,
    Refused(Status),
}

/// All locks of a mount are one client's here.
const SELF: ClientId = ClientId(1);

impl Flocks {
    /// What the MDT has to be told after a restart.
    pub fn replay_list(&self) -> Vec<(Fid, Granted)> {
        let held = self.held.borrow();
        let all = held.iter().flat_map(|(fid, table)| table.iter().map(move |lock| (*fid, lock)));
        all.map(|(fid, lock)| (fid, Granted { cookie: 0, mode: lock.mode(), policy: lock.policy() })).collect()
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.held.borrow().is_empty()
    }

    /// The MDT granted a lock that was waited for.
    pub fn granted(&self, cookie: u64) {
        self.decide(cookie, Verdict::Granted);
    }

    /// The MDT will never grant it.
    pub fn refused(&self, cookie: u64, status: Status) {
        self.decide(cookie, Verdict::Refused(status));
    }

    /// The MDT has forgotten who waits: ask again.
    pub fn again(&self) {
        self.early.borrow_mut().clear();
        self.waiting.borrow_mut().clear();
    }

    /// The MDT has thrown this client out: the locks are lost, as they are with every network filesystem.
    pub fn evicted(&self) {
        if !self.held.borrow().is_empty() {
            tracing::warn!("file locks were lost with the eviction by the MDT");
        }
        self.held.borrow_mut().clear();
        self.again();
    }

    fn holds(&self, fid: Fid, owner: LockOwner, bsd: bool) -> bool {
        let owner = FlockOwner { client: SELF, owner: owner.0, bsd };
        self.held.borrow().get(&fid).is_some_and(|table| table.iter().any(|lock| lock.owner == owner))
    }

    fn note(&self, fid: Fid, owner: LockOwner, lock: &LockRange) {
        let owner = FlockOwner { client: SELF, owner: owner.0, bsd: lock.bsd };
        let mut held = self.held.borrow_mut();
        let table = held.entry(fid).or_default();
        match lock.exclusive {
            Some(write) => table.set(Flock { owner, start: lock.start, end: lock.end, write, pid: lock.pid }),
            None => table.unlock(owner, lock.start, lock.end),
        }
        if table.is_empty() {
            held.remove(&fid);
        }
    }

    fn decide(&self, cookie: u64, verdict: Verdict) {
        let waiter = self.waiting.borrow_mut().remove(&cookie);
        match waiter {
            Some(waiter) => drop(waiter.send(verdict)),
            None => {
                let mut early = self.early.borrow_mut();
                early.insert(cookie, verdict);
                if early.len() > EARLY_MAX {
                    early.pop_first();
                }
            }
        }
    }

    fn wait(&self, cookie: u64) -> oneshot::Receiver<Verdict> {
        let (sender, verdict) = oneshot::channel();
        match self.early.borrow_mut().remove(&cookie) {
            Some(early) => drop(sender.send(early)),
            None => drop(self.waiting.borrow_mut().insert(cookie, sender)),
        }
        verdict
    }
}

impl Client {
    pub(crate) async fn flock_test(
        &self,
        fid: Fid,
        owner: LockOwner,
        lock: LockRange,
    ) -> Result<Option<LockRange>, Status> {
        let request = request(fid, owner, &lock, EnqueueFlags::TEST);
        let reply = self.mdt.enqueue(&request).await?;
        // Where nothing is in the way the answer is what was asked for.
        if (reply.granted.mode, reply.granted.policy) == (request.mode, request.policy) {
            return Ok(None);
        }
        let Policy::Flock { start, end, pid, bsd, .. } = reply.granted.policy else { return Err(Status::EPROTO) };
        Ok(Some(LockRange { start, end, exclusive: Some(reply.granted.mode >= Mode::Pw), pid, bsd }))
    }

    pub(crate) async fn flock_set(
        self: &Rc<Client>,
        fid: Fid,
        owner: LockOwner,
        lock: LockRange,
        wait: bool,
    ) -> Result<(), Status> {
        let flags = if wait { EnqueueFlags::empty() } else { EnqueueFlags::NOWAIT };
        if lock.bsd && lock.exclusive.is_some() {
            // A conversion gives the old lock up first, even if the new one is refused then.
            self.flocks.note(fid, owner, &LockRange { exclusive: None, ..lock });
        }
        loop {
            let mut attempt = Attempt { client: self.clone(), fid, owner, lock, state: AttemptState::Asking };
            let request = request(fid, owner, &lock, flags);
            let client = self.clone();
            // Runs on when the caller gives up, so that a lock that comes all the same is not forgotten at the MDT.
            let (sender, answer) = oneshot::channel();
            spawn_local(async move {
                let reply = client.mdt.enqueue(&request).await;
                if let Err(Ok(reply)) = sender.send(reply) {
                    client.flock_abandoned(fid, owner, lock, reply.waiting.then_some(reply.granted.cookie));
                }
            });
            let reply = match answer.await {
                Ok(reply) => reply,
                Err(_) => return Err(Status::ESHUTDOWN),
            };
            attempt.state = AttemptState::Done;
            let reply = reply?;
            if !reply.waiting {
                self.flocks.note(fid, owner, &lock);
                return Ok(());
            }
            attempt.state = AttemptState::Waiting(reply.granted.cookie);
            let verdict = self.flocks.wait(reply.granted.cookie).await;
            attempt.state = AttemptState::Done;
            match verdict {
                Ok(Verdict::Granted) => {
                    self.flocks.note(fid, owner, &lock);
                    return Ok(());
                }
                Ok(Verdict::Refused(status)) => return Err(status),
                Err(_) if self.is_closed() => return Err(Status::ESHUTDOWN),
                Err(_) => {}
            }
        }
    }

    /// Gives up all locks of an owner on a file; nothing is sent where there are none.
    pub(crate) async fn flock_drop(self: &Rc<Client>, fid: Fid, owner: LockOwner, bsd: bool) -> Result<(), Status> {
        if !self.flocks.holds(fid, owner, bsd) {
            return Ok(());
        }
        let lock = LockRange { start: 0, end: u64::MAX, exclusive: None, pid: 0, bsd };
        let client = self.clone();
        run(async move { client.flock_set(fid, owner, lock, false).await }).await
    }

    /// The caller has gone: the lock it asked for is not wanted.
    fn flock_abandoned(self: &Rc<Client>, fid: Fid, owner: LockOwner, lock: LockRange, waiting: Option<u64>) {
        match waiting {
            Some(cookie) => {
                self.flocks.waiting.borrow_mut().remove(&cookie);
                let mdt = self.mdt.clone();
                spawn_local(async move {
                    if let Err(error) = mdt.cancel(vec![cookie]).await {
                        tracing::debug!("file lock not cancelled: {error}");
                    }
                });
            }
            None => {
                let client = self.clone();
                let unlock = LockRange { exclusive: None, ..lock };
                spawn_local(async move {
                    if let Err(error) = client.flock_set(fid, owner, unlock, false).await {
                        tracing::debug!("file lock not given up: {error}");
                    }
                });
            }
        }
    }
}

/// A wait that ends when it is dropped.
struct Attempt {
    client: Rc<Client>,
    fid: Fid,
    owner: LockOwner,
    lock: LockRange,
    state: AttemptState,
}

enum AttemptState {
    /// The task that asks notices.
    Asking,
    Waiting(u64),
    Done,
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if let AttemptState::Waiting(cookie) = self.state {
            self.client.flock_abandoned(self.fid, self.owner, self.lock, Some(cookie));
        }
    }
}

fn request(fid: Fid, owner: LockOwner, lock: &LockRange, flags: EnqueueFlags) -> Enqueue {
    let mode = match lock.exclusive {
        Some(true) => Mode::Pw,
        Some(false) => Mode::Pr,
        None => Mode::Nl,
    };
    let LockRange { start, end, pid, bsd, .. } = *lock;
    let policy = Policy::Flock { owner: owner.0, start, end, pid, bsd };
    Enqueue { resource: fid, mode, policy, flags, replaces: 0 }
}

const EARLY_MAX: usize = 4096;
