//! The admin queue: what a host asks about a controller before it does anything. Also all a stock kernel needs to attach
//! our namespaces; docs/wire.md, section 10.

use std::rc::Rc;
use std::time::Duration;

use nacre_reactor::Bytes;
use nacre_wire::Uuid;
use nacre_wire::op::{CSI_OBJECT, DATA_BYTES_MAX, NSID_EVENT, NSID_RPC, Opcode};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromZeros, IntoBytes};

use super::association::{Association, Command};
use super::pdu::CAPSULE_DATA_BYTES_MAX;
use super::target::Subject;
use crate::Answer;
use crate::nvme::identify::{self, Controller, DescriptorHead, IndependentNamespace, ObjectController, cns};
use crate::nvme::log::{DiscoveryEntry, DiscoveryHead, EFFECT_CHANGES, EFFECT_SUPPORTED, Effects, lid};
use crate::nvme::{Sqe, StatusField, admin, fabrics, feature};
use crate::target::dispatch::MWRITE_ENTRIES_MAX;

/// Executes one admin command and completes it, except for an event request, which is held.
pub(super) fn execute(association: &Rc<Association>, command: Command, sqe: &Sqe, _data: &Bytes, reply_bytes_max: u32) {
    if sqe.opcode == admin::ASYNC_EVENT_REQUEST {
        let held = association.held_requests.get();
        if held > u32::from(EVENT_REQUESTS_MAX) {
            return command.fail(StatusField::EVENT_LIMIT);
        }
        association.held_requests.set(held + 1);
        return;
    }
    match answer(association, sqe) {
        Ok(mut answer) => {
            // The host's buffer says how much of a structure it wants.
            answer.data.truncate(reply_bytes_max as usize);
            command.answer(Ok(answer), reply_bytes_max);
        }
        Err(status) => command.fail(status),
    }
}

fn answer(association: &Association, sqe: &Sqe) -> Result<Answer, StatusField> {
    let result = |result| Ok(Answer { result, data: Bytes::new() });
    let data = |data: Vec<u8>| Ok(Answer { result: 0, data: data.into() });
    match sqe.opcode {
        fabrics::OPCODE => result(fabrics_command(association, sqe)?),
        admin::IDENTIFY => data(identify(association, sqe)?),
        admin::GET_LOG_PAGE => data(log_page(association, sqe)?),
        admin::SET_FEATURES => result(set_features(association, sqe)?),
        admin::GET_FEATURES => result(get_features(association, sqe)?),
        admin::KEEP_ALIVE => result(0),
        // Bit 0: the command was not aborted. Ours end by themselves.
        admin::ABORT => result(1),
        _ => Err(StatusField::INVALID_OPCODE),
    }
}

fn fabrics_command(association: &Association, sqe: &Sqe) -> Result<u64, StatusField> {
    use fabrics::property;
    let size_is_8 = sqe.cdw(10) & 7 == 1;
    match (sqe.nsid.get() as u8, sqe.cdw(11)) {
        (fabrics::PROPERTY_GET, property::CAP) if size_is_8 => Ok(fabrics::CAP),
        (fabrics::PROPERTY_GET, property::VS) if !size_is_8 => Ok(fabrics::VERSION.into()),
        (fabrics::PROPERTY_GET, property::CC) if !size_is_8 => Ok(association.configuration.get().into()),
        (fabrics::PROPERTY_GET, property::CSTS) if !size_is_8 => {
            let configuration = association.configuration.get();
            let ready = configuration & CC_ENABLE;
            let shut_down = if configuration & CC_SHUTDOWN != 0 { CSTS_SHUTDOWN_DONE } else { 0 };
            Ok(u64::from(ready | shut_down))
        }
        // CRTO: 15 s, both ways of counting.
        (fabrics::PROPERTY_GET, property::CRTO) if !size_is_8 => Ok(30 << 16 | 30),
        (fabrics::PROPERTY_GET, property::NSSR) if !size_is_8 => Ok(0),
        (fabrics::PROPERTY_SET, property::CC) if !size_is_8 => {
            association.configuration.set(fabrics::property_value(sqe) as u32);
            Ok(0)
        }
        (fabrics::PROPERTY_GET | fabrics::PROPERTY_SET, _) => Err(StatusField::INVALID_FIELD),
        (fabrics::CONNECT, _) => Err(StatusField::SEQUENCE_ERROR),
        _ => Err(StatusField::INVALID_OPCODE),
    }
}

