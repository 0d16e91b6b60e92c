//! Deaths of keeper and controller: no process is lost, started twice or signalled wrongly, no byte and no exit code
//! is lost.

mod harness;

use std::fs;
use std::path::PathBuf;

use harness::{Client, Daemon, is_alive, kill_9, script, wait_gone, wait_until};
use ostler_keeper::wire::{
    Ended, Exit, Identity, Intent, JournalRecord, Phase, Spawn, Started, Upgrade, exit, journal_record, report,
};
use prost::Message as _;

/// Writes numbered lines to both streams until it is told to end by a file, then exits with `code`.
fn counter(id: &str, dir: &std::path::Path, code: i32) -> (Spawn, PathBuf) {
    let stop = dir.join(format!("stop-{id}"));
    let text = format!(
        "i=0; while ! test -e {}; do echo line $i; echo error $i >&2; i=$((i+1)); done; \
         printf 'total %s' $i; exit {code}",
        stop.display()
    );
    (script(id, 1, &text), stop)
}

/// Every line from 0 on is there once and in order, on both streams, and so is the last one.
fn check_count(log: &[u8]) -> usize {
    let text = std::str::from_utf8(log).unwrap();
    let (mut lines, mut errors, mut total) = (0, 0, None);
    // The streams are whole lines each, but the log may change streams within a line.
    let _ = text;
    for line in text.lines() {
        if let Some(number) = line.strip_prefix("line ") {
            assert_eq!(number, lines.to_string());
            lines += 1;
        } else if let Some(number) = line.strip_prefix("error ") {
            assert_eq!(number, errors.to_string());
            errors += 1;
        } else if let Some(number) = line.strip_prefix("total ") {
            total = Some(number.parse::<usize>().unwrap());
        } else {
            panic!("{line:?}");
        }
    }
    assert_eq!(total, Some(lines), "lines");
    assert_eq!(errors, lines, "errors");
    lines
}

fn by_stream(daemon: &Daemon, id: &str) -> (Vec<u8>, Vec<u8>) {
    use ostler_keeper::logs::{Filter, Stream};
    let directory = daemon.state_dir().join("logs/test").join(id);
    let read = |stream| harness::read_log(&directory, Filter { stream: Some(stream), ..Filter::default() });
    (read(Stream::Stdout), read(Stream::Stderr))
}

/// As [`check_count`], stream by stream.
fn check_streams(daemon: &Daemon, id: &str) -> usize {
    let (mut out, err) = by_stream(daemon, id);
    let all = daemon.log(id);
    assert_eq!(all.len(), out.len() + err.len());
    out.splice(0..0, err);
    check_count(&out)
}

#[test]
fn a_controller_that_dies_is_started_again_and_told_everything() {
    for mode in harness::modes("a_controller_that_dies_is_started_again_and_told_everything") {
        let (mut daemon, mut client) = Daemon::started(mode);
        let dir = daemon.dir.path().to_owned();
        let (living, ended, failed) = (daemon.id(), daemon.id(), daemon.id());
        let (spawn, stop) = counter(&living, &dir, 5);
        client.tell(spawn);
        client.tell(script(&ended, 1, "exit 4"));
        let mut broken = script(&failed, 1, "");
        broken.argv = vec![b"/no/such".to_vec()];
        client.tell(broken);
        client.wait_phase(&living, 1, Phase::Running);
        client.wait_phase(&ended, 1, Phase::Empty);
        client.wait_phase(&failed, 1, Phase::FailedToStart);
        let pid = client.pid(&living, 1);
        daemon.kill_controller(client);
        let mut client = daemon.accept();
        client.wait_snapshot();
        assert_eq!(client.known.len(), 3);
        let known = &client.known[&(living.clone(), 1)];
        assert_eq!(known.state.phase(), Phase::Running);
        assert!(known.pidfd.is_some() && known.stdout.is_some() && known.stderr.is_some());
        assert_eq!(client.pid(&living, 1), pid);
        let exit = client.known[&(ended, 1)].state.exit.clone().unwrap();
        assert_eq!(exit.code(), Some(4));
        fs::write(stop, "").unwrap();
        let state = client.wait_phase(&living, 1, Phase::Empty);
        assert_eq!(state.exit.unwrap().code(), Some(5));
        assert!(check_streams(&daemon, &living) > 0);
    }
}

