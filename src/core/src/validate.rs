//! What types cannot say: rules over values. Every violation is reported, not only the first.

use std::collections::BTreeSet;

use crate::config;
use crate::globs::Globs;
use crate::kinds::{
    ConfigMap, CronJob, Dependency, DependencyCondition, EndCause, EnvVar, External, FileWatch, Job, JobSpec, Kind,
    OnFileChange, Port, PortNumber, Process, ProcessSpec, Restart, RestartPolicy, RetryBackoff, Secret, Source,
    Strategy, WatchAction,
};
use crate::meta::Metadata;
use crate::plan::external::Matcher;
use crate::schedule::Schedule;
use crate::time::Span;
use crate::{name, signal};

mod lifecycle;
mod probes;
mod resources;

/// One violation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// Path from the top of the object: `spec.ports[1].port`.
    pub field: String,
    /// What is wrong and what is right.
    pub message: String,
}

struct Findings(Vec<FieldError>);

impl Findings {
    fn add(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.0.push(FieldError { field: field.into(), message: message.into() });
    }

    fn check(&mut self, field: impl Into<String>, result: Result<(), String>) {
        if let Err(message) = result {
            self.add(field, message);
        }
    }
}

/// Checks names, labels and annotations.
pub fn metadata(metadata: &Metadata, kind: Kind) -> Vec<FieldError> {
    let mut found = Findings(Vec::new());
    if metadata.name.is_empty() {
        found.add("metadata.name", "a name is needed");
    } else {
        let rule = match kind {
            Kind::ConfigMap | Kind::Secret => name::dns_subdomain,
            Kind::Namespace
            | Kind::Process
            | Kind::Job
            | Kind::CronJob
            | Kind::Instance
            | Kind::Source
            | Kind::External
            | Kind::Event => name::dns_label,
        };
        found.check("metadata.name", rule(&metadata.name));
    }
    if kind.is_namespaced() {
        if !metadata.namespace.is_empty() {
            found.check("metadata.namespace", name::dns_label(&metadata.namespace));
        }
    } else if !metadata.namespace.is_empty() {
        found.add("metadata.namespace", format!("a {kind} lives in no namespace"));
    }
    for (key, value) in &metadata.labels {
        found.check(format!("metadata.labels.{key}"), name::qualified(key).and_then(|()| name::label_value(value)));
    }
    let mut size = 0;
    for (key, value) in &metadata.annotations {
        found.check(format!("metadata.annotations.{key}"), name::qualified(key));
        size += key.len() + value.len();
    }
    if size > 256 << 10 {
        found.add("metadata.annotations", "annotations may have 256 KiB in all");
    }
    found.0
}

/// Checks a whole Process.
pub fn process(process: &Process) -> Vec<FieldError> {
    let mut found = Findings(metadata(&process.metadata, Kind::Process));
    // The name of an instance, which adds a dash and up to four digits, has to be a DNS label too.
    if process.metadata.name.len() > 58 {
        found.add("metadata.name", "the name of a Process may have 58 characters, so that those of its instances fit");
    }
    spec(&process.spec, &mut found);
    not_itself(&process.spec.depends_on, Kind::Process, &process.metadata, "spec", &mut found);
    found.0
}

/// What waits for itself waits for ever.
fn not_itself(depends_on: &[Dependency], kind: Kind, metadata: &Metadata, path: &str, found: &mut Findings) {
    let own = if metadata.namespace.is_empty() { "default" } else { metadata.namespace.as_str() };
    let itself = |it: &Dependency| it.target() == (kind, metadata.name.as_str()) && it.namespace(own) == own;
    for (index, _) in depends_on.iter().enumerate().filter(|(_, it)| itself(it)) {
        found.add(format!("{path}.dependsOn[{index}]"), format!("a {kind} cannot wait for itself"));
    }
}

