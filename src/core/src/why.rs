//! Why an object is as it is: the chain of causes, in a few lines.
//!
//! Pure: from what the API has published of an object, its events and its last words, to lines in the order in which one
//! thing followed from the other: what was asked for, how it ended, what it said, which policy decided, what comes next,
//! and who waits for it.

use serde::Serialize;

use crate::graph::Node;
use crate::kinds::{
    Event, Exit, HookKind, Instance, Phase, Process, ProcessSpec, RESTARTED_AT, RestartPolicy, STOPPED_AT, Severity,
    StopReason, Truth,
};
use crate::plan::instance::{
    DEPENDENCY_NOT_READY, DEPENDENCY_TIMEOUT, POST_START_PENDING, WAITS_FOR_DEPENDENTS, describe,
};
use crate::restart;
use crate::time::{Span, Timestamp};

/// What is known of an instance.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The instance.
    pub instance: &'a Instance,
    /// Its process, unless that is gone.
    pub process: Option<&'a Process>,
    /// The other instances of its process.
    pub siblings: &'a [Instance],
    /// Instances of other processes and jobs that wait for its process.
    pub waiters: &'a [Instance],
    /// Its events.
    pub events: &'a [Event],
    /// The last lines that the attempt which ended last wrote, oldest first.
    pub last_words: &'a [String],
    /// The time.
    pub now: Timestamp,
}

/// What a line is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Step {
    /// What was asked for.
    Spec,
    /// How things are.
    Now,
    /// How the last attempt ended.
    End,
    /// What it said last.
    Said,
    /// Which policy decided.
    Policy,
    /// What comes next, and when.
    Next,
    /// Who waits for it.
    Waits,
}

impl Step {
    /// The word that a line begins with.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Spec => "spec",
            Self::Now => "now",
            Self::End => "end",
            Self::Said => "said",
            Self::Policy => "policy",
            Self::Next => "next",
            Self::Waits => "waits",
        }
    }
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Link {
    /// What it is about.
    pub step: Step,
    /// What there is to say.
    pub text: String,
}

/// The chain of causes of one object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Chain {
    /// `instance/web-0`
    pub object: String,
    /// In a few words.
    pub summary: String,
    /// Cause before effect.
    pub links: Vec<Link>,
}

struct Teller {
    links: Vec<Link>,
    now: Timestamp,
}

impl Teller {
    fn say(&mut self, step: Step, text: impl Into<String>) {
        self.links.push(Link { step, text: text.into() });
    }

    fn ago(&self, at: Timestamp) -> String {
        format!("{} ago", rough(self.now.since(at)))
    }

    /// A point in time that may have come already.
    fn due(&self, at: Timestamp) -> String {
        if at > self.now { format!("in {} ({})", rough(at.since(self.now)), seconds(at)) } else { "now".to_owned() }
    }
}

/// Why an instance is as it is.
pub fn instance(facts: &Facts<'_>) -> Chain {
    let Facts { instance, process, siblings, waiters, events, last_words, now } = *facts;
    let (spec, status) = (&instance.spec, &instance.status);
    let mut teller = Teller { links: Vec::new(), now };
    let generation = process.map_or(String::new(), |process| format!(", generation {}", process.metadata.generation));
    let revision = format!("revision {} of process/{}{generation}", short(&spec.revision), spec.process);
    teller.say(Step::Spec, format!("{revision}: {}", command(&spec.template)));
    if status.is_live() && !status.revision.is_empty() && status.revision != spec.revision {
        teller.say(Step::Spec, format!("what runs was started from revision {}", short(&status.revision)));
    }
    if let Some((at, story)) = process.and_then(crate::plan::watch::cause)
        && spec.restarted_at == Some(at)
    {
        let word = if status.restarted_at == Some(at) { "restarted" } else { "to be restarted" };
        teller.say(Step::Spec, format!("{word} {}: {story}", teller.ago(at)));
    }
    let present = present(instance, &teller);
    teller.say(Step::Now, present);
    if let Some(exit) = &status.last_exit {
        let text = ended(instance, exit, events, &teller);
        teller.say(Step::End, text);
        for line in last_words {
            teller.say(Step::Said, line.clone());
        }
    }
    if let Some(text) = decided(instance) {
        teller.say(Step::Policy, text);
    }
    let next = next(instance, &teller);
    teller.say(Step::Next, next);
    for text in waiting(instance, process, siblings) {
        teller.say(Step::Waits, text);
    }
    for waiter in waiters {
        teller.say(Step::Waits, format!("instance/{}: {}", waiter.metadata.name, waiter.status.message));
    }
    let name = &instance.metadata.name;
    Chain { object: format!("instance/{name}"), summary: summary(instance), links: teller.links }
}

