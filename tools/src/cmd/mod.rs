//! One command, one file.

mod bench;
mod fsck;
mod inspect;
mod lctl;
mod lfs;
pub mod mkfs;
mod mount;
mod nacred;
mod quickstart;
mod umount;

use std::process::ExitCode;

use nacre_osd::bdev::BdevRef;
use nacre_osd::engine::{Osd, Probe};

use crate::cli::Command;
use crate::output::{Error, Output, Result};

/// Does a command. `Ok` carries the exit status, because a check that found something wrong has not failed to run.
pub fn run(command: Command, output: &Output) -> Result<ExitCode> {
    match command {
        Command::Quickstart(arguments) => quickstart::run(&arguments, output),
        Command::Nacred(arguments) => nacred::run(&arguments),
        Command::Mkfs(arguments) => mkfs::run(&arguments, output),
        Command::Mount(arguments) => mount::run(&arguments),
        Command::Umount(arguments) => umount::run(&arguments),
        Command::Lfs(command) => lfs::run(command, output),
        Command::Lctl(arguments) => lctl::run(&arguments, output),
        Command::Inspect(arguments) => inspect::run(&arguments, output),
        Command::Fsck(arguments) => fsck::run(&arguments, output),
        Command::Bench(command) => bench::run(command, output),
    }
}

/// The label of the store on a device; an error where there is no store that can be read.
async fn label(bdev: &BdevRef) -> Result<Vec<u8>> {
    let name = &bdev.info().name;
    match Osd::probe(bdev).await? {
        Probe::Store(store) => Ok(store.label),
        Probe::Nothing => Err(Error::new(format!("{name}: no Nacre store here; mkfs.nacre makes one"))),
        Probe::Damaged => Err(Error::new(format!("{name}: a Nacre store whose superblocks are all damaged"))),
        Probe::Newer { version, unknown_features } => Err(Error::new(format!(
            "{name}: a Nacre store of format {version} (unknown features {unknown_features:#x}); use a newer nacre"
        ))),
    }
}
