//! Hard limits hold for whole trees, and whoever cannot enforce one says so.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ostler_tests::{Daemon, Setup, can_limit, manifest, proc, skipped, wait_until};
use serde_json::{Value, json};

const NEEDS: &str = "limits need root and the cgroup controllers memory, cpu and pids";

fn limited(name: &str, script: &str, limits: &Value) -> Value {
    manifest::with(manifest::shell(name, script), "spec.resources", json!({"limits": limits}))
}

/// The condition LimitsEnforced: status, reason, message.
fn enforced(daemon: &Daemon, name: &str) -> Option<(String, String, String)> {
    let instance = daemon.instance(name);
    let conditions = instance.0["status"]["conditions"].as_array()?.clone();
    let found = conditions.into_iter().find(|condition| condition["type"] == "LimitsEnforced")?;
    let field = |name: &str| found[name].as_str().unwrap_or_default().to_owned();
    Some((field("status"), field("reason"), field("message")))
}

fn assert_enforced(daemon: &Daemon, name: &str, parts: &[&str]) {
    let (status, reason, message) = wait_until("the condition", || {
        enforced(daemon, name)
            .filter(|(status, _, message)| status == "True" && parts.iter().all(|part| message.contains(part)))
    });
    assert_eq!((&*status, &*reason), ("True", "Enforced"), "{message}");
}

/// The group of a process that limits it by this controller.
fn group(pid: i32, controller: &str) -> PathBuf {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("it lives");
    let v1 = groups.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        (controllers.split(',').any(|name| name == controller) && path.contains("/ostler-"))
            .then(|| PathBuf::from(format!("/sys/fs/cgroup/{controllers}{path}")))
    });
    v1.unwrap_or_else(|| {
        let path = groups.lines().find_map(|line| line.strip_prefix("0::")).expect("a cgroup v2");
        PathBuf::from(format!("/sys/fs/cgroup{path}"))
    })
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|why| panic!("{}: {why}", path.display()))
}

#[test]
fn a_memory_hog_dies_alone_and_it_is_said_of_what() {
    const TEST: &str = "a_memory_hog_dies_alone_and_it_is_said_of_what";
    if !can_limit() {
        return skipped(TEST, NEEDS);
    }
    let daemon = Daemon::start();
    daemon.apply_ready(&manifest::sleeper("neighbour").to_string());
    let neighbour = daemon.running("neighbour-0");
    // At most half a gigabyte, should nobody stop it; the leader waits for the one that takes it.
    fs::write(
        daemon.path().join("hog.py"),
        "import time\nheld = []\nfor _ in range(512):\n    held.append(b'x' * (1 << 20))\ntime.sleep(100000)\n",
    )
    .unwrap();
    for (name, script) in [("hog", "exec python3 hog.py"), ("parent", "python3 hog.py; exit $?")] {
        let object = limited(name, script, &json!({"memory": "48Mi"}));
        daemon.apply(&manifest::with(object, "spec.restartPolicy", json!("Never")).to_string());
        let hog = daemon.phase(&format!("{name}-0"), "Failed");
        assert_eq!(hog.reason(), "OOMKilled", "{}", hog.0["status"]);
        assert_eq!(hog.last_exit()["oomKilled"], true, "{}", hog.last_exit());
        assert_eq!(hog.last_exit()["cause"], "Resource", "{}", hog.last_exit());
        wait_until("it to be told", || {
            daemon.ok(&["events", "--for", &format!("instance/{name}-0")]).contains("OOMKilled").then_some(())
        });
    }
    assert_eq!(daemon.running("neighbour-0"), neighbour);
    let described = daemon.ok(&["describe", "instance/hog-0"]);
    assert!(described.contains("more memory than its limit"), "{described}");
}

