//! Everything that can be seen of a filesystem, by path: what a mount shows, and what the model says it should.

use std::collections::BTreeMap;

use nacre_client::{FileSystem, OpenMode};
use nacre_wire::attr::mode;
use nacre_wire::mdt::{Cred, OpenFlags};
use nacre_wire::{Fid, Status};

use crate::cluster::Mount;
use crate::model::{Model, Node, ROOT};

/// What is seen at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Type and permission bits.
    pub mode: u32,
    /// Names (directories: 2 + subdirectories).
    pub nlink: u32,
    /// The first path of the same inode.
    pub first_path: Vec<u8>,
    /// Target, of a symbolic link.
    pub target: Option<Vec<u8>>,
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Contents of a file.
    pub data: Option<Vec<u8>>,
}

/// Path → what is there. The top has the empty path.
pub type Tree = BTreeMap<Vec<u8>, Seen>;

/// What the model says.
pub fn of_model(model: &Model) -> Tree {
    let mut tree = Tree::new();
    let mut firsts: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    let mut pending = vec![(ROOT, Vec::new())];
    while let Some((number, path)) = pending.pop() {
        let inode = model.inode(number);
        let (kind, target, data) = match &inode.node {
            Node::File(bytes) => (mode::FILE, None, Some(bytes.clone())),
            Node::Symlink(target) => (mode::SYMLINK, Some(target.clone()), None),
            Node::Dir(entries) => {
                pending.extend(entries.iter().map(|(name, child)| (*child, join(&path, name))));
                (mode::DIR, None, None)
            }
        };
        let first_path = firsts.entry(number).or_insert_with(|| path.clone());
        *first_path = first_path.clone().min(path.clone());
        let seen = Seen {
            mode: kind | inode.mode,
            nlink: inode.nlink,
            first_path: Vec::new(),
            target,
            xattrs: inode.xattrs.clone(),
            data,
        };
        tree.insert(path.clone(), seen);
    }
    for (number, path) in paths(model) {
        if let Some(seen) = tree.get_mut(&path) {
            seen.first_path = firsts[&number].clone();
        }
    }
    tree
}

fn paths(model: &Model) -> Vec<(u64, Vec<u8>)> {
    let mut found = Vec::new();
    let mut pending = vec![(ROOT, Vec::new())];
    while let Some((number, path)) = pending.pop() {
        if let Node::Dir(entries) = &model.inode(number).node {
            pending.extend(entries.iter().map(|(name, child)| (*child, join(&path, name))));
        }
        found.push((number, path));
    }
    found
}

/// What a mount shows below a directory. Directories are listed in pages of about `page_bytes`.
pub async fn of_mount(mount: &Mount, top: Fid, page_bytes: u32, plus: bool) -> Result<Tree, Status> {
    let mut tree = Tree::new();
    let mut firsts: BTreeMap<Fid, Vec<u8>> = BTreeMap::new();
    let mut fids: BTreeMap<Vec<u8>, Fid> = BTreeMap::new();
    let mut pending = vec![(top, Vec::new())];
    while let Some((fid, path)) = pending.pop() {
        let attr = mount.client.getattr(fid).await?.attr;
        let mut target = None;
        let mut data = None;
        match attr.mode & mode::TYPE {
            mode::DIR => {
                for (name, child) in list(mount, fid, page_bytes, plus).await? {
                    pending.push((child, join(&path, &name)));
                }
            }
            mode::SYMLINK => target = Some(mount.client.readlink(fid).await?),
            _ => {
                let bytes = contents(mount, fid).await?;
                assert_eq!(attr.size, bytes.len() as u64, "size of {}", show(&path));
                data = Some(bytes);
            }
        }
        let mut xattrs = BTreeMap::new();
        for name in mount.client.listxattr(&Cred::default(), fid).await? {
            let value = mount.client.getxattr(&Cred::default(), fid, &name).await?;
            xattrs.insert(name, value);
        }
        let first_path = firsts.entry(fid).or_insert_with(|| path.clone());
        *first_path = first_path.clone().min(path.clone());
        fids.insert(path.clone(), fid);
        tree.insert(path, Seen { mode: attr.mode, nlink: attr.nlink, first_path: Vec::new(), target, xattrs, data });
    }
    for (path, seen) in &mut tree {
        seen.first_path = firsts[&fids[path]].clone();
    }
    Ok(tree)
}

/// All names of a directory but `.` and `..`.
///
/// # Panics
/// When a name comes twice, or those two do not come.
pub async fn list(mount: &Mount, dir: Fid, page_bytes: u32, plus: bool) -> Result<BTreeMap<Vec<u8>, Fid>, Status> {
    let mut names = BTreeMap::new();
    let mut after = 0;
    loop {
        let page = mount.client.readdir(dir, after, page_bytes, plus).await?;
        let Some(last) = page.last() else { break };
        assert!(last.cookie > after, "cookies grow");
        after = last.cookie;
        for entry in page {
            let twice = names.insert(entry.name, entry.fid);
            assert_eq!(twice, None, "listed twice");
        }
    }
    assert_eq!(names.remove(&b"."[..]), Some(dir), "the directory itself is listed");
    assert!(names.remove(&b".."[..]).is_some(), "its parent is listed");
    Ok(names)
}

/// All bytes of a file.
pub async fn contents(mount: &Mount, fid: Fid) -> Result<Vec<u8>, Status> {
    let mode = OpenMode { flags: OpenFlags::READ, ..OpenMode::default() };
    let opened = mount.client.open(&Cred::default(), fid, mode).await?;
    let bytes = mount.client.read(opened.handle, 0, READ_BYTES_MAX).await;
    mount.client.release(opened.handle, None).await?;
    Ok(bytes?.concat())
}

/// The first difference, in words.
pub fn difference(want: &Tree, got: &Tree) -> Option<String> {
    for (path, want) in want {
        let Some(got) = got.get(path) else { return Some(format!("{} is missing", show(path))) };
        if let Some(what) = difference_of(want, got) {
            return Some(format!("{}: {what}", show(path)));
        }
    }
    got.keys().find(|path| !want.contains_key(*path)).map(|path| format!("{} should not be there", show(path)))
}

fn difference_of(want: &Seen, got: &Seen) -> Option<String> {
    if let (Some(want), Some(got)) = (&want.data, &got.data)
        && let Some(what) = difference_of_bytes(want, got)
    {
        return Some(what);
    }
    let rest = |seen: &Seen| Seen { data: None, ..seen.clone() };
    (rest(want) != rest(got)).then(|| format!("want {:?}, is {:?}", rest(want), rest(got)))
}

/// Where two files differ first.
pub fn difference_of_bytes(want: &[u8], got: &[u8]) -> Option<String> {
    if want == got {
        return None;
    }
    let at = want.iter().zip(got).position(|(want, got)| want != got);
    let same_from =
        at.map(|at| at + want[at..].iter().zip(&got[at..]).position(|(want, got)| want == got).unwrap_or(0));
    let values = at.map(|at| (want[at], got[at]));
    Some(format!(
        "want {} bytes, are {}; first difference at {at:?} (want, is: {values:?}), same again from {same_from:?}",
        want.len(),
        got.len()
    ))
}

fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    [path, b"/", name].concat()
}

fn show(path: &[u8]) -> String {
    format!("\"{}\"", String::from_utf8_lossy(path))
}

/// More than any file of a test has.
const READ_BYTES_MAX: usize = 8 << 20;
