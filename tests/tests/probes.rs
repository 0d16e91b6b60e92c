//! What probes find, and what follows: readiness gates and never kills, liveness restarts by policy, a start is bounded.

use std::fs;

use ostler_tests::{Daemon, Instance, Setup, manifest, proc, wait_until};
use serde_json::{Value, json};

/// A probe that looks often.
fn often(mut probe: Value) -> Value {
    let usual = json!({"interval": "200ms", "timeout": "10s", "jitter": 0, "failureThreshold": 2});
    for (name, value) in usual.as_object().expect("an object") {
        if probe.get(name).is_none() {
            probe[name] = value.clone();
        }
    }
    probe
}

fn exec(words: &[&str]) -> Value {
    often(json!({"exec": {"command": words}}))
}

/// The status of a probe of an instance.
fn probe<'a>(instance: &'a Instance, kind: &str) -> &'a Value {
    &instance.0["status"]["probes"][kind]
}

fn condition<'a>(object: &'a Value, kind: &str) -> &'a Value {
    let all = object["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter().find(|condition| condition["type"] == kind).unwrap_or(&Value::Null)
}

#[test]
fn readiness_gates_and_never_kills() {
    let daemon = Daemon::start();
    let mut object = manifest::sleeper("web");
    object["spec"]["readinessProbe"] = exec(&["test", "-e", "ready"]);
    daemon.apply(&object.to_string());
    let process = daemon.running("web-0");
    let instance = daemon.instance_when("web-0", "not ready", |it| probe(it, "readiness")["verdict"] == "Failed");
    assert!(!instance.ready());
    assert_eq!(condition(&instance.0, "Ready")["reason"], "ReadinessProbeFailed");
    assert_eq!(probe(&instance, "readiness")["failures"], 2, "exactly the threshold");
    let error = daemon.cli(&["wait", "process/web", "--for=condition=Ready", "--timeout=1s"]);
    assert_ne!(error.code, 0, "{}", error.stdout);
    for _ in 0..2 {
        fs::write(daemon.path().join("ready"), "").unwrap();
        daemon.ok(&["wait", "process/web", "--for=condition=Ready", "--timeout=60s"]);
        daemon.instance_when("web-0", "ready", |it| it.ready() && condition(&it.0, "Healthy")["reason"] == "Healthy");
        fs::remove_file(daemon.path().join("ready")).unwrap();
        daemon.instance_when("web-0", "not ready", |it| !it.ready() && it.phase() == "Running");
        daemon.ok(&["wait", "process/web", "--for=condition=Ready=False", "--timeout=60s"]);
    }
    let instance = daemon.instance("web-0");
    assert_eq!((daemon.running("web-0"), instance.restarts()), (process, 0));
    // Other timing is no reason to start anything again.
    fs::write(daemon.path().join("ready"), "").unwrap();
    object["spec"]["readinessProbe"]["interval"] = json!("150ms");
    daemon.apply(&object.to_string());
    daemon.instance_when("web-0", "ready", Instance::ready);
    assert_eq!(daemon.running("web-0"), process);
    let described = daemon.ok(&["describe", "instance/web-0"]);
    assert!(described.contains("readiness"), "{described}");
}

/// Twenty megabytes, and only then the line that matters.
const TALKER: &str =
    "yes 'nothing of interest, again and again, for a long time' | head -c 20000000; echo; echo ready; sleep 100000";

