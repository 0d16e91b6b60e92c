//! The API over gRPC on a unix socket: translation only.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use ostler_core::forecast::{Event, Forecast};
use ostler_core::{Kind, Span};
use ostler_engine::Action;
use ostler_gitops::Item;
use ostler_keeper::logs::{Attempts, Filter, Stream as LogStream};
use ostler_rpc::v1;
use ostler_rpc::v1::ostler_server::{Ostler, OstlerServer};
use ostler_store::{Entry, Health, Revision};
use prost::Message as _;
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_stream::{Stream, StreamExt as _};
use tonic::metadata::{MetadataKey, MetadataValue};
use tonic::{Code, Request, Response, Status};
use tracing::{info, warn};

use crate::apply::{Applied, EffectKind, How, Outcome};
use crate::error::{ApiError, Reason};
use crate::logs::LogQuery;
use crate::patch::Patch;
use crate::rollout::RolloutAction;
use crate::secrets::Reveal;
use crate::select::{self, Selection};
use crate::service::Service;
use crate::sets::Set;
use crate::{usage, watching};

type Answer<T> = Result<Response<T>, Status>;
type Streaming<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Objects in one page of a list.
pub(crate) const PAGE: usize = 256;

/// Requests at the same time on one connection.
const CONCURRENCY: u32 = 256;

/// How often a list is made anew for a watch to begin with it.
const LISTS: usize = 8;

/// Makes the socket `path`, readable and writable by its owner only. A socket left by a dead daemon is replaced: the
/// caller holds the lock of the state directory.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt as _;
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(why) if why.kind() == io::ErrorKind::NotFound => {}
        Err(why) => return Err(why),
    }
    // The directory is 0700, so nobody can connect between these two calls.
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves until `ended` resolves, then lets requests that are under way finish for a moment.
pub async fn serve(
    service: Service,
    listener: UnixListener,
    ended: impl Future<Output = ()> + Send + 'static,
) -> Result<(), tonic::transport::Error> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<OstlerServer<Service>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(ostler_rpc::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1();
    let reflection = match reflection {
        Ok(reflection) => Some(reflection),
        Err(why) => {
            warn!(%why, "no reflection");
            None
        }
    };
    let api = OstlerServer::new(service)
        .max_decoding_message_size(ostler_rpc::MAX_MESSAGE)
        .max_encoding_message_size(ostler_rpc::MAX_MESSAGE);
    let incoming = UnixListenerStream::new(listener)
        .then(|connection| async move {
            if let Err(why) = &connection {
                // Without free descriptors the next one fails at once, too, and so on for ever.
                warn!(%why, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            connection
        })
        .filter(|connection| connection.as_ref().map_or(true, is_allowed));
    let (drain, drained) = tokio::sync::oneshot::channel::<()>();
    let server = tonic::transport::Server::builder()
        .max_concurrent_streams(Some(CONCURRENCY))
        .concurrency_limit_per_connection(CONCURRENCY as usize)
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .layer(ostler_telemetry::CallLayer)
        .add_service(health_service)
        .add_optional_service(reflection)
        .add_service(api)
        .serve_with_incoming_shutdown(incoming, async move {
            ended.await;
            let _ = drain.send(());
        });
    tokio::select! {
        result = server => result,
        // Followers and watchers never finish by themselves.
        () = async {
            let _ = drained.await;
            tokio::time::sleep(Duration::from_millis(200)).await;
        } => Ok(()),
    }
}

/// Only the user that the daemon runs as, and root, may connect, whatever became of the socket's mode.
fn is_allowed(connection: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    match connection.peer_cred() {
        Ok(peer) if peer.uid() == own || peer.uid() == 0 => true,
        Ok(peer) => {
            warn!(uid = peer.uid(), "refused a connection of another user");
            false
        }
        Err(why) => {
            warn!(%why, "refused a connection whose user is unknown");
            false
        }
    }
}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        let code = match error.reason {
            Reason::NotFound => Code::NotFound,
            Reason::Conflict => Code::Aborted,
            Reason::Invalid | Reason::BadRequest => Code::InvalidArgument,
            Reason::Forbidden => Code::PermissionDenied,
            Reason::Expired => Code::OutOfRange,
            Reason::ServiceUnavailable => Code::Unavailable,
            Reason::InternalError => Code::Internal,
        };
        // Headers are limited; the first causes are the ones to mend first.
        let causes = error.causes.iter().take(40).map(|cause| v1::Cause {
            object: cause.object as u32,
            field: cause.field.clone(),
            message: cause.message.clone(),
        });
        let details = v1::Status {
            reason: error.reason.name().to_owned(),
            causes: causes.collect(),
            hint: error.hint.clone().unwrap_or_default(),
        };
        let mut status = Self::new(code, error.message);
        if let Ok(key) = MetadataKey::from_bytes(ostler_rpc::STATUS_METADATA.as_bytes()) {
            status.metadata_mut().insert_bin(key, MetadataValue::from_bytes(&details.encode_to_vec()));
        }
        status
    }
}

