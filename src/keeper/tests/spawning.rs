//! Starting, signalling and ending attempts, on a real keeper with real processes.

mod harness;

use std::fs;

use harness::{Daemon, is_alive, script, wait_until};
use ostler_keeper::wire::spawn_error::Stage;
use ostler_keeper::wire::{Phase, Spawn, exit};

type Change = Box<dyn Fn(&mut Spawn)>;

#[test]
fn exit_codes_and_signals_are_reported_as_they_were() {
    for mode in harness::modes("exit_codes_and_signals_are_reported_as_they_were") {
        let (mut daemon, mut client) = Daemon::started(mode);
        for (text, status) in [
            ("exit 0", exit::Status::Code(0)),
            ("exit 7", exit::Status::Code(7)),
            ("exit 255", exit::Status::Code(255)),
            ("kill -9 $$", exit::Status::Signal(9)),
            ("kill -TERM $$", exit::Status::Signal(15)),
        ] {
            let id = daemon.id();
            client.tell(script(&id, 1, text));
            let state = client.wait_phase(&id, 1, Phase::Empty);
            assert_eq!(state.exit.unwrap().status, Some(status), "{mode} {text}");
            assert!(!state.adopted);
        }
    }
}

#[test]
fn the_hello_says_how_trees_are_held_together() {
    for mode in harness::modes("the_hello_says_how_trees_are_held_together") {
        let (_daemon, client) = Daemon::started(mode);
        assert_eq!(client.hellos[0].cgroup_mode, mode);
        assert!(!client.hellos[0].cgroup_detail.is_empty());
        assert!(!client.hellos[0].wants_handoff);
    }
}

#[test]
fn a_program_that_cannot_be_executed_says_why() {
    let (mut daemon, mut client) = Daemon::started("auto");
    let dir = daemon.dir.path().to_owned();
    let file = |name: &str, text: &str, mode: u32| {
        let path = dir.join(name);
        harness::make_program(&path, text, mode);
        path.to_str().unwrap().to_owned()
    };
    let plain = file("plain", "text", 0o644);
    let format = file("format", "neither script nor program", 0o755);
    let orphan = file("orphan", "#!/no/such/interpreter -x\n", 0o755);
    let argv = |program: &str| -> Change {
        let program = program.to_owned();
        Box::new(move |spawn| spawn.argv = vec![program.clone().into_bytes()])
    };
    let cases: Vec<(Change, Stage, i32, &str, &str)> = vec![
        (argv("/no/such/program"), Stage::Exec, libc::ENOENT, "/no/such/program", ""),
        (argv("no-such-program"), Stage::Exec, libc::ENOENT, "no-such-program", ""),
        (argv(&plain), Stage::Exec, libc::EACCES, &plain, ""),
        (argv(&format), Stage::Exec, libc::ENOEXEC, &format, ""),
        (argv(&orphan), Stage::Exec, libc::ENOENT, "/no/such/interpreter", &orphan),
        (
            Box::new(|spawn| spawn.working_dir = "/no/such/directory".to_owned()),
            Stage::WorkingDir,
            libc::ENOENT,
            "/no/such/directory",
            "",
        ),
        (Box::new(|spawn| spawn.uid = Some(u32::MAX)), Stage::User, libc::EINVAL, "4294967295:-", ""),
        (
            Box::new(|spawn| {
                spawn.rlimits = vec![ostler_keeper::wire::Rlimit { resource: 9999, soft: 1, hard: 1 }];
            }),
            Stage::Limits,
            libc::EINVAL,
            "",
            "",
        ),
    ];
    for (change, stage, errno, path, needed_by) in cases {
        if stage == Stage::User && !rustix::process::geteuid().is_root() {
            harness::skipped("a_program_that_cannot_be_executed_says_why", "only root can switch users");
            continue;
        }
        let id = daemon.id();
        let mut spawn = script(&id, 1, "true");
        change(&mut spawn);
        client.tell(spawn);
        let state = client.wait_phase(&id, 1, Phase::FailedToStart);
        let error = state.error.unwrap();
        assert_eq!(error.stage(), stage, "{error:?}");
        assert_eq!(error.errno, errno, "{error:?}");
        assert_eq!(error.path, path);
        assert_eq!(error.needed_by, needed_by);
        assert!(state.identity.is_none());
        assert!(harness::marked(&id).is_empty());
    }
}

