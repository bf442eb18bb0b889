//! Universally unique identifiers (RFC 9562, version 4), made from random numbers that the caller supplies, so that a
//! simulated cluster makes the same ones again.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A version 4 UUID.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// All zeros: nobody.
    pub const NIL: Uuid = Uuid([0; 16]);

    /// Makes one from 128 random bits; six of them are overwritten with version and variant.
    pub fn from_random(high: u64, low: u64) -> Uuid {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&high.to_be_bytes());
        bytes[8..].copy_from_slice(&low.to_be_bytes());
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Uuid(bytes)
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if [4, 6, 8, 10].contains(&i) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not a UUID.
#[derive(Debug, thiserror::Error)]
#[error("\"{0}\" is not a UUID (8-4-4-4-12 hexadecimal digits)")]
pub struct ParseUuidError(String);

impl FromStr for Uuid {
    type Err = ParseUuidError;

    fn from_str(text: &str) -> Result<Uuid, ParseUuidError> {
        let wrong = || ParseUuidError(text.to_owned());
        let bytes = text.as_bytes();
        if bytes.len() != 36 || ![8, 13, 18, 23].iter().all(|&dash| bytes[dash] == b'-') {
            return Err(wrong());
        }
        let digits: Vec<u8> = bytes.iter().copied().filter(|byte| *byte != b'-').collect();
        if digits.len() != 32 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(wrong());
        }
        let text = String::from_utf8(digits).map_err(|_| wrong())?;
        let value = u128::from_str_radix(&text, 16).map_err(|_| wrong())?;
        Ok(Uuid(value.to_be_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_version() {
        let uuid = Uuid::from_random(u64::MAX, 0);
        assert_eq!(uuid.to_string(), "ffffffff-ffff-4fff-8000-000000000000");
        assert_eq!(uuid.to_string().parse::<Uuid>().unwrap(), uuid);
        for bad in ["", "ffffffff-ffff-4fff-8000-00000000000", "ffffffffxffff-4fff-8000-000000000000", "é"] {
            assert!(bad.parse::<Uuid>().is_err());
        }
    }
}
