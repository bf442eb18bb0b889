//! `nacre quickstart`: a whole cluster in this process, on files, over NVMe/TCP on loopback; mounted, filled with a real tree, read
//! back, and left running until Ctrl-C. What it makes can be started again by it or by nacred (`DIR/server.json`).

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use nacre_reactor::{Options, run_on_this_thread};
use serde::Serialize;

use crate::cli::Quickstart;
use crate::cluster::{self, Layout, Servers};
use crate::output::{Context, Output, Result};
use crate::tree;

/// The copied tree, below the mount.
const COPY: &str = "tree";

pub fn run(arguments: &Quickstart, output: &Output) -> Result<ExitCode> {
    run_on_this_thread(&Options { name: "control".to_owned(), ..Options::default() }, quickstart(arguments, output))?
}

/// What was done, in order.
#[derive(Default, Serialize)]
struct Report {
    steps: Vec<Step>,
}

#[derive(Serialize)]
struct Step {
    what: &'static str,
    result: String,
    seconds: f64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.steps.iter().map(|step| step.result.chars().count()).max().unwrap_or(0);
        for (number, step) in self.steps.iter().enumerate() {
            if number > 0 {
                writeln!(f)?;
            }
            write!(f, "{:<14} {:<width$} {:>8.2} s", step.what, step.result, step.seconds)?;
        }
        Ok(())
    }
}

impl Report {
    fn add(&mut self, what: &'static str, since: Instant, result: impl fmt::Display) {
        self.steps.push(Step { what, result: result.to_string(), seconds: since.elapsed().as_secs_f64() });
    }
}

async fn quickstart(arguments: &Quickstart, output: &Output) -> Result<ExitCode> {
    let mut report = Report::default();
    let dir = std::path::absolute(&arguments.dir).context(arguments.dir.display())?;
    let mut stop = crate::signals::Stop::new()?;
    let start = Instant::now();
    let again = cluster::exists(&dir);
    if again {
        report.add("cluster", start, format!("found in {}, started again", dir.display()));
    } else {
        let layout = Layout { osts: arguments.osts, ost_bytes: arguments.size, port: arguments.port };
        cluster::format(&dir, &layout).await?;
        let (osts, size) = (arguments.osts, super::lfs::human(arguments.size));
        report.add("cluster", start, format!("formatted in {}: MGS, MDT, {osts} OSTs of {size}", dir.display()));
    }
    let start = Instant::now();
    let servers = Servers::start(&dir).await?;
    let source = servers.source();
    report.add("servers", start, format!("{} targets for {source}", servers.target_count()));
    let start = Instant::now();
    let cluster = servers.mount(&dir).await?;
    let mountpoint = cluster.mountpoint();
    report.add("mount", start, format!("{source} at {}", mountpoint.display()));

    let checked = check(&dir, &mountpoint, again, &mut report).await;
    if checked.is_ok() {
        output.result(&report);
        println!("ready {}", mountpoint.display());
        if !arguments.exit {
            if !output.json {
                println!("mount it again elsewhere: nacre mount {source} DIR; Ctrl-C ends everything");
            }
            tokio::select! {
                biased;
                _ = stop.requested() => {}
                () = cluster.unmounted() => tracing::warn!("{} was unmounted from outside", mountpoint.display()),
            }
        }
    }
    let stopped = cluster.stop().await;
    checked?;
    stopped?;
    Ok(ExitCode::SUCCESS)
}

/// Copies a tree in on the first run; reads it back on every run.
async fn check(dir: &Path, mountpoint: &Path, again: bool, report: &mut Report) -> Result<()> {
    let manifest = dir.join("manifest.jsonl");
    let copy = mountpoint.join(COPY);
    if again && manifest.exists() {
        return read_back(copy, manifest, report, "earlier copy").await;
    }
    let start = Instant::now();
    let source = tree::usual_source()?;
    let (from, to, fresh) = (source.clone(), copy.clone(), dir.join("manifest.jsonl.new"));
    let (list, done) = (fresh.clone(), crate::output::progress("copying"));
    let totals = blocking(move || {
        let totals = tree::copy(&from, &to, &list, |bytes| done.set_position(bytes));
        done.finish_and_clear();
        totals
    })
    .await?;
    std::fs::rename(&fresh, &manifest).context(manifest.display())?;
    report.add("copied", start, rate(&source.display().to_string(), totals, start));
    read_back(copy, manifest, report, "read back").await
}

async fn read_back(copy: PathBuf, manifest: PathBuf, report: &mut Report, what: &'static str) -> Result<()> {
    let start = Instant::now();
    let done = crate::output::progress("reading back");
    let totals = blocking(move || {
        let totals = tree::verify(&copy, &manifest, |bytes| done.set_position(bytes));
        done.finish_and_clear();
        totals
    })
    .await?;
    report.add(what, start, rate("every byte right", totals, start));
    Ok(())
}

fn rate(what: &str, totals: tree::Totals, start: Instant) -> String {
    let seconds = start.elapsed().as_secs_f64();
    let (mib, files) = (totals.bytes as f64 / f64::from(1 << 20), totals.files);
    format!("{what}: {files} files, {mib:.0} MiB, {:.0} MiB/s, {:.0} files/s", mib / seconds, files as f64 / seconds)
}

/// Runs on a thread of its own: the kernel's calls into the mount must not wait on a reactor.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await?
}
