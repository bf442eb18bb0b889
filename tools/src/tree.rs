//! Copies a real tree and finds out whether every byte of the copy is right, now and after a restart.
//!
//! The manifest lists what was copied: a line of JSON each, with a checksum taken from the source. The copy is read back from
//! the filesystem and not from the kernel's memory: pages are dropped first.

use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, fadvise};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use crate::output::{Context, Error, Result};

/// Most that is copied.
const BYTES_MAX: u64 = 256 << 20;
const FILES_MAX: usize = 20_000;
const BUFFER_BYTES: usize = 1 << 20;

/// One file, directory or link of the copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Below the copy's root, as bytes (names need not be text).
    path: Vec<u8>,
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Kind {
    Dir,
    File { bytes: u64, xxh3: u64, mode: u32 },
    Link { target: Vec<u8> },
}

/// How much there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Regular files.
    pub files: usize,
    /// Directories.
    pub dirs: usize,
    /// Symbolic links.
    pub links: usize,
    /// In regular files.
    pub bytes: u64,
}

impl Totals {
    fn add(&mut self, entry: &Entry) {
        match entry.kind {
            Kind::Dir => self.dirs += 1,
            Kind::File { bytes, .. } => {
                self.files += 1;
                self.bytes += bytes;
            }
            Kind::Link { .. } => self.links += 1,
        }
    }
}

/// A tree that is on most machines, for want of a better one: the Rust toolchain's sources and documentation are not
/// everywhere, so the first of these that has anything in it.
pub fn usual_source() -> Result<PathBuf> {
    let sysroot = std::process::Command::new("rustc").args(["--print", "sysroot"]).output();
    let sysroot = sysroot.ok().filter(|output| output.status.success());
    let sysroot = sysroot.map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    let mut candidates: Vec<PathBuf> = sysroot.into_iter().collect();
    candidates.extend(["/usr/include", "/usr/share/doc", "/usr/lib", "/etc"].map(PathBuf::from));
    let full = |path: &PathBuf| std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some());
    candidates.into_iter().find(full).ok_or_else(|| Error::new("no directory to copy was found; name one with --tree"))
}

/// Copies up to [`BYTES_MAX`] of `source` to the new directory `target`; what was copied goes to `manifest`.
/// `progress` is told the bytes done.
pub fn copy(source: &Path, target: &Path, manifest: &Path, mut progress: impl FnMut(u64)) -> Result<Totals> {
    let mut totals = Totals::default();
    let mut out = BufWriter::new(std::fs::File::create(manifest).context(manifest.display())?);
    let mut record = |entry: Entry, totals: &mut Totals| -> Result<()> {
        totals.add(&entry);
        serde_json::to_writer(&mut out, &entry)?;
        Ok(out.write_all(b"\n")?)
    };
    std::fs::create_dir(target).context(target.display())?;
    let mut pending = vec![PathBuf::new()];
    let mut buffer = vec![0; BUFFER_BYTES];
    'tree: while let Some(dir) = pending.pop() {
        let mut names: Vec<_> = std::fs::read_dir(source.join(&dir))
            .context(source.join(&dir).display())?
            .collect::<std::io::Result<Vec<_>>>()?
            .into_iter()
            .map(|entry| entry.file_name())
            .collect();
        names.sort();
        for name in names {
            let path = dir.join(name);
            let (from, to) = (source.join(&path), target.join(&path));
            let meta = std::fs::symlink_metadata(&from).context(from.display())?;
            let kind = if meta.is_dir() {
                std::fs::create_dir(&to).context(to.display())?;
                pending.push(path.clone());
                Kind::Dir
            } else if meta.is_symlink() {
                let link = std::fs::read_link(&from).context(from.display())?;
                std::os::unix::fs::symlink(&link, &to).context(to.display())?;
                Kind::Link { target: link.into_os_string().into_vec() }
            } else if meta.is_file() {
                if totals.bytes + meta.len() > BYTES_MAX {
                    continue;
                }
                match copy_file(&from, &to, &mut buffer) {
                    // What the source does not give us is no fault of the filesystem.
                    Err(Trouble::Source(error)) => {
                        tracing::debug!("{}: left out: {error}", from.display());
                        let _ = std::fs::remove_file(&to);
                        continue;
                    }
                    Err(Trouble::Target(error)) => return Err(error).context(to.display()),
                    Ok((bytes, xxh3)) => {
                        std::fs::set_permissions(&to, meta.permissions()).context(to.display())?;
                        Kind::File { bytes, xxh3, mode: meta.mode() & 0o777 }
                    }
                }
            } else {
                continue;
            };
            record(Entry { path: path.into_os_string().into_vec(), kind }, &mut totals)?;
            progress(totals.bytes);
            if totals.files >= FILES_MAX {
                break 'tree;
            }
        }
    }
    out.flush()?;
    Ok(totals)
}

