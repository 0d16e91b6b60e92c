//! What the references of a Process to ConfigMaps and Secrets come to.
//!
//! Pure: the caller looks objects up and opens secrets. Nothing here is ever written to a message but names and keys.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use crate::kinds::{ConfigFile, ConfigMap, Kind, OnChange, OnFileChange, ProcessSpec};
use crate::signal;

/// Bytes by key.
pub type Contents = BTreeMap<String, Vec<u8>>;

/// The most bytes that a ConfigMap or Secret may have, as in Kubernetes.
pub const MAX_SIZE: usize = 1 << 20;

/// Where a reference leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// A ConfigMap.
    ConfigMap,
    /// A Secret.
    Secret,
}

impl Origin {
    /// What a reference to an object of the kind is; there are none to other kinds.
    pub const fn of(kind: Kind) -> Option<Self> {
        match kind {
            Kind::ConfigMap => Some(Self::ConfigMap),
            Kind::Secret => Some(Self::Secret),
            Kind::Namespace
            | Kind::Process
            | Kind::Job
            | Kind::CronJob
            | Kind::Instance
            | Kind::Source
            | Kind::External
            | Kind::Event => None,
        }
    }

    /// The kind of the object.
    pub const fn kind(self) -> Kind {
        match self {
            Self::ConfigMap => Kind::ConfigMap,
            Self::Secret => Kind::Secret,
        }
    }
}

/// A variable whose value comes from elsewhere.
#[derive(Clone, PartialEq, Eq)]
pub struct Variable {
    /// Its value.
    pub value: String,
    /// It comes from a Secret.
    pub secret: bool,
}

/// A file whose content comes from elsewhere.
#[derive(Clone)]
pub struct File {
    /// Relative to the private directory; no part of it is special.
    pub path: String,
    /// Permissions.
    pub mode: u32,
    /// The signal that tells a running process of new content; nothing when that waits for the next start.
    pub signal: Option<i32>,
    /// It comes from a Secret.
    pub secret: bool,
    contents: Arc<Contents>,
    key: String,
}

impl File {
    /// What is in it.
    pub fn content(&self) -> &[u8] {
        self.contents.get(&self.key).map_or(&[], Vec::as_slice)
    }
}

/// What a process gets from ConfigMaps and Secrets.
#[derive(Clone, Default)]
pub struct Resolved {
    /// What `envFrom` yields.
    pub env_from: BTreeMap<String, Variable>,
    /// What `valueFrom` yields, by the name of the variable.
    pub env: BTreeMap<String, Variable>,
    /// What `files` yields.
    pub files: Vec<File>,
    /// The private directory that the files are in, once whoever writes them has said where.
    pub directory: Option<String>,
    /// What a start has to wait for, in words without any value.
    pub missing: Option<String>,
    /// Everything whose change replaces processes, unambiguously.
    pub restarts_on: Vec<u8>,
    /// Some of that comes from a Secret.
    pub has_secrets: bool,
}

/// The objects that a spec refers to.
pub fn references(spec: &ProcessSpec) -> BTreeSet<(Origin, &str)> {
    let mut found = BTreeSet::new();
    for from in &spec.env_from {
        found.extend(from.config_map_ref.iter().map(|to| (Origin::ConfigMap, to.name.as_str())));
        found.extend(from.secret_ref.iter().map(|to| (Origin::Secret, to.name.as_str())));
    }
    for from in spec.env.iter().filter_map(|variable| variable.value_from.as_deref()) {
        found.extend(from.config_map_key_ref.iter().map(|to| (Origin::ConfigMap, to.name.as_str())));
        found.extend(from.secret_key_ref.iter().map(|to| (Origin::Secret, to.name.as_str())));
    }
    for file in &spec.files {
        found.extend(file.config_map_ref.iter().map(|to| (Origin::ConfigMap, to.name.as_str())));
        found.extend(file.secret_ref.iter().map(|to| (Origin::Secret, to.name.as_str())));
    }
    found
}

