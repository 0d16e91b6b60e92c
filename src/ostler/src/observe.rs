//! Messages to standard error, and telemetry, of the controller's process.

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use ostler_store::Durability;
use ostler_telemetry::{Settings, Telemetry};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

use crate::VERSION;
use crate::flags::Shared;

/// What the user asked for.
pub(crate) fn settings(shared: &Shared) -> Settings {
    Settings {
        service: "ostler",
        version: VERSION,
        instance: shared.state_dir.display().to_string(),
        metrics_listen: shared.metrics_listen,
        otlp_endpoint: shared.otlp_endpoint.clone(),
        otlp_metrics: true,
        otlp_logs: shared.otlp_logs,
        max_series: shared.metrics_max_series as usize,
    }
}

/// Messages go to standard error, spans to the collector; neither sees what is for the other.
pub(crate) fn subscribe(filter: &str, telemetry: Option<&Telemetry>) {
    // What the SDK says of a collector that does not answer it says every few seconds; ours is said once.
    let quiet = format!("opentelemetry=off,{}=off,{filter}", ostler_telemetry::TARGET);
    let filter = EnvFilter::try_new(quiet).unwrap_or_else(|_| EnvFilter::new("info"));
    let messages = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false);
    let traces = telemetry.and_then(Telemetry::layer);
    match traces {
        Some(traces) => tracing_subscriber::registry().with(messages.with_filter(filter)).with(traces).init(),
        None => tracing_subscriber::registry().with(messages).with(filter).init(),
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
