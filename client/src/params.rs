//! Tunables of a mount, by their Lustre names. Each has a unit, a range and a default; setting one takes effect with the
//! next operation.

use std::cell::Cell;

/// What a parameter is, for `lctl list_param` and its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParamInfo {
    /// Name.
    pub name: &'static str,
    /// Unit of the value.
    pub unit: &'static str,
    /// Where nobody says otherwise.
    pub default: u64,
    /// Smallest value taken.
    pub min: u64,
    /// Largest value taken.
    pub max: u64,
    /// What it does.
    pub about: &'static str,
}

/// Why a parameter was not set.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParamError {
    /// No such name.
    #[error("the client has no parameter \"{0}\"; `lctl list_param` shows those it has")]
    Unknown(String),
    /// Out of range, or not a number.
    #[error("{name}={value}: {name} takes a number from {min} to {max} ({unit})")]
    Invalid {
        /// Parameter.
        name: &'static str,
        /// As given.
        value: String,
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
        /// Unit.
        unit: &'static str,
    },
}

macro_rules! params {
    ($($name:ident = $default:expr, $unit:expr, $min:expr, $max:expr, $about:expr;)*) => {
        /// All parameters of a mount.
        #[derive(Debug)]
        pub struct Params {
            $(#[doc = $about] pub $name: Cell<u64>,)*
        }

        /// The declarations, in order of name.
        pub const PARAMS: &[ParamInfo] = &[
            $(ParamInfo {
                name: stringify!($name), unit: $unit, default: $default, min: $min, max: $max, about: $about,
            },)*
        ];

        impl Default for Params {
            fn default() -> Params {
                Params { $($name: Cell::new($default),)* }
            }
        }

        impl Params {
            fn cell(&self, name: &str) -> Option<&Cell<u64>> {
                match name {
                    $(stringify!($name) => Some(&self.$name),)*
                    _ => None,
                }
            }
        }
    };
}

params! {
    dirty_age_ms = 1000, "milliseconds", 1, 3_600_000, "Dirty data is sent to the OSTs when it is this old.";
    max_cached_inodes = 50_000, "inodes", 16, 100_000_000, "Inodes without users that are kept, with their locks.";
    max_dirty_mb = 256, "MiB", 1, 1 << 20, "Dirty data of the whole mount; writers wait above it.";
    max_pages_per_rpc = 512, "pages of 4 KiB", 16, 1000, "Largest write-back request.";
    max_read_ahead_mb = 64, "MiB", 0, 1 << 20, "Data read ahead and not used yet, whole mount; 0: no read-ahead.";
    max_read_ahead_per_file_mb = 8, "MiB", 0, 1024, "Read-ahead window of one open file.";
    max_rpcs_in_flight = 8, "requests", 1, 256, "Write-back requests under way at each OST.";
    statfs_age_ms = 1000, "milliseconds", 0, 3_600_000, "How long an answer to statfs is used again.";
}

impl Params {
    /// The value of a parameter.
    pub fn get(&self, name: &str) -> Result<u64, ParamError> {
        self.cell(name).map(Cell::get).ok_or_else(|| ParamError::Unknown(name.to_owned()))
    }

    /// Sets a parameter from text.
    pub fn set(&self, name: &str, value: &str) -> Result<(), ParamError> {
        let (cell, info) = self
            .cell(name)
            .zip(PARAMS.iter().find(|info| info.name == name))
            .ok_or_else(|| ParamError::Unknown(name.to_owned()))?;
        match value.trim().parse::<u64>() {
            Ok(number) if (info.min..=info.max).contains(&number) => cell.set(number),
            Ok(_) | Err(_) => {
                let ParamInfo { name, min, max, unit, .. } = *info;
                return Err(ParamError::Invalid { name, value: value.to_owned(), min, max, unit });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_get_and_refuse() {
        let params = Params::default();
        for info in PARAMS {
            assert_eq!(params.get(info.name), Ok(info.default));
            assert!((info.min..=info.max).contains(&info.default), "{}", info.name);
        }
        assert!(PARAMS.is_sorted_by_key(|info| info.name));
        assert_eq!(params.set("max_dirty_mb", " 32 "), Ok(()));
        assert_eq!(params.max_dirty_mb.get(), 32);
        let error = params.set("max_dirty_mb", "0").unwrap_err().to_string();
        assert_eq!(error, "max_dirty_mb=0: max_dirty_mb takes a number from 1 to 1048576 (MiB)");
        assert!(params.set("max_dirty", "1").is_err());
    }
}
