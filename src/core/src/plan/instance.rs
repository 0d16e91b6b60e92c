//! Decides what an `Instance` needs next.
//!
//! Pure: callers pass everything observed, and the time. Phase is derived on every call from what custody reports, so a
//! lost event costs latency, never correctness.

use crate::backoff;
use crate::breaker::{self, Change};
use crate::kinds::WhenBlocked;
use crate::kinds::{
    Condition, EndCause, EndCount, Exit, ExitStatus, FallbackSince, HistoryEntry, Identity, Instance, InstanceStatus,
    Limits, Phase, ProbesStatus, RestartPolicy, Severity, StopReason, Stopping, Truth, Verdict, Violation,
    ViolationPolicy, set_condition,
};
use crate::limits::{self, EnforcedLimit};
use crate::plan::depend::Waits;
use crate::plan::output::{self, Output};
use crate::plan::resources::{self, Levels};
use crate::plan::{Note, health};
use crate::time::{Span, Timestamp};
use crate::{kinds, restart, signal};

/// The reason of an instance that waits for a ConfigMap or Secret.
pub const CONFIG_ERROR: &str = "ConfigError";
/// Reason of an instance that waits for what it depends on.
pub const DEPENDENCY_NOT_READY: &str = "DependencyNotReady";
/// Reason of an instance that has waited for too long; it goes on waiting.
pub const DEPENDENCY_TIMEOUT: &str = "DependencyTimeout";
/// Reason of an instance that runs until those that depend on it are stopped.
pub const WAITS_FOR_DEPENDENTS: &str = "WaitsForDependents";

/// What custody shows of one instance.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// Whether the keeper has reported everything it holds. Until then nothing is known, and nothing is decided.
    pub synced: bool,
    /// The record of the instance, with what it is to be started from, would survive our own crash; before that no
    /// process may depend on it.
    pub recorded: bool,
    /// An attempt that the keeper was told to start and has not reported yet.
    pub starting: Option<u64>,
    /// The attempt that was sent the stop signal by this controller.
    pub signalled: Option<u64>,
    /// The attempt that was killed by this controller.
    pub killed: Option<u64>,
    /// The daemon ends and takes its processes along: stop, and be gone by then, whatever the spec says.
    pub shutdown: Option<Timestamp>,
    /// What ends the running attempt, such as a limit that was exceeded.
    pub verdict: Option<Box<Verdict>>,
    /// What the probes have found; nothing before the first verdict since the controller began.
    pub probes: Option<Box<ProbesStatus>>,
    /// What the samples of usage say of the thresholds; nothing before the first that exceeds one.
    pub levels: Option<Box<Levels>>,
    /// The attempts in custody, by rising number.
    pub attempts: Vec<Attempt>,
    /// What custody says of the log.
    pub output: Output,
    /// The limits that custody was asked to put into effect last, other than those it was started with.
    pub limited: Option<Box<Limits>>,
    /// Whom it has to wait for.
    pub waits: Option<Box<Waits>>,
    /// The ConfigMap or Secret that a start has to wait for.
    pub config_missing: Option<Box<str>>,
}

/// One attempt in custody.
#[derive(Clone, Debug, PartialEq)]
pub struct Attempt {
    /// Its number.
    pub number: u64,
    /// Whose process it is, if one was made.
    pub identity: Option<Identity>,
    /// When it was started.
    pub started_at: Timestamp,
    /// What became of it.
    pub state: AttemptState,
    /// The kernel killed it for want of memory.
    pub oom_killed: bool,
    /// What has become of the limits it was started with.
    pub limits: Option<Box<[EnforcedLimit]>>,
}

impl Attempt {
    /// One of which no process was made.
    pub fn failed(number: u64, at: Timestamp, state: AttemptState) -> Self {
        Self { number, identity: None, started_at: at, state, oom_killed: false, limits: None }
    }
}

/// What became of an attempt.
#[derive(Clone, Debug, PartialEq)]
pub enum AttemptState {
    /// No process was made.
    FailedToStart(StartError),
    /// The leader lives.
    Running,
    /// The leader is gone, other processes of its tree live.
    LeaderExited {
        /// How the leader ended.
        status: ExitStatus,
        /// How many live.
        survivors: u32,
    },
    /// It was killed and does not go.
    Stuck,
    /// Every process is gone.
    Ended {
        /// How the leader ended.
        status: ExitStatus,
        /// When.
        at: Timestamp,
        /// It ended because the machine did.
        reboot: bool,
    },
}

