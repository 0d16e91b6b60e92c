//! `/metrics` for Prometheus.
//!
//! Whoever connects costs a seat for a while and nothing else: there are few, and nobody keeps one. An address that cannot
//! be had is tried again, so that whatever took it never keeps the daemon from its work.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use prometheus::{Encoder as _, Registry, TextEncoder};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

/// What connections may cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// So many at a time; further ones wait outside.
    pub(crate) seats: usize,
    /// So long, and then for one more answer.
    pub(crate) stay: Duration,
}

impl Limits {
    pub(crate) const USUAL: Self = Self { seats: 16, stay: Duration::from_secs(60) };
}

/// How long a connection that has to leave may take for its last answer.
const LAST_ANSWER: Duration = Duration::from_secs(10);
/// Between attempts to get the address, or to take a connection.
const PAUSE: Duration = Duration::from_secs(1);

pub(crate) async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address).await?;
    if !address.ip().is_loopback() {
        warn!(%address, "whoever reaches this address can read the metrics");
    }
    Ok(listener)
}

/// Serves for as long as the runtime lives; without a listener once the address can be had.
pub(crate) async fn serve(listener: io::Result<TcpListener>, address: SocketAddr, registry: Registry, limits: Limits) {
    let router = Router::new().route("/metrics", get(move || std::future::ready(scrape(&registry))));
    let listener = match listener {
        Ok(listener) => listener,
        Err(why) => {
            warn!(%address, %why, "metrics cannot be served; it is tried again");
            loop {
                sleep(PAUSE).await;
                if let Ok(listener) = bind(address).await {
                    info!(%address, "metrics are served now");
                    break listener;
                }
            }
        }
    };
    let seats = Arc::new(Semaphore::new(limits.seats));
    while let Ok(seat) = Arc::clone(&seats).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let router = router.clone();
                tokio::spawn(async move {
                    converse(stream, router, limits.stay).await;
                    drop(seat);
                });
            }
            // Out of descriptors, mostly.
            Err(_) => sleep(PAUSE).await,
        }
    }
}

async fn converse(stream: TcpStream, router: Router, stay: Duration) {
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = pin!(connection);
    // How it ended is the other side's business.
    if timeout(stay, connection.as_mut()).await.is_err() {
        connection.as_mut().graceful_shutdown();
        let _ = timeout(LAST_ANSWER.min(stay), connection).await;
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    async fn answer(address: SocketAddr) -> io::Result<String> {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    /// Waits until it serves. On a busy machine an answer may take longer than anybody may stay.
    async fn serves(address: SocketAddr) {
        let asking = async {
            while !answer(address).await.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), asking).await.expect("it serves within a minute");
    }

    #[tokio::test]
    async fn who_says_nothing_does_not_keep_others_out() {
        let listener = bind((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let limits = Limits { seats: 2, stay: Duration::from_millis(50) };
        let serving = tokio::spawn(serve(Ok(listener), address, Registry::new(), limits));
        let mut silent = Vec::new();
        for _ in 0..10 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        serves(address).await;
        serving.abort();
    }

    #[tokio::test]
    async fn an_address_that_was_taken_is_served_once_it_is_free() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = taken.local_addr().unwrap();
        let listener = bind(address).await;
        assert!(listener.is_err());
        let serving = tokio::spawn(serve(listener, address, Registry::new(), Limits::USUAL));
        drop(taken);
        serves(address).await;
        serving.abort();
    }
}
