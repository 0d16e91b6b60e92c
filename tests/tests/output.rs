//! Logs: every byte, whatever it is, however fast it comes, whoever dies meanwhile.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Stdio;

use ostler_tests::witness::{Blob, check_lines};
use ostler_tests::{Daemon, Setup, is_root, manifest, mounts, proc, scale, skipped, wait_until};
use serde_json::json;

fn log_files(daemon: &Daemon, instance: &str) -> Vec<PathBuf> {
    let directory = daemon.state().join("logs/default").join(instance);
    let mut files: Vec<PathBuf> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|it| it == "log"))
        .collect();
    files.sort();
    files
}

#[test]
fn a_burst_of_short_lines_arrives_complete() {
    let lines = 500_000 * scale() as u64;
    let daemon = Daemon::start();
    daemon.apply(&manifest::witness("burst", &format!("--burst {lines} --line 100")).to_string());
    daemon.running("burst-0");
    let instance = daemon.instance("burst-0");
    wait_until("the burst to be written", || (daemon.journal().written(instance.uid(), 1).0 == lines).then_some(()));
    assert_eq!(daemon.assert_output_complete("burst-0"), lines);
    assert_eq!(log_files(&daemon, "burst-0").len(), 1);
}

#[test]
fn long_lines_binary_output_and_output_without_a_newline_arrive_byte_for_byte() {
    const LENGTH: usize = 16 << 20;
    let daemon = Daemon::start();
    let kinds = [("long", Blob::Long), ("binary", Blob::Binary), ("endless", Blob::Endless)];
    for (word, _) in kinds {
        let mut object = manifest::witness(word, &format!("--blob {word}:{LENGTH} --exit --code 0"));
        object["spec"]["restartPolicy"] = json!("Never");
        daemon.apply(&object.to_string());
    }
    for (word, blob) in kinds {
        let name = format!("{word}-0");
        // The pipe is read to its end before the exit is published.
        daemon.phase(&name, "Stopped");
        let output = daemon.cli(&["logs", &name]).bytes;
        assert_eq!(output.len(), LENGTH, "{word}");
        assert!(output == blob.bytes(LENGTH), "{word}: the bytes differ");
    }
}

#[test]
fn the_last_words_of_a_short_life_are_kept() {
    let daemon = Daemon::start();
    let objects: Vec<_> = (0..20)
        .map(|number| {
            let mut object = manifest::witness(&format!("brief{number}"), "--burst 700 --exit --code 0");
            object["spec"]["restartPolicy"] = json!("Never");
            object
        })
        .collect();
    daemon.apply(&manifest::all(&objects));
    for number in 0..20 {
        let name = format!("brief{number}-0");
        daemon.phase(&name, "Stopped");
        let uid = daemon.instance(&name).uid().to_owned();
        let wanted = BTreeMap::from([(1, 700)]);
        assert_eq!(check_lines(&uid, 'o', &wanted, &daemon.output(&name, "stdout")), Ok(700));
    }
}

#[test]
fn two_hundred_rotations_under_load_lose_nothing_whoever_is_killed() {
    let daemon = Daemon::start();
    let mut object = manifest::witness("spinner", "--rate 40000 --stderr-every 5");
    object["spec"]["logs"] = json!({"maxSize": "64Ki", "maxFiles": 0, "maxAge": "0s"});
    daemon.apply(&object.to_string());
    let before = daemon.running("spinner-0");
    let rotations = 200 * scale();
    for part in 1..=8 {
        wait_until("rotations", || (log_files(&daemon, "spinner-0").len() > rotations * part / 8).then_some(()));
        match part % 3 {
            0 => drop(daemon.kill_controller()),
            1 => drop(daemon.kill_keeper()),
            _ => {
                daemon.kill_both();
                daemon.serve();
            }
        }
        wait_until("both", || (daemon.info()?["keeperPid"] == daemon.keeper()?.pid).then_some(()));
    }
    assert_eq!(daemon.running("spinner-0"), before);
    daemon.ok(&["stop", "process/spinner", "--timeout", "60s"]);
    let lines = daemon.assert_output_complete("spinner-0");
    let files = log_files(&daemon, "spinner-0");
    assert!(files.len() > rotations);
    let bytes: u64 = files.iter().map(|file| file.metadata().map_or(0, |it| it.len())).sum();
    assert_eq!(bytes, lines * 100, "bytes beside the lines");
    for file in &files {
        // At most one splice beyond the limit.
        let size = file.metadata().map_or(0, |it| it.len());
        assert!(size <= (64 << 10) + (1 << 20), "{}: {size}", file.display());
    }
}

