//! Messages to standard error, and telemetry, of the controller's process.

use std::io::{self, IsTerminal as _};
use std::path::Path;
use std::time::Duration;

use ostler_config::Config;
use ostler_core::kinds::ProbeKind;
use ostler_core::verdict::Outcome;
use ostler_engine::probe::Meter;
use ostler_store::Durability;
use ostler_telemetry::{Metrics, Settings, Telemetry};
use tracing::warn;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, reload};

use crate::VERSION;

/// What the user asked for.
pub(crate) fn settings(state_dir: &Path, config: &Config) -> Settings {
    Settings {
        service: "ostler",
        version: VERSION,
        instance: state_dir.display().to_string(),
        metrics_listen: config.metrics_listen,
        otlp_endpoint: config.otlp_endpoint.clone(),
        otlp_metrics: true,
        otlp_logs: config.otlp_logs,
        max_series: config.metrics_max_series as usize,
    }
}

/// Changes what is logged.
pub(crate) type SetFilter = Box<dyn Fn(&str) + Send + Sync>;

/// Messages go to standard error, spans to the collector; neither sees what is for the other.
pub(crate) fn subscribe(text: &str, telemetry: Option<&Telemetry>) -> SetFilter {
    let messages = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false);
    if let Some(traces) = telemetry.and_then(Telemetry::layer) {
        let (filter, handle) = reload::Layer::new(filter(text));
        tracing_subscriber::registry().with(messages.with_filter(filter)).with(traces).init();
        Box::new(move |text| unless(handle.reload(self::filter(text))))
    } else {
        let (filter, handle) = reload::Layer::new(filter(text));
        tracing_subscriber::registry().with(messages).with(filter).init();
        Box::new(move |text| unless(handle.reload(self::filter(text))))
    }
}

fn filter(text: &str) -> EnvFilter {
    // What the SDK says of a collector that does not answer it says every few seconds; ours is said once.
    let quiet = format!("opentelemetry=off,{}=off,{text}", ostler_telemetry::TARGET);
    EnvFilter::try_new(quiet).unwrap_or_else(|_| EnvFilter::new("info"))
}

fn unless(reloaded: Result<(), reload::Error>) {
    if let Err(why) = reloaded {
        warn!(%why, "the log filter stays as it was");
    }
}

/// Checks of probes, measured.
#[derive(Debug)]
pub(crate) struct Checks(pub(crate) &'static Metrics);

impl Meter for Checks {
    fn checked(&self, probe: ProbeKind, check: &'static str, outcome: &Outcome, took: Duration) {
        let result = match outcome {
            Outcome::Passed(_) => "passed",
            Outcome::Failed(_) => "failed",
            Outcome::CannotRun(_) => "cannot-run",
        };
        self.0.probed(probe.name(), check, result, took);
    }
}

/// The store's commits, measured.
pub(crate) fn committed(durability: Durability, took: Duration) {
    if let Some(metrics) = ostler_telemetry::metrics() {
        let durability = match durability {
            Durability::Durable => "durable",
            Durability::Crash => "crash",
            Durability::Lazy => "lazy",
        };
        metrics.committed(durability, took);
    }
}
