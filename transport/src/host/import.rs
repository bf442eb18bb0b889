//! `Import` (Lustre's word): the client's end of the relation to one service, over any number of links.
//!
//! - A request given to [`Import::rpc`] is answered once, however often the link breaks: it is sent again, marked as such,
//!   under the same number. Dropping the future gives up the answer.
//! - The observer hears of events in order, of eviction before anything of the new session, and replays what the client
//!   holds before new requests pass.
//! - After [`Import::close`], or when the `Import` is dropped, everything answers [`ImportError::Closed`].

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use nacre_reactor::{Bytes, Env};
use nacre_wire::ldlm::Event;
use nacre_wire::op::{Opcode, RpcArgs, rpc_flags};
use nacre_wire::session::{ConnectReply, ConnectRequest, OP_CONNECT, OP_DISCONNECT, OP_REPLAY_DONE};
use nacre_wire::{Nid, Status, codec};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep, timeout};
use zerocopy::IntoBytes;

use super::{ImportError, ImportInput, ImportState};
use crate::watched::Watched;
use crate::{Answer, Call, CallError, Connector, Link};

/// Whom to connect to, and as whom.
#[derive(Clone, Debug)]
pub struct PeerSpec {
    /// The service's name for people: `nacre-OST0000`.
    pub label: String,
    /// NVMe qualified name of its subsystem.
    pub nqn: String,
    /// Where it may be found, best first.
    pub nids: Vec<Nid>,
    /// What the client says of itself. `last_incarnation` and `will_replay` are filled in here.
    pub connect: ConnectRequest,
}

/// Who is told what happens to an import. It usually owns the import: it should be held by a `Weak` inside.
pub trait ImportObserver {
    /// An event of the service, in order.
    fn event(&self, event: Event);

    /// Whether the client holds locks or opens there that [`ImportObserver::replay`] would tell.
    fn will_replay(&self) -> bool;

    /// The server has restarted and takes replay now: tell it what this client holds. An error ends the attempt.
    fn replay(&self, link: ImportLink, reply: ConnectReply) -> LocalBoxFuture<'static, Result<(), CallError>>;

    /// The server has forgotten this client: locks, handles and opens are gone, caches are worth nothing.
    fn evicted(&self);

    /// Connected, with this answer; requests pass from now on.
    fn connected(&self, _reply: &ConnectReply) {}

    /// The link was lost.
    fn disconnected(&self) {}
}

/// For imports of clients that hold nothing and want no events.
pub struct Unobserved;

impl ImportObserver for Unobserved {
    fn event(&self, _event: Event) {}

    fn will_replay(&self) -> bool {
        false
    }

    fn replay(&self, _link: ImportLink, _reply: ConnectReply) -> LocalBoxFuture<'static, Result<(), CallError>> {
        Box::pin(async { Ok(()) })
    }

    fn evicted(&self) {}
}

/// One remote call.
#[derive(Clone, Debug)]
pub struct Rpc {
    /// Operation number.
    pub operation: u16,
    /// Number of the request, from [`Import::next_xid`].
    pub xid: u64,
    /// Encoded request.
    pub body: Bytes,
    /// Expected size of the reply; a larger one costs another round trip.
    pub reply_bytes_max: u32,
    /// The request changes something and must not happen twice: after an eviction, which forgets what was answered, it
    /// fails with [`ImportError::Evicted`] instead of being sent again.
    pub once: bool,
}

/// Its answer.
#[derive(Clone, Debug)]
pub struct RpcReply {
    /// Encoded reply.
    pub body: Bytes,
    /// The session that answered; see [`Import::generation`].
    pub generation: u64,
}

/// Keeps one service connected.
pub struct Import {
    inner: Rc<Inner>,
}

struct Inner {
    env: Env,
    connector: Rc<dyn Connector>,
    observer: Rc<dyn ImportObserver>,
    spec: RefCell<PeerSpec>,
    view: Watched<View>,
    link: RefCell<Option<Rc<dyn Link>>>,
    last_reply: RefCell<Option<ConnectReply>>,
    last_trouble: RefCell<String>,
    last_warning: RefCell<String>,
    next_xid: Cell<u64>,
    committed: Cell<u64>,
    evictions: Cell<u64>,
    hurry: Notify,
}

