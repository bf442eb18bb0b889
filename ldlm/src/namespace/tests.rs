//! The namespace by example, then by random operation sequences whose invariants are checked after every step.

use std::collections::BTreeMap;
use std::time::Duration;

use nacre_wire::ldlm::{Enqueue, EnqueueFlags, Granted, Ibits, Mode, Policy};
use nacre_wire::{Fid, Status};
use proptest::prelude::*;

use super::*;

const OBJECT: Fid = Fid::new(9, 1);
const FILE: Fid = Fid::new(9, 2);
const A: ClientId = ClientId(1);
const B: ClientId = ClientId(2);
const C: ClientId = ClientId(3);

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn extent(start: u64, end: u64) -> Policy {
    Policy::Extent { start, end }
}

fn flock(owner: u64, start: u64, end: u64) -> Policy {
    Policy::Flock { owner, start, end, pid: owner as u32, bsd: false }
}

#[test]
fn a_refusal_that_a_broken_link_has_lost_is_told_again() {
    let mut bench = Bench::new();
    bench.cookie(A, OBJECT, Mode::Pw, extent(0, 9));
    let waiting = bench.cookie(B, OBJECT, Mode::Pw, extent(0, 9));
    bench.locks.disconnect(bench.now, B);
    bench.locks.refuse_waiters(OBJECT, Status::ENOENT, &mut bench.out);
    bench.out.clear();
    bench.locks.reconnect(bench.now, B, &mut bench.out);
    assert_eq!(bench.out, [Action::Refuse { client: B, cookie: waiting, status: Status::ENOENT }]);
}

struct Bench {
    locks: Namespace,
    now: Duration,
    out: Vec<Action>,
}

impl Bench {
    fn new() -> Bench {
        Bench { locks: Namespace::new(Limits::default(), 1), now: at(0), out: Vec::new() }
    }

    fn ask(&mut self, client: ClientId, resource: Fid, mode: Mode, policy: Policy, flags: EnqueueFlags) -> Enqueued {
        let request = Enqueue { resource, mode, policy, flags, replaces: 0 };
        self.locks.enqueue(self.now, client, 0, &request, &mut self.out)
    }

    fn cookie(&mut self, client: ClientId, resource: Fid, mode: Mode, policy: Policy) -> u64 {
        match self.ask(client, resource, mode, policy, EnqueueFlags::empty()) {
            Enqueued::Granted(granted) => granted.cookie,
            Enqueued::Waiting { cookie } => cookie,
            other => panic!("{other:?}"),
        }
    }

    fn local(&mut self, resource: Fid, mode: Mode, policy: Policy, behalf: Option<ClientId>) -> Enqueued {
        let request = LocalRequest { resource, mode, policy, on_behalf_of: behalf, flags: EnqueueFlags::empty() };
        self.locks.enqueue_local(self.now, request, &mut self.out)
    }

    fn cancel(&mut self, client: ClientId, cookie: u64) {
        self.locks.cancel(self.now, client, cookie, &mut self.out);
    }

    fn actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.out)
    }
}

fn revoke(client: ClientId, cookie: u64, resource: Fid, wanted: Mode) -> Action {
    Action::Revoke { client, cookie, resource, wanted }
}

fn grant(client: ClientId, cookie: u64, mode: Mode, policy: Policy, resource: Fid) -> Action {
    Action::Grant { client, granted: Granted { cookie, mode, policy }, resource }
}

#[test]
fn extents_grow_conflict_and_shrink_to_what_is_free() {
    let mut bench = Bench::new();
    let first = bench.ask(A, OBJECT, Mode::Pw, extent(0, 4095), EnqueueFlags::empty());
    let Enqueued::Granted(first) = first else { panic!("{first:?}") };
    assert_eq!(first.policy, extent(0, u64::MAX));
    let second = bench.cookie(B, OBJECT, Mode::Pw, extent(8192, 12287));
    assert_eq!(bench.actions(), [revoke(A, first.cookie, OBJECT, Mode::Pw)]);
    bench.cancel(A, first.cookie);
    assert_eq!(bench.actions(), [grant(B, second, Mode::Pw, extent(0, u64::MAX), OBJECT)]);
    assert_eq!(bench.locks.held(B, second).unwrap().1.policy, extent(0, u64::MAX));
    assert_eq!(bench.locks.held(A, second), None, "a cookie is good for its owner only");
    bench.cancel(A, second);
    assert!(bench.locks.held(B, second).is_some());
}

