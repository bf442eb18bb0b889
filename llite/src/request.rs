//! Requests, parsed: one variant per thing the kernel asks for, with everything owned. Pure: bytes in, values out.

use nacre_wire::Status;
use zerocopy::{FromBytes, Immutable, KnownLayout};

use crate::abi::{self, opcode};

/// What the kernel wants. The inode is in the header.
#[derive(Debug, PartialEq)]
pub enum Request {
    /// FUSE_LOOKUP.
    Lookup(Vec<u8>),
    /// FUSE_GETATTR.
    Getattr,
    /// FUSE_STATX.
    Statx,
    /// FUSE_SETATTR.
    Setattr(abi::SetattrIn),
    /// FUSE_READLINK.
    Readlink,
    /// FUSE_SYMLINK: name and target.
    Symlink(Vec<u8>, Vec<u8>),
    /// FUSE_MKNOD.
    Mknod(abi::MknodIn, Vec<u8>),
    /// FUSE_MKDIR.
    Mkdir(abi::MkdirIn, Vec<u8>),
    /// FUSE_UNLINK; `directory`: FUSE_RMDIR.
    Unlink { name: Vec<u8>, directory: bool },
    /// FUSE_RENAME and FUSE_RENAME2: old and new name.
    Rename(abi::Rename2In, Vec<u8>, Vec<u8>),
    /// FUSE_LINK.
    Link(abi::LinkIn, Vec<u8>),
    /// FUSE_OPEN.
    Open(abi::OpenIn),
    /// FUSE_CREATE.
    Create(abi::CreateIn, Vec<u8>),
    /// FUSE_READ.
    Read(abi::ReadIn),
    /// FUSE_WRITE; the data are in the message.
    Write(abi::WriteIn),
    /// FUSE_STATFS.
    Statfs,
    /// FUSE_RELEASE.
    Release(abi::ReleaseIn),
    /// FUSE_FSYNC.
    Fsync(abi::FsyncIn),
    /// FUSE_FLUSH.
    Flush(abi::FlushIn),
    /// FUSE_SETXATTR: name and value.
    Setxattr(abi::SetxattrIn, Vec<u8>, Vec<u8>),
    /// FUSE_GETXATTR.
    Getxattr(abi::GetxattrIn, Vec<u8>),
    /// FUSE_LISTXATTR.
    Listxattr(abi::GetxattrIn),
    /// FUSE_REMOVEXATTR.
    Removexattr(Vec<u8>),
    /// FUSE_INIT: the fixed part and `flags2`.
    Init(abi::InitIn, u32),
    /// FUSE_OPENDIR.
    Opendir,
    /// FUSE_READDIR; `plus`: FUSE_READDIRPLUS.
    Readdir { read: abi::ReadIn, plus: bool },
    /// FUSE_RELEASEDIR.
    Releasedir(abi::ReleaseIn),
    /// FUSE_FSYNCDIR.
    Fsyncdir,
    /// FUSE_GETLK.
    Getlk(abi::LkIn),
    /// FUSE_SETLK; `wait`: FUSE_SETLKW.
    Setlk { lock: abi::LkIn, wait: bool },
    /// FUSE_INTERRUPT. No answer.
    Interrupt(abi::InterruptIn),
    /// FUSE_DESTROY.
    Destroy,
    /// FUSE_FALLOCATE.
    Fallocate(abi::FallocateIn),
    /// FUSE_LSEEK.
    Lseek(abi::LseekIn),
    /// FUSE_IOCTL, of which there are none.
    Ioctl,
}

