//! The task of one Source: looks at its directory, applies what is there, and says how that went.
//!
//! Level-triggered: whatever woke it, it compares the directory, the Source and what was last applied, and does what is
//! missing. Killed anywhere, the next one goes on: what is applied again is not written again.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ostler_core::Kind;
use ostler_core::Timestamp;
use ostler_core::kinds::{
    ALLOW_PRUNE, Condition, EventType, HealthState, SYNC_REQUESTED_AT, Source, SourceRevision, SourceStatus, SyncState,
    Truth, set_condition,
};
use ostler_core::object::key;
use ostler_core::plan::Note;
use ostler_store::{Durability, Expect, Key, Op};
use tracing::{debug, warn};

use crate::directory::{Broken, Content, Directory, Look, Rendered, join};
use crate::inventory::{self, Item};
use crate::plan::{self, Policy, Prune};
use crate::sources::{Cluster, Outcome, Refused, Shared, inhabitants, is_ours, read_source, says_ours};
use crate::status::{Seen, differences};
use crate::tracker::{News, Tracker};

/// While somebody else is at work: when to look again.
const SOON: Duration = Duration::from_millis(200);
/// Changes of health of many objects share a look.
const COALESCE: Duration = Duration::from_millis(100);
/// What waits for other objects is tried again so often, whether or not anything was heard of them.
const RETRY: Duration = Duration::from_secs(2);
/// Where the kernel does not tell of every change.
const POLL: Duration = Duration::from_secs(5);
/// Objects named in `status.drift`.
const DRIFT: usize = 20;
/// A directory that somebody copies into for a while lacks what is still on its way: nothing is deleted before it has
/// held the same for so long.
const SETTLED: Duration = Duration::from_secs(3);

pub(crate) struct Syncer<C> {
    name: String,
    uid: String,
    shared: Arc<Shared<C>>,
    tracker: Arc<Tracker>,
    directory: Option<Directory>,
    /// Revision and generation that were dealt with: there is nothing to do until something else happens.
    done: Option<(String, u64)>,
    /// When what was refused is tried again: it may be because of something outside of the directory.
    retry: Option<Instant>,
    /// A wave was not ready in time: it may still become so.
    stalled: bool,
    /// What was last reported as wrong.
    reported: Option<Broken>,
}

/// A revision that was applied as a whole.
struct Synced {
    changed: Changes,
    kept: Vec<Item>,
}

#[derive(Debug, Default)]
struct Changes {
    created: usize,
    configured: Vec<(Item, Vec<String>)>,
    deleted: usize,
}

impl Changes {
    fn is_empty(&self) -> bool {
        self.created == 0 && self.configured.is_empty() && self.deleted == 0
    }
}

/// Why a revision was not applied as a whole.
enum Failed {
    /// It is wrong, or not allowed: until the directory or the cluster changes.
    Broken(Broken),
    /// Something has to happen first, of which nobody is told but the status.
    Later(Broken),
    /// There is something newer.
    Superseded,
    /// Only drift, which is not to be healed.
    Drifted(Vec<String>),
    /// What was to be applied is; what is to be deleted, so many objects, is when the directory has not changed for a
    /// while.
    Settling(usize, Changes),
}

/// A sync that somebody asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Request {
    at: Timestamp,
    /// The revision that may delete as much as it likes.
    allowed: Option<String>,
}

/// Reads a directory once, settled.
pub(crate) async fn read_content(root: PathBuf) -> Result<Content, Broken> {
    let mut directory = Directory::new(root, Arc::default());
    let look = tokio::task::spawn_blocking(move || directory.look()).await;
    match look {
        Ok(Look::Content(content)) => Ok(content),
        Ok(Look::Unreadable(error)) => Err(Broken::new("Unreadable", error.to_string())),
        Ok(Look::Busy(why)) => Err(Broken::new("Busy", why)),
        Ok(Look::Same(_)) | Err(_) => Err(Broken::new("Unreadable", "reading the directory failed")),
    }
}

