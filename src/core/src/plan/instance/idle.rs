//! Nothing lives: whether something is started, when, and whom it waits for.

use super::{Action, CONFIG_ERROR, DEPENDENCY_NOT_READY, DEPENDENCY_TIMEOUT, Planner, Want};
use crate::breaker;
use crate::kinds::{Phase, RestartPolicy, StopReason};
use crate::plan::Note;
use crate::time::Span;

impl Planner<'_> {
    /// No process lives.
    pub(super) fn idle(&mut self, want: Want) {
        if want != Want::Run {
            self.plan.status.waiting_since = None;
            self.cancel_hooks();
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

    pub(super) fn start_when_due(&mut self) {
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
            // A hook that prepares the start of something else is of no use.
            self.cancel_hooks();
            self.plan.actions.push(Action::Record);
            return;
        }
        if !self.observed.recorded {
            self.enter(Phase::Pending, "Recording", String::new());
            return;
        }
        if !self.may_start() {
            return;
        }
        let status = &mut self.plan.status;
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
}

/// Whole milliseconds, so that people can read it.
pub(super) fn round(span: Span) -> Span {
    Span::from_millis(span.as_micros().div_ceil(1000))
}

pub(super) fn seed(uid: &str, attempt: u64) -> u64 {
    uid.bytes().fold(attempt, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
