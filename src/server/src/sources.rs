//! Sources: what they need of the API, and what the API does with them.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use ostler_core::forecast::Forecast;
use ostler_core::kinds::{ALLOW_PRUNE, SYNC_REQUESTED_AT, Source, SourceSpec, SourceStatus, WATCHED};
use ostler_core::object::key;
use ostler_core::plan::Note;
use ostler_core::{Kind, Metadata, Span, Timestamp, validate};
use ostler_gitops::{Cluster, Item, Outcome, PreviewFailed, Refused, Sources};
use ostler_store::{Expect, Op, Revision};

use crate::apply::{self, Applied, How};
use crate::error::{ApiError, Cause, Reason};
use crate::mutate::{put, read};
use crate::ownership;
use crate::select::Selection;
use crate::service::{Service, now};

/// The API as Sources use it.
pub(crate) struct Gate(Service);

impl Cluster for Gate {
    async fn apply(&self, objects: Vec<Bytes>, dry_run: bool, manager: &str) -> Result<Vec<Outcome>, Refused> {
        // What the directory says overrules what was set by hand: who wants otherwise says so in the Source.
        let how = How { manager, force: true, dry_run, set: None };
        let (decided, _) = self.0.apply(&objects, how).await.map_err(refused)?;
        let outcome = |applied: Applied| Outcome {
            changed: applied.outcome != apply::Outcome::Unchanged,
            before: applied.before.map(|entry| entry.value),
            after: applied.after,
        };
        Ok(decided.objects.into_iter().map(outcome).collect())
    }

    async fn delete(&self, item: &Item, still: &(dyn Fn(&[u8]) -> bool + Sync)) -> Result<bool, Refused> {
        let mut selection = Selection::all(item.kind, &item.namespace);
        selection.names.push(item.name.clone());
        match self.0.delete_if(&selection, false, false, None, still).await {
            Ok((deleted, _)) => Ok(!deleted.is_empty()),
            Err(error) if error.reason == Reason::NotFound => Ok(false),
            Err(error) => Err(refused(error)),
        }
    }

    async fn record(&self, source: &Metadata, note: Note) {
        // Only a daemon that is ending takes no more events.
        let _ = self.0.controller.record(Kind::Source, source.clone(), note).await;
    }

    fn now(&self) -> Timestamp {
        now()
    }
}

fn refused(error: ApiError) -> Refused {
    let causes = error.causes.into_iter().map(|cause| (cause.object, cause.field, cause.message)).collect();
    Refused { message: error.message, causes }
}

/// What a sync of a Source would do.
pub(crate) struct Preview {
    pub(crate) results: Vec<Applied>,
    pub(crate) revision: Revision,
    pub(crate) deletes: Vec<Item>,
    pub(crate) refused: String,
    /// What happens to instances; nothing when there are waves, each of which waits for the one before.
    pub(crate) forecast: Option<Forecast>,
}

impl Service {
    /// Keeps Sources applied from now on, and makes one for each of these directories.
    ///
    /// # Errors
    /// Two directories that would have the same name, a Source of that name for another directory, or a store that
    /// takes no writes. Nothing was started.
    pub async fn start_sources(&self, watched: &[PathBuf]) -> Result<(), ApiError> {
        let mut names: Vec<(String, &Path)> = Vec::new();
        for path in watched {
            let name = name_of(path)?;
            match names.iter().find(|(known, _)| *known == name) {
                Some((_, other)) if *other == path => {}
                Some((_, other)) => {
                    return Err(ApiError::new(
                        Reason::Conflict,
                        format!(
                            "--watch {} and --watch {} would both be source/{name}",
                            other.display(),
                            path.display()
                        ),
                    )
                    .hint("apply an object of kind Source for one of them"));
                }
                None => names.push((name, path)),
            }
        }
        for (name, path) in names {
            self.watch_directory(&name, path).await?;
        }
        if self.sources.set(Sources::start(std::sync::Arc::clone(&self.store), Gate(self.clone()))).is_err() {
            return Err(ApiError::new(Reason::InternalError, "Sources are kept already"));
        }
        Ok(())
    }

