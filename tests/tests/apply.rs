//! Applying manifests: what changes, what does not, and what is refused.

use std::collections::BTreeMap;

use ostler_tests::{Daemon, manifest, proc, scale, wait_until};
use serde_json::json;

/// Name, process and start time of every instance.
fn pids(daemon: &Daemon) -> BTreeMap<String, proc::Identity> {
    daemon
        .instances()
        .iter()
        .map(|instance| {
            let pid =
                instance.pid().unwrap_or_else(|| panic!("{} has no pid: {:?}", instance.name(), instance.0["status"]));
            (instance.name().to_owned(), proc::identity(pid).expect("its process lives"))
        })
        .collect()
}

/// Everything that is declared and everything that runs, with resource versions: any write shows. Settled first.
fn content(daemon: &Daemon) -> String {
    let look = || daemon.ok(&["get", "processes,instances", "-A", "-o", "yaml"]);
    wait_until("the daemon to be settled", || {
        let first = look();
        (first == look()).then_some(first)
    })
}

#[test]
fn what_is_ready_is_shown_with_its_pid_at_once() {
    let daemon = Daemon::start();
    for round in 0..50 * scale() {
        let name = format!("quick-{round}");
        daemon.apply(&manifest::sleeper(&name).to_string());
        daemon.ok(&["wait", &format!("process/{name}"), "--for=condition=Ready", "--timeout=60s"]);
        let instance = daemon.instance(&format!("{name}-0"));
        assert!(instance.phase() == "Running" && instance.ready() && instance.pid().is_some(), "{instance:?}");
        assert!(instance.0["status"]["startedAt"].is_string(), "{instance:?}");
    }
}

#[test]
fn applying_again_changes_nothing_and_editing_one_of_a_hundred_moves_only_its_pid() {
    let daemon = Daemon::start();
    let mut objects: Vec<_> = (0..100).map(|number| manifest::sleeper(&format!("p{number}"))).collect();
    daemon.apply_ready(&manifest::all(&objects));
    let before = wait_until("a hundred to run", || {
        let all = daemon.instances();
        (all.len() == 100 && all.iter().all(|it| it.pid().is_some())).then(|| pids(&daemon))
    });
    wait_until("all rollouts to be complete", || {
        let all = daemon.ok(&["get", "processes", "-o", "jsonpath={.items[*].status.currentRevision}"]);
        (all.split_whitespace().count() == 100).then_some(())
    });
    let settled = content(&daemon);

    let again = daemon.apply(&manifest::all(&objects));
    assert_eq!(again.lines().filter(|line| line.ends_with(" unchanged")).count(), 100, "{again}");
    assert_eq!(content(&daemon), settled, "something was written");
    assert_eq!(pids(&daemon), before);

    objects[42]["spec"]["env"] = json!([{"name": "CHANGED", "value": "yes"}]);
    let edited = daemon.apply(&manifest::all(&objects));
    assert_eq!(edited.lines().filter(|line| line.ends_with(" unchanged")).count(), 99, "{edited}");
    assert!(edited.contains("process/p42 configured"), "{edited}");
    let new = wait_until("p42-0 to be replaced", || {
        let instance = daemon.instance("p42-0");
        let process = proc::identity(instance.pid()?)?;
        (instance.ready() && process != before["p42-0"]).then_some(process)
    });
    // Whoever waits for an exec is woken before the kernel has laid out the new environment.
    wait_until("the changed variable", || (proc::variable(new.pid, "CHANGED")? == "yes").then_some(()));
    assert!(!proc::lives(before["p42-0"]));
    let mut expected = before;
    expected.insert("p42-0".to_owned(), new);
    assert_eq!(pids(&daemon), expected);
    let process = daemon.get("process", "p42");
    assert_eq!(process["status"]["observedGeneration"], process["metadata"]["generation"]);
}