#[test]
fn a_keeper_that_dies_is_replaced_without_loss() {
    for mode in harness::modes("a_keeper_that_dies_is_replaced_without_loss") {
        for round in 0..3 {
            let (mut daemon, mut client) = Daemon::started(mode);
            let dir = daemon.dir.path().to_owned();
            let (id, quick) = (daemon.id(), daemon.id());
            let (spawn, stop) = counter(&id, &dir, 42);
            client.tell(spawn);
            // Ends while there is no keeper.
            let go = dir.join("go");
            let text = format!(
                "while ! test -e {}; do sleep 0.001; done; printf 'binary \\000\\377 end'; exit 43",
                go.display()
            );
            client.tell(script(&quick, 1, &text));
            client.wait_phase(&id, 1, Phase::Running);
            client.wait_phase(&quick, 1, Phase::Running);
            wait_until("output", || daemon.log(&id).len() > 1000 * (round + 1));
            let pid = client.pid(&id, 1);
            let quick_pid = client.pid(&quick, 1);
            daemon.kill_keeper();
            fs::write(&go, "").unwrap();
            wait_gone(quick_pid);
            let (mut client, _) = daemon.replace_keeper(&client);
            assert_eq!(client.pid(&id, 1), pid, "{mode}");
            let state = client.wait_phase(&quick, 1, Phase::Empty);
            assert!(state.adopted);
            let exit = state.exit.unwrap();
            assert_eq!(exit.code(), Some(43), "{mode} {exit:?}");
            assert_eq!(daemon.log(&quick), b"binary \0\xff end");
            fs::write(stop, "").unwrap();
            let state = client.wait_phase(&id, 1, Phase::Empty);
            assert_eq!(state.exit.unwrap().code(), Some(42));
            assert!(check_streams(&daemon, &id) > 0);
            daemon.shutdown(&mut client);
        }
    }
}

#[test]
fn when_both_die_the_next_daemon_adopts_by_identity() {
    for mode in harness::modes("when_both_die_the_next_daemon_adopts_by_identity") {
        let (mut daemon, mut client) = Daemon::started(mode);
        let dir = daemon.dir.path().to_owned();
        let (id, gone, orphaned) = (daemon.id(), daemon.id(), daemon.id());
        let (spawn, stop) = counter(&id, &dir, 6);
        client.tell(spawn);
        client.tell(script(&gone, 1, "exec sleep 1000"));
        client.tell(script(&orphaned, 1, "sleep 1000 & exit 2"));
        client.wait_phase(&id, 1, Phase::Running);
        client.wait_phase(&gone, 1, Phase::Running);
        client.wait_phase(&orphaned, 1, Phase::Exited);
        let pid = client.pid(&id, 1);
        let gone_pid = client.pid(&gone, 1);
        daemon.kill_keeper();
        daemon.kill_controller(client);
        wait_gone(daemon.relay_pid);
        kill_9(gone_pid);
        wait_gone(gone_pid);
        let mut client = daemon.start();
        let state = client.wait_phase(&id, 1, Phase::Running);
        assert!(state.adopted);
        assert_eq!(client.pid(&id, 1), pid, "{mode}");
        let state = client.wait_phase(&gone, 1, Phase::Empty);
        // Exact when it was not collected yet as the daemon came, but never invented.
        let exit = state.exit.unwrap();
        assert!(matches!(exit.status, Some(exit::Status::Unknown(_) | exit::Status::Signal(9))), "{exit:?}");
        let state = client.wait_phase(&orphaned, 1, Phase::Exited);
        assert_eq!(state.exit.unwrap().code(), Some(2));
        assert_eq!(state.survivors, 1);
        client.kill(&orphaned, 1);
        client.wait_phase(&orphaned, 1, Phase::Empty);
        fs::write(stop, "").unwrap();
        let state = client.wait_phase(&id, 1, Phase::Empty);
        assert_eq!(state.exit.unwrap().code(), Some(6), "{mode}");
        assert!(check_streams(&daemon, &id) > 0);
        client.tell(script(&id, 1, "true"));
        client.sync();
        assert_eq!(client.refusals(), ["attempt 1 was started before"]);
    }
}

