//! What a controller knows when it begins: everything the store does.

use std::sync::Arc;

use ostler_core::config::Origin;
use ostler_core::kinds::{CronJob, Instance, Job, Namespace, Process, RestartPolicy, STOPPED_AT};
use ostler_core::object::{key, parse_key};
use ostler_core::{Kind, Span, Timestamp};
use ostler_store::{Durability, Entry, Expect, Key, Op, Revision, Store, Watch};
use serde::de::DeserializeOwned;
use tracing::{info, warn};

use super::world::{InstanceEntry, NamespaceEntry, ProcessEntry, World, Written, id};
use super::{Controller, Request};
use crate::clock::Clock;
use crate::driver::Driver;

/// Why a controller cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum StartFailed {
    /// An object in the store is not of a shape this version knows.
    #[error(
        "the store holds {key}, which this version cannot read: {source}; start the version that wrote it, or restore a backup"
    )]
    Unreadable {
        /// Its key.
        key: String,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// The store took no watch or write.
    #[error("the store is of no use: {0}")]
    Store(String),
}

pub(crate) struct Recovered {
    pub(crate) world: World,
    pub(crate) processes: Watch,
    pub(crate) jobs: Watch,
    pub(crate) cronjobs: Watch,
    pub(crate) namespaces: Watch,
    pub(crate) config_maps: Watch,
    pub(crate) secrets: Watch,
}

/// Where the store keeps the boot in which it was last used.
const BOOT_KEY: &str = "meta//boot";

pub(crate) async fn recover(store: &Arc<dyn Store>, clock: &Clock) -> Result<Recovered, StartFailed> {
    let now = clock.now();
    greet_the_boot(store).await?;
    let mut world = World::default();
    let snapshot = store.list("");
    for entry in snapshot.entries {
        let Some((kind, namespace, name)) = parse_key(entry.key.as_str()) else { continue };
        let id = id(namespace, name);
        let revision = entry.revision;
        match kind {
            Kind::Namespace => {
                let object: Namespace = read(&entry)?;
                world.namespaces.insert(id, NamespaceEntry { object, revision });
            }
            Kind::Process => {
                let object: Process = read(&entry)?;
                world.processes.insert(id, ProcessEntry { object, revision, writing: false });
            }
            Kind::Job => {
                let mut object: Job = read(&entry)?;
                let status = &mut object.status;
                let since =
                    status.conditions.iter_mut().filter_map(|condition| condition.last_transition_time.as_mut());
                for at in since.chain(&mut status.start_time) {
                    *at = (*at).min(now);
                }
                world.jobs.insert(id, Written::new(object, revision));
            }
            Kind::CronJob => {
                let object: CronJob = read(&entry)?;
                world.cronjobs.insert(id, Written::new(object, revision));
            }
            Kind::Instance => {
                let mut object: Instance = read(&entry)?;
                bound_waits(&mut object, now);
                let mut entry = InstanceEntry::new(object);
                entry.stored = entry.version;
                world.insert_instance(entry);
            }
            Kind::ConfigMap => put_config(&mut world, Origin::ConfigMap, &id, &entry)?,
            Kind::Secret => put_config(&mut world, Origin::Secret, &id, &entry)?,
            Kind::Source | Kind::External | Kind::Event => {}
        }
    }
    info!(processes = world.processes.len(), jobs = world.jobs.len(), instances = world.instances.len(), "recovered");
    let watch =
        |kind: Kind| store.watch(&prefix(kind), snapshot.revision).map_err(|why| StartFailed::Store(why.to_string()));
    Ok(Recovered {
        processes: watch(Kind::Process)?,
        jobs: watch(Kind::Job)?,
        cronjobs: watch(Kind::CronJob)?,
        namespaces: watch(Kind::Namespace)?,
        config_maps: watch(Kind::ConfigMap)?,
        secrets: watch(Kind::Secret)?,
        world,
    })
}

