//! As many instances as there are descriptors for.

use std::time::Duration;

use super::fleet::{apply, idle_cpu};
use super::ms;
use crate::bench::daemon::{Bench, Daemon, process, pss};
use crate::bench::report::{Figure, Target, median};

/// Descriptors that keeper and controller hold for each instance: two pipes and a pidfd.
const EACH: u64 = 3;
/// Descriptors that are not for instances: log files, sockets, the reserve that the keeper refuses to use.
const OTHER: u64 = 400;

pub(super) fn many(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let fitting = usize::try_from(bench.open_files.saturating_sub(OTHER) / EACH)?;
    let number = bench.many.min(fitting);
    let daemon = Daemon::ready(bench, "many")?;
    let pids = daemon.pids()?;
    let empty = pss(&pids)?;
    let manifest = daemon.manifest("many.yaml", &process("many", number, &bench.board.command(&[]), ""))?;
    let (_, took) = apply(bench, &daemon, &manifest, number)?;
    daemon.settle(Duration::from_secs(20))?;
    let memory = pss(&pids)?;
    let (samples, note) = idle_cpu(&daemon, bench.reps)?;
    let tick = median(&samples);
    daemon.stop()?;
    let limit = format!("limit of open files {}; {:.3} ms each", bench.open_files, ms(took) / number as f64);
    let figure = |what: String, unit, value| Figure::median("many", what, unit, Target::None, vec![value]);
    Ok(vec![
        figure(format!("{number} of {} instances, until all exist", bench.many), "ms", ms(took)).note(limit),
        figure(format!("PSS with {number} instances"), "MB", memory as f64 / 1e6)
            .note(format!("{:.2} KB each", (memory as f64 - empty as f64) / 1e3 / number as f64)),
        Figure::median("many", format!("CPU per second, {number} settled instances"), "ms", Target::None, samples)
            .note(note)
            .note(format!("one tick a second, so at most {tick:.3} ms a tick")),
    ])
}
