//! `nacre umount [-f] DIR`: asks the mount's process to write everything back and end, and waits for it, for a bounded time.
//! What cannot be unmounted so (busy, servers away) stays mounted and working; only `-f` ends it all the same.
//! Where no process answers (it was killed), only the kernel's half is left: it is detached and its connection aborted.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;
use serde_json::json;

use crate::cli::Umount;
use crate::jsonrpc::{self, CallFailed};
use crate::mountinfo::{MountPoint, mount_at, nacre_mounts};
use crate::output::{Context, Error, Result};

/// Time beyond the limit for the answer to arrive and the mount to go.
const MARGIN: Duration = Duration::from_secs(5);

pub fn run(arguments: &Umount) -> Result<ExitCode> {
    let mount = mount_at(&arguments.dir)?;
    let limit = Duration::from_secs(arguments.timeout);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let start = Instant::now();
    let params = json!({"force": arguments.force, "timeout_seconds": arguments.timeout});
    let socket = mount.socket();
    let asked = runtime.block_on(async {
        let call = jsonrpc::call(&socket, "nacre_unmount", params);
        tokio::time::timeout(limit + MARGIN, call).await
    });
    match asked {
        Ok(Ok(answer)) => {
            gone(&mount, limit.saturating_sub(start.elapsed()) + MARGIN)?;
            // What could not be written is told, with status 1, though the mount is gone.
            match answer["lost"].as_str() {
                Some(lost) => Err(Error::new(format!("{}: unmounted, but {lost}", arguments.dir.display()))),
                None => Ok(ExitCode::SUCCESS),
            }
        }
        // The process ended before its answer arrived: the mount went with it.
        Ok(Err(CallFailed::Broken { .. })) if gone(&mount, MARGIN).is_ok() => Ok(ExitCode::SUCCESS),
        Ok(Err(CallFailed::Method(error))) => Err(Error::new(format!("{}: {error}", arguments.dir.display()))),
        Ok(Err(CallFailed::Connect { .. } | CallFailed::Broken { .. })) => {
            tear_down(&mount)?;
            // Left by a process that was killed; mostly it is not even there.
            if let Err(error) = std::fs::remove_file(&socket) {
                tracing::debug!("{}: {error}", socket.display());
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(_) if arguments.force => {
            tear_down(&mount)?;
            Err(Error::new(format!("{}: the mount's process did not end in time; detached", arguments.dir.display())))
        }
        Err(_) => Err(Error::new(format!(
            "{}: the mount's process did not answer within {} s; -f ends it",
            arguments.dir.display(),
            arguments.timeout
        ))),
    }
}

fn gone(mount: &MountPoint, limit: Duration) -> Result<()> {
    let start = Instant::now();
    while nacre_mounts()?.contains(mount) {
        if start.elapsed() > limit {
            return Err(Error::new(format!("{}: still mounted", mount.dir.display())));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// The kernel's half only: nothing may hang on it afterwards.
fn tear_down(mount: &MountPoint) -> Result<()> {
    let abort = Path::new("/sys/fs/fuse/connections").join(mount.connection()).join("abort");
    // fusectl may not be mounted; detaching then has to do.
    if let Err(error) = std::fs::write(&abort, "1") {
        tracing::debug!("{}: {error}", abort.display());
    }
    rustix::mount::unmount(&mount.dir, UnmountFlags::DETACH | UnmountFlags::FORCE)
        .context(format!("{}: cannot be unmounted", mount.dir.display()))
}
