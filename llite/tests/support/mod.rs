//! A mount of [`MemFs`] for one test: its reactor is a thread, the test is the application.

#![allow(dead_code, reason = "not every test uses everything")]

pub mod memfs;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use memfs::MemFs;
use nacre_llite::{End, KernelNotifier, MountOptions};
use nacre_wire::Fid;

/// What runs on the reactor.
#[derive(Clone)]
pub struct Inside {
    pub fs: Rc<MemFs>,
    pub kernel: KernelNotifier,
}

type Job = Box<dyn FnOnce(Inside) -> Pin<Box<dyn Future<Output = ()>>> + Send>;

pub struct Mount {
    pub dir: PathBuf,
    _parent: tempfile::TempDir,
    jobs: Option<tokio::sync::mpsc::UnboundedSender<Job>>,
    reactor: Option<JoinHandle<(End, Option<bool>)>>,
    limit: Duration,
}

impl Mount {
    /// `None`, loudly, where there is no FUSE.
    pub fn new() -> Option<Mount> {
        Mount::with_root(Fid::ROOT)
    }

    pub fn with_root(root: Fid) -> Option<Mount> {
        if !Path::new("/dev/fuse").exists() {
            eprintln!("\n*** NOT TESTED: /dev/fuse is missing, nothing was mounted ***\n");
            assert!(std::env::var_os("CI").is_none(), "CI needs /dev/fuse");
            return None;
        }
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("mnt");
        std::fs::create_dir(&dir).unwrap();
        let (ready, is_ready) = mpsc::channel();
        let (jobs, mut todo) = tokio::sync::mpsc::unbounded_channel::<Job>();
        let at = dir.clone();
        let limit = Duration::from_secs(3);
        let reactor = std::thread::Builder::new().name("reactor".into()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            tokio::task::LocalSet::new().block_on(&runtime, async move {
                let inside = Inside { fs: MemFs::new(root), kernel: KernelNotifier::new() };
                let options = MountOptions::new("192.0.2.1@tcp:/test", at);
                let mounted = nacre_llite::mount(&options, inside.fs.clone(), &inside.kernel, None).await;
                let mounted = match mounted {
                    Ok(mounted) => mounted,
                    Err(error) => {
                        ready.send(Err(error.to_string())).unwrap();
                        return (End::Refused, None);
                    }
                };
                ready.send(Ok(())).unwrap();
                loop {
                    tokio::select! {
                        job = todo.recv() => match job {
                            Some(job) => drop(tokio::task::spawn_local(job(inside.clone()))),
                            None => {
                                let clean = mounted.unmount(limit).await.unwrap();
                                return (End::Unmounted, Some(clean));
                            }
                        },
                        end = mounted.ended() => return (end, None),
                    }
                }
            })
        });
        let reactor = reactor.unwrap();
        match is_ready.recv_timeout(Duration::from_secs(20)).expect("mounted in time") {
            Ok(()) => {}
            Err(error) => panic!("{error}"),
        }
        Some(Mount { dir, _parent: parent, jobs: Some(jobs), reactor: Some(reactor), limit })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Starts something on the reactor; the answer comes through the receiver.
    pub fn start<R: Send + 'static, W: Future<Output = R> + 'static>(
        &self,
        work: impl FnOnce(Inside) -> W + Send + 'static,
    ) -> mpsc::Receiver<R> {
        let (done, receiver) = mpsc::channel();
        let job: Job = Box::new(move |inside| {
            Box::pin(async move {
                let result = work(inside).await;
                let _ = done.send(result);
            })
        });
        self.jobs.as_ref().unwrap().send(job).map_err(|_| ()).expect("the reactor runs");
        receiver
    }

    /// Runs something on the reactor.
    pub fn run<R: Send + 'static, W: Future<Output = R> + 'static>(
        &self,
        work: impl FnOnce(Inside) -> W + Send + 'static,
    ) -> R {
        self.start(work).recv_timeout(Duration::from_secs(20)).expect("done in time")
    }

    pub fn stall(&self, what: &str) {
        let what = what.to_owned();
        self.run(|inside| async move {
            inside.fs.stalled.borrow_mut().insert(what);
        });
    }

    pub fn resume(&self) {
        self.run(|inside| async move {
            inside.fs.stalled.borrow_mut().clear();
            inside.fs.resume.notify_waiters();
        });
    }

    pub fn calls(&self, op: &'static str) -> u64 {
        self.run(move |inside| async move { inside.fs.calls.borrow().get(op).copied().unwrap_or(0) })
    }

    /// Waits until a call has been made at least so often.
    pub fn wait_for_call(&self, op: &'static str, times: u64) {
        let start = std::time::Instant::now();
        while self.calls(op) < times {
            assert!(start.elapsed() < Duration::from_secs(10), "{op} was not called {times} times");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Unmounts; true: cleanly.
    pub fn unmount(mut self) -> bool {
        self.jobs.take();
        let (_, clean) = self.reactor.take().unwrap().join().unwrap();
        clean.expect("unmounted by this")
    }

    /// Somebody else unmounts.
    pub fn ended(mut self) -> End {
        self.reactor.take().unwrap().join().unwrap().0
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.jobs.take();
        if let Some(reactor) = self.reactor.take() {
            let _ = reactor.join();
        }
    }
}

/// A shell command with the mount as its working directory; panics unless it succeeds.
pub fn sh(dir: &Path, script: &str) -> String {
    let output = std::process::Command::new("timeout")
        .args(["-k", "1", "60", "sh", "-euc", script])
        .current_dir(dir)
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{script}\n{out}{err}");
    out.into_owned()
}
