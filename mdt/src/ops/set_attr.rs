//! SET_ATTR: chmod(2), chown(2), utimensat(2), and what a truncate or write changes besides the bytes.
//!
//! - chmod is for the owner and the superuser (EPERM). Who is not in the file's group loses setgid with it.
//! - Only the superuser changes the owner; the owner may give the file to a group it is in (EPERM). Either takes setuid and
//!   setgid away from what is not a directory, for the superuser too.
//! - Times are set by the owner and the superuser (EPERM); to now, also by who may write (EACCES).
//! - A size means a truncate, which needs write permission or the file open for writing; the bytes are the client's to cut.
//! - `kill_privileges` takes setuid and setgid away, and file capabilities.
//! - ctime becomes the request's time and never goes back.
//!
//! Lock order: the inode (UPDATE; with mode or owner also PERM and, because a name is looked up with them, LOOKUP).

use nacre_osd::store::Op;
use nacre_wire::attr::mode;
use nacre_wire::ldlm::Ibits;
use nacre_wire::mdt::{Inode, SetAttr};
use nacre_wire::{Attr, AttrPatch, Status};

use crate::locks::NO_LOCK;
use crate::permission;
use crate::session::Caller;
use crate::target::{Done, Mdt};

pub(crate) type Request = SetAttr;

/// "Now" as two clocks, or one clock read twice, may mean it.
const NOW_NS: u64 = 1_000_000_000;

pub(crate) async fn run(mdt: &Mdt, who: &Caller, request: SetAttr) -> Result<Done<Inode>, Status> {
    let given = &request.patch;
    if given.nlink.is_some() || given.rdev.is_some() {
        return Err(Status::EINVAL);
    }
    let permissions = given.mode.is_some() || given.uid.is_some() || given.gid.is_some() || request.kill_privileges;
    let bits = if permissions { Ibits::UPDATE | Ibits::PERM | Ibits::LOOKUP } else { Ibits::UPDATE };
    let held = mdt.hold(who, request.fid, bits).await?;
    let mut attr = mdt.attr(request.fid).await?;
    let writes = who.client.writes(request.fid);
    may_set(&request, &attr, writes)?;
    let layout = if attr.is_file() { mdt.layout(request.fid).await? } else { None };
    let patch = effective(&request, &attr);
    let (fid, is_dir) = (request.fid, attr.is_dir());
    attr.apply(&patch);
    let mut ops = vec![Op::SetAttr { fid, patch }];
    if request.kill_privileges && attr.is_file() {
        ops.push(Op::RemoveXattr { fid, name: b"security.capability".to_vec() });
    }
    let reply = Inode { fid, attr: attr.clone(), layout, lock: NO_LOCK };
    let done = mdt.commit(who, request.slot, ops, reply).await?;
    if is_dir {
        mdt.dir_changed(fid, &attr);
    }
    drop(held);
    Ok(mdt.with_lock(who, done, fid, request.lock, |reply| &mut reply.lock))
}

/// `writes`: the client has the file open for writing.
fn may_set(request: &SetAttr, attr: &Attr, writes: bool) -> Result<(), Status> {
    let (given, cred) = (&request.patch, &request.cred);
    let root = permission::is_root(cred);
    let owner = root || cred.uid == attr.uid;
    if given.uid.is_some_and(|uid| !root && (uid != attr.uid || !owner)) {
        return Err(Status::EPERM);
    }
    if given.gid.is_some_and(|gid| !root && (!owner || gid != attr.gid && !permission::in_group(cred, gid))) {
        return Err(Status::EPERM);
    }
    if given.mode.is_some() && !owner {
        return Err(Status::EPERM);
    }
    if (given.projid.is_some() || given.flags.is_some()) && !root {
        return Err(Status::EPERM);
    }
    if given.size.is_some() {
        match attr.mode & mode::TYPE {
            mode::FILE => {}
            mode::DIR => return Err(Status::EISDIR),
            _ => return Err(Status::EINVAL),
        }
    }
    let times = given.atime.is_some() || given.mtime.is_some();
    if times && !owner {
        let is_now = |time: Option<nacre_wire::Time>| {
            time.is_none_or(|time| time.to_ns().abs_diff(request.time.to_ns()) <= NOW_NS)
        };
        if !is_now(given.atime) || !is_now(given.mtime) {
            return Err(Status::EPERM);
        }
    }
    let by_writing = given.size.is_some() || request.kill_privileges || times && !owner;
    let changes_owner = given.uid.is_some() || given.gid.is_some() || given.mode.is_some();
    if by_writing && !writes && !(owner && (changes_owner || times && given.size.is_none())) {
        permission::access(attr, cred, permission::WRITE)?;
    }
    Ok(())
}

