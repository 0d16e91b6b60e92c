//! `ostler why` explains incidents that really happened, to the letter.

use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use ostler_tests::{Daemon, Instance as Shown, LIMIT, manifest, proc};
use serde_json::{Value, json};

/// What differs from run to run becomes a word: pids, times, lengths of time, revisions, the directory of the test.
fn normal(daemon: &Daemon, said: &str) -> String {
    let said = said.replace(&daemon.path().display().to_string(), "DIR");
    let mut lines = Vec::new();
    for line in said.lines() {
        let indent = line.len() - line.trim_start().len();
        let words: Vec<&str> = line.trim_start().split(' ').collect();
        let mut out = Vec::new();
        for (index, word) in words.iter().enumerate() {
            let before = index.checked_sub(1).map_or("", |index| words[index]);
            let after = words.get(index + 1).copied().unwrap_or_default();
            let core = word.trim_matches(|c| "(),;:.".contains(c));
            let is_span = core.starts_with(|c: char| c.is_ascii_digit()) && core.ends_with(['s', 'm', 'h', 'd']);
            let replaced = if core.contains('T') && core.ends_with('Z') && core.starts_with("20") {
                "TIME"
            } else if is_span && (["since", "in"].contains(&before) || after.starts_with("ago")) {
                "SPAN"
            } else if before == "pid" {
                "PID"
            } else if before == "revision" && core.len() == 8 && core.chars().all(|c| c.is_ascii_hexdigit()) {
                "REVISION"
            } else {
                core
            };
            out.push(word.replacen(core, replaced, usize::from(!core.is_empty())));
        }
        lines.push(format!("{}{}", " ".repeat(indent), out.join(" ")));
    }
    lines.join("\n")
}

