//! Thousands of random operations by two mounts, without faults.

mod support;

use std::time::Duration;

use nacre_client::FileSystem;
use nacre_sim::cluster::{Cluster, Stores};
use nacre_sim::workload::Workload;
use support::{seeds, simulate};

const DAY: Duration = Duration::from_secs(24 * 3600);

async fn one_seed(seed: u64, stores: Stores, operations: u64) -> (u64, u64) {
    let cluster = Cluster::start(seed, stores).await;
    let mounts = vec![cluster.mount().await, cluster.mount().await];
    let top = mounts[0].client.root();
    let mut workload = Workload::new(&cluster, mounts, top, seed);
    workload.run(operations).await;
    workload.compare_all().await;
    workload.close_all().await;
    workload.compare_all().await;
    cluster.trace_hash()
}

#[test]
fn two_mounts_see_what_the_model_says() {
    for seed in seeds(1..11) {
        simulate(DAY, one_seed(seed, Stores::Model, 1500));
    }
}

#[test]
fn two_mounts_see_what_the_model_says_on_the_engine() {
    for seed in seeds(101..104) {
        simulate(DAY, one_seed(seed, Stores::Engine, 600));
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in seeds(201..203) {
        let (first, messages) = simulate(DAY, one_seed(seed, Stores::Model, 300));
        assert!(messages > 300, "messages are counted");
        let second = simulate(DAY, one_seed(seed, Stores::Model, 300));
        assert_eq!((first, messages), second, "seed {seed}: something does not come from the seed");
    }
}
