//! What `diff` foretells is what happens: the order of restarts, whom they spare, and what is pruned.

use std::collections::BTreeMap;
use std::fs;

use ostler_tests::{Daemon, manifest, proc, wait_until};
use serde_json::{Value, json};

/// A process that notes down its starts and its end, each with one write.
fn service(daemon: &Daemon, name: &str, replicas: u32, version: u32, depends_on: &Value) -> Value {
    let order = daemon.path().join("order").display().to_string();
    let script = format!(
        "echo start $$OSTLER_INSTANCE >> {order}; trap 'echo end $$OSTLER_INSTANCE >> {order}; exit 0' TERM; \
         while :; do sleep 1000 & wait $$!; done"
    );
    let mut process = manifest::shell(name, &script);
    process["spec"]["replicas"] = json!(replicas);
    process["spec"]["dependsOn"] = depends_on.clone();
    process["spec"]["env"] = json!([{"name": "VERSION", "value": version.to_string()}]);
    process
}

/// The steps of the line that begins with "order:", such as ("restart", "web-0").
fn foretold(text: &str) -> Vec<(String, String)> {
    let line = text.lines().find_map(|line| line.strip_prefix("order: ")).unwrap_or_else(|| panic!("no order: {text}"));
    let mut verb = String::new();
    let mut steps = Vec::new();
    for word in line.split([' ', ',']).filter(|word| !word.is_empty() && *word != "→") {
        match word {
            "start" | "restart" | "stop" => word.clone_into(&mut verb),
            name => steps.push((verb.clone(), name.to_owned())),
        }
    }
    steps
}

fn pids(daemon: &Daemon) -> BTreeMap<String, proc::Identity> {
    let all = daemon.instances();
    all.iter().map(|it| (it.name().to_owned(), proc::identity(it.pid().unwrap()).unwrap())).collect()
}

#[test]
fn what_diff_foretells_is_what_happens() {
    let daemon = Daemon::start();
    let db = |version| service(&daemon, "db", 2, version, &json!([]));
    let api = |version| service(&daemon, "api", 3, version, &json!([{"process": "db"}]));
    let web = |version| {
        let web = service(&daemon, "web", 3, version, &json!([{"process": "api"}]));
        manifest::with(web, "spec.update", json!({"maxSurge": 1, "maxUnavailable": 0}))
    };
    let settings = |value: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"A": value}});
    let worker = manifest::with(
        service(&daemon, "worker", 1, 1, &json!([])),
        "spec.envFrom",
        json!([{"configMapRef": {"name": "settings"}}]),
    );
    let still = service(&daemon, "still", 1, 1, &json!([]));
    let old = service(&daemon, "old", 1, 1, &json!([{"process": "still"}]));
    let first = [settings("1"), db(1), api(1), web(1), worker.clone(), still.clone(), old];
    let args = ["apply", "-f", "-", "--set", "shop", "--prune", "--wait", "--timeout", "2m"];
    let apply = |objects: &[Value]| {
        let output = daemon.feed(&args, manifest::all(objects).as_bytes());
        assert_eq!(output.code, 0, "{}{}", output.stdout, output.stderr);
        output.stdout
    };
    apply(&first);
    wait_until("all rollouts to be complete", || {
        let all = daemon.ok(&["get", "processes", "-o", "jsonpath={.items[*].status.currentRevision}"]);
        (all.split_whitespace().count() == 6).then_some(())
    });
    let before = pids(&daemon);
    let still = manifest::with(still, "spec.stop", json!({"gracePeriod": "3s"}));
    let fresh = service(&daemon, "app", 1, 1, &json!([{"process": "db"}]));
    let second = [settings("2"), fresh, db(2), api(2), web(2), worker, still];
    let diff = daemon.feed(&["diff", "-f", "-", "--set", "shop", "--prune"], manifest::all(&second).as_bytes());
    assert_eq!(diff.code, 1, "{}", diff.stderr);
    for line in [
        "will restart db-0, db-1 (spec.env changed)",
        "will restart worker-0 (configmap \"settings\" changed)",
        "without a restart: spec.stop.gracePeriod",
        "will prune default/process/old",
    ] {
        assert!(diff.stdout.lines().any(|it| it == line), "no {line:?} in {}", diff.stdout);
    }
    let dry =
        daemon.feed(&["apply", "-f", "-", "--set", "shop", "--prune", "--dry-run"], manifest::all(&second).as_bytes());
    let steps = foretold(&diff.stdout);
    assert_eq!(foretold(&dry.stdout), steps, "{}", dry.stdout);
    assert_eq!(pids(&daemon), before, "a forecast changed something");

    fs::remove_file(daemon.path().join("order")).unwrap();
    apply(&second);
    wait_until("the additional one to be gone", || (daemon.instances().len() == 11).then_some(()));
    // Who was started again, in the order of the starts; who ended for good; both as the processes tell.
    let order = fs::read_to_string(daemon.path().join("order")).unwrap();
    let starts: Vec<&str> = order.lines().filter_map(|line| line.strip_prefix("start ")).collect();
    let of = |steps: &[(String, String)], verbs: &[&str], prefix: &str| -> Vec<String> {
        let wanted = steps.iter().filter(|(verb, name)| verbs.contains(&verb.as_str()) && name.starts_with(prefix));
        wanted.map(|(_, name)| name.clone()).collect()
    };
    let begins = of(&steps, &["start", "restart"], "");
    // Each process in its order; whose first line is written first of two that start in one moment is up to the kernel.
    let foretold: Vec<&str> = begins.iter().map(String::as_str).collect();
    for process in ["db-", "api-", "web-"] {
        let of = |names: &[&str]| names.iter().filter(|it| it.starts_with(process)).map(ToString::to_string).collect();
        let (foretold, happened): (Vec<String>, Vec<String>) = (of(&foretold), of(&starts));
        assert_eq!(foretold, happened, "{steps:?}, but: {order}");
    }
    let mut sorted = [foretold, starts];
    for names in &mut sorted {
        names.sort_unstable();
    }
    assert_eq!(sorted[0], sorted[1], "{order}");
    let stops = of(&steps, &["stop"], "");
    assert_eq!(stops.len(), 2, "{steps:?}");
    assert!(stops.contains(&"old-0".to_owned()) && stops.contains(&"web-3".to_owned()), "{steps:?}");
    // Seen from the kernel: those that were named have another process, and nobody else has.
    let after = pids(&daemon);
    for (first, second) in [("db-0", "api-0"), ("api-0", "web-0")] {
        let place = |wanted: &str| steps.iter().position(|(_, name)| name == wanted).unwrap();
        assert!(place(first) < place(second), "{steps:?}");
        assert!(after[first].start <= after[second].start, "{second} was started before {first}: {order}");
    }
    let mut moved: Vec<String> = before.keys().filter(|name| after.get(*name) != before.get(*name)).cloned().collect();
    let mut named = of(&steps, &["restart"], "");
    named.push("old-0".to_owned());
    moved.sort_unstable();
    named.sort_unstable();
    assert_eq!(moved, named, "{order}");
    let quiet = daemon.feed(&["diff", "-f", "-", "--set", "shop", "--prune"], manifest::all(&second).as_bytes());
    assert_eq!((quiet.code, quiet.stdout.as_str()), (0, ""), "{}", quiet.stderr);
}
