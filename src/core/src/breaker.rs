//! The circuit breaker: after too many failures, no starts for a while, then one trial.

use crate::kinds::{Breaker, CircuitBreaker};
use crate::time::Timestamp;

/// What a failure or a lasting success did to the breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing anybody has to know.
    None,
    /// It opened, or opened again after a failed trial.
    Opened,
    /// The trial lasted; it closed.
    Closed,
}

/// Takes note of a failure at `at`.
pub fn failed(breaker: &mut Breaker, policy: &CircuitBreaker, at: Timestamp) -> Change {
    breaker.failures.retain(|earlier| at.since(*earlier) < policy.window);
    breaker.failures.push(at);
    if breaker.half_open || breaker.failures.len() >= policy.failures as usize {
        *breaker = Breaker { failures: Vec::new(), open_until: Some(at + policy.cooldown), half_open: false };
        return Change::Opened;
    }
    Change::None
}

/// Takes note of a start: the first one after the cooldown is the trial.
pub fn started(breaker: &mut Breaker) {
    if breaker.open_until.take().is_some() {
        breaker.half_open = true;
    }
}

/// Takes note that the attempt begun at `since` still runs at `now`.
pub fn running(breaker: &mut Breaker, policy: &CircuitBreaker, since: Timestamp, now: Timestamp) -> Change {
    if breaker.half_open && now >= since + policy.window {
        *breaker = Breaker::default();
        return Change::Closed;
    }
    Change::None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Span;

    fn at(secs: i64) -> Timestamp {
        Timestamp::from_micros(secs * 1_000_000)
    }

    fn policy() -> CircuitBreaker {
        CircuitBreaker { failures: 3, window: Span::from_secs(60), cooldown: Span::from_secs(300) }
    }

    #[test]
    fn opens_at_the_exact_count_within_the_window() {
        let mut breaker = Breaker::default();
        assert_eq!(failed(&mut breaker, &policy(), at(0)), Change::None);
        assert_eq!(failed(&mut breaker, &policy(), at(30)), Change::None);
        // The first one has left the window.
        assert_eq!(failed(&mut breaker, &policy(), at(60)), Change::None);
        assert_eq!(failed(&mut breaker, &policy(), at(61)), Change::Opened);
        assert_eq!(breaker.open_until, Some(at(361)));
    }

    #[test]
    fn a_failed_trial_opens_it_again_and_a_lasting_one_closes_it() {
        let open = Breaker { failures: Vec::new(), open_until: Some(at(300)), half_open: false };
        let mut breaker = open.clone();
        started(&mut breaker);
        assert!(breaker.half_open);
        assert_eq!(failed(&mut breaker, &policy(), at(301)), Change::Opened);
        assert_eq!(breaker.open_until, Some(at(601)));

        let mut breaker = open;
        started(&mut breaker);
        assert_eq!(running(&mut breaker, &policy(), at(300), at(359)), Change::None);
        assert_eq!(running(&mut breaker, &policy(), at(300), at(360)), Change::Closed);
        assert!(breaker.is_idle());
    }
}
