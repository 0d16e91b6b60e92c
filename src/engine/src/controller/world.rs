//! What the controller knows: the objects as it last read or wrote them, and what custody showed of the instances.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use ostler_core::kinds::{Instance, InstanceStatus, Namespace, Phase, Process, ProcessSpec};
use ostler_core::object::parse_key;
use ostler_core::plan::instance::Observed;
use ostler_core::{Kind, Timestamp};
use ostler_store::{Event, EventKind, Revision};

use super::Request;
use super::health::Probing;

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
    /// Absolute path of the cgroup of the current attempt, when there is one and probes that need it.
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

/// Everything the controller knows.
#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) namespaces: HashMap<Id, NamespaceEntry>,
    pub(crate) processes: HashMap<Id, ProcessEntry>,
    /// Boxed: a table has room for up to twice as many as there are.
    pub(crate) instances: HashMap<Id, Box<InstanceEntry>>,
    /// Uid of an instance → its id.
    pub(crate) by_uid: HashMap<Arc<str>, Id>,
    /// Id of a process → its instances by ordinal.
    pub(crate) by_process: HashMap<Id, BTreeMap<u32, Id>>,
    /// One copy of each template, whoever uses it.
    templates: HashMap<String, Arc<ProcessSpec>>,
}

impl World {
    /// Takes in an event of the store about a Process or Namespace, and says what needs a look.
    pub(crate) fn apply(&mut self, event: &Event) -> Request {
        let (kind, namespace, name) = parse_key(event.key.as_str()).unwrap_or((Kind::Process, "", ""));
        let id = id(namespace, name);
        match (kind, &event.kind) {
            (Kind::Namespace, EventKind::Put(value)) => {
                if let Ok(object) = serde_json::from_slice(value) {
                    self.namespaces.insert(id.clone(), NamespaceEntry { object, revision: event.revision });
                }
                Request::Namespace(id)
            }
            (Kind::Namespace, EventKind::Delete) => {
                self.namespaces.remove(&id);
                Request::Namespace(id)
            }
            (Kind::Process, EventKind::Put(value)) => {
                if let Ok(object) = serde_json::from_slice(value) {
                    self.processes
                        .insert(id.clone(), ProcessEntry { object, revision: event.revision, writing: false });
                }
                Request::Process(id)
            }
            (Kind::Process | Kind::Instance | Kind::Source | Kind::Event, _) => {
                self.processes.remove(&id);
                Request::Process(id)
            }
        }
    }

    pub(crate) fn insert_instance(&mut self, mut entry: InstanceEntry) -> Id {
        let metadata = &entry.object.metadata;
        let id = id(&metadata.namespace, &metadata.name);
        self.by_uid.insert(metadata.uid.as_str().into(), id.clone());
        let process = self::id(&metadata.namespace, &entry.object.spec.process);
        self.by_process.entry(process).or_default().insert(entry.object.spec.ordinal, id.clone());
        self.share_template(&mut entry.object);
        self.instances.insert(id.clone(), Box::new(entry));
        id
    }

    /// Lets instances of the same revision share one template in memory.
    pub(crate) fn share_template(&mut self, instance: &mut Instance) {
        let key = format!("{}/{}/{}", instance.metadata.namespace, instance.spec.process, instance.spec.revision);
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
        let process = self::id(&metadata.namespace, &entry.object.spec.process);
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
        for entry in self.instances.values_mut() {
            let InstanceStatus { next_start_at, breaker, stopping, started_at, .. } = &mut entry.object.status;
            next_start_at.iter_mut().for_each(shift);
            started_at.iter_mut().for_each(shift);
            breaker.open_until.iter_mut().for_each(shift);
            breaker.failures.iter_mut().for_each(shift);
            if let Some(stopping) = stopping {
                shift(&mut stopping.since);
                shift(&mut stopping.kill_at);
            }
            for attempt in &mut entry.observed.attempts {
                shift(&mut attempt.started_at);
            }
            entry.changed();
        }
    }
}
