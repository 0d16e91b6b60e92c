//! Replacing the program under running processes.

use std::fs;

use ostler_tests::{Daemon, copy_program, make_program, manifest, proc, wait_until};
use serde_json::json;

fn program(pid: i32) -> String {
    fs::read_link(format!("/proc/{pid}/exe")).map_or_else(|why| why.to_string(), |path| path.display().to_string())
}

#[test]
fn an_upgrade_keeps_every_process_every_byte_and_every_exit() {
    let mut daemon = Daemon::start();
    let mut quitter = manifest::witness("quitter", "--rate 200 --exit-after-ms 100 --code 7");
    quitter["spec"]["backoff"] = json!({"initial": "1ms", "factor": 1, "jitter": 0});
    daemon.apply_ready(&manifest::witness("stayer", "--rate 500 --stderr-every 3").to_string());
    // It never runs for long enough to be ready.
    daemon.apply(&quitter.to_string());
    let before = daemon.running("stayer-0");
    for round in 0..3 {
        let copy = daemon.path().join(format!("next-{round}"));
        copy_program(daemon.binary(), &copy);
        let keeper = daemon.keeper().expect("a keeper");
        let said = daemon.ok(&["upgrade", "--binary", copy.to_str().unwrap()]);
        assert!(said.contains("upgraded"), "{said}");
        let expected = copy.display().to_string();
        let info = wait_until("both to run the new program", || {
            let info = daemon.info()?;
            let (keeper, controller) = (daemon.keeper()?.pid, daemon.controller()?.pid);
            // A controller that has just begun answers before its keeper has said who it is.
            let met = info["controllerPid"] == controller && info["keeperPid"] != 0;
            (met && program(keeper) == expected && program(controller) == expected).then_some(info)
        });
        // Replaced in place: its children are still its children.
        assert_eq!(info["keeperPid"], keeper.pid);
        assert_eq!(daemon.running("stayer-0"), before);
        let attempt = daemon.instance("quitter-0").attempt();
        let instance = daemon.instance_when("quitter-0", "ended and restarted", |it| it.attempt() > attempt + 1);
        assert_eq!(instance.last_exit()["code"], 7, "{:?}", instance.last_exit());
        // What comes after goes through the new program.
        daemon.kill_controller();
        wait_until("the new program again", || {
            daemon.info()?;
            (program(daemon.controller()?.pid) == expected).then_some(())
        });
        assert_eq!(daemon.running("stayer-0"), before);
        daemon.use_binary(copy);
    }
    daemon.ok(&["stop", "process/quitter", "--timeout", "60s"]);
    let journal = daemon.journal();
    journal.assert_single_copies();
    assert_eq!(journal.starts("default/stayer-0").len(), 1);
    daemon.assert_output_complete("stayer-0");
    daemon.assert_output_complete("quitter-0");
    assert_eq!(daemon.phase("quitter-0", "Stopped").restarts() + 1, daemon.instance("quitter-0").attempt());
}

#[test]
fn a_bad_program_is_refused_and_nothing_changes() {
    let daemon = Daemon::start();
    daemon.apply(&manifest::witness("stayer", "--rate 100").to_string());
    let before = daemon.running("stayer-0");
    let (keeper, controller) = (daemon.keeper(), daemon.controller());
    let file = |name: &str, text: &[u8], mode: u32| {
        let path = daemon.path().join(name);
        make_program(&path, text, mode);
        path.display().to_string()
    };
    let short = fs::read(daemon.binary()).unwrap()[..100_000].to_vec();
    for bad in [
        "/no/such/program".to_owned(),
        file("plain", b"hello", 0o644),
        file("garbage", b"\x01\x02\x03", 0o755),
        file("other", b"#!/bin/sh\nexit 3\n", 0o755),
        file("hanging", b"#!/bin/sh\nexec sleep 100000\n", 0o755),
        file("short", &short, 0o755),
        daemon.path().display().to_string(),
    ] {
        let error = daemon.fails(1, &["upgrade", "--binary", &bad]);
        assert!(error.starts_with("error") || error.starts_with("Error"), "{bad}: {error}");
        assert_eq!((daemon.keeper(), daemon.controller()), (keeper, controller), "{bad}");
        assert_eq!(daemon.running("stayer-0"), before, "{bad}");
    }
    assert!(proc::lives(before));
    daemon.assert_output_complete("stayer-0");
    // And it still works.
    daemon.ok(&["restart", "process/stayer", "--wait", "--timeout", "60s"]);
    assert_ne!(daemon.running("stayer-0"), before);
    daemon.journal().assert_single_copies();
}
