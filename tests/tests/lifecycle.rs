//! The life of an instance: starts, ends, restarts, and what is said about them.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use ostler_tests::{Daemon, Random, is_root, make_program, manifest, proc, scale, skipped, wait_until};
use serde_json::{Value, json};

const NO_WAIT: &str = "1ms";

fn quick(mut object: Value) -> Value {
    object["spec"]["backoff"] = json!({"initial": NO_WAIT, "factor": 1, "jitter": 0});
    object
}

#[test]
fn a_killed_instance_is_replaced() {
    let daemon = Daemon::start();
    daemon.apply(&quick(manifest::sleeper("web")).to_string());
    for round in 1..=10 {
        let before = daemon.running("web-0");
        proc::signal(before, libc::SIGKILL);
        let after = wait_until("the replacement", || {
            let process = proc::identity(daemon.instance("web-0").pid()?)?;
            (process != before).then_some(process)
        });
        assert!(proc::lives(after));
        let instance = daemon.instance_when("web-0", "counted", |it| it.restarts() == round);
        assert_eq!(instance.last_exit()["signal"], 9, "{:?}", instance.last_exit());
    }
}

#[test]
fn policies_obey_exit_codes_and_signals() {
    let daemon = Daemon::start();
    let mut objects = Vec::new();
    let mut expected = Vec::new();
    for (policy, script, good, phase, again) in [
        ("Never", "exit 0", json!([0]), "Stopped", false),
        ("Never", "exit 3", json!([0]), "Failed", false),
        ("Never", "exit 3", json!([0, 3]), "Stopped", false),
        ("Never", "kill -USR1 $$", json!([0]), "Failed", false),
        ("OnFailure", "exit 0", json!([0]), "Stopped", false),
        ("OnFailure", "exit 4", json!([0]), "", true),
        ("OnFailure", "exit 4", json!([4]), "Stopped", false),
        ("OnFailure", "exit 0", json!([4]), "", true),
        ("OnFailure", "kill -9 $$", json!([0]), "", true),
        ("Always", "exit 0", json!([0]), "", true),
        ("Always", "exit 5", json!([0]), "", true),
        ("UnlessStopped", "exit 0", json!([0]), "", true),
    ] {
        let name = format!("p{}", objects.len());
        let mut object = quick(manifest::shell(&name, &format!("echo go; {}", script.replace("$$", "$$$$"))));
        // Often enough to be told from never, not so often that it keeps the machine busy.
        object["spec"]["backoff"]["initial"] = json!("100ms");
        object["spec"]["restartPolicy"] = json!(policy);
        object["spec"]["successExitCodes"] = good;
        objects.push(object);
        expected.push((name, script, phase, again));
    }
    daemon.apply(&manifest::all(&objects));
    for (name, script, phase, again) in expected {
        let name = format!("{name}-0");
        if again {
            daemon.instance_when(&name, "restarted", |it| it.restarts() >= 2);
        } else {
            let instance = daemon.phase(&name, phase);
            assert_eq!(instance.restarts(), 0, "{name} {script}: {:?}", instance.0["status"]);
            match script.split_once(' ') {
                Some(("exit", code)) => assert_eq!(instance.last_exit()["code"].to_string(), code, "{name}"),
                _ => assert_eq!(instance.last_exit()["signal"], libc::SIGUSR1, "{name}"),
            }
        }
    }
}

#[test]
fn retries_are_counted_and_given_up_and_a_start_begins_anew() {
    let daemon = Daemon::start();
    let mut object = quick(manifest::witness("trier", "--exit --code 9"));
    object["spec"]["restartPolicy"] = json!("OnFailure");
    object["spec"]["backoff"]["maxRetries"] = json!(3);
    daemon.apply(&object.to_string());
    let instance = daemon.phase("trier-0", "Failed");
    assert_eq!(instance.reason(), "RetriesExhausted");
    assert_eq!(instance.last_exit()["code"], 9);
    assert_eq!(daemon.journal().starts("default/trier-0").len(), 4, "one start and three retries");
    daemon.ok(&["start", "process/trier"]);
    wait_until("another four starts", || (daemon.journal().starts("default/trier-0").len() == 8).then_some(()));
    daemon.phase("trier-0", "Failed");
    let error = daemon.fails(1, &["start", "process/nothing"]);
    assert!(error.contains("NotFound"), "{error}");
}

