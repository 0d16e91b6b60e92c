//! Every key: its type, its names in the environment and on the command line, and when a change takes effect.

use std::net::SocketAddr;
use std::ops::RangeInclusive;

use ostler_core::Span;
use ostler_core::allow::Allow;
use ostler_core::object::{DecodeError, decode};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tracing_subscriber::EnvFilter;

use crate::{Layer, Refused};

/// Which cgroups the daemon uses to hold process trees together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnShutdown {
    /// They go on; the next daemon adopts them.
    Leave,
    /// They are stopped, each with its grace period.
    Stop,
}

/// Every setting of the daemon, with a value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Config {
    /// The interval of the safety net.
    pub tick: Span,
    /// A filter as tracing reads it.
    pub log: String,
    /// Which cgroups to use.
    pub cgroups: Cgroups,
    /// What SIGTERM and SIGINT do with running processes.
    pub on_shutdown: OnShutdown,
    /// What still lives so long after such a signal is killed.
    pub shutdown_deadline: Span,
    /// Directories to keep applied; absolute.
    pub watch: Vec<String>,
    /// Host names, addresses and networks that probes may connect to besides loopback.
    pub probe_allow: Vec<Allow>,
    /// Where metrics are served for Prometheus.
    pub metrics_listen: Option<SocketAddr>,
    /// The most series of each metric; what goes beyond shares one series.
    pub metrics_max_series: u32,
    /// An OpenTelemetry collector that takes OTLP over gRPC.
    pub otlp_endpoint: Option<String>,
    /// Whether the output of processes goes there, too.
    pub otlp_logs: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            tick: Span::from_secs(1),
            log: "info".to_owned(),
            cgroups: Cgroups::Auto,
            on_shutdown: OnShutdown::Leave,
            shutdown_deadline: Span::from_secs(60),
            watch: Vec::new(),
            probe_allow: Vec::new(),
            metrics_listen: None,
            metrics_max_series: 2000,
            otlp_endpoint: None,
            otlp_logs: false,
        }
    }
}

/// How a value is read from text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Text,
    List,
    /// A number, true or false.
    Scalar,
}

/// What is known of a key besides its type.
#[derive(Debug)]
pub struct Key {
    /// In the file and at run time.
    pub name: &'static str,
    /// In the environment.
    pub variable: &'static str,
    /// On the command line.
    pub flag: &'static str,
    /// Whether a change takes effect while the daemon runs; others wait for its next start.
    pub live: bool,
    form: Form,
}

const fn text(name: &'static str, variable: &'static str, flag: &'static str, live: bool) -> Key {
    Key { name, variable, flag, live, form: Form::Text }
}

const fn list(name: &'static str, variable: &'static str, flag: &'static str, live: bool) -> Key {
    Key { name, variable, flag, live, form: Form::List }
}

const fn scalar(name: &'static str, variable: &'static str, flag: &'static str, live: bool) -> Key {
    Key { name, variable, flag, live, form: Form::Scalar }
}

/// Every key, in the order in which it is shown.
pub const KEYS: &[Key] = &[
    text("tick", "OSTLER_TICK", "--tick", true),
    text("log", "OSTLER_LOG", "--log", true),
    text("cgroups", "OSTLER_CGROUPS", "--cgroups", false),
    text("onShutdown", "OSTLER_ON_SHUTDOWN", "--on-shutdown", true),
    text("shutdownDeadline", "OSTLER_SHUTDOWN_DEADLINE", "--shutdown-deadline", true),
    list("watch", "OSTLER_WATCH", "--watch", false),
    list("probeAllow", "OSTLER_PROBE_ALLOW", "--probe-allow", true),
    text("metricsListen", "OSTLER_METRICS_LISTEN", "--metrics-listen", false),
    scalar("metricsMaxSeries", "OSTLER_METRICS_MAX_SERIES", "--metrics-max-series", false),
    text("otlpEndpoint", "OTEL_EXPORTER_OTLP_ENDPOINT", "--otlp-endpoint", false),
    scalar("otlpLogs", "OSTLER_OTLP_LOGS", "--otlp-logs", false),
];

