//! One suite for all backends: whatever is under the waist keeps what the waist promises.

use std::cell::Cell;
use std::future::Future;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::join_all;
use nacre_osd::bdev::delay::{self, Delay};
use nacre_osd::bdev::error::{self, ErrorBdev, ErrorType, Inject, IoType};
use nacre_osd::bdev::malloc::Malloc;
use nacre_osd::bdev::null::{self, Null};
use nacre_osd::bdev::recording::Recorder;
use nacre_osd::bdev::uring::{self, Uring, create_file};
use nacre_osd::bdev::{BdevErrorKind, BdevRef};
use nacre_reactor::{Bytes, DmaBuf, Options, run_on_this_thread};

const DEVICE_BYTES: u64 = 8 << 20;

fn on_reactor<F: Future>(main: F) -> F::Output {
    run_on_this_thread(&Options::default(), async { tokio::time::timeout(Duration::from_secs(60), main).await })
        .expect("io_uring works here")
        .expect("in time")
}

#[test]
fn malloc() {
    on_reactor(conforms(Rc::new(Malloc::with_bytes("Malloc0", DEVICE_BYTES).unwrap())));
}

#[test]
fn recording() {
    on_reactor(conforms(Rc::new(Recorder::new("Recorder0", DEVICE_BYTES, 1))));
    on_reactor(conforms(Rc::new(Recorder::new("Recorder0", DEVICE_BYTES, 2).slow(7))));
}

#[test]
fn delay() {
    let base = Rc::new(Malloc::with_bytes("Malloc0", DEVICE_BYTES).unwrap());
    let params = delay::Params {
        base_bdev_name: "Malloc0".to_owned(),
        name: "Delay0".to_owned(),
        uuid: None,
        avg_read_latency: 20,
        p99_read_latency: 200,
        avg_write_latency: 50,
        p99_write_latency: 500,
    };
    on_reactor(conforms(Rc::new(Delay::new(&params, base))));
}

#[test]
fn error_without_faults() {
    let base = Rc::new(Malloc::with_bytes("Malloc0", DEVICE_BYTES).unwrap());
    let device = ErrorBdev::new(&error::Params { base_name: "Malloc0".to_owned(), uuid: None }, base);
    on_reactor(conforms(Rc::new(device)));
}

#[test]
fn uring_on_a_sparse_and_on_a_reserved_file_in_both_block_sizes() {
    let dir = tempfile::tempdir().unwrap();
    for (name, reserve, block_size) in [("sparse", false, 0), ("reserved", true, 0), ("512", false, 512)] {
        let path = dir.path().join(name);
        create_file(&path, DEVICE_BYTES, reserve).unwrap();
        assert!(create_file(&path, DEVICE_BYTES, reserve).is_err(), "it is there");
        on_reactor(async {
            let device = Rc::new(open(&path, block_size).await.unwrap());
            conforms(device).await;
        });
    }
}

/// Run by name, with `NACRE_TEST_BLOCK_DEVICE` a block device of 8 MiB, which is overwritten:
/// `truncate -s 8M x.img; losetup -f --show x.img`.
#[test]
#[ignore = "overwrites the block device that NACRE_TEST_BLOCK_DEVICE names"]
fn uring_on_a_block_device() {
    let path = std::env::var_os("NACRE_TEST_BLOCK_DEVICE").expect("NACRE_TEST_BLOCK_DEVICE names a block device");
    on_reactor(async {
        let device: BdevRef = Rc::new(open(Path::new(&path), 0).await.unwrap());
        device.write_zeroes(0, DEVICE_BYTES).await.unwrap();
        conforms(device.clone()).await;
        let error = open(Path::new(&path), 0).await.unwrap_err().to_string();
        assert!(error.contains("in use"), "{error}");
    });
}

#[test]
fn null_takes_everything_and_keeps_nothing() {
    let params = null::Params { name: "Null0".to_owned(), num_blocks: 16, block_size: 4096, uuid: None };
    let device: BdevRef = Rc::new(Null::new(&params).unwrap());
    on_reactor(async {
        device.write(0, vec![pattern(1, 4096)]).await.unwrap();
        assert!(device.read(0, 4096).await.unwrap().iter().all(|byte| *byte == 0));
        refuses_what_is_no_range(&device).await;
    });
}

