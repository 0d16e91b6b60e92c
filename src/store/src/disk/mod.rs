//! The store on disk: sled, flushed and checked by ourselves.
//!
//! `store` is what callers see; `committer` and `janitor` are its two threads; `opening` decides whether files are good;
//! `files` is sled; `record` and `witness` are formats; `offline` is for a store that is not running.

mod committer;
mod files;
mod janitor;
mod offline;
mod opening;
mod record;
mod store;
mod witness;

pub use janitor::BackupStatus;
pub use offline::{Occupied, Report, Restored, back_up, check, restore};
pub use store::{DiskStore, Options};
