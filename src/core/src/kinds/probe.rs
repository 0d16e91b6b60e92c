//! Probes: how Ostler finds out whether an instance works, and what it found.

use serde::{Deserialize, Serialize};

use super::Measure;
use crate::quantity::{Bytes, Cpu};
use crate::time::{Span, Timestamp};

/// One check that is repeated. Exactly one of httpGet, tcpSocket, grpc, exec, logLine, notify, resources and
/// process is given.
/// A check that passes or fails is counted; one that cannot be run says nothing about the process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Probe {
    /// An HTTP request that is answered as expected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_get: Option<HttpGet>,
    /// A TCP connection that is accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_socket: Option<TcpSocket>,
    /// A service of the gRPC health checking protocol (grpc.health.v1) that is SERVING.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc: Option<Grpc>,
    /// A command that exits with code 0. It runs as the user, in the directory and with the environment of the instance;
    /// at the timeout it and everything it started is killed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exec: Option<ExecProbe>,
    /// A line of output since the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_line: Option<LogLine>,
    /// What the process says of itself by sd_notify(3): READY=1, RELOADING=1, STOPPING=1, STATUS=, MAINPID=, WATCHDOG=1,
    /// WATCHDOG=trigger, WATCHDOG_USEC=. Ostler sets NOTIFY_SOCKET, and WATCHDOG_USEC when `watchdog` is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notify: Option<NotifyProbe>,
    /// The whole process tree uses no more of the machine than this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourcesProbe>,
    /// The leader lives and is neither stopped (SIGSTOP) nor a zombie.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessProbe>,
    /// Time from the start of the process to the first check.
    pub initial_delay: Span,
    /// Time from the start of a check to that of the next; at least 100ms.
    pub interval: Span,
    /// A check that takes longer has failed.
    pub timeout: Span,
    /// So many failures in a row mean Failed, 1 to 1000.
    pub failure_threshold: u32,
    /// So many successes in a row mean Healthy, at first and after Failed, 1 to 1000.
    pub success_threshold: u32,
    /// Random part of each interval, 0 to 1: 0.1 lengthens it by up to ten per cent. The first check is delayed by as
    /// much, so that the checks of many instances do not come at once.
    pub jitter: f64,
}

impl Default for Probe {
    fn default() -> Self {
        Self {
            http_get: None,
            tcp_socket: None,
            grpc: None,
            exec: None,
            log_line: None,
            notify: None,
            resources: None,
            process: None,
            initial_delay: Span::ZERO,
            interval: Span::from_secs(10),
            timeout: Span::from_secs(1),
            failure_threshold: 3,
            success_threshold: 1,
            jitter: 0.1,
        }
    }
}

/// What a probe checks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Check<'a> {
    /// `httpGet`
    HttpGet(&'a HttpGet),
    /// `tcpSocket`
    TcpSocket(&'a TcpSocket),
    /// `grpc`
    Grpc(&'a Grpc),
    /// `exec`
    Exec(&'a ExecProbe),
    /// `logLine`
    LogLine(&'a LogLine),
    /// `notify`
    Notify(&'a NotifyProbe),
    /// `resources`
    Resources(&'a ResourcesProbe),
    /// `process`
    Process(&'a ProcessProbe),
}

impl Check<'_> {
    /// The name of its field.
    pub const fn name(self) -> &'static str {
        match self {
            Self::HttpGet(_) => "httpGet",
            Self::TcpSocket(_) => "tcpSocket",
            Self::Grpc(_) => "grpc",
            Self::Exec(_) => "exec",
            Self::LogLine(_) => "logLine",
            Self::Notify(_) => "notify",
            Self::Resources(_) => "resources",
            Self::Process(_) => "process",
        }
    }
}

impl Probe {
    /// Everything that is to be checked; exactly one in a valid probe.
    pub fn checks(&self) -> impl Iterator<Item = Check<'_>> {
        [
            self.http_get.as_ref().map(Check::HttpGet),
            self.tcp_socket.as_ref().map(Check::TcpSocket),
            self.grpc.as_ref().map(Check::Grpc),
            self.exec.as_ref().map(Check::Exec),
            self.log_line.as_ref().map(Check::LogLine),
            self.notify.as_ref().map(Check::Notify),
            self.resources.as_ref().map(Check::Resources),
            self.process.as_ref().map(Check::Process),
        ]
        .into_iter()
        .flatten()
    }
}

/// A port, by its number or by the name of one of `spec.ports`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(untagged, expecting = "a port number from 1 to 65535, or the name of one of spec.ports")]
pub enum PortRef {
    /// This one.
    Number(std::num::NonZeroU16),
    /// That of this name.
    Name(String),
}

/// The scheme of a URL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Scheme {
    /// In the clear.
    #[default]
    #[serde(rename = "HTTP", alias = "http")]
    Http,
    /// TLS. On a loopback address the certificate is not verified; elsewhere it has to be one that this machine trusts.
    #[serde(rename = "HTTPS", alias = "https")]
    Https,
}

/// An HTTP request that is answered as expected. Redirects are followed on the same host only; one to another host
/// counts as the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpGet {
    /// Port, a number or the name of one of `spec.ports`.
    pub port: PortRef,
    /// Host name or address; 127.0.0.1 unless given. Others than loopback have to be allowed by
    /// `ostler serve --probe-allow`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Path, with a query if need be.
    #[serde(default = "root")]
    pub path: String,
    /// HTTP or HTTPS.
    #[serde(default)]
    pub scheme: Scheme,
    /// Headers of the request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub http_headers: Vec<HttpHeader>,
    /// Status codes that are right: numbers or ranges such as "200-299"; "200-399" unless given.
    #[serde(default = "good_statuses")]
    pub expected_status: Vec<StatusRange>,
    /// A regular expression that the first 64 KiB of the body have to match.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_match: Option<String>,
}

fn root() -> String {
    "/".to_owned()
}

fn good_statuses() -> Vec<StatusRange> {
    vec![StatusRange { first: 200, last: 399 }]
}

/// One header of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpHeader {
    /// Name of the header; `Host` replaces the usual one.
    pub name: String,
    /// Its value.
    #[serde(default)]
    pub value: String,
}

/// Status codes from `first` to `last`; written as `204` or "200-299".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusRange {
    /// The first one.
    pub first: u16,
    /// The last one.
    pub last: u16,
}