/// Runs a keeper that dies at a failpoint while it starts an attempt, and returns the next one.
fn die_at(failpoint: &str, mode: &'static str, text: &str) -> (Daemon, Client, String) {
    let mut daemon = Daemon::new(mode);
    daemon.failpoint = Some(failpoint.to_owned());
    let client = daemon.start();
    let id = daemon.id();
    client.tell(script(&id, 1, text));
    daemon.wait_keeper();
    daemon.failpoint = None;
    daemon.kill_controller(client);
    wait_gone(daemon.relay_pid);
    let client = daemon.start();
    (daemon, client, id)
}

#[test]
fn a_death_at_any_step_of_a_start_starts_nothing_twice() {
    for mode in harness::modes("a_death_at_any_step_of_a_start_starts_nothing_twice") {
        for failpoint in ["spawn-after-intent", "spawn-after-mkdir"] {
            let (mut daemon, mut client, id) = die_at(failpoint, mode, "exec sleep 1000");
            let state = client.wait_phase(&id, 1, Phase::Empty);
            assert!(matches!(state.exit.unwrap().status, Some(exit::Status::Unknown(_))));
            assert!(harness::marked(&id).is_empty(), "{mode} {failpoint}");
            client.tell(script(&id, 1, "true"));
            client.tell(script(&id, 2, "true"));
            client.wait_phase(&id, 2, Phase::Empty);
            assert_eq!(client.refusals().len(), 1);
            daemon.shutdown(&mut client);
            daemon.wait_keeper();
        }
        for failpoint in ["spawn-after-clone", "spawn-after-started"] {
            let text = "echo before; while :; do sleep 0.01; done";
            let (daemon, mut client, id) = die_at(failpoint, mode, text);
            let state = client.wait_phase(&id, 1, Phase::Running);
            assert!(state.adopted);
            // During its exec a process shows no environment.
            let pid = client.pid(&id, 1);
            wait_until("the one process", || harness::marked(&id).contains(&pid));
            wait_until("what it wrote while there was no keeper", || daemon.log(&id) == b"before\n");
            client.tell(script(&id, 1, "true"));
            client.tell(script(&id, 2, "true"));
            client.sync();
            assert_eq!(client.refusals().len(), 2);
            client.kill(&id, 1);
            client.wait_phase(&id, 1, Phase::Empty);
            assert!(harness::marked(&id).is_empty());
        }
    }
}

#[test]
fn a_death_around_the_recording_of_an_exit_keeps_the_exit() {
    for mode in harness::modes("a_death_around_the_recording_of_an_exit_keeps_the_exit") {
        for failpoint in ["exit-before-ended", "exit-after-ended"] {
            let mut daemon = Daemon::new(mode);
            daemon.failpoint = Some(failpoint.to_owned());
            let mut client = daemon.start();
            let id = daemon.id();
            let go = daemon.dir.path().join("go");
            let text = format!("while ! test -e {}; do sleep 0.001; done; echo last words; exit 9", go.display());
            client.tell(script(&id, 1, &text));
            client.wait_phase(&id, 1, Phase::Running);
            fs::write(go, "").unwrap();
            daemon.wait_keeper();
            let (mut client, _) = daemon.replace_keeper(&client);
            let state = client.wait_phase(&id, 1, Phase::Empty);
            assert_eq!(state.exit.unwrap().code(), Some(9), "{mode} {failpoint}");
            assert_eq!(daemon.log(&id), b"last words\n");
            daemon.shutdown(&mut client);
        }
    }
}