/// Whether a change of an object replaces the processes of a spec.
pub fn restarts_on(spec: &ProcessSpec, origin: Origin, name: &str) -> bool {
    let whole = spec.env_from.iter().any(|from| {
        let to = match origin {
            Origin::ConfigMap => &from.config_map_ref,
            Origin::Secret => &from.secret_ref,
        };
        to.as_ref().is_some_and(|to| to.name == name && to.on_change == OnChange::Restart)
    });
    let one = spec.env.iter().filter_map(|variable| variable.value_from.as_deref()).any(|from| {
        let to = match origin {
            Origin::ConfigMap => &from.config_map_key_ref,
            Origin::Secret => &from.secret_key_ref,
        };
        to.as_ref().is_some_and(|to| to.name == name && to.on_change == OnChange::Restart)
    });
    let file = spec.files.iter().filter(|file| file.on_change == OnFileChange::Restart).any(|file| {
        let to = match origin {
            Origin::ConfigMap => &file.config_map_ref,
            Origin::Secret => &file.secret_ref,
        };
        to.as_ref().is_some_and(|to| to.name == name)
    });
    whole || one || file
}

/// Whether a change of what a spec refers to is told to running processes by a signal.
pub fn signals(spec: &ProcessSpec) -> bool {
    spec.files.iter().any(|file| file.on_change == OnFileChange::Signal)
}

/// What identifies the files that are replaced together, those with the same signal: everything in them, unambiguously,
/// by the number of the signal; and whether some of it comes from a Secret.
pub fn live(files: &[File]) -> BTreeMap<i32, (Vec<u8>, bool)> {
    let mut found: BTreeMap<i32, (Vec<u8>, bool)> = BTreeMap::new();
    for file in files {
        let Some(signal) = file.signal else { continue };
        let (bytes, secret) = found.entry(signal).or_default();
        *secret |= file.secret;
        let mode = file.mode.to_le_bytes();
        frame(bytes, [file.path.as_bytes(), &mode, file.content()]);
    }
    found
}

/// Appends parts so that no others come to the same.
fn frame<'a>(out: &mut Vec<u8>, parts: impl IntoIterator<Item = &'a [u8]>) {
    for part in parts {
        out.extend_from_slice(&(part.len() as u64).to_le_bytes());
        out.extend_from_slice(part);
    }
}

/// Whether a spec refers to any ConfigMap or Secret; cheaper than to list them.
pub fn refers(spec: &ProcessSpec) -> bool {
    !spec.env_from.is_empty() || !spec.files.is_empty() || spec.env.iter().any(|variable| variable.value_from.is_some())
}

/// Whether Ostler sets a variable itself, so that nothing else may.
pub fn is_reserved(variable: &str) -> bool {
    variable == "PORT" || variable.starts_with("PORT_") || variable.starts_with("OSTLER_")
}

/// Resolves all references. `lookup` yields the content of an object, nothing when there is no such object, or why it
/// cannot be read.
pub fn resolve(
    spec: &ProcessSpec,
    mut lookup: impl FnMut(Origin, &str) -> Result<Option<Arc<Contents>>, String>,
) -> Resolved {
    let mut resolver = Resolver { resolved: Resolved::default() };
    for from in &spec.env_from {
        let (origin, to) = match (&from.config_map_ref, &from.secret_ref) {
            (Some(to), _) => (Origin::ConfigMap, to),
            (None, Some(to)) => (Origin::Secret, to),
            (None, None) => continue,
        };
        let contents = match lookup(origin, &to.name) {
            Ok(contents) => contents,
            Err(why) => {
                resolver.wait(why);
                continue;
            }
        };
        let Some(contents) = contents else {
            if !to.optional {
                resolver.wait(not_found(origin, &to.name));
            }
            continue;
        };
        for (key, value) in contents.iter() {
            let name = format!("{}{key}", from.prefix);
            // As in Kubernetes: keys that are files and not variables are passed over.
            let Ok(text) = std::str::from_utf8(value) else { continue };
            if !is_variable(&name) || is_reserved(&name) || text.contains('\0') {
                continue;
            }
            resolver.depends(origin, to.on_change, &[&to.name, key], value);
            let variable = Variable { value: text.to_owned(), secret: origin == Origin::Secret };
            resolver.resolved.env_from.insert(name, variable);
        }
    }
    for variable in &spec.env {
        let Some(from) = variable.value_from.as_deref() else { continue };
        let (origin, to) = match (&from.config_map_key_ref, &from.secret_key_ref) {
            (Some(to), _) => (Origin::ConfigMap, to),
            (None, Some(to)) => (Origin::Secret, to),
            (None, None) => continue,
        };
        let contents = match lookup(origin, &to.name) {
            Ok(contents) => contents,
            Err(why) => {
                resolver.wait(why);
                continue;
            }
        };
        let value = contents.as_ref().and_then(|contents| contents.get(&to.key));
        let Some(value) = value else {
            if !to.optional {
                resolver.wait(match contents {
                    None => not_found(origin, &to.name),
                    Some(_) => no_key(origin, &to.name, &to.key),
                });
            }
            continue;
        };
        match std::str::from_utf8(value) {
            Ok(text) if !text.contains('\0') => {
                resolver.depends(origin, to.on_change, &[&variable.name, &to.name, &to.key], value);
                let value = Variable { value: text.to_owned(), secret: origin == Origin::Secret };
                resolver.resolved.env.insert(variable.name.clone(), value);
            }
            _ => resolver.wait(format!(
                "key {:?} of {} {:?} is not text, which a variable has to be",
                to.key,
                origin.kind().singular(),
                to.name
            )),
        }
    }
    for file in &spec.files {
        resolver.file(file, &mut lookup);
    }
    resolver.resolved
}