/// Checks a whole Source.
pub fn source(source: &Source) -> Vec<FieldError> {
    let mut found = Findings(metadata(&source.metadata, Kind::Source));
    let spec = &source.spec;
    if spec.path.is_empty() {
        found.add("spec.path", "a directory is needed");
    } else if spec.path.contains('\0') {
        found.add("spec.path", "must not contain a NUL character");
    } else if !spec.path.starts_with('/') {
        found.add("spec.path", "must be absolute once it reaches the daemon");
    }
    if !spec.namespace.is_empty() {
        found.check("spec.namespace", name::dns_label(&spec.namespace));
    }
    let day = Span::from_secs(86_400);
    if !(Span::from_millis(100)..=day).contains(&spec.interval) {
        found.add("spec.interval", "from 100ms to 24h");
    }
    if !(Span::from_secs(1)..=day).contains(&spec.timeout) {
        found.add("spec.timeout", "from 1s to 24h");
    }
    let mut names = BTreeSet::new();
    for (index, other) in spec.depends_on.iter().enumerate() {
        let field = format!("spec.dependsOn[{index}]");
        found.check(&field, name::dns_label(other));
        if *other == source.metadata.name {
            found.add(&field, "a Source cannot wait for itself");
        }
        if !names.insert(other) {
            found.add(&field, format!("{other} is given twice"));
        }
    }
    found.0
}

/// Checks a whole Job.
pub fn job(job: &Job) -> Vec<FieldError> {
    let mut found = Findings(metadata(&job.metadata, Kind::Job));
    if job.metadata.name.len() > 57 {
        found.add("metadata.name", "the name of a Job may have 57 characters, so that those of its instances fit");
    }
    job_spec(&job.spec, "spec", &mut found);
    let depends_on = &job.spec.template.spec().depends_on;
    not_itself(depends_on, Kind::Job, &job.metadata, "spec.template", &mut found);
    found.0
}

/// Checks a whole CronJob.
pub fn cronjob(cronjob: &CronJob) -> Vec<FieldError> {
    let mut found = Findings(metadata(&cronjob.metadata, Kind::CronJob));
    // A Job of it adds a dash and the seconds since 1970.
    if cronjob.metadata.name.len() > 46 {
        found.add("metadata.name", "the name of a CronJob may have 46 characters, so that those of its Jobs fit");
    }
    let spec = &cronjob.spec;
    if let Err((field, message)) = Schedule::of(spec, None) {
        found.add(field, message);
    }
    let template = &spec.job_template;
    for (key, value) in &template.metadata.labels {
        let valid = name::qualified(key).and_then(|()| name::label_value(value));
        found.check(format!("spec.jobTemplate.metadata.labels.{key}"), valid);
    }
    for key in template.metadata.annotations.keys() {
        found.check(format!("spec.jobTemplate.metadata.annotations.{key}"), name::qualified(key));
    }
    job_spec(&template.spec, "spec.jobTemplate.spec", &mut found);
    found.0
}

fn job_spec(job: &JobSpec, path: &str, found: &mut Findings) {
    if !(1..=10_000).contains(&job.completions) {
        found.add(format!("{path}.completions"), "from 1 to 10000");
    }
    if job.parallelism > 1000 {
        found.add(format!("{path}.parallelism"), "from 0 to 1000");
    }
    if job.backoff_limit > 10_000 {
        found.add(format!("{path}.backoffLimit"), "at most 10000");
    }
    let RetryBackoff { initial, factor, max, jitter } = &job.backoff;
    if !(1.0..=100.0).contains(factor) {
        found.add(format!("{path}.backoff.factor"), "from 1 to 100");
    }
    if !(0.0..=1.0).contains(jitter) {
        found.add(format!("{path}.backoff.jitter"), "from 0 to 1");
    }
    if initial > max {
        found.add(format!("{path}.backoff.initial"), format!("must not be longer than max ({max})"));
    }
    if job.active_deadline == Some(Span::ZERO) {
        found.add(format!("{path}.activeDeadline"), "must not be zero");
    }
    let mut inside = Findings(Vec::new());
    spec(job.template.spec(), &mut inside);
    for FieldError { field, message } in inside.0 {
        let field = field.strip_prefix("spec.").unwrap_or(&field);
        found.add(format!("{path}.template.{field}"), message);
    }
}