#[test]
fn a_death_around_forgetting_forgets_or_does_not() {
    for (failpoint, left) in [("forget-before-journal", 1), ("forget-after-journal", 0)] {
        let mut daemon = Daemon::new("auto");
        daemon.failpoint = Some(failpoint.to_owned());
        let mut client = daemon.start();
        let id = daemon.id();
        client.tell(script(&id, 1, "exit 1"));
        client.wait_phase(&id, 1, Phase::Empty);
        client.forget(&id, 1, false);
        daemon.wait_keeper();
        daemon.failpoint = None;
        daemon.kill_controller(client);
        wait_gone(daemon.relay_pid);
        let mut client = daemon.start();
        assert_eq!(client.known.len(), left, "{failpoint}");
        client.tell(script(&id, 1, "true"));
        client.sync();
        assert_eq!(client.refusals(), ["attempt 1 was started before"]);
    }
}

#[test]
fn a_death_in_a_rotation_loses_nothing() {
    for failpoint in ["rotate-created:5", "rotate-indexed:5", "index-recorded:9"] {
        let mut daemon = Daemon::new("auto");
        daemon.failpoint = Some(failpoint.to_owned());
        let mut client = daemon.start();
        let dir = daemon.dir.path().to_owned();
        let id = daemon.id();
        let (mut spawn, stop) = counter(&id, &dir, 8);
        spawn.log = Some(ostler_keeper::wire::LogSettings { max_size: 2000, ..Default::default() });
        client.tell(spawn);
        daemon.wait_keeper();
        client.listen();
        let (mut client, _) = daemon.replace_keeper(&client);
        let before = daemon.log(&id).len();
        wait_until("more output", || daemon.log(&id).len() > before + 10_000);
        fs::write(stop, "").unwrap();
        let state = client.wait_phase(&id, 1, Phase::Empty);
        assert_eq!(state.exit.unwrap().code(), Some(8), "{failpoint}");
        assert!(check_streams(&daemon, &id) > 100);
        daemon.shutdown(&mut client);
    }
}

#[test]
fn an_upgrade_keeps_children_and_their_exits() {
    for mode in harness::modes("an_upgrade_keeps_children_and_their_exits") {
        let (mut daemon, mut client) = Daemon::started(mode);
        let dir = daemon.dir.path().to_owned();
        let (id, ended) = (daemon.id(), daemon.id());
        let (spawn, stop) = counter(&id, &dir, 12);
        client.tell(spawn);
        client.tell(script(&ended, 1, "exit 13"));
        client.wait_phase(&id, 1, Phase::Running);
        client.wait_phase(&ended, 1, Phase::Empty);
        let pid = client.pid(&id, 1);
        for _ in 0..3 {
            let before = client.snapshots;
            client.tell(Upgrade { binary: harness::custody().display().to_string() });
            client.wait("the snapshot of the new keeper", |client| (client.snapshots > before).then_some(()));
            let hello = client.hellos.last().unwrap();
            assert_eq!(hello.version, "resume");
            assert_eq!(hello.pid, daemon.process.as_ref().unwrap().id() as i32);
        }
        assert_eq!(client.pid(&id, 1), pid);
        let known = &client.known[&(id.clone(), 1)];
        assert!(!known.state.adopted);
        fs::write(stop, "").unwrap();
        let state = client.wait_phase(&id, 1, Phase::Empty);
        assert_eq!(state.exit.unwrap().code(), Some(12));
        assert!(check_streams(&daemon, &id) > 0);
        let state = client.wait_phase(&ended, 1, Phase::Empty);
        assert_eq!(state.exit.unwrap().code(), Some(13));
        daemon.shutdown(&mut client);
        assert_eq!(daemon.wait_keeper().code(), Some(0));
    }
}

