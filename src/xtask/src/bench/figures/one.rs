//! Latencies that a user waits for: the start of the daemon, the replacement of what died.

use std::time::Duration;

use super::ms;
use crate::bench::board;
use crate::bench::daemon::{Bench, Daemon, PATIENCE, process};
use crate::bench::raw::Workers;
use crate::bench::report::{Figure, Target, median, percentile};
use crate::bench::sys;

/// From the fork of `serve` until ten workloads have begun; the daemon before was ended with its instances.
pub(super) fn start(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    const INSTANCES: usize = 10;
    let mut before = bench.board.count()?;
    let daemon = Daemon::ready(bench, "start")?;
    let manifest = daemon.manifest("start.yaml", &process("web", INSTANCES, &bench.board.command(&[]), ""))?;
    daemon.cli(&["apply", "-f", &manifest])?;
    bench.board.wait(before, INSTANCES, PATIENCE)?;
    daemon.stop()?;
    let (mut ours, mut raw) = (Vec::new(), Vec::new());
    for _ in 0..bench.reps.max(10) {
        before = bench.board.count()?;
        let started = sys::now();
        let daemon = Daemon::start(bench, "start")?;
        let began = bench.board.wait(before, INSTANCES, PATIENCE)?;
        ours.push(ms(board::last(&began) - started));
        daemon.settle(Duration::from_secs(2))?;
        daemon.stop()?;
        raw.push(ms(Workers::spawn(&bench.board, INSTANCES)?.1));
    }
    let note = format!("max {:.1} ms; raw loop {:.2} ms", percentile(&ours, 1.0), median(&raw));
    Ok(vec![Figure::median("start", "serve until 10 processes exist", "ms", Target::AtMost(20.0), ours).note(note)])
}

/// From SIGKILL to the beginning of the replacement.
pub(super) fn restart(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    /// Between two kills, so that each meets a daemon at rest.
    const REST: Duration = Duration::from_millis(15);
    let samples = (50 * bench.reps).max(200);
    let daemon = Daemon::ready(bench, "restart")?;
    let before = bench.board.count()?;
    let manifest = daemon.manifest("restart.yaml", &process("web", 1, &bench.board.command(&[]), ""))?;
    daemon.cli(&["apply", "-f", &manifest])?;
    let mut pid = bench.board.wait(before, 1, PATIENCE)?[0].pid;
    let argv = bench.board.argv(&[])?;
    let (mut worker, _) = Workers::spawn(&bench.board, 1)?;
    let (mut ours, mut raw) = (Vec::new(), Vec::new());
    // In turn, so that both meet the same machine.
    for _ in 0..samples {
        std::thread::sleep(REST);
        let before = bench.board.count()?;
        let killed = sys::now();
        sys::kill(pid, libc::SIGKILL);
        let next = bench.board.wait(before, 1, PATIENCE)?[0];
        ours.push(ms(next.at.saturating_sub(killed)));
        pid = next.pid;
        std::thread::sleep(REST);
        raw.push(ms(worker.replace(&bench.board, &argv)?));
    }
    daemon.stop()?;
    let figure = |what, share, target| {
        let mut figure = Figure::median("restart", what, "ms", Target::AtMost(target), ours.clone());
        figure.value = percentile(&ours, share);
        figure.note(format!("{samples} kills; raw kill, reap, spawn {:.3} ms", percentile(&raw, share)))
    };
    Ok(vec![
        figure("kill -9 until the replacement has exec'd, p50", 0.5, 1.0),
        figure("kill -9 until the replacement has exec'd, p99", 0.99, 5.0),
    ])
}
