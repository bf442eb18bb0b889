//! Links inside one process: calls go over a channel, buffers by reference, nothing is copied or encoded.
//!
//! A [`LocalNet`] names services by NID and NQN. It may be cloned to other reactor threads; a service is served on the
//! thread that called [`serve_local`], whichever thread its hosts are on. On one thread everything happens in one order
//! that depends on nothing but the program, so that a simulation replays.
//!
//! Whatever the real fabric would enforce is enforced here too (data sizes, reply sizes), and the net can be broken on
//! purpose: [`LocalFaults`].

mod faults;

use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use nacre_wire::ldlm::Event;
use nacre_wire::op::DATA_BYTES_MAX;
use nacre_wire::{Nid, Status};
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_local;

pub use faults::{DelayFn, Direction, LinkEnds, LocalFaults, SILENCE_MAX};

use crate::watched::Watched;
use crate::{Answer, Call, CallError, ConnectError, Connector, Link, Service, Session};

/// The services of one process. A handle: clones see the same services.
#[derive(Clone)]
pub struct LocalNet {
    shared: Arc<NetShared>,
    faults: LocalFaults,
}

struct NetShared {
    services: Mutex<BTreeMap<(Nid, String), mpsc::UnboundedSender<Incoming>>>,
    links: AtomicU64,
}

/// A host that wants a session: the server's halves of the link.
struct Incoming {
    id: u64,
    peer: String,
    host_nqn: String,
    ends: LinkEnds,
    calls: mpsc::UnboundedReceiver<Request>,
    events: mpsc::UnboundedSender<Vec<Event>>,
    life: Arc<Life>,
}

struct Request {
    call: Call,
    reply: oneshot::Sender<Result<Answer, CallError>>,
}

/// Whether a link, or a server, has ended; shared by both sides.
struct Life(Watched<bool>);

impl Life {
    fn end(&self) {
        self.0.update(|ended| *ended = true);
    }

    fn has_ended(&self) -> bool {
        self.0.get()
    }

    async fn ended(&self) {
        self.0.wait_for(|ended| *ended).await;
    }
}

impl Default for LocalNet {
    fn default() -> LocalNet {
        LocalNet::new()
    }
}

impl LocalNet {
    /// A net without services.
    pub fn new() -> LocalNet {
        let shared = NetShared { services: Mutex::default(), links: AtomicU64::new(1) };
        LocalNet { shared: Arc::new(shared), faults: LocalFaults::none() }
    }

    /// The handle that breaks this net.
    pub fn faults(&self) -> LocalFaults {
        self.faults.clone()
    }

    fn services(&self) -> MutexGuard<'_, BTreeMap<(Nid, String), mpsc::UnboundedSender<Incoming>>> {
        self.shared.services.lock().expect("nothing panics under this lock")
    }
}

/// A service being served; dropping it ends all its links and takes its name off the net.
pub struct LocalServer {
    net: LocalNet,
    key: (Nid, String),
    incoming: mpsc::UnboundedSender<Incoming>,
    stop: Arc<Life>,
}

impl Drop for LocalServer {
    fn drop(&mut self) {
        self.stop.end();
        let mut services = self.net.services();
        // A later server under the same name stays.
        if services.get(&self.key).is_some_and(|current| current.same_channel(&self.incoming)) {
            services.remove(&self.key);
        }
    }
}

/// Serves `service` at `nid` on this thread, until the answer is dropped. A service served earlier under the same names is
/// replaced for new links.
pub fn serve_local(net: &LocalNet, nid: Nid, service: Rc<dyn Service>) -> LocalServer {
    let (sender, mut incoming) = mpsc::unbounded_channel::<Incoming>();
    let stop = Arc::new(Life(Watched::new(false)));
    let key = (nid, service.nqn());
    net.services().insert(key.clone(), sender.clone());
    let faults = net.faults();
    let stopped = stop.clone();
    spawn_local(async move {
        loop {
            tokio::select! {
                biased;
                () = stopped.ended() => break,
                arrived = incoming.recv() => match arrived {
                    Some(link) => drop(spawn_local(session(link, service.clone(), faults.clone(), stopped.clone()))),
                    None => break,
                },
            }
        }
    });
    LocalServer { net: net.clone(), key, incoming: sender, stop }
}

