//! Process: a long-running command, `replicas` copies of it.

use serde::{Deserialize, Serialize};

use super::{
    Check, Condition, ConfigFile, Dependency, EnvFile, EnvFromSource, EnvVarSource, Fallback, FileWatch, Hook,
    HookKind, Lifecycle, Limits, NotifyProbe, PastRevision, Probe, ProbeKind, Resources, ResourcesStatus, Restart,
    Rollout, Thresholds, Update, WatchStatus,
};
use crate::meta::Metadata;
use crate::quantity::Bytes;
use crate::time::Span;

/// Annotation: the instances were asked to restart at this time.
pub const RESTARTED_AT: &str = "ostler.dev/restartedAt";
/// Annotation: the process was stopped by hand at this time, and stays so until it is started.
pub const STOPPED_AT: &str = "ostler.dev/stoppedAt";

/// Annotation: the trace that the last change belongs to, as a W3C traceparent. Not part of what is asked for: it never
/// counts as a change.
pub const TRACEPARENT: &str = "ostler.dev/traceparent";

/// A long-running command, of which Ostler keeps `replicas` copies running.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Process {
    /// "ostler.dev/v1".
    pub api_version: String,
    /// "Process".
    pub kind: String,
    /// Name, namespace, labels, annotations.
    pub metadata: Metadata,
    /// What should run.
    pub spec: ProcessSpec,
    /// What does run. Written by Ostler.
    #[serde(default)]
    pub status: ProcessStatus,
}

/// What should run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProcessSpec {
    /// How many copies to keep running, 0 to 10000; 1 unless given. Left out when applying to an existing process: as
    /// many as it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<u32>,
    /// The command: its first element is the program, the others its arguments; no shell is involved. A program without
    /// a slash is looked up in PATH; one with a relative path is resolved against the directory of the manifest.
    /// `$(NAME)` is replaced by the variable NAME of the process' environment, `$$` by a dollar sign.
    pub command: Vec<String>,
    /// Further arguments after those of `command`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// The directory it runs in; the directory of the manifest unless given.
    #[serde(default)]
    pub working_dir: String,
    /// Files with variables, read at each start, in this order; later ones win, and `envFrom` and `env` over all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env_files: Vec<EnvFile>,
    /// ConfigMaps and Secrets whose keys become variables, in this order; later ones win, and `env` over all. Keys that
    /// are no names of variables are passed over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env_from: Vec<EnvFromSource>,
    /// ConfigMaps and Secrets as files in a private directory, whose path the process finds in OSTLER_FILES_DIR; they are
    /// written before each start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<ConfigFile>,
    /// Environment variables. Nothing of the daemon's own environment is passed on but what `inheritEnv` names; PATH,
    /// HOME, USER, LOGNAME, SHELL and LANG have sensible values unless set here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<EnvVar>,
    /// Names of variables to take from the daemon's environment at each start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inherit_env: Vec<String>,
    /// Ports it listens on, injected as PORT (the first one) and PORT_<NAME>.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
    /// User to run as, a name or a number; the daemon's own unless given. Needs a daemon that runs as root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Group to run as, a name or a number; the user's own unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// When an ended instance is started again.
    #[serde(default)]
    pub restart_policy: RestartPolicy,
    /// How long restarts wait.
    #[serde(default)]
    pub backoff: Backoff,
    /// Stops restarting for a while after too many failures; off unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub circuit_breaker: Option<CircuitBreaker>,
    /// Restarts that depend on why an attempt ended, how bad that was, and what kind of program it is; without it,
    /// every end is treated alike.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<Box<Restart>>,
    /// What runs instead when retries are exhausted or cannot help, until the spec changes or `ostler restart`; nothing
    /// unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Fallback>,
    /// Exit codes that count as success; [0] unless given.
    #[serde(default = "success")]
    pub success_exit_codes: Vec<u8>,
    /// What each instance may use of the machine; unlimited unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Box<Resources>>,
    /// How an instance is stopped.
    #[serde(default)]
    pub stop: Stop,
    /// Hooks: what runs before and after the start of each instance, and before and after its end; nothing unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifecycle: Option<Box<Lifecycle>>,
    /// Whether an instance has come up: the other probes wait until it passes. As many failures in a row as its
    /// failureThreshold restart the instance as restartPolicy says, which bounds the time a start may take. Once passed,
    /// it is not run again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub startup_probe: Option<Box<Probe>>,
    /// Whether an instance is ready: it decides `ready`, and what waits for that. It never ends anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readiness_probe: Option<Box<Probe>>,
    /// Whether an instance works: as many failures in a row as its failureThreshold stop it, as `stop` says, and restart
    /// it, as restartPolicy, backoff and circuitBreaker say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub liveness_probe: Option<Box<Probe>>,
    /// What is kept of the output.
    #[serde(default)]
    pub logs: Logs,
    /// What has to have happened before an instance is started. It orders starts, and the stops of what stops together
    /// the other way round; nothing is stopped or restarted because of it. A start after a crash does not wait.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub depends_on: Vec<Dependency>,
    /// Files whose change restarts the instances or is told to them; none unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watch: Option<Box<FileWatch>>,
    /// What runs the command.
    #[serde(default)]
    pub driver: Driver,
    /// How a change that needs new processes reaches the instances; left out: one after the other, each when the one
    /// before is available.
    #[serde(default, skip_serializing_if = "Update::is_default")]
    pub update: Update,
    /// How many earlier revisions are kept for `ostler rollout undo`, 0 to 100; 10 unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision_history_limit: Option<u32>,
}

