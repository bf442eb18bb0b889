//! A cluster on loopback, run as users run it: mkfs.nacre, nacred, mount; each its own process.
#![allow(dead_code, reason = "every test file uses its own part")]

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

pub const NACRE: &str = env!("CARGO_BIN_EXE_nacre");

/// Longest any single step of a test may take before it counts as hung.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Whether this machine can mount. In CI it must; elsewhere the test says that it did not run.
pub fn can_mount() -> bool {
    if Path::new("/dev/fuse").exists() && rustix::process::geteuid().is_root() {
        return true;
    }
    missing("mounting needs /dev/fuse and root");
    false
}

/// Says loudly that a check did not run; in CI that is a failure.
pub fn missing(what: &str) {
    assert!(std::env::var_os("CI").is_none(), "NOT RUN: {what}");
    eprintln!("\n*** NOT RUN: {what} ***\n");
}

/// A program that tests run: from target/test-tools (`.ci/install` puts it there) or the PATH.
pub fn program(name: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let own = root.join("target/test-tools/bin").join(name);
    if own.exists() {
        return Some(own);
    }
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&paths).map(|dir| dir.join(name)).find(|path| path.exists());
    if found.is_none() {
        missing(&format!("{name} is not installed; .ci/install installs it"));
    }
    found
}

/// Runs to the end and gives the output; panics when it takes longer than [`PATIENCE`].
pub fn run(command: &mut Command) -> Output {
    run_within(command, PATIENCE)
}

pub fn run_within(command: &mut Command, limit: Duration) -> Output {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    let words = format!("{command:?}");
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    match receiver.recv_timeout(limit) {
        Ok(output) => output.unwrap(),
        Err(_) => {
            kill(pid);
            panic!("{words}: still running after {limit:?}");
        }
    }
}

/// Runs and panics with all it said unless it ends with 0.
pub fn run_ok(command: &mut Command) -> String {
    run_ok_within(command, PATIENCE)
}

