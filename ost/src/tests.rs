//! The target over the local transport and the model store, in virtual time: what clients see.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use nacre_osd::model::{Crash, ModelStore};
use nacre_osd::store::{Op, Store, Transaction};
use nacre_reactor::{Bytes, Env, Source};
use nacre_transport::host::{Import, ImportError, ImportLink, ImportObserver, PeerSpec};
use nacre_transport::local::{LocalConnector, LocalNet, LocalServer, serve_local};
use nacre_transport::stubs::{OstClient, SpaceChange, WriteRange, replay_locks};
use nacre_transport::{Call, CallError, Service, Session};
use nacre_wire::ldlm::{Enqueue, EnqueueFlags, EnqueueReply, Event, GlimpseReply, Granted, Mode, Policy};
use nacre_wire::op::{MwriteEntry, ObjectMwrite, Opcode, io_flags, space_mode};
use nacre_wire::ost::Precreate;
use nacre_wire::session::{ConnectReply, ConnectRequest};
use nacre_wire::{Attr, AttrPatch, Fid, Nid, Status, Time, Uuid};
use proptest::prelude::*;
use tokio::task::LocalSet;
use tokio::time::{sleep, timeout};
use zerocopy::IntoBytes;

use crate::{Ost, OstConfig, Params};

const UUID: Uuid = Uuid([9; 16]);
const SERVER: u16 = 1;

fn object(id: u64) -> Fid {
    Fid::ost_object(0, id)
}

fn time(seconds: i64) -> Time {
    Time { seconds, nanoseconds: 5 }
}

struct Clock(Cell<u64>);

impl Source for Clock {
    fn wall(&self) -> Time {
        self.0.set(self.0.get() + 1);
        time(1_000_000 + self.0.get() as i64)
    }

