//! `grpc`: the gRPC health checking protocol.

use std::net::SocketAddr;

use ostler_core::kinds::Grpc;
use ostler_core::verdict::Outcome;
use tonic::Code;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

/// Whether the service is SERVING.
pub(crate) async fn check(grpc: &Grpc, addresses: &[SocketAddr]) -> Outcome {
    let mut outcome = Outcome::CannotRun("no address".to_owned());
    for address in addresses {
        let endpoint = match Endpoint::from_shared(format!("http://{address}")) {
            Ok(endpoint) => endpoint,
            Err(why) => return Outcome::CannotRun(why.to_string()),
        };
        match endpoint.connect().await {
            Ok(channel) => return ask(HealthClient::new(channel), &grpc.service).await,
            Err(why) => {
                let why = std::error::Error::source(&why).map_or_else(|| why.to_string(), ToString::to_string);
                outcome = Outcome::Failed(format!("cannot connect to {address}: {why}"));
            }
        }
    }
    outcome
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
