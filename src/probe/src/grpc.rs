//! `grpc`: the gRPC health checking protocol.

use std::io;
use std::net::SocketAddr;

use hyper_util::rt::TokioIo;
use ostler_core::kinds::Grpc;
use ostler_core::verdict::Outcome;
use tonic::Code;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::net;

/// Whether the service is SERVING.
pub(crate) async fn check(grpc: &Grpc, addresses: &[SocketAddr]) -> Outcome {
    let Some(address) = addresses.first() else { return Outcome::CannotRun("no address".to_owned()) };
    let endpoint = match Endpoint::from_shared(format!("http://{address}")) {
        Ok(endpoint) => endpoint,
        Err(why) => return Outcome::CannotRun(why.to_string()),
    };
    // Connected here, where it can be told what an error is about.
    let stream = match net::connect(addresses).await {
        Ok(stream) => stream,
        Err(outcome) => return outcome,
    };
    let mut slot = Some(stream);
    let connector = tower::service_fn(move |_| {
        let stream = slot.take().map(TokioIo::new).ok_or(io::ErrorKind::NotConnected);
        async move { stream.map_err(io::Error::from) }
    });
    match endpoint.connect_with_connector(connector).await {
        Ok(channel) => ask(HealthClient::new(channel), &grpc.service).await,
        Err(why) => {
            let why = std::error::Error::source(&why).map_or_else(|| why.to_string(), ToString::to_string);
            Outcome::Failed(format!("no HTTP/2 connection to {address}: {why}"))
        }
    }
}

async fn ask(mut client: HealthClient<tonic::transport::Channel>, service: &str) -> Outcome {
    let request = HealthCheckRequest { service: service.to_owned() };
    match client.check(request).await {
        Ok(response) => match response.into_inner().status() {
            ServingStatus::Serving => Outcome::Passed("SERVING".to_owned()),
            other => Outcome::Failed(other.as_str_name().to_owned()),
        },
        Err(status) => Outcome::Failed(match status.code() {
            Code::Unimplemented => "the server does not implement grpc.health.v1".to_owned(),
            Code::NotFound => format!("the server does not know the service {service:?}"),
            code => format!("{code:?}: {}", status.message()),
        }),
    }
}
