//! What POSIX wants of every operation, over the model store.

mod rig;

use nacre_wire::attr::mode;
use nacre_wire::layout::StripeHint;
use nacre_wire::mdt::*;
use nacre_wire::{AttrPatch, Fid, Status, Time};
use rig::*;

const ROOT: Fid = Fid::ROOT;

#[test]
fn a_file_is_made_found_and_removed() {
    on_virtual_time(async {
        let rig = Rig::new().await;
        let peer = rig.peer(1).await;
        let request = peer.create_request(ROOT, "file", WITH_OBJECTS, 0o640);
        let time = request.time;
        let made = peer.create_as(request).await.unwrap();
        assert!(made.created);
        let attr = &made.inode.attr;
        assert_eq!((attr.mode, attr.nlink, attr.rdev), (FILE | 0o640, 1, time.to_ns()));
        assert!([attr.atime, attr.mtime, attr.ctime, attr.btime].iter().all(|given| *given == time));
        assert_eq!(made.inode.layout.as_ref().unwrap().stripes().len(), 1);
        let parent = made.parent.unwrap();
        assert_eq!(parent.mtime, time);
        let found = peer.inode(made.inode.fid).await.unwrap();
        assert_eq!((found.attr.mode, &found.layout), (FILE | 0o640, &made.inode.layout));
        assert_eq!(peer.lookup(ROOT, "file").await, Some(made.inode.fid));
        assert_eq!(peer.paths(made.inode.fid).await.unwrap(), ["file"]);

        assert_eq!(peer.file(ROOT, "file").await, Err(Status::EEXIST));
        assert_eq!(peer.rmdir(ROOT, "file").await.unwrap_err(), Status::ENOTDIR);
        let gone = peer.unlink(ROOT, "file").await.unwrap();
        assert_eq!(gone.victim.unwrap().1.nlink, 0);
        assert_eq!(peer.lookup(ROOT, "file").await, None);
        assert_eq!(peer.attr(made.inode.fid).await, Err(Status::ENOENT));
        assert_eq!(peer.unlink(ROOT, "file").await.unwrap_err(), Status::ENOENT);
        // Its object follows.
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        let object = made.inode.layout.unwrap().stripes()[0];
        assert!(rig.osts[usize::from(object.ost_index)].destroyed.borrow().contains(&object.object));
    });
}

#[test]
fn names_have_bounds() {
    on_virtual_time(async {
        let rig = Rig::new().await;
        let peer = rig.peer(1).await;
        let longest = "n".repeat(255);
        peer.file(ROOT, &longest).await.unwrap();
        assert!(peer.lookup(ROOT, &longest).await.is_some());
        let longer = "n".repeat(256);
        assert_eq!(peer.file(ROOT, &longer).await, Err(Status::ENAMETOOLONG));
        assert_eq!(peer.lookup_reply(ROOT, &longer).await, Err(Status::ENAMETOOLONG));
        assert_eq!(peer.rename((ROOT, &longest), (ROOT, &longer)).await.unwrap_err(), Status::ENAMETOOLONG);
        assert_eq!(peer.file(ROOT, "a/b").await, Err(Status::EINVAL));
        assert_eq!(peer.file(ROOT, "..").await, Err(Status::EEXIST));
        // The target's own records are no inodes.
        assert_eq!(peer.attr(Fid::local(0x100)).await, Err(Status::ENOENT));
        assert_eq!(peer.file(Fid::local(0x102), "x").await, Err(Status::ENOENT));
    });
}

