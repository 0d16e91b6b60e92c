//! Which attempts are probed, and what the probes find, taken into the world.

use std::sync::Arc;
use std::time::Duration;

use ostler_core::Timestamp;
use ostler_core::kinds::{Health, InstanceStatus, Phase, ProbeKind, ProbesStatus, ProcessSpec};
use ostler_core::plan::instance::{Attempt, AttemptState};
use ostler_keeper::wire;
use ostler_probe::{News, Report, Target};

use super::world::{Id, InstanceEntry};
use super::{Controller, Request, custody};
use crate::driver::Driver;
use crate::spawn;

/// The attempt of an instance that is probed.
#[derive(Debug)]
pub(crate) struct Probing {
    attempt: u64,
    spec: Arc<ProcessSpec>,
}

impl Probing {
    /// Whether nothing has changed that probes depend on.
    fn is_current(&self, attempt: u64, spec: &Arc<ProcessSpec>) -> bool {
        let same = |kind| self.spec.probe(kind) == spec.probe(kind);
        self.attempt == attempt && (Arc::ptr_eq(&self.spec, spec) || ProbeKind::ALL.into_iter().all(same))
    }
}

/// The attempt whose probes are to run.
fn probed(entry: &InstanceEntry) -> Option<&Attempt> {
    entry.object.spec.template.probes().next()?;
    if entry.object.status.phase != Phase::Running || entry.object.status.fallback.is_some() {
        return None;
    }
    entry.observed.attempts.iter().rev().find(|attempt| attempt.state == AttemptState::Running)
}

impl<D: Driver> Controller<D> {
    /// Has the probes of an instance run while, and only while, it does.
    pub(crate) fn probe(&mut self, id: &Id, now: Timestamp) {
        let Some(entry) = self.world.instances.get(id) else { return };
        let Some(attempt) = probed(entry) else {
            if self.world.instances.get_mut(id).is_some_and(|entry| entry.probing.take().is_some()) {
                self.prober.forget(id);
            }
            return;
        };
        let spec = &entry.object.spec;
        if entry.probing.as_ref().is_some_and(|probing| probing.is_current(attempt.number, &spec.template)) {
            return;
        }
        let Some(identity) = &attempt.identity else { return };
        let given = self.given(&entry.object);
        let metadata = &entry.object.metadata;
        let target = Target {
            id: Arc::clone(id),
            uid: metadata.uid.clone(),
            attempt: attempt.number,
            age: Duration::from_micros(now.since(attempt.started_at).as_micros()),
            pid: identity.pid,
            start_time: identity.start_time,
            cgroup: entry.cgroup.as_deref().unwrap_or_default().to_owned(),
            ports: spec.ports.clone(),
            log_dir: spawn::log_dir(&metadata.namespace, &metadata.name),
            surroundings: spawn::surroundings(&entry.object, &given),
            spec: Arc::clone(&spec.template),
            known: known(&entry.object.status, attempt.number),
        };
        let probing = Probing { attempt: attempt.number, spec: Arc::clone(&entry.object.spec.template) };
        if let Some(entry) = self.world.instances.get_mut(id) {
            entry.probing = Some(Box::new(probing));
        }
        self.prober.watch(target);
    }

    /// Keeps what custody says of an instance besides its attempts: where its processes are, for probes that it has or
    /// may be given, and how its log is.
    pub(crate) fn note_surroundings(&mut self, id: &Id, state: &wire::State) {
        let Some(entry) = self.world.instances.get_mut(id) else { return };
        entry.observed.output = custody::output(state);
        entry.cgroup = (!state.cgroup.is_empty()).then(|| state.cgroup.as_str().into());
    }

    pub(crate) fn take_reports(&mut self, reports: Vec<Report>) {
        let now = self.now();
        for Report { id, attempt, news } in reports {
            let Some(entry) = self.world.instances.get_mut(&id) else { continue };
            let status = &entry.object.status;
            let probes = match &mut entry.observed.probes {
                Some(probes) if probes.attempt == attempt => probes,
                probes => probes.insert(
                    known(status, attempt)
                        .unwrap_or_else(|| Box::new(ProbesStatus { attempt, ..ProbesStatus::default() })),
                ),
            };
            match news {
                News::Verdict(kind, mut status) => {
                    let before = probes.get(kind);
                    let same = before.filter(|before| before.verdict == status.verdict);
                    let was = before.map_or(Health::Unknown, |before| before.verdict);
                    if was != status.verdict {
                        self.observer.verdict(&id, kind, was, &status);
                    }
                    status.since = same.map_or(Some(now), |before| before.since);
                    *probes.get_mut(kind) = Some(status);
                }
                News::Notify(status) => probes.notify = Some(Box::new(status)),
            }
            self.queue.add(Request::Instance(id));
        }
    }
}

/// What was published of this attempt.
fn known(status: &InstanceStatus, attempt: u64) -> Option<Box<ProbesStatus>> {
    status.probes.clone().filter(|probes| probes.attempt == attempt)
}