/// Reads the copy back and holds it against the manifest. An error names the first thing that is wrong.
pub fn verify(copy: &Path, manifest: &Path, mut progress: impl FnMut(u64)) -> Result<Totals> {
    let mut totals = Totals::default();
    let mut buffer = vec![0; BUFFER_BYTES];
    for line in BufReader::new(std::fs::File::open(manifest).context(manifest.display())?).lines() {
        let entry: Entry = serde_json::from_str(&line?).context(manifest.display())?;
        let path = copy.join(std::ffi::OsStr::from_bytes(&entry.path));
        let meta = std::fs::symlink_metadata(&path).context(path.display())?;
        let wrong = |what: String| Error::new(format!("{}: {what}", path.display()));
        match &entry.kind {
            Kind::Dir if !meta.is_dir() => return Err(wrong("is no directory any more".to_owned())),
            Kind::Dir => {}
            Kind::Link { target } => {
                let found = std::fs::read_link(&path).context(path.display())?;
                if found.as_os_str().as_bytes() != target {
                    return Err(wrong("points elsewhere".to_owned()));
                }
            }
            Kind::File { bytes, xxh3, mode } => {
                if meta.len() != *bytes {
                    return Err(wrong(format!("is {} bytes long and was {bytes}", meta.len())));
                }
                if meta.permissions().mode() & 0o777 != *mode {
                    return Err(wrong("has another mode".to_owned()));
                }
                let mut file = std::fs::File::open(&path).context(path.display())?;
                fadvise(&file, 0, None, Advice::DontNeed).context(path.display())?;
                let (read, sum) = hash(&mut file, &mut buffer, |_| Ok(())).context(path.display())?;
                if (read, sum) != (*bytes, *xxh3) {
                    return Err(wrong("holds other bytes than were written".to_owned()));
                }
            }
        }
        totals.add(&entry);
        progress(totals.bytes);
    }
    Ok(totals)
}

enum Trouble {
    Source(std::io::Error),
    Target(std::io::Error),
}

fn copy_file(from: &Path, to: &Path, buffer: &mut [u8]) -> Result<(u64, u64), Trouble> {
    let mut source = std::fs::File::open(from).map_err(Trouble::Source)?;
    let mut target = std::fs::File::create_new(to).map_err(Trouble::Target)?;
    let mut failed = None;
    let copied = hash(&mut source, buffer, |bytes| {
        target.write_all(bytes).map_err(|error| {
            let again = std::io::Error::from(error.kind());
            failed = Some(error);
            again
        })
    });
    match (copied, failed) {
        (_, Some(error)) => Err(Trouble::Target(error)),
        (copied, None) => copied.map_err(Trouble::Source),
    }
}

/// Length and checksum of what `file` gives; each piece is shown to `each`.
fn hash(
    file: &mut std::fs::File,
    buffer: &mut [u8],
    mut each: impl FnMut(&[u8]) -> std::io::Result<()>,
) -> std::io::Result<(u64, u64)> {
    let (mut hash, mut length) = (Xxh3::new(), 0);
    loop {
        let count = file.read(buffer)?;
        if count == 0 {
            return Ok((length, hash.digest()));
        }
        each(&buffer[..count])?;
        hash.update(&buffer[..count]);
        length += count as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_right_until_it_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (source, copied, manifest) = (dir.path().join("s"), dir.path().join("c"), dir.path().join("m"));
        std::fs::create_dir_all(source.join("deep/er")).unwrap();
        std::fs::write(source.join("deep/er/file"), vec![5; 3 << 20]).unwrap();
        std::fs::write(source.join("empty"), b"").unwrap();
        std::os::unix::fs::symlink("deep/er", source.join("link")).unwrap();
        let done = copy(&source, &copied, &manifest, |_| ()).unwrap();
        assert_eq!(done, Totals { files: 2, dirs: 2, links: 1, bytes: 3 << 20 });
        assert_eq!(verify(&copied, &manifest, |_| ()).unwrap(), done);

        let spoil = copied.join("deep/er/file");
        let mut bytes = std::fs::read(&spoil).unwrap();
        bytes[2 << 20] ^= 1;
        std::fs::write(&spoil, &bytes).unwrap();
        let error = format!("{:?}", verify(&copied, &manifest, |_| ()).unwrap_err());
        assert!(error.contains("other bytes"), "{error}");
        std::fs::remove_file(&spoil).unwrap();
        assert!(verify(&copied, &manifest, |_| ()).is_err());
    }
}
