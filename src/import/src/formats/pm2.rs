//! PM2: an ecosystem file as JSON or YAML, with `apps`.

use ostler_core::Span;
use ostler_core::globs::Globs;
use ostler_core::quantity::Bytes;
use serde_json::{Value as Json, json};

use super::{DELAY, environment_is_not_inherited};
use crate::Error;
use crate::draft::{self, Draft, Names, dns_name};
use crate::fields::{Fields, texts};
use crate::notes::Notes;
use crate::tree::{self, Node, Value};
use crate::{units, words};

/// What PM2 runs a script with, by the end of its name.
const INTERPRETERS: [(&str, &str); 11] = [
    ("js", "node"),
    ("cjs", "node"),
    ("mjs", "node"),
    ("ts", "bun"),
    ("tsx", "bun"),
    ("py", "python3"),
    ("rb", "ruby"),
    ("php", "php"),
    ("pl", "perl"),
    ("sh", "bash"),
    ("coffee", "coffee"),
];
/// How long PM2 waits between SIGINT and SIGKILL.
const KILL_TIMEOUT: Span = Span::from_millis(1600);

pub(crate) fn read(text: &str, notes: &mut Notes) -> Result<Vec<Json>, Error> {
    let root = tree::parse(text)?;
    environment_is_not_inherited(notes, "your shell");
    let apps: Vec<Node> = match &root.value {
        Value::List(items) => items.clone(),
        Value::Map(_) if root.value.get("script").is_some() => vec![root.clone()],
        Value::Map(_) | Value::Null | Value::Text(_) => {
            let mut top = Fields::of("", root, notes);
            let apps = top.take_any(&["apps", "pm2"]);
            top.lost(&["deploy"], "nothing is deployed to other machines", notes);
            top.finish(notes);
            match apps.map(|entry| entry.node) {
                Some(Node { value: Value::List(items), .. }) => items,
                Some(node) => vec![node],
                None => Vec::new(),
            }
        }
    };
    let mut names = Names::default();
    let mut objects: Vec<Json> = Vec::new();
    let mut namespaces: Vec<String> = Vec::new();
    for node in apps {
        let line = node.line;
        let mut fields = Fields::of("apps", node, notes);
        let script = fields.take_any(&["script", "exec"]);
        let script = script.and_then(|entry| texts(&entry.node).map(|texts| (texts.join(" "), entry.line)));
        let Some((script, script_line)) = script else {
            notes.lost(line, "apps", "an app without a script is left out");
            continue;
        };
        let name = match fields.text("name", notes) {
            Some((name, _)) => name,
            None => stem(&script).to_owned(),
        };
        fields.about.clone_from(&name);
        let mut draft = Draft::new(&name, line, &mut names, notes);
        if let Some((namespace, line)) = fields.text("namespace", notes) {
            let namespace_name = dns_name(&namespace);
            if namespace_name != namespace {
                notes.hint(line, &fields.path("namespace"), format!("is called {namespace_name} here"));
            }
            if namespace_name != "default" && !namespaces.contains(&namespace_name) {
                namespaces.push(namespace_name.clone());
            }
            draft.namespace = Some(namespace_name);
        }
        objects.push(app(draft, fields, &script, script_line, notes));
    }
    // A namespace has to be there before what is in it.
    Ok(namespaces.iter().map(|name| draft::namespace(name)).chain(objects).collect())
}

/// The name of a script without directories and ending.
fn stem(script: &str) -> &str {
    let file = script.split_whitespace().next().unwrap_or(script);
    let file = file.rsplit('/').next().unwrap_or(file);
    file.rsplit_once('.').map_or(file, |(stem, _)| stem)
}

