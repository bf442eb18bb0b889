//! A full OST: ENOSPC to the writer, other OSTs used for new files, nothing corrupted; space comes back after unlink.

mod support;

use std::fs;
use std::io::Write;
use std::time::Duration;

use support::*;

#[test]
fn a_full_ost_hurts_only_its_files() {
    if !can_mount() {
        return;
    }
    let mut cluster = Cluster::start(2, "512M");
    let mount = cluster.mount("mnt");
    fs::write(mount.join("before"), vec![3; 5 << 20]).unwrap();
    run_ok(nacre(["lfs", "setstripe", "-c", "1", "-i", "0"]).arg(mount.join("hog")));
    let mut hog = fs::File::options().append(true).open(mount.join("hog")).unwrap();
    let block: Vec<u8> = (0..1 << 20).map(|i: u32| (i % 251) as u8).collect();
    let mut written = 0u64;
    let error = loop {
        match hog.write_all(&block).and_then(|()| if written.is_multiple_of(64) { hog.sync_data() } else { Ok(()) }) {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 600, "512 MiB took {written} MiB");
    };
    assert_eq!(error.raw_os_error(), Some(28), "{error}");
    assert!(written > 300, "ENOSPC after only {written} MiB");
    drop(hog);
    let text = fs::read(mount.join("hog")).unwrap();
    assert!(text.len() as u64 >= written << 20);
    assert!(text.chunks(1 << 20).take(written as usize).all(|chunk| chunk == block), "corrupted");
    drop(text);

    // New files go elsewhere.
    for number in 0..8 {
        fs::write(mount.join(&format!("new{number}")), vec![number; 1 << 20]).unwrap();
    }
    let layout = run_ok(nacre(["lfs", "getstripe"]).arg(mount.join("new7")));
    assert!(layout.contains("lmm_stripe_offset: 1"), "{layout}");
    for number in 0..8 {
        assert_eq!(fs::read(mount.join(&format!("new{number}"))).unwrap(), vec![number; 1 << 20]);
    }

    fs::remove_file(mount.join("hog")).unwrap();
    eventually("space comes back", Duration::from_secs(60), || {
        let df = run_ok(nacre(["--json", "lfs", "df"]).arg(&mount.dir));
        let df: serde_json::Value = serde_json::from_str(&df).unwrap();
        let ost = df["targets"].as_array().unwrap().iter().find(|t| t["label"] == "nacre-OST0000").unwrap().clone();
        ost["free_bytes"].as_u64().unwrap() > 300 << 20
    });
    fs::write(mount.join("after"), vec![9; 100 << 20]).unwrap();
    assert_eq!(fs::read(mount.join("before")).unwrap(), vec![3; 5 << 20]);
    mount.umount();
    cluster.stop_server();
    cluster.fsck();
}