/// A client that asks for what its own lock covers is giving that lock back just now: answering with that very lock would
/// make it ask again and again until the Cancel arrives.
#[test]
fn a_clients_own_lock_is_in_its_way_like_any_other() {
    let mut bench = Bench::new();
    let first = bench.cookie(A, OBJECT, Mode::Pw, extent(0, 9));
    let second = bench.ask(A, OBJECT, Mode::Pw, extent(0, 9), EnqueueFlags::empty());
    let Enqueued::Waiting { cookie: second } = second else { panic!("{second:?}") };
    assert_eq!(bench.actions(), [revoke(A, first, OBJECT, Mode::Pw)]);
    bench.cancel(A, first);
    assert_eq!(bench.actions(), [grant(A, second, Mode::Pw, extent(0, u64::MAX), OBJECT)]);
    let third = bench.cookie(B, FILE, Mode::Pr, extent(0, 9));
    assert_ne!(bench.cookie(B, FILE, Mode::Pr, extent(0, 9)), third, "readers stand beside each other");
}

#[test]
fn waiters_are_served_in_order_and_readers_do_not_starve_a_writer() {
    let mut bench = Bench::new();
    let reader = bench.cookie(A, OBJECT, Mode::Pr, extent(0, 9));
    let writer = bench.cookie(B, OBJECT, Mode::Pw, extent(0, 9));
    let late = bench.ask(C, OBJECT, Mode::Pr, extent(0, 9), EnqueueFlags::empty());
    let Enqueued::Waiting { cookie: late } = late else { panic!("a reader must not pass a writer: {late:?}") };
    assert_eq!(bench.actions(), [revoke(A, reader, OBJECT, Mode::Pw)]);
    bench.cancel(A, reader);
    let got = bench.actions();
    assert_eq!(got[0], grant(B, writer, Mode::Pw, extent(0, 9), OBJECT), "not grown over the waiter");
    assert_eq!(got[1], revoke(B, writer, OBJECT, Mode::Pr), "who waits next is in the way at once");
    bench.cancel(B, writer);
    assert_eq!(bench.actions(), [grant(C, late, Mode::Pr, extent(0, u64::MAX), OBJECT)]);
}

#[test]
fn nowait_test_and_glimpse_disturb_nobody() {
    let mut bench = Bench::new();
    let held = bench.cookie(A, OBJECT, Mode::Pw, extent(0, 9));
    let ask = |bench: &mut Bench, flags| bench.ask(B, OBJECT, Mode::Pr, extent(0, 9), flags);
    assert_eq!(ask(&mut bench, EnqueueFlags::NOWAIT), Enqueued::Refused(Status::EAGAIN));
    assert!(matches!(ask(&mut bench, EnqueueFlags::TEST), Enqueued::Conflict(lock) if lock.cookie == held));
    assert!(matches!(ask(&mut bench, EnqueueFlags::GLIMPSE), Enqueued::Conflict(lock) if lock.cookie == 0));
    assert_eq!(bench.locks.glimpse_targets(OBJECT, B), [(A, held)]);
    assert_eq!(bench.locks.glimpse_targets(OBJECT, A), []);
    assert_eq!(bench.actions(), []);
    bench.cancel(A, held);
    assert!(matches!(ask(&mut bench, EnqueueFlags::GLIMPSE), Enqueued::Granted(lock) if lock.cookie != 0));
}

#[test]
fn a_silent_holder_is_evicted_and_its_waiters_follow() {
    let mut bench = Bench::new();
    let held = bench.cookie(A, OBJECT, Mode::Pw, extent(0, 9));
    let wait = bench.cookie(B, OBJECT, Mode::Pw, extent(0, 9));
    assert_eq!(bench.locks.next_deadline(), Some(at(30)));
    bench.now = at(20);
    bench.locks.prolong(bench.now, A, held);
    assert_eq!(bench.locks.next_deadline(), Some(at(50)), "work under the lock buys time");
    bench.locks.disconnect(at(21), A);
    assert_eq!(bench.locks.next_deadline(), Some(at(26)), "a broken link takes it away");
    bench.actions();
    bench.locks.tick(at(25), &mut bench.out);
    assert_eq!(bench.actions(), []);
    bench.locks.tick(at(26), &mut bench.out);
    let granted = grant(B, wait, Mode::Pw, extent(0, u64::MAX), OBJECT);
    assert_eq!(bench.actions(), [Action::Evict { client: A }, granted]);
    assert_eq!(bench.locks.next_deadline(), None);
}

