//! `ExecStart` and the commands around it, and what `%` and `$` mean in a unit.

use ostler_core::Span;
use serde_json::json;

use crate::draft::Draft;
use crate::fields::{Fields, texts};
use crate::notes::Notes;
use crate::words;

/// What `%` stands for.
pub(super) struct Specifiers {
    /// The name of the unit without `.service`.
    stem: String,
    pub(super) user: Option<(String, u32)>,
}

impl Specifiers {
    pub(super) fn new(stem: &str, user: Option<(String, u32)>) -> Self {
        Self { stem: stem.to_owned(), user }
    }

    /// With `%` replaced, except for what only the machine knows.
    pub(super) fn plain(&self, text: &str, about: &str, line: u32, notes: &mut Notes) -> String {
        let mut out = String::new();
        let mut chars = text.chars();
        let (prefix, instance) = self.stem.split_once('@').unwrap_or((&self.stem, ""));
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let Some(specifier) = chars.next() else {
                out.push('%');
                break;
            };
            match specifier {
                '%' => out.push('%'),
                'n' => out.extend([&self.stem, ".service"]),
                'N' => out.push_str(&self.stem),
                'p' | 'P' => out.push_str(prefix),
                'i' | 'I' if !instance.is_empty() => out.push_str(instance),
                'u' => out.push_str(self.user.as_ref().map_or("root", |(user, _)| user)),
                't' => out.push_str("/run"),
                'S' => out.push_str("/var/lib"),
                'C' => out.push_str("/var/cache"),
                'L' => out.push_str("/var/log"),
                'E' => out.push_str("/etc"),
                'T' => out.push_str("/tmp"),
                'V' => out.push_str("/var/tmp"),
                other => {
                    let what = if matches!(other, 'i' | 'I') {
                        "a template: import it under the name of an instance, such as web@1.service".to_owned()
                    } else {
                        format!("%{other} cannot be filled in")
                    };
                    notes.lost(line, about, what);
                    out.extend(['%', other]);
                }
            }
        }
        out
    }
}

pub(super) fn read(draft: &mut Draft, fields: &mut Fields, specifiers: &Specifiers, notes: &mut Notes) {
    let about = fields.path("ExecStart");
    let lines = fields.take_all("ExecStart");
    let Some((first, more)) = lines.split_first() else {
        notes.lost(draft.line, &about, "there is no command: `true` stands in its place");
        draft.command = vec!["true".to_owned()];
        return;
    };
    let line = first.line;
    let all: Vec<String> = lines.iter().filter_map(|entry| texts(&entry.node)).flatten().collect();
    if !more.is_empty() {
        // Only a oneshot may have several; one after the other, while they succeed.
        let script: Vec<String> = all.iter().map(|text| script(text, draft, specifiers, &about, line, notes)).collect();
        draft.command = shell(&script.join(" && "));
        return;
    }
    draft.command = single(all.first().map_or("", String::as_str), draft, specifiers, &about, line, notes);
}

/// How long systemd waits for commands around the start, and around the stop.
pub(super) struct Timeouts {
    pub(super) start: Span,
    pub(super) stop: Span,
}

/// `ExecStartPre`, `ExecStartPost`, `ExecStop` and `ExecStopPost`, each of which may be there several times.
pub(super) fn hooks(
    draft: &mut Draft,
    fields: &mut Fields,
    specifiers: &Specifiers,
    timeouts: &Timeouts,
    notes: &mut Notes,
) {
    for (key, hook, timeout) in [
        ("ExecStartPre", "preStart", timeouts.start),
        ("ExecStartPost", "postStart", timeouts.start),
        ("ExecStop", "preStop", timeouts.stop),
        ("ExecStopPost", "postStop", timeouts.stop),
    ] {
        let about = fields.path(key);
        let lines = fields.take_all(key);
        let Some(line) = lines.first().map(|entry| entry.line) else { continue };
        let mut all: Vec<(bool, String)> = Vec::new();
        for text in lines.iter().filter_map(|entry| texts(&entry.node)).flatten() {
            if text.trim().is_empty() {
                all.clear();
                continue;
            }
            if ["SERVICE_RESULT", "EXIT_CODE", "EXIT_STATUS"].iter().any(|name| text.contains(name)) {
                let told = "how it ended is told by OSTLER_REASON, OSTLER_EXIT_CODE and OSTLER_EXIT_SIGNAL";
                notes.lost(line, &about, told);
            }
            let text = text.replace("${MAINPID}", "${OSTLER_PID}").replace("$MAINPID", "$OSTLER_PID");
            let flags = text.len() - text.trim_start_matches(['@', '-', ':', '+', '!', '|']).len();
            let ignores = text[..flags].contains('-');
            all.push((ignores, format!("{}{}", text[..flags].replace('-', ""), &text[flags..])));
        }
        let decides = hook.ends_with("Start");
        let mut ignored = false;
        let command = match all.as_slice() {
            [] => continue,
            [(ignores, text)] => {
                ignored = *ignores && decides;
                single(text, draft, specifiers, &about, line, notes)
            }
            several => {
                let mut commands = Vec::new();
                for (ignores, text) in several {
                    let command = script(text, draft, specifiers, &about, line, notes);
                    commands.push(if *ignores { format!("{{ {command} || true; }}") } else { command });
                }
                shell(&commands.join(" && "))
            }
        };
        let mut made = json!({"exec": {"command": command}, "timeout": timeout.to_string()});
        if ignored {
            made["failurePolicy"] = "Ignore".into();
        }
        draft.set_in("lifecycle", hook, made);
        match key {
            "ExecStop" => notes.near(line, &about, "runs within the grace period, which does not begin anew after it"),
            "ExecStartPost" => notes.near(line, &about, "runs when the process does; the process is ready after it"),
            _ => {}
        }
    }
}

