//! Host and target over TCP on loopback, with a service in memory; and what strangers on the port get.

mod common;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use common::{Heard, TestService, import_over, local};
use nacre_reactor::{Bytes, DmaBuf, Env};
use nacre_transport::tcp::{TcpConnector, TcpListening, TcpOptions, TcpService, TcpTarget};
use nacre_transport::{CallError, ConnectError, Connector, Link};
use nacre_wire::op::Opcode;
use nacre_wire::{Nid, Status};
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

struct Served {
    target: TcpTarget,
    service: Rc<TestService>,
    home: TcpService,
    port: TcpListening,
}

impl Served {
    async fn new() -> Served {
        let target = TcpTarget::new();
        let service = TestService::new("one");
        let home = target.serve(service.clone());
        let port = target.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        Served { target, service, home, port }
    }

    fn nid(&self) -> Nid {
        Nid::tcp(self.port.address())
    }

    async fn connect(&self, options: TcpOptions) -> Rc<dyn Link> {
        TcpConnector::new(options).connect(self.nid(), self.service.nqn.clone()).await.unwrap()
    }
}

fn options() -> TcpOptions {
    TcpOptions::new(&Env::system())
}

fn with_digests() -> TcpOptions {
    TcpOptions { header_digest: true, data_digest: true, ..options() }
}

/// Runs a test that must not take long.
fn bounded(test: impl Future<Output = ()>) {
    local(async { timeout(Duration::from_secs(60), test).await.expect("the test hangs") });
}

fn pattern(length: usize, seed: u8) -> Bytes {
    let mut buf = DmaBuf::zeroed(length);
    for (i, byte) in buf.iter_mut().enumerate() {
        *byte = (i as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0] ^ seed;
    }
    buf.freeze()
}

async fn write_and_read(link: &dyn Link) {
    for (i, length) in [1, 511, 4096, 65536, 65537, 1 << 20, (4 << 20) - 1, 4 << 20].into_iter().enumerate() {
        let data = pattern(length, i as u8);
        let offset = i as u64 * (8 << 20);
        assert_eq!(link.call(common::write_call(offset, data.clone())).await.unwrap().result, length as u64);
        let back = link.call(common::read_call(offset, length as u32)).await.unwrap();
        assert!(back.data == data, "{length} bytes came back changed");
        assert_eq!(back.result, length as u64);
        // Shorter than asked for, as at the end of an object.
        if length < 4 << 20 {
            let back = link.call(common::read_call(offset, length as u32 + 1)).await.unwrap();
            assert!(back.data == data);
        }
    }
}

#[test]
fn data_of_all_sizes_comes_back() {
    bounded(async {
        let served = Served::new().await;
        write_and_read(&*served.connect(options()).await).await;
    });
}

#[test]
fn data_of_all_sizes_comes_back_with_digests() {
    bounded(async {
        let served = Served::new().await;
        write_and_read(&*served.connect(with_digests()).await).await;
    });
}

#[test]
fn data_is_gathered_from_pieces() {
    bounded(async {
        let served = Served::new().await;
        for options in [options(), with_digests()] {
            let link = served.connect(options).await;
            for length in [3000, 300_000] {
                let data = pattern(length, 3);
                let mut call = common::write_call(0, data.clone());
                call.data = data.slice(..10);
                let more = vec![data.slice(10..11), data.slice(11..2000), Bytes::new(), data.slice(2000..)];
                link.call_gather(call, more).await.unwrap();
                assert!(link.call(common::read_call(0, length as u32)).await.unwrap().data == data);
            }
        }
    });
}

#[test]
fn a_thousand_calls_at_once_over_many_queues() {
    bounded(async {
        let served = Served::new().await;
        let link = served.connect(TcpOptions { io_queues: 8, queue_entries: 64, ..with_digests() }).await;
        let calls: Vec<_> = (0..1000u64)
            .map(|i| {
                let link = link.clone();
                spawn_local(async move {
                    let length = 1 + (i as usize * 7919) % 100_000;
                    let data = pattern(length, i as u8);
                    link.call(common::write_call(i << 20, data.clone())).await.unwrap();
                    assert!(link.call(common::read_call(i << 20, length as u32)).await.unwrap().data == data);
                })
            })
            .collect();
        for call in calls {
            call.await.unwrap();
        }
    });
}

