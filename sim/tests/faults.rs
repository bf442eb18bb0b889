//! Random operations while links break and servers and clients die: nothing that was acknowledged is lost.

mod support;

use std::time::Duration;

use nacre_client::FileSystem;
use nacre_osd::model::Crash;
use nacre_sim::chaos::{Chaos, Faults};
use nacre_sim::cluster::{Cluster, Stores, Target};
use nacre_sim::workload::Workload;
use support::{seeds, simulate};
use tokio::time::{sleep, timeout};

const DAY: Duration = Duration::from_secs(24 * 3600);

async fn with_faults(seed: u64, stores: Stores, faults: Faults, late_percent: u64, operations: u64) -> (u64, u64) {
    let cluster = Cluster::start(seed, stores).await;
    let mounts = vec![cluster.mount().await, cluster.mount().await];
    let nodes = mounts.iter().map(|mount| mount.nid).collect();
    let top = mounts[0].client.root();
    cluster.set_delay(late_percent, 20);
    let mut workload = Workload::new(&cluster, mounts, top, seed);
    let chaos = Chaos::begin(cluster.clone(), seed, faults, nodes);
    workload.run(operations).await;
    let count = chaos.end().await;
    assert!(count > 0, "there were faults");
    workload.compare_all().await;
    workload.close_all().await;
    workload.compare_all().await;
    cluster.trace_hash()
}

#[test]
fn late_messages() {
    for seed in seeds(1001..1004) {
        let faults = Faults { cuts: true, ..Faults::default() };
        simulate(DAY, with_faults(seed, Stores::Model, faults, 50, 600));
    }
}

#[test]
fn broken_links() {
    for seed in seeds(1101..1104) {
        let faults = Faults { cuts: true, partitions: true, ..Faults::default() };
        simulate(DAY, with_faults(seed, Stores::Model, faults, 5, 600));
    }
}

#[test]
fn osts_die_and_come_back() {
    for seed in seeds(1201..1205) {
        let faults = Faults { osts: true, cuts: true, ..Faults::default() };
        simulate(DAY, with_faults(seed, Stores::Model, faults, 5, 600));
    }
}

#[test]
fn the_mdt_dies_and_comes_back() {
    for seed in seeds(1301..1305) {
        let faults = Faults { mdt: true, cuts: true, ..Faults::default() };
        simulate(DAY, with_faults(seed, Stores::Model, faults, 5, 600));
    }
}

#[test]
fn everything_at_once() {
    for seed in seeds(1401..1405) {
        simulate(DAY, with_faults(seed, Stores::Model, Faults::all(), 20, 600));
    }
}

#[test]
fn everything_at_once_on_the_engine() {
    for seed in seeds(1501..1503) {
        simulate(DAY, with_faults(seed, Stores::Engine, Faults::all(), 20, 300));
    }
}

#[test]
fn faults_are_the_same_from_the_same_seed() {
    for seed in seeds(1601..1602) {
        let run = || simulate(DAY, with_faults(seed, Stores::Model, Faults::all(), 20, 200));
        let (first, second) = (run(), run());
        assert_eq!(first, second, "seed {seed}: something does not come from the seed");
    }
}

#[test]
fn clients_die() {
    for seed in seeds(1701..1705) {
        simulate(DAY, async {
            let cluster = Cluster::start(seed, Stores::Model).await;
            let mounts = vec![cluster.mount().await, cluster.mount().await];
            let top = mounts[0].client.root();
            let mut workload = Workload::new(&cluster, mounts, top, seed);
            for round in 0..6 {
                workload.run(100).await;
                workload.replace_mount(round % 2).await;
            }
            workload.close_all().await;
            workload.compare_all().await;
        });
    }
}

async fn power_loss(seed: u64, stores: Stores) {
    let cluster = Cluster::start(seed, stores).await;
    let mounts = vec![cluster.mount().await, cluster.mount().await];
    let top = mounts[0].client.root();
    // The empty filesystem itself is there.
    mounts[0].client.fsync_dir(top).await.expect("an fsync works");
    let mut workload = Workload::new(&cluster, mounts, top, seed);
    workload.remember();
    workload.run(150 + seed % 100).await;
    for mount in workload.mounts() {
        cluster.kill_mount(mount.clone());
    }
    for target in Target::all() {
        cluster.kill(target, Crash::PowerLoss);
    }
    sleep(Duration::from_secs(1)).await;
    for target in Target::all() {
        timeout(Duration::from_secs(300), cluster.start_target(target)).await.expect("servers start");
    }
    let mount = cluster.mount().await;
    workload.compare_after_power_loss(&mount).await;
    // And it goes on.
    let other = cluster.mount().await;
    let dir = mount.client.mkdir(&Default::default(), top, b"after", 0o755).await.expect("names can be made");
    let mut workload = Workload::new(&cluster, vec![mount, other], dir.fid, seed);
    workload.run(60).await;
    workload.compare_all().await;
}

#[test]
fn what_was_synced_survives_a_power_loss() {
    for seed in seeds(1801..1816) {
        simulate(DAY, power_loss(seed, Stores::Model));
    }
}

#[test]
fn what_was_synced_survives_a_power_loss_on_the_engine() {
    for seed in seeds(1901..1905) {
        simulate(DAY, power_loss(seed, Stores::Engine));
    }
}
