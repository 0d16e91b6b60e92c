//! Objects under construction, and how they are written.

use std::collections::BTreeMap;

use ostler_core::kinds::{Backoff, Stop};
use ostler_core::{Span, name};
use serde_json::{Map, Value, json};

use crate::notes::Notes;
use crate::words;

/// A Process that is being put together. Only what differs from the defaults is written.
#[derive(Debug)]
pub(crate) struct Draft {
    /// The name in the manifest.
    pub(crate) name: String,
    /// The line where it begins.
    pub(crate) line: u32,
    pub(crate) namespace: Option<String>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) replicas: u64,
    pub(crate) command: Vec<String>,
    pub(crate) working_dir: Option<String>,
    /// Values as in a manifest: `$(NAME)` is a reference.
    env: Vec<(String, String)>,
    inherit: Vec<String>,
    /// Path, and whether it may be missing.
    env_files: Vec<(String, bool)>,
    /// Name, and number or `None` for any.
    ports: Vec<(String, Option<u16>)>,
    spec: Map<String, Value>,
}

impl Draft {
    pub(crate) fn new(name: &str, line: u32, names: &mut Names, notes: &mut Notes) -> Self {
        Self {
            name: names.give(name, line, notes),
            line,
            namespace: None,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            replicas: 1,
            command: Vec::new(),
            working_dir: None,
            env: Vec::new(),
            inherit: Vec::new(),
            env_files: Vec::new(),
            ports: Vec::new(),
            spec: Map::new(),
        }
    }

    pub(crate) fn set(&mut self, field: &str, value: impl Into<Value>) {
        self.spec.insert(field.to_owned(), value.into());
    }

    /// Sets a field of a field.
    pub(crate) fn set_in(&mut self, field: &str, inner: &str, value: impl Into<Value>) {
        let outer = self.spec.entry(field.to_owned()).or_insert_with(|| json!({}));
        if let Some(outer) = outer.as_object_mut() {
            outer.insert(inner.to_owned(), value.into());
        }
    }

    /// A hard limit. These managers start a program also where the kernel offers nothing to limit it with.
    pub(crate) fn limit(&mut self, name: &str, value: impl Into<Value>) {
        self.resources("limits").insert(name.to_owned(), value.into());
        self.set_in("resources", "enforcement", "BestEffort");
    }

    /// A threshold.
    pub(crate) fn threshold(&mut self, name: &str, value: Value) {
        self.resources("thresholds").insert(name.to_owned(), value);
    }

    fn resources(&mut self, part: &str) -> &mut Map<String, Value> {
        let resources = object_in(&mut self.spec, "resources");
        object_in(resources, part)
    }

    /// Keeps a description for people.
    pub(crate) fn describe(&mut self, key: &str, text: &str) {
        self.annotations.insert(key.to_owned(), text.to_owned());
    }

    /// Sets a label, as far as labels may have such values.
    pub(crate) fn label(&mut self, key: &str, value: &str, line: u32, notes: &mut Notes) {
        match name::label_value(value) {
            Ok(()) => drop(self.labels.insert(key.to_owned(), value.to_owned())),
            Err(why) => notes.lost(line, &format!("{}.{key}", self.name), why),
        }
    }

    /// Sets a variable, a later one of the same name winning. Ports are told by variables elsewhere, and are ports here.
    pub(crate) fn env(&mut self, variable: &str, value: String, line: u32, notes: &mut Notes) {
        let about = format!("{}.{variable}", self.name);
        if let Err(why) = name::variable(variable) {
            notes.lost(line, &about, why);
        } else if value.contains('\0') {
            notes.lost(line, &about, "a variable cannot hold a NUL character");
        } else if variable == "PORT" || variable.starts_with("PORT_") {
            let port = match variable.strip_prefix("PORT_") {
                None => "http".to_owned(),
                Some(port) => port.to_ascii_lowercase().replace('_', "-"),
            };
            match value.parse::<u16>() {
                Ok(number) if number > 0 && name::dns_label(&port).is_ok() => self.port(&port, Some(number)),
                _ => notes.lost(line, &about, format!("{variable} is set by Ostler, for ports; {value:?} is none")),
            }
        } else if variable.starts_with("OSTLER_") {
            notes.lost(line, &about, format!("{variable} is set by Ostler"));
        } else {
            self.env.retain(|(known, _)| known != variable);
            self.inherit.retain(|known| known != variable);
            self.env.push((variable.to_owned(), value));
        }
    }