fn app(mut draft: Draft, mut fields: Fields, script: &str, script_line: u32, notes: &mut Notes) -> Json {
    if let Some((dir, _)) = fields.text("cwd", notes) {
        draft.working_dir = Some(dir);
    }
    instances(&mut draft, &mut fields, notes);
    environment(&mut draft, &mut fields, notes);
    command(&mut draft, &mut fields, script, script_line, notes);
    for (keys, field) in [(["uid", "user"], "user"), (["gid", "group"], "group")] {
        if let Some(entry) = fields.take_any(&keys)
            && let Some(text) = texts(&entry.node)
        {
            draft.set(field, text.join(" "));
        }
    }
    restarts(&mut draft, &mut fields, notes);
    let grace = millis(&mut fields, "kill_timeout", notes).map_or(KILL_TIMEOUT, |(span, _)| span);
    draft.stop(Some("SIGINT"), Some(grace));
    if let Some((false, line)) = fields.flag("treekill", notes) {
        notes.near(line, &fields.path("treekill"), "the whole tree is stopped");
    }
    if let Some((bytes, line)) = fields.bytes("max_memory_restart", notes).filter(|(bytes, _)| *bytes > 0) {
        let critical = Bytes(bytes).to_string();
        draft.threshold("memory", json!({"critical": critical, "policy": "Restart", "for": "30s"}));
        let how = "counts from two minutes after a start (restart.startupGrace), and when it lasts for half a minute";
        notes.near(line, &fields.path("max_memory_restart"), how);
    }
    watch(&mut draft, &mut fields, notes);
    left_out(&mut fields, notes);
    fields.finish(notes);
    draft.finish(notes)
}

fn instances(draft: &mut Draft, fields: &mut Fields, notes: &mut Notes) {
    let about = fields.path("instances");
    let mut mode = fields.text("exec_mode", notes);
    match fields.text("instances", notes) {
        None => {}
        Some((text, line)) => match text.parse::<i64>() {
            Ok(count) if count > 0 => {
                draft.replicas = count as u64;
                // A number of instances means cluster mode unless told otherwise.
                mode = mode.or_else(|| Some(("cluster".to_owned(), line)));
            }
            Ok(_) | Err(_) => {
                notes.near(line, &about, format!("{text} means one for each processor; 1 is written: say how many"));
            }
        },
    }
    if let Some((mode, line)) = mode
        && mode.starts_with("cluster")
        && draft.replicas > 1
    {
        let how = "copies do not share a port; each has one of its own, in the variable PORT";
        notes.near(line, &fields.path("exec_mode"), how);
        draft.port("http", None);
    }
}

fn environment(draft: &mut Draft, fields: &mut Fields, notes: &mut Notes) {
    let counter = fields.text("increment_var", notes);
    let instance = fields.text("instance_var", notes);
    if draft.replicas > 1 || instance.is_some() {
        let name = instance.map_or_else(|| "NODE_APP_INSTANCE".to_owned(), |(name, _)| name);
        draft.env(&name, "$(OSTLER_ORDINAL)".to_owned(), draft.line, notes);
    }
    if let Some((port, line)) = fields.text("port", notes) {
        draft.env("PORT", port, line, notes);
    }
    let part = fields.part("env", notes).drain();
    for entry in part {
        match texts(&entry.node) {
            // A variable that counts up is the only way to have ports of one's own there.
            Some(_) if entry.key == "PORT" && (draft.replicas > 1 || counter.is_some()) => {
                notes.near(entry.line, &fields.path("env.PORT"), "each copy has a free port of its own");
                draft.port("http", None);
            }
            Some(text) => draft.env(&entry.key, words::literal(&text.join(" ")), entry.line, notes),
            None => notes.lost(entry.line, &fields.path(&format!("env.{}", entry.key)), "is not a text"),
        }
    }
    if let Some((name, line)) = counter
        && name != "PORT"
    {
        notes.lost(
            line,
            &fields.path("increment_var"),
            format!("{name} does not count up; OSTLER_ORDINAL does, from 0"),
        );
    }
    for entry in fields.drain_prefixed(&["env_"]) {
        let stage = entry.key.trim_start_matches("env_");
        let what = format!("holds with --env {stage} only: merge it into env by hand where it is wanted");
        notes.lost(entry.line, &fields.path(&entry.key), what);
    }
}

