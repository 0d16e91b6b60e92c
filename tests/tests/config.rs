//! What processes get from ConfigMaps, Secrets and files, what a change of those does, and where no secret is ever seen.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use ostler_tests::{Daemon, manifest, proc, wait_until};
use serde_json::{Value, json};

fn config_map(name: &str, data: &Value) -> String {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}).to_string()
}

fn secret(name: &str, data: &Value) -> String {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data}).to_string()
}

fn sleeper(name: &str, more: &Value) -> String {
    let mut spec = json!({"command": ["sleep", "100000"]});
    spec.as_object_mut().expect("it is one").extend(more.as_object().expect("it is one").clone());
    manifest::process(name, &spec).to_string()
}

/// A variable of the process that an instance now runs.
fn variable(daemon: &Daemon, instance: &str, name: &str) -> Option<String> {
    proc::variable(daemon.instance(instance).pid()?, name)
}

/// Waits until an instance runs with a variable, and nothing is left to be done.
fn runs_with(daemon: &Daemon, instance: &str, name: &str, value: Option<&str>) -> i32 {
    wait_until(format!("{instance} to run with {name}={value:?}"), || {
        let now = daemon.instance(instance);
        let pid = now.pid().filter(|_| now.phase() == "Running")?;
        // Before its exec a process has the environment of its parent.
        let begun = proc::variable(pid, "OSTLER_INSTANCE").as_deref() == Some(instance);
        (begun && proc::variable(pid, name).as_deref() == value).then_some(pid)
    })
}

#[test]
fn a_change_rolls_what_it_concerns_and_removed_variables_are_gone() {
    let daemon = Daemon::start();
    daemon.apply(&config_map("app", &json!({"LEVEL": "info", "OLD": "1", "app.conf": "text"})));
    daemon.apply(&config_map("calm", &json!({"COLOUR": "red"})));
    daemon.apply_ready(&sleeper(
        "web",
        &json!({"replicas": 2, "envFrom": [{"configMapRef": {"name": "app"}, "prefix": "APP_"},
            {"configMapRef": {"name": "calm", "onChange": "Ignore"}}],
            "env": [{"name": "COPY", "valueFrom": {"configMapKeyRef": {"name": "app", "key": "LEVEL"}}},
                    {"name": "SAID", "value": "at $(COPY)"}]}),
    ));
    let before = runs_with(&daemon, "web-0", "APP_LEVEL", Some("info"));
    assert_eq!(variable(&daemon, "web-0", "APP_OLD").as_deref(), Some("1"));
    assert_eq!(variable(&daemon, "web-1", "SAID").as_deref(), Some("at info"));
    assert_eq!(variable(&daemon, "web-1", "COLOUR").as_deref(), Some("red"));

    let changed = config_map("app", &json!({"LEVEL": "debug", "app.conf": "text"}));
    let diff = daemon.feed(&["diff", "-f", "-"], changed.as_bytes());
    assert!(diff.stdout.contains("will restart web-0, web-1 (configmap \"app\" changed)"), "{}", diff.stdout);
    // What is ignored waits for the next start.
    daemon.apply(&config_map("calm", &json!({"COLOUR": "blue"})));
    assert_eq!(runs_with(&daemon, "web-0", "COLOUR", Some("red")), before);
    daemon.apply(&changed);
    for instance in ["web-0", "web-1"] {
        runs_with(&daemon, instance, "APP_LEVEL", Some("debug"));
        assert_eq!(variable(&daemon, instance, "APP_OLD"), None);
        assert_eq!(variable(&daemon, instance, "SAID").as_deref(), Some("at debug"));
        assert_eq!(variable(&daemon, instance, "COLOUR").as_deref(), Some("blue"));
    }
    daemon.ok(&["wait", "process/web", "--for=condition=Ready", "--timeout=60s"]);
    // Applied again, and after the controller was killed, nothing restarts.
    let pids: Vec<_> = daemon.instances().iter().map(ostler_tests::Instance::pid).collect();
    assert!(daemon.apply(&changed).contains("unchanged"));
    daemon.kill_controller();
    daemon.answers();
    daemon.ok(&["wait", "process/web", "--for=condition=Ready", "--timeout=60s"]);
    daemon.apply_ready(&manifest::sleeper("other").to_string());
    let after: Vec<_> =
        daemon.instances().iter().filter(|it| it.name().starts_with("web")).map(ostler_tests::Instance::pid).collect();
    assert_eq!(after, pids);
}

