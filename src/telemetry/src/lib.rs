//! What the daemon tells the operator's own tools: metrics, traces and the output of workloads, by OpenTelemetry.
//!
//! The boundary: everything here may fail, hang or lie without anybody else noticing. Whoever measures calls a method of
//! [`Metrics`] or opens a `tracing` span with the target [`TARGET`]; both are nothing when telemetry is off. What leaves
//! the process goes through bounded queues, on threads of its own, with a limit on every attempt.

mod api;
mod command;
mod context;
mod export;
mod http;
mod metrics;
mod node;
mod records;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkError;
use opentelemetry_sdk::logs::{BatchConfigBuilder as LogBatch, BatchLogProcessor, SdkLoggerProvider};
use opentelemetry_sdk::metrics::{Instrument, PeriodicReader, SdkMeterProvider, Stream};
use opentelemetry_sdk::trace::{BatchSpanProcessor, SdkTracer, SdkTracerProvider};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

pub use api::{ApiCalls, CallLayer};
pub use command::CommandTrace;
pub use context::{TARGET, child_of, link, traceparent};
pub use metrics::{Label, Metrics, See};
pub use records::{Output, Records};

use export::{Health, Watched};

/// How long one attempt to export may take.
const ATTEMPT: Duration = Duration::from_secs(2);
/// How long the end waits for what is still queued.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Where telemetry goes. Empty: nowhere, and nothing is measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `service.name`, unless the environment says otherwise.
    pub service: &'static str,
    /// `service.version`.
    pub version: &'static str,
    /// `service.instance.id`.
    pub instance: String,
    /// Where `/metrics` is served.
    pub metrics_listen: Option<SocketAddr>,
    /// An OTLP collector that speaks gRPC, `http://host:port`.
    pub otlp_endpoint: Option<String>,
    /// Whether metrics are pushed to the collector; traces always are.
    pub otlp_metrics: bool,
    /// Whether the output of workloads is pushed to the collector.
    pub otlp_logs: bool,
    /// The most series of each metric; further ones share one series.
    pub max_series: usize,
}

/// Why telemetry cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The endpoint of the collector makes no sense.
    #[error("cannot send telemetry to {endpoint}: {why}; give --otlp-endpoint as http://HOST:PORT of a gRPC receiver")]
    Endpoint {
        /// As given.
        endpoint: String,
        /// What is wrong with it.
        why: String,
    },
    /// Metrics cannot be collected.
    #[error("cannot set up metrics: {0}")]
    Metrics(String),
    /// There is no thread for it.
    #[error("cannot start the threads of telemetry")]
    Threads(#[source] io::Error),
}

static METRICS: OnceLock<Metrics> = OnceLock::new();

/// The metrics of this process; nothing when they are off.
#[inline]
pub fn metrics() -> Option<&'static Metrics> {
    METRICS.get()
}

/// Telemetry that is on. [`Telemetry::end`] sends what is left.
pub struct Telemetry {
    // Declared first: dropped before the runtime that their exporters use.
    meters: Option<SdkMeterProvider>,
    tracers: Option<SdkTracerProvider>,
    loggers: Option<SdkLoggerProvider>,
    records: Option<Records>,
    tracer: Option<SdkTracer>,
    runtime: tokio::runtime::Runtime,
}

/// Checks an address of a collector.
pub fn parse_endpoint(endpoint: &str) -> Result<String, String> {
    let uri: ::http::Uri = endpoint.parse().map_err(|why| format!("not a URL: {why}"))?;
    match uri.scheme_str() {
        Some("http") if uri.host().is_some() => Ok(endpoint.to_owned()),
        Some("https") => Err("https is not supported; send to a collector on this machine, which can".to_owned()),
        Some(_) | None => Err("write http://HOST:PORT".to_owned()),
    }
}

/// Starts what `settings` ask for; nothing when they ask for nothing. An address for metrics that cannot be had is no
/// error: it is tried again until it can.
pub fn begin(settings: &Settings) -> Result<Option<Telemetry>, Error> {
    if settings.metrics_listen.is_none() && settings.otlp_endpoint.is_none() {
        return Ok(None);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("telemetry")
        .enable_all()
        .build()
        .map_err(Error::Threads)?;
    let resource = resource(settings);
    let health = Arc::new(Health::default());
    // Exporters find their runtime where they are made.
    let entered = runtime.enter();
    let registry = prometheus::Registry::new();
    let meters = meters(settings, &resource, &registry, &health)?;
    if let Some(address) = settings.metrics_listen {
        let listener = runtime.block_on(http::bind(address));
        runtime.spawn(http::serve(listener, address, registry, http::Limits::USUAL));
    }
    let (mut tracers, mut tracer, mut loggers, mut records) = (None, None, None, None);
    if let Some(endpoint) = &settings.otlp_endpoint {
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint)
            .with_timeout(ATTEMPT)
            .build()
            .map_err(|why| Error::Endpoint { endpoint: endpoint.clone(), why: why.to_string() })?;
        let processor = BatchSpanProcessor::builder(Watched::new("traces", exporter, &health)).build();
        let provider = SdkTracerProvider::builder()
            .with_resource(resource.clone())
            .with_span_processor(export::Counted::new(processor, &health))
            .build();
        tracer = Some(provider.tracer("ostler"));
        tracers = Some(provider);
        if settings.otlp_logs {
            let exporter = opentelemetry_otlp::LogExporter::builder()
                .with_tonic()
                .with_endpoint(endpoint)
                .with_timeout(ATTEMPT)
                .build()
                .map_err(|why| Error::Endpoint { endpoint: endpoint.clone(), why: why.to_string() })?;
            let queue = LogBatch::default()
                .with_max_queue_size(records::QUEUE)
                .with_max_export_batch_size(records::BATCH)
                .with_scheduled_delay(records::DELAY);
            let processor = BatchLogProcessor::builder(Watched::new("logs", exporter, &health))
                .with_batch_config(queue.build())
                .build();
            let provider = SdkLoggerProvider::builder().with_resource(resource).with_log_processor(processor).build();
            records = Some(Records::new(&provider, &health));
            loggers = Some(provider);
        }
    }
    drop(entered);
    if let Some(meters) = &meters {
        let metrics = Metrics::new(meters);
        health.observe(&metrics);
        node::observe(&metrics);
        // A second one in the same process would measure into the first; there is none but in tests.
        let _ = METRICS.set(metrics);
    }
    Ok(Some(Telemetry { meters, tracers, loggers, records, tracer, runtime }))
}