#[test]
fn probes_given_later_and_controllers_that_begin_later_judge_what_has_long_been_there() {
    let daemon = Daemon::start();
    let mut talker = manifest::shell("talker", TALKER);
    talker["spec"]["startupProbe"] = often(json!({"logLine": {"pattern": "^ready$"}, "failureThreshold": 1000}));
    // Failed as soon as the log says nothing of it, or is taken to.
    let line = json!({"pattern": "^ready$", "failurePattern": "^fatal"});
    talker["spec"]["livenessProbe"] = often(json!({"logLine": line, "failureThreshold": 1}));
    let mut old = manifest::sleeper("old");
    daemon.apply(&manifest::all(&[talker, old.clone()]));
    daemon.instance_when("talker-0", "healthy", |it| it.ready() && probe(it, "liveness")["verdict"] == "Healthy");
    daemon.instance_when("old-0", "ready", Instance::ready);
    let (talks, runs) = (daemon.running("talker-0"), daemon.running("old-0"));

    // It has long been up: what is asked of those who start is not asked of it.
    old["spec"]["startupProbe"] = often(json!({"exec": {"command": ["false"]}, "failureThreshold": 1}));
    // Its commands are in its cgroup, although there was no probe when it was started.
    let grouped = daemon.cgroup().is_some();
    let script = if grouped { "grep -q /probe- /proc/self/cgroup" } else { "true" };
    old["spec"]["readinessProbe"] = exec(&["sh", "-c", script]);
    daemon.apply(&old.to_string());
    let instance = daemon.instance_when("old-0", "probed", |it| probe(it, "readiness")["verdict"] == "Healthy");
    assert_eq!((probe(&instance, "startup")["passed"].as_bool(), instance.restarts()), (Some(true), 0));

    daemon.kill_controller();
    daemon.answers();
    fs::write(daemon.path().join("asked"), "").unwrap();
    old["spec"]["readinessProbe"] = exec(&["test", "!", "-e", "asked"]);
    daemon.apply(&old.to_string());
    daemon.instance_when("old-0", "checked by the next controller", |it| !it.ready());
    assert_eq!((daemon.running("talker-0"), daemon.running("old-0")), (talks, runs));
    assert_eq!(daemon.instance("talker-0").restarts(), 0);
}

#[test]
fn liveness_restarts_by_policy_and_gives_up_like_any_failure() {
    let daemon = Daemon::start();
    let mut object = manifest::sleeper("web");
    object["spec"]["livenessProbe"] = exec(&["test", "!", "-e", "sick"]);
    object["spec"]["backoff"] = json!({"initial": "1ms", "factor": 1, "jitter": 0, "maxRetries": 2});
    daemon.apply(&object.to_string());
    daemon.instance_when("web-0", "healthy", |it| probe(it, "liveness")["verdict"] == "Healthy");
    assert!(daemon.instance("web-0").ready());
    fs::write(daemon.path().join("sick"), "").unwrap();
    let instance = daemon.phase("web-0", "Failed");
    assert_eq!(instance.reason(), "RetriesExhausted");
    assert_eq!((instance.restarts(), instance.last_exit()["cause"].as_str()), (2, Some("Liveness")));
    assert_eq!(instance.last_exit()["signal"], 15, "the ordinary stop: {:?}", instance.last_exit());
    assert_eq!(probe(&instance, "liveness")["failures"], 2, "exactly the threshold");
    fs::remove_file(daemon.path().join("sick")).unwrap();
    daemon.ok(&["start", "process/web"]);
    daemon.instance_when("web-0", "healthy", |it| it.ready() && probe(it, "liveness")["verdict"] == "Healthy");
}

