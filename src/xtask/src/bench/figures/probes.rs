//! Probes: what it costs to ask every instance once a second.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::ensure;

use super::fleet::{apply, idle_cpu};
use crate::bench::daemon::{Bench, Daemon, process};
use crate::bench::report::{Figure, Target, median};

/// Answers every request with 200, and counts them. In this process: what it costs is not measured.
struct Server {
    port: u16,
    answered: Arc<AtomicU64>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let (answered, ends) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (count, end) = (Arc::clone(&answered), Arc::clone(&ends));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if end.load(Ordering::Relaxed) {
                    return;
                }
                if stream.and_then(answer).is_ok() {
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Ok(Self { port, answered, ends, thread: Some(thread) })
    }

    fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    let (mut request, mut length) = ([0; 1024], 0);
    while !request[..length].ends_with(b"\r\n\r\n") {
        match stream.read(&mut request[length..])? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            read => length += read,
        }
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        // It waits for somebody to come.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// CPU time of the daemon while every instance is asked by HTTP once a second.
pub(super) fn probes(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let number = bench.instances;
    let server = Server::start()?;
    let daemon = Daemon::ready(bench, "probes")?;
    let probe = format!("  readinessProbe: {{httpGet: {{port: {}}}, interval: 1s, timeout: 1s}}\n", server.port);
    let text = process("fleet", number, &bench.board.command(&[]), &probe);
    let manifest = daemon.manifest("probes.yaml", &text)?;
    apply(bench, &daemon, &manifest, number)?;
    daemon.cli(&["wait", "process/fleet", "--for=condition=Ready", "--timeout=1m"])?;
    let (mut samples, mut rates, mut each) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bench.reps {
        let (before, began) = (server.answered(), Instant::now());
        let (cpu, _) = idle_cpu(&daemon, 1)?;
        let rate = (server.answered() - before) as f64 / began.elapsed().as_secs_f64();
        // Jitter lengthens an interval by up to a tenth.
        ensure!(rate > 0.8 * number as f64, "{rate:.0} requests came in a second");
        each.extend(cpu.iter().map(|cpu| cpu / rate * 1e3));
        samples.extend(cpu);
        rates.push(rate);
    }
    daemon.stop()?;
    let note = format!("{:.0} requests per second, {:.0} us each", median(&rates), median(&each));
    let what = format!("CPU per second, {number} instances with an HTTP probe every second");
    Ok(vec![Figure::median("probes", what, "ms", Target::None, samples).note(note)])
}
