//! The lock server with sessions but without a transport: what a client is told, and when.

use std::time::Duration;

use nacre_wire::ldlm::EnqueueFlags;
use tokio::task::LocalSet;

use super::*;

const FILE: Fid = Fid::new(8, 1);
const WHOLE: Policy = Policy::Extent { start: 0, end: u64::MAX };

struct Hooks {
    delay: Duration,
    evicted: RefCell<Vec<Uuid>>,
}

impl LockHooks for Hooks {
    fn value(&self, _: Fid) -> LocalBoxFuture<'static, Option<Attr>> {
        let delay = self.delay;
        Box::pin(async move {
            sleep(delay).await;
            Some(Attr { size: 77, ..Attr::default() })
        })
    }

    fn evicted(&self, _: ClientId, uuid: Uuid) {
        self.evicted.borrow_mut().push(uuid);
    }
}

struct Peer {
    session: Rc<Session>,
    client: ClientId,
    acknowledged: Cell<u64>,
}

impl Peer {
    fn new(server: &Rc<LockServer>, number: u8) -> Peer {
        let session = Session::new(u64::from(number), format!("peer {number}"), String::new());
        let client = server.attach(Uuid([number; 16]), &session).client;
        Peer { session, client, acknowledged: Cell::new(0) }
    }

    async fn event(&self) -> Event {
        let (first, events) = self.session.next_events(self.acknowledged.get(), 1).await;
        self.acknowledged.set(first);
        events[0].clone()
    }

    fn ask(&self, server: &Rc<LockServer>, mode: Mode, flags: EnqueueFlags) -> Result<LockReply, Status> {
        let request = Enqueue { resource: FILE, mode, policy: WHOLE, flags, replaces: 0 };
        server.enqueue(self.client, 0, &request)
    }

    fn get(&self, server: &Rc<LockServer>, mode: Mode) -> LockReply {
        self.ask(server, mode, EnqueueFlags::empty()).unwrap()
    }
}

fn run(test: impl AsyncFnOnce(Rc<LockServer>, Rc<Hooks>)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let server = LockServer::new(Env::system(), Limits::default(), 1);
        let hooks = Rc::new(Hooks { delay: Duration::from_millis(5), evicted: RefCell::default() });
        let weak = Rc::downgrade(&hooks);
        server.set_hooks(weak);
        timeout(Duration::from_secs(600), test(server, hooks)).await.expect("the test hangs");
    });
}

fn cookie(reply: LockReply) -> u64 {
    match reply {
        LockReply::Granted(lock) | LockReply::Waiting(lock) | LockReply::Conflict(lock) => lock.cookie,
    }
}

#[test]
fn a_grant_brings_attributes_and_stays_before_its_revoke() {
    run(async |server, _| {
        let (a, b, c) = (Peer::new(&server, 1), Peer::new(&server, 2), Peer::new(&server, 3));
        let first = cookie(a.get(&server, Mode::Pw));
        let second = b.get(&server, Mode::Pw);
        assert!(matches!(second, LockReply::Waiting(_)));
        c.get(&server, Mode::Pw);
        assert!(matches!(a.event().await, Event::Revoke { cookie, .. } if cookie == first));
        server.cancel(a.client, &[first]);
        // B is in C's way at once; it must hear of its lock first, though that takes a look at the object.
        let event = b.event().await;
        assert!(
            matches!(&event, Event::Granted { lock, attr: Some(attr), .. }
                if lock.cookie == cookie(second) && attr.size == 77),
            "{event:?}"
        );
        assert!(matches!(b.event().await, Event::Revoke { .. }));
    });
}

#[test]
fn operations_wait_in_line_and_leave_it_when_dropped() {
    run(async |server, _| {
        let a = Peer::new(&server, 1);
        let held = cookie(a.get(&server, Mode::Pr));
        let waiting = server.local(FILE, Mode::Ex, WHOLE, None);
        let next = server.local(FILE, Mode::Pr, WHOLE, None);
        assert!(matches!(a.event().await, Event::Revoke { cookie, .. } if cookie == held));
        drop(waiting);
        // Nobody else stands against a reader.
        let reader = timeout(Duration::from_secs(1), next).await.expect("granted at once").unwrap();
        assert_eq!(reader.resource(), FILE);
        drop(reader);
        server.cancel(a.client, &[held]);
        assert!(server.is_idle(FILE));
        let one = server.local_many(&[(FILE, Mode::Pr, Ibits::LOOKUP), (FILE, Mode::Ex, Ibits::UPDATE)], None).await;
        assert_eq!(one.unwrap().len(), 1, "one inode twice is one lock");
        assert!(server.is_idle(FILE));
    });
}

