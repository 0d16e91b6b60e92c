//! Rollouts, seen from outside: how many answer while they are replaced.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ostler_tests::{Daemon, manifest, proc, wait_until, wait_within, web_binary};
use serde_json::{Value, json};

/// Every test has a name of its own: the search for free ports begins at a number that follows from it.
fn web(name: &str, replicas: u32, answer: &str, update: &Value) -> Value {
    let program = web_binary().display().to_string();
    let spec = json!({"command": [program, answer], "replicas": replicas, "update": update,
        "ports": [{"name": "http", "port": "auto"}], "stop": {"gracePeriod": "5s"},
        "readinessProbe": {"httpGet": {"port": "http"}, "interval": "500ms", "failureThreshold": 20}});
    manifest::process(name, &spec)
}

/// What answers at a port of this machine.
fn fetch(port: u16) -> Option<String> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer.split_once("\r\n\r\n")?.1.to_owned())
}

fn ports(daemon: &Daemon) -> Vec<u16> {
    let instances = daemon.instances();
    instances.iter().filter_map(|it| it.0["spec"]["ports"]["http"].as_u64()).map(|port| port as u16).collect()
}

fn answers(ports: &[u16]) -> BTreeMap<String, usize> {
    let mut answers = BTreeMap::new();
    for answer in ports.iter().filter_map(|port| fetch(*port)) {
        *answers.entry(answer).or_default() += 1;
    }
    answers
}

/// Between two requests of a client: load, and not a machine that does nothing else.
const PACE: Duration = Duration::from_millis(5);

/// A look at all ports that takes longer sees more than one moment: one of those that did not answer at its beginning
/// can be back, and have been ready for the second of `minReady`, when another one goes before its end.
const MOMENT: Duration = Duration::from_millis(900);

/// Samples how many answer, under load, while `work` goes on; the fewest there were.
fn fewest_during(ports: &[u16], work: impl FnOnce()) -> usize {
    let over = AtomicBool::new(false);
    let fewest = AtomicUsize::new(usize::MAX);
    let requests = AtomicUsize::new(0);
    let looks = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for port in ports.iter().cycle() {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    requests.fetch_add(usize::from(fetch(*port).is_some()), Ordering::Relaxed);
                    std::thread::sleep(PACE);
                }
            });
        }
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let began = Instant::now();
                let count = ports.iter().filter(|port| fetch(**port).is_some()).count();
                if began.elapsed() < MOMENT {
                    fewest.fetch_min(count, Ordering::Relaxed);
                    looks.fetch_add(1, Ordering::Relaxed);
                }
                std::thread::sleep(PACE);
            }
        });
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        over.store(true, Ordering::Relaxed);
        if let Err(panic) = done {
            std::panic::resume_unwind(panic);
        }
    });
    assert!(requests.load(Ordering::Relaxed) > 100, "there was no load");
    assert!(looks.load(Ordering::Relaxed) > 5, "nobody looked");
    fewest.load(Ordering::Relaxed)
}

#[test]
fn ten_replicas_under_load_are_replaced_and_never_fewer_answer_than_promised() {
    let daemon = Daemon::start();
    let update = json!({"maxUnavailable": 2, "minReady": "1s"});
    daemon.apply_ready(&web("ten", 10, "one", &update).to_string());
    let ports = ports(&daemon);
    wait_until("all to answer", || (answers(&ports) == BTreeMap::from([("one".to_owned(), 10)])).then_some(()));
    let fewest = fewest_during(&ports, || {
        daemon.apply(&web("ten", 10, "two", &update).to_string());
        let told = daemon.ok(&["rollout", "status", "process/ten", "--timeout", "2m"]);
        assert!(told.contains("out of 10 new instances have been updated"), "{told}");
        assert!(told.ends_with("process/ten successfully rolled out\n"), "{told}");
    });
    assert!(fewest >= 8, "only {fewest} of 10 answered");
    assert_eq!(answers(&ports), BTreeMap::from([("two".to_owned(), 10)]));
}

