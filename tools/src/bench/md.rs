//! Creates, stats and unlinks: through a mount by one process, and straight at an MDT without client and wire.

use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nacre_mdt::bench::{BenchConfig, BenchPhase, BenchTarget};
use nacre_osd::bdev::BdevRef;
use nacre_osd::engine::{FormatOptions, Options, Osd};
use nacre_osd::store::Store;
use nacre_reactor::Env;
use serde::Serialize;

use crate::output::{Context, Result};

/// How the files lie.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Shape {
    pub name: &'static str,
    pub directories: u32,
}

/// What is measured.
pub const SHAPES: [Shape; 2] =
    [Shape { name: "one directory", directories: 1 }, Shape { name: "64 directories", directories: 64 }];

/// Operations per second of one shape.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Rates {
    pub creates: f64,
    pub stats: f64,
    pub unlinks: f64,
}

/// The phases on a mount, one process, one operation at a time.
pub fn on_mount(mount: &Path, shape: Shape, files: u32) -> Result<Rates> {
    let root = mount.join(format!("md-{}", shape.directories));
    std::fs::create_dir(&root).context(root.display())?;
    for directory in 0..shape.directories {
        std::fs::create_dir(root.join(directory.to_string()))?;
    }
    let path = |number: u32| root.join((number % shape.directories).to_string()).join(format!("file{number}"));
    let timed = |work: &dyn Fn(u32) -> std::io::Result<()>| -> Result<f64> {
        let start = Instant::now();
        for number in 0..files {
            work(number).context(path(number).display())?;
        }
        Ok(f64::from(files) / start.elapsed().as_secs_f64())
    };
    let creates = timed(&|number| std::fs::File::create_new(path(number)).map(drop))?;
    let stats = timed(&|number| std::fs::metadata(path(number)).map(drop))?;
    let unlinks = timed(&|number| std::fs::remove_file(path(number)))?;
    std::fs::remove_dir_all(&root).context(root.display())?;
    Ok(Rates { creates, stats, unlinks })
}

/// The phases at a fresh MDT on a bdev, 256 calls at once.
pub async fn straight(bdev: BdevRef, shape: Shape, files: u32) -> Result<Rates> {
    let env = Env::system();
    Osd::format(&bdev, &FormatOptions { uuid: env.uuid(), label: Vec::new(), log_bytes: None }).await?;
    let store: Rc<dyn Store> = Osd::open(bdev, Options::default()).await?;
    let target = BenchTarget::start(env, store.clone(), 2).await?;
    let config = BenchConfig { files, concurrency: 256, directories: shape.directories };
    let phases = nacre_mdt::bench::run(&target.mdt, config, cpu_time).await?;
    target.mdt.stop().await;
    store.close().await?;
    let rate = |name: &str| phases.iter().find(|phase| phase.name == name).map_or(0.0, BenchPhase::rate);
    Ok(Rates { creates: rate("create"), stats: rate("stat"), unlinks: rate("unlink") })
}

/// CPU time that this process has used.
pub fn cpu_time() -> Duration {
    let usage = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(usage.tv_sec as u64, usage.tv_nsec as u32)
}
