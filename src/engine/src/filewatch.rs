//! Watches the files of Processes with `spec.watch`, and has restarts cascade to what depends on them.
//!
//! One task for all of them, and one watch of the kernel, made when the first Process wants it: without any, this costs a
//! look at the text of each Process that is stored. Hints wake it, a look at the files says what there is, and
//! `ostler_core::plan::watch` what that leads to; this writes it, fingerprint and request to restart in one.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ostler_core::globs::Globs;
use ostler_core::kinds::{FileWatch, Instance, Phase, Process, RESTART_CASCADE};
use ostler_core::plan::watch::{Debounce, Look, cascade, is_complete, plan};
use ostler_core::{Kind, Timestamp, signal};
use ostler_store::{Durability, Expect, Key, Op, Store, WatchEnded};
use ostler_watch::files::{self, Known, Root, Seen, TooMany};
use ostler_watch::{Anchors, Concern, DirectoryId, DirectoryWatcher, Heard};
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tracing::{debug, warn};

use crate::controller::{Handle, InstanceRef};

/// Where the kernel does not watch, a look is taken so often.
const POLL: Duration = Duration::from_secs(2);
/// Also where it does: file systems of other machines tell it nothing.
const RESYNC: Duration = Duration::from_secs(300);
/// What could not be stored is tried again after this time.
const AGAIN: Duration = Duration::from_secs(1);
/// What is found while watches are being set up is looked at so often.
const ATTEMPTS: usize = 5;

/// Watches until the store is closed.
pub async fn run(store: Arc<dyn Store>, handle: Handle, state_dir: PathBuf) {
    let never = std::fs::metadata(&state_dir).map(|of| DirectoryId::of(&of)).into_iter().collect();
    let mut task = Task {
        store: Arc::clone(&store),
        handle,
        never,
        watched: HashMap::new(),
        watcher: None,
        wake: Arc::new(Notify::new()),
        interests: Interests::default(),
    };
    let prefix = format!("{}/", Kind::Process.plural());
    loop {
        let snapshot = store.list(&prefix);
        task.watched.retain(|key, _| snapshot.entries.iter().any(|entry| entry.key == *key));
        for entry in &snapshot.entries {
            task.see(&entry.key, Some(&entry.value)).await;
        }
        let Ok(mut watch) = store.watch(&prefix, snapshot.revision) else {
            tokio::task::yield_now().await;
            continue;
        };
        loop {
            let due = task.due().map(tokio::time::Instant::from_std);
            tokio::select! {
                events = watch.next() => match events {
                    Ok(events) => {
                        for event in events {
                            let value = event.kind.value();
                            task.see(&event.key, value.map(|value| &**value)).await;
                        }
                    }
                    Err(WatchEnded::Compacted(_)) => break,
                    Err(WatchEnded::Closed) => return,
                },
                () = task.wake.notified() => task.hear(),
                () = tokio::time::sleep_until(due.unwrap_or_else(tokio::time::Instant::now)), if due.is_some() => {
                    task.look_at_due().await;
                }
            }
        }
    }
}

/// What is watched for one Process.
struct Watched {
    uid: String,
    spec: FileWatch,
    identity: String,
    roots: Vec<Root>,
    globs: Arc<Globs>,
    debounce: Debounce,
    /// A look is taken then at the latest.
    look_at: Instant,
    /// No look has led to anything yet.
    first: bool,
    known: Known,
    /// Each with the root that it is below.
    directories: HashMap<PathBuf, (DirectoryId, PathBuf)>,
    anchors: Anchors,
}

impl Watched {
    fn due(&self) -> Instant {
        self.debounce.due(self.spec.debounce).map_or(self.look_at, |due| due.min(self.look_at))
    }

    /// Whether a hint about this path may be about its files.
    fn concerns(&self, path: &Path) -> bool {
        let (parent, name) = (path.parent().unwrap_or(path), path.file_name().unwrap_or_default());
        let inside = || {
            let root = self.directories.get(parent).map(|(_, root)| root);
            root.is_some_and(|root| concern(&self.globs, root, path) != Concern::Nothing)
        };
        self.directories.contains_key(path) || self.anchors.contains(&(parent.to_owned(), name.to_owned())) || inside()
    }
}

/// By directory: the roots that it is below, with the rules for what is in it.
type Interests = Arc<Mutex<HashMap<PathBuf, Vec<(PathBuf, Arc<Globs>)>>>>;

