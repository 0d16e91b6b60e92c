//! Foretells in which order instances will be started, restarted and stopped.
//!
//! Pure: the planners that decide it for real ([`plan::process`](crate::plan::process), [`plan::job`](crate::plan::job),
//! [`plan::depend`](crate::plan::depend)) are asked again and again about a world of their own, on virtual time, in which
//! everything that is started becomes ready and everything that is stopped ends. So what they would do is not described a
//! second time here. Not foretold is what only the world can say: a start that fails, how long one takes.

use std::collections::{BTreeMap, BTreeSet};

use crate::graph::Node;
use crate::kinds::{
    API_VERSION, Condition, DependencyCondition, Instance, InstanceSpec, InstanceStatus, Job, Kind, Phase, Process,
    Truth, set_condition,
};
use crate::meta::Metadata;
use crate::plan::depend::{Subject, goes_first, leaving, unmet};
use crate::plan::instance::DEPENDENCY_TIMEOUT;
use crate::plan::{job, process};
use crate::time::{Span, Timestamp};

/// How long everything takes that takes time: to end, to become ready, to complete.
const MOMENT: Span = Span::from_millis(10);
/// What is decided so much later than anything else happens is not foretold; longer than an instance that crashed is on
/// probation.
const HORIZON: Span = Span::from_secs(15);
/// Instances that are looked at in all, lest a forecast for thousands of them takes many seconds.
const EFFORT: usize = 300_000;

/// A Process or Job as it will be declared, with the instances that it has now.
#[derive(Clone, Debug)]
pub struct Member {
    /// What it is.
    pub object: Declared,
    /// Its instances.
    pub instances: Vec<Instance>,
    /// A deletion of its namespace is under way, too.
    pub namespace_goes: bool,
}

/// What owns instances.
#[derive(Clone, Debug)]
pub enum Declared {
    /// A Process.
    Process(Box<Process>),
    /// A Job.
    Job(Box<Job>),
}

impl Declared {
    fn metadata(&self) -> &Metadata {
        match self {
            Self::Process(process) => &process.metadata,
            Self::Job(job) => &job.metadata,
        }
    }

    /// What names it.
    pub fn node(&self) -> Node {
        let kind = match self {
            Self::Process(_) => Kind::Process,
            Self::Job(_) => Kind::Job,
        };
        let Metadata { namespace, name, .. } = self.metadata();
        Node::new(kind, namespace.as_str(), name.as_str())
    }

    /// What it waits for.
    pub fn depends_on(&self) -> &[crate::kinds::Dependency] {
        match self {
            Self::Process(process) => &process.spec.depends_on,
            Self::Job(job) => &job.spec.template.spec().depends_on,
        }
    }
}

/// What happens to an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It is started, and did not run before.
    Start,
    /// It is started again.
    Restart,
    /// It ends, and is not started again.
    Stop,
}

/// One thing that will happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What.
    pub event: Event,
    /// Namespace of the instance.
    pub namespace: String,
    /// Its name.
    pub instance: String,
    /// Its place in the order, from 1. What has the same does not wait for each other.
    pub place: usize,
}

/// What will happen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forecast {
    /// In this order.
    pub steps: Vec<Step>,
    /// There is more, which was not worked out.
    pub more: bool,
}

/// What happens to these, with nothing else in the world.
pub fn forecast(members: Vec<Member>, now: Timestamp) -> Forecast {
    World::new(members, now).run()
}

/// An instance, and what it is about to do.
struct Copy {
    instance: Instance,
    /// It ran when the forecast began.
    ran: bool,
    due: Option<Timestamp>,
}

struct Owner {
    object: Declared,
    copies: Vec<Copy>,
    namespace_goes: bool,
    /// What it depends on, where that is in this world.
    on: Vec<Option<usize>>,
    /// Who depends on it.
    of: Vec<usize>,
    /// Somebody waits until it has completed.
    completes: bool,
    /// When its planner wants to look again.
    wake: Option<Timestamp>,
}

struct World {
    owners: Vec<Owner>,
    now: Timestamp,
    dirty: BTreeSet<usize>,
    effort: usize,
    forecast: Forecast,
    /// When the last step was.
    last: Option<Timestamp>,
}

