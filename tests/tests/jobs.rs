//! Jobs and cronjobs: how often, when, and what becomes of what fails. The witnesses are files that the runs write.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use ostler_tests::{Daemon, wait_until};
use serde_json::{Value, json};

/// A job whose runs execute a shell script; `$` belongs to the shell.
fn job(name: &str, script: &str, mut spec: Value) -> Value {
    spec["backoff"] = json!({"initial": "1ms", "factor": 1, "jitter": 0});
    spec["template"] = json!({"command": ["sh", "-c", script.replace("$$", "$$$$")]});
    json!({"apiVersion": "ostler.dev/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec})
}

/// Notes what it is told, one line each.
struct Notes(PathBuf);

impl Notes {
    fn new(daemon: &Daemon, name: &str) -> Self {
        Self(daemon.path().join(name))
    }

    fn path(&self) -> &Path {
        &self.0
    }

    fn lines(&self) -> Vec<String> {
        fs::read_to_string(&self.0).unwrap_or_default().lines().map(str::to_owned).collect()
    }
}

fn finished(daemon: &Daemon, name: &str) -> (String, String) {
    wait_until(format!("job/{name} to finish"), || {
        let job = daemon.get("job", name);
        let conditions = job["status"]["conditions"].as_array()?.clone();
        let condition = conditions
            .into_iter()
            .find(|it| it["status"] == "True" && (it["type"] == "Complete" || it["type"] == "Failed"))?;
        let text = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
        Some((text("type"), text("reason")))
    })
}

fn runs(daemon: &Daemon, job: &str) -> Vec<ostler_tests::Instance> {
    daemon.instances().into_iter().filter(|it| it.0["spec"]["job"]["name"] == job).collect()
}

#[test]
fn every_index_succeeds_exactly_once_and_failures_are_retried() {
    let daemon = Daemon::start();
    let notes = Notes::new(&daemon, "notes");
    // Every index fails the first time.
    let script = format!(
        "cd {}; echo run $JOB_COMPLETION_INDEX $OSTLER_JOB >> notes; mkdir tried-$JOB_COMPLETION_INDEX 2>/dev/null && exit 1; \
         echo done $JOB_COMPLETION_INDEX >> notes",
        daemon.path().display()
    );
    let said = daemon.apply(&job("work", &script, json!({"completions": 5, "parallelism": 2})).to_string());
    assert!(said.contains("job/work created"), "{said}");
    daemon.ok(&["wait", "job/work", "--for=condition=Complete", "--timeout=60s"]);
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for line in notes.lines() {
        *counts.entry(line).or_default() += 1;
    }
    for index in 0..5 {
        assert_eq!(counts[&format!("run {index} work")], 2, "{counts:?}");
        assert_eq!(counts[&format!("done {index}")], 1, "{counts:?}");
    }
    let status = daemon.get("job", "work")["status"].clone();
    assert_eq!((&status["succeeded"], &status["failed"]), (&json!(5), &json!(5)), "{status}");
    assert!(status.get("completionTime").is_some() && status["active"] == 0, "{status}");
    let table = daemon.ok(&["get", "jobs"]);
    assert!(table.contains("Complete") && table.contains("5/5"), "{table}");
    // Applying it again does nothing.
    let again = daemon.apply(&job("work", &script, json!({"completions": 5, "parallelism": 2})).to_string());
    assert!(again.contains("unchanged"), "{again}");
    assert_eq!(runs(&daemon, "work").len(), 10);
}

#[test]
fn the_backoff_limit_is_exact_and_told() {
    let daemon = Daemon::start();
    let notes = Notes::new(&daemon, "notes");
    let script = format!("echo $OSTLER_INSTANCE >> {}; echo no luck; exit 3", notes.path().display());
    daemon.apply(&job("bad", &script, json!({"backoffLimit": 2})).to_string());
    assert_eq!(finished(&daemon, "bad"), ("Failed".into(), "BackoffLimitExceeded".into()));
    assert_eq!(notes.lines(), ["bad-0", "bad-1", "bad-2"]);
    let logs = daemon.ok(&["logs", "job/bad"]);
    assert_eq!(logs.matches("no luck").count(), 3, "{logs}");
    let page = daemon.ok(&["describe", "job/bad"]);
    assert!(page.contains("BackoffLimitExceeded") && page.contains("bad-2"), "{page}");
    let why = daemon.fails(1, &["restart", "job/bad"]);
    assert!(why.contains("cannot be restarted"), "{why}");
    let why = daemon.fails(1, &["start", "instance/bad-0"]);
    assert!(why.contains("is a run of the job"), "{why}");
}
