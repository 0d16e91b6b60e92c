//! Taking over what a keeper that died has left: from the journal, from the controller's descriptors, and from what
//! the kernel shows.
//!
//! Nothing is believed that an identity does not prove: a pid counts only with the start time that was recorded with
//! it, on the same boot, and signals go only through descriptors opened before that was checked.

use std::collections::HashMap;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;

use super::attempt::{Attempt, Life, Tree};
use super::chores::Chore;
use super::spawn::is_id;
use super::{Keeper, Source};
use crate::cgroup::{Root, Version};
use crate::wire::journal_record::Kind;
use crate::wire::{Ended, Exit, Identity, Intent, JournalRecord, Spawn, Started};
use crate::{procfs, sys};

const REBOOTED: &str = "the machine was restarted";
const UNSEEN: &str = "it ended while no keeper was there to see it";
const UNSTARTED: &str = "the keeper died while starting it, and no process of it is left";

/// How long a process that was being started when the keeper died may need to show itself.
const START_PATIENCE: Duration = Duration::from_millis(100);
const EXEC_PATIENCE: Duration = Duration::from_secs(2);

/// How often, and how long apart, the pipes of an adopted tree are looked for before they count as closed by it.
const PIPE_TRIES: usize = 10;
const PIPE_PAUSE: Duration = Duration::from_micros(500);

/// What the journal says of one attempt.
#[derive(Debug, Default)]
struct Entry {
    intent: Intent,
    started: Option<Started>,
    ended: Option<Ended>,
}

/// The attempts that were not forgotten, in order of their start, and the newest attempt ever of each instance.
fn fold(records: Vec<JournalRecord>) -> (Vec<Entry>, HashMap<String, u64>) {
    let mut entries: Vec<Option<Entry>> = Vec::new();
    let mut places: HashMap<(String, u64), usize> = HashMap::new();
    let mut newest: HashMap<String, u64> = HashMap::new();
    for record in records {
        match record.kind {
            Some(Kind::Intent(intent)) => {
                let seen = newest.entry(intent.id.clone()).or_default();
                *seen = (*seen).max(intent.attempt);
                let key = (intent.id.clone(), intent.attempt);
                if let Some(entry) = places.get(&key).and_then(|place| entries[*place].as_mut()) {
                    entry.intent = intent;
                } else {
                    places.insert(key, entries.len());
                    entries.push(Some(Entry { intent, ..Entry::default() }));
                }
            }
            Some(Kind::Started(started)) => {
                let key = (started.id.clone(), started.attempt);
                if let Some(entry) = places.get(&key).and_then(|place| entries[*place].as_mut()) {
                    entry.started = Some(started);
                }
            }
            Some(Kind::Ended(ended)) => {
                let key = (ended.id.clone(), ended.attempt);
                if let Some(entry) = places.get(&key).and_then(|place| entries[*place].as_mut()) {
                    entry.ended = Some(ended);
                }
            }
            Some(Kind::Forgotten(forgotten)) => {
                let seen = newest.entry(forgotten.id.clone()).or_default();
                *seen = (*seen).max(forgotten.attempt);
                if let Some(place) = places.remove(&(forgotten.id, forgotten.attempt)) {
                    entries[place] = None;
                }
            }
            None => {}
        }
    }
    (entries.into_iter().flatten().collect(), newest)
}

impl Keeper {
    /// Rebuilds the attempts from the journal. Those that may live wait for [`resolve`](Self::resolve).
    pub(super) fn recover(&mut self, records: Vec<JournalRecord>) {
        let (entries, newest) = fold(records);
        for entry in entries {
            self.recover_entry(entry);
        }
        for (id, attempt) in newest {
            if let Some(instance) = self.instances.get_mut(id.as_str()) {
                instance.newest = instance.newest.max(attempt);
            } else {
                self.remembered.insert(id.as_str().into(), attempt);
            }
        }
        self.recover_unrecorded_groups();
        self.find_trash();
        for number in self.logs_by_directory.values() {
            if let Some(log) = self.logs.get_mut(*number) {
                log.count_files(&self.state_dir);
            }
        }
        self.tidy_journal();
    }

