//! What a filesystem should do, in the plainest words: inodes in a map, directories as maps of names.

use std::collections::BTreeMap;

use nacre_wire::Status;

/// An inode of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// Bytes.
    File(Vec<u8>),
    /// Name → inode.
    Dir(BTreeMap<Vec<u8>, u64>),
    /// Target.
    Symlink(Vec<u8>),
}

/// An inode and what is known about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    /// Contents.
    pub node: Node,
    /// Permission bits.
    pub mode: u32,
    /// Names (directories: 2 + subdirectories).
    pub nlink: u32,
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A filesystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    inodes: BTreeMap<u64, Inode>,
    /// How often each is open: the last close of a file without names removes it.
    opens: BTreeMap<u64, u32>,
    next: u64,
}

/// The root's inode.
pub const ROOT: u64 = 1;

impl Default for Model {
    fn default() -> Model {
        let root = Inode { node: Node::Dir(BTreeMap::new()), mode: 0o755, nlink: 2, xattrs: BTreeMap::new() };
        Model { inodes: BTreeMap::from([(ROOT, root)]), opens: BTreeMap::new(), next: 2 }
    }
}

impl Model {
    /// The inode with this number.
    pub fn inode(&self, number: u64) -> &Inode {
        &self.inodes[&number]
    }

    /// Whether it is there, if only for those who have it open.
    pub fn exists(&self, number: u64) -> bool {
        self.inodes.contains_key(&number)
    }

