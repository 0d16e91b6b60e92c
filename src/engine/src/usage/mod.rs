//! What the instances use: one thread samples them in turn, spread over the interval, and keeps the latest figures.
//!
//! Nothing is stored. A thread of its own, because the kernel may let a reader of /proc wait, and the loop that decides
//! must not. Trees are those of the keeper: its cgroup if there is one, else session and descent.

mod read;
mod watch;

use std::collections::HashMap;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use ostler_core::Timestamp;
use ostler_core::kinds::Exceeded;
use ostler_core::usage::{History, Io, Network, Usage};
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::oneshot;

use self::read::{Budget, Held, Stat};
pub(crate) use self::watch::Order;
use self::watch::Watched;
use crate::clock::wall;

/// An instance by `namespace/name`.
pub type Id = Arc<str>;

/// How samples are taken.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Between two samples of an instance.
    pub interval: Duration,
    /// Descriptors that may be held open to make samples cheaper, as far as instances leave them.
    pub descriptors: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { interval: ostler_core::kinds::Resources::INTERVAL.to_std(), descriptors: 4096 }
    }
}

/// The tree to sample: a running attempt.
#[derive(Clone, Debug)]
pub struct Target {
    /// Process id of the leader.
    pub pid: i32,
    /// Clock ticks from boot to its start.
    pub start_time: u64,
    /// Absolute path of its cgroup; empty when there is none.
    pub cgroup: String,
}

/// The latest of an instance.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// Process id of the leader.
    pub pid: i32,
    /// What its tree uses.
    pub usage: Usage,
    /// The last half hour.
    pub history: History,
}

/// What sampling has cost so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Samples taken.
    pub samples: u64,
    /// CPU time of the sampling thread, nanoseconds.
    pub cpu_time: u64,
    /// Looks at every process of the machine, for trees that no cgroup holds together.
    pub scans: u64,
}

/// What is used of something has come to exceed a level, or does no more, or has for too long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Crossing {
    /// The instance.
    pub(crate) id: Id,
    /// Number of the attempt.
    pub(crate) attempt: u64,
    /// Everything of which more is used than a level.
    pub(crate) exceeded: Vec<Exceeded>,
    /// Thousandths of a core that it uses.
    pub(crate) cpu: Option<u32>,
}

#[derive(Debug, Default)]
struct Board {
    samples: Mutex<HashMap<Id, Box<Sample>>>,
    taken: AtomicU64,
    spent: AtomicU64,
    scans: AtomicU64,
}

impl Board {
    fn samples(&self) -> std::sync::MutexGuard<'_, HashMap<Id, Box<Sample>>> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
enum Message {
    Track(Id, Target),
    /// With the leader's pid; none: whatever it is.
    Untrack(Id, Option<i32>),
    /// With thresholds to compare with, or none any more.
    Watch(Id, Option<Box<Order>>),
    Refresh(Vec<Id>, oneshot::Sender<()>),
    Pss(Vec<Id>, oneshot::Sender<HashMap<Id, u64>>),
}

/// The sampler's handle: says what to sample, and reads what was found. The thread ends with the last handle.
#[derive(Clone, Debug)]
pub struct Sampler {
    board: Arc<Board>,
    /// None: nothing is sampled.
    messages: Option<mpsc::Sender<Message>>,
}

impl Sampler {
    /// Starts the thread.
    pub fn start(settings: Settings) -> std::io::Result<Self> {
        let (messages, inbox) = mpsc::channel();
        let board = Arc::new(Board::default());
        let worker = Worker::new(settings, Arc::clone(&board));
        std::thread::Builder::new().name("usage".to_owned()).stack_size(256 << 10).spawn(move || worker.run(&inbox))?;
        Ok(Self { board, messages: Some(messages) })
    }

    /// One that samples nothing, for simulations whose processes do not exist.
    pub fn off() -> Self {
        Self { board: Arc::default(), messages: None }
    }

    fn send(&self, message: Message) {
        if let Some(messages) = &self.messages {
            // Without a thread there are no figures, and that is all.
            let _ = messages.send(message);
        }
    }

    /// Samples this tree for the instance from now on.
    pub(crate) fn track(&self, id: Id, target: Target) {
        self.send(Message::Track(id, target));
    }

