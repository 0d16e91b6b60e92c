//! `ostler serve`: the flags of the daemon. The binary runs it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ostler_core::allow::Allow;

use crate::duration;

/// Run the daemon in the foreground
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The daemon owns its state directory: a second one for the same directory is refused.
Workloads outlive it and are adopted by the next one, unless it is ended with --on-shutdown
stop.

Examples:
  ostler serve
  ostler serve --state-dir ./state --log debug
  ostler serve --watch /srv/apps           # keeps a directory of manifests applied
  ostler serve --on-shutdown stop          # as the main process of a container
  ostler serve --metrics-listen 127.0.0.1:9464 --otlp-endpoint http://127.0.0.1:4317")]
pub(crate) struct Args {
    /// How often everything is compared with what it should be; changes are acted on at once in any case
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = duration::parse)]
    tick: Duration,
    /// What to log: error, warn, info, debug, trace, or a filter such as info,ostler_engine=debug
    #[arg(long, value_name = "FILTER", env = "OSTLER_LOG", default_value = "info", hide_env_values = true)]
    log: String,
    /// Which cgroups to keep processes in
    #[arg(long, value_enum, default_value_t = Cgroups::Auto)]
    cgroups: Cgroups,
    /// What happens to running processes when the daemon is ended by SIGTERM or SIGINT
    /// [default: leave; stop as process 1]
    #[arg(long, value_enum)]
    on_shutdown: Option<OnShutdown>,
    /// Directory whose manifests are to be kept applied, such as a Git checkout: makes a Source of its name; repeatable
    #[arg(long, value_name = "DIR")]
    watch: Vec<PathBuf>,
    /// What probes may connect to besides loopback: a host name, an address or a network; may be repeated
    #[arg(long, value_name = "HOST|CIDR")]
    probe_allow: Vec<Allow>,
    /// Serve metrics for Prometheus at http://ADDRESS/metrics
    #[arg(long, value_name = "ADDRESS", env = "OSTLER_METRICS_LISTEN")]
    metrics_listen: Option<SocketAddr>,
    /// The most series of each metric; what goes beyond shares one series
    #[arg(long, value_name = "NUMBER", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(10..=100_000))]
    metrics_max_series: u32,
    /// Send traces and metrics to an OpenTelemetry collector, by OTLP over gRPC
    #[arg(long, value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_parser = endpoint)]
    otlp_endpoint: Option<String>,
    /// Send the output of the processes to the collector, too
    #[arg(long, requires = "otlp_endpoint")]
    otlp_logs: bool,
}

fn endpoint(text: &str) -> Result<String, String> {
    ostler_telemetry::parse_endpoint(text)
}

/// Which cgroups the daemon uses to hold process trees together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Cgroups {
    /// The best that can be written.
    Auto,
    /// The unified hierarchy, or fail.
    V2,
    /// A version 1 hierarchy, or fail.
    V1,
    /// None: sessions and environment markers.
    None,
}

/// What the daemon does with running processes when it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum OnShutdown {
    /// They go on; the next daemon adopts them.
    Leave,
    /// They are stopped, each with its grace period.
    Stop,
}

/// How to serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServeArgs {
    /// Holds store, logs, socket and lock.
    pub state_dir: PathBuf,
    /// The interval of the safety net.
    pub tick: Duration,
    /// A filter as tracing reads it.
    pub log: String,
    /// Which cgroups to use.
    pub cgroups: Cgroups,
    /// What happens to running processes at the end.
    pub on_shutdown: OnShutdown,
    /// Directories to keep applied.
    pub watch: Vec<PathBuf>,
    /// Host names, addresses and networks that probes may connect to besides loopback.
    pub probe_allow: Vec<Allow>,
    /// Where metrics are served for Prometheus.
    pub metrics_listen: Option<SocketAddr>,
    /// The most series of each metric.
    pub metrics_max_series: u32,
    /// An OTLP collector.
    pub otlp_endpoint: Option<String>,
    /// Whether the output of processes goes there, too.
    pub otlp_logs: bool,
}

impl Args {
    pub(crate) fn resolve(self, state_dir: PathBuf) -> ServeArgs {
        // Process 1 of a container is its end: what it leaves behind is killed without a grace period.
        let usual = if std::process::id() == 1 { OnShutdown::Stop } else { OnShutdown::Leave };
        ServeArgs {
            state_dir,
            tick: self.tick,
            log: self.log,
            cgroups: self.cgroups,
            on_shutdown: self.on_shutdown.unwrap_or(usual),
            watch: self.watch,
            probe_allow: self.probe_allow,
            metrics_listen: self.metrics_listen,
            metrics_max_series: self.metrics_max_series,
            otlp_endpoint: self.otlp_endpoint,
            otlp_logs: self.otlp_logs,
        }
    }
}
