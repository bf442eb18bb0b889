//! Faults while a workload runs: links that break, nodes that do not hear each other for a while, servers that die and
//! come back. Gentle enough that nobody is evicted: nothing may be lost and no operation may fail.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use nacre_osd::model::Crash;
use nacre_wire::Nid;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::sleep;

use crate::cluster::{Cluster, Target};
use crate::env::Rng;

/// Which faults.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Links are dropped.
    pub cuts: bool,
    /// Nodes do not hear each other for up to three seconds.
    pub partitions: bool,
    /// OSTs are killed and start again.
    pub osts: bool,
    /// The MDT is killed and starts again.
    pub mdt: bool,
    /// The MGS is killed and starts again.
    pub mgs: bool,
}

impl Faults {
    /// Everything.
    pub fn all() -> Faults {
        Faults { cuts: true, partitions: true, osts: true, mdt: true, mgs: true }
    }
}

/// Faults that go on until [`Chaos::end`].
pub struct Chaos {
    ending: Rc<Cell<bool>>,
    task: JoinHandle<u64>,
}

impl Chaos {
    /// Begins; `clients` are nodes to cut off, too.
    pub fn begin(cluster: Rc<Cluster>, seed: u64, faults: Faults, clients: Vec<Nid>) -> Chaos {
        let ending = Rc::new(Cell::new(false));
        let task = spawn_local(run(cluster, Rng::new(seed), faults, clients, ending.clone()));
        Chaos { ending, task }
    }

    /// Ends; everything runs and hears each other again. The answer is how many faults there were.
    ///
    /// # Panics
    /// When a server did not come back.
    pub async fn end(self) -> u64 {
        self.ending.set(true);
        self.task.await.expect("servers start again")
    }
}

async fn run(cluster: Rc<Cluster>, mut rng: Rng, faults: Faults, clients: Vec<Nid>, ending: Rc<Cell<bool>>) -> u64 {
    let mut count = 0;
    while !ending.get() {
        sleep(Duration::from_millis(10 + rng.below(4000))).await;
        let all = Target::all();
        let target = all[rng.below(all.len() as u64) as usize];
        let client = clients[rng.below(clients.len() as u64) as usize];
        let pause = Duration::from_millis(rng.below(3000));
        let net = cluster.net.faults();
        match rng.below(4) {
            0 if faults.cuts => match rng.below(3) {
                0 => net.cut(client),
                1 => net.cut(target.nid()),
                _ => net.cut_all(),
            },
            1 if faults.partitions => {
                net.part(client, target.nid());
                sleep(pause).await;
                net.heal(client, target.nid());
            }
            2 | 3 => {
                let wanted = match target {
                    Target::Mgs => faults.mgs,
                    Target::Mdt => faults.mdt,
                    Target::Ost(_) => faults.osts,
                };
                if !wanted {
                    continue;
                }
                tracing::info!("{target:?} dies for {} ms", pause.as_millis());
                cluster.kill(target, Crash::Kill);
                sleep(pause).await;
                cluster.start_target(target).await;
            }
            _ => continue,
        }
        count += 1;
    }
    count
}
