//! What the controller asks for, a few commands at a time.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::attempt::{Attempt, Instance, Tree};
use super::chores::Chore;
use super::{Keeper, RELEASE, TERMINATE_PATIENCE};
use crate::fail;
use crate::sys;
use crate::wire::command::Kind;
use crate::wire::{Forget, Forgotten, Handoff, JournalRecord, LogPolicy, LogSettings, Refused, Request, Terminate};

/// Spawns between two looks at everything else: the controller is told of them meanwhile, and logs are drained.
const SPAWNS_AT_ONCE: usize = 4;

/// Other commands between two looks at everything else.
const COMMANDS_AT_ONCE: usize = 256;

/// Instances without attempts that are remembered so that an old attempt is not started again.
const IDLE_INSTANCES: usize = 4096;

impl Keeper {
    /// Queues a packet's commands, each with its descriptors.
    pub(super) fn accept(&mut self, request: Request, fds: Vec<OwnedFd>) {
        let mut fds = VecDeque::from(fds);
        for command in request.commands {
            let count = match &command.kind {
                Some(Kind::Handoff(handoff)) => {
                    [handoff.has_pidfd, handoff.has_stdout, handoff.has_stderr].into_iter().filter(|has| *has).count()
                }
                _ => 0,
            };
            let own = fds.drain(..count.min(fds.len())).collect();
            self.commands.push_back((command, own));
        }
    }

    pub(super) fn do_commands(&mut self) {
        let mut spawns = 0;
        for _ in 0..COMMANDS_AT_ONCE {
            if spawns >= SPAWNS_AT_ONCE || self.ending.is_some() {
                return;
            }
            let Some((command, fds)) = self.commands.pop_front() else {
                // A request with thousands of commands must not cost memory for ever.
                self.commands.shrink_to(COMMANDS_AT_ONCE);
                return;
            };
            self.release_at.get_or_insert_with(|| Instant::now() + RELEASE);
            match command.kind {
                Some(Kind::Hello(hello)) => self.on_hello(&hello),
                Some(Kind::Spawn(spawn)) => {
                    spawns += 1;
                    self.spawn(&spawn);
                }
                Some(Kind::Signal(signal)) => {
                    if !(1..=64).contains(&signal.signal) {
                        let why = format!("there is no signal {}", signal.signal);
                        self.refuse(&signal.id, signal.attempt, why);
                    } else if let Some(number) = self.current(&signal.id, signal.attempt) {
                        if signal.tree {
                            self.signal_tree(number, signal.signal);
                        } else {
                            self.signal_leader(number, signal.signal);
                        }
                    }
                }
                Some(Kind::Kill(kill)) => {
                    if let Some(number) = self.current(&kill.id, kill.attempt) {
                        self.kill(number);
                    }
                }
                Some(Kind::Forget(forget)) => self.forget(&forget),
                Some(Kind::Upgrade(upgrade)) => self.begin_upgrade(upgrade.binary),
                Some(Kind::Shutdown(shutdown)) => {
                    self.peer.is_told_to_end = true;
                    self.ending = Some(shutdown.exit_code);
                }
                Some(Kind::Handoff(handoff)) => self.take_over(&handoff, fds),
                Some(Kind::HandoffDone(_)) => self.finish_handoff(),
                Some(Kind::LogPolicy(policy)) => self.set_log_policy(&policy),
                Some(Kind::SetLimits(limits)) => self.set_limits(&limits),
                Some(Kind::Postpone(postpone)) => {
                    let seconds = Duration::from_secs(u64::from(postpone.seconds));
                    self.terminate_by = self.terminate_by.map(|_| Instant::now() + seconds);
                }
                // A command of a newer protocol, which its sender does not rely on: Hello told it what this one is.
                None => {}
            }
        }
    }

    pub(super) fn refuse(&mut self, id: &str, attempt: u64, why: String) {
        self.outbox.push_back(Refused { id: id.to_owned(), attempt, why }.into());
    }

