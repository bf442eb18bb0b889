//! `bdev_null_create`: takes every write and keeps none; reads zeros. For measuring what is above.

use nacre_reactor::{Bytes, DmaBuf};
use nacre_wire::Uuid;
use serde::Deserialize;

use super::{Bdev, BdevError, BdevFuture, BdevInfo, check_shape, ready};

/// Parameters of `bdev_null_create`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Name.
    pub name: String,
    /// Number of blocks.
    pub num_blocks: u64,
    /// Bytes of a block: 512 or 4096.
    pub block_size: u32,
    /// Identity.
    #[serde(default, deserialize_with = "super::uuid_text")]
    pub uuid: Option<Uuid>,
}

/// A device that forgets.
pub struct Null {
    info: BdevInfo,
}

impl Null {
    /// Makes one.
    pub fn new(params: &Params) -> Result<Null, BdevError> {
        check_shape(&params.name, params.block_size, params.num_blocks)?;
        let info = BdevInfo {
            name: params.name.clone(),
            product: "Null disk",
            uuid: params.uuid.unwrap_or(Uuid::NIL),
            block_bytes: params.block_size,
            blocks: params.num_blocks,
            atomic_bytes: params.block_size,
            volatile_cache: false,
            unmap: true,
        };
        Ok(Null { info })
    }
}

impl Bdev for Null {
    fn info(&self) -> &BdevInfo {
        &self.info
    }

    fn read(&self, offset: u64, length: usize) -> BdevFuture<DmaBuf> {
        ready(self.info.check("read", offset, length as u64).map(|()| DmaBuf::zeroed(length)))
    }

    fn write(&self, offset: u64, data: Vec<Bytes>) -> BdevFuture<()> {
        ready(self.info.check_write(offset, &data).map(|_| ()))
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> BdevFuture<()> {
        ready(self.info.check("write_zeroes", offset, length))
    }

    fn unmap(&self, offset: u64, length: u64) -> BdevFuture<()> {
        ready(self.info.check("unmap", offset, length))
    }

    fn flush(&self) -> BdevFuture<()> {
        ready(Ok(()))
    }
}