fn command(draft: &mut Draft, fields: &mut Fields, script: &str, line: u32, notes: &mut Notes) {
    let interpreter = fields.take_any(&["interpreter", "exec_interpreter"]);
    let interpreter = interpreter.and_then(|entry| texts(&entry.node).map(|text| (text.join(" "), entry.line)));
    let mut arguments = Vec::new();
    for key in ["node_args", "interpreter_args", "interpreterArgs"] {
        arguments.extend(words_of(fields, key, notes));
    }
    if script.contains(' ') {
        draft.shell(script, &["bash".to_owned(), "-c".to_owned()]);
    } else {
        let usual = || {
            let (_, end) = script.rsplit_once('.')?;
            INTERPRETERS.iter().find(|(known, _)| *known == end).map(|(_, program)| (*program).to_owned())
        };
        let program = match interpreter {
            None => usual(),
            Some((name, _)) if name == "none" => None,
            Some((name, at)) => {
                if let Some((_, version)) = name.split_once("node@") {
                    notes.near(at, &fields.path("interpreter"), format!("version {version} has to be what node is"));
                    Some("node".to_owned())
                } else {
                    Some(name)
                }
            }
        };
        match program {
            Some(program) => {
                draft.command.push(program);
                draft.command.append(&mut arguments);
                draft.command.push(words::literal(script));
            }
            None => draft.command.push(words::literal(script)),
        }
    }
    if !arguments.is_empty() {
        notes.lost(line, &fields.path("node_args"), "there is no interpreter to give them to");
    }
    draft.command.extend(words_of(fields, "args", notes));
}

/// Arguments, as one text or a list.
fn words_of(fields: &mut Fields, key: &str, notes: &mut Notes) -> Vec<String> {
    let Some(entry) = fields.take(key) else { return Vec::new() };
    let words = match &entry.node.value {
        Value::Text(text) => words::split(text).or_else(|| Some(vec![text.clone()])),
        Value::Null | Value::List(_) | Value::Map(_) => texts(&entry.node),
    };
    let Some(words) = words else {
        notes.lost(entry.line, &fields.path(key), "is not a list of texts, and left out");
        return Vec::new();
    };
    words.iter().map(|word| words::literal(word)).collect()
}

/// A time; a bare number is milliseconds.
fn millis(fields: &mut Fields, key: &str, notes: &mut Notes) -> Option<(Span, u32)> {
    let (text, line) = fields.text(key, notes)?;
    let span = units::millis(&text);
    if span.is_none() {
        notes.lost(line, &fields.path(key), format!("{text:?} is not a time, and left out"));
    }
    span.map(|span| (span, line))
}

fn restarts(draft: &mut Draft, fields: &mut Fields, notes: &mut Notes) {
    let mut restarts = true;
    if let Some((false, _)) = fields.flag("autorestart", notes) {
        draft.set("restartPolicy", "Never");
        restarts = false;
    }
    if let Some((codes, line)) = fields.texts("stop_exit_codes", notes)
        && restarts
    {
        let known: Vec<u8> = codes.iter().filter_map(|code| code.trim().parse().ok()).collect();
        if known.len() == codes.len() && !known.is_empty() {
            draft.set("restartPolicy", "OnFailure");
            if known != [0] {
                draft.set("successExitCodes", known);
            }
        } else {
            notes.lost(line, &fields.path("stop_exit_codes"), "exit codes are numbers from 0 to 255");
        }
    }
    let delay = millis(fields, "restart_delay", notes).filter(|(delay, _)| *delay > Span::ZERO);
    let growing = millis(fields, "exp_backoff_restart_delay", notes).filter(|(delay, _)| *delay > Span::ZERO);
    if let Some((delay, _)) = growing {
        draft.backoff(delay, 1.5, Some(Span::from_secs(15)));
    } else if let Some((delay, line)) = delay {
        draft.constant_delay(delay);
        notes.near(line, &fields.path("restart_delay"), DELAY);
    }
    if let Some((uptime, _)) = millis(fields, "min_uptime", notes) {
        draft.set_in("backoff", "resetAfter", uptime.to_string());
    }
    if let Some((count, _)) = fields.count("max_restarts", notes) {
        draft.set_in("backoff", "maxRetries", count.min(u64::from(u32::MAX)));
    }
}

/// What PM2 does not watch unless `ignore_watch` says what.
const UNWATCHED: [&str; 2] = [".*", "node_modules"];

