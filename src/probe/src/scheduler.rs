//! The one task that runs all probes: what is due, what is under way, and what came of it.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ostler_core::Span;
use ostler_core::allow::Allow;
use ostler_core::kinds::{Check, Health, LogLine, NotifyStatus, Probe, ProbeKind};
use ostler_core::verdict::{Outcome, Tally};
use regex::bytes::Regex;
use tokio::sync::{Mutex, Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::exec::{self, Plot};
use crate::log::{Patterns, Scan};
use crate::notify::{self, Custody, Message, Senders, Sockets};
use crate::{
    AllowList, Meter, News, Report, Settings, Target, UsageSource, graves, grpc, http, net, process, resources,
};

/// The handle of the scheduler, which ends with it.
#[derive(Clone, Debug)]
pub struct Prober {
    commands: mpsc::UnboundedSender<Command>,
    state_dir: PathBuf,
}

enum Command {
    Watch(Box<Target>),
    Forget(Arc<str>),
    Custody(Custody),
}

impl Prober {
    /// Starts the scheduler on the current runtime. Reports come in the order of what they report.
    pub fn start(settings: Settings) -> (Self, mpsc::UnboundedReceiver<Report>) {
        let (commands, orders) = mpsc::unbounded_channel();
        let (reports, received) = mpsc::unbounded_channel();
        let state_dir = settings.state_dir.clone();
        // Before anything is started: a process may speak at once.
        let sockets = Sockets::bind(&settings.state_dir).map_err(|why| {
            let path = notify::path(&settings.state_dir);
            debug!(path = %path.display(), %why, "no socket for sd_notify");
            format!("cannot make the socket {}: {why}", path.display())
        });
        tokio::spawn(Scheduler::new(settings, sockets, reports).run(orders));
        (Self { commands, state_dir }, received)
    }

    /// Runs the probes of an attempt from now on, in place of those of any other attempt of the instance.
    pub fn watch(&self, target: Target) {
        // A scheduler that is gone has nobody to report to.
        let _ = self.commands.send(Command::Watch(Box::new(target)));
    }

    /// Runs no probes of an instance any more, and ends those under way.
    pub fn forget(&self, id: &Arc<str>) {
        let _ = self.commands.send(Command::Forget(Arc::clone(id)));
    }

    /// Tells what the processes of instances can be known by before they are watched: they descend from the process
    /// `keeper`, or are in a cgroup below `cgroup` (empty when there are none). What anybody else says by sd_notify(3) is
    /// not kept.
    pub fn listen_to(&self, keeper: i32, cgroup: &str) {
        let _ = self.commands.send(Command::Custody(Custody::new(keeper, cgroup)));
    }

    /// The value of NOTIFY_SOCKET for a process; `switches` when it runs as another user than the daemon, who cannot
    /// enter the state directory.
    pub fn notify_address(&self, switches: bool) -> String {
        notify::address(&self.state_dir, !switches)
    }
}

/// Checks that are limited together, by what they take of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// A socket each.
    Network,
    /// A process each.
    Command,
    /// A thread each.
    Disk,
}

const CLASSES: [(Class, usize); 3] = [(Class::Network, 1024), (Class::Command, 32), (Class::Disk, 8)];

/// So soon it is looked again whether the command of the check before is gone.
const HELD: Duration = Duration::from_millis(20);
/// Between two checks because of what a process said.
const SPOKEN: Duration = Duration::from_millis(10);
/// A probe whose commands do not die is tried less often, at most so many doublings of its interval.
const MOST_BACKOFF: u32 = 5;

/// The verdict, whether it counts as passed, and whether the check could not be run.
type Published = (Health, bool, bool);

/// One probe of one attempt.
struct Entry {
    kind: ProbeKind,
    tally: Tally,
    published: Published,
    /// The start of the last check.
    began: Instant,
    /// Only the timer and the check of this number count.
    turn: u64,
    running: Option<AbortHandle>,
    log: Option<Arc<Mutex<Scan>>>,
    regex: Option<Arc<Regex>>,
    patterns: Option<Arc<Patterns>>,
    /// Where its command is.
    plot: Option<Plot>,
    /// Since when the next command has been waiting for the one before to be gone, and the doublings of the interval.
    held: Option<Instant>,
    backoff: u32,
}

