//! Custody: the process that is the parent of every workload, reads what they write and is the only writer of their logs.
//!
//! The keeper decides nothing about desired state. It knows attempts (instance uid, attempt number), does what the
//! controller on the other end of a socket pair says, and reports states. It is a single-threaded epoll loop over
//! bounded buffers, so that there is little in it that can fail; `docs/designs/custody.md` has the whole design and
//! `proto/ostler/keeper/v1/keeper.proto` the wire and the records.
//!
//! The crate has three faces: [`run`] is the keeper itself, [`wire`] is what the controller needs to talk to it, and
//! [`logs`] reads the log files for whoever serves them.

use std::ffi::OsString;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;

mod cgroup;
mod error;
mod fail;
mod journal;
mod keeper;
mod limits;
mod lock;
pub mod logs;
mod procfs;
mod slab;
mod sys;
pub mod wire;

pub use error::Error;
pub use lock::{LockError, lock};
pub use sys::release_memory;

/// The exit code of a controller that cannot begin, and for which another try soon is of no use (a damaged store): when
/// it is the first one of a daemon, the keeper ends, too.
pub const CANNOT_BEGIN: i32 = 78;

/// How to run a keeper.
#[derive(Debug)]
pub struct Config {
    /// The daemon's state directory; journal, lock and logs live in it.
    pub state_dir: PathBuf,
    /// Number of this keeper among several of one daemon; 0 when there is only one.
    pub shard: u32,
    /// The program that is started, and started again when it dies, with `--keeper-fd N --lock-fd M` appended.
    pub controller: ControllerCommand,
    /// Arguments that make the program given in an `Upgrade` a keeper; `--state-fd N` is appended. The program must
    /// also answer `keeper-check N` by [`check_state`].
    pub upgrade_args: Vec<OsString>,
    /// How process trees are held together.
    pub cgroups: CgroupPreference,
    /// The program's version, for the controller and for messages.
    pub version: String,
    /// Where this keeper comes from.
    pub start: Start,
}

/// The controller's command line.
#[derive(Debug, Clone)]
pub struct ControllerCommand {
    /// Absolute path of the program.
    pub program: PathBuf,
    /// Arguments before the descriptor numbers.
    pub args: Vec<OsString>,
}

/// Which means of holding a process tree together may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CgroupPreference {
    /// v2 where a directory can be made, else v1, else none.
    #[default]
    Auto,
    /// cgroup v2 or an error.
    V2,
    /// A cgroup v1 hierarchy or an error.
    V1,
    /// Session id, parentage and an environment marker.
    None,
}

/// Where a keeper comes from.
#[derive(Debug)]
pub enum Start {
    /// Started by the user or the service manager: starts the controller itself.
    Fresh {
        /// From [`lock`].
        lock: OwnedFd,
    },
    /// Started by a controller whose keeper died.
    Orphaned {
        /// The keeper's end of the socket pair.
        socket: OwnedFd,
        /// The lock the controller inherited.
        lock: OwnedFd,
    },
    /// This program replaced another keeper's by execve.
    Resumed {
        /// The memfd with the state.
        state: OwnedFd,
    },
}

/// Runs a keeper until it is told to end; workloads go on. Returns the exit code for the process.
///
/// Must be called on the main thread of a process that has no other: signals are blocked and taken over, children of
/// any origin are reaped, and the soft limit of open files is raised.
///
/// # Errors
/// Only at start: nothing has been started yet, and the message says what to do.
pub fn run(config: Config) -> Result<i32, Error> {
    keeper::run(config)
}

/// Whether this program could take over from the keeper that wrote the state in the memfd `state`; changes nothing.
///
/// # Errors
/// Says what is not understood.
pub fn check_state(state: BorrowedFd<'_>) -> Result<(), Error> {
    keeper::check_state(state)
}
