//! What people read, word for word: conflicts, diffs, a refused edit, history and undo. The texts are in `tests/golden`;
//! `OSTLER_BLESS=1 cargo test -p ostler-tests --test golden` writes them anew: read the difference before keeping it.
//! Those of `ostler import` are in `src/import/tests`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use ostler_tests::{Daemon, Output, wait_until};

/// Compares what was said with what is kept, or keeps it. What differs from machine to machine has a name.
#[track_caller]
fn golden(daemon: &Daemon, name: &str, said: &str) {
    let said = said.replace(&daemon.path().display().to_string(), "$DIR");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name);
    if std::env::var_os("OSTLER_BLESS").is_some() {
        fs::write(path, said).unwrap();
        return;
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert!(said == expected, "{} is not what came out:\n{said}", path.display());
}

/// Exit code and both streams.
fn shown(output: &Output) -> String {
    format!("exit code {}\n--- stdout\n{}--- stderr\n{}", output.code, output.stdout, output.stderr)
}

const WEB: &str = "\
apiVersion: ostler.dev/v1
kind: Process
metadata:
  name: web
  annotations: {kubernetes.io/change-cause: first}
spec:
  replicas: 2
  command: [sleep, '1000']
  workingDir: /
";

const CACHE: &str = "\
---
apiVersion: ostler.dev/v1
kind: Process
metadata: {name: cache}
spec:
  command: [sleep, '2000']
  workingDir: /
  dependsOn: [{process: web}]
";

#[test]
fn what_is_said_is_what_was_agreed_on() {
    let daemon = Daemon::start();
    let write = |text: &str| fs::write(daemon.path().join("web.yaml"), text).unwrap();
    let complete = |number: u64| {
        daemon.ok(&["wait", "process/web", "--for=condition=Ready", "--timeout=1m"]);
        wait_until("the rollout to be complete", || {
            let status = daemon.get("process", "web")["status"].clone();
            (status["revisionNumber"] == number && status["currentRevision"] == status["revision"]).then_some(())
        });
    };
    write(WEB);
    daemon.ok(&["apply", "-f", "web.yaml"]);
    complete(1);

    // A new object, a changed one, and what follows.
    let second = WEB.replace("1000", "1001").replace("first", "second") + "  stop: {gracePeriod: 3s}\n" + CACHE;
    write(&second);
    golden(&daemon, "diff", &shown(&daemon.cli(&["diff", "-f", "web.yaml"])));
    golden(&daemon, "apply-dry-run", &shown(&daemon.cli(&["apply", "-f", "web.yaml", "--dry-run"])));
    write(&WEB.replace("1000", "1001").replace("first", "second"));
    daemon.ok(&["apply", "-f", "web.yaml"]);
    complete(2);

    // Somebody else has set a field.
    daemon.ok(&["scale", "process/web", "--replicas=1"]);
    daemon.ok(&["patch", "process/web", "-p", "spec: {stop: {gracePeriod: 4s}}"]);
    write(&(WEB.to_owned() + "  stop: {gracePeriod: 3s}\n"));
    golden(&daemon, "conflict", &shown(&daemon.cli(&["apply", "-f", "web.yaml"])));
    golden(&daemon, "conflict-diff", &shown(&daemon.cli(&["diff", "-f", "web.yaml"])));

    // Back, and what there is to go back to.
    golden(&daemon, "history", &shown(&daemon.cli(&["rollout", "history", "process/web"])));
    golden(&daemon, "history-revision", &shown(&daemon.cli(&["rollout", "history", "process/web", "--revision=1"])));
    golden(&daemon, "undo-dry-run", &shown(&daemon.cli(&["rollout", "undo", "process/web", "--dry-run"])));
    golden(&daemon, "undo-missing", &shown(&daemon.cli(&["rollout", "undo", "process/web", "--to-revision=7"])));
    golden(&daemon, "undo", &shown(&daemon.cli(&["rollout", "undo", "process/web"])));
    complete(3);
    golden(&daemon, "history-after", &shown(&daemon.cli(&["rollout", "history", "process/web"])));

    // An edit that is refused comes back with what is wrong; given up, it changes nothing.
    let editor = daemon.path().join("editor");
    let seen = daemon.path().join("seen");
    let script = format!(
        "#!/bin/sh\nif grep -q replicsa \"$1\"; then grep '^#' \"$1\" > {}; exit 1; fi\nsed -i 's/replicas:/replicsa:/' \"$1\"\n",
        seen.display()
    );
    fs::write(&editor, script).unwrap();
    fs::set_permissions(&editor, fs::Permissions::from_mode(0o755)).unwrap();
    let before = daemon.get("process", "web")["spec"].clone();
    let output = daemon.client().env("OSTLER_EDITOR", &editor).args(["edit", "process/web"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    golden(&daemon, "edit", &fs::read_to_string(seen).unwrap());
    assert_eq!(daemon.get("process", "web")["spec"], before);
}
