//! The whole controller on virtual time, with the memory store and a keeper that is simulated: seeded lives with crashes
//! of controller and keeper, hours of backoff in milliseconds, and never a second copy.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ostler_core::kinds::{Instance, Phase};
use ostler_core::object::{Applicable, key};
use ostler_core::{Kind, Span, Timestamp};
use ostler_engine::driver::{Driver, DriverEvent};
use ostler_engine::{Action, Clock, Controller, Ended, Handle, InstanceRef, Options, Start, Tuning};
use ostler_keeper::wire::{self, command};
use ostler_store::{Durability, Expect, MemoryStore, Op, Store};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::Instant;

#[path = "simulation/dependencies.rs"]
mod dependencies;
#[path = "simulation/restarts.rs"]
mod restarts;

/// What a simulated process does, told by its argv: `live`, `stubborn` (ignores TERM),
/// `exit CODE AFTER_MS`, `fault` (SIGSEGV), `unknown` (nobody sees its end), `missing`.
#[derive(Clone, Debug)]
struct Simulated {
    attempt: u64,
    name: String,
    argv: Vec<String>,
    started_at: i64,
    /// When it ends, and how.
    ends: Option<(Instant, wire::exit::Status)>,
    ended: Option<wire::Exit>,
    failed: Option<wire::SpawnError>,
}

impl Simulated {
    fn is_live(&self) -> bool {
        self.ended.is_none() && self.failed.is_none()
    }
}

/// The keeper as the controller sees it; outlives controllers.
#[derive(Default)]
struct Keeper {
    attempts: BTreeMap<(String, u64), Simulated>,
    /// Every start: name, attempt, time.
    starts: Vec<(String, u64, Timestamp)>,
    /// Every signal to a living process, and every end: name, time.
    signals: Vec<(String, Timestamp)>,
    ends: Vec<(String, Timestamp)>,
    outbox: Vec<DriverEvent>,
    hello_due: bool,
    most_live: BTreeMap<String, usize>,
    shut_down: bool,
}

#[derive(Clone)]
struct World {
    keeper: Arc<Mutex<Keeper>>,
    wake: Arc<Notify>,
    begin: Instant,
}

const EPOCH: i64 = 1_700_000_000_000_000;

impl World {
    fn new() -> Self {
        Self { keeper: Arc::default(), wake: Arc::new(Notify::new()), begin: Instant::now() }
    }

    fn lock(&self) -> MutexGuard<'_, Keeper> {
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn nanos(&self) -> i64 {
        EPOCH * 1000 + i64::try_from(self.begin.elapsed().as_nanos()).unwrap()
    }

    fn state(id: &str, process: &Simulated) -> wire::State {
        let phase = match (&process.ended, &process.failed) {
            (_, Some(_)) => wire::Phase::FailedToStart,
            (Some(_), None) => wire::Phase::Empty,
            (None, None) => wire::Phase::Running,
        };
        let identity = wire::Identity {
            boot_id: wire::boot_id().unwrap(),
            pid: 1000 + i32::try_from(process.attempt).unwrap(),
            start_time: process.attempt,
        };
        wire::State {
            id: id.to_owned(),
            attempt: process.attempt,
            name: process.name.clone(),
            phase: phase.into(),
            identity: process.failed.is_none().then_some(identity),
            started_at: process.started_at,
            exit: process.ended.clone(),
            error: process.failed.clone(),
            ..wire::State::default()
        }
    }

    fn report(&self, keeper: &mut Keeper, key: &(String, u64)) {
        let state = Self::state(&key.0, &keeper.attempts[key]);
        keeper.outbox.push(DriverEvent::State(state));
        self.wake.notify_one();
    }

