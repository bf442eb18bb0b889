//! `mkfs.nacre`: makes a device or file a target. Refuses what holds anything known unless `--reformat`; run again with the same
//! arguments it changes nothing.

use std::fmt;
use std::path::Path;
use std::process::ExitCode;

use nacre_osd::bdev::{BdevRef, uring};
use nacre_osd::engine::{FormatOptions, Osd, Probe};
use nacre_reactor::Env;
use nacre_wire::Nid;
use nacre_wire::codec::{decode, encode};
use nacre_wire::map::{TargetKind, fsname_is_valid, target_label};
use nacre_wire::mgs::TargetLabel;
use serde::Serialize;

use crate::cli::Mkfs;
use crate::device::open_device;
use crate::output::{Context, Error, Output, Result};

/// Bytes at the start in which other filesystems have their signatures.
const SIGNATURE_BYTES: usize = 72 << 10;

pub fn run(arguments: &Mkfs, output: &Output) -> Result<ExitCode> {
    let done = crate::device::block_on(format(arguments))??;
    output.result(&done);
    Ok(ExitCode::SUCCESS)
}

/// What mkfs did.
#[derive(Serialize)]
pub struct Done {
    device: String,
    label: String,
    target_uuid: String,
    bytes: u64,
    /// `formatted`, `unchanged` or `would be formatted`.
    what: &'static str,
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = super::lfs::human(self.bytes);
        write!(f, "{}: {} as {} ({size}, uuid {})", self.device, self.what, self.label, self.target_uuid)
    }
}

/// Does what the arguments ask.
pub async fn format(arguments: &Mkfs) -> Result<Done> {
    let wanted = wanted_label(arguments)?;
    let path = &arguments.device;
    let made = make_file(arguments)?;
    let result = format_existing(arguments, path, wanted).await;
    // A file made in vain does not stay.
    if made && !matches!(&result, Ok(done) if done.what == "formatted") {
        std::fs::remove_file(path).context(path.display())?;
    }
    result
}

async fn format_existing(arguments: &Mkfs, path: &Path, wanted: TargetLabel) -> Result<Done> {
    if !path.exists() {
        // Only a dry run gets here without a device.
        return Ok(done(path, &wanted, arguments.size.unwrap_or(0), "would be formatted"));
    }
    let bdev = open_device(path).await?;
    let bytes = bdev.info().bytes();
    let holds = |what: String| Error::new(format!("{} holds {what}; pass --reformat to erase it", path.display()));
    match Osd::probe(&bdev).await? {
        Probe::Store(store) => match decode::<TargetLabel>(&store.label) {
            Ok(label) if same(&label, &wanted) && !arguments.reformat => {
                return Ok(done(path, &label, bytes, "unchanged"));
            }
            _ if arguments.reformat => {}
            Ok(label) => {
                let name = display_label(&label);
                return Err(holds(format!("another Nacre target (fsname={}, {name})", label.fsname)));
            }
            Err(_) => return Err(holds("a Nacre store whose label cannot be read".to_owned())),
        },
        Probe::Damaged if !arguments.reformat => {
            return Err(holds("a damaged Nacre store (see nacre fsck)".to_owned()));
        }
        Probe::Newer { version, .. } if !arguments.reformat => {
            return Err(holds(format!("a Nacre store of a format that is not known here (version {version})")));
        }
        Probe::Nothing if !arguments.reformat => {
            if let Some(what) = foreign(&bdev).await? {
                return Err(holds(what.to_owned()));
            }
        }
        Probe::Damaged | Probe::Newer { .. } | Probe::Nothing => {}
    }
    if arguments.dryrun {
        return Ok(done(path, &wanted, bytes, "would be formatted"));
    }
    let options = FormatOptions { uuid: wanted.target_uuid, label: encode(&wanted), log_bytes: None };
    Osd::format(&bdev, &options).await.context(path.display())?;
    Ok(done(path, &wanted, bytes, "formatted"))
}

