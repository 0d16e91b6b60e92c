//! systemd: a service unit, named by its file.

mod command;

use ostler_core::Span;
use ostler_core::quantity::{Bytes, Cpu};
use serde_json::Value as Json;

use super::DELAY;
use crate::Error;
use crate::draft::{Draft, Names};
use crate::fields::Fields;
use crate::ini;
use crate::notes::Notes;
use crate::{units, words};
use command::Specifiers;

/// How long systemd waits between the signal to stop and SIGKILL.
const STOP_TIMEOUT: Span = Span::from_secs(90);
/// The longest grace period there is.
const FOREVER: Span = Span::from_secs(86_400);

pub(crate) fn read(name: &str, text: &str, notes: &mut Notes) -> Result<Vec<Json>, Error> {
    let stem = match name.rsplit_once('.') {
        Some((stem, "service" | "conf" | "txt")) => stem,
        Some((_, kind)) if ["timer", "socket", "target", "path", "mount", "slice", "scope"].contains(&kind) => {
            return Err(Error::NotAService { what: format!("a {kind}") });
        }
        Some(_) | None => name,
    };
    let mut unit = Fields::new("Unit", Vec::new());
    let mut service = None;
    for section in ini::systemd(text)? {
        match section.name.as_str() {
            "Unit" => unit = Fields::new("Unit", section.entries),
            "Service" => service = Some((section.line, Fields::new("Service", section.entries))),
            "Install" => {
                for entry in section.entries {
                    if !matches!(entry.key.as_str(), "WantedBy" | "RequiredBy") {
                        notes.hint(
                            entry.line,
                            &format!("Install.{}", entry.key),
                            "processes start when the daemon does",
                        );
                    }
                }
            }
            // systemd itself ignores sections that begin so.
            other if other.starts_with("X-") => {}
            other => notes.lost(section.line, other, "is not known here, and left out"),
        }
    }
    let Some((line, service)) = service else {
        return Err(Error::NotAService { what: "a unit without [Service]".to_owned() });
    };
    let mut names = Names::default();
    let draft =
        Draft::new(stem.trim_end_matches('@').trim_start_matches('<').trim_end_matches('>'), line, &mut names, notes);
    Ok(vec![self::service(draft, service, unit, stem, notes)])
}

fn service(mut draft: Draft, mut fields: Fields, mut unit: Fields, stem: &str, notes: &mut Notes) -> Json {
    let specifiers = Specifiers::new(stem, fields.text("User", notes));
    if let Some((user, _)) = &specifiers.user {
        draft.set("user", user.as_str());
    }
    if let Some((group, _)) = fields.text("Group", notes) {
        draft.set("group", group);
    }
    self::unit(&mut draft, &mut unit, &specifiers, notes);
    environment(&mut draft, &mut fields, &specifiers, notes);
    if let Some((dir, line)) = fields.text("WorkingDirectory", notes) {
        working_directory(&mut draft, &dir, &specifiers, &fields.path("WorkingDirectory"), line, notes);
    } else {
        draft.working_dir = Some("/".to_owned());
    }
    let oneshot = kind(&mut fields, notes);
    command::read(&mut draft, &mut fields, &specifiers, notes);
    restarts(&mut draft, &mut fields, &mut unit, oneshot, notes);
    let timeouts = stop(&mut draft, &mut fields, notes);
    command::hooks(&mut draft, &mut fields, &specifiers, &timeouts, notes);
    limits(&mut draft, &mut fields, notes);
    left_out(&mut fields, notes);
    fields.finish(notes);
    unit.finish(notes);
    draft.finish(notes)
}

/// Whether it ends by itself.
fn kind(fields: &mut Fields, notes: &mut Notes) -> bool {
    let about = fields.path("Type");
    let Some((kind, line)) = fields.text("Type", notes) else { return false };
    match kind.as_str() {
        "simple" | "exec" | "idle" => {}
        "notify" | "notify-reload" => notes.lost(line, &about, "a process is ready when it runs"),
        "dbus" => notes.lost(line, &about, "a process is ready when it runs; there is no D-Bus"),
        "forking" => notes.lost(line, &about, "the command has to stay in the foreground: find the flag for that"),
        "oneshot" => return true,
        other => notes.lost(line, &about, format!("{other:?} is not known here")),
    }
    false
}

