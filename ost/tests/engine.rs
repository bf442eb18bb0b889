//! The target over the real store on a memory bdev: what the model cannot show is how full a device gets, with the space
//! that the store's own records take, and what a restart finds.

use std::rc::Rc;
use std::time::Duration;

use nacre_osd::bdev::BdevRef;
use nacre_osd::bdev::malloc::Malloc;
use nacre_osd::engine::{FormatOptions, Options, Osd};
use nacre_osd::store::Store;
use nacre_ost::{Ost, OstConfig, Params};
use nacre_reactor::{Bytes, Env};
use nacre_transport::Service;
use nacre_transport::host::{Import, PeerSpec, Unobserved};
use nacre_transport::local::{LocalConnector, LocalNet, LocalServer, serve_local};
use nacre_transport::stubs::{OstClient, WriteRange};
use nacre_wire::op::io_flags;
use nacre_wire::ost::Precreate;
use nacre_wire::session::ConnectRequest;
use nacre_wire::{Fid, Nid, Status, Time, Uuid};
use tokio::task::LocalSet;
use tokio::time::Instant;

const UUID: Uuid = Uuid([3; 16]);

struct World {
    net: LocalNet,
    ost: Rc<Ost>,
    store: Rc<Osd>,
    _server: LocalServer,
}

async fn device(bytes: u64) -> BdevRef {
    let bdev: BdevRef = Rc::new(Malloc::with_bytes("Malloc0", bytes).expect("memory"));
    let options = FormatOptions { uuid: Uuid([8; 16]), label: Vec::new(), log_bytes: None };
    Osd::format(&bdev, &options).await.expect("formats");
    bdev
}

async fn start(bdev: &BdevRef) -> World {
    let store = Osd::open(bdev.clone(), Options::default()).await.expect("opens");
    let config = OstConfig { fsname: "nacre".to_owned(), index: 0, uuid: UUID, params: Params::default() };
    let ost = Ost::start(Env::system(), store.clone(), config).await.expect("starts");
    let net = LocalNet::new();
    let server = serve_local(&net, Nid::local(1), ost.clone());
    World { net, ost, store, _server: server }
}

impl World {
    async fn client(&self, number: u8) -> OstClient {
        let connector = Rc::new(LocalConnector::new(&self.net, Nid::local(100), "test"));
        let spec = PeerSpec {
            label: "nacre-OST0000".to_owned(),
            nqn: self.ost.nqn(),
            nids: vec![Nid::local(1)],
            connect: ConnectRequest {
                client_uuid: Uuid([number; 16]),
                client_name: "test".to_owned(),
                fsname: "nacre".to_owned(),
                target_uuid: Some(UUID),
                features: Vec::new(),
                last_incarnation: 0,
                will_replay: false,
            },
        };
        let import = Import::new(Env::system(), connector, spec, Rc::new(Unobserved));
        import.wait_full().await.expect("connects");
        OstClient::new(import)
    }
}

fn object(id: u64) -> Fid {
    Fid::ost_object(0, id)
}

async fn precreate(client: &OstClient, up_to_id: u64) -> u64 {
    client.precreate(&Precreate { mdt_index: 0, up_to_id, orphans_after_id: None }).await.expect("precreates").last_id
}

fn run(test: impl AsyncFnOnce()) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(Duration::from_secs(120), test()).await.expect("the test hangs");
    });
}