impl<C: Cluster> Syncer<C> {
    pub(crate) fn new(name: String, uid: String, shared: Arc<Shared<C>>, tracker: Arc<Tracker>) -> Self {
        Self { name, uid, shared, tracker, directory: None, done: None, retry: None, stalled: false, reported: None }
    }

    /// Runs until it is aborted, because the Source was deleted or the daemon ends.
    pub(crate) async fn run(mut self) {
        let brought = inventory::read(&*self.shared.store, &self.name, &self.uid);
        self.tracker.follow(&brought, &*self.shared.store);
        loop {
            let Some(pause) = self.reconcile().await else { return };
            let wake = Arc::clone(&self.tracker.wake);
            tokio::select! {
                () = wake.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Does what there is to do; how long until the next look, unless something happens. Nothing: the Source is gone.
    async fn reconcile(&mut self) -> Option<Duration> {
        let store = Arc::clone(&self.shared.store);
        let news = self.tracker.take();
        let source = match self.own(&*store) {
            Ok(source) => source?,
            Err(why) => {
                warn!(source = self.name, %why, "a Source that cannot be read is left alone");
                return Some(RETRY);
            }
        };
        let spec = &source.spec;
        let mut status = source.status.clone();
        let request = requested(&source).filter(|request| status.last_handled_sync < Some(request.at));
        let mut directory = match self.directory.take() {
            Some(directory) if directory.root() == std::path::Path::new(&spec.path) => directory,
            Some(_) | None => {
                self.done = None;
                Directory::new(PathBuf::from(&spec.path), Arc::clone(&self.tracker.wake))
            }
        };
        if spec.suspend {
            status.observed_generation = source.metadata.generation;
            if let Some(request) = request {
                status.last_handled_sync = Some(request.at);
            }
            self.set(&mut status, &source, Truth::Unknown, "Suspended", "suspended: nothing is applied or healed");
            self.done = None;
            self.directory = Some(directory);
            self.publish_with_health(&source, status).await;
            return Some(spec.interval.to_std());
        }
        if news.health && !directory.has_news() && !news.drift && !news.source {
            tokio::time::sleep(COALESCE).await;
        }
        // What cannot be seen from outside of the files: then they are read again.
        let due = self.retry.is_some_and(|at| Instant::now() >= at) || (self.stalled && news.health);
        let again = news.drift || news.source || news.others || request.is_some() || self.done.is_none() || due;
        if again {
            directory.forget();
        }
        let (directory, look) = match tokio::task::spawn_blocking(move || {
            let look = directory.look();
            (directory, look)
        })
        .await
        {
            Ok(done) => done,
            Err(why) => {
                warn!(source = self.name, %why, "looking at the directory failed");
                return Some(RETRY);
            }
        };
        let pause = if let Some(trouble) = directory.trouble() {
            debug!(source = self.name, trouble, "changes are found by looking");
            spec.interval.to_std().min(POLL)
        } else {
            spec.interval.to_std()
        };
        self.directory = Some(directory);
        // A look takes a while, and what it is for may be another thing now.
        let Ok(current) = self.own(&*store) else { return Some(RETRY) };
        let current = current?;
        if current.metadata.generation != source.metadata.generation || requested(&current) != requested(&source) {
            self.done = None;
            return Some(Duration::ZERO);
        }
        let pause = match look {
            Look::Same(revision) => {
                status.revision = Some(revision.clone());
                recommitted(&mut status, &revision);
                pause
            }
            Look::Busy(why) => {
                debug!(source = self.name, why, "waiting");
                self.keep_news(news);
                return Some(SOON);
            }
            Look::Unreadable(error) => {
                self.done = Some((String::new(), source.metadata.generation));
                status.revision = None;
                let broken = Broken::new("Unreadable", format!("{error}; nothing was changed"));
                self.failed(&source, &mut status, broken).await;
                self.drifted_unhealed(&source, &mut status).await;
                Self::handled(&mut status, &source, request.as_ref());
                pause
            }
            Look::Content(content) => {
                let revision = content.revision.clone();
                let is_done = self.done.as_ref() == Some(&(revision.hash.clone(), source.metadata.generation));
                status.revision = Some(revision.clone());
                recommitted(&mut status, &revision);
                if is_done && !again { pause } else { self.sync(&source, &mut status, content, request, pause).await? }
            }
        };
        self.publish_with_health(&source, status).await;
        Some(pause)
    }

    /// The Source that this task is for; nothing when it is gone, or another one has its name.
    fn own(&self, store: &dyn ostler_store::Store) -> Result<Option<Source>, serde_json::Error> {
        let Some(entry) = store.get(&key(Kind::Source, "", &self.name).into()) else { return Ok(None) };
        let source: Source = serde_json::from_slice(&entry.value)?;
        Ok((source.metadata.uid == self.uid).then_some(source))
    }

    /// What was not acted on is still new at the next look.
    fn keep_news(&mut self, news: News) {
        if news.drift || news.source || news.others {
            self.done = None;
        }
    }

    /// Applies a revision and notes down how that went; when to look again.
    async fn sync(
        &mut self,
        source: &Source,
        status: &mut SourceStatus,
        content: Content,
        request: Option<Request>,
        pause: Duration,
    ) -> Option<Duration> {
        let revision = content.revision.clone();
        let generation = source.metadata.generation;
        (self.retry, self.stalled) = (None, false);
        let applied_before = status.last_applied_revision.as_ref().is_some_and(|applied| applied.hash == revision.hash)
            && status.observed_generation == generation;
        let now = self.shared.cluster.now();
        let (own, namespace) = (self.name.clone(), source.spec.namespace().to_owned());
        let rendered = tokio::task::spawn_blocking(move || content.render(&own, &namespace)).await;
        let rendered = rendered.unwrap_or_else(|_| Err(Broken::new("Invalid", "reading the manifests failed")));
        let result = match rendered {
            Err(broken) => Err(Failed::Broken(broken)),
            Ok(objects) => {
                let by_request = request.as_ref().and_then(|request| request.allowed.as_ref());
                let allowed = source.spec.allow_prune || by_request == Some(&revision.hash);
                let only_look = applied_before && !source.spec.heal_drift && request.is_none();
                self.apply(source, status, &revision, &objects, allowed, only_look).await
            }
        };
        let mut pause = pause;
        match result {
            Ok(Synced { changed, kept }) => {
                self.done = Some((revision.hash.clone(), generation));
                status.drift.clear();
                let first = status.last_applied_revision.as_ref() != Some(&revision);
                if first || !changed.is_empty() {
                    status.last_attempted_revision = Some(revision.clone());
                    status.last_attempted_at = Some(now);
                    status.last_applied_revision = Some(revision.clone());
                    status.last_applied_at = Some(now);
                }
                self.tell_success(source, &revision, &changed, applied_before).await;
                let mut message = format!("{} is applied", revision.short());
                if !kept.is_empty() {
                    let names = join(kept.iter().map(ToString::to_string)).replace('\n', ", ");
                    let _ = write!(message, "; no longer in the directory, but kept: {names}");
                }
                status.observed_generation = generation;
                self.set(status, source, Truth::True, "Synced", &message);
                self.reported = None;
                Self::handled(status, source, request.as_ref());
            }
            Err(Failed::Settling(deletions, changed)) => {
                self.done = None;
                self.tell_success(source, &revision, &changed, applied_before).await;
                let message = format!(
                    "{deletions} objects are no longer in the directory, and are deleted when it has not changed for {} s",
                    SETTLED.as_secs()
                );
                self.set(status, source, Truth::False, "Settling", &message);
                let stood = self.directory.as_ref().map_or(Duration::ZERO, Directory::stood);
                pause = pause.min(SETTLED.saturating_sub(stood));
            }
            Err(Failed::Superseded) => {
                self.done = None;
                return Some(Duration::ZERO);
            }
            Err(Failed::Later(broken)) => {
                self.done = None;
                // Nobody who asked for a sync is told before it is clear how it ends, unless others have to act first.
                if broken.reason == "DependencyNotReady" || broken.reason == "DependencyCycle" {
                    Self::handled(status, source, request.as_ref());
                }
                self.set(status, source, Truth::False, broken.reason, &broken.message);
                self.reported = Some(broken);
                pause = pause.min(RETRY);
            }
            Err(Failed::Drifted(drift)) => {
                self.done = Some((revision.hash.clone(), generation));
                let message =
                    format!("changed by hand, and not healed (healDrift: false): {}", join(drift.iter().cloned()));
                if status.drift != drift {
                    self.record(source, EventType::Warning, "DriftDetected", message.clone()).await;
                }
                status.drift = drift;
                self.set(status, source, Truth::False, "Drifted", &message);
            }
            Err(Failed::Broken(broken)) => {
                self.done = Some((revision.hash.clone(), generation));
                if status.last_attempted_revision.as_ref() != Some(&revision) {
                    status.last_attempted_revision = Some(revision.clone());
                    status.last_attempted_at = Some(now);
                }
                self.stalled = broken.reason == "WaveTimeout";
                self.retry = Some(Instant::now() + pause);
                self.failed(source, status, broken).await;
                self.drifted_unhealed(source, status).await;
                Self::handled(status, source, request.as_ref());
            }
        }
        Some(pause)
    }

    /// Applies objects wave by wave, then deletes what left.
    async fn apply(
        &mut self,
        source: &Source,
        status: &SourceStatus,
        revision: &SourceRevision,
        objects: &[Rendered],
        allowed: bool,
        only_look: bool,
    ) -> Result<Synced, Failed> {
        let store = Arc::clone(&self.shared.store);
        self.check_dependencies(source)?;
        let wanted: HashSet<&Item> = objects.iter().map(|object| &object.item).collect();
        let waves: BTreeSet<i64> = objects.iter().map(|object| object.wave).collect();
        let shared = Arc::clone(&self.shared);
        let claims = shared.claims.lock().await;
        let brought = inventory::read(&*store, &self.name, &self.uid);
        self.check_owners(objects)?;
        let own = self.name.clone();
        let plan = |allowed: bool| {
            let policy = Policy { prune: source.spec.prune, limit: source.spec.max_deletions, allowed };
            plan::prune(
                &brought,
                |item| wanted.contains(item),
                policy,
                |item| is_ours(&*store, &own, item),
                |namespace| inhabitants(&*store, namespace),
            )
            .map_err(|why| Failed::Broken(Broken::too_many(&why, source.spec.max_deletions)))
        };
        // Git holds its lock as long as it is at a new commit.
        let applied = status.last_applied_revision.as_ref().map_or("", |applied| applied.commit.as_str());
        let by_git = !revision.commit.is_empty() && revision.commit != applied;
        let settled = by_git || self.directory.as_ref().is_some_and(|directory| directory.stood() >= SETTLED);
        // What seems to be gone may be on its way, and then is not too much.
        let prune = plan(allowed || !settled)?;
        if !settled && plan(allowed).is_err() {
            return Err(Failed::Settling(prune.delete.len(), Changes::default()));
        }
        let deleting = |object: &&Rendered| {
            store.get(&object.item.key()).is_some_and(|entry| Seen::of(object.item.kind, &entry.value).deleting)
        };
        if let Some(object) = objects.iter().find(deleting) {
            let message = format!("{} is being deleted; it is made again when it is gone", object.item);
            return Err(Failed::Later(Broken::new("Deleting", message)));
        }
        if only_look || waves.len() > 1 {
            let outcomes = self.send(objects, true).await?;
            if only_look {
                drop(claims);
                return only_drift(objects, &outcomes, &prune);
            }
        }
        // On the list before it exists, so that nothing is ever forgotten.
        let mut list = brought.clone();
        let known: HashSet<&Item> = brought.iter().collect();
        list.extend(objects.iter().map(|object| &object.item).filter(|item| !known.contains(item)).cloned());
        self.write_inventory(&list).await?;
        self.tracker.follow(&list, &*store);
        let mut changes = Changes::default();
        let mut claims = Some(claims);
        for (index, wave) in waves.iter().enumerate() {
            let members: Vec<&Rendered> = objects.iter().filter(|object| object.wave == *wave).collect();
            let outcomes = match self.send_refs(&members, false).await {
                Ok(outcomes) => outcomes,
                Err(failed) => {
                    if index == 0 {
                        // Nothing of it exists: nothing of it is claimed.
                        self.write_inventory(&brought).await?;
                        self.tracker.follow(&brought, &*store);
                    }
                    return Err(failed);
                }
            };
            claims.take();
            self.note_changes(&members, &outcomes, &mut changes);
            if index + 1 < waves.len() {
                self.wait_for_wave(source, status, revision, *wave, &members).await?;
            }
        }
        if !prune.delete.is_empty() && !settled {
            return Err(Failed::Settling(prune.delete.len(), changes));
        }
        // The waves may have taken long: what somebody has taken over, or put into a namespace, meanwhile stays.
        let prune = plan(allowed)?;
        let going: HashSet<&Item> = prune.delete.iter().collect();
        for item in &prune.delete {
            let still = |json: &[u8]| {
                says_ours(&self.name, item, json)
                    && (item.kind != Kind::Namespace
                        || inhabitants(&*store, &item.name).iter().all(|inside| going.contains(inside)))
            };
            match self.shared.cluster.delete(item, &still).await {
                Ok(deleted) => changes.deleted += usize::from(deleted),
                Err(refused) => {
                    let message = format!("cannot delete {item}: {}", refused.message);
                    return Err(Failed::Later(Broken::new("DeletionFailed", message)));
                }
            }
        }
        // In the order of the revision, so that it is taken back in reverse; what is kept came before.
        let mut list: Vec<Item> = prune.keep.iter().rev().cloned().collect();
        list.extend(objects.iter().map(|object| object.item.clone()));
        self.write_inventory(&list).await?;
        self.tracker.follow(&list, &*store);
        Ok(Synced { changed: changes, kept: prune.keep })
    }

    fn note_changes(&self, members: &[&Rendered], outcomes: &[Outcome], changes: &mut Changes) {
        let seen = members
            .iter()
            .zip(outcomes)
            .map(|(object, outcome)| (object.item.clone(), Seen::of(object.item.kind, &outcome.after)));
        self.tracker.made(seen);
        for (object, outcome) in members.iter().zip(outcomes).filter(|(_, outcome)| outcome.changed) {
            match &outcome.before {
                None => changes.created += 1,
                Some(before) => {
                    changes.configured.push((object.item.clone(), differences(before, &outcome.after)));
                }
            }
        }
    }

    async fn send(&self, objects: &[Rendered], dry_run: bool) -> Result<Vec<Outcome>, Failed> {
        self.send_refs(&objects.iter().collect::<Vec<_>>(), dry_run).await
    }

    async fn send_refs(&self, objects: &[&Rendered], dry_run: bool) -> Result<Vec<Outcome>, Failed> {
        let json: Vec<Bytes> = objects.iter().map(|object| object.json.clone()).collect();
        let manager = format!("source/{}", self.name);
        if !dry_run {
            self.tracker.applying();
        }
        let result = self.shared.cluster.apply(json, dry_run, &manager).await;
        if result.is_err() {
            self.tracker.made(std::iter::empty());
        }
        match result {
            Ok(outcomes) => Ok(outcomes),
            Err(Refused { message, causes }) if causes.is_empty() => {
                Err(Failed::Later(Broken::new("Refused", message)))
            }
            Err(Refused { causes, .. }) => {
                let shown = causes.iter().map(|(index, field, message)| match objects.get(*index) {
                    Some(object) => format!("{}: {}: {message}", object.place(field), object.item),
                    None => message.clone(),
                });
                Err(Failed::Broken(Broken::new("Invalid", join(shown))))
            }
        }
    }

    /// Whether the Sources that this one waits for are there and well.
    fn check_dependencies(&self, source: &Source) -> Result<(), Failed> {
        let store = &*self.shared.store;
        self.tracker.wait_for(source.spec.depends_on.clone());
        let edges = |name: &str| read_source(store, name).map(|it| it.spec.depends_on).unwrap_or_default();
        if let Some(path) = plan::cycle(&self.name, edges) {
            let message = format!("Sources wait for each other: {}", path.join(" → "));
            return Err(Failed::Later(Broken::new("DependencyCycle", message)));
        }
        for other in &source.spec.depends_on {
            let why = match read_source(store, other) {
                None => "does not exist".to_owned(),
                Some(it) if it.status.observed_generation < it.metadata.generation => "is Progressing".to_owned(),
                Some(it) if it.status.sync != SyncState::Synced => format!("is {}", it.status.sync.name()),
                Some(it) if it.status.health != HealthState::Healthy => format!("is {}", it.status.health.name()),
                Some(_) => continue,
            };
            let message = format!("waiting for source/{other}, which {why}");
            return Err(Failed::Later(Broken::new("DependencyNotReady", message)));
        }
        Ok(())
    }

    /// Whether no other Source brought one of the objects first.
    fn check_owners(&self, objects: &[Rendered]) -> Result<(), Failed> {
        let store = &*self.shared.store;
        let mut owners: HashMap<Item, String> = HashMap::new();
        let sources = store.list(&format!("{}/", Kind::Source.plural())).entries;
        for entry in sources.iter().filter(|entry| entry.key.name() != self.name) {
            let Ok(other) = serde_json::from_slice::<Source>(&entry.value) else { continue };
            for item in inventory::read(store, &other.metadata.name, &other.metadata.uid) {
                owners.insert(item, other.metadata.name.clone());
            }
        }
        // What was on the list and is no longer marked belongs to nobody.
        owners.retain(|item, owner| {
            store.get(&item.key()).is_none_or(|entry| Seen::of(item.kind, &entry.value).owner.as_ref() == Some(owner))
        });
        let by_item: HashMap<&Item, &Rendered> = objects.iter().map(|object| (&object.item, object)).collect();
        let conflicts = plan::conflicts(objects.iter().map(|object| &object.item), &owners);
        if conflicts.is_empty() {
            return Ok(());
        }
        let shown = conflicts.iter().map(|(item, owner)| {
            let place = by_item.get(item).map(|object| object.place("metadata.name")).unwrap_or_default();
            format!("{place}: {item} belongs to source/{owner}, which brought it first")
        });
        Err(Failed::Broken(Broken::new("Conflict", join(shown))))
    }

    async fn write_inventory(&self, list: &[Item]) -> Result<(), Failed> {
        let store = &self.shared.store;
        let ops = inventory::write(&**store, &self.name, &self.uid, list);
        if ops.is_empty() {
            return Ok(());
        }
        let commit = store.commit(ops, Durability::Durable);
        commit.await.map(drop).map_err(|why| Failed::Later(Broken::new("Refused", why.to_string())))
    }

    /// Waits until the objects of a wave are ready.
    async fn wait_for_wave(
        &mut self,
        source: &Source,
        status: &SourceStatus,
        revision: &SourceRevision,
        wave: i64,
        members: &[&Rendered],
    ) -> Result<(), Failed> {
        let deadline = Instant::now() + source.spec.timeout.to_std();
        let mut said = false;
        loop {
            let unready = self.tracker.unready(members.iter().map(|object| &object.item));
            if unready.is_empty() {
                return Ok(());
            }
            let news = self.directory.as_ref().is_some_and(Directory::has_news);
            if news || self.tracker.is_asked() {
                return Err(Failed::Superseded);
            }
            let names = join(unready.iter().map(ToString::to_string)).replace('\n', ", ");
            if Instant::now() >= deadline {
                let message = format!(
                    "wave {wave} was not ready within {}: {names}; later waves were not applied",
                    source.spec.timeout
                );
                return Err(Failed::Broken(Broken::new("WaveTimeout", message)));
            }
            // What was late once is not announced again and again.
            let late = self.reported.as_ref().is_some_and(|broken| broken.reason == "WaveTimeout");
            if !said && !late {
                said = true;
                let mut status = status.clone();
                status.last_attempted_revision = Some(revision.clone());
                let message = format!("wave {wave} is applied, waiting for {names}");
                self.set(&mut status, source, Truth::False, "Progressing", &message);
                self.publish_with_health(source, status).await;
            }
            let wake = Arc::clone(&self.tracker.wake);
            let _ = tokio::time::timeout(Duration::from_millis(500), wake.notified()).await;
        }
    }

    /// Notes down that a revision cannot be applied; what is in force stays.
    async fn failed(&mut self, source: &Source, status: &mut SourceStatus, broken: Broken) {
        if self.reported.as_ref() != Some(&broken) {
            self.record(source, EventType::Warning, broken.reason, broken.message.clone()).await;
        }
        self.set(status, source, Truth::False, broken.reason, &broken.message);
        self.reported = Some(broken);
    }

    /// What somebody else changed is told also while there is nothing right to set it back to.
    async fn drifted_unhealed(&self, source: &Source, status: &mut SourceStatus) {
        let drift = self.tracker.drifted(DRIFT);
        // What was found before the daemon was restarted stands until a revision is applied.
        if drift.is_empty() || drift == status.drift {
            return;
        }
        let message = format!(
            "changed by hand, and not healed because the directory cannot be applied: {}",
            join(drift.iter().cloned()).replace('\n', ", ")
        );
        self.record(source, EventType::Warning, "DriftDetected", message).await;
        status.drift = drift;
    }

    fn handled(status: &mut SourceStatus, source: &Source, request: Option<&Request>) {
        status.observed_generation = source.metadata.generation;
        if let Some(request) = request {
            status.last_handled_sync = Some(request.at);
        }
    }

    async fn tell_success(&self, source: &Source, revision: &SourceRevision, changes: &Changes, healed: bool) {
        if changes.is_empty() {
            return;
        }
        let counts =
            [(changes.created, "created"), (changes.configured.len(), "configured"), (changes.deleted, "deleted")];
        let counts: Vec<String> =
            counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
        let mut message = format!("{}: {}", revision.short(), counts.join(", "));
        if healed {
            let what = changes.configured.iter().map(|(item, fields)| format!("{item} ({})", fields.join(", ")));
            let what = join(what.collect::<Vec<_>>().into_iter()).replace('\n', "; ");
            if !what.is_empty() {
                let _ = write!(message, ": {what}");
            }
        }
        let reason = if healed { "DriftHealed" } else { "Synced" };
        self.record(source, EventType::Normal, reason, message).await;
    }

    async fn record(&self, source: &Source, event_type: EventType, reason: &'static str, message: String) {
        self.shared.cluster.record(&source.metadata, Note { event_type, reason, message }).await;
    }

    fn set(&self, status: &mut SourceStatus, source: &Source, truth: Truth, reason: &str, message: &str) {
        status.sync = match truth {
            Truth::True => SyncState::Synced,
            Truth::False => SyncState::OutOfSync,
            Truth::Unknown => SyncState::Unknown,
        };
        self.condition(status, source, "Synced", truth, reason, message);
    }

    fn condition(
        &self,
        status: &mut SourceStatus,
        source: &Source,
        kind: &str,
        truth: Truth,
        reason: &str,
        message: &str,
    ) {
        let condition = Condition {
            kind: kind.to_owned(),
            status: truth,
            reason: reason.to_owned(),
            message: message.chars().take(4000).collect(),
            last_transition_time: None,
            observed_generation: Some(source.metadata.generation),
        };
        set_condition(&mut status.conditions, condition, self.shared.cluster.now());
    }

    /// Writes the status, with how the objects are, if it is not what is stored.
    async fn publish_with_health(&self, source: &Source, mut status: SourceStatus) {
        let summary = self.tracker.summary();
        status.health = summary.state();
        let named = |items: &[Item]| join(items.iter().map(ToString::to_string)).replace('\n', ", ");
        let message = match status.health {
            HealthState::Healthy => String::new(),
            HealthState::Progressing => format!("not ready yet: {}", named(&summary.progressing)),
            HealthState::Degraded => format!("failing or missing: {}", named(&summary.degraded)),
        };
        let health = status.health;
        self.condition(
            &mut status,
            source,
            "Healthy",
            (health == HealthState::Healthy).into(),
            health.name(),
            &message,
        );
        status.objects = inventory::read(&*self.shared.store, &self.name, &self.uid).len() as u32;
        let store_key: Key = key(Kind::Source, "", &self.name).into();
        loop {
            let Some(entry) = self.shared.store.get(&store_key) else { return };
            let Ok(mut object) = serde_json::from_slice::<Source>(&entry.value) else { return };
            if object.metadata.uid != source.metadata.uid || object.status == status {
                return;
            }
            object.status = status.clone();
            let Ok(value) = serde_json::to_vec(&object) else { return };
            let op = Op::put(store_key.clone(), value, Expect::Revision(entry.revision));
            match self.shared.store.commit(vec![op], Durability::Crash).await {
                Err(ostler_store::Error::Conflict { .. }) => {}
                Ok(_) => return,
                Err(why) => {
                    debug!(source = self.name, %why, "the status was not stored");
                    return;
                }
            }
        }
    }
}

/// Takes note of a commit of what was dealt with already.
fn recommitted(status: &mut SourceStatus, revision: &SourceRevision) {
    for known in [&mut status.last_attempted_revision, &mut status.last_applied_revision].into_iter().flatten() {
        if known.hash == revision.hash {
            known.clone_from(revision);
        }
    }
}

/// The sync that was asked for.
fn requested(source: &Source) -> Option<Request> {
    let mut words = source.metadata.annotations.get(SYNC_REQUESTED_AT)?.split(' ');
    let at = words.next()?.parse().ok()?;
    let allowed = words.next().filter(|word| *word == ALLOW_PRUNE).and_then(|_| words.next()).map(str::to_owned);
    Some(Request { at, allowed })
}

/// What differs from a revision that was applied before, when that is not to be healed.
fn only_drift(objects: &[Rendered], outcomes: &[Outcome], prune: &Prune) -> Result<Synced, Failed> {
    let drift: Vec<String> = objects
        .iter()
        .zip(outcomes)
        .filter(|(_, outcome)| outcome.changed)
        .take(DRIFT)
        .map(|(object, outcome)| match &outcome.before {
            None => format!("{} is missing", object.item),
            Some(before) => format!("{}: {}", object.item, differences(&outcome.after, before).join(", ")),
        })
        .collect();
    if drift.is_empty() {
        return Ok(Synced { changed: Changes::default(), kept: prune.keep.clone() });
    }
    Err(Failed::Drifted(drift))
}
