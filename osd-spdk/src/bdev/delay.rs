//! `bdev_delay_create`: a device that is as slow as told. 99 of 100 operations take the average latency at least, one
//! takes the p99 latency.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use futures_util::FutureExt;
use nacre_reactor::{Bytes, DmaBuf, ring};
use nacre_wire::Uuid;
use serde::Deserialize;
use tokio::time::Instant;

use super::recording::Random;
use super::{Bdev, BdevFuture, BdevInfo, BdevRef, ready};

/// Parameters of `bdev_delay_create`; latencies in microseconds.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// The device below.
    pub base_bdev_name: String,
    /// Name.
    pub name: String,
    /// Identity.
    #[serde(default, deserialize_with = "super::uuid_text")]
    pub uuid: Option<Uuid>,
    /// Of most reads, µs.
    pub avg_read_latency: u64,
    /// Of one read in 100, µs.
    pub p99_read_latency: u64,
    /// Of most writes, zeroes, unmaps and flushes, µs.
    pub avg_write_latency: u64,
    /// Of one in 100 of them, µs.
    pub p99_write_latency: u64,
}

/// Parameters of `bdev_delay_update_latency`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpdateLatency {
    /// Name of the delay device.
    pub delay_bdev_name: String,
    /// Which one.
    pub latency_type: LatencyType,
    /// Microseconds.
    pub latency_us: u64,
}

/// Which latency.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LatencyType {
    /// Of most reads.
    AvgRead,
    /// Of one read in 100.
    P99Read,
    /// Of most writes.
    AvgWrite,
    /// Of one write in 100.
    P99Write,
}

/// A slow device.
pub struct Delay {
    info: BdevInfo,
    base: BdevRef,
    /// Indexed by [`LatencyType`].
    latency_us: [Cell<u64>; 4],
    random: RefCell<Random>,
}

impl Delay {
    /// Makes one over a device.
    pub fn new(params: &Params, base: BdevRef) -> Delay {
        let uuid = params.uuid.unwrap_or(Uuid::NIL);
        let info = BdevInfo { name: params.name.clone(), product: "delay", uuid, ..base.info().clone() };
        let latency_us =
            [params.avg_read_latency, params.p99_read_latency, params.avg_write_latency, params.p99_write_latency]
                .map(Cell::new);
        Delay { info, base, latency_us, random: RefCell::new(Random(0)) }
    }

    /// Changes a latency while it runs.
    pub fn set_latency(&self, which: LatencyType, latency_us: u64) {
        self.latency_us[which as usize].set(latency_us);
    }

    fn read_latency(&self) -> Duration {
        self.latency(LatencyType::AvgRead, LatencyType::P99Read)
    }

    fn write_latency(&self) -> Duration {
        self.latency(LatencyType::AvgWrite, LatencyType::P99Write)
    }

    fn latency(&self, usual: LatencyType, rare: LatencyType) -> Duration {
        let is_rare = self.random.borrow_mut().next().is_multiple_of(100);
        Duration::from_micros(self.latency_us[if is_rare { rare } else { usual } as usize].get())
    }
}

/// Completes no earlier than `latency` from now.
pub(super) fn delayed<T: 'static>(latency: Duration, operation: BdevFuture<T>) -> BdevFuture<T> {
    let start = Instant::now();
    async move {
        let result = operation.await;
        let passed = start.elapsed();
        if passed < latency {
            ring::sleep(latency - passed).await;
        }
        result
    }
    .boxed_local()
}

impl Bdev for Delay {
    fn info(&self) -> &BdevInfo {
        &self.info
    }

    fn read(&self, offset: u64, length: usize) -> BdevFuture<DmaBuf> {
        if let Err(error) = self.info.check("read", offset, length as u64) {
            return ready(Err(error));
        }
        delayed(self.read_latency(), self.base.read(offset, length))
    }

    fn write(&self, offset: u64, data: Vec<Bytes>) -> BdevFuture<()> {
        if let Err(error) = self.info.check_write(offset, &data) {
            return ready(Err(error));
        }
        delayed(self.write_latency(), self.base.write(offset, data))
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> BdevFuture<()> {
        if let Err(error) = self.info.check("write_zeroes", offset, length) {
            return ready(Err(error));
        }
        delayed(self.write_latency(), self.base.write_zeroes(offset, length))
    }

    fn unmap(&self, offset: u64, length: u64) -> BdevFuture<()> {
        if let Err(error) = self.info.check("unmap", offset, length) {
            return ready(Err(error));
        }
        delayed(self.write_latency(), self.base.unmap(offset, length))
    }

    fn flush(&self) -> BdevFuture<()> {
        delayed(self.write_latency(), self.base.flush())
    }
}
