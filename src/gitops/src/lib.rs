//! Sources: directories of manifests, typically Git checkouts, that are kept applied.
//!
//! Looks at directories, decides what a revision of one would change, and lets the API do it. Nothing here writes an
//! object other than the status of a Source and its inventory, and nothing here decides what runs.
//! `docs/designs/sources.md` has the reasons.

mod directory;
mod git;
pub mod inventory;
pub mod plan;
mod scan;
mod sources;
mod status;
mod syncer;
mod tracker;

pub use directory::{Broken, Rendered};
pub use inventory::Item;
pub use sources::{Cluster, Outcome, Preview, PreviewFailed, Refused, Sources, inhabitants};