/// Why a process is as it is, apart from its instances.
pub fn process(process: &Process, instances: &[Instance], now: Timestamp) -> Chain {
    let mut teller = Teller { links: Vec::new(), now };
    let (spec, status, metadata) = (&process.spec, &process.status, &process.metadata);
    let copies = spec.replicas();
    teller.say(
        Step::Spec,
        format!(
            "revision {}, generation {}: {copies} × {}",
            short(&process.revision()),
            metadata.generation,
            command(spec)
        ),
    );
    let condition = status.conditions.iter().find(|condition| condition.kind == "Ready");
    let summary = condition.map_or("not seen yet".to_owned(), |condition| condition.reason.clone());
    if status.observed_generation < metadata.generation {
        let seen = status.observed_generation;
        teller.say(Step::Now, format!("the controller has not looked at this generation yet, only at {seen}"));
    }
    if let Some(condition) = condition {
        let since = condition.last_transition_time.map_or(String::new(), |at| format!(", {}", teller.ago(at)));
        let word = if condition.status == Truth::True { "ready" } else { "not ready" };
        let message = if condition.message.is_empty() { &condition.reason } else { &condition.message };
        teller.say(Step::Now, format!("{word}{since}: {message}"));
    }
    let old = instances.iter().filter(|instance| instance.status.revision != status.revision).count();
    if old > 0 && !metadata.is_deleting() {
        teller.say(Step::Now, format!("{old} of {} instances are not of this revision yet", instances.len()));
    }
    let by_hand = |annotation: &str| metadata.annotations.get(annotation)?.parse::<Timestamp>().ok();
    if metadata.is_deleting() {
        teller.say(Step::Next, format!("it goes when its instances are gone: {} left", instances.len()));
    } else if let Some(at) = by_hand(STOPPED_AT) {
        teller.say(Step::Policy, format!("stopped by hand {}", teller.ago(at)));
        teller.say(Step::Next, format!("nothing, until `ostler start process/{}`", metadata.name));
    } else if let Some(at) = by_hand(RESTARTED_AT)
        && instances.iter().any(|instance| instance.status.restarted_at < Some(at))
        && crate::plan::watch::cause(process).is_none()
    {
        teller.say(Step::Policy, format!("restarted by hand {}, one instance at a time", teller.ago(at)));
    }
    if let Some((at, story)) = crate::plan::watch::cause(process)
        && !metadata.is_deleting()
    {
        teller.say(Step::Policy, format!("restarted {}: {story}", teller.ago(at)));
    }
    Chain { object: format!("process/{}", metadata.name), summary, links: teller.links }
}

/// Whether an instance has not been started because this Process or Job is not as it wants it.
pub fn waits_for(instance: &Instance, node: &Node) -> bool {
    let message = &instance.status.message;
    let names = |text: String| message.match_indices(&text).any(|(at, _)| at == 0 || message[..at].ends_with(' '));
    is_waiting(instance)
        && (names(format!("{node} (")) || names(format!("{} (", node.seen_from(&instance.metadata.namespace))))
}

/// Whether it has not been started because of what it depends on.
fn is_waiting(instance: &Instance) -> bool {
    matches!(instance.status.reason.as_str(), DEPENDENCY_NOT_READY | DEPENDENCY_TIMEOUT)
}

/// Whether there is something about an instance that its process is not ready for.
pub fn is_troubled(instance: &Instance) -> bool {
    !instance.status.ready && instance.status.reason != "Completed"
}

fn summary(instance: &Instance) -> String {
    let status = &instance.status;
    let phase = status.phase.name();
    let ready = if status.phase == Phase::Running && !status.ready { ", not ready" } else { "" };
    if status.reason.is_empty() || status.reason == phase {
        format!("{phase}{ready}")
    } else {
        format!("{phase} ({}){ready}", status.reason)
    }
}

