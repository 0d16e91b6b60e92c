//! Decides which instances a `Process` should have, and which of them are replaced next.
//!
//! Pure. An instance is replaced in place: its spec gets the new template, and its own planner stops the old attempt and
//! starts the new one. Names stay as they are; copies beyond `replicas` (surge) have the ordinals after the last one, and
//! exist only while a rollout needs them. What is left over during a rollout (`replicas` less `maxUnavailable`) is counted
//! on every call from what the instances are, so no crash between two steps can make it less.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Note, rollout};
use crate::backoff;
use crate::kinds::{
    Backoff, Condition, Instance, InstanceSpec, PAUSED_AT, Phase, Process, ProcessSpec, ProcessStatus, RESTARTED_AT,
    RESTARTED_TOGETHER_AT, STOPPED_AT, Strategy, Truth, set_condition,
};
use crate::plan::instance::CONFIG_ERROR;
use crate::time::{Span, Timestamp};

/// What to change.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Instances to make. Their ports are still to be assigned.
    pub create: Vec<InstanceSpec>,
    /// Instances whose spec changes, by name. Ports that are new are still to be assigned.
    pub update: Vec<(String, InstanceSpec)>,
    /// Names of instances to delete.
    pub delete: Vec<String>,
    /// The status to publish.
    pub status: ProcessStatus,
    /// What to tell.
    pub notes: Vec<Note>,
    /// When to look again if nothing happens before.
    pub wake_at: Option<Timestamp>,
    /// Deletion was asked for and nothing is left: the object may go.
    pub remove: bool,
}

impl Plan {
    pub(super) fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }
}

/// The name of the copy `ordinal` of a process.
pub fn instance_name(process: &str, ordinal: u32) -> String {
    format!("{process}-{ordinal}")
}

/// The plan for one process with the instances that belong to it.
pub fn plan(process: &Process, instances: &[&Instance], now: Timestamp) -> Plan {
    let deleting = process.metadata.is_deleting();
    let mut plan = Plan {
        create: Vec::new(),
        update: Vec::new(),
        delete: Vec::new(),
        status: process.status.clone(),
        notes: Vec::new(),
        wake_at: None,
        remove: deleting && instances.is_empty(),
    };
    let declared = process.revision();
    if !deleting {
        rollout::observe(&mut plan.status, process, &declared, instances);
    }
    let goal = Goal::new(process, &plan.status, instances, declared);
    let members = Members::sort(&goal, instances, now);
    if !deleting {
        rollout::advance(&mut plan, process, &goal, &members, now);
    }
    create(&mut plan, process, &goal, &members, instances);
    match goal.strategy {
        Strategy::RollingUpdate => roll(&mut plan, &goal, &members),
        Strategy::Recreate => recreate(&mut plan, &goal, &members),
    }
    for name in &members.surplus {
        plan.delete.push((*name).to_owned());
    }
    publish(&mut plan, process, &goal, &members, now);
    plan
}

/// Leaves alone what serves, because what would take its place cannot be started: a ConfigMap or Secret is missing.
pub fn hold(plan: &mut Plan, instances: &[&Instance]) {
    plan.update.retain(|(name, spec)| {
        instances
            .iter()
            .find(|instance| instance.metadata.name == *name)
            .is_none_or(|instance| instance.spec.revision == spec.revision || !occupies(instance))
    });
}

/// What the instances are to become.
pub(super) struct Goal {
    /// Hash of the spec as it is declared.
    pub(super) declared: String,
    /// What instances get: the declared revision, or the last good one when that was taken back.
    pub(super) revision: String,
    template: Arc<ProcessSpec>,
    /// What instances keep that do not get it: the revision that was last rolled out completely, when it is another.
    pub(super) base: Option<(String, Arc<ProcessSpec>)>,
    pub(super) restarted_at: Option<Timestamp>,
    /// A restart of the whole group has begun: nobody goes on meanwhile.
    together: bool,
    pub(super) stopped_at: Option<Timestamp>,
    pub(super) paused: bool,
    pub(super) rolled_back: bool,
    pub(super) replicas: u32,
    strategy: Strategy,
    surge: u32,
    unavailable: u32,
    pub(super) partition: u32,
    pub(super) min_ready: Span,
    /// Copies beyond `replicas` may exist: a rollout from another revision, or a restart, is under way.
    surging: bool,
}