fn unit(draft: &mut Draft, unit: &mut Fields, specifiers: &Specifiers, notes: &mut Notes) {
    if let Some((text, line)) = unit.text("Description", notes) {
        let text = specifiers.plain(&text, &unit.path("Description"), line, notes);
        draft.describe("description", &text);
    }
    let documentation: Vec<String> =
        unit.take_all("Documentation").iter().filter_map(|entry| crate::fields::texts(&entry.node)).flatten().collect();
    if !documentation.is_empty() {
        draft.describe("documentation", &documentation.join(" "));
    }
    for key in ["After", "Before", "Wants", "Requires", "BindsTo", "PartOf", "Requisite", "Upholds"] {
        for entry in unit.take_all(key) {
            let units = crate::fields::texts(&entry.node).unwrap_or_default().join(" ");
            let about = unit.path(key);
            let services: Vec<&str> = units.split_whitespace().filter(|unit| unit.ends_with(".service")).collect();
            if services.is_empty() {
                notes.hint(entry.line, &about, "processes start when the daemon does; order that after the same units");
            } else {
                let how = "if it is imported too, name it in spec.dependsOn";
                notes.lost(entry.line, &about, format!("{}: {how}", services.join(" ")));
            }
        }
    }
    let why = "is not looked at; the process is started in any case";
    for entry in unit.drain_prefixed(&["Condition", "Assert"]) {
        notes.lost(entry.line, &unit.path(&entry.key), why);
    }
    unit.lost(
        &["Conflicts", "OnFailure", "OnSuccess", "JoinsNamespaceOf", "PropagatesReloadTo"],
        "there is no such relation",
        notes,
    );
    unit.lost(&["RequiresMountsFor", "WantsMountsFor"], "mounts are not waited for", notes);
    unit.hint(
        &[
            "DefaultDependencies",
            "IgnoreOnIsolate",
            "StopWhenUnneeded",
            "RefuseManualStart",
            "RefuseManualStop",
            "SourcePath",
        ],
        "concerns systemd itself",
        notes,
    );
}

fn environment(draft: &mut Draft, fields: &mut Fields, specifiers: &Specifiers, notes: &mut Notes) {
    let about = fields.path("Environment");
    for entry in fields.take_all("Environment") {
        for text in crate::fields::texts(&entry.node).unwrap_or_default() {
            for word in words::split(&text).unwrap_or_else(|| vec![text.clone()]) {
                let word = specifiers.plain(&word, &about, entry.line, notes);
                match word.split_once('=') {
                    Some((name, value)) => draft.env(name, words::literal(value), entry.line, notes),
                    None => notes.lost(entry.line, &about, format!("{word:?} is not NAME=value")),
                }
            }
        }
    }
    for entry in fields.take_all("PassEnvironment") {
        for text in crate::fields::texts(&entry.node).unwrap_or_default() {
            text.split_whitespace().for_each(|name| draft.inherit(name));
        }
    }
    let about = fields.path("EnvironmentFile");
    for entry in fields.take_all("EnvironmentFile") {
        for text in crate::fields::texts(&entry.node).unwrap_or_default() {
            let (optional, path) = match text.trim().strip_prefix('-') {
                Some(path) => (true, path),
                None => (false, text.trim()),
            };
            let path = specifiers.plain(path, &about, entry.line, notes);
            if path.is_empty() {
                draft.forget_env_files();
            } else if path.starts_with('/') && !path.contains(['*', '?', '[']) {
                draft.env_file(&path, optional);
                if draft.has_any_env() {
                    notes.near(
                        entry.line,
                        &about,
                        "what env sets wins over the file; systemd has it the other way round",
                    );
                }
            } else {
                notes.lost(entry.line, &about, "only files with an absolute path and no pattern can be read");
            }
        }
    }
    fields.hint(&["UnsetEnvironment"], "only what env and inheritEnv name is set", notes);
}