#[test]
fn a_dead_holder_is_evicted_in_time_and_its_sessions_know_nothing() {
    run(async |server, hooks| {
        let a = Peer::new(&server, 1);
        a.get(&server, Mode::Pw);
        let start = server.env.now();
        // Connected and silent: 30 s.
        let lock = server.local(FILE, Mode::Ex, WHOLE, None).await.unwrap();
        let took = server.env.now() - start;
        assert!((29..=31).contains(&took.as_secs()), "{took:?}");
        assert_eq!(*hooks.evicted.borrow(), [Uuid([1; 16])]);
        assert_eq!(server.client(&a.session), Err(Status::NO_SESSION));
        assert_eq!(a.ask(&server, Mode::Pr, EnqueueFlags::empty()), Err(Status::NO_SESSION));
        drop(lock);
        // Gone: 5 s.
        let b = Peer::new(&server, 2);
        b.get(&server, Mode::Pw);
        server.detach(&b.session);
        let start = server.env.now();
        drop(server.local(FILE, Mode::Ex, WHOLE, None).await.unwrap());
        let took = server.env.now() - start;
        assert!((4..=6).contains(&took.as_secs()), "{took:?}");
        assert!(server.clients().is_empty());
    });
}

#[test]
fn a_client_that_comes_back_in_time_keeps_its_locks_and_hears_what_it_missed() {
    run(async |server, hooks| {
        let (a, b) = (Peer::new(&server, 1), Peer::new(&server, 2));
        let held = cookie(a.get(&server, Mode::Pw));
        server.detach(&a.session);
        b.get(&server, Mode::Pw);
        sleep(Duration::from_secs(3)).await;
        let session = Session::new(100, "again".to_owned(), String::new());
        let attached = server.attach(Uuid([1; 16]), &session);
        assert_eq!(attached, Attached { client: a.client, resumed: true });
        // The end of the old link, noticed late, changes nothing.
        server.detach(&a.session);
        let (_, events) = session.next_events(0, 8).await;
        assert!(matches!(events[..], [Event::Revoke { cookie, .. }] if cookie == held));
        sleep(Duration::from_secs(10)).await;
        server.cancel(a.client, &[held]);
        assert!(matches!(b.event().await, Event::Granted { .. }));
        assert!(hooks.evicted.borrow().is_empty());
    });
}

#[test]
fn glimpses_are_answered_for_all_who_ask_or_not_at_all() {
    run(async |server, _| {
        let (a, b) = (Peer::new(&server, 1), Peer::new(&server, 2));
        let held = cookie(a.get(&server, Mode::Pw));
        assert!(matches!(b.ask(&server, Mode::Pr, EnqueueFlags::GLIMPSE), Ok(LockReply::Conflict(_))));
        let answer = async {
            // Who asks while a question is under way is not given its answer: it may be older than what they must see.
            for size in [5, 6] {
                assert!(matches!(a.event().await, Event::Glimpse { cookie, .. } if cookie == held));
                let attr = Some(Attr { size, ..Attr::default() });
                server.glimpse_reply(a.client, GlimpseReply { cookie: held, attr });
            }
        };
        let (one, two, three, ()) = tokio::join!(
            server.glimpse(FILE, b.client),
            server.glimpse(FILE, ClientId::SERVER),
            server.glimpse(FILE, b.client),
            answer
        );
        let sizes = [one, two, three].map(|answers| answers.iter().map(|attr| attr.size).collect::<Vec<_>>());
        assert_eq!(sizes, [[5], [6], [6]]);
        // Nobody answers: bounded, and asked again the next time.
        let start = server.env.now();
        assert_eq!(server.glimpse(FILE, b.client).await, []);
        assert_eq!((server.env.now() - start).as_secs(), 10);
        assert!(matches!(a.event().await, Event::Glimpse { .. }));
        assert_eq!(server.glimpse(FILE, b.client).await, []);
        assert!(matches!(a.event().await, Event::Glimpse { .. }));
        server.detach(&a.session);
        assert_eq!(server.glimpse(FILE, b.client).await, [], "who is gone is not waited for without end");
    });
}

/// A writer whose link broke was passed over, and its reader saw the size from before what was written.
#[test]
fn a_glimpse_waits_for_who_reconnects() {
    run(async |server, _| {
        let (a, b) = (Peer::new(&server, 1), Peer::new(&server, 2));
        let held = cookie(a.get(&server, Mode::Pw));
        let returns = async {
            assert!(matches!(a.event().await, Event::Glimpse { .. }), "asked, and then the link breaks");
            server.detach(&a.session);
            let again = Peer::new(&server, 1);
            assert!(matches!(again.event().await, Event::Glimpse { cookie, .. } if cookie == held));
            let attr = Some(Attr { size: 7, ..Attr::default() });
            server.glimpse_reply(again.client, GlimpseReply { cookie: held, attr });
        };
        let (answers, ()) = tokio::join!(server.glimpse(FILE, b.client), returns);
        assert_eq!(answers.iter().map(|attr| attr.size).collect::<Vec<_>>(), [7]);
    });
}
