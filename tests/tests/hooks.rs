//! Hooks around the life of a process: their order, what their failures do, and that nothing is left of them.

use std::fs;

use ostler_tests::{Daemon, Instance, Setup, manifest, proc, wait_until};
use serde_json::{Value, json};

fn exec(script: &str) -> Value {
    json!({"exec": {"command": ["sh", "-c", script]}, "timeout": "60s"})
}

fn hooked(mut object: Value, hooks: &[(&str, Value)]) -> Value {
    for (name, hook) in hooks {
        object["spec"]["lifecycle"][name] = hook.clone();
    }
    object
}

fn text(daemon: &Daemon, file: &str) -> String {
    fs::read_to_string(daemon.path().join(file)).unwrap_or_default()
}

fn lines(daemon: &Daemon, file: &str) -> usize {
    text(daemon, file).lines().count()
}

fn touch(daemon: &Daemon, file: &str) {
    fs::write(daemon.path().join(file), "").unwrap();
}

/// The processes of this daemon that have this word among their arguments.
fn with_word(daemon: &Daemon, word: &str) -> usize {
    let ours = proc::around(daemon.path());
    ours.iter().filter(|it| proc::arguments(it.pid).iter().any(|argument| argument == word)).count()
}

fn why_not_ready(instance: &Instance) -> &Value {
    let all = instance.0["status"]["conditions"].as_array().expect("there are some");
    &all.iter().find(|condition| condition["type"] == "Ready").expect("it is published")["reason"]
}

fn succeeded<'a>(instance: &'a Instance, hook: &str) -> &'a Value {
    &instance.0["status"]["hooks"][hook]["succeeded"]
}

/// Says which hook it is and what it was told.
const TRACE: &str = "echo $OSTLER_HOOK ${OSTLER_REASON:--} ${OSTLER_EXIT_CODE:--} ${OSTLER_EXIT_SIGNAL:--} >> trace";
/// Says when it starts and that it was asked to end.
const TRACED: &str = "trap 'echo term >> trace; exit 0' TERM; echo start >> trace; while :; do sleep 0.05; done";

#[test]
fn hooks_run_in_their_order_around_every_life() {
    for cgroups in ["auto", "none"] {
        let daemon = Setup::default().args(&["--cgroups", cgroups]).start();
        let post_start =
            format!("until grep -q start trace && [ -e go ]; do sleep 0.05; done; kill -0 $OSTLER_PID && {TRACE}");
        let hooks = [
            ("preStart", exec(TRACE)),
            ("postStart", exec(&post_start)),
            ("preStop", exec(&format!("kill -0 $OSTLER_PID && {TRACE}"))),
            ("postStop", exec(TRACE)),
        ];
        let mut object = hooked(manifest::shell("web", TRACED), &hooks);
        object["spec"]["backoff"] = json!({"initial": "1ms", "factor": 1, "jitter": 0});
        daemon.apply(&object.to_string());
        let instance = daemon.phase("web-0", "Running");
        assert_eq!((instance.ready(), why_not_ready(&instance)), (false, &json!("PostStartPending")));
        touch(&daemon, "go");
        daemon.instance_when("web-0", "ready", Instance::ready);
        let process = daemon.running("web-0");
        // Another hook is no reason to start anything again.
        object["spec"]["lifecycle"]["preStart"]["timeout"] = json!("50s");
        daemon.apply(&object.to_string());
        daemon.ok(&["wait", "process/web", "--for=condition=Ready", "--timeout=60s"]);
        assert_eq!(daemon.running("web-0"), process);
        daemon.ok(&["stop", "process/web"]);
        daemon.phase("web-0", "Stopped");
        let first = "preStart - - -\nstart\npostStart - - -\npreStop Stopped - -\nterm\npostStop Stopped 0 -\n";
        assert_eq!(text(&daemon, "trace"), first);

        fs::remove_file(daemon.path().join("trace")).unwrap();
        daemon.ok(&["start", "process/web"]);
        daemon.instance_when("web-0", "ready", Instance::ready);
        proc::signal(daemon.running("web-0"), libc::SIGKILL);
        daemon.instance_when("web-0", "started again", |it| it.ready() && it.last_exit()["signal"] == 9);
        daemon.ok(&["delete", "process/web", "--timeout=60s"]);
        let crash = "preStart - - -\nstart\npostStart - - -\npostStop Crashed - 9\n";
        let last = first.replace("Stopped", "Deleted");
        assert_eq!(text(&daemon, "trace"), format!("{crash}{last}"), "no preStop for what has ended by itself");
    }
}