impl StatusRange {
    /// Whether a status code is among them.
    pub const fn contains(self, status: u16) -> bool {
        self.first <= status && status <= self.last
    }
}

impl std::fmt::Display for StatusRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

impl std::str::FromStr for StatusRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (first.trim().parse(), last.trim().parse()) {
            (Ok(first), Ok(last)) if (100..=599).contains(&first) && first <= last && last <= 599 => {
                Ok(Self { first, last })
            }
            _ => Err(format!("{text:?} is no range of HTTP status codes; write it as 204 or \"200-299\"")),
        }
    }
}

impl Serialize for StatusRange {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.first == self.last { serializer.serialize_u16(self.first) } else { serializer.collect_str(self) }
    }
}

impl<'de> Deserialize<'de> for StatusRange {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Range;
        impl serde::de::Visitor<'_> for Range {
            type Value = StatusRange;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an HTTP status code such as 204, or a range such as \"200-299\"")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<StatusRange, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<StatusRange, E> {
                number.to_string().parse().map_err(E::custom)
            }
            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<StatusRange, E> {
                number.to_string().parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Range)
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for StatusRange {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "StatusRange".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": ["integer", "string"], "pattern": "^[1-5][0-9][0-9](-[1-5][0-9][0-9])?$",
            "minimum": 100, "maximum": 599,
            "description": "An HTTP status code such as 204, or a range such as \"200-299\"."})
    }
}

/// A TCP connection that is accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpSocket {
    /// Port, a number or the name of one of `spec.ports`.
    pub port: PortRef,
    /// Host name or address; 127.0.0.1 unless given. Others than loopback have to be allowed by
    /// `ostler serve --probe-allow`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
}

/// A service of the gRPC health checking protocol that is SERVING.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Grpc {
    /// Port, a number or the name of one of `spec.ports`.
    pub port: PortRef,
    /// Host name or address; 127.0.0.1 unless given. Others than loopback have to be allowed by
    /// `ostler serve --probe-allow`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Name of the service to ask for; empty for the server as a whole.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub service: String,
}

/// A command that exits with code 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExecProbe {
    /// Program and arguments; no shell is involved. `$(NAME)` is replaced as in `spec.command`.
    pub command: Vec<String>,
}

/// A line of output since the start of the process. The last line that matches one of the two expressions decides;
/// without any such line the check fails, or, when only `failurePattern` is given, passes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LogLine {
    /// A regular expression that matches somewhere in the line that says all is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    /// A regular expression that matches somewhere in a line that says that it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_pattern: Option<String>,
    /// Stdout or Stderr; any of both unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<LogStream>,
}

/// An output of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum LogStream {
    /// Standard output.
    #[serde(alias = "stdout")]
    Stdout,
    /// Standard error.
    #[serde(alias = "stderr")]
    Stderr,
}

/// What the process says of itself by sd_notify(3). Passes from READY=1 on, except from RELOADING=1 or STOPPING=1 until
/// the next READY=1; with `watchdog` also fails when WATCHDOG=1 does not come in time. As a livenessProbe, only the
/// watchdog counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NotifyProbe {
    /// The longest time between two WATCHDOG=1. The process is told by WATCHDOG_USEC; by custom it sends one twice as
    /// often.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watchdog: Option<Span>,
}