    /// The attempt with this leader, or any, does not run any more.
    pub(crate) fn untrack(&self, id: Id, leader: Option<i32>) {
        self.send(Message::Untrack(id, leader));
    }

    /// Compares the usage of the instance with thresholds from now on, or no more.
    pub(crate) fn watch(&self, id: Id, order: Option<Box<Order>>) {
        self.send(Message::Watch(id, order));
    }

    /// The latest of an instance; none while it does not run, and before its first sample.
    pub fn get(&self, id: &str) -> Option<Sample> {
        self.board.samples().get(id).map(|sample| (**sample).clone())
    }

    /// Shows what every instance that runs used, by its latest sample. Keep it short: sampling waits meanwhile.
    pub fn each(&self, mut see: impl FnMut(&Id, &Usage)) {
        self.board.samples().iter().for_each(|(id, sample)| see(id, &sample.usage));
    }

    /// Samples these now, with everything there is to know, and returns when that is done.
    pub async fn refresh(&self, ids: Vec<Id>) {
        let (done, finished) = oneshot::channel();
        self.send(Message::Refresh(ids, done));
        // The thread may be gone with the daemon.
        let _ = finished.await;
    }

    /// The proportional set size of these, bytes. Expensive: the kernel walks their page tables.
    pub async fn pss(&self, ids: Vec<Id>) -> HashMap<Id, u64> {
        let (answer, answered) = oneshot::channel();
        self.send(Message::Pss(ids, answer));
        answered.await.unwrap_or_default()
    }

    /// What sampling has cost so far.
    pub fn cost(&self) -> Cost {
        Cost {
            samples: self.board.taken.load(Ordering::Relaxed),
            cpu_time: self.board.spent.load(Ordering::Relaxed),
            scans: self.board.scans.load(Ordering::Relaxed),
        }
    }
}

impl ostler_probe::UsageSource for Sampler {
    fn usage(&self, id: Id) -> Pin<Box<dyn Future<Output = Option<Usage>> + Send + '_>> {
        Box::pin(async move {
            self.refresh(vec![Arc::clone(&id)]).await;
            Some(self.get(&id)?.usage)
        })
    }
}

/// Trees are sampled in so many groups, one after the other.
const SLOTS: usize = 40;

/// What costs more is read at every sixth sample.
const THOROUGH: u8 = 6;

/// Trees that have been the same so often, and are compared with nothing, are listed with every third sample.
const STEADY: u8 = 2;

/// Whether it has a network namespace of its own, twice in sixty.
const NETWORK: u8 = 60;

/// A tree, and the files about it that are held open.
struct Tracked {
    target: Target,
    /// The first of its slots.
    slot: u8,
    /// From one of its slots to the next.
    step: u8,
    count: u8,
    /// Has it groups below its own?
    is_nested: bool,
    /// How often it was listed and the same processes were found.
    steady: u8,
    procs: Held,
    stats: Vec<(i32, Held)>,
    /// CPU time and moment that the next rate is counted from.
    base: Option<(u64, Instant)>,
    cpu_time: u64,
    /// CPU time of its group beyond that of its living processes, nanoseconds, when that was compared last.
    gone: i64,
    watched: Option<Box<Watched>>,
}

impl Tracked {
    fn slots(&self) -> impl Iterator<Item = usize> + use<> {
        (usize::from(self.slot)..SLOTS).step_by(self.step.into())
    }

    fn close(&mut self, budget: &Budget) {
        self.procs.close(budget);
        for (_, stat) in &mut self.stats {
            stat.close(budget);
        }
    }
}

struct Worker {
    board: Arc<Board>,
    budget: Budget,
    /// Between two slots.
    pause: Duration,
    /// Boxed: a table has room for up to twice as many as there are.
    tracked: HashMap<Id, Box<Tracked>>,
    slots: Vec<Vec<Id>>,
    buffer: Vec<u8>,
    pids: Vec<i32>,
    own_network: u64,
    tick: u64,
    page: u64,
    /// Every process of the machine, for trees without a cgroup.
    everyone: Option<(Instant, Vec<(i32, Stat)>)>,
    /// A moment, by two clocks: times of samples must not jump with the one on the wall.
    began: (Instant, Timestamp),
}

