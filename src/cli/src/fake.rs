//! A daemon that runs nothing, for tests of the client: real gRPC over a real socket, objects in memory.
//!
//! It can be killed and started again, forget its history, and break a log stream after any chunk.

use std::collections::BTreeMap;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use ostler_rpc::v1::{self, ostler_server, watch_event::Type};
use prost::Message;
use serde_json::Value;
use tokio_stream::Stream;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Request, Response, Status};

use crate::kinds::Kind;

/// What the daemon has and what was asked of it.
#[derive(Default)]
pub(crate) struct World {
    pub(crate) objects: BTreeMap<(String, String, String), v1::Object>,
    pub(crate) revision: u64,
    history: Vec<v1::WatchEvent>,
    /// Watches below it are told to list again.
    oldest: u64,
    pub(crate) watches: usize,
    pub(crate) logs: Vec<u8>,
    /// How many chunks a log stream sends before it breaks.
    pub(crate) cut_logs_after: Option<usize>,
    pub(crate) log_requests: Vec<v1::LogsRequest>,
    pub(crate) acts: Vec<v1::ActRequest>,
    pub(crate) deletes: Vec<v1::DeleteRequest>,
    pub(crate) usage_calls: u64,
    /// Answer of the next apply.
    pub(crate) apply: Option<Result<v1::ApplyResponse, Status>>,
    pub(crate) applies: Vec<v1::ApplyRequest>,
}

/// The world, and a bell that rings when it changes.
#[derive(Default)]
pub(crate) struct Shared {
    world: Mutex<World>,
    bell: Condvar,
    changed: tokio::sync::Notify,
}

impl Shared {
    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    fn ring(&self) {
        self.bell.notify_all();
        self.changed.notify_waiters();
    }

    /// Blocks until the world is as wanted.
    pub(crate) fn until(&self, wanted: impl Fn(&World) -> bool) {
        let _world = self.bell.wait_while(self.world(), |world| !wanted(world)).unwrap();
    }