/// The whole process tree uses no more of the machine than this; at least one is given. Looked at anew for each check,
/// CPU over at least half a second.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ResourcesProbe {
    /// Resident memory; pages that processes share count for each of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cpu>,
    /// Processes that live.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processes: Option<u32>,
    /// Threads of all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<u32>,
    /// Open files of all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_files: Option<u32>,
}

impl ResourcesProbe {
    /// What it compares, and with what.
    pub fn iter(&self) -> impl Iterator<Item = (Measure, u64)> {
        let Self { memory, cpu, processes, threads, open_files } = self;
        [
            memory.map(|bytes| (Measure::Memory, bytes.0)),
            cpu.map(|cpu| (Measure::Cpu, cpu.0.into())),
            processes.map(|count| (Measure::Processes, count.into())),
            threads.map(|count| (Measure::Threads, count.into())),
            open_files.map(|count| (Measure::OpenFiles, count.into())),
        ]
        .into_iter()
        .flatten()
    }
}

/// The leader lives and is neither stopped nor a zombie.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProcessProbe {}

/// Which of its probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProbeKind {
    /// `startupProbe`
    Startup,
    /// `readinessProbe`
    Readiness,
    /// `livenessProbe`
    Liveness,
}

impl ProbeKind {
    /// Every kind, in the order in which they matter.
    pub const ALL: [Self; 3] = [Self::Startup, Self::Readiness, Self::Liveness];

    /// As people say it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Startup => "startup",
            Self::Readiness => "readiness",
            Self::Liveness => "liveness",
        }
    }
}

/// How well something works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Health {
    /// Nobody can tell: not checked often enough yet, or the check cannot be run.
    #[default]
    Unknown,
    /// The last check passed, and enough of them.
    Healthy,
    /// The last check failed.
    Warning,
    /// The last check failed, and the next failure is one too many.
    Critical,
    /// As many checks in a row failed as the threshold says.
    Failed,
}

impl Health {
    /// The name as it is published.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "Unknown",
            Self::Healthy => "Healthy",
            Self::Warning => "Warning",
            Self::Critical => "Critical",
            Self::Failed => "Failed",
        }
    }

    /// The worse of two; not to know is worse than a warning, and better than to be at the last chance.
    #[must_use]
    pub fn worse(self, other: Self) -> Self {
        let rank = |health| match health {
            Self::Healthy => 0,
            Self::Warning => 1,
            Self::Unknown => 2,
            Self::Critical => 3,
            Self::Failed => 4,
        };
        if rank(other) > rank(self) { other } else { self }
    }
}

/// What the probes of an attempt have found. Written when a verdict changes, not at every check.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ProbesStatus {
    /// Number of the attempt that this is about.
    pub attempt: u64,
    /// The startup probe.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub startup: Option<ProbeStatus>,
    /// The readiness probe.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub readiness: Option<ProbeStatus>,
    /// The liveness probe.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub liveness: Option<ProbeStatus>,
    /// What the process says of itself by sd_notify(3).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notify: Option<Box<NotifyStatus>>,
}

impl ProbesStatus {
    /// One of them.
    pub const fn get(&self, kind: ProbeKind) -> Option<&ProbeStatus> {
        match kind {
            ProbeKind::Startup => self.startup.as_ref(),
            ProbeKind::Readiness => self.readiness.as_ref(),
            ProbeKind::Liveness => self.liveness.as_ref(),
        }
    }

    /// One of them, to change.
    pub const fn get_mut(&mut self, kind: ProbeKind) -> &mut Option<ProbeStatus> {
        match kind {
            ProbeKind::Startup => &mut self.startup,
            ProbeKind::Readiness => &mut self.readiness,
            ProbeKind::Liveness => &mut self.liveness,
        }
    }
}

/// What one probe has found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ProbeStatus {
    /// Its verdict.
    pub verdict: Health,
    /// Whether it counts as passed: as many successes in a row as needed, and not as many failures since.
    pub passed: bool,
    /// Since when the verdict is what it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// What the check said that made it so, at most 256 bytes.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub output: String,
    /// Checks of this attempt so far, at that time.
    pub checks: u64,
    /// Of these: failed.
    pub failed: u64,
    /// Failures in a row, at that time.
    pub failures: u32,
    /// Successes in a row, at that time, as far as they were needed.
    pub successes: u32,
}

/// What a process says of itself by sd_notify(3).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NotifyStatus {
    /// READY=1 was sent, and neither RELOADING=1 nor STOPPING=1 since.
    pub ready: bool,
    /// The last STATUS=, at most 256 bytes.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub text: String,
    /// The last MAINPID= that is a process of the instance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub main_pid: Option<i32>,
}
