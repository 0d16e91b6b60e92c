//! The output of workloads as OTLP log records.
//!
//! Bounded: whoever reads asks [`Records::room`] first and waits when there is none. What a collector does not take in
//! time is lost to it, and is still in the log files.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use opentelemetry::Key;
use opentelemetry::logs::{AnyValue, LogRecord as _, Logger as _, LoggerProvider as _, Severity};
use opentelemetry_sdk::logs::{SdkLogger, SdkLoggerProvider};

use crate::export::Health;

/// Records that wait for the collector at most.
pub(crate) const QUEUE: usize = 4096;
/// Records that are sent together at most: with the longest lines they have to fit into the 4 MiB that collectors take.
pub(crate) const BATCH: usize = 64;
/// How long records wait for company.
pub(crate) const DELAY: Duration = Duration::from_millis(500);

/// One line of a workload.
#[derive(Clone, Copy, Debug)]
pub struct Output<'a> {
    /// Namespace of the instance.
    pub namespace: &'a str,
    /// Name of the process it belongs to.
    pub process: &'a str,
    /// Name of the instance.
    pub instance: &'a str,
    /// Uid of the instance.
    pub uid: &'a str,
    /// Number of the attempt.
    pub attempt: u64,
    /// Whether it came by standard error.
    pub stderr: bool,
    /// When, nanoseconds since 1970.
    pub at_nanos: i64,
    /// The line; bytes that are no UTF-8 are replaced.
    pub line: &'a [u8],
}

/// Where records go. Clones share one queue.
#[derive(Clone, Debug)]
pub struct Records {
    logger: SdkLogger,
    health: Arc<Health>,
}

impl Records {
    pub(crate) fn new(provider: &SdkLoggerProvider, health: &Arc<Health>) -> Self {
        Self { logger: provider.logger("ostler.output"), health: Arc::clone(health) }
    }

    /// How many records may be given before some have to be sent.
    pub fn room(&self) -> usize {
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let health = &self.health;
        let waiting =
            load(&health.records_made).saturating_sub(load(&health.records_sent) + load(&health.records_failed));
        QUEUE.saturating_sub(usize::try_from(waiting).unwrap_or(usize::MAX))
    }

    /// Puts a line into the queue. Never blocks.
    pub fn put(&self, output: &Output<'_>) {
        let mut record = self.logger.create_log_record();
        let at = SystemTime::UNIX_EPOCH + Duration::from_nanos(u64::try_from(output.at_nanos).unwrap_or_default());
        record.set_timestamp(at);
        record.set_observed_timestamp(SystemTime::now());
        let (severity, stream) = if output.stderr { (Severity::Warn, "stderr") } else { (Severity::Info, "stdout") };
        record.set_severity_number(severity);
        record.set_body(AnyValue::from(String::from_utf8_lossy(output.line).into_owned()));
        let text = |text: &str| AnyValue::from(text.to_owned());
        record.add_attributes([
            (Key::from_static_str("log.iostream"), text(stream)),
            (Key::from_static_str("ostler.namespace"), text(output.namespace)),
            (Key::from_static_str("ostler.process"), text(output.process)),
            (Key::from_static_str("ostler.instance"), text(output.instance)),
            (Key::from_static_str("ostler.instance.uid"), text(output.uid)),
            (Key::from_static_str("ostler.attempt"), AnyValue::Int(i64::try_from(output.attempt).unwrap_or(i64::MAX))),
        ]);
        self.health.records_made.fetch_add(1, Ordering::Relaxed);
        self.logger.emit(record);
    }
}
