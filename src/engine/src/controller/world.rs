//! What the controller knows: the objects as it last read or wrote them, and what custody showed of the instances.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use ostler_core::config::Origin;
use ostler_core::kinds::{CronJob, Instance, InstanceStatus, Job, Namespace, Phase, Process, ProcessSpec};
use ostler_core::object::parse_key;
use ostler_core::plan::instance::Observed;
use ostler_core::{Kind, Timestamp};
use ostler_store::{Event, Revision};
use serde::de::DeserializeOwned;

use super::Request;
use super::config::Held;
use super::depend::Dependencies;
use super::health::Probing;
use super::thresholds::Watching;

/// `namespace/name`; for namespaces `/name`.
pub(crate) type Id = Arc<str>;

/// Makes an [`Id`].
pub(crate) fn id(namespace: &str, name: &str) -> Id {
    format!("{namespace}/{name}").into()
}

/// A Process, and the revision it was read at, for compare-and-swap.
#[derive(Debug)]
pub(crate) struct ProcessEntry {
    pub(crate) object: Process,
    pub(crate) revision: Revision,
    /// A write of ours is under way; its outcome, or the watch, tells what to do next.
    pub(crate) writing: bool,
}

/// A Job or `CronJob`, likewise.
#[derive(Debug)]
pub(crate) struct Written<T> {
    pub(crate) object: T,
    pub(crate) revision: Revision,
    /// A write of ours is under way; nothing is decided until its outcome is known.
    pub(crate) writing: bool,
}

impl<T> Written<T> {
    pub(crate) fn new(object: T, revision: Revision) -> Self {
        Self { object, revision, writing: false }
    }
}

/// A Namespace, likewise.
#[derive(Debug)]
pub(crate) struct NamespaceEntry {
    pub(crate) object: Namespace,
    pub(crate) revision: Revision,
}

/// An Instance, of which the controller is the only writer.
#[derive(Debug)]
pub(crate) struct InstanceEntry {
    pub(crate) object: Instance,
    pub(crate) observed: Observed,
    /// Counts the changes of `object`.
    pub(crate) version: u64,
    /// The version that is known to be in the store.
    pub(crate) stored: u64,
    /// The version that has to be in the store before a process may be started from it.
    pub(crate) needs: u64,
    /// Ends that custody may forget once a version is in the store: attempt and version.
    pub(crate) forget: Vec<(u64, u64)>,
    /// The record is to be deleted, and then the entry.
    pub(crate) removing: bool,
    /// The attempt whose probes run.
    pub(crate) probing: Option<Box<Probing>>,
    /// The attempt whose usage is compared with thresholds.
    pub(crate) watching: Option<Box<Watching>>,
    /// Absolute path of the cgroup of the current attempt, when there is one.
    pub(crate) cgroup: Option<Box<str>>,
}

impl InstanceEntry {
    pub(crate) fn new(object: Instance) -> Self {
        let observed = Observed::default();
        Self {
            object,
            observed,
            version: 1,
            stored: 0,
            needs: 1,
            forget: Vec::new(),
            removing: false,
            probing: None,
            watching: None,
            cgroup: None,
        }
    }

    pub(crate) fn changed(&mut self) {
        self.version += 1;
    }

    /// Nothing may be started before the object as it is now is in the store.
    pub(crate) fn must_be_stored(&mut self) {
        self.needs = self.version;
    }
}

/// The id under which the instances of a Job are found; that of a Process is its own.
pub(crate) fn runs_of(job: &Id) -> Id {
    // No name has a slash at its end.
    format!("{job}/").into()
}

/// Whose instance it is, as a key of [`World::by_process`].
pub(crate) fn owner(instance: &Instance) -> Id {
    let id = id(&instance.metadata.namespace, instance.spec.owner());
    if instance.spec.job.is_some() { runs_of(&id) } else { id }
}

/// The Process or Job that has to be looked at when the instance has changed.
pub(crate) fn owner_request(instance: &Instance) -> Request {
    let id = id(&instance.metadata.namespace, instance.spec.owner());
    if instance.spec.job.is_some() { Request::Job(id) } else { Request::Process(id) }
}

/// The `CronJob` that a Job belongs to.
pub(crate) fn cronjob_of(job: &Job) -> Option<Id> {
    let owners = &job.metadata.owner_references;
    let owner = owners.iter().find(|owner| owner.kind == Kind::CronJob.name())?;
    Some(id(&job.metadata.namespace, &owner.name))
}

/// What an instance is a run of, by a name that lasts: each run of a `CronJob` has a Job with a name of its own.
pub(crate) fn service_of<'a>(jobs: &'a HashMap<Id, Written<Job>>, instance: &'a Instance) -> &'a str {
    let owner = instance.spec.owner();
    let job = instance.spec.job.as_ref().and_then(|_| jobs.get(&id(&instance.metadata.namespace, owner)));
    let references = job.map_or(&[][..], |job| &job.object.metadata.owner_references);
    references.iter().find(|reference| reference.kind == Kind::CronJob.name()).map_or(owner, |cronjob| &cronjob.name)
}

