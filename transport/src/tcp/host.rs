//! Opening associations over TCP, and the link that they make.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::io;
use std::rc::{Rc, Weak};
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use nacre_reactor::{Bytes, Env};
use nacre_wire::ldlm::{Event, EventBatch, OP_CANCEL, OP_GLIMPSE_REPLY};
use nacre_wire::nid::Fabric;
use nacre_wire::op::{CSI_OBJECT, DATA_BYTES_MAX, NSID_EVENT, NSID_RPC, Opcode, RpcArgs};
use nacre_wire::{Nid, Status, Uuid, codec};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::Fault;
use super::host_queue::{Completion, HostConnection, Queue, QueueLimits, Request};
use super::pdu::{CapsuleCmd, Common, Digests, Head, Ic, Receiver, Violation, kind};
use super::rx::Rx;
use super::target::next_head;
use super::tx::Tx;
use crate::nvme::fabrics::{self, ConnectData, ConnectSqe, property};
use crate::nvme::identify::{self, Controller, ObjectController, cns};
use crate::nvme::{Sgl, Sqe, StatusField, admin, feature};
use crate::{Answer, Call, CallError, ConnectError, Connector, Link};

/// How to connect over TCP.
#[derive(Clone, Debug)]
pub struct TcpOptions {
    /// Who connects.
    pub host_nqn: String,
    /// Who connects, as 16 bytes.
    pub host_id: Uuid,
    /// Connections for I/O beside the admin connection, 1–64.
    pub io_queues: u16,
    /// Entries of each I/O queue, 16–1023; one fewer commands are under way at once.
    pub queue_entries: u16,
    /// CRC32C over headers.
    pub header_digest: bool,
    /// CRC32C over data.
    pub data_digest: bool,
    /// After so long without a word the other side is given up.
    pub keep_alive: Duration,
}

impl TcpOptions {
    /// What fits most: two I/O queues, no digests (TCP has a checksum and stored data its own), 5 s.
    pub fn new(env: &Env) -> TcpOptions {
        let host_id = env.uuid();
        TcpOptions {
            host_nqn: format!("nqn.2014-08.org.nvmexpress:uuid:{host_id}"),
            host_id,
            io_queues: 2,
            queue_entries: 256,
            header_digest: false,
            data_digest: false,
            keep_alive: Duration::from_secs(5),
        }
    }
}

/// Opens links over TCP.
pub struct TcpConnector {
    options: Rc<TcpOptions>,
}

impl TcpConnector {
    /// A connector; all its links are of one host.
    pub fn new(options: TcpOptions) -> TcpConnector {
        TcpConnector { options: Rc::new(options) }
    }
}

impl Connector for TcpConnector {
    fn connect(&self, nid: Nid, nqn: String) -> LocalBoxFuture<'static, Result<Rc<dyn Link>, ConnectError>> {
        let options = self.options.clone();
        Box::pin(async move {
            if nid.fabric != Fabric::Tcp {
                return Err(ConnectError::Refused { nid, reason: "not reached over TCP".to_owned() });
            }
            let opened = timeout(CONNECT_MAX, open(&options, nid, &nqn)).await;
            match opened {
                Ok(Ok(link)) => Ok(link as Rc<dyn Link>),
                Ok(Err(trouble)) => Err(trouble.explain(nid, &nqn)),
                Err(_) => Err(ConnectError::Unreachable { nid, source: io::ErrorKind::TimedOut.into() }),
            }
        })
    }
}

/// Why an association did not come about.
enum Trouble {
    Io(io::Error),
    Protocol(String),
    Refused(StatusField, u64),
}

