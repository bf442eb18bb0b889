//! Commands and their arguments (the contract of the command line).

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use nacre_wire::Nid;

/// A parallel filesystem in user space.
#[derive(Parser)]
#[command(name = "nacre", version, max_term_width = 120)]
pub struct Cli {
    /// Results and errors as JSON
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Format and start a whole cluster in this process, mount it, check it, stay until Ctrl-C
    Quickstart(Quickstart),
    /// Server daemon, SPDK-format configuration
    Nacred(Nacred),
    /// Format a device or file as a target
    #[command(name = "mkfs.nacre", alias = "mkfs")]
    Mkfs(Mkfs),
    /// Mount a filesystem: NID[:NID]:/FSNAME[/SUBDIR] DIR
    #[command(alias = "mount.nacre")]
    Mount(Mount),
    /// Unmount, within a bounded time
    Umount(Umount),
    /// Files and striping, as Lustre's lfs
    #[command(subcommand)]
    Lfs(Lfs),
    /// Control, as Lustre's lctl
    Lctl(Lctl),
    /// Show what is on a device; never writes
    Inspect(Inspect),
    /// Check a device that no server uses
    Fsck(Fsck),
    /// Measure, side by side in one run
    #[command(subcommand)]
    Bench(Bench),
}

impl Command {
    /// Whether progress belongs into the log without being asked for.
    pub fn logs_by_default(&self) -> bool {
        matches!(self, Command::Nacred(_))
    }
}

#[derive(Args)]
pub struct Quickstart {
    /// Where the cluster lives; an earlier run's cluster is started again, not formatted
    #[arg(long, default_value = "nacre-data")]
    pub dir: PathBuf,
    /// Object storage targets
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub osts: u16,
    /// Size of each OST (sparse files)
    #[arg(long, default_value = "8G", value_parser = bytes)]
    pub size: u64,
    /// TCP port on 127.0.0.1
    #[arg(long, default_value_t = nacre_wire::nid::DEFAULT_PORT)]
    pub port: u16,
    /// End after the check, with status 0 only if every byte was right
    #[arg(long)]
    pub exit: bool,
}

#[derive(Args)]
pub struct Nacred {
    /// Configuration
    #[arg(short, long)]
    pub config: PathBuf,
    /// Control socket
    #[arg(short, long, default_value = crate::jsonrpc::DEFAULT_SOCKET)]
    pub rpc_socket: PathBuf,
    /// Cores to run reactors on: a hexadecimal mask (0x3) or a list ([0,1]); all cores by default
    #[arg(short = 'm', long)]
    pub cpumask: Option<String>,
    /// Poll instead of sleeping when idle
    #[arg(long)]
    pub poll: bool,
}

#[derive(Args)]
#[command(group = clap::ArgGroup::new("kind").required(true).args(["mgs", "mdt", "ost"]))]
pub struct Mkfs {
    /// A management service
    #[arg(long)]
    pub mgs: bool,
    /// A metadata target
    #[arg(long)]
    pub mdt: bool,
    /// An object storage target
    #[arg(long)]
    pub ost: bool,
    /// Name of the filesystem: 1-8 letters, digits, '-' or '_'
    #[arg(long, required_unless_present = "mgs")]
    pub fsname: Option<String>,
    /// Index of the target; the MGS hands one out where none is given
    #[arg(long)]
    pub index: Option<u16>,
    /// Where the MGS is; may be repeated
    #[arg(long, required_unless_present = "mgs")]
    pub mgsnode: Vec<Nid>,
    /// Make the file this large if it does not exist (1G, 64G…)
    #[arg(long, value_parser = bytes)]
    pub size: Option<u64>,
    /// Erase what is there
    #[arg(long)]
    pub reformat: bool,
    /// Say what would be done
    #[arg(long)]
    pub dryrun: bool,
    /// A block device or a file
    pub device: PathBuf,
}

#[derive(Args)]
pub struct Mount {
    /// NID[:NID]:/FSNAME[/SUBDIR], as in 127.0.0.1@tcp:/nacre
    pub source: String,
    /// Where
    pub dir: PathBuf,
    /// Options, comma-separated: ro, rw, foreground, …
    #[arg(short = 'o', value_delimiter = ',')]
    pub options: Vec<String>,
    /// Stay in the foreground (the default is to return when the mount serves)
    #[arg(short, long)]
    pub foreground: bool,
    /// mount(8) passes these to helpers
    #[arg(short = 's', short_alias = 'n', short_aliases = ['v', 'w'], hide = true, action = clap::ArgAction::Count)]
    pub ignored: u8,
    /// mount(8) passes the type to helpers
    #[arg(short = 't', hide = true)]
    pub fstype: Option<String>,
}

#[derive(Args)]
pub struct Umount {
    /// Do not wait for servers that are away: what is not written is lost, and said so
    #[arg(short, long)]
    pub force: bool,
    /// Most seconds to take
    #[arg(long, default_value_t = 30)]
    pub timeout: u64,
    /// Where
    pub dir: PathBuf,
}