fn working_directory(draft: &mut Draft, dir: &str, specifiers: &Specifiers, about: &str, line: u32, notes: &mut Notes) {
    let (optional, dir) = match dir.strip_prefix('-') {
        Some(dir) => (true, dir),
        None => (false, dir),
    };
    if dir == "~" {
        notes.lost(line, about, "write out the home directory of the user; / is written");
        draft.working_dir = Some("/".to_owned());
        return;
    }
    if optional {
        notes.near(line, about, "the directory has to exist");
    }
    draft.working_dir = Some(specifiers.plain(dir, about, line, notes));
}

fn restarts(draft: &mut Draft, fields: &mut Fields, unit: &mut Fields, oneshot: bool, notes: &mut Notes) {
    let about = fields.path("Restart");
    let restart = fields.text("Restart", notes);
    let policy = match restart.as_ref().map(|(text, line)| (text.as_str(), *line)) {
        None | Some(("no", _)) => "Never",
        Some(("always", _)) => "Always",
        Some(("on-failure", _)) => "OnFailure",
        Some((text @ ("on-abnormal" | "on-abort" | "on-watchdog"), line)) => {
            notes.near(line, &about, format!("{text} is OnFailure here: exit codes other than 0 restart too"));
            "OnFailure"
        }
        Some(("on-success", line)) => {
            notes.near(line, &about, "on-success is Always here: failures restart too");
            "Always"
        }
        Some((other, line)) => {
            notes.lost(line, &about, format!("{other:?} is not known here; Never is written"));
            "Never"
        }
    };
    if oneshot && policy == "Never" {
        notes.near(draft.line, "Service.Type", "oneshot: runs once when it is applied, and again after a reboot");
    }
    if policy != "Always" {
        draft.set("restartPolicy", policy);
    }
    let delay = span(fields, "RestartSec", notes);
    let steps = fields.count("RestartSteps", notes);
    let max = span(fields, "RestartMaxDelaySec", notes);
    match (delay, steps, max) {
        _ if policy == "Never" => {}
        (Some((delay, _)), Some((steps, _)), Some((max, _))) if steps > 0 && delay > Span::ZERO && max > delay => {
            let ratio = max.as_micros() as f64 / delay.as_micros() as f64;
            let factor = (ratio.powf(1.0 / steps as f64) * 100.0).round() / 100.0;
            draft.backoff(delay, factor, Some(max));
        }
        (Some((delay, line)), _, _) => {
            draft.constant_delay(delay);
            notes.near(line, &fields.path("RestartSec"), DELAY);
        }
        (None, _, _) => {}
    }
    start_limit(draft, fields, unit, policy == "Never", notes);
    exit_codes(draft, fields, notes);
}

fn start_limit(draft: &mut Draft, fields: &mut Fields, unit: &mut Fields, never: bool, notes: &mut Notes) {
    // Older units have these in [Service].
    let mut interval = None;
    let mut burst = None;
    for part in [&mut *unit, &mut *fields] {
        for key in ["StartLimitIntervalSec", "StartLimitInterval"] {
            interval = span(part, key, notes).or(interval);
        }
        burst = part.count("StartLimitBurst", notes).or(burst);
        part.lost(
            &["StartLimitAction", "FailureAction", "SuccessAction", "RebootArgument"],
            "the machine is left alone",
            notes,
        );
    }
    let window = interval.map_or(Span::from_secs(10), |(span, _)| span);
    if let Some((failures, line)) = burst
        && !never
        && window > Span::ZERO
    {
        draft.set_in("circuitBreaker", "failures", failures.clamp(1, 100));
        draft.set_in("circuitBreaker", "window", window.to_string());
        notes.near(
            line,
            "Unit.StartLimitBurst",
            "systemd gives up for good; the circuit breaker tries again after circuitBreaker.cooldown",
        );
    }
}