fn watch(draft: &mut Draft, fields: &mut Fields, notes: &mut Notes) {
    let wanted = fields.take("watch").and_then(|entry| Some((texts(&entry.node)?, entry.line)));
    let Some((paths, line)) = wanted.filter(|(paths, _)| !paths.is_empty() && *paths != ["false"]) else {
        fields.skip(&["ignore_watch", "watch_delay", "watch_options", "watch"]);
        return;
    };
    let paths = if paths == ["true"] { vec![".".to_owned()] } else { paths };
    let (paths, globs): (Vec<String>, Vec<String>) =
        paths.into_iter().partition(|path| !path.contains(['*', '?', '[', '{', '!']));
    if !globs.is_empty() {
        notes.near(line, &fields.path("watch"), "paths with patterns are patterns below cwd: watch.include");
    }
    let relative = |text: &str| text.strip_prefix("./").unwrap_or(text).to_owned();
    if globs.is_empty() {
        draft.set_in("watch", "paths", paths);
    } else {
        // A pattern counts below every path, so they share one.
        let inside = paths.iter().map(|path| format!("{}/**", relative(path).trim_end_matches('/')));
        let include: Vec<String> = globs.iter().map(|glob| relative(glob)).chain(inside).collect();
        draft.set_in("watch", "paths", vec!["."]);
        draft.set_in("watch", "include", include);
    }
    let mut exclude: Vec<String> = UNWATCHED.map(str::to_owned).to_vec();
    if let Some((ignored, line)) = fields.texts("ignore_watch", notes) {
        exclude.clear();
        for pattern in ignored {
            let pattern = relative(&pattern);
            if Globs::new(&[], std::slice::from_ref(&pattern)).is_ok() && !pattern.contains('\\') {
                exclude.push(pattern);
            } else {
                let message =
                    format!("{pattern:?} is no pattern that is known here: say in watch.exclude what it is for");
                notes.lost(line, &fields.path("ignore_watch"), message);
            }
        }
    }
    draft.set_in("watch", "exclude", exclude);
    if let Some((delay, line)) = millis(fields, "watch_delay", notes) {
        draft.set_in("watch", "debounce", delay.clamp(Span::from_millis(10), Span::from_secs(3600)).to_string());
        notes.near(line, &fields.path("watch_delay"), "counts from the last change of a burst: watch.debounce");
    }
    fields.lost(&["watch_options"], "hints come from the kernel, and content decides", notes);
}

fn left_out(fields: &mut Fields, notes: &mut Notes) {
    fields.lost(&["cron_restart", "cron"], "there are no schedules", notes);
    let logs = "output is kept in the state directory: ostler logs";
    fields.near(
        &[
            "out_file",
            "out",
            "output",
            "out_log",
            "error_file",
            "error",
            "err",
            "err_file",
            "err_log",
            "log_file",
            "log",
            "disable_logs",
            "log_type",
        ],
        logs,
        notes,
    );
    fields.near(&["log_date_format", "time"], "ostler logs --timestamps adds times", notes);
    fields.skip(&["merge_logs", "combine_logs"]);
    fields.near(&["pid_file", "pid"], "pids are in: ostler get instances", notes);
    fields.lost(&["wait_ready", "listen_timeout"], "a process is ready when it runs", notes);
    fields.lost(&["shutdown_with_message"], "a process is stopped by a signal", notes);
    for key in ["source_map_support", "disable_source_map_support"] {
        if let Some((on, line)) = fields.flag(key, notes)
            && on == (key == "source_map_support")
        {
            notes.lost(line, &fields.path(key), "give node the argument --enable-source-maps");
        }
    }
    // With PM2's own agent these mean something; a process that nothing is injected into is what `false` asks for.
    for key in
        ["vizion", "pmx", "automation", "trace", "v8", "event_loop_inspector", "deep_monitoring", "append_env_to_name"]
    {
        if let Some((true, line)) = fields.flag(key, notes) {
            notes.lost(line, &fields.path(key), "nothing is injected into a process");
        }
    }
    fields.lost(&["io"], "nothing is injected into a process", notes);
    fields.lost(&["post_update", "install_url"], "nothing is deployed", notes);
    fields.lost(&["name_prefix"], "names are written out", notes);
    fields.skip(&[
        "filter_env",
        "force",
        "kill_retry_time",
        "windowsHide",
        "disable_trace",
        "execute_command",
        "username",
        "write",
    ]);
}