impl Goal {
    fn new(process: &Process, status: &ProcessStatus, instances: &[&Instance], declared: String) -> Self {
        let update = &process.spec.update;
        let replicas = if process.metadata.is_deleting() { 0 } else { process.spec.replicas() };
        let restarted_at = time(process, RESTARTED_AT);
        let stopped_at = time(process, STOPPED_AT);
        let current = Some(&status.current_revision).filter(|revision| !revision.is_empty() && **revision != declared);
        let base = current.and_then(|revision| {
            rollout::template(status, instances, revision).map(|template| (revision.clone(), template))
        });
        let taken_back = status
            .rollout
            .as_deref()
            .is_some_and(|it| it.rolled_back && it.revision == declared && it.restarted_at == restarted_at);
        let (revision, template, rolled_back) = match &base {
            Some((revision, template)) if taken_back => (revision.clone(), Arc::clone(template), true),
            Some(_) | None => (declared.clone(), Arc::new(process.spec.template()), false),
        };
        let (surge, unavailable) = update.limits(replicas);
        let together = restarted_at.is_some()
            && time(process, RESTARTED_TOGETHER_AT) == restarted_at
            && instances.iter().any(|instance| instance.spec.restarted_at < restarted_at);
        let rolling = status.rollout.as_deref().is_some_and(|rollout| rollout.replaces);
        Self {
            declared,
            revision,
            template,
            base,
            restarted_at,
            together,
            stopped_at,
            paused: update.paused || process.metadata.annotations.contains_key(PAUSED_AT),
            rolled_back,
            replicas,
            strategy: update.strategy,
            surge,
            unavailable,
            partition: update.partition,
            min_ready: update.min_ready,
            surging: rolling && !together && stopped_at.is_none() && replicas > 0,
        }
    }

    /// How many have to be available while instances are replaced.
    fn floor(&self) -> u32 {
        self.replicas.saturating_sub(self.unavailable)
    }

    /// Whether the instance of an ordinal is to get what is new.
    pub(super) fn is_eligible(&self, ordinal: u32) -> bool {
        !self.paused && ordinal >= self.partition
    }

    fn new_instance(&self, process: &Process, ordinal: u32) -> InstanceSpec {
        let base = self.base.as_ref().filter(|_| !self.is_eligible(ordinal) && !self.rolled_back);
        let (revision, template) = base.map_or((&self.revision, &self.template), |(revision, base)| (revision, base));
        InstanceSpec {
            process: process.metadata.name.clone(),
            job: None,
            ordinal,
            revision: revision.clone(),
            stopped_at: self.stopped_at,
            restarted_at: self.restarted_at,
            started_at: None,
            held: false,
            ports: BTreeMap::new(),
            template: Arc::clone(template),
        }
    }

    /// Whether an instance is already told to be what the process now is.
    pub(super) fn is_current(&self, instance: &Instance) -> bool {
        instance.spec.revision == self.revision && instance.spec.restarted_at >= self.restarted_at
    }

    /// Whether its present attempt is what the process now is.
    pub(super) fn is_updated(&self, instance: &Instance) -> bool {
        self.is_current(instance)
            && instance.status.revision == self.revision
            && instance.status.restarted_at >= self.restarted_at
    }

    fn renew(&self, spec: &mut InstanceSpec) {
        spec.revision.clone_from(&self.revision);
        spec.template = Arc::clone(&self.template);
        spec.restarted_at = spec.restarted_at.max(self.restarted_at);
        spec.ports.retain(|name, _| self.template.ports.iter().any(|port| port.name == *name));
    }

    /// What every instance gets at once: a stop of the process, and what of the template needs no restart. A single
    /// instance may also be stopped by itself.
    fn refresh(&self, instance: &Instance) -> InstanceSpec {
        let mut spec = instance.spec.clone();
        if self.stopped_at.is_some() {
            spec.stopped_at = spec.stopped_at.or(self.stopped_at);
        }
        if self.is_current(instance) {
            spec.template = Arc::clone(&self.template);
        }
        spec
    }
}

