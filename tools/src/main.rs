//! The `nacre` command. One binary: `nacred`, `lfs`, `lctl`, `mkfs.nacre` and `mount.nacre` are names it can be called by, and
//! each is a subcommand too. Every command ends with 0 (done), 1 (failed) or 2 (misused).
#![forbid(unsafe_code)]

mod bench;
mod cli;
mod cluster;
mod cmd;
mod config;
mod device;
mod jsonrpc;
mod mountinfo;
mod mounting;
mod node;
mod output;
mod signals;
mod source;
mod tree;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let arguments = cli::with_personality(std::env::args_os().collect());
    let cli = cli::Cli::parse_from(arguments);
    output::start_log(cli.command.logs_by_default());
    let output = output::Output { json: cli.json };
    match cmd::run(cli.command, &output) {
        Ok(code) => code,
        Err(error) => {
            output.error(&error);
            ExitCode::FAILURE
        }
    }
}
