//! Speed of the backends, on one reactor: `cargo bench -p nacre-osd --bench bdev -- [FILE] [--seconds N] [--poll]`.
//!
//! Without FILE it makes one of 1 GiB beside the build. Compare with fio on the same file, in the same minute:
//!
//! ```text
//! fio --name=x --filename=FILE --ioengine=io_uring --direct=1 --rw=randread --bs=4k --iodepth=32 --runtime=5 --time_based
//! ```

use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nacre_osd::bdev::malloc::Malloc;
use nacre_osd::bdev::null::{self, Null};
use nacre_osd::bdev::uring::{self, Uring, create_file};
use nacre_osd::bdev::{BdevRef, Registry};
use nacre_reactor::{DmaBuf, Options, Runtime, Spin};
use tokio::task::spawn_local;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut seconds = 3;
    let mut spin = Spin::For(Duration::ZERO);
    let mut file = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--seconds" => seconds = arguments.next().ok_or("--seconds needs a number")?.parse()?,
            "--poll" => spin = Spin::Always,
            "--bench" => {}
            path => file = Some(PathBuf::from(path)),
        }
    }
    let duration = Duration::from_secs(seconds);
    let runtime = Runtime::new(&Options { spin, ..Options::default() })?;

    let malloc: BdevRef = Rc::new(Malloc::with_bytes("Malloc0", 256 << 20)?);
    let params = null::Params { name: "Null0".to_owned(), num_blocks: 65536, block_size: 4096, uuid: None };
    let null: BdevRef = Rc::new(Null::new(&params)?);

    let scratch = tempfile::tempdir_in(".")?;
    let file = match file {
        Some(file) => file,
        None => {
            let path = scratch.path().join("bench.img");
            create_file(&path, 1 << 30, true)?;
            path
        }
    };
    let params = uring::Params { name: "Uring0".to_owned(), filename: file, block_size: 0, uuid: None };
    let uring: BdevRef = Rc::new(runtime.block_on(Uring::open(&params))?);
    let registry = Registry::new();
    for device in [&null, &malloc, &uring] {
        registry.add(device.clone())?;
    }

    println!(
        "{:<8} {:<26} {:>10} {:>9} {:>9} {:>9} {:>6}",
        "bdev", "load", "IOPS", "MB/s", "p50 µs", "p99 µs", "CPU %"
    );
    for device in [&null, &malloc, &uring] {
        for load in LOADS {
            // Sequential writes first: extents that were never written read without the device.
            measure(&runtime, device, load, duration);
        }
    }
    Ok(())
}

/// One kind of traffic.
#[derive(Clone, Copy)]
struct Load {
    name: &'static str,
    write: bool,
    random: bool,
    bytes: usize,
    depth: usize,
}

const LOADS: [Load; 7] = [
    Load { name: "write 1 MiB sequential QD8", write: true, random: false, bytes: 1 << 20, depth: 8 },
    Load { name: "read 1 MiB sequential QD1", write: false, random: false, bytes: 1 << 20, depth: 1 },
    Load { name: "read 1 MiB sequential QD8", write: false, random: false, bytes: 1 << 20, depth: 8 },
    Load { name: "read 4 KiB random QD1", write: false, random: true, bytes: 4096, depth: 1 },
    Load { name: "read 4 KiB random QD32", write: false, random: true, bytes: 4096, depth: 32 },
    Load { name: "write 4 KiB random QD1", write: true, random: true, bytes: 4096, depth: 1 },
    Load { name: "write 4 KiB random QD32", write: true, random: true, bytes: 4096, depth: 32 },
];

fn measure(runtime: &Runtime, device: &BdevRef, load: Load, duration: Duration) {
    let cpu_before = cpu_time();
    let start = Instant::now();
    let mut latencies_ns = runtime.block_on(run(device.clone(), load, start + duration));
    let elapsed = start.elapsed().as_secs_f64();
    let cpu = (cpu_time() - cpu_before).as_secs_f64();
    latencies_ns.sort_unstable();
    let percentile = |part: f64| {
        let index = (latencies_ns.len() as f64 * part) as usize;
        f64::from(latencies_ns[index.min(latencies_ns.len() - 1)]) / 1e3
    };
    let rate = latencies_ns.len() as f64 / elapsed;
    println!(
        "{:<8} {:<26} {:>10.0} {:>9.0} {:>9.1} {:>9.1} {:>6.0}",
        device.info().name,
        load.name,
        rate,
        rate * load.bytes as f64 / 1e6,
        percentile(0.5),
        percentile(0.99),
        cpu / elapsed * 100.0,
    );
}

async fn run(device: BdevRef, load: Load, end: Instant) -> Vec<u32> {
    let workers: Vec<_> = (0..load.depth).map(|index| spawn_local(worker(device.clone(), load, index, end))).collect();
    let mut all = Vec::new();
    for worker in workers {
        all.extend(worker.await.expect("no worker panics"));
    }
    all
}

async fn worker(device: BdevRef, load: Load, index: usize, end: Instant) -> Vec<u32> {
    let mut latencies_ns = Vec::new();
    let slots = device.info().bytes() / load.bytes as u64;
    let mut position = slots / load.depth as u64 * index as u64;
    let mut state = 0x9e37_79b9_7f4a_7c15u64 ^ (index as u64 + 1);
    let data = DmaBuf::copy_from(&vec![0x5a; load.bytes]).freeze();
    let mut start = Instant::now();
    while start < end {
        position = if load.random {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % slots
        } else {
            (position + 1) % slots
        };
        let offset = position * load.bytes as u64;
        if load.write {
            device.write(offset, vec![data.clone()]).await.expect("the device works");
        } else {
            device.read(offset, load.bytes).await.expect("the device works");
        }
        // A device that completes at once would never let the others run.
        tokio::task::consume_budget().await;
        let now = Instant::now();
        latencies_ns.push(now.duration_since(start).as_nanos().min(u128::from(u32::MAX)) as u32);
        start = now;
    }
    latencies_ns
}

/// CPU time of this process, kernel threads of its ring excluded.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