struct Resolver {
    resolved: Resolved,
}

impl Resolver {
    fn wait(&mut self, why: String) {
        self.resolved.missing.get_or_insert(why);
    }

    fn depends(&mut self, origin: Origin, on_change: OnChange, path: &[&str], value: &[u8]) {
        match on_change {
            OnChange::Ignore => {}
            OnChange::Restart => self.restarts(origin, path, value),
        }
    }

    fn restarts(&mut self, origin: Origin, path: &[&str], value: &[u8]) {
        self.resolved.has_secrets |= origin == Origin::Secret;
        let parts = std::iter::once(origin.kind().name().as_bytes())
            .chain(path.iter().map(|part| part.as_bytes()))
            .chain(std::iter::once(value));
        frame(&mut self.resolved.restarts_on, parts);
    }

    fn file(
        &mut self,
        file: &ConfigFile,
        lookup: &mut impl FnMut(Origin, &str) -> Result<Option<Arc<Contents>>, String>,
    ) {
        let (origin, to) = match (&file.config_map_ref, &file.secret_ref) {
            (Some(to), _) => (Origin::ConfigMap, to),
            (None, Some(to)) => (Origin::Secret, to),
            (None, None) => return,
        };
        let contents = match lookup(origin, &to.name) {
            Ok(contents) => contents,
            Err(why) => return self.wait(why),
        };
        let Some(contents) = contents else {
            if !to.optional {
                self.wait(not_found(origin, &to.name));
            }
            return;
        };
        let keys: Vec<&String> = match &to.key {
            Some(key) => contents.get_key_value(key).map(|(key, _)| key).into_iter().collect(),
            // What an object may hold and no directory.
            None => contents.keys().filter(|key| *key != "." && !key.starts_with("..")).collect(),
        };
        if let (Some(key), true, false) = (&to.key, keys.is_empty(), to.optional) {
            self.wait(no_key(origin, &to.name, key));
        }
        for key in keys {
            let path = if to.key.is_some() { file.path.clone() } else { format!("{}/{key}", file.path) };
            let signal = match file.on_change {
                OnFileChange::Signal => signal::parse(file.signal()).ok(),
                OnFileChange::Restart => {
                    self.restarts(origin, &["files", &path, &to.name, key], &contents[key]);
                    None
                }
                OnFileChange::Ignore => None,
            };
            self.resolved.files.push(File {
                path,
                mode: file.mode.bits(),
                signal,
                secret: origin == Origin::Secret,
                contents: Arc::clone(&contents),
                key: key.clone(),
            });
        }
    }
}

fn not_found(origin: Origin, name: &str) -> String {
    format!("{} {name:?} not found", origin.kind().singular())
}

fn no_key(origin: Origin, name: &str, key: &str) -> String {
    format!("{} {name:?} has no key {key:?}", origin.kind().singular())
}

fn is_variable(name: &str) -> bool {
    let head = name.chars().next().is_some_and(|c| c.is_ascii_alphabetic() || "_-.".contains(c));
    head && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
}

