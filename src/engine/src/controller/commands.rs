//! What the API asks of the controller, and how the daemon ends.

use std::path::PathBuf;
use std::sync::Arc;

use ostler_core::kinds::Phase;
use ostler_core::{Span, Timestamp};
use ostler_keeper::wire;
use ostler_store::{Durability, Revision};
use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

use super::world::{Id, id};
use super::writer::Ticket;
use super::{Controller, Ended, Request};
use crate::driver::Driver;
use crate::usage::Sampler;
use crate::vault::Vault;

/// Names an instance.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct InstanceRef {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// What may be done to an instance by hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Stop and start again; forgets backoff and failures.
    Restart,
    /// Stop and stay stopped.
    Stop,
    /// Start, or go on; forgets backoff and failures.
    Start,
}

/// What an action came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acted {
    /// The instance.
    pub instance: InstanceRef,
    /// Whether anything had to be done.
    pub changed: bool,
    /// In words: "restarted", "already stopped".
    pub message: &'static str,
}

/// Why an action was not taken.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ActError {
    /// There is no such instance.
    #[error("instance {}/{} not found", .0.namespace, .0.name)]
    NotFound(InstanceRef),
    /// Its phase does not allow it.
    #[error("cannot {action} {}: it is {phase} ({reason})", .instance.name)]
    Illegal {
        /// The instance.
        instance: InstanceRef,
        /// "stop".
        action: &'static str,
        /// The phase it is in.
        phase: &'static str,
        /// Why it is in it.
        reason: String,
    },
    /// The change could not be stored.
    #[error("{0}")]
    Store(#[from] ostler_store::Error),
    /// The program could not be replaced; nothing has changed.
    #[error("{0}")]
    Upgrade(String),
    /// The daemon is ending.
    #[error("the daemon is ending")]
    Ending,
}

/// What the controller says of itself.
#[derive(Clone, Debug, Default)]
pub struct Overview {
    /// Process id of the keeper; 0 while there is none.
    pub keeper_pid: i32,
    /// Version of the keeper.
    pub keeper_version: String,
    /// How process trees are held together, and where.
    pub cgroups: String,
    /// Number of instances.
    pub instances: usize,
    /// Requests waiting to be looked at.
    pub queue: usize,
}

/// The API's end of the controller's mailbox.
#[derive(Clone, Debug)]
pub struct Handle(mpsc::Sender<Command>, Sampler, Arc<Vault>);

#[derive(Debug)]
pub(crate) enum Command {
    Act(Vec<InstanceRef>, Action, oneshot::Sender<Result<(Vec<Acted>, Revision), ActError>>),
    Signal(Vec<InstanceRef>, i32, bool, oneshot::Sender<Result<(), ActError>>),
    Overview(oneshot::Sender<Overview>),
    Record(ostler_core::Kind, Box<ostler_core::Metadata>, ostler_core::plan::Note),
    Shutdown(Option<Span>),
    Upgrade(PathBuf, oneshot::Sender<Result<(), ActError>>),
}

impl Handle {
    pub(crate) fn new(sender: mpsc::Sender<Command>, sampler: Sampler, vault: Arc<Vault>) -> Self {
        Self(sender, sampler, vault)
    }

    /// What seals and opens secrets.
    pub fn vault(&self) -> &Vault {
        &self.2
    }

    /// What the instances use.
    pub fn usage(&self) -> &Sampler {
        &self.1
    }

    async fn ask<T>(&self, command: Command, answer: oneshot::Receiver<T>) -> Result<T, ActError> {
        self.0.send(command).await.map_err(|_| ActError::Ending)?;
        answer.await.map_err(|_| ActError::Ending)
    }