impl Worker {
    fn new(settings: Settings, board: Arc<Board>) -> Self {
        Self {
            board,
            budget: Budget::new(
                settings.descriptors,
                getrlimit(Resource::Nofile).current.map_or(usize::MAX, |limit| limit as usize),
            ),
            pause: settings.interval / SLOTS as u32,
            tracked: HashMap::new(),
            slots: vec![Vec::new(); SLOTS],
            buffer: Vec::new(),
            pids: Vec::new(),
            own_network: read::own_network(),
            tick: 1_000_000_000 / rustix::param::clock_ticks_per_second().max(1),
            page: rustix::param::page_size() as u64,
            everyone: None,
            began: (Instant::now(), wall()),
        }
    }

    fn run(mut self, inbox: &mpsc::Receiver<Message>) {
        let mut next = Instant::now();
        let mut slot = 0;
        loop {
            // Slots without a tree cost no waking.
            let message = match (0..SLOTS).find(|ahead| !self.slots[(slot + ahead) % SLOTS].is_empty()) {
                None => inbox.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected),
                Some(ahead) => {
                    let due = next + self.pause * ahead as u32;
                    inbox.recv_timeout(due.saturating_duration_since(Instant::now()))
                }
            };
            match message {
                Ok(message) => self.take(message),
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
                Err(mpsc::RecvTimeoutError::Timeout) => {}
            }
            let now = Instant::now();
            if now > next + self.pause * (2 * SLOTS as u32) {
                // There was nothing to do, or the machine slept.
                next = now;
            }
            while next <= now {
                for id in std::mem::take(&mut self.slots[slot]) {
                    if self.sample(&id, false) {
                        self.slots[slot].push(id);
                    }
                }
                slot = (slot + 1) % SLOTS;
                next += self.pause;
            }
            let spent = clock_gettime(ClockId::ThreadCPUTime);
            let nanos = spent.tv_sec as u64 * 1_000_000_000 + spent.tv_nsec as u64;
            self.board.spent.store(nanos, Ordering::Relaxed);
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Track(id, target) => self.track(id, target),
            Message::Untrack(id, leader) => {
                let held = self.tracked.get(&id).map(|tracked| tracked.target.pid);
                if held.is_some_and(|held| leader.is_none_or(|pid| pid == held)) {
                    self.untrack(&id);
                }
            }
            Message::Watch(id, order) => self.watch(&id, order),
            Message::Refresh(ids, done) => {
                self.everyone = None;
                for id in ids {
                    self.sample(&id, true);
                }
                let _ = done.send(());
            }
            Message::Pss(ids, answer) => {
                self.everyone = None;
                let found = ids.into_iter().filter_map(|id| Some((self.pss(&id)?, id))).map(|(pss, id)| (id, pss));
                let _ = answer.send(found.collect());
            }
        }
    }

    fn track(&mut self, id: Id, target: Target) {
        if let Some(known) = self.tracked.get_mut(&id) {
            if (known.target.pid, known.target.start_time) == (target.pid, target.start_time) {
                return;
            }
            self.untrack(&id);
        }
        let mut tracked = Box::new(Tracked {
            target,
            slot: 0,
            step: 0,
            count: 0,
            is_nested: false,
            steady: 0,
            procs: Held::default(),
            stats: Vec::new(),
            base: None,
            cpu_time: 0,
            gone: 0,
            watched: None,
        });
        self.give_slots(&id, &mut tracked, SLOTS);
        self.tracked.insert(id, tracked);
        if self.budget.fit(self.tracked.len()) {
            for other in self.tracked.values_mut() {
                if self.budget.is_roomy() {
                    break;
                }
                other.close(&self.budget);
            }
        }
    }

    /// Has it sampled in every `step`th slot, the emptiest ones.
    fn give_slots(&mut self, id: &Id, tracked: &mut Tracked, step: usize) {
        let slot = (0..step).min_by_key(|slot| self.slots[*slot].len()).unwrap_or(0);
        (tracked.slot, tracked.step) = (slot as u8, step as u8);
        for slot in tracked.slots() {
            self.slots[slot].push(Arc::clone(id));
        }
    }

    fn take_slots(&mut self, id: &Id, tracked: &Tracked) {
        for slot in tracked.slots() {
            self.slots[slot].retain(|other| other != id);
        }
    }

    fn watch(&mut self, id: &Id, order: Option<Box<Order>>) {
        let Some(mut tracked) = self.tracked.remove(id) else { return };
        let order = order.filter(|order| order.leader == tracked.target.pid);
        let step = order.as_ref().map_or(SLOTS, |order| watch::step(order.interval, self.pause));
        if step != usize::from(tracked.step) {
            self.take_slots(id, &tracked);
            self.give_slots(id, &mut tracked, step);
        }
        let now = self.steady(Instant::now());
        tracked.watched = order.map(|order| Box::new(Watched::new(*order, now)));
        self.tracked.insert(Arc::clone(id), tracked);
    }

    /// A time that nobody sets.
    fn steady(&self, at: Instant) -> Timestamp {
        let (instant, wall) = self.began;
        wall + ostler_core::Span::from_micros(at.saturating_duration_since(instant).as_micros() as u64)
    }

    fn untrack(&mut self, id: &Id) {
        if let Some(mut tracked) = self.tracked.remove(id) {
            tracked.close(&self.budget);
            self.take_slots(id, &tracked);
            self.budget.fit(self.tracked.len());
        }
        let mut samples = self.board.samples();
        samples.remove(id);
        if samples.capacity() > 4 * samples.len() + 64 {
            samples.shrink_to_fit();
        }
    }

    /// Takes a sample; false when the instance is not tracked.
    fn sample(&mut self, id: &Id, thorough: bool) -> bool {
        let Some(mut tracked) = self.tracked.remove(id) else { return false };
        let needs_files = tracked.watched.as_ref().is_some_and(|watched| watched.counts_files);
        let thorough = thorough || needs_files || tracked.count.is_multiple_of(THOROUGH);
        self.look(id, &mut tracked, thorough);
        tracked.count = (tracked.count + 1) % NETWORK;
        self.tracked.insert(Arc::clone(id), tracked);
        true
    }

    fn look(&mut self, id: &Id, tracked: &mut Tracked, thorough: bool) {
        let instant = Instant::now();
        self.list(tracked, thorough);
        let (mut ticks, mut pages, mut threads) = (0, 0, 0);
        // Mostly the same processes as the last time, in the same order.
        let mut stats = std::mem::take(&mut tracked.stats);
        let before = stats.len();
        stats.retain_mut(|(pid, stat)| {
            let stays = self.pids.contains(pid);
            if !stays {
                stat.close(&self.budget);
            }
            stays
        });
        let is_same = stats.len() == before && self.pids.len() == before;
        for pid in &self.pids {
            if !stats.iter().any(|(known, _)| known == pid) {
                stats.push((*pid, Held::default()));
            }
        }
        let leader = (tracked.target.pid, tracked.target.start_time);
        stats.retain_mut(|(pid, held)| {
            let path;
            let path = if held.is_open() {
                ""
            } else {
                path = format!("/proc/{pid}/stat");
                &path
            };
            let stat = held.read(path, &mut self.buffer, &self.budget).ok().and_then(read::parse_stat);
            // A number that belongs to another process since it was listed.
            let stat = stat.filter(|stat| *pid != leader.0 || stat.start_time == leader.1);
            let Some(stat) = stat.filter(|stat| !stat.is_dead) else {
                held.close(&self.budget);
                return false;
            };
            ticks += stat.ticks;
            pages += stat.pages;
            threads += stat.threads;
            true
        });
        tracked.steady = if is_same && stats.len() == before { tracked.steady.saturating_add(1) } else { 0 };
        stats.shrink_to(stats.len());
        tracked.stats = stats;
        let living = ticks * self.tick;
        if thorough && !tracked.target.cgroup.is_empty() {
            // What was used by processes that nobody collected, which took their time with them.
            let path = format!("{}/cpu.stat", tracked.target.cgroup);
            let exact = read::open_file(&path)
                .and_then(|file| read::read_all(&file, &mut self.buffer).map(read::parse_cpu_stat));
            if let Ok(Some(exact)) = exact {
                tracked.gone = exact.cast_signed() - living.cast_signed();
            }
        }
        tracked.cpu_time = tracked.cpu_time.max(living.saturating_add_signed(tracked.gone));
        let cpu = self.rate(tracked, instant);
        let mut usage = Usage {
            at: wall(),
            cpu_time: tracked.cpu_time,
            cpu,
            rss: pages * self.page,
            processes: tracked.stats.len() as u32,
            threads,
            ..Usage::default()
        };
        if thorough {
            self.look_closely(tracked, &mut usage);
        }
        self.board.taken.fetch_add(1, Ordering::Relaxed);
        if usage.processes == 0 {
            // It has just ended; its exit says so soon.
            return;
        }
        let mut samples = self.board.samples();
        let sample = samples.entry(Arc::clone(id)).or_default();
        if sample.pid != tracked.target.pid {
            **sample = Sample { pid: tracked.target.pid, ..Sample::default() };
        }
        if !thorough {
            usage.open_files = sample.usage.open_files;
            usage.io = sample.usage.io;
        }
        // Two looks in quick succession tell no rate.
        usage.cpu = usage.cpu.or(sample.usage.cpu);
        usage.network = match sample.usage.network {
            // A program can enter another namespace, but hardly ever does after its beginning.
            Network::Unsupported if !thorough || tracked.count >= 2 * THOROUGH => Network::Unsupported,
            Network::Counted { .. } if !thorough => sample.usage.network,
            Network::Unknown | Network::Unsupported | Network::Counted { .. } => {
                read::network(tracked.target.pid, self.own_network)
            }
        };
        // Storage traffic of processes that are gone stays in the sum.
        usage.io = later(sample.usage.io, usage.io);
        sample.history.push(usage.at, usage.cpu.unwrap_or(0), usage.rss);
        sample.usage = usage.clone();
        drop(samples);
        let now = self.steady(instant);
        if let Some(watched) = &mut tracked.watched {
            watched.take(id, &usage, now);
        }
    }

    /// The rate over at least half an interval, so that being looked at more often does not make it jump.
    fn rate(&self, tracked: &mut Tracked, now: Instant) -> Option<u32> {
        let least = self.pause * (SLOTS as u32 / 2);
        let Some((before, since)) = tracked.base else {
            tracked.base = Some((tracked.cpu_time, now));
            return None;
        };
        let elapsed = now.saturating_duration_since(since);
        let spent = tracked.cpu_time.saturating_sub(before);
        if elapsed >= least {
            tracked.base = Some((tracked.cpu_time, now));
        } else if elapsed < least / 10 {
            return None;
        }
        let millis = u128::from(spent) * 1000 / elapsed.as_nanos().max(1);
        Some(u32::try_from(millis).unwrap_or(u32::MAX))
    }

    /// Fills `pids` with the processes of the tree.
    fn list(&mut self, tracked: &mut Tracked, thorough: bool) {
        self.pids.clear();
        let Target { pid, start_time, cgroup } = &tracked.target;
        if cgroup.is_empty() {
            let now = Instant::now();
            // One look at everybody serves all trees for a while; one that is not in it may have begun since.
            let fresh = self.everyone.as_ref().is_some_and(|(at, all)| {
                let patience = if all.iter().any(|(number, _)| number == pid) { SLOTS as u32 / 2 } else { 4 };
                now < *at + self.pause * patience
            });
            if !fresh {
                self.everyone = Some((now, read::everyone(&mut self.buffer)));
                self.board.scans.fetch_add(1, Ordering::Relaxed);
            }
            // The family of another process that has the number now is not ours.
            let is_recycled =
                |all: &[(i32, Stat)]| all.iter().any(|(number, stat)| number == pid && stat.start_time != *start_time);
            if let Some((_, all)) = self.everyone.as_ref().filter(|(_, all)| !is_recycled(all)) {
                read::family(all, *pid, &mut self.pids);
            }
            return;
        }
        let is_steady = tracked.steady >= STEADY && tracked.watched.is_none();
        if is_steady && !thorough && !tracked.count.is_multiple_of(3) {
            self.pids.extend(tracked.stats.iter().map(|(pid, _)| *pid));
            return;
        }
        let path = if tracked.procs.is_open() { String::new() } else { format!("{cgroup}/cgroup.procs") };
        match tracked.procs.read(&path, &mut self.buffer, &self.budget) {
            Ok(text) => read::parse_pids(text, &mut self.pids),
            // The group is gone, and with it the tree.
            Err(_) => return,
        }
        if thorough {
            tracked.is_nested = has_groups(Path::new(cgroup));
        }
        if tracked.is_nested {
            self.list_below(Path::new(&tracked.target.cgroup));
        }
    }

    fn list_below(&mut self, group: &Path) {
        let Ok(entries) = std::fs::read_dir(group) else { return };
        for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            if let Ok(text) = std::fs::read(entry.path().join("cgroup.procs")) {
                read::parse_pids(&text, &mut self.pids);
            }
            self.list_below(&entry.path());
        }
    }

    fn look_closely(&mut self, tracked: &Tracked, usage: &mut Usage) {
        let mut io = None;
        for (pid, _) in &tracked.stats {
            if let Some(count) = read::open_files(*pid) {
                *usage.open_files.get_or_insert(0) += count;
            }
            if let Some(found) = read::io_of(*pid, &mut self.buffer) {
                let sum: &mut Io = io.get_or_insert_default();
                sum.read += found.read;
                sum.written += found.written;
            }
        }
        usage.io = io;
    }

    fn pss(&mut self, id: &Id) -> Option<u64> {
        self.sample(id, true);
        let tracked = self.tracked.get(id)?;
        tracked.stats.iter().filter_map(|(pid, _)| read::pss(*pid)).reduce(|sum, pss| sum + pss)
    }
}

