//! Starts in the order of the dependencies, as fast as the graph allows, and stops the other way round.

use std::collections::HashMap;

use super::*;

/// How long a task takes, milliseconds.
const TASK: u64 = 1000;
/// How long a process takes to end when it is told to, milliseconds.
const END: u64 = 30;

/// Processes that depend on others with a smaller number.
struct Graph {
    /// A task ends by itself; what depends on it waits until it has. Anything else lives.
    tasks: Vec<bool>,
    on: Vec<Vec<usize>>,
    /// In which order they are declared.
    order: Vec<usize>,
}

struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

impl Graph {
    fn random(random: &mut Random, size: usize) -> Self {
        let tasks = (0..size).map(|_| random.below(3) == 0).collect();
        let on = (0..size)
            .map(|node| {
                let mut on: Vec<usize> = (0..random.below(4).min(node)).map(|_| random.below(node)).collect();
                on.sort_unstable();
                on.dedup();
                on
            })
            .collect();
        let mut order: Vec<usize> = (0..size).collect();
        for place in (1..size).rev() {
            order.swap(place, random.below(place + 1));
        }
        Self { tasks, on, order }
    }

    fn len(&self) -> usize {
        self.on.len()
    }

    fn spec(&self, node: usize, random: &mut Random) -> Value {
        let on: Vec<Value> = self.on[node]
            .iter()
            .map(|other| {
                let condition = if self.tasks[*other] { "Completed" } else { ["Started", "Ready"][random.below(2)] };
                json!({"process": format!("n{other}"), "condition": condition})
            })
            .collect();
        let (command, policy) = if self.tasks[node] {
            (json!(["exit", "0", TASK.to_string()]), "Never")
        } else {
            (json!(["live"]), "Always")
        };
        json!({"command": command, "restartPolicy": policy, "dependsOn": on})
    }

    /// When each can begin at the earliest, if everything else takes no time: milliseconds.
    fn earliest(&self) -> Vec<u64> {
        let mut earliest: Vec<u64> = Vec::with_capacity(self.len());
        for on in &self.on {
            let after = |other: &usize| earliest[*other] + if self.tasks[*other] { TASK } else { 0 };
            earliest.push(on.iter().map(after).max().unwrap_or(0));
        }
        earliest
    }

    /// The longest chain of living processes that stop one after the other.
    fn height(&self) -> u64 {
        let mut heights = vec![0; self.len()];
        for node in (0..self.len()).filter(|node| !self.tasks[*node]) {
            let below = self.on[node].iter().filter(|other| !self.tasks[**other]).map(|other| heights[*other]);
            heights[node] = 1 + below.max().unwrap_or(0);
        }
        heights.into_iter().max().unwrap_or(0)
    }
}

fn millis(from: Timestamp, to: Timestamp) -> u64 {
    to.since(from).as_micros() / 1000
}

/// The last time at which each name was told.
fn latest(list: &[(String, Timestamp)]) -> HashMap<&str, Timestamp> {
    list.iter().map(|(name, at)| (name.as_str(), *at)).collect()
}

fn name(node: usize) -> String {
    format!("default/n{node}-0")
}

async fn started(daemon: &Daemon, count: usize) {
    for _ in 0..2000 {
        if daemon.world.lock().starts.len() >= count {
            return;
        }
        daemon.pass(50).await;
    }
    let waiting: Vec<_> = daemon.instances().into_iter().filter(|it| it.status.attempt == 0).collect();
    panic!("never started: {:?}", waiting.iter().map(|it| (&it.metadata.name, &it.status)).collect::<Vec<_>>());
}

/// Declares the graph, waits until everything has started, ends the daemon, and looks at what happened when.
async fn live(graph: &Graph, random: &mut Random, crashes: bool) {
    let mut daemon = Daemon::start().await;
    let begin = Timestamp::from_nanos(daemon.world.nanos());
    for node in &graph.order {
        daemon.apply(&format!("n{node}"), graph.spec(*node, random)).await;
    }
    if crashes {
        for _ in 0..3 {
            daemon.pass(random.below(2000) as u64).await;
            daemon = daemon.crash().await;
        }
    }
    started(&daemon, graph.len()).await;
    daemon.pass(2 * TASK).await;
    let earliest = graph.earliest();
    {
        let keeper = daemon.world.lock();
        assert_eq!(keeper.starts.len(), graph.len(), "something was started twice");
        let starts: HashMap<&str, Timestamp> = keeper.starts.iter().map(|(name, _, at)| (name.as_str(), *at)).collect();
        let ends = latest(&keeper.ends);
        for node in 0..graph.len() {
            let start = starts[name(node).as_str()];
            for other in &graph.on[node] {
                let there =
                    if graph.tasks[*other] { ends[name(*other).as_str()] } else { starts[name(*other).as_str()] };
                assert!(there <= start, "n{node} was started before n{other} was there");
            }
            if !crashes {
                let late = millis(begin, start).saturating_sub(earliest[node]);
                assert!(late < TASK / 4, "n{node} was started {late} ms later than the graph allows");
            }
        }
    }
    let before = Timestamp::from_nanos(daemon.world.nanos());
    daemon.handle.shutdown(Some(Span::from_secs(600))).await.unwrap();
    assert_eq!(daemon.running.await.unwrap().0, Ended::Shutdown);
    let keeper = daemon.world.lock();
    let (signals, ends) = (latest(&keeper.signals), latest(&keeper.ends));
    let alive = || (0..graph.len()).filter(|node| !graph.tasks[*node]);
    for node in alive() {
        for other in graph.on[node].iter().filter(|other| !graph.tasks[**other]) {
            let (upper, lower) = (ends[name(node).as_str()], signals[name(*other).as_str()]);
            assert!(upper <= lower, "n{other} was stopped before n{node}, which depends on it");
        }
    }
    let Some(last) = alive().map(|node| ends[name(node).as_str()]).max() else { return };
    let (took, least) = (millis(before, last), graph.height() * END);
    assert!(took < least + 500, "stopping took {took} ms, {least} ms would do");
}

