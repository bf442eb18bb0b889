//! Who may write how much later: space promised to clients for what they cache. Pure arithmetic.
//!
//! ```text
//! |<------------------- free space of the store ------------------->|
//! |  granted to A  |  B  |  under way  |  for anybody  |  reserved  |
//! ```
//!
//! A client's write takes from its grant first; what the grant does not cover is taken from what is for anybody, or
//! refused. With each write the grant is filled up again as far as there is room. A grant is never taken back: the client may
//! have cached against it. It shrinks as it is used while space is short, and goes with the client.

use std::collections::BTreeMap;

use nacre_ldlm::ClientId;

/// Bytes are counted in blocks of this size, as the store does.
pub const BLOCK_BYTES: u64 = 4096;
/// Grants grow in steps of this size.
const STEP_BYTES: u64 = 64 << 10;

/// How large grants may be.
#[derive(Clone, Copy, Debug)]
pub struct GrantLimits {
    /// Of one client.
    pub client_bytes_max: u64,
    /// Of one client: this part of the space for anybody.
    pub divisor: u64,
    /// Never given away.
    pub reserved_bytes: u64,
}

/// All grants of a target.
#[derive(Debug, Default)]
pub struct Grants {
    clients: BTreeMap<ClientId, u64>,
    total_bytes: u64,
    under_way_bytes: u64,
}

/// Space set aside for a write that is under way; to be given back to [`Grants::end`].
#[derive(Debug)]
#[must_use = "the space stays set aside until Grants::end"]
pub struct Reserved {
    client: ClientId,
    from_grant_bytes: u64,
    from_all_bytes: u64,
}

impl Grants {
    /// What a client has now.
    pub fn of(&self, client: ClientId) -> u64 {
        self.clients.get(&client).copied().unwrap_or(0)
    }

    /// What all clients have.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// What nobody has a claim on, of `free_bytes` that the store has.
    pub fn for_anybody(&self, free_bytes: u64, limits: GrantLimits) -> u64 {
        free_bytes.saturating_sub(self.total_bytes + self.under_way_bytes + limits.reserved_bytes)
    }

    /// Fills a client's grant up; answers what it has afterwards.
    pub fn fill(&mut self, client: ClientId, free_bytes: u64, limits: GrantLimits) -> u64 {
        let room = self.for_anybody(free_bytes, limits);
        let grant = self.clients.entry(client).or_insert(0);
        let target = ((room + *grant) / limits.divisor.max(1)).min(limits.client_bytes_max) / STEP_BYTES * STEP_BYTES;
        let more = target.saturating_sub(*grant).min(room);
        *grant += more;
        self.total_bytes += more;
        *grant
    }

    /// Sets space aside for a write of at most `bytes`, out of the client's grant first if the write was granted. `None`:
    /// there is not so much.
    pub fn begin(
        &mut self,
        client: ClientId,
        bytes: u64,
        granted: bool,
        free_bytes: u64,
        limits: GrantLimits,
    ) -> Option<Reserved> {
        // A client that was evicted as its write came in has no grant, and must not get one again.
        let mut nothing = 0;
        let grant = self.clients.get_mut(&client).unwrap_or(&mut nothing);
        let from_grant_bytes = if granted { bytes.min(*grant) } else { 0 };
        let from_all_bytes = bytes - from_grant_bytes;
        // A grant that has been spent is backed by what is reserved: a restart forgets grants, clients do not.
        let reserved_bytes = if granted { 0 } else { limits.reserved_bytes };
        let others = self.total_bytes + self.under_way_bytes + reserved_bytes;
        if from_all_bytes > 0 && from_all_bytes > free_bytes.saturating_sub(others) {
            return None;
        }
        *grant -= from_grant_bytes;
        self.total_bytes -= from_grant_bytes;
        self.under_way_bytes += bytes;
        Some(Reserved { client, from_grant_bytes, from_all_bytes })
    }