/// Checks a whole External.
pub fn external(external: &External) -> Vec<FieldError> {
    let mut found = Findings(metadata(&external.metadata, Kind::External));
    let spec = &external.spec;
    let discovery = &spec.discovery;
    if let Err(why) = Matcher::new(discovery) {
        let field = if discovery.command.is_some() { "spec.discovery.command" } else { "spec.discovery" };
        found.add(if why.starts_with("exactly one") { "spec.discovery" } else { field }, why);
    }
    for (field, path) in [("pidFile", &discovery.pid_file), ("cgroup", &discovery.cgroup)] {
        if path.as_ref().is_some_and(|path| !path.starts_with('/') || path.contains('\0')) {
            found.add(format!("spec.discovery.{field}"), "an absolute path is needed");
        }
    }
    for (field, word) in
        [("command", &discovery.command), ("name", &discovery.name), ("systemdUnit", &discovery.systemd_unit)]
    {
        if word.as_ref().is_some_and(String::is_empty) {
            found.add(format!("spec.discovery.{field}"), "must not be empty: it would match everything or nothing");
        }
    }
    if discovery.name.as_ref().is_some_and(|name| name.len() > 15) {
        found.add("spec.discovery.name", "the kernel keeps 15 bytes of a name; use command for longer ones");
    }
    if discovery.systemd_unit.as_ref().is_some_and(|unit| !unit.contains('.') || unit.contains('/')) {
        found.add("spec.discovery.systemdUnit", "the name of a unit with its suffix is needed, such as nginx.service");
    }
    if !(Span::from_secs(1)..=Span::from_secs(3600)).contains(&spec.interval) {
        found.add("spec.interval", "from 1s to 1h");
    }
    for (index, word) in spec.allowed_signals.iter().enumerate() {
        let field = format!("spec.allowedSignals[{index}]");
        match signal::parse(word) {
            Ok(1..=31) => {}
            Ok(_) => found.add(field, "real-time signals cannot be allowed"),
            Err(why) => found.add(field, why),
        }
    }
    found.0
}

fn spec(spec: &ProcessSpec, found: &mut Findings) {
    if spec.replicas() > 10_000 {
        found.add("spec.replicas", "at most 10000");
    }
    if spec.command.first().is_none_or(String::is_empty) {
        found.add("spec.command", "a program is needed, such as command: [\"python3\", \"-m\", \"http.server\"]");
    }
    for (field, words) in [("command", &spec.command), ("args", &spec.args)] {
        for (index, word) in words.iter().enumerate() {
            if word.contains('\0') {
                found.add(format!("spec.{field}[{index}]"), "must not contain a NUL character");
            }
        }
    }
    if !spec.working_dir.is_empty() && !spec.working_dir.starts_with('/') {
        found.add("spec.workingDir", "must be absolute once it reaches the daemon");
    }
    let mut names = BTreeSet::new();
    for (index, variable) in spec.env.iter().enumerate() {
        let field = format!("spec.env[{index}].name");
        found.check(&field, name::variable(&variable.name));
        if variable.value.contains('\0') {
            found.add(format!("spec.env[{index}].value"), "must not contain a NUL character");
        }
        if !names.insert(&variable.name) {
            found.add(&field, format!("{} is given twice", variable.name));
        }
        if config::is_reserved(&variable.name) {
            found.add(&field, format!("{} is set by Ostler", variable.name));
        }
        value_from(index, variable, found);
    }
    for (index, variable) in spec.inherit_env.iter().enumerate() {
        found.check(format!("spec.inheritEnv[{index}]"), name::variable(variable));
    }
    references(spec, found);
    ports(spec, found);
    update(spec, found);
    depends_on(&spec.depends_on, found);
    for (field, value) in [("user", &spec.user), ("group", &spec.group)] {
        if value.as_ref().is_some_and(|text| text.is_empty() || text.contains(['\0', ':'])) {
            found.add(format!("spec.{field}"), format!("must be the name or the number of a {field}"));
        }
    }
    let backoff = &spec.backoff;
    if !(1.0..=100.0).contains(&backoff.factor) {
        found.add("spec.backoff.factor", "from 1 to 100");
    }
    if !(0.0..=1.0).contains(&backoff.jitter) {
        found.add("spec.backoff.jitter", "from 0 to 1");
    }
    if backoff.initial > backoff.max {
        found.add("spec.backoff.initial", format!("must not be longer than max ({})", backoff.max));
    }
    if let Some(breaker) = &spec.circuit_breaker {
        if !(1..=100).contains(&breaker.failures) {
            found.add("spec.circuitBreaker.failures", "from 1 to 100");
        }
        if breaker.window == Span::ZERO {
            found.add("spec.circuitBreaker.window", "must not be zero");
        }
    }
    if let Some(restart) = &spec.restart {
        self::restart(restart, spec, found);
    }
    if let Some(fallback) = &spec.fallback {
        if fallback.command.first().is_none_or(String::is_empty) {
            found.add("spec.fallback.command", "a program is needed, such as command: [\"./safe-mode\"]");
        }
        for (index, _) in fallback.command.iter().enumerate().filter(|(_, word)| word.contains('\0')) {
            found.add(format!("spec.fallback.command[{index}]"), "must not contain a NUL character");
        }
        if spec.restart_policy == RestartPolicy::Never {
            found.add("spec.fallback", "is never used with restartPolicy: Never, which never retries");
        }
    }
    if spec.success_exit_codes.is_empty() {
        found.add("spec.successExitCodes", "at least one code; 0 is the default");
    }
    resources::check(spec, found);
    found.check("spec.stop.signal", signal::parse(&spec.stop.signal).map(drop));
    if spec.stop.grace_period > Span::from_secs(86_400) {
        found.add("spec.stop.gracePeriod", "at most 24h");
    }
    for (kind, probe) in spec.probes() {
        probes::check(spec, kind, probe, found);
    }
    lifecycle::check(spec, found);
    if spec.logs.max_size.0 < 4096 {
        found.add("spec.logs.maxSize", "at least 4Ki");
    }
    if spec.logs.max_files == 1 {
        found.add("spec.logs.maxFiles", "at least 2, so that a rotation keeps what was just written; or 0 for all");
    }
}

