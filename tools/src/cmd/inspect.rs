//! `nacre inspect`: what is on a device. Never writes, and looks at a store without opening it.

use std::process::ExitCode;

use nacre_osd::check;
use nacre_wire::codec::decode;
use nacre_wire::mgs::TargetLabel;

use crate::cli;
use crate::device::{block_on, label, open_device};
use crate::output::{Context, Error, Output, Result};

pub fn run(arguments: &cli::Inspect, output: &Output) -> Result<ExitCode> {
    let options = check::Inspect { object: arguments.object, ..check::Inspect::default() };
    let (label, inspection) = block_on(async {
        let bdev = open_device(&arguments.device).await?;
        let label = label(&bdev).await.map_err(|why| Error::new(format!("{}: {why}", arguments.device.display())))?;
        let inspection = check::inspect(&bdev, &options).await.context(arguments.device.display())?;
        Ok::<_, Error>((label, inspection))
    })??;
    if !output.json {
        match decode::<TargetLabel>(&label) {
            Ok(label) => {
                let index = label.index.map_or("not registered".to_owned(), |index| index.to_string());
                println!(
                    "target {:?} of fsname={}, index {index}, uuid {}",
                    label.kind, label.fsname, label.target_uuid
                );
                for nid in label.mgs_nids {
                    println!("MGS at {nid}");
                }
            }
            Err(_) => println!("no target's label"),
        }
    }
    output.result(&inspection);
    Ok(if inspection.damage.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