    /// Whether the process is given this variable.
    pub(crate) fn has_env(&self, variable: &str) -> bool {
        self.env.iter().any(|(known, _)| known == variable)
    }

    /// The value given to a variable.
    pub(crate) fn env_value(&self, variable: &str) -> Option<&str> {
        self.env.iter().find(|(known, _)| known == variable).map(|(_, value)| value.as_str())
    }

    /// Takes variables from a file.
    pub(crate) fn env_file(&mut self, path: &str, optional: bool) {
        self.env_files.push((path.to_owned(), optional));
    }

    /// Takes variables from no file, after all.
    pub(crate) fn forget_env_files(&mut self) {
        self.env_files.clear();
    }

    /// Whether the process is given any variable by name.
    pub(crate) fn has_any_env(&self) -> bool {
        !self.env.is_empty()
    }

    /// Takes a variable from the daemon's environment, unless it is set, always there, or may be in a file of variables.
    pub(crate) fn inherit(&mut self, variable: &str) {
        let set = self.has_env(variable)
            || !self.env_files.is_empty()
            || words::is_always_there(variable)
            || variable == "PORT"
            || variable.starts_with("PORT_")
            || variable.starts_with("OSTLER_")
            || self.inherit.iter().any(|known| known == variable);
        if !set {
            self.inherit.push(variable.to_owned());
        }
    }

    /// Adds or changes a port.
    pub(crate) fn port(&mut self, name: &str, number: Option<u16>) {
        self.ports.retain(|(known, _)| known != name);
        // PORT is the first one.
        let at = if name == "http" { 0 } else { self.ports.len() };
        self.ports.insert(at, (name.to_owned(), number));
    }

    /// Sets a command line that was written for a shell, and inherits the variables which it uses.
    pub(crate) fn shell(&mut self, line: &str, shell: &[String]) {
        for variable in words::variables(line) {
            self.inherit(&variable);
        }
        self.command = words::for_shell(line, shell).iter().map(|word| words::literal(word)).collect();
    }

    /// Restarts that are so far apart, each `factor` times as far as the one before.
    pub(crate) fn backoff(&mut self, initial: Span, factor: f64, max: Option<Span>) {
        let usual = Backoff::default();
        self.set_in("backoff", "initial", initial.to_string());
        if (factor - usual.factor).abs() > f64::EPSILON {
            self.set_in("backoff", "factor", factor.clamp(1.0, 100.0));
        }
        let max = max.unwrap_or(usual.max).max(initial);
        if max != usual.max {
            self.set_in("backoff", "max", max.to_string());
        }
    }

    /// Restarts that are all so far apart.
    pub(crate) fn constant_delay(&mut self, delay: Span) {
        self.backoff(delay, 1.0, Some(delay));
        self.set_in("backoff", "jitter", 0.0);
    }

    /// How it is stopped; the defaults are not written.
    pub(crate) fn stop(&mut self, signal: Option<&str>, grace: Option<Span>) {
        let usual = Stop::default();
        if let Some(signal) = signal.filter(|signal| *signal != usual.signal) {
            self.set_in("stop", "signal", signal);
        }
        if let Some(grace) = grace.filter(|grace| *grace != usual.grace_period) {
            self.set_in("stop", "gracePeriod", grace.to_string());
        }
    }

    /// A stop signal in any notation; a note when it is none.
    pub(crate) fn signal(&mut self, text: &str, line: u32, about: &str, notes: &mut Notes) {
        match ostler_core::signal::parse(text) {
            Ok(number) if (1..=31).contains(&number) => self.stop(Some(&ostler_core::signal::name(number)), None),
            Ok(_) => self.stop(Some(&text.to_ascii_uppercase()), None),
            Err(why) => notes.lost(line, about, why),
        }
    }

