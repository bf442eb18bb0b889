//! `bdev_malloc_create`: a device in memory. Never lost before the process, so its flush has nothing to do. Memory is
//! taken when it is written and given back by unmap.

use std::cell::RefCell;

use nacre_reactor::{Bytes, DmaBuf};
use nacre_wire::Uuid;
use serde::Deserialize;

use super::image::Image;
use super::{Bdev, BdevError, BdevFuture, BdevInfo, check_shape, ready};

/// Parameters of `bdev_malloc_create`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Number of blocks.
    pub num_blocks: u64,
    /// Bytes of a block: 512 or 4096.
    pub block_size: u32,
    /// Name; the registry invents `Malloc0`, `Malloc1`, …
    pub name: Option<String>,
    /// Identity.
    #[serde(default, deserialize_with = "super::uuid_text")]
    pub uuid: Option<Uuid>,
}

/// A device in memory.
pub struct Malloc {
    info: BdevInfo,
    image: RefCell<Image>,
}

impl Malloc {
    /// Makes one; it reads zeros.
    pub fn new(params: &Params) -> Result<Malloc, BdevError> {
        let name = params.name.clone().unwrap_or_else(|| "Malloc0".to_owned());
        check_shape(&name, params.block_size, params.num_blocks)?;
        let info = BdevInfo {
            name,
            product: "Malloc disk",
            uuid: params.uuid.unwrap_or(Uuid::NIL),
            block_bytes: params.block_size,
            blocks: params.num_blocks,
            atomic_bytes: params.block_size,
            volatile_cache: false,
            unmap: true,
        };
        let image = RefCell::new(Image::zeroed(info.bytes()));
        Ok(Malloc { info, image })
    }

    /// One of so many bytes in blocks of 4 KiB: for tests.
    pub fn with_bytes(name: &str, bytes: u64) -> Result<Malloc, BdevError> {
        Malloc::new(&Params { num_blocks: bytes / 4096, block_size: 4096, name: Some(name.to_owned()), uuid: None })
    }
}

impl Bdev for Malloc {
    fn info(&self) -> &BdevInfo {
        &self.info
    }

    fn read(&self, offset: u64, length: usize) -> BdevFuture<DmaBuf> {
        ready(self.info.check("read", offset, length as u64).map(|()| {
            let mut buf = DmaBuf::uncleared(length);
            self.image.borrow().read(offset, &mut buf);
            buf
        }))
    }

    fn write(&self, offset: u64, data: Vec<Bytes>) -> BdevFuture<()> {
        ready(self.info.check_write(offset, &data).map(|_| {
            let mut image = self.image.borrow_mut();
            let mut at = offset;
            for bytes in &data {
                image.write(at, bytes);
                at += bytes.len() as u64;
            }
        }))
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> BdevFuture<()> {
        let checked = self.info.check("write_zeroes", offset, length);
        ready(checked.map(|()| self.image.borrow_mut().zero(offset, length)))
    }

    fn unmap(&self, offset: u64, length: u64) -> BdevFuture<()> {
        ready(self.info.check("unmap", offset, length).map(|()| self.image.borrow_mut().zero(offset, length)))
    }

    fn flush(&self) -> BdevFuture<()> {
        ready(Ok(()))
    }
}
