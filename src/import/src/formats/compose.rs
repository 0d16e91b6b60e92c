//! process-compose: YAML with `processes`, each a command line for a shell.

use std::collections::BTreeMap;

use ostler_core::Span;
use serde_json::{Value as Json, json};

use super::{DELAY, environment_is_not_inherited};
use crate::Error;
use crate::draft::{Draft, Names, dns_name};
use crate::fields::{Fields, texts};
use crate::notes::Notes;
use crate::tree::{self, Node, Value};
use crate::words;

/// What holds for every process of a file.
struct Project {
    shell: Vec<String>,
    environment: Vec<(String, String, u32)>,
    vars: BTreeMap<String, String>,
    /// Whether `$NAME` in the file is replaced before anybody reads it, and `$$` is a dollar sign.
    expands: bool,
}

pub(crate) fn read(text: &str, notes: &mut Notes) -> Result<Vec<Json>, Error> {
    let mut top = Fields::of("", tree::parse(text)?, notes);
    let processes = top.take("processes");
    let mut shell = top.part("shell", notes);
    let mut words = |key: &str, usual: &str, notes: &mut Notes| {
        shell.text(key, notes).map_or_else(|| usual.to_owned(), |(text, _)| text)
    };
    let project = Project {
        shell: vec![words("shell_command", "bash", notes), words("shell_argument", "-c", notes)],
        environment: environment(&mut top, notes),
        vars: vars(&mut top, notes),
        expands: !top.flag("disable_env_expansion", notes).is_some_and(|(off, _)| off),
    };
    shell.lost(&["elevated_shell_command", "elevated_shell_argument"], "nothing is elevated; see user", notes);
    shell.finish(notes);
    top.skip(&["version", "name"]);
    // Where the file keeps what its aliases refer to.
    top.drain_prefixed(&["x-"]);
    top.lost(&["env_cmds"], "commands are not run for values of variables; run them in the command itself", notes);
    top.lost(&["extends"], "import the other file too, and apply both", notes);
    let own = "concerns process-compose itself";
    top.hint(
        &["log_level", "log_location", "log_length", "log_format", "log_configuration", "is_strict", "is_tui_disabled"],
        own,
        notes,
    );
    top.hint(&["ordered_shutdown"], own, notes);
    top.finish(notes);
    environment_is_not_inherited(notes, "your shell and of a file .env");
    let mut names = Names::default();
    let processes = processes.map(|entry| Fields::of("processes", entry.node, notes).drain()).unwrap_or_default();
    let mut objects = Vec::new();
    for entry in processes {
        let draft = Draft::new(&entry.key, entry.line, &mut names, notes);
        objects.push(process(draft, Fields::of(&entry.key, entry.node, notes), &project, notes));
    }
    Ok(objects)
}

