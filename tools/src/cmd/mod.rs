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

use crate::cli::Command;
use crate::output::{Output, Result};

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
