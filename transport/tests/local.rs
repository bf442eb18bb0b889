//! An import over the local transport: answers, evictions, replay, faults. Time is virtual.

mod common;

use std::rc::Rc;
use std::time::Duration;

use common::{Heard, Recorder, TestService, import_over, local, run_virtual, spec_for};
use nacre_reactor::Env;
use nacre_transport::Connector;
use nacre_transport::host::{Import, ImportError, ImportState, Rpc};
use nacre_transport::local::{LocalConnector, LocalNet, serve_local};
use nacre_wire::{Nid, Status};

const HERE: u16 = 100;
const THERE: u16 = 1;

fn connector(net: &LocalNet) -> Rc<dyn Connector> {
    Rc::new(LocalConnector::new(net, Nid::local(HERE), "tester"))
}

#[test]
fn a_call_is_answered_without_copying_its_data() {
    run_virtual(async {
        let net = LocalNet::new();
        let service = TestService::new("one");
        let _server = serve_local(&net, Nid::local(THERE), service.clone());
        let link = connector(&net).connect(Nid::local(THERE), service.nqn.clone()).await.unwrap();
        let data = nacre_reactor::DmaBuf::zeroed(8192).freeze();
        let answer = link.call(common::write_call(0, data.clone())).await.unwrap();
        assert_eq!(answer.result, 8192);
        let back = link.call(common::read_call(0, 8192)).await.unwrap();
        assert_eq!(back.data.as_ptr(), data.as_ptr());
    });
}

#[test]
fn unknown_services_are_refused_in_words() {
    run_virtual(async {
        let net = LocalNet::new();
        let service = TestService::new("one");
        let _server = serve_local(&net, Nid::local(THERE), service.clone());
        let error = connector(&net).connect(Nid::local(THERE), "nqn.x".to_owned()).await.err().unwrap();
        assert!(error.to_string().contains("no subsystem nqn.x"), "{error}");
        let error = connector(&net).connect(Nid::local(9), service.nqn.clone()).await.err().unwrap();
        assert!(error.to_string().starts_with("9@local: "), "{error}");
    });
}

#[test]
fn requests_survive_a_cut_link_and_are_marked_as_resent() {
    run_virtual(async {
        let net = LocalNet::new();
        let service = TestService::new("one");
        let _server = serve_local(&net, Nid::local(THERE), service.clone());
        let (import, recorder) = import_over(connector(&net), Nid::local(THERE), &service);
        import.wait_full().await.unwrap();
        service.hold.set(true);
        let asked = tokio::task::spawn_local({
            let import = import.clone();
            async move { import.rpc(common::OP_ECHO, b"hello".as_slice().into(), 100).await }
        });
        tokio::time::sleep(Duration::from_millis(10)).await;
        service.hold.set(false);
        net.faults().cut_all();
        assert_eq!(asked.await.unwrap().unwrap(), "hello");
        assert_eq!(service.resent.get(), 1);
        assert_eq!(recorder.take(), [Heard::Connected, Heard::Disconnected, Heard::Connected]);
    });
}

#[test]
fn a_restarted_server_is_told_before_requests_pass() {
    run_virtual(async {
        let net = LocalNet::new();
        let service = TestService::new("one");
        let server = serve_local(&net, Nid::local(THERE), service.clone());
        let (import, recorder) = import_over(connector(&net), Nid::local(THERE), &service);
        import.wait_full().await.unwrap();
        drop(server);
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_ne!(import.state(), ImportState::Full);
        let service = service.restarted(true);
        let _server = serve_local(&net, Nid::local(THERE), service.clone());
        assert_eq!(import.rpc(common::OP_ECHO, b"x".as_slice().into(), 100).await.unwrap(), "x");
        assert_eq!(recorder.take(), [Heard::Connected, Heard::Disconnected, Heard::Replay, Heard::Connected]);
    });
}

