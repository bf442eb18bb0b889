//! The README's first command, as a stranger runs it.

mod support;

use support::*;

#[test]
fn formats_mounts_checks_and_starts_again() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let quickstart = || {
        let mut command = nacre(["quickstart", "--exit", "--size", "2G", "--port", &port, "--dir"]);
        command.arg(&data);
        command
    };

    let first = run_ok(&mut quickstart());
    assert!(first.contains("formatted") && first.contains("ready"), "{first}");
    let second = run_ok(&mut quickstart());
    assert!(!second.contains("formatted") && second.contains("started again"), "{second}");

    // A byte that is wrong must be found: cut the OSTs' data out from under the second check.
    for ost in ["ost0.img", "ost1.img"] {
        let file = std::fs::OpenOptions::new().write(true).open(data.join(ost)).unwrap();
        let length = file.metadata().unwrap().len();
        rustix::fs::fallocate(
            &file,
            rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE,
            length / 16,
            length / 16 * 14,
        )
        .unwrap();
    }
    let damaged = run(&mut quickstart());
    assert_eq!(damaged.status.code(), Some(1), "damage was not noticed:\n{}", said(&damaged));
}
