//! A device or file by its path, for the commands that work on one directly.

use std::path::Path;
use std::rc::Rc;

use nacre_osd::bdev::{BdevRef, uring};
use nacre_osd::engine::{Osd, Probe};
use nacre_reactor::{Options, run_on_this_thread};

use crate::output::{Context, Result};

/// Runs a command's work on this thread as a reactor.
pub fn block_on<F: Future>(work: F) -> Result<F::Output> {
    Ok(run_on_this_thread(&Options::default(), work)?)
}

/// Opens a block device or file, for this process alone.
pub async fn open_device(path: &Path) -> Result<BdevRef> {
    let params = serde_json::json!({"name": path.display().to_string(), "filename": path});
    let params: uring::Params = serde_json::from_value(params)?;
    let bdev = uring::Uring::open(&params).await.context(path.display())?;
    Ok(Rc::new(bdev))
}

/// The label of the store on a device. In words, why there is no store that can be read.
pub async fn label(bdev: &BdevRef) -> std::result::Result<Vec<u8>, String> {
    match Osd::probe(bdev).await.map_err(|error| error.to_string())? {
        Probe::Store(store) => Ok(store.label),
        Probe::Nothing => Err("no Nacre store here; mkfs.nacre makes one".to_owned()),
        Probe::Damaged => Err("a Nacre store whose superblocks are all damaged".to_owned()),
        Probe::Newer { version, unknown_features } => Err(format!(
            "a Nacre store of format {version} (unknown features {unknown_features:#x}); use a newer nacre"
        )),
    }
}