#[test]
fn a_fork_bomb_stops_at_its_limit() {
    const TEST: &str = "a_fork_bomb_stops_at_its_limit";
    if !can_limit() {
        return skipped(TEST, NEEDS);
    }
    let daemon = Daemon::start();
    fs::write(
        daemon.path().join("bomb.py"),
        "import os, time\ncount = 0\ntry:\n    for _ in range(200):\n        if os.fork() == 0:\n            \
         time.sleep(100000)\n        count += 1\nexcept OSError as why:\n    pass\n\
         open('forked.new', 'w').write(str(count))\nos.rename('forked.new', 'forked')\ntime.sleep(100000)\n",
    )
    .unwrap();
    daemon.apply(&limited("bomb", "exec python3 bomb.py", &json!({"processes": 20})).to_string());
    let forked = wait_until("it to give up", || fs::read_to_string(daemon.path().join("forked")).ok());
    assert_eq!(forked, "19");
    assert_enforced(&daemon, "bomb-0", &["processes 20 by cgroup v"]);
    let uid = daemon.instance("bomb-0").uid().to_owned();
    daemon.ok(&["delete", "process/bomb"]);
    daemon.assert_tree_gone(&uid);
}

#[test]
fn a_cpu_limit_holds() {
    if !can_limit() {
        return skipped("a_cpu_limit_holds", NEEDS);
    }
    let daemon = Daemon::start();
    let script = "while :; do :; done & while :; do :; done";
    daemon.apply_ready(&limited("busy", script, &json!({"cpu": "300m"})).to_string());
    assert_enforced(&daemon, "busy-0", &["cpu 300m by cgroup v"]);
    let pid = daemon.running("busy-0").pid;
    let uid = daemon.instance("busy-0").uid().to_owned();
    // By the kernel's own account, which is up to date when it is read.
    let spent = || -> f64 {
        let tree = proc::of_instance(&uid, daemon.cgroup().as_deref());
        tree.iter().filter_map(|process| proc::cpu_seconds(process.pid)).sum()
    };
    wait_until("both shells to be busy", || {
        let tree = proc::of_instance(&uid, daemon.cgroup().as_deref());
        let busy = tree.iter().filter(|process| proc::cpu_seconds(process.pid) > Some(0.05)).count();
        (tree.len() == 2 && busy == 2).then_some(())
    });
    let stat = || -> Vec<f64> {
        let text = read(&group(pid, "cpu").join("cpu.stat"));
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap();
        vec![field("nr_periods "), field("nr_throttled ")]
    };
    // Before and after each reading, so that whatever delays this thread cannot turn right into wrong.
    let read = || (Instant::now(), spent(), Instant::now());
    let (periods, (first, before, second)) = (stat(), read());
    // The measurement itself: the longer, the less its ends matter.
    std::thread::sleep(Duration::from_secs(6));
    let ((third, after, fourth), later) = (read(), stat());
    let at_least = (after - before) / fourth.duration_since(first).as_secs_f64();
    let used = (after - before) / third.duration_since(second).as_secs_f64();
    assert!(at_least <= 0.33, "{at_least} cores");
    // How much it got of what it may have is the machine's affair, and on a busy one it is never throttled; in a period
    // it was throttled in, it got all.
    let throttled = (later[1] - periods[1]) / (later[0] - periods[0]).max(1.0);
    assert!(used >= 0.27 * throttled, "{used} cores, throttled in {throttled} of the periods");
}

