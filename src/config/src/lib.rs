//! The daemon's configuration: what can be set, where each value came from, and changes while the daemon runs.
//!
//! Defaults, then the file, then the environment, then flags, then what was set at run time: each layer is a part of the
//! same typed mapping, checked by itself, and the last one that has a key decides. Nothing is applied here; whoever
//! makes a [`Live`] says what a change does.

mod keys;
mod layers;
mod live;

pub use keys::{Cgroups, Config, KEYS, Key, OnShutdown, check, key, value_of};
pub use layers::{Given, environment};
pub use live::{Live, Reloaded, Setting, Shown};

/// Values of some keys.
pub type Layer = serde_json::Map<String, serde_json::Value>;

/// Why a value is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{origin}: {message}")]
pub struct Refused {
    /// Where it was given: "OSTLER_TICK", "tick".
    pub origin: String,
    /// What is wrong with it.
    pub message: String,
}
