//! The daemon among other daemons, other users and other inits.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ostler_tests::{Daemon, Setup, copy_program, is_root, manifest, proc, skipped, wait_until};
use serde_json::json;

#[test]
fn a_state_directory_has_one_daemon() {
    let daemon = Daemon::start();
    daemon.apply(&manifest::sleeper("web").to_string());
    let before = daemon.running("web-0");
    let (keeper, controller) = (daemon.keeper().expect("a keeper"), daemon.controller());
    let second = daemon.cli(&["serve"]);
    assert_eq!(second.code, 1, "{}", second.stderr);
    assert!(
        second.stderr.contains("another daemon") && second.stderr.contains(&keeper.pid.to_string()),
        "{}",
        second.stderr
    );
    // Also while only one of its two processes lives.
    daemon.kill_keeper();
    wait_until("the next keeper", || daemon.keeper());
    assert_eq!(daemon.cli(&["serve"]).code, 1);
    daemon.fails(1, &["store", "check"]);
    assert_eq!(daemon.controller(), controller);
    assert_eq!(daemon.running("web-0"), before);
}

#[test]
fn the_socket_is_for_its_owner_only() {
    let daemon = Daemon::start();
    let mode = |path: &Path| fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&daemon.state().join("ostler.sock")), 0o600);
    assert_eq!(mode(daemon.state()), 0o700);
    if !is_root() {
        return skipped("the_socket_is_for_its_owner_only", "only root can try to connect as somebody else");
    }
    // Even where file modes do not stop it: who is at the other end is asked of the kernel.
    let copy = daemon.path().join("ostler");
    copy_program(daemon.binary(), &copy);
    let stranger = || {
        let output = Command::new(&copy)
            .args(["get", "processes", "--state-dir"])
            .arg(daemon.state())
            .uid(65534)
            .gid(65534)
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let open = |path: &Path, mode: u32| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    open(daemon.path(), 0o755);
    let (code, error) = stranger();
    assert_eq!(code, Some(3), "{error}");
    open(daemon.state(), 0o755);
    open(&daemon.state().join("ostler.sock"), 0o666);
    let (code, error) = stranger();
    assert!(code.is_some_and(|code| code != 0), "a stranger was served: {error}");
    daemon.ok(&["get", "processes"]);
}

#[test]
fn sigterm_ends_the_daemon_and_leaves_what_runs() {
    let daemon = Daemon::start();
    daemon.apply(&manifest::witness("stayer", "--rate 50").to_string());
    let before = daemon.running("stayer-0");
    assert_eq!(daemon.terminate(), 0, "{}", daemon.log());
    assert!(proc::lives(before));
    daemon.serve();
    assert_eq!(daemon.running("stayer-0"), before);
    daemon.assert_output_complete("stayer-0");
}

#[test]
fn sigterm_stops_everything_where_that_is_asked_for() {
    let daemon = Setup::default().args(&["--on-shutdown", "stop"]).start();
    daemon.apply(&manifest::witness("goer", "--rate 50").to_string());
    let before = daemon.running("goer-0");
    let uid = daemon.instance("goer-0").uid().to_owned();
    assert_eq!(daemon.terminate(), 0, "{}", daemon.log());
    assert!(!proc::lives(before));
    daemon.assert_tree_gone(&uid);
    // It was not stopped by hand, so it runs again with the daemon.
    daemon.serve();
    assert_ne!(daemon.running("goer-0"), before);
    daemon.assert_output_complete("goer-0");
}

#[test]
fn shutdown_can_take_everything_along_within_a_deadline() {
    let daemon = Daemon::start();
    let slow = manifest::with(manifest::witness("slow", "--ignore-term"), "spec.stop", json!({"gracePeriod": "1h"}));
    daemon.apply_ready(&manifest::all(&[manifest::witness("polite", ""), slow]));
    let began = Instant::now();
    daemon.ok(&["shutdown", "--stop-instances", "--deadline", "1s"]);
    // Not the hour of the grace period.
    assert!(began.elapsed() < Duration::from_secs(60));
    assert_eq!(daemon.ends(), 0);
    let codes = daemon.journal().codes("default/polite-0");
    assert_eq!(codes.into_values().collect::<Vec<_>>(), [0], "it was to end by itself");
    wait_until("everything to be gone", || proc::around(daemon.path()).is_empty().then_some(()));
}

