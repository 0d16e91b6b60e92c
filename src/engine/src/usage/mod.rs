//! What the instances use: one thread samples them in turn, spread over the interval, and keeps the latest figures.
//!
//! Nothing is stored. A thread of its own, because the kernel may let a reader of /proc wait, and the loop that decides
//! must not. Trees are those of the keeper: its cgroup if there is one, else session and descent.

mod read;

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use ostler_core::usage::{History, Io, Network, Usage};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::oneshot;

use self::read::{Budget, Held, Stat};
use crate::clock::wall;

/// An instance by `namespace/name`.
pub type Id = Arc<str>;

/// How samples are taken.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Between two samples of an instance.
    pub interval: Duration,
    /// Descriptors that may be held open to make samples cheaper.
    pub descriptors: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { interval: Duration::from_secs(10), descriptors: 4096 }
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
}

#[derive(Debug, Default)]
struct Board {
    samples: Mutex<HashMap<Id, Sample>>,
    taken: AtomicU64,
    spent: AtomicU64,
}

impl Board {
    fn samples(&self) -> std::sync::MutexGuard<'_, HashMap<Id, Sample>> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
enum Message {
    Track(Id, Target),
    /// With the leader's pid; none: whatever it is.
    Untrack(Id, Option<i32>),
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

    /// The latest of an instance; none while it does not run, and before its first sample.
    pub fn get(&self, id: &str) -> Option<Sample> {
        self.board.samples().get(id).cloned()
    }

    /// The latest of every instance that runs.
    pub fn all(&self) -> Vec<(Id, Sample)> {
        self.board.samples().iter().map(|(id, sample)| (Arc::clone(id), sample.clone())).collect()
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
        Cost { samples: self.board.taken.load(Ordering::Relaxed), cpu_time: self.board.spent.load(Ordering::Relaxed) }
    }
}

/// Trees are sampled in so many groups, one after the other.
const SLOTS: usize = 40;

/// What costs more is read at every sixth sample.
const THOROUGH: u8 = 6;

/// Whether it has a network namespace of its own, twice in sixty.
const NETWORK: u8 = 60;

/// A tree, and the files about it that are held open.
struct Tracked {
    target: Target,
    slot: u8,
    count: u8,
    /// Has it groups below its own?
    is_nested: bool,
    procs: Held,
    stats: Vec<(i32, Held)>,
    /// CPU time and moment that the next rate is counted from.
    base: Option<(u64, Instant)>,
    cpu_time: u64,
    /// CPU time of its group beyond that of its living processes, nanoseconds, when that was compared last.
    gone: i64,
}

impl Tracked {
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
    tracked: HashMap<Id, Tracked>,
    slots: Vec<Vec<Id>>,
    buffer: Vec<u8>,
    pids: Vec<i32>,
    own_network: u64,
    tick: u64,
    page: u64,
    /// Every process of the machine, for trees without a cgroup.
    everyone: Option<(Instant, Vec<(i32, Stat)>)>,
}

impl Worker {
    fn new(settings: Settings, board: Arc<Board>) -> Self {
        Self {
            board,
            budget: Budget::new(settings.descriptors),
            pause: settings.interval / SLOTS as u32,
            tracked: HashMap::new(),
            slots: vec![Vec::new(); SLOTS],
            buffer: Vec::new(),
            pids: Vec::new(),
            own_network: read::own_network(),
            tick: 1_000_000_000 / rustix::param::clock_ticks_per_second().max(1),
            page: rustix::param::page_size() as u64,
            everyone: None,
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
                let is_meant = |tracked: &Tracked| leader.is_none_or(|pid| pid == tracked.target.pid);
                if self.tracked.get(&id).is_some_and(is_meant) {
                    self.untrack(&id);
                }
            }
            Message::Refresh(ids, done) => {
                for id in ids {
                    self.sample(&id, true);
                }
                let _ = done.send(());
            }
            Message::Pss(ids, answer) => {
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
        let slot = (0..SLOTS).min_by_key(|slot| self.slots[*slot].len()).unwrap_or(0);
        self.slots[slot].push(Arc::clone(&id));
        let tracked = Tracked {
            target,
            slot: slot as u8,
            count: 0,
            is_nested: false,
            procs: Held::default(),
            stats: Vec::new(),
            base: None,
            cpu_time: 0,
            gone: 0,
        };
        self.tracked.insert(id, tracked);
    }

    fn untrack(&mut self, id: &Id) {
        if let Some(mut tracked) = self.tracked.remove(id) {
            tracked.close(&self.budget);
            self.slots[usize::from(tracked.slot)].retain(|other| other != id);
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
        let thorough = thorough || tracked.count.is_multiple_of(THOROUGH);
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
        stats.retain_mut(|(pid, stat)| {
            let stays = self.pids.contains(pid);
            if !stays {
                stat.close(&self.budget);
            }
            stays
        });
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
            *sample = Sample { pid: tracked.target.pid, ..Sample::default() };
        }
        if !thorough {
            usage.open_files = sample.usage.open_files;
            usage.io = sample.usage.io;
        }
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
        sample.usage = usage;
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
            let fresh = self.everyone.as_ref().is_some_and(|(at, _)| now < *at + self.pause * (SLOTS as u32 / 4));
            if !fresh || thorough {
                self.everyone = Some((now, read::everyone(&mut self.buffer)));
            }
            // The family of another process that has the number now is not ours.
            let is_recycled =
                |all: &[(i32, Stat)]| all.iter().any(|(number, stat)| number == pid && stat.start_time != *start_time);
            if let Some((_, all)) = self.everyone.as_ref().filter(|(_, all)| !is_recycled(all)) {
                read::family(all, *pid, &mut self.pids);
            }
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
        assert!(sampler.get(&web).is_none() && sampler.all().is_empty());
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(child), nix::sys::signal::Signal::SIGKILL).unwrap();
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
        assert!(sampler.all().is_empty() && sampler.pss(vec![id("web-0")]).await.is_empty());
    }
}
