//! Two mounts of one filesystem see each other's data, names and attributes at once.

mod support;

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

use support::*;

#[test]
fn data_names_and_attributes_are_seen_at_once() {
    if !can_mount() {
        return;
    }
    let cluster = Cluster::start(2, "2G");
    let (a, b) = (cluster.mount("a"), cluster.mount("b"));

    for round in 0..30u32 {
        let name = format!("file{}", round % 3);
        let text = format!("round {round} {}", "x".repeat(round as usize * 100));
        let (writer, reader) = if round % 2 == 0 { (&a, &b) } else { (&b, &a) };
        fs::write(writer.join(&name), &text).unwrap();
        assert_eq!(fs::read_to_string(reader.join(&name)).unwrap(), text, "round {round}");
        assert_eq!(fs::metadata(reader.join(&name)).unwrap().len(), text.len() as u64);
    }

    // An open file, kept open on both sides.
    let one = fs::File::options().read(true).write(true).create(true).truncate(true).open(a.join("open")).unwrap();
    let two = fs::File::options().read(true).write(true).open(b.join("open")).unwrap();
    for round in 0..100u64 {
        let (writer, reader) = if round % 2 == 0 { (&one, &two) } else { (&two, &one) };
        writer.write_all_at(&round.to_le_bytes(), 0).unwrap();
        let mut seen = [0; 8];
        reader.read_exact_at(&mut seen, 0).unwrap();
        assert_eq!(u64::from_le_bytes(seen), round);
        assert_eq!(reader.metadata().unwrap().len(), writer.metadata().unwrap().len());
    }

    // Names, also those that were asked for in vain before.
    for round in 0..20 {
        let (x, y) = if round % 2 == 0 { (&a, &b) } else { (&b, &a) };
        let name = format!("dir{round}");
        assert!(!y.join(&name).exists());
        fs::create_dir(x.join(&name)).unwrap();
        assert!(y.join(&name).is_dir());
        fs::rename(y.join(&name), y.join("moved")).unwrap();
        assert!(!x.join(&name).exists() && x.join("moved").is_dir());
        let listed =
            fs::read_dir(&x.dir).unwrap().filter(|entry| entry.as_ref().unwrap().file_name() == "moved").count();
        assert_eq!(listed, 1);
        fs::remove_dir(x.join("moved")).unwrap();
        assert!(!y.join("moved").exists());
    }

    // Attributes.
    fs::set_permissions(a.join("open"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(fs::metadata(b.join("open")).unwrap().mode() & 0o7777, 0o600);
    let times =
        fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH + std::time::Duration::new(1_234_567_890, 123_456_789));
    fs::File::options().write(true).open(b.join("open")).unwrap().set_times(times).unwrap();
    let seen = fs::metadata(a.join("open")).unwrap();
    assert_eq!((seen.mtime(), seen.mtime_nsec()), (1_234_567_890, 123_456_789));

    // Removed there, open here: still alive.
    let mut kept = fs::File::options().read(true).write(true).create_new(true).open(a.join("kept")).unwrap();
    kept.write_all(b"before").unwrap();
    fs::remove_file(b.join("kept")).unwrap();
    kept.write_all(b" and after").unwrap();
    kept.seek(SeekFrom::Start(0)).unwrap();
    let mut text = String::new();
    kept.read_to_string(&mut text).unwrap();
    assert_eq!(text, "before and after");
    assert_eq!(kept.metadata().unwrap().nlink(), 0);
    drop((kept, one, two));

    a.umount();
    b.umount();
}

#[test]
fn appends_from_two_mounts_are_neither_lost_nor_torn() {
    if !can_mount() {
        return;
    }
    let cluster = Cluster::start(2, "2G");
    let (a, b) = (cluster.mount("a"), cluster.mount("b"));
    run_ok(nacre(["lfs", "setstripe", "-c", "2", "-S", "64K"]).arg(a.join("log")));
    const LINES: usize = 300;
    let append = |path: std::path::PathBuf, who: u8| {
        std::thread::spawn(move || {
            let mut file = fs::File::options().append(true).open(path).unwrap();
            for number in 0..LINES {
                // Lengths that cross pages and stripes.
                let line = format!("{who} {number} {}\n", "y".repeat(number * 37 % 5000));
                file.write_all(line.as_bytes()).unwrap();
            }
        })
    };
    let threads = [append(a.join("log"), 1), append(b.join("log"), 2)];
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    for mount in [&a, &b] {
        let text = fs::read_to_string(mount.join("log")).unwrap();
        let mut next = [0, 0, 0];
        for line in text.lines() {
            let mut words = line.split(' ');
            let who: usize = words.next().unwrap().parse().unwrap();
            let number: usize = words.next().unwrap().parse().unwrap();
            assert_eq!(number, next[who], "lost or out of order");
            assert_eq!(words.next().unwrap().len(), number * 37 % 5000, "torn");
            next[who] += 1;
        }
        assert_eq!(next, [0, LINES, LINES]);
    }
}