#[test]
fn a_missing_reference_is_waited_for_and_a_deleted_one_stops_nothing() {
    let daemon = Daemon::start();
    let reference = |optional: bool| json!({"env": [{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "late", "key": "token", "optional": optional}}}]});
    daemon.apply(&sleeper("waits", &reference(false)));
    daemon.apply_ready(&sleeper("goes", &reference(true)));
    let waiting = daemon.instance_when("waits-0", "waiting", |it| it.reason() == "ConfigError");
    assert_eq!(waiting.phase(), "Pending");
    assert_eq!(waiting.0["status"]["message"], "secret \"late\" not found");
    wait_until("the event", || {
        daemon.ok(&["events", "--for", "instance/waits-0"]).contains("ConfigError").then_some(())
    });
    daemon.apply(&secret("late", &json!({"other": "x"})));
    daemon.instance_when("waits-0", "waiting for the key", |it| {
        it.0["status"]["message"] == "secret \"late\" has no key \"token\""
    });
    daemon.apply(&secret("late", &json!({"token": "t-1"})));
    let pid = runs_with(&daemon, "waits-0", "TOKEN", Some("t-1"));
    runs_with(&daemon, "goes-0", "TOKEN", Some("t-1"));
    daemon.ok(&["delete", "secret/late"]);
    // The optional variable is really gone; what cannot do without goes on.
    runs_with(&daemon, "goes-0", "TOKEN", None);
    assert_eq!(runs_with(&daemon, "waits-0", "TOKEN", Some("t-1")), pid);
    daemon.apply(&secret("late", &json!({"token": "t-2"})));
    runs_with(&daemon, "waits-0", "TOKEN", Some("t-2"));
}

#[test]
fn env_files_are_read_at_each_start_and_env_wins() {
    let daemon = Daemon::start();
    let file = daemon.path().join("app.env");
    fs::write(&file, "# comment\nexport FROM=\"a file\"\nBOTH=file\n").unwrap();
    daemon.apply_ready(&sleeper(
        "web",
        &json!({"envFiles": [{"path": "app.env"}, {"path": "none.env", "optional": true}],
            "env": [{"name": "BOTH", "value": "manifest"}]}),
    ));
    runs_with(&daemon, "web-0", "FROM", Some("a file"));
    assert_eq!(variable(&daemon, "web-0", "BOTH").as_deref(), Some("manifest"));
    fs::write(&file, "BOTH=file\n").unwrap();
    daemon.ok(&["restart", "process/web", "--wait"]);
    runs_with(&daemon, "web-0", "FROM", None);
}

/// What a shell notes down of its files: at its start and on each SIGHUP.
fn reader(daemon: &Daemon, more: &Value) -> String {
    let notes = daemon.path().join("notes");
    let note = format!(
        r#"note() {{ echo "$1 $(cat "$OSTLER_FILES_DIR/conf/level") $(ls "$OSTLER_FILES_DIR/all" | tr '\n' ' ')$(cat fixed 2>/dev/null || cat "$OSTLER_FILES_DIR/fixed")" >> {}; }}"#,
        notes.display()
    );
    let script = format!("{note}; trap 'note hup' HUP; note start; while :; do sleep 0.1; done");
    let mut spec = json!({"command": ["sh", "-c", script, "$(OSTLER_FILES_DIR)"]});
    spec.as_object_mut().expect("it is one").extend(more.as_object().expect("it is one").clone());
    manifest::process("reader", &spec).to_string()
}