#[test]
fn an_idle_client_keeps_its_locks_for_the_grace_time() {
    let mut bench = Bench::new();
    let held = bench.cookie(A, OBJECT, Mode::Pr, extent(0, 9));
    bench.locks.disconnect(at(10), A);
    bench.locks.tick(at(39), &mut bench.out);
    assert!(bench.locks.held(A, held).is_some());
    bench.locks.reconnect(at(39), A, &mut bench.out);
    bench.locks.tick(at(100), &mut bench.out);
    assert!(bench.locks.held(A, held).is_some());
    bench.locks.disconnect(at(100), A);
    bench.locks.tick(at(130), &mut bench.out);
    assert_eq!(bench.actions(), [Action::Evict { client: A }]);
    assert!(bench.locks.is_idle(OBJECT));
}

#[test]
fn a_reconnect_tells_again_what_the_broken_link_may_have_lost() {
    let mut bench = Bench::new();
    let held = bench.cookie(A, OBJECT, Mode::Pw, extent(0, 9));
    let wait = bench.cookie(B, OBJECT, Mode::Pw, extent(0, 9));
    bench.cancel(A, held);
    let third = bench.cookie(C, OBJECT, Mode::Pw, extent(0, 9));
    bench.actions();
    bench.locks.disconnect(at(1), B);
    bench.locks.reconnect(at(2), B, &mut bench.out);
    let told = [grant(B, wait, Mode::Pw, extent(0, u64::MAX), OBJECT), revoke(B, wait, OBJECT, Mode::Pw)];
    assert_eq!(bench.actions(), told);
    assert_eq!(bench.locks.next_deadline(), Some(at(32)));
    bench.cancel(B, wait);
    assert!(matches!(bench.actions()[..], [Action::Grant { client: C, .. }]));
    assert!(bench.locks.held(C, third).is_some());
}

#[test]
fn an_enqueue_sent_again_finds_its_lock() {
    let mut bench = Bench::new();
    let request =
        |mode, replaces| Enqueue { resource: OBJECT, mode, policy: extent(0, 9), flags: EnqueueFlags::EXACT, replaces };
    let first = bench.locks.enqueue(at(0), A, 71, &request(Mode::Pw, 0), &mut bench.out);
    assert_eq!(bench.locks.enqueue(at(0), A, 71, &request(Mode::Pw, 0), &mut bench.out), first);
    let wait = bench.locks.enqueue(at(0), B, 71, &request(Mode::Pw, 0), &mut bench.out);
    assert!(matches!(wait, Enqueued::Waiting { .. }));
    assert_eq!(bench.locks.enqueue(at(0), B, 71, &request(Mode::Pw, 0), &mut bench.out), wait);
    assert_eq!(bench.locks.stats().waiting, 1);
}

#[test]
fn a_conversion_gives_the_old_lock_back_as_the_new_one_comes() {
    let mut bench = Bench::new();
    let a = bench.cookie(A, OBJECT, Mode::Pr, extent(0, 9));
    let b = bench.cookie(B, OBJECT, Mode::Pr, extent(0, 9));
    let mut convert = |client, replaces| {
        let request =
            Enqueue { resource: OBJECT, mode: Mode::Pw, policy: extent(0, 9), flags: EnqueueFlags::EXACT, replaces };
        bench.locks.enqueue(at(0), client, 0, &request, &mut bench.out)
    };
    let Enqueued::Waiting { cookie: a_new } = convert(A, a) else { panic!("B is in the way") };
    let Enqueued::Waiting { cookie: b_new } = convert(B, b) else { panic!("A is in the way") };
    assert_eq!(bench.actions(), [revoke(B, b, OBJECT, Mode::Pw), revoke(A, a, OBJECT, Mode::Pw)]);
    bench.cancel(B, b);
    let got = bench.actions();
    assert_eq!(got[0], grant(A, a_new, Mode::Pw, extent(0, 9), OBJECT));
    assert_eq!(bench.locks.held(A, a), None);
    bench.cancel(A, a_new);
    assert!(matches!(bench.actions()[..], [Action::Grant { client: B, granted, .. }] if granted.cookie == b_new));
}