#[test]
fn another_value_takes_effect_without_a_restart_and_all_of_it_survives_the_daemon() {
    const TEST: &str = "another_value_takes_effect_without_a_restart_and_all_of_it_survives_the_daemon";
    if !can_limit() {
        return skipped(TEST, NEEDS);
    }
    let daemon = Daemon::start();
    let apply = |limits: Value| daemon.apply(&limited("web", "exec sleep 100000", &limits).to_string());
    apply(json!({"memory": "64Mi", "processes": 30, "openFiles": 100, "nice": 5}));
    let first = daemon.running("web-0");
    assert_enforced(
        &daemon,
        "web-0",
        &["memory 64Mi by cgroup v", "processes 30 by cgroup v", "openFiles 100 by rlimit", "nice 5 by setpriority"],
    );
    let limits = read(Path::new(&format!("/proc/{}/limits", first.pid)));
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(files.split_whitespace().skip(3).take(2).collect::<Vec<_>>(), ["100", "100"]);

    apply(json!({"memory": "96Mi", "processes": 40, "openFiles": 100, "nice": 5}));
    assert_enforced(&daemon, "web-0", &["memory 96Mi", "processes 40"]);
    assert_eq!(daemon.running("web-0"), first, "it was restarted");
    assert_eq!(read(&group(first.pid, "pids").join("pids.max")).trim(), "40");

    daemon.kill_controller();
    daemon.answers();
    assert_enforced(&daemon, "web-0", &["memory 96Mi", "processes 40"]);
    daemon.kill_keeper();
    wait_until("the next keeper", || daemon.keeper());
    daemon.answers();
    apply(json!({"memory": "96Mi", "processes": 50, "openFiles": 100, "nice": 5}));
    assert_enforced(&daemon, "web-0", &["memory 96Mi", "processes 50"]);
    let old = daemon.controller();
    daemon.ok(&["upgrade", "--binary", daemon.binary().to_str().unwrap()]);
    wait_until("the next controller", || {
        let new = daemon.controller().filter(|new| Some(*new) != old)?;
        (daemon.info()?["controllerPid"] == new.pid).then_some(())
    });
    apply(json!({"memory": "96Mi", "processes": 60, "openFiles": 100, "nice": 5}));
    assert_enforced(&daemon, "web-0", &["memory 96Mi", "processes 60"]);
    assert_eq!(daemon.running("web-0"), first, "it was restarted");

    let group = group(first.pid, "memory");
    apply(json!({"memory": "96Mi", "processes": 60, "openFiles": 200, "nice": 5}));
    wait_until("it to be replaced", || (daemon.instance("web-0").pid()? != first.pid).then_some(()));
    daemon.ok(&["delete", "process/web"]);
    wait_until("its groups to go", || (!group.exists()).then_some(()));
    assert!(!proc::lives(first));
}

#[test]
fn without_cgroups_the_condition_says_so_or_it_is_refused() {
    let daemon = Setup::default().args(&["--cgroups", "none"]).start();
    let object = limited("web", "exec sleep 100000", &json!({"memory": "64Mi", "openFiles": 100}));
    daemon.apply(&object.to_string());
    let refused = daemon.phase("web-0", "Failed");
    assert_eq!(refused.reason(), "LimitsNotEnforceable", "{}", refused.0["status"]);
    let why = refused.0["status"]["message"].as_str().unwrap();
    assert!(why.contains("memory: the daemon runs with --cgroups none") && why.contains("BestEffort"), "{why}");

    daemon.apply(&manifest::with(object, "spec.resources.enforcement", json!("BestEffort")).to_string());
    daemon.running("web-0");
    let (status, reason, message) = wait_until("the condition", || enforced(&daemon, "web-0"));
    assert_eq!((&*status, &*reason), ("False", "PartlyEnforced"), "{message}");
    assert!(message.contains("memory 64Mi not enforced: the daemon runs with --cgroups none"), "{message}");
    assert!(message.contains("openFiles 100 by rlimit"), "{message}");
    wait_until("it to be told", || {
        daemon.ok(&["events", "--for", "instance/web-0"]).contains("LimitsNotEnforced").then_some(())
    });
}

#[test]
fn limits_that_make_no_sense_are_refused_at_apply() {
    let daemon = Daemon::start();
    let object = limited("web", "true", &json!({"memory": "1Ki", "cpu": "1m"}));
    fs::write(daemon.path().join("web.yaml"), object.to_string()).unwrap();
    let said = daemon.fails(1, &["apply", "-f", "web.yaml"]);
    assert!(said.contains("at least 1Mi") && said.contains("at least 10m"), "{said}");
}