impl From<Fault> for Trouble {
    fn from(fault: Fault) -> Trouble {
        match fault {
            Fault::Io(error) => Trouble::Io(error),
            // A server that stops in the middle of it; one that does not speak NVMe/TCP mostly does so too.
            Fault::Closed => Trouble::Io(io::ErrorKind::ConnectionReset.into()),
            fault => Trouble::Protocol(fault.to_string()),
        }
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Trouble {
        Trouble::Io(error)
    }
}

impl Trouble {
    fn explain(self, nid: Nid, nqn: &str) -> ConnectError {
        match self {
            Trouble::Io(source) => ConnectError::Unreachable { nid, source },
            Trouble::Protocol(reason) => ConnectError::Protocol { nid, reason },
            Trouble::Refused(StatusField::CONNECT_INVALID, result)
                if result == fabrics::invalid_parameter(std::mem::offset_of!(ConnectData, subsystem_nqn), true) =>
            {
                ConnectError::Refused { nid, reason: format!("no subsystem {nqn}") }
            }
            Trouble::Refused(status, result) => {
                let reason = format!("Connect to {nqn} refused with status {:#x}, result {result:#x}", status.0);
                ConnectError::Refused { nid, reason }
            }
        }
    }
}

async fn open(options: &TcpOptions, nid: Nid, nqn: &str) -> Result<Rc<TcpLink>, Trouble> {
    let life = Rc::new(Life { ended: watch::Sender::new(false), queues: std::cell::RefCell::default() });
    // Should anything fail below, what is open already is closed again.
    let mut guard = EndUnlessKept(Some(life.clone()));
    let keep_alive_ms = u32::try_from(options.keep_alive.as_millis()).unwrap_or(u32::MAX);
    let (admin, controller_id) =
        open_queue(options, nid, nqn, &life, 0, ADMIN_ENTRIES, fabrics::CONTROLLER_ANY, keep_alive_ms).await?;

    let capabilities = property_get(&admin, property::CAP, true).await?;
    if capabilities >> 43 & 1 == 0 {
        return Err(Trouble::Protocol("the controller knows no I/O command sets but NVM".to_owned()));
    }
    // EN; CSS 110b: all supported command sets; entries of 64 and 16 bytes. Base, 3.1.3.5.
    property_set(&admin, property::CC, 1 | 6 << 4 | 6 << 16 | 4 << 20).await?;
    while property_get(&admin, property::CSTS, false).await? & 1 == 0 {
        sleep(READY_LOOK).await;
    }
    let controller = identify(&admin, cns::CONTROLLER, 0).await?;
    let controller = Controller::ref_from_bytes(&controller).map_err(|_| short())?;
    let capsule_bytes = (controller.ioccsz.get() as usize).saturating_mul(16);
    let capsule_data_bytes = capsule_bytes.saturating_sub(size_of::<Sqe>()).min(super::pdu::CAPSULE_DATA_BYTES_MAX);
    let object = identify(&admin, cns::CONTROLLER_FOR_CSI, CSI_OBJECT).await?;
    let object = ObjectController::ref_from_bytes(&object).map_err(|_| short())?;
    if object.version.get() >> 16 != identify::OBJECT_VERSION >> 16 {
        let reason =
            format!("object command set version {:#x}, wanted {:#x}", object.version, identify::OBJECT_VERSION);
        return Err(Trouble::Protocol(reason));
    }
    let data_bytes_max = object.data_bytes_max.get().min(DATA_BYTES_MAX);

    let wanted = u32::from(options.io_queues.clamp(1, 64)) - 1;
    let mut sqe = command(admin::SET_FEATURES, 0);
    sqe.cdw10_15[0] = u32::from(feature::NUMBER_OF_QUEUES).into();
    sqe.cdw10_15[1] = (wanted << 16 | wanted).into();
    let given = done(admin.command(sqe, Bytes::new(), 0).await, "Set Features")?.result as u32;
    let io_queues = wanted.min(given & 0xffff).min(given >> 16) as u16 + 1;
    let mut queues = Vec::new();
    for id in 1..=io_queues {
        let entries = options.queue_entries.clamp(16, 1023);
        let (queue, _) = open_queue(options, nid, nqn, &life, id, entries, controller_id, 0).await?;
        queue.set_capsule_data_bytes(capsule_data_bytes);
        queues.push(queue);
    }
    let (event_sender, events) = mpsc::unbounded_channel();
    let link = Rc::new(TcpLink {
        queues,
        life: life.clone(),
        next_tag: Cell::new(1),
        turn: Cell::new(0),
        data_bytes_max,
        events: Rc::new(tokio::sync::Mutex::new(events)),
    });
    spawn_local(keep_alive(admin, life.clone(), options.keep_alive));
    let order = Rc::new(EventOrder { next: Cell::new(1), early: std::cell::RefCell::default(), to: event_sender });
    for _ in 0..EVENT_WAITS {
        spawn_local(wait_for_events(Rc::downgrade(&link), order.clone(), life.clone()));
    }
    guard.0 = None;
    Ok(link)
}

#[allow(clippy::too_many_arguments, reason = "the fields of Connect; one caller for each kind of queue")]
async fn open_queue(
    options: &TcpOptions,
    nid: Nid,
    nqn: &str,
    life: &Rc<Life>,
    queue_id: u16,
    entries: u16,
    controller_id: u16,
    keep_alive_ms: u32,
) -> Result<(Rc<Queue>, u16), Trouble> {
    let stream = TcpStream::connect(nid.address).await?;
    stream.set_nodelay(true)?;
    let (mut read, mut write) = stream.into_split();
    let (mut rx, mut tx) = (Rx::new(Receiver::Host), Tx::default());
    let digest_bits = u8::from(options.header_digest) | u8::from(options.data_digest) << 1;
    let request = Ic {
        common: Common::default(),
        version: 0.into(),
        data_alignment: 0,
        digests: digest_bits,
        limit: 0.into(),
        reserved: [[0; 56]; 2],
    };
    tx.push(kind::IC_REQ, 0, &request, &[]);
    poll_fn(|cx| tx.poll_flush(&mut write, cx)).await?;
    let Head::Ic(response) = next_head(&mut rx, &mut read).await?.head else {
        return Err(Fault::from(Violation::sequence("ICResp comes first")).into());
    };
    let h2c_data_bytes = response.limit.get() as usize;
    if response.version.get() != 0
        || response.data_alignment != 0
        || response.digests != digest_bits
        || h2c_data_bytes < 4096
    {
        return Err(Trouble::Protocol("ICResp asks for what this host cannot do".to_owned()));
    }
    let digests = Digests { header: options.header_digest, data: options.data_digest };
    rx.set_digests(digests);
    tx.set_digests(digests);

    let connect = ConnectSqe {
        opcode: fabrics::OPCODE,
        flags: Sqe::FLAGS_SGL,
        cid: 0.into(),
        kind: fabrics::CONNECT,
        reserved: [0; 19],
        sgl: Sgl::new(Sgl::IN_CAPSULE, size_of::<ConnectData>() as u32),
        record_format: 0.into(),
        queue_id: queue_id.into(),
        sq_size: (entries - 1).into(),
        attributes: fabrics::CATTR_NO_FLOW_CONTROL,
        reserved_middle: 0,
        keep_alive_ms: keep_alive_ms.into(),
        reserved_tail: [0; 12],
    };
    let mut data = ConnectData::new_zeroed();
    data.host_id = options.host_id.0;
    data.controller_id = controller_id.into();
    data.subsystem_nqn = fabrics::nqn_field(nqn);
    data.host_nqn = fabrics::nqn_field(&options.host_nqn);
    let capsule = CapsuleCmd { common: Common::default(), sqe: connect.to_sqe() };
    tx.push(kind::CAPSULE_CMD, 0, &capsule, &[Bytes::copy_from_slice(data.as_bytes())]);
    poll_fn(|cx| tx.poll_flush(&mut write, cx)).await?;
    let cqe = match next_head(&mut rx, &mut read).await?.head {
        Head::Response(cqe) => cqe,
        Head::Term(request) => {
            let reason = format!("Connect was answered with fatal status {}", request.status);
            return Err(Trouble::Protocol(reason));
        }
        _ => return Err(Fault::from(Violation::sequence("Connect must be answered first")).into()),
    };
    if cqe.status() != StatusField::SUCCESS {
        return Err(Trouble::Refused(cqe.status(), cqe.result.get()));
    }
    let limits = QueueLimits { capsule_data_bytes: ADMIN_CAPSULE_DATA_BYTES, h2c_data_bytes, commands: entries - 1 };
    let queue = Queue::new(tx, limits);
    life.queues.borrow_mut().push(queue.clone());
    let connection = HostConnection { queue: queue.clone(), rx, read, write, receiving: None };
    let life = life.clone();
    spawn_local(async move {
        let fault = connection.run().await;
        if !*life.ended.borrow() {
            tracing::debug!("{nid}: queue {queue_id} ended: {fault}");
        }
        life.end();
    });
    Ok((queue, cqe.result.get() as u16))
}

/// Whether the association lives; its queues, which end together.
struct Life {
    ended: watch::Sender<bool>,
    queues: std::cell::RefCell<Vec<Rc<Queue>>>,
}

impl Life {
    fn end(&self) {
        self.ended.send_replace(true);
        for queue in self.queues.take() {
            queue.close();
        }
    }