fn success() -> Vec<u8> {
    vec![0]
}

/// One environment variable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EnvVar {
    /// Name of the variable.
    pub name: String,
    /// Its value; `$(NAME)` is replaced by variables defined before it and by those that Ostler sets.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub value: String,
    /// Where its value comes from, instead of `value`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_from: Option<Box<EnvVarSource>>,
}

/// One port that the process listens on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Port {
    /// Name of the port, a DNS label; in PORT_<NAME> it is upper case with '_' for '-'.
    pub name: String,
    /// The number, or "auto" for a free one that the instance then keeps.
    pub port: PortNumber,
}

/// A port number, or the wish for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(untagged, expecting = "a port number from 1 to 65535, or auto")]
pub enum PortNumber {
    /// This one.
    Fixed(std::num::NonZeroU16),
    /// Any free one.
    Auto(AutoPort),
}

/// The word `auto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum AutoPort {
    /// `auto`
    Auto,
}

/// When an ended instance is started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum RestartPolicy {
    /// Whatever its exit code. A manual stop lasts until it is started by hand or the machine reboots.
    #[default]
    Always,
    /// When it ended by a signal or with a code that is not in `successExitCodes`, or could not be started.
    OnFailure,
    /// Never.
    Never,
    /// Like Always, but a manual stop also survives a reboot.
    UnlessStopped,
}

/// How far apart the starts of an instance that keeps ending are. Counted from start to start: the n-th restart in a
/// row comes no sooner than initial × factor^(n-1) after the start before it, so an instance that ran for longer than
/// that is restarted at once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Backoff {
    /// Before the first restart.
    pub initial: Span,
    /// By what each next one is longer, 1 to 100.
    pub factor: f64,
    /// Never longer than this.
    pub max: Span,
    /// Random part of each delay, up or down, 0 to 1: 0.1 is ten per cent.
    pub jitter: f64,
    /// An instance that ran for so long starts counting anew.
    pub reset_after: Span,
    /// Give up after so many restarts in a row because of failures; without it, never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_retries: Option<u32>,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            initial: Span::from_secs(1),
            factor: 2.0,
            max: Span::from_secs(300),
            jitter: 0.1,
            reset_after: Span::from_secs(600),
            max_retries: None,
        }
    }
}

/// Stops restarting for a while after too many failures: `failures` of them within `window` open the breaker; after
/// `cooldown` one trial start is made; if it fails within `window`, the breaker opens again, else it closes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CircuitBreaker {
    /// So many failures, 1 to 100.
    pub failures: u32,
    /// Within this time.
    pub window: Span,
    /// Then wait so long.
    pub cooldown: Span,
}

