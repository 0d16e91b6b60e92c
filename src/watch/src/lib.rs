//! Hears of changes in files and directories, and tells whether there are any.
//!
//! Two halves that are used together: [`DirectoryWatcher`] turns what the kernel says into hints, and [`files`] looks at
//! what is there and comes to a fingerprint of its content. Hints cost nothing to miss, for whoever looks decides by what
//! is there. Decides nothing about what a change leads to.

mod directories;
pub mod files;
mod links;

pub use directories::{Concern, DirectoryWatcher, Heard};
pub use links::{Anchors, DirectoryId, anchors};
