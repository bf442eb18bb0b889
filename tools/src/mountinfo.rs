//! Which Nacre filesystems this machine has mounted, and the control socket of each mount's process.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::output::{Context, Error, Result};

/// Directory of control sockets.
const SOCKETS: &str = "/var/tmp";

/// One mount, as /proc/self/mountinfo tells of it (proc(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountPoint {
    /// `major:minor`, which names the mount's superblock and its FUSE connection.
    pub device: String,
    /// Where.
    pub dir: PathBuf,
    /// `NID:/fsname`.
    pub source: String,
}

impl MountPoint {
    /// Socket of the process behind the mount.
    pub fn socket(&self) -> PathBuf {
        Path::new(SOCKETS).join(format!("nacre-mount-{}.sock", self.device))
    }

    /// Minor device number: the connection's name under /sys/fs/fuse/connections.
    pub fn connection(&self) -> &str {
        self.device.split_once(':').map_or("", |(_, minor)| minor)
    }
}

/// All Nacre mounts, oldest first.
pub fn nacre_mounts() -> Result<Vec<MountPoint>> {
    let bytes = std::fs::read("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    Ok(parse(&bytes))
}

/// The mount at exactly this directory; the newest, where several lie on each other.
pub fn mount_at(dir: &Path) -> Result<MountPoint> {
    let absolute = std::path::absolute(dir).context(dir.display())?;
    // A parent may be a symbolic link; the directory itself must not be touched, it may hang.
    let parent = absolute.parent().and_then(|parent| parent.canonicalize().ok());
    let wanted = match (parent, absolute.file_name()) {
        (Some(parent), Some(name)) => parent.join(name),
        _ => absolute,
    };
    let found = nacre_mounts()?.into_iter().rfind(|mount| mount.dir == wanted);
    found.ok_or_else(|| Error::new(format!("{}: not mounted (no Nacre filesystem is mounted there)", dir.display())))
}

/// The mount that a path is in.
pub fn mount_over(path: &Path) -> Result<MountPoint> {
    let absolute = path.canonicalize().context(path.display())?;
    let found = nacre_mounts()?.into_iter().rfind(|mount| absolute.starts_with(&mount.dir));
    found.ok_or_else(|| Error::new(format!("{}: not in a Nacre filesystem", path.display())))
}

fn parse(bytes: &[u8]) -> Vec<MountPoint> {
    let mut mounts = Vec::new();
    for line in bytes.split(|byte| *byte == b'\n') {
        let fields: Vec<_> = line.split(|byte| *byte == b' ').collect();
        let Some(dash) = fields.iter().position(|field| *field == b"-") else { continue };
        let (Some(device), Some(dir)) = (fields.get(2), fields.get(4)) else { continue };
        let (Some(kind), Some(source)) = (fields.get(dash + 1), fields.get(dash + 2)) else { continue };
        if *kind == b"fuse.nacre" {
            mounts.push(MountPoint {
                device: String::from_utf8_lossy(device).into_owned(),
                dir: OsString::from_vec(unescape(dir)).into(),
                source: String::from_utf8_lossy(&unescape(source)).into_owned(),
            });
        }
    }
    mounts
}

/// Space, tab, newline and backslash come as `\ooo`.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let code = (byte == b'\\')
            .then(|| after.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                out.push(code);
                rest = &after[3..];
            }
            None => {
                out.push(byte);
                rest = after;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_mountinfo() {
        let text = b"21 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
            40 21 0:45 / /mnt/with\\040space rw,nosuid shared:7 - fuse.nacre 10.0.0.1@tcp:/demo rw,user_id=0\n\
            broken line\n";
        let mounts = parse(text);
        assert_eq!(mounts.len(), 1);
        assert_eq!(mounts[0].dir, Path::new("/mnt/with space"));
        assert_eq!((mounts[0].source.as_str(), mounts[0].connection()), ("10.0.0.1@tcp:/demo", "45"));
        assert!(mounts[0].socket().ends_with("nacre-mount-0:45.sock"));
        assert_eq!(unescape(b"a\\9\\"), b"a\\9\\");
    }
}