#[test]
fn statuses_and_large_replies_cross_the_wire() {
    bounded(async {
        let served = Served::new().await;
        let link = served.connect(options()).await;
        let mut call = common::read_call(0, 0);
        call.op = Opcode::Seek;
        assert_eq!(link.call(call).await, Err(CallError::Status(Status::EOPNOTSUPP)));
        let (import, _recorder) = import_over(Rc::new(TcpConnector::new(options())), served.nid(), &served.service);
        let body = vec![7u8; 200_000];
        assert_eq!(import.rpc(common::OP_ECHO, body.clone().into(), 10).await.unwrap(), body);
        assert_eq!(import.rpc(common::OP_ECHO, Bytes::new(), 0).await.unwrap(), "");
    });
}

#[test]
fn events_arrive_in_order_each_once() {
    bounded(async {
        let served = Served::new().await;
        let (import, recorder) = import_over(Rc::new(TcpConnector::new(options())), served.nid(), &served.service);
        import.wait_full().await.unwrap();
        recorder.take();
        for epoch in 0..2000 {
            served.service.send_event(epoch);
            if epoch % 97 == 0 {
                sleep(Duration::from_millis(1)).await;
            }
        }
        let mut heard = Vec::new();
        while heard.len() < 2000 {
            sleep(Duration::from_millis(1)).await;
            heard.extend(recorder.take());
        }
        assert_eq!(heard, (0..2000).map(Heard::Event).collect::<Vec<_>>());
    });
}

#[test]
fn an_import_survives_a_restart_of_its_server() {
    bounded(async {
        let served = Served::new().await;
        let (import, recorder) = import_over(Rc::new(TcpConnector::new(options())), served.nid(), &served.service);
        import.wait_full().await.unwrap();
        let Served { target, service, home, port } = served;
        drop(home);
        let next = service.restarted(true);
        let _home = target.serve(next);
        assert_eq!(import.rpc(common::OP_ECHO, b"x".as_slice().into(), 100).await.unwrap(), "x");
        assert_eq!(recorder.take(), [Heard::Connected, Heard::Disconnected, Heard::Replay, Heard::Connected]);
        assert_eq!(service.closed.get(), 1);
        import.close(Duration::from_secs(5)).await;
        drop(port);
    });
}

#[test]
fn a_link_that_ends_in_the_middle_of_transfers_loses_every_call() {
    bounded(async {
        let served = Served::new().await;
        let link = served.connect(options()).await;
        let data = pattern(4 << 20, 1);
        let calls: Vec<_> =
            (0..20).map(|i| spawn_local(link.call(common::write_call(i << 23, data.clone())))).collect();
        tokio::task::yield_now().await;
        drop(served.home);
        let mut lost = 0;
        for call in calls {
            match call.await.unwrap() {
                Ok(_) => {}
                Err(CallError::Lost) => lost += 1,
                Err(other) => panic!("{other}"),
            }
        }
        assert!(lost > 0);
        link.ended().await;
        assert_eq!(link.call(common::read_call(0, 1)).await, Err(CallError::Lost));
        assert_eq!(link.events().await, Err(CallError::Lost));
        assert_eq!(served.service.closed.get(), 1);
    });
}

#[test]
fn a_dropped_link_closes_the_session() {
    bounded(async {
        let served = Served::new().await;
        drop(served.connect(options()).await);
        while served.service.closed.get() == 0 {
            sleep(Duration::from_millis(1)).await;
        }
    });
}

#[test]
fn names_that_are_not_served_are_refused_in_words() {
    bounded(async {
        let served = Served::new().await;
        let connector = TcpConnector::new(options());
        let error = connector.connect(served.nid(), "nqn.nobody".to_owned()).await.err().unwrap();
        assert!(matches!(error, ConnectError::Refused { .. }), "{error}");
        assert!(error.to_string().ends_with("no subsystem nqn.nobody"), "{error}");
        let nid = served.nid();
        drop(served);
        tokio::task::yield_now().await;
        sleep(Duration::from_millis(20)).await;
        let error = connector.connect(nid, "nqn.x".to_owned()).await.err().unwrap();
        assert!(matches!(error, ConnectError::Unreachable { .. }), "{error}");
    });
}

#[test]
fn a_port_that_speaks_something_else_is_said_to_do_so() {
    bounded(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let nid = Nid::tcp(listener.local_addr().unwrap());
        spawn_local(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let page = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n";
            tokio::io::AsyncWriteExt::write_all(&mut stream, page).await.unwrap();
            sleep(Duration::from_secs(1)).await;
        });
        let error = TcpConnector::new(options()).connect(nid, "nqn.x".to_owned()).await.err().unwrap();
        assert!(matches!(error, ConnectError::Protocol { .. }), "{error}");
    });
}

