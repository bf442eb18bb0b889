//! The service over the in-memory store and links inside the process.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use nacre_mgs::Mgs;
use nacre_osd::model::{Crash, ModelStore};
use nacre_reactor::Env;
use nacre_transport::CallError;
use nacre_transport::host::{Import, ImportError, ImportLink, ImportObserver, PeerSpec};
use nacre_transport::local::{LocalConnector, LocalNet, serve_local};
use nacre_transport::stubs::MgsClient;
use nacre_wire::ldlm::Event;
use nacre_wire::map::{MGS_NQN, TargetKind};
use nacre_wire::mgs::{Register, RegisterReply, SetParam};
use nacre_wire::session::{ConnectReply, ConnectRequest};
use nacre_wire::{Nid, Status, Uuid};

#[derive(Default)]
struct Events(RefCell<Vec<Event>>);

impl ImportObserver for Events {
    fn event(&self, event: Event) {
        self.0.borrow_mut().push(event);
    }
    fn will_replay(&self) -> bool {
        false
    }
    fn replay(&self, _: ImportLink, _: ConnectReply) -> LocalBoxFuture<'static, Result<(), CallError>> {
        Box::pin(async { Ok(()) })
    }
    fn evicted(&self) {}
}

fn client(net: &LocalNet, number: u16, observer: Rc<dyn ImportObserver>) -> MgsClient {
    let env = Env::system();
    let connect = ConnectRequest {
        client_uuid: env.uuid(),
        client_name: format!("test{number}"),
        fsname: String::new(),
        target_uuid: None,
        features: Vec::new(),
        last_incarnation: 0,
        will_replay: false,
    };
    let spec = PeerSpec { label: "MGS".into(), nqn: MGS_NQN.into(), nids: vec![Nid::local(1)], connect };
    let connector = Rc::new(LocalConnector::new(net, Nid::local(number), "test"));
    MgsClient { import: Import::new(env, connector, spec, observer) }
}

fn ost(number: u64) -> Register {
    Register {
        fsname: "nacre".into(),
        fs_uuid: None,
        target_uuid: Uuid::from_random(number, 0),
        kind: TargetKind::Ost,
        index: None,
        nids: vec![Nid::local(2)],
        incarnation: 1,
    }
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn what_was_answered_is_there_after_a_crash_and_watchers_hear_of_it() {
    let store = Rc::new(ModelStore::crashable());
    let net = LocalNet::new();
    let mgs = Mgs::start(Env::system(), store.clone()).await.unwrap();
    let server = serve_local(&net, Nid::local(1), mgs);
    let events = Rc::new(Events::default());
    let one = client(&net, 10, events.clone());
    assert_eq!(one.map("nacre").await, Err(ImportError::Status(Status::ENOENT)));

    let RegisterReply::Registered { fs_uuid, index, .. } = one.register(&ost(1)).await.unwrap() else {
        panic!("refused")
    };
    assert_eq!((index, one.map("nacre").await.unwrap().epoch), (0, 1));
    let two = client(&net, 11, Rc::new(Events::default()));
    two.register(&ost(2)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(*events.0.borrow(), [Event::MapChanged { epoch: 2 }]);

    let set = |value: Option<&str>| SetParam {
        fsname: "nacre".into(),
        name: "osc.max_dirty_mb".into(),
        value: value.map(str::to_owned),
    };
    two.set_param(&set(Some("64"))).await.unwrap();
    drop(server);
    let mgs = Mgs::start(Env::system(), Rc::new(store.crash(Crash::PowerLoss))).await.unwrap();
    let _server = serve_local(&net, Nid::local(1), mgs);
    let map = one.map("nacre").await.unwrap();
    assert_eq!((map.epoch, map.fs_uuid, map.targets.len()), (2, fs_uuid, 2));
    assert_eq!(one.params("nacre").await.unwrap(), [("osc.max_dirty_mb".to_owned(), "64".to_owned())]);
    one.set_param(&set(None)).await.unwrap();
    assert_eq!(one.set_param(&set(None)).await, Err(ImportError::Status(Status::ENOENT)));
    assert_eq!(one.filesystems().await.unwrap(), ["nacre"]);
    let RegisterReply::Refused(why) = one.register(&Register { fsname: "no/name".into(), ..ost(3) }).await.unwrap()
    else {
        panic!("taken")
    };
    assert!(why.contains("no/name"));
}