#[test]
fn changes_that_need_no_new_process_keep_the_old_one() {
    let daemon = Daemon::start();
    let object = manifest::sleeper("web");
    daemon.apply(&object.to_string());
    let before = daemon.running("web-0");
    for (path, value) in [
        ("spec.restartPolicy", json!("OnFailure")),
        ("spec.stop", json!({"gracePeriod": "3s"})),
        ("spec.logs", json!({"maxFiles": 2})),
        ("metadata.labels", json!({"tier": "front"})),
        ("spec.replicas", json!(2)),
    ] {
        let said = daemon.apply(&manifest::with(object.clone(), path, value).to_string());
        assert!(said.contains("process/web configured"), "{path}: {said}");
        assert_eq!(daemon.running("web-0"), before, "{path}");
    }
    daemon.running("web-1");
    assert_eq!(daemon.running("web-0"), before);
}

#[test]
fn bad_manifests_are_refused_with_their_place_and_change_nothing() {
    let daemon = Daemon::start();
    daemon.apply(&manifest::sleeper("good").to_string());
    let pid = daemon.running("good-0");
    daemon.ok(&["rollout", "status", "process/good", "--timeout", "1m"]);
    let settled = content(&daemon);
    let head = "apiVersion: ostler.dev/v1\nkind: Process\nmetadata: {name: bad}\n";
    let level = |level: usize| {
        let below = if level == 0 { "x".to_owned() } else { format!("*a{}", level - 1) };
        format!("a{level}: &a{level} [{}]\n", vec![below; 10].join(", "))
    };
    let alias_bomb: String = (0..12).map(level).collect();
    for (file, text, words) in [
        ("syntax.yaml", format!("{head}spec: [unclosed\n"), vec!["syntax.yaml:"]),
        ("typo.yaml", format!("{head}spec:\n  comand: [a]\n"), vec!["typo.yaml:5:3", "did you mean \"command\""]),
        ("nested.yaml", format!("{head}spec:\n  command: [a]\n  stop:\n    gracePerod: 1s\n"), vec!["nested.yaml:7:5", "gracePeriod"]),
        ("twice.yaml", format!("{head}spec:\n  command: [a]\n  command: [b]\n"), vec!["twice.yaml:6:3"]),
        ("type.yaml", format!("{head}spec:\n  command: [a]\n  replicas: many\n"), vec!["type.yaml:6:13", "replicas"]),
        ("kind.yaml", "apiVersion: ostler.dev/v1\nkind: Proces\nmetadata: {name: bad}\n".into(), vec!["kind.yaml:2:7", "Process"]),
        ("name.yaml", "apiVersion: ostler.dev/v1\nkind: Process\nmetadata: {name: Bad_Name}\nspec: {command: [a]}\n".into(), vec!["name.yaml:3:"]),
        ("empty.yaml", format!("{head}spec:\n  command: []\n"), vec!["empty.yaml:5:"]),
        ("bomb.yaml", alias_bomb, vec!["bomb.yaml:"]),
        ("ns.yaml", "apiVersion: ostler.dev/v1\nkind: Process\nmetadata: {name: bad, namespace: nowhere}\nspec: {command: [a]}\n".into(), vec!["ns.yaml:3:", "nowhere"]),
        ("bad.json", r#"{"apiVersion": "ostler.dev/v1", "kind": "Process", "metadata": {"name": "bad"}, "spec": {"comand": ["a"]}}"#.into(), vec!["bad.json:1:", "command"]),
        (
            "many.yaml",
            format!("{}---\n{head}spec: {{comand: [a]}}\n", manifest::all(&[manifest::sleeper("one"), manifest::sleeper("two")])),
            vec!["many.yaml:", "command"],
        ),
    ] {
        std::fs::write(daemon.path().join(file), &text).unwrap();
        let error = daemon.fails(1, &["apply", "-f", file]);
        for word in words {
            assert!(error.contains(word), "{file}: no {word:?} in {error}");
        }
        assert_eq!(content(&daemon), settled, "{file} changed something");
    }
    assert_eq!(daemon.running("good-0"), pid);
    assert_eq!(daemon.instances().len(), 1);
}

#[test]
fn a_huge_file_is_refused_quickly() {
    let daemon = Daemon::start();
    let file = daemon.path().join("huge.yaml");
    std::fs::write(&file, vec![b'#'; 100 << 20]).unwrap();
    let error = daemon.fails(1, &["apply", "-f", "huge.yaml"]);
    assert!(error.contains("huge.yaml"), "{error}");
    assert!(daemon.instances().is_empty());
}

#[test]
fn clients_that_apply_at_the_same_time_lose_no_update() {
    let daemon = Daemon::start();
    // Each changes a field of its own of one object, reading first what the others wrote: the object is shared, the
    // changes are not.
    daemon.apply(&manifest::with(manifest::sleeper("shared"), "spec.replicas", json!(0)).to_string());
    std::thread::scope(|scope| {
        for client in 0..4 {
            let daemon = &daemon;
            scope.spawn(move || {
                for round in 0..10 {
                    daemon.apply(
                        &manifest::with(manifest::sleeper(&format!("own-{client}-{round}")), "spec.replicas", json!(0))
                            .to_string(),
                    );
                    let object = manifest::with(manifest::sleeper("shared"), "spec.replicas", json!(0));
                    let value = format!("{client}-{round}");
                    daemon.apply(
                        &manifest::with(object, "spec.env", json!([{"name": "LAST", "value": value}])).to_string(),
                    );
                }
            });
        }
    });
    let shared = daemon.get("process", "shared");
    // 1 for the creation, and one for each of 40 different specs: none was skipped, none was merged into another.
    assert_eq!(shared["metadata"]["generation"], 41);
    let list = daemon.ok(&["get", "processes", "-o", "name"]);
    assert_eq!(list.lines().count(), 41, "{list}");
}

#[test]
fn namespaces_hold_processes_and_take_them_along() {
    let daemon = Daemon::start();
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "staging"}});
    let inside = manifest::with(manifest::sleeper("web"), "metadata.namespace", json!("staging"));
    daemon.apply(&manifest::all(&[inside, namespace, manifest::sleeper("web")]));
    daemon.running("web-0");
    daemon.ok(&["wait", "process/web", "-n", "staging", "--for=condition=Ready", "--timeout=60s"]);
    let other = wait_until("the other web-0 to run", || {
        let found = daemon.instances().into_iter().find(|it| it.0["metadata"]["namespace"] == "staging")?;
        proc::identity(found.pid()?)
    });
    let own = daemon.running("web-0");
    assert_ne!(own, other);
    daemon.ok(&["delete", "namespace/staging", "--timeout", "60s"]);
    assert!(!proc::lives(other));
    assert_eq!(daemon.running("web-0"), own);
    assert_eq!(daemon.instances().len(), 1);
    let error = daemon.fails(1, &["get", "namespace", "staging"]);
    assert!(error.contains("NotFound"), "{error}");
    assert!(!daemon.state().join("logs/staging").exists(), "logs of a deleted namespace are left");
}

#[test]
fn scaling_keeps_the_low_ordinals() {
    let daemon = Daemon::start();
    daemon.apply_ready(&manifest::with(manifest::sleeper("web"), "spec.replicas", json!(2)).to_string());
    let before = [daemon.running("web-0"), daemon.running("web-1")];
    assert_eq!(daemon.ok(&["scale", "process/web", "--replicas=4"]), "process/web scaled\n");
    let third = daemon.running("web-2");
    daemon.running("web-3");
    assert_eq!([daemon.running("web-0"), daemon.running("web-1")], before);
    daemon.ok(&["scale", "process/web", "--replicas=1"]);
    wait_until("three of four to go", || (daemon.instances().len() == 1).then_some(()));
    assert_eq!(daemon.running("web-0"), before[0]);
    assert!(!proc::lives(before[1]) && !proc::lives(third));
    // The number in the manifest is the user's; left out, the number that is set stays.
    assert_eq!(daemon.apply(&manifest::sleeper("web").to_string()), "process/web unchanged\n");
    daemon.fails(1, &["scale", "process/web", "--replicas=3", "--current-replicas=7"]);
    assert_eq!(daemon.instances().len(), 1);
}