    fn spawn(&self, spawn: &wire::Spawn) {
        let mut keeper = self.lock();
        let key = (spawn.id.clone(), spawn.attempt);
        let live = keeper.attempts.iter().any(|((id, _), process)| *id == spawn.id && process.is_live());
        assert!(!live, "{}: a second copy was asked for", spawn.name);
        assert!(!keeper.attempts.contains_key(&key), "{}: attempt {} was used twice", spawn.name, spawn.attempt);
        let argv: Vec<String> = spawn.argv.iter().map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        let started_at = self.nanos();
        let ends = match argv[0].as_str() {
            "exit" => {
                let after = Duration::from_millis(argv[2].parse().unwrap());
                Some((Instant::now() + after, wire::exit::Status::Code(argv[1].parse().unwrap())))
            }
            "fault" => Some((Instant::now(), wire::exit::Status::Signal(11))),
            "unknown" => Some((Instant::now(), wire::exit::Status::Unknown("nobody saw it".to_owned()))),
            _ => None,
        };
        let failed = (argv[0] == "missing").then(|| wire::SpawnError {
            stage: wire::spawn_error::Stage::Exec.into(),
            errno: 2,
            path: "missing".to_owned(),
            ..wire::SpawnError::default()
        });
        let name = spawn.name.clone();
        keeper.starts.push((name.clone(), spawn.attempt, Timestamp::from_nanos(started_at)));
        let process =
            Simulated { attempt: spawn.attempt, name: name.clone(), argv, started_at, ends, ended: None, failed };
        keeper.attempts.insert(key.clone(), process);
        let live = keeper.attempts.values().filter(|process| process.name == name && process.is_live()).count();
        let most = keeper.most_live.entry(name).or_default();
        *most = (*most).max(live);
        self.report(&mut keeper, &key);
    }

    fn signal(&self, id: &str, attempt: u64, signal: i32) {
        let at = Timestamp::from_nanos(self.nanos());
        let mut keeper = self.lock();
        let Some(process) = keeper.attempts.get_mut(&(id.to_owned(), attempt)) else { return };
        let told = process.is_live().then(|| process.name.clone());
        if process.is_live() && (signal == 9 || process.argv[0] != "stubborn") {
            process.ends = Some((Instant::now() + Duration::from_millis(30), wire::exit::Status::Signal(signal)));
        }
        keeper.signals.extend(told.map(|name| (name, at)));
        self.wake.notify_one();
    }

    /// Lets processes end whose time has come; when the next one does.
    fn pass(&self) -> Option<Instant> {
        let mut keeper = self.lock();
        let now = Instant::now();
        let due: Vec<_> = keeper
            .attempts
            .iter()
            .filter(|(_, process)| process.is_live() && process.ends.as_ref().is_some_and(|(at, _)| *at <= now))
            .map(|(key, _)| key.clone())
            .collect();
        for key in due {
            let at = self.nanos();
            let process = keeper.attempts.get_mut(&key).unwrap();
            let status = process.ends.take().map(|(_, status)| status);
            process.ended = Some(wire::Exit { status, at, core_dumped: false, oom_kills: 0 });
            let name = process.name.clone();
            keeper.ends.push((name, Timestamp::from_nanos(at)));
            self.report(&mut keeper, &key);
        }
        keeper.attempts.values().filter(|process| process.is_live()).filter_map(|p| Some(p.ends.as_ref()?.0)).min()
    }

    fn snapshot(keeper: &mut Keeper) {
        keeper.outbox.clear();
        keeper.outbox.push(DriverEvent::Hello(wire::Hello { protocol: 1, pid: 1, ..wire::Hello::default() }));
        let states: Vec<_> = keeper.attempts.iter().map(|((id, _), process)| Self::state(id, process)).collect();
        keeper.outbox.extend(states.into_iter().map(DriverEvent::State));
        keeper.outbox.push(DriverEvent::Synced);
    }
}

struct Simulation(World);

