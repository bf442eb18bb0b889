//! The cluster map: who serves what, and where. Immutable; every change makes a new one with a higher epoch.

use serde::{Deserialize, Serialize};

use crate::{Nid, Uuid};

/// All targets of one filesystem at one epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterMap {
    /// Grows by one with every change.
    pub epoch: u64,
    /// Name of the filesystem, 1–8 letters, digits, `-` or `_`, as in Lustre.
    pub fsname: String,
    /// The filesystem: two filesystems of one name are told apart by it.
    pub fs_uuid: Uuid,
    /// All targets, ordered by kind and index.
    pub targets: Vec<TargetInfo>,
}

/// One target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetInfo {
    /// What it is.
    pub kind: TargetKind,
    /// Its number among its kind.
    pub index: u16,
    /// Made by mkfs; never changes.
    pub uuid: Uuid,
    /// Where it may be found, best first.
    pub nids: Vec<Nid>,
    /// Grows with every start of the target: a client that sees it grow reconnects at once.
    pub incarnation: u64,
}

/// Kinds of targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TargetKind {
    /// Management service.
    Mgs,
    /// Metadata target.
    Mdt,
    /// Object storage target.
    Ost,
}

impl ClusterMap {
    /// The target with this kind and index.
    pub fn target(&self, kind: TargetKind, index: u16) -> Option<&TargetInfo> {
        self.targets.iter().find(|target| target.kind == kind && target.index == index)
    }

    /// All OSTs, by index.
    pub fn osts(&self) -> impl Iterator<Item = &TargetInfo> {
        self.targets.iter().filter(|target| target.kind == TargetKind::Ost)
    }
}

/// Name of a target: `nacre-OST0000`, `nacre-MDT0000`; the MGS is `MGS`.
pub fn target_label(fsname: &str, kind: TargetKind, index: u16) -> String {
    match kind {
        TargetKind::Mgs => "MGS".to_owned(),
        TargetKind::Mdt => format!("{fsname}-MDT{index:04x}"),
        TargetKind::Ost => format!("{fsname}-OST{index:04x}"),
    }
}

/// NVMe qualified name of a target's subsystem: `nqn.2026-11.io.nacre:UUID:LABEL`. The MGS has one fixed name,
/// `nqn.2026-11.io.nacre:mgs`, because a client knows only its address.
pub fn target_nqn(uuid: Uuid, label: &str) -> String {
    format!("nqn.2026-11.io.nacre:{uuid}:{label}")
}

/// See [`target_nqn`].
pub const MGS_NQN: &str = "nqn.2026-11.io.nacre:mgs";

/// Whether a filesystem name is one: 1–8 characters of `A–Z a–z 0–9 - _`.
pub fn fsname_is_valid(name: &str) -> bool {
    (1..=8).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}