fn time(process: &Process, annotation: &str) -> Option<Timestamp> {
    process.metadata.annotations.get(annotation)?.parse().ok()
}

/// The instances of a process, by what they are to the plan.
pub(super) struct Members<'a> {
    /// Those with the ordinals that are wanted, without those on their way out, which are made anew when they are gone.
    pub(super) stable: BTreeMap<u32, &'a Instance>,
    /// Those beyond, that a rollout needs.
    pub(super) surge: BTreeMap<u32, &'a Instance>,
    /// Names of those to delete.
    surplus: Vec<&'a str>,
    min_ready: Span,
    now: Timestamp,
}

impl<'a> Members<'a> {
    fn sort(goal: &Goal, instances: &[&'a Instance], now: Timestamp) -> Self {
        let mut members = Self {
            stable: BTreeMap::new(),
            surge: BTreeMap::new(),
            surplus: Vec::new(),
            min_ready: goal.min_ready,
            now,
        };
        for instance in instances.iter().filter(|instance| !instance.metadata.is_deleting()) {
            let ordinal = instance.spec.ordinal;
            if ordinal < goal.replicas {
                members.stable.insert(ordinal, instance);
            } else {
                members.surge.insert(ordinal, instance);
            }
        }
        let finished = members.is_finished(goal);
        let kept = if goal.surging && !finished { goal.surge } else { 0 };
        members.surge.retain(|ordinal, instance| {
            let keep = *ordinal < goal.replicas.saturating_add(kept);
            if !keep {
                members.surplus.push(&instance.metadata.name);
            }
            keep
        });
        members
    }

    pub(super) fn is_available(&self, instance: &Instance) -> bool {
        is_available(instance, self.min_ready, self.now)
    }

    /// Whether a rollout need not wait for it.
    pub(super) fn is_settled(&self, instance: &Instance) -> bool {
        let steady = instance.status.started_at.is_none_or(|at| self.now >= at + STEADY || self.now < at);
        (steady && instance.status.fallback.is_none() && self.is_available(instance))
            || (instance.status.phase == Phase::Stopped
                && (instance.spec.stopped_at.is_some() || instance.status.reason == "Completed"))
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &'a Instance> + '_ {
        self.stable.values().chain(self.surge.values()).copied()
    }

    /// Whether every instance that is to be renewed is, and can be counted on.
    pub(super) fn is_finished(&self, goal: &Goal) -> bool {
        self.stable.len() as u64 == u64::from(goal.replicas)
            && self
                .stable
                .values()
                .filter(|instance| goal.partition <= instance.spec.ordinal)
                .all(|instance| goal.is_current(instance) && self.is_settled(instance))
    }

    /// The wanted instances that are to be renewed and are not.
    fn pending(&self, goal: &Goal) -> impl Iterator<Item = &'a Instance> {
        let eligible = |it: &Instance| goal.is_eligible(it.spec.ordinal) && !goal.is_current(it);
        self.stable.values().copied().filter(move |it| eligible(it))
    }
}

/// Whether replacing it would take something away that somebody may be using.
fn occupies(instance: &Instance) -> bool {
    match instance.status.phase {
        Phase::Running | Phase::Starting | Phase::Stopping | Phase::Stuck | Phase::Unknown => true,
        Phase::Pending | Phase::Stopped | Phase::Failed | Phase::Backoff | Phase::Lost => false,
    }
}

/// The longest time that an instance that crashed before has to run until it counts.
const PROBATION: Span = Span::from_secs(10);

/// How long an instance has to run until another one is taken because of it: what crashes at once is ready for a moment.
const STEADY: Span = Span::from_millis(500);

/// When an instance that runs what it should, and is ready, can be counted on: when it has been ready for `min_ready`,
/// and after a crash when it has outlived its backoff, for one that keeps crashing runs for a moment each time.
pub fn available_at(instance: &Instance, min_ready: Span) -> Option<Timestamp> {
    let Instance { spec, status, .. } = instance;
    let runs = status.phase == Phase::Running
        && status.ready
        && status.revision == spec.revision
        && status.restarted_at >= spec.restarted_at;
    if !runs {
        return None;
    }
    let begun = status.started_at.unwrap_or_default();
    let ready = status.conditions.iter().find(|it| it.kind == "Ready" && it.status == Truth::True);
    let ready = ready.and_then(|condition| condition.last_transition_time).unwrap_or(begun).max(begun);
    let backoff = Backoff { jitter: 0.0, ..spec.template.backoff.clone() };
    let proven = begun + backoff::delay(&backoff, status.streak, 0).min(PROBATION);
    Some((ready + min_ready).max(proven))
}

/// Whether it runs what it should, and can be counted on.
pub fn is_available(instance: &Instance, min_ready: Span, now: Timestamp) -> bool {
    available_at(instance, min_ready).is_some_and(|at| now >= at)
}

fn create(plan: &mut Plan, process: &Process, goal: &Goal, members: &Members<'_>, instances: &[&Instance]) {
    let exists = |ordinal: u32| instances.iter().any(|instance| instance.spec.ordinal == ordinal);
    let mut present = vec![false; goal.replicas as usize];
    for instance in instances {
        if let Some(slot) = present.get_mut(instance.spec.ordinal as usize) {
            *slot = true;
        }
    }
    for (ordinal, present) in (0..).zip(present) {
        if !present {
            plan.create.push(goal.new_instance(process, ordinal));
        }
    }
    if !goal.surging || goal.surge == 0 {
        return;
    }
    // Only for what can be taken: what does not run is renewed where it is.
    let pending = members.pending(goal).filter(|instance| occupies(instance)).count();
    let most = (goal.replicas + goal.surge) as usize;
    for ordinal in goal.replicas..goal.replicas.saturating_add(goal.surge) {
        let room = instances.len() + plan.create.len() < most;
        let wanted = plan.create.len() + members.surge.len() < pending;
        if room && wanted && !exists(ordinal) {
            plan.create.push(goal.new_instance(process, ordinal));
        }
    }
}

/// As many at a time as the limits allow.
fn roll(plan: &mut Plan, goal: &Goal, members: &Members<'_>) {
    let floor = goal.floor() as usize;
    let total = members.stable.len() + members.surge.len();
    let settled = members.all().filter(|instance| members.is_settled(instance)).count();
    let unsettled = members.all().filter(|it| goal.is_current(it) && !members.is_settled(it)).count();
    // What may be taken of those that are counted on, and of all that run.
    let mut spare = settled.saturating_sub(floor);
    let mut room = total.saturating_sub(floor).saturating_sub(unsettled);
    let mut renewed = BTreeSet::new();
    let mut take = |instance: &Instance| {
        let counts = members.is_settled(instance);
        let take = if !occupies(instance) || (goal.together && instance.spec.restarted_at < goal.restarted_at) {
            true
        } else if room > 0 && (!counts || spare > 0) {
            room -= 1;
            spare -= usize::from(counts);
            true
        } else {
            false
        };
        if take {
            renewed.insert(instance.spec.ordinal);
        }
    };
    let pending = |wanted: bool| {
        members.all().filter(move |it| {
            goal.is_eligible(it.spec.ordinal) && !goal.is_current(it) && members.is_settled(it) == wanted
        })
    };
    // Those that nobody counts on first: they cost nothing.
    pending(false).for_each(&mut take);
    pending(true).for_each(&mut take);
    for instance in members.all() {
        let mut spec = goal.refresh(instance);
        spec.held = false;
        if renewed.contains(&spec.ordinal) {
            goal.renew(&mut spec);
        }
        put(plan, instance, spec);
    }
}

/// First all stop, then all start.
fn recreate(plan: &mut Plan, goal: &Goal, members: &Members<'_>) {
    let pending: BTreeSet<u32> = members.pending(goal).map(|instance| instance.spec.ordinal).collect();
    let waits = members.pending(goal).any(occupies);
    for instance in members.all() {
        let mut spec = goal.refresh(instance);
        let is_pending = pending.contains(&spec.ordinal);
        spec.held = waits && (is_pending || (instance.spec.held && goal.is_current(instance)));
        if is_pending && !waits {
            goal.renew(&mut spec);
        }
        put(plan, instance, spec);
    }
    for spec in &mut plan.create {
        spec.held = waits;
    }
}

fn put(plan: &mut Plan, instance: &Instance, spec: InstanceSpec) {
    if spec != instance.spec {
        plan.update.push((instance.metadata.name.clone(), spec));
    }
}

fn publish(plan: &mut Plan, process: &Process, goal: &Goal, members: &Members<'_>, now: Timestamp) {
    let deleting = process.metadata.is_deleting();
    let count = |test: &dyn Fn(&Instance) -> bool| members.all().filter(|instance| test(instance)).count() as u32;
    let generation = process.metadata.generation;
    let all = goal.replicas;
    let available = count(&|instance| members.is_available(instance));
    let trouble = members
        .all()
        .find(|instance| {
            instance.status.fallback.is_some()
                || instance.status.reason == CONFIG_ERROR
                || matches!(instance.status.phase, Phase::Failed | Phase::Backoff | Phase::Stuck)
        })
        .map(|instance| format!("{}: {} {}", instance.metadata.name, instance.status.reason, instance.status.message));
    let idle = plan.update.is_empty() && plan.delete.is_empty() && plan.create.is_empty();
    let current = members.stable.values().filter(|it| goal.is_current(it) || it.spec.ordinal < goal.partition);
    let ready = current.filter(|instance| members.is_available(instance)).count() as u32;
    let whole = ready == all && idle && !goal.rolled_back;
    let (reason, message) = if deleting {
        ("Deleting", String::new())
    } else if goal.stopped_at.is_some() {
        ("Stopped", "stopped by hand; `ostler start` starts it".to_owned())
    } else if whole {
        ("AllReady", format!("{all} of {all} instances ready"))
    } else if let Some(failed) = plan.status.rollout.as_deref().filter(|_| goal.rolled_back) {
        ("RolledBack", failed.message.clone())
    } else if let Some(trouble) = trouble {
        ("InstanceTrouble", trouble)
    } else if goal.paused && plan.status.rollout.is_some() {
        ("Paused", format!("{ready} of {all} instances ready and current, rollouts are paused"))
    } else {
        ("Progressing", format!("{ready} of {all} instances ready"))
    };
    let rolling = plan.status.rollout.is_some();
    for instance in members.all() {
        let Some(at) = available_at(instance, goal.min_ready) else { continue };
        let steady = instance.status.started_at.filter(|_| rolling).map_or(at, |begun| begun + STEADY);
        if let Some(at) = [at, steady].into_iter().filter(|at| *at > now).min() {
            plan.wake(at);
        }
    }
    let (progressing, why, story) = rollout::progressing(&plan.status, goal, members);
    let enough = available >= goal.floor().max(1.min(all));
    let least = if enough { "MinimumReplicasAvailable" } else { "MinimumReplicasUnavailable" };
    let status = &mut plan.status;
    status.observed_generation = generation;
    status.replicas = (members.stable.len() + members.surge.len()) as u32;
    status.ready_replicas = count(&|instance| instance.status.ready);
    status.available_replicas = available;
    status.updated_replicas = if goal.rolled_back { 0 } else { count(&|instance| goal.is_updated(instance)) };
    let mut set = |kind: &str, truth: Truth, reason: &str, message: &str| {
        let condition = Condition {
            kind: kind.to_owned(),
            status: truth,
            reason: reason.to_owned(),
            message: message.to_owned(),
            last_transition_time: None,
            observed_generation: Some(generation),
        };
        set_condition(&mut status.conditions, condition, now);
    };
    set("Ready", Truth::from(whole && goal.stopped_at.is_none() && !deleting), reason, &message);
    set("Available", Truth::from(enough), least, "");
    set("Progressing", progressing, why, &story);
}

#[cfg(test)]
#[path = "process_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "rollout_tests.rs"]
mod rollout_tests;