    /// Takes an action on instances, all or none. Returns when the intent is on disk, with the revision.
    pub async fn act(&self, targets: Vec<InstanceRef>, action: Action) -> Result<(Vec<Acted>, Revision), ActError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::Act(targets, action, reply), answer).await?
    }

    /// Sends a signal to the leader of each instance, or to its whole tree; to all or none.
    pub async fn signal(&self, targets: Vec<InstanceRef>, signal: i32, tree: bool) -> Result<(), ActError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::Signal(targets, signal, tree, reply), answer).await?
    }

    /// What the controller says of itself.
    pub async fn overview(&self) -> Result<Overview, ActError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::Overview(reply), answer).await
    }

    /// Notes down an event of an object that somebody other than the controller takes care of.
    pub async fn record(
        &self,
        kind: ostler_core::Kind,
        metadata: ostler_core::Metadata,
        note: ostler_core::plan::Note,
    ) -> Result<(), ActError> {
        self.0.send(Command::Record(kind, Box::new(metadata), note)).await.map_err(|_| ActError::Ending)
    }

    /// Ends the daemon. With a time, every instance is stopped first, and killed after that time; without one they go
    /// on.
    pub async fn shutdown(&self, stop_within: Option<Span>) -> Result<(), ActError> {
        self.0.send(Command::Shutdown(stop_within)).await.map_err(|_| ActError::Ending)
    }

    /// Replaces the daemon's program. Returns when the new keeper is at work, or with the reason why the old one is.
    pub async fn upgrade(&self, binary: PathBuf) -> Result<(), ActError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::Upgrade(binary, reply), answer).await?
    }
}

/// How the daemon ends.
#[derive(Debug)]
pub(crate) struct Ending {
    /// Instances are stopped first, and killed then.
    stop_by: Option<Timestamp>,
    /// Until then, an instance waits for those that depend on it.
    order_until: Timestamp,
    /// When the keeper has to hear from us again.
    postponed_to: Timestamp,
}

/// How long the keeper is asked to wait at a time, seconds.
const POSTPONE: u32 = 10;

impl Ending {
    /// Leaves the instances running.
    pub(crate) fn leaving() -> Self {
        Self { stop_by: None, order_until: Timestamp::default(), postponed_to: Timestamp::default() }
    }

    /// Stops the instances, and kills what lives after `within`. The last part of that time is for those whose turn has
    /// not come by then: better a stop out of turn than none.
    pub(crate) fn stopping(now: Timestamp, within: Span) -> Self {
        let deadline = now + within;
        let order_until = now + Span::from_micros(within.as_micros() / 4 * 3);
        Self { stop_by: Some(deadline), order_until, postponed_to: Timestamp::default() }
    }

    /// Until when stops are in order, if instances are stopped.
    pub(crate) fn order_until(&self) -> Option<Timestamp> {
        self.stop_by.map(|_| self.order_until)
    }

    pub(crate) fn stop_by(&self) -> Option<Timestamp> {
        self.stop_by
    }

    /// When the loop has to wake for it.
    pub(crate) fn deadline(&self) -> Timestamp {
        self.postponed_to
    }
}

impl<D: Driver> Controller<D> {
    pub(crate) fn take_command(&mut self, command: Command) {
        // What the API wrote before it asked has been decided on first.
        self.catch_up();
        match command {
            Command::Act(targets, action, reply) => self.act(&targets, action, reply),
            Command::Signal(targets, signal, tree, reply) => {
                let _ = reply.send(self.signal(&targets, signal, tree));
            }
            Command::Overview(reply) => {
                let _ = reply.send(self.overview());
            }
            Command::Record(kind, metadata, note) => {
                let now = self.now();
                self.recorder.record(kind, &metadata, note, now);
            }
            Command::Shutdown(None) => self.begin_end(Ending::leaving()),
            Command::Shutdown(Some(within)) => self.begin_end(Ending::stopping(self.now(), within)),
            Command::Upgrade(binary, reply) => {
                if let Some(waiting) = self.upgrading.replace(reply) {
                    let _ = waiting.send(Err(ActError::Upgrade("another upgrade was asked for".to_owned())));
                }
                self.driver.submit(wire::Upgrade { binary: binary.display().to_string() }.into());
            }
        }
    }