impl Driver for Simulation {
    fn submit(&mut self, command: wire::Command) {
        match command.kind.unwrap() {
            command::Kind::Spawn(spawn) => self.0.spawn(&spawn),
            command::Kind::Signal(signal) => self.0.signal(&signal.id, signal.attempt, signal.signal),
            command::Kind::Kill(kill) => self.0.signal(&kill.id, kill.attempt, 9),
            command::Kind::Forget(forget) => {
                let mut keeper = self.0.lock();
                let key = (forget.id, forget.attempt);
                if keeper.attempts.get(&key).is_some_and(|process| !process.is_live()) {
                    keeper.attempts.remove(&key);
                }
            }
            command::Kind::Shutdown(_) => self.0.lock().shut_down = true,
            _ => {}
        }
    }

    fn flush(&mut self) {}

    async fn next(&mut self) -> Vec<DriverEvent> {
        loop {
            let next = self.0.pass();
            {
                let mut keeper = self.0.lock();
                if std::mem::take(&mut keeper.hello_due) {
                    World::snapshot(&mut keeper);
                }
                if !keeper.outbox.is_empty() {
                    return std::mem::take(&mut keeper.outbox);
                }
            }
            match next {
                Some(at) => tokio::select! {
                    () = tokio::time::sleep_until(at) => {}
                    () = self.0.wake.notified() => {}
                },
                None => self.0.wake.notified().await,
            }
        }
    }
}

struct Daemon {
    world: World,
    store: Arc<MemoryStore>,
    handle: Handle,
    running: tokio::task::JoinHandle<(Ended, Simulation)>,
}

impl Daemon {
    async fn start() -> Self {
        Self::resume(World::new(), Arc::new(MemoryStore::new())).await
    }

    async fn resume(world: World, store: Arc<MemoryStore>) -> Self {
        world.lock().hello_due = true;
        let at = Timestamp::from_nanos(world.nanos());
        let options = Options {
            state_dir: std::env::temp_dir().join("ostler-simulation-writes-nothing-here"),
            tuning: Tuning {
                tick: Duration::from_secs(1),
                stop_on_terminate: false,
                shutdown_deadline: Span::from_secs(60),
            }
            .fixed(),
        };
        let driver = Simulation(world.clone());
        let start = Start {
            options,
            store: Arc::clone(&store) as Arc<dyn Store>,
            driver,
            clock: Clock::simulated(at),
            sampler: ostler_engine::usage::Sampler::off(),
            probes: ostler_engine::probe::Settings::default(),
        };
        let (controller, handle) = Controller::new(start).await.unwrap();
        Self { world, store, handle, running: tokio::spawn(controller.run()) }
    }

    /// kill -9 of the controller, and another one takes over.
    async fn crash(self) -> Self {
        self.running.abort();
        let _ = self.running.await;
        Self::resume(self.world, self.store).await
    }

    /// The keeper dies and its successor reports what it was handed.
    fn lose_keeper(&self) {
        let mut keeper = self.world.lock();
        World::snapshot(&mut keeper);
        keeper.outbox.insert(0, DriverEvent::Lost);
        drop(keeper);
        self.world.wake.notify_one();
    }

    async fn apply(&self, name: &str, spec: Value) {
        let store_key = key(Kind::Process, "default", name).into();
        for _ in 0..50 {
            let before = self.store.get(&store_key);
            let object = json!({"apiVersion": "ostler.dev/v1", "kind": "Process", "spec": spec,
                "metadata": {"name": name, "namespace": "default"}});
            let Applicable::Process(mut object) = Applicable::from_json(&object).unwrap() else { unreachable!() };
            object.metadata.uid = format!("uid-of-{name}");
            object.metadata.generation = 1;
            if let Some(entry) = &before {
                let old: ostler_core::kinds::Process = serde_json::from_slice(&entry.value).unwrap();
                object.metadata = old.metadata;
                object.metadata.generation += 1;
                object.status = old.status;
            }
            let expect = before.map_or(Expect::Absent, |entry| Expect::Revision(entry.revision));
            let put = Op::put(store_key.clone(), serde_json::to_vec(&object).unwrap(), expect);
            if self.store.commit(vec![put], Durability::Durable).await.is_ok() {
                return;
            }
        }
        panic!("always a conflict");
    }

