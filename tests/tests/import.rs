//! `ostler import`: what it prints can be applied, and runs.

use std::fs;

use ostler_tests::{Daemon, proc, wait_until};

#[test]
fn an_imported_file_runs_as_it_was_meant_to() {
    let daemon = Daemon::start();
    let procfile = "web: sh -c 'echo listens on $PORT; exec sleep 1000'\nworker: sleep 1000 # forever\n";
    fs::write(daemon.path().join("Procfile"), procfile).unwrap();
    let imported = daemon.ok(&["import", "Procfile"]);
    fs::write(daemon.path().join("imported.yaml"), &imported).unwrap();
    let valid = daemon.ok(&["validate", "-f", "imported.yaml"]);
    assert_eq!(valid, "process/web valid\nprocess/worker valid\n");
    daemon.ok(&["apply", "-f", "imported.yaml"]);
    let web = daemon.running("web-0");
    wait_until("the shell to have started the program", || (proc::arguments(web.pid)[0] == "sleep").then_some(()));
    wait_until("its port", || {
        let output = daemon.output("web-0", "stdout");
        (output == b"listens on 5000\n").then_some(())
    });
    daemon.running("worker-0");
    // JSON says the same.
    fs::write(daemon.path().join("imported.json"), daemon.ok(&["import", "Procfile", "-o", "json"])).unwrap();
    let again = daemon.ok(&["apply", "-f", "imported.json"]);
    assert_eq!(again, "process/web unchanged\nprocess/worker unchanged\n");
}

#[test]
fn what_has_no_equivalent_is_told_with_its_line_and_strict_makes_it_an_error() {
    let daemon = ostler_tests::Setup::default().prepare();
    let file = |name: &str, text: &str| fs::write(daemon.path().join(name), text).unwrap();
    file("app.service", "[Service]\nExecStart=/bin/true\nPrivateTmp=yes\nKillMode=mixed\n");
    let output = daemon.cli(&["import", "app.service", "-n", "prod"]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    assert!(output.stdout.contains("namespace: prod"), "{}", output.stdout);
    let said: Vec<&str> = output.stderr.lines().collect();
    assert!(said[0].starts_with("app.service:3: no equivalent: Service.PrivateTmp: "), "{said:?}");
    assert!(said[1].starts_with("app.service:4: approximated: Service.KillMode: "), "{said:?}");
    let strict = daemon.cli(&["import", "app.service", "--strict"]);
    assert_eq!((strict.code, strict.stdout.as_str()), (1, ""));
    assert!(strict.stderr.contains("1 keys have no equivalent and 1 are approximated"), "{}", strict.stderr);
    file("plain.service", "[Service]\nExecStart=/bin/true\n");
    daemon.ok(&["import", "plain.service", "--strict"]);
}

#[test]
fn what_cannot_be_imported_says_what_to_do() {
    let daemon = ostler_tests::Setup::default().prepare();
    let file = |name: &str, text: &str| fs::write(daemon.path().join(name), text).unwrap();
    file("ecosystem.config.js", "module.exports = {apps: []};\n");
    assert!(daemon.fails(1, &["import", "ecosystem.config.js"]).contains("JSON.stringify"));
    file("letter", "Dear Sir,\n");
    assert!(daemon.fails(1, &["import", "letter"]).contains("--from hsu|process-compose"));
    file("broken.conf", "[program:x]\nnonsense\n");
    assert!(daemon.fails(1, &["import", "broken.conf"]).contains("broken.conf:2: "));
    assert!(daemon.fails(1, &["import", "no-such-file"]).contains("no-such-file"));
    daemon.fails(2, &["import", "letter", "--from", "docker"]);
    // Two processes of one name in two files are two only where they are told apart.
    file("Procfile", "web: sleep 1\n");
    assert!(daemon.fails(1, &["import", "Procfile", "Procfile"]).contains("given twice"));
}