    /// Does not start it; says how to.
    pub(crate) fn disable(&mut self, line: u32, about: &str, notes: &mut Notes) {
        let wanted = self.replicas.max(1);
        notes.hint(
            line,
            about,
            format!("has replicas: 0; start it by: ostler scale process/{} --replicas={wanted}", self.name),
        );
        self.replicas = 0;
    }

    /// The object. Settles what depends on several keys.
    pub(crate) fn finish(mut self, notes: &mut Notes) -> Value {
        if let Some(dir) = self.working_dir.take_if(|dir| dir == "." || dir == "./") {
            // The directory of the manifest is where it runs anyway.
            drop(dir);
        }
        if let (Some(dir), Some(program)) = (&self.working_dir, self.command.first_mut()) {
            // Elsewhere a relative program is looked for after the change of directory; here it is before.
            *program = within(dir, program);
        }
        if self.replicas > 10_000 {
            notes.lost(self.line, &self.name, format!("{} copies are too many: at most 10000", self.replicas));
            self.replicas = 10_000;
        }
        if self.replicas > 1 {
            for (port, number) in &mut self.ports {
                if let Some(number) = number.take() {
                    let about = format!("{}.{port}", self.name);
                    notes.near(
                        self.line,
                        &about,
                        format!("copies cannot share port {number}: each has one of its own, in the variable PORT"),
                    );
                }
            }
        }
        let mut spec = self.spec;
        if self.replicas != 1 {
            spec.insert("replicas".to_owned(), self.replicas.into());
        }
        spec.insert("command".to_owned(), self.command.into());
        if let Some(dir) = self.working_dir {
            spec.insert("workingDir".to_owned(), dir.into());
        }
        if !self.env.is_empty() {
            let env: Vec<Value> = self.env.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
            spec.insert("env".to_owned(), env.into());
        }
        if !self.env_files.is_empty() {
            let file = |(path, optional): &(String, bool)| {
                if *optional { json!({"path": path, "optional": true}) } else { json!({"path": path}) }
            };
            spec.insert("envFiles".to_owned(), self.env_files.iter().map(file).collect());
        }
        if !self.inherit.is_empty() {
            spec.insert("inheritEnv".to_owned(), self.inherit.into());
        }
        if !self.ports.is_empty() {
            let port = |number: &Option<u16>| number.map_or_else(|| json!("auto"), Into::into);
            let ports: Vec<Value> =
                self.ports.iter().map(|(name, number)| json!({"name": name, "port": port(number)})).collect();
            spec.insert("ports".to_owned(), ports.into());
        }
        object(
            "ostler.dev/v1",
            "Process",
            &self.name,
            self.namespace.as_deref(),
            &self.labels,
            &self.annotations,
            &spec,
        )
    }
}

fn object(
    version: &str,
    kind: &str,
    name: &str,
    namespace: Option<&str>,
    labels: &BTreeMap<String, String>,
    annotations: &BTreeMap<String, String>,
    spec: &Map<String, Value>,
) -> Value {
    let mut metadata = json!({"name": name});
    if let Some(namespace) = namespace {
        metadata["namespace"] = namespace.into();
    }
    for (field, pairs) in [("labels", labels), ("annotations", annotations)] {
        if !pairs.is_empty() {
            metadata[field] = json!(pairs);
        }
    }
    json!({"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec})
}

/// A Namespace.
pub(crate) fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

/// A program as seen from the directory of the manifest.
fn within(dir: &str, program: &str) -> String {
    if !program.contains('/') || program.starts_with('/') || program.starts_with("$(") {
        return program.to_owned();
    }
    format!("{}/{}", dir.trim_end_matches('/'), program.trim_start_matches("./"))
}

/// The names given so far, and what they were.
#[derive(Debug, Default)]
pub(crate) struct Names(Vec<(String, String)>);

impl Names {
    /// A name for a process, unique in its file.
    fn give(&mut self, original: &str, line: u32, notes: &mut Notes) -> String {
        let base = dns_name(original);
        let taken = |name: &str| self.0.iter().any(|(_, known)| known == name);
        let mut name = base.clone();
        let mut number = 2;
        while taken(&name) {
            let suffix = format!("-{number}");
            name = format!("{}{suffix}", &base[..base.len().min(58 - suffix.len())]);
            number += 1;
        }
        if name != original {
            notes.hint(line, original, format!("is called {name} here"));
        }
        self.0.push((original.to_owned(), name.clone()));
        name
    }
}

/// What comes nearest to a text among the names of processes.
pub(crate) fn dns_name(text: &str) -> String {
    let mut name = String::new();
    for c in text.chars() {
        match c.to_ascii_lowercase() {
            c if c.is_ascii_lowercase() || c.is_ascii_digit() => name.push(c),
            _ if name.ends_with('-') || name.is_empty() => {}
            _ => name.push('-'),
        }
    }
    name.truncate(58);
    let name = name.trim_end_matches('-');
    if name.is_empty() { "process".to_owned() } else { name.to_owned() }
}

/// The object of this name, which is made if need be.
fn object_in<'a>(map: &'a mut Map<String, Value>, name: &str) -> &'a mut Map<String, Value> {
    let value = map.entry(name.to_owned()).or_insert_with(|| json!({}));
    if !value.is_object() {
        *value = json!({});
    }
    value.as_object_mut().expect("it is an object now")
}