#[test]
fn an_evicted_client_hears_of_it_and_unrepeatable_requests_fail() {
    run_virtual(async {
        let net = LocalNet::new();
        let service = TestService::new("one");
        let server = serve_local(&net, Nid::local(THERE), service.clone());
        let (import, recorder) = import_over(connector(&net), Nid::local(THERE), &service);
        import.wait_full().await.unwrap();
        service.hold.set(true);
        let ask = |once: bool| {
            let import = import.clone();
            let rpc = Rpc {
                operation: common::OP_ECHO,
                xid: import.next_xid(),
                body: b"y".as_slice().into(),
                reply_bytes_max: 10,
                once,
            };
            tokio::task::spawn_local(async move { import.rpc_with_xid(rpc).await.map(|reply| reply.body) })
        };
        let (once, many) = (ask(true), ask(false));
        tokio::time::sleep(Duration::from_millis(10)).await;
        drop(server);
        let _server = serve_local(&net, Nid::local(THERE), service.restarted(false));
        assert_eq!(once.await.unwrap(), Err(ImportError::Evicted));
        assert_eq!(many.await.unwrap().unwrap(), "y");
        assert_eq!(recorder.take(), [Heard::Connected, Heard::Disconnected, Heard::Evicted, Heard::Connected]);
    });
}

#[test]
fn a_server_that_forgets_a_session_is_connected_again() {
    run_virtual(async {
        let net = LocalNet::new();
        let service = TestService::new("one");
        let _server = serve_local(&net, Nid::local(THERE), service.clone());
        let (import, recorder) = import_over(connector(&net), Nid::local(THERE), &service);
        import.wait_full().await.unwrap();
        service.forget.set(true);
        assert_eq!(import.rpc(common::OP_ECHO, b"z".as_slice().into(), 100).await.unwrap(), "z");
        assert!(recorder.take().contains(&Heard::Evicted));
    });
}

#[test]
fn a_reply_that_is_too_large_is_fetched_again() {
    run_virtual(async {
        let net = LocalNet::new();
        let service = TestService::new("one");
        let _server = serve_local(&net, Nid::local(THERE), service.clone());
        let (import, _recorder) = import_over(connector(&net), Nid::local(THERE), &service);
        let body = vec![7u8; 1000];
        assert_eq!(import.rpc(common::OP_ECHO, body.clone().into(), 10).await.unwrap(), body);
        assert_eq!(import.rpc(999, body.into(), 10).await, Err(ImportError::Status(Status::UNKNOWN_OPERATION)));
    });
}

