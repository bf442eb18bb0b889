//! Creates, stats and unlinks per second, straight at the MDT, over the store in memory:
//! `cargo run --release -p nacre-mdt --example mdt_bench [FILES [DIRECTORIES]]`.

use std::rc::Rc;

use nacre_mdt::bench::{BenchConfig, BenchTarget, run};
use nacre_osd::model::ModelStore;
use nacre_reactor::Env;
use tokio::runtime::Builder;
use tokio::task::LocalSet;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<u32>());
    let files = args.next().transpose()?.unwrap_or(200_000);
    let directories = args.next().transpose()?.unwrap_or(1);
    let runtime = Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let store = Rc::new(ModelStore::new());
        let target = BenchTarget::start(Env::system(), store, 2).await?;
        for phase in run(&target.mdt, BenchConfig { files, concurrency: 64, directories }).await? {
            println!("{:<8} {:>9} operations {:>10.0} per second", phase.name, phase.operations, phase.rate());
        }
        target.mdt.stop().await;
        Ok(())
    })
}
