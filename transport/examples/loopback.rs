//! Measures NVMe/TCP on loopback: one target thread with a service in memory, one host thread. Beside the rate, the CPU time
//! that each thread spends on an operation: on a busy machine only that means something.
//!
//! `cargo run --release -p nacre-transport --example loopback [SECONDS]`

use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::future::LocalBoxFuture;
use nacre_reactor::{Bytes, DmaBuf, Env};
use nacre_transport::local::{LocalConnector, LocalNet, serve_local};
use nacre_transport::tcp::{TcpConnector, TcpOptions, TcpTarget};
use nacre_transport::{Answer, Call, Connector, Link, Service, Session};
use nacre_wire::op::{ObjectIo, Opcode};
use nacre_wire::{Nid, Status, Uuid};
use rustix::time::{ClockId, clock_gettime};
use tokio::task::{LocalSet, spawn_local};
use zerocopy::IntoBytes;

const NQN: &str = "nqn.2026-11.io.nacre:loopback";

fn main() {
    let seconds: u64 = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(2);
    let only = std::env::args().nth(2);
    let target = TcpTarget::new();
    let net = LocalNet::new();
    let (ready, is_ready) = std::sync::mpsc::channel();
    let served_net = net.clone();
    std::thread::Builder::new()
        .name("target".to_owned())
        .spawn(move || {
            run(async move {
                let memory: Rc<dyn Service> = Rc::new(Memory { data: DmaBuf::zeroed(4 << 20).freeze() });
                let _local = serve_local(&served_net, Nid::local(1), memory.clone());
                let _tcp = target.serve(memory);
                let port = target.listen("127.0.0.1:0".parse().expect("an address")).await.expect("a free port");
                ready.send(port.address()).expect("main waits");
                std::future::pending::<()>().await
            })
        })
        .expect("a thread");
    let address = is_ready.recv().expect("the target starts");
    run(async move {
        let options = TcpOptions::new(&Env::system());
        let plain = TcpConnector::new(TcpOptions { io_queues: 2, ..options.clone() });
        let digests = TcpConnector::new(TcpOptions { header_digest: true, data_digest: true, ..options });
        let tcp = Nid::tcp(address);
        let local = LocalConnector::new(&net, Nid::local(2), "bench");
        let ways: [(&str, &dyn Connector, Nid); 3] =
            [("tcp", &plain, tcp), ("tcp digests", &digests, tcp), ("local", &local, Nid::local(1))];
        println!(
            "{:12} {:24} {:>10} {:>8} {:>10} {:>10} {:>10}",
            "link", "load", "op/s", "MB/s", "µs/op", "host CPU", "target CPU"
        );
        for (way, connector, nid) in ways {
            let link = connector.connect(nid, NQN.to_owned()).await.expect("the target is there");
            for (op, size, depth) in [
                (Opcode::Read, 4096, 1),
                (Opcode::Read, 4096, 32),
                (Opcode::Read, 4096, 128),
                (Opcode::Write, 4096, 1),
                (Opcode::Write, 4096, 32),
                (Opcode::RpcSend, 200, 1),
                (Opcode::RpcSend, 200, 32),
                (Opcode::Read, 1 << 20, 1),
                (Opcode::Read, 1 << 20, 8),
                (Opcode::Write, 1 << 20, 1),
                (Opcode::Write, 1 << 20, 8),
            ] {
                let load = format!("{op:?} {size} QD{depth}");
                if only.as_ref().is_some_and(|only| !format!("{way} {load}").contains(only)) {
                    continue;
                }
                let (host, all) = (cpu(ClockId::ThreadCPUTime), cpu(ClockId::ProcessCPUTime));
                let (count, took) = measure(&link, op, size, depth, Duration::from_secs(seconds)).await;
                let rate = count as f64 / took.as_secs_f64();
                let micros = took.as_secs_f64() * 1e6 * depth as f64 / count as f64;
                let host = cpu(ClockId::ThreadCPUTime) - host;
                let other = cpu(ClockId::ProcessCPUTime) - all - host;
                println!(
                    "{way:12} {load:24} {rate:10.0} {:8.0} {micros:10.1} {:10.2} {:10.2}",
                    rate * size as f64 / 1e6,
                    host / count as f64,
                    other / count as f64
                );
            }
        }
    });
}

async fn measure(link: &Rc<dyn Link>, op: Opcode, size: usize, depth: usize, time: Duration) -> (u64, Duration) {
    let data = DmaBuf::zeroed(size).freeze();
    let start = Instant::now();
    let workers: Vec<_> = (0..depth)
        .map(|_| {
            let (link, data) = (link.clone(), data.clone());
            spawn_local(async move {
                let mut count = 0u64;
                while start.elapsed() < time {
                    let io = ObjectIo { length_bytes: (size as u32).into(), ..ObjectIo::default() };
                    let reads = op != Opcode::Write;
                    let call = Call {
                        op,
                        args: io.as_bytes().try_into().expect("32 bytes"),
                        data: if op == Opcode::Read { Bytes::new() } else { data.clone() },
                        reply_bytes_max: if reads { size as u32 } else { 0 },
                    };
                    link.call(call).await.expect("the link holds");
                    count += 1;
                }
                count
            })
        })
        .collect();
    let mut count = 0;
    for worker in workers {
        count += worker.await.expect("workers do not panic");
    }
    (count, start.elapsed())
}

/// CPU time, µs.
fn cpu(clock: ClockId) -> f64 {
    let time = clock_gettime(clock);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

fn run(future: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, future);
}

/// Answers reads from one buffer and forgets writes.
struct Memory {
    data: Bytes,
}

impl Service for Memory {
    fn nqn(&self) -> String {
        NQN.to_owned()
    }

    fn uuid(&self) -> Uuid {
        Uuid::from_random(1, 1)
    }

    fn serve(self: Rc<Self>, _session: Rc<Session>, call: Call) -> LocalBoxFuture<'static, Result<Answer, Status>> {
        Box::pin(async move {
            match call.op {
                Opcode::Read => {
                    let length = call.reply_bytes_max as usize;
                    Ok(Answer { result: length as u64, data: self.data.slice(..length) })
                }
                Opcode::RpcSend => Ok(Answer { result: 0, data: call.data }),
                _ => Ok(Answer { result: call.data.len() as u64, data: Bytes::new() }),
            }
        })
    }

    fn closed(self: Rc<Self>, _session: Rc<Session>) {}
}
