//! Stopped means gone: every process of the tree, whatever it does to stay.

use std::time::{Duration, Instant};

use ostler_tests::{Daemon, Setup, is_root, manifest, proc, scale, skipped, wait_until};
use serde_json::json;

/// Runs a check with every way to hold trees together that this machine has.
fn in_every_mode(test: &str, check: impl Fn(&Daemon)) {
    for mode in ["v2", "v1", "none"] {
        let daemon = Setup::default().args(&["--cgroups", mode]).prepare();
        daemon.spawn(&[]);
        let up = wait_until("the daemon to answer or to end", || {
            let ended = daemon.reap().is_some();
            if daemon.info().is_some() { Some(true) } else { ended.then_some(false) }
        });
        if !up {
            assert_ne!(mode, "none", "{}", daemon.log());
            skipped(test, &format!("no cgroups {mode} that this user can write: {}", daemon.log().trim()));
            continue;
        }
        let info = daemon.info().expect("it answered");
        assert!(info["cgroups"].as_str().is_some_and(|text| text.starts_with(mode)), "{info}");
        check(&daemon);
        daemon.journal().assert_single_copies();
    }
}

#[test]
fn who_ignores_sigterm_is_killed_at_the_deadline() {
    in_every_mode("who_ignores_sigterm_is_killed_at_the_deadline", |daemon| {
        let object = manifest::witness("deaf", "--ignore-term --grandchild --rate 10");
        daemon.apply(&manifest::with(object, "spec.stop", json!({"gracePeriod": "1s"})).to_string());
        daemon.running("deaf-0");
        let uid = daemon.instance("deaf-0").uid().to_owned();
        let grandchild = wait_until("the grandchild", || daemon.journal().grandchildren("default/deaf-0").pop());
        let began = Instant::now();
        daemon.ok(&["stop", "process/deaf", "--timeout", "60s"]);
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(900), "killed before the deadline, after {took:?}");
        assert!(!proc::lives(grandchild.process), "the grandchild lives");
        daemon.assert_tree_gone(&uid);
        let instance = daemon.instance("deaf-0");
        assert_eq!(instance.phase(), "Stopped");
        assert_eq!(instance.last_exit()["signal"], 9, "{:?}", instance.last_exit());
        daemon.assert_output_complete("deaf-0");
    });
}

#[test]
fn fifty_deaf_families_are_gone_when_they_are_said_to_be() {
    let daemon = Daemon::start();
    let mut object = manifest::witness("deaf", "--ignore-term --grandchild");
    object["spec"]["stop"]["gracePeriod"] = json!("300ms");
    object["spec"]["replicas"] = json!(10);
    for _ in 0..5 * scale() {
        daemon.apply_ready(&object.to_string());
        let uids: Vec<String> = daemon.instances().iter().map(|it| it.uid().to_owned()).collect();
        assert_eq!(uids.len(), 10);
        let grandchildren = || -> Vec<_> {
            let of = |ordinal: usize| daemon.journal().grandchildren(&format!("default/deaf-{ordinal}"));
            (0..10).flat_map(of).filter(|it| uids.contains(&it.uid)).collect()
        };
        wait_until("ten grandchildren", || (grandchildren().len() == 10).then_some(()));
        daemon.ok(&["delete", "process/deaf", "--timeout", "60s"]);
        assert!(grandchildren().iter().all(|it| !proc::lives(it.process)));
        for uid in &uids {
            daemon.assert_tree_gone(uid);
        }
    }
    daemon.journal().assert_single_copies();
}

#[test]
fn a_grandchild_in_its_own_session_dies_with_its_instance() {
    in_every_mode("a_grandchild_in_its_own_session_dies_with_its_instance", |daemon| {
        // The leader goes at once, so only the deadline gets at the grandchild, which ignores SIGTERM and SIGHUP.
        let object = manifest::witness("family", "--grandchild");
        daemon.apply(&manifest::with(object, "spec.stop", json!({"gracePeriod": "500ms"})).to_string());
        daemon.running("family-0");
        let uid = daemon.instance("family-0").uid().to_owned();
        let first = wait_until("the grandchild", || daemon.journal().grandchildren("default/family-0").pop());
        daemon.ok(&["restart", "instance/family-0", "--wait", "--timeout", "60s"]);
        assert!(!proc::lives(first.process), "the grandchild outlived the restart");
        let second = wait_until("the next grandchild", || {
            daemon.journal().grandchildren("default/family-0").pop().filter(|it| it.attempt == 2)
        });
        daemon.ok(&["delete", "process/family", "--timeout", "60s"]);
        assert!(!proc::lives(second.process), "the grandchild outlived the deletion");
        daemon.assert_tree_gone(&uid);
    });
}

