//! `fsck`: is everything on the device right, and does it fit together?

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::ops::Bound;

use nacre_wire::{Attr, Fid};
use serde::Serialize;

use super::block_map::BlockMap;
use super::offline::{Offline, is_inside, plain};
use super::repair::{Fix, repair_log, repair_superblocks};
use crate::bdev::BdevRef;
use crate::engine::index::{Entry, Extent, RunDamage, verify_run};
use crate::format::get_varint;
use crate::format::object::{Kind, decode_attr, decode_mapping, encode_attr, key, split_key};
use crate::format::superblock::{BLOCK_BYTES, Found};
use crate::store::{StoreError, StoreErrorKind};

/// What a check came to.
#[derive(Clone, Debug, Serialize)]
pub struct Fsck {
    /// The short answer.
    pub verdict: Verdict,
    /// Problems, the first [`PROBLEMS_MAX`] of them.
    pub problems: Vec<Problem>,
    /// How many there are.
    pub problems_total: u64,
    /// Transaction up to which the store was checked.
    pub transno: u64,
    /// Objects there are.
    pub objects: u64,
    /// Extended attributes.
    pub xattrs: u64,
    /// Extents.
    pub extents: u64,
    /// Keys of index objects.
    pub keys: u64,
    /// Runs of the index.
    pub runs: u64,
    /// Entries in them, whatever they are.
    pub run_entries: u64,
    /// Records of the log behind the checkpoint.
    pub log_records: u64,
    /// Space taken by data, bytes.
    pub data_bytes: u64,
    /// Space taken by the index, bytes.
    pub index_bytes: u64,
}

/// The short answer of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// No problem.
    Clean,
    /// There were problems, and all were repaired.
    Repaired,
    /// There are problems.
    Damaged,
}

/// Something that is not right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// What to act on.
    pub kind: ProblemKind,
    /// The object, if one is concerned.
    #[serde(serialize_with = "fid_text", skip_serializing_if = "Option::is_none")]
    pub fid: Option<Fid>,
    /// Where in the object, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// Where on the device, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_offset: Option<u64>,
    /// In words.
    pub what: String,
    /// Whether it is repaired now.
    pub repaired: bool,
}

/// Kinds of [`Problem`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProblemKind {
    /// A superblock is not whole; another one is.
    Superblock,
    /// The checkpoint cannot be read.
    Checkpoint,
    /// The log does not follow its format.
    Log,
    /// A part of the index cannot be read.
    Run,
    /// A key or value of the index means nothing.
    Entry,
    /// Extents, extended attributes or keys of an object that is not there.
    Orphan,
    /// An extent lies outside of the space, or over another one of its object.
    Extent,
    /// Two own the same blocks.
    Overlap,
    /// Blocks of an object that the allocator takes for free.
    NotTaken,
    /// Blocks taken that nobody owns.
    Leak,
    /// An attribute contradicts the extents.
    Attribute,
    /// The number of objects or of taken blocks is wrong.
    Count,
}

/// Checks the store on a device that nobody has open. With `repair` it mends what can be mended without losing anything that is
/// readable: superblocks, the space map, orphans, counters.
pub async fn fsck(bdev: &BdevRef, repair: bool) -> Result<Fsck, StoreError> {
    let offline = Offline::open(bdev.clone()).await?;
    let mut check = Check::new(&offline);
    check.superblocks();
    check.structure();
    check.runs().await?;
    check.space_entries().await?;
    check.objects().await?;
    check.space();
    let Check { mut report, fixes, mut superblocks_bad, complete, fixable, .. } = check;
    if repair && report.problems_total > 0 {
        if superblocks_bad {
            repair_superblocks(&offline).await?;
            superblocks_bad = false;
            mark_repaired(&mut report, |kind| kind == ProblemKind::Superblock);
        }
        // A store with other damage is left as it is: a wrong owner of a block must not free it.
        if complete && fixable && !fixes.is_empty() {
            repair_log(&offline, &fixes).await?;
            mark_repaired(&mut report, |kind| {
                matches!(kind, ProblemKind::Orphan | ProblemKind::NotTaken | ProblemKind::Leak)
                    || matches!(kind, ProblemKind::Attribute | ProblemKind::Count)
            });
        }
        let all = complete && fixable && !superblocks_bad;
        report.verdict = if all { Verdict::Repaired } else { Verdict::Damaged };
    }
    Ok(report)
}

