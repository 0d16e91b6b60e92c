//! Folds samples of usage through the soft thresholds of an instance: which levels are exceeded, and for how long.
//!
//! Pure: samples bring their time along, by a clock that nobody sets. What follows is decided by the planner.
//!
//! A level counts as exceeded, and as not exceeded any more, when that has lasted for the spike tolerance: neither a
//! spike nor a dip that is shorter changes anything. Within the startup grace nothing counts.

use crate::kinds::{Exceeded, Level, Measure, ProcessSpec, ResourcesStatus, Restart, Threshold};
use crate::time::{Span, Timestamp};
use crate::usage::Usage;

/// What is watched, and how patiently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// After the start of an attempt nothing counts for so long.
    pub startup_grace: Span,
    /// What lasts for a shorter time does not count.
    pub spike_tolerance: Span,
    /// The levels, each with the time for which its critical one has to be exceeded.
    pub thresholds: Box<[(Threshold, Span)]>,
}

impl Rules {
    /// Those of an instance; none when it has no thresholds.
    pub fn of(spec: &ProcessSpec, status: Option<&ResourcesStatus>) -> Option<Self> {
        let thresholds = spec.thresholds()?;
        let without = Restart::default();
        let restart = spec.restart.as_deref().unwrap_or(&without);
        let raise = |measure, amount: u64| {
            let percent = status.map_or(100, |status| status.percent(measure));
            u64::try_from(u128::from(amount) * u128::from(percent) / 100).unwrap_or(u64::MAX)
        };
        let raised = |threshold: Threshold| Threshold {
            warning: threshold.warning.map(|amount| raise(threshold.measure, amount)),
            critical: threshold.critical.map(|amount| raise(threshold.measure, amount)),
            ..threshold
        };
        Some(Self {
            startup_grace: restart.startup_grace,
            spike_tolerance: restart.spike_tolerance,
            thresholds: thresholds
                .iter()
                .map(|threshold| (raised(threshold), threshold.sustained.unwrap_or(restart.sustained_violation)))
                .collect(),
        })
    }

    /// Whether open files are among what is watched: they cost more to count.
    pub fn counts_files(&self) -> bool {
        self.thresholds.iter().any(|(threshold, _)| threshold.measure == Measure::OpenFiles)
    }
}

/// What a sample says of something; none when the kernel does not tell.
pub fn used(usage: &Usage, measure: Measure) -> Option<u64> {
    match measure {
        Measure::Memory => Some(usage.rss),
        Measure::Cpu => usage.cpu.map(u64::from),
        Measure::Processes => Some(usage.processes.into()),
        Measure::Threads => Some(usage.threads.into()),
        Measure::OpenFiles => usage.open_files.map(u64::from),
    }
}

/// One level of one threshold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Boundary {
    /// Exceeded since then.
    since: Option<Timestamp>,
    /// Since then the samples say otherwise.
    turned: Option<Timestamp>,
}

