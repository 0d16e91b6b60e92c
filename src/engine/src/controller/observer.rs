//! What the controller tells telemetry: measures what happens, and makes spans of what is done.
//!
//! Boundary: watches and never decides; everything is nothing when telemetry is off. A change that somebody asked for
//! is followed in the trace of the request until its instances are at rest. What happens later by itself, such as a
//! crash, begins a trace of its own that is linked to that of the last request.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use ostler_core::Metadata;
use ostler_core::kinds::{
    Condition, Health, Instance, InstanceStatus, Phase, ProbeKind, ProbeStatus, Process, ProcessStatus, TRACEPARENT,
    Truth,
};
use ostler_core::plan::instance::{Action, Attempt, AttemptState, Plan};
use ostler_store::{Revision, Store};
use ostler_telemetry::{Metrics, TARGET, child_of, link, metrics, traceparent};
use tracing::field::Empty;
use tracing::{Level, Span, info_span};

use super::Request;
use super::board::Board;
use super::world::{Id, World, id};
use crate::usage::Sampler;

/// Ends of attempts that are followed in one trace; an instance that crashes on begins another one.
const ENDS: u8 = 3;
/// What is under way with an instance.
#[derive(Debug)]
struct Journey {
    /// What the next span goes on from.
    parent: String,
    ends: u8,
    start: Option<Span>,
    stop: Option<Span>,
}

#[derive(Debug, Default)]
struct Traces {
    journeys: HashMap<Id, Journey>,
    /// Processes whose last change is still being carried out, with its trace.
    rollouts: HashMap<Id, String>,
    /// The trace of the last change that was seen of a process.
    known: HashMap<Id, String>,
}

#[derive(Debug)]
pub(crate) struct Observer {
    board: Option<Arc<Board>>,
    traces: Option<Box<Traces>>,
    /// Starts that are under way.
    starts: HashMap<Id, Instant>,
}

impl Observer {
    pub(crate) fn new(store: &Arc<dyn Store>, sampler: &Sampler, state_dir: &Path) -> Self {
        let board =
            metrics().map(|metrics| Board::new(metrics, Arc::downgrade(store), sampler, state_dir.join("logs")));
        let traces = tracing::span_enabled!(target: TARGET, Level::INFO).then(Box::default);
        Self { board, traces, starts: HashMap::new() }
    }

    /// When a look begins; nothing when nobody wants to know.
    pub(crate) fn begin(&self) -> Option<Instant> {
        self.board.as_ref().map(|_| Instant::now())
    }

    pub(crate) fn reconciled(kind: &'static str, began: Option<Instant>) {
        if let (Some(began), Some(metrics)) = (began, metrics()) {
            metrics.reconciled(kind, began.elapsed());
        }
    }

    /// How much waits, and up to where changes were seen.
    pub(crate) fn round(&self, queue: usize, seen: impl FnOnce() -> Revision) {
        if let Some(board) = &self.board {
            board.round(queue, seen());
        }
    }

    /// Once a tick: how many instances are in which phase.
    pub(crate) fn count(&self, world: &World) {
        if let Some(board) = &self.board {
            board.count(world);
        }
    }

    pub(crate) fn keeper(pid: i32) {
        if let Some(metrics) = metrics() {
            metrics.keeper(pid);
        }
    }

    pub(crate) fn traces(&self) -> bool {
        self.traces.is_some()
    }