fn meters(
    settings: &Settings,
    resource: &Resource,
    registry: &prometheus::Registry,
    health: &Arc<Health>,
) -> Result<Option<SdkMeterProvider>, Error> {
    let push = settings.otlp_endpoint.as_ref().filter(|_| settings.otlp_metrics);
    if settings.metrics_listen.is_none() && push.is_none() {
        return Ok(None);
    }
    let limit = settings.max_series.max(1);
    let mut builder = SdkMeterProvider::builder()
        .with_resource(resource.clone())
        .with_view(move |_: &Instrument| Stream::builder().with_cardinality_limit(limit).build().ok());
    if settings.metrics_listen.is_some() {
        let reader = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .scope_info_enabled(false)
            .build()
            .map_err(|why| Error::Metrics(why.to_string()))?;
        builder = builder.with_reader(reader);
    }
    if let Some(endpoint) = push {
        let exporter = opentelemetry_otlp::MetricExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint)
            .with_timeout(ATTEMPT)
            .build()
            .map_err(|why| Error::Endpoint { endpoint: endpoint.clone(), why: why.to_string() })?;
        builder = builder.with_reader(PeriodicReader::builder(Watched::new("metrics", exporter, health)).build());
    }
    Ok(Some(builder.build()))
}

/// Who speaks: what the environment says, and what it leaves open.
fn resource(settings: &Settings) -> Resource {
    let said = std::env::var("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
    let named = std::env::var_os("OTEL_SERVICE_NAME").is_some_and(|name| !name.is_empty())
        || said.split(',').any(|pair| pair.trim_start().starts_with("service.name="));
    let mut builder = Resource::builder();
    if !named {
        builder = builder.with_service_name(settings.service);
    }
    builder
        .with_attributes([
            KeyValue::new("service.version", settings.version),
            KeyValue::new("service.instance.id", settings.instance.clone()),
            KeyValue::new("host.name", sysinfo::System::host_name().unwrap_or_default()),
            KeyValue::new("process.pid", i64::from(std::process::id())),
        ])
        .build()
}

impl Telemetry {
    /// The layer that turns spans of our target into traces, and looks at nothing else. None without a collector.
    pub fn layer<S>(&self) -> Option<impl Layer<S> + use<S>>
    where
        S: tracing::Subscriber + for<'span> LookupSpan<'span>,
    {
        let tracer = self.tracer.clone()?;
        let layer = tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false);
        Some(layer.with_filter(filter_fn(|metadata| metadata.is_span() && metadata.target() == TARGET)))
    }

    /// Where the output of workloads goes, when that was asked for.
    pub fn records(&self) -> Option<Records> {
        self.records.clone()
    }

    /// Sends what is queued, for a second at most, whatever the collector does. Blocks; not for async code.
    pub fn end(self) {
        let Self { meters, tracers, loggers, records, tracer, runtime } = self;
        drop((records, tracer));
        let (done, ended) = std::sync::mpsc::channel::<()>();
        // On a thread that nobody joins: a provider may hang for longer than it was told.
        let worker = std::thread::Builder::new().name("telemetry-end".to_owned()).spawn(move || {
            let together = |work: Vec<Box<dyn FnOnce() -> Result<(), OTelSdkError> + Send>>| {
                let threads: Vec<_> = work.into_iter().map(std::thread::spawn).collect();
                for thread in threads {
                    // What could not be sent is lost, as it is whenever a collector does not answer.
                    let _ = thread.join();
                }
            };
            let mut work: Vec<Box<dyn FnOnce() -> Result<(), OTelSdkError> + Send>> = Vec::new();
            if let Some(tracers) = tracers {
                work.push(Box::new(move || tracers.shutdown_with_timeout(LAST_WORDS)));
            }
            if let Some(loggers) = loggers {
                work.push(Box::new(move || loggers.shutdown_with_timeout(LAST_WORDS)));
            }
            if let Some(meters) = meters {
                work.push(Box::new(move || meters.shutdown_with_timeout(LAST_WORDS)));
            }
            together(work);
            drop(done);
        });
        if worker.is_ok() {
            // Disconnected when everything was sent.
            let _ = ended.recv_timeout(LAST_WORDS);
        }
        runtime.shutdown_background();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collectors_are_given_as_http_urls() {
        assert!(parse_endpoint("http://127.0.0.1:4317").is_ok());
        assert!(parse_endpoint("https://collector:4317").unwrap_err().contains("https"));
        assert!(parse_endpoint("127.0.0.1:4317").is_err());
        assert!(parse_endpoint("not a url").is_err());
    }

    #[test]
    fn nothing_is_started_for_nothing() {
        let settings = Settings {
            service: "ostler",
            version: "0",
            instance: String::new(),
            metrics_listen: None,
            otlp_endpoint: None,
            otlp_metrics: true,
            otlp_logs: false,
            max_series: 10,
        };
        assert!(begin(&settings).unwrap().is_none());
        assert!(metrics().is_none());
    }
}