impl Default for CircuitBreaker {
    fn default() -> Self {
        Self { failures: 5, window: Span::from_secs(60), cooldown: Span::from_secs(300) }
    }
}

/// How an instance is stopped: the signal goes to every process of its tree; what lives after the grace period is
/// killed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Stop {
    /// Name of the signal, such as SIGTERM.
    pub signal: String,
    /// Time between the signal and SIGKILL.
    pub grace_period: Span,
}

impl Default for Stop {
    fn default() -> Self {
        Self { signal: "SIGTERM".to_owned(), grace_period: Span::from_secs(10) }
    }
}

/// What is kept of the output of each instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Logs {
    /// A log file of this size is rotated; at least 4Ki.
    pub max_size: Bytes,
    /// How many files are kept, the current one included; 0 keeps all.
    pub max_files: u32,
    /// Rotated files older than this are removed; 0 keeps them.
    pub max_age: Span,
    /// What happens while the disk is full.
    pub when_blocked: WhenBlocked,
}

impl Default for Logs {
    fn default() -> Self {
        Self {
            max_size: Bytes(10 << 20),
            max_files: 5,
            max_age: Span::from_secs(7 * 86_400),
            when_blocked: WhenBlocked::Block,
        }
    }
}

/// What happens to output while the log cannot be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum WhenBlocked {
    /// It waits in the pipe; the process waits when the pipe is full. Nothing is lost.
    #[default]
    Block,
    /// It is dropped and counted.
    Drop,
}

/// What runs the command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// The operating system: the command is executed as a process.
    #[default]
    Exec,
}

/// A field as JSON.
fn json(value: &impl Serialize) -> serde_json::Value {
    serde_json::to_value(value).expect("specs are plain data")
}

