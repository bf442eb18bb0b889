//! RENAME: renameat2(2).
//!
//! - Both directories must be searchable, then writable (EACCES); sticky bits protect the inode that moves and the one that
//!   is replaced (EPERM). A directory that changes its parent must be writable itself, because `..` in it changes.
//! - A new name that is there is replaced: a directory only by a directory (ENOTDIR, EISDIR) and only if empty (ENOTEMPTY).
//!   NOREPLACE makes it EEXIST. EXCHANGE wants both names and swaps them.
//! - A directory is never moved below itself (EINVAL); a directory above the old name cannot be replaced (ENOTEMPTY).
//! - Two names of one inode: nothing happens, successfully.
//! - mtime and ctime of the directories and ctime of everything moved or replaced are the request's time. A directory that
//!   moves takes its link (`..`) from one parent to the other.
//!
//! Lock order: with two directories first the right to change the tree; then the directories (UPDATE), ancestor first,
//! unrelated ones by FID; then what is moved and replaced (LOOKUP, UPDATE), directories first, by FID.

use nacre_osd::store::Op;
use nacre_wire::attr::mode;
use nacre_wire::ldlm::Ibits;
use nacre_wire::mdt::{Rename, RenameFlags, UnlinkReply};
use nacre_wire::{Attr, AttrPatch, Fid, Status};

use super::unlink::Name;
use crate::names::{self, Target};
use crate::permission::{self, EXEC, WRITE};
use crate::session::Caller;
use crate::target::{Dir, Done, Held, Mdt, touched};
use crate::{disk, linkea};

pub(crate) type Request = Rename;

/// Deeper than any path that could be named (PATH_MAX is 4096): a longer chain is a loop, which must not exist.
const DEPTH_MAX: usize = 1 << 16;

pub(crate) async fn run(mdt: &Mdt, who: &Caller, request: Rename) -> Result<Done<UnlinkReply>, Status> {
    names::validate(&request.name)?;
    names::validate(&request.new_name)?;
    let exchange = request.flags.contains(RenameFlags::EXCHANGE);
    let no_replace = request.flags.contains(RenameFlags::NOREPLACE);
    if names::is_dot(&request.name) || names::is_dot(&request.new_name) || exchange && no_replace {
        return Err(Status::EINVAL);
    }
    let one_dir = request.parent == request.new_parent;
    let _topology = if one_dir { None } else { Some(mdt.guards.topology().await) };
    let above = if one_dir { Above::default() } else { Above::read(mdt, &request).await? };
    let _parents = hold_parents(mdt, who, &request, &above).await?;
    let old_dir = mdt.dir(request.parent).await?;
    let new_dir = if one_dir { old_dir.clone() } else { mdt.dir(request.new_parent).await? };
    permission::access(&old_dir.attr, &request.cred, EXEC)?;
    permission::access(&new_dir.attr, &request.cred, EXEC)?;

    let Some(source) = mdt.entry(request.parent, &request.name).await? else { return Err(Status::ENOENT) };
    let target = mdt.entry(request.new_parent, &request.new_name).await?;
    match target {
        Some(_) if no_replace => return Err(Status::EEXIST),
        None if exchange => return Err(Status::ENOENT),
        _ => {}
    }
    if source.fid == request.new_parent || above.new.contains(&source.fid) {
        return Err(Status::EINVAL);
    }
    if target.is_some_and(|target| target.fid == request.parent || above.old.contains(&target.fid)) {
        return Err(if exchange { Status::EINVAL } else { Status::ENOTEMPTY });
    }
    if let Some(target) = target
        && target.fid == source.fid
    {
        let attr = mdt.attr(source.fid).await?;
        return Ok(Done::nothing(UnlinkReply {
            victim: None,
            gone: false,
            parent: old_dir.attr,
            new_parent: (!one_dir).then_some(new_dir.attr),
            moved: Some((source.fid, attr)),
        }));
    }

    let _children = hold_children(mdt, who, source, target).await?;
    let source_attr = mdt.attr(source.fid).await?;
    let target_attr = match target {
        Some(target) => Some((target.fid, mdt.attr(target.fid).await?)),
        None => None,
    };
    may_rename(&request, &old_dir, &new_dir, &source_attr, target_attr.as_ref().map(|(_, attr)| attr))?;
    let plan = Plan { request: &request, old: old_dir.attr, new: new_dir.attr, one_dir };
    if exchange {
        let target = target_attr.ok_or(Status::ENOENT)?;
        plan.exchange(mdt, who, (source.fid, source_attr), target).await
    } else {
        plan.replace(mdt, who, (source.fid, source_attr), target_attr).await
    }
}

