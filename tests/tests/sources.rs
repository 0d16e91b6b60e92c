//! Sources: a directory is kept applied, and nothing is lost by what becomes of the directory.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use ostler_tests::{Daemon, Setup, manifest, proc, scale, wait_until};
use serde_json::{Value, json};

/// A daemon that watches the directory `apps`, which has these manifests.
fn watching(objects: &[(&str, Value)]) -> (Daemon, PathBuf) {
    let daemon = Setup::default().args(&["--watch", "apps"]).prepare();
    let apps = daemon.path().join("apps");
    fs::create_dir(&apps).unwrap();
    for (name, object) in objects {
        write(&apps.join(name), object);
    }
    daemon.serve();
    (daemon, apps)
}

/// Saves as careful editors do: another file, renamed over the old one.
fn write(path: &Path, object: &Value) {
    let new = path.with_extension("new");
    fs::write(&new, object.to_string()).unwrap();
    fs::rename(new, path).unwrap();
}

/// A sleeper that is another one when `version` is.
fn version(name: &str, version: u32) -> Value {
    manifest::with(manifest::sleeper(name), "spec.env", json!([{"name": "VERSION", "value": version.to_string()}]))
}

fn source(daemon: &Daemon, name: &str) -> Value {
    daemon.get("source", name)
}