impl World {
    fn new(members: Vec<Member>, now: Timestamp) -> Self {
        let index: BTreeMap<Node, usize> =
            members.iter().enumerate().map(|(index, member)| (member.object.node(), index)).collect();
        let mut owners: Vec<Owner> = members
            .into_iter()
            .map(|Member { object, instances, namespace_goes }| {
                let own = object.metadata().namespace.as_str();
                let on = object.depends_on().iter().map(|it| index.get(&Node::of(it, own)).copied()).collect();
                let copy = |instance: Instance| Copy { ran: instance.status.is_live(), instance, due: None };
                let copies = instances.into_iter().map(copy).collect();
                Owner { object, copies, namespace_goes, on, of: Vec::new(), completes: false, wake: None }
            })
            .collect();
        for owner in 0..owners.len() {
            for (place, target) in owners[owner].on.clone().into_iter().enumerate() {
                let Some(target) = target else { continue };
                let completed = owners[owner].object.depends_on()[place].condition() == DependencyCondition::Completed;
                owners[target].of.push(owner);
                owners[target].completes |= completed;
            }
        }
        let dirty = (0..owners.len()).collect();
        Self { owners, now, dirty, effort: 0, forecast: Forecast::default(), last: None }
    }

    fn run(mut self) -> Forecast {
        loop {
            if !self.settle() {
                self.forecast.more = true;
                return self.forecast;
            }
            let Some(next) = self.next() else { return self.forecast };
            self.now = next;
            for owner in 0..self.owners.len() {
                if self.pass(owner) {
                    self.touch(owner);
                }
            }
        }
    }

    /// Until nobody has anything to do in this moment; whether it came to that.
    fn settle(&mut self) -> bool {
        while !self.dirty.is_empty() {
            let round = std::mem::take(&mut self.dirty);
            // What is declared together is told to all before the first instance does anything.
            let planned: Vec<(usize, bool)> = round.into_iter().map(|owner| (owner, self.plan(owner))).collect();
            for (owner, changed) in planned {
                if self.react(owner) | changed {
                    self.touch(owner);
                }
            }
            if self.effort > EFFORT {
                return false;
            }
        }
        true
    }

    /// Something about an owner has changed: it is looked at again, and so is whoever may wait for it.
    fn touch(&mut self, owner: usize) {
        self.dirty.insert(owner);
        self.dirty.extend(self.owners[owner].of.iter().copied());
        self.dirty.extend(self.owners[owner].on.iter().flatten().copied());
    }

    /// The next time at which something happens.
    fn next(&self) -> Option<Timestamp> {
        let due = self.owners.iter().flat_map(|owner| &owner.copies).filter_map(|copy| copy.due).min();
        let wake = self.owners.iter().filter_map(|owner| {
            let ready = match &owner.object {
                Declared::Process(process) => process.spec.update.min_ready,
                Declared::Job(_) => Span::ZERO,
            };
            owner.wake.filter(|wake| *wake > self.now && *wake <= self.now + ready + HORIZON)
        });
        due.into_iter().chain(wake).min()
    }

    /// What time does: ends, and becoming ready. Whether anything did, or is to be looked at.
    fn pass(&mut self, index: usize) -> bool {
        let now = self.now;
        let owner = &mut self.owners[index];
        let mut changed = owner.wake.is_some_and(|wake| wake <= now);
        for copy in &mut owner.copies {
            if copy.due.is_none_or(|due| due > now) {
                continue;
            }
            (changed, copy.due) = (true, None);
            let status = &mut copy.instance.status;
            match status.phase {
                Phase::Running | Phase::Starting if status.ready || copy.instance.spec.job.is_some() => {
                    (status.phase, status.ready, status.done) = (Phase::Stopped, false, true);
                    status.ended_attempt = status.attempt;
                    "Completed".clone_into(&mut status.reason);
                }
                Phase::Running | Phase::Starting => {
                    (status.phase, status.ready) = (Phase::Running, true);
                    let ready = Condition {
                        kind: "Ready".to_owned(),
                        status: Truth::True,
                        reason: String::new(),
                        message: String::new(),
                        last_transition_time: None,
                        observed_generation: None,
                    };
                    set_condition(&mut status.conditions, ready, now);
                    copy.due = owner.completes.then_some(now + MOMENT);
                }
                Phase::Stopping | Phase::Stuck | Phase::Unknown => {
                    (status.phase, status.ended_attempt) = (Phase::Stopped, status.attempt);
                }
                Phase::Pending | Phase::Stopped | Phase::Failed | Phase::Backoff | Phase::Lost => {}
            }
        }
        changed
    }

