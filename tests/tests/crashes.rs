//! kill -9 of the daemon's processes at random moments: nothing that was acknowledged is lost, nothing that runs is
//! touched, nothing that was written or returned is missing.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ostler_tests::witness::code_of;
use ostler_tests::{Daemon, Random, Setup, manifest, proc, scale, wait_until};
use serde_json::{Value, json};

/// What clients were told to be so: of each process the replicas and the tag, or nothing when it is deleted.
type Model = BTreeMap<String, Option<(u64, u64)>>;

/// A process that is never touched.
fn still() -> Value {
    let mut object = manifest::witness("still", "--rate 100 --stderr-every 4");
    object["spec"]["replicas"] = json!(2);
    object
}

/// A process that ends all the time, with codes that tell the attempt.
fn quitter() -> Value {
    let mut object = manifest::witness("quitter", "--rate 200 --stderr-every 7 --exit-after-ms 150");
    object["spec"]["backoff"] = json!({"initial": "1ms", "factor": 1, "jitter": 0});
    object
}

fn tagged(name: &str, replicas: u64, tag: u64) -> Value {
    let mut object = manifest::witness(name, "--rate 20");
    object["spec"]["replicas"] = json!(replicas);
    object["spec"]["env"] = json!([{"name": "TAG", "value": tag.to_string()}]);
    object
}

/// A client that changes its mind all the time; every change is repeated until it is acknowledged.
fn client(daemon: &Daemon, model: &Mutex<Model>, mut random: Random, over: &AtomicBool) {
    let mut tag = 0;
    while !over.load(Ordering::Relaxed) {
        let name = format!("w{}", random.below(4));
        let mut model = model.lock().expect("the other thread is alive");
        let known = model.get(&name).copied().flatten();
        let replicas = 1 + random.below(3) as u64;
        let acknowledged = |args: &[&str], input: &str| {
            wait_until(format!("{args:?} to be acknowledged"), || {
                let output = daemon.feed(args, input.as_bytes());
                assert!(output.code != 2, "{}", output.stderr);
                (output.code == 0).then_some(())
            });
        };
        let count = format!("--replicas={replicas}");
        let target = format!("process/{name}");
        match (random.below(5), known) {
            (0, Some(_)) => {
                acknowledged(&["delete", &target, "--wait=false", "--ignore-not-found"], "");
                model.insert(name, None);
            }
            (1, Some((_, tag))) => {
                acknowledged(&["scale", &target, &count], "");
                model.insert(name, Some((replicas, tag)));
            }
            (2, Some(_)) => acknowledged(&["restart", &target], ""),
            _ => {
                tag += 1;
                acknowledged(&["apply", "--force-conflicts", "-f", "-"], &tagged(&name, replicas, tag).to_string());
                model.insert(name, Some((replicas, tag)));
            }
        }
    }
}

/// What is declared is exactly what was acknowledged.
fn assert_declared(daemon: &Daemon, model: &Model) {
    let list: Value = serde_json::from_str(&daemon.ok(&["get", "processes", "-o", "json"])).expect("JSON");
    let mut declared = Model::new();
    for item in list["items"].as_array().expect("a list") {
        let name = item["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let tag = item["spec"]["env"][0]["value"].as_str().and_then(|text| text.parse().ok());
        if let Some(tag) = tag
            && item["metadata"]["deletionTimestamp"].is_null()
        {
            declared.insert(name, Some((item["spec"]["replicas"].as_u64().unwrap_or_default(), tag)));
        }
    }
    let expected: Model = model.iter().filter(|(_, it)| it.is_some()).map(|(name, it)| (name.clone(), *it)).collect();
    assert_eq!(declared, expected, "what was acknowledged is not what is declared");
}

/// What runs is exactly what is declared, and the kernel agrees.
fn assert_converges(daemon: &Daemon, model: &Model) {
    let expected: Vec<(String, u64)> = model
        .iter()
        .filter_map(|(name, it)| it.map(|(replicas, tag)| (name, replicas, tag)))
        .flat_map(|(name, replicas, tag)| (0..replicas).map(move |ordinal| (format!("{name}-{ordinal}"), tag)))
        .collect();
    wait_until(format!("{expected:?} to run"), || {
        let mut running: Vec<(String, u64)> = Vec::new();
        for instance in daemon.instances().iter().filter(|it| it.name().starts_with('w')) {
            let tag = proc::variable(instance.pid()?, "TAG")?.parse().ok()?;
            running.push((instance.name().to_owned(), tag));
        }
        running.sort();
        (running == expected).then_some(())
    });
}

/// The exit that is shown is the one that happened.
fn assert_last_exit(daemon: &Daemon, may_be_unknown: bool) {
    let instance = daemon.instance("quitter-0");
    let exit = instance.last_exit();
    if exit.is_null() {
        return;
    }
    let attempt = exit["attempt"].as_u64().expect("attempts have numbers");
    if may_be_unknown && exit["unknown"].is_string() {
        return;
    }
    assert_eq!(exit["code"], code_of(attempt), "{exit}");
    let codes = daemon.journal().codes("default/quitter-0");
    assert_eq!(codes.get(&(instance.uid().to_owned(), attempt)), Some(&code_of(attempt)), "{exit}");
}

/// Ends the quitter, and compares its attempts with those that the witness saw.
fn assert_every_end_known(daemon: &Daemon) -> (u64, usize) {
    daemon.ok(&["stop", "process/quitter", "--timeout", "60s"]);
    let instance = daemon.phase("quitter-0", "Stopped");
    let attempts: Vec<u64> = daemon.journal().starts("default/quitter-0").iter().map(|(who, _)| who.attempt).collect();
    assert!(attempts.is_sorted(), "attempts are started in order: {attempts:?}");
    assert!(attempts.last().is_some_and(|last| *last <= instance.attempt()), "{attempts:?}");
    assert_eq!(instance.last_exit()["attempt"], instance.attempt());
    (instance.restarts(), attempts.len())
}

fn untouched(daemon: &Daemon) -> [proc::Identity; 2] {
    [daemon.running("still-0"), daemon.running("still-1")]
}

/// Runs several worlds at the same time, each with its own daemon and seed.
fn worlds(count: usize, world: impl Fn(u64) + Sync) {
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..count as u64)
            .map(|seed| {
                let world = &world;
                (seed, scope.spawn(move || world(seed)))
            })
            .collect();
        for (seed, world) in running {
            assert!(world.join().is_ok(), "the world of seed {seed} failed");
        }
    });
}

