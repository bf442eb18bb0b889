//! A whole cluster in this process, on files in one directory, mounted at `DIR/mnt`. `DIR/server.json` is its configuration: what
//! was made here can be started again, also by nacred.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use nacre_reactor::{Placement, Reactors};
use nacre_wire::Nid;
use serde_json::json;

use crate::cli::Mkfs;
use crate::cmd::mkfs;
use crate::config::Config;
use crate::jsonrpc;
use crate::mounting::{MountOptions, Mounted};
use crate::node::{Node, NodeHandler, SPIN};
use crate::output::{Context, Error, Result};
use crate::source::Source;

/// The filesystem's name.
pub const FSNAME: &str = "nacre";
/// Sizes of the files behind MGS and MDT.
const MGS_BYTES: u64 = 64 << 20;
const MDT_BYTES: u64 = 4 << 30;
/// Longest that writing back at the end may take.
const UNMOUNT_LIMIT: Duration = Duration::from_secs(30);

/// What to make.
pub struct Layout {
    pub osts: u16,
    pub ost_bytes: u64,
    /// On 127.0.0.1; 0: any that is free.
    pub port: u16,
}

/// A cluster that runs.
pub struct Cluster {
    node: Rc<Node>,
    mounted: Mounted,
    client: Reactors,
    mountpoint: PathBuf,
    control: Option<tokio::task::JoinHandle<()>>,
}

/// Whether a cluster was made in this directory.
pub fn exists(dir: &Path) -> bool {
    configuration(dir).exists()
}

fn configuration(dir: &Path) -> PathBuf {
    dir.join("server.json")
}

/// Formats the devices and writes the configuration; what is there is erased.
pub async fn format(dir: &Path, layout: &Layout) -> Result<()> {
    std::fs::create_dir_all(dir).context(dir.display())?;
    let port = match layout.port {
        // Free now; whoever takes it before we listen is told of in words.
        0 => std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port(),
        port => port,
    };
    let nid = Nid::tcp(([127, 0, 0, 1], port).into());
    let listener = json!({"trtype": "TCP", "traddr": "127.0.0.1", "trsvcid": port.to_string()});
    let mut bdevs = Vec::new();
    let mut targets = vec![json!({"method": "nacre_listener_create", "params": listener})];
    let osts = (0..layout.osts).map(|index| (format!("ost{index}"), "ost", Some(index), layout.ost_bytes));
    let all = [("mgs".to_owned(), "mgs", None, MGS_BYTES), ("mdt0".to_owned(), "mdt", Some(0), MDT_BYTES)];
    for (name, kind, index, size) in all.into_iter().chain(osts) {
        let device = dir.join(format!("{name}.img"));
        let arguments = Mkfs {
            mgs: kind == "mgs",
            mdt: kind == "mdt",
            ost: kind == "ost",
            fsname: Some(FSNAME.to_owned()),
            index,
            mgsnode: vec![nid],
            size: Some(size),
            // An earlier run that was cut short left files without a configuration; they hold nothing.
            reformat: true,
            dryrun: false,
            device: device.clone(),
        };
        mkfs::format(&arguments).await?;
        bdevs.push(json!({"method": "bdev_uring_create", "params": {"name": name, "filename": device}}));
        targets.push(json!({"method": format!("nacre_{kind}_create"), "params": {"bdev_name": name}}));
    }
    let config = json!({"subsystems": [
        {"subsystem": "bdev", "config": bdevs},
        {"subsystem": "nacre", "config": targets},
    ]});
    // In place by rename: the file says that formatting is complete.
    let (fresh, path) = (dir.join("server.json.new"), configuration(dir));
    std::fs::write(&fresh, serde_json::to_vec_pretty(&config)?).context(fresh.display())?;
    std::fs::rename(&fresh, &path).context(path.display())
}

/// The servers of a cluster, before anything is mounted.
pub struct Servers {
    node: Rc<Node>,
    nids: Vec<Nid>,
    control: Option<tokio::task::JoinHandle<()>>,
}

impl Servers {
    /// Starts what `dir` holds.
    pub async fn start(dir: &Path) -> Result<Servers> {
        let config = Config::read(&configuration(dir))?;
        let cores = std::thread::available_parallelism()?.get();
        let node = Rc::new(Node::new(&Placement::Anywhere(cores), SPIN)?);
        if let Err(error) = start_targets(&node, config).await {
            node.stop().await;
            return Err(error);
        }
        let nids = node.nids();
        // The socket serves lctl; the cluster works without it, so one in use is no reason to stop.
        let control = match jsonrpc::Server::bind(&dir.join("nacre.sock")).await {
            Ok(server) => {
                let handler = Rc::new(NodeHandler(Rc::clone(&node)));
                Some(tokio::task::spawn_local(async move { server.run(handler).await }))
            }
            Err(error) => {
                tracing::warn!("no control socket in {}: {error}", dir.display());
                None
            }
        };
        Ok(Servers { node, nids, control })
    }

    /// What clients mount.
    pub fn source(&self) -> String {
        let nids: Vec<_> = self.nids.iter().map(Nid::to_string).collect();
        format!("{}:/{FSNAME}", nids.join(":"))
    }

    /// How many targets run.
    pub fn target_count(&self) -> usize {
        self.node.target_count()
    }

    /// Mounts the cluster at `DIR/mnt`; without success the servers are stopped.
    pub async fn mount(self, dir: &Path) -> Result<Cluster> {
        match self.try_mount(dir).await {
            Ok((mounted, client, mountpoint)) => {
                let Servers { node, control, .. } = self;
                Ok(Cluster { node, mounted, client, mountpoint, control })
            }
            Err(error) => {
                self.node.stop().await;
                Err(error)
            }
        }
    }

    async fn try_mount(&self, dir: &Path) -> Result<(Mounted, Reactors, PathBuf)> {
        let mountpoint = dir.join("mnt");
        std::fs::create_dir_all(&mountpoint).context(mountpoint.display())?;
        let client = Reactors::start(&Placement::Anywhere(1), SPIN)?;
        let source = Source { mgs_nids: self.nids.clone(), fsname: FSNAME.to_owned(), subdir: String::new() };
        let options = MountOptions::default();
        let mounted = Mounted::start(&client.handles()[0], &self.source(), &source, &mountpoint, &options).await?;
        Ok((mounted, client, mountpoint))
    }
}

async fn start_targets(node: &Node, config: Config) -> Result<()> {
    for (method, call) in config.calls {
        node.create(method, call).await.map_err(|error| Error::new(error.message))?;
    }
    Ok(())
}

impl Cluster {
    /// Formats and starts a cluster in a directory.
    pub async fn start(dir: &Path, layout: &Layout) -> Result<Cluster> {
        format(dir, layout).await?;
        Servers::start(dir).await?.mount(dir).await
    }

    /// Where it is mounted.
    pub fn mountpoint(&self) -> PathBuf {
        self.mountpoint.clone()
    }

    /// Completes when it was unmounted from outside.
    pub async fn unmounted(&self) {
        self.mounted.ended().await;
    }

    /// Writes back, unmounts, stops the servers.
    pub async fn stop(self) -> Result<()> {
        let unmounted = self.mounted.unmount(false, UNMOUNT_LIMIT).await;
        // Its thread is joined: not on this reactor's own time.
        let client = self.client;
        tokio::task::spawn_blocking(move || client.join()).await?;
        if let Some(control) = self.control {
            control.abort();
            // Its socket's file goes with it.
            let _ = control.await;
        }
        self.node.stop().await;
        unmounted
    }
}
