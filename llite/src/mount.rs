//! mount(2) and umount(2).
//!
//! Root mounts by itself; anybody else through `fusermount3`, which passes the device back over a socket. Unmounting is
//! bounded: first as umount(8) does, which writes everything back and fails while files are open, and after the limit
//! by force, which ends every call with ECONNABORTED and takes the mount out of the tree. System calls that may wait
//! are made on threads of their own, because the kernel may wait for this filesystem in them.

use std::ffi::CString;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType};
use tokio::sync::oneshot;

use crate::device::IO_BYTES_MAX;
use crate::session::READAHEAD_BYTES_MAX;

/// What goes wrong at a mountpoint.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// No such directory.
    #[error("mountpoint \"{path}\": {source}; make the directory first")]
    Mountpoint {
        /// As given.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// Not a directory.
    #[error("mountpoint \"{0}\" is not a directory")]
    NotADirectory(String),
    /// One mount hides another.
    #[error("\"{path}\" already has \"{source_name}\" mounted on it; unmount it first: nacre umount {path}")]
    Busy {
        /// Where.
        path: String,
        /// What is there.
        source_name: String,
    },
    /// Whatever is there hangs.
    #[error("mountpoint \"{0}\" does not answer; look at what is mounted there or above it")]
    Silent(String),
    /// No FUSE.
    #[error("/dev/fuse: {0}; load the fuse module (modprobe fuse), or in a container pass the device in")]
    Device(io::Error),
    /// mount(2) failed.
    #[error("mounting \"{source_name}\" on \"{path}\": {error}")]
    Mount {
        /// What.
        source_name: String,
        /// Where.
        path: String,
        /// Why.
        error: io::Error,
    },
    /// Not root, and no helper.
    #[error("only root can mount without fusermount3, and fusermount3 {0}; install fuse3 or run as root")]
    Fusermount(String),
    /// The kernel did not greet.
    #[error("the kernel's FUSE does not answer on \"{0}\" ({1}); see the log")]
    Session(String, String),
}

/// How to mount.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// A directory.
    pub mountpoint: PathBuf,
    /// First column of `mount`: `NID:/fsname`.
    pub source: String,
    /// No changes through this mount.
    pub read_only: bool,
    /// Other users than the one who mounts. On for root; for others it needs `user_allow_other` in /etc/fuse.conf.
    pub allow_other: bool,
    /// Refuse devices, and setuid bits (always so for users).
    pub nodev: bool,
    /// See `nodev`.
    pub nosuid: bool,
    /// Refuse execution.
    pub noexec: bool,
}

impl MountOptions {
    /// As root mounts.
    pub fn new(source: impl Into<String>, mountpoint: impl Into<PathBuf>) -> MountOptions {
        MountOptions {
            mountpoint: mountpoint.into(),
            source: source.into(),
            read_only: false,
            allow_other: rustix::process::geteuid().is_root(),
            nodev: false,
            nosuid: false,
            noexec: false,
        }
    }
}

/// Checks the mountpoint and mounts. Gives the device, which answers nothing yet, and the mountpoint's full path. A dead
/// mount of ours on it (its process was killed) is taken away first.
pub(crate) async fn mount(options: &MountOptions) -> Result<(OwnedFd, PathBuf), MountError> {
    let silent = || MountError::Silent(options.mountpoint.display().to_string());
    let mounting = on_thread({
        let options = options.clone();
        move || mount_here(&options)
    })
    .map_err(MountError::Device)?;
    match tokio::time::timeout(SILENCE_MAX, mounting).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) | Err(_) => Err(silent()),
    }
}

