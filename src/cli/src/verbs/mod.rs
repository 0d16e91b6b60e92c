//! One module per verb: its flags, and what it does.

pub(crate) mod act;
pub(crate) mod apply;
pub(crate) mod completion;
pub(crate) mod delete;
pub(crate) mod describe;
pub(crate) mod diff;
pub(crate) mod events;
pub(crate) mod explain;
pub(crate) mod get;
pub(crate) mod import;
pub(crate) mod info;
pub(crate) mod logs;
pub(crate) mod rollout;
pub(crate) mod scale;
pub(crate) mod serve;
pub(crate) mod shutdown;
pub(crate) mod signal;
pub(crate) mod store;
pub(crate) mod sync;
pub(crate) mod top;
pub(crate) mod up;
pub(crate) mod upgrade;
pub(crate) mod validate;
pub(crate) mod version;
pub(crate) mod wait;
pub(crate) mod why;