fn concern(globs: &Globs, root: &Path, path: &Path) -> Concern {
    let Ok(relative) = path.strip_prefix(root) else { return Concern::Nothing };
    if globs.excludes(relative) {
        Concern::Nothing
    } else if globs.includes(relative) {
        Concern::Everything
    } else {
        Concern::Directories
    }
}

struct Task {
    store: Arc<dyn Store>,
    handle: Handle,
    /// The daemon's own directory: what it writes there is no change.
    never: Vec<DirectoryId>,
    watched: HashMap<Key, Watched>,
    watcher: Option<DirectoryWatcher>,
    wake: Arc<Notify>,
    interests: Interests,
}

impl Task {
    /// Takes over what was stored of a Process.
    async fn see(&mut self, key: &Key, value: Option<&[u8]>) {
        // Most have nothing to do with files.
        let text = value.and_then(|value| std::str::from_utf8(value).ok()).unwrap_or_default();
        let known = self.watched.contains_key(key);
        if !known && !text.contains("\"watch\":{") && !text.contains(RESTART_CASCADE) {
            return;
        }
        let process: Option<Process> = serde_json::from_str(text).ok();
        let Some(process) = process.filter(|process| !process.metadata.is_deleting()) else {
            self.forget(key);
            return;
        };
        if is_complete(&process) {
            self.cascade().await;
        }
        let Some(spec) = &process.spec.watch else {
            self.forget(key);
            if process.status.watch.is_some() {
                self.store(key, &process.metadata.uid, &Look::default()).await;
            }
            return;
        };
        let identity = spec.identity(&process.spec.working_dir);
        if let Some(watched) = self.watched.get_mut(key)
            && watched.uid == process.metadata.uid
            && watched.identity == identity
        {
            watched.spec = (**spec).clone();
            return;
        }
        let globs = match Globs::new(&spec.include, &spec.exclude) {
            Ok(globs) => Arc::new(globs),
            Err(why) => {
                warn!(process = %key, %why, "its files are not watched");
                return;
            }
        };
        let directory = Path::new(&process.spec.working_dir);
        let roots = spec.paths.iter().map(|path| Root { shown: path.clone(), path: directory.join(path) });
        let watched = Watched {
            uid: process.metadata.uid.clone(),
            spec: (**spec).clone(),
            identity,
            roots: roots.collect(),
            globs,
            debounce: Debounce::default(),
            look_at: Instant::now(),
            first: true,
            known: Known::default(),
            directories: HashMap::new(),
            anchors: Anchors::new(),
        };
        self.watched.insert(key.clone(), watched);
    }

    fn forget(&mut self, key: &Key) {
        if self.watched.remove(key).is_none() {
            return;
        }
        if self.watched.is_empty() {
            self.watcher = None;
        } else {
            self.watch(false);
        }
    }

    /// When the next look is due.
    fn due(&self) -> Option<Instant> {
        self.watched.values().map(Watched::due).min()
    }

    /// Takes over what the kernel said.
    fn hear(&mut self) {
        let Some(watcher) = &self.watcher else { return };
        let Heard { changed, at, lost, paths, many, .. } = watcher.take();
        if !changed {
            return;
        }
        let at = at.unwrap_or_else(Instant::now);
        for watched in self.watched.values_mut() {
            if lost || many || paths.iter().any(|path| watched.concerns(path)) {
                watched.debounce.hear(at);
            }
        }
        if lost {
            self.watch(true);
        }
    }

    async fn look_at_due(&mut self) {
        // What was heard in the meantime may put a look off.
        self.hear();
        let now = Instant::now();
        let due: Vec<Key> =
            self.watched.iter().filter(|(_, watched)| watched.due() <= now).map(|(key, _)| key.clone()).collect();
        for key in due {
            self.look(&key).await;
        }
    }