fn selection(selector: Option<v1::Selector>) -> Result<Selection, ApiError> {
    Selection::parse(&selector.ok_or_else(|| ApiError::bad("a selector is needed"))?)
}

pub(crate) fn object(value: &Bytes, revision: Revision) -> v1::Object {
    v1::Object { json: value.clone(), revision }
}

fn entry_object(entry: &Entry) -> v1::Object {
    object(&entry.value, entry.revision)
}

fn reference(kind: Kind, namespace: &str, name: &str) -> v1::Reference {
    v1::Reference { kind: kind.name().to_owned(), namespace: namespace.to_owned(), name: name.to_owned() }
}

/// An object as a read shows it.
fn shown(service: &Service, kind: Kind, entry: &Entry, reveal: Reveal) -> Result<v1::Object, ApiError> {
    Ok(object(&service.shown(kind, &entry.value, reveal)?, entry.revision))
}

/// What will happen to instances.
fn foretold(forecast: Forecast) -> v1::Forecast {
    use v1::effect::Kind as Effects;
    let step = |step: ostler_core::forecast::Step| v1::Step {
        kind: match step.event {
            Event::Start => Effects::Start,
            Event::Restart => Effects::Restart,
            Event::Stop => Effects::Stop,
        }
        .into(),
        instance: Some(reference(Kind::Instance, &step.namespace, &step.instance)),
        place: u32::try_from(step.place).unwrap_or(u32::MAX),
    };
    v1::Forecast { steps: forecast.steps.into_iter().map(step).collect(), more: forecast.more }
}

fn applied(service: &Service, applied: Applied, revision: Revision) -> Result<v1::Applied, ApiError> {
    use v1::applied::Result as Outcomes;
    use v1::effect::Kind as Effects;
    let outcome = match applied.outcome {
        Outcome::Created => Outcomes::Created,
        Outcome::Configured => Outcomes::Configured,
        Outcome::Unchanged => Outcomes::Unchanged,
    };
    let unchanged = applied.outcome == Outcome::Unchanged;
    let after_revision = applied.before.as_ref().filter(|_| unchanged).map_or(revision, |before| before.revision);
    let (before, after) = if applied.kind == Kind::Secret {
        service.shown_change(applied.before.as_ref().map(|before| &before.value), &applied.after)?
    } else {
        (applied.before.as_ref().map(|before| before.value.clone()), applied.after)
    };
    Ok(v1::Applied {
        object: Some(reference(applied.kind, &applied.namespace, &applied.name)),
        result: outcome.into(),
        before: applied.before.as_ref().zip(before).map(|(entry, json)| object(&json, entry.revision)),
        after: Some(object(&after, after_revision)),
        effects: applied
            .effects
            .into_iter()
            .map(|effect| v1::Effect {
                kind: match effect.kind {
                    EffectKind::Start => Effects::Start,
                    EffectKind::Restart => Effects::Restart,
                    EffectKind::Stop => Effects::Stop,
                }
                .into(),
                instance: effect.instance,
                why: effect.why,
            })
            .collect(),
        in_place: applied.in_place,
        defaulted: applied.defaulted,
    })
}

#[tonic::async_trait]
impl Ostler for Service {
    type ListStream = Streaming<v1::ListPage>;
    type WatchStream = ReceiverStream<Result<v1::WatchBatch, Status>>;
    type LogsStream = Streaming<v1::LogChunk>;

