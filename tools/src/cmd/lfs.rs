//! `nacre lfs`: what Lustre's lfs tells of files, asked of the mount through its virtual attributes (`nacre.*`).

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nacre_wire::Layout;
use nacre_wire::layout::StripeHint;
use rustix::fs::{Mode, XattrFlags};
use serde::{Deserialize, Serialize};

use crate::cli::Lfs;
use crate::output::{Context, Error, Output, Result};

/// Largest answer of a virtual attribute, bytes (the kernel's own limit).
const ATTRIBUTE_BYTES_MAX: usize = 64 << 10;

pub fn run(command: Lfs, output: &Output) -> Result<ExitCode> {
    match command {
        Lfs::Setstripe { stripe_count, stripe_size, stripe_index, path } => {
            setstripe(&path, &hint(stripe_count, stripe_size, stripe_index)?)?;
        }
        Lfs::Getstripe { directory, paths } => {
            for path in paths {
                output.result(&getstripe(&path, directory)?);
            }
        }
        Lfs::Df { help: _, human, inodes, path } => {
            let mount = crate::mountinfo::mount_over(&path)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let answer =
                runtime.block_on(crate::jsonrpc::call(&mount.socket(), "nacre_df", serde_json::Value::Null))?;
            let targets: Vec<TargetSpace> = serde_json::from_value(answer)?;
            output.result(&Df { mount: mount.dir, human, inodes, targets });
        }
        Lfs::Path2fid { paths } => {
            let many = paths.len() > 1;
            for path in paths {
                let fid = attribute(&path, "nacre.fid")?;
                output.result(&if many { format!("{}: {fid}", path.display()) } else { fid });
            }
        }
        Lfs::Fid2path { mount, fids } => {
            for fid in fids {
                let found = attribute(&mount, &format!("nacre.path.{fid}"))?;
                for path in found.lines() {
                    output.result(&path);
                }
            }
        }
        Lfs::Mkdir { path } => std::fs::create_dir(&path).context(path.display())?,
    }
    Ok(ExitCode::SUCCESS)
}

fn hint(count: Option<i32>, size: Option<u64>, index: Option<i32>) -> Result<StripeHint> {
    let size_bytes = match size {
        Some(size) => Some(u32::try_from(size).context(format!("stripe size {size}"))?),
        None => None,
    };
    let offset = match index {
        None | Some(-1) => None,
        Some(index) => Some(u16::try_from(index).context(format!("OST index {index}"))?),
    };
    let hint = StripeHint { count, size_bytes, offset };
    if hint.validate().is_err() {
        let words = "a stripe size is a multiple of 64K; a stripe count is -1 (all), 0 (the default) or at most 2000";
        return Err(Error::new(words));
    }
    // As in Lustre, 0 means the default.
    Ok(StripeHint { count: hint.count.filter(|&count| count != 0), ..hint })
}

fn setstripe(path: &Path, hint: &StripeHint) -> Result<()> {
    if !path.exists() {
        // A new file gets its objects with its first open for writing; until then its striping can be chosen.
        let mode = Mode::from_raw_mode(0o666);
        rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::RegularFile, mode, 0)
            .context(format!("{}: cannot be made", path.display()))?;
    }
    let text = serde_json::to_vec(hint)?;
    rustix::fs::setxattr(path, "nacre.stripe", &text, XattrFlags::empty()).map_err(|error| match error {
        rustix::io::Errno::EXIST => Error::new(format!("{}: has its stripes already", path.display())),
        error => not_ours(path, error),
    })
}

#[derive(Serialize)]
struct Striping {
    path: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    layout: Option<Layout>,
    #[serde(skip_serializing_if = "Option::is_none")]
    default: Option<StripeHint>,
}

fn getstripe(path: &Path, directory: bool) -> Result<Striping> {
    let is_dir = std::fs::symlink_metadata(path).context(path.display())?.is_dir();
    if directory && !is_dir {
        return Err(Error::new(format!("{}: not a directory", path.display())));
    }
    let path = path.to_owned();
    if is_dir {
        let default = Some(json_attribute(&path, "nacre.stripe")?);
        return Ok(Striping { path, layout: None, default });
    }
    let layout = json_attribute(&path, "nacre.layout")?;
    Ok(Striping { path, layout, default: None })
}

impl fmt::Display for Striping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some(default) = &self.default {
            let (count, size) = (default.count.unwrap_or(1), default.size_bytes.unwrap_or(1 << 20));
            let offset = default.offset.map_or(-1, i32::from);
            write!(f, "\nstripe_count:  {count} stripe_size:   {size} pattern:       raid0 stripe_offset: {offset}")?;
            return Ok(());
        }
        let Some(layout) = &self.layout else { return write!(f, "\nno stripes yet (never written)") };
        for component in &layout.components {
            write!(f, "\nlmm_stripe_count:  {}", component.stripes.len())?;
            write!(f, "\nlmm_stripe_size:   {}", component.stripe_size_bytes)?;
            write!(f, "\nlmm_pattern:       {}", format!("{:?}", component.pattern).to_lowercase())?;
            write!(f, "\nlmm_layout_gen:    {}", layout.generation)?;
            write!(f, "\nlmm_stripe_offset: {}", component.stripes.first().map_or(0, |stripe| stripe.ost_index))?;
            write!(f, "\n\tobdidx\t\t objid\t\t\t fid")?;
            for stripe in &component.stripes {
                let id = stripe.object.as_ost_object().map_or(0, |(_, id)| id);
                write!(f, "\n\t{:6}\t{id:14}\t\t{}", stripe.ost_index, stripe.object)?;
            }
        }
        Ok(())
    }
}

