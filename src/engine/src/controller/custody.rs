//! What the driver reports, taken into the world.

use std::collections::HashMap;
use std::sync::OnceLock;

use ostler_core::kinds::{ExitStatus, Identity, LimitKind};
use ostler_core::limits::EnforcedLimit;
use ostler_core::plan::instance::{Attempt, AttemptState};
use ostler_core::plan::output::Output;
use ostler_core::{Kind, Metadata, Timestamp};
use ostler_keeper::wire;
use tracing::{debug, error, info, warn};

use super::commands::Ending;
use super::world::Id;
use super::{Controller, Request};
use crate::driver::{Driver, DriverEvent};
use crate::spawn;
use crate::usage::Target;

/// What is known of the keeper itself.
#[derive(Debug, Default)]
pub(crate) struct Custody {
    pub(crate) hello: Option<wire::Hello>,
    pub(crate) synced: bool,
    /// The keeper's program was replaced while this controller was connected.
    pub(crate) replaced: bool,
    /// Attempts of instances that the store does not know, by `namespace/name`: left alone until a Process wants them.
    pub(crate) orphans: HashMap<String, wire::State>,
}

impl<D: Driver> Controller<D> {
    pub(crate) fn take_custody_events(&mut self, events: Vec<DriverEvent>) {
        for event in events {
            match event {
                DriverEvent::Hello(hello) => self.greet(hello),
                DriverEvent::State(state) => self.take_state(state),
                DriverEvent::Synced => self.synced(),
                DriverEvent::Refused(refused) => {
                    // The states that follow show how things are; the plan starts from there.
                    warn!(id = refused.id, attempt = refused.attempt, why = refused.why, "the keeper refused");
                    if let Some(id) = self.world.by_uid.get(refused.id.as_str()).cloned() {
                        self.refused(&id, refused.attempt);
                    }
                }
                DriverEvent::Terminate(terminate) => {
                    info!(signal = terminate.signal, "asked to end");
                    let tuning = *self.options.tuning.borrow();
                    let ending = if tuning.stop_on_terminate {
                        Ending::stopping(self.now(), tuning.shutdown_deadline)
                    } else {
                        Ending::leaving()
                    };
                    self.begin_end(ending);
                }
                DriverEvent::UpgradeFailed(why) => self.upgrade_failed(why),
                DriverEvent::Lost => self.lost(),
            }
        }
    }

    fn greet(&mut self, hello: wire::Hello) {
        let cgroup = if hello.cgroup_mode == "none" { "" } else { hello.cgroup_detail.as_str() };
        self.prober.listen_to(hello.pid, cgroup);
        self.bury_hooks(cgroup);
        if self.custody.hello.is_some() {
            info!(version = hello.version, "the keeper's program was replaced");
            self.custody.replaced = true;
            self.upgraded();
            return;
        }
        debug!(pid = hello.pid, version = hello.version, cgroups = hello.cgroup_mode, "connected to the keeper");
        super::observer::Observer::keeper(hello.pid);
        self.custody.hello = Some(hello);
        self.custody.orphans.clear();
        for entry in self.world.instances.values_mut() {
            let observed = &mut entry.observed;
            observed.starting = None;
            observed.signalled = None;
            observed.killed = None;
            observed.limited = None;
            observed.attempts.clear();
            entry.forget.clear();
        }
    }

    fn lost(&mut self) {
        self.custody.hello = None;
        self.custody.synced = false;
        for entry in self.world.instances.values_mut() {
            entry.observed.synced = false;
        }
    }

    fn synced(&mut self) {
        self.custody.synced = true;
        for entry in self.world.instances.values_mut() {
            entry.observed.synced = true;
        }
        for (name, state) in &self.custody.orphans {
            warn!(name, attempt = state.attempt, "custody holds a process that the store does not know; left alone");
        }
        self.sweep_files();
        self.look_at_everything();
    }

