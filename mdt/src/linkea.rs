//! `trusted.link`: under which names an inode is known, as in Lustre. FID_TO_PATH walks it upwards; for a directory it
//! is also where `..` leads.
//!
//! The list is capped: a file with very many links keeps the first ones, and `lfs fid2path` shows those. A directory has
//! exactly one link, so nothing depends on what was left out.

use nacre_wire::{Fid, Status, codec};
use serde::{Deserialize, Serialize};

/// One name of an inode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// The directory.
    pub parent: Fid,
    /// The name in it.
    pub name: Vec<u8>,
}

/// Encoded size up to which links are added, bytes.
pub const LINK_BYTES_MAX: usize = 4096;

/// The attribute's value.
pub fn encode(links: &[Link]) -> Vec<u8> {
    codec::encode(&links)
}

/// The value of one link, without building a list.
pub fn encode_one(parent: Fid, name: &[u8]) -> Vec<u8> {
    codec::encode(&[(parent, name)].as_slice())
}

/// Inverse of [`encode`]; EBADMSG for what cannot have been written by it.
pub fn decode(value: &[u8]) -> Result<Vec<Link>, Status> {
    codec::decode(value).map_err(|_| Status::EBADMSG)
}

/// Adds a link if there is room.
pub fn add(links: &mut Vec<Link>, parent: Fid, name: &[u8]) {
    let taken: usize = links.iter().map(|link| link.name.len() + 20).sum();
    if taken + name.len() + 20 <= LINK_BYTES_MAX {
        links.push(Link { parent, name: name.to_vec() });
    }
}

/// Removes a link; one that was left out is not there.
pub fn remove(links: &mut Vec<Link>, parent: Fid, name: &[u8]) {
    links.retain(|link| link.parent != parent || link.name != name);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_a_list_of_one() {
        let parent = Fid::new(5, 6);
        let links = vec![Link { parent, name: b"name".to_vec() }];
        assert_eq!(encode_one(parent, b"name"), encode(&links));
        assert_eq!(decode(&encode(&links)), Ok(links));
        assert_eq!(decode(&[9, 9]), Err(Status::EBADMSG));
    }

    #[test]
    fn the_list_is_bounded() {
        let mut links = Vec::new();
        for i in 0..10_000u32 {
            add(&mut links, Fid::new(u64::MAX, i), &[b'n'; 255]);
        }
        assert!(encode(&links).len() <= LINK_BYTES_MAX);
        let kept = links.len();
        remove(&mut links, Fid::new(u64::MAX, 9_999), &[b'n'; 255]);
        assert_eq!(links.len(), kept);
        remove(&mut links, Fid::new(u64::MAX, 0), &[b'n'; 255]);
        assert_eq!(links.len(), kept - 1);
    }
}