fn mark_repaired(report: &mut Fsck, which: impl Fn(ProblemKind) -> bool) {
    report.problems.iter_mut().filter(|problem| which(problem.kind)).for_each(|problem| problem.repaired = true);
}

struct Check<'a> {
    offline: &'a Offline,
    report: Fsck,
    /// Space of objects, of the allocator, of the index.
    owned: BlockMap,
    taken: BlockMap,
    internal: BlockMap,
    /// Blocks with two owners: found, to be named in a second pass.
    twice: BlockMap,
    shared: BlockMap,
    fixes: Vec<Fix>,
    superblocks_bad: bool,
    /// Everything could be read: what is missing is really missing.
    complete: bool,
    /// All problems so far are of a kind that repair mends.
    fixable: bool,
    run_damage: Vec<RunDamage>,
}

impl<'a> Check<'a> {
    fn new(offline: &'a Offline) -> Check<'a> {
        let space = offline.superblock.space;
        let map = || BlockMap::new(space);
        Check {
            offline,
            report: Fsck {
                verdict: Verdict::Clean,
                problems: Vec::new(),
                problems_total: 0,
                transno: offline.log.transno,
                objects: 0,
                xattrs: 0,
                extents: 0,
                keys: 0,
                runs: offline.root.runs.len() as u64,
                run_entries: 0,
                log_records: offline.log.records,
                data_bytes: 0,
                index_bytes: 0,
            },
            owned: map(),
            taken: map(),
            internal: map(),
            twice: map(),
            shared: map(),
            fixes: Vec::new(),
            superblocks_bad: false,
            complete: true,
            fixable: true,
            run_damage: Vec::new(),
        }
    }

    fn problem(&mut self, problem: Problem) {
        self.report.verdict = Verdict::Damaged;
        self.report.problems_total += 1;
        let mends = matches!(
            problem.kind,
            ProblemKind::Superblock
                | ProblemKind::Orphan
                | ProblemKind::NotTaken
                | ProblemKind::Leak
                | ProblemKind::Attribute
                | ProblemKind::Count
        );
        self.fixable &= mends;
        if self.report.problems.len() < PROBLEMS_MAX {
            self.report.problems.push(problem);
        }
    }

    fn superblocks(&mut self) {
        for place in &self.offline.places {
            let what = match &place.found {
                // A place that was never written is none; a crash leaves an older generation.
                Found::Valid(_) | Found::Nothing => continue,
                Found::Damaged => "superblock is damaged".to_owned(),
                Found::Newer { version, .. } => format!("superblock of version {version} beside one of this version"),
            };
            self.superblocks_bad = true;
            self.problem(Problem::at_device(ProblemKind::Superblock, place.offset, what));
        }
    }

    /// Checkpoint, log, and the space that the index takes.
    fn structure(&mut self) {
        for (at, what) in &self.offline.damage {
            self.complete = false;
            let kind = if what.contains("log") { ProblemKind::Log } else { ProblemKind::Checkpoint };
            self.problem(Problem { device_offset: *at, ..Problem::new(kind, what.clone()) });
        }
        let space = self.offline.superblock.space;
        let root = &self.offline.superblock.root;
        let runs =
            self.offline.root.runs.iter().flat_map(|run| run.extents.iter().map(|extent| (Some(run.id), *extent)));
        let all: Vec<_> = root.extents.iter().map(|extent| (None, *extent)).chain(runs).collect();
        for (run, extent) in all {
            let whose = run.map_or_else(|| "the checkpoint".into(), |run| format!("run {run}"));
            self.report.index_bytes += extent.length;
            if !is_inside(extent, space) {
                let what = format!("{} bytes of {whose} lie outside of the space", extent.length);
                self.problem(Problem::at_device(ProblemKind::Run, extent.offset, what));
            } else if !self.internal.set(extent) {
                let what = format!("{} bytes of {whose} belong to another part of the index too", extent.length);
                self.problem(Problem::at_device(ProblemKind::Overlap, extent.offset, what));
            }
        }
    }

    /// All blocks of all runs.
    async fn runs(&mut self) -> Result<(), StoreError> {
        let io = self.offline.run_io();
        for handle in &self.offline.runs {
            let check = match verify_run(&*io, handle).await {
                Ok(check) => check,
                Err(error) => {
                    self.complete = false;
                    self.problem(Problem::new(ProblemKind::Run, plain(&error)));
                    continue;
                }
            };
            self.report.run_entries += check.keys;
            for damage in check.damage {
                self.complete = false;
                let (from, to) = (split_key(&damage.from), split_key(&damage.to));
                let which = match (from, to) {
                    (Some((from, _)), Some((to, _))) if from == to => format!(" (entries of {from})"),
                    (Some((from, _)), Some((to, _))) => format!(" (entries of objects from {from} to {to})"),
                    (None, Some((to, _))) => format!(" (entries of objects up to {to})"),
                    _ => String::new(),
                };
                let fid = to.filter(|to| from.is_some_and(|from| from.0 == to.0)).map(|to| to.0);
                let what = format!("{}{which}", damage.what);
                let device_offset = damage.device_offset;
                self.problem(Problem { fid, device_offset, ..Problem::new(ProblemKind::Run, what) });
                self.run_damage.push(damage);
            }
        }
        self.run_damage.sort_by(|left, right| left.to.cmp(&right.to));
        Ok(())
    }

    /// The space map, and the entries that are of no known kind.
    async fn space_entries(&mut self) -> Result<(), StoreError> {
        let space = self.offline.superblock.space;
        let mut entries = Entries::from(vec![Kind::Space as u8]);
        while let Some((key, value)) = entries.next_of(self, Some(Kind::Space)).await? {
            let region = key.get(1..).and_then(|key| <[u8; 4]>::try_from(key).ok()).map(u32::from_be_bytes);
            let first = region.map(|region| u64::from(region) * REGION_BLOCKS * BLOCK_BYTES);
            let Some(first) = first.filter(|first| *first < space.length) else {
                self.problem(Problem::new(ProblemKind::Entry, format!("a space map entry has the key {}", Hex(&key))));
                continue;
            };
            let Some(runs) = taken_runs(&value) else {
                let what =
                    format!("the space map of the {} bytes from here on means nothing", REGION_BLOCKS * BLOCK_BYTES);
                self.problem(Problem::at_device(ProblemKind::Entry, space.offset + first, what));
                continue;
            };
            for (start, blocks) in runs {
                let offset = space.offset + first + start * BLOCK_BYTES;
                let extent = Extent { offset, length: blocks * BLOCK_BYTES };
                if is_inside(extent, space) {
                    self.taken.set(extent);
                } else {
                    let what = "the space map tells of blocks outside of the space".to_owned();
                    self.problem(Problem::at_device(ProblemKind::Entry, offset, what));
                }
            }
        }
        let (says, has) = (self.offline.root.taken_blocks, self.taken.count());
        if self.complete && says != has {
            let what = format!("the checkpoint says {says} blocks are taken, its space map has {has}");
            self.problem(Problem::new(ProblemKind::Checkpoint, what));
        }
        for (take, extent) in &self.offline.space_changes {
            if !is_inside(*extent, space) {
                let what = format!("the log takes or gives {} bytes outside of the space", extent.length);
                self.problem(Problem::at_device(ProblemKind::Log, extent.offset, what));
            } else if *take {
                self.taken.set(*extent);
            } else {
                self.taken.clear(*extent);
            }
        }
        for (from, to) in [(vec![], Some(Kind::Attr as u8)), (vec![Kind::Doomed as u8 + 1], None)] {
            let mut entries = Entries::from(from);
            while let Some((key, _)) = entries.next(self).await?.filter(|(key, _)| to.is_none_or(|to| key < &vec![to]))
            {
                self.problem(Problem::new(ProblemKind::Entry, format!("an entry of no known kind: key {}", Hex(&key))));
            }
        }
        Ok(())
    }

    /// Objects and everything that belongs to one. Each kind of entries is sorted by object, and is walked beside the attributes.
    async fn objects(&mut self) -> Result<(), StoreError> {
        let mut doomed = BTreeSet::new();
        let mut entries = Entries::from(vec![Kind::Doomed as u8]);
        while let Some((key, _)) = entries.next_of(self, Some(Kind::Doomed)).await? {
            match split_key(&key) {
                Some((fid, [])) => drop(doomed.insert(fid)),
                _ => self.bad_entry(&key, "the mark of a destroyed object has a wrong key"),
            }
        }
        for kind in [Kind::Xattr, Kind::Extent, Kind::Index] {
            self.objects_beside(kind, &doomed).await?;
        }
        if !self.twice.is_empty() {
            self.name_overlaps().await?;
        }
        let counted = self.offline.root.objects.saturating_add_signed(self.offline.log.objects);
        if self.complete && counted != self.report.objects {
            let objects = self.report.objects;
            let what = format!("the store says it has {counted} objects, it has {objects}");
            self.problem(Problem::new(ProblemKind::Count, what));
            self.fixes.push(Fix::Objects(objects as i64 - counted as i64));
        }
        Ok(())
    }

    async fn objects_beside(&mut self, kind: Kind, doomed: &BTreeSet<Fid>) -> Result<(), StoreError> {
        let mut attrs = Entries::from(vec![Kind::Attr as u8]);
        let mut entries = Entries::from(vec![kind as u8]);
        let mut attr = self.next_attr(&mut attrs, kind).await?;
        let mut object = ObjectSum::default();
        loop {
            let entry = entries.next_of(self, Some(kind)).await?;
            let Some((key, value)) = entry else { break };
            let Some((fid, rest)) = split_key(&key) else {
                self.bad_entry(&key, "a key is too short");
                continue;
            };
            // Objects that are passed are complete.
            while let Some((passed, value)) = attr.take_if(|(own, _)| *own < fid) {
                self.object_done(kind, passed, &value, &object);
                attr = self.next_attr(&mut attrs, kind).await?;
            }
            let there = attr.as_ref().is_some_and(|(own, _)| *own == fid);
            if object.fid != fid {
                object = ObjectSum { fid, ..ObjectSum::default() };
            }
            let local = kind == Kind::Index && fid.seq == nacre_wire::fid::SEQ_LOCAL;
            let orphan = !there && !local && !doomed.contains(&fid);
            match kind {
                Kind::Xattr => self.report.xattrs += 1,
                Kind::Extent => self.extent(fid, rest, &key, &value, orphan, &mut object),
                _ => self.report.keys += 1,
            }
            if orphan && self.complete {
                let what = format!("an entry of kind {} of an object that is not there", kind as u8);
                self.problem(Problem { fid: Some(fid), ..Problem::new(ProblemKind::Orphan, what) });
                self.fixes.push(Fix::Delete(key.clone()));
            }
        }
        while let Some((passed, value)) = attr {
            self.object_done(kind, passed, &value, &object);
            attr = self.next_attr(&mut attrs, kind).await?;
        }
        Ok(())
    }

    /// The next object; wrong attributes are reported once, in the walk beside the extents, which also counts.
    async fn next_attr(&mut self, attrs: &mut Entries, kind: Kind) -> Result<Option<(Fid, Attr)>, StoreError> {
        while let Some((key, value)) = attrs.next_of(self, Some(Kind::Attr)).await? {
            let counts = kind == Kind::Extent;
            match (split_key(&key), decode_attr(&value)) {
                (Some((fid, [])), Some(attr)) => {
                    self.report.objects += u64::from(counts);
                    return Ok(Some((fid, attr)));
                }
                (Some((fid, [])), None) => {
                    self.report.objects += u64::from(counts);
                    if counts {
                        self.bad_entry(&key, "attributes mean nothing");
                    }
                    // Its entries are no orphans: the object is there.
                    return Ok(Some((fid, Attr { allocated_bytes: u64::MAX, ..Attr::default() })));
                }
                _ if counts => self.bad_entry(&key, "a key of attributes has a wrong length"),
                _ => {}
            }
        }
        Ok(None)
    }

    fn extent(&mut self, fid: Fid, rest: &[u8], key: &[u8], value: &[u8], orphan: bool, object: &mut ObjectSum) {
        self.report.extents += 1;
        let Some(logical) = <[u8; 8]>::try_from(rest).ok().map(u64::from_be_bytes) else {
            return self.bad_entry(key, "a key of an extent has a wrong length");
        };
        let offset = logical.checked_mul(BLOCK_BYTES);
        let Some(mapping) = decode_mapping(value, self.offline.blocks_end()) else {
            let what = "an extent means nothing or lies outside of the device".to_owned();
            return self.problem(Problem { fid: Some(fid), offset, ..Problem::new(ProblemKind::Extent, what) });
        };
        let extent = Extent { offset: mapping.physical * BLOCK_BYTES, length: mapping.blocks * BLOCK_BYTES };
        let here = |kind, what: &str| Problem {
            fid: Some(fid),
            offset,
            device_offset: Some(extent.offset),
            ..Problem::new(kind, format!("{what} ({} bytes)", extent.length))
        };
        if !is_inside(extent, self.offline.superblock.space) {
            return self.problem(here(ProblemKind::Extent, "an extent lies outside of the space"));
        }
        if logical < object.next_logical {
            self.problem(here(ProblemKind::Extent, "an extent begins before the end of the one before"));
        }
        object.next_logical = logical.saturating_add(mapping.blocks);
        object.blocks += mapping.blocks;
        self.report.data_bytes += extent.length;
        if self.internal.touches(extent) {
            self.problem(here(ProblemKind::Overlap, "an extent lies over the index"));
        }
        if self.owned.touches(extent) && !(mapping.shared && self.shared.covers(extent)) {
            self.twice.set(extent);
        }
        self.owned.set(extent);
        if mapping.shared {
            self.shared.set(extent);
        }
        if orphan && self.complete {
            self.fixes.push(Fix::Give(extent));
        }
    }

    fn object_done(&mut self, kind: Kind, fid: Fid, attr: &Attr, object: &ObjectSum) {
        let blocks = if object.fid == fid { object.blocks } else { 0 };
        let (says, has) = (attr.allocated_bytes, blocks * BLOCK_BYTES);
        if kind != Kind::Extent || says == has || says == u64::MAX || !self.complete {
            return;
        }
        let what = format!("attributes say {says} bytes are allocated, it has {has}");
        self.problem(Problem { fid: Some(fid), ..Problem::new(ProblemKind::Attribute, what) });
        let attr = Attr { allocated_bytes: has, ..attr.clone() };
        self.fixes.push(Fix::Put(key(Kind::Attr, fid, &[]).into(), encode_attr(&attr).into()));
    }

    /// Reports all owners of blocks with several.
    async fn name_overlaps(&mut self) -> Result<(), StoreError> {
        let mut entries = Entries::from(vec![Kind::Extent as u8]);
        while let Some((key, value)) = entries.next_of(self, Some(Kind::Extent)).await? {
            let Some((fid, rest)) = split_key(&key) else { continue };
            let Some(mapping) = decode_mapping(&value, self.offline.blocks_end()) else { continue };
            let extent = Extent { offset: mapping.physical * BLOCK_BYTES, length: mapping.blocks * BLOCK_BYTES };
            if is_inside(extent, self.offline.superblock.space) && self.twice.touches(extent) {
                let logical = <[u8; 8]>::try_from(rest).ok().map(u64::from_be_bytes);
                let what = format!("{} bytes of an extent are also in another extent", extent.length);
                let problem = Problem::at_device(ProblemKind::Overlap, extent.offset, what);
                let offset = logical.and_then(|logical| logical.checked_mul(BLOCK_BYTES));
                self.problem(Problem { fid: Some(fid), offset, ..problem });
            }
        }
        Ok(())
    }

    /// The allocator's view against the owners'.
    fn space(&mut self) {
        if !self.complete {
            return;
        }
        let mut fixes = Vec::new();
        for extent in self.owned.minus(&self.taken) {
            let what = format!("{} bytes of objects are free for the allocator", extent.length);
            self.problem(Problem::at_device(ProblemKind::NotTaken, extent.offset, what));
            fixes.push(Fix::Take(extent));
        }
        for extent in self.taken.minus(&self.owned) {
            let what = format!("{} bytes are taken and belong to nobody", extent.length);
            self.problem(Problem::at_device(ProblemKind::Leak, extent.offset, what));
            fixes.push(Fix::Give(extent));
        }
        for extent in self.taken.intersection(&self.internal) {
            let what = format!("{} bytes of the index are taken for data too", extent.length);
            self.problem(Problem::at_device(ProblemKind::Overlap, extent.offset, what));
        }
        // What an orphan gives back is given once, here or there; what two orphans share is given once.
        self.fixes.extend(fixes);
    }

    fn bad_entry(&mut self, key: &[u8], what: &str) {
        let fid = split_key(key).map(|(fid, _)| fid);
        self.problem(Problem { fid, ..Problem::new(ProblemKind::Entry, format!("{what} (key {})", Hex(key))) });
    }
}

impl Problem {
    fn new(kind: ProblemKind, what: String) -> Problem {
        Problem { kind, fid: None, offset: None, device_offset: None, what, repaired: false }
    }

