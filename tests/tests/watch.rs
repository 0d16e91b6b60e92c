//! Files that are watched: what a change leads to, how often, and what is no change.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use ostler_tests::{Daemon, Setup, manifest, skipped, wait_until};
use serde_json::{Value, json};

fn process(name: &str, directory: &Path, more: &Value) -> String {
    let mut spec = json!({"command": ["sleep", "100000"], "workingDir": directory});
    spec.as_object_mut().expect("it is one").extend(more.as_object().expect("it is one").clone());
    manifest::process(name, &spec).to_string()
}

/// Each request to restart is a generation.
fn generation(daemon: &Daemon, name: &str) -> u64 {
    daemon.get("process", name)["metadata"]["generation"].as_u64().expect("it has one")
}

fn condition(process: &Value, kind: &str) -> Option<Value> {
    process["status"]["conditions"].as_array()?.iter().find(|it| it["type"] == kind).cloned()
}

/// Waits until the files of a process are watched, as many as there are to be.
fn watched(daemon: &Daemon, name: &str, files: u64) {
    wait_until(format!("{files} files of {name} to be watched"), || {
        let process = daemon.get("process", name);
        let watching = condition(&process, "FilesWatched")?["status"] == "True";
        (watching && process["status"]["watch"]["files"] == files).then_some(())
    });
}

/// Waits until a process was asked to restart so often, and has.
fn restarted(daemon: &Daemon, name: &str, wanted: u64) {
    wait_until(format!("{name} to be restarted as generation {wanted}"), || {
        let process = daemon.get("process", name);
        assert!(process["metadata"]["generation"].as_u64() <= Some(wanted), "more restarts than changes: {process}");
        let settled = process["metadata"]["generation"] == wanted
            && process["status"]["observedGeneration"] == wanted
            && process["status"].get("rollout").is_none()
            && condition(&process, "Ready")?["status"] == "True";
        settled.then_some(())
    });
}

/// Saves in one step: a write is two, and on a busy machine there may be time for a look between them.
fn save(path: &Path, text: &str) {
    let scratch = path.with_extension("new~");
    fs::write(&scratch, text).unwrap();
    fs::rename(scratch, path).unwrap();
}

fn application(daemon: &Daemon) -> PathBuf {
    let app = daemon.path().join("app");
    fs::create_dir_all(app.join("src/out")).unwrap();
    fs::write(app.join("src/app.py"), "1").unwrap();
    app
}