fn put_config(world: &mut World, origin: Origin, id: &super::world::Id, entry: &Entry) -> Result<(), StartFailed> {
    world
        .put_config(origin, id, Some(&entry.value))
        .map_err(|source| StartFailed::Unreadable { key: entry.key.as_str().to_owned(), source })
}

fn prefix(kind: Kind) -> String {
    format!("{}/", kind.plural())
}

fn read<T: DeserializeOwned>(entry: &Entry) -> Result<T, StartFailed> {
    serde_json::from_slice(&entry.value)
        .map_err(|source| StartFailed::Unreadable { key: entry.key.as_str().to_owned(), source })
}

/// A clock that was set back while nobody looked must not make a wait longer than it was meant to be.
fn bound_waits(instance: &mut Instance, now: Timestamp) {
    let template = &instance.spec.template;
    let cooldown = template.circuit_breaker.as_ref().map_or(Span::ZERO, |breaker| breaker.cooldown);
    let longest = now + ostler_core::restart::longest_delay(template).max(cooldown);
    let status = &mut instance.status;
    if instance.spec.job.is_some() {
        // Decides when the next run is due.
        status.last_exit.iter_mut().for_each(|exit| exit.at = exit.at.min(now));
    }
    for at in [&mut status.next_start_at, &mut status.breaker.open_until].into_iter().flatten() {
        *at = (*at).min(longest);
    }
    if let Some(stopping) = &mut status.stopping {
        stopping.since = stopping.since.min(now);
        stopping.kill_at = stopping.kill_at.min(now + template.stop.grace_period);
    }
}

/// After a reboot, what was stopped by hand runs again unless its policy is UnlessStopped.
async fn greet_the_boot(store: &Arc<dyn Store>) -> Result<(), StartFailed> {
    let boot = ostler_keeper::wire::boot_id().unwrap_or_default();
    let boot_key: Key = BOOT_KEY.into();
    let known = store.get(&boot_key);
    if known.as_ref().is_some_and(|entry| entry.value == boot.as_bytes()) {
        return Ok(());
    }
    let mut ops = vec![Op::put(boot_key, boot.into_bytes(), Expect::Any)];
    if known.is_some() {
        info!("the machine was rebooted");
        for entry in store.list("").entries {
            match parse_key(entry.key.as_str()) {
                Some((Kind::Process, namespace, name)) => {
                    let mut process: Process = read(&entry)?;
                    if process.spec.restart_policy == RestartPolicy::Always
                        && process.metadata.annotations.remove(STOPPED_AT).is_some()
                        && let Ok(value) = serde_json::to_vec(&process)
                    {
                        ops.push(Op::put(key(Kind::Process, namespace, name).into(), value, Expect::Any));
                    }
                }
                Some((Kind::Instance, namespace, name)) => {
                    let mut instance: Instance = read(&entry)?;
                    if instance.spec.template.restart_policy == RestartPolicy::Always
                        && instance.spec.stopped_at.take().is_some()
                        && let Ok(value) = serde_json::to_vec(&instance)
                    {
                        ops.push(Op::put(key(Kind::Instance, namespace, name).into(), value, Expect::Any));
                    }
                }
                Some((
                    Kind::Namespace
                    | Kind::ConfigMap
                    | Kind::Secret
                    | Kind::Job
                    | Kind::CronJob
                    | Kind::Source
                    | Kind::External
                    | Kind::Event,
                    ..,
                ))
                | None => {}
            }
        }
    }
    if let Err(why) = store.commit(ops, Durability::Crash).await {
        // Without this write, the next start does the same again.
        warn!(%why, "the store does not take note of the boot");
    }
    Ok(())
}