/// The key of this name.
pub fn key(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// The value that a text stands for; lists are separated by commas. It is not checked.
pub fn value_of(key: &Key, text: &str) -> Value {
    match key.form {
        Form::Text => Value::from(text),
        Form::Scalar => serde_json::from_str(text).unwrap_or_else(|_| Value::from(text)),
        Form::List => text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect(),
    }
}

const FASTEST: Span = Span::from_millis(10);
const SLOWEST: Span = Span::from_secs(3600);
const SERIES: RangeInclusive<u32> = 10..=100_000;

/// Checks a value given for a key by itself.
///
/// # Errors
/// Says what is wrong with it, and which key or value was probably meant.
pub fn check(name: &str, value: &Value) -> Result<(), Refused> {
    let layer = Layer::from_iter([(name.to_owned(), value.clone())]);
    match faults(&layer).pop() {
        None => Ok(()),
        Some(error) => Err(Refused { origin: name.to_owned(), message: error.message }),
    }
}

/// Everything that is wrong with a layer.
pub(crate) fn faults(layer: &Layer) -> Vec<DecodeError> {
    let mut errors = Vec::new();
    for (name, value) in layer {
        let one = Value::from(Layer::from_iter([(name.clone(), value.clone())]));
        match decode::<Config>(&one) {
            Ok(config) => errors.extend(implausible(&config).map(|(at, message)| DecodeError {
                field: if at.is_empty() { name.clone() } else { format!("{name}{at}") },
                message,
            })),
            Err(error) => errors.push(error),
        }
    }
    errors
}

/// What a type does not rule out; everything but one key has its default.
fn implausible(config: &Config) -> Option<(String, String)> {
    if config.tick < FASTEST || config.tick > SLOWEST {
        return Some((String::new(), format!("{} is not between {FASTEST} and {SLOWEST}", config.tick)));
    }
    if let Err(why) = EnvFilter::try_new(&config.log) {
        let message =
            format!("{:?} is no filter: {why}; write for example debug or info,ostler_engine=debug", config.log);
        return Some((String::new(), message));
    }
    if !SERIES.contains(&config.metrics_max_series) {
        let (least, most) = (SERIES.start(), SERIES.end());
        return Some((String::new(), format!("{} is not between {least} and {most}", config.metrics_max_series)));
    }
    if let Some(Err(why)) = config.otlp_endpoint.as_deref().map(ostler_telemetry::parse_endpoint) {
        return Some((String::new(), why));
    }
    let relative = config.watch.iter().position(|path| !path.starts_with('/'))?;
    Some((format!("[{relative}]"), format!("{:?} is not an absolute path", config.watch[relative])))
}

/// Makes the paths of a layer absolute.
pub(crate) fn resolve(layer: &mut Layer, base: &std::path::Path) {
    let Some(Value::Array(paths)) = layer.get_mut("watch") else { return };
    for path in paths {
        if let Value::String(text) = path
            && !text.is_empty()
            && let Ok(absolute) = std::path::absolute(base.join(&*text))
        {
            *text = absolute.to_string_lossy().into_owned();
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_setting_is_a_key_and_every_key_a_setting() {
        let config = serde_json::to_value(Config::default()).unwrap();
        let mut fields: Vec<&str> = config.as_object().unwrap().keys().map(String::as_str).collect();
        let mut names: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
        fields.sort_unstable();
        names.sort_unstable();
        assert_eq!(fields, names);
        assert!(faults(config.as_object().unwrap()).is_empty());
    }

    #[test]
    fn the_names_of_a_key_say_the_same() {
        for key in KEYS {
            let words = key.flag.trim_start_matches("--").to_owned();
            // What other programs call it, too, keeps its name.
            let prefix = if key.name == "otlpEndpoint" { "OTEL_EXPORTER" } else { "OSTLER" };
            assert_eq!(key.variable, format!("{prefix}_{}", words.replace('-', "_").to_uppercase()));
            assert_eq!(key.name.to_lowercase(), words.replace('-', ""));
        }
    }

    #[test]
    fn wrong_values_are_refused_with_what_was_meant() {
        for (name, value, part) in [
            ("tck", json!("1s"), "did you mean \"tick\"?"),
            ("tick", json!(5), "duration"),
            ("tick", json!("0s"), "not between"),
            ("tick", json!("soon"), "soon"),
            ("cgroups", json!("v3"), "unknown value"),
            ("log", json!("info,a=b=c"), "no filter"),
            ("probeAllow", json!(["10.0.0.0/33"]), "no host name"),
            ("watch", json!(["apps"]), "not an absolute path"),
        ] {
            let refused = check(name, &value).unwrap_err();
            assert!(refused.message.contains(part), "{name}: {refused}");
        }
        for (name, text) in [("tick", "250ms"), ("probeAllow", "10.0.0.0/8, db.internal"), ("onShutdown", "stop")] {
            check(name, &value_of(key(name).unwrap(), text)).unwrap();
        }
    }
}
