//! A damaged store stops changes, never processes.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;

use ostler_tests::{Daemon, Random, Setup, manifest, proc, scale, skipped, wait_until};
use serde_json::json;

/// Flips bits in a part of the database file.
fn damage(daemon: &Daemon, random: &mut Random) {
    let path = daemon.state().join("store/sled/db");
    let file = OpenOptions::new().read(true).write(true).open(&path).expect("the database is there");
    let length = fs::metadata(&path).expect("it is there").len() as usize;
    let mut content = vec![0; length];
    file.read_exact_at(&mut content, 0).expect("it can be read");
    // Where there is something: flips in what was never written mean nothing.
    let used = content.iter().rposition(|byte| *byte != 0).unwrap_or_default() + 1;
    for _ in 0..=random.below(8) {
        let start = random.below(used);
        let end = (start + 1 + random.below(64)).min(used);
        for byte in &mut content[start..end] {
            *byte ^= 1 << random.below(8);
        }
    }
    file.write_all_at(&content, 0).expect("it can be written");
}

/// A daemon that is started now says what is wrong and what to do about it, serves nobody, and can be ended.
fn refuses(daemon: &Daemon) {
    let said = daemon.log().len();
    daemon.spawn(&[]);
    let message = wait_until("the daemon to complain", || {
        assert!(daemon.info().is_none(), "the damaged store was taken");
        let log = daemon.log();
        // A line is written in parts.
        let whole = log.get(said..)?.rsplit_once('\n')?.0;
        let message = whole.lines().find(|line| line.contains("error"))?;
        Some(message.to_owned())
    });
    assert!(message.contains("damaged") && message.contains("ostler store restore"), "{message}");
    daemon.terminate();
}

#[test]
fn a_damaged_store_is_refused_processes_live_and_a_restored_one_adopts_them() {
    for seed in 0..5 * scale() as u64 {
        let mut random = Random::new(seed);
        let daemon = Daemon::start();
        let mut object = manifest::witness("stayer", "--rate 50");
        object["spec"]["replicas"] = json!(2);
        daemon.apply_ready(&object.to_string());
        let before = [daemon.running("stayer-0"), daemon.running("stayer-1")];
        let revision = daemon.get("process", "stayer")["metadata"]["generation"].clone();
        // A clean end, so that the daemon knows what the files have to be: every flip counts.
        daemon.shutdown();
        let good = daemon.ok(&["store", "check"]);
        assert!(good.contains("good"), "{good}");
        damage(&daemon, &mut random);

        refuses(&daemon);
        assert!(before.iter().all(|process| proc::lives(*process)), "seed {seed}: a process died of it");
        let error = daemon.fails(1, &["store", "check"]);
        assert!(error.contains("damaged"), "seed {seed}: {error}");
        // Refused again: looking at it has not repaired or emptied it.
        refuses(&daemon);

        let restored = daemon.ok(&["store", "restore"]);
        assert!(restored.contains("restored") && restored.contains("kept in"), "{restored}");
        daemon.serve();
        assert_eq!([daemon.running("stayer-0"), daemon.running("stayer-1")], before, "seed {seed}");
        assert_eq!(daemon.get("process", "stayer")["metadata"]["generation"], revision);
        daemon.assert_output_complete("stayer-0");
        let journal = daemon.journal();
        journal.assert_single_copies();
        assert_eq!(journal.starts("default/stayer-0").len(), 1);
        assert_eq!(daemon.apply(&object.to_string()), "process/stayer unchanged\n");
    }
}

#[test]
fn no_damage_goes_unnoticed() {
    let daemon = Daemon::start();
    daemon.apply_ready(&manifest::all(&[manifest::sleeper("one"), manifest::sleeper("two")]));
    daemon.shutdown();
    let path = daemon.state().join("store/sled/db");
    let good = fs::read(&path).unwrap();
    for seed in 0..100 * scale() as u64 {
        let mut random = Random::new(seed);
        if seed % 5 == 0 {
            OpenOptions::new().write(true).open(&path).unwrap().set_len(random.below(good.len()) as u64).unwrap();
        } else {
            damage(&daemon, &mut random);
        }
        // Two flips can undo each other.
        if fs::read(&path).unwrap() != good {
            let error = daemon.fails(1, &["store", "check"]);
            assert!(error.contains("damaged"), "seed {seed}: {error}");
        }
        fs::write(&path, &good).unwrap();
    }
    // Nothing of all that looking has changed anything.
    daemon.ok(&["store", "check"]);
    daemon.serve();
    daemon.running("one-0");
    assert_eq!(daemon.instances().iter().map(ostler_tests::Instance::restarts).sum::<u64>(), 0);
}