#[test]
fn a_rollout_goes_on_when_the_daemon_is_killed_in_the_middle() {
    let daemon = Daemon::start();
    let update = json!({"maxUnavailable": 2, "minReady": "1s"});
    daemon.apply_ready(&web("killed", 10, "one", &update).to_string());
    let ports = ports(&daemon);
    wait_until("all to answer", || (answers(&ports).get("one") == Some(&10)).then_some(()));
    let fewest = fewest_during(&ports, || {
        daemon.apply(&web("killed", 10, "two", &update).to_string());
        let new = |count: usize| {
            wait_until(format!("{count} new ones"), || {
                (answers(&ports).get("two").is_some_and(|new| *new >= count)).then_some(())
            });
        };
        new(1);
        daemon.kill_controller();
        daemon.answers();
        new(5);
        daemon.kill_both();
        daemon.serve();
        daemon.ok(&["rollout", "status", "process/killed", "--timeout", "2m"]);
    });
    assert!(fewest >= 8, "only {fewest} of 10 answered");
    assert_eq!(answers(&ports), BTreeMap::from([("two".to_owned(), 10)]));
    assert!(daemon.instances().iter().all(|instance| instance.restarts() == 1), "some were replaced twice");
}

#[test]
fn a_broken_revision_is_taken_back_by_itself() {
    let daemon = Daemon::start();
    let update = json!({"maxSurge": 1, "maxUnavailable": 0, "autoRollback": true, "minReady": "3s"});
    daemon.apply_ready(&web("broken", 3, "one", &update).to_string());
    let ports = ports(&daemon);
    wait_until("all to answer", || (answers(&ports).get("one") == Some(&3)).then_some(()));
    let before: Vec<_> = (0..3).map(|ordinal| daemon.running(&format!("broken-{ordinal}"))).collect();
    let mut broken = manifest::shell("broken", "exit 3");
    broken["spec"]["replicas"] = json!(3);
    broken["spec"]["update"] = update.clone();
    let fewest = fewest_during(&ports, || {
        let told = daemon.feed(&["apply", "-f", "-", "--wait", "--timeout", "1m"], broken.to_string().as_bytes());
        assert_eq!(told.code, 1, "{}{}", told.stdout, told.stderr);
        assert!(told.stderr.contains("RolledBack") && told.stderr.contains("broken-3"), "{}", told.stderr);
        wait_until("the additional one to be gone", || (daemon.instances().len() == 3).then_some(()));
    });
    assert_eq!(fewest, 3, "the broken revision took something away");
    let after: Vec<_> = (0..3).map(|ordinal| daemon.running(&format!("broken-{ordinal}"))).collect();
    assert_eq!(before, after, "something was restarted");
    assert!(daemon.fails(1, &["rollout", "status", "process/broken"]).contains("RolledBack"));
    daemon.kill_controller();
    daemon.answers();
    assert_eq!(daemon.get("process", "broken")["status"]["rollout"]["rolledBack"], true);
    daemon.apply_ready(&web("broken", 3, "two", &update).to_string());
    daemon.ok(&["rollout", "status", "process/broken", "--timeout", "1m"]);
    assert_eq!(answers(&self::ports(&daemon)), BTreeMap::from([("two".to_owned(), 3)]));
}

#[test]
fn undo_returns_to_the_revision_before_and_history_tells_which_there_are() {
    let daemon = Daemon::start();
    let with_cause = |answer: &str| {
        manifest::with(
            web("undo", 2, answer, &json!({})),
            "metadata.annotations",
            json!({"kubernetes.io/change-cause": format!("to {answer}")}),
        )
    };
    assert!(daemon.fails(1, &["rollout", "undo", "process/none"]).contains("none"));
    for answer in ["one", "two", "three"] {
        daemon.apply_ready(&with_cause(answer).to_string());
    }
    let history = daemon.ok(&["rollout", "history", "process/undo"]);
    let rows: Vec<&str> = history.lines().map(str::trim_end).collect();
    assert_eq!(rows.len(), 4, "{history}");
    assert!(rows[1].starts_with('1') && rows[1].ends_with("to one") && rows[3].ends_with("to three"), "{history}");
    assert!(daemon.ok(&["rollout", "history", "process/undo", "--revision=2"]).contains("two"));
    assert!(daemon.fails(1, &["rollout", "undo", "process/undo", "--to-revision=9"]).contains("no revision 9"));
    let undone = daemon.ok(&["rollout", "undo", "process/undo", "--to-revision=1"]);
    assert_eq!(undone, "process/undo rolled back to revision 1\n");
    daemon.ok(&["rollout", "status", "process/undo", "--timeout", "1m"]);
    assert_eq!(answers(&ports(&daemon)), BTreeMap::from([("one".to_owned(), 2)]));
    daemon.ok(&["rollout", "undo", "process/undo"]);
    daemon.ok(&["rollout", "status", "process/undo", "--timeout", "1m"]);
    assert_eq!(answers(&ports(&daemon)), BTreeMap::from([("three".to_owned(), 2)]));
    assert_eq!(daemon.get("process", "undo")["status"]["revisionNumber"], 5);
}

