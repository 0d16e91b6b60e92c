//! What instances and the machine use, as the API tells it.

use ostler_core::Kind;
use ostler_core::kinds::{Instance, Measure};
use ostler_core::threshold::Rules;
use ostler_core::usage::Network;
use ostler_engine::usage::{Id, Sample, Sampler};
use ostler_rpc::v1;
use ostler_store::Entry;

use crate::error::ApiError;

/// Whose usage is asked for: of instances unless it says otherwise.
pub(crate) fn kind(word: &str) -> Result<Kind, ApiError> {
    match crate::select::kind(if word.is_empty() { "instances" } else { word })? {
        kind @ (Kind::Instance | Kind::External) => Ok(kind),
        kind @ (Kind::Namespace
        | Kind::ConfigMap
        | Kind::Secret
        | Kind::Process
        | Kind::Job
        | Kind::CronJob
        | Kind::Source
        | Kind::Event) => Err(ApiError::bad(format!("{} have no usage of their own", kind.plural()))
            .hint("ask for instances or externals")),
    }
}

const SHARED_NETWORK: &str = "it shares its network namespace, and the kernel counts by namespace";

/// The usage of the instances in `entries` that run, read now.
pub(crate) async fn read(sampler: &Sampler, kind: Kind, entries: &[Entry], pss: bool) -> Vec<v1::InstanceUsage> {
    let id = |entry: &Entry| -> Id {
        let (namespace, name) = (entry.key.namespace(), entry.key.name());
        if kind == Kind::External {
            ostler_engine::external::usage_id(namespace, name)
        } else {
            format!("{namespace}/{name}").into()
        }
    };
    let ids: Vec<Id> = entries.iter().map(id).collect();
    let mut sizes = if pss {
        sampler.pss(ids).await
    } else {
        sampler.refresh(ids).await;
        std::collections::HashMap::new()
    };
    let mut all = Vec::with_capacity(entries.len());
    for entry in entries {
        let id = id(entry);
        let Some(sample) = sampler.get(&id) else { continue };
        all.push(v1::InstanceUsage {
            instance: Some(v1::Reference {
                kind: kind.name().to_owned(),
                namespace: entry.key.namespace().to_owned(),
                name: entry.key.name().to_owned(),
            }),
            pss: sizes.remove(&id),
            ..told(&sample, memory_limit(entry))
        });
    }
    all
}

/// What counts as its limit of memory.
fn memory_limit(entry: &Entry) -> Option<u64> {
    let instance: Instance = serde_json::from_slice(&entry.value).ok()?;
    let (spec, status) = (&instance.spec.template, instance.status.resources.as_deref());
    let limit = spec.limits_in_effect(status).and_then(|limits| limits.memory).map(|bytes| bytes.0);
    // Without a wall, where something is done about it.
    limit.or_else(|| {
        let rules = Rules::of(spec, status)?;
        rules.thresholds.iter().find(|(threshold, _)| threshold.measure == Measure::Memory)?.0.critical
    })
}

fn told(sample: &Sample, memory_limit: Option<u64>) -> v1::InstanceUsage {
    let Sample { pid, usage, history } = sample;
    let trend = history.memory_trend(memory_limit);
    v1::InstanceUsage {
        instance: None,
        pid: *pid,
        cpu_time: usage.cpu_time,
        rss: usage.rss,
        processes: usage.processes,
        threads: usage.threads,
        cpu: usage.cpu,
        open_files: usage.open_files,
        read_bytes: usage.io.map(|io| io.read),
        written_bytes: usage.io.map(|io| io.written),
        pss: None,
        network: match usage.network {
            Network::Unknown => None,
            Network::Unsupported => Some(v1::instance_usage::Network::NetworkUnsupported(SHARED_NETWORK.to_owned())),
            Network::Counted { received, sent } => {
                Some(v1::instance_usage::Network::NetworkCounted(v1::NetworkUsage { received, sent }))
            }
        },
        cpu_history: history.points().iter().map(|point| point.cpu).collect(),
        rss_history: history.points().iter().map(|point| u64::from(point.rss_kib) << 10).collect(),
        rss_per_hour: trend.map(|trend| trend.per_hour),
        memory_limit_in: trend.and_then(|trend| trend.until_limit).map(ostler_core::Span::as_secs),
    }
}

/// What the machine has, and how busy it is.
pub(crate) fn node() -> v1::NodeUsage {
    let cpus = std::thread::available_parallelism().map_or(1, |count| count.get() as u32);
    let (memory_total, memory_available) = sysinfo::System::new()
        .map(|mut system| {
            system.refresh_memory();
            (system.total_memory(), system.available_memory())
        })
        .unwrap_or_default();
    let load1 = sysinfo::System::load_average().map(|load| load.one).unwrap_or_default();
    v1::NodeUsage { cpus, memory_total, memory_available, load1 }
}
