//! The loop: sources enqueue requests, reconcilers look at the world and act.

mod board;
mod commands;
mod config;
mod custody;
mod depend;
mod files;
mod health;
mod hooks;
mod instances;
mod jobs;
mod observer;
mod processes;
mod recorder;
mod recovery;
mod thresholds;
mod world;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ostler_core::{Kind, Span, Timestamp};
use ostler_probe::{HookReport, Hooks, Prober, Report};
use ostler_store::{Store, Watch, WatchEnded};
use tokio::sync::{mpsc, watch};
use tracing::{debug, warn};

use self::commands::Command;
pub use self::commands::{ActError, Acted, Action, Handle, InstanceRef, Overview};
pub use self::config::place;
use self::observer::Observer;
use self::recorder::Recorder;
pub use self::recovery::StartFailed;
use self::world::{Id, World};
use self::writer::{Outcome, Writer};
use crate::clock::Clock;
use crate::driver::Driver;
use crate::files::Places;
use crate::queue::Queue;
use crate::usage::{Crossing, Sampler};
use crate::vault::Vault;

/// An object that needs a look. Carries no event.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Request {
    Namespace(Id),
    Process(Id),
    Job(Id),
    CronJob(Id),
    Instance(Id),
}

/// Settings of a controller.
#[derive(Clone, Debug)]
pub struct Options {
    /// The daemon's state directory; log directories are below it.
    pub state_dir: PathBuf,
    /// What may change while it runs.
    pub tuning: watch::Receiver<Tuning>,
}

/// Settings that may change while the controller runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// How often everything that is not at rest is looked at even if nothing happened; not zero.
    pub tick: Duration,
    /// Whether SIGTERM and SIGINT to the daemon stop the instances first; otherwise they go on without it.
    pub stop_on_terminate: bool,
    /// What still lives so long after such a signal is killed.
    pub shutdown_deadline: Span,
}

impl Tuning {
    /// As options that nobody will change.
    pub fn fixed(self) -> watch::Receiver<Self> {
        watch::channel(self).1
    }
}

/// The safety net's beat.
fn beat(tick: Duration) -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(tick);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks
}

/// Why the loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The daemon was asked to end; the keeper waits to be told.
    Shutdown,
    /// The keeper's program was replaced: this controller makes room for one of the new version.
    Replaced,
}

/// What [`Controller::run`] runs with.
pub struct Start<D> {
    /// Settings.
    pub options: Options,
    /// Desired and observed state.
    pub store: Arc<dyn Store>,
    /// Effects.
    pub driver: D,
    /// Time.
    pub clock: Clock,
    /// What the instances use.
    pub sampler: Sampler,
    /// How they are probed.
    pub probes: ostler_probe::Settings,
}

/// The reconciling loop and everything it knows.
pub struct Controller<D> {
    options: Options,
    store: Arc<dyn Store>,
    driver: D,
    clock: Clock,
    sampler: Sampler,
    prober: Prober,
    probed: mpsc::UnboundedReceiver<Report>,
    hooks: Hooks,
    hooked: mpsc::UnboundedReceiver<HookReport>,
    /// Handed to the sampler, which answers by it.
    crossings: mpsc::UnboundedSender<Crossing>,
    crossed: mpsc::UnboundedReceiver<Crossing>,
    queue: Queue<Request>,
    world: World,
    writer: Writer,
    recorder: Recorder,
    observer: Observer,
    custody: custody::Custody,
    commands: mpsc::Receiver<Command>,
    processes: Watch,
    jobs: Watch,
    cronjobs: Watch,
    namespaces: Watch,
    /// Of schedules that name none.
    local_zone: jiff::tz::TimeZone,
    config_maps: Watch,
    secrets: Watch,
    vault: Arc<Vault>,
    files: Places,
    ending: Option<commands::Ending>,
    upgrading: Option<tokio::sync::oneshot::Sender<Result<(), ActError>>>,
}

/// Requests handled before the loop looks for events again.
const SLICE: usize = 64;

/// What woke the loop.
enum Woken {
    Driver(Vec<crate::driver::DriverEvent>),
    Changed(Kind, Result<Vec<ostler_store::Event>, WatchEnded>),
    Written(Outcome),
    Probed(Vec<Report>),
    Hooked(Vec<HookReport>),
    Crossed(Vec<Crossing>),
    Command(Option<Command>),
    Tuned,
    Time,
    Busy,
}