#[test]
fn an_upgrade_that_is_refused_changes_nothing() {
    let mut daemon = Daemon::new("auto");
    daemon.env = vec![("CUSTODY_REFUSES_UPGRADES", "1")];
    let mut client = daemon.start();
    let id = daemon.id();
    client.tell(script(&id, 1, "exec sleep 1000"));
    client.wait_phase(&id, 1, Phase::Running);
    for binary in [harness::custody().display().to_string(), "/no/such/program".to_owned(), "/bin/false".to_owned()] {
        client.others.clear();
        client.tell(Upgrade { binary });
        let why = client.wait("the refusal", |client| {
            client.others.iter().find_map(|other| match other {
                report::Kind::UpgradeFailed(failed) => Some(failed.why.clone()),
                _ => None,
            })
        });
        assert!(!why.is_empty());
    }
    assert_eq!(client.hellos.len(), 1);
    client.kill(&id, 1);
    let state = client.wait_phase(&id, 1, Phase::Empty);
    assert_eq!(state.exit.unwrap().signal(), Some(9));
}

fn append(journal: &std::path::Path, records: Vec<JournalRecord>) {
    let mut bytes = fs::read(journal).unwrap_or_default();
    for record in records {
        let body = record.encode_to_vec();
        bytes.extend((body.len() as u32).to_le_bytes());
        bytes.extend(crc32fast::hash(&body).to_le_bytes());
        bytes.extend(body);
    }
    fs::create_dir_all(journal.parent().unwrap()).unwrap();
    fs::write(journal, bytes).unwrap();
}

fn started_record(id: &str, boot_id: &str, pid: i32, start_time: u64) -> Vec<JournalRecord> {
    vec![
        Intent {
            id: id.to_owned(),
            attempt: 1,
            name: format!("test/{id}"),
            log_dir: format!("logs/test/{id}"),
            boot_id: boot_id.to_owned(),
            ..Intent::default()
        }
        .into(),
        Started {
            id: id.to_owned(),
            attempt: 1,
            identity: Some(Identity { boot_id: boot_id.to_owned(), pid, start_time }),
            at: 1,
            ..Started::default()
        }
        .into(),
    ]
}

fn start_time(pid: u32) -> u64 {
    let line = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = line.rsplit_once(") ").unwrap().1.split(' ').collect();
    fields[22 - 3].parse().unwrap()
}

/// A process that ends with the test.
struct Foreign(std::process::Child);

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_foreign_process_with_a_recorded_pid_is_never_touched() {
    let boot_id = ostler_keeper::wire::boot_id().unwrap();
    for mode in harness::modes("a_foreign_process_with_a_recorded_pid_is_never_touched") {
        let mut foreign = Foreign(std::process::Command::new("sleep").arg("1000").spawn().unwrap());
        let mut daemon = Daemon::new(mode);
        let (recycled, rebooted) = (daemon.id(), daemon.id());
        let pid = foreign.0.id();
        let time = start_time(pid);
        let mut records = started_record(&recycled, &boot_id, pid as i32, time - 1);
        // The right process by pid and start time, but of another boot.
        records.extend(started_record(&rebooted, "another-boot", pid as i32, time));
        append(&daemon.journal(), records);
        let mut client = daemon.start();
        for id in [&recycled, &rebooted] {
            let state = client.wait_phase(id, 1, Phase::Empty);
            assert!(matches!(state.exit.unwrap().status, Some(exit::Status::Unknown(_))));
            client.kill(id, 1);
            client.signal(id, 1, libc::SIGKILL, true);
            client.signal(id, 1, libc::SIGKILL, false);
        }
        client.sync();
        assert!(is_alive(pid as i32), "{mode}");
        assert_eq!(foreign.0.try_wait().unwrap(), None);
    }
}

#[test]
fn after_a_reboot_known_ends_stay_known() {
    let mut daemon = Daemon::new("auto");
    let id = daemon.id();
    let mut records = started_record(&id, "another-boot", 1, 1);
    records.push(
        Ended {
            id: id.clone(),
            attempt: 1,
            exit: Some(Exit { status: Some(exit::Status::Code(3)), at: 7, core_dumped: false, oom_kills: 0 }),
            error: None,
            tree_empty: false,
        }
        .into(),
    );
    append(&daemon.journal(), records);
    let mut client = daemon.start();
    let state = client.wait_phase(&id, 1, Phase::Empty);
    assert_eq!(state.exit.unwrap().code(), Some(3));
}