#[test]
fn a_manual_stop_outlives_the_daemon_and_a_start_ends_it() {
    let daemon = Daemon::start();
    daemon.apply_ready(&manifest::all(&[manifest::sleeper("one"), manifest::sleeper("two")]));
    let one = daemon.running("one-0");
    let two = daemon.running("two-0");
    assert_eq!(daemon.ok(&["stop", "process/one"]), "process/one stopped\n");
    assert!(!proc::lives(one));
    assert_eq!(daemon.phase("one-0", "Stopped").reason(), "Stopped");
    daemon.shutdown();
    assert!(proc::lives(two));
    daemon.serve();
    assert_eq!(daemon.running("two-0"), two);
    daemon.kill_controller();
    daemon.answers();
    daemon.apply(&manifest::sleeper("three").to_string());
    daemon.running("three-0");
    assert_eq!(daemon.phase("one-0", "Stopped").restarts(), 0);
    daemon.ok(&["stop", "process/one"]);
    daemon.ok(&["start", "process/one", "--wait", "--timeout", "60s"]);
    daemon.running("one-0");
    daemon.ok(&["stop", "instance/two-0"]);
    assert!(!proc::lives(two));
    daemon.ok(&["start", "instance/two-0", "--wait", "--timeout", "60s"]);
    daemon.running("two-0");
}

#[test]
fn spawn_failures_are_told_apart() {
    let daemon = Daemon::start();
    let path = daemon.path().to_owned();
    let file = |name: &str, text: &str, mode: u32| {
        make_program(&path.join(name), text.as_bytes(), mode);
    };
    file("closed", "#!/bin/sh\n", 0o644);
    file("garbage", "\u{1}\u{2}\u{3} not a program\n", 0o755);
    file("orphan", "#!/nowhere/interpreter\n", 0o755);
    let command = |name: &str, command: &str| manifest::process(name, &json!({"command": [command]}));
    daemon.apply(&manifest::all(&[
        command("missing", "no-such-program-anywhere"),
        command("absent", "./absent"),
        command("closed", "./closed"),
        command("garbage", "./garbage"),
        command("orphan", "./orphan"),
        manifest::with(manifest::sleeper("lost"), "spec.workingDir", json!("/no/such/directory")),
        manifest::with(manifest::sleeper("stranger"), "spec.user", json!("no-such-user-anywhere")),
    ]));
    for (name, reason, words, retried) in [
        ("missing", "CommandNotFound", "no-such-program-anywhere", true),
        ("absent", "CommandNotFound", "absent", true),
        ("closed", "PermissionDenied", "closed", true),
        ("garbage", "BadFormat", "garbage", false),
        ("orphan", "CommandNotFound", "/nowhere/interpreter", true),
        ("lost", "BadWorkingDirectory", "/no/such/directory", true),
        ("stranger", "BadUser", "no-such-user-anywhere", false),
    ] {
        let name = format!("{name}-0");
        let instance = daemon.instance_when(&name, reason, |it| it.reason() == reason);
        let message = instance.0["status"]["message"].as_str().unwrap_or_default().to_owned();
        assert!(message.contains(words), "{name}: {message}");
        assert!(instance.last_exit()["error"].is_string(), "{name}: {:?}", instance.last_exit());
        // It may be on its way through the next try.
        daemon.phase(&name, if retried { "Backoff" } else { "Failed" });
        wait_until(format!("the event {reason}"), || daemon.ok(&["events"]).contains(reason).then_some(()));
    }
    // What is repaired runs by itself.
    file("absent", "#!/bin/sh\nexec sleep 1000\n", 0o755);
    daemon.running("absent-0");
}

#[test]
fn a_hundred_restarts_at_once_never_make_a_second_copy() {
    let daemon = Daemon::start();
    daemon.apply(&manifest::witness("target", "--rate 20").to_string());
    daemon.running("target-0");
    std::thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(|| {
                for _ in 0..10 {
                    daemon.ok(&["restart", "process/target"]);
                }
            });
        }
    });
    // Settled: the last restart that was asked for has happened.
    let asked =
        daemon.ok(&["get", "process/target", "-o", "jsonpath={.metadata.annotations.ostler\\.dev/restartedAt}"]);
    let instance = daemon.instance_when("target-0", "settled", |it| {
        it.ready() && it.0["status"]["restartedAt"] == asked.trim() && it.0["spec"]["restartedAt"] == asked.trim()
    });
    let journal = daemon.journal();
    let starts = wait_until("the last attempt's entry", || {
        let starts = journal.starts("default/target-0");
        (starts.last()?.0.attempt == instance.attempt()).then_some(starts)
    });
    journal.assert_single_copies();
    // One that is told to end at once may not even get to its first entry.
    assert!(starts.len() >= 2 && starts.len() as u64 <= instance.attempt(), "{} starts", starts.len());
    assert_eq!(instance.restarts() + 1, instance.attempt());
    assert_eq!(starts.last().map(|(who, _)| who.process.pid), instance.pid());
    let living: Vec<_> = starts.iter().filter(|(who, _)| proc::lives(who.process)).collect();
    assert_eq!(living.len(), 1, "{living:?}");
    daemon.assert_output_complete("target-0");
}

