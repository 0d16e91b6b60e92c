//! All Sources of a daemon: one task for each, and one that tells them what happens to objects.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use ostler_core::kinds::Source;
use ostler_core::object::key;
use ostler_core::plan::Note;
use ostler_core::{Kind, Metadata, Timestamp};
use ostler_store::{Store, WatchEnded};
use tokio::task::AbortHandle;
use tracing::{debug, warn};

use crate::directory::{Broken, Rendered, is_directory};
use crate::inventory::{self, Item};
use crate::plan::{self, Policy};
use crate::syncer::{Syncer, read_content};
use crate::tracker::Tracker;

/// What Sources need of the rest of the daemon.
pub trait Cluster: Send + Sync + 'static {
    /// Applies objects, all or none.
    fn apply(
        &self,
        objects: Vec<Bytes>,
        dry_run: bool,
        manager: &str,
    ) -> impl Future<Output = Result<Vec<Outcome>, Refused>> + Send;

    /// Asks for the deletion of an object if it is `still` so, which is decided on its JSON in the transaction that
    /// deletes it; whether it was. That it is gone already is no error.
    fn delete(
        &self,
        item: &Item,
        still: &(dyn Fn(&[u8]) -> bool + Sync),
    ) -> impl Future<Output = Result<bool, Refused>> + Send;

    /// Notes down an event of a Source.
    fn record(&self, source: &Metadata, note: Note) -> impl Future<Output = ()> + Send;

    /// The wall clock.
    fn now(&self) -> Timestamp;
}

/// What applying an object came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The object before; nothing when it was created.
    pub before: Option<Bytes>,
    /// The object as it is now.
    pub after: Bytes,
    /// Whether anything was written.
    pub changed: bool,
}

/// Why the API did not do what a Source asked for. Nothing was changed.
#[derive(Clone, Debug, Default)]
pub struct Refused {
    /// For people.
    pub message: String,
    /// What is wrong with which object of the request, from 0: field and message.
    pub causes: Vec<(usize, String, String)>,
}

/// What a sync of a Source would do.
#[derive(Debug)]
pub struct Preview {
    /// To be applied, in this order.
    pub objects: Vec<Rendered>,
    /// To be deleted, in this order.
    pub delete: Vec<Item>,
    /// Why it would not be done.
    pub refused: Option<Broken>,
}

/// Why there is no preview.
#[derive(Debug, thiserror::Error)]
pub enum PreviewFailed {
    /// There is no such Source.
    #[error("sources.ostler.dev {0:?} not found")]
    NotFound(String),
    /// The directory holds nothing that could be applied.
    #[error("{}", .0.message)]
    Broken(Broken),
}

/// All Sources.
pub struct Sources<C> {
    shared: Arc<Shared<C>>,
}

impl<C> Clone for Sources<C> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

/// What the tasks have in common.
pub(crate) struct Shared<C> {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) cluster: C,
    /// Held while it is decided whose an object is, until that is on disk.
    pub(crate) claims: tokio::sync::Mutex<()>,
    running: Mutex<HashMap<String, Running>>,
}