fn set_features(association: &Association, sqe: &Sqe) -> Result<u64, StatusField> {
    match sqe.cdw(10) as u8 {
        feature::NUMBER_OF_QUEUES => {
            let (submission, completion) = (sqe.cdw(11) & 0xffff, sqe.cdw(11) >> 16);
            if submission == 0xffff || completion == 0xffff {
                return Err(StatusField::INVALID_FIELD);
            }
            let given = submission.min(completion).min(IO_QUEUES_MAX - 1);
            Ok(u64::from(given << 16 | given))
        }
        feature::KEEP_ALIVE_TIMER => {
            association.keep_alive.set(Duration::from_millis(sqe.cdw(11).into()));
            Ok(0)
        }
        feature::ASYNC_EVENT_CONFIGURATION | feature::HOST_BEHAVIOR => Ok(0),
        _ => Err(StatusField::INVALID_FIELD),
    }
}

fn get_features(association: &Association, sqe: &Sqe) -> Result<u64, StatusField> {
    match sqe.cdw(10) as u8 {
        feature::NUMBER_OF_QUEUES => Ok(u64::from((IO_QUEUES_MAX - 1) << 16 | (IO_QUEUES_MAX - 1))),
        feature::KEEP_ALIVE_TIMER => Ok(association.keep_alive.get().as_millis() as u64),
        feature::ASYNC_EVENT_CONFIGURATION => Ok(0),
        _ => Err(StatusField::INVALID_FIELD),
    }
}

fn identify(association: &Association, sqe: &Sqe) -> Result<Vec<u8>, StatusField> {
    let (nsid, csi) = (sqe.nsid.get(), (sqe.cdw(11) >> 24) as u8);
    let service = match &association.subject {
        Subject::Service(service) => Some(service),
        Subject::Discovery(_) => None,
    };
    match (sqe.cdw(10) as u8, service) {
        (cns::CONTROLLER, _) => Ok(controller(association).as_bytes().to_vec()),
        // A discovery controller has nothing else.
        (_, None) => Err(StatusField::INVALID_FIELD),
        // A namespace of ours has no NVM data structure: zeros say "inactive here".
        (cns::NAMESPACE, _) => known(nsid).map(|()| zeros()),
        (cns::ACTIVE_NAMESPACES, _) => Ok(namespaces_after(nsid)),
        (cns::ACTIVE_NAMESPACES_FOR_CSI, _) => Ok(if csi == CSI_OBJECT { namespaces_after(nsid) } else { zeros() }),
        (cns::NAMESPACE_DESCRIPTORS, Some(service)) => {
            known(nsid)?;
            let mut list = zeros();
            let uuid = namespace_uuid(service.uuid(), &service.nqn(), nsid);
            let mut at = descriptor(&mut list, 0, 3, &uuid.0);
            at = descriptor(&mut list, at, 4, &[CSI_OBJECT]);
            debug_assert!(at < list.len());
            Ok(list)
        }
        (cns::NAMESPACE_FOR_CSI, _) => known(nsid).map(|()| zeros()),
        (cns::CONTROLLER_FOR_CSI, Some(service)) if csi == CSI_OBJECT => {
            let structure = ObjectController {
                version: identify::OBJECT_VERSION.into(),
                data_bytes_max: DATA_BYTES_MAX.into(),
                mwrite_entries_max: (MWRITE_ENTRIES_MAX as u32).into(),
                reserved: 0.into(),
                target_uuid: service.uuid().0,
                reserved_tail: [[0; 2032]; 2],
            };
            Ok(structure.as_bytes().to_vec())
        }
        // NVM command set: zeros, no limits beyond MDTS.
        (cns::CONTROLLER_FOR_CSI, _) => Ok(zeros()),
        (cns::NAMESPACE_INDEPENDENT, _) => {
            known(nsid)?;
            let mut structure = IndependentNamespace::new_zeroed();
            structure.nmic = 1;
            structure.nstat = 1;
            Ok(structure.as_bytes().to_vec())
        }
        (cns::COMMAND_SETS, _) => {
            let mut combinations = zeros();
            combinations[..8].copy_from_slice(identify::command_set_combination().as_bytes());
            Ok(combinations)
        }
        _ => Err(StatusField::INVALID_FIELD),
    }
}

