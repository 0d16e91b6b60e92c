//! Procfiles: `web: bundle exec puma -p $PORT`, a process a line.

use serde_json::Value;

use super::environment_is_not_inherited;
use crate::Error;
use crate::draft::{Draft, Names};
use crate::notes::Notes;

/// foreman's first port, and how far apart those of different processes are.
const PORTS: (u16, u16) = (5000, 100);

/// The name and the command of a line.
fn pair(line: &str) -> Option<(&str, &str)> {
    let (name, command) = line.split_once(':')?;
    let good = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
    (good && !command.trim().is_empty()).then(|| (name, command.trim()))
}

fn is_blank(line: &str) -> bool {
    line.trim().is_empty() || line.starts_with('#')
}

/// Whether every line is one of a Procfile, and no value is one of YAML's.
pub(crate) fn looks_like_it(text: &str) -> bool {
    let mut lines = text.lines().filter(|line| !is_blank(line)).peekable();
    lines.peek().is_some()
        && lines.all(|line| pair(line).is_some_and(|(_, command)| !command.starts_with(['{', '[', '"', '&', '|', '>'])))
}

pub(crate) fn read(text: &str, notes: &mut Notes) -> Result<Vec<Value>, Error> {
    let mut names = Names::default();
    let mut objects = Vec::new();
    environment_is_not_inherited(notes, "your shell and of a file .env");
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !is_blank(line)) {
        let number = index as u32 + 1;
        let Some((name, command)) = pair(line) else {
            let message = "not a line of a Procfile, which are NAME: COMMAND".to_owned();
            return Err(Error::Syntax { line: number, message });
        };
        let mut draft = Draft::new(name, number, &mut names, notes);
        draft.shell(command, &["sh".to_owned(), "-c".to_owned()]);
        if command.contains("$PORT") || command.contains("${PORT") {
            let place = u16::try_from(objects.len()).unwrap_or(u16::MAX).min(500);
            draft.port("http", Some(PORTS.0 + PORTS.1 * place));
        }
        if name == "release" {
            draft.set("restartPolicy", "Never");
            notes.near(number, name, "runs once when it is applied, not before each release");
        }
        objects.push(draft.finish(notes));
    }
    Ok(objects)
}