/// The names of the variables whose values are known to come from Secrets without looking at any.
pub fn secret_variables(spec: &ProcessSpec) -> BTreeSet<&str> {
    let mut hidden = BTreeSet::new();
    for variable in &spec.env {
        let direct = variable.value_from.as_deref().is_some_and(|from| from.secret_key_ref.is_some());
        let through = names_in(&variable.value).iter().any(|name| hidden.contains(name.as_str()));
        if direct || through {
            hidden.insert(variable.name.as_str());
        }
    }
    hidden
}

/// The names that `$(NAME)` refers to in a text.
pub fn names_in(text: &str) -> Vec<String> {
    let found = std::cell::RefCell::new(Vec::new());
    crate::expand::expand(text, |name| {
        found.borrow_mut().push(name.to_owned());
        Some(String::new())
    });
    found.into_inner()
}

/// What a ConfigMap holds.
pub fn contents(object: &ConfigMap) -> Contents {
    let text = object.data.iter().map(|(key, value)| (key.clone(), value.clone().into_bytes()));
    let binary = object.binary_data.iter().filter_map(|(key, value)| Some((key.clone(), decode(value)?)));
    text.chain(binary).collect()
}

/// Reads base64 as Kubernetes does: lines may be broken.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let joined: String = text.chars().filter(|c| !matches!(c, '\n' | '\r')).collect();
    BASE64_STANDARD.decode(joined).ok()
}

/// Writes base64.
pub fn encode(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(bytes)
}