#[tokio::test(start_paused = true)]
async fn a_thousand_processes_start_as_fast_as_their_graph_allows_and_stop_in_reverse() {
    let mut random = Random::new(1);
    let graph = Graph::random(&mut random, 1000);
    assert!(graph.earliest().iter().max().unwrap() >= &(4 * TASK), "the graph is too flat to show anything");
    live(&graph, &mut random, false).await;
}

#[tokio::test(start_paused = true)]
async fn random_graphs_are_started_and_stopped_in_order_whoever_crashes() {
    let seeds = std::env::var("OSTLER_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60_u64);
    for seed in 0..seeds {
        let mut random = Random::new(seed + 100);
        let size = 2 + random.below(40);
        let graph = Graph::random(&mut random, size);
        live(&graph, &mut random, seed % 2 == 1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_has_not_had_its_turn_is_stopped_in_the_last_quarter_of_the_deadline() {
    let daemon = Daemon::start().await;
    daemon.apply("db", json!({"command": ["live"]})).await;
    let deaf = json!({"command": ["stubborn"], "stop": {"gracePeriod": "10m"}, "dependsOn": [{"process": "db"}]});
    daemon.apply("deaf", deaf).await;
    daemon.until("both run", |daemon| daemon.running() == 2).await;
    let before = Timestamp::from_nanos(daemon.world.nanos());
    daemon.handle.shutdown(Some(Span::from_secs(20))).await.unwrap();
    daemon.running.await.unwrap();
    let keeper = daemon.world.lock();
    let told = |name: &str| millis(before, keeper.signals.iter().find(|(who, _)| who == name).unwrap().1);
    let ended = |name: &str| millis(before, latest(&keeper.ends)[name]);
    assert!((15_000..15_200).contains(&told("default/db-0")), "told after {} ms", told("default/db-0"));
    assert!((20_000..20_200).contains(&ended("default/deaf-0")), "ended after {} ms", ended("default/deaf-0"));
}

#[tokio::test(start_paused = true)]
async fn a_group_restarts_together_top_down_and_comes_up_again_bottom_up() {
    let daemon = Daemon::start().await;
    daemon.apply("db", json!({"command": ["live"]})).await;
    daemon.apply("api", json!({"command": ["live"], "replicas": 3, "dependsOn": [{"process": "db"}]})).await;
    daemon.apply("web", json!({"command": ["live"], "replicas": 2, "dependsOn": [{"process": "api"}]})).await;
    daemon.until("all run", |daemon| daemon.running() == 6).await;
    daemon.pass(5000).await;
    let at = Timestamp::from_nanos(daemon.world.nanos());
    let mut ops = Vec::new();
    for entry in daemon.store.list("processes/").entries {
        let mut object: ostler_core::kinds::Process = serde_json::from_slice(&entry.value).unwrap();
        for annotation in [ostler_core::kinds::RESTARTED_AT, ostler_core::kinds::RESTARTED_TOGETHER_AT] {
            object.metadata.annotations.insert(annotation.to_owned(), at.to_string());
        }
        ops.push(Op::put(entry.key, serde_json::to_vec(&object).unwrap(), Expect::Revision(entry.revision)));
    }
    daemon.store.commit(ops, Durability::Durable).await.unwrap();
    daemon.until("all run again", |daemon| daemon.world.lock().starts.len() == 12 && daemon.running() == 6).await;
    let keeper = daemon.world.lock();
    let of = |list: &[(String, Timestamp)], process: &str| -> (Timestamp, Timestamp) {
        let prefix = format!("default/{process}-");
        let times: Vec<_> = list.iter().filter(|(name, _)| name.starts_with(&prefix)).map(|(_, at)| *at).collect();
        (*times.iter().min().unwrap(), *times.iter().max().unwrap())
    };
    let second: Vec<(String, Timestamp)> =
        keeper.starts.iter().filter(|(_, attempt, _)| *attempt == 2).map(|(name, _, at)| (name.clone(), *at)).collect();
    for (upper, lower) in [("web", "api"), ("api", "db")] {
        assert!(of(&keeper.ends, upper).1 <= of(&keeper.signals, lower).0, "{lower} was stopped before {upper}");
        assert!(of(&second, lower).1 <= of(&second, upper).0, "{upper} was started before {lower}");
    }
    assert!(millis(at, of(&second, "web").1) < 4 * END + 500, "not as fast as it could be");
}

#[tokio::test(start_paused = true)]
async fn a_dependency_that_never_comes_times_out_and_costs_nothing_meanwhile() {
    let daemon = Daemon::start().await;
    let on = json!([{"process": "ghost", "timeout": "30s"}]);
    daemon.apply("web", json!({"command": ["live"], "replicas": 20, "dependsOn": on})).await;
    daemon.pass(29_000).await;
    assert!(daemon.instances().iter().all(|it| it.status.phase == Phase::Pending));
    let revision = daemon.store.revision();
    daemon.pass(500).await;
    assert_eq!(daemon.store.revision(), revision);
    daemon.pass(2000).await;
    assert!(daemon.instances().iter().all(|it| it.status.reason == "DependencyTimeout"));
    daemon.apply("ghost", json!({"command": ["live"]})).await;
    daemon.until("all run", |daemon| daemon.running() == 21).await;
}