/// Compares what is said with what should be, line by line.
#[track_caller]
fn assert_says(daemon: &Daemon, target: &str, expected: &[&str]) {
    // What is said of a process is written a moment after what is said of its instances.
    let began = Instant::now();
    loop {
        let said = normal(daemon, &daemon.ok(&["why", target]));
        if said.lines().eq(expected.iter().copied()) {
            return;
        }
        if began.elapsed() > LIMIT {
            assert_eq!(said.lines().collect::<Vec<_>>(), expected, "{target}:\n{said}");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Waits until all of these lines are said.
#[track_caller]
fn assert_mentions(daemon: &Daemon, target: &str, lines: &[&str]) {
    let began = Instant::now();
    loop {
        let said = normal(daemon, &daemon.ok(&["why", target]));
        let Some(missing) = lines.iter().find(|line| !said.lines().any(|said| said == **line)) else { return };
        assert!(began.elapsed() < LIMIT, "{missing:?} is missing:\n{said}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A shell script that waits long before its third start.
fn failing(name: &str, script: &str) -> Value {
    let backoff = json!({"initial": "2s", "factor": 100, "max": "1h", "jitter": 0});
    manifest::with(manifest::shell(name, script), "spec.backoff", backoff)
}

/// Something that waits an hour before its second start.
fn patient(object: Value) -> Value {
    manifest::with(object, "spec.backoff", json!({"initial": "1h", "max": "1h", "jitter": 0}))
}

fn backing_off(daemon: &Daemon, name: &str, restarts: u64) -> Shown {
    daemon.instance_when(name, "waiting", |it| it.phase() == "Backoff" && it.restarts() == restarts)
}

const CRASH_LOOP: [&str; 8] = [
    "instance/loop-0: Backoff (Crashed)",
    "  spec    revision REVISION of process/loop, generation 1: sh -c echo starting; echo 'no database at 10.0.0.7' >&2; exit 3",
    "  now     waits to be started again since SPAN",
    "  end     attempt 2: exited with code 3, SPAN ago; 2 times in SPAN",
    "  said    no database at 10.0.0.7",
    "  policy  restartPolicy Always after Crash: end 2 in a row, 2s apart × 100 up to 1h, no limit of retries",
    "  next    attempt 3 starts in SPAN (TIME)",
    "  waits   process/loop: 0 of 1 instances ready",
];

#[test]
fn crashes_are_explained_also_by_a_daemon_that_did_not_see_them() {
    let daemon = Daemon::start();
    let script = "echo starting; echo 'no database at 10.0.0.7' >&2; exit 3";
    let mut shot = patient(manifest::sleeper("shot"));
    shot["spec"]["restartPolicy"] = json!("OnFailure");
    let fault = manifest::shell("fault", "kill -SEGV $$$$");
    let fault = manifest::with(patient(fault), "spec.restart", json!({"profile": "Batch"}));
    daemon.apply(&manifest::all(&[failing("loop", script), shot, fault]));
    backing_off(&daemon, "loop-0", 1);
    assert_says(&daemon, "loop-0", &CRASH_LOOP);

    // Killed from outside, as the kernel does when memory is short.
    proc::signal(daemon.running("shot-0"), libc::SIGKILL);
    backing_off(&daemon, "shot-0", 0);
    assert_says(
        &daemon,
        "instance/shot-0",
        &[
            "instance/shot-0: Backoff (Crashed)",
            "  spec    revision REVISION of process/shot, generation 1: sleep 100000",
            "  now     waits to be started again since SPAN",
            "  end     attempt 1: ended by SIGKILL, SPAN ago",
            "  policy  restartPolicy OnFailure after Crash: end 1 in a row, 1h apart × 2 up to 1h, no limit of retries",
            "  next    attempt 2 starts in SPAN (TIME)",
            "  waits   process/shot: 0 of 1 instances ready",
        ],
    );
    backing_off(&daemon, "fault-0", 0);
    assert_says(
        &daemon,
        "fault-0",
        &[
            "instance/fault-0: Backoff (Crashed)",
            "  spec    revision REVISION of process/fault, generation 1: sh -c kill -SEGV $$$$",
            "  now     waits to be started again since SPAN",
            "  end     attempt 1: ended by SIGSEGV, SPAN ago",
            "  policy  restartPolicy Always after Crash (Emergency) ×6: end 1 in a row, 6h apart × 2 up to 6h, no limit of \
             retries",
            "  next    attempt 2 starts in SPAN (TIME)",
            "  waits   process/fault: 0 of 1 instances ready",
        ],
    );

    // The wait goes on where it was when another daemon takes over.
    daemon.shutdown();
    daemon.serve();
    assert_says(&daemon, "loop-0", &CRASH_LOOP);
    let json: Value = serde_json::from_str(&daemon.ok(&["why", "loop-0", "-o", "json"])).unwrap();
    assert_eq!(json[0]["object"], "instance/loop-0");
    let steps: Vec<&str> = json[0]["links"].as_array().unwrap().iter().filter_map(|it| it["step"].as_str()).collect();
    assert_eq!(steps, ["spec", "now", "end", "said", "policy", "next", "waits"]);
}

#[test]
fn what_cannot_be_started_is_explained() {
    let daemon = Daemon::start();
    std::fs::write(daemon.path().join("closed"), "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(daemon.path().join("closed"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let command = |name: &str, command: &str| patient(manifest::process(name, &json!({"command": [command]})));
    daemon.apply(&manifest::all(&[
        command("missing", "no-such-program"),
        command("closed", "./closed"),
        manifest::with(patient(manifest::sleeper("lost")), "spec.workingDir", json!("/no/such/directory")),
    ]));
    for (name, reason, line, story) in [
        ("missing", "CommandNotFound", "no-such-program", "cannot execute no-such-program: No such file or directory"),
        ("closed", "PermissionDenied", "DIR/closed", "cannot execute DIR/closed: Permission denied"),
        (
            "lost",
            "BadWorkingDirectory",
            "sleep 100000",
            "cannot enter the working directory /no/such/directory: No such file or directory",
        ),
    ] {
        let instance = format!("{name}-0");
        backing_off(&daemon, &instance, 0);
        assert_says(
            &daemon,
            &instance,
            &[
                &format!("instance/{instance}: Backoff ({reason})"),
                &format!("  spec    revision REVISION of process/{name}, generation 1: {line}"),
                "  now     waits to be started again since SPAN",
                &format!("  end     attempt 1: {story}, SPAN ago"),
                "  policy  restartPolicy Always after ExecFailure: end 1 in a row, 1h apart × 2 up to 1h, no limit of \
                 retries",
                "  next    attempt 2 starts in SPAN (TIME)",
                &format!("  waits   process/{name}: 0 of 1 instances ready"),
            ],
        );
    }
}

#[test]
fn what_is_not_tried_any_more_is_explained() {
    let daemon = Daemon::start();
    let mut broken = manifest::shell("broken", "echo 'cannot bind' >&2; exit 1");
    broken["spec"]["backoff"] = json!({"initial": "1ms", "factor": 1, "jitter": 0});
    let mut tired = manifest::with(broken.clone(), "metadata.name", json!("tired"));
    let mut safe = manifest::with(broken.clone(), "metadata.name", json!("safe"));
    broken["spec"]["circuitBreaker"] = json!({"failures": 2, "window": "10m", "cooldown": "1h"});
    tired["spec"]["backoff"]["maxRetries"] = json!(2);
    safe["spec"]["backoff"]["maxRetries"] = json!(1);
    safe["spec"]["fallback"] = json!({"command": ["sleep", "100000"]});
    daemon.apply(&manifest::all(&[broken, tired, safe]));
    daemon.instance_when("broken-0", "stopped by its breaker", |it| it.reason() == "CircuitOpen");
    let spec = |name: &str| {
        format!("  spec    revision REVISION of process/{name}, generation 1: sh -c echo 'cannot bind' >&2; exit 1")
    };
    assert_says(
        &daemon,
        "broken-0",
        &[
            "instance/broken-0: Backoff (CircuitOpen)",
            &spec("broken"),
            "  now     waits to be started again since SPAN",
            "  end     attempt 2: exited with code 1, SPAN ago; 2 times in SPAN",
            "  said    cannot bind",
            "  policy  circuitBreaker: 2 failures within 10m, no start until TIME, then one trial",
            "  next    attempt 3 starts in SPAN (TIME)",
            "  waits   process/broken: 0 of 1 instances ready",
        ],
    );
    daemon.phase("tired-0", "Failed");
    assert_says(
        &daemon,
        "tired-0",
        &[
            "instance/tired-0: Failed (RetriesExhausted)",
            &spec("tired"),
            "  now     does not run, and is not started again since SPAN",
            "  end     attempt 3: exited with code 1, SPAN ago; 3 times in SPAN",
            "  said    cannot bind",
            "  policy  restartPolicy Always after Crash: maxRetries 2 is used up, 3 failures in a row",
            "  next    nothing, until the spec changes or `ostler start instance/tired-0`",
            "  waits   process/tired: 0 of 1 instances ready",
        ],
    );
    daemon.instance_when("safe-0", "falling back", |it| it.phase() == "Running" && it.reason() == "Fallback");
    assert_says(
        &daemon,
        "safe-0",
        &[
            "instance/safe-0: Running (Fallback), not ready",
            &spec("safe"),
            "  now     the fallback command runs, since RetriesExhausted: exited with code 1; attempt 3, pid PID since \
             SPAN, not ready",
            "  end     attempt 2: exited with code 1, SPAN ago; 2 times in SPAN",
            "  said    cannot bind",
            "  policy  restartPolicy Always after Crash: gave up on the command; fallback runs in its place",
            "  next    nothing, until the spec changes or `ostler restart instance/safe-0` tries the command again",
            "  waits   process/safe: 0 of 1 instances ready",
        ],
    );
}

#[test]
fn what_people_did_is_explained() {
    let daemon = Daemon::start();
    let web = manifest::with(manifest::sleeper("web"), "spec.replicas", json!(2));
    daemon.apply_ready(&manifest::all(&[manifest::sleeper("halted"), manifest::sleeper("new"), web.clone()]));
    daemon.ok(&["stop", "process/halted"]);
    assert_says(
        &daemon,
        "halted-0",
        &[
            "instance/halted-0: Stopped",
            "  spec    revision REVISION of process/halted, generation 2: sleep 100000",
            "  now     does not run since SPAN",
            "  end     attempt 1: ended by SIGTERM, SPAN ago; stopped by hand",
            "  policy  stopped by hand: no policy starts it",
            "  next    nothing, until `ostler start instance/halted-0`",
            "  waits   process/halted: 0 of 1 instances ready",
        ],
    );
    assert_mentions(
        &daemon,
        "process/halted",
        &["process/halted: Stopped", "  next    nothing, until `ostler start process/halted`"],
    );

    // Replaced by a new revision.
    let before = daemon.running("new-0");
    daemon.apply(&manifest::with(manifest::sleeper("new"), "spec.command", json!(["sleep", "200000"])).to_string());
    daemon.instance_when("new-0", "replaced", |it| it.ready() && it.attempt() == 2);
    assert!(!proc::lives(before));
    assert_says(
        &daemon,
        "new-0",
        &[
            "instance/new-0: Running",
            "  spec    revision REVISION of process/new, generation 2: sleep 200000",
            "  now     runs; attempt 2, pid PID since SPAN",
            "  end     attempt 1: ended by SIGTERM, SPAN ago; replaced by another revision",
            "  next    nothing: it is as it should be",
        ],
    );

    // A revision that does not work stops at the first instance, and the second one waits for it.
    daemon.apply(&patient(manifest::with(web, "spec.command", json!(["./not-built-yet"]))).to_string());
    backing_off(&daemon, "web-0", 1);
    assert_mentions(
        &daemon,
        "web",
        &[
            "process/web: InstanceTrouble",
            "  spec    revision REVISION, generation 2: 2 × DIR/not-built-yet",
            "  now     1 of 2 instances are not of this revision yet",
            "instance/web-0: Backoff (CommandNotFound)",
            "  end     attempt 2: cannot execute DIR/not-built-yet: No such file or directory, SPAN ago",
            "  waits   process/web: 1 of 2 instances ready",
            "  waits   web-1: replaced by this revision when it is ready",
        ],
    );
    let error = daemon.fails(1, &["why", "web-7"]);
    assert!(error.contains("NotFound") && error.contains("web-"), "{error}");
}

/// A probe that decides at its second failure, of a file that is or is not there.
fn probe(command: &[&str]) -> Value {
    json!({"exec": {"command": command}, "interval": "200ms", "timeout": "10s", "jitter": 0, "failureThreshold": 2})
}

#[test]
fn what_probes_find_is_explained() {
    let daemon = Daemon::start();
    let ask = "test -e well || { echo 'the queue is stuck'; exit 4; }";
    let with = |name: &str, kind: &str, probe: Value| {
        manifest::with(patient(manifest::sleeper(name)), &format!("spec.{kind}Probe"), probe)
    };
    daemon.apply(&manifest::all(&[
        with("stuck", "liveness", probe(&["sh", "-c", ask])),
        with("busy", "readiness", probe(&["sh", "-c", ask])),
        with("slow", "startup", probe(&["sh", "-c", ask])),
        with("blind", "readiness", json!({"tcpSocket": {"port": 80, "host": "192.0.2.1"}, "interval": "200ms"})),
    ]));
    let story = |name: &str, kind: &str, cause: &str, reason: &str| {
        [
            format!("instance/{name}-0: Backoff ({reason})"),
            format!("  spec    revision REVISION of process/{name}, generation 1: sleep 100000"),
            "  now     waits to be started again since SPAN".to_owned(),
            format!(
                "  end     attempt 1: {kind} probe failed, 2 in a row: exit code 4: the queue is stuck; ended by \
                 SIGTERM, SPAN ago"
            ),
            format!(
                "  policy  restartPolicy Always after {cause}: end 1 in a row, 1h apart × 2 up to 1h, no limit of retries"
            ),
            "  next    attempt 2 starts in SPAN (TIME)".to_owned(),
            format!("  waits   process/{name}: 0 of 1 instances ready"),
        ]
    };
    for (name, kind, cause, reason) in
        [("stuck", "liveness", "Liveness", "Unhealthy"), ("slow", "startup", "Startup", "StartupFailed")]
    {
        backing_off(&daemon, &format!("{name}-0"), 0);
        let story = story(name, kind, cause, reason);
        assert_says(&daemon, &format!("{name}-0"), &story.each_ref().map(String::as_str));
    }
    // What is not ready runs on, and who is to blame is said: the process, or nobody.
    let unready = |name: &str, why: &str| {
        [
            format!("instance/{name}-0: Running, not ready"),
            format!("  spec    revision REVISION of process/{name}, generation 1: sleep 100000"),
            format!("  now     runs; attempt 1, pid PID since SPAN, not ready: {why}"),
            "  next    readiness is looked at again; nothing is restarted for it".to_owned(),
            format!("  waits   process/{name}: 0 of 1 instances ready"),
        ]
    };
    let readiness = |it: &Shown| it.0["status"]["probes"]["readiness"].clone();
    daemon.instance_when("busy-0", "not ready", |it| readiness(it)["verdict"] == "Failed");
    let story = unready("busy", "exit code 4: the queue is stuck");
    assert_says(&daemon, "busy-0", &story.each_ref().map(String::as_str));
    daemon.instance_when("blind-0", "not known", |it| !readiness(it)["output"].is_null());
    let why = "192.0.2.1 is not a loopback address; `ostler serve --probe-allow 192.0.2.1` allows it";
    assert_says(&daemon, "blind-0", &unready("blind", why).each_ref().map(String::as_str));
    std::fs::write(daemon.path().join("well"), "").unwrap();
    daemon.instance_when("busy-0", "ready", Shown::ready);
    assert_says(
        &daemon,
        "busy-0",
        &[
            "instance/busy-0: Running",
            "  spec    revision REVISION of process/busy, generation 1: sleep 100000",
            "  now     runs; attempt 1, pid PID since SPAN",
            "  next    nothing: it is as it should be",
        ],
    );
}