#[test]
fn each_change_of_content_is_one_restart_and_nothing_else_is() {
    let daemon = Daemon::start();
    let app = application(&daemon);
    let watch = |debounce: &str| json!({"replicas": 2, "watch": {"paths": ["src"], "exclude": ["*.log", "out"], "debounce": debounce}});
    daemon.apply_ready(&process("web", &app, &watch("200ms")));
    watched(&daemon, "web", 1);
    let begun = generation(&daemon, "web");
    let pids = |daemon: &Daemon| [daemon.running("web-0"), daemon.running("web-1")];
    let before = pids(&daemon);

    save(&app.join("src/app.py"), "2");
    restarted(&daemon, "web", begun + 1);
    assert!(pids(&daemon).iter().zip(&before).all(|(after, before)| after != before));
    assert_eq!(daemon.instance("web-1").restarts(), 1);
    let why = daemon.ok(&["why", "process/web"]);
    assert!(why.contains("FilesChanged: src/app.py changed"), "{why}");
    assert!(daemon.ok(&["why", "instance/web-0"]).contains("FilesChanged: src/app.py changed"));
    wait_until("the event", || {
        daemon.ok(&["events", "--for", "process/web"]).contains("src/app.py changed: restarting").then_some(())
    });

    // Neither what is excluded, nor a save without a change; an atomic save is one.
    fs::write(app.join("src/app.log"), "noise").unwrap();
    fs::write(app.join("src/out/result"), "noise").unwrap();
    fs::write(app.join("src/.app.py.swp"), "noise").unwrap();
    save(&app.join("src/app.py"), "2");
    save(&app.join("src/app.py"), "3");
    restarted(&daemon, "web", begun + 2);
    // A new directory with a file, and everything gone, and everything back.
    fs::create_dir_all(app.join("src/lib/deep")).unwrap();
    save(&app.join("src/lib/deep/a.py"), "1");
    restarted(&daemon, "web", begun + 3);
    fs::rename(app.join("src"), app.join("gone")).unwrap();
    restarted(&daemon, "web", begun + 4);
    fs::create_dir(app.join("src")).unwrap();
    save(&app.join("src/app.py"), "4");
    restarted(&daemon, "web", begun + 5);
    save(&app.join("src/app.py"), "5");
    restarted(&daemon, "web", begun + 6);

    // A burst is one change. Other rules for the same files are none.
    daemon.apply(&process("web", &app, &watch("3s")));
    let begun = generation(&daemon, "web");
    for number in 0..1000 {
        fs::write(app.join(format!("src/file-{}", number % 10)), number.to_string()).unwrap();
    }
    restarted(&daemon, "web", begun + 1);
    daemon.apply(&process("web", &app, &watch("200ms")));
    let begun = generation(&daemon, "web");
    save(&app.join("src/app.py"), "6");
    restarted(&daemon, "web", begun + 1);

    // While nobody watches, what changes is found out later, and what does not is not.
    let before = pids(&daemon);
    daemon.shutdown();
    save(&app.join("src/app.py"), "6");
    daemon.serve();
    fs::write(app.join("src/app.log"), "more noise").unwrap();
    watched(&daemon, "web", 11);
    assert_eq!(pids(&daemon), before);
    daemon.kill_both();
    save(&app.join("src/app.py"), "7");
    daemon.serve();
    restarted(&daemon, "web", begun + 2);
    assert!(pids(&daemon).iter().zip(&before).all(|(after, before)| after != before));
    save(&app.join("src/app.py"), "8");
    restarted(&daemon, "web", begun + 3);

    // What is stopped stays so, and nothing is caught up on.
    daemon.ok(&["stop", "process/web"]);
    daemon.phase("web-0", "Stopped");
    let begun = generation(&daemon, "web");
    let known = daemon.get("process", "web")["status"]["watch"]["fingerprint"].clone();
    save(&app.join("src/app.py"), "9");
    wait_until("it to be noticed", || {
        (daemon.get("process", "web")["status"]["watch"]["fingerprint"] != known).then_some(())
    });
    assert_eq!((generation(&daemon, "web"), daemon.instance("web-0").phase()), (begun, "Stopped"));
    // Without `watch` nothing is left of it.
    daemon.apply(&process("web", &app, &json!({"replicas": 2})));
    wait_until("it to be forgotten", || {
        let process = daemon.get("process", "web");
        (process["status"].get("watch").is_none() && condition(&process, "FilesWatched").is_none()).then_some(())
    });
}

