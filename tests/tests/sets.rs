//! Sets: `ostler apply --set NAME --prune` deletes what the same set brought earlier, and nothing else.

use std::fs;

use ostler_tests::{Daemon, Output, manifest, wait_until};
use serde_json::{Value, json};

/// A process that notes down its end.
fn service(daemon: &Daemon, name: &str, depends_on: &[&str]) -> Value {
    let order = daemon.path().join("order");
    let script =
        format!("trap 'echo {name} >> {}; exit 0' TERM; while :; do sleep 1000 & wait $!; done", order.display());
    let mut process = manifest::shell(name, &script);
    process["spec"]["dependsOn"] = depends_on.iter().map(|name| json!({"process": name})).collect();
    process
}

fn apply(daemon: &Daemon, set: &str, objects: &[Value], flags: &[&str]) -> Output {
    let args = [&["apply", "-f", "-", "--set", set, "--prune"], flags].concat();
    daemon.feed(&args, manifest::all(objects).as_bytes())
}

#[track_caller]
fn succeeds(output: &Output) -> Vec<&str> {
    assert_eq!(output.code, 0, "{}{}", output.stdout, output.stderr);
    output.stdout.lines().collect()
}

#[track_caller]
fn refused(output: &Output, words: &[&str]) {
    assert_eq!(output.code, 1, "{}{}", output.stdout, output.stderr);
    for word in words {
        assert!(output.stderr.contains(word), "no {word:?} in {}", output.stderr);
    }
}

