//! Log capture against a loop of splice calls.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::bench::board;
use crate::bench::daemon::{Bench, Daemon, PATIENCE, process};
use crate::bench::raw;
use crate::bench::report::{Figure, Target};
use crate::bench::sys;

/// What each writer prints: 5 million lines of 100 bytes.
const BYTES: u64 = 500_000_000;

pub(super) fn capture(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let daemon = Daemon::ready(bench, "logs")?;
    let bytes = BYTES.to_string();
    let policy = "  restartPolicy: Never\n  logs: {maxSize: 64Gi, maxFiles: 0}\n";
    let manifest = daemon.manifest("logs.yaml", &process("writer", 1, &bench.board.command(&[&bytes]), policy))?;
    let files = daemon.directory().join("logs/default/writer-0");
    let copy = bench.directory.join("copy");
    let rate = |nanoseconds: u64| BYTES as f64 / nanoseconds as f64 * 1e3;
    let (mut ours, mut raw) = (Vec::new(), Vec::new());
    // The first of each finds other caches than the rest, and is not counted.
    for rep in 0..=bench.reps {
        let copied = rate(raw::copy(&bench.board, BYTES, &copy)?);
        fs::remove_file(&copy)?;
        daemon.settle(Duration::from_secs(3))?;
        let before = bench.board.count()?;
        daemon.cli(&["apply", "-f", &manifest])?;
        let ended = complete(&files)?;
        let captured = rate(ended - board::last(&bench.board.wait(before, 1, PATIENCE)?));
        daemon.cli(&["delete", "process/writer"])?;
        if rep > 0 {
            raw.push(copied);
            ours.push(captured);
        }
    }
    daemon.stop()?;
    Ok(vec![Figure::ratio("logs", "log capture, 500 MB of 100-byte lines", Target::AtLeast(0.7), &ours, &raw, "MB/s")])
}

/// Waits until everything has arrived, and tells when.
fn complete(files: &Path) -> anyhow::Result<u64> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = sys::now();
        let arrived = size(files);
        if arrived == BYTES {
            return Ok(now);
        }
        ensure!(arrived < BYTES, "{arrived} bytes have arrived of {BYTES}");
        ensure!(Instant::now() < deadline, "only {arrived} of {BYTES} bytes have arrived");
        sys::pause();
    }
}

/// Bytes in the log files of a directory, which may not exist yet.
fn size(files: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(files) else { return 0 };
    entries
        .flatten()
        .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "log"))
        .filter_map(|entry| entry.metadata().ok())
        .map(|metadata| metadata.len())
        .sum()
}