    /// A plan for an instance that changes something or acts. Call before its status is taken over; the span is for the
    /// actions.
    pub(crate) fn planned(
        &mut self,
        instance_id: &Id,
        object: &Instance,
        owner: Option<&Metadata>,
        service: &str,
        plan: &Plan,
    ) -> Span {
        let before = &object.status;
        let after = &plan.status;
        let module = || format!("{}/{service}", object.metadata.namespace);
        if let (Some(metrics), Some(board)) = (metrics(), &self.board) {
            measure(metrics, before, after, module);
            if object.spec.job.is_some() {
                board.is_run(instance_id, module);
            }
        }
        let Some(traces) = &mut self.traces else { return Span::none() };
        let moved = before.phase != after.phase || before.ready != after.ready || before.reason != after.reason;
        // What is tidied up after all is over is no story of its own.
        let tidying = |action: &Action| matches!(action, Action::Record | Action::Forget { .. });
        if !moved && !traces.journeys.contains_key(instance_id) && plan.actions.iter().all(tidying) {
            return Span::none();
        }
        if !moved && plan.actions.is_empty() {
            return Span::none();
        }
        let ended = after.ended_attempt > before.ended_attempt;
        if ended && traces.journeys.get(instance_id).is_some_and(|journey| journey.ends >= ENDS) {
            traces.journeys.remove(instance_id);
        }
        let span = info_span!(
            target: TARGET, parent: None, "reconcile",
            otel.name = "reconcile Instance",
            ostler.kind = "Instance",
            ostler.namespace = object.metadata.namespace,
            ostler.process = object.spec.owner(),
            ostler.instance = object.metadata.name,
            ostler.instance.uid = object.metadata.uid,
            ostler.phase.from = before.phase.name(),
            ostler.phase.to = after.phase.name(),
            ostler.ready.from = before.ready,
            ostler.ready.to = after.ready,
            ostler.reason = after.reason,
            ostler.message = after.message,
            ostler.attempt = after.attempt,
            ostler.exit = Empty,
        );
        if ended && let Some(exit) = &after.last_exit {
            span.record("ostler.exit", tracing::field::debug(&exit.status));
        }
        if let Some(journey) = traces.journeys.get_mut(instance_id) {
            child_of(&span, &journey.parent);
            journey.ends += u8::from(ended);
            if ended {
                journey.stop = None;
            }
        } else {
            let process_id = id(&object.metadata.namespace, object.spec.owner());
            let parent = if let Some(rollout) = traces.rollouts.get(&process_id) {
                child_of(&span, rollout);
                Some(rollout.clone())
            } else {
                let change = owner.and_then(|owner| owner.annotations.get(TRACEPARENT));
                match change {
                    // Whatever becomes of a job is what was asked for.
                    Some(change) if object.spec.job.is_some() => child_of(&span, change),
                    Some(change) => link(&span, change),
                    None => {}
                }
                traceparent(&span)
            };
            if let Some(parent) = parent {
                let journey = Journey { parent, ends: u8::from(ended), start: None, stop: None };
                traces.journeys.insert(instance_id.clone(), journey);
            }
        }
        let resting = match after.phase {
            Phase::Running => after.ready,
            Phase::Stopped | Phase::Failed | Phase::Lost => true,
            Phase::Pending | Phase::Starting | Phase::Stopping | Phase::Backoff | Phase::Stuck | Phase::Unknown => {
                false
            }
        };
        let starts = plan.actions.iter().any(|action| matches!(action, Action::Spawn { .. }));
        if resting && !starts {
            traces.journeys.remove(instance_id);
        }
        span
    }

    /// An action of a plan; the span is open for as long as the action is under way.
    pub(crate) fn acting(&mut self, instance_id: &Id, action: &Action, plan: &Span) -> Span {
        if self.board.is_some()
            && let Action::Spawn { .. } = action
        {
            self.starts.insert(instance_id.clone(), Instant::now());
        }
        let Some(traces) = &mut self.traces else { return Span::none() };
        let (name, attempt) = match action {
            Action::Record => ("record", None),
            Action::Spawn { attempt } => ("spawn", Some(*attempt)),
            Action::Signal { attempt, .. } => ("stop", Some(*attempt)),
            Action::Kill { attempt } => ("kill", Some(*attempt)),
            Action::Forget { attempt } => ("forget", Some(*attempt)),
            Action::Limit { attempt, .. } => ("limit", Some(*attempt)),
            Action::Hook { attempt, .. } => ("hook", Some(*attempt)),
            Action::CancelHook => ("cancel-hook", None),
            Action::Remove => ("remove", None),
        };
        let span = info_span!(
            target: TARGET, parent: plan, "action",
            otel.name = name,
            otel.status_code = Empty,
            ostler.instance = &**instance_id,
            ostler.action = name,
            ostler.attempt = attempt,
            ostler.signal = Empty,
            ostler.error = Empty,
            process.pid = Empty,
        );
        if let Action::Signal { signal, .. } = action {
            span.record("ostler.signal", signal);
        }
        if let Some(journey) = traces.journeys.get_mut(instance_id) {
            match action {
                Action::Spawn { .. } => journey.start = Some(span.clone()),
                Action::Signal { .. } => journey.stop = Some(span.clone()),
                Action::Record
                | Action::Kill { .. }
                | Action::Forget { .. }
                | Action::Limit { .. }
                | Action::Hook { .. }
                | Action::CancelHook
                | Action::Remove => {}
            }
        }
        span
    }

    /// What became of a start.
    pub(crate) fn started(&mut self, instance_id: &Id, attempt: &Attempt) {
        let failed = match &attempt.state {
            AttemptState::FailedToStart(error) => Some(error.message.as_str()),
            AttemptState::Running
            | AttemptState::LeaderExited { .. }
            | AttemptState::Stuck
            | AttemptState::Ended { .. } => None,
        };
        if let (Some(began), Some(metrics)) = (self.starts.remove(instance_id), metrics()) {
            metrics.spawned(if failed.is_some() { "failed" } else { "ok" }, began.elapsed());
        }
        let Some(journey) = self.traces.as_mut().and_then(|traces| traces.journeys.get_mut(instance_id)) else {
            return;
        };
        let Some(span) = journey.start.take() else { return };
        if let Some(identity) = &attempt.identity {
            span.record("process.pid", identity.pid);
        }
        if let Some(why) = failed {
            span.record("otel.status_code", "ERROR");
            span.record("ostler.error", why);
        }
    }