#[test]
fn no_attempt_starts_twice() {
    for mode in harness::modes("no_attempt_starts_twice") {
        let (mut daemon, mut client) = Daemon::started(mode);
        let id = daemon.id();
        client.tell(script(&id, 3, "exec sleep 1000"));
        client.wait_phase(&id, 3, Phase::Running);
        client.tell(script(&id, 3, "exec sleep 1000"));
        client.tell(script(&id, 4, "exec sleep 1000"));
        client.sync();
        assert_eq!(client.refusals(), ["attempt 3 lives", "attempt 3 lives"]);
        // During its exec a process shows no environment.
        wait_until("the one process", || harness::marked(&id).len() == 1);
        client.kill(&id, 3);
        client.wait_phase(&id, 3, Phase::Empty);
        client.tell(script(&id, 3, "true"));
        client.tell(script(&id, 2, "true"));
        client.forget(&id, 3, false);
        client.tell(script(&id, 3, "true"));
        client.sync();
        assert_eq!(client.refusals().len(), 5);
        client.tell(script(&id, 4, "true"));
        client.wait_phase(&id, 4, Phase::Empty);
    }
}

#[test]
fn killing_reaches_the_whole_tree() {
    for mode in harness::modes("killing_reaches_the_whole_tree") {
        let (mut daemon, mut client) = Daemon::started(mode);
        let id = daemon.id();
        // A grandchild in a session of its own that ignores TERM, and a plain child.
        let text = "trap '' TERM; setsid sh -c 'trap \"\" TERM; sleep 1000 & wait' & sleep 1000 & \
                    setsid sleep 1000 & wait";
        client.tell(script(&id, 1, text));
        client.wait_phase(&id, 1, Phase::Running);
        wait_until("the tree to grow", || harness::marked(&id).len() == 5);
        client.kill(&id, 1);
        let state = client.wait_phase(&id, 1, Phase::Empty);
        assert!(harness::marked(&id).is_empty(), "{mode}");
        assert_eq!(state.exit.unwrap().signal(), Some(9));
    }
}

#[test]
fn a_signal_to_the_tree_reaches_all_and_one_to_the_leader_only_it() {
    for mode in harness::modes("a_signal_to_the_tree_reaches_all_and_one_to_the_leader_only_it") {
        let (mut daemon, mut client) = Daemon::started(mode);
        let id = daemon.id();
        let text = "trap 'echo leader' USR1; (trap 'echo child' USR1; echo up; while :; do sleep 0.01; done) & \
                    while :; do sleep 0.01; done";
        client.tell(script(&id, 1, text));
        client.wait_phase(&id, 1, Phase::Running);
        let count = |daemon: &Daemon, what: &str| {
            let log = String::from_utf8(daemon.log(&id)).unwrap();
            log.lines().filter(|line| *line == what).count()
        };
        wait_until("the child", || count(&daemon, "up") == 1);
        client.signal(&id, 1, libc::SIGUSR1, false);
        wait_until("the leader", || count(&daemon, "leader") == 1);
        assert_eq!(count(&daemon, "child"), 0);
        client.signal(&id, 1, libc::SIGTERM, true);
        let state = client.wait_phase(&id, 1, Phase::Empty);
        assert_eq!(state.exit.unwrap().signal(), Some(15), "{mode}");
        assert!(harness::marked(&id).is_empty());
    }
}

#[test]
fn a_leader_that_exits_first_leaves_survivors_that_are_counted() {
    for mode in harness::modes("a_leader_that_exits_first_leaves_survivors_that_are_counted") {
        let (mut daemon, mut client) = Daemon::started(mode);
        let id = daemon.id();
        client.tell(script(&id, 1, "(echo a; exec sleep 1000) & (exec sleep 1000) & echo b; exit 3"));
        let state = client.wait_phase(&id, 1, Phase::Exited);
        assert_eq!(state.exit.as_ref().unwrap().code(), Some(3));
        // During their execs processes show no environment.
        client.wait("both survivors", |client| (client.known[&(id.clone(), 1)].state.survivors == 2).then_some(()));
        client.tell(script(&id, 2, "true"));
        client.sync();
        assert_eq!(client.refusals(), ["attempt 1 lives"]);
        wait_until("two processes", || harness::marked(&id).len() == 2);
        let mut pids = harness::marked(&id);
        harness::kill_9(pids.pop().unwrap());
        harness::kill_9(pids.pop().unwrap());
        let state = client.wait_phase(&id, 1, Phase::Empty);
        assert_eq!(state.exit.unwrap().code(), Some(3));
        assert_eq!(state.survivors, 0);
    }
}

