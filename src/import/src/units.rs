//! Times, sizes and truth values as the other managers write them.

use ostler_core::Span;

/// `true`, `yes`, `on`, `1` and their opposites.
pub(crate) fn flag(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" | "y" | "t" => Some(true),
        "false" | "no" | "off" | "0" | "n" | "f" => Some(false),
        _ => None,
    }
}

/// A number with units, as Go and systemd write it: `1m30s`, `5min 20s`, `2 weeks`. What follows `unit`, the seconds
/// of a bare number, is what a manager takes a number without unit for.
fn span(text: &str, bare: f64) -> Option<Span> {
    let mut rest = text.trim();
    if rest.is_empty() {
        return None;
    }
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number: f64 = rest[..digits].parse().ok()?;
        rest = rest[digits..].trim_start();
        let letters = rest.find(|c: char| !c.is_alphabetic()).unwrap_or(rest.len());
        let unit = match &rest[..letters] {
            "" => bare,
            "ns" => 1e-9,
            "us" | "µs" | "μs" | "usec" => 1e-6,
            "ms" | "msec" => 1e-3,
            "s" | "sec" | "second" | "seconds" => 1.0,
            "m" | "min" | "minute" | "minutes" => 60.0,
            "h" | "hr" | "hour" | "hours" => 3600.0,
            "d" | "day" | "days" => 86_400.0,
            "w" | "week" | "weeks" => 604_800.0,
            _ => return None,
        };
        seconds += number * unit;
        rest = rest[letters..].trim_start();
    }
    let micros = (seconds * 1e6).round();
    (0.0..9e18).contains(&micros).then(|| Span::from_micros(micros as u64))
}

/// A duration with units; a bare number is seconds.
pub(crate) fn duration(text: &str) -> Option<Span> {
    span(text, 1.0)
}

/// A duration with units; a bare number is milliseconds.
pub(crate) fn millis(text: &str) -> Option<Span> {
    span(text, 0.001)
}

/// An amount of bytes: `50MB`, `512M`, `1G`, `64KiB`, powers of 1024 throughout.
pub(crate) fn bytes(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..digits].parse().ok()?;
    let unit: u64 = match text[digits..].trim().to_ascii_uppercase().as_str() {
        "" | "B" => 1,
        "K" | "KB" | "KIB" => 1 << 10,
        "M" | "MB" | "MIB" => 1 << 20,
        "G" | "GB" | "GIB" => 1 << 30,
        "T" | "TB" | "TIB" => 1 << 40,
        _ => return None,
    };
    let bytes = number * unit as f64;
    (0.0..9e18).contains(&bytes).then_some(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_are_read_as_their_managers_do() {
        for (text, millis) in [("10s", 10_000), ("1m30s", 90_000), ("5min 20s", 320_000), ("90", 90_000), ("0", 0)] {
            assert_eq!(duration(text), Some(Span::from_millis(millis)), "{text}");
        }
        assert_eq!(super::millis("1600"), Some(Span::from_millis(1600)));
        assert_eq!(super::millis("10s"), Some(Span::from_secs(10)));
        for text in ["", "soon", "5 parsecs", "-1s", "infinity"] {
            assert_eq!(duration(text), None, "{text}");
        }
        assert_eq!(bytes("50MB"), Some(50 << 20));
        assert_eq!(bytes("1.5G"), Some(3 << 29));
        assert_eq!(bytes("1048576"), Some(1 << 20));
        assert_eq!(bytes("1 TB"), Some(1 << 40));
        assert_eq!(bytes("much"), None);
    }
}