/// Directories above the two parents, themselves left out. True while the right to change the tree is held.
#[derive(Default)]
struct Above {
    old: Vec<Fid>,
    new: Vec<Fid>,
}

impl Above {
    async fn read(mdt: &Mdt, request: &Rename) -> Result<Above, Status> {
        Ok(Above { old: ancestors(mdt, request.parent).await?, new: ancestors(mdt, request.new_parent).await? })
    }
}

async fn ancestors(mdt: &Mdt, dir: Fid) -> Result<Vec<Fid>, Status> {
    let mut above = Vec::new();
    let mut at = dir;
    while at != Fid::ROOT {
        at = mdt.parent_of(at).await?;
        if above.len() >= DEPTH_MAX {
            tracing::error!(%dir, "directories form a loop; run nacre fsck on the MDT's device");
            return Err(Status::EIO);
        }
        above.push(at);
    }
    Ok(above)
}

async fn hold_parents(
    mdt: &Mdt,
    who: &Caller,
    request: &Rename,
    above: &Above,
) -> Result<(Held, Option<Held>), Status> {
    let (old, new) = (request.parent, request.new_parent);
    if old == new {
        return Ok((mdt.hold(who, old, Ibits::UPDATE).await?, None));
    }
    let old_first = above.new.contains(&old) || !above.old.contains(&new) && old < new;
    let (first, second) = if old_first { (old, new) } else { (new, old) };
    let first = mdt.hold(who, first, Ibits::UPDATE).await?;
    let second = mdt.hold(who, second, Ibits::UPDATE).await?;
    Ok((first, Some(second)))
}

async fn hold_children(
    mdt: &Mdt,
    who: &Caller,
    source: Target,
    target: Option<Target>,
) -> Result<(Held, Option<Held>), Status> {
    let bits = Ibits::LOOKUP | Ibits::UPDATE;
    let Some(target) = target else { return Ok((mdt.hold(who, source.fid, bits).await?, None)) };
    let rank = |target: Target| (target.kind != mode::DIR, target.fid);
    let (first, second) = if rank(source) < rank(target) { (source, target) } else { (target, source) };
    let first = mdt.hold(who, first.fid, bits).await?;
    let second = mdt.hold(who, second.fid, bits).await?;
    Ok((first, Some(second)))
}

/// Permissions and types.
fn may_rename(
    request: &Rename,
    old_dir: &Dir,
    new_dir: &Dir,
    source: &Attr,
    target: Option<&Attr>,
) -> Result<(), Status> {
    let cred = &request.cred;
    let exchange = request.flags.contains(RenameFlags::EXCHANGE);
    permission::access(&old_dir.attr, cred, WRITE | EXEC)?;
    permission::sticky(&old_dir.attr, source, cred)?;
    permission::access(&new_dir.attr, cred, WRITE | EXEC)?;
    if let Some(target) = target {
        permission::sticky(&new_dir.attr, target, cred)?;
        match (source.is_dir(), target.is_dir()) {
            (true, false) if !exchange => return Err(Status::ENOTDIR),
            (false, true) if !exchange => return Err(Status::EISDIR),
            _ => {}
        }
    }
    if request.parent != request.new_parent {
        let moving = [Some(source), target.filter(|_| exchange)];
        for dir in moving.into_iter().flatten().filter(|attr| attr.is_dir()) {
            permission::access(dir, cred, WRITE)?;
        }
    }
    Ok(())
}

/// A rename that may happen.
struct Plan<'a> {
    request: &'a Rename,
    old: Attr,
    new: Attr,
    one_dir: bool,
}

