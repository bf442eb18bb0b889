//! What takes long or measures: `cargo test --release -p nacre-llite --test long -- --ignored --nocapture`.

mod support;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::Command;
use std::time::{Duration, Instant};

use nacre_reactor::DmaBuf;
use rustix::fs::OFlags;
use support::Mount;

#[test]
#[ignore = "installs the crate fsx below the target directory"]
fn fsx() {
    let Some(mount) = Mount::new() else { return };
    let root = concat!(env!("CARGO_TARGET_TMPDIR"), "/fsx");
    let binary = format!("{root}/bin/fsx");
    if !fs::exists(&binary).unwrap() {
        let installed = Command::new("cargo").args(["install", "fsx", "--root", root]).status().unwrap();
        assert!(installed.success());
    }
    for seed in ["1", "2", "3"] {
        let output = Command::new("timeout")
            .args(["300", &binary, "-N", "100000", "-S", seed, "file"])
            .current_dir(&mount.dir)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "seed {seed}\n{}{text}", String::from_utf8_lossy(&output.stdout));
    }
    assert!(mount.unmount());
}

#[test]
#[ignore = "measures; meant for a release build"]
fn speed() {
    let Some(mount) = Mount::new() else { return };
    let path = mount.path("f");
    fs::write(&path, vec![7; 64 << 20]).unwrap();
    let rate = |what: &str, count: u64, work: &mut dyn FnMut(u64)| {
        let (start, mut done) = (Instant::now(), 0);
        let cpu = reactor_cpu();
        while start.elapsed() < Duration::from_secs(1) {
            (0..count).for_each(|i| work(done + i));
            done += count;
        }
        let per = start.elapsed().as_secs_f64() / done as f64;
        let cpu = (reactor_cpu() - cpu).as_secs_f64() / done as f64;
        println!(
            "{what:34} {:>9.0} /s   {:>7.1} µs each, {:>7.1} µs of it reactor CPU",
            1.0 / per,
            per * 1e6,
            cpu * 1e6
        );
    };
    let direct = OFlags::DIRECT.bits() as i32;
    let file = OpenOptions::new().read(true).write(true).custom_flags(direct).open(&path).unwrap();
    let mut block = DmaBuf::zeroed(4096);
    let mut mega = DmaBuf::zeroed(1 << 20);
    rate("stat, cached", 1000, &mut |_| assert!(fs::metadata(&path).is_ok()));
    mount.run(|inside| async move { inside.fs.keep.set(false) });
    file.write_all_at(&DmaBuf::zeroed(4096), 0).unwrap();
    rate("fstat, not cached (1 request)", 100, &mut |_| assert!(file.metadata().is_ok()));
    mount.run(|inside| async move { inside.fs.keep.set(true) });
    rate("create, close", 100, &mut |i| drop(File::create(mount.path(&format!("n{i}"))).unwrap()));
    rate("read 4 KiB O_DIRECT", 100, &mut |i| file.read_exact_at(&mut block, (i * 7919 % 16384) * 4096).unwrap());
    rate("write 4 KiB O_DIRECT", 100, &mut |i| file.write_all_at(&block, (i * 7919 % 16384) * 4096).unwrap());
    rate("read 1 MiB O_DIRECT", 10, &mut |i| file.read_exact_at(&mut mega, (i % 64) << 20).unwrap());
    rate("write 1 MiB O_DIRECT", 10, &mut |i| file.write_all_at(&mega, (i % 64) << 20).unwrap());
    let plain = OpenOptions::new().write(true).open(&path).unwrap();
    rate("write 1 MiB", 10, &mut |i| plain.write_all_at(&mega, (i % 64) << 20).unwrap());
    rate("write 4 KiB", 100, &mut |i| plain.write_all_at(&block, (i % 16384) * 4096).unwrap());
    let reader = File::open(&path).unwrap();
    rate("read 4 KiB, kernel's cache", 1000, &mut |i| reader.read_exact_at(&mut block, (i % 16) * 4096).unwrap());
    rate("read 64 MiB by 1 MiB, cold", 1, &mut |_| {
        drop(plain.write_all_at(&block, 0));
        mount.run(|inside| async move {
            use nacre_client::{FileSystem, KernelCache};
            let fid = inside.fs.lookup(nacre_wire::Fid::ROOT, b"f").await.unwrap().unwrap().fid;
            inside.kernel.invalidate_data(fid, 0..u64::MAX).await;
        });
        for i in 0..64 {
            reader.read_exact_at(&mut mega, i << 20).unwrap();
        }
    });
    rate("invalidation of attributes", 100, &mut |_| {
        mount.run(|inside| async move {
            use nacre_client::KernelCache;
            inside.kernel.invalidate_attr(nacre_wire::Fid::ROOT).await;
        });
    });
    for jobs in [8, 32] {
        let mut threads = Vec::new();
        let start = Instant::now();
        for job in 0..jobs {
            let file = file.try_clone().unwrap();
            threads.push(std::thread::spawn(move || {
                let (mut block, mut done) = (DmaBuf::zeroed(4096), 0u64);
                while start.elapsed() < Duration::from_secs(1) {
                    file.read_exact_at(&mut block, ((done * 7919 + job) % 16384) * 4096).unwrap();
                    done += 1;
                }
                done
            }));
        }
        let done: u64 = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
        println!("read 4 KiB O_DIRECT, {jobs} threads{:>19.0} /s", done as f64 / start.elapsed().as_secs_f64());
    }
}

/// CPU time of the thread that runs the reactor, which is the one besides the test's that is not a notifier.
fn reactor_cpu() -> Duration {
    let mut ticks = 0;
    for task in fs::read_dir("/proc/self/task").unwrap() {
        let stat = fs::read_to_string(task.unwrap().path().join("stat")).unwrap_or_default();
        let name = stat.split(['(', ')']).nth(1).unwrap_or_default().to_owned();
        if name == "reactor" {
            let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
            ticks += fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        }
    }
    Duration::from_millis(ticks * 10)
}