#[test]
fn directories_count_their_links() {
    on_virtual_time(async {
        let rig = Rig::new().await;
        let peer = rig.peer(1).await;
        let a = peer.mkdir(ROOT, "a").await.unwrap();
        let b = peer.mkdir(a, "b").await.unwrap();
        peer.file(a, "f").await.unwrap();
        assert_eq!(peer.attr(ROOT).await.unwrap().nlink, 3);
        assert_eq!(peer.attr(a).await.unwrap().nlink, 3);
        assert_eq!(peer.lookup(b, "..").await, Some(a));
        assert_eq!(peer.lookup(ROOT, "..").await, Some(ROOT));
        assert_eq!(peer.unlink(ROOT, "a").await.unwrap_err(), Status::EISDIR);
        assert_eq!(peer.rmdir(ROOT, "a").await.unwrap_err(), Status::ENOTEMPTY);
        peer.rmdir(a, "b").await.unwrap();
        assert_eq!(peer.attr(a).await.unwrap().nlink, 2);
        peer.unlink(a, "f").await.unwrap();
        peer.rmdir(ROOT, "a").await.unwrap();
        assert_eq!(peer.attr(ROOT).await.unwrap().nlink, 2);
        // Nothing is made in a directory that is gone.
        assert_eq!(peer.file(a, "late").await, Err(Status::ENOENT));
        assert_eq!(peer.file(peer.file(ROOT, "plain").await.unwrap(), "x").await, Err(Status::ENOTDIR));
    });
}

#[test]
fn a_removed_directory_that_is_open_is_empty_and_takes_nothing() {
    on_virtual_time(async {
        let rig = Rig::new().await;
        let peer = rig.peer(1).await;
        let dir = peer.mkdir(ROOT, "d").await.unwrap();
        let handle = peer.open(dir, OpenFlags::READ).await.unwrap();
        assert_eq!(peer.open(dir, OpenFlags::WRITE).await, Err(Status::EISDIR));
        peer.rmdir(ROOT, "d").await.unwrap();
        assert_eq!(peer.attr(dir).await.unwrap().nlink, 0);
        assert!(peer.read_dir(dir, 0, 4096, true).await.unwrap().entries.is_empty());
        assert_eq!(peer.file(dir, "x").await, Err(Status::ENOENT));
        assert_eq!(peer.mkdir(dir, "x").await, Err(Status::ENOENT));
        peer.close(dir, handle).await.unwrap();
        assert_eq!(peer.attr(dir).await, Err(Status::ENOENT));
    });
}

#[test]
fn an_unlinked_file_lives_as_long_as_it_is_open() {
    on_virtual_time(async {
        let rig = Rig::new().await;
        let (one, two) = (rig.peer(1).await, rig.peer(2).await);
        let made = one.open_new(ROOT, "f").await.unwrap();
        let fid = made.inode.fid;
        let second = two.open(fid, OpenFlags::READ).await.unwrap();
        let gone = two.unlink(ROOT, "f").await.unwrap();
        assert_eq!(gone.victim.unwrap().1.nlink, 0);
        one.close(fid, made.handle).await.unwrap();
        // A second close of the same handle, as after a lost answer.
        one.close(fid, made.handle).await.unwrap();
        assert_eq!(one.attr(fid).await.unwrap().nlink, 0);
        assert_eq!(one.link(fid, ROOT, "back").await.unwrap_err(), Status::ENOENT);
        assert_eq!(one.paths(fid).await, Err(Status::ENOENT));
        two.close(fid, second).await.unwrap();
        assert_eq!(one.attr(fid).await, Err(Status::ENOENT));
        assert_eq!(one.open(fid, OpenFlags::READ).await, Err(Status::ENOENT));
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        assert_eq!(rig.osts.iter().map(|ost| ost.destroyed.borrow().len()).sum::<usize>(), 1);
    });
}