/// How things are now.
fn present(instance: &Instance, teller: &Teller) -> String {
    let status = &instance.status;
    let since =
        status.history.last().map_or(String::new(), |entry| format!(" since {}", rough(teller.now.since(entry.at))));
    let pid = status.pid.map_or(String::new(), |pid| format!(", pid {pid}"));
    let attempt = status.attempt;
    match status.phase {
        Phase::Running => {
            let condition = status.conditions.iter().find(|condition| condition.kind == "Ready");
            let message = condition.map_or("", |condition| condition.message.as_str());
            let reason = condition.map_or("", |condition| condition.reason.as_str());
            let not_ready = if status.ready {
                String::new()
            } else if reason == POST_START_PENDING {
                ", not ready: the postStart hook runs".to_owned()
            } else if message.is_empty() || status.fallback.is_some() {
                ", not ready".to_owned()
            } else {
                format!(", not ready: {message}")
            };
            let what = match &status.fallback {
                Some(fallback) => format!("the fallback command runs, since {}", fallback.message),
                None => "runs".to_owned(),
            };
            format!("{what}; attempt {attempt}{pid}{since}{not_ready}")
        }
        Phase::Starting => format!("attempt {attempt} is being started{since}"),
        Phase::Stopping if status.reason == HookKind::PostStop.reason() => format!("{}{since}", status.message),
        Phase::Stopping | Phase::Stuck => {
            let Some(stopping) = &status.stopping else { return format!("is being stopped{since}") };
            let found = stopping.verdict.as_ref().map_or(String::new(), |verdict| format!(": {}", verdict.message));
            let more = if status.phase == Phase::Stuck {
                "; killed, and the kernel does not let it go".to_owned()
            } else if status.message.is_empty() {
                String::new()
            } else {
                format!("; {}", status.message)
            };
            format!("attempt {attempt}{pid} is being stopped: {}{found}{more}", why_stopped(stopping.reason))
        }
        Phase::Pending | Phase::Failed if is_waiting(instance) => format!("{}{since}", status.message),
        Phase::Pending if status.reason == HookKind::PreStart.reason() => format!("{}{since}", status.message),
        Phase::Pending => format!("has not been started yet{since}"),
        Phase::Backoff => format!("waits to be started again{since}"),
        Phase::Stopped if instance.metadata.is_deleting() => "is being deleted".to_owned(),
        Phase::Stopped => format!("does not run{since}"),
        Phase::Failed => format!("does not run, and is not started again{since}"),
        Phase::Lost => format!("ran before the machine was rebooted{since}"),
        Phase::Unknown => format!("nobody can tell{since}"),
    }
}

const fn why_stopped(reason: StopReason) -> &'static str {
    match reason {
        StopReason::Stopped => "stopped by hand",
        StopReason::Restarted => "a restart was asked for",
        StopReason::Replaced => "replaced by another revision",
        StopReason::Deleted => "deleted",
        StopReason::StartupFailed => "it did not come up in time",
        StopReason::PostStartFailed => "its postStart hook failed",
        StopReason::Unhealthy => "it was found not to work any more",
        StopReason::ResourceViolation => "it used more than it may",
        StopReason::LeaderExited => "its first process ended and others live",
        StopReason::Shutdown => "the daemon ended and took it along",
    }
}

/// How the last attempt that is over ended, and how often that has happened.
fn ended(instance: &Instance, exit: &Exit, events: &[Event], teller: &Teller) -> String {
    // Who asked for the end is in the transition that it made.
    let entry = instance.status.history.iter().rev().find(|entry| entry.at == exit.at && !entry.reason.is_empty());
    let how = describe(&exit.status);
    let mut text = format!("attempt {}: {how}, {}", exit.attempt, teller.ago(exit.at));
    if exit.cause.is_none()
        && let Some(entry) = entry
        && let Some(reason) = ASKED.into_iter().find(|reason| reason.name() == entry.reason)
    {
        text = format!("{text}; {}", why_stopped(reason));
    } else if let Some(entry) = entry
        && let Some((found, _)) = entry.message.split_once(&format!("; {how}"))
    {
        text = format!("attempt {}: {found}; {how}, {}", exit.attempt, teller.ago(exit.at));
    }
    // The reason of the phase tells what followed; how often it ended so is told by the event of the end itself.
    let ends = events.iter().filter(|event| exit.cause.is_some() && ENDS.contains(&event.reason.as_str()));
    let most = ends.max_by_key(|event| event.last_timestamp);
    if let Some(event) = most.filter(|event| event.count > 1) {
        text = format!("{text}; {} times in {}", event.count, rough(teller.now.since(event.first_timestamp)));
    }
    text
}

