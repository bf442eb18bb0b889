//! Reactors that read, write, sleep, drop and talk to each other at random: nothing is lost, nobody waits for ever.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nacre_reactor::{Bytes, DmaBuf, Placement, Reactors, Spin, ring};

const TASKS: u64 = 16;
const STEPS: u64 = 150;
const BLOCK_BYTES: usize = 8192;

#[test]
fn random_traffic_on_two_reactors() {
    for spin in [Spin::For(Duration::ZERO), Spin::For(Duration::from_micros(100)), Spin::Always] {
        let reactors = Reactors::start(&Placement::Anywhere(2), spin).unwrap();
        let [first, second] = reactors.handles() else { panic!("two reactors") };
        let start = Instant::now();
        let answers: Vec<_> = [(first, second), (second, first)]
            .into_iter()
            .map(|(here, there)| {
                let there = there.clone();
                here.spawn(move || async move {
                    let file: Rc<OwnedFd> = Rc::new(tempfile::tempfile().unwrap().into());
                    let tasks: Vec<_> = (0..TASKS)
                        .map(|task| tokio::task::spawn_local(traffic(task, file.clone(), there.clone())))
                        .collect();
                    for task in tasks {
                        tokio::time::timeout(Duration::from_secs(60), task).await.expect("in time").unwrap();
                    }
                })
            })
            .collect();
        for answer in answers {
            answer.wait().unwrap();
        }
        for handle in reactors.handles() {
            let times = handle.stats().times();
            assert!(times.busy + times.idle <= start.elapsed() + Duration::from_secs(1), "{times:?}");
        }
        reactors.join();
    }
}

/// Writes and reads a block of its own; two more get writes and reads whose answers nobody waits for.
async fn traffic(task: u64, file: Rc<OwnedFd>, other: nacre_reactor::ReactorHandle) {
    let offset = task * 3 * BLOCK_BYTES as u64;
    let mut state = task + 1;
    let mut random = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut expected = None;
    for step in 0..STEPS {
        let byte = (step % 250 + 1) as u8;
        match random(8) {
            0..3 => {
                let (left, right) = (vec![byte; 100], vec![byte; BLOCK_BYTES - 100]);
                ring::writev(&file, offset, vec![Bytes::from(left), Bytes::from(right)]).await.unwrap();
                expected = Some(byte);
            }
            3 | 4 => {
                let buf = ring::read(&file, offset, DmaBuf::uncleared(BLOCK_BYTES)).await.unwrap();
                if let Some(byte) = expected {
                    assert!(buf.len() == BLOCK_BYTES && buf.iter().all(|found| *found == byte));
                }
            }
            5 => {
                drop(ring::writev(&file, offset + BLOCK_BYTES as u64, vec![Bytes::from(vec![byte; BLOCK_BYTES])]));
                let mut read = ring::read(&file, offset, DmaBuf::uncleared(BLOCK_BYTES));
                tokio::select! { biased; _ = &mut read => {} () = tokio::task::yield_now() => {} }
            }
            6 => match random(3) {
                0 => ring::sleep(Duration::from_micros(random(300))).await,
                1 => tokio::time::sleep(Duration::from_micros(random(1500))).await,
                _ => ring::fdatasync(&file).await.unwrap(),
            },
            _ => assert_eq!(other.spawn(move || async move { step }).await, Ok(step)),
        }
    }
}