#[test]
fn create_opens_what_is_there_unless_exclusive() {
    on_virtual_time(async {
        let rig = Rig::new().await;
        let root = rig.peer(1).await;
        let user = rig.peer(2).await.for_user(7, 7);
        let fid = root.file(ROOT, "f").await.unwrap();
        let dir = root.mkdir(ROOT, "d").await.unwrap();
        let found = root.open_new(ROOT, "f").await.unwrap();
        assert_eq!((found.created, found.inode.fid, found.handle != 0), (false, fid, true));
        assert_eq!(root.open_new(ROOT, "d").await.unwrap_err(), Status::EISDIR);
        assert_eq!(user.open_new(ROOT, "f").await.unwrap_err(), Status::EACCES);
        assert_eq!(user.open_new(ROOT, "new").await.unwrap_err(), Status::EACCES);
        root.chmod(dir, 0o777).await.unwrap();
        // The creator may write whatever the mode says.
        let mut request = user.create_request(dir, "mine", NewKind::File(StripeHint::default()), 0o400);
        request.open = Some(OpenFlags::WRITE);
        let made = user.create_as(request).await.unwrap();
        assert!(made.created && made.handle != 0);
        assert_eq!(user.open(made.inode.fid, OpenFlags::WRITE).await, Err(Status::EACCES));
        // Truncating by O_TRUNC.
        root.chmod(fid, 0o4755).await.unwrap();
        let cut = OpenFlags::WRITE | OpenFlags::TRUNCATE;
        root.open(fid, cut).await.unwrap();
        assert_eq!(root.attr(fid).await.unwrap().mode, FILE | 0o4755);
        root.chmod(fid, 0o4757).await.unwrap();
        user.seconds.set(root.seconds.get());
        user.open(fid, cut).await.unwrap();
        let cut = root.attr(fid).await.unwrap();
        assert_eq!(cut.mode, FILE | 0o757);
        assert_eq!(cut.rdev, cut.mtime.to_ns());
        assert_eq!(cut.mtime, cut.ctime);
    });
}

#[test]
fn hard_links() {
    on_virtual_time(async {
        let rig = Rig::new().await;
        let peer = rig.peer(1).await;
        let dir = peer.mkdir(ROOT, "d").await.unwrap();
        let fid = peer.file(ROOT, "f").await.unwrap();
        let before = peer.attr(fid).await.unwrap();
        let linked = peer.link(fid, dir, "g").await.unwrap();
        assert_eq!(linked.inode.attr.nlink, 2);
        assert!(linked.inode.attr.ctime > before.ctime);
        assert_eq!((linked.inode.attr.mtime, linked.inode.attr.rdev), (before.mtime, before.rdev));
        assert_eq!(peer.paths(fid).await.unwrap(), ["f", "d/g"]);
        assert_eq!(peer.link(fid, dir, "g").await.unwrap_err(), Status::EEXIST);
        assert_eq!(peer.link(dir, ROOT, "h").await.unwrap_err(), Status::EPERM);
        // Two names of one inode: renaming one over the other does nothing.
        peer.rename((ROOT, "f"), (dir, "g")).await.unwrap();
        assert_eq!(peer.lookup(ROOT, "f").await, Some(fid));
        assert_eq!(peer.attr(fid).await.unwrap().nlink, 2);
        let gone = peer.unlink(ROOT, "f").await.unwrap().victim.unwrap().1;
        assert_eq!(gone.nlink, 1);
        assert_eq!(peer.paths(fid).await.unwrap(), ["d/g"]);
    });
}

