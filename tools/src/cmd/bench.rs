//! `nacre bench`: how fast, side by side in one run: device, OST inside the process, OST over NVMe/TCP, mount; metadata through
//! the mount and straight at the MDT.

use std::fmt;
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use nacre_osd::bdev::{BdevRef, malloc, uring};
use nacre_reactor::{Options, Placement, Reactors, run_on_this_thread};
use serde::Serialize;

use crate::bench::io::{self, Ground, Row, Way};
use crate::bench::md::{self, Rates, SHAPES, Shape};
use crate::cli::{Bench, BenchArgs};
use crate::cluster::{Cluster, Layout};
use crate::device::open_device;
use crate::node::SPIN;
use crate::output::{Context, Output, Result};

/// Files of the metadata measurements: through a mount, and straight at the MDT.
const MOUNT_FILES: u32 = 5_000;
const STRAIGHT_FILES: u32 = 100_000;
/// Size of the devices under an MDT that is measured straight.
const MDT_BYTES: u64 = 2 << 30;

pub fn run(command: Bench, output: &Output) -> Result<ExitCode> {
    let (arguments, with_io, with_md) = match command {
        Bench::Io(arguments) => (arguments, true, false),
        Bench::Md(arguments) => (arguments, false, true),
        Bench::All(arguments) => (arguments, true, true),
    };
    let options = Options { spin: SPIN, name: "bench".to_owned(), ..Options::default() };
    let report = run_on_this_thread(&options, measure(&arguments, with_io, with_md))??;
    output.result(&report);
    Ok(ExitCode::SUCCESS)
}

#[derive(Default, Serialize)]
struct Report {
    /// Over a file.
    file: Vec<Row>,
    /// Over memory: what the layers above the device cost.
    memory: Vec<Row>,
    /// Metadata, by who was asked and how the files lie.
    metadata: Vec<(String, Shape, Rates)>,
    /// Share of one core that an idle cluster used, and its resident memory.
    idle_core_share: Option<f64>,
    resident_bytes: Option<u64>,
}

async fn measure(arguments: &BenchArgs, with_io: bool, with_md: bool) -> Result<Report> {
    let dir = std::path::absolute(&arguments.dir).context(arguments.dir.display())?;
    std::fs::create_dir_all(&dir).context(dir.display())?;
    let mut report = Report::default();
    if with_io {
        measure_devices(arguments, &dir, &mut report).await?;
    }
    measure_cluster(arguments, &dir, with_io, with_md, &mut report).await?;
    if with_md {
        measure_mdt(arguments, &dir, &mut report).await?;
    }
    for file in ["raw.img", "ost.img", "mdt.img"] {
        // Not every measurement makes every file.
        let _ = std::fs::remove_file(dir.join(file));
    }
    Ok(report)
}

/// Memory first: it needs no mount.
async fn measure_devices(arguments: &BenchArgs, _dir: &Path, report: &mut Report) -> Result<()> {
    let duration = Duration::from_secs_f64(arguments.seconds);
    let server = Reactors::start(&Placement::Anywhere(1), SPIN)?;
    let raw = Way::Bdev(Rc::new(malloc::Malloc::with_bytes("Malloc1", io::RANGE_BYTES)?));
    raw.fill().await?;
    let (local, tcp) = io::ost_ways(&server.handles()[0], Ground::Memory, 0).await?;
    let ways = [("raw".to_owned(), raw), ("ost local".to_owned(), local), ("ost tcp".to_owned(), tcp)];
    report.memory = io::compare(&ways, arguments.rounds, duration).await?;
    drop(ways);
    server.join();
    Ok(())
}

