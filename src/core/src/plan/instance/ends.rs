//! What follows from the end of an attempt: how it is judged and counted, whether another one comes, and when.

use super::idle::{round, seed};
use super::{Action, Attempt, AttemptState, Planner, StartError, StartErrorKind};
use crate::backoff;
use crate::breaker::{self, Change};
use crate::kinds::{
    EndCause, EndCount, Exit, ExitStatus, FallbackSince, InstanceStatus, Phase, ProcessSpec, RestartPolicy, Severity,
    StopReason, Stopping, Verdict, Violation, ViolationPolicy,
};
use crate::plan::Note;
use crate::plan::resources;
use crate::time::Timestamp;
use crate::{kinds, restart, signal};

/// How an attempt ended.
pub(super) struct Outcome<'a> {
    pub(super) exit: ExitStatus,
    pub(super) at: Timestamp,
    /// The machine was rebooted.
    pub(super) reboot: bool,
    /// Why no process could be made.
    pub(super) error: Option<&'a StartError>,
}

impl<'a> Outcome<'a> {
    /// None while it is not over.
    pub(super) fn of(attempt: &'a Attempt) -> Option<Self> {
        match &attempt.state {
            AttemptState::FailedToStart(error) => {
                let exit = ExitStatus::Error(error.message.clone());
                Some(Self { exit, at: error.at, reboot: false, error: Some(error) })
            }
            AttemptState::Ended { status, at, reboot } => {
                Some(Self { exit: status.clone(), at: *at, reboot: *reboot, error: None })
            }
            AttemptState::Running | AttemptState::LeaderExited { .. } | AttemptState::Stuck => None,
        }
    }
}

/// What the end of an attempt is judged to be, as if nobody had asked for it.
struct Judged {
    cause: EndCause,
    severity: Severity,
    success: bool,
    reason: &'static str,
    story: String,
}

/// The end of an attempt that nobody asked for.
struct End<'a> {
    judged: Judged,
    at: Timestamp,
    error: Option<&'a StartError>,
    violation: Option<Violation>,
}

impl Planner<'_> {
    /// Folds every end that custody reports into the status, once each, and lets custody forget it. False when there is
    /// one whose hooks are not over.
    pub(super) fn record_ends(&mut self) -> bool {
        let observed = self.observed;
        for attempt in observed.attempts.iter().filter(|attempt| attempt.state.is_over()) {
            if attempt.number > self.plan.status.ended_attempt {
                if !self.may_be_recorded(attempt) {
                    return false;
                }
                self.record_end(attempt);
            }
            self.plan.actions.push(Action::Forget { attempt: attempt.number });
        }
        self.record_failed_start()
    }

    pub(super) fn record_end(&mut self, attempt: &Attempt) {
        let Some(Outcome { exit, at, reboot, error }) = Outcome::of(attempt) else { return };
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
        let judged = judge(&self.instance.spec.template, attempt, &exit, error, stopping.as_ref());
        let violation =
            stopping.as_ref().and_then(|stopping| stopping.verdict.as_ref()).and_then(|verdict| verdict.violation);
        let asked = stopping.filter(|stopping| stopping.reason.is_asked());
        if let Some(stopping) = asked {
            self.enter_at(Phase::Stopped, stopping.reason.name(), judged.story, at);
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
            self.ended_by_itself(attempt, End { judged, at, error, violation });
        }
    }

    /// The reason of an end, as it will be published.
    pub(super) fn why_ended(&self, attempt: &Attempt) -> &'static str {
        let stopping = self.plan.status.stopping.as_ref();
        match (stopping.filter(|stopping| stopping.reason.is_asked()), Outcome::of(attempt)) {
            (Some(asked), _) => asked.reason.name(),
            (None, Some(Outcome { exit, error, .. })) => {
                judge(&self.instance.spec.template, attempt, &exit, error, stopping).reason
            }
            (None, None) => "",
        }
    }

    /// A start that custody knows of and the status does not: it was lost with the controller that asked for it.
    pub(super) fn count_start(&mut self, attempt: &Attempt) {
        let status = &mut self.plan.status;
        if attempt.number > status.attempt {
            status.attempt = attempt.number;
            status.restarts += u32::from(status.last_exit.is_some());
        }
    }

    /// Policy: what follows an end that nobody asked for.
    fn ended_by_itself(&mut self, attempt: &Attempt, end: End<'_>) {
        let End { judged: Judged { cause, severity, success, reason, story }, at, error, violation } = end;
        let template = &self.instance.spec.template;
        let policy = template.restart_policy;
        let status = &mut self.plan.status;
        let rules = restart::policy(template, cause, severity);
        if at.since(attempt.started_at) >= template.backoff.reset_after {
            forget_ends(status);
        }
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

    /// A start that was asked for, or a process that ran, of which custody knows nothing: the request never arrived, or
    /// custody lost its records. Nothing lives, so its number is spent and life goes on.
    pub(super) fn bury_the_unseen(&mut self) {
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

    /// Lets it start at once, as if nothing bad had ever happened.
    pub(super) fn forgive(&mut self) {
        let status = &mut self.plan.status;
        forget_ends(status);
        status.fallback = None;
        status.resources = None;
        status.done = false;
        status.next_start_at = None;
    }

    /// From now on the fallback command runs instead.
    pub(super) fn fall_back(&mut self) {
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
    pub(super) fn is_over_fallback(&self) -> bool {
        let fallback = self.plan.status.fallback.as_ref();
        fallback.is_some_and(|fallback| {
            fallback.generation != self.instance.metadata.generation || self.instance.spec.template.fallback.is_none()
        })
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

/// What an end is, as if nobody had asked for it.
fn judge(
    template: &ProcessSpec,
    attempt: &Attempt,
    exit: &ExitStatus,
    error: Option<&StartError>,
    stopping: Option<&Stopping>,
) -> Judged {
    let verdict = stopping.and_then(|stopping| stopping.verdict.as_deref());
    let (cause, severity, story) = why(exit, error, attempt.oom_killed, verdict);
    // What was stopped because it did not work has failed, whatever it says in the end.
    let success = cause == EndCause::Crash
        && matches!(exit, ExitStatus::Code(code)
        if template.success_exit_codes.iter().any(|good| i32::from(*good) == *code));
    let reason = match (cause, error) {
        (_, Some(error)) => error.kind.reason(),
        (EndCause::Crash | EndCause::ExecFailure, None) if success => "Completed",
        (EndCause::Crash | EndCause::ExecFailure, None) => "Crashed",
        // What was being stopped already had its reason before.
        (EndCause::Resource, None) if attempt.oom_killed && severity == Severity::Emergency => "OOMKilled",
        (EndCause::Startup | EndCause::Liveness | EndCause::Resource, None) => {
            verdict.map_or(StopReason::of(cause), Verdict::reason).name()
        }
    };
    Judged { cause, severity, success, reason, story }
}

/// Why an attempt ended, how bad that is, and the whole story.
fn why(
    exit: &ExitStatus,
    error: Option<&StartError>,
    oom_killed: bool,
    verdict: Option<&Verdict>,
) -> (EndCause, Severity, String) {
    let story = describe(exit);
    if let Some(verdict) = verdict {
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