#[test]
fn renames() {
    on_virtual_time(async {
        let rig = Rig::new().await;
        let peer = rig.peer(1).await;
        let a = peer.mkdir(ROOT, "a").await.unwrap();
        let b = peer.mkdir(a, "b").await.unwrap();
        let c = peer.mkdir(b, "c").await.unwrap();
        let f = peer.file(ROOT, "f").await.unwrap();
        let g = peer.file(ROOT, "g").await.unwrap();

        // Over a file.
        let reply = peer.rename((ROOT, "f"), (ROOT, "g")).await.unwrap();
        assert_eq!(reply.victim.unwrap().0, g);
        assert_eq!(reply.moved.unwrap().0, f);
        assert_eq!(peer.lookup(ROOT, "g").await, Some(f));
        assert_eq!(peer.attr(g).await, Err(Status::ENOENT));
        assert_eq!(peer.paths(f).await.unwrap(), ["g"]);
        // Types that do not fit.
        assert_eq!(peer.rename((ROOT, "g"), (ROOT, "a")).await.unwrap_err(), Status::EISDIR);
        assert_eq!(peer.rename((ROOT, "a"), (ROOT, "g")).await.unwrap_err(), Status::ENOTDIR);
        assert_eq!(peer.rename((ROOT, "nothing"), (ROOT, "x")).await.unwrap_err(), Status::ENOENT);
        // Below itself, and over what is above.
        assert_eq!(peer.rename((ROOT, "a"), (c, "x")).await.unwrap_err(), Status::EINVAL);
        assert_eq!(peer.rename((ROOT, "a"), (a, "x")).await.unwrap_err(), Status::EINVAL);
        assert_eq!(peer.rename((b, "c"), (ROOT, "a")).await.unwrap_err(), Status::ENOTEMPTY);
        assert_eq!(peer.rename((b, "c"), (a, "b")).await.unwrap_err(), Status::ENOTEMPTY);
        // A directory takes its `..` along.
        peer.rename((b, "c"), (ROOT, "c")).await.unwrap();
        assert_eq!(peer.lookup(c, "..").await, Some(ROOT));
        assert_eq!((peer.attr(ROOT).await.unwrap().nlink, peer.attr(b).await.unwrap().nlink), (4, 2));
        // Over an empty directory.
        let reply = peer.rename((ROOT, "c"), (a, "b")).await.unwrap();
        assert_eq!(reply.victim.unwrap().0, b);
        assert_eq!((peer.attr(ROOT).await.unwrap().nlink, peer.attr(a).await.unwrap().nlink), (3, 3));
        assert_eq!(peer.paths(c).await.unwrap(), ["a/b"]);
        assert_eq!(peer.attr(b).await, Err(Status::ENOENT));
        // Within a directory: no link changes.
        peer.rename((a, "b"), (a, "b2")).await.unwrap();
        assert_eq!(peer.attr(a).await.unwrap().nlink, 3);
        // NOREPLACE.
        peer.file(a, "h").await.unwrap();
        let kept = peer.rename_with((ROOT, "g"), (a, "h"), RenameFlags::NOREPLACE).await;
        assert_eq!(kept.unwrap_err(), Status::EEXIST);
        peer.rename_with((ROOT, "g"), (a, "i"), RenameFlags::NOREPLACE).await.unwrap();
    });
}

#[test]
fn exchange_swaps_names_and_links() {
    on_virtual_time(async {
        let rig = Rig::new().await;
        let peer = rig.peer(1).await;
        let a = peer.mkdir(ROOT, "a").await.unwrap();
        let sub = peer.mkdir(a, "sub").await.unwrap();
        let f = peer.file(ROOT, "f").await.unwrap();
        let swap = RenameFlags::EXCHANGE;
        assert_eq!(peer.rename_with((ROOT, "f"), (a, "none"), swap).await.unwrap_err(), Status::ENOENT);
        assert_eq!(peer.rename_with((ROOT, "a"), (a, "sub"), swap).await.unwrap_err(), Status::EINVAL);
        assert_eq!(peer.rename_with((a, "sub"), (ROOT, "a"), swap).await.unwrap_err(), Status::EINVAL);
        peer.rename_with((ROOT, "f"), (a, "sub"), swap).await.unwrap();
        assert_eq!((peer.lookup(ROOT, "f").await, peer.lookup(a, "sub").await), (Some(sub), Some(f)));
        assert_eq!(peer.lookup(sub, "..").await, Some(ROOT));
        assert_eq!((peer.attr(ROOT).await.unwrap().nlink, peer.attr(a).await.unwrap().nlink), (4, 2));
        assert_eq!(peer.paths(f).await.unwrap(), ["a/sub"]);
        assert_eq!(peer.paths(sub).await.unwrap(), ["f"]);
    });
}