/// A whole cluster on files: its mount beside a raw file and an OST on a file.
async fn measure_cluster(
    arguments: &BenchArgs,
    dir: &Path,
    with_io: bool,
    with_md: bool,
    report: &mut Report,
) -> Result<()> {
    let duration = Duration::from_secs_f64(arguments.seconds);
    let data = dir.join("cluster");
    let layout = Layout { osts: 2, ost_bytes: 4 << 30, port: 0 };
    let cluster = Cluster::start(&data, &layout).await?;
    let result = async {
        // Idle first, before anything is cached.
        let (cpu, wall) = (md::cpu_time(), std::time::Instant::now());
        tokio::time::sleep(Duration::from_secs(10)).await;
        report.idle_core_share = Some((md::cpu_time() - cpu).as_secs_f64() / wall.elapsed().as_secs_f64());
        report.resident_bytes = resident_bytes();
        if with_io {
            let server = Reactors::start(&Placement::Anywhere(1), SPIN)?;
            let raw = io::raw_file(&dir.join("raw.img")).await?;
            let (local, tcp) = io::ost_ways(&server.handles()[0], Ground::File(dir.join("ost.img")), 1).await?;
            let file = cluster.mountpoint().join("bench");
            let (path, made) = (file.clone(), file.clone());
            tokio::task::spawn_blocking(move || uring::create_file(&path, io::RANGE_BYTES, false)).await??;
            let mounted = Way::Bdev(open_device(&made).await?);
            mounted.fill().await?;
            let ways = [
                ("raw".to_owned(), raw),
                ("ost local".to_owned(), local),
                ("ost tcp".to_owned(), tcp),
                ("mount".to_owned(), mounted),
            ];
            report.file = io::compare(&ways, arguments.rounds, duration).await?;
            drop(ways);
            server.join();
            tokio::task::spawn_blocking(move || std::fs::remove_file(file)).await??;
        }
        if with_md {
            for shape in SHAPES {
                let mount = cluster.mountpoint();
                let rates = tokio::task::spawn_blocking(move || md::on_mount(&mount, shape, MOUNT_FILES)).await??;
                report.metadata.push(("mount, one process".to_owned(), shape, rates));
            }
        }
        Ok(())
    }
    .await;
    let stopped = cluster.stop().await;
    std::fs::remove_dir_all(&data).context(data.display())?;
    result.and(stopped)
}

async fn measure_mdt(_arguments: &BenchArgs, dir: &Path, report: &mut Report) -> Result<()> {
    for shape in SHAPES {
        let memory: BdevRef = Rc::new(malloc::Malloc::with_bytes("Malloc2", MDT_BYTES)?);
        let rates = md::straight(memory, shape, STRAIGHT_FILES).await?;
        report.metadata.push(("MDT straight, memory".to_owned(), shape, rates));
        let path = dir.join("mdt.img");
        if !path.exists() {
            uring::create_file(&path, MDT_BYTES, true).context(path.display())?;
        }
        let rates = md::straight(open_device(&path).await?, shape, STRAIGHT_FILES).await?;
        report.metadata.push(("MDT straight, file".to_owned(), shape, rates));
    }
    Ok(())
}

/// VmRSS of this process (proc(5)).
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, rows) in [("over memory", &self.memory), ("over a file, O_DIRECT", &self.file)] {
            if rows.is_empty() {
                continue;
            }
            writeln!(f, "{name} (median; in brackets the ratio to raw)")?;
            write!(f, "{:<28}", "")?;
            for (way, _) in &rows[0].ways {
                write!(f, "{way:>24}")?;
            }
            writeln!(f)?;
            for row in rows {
                write!(f, "{:<28}", row.pattern.name)?;
                let raw = row.ways[0].1.per_second;
                for (_, measured) in &row.ways {
                    let rate = if row.pattern.block_bytes >= 1 << 20 {
                        format!("{:.2} GB/s", measured.bytes_per_second / 1e9)
                    } else {
                        format!("{:.1} k/s {:.0} µs", measured.per_second / 1e3, measured.p50_us)
                    };
                    write!(f, "{:>24}", format!("{rate} [{:.2}]", measured.per_second / raw))?;
                }
                writeln!(f)?;
            }
        }
        if !self.metadata.is_empty() {
            writeln!(f, "{:<40}{:>12}{:>12}{:>12}", "metadata, per second", "creates", "stats", "unlinks")?;
            for (who, shape, rates) in &self.metadata {
                let line = format!("{who}, {}", shape.name);
                writeln!(f, "{line:<40}{:>12.0}{:>12.0}{:>12.0}", rates.creates, rates.stats, rates.unlinks)?;
            }
        }
        if let Some(share) = self.idle_core_share {
            writeln!(f, "idle cluster: {:.2} % of a core", share * 100.0)?;
        }
        if let Some(bytes) = self.resident_bytes {
            write!(f, "resident when idle: {} MiB", bytes >> 20)?;
        }
        Ok(())
    }
}
