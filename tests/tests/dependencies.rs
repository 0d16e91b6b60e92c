//! Dependencies, seen from outside: every process writes into one file when it starts, is ready and ends, and the order of
//! the lines is the order in which that happened.

use std::collections::HashMap;
use std::fs;

use ostler_tests::{Daemon, Random, manifest, proc, wait_until};
use serde_json::{Value, json};

/// What happened, in its order: "start web", "ready web", "end web".
fn happened(daemon: &Daemon) -> Vec<String> {
    let text = fs::read_to_string(daemon.path().join("order")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// A process that lives, and is ready a moment after its start.
fn service(daemon: &Daemon, name: &str, depends_on: &Value) -> Value {
    let (order, ready) = (daemon.path().join("order"), daemon.path().join(format!("ready-{name}")));
    let (order, ready) = (order.display(), ready.display());
    let script = format!(
        "rm -f {ready}; echo start {name} >> {order}; trap 'echo end {name} >> {order}; exit 0' TERM; \
         sleep 0.3; echo ready {name} >> {order}; touch {ready}; while :; do sleep 1000 & wait $!; done"
    );
    let mut process = manifest::shell(name, &script);
    process["spec"]["dependsOn"] = depends_on.clone();
    process["spec"]["readinessProbe"] = json!({"exec": {"command": ["test", "-e", ready.to_string()]},
        "interval": "100ms", "timeout": "10s", "failureThreshold": 100, "successThreshold": 1});
    process
}

/// A job that takes a moment.
fn task(daemon: &Daemon, name: &str, depends_on: &Value) -> Value {
    let order = daemon.path().join("order").display().to_string();
    let script = format!("echo start {name} >> {order}; sleep 0.2; echo end {name} >> {order}");
    json!({"apiVersion": "ostler.dev/v1", "kind": "Job", "metadata": {"name": name},
        "spec": {"template": {"command": ["sh", "-c", script], "dependsOn": depends_on}}})
}

/// Asserts that one line came before another.
fn before(lines: &[String], first: &str, second: &str) {
    let place = |what: &str| {
        lines.iter().rposition(|line| line == what).unwrap_or_else(|| panic!("{what:?} never happened: {lines:?}"))
    };
    assert!(place(first) < place(second), "{first:?} came after {second:?}: {lines:?}");
}

#[test]
fn a_real_graph_starts_in_order_whoever_is_killed_and_stops_in_reverse() {
    let daemon = Daemon::start();
    let mut random = Random::new(7);
    let mut objects = Vec::new();
    let mut edges: Vec<(String, String, &str)> = Vec::new();
    let name = |node: usize| if node % 4 == 1 { format!("task{node}") } else { format!("node{node}") };
    for node in 0..14_usize {
        let mut on: Vec<usize> = (0..2).map(|_| random.below(14)).filter(|other| *other < node).collect();
        on.sort_unstable();
        on.dedup();
        let list: Vec<Value> = on
            .iter()
            .map(|other| {
                let is_task = other % 4 == 1;
                let condition = if is_task { "Completed" } else { ["Ready", "Started"][node % 2] };
                edges.push((name(node), name(*other), condition));
                json!({if is_task { "job" } else { "process" }: name(*other), "condition": condition, "timeout": "5m"})
            })
            .collect();
        let make = if node % 4 == 1 { task } else { service };
        objects.push(make(&daemon, &name(node), &json!(list)));
    }
    assert!(edges.len() >= 8, "{edges:?}");
    // Those that wait are declared first.
    objects.reverse();
    daemon.apply(&manifest::all(&objects));
    wait_until("something to have started", || (happened(&daemon).len() > 3).then_some(()));
    daemon.kill_controller();
    daemon.answers();
    daemon.ok(&["wait", "processes", "--all", "--for=condition=Ready", "--timeout=120s"]);
    let lines = happened(&daemon);
    for (node, other, condition) in &edges {
        let there = match *condition {
            "Ready" => format!("ready {other}"),
            "Completed" => format!("end {other}"),
            // It exists; whether its first line is written by then is up to the scheduler.
            _ if node.starts_with("task") => continue,
            _ => {
                let started = |name: &str| daemon.running(&format!("{name}-0")).start;
                assert!(started(other) <= started(node), "{node} was started before {other}");
                continue;
            }
        };
        before(&lines, &there, &format!("start {node}"));
    }
    let mut starts: HashMap<&String, usize> = HashMap::new();
    for line in lines.iter().filter(|line| line.starts_with("start ")) {
        *starts.entry(line).or_default() += 1;
    }
    assert!(starts.values().all(|count| *count == 1), "started twice: {lines:?}");
    daemon.ok(&["shutdown", "--stop-instances", "--deadline", "2m"]);
    let lines = happened(&daemon);
    for (node, other, _) in
        edges.iter().filter(|(node, other, _)| !node.starts_with("task") && !other.starts_with("task"))
    {
        before(&lines, &format!("end {node}"), &format!("end {other}"));
    }
}

#[test]
fn groups_cycles_timeouts_and_what_is_said_of_them() {
    let daemon = Daemon::start();
    let cycle = manifest::all(&[
        service(&daemon, "a", &json!([{"process": "b"}])),
        service(&daemon, "b", &json!([{"process": "c"}])),
        service(&daemon, "c", &json!([{"process": "a"}])),
    ]);
    let refused = daemon.try_apply(&cycle);
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    assert!(refused.stderr.contains("process/a → process/b → process/c → process/a"), "{}", refused.stderr);
    assert!(refused.stderr.contains("spec.dependsOn[0]"), "{}", refused.stderr);
    // The other half of a cycle is found in the store, too.
    daemon.apply(&service(&daemon, "half", &json!([{"process": "other", "condition": "Started"}])).to_string());
    let refused = daemon.try_apply(&service(&daemon, "other", &json!([{"process": "half"}])).to_string());
    assert!(refused.stderr.contains("process/other → process/half → process/other"), "{}", refused.stderr);
    daemon.ok(&["delete", "process/half"]);

    // Through namespaces, too; the same names within each are other objects.
    let elsewhere = |process: Value| manifest::with(process, "metadata.namespace", json!("data"));
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "data"}});
    let db = json!([{"process": "store", "namespace": "data"}]);
    daemon.apply(&manifest::all(&[namespace, service(&daemon, "front", &db), service(&daemon, "store", &json!([]))]));
    daemon.phase("store-0", "Running");
    daemon.instance_when("front-0", "waiting for what is not there", |it| {
        let message = it.0["status"]["message"].as_str().unwrap_or_default();
        it.phase() == "Pending" && message.contains("data/process/store (Ready): there is none of that name")
    });
    let back = json!([{"process": "front", "namespace": "default", "condition": "Started"}]);
    let refused = daemon.try_apply(&elsewhere(service(&daemon, "store", &back)).to_string());
    let path = "data/process/store → default/process/front → data/process/store";
    assert!(refused.stderr.contains(path) && refused.stderr.contains("spec.dependsOn[0]"), "{}", refused.stderr);
    let store = elsewhere(service(&daemon, "store", &json!([])));
    daemon.apply(&store.to_string().replace(" store", " data-store").replace("ready-store", "ready-data-store"));
    daemon.ok(&["wait", "process/front", "--for=condition=Ready", "--timeout=60s"]);
    before(&happened(&daemon), "ready data-store", "start front");
    wait_until("it to be counted", || {
        let graph = daemon.ok(&["graph", "process/front"]);
        graph.contains("└─ data/process/store (Ready)  1/1 available").then_some(())
    });
    let page = daemon.ok(&["describe", "process/store", "-n", "data"]);
    assert!(page.contains("default/process/front (Ready)"), "{page}");
    let page = daemon.ok(&["describe", "process/store"]);
    assert!(!page.contains("Needed by"), "{page}");
    // Its namespace goes, and nobody else with it.
    let front = daemon.running("front-0");
    daemon.ok(&["delete", "namespace/data", "--timeout", "60s"]);
    assert_eq!(daemon.running("front-0"), front);
    daemon.ok(&["delete", "process/front", "process/store", "--timeout", "60s"]);

    let grouped = |process: Value| manifest::with(process, "metadata.labels", json!({"ostler.dev/group": "shop"}));
    let web = manifest::with(
        service(&daemon, "web", &json!([{"process": "api", "timeout": "1s"}])),
        "spec.replicas",
        json!(2),
    );
    daemon.apply(&grouped(web.clone()).to_string());
    let late = daemon.phase("web-0", "Failed");
    assert_eq!(late.reason(), "DependencyTimeout");
    let why = daemon.ok(&["why", "web-0"]);
    assert!(why.contains("waited 1s for process/api (Ready): there is none of that name"), "{why}");
    daemon.apply(&manifest::all(&[
        grouped(service(&daemon, "api", &json!([{"process": "db"}, {"job": "migrate"}]))),
        grouped(service(&daemon, "db", &json!([]))),
    ]));
    daemon.phase("db-0", "Running");
    daemon.instance_when("api-0", "waiting for the job", |it| {
        it.phase() == "Pending"
            && it.0["status"]["message"].as_str().is_some_and(|it| it.contains("job/migrate (Completed)"))
    });
    let graph = daemon.ok(&["graph", "process/web"]);
    assert!(
        graph.contains("├─ process/db (Ready") && graph.contains("└─ job/migrate (Completed, waited for)"),
        "{graph}"
    );
    let dot = daemon.ok(&["graph", "-o", "dot"]);
    assert!(dot.contains("\"process/web\" -> \"process/api\" [label=\"Ready\""), "{dot}");
    let why = daemon.ok(&["why", "process/api"]);
    assert!(why.contains("instance/web-0: waited 1s for process/api (Ready): 0 of 1 instances"), "{why}");
    let page = daemon.ok(&["describe", "process/api"]);
    assert!(
        page.contains("process/db (Ready), job/migrate (Completed)") && page.contains("process/web (Ready)"),
        "{page}"
    );
    // From here on it waits as long as others take.
    daemon.apply(&grouped(manifest::with(web, "spec.dependsOn", json!([{"process": "api"}]))).to_string());
    daemon.apply(&task(&daemon, "migrate", &json!([{"process": "db"}])).to_string());
    daemon.ok(&["wait", "process/web", "--for=condition=Ready", "--timeout=60s"]);
    before(&happened(&daemon), "ready db", "start migrate");
    before(&happened(&daemon), "end migrate", "start api");

    let names = ["db-0", "api-0", "web-0", "web-1"];
    let pids: Vec<_> = names.iter().map(|name| daemon.running(name)).collect();
    fs::remove_file(daemon.path().join("order")).unwrap();
    daemon.ok(&["restart", "group/shop", "--wait", "--timeout", "60s"]);
    let lines = happened(&daemon);
    for pair in ["end web<end api", "end api<end db", "end db<start db", "ready db<start api", "ready api<start web"] {
        let (first, second) = pair.split_once('<').unwrap();
        before(&lines, first, second);
    }
    assert!(names.iter().zip(&pids).all(|(name, pid)| daemon.running(name) != *pid && !proc::lives(*pid)));
    daemon.ok(&["stop", "group/shop", "--timeout", "60s"]);
    let lines = happened(&daemon);
    before(&lines, "end web", "end api");
    before(&lines, "end api", "end db");
    daemon.ok(&["start", "group/shop", "--wait", "--timeout", "60s"]);
    assert!(daemon.cli(&["restart", "group/none"]).stderr.contains("ostler.dev/group=none"));
    // One that is stopped alone stops nothing else.
    let web = daemon.running("web-0");
    daemon.ok(&["stop", "process/db"]);
    assert_eq!(daemon.running("web-0"), web);
    // Deleted together, the other way round again, whatever is named first.
    fs::remove_file(daemon.path().join("order")).unwrap();
    daemon.ok(&["start", "process/db", "--wait", "--timeout", "60s"]);
    daemon.ok(&["delete", "processes", "-l", "ostler.dev/group=shop", "--timeout", "60s"]);
    before(&happened(&daemon), "end web", "end api");
    before(&happened(&daemon), "end api", "end db");
}
