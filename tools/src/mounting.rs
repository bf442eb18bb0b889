//! A mount in this process: the client and llite on one reactor, and a control socket beside it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use nacre_client::{Client, MountSpec};
use nacre_llite::{KernelNotifier, Tried};
use nacre_reactor::{Env, Options, ReactorHandle, run_on_this_thread};
use nacre_transport::tcp::{TcpConnector, TcpOptions};
use nacre_wire::Status;
use nacre_wire::map::{TargetKind, target_label};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::config::{MethodError, typed};
use crate::jsonrpc::{self, Handler};
use crate::mountinfo::mount_at;
use crate::output::{Context, Error, Result};
use crate::source::Source;

/// What `-o` said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountOptions {
    pub read_only: bool,
    /// `nodev`, `nosuid`, `noexec`; what concerns access times is always `noatime` here.
    pub kernel: Vec<String>,
}

/// What remains to be said of a mount that was not unmounted.
const STAYS: &str = "it stays mounted; -f ends it and gives up what is not written";
/// Least time for the kernel's part of an orderly unmount.
const TRY_MIN: Duration = Duration::from_secs(2);
/// Longest that a mount process takes to end when told to by a signal.
const UNMOUNT_LIMIT: Duration = Duration::from_secs(30);

/// A mount that serves; the client and FUSE run on the reactor it was started on.
pub struct Local {
    client: Rc<Client>,
    mounted: nacre_llite::Mounted,
}

impl Local {
    /// Mounts on this reactor.
    pub async fn start(name: &str, source: &Source, dir: &Path, options: &MountOptions) -> Result<Local> {
        let env = Env::system();
        let kernel = KernelNotifier::new();
        let connector = Rc::new(TcpConnector::new(TcpOptions::new(&env)));
        let spec = MountSpec {
            subdir: (!source.subdir.is_empty()).then(|| source.subdir.clone().into_bytes()),
            client_name: client_name(),
            ..MountSpec::new(source.mgs_nids.clone(), &source.fsname)
        };
        let client = Client::mount(env, connector, spec, Rc::new(kernel.clone())).await?;
        let has = |word: &str| options.kernel.iter().any(|option| option == word);
        let mut fuse = nacre_llite::MountOptions::new(name, dir);
        fuse.read_only = options.read_only;
        fuse.nodev |= has("nodev");
        fuse.nosuid |= has("nosuid");
        fuse.noexec |= has("noexec");
        let parameters = Rc::new(Parameters(Rc::clone(&client)));
        match nacre_llite::mount(&fuse, Rc::clone(&client), &kernel, Some(parameters)).await {
            Ok(mounted) => Ok(Local { client, mounted }),
            Err(error) => {
                client.unmount(true, Duration::from_secs(1)).await;
                Err(error.into())
            }
        }
    }

    /// Completes when it was unmounted from outside.
    pub async fn ended(&self) {
        self.mounted.ended().await;
    }

    /// Leaves the kernel, if that can be done in an orderly way within `limit`; [`Local::unmount`] does the rest. Otherwise
    /// the mount goes on as before. In words, why.
    async fn leave(&self, limit: Duration) -> Result<(), String> {
        let deadline = Instant::now() + limit;
        let away = self.client.settle(limit).await;
        if !away.is_empty() {
            let away: Vec<_> = away.into_iter().map(|peer| format!("{} ({})", peer.label, peer.trouble)).collect();
            let dirty = self.client.dirty_bytes();
            return Err(format!("servers do not answer: {}; {dirty} bytes are not written; {STAYS}", away.join(", ")));
        }
        // A mount that has used up its time in settling still gets its one try.
        let rest = deadline.saturating_duration_since(Instant::now()).max(TRY_MIN);
        match self.mounted.try_unmount(rest).await {
            Ok(Tried::Unmounted) => Ok(()),
            Ok(Tried::Busy) => Err(format!("busy: files are open in it, or somebody works there; {STAYS}")),
            Ok(Tried::Slow) => Err(format!("busy: still writing after {} s; {STAYS}", limit.as_secs())),
            Err(error) => Err(format!("the kernel keeps it: {error}")),
        }
    }