#[test]
fn as_process_1_it_reaps_orphans_and_takes_everything_along() {
    const TEST: &str = "as_process_1_it_reaps_orphans_and_takes_everything_along";
    if !is_root() {
        return skipped(TEST, "a pid namespace needs root");
    }
    let wrapper = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"];
    if !Command::new("unshare").args(&wrapper[1..]).arg("true").status().is_ok_and(|status| status.success()) {
        return skipped(TEST, "unshare cannot make a pid namespace here");
    }
    let daemon = Setup::default().wrapper(&wrapper).start();
    assert_eq!(daemon.info().expect("it answers")["keeperPid"], 1);
    // Orphans that are nobody's: the child of a shell that is gone, in a session of its own.
    let script = "for n in 1 2 3 4 5; do setsid sh -c 'sleep 0.1 &'; done; exec sleep 100000";
    daemon.apply_ready(&manifest::all(&[manifest::shell("parent", script), manifest::witness("polite", "--rate 20")]));
    let init = wait_until("process 1", || daemon.keeper());
    let children = || {
        let text = fs::read_to_string(format!("/proc/{0}/task/{0}/children", init.pid)).unwrap_or_default();
        text.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()).collect::<Vec<_>>()
    };
    wait_until("orphans to be reaped", || {
        // The controller and the two leaders stay.
        let left = children();
        (left.len() == 3 && left.iter().all(|pid| proc::identity(*pid).is_some())).then_some(())
    });
    daemon.kill_controller();
    daemon.answers();
    proc::signal(init, libc::SIGTERM);
    assert_eq!(daemon.ends(), 0, "{}", daemon.log());
    let codes = daemon.journal().codes("default/polite-0");
    assert_eq!(codes.into_values().collect::<Vec<_>>(), [0], "it was to end by itself, not to be killed");
}

#[test]
fn a_missing_daemon_is_said_to_be_missing() {
    let daemon = Setup::default().prepare();
    let error = daemon.fails(3, &["get", "processes"]);
    assert!(error.contains("cannot reach the daemon") && error.contains("ostler serve --state-dir"), "{error}");
    daemon.fails(3, &["get", "processes", "--server", "unix:///no/such/socket"]);
}

#[test]
fn up_runs_shows_and_takes_along_what_a_manifest_declares() {
    let daemon = Setup::default().prepare();
    let mut object = manifest::witness("web", "--rate 20");
    object["spec"]["replicas"] = json!(2);
    fs::write(daemon.path().join("web.yaml"), object.to_string()).unwrap();
    let said = daemon.path().join("said");
    let mut up = daemon
        .client()
        .args(["up", "-f", "web.yaml"])
        .stdin(Stdio::null())
        .stdout(fs::File::create(&said).unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let text = || fs::read_to_string(&said).unwrap_or_default();
    wait_until("output of both", || (text().contains("web-0") && text().contains("web-1")).then_some(()));
    // Also how the harness learns where the cgroups are that it has to clean up.
    daemon.answers();
    let both = [daemon.running("web-0"), daemon.running("web-1")];
    let own = proc::identity(up.id().cast_signed()).expect("it runs");
    proc::signal(own, libc::SIGINT);
    wait_until("it to end", || up.try_wait().unwrap());
    assert!(both.iter().all(|process| !proc::lives(*process)), "something goes on");
    assert!(daemon.controller().is_none() && daemon.keeper().is_none(), "the daemon goes on");

    // Detached, everything goes on without it.
    let output = daemon.cli(&["up", "-d", "-f", "web.yaml"]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    let both = [daemon.running("web-0"), daemon.running("web-1")];
    daemon.ok(&["shutdown"]);
    assert!(both.iter().all(|process| proc::lives(*process)));
    daemon.journal().assert_single_copies();
}
