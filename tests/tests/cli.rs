//! What scripts rely on: exit codes, formats, and which stream says what.

use std::fs;

use ostler_tests::{Daemon, Instance, manifest, proc, wait_until};
use serde_json::{Value, json};

#[test]
fn exit_codes_are_what_is_documented() {
    let daemon = Daemon::start();
    daemon.apply_ready(&manifest::sleeper("web").to_string());
    for (code, args) in [
        (0, vec!["get", "processes"]),
        (0, vec!["get", "process", "web"]),
        (1, vec!["get", "process", "nope"]),
        (1, vec!["delete", "process", "nope"]),
        (0, vec!["delete", "process", "nope", "--ignore-not-found"]),
        (1, vec!["logs", "nope-0"]),
        (1, vec!["restart", "process/nope"]),
        (1, vec!["scale", "process/nope", "--replicas=1"]),
        (1, vec!["signal", "HUP", "instance/nope-0"]),
        (1, vec!["describe", "process", "nope"]),
        (1, vec!["wait", "process/nope", "--for=condition=Ready", "--timeout=60s"]),
        (4, vec!["wait", "process/web", "--for=condition=Ready=False", "--timeout=200ms"]),
        (4, vec!["wait", "process/web", "--for=delete", "--timeout=200ms"]),
        (0, vec!["wait", "process/nope", "--for=delete", "--timeout=60s"]),
        (0, vec!["wait", "instance/web-0", "--for=jsonpath={.status.phase}=Running", "--timeout=60s"]),
        (2, vec!["gte", "processes"]),
        (2, vec!["get"]),
        (2, vec!["get", "procesess"]),
        (2, vec!["apply"]),
        (2, vec!["scale", "process/web"]),
        (2, vec!["wait", "process/web", "--for=nonsense"]),
        (1, vec!["apply", "-f", "no-such-file.yaml"]),
        (0, vec!["version"]),
        (0, vec!["explain", "process.spec.stop"]),
        (0, vec!["completion", "bash"]),
        (0, vec!["--help"]),
    ] {
        let output = daemon.cli(&args);
        assert_eq!(output.code, code, "{args:?}: {}{}", output.stdout, output.stderr);
        if code != 0 {
            assert!(!output.stderr.is_empty() && output.stdout.is_empty(), "{args:?}: data and message are mixed");
        }
    }
}

#[test]
fn diff_says_what_would_restart_and_changes_nothing() {
    let daemon = Daemon::start();
    let object = manifest::sleeper("web");
    daemon.apply_ready(&object.to_string());
    let before = daemon.running("web-0");
    // The status may still be written after the wait for it to be ready.
    let declared = || {
        let web = daemon.get("process", "web");
        (web["spec"].clone(), web["metadata"]["generation"].clone(), web["metadata"]["managedFields"].clone())
    };
    let version = declared();
    let file = |object: &Value| fs::write(daemon.path().join("web.yaml"), object.to_string()).unwrap();
    file(&object);
    assert_eq!(daemon.cli(&["diff", "-f", "web.yaml"]).code, 0);
    file(&manifest::with(object.clone(), "spec.env", json!([{"name": "A", "value": "b"}])));
    let output = daemon.cli(&["diff", "-f", "web.yaml"]);
    assert_eq!(output.code, 1, "{}", output.stderr);
    let said = output.stdout + &output.stderr;
    assert!(said.contains("web-0") && said.contains("restart") && said.contains("spec.env"), "{said}");
    fs::write(daemon.path().join("web.yaml"), "kind: Process\n").unwrap();
    assert!(daemon.cli(&["diff", "-f", "web.yaml"]).code > 1);
    file(&manifest::with(object, "spec.replicas", json!(3)));
    let dry = daemon.ok(&["apply", "-f", "web.yaml", "--dry-run"]);
    assert!(dry.contains("process/web configured (dry run)"), "{dry}");
    assert_eq!(declared(), version);
    assert_eq!(daemon.running("web-0"), before);
    assert_eq!(daemon.instances().len(), 1);
}