#[test]
fn a_signal_tells_the_running_process_and_a_restart_cascades_in_order() {
    let daemon = Daemon::start();
    let app = application(&daemon);
    // What a release tool does: the link is replaced, and what it leads to stays.
    for (release, text) in [("one", "1"), ("two", "2")] {
        fs::create_dir(app.join(release)).unwrap();
        fs::write(app.join(release).join("conf"), text).unwrap();
    }
    symlink("one", app.join("current")).unwrap();
    let notes = app.join("notes");
    let script = format!(
        "note() {{ echo \"$1 $(cat current/conf)\" >> {}; }}; trap 'note usr1' USR1; note start; while :; do sleep 0.1; done",
        notes.display()
    );
    let noted = |wanted: &[&str]| {
        wait_until(format!("{wanted:?}"), || {
            let text = fs::read_to_string(&notes).unwrap_or_default();
            (text.lines().collect::<Vec<_>>() == wanted).then_some(())
        });
    };
    daemon.apply_ready(&process(
        "told",
        &app,
        &json!({"command": ["sh", "-c", script], "watch": {"paths": ["current/conf"], "action": "Signal",
            "signal": "SIGUSR1", "debounce": "100ms"}}),
    ));
    watched(&daemon, "told", 1);
    noted(&["start 1"]);
    let before = daemon.running("told-0");
    symlink("two", app.join("next")).unwrap();
    fs::rename(app.join("next"), app.join("current")).unwrap();
    noted(&["start 1", "usr1 2"]);
    save(&app.join("two/conf"), "3");
    noted(&["start 1", "usr1 2", "usr1 3"]);
    assert_eq!(daemon.running("told-0"), before);

    let on = |names: &[&str]| json!(names.iter().map(|name| json!({"process": name})).collect::<Vec<_>>());
    daemon.apply(&process("d", &app, &json!({"dependsOn": on(&["a", "c"])})));
    daemon.apply(&process("c", &app, &json!({"dependsOn": on(&["b"])})));
    daemon.apply(&process("b", &app, &json!({"dependsOn": on(&["a"])})));
    daemon.apply(&process("other", &app, &json!({})));
    let watch = json!({"watch": {"paths": ["src/app.py"], "debounce": "100ms", "cascade": true}});
    daemon.apply(&process("a", &app, &watch));
    for name in ["a", "b", "c", "d", "other"] {
        daemon.ok(&["wait", &format!("process/{name}"), "--for=condition=Ready", "--timeout=60s"]);
    }
    watched(&daemon, "a", 1);
    let before: Vec<_> = ["a-0", "b-0", "c-0", "d-0", "other-0"].map(|name| daemon.running(name)).into();
    save(&app.join("src/app.py"), "2");
    for name in ["a", "b", "c", "d"] {
        restarted(&daemon, name, 2);
    }
    let started = |name: &str| daemon.instance(name).0["status"]["startedAt"].as_str().unwrap().to_owned();
    let times = ["a-0", "b-0", "c-0", "d-0"].map(started);
    assert!(times.is_sorted(), "{times:?}");
    for (name, before) in ["a-0", "b-0", "c-0", "d-0"].iter().zip(&before) {
        assert_ne!(daemon.running(name), *before, "{name}");
        assert_eq!(daemon.instance(name).restarts(), 1, "{name}");
    }
    assert_eq!(daemon.running("other-0"), before[4]);
    let why = daemon.ok(&["why", "process/d"]);
    assert!(why.contains("DependencyRestarted: process/c, which it depends on, was restarted"), "{why}");
    // What cannot be watched is said, with what to do; bad patterns are refused where they stand.
    let refused = daemon.try_apply(&process("bad", &app, &json!({"watch": {"paths": ["src"], "exclude": ["a["]}})));
    assert!(refused.stderr.contains("is not a pattern"), "{}", refused.stderr);
}

#[test]
fn without_room_for_watches_files_are_looked_at_and_that_is_said() {
    let script = r#"echo 1 > /proc/sys/user/max_inotify_watches && exec "$0" "$@""#;
    let limited = ["unshare", "-Ur", "sh", "-c", script];
    let tried = Command::new(limited[0]).args(&limited[1..]).arg("true").output();
    if !tried.is_ok_and(|tried| tried.status.success()) {
        return skipped("watch", "no user namespaces, in which the kernel takes fewer watches");
    }
    let daemon = Setup::default().wrapper(&limited).start();
    let app = application(&daemon);
    daemon.apply_ready(&process("web", &app, &json!({"watch": {"paths": ["src"], "debounce": "100ms"}})));
    let condition = wait_until("the condition", || condition(&daemon.get("process", "web"), "FilesWatched"));
    assert_eq!((&condition["status"], &condition["reason"]), (&json!("False"), &json!("Polling")));
    assert!(condition["message"].to_string().contains("fs.inotify.max_user_watches"), "{condition}");
    save(&app.join("src/app.py"), "2");
    restarted(&daemon, "web", 2);
}