    fn recover_entry(&mut self, entry: Entry) {
        let Entry { intent, started, ended } = entry;
        if !is_id(&intent.id) || intent.attempt == 0 {
            return;
        }
        let root = self.root_of(&intent.cgroup);
        let number = self.hold_recovered(&intent, root);
        let boot_id: Rc<str> = intent.boot_id.as_str().into();
        let is_this_boot = boot_id == self.boot_id;
        let Some(attempt) = self.attempts.get_mut(number) else {
            return;
        };
        if !is_this_boot {
            attempt.boot_id = boot_id;
        }
        if let Some(started) = started {
            set_started(attempt, &started);
        }
        if let Some(ended) = ended {
            attempt.life = match (&ended.error, ended.tree_empty) {
                (Some(_), _) => Life::FailedToStart,
                (None, true) => Life::Empty,
                (None, false) => Life::Exited,
            };
            attempt.exit = ended.exit.map(Box::new);
            attempt.error = ended.error.map(Box::new);
        }
        if attempt.is_over() {
            return;
        }
        if is_this_boot {
            attempt.awaiting = true;
            return;
        }
        attempt.life = Life::Empty;
        attempt.exit.get_or_insert_with(|| Box::new(Exit::unknown(REBOOTED, sys::unix_nanos())));
        if let Some(ended) = attempt.ended() {
            self.journal.note(ended);
        }
    }

    fn hold_recovered(&mut self, intent: &Intent, root: Option<Rc<Root>>) -> u32 {
        let spawn = Spawn {
            id: intent.id.clone(),
            attempt: intent.attempt,
            name: intent.name.clone(),
            log_dir: intent.log_dir.clone(),
            log: intent.log,
            ..Spawn::default()
        };
        let mut attempt = self.new_attempt(&spawn, root);
        attempt.limited = self.limited_of(intent);
        self.hold(attempt)
    }

    /// The directory that holds this group, if it is still there.
    pub(super) fn root_of(&mut self, group: &str) -> Option<Rc<Root>> {
        let path = Path::new(group).parent()?;
        let own = self.trees.root.as_ref();
        if let Some(root) = own.into_iter().chain(&self.other_roots).find(|root| root.path == path) {
            return Some(root.clone());
        }
        let version = if path.join("cgroup.controllers").exists() {
            Version::V2
        } else {
            Version::V1 { freezer: Path::new(group).join("freezer.state").exists() }
        };
        let root = Rc::new(Root::open(version, path).ok()?);
        self.other_roots.push(root.clone());
        Some(root)
    }

    /// Groups that the journal knows nothing of, because it was lost: whatever lives in them is still ours.
    fn recover_unrecorded_groups(&mut self) {
        self.sweep_limit_groups();
        let Some(root) = self.trees.root.clone() else {
            return;
        };
        for name in root.names() {
            let parsed = name.rsplit_once('.').and_then(|(id, attempt)| Some((id, attempt.parse::<u64>().ok()?)));
            let known = parsed.is_some_and(|(id, attempt)| self.current(id, attempt).is_some());
            if known {
                continue;
            }
            match parsed {
                Some((id, attempt)) if is_id(id) && attempt > 0 && root.is_populated(&name) => {
                    let intent = Intent {
                        id: id.to_owned(),
                        attempt,
                        name: String::new(),
                        log_dir: format!("logs/recovered/{id}"),
                        log: None,
                        boot_id: self.boot_id.to_string(),
                        cgroup: root.path.join(&name).display().to_string(),
                        limit_groups: Vec::new(),
                    };
                    let number = self.hold_recovered(&intent, Some(root.clone()));
                    self.journal.note(intent);
                    if let Some(held) = self.attempts.get_mut(number) {
                        held.awaiting = true;
                    }
                }
                _ => self.chores.push_back(Chore::Group { root: root.clone(), name, tries: 0 }),
            }
        }
    }

    /// The controller has given all it had.
    pub(super) fn finish_handoff(&mut self) {
        if !std::mem::take(&mut self.awaits_handoff) {
            return;
        }
        self.resolve_all();
        self.begin_snapshot(false);
    }

    /// Finds out about every attempt that may live.
    pub(super) fn resolve_all(&mut self) {
        for number in self.attempts.numbers() {
            self.resolve(number);
        }
    }