/// Everything the controller knows.
#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) namespaces: HashMap<Id, NamespaceEntry>,
    pub(crate) processes: HashMap<Id, ProcessEntry>,
    pub(crate) jobs: HashMap<Id, Written<Job>>,
    pub(crate) cronjobs: HashMap<Id, Written<CronJob>>,
    pub(crate) config: HashMap<(Origin, Id), Held>,
    /// Boxed: a table has room for up to twice as many as there are.
    pub(crate) instances: HashMap<Id, Box<InstanceEntry>>,
    /// Uid of an instance → its id.
    pub(crate) by_uid: HashMap<Arc<str>, Id>,
    /// Id of a process, or [`runs_of`] a job → its instances by ordinal.
    pub(crate) by_process: HashMap<Id, BTreeMap<u32, Id>>,
    pub(crate) dependencies: Dependencies,
    /// One copy of each template, whoever uses it.
    templates: HashMap<String, Arc<ProcessSpec>>,
}

/// Puts what the store has into a table; what cannot be read leaves it as it is.
fn take<T: DeserializeOwned>(table: &mut HashMap<Id, Written<T>>, id: &Id, value: Option<&[u8]>, revision: Revision) {
    match value {
        Some(value) => {
            if let Ok(object) = serde_json::from_slice(value) {
                table.insert(id.clone(), Written::new(object, revision));
            }
        }
        None => drop(table.remove(id)),
    }
}

impl World {
    /// Takes in an event of the store about anything but instances, and says what needs a look.
    pub(crate) fn apply(&mut self, event: &Event) -> Vec<Request> {
        let (kind, namespace, name) = parse_key(event.key.as_str()).unwrap_or((Kind::Process, "", ""));
        let id = id(namespace, name);
        let value = event.kind.value();
        if let Some(origin) = Origin::of(kind) {
            // What cannot be read is not there.
            if self.put_config(origin, &id, value.map(|value| &**value)).is_err() {
                self.config.remove(&(origin, id));
            }
            return self.dependents(origin, namespace, name);
        }
        match kind {
            Kind::Namespace => {
                let entry = value.and_then(|value| serde_json::from_slice(value).ok());
                match entry.map(|object| NamespaceEntry { object, revision: event.revision }) {
                    Some(entry) => drop(self.namespaces.insert(id.clone(), entry)),
                    None if value.is_none() => drop(self.namespaces.remove(&id)),
                    None => {}
                }
                vec![Request::Namespace(id)]
            }
            Kind::Job => {
                let before = self.jobs.get(&id).and_then(|entry| cronjob_of(&entry.object));
                take(&mut self.jobs, &id, value.map(Bytes::as_ref), event.revision);
                let after = self.jobs.get(&id).and_then(|entry| cronjob_of(&entry.object));
                let cronjobs = before.into_iter().chain(after).map(Request::CronJob);
                std::iter::once(Request::Job(id)).chain(cronjobs).collect()
            }
            Kind::CronJob => {
                take(&mut self.cronjobs, &id, value.map(Bytes::as_ref), event.revision);
                vec![Request::CronJob(id)]
            }
            Kind::Process
            | Kind::ConfigMap
            | Kind::Secret
            | Kind::Instance
            | Kind::Source
            | Kind::External
            | Kind::Event => {
                let entry = value.and_then(|value| serde_json::from_slice(value).ok());
                let entry = entry.map(|object| ProcessEntry { object, revision: event.revision, writing: false });
                // Status is what we wrote ourselves, and who wrote it looks again.
                let is_ours = entry.as_ref().zip(self.processes.get(&id)).is_some_and(|(new, old)| {
                    let (new, old): (&Process, &Process) = (&new.object, &old.object);
                    new.metadata == old.metadata && new.spec == old.spec
                });
                match entry {
                    Some(entry) => drop(self.processes.insert(id.clone(), entry)),
                    None if value.is_none() => drop(self.processes.remove(&id)),
                    None => {}
                }
                if is_ours { Vec::new() } else { vec![Request::Process(id)] }
            }
        }
    }

    pub(crate) fn insert_instance(&mut self, mut entry: InstanceEntry) -> Id {
        let metadata = &entry.object.metadata;
        let id = id(&metadata.namespace, &metadata.name);
        self.by_uid.insert(metadata.uid.as_str().into(), id.clone());
        self.by_process.entry(owner(&entry.object)).or_default().insert(entry.object.spec.ordinal, id.clone());
        self.share_template(&mut entry.object);
        self.instances.insert(id.clone(), Box::new(entry));
        id
    }

