//! The machine, and the daemon's own processes, read when somebody collects.

use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sysinfo::{MemoryRefreshKind, Pid, ProcessRefreshKind, ProcessesToUpdate, System};

use crate::Metrics;
use crate::metrics::See;

/// Callbacks of one collection share a look.
const FRESH: Duration = Duration::from_millis(500);

static KEEPER: AtomicI32 = AtomicI32::new(0);

impl Metrics {
    /// Process id of the keeper, 0 when there is none: its usage is reported beside that of this process.
    pub fn keeper(&self, pid: i32) {
        KEEPER.store(pid, Ordering::Relaxed);
    }
}

/// One of the daemon's own processes.
struct Own {
    role: &'static str,
    cpu_seconds: f64,
    memory: u64,
    virtual_memory: u64,
    threads: usize,
    files: Option<usize>,
    uptime: u64,
}

#[derive(Default)]
struct Look {
    at: Option<Instant>,
    memory_used: u64,
    memory_total: u64,
    own: Vec<Own>,
}

struct Node {
    system: System,
    look: Look,
}

impl Node {
    fn look(&mut self) -> &Look {
        if self.look.at.is_none_or(|at| at.elapsed() > FRESH) {
            let own = std::process::id() as i32;
            let roles = [("controller", own), ("keeper", KEEPER.load(Ordering::Relaxed))];
            let pids: Vec<Pid> =
                roles.iter().filter(|(_, pid)| *pid > 0).map(|(_, pid)| Pid::from(*pid as usize)).collect();
            self.system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
            self.system.refresh_processes_specifics(
                ProcessesToUpdate::Some(&pids),
                true,
                ProcessRefreshKind::nothing().with_memory().with_cpu().with_tasks(),
            );
            self.look = Look {
                at: Some(Instant::now()),
                memory_used: self.system.used_memory(),
                memory_total: self.system.total_memory(),
                own: roles
                    .iter()
                    .filter_map(|(role, pid)| {
                        let process = self.system.process(Pid::from(usize::try_from(*pid).ok()?))?;
                        Some(Own {
                            role,
                            cpu_seconds: process.accumulated_cpu_time() as f64 / 1000.0,
                            memory: process.memory(),
                            virtual_memory: process.virtual_memory(),
                            threads: process.tasks().map_or(0, std::collections::HashSet::len).max(1),
                            files: process.open_files(),
                            uptime: process.run_time(),
                        })
                    })
                    .collect(),
            };
        }
        &self.look
    }
}

pub(crate) fn observe(metrics: &Metrics) {
    let system = match System::new() {
        Ok(system) => system,
        Err(why) => {
            tracing::warn!(%why, "no metrics of the machine");
            return;
        }
    };
    let node = Arc::new(Mutex::new(Node { system, look: Look::default() }));
    let read = |report: fn(&Look, &mut See<'_>)| {
        let node = Arc::clone(&node);
        move |see: &mut See<'_>| report(node.lock().unwrap_or_else(PoisonError::into_inner).look(), see)
    };
    let began = Instant::now();
    metrics.observe_gauge("ostler.process.uptime", "s", "How long this controller has run", move |see| {
        see(began.elapsed().as_secs_f64(), &[]);
    });
    metrics.observe_gauge("ostler.system.load", "", "Load average of the machine over one minute", |see| {
        if let Ok(load) = System::load_average() {
            see(load.one, &[]);
        }
    });
    metrics.observe_gauge(
        "ostler.memory.usage",
        "By",
        "Memory of the machine that is in use",
        read(|look, see| see(look.memory_used as f64, &[])),
    );
    metrics.observe_gauge(
        "ostler.memory.size",
        "By",
        "Memory that the machine has",
        read(|look, see| see(look.memory_total as f64, &[])),
    );
    metrics.observe_gauge(
        "ostler.process.memory",
        "By",
        "Resident memory by type of process: keeper and controller",
        read(|look, see| look.own.iter().for_each(|own| see(own.memory as f64, &[("type", own.role)]))),
    );
    metrics.observe_counter(
        "process.cpu.time",
        "s",
        "CPU time used",
        read(|look, see| look.own.iter().for_each(|own| see(own.cpu_seconds, &[(ROLE, own.role)]))),
    );
    metrics.observe_gauge(
        "process.memory.usage",
        "By",
        "Resident memory",
        read(|look, see| look.own.iter().for_each(|own| see(own.memory as f64, &[(ROLE, own.role)]))),
    );
    metrics.observe_gauge(
        "process.memory.virtual",
        "By",
        "Address space in use",
        read(|look, see| look.own.iter().for_each(|own| see(own.virtual_memory as f64, &[(ROLE, own.role)]))),
    );
    metrics.observe_gauge(
        "process.thread.count",
        "{thread}",
        "Threads",
        read(|look, see| look.own.iter().for_each(|own| see(own.threads as f64, &[(ROLE, own.role)]))),
    );
    metrics.observe_gauge(
        "process.unix.file_descriptor.count",
        "{file_descriptor}",
        "Open file descriptors",
        read(|look, see| {
            for own in &look.own {
                if let Some(files) = own.files {
                    see(files as f64, &[(ROLE, own.role)]);
                }
            }
        }),
    );
    metrics.observe_gauge(
        "process.uptime",
        "s",
        "How long the process has run",
        read(|look, see| look.own.iter().for_each(|own| see(own.uptime as f64, &[(ROLE, own.role)]))),
    );
}

/// Which process: semantic conventions have one process for each source, and we speak for two.
const ROLE: &str = "ostler.process.type";