fn process(mut draft: Draft, mut fields: Fields, project: &Project, notes: &mut Notes) -> Json {
    let mut vars = project.vars.clone();
    vars.extend(self::vars(&mut fields, notes));
    let mut source = Text { vars: &vars, project, ordinal: false };
    for (name, value, line) in project.environment.clone().into_iter().chain(environment(&mut fields, notes)) {
        let value = source.value(&value, &mut draft, &fields.path("environment"), line, notes);
        draft.env(&name, value, line, notes);
    }
    if let Some((replicas, _)) = fields.count("replicas", notes) {
        draft.replicas = replicas;
    }
    if let Some((dir, line)) = fields.text("working_dir", notes) {
        draft.working_dir = Some(source.plain(&dir, &fields.path("working_dir"), line, notes));
    }
    command(&mut draft, &mut fields, &mut source, notes);
    if source.ordinal {
        draft.env("PC_REPLICA_NUM", "$(OSTLER_ORDINAL)".to_owned(), draft.line, notes);
    }
    if let Some((text, _)) = fields.text("description", notes) {
        draft.describe("description", &text);
    }
    if let Some((namespace, line)) = fields.text("namespace", notes) {
        draft.label("namespace", &namespace, line, notes);
        notes.hint(
            line,
            &fields.path("namespace"),
            format!("is a label: ostler get processes -l namespace={namespace}"),
        );
    }
    availability(&mut draft, fields.part("availability", notes), notes);
    shutdown(&mut draft, fields.part("shutdown", notes), &mut source, notes);
    logs(&mut draft, &mut fields, notes);
    if let Some((texts, line)) = fields.texts("success_exit_codes", notes) {
        let codes: Vec<u8> = texts.iter().filter_map(|text| text.trim().parse().ok()).collect();
        if codes.len() < texts.len() {
            notes.lost(line, &fields.path("success_exit_codes"), "exit codes are numbers from 0 to 255");
        }
        if codes.iter().any(|code| *code > 128) {
            let how = "a code above 128 stands for a signal too there; an end by a signal is a failure here";
            notes.near(line, &fields.path("success_exit_codes"), how);
        }
        // 0 is always one there.
        let codes: Vec<u8> = std::iter::once(0).chain(codes.into_iter().filter(|code| *code != 0)).collect();
        if codes.len() > 1 {
            draft.set("successExitCodes", codes);
        }
    }
    if let Some((true, line)) = fields.flag("disabled", notes) {
        draft.disable(line, &fields.path("disabled"), notes);
    }
    if let Some((true, line)) = fields.flag("is_foreground", notes) {
        draft.disable(line, &fields.path("is_foreground"), notes);
    }
    if let Some((true, line)) = fields.flag("is_daemon", notes) {
        let what = "the command has to stay in the foreground: find the flag for that";
        notes.lost(line, &fields.path("is_daemon"), what);
    }
    for (key, why) in [
        ("is_tty", "there are no terminals"),
        ("is_interactive", "there are no terminals"),
        ("is_elevated", "nothing is elevated; see user"),
        ("is_dotenv_disabled", "no file .env is read in any case"),
    ] {
        if let Some((true, line)) = fields.flag(key, notes) {
            notes.lost(line, &fields.path(key), why);
        }
    }
    depends_on(&mut draft, &mut fields, notes);
    fields.lost(&["readiness_probe", "liveness_probe", "ready_log_line"], "a process is ready when it runs", notes);
    fields.lost(&["launch_timeout_seconds"], "only of use with is_daemon", notes);
    fields.lost(&["schedule"], "there are no schedules", notes);
    fields.lost(&["env_cmds"], "commands are not run for values of variables", notes);
    fields.drain_prefixed(&["x-"]);
    fields.hint(&["disable_ansi_colors"], "output is kept as it was written", notes);
    fields.finish(notes);
    draft.finish(notes)
}

/// What has to have happened before the start.
fn depends_on(draft: &mut Draft, fields: &mut Fields, notes: &mut Notes) {
    let Some(entry) = fields.take("depends_on") else { return };
    let about = fields.path("depends_on");
    let Value::Map(others) = &entry.node.value else {
        notes.lost(entry.line, &about, "is not a mapping of processes to conditions");
        return;
    };
    let mut list = Vec::new();
    for other in others {
        let about = format!("{about}.{}", other.key);
        let condition = match other.node.value.get("condition") {
            Some(Value::Text(text)) => text.as_str(),
            Some(Value::Null | Value::List(_) | Value::Map(_)) | None => "process_started",
        };
        let condition = match condition {
            "process_started" => "Started",
            "process_healthy" | "process_log_ready" => "Ready",
            "process_completed_successfully" => "Completed",
            "process_completed" => {
                notes.near(other.line, &about, "Completed means with success; a failure is waited out");
                "Completed"
            }
            unknown => {
                notes.lost(other.line, &about, format!("there is no condition {unknown:?}"));
                continue;
            }
        };
        list.push(json!({"process": dns_name(&other.key), "condition": condition}));
    }
    if !list.is_empty() {
        draft.set("dependsOn", list);
    }
}

/// Texts of a file, in which process-compose replaces templates and variables.
struct Text<'a> {
    vars: &'a BTreeMap<String, String>,
    project: &'a Project,
    /// Whether anything asked for the number of the copy.
    ordinal: bool,
}

/// Seconds that process-compose gives a command that stops a process.
const SHUTDOWN_TIMEOUT: u64 = 10;

/// Stands for the number of the copy until dollar signs have been dealt with.
const ORDINAL: char = '\u{e000}';