fn exit_codes(draft: &mut Draft, fields: &mut Fields, notes: &mut Notes) {
    let mut codes = vec![0_u8];
    for key in ["SuccessExitStatus", "RestartPreventExitStatus"] {
        for entry in fields.take_all(key) {
            let about = fields.path(key);
            if key == "RestartPreventExitStatus" {
                notes.near(entry.line, &about, "these codes count as success, which OnFailure does not restart");
            }
            for word in crate::fields::texts(&entry.node).unwrap_or_default().join(" ").split_whitespace() {
                match word.parse() {
                    Ok(code) if !codes.contains(&code) => codes.push(code),
                    Ok(_) => {}
                    Err(_) => {
                        notes.lost(entry.line, &about, format!("{word} is not an exit code; signals are failures"));
                    }
                }
            }
        }
    }
    if codes != [0] {
        draft.set("successExitCodes", codes);
    }
    fields.lost(&["RestartForceExitStatus"], "no exit code restarts against restartPolicy", notes);
}

/// How it is stopped; how long systemd would wait for commands around start and stop.
fn stop(draft: &mut Draft, fields: &mut Fields, notes: &mut Notes) -> command::Timeouts {
    for key in ["KillSignal", "RestartKillSignal", "FinalKillSignal"] {
        let about = fields.path(key);
        if let Some((signal, line)) = fields.text(key, notes) {
            if key == "KillSignal" {
                draft.signal(&signal, line, &about, notes);
            } else {
                notes.lost(line, &about, "there is one signal to stop, and SIGKILL");
            }
        }
    }
    let both = span(fields, "TimeoutSec", notes);
    let grace = span(fields, "TimeoutStopSec", notes).or(both).map_or(STOP_TIMEOUT, |(span, _)| span);
    draft.stop(None, Some(grace.min(FOREVER)));
    let start = span(fields, "TimeoutStartSec", notes);
    let timeouts = command::Timeouts {
        start: start.or(both).map_or(STOP_TIMEOUT, |(span, _)| span).min(FOREVER),
        stop: grace.min(FOREVER),
    };
    if let Some((start, line)) = start
        && start < FOREVER
    {
        notes.lost(line, &fields.path("TimeoutStartSec"), "a process is ready when it runs");
    }
    if let Some((mode, line)) = fields.text("KillMode", notes)
        && mode != "control-group"
    {
        notes.near(line, &fields.path("KillMode"), format!("{mode}: the whole tree is stopped here"));
    }
    if let Some((false, line)) = fields.flag("SendSIGKILL", notes) {
        notes.lost(line, &fields.path("SendSIGKILL"), "what lives after the grace period is killed");
    }
    if let Some((true, line)) = fields.flag("SendSIGHUP", notes) {
        notes.lost(line, &fields.path("SendSIGHUP"), "there is one signal to stop");
    }
    timeouts
}

/// A time as systemd writes it; `infinity` is as long as can be, and so is 0 for a timeout.
fn span(fields: &mut Fields, key: &str, notes: &mut Notes) -> Option<(Span, u32)> {
    let (text, line) = fields.text(key, notes)?;
    let span = match text.as_str() {
        "infinity" => Some(FOREVER),
        "0" if key.starts_with("Timeout") => Some(FOREVER),
        text => units::duration(text),
    };
    if span.is_none() {
        notes.lost(line, &fields.path(key), format!("{text:?} is not a time, and left out"));
    }
    span.map(|span| (span, line))
}

/// Hard limits; what has none of them, such as `infinity`, is left without.
fn limits(draft: &mut Draft, fields: &mut Fields, notes: &mut Notes) {
    let mut take = |key: &str, name: &str, parse: &dyn Fn(&str) -> Option<Json>| {
        let Some((text, line)) = fields.text(key, notes) else { return };
        match parse(text.trim()) {
            Some(value) => draft.limit(name, value),
            None if text.trim() == "infinity" => {}
            None => notes.lost(line, &fields.path(key), "is no such limit here, and left out"),
        }
    };
    let within = |text: &str, least: i64, most: i64| text.parse().ok().filter(|n| (least..=most).contains(n));
    take("MemoryMax", "memory", &|text| {
        Some(Bytes(units::bytes(text).filter(|bytes| *bytes >= 1 << 20)?).to_string().into())
    });
    take("CPUQuota", "cpu", &|text| {
        let percent: f64 = text.strip_suffix('%')?.trim().parse().ok()?;
        (1.0..=100_000.0).contains(&percent).then(|| Cpu((percent * 10.0) as u32).to_string().into())
    });
    take("TasksMax", "processes", &|text| within(text, 1, u32::MAX.into()).map(Into::into));
    // The soft limit and the hard one are the same here.
    take("LimitNOFILE", "openFiles", &|text| within(text.rsplit(':').next()?, 16, u32::MAX.into()).map(Into::into));
    take("IOWeight", "ioWeight", &|text| within(text, 1, 10_000).map(Into::into));
    take("Nice", "nice", &|text| within(text, -20, 19).map(Into::into));
}

