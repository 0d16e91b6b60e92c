//! What an instance uses of the machine, and where that leads.
//!
//! Pure: the samples are taken elsewhere. A history is one point a minute, so that a trend costs a few hundred bytes.

use crate::time::{Span, Timestamp};

/// What all processes of one instance use together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Usage {
    /// When it was read.
    pub at: Timestamp,
    /// User and system time so far, nanoseconds; never less than before within one attempt.
    pub cpu_time: u64,
    /// Thousandths of a core over the last interval; none before there are two samples.
    pub cpu: Option<u32>,
    /// Resident memory, bytes. Pages that processes share count for each of them.
    pub rss: u64,
    /// Processes that live.
    pub processes: u32,
    /// Their threads.
    pub threads: u32,
    /// Descriptors they hold open; none when the kernel does not tell.
    pub open_files: Option<u32>,
    /// What they caused to be read from and written to storage, bytes; none when the kernel does not tell.
    pub io: Option<Io>,
    /// What they sent and received.
    pub network: Network,
}

/// Bytes that were read from and written to storage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Io {
    /// Read.
    pub read: u64,
    /// Written.
    pub written: u64,
}

/// What is known of the network traffic of an instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// Not looked at yet.
    #[default]
    Unknown,
    /// It shares its network namespace with others, and the kernel counts by namespace only.
    Unsupported,
    /// It has a network namespace of its own: what went through its interfaces, loopback aside, bytes.
    Counted {
        /// Received.
        received: u64,
        /// Sent.
        sent: u64,
    },
}

/// One minute of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// Mean, thousandths of a core.
    pub cpu: u32,
    /// Greatest, KiB.
    pub rss_kib: u32,
}

/// The last half hour, a point a minute.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// Oldest first.
    points: Vec<Point>,
    /// Minutes since the epoch of the point under way.
    minute: i64,
    cpu_sum: u64,
    count: u32,
    rss_kib: u32,
}

impl History {
    /// How many points are kept.
    pub const POINTS: usize = 30;
    /// The time between two of them.
    pub const STEP: Span = Span::from_secs(60);

    /// Takes in a sample.
    pub fn push(&mut self, at: Timestamp, cpu: u32, rss: u64) {
        let minute = at.as_micros().div_euclid(Self::STEP.as_micros().cast_signed());
        if minute != self.minute {
            if self.count > 0 {
                if self.points.len() == Self::POINTS {
                    self.points.remove(0);
                }
                self.points.reserve_exact(1);
                let cpu = u32::try_from(self.cpu_sum / u64::from(self.count)).unwrap_or(u32::MAX);
                self.points.push(Point { cpu, rss_kib: self.rss_kib });
            }
            if minute != self.minute + 1 {
                // Nobody looked for a while, or the clock was set: a line through the gap would be invented.
                self.points.clear();
            }
            (self.minute, self.cpu_sum, self.count, self.rss_kib) = (minute, 0, 0, 0);
        }
        self.cpu_sum += u64::from(cpu);
        self.count += 1;
        self.rss_kib = self.rss_kib.max(u32::try_from(rss >> 10).unwrap_or(u32::MAX));
    }

    /// The minutes that are complete, oldest first.
    pub fn points(&self) -> &[Point] {
        &self.points
    }

    /// Where memory is going; none before there is enough to tell, or when it follows no line.
    pub fn memory_trend(&self, limit: Option<u64>) -> Option<Trend> {
        let bytes: Vec<f64> = self.points.iter().map(|point| f64::from(point.rss_kib) * 1024.0).collect();
        trend(&bytes, Self::STEP, limit)
    }
}

/// A straight line through the history of a quantity.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trend {
    /// Growth in an hour, in the unit of the quantity; negative when it shrinks.
    pub per_hour: f64,
    /// When a limit is reached if it goes on like that, from the last point on.
    pub until_limit: Option<Span>,
}

/// Fewer points than this are no trend.
const LEAST: usize = 5;
/// The share of the variance that the line must explain.
const FIT: f64 = 0.7;
/// Growth of less than this share of the mean in an hour is none.
const SLIGHT: f64 = 0.01;