impl Text<'_> {
    /// With templates replaced.
    fn plain(&mut self, text: &str, about: &str, line: u32, notes: &mut Notes) -> String {
        let mut out = String::new();
        let mut rest = text;
        while let Some(at) = rest.find("{{") {
            let Some(end) = rest[at..].find("}}").map(|end| at + end + 2) else { break };
            out.push_str(&rest[..at]);
            let name = rest[at + 2..end - 2].trim().trim_start_matches('.');
            if name == "PC_REPLICA_NUM" {
                out.push(ORDINAL);
            } else if let Some(value) = self.vars.get(name) {
                out.push_str(value);
            } else {
                notes.lost(line, about, format!("the template {} cannot be filled in", &rest[at..end]));
                out.push_str(&rest[at..end]);
            }
            rest = &rest[end..];
        }
        out.push_str(rest);
        out
    }

    /// A command line, for a shell.
    fn command(&mut self, text: &str, draft: &mut Draft, about: &str, line: u32, notes: &mut Notes) -> String {
        let text = self.plain(text, about, line, notes);
        self.ordinal |= text.contains("$PC_REPLICA_NUM") || text.contains("${PC_REPLICA_NUM");
        for variable in words::variables(&text) {
            if variable != "PC_REPLICA_NUM" {
                draft.inherit(&variable);
            }
        }
        if self.project.expands { text.replace("$$", "$") } else { text }
    }

    /// The value of a variable, as a manifest has it.
    fn value(&mut self, text: &str, draft: &mut Draft, about: &str, line: u32, notes: &mut Notes) -> String {
        let text = self.plain(text, about, line, notes);
        if !self.project.expands {
            return ordinal(&words::literal(&text));
        }
        let mut inherit = Vec::new();
        let expanded = words::expand(&text, true, |name| {
            inherit.push(name.to_owned());
            format!("$({name})")
        });
        for name in inherit {
            draft.inherit(&name);
        }
        ordinal(&expanded)
    }
}

fn ordinal(text: &str) -> String {
    text.replace(ORDINAL, "$(OSTLER_ORDINAL)")
}

fn command(draft: &mut Draft, fields: &mut Fields, source: &mut Text<'_>, notes: &mut Notes) {
    let entrypoint = fields.texts("entrypoint", notes);
    let command = fields.text("command", notes);
    if let Some((entrypoint, line)) = entrypoint {
        let about = fields.path("entrypoint");
        // The command is one more argument then.
        for word in entrypoint.into_iter().chain(command.map(|(text, _)| text)) {
            let word = source.command(&word, draft, &about, line, notes);
            draft.command.push(ordinal(&words::literal(&word)));
        }
    } else if let Some((text, line)) = command {
        let text = source.command(&text, draft, &fields.path("command"), line, notes);
        draft.shell(&text, &source.project.shell);
        draft.command.iter_mut().for_each(|word| *word = ordinal(word));
    }
    if draft.command.is_empty() {
        notes.lost(draft.line, &fields.path("command"), "there is no command: `true` stands in its place");
        draft.command = vec!["true".to_owned()];
    }
}

fn availability(draft: &mut Draft, mut fields: Fields, notes: &mut Notes) {
    let policy = match fields.text("restart", notes) {
        None => "Never",
        Some((text, line)) => match text.as_str() {
            "always" => "Always",
            "on_failure" => "OnFailure",
            "no" | "false" => "Never",
            "exit_on_failure" => {
                notes.lost(line, &fields.path("restart"), "a failure ends nothing but the process itself");
                "Never"
            }
            other => {
                notes.lost(line, &fields.path("restart"), format!("{other:?} is not known here; Never is written"));
                "Never"
            }
        },
    };
    if policy != "Always" {
        draft.set("restartPolicy", policy);
    }
    if let Some((seconds, line)) = fields.count("backoff_seconds", notes)
        && policy != "Never"
    {
        draft.constant_delay(Span::from_secs(seconds.max(1)));
        notes.near(line, &fields.path("backoff_seconds"), DELAY);
    }
    if let Some((restarts, line)) = fields.count("max_restarts", notes)
        && restarts > 0
        && policy != "Never"
    {
        draft.set_in("backoff", "maxRetries", restarts.min(u64::from(u32::MAX)));
        notes.near(
            line,
            &fields.path("max_restarts"),
            "counts failures in a row; having run for 10m, counting begins anew",
        );
    }
    for key in ["exit_on_end", "exit_on_skipped"] {
        if let Some((true, line)) = fields.flag(key, notes) {
            notes.lost(line, &fields.path(key), "the end of a process ends nothing else");
        }
    }
    fields.finish(notes);
}

