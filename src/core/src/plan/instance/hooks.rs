//! Hooks: when each of them runs, how long it is waited for, and what its failure does.
//!
//! Each runs once for an attempt. What came of it is in the status, so that a controller that begins later goes on from
//! there; one that was under way with the controller before runs again.

use super::ends::{Outcome, describe};
use super::{Action, Attempt, AttemptState, Planner, StartError, StartErrorKind};
use crate::breaker;
use crate::kinds::{
    EndCause, ExitStatus, FailurePolicy, Hook, HookKind, HookStatus, InstanceStatus, Phase, ProcessSpec, Severity,
    StopReason, Stopping, Verdict,
};
use crate::plan::Note;
use crate::time::{Span, Timestamp};

/// The most of the grace period that is kept for the signal.
const FOR_THE_SIGNAL: Span = Span::from_secs(2);

/// The reason of an instance that is not ready before its postStart hook is over.
pub const POST_START_PENDING: &str = "PostStartPending";

/// What a hook has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Runs,
    Succeeded,
    Failed,
}

/// Why an instance that runs is not ready because of a hook, if that is so.
pub(super) fn holds_back(spec: &ProcessSpec, status: &InstanceStatus) -> Option<&'static str> {
    spec.hook(HookKind::PostStart)?;
    let known = status.hooks.as_ref().and_then(|hooks| hooks.get(HookKind::PostStart));
    match known.filter(|known| known.attempt == status.attempt) {
        Some(known) if !known.succeeded && policy(spec, HookKind::PostStart) == FailurePolicy::Fail => {
            Some(HookKind::PostStart.failure())
        }
        Some(_) => None,
        None => Some(POST_START_PENDING),
    }
}

/// What the failure of a hook does; that of the others than preStart and postStart is never more than told.
fn policy(spec: &ProcessSpec, kind: HookKind) -> FailurePolicy {
    match kind {
        HookKind::PreStart | HookKind::PostStart => {
            spec.hook(kind).and_then(|hook| hook.failure_policy).unwrap_or(FailurePolicy::Fail)
        }
        HookKind::PreStop | HookKind::PostStop => FailurePolicy::Ignore,
    }
}

/// Until when a stop that is under way waits for its hook.
fn signal_at(stopping: &Stopping) -> Timestamp {
    let grace = stopping.kill_at.since(stopping.since);
    let kept = Span::from_micros(grace.as_micros() / 5).min(FOR_THE_SIGNAL);
    stopping.since + Span::from_micros(grace.as_micros() - kept.as_micros())
}

