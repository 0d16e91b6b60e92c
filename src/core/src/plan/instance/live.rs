//! An attempt that lives: its limits, its health, and how it is stopped.

use super::ends::describe;
use super::{Action, Attempt, AttemptState, Planner, WAITS_FOR_DEPENDENTS, Want};
use crate::breaker::{self, Change};
use crate::kinds::{Limits, Phase, StopReason, Stopping, Truth, Verdict, ViolationPolicy, set_condition};
use crate::limits;
use crate::plan::resources;
use crate::plan::{Note, health};
use crate::signal;
use crate::time::Span;

impl Planner<'_> {
    /// An attempt lives.
    pub(super) fn live(&mut self, attempt: &Attempt, want: Want) {
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
            (Want::Run, _) => None,
        };
        if reason.is_none() && self.plan.status.stopping.is_none() {
            self.after_start(attempt);
        }
        let reason = match want {
            Want::Run => reason.or_else(|| self.verdict(attempt).map(|verdict| verdict.reason())),
            Want::Stop | Want::Gone => reason,
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
    pub(super) fn limits(&self) -> Option<Limits> {
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
        found.or_else(|| self.hook_verdict(attempt)).or_else(|| resources::verdict(template, status, self.now))
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
        let verdict = self.verdict(attempt).filter(|verdict| reason == Some(verdict.reason()));
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
        let stopping = stopping.clone();
        let Stopping { reason, kill_at, .. } = stopping;
        let number = attempt.number;
        let hook_runs = self.waits_before_stop(attempt, &stopping);
        if now >= kill_at {
            if self.observed.killed != Some(number) {
                self.plan.actions.push(Action::Kill { attempt: number });
                if grace > Span::ZERO {
                    let message = format!("still alive {grace} after {}", template.stop.signal);
                    self.plan.notes.push(Note::warning("Killing", message));
                }
            }
        } else {
            if self.observed.signalled != Some(number) && !hook_runs {
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
                let hook = if hook_runs { "; preStop hook runs" } else { "" };
                let message = format!("{}; processes left: {survivors}{hook}", describe(status));
                self.enter(Phase::Stopping, reason.name(), message);
            }
            AttemptState::Running | AttemptState::FailedToStart(_) | AttemptState::Ended { .. } => {
                let message = if hook_runs { "preStop hook runs" } else { "" };
                self.enter(Phase::Stopping, reason.name(), message.to_owned());
            }
        }
    }
}