    async fn ended(&self) {
        // The sender is `self`: it cannot be gone.
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }
}

struct EndUnlessKept(Option<Rc<Life>>);

impl Drop for EndUnlessKept {
    fn drop(&mut self) {
        if let Some(life) = self.0.take() {
            life.end();
        }
    }
}

struct TcpLink {
    queues: Vec<Rc<Queue>>,
    life: Rc<Life>,
    next_tag: Cell<u32>,
    turn: Cell<usize>,
    data_bytes_max: u32,
    events: Rc<tokio::sync::Mutex<mpsc::UnboundedReceiver<Vec<Event>>>>,
}

impl TcpLink {
    /// The queue for the next call: the one in use as long as it has room and its batch is not long, then the next.
    fn queue(&self) -> &Rc<Queue> {
        let turn = self.turn.get();
        self.turn.set(turn.wrapping_add(1));
        let first = turn / CALLS_PER_QUEUE;
        let candidates = (0..self.queues.len()).map(|i| &self.queues[(first + i) % self.queues.len()]);
        let mut best = &self.queues[first % self.queues.len()];
        for queue in candidates {
            if queue.free() > QUEUE_ROOM {
                return queue;
            }
            if queue.free() > best.free() {
                best = queue;
            }
        }
        best
    }

    fn send(&self, call: Call, more: Vec<Bytes>) -> Result<oneshot::Receiver<Completion>, Status> {
        let data_bytes = call.data.len() + more.iter().map(Bytes::len).sum::<usize>();
        if data_bytes > self.data_bytes_max as usize || call.reply_bytes_max > self.data_bytes_max {
            return Err(Status::EINVAL);
        }
        let mut data = Vec::with_capacity(1 + more.len());
        data.push(call.data);
        data.extend(more);
        data.retain(|piece| !piece.is_empty());
        let (answer, wait) = oneshot::channel();
        let mut sqe = command(call.op as u8, NSID_RPC);
        let mut urgent = matches!(call.op, Opcode::Write | Opcode::Mwrite | Opcode::SetAttr);
        let requests = if call.op == Opcode::RpcSend {
            let tag = self.next_tag.replace(self.next_tag.get().wrapping_add(1));
            let mut args = RpcArgs::read_from_bytes(&call.args).expect("RpcArgs is 32 bytes");
            args.tag = tag.into();
            args.request_bytes = (data_bytes as u32).into();
            args.reply_bytes_max = call.reply_bytes_max.into();
            urgent = matches!(args.operation.get(), OP_CANCEL | OP_GLIMPSE_REPLY);
            sqe.set_args(args.as_bytes().try_into().expect("32 bytes"));
            let mut receive = sqe;
            receive.opcode = Opcode::RpcRecv as u8;
            vec![
                Request { sqe, data, reply_bytes_max: 0, answer: None },
                Request { sqe: receive, data: Vec::new(), reply_bytes_max: call.reply_bytes_max, answer: Some(answer) },
            ]
        } else {
            if call.op == Opcode::EventWait {
                sqe.nsid = NSID_EVENT.into();
                urgent = true;
            }
            sqe.set_args(&call.args);
            vec![Request { sqe, data, reply_bytes_max: call.reply_bytes_max, answer: Some(answer) }]
        };
        self.queue().submit(requests, urgent);
        Ok(wait)
    }
}

impl Link for TcpLink {
    fn call(&self, call: Call) -> LocalBoxFuture<'static, Result<Answer, CallError>> {
        self.call_gather(call, Vec::new())
    }

