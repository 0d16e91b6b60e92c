//! Probes and hooks: runs the checks of all instances and folds their results into verdicts, and runs hooks.
//!
//! One task schedules every check of every instance: a heap of times, each spread by jitter, and a bounded number of
//! checks under way. Only what changes is reported; what follows from a verdict is decided by the planners of
//! `ostler_core`. A check that cannot be run (an address that is not allowed, a user that does not exist, a machine
//! short of descriptors) says nothing about the process, and is reported as what it is.
//!
//! Nothing outlives a check: sockets are closed with the future that holds them; a command runs in a group of its own,
//! which is killed at the timeout, after its end, and, should this process die, with it or by its successor.

mod exec;
mod graves;
mod grpc;
mod hooks;
mod http;
mod log;
mod net;
mod notify;
mod process;
mod resources;
mod scheduler;
mod tls;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

pub use hooks::{HookOrder, HookReport, Hooks};
use ostler_core::allow::Allow;
use ostler_core::kinds::{NotifyStatus, ProbeKind, ProbeStatus, ProbesStatus, ProcessSpec};
use ostler_core::usage::Usage;
use ostler_core::verdict::Outcome;
pub use scheduler::Prober;

/// What may be checked besides loopback addresses; clones share it, and a change counts from the next check on.
#[derive(Clone, Debug, Default)]
pub struct AllowList(Arc<RwLock<Arc<[Allow]>>>);

impl AllowList {
    /// Replaces the list.
    pub fn set(&self, allow: &[Allow]) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = allow.into();
    }

    /// The list as it is now.
    pub(crate) fn get(&self) -> Arc<[Allow]> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Settings of the prober.
#[derive(Clone, Default)]
pub struct Settings {
    /// The daemon's state directory: logs are below it, and the socket for sd_notify(3).
    pub state_dir: PathBuf,
    /// What may be checked besides loopback addresses.
    pub allow: AllowList,
    /// Is told of every check.
    pub meter: Option<Arc<dyn Meter>>,
    /// Tells what instances use of the machine.
    pub usage: Option<Arc<dyn UsageSource>>,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("state_dir", &self.state_dir)
            .field("allow", &self.allow)
            .finish_non_exhaustive()
    }
}

/// Counts checks and the time they take.
pub trait Meter: Send + Sync + 'static {
    /// A check is over. Called in the scheduler: must not block.
    fn checked(&self, probe: ProbeKind, check: &'static str, outcome: &Outcome, took: Duration);
}

/// Tells what instances use of the machine.
pub trait UsageSource: Send + Sync + 'static {
    /// What the whole tree of the instance `namespace/name` uses now; none when it does not run.
    fn usage(&self, id: Arc<str>) -> Pin<Box<dyn Future<Output = Option<Usage>> + Send + '_>>;
}

/// A running attempt whose probes are to be run.
#[derive(Clone, Debug)]
pub struct Target {
    /// `namespace/name` of the instance.
    pub id: Arc<str>,
    /// Uid of the instance.
    pub uid: String,
    /// Number of the attempt.
    pub attempt: u64,
    /// How long it has been running.
    pub age: Duration,
    /// Process id of its leader.
    pub pid: i32,
    /// Start time of its leader, clock ticks since boot.
    pub start_time: u64,
    /// Absolute path of its cgroup; empty when there is none.
    pub cgroup: String,
    /// The ports it has, by name.
    pub ports: BTreeMap<String, u16>,
    /// Its log directory, relative to the state directory.
    pub log_dir: String,
    /// What it is run with, for commands; or why that cannot be told.
    pub surroundings: Result<Surroundings, String>,
    /// The spec with the probes.
    pub spec: Arc<ProcessSpec>,
    /// What was found before.
    pub known: Option<Box<ProbesStatus>>,
}

/// What a process is run with.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// The whole environment.
    pub env: BTreeMap<String, String>,
    /// Variables that hold something of a Secret: `$(NAME)` leaves them alone, since every user can see arguments.
    pub hidden: BTreeSet<String>,
    /// Absolute.
    pub working_dir: PathBuf,
    /// The user to switch to.
    pub uid: Option<u32>,
    /// The group to switch to.
    pub gid: Option<u32>,
    /// Supplementary groups, when switching.
    pub groups: Vec<u32>,
}

/// What has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// `namespace/name` of the instance.
    pub id: Arc<str>,
    /// Number of the attempt.
    pub attempt: u64,
    /// What it is about.
    pub news: News,
}

/// What a report is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// The verdict of a probe.
    Verdict(ProbeKind, ProbeStatus),
    /// What the process says of itself.
    Notify(NotifyStatus),
}