impl<D: Driver> Controller<D> {
    /// Recovers everything the store knows, and prepares to run. The handle is for the API.
    pub async fn new(start: Start<D>) -> Result<(Self, Handle), StartFailed> {
        let (sender, commands) = mpsc::channel(256);
        let (hooks, hooked) = Hooks::new(start.probes.allow.clone());
        let (prober, probed) =
            Prober::start(ostler_probe::Settings { usage: Some(Arc::new(start.sampler.clone())), ..start.probes });
        let (crossings, crossed) = mpsc::unbounded_channel();
        let vault = Arc::new(Vault::new(start.options.state_dir.join("secret.key")));
        let files = Places::find(&start.options.state_dir);
        let recovery::Recovered { world, processes, jobs, cronjobs, namespaces, config_maps, secrets } =
            recovery::recover(&start.store, &start.clock).await?;
        let controller = Self {
            writer: Writer::new(Arc::clone(&start.store)),
            recorder: Recorder::new(Arc::clone(&start.store)),
            observer: Observer::new(&start.store, &start.sampler, &start.options.state_dir),
            options: start.options,
            store: start.store,
            driver: start.driver,
            clock: start.clock,
            sampler: start.sampler.clone(),
            prober,
            probed,
            hooks,
            hooked,
            crossings,
            crossed,
            queue: Queue::new(),
            world,
            custody: custody::Custody::default(),
            commands,
            processes,
            jobs,
            cronjobs,
            namespaces,
            local_zone: jiff::tz::TimeZone::system(),
            config_maps,
            secrets,
            vault: Arc::clone(&vault),
            files,
            ending: None,
            upgrading: None,
        };
        Ok((controller, Handle::new(sender, start.sampler, vault)))
    }

    /// Runs until the daemon is to end. Returns the driver, so that the keeper can be told when the store is closed.
    pub async fn run(mut self) -> (Ended, D) {
        self.look_at_everything();
        let mut ticks = beat(self.options.tuning.borrow_and_update().tick);
        loop {
            self.work();
            self.driver.flush();
            let now = self.clock.now();
            let batch_due = self.writer.batch_due(now).filter(|due| *due > now);
            if batch_due.is_none() {
                self.submit_writes();
            }
            if let Some(ended) = self.custody.replaced.then_some(Ended::Replaced).or_else(|| self.finished()) {
                self.finish().await;
                return (ended, self.driver);
            }
            let busy = self.queue.has_ready();
            let pause = self.pause(batch_due);
            let woken = tokio::select! {
                biased;
                events = self.driver.next() => Woken::Driver(events),
                // Before outcomes: a commit is seen in the watch before it is acknowledged.
                // What processes are made from before the processes: both may come with one commit.
                events = self.config_maps.next() => Woken::Changed(Kind::ConfigMap, events),
                events = self.secrets.next() => Woken::Changed(Kind::Secret, events),
                events = self.processes.next() => Woken::Changed(Kind::Process, events),
                events = self.jobs.next() => Woken::Changed(Kind::Job, events),
                events = self.cronjobs.next() => Woken::Changed(Kind::CronJob, events),
                events = self.namespaces.next() => Woken::Changed(Kind::Namespace, events),
                outcome = self.writer.next() => Woken::Written(outcome),
                reports = all(&mut self.probed) => Woken::Probed(reports),
                reports = all(&mut self.hooked) => Woken::Hooked(reports),
                crossings = all(&mut self.crossed) => Woken::Crossed(crossings),
                command = self.commands.recv() => Woken::Command(command),
                _ = ticks.tick() => {
                    self.tick();
                    Woken::Time
                }
                Ok(()) = self.options.tuning.changed() => Woken::Tuned,
                () = tokio::time::sleep(pause), if !busy => Woken::Time,
                () = std::future::ready(()), if busy => Woken::Busy,
            };
            match woken {
                Woken::Driver(events) => self.take_custody_events(events),
                Woken::Written(outcome) => self.take_outcome(outcome),
                Woken::Probed(reports) => self.take_reports(reports),
                Woken::Hooked(reports) => self.take_hook_reports(reports),
                Woken::Crossed(crossings) => self.take_crossings(crossings),
                Woken::Command(Some(command)) => self.take_command(command),
                // Every handle is gone: the API has ended, and with it the daemon.
                Woken::Command(None) => self.begin_end(commands::Ending::leaving()),
                Woken::Changed(kind, events) => self.take_changes(kind, events),
                Woken::Tuned => {
                    let tick = self.options.tuning.borrow_and_update().tick;
                    if tick != ticks.period() {
                        ticks = beat(tick);
                    }
                }
                Woken::Time | Woken::Busy => {}
            }
        }
    }