#[test]
fn a_hung_start_is_bounded_and_holds_the_others_back() {
    let daemon = Daemon::start();
    let mut hung = manifest::sleeper("hung");
    hung["spec"]["startupProbe"] = often(json!({"exec": {"command": ["false"]}, "failureThreshold": 3}));
    hung["spec"]["restartPolicy"] = json!("Never");
    let mut slow = manifest::shell("slow", "until [ -e up ]; do sleep 0.1; done; sleep 100000");
    slow["spec"]["startupProbe"] = often(json!({"exec": {"command": ["test", "-e", "up"]}, "failureThreshold": 1000}));
    // Would end it, were it not held back.
    slow["spec"]["livenessProbe"] = often(json!({"exec": {"command": ["test", "-e", "up"]}, "failureThreshold": 1}));
    daemon.apply(&manifest::all(&[hung, slow]));
    let instance = daemon.phase("hung-0", "Failed");
    assert_eq!(instance.last_exit()["cause"], "Startup");
    assert_eq!(probe(&instance, "startup")["checks"], 3, "exactly the threshold");
    let instance =
        daemon.instance_when("slow-0", "held back", |it| condition(&it.0, "Ready")["reason"] == "StartupProbePending");
    assert!(!instance.ready() && instance.restarts() == 0, "{:?}", instance.0["status"]);
    fs::write(daemon.path().join("up"), "").unwrap();
    let instance =
        daemon.instance_when("slow-0", "up", |it| it.ready() && probe(it, "liveness")["verdict"] == "Healthy");
    assert_eq!(instance.restarts(), 0);
}

const SPEAKER: &str = "import os, socket, time\n\
    s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n\
    a = os.environ['NOTIFY_SOCKET']\n\
    a = '\\0' + a[1:] if a[0] == '@' else a\n\
    say = lambda text: s.sendto(text.encode(), a)\n\
    said = None\n\
    while True:\n\
    \x20   text = open('say').read() if os.path.exists('say') else ''\n\
    \x20   if text and text != said:\n\
    \x20       said = text\n\
    \x20       say(text)\n\
    \x20   time.sleep(0.05)\n";

#[test]
fn what_a_process_says_of_itself_is_heard_and_remembered() {
    for cgroups in ["auto", "none"] {
        let daemon = Setup::default().args(&["--cgroups", cgroups]).start();
        let mut object = manifest::process("speaker", &json!({"command": ["python3", "-c", SPEAKER]}));
        object["spec"]["readinessProbe"] = often(json!({"notify": {}}));
        daemon.apply(&object.to_string());
        daemon.instance_when("speaker-0", "silent", |it| probe(it, "readiness")["verdict"] == "Failed" && !it.ready());
        let say = |text: &str| {
            fs::write(daemon.path().join("new"), text).unwrap();
            fs::rename(daemon.path().join("new"), daemon.path().join("say")).unwrap();
        };
        say("READY=1\nSTATUS=at your service");
        let instance = daemon.instance_when("speaker-0", "ready", Instance::ready);
        assert_eq!(instance.0["status"]["probes"]["notify"]["text"], "at your service");
        // It is not going to say so again.
        daemon.kill_controller();
        daemon.answers();
        say("STATUS=still here");
        let instance = daemon.instance_when("speaker-0", "heard by the next controller", |it| {
            it.0["status"]["probes"]["notify"]["text"] == "still here"
        });
        assert!(instance.ready() && instance.restarts() == 0, "{:?}", instance.0["status"]);
        say("RELOADING=1");
        daemon.instance_when("speaker-0", "reloading", |it| !it.ready());
        say("READY=1");
        daemon.instance_when("speaker-0", "ready again", Instance::ready);
    }
}