    /// Finds out what has become of an attempt, and takes over what is left of it.
    pub(super) fn resolve(&mut self, number: u32) {
        let Some(attempt) = self.attempts.get_mut(number) else {
            return;
        };
        attempt.awaiting = false;
        if attempt.is_over() {
            // What it wrote before its end may still be in pipes that the controller has kept.
            if attempt.has_pipes() {
                self.watch_output(number);
                self.settle_output(number);
                self.release_output(number);
            }
            return;
        }
        if attempt.life == Life::Running && attempt.pid == 0 {
            self.find_leader(number);
        }
        let is_alive = self.open_leader(number);
        self.reopen_pipes(number, is_alive);
        self.watch_output(number);
        let Some(attempt) = self.attempts.get(number) else {
            return;
        };
        match (attempt.life, is_alive) {
            (Life::Running, true) => {
                if !attempt.is_child
                    && let Some(pidfd) = &attempt.pidfd
                    && self.watch(pidfd.as_fd(), Source::Pidfd(number), EventFlags::IN | EventFlags::ET).is_err()
                {
                    self.check_soon(number);
                }
            }
            (Life::Running, false) => {
                let why = if attempt.pid == 0 { UNSTARTED } else { UNSEEN };
                self.on_exit(number, Exit::unknown(why, sys::unix_nanos()));
            }
            (Life::Exited, _) => {
                let survivors = self.survivors(number).len();
                if survivors == 0 {
                    self.check_tree(number);
                } else {
                    if let Some(attempt) = self.attempts.get_mut(number) {
                        attempt.survivors = survivors as u32;
                    }
                    self.await_empty(number);
                }
            }
            (Life::Empty | Life::FailedToStart, _) => {}
        }
        self.mark_dirty(number);
    }

    /// For an attempt that got no further than its Intent: the process in its group, or with its marker.
    fn find_leader(&mut self, number: u32) {
        let mut pids = self.look_for_tree(number);
        let is_born_inside = self
            .attempts
            .get(number)
            .is_some_and(|attempt| matches!(&attempt.tree, Tree::Group { root, .. } if root.version == Version::V2));
        if pids.is_empty() && !is_born_inside {
            // Between its birth and joining the group, or showing the marker.
            thread::sleep(START_PATIENCE);
            pids = self.look_for_tree(number);
        }
        // Start times are coarse, so a child can have its parent's; the leader is nobody's child and leads a session.
        let leader = pids
            .iter()
            .filter_map(|pid| Some((procfs::stat(*pid)?, *pid)))
            .filter(|(stat, _)| !stat.is_dead())
            .min_by_key(|(stat, pid)| {
                let is_child = pids.contains(&stat.parent);
                (is_child, stat.session != *pid, stat.start_time, *pid)
            });
        let (Some((stat, pid)), Some(attempt)) = (leader, self.attempts.get_mut(number)) else {
            return;
        };
        attempt.pid = pid;
        attempt.start_time = stat.start_time;
        attempt.started_at = sys::unix_nanos();
        if let Tree::Marker { members } = &mut attempt.tree {
            members.retain(|(member, _)| *member != pid);
        }
        // Before its exec its outputs are still those of the keeper that died.
        let marker = format!("OSTLER_ATTEMPT={}", attempt.token());
        let give_up_at = Instant::now() + EXEC_PATIENCE;
        let shows_marker = || procfs::environment_has(pid, marker.as_bytes()) == Some(true);
        while !shows_marker() && Instant::now() < give_up_at && procfs::stat(pid).is_some() {
            thread::sleep(Duration::from_millis(2));
        }
        if shows_marker() {
            let own = [1, 2].map(|fd| procfs::pipe_inode(std::process::id() as i32, fd));
            attempt.inodes =
                [1, 2].map(|fd| procfs::pipe_inode(pid, fd).filter(|inode| !own.contains(&Some(*inode))).unwrap_or(0));
        }
        if let Some(started) = attempt.started() {
            self.journal.note(started);
        }
    }

    fn look_for_tree(&mut self, number: u32) -> Vec<i32> {
        match self.attempts.get(number).map(|attempt| &attempt.tree) {
            Some(Tree::Group { root, .. }) => {
                let root = root.clone();
                let name = self.attempts.get(number).map(Attempt::token);
                name.map_or(Vec::new(), |name| root.pids(&name))
            }
            Some(Tree::Marker { .. }) => self.survivors(number),
            None => Vec::new(),
        }
    }

