//! What happened to objects: kept, counted, told by topic, and not lost with the daemon.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::sync::mpsc;

use ostler_tests::{Daemon, LIMIT, manifest, wait_until};
use serde_json::{Value, json};

fn events(daemon: &Daemon, args: &[&str]) -> Vec<Value> {
    let args: Vec<&str> = ["events", "-o", "json"].iter().chain(args).copied().collect();
    let list: Value = serde_json::from_str(&daemon.ok(&args)).expect("events are JSON");
    list["items"].as_array().expect("a list").clone()
}

/// A process that ends with code 3 and waits long before it is started again.
fn failing(name: &str) -> Value {
    manifest::with(manifest::shell(name, "exit 3"), "spec.backoff", json!({"initial": "1h", "max": "1h", "jitter": 0}))
}

fn reasons(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["reason"].as_str().expect("a reason")).collect()
}

#[test]
fn topics_types_and_times_choose_what_is_shown() {
    let daemon = Daemon::start();
    daemon.apply(&manifest::all(&[failing("bad"), manifest::sleeper("good")]));
    daemon.phase("bad-0", "Backoff");
    daemon.running("good-0");
    let crashed = wait_until("the crash to be told", || {
        let restart = events(&daemon, &["--topic", "restart"]);
        (!restart.is_empty()).then_some(restart)
    });
    assert!(crashed.iter().all(|event| event["topic"] == "restart"), "{crashed:?}");
    assert_eq!(crashed[0]["involvedObject"]["name"], "bad-0");
    let lifecycle = wait_until("the start to be told", || {
        let all = events(&daemon, &["--topic", "lifecycle,health", "--for", "instance/good-0"]);
        reasons(&all).contains(&"Started").then_some(all)
    });
    assert!(lifecycle.iter().all(|event| event["topic"] == "lifecycle"), "{lifecycle:?}");
    let warnings = events(&daemon, &["--types", "Warning"]);
    assert!(warnings.iter().all(|event| event["type"] == "Warning") && !warnings.is_empty(), "{warnings:?}");
    let both = events(&daemon, &["--types", "Warning,Normal"]);
    assert!(both.len() > warnings.len());
    // What comes last may come between two looks.
    wait_until("all of an hour to be all there is", || {
        (events(&daemon, &["--since", "1h"]).len() == events(&daemon, &[]).len()).then_some(())
    });
    wait_until("nothing to have happened just now", || events(&daemon, &["--since", "1us"]).is_empty().then_some(()));
    let wide = daemon.ok(&["events", "-o", "wide", "--topic", "restart"]);
    assert!(wide.lines().next().is_some_and(|line| line.contains("TOPIC")) && wide.contains(" restart "), "{wide}");
    let said = daemon.fails(2, &["events", "--topic", "restarts"]);
    assert!(said.contains("did you mean restart?"), "{said}");
    let said = daemon.fails(1, &["get", "events", "--field-selector", "topics=restart"]);
    assert!(said.contains("topic"), "{said}");
    wait_until("both ways to choose to choose the same", || {
        let selected = daemon.ok(&["get", "events", "--field-selector", "topic in (restart,health)", "-o", "name"]);
        (selected.lines().count() == events(&daemon, &["--topic", "restart,health"]).len()).then_some(())
    });
}

#[test]
fn a_subscriber_gets_only_the_topics_it_asked_for() {
    let daemon = Daemon::start();
    let mut client = daemon
        .client()
        .args(["events", "-w", "--topic", "restart", "--since", "10m", "-o", "jsonpath={.topic} {.reason}{\"\\n\"}"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the client can be started");
    let (lines, told) = mpsc::channel();
    let output = client.stdout.take().expect("a pipe");
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if lines.send(line).is_err() {
                break;
            }
        }
    });
    daemon.apply(&manifest::all(&[manifest::sleeper("good"), failing("bad")]));
    daemon.running("good-0");
    let first = told.recv_timeout(LIMIT).expect("the crash is told");
    assert_eq!(first, "restart Crashed");
    daemon.ok(&["delete", "process/good"]);
    daemon.ok(&["restart", "process/bad"]);
    let again = told.recv_timeout(LIMIT).expect("the second crash is told");
    assert!(again.starts_with("restart "), "{again}");
    client.kill().expect("it is our child");
    client.wait().expect("it is our child");
    reader.join().expect("the reader ends with the pipe");
    for line in told.try_iter() {
        assert!(line.starts_with("restart "), "{line}");
    }
}

#[test]
fn history_outlives_the_daemon_and_goes_on_counting() {
    let daemon = Daemon::start();
    daemon.apply(&failing("bad").to_string());
    let crashes = |daemon: &Daemon| {
        let all = events(daemon, &["--for", "instance/bad-0"]);
        all.iter().find(|event| event["reason"] == "Crashed").cloned()
    };
    let first = wait_until("the crash to be told", || crashes(&daemon));
    assert_eq!(first["count"], 1);
    daemon.kill_both();
    daemon.serve();
    assert_eq!(wait_until("the crash to be told", || crashes(&daemon)), first);
    daemon.ok(&["restart", "process/bad"]);
    let second = wait_until("the second crash", || crashes(&daemon).filter(|event| event["count"] == 2));
    assert_eq!(second["firstTimestamp"], first["firstTimestamp"]);
    assert_eq!(second["metadata"]["name"], first["metadata"]["name"]);
}