    fn catch_up(&mut self) {
        while let Ok(Some(events)) = self.namespaces.try_next() {
            self.take_changes(ostler_core::Kind::Namespace, Ok(events));
        }
        while let Ok(Some(events)) = self.processes.try_next() {
            self.take_changes(ostler_core::Kind::Process, Ok(events));
        }
        while let Ok(Some(events)) = self.cronjobs.try_next() {
            self.take_changes(ostler_core::Kind::CronJob, Ok(events));
        }
        while let Ok(Some(events)) = self.jobs.try_next() {
            self.take_changes(ostler_core::Kind::Job, Ok(events));
        }
    }

    pub(crate) fn upgrade_failed(&mut self, why: String) {
        warn!(why, "the program was not replaced");
        if let Some(waiting) = self.upgrading.take() {
            let _ = waiting.send(Err(ActError::Upgrade(why)));
        }
    }

    pub(crate) fn upgraded(&mut self) {
        if let Some(waiting) = self.upgrading.take() {
            let _ = waiting.send(Ok(()));
        }
    }

    fn overview(&self) -> Overview {
        let hello = self.custody.hello.clone().unwrap_or_default();
        Overview {
            keeper_pid: hello.pid,
            keeper_version: hello.version,
            cgroups: format!("{} {}", hello.cgroup_mode, hello.cgroup_detail).trim().to_owned(),
            instances: self.world.instances.len(),
            queue: self.queue.len(),
        }
    }

    fn resolve(&self, targets: &[InstanceRef]) -> Result<Vec<Id>, ActError> {
        targets
            .iter()
            .map(|target| {
                let id = id(&target.namespace, &target.name);
                if self.world.instances.contains_key(&id) { Ok(id) } else { Err(ActError::NotFound(target.clone())) }
            })
            .collect()
    }

    fn act(
        &mut self,
        targets: &[InstanceRef],
        action: Action,
        reply: oneshot::Sender<Result<(Vec<Acted>, Revision), ActError>>,
    ) {
        let (results, ids) = match self.decide_act(targets, action) {
            Ok(decided) => decided,
            Err(why) => {
                let _ = reply.send(Err(why));
                return;
            }
        };
        if ids.is_empty() {
            let _ = reply.send(Ok((results, self.store.revision())));
            return;
        }
        let mut ops = Vec::with_capacity(ids.len());
        let mut written = Vec::with_capacity(ids.len());
        for id in ids {
            if let Some((op, version, _)) = self.write_of(&id) {
                ops.push(op);
                written.push((id.clone(), version));
            }
            self.queue.add(Request::Instance(id));
        }
        let (stored, outcome) = oneshot::channel();
        self.writer.commit(ops, Durability::Durable, Ticket::Reply(written, stored));
        tokio::spawn(async move {
            let result = match outcome.await {
                Ok(result) => result.map(|revision| (results, revision)).map_err(ActError::Store),
                Err(_) => Err(ActError::Ending),
            };
            let _ = reply.send(result);
        });
    }

    /// Changes the specs, all or none; which ones changed.
    fn decide_act(&mut self, targets: &[InstanceRef], action: Action) -> Result<(Vec<Acted>, Vec<Id>), ActError> {
        let ids = self.resolve(targets)?;
        let now = self.now();
        for (target, id) in targets.iter().zip(&ids) {
            let Some(entry) = self.world.instances.get(id) else { continue };
            if entry.object.metadata.is_deleting() || entry.removing {
                let action = match action {
                    Action::Restart => "restart",
                    Action::Stop => "stop",
                    Action::Start => "start",
                };
                let phase = entry.object.status.phase.name();
                return Err(ActError::Illegal {
                    instance: target.clone(),
                    action,
                    phase,
                    reason: "being deleted".to_owned(),
                });
            }
        }
        let mut results = Vec::with_capacity(ids.len());
        let mut changed_ids = Vec::new();
        for (target, id) in targets.iter().zip(&ids) {
            let Some(entry) = self.world.instances.get_mut(id) else { continue };
            let spec = &mut entry.object.spec;
            let (changed, message) = match action {
                Action::Restart => {
                    spec.restarted_at = Some(now);
                    spec.stopped_at = None;
                    (true, "restarted")
                }
                Action::Stop if spec.stopped_at.is_some() => (false, "already stopped"),
                Action::Stop => {
                    spec.stopped_at = Some(now);
                    (true, "stopped")
                }
                Action::Start if spec.stopped_at.is_none() && entry.object.status.phase == Phase::Running => {
                    (false, "already running")
                }
                Action::Start => {
                    spec.stopped_at = None;
                    spec.started_at = Some(now);
                    (true, "started")
                }
            };
            if changed {
                entry.object.metadata.generation += 1;
                entry.changed();
                changed_ids.push(id.clone());
            }
            results.push(Acted { instance: target.clone(), changed, message });
        }
        Ok((results, changed_ids))
    }