    /// Makes sure of a pidfd for the leader; false when the leader is gone.
    fn open_leader(&mut self, number: u32) -> bool {
        let Some(attempt) = self.attempts.get_mut(number) else {
            return false;
        };
        if attempt.life != Life::Running || attempt.pid == 0 {
            return false;
        }
        if attempt.pidfd.is_some() {
            // From the controller, who has it from the keeper that started the process. Ended or not, it tells.
            return true;
        }
        let Ok(pidfd) = sys::pidfd_open(attempt.pid) else {
            return false;
        };
        if procfs::stat(attempt.pid).is_none_or(|stat| stat.start_time != attempt.start_time) {
            return false;
        }
        attempt.pidfd = Some(pidfd);
        true
    }

    /// Finds the pipes that nobody gave us, through whoever of the tree still has them.
    fn reopen_pipes(&mut self, number: u32, is_alive: bool) {
        let missing = self
            .attempts
            .get(number)
            .is_some_and(|attempt| (0..2).any(|stream| attempt.pipes[stream].is_none() && attempt.inodes[stream] != 0));
        if !missing {
            return;
        }
        let leader = self.attempts.get(number).map_or(0, |attempt| attempt.pid);
        let mut pids = if is_alive { vec![leader] } else { Vec::new() };
        for tries in 0..PIPE_TRIES {
            if tries == 1 {
                pids.extend(self.survivors(number));
            }
            if tries > 0 {
                if pids.is_empty() {
                    return;
                }
                // A shell moves its descriptors about while it runs a command with a redirection.
                thread::sleep(PIPE_PAUSE);
            }
            let Some(attempt) = self.attempts.get_mut(number) else {
                return;
            };
            for stream in 0..2 {
                let inode = attempt.inodes[stream];
                if inode != 0 && attempt.pipes[stream].is_none() {
                    attempt.pipes[stream] = pids.iter().find_map(|pid| procfs::reopen_pipe(*pid, inode));
                }
            }
            if (0..2).all(|stream| attempt.pipes[stream].is_some() || attempt.inodes[stream] == 0) {
                return;
            }
        }
    }
}

pub(super) fn set_started(attempt: &mut Attempt, started: &Started) {
    let identity: &Identity = &started.identity.clone().unwrap_or_default();
    attempt.pid = identity.pid;
    attempt.start_time = identity.start_time;
    attempt.started_at = started.at;
    attempt.inodes = [started.stdout_inode, started.stderr_inode];
    if !started.limits.is_empty() {
        attempt.limited.get_or_insert_default().enforced.clone_from(&started.limits);
    }
}

#[cfg(test)]
mod tests {
    use super::super::attempt::token;
    use super::*;
    use crate::wire::Forgotten;

    fn intent(id: &str, attempt: u64) -> Intent {
        Intent { id: id.to_owned(), attempt, ..Intent::default() }
    }

    #[test]
    fn forgotten_attempts_leave_only_their_number() {
        let (entries, newest) = fold(vec![
            intent("a", 1).into(),
            intent("b", 4).into(),
            Ended { id: "a".to_owned(), attempt: 1, tree_empty: true, ..Ended::default() }.into(),
            Forgotten { id: "a".to_owned(), attempt: 1 }.into(),
            intent("a", 2).into(),
        ]);
        let left: Vec<_> = entries.iter().map(|entry| token(&entry.intent.id, entry.intent.attempt)).collect();
        assert_eq!(left, ["b.4", "a.2"]);
        assert_eq!(newest["a"], 2);
        assert!(entries.iter().all(|entry| entry.ended.is_none()));
    }

    #[test]
    fn a_repeated_intent_changes_the_settings_and_nothing_else() {
        let mut again = intent("a", 1);
        again.log_dir = "logs/a".to_owned();
        let started = Started { id: "a".to_owned(), attempt: 1, ..Started::default() };
        let (entries, _) = fold(vec![intent("a", 1).into(), started.clone().into(), again.into()]);
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0].intent.log_dir, "logs/a");
        assert_eq!(entries[0].started, Some(started));
    }
}
