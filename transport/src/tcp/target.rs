//! Listening, and bringing each connection home.
//!
//! ```text
//! listener's reactor                          home reactor of the service
//! accept ► ICReq ► ICResp ► Connect ──(socket, bytes read)──► association ► serve
//! ```
//!
//! [`TcpTarget`] is a handle that any thread may hold. Services are given to it on their home reactors; a connection moves to the
//! home of the subsystem that its Connect names, with everything that has been read from it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use std::future::poll_fn;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};
use zerocopy::FromBytes;

use super::Fault;
use super::admin::IO_QUEUES_MAX;
use super::association::Association;
use super::connection::{Connection, Held, Line};
use super::pdu::{self, Common, Digests, FatalStatus, Head, Ic, Receiver, Violation, kind};
use super::rx::Rx;
use super::space::Space;
use super::tx::Tx;
use crate::nvme::StatusField;
use crate::nvme::fabrics::{self, ConnectData, ConnectSqe};
use crate::{Service, Session};

/// The subsystems of a process, and the addresses they are reached at. A handle: clones are the same target.
#[derive(Clone, Default)]
pub struct TcpTarget {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    directory: Mutex<Directory>,
    sessions: AtomicU64,
}

#[derive(Default)]
struct Directory {
    generation: u64,
    homes: BTreeMap<String, mpsc::UnboundedSender<Arrival>>,
    addresses: Vec<SocketAddr>,
}

/// A connection on its way home: everything about it, in a form that may change threads.
struct Arrival {
    stream: std::net::TcpStream,
    peer: SocketAddr,
    rx: Rx,
    digests: Digests,
    connect: ConnectSqe,
    data: ConnectData,
}

/// What a controller stands for.
#[derive(Clone)]
pub(super) enum Subject {
    Service(Rc<dyn Service>),
    Discovery(TcpTarget),
}

impl Subject {
    pub(super) fn closed(&self, session: &Rc<Session>) {
        if let Subject::Service(service) = self {
            service.clone().closed(session.clone());
        }
    }
}

impl TcpTarget {
    /// A target without subsystems.
    pub fn new() -> TcpTarget {
        TcpTarget::default()
    }

    /// Serves `service` on this reactor until the answer is dropped.
    pub fn serve(&self, service: Rc<dyn Service>) -> TcpService {
        let (sender, arrivals) = mpsc::unbounded_channel();
        let nqn = service.nqn();
        {
            let mut directory = self.directory_mut();
            directory.generation += 1;
            directory.homes.insert(nqn.clone(), sender.clone());
        }
        let (stop, stopped) = watch::channel(false);
        spawn_local(receive(Subject::Service(service), arrivals, self.clone(), stopped));
        TcpService { target: self.clone(), nqn, sender, _stop: stop }
    }

    /// Listens at an address, on this reactor, until the answer is dropped. Port 0 takes a free one.
    pub async fn listen(&self, address: SocketAddr) -> io::Result<TcpListening> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        {
            let mut directory = self.directory_mut();
            directory.generation += 1;
            directory.addresses.push(address);
        }
        let (stop, stopped) = watch::channel(false);
        let (sender, arrivals) = mpsc::unbounded_channel();
        spawn_local(receive(Subject::Discovery(self.clone()), arrivals, self.clone(), stopped.clone()));
        spawn_local(accept(listener, self.clone(), sender, stopped));
        Ok(TcpListening { target: self.clone(), address, _stop: stop })
    }

    /// Generation, NQNs and addresses, for the discovery log.
    pub(super) fn directory(&self) -> (u64, Vec<String>, Vec<SocketAddr>) {
        let directory = self.directory_mut();
        (directory.generation, directory.homes.keys().cloned().collect(), directory.addresses.clone())
    }

    fn directory_mut(&self) -> MutexGuard<'_, Directory> {
        self.shared.directory.lock().expect("nothing panics under this lock")
    }
}

/// A service being served over TCP; dropping it ends its associations.
pub struct TcpService {
    target: TcpTarget,
    nqn: String,
    sender: mpsc::UnboundedSender<Arrival>,
    _stop: watch::Sender<bool>,
}