#[test]
fn a_service_on_another_reactor_gets_its_connections() {
    let target = TcpTarget::new();
    let (ready, is_ready) = std::sync::mpsc::channel();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let theirs = target.clone();
    let home = std::thread::spawn(move || {
        local(async move {
            let service = TestService::new("elsewhere");
            let _home = theirs.serve(service.clone());
            ready.send(service.nqn.clone()).unwrap();
            let _ = stopped.await;
        });
    });
    let nqn = is_ready.recv().unwrap();
    bounded(async move {
        let port = target.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let link = TcpConnector::new(options()).connect(Nid::tcp(port.address()), nqn).await.unwrap();
        write_and_read(&*link).await;
        stop.send(()).unwrap();
        link.ended().await;
    });
    home.join().unwrap();
}

#[test]
fn a_host_that_falls_silent_is_dropped() {
    bounded(async {
        let served = Served::new().await;
        let address = served.port.address();
        let nqn = served.service.nqn.clone();
        // An admin queue with a keep-alive of 300 ms, and then nothing.
        let mut stream = tokio::task::spawn_blocking(move || raw_admin(address, &nqn, 300)).await.unwrap();
        let start = Instant::now();
        let end = tokio::task::spawn_blocking(move || stream.read(&mut [0; 100]));
        assert_eq!(end.await.unwrap().unwrap(), 0);
        assert!(start.elapsed() > Duration::from_millis(100), "{:?}", start.elapsed());
        assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
        assert_eq!(served.service.closed.get(), 1);
    });
}

#[test]
fn a_target_that_falls_silent_is_given_up() {
    // A target whose thread stops working once the link is there.
    let target = TcpTarget::new();
    let theirs = target.clone();
    let (ready, is_ready) = std::sync::mpsc::channel();
    let (freeze, frozen) = tokio::sync::oneshot::channel::<std::sync::mpsc::Receiver<()>>();
    let home = std::thread::spawn(move || {
        local(async move {
            let service = TestService::new("sleeper");
            let _home = theirs.serve(service.clone());
            let port = theirs.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
            ready.send((service.nqn.clone(), port.address())).unwrap();
            let thaw = frozen.await.unwrap();
            let _ = thaw.recv_timeout(Duration::from_secs(20));
        });
    });
    let (nqn, address) = is_ready.recv().unwrap();
    let (thaw, thawed) = std::sync::mpsc::channel();
    bounded(async move {
        let options = TcpOptions { keep_alive: Duration::from_millis(300), ..options() };
        let link = TcpConnector::new(options).connect(Nid::tcp(address), nqn).await.unwrap();
        // Longer than the keep-alive: the link lives on signs of life alone.
        sleep(Duration::from_millis(1000)).await;
        link.call(common::read_call(0, 1)).await.unwrap();
        freeze.send(thawed).unwrap();
        assert_eq!(link.call(common::read_call(0, 1)).await, Err(CallError::Lost));
        thaw.send(()).unwrap();
    });
    home.join().unwrap();
}

#[test]
fn garbage_is_answered_with_a_termination_and_hurts_nobody_else() {
    bounded(async {
        let served = Served::new().await;
        let link = served.connect(options()).await;
        let address = served.port.address();
        let nqn = served.service.nqn.clone();
        let strangers = tokio::task::spawn_blocking(move || {
            // Not NVMe/TCP at all: C2HTermReq (3) with "invalid PDU header field" (1).
            for garbage in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0xff; 1000], &[0; 8]] {
                let mut stream = stranger(address);
                stream.write_all(garbage).unwrap();
                let answer = everything(&mut stream);
                assert_eq!((answer[0], answer[8]), (3, 1), "{garbage:?}");
            }
            // A command before Connect: sequence error (2).
            let mut stream = stranger(address);
            stream.write_all(&ic_request()).unwrap();
            let mut response = [0; 128];
            stream.read_exact(&mut response).unwrap();
            assert_eq!(response[0], 1);
            let mut capsule = vec![4, 0, 72, 0, 72, 0, 0, 0];
            capsule.extend([0; 64]);
            stream.write_all(&capsule).unwrap();
            let answer = everything(&mut stream);
            assert_eq!((answer[0], answer[8]), (3, 2));
            // Data for a transfer that nobody asked for, on a good admin queue.
            let mut stream = raw_admin(address, &nqn, 0);
            let mut data = vec![6, 4, 24, 24, 28, 0, 0, 0, 1, 0, 9, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0];
            data.extend([1, 2, 3, 4]);
            stream.write_all(&data).unwrap();
            let answer = everything(&mut stream);
            assert_eq!((answer[0], answer[8], answer[10]), (3, 1, 10));
            // A header cut short, then silence and a closed socket.
            let mut stream = raw_admin(address, &nqn, 0);
            stream.write_all(&[4, 0, 72]).unwrap();
        });
        strangers.await.unwrap();
        write_and_read(&*link).await;
    });
}

