//! HSU's process manager, in both dialects: that of its architecture document (`control.executable`) and that of its
//! programs (`standard_managed.control.execution.executable_path`).

use ostler_core::Span;
use ostler_core::kinds::{Profile, Restart, ViolationPolicy};
use ostler_core::quantity::{Bytes, Cpu};
use serde_json::{Map, Value as Json};

use super::environment_is_not_inherited;
use crate::Error;
use crate::draft::{Draft, Names};
use crate::fields::{Fields, texts};
use crate::notes::Notes;
use crate::tree::{self, Node, Value};
use crate::words;

const LOGS: &str = "output is kept in the state directory: ostler logs";

/// Limits of the logs that hold for every process unless it says otherwise.
#[derive(Default)]
struct Rotation {
    size: Option<u64>,
    files: Option<u64>,
    age: Option<Span>,
}

pub(crate) fn read(text: &str, notes: &mut Notes) -> Result<Vec<Json>, Error> {
    let mut top = Fields::of("", tree::parse(text)?, notes);
    environment_is_not_inherited(notes, "the process manager");
    for entry in top.part("process_manager", notes).drain() {
        notes.hint(entry.line, &format!("process_manager.{}", entry.key), "concerns the process manager itself");
    }
    let rotation = log_collection(top.part("log_collection", notes), notes);
    let processes = top.take("managed_processes");
    top.finish(notes);
    let mut names = Names::default();
    let mut objects = Vec::new();
    let items = match processes.map(|entry| entry.node) {
        Some(Node { value: Value::List(items), .. }) => items,
        Some(node) => {
            notes.lost(node.line, "managed_processes", "is not a list");
            Vec::new()
        }
        None => Vec::new(),
    };
    for item in items {
        let line = item.line;
        let mut fields = Fields::of("managed_processes", item, notes);
        let name = fields.text("id", notes).map_or_else(|| "process".to_owned(), |(id, _)| id);
        fields.about.clone_from(&name);
        let kind = fields.text("type", notes);
        if let Some(("unmanaged", line)) = kind.as_ref().map(|(kind, line)| (kind.as_str(), *line)) {
            notes.lost(line, &fields.path("type"), "only what Ostler starts itself is managed; left out");
            continue;
        }
        let mut draft = Draft::new(&name, line, &mut names, notes);
        rotation.apply(&mut draft);
        objects.push(process(draft, fields, kind, notes));
    }
    Ok(objects)
}

fn process(mut draft: Draft, mut fields: Fields, kind: Option<(String, u32)>, notes: &mut Notes) -> Json {
    if let Some((profile, line)) = fields.text("profile_type", notes) {
        draft.label("profile", &profile, line, notes);
        let known = [Profile::Web, Profile::Worker, Profile::Scheduler, Profile::Batch, Profile::Database];
        if let Some(known) = known.into_iter().find(|known| known.name().eq_ignore_ascii_case(&profile)) {
            draft.set_in("restart", "profile", known.name());
        }
    }
    let enabled = fields.flag("enabled", notes);
    let mut management = fields.part("management", notes);
    management.about.clone_from(&fields.about);
    let typed = ["standard_managed", "integrated_managed"].into_iter().find_map(|key| management.take(key));
    let mut typed = match typed {
        Some(entry) => Fields::of(fields.about.clone(), entry.node, notes),
        None => Fields::new(fields.about.clone(), Vec::new()),
    };
    metadata(&mut draft, typed.part("metadata", notes), notes);
    let nested = typed.take("control").map(|entry| Fields::of(typed.path("control"), entry.node, notes));
    if let Some(control) = nested {
        self::control(&mut draft, control, notes);
    } else {
        let control = management.part("control", notes);
        architecture_control(&mut draft, control, &mut management, notes);
    }
    for part in [&mut typed, &mut management] {
        health_check(part, notes);
    }
    match kind {
        Some((kind, line)) if kind == "integrated_managed" => {
            draft.port("grpc", None);
            if draft.command.iter().all(|word| word != "--port") {
                draft.command.extend(["--port".to_owned(), "$(PORT)".to_owned()]);
            }
            notes.near(line, &fields.path("type"), "has a free port of its own, told by --port and the variable PORT");
        }
        Some((kind, line)) if kind != "standard_managed" => {
            notes.lost(line, &fields.path("type"), format!("{kind:?} is not known here"));
        }
        Some(_) | None => {}
    }
    if let Some((false, line)) = enabled {
        draft.disable(line, &fields.path("enabled"), notes);
    }
    typed.finish(notes);
    management.finish(notes);
    fields.finish(notes);
    if draft.command.is_empty() {
        notes.lost(draft.line, &draft.name.clone(), "there is no executable: `true` stands in its place");
        draft.command = vec!["true".to_owned()];
    }
    draft.finish(notes)
}