#[test]
fn files_are_new_before_the_signal_and_are_gone_with_the_process() {
    let daemon = Daemon::start();
    let notes = || -> Vec<String> {
        let text = fs::read_to_string(daemon.path().join("notes")).unwrap_or_default();
        text.lines().map(|line| line.trim_end().to_owned()).collect()
    };
    let noted = |wanted: &[&str]| {
        wait_until(format!("{wanted:?}"), || (notes() == *wanted).then_some(()));
    };
    daemon.apply(&config_map("app", &json!({"level": "info", "x.conf": "1"})));
    let manifest = reader(
        &daemon,
        &json!({"files": [
            {"path": "conf/level", "configMapRef": {"name": "app", "key": "level"}, "onChange": "Signal"},
            {"path": "all", "configMapRef": {"name": "app"}, "onChange": "Signal"},
            {"path": "fixed", "secretRef": {"name": "late", "key": "word"}, "mode": "0500"}]}),
    );
    daemon.apply(&manifest);
    daemon.instance_when("reader-0", "waiting for the Secret", |it| it.reason() == "ConfigError");
    daemon.apply(&secret("late", &json!({"word": "open"})));
    noted(&["start info level x.conf open"]);
    let before = daemon.running("reader-0");
    let directory = PathBuf::from(proc::variable(before.pid, "OSTLER_FILES_DIR").unwrap());
    assert!(proc::arguments(before.pid).contains(&directory.display().to_string()));
    let mode = |path: &str| fs::metadata(directory.join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(""), mode("conf/level"), mode("fixed")), (0o700, 0o400, 0o500));

    // One change, one signal, and the same process.
    daemon.apply(&config_map("app", &json!({"level": "debug", "y.conf": "1"})));
    noted(&["start info level x.conf open", "hup debug level y.conf open"]);
    wait_until("the event", || {
        let events = daemon.ok(&["events", "--for", "instance/reader-0"]);
        (events.contains("FilesReplaced") && events.contains("SIGHUP")).then_some(())
    });
    // Neither a controller that begins anew nor a new daemon tells it again, but both of what changes then.
    daemon.kill_controller();
    daemon.answers();
    daemon.kill_both();
    daemon.serve();
    daemon.apply(&config_map("app", &json!({"level": "trace", "y.conf": "1"})));
    noted(&["start info level x.conf open", "hup debug level y.conf open", "hup trace level y.conf open"]);
    assert_eq!(daemon.running("reader-0"), before);

    // What is not to be signalled replaces the process, which finds everything new.
    daemon.apply(&secret("late", &json!({"word": "shut"})));
    wait_until("the next process", || (notes().last()? == "start trace level y.conf shut").then_some(()));
    assert!(!proc::lives(before));
    daemon.ok(&["delete", "process/reader"]);
    wait_until("the files to go", || (!directory.exists()).then_some(()));
    if ostler_tests::is_root() {
        let script = r#"id -un; cat "$OSTLER_FILES_DIR/word"; exec sleep 100000"#;
        let spec = json!({"user": "nobody", "workingDir": "/", "command": ["sh", "-c", script],
            "files": [{"path": "word", "secretRef": {"name": "late", "key": "word"}}]});
        daemon.apply(&manifest::process("other", &spec).to_string());
        wait_until("the other user to read its file", || {
            daemon.cli(&["logs", "other-0"]).stdout.contains("nobody\nshut").then_some(())
        });
    }
    // Paths that lead out are refused where they stand.
    let escape = sleeper("out", &json!({"files": [{"path": "../x", "configMapRef": {"name": "app"}}]}));
    let refused = daemon.try_apply(&escape).stderr;
    assert!(refused.contains("a relative path such as"), "{refused}");
}