    async fn delete(&self, name: &str) {
        let store_key = key(Kind::Process, "default", name).into();
        for _ in 0..50 {
            let Some(entry) = self.store.get(&store_key) else { return };
            let mut object: ostler_core::kinds::Process = serde_json::from_slice(&entry.value).unwrap();
            object.metadata.deletion_timestamp = Some(Timestamp::from_nanos(self.world.nanos()));
            let put =
                Op::put(store_key.clone(), serde_json::to_vec(&object).unwrap(), Expect::Revision(entry.revision));
            if self.store.commit(vec![put], Durability::Durable).await.is_ok() {
                return;
            }
        }
        panic!("always a conflict");
    }

    fn instances(&self) -> Vec<Instance> {
        let entries = self.store.list("instances/").entries;
        entries.iter().map(|entry| serde_json::from_slice(&entry.value).unwrap()).collect()
    }

    /// The numbers of the starts of an instance, and their times in milliseconds since its first.
    fn starts(&self, instance: &str) -> Vec<u64> {
        let keeper = self.world.lock();
        let name = format!("default/{instance}");
        let times: Vec<_> = keeper.starts.iter().filter(|(who, ..)| *who == name).map(|(.., at)| *at).collect();
        times.iter().map(|at| at.since(times[0]).as_micros() / 1000).collect()
    }

    fn live(&self) -> usize {
        self.world.lock().attempts.values().filter(|process| process.is_live()).count()
    }

    /// Lets virtual time pass.
    async fn pass(&self, millis: u64) {
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }

    async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        for _ in 0..20_000 {
            if condition(self) {
                return;
            }
            self.pass(10).await;
        }
        panic!(
            "never: {what}; {:?}",
            self.instances().iter().map(|i| (&i.metadata.name, &i.status)).collect::<Vec<_>>()
        );
    }

    fn running(&self) -> usize {
        self.instances().iter().filter(|instance| instance.status.phase == Phase::Running).count()
    }
}

fn exact(more: &Value) -> Value {
    let mut spec = json!({"backoff": {"initial": "1s", "factor": 2.0, "max": "60s", "jitter": 0.0}});
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    spec
}

