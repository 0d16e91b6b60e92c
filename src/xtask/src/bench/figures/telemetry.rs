//! What telemetry costs: the same daemon and the same work without it, and with metrics that are scraped every second,
//! traces, and the output of processes as log records.
//!
//! The collector takes connections and never answers, which is the worst that one can do without being dead.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

use super::fleet::{apply, fleet, idle_cpu};
use super::ms;
use crate::bench::daemon::{Bench, Daemon, PATIENCE, cpu, process, pss};
use crate::bench::report::{Figure, Target, median, percentile};
use crate::bench::sys;

/// What one daemon gave.
#[derive(Default)]
struct Side {
    /// CPU at rest, milliseconds for each second.
    idle: Vec<f64>,
    /// Proportional share of memory, MB.
    memory: f64,
    /// From the kill of an instance to the beginning of its replacement, milliseconds.
    latency: Vec<f64>,
    /// CPU of keeper and controller for each of them, microseconds.
    restart: Vec<f64>,
    /// From the request for the metrics to their end, milliseconds.
    scrapes: Vec<f64>,
    /// Size of the metrics, KB.
    size: f64,
}

pub(super) fn telemetry(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let endpoint = format!("http://{}", silent.local_addr()?);
    let metrics = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let off = side(bench, "telemetry-off", &[], None)?;
    let listen = metrics.to_string();
    let flags = ["--metrics-listen", &listen, "--otlp-endpoint", &endpoint, "--otlp-logs"];
    let on = side(bench, "telemetry-on", &flags, Some(metrics.port()))?;
    let number = bench.instances;
    let compare = |what: String, unit, target, of: fn(&Side) -> &[f64]| {
        let figure = Figure::median("telemetry", what, unit, target, of(&on).to_vec());
        let value = median(of(&on)) - median(of(&off));
        figure.note(format!("{:.3} without, {value:+.3}", median(of(&off))))
    };
    let idle = format!("CPU per second with telemetry, {number} instances, scraped every second");
    let memory = Figure::median(
        "telemetry",
        format!("PSS that telemetry adds, {number} instances"),
        "MB",
        Target::None,
        vec![on.memory - off.memory],
    );
    let scrape = Figure::median(
        "telemetry",
        format!("scrape of /metrics, {number} instances"),
        "ms",
        Target::None,
        on.scrapes.clone(),
    );
    Ok(vec![
        compare(idle, "ms", Target::None, |side| &side.idle),
        compare("CPU for each restart with telemetry".to_owned(), "us", Target::None, |side| &side.restart),
        compare(
            "kill -9 until the replacement has exec'd, telemetry, p50".to_owned(),
            "ms",
            Target::AtMost(1.0),
            |side| &side.latency,
        )
        .note(format!(
            "p99 {:.3}, {:.3} without",
            percentile(&on.latency, 0.99),
            percentile(&off.latency, 0.99)
        )),
        memory.note(format!("{:.2} MB without", off.memory)),
        scrape.note(format!("{:.0} KB", on.size)),
    ])
}

fn side(bench: &Bench, name: &str, flags: &[&str], metrics: Option<u16>) -> anyhow::Result<Side> {
    /// Between two kills, so that each meets a daemon at rest.
    const REST: Duration = Duration::from_millis(15);
    let mut side = Side::default();
    let daemon = Daemon::with(bench, name, flags)?;
    let pids = daemon.pids()?;
    apply(bench, &daemon, &fleet(bench, &daemon, bench.instances)?, bench.instances)?;
    let web = daemon.manifest(&format!("{name}.yaml"), &process("web", 1, &bench.board.command(&[]), ""))?;
    let (began, _) = apply(bench, &daemon, &web, 1)?;
    let mut pid = began.first().context("no process began")?.pid;
    daemon.settle(Duration::from_secs(10))?;
    let scraper = metrics.map(Scraper::start);
    (side.idle, _) = idle_cpu(&daemon, bench.reps)?;
    if let Some(scraper) = scraper {
        (side.scrapes, side.size) = scraper.end()?;
    }
    for _ in 0..bench.reps {
        const KILLS: u32 = 40;
        let (before_cpu, mut taken) = (cpu(&pids)?, Vec::new());
        for _ in 0..KILLS {
            std::thread::sleep(REST);
            let before = bench.board.count()?;
            let killed = sys::now();
            ensure!(sys::kill(pid, libc::SIGKILL), "process {pid} is gone");
            let next = bench.board.wait(before, 1, PATIENCE)?[0];
            taken.push(ms(next.at.saturating_sub(killed)));
            pid = next.pid;
        }
        side.restart.push((cpu(&pids)? - before_cpu) as f64 / 1e3 / f64::from(KILLS));
        side.latency.extend(taken);
    }
    side.memory = pss(&pids)? as f64 / 1e6;
    daemon.stop()?;
    Ok(side)
}

/// Asks for the metrics once a second, as Prometheus would, until it is ended.
struct Scraper {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<anyhow::Result<(Vec<f64>, f64)>>,
}

impl Scraper {
    fn start(port: u16) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (mut times, mut size) = (Vec::new(), 0.0);
            while !ended.load(Ordering::Relaxed) {
                let began = sys::now();
                size = scrape(port)? as f64 / 1e3;
                times.push(ms(sys::now() - began));
                std::thread::sleep(Duration::from_secs(1));
            }
            Ok((times, size))
        });
        Self { stop, thread }
    }

    fn end(self) -> anyhow::Result<(Vec<f64>, f64)> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(result) => result,
            Err(_) => bail!("the scraper ended with a panic"),
        }
    }
}

/// Bytes of the answer.
fn scrape(port: u16) -> anyhow::Result<usize> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    ensure!(answer.starts_with(b"HTTP/1.1 200"), "/metrics answers with an error");
    Ok(answer.len())
}