    /// Asks the planner of an owner, and does as it says; whether anything changed.
    fn plan(&mut self, index: usize) -> bool {
        let now = self.now;
        let owner = &mut self.owners[index];
        let instances: Vec<&Instance> = owner.copies.iter().map(|copy| &copy.instance).collect();
        self.effort += 1 + instances.len();
        let (create, update, delete, stop);
        let mut changed = false;
        match &mut owner.object {
            Declared::Process(process) => {
                let plan = process::plan(process, &instances, now);
                changed |= process.status != plan.status;
                (process.status, owner.wake) = (plan.status, plan.wake_at);
                (create, update, delete, stop) = (plan.create, plan.update, plan.delete, Vec::new());
            }
            Declared::Job(job) => {
                let plan = job::plan(job, &instances, now);
                changed |= job.status != plan.status;
                (job.status, owner.wake) = (plan.status, plan.wake_at);
                (create, update, delete, stop) = (plan.create, Vec::new(), plan.delete, plan.stop);
            }
        }
        changed |= !(create.is_empty() && update.is_empty() && stop.is_empty());
        let Metadata { namespace, name, .. } = owner.object.metadata().clone();
        for (name, spec) in update {
            if let Some(copy) = owner.copies.iter_mut().find(|copy| copy.instance.metadata.name == name) {
                copy.instance.spec = spec;
            }
        }
        for copy in &mut owner.copies {
            let instance = &mut copy.instance;
            if stop.contains(&instance.metadata.name) {
                instance.spec.stopped_at = instance.spec.stopped_at.or(Some(now));
            }
            if delete.contains(&instance.metadata.name) && !instance.metadata.is_deleting() {
                instance.metadata.deletion_timestamp = Some(now);
                changed = true;
            }
        }
        for spec in create {
            let name = process::instance_name(&name, spec.ordinal);
            let metadata = Metadata { name, namespace: namespace.clone(), ..Metadata::default() };
            owner.copies.push(Copy { instance: made(metadata, spec), ran: false, due: None });
        }
        changed
    }

    /// Every instance of an owner does what it is told; whether one did anything.
    fn react(&mut self, index: usize) -> bool {
        let (now, mut changed) = (self.now, false);
        let mut place = 0;
        while let Some(copy) = self.owners[index].copies.get(place) {
            let (ran, due) = (copy.ran, copy.due);
            let Instance { metadata, spec, status, .. } = &copy.instance;
            let (phase, goes, held, is_run) = (status.phase, metadata.is_deleting(), spec.held, spec.job.is_some());
            let stop = goes || spec.stopped_at.is_some() || held;
            let outdated = status.revision != spec.revision || status.restarted_at < spec.restarted_at;
            let waits = matches!(phase, Phase::Pending | Phase::Lost)
                || status.reason == DEPENDENCY_TIMEOUT
                || (phase == Phase::Stopped && !status.done && !is_run);
            let moves = !status.ready || is_run || self.owners[index].completes;
            match phase {
                Phase::Running | Phase::Starting | Phase::Unknown if stop || outdated => {
                    if !self.first_to_stop(index, place) {
                        let copy = &mut self.owners[index].copies[place];
                        (copy.instance.status.phase, copy.instance.status.ready) = (Phase::Stopping, false);
                        copy.due = Some(now + MOMENT);
                        changed = true;
                    }
                }
                Phase::Running | Phase::Starting | Phase::Stopping => {
                    if due.is_none() && (moves || phase == Phase::Stopping) {
                        self.owners[index].copies[place].due = Some(now + MOMENT);
                    }
                }
                Phase::Stuck | Phase::Unknown => {}
                Phase::Pending | Phase::Stopped | Phase::Failed | Phase::Backoff | Phase::Lost if stop => {
                    if ran && !held {
                        self.step(Event::Stop, index, place);
                    }
                    let owner = &mut self.owners[index];
                    if goes {
                        owner.copies.remove(place);
                        changed = true;
                        continue;
                    }
                    let copy = &mut owner.copies[place];
                    changed |= phase != Phase::Stopped;
                    copy.instance.status.phase = Phase::Stopped;
                    copy.ran &= held;
                }
                Phase::Pending | Phase::Stopped | Phase::Failed | Phase::Backoff | Phase::Lost => {
                    if (waits || outdated) && self.may_start(index) {
                        self.step(if ran { Event::Restart } else { Event::Start }, index, place);
                        let copy = &mut self.owners[index].copies[place];
                        start(&mut copy.instance, now);
                        (copy.ran, copy.due, changed) = (true, Some(now + MOMENT), true);
                    }
                }
            }
            place += 1;
        }
        changed
    }

