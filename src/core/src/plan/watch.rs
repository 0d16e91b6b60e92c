//! Decides what a change of watched files leads to, and which processes follow one that was restarted.
//!
//! Pure: from the Process as it is stored and what a look at its files showed, to the Process as it is to be stored. The
//! fingerprint that was acted upon and the request to restart are written together, so a change leads to one restart,
//! whoever dies when.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::Note;
use crate::kinds::{
    Condition, FILES_WATCHED, FileWatch, Instance, PAUSED_AT, Phase, Process, RESTART_CASCADE, RESTART_CAUSE,
    RESTARTED_AT, RESTARTED_TOGETHER_AT, STOPPED_AT, Truth, WatchAction, set_condition,
};
use crate::time::{Span, Timestamp};

/// When a look is due after hints that something changed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Debounce {
    /// The first and the last hint since the last look.
    heard: Option<(Instant, Instant)>,
}

/// The shortest time after which changes that do not end are acted upon.
const LEAST: Duration = Duration::from_secs(10);

impl Debounce {
    /// Something may have changed.
    pub fn hear(&mut self, at: Instant) {
        self.heard = Some(self.heard.map_or((at, at), |(first, last)| (first, last.max(at))));
    }

    /// When it is quiet enough for a look.
    pub fn due(&self, debounce: Span) -> Option<Instant> {
        let (first, last) = self.heard?;
        let quiet = debounce.to_std();
        Some((last + quiet).min(first + (quiet * 20).max(LEAST)))
    }

    /// A look begins: what is heard from now on is for the next one.
    pub fn reset(&mut self) {
        self.heard = None;
    }
}

/// What a look at the files of a process showed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Hash of names and content.
    pub fingerprint: String,
    /// How many files there are.
    pub files: u32,
    /// When the youngest of them, or of their directories, changed.
    pub youngest: Option<Timestamp>,
    /// What differs from the look before, when there was one; else the youngest file.
    pub changed: Vec<String>,
    /// It is the first one of this daemon: what changed before may have been answered already, by a start.
    pub first: bool,
    /// Why not everything can be watched, reason and message; then changes are looked for from time to time.
    pub trouble: Option<(&'static str, String)>,
    /// Nothing is known of the files: there are too many of them, or they cannot be read.
    pub blind: bool,
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The Process as it is to be stored, if it is to change.
    pub process: Option<Box<Process>>,
    /// The main process of each running instance is to get this signal, before that is stored.
    pub signal: Option<String>,
    /// To be told when it is stored.
    pub note: Option<Note>,
}

/// What a look leads to. `instances` are those of the process.
pub fn plan(process: &Process, instances: &[&Instance], look: &Look, now: Timestamp) -> Plan {
    let mut next = process.clone();
    let mut plan = Plan { process: None, signal: None, note: None };
    let Some(watch) = &process.spec.watch else {
        next.status.watch = None;
        next.status.conditions.retain(|condition| condition.kind != FILES_WATCHED);
        plan.process = (next != *process).then(|| Box::new(next));
        return plan;
    };
    let watches = watch.identity(&process.spec.working_dir);
    set_condition(&mut next.status.conditions, watched(watch, look), now);
    if !look.blind {
        let before = process.status.watch.as_deref().filter(|known| known.watches == watches);
        let changed = before.is_some_and(|known| known.fingerprint != look.fingerprint);
        let mut status = before.cloned().unwrap_or_default();
        status.watches = watches;
        status.fingerprint.clone_from(&look.fingerprint);
        status.files = look.files;
        if changed && concerns(process, instances, look) {
            status.changed_path = look.changed.first().cloned().unwrap_or_default();
            status.changed_at = Some(now);
            let story = story(&look.changed);
            match watch.action {
                WatchAction::Restart => {
                    restart(&mut next, "FilesChanged", &story, watch.cascade, now);
                    plan.note = Some(Note::normal("FilesChanged", format!("{story}: restarting")));
                }
                WatchAction::Signal => {
                    plan.signal = Some(watch.signal().to_owned());
                    let message = format!("{story}: {} to the main process", watch.signal());
                    plan.note = Some(Note::normal("FilesChanged", message));
                }
            }
        }
        next.status.watch = Some(Box::new(status));
    }
    plan.process = (next != *process).then(|| Box::new(next));
    plan
}

/// Whether somebody runs who does not know the files as they are.
fn concerns(process: &Process, instances: &[&Instance], look: &Look) -> bool {
    let annotations = &process.metadata.annotations;
    if process.metadata.is_deleting() || annotations.contains_key(STOPPED_AT) {
        return false;
    }
    if !look.first {
        return true;
    }
    // What was started after the last change knows it; what is to be started will.
    instances.iter().any(|instance| {
        let status = &instance.status;
        match status.phase {
            Phase::Running | Phase::Starting | Phase::Stopping | Phase::Stuck | Phase::Unknown => {
                status.started_at.is_none_or(|at| look.youngest.is_none_or(|youngest| at <= youngest))
            }
            Phase::Failed | Phase::Backoff => true,
            Phase::Pending | Phase::Stopped | Phase::Lost => false,
        }
    })
}