#[test]
fn bits_conflict_only_where_they_meet() {
    let mut bench = Bench::new();
    let bits = |bits| Policy::Ibits(bits);
    bench.cookie(A, FILE, Mode::Ex, bits(Ibits::LAYOUT));
    let both = bench.locks.try_ibits(B, FILE, Mode::Pr, Ibits::LOOKUP | Ibits::LAYOUT).unwrap();
    assert_eq!(both.policy, bits(Ibits::LOOKUP));
    assert_eq!(bench.locks.try_ibits(B, FILE, Mode::Pr, Ibits::LAYOUT), None);
    assert_eq!(bench.locks.try_ibits(B, FILE, Mode::Pr, Ibits::LOOKUP), Some(both), "the same lock again");
    assert!(matches!(
        bench.ask(C, FILE, Mode::Ex, bits(Ibits::UPDATE), EnqueueFlags::NOWAIT),
        Enqueued::Granted(lock) if lock.policy == bits(Ibits::UPDATE)
    ));
    assert_eq!(bench.actions(), []);
}

#[test]
fn the_servers_own_operations_pass_the_locks_of_their_client_only() {
    let mut bench = Bench::new();
    let update = Policy::Ibits(Ibits::UPDATE);
    let a = bench.cookie(A, FILE, Mode::Pr, update);
    let Enqueued::Granted(op) = bench.local(FILE, Mode::Ex, update, Some(A)) else { panic!("own lock") };
    assert!(bench.locks.try_ibits(A, FILE, Mode::Pr, Ibits::UPDATE).is_some());
    assert!(bench.locks.try_ibits(B, FILE, Mode::Pr, Ibits::UPDATE).is_none());
    // A second operation for the same client waits for the first.
    let Enqueued::Waiting { cookie: second } = bench.local(FILE, Mode::Ex, update, Some(A)) else {
        panic!("two at once")
    };
    assert_eq!(bench.actions(), []);
    bench.locks.release_local(at(0), FILE, op.cookie, &mut bench.out);
    assert_eq!(bench.actions(), [grant(ClientId::SERVER, second, Mode::Ex, update, FILE)]);
    bench.locks.release_local(at(0), FILE, second, &mut bench.out);
    // An operation for B asks A to give way and waits.
    let Enqueued::Waiting { cookie: third } = bench.local(FILE, Mode::Ex, update, Some(B)) else {
        panic!("A holds it")
    };
    assert_eq!(bench.actions(), [revoke(A, a, FILE, Mode::Ex)]);
    // Before A cancels it may need an operation of its own: it must not queue behind the one that waits for A.
    let Enqueued::Granted(own) = bench.local(FILE, Mode::Ex, update, Some(A)) else { panic!("A waits for itself") };
    bench.cancel(A, a);
    assert_eq!(bench.actions(), []);
    bench.locks.release_local(at(0), FILE, own.cookie, &mut bench.out);
    assert_eq!(bench.actions(), [grant(ClientId::SERVER, third, Mode::Ex, update, FILE)]);
    bench.locks.release_local(at(0), FILE, third, &mut bench.out);
    assert!(bench.locks.is_idle(FILE));
}

#[test]
fn replay_takes_locks_back_and_cookies_are_not_given_twice() {
    let mut bench = Bench::new();
    let held = bench.ask(A, OBJECT, Mode::Pw, extent(0, 9), EnqueueFlags::EXACT);
    let Enqueued::Granted(held) = held else { panic!("{held:?}") };
    let mut next = Bench { locks: Namespace::new(Limits::default(), 2), ..Bench::new() };
    assert_eq!(next.locks.replay(A, OBJECT, held), Ok(()));
    assert_eq!(next.locks.replay(A, OBJECT, held), Ok(()), "sent again");
    let other = Granted { cookie: held.cookie + 1, ..held };
    assert_eq!(next.locks.replay(B, OBJECT, other), Err(Status::ESTALE));
    assert_eq!(next.locks.replay(B, OBJECT, held), Err(Status::EINVAL), "somebody else's cookie");
    assert!(next.cookie(B, OBJECT, Mode::Pw, extent(100, 109)) >= 2 << 36);
    assert_eq!(next.locks.replay(A, FILE, Granted { cookie: 0, mode: Mode::Pw, policy: flock(1, 0, 9) }), Ok(()));
    assert!(matches!(
        next.ask(B, FILE, Mode::Pr, flock(1, 5, 5), EnqueueFlags::TEST),
        Enqueued::Conflict(lock) if lock.policy == flock(1, 0, 9) && lock.mode == Mode::Pw
    ));
}