fn condition(source: &Value, kind: &str) -> (String, String, String) {
    let conditions = source["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = conditions.iter().find(|it| it["type"] == kind).cloned().unwrap_or_default();
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    (text("status"), text("reason"), text("message"))
}

/// Waits until a Source could not be synced for a reason; why.
fn out_of_sync(daemon: &Daemon, name: &str, reason: &str) -> String {
    wait_until(format!("source/{name} to be out of sync: {reason}"), || {
        let source = source(daemon, name);
        let (status, found, message) = condition(&source, "Synced");
        (status == "False" && found == reason && source["status"]["sync"] == "OutOfSync").then_some(message)
    })
}

/// The processes of every running instance by name, when these are exactly the ones there are.
fn running(daemon: &Daemon, names: &[&str]) -> BTreeMap<String, proc::Identity> {
    wait_until(format!("{names:?} to run"), || {
        let all = daemon.instances();
        let found: BTreeMap<String, proc::Identity> = all
            .iter()
            .filter(|it| it.phase() == "Running" && it.ready())
            .filter_map(|it| Some((it.name().to_owned(), proc::identity(it.pid()?)?)))
            .collect();
        (found.len() == all.len() && found.keys().map(String::as_str).eq(names.iter().copied())).then_some(found)
    })
}

/// Waits until an instance runs with a value of VERSION.
fn has_version(daemon: &Daemon, instance: &str, version: u32) -> proc::Identity {
    wait_until(format!("{instance} to run version {version}"), || {
        let output = daemon.cli(&["get", "instance", instance, "-o", "json"]);
        let instance: Value = serde_json::from_slice(&output.bytes).ok()?;
        let pid = instance["status"]["pid"].as_i64()? as i32;
        let own = proc::variable(pid, "VERSION")? == version.to_string();
        (own && instance["status"]["ready"] == true).then(|| proc::identity(pid))?
    })
}

#[test]
fn a_directory_is_applied_and_its_changes_move_only_what_changed() {
    let (daemon, apps) = watching(&[("a.yaml", version("a", 1)), ("b.yaml", version("b", 1))]);
    let before = running(&daemon, &["a-0", "b-0"]);
    daemon.ok(&["wait", "source/apps", "--for=condition=Healthy", "--timeout=30s"]);
    let table = daemon.ok(&["get", "sources"]);
    assert!(table.contains("apps") && table.contains("Synced") && table.contains("Healthy"), "{table}");

    write(&apps.join("a.yaml"), &version("a", 2));
    let a = has_version(&daemon, "a-0", 2);
    fs::create_dir_all(apps.join("more/deep")).unwrap();
    write(&apps.join("more/deep/c.yaml"), &version("c", 1));
    let after = running(&daemon, &["a-0", "b-0", "c-0"]);
    assert_eq!((after["a-0"], after["b-0"]), (a, before["b-0"]));

    fs::remove_file(apps.join("a.yaml")).unwrap();
    let after = running(&daemon, &["b-0", "c-0"]);
    assert_eq!(after["b-0"], before["b-0"]);
    assert!(daemon.ok(&["sync", "apps"]).starts_with("source/apps synced: "));
    let described = daemon.ok(&["describe", "source/apps"]);
    assert!(described.contains("In force:") && described.contains("1 deleted"), "{described}");
    let web = daemon.get("process", "b");
    assert_eq!(web["metadata"]["annotations"]["ostler.dev/source"], "apps");
    assert_eq!(web["metadata"]["managedFields"][0]["manager"], "source/apps");
}

#[test]
fn nothing_is_written_and_nothing_restarts_without_a_change() {
    let (daemon, apps) = watching(&[("a.yaml", version("a", 1)), ("b.yaml", version("b", 1))]);
    let before = running(&daemon, &["a-0", "b-0"]);
    daemon.ok(&["wait", "source/apps", "--for=condition=Healthy", "--timeout=30s"]);
    let look = || daemon.ok(&["get", "processes,instances", "-o", "yaml"]);
    let content = wait_until("the daemon to be settled", || {
        let first = look();
        (first == look()).then_some(first)
    });
    // The same content once more, in the same file and in another one.
    write(&apps.join("a.yaml"), &version("a", 1));
    daemon.ok(&["sync"]);
    fs::rename(apps.join("b.yaml"), apps.join("z.yaml")).unwrap();
    daemon.ok(&["sync"]);
    daemon.kill_controller();
    daemon.answers();
    daemon.ok(&["sync"]);
    assert_eq!(look(), content, "something was written");
    assert_eq!(running(&daemon, &["a-0", "b-0"]), before);
    // By hand, the same objects: nothing of theirs changes either.
    daemon.ok(&["apply", "-f", "apps"]);
    assert_eq!(look(), content);
}

#[test]
fn a_broken_revision_leaves_the_last_good_one_in_force_and_says_where() {
    let (daemon, apps) = watching(&[("a.yaml", version("a", 1)), ("b.yaml", version("b", 1))]);
    let before = running(&daemon, &["a-0", "b-0"]);
    let good = wait_until("a revision to be applied", || {
        source(&daemon, "apps")["status"].get("lastAppliedRevision").cloned()
    });
    let head = "apiVersion: ostler.dev/v1\nkind: Process\nmetadata: {name: c}\n";
    for (text, place, reason) in [
        (format!("{head}spec:\n  comand: [a]\n"), "c.yaml:5:3: ", "Invalid"),
        (format!("{head}spec: [unclosed\n"), "c.yaml:", "Invalid"),
        (format!("{head}spec: {{command: [a]}}\n---\n{head}spec: {{command: [a]}}\n"), "c.yaml:8:18: ", "Invalid"),
        // What only the server can know.
        (
            format!("{}spec: {{command: [a]}}\n", head.replace("{name: c}", "{name: c, namespace: nowhere}")),
            "c.yaml:3:",
            "Invalid",
        ),
    ] {
        fs::write(apps.join("c.yaml"), text).unwrap();
        // A good change comes with it, and is not applied either.
        write(&apps.join("a.yaml"), &version("a", 2));
        let error = daemon.fails(1, &["sync", "apps"]);
        assert!(error.contains(place) && error.contains(reason), "no {place} in {error}");
        let status = &source(&daemon, "apps")["status"];
        assert_eq!(status["lastAppliedRevision"], good);
        assert_ne!(status["lastAttemptedRevision"], good);
        assert!(out_of_sync(&daemon, "apps", reason).contains(place));
        assert!(daemon.ok(&["events"]).contains(place));
        assert_eq!(running(&daemon, &["a-0", "b-0"]), before);
    }
    fs::remove_file(apps.join("c.yaml")).unwrap();
    has_version(&daemon, "a-0", 2);
    daemon.ok(&["wait", "source/apps", "--for=condition=Synced", "--timeout=30s"]);
    assert_eq!(running(&daemon, &["a-0", "b-0"])["b-0"], before["b-0"]);
}

#[test]
fn an_empty_unreadable_or_broken_directory_deletes_nothing() {
    let (daemon, apps) = watching(&[("a.yaml", version("a", 1)), ("b.yaml", version("b", 1))]);
    let names = ["a-0", "b-0"];
    let before = running(&daemon, &names);
    let aside = daemon.path().join("aside");
    let sync = |flag: &str| daemon.cli(&["sync", "apps", flag]);
    let mut kinds = vec!["gone", "empty", "comments", "syntax", "file", "dangling", "binary"];
    if !ostler_tests::is_root() {
        kinds.push("unreadable");
    }
    for round in 0..50 * scale() {
        let kind = kinds[round % kinds.len()];
        fs::rename(&apps, &aside).unwrap();
        match kind {
            "gone" => {}
            "file" => fs::write(&apps, "no directory").unwrap(),
            _ => {
                fs::create_dir(&apps).unwrap();
                match kind {
                    "comments" => fs::write(apps.join("a.yaml"), "# nothing\n---\n").unwrap(),
                    "syntax" => fs::write(apps.join("a.yaml"), "kind: [\n").unwrap(),
                    "dangling" => symlink("nowhere", apps.join("a.yaml")).unwrap(),
                    "binary" => fs::write(apps.join("a.yaml"), [0xff, 0xfe, 0, 1]).unwrap(),
                    "unreadable" => fs::set_permissions(&apps, fs::Permissions::from_mode(0o000)).unwrap(),
                    _ => {}
                }
            }
        }
        // Even permission to delete everything is none to take nothing for a revision.
        let output = sync("--allow-prune");
        assert_eq!(output.code, 1, "round {round}, {kind}: {}", output.stdout);
        if round % 10 == 9 {
            daemon.kill_controller();
            daemon.answers();
            assert_eq!(sync("--timeout=1m").code, 1, "round {round}, {kind}, after a kill");
        }
        assert_eq!(running(&daemon, &names), before, "round {round}, {kind}");
        let list = daemon.ok(&["get", "processes", "-o", "name"]);
        assert_eq!(list.lines().count(), 2, "round {round}, {kind}: {list}");
        if apps.is_dir() {
            fs::set_permissions(&apps, fs::Permissions::from_mode(0o755)).unwrap();
            fs::remove_dir_all(&apps).unwrap();
        } else {
            let _ = fs::remove_file(&apps);
        }
        fs::rename(&aside, &apps).unwrap();
    }
    // The directory that came back is seen without being told.
    write(&apps.join("b.yaml"), &version("b", 2));
    has_version(&daemon, "b-0", 2);
    assert_eq!(running(&daemon, &names)["a-0"], before["a-0"]);
}
