//! What telemetry reads whenever somebody collects: kept up to date by the controller's loop, read by any thread.
//!
//! Exists only while metrics are on. Nothing here decides anything; a reader holds the loop up for no longer than it takes
//! to add up what instances use.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use ostler_core::kinds::Phase;
use ostler_store::{Revision, Store};
use ostler_telemetry::Metrics;

use super::world::{Id, World, service_of};
use crate::usage::Sampler;

const PHASES: [Phase; 10] = [
    Phase::Pending,
    Phase::Starting,
    Phase::Running,
    Phase::Stopping,
    Phase::Stopped,
    Phase::Failed,
    Phase::Backoff,
    Phase::Stuck,
    Phase::Lost,
    Phase::Unknown,
];

/// How long a count of the bytes of logs is good for: it takes a look at every log directory.
const LOGS_FRESH: Duration = Duration::from_secs(10);
/// Gauges that are collected together share a look.
const FRESH: Duration = Duration::from_millis(500);

#[derive(Debug, Default)]
pub(crate) struct Board {
    queue: AtomicU64,
    seen: AtomicU64,
    phases: [AtomicU64; PHASES.len()],
    live: AtomicU64,
    /// Instances that are runs of Jobs, and what they are counted for.
    runs: Mutex<HashMap<Id, String>>,
}

impl Board {
    /// Registers everything that is read from it.
    pub(crate) fn new(metrics: &Metrics, store: Weak<dyn Store>, sampler: &Sampler, logs: PathBuf) -> Arc<Self> {
        let board = Arc::new(Self::default());
        observe(metrics, &board, store);
        usage(metrics, &board, sampler);
        log_size(metrics, logs);
        board
    }

    /// How much waits, and up to where changes were seen.
    pub(crate) fn round(&self, queue: usize, seen: Revision) {
        self.queue.store(queue as u64, Ordering::Relaxed);
        self.seen.store(seen, Ordering::Relaxed);
    }

    /// How many instances are in which phase.
    pub(crate) fn count(&self, world: &World) {
        let mut phases = [0; PHASES.len()];
        let mut live = 0;
        for (id, entry) in &world.instances {
            let object = &entry.object;
            phases[place(object.status.phase)] += 1;
            live += u64::from(object.status.pid.is_some());
            // Those that an earlier controller has started.
            if object.spec.job.is_some() {
                self.is_run(id, || format!("{}/{}", object.metadata.namespace, service_of(&world.jobs, object)));
            }
        }
        for (counter, count) in self.phases.iter().zip(phases) {
            counter.store(count, Ordering::Relaxed);
        }
        self.live.store(live, Ordering::Relaxed);
    }

    fn runs(&self) -> MutexGuard<'_, HashMap<Id, String>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An instance is a run of a Job, counted for `module`.
    pub(crate) fn is_run(&self, id: &Id, module: impl FnOnce() -> String) {
        let mut runs = self.runs();
        if !runs.contains_key(id) {
            runs.insert(id.clone(), module());
        }
    }

    /// An instance is no more.
    pub(crate) fn removed(&self, id: &Id) {
        self.runs().remove(id);
    }
}

const fn place(phase: Phase) -> usize {
    match phase {
        Phase::Pending => 0,
        Phase::Starting => 1,
        Phase::Running => 2,
        Phase::Stopping => 3,
        Phase::Stopped => 4,
        Phase::Failed => 5,
        Phase::Backoff => 6,
        Phase::Stuck => 7,
        Phase::Lost => 8,
        Phase::Unknown => 9,
    }
}