/// An attempt.
struct Watched {
    target: Arc<Target>,
    entries: Vec<Entry>,
    notify: Option<Box<notify::State>>,
    published: NotifyStatus,
    published_at: Instant,
}

/// A check that is over.
struct Done {
    outcome: Outcome,
    took: Duration,
}

#[derive(Clone, Copy)]
struct Place {
    slot: usize,
    kind: ProbeKind,
    turn: u64,
}

struct Scheduler {
    state_dir: PathBuf,
    allow: AllowList,
    meter: Option<Arc<dyn Meter>>,
    usage: Option<Arc<dyn UsageSource>>,
    sockets: Result<Sockets, String>,
    reports: mpsc::UnboundedSender<Report>,
    watched: Vec<Option<Box<Watched>>>,
    free: Vec<usize>,
    by_id: HashMap<Arc<str>, usize>,
    due: BinaryHeap<Reverse<(Instant, usize, ProbeKind, u64)>>,
    checks: JoinSet<Done>,
    under_way: HashMap<tokio::task::Id, (Place, Class)>,
    busy: [usize; CLASSES.len()],
    waiting: [VecDeque<Place>; CLASSES.len()],
    /// For reading logs; kept until the disk has answered, however long that takes.
    disk: Arc<Semaphore>,
    senders: Senders,
    regexes: HashMap<String, Arc<Regex>>,
    turn: u64,
    random: u64,
}

impl Scheduler {
    fn new(settings: Settings, sockets: Result<Sockets, String>, reports: mpsc::UnboundedSender<Report>) -> Self {
        let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self {
            state_dir: settings.state_dir,
            allow: settings.allow,
            meter: settings.meter,
            usage: settings.usage,
            sockets,
            reports,
            watched: Vec::new(),
            free: Vec::new(),
            by_id: HashMap::new(),
            due: BinaryHeap::new(),
            checks: JoinSet::new(),
            under_way: HashMap::new(),
            busy: [0; CLASSES.len()],
            waiting: Default::default(),
            disk: Arc::new(Semaphore::new(CLASSES[Class::Disk as usize].1)),
            senders: Senders::default(),
            regexes: HashMap::new(),
            turn: 0,
            random: seed.as_nanos() as u64 | 1,
        }
    }

    /// Ends when nobody can give an order any more.
    async fn run(mut self, mut orders: mpsc::UnboundedReceiver<Command>) {
        loop {
            let next = self.due.peek().map(|Reverse((at, ..))| *at);
            tokio::select! {
                order = orders.recv() => match order {
                    Some(Command::Watch(target)) => self.watch(*target),
                    Some(Command::Forget(id)) => drop(self.forget(&id)),
                    Some(Command::Custody(custody)) => self.senders.listen_to(custody),
                    None => return,
                },
                done = self.checks.join_next_with_id(), if !self.checks.is_empty() => {
                    if let Some(done) = done {
                        self.done(done);
                    }
                }
                messages = heard(&self.sockets) => {
                    for message in messages {
                        self.hear(message);
                    }
                }
                () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => self.begin_due(),
            }
        }
    }