fn restart(restart: &Restart, spec: &ProcessSpec, found: &mut Findings) {
    let severities = &restart.severities;
    for (name, value) in
        [("warning", severities.warning), ("critical", severities.critical), ("emergency", severities.emergency)]
    {
        if !(0.01..=100.0).contains(&value) {
            found.add(format!("spec.restart.severities.{name}"), "from 0.01 to 100");
        }
    }
    for cause in EndCause::ALL {
        let Some(instead) = restart.of(cause) else { continue };
        let field = format!("spec.restart.{}", Restart::field(cause));
        if instead.factor.is_some_and(|factor| !(1.0..=100.0).contains(&factor)) {
            found.add(format!("{field}.factor"), "from 1 to 100");
        }
        let max = instead.max.unwrap_or(spec.backoff.max);
        if instead.initial.unwrap_or(spec.backoff.initial) > max {
            let part = if instead.initial.is_some() { "initial" } else { "max" };
            found.add(format!("{field}.{part}"), format!("initial must not be longer than max ({max})"));
        }
    }
}

/// Checks a whole ConfigMap.
pub fn config_map(object: &ConfigMap) -> Vec<FieldError> {
    let mut found = Findings(metadata(&object.metadata, Kind::ConfigMap));
    let mut size = 0;
    for (key, value) in &object.data {
        found.check(format!("data.{key}"), name::config_key(key));
        size += value.len();
    }
    for (key, value) in &object.binary_data {
        let field = format!("binaryData.{key}");
        found.check(&field, name::config_key(key));
        if object.data.contains_key(key) {
            found.add(&field, "is in data, too");
        }
        match config::decode(value) {
            Some(bytes) => size += bytes.len(),
            None => found.add(&field, "is not base64; plain text belongs into data"),
        }
    }
    if size > config::MAX_SIZE {
        found.add("data", format!("{size} bytes in all, at most {} are allowed", config::MAX_SIZE));
    }
    found.0
}

/// Checks a whole Secret. No message repeats a value.
pub fn secret(object: &Secret) -> Vec<FieldError> {
    let mut found = Findings(metadata(&object.metadata, Kind::Secret));
    let mut size = 0;
    for (key, value) in &object.data {
        let field = format!("data.{key}");
        found.check(&field, name::config_key(key));
        match config::decode(&value.0) {
            Some(bytes) => size += bytes.len(),
            None if value.0.starts_with("<redacted") => {
                found.add(&field, "is what reads show instead of the value; `--show-secrets` shows the value");
            }
            None => found.add(&field, "is not base64; plain text belongs into stringData"),
        }
    }
    if size > config::MAX_SIZE {
        found.add("data", format!("{size} bytes in all, at most {} are allowed", config::MAX_SIZE));
    }
    let needed: &[&str] = match object.secret_type.as_str() {
        "" => {
            found.add("type", "must not be empty; leave it out for Opaque");
            &[]
        }
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/basic-auth" if !object.data.contains_key("password") => &["username"],
        _ => &[],
    };
    for key in needed.iter().filter(|key| !object.data.contains_key(**key)) {
        found.add(format!("data.{key}"), format!("a secret of type {} needs it", object.secret_type));
    }
    found.0
}