#[test]
fn workloads_get_nothing_but_what_was_given() {
    let (mut daemon, mut client) = Daemon::started("auto");
    let id = daemon.id();
    let mut spawn = script(
        &id,
        1,
        "env; ls -l /proc/self/fd | grep -v ' 3 -> ' ; grep -E 'Sig(Blk|Ign)|NoNewPrivs|Groups|^Uid' /proc/self/status; \
         umask; ulimit -Sn; nice; cat /proc/self/oom_score_adj; pwd; ps -o sid= -p $$; echo $$",
    );
    spawn.umask = Some(0o27);
    // Whoever runs the tests may be nice already, and only root may be less so.
    spawn.nice = Some(19);
    spawn.oom_score_adj = Some(500);
    spawn.no_new_privileges = true;
    spawn.working_dir = "/usr".to_owned();
    spawn.rlimits = vec![ostler_keeper::wire::Rlimit { resource: 7 /* RLIMIT_NOFILE */, soft: 777, hard: 888 }];
    let is_root = rustix::process::geteuid().is_root();
    if is_root {
        spawn.uid = Some(65534);
        spawn.gid = Some(65534);
    }
    client.tell(spawn);
    client.wait_phase(&id, 1, Phase::Empty);
    let log = String::from_utf8(daemon.log(&id)).unwrap();
    let has = |line: &str| assert!(log.lines().any(|l| l.trim() == line), "{line:?} in\n{log}");
    has(&format!("OSTLER_ATTEMPT={id}.1"));
    has("SigBlk:\t0000000000000000");
    has("SigIgn:\t0000000000000000");
    has("NoNewPrivs:\t1");
    has("0027");
    has("777");
    has("19");
    has("500");
    has("/usr");
    if is_root {
        has("Uid:\t65534\t65534\t65534\t65534");
    }
    assert_eq!(log.lines().filter(|line| line.contains(" -> ")).count(), 3, "{log}");
    let last: Vec<&str> = log.lines().rev().take(2).map(str::trim).collect();
    assert_eq!(last[0], last[1], "leader of its own session");
    assert!(!log.contains("HOME="));
}

#[test]
fn an_exec_finds_names_in_the_path_of_the_environment() {
    let (mut daemon, mut client) = Daemon::started("auto");
    let id = daemon.id();
    let mut spawn = script(&id, 1, "exit 9");
    spawn.argv[0] = b"sh".to_vec();
    client.tell(spawn);
    let state = client.wait_phase(&id, 1, Phase::Empty);
    assert_eq!(state.exit.unwrap().code(), Some(9));
}

#[test]
fn forgetting_removes_group_and_logs() {
    let (mut daemon, mut client) = Daemon::started("auto");
    let id = daemon.id();
    client.tell(script(&id, 1, "echo hello"));
    let state = client.wait_phase(&id, 1, Phase::Empty);
    let logs = daemon.state_dir().join("logs/test").join(&id);
    assert!(logs.join("00000001.log").exists());
    client.forget(&id, 1, true);
    client.sync();
    wait_until("the group to go", || state.cgroup.is_empty() || !fs::exists(&state.cgroup).unwrap());
    assert!(!logs.exists());
    wait_until("the trash to go", || fs::read_dir(daemon.state_dir().join("trash")).unwrap().count() == 0);
}

#[test]
fn a_running_attempt_cannot_be_forgotten() {
    let (mut daemon, mut client) = Daemon::started("auto");
    let id = daemon.id();
    client.tell(script(&id, 1, "exec sleep 1000"));
    client.wait_phase(&id, 1, Phase::Running);
    client.forget(&id, 1, true);
    client.known.clear();
    client.sync();
    client.wait_phase(&id, 1, Phase::Running);
    assert!(is_alive(client.pid(&id, 1)));
}

#[test]
fn a_thousand_spawns_fit_in_one_request() {
    let (mut daemon, mut client) = Daemon::started("auto");
    let ids: Vec<String> = (0..1000).map(|_| daemon.id()).collect();
    client.tell_all(
        ids.iter()
            .map(|id| {
                let mut spawn = script(id, 1, "");
                spawn.argv = vec![b"/bin/true".to_vec(), vec![b'x'; 200]];
                spawn.into()
            })
            .collect(),
    );
    for id in &ids {
        client.wait_phase(id, 1, Phase::Empty);
        client.forget(id, 1, true);
    }
    client.sync();
    client.known.clear();
    client.sync();
    assert!(client.known.is_empty());
    daemon.shutdown(&mut client);
    assert_eq!(daemon.wait_keeper().code(), Some(0));
}