/// Starts of a crash loop are at least these milliseconds apart, by the kernel's own account.
fn assert_apart(daemon: &Daemon, instance: &str, delays: &[u64]) {
    let starts = daemon.journal().starts(instance);
    for (pair, delay) in starts.windows(2).zip(delays) {
        // The kernel counts in hundredths of a second.
        let apart = (pair[1].0.process.start - pair[0].0.process.start) * 10;
        assert!(apart + 20 >= *delay, "{instance}: {apart} ms apart where {delay} were due: {starts:?}");
    }
}

#[test]
fn restarts_of_crash_loops_wait_longer_each_time_whoever_is_killed() {
    let mut random = Random::new(8);
    let daemon = Daemon::start();
    // Loops of different speeds: each kill meets them in different phases of their waits.
    let loops: Vec<(String, u64)> =
        (0..20 * scale()).map(|number| (format!("loop{number}"), 200 + random.below(800) as u64)).collect();
    let objects: Vec<Value> = loops
        .iter()
        .map(|(name, initial)| {
            let mut object = manifest::witness(name, "--exit --code 2");
            object["spec"]["backoff"] =
                json!({"initial": format!("{initial}ms"), "factor": 2, "jitter": 0, "max": "1m"});
            object
        })
        .collect();
    daemon.apply(&manifest::all(&objects));
    let starts = |name: &str| daemon.journal().starts(&format!("default/{name}-0")).len();
    for round in 0..4 {
        wait_until("the next starts", || loops.iter().any(|(name, _)| starts(name) >= round + 2).then_some(()));
        // Not to wait for anything: the moment of the kill is what is random.
        std::thread::sleep(Duration::from_millis(random.below(300) as u64));
        if round == 2 {
            daemon.kill_both();
            daemon.serve();
        } else {
            daemon.kill_controller();
            daemon.answers();
        }
    }
    wait_until("four starts of each", || loops.iter().all(|(name, _)| starts(name) >= 4).then_some(()));
    for (name, initial) in &loops {
        let delays: Vec<u64> = (0..8).map(|restart| initial << restart).collect();
        assert_apart(&daemon, &format!("default/{name}-0"), &delays);
        // One that ended while nobody was there has an unknown code, not an invented one.
        let exit = daemon.instance(&format!("{name}-0")).last_exit().clone();
        assert!(exit["code"] == 2 || exit["unknown"].is_string(), "{exit}");
    }
    daemon.journal().assert_single_copies();
}

#[test]
fn an_open_circuit_breaker_stays_open_through_kills_and_a_start_closes_it() {
    let daemon = Daemon::start();
    let mut object = quick(manifest::witness("tripper", "--exit --code 2"));
    object["spec"]["circuitBreaker"] = json!({"failures": 3, "window": "1m", "cooldown": "1h"});
    daemon.apply(&object.to_string());
    let open = |daemon: &Daemon| {
        let instance = daemon.instance_when("tripper-0", "open", |it| it.reason() == "CircuitOpen");
        instance.0["status"]["breaker"]["openUntil"].to_string()
    };
    let until = open(&daemon);
    daemon.kill_controller();
    daemon.answers();
    assert_eq!(open(&daemon), until);
    daemon.kill_both();
    daemon.serve();
    assert_eq!(open(&daemon), until);
    assert_eq!(daemon.journal().starts("default/tripper-0").len(), 3);
    daemon.ok(&["start", "process/tripper"]);
    wait_until("a start", || (daemon.journal().starts("default/tripper-0").len() > 3).then_some(()));
    open(&daemon);
    daemon.journal().assert_single_copies();
}