#[test]
fn events_arrive_in_order_each_once() {
    run_virtual(async {
        let net = LocalNet::new();
        let service = TestService::new("one");
        let _server = serve_local(&net, Nid::local(THERE), service.clone());
        let (import, recorder) = import_over(connector(&net), Nid::local(THERE), &service);
        import.wait_full().await.unwrap();
        recorder.take();
        for epoch in 0..1000 {
            service.send_event(epoch);
            if epoch % 7 == 0 {
                tokio::task::yield_now().await;
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert_eq!(recorder.take(), (0..1000).map(Heard::Event).collect::<Vec<_>>());
    });
}

#[test]
fn a_partition_holds_messages_and_ends_the_link_when_it_lasts() {
    run_virtual(async {
        let net = LocalNet::new();
        let service = TestService::new("one");
        let _server = serve_local(&net, Nid::local(THERE), service.clone());
        let (import, recorder) = import_over(connector(&net), Nid::local(THERE), &service);
        import.wait_full().await.unwrap();
        let start = tokio::time::Instant::now();
        let (here, there) = (Nid::local(HERE), Nid::local(THERE));
        net.faults().part(here, there);
        let asked = tokio::task::spawn_local({
            let import = import.clone();
            async move { import.rpc(common::OP_ECHO, b"1".as_slice().into(), 100).await }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!asked.is_finished());
        net.faults().heal(here, there);
        assert_eq!(asked.await.unwrap().unwrap(), "1");
        assert_eq!(recorder.take(), [Heard::Connected]);
        assert!(start.elapsed() < Duration::from_secs(2));
        net.faults().part(here, there);
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert_eq!(recorder.take(), [Heard::Disconnected]);
        net.faults().heal_all();
        assert_eq!(import.rpc(common::OP_ECHO, b"2".as_slice().into(), 100).await.unwrap(), "2");
    });
}

#[test]
fn a_service_that_has_moved_is_followed_at_once() {
    run_virtual(async {
        let net = LocalNet::new();
        let service = TestService::new("one");
        let _old = serve_local(&net, Nid::local(THERE), service.clone());
        let (import, recorder) = import_over(connector(&net), Nid::local(THERE), &service);
        import.wait_full().await.unwrap();
        let elsewhere = Nid::local(7);
        let _new = serve_local(&net, elsewhere, service.restarted(true));
        let start = tokio::time::Instant::now();
        import.reconnect_now(vec![elsewhere]);
        tokio::task::yield_now().await;
        assert_eq!(import.rpc(common::OP_ECHO, b"x".as_slice().into(), 100).await.unwrap(), "x");
        assert_eq!(import.connect_reply().unwrap().incarnation, 2);
        assert_eq!(recorder.take(), [Heard::Connected, Heard::Disconnected, Heard::Replay, Heard::Connected]);
        assert_eq!(start.elapsed(), Duration::ZERO);
    });
}

#[test]
fn delays_are_those_that_were_asked_for() {
    run_virtual(async {
        let net = LocalNet::new();
        let service = TestService::new("one");
        let _server = serve_local(&net, Nid::local(THERE), service.clone());
        let link = connector(&net).connect(Nid::local(THERE), service.nqn.clone()).await.unwrap();
        net.faults().set_delay(|_, _| Duration::from_millis(30));
        let start = tokio::time::Instant::now();
        link.call(common::read_call(0, 1)).await.unwrap();
        assert_eq!(start.elapsed().as_millis(), 60);
    });
}

#[test]
fn a_closed_import_answers_at_once_even_with_nobody_there() {
    run_virtual(async {
        let net = LocalNet::new();
        let service = TestService::new("one");
        let spec = spec_for(Nid::local(THERE), &service);
        let import = Import::new(Env::system(), connector(&net), spec, Recorder::new());
        let waiting = tokio::task::spawn_local({
            let import = import.clone();
            async move { import.rpc(common::OP_ECHO, b"".as_slice().into(), 0).await }
        });
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(import.last_trouble().contains("1@local"), "{}", import.last_trouble());
        import.close(Duration::from_secs(30)).await;
        assert_eq!(waiting.await.unwrap(), Err(ImportError::Closed));
        assert_eq!(import.wait_full().await, Err(ImportError::Closed));
        assert_eq!(Status::from(ImportError::Closed), Status::ESHUTDOWN);
    });
}

#[test]
fn services_on_other_threads_are_reached() {
    let net = LocalNet::new();
    let (ready, wait_ready) = std::sync::mpsc::channel();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server_net = net.clone();
    let server = std::thread::spawn(move || {
        local(async move {
            let service = TestService::new("one");
            let _server = serve_local(&server_net, Nid::local(THERE), service.clone());
            ready.send(service.nqn.clone()).unwrap();
            let _ = stopped.await;
        });
    });
    let nqn = wait_ready.recv().unwrap();
    local(async move {
        let link = connector(&net).connect(Nid::local(THERE), nqn).await.unwrap();
        for i in 0..100 {
            let data = vec![i as u8; 100];
            link.call(common::write_call(i * 100, data.clone().into())).await.unwrap();
            assert_eq!(link.call(common::read_call(i * 100, 100)).await.unwrap().data, data);
        }
        stop.send(()).unwrap();
        tokio::time::timeout(Duration::from_secs(5), link.ended()).await.unwrap();
    });
    server.join().unwrap();
}