/// "src/app.py changed", "src/app.py and 3 more files changed"
fn story(changed: &[String]) -> String {
    match changed {
        [] => "a file changed".to_owned(),
        [one] => format!("{one} changed"),
        [one, _] => format!("{one} and 1 more file changed"),
        [one, more @ ..] => format!("{one} and {} more files changed", more.len()),
    }
}

fn watched(watch: &FileWatch, look: &Look) -> Condition {
    let (status, reason, message) = match &look.trouble {
        Some((reason, message)) => (Truth::False, *reason, message.clone()),
        None => (Truth::True, "Watching", format!("{} files below {}", look.files, watch.paths.join(", "))),
    };
    Condition {
        kind: FILES_WATCHED.to_owned(),
        status,
        reason: reason.to_owned(),
        message,
        last_transition_time: None,
        observed_generation: None,
    }
}

/// Asks for a restart, as by hand.
fn restart(process: &mut Process, reason: &str, story: &str, cascade: bool, now: Timestamp) {
    let metadata = &mut process.metadata;
    let at = now.to_string();
    metadata.annotations.insert(RESTART_CAUSE.to_owned(), format!("{at} {reason}: {story}"));
    metadata.annotations.remove(RESTARTED_TOGETHER_AT);
    if cascade {
        metadata.annotations.insert(RESTART_CASCADE.to_owned(), at.clone());
    }
    metadata.annotations.insert(RESTARTED_AT.to_owned(), at);
    metadata.generation += 1;
}

/// Why the last restart was asked for, if it was not by hand: when, reason and sentence.
pub fn cause(process: &Process) -> Option<(Timestamp, &str)> {
    let annotations = &process.metadata.annotations;
    let at = annotations.get(RESTARTED_AT)?;
    let story = annotations.get(RESTART_CAUSE)?.strip_prefix(at.as_str())?.strip_prefix(' ')?;
    Some((at.parse().ok()?, story))
}

/// A restart that is complete, and what follows from it: to be stored together.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The Process whose restart is complete.
    pub done: Process,
    /// Those that are restarted now.
    pub restart: Vec<(Process, Note)>,
}

/// Namespace and name of a Process.
type Id<'a> = (&'a str, &'a str);

fn id(process: &Process) -> Id<'_> {
    (&process.metadata.namespace, &process.metadata.name)
}

/// The next step of restarts that cascade, given all processes: dependencies lead through namespaces.
pub fn cascade(processes: &[Process], now: Timestamp) -> Option<Step> {
    let done = processes.iter().find(|process| is_complete(process))?;
    let by_id: BTreeMap<Id<'_>, &Process> = processes.iter().map(|it| (id(it), it)).collect();
    let follows = follows(processes, id(done));
    let pending = |other: Id<'_>| {
        other != id(done) && by_id.get(&other).is_some_and(|it| it.metadata.annotations.contains_key(RESTART_CASCADE))
    };
    let mut restart_now = Vec::new();
    for process in follows.iter().filter_map(|id| by_id.get(id)) {
        // Its turn comes after others that follow, or that are being restarted for the same reason.
        if needs(process).any(|other| follows.contains(&other) || pending(other)) {
            continue;
        }
        let mut next = (*process).clone();
        let story = format!("process/{}, which it depends on, was restarted", done.metadata.name);
        restart(&mut next, "DependencyRestarted", &story, true, now);
        restart_now.push((next, Note::normal("DependencyRestarted", format!("{story}: restarting"))));
    }
    let mut done = done.clone();
    done.metadata.annotations.remove(RESTART_CASCADE);
    Some(Step { done, restart: restart_now })
}

/// Whether it was restarted so that others follow, and that restart has been answered everywhere.
pub fn is_complete(process: &Process) -> bool {
    let (annotations, status) = (&process.metadata.annotations, &process.status);
    if !annotations.contains_key(RESTART_CASCADE) {
        return false;
    }
    let ready = status.conditions.iter().any(|it| it.kind == "Ready" && it.status == Truth::True);
    status.observed_generation >= process.metadata.generation && status.rollout.is_none() && ready
}

fn needs(process: &Process) -> impl Iterator<Item = Id<'_>> {
    let own = process.metadata.namespace.as_str();
    let depends_on = process.spec.depends_on.iter();
    depends_on.filter_map(move |dependency| Some((dependency.namespace(own), dependency.process.as_deref()?)))
}

/// Those that depend on a process, directly or through others. What is stopped, paused or being deleted stays as it is,
/// and so does what only depends through it.
fn follows<'a>(processes: &'a [Process], of: Id<'a>) -> BTreeSet<Id<'a>> {
    let moves = |process: &&Process| {
        let metadata = &process.metadata;
        let held = [STOPPED_AT, PAUSED_AT].iter().any(|annotation| metadata.annotations.contains_key(*annotation));
        !held && !process.spec.update.paused && !metadata.is_deleting()
    };
    let mut found = BTreeSet::new();
    let mut from = vec![of];
    while let Some(on) = from.pop() {
        for process in processes.iter().filter(moves).filter(|process| needs(process).any(|other| other == on)) {
            if found.insert(id(process)) {
                from.push(id(process));
            }
        }
    }
    found
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
