//! Comparing samples with thresholds, and telling the controller what comes of it.

use std::time::Duration;

use ostler_core::kinds::Exceeded;
use ostler_core::threshold::{Rules, Watch};
use ostler_core::usage::Usage;
use ostler_core::{Span, Timestamp};
use tokio::sync::mpsc;

use super::{Crossing, Id, SLOTS};

/// What to compare the samples of an attempt with.
#[derive(Debug)]
pub(crate) struct Order {
    /// Number of the attempt.
    pub(crate) attempt: u64,
    /// Process id of its leader; another tree is left alone.
    pub(crate) leader: i32,
    /// The thresholds.
    pub(crate) rules: Rules,
    /// How often.
    pub(crate) interval: Duration,
    /// How long it has been running.
    pub(crate) age: Duration,
    /// What is known already.
    pub(crate) known: Vec<Exceeded>,
    /// Where to tell of changes.
    pub(crate) crossings: mpsc::UnboundedSender<Crossing>,
}

/// An attempt that is watched.
#[derive(Debug)]
pub(super) struct Watched {
    attempt: u64,
    watch: Watch,
    /// Open files have to be counted at each sample.
    pub(super) counts_files: bool,
    crossings: mpsc::UnboundedSender<Crossing>,
}

impl Watched {
    pub(super) fn new(order: Order, now: Timestamp) -> Self {
        let Order { attempt, rules, age, known, crossings, leader: _, interval: _ } = order;
        let age = i64::try_from(Span::from_micros(age.as_micros() as u64).as_micros()).unwrap_or(i64::MAX);
        let started_at = Timestamp::from_micros(now.as_micros().saturating_sub(age));
        let counts_files = rules.counts_files();
        Self { attempt, watch: Watch::new(rules, started_at, &known), counts_files, crossings }
    }

    /// Takes in a sample.
    pub(super) fn take(&mut self, id: &Id, usage: &Usage, now: Timestamp) {
        if self.watch.fold(usage, now) {
            let exceeded = self.watch.exceeded();
            // The controller may be ending.
            let _ = self.crossings.send(Crossing { id: id.clone(), attempt: self.attempt, exceeded, cpu: usage.cpu });
        }
    }
}

/// In every how many-th slot something is sampled that is to be sampled so often.
pub(super) fn step(interval: Duration, pause: Duration) -> usize {
    let wanted = (interval.as_micros() / pause.as_micros().max(1)) as usize;
    (1..=SLOTS).rev().find(|step| SLOTS.is_multiple_of(*step) && *step <= wanted).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_come_at_least_as_often_as_they_are_asked_for() {
        let pause = Duration::from_millis(250);
        for (millis, expected) in [(100, 1), (250, 1), (1000, 4), (1500, 5), (3000, 10), (9999, 20), (10_000, 40)] {
            assert_eq!(step(Duration::from_millis(millis), pause), expected, "{millis} ms");
        }
        assert_eq!(step(Duration::from_secs(3600), pause), SLOTS);
    }
}