/// The change with its side effects.
fn effective(request: &SetAttr, attr: &Attr) -> AttrPatch {
    let (given, cred) = (&request.patch, &request.cred);
    let mut patch = given.clone();
    let kind = attr.mode & mode::TYPE;
    let mut new_mode = given.mode.map_or(attr.mode, |wanted| kind | wanted & 0o7777);
    let gid = given.gid.unwrap_or(attr.gid);
    if given.mode.is_some() && !permission::is_root(cred) && !permission::in_group(cred, gid) {
        new_mode &= !mode::SETGID;
    }
    let given_away = (given.uid.is_some() || given.gid.is_some()) && kind != mode::DIR;
    if given_away || request.kill_privileges && kind == mode::FILE {
        new_mode = permission::without_privileges(new_mode);
    }
    patch.mode = (new_mode != attr.mode).then_some(new_mode);
    if kind == mode::FILE {
        if given.size.is_some() && given.mtime.is_none() {
            patch.mtime = Some(request.time);
        }
        // See `Attr::rdev`.
        patch.rdev = patch.mtime.map(|_| request.time.to_ns());
    }
    patch.ctime = Some(attr.ctime.max(request.time));
    patch
}

#[cfg(test)]
mod tests {
    use super::*;
    use nacre_wire::mdt::{Cred, Slot};
    use nacre_wire::{Fid, Time};

    fn request(uid: u32, patch: AttrPatch) -> SetAttr {
        SetAttr {
            slot: Slot { index: 0, xid: 1 },
            cred: Cred { uid, gid: uid, ..Cred::default() },
            fid: Fid::ROOT,
            patch,
            kill_privileges: false,
            time: Time { seconds: 1000, nanoseconds: 0 },
            lock: Ibits::empty(),
        }
    }

    fn file(mode: u32) -> Attr {
        Attr { mode: 0o100_000 | mode, uid: 5, gid: 5, ..Attr::default() }
    }

    #[test]
    fn owners_and_others() {
        let chmod = AttrPatch { mode: Some(0o600), ..AttrPatch::default() };
        assert_eq!(may_set(&request(5, chmod.clone()), &file(0), false), Ok(()));
        assert_eq!(may_set(&request(6, chmod), &file(0o777), false), Err(Status::EPERM));
        let chown = AttrPatch { uid: Some(6), ..AttrPatch::default() };
        assert_eq!(may_set(&request(5, chown.clone()), &file(0o777), false), Err(Status::EPERM));
        assert_eq!(may_set(&request(0, chown), &file(0), false), Ok(()));
        let same = AttrPatch { uid: Some(5), gid: Some(5), ..AttrPatch::default() };
        assert_eq!(may_set(&request(5, same.clone()), &file(0), false), Ok(()));
        assert_eq!(may_set(&request(6, same), &file(0o777), false), Err(Status::EPERM));
        let group = AttrPatch { gid: Some(7), ..AttrPatch::default() };
        assert_eq!(may_set(&request(5, group), &file(0o777), false), Err(Status::EPERM));
    }

    #[test]
    fn times_are_the_owners_but_now_is_the_writers() {
        let old = AttrPatch { mtime: Some(Time::default()), ..AttrPatch::default() };
        let now = AttrPatch { mtime: Some(Time { seconds: 1000, nanoseconds: 5 }), ..AttrPatch::default() };
        assert_eq!(may_set(&request(5, old.clone()), &file(0), false), Ok(()));
        assert_eq!(may_set(&request(6, old), &file(0o777), false), Err(Status::EPERM));
        assert_eq!(may_set(&request(6, now.clone()), &file(0o777), false), Ok(()));
        assert_eq!(may_set(&request(6, now), &file(0o755), false), Err(Status::EACCES));
    }

    #[test]
    fn a_truncate_needs_the_right_to_write_or_an_open() {
        let cut = AttrPatch { size: Some(0), ..AttrPatch::default() };
        assert_eq!(may_set(&request(5, cut.clone()), &file(0o400), false), Err(Status::EACCES));
        assert_eq!(may_set(&request(5, cut.clone()), &file(0o400), true), Ok(()));
        assert_eq!(may_set(&request(5, cut), &file(0o600), false), Ok(()));
    }

    #[test]
    fn side_effects() {
        let chown = AttrPatch { gid: Some(5), ..AttrPatch::default() };
        assert_eq!(effective(&request(0, chown.clone()), &file(0o6755)).mode, Some(0o100_755));
        assert_eq!(effective(&request(0, chown), &file(0o644)).mode, None);
        let chmod = AttrPatch { mode: Some(0o2755), ..AttrPatch::default() };
        assert_eq!(effective(&request(6, chmod.clone()), &file(0o644)).mode, Some(0o100_755));
        assert_eq!(effective(&request(0, chmod), &file(0o644)).mode, Some(0o102_755));
        let mut kill = request(0, AttrPatch::default());
        kill.kill_privileges = true;
        assert_eq!(effective(&kill, &file(0o4755)).mode, Some(0o100_755));
        let late = Attr { ctime: Time { seconds: 2000, nanoseconds: 0 }, ..file(0) };
        assert_eq!(effective(&kill, &late).ctime, Some(late.ctime));
    }
}