fn metadata(draft: &mut Draft, mut fields: Fields, notes: &mut Notes) {
    for (key, annotation) in [("name", "display-name"), ("description", "description"), ("version", "version")] {
        if let Some((text, _)) = fields.text(key, notes) {
            draft.describe(annotation, &text);
        }
    }
    if let Some((tags, _)) = fields.texts("tags", notes) {
        draft.describe("tags", &tags.join(","));
    }
    fields.finish(notes);
}

fn control(draft: &mut Draft, mut fields: Fields, notes: &mut Notes) {
    let mut execution = fields.part("execution", notes);
    execute(draft, &mut execution, "executable_path", "args", notes);
    execution.lost(&["wait_delay"], "the daemon does not wait for pipes; a stop ends when the tree is gone", notes);
    execution.finish(notes);
    let simple = fields.text("restart_policy", notes);
    let mut restart = fields.part("restart", notes);
    let policy = restart.text("policy", notes).or(simple);
    self::policy(draft, policy.as_ref(), &fields.path("restart_policy"), notes);
    let mut context = fields.part("context_aware_restart", notes);
    let mut usual = context.part("default", notes);
    let mut delays = if usual.is_empty() { restart } else { std::mem::replace(&mut usual, restart) };
    let never = policy.as_ref().is_some_and(|(text, _)| is_never(text));
    backoff(draft, &mut delays, ["max_retries", "retry_delay", "backoff_rate"], never, notes);
    delays.finish(notes);
    usual.finish(notes);
    for (key, field) in [("health_failures", "onLiveness"), ("resource_violations", "onResource")] {
        let mut other = context.part(key, notes);
        if !never && !other.is_empty() {
            draft.set_in("restart", field, override_of(&mut other, notes));
        }
        other.skip(&["max_retries", "retry_delay", "backoff_rate"]);
        other.finish(notes);
    }
    patience(draft, &mut context, notes);
    context.finish(notes);
    limits(draft, fields.part("limits", notes), notes);
    if let Some((grace, _)) = fields.duration("graceful_timeout", notes) {
        draft.stop(None, Some(grace));
    }
    let mut logs = fields.part("log_collection", notes);
    logs.skip(&["enabled", "capture_stdout", "capture_stderr"]);
    logs.near(&["outputs"], LOGS, notes);
    logs.lost(&["processing", "buffering", "enhancement"], "output is kept as it was written", notes);
    logs.finish(notes);
    fields.finish(notes);
}

fn architecture_control(draft: &mut Draft, mut control: Fields, fields: &mut Fields, notes: &mut Notes) {
    execute(draft, &mut control, "executable", "arguments", notes);
    if let Some((grace, _)) = control.duration("shutdown_timeout", notes) {
        draft.stop(None, Some(grace));
    }
    control.lost(&["startup_timeout"], "a process is ready when it runs", notes);
    control.finish(notes);
    let mut restart = fields.part("restart_policy", notes);
    let policy = restart.text("strategy", notes);
    self::policy(draft, policy.as_ref(), &restart.path("strategy"), notes);
    let never = policy.as_ref().is_some_and(|(text, _)| is_never(text));
    backoff(draft, &mut restart, ["max_attempts", "restart_delay", "backoff_multiplier"], never, notes);
    restart.finish(notes);
    architecture_limits(draft, fields.part("resource_limits", notes), notes);
    let mut logs = fields.part("logging", notes);
    for key in ["capture_stdout", "capture_stderr"] {
        if let Some((false, line)) = logs.flag(key, notes) {
            notes.near(line, &logs.path(key), "output is kept in any case; logs.maxSize bounds it");
        }
    }
    for entry in logs.drain() {
        notes.near(entry.line, &logs.path(&entry.key), LOGS);
    }
}