/// The least-squares line through equally spaced values, when it describes them.
pub fn trend(values: &[f64], step: Span, limit: Option<u64>) -> Option<Trend> {
    if values.len() < LEAST {
        return None;
    }
    let count = values.len() as f64;
    let mean_x = (count - 1.0) / 2.0;
    let mean_y = values.iter().sum::<f64>() / count;
    let (mut xy, mut xx, mut yy) = (0.0, 0.0, 0.0);
    for (index, value) in values.iter().enumerate() {
        let (dx, dy) = (index as f64 - mean_x, value - mean_y);
        xy += dx * dy;
        xx += dx * dx;
        yy += dy * dy;
    }
    let slope = xy / xx;
    let per_hour = slope * 3_600_000_000.0 / step.as_micros().max(1) as f64;
    if yy == 0.0 || xy * xy / (xx * yy) < FIT || per_hour.abs() < mean_y * SLIGHT {
        return None;
    }
    let last = slope.mul_add(count - 1.0 - mean_x, mean_y);
    let until_limit = limit.filter(|_| slope > 0.0).map(|limit| {
        let steps = ((limit as f64 - last) / slope).max(0.0);
        Span::from_micros((steps * step.as_micros() as f64).min(1e18) as u64)
    });
    Some(Trend { per_hour, until_limit })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    const MI: f64 = 1_048_576.0;

    #[test]
    fn a_line_is_found_and_reaches_its_limit() {
        // 12 MiB an hour, from 100 MiB; 36 MiB are left after the last point.
        let values: Vec<f64> = (0..30).map(|minute| 100.0f64.mul_add(MI, f64::from(minute) * 0.2 * MI)).collect();
        let limit = (100.0 + 29.0 * 0.2 + 36.0) * MI;
        let found = trend(&values, Span::from_secs(60), Some(limit as u64)).unwrap();
        assert!((found.per_hour / MI - 12.0).abs() < 0.01, "{found:?}");
        assert_eq!(found.until_limit.unwrap().as_secs().div_ceil(60), 180, "{found:?}");
        assert_eq!(trend(&values, Span::from_secs(60), None).unwrap().until_limit, None);
    }

    #[test]
    fn noise_rest_and_too_little_are_no_trend() {
        let noise: Vec<f64> = (0..30).map(|n| if n % 2 == 0 { 90.0 } else { 110.0 }).collect();
        assert_eq!(trend(&noise, Span::from_secs(60), Some(1000)), None);
        assert_eq!(trend(&[5.0; 30], Span::from_secs(60), None), None);
        assert_eq!(trend(&[1.0, 2.0, 3.0, 4.0], Span::from_secs(60), None), None);
        assert_eq!(trend(&[], Span::from_secs(60), None), None);
        // Half a per mille an hour.
        let slight: Vec<f64> = (0..30).map(|n| f64::from(n).mul_add(0.000_01, 1.0)).collect();
        assert_eq!(trend(&slight, Span::from_secs(60), Some(2)), None);
    }

    #[test]
    fn what_shrinks_reaches_no_limit_and_what_is_over_has_reached_it() {
        let falling: Vec<f64> = (0..10).map(|n| 100.0 - f64::from(n)).collect();
        let found = trend(&falling, Span::from_secs(60), Some(200)).unwrap();
        assert!(found.per_hour < 0.0 && found.until_limit.is_none());
        let rising: Vec<f64> = (0..10).map(|n| 100.0 + f64::from(n)).collect();
        assert_eq!(trend(&rising, Span::from_secs(60), Some(50)).unwrap().until_limit, Some(Span::ZERO));
    }

    #[test]
    fn a_history_keeps_half_an_hour_and_begins_anew_after_a_gap() {
        let mut history = History::default();
        for sample in 0..6 * 40 {
            history.push(at(sample * 10), if sample % 2 == 0 { 100 } else { 300 }, (sample as u64 / 6) << 20);
        }
        assert_eq!(history.points().len(), History::POINTS);
        assert_eq!(history.points()[29], Point { cpu: 200, rss_kib: 38 << 10 });
        assert_eq!(history.points()[0].rss_kib, 9 << 10);
        assert!(history.memory_trend(None).is_some());
        history.push(at(40 * 60 + 300), 1, 1);
        assert!(history.points().is_empty());
    }
}
