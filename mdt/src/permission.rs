//! Who may do what: POSIX file permissions, as the client's kernel checks them too. The server does not rely on that
//! kernel.
//!
//! User 0 passes every check except executing a file that nobody may execute.

use nacre_wire::Attr;
use nacre_wire::Status;
use nacre_wire::attr::mode;
use nacre_wire::mdt::{Cred, OpenFlags};

/// Read permission, as in access(2).
pub const READ: u32 = 4;
/// Write permission.
pub const WRITE: u32 = 2;
/// Execute or search permission.
pub const EXEC: u32 = 1;

/// Whether the caller is the superuser.
pub fn is_root(cred: &Cred) -> bool {
    cred.uid == 0
}

/// Whether the caller belongs to a group.
pub fn in_group(cred: &Cred, gid: u32) -> bool {
    cred.gid == gid || cred.groups.contains(&gid)
}

/// EACCES unless all of `wanted` is allowed. Owner, group and others are tried in this order, and the first that
/// matches decides.
pub fn access(attr: &Attr, cred: &Cred, wanted: u32) -> Result<(), Status> {
    if is_root(cred) {
        let executable = attr.is_dir() || attr.mode & 0o111 != 0;
        return if wanted & EXEC == 0 || executable { Ok(()) } else { Err(Status::EACCES) };
    }
    let bits = if cred.uid == attr.uid {
        attr.mode >> 6
    } else if in_group(cred, attr.gid) {
        attr.mode >> 3
    } else {
        attr.mode
    };
    if bits & wanted == wanted { Ok(()) } else { Err(Status::EACCES) }
}

/// What an open needs.
pub fn for_open(flags: OpenFlags) -> u32 {
    let mut wanted = 0;
    if flags.contains(OpenFlags::READ) {
        wanted |= READ;
    }
    if flags.intersects(OpenFlags::WRITE | OpenFlags::TRUNCATE) {
        wanted |= WRITE;
    }
    if flags.contains(OpenFlags::EXEC) {
        wanted |= EXEC;
    }
    wanted
}

/// EPERM when the sticky bit of the directory protects the inode from this caller.
pub fn sticky(dir: &Attr, victim: &Attr, cred: &Cred) -> Result<(), Status> {
    let protected = dir.mode & mode::STICKY != 0;
    if protected && !is_root(cred) && cred.uid != victim.uid && cred.uid != dir.uid {
        return Err(Status::EPERM);
    }
    Ok(())
}

/// Mode without setuid, and without setgid where it means "run as this group" (group-executable).
pub fn without_privileges(file_mode: u32) -> u32 {
    let mut result = file_mode & !mode::SETUID;
    if result & 0o010 != 0 {
        result &= !mode::SETGID;
    }
    result
}

/// Owner, group and mode of a new inode: the group comes from a directory with setgid, and new directories carry the
/// bit on. Setgid on an executable is refused silently to who is not in its group.
pub fn for_new(dir: &Attr, cred: &Cred, mut new_mode: u32) -> (u32, u32, u32) {
    let is_dir = new_mode & mode::TYPE == mode::DIR;
    let mut gid = cred.gid;
    if dir.mode & mode::SETGID != 0 {
        gid = dir.gid;
        if is_dir {
            new_mode |= mode::SETGID;
        }
    }
    let runs_as_group = new_mode & (mode::SETGID | 0o010) == mode::SETGID | 0o010;
    if !is_dir && runs_as_group && !is_root(cred) && !in_group(cred, gid) {
        new_mode &= !mode::SETGID;
    }
    (cred.uid, gid, new_mode)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cred(uid: u32, gid: u32) -> Cred {
        Cred { uid, gid, ..Cred::default() }
    }

    fn attr(mode: u32) -> Attr {
        Attr { mode, uid: 10, gid: 20, ..Attr::default() }
    }

    #[test]
    fn the_first_class_that_matches_decides() {
        // The owner may not even though others may.
        assert_eq!(access(&attr(0o100_077), &cred(10, 20), READ), Err(Status::EACCES));
        assert_eq!(access(&attr(0o100_707), &cred(11, 20), READ), Err(Status::EACCES));
        assert_eq!(access(&attr(0o100_007), &cred(11, 21), READ | WRITE | EXEC), Ok(()));
        let member = Cred { groups: vec![20], ..cred(11, 21) };
        assert_eq!(access(&attr(0o100_040), &member, READ), Ok(()));
    }

    #[test]
    fn root_executes_only_what_somebody_may() {
        assert_eq!(access(&attr(0o100_000), &cred(0, 0), READ | WRITE), Ok(()));
        assert_eq!(access(&attr(0o100_666), &cred(0, 0), EXEC), Err(Status::EACCES));
        assert_eq!(access(&attr(0o040_000), &cred(0, 0), EXEC), Ok(()));
    }

    #[test]
    fn new_inodes_take_the_group_of_a_setgid_directory() {
        let dir = attr(0o042_777);
        assert_eq!(for_new(&dir, &cred(1, 2), 0o100_644), (1, 20, 0o100_644));
        assert_eq!(for_new(&dir, &cred(1, 2), 0o040_755), (1, 20, 0o042_755));
        assert_eq!(for_new(&dir, &cred(1, 2), 0o102_755), (1, 20, 0o100_755));
        assert_eq!(for_new(&attr(0o040_777), &cred(1, 2), 0o102_755), (1, 2, 0o102_755));
    }

    #[test]
    fn privileges_go_as_a_write_takes_them() {
        assert_eq!(without_privileges(0o106_755), 0o100_755);
        // Setgid without group execution is mandatory locking of old, not a privilege.
        assert_eq!(without_privileges(0o106_745), 0o102_745);
    }
}