    fn signal(&mut self, targets: &[InstanceRef], signal: i32, tree: bool) -> Result<(), ActError> {
        let ids = self.resolve(targets)?;
        for (target, id) in targets.iter().zip(&ids) {
            let Some(entry) = self.world.instances.get(id) else { continue };
            let status = &entry.object.status;
            match status.phase {
                Phase::Running | Phase::Stopping | Phase::Stuck => {}
                phase @ (Phase::Pending
                | Phase::Starting
                | Phase::Stopped
                | Phase::Failed
                | Phase::Backoff
                | Phase::Lost
                | Phase::Unknown) => {
                    let reason = status.reason.clone();
                    let instance = target.clone();
                    return Err(ActError::Illegal { instance, action: "signal", phase: phase.name(), reason });
                }
            }
        }
        for id in ids {
            let Some(entry) = self.world.instances.get(&id) else { continue };
            let (uid, attempt) = (entry.object.metadata.uid.clone(), entry.object.status.attempt);
            self.driver.submit(wire::Signal { id: uid, attempt, signal, tree }.into());
        }
        Ok(())
    }

    /// Ends the daemon; a second request can only make it quicker.
    pub(crate) fn begin_end(&mut self, ending: Ending) {
        let merged = match self.ending.take() {
            Some(before)
                if before.stop_by.is_some() && ending.stop_by.is_none_or(|after| Some(after) > before.stop_by) =>
            {
                before
            }
            Some(_) | None => ending,
        };
        info!(stop_instances = merged.stop_by.is_some(), "ending");
        self.ending = Some(merged);
        self.look_at_everything();
    }

    /// Whether everything that the end waits for has happened.
    pub(crate) fn finished(&mut self) -> Option<Ended> {
        let now = self.now();
        let ending = self.ending.as_mut()?;
        if ending.stop_by.is_none() {
            return Some(Ended::Shutdown);
        }
        if now >= ending.postponed_to {
            ending.postponed_to = now + Span::from_secs(u64::from(POSTPONE) / 2);
            self.driver.submit(wire::Postpone { seconds: POSTPONE }.into());
            let living = self.world.instances.iter().filter(|(_, entry)| entry.object.status.is_live());
            let mut living: Vec<&str> = living.map(|(id, _)| &**id).collect();
            living.sort_unstable();
            let count = living.len();
            living.truncate(20);
            if count > 0 {
                info!(count, instances = living.join(", "), "waiting for them to stop");
            }
        }
        let busy = !self.custody.synced
            || self.queue.has_ready()
            || self.world.instances.values().any(|entry| {
                entry.object.status.is_live()
                    || entry.observed.starting.is_some()
                    || !entry.observed.attempts.is_empty()
            });
        (!busy && self.writer.is_idle()).then_some(Ended::Shutdown)
    }

    /// Lets what was decided reach store and keeper.
    pub(crate) async fn finish(&mut self) {
        let patience = tokio::time::sleep(std::time::Duration::from_secs(3));
        tokio::pin!(patience);
        self.writer.retry();
        loop {
            self.submit_writes();
            if self.writer.is_idle() && self.recorder.is_idle() {
                break;
            }
            tokio::select! {
                outcome = self.writer.next() => self.take_outcome(outcome),
                () = &mut patience => {
                    warn!("the store takes no writes; what was not stored is still in custody");
                    break;
                }
            }
        }
        self.driver.flush();
    }
}