#[test]
fn only_as_many_files_as_asked_for_are_kept_and_they_are_the_latest() {
    let daemon = Daemon::start();
    let mut object = manifest::witness("spinner", "--burst 20000");
    object["spec"]["logs"] = json!({"maxSize": "64Ki", "maxFiles": 3});
    daemon.apply(&object.to_string());
    daemon.running("spinner-0");
    let uid = daemon.instance("spinner-0").uid().to_owned();
    let last = String::from_utf8(ostler_tests::witness::line(&format!("{uid}.1"), 'o', 19_999, 100)).unwrap();
    wait_until("the last line", || (daemon.ok(&["logs", "spinner-0", "--tail", "1"]) == last).then_some(()));
    wait_until("old files to go", || (log_files(&daemon, "spinner-0").len() <= 3).then_some(()));
}

#[test]
fn a_log_file_deleted_under_the_writer_costs_only_itself() {
    let daemon = Daemon::start();
    daemon.apply(&manifest::witness("victim", "--rate 200").to_string());
    let file = wait_until("a log file", || log_files(&daemon, "victim-0").pop());
    fs::remove_file(&file).unwrap();
    let next = wait_until("the next file", || log_files(&daemon, "victim-0").pop().filter(|next| *next != file));
    wait_until("lines in it", || (next.metadata().ok()?.len() > 1000).then_some(()));
    assert!(daemon.output("victim-0", "stdout").starts_with(b"w "), "lines are cut");
    // Who reads while somebody writes can see the beginning of a line.
    wait_until("whole lines", || daemon.output("victim-0", "stdout").ends_with(b"\n").then_some(()));
}