#[test]
fn what_a_leader_leaves_behind_is_stopped_before_the_next_start() {
    in_every_mode("what_a_leader_leaves_behind_is_stopped_before_the_next_start", |daemon| {
        let mut object = manifest::witness("leaver", "--grandchild --exit-after-ms 300 --code 3");
        object["spec"]["stop"]["gracePeriod"] = json!("200ms");
        object["spec"]["backoff"] = json!({"initial": "1ms", "factor": 1, "jitter": 0});
        daemon.apply(&object.to_string());
        // On a busy machine not every one gets to its first entry before it is stopped.
        wait_until("four starts and three grandchildren", || {
            let (starts, left) =
                (daemon.journal().starts("default/leaver-0"), daemon.journal().grandchildren("default/leaver-0"));
            (starts.len() >= 4 && left.len() >= 3).then_some(())
        });
        daemon.ok(&["stop", "process/leaver", "--timeout", "60s"]);
        let starts = daemon.journal().starts("default/leaver-0");
        let grandchildren = daemon.journal().grandchildren("default/leaver-0");
        for grandchild in &grandchildren {
            assert!(!proc::lives(grandchild.process), "{grandchild:?} lives");
        }
        let instance = daemon.instance("leaver-0");
        daemon.assert_tree_gone(instance.uid());
        // The stop may have reached the last one before its first entry.
        let starts = starts.len() as u64;
        assert!((starts..=starts + 1).contains(&(instance.restarts() + 1)), "{starts}: {}", instance.0["status"]);
    });
}

#[test]
fn no_grandchild_is_alive_when_the_next_attempt_starts() {
    // The witness cannot see it, so the next attempt looks: it fails if any process carries an earlier marker.
    let daemon = Daemon::start();
    let script = r#"
        me=${OSTLER_ATTEMPT#*.}; uid=${OSTLER_ATTEMPT%.*}
        for environ in /proc/[0-9]*/environ; do
            tr '\0' '\n' < $environ 2>/dev/null | grep -q "^OSTLER_ATTEMPT=$uid\.$((me - 1))$" && echo "found $environ"
        done
        setsid sh -c 'trap "" TERM HUP; while :; do sleep 1; done' &
        echo clean $me
        exit 1"#;
    let mut object = manifest::shell("looker", script);
    object["spec"]["stop"]["gracePeriod"] = json!("50ms");
    object["spec"]["backoff"] = json!({"initial": "1ms", "factor": 1, "jitter": 0});
    daemon.apply(&object.to_string());
    let text = wait_until("five looks", || {
        let text = String::from_utf8_lossy(&daemon.output("looker-0", "all")).into_owned();
        (text.matches("clean").count() >= 5).then_some(text)
    });
    assert!(!text.contains("found"), "{text}");
}

#[test]
fn living_processes_are_adopted_in_every_mode_after_both_are_killed() {
    in_every_mode("living_processes_are_adopted_in_every_mode_after_both_are_killed", |daemon| {
        daemon.apply(&manifest::witness("stayer", "--rate 200 --stderr-every 3 --grandchild").to_string());
        let before = daemon.running("stayer-0");
        wait_until("the grandchild", || daemon.journal().grandchildren("default/stayer-0").pop());
        daemon.kill_both();
        assert!(proc::lives(before));
        daemon.serve();
        assert_eq!(daemon.running("stayer-0"), before);
        daemon.assert_output_complete("stayer-0");
        // Adoption is custody: it can be stopped, tree and all.
        let uid = daemon.instance("stayer-0").uid().to_owned();
        let patched = daemon.ok(&["delete", "process/stayer", "--grace-period", "300ms", "--timeout", "60s"]);
        assert!(patched.contains("deleted"), "{patched}");
        daemon.assert_tree_gone(&uid);
        assert_eq!(daemon.journal().starts("default/stayer-0").len(), 1);
    });
}

#[test]
fn an_ordinary_user_gets_the_same_promises() {
    const TEST: &str = "an_ordinary_user_gets_the_same_promises";
    if !is_root() {
        return skipped(TEST, "the other tests run as one already");
    }
    let daemon = Setup::default().user(65534).start();
    let info = daemon.info().expect("it answers");
    let mut object = manifest::witness("plain", "--rate 100 --grandchild");
    object["spec"]["command"][0] = json!("./witness");
    object["spec"]["stop"]["gracePeriod"] = json!("300ms");
    daemon.apply(&object.to_string());
    let before = daemon.running("plain-0");
    wait_until("the grandchild", || daemon.journal().grandchildren("default/plain-0").pop());
    daemon.kill_controller();
    daemon.answers();
    assert_eq!(daemon.running("plain-0"), before, "{info}");
    daemon.kill_keeper();
    daemon.answers();
    assert_eq!(daemon.running("plain-0"), before, "{info}");
    daemon.kill_both();
    daemon.serve();
    assert_eq!(daemon.running("plain-0"), before, "{info}");
    daemon.assert_output_complete("plain-0");
    let uid = daemon.instance("plain-0").uid().to_owned();
    daemon.ok(&["restart", "process/plain", "--wait", "--timeout", "60s"]);
    wait_until("the second start", || (daemon.journal().starts("default/plain-0").len() == 2).then_some(()));
    daemon.ok(&["stop", "process/plain", "--timeout", "60s"]);
    daemon.assert_tree_gone(&uid);
    let journal = daemon.journal();
    journal.assert_single_copies();
    assert_eq!(journal.starts("default/plain-0").len(), 2);
}