#[test]
fn fifty_kills_of_the_controller_during_random_changes_lose_nothing() {
    // A controller that dies young again and again is restarted ever more slowly, so the kills are spread.
    worlds(5, |seed| {
        let mut random = Random::new(seed);
        let daemon = Daemon::start();
        daemon.apply(&manifest::all(&[still(), quitter()]));
        let before = untouched(&daemon);
        let model = Mutex::new(Model::new());
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let changes = random.number();
            let (daemon, model, over) = (&daemon, &model, &over);
            let client = scope.spawn(move || client(daemon, model, Random::new(changes), over));
            for _ in 0..10 * scale() {
                // Not to wait for anything: the moment of the kill is what is random.
                std::thread::sleep(Duration::from_millis(random.below(300) as u64));
                daemon.kill_controller();
                if client.is_finished() {
                    break;
                }
                daemon.answers();
                assert_declared(daemon, &model.lock().expect("the client is alive"));
                assert_eq!(untouched(daemon), before);
                assert_last_exit(daemon, false);
            }
            over.store(true, Ordering::Relaxed);
        });
        let model = model.into_inner().expect("the client is done");
        assert_declared(&daemon, &model);
        assert_converges(&daemon, &model);
        assert_eq!(untouched(&daemon), before);
        assert_every_end_known(&daemon);
        let journal = daemon.journal();
        journal.assert_single_copies();
        assert_eq!(journal.starts("default/still-0").len(), 1);
        assert_eq!(journal.starts("default/still-1").len(), 1);
        for instance in daemon.instances() {
            daemon.assert_output_complete(instance.name());
        }
    });
}

#[test]
fn restarts_are_counted_exactly_whoever_is_killed() {
    worlds(5, |seed| {
        let mut random = Random::new(400 + seed);
        let daemon = Daemon::start();
        // It ends as soon as it has begun, so that most kills come between the steps of a restart.
        let object = manifest::with(
            quitter(),
            "spec.command",
            manifest::witness("", "--exit --code 1")["spec"]["command"].clone(),
        );
        daemon.apply(&object.to_string());
        for _ in 0..6 * scale() {
            std::thread::sleep(Duration::from_millis(random.below(100) as u64));
            daemon.kill_controller();
            daemon.answers();
        }
        let (restarts, starts) = assert_every_end_known(&daemon);
        daemon.journal().assert_single_copies();
        // The stop may have reached the last one before its first entry.
        let starts = starts as u64;
        assert!(
            (starts..=starts + 1).contains(&(restarts + 1)),
            "{restarts} restarts are shown, {starts} starts happened"
        );
    });
}

#[test]
fn fifty_kills_of_the_keeper_during_output_and_exits_lose_nothing() {
    worlds(2, |seed| {
        let mut random = Random::new(100 + seed);
        let daemon = Daemon::start();
        daemon.apply(&manifest::all(&[still(), quitter()]));
        let before = untouched(&daemon);
        let controller = daemon.controller();
        for _ in 0..25 * scale() {
            std::thread::sleep(Duration::from_millis(random.below(200) as u64));
            daemon.kill_keeper();
            wait_until("the next keeper", || {
                let pid = daemon.info()?["keeperPid"].as_i64()?;
                (daemon.keeper()?.pid == pid as i32).then_some(())
            });
            assert_eq!(untouched(&daemon), before);
            assert_last_exit(&daemon, false);
        }
        assert_eq!(daemon.controller(), controller, "the controller was to live");
        assert_every_end_known(&daemon);
        let journal = daemon.journal();
        journal.assert_single_copies();
        assert_eq!(journal.starts("default/still-0").len(), 1);
        for name in ["still-0", "still-1", "quitter-0"] {
            daemon.assert_output_complete(name);
        }
    });
}

