//! The kinds of Ostler, what makes them valid, and the planners that decide what to do about them.
//!
//! Pure: no I/O, no clock, no randomness, no async. Whoever needs the time passes it in.

pub mod allow;
pub mod backoff;
pub mod breaker;
pub mod config;
pub mod expand;
pub mod fields;
pub mod forecast;
pub mod globs;
pub mod graph;
pub mod kinds;
pub mod labels;
pub mod limits;
pub mod meta;
pub mod name;
pub mod object;
pub mod plan;
pub mod quantity;
pub mod restart;
pub mod schedule;
pub mod signal;
pub mod suggest;
pub mod threshold;
pub mod time;
pub mod topic;
pub mod usage;
pub mod validate;
pub mod verdict;
pub mod why;

pub use kinds::Kind;
pub use meta::{Metadata, OwnerReference};
pub use object::{Applicable, DecodeError};
pub use time::{Span, Timestamp};
pub use topic::Topic;
