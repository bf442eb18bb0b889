//! `nacre mount` and `mount.nacre`. Without `--foreground` a process of its own serves the mount; the command returns when it
//! does, or says why it does not.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use crate::cli::Mount;
use crate::mounting::{self, MountOptions};
use crate::output::{Context, Error, Result};
use crate::source::Source;

/// Where a background mount logs unless `-o log=FILE` says otherwise.
const LOG: &str = "/var/tmp/nacre-mount.log";

pub fn run(arguments: &Mount) -> Result<ExitCode> {
    let source: Source = arguments.source.parse()?;
    let (options, log) = parse_options(&arguments.options)?;
    check_mountpoint(&arguments.dir)?;
    if !arguments.foreground {
        return in_background(arguments, &log);
    }
    let dir = std::path::absolute(&arguments.dir).context(arguments.dir.display())?;
    mounting::serve(&arguments.source, &source, &dir, &options)
}

/// Mount options: what we know, and what mount(8) and Lustre's users write that needs nothing done.
fn parse_options(words: &[String]) -> Result<(MountOptions, PathBuf)> {
    let (mut options, mut log) = (MountOptions::default(), PathBuf::from(LOG));
    for word in words {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        match name {
            "ro" => options.read_only = true,
            "log" if !value.is_empty() => log = value.into(),
            "rw" | "defaults" | "flock" | "user_xattr" | "noauto" | "auto" | "_netdev" | "" => {}
            "atime" | "noatime" | "relatime" | "nodiratime" | "dev" | "nodev" | "suid" | "nosuid" | "exec"
            | "noexec" => {
                options.kernel.push(name.to_owned());
            }
            // Comments for other programs (fstab(5)).
            name if name.starts_with("x-") => {}
            _ => return Err(Error::new(format!("mount option \"{word}\" is not known"))),
        }
    }
    Ok((options, log))
}

fn check_mountpoint(dir: &Path) -> Result<()> {
    let meta = match std::fs::metadata(dir) {
        // A mount whose process is gone: it is taken away when we mount.
        Err(error) if rustix::io::Errno::from_io_error(&error) == Some(rustix::io::Errno::NOTCONN) => return Ok(()),
        meta => meta.context(format!("mount point {}", dir.display()))?,
    };
    if !meta.is_dir() {
        return Err(Error::new(format!("mount point {}: not a directory", dir.display())));
    }
    Ok(())
}

/// Starts this program again in the foreground, away from the terminal, and waits for its first line.
fn in_background(arguments: &Mount, log: &Path) -> Result<ExitCode> {
    let errors = std::fs::File::options().create(true).append(true).open(log).context(log.display())?;
    let said_before = errors.metadata()?.len();
    let mut child = Command::new(std::env::current_exe()?)
        .args(["mount", "--foreground", &arguments.source])
        .arg(&arguments.dir)
        .args(arguments.options.iter().flat_map(|option| ["-o", option]))
        .env("NACRE_DETACH", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(errors)
        .spawn()?;
    let mut line = String::new();
    let stdout = child.stdout.take().expect("was asked for");
    BufReader::new(stdout).read_line(&mut line)?;
    if line.starts_with("ready") {
        print!("{line}");
        return Ok(ExitCode::SUCCESS);
    }
    let status = child.wait()?;
    let text = std::fs::read(log).unwrap_or_default();
    let said = String::from_utf8_lossy(text.get(said_before as usize..).unwrap_or_default()).into_owned();
    let last = said.lines().rev().find_map(|line| line.strip_prefix("nacre: ")).unwrap_or("it did not say why");
    Err(Error::new(format!("{last} (the mount's process ended with {status}; log: {})", log.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_known_and_unknown() {
        let words = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<_>>();
        let (options, log) = parse_options(&words("ro,noatime,_netdev,x-systemd.automount,log=/tmp/l")).unwrap();
        assert!(options.read_only && options.kernel == ["noatime"] && log == Path::new("/tmp/l"));
        assert!(parse_options(&words("rw,colour=blue")).is_err());
    }
}