impl AttemptState {
    fn is_over(&self) -> bool {
        match self {
            Self::FailedToStart(_) | Self::Ended { .. } => true,
            Self::Running | Self::LeaderExited { .. } | Self::Stuck => false,
        }
    }
}

/// Why no process could be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartError {
    /// What kind of trouble.
    pub kind: StartErrorKind,
    /// The whole story, with paths.
    pub message: String,
    /// When.
    pub at: Timestamp,
}

/// What kind of trouble kept a process from being made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartErrorKind {
    /// The program, or the interpreter of the script, does not exist.
    CommandNotFound,
    /// It may not be executed.
    PermissionDenied,
    /// It is not a program for this machine.
    BadFormat,
    /// The working directory does not exist or may not be entered.
    BadWorkingDirectory,
    /// The user or group does not exist, or may not be switched to.
    BadUser,
    /// A file with variables cannot be read.
    BadEnvironment,
    /// A word of the command would show the value of a Secret to every user.
    SecretInCommand,
    /// The machine has no more processes, memory or descriptors.
    ResourcesExhausted,
    /// The kernel offers nothing to enforce a limit with that it may not run without.
    LimitsNotEnforceable,
    /// Anything else.
    Other,
}

impl StartErrorKind {
    /// The reason as it is published.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::CommandNotFound => "CommandNotFound",
            Self::PermissionDenied => "PermissionDenied",
            Self::BadFormat => "BadFormat",
            Self::BadWorkingDirectory => "BadWorkingDirectory",
            Self::BadUser => "BadUser",
            Self::BadEnvironment => "BadEnvironment",
            Self::SecretInCommand => "SecretInCommand",
            Self::ResourcesExhausted => "ResourcesExhausted",
            Self::LimitsNotEnforceable => "LimitsNotEnforceable",
            Self::Other => "StartFailed",
        }
    }

    /// Whether trying again can help without anybody changing the manifest. A missing file may be deployed a moment
    /// later; a file of the wrong format stays one.
    const fn is_retryable(self) -> bool {
        match self {
            Self::CommandNotFound
            | Self::PermissionDenied
            | Self::BadWorkingDirectory
            | Self::BadEnvironment
            | Self::ResourcesExhausted
            | Self::Other => true,
            Self::BadFormat | Self::BadUser | Self::SecretInCommand | Self::LimitsNotEnforceable => false,
        }
    }
}

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

/// The end of an attempt that nobody asked for.
struct End<'a> {
    exit: ExitStatus,
    cause: EndCause,
    severity: Severity,
    at: Timestamp,
    error: Option<&'a StartError>,
    violation: Option<Violation>,
    story: String,
}

struct Planner<'a> {
    instance: &'a Instance,
    observed: &'a Observed,
    now: Timestamp,
    plan: Plan,
}