fn left_out(fields: &mut Fields, notes: &mut Notes) {
    let condition = "a preStart hook that fails is a failed start; there is none that skips one";
    fields.lost(&["ExecCondition"], condition, notes);
    fields.lost(&["ExecReload"], "reload it by: ostler signal HUP", notes);
    if let Some((true, line)) = fields.flag("RemainAfterExit", notes) {
        notes.lost(line, &fields.path("RemainAfterExit"), "a process that ended is not running");
    }
    fields.hint(&["PIDFile", "GuessMainPID"], "the process that is started is the one that is looked after", notes);
    fields.lost(
        &["WatchdogSec", "NotifyAccess", "BusName", "TimeoutAbortSec"],
        "a process is ready when it runs",
        notes,
    );
    for key in ["StandardOutput", "StandardError"] {
        if let Some((target, line)) = fields.text(key, notes) {
            let about = fields.path(key);
            match target.as_str() {
                "journal" | "inherit" | "journal+console" | "syslog" => {
                    notes.hint(line, &about, "output is kept in the state directory: ostler logs");
                }
                "null" => notes.near(line, &about, "output is kept in any case; logs.maxSize bounds it"),
                _ => notes.near(line, &about, "output is kept in the state directory: ostler logs"),
            }
        }
    }
    if let Some((input, line)) = fields.text("StandardInput", notes)
        && input != "null"
    {
        notes.lost(line, &fields.path("StandardInput"), "standard input is empty");
    }
    fields.hint(
        &["SyslogIdentifier", "SyslogFacility", "SyslogLevel"],
        "output is kept by the name of the process",
        notes,
    );
    let limits = "there is no such limit";
    for entry in fields.drain_prefixed(&["Limit", "Memory", "CPU", "Tasks", "IO", "BlockIO"]) {
        notes.lost(entry.line, &fields.path(&entry.key), limits);
    }
    for entry in fields.drain_prefixed(&["OOM", "UMask", "ManagedOOM", "Delegate", "Slice", "NUMA", "Personality"]) {
        notes.lost(entry.line, &fields.path(&entry.key), "is what the daemon has");
    }
    let directories = "directories are not made; make it once, or by a shell before the program";
    for entry in fields.drain_prefixed(&[
        "RuntimeDirectory",
        "StateDirectory",
        "CacheDirectory",
        "LogsDirectory",
        "ConfigurationDirectory",
    ]) {
        notes.lost(entry.line, &fields.path(&entry.key), directories);
    }
    let sandbox = "processes are not confined";
    for entry in fields.drain_prefixed(&[
        "Private",
        "Protect",
        "Restrict",
        "ReadOnly",
        "ReadWrite",
        "Inaccessible",
        "NoNewPrivileges",
        "Capability",
        "AmbientCapabilities",
        "SystemCall",
        "Lock",
        "DynamicUser",
        "RootDirectory",
        "RootImage",
        "Bind",
        "TemporaryFileSystem",
        "SupplementaryGroups",
        "RemoveIPC",
        "KeyringMode",
        "SecureBits",
        "Device",
        "IPAddress",
        "Proc",
        "Mount",
        "ExecPaths",
        "NoExecPaths",
        "AppArmor",
        "SELinux",
        "PAMName",
        "Permissions",
        "LoadCredential",
        "SetCredential",
        "ImportCredential",
        "Network",
        "UtmpMode",
        "UtmpIdentifier",
        "TTY",
    ]) {
        notes.lost(entry.line, &fields.path(&entry.key), sandbox);
    }
    fields.lost(&["Sockets", "FileDescriptorStoreMax", "OpenFile"], "sockets are not opened for a process", notes);
}