impl Planner<'_> {
    /// A hook of the command; the fallback has none.
    fn declared(&self, kind: HookKind) -> Option<&Hook> {
        self.instance.spec.template.hook(kind).filter(|_| self.plan.status.fallback.is_none())
    }

    /// What is known of a hook of an attempt.
    fn known(&self, kind: HookKind, attempt: u64) -> Option<&HookStatus> {
        self.plan.status.hooks.as_ref()?.get(kind).filter(|known| known.attempt == attempt)
    }

    fn is_running(&self, kind: HookKind, attempt: u64) -> bool {
        let runs = self.observed.hooks.as_deref().unwrap_or_default();
        runs.iter().any(|run| (run.kind, run.attempt) == (kind, attempt) && run.result.is_none())
            && self.known(kind, attempt).is_none()
    }

    /// Has a hook run for an attempt, once, and says what it has come to.
    fn hook(&mut self, kind: HookKind, attempt: u64, env: Vec<(&'static str, String)>) -> Progress {
        if let Some(known) = self.known(kind, attempt) {
            return if known.succeeded { Progress::Succeeded } else { Progress::Failed };
        }
        let runs = self.observed.hooks.as_deref().unwrap_or_default();
        match runs.iter().find(|run| (run.kind, run.attempt) == (kind, attempt)) {
            None => {
                self.plan.actions.push(Action::Hook { kind, attempt, env });
                Progress::Runs
            }
            Some(run) => match &run.result {
                None => Progress::Runs,
                Some(result) => {
                    let status = HookStatus {
                        attempt,
                        succeeded: result.succeeded,
                        at: Some(result.at),
                        message: result.message.clone(),
                    };
                    let succeeded = status.succeeded;
                    self.publish_hook(kind, status);
                    if succeeded { Progress::Succeeded } else { Progress::Failed }
                }
            },
        }
    }

    /// Publishes what a hook came to, and tells a failure of which nothing else will.
    fn publish_hook(&mut self, kind: HookKind, status: HookStatus) {
        if !status.succeeded && policy(&self.instance.spec.template, kind) == FailurePolicy::Ignore {
            let message = format!("{} hook failed: {}", kind.name(), status.message);
            self.plan.notes.push(Note::warning(kind.failure(), message));
        }
        *self.plan.status.hooks.get_or_insert_default().get_mut(kind) = Some(status);
    }

    /// Ends a hook that has taken all the time there is.
    fn give_up_hook(&mut self, kind: HookKind, attempt: u64, why: &str) {
        self.plan.actions.push(Action::CancelHook);
        let status = HookStatus { attempt, succeeded: false, at: Some(self.now), message: why.to_owned() };
        self.publish_hook(kind, status);
    }

    /// Ends whatever hook runs, and forgets it.
    pub(super) fn cancel_hooks(&mut self) {
        if self.observed.hooks.is_some() && !self.plan.actions.contains(&Action::CancelHook) {
            self.plan.actions.push(Action::CancelHook);
        }
    }

    /// Whether the next attempt may be started as far as its preStart hook goes; runs that, and records its failure.
    pub(super) fn may_start(&mut self) -> bool {
        if self.declared(HookKind::PreStart).is_none() {
            return true;
        }
        let attempt = self.plan.status.attempt + 1;
        match self.hook(HookKind::PreStart, attempt, Vec::new()) {
            Progress::Succeeded => true,
            Progress::Failed if policy(&self.instance.spec.template, HookKind::PreStart) == FailurePolicy::Ignore => {
                true
            }
            Progress::Failed => {
                if self.record_failed_start() {
                    self.start_when_due();
                }
                false
            }
            Progress::Runs => {
                let reason = HookKind::PreStart.reason();
                self.enter(Phase::Pending, reason, format!("preStart hook of attempt {attempt} runs"));
                false
            }
        }
    }

    /// Records that the preStart hook kept an attempt from being made, if it did; false when the hook that follows is not
    /// over.
    pub(super) fn record_failed_start(&mut self) -> bool {
        let Some(failed) = self.failed_before_start() else { return true };
        if !self.may_be_recorded(&failed) {
            return false;
        }
        breaker::started(&mut self.plan.status.breaker);
        self.record_end(&failed);
        true
    }

    fn failed_before_start(&self) -> Option<Attempt> {
        self.declared(HookKind::PreStart)?;
        let number = self.plan.status.attempt + 1;
        let known = self.known(HookKind::PreStart, number).filter(|known| !known.succeeded)?;
        if policy(&self.instance.spec.template, HookKind::PreStart) == FailurePolicy::Ignore {
            return None;
        }
        let at = known.at.unwrap_or(self.now);
        let message = format!("preStart hook failed: {}", known.message);
        let error = StartError { kind: StartErrorKind::PreStartFailed, message, at };
        Some(Attempt::failed(number, at, AttemptState::FailedToStart(error)))
    }

    /// Runs the postStart hook of what runs.
    pub(super) fn after_start(&mut self, attempt: &Attempt) {
        let number = attempt.number;
        if self.declared(HookKind::PostStart).is_none()
            || attempt.state != AttemptState::Running
            || self.known(HookKind::PostStart, number).is_some()
        {
            return;
        }
        let before = &self.instance.status;
        let probes = self.plan.status.probes.as_deref();
        let lives = probes.and_then(|probes| probes.liveness.as_ref()).is_some_and(|liveness| liveness.passed);
        let begun = self.observed.hooks.as_deref().is_some_and(|runs| runs.iter().any(|run| run.attempt == number));
        if !begun && (lives || before.ready) && before.started_at == Some(attempt.started_at) {
            let message = "it had started before it was given this hook".to_owned();
            let status = HookStatus { attempt: number, succeeded: true, at: Some(self.now), message };
            self.publish_hook(HookKind::PostStart, status);
            return;
        }
        self.hook(HookKind::PostStart, number, pid(attempt));
    }

    /// The failure of the postStart hook, which ends the attempt.
    pub(super) fn hook_verdict(&self, attempt: &Attempt) -> Option<Verdict> {
        self.declared(HookKind::PostStart)?;
        let known = self.known(HookKind::PostStart, attempt.number).filter(|known| !known.succeeded)?;
        (policy(&self.instance.spec.template, HookKind::PostStart) == FailurePolicy::Fail).then(|| Verdict {
            attempt: attempt.number,
            cause: EndCause::Startup,
            severity: Severity::Critical,
            message: format!("postStart hook failed: {}", known.message),
            violation: None,
            hook: true,
        })
    }

    /// Whether the signal has to wait for the preStop hook, which this runs.
    pub(super) fn waits_before_stop(&mut self, attempt: &Attempt, stopping: &Stopping) -> bool {
        let number = attempt.number;
        if self.is_running(HookKind::PostStart, number) {
            self.cancel_hooks();
        }
        if self.known(HookKind::PreStop, number).is_some() {
            return false;
        }
        let until = signal_at(stopping);
        let begun = self.has_run(HookKind::PreStop, number);
        if self.is_running(HookKind::PreStop, number) && self.now >= until {
            self.give_up_hook(HookKind::PreStop, number, "it was not over when the signal was due");
            return false;
        }
        let runs = attempt.state == AttemptState::Running && stopping.reason != StopReason::LeaderExited;
        let due = runs && self.now < until && self.observed.signalled != Some(number);
        // One that was begun may be what has ended the leader, and have more to do.
        if !(begun || due && self.declared(HookKind::PreStop).is_some()) {
            return false;
        }
        let mut env = pid(attempt);
        env.push(("OSTLER_REASON", stopping.reason.name().to_owned()));
        let waits = self.hook(HookKind::PreStop, number, env) == Progress::Runs;
        if waits {
            self.wake(until);
        }
        waits
    }

    /// Whether a hook of an attempt was begun by this controller.
    fn has_run(&self, kind: HookKind, attempt: u64) -> bool {
        let runs = self.observed.hooks.as_deref().unwrap_or_default();
        runs.iter().any(|run| (run.kind, run.attempt) == (kind, attempt))
    }

    /// Whether the end of an attempt may be recorded: not before its hooks are over. Runs the postStop hook.
    pub(super) fn may_be_recorded(&mut self, attempt: &Attempt) -> bool {
        let Some(Outcome { exit, at, reboot, .. }) = Outcome::of(attempt) else { return false };
        let number = attempt.number;
        if self.is_running(HookKind::PreStop, number) {
            // It may be what has ended the process.
            match self.plan.status.stopping.as_ref().map(signal_at).filter(|until| *until > self.now) {
                Some(until) => {
                    self.end_later(attempt, HookKind::PreStop, &exit, at);
                    self.wake(until);
                    return false;
                }
                None => self.give_up_hook(HookKind::PreStop, number, "it was not over in time"),
            }
        } else if self.has_run(HookKind::PreStop, number) {
            self.hook(HookKind::PreStop, number, Vec::new());
        }
        if self.is_running(HookKind::PostStart, number) {
            self.cancel_hooks();
        }
        let runs = self.is_running(HookKind::PostStop, number);
        let hurried =
            self.instance.metadata.is_deleting() && self.instance.metadata.deletion_grace_period_seconds == Some(0);
        // What a reboot has ended left nothing behind but files, which the next start finds.
        if reboot || (self.declared(HookKind::PostStop).is_none() && !runs) {
            return true;
        }
        if hurried || self.observed.shutdown.is_some_and(|deadline| deadline <= self.now) {
            if runs {
                let why = if hurried { "it was deleted without a grace period" } else { "the daemon ends" };
                self.give_up_hook(HookKind::PostStop, number, why);
            }
            return true;
        }
        let reason = self.why_ended(attempt);
        let mut env = vec![("OSTLER_REASON", reason.to_owned())];
        match &exit {
            ExitStatus::Code(code) => env.push(("OSTLER_EXIT_CODE", code.to_string())),
            ExitStatus::Signal(number) => env.push(("OSTLER_EXIT_SIGNAL", number.to_string())),
            ExitStatus::Unknown(_) | ExitStatus::Error(_) => {}
        }
        if self.hook(HookKind::PostStop, number, env) != Progress::Runs {
            return true;
        }
        self.end_later(attempt, HookKind::PostStop, &exit, at);
        if let Some(deadline) = self.observed.shutdown {
            self.wake(deadline);
        }
        false
    }

    /// Nothing of the attempt lives, and its end waits for a hook.
    fn end_later(&mut self, attempt: &Attempt, kind: HookKind, exit: &ExitStatus, at: Timestamp) {
        if !matches!(attempt.state, AttemptState::FailedToStart(_)) {
            self.count_start(attempt);
        }
        self.plan.status.pid = None;
        let message = format!("{}; {} hook runs", describe(exit), kind.name());
        self.enter_at(Phase::Stopping, kind.reason(), message, at);
    }
}

/// What a hook is told of a process.
fn pid(attempt: &Attempt) -> Vec<(&'static str, String)> {
    attempt.identity.iter().map(|identity| ("OSTLER_PID", identity.pid.to_string())).collect()
}