fn mount_here(options: &MountOptions) -> Result<(OwnedFd, PathBuf), MountError> {
    let given = options.mountpoint.display().to_string();
    let path =
        full_path(&options.mountpoint).map_err(|source| MountError::Mountpoint { path: given.clone(), source })?;
    if let Some(found) = mounts().into_iter().rfind(|found| found.path == path && found.fstype == FSTYPE) {
        match rustix::fs::statfs(&path) {
            Err(Errno::NOTCONN | Errno::CONNABORTED) => {
                tracing::info!(path = given, "taking away a mount whose process is gone");
                detach(&path).map_err(|error| MountError::Mountpoint { path: given.clone(), source: error })?;
            }
            _ => return Err(MountError::Busy { path: given, source_name: found.source }),
        }
    }
    match std::fs::metadata(&path) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => return Err(MountError::NotADirectory(given)),
        Err(source) => return Err(MountError::Mountpoint { path: given, source }),
    }
    let device = if rustix::process::geteuid().is_root() {
        mount_as_root(options, &path)?
    } else {
        mount_as_user(options, &path)?
    };
    rustix::fs::fcntl_setfl(&device, OFlags::RDWR | OFlags::NONBLOCK)
        .map_err(|errno| MountError::Device(errno.into()))?;
    Ok((device, path))
}

fn mount_as_root(options: &MountOptions, path: &Path) -> Result<OwnedFd, MountError> {
    let failed =
        |error| MountError::Mount { source_name: options.source.clone(), path: path.display().to_string(), error };
    let device = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())
        .map_err(|errno| MountError::Device(errno.into()))?;
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let mut data = format!(
        "fd={},rootmode=40000,user_id={uid},group_id={gid},default_permissions,max_read={IO_BYTES_MAX}",
        device.as_raw_fd()
    );
    if options.allow_other {
        data.push_str(",allow_other");
    }
    let data = CString::new(data).map_err(|error| failed(error.into()))?;
    let mut flags = MountFlags::empty();
    flags.set(MountFlags::RDONLY, options.read_only);
    flags.set(MountFlags::NODEV, options.nodev);
    flags.set(MountFlags::NOSUID, options.nosuid);
    flags.set(MountFlags::NOEXEC, options.noexec);
    rustix::mount::mount(&options.source, path, FSTYPE, flags, Some(&*data)).map_err(|errno| failed(errno.into()))?;
    Ok(device)
}

fn mount_as_user(options: &MountOptions, path: &Path) -> Result<OwnedFd, MountError> {
    let wrong = |what: String| MountError::Fusermount(what);
    let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(|errno| wrong(format!("cannot be talked to ({errno})")))?;
    // A comma or backslash in a value ends it for fusermount3's parser.
    let source = options.source.replace('\\', "\\\\").replace(',', "\\,");
    let mut settings = format!("default_permissions,subtype=nacre,fsname={source},max_read={IO_BYTES_MAX}");
    for (on, word) in [(options.read_only, ",ro"), (options.allow_other, ",allow_other"), (options.noexec, ",noexec")] {
        settings.push_str(if on { word } else { "" });
    }
    // The socket is its standard input: nothing has to survive exec by number.
    let child = Command::new("fusermount3")
        .args(["-o", &settings, "--"])
        .arg(path)
        .env("_FUSE_COMMFD", "0")
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => wrong("is not installed".into()),
            _ => wrong(format!("did not start ({error})")),
        })?;
    let device = receive_descriptor(&ours);
    let output = child.wait_with_output().map_err(|error| wrong(format!("was lost ({error})")))?;
    match device {
        Ok(Some(device)) if output.status.success() => Ok(device),
        _ => Err(wrong(format!("failed: {}", String::from_utf8_lossy(&output.stderr).trim()))),
    }
}

fn receive_descriptor(socket: impl AsFd) -> Result<Option<OwnedFd>, Errno> {
    let mut byte = [0u8; 1];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut data = [IoSliceMut::new(&mut byte)];
    rustix::net::recvmsg(socket, &mut data, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    Ok(control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    }))
}

