//! Durable applies over the API, without a command line in between.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use hyper_util::rt::TokioIo;
use ostler_rpc::v1::{ApplyRequest, applied, ostler_client::OstlerClient};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use super::ms;
use crate::bench::daemon::{Bench, Daemon};
use crate::bench::report::{Figure, Target, median, percentile};
use crate::bench::sys;

const CLIENTS: usize = 64;
/// Applies of one client and syncs of one file in a repetition.
const SERIES: u32 = 300;
/// How long the many clients apply in a repetition.
const RUSH: Duration = Duration::from_secs(2);

pub(super) fn durable(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let daemon = Daemon::ready(bench, "durable")?;
    let socket = daemon.directory().join("ostler.sock");
    // One thread: the daemon has the rest of the machine.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (one, many) = runtime.block_on(async {
        let mut clients = Vec::new();
        for index in 0..CLIENTS {
            clients.push(Client::new(&socket, index).await?);
        }
        let (mut ours, mut synced, mut p99) = (Vec::new(), Vec::new(), Vec::new());
        let mut file = File::options().create(true).append(true).open(bench.directory.join("syncs"))?;
        for _ in 0..bench.reps {
            let (mut syncs, mut latencies) = (Vec::new(), Vec::new());
            // In turn, so that both meet the same disk.
            for _ in 0..SERIES {
                syncs.push(ms(sync(&mut file)?));
                let started = sys::now();
                clients[0].apply().await?;
                latencies.push(ms(sys::now() - started));
            }
            synced.push(median(&syncs));
            ours.push(median(&latencies));
            p99.push(percentile(&latencies, 0.99));
        }
        let one = Figure::ratio("durable", "durable apply, 1 client, p50", Target::AtMost(3.0), &ours, &synced, "ms")
            .note(format!("raw is append and fdatasync; p99 {:.2} ms", median(&p99)));
        let mut rates = Vec::new();
        for _ in 0..bench.reps {
            let (returned, rate) = rush(clients).await?;
            clients = returned;
            rates.push(rate);
        }
        let target = Target::AtLeast(4000.0);
        let many = Figure::median("durable", format!("durable applies, {CLIENTS} clients"), "/s", target, rates);
        anyhow::Ok((one, many))
    })?;
    daemon.stop()?;
    Ok(vec![one, many])
}

/// All clients at once, each one request after the other; acknowledged applies per second.
async fn rush(clients: Vec<Client>) -> anyhow::Result<(Vec<Client>, f64)> {
    let started = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for mut client in clients {
        tasks.spawn(async move {
            let mut applies = 0_u32;
            while started.elapsed() < RUSH {
                client.apply().await?;
                applies += 1;
            }
            anyhow::Ok((client, applies))
        });
    }
    let (mut clients, mut applies) = (Vec::new(), 0);
    while let Some(done) = tasks.join_next().await {
        let (client, count) = done??;
        clients.push(client);
        applies += count;
    }
    Ok((clients, f64::from(applies) / started.elapsed().as_secs_f64()))
}

/// A connection, and a process of its own to apply.
struct Client {
    api: OstlerClient<Channel>,
    name: String,
    version: u64,
}

impl Client {
    async fn new(socket: &Path, index: usize) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(socket).await.context("cannot connect to the daemon")?;
        let mut slot = Some(TokioIo::new(stream));
        let connector = tower::service_fn(move |_| {
            let stream = slot.take().ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected));
            async move { stream }
        });
        let channel = Endpoint::from_static("http://ostler").connect_with_connector(connector).await?;
        let mut client = Self { api: OstlerClient::new(channel), name: format!("client-{index}"), version: 0 };
        client.apply().await?;
        Ok(client)
    }

    /// Applies its process with another label than before.
    async fn apply(&mut self) -> anyhow::Result<()> {
        self.version += 1;
        let object = serde_json::json!({
            "apiVersion": "ostler.dev/v1",
            "kind": "Process",
            "metadata": {"name": self.name, "labels": {"version": self.version.to_string()}},
            "spec": {"replicas": 0, "command": ["/bin/true"], "workingDir": "/"},
        });
        let request = ApplyRequest { objects: vec![serde_json::to_vec(&object)?.into()], ..ApplyRequest::default() };
        let response = self.api.apply(request).await?.into_inner();
        let changed = response.results.first().is_some_and(|applied| applied.result() != applied::Result::Unchanged);
        ensure!(changed, "an apply changed nothing");
        Ok(())
    }
}

/// Nanoseconds of a small append and its fdatasync, on the disk of the state directory.
fn sync(file: &mut File) -> std::io::Result<u64> {
    let started = sys::now();
    file.write_all(&[b'x'; 256])?;
    file.sync_data()?;
    Ok(sys::now() - started)
}
