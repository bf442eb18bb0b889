//! `Store`: objects, index objects, transactions. What OST, MDT and MGS keep, they keep through this.
//!
//! A [`Transaction`] is atomic: after any crash all of it is there or nothing. Transactions become visible in the order
//! of their [`Transno`], and what survives a crash is a prefix of that order that includes everything up to
//! [`Store::last_committed`].
//!
//! ```text
//! submit ──► visible (transno) ──► written (survives the end of the process) ──► stable (survives power loss)
//! ```

use std::fmt;
use std::ops::Range;

use futures_util::future::LocalBoxFuture;
use nacre_reactor::Bytes;
use nacre_wire::{Attr, AttrPatch, Fid, Status};

/// Sequence number of a transaction; starts at 1 and never goes back, not even over a restart.
pub type Transno = u64;

/// Largest size of an object: `off_t` holds it.
pub const OBJECT_BYTES_MAX: u64 = i64::MAX as u64;
/// Longest key of an index object, bytes.
pub const KEY_BYTES_MAX: usize = 1024;
/// Longest value of a key or an extended attribute, bytes.
pub const VALUE_BYTES_MAX: usize = 65536;
/// Longest name of an extended attribute, bytes.
pub const XATTR_NAME_BYTES_MAX: usize = 255;
/// Longest label, bytes.
pub const LABEL_BYTES_MAX: usize = 2048;

/// A future of this reactor.
pub type Fut<'a, T> = LocalBoxFuture<'a, T>;

/// One change of a transaction. Operations of one transaction are applied in order.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "the text of each operation names its fields")]
pub enum Op {
    /// A new object with these attributes (`size`, `allocated_bytes` and `version` are ignored). `Exists` if it is there.
    Create { fid: Fid, attr: Attr },
    /// Removes an object, its data, extended attributes and index entries. `NotFound` if it is not there.
    Destroy { fid: Fid },
    /// Changes attributes; a `size` in the patch sets the recorded size and touches no data.
    SetAttr { fid: Fid, patch: AttrPatch },
    /// Writes bytes; the size grows as needed.
    Write { fid: Fid, offset: u64, data: Bytes },
    /// Sets the size; data beyond is given back, a gap reads zeros. Bytes between a shrunk and a later grown end read zeros.
    Truncate { fid: Fid, size: u64 },
    /// Gives space in the range back; it reads zeros. The size stays.
    Punch { fid: Fid, range: Range<u64> },
    /// Reserves space for the range; holes become unwritten extents, which read zeros. The size grows unless `keep_size`.
    Allocate { fid: Fid, range: Range<u64>, keep_size: bool },
    /// The range reads zeros and its space is reserved. The size grows unless `keep_size`.
    Zero { fid: Fid, range: Range<u64>, keep_size: bool },
    /// Sets an extended attribute (name ≤ 255 bytes, value ≤ 64 KiB).
    SetXattr { fid: Fid, name: Vec<u8>, value: Vec<u8> },
    /// Removes one; none there is no error.
    RemoveXattr { fid: Fid, name: Vec<u8> },
    /// Sets a key (≤ 1024 bytes, value ≤ 64 KiB) of an index object. Any object may have keys; it need not exist for
    /// FIDs of sequence [`nacre_wire::fid::SEQ_LOCAL`].
    Put { index: Fid, key: Vec<u8>, value: Vec<u8> },
    /// Removes a key; none there is no error.
    Delete { index: Fid, key: Vec<u8> },
}

impl Op {
    /// The object that the operation changes.
    pub fn fid(&self) -> Fid {
        match self {
            Op::Create { fid, .. }
            | Op::Destroy { fid }
            | Op::SetAttr { fid, .. }
            | Op::Write { fid, .. }
            | Op::Truncate { fid, .. }
            | Op::Punch { fid, .. }
            | Op::Allocate { fid, .. }
            | Op::Zero { fid, .. }
            | Op::SetXattr { fid, .. }
            | Op::RemoveXattr { fid, .. } => *fid,
            Op::Put { index, .. } | Op::Delete { index, .. } => *index,
        }
    }

    /// What error messages call it.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Create { .. } => "create",
            Op::Destroy { .. } => "destroy",
            Op::SetAttr { .. } => "set attributes",
            Op::Write { .. } => "write",
            Op::Truncate { .. } => "truncate",
            Op::Punch { .. } => "punch",
            Op::Allocate { .. } => "allocate",
            Op::Zero { .. } => "zero",
            Op::SetXattr { .. } => "set xattr",
            Op::RemoveXattr { .. } => "remove xattr",
            Op::Put { .. } => "put",
            Op::Delete { .. } => "delete",
        }
    }
}

/// Changes that happen together.
#[derive(Clone, Debug, Default)]
pub struct Transaction {
    /// In order.
    pub ops: Vec<Op>,
}

/// How safe a transaction must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Handed to the device: survives kill −9, not power loss.
    Written,
    /// Flushed: survives power loss.
    Stable,
}

/// Space of a store, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// For data and metadata together.
    pub total_bytes: u64,
    /// Not taken. Some is held back so that deleting always works; it is not in here.
    pub free_bytes: u64,
    /// Objects there are.
    pub objects: u64,
    /// Size of the allocation unit.
    pub block_bytes: u32,
}

/// What to look for with [`Store::seek`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    /// Bytes that were written. An unwritten extent counts as a hole.
    Data,
    /// A hole; the end of the object is one.
    Hole,
}

/// A piece of an object's allocation, for `lfs`, `inspect` and FIEMAP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtentInfo {
    /// In the object, bytes.
    pub logical: u64,
    /// On the device, bytes. The model says 0.
    pub physical: u64,
    /// Bytes.
    pub length: u64,
    /// Reserved, reads zeros.
    pub unwritten: bool,
}