impl Request {
    /// Reads the arguments of an opcode.
    ///
    /// # Errors
    /// `None`: this opcode is not for us (the kernel hears ENOSYS and finds another way, or stops asking). `EIO`: the
    /// arguments are too short for it.
    pub fn parse(opcode: u32, arguments: &[u8]) -> Result<Option<Request>, Status> {
        let mut args = Args(arguments);
        Ok(Some(match opcode {
            opcode::LOOKUP => Request::Lookup(args.name()?),
            opcode::GETATTR => Request::Getattr,
            opcode::STATX => Request::Statx,
            opcode::SETATTR => Request::Setattr(args.get()?),
            opcode::READLINK => Request::Readlink,
            opcode::SYMLINK => Request::Symlink(args.name()?, args.name()?),
            opcode::MKNOD => Request::Mknod(args.get()?, args.name()?),
            opcode::MKDIR => Request::Mkdir(args.get()?, args.name()?),
            opcode::UNLINK => Request::Unlink { name: args.name()?, directory: false },
            opcode::RMDIR => Request::Unlink { name: args.name()?, directory: true },
            opcode::RENAME => {
                let abi::RenameIn { newdir } = args.get()?;
                Request::Rename(abi::Rename2In { newdir, flags: 0, padding: 0 }, args.name()?, args.name()?)
            }
            opcode::RENAME2 => Request::Rename(args.get()?, args.name()?, args.name()?),
            opcode::LINK => Request::Link(args.get()?, args.name()?),
            opcode::OPEN => Request::Open(args.get()?),
            opcode::CREATE => Request::Create(args.get()?, args.name()?),
            opcode::READ => Request::Read(args.get()?),
            opcode::WRITE => Request::Write(args.get()?),
            opcode::STATFS => Request::Statfs,
            opcode::RELEASE => Request::Release(args.get()?),
            opcode::FSYNC => Request::Fsync(args.get()?),
            opcode::FLUSH => Request::Flush(args.get()?),
            opcode::SETXATTR => {
                let set: abi::SetxattrIn = args.get()?;
                Request::Setxattr(set, args.name()?, args.bytes(set.size as usize)?)
            }
            opcode::GETXATTR => Request::Getxattr(args.get()?, args.name()?),
            opcode::LISTXATTR => Request::Listxattr(args.get()?),
            opcode::REMOVEXATTR => Request::Removexattr(args.name()?),
            opcode::INIT => Request::Init(args.get()?, args.get().unwrap_or(0)),
            opcode::OPENDIR => Request::Opendir,
            opcode::READDIR => Request::Readdir { read: args.get()?, plus: false },
            opcode::READDIRPLUS => Request::Readdir { read: args.get()?, plus: true },
            opcode::RELEASEDIR => Request::Releasedir(args.get()?),
            opcode::FSYNCDIR => Request::Fsyncdir,
            opcode::GETLK => Request::Getlk(args.get()?),
            opcode::SETLK => Request::Setlk { lock: args.get()?, wait: false },
            opcode::SETLKW => Request::Setlk { lock: args.get()?, wait: true },
            opcode::INTERRUPT => Request::Interrupt(args.get()?),
            opcode::DESTROY => Request::Destroy,
            opcode::FALLOCATE => Request::Fallocate(args.get()?),
            opcode::LSEEK => Request::Lseek(args.get()?),
            opcode::IOCTL => Request::Ioctl,
            _ => return Ok(None),
        }))
    }

    /// The nodes of FUSE_FORGET, which has its node in the header, and of FUSE_BATCH_FORGET. Nobody waits for an answer,
    /// so what is too short is as much as it holds.
    pub fn parse_forget(header: &abi::InHeader, arguments: &[u8]) -> Vec<abi::ForgetOne> {
        let mut args = Args(arguments);
        if header.opcode == opcode::FORGET {
            let forget = args.get::<abi::ForgetIn>().unwrap_or_default();
            return vec![abi::ForgetOne { nodeid: header.nodeid, nlookup: forget.nlookup }];
        }
        let count = args.get::<abi::BatchForgetIn>().unwrap_or_default().count as usize;
        std::iter::from_fn(|| args.get().ok()).take(count).collect()
    }
}

/// Bytes that are read from the front.
struct Args<'a>(&'a [u8]);

impl Args<'_> {
    fn get<T: FromBytes + KnownLayout + Immutable>(&mut self) -> Result<T, Status> {
        let (value, rest) = T::read_from_prefix(self.0).map_err(|_| Status::EIO)?;
        self.0 = rest;
        Ok(value)
    }

    /// Up to a zero byte.
    fn name(&mut self) -> Result<Vec<u8>, Status> {
        let length = self.0.iter().position(|byte| *byte == 0).ok_or(Status::EIO)?;
        let name = self.0[..length].to_vec();
        self.0 = &self.0[length + 1..];
        Ok(name)
    }

    fn bytes(&mut self, length: usize) -> Result<Vec<u8>, Status> {
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(Status::EIO)?;
        self.0 = rest;
        Ok(bytes.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes;

    #[test]
    fn names_and_values_are_taken_apart() {
        let rename = abi::Rename2In { newdir: 7, flags: 1, padding: 0 };
        let bytes = [rename.as_bytes(), b"old\0new\0"].concat();
        let parsed = Request::parse(opcode::RENAME2, &bytes);
        assert_eq!(parsed, Ok(Some(Request::Rename(rename, b"old".to_vec(), b"new".to_vec()))));
        let set = abi::SetxattrIn { size: 3, flags: 0 };
        let bytes = [set.as_bytes(), b"user.a\0", &[1, 0, 2]].concat();
        let parsed = Request::parse(opcode::SETXATTR, &bytes);
        assert_eq!(parsed, Ok(Some(Request::Setxattr(set, b"user.a".to_vec(), vec![1, 0, 2]))));
    }

    #[test]
    fn no_prefix_of_a_request_panics() {
        for number in 0..60 {
            for length in 0..130 {
                let _ = Request::parse(number, &vec![0xff; length]);
                let header = abi::InHeader { opcode: number, ..abi::InHeader::default() };
                let forgets = Request::parse_forget(&header, &vec![0xff; length]);
                assert!(forgets.len() <= 1 + length / 16);
            }
        }
        assert_eq!(Request::parse(opcode::LOOKUP, b"unterminated"), Err(Status::EIO));
        assert_eq!(Request::parse(47, &[]), Ok(None));
    }
}