    /// Lets instances of the same revision share one template in memory.
    pub(crate) fn share_template(&mut self, instance: &mut Instance) {
        let key = format!("{}/{}/{}", instance.metadata.namespace, instance.spec.owner(), instance.spec.revision);
        match self.templates.get(&key) {
            Some(shared) if **shared == *instance.spec.template => instance.spec.template = Arc::clone(shared),
            _ => drop(self.templates.insert(key, Arc::clone(&instance.spec.template))),
        }
        if self.templates.len() > 2 * self.instances.len() + 64 {
            self.templates.retain(|_, template| Arc::strong_count(template) > 1);
        }
    }

    pub(crate) fn remove_instance(&mut self, id: &Id) -> Option<Box<InstanceEntry>> {
        let entry = self.instances.remove(id)?;
        let metadata = &entry.object.metadata;
        self.by_uid.remove(metadata.uid.as_str());
        let process = owner(&entry.object);
        if let Some(siblings) = self.by_process.get_mut(&process) {
            siblings.remove(&entry.object.spec.ordinal);
            if siblings.is_empty() {
                self.by_process.remove(&process);
            }
        }
        Some(entry)
    }

    /// The instances of a process, by ordinal.
    pub(crate) fn instances_of(&self, process: &Id) -> impl Iterator<Item = &InstanceEntry> {
        self.by_process.get(process).into_iter().flatten().filter_map(|(_, id)| self.instances.get(id).map(Box::as_ref))
    }

    /// How many instances a process has.
    pub(crate) fn count_of(&self, process: &Id) -> usize {
        self.by_process.get(process).map_or(0, BTreeMap::len)
    }

    /// Instances whose state could change without anybody saying so.
    pub(crate) fn restless(&self) -> Vec<Id> {
        let at_rest = |entry: &InstanceEntry| {
            let status = &entry.object.status;
            match status.phase {
                Phase::Running => entry.stored == entry.version,
                Phase::Stopped | Phase::Failed => {
                    !entry.object.metadata.is_deleting() && entry.forget.is_empty() && entry.stored == entry.version
                }
                Phase::Backoff => status.next_start_at.is_some(),
                Phase::Pending if entry.observed.waits.is_some() => entry.stored == entry.version,
                Phase::Pending | Phase::Starting | Phase::Stopping | Phase::Stuck | Phase::Lost | Phase::Unknown => {
                    false
                }
            }
        };
        self.instances.iter().filter(|(_, entry)| !at_rest(entry)).map(|(id, _)| id.clone()).collect()
    }

    /// Every port that some instance keeps or some spec names.
    pub(crate) fn ports(&self) -> HashSet<u16> {
        use ostler_core::kinds::PortNumber;
        let kept = self.instances.values().flat_map(|entry| entry.object.spec.ports.values().copied());
        let named =
            self.processes.values().flat_map(|entry| &entry.object.spec.ports).filter_map(|port| match port.port {
                PortNumber::Fixed(number) => Some(number.get()),
                PortNumber::Auto(_) => None,
            });
        kept.chain(named).collect()
    }

    /// Moves every time that decides something by what the clock was set.
    pub(crate) fn shift(&mut self, micros: i64) {
        let shift = |at: &mut Timestamp| *at = Timestamp::from_micros(at.as_micros().saturating_add(micros));
        for entry in self.processes.values_mut() {
            // Stored with the next change of the status.
            entry.object.status.rollout.iter_mut().filter_map(|it| it.progressed_at.as_mut()).for_each(shift);
        }
        for entry in self.instances.values_mut() {
            let InstanceStatus { next_start_at, waiting_since, breaker, stopping, started_at, conditions, .. } =
                &mut entry.object.status;
            // How long it has been ready decides whether it is available.
            conditions.iter_mut().filter_map(|it| it.last_transition_time.as_mut()).for_each(shift);
            next_start_at.iter_mut().for_each(shift);
            waiting_since.iter_mut().for_each(shift);
            started_at.iter_mut().for_each(shift);
            breaker.open_until.iter_mut().for_each(shift);
            breaker.failures.iter_mut().for_each(shift);
            if let Some(stopping) = stopping {
                shift(&mut stopping.since);
                shift(&mut stopping.kill_at);
            }
            if entry.object.spec.job.is_some() {
                // Decides when the next run is due.
                entry.object.status.last_exit.iter_mut().for_each(|exit| shift(&mut exit.at));
            }
            for attempt in &mut entry.observed.attempts {
                shift(&mut attempt.started_at);
            }
            entry.changed();
        }
        for job in self.jobs.values_mut() {
            let status = &mut job.object.status;
            status.start_time.iter_mut().for_each(shift);
            for condition in &mut status.conditions {
                condition.last_transition_time.iter_mut().for_each(shift);
            }
        }
        // Intervals are lengths of time; patterns follow the clock on the wall, wherever it goes.
        for cronjob in self.cronjobs.values_mut().filter(|entry| entry.object.spec.every.is_some()) {
            cronjob.object.status.last_schedule_time.iter_mut().for_each(shift);
        }
    }
}
