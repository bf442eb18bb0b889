//! Creates, stats and unlinks per second, straight at the MDT:
//! `cargo run --release -p nacre-mdt --example mdt_bench [FILES [DIRECTORIES [model|engine]]]`.
//!
//! `model` is the store in memory, `engine` the object store on a malloc bdev. Besides the rate by the clock on the wall it
//! prints the thread's CPU time per operation, which a busy machine does not blur.

use std::rc::Rc;
use std::time::Duration;

use nacre_mdt::bench::{BenchConfig, BenchTarget, run};
use nacre_osd::Store;
use nacre_osd::bdev::BdevRef;
use nacre_osd::bdev::malloc::Malloc;
use nacre_osd::engine::{FormatOptions, Options, Osd};
use nacre_osd::model::ModelStore;
use nacre_reactor::Env;
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::Builder;
use tokio::task::LocalSet;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: u32| args.get(at).map_or(Ok(default), |text| text.parse());
    let (files, directories) = (number(0, 200_000)?, number(1, 1)?);
    let engine = args.get(2).is_some_and(|store| store == "engine");
    let runtime = Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let env = Env::system();
        let store: Rc<dyn Store> = if engine {
            let bdev: BdevRef = Rc::new(Malloc::with_bytes("Malloc0", 2 << 30)?);
            let options = FormatOptions { uuid: env.uuid(), label: Vec::new(), log_bytes: None };
            Osd::format(&bdev, &options).await?;
            Osd::open(bdev, Options::default()).await?
        } else {
            Rc::new(ModelStore::new())
        };
        let target = BenchTarget::start(env, store, 2).await?;
        let config = BenchConfig { files, concurrency: 64, directories };
        for phase in run(&target.mdt, config, cpu_time).await? {
            let cpu_us = phase.elapsed_other.as_secs_f64() * 1e6 / phase.operations as f64;
            let (name, operations, rate) = (phase.name, phase.operations, phase.rate());
            println!("{name:<8} {operations:>9} operations {rate:>10.0} per second {cpu_us:>7.2} us of CPU each");
        }
        target.mdt.stop().await;
        Ok(())
    })
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
