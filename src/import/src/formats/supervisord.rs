//! supervisord: sections `[program:NAME]` of an INI file.

use std::collections::BTreeMap;

use ostler_core::Span;
use serde_json::Value as Json;

use super::environment_is_not_inherited;
use crate::Error;
use crate::draft::{Draft, Names, dns_name};
use crate::fields::Fields;
use crate::ini::{self, Section};
use crate::notes::Notes;
use crate::words;

/// What `[supervisord]` sets for every program.
#[derive(Default)]
struct Common {
    environment: Option<(String, u32)>,
    directory: Option<String>,
    user: Option<String>,
}

pub(crate) fn read(text: &str, notes: &mut Notes) -> Result<Vec<Json>, Error> {
    let mut common = Common::default();
    let mut groups = BTreeMap::new();
    let mut programs = Vec::new();
    environment_is_not_inherited(notes, "supervisord");
    for section in ini::supervisord(text)? {
        let (kind, name) = section.name.split_once(':').unwrap_or((&section.name, ""));
        let (kind, name) = (kind.to_owned(), name.trim().to_owned());
        match kind.as_str() {
            "program" | "fcgi-program" => programs.push((kind, name, section)),
            "supervisord" => common = self::common(section, notes),
            "group" => group(&name, section, &mut groups, notes),
            "include" => {
                notes.lost(section.line, "include", "other files are not read: import each of them too");
            }
            "eventlistener" => {
                notes.lost(section.line, &section.name, "nobody listens to events that way: see ostler events -w");
            }
            "unix_http_server" | "inet_http_server" | "supervisorctl" | "rpcinterface" | "ctlplugin" => {
                notes.hint(section.line, &section.name, "concerns supervisord itself");
            }
            _ => notes.lost(section.line, &section.name, "is not known here, and left out"),
        }
    }
    let mut names = Names::default();
    let mut objects = Vec::new();
    for (kind, name, section) in programs {
        let draft = Draft::new(&name, section.line, &mut names, notes);
        let group = groups.get(&name).cloned();
        let mut fields = Fields::new(name.clone(), section.entries);
        if kind == "fcgi-program" {
            let why = "sockets are not opened for a program";
            fields.lost(&["socket", "socket_backlog", "socket_owner", "socket_mode"], why, notes);
        }
        let scope = Scope { program: name.clone(), group: group.as_ref().map_or(name, |(group, _)| group.clone()) };
        objects.push(program(draft, fields, &common, &scope, group, notes));
    }
    Ok(objects)
}

fn common(section: Section, notes: &mut Notes) -> Common {
    let mut fields = Fields::new("supervisord", section.entries);
    let common = Common {
        environment: fields.text("environment", notes),
        directory: fields.text("directory", notes).map(|(text, _)| text),
        user: fields.text("user", notes).map(|(text, _)| text),
    };
    fields.lost(&["umask"], "the file mode mask is the daemon's: set it there, or by sh -c 'umask 022; exec …'", notes);
    for entry in fields.drain() {
        notes.hint(entry.line, &fields.path(&entry.key), "concerns supervisord itself");
    }
    common
}

fn group(name: &str, section: Section, groups: &mut BTreeMap<String, (String, u32)>, notes: &mut Notes) {
    let mut fields = Fields::new(section.name, section.entries);
    if let Some((programs, line)) = fields.text("programs", notes) {
        for program in programs.split([',', ' ', '\n']).filter(|text| !text.is_empty()) {
            groups.insert(program.to_owned(), (name.to_owned(), line));
        }
    }
    fields.lost(&["priority"], "starts are ordered by what they depend on: spec.dependsOn", notes);
    fields.finish(notes);
}

/// What `%(…)s` can mean.
struct Scope {
    program: String,
    group: String,
}

/// Text with `%(NAME)s` replaced, as a manifest has it; names of variables to be inherited.
fn expand(text: &str, scope: &Scope, about: &str, line: u32, notes: &mut Notes) -> (String, Vec<String>) {
    let (mut out, mut inherit) = (String::new(), Vec::new());
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        out.push_str(&words::literal(&rest[..at]));
        rest = &rest[at..];
        if let Some(tail) = rest.strip_prefix("%%") {
            out.push('%');
            rest = tail;
            continue;
        }
        let found = rest.strip_prefix("%(").and_then(|inner| {
            let (name, tail) = inner.split_once(')')?;
            let end = tail.find(['s', 'd', 'i'])?;
            tail[..end].chars().all(|c| c.is_ascii_digit()).then(|| (name, &tail[..end], &tail[end + 1..]))
        });
        let Some((name, width, tail)) = found else {
            out.push('%');
            rest = &rest[1..];
            continue;
        };
        match name {
            "program_name" => out.push_str(&scope.program),
            "group_name" => out.push_str(&scope.group),
            "here" => out.push('.'),
            "process_num" => {
                out.push_str("$(OSTLER_ORDINAL)");
                if !width.is_empty() {
                    notes.near(line, about, "the number of the copy has no leading zeros");
                }
            }
            _ => {
                if let Some(variable) = name.strip_prefix("ENV_") {
                    inherit.push(variable.to_owned());
                    out.extend(["$(", variable, ")"]);
                } else {
                    notes.lost(line, about, format!("%({name})s cannot be filled in"));
                    out.extend(["%(", name, ")s"]);
                }
            }
        }
        rest = tail;
    }
    out.push_str(&words::literal(rest));
    (out, inherit)
}

