//! The configuration of a daemon that runs.
//!
//! A bad file changes nothing: the values read before stay in force, and [`Live::show`] says what is wrong. What was set
//! at run time, the last good file and the values the daemon began with are kept in a file of the state directory, so
//! that they outlive a controller that is restarted or upgraded; `ostler serve` removes it when it begins anew.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::keys::{Config, KEYS, check, key, value_of};
use crate::layers::{FileLayer, Given, read};
use crate::{Layer, Refused};

/// The name of the file with what has to outlive a controller, in the state directory.
const KEPT: &str = "config.running.json";

/// A value and where it is from.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    /// The key.
    pub key: &'static str,
    /// The value.
    pub value: Value,
    /// Where it was given, in words.
    pub origin: String,
    /// What is in force instead until the daemon is started again.
    pub running: Option<Value>,
}

/// The configuration, to be shown.
#[derive(Clone, Debug, PartialEq)]
pub struct Shown {
    /// In the order of [`KEYS`].
    pub settings: Vec<Setting>,
    /// The file.
    pub file: PathBuf,
    /// What is wrong with it, when it is not in force.
    pub error: Option<String>,
}

/// What a look at the file came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reloaded {
    /// Nothing is different.
    Unchanged,
    /// These keys are; some may need a restart.
    Changed(Vec<&'static str>),
    /// The file is bad, and nothing has changed.
    Bad(String),
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Kept {
    started: Option<Config>,
    file: Layer,
    runtime: Layer,
}

/// What tells one version of a file from the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp(u64, u64, i64, i64, i64, i64);

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        let it = metadata;
        Self(it.ino(), it.size(), it.mtime(), it.mtime_nsec(), it.ctime(), it.ctime_nsec())
    }
}

#[derive(Debug)]
struct State {
    file: FileLayer,
    error: Option<String>,
    /// Of the file that was read last, good or bad.
    seen: Option<Stamp>,
    runtime: Layer,
    started: Config,
    config: Config,
}

/// The configuration of a daemon that runs, shared by those who show, change and reload it.
pub struct Live {
    given: Given,
    kept: PathBuf,
    apply: Box<dyn Fn(&Config) + Send + Sync>,
    state: Mutex<State>,
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live").field("given", &self.given).finish_non_exhaustive()
    }
}

impl Live {
    /// The configuration with which `ostler serve` begins; forgets what an earlier daemon of the state directory kept.
    /// The caller holds its lock.
    ///
    /// # Errors
    /// Says what is wrong with the file, with places, or that what was kept cannot be removed.
    pub fn begin(given: &Given, state_dir: &Path) -> Result<Config, String> {
        let kept = state_dir.join(KEPT);
        match fs::remove_file(&kept) {
            Err(why) if why.kind() != io::ErrorKind::NotFound => {
                return Err(format!("cannot remove {}: {why}", kept.display()));
            }
            Ok(()) | Err(_) => {}
        }
        let file = if given.named || given.file.exists() { read(&given.file)? } else { FileLayer::default() };
        Ok(merge(given, &file.values, &Layer::new()))
    }

    /// The configuration of a controller; nothing is applied yet. A file that is bad by now does not keep it from
    /// running: the last good one counts, which [`Self::show`] says.
    pub fn resume(given: Given, state_dir: &Path) -> Self {
        let kept = state_dir.join(KEPT);
        let before: Kept =
            fs::read(&kept).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        let seen = fs::metadata(&given.file).ok().as_ref().map(Stamp::of);
        let is_wanted = given.named || seen.is_some() || !before.file.is_empty();
        let read = if is_wanted { read(&given.file) } else { Ok(FileLayer::default()) };
        let (file, error) = match read {
            Ok(file) => (file, None),
            Err(why) => (FileLayer { values: before.file, lines: BTreeMap::new() }, Some(why)),
        };
        let config = merge(&given, &file.values, &before.runtime);
        let started = before.started.unwrap_or_else(|| config.clone());
        let state = State { file, error, seen, runtime: before.runtime, started, config };
        let live = Self { given, kept, apply: Box::new(|_| ()), state: Mutex::new(state) };
        // Without it a controller that is restarted begins from the file alone, which `set` would have told.
        let _ = live.keep(&live.state());
        live
    }