fn wanted_label(arguments: &Mkfs) -> Result<TargetLabel> {
    let kind = match (arguments.mgs, arguments.mdt) {
        (true, _) => TargetKind::Mgs,
        (_, true) => TargetKind::Mdt,
        _ => TargetKind::Ost,
    };
    let fsname = arguments.fsname.clone().unwrap_or_default();
    if !(fsname_is_valid(&fsname) || fsname.is_empty() && kind == TargetKind::Mgs) {
        let words = format!("--fsname \"{fsname}\" is not a filesystem name (1-8 letters, digits, '-' or '_')");
        return Err(Error::new(words));
    }
    if kind == TargetKind::Mdt && arguments.index.is_some_and(|index| index != 0) {
        return Err(Error::new("one MDT is what this version serves: --index is 0 or left out"));
    }
    Ok(TargetLabel {
        fsname,
        kind,
        index: arguments.index,
        target_uuid: Env::system().uuid(),
        fs_uuid: None,
        mgs_nids: if kind == TargetKind::Mgs { Vec::new() } else { arguments.mgsnode.clone() },
    })
}

/// Whether the device is what the arguments ask for already. An index that the MGS handed out is as good as none asked for.
fn same(is: &TargetLabel, wanted: &TargetLabel) -> bool {
    let nids = |label: &TargetLabel| {
        let mut nids: Vec<Nid> = label.mgs_nids.clone();
        nids.sort();
        nids
    };
    is.kind == wanted.kind
        && is.fsname == wanted.fsname
        && (wanted.index.is_none() || is.index == wanted.index)
        && nids(is) == nids(wanted)
}

fn display_label(label: &TargetLabel) -> String {
    match (label.index, label.kind) {
        (Some(index), kind) => target_label(&label.fsname, kind, index),
        (None, TargetKind::Mgs) => "MGS".to_owned(),
        (None, kind) => format!("{}-{kind:?} without index", label.fsname),
    }
}

fn done(path: &Path, label: &TargetLabel, bytes: u64, what: &'static str) -> Done {
    let device = path.display().to_string();
    Done { device, label: display_label(label), target_uuid: label.target_uuid.to_string(), bytes, what }
}

/// Makes the file if it is asked for and not there; whether it was made.
fn make_file(arguments: &Mkfs) -> Result<bool> {
    let path = &arguments.device;
    match (path.exists(), arguments.size) {
        (true, _) => Ok(false),
        (false, None) => Err(Error::new(format!("{}: does not exist; --size 64G makes it a file", path.display()))),
        (false, Some(_)) if arguments.dryrun => Ok(false),
        (false, Some(size)) => {
            uring::create_file(path, size, false).context(format!("{}: cannot be made", path.display()))?;
            Ok(true)
        }
    }
}

/// What somebody else keeps there, by the signatures that blkid(8) knows.
async fn foreign(bdev: &BdevRef) -> Result<Option<&'static str>> {
    let length = SIGNATURE_BYTES.min(bdev.info().bytes() as usize);
    let start = bdev.read(0, length).await?;
    let has = |at: usize, magic: &[u8]| start.get(at..at + magic.len()) == Some(magic);
    let signatures: [(usize, &[u8], &str); 9] = [
        (0x438, b"\x53\xef", "an ext2/3/4 filesystem"),
        (0, b"XFSB", "an XFS filesystem"),
        (0x10040, b"_BHRfS_M", "a btrfs filesystem"),
        (0x218, b"LVM2 001", "an LVM physical volume"),
        (0, b"LUKS\xba\xbe", "a LUKS volume"),
        (512, b"EFI PART", "a GPT partition table"),
        (4096, b"EFI PART", "a GPT partition table"),
        (4086, b"SWAPSPACE2", "swap space"),
        (510, b"\x55\xaa", "a partition table or boot sector"),
    ];
    Ok(signatures.iter().find(|(at, magic, _)| has(*at, magic)).map(|(_, _, what)| *what))
}