#[derive(Clone, Copy)]
struct View {
    state: ImportState,
    generation: u64,
}

impl Import {
    /// Starts to connect, on this reactor.
    pub fn new(env: Env, connector: Rc<dyn Connector>, spec: PeerSpec, observer: Rc<dyn ImportObserver>) -> Rc<Import> {
        let inner = Rc::new(Inner {
            env,
            connector,
            observer,
            spec: RefCell::new(spec),
            view: Watched::new(View { state: ImportState::Disconnected, generation: 0 }),
            link: RefCell::default(),
            last_reply: RefCell::default(),
            last_trouble: RefCell::default(),
            last_warning: RefCell::default(),
            next_xid: Cell::new(1),
            committed: Cell::new(0),
            evictions: Cell::new(0),
            hurry: Notify::new(),
        });
        spawn_local(inner.clone().run());
        Rc::new(Import { inner })
    }

    /// The service's name, for people.
    pub fn label(&self) -> String {
        self.inner.spec.borrow().label.clone()
    }

    /// Where the import is.
    pub fn state(&self) -> ImportState {
        self.inner.view.get().state
    }

    /// Number of the current (or last) session; 0 before the first. Handles of objects belong to one generation.
    pub fn generation(&self) -> u64 {
        self.inner.view.get().generation
    }

    /// What the server said last at connect.
    pub fn connect_reply(&self) -> Option<ConnectReply> {
        self.inner.last_reply.borrow().clone()
    }

    /// Why the last attempt to connect failed, for people; empty when it did not.
    pub fn last_trouble(&self) -> String {
        self.inner.last_trouble.borrow().clone()
    }

    /// The target's last committed transaction, as far as replies have told.
    pub fn last_committed(&self) -> u64 {
        self.inner.committed.get()
    }

    /// A fresh request number; grows.
    pub fn next_xid(&self) -> u64 {
        self.inner.take_xid()
    }

    /// Waits until requests pass; answers the generation.
    pub async fn wait_full(&self) -> Result<u64, ImportError> {
        Ok(self.inner.full_after(0).await?.1)
    }

    /// Sends a request until it is answered.
    pub async fn rpc(&self, operation: u16, body: Bytes, reply_bytes_max: u32) -> Result<Bytes, ImportError> {
        let rpc = Rpc { operation, xid: self.next_xid(), body, reply_bytes_max, once: false };
        Ok(self.rpc_with_xid(rpc).await?.body)
    }

    /// Sends a request until it is answered, under a number of the caller's choice.
    pub async fn rpc_with_xid(&self, rpc: Rpc) -> Result<RpcReply, ImportError> {
        self.inner.clone().rpc(rpc).await
    }

    /// [`Import::rpc`] with encoding and decoding. A reply that cannot be decoded is MALFORMED.
    pub async fn ask<Request: Serialize, Reply: DeserializeOwned>(
        &self,
        operation: u16,
        request: &Request,
        reply_bytes_max: u32,
    ) -> Result<Reply, ImportError> {
        let body = self.rpc(operation, codec::encode(request).into(), reply_bytes_max).await?;
        Ok(codec::decode(&body)?)
    }

    /// One attempt at a command that uses handles of session `generation`; `more` follows `call.data`. `Lost` when that
    /// session is not there any more or ends before the answer: the caller opens its handles again and decides.
    pub async fn object_call(&self, generation: u64, call: Call, more: Vec<Bytes>) -> Result<Answer, CallError> {
        let link = match &*self.inner.link.borrow() {
            Some(link) if self.generation() == generation && self.state() == ImportState::Full => link.clone(),
            _ => return Err(CallError::Lost),
        };
        let answer = if more.is_empty() { link.call(call) } else { link.call_gather(call, more) };
        let answer = answer.await;
        if answer == Err(CallError::Status(Status::NO_SESSION)) {
            self.inner.session_lost(generation);
            return Err(CallError::Lost);
        }
        answer
    }

    /// Imperative recovery: the service is (now) at these NIDs and has restarted; do not wait to find out.
    pub fn reconnect_now(&self, nids: Vec<Nid>) {
        self.inner.spec.borrow_mut().nids = nids;
        self.inner.session_lost(self.generation());
        self.inner.hurry.notify_one();
    }