fn shell(script: &str) -> Vec<String> {
    vec!["sh".to_owned(), "-c".to_owned(), words::literal(script)]
}

/// One command, without a shell where that can be.
fn single(
    text: &str,
    draft: &mut Draft,
    specifiers: &Specifiers,
    about: &str,
    line: u32,
    notes: &mut Notes,
) -> Vec<String> {
    let (words, expands) = parts(text, specifiers, about, line, notes);
    // A variable as a word of its own is cut at spaces. Where its value is at hand, that is done here.
    let is_known = |name: &String| draft.has_env(name) || name.starts_with("OSTLER_");
    let unknown = expands && words.iter().any(|word| references(word).iter().any(|name| !is_known(name)));
    if unknown {
        let script = script(text, draft, specifiers, about, line, notes);
        return shell(&format!("exec {script}"));
    }
    let mut command = Vec::new();
    for word in words {
        let alone = word.strip_prefix('$').filter(|name| is_name(name));
        match alone.filter(|_| expands).and_then(|name| draft.env_value(name)) {
            Some(value) => command.extend(words::split(value).unwrap_or_else(|| vec![value.to_owned()])),
            None if expands => command.push(words::expand(&word, true, |name| format!("$({name})"))),
            None => command.push(words::literal(&word)),
        }
    }
    command
}

/// The words of a command, and whether variables are expanded in them.
fn parts(text: &str, specifiers: &Specifiers, about: &str, line: u32, notes: &mut Notes) -> (Vec<String>, bool) {
    let program = text.trim_start_matches(['@', '-', ':', '+', '!', '|']);
    let flags = &text[..text.len() - program.len()];
    let mut words = words::split(program).unwrap_or_else(|| {
        notes.near(line, about, "a quote is not closed; the line is cut at spaces");
        program.split_whitespace().map(str::to_owned).collect()
    });
    if flags.contains('-') {
        notes.near(line, about, "failures count, against the `-`");
    }
    if flags.contains(['+', '!']) {
        notes.lost(line, about, "privileges are those of user, against the `+` or `!`");
    }
    if flags.contains('@') && words.len() > 1 {
        notes.lost(line, about, "the program is told its own name, against the `@`");
        words.remove(1);
    }
    let words = words.iter().map(|word| specifiers.plain(word, about, line, notes)).collect();
    (words, !flags.contains(':'))
}

/// The command for a shell, which leaves out what is not set and cuts what stands alone, as systemd does.
fn script(text: &str, draft: &mut Draft, specifiers: &Specifiers, about: &str, line: u32, notes: &mut Notes) -> String {
    let (words, expands) = parts(text, specifiers, about, line, notes);
    let mut script = Vec::new();
    for word in words {
        let names = if expands { references(&word) } else { Vec::new() };
        for name in &names {
            draft.inherit(name);
        }
        let quoted = if names.is_empty() {
            words::quote(&if expands { word.replace("$$", "$") } else { word })
        } else if word.strip_prefix('$').is_some_and(is_name) {
            word
        } else {
            // `$` keeps its meaning in double quotes, and is written with braces so that its end is plain.
            let escaped = word.replace('\\', "\\\\").replace('"', "\\\"").replace('`', "\\`");
            format!("\"{}\"", escaped.replace("$$", "\\$"))
        };
        script.push(quoted);
    }
    script.join(" ")
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// The variables that a word refers to.
fn references(word: &str) -> Vec<String> {
    let mut names = Vec::new();
    words::expand(word, true, |name| {
        names.push(name.to_owned());
        String::new()
    });
    names
}
