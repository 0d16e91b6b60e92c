//! Sources: a directory is kept applied, and nothing is lost by what becomes of the directory.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

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
    daemon.ok(&["wait", "source/apps", "--for=condition=Healthy", "--timeout=60s"]);
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
    let web = daemon.ok(&["get", "process", "b", "-o", "json", "--show-managed-fields"]);
    let web: Value = serde_json::from_str(&web).unwrap();
    assert_eq!(web["metadata"]["annotations"]["ostler.dev/source"], "apps");
    assert_eq!(web["metadata"]["managedFields"][0]["manager"], "source/apps");
}

#[test]
fn nothing_is_written_and_nothing_restarts_without_a_change() {
    let (daemon, apps) = watching(&[("a.yaml", version("a", 1)), ("b.yaml", version("b", 1))]);
    let before = running(&daemon, &["a-0", "b-0"]);
    daemon.ok(&["wait", "source/apps", "--for=condition=Healthy", "--timeout=60s"]);
    for name in ["process/a", "process/b"] {
        daemon.ok(&["rollout", "status", name, "--timeout", "60s"]);
    }
    let look = || daemon.ok(&["get", "processes,instances", "-o", "yaml"]);
    let content = wait_until("the daemon to be settled", || {
        let first = look();
        // A rollout is over a moment after its last instance is ready.
        (!first.contains("progressedAt") && first == look()).then_some(first)
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
    // By hand, the same objects: they have one owner more, and nothing else changes.
    assert_eq!(daemon.ok(&["apply", "-f", "apps"]), "process/a unchanged\nprocess/b unchanged\n");
    assert_eq!(running(&daemon, &["a-0", "b-0"]), before);
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
        // At once: an empty file would be a good one for a moment.
        fs::write(apps.join("c.new"), text).unwrap();
        fs::rename(apps.join("c.new"), apps.join("c.yaml")).unwrap();
        // A good change comes with it, and is not applied either.
        write(&apps.join("a.yaml"), &version("a", 2));
        let error = daemon.fails(1, &["sync", "apps"]);
        assert!(error.contains(place) && error.contains(reason), "no {place} in {error}");
        let status = &source(&daemon, "apps")["status"];
        assert_eq!(status["lastAppliedRevision"], good);
        assert_ne!(status["lastAttemptedRevision"], good);
        assert!(out_of_sync(&daemon, "apps", reason).contains(place));
        wait_until("an event that says where", || daemon.ok(&["events"]).contains(place).then_some(()));
        assert_eq!(running(&daemon, &["a-0", "b-0"]), before);
    }
    fs::remove_file(apps.join("c.yaml")).unwrap();
    has_version(&daemon, "a-0", 2);
    daemon.ok(&["wait", "source/apps", "--for=condition=Synced", "--timeout=60s"]);
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

/// A Source that looks at its directory by itself once a day: what it notices, it was told.
fn told(name: &str, path: &Path, more: &Value) -> Value {
    let mut object = json!({"apiVersion": "ostler.dev/v1", "kind": "Source", "metadata": {"name": name},
        "spec": {"path": path, "interval": "24h"}});
    for (field, value) in more.as_object().into_iter().flatten() {
        object["spec"][field] = value.clone();
    }
    object
}

/// A daemon with a directory `apps` that has these manifests, and a Source for it.
fn with_source(more: &Value, objects: &[(&str, Value)]) -> (Daemon, PathBuf) {
    let daemon = Daemon::start();
    let apps = daemon.path().join("apps");
    fs::create_dir(&apps).unwrap();
    for (name, object) in objects {
        write(&apps.join(name), object);
    }
    daemon.apply(&told("apps", &apps, more).to_string());
    (daemon, apps)
}

#[test]
fn every_way_to_change_a_directory_is_noticed() {
    let (daemon, apps) = with_source(&json!({}), &[("a.yaml", version("a", 1)), ("b.yaml", version("b", 1))]);
    let b = running(&daemon, &["a-0", "b-0"])["b-0"];

    // In place, as shells do; by a rename, as editors do; twice in a row.
    fs::write(apps.join("a.yaml"), version("a", 2).to_string()).unwrap();
    has_version(&daemon, "a-0", 2);
    write(&apps.join("a.yaml"), &version("a", 3));
    has_version(&daemon, "a-0", 3);
    write(&apps.join("a.yaml"), &version("a", 4));
    has_version(&daemon, "a-0", 4);

    // A directory that comes with its files, at once and from elsewhere.
    fs::create_dir_all(apps.join("x/y/z")).unwrap();
    write(&apps.join("x/y/z/c.yaml"), &version("c", 1));
    has_version(&daemon, "c-0", 1);
    let elsewhere = daemon.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    write(&elsewhere.join("d.yaml"), &version("d", 1));
    fs::rename(&elsewhere, apps.join("moved")).unwrap();
    has_version(&daemon, "d-0", 1);
    write(&apps.join("moved/d.yaml"), &version("d", 2));
    has_version(&daemon, "d-0", 2);

    // A directory that is deleted and made again is watched again.
    for round in 3..6 {
        fs::remove_dir_all(apps.join("moved")).unwrap();
        fs::create_dir(apps.join("moved")).unwrap();
        write(&apps.join("moved/d.yaml"), &version("d", round));
        has_version(&daemon, "d-0", round);
    }
    // So is the whole one.
    let aside = daemon.path().join("aside");
    fs::rename(&apps, &aside).unwrap();
    out_of_sync(&daemon, "apps", "Unreadable");
    fs::create_dir(&apps).unwrap();
    for (name, object) in [
        ("a.yaml", version("a", 5)),
        ("b.yaml", version("b", 1)),
        ("c.yaml", version("c", 1)),
        ("d.yaml", version("d", 5)),
    ] {
        write(&apps.join(name), &object);
    }
    has_version(&daemon, "a-0", 5);
    write(&apps.join("a.yaml"), &version("a", 6));
    has_version(&daemon, "a-0", 6);
    // Neither was what only lies beside it, nor what processes write into it.
    fs::write(aside.join("a.yaml"), "not read").unwrap();
    fs::write(apps.join("a.log"), "not read").unwrap();
    let after = running(&daemon, &["a-0", "b-0", "c-0", "d-0"]);
    assert_eq!(after["b-0"], b);
}

#[test]
fn symbolic_links_are_seen_when_they_are_swapped() {
    let daemon = Daemon::start();
    let root = daemon.path().to_owned();
    // A link to the directory, as deployments by release have it.
    for release in 1..4 {
        let directory = root.join(format!("releases/{release}"));
        fs::create_dir_all(&directory).unwrap();
        write(&directory.join("a.yaml"), &version("a", release));
    }
    let point = |link: &str, target: &str| {
        let new = root.join("new-link");
        symlink(target, &new).unwrap();
        fs::rename(new, root.join(link)).unwrap();
    };
    point("current", "releases/1");
    daemon.apply(&told("releases", &root.join("current"), &json!({})).to_string());
    has_version(&daemon, "a-0", 1);
    for release in 2..4 {
        point("current", &format!("releases/{release}"));
        has_version(&daemon, "a-0", release);
    }
    write(&root.join("releases/3/a.yaml"), &version("a", 4));
    has_version(&daemon, "a-0", 4);

    // Links to files through a link that is swapped, as Kubernetes mounts ConfigMaps.
    let mounted = root.join("mounted");
    for generation in ["..1", "..2"] {
        fs::create_dir_all(mounted.join(generation)).unwrap();
        let number = generation.trim_start_matches('.').parse().unwrap();
        write(&mounted.join(generation).join("b.yaml"), &version("b", number));
    }
    symlink("..1", mounted.join("..data")).unwrap();
    symlink("..data/b.yaml", mounted.join("b.yaml")).unwrap();
    daemon.apply(&told("mounted", &mounted, &json!({})).to_string());
    has_version(&daemon, "b-0", 1);
    point("mounted/..data", "..2");
    has_version(&daemon, "b-0", 2);
    write(&mounted.join("..2/b.yaml"), &version("b", 3));
    has_version(&daemon, "b-0", 3);
}

#[test]
fn git_at_work_is_waited_for() {
    let (daemon, apps) = with_source(&json!({}), &[("a.yaml", version("a", 1))]);
    let a = has_version(&daemon, "a-0", 1);
    fs::create_dir(apps.join(".git")).unwrap();
    fs::write(apps.join(".git/HEAD"), "ref: refs/heads/main\n").unwrap();
    fs::write(apps.join(".git/index.lock"), "").unwrap();
    write(&apps.join("a.yaml"), &version("a", 2));
    write(&apps.join("b.yaml"), &version("b", 1));
    let error = daemon.fails(4, &["sync", "apps", "--timeout", "1s"]);
    assert!(error.contains("timed out"), "{error}");
    assert_eq!(running(&daemon, &["a-0"])["a-0"], a);
    fs::remove_file(apps.join(".git/index.lock")).unwrap();
    has_version(&daemon, "a-0", 2);
    has_version(&daemon, "b-0", 1);
    assert_eq!(source(&daemon, "apps")["status"]["revision"]["branch"], "main");
}

#[test]
fn deletions_have_a_limit_that_can_be_lifted() {
    let names = ["a", "b", "c", "d"];
    let objects: Vec<(String, Value)> = names.iter().map(|name| (format!("{name}.yaml"), version(name, 1))).collect();
    let objects: Vec<(&str, Value)> = objects.iter().map(|(name, object)| (name.as_str(), object.clone())).collect();
    let (daemon, apps) = with_source(&json!({}), &objects);
    let before = running(&daemon, &["a-0", "b-0", "c-0", "d-0"]);
    for name in ["b", "c", "d"] {
        fs::remove_file(apps.join(format!("{name}.yaml"))).unwrap();
    }
    // What would be changed beside is not changed either.
    write(&apps.join("a.yaml"), &version("a", 2));
    let error = daemon.fails(1, &["sync", "apps"]);
    assert!(error.contains("3 of 4 objects") && error.contains("--allow-prune"), "{error}");
    assert_eq!(running(&daemon, &["a-0", "b-0", "c-0", "d-0"]), before);
    let preview = daemon.cli(&["diff", "--source", "apps"]);
    assert_eq!(preview.code, 1);
    for line in ["+    value: '2'", "will restart a-0", "will delete default/process/d\n"] {
        assert!(preview.stdout.contains(line), "no {line:?} in {}", preview.stdout);
    }
    assert!(preview.stderr.contains("would refuse"), "{}", preview.stderr);
    assert_eq!(running(&daemon, &["a-0", "b-0", "c-0", "d-0"]), before, "a diff changed something");
    // What was allowed to another revision is not allowed to this one.
    let mut object = told("apps", &apps, &json!({}));
    let request = format!("2100-01-01T00:00:00Z allow-prune {}", "0".repeat(64));
    object["metadata"]["annotations"] = json!({"ostler.dev/syncRequestedAt": request});
    daemon.apply(&object.to_string());
    wait_until("the request to be carried out", || {
        let at = source(&daemon, "apps")["status"]["lastHandledSync"].as_str()?.to_owned();
        at.starts_with("2100-").then_some(())
    });
    out_of_sync(&daemon, "apps", "TooManyDeletions");
    assert_eq!(running(&daemon, &["a-0", "b-0", "c-0", "d-0"]), before);
    // The clock was set back since, one would think; a request is a request.
    daemon.ok(&["sync", "apps", "--allow-prune"]);
    has_version(&daemon, "a-0", 2);
    running(&daemon, &["a-0"]);
    assert_eq!(daemon.cli(&["diff", "--source", "apps"]).code, 0);
    // One may always be replaced by another; without prune, none goes.
    fs::rename(apps.join("a.yaml"), apps.join("e.yaml")).unwrap();
    write(&apps.join("e.yaml"), &version("e", 1));
    running(&daemon, &["e-0"]);
    daemon.apply(&told("apps", &apps, &json!({"prune": false})).to_string());
    write(&apps.join("e.yaml"), &version("f", 1));
    running(&daemon, &["e-0", "f-0"]);
    let said = daemon.ok(&["sync", "apps"]);
    assert!(said.contains("kept: process/e"), "{said}");
}

#[test]
fn what_is_on_its_way_is_not_deleted() {
    let objects = [("a.yaml", version("a", 1)), ("b.yaml", version("b", 1)), ("c.yaml", version("c", 1))];
    let (daemon, apps) = with_source(&json!({"maxDeletions": 1}), &objects);
    let before = running(&daemon, &["a-0", "b-0", "c-0"]);
    // Somebody replaces the directory, one file after the other.
    for name in ["b", "c"] {
        fs::remove_file(apps.join(name).with_extension("yaml")).unwrap();
    }
    write(&apps.join("a.yaml"), &version("a", 1));
    // As long as it goes on changing it has not settled, however slowly this is carried out.
    let mut blanks = 0;
    let mut stirred = Instant::now();
    let mut are_on_their_way = |count: &str| {
        wait_until(format!("{count} to be on their way"), || {
            if stirred.elapsed() > Duration::from_secs(1) {
                (blanks, stirred) = (blanks + 1, Instant::now());
                fs::write(apps.join("a.new"), version("a", 1).to_string() + &"\n".repeat(blanks)).unwrap();
                fs::rename(apps.join("a.new"), apps.join("a.yaml")).unwrap();
            }
            let (_, reason, why) = condition(&source(&daemon, "apps"), "Synced");
            (reason == "Settling" && why.starts_with(count)).then_some(())
        });
    };
    are_on_their_way("2 objects");
    write(&apps.join("c.yaml"), &version("c", 1));
    are_on_their_way("1 objects");
    write(&apps.join("b.yaml"), &version("b", 1));
    wait_until("all to be there", || (condition(&source(&daemon, "apps"), "Synced").0 == "True").then_some(()));
    assert_eq!(running(&daemon, &["a-0", "b-0", "c-0"]), before);
    assert!(!daemon.ok(&["events"]).contains("TooManyDeletions"));
    // What does not come back goes; one of the same name that is made again has brought nothing.
    fs::remove_file(apps.join("b.yaml")).unwrap();
    running(&daemon, &["a-0", "c-0"]);
    for _ in 0..3 {
        daemon.ok(&["delete", "source/apps"]);
        daemon.apply(&told("apps", &apps, &json!({})).to_string());
    }
    write(&apps.join("d.yaml"), &version("d", 1));
    running(&daemon, &["a-0", "c-0", "d-0"]);
}

#[test]
fn only_what_a_source_brought_is_deleted_and_the_first_one_keeps_what_two_claim() {
    let (daemon, apps) = with_source(&json!({}), &[]);
    // Left out, it would be the directory of the manifest: what moves would restart.
    let version =
        |name: &str, number: u32| manifest::with(version(name, number), "spec.workingDir", json!(daemon.path()));
    write(&apps.join("a.yaml"), &version("a", 1));
    write(&apps.join("b.yaml"), &version("b", 1));
    daemon.apply(
        &manifest::with(version("own", 1), "metadata.annotations", json!({"ostler.dev/source": "apps"})).to_string(),
    );
    let before = running(&daemon, &["a-0", "b-0", "own-0"]);
    let other = daemon.path().join("other");
    fs::create_dir(&other).unwrap();
    write(&other.join("a.yaml"), &version("a", 7));
    write(&other.join("c.yaml"), &version("c", 1));
    daemon.apply(&told("other", &other, &json!({})).to_string());
    let why = out_of_sync(&daemon, "other", "Conflict");
    assert!(why.contains("a.yaml:1:") && why.contains("process/a belongs to source/apps"), "{why}");
    assert_eq!(running(&daemon, &["a-0", "b-0", "own-0"]), before);
    fs::remove_file(other.join("a.yaml")).unwrap();
    has_version(&daemon, "c-0", 1);
    // The one that goes deletes nothing; what it brought can be claimed by another then.
    daemon.ok(&["delete", "source/apps"]);
    write(&other.join("a.yaml"), &version("a", 1));
    daemon.ok(&["sync", "other"]);
    assert_eq!(daemon.get("process", "a")["metadata"]["annotations"]["ostler.dev/source"], "other");
    let after = running(&daemon, &["a-0", "b-0", "c-0", "own-0"]);
    for name in ["a-0", "b-0", "own-0"] {
        assert_eq!(after[name], before[name]);
    }
    fs::remove_file(apps.join("b.yaml")).unwrap();
    daemon.ok(&["sync"]);
    assert!(after.values().all(|process| proc::lives(*process)));
}

#[test]
fn drift_is_healed_unless_told_otherwise() {
    let scaled = |replicas: u32| manifest::with(version("a", 1), "spec.replicas", json!(replicas));
    let (daemon, apps) = with_source(&json!({}), &[("a.yaml", scaled(2)), ("b.yaml", version("b", 1))]);
    let before = running(&daemon, &["a-0", "a-1", "b-0"]);
    daemon.ok(&["scale", "process/a", "--replicas=4"]);
    wait_until("the drift to be healed", || daemon.ok(&["events"]).contains("DriftHealed").then_some(()));
    assert_eq!(running(&daemon, &["a-0", "a-1", "b-0"]), before);
    wait_until("what was healed", || daemon.ok(&["events"]).contains("spec.replicas 4 → 2").then_some(()));
    // What is deleted by hand comes back when it is gone.
    daemon.ok(&["delete", "process/b"]);
    let after = wait_until("b-0 to be another one", || {
        let after = running(&daemon, &["a-0", "a-1", "b-0"]);
        (after["b-0"] != before["b-0"]).then_some(after)
    });
    assert_eq!(after["a-1"], before["a-1"]);
    // What only Ostler notes down is no drift: a stop by hand stays.
    daemon.ok(&["stop", "process/b", "--timeout", "60s"]);
    daemon.ok(&["sync"]);
    daemon.phase("b-0", "Stopped");
    daemon.ok(&["start", "process/b"]);

    daemon.apply(&told("apps", &apps, &json!({"healDrift": false})).to_string());
    daemon.ok(&["sync"]);
    running(&daemon, &["a-0", "a-1", "b-0"]);
    daemon.ok(&["scale", "process/a", "--replicas=3"]);
    let why = out_of_sync(&daemon, "apps", "Drifted");
    assert!(why.contains("process/a: spec.replicas 2 → 3"), "{why}");
    running(&daemon, &["a-0", "a-1", "a-2", "b-0"]);
    assert_eq!(source(&daemon, "apps")["status"]["drift"][0], "process/a: spec.replicas 2 → 3");
    daemon.ok(&["sync", "apps"]);
    running(&daemon, &["a-0", "a-1", "b-0"]);
    // It is also told while the directory is wrong, and nobody knows what it should be set back to.
    fs::write(apps.join("c.yaml"), "kind: [").unwrap();
    out_of_sync(&daemon, "apps", "Invalid");
    daemon.ok(&["scale", "process/a", "--replicas=1"]);
    wait_until("the drift to be told", || {
        (source(&daemon, "apps")["status"]["drift"] == json!(["process/a was changed"])).then_some(())
    });
    out_of_sync(&daemon, "apps", "Invalid");
    running(&daemon, &["a-0", "b-0"]);
    wait_until("the event", || daemon.ok(&["events"]).contains("DriftDetected").then_some(()));
    fs::remove_file(apps.join("c.yaml")).unwrap();
    daemon.ok(&["sync", "apps"]);
    running(&daemon, &["a-0", "a-1", "b-0"]);
    assert_eq!(source(&daemon, "apps")["status"]["drift"], Value::Null);
}

#[test]
fn waves_and_sources_wait_for_each_other() {
    let in_wave =
        |object: Value, wave: &str| manifest::with(object, "metadata.annotations", json!({"ostler.dev/wave": wave}));
    let daemon = Daemon::start();
    let (base, apps) = (daemon.path().join("base"), daemon.path().join("apps"));
    fs::create_dir(&base).unwrap();
    fs::create_dir(&apps).unwrap();
    // It cannot be started before the program is there.
    let program = daemon.path().join("program");
    let slow = manifest::process("slow", &json!({"command": [program, "100000"], "restartPolicy": "Always"}));
    write(&base.join("a.yaml"), &in_wave(version("late", 1), "2"));
    write(&base.join("b.yaml"), &in_wave(slow, "-1"));
    write(&apps.join("a.yaml"), &version("app", 1));
    daemon.apply(&told("apps", &apps, &json!({"dependsOn": ["base"]})).to_string());
    assert!(out_of_sync(&daemon, "apps", "DependencyNotReady").contains("source/base, which does not exist"));
    daemon.apply(&told("base", &base, &json!({"timeout": "2s"})).to_string());
    let why = out_of_sync(&daemon, "base", "WaveTimeout");
    assert!(why.contains("wave -1") && why.contains("process/slow"), "{why}");
    assert!(daemon.instances().iter().all(|it| it.name() == "slow-0"), "a later wave was applied");
    symlink("/bin/sleep", &program).unwrap();
    daemon.ok(&["restart", "process/slow"]);
    running(&daemon, &["app-0", "late-0", "slow-0"]);
    daemon.ok(&["wait", "source/apps", "--for=condition=Healthy", "--timeout=60s"]);
    // Each waiting for the other is told, and not waited for.
    daemon.apply(&told("base", &base, &json!({"dependsOn": ["apps"]})).to_string());
    assert!(out_of_sync(&daemon, "base", "DependencyCycle").contains("base → apps → base"));
}

#[test]
fn a_suspended_source_changes_nothing() {
    let (daemon, apps) = with_source(&json!({}), &[("a.yaml", version("a", 1))]);
    let before = running(&daemon, &["a-0"]);
    daemon.apply(&told("apps", &apps, &json!({"suspend": true})).to_string());
    wait_until("the Source to be suspended", || {
        (condition(&source(&daemon, "apps"), "Synced").1 == "Suspended").then_some(())
    });
    write(&apps.join("a.yaml"), &version("a", 2));
    let error = daemon.fails(1, &["sync", "apps"]);
    assert!(error.contains("suspended"), "{error}");
    daemon.ok(&["sync"]);
    assert_eq!(running(&daemon, &["a-0"]), before);
    daemon.apply(&told("apps", &apps, &json!({})).to_string());
    has_version(&daemon, "a-0", 2);
}

#[test]
fn namespaces_come_first_and_go_last() {
    let (daemon, apps) = with_source(&json!({"namespace": "staging"}), &[("web.yaml", version("web", 1))]);
    assert!(out_of_sync(&daemon, "apps", "Invalid").contains("web.yaml:1:"));
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "staging"}});
    write(&apps.join("z.yaml"), &namespace);
    write(&apps.join("other.yaml"), &manifest::with(version("other", 1), "metadata.namespace", json!("default")));
    running(&daemon, &["other-0", "web-0"]);
    fs::remove_file(apps.join("web.yaml")).unwrap();
    fs::remove_file(apps.join("z.yaml")).unwrap();
    daemon.ok(&["sync", "apps", "--allow-prune"]);
    running(&daemon, &["other-0"]);
    wait_until("the namespace to be gone", || (daemon.cli(&["get", "namespace", "staging"]).code == 1).then_some(()));
}