impl Boundary {
    /// Takes in whether a sample exceeds it; true when that counts now, and did not before.
    fn fold(&mut self, exceeds: bool, tolerance: Span, now: Timestamp) -> bool {
        if exceeds == self.since.is_some() {
            self.turned = None;
            return false;
        }
        let turned = *self.turned.get_or_insert(now);
        if now.since(turned) < tolerance {
            return false;
        }
        self.turned = None;
        self.since = exceeds.then_some(turned);
        exceeds
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct State {
    warning: Boundary,
    critical: Boundary,
    /// What was told last.
    told: (Level, bool),
    /// When that began.
    since: Timestamp,
    /// How much was used when that was told.
    used: u64,
}

/// The thresholds of one attempt, and what its samples said so far.
#[derive(Clone, Debug)]
pub struct Watch {
    rules: Rules,
    /// Until then nothing counts.
    begins: Timestamp,
    states: Box<[State]>,
}

impl Watch {
    /// Watches an attempt that was started at `started_at`, and of which this is known already.
    pub fn new(rules: Rules, started_at: Timestamp, known: &[Exceeded]) -> Self {
        let state = |measure: Measure| {
            let Some(known) = known.iter().find(|known| known.resource == measure) else { return State::default() };
            let since = |least| (known.level >= least).then_some(known.since);
            State {
                warning: Boundary { since: since(Level::Warning), turned: None },
                critical: Boundary { since: since(Level::Critical), turned: None },
                told: (known.level, known.sustained),
                since: known.since,
                used: known.used,
            }
        };
        let states = rules.thresholds.iter().map(|(threshold, _)| state(threshold.measure)).collect();
        Self { begins: started_at + rules.startup_grace, rules, states }
    }

    /// Takes in a sample; whether that changes what is [exceeded](Self::exceeded).
    pub fn fold(&mut self, usage: &Usage, now: Timestamp) -> bool {
        if now < self.begins {
            return false;
        }
        let mut changed = false;
        for ((threshold, lasting), state) in self.rules.thresholds.iter().zip(&mut self.states) {
            let Some(used) = used(usage, threshold.measure) else { continue };
            let exceeds = |level: Option<u64>| level.is_some_and(|level| used > level);
            let tolerance = self.rules.spike_tolerance;
            let is_critical = exceeds(threshold.critical);
            state.critical.fold(is_critical, tolerance, now);
            // What is critical is more than a warning, whatever level that has.
            state.warning.fold(is_critical || exceeds(threshold.warning), tolerance, now);
            let (level, since) = match (state.critical.since, state.warning.since) {
                (Some(since), _) => (Level::Critical, since),
                (None, Some(since)) if threshold.warning.is_some() => (Level::Warning, since),
                (None, _) => (Level::Normal, now),
            };
            // What is over its level no more at this moment is not acted upon.
            let before = state.told.1 && state.told.0 == level;
            let sustained = level == Level::Critical && (before || is_critical && now.since(since) >= *lasting);
            if state.told != (level, sustained) {
                state.told = (level, sustained);
                (state.since, state.used) = (since, used);
                changed = true;
            }
        }
        changed
    }

    /// Everything of which more is used than a level.
    pub fn exceeded(&self) -> Vec<Exceeded> {
        let all = self.rules.thresholds.iter().zip(&self.states);
        all.filter(|(_, state)| state.told.0 != Level::Normal)
            .map(|((threshold, _), state)| Exceeded {
                resource: threshold.measure,
                level: state.told.0,
                since: state.since,
                used: state.used,
                sustained: state.told.1,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::kinds::{Adjusted, ViolationPolicy};

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    fn spec(resources: &serde_json::Value, restart: &serde_json::Value) -> ProcessSpec {
        serde_json::from_value(json!({"command": ["x"], "resources": {"thresholds": resources}, "restart": restart}))
            .unwrap()
    }

    fn memory(bytes: u64) -> Usage {
        Usage { rss: bytes, ..Usage::default() }
    }

    /// What is told of memory with levels 100 and 200 after each sample, ten seconds apart: w, c, C when sustained.
    fn told(restart: &serde_json::Value, samples: &[u64]) -> String {
        let spec =
            spec(&json!({"memory": {"warning": 100, "critical": 200, "policy": "Restart", "for": "30s"}}), restart);
        let mut watch = Watch::new(Rules::of(&spec, None).unwrap(), at(0), &[]);
        let mut told = '.';
        let each = |(index, bytes): (usize, &u64)| {
            let before = told;
            let changed = watch.fold(&memory(*bytes), at(10 * index as i64));
            told = match watch.exceeded().first() {
                None => '.',
                Some(Exceeded { level: Level::Critical, sustained: true, .. }) => 'C',
                Some(Exceeded { level: Level::Critical, .. }) => 'c',
                Some(_) => 'w',
            };
            assert_eq!(changed, told != before, "sample {index} of {samples:?}");
            told
        };
        samples.iter().enumerate().map(each).collect()
    }

    const EAGER: &str = r#"{"startupGrace": "0s", "spikeTolerance": "0s"}"#;
    const CALM: &str = r#"{"startupGrace": "0s", "spikeTolerance": "20s"}"#;

    #[test]
    fn levels_are_exceeded_and_last() {
        let eager: serde_json::Value = serde_json::from_str(EAGER).unwrap();
        let calm: serde_json::Value = serde_json::from_str(CALM).unwrap();
        for (restart, samples, expected) in [
            (&eager, &[100, 101, 200, 201, 100][..], ".wwc."),
            (&eager, &[300, 300, 300, 300, 300, 50], "cccCC."),
            // A dip begins the time anew without tolerance, and is not one with it.
            (&eager, &[300, 300, 50, 300, 300, 300, 300], "cc.cccC"),
            (&calm, &[300, 300, 300, 50, 300, 300], "..ccCC"),
            // Neither is a spike.
            (&calm, &[50, 300, 300, 50, 50, 50], "......"),
            (&calm, &[150, 150, 150, 300, 300, 300, 300, 50, 50, 50], "..wwwcCCC."),
            // At the moment it would act, it is below.
            (&calm, &[300, 300, 300, 50, 50, 50], "..ccc."),
        ] {
            assert_eq!(told(restart, samples), expected, "{restart} {samples:?}");
        }
    }

    #[test]
    fn nothing_counts_within_the_startup_grace() {
        let restart = json!({"startupGrace": "35s", "spikeTolerance": "0s"});
        assert_eq!(told(&restart, &[300, 300, 300, 300, 300, 300, 300, 300]), "....cccC");
    }

    #[test]
    fn the_defaults_are_two_minutes_five_minutes_and_half_a_minute() {
        let spec: ProcessSpec = serde_json::from_value(
            json!({"command": ["x"], "resources": {"thresholds": {"cpu": {"critical": "500m"}}}}),
        )
        .unwrap();
        let rules = Rules::of(&spec, None).unwrap();
        assert_eq!((rules.startup_grace, rules.spike_tolerance), (Span::from_secs(120), Span::from_secs(30)));
        let [(threshold, lasting)] = &*rules.thresholds else { panic!("one threshold") };
        assert_eq!((threshold.policy, *lasting), (ViolationPolicy::Alert, Span::from_secs(300)));
    }

    #[test]
    fn what_was_published_is_gone_on_from() {
        let spec = spec(
            &json!({"memory": {"critical": 200, "for": "1m"}, "threads": {"warning": 5}, "openFiles": {"warning": 5}}),
            &json!({"startupGrace": "0s", "spikeTolerance": "0s"}),
        );
        let rules = Rules::of(&spec, None).unwrap();
        assert!(rules.counts_files());
        let mut first = Watch::new(rules.clone(), at(0), &[]);
        // Open files are not known, which says nothing.
        let usage = Usage { rss: 300, threads: 9, ..Usage::default() };
        assert!(first.fold(&usage, at(100)));
        let mut second = Watch::new(rules, at(0), &first.exceeded());
        assert_eq!(second.exceeded(), first.exceeded());
        assert_eq!(second.exceeded().len(), 2);
        assert!(!second.fold(&usage, at(150)));
        assert!(second.fold(&usage, at(160)));
        assert!(second.exceeded()[0].sustained);
        assert_eq!(second.exceeded()[0].since, at(100));
    }

    #[test]
    fn levels_are_raised_with_what_was_adjusted() {
        let spec = spec(&json!({"memory": {"warning": 100, "critical": 200}, "cpu": {"critical": "1"}}), &json!({}));
        let adjusted = vec![Adjusted { resource: Measure::Memory, percent: 150 }];
        let rules = Rules::of(&spec, Some(&ResourcesStatus { adjusted, ..ResourcesStatus::default() })).unwrap();
        let levels: Vec<_> = rules.thresholds.iter().map(|(level, _)| (level.warning, level.critical)).collect();
        assert_eq!(levels, [(Some(150), Some(300)), (None, Some(1000))]);
    }

    proptest! {
        #[test]
        fn a_warning_is_never_critical_and_only_lasting_excess_is_sustained(
            samples in proptest::collection::vec(0u64..400, 0..60),
        ) {
            let told = told(&serde_json::from_str(CALM).unwrap(), &samples);
            for (index, now) in told.bytes().enumerate() {
                if now == b'C' && !told[..index].ends_with('C') {
                    // 30 s of it, the only dips in between shorter than 20 s.
                    let recent = &samples[index - 3..=index];
                    prop_assert!(samples[index] > 200 && recent.iter().filter(|bytes| **bytes > 200).count() >= 2);
                }
                if samples[..=index].iter().all(|bytes| *bytes <= 200) {
                    prop_assert!(now == b'.' || now == b'w');
                }
            }
        }
    }
}
