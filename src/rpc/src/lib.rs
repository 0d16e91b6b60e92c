//! The Ostler API as Rust types, generated from `proto/ostler/v1` by `cargo xtask gen`.
//!
//! Nothing here is written by hand but names that both sides have to agree on.

/// Version 1 of the API.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
pub mod v1 {
    include!("gen/ostler.v1.rs");
}

/// The compiled descriptors of [`v1`], for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!("gen/ostler.v1.fds");

/// Trailing metadata that carries a [`v1::Status`] with an error.
pub const STATUS_METADATA: &str = "ostler-status-bin";

/// Largest message either side accepts, bytes.
pub const MAX_MESSAGE: usize = 32 << 20;
