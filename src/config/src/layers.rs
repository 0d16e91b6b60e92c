//! What the daemon was started with, and what the file says.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::keys::{KEYS, check, faults, resolve, value_of};
use crate::{Layer, Refused};

/// The layers that are settled when the daemon is started, and the name of the file. Handed on to every process of the
/// daemon.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Given {
    /// The file; absolute.
    pub file: PathBuf,
    /// Whether somebody named the file, so that it has to be there.
    pub named: bool,
    /// Defaults that depend on how the daemon was started.
    pub defaults: Layer,
    /// From the environment.
    pub environment: Layer,
    /// From flags.
    pub flags: Layer,
}

/// The layer of the environment, from a way to look up variables. Empty ones count as unset.
///
/// # Errors
/// Says which variable has a wrong value.
pub fn environment(get: impl Fn(&str) -> Option<std::ffi::OsString>) -> Result<Layer, Refused> {
    let mut layer = Layer::new();
    let here = std::env::current_dir().unwrap_or_else(|_| "/".into());
    for key in KEYS {
        let Some(text) = get(key.variable).filter(|text| !text.is_empty()) else { continue };
        let origin = key.variable.to_owned();
        let Some(text) = text.to_str() else {
            return Err(Refused { origin, message: "the value is not UTF-8".to_owned() });
        };
        let mut one = Layer::from_iter([(key.name.to_owned(), value_of(key, text))]);
        resolve(&mut one, &here);
        check(key.name, &one[key.name]).map_err(|refused| Refused { origin, ..refused })?;
        layer.extend(one);
    }
    Ok(layer)
}

impl Given {
    /// Takes flags, relative paths against the current directory. The values were checked when they were parsed.
    #[must_use]
    pub fn with_flags(mut self, mut flags: Layer) -> Self {
        resolve(&mut flags, &std::env::current_dir().unwrap_or_else(|_| "/".into()));
        self.flags = flags;
        self
    }

    /// The layers below the file and above it, in order.
    pub(crate) fn around<'a>(&'a self, file: &'a Layer, runtime: &'a Layer) -> [&'a Layer; 5] {
        [&self.defaults, file, &self.environment, &self.flags, runtime]
    }
}

/// What a file says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct FileLayer {
    pub(crate) values: Layer,
    /// The line of each key.
    pub(crate) lines: BTreeMap<String, u32>,
}

/// Reads the file. Errors are complete, with places, one after another.
pub(crate) fn read(path: &Path) -> Result<FileLayer, String> {
    let shown = |errors: Vec<ostler_manifest::Diagnostic>| {
        let texts: Vec<String> = errors.iter().map(told).collect();
        texts.join("\n")
    };
    let plain = ostler_manifest::plain(path).map_err(shown)?;
    let mut values = plain.values().clone();
    // A key without a value is one that is not set.
    values.retain(|_, value| *value != Value::Null);
    resolve(&mut values, path.parent().unwrap_or(Path::new("/")));
    let errors = faults(&values);
    if !errors.is_empty() {
        return Err(shown(plain.refuse(&errors)));
    }
    let lines = values.keys().map(|key| (key.clone(), plain.place(key).0)).collect();
    Ok(FileLayer { values, lines })
}

/// One error in one line, as compilers name places.
fn told(error: &ostler_manifest::Diagnostic) -> String {
    let hint = error.hint.as_ref().map(|hint| format!("; {hint}")).unwrap_or_default();
    match error.line {
        0 => format!("{}: {}{hint}", error.file, error.message),
        line => format!("{}:{line}:{}: {}{hint}", error.file, error.column, error.message),
    }
}
