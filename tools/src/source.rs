//! What is mounted: `NID[:NID]:/FSNAME[/SUBDIR]`.

use std::str::FromStr;

use nacre_wire::map::fsname_is_valid;
use nacre_wire::nid::{Nid, ParseNidError};

/// The first argument of mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Where the MGS is, best first.
    pub mgs_nids: Vec<Nid>,
    /// Which filesystem.
    pub fsname: String,
    /// Which directory of it; empty: all.
    pub subdir: String,
}

/// A text that names no filesystem.
#[derive(Debug, thiserror::Error)]
#[error("\"{text}\" does not name a filesystem: {why}; write NID[:NID]:/FSNAME[/SUBDIR], as in 10.0.0.1@tcp:/scratch")]
pub struct ParseSourceError {
    text: String,
    why: String,
}

impl FromStr for Source {
    type Err = ParseSourceError;

    fn from_str(text: &str) -> Result<Source, ParseSourceError> {
        let wrong = |why: String| ParseSourceError { text: text.to_owned(), why };
        let (nids, path) = text.split_once(":/").ok_or_else(|| wrong("no \":/\" after the NIDs".to_owned()))?;
        let (fsname, subdir) = path.split_once('/').unwrap_or((path, ""));
        if !fsname_is_valid(fsname) {
            return Err(wrong(format!("\"{fsname}\" is not a filesystem name (1-8 letters, digits, '-' or '_')")));
        }
        // A colon separates NIDs, but also a port from its address: NIDs end behind their network's name.
        let mut mgs_nids = Vec::new();
        let mut rest = nids;
        loop {
            let network = rest.find('@').ok_or_else(|| wrong(format!("\"{rest}\" is not a NID")))?;
            let end = rest[network..].find(':').map_or(rest.len(), |colon| network + colon);
            let nid = rest[..end].parse().map_err(|error: ParseNidError| wrong(error.to_string()))?;
            mgs_nids.push(nid);
            match rest[end..].strip_prefix(':') {
                Some(more) => rest = more,
                None => break,
            }
        }
        Ok(Source { mgs_nids, fsname: fsname.to_owned(), subdir: subdir.trim_matches('/').to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources() {
        let source: Source = "10.0.0.1:4421@tcp:[fd00::1]@tcp:/scratch/home/x/".parse().unwrap();
        assert_eq!(source.mgs_nids.len(), 2);
        assert_eq!((source.fsname.as_str(), source.subdir.as_str()), ("scratch", "home/x"));
        assert_eq!("127.0.0.1@tcp:/nacre".parse::<Source>().unwrap().subdir, "");
        for bad in ["", "/nacre", "127.0.0.1:/nacre", "127.0.0.1@tcp:nacre", "127.0.0.1@tcp:/", "x@tcp:/nacre", "@:/n"]
        {
            assert!(bad.parse::<Source>().is_err(), "{bad}");
        }
    }
}
