//! One device, four ways to it: raw, through the store and an OST in this process, through NVMe/TCP, through the mount. The
//! same offsets, the same block sizes, the same depth; rounds alternate between the ways, so that what the machine does
//! meanwhile falls on all of them.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use nacre_osd::bdev::{BdevRef, malloc, uring};
use nacre_osd::engine::{FormatOptions, Options as StoreOptions, Osd};
use nacre_osd::store::Store;
use nacre_ost::{Ost, OstConfig, Params};
use nacre_reactor::{Bytes, DmaBuf, Env, ReactorHandle};
use nacre_transport::host::{Import, PeerSpec, Unobserved};
use nacre_transport::local::{LocalConnector, LocalNet, serve_local};
use nacre_transport::stubs::OstClient;
use nacre_transport::tcp::{TcpConnector, TcpOptions, TcpTarget};
use nacre_transport::{Connector, Service};
use nacre_wire::map::{TargetKind, target_label, target_nqn};
use nacre_wire::ost::Precreate;
use nacre_wire::session::ConnectRequest;
use nacre_wire::{Fid, Nid, Uuid};
use serde::Serialize;

use super::work::{Measured, closed_loop, median, random_block};
use crate::device::open_device;
use crate::output::{Context, Error, Result};

/// Bytes that every way works on.
pub const RANGE_BYTES: u64 = 512 << 20;
const FSNAME: &str = "bench";

/// A pattern of access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Pattern {
    pub name: &'static str,
    pub block_bytes: usize,
    pub depth: usize,
    pub write: bool,
    pub random: bool,
}

const fn pattern(name: &'static str, block_bytes: usize, depth: usize, write: bool, random: bool) -> Pattern {
    Pattern { name, block_bytes, depth, write, random }
}

/// What is measured.
pub const PATTERNS: [Pattern; 6] = [
    pattern("4 KiB random read QD1", 4096, 1, false, true),
    pattern("4 KiB random read QD32", 4096, 32, false, true),
    pattern("4 KiB random write QD1", 4096, 1, true, true),
    pattern("4 KiB random write QD32", 4096, 32, true, true),
    pattern("1 MiB sequential read QD4", 1 << 20, 4, false, false),
    pattern("1 MiB sequential write QD4", 1 << 20, 4, true, false),
];

/// A way to the bytes.
#[derive(Clone)]
pub enum Way {
    Bdev(BdevRef),
    Ost(OstClient, Fid),
}

impl Way {
    fn read(&self, offset: u64, length: usize) -> LocalBoxFuture<'static, Result<()>> {
        match self.clone() {
            Way::Bdev(bdev) => Box::pin(async move {
                bdev.read(offset, length).await?;
                Ok(())
            }),
            Way::Ost(ost, fid) => Box::pin(async move {
                let read = ost.read(fid, offset, length as u32, 0).await?.len();
                if read == length { Ok(()) } else { Err(Error::new(format!("{read} of {length} bytes read"))) }
            }),
        }
    }

    fn write(&self, offset: u64, data: Bytes) -> LocalBoxFuture<'static, Result<()>> {
        match self.clone() {
            Way::Bdev(bdev) => Box::pin(async move { Ok(bdev.write(offset, vec![data]).await?) }),
            Way::Ost(ost, fid) => Box::pin(async move { Ok(ost.write(fid, offset, data, 0, 0).await?) }),
        }
    }

    /// Writes everything once, so that nothing measured is a hole.
    pub async fn fill(&self) -> Result<()> {
        let data = contents(1 << 20);
        for offset in (0..RANGE_BYTES).step_by(1 << 20) {
            self.write(offset, data.clone()).await?;
        }
        Ok(())
    }

    async fn measure(&self, pattern: Pattern, duration: Duration) -> Result<Measured> {
        let block = pattern.block_bytes as u64;
        let place = move |number: u64| match pattern.random {
            true => random_block(number, block, RANGE_BYTES),
            false => number * block % RANGE_BYTES,
        };
        let (way, data) = (self.clone(), contents(pattern.block_bytes));
        let operation = move |number| match pattern.write {
            true => way.write(place(number), data.clone()),
            false => way.read(place(number), pattern.block_bytes),
        };
        closed_loop(pattern.depth, duration, pattern.block_bytes, operation).await
    }
}

/// One line of the result.
#[derive(Serialize)]
pub struct Row {
    pub pattern: Pattern,
    /// By way, in the order asked.
    pub ways: Vec<(String, Measured)>,
}