    fn random(&self) -> u64 {
        self.0.set(self.0.get() + 1);
        self.0.get().wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

/// A target and the net that it is on.
struct World {
    env: Env,
    net: LocalNet,
    store: Rc<ModelStore>,
    ost: Rc<Ost>,
    server: Option<LocalServer>,
}

impl World {
    async fn new(store: ModelStore) -> World {
        let env = Env::new(Rc::new(Clock(Cell::new(0))));
        let (net, store) = (LocalNet::new(), Rc::new(store));
        let ost = start(&env, &store).await;
        let server = Some(serve_local(&net, Nid::local(SERVER), ost.clone()));
        let world = World { env, net, store, ost, server };
        let maker = world.client(99).await;
        let request = Precreate { mdt_index: 0, up_to_id: 8, orphans_after_id: None };
        assert_eq!(maker.ost.precreate(&request).await.unwrap().last_id, 8);
        maker.ost.import.close(Duration::from_secs(1)).await;
        world
    }

    /// The process of the target ends, and starts again.
    async fn crash(&mut self, away: Duration) {
        self.server = None;
        self.store = Rc::new(self.store.crash(Crash::Kill));
        sleep(away).await;
        self.ost = start(&self.env, &self.store).await;
        self.server = Some(serve_local(&self.net, Nid::local(SERVER), self.ost.clone()));
    }

    async fn client(&self, number: u8) -> Rc<Client> {
        let client = self.unconnected_client(number);
        timeout(Duration::from_secs(5), client.ost.import.wait_full()).await.expect("connects").unwrap();
        client
    }

    fn unconnected_client(&self, number: u8) -> Rc<Client> {
        let connector = Rc::new(LocalConnector::new(&self.net, nid(number), &format!("client {number}")));
        let spec = PeerSpec {
            label: "nacre-OST0000".to_owned(),
            nqn: self.ost.nqn(),
            nids: vec![Nid::local(SERVER)],
            connect: ConnectRequest {
                client_uuid: Uuid([number; 16]),
                client_name: format!("client {number}"),
                fsname: "nacre".to_owned(),
                target_uuid: Some(UUID),
                features: Vec::new(),
                last_incarnation: 0,
                will_replay: false,
            },
        };
        let observer: Rc<Observer> = Rc::default();
        let import = Import::new(self.env.clone(), connector, spec, observer.clone());
        let client = Rc::new(Client { ost: OstClient::new(import), observer });
        *client.observer.ost.borrow_mut() = Some(client.ost.clone());
        client
    }
}

fn nid(number: u8) -> Nid {
    Nid::local(100 + u16::from(number))
}

async fn start(env: &Env, store: &Rc<ModelStore>) -> Rc<Ost> {
    let params = Params::default();
    let config = OstConfig { fsname: "nacre".to_owned(), index: 0, uuid: UUID, params };
    Ost::start(env.clone(), store.clone(), config).await.expect("starts")
}

struct Client {
    ost: OstClient,
    observer: Rc<Observer>,
}

/// What a client does with events: gives way at once unless told not to.
#[derive(Default)]
struct Observer {
    ost: RefCell<Option<OstClient>>,
    stubborn: Cell<bool>,
    held: RefCell<Vec<(Fid, Granted)>>,
    events: RefCell<Vec<Event>>,
    /// Written under the lock before it is given back.
    dirty: RefCell<Vec<WriteRange>>,
    glimpse: RefCell<Option<Attr>>,
    evictions: Cell<u32>,
    replays: Cell<u32>,
}

impl ImportObserver for Observer {
    fn event(&self, event: Event) {
        self.events.borrow_mut().push(event.clone());
        let Some(ost) = self.ost.borrow().clone() else { return };
        match event {
            Event::Revoke { cookie, .. } if !self.stubborn.get() => {
                self.held.borrow_mut().retain(|(_, lock)| lock.cookie != cookie);
                let dirty = self.dirty.take();
                tokio::task::spawn_local(async move {
                    if !dirty.is_empty() {
                        ost.mwrite(dirty, io_flags::GRANTED).await.expect("written back");
                    }
                    ost.cancel(vec![cookie]).await.expect("cancelled");
                });
            }
            Event::Granted { lock, resource, .. } => self.held.borrow_mut().push((resource, lock)),
            Event::Glimpse { cookie, .. } if !self.stubborn.get() => {
                let attr = self.glimpse.borrow().clone();
                tokio::task::spawn_local(async move {
                    ost.glimpse_reply(&GlimpseReply { cookie, attr }).await.expect("answered");
                });
            }
            _ => {}
        }
    }

    fn will_replay(&self) -> bool {
        !self.held.borrow().is_empty()
    }

    fn replay(&self, link: ImportLink, _: ConnectReply) -> LocalBoxFuture<'static, Result<(), CallError>> {
        self.replays.set(self.replays.get() + 1);
        let held = self.held.borrow().clone();
        Box::pin(async move { replay_locks(&link, &held).await })
    }

    fn evicted(&self) {
        self.evictions.set(self.evictions.get() + 1);
        self.held.borrow_mut().clear();
    }
}

impl Client {
    async fn enqueue(&self, id: u64, mode: Mode, range: (u64, u64), flags: EnqueueFlags) -> EnqueueReply {
        let policy = Policy::Extent { start: range.0, end: range.1 };
        let request = Enqueue { resource: object(id), mode, policy, flags, replaces: 0 };
        let reply = self.ost.enqueue(&request).await.unwrap();
        if !reply.waiting && reply.granted.cookie != 0 {
            self.observer.held.borrow_mut().push((object(id), reply.granted));
        }
        reply
    }

    /// A lock, waited for.
    async fn lock(&self, id: u64, mode: Mode, range: (u64, u64)) -> u64 {
        let reply = self.enqueue(id, mode, range, EnqueueFlags::empty()).await;
        let cookie = reply.granted.cookie;
        while !self.observer.held.borrow().iter().any(|(_, lock)| lock.cookie == cookie) {
            sleep(Duration::from_millis(1)).await;
        }
        cookie
    }

    async fn read(&self, id: u64, offset: u64, length: u32) -> Vec<u8> {
        self.ost.read(object(id), offset, length, 0).await.unwrap().to_vec()
    }

