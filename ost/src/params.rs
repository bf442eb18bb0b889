//! Tunables of an OST, as `lctl get_param` and `set_param` see them.

use std::cell::Cell;
use std::time::Duration;

use nacre_ldlm::Limits;

/// What can be set. All are plain numbers, and hold from the next time they are looked at.
pub struct Params {
    /// How long a restart waits for clients that had locks, seconds.
    pub recovery_window_seconds: Cell<u64>,
    /// How long a client has to give a lock back, seconds.
    pub lock_callback_seconds: Cell<u64>,
    /// Likewise, once its link is gone.
    pub lock_callback_gone_seconds: Cell<u64>,
    /// How long a client without a link keeps locks that nobody wants, seconds.
    pub client_grace_seconds: Cell<u64>,
    /// How long a glimpse waits for a client, milliseconds.
    pub glimpse_milliseconds: Cell<u64>,
    /// Most space granted to one client, bytes.
    pub grant_client_bytes_max: Cell<u64>,
    /// A client's grant is at most the space left divided by this.
    pub grant_divisor: Cell<u64>,
    /// Space kept for the store's own records: neither granted nor given to writers, bytes.
    pub reserved_bytes: Cell<u64>,
    /// Most objects made by one PRECREATE.
    pub precreate_max: Cell<u64>,
}

impl Default for Params {
    fn default() -> Params {
        Params {
            recovery_window_seconds: Cell::new(30),
            lock_callback_seconds: Cell::new(30),
            lock_callback_gone_seconds: Cell::new(5),
            client_grace_seconds: Cell::new(30),
            glimpse_milliseconds: Cell::new(10_000),
            grant_client_bytes_max: Cell::new(64 << 20),
            grant_divisor: Cell::new(8),
            reserved_bytes: Cell::new(1 << 20),
            precreate_max: Cell::new(1 << 15),
        }
    }
}

/// Why a parameter was not set.
#[derive(Debug, thiserror::Error)]
pub enum ParamError {
    /// No such name.
    #[error("the OST has no parameter \"{0}\"")]
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
    fn table(&self) -> [(&'static str, &Cell<u64>, u64, u64); 9] {
        [
            ("recovery_window_seconds", &self.recovery_window_seconds, 0, 3600),
            ("lock_callback_seconds", &self.lock_callback_seconds, 1, 3600),
            ("lock_callback_gone_seconds", &self.lock_callback_gone_seconds, 1, 3600),
            ("client_grace_seconds", &self.client_grace_seconds, 1, 3600),
            ("glimpse_milliseconds", &self.glimpse_milliseconds, 1, 60_000),
            ("grant_client_bytes_max", &self.grant_client_bytes_max, 0, 1 << 31),
            ("grant_divisor", &self.grant_divisor, 1, 1 << 20),
            ("reserved_bytes", &self.reserved_bytes, 0, 1 << 40),
            ("precreate_max", &self.precreate_max, 1, 1 << 20),
        ]
    }

    /// All of them.
    pub fn list(&self) -> Vec<ParamInfo> {
        self.table().map(|(name, cell, min, max)| ParamInfo { name, value: cell.get(), min, max }).to_vec()
    }

    /// Sets one from text. For a running OST use [`crate::Ost::set_param`].
    pub fn set(&self, name: &str, value: &str) -> Result<(), ParamError> {
        let Some((_, cell, min, max)) = self.table().into_iter().find(|(known, ..)| *known == name) else {
            return Err(ParamError::Unknown(name.to_owned()));
        };
        match value.parse::<u64>() {
            Ok(number) if (min..=max).contains(&number) => cell.set(number),
            _ => return Err(ParamError::Value { name: name.to_owned(), value: value.to_owned(), min, max }),
        }
        Ok(())
    }

    pub(crate) fn lock_limits(&self) -> Limits {
        Limits {
            callback_timeout: Duration::from_secs(self.lock_callback_seconds.get()),
            callback_timeout_gone: Duration::from_secs(self.lock_callback_gone_seconds.get()),
            disconnect_grace: Duration::from_secs(self.client_grace_seconds.get()),
        }
    }

    pub(crate) fn recovery_window(&self) -> Duration {
        Duration::from_secs(self.recovery_window_seconds.get())
    }

    pub(crate) fn glimpse_timeout(&self) -> Duration {
        Duration::from_millis(self.glimpse_milliseconds.get())
    }
}