fn program(
    mut draft: Draft,
    mut fields: Fields,
    common: &Common,
    scope: &Scope,
    group: Option<(String, u32)>,
    notes: &mut Notes,
) -> Json {
    if let Some((group, line)) = group {
        draft.label("group", &group, line, notes);
    }
    for (text, line) in common.environment.clone().into_iter().chain(fields.text("environment", notes)) {
        environment(&mut draft, &text, scope, line, notes);
    }
    if let Some((replicas, _)) = fields.count("numprocs", notes) {
        draft.replicas = replicas;
    }
    if let Some((start, line)) = fields.count("numprocs_start", notes)
        && start != 0
    {
        notes.lost(line, &fields.path("numprocs_start"), "copies are numbered from 0");
    }
    process_name(&draft, &mut fields, scope, notes);
    let directory = fields.text("directory", notes).or_else(|| common.directory.clone().map(|dir| (dir, draft.line)));
    if let Some((dir, line)) = directory {
        let about = fields.path("directory");
        let (dir, inherit) = expand(&dir, scope, &about, line, notes);
        if inherit.is_empty() && !dir.contains('$') {
            draft.working_dir = Some(dir);
        } else {
            notes.lost(line, &about, format!("a directory is written out, without variables: {dir}"));
        }
    }
    command(&mut draft, &mut fields, scope, notes);
    let user = fields.text("user", notes).map(|(user, _)| user).or_else(|| common.user.clone());
    if let Some(user) = user {
        draft.set("user", user);
    }
    restarts(&mut draft, &mut fields, notes);
    if let Some((signal, line)) = fields.text("stopsignal", notes) {
        draft.signal(&signal, line, &fields.path("stopsignal"), notes);
    }
    if let Some((seconds, _)) = fields.count("stopwaitsecs", notes) {
        draft.stop(None, Some(Span::from_secs(seconds)));
    }
    for key in ["stopasgroup", "killasgroup"] {
        if let Some((false, line)) = fields.flag(key, notes) {
            notes.near(line, &fields.path(key), "signals to stop go to every process of the tree");
        }
    }
    logs(&mut draft, &mut fields, notes);
    fields.lost(&["umask"], "the file mode mask is the daemon's: set it there, or by sh -c 'umask 022; exec …'", notes);
    fields.lost(&["priority"], "starts are ordered by what they depend on: spec.dependsOn", notes);
    fields.hint(&["serverurl"], "concerns supervisord itself", notes);
    if let Some((false, line)) = fields.flag("autostart", notes) {
        draft.disable(line, &fields.path("autostart"), notes);
    }
    fields.finish(notes);
    draft.finish(notes)
}

fn process_name(draft: &Draft, fields: &mut Fields, scope: &Scope, notes: &mut Notes) {
    let Some((pattern, line)) = fields.text("process_name", notes) else { return };
    let about = fields.path("process_name");
    let fixed = pattern.replace("%(program_name)s", &scope.program);
    if dns_name(&fixed) != draft.name {
        notes.hint(line, &about, format!("copies are called {0}-0, {0}-1, …", draft.name));
    }
}

fn command(draft: &mut Draft, fields: &mut Fields, scope: &Scope, notes: &mut Notes) {
    let about = fields.path("command");
    let Some((text, line)) = fields.text("command", notes) else {
        notes.lost(draft.line, &about, "there is no command: `true` stands in its place");
        draft.command = vec!["true".to_owned()];
        return;
    };
    let words = words::split(&text).unwrap_or_else(|| {
        notes.near(line, &about, "a quote is not closed; the line is cut at spaces");
        text.split_whitespace().map(str::to_owned).collect()
    });
    for word in words {
        let (word, inherit) = expand(&word, scope, &about, line, notes);
        for variable in inherit {
            draft.inherit(&variable);
        }
        draft.command.push(word);
    }
}