    pub(crate) fn put(&self, object: &Value) {
        let mut world = self.world();
        world.revision += 1;
        let revision = world.revision;
        let object_ = v1::Object { json: object.to_string().into(), revision };
        let old = world.objects.insert(key(object), object_.clone());
        let kind = if old.is_some() { Type::Modified } else { Type::Added };
        world.history.push(v1::WatchEvent { r#type: kind.into(), object: Some(object_), revision });
        drop(world);
        self.ring();
    }

    pub(crate) fn remove(&self, kind: Kind, name: &str) {
        let mut world = self.world();
        world.revision += 1;
        let revision = world.revision;
        let old = world.objects.remove(&(kind.name().into(), "default".into(), name.into())).unwrap();
        world.history.push(v1::WatchEvent { r#type: Type::Deleted.into(), object: Some(old), revision });
        drop(world);
        self.ring();
    }

    pub(crate) fn forget_history(&self) {
        let mut world = self.world();
        world.history.clear();
        world.oldest = world.revision + 1;
        world.revision += 1;
    }
}

fn key(object: &Value) -> (String, String, String) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (text(&object["kind"]), text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"]))
}

fn matches(selector: &v1::Selector, object: &v1::Object) -> bool {
    let value: Value = serde_json::from_slice(&object.json).unwrap();
    let (kind, namespace, name) = key(&value);
    let owner = selector.fields.strip_prefix("owner=");
    kind == selector.kind
        && (selector.namespace.is_empty() || namespace == selector.namespace)
        && (selector.names.is_empty() || selector.names.contains(&name))
        && owner.is_none_or(|owner| value["spec"]["process"] == owner)
}

pub(crate) fn not_found(kind: &str, name: &str) -> Status {
    let kind = Kind::parse(kind).unwrap();
    with_details(
        Code::NotFound,
        &format!("{} \"{name}\" not found", kind.resource()),
        &v1::Status { reason: "NotFound".into(), ..v1::Status::default() },
    )
}

pub(crate) fn with_details(code: Code, message: &str, details: &v1::Status) -> Status {
    let mut metadata = MetadataMap::new();
    metadata.insert_bin(ostler_rpc::STATUS_METADATA, MetadataValue::from_bytes(&details.encode_to_vec()));
    Status::with_metadata(code, message, metadata)
}

/// A daemon at a socket; ends with its runtime.
pub(crate) struct Fake {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) shared: Arc<Shared>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Fake {
    pub(crate) fn start() -> Self {
        let mut fake = Fake { dir: tempfile::tempdir().unwrap(), shared: Arc::default(), runtime: None };
        fake.restart();
        fake
    }

    /// Kills it with all its connections, and starts another.
    pub(crate) fn restart(&mut self) {
        self.kill();
        self.shared.world().watches = 0;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let socket = self.socket();
        let service = Service(self.shared.clone());
        let listener = {
            let _inside = runtime.enter();
            tokio::net::UnixListener::bind(&socket).unwrap()
        };
        runtime.spawn(async move {
            let server = ostler_server::OstlerServer::new(service);
            let incoming = UnixListenerStream::new(listener);
            tonic::transport::Server::builder().add_service(server).serve_with_incoming(incoming).await.unwrap();
        });
        self.runtime = Some(runtime);
    }

    pub(crate) fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
            std::fs::remove_file(self.socket()).unwrap();
        }
    }

    fn socket(&self) -> std::path::PathBuf {
        self.dir.path().join("ostler.sock")
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.kill();
    }
}

struct Service(Arc<Shared>);

type Items<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn items<T: Send + 'static>(receiver: tokio::sync::mpsc::Receiver<Result<T, Status>>) -> Response<Items<T>> {
    Response::new(Box::pin(ReceiverStream::new(receiver)))
}

fn selector(selector: Option<v1::Selector>) -> v1::Selector {
    selector.unwrap_or_default()
}

#[tonic::async_trait]
impl ostler_server::Ostler for Service {
    async fn apply(&self, request: Request<v1::ApplyRequest>) -> Result<Response<v1::ApplyResponse>, Status> {
        let mut world = self.0.world();
        world.applies.push(request.into_inner());
        world.apply.take().unwrap_or_else(|| Ok(v1::ApplyResponse::default())).map(Response::new)
    }

    async fn patch(&self, request: Request<v1::PatchRequest>) -> Result<Response<v1::PatchResponse>, Status> {
        let wanted = request.into_inner().object.unwrap_or_default();
        Err(not_found(&wanted.kind, &wanted.name))
    }

    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::Object>, Status> {
        let wanted = request.into_inner().object.unwrap_or_default();
        let key = (wanted.kind.clone(), wanted.namespace, wanted.name.clone());
        let found = self.0.world().objects.get(&key).cloned();
        found.map(Response::new).ok_or_else(|| not_found(&wanted.kind, &wanted.name))
    }

    type ListStream = Items<v1::ListPage>;

    async fn list(&self, request: Request<v1::ListRequest>) -> Result<Response<Self::ListStream>, Status> {
        let wanted = selector(request.into_inner().selector);
        let world = self.0.world();
        let found: Vec<_> = world.objects.values().filter(|object| matches(&wanted, object)).cloned().collect();
        // Two pages, as a larger list would have.
        let (first, second) = found.split_at(found.len() / 2);
        let page = |items: &[v1::Object]| Ok(v1::ListPage { items: items.to_vec(), revision: world.revision });
        let pages = vec![page(first), page(second)];
        Ok(Response::new(Box::pin(tokio_stream::iter(pages))))
    }