/// An object store. All calls of one reactor; `&self` everywhere; a store may be shared as `Rc<dyn Store>`.
///
/// Reads see every transaction whose `submit` has completed. Two submits under way on the same object are applied one after
/// the other; which first, the caller does not know. A failed submit changes nothing.
pub trait Store {
    /// Makes a transaction visible; the answer is its number. Data of large writes is on its way to fresh space before the
    /// transaction is ordered; small changes complete without waiting for the device.
    fn submit(&self, transaction: Transaction) -> Fut<'_, Result<Transno, StoreError>>;

    /// Waits until everything up to `transno` is as safe as asked. Concurrent waits share one flush (group commit).
    fn wait(&self, transno: Transno, durability: Durability) -> Fut<'_, Result<(), StoreError>>;

    /// Last transaction visible.
    fn last_transno(&self) -> Transno;

    /// Last transaction on stable media.
    fn last_committed(&self) -> Transno;

    /// Attributes; `NotFound`.
    fn attr(&self, fid: Fid) -> Fut<'_, Result<Attr, StoreError>>;

    /// Bytes of an object, cut at its size; holes read zeros.
    fn read(&self, fid: Fid, offset: u64, length: usize) -> Fut<'_, Result<Bytes, StoreError>>;

    /// One extended attribute.
    fn xattr<'a>(&'a self, fid: Fid, name: &'a [u8]) -> Fut<'a, Result<Option<Vec<u8>>, StoreError>>;

    /// All extended attributes, by name.
    #[allow(clippy::type_complexity, reason = "pairs of name and value")]
    fn xattrs(&self, fid: Fid) -> Fut<'_, Result<Vec<(Vec<u8>, Vec<u8>)>, StoreError>>;

    /// Value of a key of an index object.
    fn get<'a>(&'a self, index: Fid, key: &'a [u8]) -> Fut<'a, Result<Option<Vec<u8>>, StoreError>>;

    /// Up to `limit` keys of an index object that are greater than `after` (or all, with `None`), in order.
    #[allow(clippy::type_complexity, reason = "pairs of key and value")]
    fn scan<'a>(
        &'a self,
        index: Fid,
        after: Option<&'a [u8]>,
        limit: usize,
    ) -> Fut<'a, Result<Vec<(Vec<u8>, Vec<u8>)>, StoreError>>;

    /// Next data or hole at or after `offset`; `None`: none before the end.
    fn seek(&self, fid: Fid, offset: u64, what: Seek) -> Fut<'_, Result<Option<u64>, StoreError>>;

    /// Allocated extents that touch the range, in order, at most `limit`.
    fn extents(&self, fid: Fid, range: Range<u64>, limit: usize) -> Fut<'_, Result<Vec<ExtentInfo>, StoreError>>;

    /// FIDs of objects greater than `after`, in order, at most `limit`.
    fn objects(&self, after: Option<Fid>, limit: usize) -> Fut<'_, Result<Vec<Fid>, StoreError>>;

    /// Space.
    fn space(&self) -> Space;

    /// Largest size an object can have, bytes.
    fn object_bytes_max(&self) -> u64;

    /// The label that mkfs wrote (opaque here).
    fn label(&self) -> Vec<u8>;

    /// Replaces the label (≤ 2048 bytes), stable when it completes.
    fn set_label(&self, label: Vec<u8>) -> Fut<'_, Result<(), StoreError>>;

    /// Makes everything stable, stops background work, marks the store clean. Nothing may be submitted afterwards.
    fn close(&self) -> Fut<'_, Result<(), StoreError>>;
}

/// Why a store operation failed.
#[derive(Debug)]
pub struct StoreError {
    /// What to act on.
    pub kind: StoreErrorKind,
    /// `write`, `open`, …
    pub op: &'static str,
    /// The object, if one is to blame.
    pub fid: Option<Fid>,
    /// What exactly, for people.
    pub context: String,
    /// The device's word.
    pub source: Option<Box<crate::bdev::BdevError>>,
}

/// Kinds of [`StoreError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreErrorKind {
    /// No such object.
    NotFound,
    /// The object is there already.
    Exists,
    /// The device is full.
    NoSpace,
    /// Larger than the store or the format allows.
    TooBig,
    /// Arguments that mean nothing.
    Invalid,
    /// The device failed.
    Io,
    /// What was read is not what was written.
    Corrupt,
    /// The device holds no store, or one of a version or with features unknown here.
    NotAStore,
    /// After a failed log write nothing more is taken.
    ReadOnly,
}

impl StoreErrorKind {
    /// The status that travels.
    pub fn status(self) -> Status {
        match self {
            StoreErrorKind::NotFound => Status::ENOENT,
            StoreErrorKind::Exists => Status::EEXIST,
            StoreErrorKind::NoSpace => Status::ENOSPC,
            StoreErrorKind::TooBig => Status::EFBIG,
            StoreErrorKind::Invalid | StoreErrorKind::NotAStore => Status::EINVAL,
            StoreErrorKind::Io => Status::EIO,
            StoreErrorKind::Corrupt => Status::EBADMSG,
            StoreErrorKind::ReadOnly => Status::EROFS,
        }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.op)?;
        if let Some(fid) = self.fid {
            write!(f, " {fid}")?;
        }
        write!(f, ": {}", self.context)?;
        if let Some(source) = &self.source {
            write!(f, ": {source}")?;
        }
        Ok(())
    }
}

impl std::error::Error for StoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| source as _)
    }
}
