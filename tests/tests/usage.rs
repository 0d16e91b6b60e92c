//! What instances use is measured of their whole trees.

use std::fs;
use std::process::Command;

use ostler_tests::{Daemon, Setup, is_root, manifest, skipped, wait_until};
use serde_json::Value;

/// What `ostler top` says of one instance.
fn top(daemon: &Daemon, name: &str) -> Option<Value> {
    let said: Value = serde_json::from_str(&daemon.ok(&["top", "-o", "json"])).expect("JSON");
    said["items"].as_array()?.iter().find(|item| item["name"] == name).cloned()
}

/// A shell that keeps 20 MiB in its memory, and a child of a child that left its session.
const TREE: &str = "x=$(head -c 20971520 /dev/zero | tr '\\0' x); setsid sh -c 'sleep 100000 & wait' & exec 7</dev/null; \
                    while :; do :; done";

fn assert_tree_is_measured(daemon: &Daemon) {
    daemon.apply_ready(&manifest::shell("tree", TREE).to_string());
    let used = wait_until("the whole tree to be seen", || {
        top(daemon, "tree-0").filter(|it| {
            it["processes"] == 3 && it["rss"].as_u64() >= Some(20 << 20) && it["cpuNanos"].as_u64() > Some(0)
        })
    });
    assert!(used["openFiles"].as_u64() >= Some(9), "{used}");
    assert!(used["network"]["unsupported"].is_string(), "{used}");
    assert!(used["threads"].as_u64() >= Some(3), "{used}");
    let described = daemon.ok(&["describe", "instance/tree-0"]);
    assert!(described.contains("\nNetwork:        Unsupported"), "{described}");
    assert!(described.contains("\nTree:           3 processes"), "{described}");
    daemon.ok(&["stop", "process/tree"]);
    wait_until("what does not run not to be measured", || top(daemon, "tree-0").is_none().then_some(()));
    daemon.ok(&["start", "process/tree"]);
    wait_until("the next attempt to be measured", || top(daemon, "tree-0"));
}

#[test]
fn the_whole_tree_is_measured() {
    let daemon = Daemon::start();
    assert_tree_is_measured(&daemon);
    // What was running before the controller began is measured by its successor.
    daemon.kill_controller();
    daemon.answers();
    wait_until("the next controller to measure", || top(&daemon, "tree-0"));
}

#[test]
fn the_whole_tree_is_measured_without_cgroups() {
    assert_tree_is_measured(&Setup::default().args(&["--cgroups", "none"]).start());
}

#[test]
fn storage_is_counted() {
    let daemon = Daemon::start();
    if !Command::new("df").args(["-t", "tmpfs"]).arg(daemon.path()).status().is_ok_and(|status| !status.success()) {
        return skipped("storage_is_counted", "the temporary directory is in memory");
    }
    let python = "import os, time\nf = open('held', 'wb', buffering=0)\nwhile True:\n    f.write(os.urandom(1 << 20)); \
                  os.fsync(f.fileno()); f.seek(0); time.sleep(0.05)";
    fs::write(daemon.path().join("write.py"), python).unwrap();
    daemon.apply_ready(&manifest::shell("writer", "exec python3 write.py").to_string());
    wait_until("a megabyte to be counted", || {
        top(&daemon, "writer-0").filter(|it| it["writtenBytes"].as_u64() >= Some(1 << 20))
    });
}

#[test]
fn network_is_counted_where_the_kernel_can() {
    const TEST: &str = "network_is_counted_where_the_kernel_can";
    let can = Command::new("unshare").args(["--net", "true"]).status().is_ok_and(|status| status.success());
    if !is_root() || !can {
        return skipped(TEST, "a network namespace needs root");
    }
    let daemon = Daemon::start();
    daemon.apply_ready(&manifest::shell("alone", "exec unshare --net sleep 100000").to_string());
    wait_until("its own network to be seen", || {
        top(&daemon, "alone-0").filter(|it| it["network"]["received"].is_u64() && it["network"]["sent"].is_u64())
    });
}