#[test]
fn nonsense_is_refused() {
    let mut bench = Bench::new();
    for policy in [extent(9, 0), Policy::Ibits(Ibits::empty()), flock(1, 9, 0)] {
        let answer = bench.ask(A, OBJECT, Mode::Pr, policy, EnqueueFlags::empty());
        assert_eq!(answer, Enqueued::Refused(Status::EINVAL));
    }
    assert!(bench.locks.is_idle(OBJECT));
}

#[test]
fn flocks_wait_deadlock_is_seen_across_clients_and_files() {
    let mut bench = Bench::new();
    bench.cookie(A, FILE, Mode::Pw, flock(1, 0, 9));
    bench.cookie(B, OBJECT, Mode::Pw, flock(1, 0, 9));
    let wait = bench.cookie(A, OBJECT, Mode::Pr, flock(1, 5, 5));
    let refused = bench.ask(B, FILE, Mode::Pr, flock(1, 5, 5), EnqueueFlags::empty());
    assert_eq!(refused, Enqueued::Refused(Status::EDEADLK));
    // Another owner of B is no part of the cycle; C makes it longer.
    let other = bench.cookie(B, FILE, Mode::Pr, flock(2, 5, 5));
    bench.cookie(C, FILE, Mode::Pw, flock(1, 100, 100));
    let c_wait = bench.ask(C, OBJECT, Mode::Pw, flock(1, 0, 0), EnqueueFlags::empty());
    assert!(matches!(c_wait, Enqueued::Waiting { .. }));
    let refused = bench.ask(B, FILE, Mode::Pr, flock(1, 100, 100), EnqueueFlags::empty());
    assert_eq!(refused, Enqueued::Refused(Status::EDEADLK));
    assert_eq!(bench.actions(), []);
    bench.ask(B, OBJECT, Mode::Nl, flock(1, 0, u64::MAX), EnqueueFlags::empty());
    let got = bench.actions();
    assert_eq!(got[0], grant(A, wait, Mode::Pr, flock(1, 5, 5), OBJECT));
    bench.locks.evict(at(0), A, &mut bench.out);
    assert!(bench.actions().contains(&grant(B, other, Mode::Pr, flock(2, 5, 5), FILE)));
}

#[test]
fn giving_up_a_flock_as_it_is_granted_leaves_nothing_held() {
    let mut bench = Bench::new();
    bench.cookie(A, FILE, Mode::Pw, flock(1, 0, 9));
    let wait = bench.cookie(B, FILE, Mode::Pw, flock(1, 0, 9));
    bench.ask(A, FILE, Mode::Nl, flock(1, 0, 9), EnqueueFlags::empty());
    assert_eq!(bench.actions(), [grant(B, wait, Mode::Pw, flock(1, 0, 9), FILE)]);
    bench.cancel(B, wait);
    assert!(bench.locks.is_idle(FILE));
    // And as it waits.
    bench.cookie(A, FILE, Mode::Pw, flock(1, 0, 9));
    let wait = bench.cookie(B, FILE, Mode::Pw, flock(1, 0, 9));
    bench.cancel(B, wait);
    bench.ask(A, FILE, Mode::Nl, flock(1, 0, 9), EnqueueFlags::empty());
    assert_eq!(bench.actions(), []);
    assert!(bench.locks.is_idle(FILE));
}

#[test]
fn bsd_locks_convert_by_letting_go_first() {
    let mut bench = Bench::new();
    let bsd = |owner| Policy::Flock { owner, start: 0, end: u64::MAX, pid: 1, bsd: true };
    bench.cookie(A, FILE, Mode::Pr, bsd(1));
    bench.cookie(B, FILE, Mode::Pr, bsd(1));
    // POSIX locks are in another space.
    assert!(matches!(bench.ask(C, FILE, Mode::Pw, flock(1, 0, 9), EnqueueFlags::NOWAIT), Enqueued::Granted(_)));
    let refused = bench.ask(A, FILE, Mode::Pw, bsd(1), EnqueueFlags::NOWAIT);
    assert_eq!(refused, Enqueued::Refused(Status::EAGAIN));
    // A has lost its lock: B can now have the file for itself.
    assert!(matches!(bench.ask(B, FILE, Mode::Pw, bsd(1), EnqueueFlags::NOWAIT), Enqueued::Granted(_)));
}

