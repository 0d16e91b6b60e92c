//! When a `CronJob` is due: cron patterns, intervals and single times, as data.
//!
//! Pure: the zone of the machine and the time are values. A pattern is read on the clock on the wall of its zone. Where
//! that clock jumps, the rules are those of Vixie cron: a fixed time of day in a skipped hour is due at the first moment
//! after it, one in a repeated hour the first time only; patterns with several times or wildcards do not run in a
//! skipped hour and run both times in a repeated one.

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::Zoned;
use jiff::tz::TimeZone;

use crate::kinds::CronJobSpec;
use crate::time::{Span, Timestamp};

/// When something is due.
#[derive(Clone, Debug)]
pub enum Schedule {
    /// When the clock on the wall shows what the pattern says.
    Cron(Box<(Cron, TimeZone)>),
    /// Again and again, so long after the last time.
    Every(Span),
    /// Once.
    Once(Timestamp),
}

/// Where a spec is wrong, as a path, and why.
pub type Wrong = (&'static str, String);

impl Schedule {
    /// The schedule of a spec. `local` is the zone of a pattern that names none; UTC without it.
    ///
    /// # Errors
    /// None or several of `schedule`, `every` and `once`; a pattern that is none or never comes; an unknown zone.
    pub fn of(spec: &CronJobSpec, local: Option<&TimeZone>) -> Result<Self, Wrong> {
        if spec.time_zone.is_some() && spec.schedule.is_none() {
            return Err(("spec.timeZone", "only makes sense with schedule".to_owned()));
        }
        match (&spec.schedule, spec.every, spec.once) {
            (Some(pattern), None, None) => {
                let zone = match &spec.time_zone {
                    Some(name) => TimeZone::get(name).map_err(|_| {
                        let message = format!("there is no time zone {name:?}; write it as Europe/Berlin or UTC");
                        ("spec.timeZone", message)
                    })?,
                    None => local.cloned().unwrap_or(TimeZone::UTC),
                };
                let cron = parse(pattern).map_err(|message| ("spec.schedule", message))?;
                Ok(Self::Cron(Box::new((cron, zone))))
            }
            (None, Some(every), None) if every < Span::from_secs(1) => {
                Err(("spec.every", "must be at least 1s".to_owned()))
            }
            (None, Some(every), None) => Ok(Self::Every(every)),
            (None, None, Some(once)) => Ok(Self::Once(once)),
            (None, None, None) => {
                Err(("spec", "one of schedule (\"0 3 * * *\"), every (\"5m\") and once is needed".to_owned()))
            }
            (Some(_), _, _) | (None, Some(_), Some(_)) => {
                Err(("spec", "only one of schedule, every and once can be given".to_owned()))
            }
        }
    }

    /// The latest time that is due after `since` and not after `now`: what was missed in between is one time.
    pub fn due(&self, since: Timestamp, now: Timestamp) -> Option<Timestamp> {
        if now <= since {
            return None;
        }
        match self {
            Self::Cron(cron) => {
                let (cron, zone) = &**cron;
                let found = cron.find_previous_occurrence(&zoned(now, zone)?, true).ok()?;
                Some(timestamp(&found)).filter(|at| *at > since && *at <= now)
            }
            Self::Every(every) => {
                let times = now.since(since).as_micros() / every.as_micros();
                (times > 0).then(|| since + Span::from_micros(times * every.as_micros()))
            }
            Self::Once(at) => Some(*at).filter(|at| *at > since && *at <= now),
        }
    }

    /// The first time after `now`; `since` is the last one that was acted on.
    pub fn next(&self, since: Timestamp, now: Timestamp) -> Option<Timestamp> {
        match self {
            Self::Cron(cron) => {
                let (cron, zone) = &**cron;
                Some(timestamp(&cron.find_next_occurrence(&zoned(now, zone)?, false).ok()?))
            }
            Self::Every(every) => {
                let times = now.since(since).as_micros() / every.as_micros() + 1;
                Some(since + Span::from_micros(times.saturating_mul(every.as_micros())))
            }
            Self::Once(at) => Some(*at).filter(|at| *at > now),
        }
    }
}

/// Reads a pattern of five fields, or six with seconds.
fn parse(pattern: &str) -> Result<Cron, String> {
    let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
    let wrong = |why: &dyn std::fmt::Display| {
        format!(
            "{pattern:?} is not a cron pattern ({why}); write five fields, or six with seconds, such as \"0 3 * * *\""
        )
    };
    let cron = parser.parse(pattern).map_err(|why| wrong(&why))?;
    // A leap day comes within eight years of any time.
    let from = zoned(Timestamp::from_micros(1_700_000_000_000_000), &TimeZone::UTC);
    match from.map(|from| cron.find_next_occurrence(&from, false)) {
        Some(Ok(_)) => Ok(cron),
        Some(Err(_)) | None => Err(format!("{pattern:?} never comes")),
    }
}

/// Whole seconds: a pattern knows nothing smaller.
fn zoned(at: Timestamp, zone: &TimeZone) -> Option<Zoned> {
    let second = jiff::Timestamp::from_second(at.as_micros().div_euclid(1_000_000)).ok()?;
    Some(second.to_zoned(zone.clone()))
}

fn timestamp(zoned: &Zoned) -> Timestamp {
    Timestamp::from_micros(zoned.timestamp().as_microsecond())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn cron(pattern: &str, zone: &str) -> Schedule {
        Schedule::Cron(Box::new((parse(pattern).unwrap(), TimeZone::get(zone).unwrap())))
    }

    /// Every time in a range, found forwards, with the offset of the zone.
    fn times(schedule: &Schedule, from: &str, to: &str) -> Vec<String> {
        let (mut now, end) = (at(from), at(to));
        let mut found = Vec::new();
        while let Some(next) = schedule.next(now, now).filter(|next| *next <= end) {
            // Looking back from any moment until the next one finds the same.
            assert_eq!(schedule.due(now, next), Some(next), "due at {next}");
            found.push(next.to_string()[..19].to_owned());
            now = next;
        }
        found
    }

    #[test]
    fn patterns_have_five_fields_or_six_with_seconds() {
        assert_eq!(
            times(&cron("*/20 * * * * *", "UTC"), "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"),
            ["2026-01-01T00:00:20", "2026-01-01T00:00:40", "2026-01-01T00:01:00"]
        );
        assert_eq!(
            times(&cron("30 9 * * MON-FRI", "UTC"), "2026-01-02T00:00:00Z", "2026-01-06T00:00:00Z"),
            ["2026-01-02T09:30:00", "2026-01-05T09:30:00"]
        );
        assert_eq!(
            times(&cron("@daily", "Asia/Kolkata"), "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"),
            ["2026-01-01T18:30:00"]
        );
        for bad in ["", "* * * *", "* * * * * * *", "61 * * * *", "x * * * *", "0 0 30 2 *"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_fixed_time_in_a_skipped_hour_runs_right_after_it() {
        // Berlin, 29 March 2026: 02:00 to 03:00 does not exist.
        assert_eq!(
            times(&cron("30 2 * * *", "Europe/Berlin"), "2026-03-27T12:00:00Z", "2026-03-31T00:00:00Z"),
            ["2026-03-28T01:30:00", "2026-03-29T01:00:00", "2026-03-30T00:30:00"]
        );
    }

    #[test]
    fn a_fixed_time_in_a_repeated_hour_runs_once_the_first_time() {
        // Berlin, 25 October 2026: 02:00 to 03:00 comes twice, first at UTC+2.
        assert_eq!(
            times(&cron("30 2 * * *", "Europe/Berlin"), "2026-10-23T12:00:00Z", "2026-10-27T00:00:00Z"),
            ["2026-10-24T00:30:00", "2026-10-25T00:30:00", "2026-10-26T01:30:00"]
        );
    }

    #[test]
    fn repeating_patterns_keep_their_distance_over_both_changes() {
        assert_eq!(
            times(&cron("*/30 * * * *", "Europe/Berlin"), "2026-03-29T00:00:00Z", "2026-03-29T02:00:00Z"),
            ["2026-03-29T00:30:00", "2026-03-29T01:00:00", "2026-03-29T01:30:00", "2026-03-29T02:00:00"]
        );
        assert_eq!(
            times(&cron("*/30 * * * *", "Europe/Berlin"), "2026-10-24T23:30:00Z", "2026-10-25T02:00:00Z"),
            [
                "2026-10-25T00:00:00",
                "2026-10-25T00:30:00",
                "2026-10-25T01:00:00",
                "2026-10-25T01:30:00",
                "2026-10-25T02:00:00"
            ]
        );
    }

    #[test]
    fn other_zones_change_elsewhere() {
        // New York, 8 March 2026; Lord Howe moves by half an hour, 4 October 2026 from 02:00 to 02:30.
        assert_eq!(
            times(&cron("30 2 * * *", "America/New_York"), "2026-03-07T12:00:00Z", "2026-03-10T00:00:00Z"),
            ["2026-03-08T07:00:00", "2026-03-09T06:30:00"]
        );
        assert_eq!(
            times(&cron("15 2 * * *", "Australia/Lord_Howe"), "2026-10-02T20:00:00Z", "2026-10-05T00:00:00Z"),
            ["2026-10-03T15:30:00", "2026-10-04T15:15:00"]
        );
    }

    #[test]
    fn what_was_missed_is_one_time_the_latest() {
        let hourly = cron("0 * * * *", "UTC");
        assert_eq!(
            hourly.due(at("2026-01-01T00:00:00Z"), at("2026-06-01T12:34:56Z")),
            Some(at("2026-06-01T12:00:00Z"))
        );
        assert_eq!(hourly.due(at("2026-01-01T12:00:00Z"), at("2026-01-01T12:59:59Z")), None);
        // A clock that was set back owes nothing.
        assert_eq!(hourly.due(at("2026-01-01T12:00:00Z"), at("2026-01-01T09:00:00Z")), None);
        let every = Schedule::Every(Span::from_secs(300));
        let start = at("2026-01-01T00:00:00Z");
        assert_eq!(every.due(start, at("2026-01-01T00:04:59Z")), None);
        assert_eq!(every.due(start, at("2026-01-01T01:02:00Z")), Some(at("2026-01-01T01:00:00Z")));
        assert_eq!(every.next(start, at("2026-01-01T01:02:00Z")), Some(at("2026-01-01T01:05:00Z")));
        let once = Schedule::Once(at("2026-01-01T12:00:00Z"));
        assert_eq!(once.due(start, at("2026-01-02T00:00:00Z")), Some(at("2026-01-01T12:00:00Z")));
        assert_eq!(once.due(at("2026-01-01T12:00:00Z"), at("2026-01-02T00:00:00Z")), None);
        assert_eq!(once.next(start, at("2026-01-02T00:00:00Z")), None);
    }
}