impl Planner<'_> {
    fn decide(&mut self) {
        self.record_ends();
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
        health::publish(&self.instance.spec.template, status, self.now);
        resources::publish(&self.instance.spec.template, status, self.now);
        let drops = self.instance.spec.template.logs.when_blocked == WhenBlocked::Drop;
        let note = output::publish(status, &observed.output, drops, self.now);
        self.plan.notes.extend(note);
    }

    /// Folds every end that custody reports into the status, once each, and lets custody forget it.
    fn record_ends(&mut self) {
        let observed = self.observed;
        for attempt in observed.attempts.iter().filter(|attempt| attempt.state.is_over()) {
            if attempt.number > self.plan.status.ended_attempt {
                self.record_end(attempt);
            }
            self.plan.actions.push(Action::Forget { attempt: attempt.number });
        }
    }

    fn record_end(&mut self, attempt: &Attempt) {
        let (exit, at, reboot, error) = match &attempt.state {
            AttemptState::FailedToStart(error) => {
                (ExitStatus::Error(error.message.clone()), error.at, false, Some(error))
            }
            AttemptState::Ended { status, at, reboot } => (status.clone(), *at, *reboot, None),
            AttemptState::Running | AttemptState::LeaderExited { .. } | AttemptState::Stuck => return,
        };
        self.count_start(attempt);
        let status = &mut self.plan.status;
        status.ended_attempt = attempt.number;
        status.pid = None;
        resources::ended(status);
        if attempt.identity.is_some() {
            status.identity.clone_from(&attempt.identity);
        }
        status.last_exit = Some(Exit {
            attempt: attempt.number,
            status: exit.clone(),
            at,
            cause: None,
            severity: None,
            oom_killed: attempt.oom_killed,
        });
        let stopping = status.stopping.take();
        let (cause, severity, story) = judge(&exit, error, attempt.oom_killed, stopping.as_ref());
        let violation =
            stopping.as_ref().and_then(|stopping| stopping.verdict.as_ref()).and_then(|verdict| verdict.violation);
        let asked = stopping.filter(|stopping| stopping.reason.is_asked());
        if let Some(stopping) = asked {
            self.enter_at(Phase::Stopped, stopping.reason.name(), story, at);
            // The end of the daemon is nobody's word about the command that was given up.
            let fallback = self.plan.status.fallback.take().filter(|_| stopping.reason == StopReason::Shutdown);
            self.forgive();
            self.plan.status.fallback = fallback;
        } else if reboot {
            self.plan.notes.push(Note::warning("Lost", "it ran before the machine was rebooted"));
            self.enter_at(Phase::Lost, "Rebooted", "it ran before the machine was rebooted".to_owned(), at);
            self.forgive();
            if self.instance.spec.template.restart_policy == RestartPolicy::Never {
                self.plan.status.done = true;
            }
        } else {
            self.ended_by_itself(attempt, End { exit, cause, severity, at, error, violation, story });
        }
    }

    /// A start that custody knows of and the status does not: it was lost with the controller that asked for it.
    fn count_start(&mut self, attempt: &Attempt) {
        let status = &mut self.plan.status;
        if attempt.number > status.attempt {
            status.attempt = attempt.number;
            status.restarts += u32::from(status.last_exit.is_some());
        }
    }

    /// Policy: what follows an end that nobody asked for.
    fn ended_by_itself(&mut self, attempt: &Attempt, end: End<'_>) {
        let End { exit, cause, severity, at, error, violation, story } = end;
        // What was being stopped already had its reason before.
        let oom_killed = attempt.oom_killed && severity == Severity::Emergency;
        let template = &self.instance.spec.template;
        let policy = template.restart_policy;
        // What was stopped because it did not work has failed, whatever it says in the end.
        let success = cause == EndCause::Crash
            && matches!(exit, ExitStatus::Code(code)
            if template.success_exit_codes.iter().any(|good| i32::from(*good) == code));
        let status = &mut self.plan.status;
        let rules = restart::policy(template, cause, severity);
        if at.since(attempt.started_at) >= template.backoff.reset_after {
            forget_ends(status);
        }
        let reason = match (cause, error) {
            (_, Some(error)) => error.kind.reason(),
            (EndCause::Crash | EndCause::ExecFailure, None) if success => "Completed",
            (EndCause::Crash | EndCause::ExecFailure, None) => "Crashed",
            (EndCause::Resource, None) if oom_killed => "OOMKilled",
            (EndCause::Startup | EndCause::Liveness | EndCause::Resource, None) => StopReason::of(cause).name(),
        };
        let note = if success { Note::normal(reason, story.clone()) } else { Note::warning(reason, story.clone()) };
        self.plan.notes.push(note);
        if let Some(exit) = status.last_exit.as_mut().filter(|_| !success) {
            (exit.cause, exit.severity) = (Some(cause), Some(severity));
        }
        let exhausted = error.is_some_and(|error| error.kind == StartErrorKind::ResourcesExhausted);
        let mut change = Change::None;
        if success {
            status.failures = 0;
            status.counts.iter_mut().for_each(|count| count.failures = 0);
        }
        // A success is not held against a cause; a machine without free processes says nothing about this program.
        let failed = u32::from(!success && !exhausted);
        let (streak, failures) = count_end(status, rules.own_count.then_some(cause).filter(|_| !success), failed);
        if failed > 0
            && let Some(policy) = &template.circuit_breaker
        {
            change = breaker::failed(&mut status.breaker, policy, at);
        }
        let again = match policy {
            RestartPolicy::Always | RestartPolicy::UnlessStopped => true,
            RestartPolicy::OnFailure => !success,
            RestartPolicy::Never => false,
        };
        if let Some(Violation { resource, policy: ViolationPolicy::RestartAdjusted }) = violation {
            let percent = status.resources.get_or_insert_default().adjust(resource);
            let message = format!("levels and limit of {} are now {percent}% of what is declared", resource.name());
            self.plan.notes.push(Note::normal("Adjusted", message));
        }
        let terminal = error.is_some_and(|error| !error.kind.is_retryable())
            || violation.is_some_and(|violation| !violation.policy.restarts());
        let gave_up = rules.backoff.max_retries.is_some_and(|most| failures > most);
        if !again || terminal || gave_up {
            status.done = true;
            status.next_start_at = None;
            let (phase, reason) = if success {
                (Phase::Stopped, "Completed")
            } else if gave_up && again && !terminal {
                let message = format!("gave up after {} restarts in a row: {story}", failures - 1);
                self.plan.notes.push(Note::warning("RetriesExhausted", message));
                (Phase::Failed, "RetriesExhausted")
            } else {
                (Phase::Failed, reason)
            };
            self.enter_at(phase, reason, story, at);
            return;
        }
        let seed = seed(&self.instance.metadata.uid, attempt.number);
        let mut next = backoff::next_start(&rules.backoff, streak, seed, attempt.started_at, at);
        let mut reason = reason;
        if let (Change::Opened, Some(until)) = (change, status.breaker.open_until) {
            next = next.max(until);
            reason = "CircuitOpen";
            let message = format!("too many failures, next start at {until}; the last one: {story}");
            self.plan.notes.push(Note::warning("CircuitOpen", message));
        }
        status.next_start_at = Some(next);
        if next > self.now {
            let message = format!("{story}; next start in {}", round(next.since(self.now)));
            self.enter_at(Phase::Backoff, reason, message, at);
        } else {
            self.enter_at(Phase::Backoff, reason, story, at);
        }
    }

    /// An attempt lives.
    fn live(&mut self, attempt: &Attempt, want: Want) {
        self.count_start(attempt);
        let status = &mut self.plan.status;
        status.identity.clone_from(&attempt.identity);
        status.pid = attempt.identity.as_ref().map(|identity| identity.pid);
        status.next_start_at = None;
        if status.started_at != Some(attempt.started_at) {
            status.started_at = Some(attempt.started_at);
            let pid = status.pid.unwrap_or_default();
            self.plan.notes.push(Note::normal("Started", format!("pid {pid}, attempt {}", attempt.number)));
        }
        self.take_probes(attempt);
        self.take_levels(attempt);
        let reason = match (want, &attempt.state) {
            (Want::Gone, _) => Some(StopReason::Deleted),
            (Want::Stop, _) if self.instance.spec.stopped_at.is_some() => Some(StopReason::Stopped),
            (Want::Stop, _) if self.instance.spec.held => Some(StopReason::Replaced),
            (Want::Stop, _) => Some(StopReason::Shutdown),
            (Want::Run, AttemptState::LeaderExited { .. }) => Some(StopReason::LeaderExited),
            (Want::Run, _) if self.is_outdated() || self.is_over_fallback() => Some(StopReason::Replaced),
            (Want::Run, _) if self.is_restart_due() => Some(StopReason::Restarted),
            (Want::Run, _) => self.verdict(attempt).map(|verdict| StopReason::of(verdict.cause)),
        };
        self.report_limits(attempt);
        let first = self.goes_after();
        if self.plan.status.stopping.is_none() && reason.is_some_and(StopReason::is_asked) && !first.is_empty() {
            let message = format!("is stopped when {} no longer runs", first.join(", "));
            self.enter(Phase::Running, WAITS_FOR_DEPENDENTS, message);
        } else if self.plan.status.stopping.is_some() || reason.is_some() {
            self.stop(attempt, reason);
        } else {
            self.limit(attempt);
            self.run();
        }
    }

    /// Publishes which limits are enforced, and by what.
    fn report_limits(&mut self, attempt: &Attempt) {
        let wanted = self.limits();
        let conditions = &mut self.plan.status.conditions;
        let Some(wanted) = wanted else {
            if attempt.limits.is_none() {
                conditions.retain(|condition| condition.kind != limits::CONDITION);
            }
            return;
        };
        let condition = limits::condition(&wanted, attempt.limits.as_deref().unwrap_or_default());
        let before = conditions.iter().find(|other| other.kind == condition.kind).map(|other| other.status);
        if condition.status != Truth::True && before != Some(condition.status) {
            self.plan.notes.push(Note::warning("LimitsNotEnforced", condition.message.clone()));
        }
        set_condition(conditions, condition, self.now);
    }

    /// Has limits take effect that changed since this attempt was started.
    fn limit(&mut self, attempt: &Attempt) {
        if let (Some(wanted), Some(known)) = (self.limits(), &attempt.limits)
            && self.observed.limited.as_deref() != Some(&wanted)
            && limits::differ(&wanted, known)
        {
            self.plan.actions.push(Action::Limit { attempt: attempt.number });
        }
    }

    /// The limits that hold now.
    fn limits(&self) -> Option<Limits> {
        self.instance.spec.template.limits_in_effect(self.plan.status.resources.as_deref())
    }

    /// The instances that stop before it, because they depend on it.
    fn goes_after(&self) -> &[String] {
        self.observed.waits.as_deref().map_or(&[], |waits| &waits.stop)
    }

    /// What ends this attempt although nobody asked for it.
    fn verdict(&self, attempt: &Attempt) -> Option<Verdict> {
        let observed = self.observed.verdict.as_deref().filter(|verdict| verdict.attempt == attempt.number);
        let template = &self.instance.spec.template;
        let status = &self.plan.status;
        let found = observed.cloned().or_else(|| health::verdict(template, status));
        found.or_else(|| resources::verdict(template, status, self.now))
    }

    /// Publishes what the probes have found of an attempt. What is known from before a restart of the controller stands
    /// until they find something else.
    fn take_probes(&mut self, attempt: &Attempt) {
        let known = self.plan.status.probes.take().filter(|probes| probes.attempt == attempt.number);
        let found = self.observed.probes.clone().filter(|probes| probes.attempt == attempt.number);
        let found = if self.plan.status.fallback.is_some() {
            // The probes are about the command that was given up.
            None
        } else {
            let before = &self.instance.status;
            let is_up = before.ready && before.started_at == Some(attempt.started_at);
            health::of_attempt(&self.instance.spec.template, attempt.number, known.as_deref(), found, is_up)
        };
        if let Some(found) = &found {
            self.plan.notes.extend(health::notes(&known.unwrap_or_default(), found));
        }
        self.plan.status.probes = found;
    }

    /// Publishes what the samples of an attempt say of the thresholds, likewise.
    fn take_levels(&mut self, attempt: &Attempt) {
        let known = self.plan.status.resources.take();
        if self.plan.status.fallback.is_some() {
            // They are about the command that was given up.
            return;
        }
        let template = &self.instance.spec.template;
        let found = resources::take(template, attempt.number, known, self.observed.levels.as_deref(), self.now);
        self.plan.status.resources = found.status;
        self.plan.notes.extend(found.notes);
        self.plan.log.extend(found.log);
    }

    fn run(&mut self) {
        let spec = &self.instance.spec;
        let status = &mut self.plan.status;
        // A start request for what already runs is answered.
        status.start_answered = status.start_answered.max(spec.started_at);
        let since = status.started_at.unwrap_or(self.now);
        if let Some(policy) = &spec.template.circuit_breaker {
            if breaker::running(&mut status.breaker, policy, since, self.now) == Change::Closed {
                self.plan.notes.push(Note::normal("CircuitClosed", "the trial start lasted"));
            }
            if self.plan.status.breaker.half_open {
                self.wake(since + policy.window);
            }
        }
        // An instance that crashes at once must not seem to have begun after its end.
        match self.plan.status.fallback.as_ref().map(|fallback| fallback.message.clone()) {
            Some(message) => self.enter_at(Phase::Running, "Fallback", message, since),
            None => self.enter_at(Phase::Running, "Running", String::new(), since),
        }
    }

    fn stop(&mut self, attempt: &Attempt, reason: Option<StopReason>) {
        let template = &self.instance.spec.template;
        let metadata = &self.instance.metadata;
        let now = self.now;
        let verdict = self.verdict(attempt).filter(|verdict| reason == Some(StopReason::of(verdict.cause)));
        let policy = verdict.as_ref().and_then(|verdict| verdict.violation).map(|violation| violation.policy);
        let grace = match metadata.deletion_grace_period_seconds {
            Some(seconds) if metadata.is_deleting() => Span::from_secs(seconds),
            _ if policy == Some(ViolationPolicy::Kill) => Span::ZERO,
            _ => template.stop.grace_period,
        };
        let status = &mut self.plan.status;
        let begun = status.stopping.is_some();
        let stopping = status.stopping.get_or_insert_with(|| Stopping {
            since: now,
            reason: reason.unwrap_or(StopReason::Stopped),
            kill_at: now + grace,
            verdict: None,
        });
        // What somebody asks for last decides what follows the end; a deletion in a hurry shortens the wait. What is
        // being stopped already is not stopped for anything else.
        if let Some(reason) = reason
            && (reason.is_asked() || !begun)
        {
            stopping.reason = reason;
            stopping.verdict = verdict.map(Box::new);
        }
        stopping.kill_at = stopping.kill_at.min(stopping.since + grace);
        if let Some(deadline) = self.observed.shutdown {
            stopping.kill_at = stopping.kill_at.min(deadline);
        }
        let Stopping { reason, kill_at, .. } = stopping.clone();
        let number = attempt.number;
        if now >= kill_at {
            if self.observed.killed != Some(number) {
                self.plan.actions.push(Action::Kill { attempt: number });
                if grace > Span::ZERO {
                    let message = format!("still alive {grace} after {}", template.stop.signal);
                    self.plan.notes.push(Note::warning("Killing", message));
                }
            }
        } else {
            if self.observed.signalled != Some(number) {
                let signal = signal::parse(&template.stop.signal).unwrap_or(15);
                self.plan.actions.push(Action::Signal { attempt: number, signal });
            }
            self.wake(kill_at);
        }
        if !begun {
            let note = match self.plan.status.stopping.as_ref().and_then(|stopping| stopping.verdict.as_ref()) {
                // That it ended so is told, once, when it has.
                Some(verdict) => Note::warning("Stopping", format!("{}: {}", verdict.message, template.stop.signal)),
                None => Note::normal("Stopping", format!("{}: {}", reason.name(), template.stop.signal)),
            };
            self.plan.notes.push(note);
        }
        match &attempt.state {
            AttemptState::Stuck => {
                let message = "killed, but a process does not go (uninterruptible sleep)".to_owned();
                if self.plan.status.phase != Phase::Stuck {
                    self.plan.notes.push(Note::warning("Stuck", message.clone()));
                }
                self.enter(Phase::Stuck, reason.name(), message);
            }
            AttemptState::LeaderExited { status, survivors } => {
                let message = format!("{}; processes left: {survivors}", describe(status));
                self.enter(Phase::Stopping, reason.name(), message);
            }
            AttemptState::Running | AttemptState::FailedToStart(_) | AttemptState::Ended { .. } => {
                self.enter(Phase::Stopping, reason.name(), String::new());
            }
        }
    }

    /// A start that was asked for, or a process that ran, of which custody knows nothing: the request never arrived, or
    /// custody lost its records. Nothing lives, so its number is spent and life goes on.
    fn bury_the_unseen(&mut self) {
        let status = &mut self.plan.status;
        if !status.is_live() {
            return;
        }
        status.ended_attempt = status.attempt;
        status.stopping = None;
        if status.pid.is_none() && status.last_exit.is_some() {
            // It never was one.
            status.restarts = status.restarts.saturating_sub(1);
        }
        if status.pid.take().is_some() {
            let unknown = ExitStatus::Unknown("custody has no record of it".to_owned());
            status.last_exit = Some(Exit {
                attempt: status.attempt,
                status: unknown,
                at: self.now,
                cause: None,
                severity: None,
                oom_killed: false,
            });
        }
    }

    /// No process lives.
    fn idle(&mut self, want: Want) {
        if want != Want::Run {
            self.plan.status.waiting_since = None;
        }
        match want {
            Want::Gone => {
                if self.observed.attempts.is_empty() {
                    self.plan.actions.push(Action::Remove);
                }
                self.enter(Phase::Stopped, "Deleted", String::new());
            }
            // What a run of a Job came to stays, whatever is asked of it afterwards.
            Want::Stop | Want::Run if self.is_final() => {}
            Want::Stop if self.instance.spec.stopped_at.is_some() => {
                self.forgive();
                let message = self.plan.status.message.clone();
                self.enter(Phase::Stopped, "Stopped", message);
            }
            Want::Stop if self.instance.spec.held => {
                self.forgive();
                self.enter(
                    Phase::Stopped,
                    StopReason::Replaced.name(),
                    "until all of the old revision are stopped".to_owned(),
                );
            }
            // What waits or gave up goes on with that when the daemon is back.
            Want::Stop => {}
            Want::Run => self.start_when_due(),
        }
    }

    fn start_when_due(&mut self) {
        let spec = &self.instance.spec;
        let asked = spec.started_at > self.plan.status.start_answered;
        if asked
            || self.is_restart_due()
            || (self.plan.status.attempt > 0 && self.is_outdated())
            || self.is_over_fallback()
        {
            self.forgive();
        }
        let status = &mut self.plan.status;
        // What was ended for good by a threshold is not to run in another way.
        let given_up = status.done
            && status.phase == Phase::Failed
            && status.reason != StopReason::ResourceViolation.name()
            && spec.template.restart_policy != RestartPolicy::Never
            && spec.template.fallback.is_some();
        if given_up && status.fallback.is_none() {
            self.fall_back();
            return;
        }
        if status.done {
            return;
        }
        if let Some(due) = status.next_start_at.max(status.breaker.open_until).filter(|due| *due > self.now) {
            if status.phase != Phase::Backoff {
                self.enter(Phase::Backoff, "BackOff", String::new());
            }
            self.wake(due);
            return;
        }
        if let Some(missing) = &self.observed.config_missing {
            if status.reason != CONFIG_ERROR {
                self.plan.notes.push(Note::warning(CONFIG_ERROR, missing.to_string()));
            }
            self.enter(Phase::Pending, CONFIG_ERROR, missing.to_string());
            return;
        }
        // What crashed has been started in its turn, and what it needs may be waiting for it by now.
        let in_turn = status.next_start_at.is_some() || status.fallback.is_some();
        if !in_turn && self.waits_for_dependencies() {
            return;
        }
        let status = &mut self.plan.status;
        status.waiting_since = None;
        let goal = (&spec.revision, spec.restarted_at, spec.started_at);
        if (&status.revision, status.restarted_at, status.start_answered) != goal {
            // A controller that crashes after the start must find out what was started, or it would do it again.
            status.revision.clone_from(&spec.revision);
            status.restarted_at = spec.restarted_at;
            status.start_answered = spec.started_at;
            self.plan.actions.push(Action::Record);
            return;
        }
        if !self.observed.recorded {
            self.enter(Phase::Pending, "Recording", String::new());
            return;
        }
        status.attempt += 1;
        status.restarts += u32::from(status.last_exit.is_some());
        status.next_start_at = None;
        status.started_at = None;
        breaker::started(&mut status.breaker);
        let attempt = status.attempt;
        self.plan.actions.push(Action::Spawn { attempt });
        self.enter(Phase::Starting, "Starting", String::new());
    }

    /// Waits for what it depends on; whether there is something to wait for.
    fn waits_for_dependencies(&mut self) -> bool {
        let unmet = self.observed.waits.as_deref().map_or(&[][..], |waits| &waits.start);
        if unmet.is_empty() {
            return false;
        }
        let status = &mut self.plan.status;
        let since = *status.waiting_since.get_or_insert(self.now);
        let story = unmet.iter().map(|unmet| unmet.message.as_str()).collect::<Vec<_>>().join("; ");
        let was_late = status.reason == DEPENDENCY_TIMEOUT;
        let (mut late, mut wake) = (None, None);
        for unmet in unmet {
            let times_out = unmet.timeout.map(|timeout| since + timeout);
            if times_out.is_some_and(|at| at <= self.now) {
                late = late.or(unmet.timeout);
            }
            let later = times_out.into_iter().chain(unmet.met_at).filter(|at| *at > self.now).min();
            wake = wake.into_iter().chain(later).min();
        }
        if let Some(at) = wake {
            self.wake(at);
        }
        match late {
            Some(timeout) => {
                let message = format!("waited {timeout} for {story}");
                if !was_late {
                    self.plan.notes.push(Note::warning(DEPENDENCY_TIMEOUT, message.clone()));
                }
                self.enter(Phase::Failed, DEPENDENCY_TIMEOUT, message);
            }
            None => self.enter(Phase::Pending, DEPENDENCY_NOT_READY, format!("waits for {story}")),
        }
        true
    }

    fn is_final(&self) -> bool {
        self.instance.spec.job.is_some() && self.plan.status.done
    }

    fn is_outdated(&self) -> bool {
        self.plan.status.revision != self.instance.spec.revision
    }

    /// From now on the fallback command runs instead.
    fn fall_back(&mut self) {
        let since = self.now;
        let generation = self.instance.metadata.generation;
        let status = &mut self.plan.status;
        let message = format!("{}: {}", status.reason, status.message);
        forget_ends(status);
        status.done = false;
        status.next_start_at = None;
        status.fallback = Some(FallbackSince { since, generation, message: message.clone() });
        self.plan.notes.push(Note::warning("Fallback", format!("runs the fallback command, since {message}")));
        // What is started has to be known to a controller that finds it running.
        self.plan.actions.push(Action::Record);
        self.enter(Phase::Pending, "Fallback", message);
    }

    /// It runs the fallback although the spec has changed since.
    fn is_over_fallback(&self) -> bool {
        let fallback = self.plan.status.fallback.as_ref();
        fallback.is_some_and(|fallback| {
            fallback.generation != self.instance.metadata.generation || self.instance.spec.template.fallback.is_none()
        })
    }

    fn is_restart_due(&self) -> bool {
        self.instance.spec.restarted_at > self.plan.status.restarted_at
    }

    /// Lets it start at once, as if nothing bad had ever happened.
    fn forgive(&mut self) {
        let status = &mut self.plan.status;
        forget_ends(status);
        status.fallback = None;
        status.resources = None;
        status.done = false;
        status.next_start_at = None;
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

/// Nothing bad has happened.
fn forget_ends(status: &mut InstanceStatus) {
    status.streak = 0;
    status.failures = 0;
    status.counts = Vec::new();
    status.breaker = kinds::Breaker::default();
}

/// Counts an end, by itself or among those of its cause; the streak and the failures in a row that it belongs to.
fn count_end(status: &mut InstanceStatus, own: Option<EndCause>, failed: u32) -> (u32, u32) {
    let Some(cause) = own else {
        status.streak += 1;
        status.failures += failed;
        return (status.streak, status.failures);
    };
    let index = status.counts.iter().position(|count| count.cause == cause).unwrap_or_else(|| {
        status.counts.push(EndCount { cause, streak: 0, failures: 0 });
        status.counts.len() - 1
    });
    let count = &mut status.counts[index];
    count.streak += 1;
    count.failures += failed;
    (count.streak, count.failures)
}

/// Why an attempt ended, how bad that is, and the whole story; as if nobody had asked for it.
fn judge(
    exit: &ExitStatus,
    error: Option<&StartError>,
    oom_killed: bool,
    stopping: Option<&Stopping>,
) -> (EndCause, Severity, String) {
    let story = describe(exit);
    if let Some(verdict) = stopping.and_then(|stopping| stopping.verdict.as_deref()) {
        return (verdict.cause, verdict.severity, format!("{}; {story}", verdict.message));
    }
    if oom_killed {
        let story = format!("killed by the kernel: it needed more memory than its limit; {story}");
        return (EndCause::Resource, Severity::Emergency, story);
    }
    let cause = if error.is_some() { EndCause::ExecFailure } else { EndCause::Crash };
    let severity = match exit {
        ExitStatus::Signal(number) if signal::is_fault(*number) => Severity::Emergency,
        ExitStatus::Code(_) | ExitStatus::Signal(_) | ExitStatus::Error(_) => Severity::Critical,
        ExitStatus::Unknown(_) => Severity::Warning,
    };
    (cause, severity, story)
}

/// The end of an attempt in words.
pub fn describe(exit: &ExitStatus) -> String {
    match exit {
        ExitStatus::Code(code) => format!("exited with code {code}"),
        ExitStatus::Signal(number) => format!("ended by {}", signal::name(*number)),
        ExitStatus::Unknown(why) => format!("ended, exit code unknown: {why}"),
        ExitStatus::Error(why) => why.clone(),
    }
}

/// Whole milliseconds, so that people can read it.
fn round(span: Span) -> Span {
    Span::from_millis(span.as_micros().div_ceil(1000))
}

fn seed(uid: &str, attempt: u64) -> u64 {
    uid.bytes().fold(attempt, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
#[path = "instance_tests.rs"]
mod tests;