    /// Writes back, leaves the kernel, says goodbye to the servers; all within about `limit`. In words, what was lost.
    pub async fn unmount(self, force: bool, limit: Duration) -> Result<(), String> {
        let mut troubles = Vec::new();
        // With force, calls that wait for a server that is away are failed first: then nothing is busy any more.
        let patience = if force { Duration::from_secs(2).min(limit) } else { limit };
        match self.mounted.unmount(patience).await {
            Ok(true) => {}
            Ok(false) if force => {}
            Ok(false) => troubles.push("it was busy, and calls under way were ended".to_owned()),
            Err(error) => troubles.push(format!("the kernel keeps it: {error}")),
        }
        let left = self.client.unmount(force, limit).await;
        if left.lost_bytes > 0 {
            let files: Vec<_> = left.lost_files.iter().map(ToString::to_string).collect();
            troubles.push(format!("{} bytes were not written, of files {}", left.lost_bytes, files.join(" ")));
        }
        if troubles.is_empty() { Ok(()) } else { Err(troubles.join("; ")) }
    }
}

fn client_name() -> String {
    let host = rustix::system::uname();
    format!("{}:{}", host.nodename().to_string_lossy(), std::process::id())
}

/// The client's parameters, for the virtual attributes `nacre.param.*` and for `lctl`.
struct Parameters(Rc<Client>);

impl nacre_llite::Parameters for Parameters {
    fn info(&self) -> Value {
        json!({"fsname": self.0.fsname(), "map_epoch": self.0.cluster_map().epoch, "dirty_bytes": self.0.dirty_bytes()})
    }

    fn get(&self, name: &str) -> Result<String, Status> {
        self.0.params.get(name).map(|value| value.to_string()).map_err(|_| Status::ENODATA)
    }

    fn set(&self, name: &str, value: &str) -> Result<(), Status> {
        self.get(name)?;
        self.0.params.set(name, value).map_err(|_| Status::EINVAL)
    }
}

/// A mount on another reactor of this process.
pub struct Mounted {
    stop: oneshot::Sender<UnmountRequest>,
    ended: watch::Receiver<bool>,
}

impl Mounted {
    /// Mounts on `reactor`.
    pub async fn start(
        reactor: &ReactorHandle,
        name: &str,
        source: &Source,
        dir: &Path,
        options: &MountOptions,
    ) -> Result<Mounted> {
        let (stop, mut stopped) = oneshot::channel::<UnmountRequest>();
        let (end, ended) = watch::channel(false);
        let (name, source, dir, options) = (name.to_owned(), source.clone(), dir.to_owned(), options.clone());
        let started = reactor.spawn(move || async move {
            let local = Local::start(&name, &source, &dir, &options).await?;
            let control = serve_control(&local, &dir).await?;
            tokio::task::spawn_local(async move {
                let _control = control;
                let asked = tokio::select! {
                    biased;
                    asked = &mut stopped => asked.ok(),
                    () = local.ended() => {
                        // Unmounted from outside: what is dirty can still be written, and its owner may still ask.
                        end.send_replace(true);
                        stopped.await.ok()
                    }
                };
                if let Some(UnmountRequest { force, limit, done }) = asked {
                    let result = local.unmount(force, limit).await;
                    // Whoever asked may have stopped waiting.
                    let _ = done.send(result.map_err(NotUnmounted::Lost));
                }
            });
            Ok::<_, Error>(())
        });
        started.await??;
        Ok(Mounted { stop, ended })
    }

    /// Completes when it was unmounted from outside.
    pub async fn ended(&self) {
        let mut ended = self.ended.clone();
        // Its task gone is an end as well.
        let _ = ended.wait_for(|ended| *ended).await;
    }

    /// See [`Local::unmount`].
    pub async fn unmount(self, force: bool, limit: Duration) -> Result<()> {
        let (done, result) = oneshot::channel();
        if self.stop.send(UnmountRequest { force, limit, done }).is_err() {
            return Err(Error::new("the mount's task has ended by itself"));
        }
        match result.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(why)) => Err(Error::new(why.to_string())),
            Err(_) => Err(Error::new("the mount's task has ended before it was done")),
        }
    }
}

