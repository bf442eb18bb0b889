//! The mount: FUSE requests in, calls of [`FileSystem`](nacre_client::FileSystem) out. Translates, holds no policy.
//!
//! ```text
//! application ─syscall─► kernel ─/dev/fuse─► session ─► request ─► ops, dirs, control ─► FileSystem
//!                          ▲                                                               │
//!                          └── notify (threads) ◄── KernelCache ◄──────────────────────────┘
//! ```
//!
//! Everything but the notifications and (un)mounting happens on the thread of the reactor that calls [`mount`]. The FUSE
//! protocol is spoken directly ([`abi`]): the kernel's interrupts, the kind of a file lock, epochs of names and the
//! clearing of setuid bits have to come through.

#![forbid(unsafe_code)]

pub mod abi;
mod control;
mod device;
mod dirs;
mod gate;
mod mount;
mod notify;
mod ops;
mod request;
mod session;
mod signal;

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nacre_client::FileSystem;
use tokio::sync::{Notify, watch};

pub use control::Parameters;
pub use mount::{MountError, MountOptions, Tried};
pub use notify::KernelNotifier;
pub use session::End;

use control::Control;
use device::Device;
use session::{Session, State};

/// Mounts `fs` and serves it on this thread's `LocalSet` until it is unmounted. Complete when the kernel has greeted:
/// from then on the mountpoint can be used.
///
/// # Errors
/// See [`MountError`]; nothing is mounted then.
pub async fn mount<F: FileSystem + 'static>(
    options: &MountOptions,
    fs: Rc<F>,
    kernel: &KernelNotifier,
    parameters: Option<Rc<dyn Parameters>>,
) -> Result<Mounted, MountError> {
    let (device, path) = mount::mount(options).await?;
    let device = Arc::new(Device::new(device));
    kernel.attach(fs.root(), device.clone());
    let control = Control {
        source: options.source.clone(),
        mountpoint: path.display().to_string(),
        read_only: options.read_only,
        parameters,
    };
    let session = Session::new(device, fs, kernel.clone(), control);
    let mut state = session.watch();
    let stop = Rc::new(Notify::new());
    tokio::task::spawn_local(session.run(stop.clone()));
    let mut mounted = Mounted { path, state: state.clone(), stop, gone: false };
    let greeted = tokio::time::timeout(GREETING_MAX, state.wait_for(|state| *state != State::Starting)).await;
    let why = match greeted {
        Ok(Ok(state)) if *state == State::Serving => None,
        Ok(Ok(state)) => Some(format!("{:?}", *state)),
        Ok(Err(_)) => Some("the session ended".into()),
        Err(_) => Some(format!("no greeting within {GREETING_MAX:?}")),
    };
    if let Some(why) = why {
        mounted.force();
        return Err(MountError::Session(mounted.path.display().to_string(), why));
    }
    mount::raise_readahead(&mounted.path);
    Ok(mounted)
}

/// A mount. Dropping it unmounts by force: calls in flight fail. [`Mounted::unmount`] is the way to leave.
#[must_use = "dropping it unmounts"]
pub struct Mounted {
    path: PathBuf,
    state: watch::Receiver<State>,
    stop: Rc<Notify>,
    gone: bool,
}

impl Mounted {
    /// The mountpoint, absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Completes when the mount is gone, whoever unmounted it.
    pub async fn ended(&self) -> End {
        let mut state = self.state.clone();
        let ended = state.wait_for(|state| matches!(state, State::Ended(_))).await.map(|state| *state);
        match ended {
            Ok(State::Ended(end)) => end,
            // The session's task went with its reactor.
            _ => End::Failed(0),
        }
    }

    /// Unmounts cleanly or not at all: unless the answer is [`Tried::Unmounted`], the mount goes on as before.
    ///
    /// # Errors
    /// What umount(2) says, save that it is busy.
    pub async fn try_unmount(&self, limit: Duration) -> std::io::Result<Tried> {
        mount::try_unmount(&self.path, limit).await
    }

    /// Unmounts: cleanly as soon as nothing is open any more, and after `limit` by force, when calls that are waiting
    /// fail with ECONNABORTED. True: cleanly.
    ///
    /// # Errors
    /// Not even by force. The device is closed all the same: calls fail, and the name is left to umount(8).
    pub async fn unmount(mut self, limit: Duration) -> std::io::Result<bool> {
        let unmounted = mount::unmount(&self.path, limit).await;
        self.gone = true;
        if !matches!(unmounted, Ok(true)) {
            // Not everybody may abort a mount; closing the device does.
            self.stop.notify_one();
        }
        // A clean unmount is over when umount(2) returns, and the device says so at once.
        if tokio::time::timeout(GREETING_MAX, self.ended()).await.is_err() {
            self.stop.notify_one();
        }
        unmounted
    }

    fn force(&mut self) {
        let ended = matches!(*self.state.borrow(), State::Ended(End::Unmounted));
        if !self.gone
            && !ended
            && let Err(error) = mount::detach(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot unmount");
        }
        self.gone = true;
        self.stop.notify_one();
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.force();
    }
}

/// The default limit of `umount -f`.
pub const UNMOUNT_LIMIT: Duration = Duration::from_secs(30);
/// The kernel sends INIT as soon as it has mounted.
const GREETING_MAX: Duration = Duration::from_secs(10);
