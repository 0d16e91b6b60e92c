//! Every example in `manifests/` does what its comment says.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ostler_tests::{Daemon, Instance, can_limit, proc, skipped, wait_until};

fn manifests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests").canonicalize().expect("the examples are there")
}

fn example(daemon: &Daemon, name: &str) -> String {
    daemon.ok(&["apply", "-f", manifests().join(name).to_str().expect("UTF-8")])
}

/// The answer of a web server on a port of this machine.
fn fetch(port: u64) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port as u16)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    stream.write_all(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.starts_with("HTTP/1.0 200").then_some(answer)
}

/// The instances of a process in a namespace, when as many as wanted run.
fn running(daemon: &Daemon, namespace: &str, process: &str, count: usize) -> Vec<Instance> {
    wait_until(format!("{count} of {namespace}/{process} to run"), || {
        let found: Vec<Instance> = daemon
            .instances()
            .into_iter()
            .filter(|it| it.0["metadata"]["namespace"] == namespace && it.0["spec"]["process"] == process && it.ready())
            .collect();
        (found.len() == count).then_some(found)
    })
}

/// Every instance answers on a port of its own; the answers.
fn assert_serves(instances: &[Instance]) -> Vec<String> {
    let mut ports = BTreeSet::new();
    instances
        .iter()
        .map(|instance| {
            let port = instance.0["spec"]["ports"]["http"].as_u64().expect("it has a port");
            assert!(ports.insert(port), "port {port} is used twice");
            wait_until(format!("an answer of {}", instance.name()), || fetch(port))
        })
        .collect()
}

#[test]
fn every_example_has_a_test_and_is_valid() {
    let mut names: Vec<String> = fs::read_dir(manifests())
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name != "README.md")
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "config.yaml",
            "crashy.yaml",
            "demo",
            "external.yaml",
            "fallback.yaml",
            "files.yaml",
            "hooks.yaml",
            "jobs-like.yaml",
            "jobs.yaml",
            "limited.yaml",
            "namespaces.yaml",
            "ordered.yaml",
            "probes.yaml",
            "rolling.yaml",
            "source",
            "thresholds.yaml",
            "watch.yaml",
            "web.yaml",
            "worker.yaml"
        ]
    );
    let daemon = ostler_tests::Setup::default().prepare();
    let said = daemon.ok(&["validate", "-R", "-f", manifests().to_str().unwrap()]);
    assert!(said.lines().all(|line| line.ends_with(" valid")), "{said}");
}

#[test]
fn web_serves_on_three_ports_of_their_own() {
    let daemon = Daemon::start();
    example(&daemon, "web.yaml");
    let instances = running(&daemon, "default", "web", 3);
    for answer in assert_serves(&instances) {
        assert!(answer.contains("web.yaml"), "it serves the directory of the file: {answer}");
    }
    let pids: Vec<_> = instances.iter().filter_map(|it| proc::identity(it.pid()?)).collect();
    assert_eq!(pids.len(), 3);
    assert!(example(&daemon, "web.yaml").contains("process/web unchanged"));
    daemon.ok(&["scale", "process/web", "--replicas=5"]);
    assert_serves(&running(&daemon, "default", "web", 5));
    assert!(pids.iter().all(|process| proc::lives(*process)));
    let file = manifests().join("web.yaml");
    daemon.ok(&["delete", "-f", file.to_str().unwrap(), "--timeout", "60s"]);
    assert!(pids.iter().all(|process| !proc::lives(*process)));
    assert!(daemon.instances().is_empty());
}

#[test]
fn config_greets_as_it_is_told() {
    let daemon = Daemon::start();
    example(&daemon, "config.yaml");
    let greets = |word: &str| {
        let said = format!("{word}, I know a password of 11 letters");
        wait_until(said.clone(), || daemon.cli(&["logs", "greeter-0"]).stdout.contains(&said).then_some(()));
    };
    greets("Hello");
    let changed =
        daemon.ok(&["create", "configmap", "greeting", "--from-literal=GREETING=Ahoy", "--dry-run", "-o", "yaml"]);
    daemon.apply(&changed);
    greets("Ahoy");
}

#[test]
fn files_are_read_anew_on_the_signal() {
    let daemon = Daemon::start();
    example(&daemon, "files.yaml");
    let greets = |word: &str| {
        let said = format!("{word}, I know a password of 11 letters");
        wait_until(said.clone(), || daemon.cli(&["logs", "clerk-0"]).stdout.contains(&said).then_some(()));
    };
    greets("Hello");
    let before = daemon.running("clerk-0");
    let changed =
        daemon.ok(&["create", "configmap", "clerk", "--from-literal=greeting=Ahoy", "--dry-run", "-o", "yaml"]);
    daemon.apply(&changed);
    greets("Ahoy");
    assert_eq!(daemon.running("clerk-0"), before);
}