    /// From 0 to 1.
    fn random(&mut self) -> f64 {
        // xorshift: only to spread checks.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn watch(&mut self, target: Target) {
        let mut before = self.forget(&target.id).filter(|old| old.target.attempt == target.attempt);
        let target = Arc::new(target);
        let known = target.known.as_deref();
        let has_command = target.spec.probes().any(|(_, probe)| probe.exec.is_some());
        if has_command && known.is_some() {
            graves::bury_leftovers(&target.uid, &target.cgroup, None);
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.watched.push(None);
            self.watched.len() - 1
        });
        let notify = target.spec.notify().map(|probe| {
            let old = before.as_mut().and_then(|old| old.notify.take());
            old.unwrap_or_else(|| Box::new(notify::State::new(known.and_then(|known| known.notify.as_deref()), probe)))
        });
        let published = known.and_then(|known| known.notify.as_deref()).cloned().unwrap_or_default();
        if notify.is_some() {
            self.senders.add(slot, &target.cgroup, target.pid);
        }
        let mut entries = Vec::new();
        for (kind, probe) in target.spec.probes() {
            let status = known.and_then(|known| known.get(kind));
            let tally = status.map(Tally::resume).unwrap_or_default();
            let mut regex = |text: &Option<String>| text.as_ref().and_then(|text| self.regex(text));
            let (body, patterns) = match (&probe.http_get, &probe.log_line) {
                (Some(get), _) => (regex(&get.body_match), None),
                (None, Some(line)) => {
                    let owned = |regex: Option<Arc<Regex>>| regex.map(|regex| regex.as_ref().clone());
                    let patterns =
                        Patterns { good: owned(regex(&line.pattern)), bad: owned(regex(&line.failure_pattern)) };
                    (None, Some(Arc::new(patterns)))
                }
                (None, None) => (None, None),
            };
            entries.push(Entry {
                kind,
                tally,
                published: status
                    .map(|it| (it.verdict, it.passed, it.verdict == Health::Unknown && !it.output.is_empty()))
                    .unwrap_or_default(),
                began: Instant::now(),
                turn: 0,
                running: None,
                log: probe.log_line.as_ref().map(|line| Arc::new(Mutex::new(Scan::resume(status, line)))),
                regex: body,
                patterns,
                plot: probe.exec.as_ref().map(|_| {
                    let old = before.iter().flat_map(|old| &old.entries).find(|entry| entry.kind == kind);
                    old.and_then(|entry| entry.plot.clone()).unwrap_or_default()
                }),
                held: None,
                backoff: 0,
            });
        }
        self.by_id.insert(Arc::clone(&target.id), slot);
        self.watched[slot] =
            Some(Box::new(Watched { target, entries, notify, published, published_at: Instant::now() }));
        self.begin(slot, true);
        for message in self.senders.early(slot) {
            self.hear_from(slot, &message);
        }
    }

    /// A compiled expression, shared by all who use it. Those of a stored spec were checked when it was applied.
    fn regex(&mut self, text: &str) -> Option<Arc<Regex>> {
        if let Some(regex) = self.regexes.get(text) {
            return Some(Arc::clone(regex));
        }
        match Regex::new(text) {
            Ok(regex) => {
                self.regexes.retain(|_, regex| Arc::strong_count(regex) > 1);
                let regex = Arc::new(regex);
                self.regexes.insert(text.to_owned(), Arc::clone(&regex));
                Some(regex)
            }
            Err(why) => {
                warn!(%why, "an expression in the store is none");
                None
            }
        }
    }

    fn forget(&mut self, id: &Arc<str>) -> Option<Box<Watched>> {
        let slot = self.by_id.remove(id)?;
        let mut watched = self.watched.get_mut(slot)?.take()?;
        for entry in &mut watched.entries {
            if let Some(running) = entry.running.take() {
                running.abort();
            }
        }
        if watched.notify.is_some() {
            self.senders.remove(slot, &watched.target.cgroup, watched.target.pid);
        }
        self.free.push(slot);
        self.compact();
        Some(watched)
    }

    /// Timers of what is gone, and those that were set anew, are recognised by their turn, but must not pile up.
    fn compact(&mut self) {
        if self.due.len() > 64 + 8 * self.by_id.len() {
            let watched = &self.watched;
            self.due.retain(|Reverse((_, slot, kind, turn))| {
                let entries = watched.get(*slot).and_then(Option::as_ref).map(|watched| watched.entries.as_slice());
                entries.into_iter().flatten().any(|entry| entry.kind == *kind && entry.turn == *turn)
            });
        }
    }

    fn entry(&mut self, place: Place) -> Option<(&Arc<Target>, &mut Entry)> {
        let watched = self.watched.get_mut(place.slot)?.as_mut()?;
        let entry = watched.entries.iter_mut().find(|entry| entry.kind == place.kind && entry.turn == place.turn)?;
        Some((&watched.target, entry))
    }

    /// Sets the first timers of the probes whose time it is: the startup probe, or when that has passed the others.
    fn begin(&mut self, slot: usize, is_new: bool) {
        let Some(watched) = self.watched.get(slot).and_then(Option::as_ref) else { return };
        let target = Arc::clone(&watched.target);
        let starting = watched.entries.iter().any(|entry| entry.kind == ProbeKind::Startup && !entry.tally.passed());
        let kinds: Vec<(ProbeKind, bool)> = watched
            .entries
            .iter()
            .filter(|entry| (entry.kind == ProbeKind::Startup) == starting)
            .map(|entry| (entry.kind, entry.published != Published::default()))
            .collect();
        for (kind, is_known) in kinds {
            let Some(probe) = target.spec.probe(kind) else { continue };
            let left = probe.initial_delay.to_std().saturating_sub(target.age);
            let interval = probe.interval.to_std();
            // What was checked before this controller began is checked again within an interval, not all at once.
            let spread = if is_new && is_known { interval } else { interval.mul_f64(probe.jitter) };
            let spread = spread.mul_f64(self.random());
            let at = Instant::now() + left + spread;
            self.set(slot, kind, at);
        }
    }

    fn set(&mut self, slot: usize, kind: ProbeKind, at: Instant) {
        self.turn += 1;
        let turn = self.turn;
        let Some(watched) = self.watched.get_mut(slot).and_then(Option::as_mut) else { return };
        let Some(entry) = watched.entries.iter_mut().find(|entry| entry.kind == kind) else { return };
        entry.turn = turn;
        self.due.push(Reverse((at, slot, kind, turn)));
        self.compact();
    }

    fn begin_due(&mut self) {
        let now = Instant::now();
        while let Some(Reverse((at, slot, kind, turn))) = self.due.peek().copied() {
            if at > now {
                return;
            }
            self.due.pop();
            self.check(Place { slot, kind, turn });
        }
    }

    /// Begins a check, or has it wait for its turn.
    fn check(&mut self, place: Place) {
        let Some((target, entry)) = self.entry(place) else { return };
        let target = Arc::clone(target);
        let Some(probe) = target.spec.probe(place.kind) else { return };
        entry.began = Instant::now();
        let Some(check) = probe.checks().next() else { return };
        let class = match check {
            Check::HttpGet(_) | Check::TcpSocket(_) | Check::Grpc(_) => Class::Network,
            Check::Exec(_) => {
                if entry.plot.as_ref().is_some_and(|plot| !plot.is_free()) {
                    return self.hold(place);
                }
                (entry.held, entry.backoff) = (None, 0);
                Class::Command
            }
            Check::LogLine(_) | Check::Resources(_) => Class::Disk,
            Check::Notify(_) => return self.judge_notify(place),
            Check::Process(_) => {
                let outcome = process::check(target.pid, target.start_time);
                return self.take(place, &Done { outcome, took: Duration::ZERO });
            }
        };
        if self.busy[class as usize] >= CLASSES[class as usize].1 {
            self.waiting[class as usize].push_back(place);
            return;
        }
        let job = Job {
            allow: self.allow.get(),
            usage: self.usage.clone(),
            log: self.entry(place).and_then(|(_, entry)| entry.log.clone().zip(entry.patterns.clone())),
            regex: self.entry(place).and_then(|(_, entry)| entry.regex.clone()),
            plot: self.entry(place).and_then(|(_, entry)| entry.plot.clone()),
            disk: Arc::clone(&self.disk),
            directory: self.state_dir.join(&target.log_dir),
            kind: place.kind,
            target: Arc::clone(&target),
        };
        let handle = self.checks.spawn(job.run());
        self.under_way.insert(handle.id(), (place, class));
        self.busy[class as usize] += 1;
        if let Some((_, entry)) = self.entry(place) {
            entry.running = Some(handle);
        }
    }

    /// The command of the check before is not gone: the next one waits, and after its timeout cannot be run.
    fn hold(&mut self, place: Place) {
        let now = Instant::now();
        let Some((target, entry)) = self.entry(place) else { return };
        let Some(timeout) = target.spec.probe(place.kind).map(|probe| probe.timeout.to_std()) else { return };
        if now < *entry.held.get_or_insert(now) + timeout {
            return self.set(place.slot, place.kind, now + HELD);
        }
        entry.backoff = (entry.backoff + 1).min(MOST_BACKOFF);
        self.take(place, &Done { outcome: Outcome::CannotRun(exec::HELD.to_owned()), took: Duration::ZERO });
    }

    fn done(&mut self, done: Result<(tokio::task::Id, Done), JoinError>) {
        let (id, done) = match done {
            Ok(done) => done,
            Err(why) => {
                let id = why.id();
                if why.is_panic() {
                    warn!(%why, "a check panicked");
                }
                (id, Done { outcome: Outcome::CannotRun("the check broke off".to_owned()), took: Duration::ZERO })
            }
        };
        let Some((place, class)) = self.under_way.remove(&id) else { return };
        self.busy[class as usize] -= 1;
        self.take(place, &done);
        // Those that are gone meanwhile take no room.
        while self.busy[class as usize] < CLASSES[class as usize].1
            && let Some(next) = self.waiting[class as usize].pop_front()
        {
            self.check(next);
        }
    }

    /// Folds a result into the verdict, reports a change, and sets the next timer.
    fn take(&mut self, place: Place, done: &Done) {
        let Place { slot, kind, .. } = place;
        let meter = self.meter.clone();
        let random = self.random();
        let Some((target, entry)) = self.entry(place) else { return };
        let target = Arc::clone(target);
        let Some(probe) = target.spec.probe(kind) else { return };
        entry.running = None;
        if let (Some(meter), Some(check)) = (meter, probe.checks().next()) {
            meter.checked(kind, check.name(), &done.outcome, done.took);
        }
        entry.tally.fold(&done.outcome, probe);
        let now = (entry.tally.health(probe), entry.tally.passed(), entry.tally.is_blind());
        let began = entry.began;
        let backoff = entry.backoff;
        let report = (now != entry.published).then(|| entry.tally.status(probe, done.outcome.output()));
        if let Some(status) = report {
            let (from, to) = (entry.published.0, now.0);
            entry.published = now;
            tracing::info!(
                instance = %target.id, probe = kind.name(), from = from.name(), to = to.name(), output = status.output,
                "verdict"
            );
            self.report(&target, News::Verdict(kind, status));
        }
        if kind == ProbeKind::Startup && now.1 {
            // It has come up: the others take over, and this one is done.
            self.begin(slot, false);
            return;
        }
        let interval = probe.interval.to_std() * 2_u32.pow(backoff);
        let at = began + interval + interval.mul_f64(probe.jitter * random);
        self.set(slot, kind, at.max(Instant::now()));
    }

    fn report(&self, target: &Target, news: News) {
        // The controller may be ending.
        let _ = self.reports.send(Report { id: Arc::clone(&target.id), attempt: target.attempt, news });
    }

    /// A message arrived.
    fn hear(&mut self, message: Message) {
        match self.senders.find(&message) {
            Some(slot) => self.hear_from(slot, &message),
            None => self.senders.keep(message),
        }
    }

    fn hear_from(&mut self, slot: usize, message: &Message) {
        let Some(watched) = self.watched.get_mut(slot).and_then(Option::as_mut) else { return };
        let Some(notify) = &mut watched.notify else { return };
        if !notify.take(message) {
            return;
        }
        // What decides need not wait for the next interval.
        let Some(watched) = self.watched.get(slot).and_then(Option::as_ref) else { return };
        let starting = watched.entries.iter().any(|entry| entry.kind == ProbeKind::Startup && !entry.tally.passed());
        let kinds: Vec<ProbeKind> = watched
            .entries
            .iter()
            .filter(|entry| (entry.kind == ProbeKind::Startup) == starting)
            .filter(|entry| watched.target.spec.probe(entry.kind).is_some_and(|probe| probe.notify.is_some()))
            .map(|entry| entry.kind)
            .collect();
        if kinds.is_empty() && watched.published_at.elapsed() >= SPOKEN {
            // No check is going to publish it soon.
            return self.publish_notify(slot);
        }
        for kind in kinds {
            let Some(watched) = self.watched.get(slot).and_then(Option::as_ref) else { return };
            let Some(entry) = watched.entries.iter().find(|entry| entry.kind == kind) else { continue };
            // Whoever changes his mind all the time is asked now and then.
            let at = Instant::now().max(entry.began + SPOKEN);
            self.set(slot, kind, at);
        }
    }

    fn publish_notify(&mut self, slot: usize) {
        let Some(watched) = self.watched.get_mut(slot).and_then(Option::as_mut) else { return };
        let Some(notify) = &watched.notify else { return };
        if notify.status != watched.published {
            watched.published_at = Instant::now();
            watched.published = notify.status.clone();
            let (target, status) = (Arc::clone(&watched.target), notify.status.clone());
            self.report(&target, News::Notify(status));
        }
    }

    fn judge_notify(&mut self, place: Place) {
        // A text that changes all the time is published once an interval.
        self.publish_notify(place.slot);
        let Some(watched) = self.watched.get(place.slot).and_then(Option::as_ref) else { return };
        let outcome = match (&self.sockets, &watched.notify) {
            (Err(why), _) => Outcome::CannotRun(why.clone()),
            (Ok(_), Some(notify)) => notify.check(place.kind),
            (Ok(_), None) => return,
        };
        self.take(place, &Done { outcome, took: Duration::ZERO });
    }
}