#[test]
fn undo_returns_to_specs_and_leaves_what_they_refer_to() {
    let daemon = Daemon::start();
    let settings = |value: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"SETTING": value}});
    let process = |version: &str| {
        let process =
            manifest::with(manifest::sleeper("app"), "spec.env", json!([{"name": "VERSION", "value": version}]));
        manifest::with(process, "spec.envFrom", json!([{"configMapRef": {"name": "settings"}}]))
    };
    let complete = || {
        daemon.ok(&["rollout", "status", "process/app", "--timeout", "1m"]);
        let pid = daemon.running("app-0").pid;
        wait_until("its environment", || Some((proc::variable(pid, "VERSION")?, proc::variable(pid, "SETTING")?)))
    };
    let pair = |version: &str, setting: &str| (version.to_owned(), setting.to_owned());
    let number = || daemon.get("process", "app")["status"]["revisionNumber"].as_u64().unwrap();
    let numbered = |wanted: u64| wait_until("the revision to be counted", || (number() == wanted).then_some(()));
    daemon.apply(&manifest::all(&[settings("a"), process("1")]));
    assert_eq!(complete(), pair("1", "a"));
    daemon.apply(&settings("b").to_string());
    numbered(2);
    assert_eq!(complete(), pair("1", "b"));
    // Only the settings are another revision: there is nothing to undo, and nothing is.
    for args in [&["rollout", "undo", "process/app"][..], &["rollout", "undo", "process/app", "--to-revision=1"]] {
        let refused = daemon.fails(1, args);
        assert!(refused.contains("revision 1 of \"app\"") && refused.contains("ConfigMaps and Secrets"), "{refused}");
    }
    assert_eq!((number(), complete()), (2, pair("1", "b")));
    daemon.apply(&process("2").to_string());
    numbered(3);
    daemon.apply(&settings("c").to_string());
    numbered(4);
    assert_eq!(complete(), pair("2", "c"));
    // The one before with another spec is revision 2; its settings are those of now.
    assert_eq!(daemon.ok(&["rollout", "undo", "process/app"]), "process/app rolled back to revision 2\n");
    numbered(5);
    assert_eq!(complete(), pair("1", "c"));
    // With the settings as they were, too, it is the revision that there was.
    daemon.apply(&settings("a").to_string());
    numbered(6);
    assert_eq!(complete(), pair("1", "a"));
    assert!(
        !daemon.ok(&["rollout", "history", "process/app"]).lines().any(|line| line.starts_with("1 ")),
        "renumbered"
    );
}

#[test]
fn a_paused_process_keeps_what_it_has_until_it_is_resumed() {
    let daemon = Daemon::start();
    daemon.apply_ready(&web("paused", 2, "one", &json!({})).to_string());
    let before = daemon.running("paused-0");
    daemon.ok(&["rollout", "pause", "process/paused"]);
    daemon.apply(&web("paused", 2, "two", &json!({})).to_string());
    let told = daemon.ok(&["rollout", "status", "process/paused", "--watch=false"]);
    assert!(told.contains("paused") || told.contains("observed"), "{told}");
    wait_until("it to be told", || {
        daemon.ok(&["rollout", "status", "process/paused", "--watch=false"]).contains("paused").then_some(())
    });
    assert!(daemon.fails(1, &["rollout", "restart", "process/paused"]).contains("paused"));
    assert!(daemon.fails(1, &["rollout", "undo", "process/paused"]).contains("paused"));
    assert_eq!(daemon.running("paused-0"), before);
    daemon.ok(&["rollout", "resume", "process/paused"]);
    daemon.ok(&["rollout", "status", "process/paused", "--timeout", "1m"]);
    assert_eq!(answers(&ports(&daemon)), BTreeMap::from([("two".to_owned(), 2)]));
    let processes = daemon.running("paused-1");
    daemon.ok(&["rollout", "restart", "process/paused"]);
    wait_within(Duration::from_secs(60), "the restart", || (daemon.running("paused-1") != processes).then_some(()));
}

#[test]
fn what_crashes_at_once_is_never_taken_for_ready() {
    let daemon = Daemon::start();
    let crashing =
        manifest::with(manifest::shell("crash", "exit 1"), "spec.backoff", json!({"initial": "100ms", "max": "300ms"}));
    let told = daemon.feed(&["apply", "-f", "-", "--wait", "--timeout", "4s"], crashing.to_string().as_bytes());
    assert_eq!(told.code, 4, "{}{}", told.stdout, told.stderr);
    daemon.fails(4, &["wait", "process/crash", "--for=condition=Ready", "--timeout=2s"]);
}