/// The server's side of one link, until it ends.
async fn session(mut link: Incoming, service: Rc<dyn Service>, faults: LocalFaults, stop: Arc<Life>) {
    // Also ends the link when this task is dropped with its runtime: the end of a simulated node.
    let _end = EndOnDrop(link.life.clone());
    let session = Session::new(link.id, link.peer, link.host_nqn);
    let events = spawn_local(pump_events(session.clone(), link.events, faults.clone(), link.ends));
    loop {
        let request = tokio::select! {
            biased;
            () = link.life.ended() => break,
            () = stop.ended() => break,
            request = link.calls.recv() => match request {
                Some(request) => request,
                None => break,
            },
        };
        let (delay, parted) = (faults.delay(link.ends, Direction::ToTarget), faults.is_parted(link.ends));
        if delay > Duration::ZERO || parted {
            spawn_local(serve_late(request, service.clone(), session.clone(), faults.clone(), link.ends, delay));
        } else {
            serve_now(request, &service, &session, &faults, link.ends);
        }
    }
    link.life.end();
    events.abort();
    session.close();
    service.closed(session);
}

/// Serves without a task of its own where the service answers at once.
fn serve_now(request: Request, service: &Rc<dyn Service>, session: &Rc<Session>, faults: &LocalFaults, ends: LinkEnds) {
    let Request { call, reply } = request;
    let reply_bytes_max = call.reply_bytes_max;
    let mut answer = service.clone().serve(session.clone(), call);
    let back = faults.delay(ends, Direction::ToHost);
    if back.is_zero()
        && let Some(answer) = (&mut answer).now_or_never()
    {
        // The host may have given up waiting.
        let _ = reply.send(finish(answer, reply_bytes_max));
        return;
    }
    let faults = faults.clone();
    spawn_local(async move {
        let answer = answer.await;
        pass(&faults, ends, back).await;
        let _ = reply.send(finish(answer, reply_bytes_max));
    });
}

async fn serve_late(
    request: Request,
    service: Rc<dyn Service>,
    session: Rc<Session>,
    faults: LocalFaults,
    ends: LinkEnds,
    delay: Duration,
) {
    pass(&faults, ends, delay).await;
    // What arrives after the end of the association is not a command any more.
    if !session.is_closed() {
        serve_now(request, &service, &session, &faults, ends);
    }
}

/// What the fabric does to an answer.
fn finish(answer: Result<Answer, Status>, reply_bytes_max: u32) -> Result<Answer, CallError> {
    match answer {
        Ok(answer) if answer.data.len() > reply_bytes_max as usize => {
            Err(CallError::ReplyTooLarge { bytes: answer.data.len() as u32 })
        }
        Ok(answer) => Ok(answer),
        Err(status) => Err(CallError::Status(status)),
    }
}

async fn pump_events(session: Rc<Session>, to: mpsc::UnboundedSender<Vec<Event>>, faults: LocalFaults, ends: LinkEnds) {
    let mut acknowledged = 0;
    loop {
        let (first, events) = session.next_events(acknowledged, EVENTS_PER_BATCH).await;
        if events.is_empty() {
            return;
        }
        acknowledged = first + events.len() as u64 - 1;
        let delay = faults.delay(ends, Direction::ToHost);
        pass(&faults, ends, delay).await;
        if to.send(events).is_err() {
            return;
        }
    }
}

/// The time a message is under way: its delay, then as long as nothing passes between the ends.
async fn pass(faults: &LocalFaults, ends: LinkEnds, delay: Duration) {
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    if faults.is_parted(ends) {
        loop {
            let version = faults.version();
            if !faults.is_parted(ends) {
                break;
            }
            faults.changed_since(version).await;
        }
    }
}

