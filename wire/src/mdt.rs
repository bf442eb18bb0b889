//! RPCs of an MDT. Every change is one RPC; opens and creates carry what the next step would ask for (intent).
//!
//! A change carries a reply slot ([`Slot`]): the server keeps the last answer of each slot on disk, so a resend is
//! answered and not repeated.

use bitflags::bitflags;
use serde::{Deserialize, Serialize};

use crate::layout::StripeHint;
use crate::ldlm::{Granted, Ibits};
use crate::{Attr, AttrPatch, Fid, Layout, Time};

/// Operation numbers.
#[allow(missing_docs, reason = "each is the number of the request struct of that name")]
pub mod op {
    pub const GET_ATTR: u16 = 0x0201;
    pub const LOOKUP: u16 = 0x0202;
    pub const CREATE: u16 = 0x0203;
    pub const OPEN: u16 = 0x0204;
    pub const CLOSE: u16 = 0x0205;
    pub const UNLINK: u16 = 0x0206;
    pub const LINK: u16 = 0x0207;
    pub const RENAME: u16 = 0x0208;
    pub const SET_ATTR: u16 = 0x0209;
    pub const READ_DIR: u16 = 0x020A;
    pub const GET_XATTR: u16 = 0x020B;
    pub const SET_XATTR: u16 = 0x020C;
    pub const LIST_XATTR: u16 = 0x020D;
    pub const READ_LINK: u16 = 0x020E;
    pub const STATFS: u16 = 0x020F;
    pub const SYNC: u16 = 0x0210;
    pub const SET_STRIPE: u16 = 0x0211;
    pub const FID_TO_PATH: u16 = 0x0212;
    pub const REPLAY_OPENS: u16 = 0x0213;
    pub const GET_STRIPE: u16 = 0x0214;
}

/// Where a change's answer is kept, and which change it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// 0..`ConnectReply::reply_slots`; one request at a time in each.
    pub index: u32,
    /// The request: grows in each slot.
    pub xid: u64,
}

/// On whose behalf.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cred {
    /// User, as the filesystem sees it.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Job the process belongs to; empty: none.
    pub job: String,
}

/// What a call on one inode answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inode {
    /// Which.
    pub fid: Fid,
    /// Its attributes. For regular files size, allocated bytes and part of the times are the OSTs' to tell.
    pub attr: Attr,
    /// Regular files: where the bytes are. `None`: no objects yet (never written), reads zeros.
    pub layout: Option<Layout>,
    /// A lock on the inode (PR, LOOKUP|UPDATE|PERM|LAYOUT|XATTR as far as free) under which all this may be cached.
    /// Cookie 0: none, do not cache.
    pub lock: Granted,
}

/// Attributes of an inode by FID; reply [`Inode`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetAttr {
    /// Which.
    pub fid: Fid,
    /// Lock bits wanted, PR; empty: none.
    pub lock: Ibits,
}

/// A name in a directory; reply [`LookupReply`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lookup {
    /// The directory.
    pub parent: Fid,
    /// The name; `..` gives the parent.
    pub name: Vec<u8>,
    /// Lock bits wanted on the child, PR.
    pub lock: Ibits,
}

/// Answer to [`Lookup`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LookupReply {
    /// The child; `None`: no such name.
    pub inode: Option<Inode>,
    /// Without the name: a PR UPDATE lock on the directory, under which "no such name" may be cached. Cookie 0: none.
    pub parent_lock: Granted,
}

/// What is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NewKind {
    /// A regular file. With `open` in [`Create`] it is opened too.
    File(StripeHint),
    /// A directory; its default striping is inherited from the parent where the hint is empty.
    Dir(StripeHint),
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// FIFO, socket, character or block device (type bits are in the mode) with this device number.
    Special(u64),
}

/// Makes a name and an inode; reply [`CreateReply`]. With `open` and without `exclusive` an existing file is opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Create {
    /// Reply slot.
    pub slot: Slot,
    /// Who.
    pub cred: Cred,
    /// Directory.
    pub parent: Fid,
    /// Name, 1–255 bytes, neither `.` nor `..`, without `/` and NUL.
    pub name: Vec<u8>,
    /// What.
    pub kind: NewKind,
    /// Permission bits, umask applied; type bits for [`NewKind::Special`].
    pub mode: u32,
    /// Client's time: all four times of the inode and mtime, ctime of the directory.
    pub time: Time,
    /// O_EXCL, and always for directories, links and devices: EEXIST if the name is there.
    pub exclusive: bool,
    /// Open it as well.
    pub open: Option<OpenFlags>,
    /// Lock bits wanted on the inode, PR.
    pub lock: Ibits,
}