fn execute(draft: &mut Draft, fields: &mut Fields, program: &str, arguments: &str, notes: &mut Notes) {
    if let Some((path, line)) = fields.text(program, notes) {
        let mut unix = path.clone();
        if path.contains('\\') || path.to_ascii_lowercase().ends_with(".exe") {
            unix = path.replace('\\', "/");
            unix.truncate(unix.len() - if unix.to_ascii_lowercase().ends_with(".exe") { 4 } else { 0 });
            notes.near(line, &fields.path(program), format!("a path of Windows; {unix} is written"));
        }
        draft.command.push(words::literal(&unix));
    }
    if let Some((arguments, _)) = fields.texts(arguments, notes) {
        draft.command.extend(arguments.iter().map(|word| words::literal(word)));
    }
    if let Some((dir, _)) = fields.text("working_directory", notes) {
        draft.working_dir = Some(dir);
    }
    let about = fields.path("environment");
    if let Some(entry) = fields.take("environment") {
        match entry.node.value {
            Value::Map(entries) => {
                for entry in entries {
                    let value = texts(&entry.node).map(|text| text.join(" ")).unwrap_or_default();
                    draft.env(&entry.key, words::literal(&value), entry.line, notes);
                }
            }
            Value::List(_) | Value::Text(_) | Value::Null => {
                for text in texts(&entry.node).unwrap_or_default() {
                    match text.split_once('=') {
                        Some((name, value)) => draft.env(name, words::literal(value), entry.line, notes),
                        None => notes.lost(entry.line, &about, format!("{text:?} is not NAME=value")),
                    }
                }
            }
        }
    }
}

fn is_never(policy: &str) -> bool {
    matches!(policy, "never" | "no" | "none")
}

fn policy(draft: &mut Draft, policy: Option<&(String, u32)>, about: &str, notes: &mut Notes) {
    let Some((text, line)) = policy else { return };
    let policy = match text.replace('_', "-").as_str() {
        "always" => return,
        "on-failure" => "OnFailure",
        "unless-stopped" => "UnlessStopped",
        other if is_never(other) => "Never",
        other => return notes.lost(*line, about, format!("{other:?} is not known here; Always is written")),
    };
    draft.set("restartPolicy", policy);
}

fn backoff(draft: &mut Draft, fields: &mut Fields, keys: [&str; 3], never: bool, notes: &mut Notes) {
    let [retries, delay, rate] = keys;
    let retries = fields.count(retries, notes);
    let delay = fields.duration(delay, notes);
    let rate = fields.factor(rate, notes).map_or(2.0, |(rate, _)| rate);
    if never {
        return;
    }
    if let Some((delay, _)) = delay {
        draft.backoff(delay, rate.max(1.0), None);
    }
    if let Some((retries, _)) = retries {
        draft.set_in("backoff", "maxRetries", retries.min(u64::from(u32::MAX)));
    }
}

/// What takes the place of the usual delays after one sort of failure.
fn override_of(fields: &mut Fields, notes: &mut Notes) -> Json {
    let mut instead = Map::new();
    if let Some((delay, _)) = fields.duration("retry_delay", notes) {
        instead.insert("initial".to_owned(), delay.to_string().into());
    }
    if let Some((rate, _)) = fields.factor("backoff_rate", notes) {
        instead.insert("factor".to_owned(), rate.clamp(1.0, 100.0).into());
    }
    if let Some((retries, _)) = fields.count("max_retries", notes) {
        instead.insert("maxRetries".to_owned(), retries.min(u64::from(u32::MAX)).into());
    }
    instead.into()
}

