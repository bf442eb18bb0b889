//! Objects in memory: attributes and extent map of those in use, and of some that were.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::rc::Rc;

use nacre_wire::{Attr, Fid};
use tokio::sync::OnceCell;

use super::corrupt;
use super::extents::ExtentMap;
use super::index::{Tree, TryGet};
use super::ranges::RangeLocks;
use crate::format::object::{Kind, PREFIX_BYTES, decode_attr, decode_mapping, key, key_after};
use crate::store::{StoreError, Transno};

/// One object. Changes are made under [`RangeLocks`], synchronously, together with the index.
pub(crate) struct Object {
    pub fid: Fid,
    pub locks: Rc<RangeLocks>,
    attr_loaded: OnceCell<()>,
    extents_loaded: OnceCell<()>,
    /// `None`: there is no such object.
    pub attr: RefCell<Option<Attr>>,
    pub extents: RefCell<ExtentMap>,
    /// Youngest birth in the map, or growth. Until it is proven the object must stay in memory: the disk does not tell births.
    pub born: Cell<Transno>,
    /// Smallest size that was current since the transaction: until it is proven, a crash may bring that size back.
    grown: Cell<(u64, Transno)>,
    used: Cell<bool>,
}

impl Object {
    /// Loads the attributes, if they are not here.
    pub async fn load(&self, tree: &Tree) -> Result<(), StoreError> {
        if self.attr_loaded.initialized() {
            return Ok(());
        }
        let load = async || {
            let value = lookup(tree, &key(Kind::Attr, self.fid, &[])).await?;
            let attr = match value {
                Some(value) => Some(decode_attr(&value).ok_or_else(|| corrupt(self.fid, "its attributes"))?),
                None => None,
            };
            *self.attr.borrow_mut() = attr;
            Ok(())
        };
        self.attr_loaded.get_or_try_init(load).await.map(|_| ())
    }

    /// What the object will not be shorter than after a crash, bytes. Behind it nothing may be written in place: if the
    /// growth is undone, those bytes are behind the end, where zeros must be.
    pub fn size_floor(&self, proven: Transno) -> u64 {
        let size = self.attr.borrow().as_ref().map_or(0, |attr| attr.size);
        let (floor, transno) = self.grown.get();
        if transno > proven { floor.min(size) } else { size }
    }

    /// The transaction makes the object larger; called before the new size is set.
    pub fn note_growth(&self, proven: Transno, transno: Transno) {
        self.grown.set((self.size_floor(proven), transno));
        self.born.set(transno);
    }

    /// Loads attributes and extent map.
    pub async fn load_extents(&self, tree: &Tree, blocks_end: u64) -> Result<(), StoreError> {
        self.load(tree).await?;
        if self.extents_loaded.initialized() {
            return Ok(());
        }
        let load = async || {
            if self.attr.borrow().is_none() {
                return Ok(());
            }
            let damaged = || corrupt(self.fid, "its extent map");
            let (from, to) = (key(Kind::Extent, self.fid, &[]), key_after(Kind::Extent, self.fid));
            let (from, to) = (std::ops::Bound::Included(&from[..]), std::ops::Bound::Excluded(&to[..]));
            let mut extents = Vec::new();
            for (key, value) in tree.scan(from, to, usize::MAX).await? {
                let logical: [u8; 8] = key[PREFIX_BYTES..].try_into().map_err(|_| damaged())?;
                extents.push((u64::from_be_bytes(logical), decode_mapping(&value, blocks_end).ok_or_else(damaged)?));
            }
            *self.extents.borrow_mut() = ExtentMap::from_sorted(extents).ok_or_else(damaged)?;
            Ok(())
        };
        self.extents_loaded.get_or_try_init(load).await.map(|_| ())
    }
}

/// The objects in memory. Those that nobody uses are forgotten when there are too many.
pub(crate) struct Objects {
    /// Never iterated: its order is random.
    by_fid: RefCell<HashMap<Fid, Rc<Object>, BuildHasherDefault<FidHasher>>>,
    /// In the order in which they are looked at to be forgotten.
    clock: RefCell<VecDeque<Fid>>,
    objects_max: usize,
}

impl Objects {
    pub fn new(objects_max: usize) -> Objects {
        Objects { by_fid: RefCell::default(), clock: RefCell::default(), objects_max }
    }

    /// The object with this name, loaded or not.
    pub fn get(&self, fid: Fid, proven: Transno) -> Rc<Object> {
        if let Some(object) = self.by_fid.borrow().get(&fid) {
            object.used.set(true);
            return object.clone();
        }
        let object = Rc::new(Object {
            fid,
            locks: Rc::default(),
            attr_loaded: OnceCell::new(),
            extents_loaded: OnceCell::new(),
            attr: RefCell::default(),
            extents: RefCell::default(),
            born: Cell::new(0),
            grown: Cell::default(),
            used: Cell::new(false),
        });
        self.by_fid.borrow_mut().insert(fid, object.clone());
        self.clock.borrow_mut().push_back(fid);
        self.forget_some(proven);
        object
    }

    fn forget_some(&self, proven: Transno) {
        let (by_fid, clock) = (&mut *self.by_fid.borrow_mut(), &mut *self.clock.borrow_mut());
        for _ in 0..4 {
            if by_fid.len() <= self.objects_max {
                return;
            }
            let Some(fid) = clock.pop_front() else { return };
            let Some(object) = by_fid.get(&fid) else { continue };
            // Large maps count for many objects: they lose their second chance.
            let spared = object.used.replace(false) && object.extents.borrow().len() < 1000;
            if Rc::strong_count(object) > 1 || object.born.get() > proven || spared {
                clock.push_back(fid);
            } else {
                by_fid.remove(&fid);
            }
        }
    }
}

/// Mixes the few words of a FID: FIDs come from our own counters, and nobody gains by making them collide.
#[derive(Default)]
struct FidHasher(u64);

impl Hasher for FidHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(u64::from(word));
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }
}

/// As [`Tree::get`], without a future where none is needed.
pub(crate) async fn lookup(tree: &Tree, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
    match tree.try_get(key) {
        TryGet::Known(value) => Ok(value),
        TryGet::NeedsIo => tree.get(key).await,
    }
}
