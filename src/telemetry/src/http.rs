//! `/metrics` for Prometheus.

use std::io;
use std::net::SocketAddr;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use prometheus::{Encoder as _, Registry, TextEncoder};
use tokio::net::TcpListener;
use tracing::{error, warn};

pub(crate) async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address).await?;
    if !address.ip().is_loopback() {
        warn!(%address, "whoever reaches this address can read the metrics");
    }
    Ok(listener)
}

pub(crate) async fn serve(listener: TcpListener, registry: Registry) {
    let router = Router::new().route("/metrics", get(move || std::future::ready(scrape(&registry))));
    if let Err(why) = axum::serve(listener, router).await {
        error!(%why, "metrics are served no more");
    }
}

/// OpenTelemetry's names that mean something else to Prometheus, where `_count` is a part of a histogram.
const RENAMED: [(&str, &str); 2] =
    [("process_thread_count", "process_threads"), ("process_unix_file_descriptor_count", "process_open_fds")];

fn scrape(registry: &Registry) -> Response {
    let encoder = TextEncoder::new();
    let mut families = registry.gather();
    for family in &mut families {
        if let Some((_, name)) = RENAMED.iter().find(|(name, _)| *name == family.name()) {
            family.set_name((*name).to_owned());
        }
    }
    let mut text = Vec::new();
    match encoder.encode(&families, &mut text) {
        Ok(()) => ([(header::CONTENT_TYPE, encoder.format_type().to_owned())], text).into_response(),
        Err(why) => (StatusCode::INTERNAL_SERVER_ERROR, format!("cannot write metrics: {why}\n")).into_response(),
    }
}