    /// Watches what the last looks said is to be watched, and nothing else. Whether something is watched that was not.
    fn watch(&mut self, anew: bool) -> bool {
        let mut directories: HashMap<&PathBuf, DirectoryId> = HashMap::new();
        let mut names = Anchors::new();
        let mut interests: HashMap<PathBuf, Vec<(PathBuf, Arc<Globs>)>> = HashMap::new();
        for watched in self.watched.values() {
            names.extend(watched.anchors.iter().cloned());
            for (directory, (id, root)) in &watched.directories {
                directories.insert(directory, *id);
                interests.entry(directory.clone()).or_default().push((root.clone(), Arc::clone(&watched.globs)));
            }
        }
        let directories: Vec<(PathBuf, DirectoryId)> =
            directories.into_iter().map(|(path, id)| (path.clone(), id)).collect();
        *self.interests.lock().unwrap_or_else(PoisonError::into_inner) = interests;
        let (wake, interests) = (&self.wake, &self.interests);
        // The machine may have room for one by now.
        self.watcher = self.watcher.take().filter(DirectoryWatcher::works);
        let watcher = self.watcher.get_or_insert_with(|| {
            let interests = Arc::clone(interests);
            DirectoryWatcher::new(Arc::clone(wake), move |path: &Path| {
                let interests = interests.lock().unwrap_or_else(PoisonError::into_inner);
                let rules = path.parent().and_then(|parent| interests.get(parent));
                let concerns = rules.into_iter().flatten().map(|(root, globs)| concern(globs, root, path));
                concerns.max().unwrap_or(Concern::Nothing)
            })
        });
        watcher.watch(&directories, &names, anew)
    }

    /// Looks at the files of a Process, and has done what follows.
    async fn look(&mut self, key: &Key) {
        let Some(watched) = self.watched.get_mut(key) else { return };
        watched.debounce.reset();
        let mut known = watched.known.clone();
        let mut result = Err(TooMany::Files);
        for _ in 0..ATTEMPTS {
            let Some(watched) = self.watched.get_mut(key) else { return };
            let (roots, globs, never) = (watched.roots.clone(), Arc::clone(&watched.globs), self.never.clone());
            let looked = tokio::task::spawn_blocking(move || files::look(&roots, &globs, &never, &known)).await;
            let Ok(looked) = looked else { return };
            let (directories, anchors) = match &looked {
                Ok(seen) => {
                    let directories = seen.directories.iter().cloned();
                    (directories.map(|(path, id, root)| (path, (id, root))).collect(), seen.anchors.clone())
                }
                // A part of it would be of no use.
                Err(_) => (HashMap::new(), Anchors::new()),
            };
            known = looked.as_ref().map(|seen| seen.known.clone()).unwrap_or_default();
            result = looked;
            let Some(watched) = self.watched.get_mut(key) else { return };
            (watched.directories, watched.anchors) = (directories, anchors);
            // What happened before a directory was watched was not heard of.
            if !self.watch(false) {
                break;
            }
        }
        let watcher = self.watcher.as_ref();
        let Some(watched) = self.watched.get_mut(key) else { return };
        let deaf = watcher.and_then(|watcher| {
            let around = watched.anchors.iter().map(|(directory, _)| directory).filter(|directory| directory.is_dir());
            let all = watched.directories.keys().chain(around).all(|directory| watcher.is_watched(directory));
            watcher.trouble.clone().filter(|_| !all)
        });
        let look = judge(watched, &result, deaf);
        let pause = if look.trouble.is_some() && !look.blind { POLL } else { RESYNC };
        let uid = watched.uid.clone();
        let stored = self.store(key, &uid, &look).await;
        let Some(watched) = self.watched.get_mut(key) else { return };
        watched.look_at = Instant::now() + if stored { pause } else { AGAIN };
        if let Ok(seen) = result
            && stored
        {
            watched.known = seen.known;
            watched.first = false;
        }
    }

    /// Stores what a look leads to; whether there is nothing left to be done.
    async fn store(&self, key: &Key, uid: &str, look: &Look) -> bool {
        let prefix = format!("{}/{}/{}-", Kind::Instance.plural(), key.namespace(), key.name());
        let mut told = false;
        for _ in 0..16 {
            let Some(entry) = self.store.get(key) else { return true };
            let Ok(process) = serde_json::from_slice::<Process>(&entry.value) else { return true };
            if process.metadata.uid != uid {
                return true;
            }
            let instances: Vec<Instance> = read_all(&*self.store, &prefix)
                .filter(|it: &Instance| it.spec.process == process.metadata.name)
                .collect();
            let plan = plan(&process, &instances.iter().collect::<Vec<_>>(), look, now());
            let Some(next) = plan.process else { return true };
            if let Some(signal) = plan.signal.filter(|_| !told) {
                self.signal(&signal, &instances).await;
                told = true;
            }
            let Ok(value) = serde_json::to_vec(&*next) else { return true };
            let op = Op::put(key.clone(), value, Expect::Revision(entry.revision));
            match self.store.commit(vec![op], Durability::Crash).await {
                Ok(_) => {
                    if let Some(note) = plan.note {
                        // Only a daemon that is ending takes no more events.
                        let _ = self.handle.record(Kind::Process, next.metadata, note).await;
                    }
                    return true;
                }
                Err(ostler_store::Error::Conflict { .. }) => debug!(process = %key, "changed in between"),
                Err(why) => {
                    warn!(process = %key, %why, "what its files lead to is not stored; tried again");
                    return false;
                }
            }
        }
        false
    }

