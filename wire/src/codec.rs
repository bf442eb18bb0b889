//! RPC bodies: postcard (https://postcard.jamesmunns.com/wire-format), whole and exact.
//!
//! Decoding never panics, never allocates more than the bytes at hand justify, and refuses bytes left over: a body that
//! is longer than its type was written by somebody who means something else.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Status;

/// Encodes a message.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    postcard::to_allocvec(message).expect("messages hold only types that postcard can write")
}

/// Decodes a whole message; anything missing or left over is [`Status::MALFORMED`].
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Status> {
    match postcard::take_from_bytes(bytes) {
        Ok((message, [])) => Ok(message),
        Ok(_) | Err(_) => Err(Status::MALFORMED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_long_and_lying_bodies_are_refused() {
        let body = encode(&(7u32, b"abc".to_vec()));
        assert_eq!(decode::<(u32, Vec<u8>)>(&body), Ok((7, b"abc".to_vec())));
        assert_eq!(decode::<(u32, Vec<u8>)>(&body[..4]), Err(Status::MALFORMED));
        let mut long = body.clone();
        long.push(0);
        assert_eq!(decode::<(u32, Vec<u8>)>(&long), Err(Status::MALFORMED));
        // A vector that claims 2^60 elements must not be allocated.
        let lying = [7, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f];
        assert_eq!(decode::<(u32, Vec<u64>)>(&lying), Err(Status::MALFORMED));
    }
}