#[test]
fn a_file_in_use_is_refused_in_words_and_free_when_its_user_ends() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    create_file(&path, DEVICE_BYTES, false).unwrap();
    on_reactor(async {
        let first = open(&path, 0).await.unwrap();
        let error = open(&path, 0).await.unwrap_err();
        assert_eq!(error.kind, BdevErrorKind::Open);
        let text = error.to_string();
        assert!(text.contains("in use") && text.contains(path.to_str().unwrap()), "{text}");
        // A user that ends while another waits.
        let waiting = tokio::task::spawn_local({
            let path = path.clone();
            async move { open(&path, 0).await.map(|_| ()) }
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(first);
        waiting.await.unwrap().unwrap();
    });
}

#[test]
fn a_reader_changes_nothing_and_keeps_writers_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    std::fs::write(&path, vec![7; 65536]).unwrap();
    let params = uring::Params { name: "Uring0".to_owned(), filename: path.clone(), block_size: 0, uuid: None };
    on_reactor(async {
        let first: BdevRef = Rc::new(Uring::open_read_only(&params).await.unwrap());
        let second: BdevRef = Rc::new(Uring::open_read_only(&params).await.unwrap());
        assert!(second.read(0, 65536).await.unwrap().iter().all(|byte| *byte == 7));
        for result in [
            first.write(0, vec![pattern(1, 4096)]).await,
            first.write_zeroes(0, 65536).await,
            first.write_zeroes(0, 4096).await,
            first.unmap(0, 4096).await,
        ] {
            let error = result.unwrap_err().to_string();
            assert!(error.contains("Read-only"), "{error}");
        }
        assert!(open(&path, 0).await.unwrap_err().to_string().contains("in use"));
        drop((first, second));
        assert_eq!(std::fs::read(&path).unwrap(), vec![7; 65536]);
    });
}

#[test]
fn uring_refuses_what_is_no_device_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let small = dir.path().join("small");
    std::fs::write(&small, b"too little").unwrap();
    let disk = dir.path().join("disk");
    std::fs::write(&disk, vec![0; 10_000]).unwrap();
    on_reactor(async {
        let refused = async |path: &Path, block_size| open(path, block_size).await.unwrap_err().to_string();
        assert!(refused(&dir.path().join("absent"), 0).await.contains("absent"));
        assert!(refused(dir.path(), 0).await.contains("neither a file nor a block device"));
        assert!(refused(Path::new("/dev/null"), 0).await.contains("neither a file nor a block device"));
        assert!(refused(&small, 0).await.contains("less than one block"));
        assert!(refused(&disk, 1024).await.contains("512 or 4096"));
        let device = open(&disk, 0).await.unwrap();
        assert_eq!(nacre_osd::bdev::Bdev::info(&device).bytes(), 8192, "rounded down");
    });
}

#[test]
fn a_file_that_is_cut_below_us_gives_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    create_file(&path, DEVICE_BYTES, false).unwrap();
    on_reactor(async {
        let device: BdevRef = Rc::new(open(&path, 0).await.unwrap());
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(4096).unwrap();
        let error = device.read(0, 8192).await.unwrap_err();
        assert_eq!((error.kind, error.offset), (BdevErrorKind::Io, 4096));
    });
}

#[test]
fn delays_last_as_long_as_told() {
    let base = Rc::new(Malloc::with_bytes("Malloc0", DEVICE_BYTES).unwrap());
    let params = delay::Params {
        base_bdev_name: "Malloc0".to_owned(),
        name: "Delay0".to_owned(),
        uuid: None,
        avg_read_latency: 300,
        p99_read_latency: 300,
        avg_write_latency: 0,
        p99_write_latency: 0,
    };
    let device = Delay::new(&params, base);
    on_reactor(async {
        let device: BdevRef = Rc::new(device);
        let start = std::time::Instant::now();
        device.read(0, 4096).await.unwrap();
        let passed = start.elapsed();
        assert!(passed >= Duration::from_micros(300), "{passed:?}");
    });
    // The same without a ring, as in the simulator: tokio's clock, which stands still here and jumps.
    let base = Rc::new(Malloc::with_bytes("Malloc0", DEVICE_BYTES).unwrap());
    let slow = delay::Params { avg_read_latency: 60_000_000, p99_read_latency: 60_000_000, ..params };
    let device: BdevRef = Rc::new(Delay::new(&slow, base));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let start = tokio::time::Instant::now();
        device.read(0, 4096).await.unwrap();
        assert!(start.elapsed() >= Duration::from_secs(60));
    });
}

