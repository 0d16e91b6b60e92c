//! What the keeper knows of one attempt, and of the instance it belongs to.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Instant;

use crate::cgroup::Root;
use crate::logs::Stream;
use crate::wire::{
    Ended, Enforcement, Exit, HeldAttempt, Identity, Intent, LogSettings, LogState, Phase, SpawnError, Started, State,
};

/// Where an attempt is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    FailedToStart,
    Running,
    Exited,
    Empty,
}

/// What holds the attempt's processes together.
#[derive(Debug)]
pub(super) enum Tree {
    Group {
        root: Rc<Root>,
        /// `cgroup.events`, once the leader is gone and others are waited for (v2).
        events: Option<OwnedFd>,
    },
    /// Session, parentage and the environment marker; processes once recognised, with their start times.
    Marker { members: Vec<(i32, u64)> },
}

/// The limits of an attempt.
#[derive(Debug, Default)]
pub(super) struct Limited {
    /// Further groups of the same name, in the hierarchies of cgroup v1 controllers.
    pub(super) beside: Vec<Rc<Root>>,
    /// What has become of each limit.
    pub(super) enforced: Vec<Enforcement>,
}

/// A Kill under way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kill {
    pub(super) since: Instant,
}

/// One attempt. Descriptors and strings aside it is a few hundred bytes, and the strings are shared where they can be.
#[derive(Debug)]
#[allow(clippy::struct_field_names, reason = "an attempt has a number of that name")]
pub(super) struct Attempt {
    pub(super) id: Rc<str>,
    pub(super) attempt: u64,
    pub(super) name: Box<str>,
    pub(super) life: Life,
    pub(super) boot_id: Rc<str>,
    /// 0: there was never a process, or none is known.
    pub(super) pid: i32,
    pub(super) start_time: u64,
    pub(super) started_at: i64,
    pub(super) exit: Option<Box<Exit>>,
    pub(super) error: Option<Box<SpawnError>>,
    pub(super) survivors: u32,
    pub(super) log: u32,
    pub(super) pidfd: Option<OwnedFd>,
    pub(super) pipes: [Option<OwnedFd>; 2],
    pub(super) inodes: [u64; 2],
    pub(super) tree: Tree,
    pub(super) limited: Option<Box<Limited>>,
    pub(super) kill: Option<Kill>,
    /// When to look at the tree, or to kill again.
    pub(super) check_at: Option<Instant>,
    /// How long to wait after that look, milliseconds.
    pub(super) check_every: u16,
    /// Since when an adopted leader has ended without having been collected by its parent.
    pub(super) zombie_since: Option<Instant>,
    pub(super) is_child: bool,
    pub(super) adopted: bool,
    pub(super) stuck: bool,
    /// Known from the journal only; waits for Handoff or for the end of it.
    pub(super) awaiting: bool,
    /// In the queue of states to report.
    pub(super) is_dirty: bool,
    /// The present controller has the descriptors.
    pub(super) is_handed_out: bool,
    /// The pipes are in the epoll set.
    pub(super) is_watched: bool,
    /// The controller is done with it; only its bytes still wait for the disk.
    pub(super) is_forgotten: bool,
}

impl Attempt {
    /// The name of its cgroup and the value of its environment marker.
    pub(super) fn token(&self) -> String {
        token(&self.id, self.attempt)
    }

    pub(super) fn is_over(&self) -> bool {
        match self.life {
            Life::FailedToStart | Life::Empty => true,
            Life::Running | Life::Exited => false,
        }
    }

    pub(super) fn has_pipes(&self) -> bool {
        self.pipes.iter().any(Option::is_some)
    }

    fn phase(&self) -> Phase {
        match self.life {
            Life::FailedToStart => Phase::FailedToStart,
            Life::Empty => Phase::Empty,
            Life::Running | Life::Exited if self.stuck => Phase::Stuck,
            Life::Running => Phase::Running,
            Life::Exited => Phase::Exited,
        }
    }

    fn identity(&self) -> Option<Identity> {
        (self.pid != 0).then(|| Identity {
            boot_id: self.boot_id.to_string(),
            pid: self.pid,
            start_time: self.start_time,
        })
    }

    fn cgroup(&self) -> String {
        match &self.tree {
            Tree::Group { root, .. } => root.path.join(self.token()).display().to_string(),
            Tree::Marker { .. } => String::new(),
        }
    }

    /// The level to report, without descriptors.
    pub(super) fn state(&self, log: LogState) -> State {
        State {
            id: self.id.to_string(),
            attempt: self.attempt,
            name: self.name.to_string(),
            phase: self.phase().into(),
            identity: self.identity(),
            started_at: self.started_at,
            exit: self.exit.as_deref().cloned(),
            error: self.error.as_deref().cloned(),
            survivors: self.survivors,
            adopted: self.adopted,
            log: Some(log),
            has_pidfd: false,
            has_stdout: false,
            has_stderr: false,
            cgroup: self.cgroup(),
            limits: self.enforced(),
        }
    }

    fn enforced(&self) -> Vec<Enforcement> {
        self.limited.as_ref().map_or_else(Vec::new, |limited| limited.enforced.clone())
    }

    pub(super) fn intent(&self, log_dir: &str, settings: LogSettings) -> Intent {
        Intent {
            id: self.id.to_string(),
            attempt: self.attempt,
            name: self.name.to_string(),
            log_dir: log_dir.to_owned(),
            log: Some(settings),
            boot_id: self.boot_id.to_string(),
            cgroup: self.cgroup(),
            limit_groups: self.limit_groups(),
        }
    }

    fn limit_groups(&self) -> Vec<String> {
        let roots = self.limited.iter().flat_map(|limited| &limited.beside);
        roots.map(|root| root.path.join(self.token()).display().to_string()).collect()
    }

    pub(super) fn started(&self) -> Option<Started> {
        Some(Started {
            id: self.id.to_string(),
            attempt: self.attempt,
            identity: Some(self.identity()?),
            at: self.started_at,
            stdout_inode: self.inodes[0],
            stderr_inode: self.inodes[1],
            limits: self.enforced(),
        })
    }

    /// How far its end is known.
    pub(super) fn ended(&self) -> Option<Ended> {
        if self.life == Life::Running {
            return None;
        }
        Some(Ended {
            id: self.id.to_string(),
            attempt: self.attempt,
            exit: self.exit.as_deref().cloned(),
            error: self.error.as_deref().cloned(),
            tree_empty: self.is_over(),
        })
    }

    /// What a successor needs; descriptor numbers are left out.
    pub(super) fn held(&self, log_dir: &str, settings: LogSettings, log: LogState) -> HeldAttempt {
        HeldAttempt {
            intent: Some(self.intent(log_dir, settings)),
            started: self.started(),
            ended: self.ended(),
            pidfd: -1,
            stdout_fd: -1,
            stderr_fd: -1,
            is_child: self.is_child,
            log: Some(log),
            killing: self.kill.is_some(),
            reported: self.is_handed_out,
        }
    }
}

pub(super) const STREAMS: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

pub(super) fn token(id: &str, attempt: u64) -> String {
    format!("{id}.{attempt}")
}

/// What outlives the attempts of an instance.
#[derive(Debug)]
pub(super) struct Instance {
    /// The greatest attempt ever seen.
    pub(super) newest: u64,
    pub(super) log: u32,
    /// Attempts that were not forgotten yet, ascending.
    pub(super) attempts: Vec<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_stays_small() {
        let bytes = size_of::<Attempt>() + size_of::<Instance>() + size_of::<crate::logs::Log>();
        assert!(bytes <= 600, "{bytes} bytes");
    }
}