    /// The place of this attempt.
    pub(super) fn current(&self, id: &str, attempt: u64) -> Option<u32> {
        self.instances
            .get(id)?
            .attempts
            .iter()
            .copied()
            .find(|number| self.attempts.get(*number).is_some_and(|held| held.attempt == attempt))
    }

    /// The instance with this id, made when there is none, writing to this log from now on.
    pub(super) fn instance(&mut self, id: &str, directory: &str, settings: LogSettings) -> Rc<str> {
        let log = self.log_for(directory, settings);
        if let Some((key, _)) = self.instances.get_key_value(id) {
            let key = key.clone();
            let before = self.instances.get(&key).map(|instance| instance.log);
            if before != Some(log) {
                if let Some(instance) = self.instances.get_mut(&key) {
                    instance.log = log;
                }
                if let Some(log) = self.logs.get_mut(log) {
                    log.users += 1;
                }
                if let Some(before) = before {
                    self.leave_log(before);
                }
            }
            return key;
        }
        if let Some(log) = self.logs.get_mut(log) {
            log.users += 1;
        }
        let key: Rc<str> = id.into();
        let newest = self.remembered.remove(id).unwrap_or(0);
        self.instances.insert(key.clone(), Instance { newest, log, attempts: Vec::new() });
        key
    }

    /// Adds an attempt to its instance.
    pub(super) fn hold(&mut self, attempt: Attempt) -> u32 {
        let id = attempt.id.clone();
        let (value, pid, is_child) = (attempt.attempt, attempt.pid, attempt.is_child);
        let number = self.attempts.insert(attempt);
        if is_child && pid != 0 {
            self.by_pid.insert(pid, number);
        }
        if let Some(instance) = self.instances.get_mut(&id) {
            instance.newest = instance.newest.max(value);
            instance.attempts.push(number);
        }
        number
    }

    /// The controller has stored the end of an attempt.
    fn forget(&mut self, forget: &Forget) {
        if let Some(number) = self.current(&forget.id, forget.attempt) {
            if self.attempts.get(number).is_none_or(|attempt| !attempt.is_over()) {
                return;
            }
            fail::point("forget-before-journal");
            self.journal.note(Forgotten { id: forget.id.clone(), attempt: forget.attempt });
            fail::point("forget-after-journal");
            if let Some(instance) = self.instances.get_mut(forget.id.as_str()) {
                instance.attempts.retain(|other| *other != number);
            }
            let mut waits_for_disk = false;
            if let Some(attempt) = self.attempts.get_mut(number) {
                attempt.is_forgotten = true;
                waits_for_disk = attempt.has_pipes();
                if let Tree::Group { root, .. } = &attempt.tree {
                    self.chores.push_back(Chore::Group { root: root.clone(), name: attempt.token(), tries: 0 });
                }
                for root in attempt.limited.iter().flat_map(|limited| &limited.beside) {
                    self.chores.push_back(Chore::Group { root: root.clone(), name: attempt.token(), tries: 0 });
                }
            }
            if forget.remove_logs {
                self.drop_output(number);
            } else if !waits_for_disk {
                self.attempts.remove(number);
            }
        }
        let Some((id, instance)) = self.instances.get_key_value(forget.id.as_str()) else {
            return;
        };
        if !instance.attempts.is_empty() {
            return;
        }
        let (id, log) = (id.clone(), instance.log);
        if forget.remove_logs {
            self.instances.remove(&id);
            if self.logs.get(log).is_some_and(|log| log.users == 1) {
                self.drop_log(log);
            } else {
                self.leave_log(log);
            }
        } else if !self.idle_instances.contains(&id) {
            self.idle_instances.push_back(id);
            self.drop_idle_instances();
        }
        self.tidy_journal();
    }

    fn drop_idle_instances(&mut self) {
        while self.idle_instances.len() > IDLE_INSTANCES {
            let Some(id) = self.idle_instances.pop_front() else {
                return;
            };
            if self.instances.get(&id).is_some_and(|instance| instance.attempts.is_empty())
                && let Some(instance) = self.instances.remove(&id)
            {
                self.leave_log(instance.log);
            }
        }
    }