fn value_from(index: usize, variable: &EnvVar, found: &mut Findings) {
    let Some(from) = variable.value_from.as_deref() else { return };
    let field = format!("spec.env[{index}].valueFrom");
    if !variable.value.is_empty() {
        found.add(&field, "either value or valueFrom, not both");
    }
    match (&from.config_map_key_ref, &from.secret_key_ref) {
        (Some(_), Some(_)) | (None, None) => found.add(&field, "one of configMapKeyRef and secretKeyRef is needed"),
        (Some(to), None) | (None, Some(to)) => {
            let part = if from.config_map_key_ref.is_some() { "configMapKeyRef" } else { "secretKeyRef" };
            found.check(format!("{field}.{part}.name"), name::dns_subdomain(&to.name));
            found.check(format!("{field}.{part}.key"), name::config_key(&to.key));
        }
    }
}

fn update(spec: &ProcessSpec, found: &mut Findings) {
    let update = &spec.update;
    if update.strategy == Strategy::RollingUpdate && update.max_surge.is_zero() && update.max_unavailable.is_zero() {
        found.add("spec.update.maxUnavailable", "must not be zero when maxSurge is: nothing could ever be replaced");
    }
    if update.strategy == Strategy::Recreate && !update.max_surge.is_zero() {
        found.add("spec.update.maxSurge", "strategy Recreate stops all instances before it starts new ones");
    }
    let fixed = spec.ports.iter().any(|port| matches!(port.port, PortNumber::Fixed(_)));
    if fixed && !update.max_surge.is_zero() {
        found.add("spec.update.maxSurge", "an additional instance cannot share a fixed port; use port: auto");
    }
    for (field, amount) in [("maxSurge", update.max_surge), ("maxUnavailable", update.max_unavailable)] {
        if amount.percent().is_some_and(|percent| percent > 100) {
            found.add(format!("spec.update.{field}"), "at most 100%");
        }
    }
    if update.max_surge.percent().is_none() && update.limits(1).0 > 10_000 {
        found.add("spec.update.maxSurge", "at most 10000");
    }
    if update.progress_deadline <= update.min_ready {
        found.add("spec.update.progressDeadline", format!("must be longer than minReady ({})", update.min_ready));
    }
    if spec.revision_history_limit.is_some_and(|limit| limit > 100) {
        found.add("spec.revisionHistoryLimit", "at most 100");
    }
}

/// References to ConfigMaps, Secrets and files with variables; and that no argument shows a secret.
fn references(spec: &ProcessSpec, found: &mut Findings) {
    for (index, from) in spec.env_from.iter().enumerate() {
        let field = format!("spec.envFrom[{index}]");
        match (&from.config_map_ref, &from.secret_ref) {
            (Some(_), Some(_)) | (None, None) => found.add(&field, "one of configMapRef and secretRef is needed"),
            (Some(to), None) | (None, Some(to)) => {
                let part = if from.config_map_ref.is_some() { "configMapRef" } else { "secretRef" };
                found.check(format!("{field}.{part}.name"), name::dns_subdomain(&to.name));
            }
        }
        if !from.prefix.is_empty() {
            found.check(format!("{field}.prefix"), name::config_key(&from.prefix));
        }
    }
    for (index, file) in spec.env_files.iter().enumerate() {
        if !file.path.starts_with('/') || file.path.contains('\0') {
            found.add(format!("spec.envFiles[{index}].path"), "must be absolute once it reaches the daemon");
        }
    }
    files(spec, found);
    if let Some(watch) = &spec.watch {
        self::watch(watch, found);
    }
    let hidden = config::secret_variables(spec);
    let fallback = spec.fallback.iter().flat_map(|fallback| &fallback.command);
    let words = spec
        .command
        .iter()
        .enumerate()
        .map(|(index, word)| (format!("spec.command[{index}]"), word))
        .chain(spec.args.iter().enumerate().map(|(index, word)| (format!("spec.args[{index}]"), word)))
        .chain(fallback.enumerate().map(|(index, word)| (format!("spec.fallback.command[{index}]"), word)));
    for (field, word) in words {
        for name in config::names_in(word).iter().filter(|name| hidden.contains(name.as_str())) {
            found.add(
                field.clone(),
                format!(
                    "$({name}) comes from a Secret, and every user can see arguments; read it from the environment"
                ),
            );
        }
    }
}

