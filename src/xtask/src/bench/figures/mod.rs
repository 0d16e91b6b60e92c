//! The figures, grouped by what they need to run.

mod applies;
mod fleet;
mod logs;
mod many;
mod one;
mod probes;
mod source;
mod telemetry;

use super::daemon::Bench;
use super::report::Figure;

/// A measurement of one or more figures under one name.
pub(crate) struct Measurement {
    pub(crate) name: &'static str,
    /// What happens, for the progress on stderr.
    pub(crate) what: &'static str,
    pub(crate) run: fn(&Bench) -> anyhow::Result<Vec<Figure>>,
}

/// All of them, in the order they run.
pub(crate) const ALL: [Measurement; 16] = [
    Measurement { name: "start", what: "serve on an existing store until its processes exist", run: one::start },
    Measurement { name: "apply", what: "one manifest, one process with many replicas", run: fleet::apply_replicas },
    Measurement { name: "apply-docs", what: "one manifest, many processes", run: fleet::apply_documents },
    Measurement { name: "restart", what: "from the kill of an instance to its replacement", run: one::restart },
    Measurement { name: "memory", what: "memory of keeper and controller", run: fleet::memory },
    Measurement { name: "sampling", what: "what it costs to know what instances use", run: fleet::sampling },
    Measurement { name: "thresholds", what: "what it costs to compare that with levels", run: fleet::thresholds },
    Measurement { name: "idle", what: "CPU time while nothing happens", run: fleet::idle },
    Measurement { name: "telemetry", what: "the same work with telemetry off and on", run: telemetry::telemetry },
    Measurement { name: "probes", what: "CPU time while all are asked once a second", run: probes::probes },
    Measurement { name: "logs", what: "log capture", run: logs::capture },
    Measurement { name: "stop", what: "stopping many instances", run: fleet::stop },
    Measurement { name: "get", what: "ostler get instances", run: fleet::get },
    Measurement { name: "durable", what: "durable applies", run: applies::durable },
    Measurement { name: "source", what: "a saved file, and a large directory at rest", run: source::source },
    Measurement { name: "many", what: "as many instances as the limit of open files allows", run: many::many },
];

const MILLISECOND: f64 = 1e6;

fn ms(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / MILLISECOND
}