#[test]
fn watch_starts_the_motto_anew_and_its_echo_follows() {
    let daemon = Daemon::start();
    // Its files are beside it.
    let beside = daemon.path().join("example");
    fs::create_dir(&beside).unwrap();
    fs::copy(manifests().join("watch.yaml"), beside.join("watch.yaml")).unwrap();
    daemon.ok(&["apply", "-f", beside.join("watch.yaml").to_str().unwrap()]);
    wait_until("both to be ready and watched", || {
        let watched = daemon.get("process", "motto")["status"]["watch"].is_object();
        (watched && daemon.instance("motto-0").ready() && daemon.instance("echo-0").ready()).then_some(())
    });
    let echo = daemon.running("echo-0");
    fs::create_dir(beside.join("motto")).unwrap();
    fs::write(beside.join("draft"), "Be kind\n").unwrap();
    fs::rename(beside.join("draft"), beside.join("motto/today.txt")).unwrap();
    wait_until("the motto", || daemon.cli(&["logs", "motto-0"]).stdout.contains("Be kind").then_some(()));
    wait_until("its echo", || (daemon.instance("echo-0").restarts() == 1 && !proc::lives(echo)).then_some(()));
}

#[test]
fn probes_hold_back_gate_and_find_out() {
    let daemon = Daemon::start();
    example(&daemon, "probes.yaml");
    daemon.ok(&["wait", "process/watched", "--for=condition=Ready", "--timeout=60s"]);
    let healthy = |it: &Instance, kind: &str| it.0["status"]["probes"][kind]["verdict"] == "Healthy";
    let instance = daemon.instance_when("watched-0", "healthy", |it| {
        ["startup", "readiness", "liveness"].iter().all(|kind| healthy(it, kind))
    });
    proc::signal(proc::identity(instance.pid().unwrap()).unwrap(), libc::SIGSTOP);
    daemon.instance_when("watched-0", "restarted", |it| it.last_exit()["cause"] == "Liveness");
    daemon.instance_when("watched-0", "back", |it| it.ready() && it.restarts() >= 1);
}

#[test]
fn hooked_has_its_directory_as_long_as_it_lives() {
    let daemon = Daemon::start();
    example(&daemon, "hooks.yaml");
    let instances = running(&daemon, "default", "hooked", 1);
    assert!(assert_serves(&instances)[0].contains("made"));
    let port = instances[0].0["spec"]["ports"]["http"].as_u64().unwrap();
    let directory = PathBuf::from(format!("/tmp/ostler-hooks-{port}"));
    assert_eq!(fs::read_to_string(directory.join("pid")).unwrap().trim(), instances[0].pid().unwrap().to_string());
    daemon.ok(&["stop", "process/hooked"]);
    let instance = daemon.phase("hooked-0", "Stopped");
    assert_eq!(instance.0["status"]["hooks"]["preStop"]["succeeded"], true, "{instance:?}");
    assert!(!directory.exists());
}

#[test]
fn ordered_comes_up_in_its_order() {
    let daemon = Daemon::start();
    example(&daemon, "ordered.yaml");
    daemon.ok(&["wait", "process/ordered-web", "--for=condition=Ready", "--timeout=60s"]);
    assert_serves(&running(&daemon, "default", "ordered-web", 1));
    assert_eq!(daemon.get("job", "ordered-setup")["status"]["succeeded"], 1);
    let graph = daemon.ok(&["graph"]);
    assert!(
        graph.starts_with("process/ordered-web  1/1 available  [ordered]\n├─ process/ordered-db (Ready)"),
        "{graph}"
    );
}

#[test]
fn rolling_is_replaced_with_one_more_meanwhile() {
    let daemon = Daemon::start();
    let file = manifests().join("rolling.yaml");
    daemon.ok(&["apply", "--wait", "--timeout", "1m", "-f", file.to_str().unwrap()]);
    let before: Vec<_> = running(&daemon, "default", "rolling", 4).iter().map(Instance::pid).collect();
    daemon.ok(&["rollout", "restart", "process/rolling"]);
    daemon.ok(&["rollout", "status", "process/rolling", "--timeout", "2m"]);
    let after = running(&daemon, "default", "rolling", 4);
    assert!(after.iter().all(|instance| !before.contains(&instance.pid())));
    assert_serves(&after);
    assert!(daemon.ok(&["rollout", "history", "process/rolling"]).contains("1          first version"));
}

