//! Between the queues and the collector: a limit on every attempt, and a count of what became of what.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::logs::{LogBatch, LogExporter};
use opentelemetry_sdk::metrics::Temporality;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::trace::{Span, SpanData, SpanExporter, SpanProcessor};
use tracing::{info, warn};

use crate::{ATTEMPT, Metrics};

/// What became of everything that was to be exported, counted since the process began.
#[derive(Debug, Default)]
pub(crate) struct Health {
    pub(crate) spans_ended: AtomicU64,
    pub(crate) spans_sent: AtomicU64,
    pub(crate) spans_failed: AtomicU64,
    pub(crate) records_made: AtomicU64,
    pub(crate) records_sent: AtomicU64,
    pub(crate) records_failed: AtomicU64,
    pub(crate) pushes_sent: AtomicU64,
    pub(crate) pushes_failed: AtomicU64,
    down: AtomicBool,
}

impl Health {
    /// Says once when the collector stops answering, and once when it answers again.
    fn judge(&self, signal: &'static str, result: &OTelSdkResult) {
        match result {
            Ok(()) => {
                if self.down.swap(false, Ordering::Relaxed) {
                    info!(signal, "the collector takes telemetry again");
                }
            }
            Err(why) => {
                if !self.down.swap(true, Ordering::Relaxed) {
                    warn!(signal, %why, "the collector takes no telemetry; it is dropped until it does");
                }
            }
        }
    }

    pub(crate) fn observe(self: &Arc<Self>, metrics: &Metrics) {
        let health = Arc::clone(self);
        metrics.observe_counter(
            "ostler.telemetry.items",
            "{item}",
            "Spans, log records and metric pushes by what became of them; made less sent less failed is queued or dropped",
            move |see| {
                let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
                for (signal, outcome, counter) in [
                    ("traces", "made", &health.spans_ended),
                    ("traces", "sent", &health.spans_sent),
                    ("traces", "failed", &health.spans_failed),
                    ("logs", "made", &health.records_made),
                    ("logs", "sent", &health.records_sent),
                    ("logs", "failed", &health.records_failed),
                    ("metrics", "sent", &health.pushes_sent),
                    ("metrics", "failed", &health.pushes_failed),
                ] {
                    see(read(counter), &[("signal", signal), ("outcome", outcome)]);
                }
            },
        );
    }
}

/// An exporter that is given up on in time.
#[derive(Debug)]
pub(crate) struct Watched<E> {
    signal: &'static str,
    inner: E,
    health: Arc<Health>,
    runtime: tokio::runtime::Handle,
}

impl<E> Watched<E> {
    /// Has to be called on the runtime that the exporter uses.
    pub(crate) fn new(signal: &'static str, inner: E, health: &Arc<Health>) -> Self {
        Self { signal, inner, health: Arc::clone(health), runtime: tokio::runtime::Handle::current() }
    }

    /// The exporter's own limit counts from when it has a connection; this one counts from the beginning.
    async fn limited(
        &self,
        count: usize,
        work: impl Future<Output = OTelSdkResult>,
        sent: &AtomicU64,
        failed: &AtomicU64,
    ) -> OTelSdkResult {
        let limit = {
            let _entered = self.runtime.enter();
            tokio::time::sleep(ATTEMPT)
        };
        let result = tokio::select! {
            result = work => result,
            () = limit => Err(OTelSdkError::Timeout(ATTEMPT)),
        };
        let counter = if result.is_ok() { sent } else { failed };
        counter.fetch_add(count as u64, Ordering::Relaxed);
        self.health.judge(self.signal, &result);
        result
    }
}

impl<E: SpanExporter> SpanExporter for Watched<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len();
        let health = &self.health;
        self.limited(count, self.inner.export(batch), &health.spans_sent, &health.spans_failed).await
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

impl<E: LogExporter> LogExporter for Watched<E> {
    async fn export(&self, batch: LogBatch<'_>) -> OTelSdkResult {
        let count = batch.iter().count();
        let health = &self.health;
        self.limited(count, self.inner.export(batch), &health.records_sent, &health.records_failed).await
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

impl<E: PushMetricExporter> PushMetricExporter for Watched<E> {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        let health = &self.health;
        self.limited(1, self.inner.export(metrics), &health.pushes_sent, &health.pushes_failed).await
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn temporality(&self) -> Temporality {
        self.inner.temporality()
    }
}

/// Counts spans on their way into the queue.
#[derive(Debug)]
pub(crate) struct Counted<P> {
    inner: P,
    health: Arc<Health>,
}

impl<P> Counted<P> {
    pub(crate) fn new(inner: P, health: &Arc<Health>) -> Self {
        Self { inner, health: Arc::clone(health) }
    }
}

impl<P: SpanProcessor> SpanProcessor for Counted<P> {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.inner.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        self.health.spans_ended.fetch_add(1, Ordering::Relaxed);
        self.inner.on_end(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}
