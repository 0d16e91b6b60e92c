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

#[test]
fn a_deadline_ends_what_runs_and_a_finished_job_goes_in_time() {
    let daemon = Daemon::start();
    daemon.apply(&job("slow", "exec sleep 100000", json!({"activeDeadline": "1s"})).to_string());
    assert_eq!(finished(&daemon, "slow"), ("Failed".into(), "DeadlineExceeded".into()));
    assert!(runs(&daemon, "slow").iter().all(|it| it.pid().is_none()));
    daemon.apply(&job("brief", "true", json!({"ttlAfterFinished": "1s"})).to_string());
    daemon.ok(&["wait", "job/brief", "--for=delete", "--timeout=60s"]);
    assert!(runs(&daemon, "brief").is_empty());
}

#[test]
fn a_controller_killed_in_mid_job_neither_loses_nor_repeats_a_run() {
    let daemon = Daemon::start();
    let notes = Notes::new(&daemon, "notes");
    let script = format!(
        "cd {}; echo $JOB_COMPLETION_INDEX >> notes; until [ -e go ]; do sleep 0.05; done",
        daemon.path().display()
    );
    daemon.apply(&job("work", &script, json!({"completions": 4, "parallelism": 2})).to_string());
    wait_until("two runs", || (notes.lines().len() == 2).then_some(()));
    daemon.kill_controller();
    fs::write(daemon.path().join("go"), "").expect("the directory is ours");
    daemon.answers();
    daemon.ok(&["wait", "job/work", "--for=condition=Complete", "--timeout=60s"]);
    let mut lines = notes.lines();
    lines.sort();
    assert_eq!(lines, ["0", "1", "2", "3"]);
}

/// A cronjob whose jobs execute a shell script.
fn cronjob(name: &str, script: &str, mut spec: Value) -> Value {
    spec["jobTemplate"] = json!({"spec": {"template": {"command": ["sh", "-c", script]}}});
    json!({"apiVersion": "ostler.dev/v1", "kind": "CronJob", "metadata": {"name": name}, "spec": spec})
}

#[test]
fn a_cronjob_runs_by_the_second_and_by_hand() {
    let daemon = Daemon::start();
    let notes = Notes::new(&daemon, "notes");
    let script = format!("echo ran >> {}", notes.path().display());
    daemon.apply(&cronjob("tick", &script, json!({"schedule": "* * * * * *"})).to_string());
    wait_until("three runs", || (notes.lines().len() >= 3).then_some(()));
    daemon.ok(&["stop", "cronjob/tick"]);
    let at = daemon.get("cronjob", "tick")["status"]["lastScheduleTime"].as_str().map(str::to_owned);
    assert!(at.is_some());
    // Made by hand, beside the schedule, and only once.
    assert!(daemon.ok(&["create", "job", "now", "--from=cronjob/tick"]).contains("job/now created"));
    daemon.ok(&["wait", "job/now", "--for=condition=Complete", "--timeout=60s"]);
    assert_eq!(daemon.get("job", "now")["metadata"]["annotations"]["ostler.dev/instantiatedFrom"], "tick");
    let why = daemon.fails(1, &["create", "job", "now", "--from=cronjob/tick"]);
    assert!(why.contains("exists already"), "{why}");
    daemon.fails(1, &["create", "job", "other", "--from=cronjob/tock"]);
}

#[test]
fn run_ends_with_the_code_of_its_command_and_shows_its_output() {
    let daemon = Daemon::start();
    let told = daemon.cli(&["run", "--name=a", "-e", "WORD=x y", "--", "sh", "-c", "echo $WORD; echo no >&2; exit 7"]);
    assert_eq!((told.code, told.stdout.as_str(), told.stderr.as_str()), (7, "x y\n", "no\n"));
    assert_eq!(daemon.instance("a-0").last_exit()["code"], 7);
    let all = daemon.cli(&["run", "--rm", "--", "seq", "20000"]);
    assert_eq!((all.code, all.stdout.lines().count()), (0, 20000), "{}", all.stderr);
    assert_eq!(daemon.cli(&["run", "--rm", "--", "sh", "-c", "kill -KILL $$"]).code, 137);
    let absent = daemon.cli(&["run", "--rm", "--", "no-such-program"]);
    assert!(absent.code == 127 && absent.stderr.contains("error: "), "{}", absent.stderr);
    let left = daemon.instances();
    assert_eq!(left.len(), 1, "--rm leaves nothing: {left:?}");
    let taken = daemon.fails(1, &["run", "--name=a", "--", "true"]);
    assert!(taken.contains("exists already"), "{taken}");
}

#[test]
fn what_run_has_started_is_adopted_by_the_manifest_it_prints() {
    let daemon = Daemon::start();
    let manifest = daemon.ok(&["run", "--name=tunnel", "-o", "yaml", "--", "sleep", "100000"]);
    assert!(daemon.instances().is_empty());
    daemon.ok(&["run", "--name=tunnel", "-d", "--", "sleep", "100000"]);
    let process = daemon.running("tunnel-0");
    let said = daemon.apply(&manifest);
    assert!(said.contains("process/tunnel unchanged"), "{said}");
    let said = daemon.apply(&manifest.replace("Never", "Always"));
    assert!(said.contains("process/tunnel configured"), "{said}");
    assert_eq!(daemon.running("tunnel-0"), process);
}
