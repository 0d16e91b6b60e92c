//! The time as the controller reads it, and steps of the system clock.

use std::time::{SystemTime, UNIX_EPOCH};

use ostler_core::{Span, Timestamp};
use tokio::time::Instant;

/// Where the time comes from.
#[derive(Debug)]
pub struct Clock {
    source: Source,
    /// The wall clock and the steady clock, read together.
    anchor: (Timestamp, Instant),
}

#[derive(Debug)]
enum Source {
    System,
    /// The wall clock follows tokio's, which tests can pause.
    Virtual,
}

/// A difference between wall clock and steady clock beyond which the wall clock must have been set.
const STEP: Span = Span::from_millis(500);

impl Clock {
    /// The machine's clocks.
    pub fn system() -> Self {
        Self { source: Source::System, anchor: (wall(), Instant::now()) }
    }

    /// A wall clock that begins at `start` and follows tokio's time.
    pub fn simulated(start: Timestamp) -> Self {
        Self { source: Source::Virtual, anchor: (start, Instant::now()) }
    }

    /// The wall clock's time.
    pub fn now(&self) -> Timestamp {
        match self.source {
            Source::System => wall(),
            Source::Virtual => self.steady(),
        }
    }

    /// What the wall clock would show had nobody set it.
    fn steady(&self) -> Timestamp {
        let elapsed = u64::try_from(self.anchor.1.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.anchor.0 + Span::from_micros(elapsed)
    }

    /// By how many microseconds the wall clock was set forward (or back) since the last call, if it was.
    pub(crate) fn step(&mut self) -> Option<i64> {
        let now = self.now();
        let difference = now.as_micros() - self.steady().as_micros();
        self.anchor = (now, Instant::now());
        (difference.unsigned_abs() > STEP.as_micros()).then_some(difference)
    }
}

/// The machine's wall clock.
pub(crate) fn wall() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}