/// Files from ConfigMaps and Secrets: nothing may lie outside of their directory, or where something else lies.
fn files(spec: &ProcessSpec, found: &mut Findings) {
    let mut paths: Vec<&str> = Vec::new();
    for (index, file) in spec.files.iter().enumerate() {
        let field = format!("spec.files[{index}]");
        match (&file.config_map_ref, &file.secret_ref) {
            (Some(_), Some(_)) | (None, None) => found.add(&field, "one of configMapRef and secretRef is needed"),
            (Some(to), None) | (None, Some(to)) => {
                let part = if file.config_map_ref.is_some() { "configMapRef" } else { "secretRef" };
                found.check(format!("{field}.{part}.name"), name::dns_subdomain(&to.name));
                if let Some(key) = &to.key {
                    found.check(format!("{field}.{part}.key"), name::config_key(key));
                }
            }
        }
        let path = &file.path;
        let odd = |part: &str| part.is_empty() || part == "." || part.starts_with("..") || part.len() > 200;
        if path.contains('\0') || path.len() > 1000 || path.split('/').any(odd) {
            let rule =
                "a relative path such as conf/app.conf is needed, without empty parts or parts that begin with ..";
            found.add(format!("{field}.path"), rule);
        }
        let inside = |a: &str, b: &str| a == b || a.strip_prefix(b).is_some_and(|rest| rest.starts_with('/'));
        if let Some(other) = paths.iter().find(|other| inside(path, other) || inside(other, path)) {
            found.add(format!("{field}.path"), format!("{path} and {other} are in each other's way"));
        }
        paths.push(path);
        if let Some(signal) = &file.signal {
            found.check(format!("{field}.signal"), signal::parse(signal).map(drop));
            if file.on_change != OnFileChange::Signal {
                found.add(format!("{field}.signal"), "is for onChange: Signal");
            }
        }
    }
}

fn watch(watch: &FileWatch, found: &mut Findings) {
    if watch.paths.is_empty() {
        found.add("spec.watch.paths", "a file or directory is needed, such as paths: [\"src\"]");
    }
    for (index, path) in watch.paths.iter().enumerate() {
        if path.is_empty() || path.contains('\0') {
            found.add(format!("spec.watch.paths[{index}]"), "a path is needed, such as src or /etc/app.conf");
        }
    }
    for (field, patterns) in [("include", &watch.include), ("exclude", &watch.exclude)] {
        for (index, pattern) in patterns.iter().enumerate() {
            if let Err(why) = Globs::new(&[], std::slice::from_ref(pattern)) {
                found.add(format!("spec.watch.{field}[{index}]"), why.to_string());
            }
        }
    }
    if !(Span::from_millis(10)..=Span::from_secs(3600)).contains(&watch.debounce) {
        found.add("spec.watch.debounce", "from 10ms to 1h");
    }
    if let Some(signal) = &watch.signal {
        found.check("spec.watch.signal", signal::parse(signal).map(drop));
        if watch.action != WatchAction::Signal {
            found.add("spec.watch.signal", "is for action: Signal");
        }
    }
    if watch.cascade && watch.action != WatchAction::Restart {
        found.add("spec.watch.cascade", "is for action: Restart");
    }
}

fn depends_on(dependencies: &[Dependency], found: &mut Findings) {
    let mut seen = BTreeSet::new();
    for (index, dependency) in dependencies.iter().enumerate() {
        let field = format!("spec.dependsOn[{index}]");
        let (kind, name) = dependency.target();
        if dependency.process.is_some() == dependency.job.is_some() {
            found.add(&field, "names either a process or a job, such as {process: db}");
            continue;
        }
        found.check(format!("{field}.{}", kind.singular()), name::dns_label(name));
        if let Some(namespace) = &dependency.namespace {
            found.check(format!("{field}.namespace"), name::dns_label(namespace));
        }
        if !seen.insert((kind, &dependency.namespace, name)) {
            found.add(&field, format!("{} is given twice", dependency.shown()));
        }
        if kind == Kind::Job && dependency.condition == Some(DependencyCondition::Ready) {
            found.add(format!("{field}.condition"), "a Job is Started or Completed, never Ready");
        }
        if dependency.timeout.is_some_and(|it| !(Span::from_millis(1)..=Span::from_secs(7 * 86_400)).contains(&it)) {
            found.add(format!("{field}.timeout"), "from 1ms to 168h; left out, there is no limit");
        }
    }
}