impl Plan<'_> {
    async fn replace(
        mut self,
        mdt: &Mdt,
        who: &Caller,
        (fid, mut moved): (Fid, Attr),
        mut victim: Option<(Fid, Attr)>,
    ) -> Result<Done<UnlinkReply>, Status> {
        let request = self.request;
        let mut ops = vec![Op::Delete { index: request.parent, key: names::key(&request.name) }];
        self.enter(&mut ops, request.new_parent, &request.new_name, fid, &moved);
        if moved.is_dir() {
            self.count_dir(-1, 1);
        }
        let mut gone = false;
        if let Some((victim_fid, attr)) = &mut victim {
            if attr.is_dir() {
                mdt.require_empty(*victim_fid).await?;
                self.count_dir(0, -1);
            }
            let name = Name { parent: request.new_parent, name: &request.new_name };
            gone = mdt.drop_name(*victim_fid, attr, name, request.time, &mut ops).await?;
        }
        let from = Name { parent: request.parent, name: &request.name };
        let to = Name { parent: request.new_parent, name: &request.new_name };
        self.carry(mdt, fid, &mut moved, from, to, &mut ops).await?;
        self.finish(mdt, who, ops, (fid, moved), victim, gone).await
    }

    async fn exchange(
        mut self,
        mdt: &Mdt,
        who: &Caller,
        (fid, mut moved): (Fid, Attr),
        (other_fid, mut other): (Fid, Attr),
    ) -> Result<Done<UnlinkReply>, Status> {
        let request = self.request;
        let mut ops = Vec::new();
        self.enter(&mut ops, request.new_parent, &request.new_name, fid, &moved);
        self.enter(&mut ops, request.parent, &request.name, other_fid, &other);
        if moved.is_dir() {
            self.count_dir(-1, 1);
        }
        if other.is_dir() {
            self.count_dir(1, -1);
        }
        let here = Name { parent: request.parent, name: &request.name };
        let there = Name { parent: request.new_parent, name: &request.new_name };
        self.carry(mdt, fid, &mut moved, here, there, &mut ops).await?;
        self.carry(mdt, other_fid, &mut other, there, here, &mut ops).await?;
        self.finish(mdt, who, ops, (fid, moved), Some((other_fid, other)), false).await
    }

    fn enter(&self, ops: &mut Vec<Op>, parent: Fid, name: &[u8], fid: Fid, attr: &Attr) {
        let value = Target { fid, kind: attr.mode & mode::TYPE }.to_value();
        ops.push(Op::Put { index: parent, key: names::key(name), value });
    }

    /// Adds to the link counts of the old and the new parent.
    fn count_dir(&mut self, old: i32, new: i32) {
        if self.one_dir {
            self.old.nlink = self.old.nlink.saturating_add_signed(old + new);
        } else {
            self.old.nlink = self.old.nlink.saturating_add_signed(old);
            self.new.nlink = self.new.nlink.saturating_add_signed(new);
        }
    }

    /// An inode goes from one name to another.
    async fn carry(
        &self,
        mdt: &Mdt,
        fid: Fid,
        attr: &mut Attr,
        from: Name<'_>,
        to: Name<'_>,
        ops: &mut Vec<Op>,
    ) -> Result<(), Status> {
        attr.ctime = attr.ctime.max(self.request.time);
        ops.push(Op::SetAttr { fid, patch: AttrPatch { ctime: Some(attr.ctime), ..AttrPatch::default() } });
        let mut links = mdt.links(fid).await?;
        linkea::remove(&mut links, from.parent, from.name);
        linkea::add(&mut links, to.parent, to.name);
        ops.push(Op::SetXattr { fid, name: disk::XATTR_LINK.to_vec(), value: linkea::encode(&links) });
        Ok(())
    }

    async fn finish(
        mut self,
        mdt: &Mdt,
        who: &Caller,
        mut ops: Vec<Op>,
        moved: (Fid, Attr),
        victim: Option<(Fid, Attr)>,
        gone: bool,
    ) -> Result<Done<UnlinkReply>, Status> {
        let request = self.request;
        let mut patch = touched(&mut self.old, request.time);
        patch.nlink = Some(self.old.nlink);
        ops.push(Op::SetAttr { fid: request.parent, patch });
        if !self.one_dir {
            let mut patch = touched(&mut self.new, request.time);
            patch.nlink = Some(self.new.nlink);
            ops.push(Op::SetAttr { fid: request.new_parent, patch });
        }
        let renamed: Vec<Fid> = [Some(moved.0), victim.as_ref().map(|(fid, _)| *fid)].into_iter().flatten().collect();
        let reply = UnlinkReply {
            victim,
            gone,
            parent: self.old.clone(),
            new_parent: (!self.one_dir).then(|| self.new.clone()),
            moved: Some(moved),
        };
        let done = mdt.commit(who, request.slot, ops, reply).await?;
        mdt.dir_changed(request.parent, &self.old);
        if !self.one_dir {
            mdt.dir_changed(request.new_parent, &self.new);
        }
        for fid in renamed {
            mdt.dir_forget(fid);
        }
        mdt.names_changed();
        Ok(done)
    }
}