    /// A Spawn that was refused leaves nothing behind but its number.
    fn refused(&mut self, id: &Id, attempt: u64) {
        if let Some(entry) = self.world.instances.get_mut(id)
            && entry.observed.starting == Some(attempt)
        {
            entry.observed.starting = None;
            // A refusal must not become a loop: the tick tries again.
        }
    }

    pub(crate) fn take_state(&mut self, state: wire::State) {
        let Some(id) = self.world.by_uid.get(state.id.as_str()).cloned() else {
            if over(&state) {
                // Nobody will ever ask for its end.
                self.driver.submit(forget(&state.id, state.attempt, false));
            } else {
                self.custody.orphans.insert(state.name.clone(), state);
            }
            return;
        };
        let Some(attempt) = attempt(&state, self.now()) else {
            error!(name = state.name, "a state without a phase");
            return;
        };
        self.sample(&id, &state);
        self.note_surroundings(&id, &state);
        self.put_attempt(&id, attempt);
    }

    /// Has the usage of what runs sampled, and of what is over no more.
    pub(crate) fn sample(&self, id: &Id, state: &wire::State) {
        let Some(identity) = &state.identity else { return };
        if over(state) {
            self.sampler.untrack(id.clone(), Some(identity.pid));
            return;
        }
        let target = Target { pid: identity.pid, start_time: identity.start_time, cgroup: state.cgroup.clone() };
        self.sampler.track(id.clone(), target);
    }

    /// Takes what is known of an attempt into the world and has the instance looked at.
    pub(crate) fn put_attempt(&mut self, id: &Id, attempt: Attempt) {
        let Some(entry) = self.world.instances.get_mut(id) else { return };
        let observed = &mut entry.observed;
        if observed.starting == Some(attempt.number) {
            observed.starting = None;
            self.observer.started(id, &attempt);
        }
        if matches!(attempt.state, AttemptState::LeaderExited { .. }) && observed.signalled == Some(attempt.number) {
            // What the leader forked in its last moments has not got the signal.
            let known = observed.attempts.iter().find(|held| held.number == attempt.number);
            if known.is_some_and(|held| held.state == AttemptState::Running) {
                observed.signalled = None;
            }
        }
        match observed.attempts.binary_search_by_key(&attempt.number, |held| held.number) {
            Ok(index) => observed.attempts[index] = attempt,
            Err(index) => {
                // Nearly always the only one; a vector that grows by itself has room for four.
                observed.attempts.reserve_exact(1);
                observed.attempts.insert(index, attempt);
            }
        }
        self.queue.add(Request::Instance(id.clone()));
        debug!(instance = %id, owner = entry.object.spec.owner(), "custody changed");
    }

    /// An orphan whose name a Process now claims.
    pub(crate) fn claim_orphan(&mut self, id: &Id) -> Option<wire::State> {
        self.custody.orphans.remove(&**id)
    }

    /// Events of an instance are recorded with it as the object.
    pub(crate) fn tell(&mut self, id: &Id, notes: Vec<ostler_core::plan::Note>, now: Timestamp) {
        let Some(entry) = self.world.instances.get(id) else { return };
        for note in notes {
            info!(instance = %id, reason = note.reason, message = note.message, "event");
            self.recorder.record(Kind::Instance, &entry.object.metadata, note, now);
        }
    }

    /// Events of a process likewise.
    pub(crate) fn tell_of_process(&mut self, process: &Metadata, notes: Vec<ostler_core::plan::Note>, now: Timestamp) {
        for note in notes {
            info!(process = process.name, reason = note.reason, message = note.message, "event");
            self.recorder.record(Kind::Process, process, note, now);
        }
    }
}

fn over(state: &wire::State) -> bool {
    match state.phase() {
        wire::Phase::FailedToStart | wire::Phase::Empty => true,
        wire::Phase::Unspecified | wire::Phase::Running | wire::Phase::Exited | wire::Phase::Stuck => false,
    }
}