/// Stops that somebody asked for.
const ASKED: [StopReason; 5] =
    [StopReason::Stopped, StopReason::Restarted, StopReason::Replaced, StopReason::Deleted, StopReason::Shutdown];

/// Reasons of events that tell an end.
const ENDS: [&str; 14] = [
    "Crashed",
    "CommandNotFound",
    "PermissionDenied",
    "BadFormat",
    "BadWorkingDirectory",
    "BadUser",
    "ResourcesExhausted",
    "StartFailed",
    "PreStartFailed",
    "Unhealthy",
    "StartupFailed",
    "PostStartFailed",
    "ResourceViolation",
    "OOMKilled",
];

/// Which policy decided what followed the last end.
fn decided(instance: &Instance) -> Option<String> {
    let (spec, status) = (&instance.spec.template, &instance.status);
    if instance.spec.stopped_at.is_some() {
        return Some("stopped by hand: no policy starts it".to_owned());
    }
    let exit = status.last_exit.as_ref()?;
    let policy = spec.restart_policy;
    let word = policy_name(policy);
    let Some(cause) = exit.cause else {
        return match (status.phase, status.done) {
            (Phase::Stopped, true) => Some(format!("restartPolicy {word}: it succeeded and is not started again")),
            (_, _) => None,
        };
    };
    let severity = exit.severity.unwrap_or_default();
    let rules = restart::policy(spec, cause, severity);
    let backoff = &rules.backoff;
    let counted = status.counts.iter().find(|count| count.cause == cause).filter(|_| rules.own_count);
    let (streak, failures) = counted.map_or((status.streak, status.failures), |count| (count.streak, count.failures));
    let context = if spec.restart.is_some() || severity != Severity::Critical {
        format!(" after {} ({}) ×{}", cause.name(), severity.name(), rules.multiplier)
    } else {
        format!(" after {}", cause.name())
    };
    if status.fallback.is_some() && !status.done {
        return Some(format!("restartPolicy {word}{context}: gave up on the command; fallback runs in its place"));
    }
    if status.done {
        return Some(match (policy, status.reason.as_str(), backoff.max_retries) {
            (RestartPolicy::Never, ..) => "restartPolicy Never: it is not started again".to_owned(),
            (_, "RetriesExhausted", Some(most)) => {
                format!("restartPolicy {word}{context}: maxRetries {most} is used up, {failures} failures in a row")
            }
            (_, _, _) => format!("restartPolicy {word}{context}: starting it again cannot help until the spec changes"),
        });
    }
    if let Some(until) = status.breaker.open_until.filter(|_| status.phase == Phase::Backoff) {
        let breaker = spec.circuit_breaker.as_ref()?;
        return Some(format!(
            "circuitBreaker: {} failures within {}, no start until {}, then one trial",
            breaker.failures,
            breaker.window,
            seconds(until)
        ));
    }
    let retries = match backoff.max_retries {
        Some(most) => format!("{failures} of {most} retries"),
        None => "no limit of retries".to_owned(),
    };
    let half_open = if status.breaker.half_open { "; circuit half open: this is the trial" } else { "" };
    Some(format!(
        "restartPolicy {word}{context}: end {streak} in a row, {} apart × {} up to {}, {retries}{half_open}",
        backoff.initial, backoff.factor, backoff.max
    ))
}

const fn policy_name(policy: RestartPolicy) -> &'static str {
    match policy {
        RestartPolicy::Always => "Always",
        RestartPolicy::OnFailure => "OnFailure",
        RestartPolicy::Never => "Never",
        RestartPolicy::UnlessStopped => "UnlessStopped",
    }
}