/// Measures every pattern over every way; medians of the rounds.
pub async fn compare(ways: &[(String, Way)], rounds: usize, duration: Duration) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for pattern in PATTERNS {
        let mut results: Vec<Vec<Measured>> = ways.iter().map(|_| Vec::new()).collect();
        for _ in 0..rounds {
            for ((name, way), results) in ways.iter().zip(&mut results) {
                results.push(way.measure(pattern, duration).await.context(format!("{}: {name}", pattern.name))?);
            }
        }
        let names = ways.iter().map(|(name, _)| name.clone());
        rows.push(Row { pattern, ways: names.zip(results.into_iter().map(median)).collect() });
    }
    Ok(rows)
}

/// A file as a bdev, filled.
pub async fn raw_file(path: &Path) -> Result<Way> {
    if !path.exists() {
        uring::create_file(path, RANGE_BYTES, true).context(path.display())?;
    }
    let way = Way::Bdev(open_device(path).await?);
    way.fill().await?;
    Ok(way)
}

/// What an OST of the bench stands on.
#[derive(Clone)]
pub enum Ground {
    File(PathBuf),
    Memory,
}

/// Starts an OST on `server` and answers the ways to one filled object of it: inside the process, and over TCP.
pub async fn ost_ways(server: &ReactorHandle, ground: Ground, index: u16) -> Result<(Way, Way)> {
    let env = Env::system();
    let (uuid, net) = (env.uuid(), LocalNet::new());
    let (served, local_nid) = (net.clone(), Nid::local(index));
    let address = server.spawn(move || serve(ground, index, uuid, served, local_nid)).await??;
    let local = Rc::new(LocalConnector::new(&net, Nid::local(1000 + index), "bench"));
    let tcp = Rc::new(TcpConnector::new(TcpOptions::new(&env)));
    let local = client(&env, local, local_nid, index, uuid);
    let tcp = client(&env, tcp, Nid::tcp(address), index, uuid);
    local.precreate(&Precreate { mdt_index: 0, up_to_id: 1, orphans_after_id: None }).await?;
    let object = Fid::ost_object(index, 1);
    let (local, tcp) = (Way::Ost(local, object), Way::Ost(tcp, object));
    local.fill().await?;
    Ok((local, tcp))
}

async fn serve(ground: Ground, index: u16, uuid: Uuid, net: LocalNet, local_nid: Nid) -> Result<std::net::SocketAddr> {
    let bytes = RANGE_BYTES * 2;
    let bdev: BdevRef = match ground {
        Ground::Memory => Rc::new(malloc::Malloc::with_bytes("Malloc0", bytes)?),
        Ground::File(path) => {
            if !path.exists() {
                uring::create_file(&path, bytes, true).context(path.display())?;
            }
            open_device(&path).await?
        }
    };
    Osd::format(&bdev, &FormatOptions { uuid, label: Vec::new(), log_bytes: None }).await?;
    let store: Rc<dyn Store> = Osd::open(bdev, StoreOptions::default()).await?;
    let config = OstConfig { fsname: FSNAME.to_owned(), index, uuid, params: Params::default() };
    let service: Rc<dyn Service> = Ost::start(Env::system(), store, config).await?;
    let tcp = TcpTarget::new();
    let served = (serve_local(&net, local_nid, service.clone()), tcp.serve(service));
    let listening = tcp.listen(([127, 0, 0, 1], 0).into()).await?;
    let address = listening.address();
    // Served until the reactor ends.
    tokio::task::spawn_local(async move {
        let _kept = (served, listening);
        std::future::pending::<()>().await;
    });
    Ok(address)
}

fn client(env: &Env, connector: Rc<dyn Connector>, nid: Nid, index: u16, uuid: Uuid) -> OstClient {
    let label = target_label(FSNAME, TargetKind::Ost, index);
    let connect = ConnectRequest {
        client_uuid: env.uuid(),
        client_name: "bench".to_owned(),
        fsname: FSNAME.to_owned(),
        target_uuid: Some(uuid),
        features: Vec::new(),
        last_incarnation: 0,
        will_replay: false,
    };
    let spec = PeerSpec { nqn: target_nqn(uuid, &label), label, nids: vec![nid], connect };
    OstClient::new(Import::new(env.clone(), connector, spec, Rc::new(Unobserved)))
}

/// Bytes that no device can compress away.
fn contents(length: usize) -> Bytes {
    let mut buf = DmaBuf::zeroed(length);
    let mut state = 88172645463325252u64;
    for chunk in buf.chunks_mut(8) {
        // xorshift64 (Marsaglia 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
    }
    buf.freeze()
}