#[test]
fn instances_have_the_fields_that_others_build_on() {
    let daemon = Daemon::start();
    let mut failing = manifest::shell("code", "exit 3");
    failing["spec"]["restartPolicy"] = json!("Never");
    let mut killed = manifest::shell("signal", "kill -9 $$$$");
    killed["spec"]["restartPolicy"] = json!("Never");
    daemon.apply(&manifest::all(&[manifest::sleeper("web"), failing, killed]));
    daemon.instance_when("web-0", "ready", Instance::ready);
    daemon.phase("code-0", "Failed");
    daemon.phase("signal-0", "Failed");
    let list: Value = serde_json::from_str(&daemon.ok(&["get", "instances", "-o", "json"])).unwrap();
    assert_eq!((&list["apiVersion"], &list["kind"]), (&json!("v1"), &json!("List")));
    let item = |name: &str| {
        let items = list["items"].as_array().unwrap();
        items.iter().find(|item| item["metadata"]["name"] == name).unwrap_or_else(|| panic!("no {name}")).clone()
    };
    let web = item("web-0");
    assert_eq!(web["kind"], "Instance");
    assert_eq!(web["metadata"]["namespace"], "default");
    let owner = &web["metadata"]["ownerReferences"][0];
    assert_eq!((&owner["kind"], &owner["name"]), (&json!("Process"), &json!("web")));
    assert_eq!(owner["uid"], daemon.get("process", "web")["metadata"]["uid"]);
    let status = &web["status"];
    assert_eq!(status["phase"], "Running");
    assert_eq!(status["ready"], true);
    assert_eq!(status["restarts"], 0);
    let pid = status["pid"].as_i64().expect("a pid") as i32;
    wait_until("the program", || (proc::arguments(pid)[0] == "sleep").then_some(()));
    let time = |value: &Value| {
        let text = value.as_str().unwrap_or_else(|| panic!("{value} is no time")).to_owned();
        assert!(text.len() >= 20 && text.ends_with('Z') && text.as_bytes()[10] == b'T', "{text} is not RFC 3339");
    };
    time(&status["startedAt"]);
    let code = item("code-0")["status"]["lastExit"].clone();
    assert_eq!(code["code"], 3);
    assert!(code["signal"].is_null());
    time(&code["at"]);
    let signal = item("signal-0")["status"]["lastExit"].clone();
    assert_eq!(signal["signal"], 9);
    assert!(signal["code"].is_null());
    time(&signal["at"]);
}

#[test]
fn objects_can_be_had_in_every_format() {
    let daemon = Daemon::start();
    let labelled = manifest::with(manifest::sleeper("web"), "metadata.labels", json!({"tier": "front"}));
    daemon.apply_ready(&manifest::all(&[labelled, manifest::sleeper("db")]));
    assert_eq!(daemon.ok(&["get", "processes", "-o", "name"]), "process/db\nprocess/web\n");
    assert_eq!(daemon.ok(&["get", "proc", "-l", "tier=front", "-o", "name"]), "process/web\n");
    assert_eq!(daemon.ok(&["get", "processes", "-o", "jsonpath={.items[*].metadata.name}"]).trim(), "db web");
    let table = daemon.ok(&["get", "instances"]);
    assert!(table.starts_with("NAME") && table.contains("web-0") && table.contains("Running"), "{table}");
    assert!(!table.contains('\u{1b}'), "colours where nobody looks: {table:?}");
    let wide = daemon.ok(&["get", "instances", "-o", "wide"]);
    assert!(wide.lines().next().unwrap().len() > table.lines().next().unwrap().len(), "{wide}");
    // What is printed can be applied, and changes nothing.
    let yaml = daemon.ok(&["get", "process", "web", "-o", "yaml"]);
    assert_eq!(daemon.apply(&yaml), "process/web unchanged\n");
    let described = daemon.ok(&["describe", "process", "web"]);
    assert!(described.contains("web-0") && described.contains("sleep"), "{described}");
    wait_until("the start to be told", || {
        let events = daemon.ok(&["events"]);
        (events.contains("Started") && events.contains("instance/web-0")).then_some(())
    });
    wait_until("the usage", || daemon.ok(&["top", "instances"]).contains("web-0").then_some(()));
}

#[test]
fn signals_reach_the_leader_or_the_tree() {
    let daemon = Daemon::start();
    let script = "trap 'echo leader' USR1; sh -c 'trap \"echo child\" USR1; echo up; while :; do sleep 0.05; done' &
        while :; do sleep 0.05; done";
    daemon.apply(&manifest::shell("family", script).to_string());
    daemon.running("family-0");
    let text = || String::from_utf8_lossy(&daemon.output("family-0", "stdout")).into_owned();
    wait_until("the child to listen", || text().contains("up").then_some(()));
    daemon.ok(&["signal", "USR1", "instance/family-0"]);
    wait_until("the leader to hear it", || text().contains("leader").then_some(()));
    assert!(!text().contains("child"));
    // A sleep of the shells has no handler: it ends, and its shell goes on.
    daemon.ok(&["signal", "USR1", "process/family", "--tree"]);
    wait_until("the child to hear it", || text().contains("child").then_some(()));
    daemon.running("family-0");
    daemon.fails(2, &["signal", "NONSENSE", "process/family"]);
    daemon.ok(&["stop", "process/family"]);
    let error = daemon.fails(1, &["signal", "HUP", "instance/family-0"]);
    assert!(error.contains("Stopped"), "an illegal command names the phase: {error}");
}

#[test]
fn watching_shows_changes_through_a_restart_of_the_daemon() {
    let daemon = Daemon::start();
    daemon.apply_ready(&manifest::sleeper("web").to_string());
    let file = daemon.path().join("watched");
    let mut watcher = daemon
        .client()
        .args(["get", "instances", "-w", "-o", "name"])
        .stdin(std::process::Stdio::null())
        .stdout(fs::File::create(&file).unwrap())
        .spawn()
        .unwrap();
    let watched = || fs::read_to_string(&file).unwrap_or_default();
    wait_until("the first line", || watched().contains("instance/web-0").then_some(()));
    daemon.kill_controller();
    daemon.answers();
    daemon.apply(&manifest::sleeper("late").to_string());
    wait_until("the new instance", || watched().contains("instance/late-0").then_some(()));
    let _ = watcher.kill();
    let _ = watcher.wait();
}