#[derive(Subcommand)]
pub enum Lfs {
    /// Set the striping of a directory, or make a file with it
    Setstripe {
        /// Stripes; -1: all OSTs
        #[arg(short = 'c', long, allow_negative_numbers = true)]
        stripe_count: Option<i32>,
        /// Bytes per stripe, a multiple of 64K
        #[arg(short = 'S', long, value_parser = bytes)]
        stripe_size: Option<u64>,
        /// Index of the first OST; -1: any
        #[arg(short = 'i', long, allow_negative_numbers = true)]
        stripe_index: Option<i32>,
        /// Directory, or file to make
        path: PathBuf,
    },
    /// Show striping and objects
    Getstripe {
        /// The directory itself, not what is in it
        #[arg(short, long)]
        directory: bool,
        /// Files and directories
        #[arg(required = true)]
        paths: Vec<PathBuf>,
    },
    /// Space of every target
    // As in df(1), -h is not for help.
    #[command(disable_help_flag = true)]
    Df {
        /// Print help
        #[arg(long, action = clap::ArgAction::Help)]
        help: Option<bool>,
        /// Units of 1024
        #[arg(short, long)]
        human: bool,
        /// Inodes
        #[arg(short, long)]
        inodes: bool,
        /// A mount, or anything in it
        path: PathBuf,
    },
    /// FID of a path
    Path2fid {
        /// Anything in a mount
        #[arg(required = true)]
        paths: Vec<PathBuf>,
    },
    /// Paths of a FID
    Fid2path {
        /// A mount, or anything in it
        mount: PathBuf,
        /// FIDs
        #[arg(required = true)]
        fids: Vec<nacre_wire::Fid>,
    },
    /// Make a directory
    Mkdir {
        /// The directory
        path: PathBuf,
    },
}

#[derive(Args)]
pub struct Lctl {
    /// Control socket; all of this machine's by default
    #[arg(short, long, global = true)]
    pub rpc_socket: Option<PathBuf>,
    #[command(subcommand)]
    pub command: LctlCommand,
}

#[derive(Subcommand)]
pub enum LctlCommand {
    /// List devices (targets, mounts)
    Dl,
    /// Reach a server
    Ping {
        /// Which
        nid: Nid,
    },
    /// Show parameters
    #[command(name = "get_param")]
    GetParam {
        /// Names without values
        #[arg(short = 'N', long)]
        names_only: bool,
        /// Values without names
        #[arg(short = 'n', long)]
        values_only: bool,
        /// Names; '*' stands for anything
        #[arg(required = true)]
        patterns: Vec<String>,
    },
    /// Set parameters
    #[command(name = "set_param")]
    SetParam {
        /// Keep it at the MGS for all servers and clients
        #[arg(short = 'P', long)]
        permanent: bool,
        /// With -P: back to the default
        #[arg(short = 'd', long, requires = "permanent")]
        delete: bool,
        /// NAME=VALUE
        #[arg(required = true)]
        settings: Vec<String>,
    },
    /// List parameters' names
    #[command(name = "list_param")]
    ListParam {
        /// Names; '*' stands for anything
        #[arg(default_value = "*")]
        patterns: Vec<String>,
    },
}

#[derive(Args)]
pub struct Inspect {
    /// A block device or a file
    pub device: PathBuf,
    /// Show this object in detail
    #[arg(long)]
    pub object: Option<nacre_wire::Fid>,
}

#[derive(Args)]
pub struct Fsck {
    /// A block device or a file
    pub device: PathBuf,
    /// Repair what can be repaired
    #[arg(long)]
    pub repair: bool,
}

#[derive(Subcommand)]
pub enum Bench {
    /// Raw bdev, OST inside the process, OST over NVMe/TCP, and the mount
    Io(BenchArgs),
    /// Creates, stats, unlinks: on the mount, and straight at the MDT
    Md(BenchArgs),
    /// Everything
    All(BenchArgs),
}

#[derive(Args, Clone)]
pub struct BenchArgs {
    /// Where to put the device files
    #[arg(long, default_value = "nacre-bench")]
    pub dir: PathBuf,
    /// Seconds per measurement
    #[arg(long, default_value_t = 2.0)]
    pub seconds: f64,
    /// Rounds; the medians are shown
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
}

/// Puts the personality that the program was called by in front of its arguments.
pub fn with_personality(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let called = arguments.first().map(PathBuf::from).and_then(|path| path.file_name().map(ToOwned::to_owned));
    let Some(called) = called.as_deref().and_then(std::ffi::OsStr::to_str) else { return arguments };
    if ["nacred", "lfs", "lctl", "mkfs.nacre", "mount.nacre"].contains(&called) {
        arguments.insert(1, called.into());
    }
    arguments
}

/// A size: bytes, or with K, M, G, T (powers of 1024).
pub fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("\"{text}\" is not a size; sizes look like 4096, 64K, 1G");
    let digits = text.trim_end_matches(|letter: char| !letter.is_ascii_digit());
    let shift = match text[digits.len()..].to_ascii_uppercase().trim_end_matches("IB").trim_end_matches('B') {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes() {
        assert_eq!(bytes("4096"), Ok(4096));
        assert_eq!(bytes("64K"), Ok(65536));
        assert_eq!(bytes("1GiB"), Ok(1 << 30));
        for bad in ["", "G", "1.5G", "-1", "1X", "99999999T"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn personalities() {
        let as_lfs = with_personality(vec!["/usr/bin/lfs".into(), "df".into()]);
        assert_eq!(as_lfs[1], "lfs");
        assert_eq!(with_personality(vec!["nacre".into(), "lfs".into()]).len(), 2);
        let mount = with_personality(vec!["/sbin/mount.nacre".into(), "1@local:/a".into(), "/mnt".into()]);
        let cli = Cli::try_parse_from(mount.iter().cloned().chain(["-o".into(), "ro,noatime".into()])).unwrap();
        let Command::Mount(mount) = cli.command else { panic!("not a mount") };
        assert_eq!(mount.options, ["ro", "noatime"]);
    }
}