    /// Every inode.
    pub fn numbers(&self) -> impl Iterator<Item = u64> + '_ {
        self.inodes.keys().copied()
    }

    /// open(2).
    pub fn open(&mut self, number: u64) {
        *self.opens.entry(number).or_default() += 1;
    }

    /// close(2).
    pub fn close(&mut self, number: u64) {
        let count = self.opens.get_mut(&number).expect("what is closed was open");
        *count -= 1;
        if *count == 0 {
            self.opens.remove(&number);
            if self.inode(number).nlink == 0 {
                self.inodes.remove(&number);
            }
        }
    }

    /// The inode with this number, to change.
    pub fn inode_mut(&mut self, number: u64) -> &mut Inode {
        self.inodes.get_mut(&number).expect("numbers come from lookups")
    }

    /// The child of that name.
    pub fn lookup(&self, parent: u64, name: &[u8]) -> Result<u64, Status> {
        self.dir(parent)?.get(name).copied().ok_or(Status::ENOENT)
    }

    /// The entries of a directory.
    pub fn dir(&self, number: u64) -> Result<&BTreeMap<Vec<u8>, u64>, Status> {
        match &self.inodes.get(&number).ok_or(Status::ENOENT)?.node {
            Node::Dir(entries) => Ok(entries),
            _ => Err(Status::ENOTDIR),
        }
    }

    fn dir_mut(&mut self, number: u64) -> &mut BTreeMap<Vec<u8>, u64> {
        match &mut self.inode_mut(number).node {
            Node::Dir(entries) => entries,
            _ => panic!("checked to be a directory"),
        }
    }

    /// Every name, for a walk: (parent, name, child), parents first.
    pub fn walk(&self) -> Vec<(u64, Vec<u8>, u64)> {
        let mut names = Vec::new();
        let mut pending = vec![ROOT];
        while let Some(parent) = pending.pop() {
            for (name, child) in self.dir(parent).expect("only directories are pushed") {
                names.push((parent, name.clone(), *child));
                if matches!(self.inode(*child).node, Node::Dir(_)) {
                    pending.push(*child);
                }
            }
        }
        names
    }

    /// A new file, directory or link.
    pub fn create(&mut self, parent: u64, name: &[u8], node: Node, mode: u32) -> Result<u64, Status> {
        if self.dir(parent)?.contains_key(name) {
            return Err(Status::EEXIST);
        }
        let number = self.next;
        self.next += 1;
        let is_dir = matches!(node, Node::Dir(_));
        let inode = Inode { node, mode, nlink: 1 + u32::from(is_dir), xattrs: BTreeMap::new() };
        self.inodes.insert(number, inode);
        self.dir_mut(parent).insert(name.to_vec(), number);
        self.inode_mut(parent).nlink += u32::from(is_dir);
        Ok(number)
    }

    /// Another name of a file.
    pub fn link(&mut self, number: u64, parent: u64, name: &[u8]) -> Result<(), Status> {
        if self.dir(parent)?.contains_key(name) {
            return Err(Status::EEXIST);
        }
        if matches!(self.inode(number).node, Node::Dir(_)) {
            return Err(Status::EPERM);
        }
        self.dir_mut(parent).insert(name.to_vec(), number);
        self.inode_mut(number).nlink += 1;
        Ok(())
    }

    /// unlink(2), or rmdir(2).
    pub fn unlink(&mut self, parent: u64, name: &[u8], directory: bool) -> Result<(), Status> {
        let number = self.lookup(parent, name)?;
        match (&self.inode(number).node, directory) {
            (Node::Dir(entries), true) if !entries.is_empty() => return Err(Status::ENOTEMPTY),
            (Node::Dir(_), false) => return Err(Status::EISDIR),
            (Node::File(_) | Node::Symlink(_), true) => return Err(Status::ENOTDIR),
            _ => {}
        }
        self.dir_mut(parent).remove(name);
        self.forget_name(parent, number);
        Ok(())
    }

    /// A name of `number` in `parent` has gone.
    fn forget_name(&mut self, parent: u64, number: u64) {
        if matches!(self.inode(number).node, Node::Dir(_)) {
            self.inodes.remove(&number);
            self.inode_mut(parent).nlink -= 1;
            return;
        }
        let inode = self.inode_mut(number);
        inode.nlink -= 1;
        if inode.nlink == 0 && !self.opens.contains_key(&number) {
            self.inodes.remove(&number);
        }
    }

    /// rename(2).
    pub fn rename(&mut self, from: u64, name: &[u8], to: u64, new_name: &[u8]) -> Result<(), Status> {
        let moved = self.lookup(from, name)?;
        self.dir(to)?;
        let is_dir = matches!(self.inode(moved).node, Node::Dir(_));
        if is_dir && self.is_below(to, moved) {
            return Err(Status::EINVAL);
        }
        if let Ok(victim) = self.lookup(to, new_name) {
            if matches!(self.inode(victim).node, Node::Dir(_)) && self.is_below(from, victim) {
                return Err(Status::ENOTEMPTY);
            }
            if victim == moved {
                return Ok(());
            }
            match (&self.inode(victim).node, is_dir) {
                (Node::Dir(entries), true) if !entries.is_empty() => return Err(Status::ENOTEMPTY),
                (Node::Dir(_), false) => return Err(Status::EISDIR),
                (Node::File(_) | Node::Symlink(_), true) => return Err(Status::ENOTDIR),
                _ => {}
            }
            self.dir_mut(to).remove(new_name);
            self.forget_name(to, victim);
        }
        self.dir_mut(from).remove(name);
        self.dir_mut(to).insert(new_name.to_vec(), moved);
        if is_dir {
            self.inode_mut(from).nlink -= 1;
            self.inode_mut(to).nlink += 1;
        }
        Ok(())
    }

    /// renameat2(2) with RENAME_EXCHANGE.
    pub fn exchange(&mut self, from: u64, name: &[u8], to: u64, new_name: &[u8]) -> Result<(), Status> {
        let (one, other) = (self.lookup(from, name)?, self.lookup(to, new_name)?);
        let is_dir = |number| matches!(self.inode(number).node, Node::Dir(_));
        let (one_is_dir, other_is_dir) = (is_dir(one), is_dir(other));
        if one_is_dir && self.is_below(to, one) || other_is_dir && self.is_below(from, other) {
            return Err(Status::EINVAL);
        }
        self.dir_mut(from).insert(name.to_vec(), other);
        self.dir_mut(to).insert(new_name.to_vec(), one);
        self.inode_mut(from).nlink -= u32::from(one_is_dir);
        self.inode_mut(to).nlink += u32::from(one_is_dir);
        self.inode_mut(to).nlink -= u32::from(other_is_dir);
        self.inode_mut(from).nlink += u32::from(other_is_dir);
        Ok(())
    }

    /// Whether `number` is `above` or in it, however deep.
    fn is_below(&self, number: u64, above: u64) -> bool {
        let mut pending = vec![above];
        while let Some(dir) = pending.pop() {
            if dir == number {
                return true;
            }
            if let Node::Dir(entries) = &self.inode(dir).node {
                pending.extend(entries.values().filter(|child| matches!(self.inode(**child).node, Node::Dir(_))));
            }
        }
        false
    }

    /// pwrite(2).
    pub fn write(&mut self, number: u64, offset: usize, data: &[u8]) {
        let Node::File(bytes) = &mut self.inode_mut(number).node else { panic!("written files are files") };
        let end = offset + data.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[offset..end].copy_from_slice(data);
    }

    /// truncate(2).
    pub fn truncate(&mut self, number: u64, size: usize) {
        let Node::File(bytes) = &mut self.inode_mut(number).node else { panic!("truncated files are files") };
        bytes.resize(size, 0);
    }

    /// Bytes of a file.
    pub fn file(&self, number: u64) -> Option<&[u8]> {
        match &self.inode(number).node {
            Node::File(bytes) => Some(bytes),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renames_as_posix_has_them() {
        let mut model = Model::default();
        let dir = || Node::Dir(BTreeMap::new());
        let a = model.create(ROOT, b"a", dir(), 0o755).unwrap();
        let b = model.create(a, b"b", dir(), 0o755).unwrap();
        assert_eq!(model.rename(ROOT, b"a", b, b"x"), Err(Status::EINVAL));
        assert_eq!(model.inode(ROOT).nlink, 3);
        let f = model.create(b, b"f", Node::File(Vec::new()), 0o644).unwrap();
        assert_eq!(model.unlink(a, b"b", true), Err(Status::ENOTEMPTY));
        model.link(f, ROOT, b"g").unwrap();
        assert_eq!(model.rename(b, b"f", ROOT, b"g"), Ok(()));
        assert_eq!((model.inode(f).nlink, model.lookup(b, b"f")), (2, Ok(f)), "two names of one file: nothing moves");
        model.rename(a, b"b", ROOT, b"b").unwrap();
        assert_eq!((model.inode(ROOT).nlink, model.inode(a).nlink), (4, 2));
    }
}