fn ports(spec: &ProcessSpec, found: &mut Findings) {
    let mut names = BTreeSet::new();
    let mut numbers = BTreeSet::new();
    for (index, Port { name, port }) in spec.ports.iter().enumerate() {
        found.check(format!("spec.ports[{index}].name"), name::dns_label(name));
        if !names.insert(name) {
            found.add(format!("spec.ports[{index}].name"), format!("{name} is given twice"));
        }
        let PortNumber::Fixed(number) = port else { continue };
        if !numbers.insert(number) {
            found.add(format!("spec.ports[{index}].port"), format!("{number} is given twice"));
        }
        if spec.replicas() > 1 {
            let message = format!("{} instances cannot share port {number}; use port: auto", spec.replicas());
            found.add(format!("spec.ports[{index}].port"), message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::decode;
    use serde_json::json;

    fn fields(spec: &serde_json::Value) -> Vec<String> {
        let object =
            json!({"apiVersion": "ostler.dev/v1", "kind": "Process", "metadata": {"name": "web"}, "spec": spec});
        process(&decode(&object).unwrap()).into_iter().map(|error| error.field).collect()
    }

    #[test]
    fn files_stay_in_their_directory_and_out_of_each_others_way() {
        let file = |path: &str| json!({"path": path, "configMapRef": {"name": "app", "key": "a"}});
        let with = |files: serde_json::Value| fields(&json!({"command": ["x"], "files": files}));
        assert!(with(json!([file("a"), file("b/c"), file("b/d"), file(".hidden")])).is_empty());
        for bad in ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a/", ".", "./a", "..live-1", "a\0b"] {
            assert_eq!(with(json!([file(bad)])), ["spec.files[0].path"], "{bad:?}");
        }
        for (one, other) in [("a", "a"), ("a", "a/b"), ("a/b/c", "a/b")] {
            assert_eq!(with(json!([file(one), file(other)])), ["spec.files[1].path"], "{one} {other}");
        }
        assert_eq!(with(json!([{"path": "a"}])), ["spec.files[0]"]);
        let mut signal = file("a");
        signal["signal"] = json!("SIGUSR1");
        assert_eq!(with(json!([signal])), ["spec.files[0].signal"]);
        signal["onChange"] = json!("Signal");
        assert!(with(json!([signal])).is_empty());
    }

    #[test]
    fn what_is_watched_has_paths_patterns_and_one_way_to_be_told() {
        let with = |watch: serde_json::Value| fields(&json!({"command": ["x"], "watch": watch}));
        assert!(with(json!({"paths": ["src", "/etc/app"], "include": ["*.py"], "exclude": ["a/**"]})).is_empty());
        assert!(with(json!({"paths": ["src"], "action": "Signal", "signal": "USR1"})).is_empty());
        for (watch, field) in [
            (json!({"paths": []}), "paths"),
            (json!({"paths": ["a", ""]}), "paths[1]"),
            (json!({"paths": ["a"], "include": ["a["]}), "include[0]"),
            (json!({"paths": ["a"], "exclude": ["/a"]}), "exclude[0]"),
            (json!({"paths": ["a"], "debounce": "1ms"}), "debounce"),
            (json!({"paths": ["a"], "signal": "SIGHUP"}), "signal"),
            (json!({"paths": ["a"], "action": "Signal", "cascade": true}), "cascade"),
        ] {
            assert_eq!(with(watch), [format!("spec.watch.{field}")]);
        }
    }

    #[test]
    fn a_plain_process_is_valid() {
        assert!(fields(&json!({"command": ["sleep", "1"], "ports": [{"name": "http", "port": 80}]})).is_empty());
    }

    #[test]
    fn an_external_is_looked_for_in_one_way() {
        let fields = |spec: serde_json::Value| -> Vec<String> {
            let object =
                json!({"apiVersion": "ostler.dev/v1", "kind": "External", "metadata": {"name": "db"}, "spec": spec});
            external(&decode(&object).unwrap()).into_iter().map(|error| error.field).collect()
        };
        for good in [
            json!({"discovery": {"pidFile": "/run/x.pid"}}),
            json!({"discovery": {"command": "^nginx: master"}, "interval": "1s", "allowedSignals": ["HUP", "SIGTERM"]}),
            json!({"discovery": {"port": 5432}}),
            json!({"discovery": {"systemdUnit": "nginx.service"}}),
        ] {
            assert_eq!(fields(good.clone()), Vec::<String>::new(), "{good}");
        }
        for (bad, field) in [
            (json!({"discovery": {}}), "spec.discovery"),
            (json!({"discovery": {"port": 1, "name": "x"}}), "spec.discovery"),
            (json!({"discovery": {"command": "("}}), "spec.discovery.command"),
            (json!({"discovery": {"command": ""}}), "spec.discovery.command"),
            (json!({"discovery": {"pidFile": "x.pid"}}), "spec.discovery.pidFile"),
            (json!({"discovery": {"name": "a-name-of-17-bytes"}}), "spec.discovery.name"),
            (json!({"discovery": {"systemdUnit": "nginx"}}), "spec.discovery.systemdUnit"),
            (json!({"discovery": {"port": 1}, "interval": "1ms"}), "spec.interval"),
            (json!({"discovery": {"port": 1}, "allowedSignals": ["NOPE"]}), "spec.allowedSignals[0]"),
            (json!({"discovery": {"port": 1}, "allowedSignals": ["HUP", "RTMIN"]}), "spec.allowedSignals[1]"),
        ] {
            assert_eq!(fields(bad.clone()), [field], "{bad}");
        }
    }

    #[test]
    fn a_source_needs_a_directory_and_sensible_times() {
        let fields = |spec: serde_json::Value| -> Vec<String> {
            let object =
                json!({"apiVersion": "ostler.dev/v1", "kind": "Source", "metadata": {"name": "apps"}, "spec": spec});
            source(&decode(&object).unwrap()).into_iter().map(|error| error.field).collect()
        };
        assert!(fields(json!({"path": "/srv/apps"})).is_empty());
        let found = fields(json!({"path": "here", "namespace": "No", "interval": "1ms", "timeout": "0s",
            "dependsOn": ["apps", "base", "base"]}));
        assert_eq!(
            found,
            ["spec.path", "spec.namespace", "spec.interval", "spec.timeout", "spec.dependsOn[0]", "spec.dependsOn[2]"]
        );
    }

    #[test]
    fn every_violation_is_reported_with_its_place() {
        let found = fields(&json!({
            "replicas": 3, "command": [""], "workingDir": "here",
            "env": [{"name": "A"}, {"name": "A"}, {"name": "PORT"}, {"name": "x=y"}],
            "ports": [{"name": "http", "port": 80}, {"name": "http", "port": "auto"}, {"name": "Not", "port": "auto"}],
            "backoff": {"factor": 0.5, "jitter": 2.0, "initial": "10m"},
            "circuitBreaker": {"failures": 0, "window": "0s"},
            "restart": {"severities": {"warning": 0.0}, "onCrash": {"factor": 0.1, "initial": "6m"}, "onStartup": {"max": "1s"}},
            "fallback": {"command": []}, "restartPolicy": "Never",
            "resources": {"limits": {"memory": "1Ki", "cpu": "1m", "processes": 0, "openFiles": 3, "ioWeight": 0, "nice": 20}},
            "revisionHistoryLimit": 1000,
            "dependsOn": [{"process": "a", "job": "b"}, {}, {"process": "No"}, {"process": "web"}, {"process": "web"},
                {"job": "a", "condition": "Ready", "timeout": "0s"}],
            "update": {"maxSurge": "200%", "progressDeadline": "1s", "minReady": "1s"},
            "stop": {"signal": "SIGTREM"}, "logs": {"maxSize": 10, "maxFiles": 1}, "successExitCodes": [],
        }));
        assert_eq!(
            found,
            [
                "spec.command",
                "spec.workingDir",
                "spec.env[1].name",
                "spec.env[2].name",
                "spec.env[3].name",
                "spec.ports[0].port",
                "spec.ports[1].name",
                "spec.ports[2].name",
                "spec.update.maxSurge",
                "spec.update.maxSurge",
                "spec.update.progressDeadline",
                "spec.revisionHistoryLimit",
                "spec.dependsOn[0]",
                "spec.dependsOn[1]",
                "spec.dependsOn[2].process",
                "spec.dependsOn[4]",
                "spec.dependsOn[5].condition",
                "spec.dependsOn[5].timeout",
                "spec.backoff.factor",
                "spec.backoff.jitter",
                "spec.backoff.initial",
                "spec.circuitBreaker.failures",
                "spec.circuitBreaker.window",
                "spec.restart.severities.warning",
                "spec.restart.onCrash.factor",
                "spec.restart.onCrash.initial",
                "spec.restart.onStartup.max",
                "spec.fallback.command",
                "spec.fallback",
                "spec.successExitCodes",
                "spec.resources.limits.memory",
                "spec.resources.limits.cpu",
                "spec.resources.limits.processes",
                "spec.resources.limits.openFiles",
                "spec.resources.limits.ioWeight",
                "spec.resources.limits.nice",
                "spec.stop.signal",
                "spec.logs.maxSize",
                "spec.logs.maxFiles",
                "spec.dependsOn[3]",
                "spec.dependsOn[4]",
            ]
        );
    }
}