async fn heard(sockets: &Result<Sockets, String>) -> Vec<Message> {
    match sockets {
        Ok(sockets) => sockets.next().await,
        Err(_) => std::future::pending().await,
    }
}

/// A check, with everything it needs.
struct Job {
    target: Arc<Target>,
    kind: ProbeKind,
    allow: Arc<[Allow]>,
    usage: Option<Arc<dyn UsageSource>>,
    log: Option<(Arc<Mutex<Scan>>, Arc<Patterns>)>,
    regex: Option<Arc<Regex>>,
    plot: Option<Plot>,
    disk: Arc<Semaphore>,
    directory: PathBuf,
}

impl Job {
    async fn run(self) -> Done {
        let began = Instant::now();
        let outcome = match self.target.spec.probe(self.kind) {
            Some(probe) => match probe.checks().next() {
                Some(check) => self.check(probe, check).await,
                None => Outcome::CannotRun("there is nothing to check".to_owned()),
            },
            None => Outcome::CannotRun("there is no such probe".to_owned()),
        };
        Done { outcome, took: began.elapsed() }
    }

    async fn check(&self, probe: &Probe, check: Check<'_>) -> Outcome {
        let timeout = probe.timeout;
        match check {
            // What counts is the time that the command takes, not what it takes to start it.
            Check::Exec(command) => match &self.plot {
                Some(plot) => exec::check(command, &self.target, plot, timeout).await,
                None => Outcome::CannotRun("there is no command".to_owned()),
            },
            // A slow disk is not the fault of the process.
            Check::LogLine(line) => match tokio::time::timeout(timeout.to_std(), self.read(line, timeout)).await {
                Ok(outcome) => outcome,
                Err(_) => Outcome::CannotRun(format!("the log could not be read within {timeout}")),
            },
            // Neither is a machine that is slow to tell what is used.
            Check::Resources(most) => {
                let look = resources::check(most, self.usage.as_deref(), &self.target.id, timeout.to_std());
                match tokio::time::timeout(timeout.to_std(), look).await {
                    Ok(outcome) => outcome,
                    Err(_) => Outcome::CannotRun(format!("what it uses could not be read within {timeout}")),
                }
            }
            Check::HttpGet(_) | Check::TcpSocket(_) | Check::Grpc(_) => {
                match tokio::time::timeout(timeout.to_std(), self.ask(check)).await {
                    Ok(Ok(outcome) | Err(outcome)) => outcome,
                    Err(_) => Outcome::Failed(format!("no answer within {timeout}")),
                }
            }
            // Looked at by the scheduler itself.
            Check::Notify(_) | Check::Process(_) => Outcome::CannotRun("there is nothing to wait for".to_owned()),
        }
    }