    async fn signal(&self, name: &str, instances: &[Instance]) {
        let Ok(number) = signal::parse(name) else { return };
        for instance in instances.iter().filter(|instance| instance.status.phase == Phase::Running) {
            let metadata = &instance.metadata;
            let target = InstanceRef { namespace: metadata.namespace.clone(), name: metadata.name.clone() };
            if let Err(why) = self.handle.signal(vec![target], number, false).await {
                debug!(instance = metadata.name, %why, "it has ended in between");
            }
        }
    }

    /// Restarts what depends on those whose restart is complete.
    async fn cascade(&self) {
        let prefix = format!("{}/", Kind::Process.plural());
        loop {
            let snapshot = self.store.list(&prefix);
            let revisions: HashMap<&Key, _> =
                snapshot.entries.iter().map(|entry| (&entry.key, entry.revision)).collect();
            let processes: Vec<Process> =
                snapshot.entries.iter().filter_map(|entry| serde_json::from_slice(&entry.value).ok()).collect();
            let Some(step) = cascade(&processes, now()) else { return };
            let mut ops = Vec::new();
            for process in step.restart.iter().map(|(process, _)| process).chain([&step.done]) {
                let metadata = &process.metadata;
                let key: Key = ostler_core::object::key(Kind::Process, &metadata.namespace, &metadata.name).into();
                let (Some(revision), Ok(value)) = (revisions.get(&key), serde_json::to_vec(process)) else { return };
                ops.push(Op::put(key, value, Expect::Revision(*revision)));
            }
            match self.store.commit(ops, Durability::Crash).await {
                Ok(_) => {
                    for (process, note) in step.restart {
                        let _ = self.handle.record(Kind::Process, process.metadata, note).await;
                    }
                }
                Err(ostler_store::Error::Conflict { .. }) => {}
                Err(why) => {
                    // With the next change of the Process it is found still to be done.
                    warn!(%why, "a restart does not cascade");
                    return;
                }
            }
        }
    }
}

/// What a look at the files of a Process means.
fn judge(watched: &Watched, result: &Result<Seen, TooMany>, deaf: Option<String>) -> Look {
    let paths = watched.spec.paths.join(", ");
    let seen = match result {
        Ok(seen) => seen,
        Err(why) => {
            let message = format!(
                "{why} below {paths}: nothing is watched; name narrower paths or exclude directories (spec.watch)"
            );
            return Look { trouble: Some(("TooManyFiles", message)), blind: true, ..Look::default() };
        }
    };
    let changed = if watched.first {
        seen.known.youngest().map(str::to_owned).into_iter().collect()
    } else {
        watched.known.differences(&seen.known)
    };
    let trouble = deaf.map(|why| {
        let seconds = POLL.as_secs();
        let message = format!(
            "{why}; its files are looked at every {seconds}s instead. Where a limit is the reason, raise \
             fs.inotify.max_user_watches or fs.inotify.max_user_instances (sysctl), or exclude directories"
        );
        ("Polling", message)
    });
    Look {
        fingerprint: seen.fingerprint.clone(),
        files: seen.files,
        youngest: (seen.youngest > 0).then(|| Timestamp::from_micros(seen.youngest)),
        changed,
        first: watched.first,
        trouble,
        blind: false,
    }
}

fn read_all<T: DeserializeOwned>(store: &dyn Store, prefix: &str) -> impl Iterator<Item = T> {
    store.list(prefix).entries.into_iter().filter_map(|entry| serde_json::from_slice(&entry.value).ok())
}

fn now() -> Timestamp {
    crate::clock::wall()
}
