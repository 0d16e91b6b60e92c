//! Sources: how long a saved file takes to become a process, and what a large directory costs while nothing happens.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::ensure;

use super::fleet::idle_cpu;
use super::ms;
use crate::bench::daemon::{Bench, Daemon, PATIENCE, process};
use crate::bench::report::{Figure, Target, percentile};
use crate::bench::sys;

/// Files of the idle Source: as many as there are objects in one revision at most.
const FILES: usize = 10_000;
/// How often the idle directory is looked at; the default is six times as long.
const INTERVAL: &str = "10s";

pub(super) fn source(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    Ok(vec![save(bench)?, idle(bench)?])
}

/// A Source for a directory of manifests, each of one process with so many copies.
fn directory(bench: &Bench, name: &str, files: usize, replicas: usize) -> anyhow::Result<std::path::PathBuf> {
    let path = bench.directory.join(name);
    for file in 0..files {
        // A hundred in a directory, as repositories have it.
        let directory = path.join(format!("group-{}", file / 100));
        fs::create_dir_all(&directory)?;
        let text = process(&format!("p{file}"), replicas, &bench.board.command(&[]), "");
        fs::write(directory.join(format!("p{file}.yaml")), text)?;
    }
    Ok(path)
}

fn apply(daemon: &Daemon<'_>, name: &str, path: &Path, interval: &str) -> anyhow::Result<()> {
    let text = format!(
        "apiVersion: ostler.dev/v1\nkind: Source\nmetadata: {{name: {name}}}\nspec: {{path: {:?}, interval: {interval}}}\n",
        path.display().to_string()
    );
    let manifest = daemon.manifest(&format!("{name}.yaml"), &text)?;
    daemon.cli(&["apply", "-f", &manifest])?;
    daemon.cli(&["wait", &format!("source/{name}"), "--for=condition=Synced", "--timeout=2m"])?;
    Ok(())
}

/// From the rename that saves a file until the process that it changes has begun anew.
fn save(bench: &Bench) -> anyhow::Result<Figure> {
    let files = bench.instances;
    let daemon = Daemon::ready(bench, "source-save")?;
    let path = directory(bench, "saved", files, 1)?;
    let before = bench.board.count()?;
    apply(&daemon, "saved", &path, "10m")?;
    bench.board.wait(before, files, PATIENCE)?;
    daemon.settle(Duration::from_secs(30))?;
    let mut samples = Vec::new();
    for round in 0..(4 * bench.reps).max(20) {
        let file = path.join(format!("group-{}/p{}.yaml", round * 7 % files / 100, round * 7 % files));
        let env = format!("  env: [{{name: ROUND, value: \"{round}\"}}]\n");
        let text = process(&format!("p{}", round * 7 % files), 1, &bench.board.command(&[]), &env);
        let new = path.join("new");
        fs::write(&new, text)?;
        let before = bench.board.count()?;
        let started = sys::now();
        fs::rename(&new, &file)?;
        let began = bench.board.wait(before, 1, PATIENCE)?[0];
        samples.push(ms(began.at - started));
        daemon.settle(Duration::from_secs(10))?;
    }
    daemon.stop()?;
    let note = format!("p99 {:.0} ms; 100 ms of it wait for more to be saved", percentile(&samples, 0.99));
    let what = format!("save of 1 of {files} manifests until its process has its new pid");
    Ok(Figure::median("source", what, "ms", Target::None, samples).note(note))
}

/// CPU time of the daemon while nothing happens to a large directory.
fn idle(bench: &Bench) -> anyhow::Result<Figure> {
    let daemon = Daemon::ready(bench, "source-idle")?;
    let path = directory(bench, "idle", FILES, 0)?;
    let started = Instant::now();
    apply(&daemon, "idle", &path, INTERVAL)?;
    let took = started.elapsed();
    let objects = daemon.cli(&["get", "source", "idle", "-o", "jsonpath={.status.objects}"])?;
    ensure!(objects.trim() == FILES.to_string(), "{objects} objects are there, not {FILES}");
    daemon.settle(Duration::from_secs(30))?;
    let (samples, note) = idle_cpu(&daemon, bench.reps)?;
    daemon.stop()?;
    let what = format!("CPU per second, idle source of {FILES} files looked at every {INTERVAL}");
    let note = format!("{note}; applied in {:.1} s", took.as_secs_f64());
    Ok(Figure::median("source", what, "ms", Target::None, samples).note(note))
}
