//! The API: what may be asked of the daemon, and how it travels.
//!
//! [`Service`] is neutral of transports: it validates, compares and swaps in the store, and asks the controller. [`grpc`]
//! translates. Nothing here decides what runs; that is the controller's.
//! Sources apply through the same code as everybody else.

mod apply;
mod config;
mod dependencies;
mod error;
mod forecast;
pub mod grpc;
mod logs;
mod mutate;
mod ownership;
mod patch;
mod rollout;
mod secrets;
mod select;
mod service;
mod sets;
mod sources;
mod usage;
mod watching;

pub use config::reload as reload_config;
pub use error::{ApiError, Cause, Reason};
pub use service::{Daemon, Service};
