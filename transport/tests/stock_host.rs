//! What a stock Linux host does with a target, in its order and byte by byte from the specifications, without any type of ours;
//! and commands as they come through its passthrough: flow control on, halves of a call on different queues.

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use common::{TestService, local};
use nacre_transport::tcp::TcpTarget;

const DISCOVERY: &str = "nqn.2014-08.org.nvmexpress.discovery";

/// One queue of a host that knows nothing but the specifications.
struct RawQueue {
    stream: TcpStream,
    next_cid: u16,
    controller_id: u16,
}

struct Answer {
    data: Vec<u8>,
    result: u64,
    sq_head: u16,
    status: u16,
}

impl RawQueue {
    fn connect(address: SocketAddr, nqn: &str, queue: u16, controller_id: u16) -> RawQueue {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut request = vec![0, 0, 128, 0, 128, 0, 0, 0];
        request.resize(128, 0);
        stream.write_all(&request).unwrap();
        let mut response = [0; 128];
        stream.read_exact(&mut response).unwrap();
        assert_eq!(response[..8], [1, 0, 128, 0, 128, 0, 0, 0]);
        let h2c_max = u32::from_le_bytes(response[12..16].try_into().unwrap());
        assert!(h2c_max >= 4096 && h2c_max.is_multiple_of(4));
        assert_eq!(response[10], 0, "CPDA");
        let mut it = RawQueue { stream, next_cid: 0x1000, controller_id };
        let mut sqe = sqe(0x7f, 1, 1024);
        sqe[39] = 1;
        sqe[42..44].copy_from_slice(&queue.to_le_bytes());
        sqe[44..46].copy_from_slice(&31u16.to_le_bytes());
        let mut data = vec![0u8; 1024];
        data[..16].fill(7);
        data[16..18].copy_from_slice(&controller_id.to_le_bytes());
        data[256..256 + nqn.len()].copy_from_slice(nqn.as_bytes());
        data[512..520].copy_from_slice(b"nqn.host");
        it.send(&mut sqe, &data);
        let answer = it.receive();
        assert_eq!(answer.status, 0);
        assert_eq!(answer.sq_head, 1);
        it.controller_id = answer.result as u16;
        it
    }

    fn send(&mut self, sqe: &mut [u8; 64], capsule_data: &[u8]) -> u16 {
        let cid = self.next_cid;
        self.next_cid += 1;
        sqe[2..4].copy_from_slice(&cid.to_le_bytes());
        let whole = 72 + capsule_data.len() as u32;
        let offset = if capsule_data.is_empty() { 0 } else { 72 };
        let mut pdu = vec![4, 0, 72, offset];
        pdu.extend(whole.to_le_bytes());
        pdu.extend(*sqe);
        pdu.extend(capsule_data);
        self.stream.write_all(&pdu).unwrap();
        cid
    }

    /// The next completion, and the data before it.
    fn receive(&mut self) -> Answer {
        let mut data = Vec::new();
        loop {
            let mut head = [0u8; 24];
            self.stream.read_exact(&mut head).unwrap();
            match head[0] {
                7 => {
                    assert_eq!(head[1] & 8, 0, "SUCCESS with flow control on");
                    let length = u32::from_le_bytes(head[16..20].try_into().unwrap());
                    data.resize(length as usize, 0);
                    self.stream.read_exact(&mut data).unwrap();
                }
                5 => {
                    return Answer {
                        data,
                        result: u64::from_le_bytes(head[8..16].try_into().unwrap()),
                        sq_head: u16::from_le_bytes(head[16..18].try_into().unwrap()),
                        status: u16::from_le_bytes(head[22..24].try_into().unwrap()) >> 1,
                    };
                }
                other => panic!("PDU {other:#x}"),
            }
        }
    }

    fn ask(&mut self, mut sqe: [u8; 64]) -> Answer {
        self.send(&mut sqe, &[]);
        self.receive()
    }

    fn property(&mut self, offset: u8, eight: bool) -> u64 {
        let mut get = sqe(0x7f, 4, 0);
        (get[40], get[44]) = (eight.into(), offset);
        let answer = self.ask(get);
        assert_eq!(answer.status, 0);
        answer.result
    }

    fn enable(&mut self) {
        let mut set = sqe(0x7f, 0, 0);
        set[44] = 0x14;
        set[48..52].copy_from_slice(&0x0046_0061u32.to_le_bytes());
        assert_eq!(self.ask(set).status, 0);
        assert_eq!(self.property(0x1c, false), 1);
    }

    fn identify(&mut self, nsid: u32, cns: u8, csi: u8) -> Answer {
        let mut identify = sqe(0x06, nsid, 4096);
        (identify[40], identify[47]) = (cns, csi);
        self.ask(identify)
    }