#[test]
fn permissions_by_name() {
    on_virtual_time(async {
        let rig = Rig::new().await;
        let root = rig.peer(1).await;
        let user = rig.peer(2).await.for_user(7, 7);
        let other = rig.peer(3).await.for_user(8, 8);
        let closed = root.mkdir_mode(ROOT, "closed", 0o700).await.unwrap();
        assert_eq!(user.file(closed, "x").await, Err(Status::EACCES));
        assert_eq!(user.unlink(closed, "x").await.unwrap_err(), Status::EACCES);
        let tmp = root.mkdir_mode(ROOT, "tmp", 0o1777).await.unwrap();
        let fid = user.file(tmp, "f").await.unwrap();
        assert_eq!(other.unlink(tmp, "f").await.unwrap_err(), Status::EPERM);
        assert_eq!(other.rename((tmp, "f"), (tmp, "g")).await.unwrap_err(), Status::EPERM);
        other.file(tmp, "h").await.unwrap();
        assert_eq!(other.rename((tmp, "h"), (tmp, "f")).await.unwrap_err(), Status::EPERM);
        assert_eq!(other.chmod(fid, 0o777).await.unwrap_err(), Status::EPERM);
        assert_eq!(user.chown(fid, 8, 7).await.unwrap_err(), Status::EPERM);
        assert_eq!(user.chown(fid, 7, 8).await.unwrap_err(), Status::EPERM);
        root.chown(fid, 8, 8).await.unwrap();
        assert_eq!(user.unlink(tmp, "f").await.unwrap_err(), Status::EPERM);
        other.unlink(tmp, "f").await.unwrap();
        // A directory that moves must be writable itself.
        let mine = user.mkdir_mode(tmp, "mine", 0o555).await.unwrap();
        let to = user.mkdir(tmp, "to").await.unwrap();
        assert_eq!(user.rename((tmp, "mine"), (to, "mine")).await.unwrap_err(), Status::EACCES);
        user.chmod(mine, 0o755).await.unwrap();
        user.rename((tmp, "mine"), (to, "mine")).await.unwrap();
        // Device nodes.
        let node = user.create_request(tmp, "null", NewKind::Special(0x103), mode::CHAR | 0o666);
        assert_eq!(user.create_as(node).await.unwrap_err(), Status::EPERM);
        let fifo = user.create_request(tmp, "fifo", NewKind::Special(0), mode::FIFO | 0o666);
        assert_eq!(user.create_as(fifo).await.unwrap().inode.attr.mode, mode::FIFO | 0o666);
        let node = root.create_request(tmp, "null", NewKind::Special(0x103), mode::CHAR | 0o666);
        assert_eq!(root.create_as(node).await.unwrap().inode.attr.rdev, 0x103);
    });
}

#[test]
fn setgid_directories_pass_their_group_on() {
    on_virtual_time(async {
        let rig = Rig::new().await;
        let root = rig.peer(1).await;
        let user = rig.peer(2).await.for_user(7, 7);
        let dir = root.mkdir(ROOT, "d").await.unwrap();
        root.chown(dir, 0, 50).await.unwrap();
        root.chmod(dir, 0o2777).await.unwrap();
        let sub = user.mkdir(dir, "s").await.unwrap();
        let attr = user.attr(sub).await.unwrap();
        assert_eq!((attr.gid, attr.mode), (50, mode::DIR | 0o2755));
        let file = user.file(sub, "f").await.unwrap();
        assert_eq!(user.attr(file).await.unwrap().gid, 50);
    });
}