/// A directory of a cgroup file system has a link for itself, one for its name, and one for each group below it.
fn has_groups(group: &Path) -> bool {
    rustix::fs::stat(group).is_ok_and(|stat| stat.st_nlink > 2)
}

fn later(before: Option<Io>, now: Option<Io>) -> Option<Io> {
    match (before, now) {
        (Some(before), Some(now)) => {
            Some(Io { read: now.read.max(before.read), written: now.written.max(before.written) })
        }
        (before, now) => now.or(before),
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    fn all(sampler: &Sampler) -> usize {
        let mut count = 0;
        sampler.each(|_, _| count += 1);
        count
    }

    struct Killed(Child);
    impl Drop for Killed {
        fn drop(&mut self) {
            // It may have ended by itself.
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn target(pid: i32) -> Target {
        let file = read::open_file(&format!("/proc/{pid}/stat")).unwrap();
        let start_time = read::parse_stat(read::read_all(&file, &mut Vec::new()).unwrap()).unwrap().start_time;
        Target { pid, start_time, cgroup: String::new() }
    }

    fn id(name: &str) -> Id {
        format!("default/{name}").into()
    }

    #[tokio::test]
    async fn a_tree_without_a_cgroup_is_sampled_as_a_whole_until_it_ends() {
        let sampler = Sampler::start(Settings { interval: Duration::from_millis(400), descriptors: 2 }).unwrap();
        let tree = Killed(Command::new("sh").args(["-c", "sleep 1000 & exec sleep 1000"]).spawn().unwrap());
        let web = id("web-0");
        sampler.track(Arc::clone(&web), target(tree.0.id().cast_signed()));
        let deadline = Instant::now() + Duration::from_secs(30);
        let sample = loop {
            sampler.refresh(vec![Arc::clone(&web)]).await;
            match sampler.get(&web) {
                Some(sample) if sample.usage.processes == 2 => break sample,
                _ => assert!(Instant::now() < deadline, "never two processes"),
            }
        };
        assert!(sample.usage.rss > 0 && sample.usage.threads >= 2 && sample.usage.open_files.unwrap() >= 2);
        assert!(sample.usage.io.is_some());
        assert_eq!(sample.usage.network, Network::Unsupported);
        assert!(sampler.pss(vec![Arc::clone(&web)]).await[&web] > 0);
        assert!(sampler.cost().samples > 0);
        let child: i32 = {
            let all = read::everyone(&mut Vec::new());
            all.iter().find(|(_, stat)| stat.parent == sample.pid).unwrap().0
        };
        sampler.untrack(Arc::clone(&web), None);
        sampler.refresh(Vec::new()).await;
        assert!(sampler.get(&web).is_none() && all(&sampler) == 0);
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(child), nix::sys::signal::Signal::SIGKILL).unwrap();
    }

    #[tokio::test]
    async fn one_look_at_everybody_serves_all_trees_without_a_cgroup() {
        // So long that nothing is due while the trees are made, however long that takes.
        let sampler = Sampler::start(Settings { interval: Duration::from_secs(3600), descriptors: 16 }).unwrap();
        let trees: Vec<_> = (0..20).map(|_| Killed(Command::new("sleep").arg("1000").spawn().unwrap())).collect();
        let ids: Vec<Id> = (0..trees.len()).map(|index| id(&format!("web-{index}"))).collect();
        for (id, tree) in ids.iter().zip(&trees) {
            sampler.track(Arc::clone(id), target(tree.0.id().cast_signed()));
        }
        sampler.refresh(ids).await;
        assert_eq!(all(&sampler), trees.len());
        // One for the refresh, and one that was due before it.
        assert!(sampler.cost().scans <= 3, "{:?}", sampler.cost());
    }

    #[tokio::test]
    async fn thresholds_are_told_of_when_they_are_crossed_and_not_at_every_sample() {
        let sampler = Sampler::start(Settings { interval: Duration::from_millis(200), descriptors: 16 }).unwrap();
        let tree = Killed(Command::new("sleep").arg("1000").spawn().unwrap());
        let leader = tree.0.id().cast_signed();
        sampler.track(id("web-0"), target(leader));
        let spec = serde_json::json!({"command": ["x"], "resources": {"thresholds": {
            "processes": {"critical": 0, "policy": "Log", "for": "0s"}, "openFiles": {"warning": 1}}},
            "restart": {"startupGrace": "0s", "spikeTolerance": "20ms"}});
        let spec: ostler_core::kinds::ProcessSpec = serde_json::from_value(spec).unwrap();
        let rules = ostler_core::threshold::Rules::of(&spec, None).unwrap();
        let (crossings, mut crossed) = tokio::sync::mpsc::unbounded_channel();
        let order = |leader| Order {
            attempt: 3,
            leader,
            rules: rules.clone(),
            interval: Duration::from_millis(10),
            age: Duration::ZERO,
            known: Vec::new(),
            crossings: crossings.clone(),
        };
        sampler.watch(id("web-0"), Some(Box::new(order(leader + 1))));
        sampler.watch(id("web-0"), Some(Box::new(order(leader))));
        let mut found = Vec::new();
        while found.len() < 2 {
            let crossing = tokio::time::timeout(Duration::from_secs(30), crossed.recv()).await.unwrap().unwrap();
            assert_eq!((&*crossing.id, crossing.attempt), ("default/web-0", 3));
            found = crossing.exceeded;
        }
        assert!(found.iter().any(|exceeded| exceeded.sustained));
        let before = sampler.cost().samples;
        while sampler.cost().samples < before + 5 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(crossed.try_recv().is_err(), "told twice");
        sampler.watch(id("web-0"), None);
    }

    #[tokio::test]
    async fn a_number_that_another_process_has_now_is_not_sampled() {
        let sampler = Sampler::start(Settings::default()).unwrap();
        let _child = Killed(Command::new("sleep").arg("1000").spawn().unwrap());
        let mut other = target(std::process::id().cast_signed());
        other.start_time += 1;
        sampler.track(id("web-0"), other);
        sampler.refresh(vec![id("web-0")]).await;
        assert!(sampler.get("default/web-0").is_none_or(|sample| sample.pid == 0));
    }

    #[tokio::test]
    async fn cpu_time_is_a_rate_between_samples() {
        let sampler = Sampler::start(Settings { interval: Duration::from_millis(200), descriptors: 16 }).unwrap();
        let busy = Killed(Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap());
        let web = id("web-0");
        sampler.track(Arc::clone(&web), target(busy.0.id().cast_signed()));
        let deadline = Instant::now() + Duration::from_secs(30);
        while sampler.get(&web).and_then(|sample| sample.usage.cpu).is_none_or(|cpu| cpu == 0) {
            assert!(Instant::now() < deadline, "no rate");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        sampler.untrack(web, None);
    }

    #[tokio::test]
    async fn without_a_thread_there_are_no_figures_and_nobody_waits() {
        let sampler = Sampler::off();
        sampler.track(id("web-0"), Target { pid: 1, start_time: 0, cgroup: String::new() });
        sampler.refresh(vec![id("web-0")]).await;
        assert!(all(&sampler) == 0 && sampler.pss(vec![id("web-0")]).await.is_empty());
    }
}
