//! The connection to the daemon: one unix socket, one HTTP/2 connection.
//!
//! The socket is connected here and not by tonic, so that "no daemon" is told apart from an error of a call, with the
//! system's own reason.

use std::future::Future;
use std::io;
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use ostler_rpc::v1::{self, ostler_client::OstlerClient};
use tokio::net::UnixStream;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};

use crate::ctx::Settings;
use crate::error::Error;
use crate::kinds::Kind;

/// A socket that refuses belongs to a daemon that has just died and is being restarted, or to none: this long it is
/// worth asking again.
const REFUSED_FOR: Duration = Duration::from_secs(1);
/// Without a socket there may be a daemon that was started a moment ago and has not come to making it, as in
/// `ostler serve & ostler apply …`.
const MISSING_FOR: Duration = Duration::from_millis(250);
const PAUSE: Duration = Duration::from_millis(5);

/// Enough for logs to flow at full speed and for a thousand objects to come without waiting for an acknowledgement.
const WINDOW: u32 = 4 << 20;

/// A channel whose calls go on with the trace of this command.
pub(crate) type Traced = InterceptedService<Channel, Context>;

/// Puts a W3C trace context into the metadata of calls.
#[derive(Clone)]
pub(crate) struct Context(Option<String>);

impl Interceptor for Context {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
        if let Some(context) = self.0.as_deref().and_then(|text| text.parse().ok()) {
            request.metadata_mut().insert("traceparent", context);
        }
        Ok(request)
    }
}

/// A connected client; clones share the connection.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) api: OstlerClient<Traced>,
    timeout: Option<Duration>,
    show_secrets: bool,
}

impl Client {
    /// Connects, waiting up to a second for a daemon that is just restarting.
    pub(crate) async fn connect(settings: &Settings) -> Result<Client, Error> {
        let started = Instant::now();
        loop {
            let error = match Client::connect_once(settings).await {
                Err(error) => error,
                Ok(client) => return Ok(client),
            };
            let reason = if let Error::Unreachable { source, .. } = &error { Some(source.kind()) } else { None };
            let patience = match reason {
                Some(io::ErrorKind::ConnectionRefused) => REFUSED_FOR,
                // Somebody holds the state directory: the socket will come.
                Some(io::ErrorKind::NotFound) if settings.is_held() => REFUSED_FOR,
                Some(io::ErrorKind::NotFound) => MISSING_FOR,
                Some(_) | None => Duration::ZERO,
            };
            if started.elapsed() >= patience {
                return Err(error);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Connects or fails at once.
    pub(crate) async fn connect_once(settings: &Settings) -> Result<Client, Error> {
        let path = settings.socket();
        let stream = UnixStream::connect(&path).await.map_err(|source| Error::Unreachable {
            path: path.clone(),
            state_dir: settings.server.is_none().then(|| settings.state_dir.clone()),
            source,
        })?;
        let mut slot = Some(stream);
        let connector = tower::service_fn(move |_| {
            let stream = slot.take().map(TokioIo::new).ok_or(io::ErrorKind::NotConnected);
            async move { stream.map_err(io::Error::from) }
        });
        let channel = Endpoint::from_static("http://ostler")
            .initial_connection_window_size(WINDOW)
            .initial_stream_window_size(WINDOW)
            .connect_with_connector_lazy(connector);
        let api = OstlerClient::new(InterceptedService::new(channel, Context(settings.traceparent.clone())))
            .max_decoding_message_size(ostler_rpc::MAX_MESSAGE)
            .max_encoding_message_size(ostler_rpc::MAX_MESSAGE);
        Ok(Client { api, timeout: settings.request_timeout, show_secrets: settings.show_secrets })
    }

    /// Awaits a call that answers once, within `--request-timeout`.
    pub(crate) async fn once<T>(
        &self,
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, Error> {
        self.limit(async { Ok(call.await?.into_inner()) }).await
    }

    async fn limit<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        match self.timeout {
            None => work.await,
            Some(limit) => match tokio::time::timeout(limit, work).await {
                Ok(result) => result,
                Err(_) => Err(Error::request_timeout(limit)),
            },
        }
    }

    /// Everything a selector matches, of all pages.
    pub(crate) async fn list(&mut self, selector: v1::Selector) -> Result<Vec<v1::Object>, Error> {
        Ok(self.list_at(selector).await?.0)
    }

    /// Like [`Client::list`], with the revision to watch from.
    pub(crate) async fn list_at(&mut self, selector: v1::Selector) -> Result<(Vec<v1::Object>, u64), Error> {
        let mut api = self.api.clone();
        let show_secrets = self.show_secrets;
        self.limit(async move {
            let mut pages = api.list(v1::ListRequest { selector: Some(selector), show_secrets }).await?.into_inner();
            let mut items = Vec::new();
            let mut revision = 0;
            while let Some(page) = pages.message().await? {
                revision = page.revision;
                items.extend(page.items);
            }
            Ok((items, revision))
        })
        .await
    }

    pub(crate) async fn get(&mut self, kind: Kind, namespace: &str, name: &str) -> Result<v1::Object, Error> {
        let request =
            v1::GetRequest { object: Some(reference(kind, namespace, name)), show_secrets: self.show_secrets };
        let mut api = self.api.clone();
        match self.once(api.get(request)).await {
            Err(error) if error.is_not_found() => Err(self.suggest_name(error, kind, namespace, name).await),
            result => result,
        }
    }

    /// Adds "did you mean" to a NotFound, from the names that exist.
    pub(crate) async fn suggest_name(&mut self, error: Error, kind: Kind, namespace: &str, name: &str) -> Error {
        let Error::Server(mut server) = error else { return error };
        if server.hint.is_empty()
            && let Ok(objects) = self.list(selector(kind, namespace)).await
        {
            let names: Vec<String> = objects.iter().filter_map(|object| crate::views::name(&object.json)).collect();
            if let Some(near) = ostler_core::suggest::nearest(name, names.iter().map(String::as_str)) {
                server.hint = format!("did you mean \"{near}\"?");
            }
        }
        Error::Server(server)
    }
}

/// A reference; cluster-scoped kinds have no namespace.
pub(crate) fn reference(kind: Kind, namespace: &str, name: &str) -> v1::Reference {
    v1::Reference {
        kind: kind.name().into(),
        namespace: if kind.is_namespaced() { namespace.into() } else { String::new() },
        name: name.into(),
    }
}

/// Everything of a kind in a namespace (empty: in all of them).
pub(crate) fn selector(kind: Kind, namespace: &str) -> v1::Selector {
    v1::Selector {
        kind: kind.name().into(),
        namespace: if kind.is_namespaced() { namespace.into() } else { String::new() },
        ..v1::Selector::default()
    }
}

/// "process/web"
pub(crate) fn show(reference: &v1::Reference) -> String {
    format!("{}/{}", reference.kind.to_lowercase(), reference.name)
}