#[test]
fn times_of_changes() {
    on_virtual_time(async {
        let rig = Rig::new().await;
        let peer = rig.peer(1).await;
        let late = rig.peer(2).await;
        let fid = peer.file(ROOT, "f").await.unwrap();
        peer.seconds.set(5000);
        let changed = peer.chmod(fid, 0o600).await.unwrap().attr;
        assert_eq!(changed.ctime.seconds, 5001);
        assert_eq!(changed.mtime.seconds, 1001);
        // A client whose clock is behind does not take ctime back.
        let changed = late.chmod(fid, 0o644).await.unwrap().attr;
        assert_eq!(changed.ctime.seconds, 5001);
        let old = Time { seconds: -5, nanoseconds: 7 };
        let set = AttrPatch { mtime: Some(old), atime: Some(old), ..AttrPatch::default() };
        let set = peer.set_attr(fid, set).await.unwrap().attr;
        assert_eq!((set.mtime, set.atime, set.ctime.seconds), (old, old, 5002));
        assert_eq!(set.rdev, set.ctime.to_ns());
        assert_eq!(peer.attr(fid).await.unwrap().mtime, old);
        let nonsense = AttrPatch { nlink: Some(9), ..AttrPatch::default() };
        assert_eq!(peer.set_attr(fid, nonsense).await.unwrap_err(), Status::EINVAL);
    });
}

#[test]
fn symbolic_links() {
    on_virtual_time(async {
        let rig = Rig::new().await;
        let peer = rig.peer(1).await;
        let request = peer.create_request(ROOT, "l", NewKind::Symlink(b"some/where".to_vec()), 0o777);
        let made = peer.create_as(request).await.unwrap().inode;
        assert_eq!((made.attr.mode, made.attr.size), (mode::SYMLINK | 0o777, 10));
        assert_eq!(peer.attr(made.fid).await.unwrap().size, 10);
        let target: Vec<u8> = peer.caller.call(op::READ_LINK, &ReadLink { fid: made.fid }).await.unwrap();
        assert_eq!(target, b"some/where");
        let refused: Result<Vec<u8>, _> = peer.caller.call(op::READ_LINK, &ReadLink { fid: ROOT }).await;
        assert_eq!(refused, Err(Status::EINVAL));
        assert_eq!(peer.open(made.fid, OpenFlags::READ).await, Err(Status::ELOOP));
        let long = peer.create_request(ROOT, "m", NewKind::Symlink(vec![b'x'; 4096]), 0o777);
        assert_eq!(peer.create_as(long).await.unwrap_err(), Status::ENAMETOOLONG);
    });
}

#[test]
fn extended_attributes() {
    on_virtual_time(async {
        let rig = Rig::new().await;
        let root = rig.peer(1).await;
        let user = rig.peer(2).await.for_user(7, 7);
        let fid = root.file(ROOT, "f").await.unwrap();
        let one = Some(&b"one"[..]);
        assert_eq!(root.set_xattr(fid, "user.a", one, "replace").await.unwrap_err(), Status::ENODATA);
        let before = root.attr(fid).await.unwrap().ctime;
        assert!(root.set_xattr(fid, "user.a", one, "create").await.unwrap().attr.ctime > before);
        assert_eq!(root.set_xattr(fid, "user.a", one, "create").await.unwrap_err(), Status::EEXIST);
        root.set_xattr(fid, "user.a", Some(b"two"), "replace").await.unwrap();
        assert_eq!(root.get_xattr(fid, "user.a").await.unwrap(), b"two");
        root.set_xattr(fid, "trusted.t", one, "").await.unwrap();
        assert_eq!(user.get_xattr(fid, "user.a").await.unwrap(), b"two");
        assert_eq!(user.get_xattr(fid, "trusted.t").await, Err(Status::ENODATA));
        assert_eq!(user.set_xattr(fid, "user.a", one, "").await.unwrap_err(), Status::EACCES);
        assert_eq!(user.set_xattr(fid, "trusted.a", one, "").await.unwrap_err(), Status::EPERM);
        assert_eq!(root.set_xattr(fid, "system.x", one, "").await.unwrap_err(), Status::EOPNOTSUPP);
        assert_eq!(root.set_xattr(fid, "user.", one, "").await.unwrap_err(), Status::EINVAL);
        assert_eq!(root.get_xattr(fid, "trusted.lov").await, Err(Status::ENODATA));
        assert_eq!(root.set_xattr(fid, "trusted.link", one, "").await.unwrap_err(), Status::EPERM);
        let big = vec![1; (64 << 10) + 1];
        assert_eq!(root.set_xattr(fid, "user.big", Some(&big), "").await.unwrap_err(), Status(7));
        root.set_xattr(fid, "user.big", Some(&big[1..]), "").await.unwrap();
        let list = async |peer: &Peer| -> Vec<Vec<u8>> {
            peer.caller.call(op::LIST_XATTR, &ListXattr { cred: peer.cred.clone(), fid }).await.unwrap()
        };
        assert_eq!(list(&root).await, [b"trusted.t".to_vec(), b"user.a".to_vec(), b"user.big".to_vec()]);
        assert_eq!(list(&user).await.len(), 2);
        root.set_xattr(fid, "user.a", None, "").await.unwrap();
        assert_eq!(root.set_xattr(fid, "user.a", None, "").await.unwrap_err(), Status::ENODATA);
        assert_eq!(root.get_xattr(fid, "user.a").await, Err(Status::ENODATA));
    });
}