/// What does run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ProcessStatus {
    /// The generation that the rest of the status speaks of.
    pub observed_generation: u64,
    /// Instances that exist.
    pub replicas: u32,
    /// Of these: ready.
    pub ready_replicas: u32,
    /// Of these: ready for as long as `update.minReady`, and so counted on.
    pub available_replicas: u32,
    /// Of these: made from the current spec.
    pub updated_replicas: u32,
    /// Hash of what an instance is made from.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub revision: String,
    /// The number of that revision: revisions of a process are counted from 1.
    #[serde(skip_serializing_if = "is_zero")]
    pub revision_number: u64,
    /// The revision that was last rolled out completely.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub current_revision: String,
    /// Why the present revision was declared: the annotation kubernetes.io/change-cause.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub change_cause: String,
    /// The rollout that is not complete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Box<Rollout>>,
    /// Earlier revisions, the oldest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub revisions: Vec<PastRevision>,
    /// Keyed hash of what ConfigMaps and Secrets give it, of what a change of restarts; part of the revision. What
    /// cannot be found any more is still in it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub config_hash: String,
    /// What is known of the files of `watch`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watch: Option<Box<WatchStatus>>,
    /// Ready, Available, Progressing; FilesWatched, when there are files to watch.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Process {
    /// Identifies everything that an instance is started from: the spec, and what ConfigMaps and Secrets hold.
    pub fn revision(&self) -> String {
        let spec = self.spec.revision();
        if self.status.config_hash.is_empty() {
            return spec;
        }
        let hash = spec.bytes().chain(self.status.config_hash.bytes()).fold(FNV_OFFSET, fnv);
        format!("{hash:016x}")
    }
}

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a: stable across versions and machines, and nobody gains by a collision in their own manifest.
fn fnv(hash: u64, byte: u8) -> u64 {
    (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
}

/// A hash of no more than our own text.
pub(super) fn hash(text: &[u8]) -> u64 {
    text.iter().copied().fold(FNV_OFFSET, fnv)
}

impl ProcessSpec {
    /// The number of copies wanted.
    pub fn replicas(&self) -> u32 {
        self.replicas.unwrap_or(1)
    }

    /// The hard limits, if any.
    pub fn limits(&self) -> Option<&Limits> {
        self.resources.as_ref().map(|resources| &resources.limits).filter(|limits| !limits.is_empty())
    }

    /// The soft thresholds, if any.
    pub fn thresholds(&self) -> Option<&Thresholds> {
        self.resources.as_ref().map(|resources| &resources.thresholds).filter(|thresholds| !thresholds.is_empty())
    }

    /// The hard limits that hold for an instance now, with what its thresholds have done about them. One that may have
    /// to be throttled has a limit of CPU.
    pub fn limits_in_effect(&self, status: Option<&ResourcesStatus>) -> Option<Limits> {
        let resources = self.resources.as_ref()?;
        Some(resources.limits.in_effect(&resources.thresholds, status)).filter(|limits| !limits.is_empty())
    }

    /// What an instance is made from: the spec without what concerns all copies together.
    #[must_use]
    pub fn template(&self) -> Self {
        Self {
            replicas: None,
            update: Update::default(),
            revision_history_limit: None,
            depends_on: Vec::new(),
            watch: None,
            ..self.clone()
        }
    }

    /// This spec with the template of an earlier revision.
    #[must_use]
    pub fn with_template(&self, template: &Self) -> Self {
        Self {
            replicas: self.replicas,
            update: self.update.clone(),
            revision_history_limit: self.revision_history_limit,
            depends_on: self.depends_on.clone(),
            watch: self.watch.clone(),
            ..template.clone()
        }
    }

    /// How many earlier revisions are kept.
    pub fn revision_history_limit(&self) -> usize {
        self.revision_history_limit.unwrap_or(10) as usize
    }

    /// One of the probes.
    pub fn probe(&self, kind: ProbeKind) -> Option<&Probe> {
        match kind {
            ProbeKind::Startup => self.startup_probe.as_deref(),
            ProbeKind::Readiness => self.readiness_probe.as_deref(),
            ProbeKind::Liveness => self.liveness_probe.as_deref(),
        }
    }

    /// The probes that there are.
    pub fn probes(&self) -> impl Iterator<Item = (ProbeKind, &Probe)> {
        ProbeKind::ALL.into_iter().filter_map(|kind| Some((kind, self.probe(kind)?)))
    }

    /// One of the hooks.
    pub fn hook(&self, kind: HookKind) -> Option<&Hook> {
        self.lifecycle.as_ref()?.get(kind)
    }

    /// The probe that has the process speak sd_notify(3), preferably the one with a watchdog.
    pub fn notify(&self) -> Option<&NotifyProbe> {
        let all = || {
            self.probes().flat_map(|(_, probe)| probe.checks()).filter_map(|check| match check {
                Check::Notify(notify) => Some(notify),
                Check::HttpGet(_)
                | Check::TcpSocket(_)
                | Check::Grpc(_)
                | Check::Exec(_)
                | Check::LogLine(_)
                | Check::Resources(_)
                | Check::Process(_) => None,
            })
        };
        all().find(|notify| notify.watchdog.is_some()).or_else(|| all().next())
    }

    /// The fields whose change needs new processes, in the order of the schema. The destructuring makes a new field
    /// choose a side.
    fn restarting(&self) -> Vec<(&'static str, serde_json::Value)> {
        let Self {
            command,
            args,
            working_dir,
            env_files,
            env_from,
            files,
            env,
            inherit_env,
            ports,
            user,
            group,
            driver,
            resources,
            replicas: _,
            restart_policy: _,
            backoff: _,
            circuit_breaker: _,
            restart: _,
            fallback: _,
            success_exit_codes: _,
            stop: _,
            lifecycle: _,
            startup_probe: _,
            readiness_probe: _,
            liveness_probe: _,
            logs: _,
            depends_on: _,
            watch: _,
            update: _,
            revision_history_limit: _,
        } = self;
        vec![
            ("spec.command", json(command)),
            ("spec.args", json(args)),
            ("spec.workingDir", json(working_dir)),
            ("spec.envFiles", json(env_files)),
            ("spec.envFrom", json(env_from)),
            ("spec.files", json(files)),
            ("spec.env", json(env)),
            ("spec.inheritEnv", json(inherit_env)),
            ("spec.ports", json(ports)),
            ("spec.user", json(user)),
            ("spec.group", json(group)),
            ("spec.driver", json(driver)),
            ("spec.resources.limits", resources.as_ref().map_or(serde_json::Value::Null, |it| it.restarting())),
            // Timing and targets of probes may change at any time; what is in the environment may not.
            ("spec.*Probe.notify", json(&self.notify())),
        ]
    }

    /// Identifies everything that an instance is started from; equal revisions need no restart.
    pub fn revision(&self) -> String {
        let mut hash = FNV_OFFSET;
        for (field, value) in self.restarting() {
            if value.is_null() || value.as_array().is_some_and(Vec::is_empty) {
                // A field that is not set hashes to nothing, so that a new optional field changes no revision.
                continue;
            }
            hash = field.bytes().chain(value.to_string().bytes()).fold(hash, fnv);
        }
        format!("{hash:016x}")
    }

    /// The fields that differ from `other` in a way that needs a restart.
    pub fn restart_causes(&self, other: &Self) -> Vec<&'static str> {
        let ours = self.restarting();
        let theirs = other.restarting();
        ours.into_iter().zip(theirs).filter(|(a, b)| a.1 != b.1).map(|(a, _)| a.0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(yaml: &serde_json::Value) -> ProcessSpec {
        serde_json::from_value(yaml.clone()).unwrap()
    }

    #[test]
    fn defaults_are_written_out() {
        let spec = spec(&serde_json::json!({"command": ["true"]}));
        let json = serde_json::to_value(&spec).unwrap();
        assert_eq!(json["restartPolicy"], "Always");
        assert_eq!(json["backoff"]["max"], "5m");
        assert_eq!(json["stop"]["gracePeriod"], "10s");
        assert_eq!(json["logs"]["maxSize"], "10Mi");
        assert_eq!(json["successExitCodes"], serde_json::json!([0]));
    }

    #[test]
    fn only_what_needs_a_restart_changes_the_revision() {
        let base = serde_json::json!({"command": ["sleep", "1"]});
        let with = |key: &str, value: serde_json::Value| {
            let mut changed = base.clone();
            changed[key] = value;
            spec(&changed)
        };
        let base = spec(&base);
        for (key, value) in [
            ("replicas", serde_json::json!(4)),
            ("restartPolicy", serde_json::json!("Never")),
            ("stop", serde_json::json!({"gracePeriod": "1s"})),
            ("logs", serde_json::json!({"maxFiles": 9})),
            ("restart", serde_json::json!({"profile": "Batch"})),
            ("dependsOn", serde_json::json!([{"process": "db"}])),
            ("watch", serde_json::json!({"paths": ["src"]})),
            ("fallback", serde_json::json!({"command": ["true"]})),
            ("readinessProbe", serde_json::json!({"tcpSocket": {"port": 1}})),
            ("livenessProbe", serde_json::json!({"exec": {"command": ["true"]}, "interval": "1s"})),
            ("lifecycle", serde_json::json!({"preStop": {"exec": {"command": ["true"]}}})),
        ] {
            assert_eq!(with(key, value).revision(), base.revision(), "{key}");
        }
        for (key, value) in [
            ("command", serde_json::json!(["sleep", "2"])),
            ("env", serde_json::json!([{"name": "A", "value": "b"}])),
            ("ports", serde_json::json!([{"name": "http", "port": "auto"}])),
            ("user", serde_json::json!("nobody")),
        ] {
            let changed = with(key, value);
            assert_ne!(changed.revision(), base.revision(), "{key}");
            assert_eq!(changed.restart_causes(&base), [format!("spec.{key}")]);
        }
    }

    #[test]
    fn ports_are_numbers_or_auto() {
        let port = |json: &str| serde_json::from_str::<Port>(json);
        assert_eq!(port(r#"{"name":"a","port":"auto"}"#).unwrap().port, PortNumber::Auto(AutoPort::Auto));
        assert!(port(r#"{"name":"a","port":80}"#).is_ok());
        for bad in ["0", "65536", "\"any\"", "-1"] {
            let error = port(&format!(r#"{{"name":"a","port":{bad}}}"#)).unwrap_err().to_string();
            assert!(error.contains("a port number from 1 to 65535, or auto"), "{error}");
        }
    }
}