    /// The write is in the store, or has failed, in which case what it took of the grant is the client's again. Answers by
    /// how much the grant has changed since before [`Grants::begin`]; `fill` included.
    pub fn end(&mut self, reserved: Reserved, done: bool, free_bytes: u64, limits: GrantLimits) -> i64 {
        let Reserved { client, from_grant_bytes, from_all_bytes } = reserved;
        self.under_way_bytes -= from_grant_bytes + from_all_bytes;
        let Some(grant) = self.clients.get_mut(&client) else { return 0 };
        let before = *grant as i64 + from_grant_bytes as i64;
        if !done {
            *grant += from_grant_bytes;
            self.total_bytes += from_grant_bytes;
        }
        self.fill(client, free_bytes, limits) as i64 - before
    }

    /// The client is gone.
    pub fn remove(&mut self, client: ClientId) {
        self.total_bytes -= self.clients.remove(&client).unwrap_or(0);
    }
}

/// Space that writing a range takes at most.
pub fn blocks_of(offset_bytes: u64, length_bytes: u64) -> u64 {
    if length_bytes == 0 {
        return 0;
    }
    let first = offset_bytes / BLOCK_BYTES;
    let last = (offset_bytes + (length_bytes - 1)) / BLOCK_BYTES;
    (last - first + 1) * BLOCK_BYTES
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: GrantLimits = GrantLimits { client_bytes_max: 16 << 20, divisor: 8, reserved_bytes: 1 << 20 };
    const A: ClientId = ClientId(1);
    const B: ClientId = ClientId(2);

    #[test]
    fn a_grant_is_used_filled_and_not_given_to_others() {
        let mut grants = Grants::default();
        let mut free = 65 << 20;
        assert_eq!(grants.fill(A, free, LIMITS), 8 << 20);
        assert_eq!(grants.fill(B, free, LIMITS), 7 << 20);
        let write = grants.begin(A, 1 << 20, true, free, LIMITS).unwrap();
        free -= 1 << 20;
        let delta = grants.end(write, true, free, LIMITS);
        assert_eq!(grants.of(A) as i64, (8 << 20) + delta);
        // B may not write into what A was promised, but into its own.
        let mut small = grants.total_bytes() + LIMITS.reserved_bytes;
        assert!(grants.begin(B, 4096, false, small, LIMITS).is_none());
        let write = grants.begin(B, 4096, true, small, LIMITS).unwrap();
        small -= 4096;
        assert_eq!(grants.end(write, true, small, LIMITS), -4096, "nothing left to fill up from");
        grants.remove(A);
        assert!(grants.begin(B, 4096, false, small, LIMITS).is_some());
    }

    #[test]
    fn blocks_are_counted_whole() {
        assert_eq!(blocks_of(0, 0), 0);
        assert_eq!(blocks_of(4095, 2), 8192);
        assert_eq!(blocks_of(4096, 4096), 4096);
        assert_eq!(blocks_of(u64::MAX - 1, 1), 4096);
    }

    proptest! {
        /// A client that caches no more than its grant never fails to write it, whatever others do.
        #[test]
        fn what_was_granted_can_be_written(
            steps in prop::collection::vec((1..4u64, 0..4u8, 1..200u64), 1..200),
            start_blocks in 0..4000u64,
        ) {
            let mut grants = Grants::default();
            let mut free = start_blocks * BLOCK_BYTES;
            let mut held = [0i64; 4];
            for (client, what, blocks) in steps {
                let (id, bytes) = (ClientId(client), blocks * BLOCK_BYTES);
                let mine = &mut held[client as usize];
                match what {
                    0 => *mine = grants.fill(id, free, LIMITS) as i64,
                    1 => {
                        let bytes = bytes.min(*mine as u64);
                        let write = grants.begin(id, bytes, true, free, LIMITS);
                        prop_assert!(write.is_some(), "a granted write was refused");
                        prop_assert!(free >= bytes);
                        free -= bytes;
                        *mine += grants.end(write.unwrap(), true, free, LIMITS);
                    }
                    2 => if let Some(write) = grants.begin(id, bytes, false, free, LIMITS) {
                        prop_assert!(free >= bytes);
                        free -= bytes;
                        *mine += grants.end(write, true, free, LIMITS);
                    },
                    _ => { grants.remove(id); *mine = 0; }
                }
                prop_assert_eq!(*mine, grants.of(id) as i64);
                prop_assert!(grants.total_bytes() <= free);
                prop_assert_eq!(grants.total_bytes(), held.iter().sum::<i64>() as u64);
            }
        }
    }
}
