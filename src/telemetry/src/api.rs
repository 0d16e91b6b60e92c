//! Around the API's transport: every call is counted and timed, and those that belong to a trace, or change something,
//! become spans of it.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use ::http::{HeaderMap, Request, Response};
use tower::{Layer, Service};
use tracing::Instrument as _;

use crate::{TARGET, child_of, metrics};

/// Adds [`ApiCalls`] to a service.
#[derive(Clone, Copy, Debug, Default)]
pub struct CallLayer;

impl<S> Layer<S> for CallLayer {
    type Service = ApiCalls<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ApiCalls(inner)
    }
}

/// Counts, times and traces the calls of a gRPC service.
#[derive(Clone, Debug)]
pub struct ApiCalls<S>(S);

/// Calls that only read, or last for as long as somebody listens: no span unless a trace asks for one.
const QUIET: [&str; 6] = ["Get", "List", "Watch", "Logs", "Usage", "Info"];

impl<S, B, R> Service<Request<B>> for ApiCalls<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
    S::Error: 'static,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<R>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // The path is of a known method, or the answer is Unimplemented and it is not looked at further.
        let path = request.uri().path().to_owned();
        let (service, method) = path.trim_start_matches('/').rsplit_once('/').unwrap_or(("", &path));
        let parent = request.headers().get("traceparent").and_then(|value| value.to_str().ok());
        let span = if service.starts_with("ostler.") && (parent.is_some() || !QUIET.contains(&method)) {
            tracing::info_span!(
                target: TARGET, parent: None, "api",
                otel.name = path.trim_start_matches('/'), otel.kind = "server", otel.status_code = tracing::field::Empty,
                rpc.system = "grpc", rpc.service = service, rpc.method = method,
                rpc.grpc.status_code = tracing::field::Empty,
            )
        } else {
            tracing::Span::none()
        };
        if let Some(parent) = parent {
            child_of(&span, parent);
        }
        let began = Instant::now();
        let work = self.0.call(request).instrument(span.clone());
        Box::pin(async move {
            let result = work.await;
            let code = result.as_ref().map_or(13, |response| code(response.headers()));
            if !span.is_disabled() {
                span.record("rpc.grpc.status_code", code);
                if code != 0 {
                    span.record("otel.status_code", "ERROR");
                }
            }
            if let Some(metrics) = metrics() {
                // Anybody can ask for methods that do not exist.
                let method = if code == 12 { "unknown" } else { path.trim_start_matches('/') };
                metrics.called(method, name(code), began.elapsed());
            }
            result
        })
    }
}

/// The code of an answer; what fails after its beginning has none yet, and began well.
fn code(headers: &HeaderMap) -> u8 {
    headers.get("grpc-status").and_then(|code| code.to_str().ok()?.parse().ok()).unwrap_or(0)
}

const fn name(code: u8) -> &'static str {
    match code {
        0 => "Ok",
        1 => "Cancelled",
        3 => "InvalidArgument",
        4 => "DeadlineExceeded",
        5 => "NotFound",
        6 => "AlreadyExists",
        7 => "PermissionDenied",
        8 => "ResourceExhausted",
        9 => "FailedPrecondition",
        10 => "Aborted",
        11 => "OutOfRange",
        12 => "Unimplemented",
        13 => "Internal",
        14 => "Unavailable",
        15 => "DataLoss",
        16 => "Unauthenticated",
        _ => "Unknown",
    }
}