#[test]
fn a_change_is_on_disk_before_it_is_acknowledged() {
    const TEST: &str = "a_change_is_on_disk_before_it_is_acknowledged";
    let strace = ["strace", "-f", "-qq", "-yy", "-s", "4096", "-o", "trace", "-e"];
    let calls = "trace=pwrite64,write,writev,sendto,sendmsg,fdatasync";
    let possible = Command::new("strace").args(["-qq", "-o", "/dev/null", "true"]).status();
    if !possible.is_ok_and(|status| status.success()) {
        return skipped(TEST, "there is no strace that works");
    }
    let wrapper: Vec<&str> = strace.iter().copied().chain([calls]).collect();
    let daemon = Setup::default().wrapper(&wrapper).start();
    let trace = || fs::read_to_string(daemon.path().join("trace")).unwrap_or_default();
    for (number, change) in ["apply", "scale", "stop", "delete"].iter().enumerate() {
        let before = trace().len();
        let spec = manifest::with(manifest::sleeper("traced"), "metadata.labels", json!({"change": change}));
        match *change {
            "apply" => drop(daemon.apply(&spec.to_string())),
            "scale" => drop(daemon.ok(&["scale", "process/traced", "--replicas=2"])),
            "stop" => drop(daemon.ok(&["stop", "process/traced", "--no-wait"])),
            _ => drop(daemon.ok(&["delete", "process/traced", "--wait=false"])),
        }
        // The answer names the object; it is the first thing that is sent to the client after the greeting. It has
        // arrived before it is in the trace.
        let is_answer = |line: &str| line.contains("ostler.sock") && line.contains("traced");
        let text = wait_until("the answer in the trace", || {
            let text = trace();
            let whole = text.get(before..text.rfind('\n')?)?;
            whole.lines().any(is_answer).then(|| whole.to_owned())
        });
        let lines: Vec<&str> = text.lines().collect();
        let find = |from: usize, what: &str, test: &dyn Fn(&str) -> bool| {
            let found = lines.iter().skip(from).position(|line| test(line));
            found.map_or_else(|| panic!("{number} {change}: no {what} in {lines:#?}"), |at| at + from)
        };
        let written = find(0, "write", &|line| {
            line.contains("pwrite64") && line.contains("sled/db") && line.contains("processes/default/traced")
        });
        let synced = find(written, "sync", &|line| line.contains("fdatasync") && line.contains("= 0"));
        let answered = find(0, "answer", &is_answer);
        assert!(synced < answered, "{change}: answered before it was synced: {lines:#?}");
    }
}

#[test]
fn a_truncated_store_is_refused_after_a_kill_too() {
    let daemon = Daemon::start();
    daemon.apply_ready(&manifest::sleeper("stayer").to_string());
    let before = daemon.running("stayer-0");
    // The clean end makes a backup; the kill is that of a later daemon.
    daemon.shutdown();
    daemon.serve();
    daemon.running("stayer-0");
    daemon.kill_both();
    let path = daemon.state().join("store/sled/db");
    OpenOptions::new().write(true).open(path).unwrap().set_len(100).unwrap();
    refuses(&daemon);
    assert!(proc::lives(before));
    daemon.ok(&["store", "restore"]);
    daemon.serve();
    assert_eq!(daemon.running("stayer-0"), before);
}

#[test]
fn a_backup_made_by_hand_is_found_by_restore() {
    let daemon = Daemon::start();
    daemon.apply_ready(&manifest::sleeper("stayer").to_string());
    let before = daemon.running("stayer-0");
    let said = daemon.ok(&["store", "backup"]);
    let path = Path::new(said.split(" (").next().unwrap_or_default());
    daemon.kill_both();
    OpenOptions::new().write(true).open(daemon.state().join("store/sled/db")).unwrap().set_len(100).unwrap();
    let error = daemon.fails(1, &["store", "check"]);
    // Or the one that the daemon made by itself of the same revision.
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let revision = path.with_file_name(name.split(['-', '.']).next().unwrap_or_default());
    assert!(
        path.exists() && error.contains(&format!("{}", revision.display())),
        "{} is not offered: {error}",
        path.display()
    );
    daemon.ok(&["store", "restore"]);
    daemon.serve();
    assert_eq!(daemon.running("stayer-0"), before);
}

#[test]
fn what_was_acknowledged_is_there_after_kill_9_at_once() {
    let daemon = Daemon::start();
    for round in 0..10 * scale() {
        let name = format!("p{round}");
        daemon.apply(&manifest::sleeper(&name).to_string());
        daemon.kill_both();
        daemon.serve();
        daemon.running(&format!("{name}-0"));
    }
    assert_eq!(daemon.instances().len(), 10 * scale());
    let revision = daemon.info().expect("it answers")["revision"].as_u64();
    daemon.kill_both();
    daemon.serve();
    assert!(daemon.info().expect("it answers")["revision"].as_u64() >= revision, "revisions went back");
}

#[test]
fn a_backup_of_a_running_daemon_can_be_restored_elsewhere() {
    let daemon = Daemon::start();
    daemon.apply_ready(&manifest::sleeper("web").to_string());
    let said = daemon.ok(&["store", "backup"]);
    let path = said.split(" (").next().unwrap().to_owned();
    let error = daemon.fails(1, &["store", "restore", &path]);
    assert!(error.contains("another daemon"), "{error}");
    let mut text = fs::read(&path).unwrap();
    let other = Daemon::start();
    other.shutdown();
    let good = other.path().join("good");
    fs::copy(&path, &good).unwrap();
    // One flipped bit in a backup is noticed before anything is replaced.
    let middle = text.len() / 2;
    text[middle] ^= 1;
    fs::write(other.path().join("bad"), text).unwrap();
    other.fails(1, &["store", "restore", "bad"]);
    other.ok(&["store", "check"]);
    other.ok(&["store", "restore", "good"]);
    other.serve();
    wait_until("the restored process to run", || {
        let instance = other.instance("web-0");
        (instance.phase() == "Running" && instance.attempt() > 1).then_some(())
    });
    // The processes of the one are not those of the other.
    assert_ne!(other.running("web-0"), daemon.running("web-0"));
}
