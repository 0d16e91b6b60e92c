//! Turns the configuration of other process managers into manifests.
//!
//! Pure: text in, objects and notes out; no file is read but by the caller, and nothing is looked up on this machine.
//! Every key of the input ends in one of three ways: it is in a manifest, it is in a note, or it says what is so
//! anyway. Nothing is dropped in silence, and the objects always pass the checks that `ostler apply` makes.
//!
//! A format is a module in `formats` that takes keys out of [`fields::Fields`] one by one; what is left over becomes a
//! note by itself.

mod draft;
mod fields;
mod formats;
mod ini;
mod notes;
mod tree;
mod units;
mod words;

use std::fmt;

use serde_json::Value;

pub use draft::to_yaml;
pub use notes::{Effect, Note};

use notes::Notes;

/// The formats that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Configuration of an HSU process manager, in either of its dialects.
    Hsu,
    /// `process-compose.yaml`
    ProcessCompose,
    /// `Procfile`, as foreman, Heroku and others read it.
    Procfile,
    /// `supervisord.conf`
    Supervisord,
    /// A PM2 ecosystem file, as JSON or YAML.
    Pm2,
    /// A systemd service unit.
    Systemd,
}

impl Format {
    /// Every format.
    pub const ALL: [Self; 6] =
        [Self::Hsu, Self::ProcessCompose, Self::Procfile, Self::Supervisord, Self::Pm2, Self::Systemd];

    /// The name, as `--from` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hsu => "hsu",
            Self::ProcessCompose => "process-compose",
            Self::Procfile => "procfile",
            Self::Supervisord => "supervisord",
            Self::Pm2 => "pm2",
            Self::Systemd => "systemd",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What became of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Imported {
    /// What the file was read as.
    pub format: Format,
    /// The objects, in the order in which they may be applied.
    pub objects: Vec<Value>,
    /// What has no equivalent, what is only nearly the same, and what is worth knowing; by line.
    pub notes: Vec<Note>,
}

/// Why a file cannot be imported at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Neither name nor content say what it is.
    #[error("cannot tell what this file is")]
    Unrecognised,
    /// A program, not data.
    #[error("this is JavaScript, which only Node can read")]
    JavaScript,
    /// A unit that is no service.
    #[error("only service units can be imported, not {what}")]
    NotAService {
        /// What the file is instead.
        what: String,
    },
    /// The text does not follow its format.
    #[error("{message}")]
    Syntax {
        /// Line, from 1.
        line: u32,
        /// What is wrong.
        message: String,
    },
    /// There is nothing in it that could run.
    #[error("there is no process in this file")]
    Empty,
}

impl Error {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unrecognised => {
                let known: Vec<&str> = Format::ALL.into_iter().map(Format::name).collect();
                Some(format!("say it with --from {}", known.join("|")))
            }
            Self::JavaScript => Some(
                "print it as JSON first: node -p 'JSON.stringify(require(\"./ecosystem.config.js\"), null, 2)' > \
                 ecosystem.json"
                    .to_owned(),
            ),
            Self::NotAService { .. } => Some("give the unit whose name ends in .service".to_owned()),
            Self::Syntax { .. } | Self::Empty => None,
        }
    }
}

/// Reads one file. `name` is its name, with or without directories; it decides where `format` is not given, and a unit
/// is named by it.
pub fn import(name: &str, text: &str, format: Option<Format>) -> Result<Imported, Error> {
    let name = name.rsplit('/').next().unwrap_or(name);
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if is_javascript(name, text) {
        return Err(Error::JavaScript);
    }
    let format = match format {
        Some(format) => format,
        None => detect(name, text).ok_or(Error::Unrecognised)?,
    };
    let mut notes = Notes::default();
    let objects = match format {
        Format::Hsu => formats::hsu::read(text, &mut notes)?,
        Format::ProcessCompose => formats::compose::read(text, &mut notes)?,
        Format::Procfile => formats::procfile::read(text, &mut notes)?,
        Format::Supervisord => formats::supervisord::read(text, &mut notes)?,
        Format::Pm2 => formats::pm2::read(text, &mut notes)?,
        Format::Systemd => formats::systemd::read(name, text, &mut notes)?,
    };
    if objects.is_empty() {
        return Err(Error::Empty);
    }
    Ok(Imported { format, objects, notes: notes.sorted() })
}

fn is_javascript(name: &str, text: &str) -> bool {
    [".js", ".cjs", ".mjs", ".ts"].iter().any(|end| name.ends_with(end))
        || text.lines().any(|line| line.starts_with("module.exports") || line.starts_with("export default"))
}

/// How the names of units end.
const UNITS: [&str; 8] = [".service", ".timer", ".socket", ".target", ".path", ".mount", ".slice", ".scope"];

/// What a file is, by its name, else by its content.
pub fn detect(name: &str, text: &str) -> Option<Format> {
    let lower = name.to_ascii_lowercase();
    if UNITS.iter().any(|end| lower.ends_with(end)) {
        return Some(Format::Systemd);
    }
    if lower == "procfile" || lower.starts_with("procfile.") {
        return Some(Format::Procfile);
    }
    let begins = |words: &[&str]| text.lines().any(|line| words.iter().any(|word| line.trim_end().starts_with(word)));
    if begins(&["[program:", "[supervisord]", "[fcgi-program:"]) {
        return Some(Format::Supervisord);
    }
    if begins(&["[Service]"]) {
        return Some(Format::Systemd);
    }
    if let Ok(tree) = tree::parse(text) {
        let has = |key: &str| tree.value.get(key).is_some();
        if has("managed_processes") {
            return Some(Format::Hsu);
        }
        if has("processes") {
            return Some(Format::ProcessCompose);
        }
        if has("apps") || has("pm2") || has("script") || tree.value.items().any(|item| item.get("script").is_some()) {
            return Some(Format::Pm2);
        }
    }
    formats::procfile::looks_like_it(text).then_some(Format::Procfile)
}