/// How long thresholds wait; the defaults, which are HSU's, are not written.
fn patience(draft: &mut Draft, fields: &mut Fields, notes: &mut Notes) {
    let usual = Restart::default();
    for (key, field, usual) in [
        ("startup_grace_period", "startupGrace", usual.startup_grace),
        ("sustained_violation_time", "sustainedViolation", usual.sustained_violation),
        ("spike_tolerance_time", "spikeTolerance", usual.spike_tolerance),
    ] {
        if let Some((span, _)) = fields.duration(key, notes).filter(|(span, _)| *span != usual) {
            draft.set_in("restart", field, span.min(Span::from_secs(86_400)).to_string());
        }
    }
}

/// Limits with policies, which are thresholds here: nothing in the kernel enforces them.
fn limits(draft: &mut Draft, mut fields: Fields, notes: &mut Notes) {
    let amount = |measure: &str, amount: f64| -> Json {
        match measure {
            // Whole units, where that makes no difference.
            "memory" if amount >= f64::from(16 << 20) => Bytes(amount as u64 >> 20 << 20).to_string().into(),
            "memory" => Bytes(amount as u64).to_string().into(),
            "cpu" => Cpu(amount as u32).to_string().into(),
            _ => (amount as u32).into(),
        }
    };
    for (part, key, measure, unit) in [
        ("memory", "max_rss", "memory", 1.0),
        // Per cent of a core.
        ("cpu", "max_percent", "cpu", 10.0),
        ("process", "max_file_descriptors", "openFiles", 1.0),
    ] {
        let mut limit = fields.part(part, notes);
        let most = limit.factor(key, notes).map(|(most, line)| (most * unit, line));
        let share = limit.factor("warning_threshold", notes).map(|(percent, _)| percent / 100.0);
        let policy = limit.text("policy", notes);
        if part == "process" {
            // Both are in one part; its policy is that of either.
            if let Some((most, _)) = limit.factor("max_child_processes", notes).filter(|(most, _)| *most >= 1.0) {
                let mut other = Map::new();
                other.insert("critical".to_owned(), amount("processes", most));
                if let Some(policy) = policy.as_ref().and_then(|(policy, _)| violation(policy)) {
                    other.insert("policy".to_owned(), policy.name().into());
                }
                draft.threshold("processes", other.into());
            }
        }
        let Some((most, line)) = most.filter(|(most, _)| *most >= unit) else {
            limit.finish(notes);
            continue;
        };
        let mut threshold = Map::new();
        let policy = policy.and_then(|(policy, line)| {
            let known = violation(&policy);
            if known.is_none() {
                notes.lost(line, &limit.path("policy"), format!("{policy} is not known; it is told as an event"));
            }
            known
        });
        // Throttling ends below a warning level.
        let usual = (policy == Some(ViolationPolicy::Throttle)).then_some(0.8);
        if let Some(share) = share.filter(|share| (0.01..1.0).contains(share)).or(usual) {
            threshold.insert("warning".to_owned(), amount(measure, most * share));
        }
        threshold.insert("critical".to_owned(), amount(measure, most));
        if let Some(policy) = policy {
            threshold.insert("policy".to_owned(), policy.name().into());
        }
        draft.threshold(measure, threshold.into());
        notes.near(line, &limit.path(key), "is a threshold, of the whole process tree");
        limit.finish(notes);
    }
    fields.lost(&["io"], "there are no thresholds of input and output", notes);
    fields.finish(notes);
}

fn violation(policy: &str) -> Option<ViolationPolicy> {
    Some(match policy {
        "none" => ViolationPolicy::None,
        "log" => ViolationPolicy::Log,
        "alert" => ViolationPolicy::Alert,
        "throttle" => ViolationPolicy::Throttle,
        "graceful_shutdown" => ViolationPolicy::GracefulShutdown,
        "immediate_kill" => ViolationPolicy::Kill,
        "restart" => ViolationPolicy::Restart,
        "restart_adjusted" => ViolationPolicy::RestartAdjusted,
        _ => return None,
    })
}