#[test]
fn a_delayed_fault_delays() {
    let base = Rc::new(Malloc::with_bytes("Malloc0", DEVICE_BYTES).unwrap());
    let device = ErrorBdev::new(&error::Params { base_name: "Malloc0".to_owned(), uuid: None }, base);
    device.inject(Inject { delay_us: 2000, ..Inject::new(IoType::Flush, ErrorType::Delayed, 1) });
    on_reactor(async {
        let device: BdevRef = Rc::new(device);
        let start = std::time::Instant::now();
        device.flush().await.unwrap();
        assert!(start.elapsed() >= Duration::from_millis(2));
    });
}

async fn open(path: &Path, block_size: u32) -> Result<Uring, nacre_osd::bdev::BdevError> {
    let params = uring::Params { name: "Uring0".to_owned(), filename: path.to_owned(), block_size, uuid: None };
    Uring::open(&params).await
}

/// The suite.
async fn conforms(device: BdevRef) {
    fresh_device_reads_zeros(&device).await;
    reads_what_was_written(&device).await;
    refuses_what_is_no_range(&device).await;
    zeroes_and_unmaps(&device).await;
    takes_any_memory_and_any_number_of_buffers(&device).await;
    many_at_once(&device).await;
    dropped_futures(&device).await;
    model(&device).await;
}

async fn fresh_device_reads_zeros(device: &BdevRef) {
    assert_eq!(device.info().bytes(), DEVICE_BYTES);
    assert!(device.read(DEVICE_BYTES - 65536, 65536).await.unwrap().iter().all(|byte| *byte == 0));
}

async fn reads_what_was_written(device: &BdevRef) {
    let block = device.info().block_bytes as usize;
    let (first, second) = (pattern(1, block), pattern(2, 1 << 20));
    device.write(block as u64, vec![first.clone(), second.clone()]).await.unwrap();
    let buf = device.read(0, 3 * block + (1 << 20)).await.unwrap();
    assert!(buf[..block].iter().all(|byte| *byte == 0));
    assert!(buf[block..2 * block] == *first && buf[2 * block..][..1 << 20] == *second);
    assert!(buf[2 * block + (1 << 20)..].iter().all(|byte| *byte == 0));
    device.flush().await.unwrap();
    let last = DEVICE_BYTES - block as u64;
    device.write(last, vec![pattern(3, block)]).await.unwrap();
    assert_eq!(*device.read(last, block).await.unwrap(), *pattern(3, block));
}

async fn refuses_what_is_no_range(device: &BdevRef) {
    let block = u64::from(device.info().block_bytes);
    let end = device.info().bytes();
    for (offset, length, kind) in [
        (1, block, BdevErrorKind::Misaligned),
        (0, block - 1, BdevErrorKind::Misaligned),
        (end, block, BdevErrorKind::OutOfRange),
        (end - block, 2 * block, BdevErrorKind::OutOfRange),
        (u64::MAX - block + 1, block, BdevErrorKind::OutOfRange),
    ] {
        let data = vec![pattern(9, length as usize)];
        assert_eq!(device.read(offset, length as usize).await.unwrap_err().kind, kind);
        assert_eq!(device.write(offset, data).await.unwrap_err().kind, kind);
        assert_eq!(device.write_zeroes(offset, length).await.unwrap_err().kind, kind);
        assert_eq!(device.unmap(offset, length).await.unwrap_err().kind, kind);
    }
    let error = device.read(end, block as usize).await.unwrap_err();
    assert!(error.to_string().contains(&device.info().name), "{error}");
    // Nothing is a range too.
    assert!(device.read(end, 0).await.unwrap().is_empty());
    device.write(0, Vec::new()).await.unwrap();
    device.write_zeroes(0, 0).await.unwrap();
    device.unmap(0, 0).await.unwrap();
}