    /// One instance less writes to this log.
    fn leave_log(&mut self, number: u32) {
        let Some(log) = self.logs.get_mut(number) else {
            return;
        };
        log.users = log.users.saturating_sub(1);
        if log.users == 0
            && log.sources.is_empty()
            && let Some(log) = self.logs.remove(number)
        {
            self.logs_by_directory.remove(&log.directory);
        }
    }

    /// Removes a log that nobody else writes to, files and all.
    fn drop_log(&mut self, number: u32) {
        let sources = self.logs.get(number).map_or(Vec::new(), |log| log.sources.clone());
        for source in sources {
            self.drop_output(source);
        }
        if let Some(log) = self.logs.remove(number) {
            self.logs_by_directory.remove(&log.directory);
            self.blocked_logs.retain(|other| *other != number);
            self.open_logs.retain(|other| *other != number);
            self.remove_log_directory(&log.directory);
        }
    }

    fn set_log_policy(&mut self, policy: &LogPolicy) {
        let Some(instance) = self.instances.get(policy.id.as_str()) else {
            return;
        };
        let settings = policy.log.unwrap_or_default();
        let newest = instance.attempts.last().copied();
        let Some(log) = self.logs.get_mut(instance.log) else {
            return;
        };
        if log.settings == settings {
            return;
        }
        log.settings = settings;
        let directory = log.directory.clone();
        // A second Intent for the same attempt only updates the settings.
        if let Some(attempt) = newest.and_then(|number| self.attempts.get(number)) {
            self.journal.note(attempt.intent(&directory, settings));
        }
    }

    fn take_over(&mut self, handoff: &Handoff, fds: Vec<OwnedFd>) {
        let Some(number) = self.current(&handoff.id, handoff.attempt) else {
            return;
        };
        let Some(attempt) = self.attempts.get_mut(number) else {
            return;
        };
        if !self.awaits_handoff {
            return;
        }
        let mut fds = fds.into_iter();
        if handoff.has_pidfd {
            attempt.pidfd = fds.next();
        }
        for (stream, has) in [handoff.has_stdout, handoff.has_stderr].into_iter().enumerate() {
            if has {
                attempt.pipes[stream] = fds.next();
            }
        }
        attempt.is_handed_out = true;
    }

    /// The service manager, the user or the terminal wants the daemon to end.
    pub(super) fn on_terminate(&mut self, signal: i32) {
        self.terminations += 1;
        if !self.peer.is_connected() || self.terminations >= 3 {
            sys::say(&format_args!("ending; the workloads go on"));
            self.ending = Some(0);
            return;
        }
        self.terminate_by.get_or_insert_with(|| Instant::now() + TERMINATE_PATIENCE);
        self.outbox.push_back(Terminate { signal, is_init: std::process::id() == 1 }.into());
    }

    /// Shortens the journal when most of it is history.
    pub(super) fn tidy_journal(&mut self) {
        if !self.journal.is_long() {
            return;
        }
        let mut records: Vec<JournalRecord> = self
            .remembered
            .iter()
            .take(IDLE_INSTANCES)
            .map(|(id, newest)| Forgotten { id: id.to_string(), attempt: *newest }.into())
            .collect();
        for (id, instance) in &self.instances {
            if instance.attempts.is_empty() {
                records.push(Forgotten { id: id.to_string(), attempt: instance.newest }.into());
            }
            for attempt in instance.attempts.iter().filter_map(|number| self.attempts.get(*number)) {
                let (directory, settings) = self.log_of(attempt);
                records.push(attempt.intent(directory, settings).into());
                records.extend(attempt.started().map(Into::into));
                records.extend(attempt.ended().map(Into::into));
            }
        }
        // The old journal stays in use when the disk is full.
        let _ = self.journal.rewrite(records.into_iter());
    }

    pub(super) fn log_of(&self, attempt: &Attempt) -> (&str, LogSettings) {
        self.logs.get(attempt.log).map_or(("", LogSettings::default()), |log| (&log.directory, log.settings))
    }
}