    fn log(&mut self, lid: u8, csi: u8, length: u32) -> Answer {
        let mut log = sqe(0x02, 0xffff_ffff, length);
        log[40] = lid;
        log[42..44].copy_from_slice(&((length / 4 - 1) as u16).to_le_bytes());
        log[59] = csi;
        self.ask(log)
    }
}

fn sqe(opcode: u8, nsid: u32, length: u32) -> [u8; 64] {
    let mut sqe = [0; 64];
    (sqe[0], sqe[1]) = (opcode, 0x40);
    sqe[4..8].copy_from_slice(&nsid.to_le_bytes());
    sqe[32..36].copy_from_slice(&length.to_le_bytes());
    sqe[39] = 0x5a;
    sqe
}

/// RpcArgs for an echo.
fn rpc(opcode: u8, tag: u32, request: u32, reply: u32, length: u32) -> [u8; 64] {
    let mut it = sqe(opcode, 1, length);
    if opcode == 0x59 {
        it[39] = 1;
    }
    it[8..12].copy_from_slice(&tag.to_le_bytes());
    it[12..14].copy_from_slice(&0x7001u16.to_le_bytes());
    it[48..52].copy_from_slice(&request.to_le_bytes());
    it[52..56].copy_from_slice(&reply.to_le_bytes());
    it
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// Runs `host` on a thread of its own against a target here.
fn against_a_target(host: impl FnOnce(SocketAddr, String) + Send + 'static) {
    local(async {
        let target = TcpTarget::new();
        let service = TestService::new("stock");
        let _home = target.serve(service.clone());
        let port = target.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let (address, nqn) = (port.address(), service.nqn.clone());
        let host = tokio::task::spawn_blocking(move || host(address, nqn));
        tokio::time::timeout(Duration::from_secs(60), host).await.expect("the test hangs").unwrap();
    });
}

#[test]
fn everything_a_kernel_asks_is_answered_as_it_needs_it() {
    against_a_target(|address, nqn| {
        let mut admin = RawQueue::connect(address, &nqn, 0, 0xffff);
        let cap = admin.property(0x00, true);
        assert_eq!(cap >> 43 & 1, 1, "CAP.CSS bit 6");
        assert!(cap & 0xffff >= 127, "MQES");
        assert_eq!(admin.property(0x08, false), 0x0002_0000);
        admin.enable();

        let controller = admin.identify(0, 0x01, 0).data;
        assert_eq!(controller.len(), 4096);
        assert_eq!(controller[76], 0, "CMIC");
        assert_eq!(controller[77], 10, "MDTS");
        assert_eq!(controller[78..80], admin.controller_id.to_le_bytes(), "CNTLID");
        assert_eq!(controller[111], 1, "CNTRLTYPE");
        assert_ne!(controller[320..322], [0, 0], "KAS");
        assert_eq!(controller[512..514], [0x66, 0x44], "SQES, CQES");
        assert_ne!(u32_at(&controller, 536) & 3, 0, "SGLS");
        assert_eq!(&controller[768..768 + nqn.len()], nqn.as_bytes());
        assert_eq!(u32_at(&controller, 1792), (64 + 65536) / 16, "IOCCSZ");
        assert!(u32_at(&controller, 1796) >= 1, "IORCSZ");
        assert_eq!(controller[1800..1802], [0, 0], "ICDOFF");

        for page in [0x00, 0x02, 0x05] {
            let answer = admin.log(page, 0, 512);
            assert_eq!((answer.status, answer.data.len()), (0, 512), "log {page:#x}");
        }
        let effects = admin.log(0x05, 0x30, 4096).data;
        let io = |opcode: usize| u32_at(&effects, 1024 + 4 * opcode);
        assert_eq!((io(0x42), io(0x41), io(0x59), io(0x5a), io(0xc2), io(0x02)), (1, 3, 3, 1, 1, 0));
        assert!((0..512).all(|i| u32_at(&effects, 4 * i) & !3 == 0), "any other bit needs CAP_SYS_ADMIN");

        let mut features = sqe(0x09, 0, 0);
        features[40] = 7;
        features[44..48].copy_from_slice(&[3, 0, 3, 0]);
        assert_eq!(admin.ask(features).result, 0x0003_0003);
        features[40] = 0x0b;
        assert_eq!(admin.ask(features).status, 0);

        assert_eq!(admin.identify(0, 0x02, 0).data[..12], [1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(admin.identify(1, 0x02, 0).data[..8], [2, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(admin.identify(0, 0x07, 0x30).data[..8], [1, 0, 0, 0, 2, 0, 0, 0]);
        let mut uuids = Vec::new();
        for nsid in [1, 2] {
            let descriptors = admin.identify(nsid, 0x03, 0).data;
            assert_eq!(descriptors[..2], [3, 16]);
            uuids.push(descriptors[4..20].to_vec());
            assert_eq!(descriptors[20..25], [4, 1, 0, 0, 0x30]);
            assert_eq!(admin.identify(nsid, 0x08, 0).data[14] & 1, 1, "NSTAT");
            assert_eq!(admin.identify(nsid, 0x05, 0x30).status, 0);
            assert_eq!(admin.identify(nsid, 0x00, 0).status, 0);
        }
        assert_ne!(uuids[0], uuids[1]);
        assert_eq!(admin.identify(3, 0x08, 0).status & 0xff, 0x0b);
        let object = admin.identify(0, 0x06, 0x30).data;
        assert_eq!((u32_at(&object, 0), u32_at(&object, 4)), (0x10000, 4 << 20));
        assert_eq!(admin.identify(0, 0x06, 0).status, 0);
        assert_ne!(admin.identify(0, 0x1c, 0).data[6] & 1, 0, "bit 48 of the first combination");
        assert_eq!(admin.identify(0, 0x33, 0).status & 0x3fff, 0x02);

        // Event requests are held; what comes after them is answered.
        for _ in 0..4 {
            admin.send(&mut sqe(0x0c, 0, 0), &[]);
        }
        assert_eq!(admin.ask(sqe(0x0c, 0, 0)).status & 0x7ff, 0x105);
        assert_eq!(admin.ask(sqe(0x18, 0, 0)).status, 0);
        assert_eq!(admin.ask(sqe(0x08, 0, 0)).result, 1);
        assert_eq!(admin.ask(sqe(0xee, 0, 0)).status & 0x7ff, 0x001);

        // Shutdown as a host says goodbye.
        let mut set = sqe(0x7f, 0, 0);
        set[44] = 0x14;
        set[48..52].copy_from_slice(&0x0046_4061u32.to_le_bytes());
        assert_eq!(admin.ask(set).status, 0);
        assert_eq!(admin.property(0x1c, false), 1 | 2 << 2);
    });
}

#[test]
fn discovery_tells_what_is_served_where() {
    against_a_target(|address, nqn| {
        let mut admin = RawQueue::connect(address, DISCOVERY, 0, 0xffff);
        admin.enable();
        assert_eq!(admin.identify(0, 0x01, 0).data[111], 2, "CNTRLTYPE");
        let page = admin.log(0x70, 0, 3072).data;
        assert_eq!(u32_at(&page, 8), 2, "NUMREC");
        let entry = &page[1024..2048];
        assert_eq!(entry[..3], [3, 1, 2], "TCP, IPv4, an NVM subsystem");
        assert_eq!(String::from_utf8_lossy(&entry[32..64]).trim_end(), address.port().to_string());
        assert_eq!(&entry[256..256 + nqn.len()], nqn.as_bytes());
        assert_eq!(String::from_utf8_lossy(&entry[512..768]).trim_end(), "127.0.0.1");
        assert_eq!(page[2048 + 2], 3, "the discovery subsystem itself");
    });
}

#[test]
fn halves_of_a_call_meet_from_different_queues_in_any_order() {
    against_a_target(|address, nqn| {
        let mut admin = RawQueue::connect(address, &nqn, 0, 0xffff);
        admin.enable();
        let mut one = RawQueue::connect(address, &nqn, 1, admin.controller_id);
        let mut other = RawQueue::connect(address, &nqn, 2, admin.controller_id);
        let body = b"hello, world";
        for receive_first in [false, true] {
            let mut send = rpc(0x59, 77, 12, 100, 12);
            let mut receive = rpc(0x5a, 77, 12, 100, 100);
            if receive_first {
                other.send(&mut receive, &[]);
                std::thread::sleep(Duration::from_millis(20));
                one.send(&mut send, body);
            } else {
                one.send(&mut send, body);
                std::thread::sleep(Duration::from_millis(20));
                other.send(&mut receive, &[]);
            }
            assert_eq!(one.receive().status, 0);
            let reply = other.receive();
            assert_eq!((reply.status, &reply.data[..]), (0, &body[..]));
        }
        // A tag that is in use, and a length that lies: vendor status MALFORMED, DNR.
        one.send(&mut rpc(0x5a, 1, 0, 0, 0), &[]);
        one.send(&mut rpc(0x5a, 1, 0, 0, 0), &[]);
        assert_eq!(one.receive().status, 0x47c7);
        one.send(&mut rpc(0x59, 2, 99, 0, 12), body);
        assert_eq!(one.receive().status, 0x47c7);
        // Reply larger than its place: the size needed is the result.
        one.send(&mut rpc(0x59, 3, 12, 5, 12), body);
        assert_eq!(one.ask(rpc(0x5a, 3, 12, 5, 5)).status, 0);
        let large = one.receive();
        assert_eq!((large.status, large.result), (0x47c5, 12));
    });
}

/// One H2CData.
fn part(ready: &[u8; 24], offset: usize, data: &[u8], last: bool) -> Vec<u8> {
    let mut pdu = vec![6, if last { 4 } else { 0 }, 24, 24];
    pdu.extend((24 + data.len() as u32).to_le_bytes());
    pdu.extend(&ready[8..12]);
    pdu.extend((offset as u32).to_le_bytes());
    pdu.extend((data.len() as u32).to_le_bytes());
    pdu.extend([0; 4]);
    pdu.extend(data);
    pdu
}

#[test]
fn large_data_is_asked_for_and_taken_in_parts() {
    against_a_target(|address, nqn| {
        let mut admin = RawQueue::connect(address, &nqn, 0, 0xffff);
        admin.enable();
        let mut io = RawQueue::connect(address, &nqn, 1, admin.controller_id);
        let length = 200_000u32;
        let data: Vec<u8> = (0..length).map(|i| (i / 7) as u8).collect();
        let mut write = sqe(0x41, 1, length);
        write[48..52].copy_from_slice(&length.to_le_bytes());
        let cid = io.send(&mut write, &[]);
        let mut ready = [0; 24];
        io.stream.read_exact(&mut ready).unwrap();
        assert_eq!((ready[0], ready[2], &ready[8..10]), (9, 24, &cid.to_le_bytes()[..]));
        assert_eq!((u32_at(&ready, 12), u32_at(&ready, 16)), (0, length));
        let mut at = 0;
        for length in [1, 4095, 100_000, 95_904] {
            let last = at + length == data.len();
            io.stream.write_all(&part(&ready, at, &data[at..at + length], last)).unwrap();
            at += length;
        }
        let answer = io.receive();
        assert_eq!((answer.status, answer.result), (0, u64::from(length)));
        let mut read = sqe(0x42, 1, length);
        read[48..52].copy_from_slice(&length.to_le_bytes());
        assert!(io.ask(read).data == data);

        // Parts out of order end the connection: fatal status 4, data transfer out of range.
        io.send(&mut write, &[]);
        io.stream.read_exact(&mut ready).unwrap();
        io.stream.write_all(&part(&ready, 4096, &data[4096..8192], false)).unwrap();
        let mut request = [0; 24];
        io.stream.read_exact(&mut request).unwrap();
        assert_eq!((request[0], request[8]), (3, 4));
        // The association goes on.
        assert_eq!(admin.ask(sqe(0x18, 0, 0)).status, 0);
    });
}

#[test]
fn commands_that_make_no_sense_are_refused_one_by_one() {
    against_a_target(|address, nqn| {
        let mut admin = RawQueue::connect(address, &nqn, 0, 0xffff);
        admin.enable();
        let mut io = RawQueue::connect(address, &nqn, 1, admin.controller_id);
        let code = |answer: Answer| answer.status & 0x7ff;
        assert_eq!(code(io.ask(sqe(0x02, 1, 4096))), 0x01, "an NVM read");
        assert_eq!(code(io.ask(sqe(0x42, 3, 4096))), 0x0b, "no such namespace");
        assert_eq!(code(io.ask(sqe(0x42, 2, 4096))), 0x02, "a read of the event namespace");
        assert_eq!(code(io.ask(sqe(0x5e, 1, 4096))), 0x02, "an event wait on the other");
        assert_eq!(code(io.ask(sqe(0x42, 1, (4 << 20) + 4))), 0x0f, "too long");
        let mut bad = sqe(0x42, 1, 4096);
        bad[39] = 0x40;
        assert_eq!(code(io.ask(bad)), 0x11, "keyed SGL");
        let mut lying = sqe(0x41, 1, 8192);
        lying[39] = 1;
        io.send(&mut lying, &[0; 100]);
        assert_eq!(code(io.receive()), 0x0f, "length of in-capsule data");
        // The queue still works, and its head has counted: Connect and eight commands.
        let ping = io.ask(sqe(0x40, 1, 0));
        assert_eq!((ping.status, ping.sq_head), (0, 9));
        assert_eq!(io.ask(sqe(0xc0, 1, 0)).status, 0, "the alias");
    });
}

#[test]
fn event_waits_end_empty_before_a_kernel_loses_patience() {
    against_a_target(|address, nqn| {
        let mut admin = RawQueue::connect(address, &nqn, 0, 0xffff);
        admin.enable();
        let mut io = RawQueue::connect(address, &nqn, 1, admin.controller_id);
        let start = Instant::now();
        let answer = io.ask(sqe(0x5e, 2, 4096));
        assert_eq!((answer.status, answer.result), (0, 0));
        // The next sequence number, no events.
        assert_eq!(answer.data, [1, 0]);
        assert!((5..=10).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    });
}