    async fn watch_directory(&self, name: &str, path: &Path) -> Result<(), ApiError> {
        let path = path.display().to_string();
        self.transact(|| {
            let store_key = key(Kind::Source, "", name).into();
            let Some(entry) = self.store.get(&store_key) else {
                let mut source = Source {
                    api_version: Kind::Source.api_version().to_owned(),
                    kind: Kind::Source.name().to_owned(),
                    metadata: Metadata {
                        name: name.to_owned(),
                        uid: uuid::Uuid::new_v4().to_string(),
                        generation: 1,
                        creation_timestamp: Some(now()),
                        annotations: [(WATCHED.to_owned(), "true".to_owned())].into(),
                        ..Metadata::default()
                    },
                    spec: SourceSpec::new(path.clone()),
                    status: SourceStatus::default(),
                };
                let after = serde_json::json!({"spec": {"path": path}});
                ownership::note_update(&mut source.metadata, "ostler serve", &serde_json::Value::Null, &after);
                check(&source)?;
                let value =
                    serde_json::to_vec(&source).map_err(|why| ApiError::new(Reason::InternalError, why.to_string()))?;
                return Ok((vec![Op::put(store_key, value, Expect::Absent)], ()));
            };
            let mut source: Source = read(&entry)?;
            if source.spec.path == path {
                return Ok((Vec::new(), ()));
            }
            if !source.metadata.annotations.contains_key(WATCHED) {
                return Err(ApiError::new(
                    Reason::Conflict,
                    format!("source/{name} is for {}, not for {path}, which --watch asks for", source.spec.path),
                )
                .hint("apply an object of kind Source with another name, instead of --watch"));
            }
            let before = serde_json::json!({"spec": {"path": source.spec.path}});
            let after = serde_json::json!({"spec": {"path": path}});
            ownership::note_update(&mut source.metadata, "ostler serve", &before, &after);
            source.spec.path.clone_from(&path);
            source.metadata.generation += 1;
            check(&source)?;
            Ok((vec![put(&entry, &source)?], ()))
        })
        .await
        .map(drop)
    }

    /// Asks Sources to look at their directories and apply what is there: these, or all that are not suspended. Returns
    /// when the request is on disk, with the names and the time that tells it from others.
    pub(crate) async fn sync(&self, names: &[String], allow_prune: bool) -> Result<(Vec<String>, Timestamp), ApiError> {
        let mut selection = Selection::all(Kind::Source, "");
        selection.names = names.to_vec();
        // What is allowed is allowed to what is in the directories now, whatever is when they are looked at.
        let mut allowed = HashMap::new();
        if allow_prune {
            for entry in &self.list(&selection)?.0 {
                let source: Source = read(entry)?;
                if !source.spec.suspend {
                    let revision =
                        self.sources()?.revision(&source.metadata.name).await.map_err(|why| preview_failed(&why))?;
                    allowed.insert(source.metadata.uid, revision);
                }
            }
        }
        let ((asked, at), _) = self
            .transact(|| {
                let (mut ops, mut asked) = (Vec::new(), Vec::new());
                let entries = self.list(&selection)?.0;
                let sources = entries.iter().map(read::<Source>).collect::<Result<Vec<_>, _>>()?;
                // Later than any other, wherever the clock was set meanwhile: a request that seems old is taken for one
                // that was carried out.
                let at = sources.iter().filter_map(last_request).fold(now(), |at, last| at.max(last + MICROSECOND));
                for (entry, mut source) in entries.iter().zip(sources) {
                    let name = source.metadata.name.clone();
                    if source.spec.suspend {
                        if names.is_empty() {
                            continue;
                        }
                        return Err(ApiError::new(Reason::Conflict, format!("source {name:?} is suspended"))
                            .hint("apply it with spec.suspend: false first"));
                    }
                    let value = match allowed.get(&source.metadata.uid) {
                        Some(revision) => format!("{at} {ALLOW_PRUNE} {revision}"),
                        None => at.to_string(),
                    };
                    source.metadata.annotations.insert(SYNC_REQUESTED_AT.to_owned(), value);
                    ops.push(put(entry, &source)?);
                    asked.push(name);
                }
                Ok((ops, (asked, at)))
            })
            .await?;
        Ok((asked, at))
    }