#[test]
fn failures_of_hooks_do_what_is_declared_and_tell_no_secrets() {
    let daemon = Daemon::start();
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "token"},
        "stringData": {"TOKEN": "canary-in-a-hook", "KEY": "canary-in-a-file\n"}});
    let never = |object: Value| manifest::with(object, "spec.restartPolicy", json!("Never"));
    let ignored = |script: &str| {
        let mut hook = exec(script);
        hook["failurePolicy"] = json!("Ignore");
        hook
    };
    let mut before = hooked(
        manifest::sleeper("before"),
        &[(
            "preStart",
            exec(
                "cat $OSTLER_FILES_DIR/key $OSTLER_FILES_DIR/key; test -e right || { echo $TOKEN, out of luck >&2; exit 3; }",
            ),
        )],
    );
    before["spec"]["files"] = json!([{"path": "key", "secretRef": {"name": "token", "key": "KEY"}}]);
    before["spec"]["envFrom"] = json!([{"secretRef": {"name": "token"}}]);
    before["spec"]["backoff"] = json!({"initial": "1ms", "factor": 1, "jitter": 0, "maxRetries": 1});
    let after = never(hooked(manifest::sleeper("after"), &[("postStart", exec("echo not today; exit 4"))]));
    let lenient = hooked(
        manifest::sleeper("lenient"),
        &[("preStart", ignored("exit 5")), ("postStart", ignored("exit 6")), ("preStop", exec("exit 7"))],
    );
    let web = manifest::process(
        "http",
        &json!({"command": ["python3", "-u", "-m", "http.server", "--bind", "127.0.0.1", "$(PORT)"],
            "ports": [{"name": "http", "port": "auto"}],
            "readinessProbe": {"tcpSocket": {"port": "http"}, "interval": "100ms", "failureThreshold": 1000}}),
    );
    touch(&daemon, "bye");
    let get = json!({"httpGet": {"port": "http", "path": "/bye"}});
    let web = hooked(web, &[("preStop", get)]);
    daemon.apply(&manifest::all(&[secret, before, after, lenient, web]));

    let instance = daemon.phase("before-0", "Failed");
    assert_eq!((instance.reason(), instance.attempt(), instance.pid()), ("RetriesExhausted", 2, None));
    assert_eq!(instance.last_exit()["error"], "preStart hook failed: exit code 3: ***; ***; ***, out of luck");
    let why = daemon.ok(&["why", "instance/before-0"]);
    assert!(why.contains("preStart hook failed: exit code 3: ***; ***; ***, out of luck"), "{why}");
    let events = daemon.ok(&["events", "-o", "json"]);
    assert!(events.contains("PreStartFailed"), "{events}");
    let described = daemon.ok(&["describe", "instance/before-0"]);
    assert!(described.contains("preStart"), "{described}");
    for told in [&why, &events, &described, &instance.0.to_string(), &daemon.log()] {
        assert!(!told.contains("canary-in-a"), "{told}");
    }
    touch(&daemon, "right");
    daemon.ok(&["start", "process/before"]);
    let instance = daemon.instance_when("before-0", "started", Instance::ready);
    assert_eq!(instance.0["status"]["hooks"]["preStart"]["message"], "***; ***");

    let instance = daemon.phase("after-0", "Failed");
    assert_eq!((instance.reason(), instance.last_exit()["cause"].as_str()), ("PostStartFailed", Some("Startup")));
    assert!(instance.0["status"]["message"].as_str().unwrap().contains("exit code 4: not today"), "{instance:?}");
    daemon.assert_tree_gone(instance.uid());

    let instance = daemon.instance_when("lenient-0", "ready all the same", Instance::ready);
    assert_eq!(instance.restarts(), 0);
    daemon.ok(&["stop", "process/lenient"]);
    let instance = daemon.phase("lenient-0", "Stopped");
    for hook in ["preStart", "postStart", "preStop"] {
        assert_eq!(succeeded(&instance, hook), &json!(false), "{hook}");
    }

    daemon.instance_when("http-0", "ready", Instance::ready);
    daemon.ok(&["stop", "process/http"]);
    let instance = daemon.phase("http-0", "Stopped");
    assert_eq!(succeeded(&instance, "preStop"), &json!(true), "{:?}", instance.0["status"]);
    let said = String::from_utf8(daemon.output("http-0", "stderr")).unwrap();
    assert!(said.contains("GET /bye"), "{said}");
}