/// Answer to [`Create`], [`Open`] and [`Link`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateReply {
    /// The inode, new or found.
    pub inode: Inode,
    /// Whether it was made now.
    pub created: bool,
    /// Open handle for [`Close`]; 0: not opened.
    pub handle: u64,
    /// The directory as it is now.
    pub parent: Option<Attr>,
}

bitflags! {
    /// How a file is opened.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
    pub struct OpenFlags: u32 {
        /// For reading.
        const READ = 1;
        /// For writing: a file without objects gets them now.
        const WRITE = 2;
        /// Cut to nothing (the client truncates the objects; the MDT sets times and clears setuid/setgid).
        const TRUNCATE = 4;
        /// For execution.
        const EXEC = 8;
    }
}

/// Opens by FID; reply [`CreateReply`]. Keeps the file alive after its last name goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// Who.
    pub cred: Cred,
    /// What.
    pub fid: Fid,
    /// How.
    pub flags: OpenFlags,
    /// Lock bits wanted, PR.
    pub lock: Ibits,
    /// Client's time.
    pub time: Time,
}

/// Ends an open; reply [`CloseReply`]. The last close of a file without names removes it. Closing twice is no error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Close {
    /// What was opened.
    pub fid: Fid,
    /// From [`CreateReply`].
    pub handle: u64,
    /// Size and times as the closer knows them: a hint for scans (`lfs find`), never the truth.
    pub attr: Option<AttrPatch>,
}

/// Answer to [`Close`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloseReply {
    /// The inode went with this close: nothing of it is worth keeping.
    pub gone: bool,
}

/// Removes a name; reply [`UnlinkReply`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unlink {
    /// Reply slot.
    pub slot: Slot,
    /// Who.
    pub cred: Cred,
    /// Directory.
    pub parent: Fid,
    /// Name.
    pub name: Vec<u8>,
    /// rmdir(2) rather than unlink(2).
    pub directory: bool,
    /// Client's time.
    pub time: Time,
}

/// Answer to [`Unlink`] and [`Rename`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnlinkReply {
    /// The inode whose name went, with its attributes now (nlink 0: it is gone, or open somewhere). Rename: the inode that
    /// was replaced, if any.
    pub victim: Option<(Fid, Attr)>,
    /// The victim is gone: it has no name, and nobody has it open.
    pub gone: bool,
    /// The directory now. Rename: the old parent.
    pub parent: Attr,
    /// Rename: the new parent, if another.
    pub new_parent: Option<Attr>,
    /// Rename: the inode that moved.
    pub moved: Option<(Fid, Attr)>,
}

/// Gives an inode another name; reply [`CreateReply`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Reply slot.
    pub slot: Slot,
    /// Who.
    pub cred: Cred,
    /// The inode, not a directory.
    pub fid: Fid,
    /// Directory.
    pub parent: Fid,
    /// Name.
    pub name: Vec<u8>,
    /// Client's time.
    pub time: Time,
    /// Lock bits wanted on the inode, PR.
    pub lock: Ibits,
}

bitflags! {
    /// Flags of renameat2(2).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
    pub struct RenameFlags: u32 {
        /// EEXIST if the new name is there.
        const NOREPLACE = 1;
        /// Both names stay and change places.
        const EXCHANGE = 2;
    }
}

/// Moves a name; reply [`UnlinkReply`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rename {
    /// Reply slot.
    pub slot: Slot,
    /// Who.
    pub cred: Cred,
    /// Old directory.
    pub parent: Fid,
    /// Old name.
    pub name: Vec<u8>,
    /// New directory.
    pub new_parent: Fid,
    /// New name.
    pub new_name: Vec<u8>,
    /// How.
    pub flags: RenameFlags,
    /// Client's time.
    pub time: Time,
}