pub fn run_ok_within(command: &mut Command, limit: Duration) -> String {
    let output = run_within(command, limit);
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, said(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// `nacre` with arguments.
pub fn nacre<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(NACRE);
    command.args(arguments);
    command
}

pub fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    // It may have ended by itself.
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

/// Waits for something to become true.
pub fn eventually(what: &str, limit: Duration, mut check: impl FnMut() -> bool) {
    let start = Instant::now();
    while !check() {
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A process that prints `ready …` when it serves. Killed when dropped.
pub struct Daemon {
    child: Child,
    pub log: PathBuf,
}

impl Daemon {
    pub fn start(command: &mut Command, log: &Path) -> Daemon {
        Daemon::try_start(command, log).unwrap_or_else(|error| panic!("{error}"))
    }

    pub fn try_start(command: &mut Command, log: &Path) -> Result<Daemon, String> {
        let errors = std::fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            while lines.read_line(&mut line).is_ok_and(|length| length > 0) {
                let _ = sender.send(std::mem::take(&mut line));
            }
        });
        let daemon = Daemon { child, log: log.to_owned() };
        match receiver.recv_timeout(PATIENCE) {
            Ok(line) if line.starts_with("ready") => Ok(daemon),
            other => Err(format!("{command:?}: no ready line ({other:?})\n{}", daemon.log_text())),
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn kill_9(&mut self) {
        kill(self.child.id());
        self.child.wait().unwrap();
    }

    /// Waits for its end; whether it was with 0.
    pub fn ended_well(&mut self, limit: Duration) -> bool {
        let start = Instant::now();
        while start.elapsed() < limit {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.success();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("process {} still runs after {limit:?}\n{}", self.pid(), self.log_text());
    }

    pub fn log_text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        kill(self.child.id());
        let _ = self.child.wait();
        if std::thread::panicking() {
            let text = self.log_text();
            let tail: Vec<_> = text.lines().rev().take(40).collect();
            eprintln!("--- end of {}:", self.log.display());
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}

/// MGS, MDT and OSTs in one nacred, on files.
pub struct Cluster {
    /// Dropped before its directory: a test that fails shows the log.
    pub server: Option<Daemon>,
    pub dir: tempfile::TempDir,
    pub port: u16,
    osts: usize,
}

impl Cluster {
    /// Formats and starts.
    pub fn start(osts: usize, ost_size: &str) -> Cluster {
        let cluster = Cluster::format(osts, ost_size);
        cluster.started()
    }

    pub fn format(osts: usize, ost_size: &str) -> Cluster {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Cluster::format_at(port, osts, ost_size)
    }

    pub fn format_at(port: u16, osts: usize, ost_size: &str) -> Cluster {
        let dir = tempfile::Builder::new().prefix("nacre-test-").tempdir().unwrap();
        let cluster = Cluster { dir, port, server: None, osts };
        let mgsnode = cluster.nid();
        for (name, kind) in cluster.devices() {
            let size = if kind == "ost" { ost_size } else { "2G" };
            let device = cluster.path(&name);
            let kind = format!("--{kind}");
            run_ok(
                nacre(["mkfs.nacre", &kind, "--fsname", "nacre", "--mgsnode", &mgsnode, "--size", size]).arg(device),
            );
        }
        std::fs::write(cluster.path("server.json"), cluster.config()).unwrap();
        cluster
    }

    pub fn started(mut self) -> Cluster {
        self.start_server();
        self
    }

    pub fn devices(&self) -> Vec<(String, &'static str)> {
        let mut devices = vec![("mgs.img".to_owned(), "mgs"), ("mdt0.img".to_owned(), "mdt")];
        devices.extend((0..self.osts).map(|index| (format!("ost{index}.img"), "ost")));
        devices
    }

    pub fn config(&self) -> String {
        let mut bdevs = Vec::new();
        let mut targets = vec![serde_json::json!({"method": "nacre_listener_create",
            "params": {"trtype": "TCP", "traddr": "127.0.0.1", "trsvcid": self.port.to_string()}})];
        for (file, kind) in self.devices() {
            let name = file.trim_end_matches(".img");
            bdevs.push(serde_json::json!({"method": "bdev_uring_create",
                "params": {"name": name, "filename": self.path(&file)}}));
            targets.push(serde_json::json!({"method": format!("nacre_{kind}_create"), "params": {"bdev_name": name}}));
        }
        serde_json::json!({"subsystems": [
            {"subsystem": "bdev", "config": bdevs},
            {"subsystem": "nacre", "config": targets},
        ]})
        .to_string()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn nid(&self) -> String {
        format!("127.0.0.1:{}@tcp", self.port)
    }

    pub fn server_command(&self) -> Command {
        let mut command = nacre(["nacred", "-c"]);
        command.arg(self.path("server.json")).arg("-r").arg(self.path("nacred.sock"));
        command
    }

    pub fn start_server(&mut self) {
        self.server = Some(Daemon::start(&mut self.server_command(), &self.path("nacred.log")));
    }

    pub fn kill_server(&mut self) {
        self.server.take().unwrap().kill_9();
    }

    /// Stops the server as an administrator does.
    pub fn stop_server(&mut self) {
        let mut server = self.server.take().unwrap();
        let pid = rustix::process::Pid::from_raw(server.pid() as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(server.ended_well(PATIENCE), "nacred ended badly\n{}", server.log_text());
    }

    pub fn mount(&self, name: &str) -> Mount {
        self.mount_source(name, &format!("{}:/nacre", self.nid()))
    }

    pub fn mount_source(&self, name: &str, source: &str) -> Mount {
        let dir = self.path(name);
        match std::fs::create_dir(&dir) {
            // A mount that is dead cannot be looked at, only be mounted over.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            made => made.unwrap(),
        }
        let mut command = nacre(["mount", "--foreground", source]);
        let daemon = Daemon::start(command.arg(&dir), &self.path(&format!("{name}.log")));
        Mount { dir, daemon }
    }

    /// Every device must be clean. The server must be down.
    pub fn fsck(&self) {
        assert!(self.server.is_none(), "fsck of devices in use");
        for (file, _) in self.devices() {
            let output = run(nacre(["fsck"]).arg(self.path(&file)));
            assert!(output.status.success(), "fsck {file}: {}\n{}", output.status, said(&output));
        }
    }
}

/// A mount in its own process.
pub struct Mount {
    pub dir: PathBuf,
    pub daemon: Daemon,
}

impl Mount {
    pub fn join(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub fn umount(mut self) {
        run_ok(nacre(["umount"]).arg(&self.dir));
        assert!(self.daemon.ended_well(PATIENCE), "the mount process ended badly\n{}", self.daemon.log_text());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        kill(self.daemon.pid());
        // After a clean umount there is nothing to detach.
        let _ =
            rustix::mount::unmount(&self.dir, rustix::mount::UnmountFlags::DETACH | rustix::mount::UnmountFlags::FORCE);
    }
}
