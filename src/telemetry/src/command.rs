//! One command of the command line as the beginning of a trace.

use tracing::Span;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::{Settings, TARGET, Telemetry, begin, child_of, parse_endpoint, traceparent};

/// The trace of a command.
///
/// The environment decides: with `OTEL_EXPORTER_OTLP_ENDPOINT` the command sends a span of its own, as a child of
/// `TRACEPARENT` if that is set. Without it a `TRACEPARENT` is handed on, and the first span is the daemon's.
pub struct CommandTrace {
    context: Option<String>,
    own: Option<(Span, Telemetry)>,
}

impl CommandTrace {
    /// Begins the trace of the command `verb`. A collector that cannot be used is no reason for a command to fail.
    pub fn begin(verb: &str, version: &'static str) -> Self {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let outer = variable("TRACEPARENT");
        let disabled = variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let endpoint = variable("OTEL_EXPORTER_OTLP_ENDPOINT").and_then(|url| parse_endpoint(&url).ok());
        let Some(endpoint) = endpoint.filter(|_| !disabled) else { return Self { context: outer, own: None } };
        let settings = Settings {
            service: "ostler-cli",
            version,
            instance: std::process::id().to_string(),
            metrics_listen: None,
            otlp_endpoint: Some(endpoint),
            otlp_metrics: false,
            otlp_logs: false,
            max_series: 1,
        };
        let Ok(Some(telemetry)) = begin(&settings) else { return Self { context: outer, own: None } };
        if tracing_subscriber::registry().with(telemetry.layer()).try_init().is_err() {
            return Self { context: outer, own: None };
        }
        let span = tracing::info_span!(
            target: TARGET, parent: None, "command",
            otel.name = format!("ostler {verb}"), otel.kind = "client", otel.status_code = tracing::field::Empty,
        );
        if let Some(outer) = &outer {
            child_of(&span, outer);
        }
        Self { context: traceparent(&span), own: Some((span, telemetry)) }
    }

    /// What calls of the daemon carry.
    pub fn context(&self) -> Option<String> {
        self.context.clone()
    }

    /// Sends the span; waits for the collector for a second at most.
    pub fn end(self, failed: bool) {
        if let Some((span, telemetry)) = self.own {
            if failed {
                span.record("otel.status_code", "ERROR");
            }
            drop(span);
            telemetry.end();
        }
    }
}
