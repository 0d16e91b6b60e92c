//! Each policy does what it says to real processes, a warning does nothing, and all of it outlives the controller.

use std::fs;
use std::path::PathBuf;

use ostler_tests::{Daemon, Instance, Setup, is_root, manifest, proc, skipped, wait_until};
use serde_json::{Value, json};

/// Holds so many MiB, and says so; ends by SIGTERM only where it is told to.
const HOLD: &str = "import os, signal, sys, time\nheld = b'x' * (int(sys.argv[1]) << 20)\n\
                    if len(sys.argv) > 2:\n    signal.signal(signal.SIGTERM, lambda *_: (open(sys.argv[2], 'a').close(), os._exit(0)))\n\
                    time.sleep(100000)\n";

/// A Process that holds 80 MiB, with thresholds of memory that are looked at four times a second.
fn hog(daemon: &Daemon, name: &str, threshold: &Value) -> Value {
    let path = daemon.path().join("hold.py");
    if !path.exists() {
        fs::write(&path, HOLD).unwrap();
    }
    patient(
        &json!({
            "command": ["python3", "hold.py", "80", format!("{name}.obeyed")],
            "resources": {"thresholds": {"memory": threshold}, "interval": "250ms"},
        }),
        name,
    )
}

fn patient(spec: &Value, name: &str) -> Value {
    let restart = json!({"startupGrace": "0s", "sustainedViolation": "500ms", "spikeTolerance": "0s"});
    manifest::with(manifest::process(name, spec), "spec.restart", restart)
}

fn condition(instance: &Instance, kind: &str) -> Option<Value> {
    let conditions = instance.0["status"]["conditions"].as_array()?;
    conditions.iter().find(|condition| condition["type"] == kind).cloned()
}

fn events(daemon: &Daemon, name: &str) -> String {
    daemon.ok(&["events", "--for", &format!("instance/{name}-0")])
}

fn told(daemon: &Daemon, name: &str, reason: &str) {
    wait_until(reason, || events(daemon, name).contains(reason).then_some(()));
}

#[test]
fn each_policy_does_what_it_says_and_a_warning_nothing() {
    let daemon = Daemon::start();
    let obeyed = |name: &str| -> PathBuf { daemon.path().join(format!("{name}.obeyed")) };
    let over = |policy: &str| json!({"warning": "30Mi", "critical": "50Mi", "policy": policy});
    let all: Vec<Value> = ["None", "Log", "Alert", "GracefulShutdown", "Kill", "Restart", "RestartAdjusted"]
        .into_iter()
        .map(|policy| hog(&daemon, &policy.to_lowercase(), &over(policy)))
        .chain([hog(&daemon, "warned", &json!({"warning": "30Mi", "critical": "1Gi", "policy": "Kill"}))])
        .collect();
    daemon.apply(&manifest::all(&all));

    for (name, obeys) in [("gracefulshutdown", true), ("kill", false)] {
        let over = daemon.instance_when(&format!("{name}-0"), "ended for good", |it| it.phase() == "Failed");
        assert_eq!(over.reason(), "ResourceViolation", "{}", over.0["status"]);
        assert_eq!(over.last_exit()["cause"], "Resource");
        assert_eq!(over.attempt(), 1);
        assert_eq!(obeyed(name).exists(), obeys, "{name}");
        told(&daemon, name, "more than its critical level 50Mi");
    }
    daemon.instance_when("restart-0", "restarted", |it| it.restarts() >= 1);
    assert!(obeyed("restart").exists());
    let described = daemon.ok(&["describe", "instance/restart-0"]);
    assert!(described.contains("50Mi") && described.contains("500ms"), "{described}");
    // How much Python takes besides decides whether 87 MiB are enough, or 100.
    let adjusted = daemon.instance_when("restartadjusted-0", "left alone", |it| {
        let percent = it.0["status"]["resources"]["adjusted"][0]["percent"].as_u64();
        it.restarts() >= 3 && it.phase() == "Running" && percent >= Some(175)
    });
    assert_eq!(adjusted.0["status"]["resources"]["adjusted"][0]["resource"], "memory");
    told(&daemon, "restartadjusted", "Adjusted");

    // What only tells, and what is only warned of, runs on.
    let pids: Vec<proc::Identity> =
        ["none-0", "log-0", "alert-0", "warned-0"].into_iter().map(|name| daemon.running(name)).collect();
    told(&daemon, "alert", "ThresholdViolation");
    told(&daemon, "warned", "ThresholdWarning");
    wait_until("it to be logged", || {
        let log = daemon.log();
        log.lines().any(|line| line.contains("default/log-0") && line.contains("ThresholdViolation")).then_some(())
    });
    for name in ["none", "log"] {
        daemon.instance_when(&format!("{name}-0"), "over its level", |it| {
            condition(it, "WithinThresholds").is_some_and(|it| it["status"] == "False" && it["reason"] == "Critical")
        });
        assert!(!events(&daemon, name).contains("Threshold"), "{}", events(&daemon, name));
    }
    let warned = condition(&daemon.instance("warned-0"), "WithinThresholds").expect("it has thresholds");
    assert_eq!((&warned["status"], &warned["reason"]), (&json!("True"), &json!("Warning")), "{warned}");

    // Another controller goes on from what is known, and tells nothing twice.
    let before = events(&daemon, "alert").lines().count();
    daemon.kill_controller();
    daemon.answers();
    daemon.apply(&hog(&daemon, "warned", &json!({"critical": "40Mi", "policy": "Kill"})).to_string());
    daemon.instance_when("warned-0", "killed", |it| it.phase() == "Failed");
    assert_eq!(events(&daemon, "alert").lines().count(), before);
    for pid in &pids[..3] {
        assert!(proc::lives(*pid));
    }
    // What is used no longer is cleared.
    daemon.apply(&hog(&daemon, "alert", &json!({"warning": "1Gi"})).to_string());
    told(&daemon, "alert", "ThresholdCleared");
}