#[test]
fn an_external_is_found_by_its_port_and_lost_with_it() {
    let daemon = Daemon::start();
    example(&daemon, "external.yaml");
    let phase = |phase: &str| {
        wait_until(format!("the database to be {phase}"), || {
            let status = daemon.get("external", "database")["status"].clone();
            (status["phase"] == phase && status["observedGeneration"] == 1).then_some(status)
        })
    };
    phase("NotFound");
    let listener = std::net::TcpListener::bind("127.0.0.1:15432").expect("nobody else has the port of the example");
    assert_eq!(phase("Found")["pid"], std::process::id());
    drop(listener);
    phase("NotFound");
}

#[test]
fn worker_finishes_before_it_ends() {
    let daemon = Daemon::start();
    example(&daemon, "worker.yaml");
    let before = running(&daemon, "default", "worker", 1)[0].pid();
    let log = || daemon.ok(&["logs", "worker-0", "--all-attempts"]);
    wait_until("its second item", || log().contains("working: item 2, by process").then_some(()));
    assert!(log().contains(&format!("by process {}", before.unwrap())), "{}", log());
    daemon.ok(&["restart", "process/worker", "--wait", "--timeout", "60s"]);
    assert!(log().contains("finishing\n"), "{}", log());
    assert_ne!(running(&daemon, "default", "worker", 1)[0].pid(), before);
    assert_eq!(daemon.instance("worker-0").last_exit()["code"], 0);
}

#[test]
fn limited_says_what_limits_it() {
    if !can_limit() {
        return skipped(
            "limited_says_what_limits_it",
            "limits need root and the cgroup controllers memory, cpu and pids",
        );
    }
    let daemon = Daemon::start();
    example(&daemon, "limited.yaml");
    let instance = daemon.instance_when("limited-0", "limited", |it| {
        let conditions = it.0["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|condition| {
            let message = condition["message"].as_str().unwrap_or_default();
            condition["type"] == "LimitsEnforced"
                && ["memory 64Mi", "cpu 500m", "processes 10", "openFiles 256 by rlimit", "nice 5 by setpriority"]
                    .iter()
                    .all(|part| message.contains(part))
        })
    });
    assert!(instance.pid().is_some());
}

#[test]
fn thresholds_warn_before_they_restart() {
    let daemon = Daemon::start();
    example(&daemon, "thresholds.yaml");
    let warned = daemon.instance_when("thresholds-0", "warned of", |it| {
        it.0["status"]["resources"]["exceeded"][0]["level"] == "Warning"
    });
    assert_eq!((warned.phase(), warned.restarts()), ("Running", 0));
}

#[test]
fn crashy_backs_off_and_its_breaker_opens() {
    let daemon = Daemon::start();
    example(&daemon, "crashy.yaml");
    let instance = daemon.instance_when("crashy-0", "backing off", |it| it.phase() == "Backoff" && it.restarts() >= 1);
    assert_eq!(instance.last_exit()["code"], 7);
    let open = daemon.instance_when("crashy-0", "stopped by the breaker", |it| it.reason() == "CircuitOpen");
    assert_eq!(open.restarts(), 4, "five failures open it");
    wait_until("it to be told", || daemon.ok(&["events"]).contains("CircuitOpen").then_some(()));
    daemon.ok(&["start", "process/crashy"]);
    daemon.instance_when("crashy-0", "started again", |it| it.restarts() > 4);
}

#[test]
fn fallback_serves_in_the_place_of_what_cannot_start() {
    let daemon = Daemon::start();
    example(&daemon, "fallback.yaml");
    let said = daemon.ok(&["describe", "process/shop"]);
    assert!(said.contains("profile Worker × 2"), "{said}");
    let instance =
        daemon.instance_when("shop-0", "falling back", |it| it.phase() == "Running" && it.reason() == "Fallback");
    assert_eq!((instance.ready(), instance.restarts()), (false, 3), "two retries, then the fallback");
    assert_eq!(instance.last_exit()["code"], 3);
    assert_eq!(
        (&instance.last_exit()["cause"], &instance.last_exit()["severity"]),
        (&"Crash".into(), &"Critical".into())
    );
    assert_serves(std::slice::from_ref(&instance));
    let fallback = proc::identity(instance.pid().unwrap()).unwrap();
    daemon.kill_controller();
    daemon.answers();
    assert!(proc::lives(fallback));
    daemon.ok(&["restart", "process/shop"]);
    daemon.instance_when("shop-0", "tried again and given up again", |it| {
        it.restarts() == 7 && it.phase() == "Running" && it.reason() == "Fallback"
    });
    assert!(!proc::lives(fallback));
}