fn controller(association: &Association) -> Box<Controller> {
    let mut it = Controller::zeroed();
    let (nqn, uuid) = match &association.subject {
        Subject::Service(service) => (service.nqn(), service.uuid()),
        Subject::Discovery(_) => (fabrics::DISCOVERY_NQN.to_owned(), Uuid::NIL),
    };
    let serial: String = uuid.0.iter().take(10).map(|byte| format!("{byte:02X}")).collect();
    it.sn = identify::padded(&serial);
    it.mn = identify::padded("Nacre");
    it.fr = identify::padded(env!("CARGO_PKG_VERSION"));
    // 4 MiB in units of 4 KiB, as a power of two.
    it.mdts = 10;
    it.cntlid = association.controller_id.into();
    it.ver = fabrics::VERSION.into();
    // Namespace attribute notices.
    it.oaes = (1 << 8).into();
    // 128-bit host identifier; keep-alive by traffic.
    it.ctratt = (1 | 1 << 6).into();
    it.cntrltype = 1;
    it.acl = 3;
    it.aerl = EVENT_REQUESTS_MAX;
    // Effects log; extended data for Get Log Page.
    it.lpa = 1 << 1 | 1 << 2;
    it.kas = 1.into();
    it.sqes = 0x66;
    it.cqes = 0x44;
    it.maxcmd = fabrics::QUEUE_ENTRIES_MAX.into();
    it.nn = NSID_EVENT.into();
    it.mnan = NSID_EVENT.into();
    // SGLs without alignment; data block offset subtype (in capsule); transport data block.
    it.sgls = (1 | 1 << 20 | 1 << 21).into();
    it.subnqn = fabrics::nqn_field(&nqn);
    it.ioccsz = ((size_of::<Sqe>() + CAPSULE_DATA_BYTES_MAX) as u32 / 16).into();
    it.iorcsz = 1.into();
    it.msdbd = 1;
    if matches!(association.subject, Subject::Discovery(_)) {
        it.cntrltype = 2;
        it.oaes = 0.into();
        it.nn = 0.into();
        it.mnan = 0.into();
    }
    it
}

fn log_page(association: &Association, sqe: &Sqe) -> Result<Vec<u8>, StatusField> {
    let dwords = u64::from(sqe.cdw(10) >> 16) | u64::from(sqe.cdw(11) & 0xffff) << 16;
    let length = ((dwords + 1) * 4).min(u64::from(DATA_BYTES_MAX)) as usize;
    let offset = u64::from(sqe.cdw(12)) | u64::from(sqe.cdw(13)) << 32;
    let csi = (sqe.cdw(14) >> 24) as u8;
    let page = match (sqe.cdw(10) as u8, &association.subject) {
        (lid::DISCOVERY, Subject::Discovery(target)) => discovery(target),
        (_, Subject::Discovery(_)) => return Err(StatusField::INVALID_LOG_PAGE),
        (lid::SUPPORTED, _) => {
            let supported =
                [lid::SUPPORTED, lid::ERRORS, lid::SMART, lid::FIRMWARE, lid::CHANGED_NAMESPACES, lid::EFFECTS];
            let mut page = vec![0; 1024];
            for lid in supported {
                page[4 * usize::from(lid)] = 1;
            }
            page
        }
        (lid::ERRORS, _) => vec![0; 64],
        (lid::SMART, _) => smart(),
        (lid::FIRMWARE, _) => {
            let mut page = vec![0; 512];
            // Slot 1 is active and holds our version.
            page[0] = 1;
            page[8..16].copy_from_slice(&identify::padded::<8>(env!("CARGO_PKG_VERSION")));
            page
        }
        (lid::CHANGED_NAMESPACES, _) => zeros(),
        (lid::EFFECTS, _) => effects(csi).as_bytes().to_vec(),
        _ => return Err(StatusField::INVALID_LOG_PAGE),
    };
    let start = usize::try_from(offset).ok().filter(|start| *start <= page.len()).ok_or(StatusField::INVALID_FIELD)?;
    let mut part = page[start..].to_vec();
    part.resize(length, 0);
    Ok(part)
}