#[test]
fn automatic_ports_differ_stay_and_are_injected() {
    let daemon = Daemon::start();
    let script = "echo $PORT $PORT_HTTP $PORT_ADMIN_API $OSTLER_INSTANCE $OSTLER_ORDINAL; exec sleep 1000";
    let mut object = manifest::shell("web", script);
    object["spec"]["replicas"] = json!(3);
    object["spec"]["ports"] = json!([{"name": "http", "port": "auto"}, {"name": "admin-api", "port": "auto"}]);
    daemon.apply_ready(&object.to_string());
    let lines = |daemon: &Daemon, name: &str| -> Vec<Vec<String>> {
        let text = String::from_utf8_lossy(&daemon.output(name, "all")).into_owned();
        text.lines().map(|line| line.split(' ').map(str::to_owned).collect()).collect()
    };
    let mut ports = BTreeSet::new();
    let mut first = Vec::new();
    for ordinal in 0..3 {
        let name = format!("web-{ordinal}");
        let line = wait_until("its line", || lines(&daemon, &name).pop());
        assert_eq!(line[0], line[1], "PORT is the first port");
        assert_eq!(line[3..], [name.clone(), ordinal.to_string()]);
        assert!(ports.insert(line[1].clone()) && ports.insert(line[2].clone()), "ports repeat: {line:?} {ports:?}");
        let spec = daemon.instance(&name).0["spec"]["ports"].clone();
        assert_eq!([spec["http"].to_string(), spec["admin-api"].to_string()], [line[1].clone(), line[2].clone()]);
        first.push(line);
    }
    daemon.kill_controller();
    daemon.answers();
    daemon.ok(&["restart", "process/web", "--wait", "--timeout", "60s"]);
    for (ordinal, before) in first.iter().enumerate() {
        let name = format!("web-{ordinal}");
        let after = wait_until("the second line", || lines(&daemon, &name).into_iter().nth(1));
        assert_eq!(after, *before, "ports moved");
    }
}

#[test]
fn a_port_that_is_taken_is_refused_naming_its_holder() {
    let daemon = Daemon::start();
    let on = |name: &str, port: u16| {
        manifest::with(manifest::sleeper(name), "spec.ports", json!([{"name": "http", "port": port}]))
    };
    daemon.apply_ready(&on("holder", 47_123).to_string());
    let refused = daemon.try_apply(&manifest::all(&[manifest::sleeper("innocent"), on("second", 47_123)]));
    assert_eq!(refused.code, 1, "{}", refused.stdout);
    assert!(refused.stderr.contains("holder") && refused.stderr.contains("47123"), "{}", refused.stderr);
    assert_eq!(daemon.instances().len(), 1, "something of the refused apply was taken");
    let twice = manifest::with(on("many", 47_124), "spec.replicas", json!(2));
    assert_eq!(daemon.try_apply(&twice.to_string()).code, 1);
    daemon.ok(&["delete", "process/holder", "--timeout", "60s"]);
    daemon.apply_ready(&on("second", 47_123).to_string());
}

#[test]
fn processes_get_the_environment_of_their_spec_and_nothing_else() {
    let daemon = ostler_tests::Setup::default().env("SECRET_OF_THE_DAEMON", "leak").env("WANTED", "passed").start();
    let mut object = manifest::shell("env", "env; exec sleep 1000");
    object["spec"]["env"] = json!([{"name": "A", "value": "1"}, {"name": "B", "value": "$(A)2"}]);
    object["spec"]["inheritEnv"] = json!(["WANTED"]);
    daemon.apply(&object.to_string());
    daemon.running("env-0");
    let text = wait_until("its environment", || {
        let text = String::from_utf8_lossy(&daemon.output("env-0", "stdout")).into_owned();
        ["WANTED=passed\n", "A=1\n", "B=12\n"].iter().all(|line| text.contains(line)).then_some(text)
    });
    assert!(!text.contains("leak") && !text.contains("CARGO"), "{text}");
    object["spec"]["env"] = json!([{"name": "A", "value": "1"}]);
    let before = daemon.running("env-0");
    daemon.apply(&object.to_string());
    let after = wait_until("the replacement", || {
        proc::identity(daemon.instance("env-0").pid()?).filter(|process| *process != before)
    });
    wait_until("its environment without B", || {
        let own = proc::variable(after.pid, "OSTLER_ATTEMPT").is_some();
        (own && proc::variable(after.pid, "B").is_none()).then_some(())
    });
}

#[test]
fn another_user_is_switched_to() {
    if !is_root() {
        return skipped("another_user_is_switched_to", "only root can switch users");
    }
    let daemon = Daemon::start();
    std::fs::set_permissions(daemon.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut object = manifest::shell("guest", "id -u; id -g; id -G; exec sleep 1000");
    object["spec"]["user"] = json!("65534");
    daemon.apply(&object.to_string());
    let process = daemon.running("guest-0");
    let text = wait_until("its ids", || {
        let text = String::from_utf8_lossy(&daemon.output("guest-0", "stdout")).into_owned();
        (text.lines().count() == 3).then_some(text)
    });
    assert_eq!(text.lines().next(), Some("65534"), "{text}");
    assert!(!text.lines().any(|line| line.split(' ').any(|id| id == "0")), "{text}");
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid)).unwrap();
    assert!(status.lines().any(|line| line.starts_with("CapEff:") && line.ends_with("0000000000000000")), "{status}");
}
