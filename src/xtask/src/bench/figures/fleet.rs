//! Figures of a daemon with a thousand instances.

use std::fmt::Write as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use super::ms;
use crate::bench::board::{self, Began};
use crate::bench::daemon::{Bench, Daemon, PATIENCE, cpu, process, pss};
use crate::bench::raw::Workers;
use crate::bench::report::{Figure, Target, median};
use crate::bench::sys;

/// How long one look at the CPU time of an idle daemon is.
pub(super) const IDLE: Duration = Duration::from_secs(10);

/// Applies a manifest and waits until `number` workers have begun; the time from the start of the command to the last
/// beginning, nanoseconds.
pub(super) fn apply(
    bench: &Bench,
    daemon: &Daemon<'_>,
    manifest: &str,
    number: usize,
) -> anyhow::Result<(Vec<Began>, u64)> {
    let before = bench.board.count()?;
    let started = sys::now();
    let mut child = daemon.command(&["apply", "-f", manifest]).stdout(Stdio::null()).spawn()?;
    let began = bench.board.wait(before, number, PATIENCE * 2);
    let status = child.wait()?;
    ensure!(status.success(), "ostler apply failed: {status}");
    let began = began?;
    let took = board::last(&began) - started;
    Ok((began, took))
}

/// Waits until all of them are reaped, and tells when.
fn gone(began: &[Began]) -> anyhow::Result<u64> {
    let deadline = Instant::now() + PATIENCE;
    for one in began {
        while sys::exists(one.pid) {
            ensure!(Instant::now() < deadline, "process {} does not go", one.pid);
            sys::pause();
        }
    }
    Ok(sys::now())
}

pub(super) fn fleet(bench: &Bench, daemon: &Daemon<'_>, replicas: usize) -> anyhow::Result<String> {
    daemon.manifest("fleet.yaml", &process("fleet", replicas, &bench.board.command(&[]), ""))
}

pub(super) fn apply_replicas(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let number = bench.instances;
    compare_apply(bench, "apply", format!("apply of 1 process, {number} replicas, until all exist"), |daemon| {
        fleet(bench, daemon, number)
    })
}

pub(super) fn apply_documents(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let number = bench.instances;
    compare_apply(
        bench,
        "apply-docs",
        format!("apply of {number} processes in one manifest until all exist"),
        |daemon| {
            let command = bench.board.command(&[]);
            let mut text = String::new();
            for index in 0..number {
                writeln!(text, "---\n{}", process(&format!("fleet-{index}"), 1, &command, ""))?;
            }
            daemon.manifest("documents.yaml", &text)
        },
    )
}