/// Limits without policies.
fn architecture_limits(draft: &mut Draft, mut fields: Fields, notes: &mut Notes) {
    if let Some((megabytes, _)) = fields.count("max_memory_mb", notes).filter(|(count, _)| *count > 0) {
        draft.limit("memory", Bytes(megabytes.saturating_mul(1 << 20)).to_string());
    }
    if let Some((percent, _)) = fields.factor("max_cpu_percent", notes).filter(|(percent, _)| *percent >= 1.0) {
        draft.limit("cpu", Cpu((percent * 10.0) as u32).to_string());
    }
    if let Some((count, _)) = fields.count("max_file_descriptors", notes).filter(|(count, _)| *count >= 16) {
        draft.limit("openFiles", count.min(u64::from(u32::MAX)));
    }
    fields.finish(notes);
}

fn health_check(fields: &mut Fields, notes: &mut Notes) {
    let Some(entry) = fields.take("health_check") else { return };
    let about = fields.path("health_check");
    let mut health = Fields::of(about.clone(), entry.node, notes);
    let mut run = health.part("run_options", notes);
    let off = [run.flag("enabled", notes), health.flag("enabled", notes)].into_iter().flatten().any(|(on, _)| !on);
    // That the process lives is what Ostler looks at in any case.
    let lives = health.text("type", notes).is_some_and(|(kind, _)| kind == "process");
    if !off && !lives {
        notes.lost(entry.line, &about, "a process is ready when it runs");
    }
}

fn log_collection(mut fields: Fields, notes: &mut Notes) -> Rotation {
    let mut rotation = Rotation::default();
    fields.skip(&["enabled"]);
    let mut usual = fields.part("default", notes);
    usual.skip(&["enabled", "capture_stdout", "capture_stderr"]);
    if let Some(outputs) = usual.take("outputs") {
        rotation.find(outputs.node, notes);
        notes.near(outputs.line, "log_collection.default.outputs", LOGS);
    }
    usual.lost(&["processing", "buffering"], "output is kept as it was written", notes);
    usual.finish(notes);
    fields.lost(
        &["global_aggregation"],
        "each instance has a log of its own: ostler logs process/NAME shows several",
        notes,
    );
    fields.near(
        &["enhancement"],
        "output is kept as it was written; ostler logs --timestamps --prefix adds to it",
        notes,
    );
    fields.hint(&["system"], "concerns the process manager itself", notes);
    fields.finish(notes);
    rotation
}

impl Rotation {
    /// Takes the largest limits of all outputs.
    fn find(&mut self, node: Node, notes: &mut Notes) {
        match node.value {
            Value::Map(entries) => {
                for entry in entries {
                    if entry.key == "rotation" {
                        let mut fields = Fields::of("log_collection.rotation", entry.node, notes);
                        self.size = self.size.max(fields.bytes("max_size", notes).map(|(size, _)| size));
                        self.files = self.files.max(fields.count("max_files", notes).map(|(files, _)| files));
                        self.age = self.age.max(fields.duration("max_age", notes).map(|(age, _)| age));
                        fields.lost(&["compress"], "rotated files are not compressed", notes);
                        fields.finish(notes);
                    } else {
                        self.find(entry.node, notes);
                    }
                }
            }
            Value::List(items) => items.into_iter().for_each(|item| self.find(item, notes)),
            Value::Null | Value::Text(_) => {}
        }
    }

    fn apply(&self, draft: &mut Draft) {
        if let Some(size) = self.size {
            draft.set_in("logs", "maxSize", ostler_core::quantity::Bytes(size.max(4096)).to_string());
        }
        if let Some(files) = self.files {
            draft.set_in("logs", "maxFiles", if files == 0 { 0 } else { files.max(2) });
        }
        if let Some(age) = self.age {
            draft.set_in("logs", "maxAge", age.to_string());
        }
    }
}