#[test]
fn jobs_are_done_in_spite_of_a_failure() {
    let daemon = Daemon::start();
    example(&daemon, "jobs.yaml");
    daemon.ok(&["wait", "job/parts", "--for=condition=Complete", "--timeout=1m"]);
    let status = daemon.get("job", "parts")["status"].clone();
    assert_eq!((&status["succeeded"], &status["failed"]), (&3.into(), &1.into()), "{status}");
    let said = daemon.ok(&["logs", "job/parts"]);
    for part in ["part 0 is done", "part 1 is done", "part 2 is done", "the second run fails"] {
        assert_eq!(said.matches(part).count(), 1, "{said}");
    }
    daemon.ok(&["create", "job", "now", "--from=cronjob/beat"]);
    daemon.ok(&["wait", "job/now", "--for=condition=Complete", "--timeout=1m"]);
}

#[test]
fn jobs_like_ends_as_it_should() {
    let daemon = Daemon::start();
    example(&daemon, "jobs-like.yaml");
    let report = daemon.phase("report-0", "Stopped");
    assert_eq!((report.last_exit()["code"].as_i64(), report.restarts()), (Some(3), 0));
    // It fails two times out of three, by chance; each time it is started again.
    let import =
        daemon.instance_when("import-0", "started twice or done", |it| it.restarts() >= 2 || it.phase() == "Stopped");
    if import.phase() == "Stopped" {
        assert_eq!(import.last_exit()["code"], 0);
        assert!(daemon.ok(&["logs", "import-0"]).contains("imported 1000 rows"));
    } else {
        assert_eq!(import.last_exit()["code"], 1);
    }
}

#[test]
fn namespaces_serves_in_staging_and_goes_with_it() {
    let daemon = Daemon::start();
    example(&daemon, "namespaces.yaml");
    let instances = running(&daemon, "staging", "web", 1);
    assert_serves(&instances);
    let pid = instances[0].pid().unwrap();
    wait_until("the environment", || (proc::variable(pid, "STAGE")? == "staging").then_some(()));
    assert_eq!(proc::variable(pid, "WORKERS").as_deref(), Some("4"));
    assert!(daemon.ok(&["get", "processes", "-n", "staging"]).contains("web"));
    daemon.ok(&["delete", "namespace/staging", "--timeout", "60s"]);
    assert!(daemon.instances().is_empty());
}

#[test]
fn demo_runs_as_one_application() {
    let daemon = Daemon::start();
    example(&daemon, "demo");
    for answer in assert_serves(&running(&daemon, "demo", "web", 3)) {
        assert!(answer.contains("demo on port"), "{answer}");
    }
    running(&daemon, "demo", "worker", 2);
    running(&daemon, "demo", "ticker", 1);
    wait_until("an item", || daemon.ok(&["logs", "worker-1", "-n", "demo"]).contains("item done").then_some(()));
    daemon.ok(&["stop", "process/worker", "-n", "demo", "--timeout", "60s"]);
    for name in ["worker-0", "worker-1"] {
        let log = daemon.ok(&["logs", name, "-n", "demo"]);
        let count = |words: &str| log.lines().filter(|line| *line == words).count();
        assert_eq!(count("item begins"), count("item done"), "{name}: {log}");
        assert!(log.ends_with("no further items\n"), "{name}: {log}");
    }
    let all = daemon.ok(&["get", "processes", "-A", "-l", "app.kubernetes.io/part-of=demo", "-o", "name"]);
    assert_eq!(all.lines().count(), 3, "{all}");
}

#[test]
fn source_keeps_the_directory_beside_it_applied() {
    let daemon = Daemon::start();
    // A copy, so that a change is nobody else's.
    let copy = daemon.path().join("source");
    fs::create_dir_all(copy.join("apps")).unwrap();
    for name in ["source.yaml", "apps/clock.yaml"] {
        fs::copy(manifests().join("source").join(name), copy.join(name)).unwrap();
    }
    daemon.ok(&["apply", "-f", "source/source.yaml"]);
    let before = running(&daemon, "default", "clock", 1)[0].pid();
    let clock = copy.join("apps/clock.yaml");
    let text = fs::read_to_string(&clock).unwrap();
    fs::write(&clock, text.replace("value: \"1\"", "value: \"2\"")).unwrap();
    wait_until("the clock to go slower", || {
        let output = daemon.cli(&["get", "instance", "clock-0", "-o", "jsonpath={.status.pid}"]);
        let pid = output.stdout.trim().parse().ok()?;
        (Some(pid) != before && proc::variable(pid, "INTERVAL")? == "2").then_some(())
    });
}