    async fn apply(&self, request: Request<v1::ApplyRequest>) -> Answer<v1::ApplyResponse> {
        let request = request.into_inner();
        let manager = if request.field_manager.is_empty() { "ostler apply" } else { &request.field_manager };
        if request.prune && request.set.is_empty() {
            return Err(ApiError::bad("what is to be pruned is what left a set: name the set").into());
        }
        let set = Set { name: &request.set, prune: request.prune, allow: request.allow_prune };
        let how = How {
            manager,
            force: request.force_conflicts,
            dry_run: request.dry_run,
            set: (!request.set.is_empty()).then_some(set),
        };
        let (decided, revision) = Service::apply(self, &request.objects, how).await?;
        let forecast = request.dry_run.then(|| foretold(self.forecast(&decided.objects, &decided.pruned)));
        let results = decided.objects.into_iter();
        let results = results.map(|result| applied(self, result, revision)).collect::<Result<_, _>>()?;
        let references =
            |items: &[Item]| items.iter().map(|item| reference(item.kind, &item.namespace, &item.name)).collect();
        Ok(Response::new(v1::ApplyResponse {
            results,
            forecast,
            revision,
            pruned: references(&decided.pruned),
            kept: references(&decided.kept),
            refused: decided.refused,
        }))
    }

    async fn patch(&self, request: Request<v1::PatchRequest>) -> Answer<v1::PatchResponse> {
        use v1::patch_request::Type;
        let request = request.into_inner();
        let bad = |why: serde_json::Error| ApiError::bad(format!("the patch: {why}"));
        let patch = match request.r#type() {
            Type::Merge => Patch::Merge(serde_json::from_slice(&request.patch).map_err(bad)?),
            Type::Json => Patch::Json(serde_json::from_slice(&request.patch).map_err(bad)?),
            Type::Replace => Patch::Replace(serde_json::from_slice(&request.patch).map_err(bad)?),
        };
        let manager = if request.field_manager.is_empty() { "ostler patch" } else { &request.field_manager };
        let wanted = request.object.unwrap_or_default();
        let object = (select::kind(&wanted.kind)?, wanted.namespace.as_str(), wanted.name.as_str());
        let expected = (request.revision != 0).then_some(request.revision);
        let (result, revision) = Service::patch(self, object, &patch, expected, request.dry_run, manager).await?;
        Ok(Response::new(v1::PatchResponse { result: Some(applied(self, result, revision)?), revision }))
    }

    async fn get(&self, request: Request<v1::GetRequest>) -> Answer<v1::Object> {
        let v1::GetRequest { object, show_secrets } = request.into_inner();
        let wanted = object.unwrap_or_default();
        let kind = select::kind(&wanted.kind)?;
        let entry = Service::get(self, kind, &wanted.namespace, &wanted.name)?;
        Ok(Response::new(shown(self, kind, &entry, Reveal::new(show_secrets))?))
    }

    async fn list(&self, request: Request<v1::ListRequest>) -> Answer<Self::ListStream> {
        let v1::ListRequest { selector, show_secrets } = request.into_inner();
        let selection = selection(selector)?;
        let (entries, revision) = Service::list(self, &selection)?;
        let item = |entry| shown(self, selection.kind, entry, Reveal::new(show_secrets));
        let mut pages = Vec::with_capacity(entries.len().div_ceil(PAGE));
        for page in entries.chunks(PAGE) {
            let items = page.iter().map(item).collect::<Result<_, _>>()?;
            pages.push(Ok(v1::ListPage { items, revision }));
        }
        if pages.is_empty() {
            pages.push(Ok(v1::ListPage { items: Vec::new(), revision }));
        }
        Ok(Response::new(Box::pin(tokio_stream::iter(pages))))
    }

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Answer<Self::WatchStream> {
        use v1::watch_event::Type;
        let request = request.into_inner();
        let reveal = Reveal::new(request.show_secrets);
        let mut selection = selection(request.selector)?;
        let mut first = Vec::new();
        let mut tries = 0;
        let watch = loop {
            let mut from = request.from_revision;
            if from == 0 {
                // A watch may wait for a name that does not exist yet.
                let names = std::mem::take(&mut selection.names);
                let (entries, revision) = Service::list(self, &selection)?;
                selection.names = names;
                from = revision;
                first.clear();
                for entry in entries.iter().filter(|entry| selection.matches(&entry.key, &entry.value)) {
                    first.push(v1::WatchEvent {
                        r#type: Type::Added.into(),
                        object: Some(shown(self, selection.kind, entry, reveal)?),
                        revision: entry.revision,
                    });
                }
                first.push(v1::WatchEvent { r#type: Type::Bookmark.into(), object: None, revision });
            }
            match Service::watch(self, &selection, from) {
                // So much has changed since the list was made that the history has lost it: the list is out of date.
                Err(_) if request.from_revision == 0 && tries < LISTS => tries += 1,
                watch => break watch?,
            }
        };
        let service = self.clone();
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        let store = std::sync::Arc::clone(&self.store);
        tokio::spawn(async move {
            for page in first.chunks(PAGE) {
                if sender.send(Ok(v1::WatchBatch { events: page.to_vec(), missed: 0 })).await.is_err() {
                    return;
                }
            }
            if selection.kind == Kind::Event {
                watching::shed(&*store, watch, &selection, &sender).await;
            } else {
                watching::deliver(&service, watch, &selection, reveal, &sender).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn delete(&self, request: Request<v1::DeleteRequest>) -> Answer<v1::DeleteResponse> {
        let request = request.into_inner();
        let selection = selection(request.selector)?;
        let (objects, revision) =
            Service::delete(self, &selection, request.all, request.dry_run, request.grace_period_ms).await?;
        let objects = objects.iter().map(|(kind, namespace, name)| reference(*kind, namespace, name)).collect();
        Ok(Response::new(v1::DeleteResponse { objects, revision }))
    }

    async fn act(&self, request: Request<v1::ActRequest>) -> Answer<v1::ActResponse> {
        let request = request.into_inner();
        let action = match request.action() {
            v1::act_request::Action::Restart => Action::Restart,
            v1::act_request::Action::Stop => Action::Stop,
            v1::act_request::Action::Start => Action::Start,
            v1::act_request::Action::Unspecified => return Err(ApiError::bad("an action is needed").into()),
        };
        let (acted, revision) =
            Service::act(self, &selection(request.selector)?, request.all, action, request.together).await?;
        let results = acted
            .into_iter()
            .map(|acted| v1::Acted {
                object: Some(reference(acted.kind, &acted.namespace, &acted.name)),
                changed: acted.changed,
                message: acted.message,
            })
            .collect();
        Ok(Response::new(v1::ActResponse { results, revision }))
    }

    async fn signal(&self, request: Request<v1::SignalRequest>) -> Answer<v1::SignalResponse> {
        let request = request.into_inner();
        let selection = selection(request.selector)?;
        let kind = if selection.kind == Kind::External { Kind::External } else { Kind::Instance };
        let instances = Service::signal(self, &selection, request.all, request.signal, request.tree).await?;
        let instances = instances.iter().map(|instance| reference(kind, &instance.namespace, &instance.name)).collect();
        Ok(Response::new(v1::SignalResponse { instances }))
    }

    async fn scale(&self, request: Request<v1::ScaleRequest>) -> Answer<v1::ScaleResponse> {
        let request = request.into_inner();
        let target = request.object.unwrap_or_default();
        let kind = select::kind(&target.kind)?;
        if kind != Kind::Process {
            return Err(ApiError::bad(format!("a {kind} has no replicas; name a process")).into());
        }
        let (entry, changed) =
            Service::scale(self, &target.namespace, &target.name, request.replicas, request.current_replicas).await?;
        Ok(Response::new(v1::ScaleResponse { object: Some(entry_object(&entry)), changed }))
    }

    async fn sync(&self, request: Request<v1::SyncRequest>) -> Answer<v1::SyncResponse> {
        let request = request.into_inner();
        let (names, requested_at) = Service::sync(self, &request.names, request.allow_prune).await?;
        let sources = names.iter().map(|name| reference(Kind::Source, "", name)).collect();
        Ok(Response::new(v1::SyncResponse { sources, requested_at: requested_at.to_string() }))
    }

    async fn preview_source(&self, request: Request<v1::PreviewSourceRequest>) -> Answer<v1::PreviewSourceResponse> {
        let preview = Service::preview_source(self, &request.into_inner().name).await?;
        let results = preview
            .results
            .into_iter()
            .map(|result| applied(self, result, preview.revision))
            .collect::<Result<_, _>>()?;
        let deletes = preview.deletes.iter().map(|item| reference(item.kind, &item.namespace, &item.name)).collect();
        let forecast = preview.forecast.map(foretold);
        Ok(Response::new(v1::PreviewSourceResponse { results, deletes, refused: preview.refused, forecast }))
    }

    async fn rollout(&self, request: Request<v1::RolloutRequest>) -> Answer<v1::RolloutResponse> {
        use v1::rollout_request::Action;
        let request = request.into_inner();
        let action = match request.action() {
            Action::Pause => RolloutAction::Pause,
            Action::Resume => RolloutAction::Resume,
            Action::Undo => RolloutAction::Undo((request.to_revision != 0).then_some(request.to_revision)),
            Action::Unspecified => return Err(ApiError::bad("an action is needed").into()),
        };
        let target = request.object.unwrap_or_default();
        let kind = select::kind(&target.kind)?;
        if kind != Kind::Process {
            return Err(ApiError::bad(format!("a {kind} has no rollouts; name a process")).into());
        }
        let done = Service::rollout(self, &target.namespace, &target.name, action, request.dry_run).await?;
        let object = Some(entry_object(&done.entry));
        Ok(Response::new(v1::RolloutResponse { object, changed: done.changed, message: done.message }))
    }

    async fn logs(&self, request: Request<v1::LogsRequest>) -> Answer<Self::LogsStream> {
        use v1::logs_request::Stream as Streams;
        let request = request.into_inner();
        let stream = match request.stream() {
            Streams::All => None,
            Streams::Stdout => Some(LogStream::Stdout),
            Streams::Stderr => Some(LogStream::Stderr),
        };
        let attempts = match (request.previous, request.all_attempts, request.attempt) {
            (true, false, None) => Attempts::Previous,
            (false, true, None) => Attempts::All,
            (false, false, None) => Attempts::Current,
            (false, false, Some(attempt)) => Attempts::Only(attempt),
            (_, _, _) => {
                return Err(ApiError::bad("previous, all_attempts and attempt exclude each other").into());
            }
        };
        let since = (request.since != 0).then_some(request.since);
        let query = LogQuery {
            namespace: request.namespace,
            instance: request.instance,
            follow: request.follow,
            filter: Filter { attempts, stream, since, tail: request.tail_lines },
            after: request.resume.map(|cursor| (cursor.sequence, cursor.offset)),
        };
        let chunks = Service::logs(self, query)?;
        let stream = ReceiverStream::new(chunks).map(|chunk| {
            let chunk = chunk.map_err(Status::from)?;
            let stream = match chunk.stream {
                LogStream::Stdout => Streams::Stdout,
                LogStream::Stderr => Streams::Stderr,
            };
            let offset = chunk.offset + chunk.data.len() as u64;
            Ok(v1::LogChunk {
                stream: stream.into(),
                attempt: chunk.attempt,
                at: chunk.at_nanos,
                data: chunk.data.into(),
                next: Some(v1::LogPosition { sequence: chunk.sequence, offset }),
            })
        });
        Ok(Response::new(Box::pin(stream)))
    }

    async fn usage(&self, request: Request<v1::UsageRequest>) -> Answer<v1::UsageResponse> {
        let v1::UsageRequest { selector, pss } = request.into_inner();
        let mut selector = selector.unwrap_or_default();
        let kind = usage::kind(&selector.kind)?;
        kind.name().clone_into(&mut selector.kind);
        let (entries, _) = Service::list(self, &Selection::parse(&selector)?)?;
        let instances = usage::read(self.controller.usage(), kind, &entries, pss).await;
        let at = crate::service::now().as_micros() * 1000;
        Ok(Response::new(v1::UsageResponse { instances, node: Some(usage::node()), at }))
    }

    async fn info(&self, _request: Request<v1::InfoRequest>) -> Answer<v1::InfoResponse> {
        let overview = self.controller.overview().await.map_err(ApiError::from)?;
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
        let cost = self.controller.usage().cost();
        Ok(Response::new(v1::InfoResponse {
            version: self.daemon.version.clone(),
            state_dir: self.daemon.state_dir.display().to_string(),
            keeper_pid: overview.keeper_pid,
            controller_pid: i32::try_from(std::process::id()).unwrap_or_default(),
            keeper_version: overview.keeper_version,
            cgroups: overview.cgroups,
            boot_id: ostler_keeper::wire::boot_id().unwrap_or_default(),
            started_at: self.daemon.started_at,
            revision: self.store.revision(),
            store: match self.store.health() {
                Health::Ok => "ok".to_owned(),
                Health::ReadOnly { why, .. } => why,
            },
            instances: overview.instances as u64,
            open_files_limit: limit,
            usage_samples: cost.samples,
            usage_cpu_time: cost.cpu_time,
        }))
    }

    async fn backup(&self, _request: Request<v1::BackupRequest>) -> Answer<v1::BackupResponse> {
        let store = std::sync::Arc::clone(&self.store);
        let label = format!("manual-{}", crate::service::now().as_micros());
        let directory = self.daemon.state_dir.join("backup");
        let path = ostler_store::backup::kept_path_for(&directory, store.revision(), &label);
        let to = path.clone();
        let done = tokio::task::spawn_blocking(move || {
            if let Some(directory) = to.parent() {
                std::fs::create_dir_all(directory).map_err(|why| why.to_string())?;
            }
            let revision = store.backup(&to).map_err(|why| why.to_string())?;
            Ok::<_, String>((revision, store.list("").entries.len() as u64))
        });
        let done = done.await.map_err(|why| ApiError::new(Reason::InternalError, why.to_string()))?;
        let (revision, entries) = done.map_err(|why| ApiError::new(Reason::InternalError, why))?;
        Ok(Response::new(v1::BackupResponse { path: path.display().to_string(), revision, entries }))
    }

    async fn get_config(&self, _: Request<v1::GetConfigRequest>) -> Answer<v1::ConfigResponse> {
        Ok(Response::new(crate::config::shown(&self.daemon.config)))
    }

    async fn set_config(&self, request: Request<v1::SetConfigRequest>) -> Answer<v1::ConfigResponse> {
        crate::config::set(&self.daemon.config, request.into_inner())?;
        Ok(Response::new(crate::config::shown(&self.daemon.config)))
    }

    async fn reload_config(&self, _: Request<v1::ReloadConfigRequest>) -> Answer<v1::ConfigResponse> {
        crate::config::reload(&self.daemon.config, true);
        Ok(Response::new(crate::config::shown(&self.daemon.config)))
    }

    async fn upgrade(&self, request: Request<v1::UpgradeRequest>) -> Answer<v1::UpgradeResponse> {
        let asked = request.into_inner().binary;
        let binary = if asked.is_empty() { self.daemon.program.clone() } else { asked.into() };
        if !binary.is_absolute() {
            return Err(ApiError::bad(format!("{} is not an absolute path", binary.display())).into());
        }
        let to_version = version_of(&binary).await?;
        info!(binary = %binary.display(), to_version, "upgrading");
        self.controller.upgrade(binary).await.map_err(ApiError::from)?;
        Ok(Response::new(v1::UpgradeResponse { from_version: self.daemon.version.clone(), to_version }))
    }

    async fn shutdown(&self, request: Request<v1::ShutdownRequest>) -> Answer<v1::ShutdownResponse> {
        let request = request.into_inner();
        let deadline =
            if request.deadline_ms == 0 { Span::from_secs(60) } else { Span::from_millis(request.deadline_ms) };
        self.controller.shutdown(request.stop_instances.then_some(deadline)).await.map_err(ApiError::from)?;
        Ok(Response::new(v1::ShutdownResponse {}))
    }
}

/// Asks a program for its version, which also shows that it can be run at all.
async fn version_of(binary: &Path) -> Result<String, ApiError> {
    let asking = tokio::process::Command::new(binary).arg("--version").kill_on_drop(true).output();
    let bad = |why: String| {
        ApiError::bad(format!("{} cannot take over: {why}", binary.display()))
            .hint("the running daemon goes on unchanged")
    };
    let output = tokio::time::timeout(Duration::from_secs(10), asking)
        .await
        .map_err(|_| bad("it does not answer --version".to_owned()))?
        .map_err(|why| bad(why.to_string()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.trim().strip_prefix("ostler ") {
        Some(version) if output.status.success() => Ok(version.to_owned()),
        _ => Err(bad("it does not say that it is ostler".to_owned())),
    }
}
