//! One filesystem's state and the rules of registration. Logic without I/O: a change is made on a copy, and the caller
//! replaces the state once the copy is stable.

use std::collections::BTreeMap;

use nacre_wire::map::{TargetInfo, TargetKind, fsname_is_valid, target_label};
use nacre_wire::mgs::{Register, RegisterReply};
use nacre_wire::{ClusterMap, Uuid};
use serde::{Deserialize, Serialize};

/// What the MGS knows of one filesystem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filesystem {
    /// Targets and epoch.
    pub map: ClusterMap,
    /// Permanent parameters, by full name.
    pub params: BTreeMap<String, String>,
}

impl Filesystem {
    /// A filesystem without targets.
    pub fn new(fsname: &str, fs_uuid: Uuid) -> Filesystem {
        let map = ClusterMap { epoch: 0, fsname: fsname.to_owned(), fs_uuid, targets: Vec::new() };
        Filesystem { map, params: BTreeMap::new() }
    }
}

/// Decides on a registration. `known` is the filesystem of that name, if there is one; `new_uuid` becomes the identity
/// of a filesystem that this registration starts. Answers the new state and the reply, or the words to refuse with.
pub fn register(
    known: Option<&Filesystem>,
    request: &Register,
    new_uuid: Uuid,
) -> Result<(Filesystem, RegisterReply), String> {
    let fsname = &request.fsname;
    if !fsname_is_valid(fsname) {
        return Err(format!("\"{fsname}\" is not a filesystem name (1-8 letters, digits, '-' or '_')"));
    }
    if request.kind == TargetKind::Mgs {
        return Err("an MGS does not register".to_owned());
    }
    let mut state = match (known, request.fs_uuid) {
        (Some(known), Some(uuid)) if known.map.fs_uuid != uuid => {
            return Err(format!(
                "the target belongs to another filesystem named {fsname} ({uuid}); this MGS serves {}; \
                 reformat the target, or start it with its own MGS",
                known.map.fs_uuid
            ));
        }
        (Some(known), _) => known.clone(),
        (None, Some(uuid)) => {
            return Err(format!(
                "the target belongs to filesystem {fsname} ({uuid}), which this MGS does not know; \
                 start it with its own MGS, or reformat the target"
            ));
        }
        (None, None) => Filesystem::new(fsname, new_uuid),
    };

    let index = match state.map.targets.iter().find(|target| target.uuid == request.target_uuid) {
        Some(target) if target.kind != request.kind || request.index.is_some_and(|index| index != target.index) => {
            let is = target_label(fsname, target.kind, target.index);
            return Err(format!("target {} is registered as {is}, not as what it says now", target.uuid));
        }
        Some(target) => target.index,
        None => free_index(&state.map, request)?,
    };

    let entry = TargetInfo {
        kind: request.kind,
        index,
        uuid: request.target_uuid,
        nids: request.nids.clone(),
        incarnation: request.incarnation,
    };
    if state.map.target(request.kind, index) != Some(&entry) {
        state.map.targets.retain(|target| target.uuid != request.target_uuid);
        state.map.targets.push(entry);
        state.map.targets.sort_by_key(|target| (target.kind, target.index));
        state.map.epoch += 1;
    }
    let reply = RegisterReply::Registered { fs_uuid: state.map.fs_uuid, index, map: state.map.clone() };
    Ok((state, reply))
}

/// The index a new target gets: the one it wants if nobody has it, else the lowest free one.
fn free_index(map: &ClusterMap, request: &Register) -> Result<u16, String> {
    if let Some(index) = request.index {
        return match map.target(request.kind, index) {
            None => Ok(index),
            Some(holder) => Err(format!(
                "{} is target {}; format this one with another --index, or without",
                target_label(&map.fsname, request.kind, index),
                holder.uuid
            )),
        };
    }
    (0..=u16::MAX)
        .find(|&index| map.target(request.kind, index).is_none())
        .ok_or_else(|| "all 65536 indices are taken".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uuid(number: u64) -> Uuid {
        Uuid::from_random(number, number)
    }

    fn ost(number: u64) -> Register {
        Register {
            fsname: "nacre".into(),
            fs_uuid: None,
            target_uuid: uuid(number),
            kind: TargetKind::Ost,
            index: None,
            nids: vec!["127.0.0.1@tcp".parse().unwrap()],
            incarnation: 1,
        }
    }

    fn index_of(reply: &RegisterReply) -> u16 {
        match reply {
            RegisterReply::Registered { index, .. } => *index,
            RegisterReply::Refused(why) => panic!("{why}"),
        }
    }

    #[test]
    fn indices_are_handed_out_and_kept() {
        let (state, first) = register(None, &ost(1), uuid(100)).unwrap();
        assert_eq!((index_of(&first), state.map.epoch, state.map.fs_uuid), (0, 1, uuid(100)));
        let (state, second) = register(Some(&state), &ost(2), uuid(101)).unwrap();
        assert_eq!((index_of(&second), state.map.epoch, state.map.fs_uuid), (1, 2, uuid(100)));

        let again = register(Some(&state), &ost(2), uuid(102)).unwrap();
        assert_eq!((index_of(&again.1), again.0.map.epoch), (1, 2), "repeating changes nothing");
        let restarted = Register { incarnation: 2, fs_uuid: Some(uuid(100)), index: Some(1), ..ost(2) };
        let (state, reply) = register(Some(&state), &restarted, uuid(103)).unwrap();
        assert_eq!((index_of(&reply), state.map.epoch, state.map.targets.len()), (1, 3, 2));
    }

    #[test]
    fn what_belongs_elsewhere_is_refused_in_words() {
        let (state, _) = register(None, &ost(1), uuid(100)).unwrap();
        let refused = |known: Option<&Filesystem>, request: Register| register(known, &request, uuid(9)).unwrap_err();
        let other = refused(Some(&state), Register { fs_uuid: Some(uuid(55)), ..ost(2) });
        assert!(other.contains("another filesystem named nacre"), "{other}");
        let lost = refused(None, Register { fs_uuid: Some(uuid(55)), ..ost(2) });
        assert!(lost.contains("does not know"), "{lost}");
        let taken = refused(Some(&state), Register { index: Some(0), ..ost(2) });
        assert!(taken.contains("nacre-OST0000"), "{taken}");
        let moved = refused(Some(&state), Register { index: Some(7), ..ost(1) });
        assert!(moved.contains("registered as nacre-OST0000"), "{moved}");
        assert!(refused(None, Register { fsname: "much-too-long".into(), ..ost(1) }).contains("not a filesystem name"));
    }
}