/// Reads a file of `NAME=value` lines: empty lines and those that begin with `#` are passed over, `export ` before a
/// name is understood, and a pair of quotes around the whole value is taken away. The error names the line, not what is
/// in it.
pub fn parse_env_file(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut found = Vec::new();
    for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").map_or(line, str::trim_start);
        let Some((name, value)) = line.split_once('=') else {
            return Err(format!("line {}: NAME=value is needed", number + 1));
        };
        let name = name.trim_end();
        if !is_variable(name) {
            return Err(format!("line {}: what is before the '=' cannot be the name of a variable", number + 1));
        }
        let value = value.trim();
        let bare =
            ['"', '\''].iter().find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote)).unwrap_or(value);
        if bare.contains('\0') {
            return Err(format!("line {}: a NUL character", number + 1));
        }
        found.push((name.to_owned(), bare.to_owned()));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(more: &serde_json::Value) -> ProcessSpec {
        let mut spec = json!({"command": ["x"]});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(spec).unwrap()
    }

    fn look(origin: Origin, name: &str) -> Result<Option<Arc<Contents>>, String> {
        let pairs: &[(&str, &[u8])] = match (origin, name) {
            (Origin::ConfigMap, "app") => &[("LEVEL", b"debug"), ("app.conf", b"x"), ("PORT", b"1"), ("BIN", b"\xff")],
            (Origin::Secret, "db") => &[("password", b"hunter2")],
            (Origin::Secret, "sealed") => return Err("cannot be opened".to_owned()),
            _ => return Ok(None),
        };
        Ok(Some(Arc::new(pairs.iter().map(|(key, value)| ((*key).to_owned(), value.to_vec())).collect())))
    }

    #[test]
    fn variables_come_from_whole_objects_and_from_keys() {
        let resolved = resolve(
            &spec(&json!({
                "envFrom": [{"configMapRef": {"name": "app"}, "prefix": "APP_"}, {"configMapRef": {"name": "app"}}],
                "env": [{"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "db", "key": "password"}}},
                        {"name": "NONE", "valueFrom": {"configMapKeyRef": {"name": "app", "key": "no", "optional": true}}}],
            })),
            look,
        );
        assert_eq!(resolved.missing, None);
        let names: Vec<&str> = resolved.env_from.keys().map(String::as_str).collect();
        // Neither what Ostler sets itself nor what is not text.
        assert_eq!(names, ["APP_LEVEL", "APP_PORT", "APP_app.conf", "LEVEL", "app.conf"]);
        assert!(resolved.env["PASSWORD"].secret && resolved.env["PASSWORD"].value == "hunter2");
        assert!(!resolved.env.contains_key("NONE"));
    }

    #[test]
    fn what_is_missing_is_named_and_no_value_is() {
        let missing = |from: serde_json::Value| {
            resolve(&spec(&json!({"env": [{"name": "A", "valueFrom": from}]})), look).missing.unwrap()
        };
        assert_eq!(missing(json!({"configMapKeyRef": {"name": "no", "key": "a"}})), "configmap \"no\" not found");
        assert_eq!(missing(json!({"secretKeyRef": {"name": "db", "key": "a"}})), "secret \"db\" has no key \"a\"");
        assert_eq!(missing(json!({"secretKeyRef": {"name": "sealed", "key": "a"}})), "cannot be opened");
        assert!(missing(json!({"configMapKeyRef": {"name": "app", "key": "BIN"}})).contains("is not text"));
    }

    #[test]
    fn only_what_restarts_is_depended_on() {
        let on = |on_change: &str| {
            let from = json!({"secretKeyRef": {"name": "db", "key": "password", "onChange": on_change}});
            resolve(&spec(&json!({"env": [{"name": "A", "valueFrom": from}]})), look)
        };
        assert!(on("Ignore").restarts_on.is_empty() && !on("Ignore").has_secrets);
        assert!(!on("Restart").restarts_on.is_empty() && on("Restart").has_secrets);
    }

    #[test]
    fn files_are_keys_or_whole_objects_and_only_those_with_a_signal_are_live() {
        let resolved = resolve(
            &spec(&json!({"files": [
                {"path": "conf/level", "configMapRef": {"name": "app", "key": "LEVEL"}},
                {"path": "all", "configMapRef": {"name": "app"}, "onChange": "Ignore"},
                {"path": "pw", "secretRef": {"name": "db", "key": "password"}, "onChange": "Signal", "mode": "0600"},
                {"path": "none", "secretRef": {"name": "db", "key": "no", "optional": true}},
            ]})),
            look,
        );
        assert_eq!(resolved.missing, None);
        let paths: Vec<&str> = resolved.files.iter().map(|file| file.path.as_str()).collect();
        // Whatever a key holds: it is a file.
        assert_eq!(paths, ["conf/level", "all/BIN", "all/LEVEL", "all/PORT", "all/app.conf", "pw"]);
        assert_eq!(resolved.files[1].content(), b"\xff");
        // Only the first one replaces processes, and it is no secret.
        assert!(!resolved.restarts_on.is_empty() && !resolved.has_secrets);
        let live = live(&resolved.files);
        assert_eq!(live.keys().copied().collect::<Vec<_>>(), [1]);
        assert!(live[&1].1 && resolved.files[5].mode == 0o600);
        let missing = |file: serde_json::Value| resolve(&spec(&json!({"files": [file]})), look).missing;
        assert_eq!(
            missing(json!({"path": "x", "secretRef": {"name": "db", "key": "no"}})).unwrap(),
            "secret \"db\" has no key \"no\""
        );
        assert_eq!(
            missing(json!({"path": "x", "configMapRef": {"name": "no"}})).unwrap(),
            "configmap \"no\" not found"
        );
        assert_eq!(missing(json!({"path": "x", "configMapRef": {"name": "no", "optional": true}})), None);
    }

    #[test]
    fn variables_made_of_secrets_are_secret_too() {
        let spec = spec(&json!({"env": [
            {"name": "P", "valueFrom": {"secretKeyRef": {"name": "db", "key": "password"}}},
            {"name": "URL", "value": "db://$(P)@host"},
            {"name": "PLAIN", "value": "$$(P)"},
        ]}));
        assert_eq!(secret_variables(&spec).into_iter().collect::<Vec<_>>(), ["P", "URL"]);
    }

    #[test]
    fn env_files_are_read_as_people_write_them() {
        let read = parse_env_file("# c\n\nA=1\nexport B = \"two words\"\nC='x=y'\nD=\n").unwrap();
        let pairs: Vec<(&str, &str)> = read.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
        assert_eq!(pairs, [("A", "1"), ("B", "two words"), ("C", "x=y"), ("D", "")]);
        assert_eq!(parse_env_file("A=1\nhunter2\n").unwrap_err(), "line 2: NAME=value is needed");
    }
}