/// The process behind `nacre mount`: serves until it is unmounted, from outside, by `nacre umount` or by a signal.
pub fn serve(name: &str, source: &Source, dir: &Path, options: &MountOptions) -> Result<ExitCode> {
    if std::env::var_os("NACRE_DETACH").is_some() {
        // Away from the terminal that started it: its Ctrl-C is not meant for the mount.
        rustix::process::setsid()?;
    }
    let reactor = Options { name: "client".to_owned(), ..Options::default() };
    run_on_this_thread(&reactor, async {
        let mut stop = crate::signals::Stop::new()?;
        let local = Local::start(name, source, dir, options).await?;
        let (requests, mut asked) = unbounded_channel();
        let handler = MountHandler { client: Rc::clone(&local.client), unmount: Some(requests) };
        let server = bind_control(dir).await?;
        let control = tokio::task::spawn_local(async move { server.run(Rc::new(handler)).await });
        println!("ready {}", dir.display());
        let (force, limit, done) = match until_ended(&local, &mut asked, &mut stop).await {
            Some(UnmountRequest { force, limit, done }) => (force, limit, Some(done)),
            None => (false, UNMOUNT_LIMIT, None),
        };
        let result = local.unmount(force, limit).await;
        if let Err(lost) = &result {
            tracing::error!("{}: {lost}", dir.display());
        }
        if let Some(done) = done {
            let _ = done.send(result.clone().map_err(NotUnmounted::Lost));
            // The answer has to leave through the control socket before this process ends.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        control.abort();
        // The socket's file goes with the task, when it is next run.
        tokio::task::yield_now().await;
        Ok(if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    })?
}

/// Serves until the mount is to end, or has ended: by request, by a signal or from outside. Only signals and `-f` may force:
/// a polite request that cannot be met is answered here and the mount goes on.
async fn until_ended(
    local: &Local,
    asked: &mut UnboundedReceiver<UnmountRequest>,
    stop: &mut crate::signals::Stop,
) -> Option<UnmountRequest> {
    let mut leaving: Option<(LocalBoxFuture<'_, Result<(), String>>, UnmountRequest)> = None;
    loop {
        let trying = async {
            match &mut leaving {
                Some((trying, _)) => trying.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            request = asked.recv() => match request {
                Some(request) if !request.force && leaving.is_some() => {
                    // Who asked may have stopped waiting, here and below.
                    let _ = request.done.send(Err(NotUnmounted::Refused("it is being unmounted already".to_owned())));
                }
                Some(request) if !request.force => leaving = Some((Box::pin(local.leave(request.limit)), request)),
                request => return request,
            },
            name = stop.requested() => {
                tracing::info!("{name}: unmounting");
                return None;
            }
            left = trying => {
                let request = leaving.take().map(|(_, request)| request)?;
                match left {
                    Ok(()) => return Some(request),
                    Err(why) => drop(request.done.send(Err(NotUnmounted::Refused(why)))),
                }
            }
            () = local.ended() => return leaving.map(|(_, request)| request),
        }
    }
}

/// A control socket without `nacre_unmount`, for a mount inside quickstart. Aborted when dropped.
async fn serve_control(local: &Local, dir: &Path) -> Result<AbortOnDrop> {
    let handler = MountHandler { client: Rc::clone(&local.client), unmount: None };
    let server = bind_control(dir).await?;
    Ok(AbortOnDrop(tokio::task::spawn_local(async move { server.run(Rc::new(handler)).await })))
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The socket is named after the mount's device number, which the kernel gives to the next mount as soon as one is gone:
/// the process of the one before may still be on its way out.
async fn bind_control(dir: &Path) -> Result<jsonrpc::Server> {
    let dir: PathBuf = dir.to_owned();
    // Reading mountinfo does not touch the mount, but it is I/O: not on the reactor that serves it.
    let socket = tokio::task::spawn_blocking(move || mount_at(&dir).map(|mount| mount.socket())).await??;
    let deadline = tokio::time::Instant::now() + UNMOUNT_LIMIT;
    loop {
        match jsonrpc::Server::bind(&socket).await {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            bound => return bound.context(format!("control socket {}", socket.display())),
        }
    }
}

struct UnmountRequest {
    force: bool,
    limit: Duration,
    done: oneshot::Sender<Result<(), NotUnmounted>>,
}

/// Why an unmount did not go well, in words.
#[derive(Debug, thiserror::Error)]
enum NotUnmounted {
    /// Still mounted.
    #[error("{0}")]
    Refused(String),
    /// Unmounted, and something was lost.
    #[error("unmounted, but {0}")]
    Lost(String),
}

struct MountHandler {
    client: Rc<Client>,
    unmount: Option<UnboundedSender<UnmountRequest>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unmount {
    force: bool,
    timeout_seconds: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SetParam {
    name: String,
    value: Option<String>,
    permanent: bool,
}

impl Handler for MountHandler {
    fn call(&self, method: String, params: Value) -> LocalBoxFuture<'_, Result<Value, MethodError>> {
        Box::pin(async move {
            match method.as_str() {
                "nacre_unmount" => self.unmount(typed(&method, params)?).await,
                "nacre_get_devices" => Ok(self.devices()),
                "nacre_get_params" => Ok(self.params()),
                "nacre_set_param" => self.set_param(typed(&method, params)?).await,
                "nacre_get_stats" => Ok(
                    json!({"client": self.client.stats.list().into_iter().collect::<std::collections::BTreeMap<_, _>>()}),
                ),
                "nacre_df" => Ok(self.df().await),
                "rpc_get_methods" => Ok(json!([
                    "rpc_get_methods",
                    "nacre_unmount",
                    "nacre_get_devices",
                    "nacre_get_params",
                    "nacre_set_param",
                    "nacre_get_stats",
                    "nacre_df",
                ])),
                _ => Err(MethodError::unknown(&method)),
            }
        })
    }
}

impl MountHandler {
    async fn unmount(&self, request: Unmount) -> Result<Value, MethodError> {
        let Some(requests) = &self.unmount else {
            return Err(MethodError::state("this mount belongs to a quickstart; end that with Ctrl-C"));
        };
        let (done, result) = oneshot::channel();
        let limit = Duration::from_secs(request.timeout_seconds);
        let stopping = || MethodError::state("it is being unmounted already");
        requests.send(UnmountRequest { force: request.force, limit, done }).map_err(|_| stopping())?;
        match result.await.map_err(|_| stopping())? {
            Ok(()) => Ok(json!({})),
            Err(NotUnmounted::Lost(lost)) => Ok(json!({"lost": lost})),
            Err(NotUnmounted::Refused(why)) => Err(MethodError::state(why)),
        }
    }

    fn devices(&self) -> Value {
        let uuid = self.client.client_uuid().to_string();
        let device = |peer: nacre_client::PeerStatus| {
            let kind = match () {
                () if peer.label.contains("-OST") => "osc",
                () if peer.label.contains("-MDT") => "mdc",
                () => "mgc",
            };
            json!({"state": format!("{:?}", peer.state).to_uppercase(), "kind": kind, "label": peer.label, "uuid": uuid})
        };
        self.client.peers().into_iter().map(device).collect()
    }

    fn prefix(&self) -> String {
        format!("client.{}.", self.client.fsname())
    }

    fn params(&self) -> Value {
        let prefix = self.prefix();
        let value = |name: &str| self.client.params.get(name).map_or(Value::Null, |value| json!(value.to_string()));
        nacre_client::PARAMS.iter().map(|info| (format!("{prefix}{}", info.name), value(info.name))).collect()
    }

    async fn set_param(&self, set: SetParam) -> Result<Value, MethodError> {
        if set.permanent {
            // The server that runs beside the MGS does that; a mount has no say over the filesystem.
            return Ok(json!(0));
        }
        let Some(name) = set.name.strip_prefix(&self.prefix()) else { return Ok(json!(0)) };
        let wrong = |why: String| MethodError::params("nacre_set_param", why);
        let value = set.value.ok_or_else(|| wrong("value: missing".to_owned()))?;
        self.client.params.set(name, &value).map_err(|error| wrong(error.to_string()))?;
        Ok(json!(1))
    }

    /// Space of every target, for `lfs df`.
    async fn df(&self) -> Value {
        let fsname = self.client.fsname();
        let mdt = self.client.mdt_statfs().await;
        let active = mdt.is_some();
        let mdt = mdt.unwrap_or_default();
        let mut targets = vec![json!({
            "label": target_label(fsname, TargetKind::Mdt, 0),
            "total_bytes": mdt.total_bytes, "free_bytes": mdt.free_bytes,
            "inodes": mdt.inodes + mdt.inodes_free, "inodes_free": mdt.inodes_free, "active": active,
        })];
        for (index, ost) in self.client.ost_statfs().await {
            let active = ost.is_some();
            let ost = ost.unwrap_or_default();
            targets.push(json!({
                "label": target_label(fsname, TargetKind::Ost, index),
                "total_bytes": ost.total_bytes, "free_bytes": ost.free_bytes,
                "inodes": ost.objects, "inodes_free": 0, "active": active,
            }));
        }
        Value::Array(targets)
    }
}
