//! The OST stub against an OST of a page: handles follow the session, large writes are divided.

mod common;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use common::run_virtual;
use futures_util::future::LocalBoxFuture;
use nacre_reactor::{Bytes, Env};
use nacre_transport::host::{Import, ImportError, PeerSpec, Unobserved};
use nacre_transport::local::{LocalConnector, LocalNet, serve_local};
use nacre_transport::stubs::{OstClient, WriteRange};
use nacre_transport::target::dispatch;
use nacre_transport::{Answer, Call, Service, Session};
use nacre_wire::op::Opcode;
use nacre_wire::ost::{OP_OPEN_OBJECT, OpenObject, OpenObjectReply};
use nacre_wire::session::{ConnectReply, ConnectRequest, OP_CONNECT};
use nacre_wire::{Attr, Fid, Nid, Status, Time, Uuid};

/// Objects are byte vectors; handles are of one session.
#[derive(Default)]
struct SmallOst {
    objects: RefCell<BTreeMap<Fid, Vec<u8>>>,
    handles: RefCell<BTreeMap<(u64, u32), Fid>>,
    last_handle: Cell<u32>,
    opens: Cell<u32>,
    commands: Cell<u32>,
}

impl SmallOst {
    fn object(&self, session: &Session, handle: u32) -> Result<Fid, Status> {
        self.handles.borrow().get(&(session.id, handle)).copied().ok_or(Status::EBADF)
    }

    fn write(&self, object: Fid, offset: u64, data: &[u8]) {
        let mut objects = self.objects.borrow_mut();
        let bytes = objects.entry(object).or_default();
        let end = offset as usize + data.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[offset as usize..end].copy_from_slice(data);
    }

    fn run(&self, session: &Session, call: &Call) -> Result<Answer, Status> {
        match call.op {
            Opcode::RpcSend => match dispatch::rpc_args(call)?.operation.get() {
                OP_CONNECT => {
                    let _: ConnectRequest = dispatch::rpc_body(call)?;
                    let reply = ConnectReply {
                        incarnation: 1,
                        resumed: true,
                        recovering: false,
                        last_committed: 0,
                        features: Vec::new(),
                        io_bytes_max: 4 << 20,
                        object_bytes_max: 1 << 40,
                        grant_bytes: 0,
                        reply_slots: 1,
                    };
                    Ok(dispatch::rpc_answer(&reply, 0))
                }
                OP_OPEN_OBJECT => {
                    let request: OpenObject = dispatch::rpc_body(call)?;
                    if request.object.is_none() {
                        return Err(Status::ENOENT);
                    }
                    self.opens.set(self.opens.get() + 1);
                    self.last_handle.set(self.last_handle.get() + 1);
                    let handle = self.last_handle.get();
                    self.handles.borrow_mut().insert((session.id, handle), request.object);
                    Ok(dispatch::rpc_answer(&OpenObjectReply { handle, attr: Attr::default() }, 0))
                }
                _ => Err(Status::UNKNOWN_OPERATION),
            },
            Opcode::Mwrite => {
                self.commands.set(self.commands.get() + 1);
                let (_, ranges) = dispatch::mwrite(call)?;
                for (entry, data) in ranges {
                    let object = self.object(session, entry.handle.get())?;
                    self.write(object, entry.offset_bytes.get(), &data);
                }
                Ok(Answer::default())
            }
            Opcode::Read => {
                let io = dispatch::object_io(call)?;
                let object = self.object(session, io.handle.get())?;
                let objects = self.objects.borrow();
                let bytes = objects.get(&object).map_or(&[][..], |bytes| bytes);
                let start = (io.offset_bytes.get() as usize).min(bytes.len());
                let end = (start + io.length_bytes.get() as usize).min(bytes.len());
                let data = Bytes::copy_from_slice(&bytes[start..end]);
                Ok(Answer { result: data.len() as u64, data })
            }
            _ => Err(Status::EOPNOTSUPP),
        }
    }
}

impl Service for SmallOst {
    fn nqn(&self) -> String {
        "nqn.small".to_owned()
    }

    fn uuid(&self) -> Uuid {
        Uuid::NIL
    }

    fn serve(self: Rc<Self>, session: Rc<Session>, call: Call) -> LocalBoxFuture<'static, Result<Answer, Status>> {
        Box::pin(async move { self.run(&session, &call) })
    }

    fn closed(self: Rc<Self>, session: Rc<Session>) {
        self.handles.borrow_mut().retain(|(id, _), _| *id != session.id);
    }
}

fn client(net: &LocalNet) -> OstClient {
    let connector = Rc::new(LocalConnector::new(net, Nid::local(2), "tester"));
    let connect = ConnectRequest {
        client_uuid: Uuid::from_random(1, 1),
        client_name: "tester".to_owned(),
        fsname: "nacre".to_owned(),
        target_uuid: None,
        features: Vec::new(),
        last_incarnation: 0,
        will_replay: false,
    };
    let nids = vec![Nid::local(1)];
    let spec = PeerSpec { label: "small".to_owned(), nqn: "nqn.small".to_owned(), nids, connect };
    OstClient::new(Import::new(Env::system(), connector, spec, Rc::new(Unobserved)))
}

fn range(object: Fid, offset_bytes: u64, data: Vec<Bytes>) -> WriteRange {
    WriteRange { object, offset_bytes, time: Time::default(), lock_cookie: 0, layout_generation: 0, data }
}

#[test]
fn handles_are_opened_once_and_again_after_a_reconnect() {
    run_virtual(async {
        let net = LocalNet::new();
        let ost = Rc::new(SmallOst::default());
        let _server = serve_local(&net, Nid::local(1), ost.clone());
        let client = client(&net);
        let object = Fid::ost_object(0, 1);
        for i in 0..3 {
            client.mwrite(vec![range(object, i, vec![Bytes::from(vec![i as u8])])], 0).await.unwrap();
        }
        assert_eq!(ost.opens.get(), 1);
        net.faults().cut_all();
        assert_eq!(client.read(object, 0, 10, 0).await.unwrap(), [0u8, 1, 2].as_slice());
        assert_eq!(ost.opens.get(), 2);
        // The server closed the handle by itself: EBADF, and another.
        ost.handles.borrow_mut().clear();
        assert_eq!(client.read(object, 2, 10, 0).await.unwrap(), [2u8].as_slice());
        let gone = client.read(Fid::NONE, 0, 10, 0).await;
        assert_eq!(gone, Err(ImportError::Status(Status::ENOENT)));
    });
}

#[test]
fn writes_larger_than_a_command_are_divided() {
    run_virtual(async {
        let net = LocalNet::new();
        let ost = Rc::new(SmallOst::default());
        let _server = serve_local(&net, Nid::local(1), ost.clone());
        let client = client(&net);
        let (one, two) = (Fid::ost_object(0, 1), Fid::ost_object(0, 2));
        let bytes: Vec<u8> = (0..9 << 20).map(|i: u32| (i / 4096) as u8 ^ i as u8).collect();
        let whole = Bytes::from(bytes);
        let pieces: Vec<Bytes> = (0..9).map(|i| whole.slice(i << 20..(i + 1) << 20)).collect();
        let empty = range(two, 5, Vec::new());
        client.mwrite(vec![range(one, 100, pieces), empty, range(two, 0, vec![whole.slice(..10)])], 0).await.unwrap();
        assert_eq!(ost.commands.get(), 3);
        assert!(ost.objects.borrow()[&one][100..] == whole);
        assert!(ost.objects.borrow()[&two] == whole[..10]);
    });
}