#[test]
fn following_goes_on_through_restarts_of_the_instance_and_of_the_daemon() {
    let daemon = Daemon::start();
    daemon.apply(&manifest::witness("talker", "--rate 300").to_string());
    daemon.running("talker-0");
    let file = daemon.path().join("followed");
    let mut follower = daemon
        .client()
        .args(["logs", "-f", "talker-0"])
        .stdin(Stdio::null())
        .stdout(File::create(&file).unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let followed = || fs::read(&file).unwrap_or_default();
    wait_until("the first lines", || (followed().len() > 5_000).then_some(()));
    daemon.ok(&["restart", "process/talker", "--wait", "--timeout", "60s"]);
    daemon.kill_controller();
    daemon.answers();
    daemon.kill_both();
    daemon.serve();
    daemon.ok(&["restart", "process/talker", "--wait", "--timeout", "60s"]);
    daemon.ok(&["stop", "process/talker", "--timeout", "60s"]);
    let complete = daemon.output("talker-0", "all");
    wait_until("the follower to have it all", || {
        let now = followed();
        assert!(complete.starts_with(&now), "the follower has something else");
        assert!(follower.try_wait().unwrap().is_none() || now == complete, "the follower ended early");
        (now == complete).then_some(())
    });
    let _ = follower.kill();
    let _ = follower.wait();
    let uid = daemon.instance("talker-0").uid().to_owned();
    let written = daemon.journal().written_by("default/talker-0", &uid, 'o');
    assert!(check_lines(&uid, 'o', &written, &followed()).is_ok_and(|lines| lines > 50));
}

#[test]
fn parts_of_a_log_can_be_asked_for() {
    let daemon = Daemon::start();
    let script = "echo out$OSTLER_ATTEMPT; echo err >&2; printf tail; exit 0";
    let mut object = manifest::shell("parts", script);
    object["spec"]["restartPolicy"] = json!("Never");
    daemon.apply(&object.to_string());
    let uid = daemon.phase("parts-0", "Stopped").uid().to_owned();
    let own = |attempt: u64| format!("out{uid}.{attempt}\n");
    assert_eq!(daemon.ok(&["logs", "parts-0", "--stream", "stdout"]), own(1) + "tail");
    assert_eq!(daemon.ok(&["logs", "parts-0", "--stream", "stderr"]), "err\n");
    assert_eq!(daemon.ok(&["logs", "parts-0", "--tail", "1", "--stream", "stdout"]), "tail");
    daemon.ok(&["start", "process/parts"]);
    daemon.instance_when("parts-0", "over again", |it| it.attempt() == 2 && it.phase() == "Stopped");
    assert_eq!(daemon.ok(&["logs", "parts-0", "--stream", "stdout"]), own(2) + "tail");
    assert_eq!(daemon.ok(&["logs", "parts-0", "--stream", "stdout", "--previous"]), own(1) + "tail");
    let all = daemon.ok(&["logs", "parts-0", "--stream", "stdout", "--all-attempts"]);
    assert_eq!(all, own(1) + "tail" + &own(2) + "tail");
    let stamped = daemon.ok(&["logs", "parts-0", "--timestamps", "--stream", "stderr"]);
    assert!(stamped.starts_with("20") && stamped.ends_with("Z err\n"), "{stamped:?}");
    assert_eq!(daemon.ok(&["logs", "parts-0", "--since", "1h", "--stream", "stderr"]), "err\n");
    assert_eq!(daemon.ok(&["logs", "parts-0", "--since-time", "2100-01-01T00:00:00Z"]), "");
}

#[test]
fn a_full_disk_blocks_the_writer_and_loses_nothing() {
    const TEST: &str = "a_full_disk_blocks_the_writer_and_loses_nothing";
    const LINES: u64 = 200_000;
    if !is_root() {
        return skipped(TEST, "mounting a small disk needs root");
    }
    let daemon = Setup::default().prepare();
    fs::create_dir(daemon.state()).unwrap();
    if let Err(why) = mounts::private_disk(daemon.state(), 40 << 20) {
        return skipped(TEST, &format!("a small disk cannot be mounted: {why}"));
    }
    daemon.serve();
    daemon.apply(&manifest::sleeper("bystander").to_string());
    let bystander = daemon.running("bystander-0");
    let ballast = daemon.state().join("ballast");
    let free = || mounts::free_bytes(daemon.state()).unwrap();
    fs::write(&ballast, vec![1; (free() - (6 << 20)) as usize]).unwrap();
    daemon.apply(&manifest::witness("writer", &format!("--burst {LINES}")).to_string());
    let writer = daemon.running("writer-0");
    let uid = daemon.instance("writer-0").uid().to_owned();
    wait_until("the disk to be full", || (free() == 0).then_some(()));
    // Blocked: the witness sleeps in its write, and nothing is counted any more.
    wait_until("the writer to block", || {
        // Where the kernel does not tell where: until its burst is over it sleeps nowhere else.
        let place = fs::read_to_string(format!("/proc/{}/wchan", writer.pid)).ok()?;
        let sleeps = place == "0" && proc::state(writer.pid) == Some('S');
        (sleeps || place.contains("pipe") && place.contains("write")).then_some(())
    });
    let written = daemon.journal().written(&uid, 1).0;
    assert!(written < LINES);
    assert!(proc::lives(writer) && proc::lives(bystander));
    // Reading needs no room; a change is refused or taken, but not half.
    assert_eq!(daemon.instances().len(), 2);
    fs::remove_file(&ballast).unwrap();
    wait_until("the rest to be written", || (daemon.journal().written(&uid, 1).0 == LINES).then_some(()));
    assert_eq!(daemon.assert_output_complete("writer-0"), LINES);
    wait_until("changes to be taken again", || {
        (daemon.try_apply(&manifest::sleeper("later").to_string()).code == 0).then_some(())
    });
    daemon.running("later-0");
    assert_eq!([daemon.running("writer-0"), daemon.running("bystander-0")], [writer, bystander]);
    wait_until("the recovery of the log to be told", || {
        (logs_writable(&daemon, "writer-0")? == ("Recovered".to_owned(), "nothing was lost".to_owned())).then_some(())
    });
}

/// Reason and message of the condition, if there is one.
fn logs_writable(daemon: &Daemon, instance: &str) -> Option<(String, String)> {
    let object = daemon.instance(instance).0;
    let conditions = object["status"]["conditions"].as_array()?;
    let condition = conditions.iter().find(|condition| condition["type"] == "LogsWritable")?;
    Some((condition["reason"].as_str()?.to_owned(), condition["message"].as_str()?.to_owned()))
}

#[test]
fn where_dropping_is_asked_for_a_full_disk_blocks_nobody() {
    const TEST: &str = "where_dropping_is_asked_for_a_full_disk_blocks_nobody";
    const LINES: u64 = 200_000;
    if !is_root() {
        return skipped(TEST, "mounting a small disk needs root");
    }
    let daemon = Setup::default().prepare();
    fs::create_dir(daemon.state()).unwrap();
    if let Err(why) = mounts::private_disk(daemon.state(), 40 << 20) {
        return skipped(TEST, &format!("a small disk cannot be mounted: {why}"));
    }
    daemon.serve();
    let free = mounts::free_bytes(daemon.state()).unwrap();
    fs::write(daemon.state().join("ballast"), vec![1; (free - (6 << 20)) as usize]).unwrap();
    let mut object = manifest::witness("writer", &format!("--burst {LINES}"));
    object["spec"]["logs"]["whenBlocked"] = json!("Drop");
    daemon.apply(&object.to_string());
    let before = daemon.running("writer-0");
    let uid = daemon.instance("writer-0").uid().to_owned();
    wait_until("everything to be written", || (daemon.journal().written(&uid, 1).0 == LINES).then_some(()));
    assert!(proc::lives(before));
    let kept = daemon.output("writer-0", "stdout");
    assert!(kept.starts_with(b"w ") && (kept.len() as u64) < LINES * 100, "{} bytes are kept", kept.len());
    fs::remove_file(daemon.state().join("ballast")).unwrap();
    wait_until("the number of dropped bytes to be told", || {
        logs_writable(&daemon, "writer-0")?.1.contains(" bytes").then_some(())
    });
}