impl<D: Driver> Controller<D> {
    /// Reads all objects of a kind anew, after the watch lost the thread.
    pub(crate) fn relist(&mut self, kind: Kind) {
        let snapshot = self.store.list(&prefix(kind));
        match self.store.watch(&prefix(kind), snapshot.revision) {
            Ok(watch) => match kind {
                Kind::Process => self.processes = watch,
                Kind::Job => self.jobs = watch,
                Kind::CronJob => self.cronjobs = watch,
                Kind::ConfigMap => self.config_maps = watch,
                Kind::Secret => self.secrets = watch,
                Kind::Namespace | Kind::Instance | Kind::Source | Kind::External | Kind::Event => {
                    self.namespaces = watch;
                }
            },
            // History moved on in between: the watch fails again at once, and this is tried again.
            Err(why) => warn!(%why, "cannot watch"),
        }
        if let Some(origin) = Origin::of(kind) {
            self.world.config.retain(|(known, _), _| *known != origin);
            for entry in &snapshot.entries {
                let id = id(entry.key.namespace(), entry.key.name());
                if let Err(why) = self.world.put_config(origin, &id, Some(&entry.value)) {
                    warn!(key = %entry.key, %why, "cannot be read");
                }
            }
            self.look_at_everything();
            return;
        }
        let known = |revision: Revision, before: Option<Revision>| before == Some(revision);
        let mut present = std::collections::HashSet::new();
        for entry in &snapshot.entries {
            let Some((_, namespace, name)) = parse_key(entry.key.as_str()) else { continue };
            let id = id(namespace, name);
            present.insert(id.clone());
            match kind {
                Kind::Process => {
                    if known(entry.revision, self.world.processes.get(&id).map(|entry| entry.revision)) {
                        continue;
                    }
                    if let Ok(object) = serde_json::from_slice(&entry.value) {
                        let entry = ProcessEntry { object, revision: entry.revision, writing: false };
                        self.world.processes.insert(id.clone(), entry);
                    }
                    self.queue.add(Request::Process(id));
                }
                Kind::Job => {
                    if known(entry.revision, self.world.jobs.get(&id).map(|entry| entry.revision)) {
                        continue;
                    }
                    if let Ok(object) = serde_json::from_slice(&entry.value) {
                        self.world.jobs.insert(id.clone(), Written::new(object, entry.revision));
                    }
                    self.queue.add(Request::Job(id));
                }
                Kind::CronJob => {
                    if known(entry.revision, self.world.cronjobs.get(&id).map(|entry| entry.revision)) {
                        continue;
                    }
                    if let Ok(object) = serde_json::from_slice(&entry.value) {
                        self.world.cronjobs.insert(id.clone(), Written::new(object, entry.revision));
                    }
                    self.queue.add(Request::CronJob(id));
                }
                Kind::Namespace
                | Kind::ConfigMap
                | Kind::Secret
                | Kind::Instance
                | Kind::Source
                | Kind::External
                | Kind::Event => {
                    if let Ok(object) = serde_json::from_slice(&entry.value) {
                        self.world.namespaces.insert(id.clone(), NamespaceEntry { object, revision: entry.revision });
                    }
                    self.queue.add(Request::Namespace(id));
                }
            }
        }
        match kind {
            Kind::Process => {
                let gone: Vec<_> = self.world.processes.keys().filter(|id| !present.contains(*id)).cloned().collect();
                for id in gone {
                    self.world.processes.remove(&id);
                    self.queue.add(Request::Process(id));
                }
            }
            Kind::Job => {
                let gone: Vec<_> = self.world.jobs.keys().filter(|id| !present.contains(*id)).cloned().collect();
                for id in gone {
                    self.world.jobs.remove(&id);
                    self.queue.add(Request::Job(id));
                }
                // Whose Jobs are gone is not known any more.
                for id in self.world.cronjobs.keys() {
                    self.queue.add(Request::CronJob(id.clone()));
                }
            }
            Kind::CronJob => self.world.cronjobs.retain(|id, _| present.contains(id)),
            Kind::Namespace
            | Kind::ConfigMap
            | Kind::Secret
            | Kind::Instance
            | Kind::Source
            | Kind::External
            | Kind::Event => {
                self.world.namespaces.retain(|id, _| present.contains(id));
            }
        }
    }
}