/// One step of the random walk over locks with modes.
#[derive(Clone, Debug)]
enum Step {
    Enqueue { client: u64, resource: u32, mode: Mode, start: u64, length: u64, exact: bool, convert: bool },
    Local { resource: u32, mode: Mode, behalf: u64 },
    Release { index: usize },
    Cancel { index: usize },
    Evict { client: u64 },
    Reconnect { client: u64 },
}

fn any_mode() -> impl Strategy<Value = Mode> {
    prop_oneof![Just(Mode::Cr), Just(Mode::Cw), Just(Mode::Pr), Just(Mode::Pw), Just(Mode::Ex), Just(Mode::Nl)]
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..5u64, 0..2u32, any_mode(), 0..40u64, 1..20u64, any::<bool>(), any::<bool>()).prop_map(
            |(client, resource, mode, start, length, exact, convert)| Step::Enqueue {
                client, resource, mode, start, length, exact, convert
            }
        ),
        2 => (0..2u32, any_mode(), 0..5u64).prop_map(|(resource, mode, behalf)| Step::Local { resource, mode, behalf }),
        3 => any::<usize>().prop_map(|index| Step::Release { index }),
        4 => any::<usize>().prop_map(|index| Step::Cancel { index }),
        1 => (1..5u64).prop_map(|client| Step::Evict { client }),
        1 => (1..5u64).prop_map(|client| Step::Reconnect { client }),
    ]
}