/// What a state says of the log.
pub(crate) fn output(state: &wire::State) -> Output {
    let log = state.log.unwrap_or_default();
    let blocked = (log.blocked_errno != 0)
        .then(|| std::io::Error::from_raw_os_error(log.blocked_errno).to_string().into_boxed_str());
    Output { blocked, dropped: log.dropped }
}

/// The command that lets custody drop its record of an attempt.
pub(crate) fn forget(uid: &str, attempt: u64, remove_logs: bool) -> wire::Command {
    wire::Forget { id: uid.to_owned(), attempt, remove_logs }.into()
}

fn exit_status(exit: Option<&wire::Exit>) -> ExitStatus {
    match exit.and_then(|exit| exit.status.as_ref()) {
        Some(wire::exit::Status::Code(code)) => ExitStatus::Code(*code),
        Some(wire::exit::Status::Signal(signal)) => ExitStatus::Signal(*signal),
        Some(wire::exit::Status::Unknown(why)) => ExitStatus::Unknown(why.clone()),
        None => ExitStatus::Unknown("custody did not see it".to_owned()),
    }
}

/// Whether the end of a leader was one for want of memory: the kernel killed it, or it says that of its child.
fn oom_killed(exit: &wire::Exit) -> bool {
    const KILLED_BY_SHELL: i32 = 128 + 9;
    exit.oom_kills > 0
        && match &exit.status {
            Some(wire::exit::Status::Signal(signal)) => *signal == 9,
            Some(wire::exit::Status::Code(code)) => *code == KILLED_BY_SHELL,
            Some(wire::exit::Status::Unknown(_)) | None => true,
        }
}

fn enforced(told: &wire::Enforcement) -> Option<EnforcedLimit> {
    let kind = match told.limit() {
        wire::Limit::Memory => LimitKind::Memory,
        wire::Limit::Cpu => LimitKind::Cpu,
        wire::Limit::Processes => LimitKind::Processes,
        wire::Limit::IoWeight => LimitKind::IoWeight,
        wire::Limit::OpenFiles => LimitKind::OpenFiles,
        wire::Limit::Nice => LimitKind::Nice,
        wire::Limit::Unspecified => return None,
    };
    let by = if told.by.is_empty() { Err(told.why_not.as_str().into()) } else { Ok(told.by.as_str().into()) };
    Some(EnforcedLimit { kind, value: told.value, by })
}

/// The planner's view of a state.
pub(crate) fn attempt(state: &wire::State, now: Timestamp) -> Option<Attempt> {
    static BOOT: OnceLock<String> = OnceLock::new();
    let boot = BOOT.get_or_init(|| ostler_keeper::wire::boot_id().unwrap_or_default());
    let exit = state.exit.as_ref();
    let at = exit.map_or(now, |exit| Timestamp::from_nanos(exit.at));
    let identity = state.identity.as_ref().map(|identity| Identity {
        boot_id: identity.boot_id.clone(),
        pid: identity.pid,
        start_time: identity.start_time,
    });
    let verdict = match state.phase() {
        wire::Phase::Running => AttemptState::Running,
        wire::Phase::Exited => AttemptState::LeaderExited { status: exit_status(exit), survivors: state.survivors },
        wire::Phase::Stuck => AttemptState::Stuck,
        wire::Phase::Empty => {
            let reboot = identity.as_ref().is_some_and(|identity| !boot.is_empty() && identity.boot_id != *boot);
            AttemptState::Ended { status: exit_status(exit), at, reboot }
        }
        wire::Phase::FailedToStart => {
            let error = state.error.clone().unwrap_or_default();
            AttemptState::FailedToStart(spawn::start_error(&error, at))
        }
        wire::Phase::Unspecified => return None,
    };
    let started_at = if state.started_at == 0 { at } else { Timestamp::from_nanos(state.started_at) };
    Some(Attempt {
        number: state.attempt,
        identity,
        started_at,
        state: verdict,
        oom_killed: exit.is_some_and(oom_killed),
        limits: (!state.limits.is_empty()).then(|| state.limits.iter().filter_map(enforced).collect()),
    })
}