/// Changes attributes; reply [`Inode`]. The size of a regular file is not set here but at its objects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAttr {
    /// Reply slot.
    pub slot: Slot,
    /// Who.
    pub cred: Cred,
    /// What.
    pub fid: Fid,
    /// The change; ctime comes from `time`.
    pub patch: AttrPatch,
    /// Clear setuid and setgid as a write or truncate by this user must.
    pub kill_privileges: bool,
    /// Client's time; the new ctime is this or just after the newest ctime any object of the file has.
    pub time: Time,
    /// Lock bits wanted, PR.
    pub lock: Ibits,
}

/// Lists a directory; reply [`ReadDirReply`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadDir {
    /// The directory.
    pub fid: Fid,
    /// Start after this cookie; 0: at the beginning.
    pub after: u64,
    /// About how many bytes of reply.
    pub bytes_max: u32,
    /// With attributes and locks of every child.
    pub plus: bool,
}

/// One name of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirEntry {
    /// Place in the directory: a hash of the name, at most 2^63 − 1, above 2; entries come in its order, so it stays
    /// valid whatever else is created or removed.
    pub cookie: u64,
    /// The name.
    pub name: Vec<u8>,
    /// The inode.
    pub fid: Fid,
    /// Its type: the type bits of mode.
    pub kind: u32,
    /// With `plus`: the rest.
    pub inode: Option<Inode>,
}

/// Answer to [`ReadDir`]. `.` and `..` are not in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadDirReply {
    /// In cookie order; entries of one cookie are never divided between replies.
    pub entries: Vec<DirEntry>,
    /// Nothing comes after these.
    pub end: bool,
    /// For `..`.
    pub parent: Fid,
    /// PR UPDATE lock on the directory, under which the listing may be cached. Cookie 0: none.
    pub lock: Granted,
}

/// Reads one extended attribute; reply: the value as `Vec<u8>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetXattr {
    /// Who.
    pub cred: Cred,
    /// Of what.
    pub fid: Fid,
    /// Full name, with its prefix.
    pub name: Vec<u8>,
}

/// Names of the extended attributes; reply `Vec<Vec<u8>>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListXattr {
    /// Who: `trusted.` is shown to root only.
    pub cred: Cred,
    /// Of what.
    pub fid: Fid,
}

/// Sets or removes an extended attribute; reply [`Inode`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetXattr {
    /// Reply slot.
    pub slot: Slot,
    /// Who.
    pub cred: Cred,
    /// Of what.
    pub fid: Fid,
    /// Full name, with its prefix.
    pub name: Vec<u8>,
    /// New value; `None` removes (ENODATA if it was not there).
    pub value: Option<Vec<u8>>,
    /// XATTR_CREATE: EEXIST if it is there.
    pub create: bool,
    /// XATTR_REPLACE: ENODATA if it is not there.
    pub replace: bool,
    /// Client's time.
    pub time: Time,
}

/// Target of a symbolic link; reply `Vec<u8>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadLink {
    /// The link.
    pub fid: Fid,
}

/// Space and inodes of the MDT (empty body); reply this.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MdtStatfs {
    /// Bytes in all.
    pub total_bytes: u64,
    /// Bytes free.
    pub free_bytes: u64,
    /// Inodes in use.
    pub inodes: u64,
    /// Inodes that would still fit, about.
    pub inodes_free: u64,
}

/// Everything the caller did before is on stable media; empty reply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sync {
    /// What is meant; NONE: the whole target.
    pub fid: Fid,
}

/// Sets striping: default of a directory, or the objects of a file that has none yet (EEXIST if it has); reply [`Inode`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetStripe {
    /// Reply slot.
    pub slot: Slot,
    /// Who.
    pub cred: Cred,
    /// Directory or file.
    pub fid: Fid,
    /// Wanted.
    pub hint: StripeHint,
    /// Client's time.
    pub time: Time,
}

/// Default striping of a directory, own or inherited from the filesystem; reply [`StripeHint`] with all fields but
/// `offset` filled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetStripe {
    /// The directory.
    pub fid: Fid,
}

/// Paths of an inode from the root, without leading slash; reply `Vec<Vec<u8>>`, one for each link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FidToPath {
    /// Which.
    pub fid: Fid,
}

/// After a restart of the MDT: what this client has open; empty reply. The handles stay valid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayOpens {
    /// Each open file, its handle, how it was opened.
    pub opens: Vec<(Fid, u64, OpenFlags)>,
}