/// Good PDUs with bytes changed, cut short and run together, on connections that have passed Connect.
#[test]
fn damaged_commands_never_hurt_more_than_their_connection() {
    bounded(async {
        let served = Served::new().await;
        let link = served.connect(options()).await;
        let address = served.port.address();
        let nqn = served.service.nqn.clone();
        let strangers = tokio::task::spawn_blocking(move || {
            // xorshift64: the same damage every time.
            let mut state = 0x9e37_79b9_7f4a_7c15u64;
            let mut random = move |below: usize| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state as usize % below
            };
            for _ in 0..150 {
                let mut stream = raw_admin(address, &nqn, 0);
                let mut bytes = Vec::new();
                for _ in 0..1 + random(6) {
                    let data = if random(2) == 0 { 0 } else { 4 * random(200) };
                    let mut pdu = vec![4, 0, 72, if data == 0 { 0 } else { 72 }];
                    pdu.extend((72 + data as u32).to_le_bytes());
                    pdu.extend((0..64 + data).map(|_| if random(3) == 0 { random(256) as u8 } else { 0 }));
                    pdu[8] = [0x02, 0x06, 0x09, 0x0a, 0x0c, 0x18, 0x7f][random(7)];
                    if random(4) == 0 {
                        pdu[0] = [6, 9, 2, 4][random(4)];
                        pdu[2] = 24;
                    }
                    let at = random(pdu.len());
                    pdu[at] = random(256) as u8;
                    bytes.extend(pdu);
                }
                bytes.truncate(bytes.len() - random(bytes.len() / 4));
                // The target may have closed already.
                let _ = stream.write_all(&bytes);
                let _ = stream.shutdown(std::net::Shutdown::Write);
                everything(&mut stream);
            }
        });
        strangers.await.unwrap();
        write_and_read(&*link).await;
        while served.service.closed.get() < 150 {
            sleep(Duration::from_millis(1)).await;
        }
    });
}

fn stranger(address: SocketAddr) -> std::net::TcpStream {
    let stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

fn everything(stream: &mut std::net::TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A reset after the answer is as good an end as any.
    let _ = stream.read_to_end(&mut bytes);
    bytes
}

fn ic_request() -> Vec<u8> {
    let mut pdu = vec![0, 0, 128, 0, 128, 0, 0, 0];
    pdu.extend([0; 120]);
    pdu
}

/// Connects an admin queue by hand, byte by byte from the specification.
fn raw_admin(address: SocketAddr, nqn: &str, keep_alive_ms: u32) -> std::net::TcpStream {
    let mut stream = stranger(address);
    stream.write_all(&ic_request()).unwrap();
    let mut response = [0; 128];
    stream.read_exact(&mut response).unwrap();
    let mut capsule = vec![4, 0, 72, 72, 0x48, 4, 0, 0];
    let mut sqe = [0u8; 64];
    sqe[..5].copy_from_slice(&[0x7f, 0x40, 1, 0, 1]);
    sqe[32..36].copy_from_slice(&1024u32.to_le_bytes());
    sqe[39] = 1;
    sqe[44] = 31;
    sqe[48..52].copy_from_slice(&keep_alive_ms.to_le_bytes());
    capsule.extend(sqe);
    let mut data = [0u8; 1024];
    data[16..18].copy_from_slice(&[0xff, 0xff]);
    data[256..256 + nqn.len()].copy_from_slice(nqn.as_bytes());
    data[512..517].copy_from_slice(b"nqn.h");
    capsule.extend(data);
    stream.write_all(&capsule).unwrap();
    let mut completion = [0; 24];
    stream.read_exact(&mut completion).unwrap();
    assert_eq!(completion[0], 5);
    assert_eq!(completion[22..], [0, 0], "Connect failed");
    stream
}