#[test]
fn after_both_were_killed_the_living_are_adopted_and_no_exit_is_invented() {
    worlds(2, |seed| {
        let mut random = Random::new(200 + seed);
        let daemon = Daemon::start();
        daemon.apply(&manifest::all(&[still(), quitter()]));
        let before = untouched(&daemon);
        for _ in 0..25 * scale() {
            std::thread::sleep(Duration::from_millis(random.below(200) as u64));
            daemon.kill_both();
            assert!(before.iter().all(|process| proc::lives(*process)));
            daemon.serve();
            assert_eq!(untouched(&daemon), before);
            assert_last_exit(&daemon, true);
        }
        // Custody goes on: ends are seen again, exactly.
        let attempt = daemon.instance("quitter-0").attempt();
        daemon.instance_when("quitter-0", "ended by itself", |it| {
            it.last_exit()["attempt"].as_u64().is_some_and(|ended| ended > attempt + 1)
        });
        assert_last_exit(&daemon, false);
        let journal = daemon.journal();
        journal.assert_single_copies();
        assert_eq!(journal.starts("default/still-0").len(), 1);
        daemon.assert_output_complete("still-0");
        daemon.assert_output_complete("still-1");
    });
}

#[test]
fn controller_and_keeper_killed_in_turns_lose_nothing() {
    let mut random = Random::new(300);
    let daemon = Daemon::start();
    daemon.apply(&manifest::all(&[still(), quitter()]));
    let before = untouched(&daemon);
    for round in 0..6 * scale() {
        std::thread::sleep(Duration::from_millis(random.below(300) as u64));
        if round % 2 == 0 {
            daemon.kill_controller();
        } else {
            daemon.kill_keeper();
        }
        // Both are there again; a keeper that a controller started has to be able to start one, and the other way round.
        wait_until("both", || {
            let info = daemon.info()?;
            let (keeper, controller) = (daemon.keeper()?.pid, daemon.controller()?.pid);
            (info["keeperPid"] == keeper && info["controllerPid"] == controller).then_some(())
        });
        assert_eq!(untouched(&daemon), before);
        assert_last_exit(&daemon, false);
    }
    assert_every_end_known(&daemon);
    daemon.journal().assert_single_copies();
    for name in ["still-0", "still-1", "quitter-0"] {
        daemon.assert_output_complete(name);
    }
}

/// The keeper dies at a named step, on its first to fifth way through it; with and without another that dies there.
fn dies_at(points: &[&str]) {
    for point in points {
        for pass in 1..=5 * scale() {
            let daemon = Setup::default().prepare();
            let failpoint = format!("{point}:{pass}");
            daemon.spawn(&[("OSTLER_FAILPOINT", &failpoint)]);
            daemon.answers();
            let mut objects = [still(), quitter()];
            for object in &mut objects {
                object["spec"]["logs"]["maxSize"] = json!("4Ki");
            }
            daemon.apply(&manifest::all(&objects));
            // The first keeper is gone; the next one may be on its way to the same end.
            assert_eq!(daemon.ends(), -1, "{failpoint}: the keeper did not die there");
            let again = wait_until("the workloads to be looked after again", || daemon.info());
            assert_eq!(again["store"], "ok");
            daemon.kill_both();
            daemon.serve();
            let before = untouched(&daemon);
            let attempt = daemon.instance("quitter-0").attempt();
            daemon.instance_when("quitter-0", "restarted", |it| it.attempt() > attempt + 1);
            assert_eq!(untouched(&daemon), before, "{failpoint}");
            daemon.journal().assert_single_copies();
            daemon.assert_output_complete("still-0");
            let living = proc::around(daemon.path())
                .into_iter()
                .filter(|it| proc::variable(it.pid, "OSTLER_PROCESS").as_deref() == Some("still"))
                .count();
            assert_eq!(living, 2, "{failpoint}");
        }
    }
}

#[test]
fn a_keeper_that_dies_while_it_starts_a_process_never_starts_it_twice() {
    dies_at(&["spawn-after-intent", "spawn-after-mkdir", "spawn-after-clone", "spawn-after-started"]);
}

#[test]
fn a_keeper_that_dies_while_it_records_an_end_or_rotates_loses_nothing() {
    dies_at(&["exit-before-ended", "exit-after-ended", "forget-before-journal", "forget-after-journal"]);
    dies_at(&["rotate-created", "rotate-indexed", "index-recorded"]);
}