    fn work(&mut self) {
        for _ in 0..SLICE {
            let now = self.clock.now();
            let Some(request) = self.queue.pop(now) else { break };
            let (kind, began) = (observer::kind(&request), self.observer.begin());
            if !matches!(request, Request::Instance(_)) {
                // A start does not wait until it has been counted.
                self.driver.flush();
            }
            match request {
                Request::Instance(id) => self.reconcile_instance(&id, now),
                Request::Process(id) => self.reconcile_process(&id, now),
                Request::Job(id) => self.reconcile_job(&id, now),
                Request::CronJob(id) => self.reconcile_cronjob(&id, now),
                Request::Namespace(id) => self.reconcile_namespace(&id, now),
            }
            Observer::reconciled(kind, began);
        }
        let watches = [&self.processes, &self.jobs, &self.cronjobs, &self.namespaces, &self.config_maps, &self.secrets];
        self.observer.round(self.queue.len(), || {
            watches.into_iter().map(ostler_store::Watch::revision).min().unwrap_or_default()
        });
    }

    /// How long nothing is due.
    fn pause(&self, batch_due: Option<Timestamp>) -> Duration {
        let due = self.queue.next_due();
        let due = due.into_iter().chain(batch_due).chain(self.ending.as_ref().map(commands::Ending::deadline)).min();
        due.map_or(Duration::from_secs(3600), |at| at.since(self.clock.now()).to_std())
    }

    /// The safety net: everything that is not at rest is looked at, whether or not anything was heard of it.
    fn tick(&mut self) {
        if let Some(micros) = self.clock.step() {
            warn!(micros, "the system clock was set; deadlines move with it");
            self.world.shift(micros);
            self.queue.clear_due();
            self.look_at_everything();
            return;
        }
        for id in self.world.restless() {
            self.queue.add(Request::Instance(id));
        }
        self.observer.count(&self.world);
        self.writer.retry();
    }

    pub(crate) fn look_at_everything(&mut self) {
        let requests: Vec<Request> = self
            .world
            .namespaces
            .keys()
            .cloned()
            .map(Request::Namespace)
            .chain(self.world.processes.keys().cloned().map(Request::Process))
            .chain(self.world.jobs.keys().cloned().map(Request::Job))
            .chain(self.world.cronjobs.keys().cloned().map(Request::CronJob))
            .chain(self.world.instances.keys().cloned().map(Request::Instance))
            .collect();
        for request in requests {
            self.queue.add(request);
        }
    }

    /// Takes over what the API wrote.
    fn take_changes(&mut self, kind: Kind, events: Result<Vec<ostler_store::Event>, WatchEnded>) {
        match events {
            Ok(events) => {
                for event in events {
                    for request in self.world.apply(&event) {
                        self.queue.add(request);
                    }
                }
            }
            Err(WatchEnded::Compacted(_)) => {
                debug!(%kind, "the watch fell behind, listing again");
                self.relist(kind);
            }
            Err(WatchEnded::Closed) => self.begin_end(commands::Ending::leaving()),
        }
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }
}

/// What has come in since the last look. Cancel-safe.
async fn all<T>(from: &mut mpsc::UnboundedReceiver<T>) -> Vec<T> {
    let mut news = Vec::new();
    if from.recv_many(&mut news, SLICE).await == 0 {
        // Who sends ends with the handle that the loop holds.
        std::future::pending::<()>().await;
    }
    news
}

/// How long after an instance changed its Process is looked at: a burst of changes shares a look, whose cost grows with
/// the number of instances.
fn coalesce(instances: usize) -> Span {
    Span::from_micros((instances as u64).saturating_mul(20).min(50_000))
}