fn compare_apply(
    bench: &Bench,
    name: &'static str,
    what: String,
    manifest: impl Fn(&Daemon<'_>) -> anyhow::Result<String>,
) -> anyhow::Result<Vec<Figure>> {
    let daemon = Daemon::ready(bench, name)?;
    let manifest = manifest(&daemon)?;
    let (mut ours, mut raw) = (Vec::new(), Vec::new());
    for _ in 0..bench.reps {
        let (workers, took) = Workers::spawn(&bench.board, bench.instances)?;
        raw.push(ms(took));
        workers.stop()?;
        daemon.settle(Duration::from_secs(5))?;
        let (began, took) = apply(bench, &daemon, &manifest, bench.instances)?;
        ours.push(ms(took));
        daemon.settle(Duration::from_secs(5))?;
        daemon.cli(&["delete", "processes", "--all"])?;
        gone(&began)?;
    }
    daemon.stop()?;
    Ok(vec![Figure::ratio(name, what, Target::AtMost(3.0), &ours, &raw, "ms")])
}

pub(super) fn memory(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    const FEW: usize = 10;
    // What a burst needed is given back when nothing has happened for a few seconds.
    const QUIET: Duration = Duration::from_secs(6);
    let (mut small, mut slope) = (Vec::new(), Vec::new());
    for rep in 0..bench.reps {
        let daemon = Daemon::ready(bench, &format!("memory-{rep}"))?;
        apply(bench, &daemon, &fleet(bench, &daemon, FEW)?, FEW)?;
        daemon.settle(Duration::from_secs(5))?;
        let pids = daemon.pids()?;
        std::thread::sleep(QUIET);
        let few = pss(&pids)?;
        apply(bench, &daemon, &fleet(bench, &daemon, bench.instances)?, bench.instances - FEW)?;
        daemon.settle(Duration::from_secs(5))?;
        std::thread::sleep(QUIET);
        let all = pss(&pids)?;
        small.push(few as f64 / 1e6);
        slope.push((all as f64 - few as f64) / 1e3 / (bench.instances - FEW) as f64);
        daemon.stop()?;
    }
    Ok(vec![
        Figure::median(
            "memory",
            "PSS of keeper and controller at rest, 10 instances",
            "MB",
            Target::AtMost(12.0),
            small,
        ),
        Figure::median(
            "memory",
            format!("PSS for each further instance up to {}", bench.instances),
            "KB",
            Target::AtMost(8.0),
            slope,
        ),
    ])
}

pub(super) fn idle(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let daemon = Daemon::ready(bench, "idle")?;
    apply(bench, &daemon, &fleet(bench, &daemon, bench.instances)?, bench.instances)?;
    daemon.settle(Duration::from_secs(10))?;
    let (samples, note) = idle_cpu(&daemon, bench.reps)?;
    daemon.stop()?;
    let what = format!("CPU per second, {} settled instances", bench.instances);
    Ok(vec![Figure::median("idle", what, "ms", Target::AtMost(1.0), samples).note(note)])
}

/// The cost of a sample as the daemon counts it itself, and of everything together while nothing else happens.
pub(super) fn sampling(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    sampled(bench, "sampling", "", "of one process each")
}

/// The same where each sample is compared with levels that nobody exceeds, of everything that is read each time.
pub(super) fn thresholds(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    const LEVELS: &str = "  restart: {startupGrace: 0s}\n  resources:\n    thresholds:\n      memory: {warning: 1Ti, critical: 2Ti}\n      \
                          cpu: {critical: '900'}\n      processes: {critical: 100000}\n      threads: {critical: 100000}\n";
    sampled(bench, "thresholds", LEVELS, "with four thresholds each")
}

fn sampled(bench: &Bench, name: &'static str, spec: &str, kind: &str) -> anyhow::Result<Vec<Figure>> {
    let daemon = Daemon::ready(bench, name)?;
    let manifest = process("fleet", bench.instances, &bench.board.command(&[]), spec);
    apply(bench, &daemon, &daemon.manifest("fleet.yaml", &manifest)?, bench.instances)?;
    daemon.settle(Duration::from_secs(10))?;
    let cost = || -> anyhow::Result<(f64, f64)> {
        let info: serde_json::Value = serde_json::from_str(&daemon.cli(&["info", "-o", "json"])?)?;
        let field = |name: &str| info[name].as_f64().with_context(|| format!("info has no {name}"));
        Ok((field("usageSamples")?, field("usageCpuNanos")?))
    };
    let (mut each, mut all) = (Vec::new(), Vec::new());
    for _ in 0..bench.reps {
        let (samples, nanos) = cost()?;
        let (idle, _) = idle_cpu(&daemon, 1)?;
        all.extend(idle);
        let (more, later) = cost()?;
        ensure!(more > samples, "no sample was taken in {} s", IDLE.as_secs());
        each.push((later - nanos) / (more - samples) / 1e3);
    }
    daemon.stop()?;
    let what = format!("CPU per sample, {} instances {kind}", bench.instances);
    let idle = format!("CPU per second, {} instances {kind}, sampled every 10 s", bench.instances);
    Ok(vec![
        Figure::median(name, what, "us", Target::AtMost(10.0), each),
        Figure::median(name, idle, "ms", Target::AtMost(3.0), all),
    ])
}

/// Milliseconds of CPU time for each second of each look, and what part is whose.
pub(super) fn idle_cpu(daemon: &Daemon<'_>, looks: usize) -> anyhow::Result<(Vec<f64>, String)> {
    let pids = daemon.pids()?;
    // The look above was a request, too.
    std::thread::sleep(Duration::from_secs(1));
    let (mut both, mut keeper) = (Vec::new(), Vec::new());
    for _ in 0..looks {
        let (start, before, before_keeper) = (sys::now(), cpu(&pids)?, cpu(&pids[..1])?);
        std::thread::sleep(IDLE);
        let seconds = (sys::now() - start) as f64 / 1e9;
        both.push(ms(cpu(&pids)? - before) / seconds);
        keeper.push(ms(cpu(&pids[..1])? - before_keeper) / seconds);
    }
    let note = format!("keeper {:.3} ms; {looks} times {} s", median(&keeper), IDLE.as_secs());
    Ok((both, note))
}

pub(super) fn stop(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let daemon = Daemon::ready(bench, "stop")?;
    let (mut began, _) = apply(bench, &daemon, &fleet(bench, &daemon, bench.instances)?, bench.instances)?;
    let (mut ours, mut raw) = (Vec::new(), Vec::new());
    for _ in 0..bench.reps {
        raw.push(ms(Workers::spawn(&bench.board, bench.instances)?.0.stop()?));
        daemon.settle(Duration::from_secs(5))?;
        let started = sys::now();
        let mut child = daemon.command(&["stop", "process/fleet"]).stdout(Stdio::null()).spawn()?;
        let ended = gone(&began);
        let status = child.wait()?;
        ensure!(status.success(), "ostler stop failed: {status}");
        ours.push(ms(ended? - started));
        let before = bench.board.count()?;
        daemon.cli(&["start", "process/fleet"])?;
        began = bench.board.wait(before, bench.instances, PATIENCE)?;
    }
    daemon.stop()?;
    let what = format!("stop of {} instances until the last is gone", bench.instances);
    Ok(vec![Figure::ratio("stop", what, Target::AtMost(3.0), &ours, &raw, "ms")])
}

pub(super) fn get(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let daemon = Daemon::ready(bench, "get")?;
    apply(bench, &daemon, &fleet(bench, &daemon, bench.instances)?, bench.instances)?;
    daemon.settle(Duration::from_secs(5))?;
    let time = |args: &[&str]| -> anyhow::Result<Vec<f64>> {
        let mut samples = Vec::new();
        for _ in 0..bench.reps.max(20) {
            let started = sys::now();
            let status = daemon.command(args).stdout(Stdio::null()).status()?;
            samples.push(ms(sys::now() - started));
            ensure!(status.success(), "ostler {} failed: {status}", args.join(" "));
        }
        Ok(samples)
    };
    let none = median(&time(&["get", "namespaces"])?);
    let figure = |what: &str, args: &[&str]| -> anyhow::Result<Figure> {
        let what = format!("{what}, {} instances, whole process", bench.instances);
        let note = format!("of that {none:.2} ms for a list of nothing");
        Ok(Figure::median("get", what, "ms", Target::AtMost(15.0), time(args)?).note(note))
    };
    let figures = vec![
        figure("get instances", &["get", "instances"])?,
        figure("get instances -o json", &["get", "instances", "-o", "json"])?,
    ];
    daemon.stop()?;
    Ok(figures)
}
