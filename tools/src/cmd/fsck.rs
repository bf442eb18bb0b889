//! `nacre fsck`: checks a device that no server uses, and repairs what can be repaired with `--repair`. Status 0: clean or
//! repaired.

use std::process::ExitCode;

use nacre_osd::check::{self, Verdict};

use crate::cli::Fsck;
use crate::device::{block_on, label, open_device};
use crate::output::{Context, Error, Output, Result};

pub fn run(arguments: &Fsck, output: &Output) -> Result<ExitCode> {
    let report = block_on(async {
        let bdev = open_device(&arguments.device).await?;
        // What is no store at all is told in the words that every command uses.
        label(&bdev).await.map_err(|why| Error::new(format!("{}: {why}", arguments.device.display())))?;
        check::fsck(&bdev, arguments.repair).await.context(arguments.device.display())
    })??;
    output.result(&report);
    Ok(if report.verdict == Verdict::Damaged { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
