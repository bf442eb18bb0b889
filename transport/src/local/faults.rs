//! Faults of links inside a process: what the simulator does to the network.
//!
//! Nothing is decided here by chance: the delay function and the calls that cut and part come from whoever holds the
//! [`LocalFaults`], so a seed replays.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use nacre_wire::Nid;

use crate::watched::Watched;

/// The two ends of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkEnds {
    /// Who connected.
    pub host: Nid,
    /// Who serves.
    pub target: Nid,
}

/// Which way a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// A command.
    ToTarget,
    /// A completion or an event.
    ToHost,
}

/// How long one message is under way.
pub type DelayFn = Box<dyn FnMut(LinkEnds, Direction) -> Duration + Send>;

/// Faults of one [`super::LocalNet`]. A handle: clones act on the same net.
#[derive(Clone)]
pub struct LocalFaults {
    shared: Arc<Shared>,
}

struct Shared {
    plan: Mutex<Plan>,
    /// Changes with every change of the plan that links must notice.
    version: Watched<u64>,
}

#[derive(Default)]
struct Plan {
    delay: Option<DelayFn>,
    parted: BTreeSet<(Nid, Nid)>,
    /// Links opened before this cut number end: (ends, number); `None` ends all.
    cuts: Vec<(Option<Nid>, u64)>,
    cut_number: u64,
}

/// How long a link survives without hearing from the other side, as a keep-alive would find out.
pub const SILENCE_MAX: Duration = Duration::from_secs(5);

impl LocalFaults {
    pub(super) fn none() -> LocalFaults {
        let shared = Shared { plan: Mutex::new(Plan::default()), version: Watched::new(0) };
        LocalFaults { shared: Arc::new(shared) }
    }

    /// Every message from now on takes as long as `delay` says. Messages may overtake each other, as on several queues.
    pub fn set_delay(&self, delay: impl FnMut(LinkEnds, Direction) -> Duration + Send + 'static) {
        self.plan().delay = Some(Box::new(delay));
    }

    /// Messages take no time again.
    pub fn clear_delay(&self) {
        self.plan().delay = None;
    }

    /// Nothing passes between two nodes: messages wait, new links are refused, and links that are still parted after
    /// [`SILENCE_MAX`] end.
    pub fn part(&self, one: Nid, other: Nid) {
        self.plan().parted.insert(pair(one, other));
        self.changed();
    }

    /// Ends a partition.
    pub fn heal(&self, one: Nid, other: Nid) {
        self.plan().parted.remove(&pair(one, other));
        self.changed();
    }

    /// Ends all partitions.
    pub fn heal_all(&self) {
        self.plan().parted.clear();
        self.changed();
    }

    /// Ends all links that a node has at this moment, on either side.
    pub fn cut(&self, node: Nid) {
        self.cut_where(Some(node));
    }

    /// Ends all links that exist at this moment.
    pub fn cut_all(&self) {
        self.cut_where(None);
    }

    /// Whether nothing passes between the two.
    pub fn is_parted(&self, ends: LinkEnds) -> bool {
        self.plan().parted.contains(&pair(ends.host, ends.target))
    }

    /// Cut number that a link opened now starts from.
    pub(super) fn cut_number(&self) -> u64 {
        self.plan().cut_number
    }

    /// Whether a link opened at `since` has been cut.
    pub(super) fn is_cut(&self, ends: LinkEnds, since: u64) -> bool {
        let hits = |node: &Option<Nid>| node.is_none_or(|node| node == ends.host || node == ends.target);
        self.plan().cuts.iter().any(|(node, number)| *number > since && hits(node))
    }

    pub(super) fn version(&self) -> u64 {
        self.shared.version.get()
    }

    /// Waits for the plan to be another than that of a version.
    pub(super) async fn changed_since(&self, version: u64) {
        self.shared.version.wait_for(|now| *now != version).await;
    }

    /// Delay of the next message; zero where nobody asked for any.
    pub(super) fn delay(&self, ends: LinkEnds, direction: Direction) -> Duration {
        self.plan().delay.as_mut().map_or(Duration::ZERO, |delay| delay(ends, direction))
    }

    fn cut_where(&self, node: Option<Nid>) {
        let mut plan = self.plan();
        plan.cut_number += 1;
        let number = plan.cut_number;
        // A later cut of the same node covers the earlier one, so this list has at most one entry for each node.
        plan.cuts.retain(|(old, _)| *old != node);
        plan.cuts.push((node, number));
        drop(plan);
        self.changed();
    }

    fn changed(&self) {
        self.shared.version.update(|version| *version += 1);
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.shared.plan.lock().expect("a delay function panicked")
    }
}

fn pair(one: Nid, other: Nid) -> (Nid, Nid) {
    (one.min(other), one.max(other))
}