struct Running {
    tracker: Arc<Tracker>,
    task: AbortHandle,
    uid: String,
    /// Changes when somebody other than its own task changed the Source.
    asked: (u64, Option<String>),
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<C: Cluster> Sources<C> {
    /// Keeps every Source there is and will be applied, until the runtime ends.
    pub fn start(store: Arc<dyn Store>, cluster: C) -> Self {
        let shared =
            Arc::new(Shared { store, cluster, claims: tokio::sync::Mutex::default(), running: Mutex::default() });
        for kind in Kind::ALL.into_iter().filter(|kind| kind.is_applicable()) {
            tokio::spawn(follow(Arc::clone(&shared), kind));
        }
        Self { shared }
    }

    /// The hash of what the directory of a Source holds now.
    ///
    /// # Errors
    /// There is no such Source, or its directory cannot be read.
    pub async fn revision(&self, name: &str) -> Result<String, PreviewFailed> {
        let source = read_source(&*self.shared.store, name).ok_or_else(|| PreviewFailed::NotFound(name.to_owned()))?;
        let content = read_content(PathBuf::from(&source.spec.path)).await.map_err(PreviewFailed::Broken)?;
        Ok(content.revision.hash)
    }

    /// What a sync would do now.
    pub async fn preview(&self, name: &str) -> Result<Preview, PreviewFailed> {
        let store = &*self.shared.store;
        let source = read_source(store, name).ok_or_else(|| PreviewFailed::NotFound(name.to_owned()))?;
        let root = PathBuf::from(&source.spec.path);
        let content = read_content(root).await.map_err(PreviewFailed::Broken)?;
        let (own, namespace) = (name.to_owned(), source.spec.namespace().to_owned());
        let rendered = tokio::task::spawn_blocking(move || content.render(&own, &namespace)).await;
        let objects = rendered
            .unwrap_or_else(|_| Err(Broken::new("Invalid", "reading the manifests failed")))
            .map_err(PreviewFailed::Broken)?;
        let brought = inventory::read(store, name, &source.metadata.uid);
        let wanted: HashSet<&Item> = objects.iter().map(|object| &object.item).collect();
        let policy = |allowed| Policy { prune: source.spec.prune, limit: source.spec.max_deletions, allowed };
        let run = |allowed| {
            plan::prune(
                &brought,
                |item| wanted.contains(item),
                policy(allowed),
                |item| is_ours(store, name, item),
                |namespace| inhabitants(store, namespace),
            )
            .map_err(|why| Broken::too_many(&why, source.spec.max_deletions))
        };
        let refused = run(source.spec.allow_prune).err();
        let delete = run(true).map(|plan| plan.delete).unwrap_or_default();
        Ok(Preview { objects, delete, refused })
    }
}

/// A Source as it is in the store.
pub(crate) fn read_source(store: &dyn Store, name: &str) -> Option<Source> {
    serde_json::from_slice(&store.get(&key(Kind::Source, "", name).into())?.value).ok()
}

/// Whether an object is there and says that the Source brought it.
pub(crate) fn is_ours(store: &dyn Store, source: &str, item: &Item) -> bool {
    store.get(&item.key()).is_some_and(|entry| says_ours(source, item, &entry.value))
}

/// Whether an object, by its JSON, says that the Source brought it, and is not being deleted.
pub(crate) fn says_ours(source: &str, item: &Item, json: &[u8]) -> bool {
    let seen = crate::status::Seen::of(item.kind, json);
    seen.owner.as_deref() == Some(source) && !seen.deleting
}

/// What users have put into a namespace.
pub fn inhabitants(store: &dyn Store, namespace: &str) -> Vec<Item> {
    let kinds = Kind::ALL.into_iter().filter(|kind| kind.is_namespaced() && kind.is_applicable());
    kinds
        .flat_map(|kind| store.list(&format!("{}/{namespace}/", kind.plural())).entries)
        .filter_map(|entry| Item::parse(entry.key.as_str()))
        .collect()
}

/// Tells the tasks what happens to the objects of a kind.
async fn follow<C: Cluster>(shared: Arc<Shared<C>>, kind: Kind) {
    let prefix = format!("{}/", kind.plural());
    loop {
        let snapshot = shared.store.list(&prefix);
        if kind == Kind::Source {
            let names: Vec<&str> = snapshot.entries.iter().map(|entry| entry.key.name()).collect();
            lock(&shared.running).retain(|name, _| names.contains(&name.as_str()));
            for entry in &snapshot.entries {
                see_source(&shared, entry.key.name(), &entry.value);
            }
        } else {
            // Nobody knows what was missed.
            for running in lock(&shared.running).values() {
                running.tracker.refresh(&*shared.store);
            }
        }
        let mut watch = match shared.store.watch(&prefix, snapshot.revision) {
            Ok(watch) => watch,
            Err(why) => {
                debug!(%kind, %why, "listing again");
                tokio::task::yield_now().await;
                continue;
            }
        };
        loop {
            let events = match watch.next().await {
                Ok(events) => events,
                Err(WatchEnded::Compacted(_)) => break,
                Err(WatchEnded::Closed) => return,
            };
            for event in events {
                let Some(item) = Item::parse(event.key.as_str()) else { continue };
                let value = event.kind.value();
                for running in lock(&shared.running).values() {
                    running.tracker.see(&item, value.map(|value| &**value));
                }
                if kind == Kind::Source {
                    match value {
                        Some(value) => see_source(&shared, &item.name, value),
                        None => drop(lock(&shared.running).remove(&item.name)),
                    }
                    for (name, running) in lock(&shared.running).iter() {
                        if *name != item.name {
                            running.tracker.others_changed(&item.name);
                        }
                    }
                }
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts the task of a Source, or tells it that somebody changed the Source.
fn see_source<C: Cluster>(shared: &Arc<Shared<C>>, name: &str, json: &[u8]) {
    let source: Source = match serde_json::from_slice(json) {
        Ok(source) => source,
        Err(why) => {
            warn!(source = name, %why, "a Source that cannot be read is left alone");
            return;
        }
    };
    let request = source.metadata.annotations.get(ostler_core::kinds::SYNC_REQUESTED_AT).cloned();
    let asked = (source.metadata.generation, request);
    let mut running = lock(&shared.running);
    let uid = &source.metadata.uid;
    // Another one of the same name, or one whose task has found it gone and ended, begins anew.
    if let Some(known) = running.get_mut(name).filter(|known| known.uid == *uid && !known.task.is_finished()) {
        if known.asked != asked {
            known.asked = asked;
            known.tracker.source_changed();
        }
        return;
    }
    if !is_directory(std::path::Path::new(&source.spec.path)) {
        warn!(source = name, path = source.spec.path, "there is no such directory (yet)");
    }
    let tracker = Arc::new(Tracker::default());
    let syncer = Syncer::new(name.to_owned(), uid.clone(), Arc::clone(shared), Arc::clone(&tracker));
    let task = tokio::spawn(syncer.run()).abort_handle();
    running.insert(name.to_owned(), Running { tracker, task, uid: uid.clone(), asked });
}