async fn zeroes_and_unmaps(device: &BdevRef) {
    let at = 1 << 20;
    for length in [64 << 10, 1 << 20] {
        device.write(at - 4096, vec![pattern(4, length + 8192)]).await.unwrap();
        device.write_zeroes(at, length as u64).await.unwrap();
        let buf = device.read(at - 4096, length + 8192).await.unwrap();
        let around = pattern(4, length + 8192);
        assert_eq!(buf[..4096], around[..4096]);
        assert!(buf[4096..4096 + length].iter().all(|byte| *byte == 0));
        assert_eq!(buf[4096 + length..], around[4096 + length..]);
        // It may read anything now, but not its neighbours.
        device.unmap(at, length as u64).await.unwrap();
        let buf = device.read(at - 4096, length + 8192).await.unwrap();
        assert_eq!((&buf[..4096], &buf[4096 + length..]), (&around[..4096], &around[4096 + length..]));
        device.write(at, vec![pattern(5, length)]).await.unwrap();
        assert_eq!(*device.read(at, length).await.unwrap(), *pattern(5, length));
    }
}

async fn takes_any_memory_and_any_number_of_buffers(device: &BdevRef) {
    let block = device.info().block_bytes as usize;
    for shift in [1, 3, 8, 511] {
        let mut memory = DmaBuf::zeroed(shift + block);
        memory[shift..].copy_from_slice(&pattern(shift as u64, block));
        device.write(0, vec![memory.freeze().slice(shift..)]).await.unwrap();
        assert_eq!(*device.read(0, block).await.unwrap(), *pattern(shift as u64, block));
    }
    let count = 1500;
    let buffers: Vec<Bytes> = (0..count).map(|i| pattern(i, block)).collect();
    device.write(0, buffers.clone()).await.unwrap();
    assert_eq!(*device.read(0, count as usize * block).await.unwrap(), *buffers.concat());
}

async fn many_at_once(device: &BdevRef) {
    let writes = (0..1000u64).map(|i| device.write(i * 4096, vec![pattern(i + 100, 4096)]));
    for result in join_all(writes).await {
        result.unwrap();
    }
    let reads = (0..1000u64).map(|i| device.read(i * 4096, 4096));
    for (i, result) in join_all(reads).await.into_iter().enumerate() {
        assert_eq!(*result.unwrap(), *pattern(i as u64 + 100, 4096));
    }
}

async fn dropped_futures(device: &BdevRef) {
    let alive = Rc::new(Cell::new(0));
    for i in 0..32u64 {
        drop(device.read(i * 65536, 65536));
        let mut write = device.write(i * 65536, vec![pattern(i, 65536)]);
        // Some are dropped unpolled, some halfway.
        if i % 2 == 0 {
            let polled = futures_util::poll!(&mut write);
            alive.set(alive.get() + u32::from(polled.is_pending()));
        }
        drop(write);
    }
    // Dropping abandons the answer, not the I/O: all of it is there in the end.
    for i in 0..32u64 {
        let expected = pattern(i, 65536);
        let mut buf = device.read(i * 65536, 65536).await.unwrap();
        for _ in 0..1000 {
            if *buf == *expected {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
            buf = device.read(i * 65536, 65536).await.unwrap();
        }
        assert_eq!(*buf, *expected, "write {i} of those dropped");
    }
}

/// Random operations one after the other against a plain array.
async fn model(device: &BdevRef) {
    let block = u64::from(device.info().block_bytes);
    let bytes = 1u64 << 20;
    device.write_zeroes(0, bytes).await.unwrap();
    let mut expected = vec![0; bytes as usize];
    let mut state = 0x1234_5678_9abc_def0u64;
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    for step in 0..300 {
        let offset = random(bytes / block) * block;
        let length = (random(64) + 1).min((bytes - offset) / block) * block;
        let range = offset as usize..(offset + length) as usize;
        match random(6) {
            0..3 => {
                let data = pattern(step + 1000, length as usize);
                let cut = (random(length / block + 1) * block) as usize;
                device.write(offset, vec![data.slice(..cut), data.slice(cut..)]).await.unwrap();
                expected[range].copy_from_slice(&data);
            }
            3 => {
                device.write_zeroes(offset, length).await.unwrap();
                expected[range].fill(0);
            }
            4 => device.flush().await.unwrap(),
            _ => assert_eq!(*device.read(offset, length as usize).await.unwrap(), expected[range], "step {step}"),
        }
    }
    assert!(*device.read(0, bytes as usize).await.unwrap() == *expected);
}

fn pattern(seed: u64, length: usize) -> Bytes {
    let mut buf = DmaBuf::zeroed(length);
    for (i, chunk) in buf.chunks_mut(8).enumerate() {
        let word = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(i as u64).to_le_bytes();
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
    buf.freeze()
}
