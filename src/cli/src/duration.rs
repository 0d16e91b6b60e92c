//! Durations as people write and read them: "1h30m" on the command line, "3m20s" in tables.

use std::time::Duration;

/// Why a duration was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a duration; write for example 500ms, 30s, 5m, 1h30m or 2d")]
pub(crate) struct ParseError(String);

/// Reads "500ms", "30s", "5m", "1h30m", "2d"; "0" needs no unit.
pub(crate) fn parse(text: &str) -> Result<Duration, ParseError> {
    let error = || ParseError(text.to_owned());
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = 0.0_f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(error)?;
        let number: f64 = rest[..digits].parse().map_err(|_| error())?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = match &rest[..letters] {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "d" => 86400.0,
            _ => return Err(error()),
        };
        rest = &rest[letters..];
        total += number * unit;
    }
    if text.is_empty() {
        return Err(error());
    }
    Duration::try_from_secs_f64(total).map_err(|_| error())
}

/// kubectl's short form: two units where that tells something, one for longer times.
pub(crate) fn human(seconds: i64) -> String {
    if seconds < -1 {
        return "<invalid>".into();
    }
    let seconds = seconds.max(0);
    let two = |a: i64, unit: char, b: i64, small: char| {
        if b == 0 { format!("{a}{unit}") } else { format!("{a}{unit}{b}{small}") }
    };
    let minutes = seconds / 60;
    let hours = minutes / 60;
    if seconds < 120 {
        format!("{seconds}s")
    } else if minutes < 10 {
        two(minutes, 'm', seconds % 60, 's')
    } else if minutes < 180 {
        format!("{minutes}m")
    } else if hours < 8 {
        two(hours, 'h', minutes % 60, 'm')
    } else if hours < 48 {
        format!("{hours}h")
    } else if hours < 192 {
        two(hours / 24, 'd', hours % 24, 'h')
    } else if hours < 24 * 365 * 2 {
        format!("{}d", hours / 24)
    } else if hours < 24 * 365 * 8 {
        two(hours / 24 / 365, 'y', hours / 24 % 365, 'd')
    } else {
        format!("{}y", hours / 24 / 365)
    }
}

/// Time since an RFC 3339 timestamp, as [`human`] writes it; "<unknown>" without one.
pub(crate) fn age(timestamp: Option<&str>, now: jiff::Timestamp) -> String {
    match timestamp.and_then(|text| text.parse::<jiff::Timestamp>().ok()) {
        Some(then) => human(now.as_second() - then.as_second()),
        None => "<unknown>".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_is_read() {
        assert_eq!(parse("0"), Ok(Duration::ZERO));
        assert_eq!(parse("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse("2d"), Ok(Duration::from_secs(172_800)));
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in ["", "5", "s", "-1s", "5x", "1s5", "1..5s", "99999999999999999999d"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn ages_read_as_in_kubectl() {
        for (seconds, text) in [
            (-5, "<invalid>"),
            (-1, "0s"),
            (119, "119s"),
            (120, "2m"),
            (200, "3m20s"),
            (600, "10m"),
            (3 * 3600, "3h"),
            (5 * 3600 + 60, "5h1m"),
            (8 * 3600 + 60, "8h"),
            (49 * 3600, "2d1h"),
            (48 * 3600, "2d"),
            (9 * 86400, "9d"),
            (3 * 365 * 86400, "3y"),
        ] {
            assert_eq!(human(seconds), text);
        }
    }

    #[test]
    fn a_missing_timestamp_has_an_unknown_age() {
        let now = "2026-01-01T00:01:30Z".parse().unwrap();
        assert_eq!(age(None, now), "<unknown>");
        assert_eq!(age(Some("yesterday"), now), "<unknown>");
        assert_eq!(age(Some("2026-01-01T00:00:00Z"), now), "90s");
    }
}