    fn call_gather(&self, call: Call, more: Vec<Bytes>) -> LocalBoxFuture<'static, Result<Answer, CallError>> {
        match self.send(call, more) {
            Ok(wait) => Box::pin(async move { answer(wait.await.map_err(|_| CallError::Lost)?) }),
            Err(status) => Box::pin(async move { Err(CallError::Status(status)) }),
        }
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
        self.data_bytes_max
    }
}

impl Drop for TcpLink {
    fn drop(&mut self) {
        self.life.end();
    }
}

fn answer(completion: Completion) -> Result<Answer, CallError> {
    match completion.status.to_service() {
        None => Ok(Answer { result: completion.result, data: completion.data }),
        Some(Status::REPLY_TOO_LARGE) => {
            Err(CallError::ReplyTooLarge { bytes: u32::try_from(completion.result).unwrap_or(u32::MAX) })
        }
        Some(status) => Err(CallError::Status(status)),
    }
}

/// Sends a sign of life twice in each keep-alive time; ends the link when nothing comes back for one.
async fn keep_alive(admin: Rc<Queue>, life: Rc<Life>, period: Duration) {
    if period.is_zero() {
        return;
    }
    loop {
        tokio::select! {
            () = life.ended() => return,
            () = sleep(period / 2) => {}
        }
        let completion = timeout(period, admin.command(command(admin::KEEP_ALIVE, 0), Bytes::new(), 0));
        let completion = tokio::select! {
            () = life.ended() => return,
            completion = completion => completion,
        };
        if completion.is_err() {
            // Data under way on other queues says that the other side lives, and only its admin queue is slow.
            let signs = life.queues.borrow().iter().filter(|queue| queue.take_sign_of_life()).count();
            if signs == 0 {
                tracing::info!("keep-alive was not answered within {} ms", period.as_millis());
                life.end();
                return;
            }
        }
    }
}