    /// From now on every change is told to `apply`, and so are the values as they are. It must not block.
    #[must_use]
    pub fn applied_by(mut self, apply: impl Fn(&Config) + Send + Sync + 'static) -> Self {
        self.apply = Box::new(apply);
        (self.apply)(&self.state().config);
        self
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change of the state is one assignment: a panic leaves it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The values in force: those that need a restart are the ones the daemon began with.
    pub fn running(&self) -> Config {
        let state = self.state();
        let (mut values, started) = (layer_of(&state.config), layer_of(&state.started));
        for key in KEYS.iter().filter(|key| !key.live) {
            if let Some(value) = started.get(key.name) {
                values.insert(key.name.to_owned(), value.clone());
            }
        }
        config_of(values)
    }

    /// Reads the file again if it is not the one that was read last, or in any case.
    pub fn reload(&self, anyway: bool) -> Reloaded {
        let seen = fs::metadata(&self.given.file).ok().as_ref().map(Stamp::of);
        let mut state = self.state();
        if !anyway && seen == state.seen {
            return Reloaded::Unchanged;
        }
        let was_there = state.seen.is_some();
        state.seen = seen;
        let read = match seen {
            // Never there, and not asked for.
            None if !self.given.named && !was_there && state.error.is_none() && state.file.values.is_empty() => {
                Ok(FileLayer::default())
            }
            Some(_) | None => read(&self.given.file),
        };
        match read {
            Ok(file) => {
                state.error = None;
                state.file = file;
                let changed = self.merge_and_apply(&mut state);
                // What cannot be kept is only of use to the next controller, which reads the file itself.
                let _ = self.keep(&state);
                if changed.is_empty() { Reloaded::Unchanged } else { Reloaded::Changed(changed) }
            }
            Err(why) => {
                state.error = Some(why.clone());
                Reloaded::Bad(why)
            }
        }
    }

    /// Sets keys, given as text, and takes back what was set before; all or nothing. Lasts until the daemon ends.
    ///
    /// # Errors
    /// Everything that is wrong; nothing has changed then.
    pub fn set(&self, set: &[(String, String)], unset: &[String]) -> Result<Vec<&'static str>, Vec<Refused>> {
        let mut errors = Vec::new();
        let mut state = self.state();
        let mut runtime = state.runtime.clone();
        for name in unset {
            match key(name) {
                Some(_) => drop(runtime.remove(name)),
                None => errors.extend(check(name, &Value::Null).err()),
            }
        }
        for (name, text) in set {
            let value = key(name).map_or(Value::Null, |key| value_of(key, text));
            match check(name, &value) {
                Ok(()) => drop(runtime.insert(name.clone(), value)),
                Err(refused) => errors.push(refused),
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let before = std::mem::replace(&mut state.runtime, runtime);
        if let Err(why) = self.keep(&state) {
            state.runtime = before;
            let message = format!("cannot be kept: {why}");
            return Err(vec![Refused { origin: self.kept.display().to_string(), message }]);
        }
        Ok(self.merge_and_apply(&mut state))
    }

    /// Every value and where it is from.
    pub fn show(&self) -> Shown {
        let state = self.state();
        let (config, started) = (layer_of(&state.config), layer_of(&state.started));
        let settings = KEYS.iter().map(|key| {
            let value = config.get(key.name).cloned().unwrap_or_default();
            let running = started.get(key.name).filter(|running| !key.live && **running != value).cloned();
            Setting { key: key.name, value, origin: self.origin(&state, key.name), running }
        });
        Shown { settings: settings.collect(), file: self.given.file.clone(), error: state.error.clone() }
    }

    fn origin(&self, state: &State, name: &str) -> String {
        let layers = self.given.around(&state.file.values, &state.runtime);
        let known = key(name).map(|key| (key.variable, key.flag)).unwrap_or_default();
        match layers.iter().rposition(|layer| layer.contains_key(name)) {
            Some(4) => "set at run time".to_owned(),
            Some(3) => format!("flag {}", known.1),
            Some(2) => format!("environment {}", known.0),
            Some(1) => {
                let line = state.file.lines.get(name).map(|line| format!(":{line}")).unwrap_or_default();
                format!("file {}{line}", self.given.file.display())
            }
            Some(_) | None => "default".to_owned(),
        }
    }

    fn merge_and_apply(&self, state: &mut State) -> Vec<&'static str> {
        let config = merge(&self.given, &state.file.values, &state.runtime);
        let (old, new) = (layer_of(&state.config), layer_of(&config));
        let changed: Vec<&'static str> =
            KEYS.iter().map(|key| key.name).filter(|name| old.get(*name) != new.get(*name)).collect();
        state.config = config;
        if !changed.is_empty() {
            (self.apply)(&state.config);
        }
        changed
    }

    /// Replaces the file with what the next controller has to know.
    fn keep(&self, state: &State) -> io::Result<()> {
        use io::Write as _;
        let kept = Kept {
            started: Some(state.started.clone()),
            file: state.file.values.clone(),
            runtime: state.runtime.clone(),
        };
        let new = self.kept.with_extension("json.new");
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec(&kept)?)?;
        fs::rename(&new, &self.kept)
    }
}

