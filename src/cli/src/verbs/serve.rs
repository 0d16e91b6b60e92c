//! `ostler serve`: the flags of the daemon. The binary runs it.

use std::path::PathBuf;

use ostler_config::{Given, Layer, OnShutdown};
use ostler_core::allow::Allow;
use serde_json::Value;

use crate::error::Error;

/// Run the daemon in the foreground
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The daemon owns its state directory: a second one for the same directory is refused.
Workloads outlive it and are adopted by the next one, unless it is ended with --on-shutdown
stop.

Every flag is also a key of the configuration file and a variable of the environment:
--probe-allow is probeAllow: and OSTLER_PROBE_ALLOW. Flags win over the environment, that over
the file. A file that changes is read again. `ostler config show --origin` tells what counts.

Examples:
  ostler serve
  ostler serve --state-dir ./state --log debug
  ostler serve --config /etc/ostler/config.yaml
  ostler serve --watch /srv/apps           # keeps a directory of manifests applied
  ostler serve --on-shutdown stop          # as the main process of a container
  ostler serve --metrics-listen 127.0.0.1:9464 --otlp-endpoint http://127.0.0.1:4317")]
pub(crate) struct Args {
    /// Configuration file in YAML [default: config.yaml in the state directory, if there is one]
    #[arg(long, value_name = "FILE", env = "OSTLER_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
    /// How often everything is compared with what it should be; changes are acted on at once in any case
    /// [default: 1s]
    #[arg(long, value_name = "DURATION", value_parser = setting("tick"))]
    tick: Option<Value>,
    /// What to log: error, warn, info, debug, trace, or a filter such as info,ostler_engine=debug
    /// [default: info]
    #[arg(long, value_name = "FILTER", value_parser = setting("log"))]
    log: Option<Value>,
    /// Which cgroups to keep processes in [default: auto]
    #[arg(long, value_parser = ["auto", "v2", "v1", "none"])]
    cgroups: Option<String>,
    /// What happens to running processes when the daemon is ended by SIGTERM or SIGINT
    /// [default: leave; stop as process 1]
    #[arg(long, value_parser = ["leave", "stop"])]
    on_shutdown: Option<String>,
    /// With --on-shutdown stop: when to kill what still lives [default: 1m]
    #[arg(long, value_name = "DURATION", value_parser = setting("shutdownDeadline"))]
    shutdown_deadline: Option<Value>,
    /// Directory whose manifests are to be kept applied, such as a Git checkout: makes a Source of its name; repeatable
    #[arg(long, value_name = "DIR")]
    watch: Vec<String>,
    /// What probes may connect to besides loopback: a host name, an address or a network; may be repeated
    #[arg(long, value_name = "HOST|CIDR")]
    probe_allow: Vec<Allow>,
    /// Serve metrics for Prometheus at http://ADDRESS/metrics
    #[arg(long, value_name = "ADDRESS", value_parser = setting("metricsListen"))]
    metrics_listen: Option<Value>,
    /// The most series of each metric; what goes beyond shares one series [default: 2000]
    #[arg(long, value_name = "NUMBER", value_parser = setting("metricsMaxSeries"))]
    metrics_max_series: Option<Value>,
    /// Send traces and metrics to an OpenTelemetry collector, by OTLP over gRPC
    #[arg(long, value_name = "URL", value_parser = setting("otlpEndpoint"))]
    otlp_endpoint: Option<Value>,
    /// Send the output of the processes to the collector, too
    #[arg(long)]
    otlp_logs: bool,
}

/// Reads the value of a key as the configuration does.
fn setting(name: &'static str) -> impl Fn(&str) -> Result<Value, String> + Clone {
    move |text| {
        let value = ostler_config::key(name).map_or(Value::Null, |key| ostler_config::value_of(key, text));
        ostler_config::check(name, &value).map(|()| value).map_err(|refused| refused.message)
    }
}

/// How to serve.
#[derive(Debug, Clone, PartialEq)]
pub struct ServeArgs {
    /// Holds store, logs, socket and lock.
    pub state_dir: PathBuf,
    /// What is configured, apart from the file's content.
    pub given: Given,
}

impl Args {
    pub(crate) fn resolve(self, state_dir: PathBuf) -> Result<ServeArgs, Error> {
        let environment = ostler_config::environment(|name| std::env::var_os(name)).map_err(|refused| {
            Error::Usage { message: refused.to_string(), hint: format!("unset {} or correct it", refused.origin) }
        })?;
        let named = self.config.is_some();
        let file = self.config.unwrap_or_else(|| state_dir.join("config.yaml"));
        let mut defaults = Layer::new();
        // Process 1 of a container is its end: what it leaves behind is killed without a grace period.
        if std::process::id() == 1 {
            defaults.insert("onShutdown".to_owned(), serde_json::to_value(OnShutdown::Stop)?);
        }
        let list = |items: Vec<String>| (!items.is_empty()).then(|| Value::from(items));
        let flags = [
            ("tick", self.tick),
            ("log", self.log),
            ("cgroups", self.cgroups.map(Value::from)),
            ("onShutdown", self.on_shutdown.map(Value::from)),
            ("shutdownDeadline", self.shutdown_deadline),
            ("watch", list(self.watch)),
            ("probeAllow", list(self.probe_allow.into_iter().map(String::from).collect())),
            ("metricsListen", self.metrics_listen),
            ("metricsMaxSeries", self.metrics_max_series),
            ("otlpEndpoint", self.otlp_endpoint),
            ("otlpLogs", self.otlp_logs.then(|| Value::from(true))),
        ];
        let flags = flags.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
        let file = match std::path::absolute(&file).unwrap_or(file) {
            file if file.to_str().is_some() => file,
            // It is handed on as text; a state directory like this has no file.
            _ if !named => PathBuf::new(),
            file => {
                let message = format!("the path {} is not UTF-8", file.display());
                return Err(Error::Usage { message, hint: "give the file another name".to_owned() });
            }
        };
        let given = Given { file, named, defaults, environment, flags: Layer::new() }.with_flags(flags);
        Ok(ServeArgs { state_dir, given })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn every_key_is_a_flag() {
        let mut line = vec!["serve"];
        for key in ostler_config::KEYS {
            let value = match key.name {
                "otlpLogs" => {
                    line.push(key.flag);
                    continue;
                }
                "metricsListen" => "127.0.0.1:9464",
                "metricsMaxSeries" => "100",
                "otlpEndpoint" => "http://127.0.0.1:4317",
                "tick" | "shutdownDeadline" => "2s",
                "cgroups" => "none",
                "onShutdown" => "stop",
                "watch" => "/srv/apps",
                _ => "a",
            };
            line.extend([key.flag, value]);
        }
        let served = Line::try_parse_from(line).unwrap().args.resolve("/state".into()).unwrap();
        let mut given: Vec<&str> = served.given.flags.keys().map(String::as_str).collect();
        let mut keys: Vec<&str> = ostler_config::KEYS.iter().map(|key| key.name).collect();
        given.sort_unstable();
        keys.sort_unstable();
        assert_eq!(given, keys);
        for (key, value) in &served.given.flags {
            ostler_config::check(key, value).unwrap();
        }
    }
}
