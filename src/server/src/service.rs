//! What the API can do, whatever it travels over: reading, and the parts that all writes share.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ostler_core::kinds::{Namespace, NamespaceSpec, NamespaceStatus, TRACEPARENT};
use ostler_core::object::key;
use ostler_core::{Kind, Metadata, Timestamp};
use ostler_engine::Handle;
use ostler_gitops::Sources;
use ostler_store::{Durability, Entry, Expect, Key, Op, Revision, Store, Watch};

use tracing::Instrument as _;

use crate::error::{ApiError, Reason};
use crate::select::Selection;
use crate::sources::Gate;

/// What the API tells of the daemon itself.
#[derive(Clone, Debug)]
pub struct Daemon {
    /// Version of the program.
    pub version: String,
    /// The state directory.
    pub state_dir: PathBuf,
    /// The program, for upgrades without a path.
    pub program: PathBuf,
    /// When this controller began, Unix time in nanoseconds.
    pub started_at: i64,
    /// Its configuration.
    pub config: Arc<ostler_config::Live>,
}

/// The API.
#[derive(Clone)]
pub struct Service {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) controller: Handle,
    pub(crate) daemon: Arc<Daemon>,
    /// Set once, before anything is served.
    pub(crate) sources: Arc<std::sync::OnceLock<Sources<Gate>>>,
}

/// How long a write is tried again when somebody else wrote the same object in between. Each try means that another
/// writer succeeded. A number of tries would be no measure: on a busy machine the status of a process can change dozens
/// of times while one change of its spec is on its way to the disk.
const PATIENCE: Duration = Duration::from_secs(20);

impl Service {
    /// Puts the API over a store and a controller. Makes the namespace `default` if there is none.
    pub async fn new(store: Arc<dyn Store>, controller: Handle, daemon: Daemon) -> Result<Self, ostler_store::Error> {
        let service = Self { store, controller, daemon: Arc::new(daemon), sources: Arc::default() };
        let key: Key = key(Kind::Namespace, "", "default").into();
        if service.store.get(&key).is_none() {
            let namespace = Namespace {
                api_version: Kind::Namespace.api_version().to_owned(),
                kind: Kind::Namespace.name().to_owned(),
                metadata: Metadata {
                    name: "default".to_owned(),
                    uid: uuid::Uuid::new_v4().to_string(),
                    creation_timestamp: Some(now()),
                    generation: 1,
                    ..Metadata::default()
                },
                spec: NamespaceSpec::default(),
                status: NamespaceStatus::default(),
            };
            let value = serde_json::to_vec(&namespace).unwrap_or_default();
            match service.store.commit(vec![Op::put(key, value, Expect::Absent)], Durability::Crash).await {
                Ok(_) | Err(ostler_store::Error::Conflict { .. } | ostler_store::Error::ReadOnly { .. }) => {}
                Err(why) => return Err(why),
            }
        }
        Ok(service)
    }

    /// One object.
    pub fn get(&self, kind: Kind, namespace: &str, name: &str) -> Result<Entry, ApiError> {
        self.store.get(&key(kind, namespace, name).into()).ok_or_else(|| ApiError::not_found(kind, name))
    }

    /// Every object that a selection matches, and the revision they are the state of. A name that was asked for and
    /// does not exist is an error.
    pub fn list(&self, selection: &Selection) -> Result<(Vec<Entry>, Revision), ApiError> {
        let snapshot = self.store.list(&selection.prefix());
        let entries: Vec<Entry> =
            snapshot.entries.into_iter().filter(|entry| selection.matches(&entry.key, &entry.value)).collect();
        for name in &selection.names {
            if !entries.iter().any(|entry| entry.key.name() == name) {
                return Err(ApiError::not_found(selection.kind, name));
            }
        }
        Ok((entries, snapshot.revision))
    }

    /// Everything that happens to what a selection may match, after a revision.
    pub(crate) fn watch(&self, selection: &Selection, from: Revision) -> Result<Watch, ApiError> {
        self.store.watch(&selection.prefix(), from).map_err(|why| ApiError::new(Reason::Expired, why.to_string()))
    }

    /// Decides on a state of the store and commits; decides anew when the state has changed in between. `decide`
    /// returns no operations when there is nothing to change.
    pub(crate) async fn transact<T>(
        &self,
        mut decide: impl FnMut() -> Result<(Vec<Op>, T), ApiError>,
    ) -> Result<(T, Revision), ApiError> {
        let began = Instant::now();
        loop {
            let (ops, result) = decide()?;
            if ops.is_empty() {
                return Ok((result, self.store.revision()));
            }
            let span = tracing::info_span!(
                target: ostler_telemetry::TARGET, "store.commit", operations = ops.len(), revision = tracing::field::Empty,
            );
            let outcome = self.store.commit(ops, Durability::Durable).instrument(span.clone()).await;
            if let Ok(revision) = &outcome {
                span.record("revision", revision);
            }
            drop(span);
            match outcome {
                Ok(revision) => return Ok((result, revision)),
                Err(ostler_store::Error::Conflict { .. }) if began.elapsed() < PATIENCE => {}
                Err(why) => return Err(why.into()),
            }
        }
    }
}

/// Notes in an object which trace its change belongs to: that of the request which is being answered. What the
/// controller does because of it joins that trace.
pub(crate) fn join_trace(metadata: &mut Metadata) {
    match ostler_telemetry::traceparent(&tracing::Span::current()) {
        Some(context) => drop(metadata.annotations.insert(TRACEPARENT.to_owned(), context)),
        None => drop(metadata.annotations.remove(TRACEPARENT)),
    }
}

/// The wall clock.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}