#[test]
fn a_device_filled_to_the_brim_still_takes_what_was_granted() {
    run(async || {
        let bdev = device(96 << 20).await;
        let world = start(&bdev).await;
        let (one, two) = (world.client(1).await, world.client(2).await);
        assert_eq!(precreate(&one, 64).await, 64);
        let granted = one.import.connect_reply().expect("connected").grant_bytes;
        assert!(granted >= 1 << 20, "{granted}");
        let block = Bytes::from(vec![1u8; 64 << 10]);
        let mut filled = 0u64;
        let full = loop {
            match two.write(object(2), filled, block.clone(), 0, 0).await {
                Ok(()) => filled += block.len() as u64,
                Err(error) => break Status::from(error),
            }
        };
        assert_eq!(full, Status::ENOSPC);
        // The worst that can be done with a grant: single blocks, scattered over many objects.
        let page = Bytes::from(vec![2u8; 4096]);
        for n in 0..granted / 4096 {
            let range = WriteRange {
                object: object(3 + n % 60),
                offset_bytes: n * 8192,
                time: Time { seconds: 5, nanoseconds: 0 },
                lock_cookie: 0,
                layout_generation: 0,
                data: vec![page.clone()],
            };
            one.mwrite(vec![range], io_flags::GRANTED).await.unwrap_or_else(|error| panic!("page {n}: {error}"));
        }
        two.destroy(vec![object(2)]).await.expect("deleting always works");
        two.write(object(1), 0, block.clone(), 0, 0).await.expect("space is back");
        assert_eq!(one.read(object(3), 0, 4096, 0).await.expect("reads"), page);
    });
}

#[test]
fn a_restart_finds_objects_counters_and_bytes() {
    run(async || {
        let bdev = device(64 << 20).await;
        let world = start(&bdev).await;
        let client = world.client(1).await;
        assert_eq!(precreate(&client, 40).await, 40);
        client.write(object(5), 100, Bytes::from_static(b"kept"), 0, io_flags::SYNC).await.expect("writes");
        assert!(world.store.last_committed() > 0);
        let incarnation = world.ost.incarnation();
        // No goodbye: as after kill −9.
        drop((client, world));
        let world = start(&bdev).await;
        assert_eq!(world.ost.incarnation(), incarnation + 1);
        let client = world.client(2).await;
        assert_eq!(precreate(&client, 1).await, 40, "ids go on where they were");
        assert_eq!(client.read(object(5), 100, 10, 0).await.expect("reads"), "kept");
    });
}

/// Prints what a command costs over the local transport; run with `--release -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn measure() {
    run(async || {
        let bdev = device(512 << 20).await;
        let world = start(&bdev).await;
        let client = world.client(1).await;
        precreate(&client, 64).await;
        let page = Bytes::from(vec![2u8; 4096]);
        let large = Bytes::from(vec![2u8; 1 << 20]);
        for round in 0..2 {
            let begin = Instant::now();
            for n in 0..128u64 {
                client.write(object(1), n << 20, large.clone(), 0, 0).await.expect("writes");
            }
            println!("round {round}: 1 MiB write, one at a time: {:?}", begin.elapsed() / 128);
            let begin = Instant::now();
            for n in 0..128u64 {
                client.read(object(1), n << 20, 1 << 20, 0).await.expect("reads");
            }
            println!("round {round}: 1 MiB read, one at a time: {:?}", begin.elapsed() / 128);
        }
        const COUNT: u64 = 50_000;
        for depth in [1u64, 32] {
            let begin = Instant::now();
            let writers = (0..depth).map(|worker| {
                let (client, page) = (client.clone(), page.clone());
                async move {
                    for n in 0..COUNT / depth {
                        let place = (n * depth + worker).wrapping_mul(7919) % 32768 * 4096;
                        client.write(object(1), place, page.clone(), 0, 0).await.expect("writes");
                    }
                }
            });
            futures_util::future::join_all(writers).await;
            let per_second = COUNT as f64 / begin.elapsed().as_secs_f64();
            println!("4 KiB overwrite, depth {depth}: {per_second:.0}/s");
            let begin = Instant::now();
            let readers = (0..depth).map(|worker| {
                let client = client.clone();
                async move {
                    for n in 0..COUNT / depth {
                        let place = (n * depth + worker).wrapping_mul(7919) % 32768 * 4096;
                        client.read(object(1), place, 4096, 0).await.expect("reads");
                    }
                }
            });
            futures_util::future::join_all(readers).await;
            let per_second = COUNT as f64 / begin.elapsed().as_secs_f64();
            println!("4 KiB read, depth {depth}: {per_second:.0}/s");
        }
    });
}