    type WatchStream = Items<v1::WatchBatch>;

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let request = request.into_inner();
        let wanted = selector(request.selector);
        let shared = self.0.clone();
        let (sender, receiver) = tokio::sync::mpsc::channel(64);
        let mut from = request.from_revision;
        if from != 0 && from < shared.world().oldest {
            let details = v1::Status { reason: "Expired".into(), ..v1::Status::default() };
            return Err(with_details(Code::OutOfRange, "the history no longer reaches back so far", &details));
        }
        tokio::spawn(async move {
            if from == 0 {
                let events = {
                    let world = shared.world();
                    from = world.revision;
                    let present = world.objects.values().filter(|object| matches(&wanted, object));
                    let mut events: Vec<_> = present
                        .map(|object| v1::WatchEvent {
                            r#type: Type::Added.into(),
                            object: Some(object.clone()),
                            revision: object.revision,
                        })
                        .collect();
                    events.push(v1::WatchEvent { r#type: Type::Bookmark.into(), object: None, revision: from });
                    events
                };
                let _ = sender.send(Ok(v1::WatchBatch { events, missed: 0 })).await;
            }
            {
                shared.world().watches += 1;
            }
            shared.ring();
            loop {
                let changed = shared.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                let events: Vec<_> = {
                    let world = shared.world();
                    let news = world.history.iter().filter(|event| event.revision > from);
                    news.filter(|event| event.object.as_ref().is_some_and(|it| matches(&wanted, it))).cloned().collect()
                };
                if let Some(last) = events.last() {
                    from = last.revision;
                    if sender.send(Ok(v1::WatchBatch { events, missed: 0 })).await.is_err() {
                        return;
                    }
                }
                changed.await;
            }
        });
        Ok(items(receiver))
    }

    async fn delete(&self, request: Request<v1::DeleteRequest>) -> Result<Response<v1::DeleteResponse>, Status> {
        let request = request.into_inner();
        let wanted = selector(request.selector.clone());
        let objects: Vec<_> = {
            let mut world = self.0.world();
            world.deletes.push(request);
            let found = world.objects.iter().filter(|(_, object)| matches(&wanted, object));
            found
                .map(|((kind, namespace, name), _)| v1::Reference {
                    kind: kind.clone(),
                    namespace: namespace.clone(),
                    name: name.clone(),
                })
                .collect()
        };
        self.0.ring();
        match wanted.names.first() {
            Some(name) if objects.is_empty() => Err(not_found(&wanted.kind, name)),
            Some(_) | None => Ok(Response::new(v1::DeleteResponse { objects, revision: 0 })),
        }
    }

    async fn act(&self, request: Request<v1::ActRequest>) -> Result<Response<v1::ActResponse>, Status> {
        let request = request.into_inner();
        let wanted = selector(request.selector.clone());
        self.0.world().acts.push(request);
        self.0.ring();
        let result = |name: &String| v1::Acted {
            object: Some(v1::Reference {
                kind: wanted.kind.clone(),
                namespace: wanted.namespace.clone(),
                name: name.clone(),
            }),
            changed: true,
            message: "stopped".into(),
        };
        Ok(Response::new(v1::ActResponse { results: wanted.names.iter().map(result).collect(), revision: 0 }))
    }

    async fn signal(&self, request: Request<v1::SignalRequest>) -> Result<Response<v1::SignalResponse>, Status> {
        let wanted = selector(request.into_inner().selector);
        let instances = wanted
            .names
            .iter()
            .map(|name| v1::Reference { kind: "Instance".into(), namespace: String::new(), name: format!("{name}-0") })
            .collect();
        Ok(Response::new(v1::SignalResponse { instances }))
    }

    async fn scale(&self, request: Request<v1::ScaleRequest>) -> Result<Response<v1::ScaleResponse>, Status> {
        let wanted = request.into_inner().object.unwrap_or_default();
        Err(not_found(&wanted.kind, &wanted.name))
    }

    async fn rollout(&self, request: Request<v1::RolloutRequest>) -> Result<Response<v1::RolloutResponse>, Status> {
        let wanted = request.into_inner().object.unwrap_or_default();
        Err(not_found(&wanted.kind, &wanted.name))
    }

    type LogsStream = Items<v1::LogChunk>;

    /// Seven bytes at a time, streams in turn.
    async fn logs(&self, request: Request<v1::LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        let request = request.into_inner();
        let (logs, cut) = {
            let mut world = self.0.world();
            let exists = world.objects.keys().any(|(kind, _, name)| kind == "Instance" && *name == request.instance);
            if !exists {
                return Err(not_found("Instance", &request.instance));
            }
            world.log_requests.push(request.clone());
            (world.logs.clone(), world.cut_logs_after)
        };
        let start = request.resume.map_or(0, |position| position.offset as usize);
        let mut chunks = Vec::new();
        for (index, data) in logs[start..].chunks(7).enumerate() {
            if cut == Some(index) {
                chunks.push(Err(Status::unavailable("the connection broke")));
                break;
            }
            let end = start + index * 7 + data.len();
            chunks.push(Ok(v1::LogChunk {
                stream: 1 + (end % 2) as i32,
                data: data.to_vec().into(),
                next: Some(v1::LogPosition { sequence: 1, offset: end as u64 }),
                ..v1::LogChunk::default()
            }));
        }
        if request.follow && chunks.iter().all(Result::is_ok) {
            // What ends following is that the instance goes.
            let name = request.instance;
            self.0.world().objects.retain(|(kind, _, other), _| !(kind == "Instance" && *other == name));
        }
        Ok(Response::new(Box::pin(tokio_stream::iter(chunks))))
    }

    async fn sync(&self, _: Request<v1::SyncRequest>) -> Result<Response<v1::SyncResponse>, Status> {
        Err(Status::unimplemented("no Sources here"))
    }

    async fn preview_source(
        &self,
        _: Request<v1::PreviewSourceRequest>,
    ) -> Result<Response<v1::PreviewSourceResponse>, Status> {
        Err(Status::unimplemented("no Sources here"))
    }

    async fn usage(&self, _: Request<v1::UsageRequest>) -> Result<Response<v1::UsageResponse>, Status> {
        let calls = {
            let mut world = self.0.world();
            world.usage_calls += 1;
            world.usage_calls
        };
        let instance = v1::InstanceUsage {
            instance: Some(v1::Reference {
                name: "web-0".into(),
                namespace: "default".into(),
                kind: "Instance".into(),
            }),
            pid: 7,
            cpu_time: calls * 250_000_000,
            rss: 5 << 20,
            processes: 2,
            threads: 3,
            open_files: Some(12),
            read_bytes: Some(0),
            written_bytes: Some(3 << 20),
            cpu_history: vec![0, 100, 200],
            rss_history: vec![1 << 20, 3 << 20, 5 << 20],
            ..v1::InstanceUsage::default()
        };
        let node = v1::NodeUsage { cpus: 2, memory_total: 8 << 30, memory_available: 6 << 30, load1: 0.5 };
        let at = i64::try_from(calls).unwrap() * 1_000_000_000;
        Ok(Response::new(v1::UsageResponse { instances: vec![instance], node: Some(node), at }))
    }

    async fn get_config(&self, _: Request<v1::GetConfigRequest>) -> Result<Response<v1::ConfigResponse>, Status> {
        Err(Status::unimplemented("no configuration here"))
    }

    async fn set_config(&self, _: Request<v1::SetConfigRequest>) -> Result<Response<v1::ConfigResponse>, Status> {
        Err(Status::unimplemented("no configuration here"))
    }

    async fn reload_config(&self, _: Request<v1::ReloadConfigRequest>) -> Result<Response<v1::ConfigResponse>, Status> {
        Err(Status::unimplemented("no configuration here"))
    }

    async fn info(&self, _: Request<v1::InfoRequest>) -> Result<Response<v1::InfoResponse>, Status> {
        Ok(Response::new(v1::InfoResponse { version: "9.9.9".into(), ..v1::InfoResponse::default() }))
    }

    async fn backup(&self, _: Request<v1::BackupRequest>) -> Result<Response<v1::BackupResponse>, Status> {
        Ok(Response::new(v1::BackupResponse { path: "/b".into(), revision: 4, entries: 2 }))
    }

    async fn upgrade(&self, _: Request<v1::UpgradeRequest>) -> Result<Response<v1::UpgradeResponse>, Status> {
        Ok(Response::new(v1::UpgradeResponse { from_version: "1".into(), to_version: "2".into() }))
    }

    async fn shutdown(&self, _: Request<v1::ShutdownRequest>) -> Result<Response<v1::ShutdownResponse>, Status> {
        Ok(Response::new(v1::ShutdownResponse {}))
    }
}