    /// Says goodbye if the server listens, for at most `limit`; then everything answers [`ImportError::Closed`].
    pub async fn close(&self, limit: Duration) {
        if self.state() == ImportState::Full
            && let Some(link) = self.inner.current_link()
        {
            let speak = self.inner.import_link(link);
            if !matches!(timeout(limit, speak.rpc(OP_DISCONNECT, Bytes::new(), 0)).await, Ok(Ok(_))) {
                tracing::debug!("{}: closed without a goodbye", self.label());
            }
        }
        self.inner.shut();
    }
}

impl Drop for Import {
    fn drop(&mut self) {
        self.inner.shut();
    }
}

/// A link before requests pass: for replay.
#[derive(Clone)]
pub struct ImportLink {
    link: Rc<dyn Link>,
    inner: Rc<Inner>,
}

impl ImportLink {
    /// One attempt at a request.
    pub async fn rpc(&self, operation: u16, body: Bytes, reply_bytes_max: u32) -> Result<Bytes, CallError> {
        let rpc = Rpc { operation, xid: self.inner.take_xid(), body, reply_bytes_max, once: false };
        Ok(self.link.call(self.inner.rpc_call(&rpc, reply_bytes_max, false)).await?.data)
    }

    /// [`ImportLink::rpc`] with encoding and decoding.
    pub async fn ask<Request: Serialize, Reply: DeserializeOwned>(
        &self,
        operation: u16,
        request: &Request,
        reply_bytes_max: u32,
    ) -> Result<Reply, CallError> {
        let body = self.rpc(operation, codec::encode(request).into(), reply_bytes_max).await?;
        codec::decode(&body).map_err(CallError::Status)
    }
}