#[test]
fn a_damaged_journal_costs_no_process() {
    // Without cgroups there is nothing but the journal to know them by.
    if !harness::modes("a_damaged_journal_costs_no_process").contains(&"v2") {
        return;
    }
    let (mut daemon, mut client) = Daemon::started("v2");
    let id = daemon.id();
    client.tell(script(&id, 1, "exec sleep 1000"));
    client.wait_phase(&id, 1, Phase::Running);
    let pid = client.pid(&id, 1);
    daemon.kill_keeper();
    daemon.kill_controller(client);
    wait_gone(daemon.relay_pid);
    fs::write(daemon.journal(), [0xff; 100]).unwrap();
    let mut client = daemon.start();
    client.wait_phase(&id, 1, Phase::Running);
    assert_eq!(client.pid(&id, 1), pid);
    client.kill(&id, 1);
    client.wait_phase(&id, 1, Phase::Empty);
}

#[test]
fn the_journal_says_what_happened_in_order() {
    let (mut daemon, mut client) = Daemon::started("auto");
    let id = daemon.id();
    client.tell(script(&id, 1, "exit 2"));
    client.wait_phase(&id, 1, Phase::Empty);
    client.forget(&id, 1, false);
    client.sync();
    let bytes = fs::read(daemon.journal()).unwrap();
    let mut kinds = Vec::new();
    let mut rest = &bytes[..];
    while rest.len() >= 8 {
        let length = u32::from_le_bytes(rest[..4].try_into().unwrap()) as usize;
        let record = JournalRecord::decode(&rest[8..8 + length]).unwrap();
        kinds.push(match record.kind.unwrap() {
            journal_record::Kind::Intent(_) => "intent",
            journal_record::Kind::Started(_) => "started",
            journal_record::Kind::Ended(_) => "ended",
            journal_record::Kind::Forgotten(_) => "forgotten",
        });
        rest = &rest[8 + length..];
    }
    assert_eq!(kinds, ["intent", "started", "ended", "forgotten"]);
}

#[test]
fn terminate_is_passed_on_and_shutdown_leaves_workloads_alone() {
    let (mut daemon, mut client) = Daemon::started("auto");
    let id = daemon.id();
    client.tell(script(&id, 1, "while :; do sleep 0.01; done"));
    client.wait_phase(&id, 1, Phase::Running);
    let pid = client.pid(&id, 1);
    let keeper = rustix::process::Pid::from_raw(client.hellos[0].pid).unwrap();
    rustix::process::kill_process(keeper, rustix::process::Signal::HUP).unwrap();
    rustix::process::kill_process(keeper, rustix::process::Signal::TERM).unwrap();
    client.wait("Terminate", |client| {
        client.others.iter().find_map(|other| match other {
            report::Kind::Terminate(terminate) => (terminate.signal == 15).then_some(()),
            _ => None,
        })
    });
    client.tell(ostler_keeper::wire::Shutdown { exit_code: 17 });
    daemon.kill_controller(client);
    assert_eq!(daemon.wait_keeper().code(), Some(17));
    assert!(is_alive(pid));
    let mut client = daemon.start();
    client.wait_phase(&id, 1, Phase::Running);
    assert_eq!(client.pid(&id, 1), pid);
    client.kill(&id, 1);
    client.wait_phase(&id, 1, Phase::Empty);
}

#[test]
fn a_second_daemon_is_refused_while_either_half_lives() {
    let (mut daemon, client) = Daemon::started("auto");
    let refused = || ostler_keeper::lock(&daemon.state_dir()).unwrap_err().to_string();
    assert!(refused().contains(&format!("pid {}", client.hellos[0].pid)));
    daemon.kill_keeper();
    ostler_keeper::lock(&daemon.state_dir()).unwrap_err();
    daemon.kill_controller(client);
    wait_gone(daemon.relay_pid);
    ostler_keeper::lock(&daemon.state_dir()).unwrap();
}
