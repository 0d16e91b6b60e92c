//! Decides what an `Instance` needs next.
//!
//! Pure: callers pass everything observed, and the time. Phase is derived on every call from what custody reports, so a
//! lost event costs latency, never correctness.

mod ends;
mod hooks;
mod idle;
mod live;
mod observed;

pub use ends::describe;
pub use hooks::POST_START_PENDING;
pub use observed::{Attempt, AttemptState, HookResult, HookRun, Observed, StartError, StartErrorKind};

use crate::kinds::{
    Condition, HistoryEntry, HookKind, Instance, InstanceStatus, Phase, Truth, WhenBlocked, set_condition,
};
use crate::plan::output;
use crate::plan::resources;
use crate::plan::{Note, health};
use crate::time::Timestamp;

/// The reason of an instance that waits for a ConfigMap or Secret.
pub const CONFIG_ERROR: &str = "ConfigError";
/// Reason of an instance that waits for what it depends on.
pub const DEPENDENCY_NOT_READY: &str = "DependencyNotReady";
/// Reason of an instance that has waited for too long; it goes on waiting.
pub const DEPENDENCY_TIMEOUT: &str = "DependencyTimeout";
/// Reason of an instance that runs until those that depend on it are stopped.
pub const WAITS_FOR_DEPENDENTS: &str = "WaitsForDependents";

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Store the status before anything else follows from it.
    Record,
    /// Start this attempt.
    Spawn {
        /// Its number, never used before.
        attempt: u64,
    },
    /// Send the stop signal to every process of the tree.
    Signal {
        /// Of this attempt.
        attempt: u64,
        /// Number of the signal.
        signal: i32,
    },
    /// Run a hook.
    Hook {
        /// Which one.
        kind: HookKind,
        /// For this attempt.
        attempt: u64,
        /// What it is told besides the environment of the instance.
        env: Vec<(&'static str, String)>,
    },
    /// Kill the hook that runs; what would have come of it is not wanted any more.
    CancelHook,
    /// Have other limits take effect on what runs.
    Limit {
        /// Of this attempt.
        attempt: u64,
    },
    /// Kill every process of the tree.
    Kill {
        /// Of this attempt.
        attempt: u64,
    },
    /// Tell custody that the end of this attempt is recorded, once the status is.
    Forget {
        /// The attempt.
        attempt: u64,
    },
    /// The instance is over: remove its logs and its record.
    Remove,
}

/// What to publish, what to do, and when to look again.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The status to publish.
    pub status: InstanceStatus,
    /// What to do, in this order.
    pub actions: Vec<Action>,
    /// What to tell.
    pub notes: Vec<Note>,
    /// What to write to the daemon's log, and tell nobody.
    pub log: Vec<Note>,
    /// When to look again if nothing happens before.
    pub wake_at: Option<Timestamp>,
}

/// What an instance should be doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Want {
    Run,
    Stop,
    Gone,
}

/// The plan for one instance.
pub fn plan(instance: &Instance, observed: &Observed, now: Timestamp) -> Plan {
    let mut planner = Planner {
        instance,
        observed,
        now,
        plan: Plan {
            status: instance.status.clone(),
            actions: Vec::new(),
            notes: Vec::new(),
            log: Vec::new(),
            wake_at: None,
        },
    };
    if observed.synced {
        planner.decide();
    }
    planner.plan
}

struct Planner<'a> {
    instance: &'a Instance,
    observed: &'a Observed,
    now: Timestamp,
    plan: Plan,
}

impl Planner<'_> {
    fn decide(&mut self) {
        let over = self.record_ends();
        let want = if self.instance.metadata.is_deleting() {
            Want::Gone
        } else if self.instance.spec.stopped_at.is_some() || self.instance.spec.held || self.observed.shutdown.is_some()
        {
            Want::Stop
        } else {
            Want::Run
        };
        let observed = self.observed;
        if let Some(attempt) = observed.attempts.iter().rev().find(|attempt| !attempt.state.is_over()) {
            self.live(attempt, want);
        } else if !over {
            // An end that its postStop hook comes before.
        } else if observed.starting.is_some_and(|number| number > self.plan.status.ended_attempt) {
            self.enter(Phase::Starting, "Starting", String::new());
        } else {
            self.bury_the_unseen();
            self.idle(want);
        }
        let status = &mut self.plan.status;
        if status.fallback.is_some() || status.conditions.iter().any(|condition| condition.kind == "Fallback") {
            let reason = if status.fallback.is_some() { "RetriesExhausted" } else { "CommandRuns" };
            let condition = Condition {
                kind: "Fallback".to_owned(),
                status: Truth::from(status.fallback.is_some()),
                reason: reason.to_owned(),
                message: status.fallback.as_ref().map(|fallback| fallback.message.clone()).unwrap_or_default(),
                ..Condition::default()
            };
            set_condition(&mut status.conditions, condition, self.now);
        }
        let held_back = hooks::holds_back(&self.instance.spec.template, status);
        health::publish(&self.instance.spec.template, status, held_back, self.now);
        resources::publish(&self.instance.spec.template, status, self.now);
        let drops = self.instance.spec.template.logs.when_blocked == WhenBlocked::Drop;
        let note = output::publish(status, &observed.output, drops, self.now);
        self.plan.notes.extend(note);
    }

    fn is_final(&self) -> bool {
        self.instance.spec.job.is_some() && self.plan.status.done
    }

    fn is_outdated(&self) -> bool {
        self.plan.status.revision != self.instance.spec.revision
    }

    fn is_restart_due(&self) -> bool {
        self.instance.spec.restarted_at > self.plan.status.restarted_at
    }

    fn wake(&mut self, at: Timestamp) {
        self.plan.wake_at = Some(self.plan.wake_at.map_or(at, |earlier| earlier.min(at)));
    }

    fn enter(&mut self, phase: Phase, reason: &str, message: String) {
        self.enter_at(phase, reason, message, self.now);
    }

    /// Publishes phase, reason and message; a phase or reason that is new goes into the history.
    fn enter_at(&mut self, phase: Phase, reason: &str, message: String, at: Timestamp) {
        let status = &mut self.plan.status;
        if status.phase == phase && status.reason == reason && !status.history.is_empty() {
            status.message = message;
            return;
        }
        if status.history.len() >= InstanceStatus::HISTORY {
            status.history.remove(0);
        }
        status.phase = phase;
        reason.clone_into(&mut status.reason);
        // Most lives are short and eventless, and there are thousands of them.
        status.history.reserve_exact(1);
        status.history.push(HistoryEntry { phase, at, reason: reason.to_owned(), message: message.clone() });
        status.message = message;
    }
}

#[cfg(test)]
#[path = "../instance_tests.rs"]
mod tests;