fn effects(csi: u8) -> Box<Effects> {
    let mut page = Effects::new_box_zeroed().expect("4 KiB can be had");
    for opcode in [
        admin::GET_LOG_PAGE,
        admin::IDENTIFY,
        admin::ABORT,
        admin::SET_FEATURES,
        admin::GET_FEATURES,
        admin::ASYNC_EVENT_REQUEST,
        admin::KEEP_ALIVE,
    ] {
        page.admin[usize::from(opcode)] = EFFECT_SUPPORTED.into();
    }
    if csi == CSI_OBJECT {
        for opcode in (0x40..=0x7E).filter_map(Opcode::from_byte) {
            let changes =
                matches!(opcode, Opcode::Write | Opcode::Space | Opcode::SetAttr | Opcode::Mwrite | Opcode::RpcSend);
            let effect = EFFECT_SUPPORTED | if changes { EFFECT_CHANGES } else { 0 };
            page.io[opcode as usize] = effect.into();
            page.io[opcode as usize + 0x80] = effect.into();
        }
    }
    page
}

/// SMART / health: a healthy device at room temperature. Base, 5.16.1.3.
fn smart() -> Vec<u8> {
    let mut page = vec![0; 512];
    page[1..3].copy_from_slice(&300u16.to_le_bytes());
    page[3] = 100;
    page[4] = 10;
    page
}

fn discovery(target: &super::target::TcpTarget) -> Vec<u8> {
    let (generation, nqns, addresses) = target.directory();
    let mut entries = Vec::new();
    for (nqn, subtype) in nqns.iter().map(|nqn| (nqn.as_str(), 2)).chain([(fabrics::DISCOVERY_NQN, 3)]) {
        for (port, address) in addresses.iter().enumerate() {
            let mut entry = DiscoveryEntry::new_zeroed();
            entry.trtype = 3;
            entry.adrfam = if address.is_ipv4() { 1 } else { 2 };
            entry.subtype = subtype;
            entry.treq = 2 | 1 << 2;
            entry.portid = (port as u16).into();
            entry.cntlid = fabrics::CONTROLLER_ANY.into();
            entry.asqsz = 32.into();
            entry.trsvcid = identify::padded(&address.port().to_string());
            entry.subnqn = fabrics::nqn_field(nqn);
            entry.traddr = identify::padded(&address.ip().to_string());
            entries.push(entry);
        }
    }
    let mut head = DiscoveryHead::new_zeroed();
    head.generation = generation.into();
    head.records = U64::new(entries.len() as u64);
    let mut page = head.as_bytes().to_vec();
    page.extend_from_slice(entries.as_bytes());
    page
}

/// UUIDs of namespaces must differ everywhere: the target's, with the NSID and (MGS: the NQN, its UUID being nil) mixed in.
fn namespace_uuid(target: Uuid, nqn: &str, nsid: u32) -> Uuid {
    let mix = |seed: u64| {
        // FNV-1a: any fixed spread will do.
        let bytes = target.0.iter().copied().chain(nqn.bytes()).chain(nsid.to_le_bytes());
        bytes.fold(0xcbf2_9ce4_8422_2325 ^ seed, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    };
    Uuid::from_random(mix(1), mix(2))
}

fn descriptor(list: &mut [u8], at: usize, kind: u8, bytes: &[u8]) -> usize {
    let head = DescriptorHead { kind, length: bytes.len() as u8, reserved: 0.into() };
    list[at..at + 4].copy_from_slice(head.as_bytes());
    list[at + 4..at + 4 + bytes.len()].copy_from_slice(bytes);
    at + 4 + bytes.len()
}

fn known(nsid: u32) -> Result<(), StatusField> {
    if nsid == NSID_RPC || nsid == NSID_EVENT { Ok(()) } else { Err(StatusField::INVALID_NAMESPACE) }
}

fn namespaces_after(nsid: u32) -> Vec<u8> {
    let mut list = zeros();
    for (slot, nsid) in list.chunks_exact_mut(4).zip([NSID_RPC, NSID_EVENT].into_iter().filter(|id| *id > nsid)) {
        slot.copy_from_slice(U32::new(nsid).as_bytes());
    }
    list
}

fn zeros() -> Vec<u8> {
    vec![0; 4096]
}

/// 0's based, as in Identify.
const EVENT_REQUESTS_MAX: u8 = 3;
/// Of one association.
pub(super) const IO_QUEUES_MAX: u32 = 64;
const CC_ENABLE: u32 = 1;
const CC_SHUTDOWN: u32 = 3 << 14;
const CSTS_SHUTDOWN_DONE: u32 = 2 << 2;