fn observe(metrics: &Metrics, board: &Arc<Board>, store: Weak<dyn Store>) {
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
    let queue = Arc::clone(board);
    metrics.observe_gauge("ostler.queue.depth", "{request}", "Objects that wait for a look", move |see| {
        see(read(&queue.queue), &[]);
    });
    let phases = Arc::clone(board);
    metrics.observe_gauge("ostler.instances", "{instance}", "Instances by phase", move |see| {
        for (phase, counter) in PHASES.iter().zip(&phases.phases) {
            see(read(counter), &[("phase", phase.name())]);
        }
    });
    let live = Arc::clone(board);
    metrics.observe_gauge("ostler.processes", "{process}", "Processes that live, by type", move |see| {
        see(1.0, &[("type", "controller")]);
        see(1.0, &[("type", "keeper")]);
        see(read(&live.live), &[("type", "instance")]);
    });
    let seen = Arc::clone(board);
    metrics.observe_gauge(
        "ostler.watch.lag",
        "{revision}",
        "Commits of the store that the controller has not seen yet",
        move |see| {
            if let Some(store) = store.upgrade() {
                let seen = seen.seen.load(Ordering::Relaxed);
                see(store.revision().saturating_sub(seen) as f64, &[]);
            }
        },
    );
}

/// What instances use, as it was sampled last: sums by module, so that the number of series does not follow that of
/// replicas.
fn usage(metrics: &Metrics, board: &Arc<Board>, sampler: &Sampler) {
    type Sums = BTreeMap<String, [f64; 4]>;
    let last: Mutex<Option<(Instant, Arc<Sums>)>> = Mutex::default();
    let (board, sampler) = (Arc::clone(board), sampler.clone());
    let look = Arc::new(move || {
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, sums)) = last.as_ref().filter(|(at, _)| at.elapsed() < FRESH) {
            return Arc::clone(sums);
        }
        let mut sums = Sums::new();
        let runs = board.runs();
        sampler.each(|id, usage| {
            // The ordinal ends the name of an instance.
            let of_process = || id.rsplit_once('-').map_or(&**id, |(module, _)| module);
            let module = runs.get(id).map_or_else(of_process, String::as_str);
            let add = |sum: &mut [f64; 4]| {
                sum[0] += f64::from(usage.cpu.unwrap_or_default()) / 1000.0;
                sum[1] += usage.rss as f64;
                sum[2] += f64::from(usage.threads);
                sum[3] += f64::from(usage.processes);
            };
            match sums.get_mut(module) {
                Some(sum) => add(sum),
                None => add(sums.entry(module.to_owned()).or_default()),
            }
        });
        let sums = Arc::new(sums);
        *last = Some((Instant::now(), Arc::clone(&sums)));
        sums
    });
    for (place, name, unit, description) in [
        (0, "ostler.module.cpu", "{cpu}", "CPUs in use by the instances of a process"),
        (1, "ostler.module.memory", "By", "Resident memory of the instances of a process"),
        (2, "ostler.module.threads", "{thread}", "Threads of the instances of a process"),
        (3, "ostler.module.processes", "{process}", "Operating system processes of the instances of a process"),
    ] {
        let look = Arc::clone(&look);
        metrics.observe_gauge(name, unit, description, move |see| {
            for (module, sum) in &*look() {
                see(sum[place], &[("module", module)]);
            }
        });
    }
}

fn log_size(metrics: &Metrics, logs: PathBuf) {
    let last: Mutex<Option<(Instant, u64)>> = Mutex::new(None);
    metrics.observe_gauge("ostler.log.size", "By", "Bytes of output that are kept on disk", move |see| {
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = last.filter(|(at, _)| at.elapsed() < LOGS_FRESH);
        let (at, bytes) = fresh.unwrap_or_else(|| (Instant::now(), size(&logs, 3)));
        *last = Some((at, bytes));
        see(bytes as f64, &[]);
    });
}

/// Bytes of the files below a directory, so many levels deep.
fn size(directory: &Path, depth: u32) -> u64 {
    let Ok(entries) = std::fs::read_dir(directory) else { return 0 };
    let of = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() && depth > 1 => size(&entry.path(), depth - 1),
        Ok(metadata) if metadata.is_file() => metadata.len(),
        Ok(_) | Err(_) => 0,
    };
    entries.flatten().map(of).sum()
}