#[tokio::test(start_paused = true)]
async fn applies_scale_and_delete_converge() {
    let daemon = Daemon::start().await;
    daemon.apply("web", json!({"command": ["live"], "replicas": 5})).await;
    daemon.until("five run", |daemon| daemon.running() == 5).await;
    daemon.apply("web", json!({"command": ["live"], "replicas": 2})).await;
    daemon.until("two run", |daemon| daemon.running() == 2 && daemon.instances().len() == 2).await;
    daemon.apply("web", json!({"command": ["live", "new"], "replicas": 2})).await;
    daemon.until("both are new", |daemon| daemon.starts("web-0").len() == 2 && daemon.starts("web-1").len() == 2).await;
    daemon.delete("web").await;
    daemon.until("nothing is left", |daemon| daemon.store.list("processes/").entries.is_empty()).await;
    assert_eq!((daemon.live(), daemon.instances().len()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_converged_world_writes_and_starts_nothing() {
    let daemon = Daemon::start().await;
    daemon.apply("web", json!({"command": ["live"], "replicas": 20})).await;
    daemon.until("all run", |daemon| daemon.running() == 20).await;
    daemon.pass(2000).await;
    let revision = daemon.store.revision();
    daemon.pass(3_600_000).await;
    assert_eq!(daemon.store.revision(), revision);
    assert_eq!(daemon.world.lock().starts.len(), 20);
}

#[tokio::test(start_paused = true)]
async fn delays_are_exact_and_survive_controller_crashes() {
    let mut daemon = Daemon::start().await;
    daemon.apply("bad", exact(&json!({"command": ["exit", "3", "10"]}))).await;
    for starts in 2..=8 {
        daemon.until("the next start", |daemon| daemon.starts("bad-0").len() >= starts).await;
        daemon = daemon.crash().await;
        daemon.lose_keeper();
    }
    let starts = daemon.starts("bad-0");
    let gaps: Vec<u64> = starts.windows(2).map(|pair| pair[1] - pair[0]).take(7).collect();
    for (gap, expected) in gaps.iter().zip([1000, 2000, 4000, 8000, 16_000, 32_000, 60_000]) {
        assert!((expected..expected + 50).contains(gap), "{gaps:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_open_breaker_stays_open_over_crashes() {
    let mut daemon = Daemon::start().await;
    let breaker = json!({"failures": 3, "window": "60s", "cooldown": "5m"});
    let spec =
        json!({"command": ["exit", "1", "5"], "circuitBreaker": breaker, "backoff": {"initial": "0s", "jitter": 0.0}});
    daemon.apply("bad", spec).await;
    daemon.until("three failures", |daemon| daemon.starts("bad-0").len() == 3).await;
    for _ in 0..10 {
        daemon.pass(20_000).await;
        daemon = daemon.crash().await;
    }
    assert_eq!(daemon.starts("bad-0").len(), 3);
    daemon.until("the trial", |daemon| daemon.starts("bad-0").len() == 4).await;
    let starts = daemon.starts("bad-0");
    assert!((300_000..300_200).contains(&(starts[3] - starts[2])), "{starts:?}");
}

#[tokio::test(start_paused = true)]
async fn a_hundred_restarts_at_once_make_one_new_copy_at_a_time() {
    let daemon = Daemon::start().await;
    daemon.apply("web", json!({"command": ["live"]})).await;
    daemon.until("it runs", |daemon| daemon.running() == 1).await;
    let target = InstanceRef { namespace: "default".to_owned(), name: "web-0".to_owned() };
    let restarts: Vec<_> = (0..100)
        .map(|_| {
            let (handle, target) = (daemon.handle.clone(), target.clone());
            tokio::spawn(async move { handle.act(vec![target], Action::Restart).await })
        })
        .collect();
    for restart in restarts {
        restart.await.unwrap().unwrap();
    }
    daemon.until("it was restarted", |daemon| daemon.starts("web-0").len() >= 2 && daemon.running() == 1).await;
    assert_eq!(daemon.world.lock().most_live["default/web-0"], 1);
}

#[tokio::test(start_paused = true)]
async fn a_stop_by_hand_survives_crashes_until_the_start() {
    let mut daemon = Daemon::start().await;
    daemon.apply("web", json!({"command": ["stubborn"], "stop": {"gracePeriod": "5s"}})).await;
    daemon.until("it runs", |daemon| daemon.running() == 1).await;
    let target = vec![InstanceRef { namespace: "default".to_owned(), name: "web-0".to_owned() }];
    let before = Instant::now();
    daemon.handle.act(target.clone(), Action::Stop).await.unwrap();
    daemon.pass(1000).await;
    daemon = daemon.crash().await;
    daemon.until("it is gone", |daemon| daemon.live() == 0).await;
    let took = before.elapsed().as_millis();
    assert!((5000..5200).contains(&took), "killed after {took} ms");
    daemon = daemon.crash().await;
    daemon.pass(60_000).await;
    assert_eq!(daemon.starts("web-0").len(), 1);
    daemon.handle.act(target, Action::Start).await.unwrap();
    daemon.until("it runs again", |daemon| daemon.running() == 1).await;
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_daemon_stops_all_within_its_deadline_and_the_next_starts_all() {
    let daemon = Daemon::start().await;
    daemon.apply("web", json!({"command": ["live"], "replicas": 3})).await;
    daemon.apply("deaf", json!({"command": ["stubborn"], "stop": {"gracePeriod": "10m"}})).await;
    daemon.until("all run", |daemon| daemon.running() == 4).await;
    let before = Instant::now();
    daemon.handle.shutdown(Some(Span::from_secs(20))).await.unwrap();
    let (ended, _) = daemon.running.await.unwrap();
    assert_eq!(ended, Ended::Shutdown);
    let took = before.elapsed().as_millis();
    assert!((20_000..20_500).contains(&took), "{took} ms");
    assert!(daemon.world.lock().attempts.values().all(|process| !process.is_live()));
    let daemon = Daemon::resume(daemon.world, daemon.store).await;
    daemon.until("all run again", |daemon| daemon.running() == 4).await;
}

#[tokio::test(start_paused = true)]
async fn a_missing_program_is_tried_again_and_never_counts_as_running() {
    let daemon = Daemon::start().await;
    daemon.apply("bad", exact(&json!({"command": ["missing"]}))).await;
    daemon.until("four tries", |daemon| daemon.starts("bad-0").len() == 4).await;
    let instance = &daemon.instances()[0];
    assert_eq!((instance.status.phase, instance.status.reason.as_str()), (Phase::Backoff, "CommandNotFound"));
    assert_eq!(daemon.live(), 0);
}

/// Random lives: applies, scales, deletes, restarts, stops, crashes of controller and keeper, in any order. The simulated
/// keeper asserts that there is never a second copy and no number twice; in the end the world is as wanted.
#[tokio::test(start_paused = true)]
async fn seeded_lives_converge_without_second_copies() {
    let seeds = std::env::var("OSTLER_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60_u64);
    for seed in 0..seeds {
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = move |below: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % below
        };
        let mut daemon = Daemon::start().await;
        let mut wanted: BTreeMap<&str, Option<u64>> = BTreeMap::new();
        for _ in 0..60 {
            let name = ["a", "b", "c"][next(3) as usize];
            match next(10) {
                0..=3 => {
                    let replicas = next(4);
                    let command = match next(4) {
                        0 => json!(["live"]),
                        1 => json!(["live", next(3).to_string()]),
                        2 => json!(["stubborn"]),
                        _ => json!(["exit", "1", (next(3000) + 1).to_string()]),
                    };
                    let deleting = daemon.store.get(&key(Kind::Process, "default", name).into()).is_some_and(|entry| {
                        serde_json::from_slice::<Value>(&entry.value).unwrap()["metadata"]["deletionTimestamp"]
                            .is_string()
                    });
                    if !deleting {
                        let stop = json!({"gracePeriod": "2s"});
                        daemon.apply(name, json!({"command": command, "replicas": replicas, "stop": stop})).await;
                        wanted.insert(name, Some(replicas));
                    }
                }
                4 => {
                    daemon.delete(name).await;
                    wanted.insert(name, None);
                }
                5 => {
                    if let Some(instance) = daemon.instances().first() {
                        let target =
                            InstanceRef { namespace: "default".to_owned(), name: instance.metadata.name.clone() };
                        let action = if next(2) == 0 { Action::Restart } else { Action::Start };
                        // An instance on its way out refuses.
                        let _ = daemon.handle.act(vec![target], action).await;
                    }
                }
                6 | 7 => daemon = daemon.crash().await,
                8 => daemon.lose_keeper(),
                _ => {}
            }
            daemon.pass(next(1500)).await;
        }
        let total: u64 = wanted.values().flatten().sum();
        daemon
            .until(&format!("seed {seed} comes to rest"), |daemon| {
                let instances = daemon.instances();
                instances.len() as u64 == total
                    && instances.iter().all(|instance| {
                        matches!(instance.status.phase, Phase::Running | Phase::Backoff | Phase::Starting)
                            && instance.status.revision == instance.spec.revision
                    })
            })
            .await;
        let keeper = daemon.world.lock();
        assert!(keeper.most_live.values().all(|most| *most <= 1), "seed {seed}");
        drop(keeper);
        daemon.running.abort();
    }
}