fn merge(given: &Given, file: &Layer, runtime: &Layer) -> Config {
    let mut values = Layer::new();
    for layer in given.around(file, runtime) {
        values.extend(layer.iter().filter(|(name, _)| key(name).is_some()).map(|(k, v)| (k.clone(), v.clone())));
    }
    config_of(values)
}

/// Every layer was checked key by key, and no key depends on another; only one from another version can fail.
fn config_of(values: Layer) -> Config {
    serde_json::from_value(Value::Object(values)).unwrap_or_default()
}

fn layer_of(config: &Config) -> Layer {
    match serde_json::to_value(config) {
        Ok(Value::Object(values)) => values,
        Ok(_) | Err(_) => Layer::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use ostler_core::Span;
    use serde_json::json;

    use super::*;
    use crate::environment;

    struct Daemon {
        directory: tempfile::TempDir,
        given: Given,
    }

    fn layer(value: &Value) -> Layer {
        value.as_object().unwrap().clone()
    }

    impl Daemon {
        fn new(file: Option<&str>) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let given = Given { file: directory.path().join("config.yaml"), ..Given::default() };
            let daemon = Self { directory, given };
            if let Some(text) = file {
                daemon.write(text);
            }
            daemon
        }

        /// As editors do it: never half a file.
        fn write(&self, text: &str) {
            let new = self.directory.path().join("new");
            fs::write(&new, text).unwrap();
            fs::rename(new, &self.given.file).unwrap();
        }

        fn resume(&self) -> Live {
            Live::resume(self.given.clone(), self.directory.path())
        }
    }

    fn of(live: &Live, name: &str) -> (Value, String) {
        let setting = live.show().settings.into_iter().find(|setting| setting.key == name).unwrap();
        (setting.value, setting.origin)
    }

    #[test]
    fn each_layer_hides_the_ones_below() {
        let mut daemon = Daemon::new(None);
        let file = format!("file {}:1", daemon.given.file.display());
        let live = daemon.resume();
        assert_eq!(of(&live, "tick"), (json!("1s"), "default".to_owned()));
        daemon.write("tick: 2s\n");
        assert_eq!(live.reload(false), Reloaded::Changed(vec!["tick"]));
        assert_eq!(of(&live, "tick"), (json!("2s"), file));
        daemon.given.environment = environment(|name| (name == "OSTLER_TICK").then(|| "3s".into())).unwrap();
        assert_eq!(of(&daemon.resume(), "tick"), (json!("3s"), "environment OSTLER_TICK".to_owned()));
        daemon.given.flags = layer(&json!({"tick": "4s"}));
        let live = daemon.resume();
        assert_eq!(of(&live, "tick"), (json!("4s"), "flag --tick".to_owned()));
        assert_eq!(live.set(&[("tick".to_owned(), "5s".to_owned())], &[]), Ok(vec!["tick"]));
        assert_eq!(of(&live, "tick"), (json!("5s"), "set at run time".to_owned()));
        daemon.write("tick: 6s\n");
        assert_eq!(live.reload(false), Reloaded::Unchanged);
        assert_eq!(live.set(&[], &["tick".to_owned()]), Ok(vec!["tick"]));
        assert_eq!(of(&live, "tick").0, json!("4s"));
        let wrong = environment(|name| (name == "OSTLER_TICK").then(|| "soon".into())).unwrap_err();
        assert_eq!(wrong.origin, "OSTLER_TICK");
    }

    #[test]
    fn a_bad_file_leaves_the_old_one_in_force() {
        let daemon = Daemon::new(Some("tick: 2s\n"));
        let live = daemon.resume();
        daemon.write("tick: 3s\ntikc: 4s\nlog: 5\n");
        let Reloaded::Bad(why) = live.reload(false) else { panic!("it is bad") };
        assert!(why.contains("config.yaml:2:1: unknown field \"tikc\"; did you mean \"tick\"?"), "{why}");
        assert!(why.contains("config.yaml:3:6: "), "{why}");
        assert_eq!(live.reload(false), Reloaded::Unchanged, "it is told once");
        assert_eq!(of(&live, "tick").0, json!("2s"));
        assert_eq!(live.show().error, Some(why));
        // Also for the next controller.
        let next = daemon.resume();
        assert_eq!(of(&next, "tick").0, json!("2s"));
        assert!(next.show().error.is_some());
        // But a daemon that begins anew is told.
        assert!(Live::begin(&daemon.given, daemon.directory.path()).unwrap_err().contains(":2:1"));
        fs::remove_file(&daemon.given.file).unwrap();
        assert!(matches!(live.reload(false), Reloaded::Bad(_)));
        assert_eq!(of(&live, "tick").0, json!("2s"));
        daemon.write("tick: 7s\n");
        assert_eq!(live.reload(false), Reloaded::Changed(vec!["tick"]));
        assert_eq!(live.show().error, None);
    }

    #[test]
    fn what_was_set_outlives_the_controller_but_not_the_daemon() {
        let daemon = Daemon::new(None);
        let live = daemon.resume();
        live.set(&[("probeAllow".to_owned(), "10.0.0.0/8,db".to_owned())], &[]).unwrap();
        assert_eq!(of(&daemon.resume(), "probeAllow").0, json!(["10.0.0.0/8", "db"]));
        let begun = Live::begin(&daemon.given, daemon.directory.path()).unwrap();
        assert!(begun.probe_allow.is_empty());
        assert_eq!(of(&daemon.resume(), "probeAllow").0, json!([]));
    }

    #[test]
    fn what_needs_a_restart_waits_and_says_so() {
        let daemon = Daemon::new(Some("cgroups: none\n"));
        let applied = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&applied);
        let live = daemon.resume().applied_by(move |config| seen.lock().unwrap().push(config.tick));
        daemon.write("cgroups: v2\ntick: 2s\n");
        assert_eq!(live.reload(false), Reloaded::Changed(vec!["tick", "cgroups"]));
        assert_eq!(*applied.lock().unwrap(), [Span::from_secs(1), Span::from_secs(2)]);
        for live in [live, daemon.resume()] {
            assert_eq!(live.running().cgroups, crate::Cgroups::None);
            assert_eq!(live.running().tick, Span::from_secs(2));
            let settings = live.show().settings;
            let cgroups = settings.iter().find(|setting| setting.key == "cgroups").unwrap();
            assert_eq!((&cgroups.value, &cgroups.running), (&json!("v2"), &Some(json!("none"))));
        }
        assert_eq!(Live::begin(&daemon.given, daemon.directory.path()).unwrap().cgroups, crate::Cgroups::V2);
    }

    #[test]
    fn a_bad_change_changes_nothing() {
        let daemon = Daemon::new(None);
        let live = daemon.resume();
        let set = [("tick", "2s"), ("tikc", "3s"), ("cgroups", "v9")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        let refused = live.set(&set, &["lgo".to_owned()]).unwrap_err();
        assert_eq!(refused.iter().map(|it| it.origin.as_str()).collect::<Vec<_>>(), ["lgo", "tikc", "cgroups"]);
        assert!(refused[1].message.contains("did you mean \"tick\"?"), "{}", refused[1]);
        assert_eq!(of(&live, "tick").0, json!("1s"));
    }
}
