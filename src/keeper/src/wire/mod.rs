//! What keeper and controller say to each other: the messages, the [`Channel`] that carries them, and the controller's
//! way of starting a keeper when its own has died.
//!
//! The comments of the messages are those of `proto/ostler/keeper/v1/keeper.proto`.

mod channel;
pub(crate) mod start;

#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, reason = "generated from keeper.proto")]
mod generated {
    include!("../gen/ostler.keeper.v1.rs");
}

pub use channel::{Channel, MAX_DESCRIPTORS, MAX_PACKET};
pub use generated::*;
pub use start::spawn_keeper;

/// The protocol this program speaks.
pub const PROTOCOL: u32 = 1;

/// The oldest protocol this program still understands.
pub const OLDEST_PROTOCOL: u32 = 1;

/// Identifies this boot of the machine; process identities of another boot mean nothing.
pub fn boot_id() -> std::io::Result<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(text.trim().to_owned())
}

macro_rules! kinds {
    ($outer:ident, $module:ident: $($variant:ident),+ $(,)?) => {
        $(impl From<$variant> for $outer {
            fn from(value: $variant) -> Self {
                Self { kind: Some($module::Kind::$variant(value)) }
            }
        })+
    };
}

kinds!(Command, command: Hello, Spawn, Signal, Kill, Forget, Upgrade, Shutdown, Handoff, HandoffDone, LogPolicy, Postpone, SetLimits);
kinds!(Report, report: Hello, State, SnapshotDone, Refused, Terminate, UpgradeFailed);
kinds!(JournalRecord, journal_record: Intent, Started, Ended, Forgotten);

impl Exit {
    /// The exit that a wait status (as of wait(2)) describes, at Unix time `at` in nanoseconds.
    pub fn from_wait_status(status: i32, at: i64) -> Self {
        let (kind, core_dumped) = if libc::WIFEXITED(status) {
            (exit::Status::Code(libc::WEXITSTATUS(status)), false)
        } else {
            (exit::Status::Signal(libc::WTERMSIG(status)), libc::WCOREDUMP(status))
        };
        Self { status: Some(kind), at, core_dumped, oom_kills: 0 }
    }

    /// An exit nobody could see.
    pub fn unknown(why: impl Into<String>, at: i64) -> Self {
        Self { status: Some(exit::Status::Unknown(why.into())), at, core_dumped: false, oom_kills: 0 }
    }

    /// The exit code, when the process ended by itself.
    pub fn code(&self) -> Option<i32> {
        match self.status {
            Some(exit::Status::Code(code)) => Some(code),
            Some(exit::Status::Signal(_) | exit::Status::Unknown(_)) | None => None,
        }
    }

    /// The signal that ended the process.
    pub fn signal(&self) -> Option<i32> {
        match self.status {
            Some(exit::Status::Signal(signal)) => Some(signal),
            Some(exit::Status::Code(_) | exit::Status::Unknown(_)) | None => None,
        }
    }
}