struct EndOnDrop(Arc<Life>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Opens links to services of the same process.
pub struct LocalConnector {
    net: LocalNet,
    here: Nid,
    name: String,
}

impl LocalConnector {
    /// Connects from node `here` (which only faults look at) under a name for people.
    pub fn new(net: &LocalNet, here: Nid, name: &str) -> LocalConnector {
        LocalConnector { net: net.clone(), here, name: name.to_owned() }
    }
}

impl Connector for LocalConnector {
    fn connect(&self, nid: Nid, nqn: String) -> LocalBoxFuture<'static, Result<Rc<dyn Link>, ConnectError>> {
        let (net, name) = (self.net.clone(), self.name.clone());
        let ends = LinkEnds { host: self.here, target: nid };
        Box::pin(async move {
            let delay = net.faults.delay(ends, Direction::ToTarget) + net.faults.delay(ends, Direction::ToHost);
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            let unreachable = |kind: io::ErrorKind| ConnectError::Unreachable { nid, source: kind.into() };
            if net.faults.is_parted(ends) {
                return Err(unreachable(io::ErrorKind::HostUnreachable));
            }
            let services = net.services();
            let Some(service) = services.get(&(nid, nqn.clone())) else {
                let somebody = services.keys().any(|(other, _)| *other == nid);
                return Err(if somebody {
                    ConnectError::Refused { nid, reason: format!("no subsystem {nqn}") }
                } else {
                    unreachable(io::ErrorKind::ConnectionRefused)
                });
            };
            let life = Arc::new(Life(Watched::new(false)));
            let (call_sender, calls) = mpsc::unbounded_channel();
            let (events, event_receiver) = mpsc::unbounded_channel();
            let incoming = Incoming {
                id: net.shared.links.fetch_add(1, Ordering::Relaxed),
                peer: format!("{name} ({})", ends.host),
                host_nqn: format!("nqn.2026-11.io.nacre:host:{name}"),
                ends,
                calls,
                events,
                life: life.clone(),
            };
            if service.send(incoming).is_err() {
                return Err(unreachable(io::ErrorKind::ConnectionRefused));
            }
            drop(services);
            spawn_local(watch_faults(net.faults.clone(), ends, life.clone()));
            let events = Rc::new(tokio::sync::Mutex::new(event_receiver));
            Ok(Rc::new(LocalLink { calls: call_sender, events, life }) as Rc<dyn Link>)
        })
    }
}

/// Ends a link when it is cut, or parted for too long.
async fn watch_faults(faults: LocalFaults, ends: LinkEnds, life: Arc<Life>) {
    let since = faults.cut_number();
    loop {
        let version = faults.version();
        if faults.is_cut(ends, since) {
            break;
        }
        let silence = async {
            if faults.is_parted(ends) {
                tokio::time::sleep(SILENCE_MAX).await;
            } else {
                std::future::pending().await
            }
        };
        tokio::select! {
            biased;
            () = life.ended() => return,
            () = faults.changed_since(version) => {}
            () = silence => break,
        }
    }
    life.end();
}

struct LocalLink {
    calls: mpsc::UnboundedSender<Request>,
    events: Rc<tokio::sync::Mutex<mpsc::UnboundedReceiver<Vec<Event>>>>,
    life: Arc<Life>,
}

impl Link for LocalLink {
    fn call(&self, call: Call) -> LocalBoxFuture<'static, Result<Answer, CallError>> {
        if call.data.len() > DATA_BYTES_MAX as usize || call.reply_bytes_max > DATA_BYTES_MAX {
            return Box::pin(async { Err(CallError::Status(Status::EINVAL)) });
        }
        let (reply, answer) = oneshot::channel();
        let life = self.life.clone();
        let sent = !life.has_ended() && self.calls.send(Request { call, reply }).is_ok();
        Box::pin(async move {
            if !sent {
                return Err(CallError::Lost);
            }
            tokio::select! {
                biased;
                answer = answer => answer.unwrap_or(Err(CallError::Lost)),
                () = life.ended() => Err(CallError::Lost),
            }
        })
    }

    fn events(&self) -> LocalBoxFuture<'static, Result<Vec<Event>, CallError>> {
        let (events, life) = (self.events.clone(), self.life.clone());
        Box::pin(async move {
            let next = async { events.lock().await.recv().await };
            tokio::select! {
                biased;
                () = life.ended() => Err(CallError::Lost),
                batch = next => batch.ok_or(CallError::Lost),
            }
        })
    }

    fn ended(&self) -> LocalBoxFuture<'static, ()> {
        let life = self.life.clone();
        Box::pin(async move { life.ended().await })
    }

    fn close(&self) {
        self.life.end();
    }

    fn data_bytes_max(&self) -> u32 {
        DATA_BYTES_MAX
    }
}

impl Drop for LocalLink {
    fn drop(&mut self) {
        self.life.end();
    }
}

/// Events told at once.
const EVENTS_PER_BATCH: usize = 256;