/// Lets the kernel read ahead as far as one request to the client is worth; without the right to, its default stays.
pub(crate) fn raise_readahead(path: &Path) {
    // The device number of a mount is known without asking the filesystem only from mountinfo.
    let Some(found) = mounts().into_iter().rfind(|found| found.path == path && found.fstype == FSTYPE) else { return };
    let file = format!("/sys/class/bdi/{}/read_ahead_kb", found.device);
    if let Err(error) = std::fs::write(&file, (READAHEAD_BYTES_MAX >> 10).to_string()) {
        tracing::debug!(file, %error, "read-ahead of the mount stays as it is");
    }
}

/// How one orderly try to unmount went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tried {
    /// Everything was written back and closed.
    Unmounted,
    /// Files are open or somebody works there; nothing has changed.
    Busy,
    /// The kernel was still writing back when the time was up; it stays mounted.
    Slow,
}

/// Unmounts as umount(8) does and never by force.
pub(crate) async fn try_unmount(path: &Path, limit: Duration) -> io::Result<Tried> {
    let deadline = tokio::time::Instant::now() + limit;
    let given_up = Arc::new(AtomicBool::new(false));
    let trying = on_thread({
        let (path, given_up) = (path.to_owned(), given_up.clone());
        move || {
            // First the long part, while there is a way back: umount(2) itself writes what is left with the mount gone.
            write_back(&path)?;
            // A process that has just ended may have its last file on the way to being closed.
            for _ in 0..BUSY_TRIES {
                if given_up.load(Ordering::SeqCst) {
                    return Ok(Tried::Slow);
                }
                match unmount_once(&path) {
                    Ok(()) => return Ok(Tried::Unmounted),
                    Err(error) if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => {}
                    // Not mounted any more: somebody else did it.
                    Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                        return Ok(Tried::Unmounted);
                    }
                    Err(error) => return Err(error),
                }
                std::thread::sleep(BUSY_PAUSE);
            }
            Ok(Tried::Busy)
        }
    })?;
    match tokio::time::timeout_at(deadline, trying).await {
        Ok(Ok(tried)) => tried,
        Ok(Err(_)) => Err(io::Error::other("the thread that unmounts ended")),
        Err(_) => {
            given_up.store(true, Ordering::SeqCst);
            Ok(Tried::Slow)
        }
    }
}

fn write_back(path: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        // What cannot be written is told by its own file's fsync and close.
        Ok(dir) => Ok(rustix::fs::syncfs(dir)?),
        // Gone or aborted: umount(2) will say.
        Err(_) => Ok(()),
    }
}

/// Unmounts within `limit`, by force if it must. `Ok(true)`: everything was written back and closed before.
pub(crate) async fn unmount(path: &Path, limit: Duration) -> io::Result<bool> {
    let deadline = tokio::time::Instant::now() + limit;
    loop {
        let clean = on_thread({
            let path = path.to_owned();
            move || unmount_once(&path)
        })?;
        match tokio::time::timeout_at(deadline, clean).await {
            Ok(Ok(Ok(()))) => return Ok(true),
            // Not mounted any more: somebody else did it.
            Ok(Ok(Err(error))) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => return Ok(true),
            Ok(Ok(Err(error))) if error.raw_os_error() != Some(Errno::BUSY.raw_os_error()) => {
                tracing::warn!(path = %path.display(), %error, "umount failed, trying by force");
                break;
            }
            Ok(Ok(Err(_busy))) if tokio::time::Instant::now() + BUSY_PAUSE < deadline => {
                tokio::time::sleep(BUSY_PAUSE).await;
            }
            // Still busy or still writing back, and the time is up.
            Ok(Ok(Err(_)) | Err(_)) | Err(_) => break,
        }
    }
    let forced = on_thread({
        let path = path.to_owned();
        move || detach(&path)
    })?;
    match forced.await {
        Ok(result) => result.map(|()| false),
        Err(_) => Err(io::Error::other("the thread that unmounts ended")),
    }
}

fn unmount_once(path: &Path) -> io::Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(rustix::mount::unmount(path, UnmountFlags::NOFOLLOW)?);
    }
    fusermount_unmount(path, &[])
}