    fn at_device(kind: ProblemKind, offset: u64, what: String) -> Problem {
        Problem { device_offset: Some(offset), ..Problem::new(kind, what) }
    }
}

/// What the extents of an object, the last one that was met, come to.
#[derive(Default)]
struct ObjectSum {
    fid: Fid,
    blocks: u64,
    next_logical: u64,
}

/// Entries of the index in order, a page at a time. Damaged parts are left out; they are reported by [`Check::runs`].
struct Entries {
    page: VecDeque<Entry>,
    from: Bound<Vec<u8>>,
    done: bool,
}

impl Entries {
    fn from(key: Vec<u8>) -> Entries {
        Entries { page: VecDeque::new(), from: Bound::Included(key), done: false }
    }

    /// The next entry, if it is of this kind.
    async fn next_of(&mut self, check: &Check<'_>, kind: Option<Kind>) -> Result<Option<Entry>, StoreError> {
        let entry = self.next(check).await?;
        Ok(entry.filter(|(key, _)| key.first().copied() == kind.map(|kind| kind as u8)))
    }

    async fn next(&mut self, check: &Check<'_>) -> Result<Option<Entry>, StoreError> {
        while self.page.is_empty() && !self.done {
            let from = self.from.as_ref().map(Vec::as_slice);
            match check.offline.tree.scan(from, Bound::Unbounded, PAGE_ENTRIES).await {
                Ok(page) => {
                    self.done = page.len() < PAGE_ENTRIES;
                    if let Some((last, _)) = page.last() {
                        self.from = Bound::Excluded(last.clone());
                    }
                    self.page = page.into();
                }
                Err(error) if error.kind == StoreErrorKind::Corrupt => self.skip(check).await?,
                Err(error) => return Err(error),
            }
        }
        Ok(self.page.pop_front())
    }