/// What comes next.
fn next(instance: &Instance, teller: &Teller) -> String {
    let (metadata, status) = (&instance.metadata, &instance.status);
    let name = &metadata.name;
    match status.phase {
        Phase::Stopping if status.reason == HookKind::PostStop.reason() => {
            "what follows the end, when the postStop hook is over".to_owned()
        }
        Phase::Pending if status.reason == HookKind::PreStart.reason() => {
            format!("attempt {} starts when the preStart hook is over", status.attempt + 1)
        }
        Phase::Stopping | Phase::Stuck => status.stopping.as_ref().map_or_else(
            || "its end".to_owned(),
            |stopping| format!("SIGKILL {} if it still lives", teller.due(stopping.kill_at)),
        ),
        Phase::Running if status.reason == WAITS_FOR_DEPENDENTS => status.message.clone(),
        Phase::Pending | Phase::Failed if is_waiting(instance) && instance.spec.stopped_at.is_none() => {
            format!("attempt {} starts when what it waits for is there", status.attempt + 1)
        }
        _ if metadata.is_deleting() => "its record is removed".to_owned(),
        Phase::Running if status.fallback.is_some() => {
            format!("nothing, until the spec changes or `ostler restart instance/{name}` tries the command again")
        }
        Phase::Running if !status.ready => "readiness is looked at again; nothing is restarted for it".to_owned(),
        Phase::Running => "nothing: it is as it should be".to_owned(),
        Phase::Starting => "it runs, or the reason why it cannot".to_owned(),
        Phase::Backoff => {
            let at = status.next_start_at.max(status.breaker.open_until).unwrap_or(teller.now);
            format!("attempt {} starts {}", status.attempt + 1, teller.due(at))
        }
        Phase::Stopped | Phase::Failed | Phase::Lost if instance.spec.stopped_at.is_some() || status.done => {
            let change = if status.phase == Phase::Failed { "the spec changes or " } else { "" };
            format!("nothing, until {change}`ostler start instance/{name}`")
        }
        Phase::Stopped | Phase::Failed | Phase::Lost | Phase::Pending => {
            format!("attempt {} starts as soon as its record is stored", status.attempt + 1)
        }
        Phase::Unknown => "what custody reports".to_owned(),
    }
}

/// Who waits for it.
fn waiting(instance: &Instance, process: Option<&Process>, siblings: &[Instance]) -> Vec<String> {
    if !is_troubled(instance) {
        return Vec::new();
    }
    let mut lines = Vec::new();
    if let Some(process) = process {
        let status = &process.status;
        let ready = format!("{} of {} instances ready", status.ready_replicas, process.spec.replicas());
        lines.push(format!("process/{}: {ready}", process.metadata.name));
        let wanted = process.revision();
        let mut later: Vec<&str> = siblings
            .iter()
            .filter(|other| other.spec.revision != wanted && instance.spec.revision == wanted)
            .map(|other| other.metadata.name.as_str())
            .collect();
        later.sort_unstable();
        if !later.is_empty() {
            lines.push(format!("{}: replaced by this revision when it is ready", later.join(", ")));
        }
    }
    lines
}

fn command(spec: &ProcessSpec) -> String {
    let words = spec.command.iter().chain(&spec.args).map(String::as_str).collect::<Vec<_>>().join(" ");
    let line = words.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() > 80 { line.chars().take(79).chain(['…']).collect() } else { line }
}

/// Enough of a revision to tell it from others.
fn short(revision: &str) -> &str {
    revision.get(..8).unwrap_or(revision)
}

/// A point in time to the second.
fn seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_micros(at.as_micros().div_euclid(1_000_000) * 1_000_000)
}

/// A length of time as one says it: 340ms, 12s, 4m5s, 3h2m, 5d.
fn rough(span: Span) -> Span {
    let unit = match span.as_secs() {
        0 => 1000,
        1..600 => 1_000_000,
        600..172_800 => 60_000_000,
        _ => 3_600_000_000,
    };
    Span::from_micros(span.as_micros() / unit * unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_as_one_says_them() {
        for (micros, said) in [
            (900, "0s"),
            (340_999, "340ms"),
            (12_900_000, "12s"),
            (245_000_000, "4m5s"),
            (10_930_000_000, "3h2m"),
            (432_000_000_000, "5d"),
        ] {
            assert_eq!(rough(Span::from_micros(micros)).to_string(), said);
        }
    }
}