    /// A probe has come to another verdict. Outside of what is under way with the instance it is a trace of its own.
    pub(crate) fn verdict(&self, instance_id: &Id, probe: ProbeKind, before: Health, now: &ProbeStatus) {
        if let Some(metrics) = metrics() {
            metrics.verdict(probe.name(), now.verdict.name());
        }
        let Some(traces) = &self.traces else { return };
        let span = info_span!(
            target: TARGET, parent: None, "verdict",
            ostler.instance = &**instance_id,
            ostler.probe = probe.name(),
            ostler.verdict.from = before.name(),
            ostler.verdict.to = now.verdict.name(),
            ostler.message = now.output,
        );
        if let Some(journey) = traces.journeys.get(instance_id) {
            child_of(&span, &journey.parent);
        }
    }

    /// An instance is no more.
    pub(crate) fn removed(&mut self, instance_id: &Id) {
        self.starts.remove(instance_id);
        if let Some(board) = &self.board {
            board.removed(instance_id);
        }
        if let Some(traces) = &mut self.traces {
            traces.journeys.remove(instance_id);
        }
    }

    /// A process is about to be looked at: whether it follows a change that was asked for.
    pub(crate) fn looking(&mut self, process_id: &Id, process: Option<&Process>) {
        let Some(traces) = &mut self.traces else { return };
        let Some(process) = process else {
            traces.known.remove(process_id);
            traces.rollouts.remove(process_id);
            return;
        };
        let Some(change) = process.metadata.annotations.get(TRACEPARENT) else {
            // Changed by somebody who is not traced.
            traces.known.remove(process_id);
            traces.rollouts.remove(process_id);
            return;
        };
        match traces.known.get(process_id) {
            Some(known) if known == change => return,
            // The first look of this controller: the one before may have done all of it.
            None if is_settled(process) => {
                traces.known.insert(process_id.clone(), change.clone());
                return;
            }
            Some(_) | None => {}
        }
        traces.known.insert(process_id.clone(), change.clone());
        traces.rollouts.insert(process_id.clone(), change.clone());
    }

    /// A plan for a process. Call before its status is taken over.
    pub(crate) fn planned_process(
        &mut self,
        process_id: &Id,
        process: &Process,
        after: &ProcessStatus,
        made: [usize; 3],
    ) {
        let Some(traces) = &mut self.traces else { return };
        let [create, update, delete] = made;
        let (was, is) = (is_ready(&process.status), is_ready(after));
        if made == [0; 3] && was == is {
            return;
        }
        let span = info_span!(
            target: TARGET, parent: None, "reconcile",
            otel.name = "reconcile Process",
            ostler.kind = "Process",
            ostler.namespace = process.metadata.namespace,
            ostler.process = process.metadata.name,
            ostler.generation = process.metadata.generation,
            ostler.ready.from = was,
            ostler.ready.to = is,
            ostler.replicas.ready = after.ready_replicas,
            ostler.instances.create = create,
            ostler.instances.update = update,
            ostler.instances.delete = delete,
        );
        if let Some(rollout) = traces.rollouts.get(process_id) {
            child_of(&span, rollout);
        } else if let Some(change) = process.metadata.annotations.get(TRACEPARENT) {
            link(&span, change);
        }
        let settled = is && after.observed_generation == process.metadata.generation;
        if settled && made == [0; 3] {
            traces.rollouts.remove(process_id);
        }
    }
}

fn is_ready(status: &ProcessStatus) -> bool {
    let ready = |condition: &Condition| condition.kind == "Ready" && condition.status == Truth::True;
    status.conditions.iter().any(ready)
}

fn is_settled(process: &Process) -> bool {
    process.status.observed_generation == process.metadata.generation && is_ready(&process.status)
}

/// What a change of status says of lives.
fn measure(metrics: &Metrics, before: &InstanceStatus, after: &InstanceStatus, module: impl Fn() -> String) {
    if after.ended_attempt > before.ended_attempt
        && let Some(exit) = &after.last_exit
    {
        if let Some(started) = before.started_at {
            metrics.lived(&module(), exit.at.since(started).to_std().as_secs_f64());
        }
        if let Some(stopping) = &before.stopping {
            metrics.stopped(stopping.reason.name(), exit.at.since(stopping.since).to_std().as_secs_f64());
        }
    }
    if after.restarts > before.restarts {
        let over = |phase: Phase| match phase {
            Phase::Backoff | Phase::Stopped | Phase::Failed | Phase::Lost => true,
            Phase::Pending | Phase::Starting | Phase::Running | Phase::Stopping | Phase::Stuck | Phase::Unknown => {
                false
            }
        };
        let end = after.history.iter().rev().find(|entry| over(entry.phase));
        metrics.restarted(&module(), end.map_or("Unknown", |end| end.reason.as_str()));
    }
}

/// The name of a request's kind.
pub(crate) const fn kind(request: &Request) -> &'static str {
    match request {
        Request::Namespace(_) => "Namespace",
        Request::Process(_) => "Process",
        Request::Job(_) => "Job",
        Request::CronJob(_) => "CronJob",
        Request::Instance(_) => "Instance",
    }
}