impl Inner {
    /// The background task: everything that changes the state happens here, [`ImportInput::Close`] aside.
    async fn run(self: Rc<Inner>) {
        let mut pause = PAUSE_MIN;
        let mut away_since = Instant::now();
        while self.apply(ImportInput::Dial) {
            let attempt = async {
                let established = self.establish().await;
                if established.is_err() && self.state() != ImportState::Closed {
                    self.apply(ImportInput::Failed);
                }
                established
            };
            let established = tokio::select! {
                biased;
                () = self.closed() => break,
                established = attempt => established,
            };
            match established {
                Ok(link) => {
                    pause = PAUSE_MIN;
                    tokio::select! {
                        biased;
                        () = self.closed() => break,
                        () = link.ended() => {}
                    }
                    self.link.replace(None);
                    if !self.apply(ImportInput::LinkLost) {
                        break;
                    }
                    tracing::info!("{}: connection lost", self.label());
                    away_since = Instant::now();
                    self.observer.disconnected();
                }
                Err(reason) => {
                    // A server that is just starting is no news. Later, one line for each new reason: one that stays away
                    // would fill the log.
                    if away_since.elapsed() < QUIET {
                        tracing::debug!("{}: cannot connect, trying on: {reason}", self.label());
                    } else if *self.last_warning.borrow() != reason {
                        tracing::warn!("{}: cannot connect, trying on: {reason}", self.label());
                        self.last_warning.replace(reason.clone());
                    }
                    self.last_trouble.replace(reason);
                    let jitter = self.env.random() % (pause.as_millis() as u64 / 2 + 1);
                    let wait = pause / 2 + Duration::from_millis(jitter) + Duration::from_millis(1);
                    tokio::select! {
                        biased;
                        () = self.closed() => break,
                        () = self.hurry.notified() => {}
                        () = sleep(wait) => {}
                    }
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
        if let Some(link) = self.link.replace(None) {
            link.close();
        }
    }

    /// Tries all NIDs in turn; the state is Full when it succeeds.
    async fn establish(self: &Rc<Inner>) -> Result<Rc<dyn Link>, String> {
        let (nids, nqn) = {
            let spec = self.spec.borrow();
            (spec.nids.clone(), spec.nqn.clone())
        };
        let mut reason = "no address is known".to_owned();
        for nid in nids {
            let link = match timeout(CONNECT_MAX, self.connector.connect(nid, nqn.clone())).await {
                Ok(Ok(link)) => link,
                Ok(Err(error)) => {
                    reason = error.to_string();
                    continue;
                }
                Err(_) => {
                    reason = format!("{nid}: no answer within {} s", CONNECT_MAX.as_secs());
                    continue;
                }
            };
            let mut guard = CloseUnlessKept(Some(link.clone()));
            match self.introduce(&link).await {
                Ok(()) => {
                    guard.0 = None;
                    return Ok(link);
                }
                Err(error) => {
                    reason = format!("{nid}: {error}");
                    if self.state() == ImportState::Replaying {
                        break;
                    }
                }
            }
        }
        Err(reason)
    }

    /// CONNECT and, where the server asks for it, replay.
    async fn introduce(self: &Rc<Inner>, link: &Rc<dyn Link>) -> Result<(), String> {
        let last_incarnation = self.last_reply.borrow().as_ref().map_or(0, |reply| reply.incarnation);
        let request = ConnectRequest {
            last_incarnation,
            will_replay: last_incarnation != 0 && self.observer.will_replay(),
            ..self.spec.borrow().connect.clone()
        };
        let speak = self.import_link(link.clone());
        let connected = timeout(CONNECT_MAX, speak.ask::<_, ConnectReply>(OP_CONNECT, &request, CONNECT_REPLY_BYTES));
        let reply = match connected.await {
            Ok(Ok(reply)) => reply,
            Ok(Err(error)) => return Err(format!("CONNECT failed: {error}")),
            Err(_) => return Err(format!("no answer to CONNECT within {} s", CONNECT_MAX.as_secs())),
        };
        let restarted = last_incarnation != 0 && !reply.resumed;
        if restarted && !reply.recovering {
            tracing::warn!("{}: evicted; locks and unwritten data are lost", self.label());
            self.evictions.set(self.evictions.get() + 1);
            // Forgotten at once: should this link break too, the next session is a fresh one and not another eviction.
            self.last_reply.replace(None);
            self.observer.evicted();
        }
        self.view.update(|view| view.generation += 1);
        spawn_local(pump_events(self.observer.clone(), link.clone()));
        if restarted && reply.recovering {
            self.apply(ImportInput::Restarted);
            tracing::info!("{}: restarted, replaying", self.label());
            let replay = async {
                self.observer.replay(speak.clone(), reply.clone()).await?;
                speak.rpc(OP_REPLAY_DONE, Bytes::new(), 0).await
            };
            tokio::select! {
                biased;
                done = replay => done.map_err(|error| format!("replay failed: {error}"))?,
                () = link.ended() => return Err("the connection was lost during replay".to_owned()),
            };
        }
        self.committed.set(self.committed.get().max(reply.last_committed));
        self.last_trouble.borrow_mut().clear();
        self.last_warning.borrow_mut().clear();
        self.last_reply.replace(Some(reply.clone()));
        self.link.replace(Some(link.clone()));
        let input = if restarted && reply.recovering { ImportInput::Replayed } else { ImportInput::Resumed };
        if self.apply(input) {
            tracing::info!("{}: connected (incarnation {})", self.label(), reply.incarnation);
            self.observer.connected(&reply);
        }
        Ok(())
    }

    async fn rpc(self: Rc<Inner>, rpc: Rpc) -> Result<RpcReply, ImportError> {
        let mut reply_bytes_max = rpc.reply_bytes_max;
        let mut lost_generation = 0;
        let mut sent_before = false;
        let evictions = self.evictions.get();
        loop {
            let (link, generation) = self.full_after(lost_generation).await?;
            if sent_before && rpc.once && self.evictions.get() != evictions {
                return Err(ImportError::Evicted);
            }
            let limit = link.data_bytes_max();
            let call = self.rpc_call(&rpc, reply_bytes_max.min(limit), sent_before);
            match link.call(call).await {
                Ok(answer) => {
                    self.committed.set(self.committed.get().max(answer.result));
                    return Ok(RpcReply { body: answer.data, generation });
                }
                Err(CallError::Lost) => {
                    sent_before = true;
                    lost_generation = generation;
                }
                Err(CallError::ReplyTooLarge { bytes }) if bytes <= limit && bytes > reply_bytes_max => {
                    sent_before = true;
                    reply_bytes_max = bytes;
                }
                Err(CallError::ReplyTooLarge { .. }) => return Err(Status::EOVERFLOW.into()),
                // Not done, and not remembered as done: nothing changes for the next attempt.
                Err(CallError::Status(Status::RECOVERING)) => {
                    let jitter = Duration::from_millis(self.env.random() % RECOVERING_PAUSE.as_millis() as u64);
                    sleep(RECOVERING_PAUSE / 2 + jitter).await;
                }
                Err(CallError::Status(Status::NO_SESSION)) => {
                    self.session_lost(generation);
                    lost_generation = generation;
                }
                Err(CallError::Status(status)) => return Err(status.into()),
            }
        }
    }

    fn rpc_call(&self, rpc: &Rpc, reply_bytes_max: u32, resent: bool) -> Call {
        let args = RpcArgs {
            tag: 0.into(),
            operation: rpc.operation.into(),
            flags: (if resent { rpc_flags::RESENT } else { 0 }).into(),
            xid: rpc.xid.into(),
            request_bytes: (rpc.body.len() as u32).into(),
            reply_bytes_max: reply_bytes_max.into(),
            committed: self.committed.get().into(),
        };
        let args = args.as_bytes().try_into().expect("RpcArgs is 32 bytes");
        Call { op: Opcode::RpcSend, args, data: rpc.body.clone(), reply_bytes_max }
    }

    /// The link, once the state is Full in a session later than `generation`.
    async fn full_after(&self, generation: u64) -> Result<(Rc<dyn Link>, u64), ImportError> {
        let ready = |view: &View| {
            view.state == ImportState::Closed || (view.state == ImportState::Full && view.generation > generation)
        };
        loop {
            let view = self.view.get();
            if view.state == ImportState::Closed {
                return Err(ImportError::Closed);
            }
            if ready(&view)
                && let Some(link) = self.current_link()
            {
                return Ok((link, view.generation));
            }
            // The sender is `self`: it cannot be gone.
            self.view.wait_for(ready).await;
        }
    }

    /// The server does not know this session: end its link, if it is still the current one.
    fn session_lost(&self, generation: u64) {
        if self.view.get().generation == generation
            && let Some(link) = self.current_link()
        {
            link.close();
        }
    }

    async fn closed(&self) {
        // As above.
        self.view.wait_for(|view| view.state == ImportState::Closed).await;
    }

    fn shut(&self) {
        self.apply(ImportInput::Close);
        if let Some(link) = self.link.replace(None) {
            link.close();
        }
    }

    /// Moves the state; false when the import has been closed in the meantime.
    fn apply(&self, input: ImportInput) -> bool {
        let state = self.state();
        match state.apply(input) {
            Ok(next) => {
                self.view.update(|view| view.state = next);
                true
            }
            Err(_) if state == ImportState::Closed => false,
            Err(bug) => panic!("{}: {bug}", self.label()),
        }
    }

    fn state(&self) -> ImportState {
        self.view.get().state
    }

    fn label(&self) -> String {
        self.spec.borrow().label.clone()
    }

    fn current_link(&self) -> Option<Rc<dyn Link>> {
        self.link.borrow().clone()
    }

    fn import_link(self: &Rc<Inner>, link: Rc<dyn Link>) -> ImportLink {
        ImportLink { link, inner: self.clone() }
    }

    fn take_xid(&self) -> u64 {
        self.next_xid.replace(self.next_xid.get() + 1)
    }
}

/// Ends a link whose introduction failed or was given up half-way.
struct CloseUnlessKept(Option<Rc<dyn Link>>);

impl Drop for CloseUnlessKept {
    fn drop(&mut self) {
        if let Some(link) = self.0.take() {
            link.close();
        }
    }
}

/// Hands events on until the link ends.
async fn pump_events(observer: Rc<dyn ImportObserver>, link: Rc<dyn Link>) {
    while let Ok(events) = link.events().await {
        for event in events {
            observer.event(event);
        }
    }
}

/// Between two attempts to connect, at first and at most.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// So long nothing is said about a server that is away.
const QUIET: Duration = Duration::from_secs(3);
/// For opening a link, and for the answer to CONNECT.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// Before asking a recovering server again, about.
const RECOVERING_PAUSE: Duration = Duration::from_millis(200);
const CONNECT_REPLY_BYTES: u32 = 4096;