#[test]
fn striping_is_chosen_inherited_and_spread() {
    on_virtual_time(async {
        let rig = Rig::with_osts(3).await;
        let peer = rig.peer(1).await;
        let wish = |count| StripeHint { count: Some(count), ..StripeHint::default() };
        let dir = peer.mkdir(ROOT, "d").await.unwrap();
        let set = SetStripe { slot: peer.slot(), cred: peer.cred.clone(), fid: dir, hint: wish(2), time: peer.time() };
        let _: Inode = peer.caller.call(op::SET_STRIPE, &set).await.unwrap();
        let sub = peer.mkdir(dir, "sub").await.unwrap();
        let told: StripeHint = peer.caller.call(op::GET_STRIPE, &GetStripe { fid: sub }).await.unwrap();
        assert_eq!((told.count, told.size_bytes), (Some(2), Some(1 << 20)));
        let file = peer.file(sub, "f").await.unwrap();
        let layout = peer.inode(file).await.unwrap().layout.unwrap();
        assert_eq!(layout.stripes().len(), 2);
        assert_eq!(layout.validate(), Ok(()));
        let all = peer.create_request(sub, "all", NewKind::File(wish(-1)), 0o644);
        assert_eq!(peer.create_as(all).await.unwrap().inode.layout.unwrap().stripes().len(), 3);
        let first = StripeHint { offset: Some(2), ..wish(1) };
        let first = peer.create_request(sub, "first", NewKind::File(first), 0o644);
        assert_eq!(peer.create_as(first).await.unwrap().inode.layout.unwrap().stripes()[0].ost_index, 2);
        let none = StripeHint { offset: Some(9), ..wish(1) };
        let none = peer.create_request(sub, "none", NewKind::File(none), 0o644);
        assert_eq!(peer.create_as(none).await.unwrap_err(), Status::EINVAL);

        // Only made: striping can still be chosen, once; the first open for writing chooses what the directory had then.
        let (chosen, opened) = (peer.mknod(sub, "chosen").await.unwrap(), peer.mknod(sub, "opened").await.unwrap());
        assert_eq!(peer.inode(chosen).await.unwrap().layout, None);
        let set = |hint| SetStripe { slot: peer.slot(), cred: peer.cred.clone(), fid: chosen, hint, time: peer.time() };
        let told: Inode = peer.caller.call(op::SET_STRIPE, &set(wish(3))).await.unwrap();
        assert_eq!(told.layout.unwrap().stripes().len(), 3);
        assert_eq!(peer.caller.call::<_, Inode>(op::SET_STRIPE, &set(wish(1))).await.unwrap_err(), Status::EEXIST);
        let handle = peer.open(opened, OpenFlags::READ).await.unwrap();
        assert_eq!(peer.inode(opened).await.unwrap().layout, None);
        peer.close(opened, handle).await.unwrap();
        let handle = peer.open(opened, OpenFlags::WRITE).await.unwrap();
        assert_eq!(peer.inode(opened).await.unwrap().layout.unwrap().stripes().len(), 2);
        peer.close(opened, handle).await.unwrap();

        // Round-robin: equal shares, and no object twice.
        let mut seen = std::collections::BTreeSet::new();
        let mut shares = [0; 3];
        for i in 0..90 {
            let file = peer.file(ROOT, &format!("f{i}")).await.unwrap();
            let stripe = peer.inode(file).await.unwrap().layout.unwrap().stripes()[0];
            assert!(seen.insert(stripe.object));
            shares[usize::from(stripe.ost_index)] += 1;
        }
        assert_eq!(shares, [30, 30, 30]);
        // A full OST gets nothing more.
        rig.osts[1].free_bytes.set(0);
        tokio::time::sleep(std::time::Duration::from_secs(20)).await;
        for i in 0..20 {
            let file = peer.file(ROOT, &format!("g{i}")).await.unwrap();
            assert_ne!(peer.inode(file).await.unwrap().layout.unwrap().stripes()[0].ost_index, 1);
        }
    });
}

