//! Every metric that is measured where something happens, by name. Those that are read when somebody collects are
//! registered by [`Metrics::observe_gauge`] and [`Metrics::observe_counter`] where the value is known.
//!
//! Names are OpenTelemetry's (`ostler.queue.depth`, unit `s`); Prometheus sees `ostler_queue_depth`, `…_seconds`,
//! `…_total`. docs/telemetry.md lists all of them. The number of series of each is limited by a view, so a label may
//! be something that users chose, as the name of a process is.

use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram, Meter, MeterProvider as _};
use opentelemetry_sdk::metrics::SdkMeterProvider;

/// A label and its value.
pub type Label<'a> = (&'static str, &'a str);

/// How a callback reports a value and its labels.
pub type See<'a> = dyn FnMut(f64, &[Label<'_>]) + 'a;

/// Latencies of what takes microseconds to seconds, seconds.
const QUICK: [f64; 12] = [0.000_01, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.05, 0.25, 1.0];
/// Latencies of what takes milliseconds to minutes, seconds.
const SLOW: [f64; 13] = [0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 10.0, 60.0];
/// Lifetimes of processes, seconds.
const LIFETIMES: [f64; 6] = [1.0, 10.0, 60.0, 300.0, 900.0, 3600.0];

/// The instruments.
#[derive(Debug)]
pub struct Metrics {
    meter: Meter,
    events: Counter<u64>,
    restarts: Counter<u64>,
    lifetimes: Histogram<f64>,
    reconciles: Histogram<f64>,
    spawns: Histogram<f64>,
    stops: Histogram<f64>,
    probes: Histogram<f64>,
    verdicts: Counter<u64>,
    commits: Histogram<f64>,
    calls: Counter<u64>,
    call_times: Histogram<f64>,
}

impl Metrics {
    pub(crate) fn new(provider: &SdkMeterProvider) -> Self {
        let meter = provider.meter("ostler");
        let counter = |name: &'static str, unit: &'static str, description: &'static str| {
            meter.u64_counter(name).with_unit(unit).with_description(description).build()
        };
        let histogram = |name: &'static str, description: &'static str, buckets: &[f64]| {
            meter
                .f64_histogram(name)
                .with_unit("s")
                .with_description(description)
                .with_boundaries(buckets.to_vec())
                .build()
        };
        Self {
            events: counter("ostler.events", "{event}", "Events by topic and reason"),
            restarts: counter("ostler.process.restarts", "{restart}", "Restarts of instances by what made them end"),
            lifetimes: histogram("ostler.process.lifetime", "How long processes lived, at their end", &LIFETIMES),
            reconciles: histogram("ostler.reconcile.duration", "How long a look at an object took", &QUICK),
            spawns: histogram("ostler.spawn.duration", "From the decision to start until the process exists", &SLOW),
            stops: histogram("ostler.stop.duration", "From the decision to stop until the tree is gone", &SLOW),
            probes: histogram("ostler.probe.duration", "How long checks took, by kind and result", &SLOW),
            verdicts: counter("ostler.probe.verdicts", "{verdict}", "Changes of verdict by probe"),
            commits: histogram("ostler.store.commit.duration", "From submission of a commit to its outcome", &SLOW),
            calls: counter("ostler.api.calls", "{call}", "Calls of the API by method and code"),
            call_times: histogram("ostler.api.duration", "From a call of the API to its first answer", &SLOW),
            meter,
        }
    }

    /// An event was recorded: `topic` is what it is about, `event` its reason.
    pub fn event(&self, topic: &'static str, event: &'static str) {
        self.events.add(1, &[KeyValue::new("topic", topic), KeyValue::new("event", event)]);
    }

    /// An instance of `module` (`namespace/process`) was started again after an end for `reason`.
    pub fn restarted(&self, module: &str, reason: &str) {
        let labels = [KeyValue::new("module", module.to_owned()), KeyValue::new("reason", reason.to_owned())];
        self.restarts.add(1, &labels);
    }

    /// A process of `module` ended after so long.
    pub fn lived(&self, module: &str, seconds: f64) {
        self.lifetimes.record(seconds, &[KeyValue::new("module", module.to_owned())]);
    }

    /// An object of this kind was looked at.
    pub fn reconciled(&self, kind: &'static str, took: Duration) {
        self.reconciles.record(took.as_secs_f64(), &[KeyValue::new("kind", kind)]);
    }

    /// A start succeeded or failed.
    pub fn spawned(&self, result: &'static str, took: Duration) {
        self.spawns.record(took.as_secs_f64(), &[KeyValue::new("result", result)]);
    }

    /// A stop that was asked for is over.
    pub fn stopped(&self, reason: &'static str, seconds: f64) {
        self.stops.record(seconds, &[KeyValue::new("reason", reason)]);
    }

    /// One check of a probe: `probe` is what it decides ("liveness"), `mechanism` how it asks ("httpGet").
    pub fn probed(&self, probe: &'static str, mechanism: &'static str, result: &'static str, took: Duration) {
        let labels =
            [KeyValue::new("probe", probe), KeyValue::new("mechanism", mechanism), KeyValue::new("result", result)];
        self.probes.record(took.as_secs_f64(), &labels);
    }

    /// The verdict of a probe changed.
    pub fn verdict(&self, probe: &'static str, verdict: &'static str) {
        self.verdicts.add(1, &[KeyValue::new("probe", probe), KeyValue::new("verdict", verdict)]);
    }

    /// A commit of the store has its outcome.
    pub fn committed(&self, durability: &'static str, took: Duration) {
        self.commits.record(took.as_secs_f64(), &[KeyValue::new("durability", durability)]);
    }

    /// A call of the API was answered.
    pub(crate) fn called(&self, method: &str, code: &'static str, took: Duration) {
        let method = KeyValue::new("method", method.to_owned());
        self.call_times.record(took.as_secs_f64(), std::slice::from_ref(&method));
        self.calls.add(1, &[method, KeyValue::new("code", code)]);
    }

    /// A value that is read when somebody collects. What is not reported at one collection is gone from it.
    pub fn observe_gauge(
        &self,
        name: &'static str,
        unit: &'static str,
        description: &'static str,
        read: impl Fn(&mut See<'_>) + Send + Sync + 'static,
    ) {
        let gauge = self.meter.f64_observable_gauge(name).with_unit(unit).with_description(description);
        // The SDK keeps the callback for as long as the process lives.
        let _ = gauge
            .with_callback(move |observer| read(&mut |value, labels| observer.observe(value, &pairs(labels))))
            .build();
    }

    /// Likewise a value that only grows.
    pub fn observe_counter(
        &self,
        name: &'static str,
        unit: &'static str,
        description: &'static str,
        read: impl Fn(&mut See<'_>) + Send + Sync + 'static,
    ) {
        let counter = self.meter.f64_observable_counter(name).with_unit(unit).with_description(description);
        let _ = counter
            .with_callback(move |observer| read(&mut |value, labels| observer.observe(value, &pairs(labels))))
            .build();
    }
}

fn pairs(labels: &[Label<'_>]) -> Vec<KeyValue> {
    labels.iter().map(|(name, value)| KeyValue::new(*name, (*value).to_owned())).collect()
}