    /// Reads entry by entry up to the damaged part, and goes on behind it.
    async fn skip(&mut self, check: &Check<'_>) -> Result<(), StoreError> {
        let (Bound::Included(from) | Bound::Excluded(from)) = &self.from else { return Ok(()) };
        let next = check.run_damage.iter().find(|damage| damage.to > *from);
        let Some(damage) = next else {
            self.done = true;
            return Ok(());
        };
        let scan =
            check.offline.tree.scan(self.from.as_ref().map(Vec::as_slice), Bound::Included(&damage.from), usize::MAX);
        self.page = scan.await.unwrap_or_default().into();
        self.from = Bound::Excluded(damage.to.clone());
        Ok(())
    }
}

/// Taken runs of blocks of a region of the space map: first block in the region and number.
fn taken_runs(value: &[u8]) -> Option<Vec<(u64, u64)>> {
    let (form, mut rest) = value.split_first()?;
    let mut runs = Vec::new();
    match form {
        1 => {
            let (mut at, mut taken) = (0, false);
            while !rest.is_empty() {
                let blocks = get_varint(&mut rest).filter(|blocks| *blocks <= REGION_BLOCKS - at)?;
                if taken && blocks > 0 {
                    runs.push((at, blocks));
                }
                (at, taken) = (at + blocks, !taken);
            }
            (at == REGION_BLOCKS).then_some(runs)
        }
        2 if rest.len() as u64 == REGION_BLOCKS / 8 => {
            for (byte, bits) in rest.iter().enumerate() {
                let set = (0..8).filter(|bit| bits & 1 << bit != 0);
                runs.extend(set.map(|bit| (byte as u64 * 8 + bit, 1)));
            }
            Some(runs)
        }
        _ => None,
    }
}

fn fid_text<S: serde::Serializer>(fid: &Option<Fid>, serializer: S) -> Result<S::Ok, S::Error> {
    match fid {
        Some(fid) => serializer.collect_str(fid),
        None => serializer.serialize_none(),
    }
}

/// Bytes in hexadecimal, cut after 40.
pub(super) struct Hex<'a>(pub(super) &'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(40).try_for_each(|byte| write!(f, "{byte:02x}"))?;
        if self.0.len() > 40 { write!(f, "… ({} bytes)", self.0.len()) } else { Ok(()) }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(fid) = self.fid {
            write!(f, "{fid}")?;
            match self.offset {
                Some(offset) => write!(f, " at byte {offset}: ")?,
                None => f.write_str(": ")?,
            }
        }
        write!(f, "{}", self.what)?;
        if let Some(offset) = self.device_offset.filter(|_| !self.what.contains("device byte")) {
            write!(f, ", device byte {offset}")?;
        }
        if self.repaired { f.write_str(" [repaired]") } else { Ok(()) }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Clean => "clean",
            Verdict::Repaired => "repaired",
            Verdict::Damaged => "damaged",
        })
    }
}

impl fmt::Display for Fsck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.problems {
            writeln!(f, "{problem}")?;
        }
        let unnamed = self.problems_total - self.problems.len() as u64;
        if unnamed > 0 {
            writeln!(f, "… and {unnamed} problems more")?;
        }
        write!(
            f,
            "{}: {} objects, {} extents, {} xattrs, {} keys, {} bytes of data; {} runs with {} entries, {} log records, up to \
             transaction {}",
            self.verdict,
            self.objects,
            self.extents,
            self.xattrs,
            self.keys,
            self.data_bytes,
            self.runs,
            self.run_entries,
            self.log_records,
            self.transno
        )
    }
}

/// Most problems in a report.
pub const PROBLEMS_MAX: usize = 1000;
/// Entries read at once.
const PAGE_ENTRIES: usize = 4096;
/// Blocks in a region of the space map.
const REGION_BLOCKS: u64 = 32768;