/// The order in which fields are written; others follow.
const ORDER: [&str; 28] = [
    "apiVersion",
    "kind",
    "metadata",
    "spec",
    "name",
    "namespace",
    "labels",
    "annotations",
    "replicas",
    "schedule",
    "command",
    "args",
    "workingDir",
    "env",
    "envFiles",
    "inheritEnv",
    "ports",
    "user",
    "group",
    "dependsOn",
    "restartPolicy",
    "backoff",
    "circuitBreaker",
    "restart",
    "successExitCodes",
    "stop",
    "resources",
    "logs",
];

/// Objects as YAML that can be applied, fields in the order in which people write them.
pub fn to_yaml(objects: &[Value]) -> Result<String, serde_yaml::Error> {
    let mut out = String::new();
    for (index, object) in objects.iter().enumerate() {
        if index > 0 {
            out.push_str("---\n");
        }
        let text = serde_yaml::to_string(&ordered(object))?;
        // Texts such as `yes` are written so that they can be applied.
        out.push_str(&ostler_manifest::quote_doubtful(&text));
    }
    Ok(out)
}

fn ordered(value: &Value) -> serde_yaml::Value {
    match value {
        Value::Object(map) => {
            let place = |key: &String| ORDER.iter().position(|known| known == key).unwrap_or(ORDER.len());
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort_by_key(|key| place(key));
            let pairs = keys.into_iter().map(|key| (serde_yaml::Value::from(key.as_str()), ordered(&map[key])));
            serde_yaml::Value::Mapping(pairs.collect())
        }
        Value::Array(items) => serde_yaml::Value::Sequence(items.iter().map(ordered).collect()),
        Value::String(text) => serde_yaml::Value::from(text.as_str()),
        Value::Bool(flag) => serde_yaml::Value::from(*flag),
        Value::Null => serde_yaml::Value::Null,
        Value::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
            (Some(number), _, _) => number.into(),
            (None, Some(number), _) => number.into(),
            (None, None, number) => number.unwrap_or_default().into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_dns_labels_and_stay_apart() {
        let (mut names, mut notes) = (Names::default(), Notes::default());
        let mut give = |name: &str| names.give(name, 1, &mut notes);
        assert_eq!(give("web"), "web");
        assert_eq!(give("__Web__"), "web-2");
        assert_eq!(give("My App (new)"), "my-app-new");
        assert_eq!(give("Größe"), "gr-e");
        assert_eq!(give("***"), "process");
        let long = "x".repeat(80);
        assert_eq!(give(&long).len(), 58);
        assert_eq!(give(&long), format!("{}-2", "x".repeat(56)));
        assert_eq!(notes.sorted().len(), 6);
    }

    #[test]
    fn a_relative_program_is_found_where_it_was() {
        assert_eq!(within("/opt/app", "./run"), "/opt/app/run");
        assert_eq!(within("sub/", "bin/run"), "sub/bin/run");
        assert_eq!(within("/opt/app", "node"), "node");
        assert_eq!(within("/opt/app", "/bin/true"), "/bin/true");
    }
}
