//! Listing a directory while it changes.

mod rig;

use std::collections::{BTreeMap, BTreeSet};

use nacre_wire::Fid;
use proptest::prelude::*;
use rig::*;

/// What happens between two pieces of a listing.
#[derive(Clone, Debug)]
enum Between {
    Create(u8),
    Remove(u8),
    Rename(u8, u8),
}

fn between() -> impl Strategy<Value = Between> {
    prop_oneof![
        any::<u8>().prop_map(Between::Create),
        any::<u8>().prop_map(Between::Remove),
        (any::<u8>(), any::<u8>()).prop_map(|(from, to)| Between::Rename(from, to)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// A name that is there all the time comes exactly once, one that never is there does not come, and none comes twice.
    #[test]
    fn a_listing_is_stable_under_change(
        first in proptest::collection::btree_set(any::<u8>(), 0..120),
        changes in proptest::collection::vec(proptest::collection::vec(between(), 0..6), 1..40),
        bytes_max in 60u32..3000,
        plus: bool,
    ) {
        on_virtual_time(async {
            let rig = Rig::new().await;
            let peer = rig.peer(1).await;
            let dir = peer.mkdir(Fid::ROOT, "d").await.unwrap();
            for number in &first {
                peer.mkdir(dir, &format!("n{number}")).await.unwrap();
            }
            let mut now = first.clone();
            let mut always = first.clone();
            let mut ever = first.clone();
            let mut seen: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
            let mut changes = changes.into_iter();
            let (mut after, mut last_cookie) = (0, 0);
            loop {
                let piece = peer.read_dir(dir, after, bytes_max, plus).await.unwrap();
                for entry in &piece.entries {
                    assert!(entry.cookie >= last_cookie && entry.cookie > after);
                    last_cookie = entry.cookie;
                    assert_eq!(entry.inode.is_some(), plus);
                    *seen.entry(entry.name.clone()).or_insert(0) += 1;
                }
                if piece.end {
                    break;
                }
                after = piece.entries.last().expect("a piece that is not the end has entries").cookie;
                for change in changes.next().unwrap_or_default() {
                    match change {
                        Between::Create(n) if now.insert(n) => {
                            peer.mkdir(dir, &format!("n{n}")).await.unwrap();
                            ever.insert(n);
                        }
                        Between::Remove(n) if now.remove(&n) => {
                            peer.rmdir(dir, &format!("n{n}")).await.unwrap();
                            always.remove(&n);
                        }
                        Between::Rename(from, to) if from != to && now.remove(&from) => {
                            peer.rename((dir, &format!("n{from}")), (dir, &format!("n{to}"))).await.unwrap();
                            now.insert(to);
                            ever.insert(to);
                            always.remove(&from);
                        }
                        _ => {}
                    }
                }
            }
            let names = |set: &BTreeSet<u8>| set.iter().map(|n| format!("n{n}").into_bytes()).collect::<BTreeSet<_>>();
            assert!(seen.values().all(|times| *times == 1), "a name came twice");
            for name in names(&always) {
                assert!(seen.contains_key(&name), "{} did not come", String::from_utf8_lossy(&name));
            }
            assert!(seen.keys().all(|name| names(&ever).contains(name)));
        });
    }
}

#[test]
fn with_attributes_a_piece_fits_the_buffer() {
    on_virtual_time(async {
        let rig = Rig::new().await;
        let mut peer = rig.peer(1).await;
        peer.lock = ALL;
        for i in 0..700 {
            peer.file(Fid::ROOT, &format!("{:0>200}", i)).await.unwrap();
        }
        let (mut after, mut count) = (0, 0);
        loop {
            let piece = peer.read_dir(Fid::ROOT, after, 32 << 10, true).await.unwrap();
            assert!(nacre_wire::codec::encode(&piece).len() <= 32 << 10);
            for entry in &piece.entries {
                let inode = entry.inode.as_ref().unwrap();
                assert_eq!(inode.fid, entry.fid);
                assert!(inode.layout.is_some() && inode.lock.cookie != 0);
            }
            count += piece.entries.len();
            if piece.end {
                break;
            }
            after = piece.entries.last().unwrap().cookie;
        }
        assert_eq!(count, 700);
    });
}