fn shutdown(draft: &mut Draft, mut fields: Fields, source: &mut Text<'_>, notes: &mut Notes) {
    if let Some((signal, line)) = fields.text("signal", notes) {
        draft.signal(&signal, line, &fields.path("signal"), notes);
    }
    let seconds = fields.count("timeout_seconds", notes);
    if let Some((seconds, _)) = seconds {
        draft.stop(None, Some(Span::from_secs(seconds)));
    }
    if let Some((true, line)) = fields.flag("parent_only", notes) {
        notes.near(line, &fields.path("parent_only"), "the signal goes to every process of the tree");
    }
    if let Some((text, line)) = fields.text("command", notes) {
        let about = fields.path("command");
        let text = source.command(&text, draft, &about, line, notes);
        let words = words::for_shell(&text, &source.project.shell);
        let command: Vec<String> = words.iter().map(|word| ordinal(&words::literal(word))).collect();
        // What it leaves running would be killed there, too, after this time.
        let timeout = Span::from_secs(seconds.map_or(SHUTDOWN_TIMEOUT, |(seconds, _)| seconds.max(1)));
        draft.set_in("lifecycle", "preStop", json!({"exec": {"command": command}, "timeout": timeout.to_string()}));
        notes.near(line, &about, "runs within the grace period, and the signal follows it");
    }
    fields.finish(notes);
}

fn logs(draft: &mut Draft, fields: &mut Fields, notes: &mut Notes) {
    fields.near(&["log_location"], "output is kept in the state directory: ostler logs", notes);
    let mut logs = fields.part("log_configuration", notes);
    let mut rotation = logs.part("rotation", notes);
    if let Some((size, _)) = rotation.count("max_size_mb", notes) {
        draft.set_in("logs", "maxSize", format!("{size}Mi"));
    }
    if let Some((files, _)) = rotation.count("max_backups", notes) {
        // The current one counts here.
        draft.set_in("logs", "maxFiles", if files == 0 { 0 } else { files + 1 });
    }
    if let Some((days, _)) = rotation.count("max_age_days", notes) {
        draft.set_in("logs", "maxAge", if days == 0 { "0".to_owned() } else { format!("{days}d") });
    }
    rotation.lost(&["compress"], "rotated files are not compressed", notes);
    rotation.near(&["directory", "filename"], "output is kept in the state directory: ostler logs", notes);
    rotation.finish(notes);
    let raw = "output is kept as it was written; ostler logs --timestamps adds times";
    logs.near(&["fields_order", "disable_json", "timestamp_format", "no_metadata", "add_timestamp"], raw, notes);
    logs.hint(&["no_color", "flush_each_line"], raw, notes);
    logs.finish(notes);
}

/// `- NAME=value` lines, or a mapping.
fn environment(fields: &mut Fields, notes: &mut Notes) -> Vec<(String, String, u32)> {
    let about = fields.path("environment");
    let Some(entry) = fields.take("environment") else { return Vec::new() };
    let mut pairs = Vec::new();
    match entry.node.value {
        Value::List(items) => {
            for item in items {
                match &item.value {
                    Value::Text(text) if text.contains('=') => {
                        let (name, value) = text.split_once('=').unwrap_or((text, ""));
                        pairs.push((name.to_owned(), value.to_owned(), item.line));
                    }
                    Value::Null | Value::Text(_) | Value::List(_) | Value::Map(_) => {
                        notes.lost(item.line, &about, "is not NAME=value, and left out");
                    }
                }
            }
        }
        Value::Map(entries) => {
            for entry in entries {
                let Some(value) = scalar(&entry.node) else {
                    notes.lost(entry.line, &about, "is not a text, and left out");
                    continue;
                };
                pairs.push((entry.key, value, entry.line));
            }
        }
        Value::Null | Value::Text(_) => notes.lost(entry.line, &about, "is not a list of NAME=value"),
    }
    pairs
}

fn scalar(node: &Node) -> Option<String> {
    match &node.value {
        Value::Null => Some(String::new()),
        Value::Text(text) => Some(text.clone()),
        Value::List(_) | Value::Map(_) => None,
    }
}

/// Values for templates.
fn vars(fields: &mut Fields, notes: &mut Notes) -> BTreeMap<String, String> {
    let part = fields.part("vars", notes).drain();
    part.into_iter().filter_map(|entry| Some((entry.key, texts(&entry.node)?.join(" ")))).collect()
}
