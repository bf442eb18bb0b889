//! Metadata target.
#![forbid(unsafe_code)]