#[test]
fn without_osts_only_files_cannot_be_made() {
    on_virtual_time(async {
        let rig = Rig::with_osts(0).await;
        let peer = rig.peer(1).await;
        assert_eq!(peer.file(ROOT, "f").await, Err(Status::ENOSPC));
        peer.mkdir(ROOT, "d").await.unwrap();
        assert_eq!(peer.names(ROOT).await, ["d"]);
    });
}

#[test]
fn more_files_than_the_first_batch_of_objects() {
    on_virtual_time(async {
        let rig = Rig::with_osts(1).await;
        let peer = rig.peer(1).await;
        for i in 0..1500 {
            peer.file(ROOT, &format!("f{i}")).await.unwrap();
        }
        assert_eq!(peer.names(ROOT).await.len(), 1500);
        assert!(rig.osts[0].last_id.get() >= 1500);
    });
}

#[test]
fn a_close_leaves_the_size_as_a_hint() {
    on_virtual_time(async {
        let rig = Rig::new().await;
        let peer = rig.peer(1).await;
        let made = peer.open_new(ROOT, "f").await.unwrap();
        let hint = AttrPatch { size: Some(12345), mode: Some(0), ..AttrPatch::default() };
        let close = Close { fid: made.inode.fid, handle: made.handle, attr: Some(hint) };
        peer.caller.call::<_, CloseReply>(op::CLOSE, &close).await.unwrap();
        let attr = peer.attr(made.inode.fid).await.unwrap();
        assert_eq!((attr.size, attr.mode), (12345, FILE | 0o644));
    });
}

#[test]
fn statfs_and_sync_answer() {
    on_virtual_time(async {
        let rig = Rig::new().await;
        let peer = rig.peer(1).await;
        let statfs: MdtStatfs = peer.caller.call(op::STATFS, &()).await.unwrap();
        assert!(statfs.total_bytes >= statfs.free_bytes && statfs.inodes >= 1);
        peer.file(ROOT, "f").await.unwrap();
        peer.caller.call::<_, ()>(op::SYNC, &Sync { fid: Fid::NONE }).await.unwrap();
        use nacre_osd::Store;
        assert_eq!(rig.store.last_committed(), rig.store.last_transno());
        let unknown: Result<(), _> = peer.caller.call(0x02ff, &()).await;
        assert_eq!(unknown, Err(Status::UNKNOWN_OPERATION));
        let garbage: Result<(), _> = peer.caller.call(op::CREATE, &7u8).await;
        assert_eq!(garbage, Err(Status::MALFORMED));
    });
}