#[test]
fn hooks_that_hang_are_killed_with_everything_they_started() {
    hang("auto");
}

#[test]
fn hooks_that_hang_are_killed_without_cgroups_too() {
    hang("none");
}

fn hang(cgroups: &str) {
    let daemon = Setup::default().args(&["--cgroups", cgroups]).start();
    let hangs = |timeout: &str| {
        let script = "setsid sleep 4343 & setsid sh -c 'sleep 4343; true' & echo $OSTLER_HOOK $OSTLER_EXIT_SIGNAL >> begun; sleep 4343";
        let mut hook = exec(script);
        hook["timeout"] = json!(timeout);
        hook
    };
    let mut start = hooked(manifest::sleeper("start"), &[("preStart", hangs("1s"))]);
    start["spec"]["restartPolicy"] = json!("Never");
    daemon.apply(&manifest::all(&[start, manifest::sleeper("other")]));
    let instance = daemon.phase("start-0", "Failed");
    assert_eq!(instance.reason(), "PreStartFailed");
    let said = instance.last_exit()["error"].to_string();
    assert!(said.contains("not over within 1s, and killed"), "{said}");
    daemon.instance_when("other-0", "untouched by all this", Instance::ready);
    let stop = [("preStop", hangs("60s")), ("postStop", hangs("1s"))];
    let mut stop = hooked(manifest::sleeper("stop"), &stop);
    stop["spec"]["stop"] = json!({"gracePeriod": "10s"});
    daemon.apply(&stop.to_string());
    daemon.instance_when("stop-0", "ready", Instance::ready);
    daemon.ok(&["delete", "process/stop", "--timeout=60s"]);
    let ended = "preStart\npreStop\npostStop 15\n";
    assert_eq!(text(&daemon, "begun"), ended, "the signal has its part of the grace period");
    wait_until("nothing to be left of the hooks", || (with_word(&daemon, "4343") == 0).then_some(()));
}

#[test]
fn hooks_that_were_under_way_run_again_when_the_controller_dies() {
    for cgroups in ["auto", "none"] {
        let daemon = Setup::default().args(&["--cgroups", cgroups]).start();
        let wait = "setsid sleep 4444 & echo begun >> $OSTLER_HOOK; until [ -e $OSTLER_HOOK.go ]; do sleep 0.05; done";
        let hooks = ["preStart", "postStart", "preStop", "postStop"].map(|name| (name, exec(wait)));
        let mut object = hooked(manifest::shell("web", TRACED), &hooks);
        object["spec"]["stop"] = json!({"gracePeriod": "10m"});
        daemon.apply(&object.to_string());
        // The controller dies in the middle of the hook; the next one runs it once more, and nothing else is left.
        let killed_in = |hook: &str| {
            wait_until(format!("{hook} to begin"), || (lines(&daemon, hook) == 1).then_some(()));
            daemon.kill_controller();
            wait_until(format!("{hook} to begin again"), || (lines(&daemon, hook) == 2).then_some(()));
            wait_until("the first one to be gone", || (with_word(&daemon, "4444") <= 1).then_some(()));
            touch(&daemon, &format!("{hook}.go"));
        };
        killed_in("preStart");
        daemon.phase("web-0", "Running");
        let process = daemon.running("web-0");
        killed_in("postStart");
        let instance = daemon.instance_when("web-0", "ready", Instance::ready);
        assert_eq!((daemon.running("web-0"), instance.restarts()), (process, 0));
        // What was finished is remembered: this write is on disk, and so is what came before it.
        daemon.apply(&manifest::sleeper("other").to_string());
        daemon.kill_controller();
        daemon.instance_when("other-0", "started", Instance::ready);
        daemon.instance_when("web-0", "ready", Instance::ready);
        daemon.ok(&["delete", "process/web", "--wait=false"]);
        killed_in("preStop");
        killed_in("postStop");
        daemon.ok(&["wait", "process/web", "--for=delete", "--timeout=60s"]);
        for hook in ["preStart", "postStart", "preStop", "postStop"] {
            assert_eq!(lines(&daemon, hook), 2, "{hook}");
        }
        wait_until("nothing to be left of the hooks", || (with_word(&daemon, "4444") == 0).then_some(()));
        assert_eq!(text(&daemon, "trace"), "start\nterm\n");
    }
}