#[test]
fn what_is_immutable_stays_and_bad_content_changes_nothing() {
    let daemon = Daemon::start();
    let fixed = |level: &str| {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "fixed"}, "data": {"LEVEL": level},
            "immutable": true})
        .to_string()
    };
    daemon.apply(&fixed("1"));
    assert!(daemon.apply(&fixed("1")).contains("unchanged"));
    assert!(daemon.try_apply(&fixed("2")).stderr.contains("immutable"));
    assert!(daemon.try_apply(&config_map("fixed", &json!({"LEVEL": "1"}))).stderr.contains("immutable"));
    let both = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "bad"},
        "data": {"a/b": "x", "c": "y"}, "binaryData": {"c": "not base64!"}});
    let said = daemon.try_apply(&both.to_string()).stderr;
    for part in ["\"a/b\" is not a valid key", "is in data, too", "is not base64"] {
        assert!(said.contains(part), "{said}");
    }
    assert!(daemon.fails(1, &["get", "configmap", "bad"]).contains("not found"));
}

#[test]
fn objects_are_created_from_literals_and_files() {
    let daemon = Daemon::start();
    fs::write(daemon.path().join("app.conf"), "listen 80\n").unwrap();
    fs::write(daemon.path().join("blob"), b"\xff\x00").unwrap();
    fs::write(daemon.path().join("app.env"), "A=1\nB=2\n").unwrap();
    daemon.ok(&[
        "create",
        "configmap",
        "app",
        "--from-literal=LEVEL=a=b",
        "--from-file=app.conf",
        "--from-file=bin=blob",
    ]);
    let made = daemon.get("configmap", "app");
    assert_eq!(made["data"], json!({"LEVEL": "a=b", "app.conf": "listen 80\n"}));
    assert_eq!(made["binaryData"], json!({"bin": "/wA="}));
    assert!(daemon.fails(1, &["create", "configmap", "app", "--from-literal=A=b"]).contains("exists already"));
    daemon.ok(&["create", "secret", "generic", "db", "--from-env-file=app.env"]);
    let shown: Value =
        serde_json::from_str(&daemon.ok(&["get", "secret", "db", "-o", "json", "--show-secrets"])).unwrap();
    assert_eq!(shown["data"], json!({"A": "MQ==", "B": "Mg=="}));
    let manifest = daemon.ok(&["create", "secret", "dry", "--from-literal=A=1", "--dry-run", "-o", "yaml"]);
    assert!(daemon.feed(&["apply", "-f", "-"], manifest.as_bytes()).stdout.contains("secret/dry created"));
    assert!(daemon.ok(&["get", "cm"]).lines().any(|line| line.starts_with("app ") && line.contains(" 3 ")));
    assert!(daemon.ok(&["get", "secrets"]).lines().any(|line| line.starts_with("db ") && line.contains("Opaque")));
    assert!(daemon.ok(&["describe", "configmap/app"]).contains("  app.conf: 10 bytes"));
    // A namespace takes along what is in it.
    daemon.ok(&["apply", "-f", &namespace(&daemon)]);
    daemon.ok(&["create", "secret", "inside", "-n", "room", "--from-literal=A=1"]);
    daemon.ok(&["delete", "namespace", "room", "--timeout", "60s"]);
    daemon.ok(&["apply", "-f", &namespace(&daemon)]);
    assert!(daemon.fails(1, &["get", "secret", "inside", "-n", "room"]).contains("not found"));
}

fn namespace(daemon: &Daemon) -> String {
    let file = daemon.path().join("room.json");
    fs::write(&file, json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "room"}}).to_string())
        .unwrap();
    file.display().to_string()
}

const CANARY: &str = "c4n4ry-5ecret-7b1e";
const NEXT: &str = "c4n4ry-5ecret-9d2f";