    fn sources(&self) -> Result<&Sources<Gate>, ApiError> {
        self.sources
            .get()
            .ok_or_else(|| ApiError::new(Reason::ServiceUnavailable, "the daemon is starting").hint("try again"))
    }

    /// What a sync would do now.
    pub(crate) async fn preview_source(&self, name: &str) -> Result<Preview, ApiError> {
        let preview = self.sources()?.preview(name).await.map_err(|why| preview_failed(&why))?;
        let objects: Vec<Bytes> = preview.objects.iter().map(|object| object.json.clone()).collect();
        let manager = format!("source/{name}");
        let how = How { manager: &manager, force: true, dry_run: true, set: None };
        let (decided, revision) = self.apply(&objects, how).await.map_err(|mut error| {
            let place = |cause: &Cause| {
                preview.objects.get(cause.object).map_or_else(
                    || cause.message.clone(),
                    |object| format!("{}: {}: {}", object.place(&cause.field), object.item, cause.message),
                )
            };
            if !error.causes.is_empty() {
                error.message = error.causes.iter().map(place).collect::<Vec<_>>().join("\n");
                error.causes.clear();
            }
            error
        })?;
        let waves: BTreeSet<i64> = preview.objects.iter().map(|object| object.wave).collect();
        let forecast = (waves.len() < 2).then(|| self.forecast(&decided.objects, &preview.delete));
        let refused = preview.refused.map(|broken| broken.message).unwrap_or_default();
        Ok(Preview { results: decided.objects, revision, deletes: preview.delete, refused, forecast })
    }
}

fn preview_failed(why: &PreviewFailed) -> ApiError {
    match why {
        PreviewFailed::NotFound(name) => ApiError::not_found(Kind::Source, name),
        PreviewFailed::Broken(_) => ApiError::new(Reason::Invalid, why.to_string()),
    }
}

/// The smallest step of a [`Timestamp`].
const MICROSECOND: Span = Span::from_micros(1);

/// When a sync was last asked for, or carried out.
fn last_request(source: &Source) -> Option<Timestamp> {
    let annotation = source.metadata.annotations.get(SYNC_REQUESTED_AT);
    let asked = annotation.and_then(|text| text.split(' ').next()?.parse().ok());
    asked.max(source.status.last_handled_sync)
}

fn check(source: &Source) -> Result<(), ApiError> {
    match validate::source(source).first() {
        None => Ok(()),
        Some(error) => Err(ApiError::new(Reason::Invalid, format!("{}: {}", error.field, error.message))),
    }
}

/// The name of the Source for a directory: its last part as a DNS label.
fn name_of(path: &Path) -> Result<String, ApiError> {
    let last = path.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    let name: String = last.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(63).collect();
    let name = name.trim_matches('-').to_owned();
    if name.is_empty() {
        return Err(ApiError::bad(format!("no name for a Source can be made of {}", path.display()))
            .hint("apply an object of kind Source instead of using --watch"));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_request_counts_wherever_it_is_noted() {
        let mut source = Source {
            api_version: String::new(),
            kind: String::new(),
            metadata: Metadata::default(),
            spec: SourceSpec::new("/srv/apps"),
            status: SourceStatus::default(),
        };
        assert_eq!(last_request(&source), None);
        let (early, late) = (Timestamp::from_micros(1_000_001), Timestamp::from_micros(2_000_002));
        source.status.last_handled_sync = Some(late);
        assert_eq!(last_request(&source), Some(late));
        let mut ask = |at: Timestamp| {
            let text = format!("{at} {ALLOW_PRUNE} abc");
            source.metadata.annotations.insert(SYNC_REQUESTED_AT.to_owned(), text);
            last_request(&source)
        };
        assert_eq!(ask(early), Some(late));
        assert_eq!(ask(late + MICROSECOND), Some(late + MICROSECOND));
    }

    #[test]
    fn a_directory_gives_its_name_to_its_source() {
        for (path, name) in [("/srv/apps", "apps"), ("/srv/My Apps_2", "my-apps-2"), ("/srv/.config", "config")] {
            assert_eq!(name_of(Path::new(path)).unwrap(), name);
        }
        assert!(name_of(Path::new("/")).is_err());
        assert!(name_of(Path::new("/srv/...")).is_err());
    }
}
