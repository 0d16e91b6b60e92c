//! The configuration of the daemon: which layer decides, changes while it runs, and bad files.

use std::fs;

use ostler_tests::{Daemon, Setup, manifest, proc, wait_until};
use serde_json::{Value, json};

fn shown(daemon: &Daemon) -> Value {
    serde_json::from_str(&daemon.ok(&["config", "show", "--origin", "-o", "json"])).expect("it is JSON")
}

fn setting(daemon: &Daemon, key: &str) -> (Value, String) {
    let one = &shown(daemon)["settings"][key];
    (one["value"].clone(), one["origin"].as_str().unwrap_or_default().to_owned())
}

/// Replaces the default configuration file, as editors do it.
fn write(daemon: &Daemon, text: &str) {
    let new = daemon.state().join("config.new");
    fs::write(&new, text).expect("the state directory is writable");
    fs::rename(new, daemon.state().join("config.yaml")).expect("it is writable");
}

#[test]
fn the_last_layer_that_has_a_key_decides() {
    let daemon = Setup::default().env("OSTLER_LOG", "warn").args(&["--on-shutdown", "leave"]).prepare();
    let file = daemon.path().join("ostler.yaml");
    fs::write(&file, "log: error\ntick: 2s\nonShutdown: stop\n").expect("it can be written");
    let name = file.display().to_string();
    daemon.spawn(&[("OSTLER_CONFIG", name.as_str())]);
    daemon.answers();
    assert_eq!(setting(&daemon, "cgroups"), (json!("auto"), "default".to_owned()));
    assert_eq!(setting(&daemon, "tick"), (json!("2s"), format!("file {}:2", file.display())));
    assert_eq!(setting(&daemon, "log"), (json!("warn"), "environment OSTLER_LOG".to_owned()));
    assert_eq!(setting(&daemon, "onShutdown"), (json!("leave"), "flag --on-shutdown".to_owned()));
    daemon.ok(&["config", "set", "log=debug", "onShutdown=stop"]);
    assert_eq!(setting(&daemon, "log"), (json!("debug"), "set at run time".to_owned()));
    // What was set lasts as long as the daemon, not as long as its controller.
    daemon.kill_controller();
    daemon.answers();
    assert_eq!(setting(&daemon, "onShutdown"), (json!("stop"), "set at run time".to_owned()));
    daemon.ok(&["config", "unset", "log"]);
    assert_eq!(setting(&daemon, "log").0, json!("warn"));
    let table = daemon.ok(&["config", "show", "--origin"]);
    assert!(table.contains("environment OSTLER_LOG"), "{table}");
    daemon.shutdown();
    daemon.serve();
    assert_eq!(setting(&daemon, "onShutdown").1, "flag --on-shutdown");
}

#[test]
fn a_change_of_the_file_takes_effect_and_a_bad_one_does_not() {
    let daemon = Daemon::start();
    write(&daemon, "tick: 500ms\ncgroups: none\n");
    wait_until("the new file to be noticed", || (setting(&daemon, "tick").0 == json!("500ms")).then_some(()));
    // What keeps processes together is settled for as long as the daemon lives.
    assert_eq!(shown(&daemon)["settings"]["cgroups"]["running"], json!("auto"));
    assert!(daemon.ok(&["config", "show", "--origin"]).contains("needs a restart"));

    write(&daemon, "tick: 3s\ntikc: 4s\n");
    let shown_error =
        wait_until("the bad file to be noticed", || shown(&daemon)["fileError"].as_str().map(str::to_owned));
    assert!(shown_error.contains("config.yaml:2:1: unknown field \"tikc\"; did you mean \"tick\"?"), "{shown_error}");
    wait_until("it to be logged", || daemon.log().contains("the values before stay in force").then_some(()));
    assert_eq!(setting(&daemon, "tick").0, json!("500ms"));
    assert!(daemon.fails(1, &["config", "reload"]).contains("tikc"));
    daemon.kill_controller();
    daemon.answers();
    assert_eq!(setting(&daemon, "tick").0, json!("500ms"), "the next controller takes the last good file");

    write(&daemon, "tick: 3s\n");
    let controller = wait_until("the controller", || daemon.controller());
    proc::signal(controller, libc::SIGHUP);
    wait_until("the good file to be read", || (setting(&daemon, "tick").0 == json!("3s")).then_some(()));
    assert!(shown(&daemon).get("fileError").is_none());
    assert_eq!(daemon.controller(), Some(controller), "SIGHUP ends nothing");
}

#[test]
fn a_daemon_does_not_start_with_what_makes_no_sense() {
    let daemon = Setup::default().prepare();
    let file = daemon.path().join("ostler.yaml");
    fs::write(&file, "probeAllow: [10.0.0.0/33]\n").expect("it can be written");
    let name = file.display().to_string();
    daemon.spawn(&[("OSTLER_CONFIG", name.as_str())]);
    assert_ne!(daemon.ends(), 0);
    assert!(daemon.log().contains("ostler.yaml:1:"), "{}", daemon.log());
    daemon.spawn(&[("OSTLER_TICK", "soon")]);
    assert_ne!(daemon.ends(), 0);
    assert!(daemon.log().contains("OSTLER_TICK"), "{}", daemon.log());
    daemon.serve();
    let refused = daemon.fails(1, &["config", "set", "tick=5s", "tikc=5s"]);
    assert!(refused.contains("did you mean"), "{refused}");
    assert_eq!(setting(&daemon, "tick").0, json!("1s"));
}

#[test]
fn shutdown_follows_what_was_set_last() {
    let daemon = Daemon::start();
    daemon.apply(&manifest::sleeper("web").to_string());
    let identity = daemon.running("web-0");
    daemon.ok(&["config", "set", "onShutdown=stop", "shutdownDeadline=20s"]);
    daemon.terminate();
    assert!(!proc::lives(identity), "it was stopped with the daemon");
}