    async fn write(&self, id: u64, offset: u64, data: &[u8], cookie: u64) -> Result<(), ImportError> {
        self.ost.write(object(id), offset, Bytes::copy_from_slice(data), cookie, 0).await
    }
}

fn range(id: u64, offset_bytes: u64, data: &[u8], lock_cookie: u64, seconds: i64) -> WriteRange {
    let data = vec![Bytes::copy_from_slice(data)];
    WriteRange { object: object(id), offset_bytes, time: time(seconds), lock_cookie, layout_generation: 0, data }
}

fn run<T>(test: impl AsyncFnOnce() -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    LocalSet::new()
        .block_on(&runtime, async { timeout(Duration::from_secs(900), test()).await.expect("the test hangs") })
}

fn status(result: Result<impl Sized, ImportError>) -> Status {
    result.err().map(Status::from).expect("an error")
}

#[test]
fn bytes_attributes_and_space() {
    run(async || {
        let world = World::new(ModelStore::new()).await;
        let client = world.client(1).await;
        client.write(1, 10, b"hello", 0).await.unwrap();
        assert_eq!(client.read(1, 0, 100).await, b"\0\0\0\0\0\0\0\0\0\0hello");
        let attr = client.ost.getattr(object(1)).await.unwrap();
        assert_eq!((attr.size, attr.mtime), (15, attr.ctime));
        assert!(attr.mtime.seconds > 1_000_000, "the target's time");
        assert_eq!(client.ost.seek(object(1), 0, false).await.unwrap(), 0);
        assert_eq!(status(client.ost.seek(object(1), 15, false).await), Status::ENXIO);
        let change = |mode, offset_bytes, length_bytes| SpaceChange {
            mode,
            offset_bytes,
            length_bytes,
            time: time(2_000_000),
            layout_generation: 0,
        };
        client.ost.space(object(1), change(space_mode::TRUNCATE, 12, 0)).await.unwrap();
        client.ost.space(object(1), change(space_mode::TRUNCATE, 20, 0)).await.unwrap();
        assert_eq!(client.read(1, 9, 100).await, b"\0he\0\0\0\0\0\0\0\0");
        client.ost.space(object(1), change(space_mode::ALLOCATE | space_mode::KEEP_SIZE, 0, 1 << 20)).await.unwrap();
        let attr = client.ost.getattr(object(1)).await.unwrap();
        assert_eq!((attr.size, attr.allocated_bytes, attr.ctime), (20, 1 << 20, time(2_000_000)));
        client.ost.space(object(1), change(space_mode::PUNCH, 0, 1 << 20)).await.unwrap();
        assert_eq!(client.read(1, 9, 3).await, [0; 3]);
        for (mode, offset, length) in [(9, 0, 1), (space_mode::PUNCH, 0, 0), (space_mode::TRUNCATE | 0x100, 0, 0)] {
            assert_eq!(status(client.ost.space(object(1), change(mode, offset, length)).await), Status::EINVAL);
        }
        let limit = world.store.object_bytes_max();
        let beyond = change(space_mode::TRUNCATE, limit + 1, 0);
        assert_eq!(status(client.ost.space(object(1), beyond).await), Status::EFBIG);
        assert_eq!(status(client.write(1, limit - 1, b"xx", 0).await), Status::EFBIG);
        let patch = AttrPatch { uid: Some(7), mtime: Some(time(3)), ..AttrPatch::default() };
        client.ost.setattr(object(1), &patch, 0).await.unwrap();
        let attr = client.ost.getattr(object(1)).await.unwrap();
        assert_eq!((attr.uid, attr.mtime), (7, time(3)));
        let size = AttrPatch { size: Some(7), ..AttrPatch::default() };
        assert_eq!(status(client.ost.setattr(object(1), &size, 0).await), Status::EINVAL);
        client.ost.sync(object(1)).await.unwrap();
        assert_eq!(world.store.last_committed(), world.store.last_transno());
        assert!(world.ost.stats().writes >= 1);
    });
}

#[test]
fn objects_are_made_named_and_destroyed() {
    run(async || {
        let world = World::new(ModelStore::new()).await;
        let client = world.client(1).await;
        let precreate = |up_to_id, orphans_after_id| Precreate { mdt_index: 0, up_to_id, orphans_after_id };
        assert_eq!(client.ost.precreate(&precreate(4, None)).await.unwrap().last_id, 8, "sent again");
        client.write(6, 0, b"lost with its file", 0).await.unwrap();
        assert_eq!(client.ost.precreate(&precreate(20, Some(5))).await.unwrap().last_id, 20);
        assert_eq!(client.ost.getattr(object(6)).await.unwrap().size, 0, "made anew");
        assert!(client.ost.getattr(object(20)).await.is_ok());
        assert_eq!(status(client.ost.getattr(object(21)).await), Status::ENOENT);
        // A target that was set back goes on behind what the MDT knows.
        assert_eq!(client.ost.precreate(&precreate(1010, Some(1000))).await.unwrap().last_id, 1010);
        assert_eq!(status(client.ost.getattr(object(500)).await), Status::ENOENT);
        // Each MDT has ids of its own.
        let other = Precreate { mdt_index: 2, up_to_id: 2 << 40 | 3, orphans_after_id: None };
        assert_eq!(client.ost.precreate(&other).await.unwrap().last_id, 2 << 40 | 3);
        let foreign = Precreate { mdt_index: 2, up_to_id: 3, orphans_after_id: None };
        assert_eq!(status(client.ost.precreate(&foreign).await), Status::EINVAL);

        client.ost.destroy(vec![object(1), object(2), object(1)]).await.unwrap();
        client.ost.destroy(vec![object(1), object(3)]).await.unwrap();
        assert_eq!(status(client.read_status(1).await), Status::ENOENT);
        assert_eq!(world.ost.stats().objects_destroyed, 3);
        let elsewhere = Fid::ost_object(3, 1);
        assert_eq!(status(client.ost.destroy(vec![elsewhere]).await), Status::WRONG_TARGET);
        assert_eq!(status(client.ost.getattr(elsewhere).await), Status::WRONG_TARGET);
        assert_eq!(status(client.ost.getattr(Fid::ROOT).await), Status::EINVAL);
    });
}

impl Client {
    async fn read_status(&self, id: u64) -> Result<Bytes, ImportError> {
        self.ost.read(object(id), 0, 1, 0).await
    }
}

#[test]
fn a_conflicting_lock_brings_what_the_other_had_cached() {
    run(async || {
        let world = World::new(ModelStore::new()).await;
        let (one, two) = (world.client(1).await, world.client(2).await);
        let cookie = one.lock(1, Mode::Pw, (0, 4095)).await;
        assert_eq!(one.observer.held.borrow()[0].1.policy, Policy::Extent { start: 0, end: u64::MAX });
        one.observer.dirty.borrow_mut().push(range(1, 0, b"cached", cookie, 50));
        // A reader without a lock of its own sees it, and so does one with.
        assert_eq!(two.read(1, 0, 10).await, b"cached");
        assert_eq!(
            two.ost.getattr(object(1)).await.unwrap().mtime,
            time(50),
            "the time of the write, not of its arrival"
        );
        assert_eq!(status(one.write(1, 0, b"x", cookie).await), Status::NO_LOCK);
        let cookie = one.lock(1, Mode::Pw, (0, 4095)).await;
        one.observer.dirty.borrow_mut().push(range(1, 0, b"again!", cookie, 40));
        let theirs = two.lock(1, Mode::Pr, (0, 100)).await;
        assert_eq!(two.ost.read(object(1), 0, 10, theirs).await.unwrap(), "again!");
        assert_eq!(two.ost.getattr(object(1)).await.unwrap().mtime, time(50), "an older time changes nothing");
        assert_eq!(status(two.write(1, 0, b"x", theirs).await), Status::NO_LOCK, "a read lock");
        let other = two.lock(2, Mode::Pw, (0, 9)).await;
        assert_eq!(status(two.write(1, 0, b"x", other).await), Status::NO_LOCK, "a lock on something else");
        // Destroying takes every lock first.
        one.ost.destroy(vec![object(1)]).await.unwrap();
        assert!(two.observer.held.borrow().iter().all(|(fid, _)| *fid != object(1)));
    });
}

#[test]
fn a_client_works_under_its_own_locks_while_somebody_waits_for_them() {
    run(async || {
        let world = World::new(ModelStore::new()).await;
        let (one, two) = (world.client(1).await, world.client(2).await);
        let cookie = one.lock(1, Mode::Pw, (0, 4095)).await;
        one.observer.stubborn.set(true);
        let wait = two.enqueue(1, Mode::Pw, (0, 4095), EnqueueFlags::empty()).await;
        assert!(wait.waiting);
        // A truncate names no lock; it must not queue behind the one who waits for this client.
        let change = SpaceChange {
            mode: space_mode::TRUNCATE,
            offset_bytes: 3,
            length_bytes: 0,
            time: time(9),
            layout_generation: 0,
        };
        timeout(Duration::from_secs(1), one.ost.space(object(1), change)).await.expect("no wait").unwrap();
        one.write(1, 0, b"abc", cookie).await.unwrap();
        one.ost.cancel(vec![cookie]).await.unwrap();
        while two.observer.held.borrow().is_empty() {
            sleep(Duration::from_millis(1)).await;
        }
        let granted = two.observer.events.borrow().last().cloned();
        assert!(matches!(granted, Some(Event::Granted { attr: Some(attr), .. }) if attr.size == 3));
    });
}

#[test]
fn a_glimpse_merges_what_is_not_written_yet() {
    run(async || {
        let world = World::new(ModelStore::new()).await;
        let (one, two) = (world.client(1).await, world.client(2).await);
        one.lock(1, Mode::Pw, (0, 0)).await;
        let unwritten =
            Attr { size: 1 << 20, allocated_bytes: 4096, mtime: time(70), ctime: time(70), ..Attr::default() };
        *one.observer.glimpse.borrow_mut() = Some(unwritten);
        let reply = two.enqueue(1, Mode::Pr, (0, u64::MAX), EnqueueFlags::GLIMPSE).await;
        assert_eq!(reply.granted.cookie, 0);
        let attr = reply.attr.unwrap();
        assert_eq!((attr.size, attr.allocated_bytes, attr.mtime), (1 << 20, 4096, time(70)));
        assert_ne!(reply.handle, 0);
        assert!(!one.observer.held.borrow().is_empty(), "nobody lost a lock");
        // Nobody is in the way: a lock as well.
        let reply = two.enqueue(2, Mode::Pr, (0, u64::MAX), EnqueueFlags::GLIMPSE).await;
        assert_ne!(reply.granted.cookie, 0);
        // One who does not answer costs ten seconds, not more.
        one.observer.stubborn.set(true);
        let start = world.env.now();
        let reply = two.enqueue(1, Mode::Pr, (0, u64::MAX), EnqueueFlags::GLIMPSE).await;
        assert_eq!(reply.attr.unwrap().size, 0);
        assert!((world.env.now() - start).as_secs() <= 10);
    });
}

#[test]
fn a_dead_client_is_evicted_and_the_others_go_on() {
    run(async || {
        let world = World::new(ModelStore::new()).await;
        let (one, two) = (world.client(1).await, world.client(2).await);
        one.lock(1, Mode::Pw, (0, 4095)).await;
        world.net.faults().part(nid(1), Nid::local(SERVER));
        let start = world.env.now();
        two.write(1, 0, b"mine", 0).await.unwrap();
        let took = (world.env.now() - start).as_secs();
        assert!(took <= 31, "{took} s");
        assert_eq!(world.ost.stats().evictions, 1);
        world.net.faults().heal(nid(1), Nid::local(SERVER));
        timeout(Duration::from_secs(30), async {
            while one.observer.evictions.get() == 0 {
                sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .expect("it is told");
        assert_eq!(one.read(1, 0, 4).await, b"mine");
        // One that answers, but never gives way, has 30 s.
        one.lock(2, Mode::Pw, (0, 4095)).await;
        one.observer.stubborn.set(true);
        let start = world.env.now();
        two.write(2, 0, b"mine", 0).await.unwrap();
        assert!((29..=31).contains(&(world.env.now() - start).as_secs()));
    });
}

#[test]
fn a_short_break_costs_nobody_a_lock() {
    run(async || {
        let world = World::new(ModelStore::new()).await;
        let (one, two) = (world.client(1).await, world.client(2).await);
        let cookie = one.lock(1, Mode::Pw, (0, 4095)).await;
        world.net.faults().part(nid(1), Nid::local(SERVER));
        sleep(Duration::from_secs(10)).await;
        world.net.faults().heal(nid(1), Nid::local(SERVER));
        one.write(1, 0, b"still", cookie).await.unwrap();
        assert_eq!(one.observer.evictions.get(), 0);
        assert_eq!(one.observer.replays.get(), 0);
        assert_eq!(two.read(1, 0, 5).await, b"still");
    });
}

#[test]
fn after_a_restart_locks_are_replayed_before_anything_else() {
    run(async || {
        let mut world = World::new(ModelStore::crashable()).await;
        let (one, two, three) = (world.client(1).await, world.client(2).await, world.client(3).await);
        let cookie = one.lock(1, Mode::Pw, (0, 4095)).await;
        two.lock(2, Mode::Pr, (0, 4095)).await;
        one.write(1, 0, b"before", cookie).await.unwrap();
        let incarnation = world.ost.incarnation();
        world.crash(Duration::from_secs(3)).await;
        assert_eq!(world.ost.incarnation(), incarnation + 1);
        assert!(world.ost.is_recovering());
        // Three had no locks, and waits until the others are back.
        let start = world.env.now();
        assert_eq!(three.read(2, 0, 5).await, b"");
        assert!((world.env.now() - start).as_secs() < 5, "all are back soon");
        assert_eq!((one.observer.replays.get(), two.observer.replays.get(), three.observer.replays.get()), (1, 1, 1));
        let evictions = [&one, &two, &three].map(|client| client.observer.evictions.get());
        assert_eq!(evictions, [0, 0, 0]);
        one.write(1, 6, b" and after", cookie).await.unwrap();
        one.observer.dirty.borrow_mut().push(range(1, 16, b"!", cookie, 1));
        assert_eq!(three.read(1, 0, 100).await, b"before and after!");
    });
}

/// A client waits for its first lock as the target restarts. It held nothing, so nothing was lost but its place in line: it
/// must be told, or it waits for a grant that nobody remembers.
#[test]
fn who_waits_for_a_lock_over_a_restart_asks_again() {
    run(async || {
        let mut world = World::new(ModelStore::crashable()).await;
        let (one, two) = (world.client(1).await, world.client(2).await);
        let cookie = one.lock(1, Mode::Pw, (0, 4095)).await;
        one.observer.stubborn.set(true);
        assert!(two.enqueue(1, Mode::Pw, (0, 4095), EnqueueFlags::empty()).await.waiting);
        world.crash(Duration::from_secs(1)).await;
        one.write(1, 0, b"mine", cookie).await.unwrap();
        two.ost.statfs().await.unwrap();
        assert_eq!((two.observer.replays.get(), two.observer.evictions.get()), (1, 0));
    });
}

#[test]
fn a_client_that_stays_away_is_waited_for_and_then_evicted() {
    run(async || {
        let mut world = World::new(ModelStore::crashable()).await;
        let (one, two) = (world.client(1).await, world.client(2).await);
        one.lock(1, Mode::Pw, (0, 4095)).await;
        world.net.faults().part(nid(1), Nid::local(SERVER));
        world.crash(Duration::from_secs(1)).await;
        let start = world.env.now();
        two.write(1, 0, b"free", 0).await.unwrap();
        let took = (world.env.now() - start).as_secs();
        assert!((29..=32).contains(&took), "{took} s");
        world.net.faults().heal(nid(1), Nid::local(SERVER));
        assert_eq!(one.read(1, 0, 4).await, b"free");
        assert_eq!((one.observer.evictions.get(), one.observer.replays.get()), (1, 0));
        // Nobody had locks who is still known: the next start waits for nobody.
        two.ost.sync_all().await.unwrap();
        world.crash(Duration::from_secs(1)).await;
        assert!(!world.ost.is_recovering());
    });
}

#[test]
fn a_goodbye_leaves_nothing_to_wait_for() {
    run(async || {
        let mut world = World::new(ModelStore::crashable()).await;
        let one = world.client(1).await;
        one.lock(1, Mode::Pw, (0, 4095)).await;
        one.ost.import.close(Duration::from_secs(5)).await;
        sleep(Duration::from_secs(1)).await;
        assert!(world.ost.lock_server().clients().is_empty());
        world.crash(Duration::from_secs(1)).await;
        assert!(!world.ost.is_recovering());
    });
}

#[test]
fn a_full_target_refuses_writers_but_not_what_it_granted() {
    run(async || {
        let world = World::new(ModelStore::with_capacity(8 << 20)).await;
        let (one, two) = (world.client(1).await, world.client(2).await);
        let granted = one.ost.import.connect_reply().unwrap().grant_bytes;
        assert!(granted >= 64 << 10, "{granted}");
        let cookie = one.lock(1, Mode::Pw, (0, u64::MAX)).await;
        // Two fills what is for anybody.
        let block = vec![7u8; 256 << 10];
        let mut offset = 0;
        let full = loop {
            match two.write(2, offset, &block, 0).await {
                Ok(()) => offset += block.len() as u64,
                Err(error) => break Status::from(error),
            }
            assert!(offset < 8 << 20, "never full");
        };
        assert_eq!(full, Status::ENOSPC);
        let statfs = two.ost.statfs().await.unwrap();
        assert!(statfs.free_bytes < 256 << 10, "{statfs:?}");
        assert!(statfs.granted_bytes >= granted);
        // Overwriting needs no space.
        two.write(2, 0, &block, 0).await.unwrap();
        // What one may have cached can be written.
        let data = vec![3u8; granted as usize];
        let delta = one.ost.mwrite(vec![range(1, 0, &data, cookie, 9)], io_flags::GRANTED).await.unwrap();
        assert!(delta < 0);
        let reply = one.enqueue(1, Mode::Pw, (0, 1), EnqueueFlags::empty()).await;
        assert_eq!(reply.grant_bytes as i64, granted as i64 + delta);
        let allocate =
            |mode| SpaceChange { mode, offset_bytes: 0, length_bytes: 4 << 20, time: time(1), layout_generation: 0 };
        assert_eq!(status(two.ost.space(object(3), allocate(space_mode::ALLOCATE)).await), Status::ENOSPC);
        assert!(world.ost.stats().no_space >= 2);
        // Space comes back.
        two.ost.destroy(vec![object(2)]).await.unwrap();
        two.ost.space(object(3), allocate(space_mode::ALLOCATE)).await.unwrap();
    });
}

#[test]
fn mwrite_is_all_or_nothing_over_many_objects() {
    run(async || {
        let world = World::new(ModelStore::new()).await;
        let (one, two) = (world.client(1).await, world.client(2).await);
        let theirs = two.lock(2, Mode::Pw, (0, 4095)).await;
        two.observer.dirty.borrow_mut().push(range(2, 8, b"two", theirs, 3));
        // Ranges that overlap, touch, and are out of order, on two objects; without locks.
        let ranges = vec![
            range(2, 0, b"abc", 0, 5),
            range(1, 4, b"wxyz", 0, 7),
            range(1, 2, b"1234", 0, 6),
            range(2, 3, b"d", 0, 4),
        ];
        timeout(Duration::from_secs(5), one.ost.mwrite(ranges, 0)).await.expect("does not wait for itself").unwrap();
        assert_eq!(one.read(1, 0, 100).await, b"\0\x001234yz");
        assert_eq!(one.read(2, 0, 100).await, b"abcd\0\0\0\0two");
        assert_eq!(one.ost.getattr(object(1)).await.unwrap().mtime, time(7));
        let bad = vec![range(1, 0, b"new", 0, 8), range(2, 0, b"new", 12345, 8)];
        assert_eq!(status(one.ost.mwrite(bad, 0).await), Status::NO_LOCK);
        assert_eq!(one.read(1, 0, 3).await, b"\0\x001");
    });
}

#[test]
fn the_wrong_peer_is_refused_in_words() {
    run(async || {
        let world = World::new(ModelStore::new()).await;
        let session = Session::new(77, "test".to_owned(), String::new());
        let request = ConnectRequest {
            client_uuid: Uuid([1; 16]),
            client_name: String::new(),
            fsname: "other".to_owned(),
            target_uuid: Some(UUID),
            features: Vec::new(),
            last_incarnation: 0,
            will_replay: false,
        };
        let ask = async |operation: u16, body: Bytes| {
            let args = nacre_wire::op::RpcArgs { operation: operation.into(), ..Default::default() };
            let args = args.as_bytes().try_into().unwrap();
            let call = Call { op: Opcode::RpcSend, args, data: body, reply_bytes_max: 4096 };
            world.ost.clone().serve(session.clone(), call).await
        };
        let connect = async |request: &ConnectRequest| ask(1, nacre_wire::codec::encode(request).into()).await;
        assert_eq!(connect(&request).await, Err(Status::WRONG_TARGET));
        let other_target =
            ConnectRequest { fsname: "nacre".to_owned(), target_uuid: Some(Uuid::NIL), ..request.clone() };
        assert_eq!(connect(&other_target).await, Err(Status::WRONG_TARGET));
        let feature = ConnectRequest { fsname: "nacre".to_owned(), features: vec!["flying".to_owned()], ..request };
        assert_eq!(connect(&feature).await, Err(Status::UNKNOWN_FEATURE));
        assert_eq!(ask(0x0303, Bytes::from_static(b"")).await, Err(Status::NO_SESSION));
        assert_eq!(ask(0x7777, Bytes::from_static(b"")).await, Err(Status::NO_SESSION));
        assert_eq!(ask(1, Bytes::from_static(b"x")).await, Err(Status::MALFORMED));
    });
}

#[test]
fn a_damaged_state_is_named() {
    run(async || {
        let store: Rc<dyn Store> = Rc::new(ModelStore::new());
        let put = Op::Put { index: Fid::local(2), key: b"incarnation".to_vec(), value: vec![1, 2] };
        store.submit(Transaction { ops: vec![put] }).await.unwrap();
        let config = OstConfig { fsname: "nacre".to_owned(), index: 3, uuid: UUID, params: Params::default() };
        let error = Ost::start(Env::system(), store, config).await.err().expect("does not start");
        assert_eq!(error.to_string(), "nacre-OST0003: the start counter is damaged; run nacre fsck on its device");
    });
}

/// A connected session at a target, driven without a transport.
async fn bare_session() -> (Rc<Ost>, Rc<Session>) {
    let world = World::new(ModelStore::with_capacity(64 << 20)).await;
    let session = Session::new(500, "fuzz".to_owned(), String::new());
    let ost = world.ost.clone();
    ost.lock_server().attach(Uuid([5; 16]), &session);
    ost.handles.borrow_mut().open(session.id, object(1));
    ost.handles.borrow_mut().open(session.id, object(2));
    (ost, session)
}

const OPCODES: [Opcode; 12] = [
    Opcode::Ping,
    Opcode::Write,
    Opcode::Read,
    Opcode::Space,
    Opcode::SetAttr,
    Opcode::GetAttr,
    Opcode::Sync,
    Opcode::Seek,
    Opcode::Mwrite,
    Opcode::RpcSend,
    Opcode::RpcRecv,
    Opcode::EventWait,
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Arguments and data of any content never harm the target: it answers, and goes on.
    #[test]
    fn arbitrary_commands_never_panic(
        calls in prop::collection::vec(
            (0..OPCODES.len(), any::<[u8; 32]>(), 0..4u8, prop::collection::vec(any::<u8>(), 0..200)), 1..20
        )
    ) {
        run(async || {
            let (ost, session) = bare_session().await;
            for (op, mut args, handle, data) in calls {
                // Often a handle that exists, or an operation number that does.
                if handle != 0 {
                    args[..4].copy_from_slice(&u32::from(handle).to_le_bytes());
                    args[4..6].copy_from_slice(&(0x0300 + u16::from(handle)).to_le_bytes());
                    args[24..28].fill(0);
                }
                let call = Call { op: OPCODES[op], args, data: data.into(), reply_bytes_max: 1 << 20 };
                let answer = timeout(Duration::from_secs(60), ost.clone().serve(session.clone(), call)).await;
                assert!(answer.is_ok(), "{:?} does not end", OPCODES[op]);
            }
            let ping = Call { op: Opcode::Ping, args: [0; 32], data: Bytes::new(), reply_bytes_max: 0 };
            assert!(ost.serve(session, ping).await.is_ok());
        });
    }

    /// MWRITE tables that lie about lengths, places and handles are refused whole.
    #[test]
    fn malformed_mwrite_tables_change_nothing(
        entries in prop::collection::vec((0..4u32, 0..64u32, any::<u64>(), prop_oneof![Just(0u64), any::<u64>()]), 0..6),
        claimed in 0..8u32,
        start_shift in 0..64u32,
        tail in 0..100usize,
    ) {
        run(async || {
            let (ost, session) = bare_session().await;
            let mut data = Vec::new();
            for (handle, length, offset, cookie) in &entries {
                let entry = MwriteEntry {
                    handle: (*handle).into(),
                    length_bytes: (*length).into(),
                    offset_bytes: (*offset).into(),
                    lock_cookie: (*cookie).into(),
                    ..MwriteEntry::default()
                };
                data.extend_from_slice(entry.as_bytes());
            }
            let start = data.len() as u32 + start_shift;
            data.resize(data.len() + start_shift as usize + tail, 0xaa);
            let head = ObjectMwrite {
                entries: claimed.into(),
                data_offset_bytes: start.into(),
                length_bytes: (data.len() as u32).into(),
                ..ObjectMwrite::default()
            };
            let before = ost.store.last_transno();
            let args = head.as_bytes().try_into().unwrap();
            let call = Call { op: Opcode::Mwrite, args, data: data.into(), reply_bytes_max: 0 };
            let answer = ost.clone().serve(session, call).await;
            let sound = claimed as usize <= entries.len()
                && entries[..(claimed as usize).min(entries.len())].iter().all(|(handle, _, offset, cookie)| {
                    (1..=2).contains(handle) && *cookie == 0 && *offset < 1 << 60
                })
                && entries.iter().take(claimed as usize).map(|entry| entry.1 as usize).sum::<usize>() == tail;
            if !sound {
                assert!(answer.is_err(), "{answer:?}");
                assert_eq!(ost.store.last_transno(), before);
            }
        });
    }
}