impl Drop for TcpService {
    fn drop(&mut self) {
        let mut directory = self.target.directory_mut();
        directory.generation += 1;
        // A later service under the same name stays.
        if directory.homes.get(&self.nqn).is_some_and(|home| home.same_channel(&self.sender)) {
            directory.homes.remove(&self.nqn);
        }
    }
}

/// An open port; dropping it closes the port. Connections made through it live on.
pub struct TcpListening {
    target: TcpTarget,
    address: SocketAddr,
    _stop: watch::Sender<bool>,
}

impl TcpListening {
    /// Where it listens; the port is the one given by the system where none was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for TcpListening {
    fn drop(&mut self) {
        let mut directory = self.target.directory_mut();
        directory.generation += 1;
        directory.addresses.retain(|address| *address != self.address);
    }
}

/// Waits for the sender to be dropped.
async fn gone(stopped: &mut watch::Receiver<bool>) {
    while stopped.changed().await.is_ok() {}
}

async fn accept(
    listener: TcpListener,
    target: TcpTarget,
    discovery: mpsc::UnboundedSender<Arrival>,
    mut stopped: watch::Receiver<bool>,
) {
    // Strangers who connect and say nothing must not take all descriptors.
    let strangers = Arc::new(Semaphore::new(STRANGERS_MAX));
    loop {
        let accepted = tokio::select! {
            biased;
            () = gone(&mut stopped) => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: connections that end will free some.
                tracing::warn!("accepting a connection: {error}");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(permit) = strangers.clone().try_acquire_owned() else {
            tracing::warn!("{peer}: too many connections that have not introduced themselves; closed");
            continue;
        };
        let (target, discovery) = (target.clone(), discovery.clone());
        spawn_local(async move {
            let _permit = permit;
            match timeout(HANDSHAKE_MAX, greet(stream, peer, &target, &discovery)).await {
                Ok(Ok(())) => {}
                Ok(Err(Fault::Closed)) => tracing::debug!("{peer}: closed before Connect"),
                Ok(Err(fault)) => tracing::warn!("{peer}: not an NVMe/TCP host, or a broken one: {fault}"),
                Err(_) => tracing::warn!("{peer}: no Connect within {} s; closed", HANDSHAKE_MAX.as_secs()),
            }
        });
    }
}

/// The first three PDUs; then the connection goes home.
async fn greet(
    stream: TcpStream,
    peer: SocketAddr,
    target: &TcpTarget,
    discovery: &mpsc::UnboundedSender<Arrival>,
) -> Result<(), Fault> {
    stream.set_nodelay(true)?;
    let (mut read, mut write) = stream.into_split();
    let mut rx = Rx::new(Receiver::Target);
    let mut tx = Tx::default();
    match introduce(&mut rx, &mut tx, &mut read, &mut write).await {
        Ok((digests, connect, data)) => {
            let nqn = fabrics::nqn_of(&data.subsystem_nqn);
            let home = match nqn {
                Some(fabrics::DISCOVERY_NQN) => Some(discovery.clone()),
                Some(nqn) => target.directory_mut().homes.get(nqn).cloned(),
                None => None,
            };
            let Some(home) = home else {
                tracing::debug!("{peer}: asks for subsystem {}, which is not here", nqn.unwrap_or("(no text)"));
                let offset = std::mem::offset_of!(ConnectData, subsystem_nqn);
                refuse(
                    tx,
                    &mut write,
                    &connect,
                    StatusField::CONNECT_INVALID,
                    fabrics::invalid_parameter(offset, true),
                )
                .await?;
                return Ok(());
            };
            let stream = read.reunite(write).map_err(|_| io::Error::other("two halves of one socket"))?.into_std()?;
            // A service that has just gone drops the arrival, and with it the connection.
            let _ = home.send(Arrival { stream, peer, rx, digests, connect, data });
            Ok(())
        }
        Err(Fault::Violation(violation)) => {
            tx.push_termination(kind::C2H_TERM_REQ, &violation, rx.offending());
            poll_fn(|cx| tx.poll_flush(&mut write, cx)).await?;
            Err(violation.into())
        }
        Err(fault) => Err(fault),
    }
}

async fn introduce(
    rx: &mut Rx,
    tx: &mut Tx,
    read: &mut OwnedReadHalf,
    write: &mut OwnedWriteHalf,
) -> Result<(Digests, ConnectSqe, ConnectData), Fault> {
    let arrived = next_head(rx, read).await?;
    let Head::Ic(request) = arrived.head else { return Err(Violation::sequence("ICReq comes first").into()) };
    if request.version.get() != 0 {
        let (status, what) = (FatalStatus::Unsupported, "PDU format version");
        return Err(Violation { status, information: 8, what }.into());
    }
    if request.data_alignment > 31 {
        return Err(Violation::field(10, "data alignment").into());
    }
    if request.data_alignment != 0 {
        let (status, what) = (FatalStatus::Unsupported, "data alignment");
        return Err(Violation { status, information: 10, what }.into());
    }
    if request.digests & !3 != 0 {
        return Err(Violation::field(11, "digests").into());
    }
    let digests = Digests { header: request.digests & 1 != 0, data: request.digests & 2 != 0 };
    let response = Ic {
        common: Common::default(),
        version: 0.into(),
        data_alignment: 0,
        digests: request.digests,
        limit: (pdu::DATA_BYTES_MAX as u32).into(),
        reserved: [[0; 56]; 2],
    };
    tx.push(kind::IC_RESP, 0, &response, &[]);
    poll_fn(|cx| tx.poll_flush(write, cx)).await?;
    rx.set_digests(digests);
    tx.set_digests(digests);
    let arrived = next_head(rx, read).await?;
    let Head::Command(sqe) = arrived.head else { return Err(Violation::sequence("Connect comes second").into()) };
    let is_connect = sqe.opcode == fabrics::OPCODE && sqe.nsid.get() as u8 == fabrics::CONNECT;
    if !is_connect || arrived.data_bytes != size_of::<ConnectData>() {
        return Err(Violation::sequence("Connect, with its data, comes second").into());
    }
    rx.receive(Space::new(arrived.data_bytes), 0, arrived.data_bytes);
    let received = loop {
        if let Some(received) = rx.received() {
            break received;
        }
        read_once(rx, read).await?;
    };
    let bytes = received.space.freeze();
    match ConnectData::read_from_bytes(&bytes) {
        Ok(data) if received.intact => Ok((digests, ConnectSqe::from_sqe(&sqe), data)),
        _ => Err(Violation::sequence("the data of Connect is damaged").into()),
    }
}

pub(super) async fn next_head(rx: &mut Rx, read: &mut OwnedReadHalf) -> Result<super::rx::Arrived, Fault> {
    loop {
        if let Some(arrived) = rx.head()? {
            return Ok(arrived);
        }
        read_once(rx, read).await?;
    }
}

pub(super) async fn read_once(rx: &mut Rx, read: &mut OwnedReadHalf) -> Result<(), Fault> {
    match poll_fn(|cx| rx.poll_read(read, cx)).await? {
        0 => Err(Fault::Closed),
        _ => Ok(()),
    }
}

/// Answers a Connect that will not be taken.
async fn refuse(
    tx: Tx,
    write: &mut OwnedWriteHalf,
    connect: &ConnectSqe,
    status: StatusField,
    result: u64,
) -> io::Result<()> {
    let line = Line::new(tx, 2, false);
    line.complete(connect.cid.get(), Held::default(), status, result);
    line.flush(write).await
}

/// The home of one subsystem: takes connections into associations until it is stopped.
async fn receive(
    subject: Subject,
    mut arrivals: mpsc::UnboundedReceiver<Arrival>,
    target: TcpTarget,
    mut stopped: watch::Receiver<bool>,
) {
    let home = Rc::new(Home { subject, target, associations: RefCell::default(), last_id: Cell::new(0) });
    loop {
        tokio::select! {
            biased;
            () = gone(&mut stopped) => break,
            arrival = arrivals.recv() => match arrival {
                Some(arrival) => {
                    let home = home.clone();
                    let peer = arrival.peer;
                    spawn_local(async move {
                        if let Err(error) = home.take_in(arrival).await {
                            tracing::info!("{peer}: {error}");
                        }
                    });
                }
                None => break,
            },
        }
    }
    for association in home.associations.take().into_values() {
        if let Some(association) = association.upgrade() {
            association.end("the service has stopped");
        }
    }
}

struct Home {
    subject: Subject,
    target: TcpTarget,
    associations: RefCell<BTreeMap<u16, Weak<Association>>>,
    last_id: Cell<u16>,
}

impl Home {
    async fn take_in(self: Rc<Home>, arrival: Arrival) -> io::Result<()> {
        let Arrival { stream, peer, rx, digests, connect, data } = arrival;
        let (read, mut write) = TcpStream::from_std(stream)?.into_split();
        let mut tx = Tx::default();
        tx.set_digests(digests);
        let queue_id = connect.queue_id.get();
        let association = match self.admit(&connect, &data, peer) {
            Ok(association) => association,
            Err((status, result)) => {
                tracing::info!("{peer}: Connect of queue {queue_id} refused: status {:#x}, {result:#x}", status.0);
                return refuse(tx, &mut write, &connect, status, result).await;
            }
        };
        let flow_control = connect.attributes & fabrics::CATTR_NO_FLOW_CONTROL == 0;
        let line = Line::new(tx, connect.sq_size.get() + 1, flow_control);
        association.join(&line);
        if !flow_control {
            // FFFFh tells the host that flow control is off. Base, 6.3.
            line.complete_connect(connect.cid.get(), association.controller_id);
        } else {
            line.complete(connect.cid.get(), Held::default(), StatusField::SUCCESS, association.controller_id.into());
        }
        Connection::new(association, line, rx, (read, write), peer, queue_id).run().await;
        Ok(())
    }

    /// Finds or makes the association; otherwise status and result of the refusal.
    fn admit(
        &self,
        connect: &ConnectSqe,
        data: &ConnectData,
        peer: SocketAddr,
    ) -> Result<Rc<Association>, (StatusField, u64)> {
        let invalid = |offset, in_data| (StatusField::CONNECT_INVALID, fabrics::invalid_parameter(offset, in_data));
        let size_offset = std::mem::offset_of!(ConnectSqe, sq_size);
        let id_offset = std::mem::offset_of!(ConnectData, controller_id);
        if connect.record_format.get() != 0 {
            return Err((StatusField::CONNECT_FORMAT, 0));
        }
        if connect.sq_size.get() == 0 || connect.sq_size.get() >= fabrics::QUEUE_ENTRIES_MAX {
            return Err(invalid(size_offset, false));
        }
        let host_nqn = fabrics::nqn_of(&data.host_nqn).ok_or((StatusField::CONNECT_HOST, 0))?;
        let wanted = data.controller_id.get();
        let mut associations = self.associations.borrow_mut();
        associations.retain(|_, association| association.upgrade().is_some_and(|it| !it.has_ended()));
        if connect.queue_id.get() == 0 {
            if wanted != fabrics::CONTROLLER_ANY {
                return Err(invalid(id_offset, true));
            }
            if associations.len() >= ASSOCIATIONS_MAX {
                return Err((StatusField::CONNECT_BUSY, 0));
            }
            let mut id = self.last_id.get();
            // FFF0h and above are reserved.
            while {
                id = (id + 1) % 0xfff0;
                id == 0 || associations.contains_key(&id)
            } {}
            self.last_id.set(id);
            let number = self.target.shared.sessions.fetch_add(1, Ordering::Relaxed) + TCP_SESSIONS_FROM;
            let session = Session::new(number, peer.to_string(), host_nqn.to_owned());
            let keep_alive = Duration::from_millis(connect.keep_alive_ms.get().into());
            let association = Association::new(self.subject.clone(), id, data.host_id, session, keep_alive);
            associations.insert(id, Rc::downgrade(&association));
            return Ok(association);
        }
        let association = associations.get(&wanted).and_then(Weak::upgrade).ok_or(invalid(id_offset, true))?;
        if association.session.host_nqn != host_nqn || association.host_id != data.host_id {
            return Err((StatusField::CONNECT_HOST, 0));
        }
        let allowed = matches!(association.subject, Subject::Service(_))
            && u32::from(connect.queue_id.get()) <= IO_QUEUES_MAX
            && association.connections() <= IO_QUEUES_MAX as usize;
        if allowed { Ok(association) } else { Err(invalid(std::mem::offset_of!(ConnectSqe, queue_id), false)) }
    }
}

/// From accept to Connect.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const STRANGERS_MAX: usize = 256;
/// Of one subsystem.
const ASSOCIATIONS_MAX: usize = 16_384;
/// Session numbers are unique in the process: those of local links count from 1.
const TCP_SESSIONS_FROM: u64 = 1 << 32;
