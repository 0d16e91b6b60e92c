//! Which attempts' usage is compared with thresholds, and what that finds, taken into the world.

use std::sync::Arc;
use std::time::Duration;

use ostler_core::Timestamp;
use ostler_core::kinds::{Phase, ProcessSpec};
use ostler_core::plan::instance::{Attempt, AttemptState};
use ostler_core::plan::resources::Levels;
use ostler_core::threshold::Rules;

use super::world::{Id, InstanceEntry};
use super::{Controller, Request};
use crate::driver::Driver;
use crate::usage::{Crossing, Order};

/// The attempt of an instance that is watched.
#[derive(Debug)]
pub(crate) struct Watching {
    attempt: u64,
    rules: Rules,
    interval: Duration,
}

/// The attempt whose usage is to be watched.
fn watched(entry: &InstanceEntry) -> Option<&Attempt> {
    entry.object.spec.template.thresholds()?;
    if entry.object.status.phase != Phase::Running || entry.object.status.fallback.is_some() {
        return None;
    }
    entry.observed.attempts.iter().rev().find(|attempt| attempt.state == AttemptState::Running)
}

fn interval(spec: &ProcessSpec) -> Duration {
    spec.resources.as_ref().map_or(ostler_core::kinds::Resources::INTERVAL, |resources| resources.interval).to_std()
}

impl<D: Driver> Controller<D> {
    /// Has the usage of an instance with thresholds watched while, and only while, it runs.
    pub(crate) fn watch_usage(&mut self, id: &Id, now: Timestamp) {
        let Some(entry) = self.world.instances.get_mut(id) else { return };
        let known = entry.object.status.resources.as_deref();
        let wanted = watched(entry).and_then(|attempt| {
            let template = &entry.object.spec.template;
            let leader = attempt.identity.as_ref()?.pid;
            let watching =
                Watching { attempt: attempt.number, rules: Rules::of(template, known)?, interval: interval(template) };
            Some((watching, leader, now.since(attempt.started_at)))
        });
        let Some((wanted, leader, age)) = wanted else {
            if entry.watching.take().is_some() {
                self.sampler.watch(Arc::clone(id), None);
            }
            return;
        };
        let same = |watching: &Watching| {
            (watching.attempt, watching.interval) == (wanted.attempt, wanted.interval) && watching.rules == wanted.rules
        };
        if entry.watching.as_deref().is_some_and(same) {
            return;
        }
        let order = Order {
            attempt: wanted.attempt,
            leader,
            rules: wanted.rules.clone(),
            interval: wanted.interval,
            age: age.to_std(),
            known: known.map(|known| known.exceeded.clone()).unwrap_or_default(),
            crossings: self.crossings.clone(),
        };
        entry.watching = Some(Box::new(wanted));
        self.sampler.watch(Arc::clone(id), Some(Box::new(order)));
    }

    pub(crate) fn take_crossings(&mut self, crossings: Vec<Crossing>) {
        for Crossing { id, attempt, exceeded, cpu } in crossings {
            let Some(entry) = self.world.instances.get_mut(&id) else { continue };
            entry.observed.levels = Some(Box::new(Levels { attempt, exceeded, cpu }));
            self.queue.add(Request::Instance(id));
        }
    }
}