#[test]
fn every_kind_finds_out_by_itself() {
    let daemon = Daemon::start();
    let server = |name: &str| {
        let command = ["python3", "-u", "-m", "http.server", "--bind", "127.0.0.1", "$(PORT)"];
        manifest::process(name, &json!({"command": command, "ports": [{"name": "http", "port": "auto"}]}))
    };
    let mut web = server("web");
    web["spec"]["readinessProbe"] =
        often(json!({"httpGet": {"port": "http", "path": "/health", "bodyMatch": "^(fine|well)$"}}));
    let mut tcp = server("tcp");
    tcp["spec"]["readinessProbe"] = often(json!({"tcpSocket": {"port": "http", "host": "localhost"}}));
    let mut line =
        manifest::shell("line", "until [ -e health ]; do sleep 0.1; done; echo; echo up and well; sleep 100000");
    line["spec"]["readinessProbe"] = often(json!({"logLine": {"pattern": "^up .*well$", "stream": "Stdout"}}));
    let mut alive = manifest::sleeper("alive");
    alive["spec"]["readinessProbe"] = often(json!({"process": {}}));
    let mut far = manifest::sleeper("far");
    far["spec"]["readinessProbe"] = often(json!({"tcpSocket": {"port": 80, "host": "192.0.2.1"}}));
    far["spec"]["livenessProbe"] = often(json!({"httpGet": {"port": 80, "host": "192.0.2.1"}}));
    daemon.apply(&manifest::all(&[web, tcp, line, alive, far]));
    daemon.instance_when("tcp-0", "ready", Instance::ready);
    daemon.instance_when("web-0", "not found", |it| probe(it, "readiness")["verdict"] == "Failed");
    daemon.instance_when("line-0", "silent", |it| probe(it, "readiness")["verdict"] == "Failed");
    let web = daemon.running("web-0");
    fs::write(daemon.path().join("health"), "fine").unwrap();
    daemon.instance_when("web-0", "ready", Instance::ready);
    daemon.instance_when("line-0", "ready", Instance::ready);
    fs::write(daemon.path().join("health"), "ill").unwrap();
    daemon.instance_when("web-0", "ill", |it| !it.ready());
    fs::write(daemon.path().join("health"), "well").unwrap();
    daemon.instance_when("web-0", "well", Instance::ready);
    fs::remove_file(daemon.path().join("health")).unwrap();
    let instance = daemon.instance_when("web-0", "not found", |it| !it.ready());
    let said = probe(&instance, "readiness")["output"].to_string();
    assert!(said.contains("404"), "{said}");
    assert_eq!(daemon.running("web-0"), web);

    daemon.instance_when("alive-0", "ready", Instance::ready);
    let alive = daemon.running("alive-0");
    proc::signal(alive, libc::SIGSTOP);
    daemon.instance_when("alive-0", "stopped", |it| !it.ready());
    proc::signal(alive, libc::SIGCONT);
    daemon.instance_when("alive-0", "going on", Instance::ready);

    // What may not be looked at is nobody's fault.
    let far = daemon.instance_when("far-0", "refused", |it| {
        probe(it, "liveness")["output"].as_str().is_some_and(|said| said.contains("--probe-allow"))
    });
    assert_eq!(probe(&far, "liveness")["verdict"], "Unknown");
    assert!(!far.ready() && far.restarts() == 0);
}

#[test]
fn commands_leave_nothing_behind_also_when_the_controller_is_killed() {
    for cgroups in ["auto", "none"] {
        let daemon = Setup::default().args(&["--cgroups", cgroups]).start();
        let mut object = manifest::sleeper("web");
        let script = "setsid sleep 4242 & setsid sh -c 'sleep 4242; true' & echo begun >> begun; sleep 4242";
        object["spec"]["livenessProbe"] = json!({"exec": {"command": ["sh", "-c", script]}, "interval": "200ms", "timeout": "1s",
                   "failureThreshold": 1000});
        daemon.apply(&object.to_string());
        let process = daemon.running("web-0");
        let begun = || fs::read_to_string(daemon.path().join("begun")).unwrap_or_default().lines().count();
        wait_until("some checks", || (begun() >= 3).then_some(()));
        let before = begun();
        daemon.kill_controller();
        daemon.answers();
        wait_until("the next controller to check", || (begun() > before + 1).then_some(()));
        object["spec"]["livenessProbe"] = Value::Null;
        daemon.apply(&object.to_string());
        wait_until("no command to be left", || {
            let left = proc::all().into_iter().filter(|pid| {
                let arguments = proc::arguments(*pid);
                arguments.iter().any(|word| word == "4242")
                    && proc::around(daemon.path()).iter().any(|it| it.pid == *pid)
            });
            (left.count() == 0).then_some(())
        });
        assert_eq!(daemon.running("web-0"), process);
    }
}