/// Ends every call on it and takes it out of the tree, open files or not.
pub(crate) fn detach(path: &Path) -> io::Result<()> {
    if rustix::process::geteuid().is_root() {
        let flags = UnmountFlags::FORCE | UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        return match rustix::mount::unmount(path, flags) {
            Err(Errno::INVAL | Errno::NOENT) | Ok(()) => Ok(()),
            Err(errno) => Err(errno.into()),
        };
    }
    fusermount_unmount(path, &["-z"])
}

fn fusermount_unmount(path: &Path, more: &[&str]) -> io::Result<()> {
    let output = Command::new("fusermount3").arg("-u").args(more).arg("--").arg(path).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    match text.contains("busy") {
        true => Err(Errno::BUSY.into()),
        false => Err(io::Error::other(text.trim().to_owned())),
    }
}

fn on_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<oneshot::Receiver<T>> {
    let (done, receiver) = oneshot::channel();
    std::thread::Builder::new().name("nacre-umount".into()).spawn(move || {
        // Nobody waits any more: it was done by force meanwhile.
        let _ = done.send(work());
    })?;
    Ok(receiver)
}

/// Like canonicalize, but not stopped by a dead mount at the end.
fn full_path(path: &Path) -> io::Result<PathBuf> {
    match std::fs::canonicalize(path) {
        Ok(full) => Ok(full),
        Err(error) => {
            let dead = matches!(Errno::from_io_error(&error), Some(Errno::NOTCONN | Errno::CONNABORTED));
            let (Some(parent), Some(name), true) = (path.parent(), path.file_name(), dead) else { return Err(error) };
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            Ok(std::fs::canonicalize(parent)?.join(name))
        }
    }
}

/// A line of /proc/self/mountinfo.
#[derive(Debug, PartialEq, Eq)]
struct MountLine {
    device: String,
    path: PathBuf,
    fstype: String,
    source: String,
}

fn mounts() -> Vec<MountLine> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    text.lines().filter_map(MountLine::parse).collect()
}

impl MountLine {
    /// proc_pid_mountinfo(5).
    fn parse(line: &str) -> Option<MountLine> {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ');
        let (device, path) = (left.nth(2)?, left.nth(1)?);
        let mut right = right.split(' ');
        let (fstype, source) = (right.next()?, right.next()?);
        Some(MountLine {
            device: device.to_owned(),
            path: PathBuf::from(unescape(path)),
            fstype: fstype.to_owned(),
            source: unescape(source),
        })
    }
}

/// Spaces and such are octal there.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let digits = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if first == b'\\' => {
                bytes.push(byte);
                rest = &after[3..];
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

const FSTYPE: &str = "fuse.nacre";
const BUSY_PAUSE: Duration = Duration::from_millis(100);
/// Tries of an orderly unmount before it counts as busy.
const BUSY_TRIES: u32 = 5;
/// Looking at a mountpoint takes no longer, unless another filesystem hangs.
const SILENCE_MAX: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_mountinfo() {
        let line = r"36 35 98:0 /mnt1 /mnt\040two rw,noatime master:1 - fuse.nacre 127.0.0.1@tcp:/nacre rw,user_id=0";
        let found = MountLine::parse(line).unwrap();
        assert_eq!(found.path, Path::new("/mnt two"));
        assert_eq!((&*found.device, &*found.source), ("98:0", "127.0.0.1@tcp:/nacre"));
        assert_eq!(unescape(r"a\134b\0"), r"a\b\0");
        assert!(!mounts().is_empty());
    }

    #[test]
    fn refuses_what_is_no_directory() {
        let missing = mount_here(&MountOptions::new("n:/f", "/nonexistent/dir")).unwrap_err();
        assert!(missing.to_string().contains("make the directory first"), "{missing}");
        let file = mount_here(&MountOptions::new("n:/f", "/proc/self/status")).unwrap_err();
        assert!(file.to_string().contains("not a directory"), "{file}");
    }
}