/// No two locks that conflict are held; nobody waits without a reason; nobody is in the way without having been asked.
fn check(locks: &Namespace) {
    for there in locks.resources.values() {
        for (i, a) in there.granted.iter().enumerate() {
            for b in &there.granted[i + 1..] {
                assert!(!conflicts(a, b) || same_party(a, b), "{} and {} are both held", a.cookie, b.cookie);
            }
        }
        for (position, waiter) in there.waiting.iter().enumerate() {
            assert!(there.blocker(waiter, position).is_some(), "{} waits for nothing", waiter.cookie);
            for held in there.granted.iter().filter(|held| held.client != ClientId::SERVER) {
                assert!(!conflicts(held, waiter) || held.revoked.is_some(), "{} was not asked", held.cookie);
            }
        }
        assert!(!there.is_idle(), "an idle resource is kept");
    }
    for cookie in locks.revoking.keys() {
        assert!(locks.index.contains_key(cookie), "a deadline without a lock");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn no_conflict_is_ever_granted_and_every_waiter_is_served(steps in prop::collection::vec(any_step(), 1..120)) {
        let mut locks = Namespace::new(Limits::default(), 1);
        let mut out = Vec::new();
        // What each side knows to hold or wait for.
        let mut clients: BTreeMap<u64, (ClientId, Fid)> = BTreeMap::new();
        let mut locals: BTreeMap<u64, Fid> = BTreeMap::new();
        let mut waiting: BTreeSet<u64> = BTreeSet::new();
        let learn = |answer: Enqueued, waiting: &mut BTreeSet<u64>| match answer {
            Enqueued::Granted(granted) => Some(granted.cookie),
            Enqueued::Waiting { cookie } => { waiting.insert(cookie); Some(cookie) }
            _ => None,
        };
        for (n, step) in steps.into_iter().enumerate() {
            let now = at(n as u64);
            match step {
                Step::Enqueue { client, resource, mode, start, length, exact, convert } => {
                    let (client, resource) = (ClientId(client), Fid::new(5, resource));
                    let own = clients.iter().find(|(_, (who, what))| *who == client && *what == resource);
                    let replaces = if convert { own.map_or(0, |(cookie, _)| *cookie) } else { 0 };
                    let flags = if exact { EnqueueFlags::EXACT } else { EnqueueFlags::empty() };
                    let policy = extent(start, start + length - 1);
                    let request = Enqueue { resource, mode, policy, flags, replaces };
                    let answer = locks.enqueue(now, client, 0, &request, &mut out);
                    if let Some(cookie) = learn(answer, &mut waiting) {
                        clients.insert(cookie, (client, resource));
                    }
                }
                Step::Local { resource, mode, behalf } => {
                    let resource = Fid::new(5, resource);
                    let on_behalf_of = (behalf != 0).then_some(ClientId(behalf));
                    let (policy, flags) = (extent(0, u64::MAX), EnqueueFlags::empty());
                    let request = LocalRequest { resource, mode, policy, on_behalf_of, flags };
                    let answer = locks.enqueue_local(now, request, &mut out);
                    if let Some(cookie) = learn(answer, &mut waiting) {
                        locals.insert(cookie, resource);
                    }
                }
                Step::Release { index } if !locals.is_empty() => {
                    let (&cookie, &resource) = locals.iter().nth(index % locals.len()).unwrap();
                    locals.remove(&cookie);
                    waiting.remove(&cookie);
                    locks.release_local(now, resource, cookie, &mut out);
                }
                Step::Cancel { index } if !clients.is_empty() => {
                    let (&cookie, &(client, _)) = clients.iter().nth(index % clients.len()).unwrap();
                    clients.remove(&cookie);
                    waiting.remove(&cookie);
                    locks.cancel(now, client, cookie, &mut out);
                }
                Step::Evict { client } => locks.evict(now, ClientId(client), &mut out),
                Step::Reconnect { client } => locks.reconnect(now, ClientId(client), &mut out),
                Step::Release { .. } | Step::Cancel { .. } => {}
            }
            for action in out.drain(..) {
                match action {
                    Action::Grant { granted, .. } => { waiting.remove(&granted.cookie); }
                    Action::Evict { client } => {
                        let lost = clients.iter().filter(|(_, (who, _))| *who == client);
                        let lost: Vec<u64> = lost.map(|(cookie, _)| *cookie).collect();
                        for cookie in lost {
                            clients.remove(&cookie);
                            waiting.remove(&cookie);
                        }
                    }
                    _ => {}
                }
            }
            check(&locks);
        }
        // Everybody who is asked gives way, every operation ends: all waiters must be served.
        for _ in 0..1000 {
            if waiting.is_empty() { break; }
            let held: Vec<(u64, Fid)> =
                locals.iter().filter(|(c, _)| !waiting.contains(c)).map(|(c, f)| (*c, *f)).collect();
            for (cookie, resource) in held {
                locals.remove(&cookie);
                locks.release_local(at(1000), resource, cookie, &mut out);
            }
            let revoked: Vec<(u64, ClientId)> = locks.revoking.iter().map(|(c, (who, _))| (*c, *who)).collect();
            for (cookie, client) in revoked {
                locks.cancel(at(1000), client, cookie, &mut out);
            }
            for action in out.drain(..) {
                if let Action::Grant { granted, .. } = action { waiting.remove(&granted.cookie); }
            }
            check(&locks);
        }
        prop_assert!(waiting.is_empty(), "never served: {waiting:?}");
        for client in 1..5 {
            locks.evict(at(2000), ClientId(client), &mut out);
        }
        for (cookie, resource) in locals {
            locks.release_local(at(2000), resource, cookie, &mut out);
        }
        let stats = locks.stats();
        prop_assert_eq!((stats.granted, stats.waiting, stats.resources), (0, 0, 0));
        prop_assert!(locks.index.is_empty() && locks.revoking.is_empty() && locks.clients.is_empty());
    }

    /// Flocks against bytes: for every byte and owner, nothing, read or write.
    #[test]
    fn flocks_are_a_map_of_bytes(
        steps in prop::collection::vec((0..3u64, 0..24u64, 1..12u64, 0..3u8, any::<bool>()), 1..80)
    ) {
        let mut bench = Bench::new();
        let mut bytes = [[0u8; 40]; 3];
        for (owner, start, length, kind, to_end) in steps {
            let end = if to_end { u64::MAX } else { start + length - 1 };
            let range = start as usize..=(end.min(39) as usize);
            let mode = [Mode::Nl, Mode::Pr, Mode::Pw][kind as usize];
            let blocked = (0..3).filter(|other| *other != owner as usize).any(|other| {
                bytes[other][range.clone()].iter().any(|&held| held != 0 && kind != 0 && (held == 2 || kind == 2))
            });
            let answer = bench.ask(ClientId(owner + 1), FILE, mode, flock(7, start, end), EnqueueFlags::NOWAIT);
            if blocked {
                prop_assert_eq!(answer, Enqueued::Refused(Status::EAGAIN));
            } else {
                prop_assert!(matches!(answer, Enqueued::Granted(_)));
                bytes[owner as usize][range].fill(kind);
            }
            // What the table holds is the map, in as few ranges as can be.
            let mut runs = 0;
            for row in &bytes {
                runs += (0..40).filter(|&i| row[i] != 0 && (i == 0 || row[i - 1] != row[i])).count();
            }
            let table = bench.locks.resources.get(&FILE).map(|there| there.flocks.clone()).unwrap_or_default();
            prop_assert_eq!(table.iter().count(), runs);
            for held in table.iter() {
                for byte in held.start..=held.end.min(39) {
                    prop_assert_eq!(bytes[held.owner.client.0 as usize - 1][byte as usize], 1 + u8::from(held.write));
                }
            }
        }
    }

    /// Waiting flocks of several owners: whoever waits has a reason, no cycle ever stands.
    #[test]
    fn flock_waiters_are_served_and_never_deadlocked(
        steps in prop::collection::vec((0..4u64, 0..2u32, 0..12u64, 1..6u64, 0..3u8), 1..80)
    ) {
        let mut bench = Bench::new();
        let mut waiting: BTreeMap<u64, u64> = BTreeMap::new();
        for (owner, file, start, length, kind) in steps {
            // One thread each: who waits does nothing else.
            if waiting.values().any(|waiter| *waiter == owner) { continue; }
            let mode = [Mode::Nl, Mode::Pr, Mode::Pw][kind as usize];
            let policy = flock(owner, start, start + length - 1);
            let answer = bench.ask(ClientId(owner % 2 + 1), Fid::new(5, file), mode, policy, EnqueueFlags::empty());
            if let Enqueued::Waiting { cookie } = answer { waiting.insert(cookie, owner); }
            for action in bench.actions() {
                if let Action::Grant { granted, .. } = action { waiting.remove(&granted.cookie); }
            }
            prop_assert!(waiting.len() < 4, "all owners wait: a deadlock");
        }
        // Owners that do not wait let everything go, again and again: all waiters are served.
        for _ in 0..8 {
            for owner in 0..4u64 {
                if waiting.values().any(|waiter| *waiter == owner) { continue; }
                for file in 0..2 {
                    let all = flock(owner, 0, u64::MAX);
                    bench.ask(ClientId(owner % 2 + 1), Fid::new(5, file), Mode::Nl, all, EnqueueFlags::empty());
                }
            }
            for action in bench.actions() {
                if let Action::Grant { granted, .. } = action { waiting.remove(&granted.cookie); }
            }
        }
        prop_assert!(waiting.is_empty());
        prop_assert_eq!(bench.locks.stats().resources, 0);
        prop_assert!(bench.locks.flock_waits.is_empty());
    }
}

/// Prints what an operation's lock costs; run with `--release -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
#[allow(clippy::disallowed_methods, reason = "a measurement needs the clock")]
fn measure() {
    const COUNT: u32 = 1_000_000;
    let mut bench = Bench::new();
    let timed = |name: &str, bench: &mut Bench, work: &mut dyn FnMut(&mut Bench, u32)| {
        let begin = std::time::Instant::now();
        (0..COUNT).for_each(|n| work(bench, n));
        println!("{name}: {} ns", begin.elapsed().as_nanos() / u128::from(COUNT));
    };
    let update = Policy::Ibits(Ibits::UPDATE);
    timed("lock and release for an operation", &mut bench, &mut |bench, n| {
        let resource = Fid::new(5, n % 10_000);
        let Enqueued::Granted(lock) = bench.local(resource, Mode::Ex, update, Some(A)) else { panic!("free") };
        bench.locks.release_local(at(0), resource, lock.cookie, &mut bench.out);
    });
    timed("grant to a client", &mut bench, &mut |bench, n| {
        assert!(bench.locks.try_ibits(A, Fid::new(5, n), Mode::Pr, Ibits::LOOKUP).is_some());
    });
    timed("the same again", &mut bench, &mut |bench, n| {
        assert!(bench.locks.try_ibits(A, Fid::new(5, n), Mode::Pr, Ibits::LOOKUP).is_some());
    });
    timed("eviction, per lock", &mut bench, &mut |bench, n| {
        if n == 0 {
            bench.locks.evict(at(0), A, &mut bench.out);
        }
    });
    assert_eq!(bench.locks.stats().resources, 0);
}