/// Puts batches of events back in order: two waits are outstanding, and their answers may overtake each other.
struct EventOrder {
    next: Cell<u64>,
    early: std::cell::RefCell<BTreeMap<u64, Vec<Event>>>,
    to: mpsc::UnboundedSender<Vec<Event>>,
}

impl EventOrder {
    fn take(&self, batch: EventBatch) {
        let mut early = self.early.borrow_mut();
        early.insert(batch.first_sequence, batch.events);
        while let Some(events) = early.remove(&self.next.get()) {
            if events.is_empty() {
                continue;
            }
            self.next.set(self.next.get() + events.len() as u64);
            // The link has been dropped if nobody takes them.
            let _ = self.to.send(events);
        }
        // What has been seen, and empty batches.
        *early = early.split_off(&self.next.get());
    }
}

async fn wait_for_events(link: Weak<TcpLink>, order: Rc<EventOrder>, life: Rc<Life>) {
    loop {
        let Some(link) = link.upgrade() else { return };
        let mut args = [0; 32];
        args[8..16].copy_from_slice(&(order.next.get() - 1).to_le_bytes());
        let call = Call { op: Opcode::EventWait, args, data: Bytes::new(), reply_bytes_max: EVENT_BYTES_MAX };
        let answered = link.call(call);
        drop(link);
        match answered.await {
            Ok(answer) => match codec::decode::<EventBatch>(&answer.data) {
                Ok(batch) if !batch.events.is_empty() => order.take(batch),
                Ok(_) => {}
                Err(_) => {
                    tracing::warn!("events that cannot be decoded; the connection is given up");
                    return life.end();
                }
            },
            Err(CallError::Lost) => return,
            Err(error) => {
                tracing::warn!("EVENT_WAIT: {error}; the connection is given up");
                return life.end();
            }
        }
    }
}

fn command(opcode: u8, nsid: u32) -> Sqe {
    Sqe { opcode, nsid: nsid.into(), ..Sqe::default() }
}

fn done(completion: Result<Completion, CallError>, what: &str) -> Result<Completion, Trouble> {
    match completion {
        Ok(completion) if completion.status == StatusField::SUCCESS => Ok(completion),
        Ok(completion) => Err(Trouble::Protocol(format!("{what} failed with status {:#x}", completion.status.0))),
        Err(_) => Err(Trouble::Io(io::ErrorKind::ConnectionReset.into())),
    }
}

fn identify(admin: &Queue, cns: u8, csi: u8) -> impl Future<Output = Result<Bytes, Trouble>> + use<> {
    let mut sqe = command(admin::IDENTIFY, 0);
    sqe.cdw10_15[0] = u32::from(cns).into();
    sqe.cdw10_15[1] = (u32::from(csi) << 24).into();
    let answer = admin.command(sqe, Bytes::new(), 4096);
    async move { Ok(done(answer.await, "Identify")?.data) }
}

async fn property_get(admin: &Queue, offset: u32, eight: bool) -> Result<u64, Trouble> {
    let mut sqe = command(fabrics::OPCODE, fabrics::PROPERTY_GET.into());
    sqe.cdw10_15[0] = u32::from(eight).into();
    sqe.cdw10_15[1] = offset.into();
    Ok(done(admin.command(sqe, Bytes::new(), 0).await, "Property Get")?.result)
}

async fn property_set(admin: &Queue, offset: u32, value: u32) -> Result<(), Trouble> {
    let mut sqe = command(fabrics::OPCODE, fabrics::PROPERTY_SET.into());
    sqe.cdw10_15[1] = offset.into();
    sqe.cdw10_15[2] = value.into();
    done(admin.command(sqe, Bytes::new(), 0).await, "Property Set")?;
    Ok(())
}

fn short() -> Trouble {
    Trouble::Protocol("Identify was answered with too little data".to_owned())
}

/// For a whole association.
const CONNECT_MAX: Duration = Duration::from_secs(8);
const READY_LOOK: Duration = Duration::from_millis(10);
const ADMIN_ENTRIES: u16 = 32;
const ADMIN_CAPSULE_DATA_BYTES: usize = 8192;
const EVENT_WAITS: usize = 2;
const EVENT_BYTES_MAX: u32 = 64 << 10;
/// Calls that follow each other go together: they share writes and replies.
const CALLS_PER_QUEUE: usize = 16;
/// Below, another queue is looked for.
const QUEUE_ROOM: usize = 32;