    async fn read(&self, line: &LogLine, timeout: Span) -> Outcome {
        let Some((scan, patterns)) = self.log.clone() else {
            return Outcome::CannotRun("there is no expression to look for".to_owned());
        };
        let Ok(mut scan) = scan.try_lock_owned() else {
            return Outcome::CannotRun("the disk has not answered since the check before".to_owned());
        };
        let Ok(disk) = Arc::clone(&self.disk).acquire_owned().await else {
            return Outcome::CannotRun("there is no thread to read the log".to_owned());
        };
        let (line, directory, attempt) = (line.clone(), self.directory.clone(), self.target.attempt);
        // In time for what has been read to be told.
        let until = std::time::Instant::now() + timeout.to_std() * 3 / 4;
        let read = move || {
            let _disk = disk;
            scan.check(&line, &patterns, &directory, attempt, until)
        };
        let read = tokio::task::spawn_blocking(read);
        read.await.unwrap_or_else(|why| Outcome::CannotRun(format!("the check broke off: {why}")))
    }

    async fn ask(&self, check: Check<'_>) -> Result<Outcome, Outcome> {
        let ports = &self.target.ports;
        Ok(match check {
            Check::HttpGet(get) => {
                http::check(get, net::port(&get.port, ports)?, self.regex.as_deref(), &self.allow).await
            }
            Check::TcpSocket(socket) => {
                let port = net::port(&socket.port, ports)?;
                let addresses = net::addresses(socket.host.as_deref(), port, &self.allow).await?;
                let stream = net::connect(&addresses).await?;
                let peer = stream.peer_addr().map_or_else(|_| port.to_string(), |peer| peer.to_string());
                Outcome::Passed(format!("{peer} accepts connections"))
            }
            Check::Grpc(grpc) => {
                let port = net::port(&grpc.port, ports)?;
                grpc::check(grpc, &net::addresses(grpc.host.as_deref(), port, &self.allow).await?).await
            }
            Check::Exec(_) | Check::LogLine(_) | Check::Notify(_) | Check::Resources(_) | Check::Process(_) => {
                Outcome::CannotRun("there is nobody to ask".to_owned())
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ostler_core::kinds::ProcessSpec;
    use serde_json::json;

    use super::*;
    use crate::Surroundings;

    fn scheduler() -> (Scheduler, mpsc::UnboundedReceiver<Report>) {
        let (reports, received) = mpsc::unbounded_channel();
        (Scheduler::new(Settings::default(), Err("none".to_owned()), reports), received)
    }

    fn target(probe: &serde_json::Value) -> Target {
        let spec: ProcessSpec = serde_json::from_value(json!({"command": ["x"], "livenessProbe": probe})).unwrap();
        Target {
            id: "default/web-0".into(),
            uid: "u".to_owned(),
            attempt: 1,
            age: Duration::ZERO,
            pid: 1,
            start_time: 1,
            cgroup: String::new(),
            ports: BTreeMap::new(),
            log_dir: "logs".to_owned(),
            surroundings: Ok(Surroundings {
                env: BTreeMap::from([("PATH".to_owned(), std::env::var("PATH").unwrap())]),
                working_dir: "/".into(),
                ..Surroundings::default()
            }),
            spec: Arc::new(spec),
            known: None,
        }
    }

    #[tokio::test]
    async fn no_command_is_started_before_the_last_one_is_gone() {
        let (mut scheduler, mut reports) = scheduler();
        let directory = tempfile::tempdir().unwrap();
        let begun = directory.path().join("begun");
        let command = format!("echo >> {}", begun.display());
        let probe = json!({"exec": {"command": ["sh", "-c", command]}, "interval": "100ms", "timeout": "10s"});
        scheduler.watch(target(&probe));
        // As if one that does not die were in it.
        let plot = scheduler.watched[0].as_ref().unwrap().entries[0].plot.clone().unwrap();
        let room = plot.take().unwrap();
        // Also with other timing it is the same place.
        let probe = json!({"exec": {"command": ["sh", "-c", command]}, "interval": "100ms", "timeout": "2s"});
        scheduler.watch(target(&probe));
        let (orders, received) = mpsc::unbounded_channel();
        let running = tokio::spawn(scheduler.run(received));
        let next = tokio::time::timeout(Duration::from_secs(60), reports.recv()).await.unwrap().unwrap();
        let News::Verdict(ProbeKind::Liveness, status) = next.news else { panic!("{next:?}") };
        assert_eq!((status.verdict, status.output.as_str(), status.failed), (Health::Unknown, exec::HELD, 0));
        assert!(!begun.exists());
        drop(room);
        let next = tokio::time::timeout(Duration::from_secs(60), reports.recv()).await.unwrap().unwrap();
        let News::Verdict(ProbeKind::Liveness, status) = next.news else { panic!("{next:?}") };
        assert_eq!(status.verdict, Health::Healthy, "{status:?}");
        assert!(begun.exists());
        drop(orders);
        running.await.unwrap();
    }

    #[tokio::test]
    async fn what_a_process_says_all_the_time_takes_no_room_and_is_told_now_and_then() {
        let (mut scheduler, mut reports) = scheduler();
        scheduler.watch(target(&json!({"notify": {}, "interval": "1h", "initialDelay": "1h"})));
        for index in 0..20_000 {
            let text = ["READY=1", "READY=1", "RELOADING=1"][index % 3];
            scheduler.hear_from(0, &Message::of(text));
        }
        assert!(scheduler.due.len() < 100, "{}", scheduler.due.len());
        assert!(reports.try_recv().is_err(), "nothing is told before its time");
        tokio::time::sleep(SPOKEN * 2).await;
        scheduler.begin_due();
        let told: Vec<News> = std::iter::from_fn(|| reports.try_recv().ok()).map(|report| report.news).collect();
        assert!(matches!(told.as_slice(), [News::Notify(_), News::Verdict(..)]), "told once: {told:?}");
    }
}