/// A target's space as the mount knows it (`nacre_df`).
#[derive(Serialize, Deserialize)]
struct TargetSpace {
    /// `nacre-OST0000`.
    label: String,
    /// Bytes; both 0 when the target is away.
    total_bytes: u64,
    free_bytes: u64,
    inodes: u64,
    inodes_free: u64,
    /// Whether it answered.
    active: bool,
}

#[derive(Serialize)]
struct Df {
    mount: PathBuf,
    #[serde(skip)]
    human: bool,
    #[serde(skip)]
    inodes: bool,
    targets: Vec<TargetSpace>,
}

impl fmt::Display for Df {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = if self.inodes {
            "Inodes"
        } else if self.human {
            "bytes"
        } else {
            "1K-blocks"
        };
        write!(f, "{:<20} {unit:>12} {:>12} {:>12} {:>4} Mounted on", "UUID", "Used", "Available", "Use%")?;
        let mut sum = (0, 0);
        for target in &self.targets {
            let place = if target.label.contains("-MDT") { "MDT" } else { "OST" };
            let index = target.label.rsplit(['T', 't']).next().unwrap_or_default();
            let index = u16::from_str_radix(index, 16).unwrap_or_default();
            let at = format!("{}[{place}:{index}]", self.mount.display());
            if !target.active {
                write!(f, "\n{:<20} {:>12} {:>12} {:>12} {:>4} {at}", uuid(&target.label), "inactive", "-", "-", "-")?;
                continue;
            }
            let (total, free) =
                if self.inodes { (target.inodes, target.inodes_free) } else { (target.total_bytes, target.free_bytes) };
            if place == "OST" || self.inodes {
                sum = (sum.0 + total, sum.1 + free);
            }
            self.line(f, &uuid(&target.label), total, free, &at)?;
        }
        writeln!(f)?;
        self.line(f, "filesystem_summary:", sum.0, sum.1, &self.mount.display().to_string())
    }
}

impl Df {
    fn line(&self, f: &mut fmt::Formatter<'_>, name: &str, total: u64, free: u64, at: &str) -> fmt::Result {
        let used = total.saturating_sub(free);
        let percent = if total == 0 { 0 } else { (u128::from(used) * 100).div_ceil(u128::from(total)) };
        let show = |value: u64| match (self.inodes, self.human) {
            (true, _) => value.to_string(),
            (false, true) => human(value),
            (false, false) => (value / 1024).to_string(),
        };
        write!(f, "\n{name:<20} {:>12} {:>12} {:>12} {percent:>3}% {at}", show(total), show(used), show(free))
    }
}

fn uuid(label: &str) -> String {
    format!("{label}_UUID")
}

/// `1.5G`, as df -h has it.
pub fn human(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit < 6 {
        value /= 1024.0;
        unit += 1;
    }
    let letter = ["", "K", "M", "G", "T", "P", "E"][unit];
    if unit > 0 && value < 10.0 { format!("{value:.1}{letter}") } else { format!("{value:.0}{letter}") }
}

fn attribute(path: &Path, name: &str) -> Result<String> {
    let mut value = vec![0; ATTRIBUTE_BYTES_MAX];
    let length = rustix::fs::getxattr(path, name, &mut value[..]).map_err(|error| not_ours(path, error))?;
    value.truncate(length);
    String::from_utf8(value).context(path.display())
}

fn json_attribute<T: serde::de::DeserializeOwned>(path: &Path, name: &str) -> Result<T> {
    let text = attribute(path, name)?;
    serde_json::from_str(&text).context(format!("{}: {name}", path.display()))
}

fn not_ours(path: &Path, error: rustix::io::Errno) -> Error {
    use rustix::io::Errno;
    match error {
        Errno::OPNOTSUPP | Errno::NODATA => Error::new(format!("{}: not in a Nacre filesystem", path.display())),
        error => Error::new(format!("{}: {}", path.display(), std::io::Error::from(error))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn df_adds_up_osts_only() {
        let space = |label: &str, total, free| TargetSpace {
            label: label.to_owned(),
            total_bytes: total,
            free_bytes: free,
            inodes: 10,
            inodes_free: 5,
            active: true,
        };
        let targets = vec![space("nacre-MDT0000", 1 << 30, 1 << 29), space("nacre-OST000a", 2 << 30, 1 << 30)];
        let text = Df { mount: "/mnt".into(), human: true, inodes: false, targets }.to_string();
        let lines: Vec<_> = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
        assert_eq!(lines[2], ["nacre-OST000a_UUID", "2.0G", "1.0G", "1.0G", "50%", "/mnt[OST:10]"]);
        assert_eq!(lines.last().unwrap()[..4], ["filesystem_summary:", "2.0G", "1.0G", "1.0G"]);
    }

    #[test]
    fn hints_as_lustre_takes_them() {
        assert_eq!(hint(Some(0), None, Some(-1)).unwrap(), StripeHint::default());
        assert_eq!(hint(Some(-1), Some(1 << 20), Some(3)).unwrap().offset, Some(3));
        assert!(hint(None, Some(1000), None).is_err());
        assert!(hint(Some(-2), None, None).is_err());
    }
}
