//! [`KernelCache`] as an object: the client is one type whatever stands above it.

use std::ops::Range;

use futures_util::future::LocalBoxFuture;
use nacre_wire::Fid;

use crate::KernelCache;

/// A [`KernelCache`] behind a pointer.
pub(crate) trait Kernel {
    /// [`KernelCache::invalidate_attr`].
    fn attr(&self, fid: Fid) -> LocalBoxFuture<'_, ()>;
    /// [`KernelCache::invalidate_data`].
    fn data(&self, fid: Fid, range: Range<u64>) -> LocalBoxFuture<'_, ()>;
    /// [`KernelCache::invalidate_names`].
    fn names(&self) -> LocalBoxFuture<'_, ()>;
}

impl<K: KernelCache> Kernel for K {
    fn attr(&self, fid: Fid) -> LocalBoxFuture<'_, ()> {
        Box::pin(self.invalidate_attr(fid))
    }

    fn data(&self, fid: Fid, range: Range<u64>) -> LocalBoxFuture<'_, ()> {
        Box::pin(self.invalidate_data(fid, range))
    }

    fn names(&self) -> LocalBoxFuture<'_, ()> {
        Box::pin(self.invalidate_names())
    }
}

/// For mounts without a kernel above them (tools, tests, block devices).
#[derive(Clone, Copy, Debug, Default)]
pub struct NoKernel;

impl KernelCache for NoKernel {
    async fn invalidate_attr(&self, _fid: Fid) {}

    async fn invalidate_data(&self, _fid: Fid, _range: Range<u64>) {}

    async fn invalidate_names(&self) {}
}