#[test]
fn what_uses_too_much_cpu_is_throttled_until_it_is_calm() {
    const TEST: &str = "what_uses_too_much_cpu_is_throttled_until_it_is_calm";
    let v1 = fs::exists("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").is_ok_and(|exists| exists);
    let v2 = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default().contains("cpu");
    if !is_root() || !(v1 || v2) {
        return skipped(TEST, "the cgroup controller cpu needs root");
    }
    let daemon = Daemon::start();
    let script = "while [ ! -e calm ]; do i=0; while [ $i -lt 10000 ]; do i=$((i+1)); done; done; exec sleep 100000";
    let threshold = json!({"warning": "20m", "critical": "100m", "policy": "Throttle"});
    let resources = json!({"thresholds": {"cpu": threshold}, "interval": "1s"});
    let spec = json!({"command": ["sh", "-c", script], "resources": resources});
    daemon.apply(&patient(&spec, "busy").to_string());
    let busy = daemon.running("busy-0");
    let open = "cpu when throttled by cgroup v";
    daemon.instance_when("busy-0", "prepared", |it| {
        condition(it, "LimitsEnforced").is_some_and(|it| it["message"].as_str().unwrap().contains(open))
    });
    let says = |it: &Instance, part: &str| {
        condition(it, "LimitsEnforced")
            .is_some_and(|it| it["status"] == "True" && it["message"].as_str().unwrap().starts_with(part))
    };
    let throttled = daemon.instance_when("busy-0", "throttled", |it| says(it, "cpu 100m by cgroup v"));
    assert_eq!(throttled.0["status"]["resources"]["throttled"]["cpu"], "100m");
    told(&daemon, "busy", "Throttled");
    daemon.kill_controller();
    daemon.answers();
    fs::write(daemon.path().join("calm"), "").unwrap();
    daemon.instance_when("busy-0", "let go", |it| says(it, open) && it.0["status"]["resources"].is_null());
    told(&daemon, "busy", "Unthrottled");
    assert_eq!(daemon.running("busy-0"), busy);

    // Where nothing can throttle it, it is refused.
    let none = Setup::default().args(&["--cgroups", "none"]).start();
    none.apply(&patient(&spec, "busy").to_string());
    let refused = none.instance_when("busy-0", "refused", |it| it.phase() == "Failed");
    assert_eq!(refused.reason(), "LimitsNotEnforceable", "{}", refused.0["status"]);
}

#[test]
fn thresholds_are_a_probe_too() {
    let daemon = Daemon::start();
    fs::write(daemon.path().join("hold.py"), HOLD).unwrap();
    let probe = |most: &Value| json!({"resources": most, "interval": "500ms", "timeout": "20s", "failureThreshold": 2});
    let gated = json!({"command": ["python3", "hold.py", "60"], "readinessProbe": probe(&json!({"memory": "40Mi"}))});
    let within = json!({"command": ["sleep", "100000"],
        "readinessProbe": probe(&json!({"memory": "40Mi", "cpu": "4", "processes": 1, "threads": 1, "openFiles": 20}))});
    let sick = json!({"command": ["python3", "hold.py", "60", "sick.obeyed"],
        "livenessProbe": probe(&json!({"memory": "40Mi"}))});
    daemon.apply(&manifest::all(&[
        manifest::process("gated", &gated),
        manifest::process("within", &within),
        manifest::process("sick", &sick),
    ]));
    daemon.instance_when("within-0", "ready", Instance::ready);
    let gated = daemon.instance_when("gated-0", "found out", |it| {
        condition(it, "Ready").is_some_and(|it| it["reason"] == "ReadinessProbeFailed")
    });
    let output = condition(&gated, "Ready").unwrap()["message"].as_str().unwrap().to_owned();
    assert!(output.starts_with("memory is ") && output.ends_with(", more than 40Mi"), "{output}");
    let sick = daemon.instance_when("sick-0", "restarted", |it| it.restarts() >= 1);
    assert_eq!(sick.last_exit()["cause"], "Liveness", "{}", sick.0["status"]);
    assert_eq!((gated.restarts(), daemon.instance("gated-0").restarts()), (0, 0));
}