/// `A="1",B=2`
fn environment(draft: &mut Draft, text: &str, scope: &Scope, line: u32, notes: &mut Notes) {
    let about = format!("{}.environment", scope.program);
    let mut rest = text.trim();
    while !rest.is_empty() {
        let Some((name, tail)) = rest.split_once('=') else {
            notes.lost(line, &about, format!("{rest:?} is not NAME=value"));
            return;
        };
        let tail = tail.trim_start();
        let mut quote = None;
        let end = tail.char_indices().find(|(_, c)| {
            match (quote, c) {
                (None, '"' | '\'') => quote = Some(*c),
                (Some(open), c) if open == *c => quote = None,
                (None, ',') => return true,
                (None | Some(_), _) => {}
            }
            false
        });
        let end = end.map_or(tail.len(), |(at, _)| at);
        let value = tail[..end].trim();
        let value = words::split(value).map_or_else(|| value.to_owned(), |words| words.join(" "));
        let (value, inherit) = expand(&value, scope, &about, line, notes);
        for variable in inherit {
            draft.inherit(&variable);
        }
        draft.env(name.trim(), value, line, notes);
        rest = tail[end..].trim_start_matches(',').trim_start();
    }
}

fn restarts(draft: &mut Draft, fields: &mut Fields, notes: &mut Notes) {
    let policy = match fields.text("autorestart", notes) {
        None => "OnFailure",
        Some((text, line)) => match text.to_ascii_lowercase().as_str() {
            "unexpected" => "OnFailure",
            "true" | "yes" | "on" | "1" => "Always",
            "false" | "no" | "off" | "0" => "Never",
            other => {
                notes.lost(line, &fields.path("autorestart"), format!("{other:?} is not known here"));
                "OnFailure"
            }
        },
    };
    if policy != "Always" {
        draft.set("restartPolicy", policy);
    }
    if let Some((codes, line)) = fields.text("exitcodes", notes) {
        let codes: Vec<&str> = codes.split(',').map(str::trim).filter(|code| !code.is_empty()).collect();
        let known: Vec<u8> = codes.iter().filter_map(|code| code.parse().ok()).collect();
        if known.len() != codes.len() {
            notes.lost(line, &fields.path("exitcodes"), "exit codes are numbers from 0 to 255");
        }
        if !known.is_empty() && known != [0] {
            draft.set("successExitCodes", known);
        }
    }
    if let Some((retries, line)) = fields.count("startretries", notes)
        && policy != "Never"
    {
        draft.set_in("backoff", "maxRetries", retries.min(u64::from(u32::MAX)));
        notes.near(
            line,
            &fields.path("startretries"),
            "counts every failure in a row, also after startsecs; having run for backoff.resetAfter, counting begins anew",
        );
    }
    if let Some((seconds, line)) = fields.count("startsecs", notes)
        && seconds > 1
    {
        notes.lost(line, &fields.path("startsecs"), "a process counts as running from the start");
    }
}

fn logs(draft: &mut Draft, fields: &mut Fields, notes: &mut Notes) {
    for stream in ["stdout", "stderr"] {
        let key = format!("{stream}_logfile");
        if let Some((file, line)) = fields.text(&key, notes)
            && file != "AUTO"
        {
            let how = if file == "NONE" || file == "/dev/null" {
                "output is kept in any case; logs.maxSize bounds it"
            } else {
                "output is kept in the state directory: ostler logs"
            };
            notes.near(line, &fields.path(&key), how);
        }
        for key in ["capture_maxbytes", "events_enabled", "syslog"] {
            let key = format!("{stream}_{key}");
            if let Some((value, line)) = fields.text(&key, notes)
                && !matches!(value.to_ascii_lowercase().as_str(), "0" | "false" | "no" | "off")
            {
                notes.lost(line, &fields.path(&key), "output goes to the log only");
            }
        }
    }
    // Both streams are in the same files here: the larger limit holds for both.
    let mut sizes = Vec::new();
    let mut files = Vec::new();
    for stream in ["stdout", "stderr"] {
        let key = format!("{stream}_logfile_maxbytes");
        match fields.bytes(&key, notes) {
            Some((0, line)) => notes.near(line, &fields.path(&key), "files are rotated in any case, at logs.maxSize"),
            size => sizes.extend(size.map(|(size, _)| size)),
        }
        let key = format!("{stream}_logfile_backups");
        let count = fields.count(&key, notes);
        if let Some((0, line)) = count {
            notes.near(line, &fields.path(&key), "at least one rotated file is kept");
        }
        files.extend(count.map(|(count, _)| count));
    }
    if let Some(size) = sizes.into_iter().max() {
        draft.set_in("logs", "maxSize", ostler_core::quantity::Bytes(size.max(4096)).to_string());
    }
    if let Some(files) = files.into_iter().max() {
        // The current one counts here.
        draft.set_in("logs", "maxFiles", files.max(1) + 1);
    }
    if let Some((false, line)) = fields.flag("redirect_stderr", notes) {
        notes.hint(
            line,
            &fields.path("redirect_stderr"),
            "both streams are in one log: ostler logs --stream tells them apart",
        );
    }
}