#[test]
fn a_set_takes_back_what_it_brought_in_reverse_and_nothing_else() {
    let daemon = Daemon::start();
    let plain = |name: &str| manifest::sleeper(name);
    let settings =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"a": "1"}});
    let staging = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "staging"}});
    let stays = ["s1", "s2", "s3", "s4", "s5"].map(plain);
    // What depends on others is declared first: the order of deletion is not that of the file.
    let mut shop = vec![
        service(&daemon, "web", &["api"]),
        service(&daemon, "api", &["db"]),
        service(&daemon, "db", &[]),
        settings,
        staging,
    ];
    shop.extend(stays.clone());
    let said = apply(&daemon, "shop", &shop, &["--wait", "--timeout", "1m"]);
    assert!(succeeds(&said).contains(&"process/web created"), "{}", said.stdout);
    succeeds(&apply(&daemon, "tools", &[plain("tool")], &["--wait", "--timeout", "1m"]));
    daemon.apply_ready(&plain("own").to_string());
    let names = daemon.ok(&["get", "processes", "-l", "ostler.dev/set=shop", "-o", "name"]);
    assert_eq!(names.lines().count(), 8, "{names}");
    // Applied again without a set, an object stays where it is; what a manifest says of the label counts for nothing.
    let forged = manifest::with(plain("own"), "metadata.labels", json!({"ostler.dev/set": "shop"}));
    let said = daemon.apply(&manifest::all(&[forged, plain("s1")]));
    assert_eq!(said, "process/own unchanged\nprocess/s1 unchanged\n");
    refused(&daemon.cli(&["label", "process/own", "ostler.dev/set=shop"]), &["ostler apply --set"]);
    let before: Vec<_> = ["own-0", "tool-0", "s1-0"].iter().map(|name| daemon.running(name)).collect();
    let all = || daemon.ok(&["get", "processes,configmaps,namespaces", "-A", "-o", "name"]);
    let everything = all();

    // What is broken, empty or too much deletes nothing.
    fs::create_dir(daemon.path().join("empty")).unwrap();
    refused(&daemon.cli(&["apply", "-f", "empty", "--set", "shop", "--prune"]), &["empty"]);
    refused(&daemon.cli(&["apply", "-f", "missing", "--set", "shop", "--prune"]), &["missing"]);
    refused(&daemon.feed(&["apply", "-f", "-", "--set", "shop", "--prune"], b"kind: Proces\n"), &["Proces"]);
    let invalid = manifest::with(plain("s1"), "spec.command", json!([]));
    refused(&apply(&daemon, "shop", &[invalid], &["--allow-prune"]), &["a program is needed"]);
    let few = &stays[..4];
    refused(&apply(&daemon, "shop", few, &[]), &["6 of 10 objects", "process/web, process/api", "--allow-prune"]);
    let preview = apply(&daemon, "shop", few, &["--dry-run"]);
    assert!(preview.stderr.contains("would be refused") && preview.code == 0, "{preview:?}");
    assert_eq!(daemon.cli(&["apply", "-f", "x.yaml", "--prune"]).code, 2, "--prune needs a set");
    refused(&apply(&daemon, "Shop", &stays, &[]), &["Shop"]);
    assert_eq!(all(), everything);

    // Who brought it first keeps it.
    refused(&apply(&daemon, "tools", &[plain("tool"), plain("s1")], &[]), &["process/s1", "the set \"shop\""]);
    let apps = daemon.path().join("apps");
    fs::create_dir(&apps).unwrap();
    fs::write(apps.join("sourced.yaml"), plain("sourced").to_string()).unwrap();
    let source = json!({"apiVersion": "ostler.dev/v1", "kind": "Source", "metadata": {"name": "apps"},
        "spec": {"path": apps, "interval": "24h"}});
    daemon.apply(&source.to_string());
    daemon.running("sourced-0");
    refused(&apply(&daemon, "tools", &[plain("tool"), plain("sourced")], &[]), &["process/sourced", "source/apps"]);

    // Somebody else has put something into the namespace: it stays.
    daemon.apply(&manifest::with(plain("guest"), "metadata.namespace", json!("staging")).to_string());
    let gone = ["process/web", "process/api", "process/db", "configmap/settings"];
    let mut words: Vec<String> = gone.iter().map(|name| format!("{name} pruned (dry run)")).collect();
    words.push("order: stop web-0 → api-0 → db-0".to_owned());
    let preview = apply(&daemon, "shop", &stays, &["--dry-run"]);
    let lines = succeeds(&preview);
    assert_eq!(lines[lines.len() - 5..], words, "{}", preview.stdout);
    assert!(preview.stderr.contains("namespace/staging has left the set and stays"), "{}", preview.stderr);
    let args = ["diff", "-f", "-", "--set", "shop", "--prune"];
    let diff = daemon.feed(&args, manifest::all(&stays).as_bytes());
    assert_eq!(diff.code, 1, "{}", diff.stderr);
    assert_eq!(
        diff.stdout,
        "will prune default/process/web\nwill prune default/process/api\nwill prune default/process/db\n\
         will prune default/configmap/settings\norder: stop web-0 → api-0 → db-0\n"
    );
    let said = apply(&daemon, "shop", &stays, &["--wait", "--timeout", "1m"]);
    let lines = succeeds(&said);
    let words: Vec<String> = gone.iter().map(|name| format!("{name} pruned")).collect();
    assert!(words.iter().all(|word| lines.contains(&word.as_str())), "{}", said.stdout);
    assert_eq!(fs::read_to_string(daemon.path().join("order")).unwrap(), "web\napi\ndb\n", "dependents first");
    let left = all();
    assert!(gone.iter().all(|name| !left.contains(name)) && left.contains("namespace/staging"), "{left}");
    let now: Vec<_> = ["own-0", "tool-0", "s1-0"].iter().map(|name| daemon.running(name)).collect();
    assert_eq!(now, before, "somebody else was touched");
    daemon.running("sourced-0");

    // What was taken out of the set is nobody's, and stays. A Source takes what it brings.
    daemon.ok(&["label", "process/s5", "ostler.dev/set-"]);
    fs::write(apps.join("s4.yaml"), plain("s4").to_string()).unwrap();
    wait_until("the source to bring s4", || {
        let labels = daemon.get("process", "s4")["metadata"].to_string();
        (labels.contains("ostler.dev/source") && !labels.contains("ostler.dev/set")).then_some(())
    });
    let said = apply(&daemon, "shop", &stays[..1], &["--allow-prune", "--wait", "--timeout", "1m"]);
    assert_eq!(succeeds(&said).iter().filter(|line| line.ends_with(" pruned")).count(), 2, "{}", said.stdout);
    let left = daemon.ok(&["get", "processes", "-o", "name"]);
    for name in ["s1", "s4", "s5", "own", "tool", "sourced"] {
        assert!(left.lines().any(|line| line.ends_with(&format!("/{name}"))), "{name} is gone: {left}");
    }
    assert!(!left.contains("s2") && !left.contains("s3"), "{left}");
    assert_eq!(daemon.running("s1-0"), before[2]);
}