/// The canaries and what they look like in base64, wherever in a word they begin.
fn traces() -> Vec<Vec<u8>> {
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut traces = vec![b"c4n4ry-5ecret".to_vec()];
    for shift in 0..3 {
        let bytes = [&vec![0; shift][..], b"c4n4ry-5ecret"].concat();
        let encoded: Vec<u8> = bytes
            .chunks_exact(3)
            .flat_map(|three| {
                let bits = u32::from(three[0]) << 16 | u32::from(three[1]) << 8 | u32::from(three[2]);
                [18, 12, 6, 0].map(|by| alphabet[(bits >> by & 63) as usize])
            })
            .collect();
        traces.push(encoded[if shift == 0 { 0 } else { 4 }..].to_vec());
    }
    traces
}

fn has_trace(bytes: &[u8]) -> bool {
    traces().iter().any(|trace| bytes.windows(trace.len()).any(|window| window == trace))
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files(&entry.path())),
            Ok(kind) if kind.is_file() => found.push(entry.path()),
            Ok(_) | Err(_) => {}
        }
    }
    found
}

#[test]
fn a_secret_is_seen_nowhere() {
    let daemon = ostler_tests::Setup::default().env("OSTLER_LOG", "debug").start();
    assert!(has_trace(CANARY.as_bytes()) && has_trace(b"YzRuNHJ5LTVlY3JldC03YjFl"));
    daemon.apply(&secret("db", &json!({"password": CANARY, "PGPASSWORD": CANARY})));
    daemon.apply_ready(&sleeper(
        "web",
        &json!({"envFrom": [{"secretRef": {"name": "db"}}],
            "env": [{"name": "URL", "value": "db://$(PGPASSWORD)@host"}],
            "files": [{"path": "password", "secretRef": {"name": "db", "key": "password"}},
                {"path": "live", "secretRef": {"name": "db"}, "onChange": "Signal", "signal": "SIGCONT"}],
            "readinessProbe": {"exec": {"command": ["sh", "-c", "test -n \"$PGPASSWORD\""]}}}),
    ));
    let url = format!("db://{CANARY}@host");
    let pid = runs_with(&daemon, "web-0", "URL", Some(&url));
    // Files are in memory, and nobody else can read them.
    let directory = PathBuf::from(proc::variable(pid, "OSTLER_FILES_DIR").unwrap());
    assert!(!directory.starts_with(daemon.state()), "{} is on disk", directory.display());
    assert_eq!(fs::read_to_string(directory.join("password")).unwrap(), CANARY);
    assert_eq!(fs::read_to_string(directory.join("live/PGPASSWORD")).unwrap(), CANARY);
    assert_eq!(fs::metadata(&directory).unwrap().permissions().mode() & 0o077, 0);
    // In the arguments of a command it would be seen by everybody: refused where it is known, not started elsewhere.
    let direct = sleeper(
        "argv",
        &json!({"args": ["$(P)"], "env": [{"name": "P", "valueFrom": {"secretKeyRef": {"name": "db", "key": "password"}}}]}),
    );
    let refused = daemon.try_apply(&direct);
    assert!(refused.code != 0 && refused.stderr.contains("comes from a Secret"), "{}", refused.stderr);
    daemon.apply(&sleeper("through", &json!({"args": ["$(PGPASSWORD)"], "envFrom": [{"secretRef": {"name": "db"}}]})));
    daemon.instance_when("through-0", "refused", |it| it.reason() == "SecretInCommand");

    let changed = secret("db", &json!({"password": NEXT, "PGPASSWORD": NEXT}));
    let mut seen = vec![daemon.feed(&["diff", "-f", "-"], changed.as_bytes())];
    assert!(seen[0].stdout.contains("changed>"), "{}", seen[0].stdout);
    seen.push(daemon.feed(&["apply", "-v", "-f", "-"], changed.as_bytes()));
    runs_with(&daemon, "web-0", "PGPASSWORD", Some(NEXT));
    // What reads show is not taken for the value.
    let read = daemon.cli(&["get", "secret", "db", "-o", "yaml"]);
    let again = daemon.feed(&["apply", "-f", "-"], &read.bytes);
    assert!(again.code != 0 && again.stderr.contains("--show-secrets"), "{}", again.stderr);
    // Errors do not repeat what they are about.
    for bad in [
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "bad"}, "data": {"a": CANARY}}).to_string(),
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "bad"}, "data": CANARY}).to_string(),
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "bad"}, "stringData": {"a": [CANARY]}})
            .to_string(),
    ] {
        let refused = daemon.try_apply(&bad);
        assert_ne!(refused.code, 0);
        seen.push(refused);
    }
    seen.extend([read, again]);
    for args in [
        &["get", "secrets,processes,instances,events", "-o", "json"][..],
        &["get", "secret", "db", "-o", "jsonpath={.data}"],
        &["describe", "secret/db"],
        &["describe", "process/web"],
        &["describe", "instance/web-0"],
        &["describe", "instance/through-0"],
        &["events"],
        &["top", "-o", "json"],
        &["info", "-o", "json"],
        &["logs", "web-0"],
        &["store", "backup"],
    ] {
        let said = daemon.cli(args);
        assert_eq!(said.code, 0, "{args:?}: {}", said.stderr);
        seen.push(said);
    }
    for said in &seen {
        assert!(
            !has_trace(said.stdout.as_bytes()) && !has_trace(said.stderr.as_bytes()),
            "{}{}",
            said.stdout,
            said.stderr
        );
    }
    assert!(daemon.ok(&["describe", "secret/db"]).contains("  password: 18 bytes"));
    for pid in proc::all() {
        let arguments = proc::arguments(pid).join(" ");
        // The test itself and its shell name it in no argument.
        assert!(!has_trace(arguments.as_bytes()), "{pid}: {arguments}");
    }
    assert!(daemon.log().len() > 1000 && !has_trace(daemon.log().as_bytes()));
    // Everything the daemon keeps, while it runs and when it has ended: store, journals, logs, backups.
    let key = daemon.state().join("secret.key");
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    let search = || {
        let all = files(daemon.state());
        assert!(all.iter().any(|path| path.to_string_lossy().contains("backup")), "{all:?}");
        for path in all {
            assert!(!has_trace(&fs::read(&path).unwrap_or_default()), "{}", path.display());
        }
    };
    search();
    assert!(directory.exists());
    daemon.shutdown();
    search();

    // The next daemon opens it with the key, and says so when the key is gone.
    daemon.serve();
    let show = ["get", "secret", "db", "-o", "jsonpath={.data.password}", "--show-secrets"];
    assert_eq!(daemon.ok(&show), "YzRuNHJ5LTVlY3JldC05ZDJm");
    daemon.shutdown();
    let aside = daemon.path().join("key");
    fs::rename(&key, &aside).unwrap();
    daemon.serve();
    assert!(daemon.cli(&show).stderr.contains("secret.key is missing"));
    let pid = runs_with(&daemon, "web-0", "PGPASSWORD", Some(NEXT));
    let refused = daemon.try_apply(&secret("new", &json!({"a": "b"})));
    assert!(
        refused.code != 0 && !key.exists(),
        "another key would make the old secrets unreadable: {}",
        refused.stderr
    );
    daemon.shutdown();
    fs::rename(&aside, &key).unwrap();
    daemon.serve();
    daemon.ok(&["wait", "process/web", "--for=condition=Ready", "--timeout=60s"]);
    assert_eq!(runs_with(&daemon, "web-0", "PGPASSWORD", Some(NEXT)), pid);
    assert_eq!(fs::read_to_string(directory.join("live/password")).unwrap(), NEXT);
    // What is stopped needs no files.
    daemon.ok(&["stop", "process/web"]);
    wait_until("the files to go", || (!directory.exists()).then_some(()));
}
