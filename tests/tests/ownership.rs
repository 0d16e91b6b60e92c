//! Who set which field: conflicts, and the verbs that change part of an object.

use std::fs;

use ostler_tests::{Daemon, make_program, manifest};
use serde_json::{Value, json};

fn file(daemon: &Daemon, object: &Value) {
    fs::write(daemon.path().join("web.yaml"), object.to_string()).unwrap();
}

/// What people declare of the process; its status moves by itself.
fn declared(daemon: &Daemon) -> (Value, Value) {
    let mut object = daemon.get("process", "web");
    object["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    (object["metadata"].take(), object["spec"].take())
}

fn owners(daemon: &Daemon, kind: &str, name: &str) -> Vec<(String, String)> {
    let shown = daemon.ok(&["get", kind, name, "-o", "json", "--show-managed-fields"]);
    let object: Value = serde_json::from_str(&shown).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let entries = object["metadata"]["managedFields"].as_array().unwrap();
    entries.iter().map(|entry| (text(&entry["manager"]), text(&entry["operation"]))).collect()
}

#[test]
fn a_field_that_somebody_else_set_is_a_conflict_that_names_them() {
    let daemon = Daemon::start();
    let web = manifest::with(manifest::sleeper("web"), "spec.replicas", json!(1));
    file(&daemon, &web);
    assert_eq!(daemon.ok(&["apply", "-f", "web.yaml", "--wait"]).lines().next(), Some("process/web created"));
    assert_eq!(daemon.ok(&["apply", "-f", "web.yaml"]), "process/web unchanged\n");
    daemon.ok(&["scale", "process/web", "--replicas=2"]);
    let before = declared(&daemon);
    let refused = daemon.fails(1, &["apply", "-f", "web.yaml"]);
    assert!(refused.contains("spec.replicas") && refused.contains("was set to 2 by \"ostler scale\""), "{refused}");
    assert!(refused.contains("hint: ") && refused.contains("--force-conflicts"), "{refused}");
    assert_eq!(declared(&daemon), before, "a conflict changes nothing");
    let refused = daemon.fails(2, &["diff", "-f", "web.yaml"]);
    assert!(refused.contains("\"ostler scale\""), "{refused}");
    // Who agrees owns the field, too; who leaves it out has nothing against it.
    file(&daemon, &manifest::with(web.clone(), "spec.replicas", json!(2)));
    daemon.ok(&["apply", "-f", "web.yaml"]);
    let mut silent = manifest::sleeper("web");
    silent["spec"].as_object_mut().unwrap().remove("replicas");
    file(&daemon, &silent);
    daemon.ok(&["apply", "-f", "web.yaml"]);
    assert_eq!(daemon.get("process", "web")["spec"]["replicas"], 2);
    file(&daemon, &web);
    assert_eq!(daemon.ok(&["apply", "-f", "web.yaml", "--force-conflicts"]), "process/web configured\n");
    assert_eq!(daemon.get("process", "web")["spec"]["replicas"], 1);
    assert_eq!(owners(&daemon, "process", "web"), [("ostler apply".to_owned(), "Apply".to_owned())]);
    assert!(!daemon.ok(&["get", "process", "web", "-o", "yaml"]).contains("managedFields"));
}

#[test]
fn two_managers_each_keep_what_is_theirs() {
    let daemon = Daemon::start();
    let web = manifest::with(manifest::sleeper("web"), "metadata.labels", json!({"team": "blue"}));
    file(&daemon, &web);
    daemon.ok(&["apply", "-f", "web.yaml", "--wait"]);
    let pid = daemon.running("web-0");
    let overlay = json!({"apiVersion": "ostler.dev/v1", "kind": "Process", "metadata": {"name": "web", "labels":
        {"tier": "front"}}, "spec": {"command": web["spec"]["command"], "env": [{"name": "A", "value": "1"}]}});
    fs::write(daemon.path().join("overlay.yaml"), overlay.to_string()).unwrap();
    daemon.ok(&["apply", "-f", "overlay.yaml", "--field-manager", "overlay", "--wait"]);
    assert_eq!(daemon.get("process", "web")["metadata"]["labels"], json!({"team": "blue", "tier": "front"}));
    assert_ne!(daemon.running("web-0"), pid, "a variable needs a restart");
    // What the first leaves out goes, what the second set stays.
    file(&daemon, &manifest::sleeper("web"));
    daemon.ok(&["apply", "-f", "web.yaml"]);
    let after = daemon.get("process", "web");
    assert_eq!(after["metadata"]["labels"], json!({"tier": "front"}));
    assert_eq!(after["spec"]["env"], json!([{"name": "A", "value": "1"}]));
    // The owner of a list item removes it, and nothing else of the list.
    daemon.ok(&[
        "patch",
        "process/web",
        "--type",
        "json",
        "-p",
        r#"[{"op": "add", "path": "/spec/env/-", "value": {"name": "B", "value": "2"}}]"#,
    ]);
    fs::write(daemon.path().join("overlay.yaml"), manifest::sleeper("web").to_string()).unwrap();
    daemon.ok(&["apply", "-f", "overlay.yaml", "--field-manager", "overlay"]);
    assert_eq!(daemon.get("process", "web")["spec"]["env"], json!([{"name": "B", "value": "2"}]));
}

#[test]
fn labels_annotations_and_patches_change_just_what_they_name() {
    let daemon = Daemon::start();
    daemon.apply_ready(&manifest::sleeper("web").to_string());
    let pid = daemon.running("web-0");
    assert_eq!(daemon.ok(&["label", "process/web", "tier=front"]), "process/web labeled\n");
    assert_eq!(daemon.ok(&["label", "process/web", "tier=front"]), "process/web unchanged\n");
    let refused = daemon.fails(1, &["label", "process/web", "tier=back"]);
    assert!(refused.contains("tier=\"front\" already") && refused.contains("--overwrite"), "{refused}");
    daemon.ok(&["label", "process", "web", "tier=back", "--overwrite"]);
    assert_eq!(daemon.ok(&["get", "processes", "-l", "tier=back", "-o", "name"]), "process/web\n");
    daemon.ok(&["label", "process/web", "tier-"]);
    assert_eq!(daemon.get("process", "web")["metadata"].get("labels"), None);
    assert_eq!(daemon.ok(&["annotate", "process/web", "contact=ops@example.org"]), "process/web annotated\n");
    let refused = daemon.fails(1, &["label", "process/web", "not a label=x"]);
    assert!(refused.contains("metadata.labels"), "{refused}");
    daemon.ok(&["patch", "process/web", "-p", "spec: {stop: {gracePeriod: 3s}}"]);
    let mut web = daemon.get("process", "web");
    web["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    assert_eq!(web["spec"]["stop"]["gracePeriod"], "3s");
    assert_eq!(web["metadata"]["annotations"]["contact"], "ops@example.org");
    assert_eq!(daemon.running("web-0"), pid, "none of this needs a restart");
    let wrong = daemon.fails(1, &["patch", "process/web", "-p", "spec: {stop: {gracePeriods: 3s}}"]);
    assert!(wrong.contains("gracePeriods") && wrong.contains("gracePeriod"), "{wrong}");
    let wrong = daemon.fails(1, &["patch", "process/web", "-p", "metadata: {name: other}"]);
    assert!(wrong.contains("cannot be changed"), "{wrong}");
    assert_eq!(declared(&daemon), (web["metadata"].clone(), web["spec"].clone()));
    assert!(daemon.fails(1, &["patch", "instance/web-0", "-p", "{}"]).contains("made by Ostler"));
    assert!(daemon.fails(1, &["patch", "process/wbe", "-p", "{}"]).contains("web"));
    let dry = daemon.ok(&["patch", "process/web", "-p", "spec: {user: '0'}", "--dry-run", "-v"]);
    assert!(dry.contains("process/web patched (dry run)") && dry.contains("web-0"), "{dry}");
    assert_eq!(declared(&daemon), (web["metadata"].clone(), web["spec"].clone()));
}

#[test]
fn an_object_is_edited_and_what_is_wrong_is_shown_for_mending() {
    let daemon = Daemon::start();
    daemon.apply_ready(&manifest::sleeper("web").to_string());
    let editor = |script: &str| {
        let path = daemon.path().join("editor");
        make_program(&path, format!("#!/bin/sh\n{script}\n").as_bytes(), 0o755);
        let output = daemon.client().env("OSTLER_EDITOR", &path).args(["edit", "process/web"]).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let before = daemon.get("process", "web");
    let (code, out, err) = editor("true");
    assert_eq!((code, out.as_str()), (Some(0), ""));
    assert!(err.contains("no changes made"), "{err}");
    let (code, out, _) = editor("sed -i 's/replicas: .*/replicas: 2/' \"$1\"");
    assert_eq!((code, out.as_str()), (Some(0), "process/web edited\n"));
    assert_eq!(daemon.get("process", "web")["spec"]["replicas"], 2);
    assert_eq!(daemon.get("process", "web")["metadata"]["uid"], before["metadata"]["uid"]);
    // The first attempt is refused, the second sees why, and mends it.
    let seen = daemon.path().join("seen");
    let script = format!(
        "if grep -q '^# .*replicsa' \"$1\"; then cp \"$1\" {}; sed -i '/^#/!s/replicsa: .*/replicas: 3/' \"$1\"; \
         else sed -i 's/replicas: .*/replicsa: 3/' \"$1\"; fi",
        seen.display()
    );
    let (code, out, err) = editor(&script);
    assert_eq!((code, out.as_str()), (Some(0), "process/web edited\n"), "{err}");
    assert!(fs::read_to_string(seen).unwrap().contains("replicas"));
    assert_eq!(daemon.get("process", "web")["spec"]["replicas"], 3);
    // Nobody's change in between is lost.
    let (code, _, err) = editor(&format!(
        "{} --state-dir {} scale process/web --replicas=1 >/dev/null; sed -i 's/replicas: .*/replicas: 4/' \"$1\"",
        daemon.binary().display(),
        daemon.state().display()
    ));
    assert_eq!(code, Some(1));
    assert!(err.contains("changed meanwhile"), "{err}");
    assert_eq!(daemon.get("process", "web")["spec"]["replicas"], 1);
    let (code, _, err) = editor("exit 3");
    assert_eq!(code, Some(1));
    assert!(err.contains("the editor"), "{err}");
}

#[test]
fn secrets_are_patched_and_conflicts_do_not_show_them() {
    let daemon = Daemon::start();
    let secret = |value: &str| json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "db"}, "stringData": {"password": value, "user": "app"}});
    daemon.apply(&secret("canary-one").to_string());
    assert_eq!(daemon.apply(&secret("canary-one").to_string()), "secret/db unchanged\n");
    let patch = r#"{"stringData": {"password": "canary-two"}}"#;
    assert_eq!(daemon.ok(&["patch", "secret/db", "-p", patch]), "secret/db patched\n");
    let refused = daemon.try_apply(&secret("canary-three").to_string());
    assert_eq!(refused.code, 1);
    assert!(
        refused.stderr.contains("data.password") && refused.stderr.contains("\"ostler patch\""),
        "{}",
        refused.stderr
    );
    assert!(!refused.stderr.contains("canary") && !refused.stderr.contains("Y2FuYXJ5"), "{}", refused.stderr);
    // A key that is left out of the manifest goes with its value.
    let mut less = secret("canary-two");
    less["stringData"].as_object_mut().unwrap().remove("user");
    daemon.apply(&less.to_string());
    let shown: Value =
        serde_json::from_str(&daemon.ok(&["get", "secret", "db", "-o", "json", "--show-secrets"])).unwrap();
    assert_eq!(shown["data"], json!({"password": "Y2FuYXJ5LXR3bw=="}));
}
