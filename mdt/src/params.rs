//! Tunables and counters of an MDT, as `lctl get_param` and `set_param` see them.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::Duration;

use nacre_wire::layout::{STRIPE_SIZE_DEFAULT, StripeHint};

/// What can be set. All are plain numbers; a default layout applies to files whose directory says nothing.
pub struct Params {
    /// How long a restart waits for clients, seconds.
    pub recovery_window_seconds: Cell<u64>,
    /// How long a client may be without a link before it is evicted, seconds.
    pub client_grace_seconds: Cell<u64>,
    /// Objects asked of an OST at once, to begin with.
    pub precreate_batch: Cell<u64>,
    /// How long a create waits for an OST to have objects, seconds.
    pub precreate_wait_seconds: Cell<u64>,
    /// Pause between two looks at the free space of an OST, seconds.
    pub ost_statfs_interval_seconds: Cell<u64>,
    /// Stripes of a file by default; 0 means all.
    pub stripe_count: Cell<u64>,
    /// Stripe size of a file by default, bytes.
    pub stripe_size_bytes: Cell<u64>,
}

impl Default for Params {
    fn default() -> Params {
        Params {
            recovery_window_seconds: Cell::new(30),
            client_grace_seconds: Cell::new(30),
            precreate_batch: Cell::new(256),
            precreate_wait_seconds: Cell::new(10),
            ost_statfs_interval_seconds: Cell::new(5),
            stripe_count: Cell::new(1),
            stripe_size_bytes: Cell::new(u64::from(STRIPE_SIZE_DEFAULT)),
        }
    }
}

/// Why a parameter was not set.
#[derive(Debug, thiserror::Error)]
pub enum ParamError {
    /// No such name.
    #[error("the MDT has no parameter \"{0}\"")]
    Unknown(String),
    /// Not a number, or out of range.
    #[error("{name}={value}: want a whole number from {min} to {max}")]
    Value {
        /// The parameter.
        name: String,
        /// What was given.
        value: String,
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
    },
}

/// One tunable, for lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamInfo {
    /// Its name; units end it.
    pub name: &'static str,
    /// Now.
    pub value: u64,
    /// Smallest.
    pub min: u64,
    /// Largest.
    pub max: u64,
}

impl Params {
    fn table(&self) -> [(&'static str, &Cell<u64>, u64, u64); 7] {
        [
            ("recovery_window_seconds", &self.recovery_window_seconds, 0, 3600),
            ("client_grace_seconds", &self.client_grace_seconds, 1, 3600),
            ("precreate_batch", &self.precreate_batch, 32, 1 << 15),
            ("precreate_wait_seconds", &self.precreate_wait_seconds, 0, 600),
            ("ost_statfs_interval_seconds", &self.ost_statfs_interval_seconds, 1, 3600),
            ("stripe_count", &self.stripe_count, 0, 2000),
            ("stripe_size_bytes", &self.stripe_size_bytes, 64 << 10, 1 << 30),
        ]
    }

    /// All of them.
    pub fn list(&self) -> Vec<ParamInfo> {
        self.table().map(|(name, cell, min, max)| ParamInfo { name, value: cell.get(), min, max }).to_vec()
    }

    /// Sets one from text.
    pub fn set(&self, name: &str, value: &str) -> Result<(), ParamError> {
        let Some((_, cell, min, max)) = self.table().into_iter().find(|(known, ..)| *known == name) else {
            return Err(ParamError::Unknown(name.to_owned()));
        };
        let unit = if name == "stripe_size_bytes" { 64 << 10 } else { 1 };
        match value.parse::<u64>() {
            Ok(number) if (min..=max).contains(&number) && number % unit == 0 => cell.set(number),
            _ => return Err(ParamError::Value { name: name.to_owned(), value: value.to_owned(), min, max }),
        }
        Ok(())
    }

    /// Striping where neither the caller nor the directory says anything.
    pub fn stripe_default(&self) -> StripeHint {
        let count = match self.stripe_count.get() {
            0 => -1,
            count => count as i32,
        };
        StripeHint { count: Some(count), size_bytes: Some(self.stripe_size_bytes.get() as u32), offset: None }
    }

    pub(crate) fn client_grace(&self) -> Duration {
        Duration::from_secs(self.client_grace_seconds.get())
    }

    pub(crate) fn recovery_window(&self) -> Duration {
        Duration::from_secs(self.recovery_window_seconds.get())
    }

    pub(crate) fn precreate_wait(&self) -> Duration {
        Duration::from_secs(self.precreate_wait_seconds.get())
    }

    pub(crate) fn ost_statfs_interval(&self) -> Duration {
        Duration::from_secs(self.ost_statfs_interval_seconds.get())
    }
}

/// How often each operation was asked for, by operation number.
#[derive(Default)]
pub(crate) struct Stats {
    calls: [Cell<u64>; 32],
    other: Cell<u64>,
}

impl Stats {
    /// Counts one.
    pub(crate) fn count(&self, operation: u16) {
        let index = usize::from(operation & 0xff);
        if operation >> 8 == 2 && index < 32 {
            self.calls[index].set(self.calls[index].get() + 1);
        } else {
            self.other.set(self.other.get() + 1);
        }
    }

    /// All that are not zero, by name.
    pub(crate) fn list(&self) -> BTreeMap<&'static str, u64> {
        const NAMES: [&str; 21] = [
            "other",
            "get_attr",
            "lookup",
            "create",
            "open",
            "close",
            "unlink",
            "link",
            "rename",
            "set_attr",
            "read_dir",
            "get_xattr",
            "set_xattr",
            "list_xattr",
            "read_link",
            "statfs",
            "sync",
            "set_stripe",
            "fid_to_path",
            "replay_opens",
            "get_stripe",
        ];
        let mut list: BTreeMap<&'static str, u64> =
            NAMES.iter().enumerate().skip(1).map(|(i, name)| (*name, self.calls[i].get())).collect();
        list.insert("other", self.other.get());
        list.retain(|_, count| *count > 0);
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_checked() {
        let params = Params::default();
        params.set("stripe_count", "2").unwrap();
        assert_eq!(params.stripe_default().count, Some(2));
        assert!(matches!(params.set("stripe_count", "-1"), Err(ParamError::Value { .. })));
        assert!(matches!(params.set("stripe_size_bytes", "65537"), Err(ParamError::Value { .. })));
        assert!(matches!(params.set("nothing", "1"), Err(ParamError::Unknown(_))));
        params.set("stripe_count", "0").unwrap();
        assert_eq!(params.stripe_default().count, Some(-1));
        assert!(params.list().iter().any(|info| info.name == "stripe_count" && info.value == 0));
    }

    #[test]
    fn operations_are_counted_by_name() {
        let stats = Stats::default();
        stats.count(nacre_wire::mdt::op::GET_STRIPE);
        stats.count(nacre_wire::mdt::op::GET_STRIPE);
        stats.count(1);
        assert_eq!(stats.list().into_iter().collect::<Vec<_>>(), [("get_stripe", 2), ("other", 1)]);
    }
}