    fn step(&mut self, event: Event, index: usize, place: usize) {
        let number = self.forecast.steps.last().map_or(0, |step| step.place);
        let metadata = &self.owners[index].copies[place].instance.metadata;
        let (namespace, instance) = (metadata.namespace.clone(), metadata.name.clone());
        let place = if self.last == Some(self.now) { number } else { number + 1 };
        self.last = Some(self.now);
        self.forecast.steps.push(Step { event, namespace, instance, place });
    }

    /// Whether everything that instances of an owner depend on is there.
    fn may_start(&mut self, index: usize) -> bool {
        let owner = &self.owners[index];
        let mut wake = owner.wake;
        let mut met = true;
        for (dependency, target) in owner.object.depends_on().iter().zip(&owner.on) {
            let unmet = match target.map(|target| &self.owners[target]) {
                None => unmet(dependency, Subject::Missing, std::iter::empty(), self.now),
                Some(target) => {
                    self.effort += target.copies.len();
                    let subject = match &target.object {
                        Declared::Process(process) => Subject::Process(process),
                        Declared::Job(job) => Subject::Job(job),
                    };
                    unmet(dependency, subject, target.copies.iter().map(|copy| &copy.instance), self.now)
                }
            };
            if let Some(unmet) = unmet {
                met = false;
                wake = wake.into_iter().chain(unmet.met_at).min();
            }
        }
        self.owners[index].wake = wake;
        met
    }

    /// Whether somebody else has to stop before an instance.
    fn first_to_stop(&self, index: usize, place: usize) -> bool {
        let process = |owner: &'_ Owner| match &owner.object {
            Declared::Process(process) => Some(process.as_ref().clone()),
            Declared::Job(_) => None,
        };
        let owner = &self.owners[index];
        if owner.of.is_empty() {
            return false;
        }
        let Some(leaving) = leaving(&owner.copies[place].instance, process(owner).as_ref(), false) else {
            return false;
        };
        owner.of.iter().map(|other| &self.owners[*other]).any(|other| {
            let process = process(other);
            let first = |copy: &Copy| goes_first(&copy.instance, process.as_ref(), other.namespace_goes, leaving);
            other.copies.iter().any(first)
        })
    }
}

/// A new instance.
fn made(metadata: Metadata, spec: InstanceSpec) -> Instance {
    let status = InstanceStatus {
        revision: spec.revision.clone(),
        restarted_at: spec.restarted_at,
        ..InstanceStatus::default()
    };
    Instance { api_version: API_VERSION.to_owned(), kind: "Instance".to_owned(), metadata, spec, status }
}

/// A new attempt begins.
fn start(instance: &mut Instance, now: Timestamp) {
    let Instance { spec, status, .. } = instance;
    status.revision.clone_from(&spec.revision);
    status.restarted_at = spec.restarted_at;
    (status.phase, status.ready, status.done) = (Phase::Running, false, false);
    (status.streak, status.failures, status.fallback) = (0, 0, None);
    status.started_at = Some(now);
    status.attempt += 1;
    status.reason.clear();
    status.conditions.retain(|condition| condition.kind != "Ready");
}

#[cfg(test)]
#[path = "forecast_tests.rs"]
mod tests;
