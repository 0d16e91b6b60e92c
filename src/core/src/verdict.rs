//! Folds the results of a probe through its thresholds into a verdict.
//!
//! Pure and small: two counters and a flag or two. The thresholds are exact: with a failure threshold of three, the
//! third failure in a row is the one that fails, and no success before it is forgotten or counted twice.

use crate::kinds::{Health, Probe, ProbeStatus};

/// What one check came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All is well.
    Passed(String),
    /// It is not; why.
    Failed(String),
    /// It could not be run, which says nothing about the process; why.
    CannotRun(String),
}

impl Outcome {
    /// What it says.
    pub fn output(&self) -> &str {
        match self {
            Self::Passed(output) | Self::Failed(output) | Self::CannotRun(output) => output,
        }
    }

    /// One word for telemetry.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Passed(_) => "passed",
            Self::Failed(_) => "failed",
            Self::CannotRun(_) => "cannot_run",
        }
    }
}

/// The results of a probe so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// What the thresholds last decided.
    settled: Option<bool>,
    /// The last check could not be run.
    blind: bool,
    successes: u32,
    failures: u32,
    checks: u64,
    failed: u64,
}

impl Tally {
    /// Goes on from what was published.
    pub fn resume(status: &ProbeStatus) -> Self {
        Self {
            settled: match (status.passed, status.verdict) {
                (true, _) => Some(true),
                (false, Health::Failed) => Some(false),
                (false, Health::Unknown | Health::Healthy | Health::Warning | Health::Critical) => None,
            },
            blind: false,
            successes: status.successes,
            failures: status.failures,
            checks: status.checks,
            failed: status.failed,
        }
    }

    /// Takes in a result.
    pub fn fold(&mut self, outcome: &Outcome, probe: &Probe) {
        self.checks += 1;
        self.blind = matches!(outcome, Outcome::CannotRun(_));
        match outcome {
            Outcome::Passed(_) => {
                self.failures = 0;
                self.successes = self.successes.saturating_add(1).min(probe.success_threshold);
                if self.successes >= probe.success_threshold {
                    self.settled = Some(true);
                }
            }
            Outcome::Failed(_) => {
                self.failed += 1;
                self.successes = 0;
                self.failures = self.failures.saturating_add(1).min(probe.failure_threshold);
                if self.failures >= probe.failure_threshold {
                    self.settled = Some(false);
                }
            }
            // Neither ends a row of the others: there was no look.
            Outcome::CannotRun(_) => {}
        }
    }

    /// Whether the last check could not be run.
    pub fn is_blind(&self) -> bool {
        self.blind
    }

    /// Whether it counts as passed.
    pub fn passed(&self) -> bool {
        self.settled == Some(true)
    }

    /// The verdict.
    pub fn health(&self, probe: &Probe) -> Health {
        match self.settled {
            _ if self.blind => Health::Unknown,
            Some(false) => Health::Failed,
            Some(true) | None if self.failures > 0 => {
                if self.failures + 1 >= probe.failure_threshold {
                    Health::Critical
                } else {
                    Health::Warning
                }
            }
            Some(true) => Health::Healthy,
            None => Health::Unknown,
        }
    }

    /// As it is published; `since` is left out.
    pub fn status(&self, probe: &Probe, output: &str) -> ProbeStatus {
        ProbeStatus {
            verdict: self.health(probe),
            passed: self.passed(),
            since: None,
            output: shorten(output).to_owned(),
            checks: self.checks,
            failed: self.failed,
            failures: self.failures,
            successes: self.successes,
        }
    }
}

/// The longest output that is published, bytes.
pub const OUTPUT: usize = 256;

/// At most [`OUTPUT`] bytes of a text, whole characters.
pub fn shorten(text: &str) -> &str {
    let text = text.trim();
    let mut end = text.len().min(OUTPUT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn probe(failure_threshold: u32, success_threshold: u32) -> Probe {
        Probe { failure_threshold, success_threshold, ..Probe::default() }
    }

    /// The verdicts after each of the results: `+` passed, `-` failed, `?` cannot run.
    fn verdicts(probe: &Probe, results: &str) -> String {
        let mut tally = Tally::default();
        let mut verdicts = String::new();
        for result in results.chars() {
            tally.fold(&outcome(result), probe);
            verdicts.push(match tally.health(probe) {
                Health::Unknown => 'u',
                Health::Healthy => 'h',
                Health::Warning => 'w',
                Health::Critical => 'c',
                Health::Failed => 'f',
            });
        }
        verdicts
    }

    fn outcome(result: char) -> Outcome {
        match result {
            '+' => Outcome::Passed(String::new()),
            '-' => Outcome::Failed(String::new()),
            _ => Outcome::CannotRun(String::new()),
        }
    }

    #[test]
    fn thresholds_are_exact_to_the_count() {
        for (failure, success, results, expected) in [
            (3, 1, "+", "h"),
            (3, 1, "---", "wcf"),
            (3, 1, "--+--+---", "wchwchwcf"),
            (1, 1, "-+-", "fhf"),
            (2, 1, "--", "cf"),
            (5, 1, "-----", "wwwcf"),
            (3, 2, "++", "uh"),
            (3, 2, "+-++", "uwuh"),
            (3, 2, "---+++", "wcffhh"),
            (3, 3, "+++---++-+++", "uuhwcffffffh"),
            // Once healthy, one success ends a row of failures that was too short.
            (3, 2, "++--+", "uhwch"),
            (3, 1, "?", "u"),
            (3, 1, "+?+", "huh"),
            // A check that cannot be run neither adds to a row nor ends it.
            (3, 1, "-?-?-", "wucuf"),
            (1, 1, "??????-", "uuuuuuf"),
        ] {
            assert_eq!(verdicts(&probe(failure, success), results), expected, "{failure}/{success} {results}");
        }
    }

    #[test]
    fn what_was_published_is_gone_on_from() {
        let probe = probe(4, 2);
        for results in ["", "+", "++", "++---", "----", "----+", "+-"] {
            let mut tally = Tally::default();
            for result in results.chars() {
                tally.fold(&outcome(result), &probe);
            }
            assert_eq!(Tally::resume(&tally.status(&probe, "")), tally, "{results}");
        }
    }

    #[test]
    fn output_is_cut_between_characters() {
        assert_eq!(shorten(" a\n"), "a");
        assert_eq!(shorten(&"ä".repeat(200)).len(), 256);
        assert_eq!(shorten(&format!("x{}", "ä".repeat(200))).len(), 255);
    }

    proptest! {
        #[test]
        fn failed_means_so_many_failures_in_a_row_and_nothing_else(
            failure in 1u32..6, success in 1u32..6, results in "[+\\-]{0,40}",
        ) {
            let probe = probe(failure, success);
            let found = verdicts(&probe, &results);
            let row = |end: usize, what: char| results[..end].chars().rev().take_while(|c| *c == what).count() as u32;
            let mut failed = false;
            for (index, verdict) in found.chars().enumerate() {
                if row(index + 1, '-') >= failure {
                    failed = true;
                } else if row(index + 1, '+') >= success {
                    failed = false;
                }
                prop_assert_eq!(verdict == 'f', failed);
            }
        }
    }
}
