//! Hooks: started and cancelled as the plan says, and what came of them, taken into the world.

use std::sync::Arc;

use ostler_core::Timestamp;
use ostler_core::config::Resolved;
use ostler_core::kinds::HookKind;
use ostler_core::plan::instance::{HookResult, HookRun};
use ostler_probe::{HookOrder, HookReport, Surroundings};

use super::world::{Id, InstanceEntry};
use super::{Controller, Request};
use crate::driver::Driver;
use crate::spawn;

impl InstanceEntry {
    fn change_hooks(&mut self, change: impl FnOnce(&mut Vec<HookRun>)) {
        let mut runs = self.observed.hooks.take().unwrap_or_default().into_vec();
        change(&mut runs);
        self.observed.hooks = (!runs.is_empty()).then(|| runs.into_boxed_slice());
    }
}

impl<D: Driver> Controller<D> {
    pub(crate) fn run_hook(
        &mut self,
        id: &Id,
        kind: HookKind,
        attempt: u64,
        env: &[(&'static str, String)],
        now: Timestamp,
    ) {
        let Some(entry) = self.world.instances.get(id) else { return };
        let spec = &entry.object.spec;
        let Some(hook) = spec.template.hook(kind).cloned() else { return };
        let given = self.given(&entry.object);
        let surroundings = spawn::hook_surroundings(&entry.object, &given, kind, env);
        let surroundings = match kind {
            // It finds the files that the process will.
            HookKind::PreStart => surroundings.and_then(|surroundings| {
                self.write_files(&entry.object, &given, now).map_err(|error| error.message)?;
                Ok(surroundings)
            }),
            HookKind::PostStart | HookKind::PreStop | HookKind::PostStop => surroundings,
        };
        let secrets = surroundings.as_ref().map(|surroundings| secrets(surroundings, &given)).unwrap_or_default();
        let cgroup = match kind {
            HookKind::PostStart | HookKind::PreStop => entry.cgroup.as_deref().unwrap_or_default().to_owned(),
            // There is no process, and no group of one.
            HookKind::PreStart | HookKind::PostStop => String::new(),
        };
        let order = HookOrder {
            id: Arc::clone(id),
            uid: entry.object.metadata.uid.clone(),
            attempt,
            kind,
            hook,
            cgroup,
            ports: spec.ports.clone(),
            surroundings,
            secrets,
        };
        self.hooks.run(order);
        if let Some(entry) = self.world.instances.get_mut(id) {
            entry.change_hooks(|runs| runs.push(HookRun { attempt, kind, result: None }));
        }
    }

    pub(crate) fn cancel_hook(&mut self, id: &Id) {
        self.hooks.cancel(id);
        if let Some(entry) = self.world.instances.get_mut(id) {
            entry.observed.hooks = None;
        }
    }

    /// Forgets the hooks whose result is in the status, and those of attempts that are over.
    pub(crate) fn settle_hooks(&mut self, id: &Id) {
        let Some(entry) = self.world.instances.get_mut(id).filter(|entry| entry.observed.hooks.is_some()) else {
            return;
        };
        let status = &entry.object.status;
        let known = status.hooks.clone().unwrap_or_default();
        let ended = status.ended_attempt;
        let mut stale = false;
        entry.change_hooks(|runs| {
            runs.retain(|run| {
                let published = known.get(run.kind).is_some_and(|known| known.attempt == run.attempt);
                stale |= run.result.is_none() && run.attempt <= ended;
                run.attempt > ended && !(published && run.result.is_some())
            });
        });
        if stale {
            self.hooks.cancel(id);
        }
    }

    pub(crate) fn take_hook_reports(&mut self, reports: Vec<HookReport>) {
        let now: Timestamp = self.now();
        for report in reports {
            if !self.hooks.finished(&report) {
                continue;
            }
            let HookReport { id, attempt, kind, succeeded, message, .. } = report;
            let Some(entry) = self.world.instances.get_mut(&id) else { continue };
            entry.change_hooks(|runs| {
                if let Some(run) = runs.iter_mut().find(|run| (run.attempt, run.kind) == (attempt, kind)) {
                    run.result = Some(HookResult { succeeded, message, at: now });
                }
            });
            self.queue.add(Request::Instance(id));
        }
    }

    /// Ends what the controller before has left behind of its hooks.
    pub(crate) fn bury_hooks(&mut self, cgroup: &str) {
        let instances = self.world.instances.iter().filter(|(_, entry)| {
            let lifecycle = entry.object.spec.template.lifecycle.as_ref();
            lifecycle.is_some_and(|lifecycle| lifecycle.hooks().any(|(_, hook)| hook.exec.is_some()))
        });
        self.hooks.settle(cgroup, instances.map(|(id, entry)| (id, entry.object.metadata.uid.as_str())));
    }
}

/// Everything that an instance has of Secrets.
fn secrets(surroundings: &Surroundings, given: &Resolved) -> Vec<String> {
    let variables = surroundings.hidden.iter().filter_map(|name| surroundings.env.get(name)).cloned();
    let files = given.files.iter().filter(|file| file.secret);
    variables.chain(files.map(|file| String::from_utf8_lossy(file.content()).into_owned())).collect()
}
