//! What workloads write is what is read back, whatever happens to files, disks and limits.

mod harness;

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::process::Command as Program;

use harness::{Daemon, read_log, script, wait_until};
use ostler_keeper::logs::{Attempts, Filter, Reader, Stream, segments};
use ostler_keeper::wire::{LogPolicy, LogSettings, Phase};

/// A script that writes `bytes` bytes of a file with every byte value to stdout.
fn random_file(daemon: &Daemon, bytes: usize) -> (std::path::PathBuf, Vec<u8>) {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let content: Vec<u8> = (0..bytes)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect();
    let path = daemon.dir.path().join("content");
    fs::write(&path, &content).unwrap();
    (path, content)
}

#[test]
fn bytes_come_back_as_they_were_across_rotations() {
    let (mut daemon, mut client) = Daemon::started("auto");
    let (path, content) = random_file(&daemon, 3 << 20);
    for (max_size, more_than) in [(0, 0), (64 << 10, 20), (1000, 20)] {
        let id = daemon.id();
        let mut spawn = script(&id, 1, &format!("cat {}", path.display()));
        spawn.log = Some(LogSettings { max_size, ..LogSettings::default() });
        client.tell(spawn);
        let directory = daemon.state_dir().join("logs/test").join(&id);
        // One reader follows while it is written, another reads afterwards.
        let mut follower = Reader::open(&directory, Filter::default()).unwrap();
        let mut collected = Vec::new();
        wait_until("the follower", || {
            client.listen();
            for chunk in follower.poll().unwrap() {
                assert_eq!(chunk.stream, Stream::Stdout);
                assert_eq!(chunk.attempt, 1);
                collected.extend(chunk.data);
            }
            collected.len() >= content.len()
        });
        let state = client.wait_phase(&id, 1, Phase::Empty);
        assert!(collected == content);
        assert!(daemon.log(&id) == content);
        assert_eq!(state.log.unwrap().written, content.len() as u64);
        let files = segments(&directory).unwrap();
        assert!(files.len() > more_than, "{}", files.len());
        if max_size > 0 {
            assert!(files.iter().all(|file| file.size < max_size + (64 << 10)));
        }
    }
}

#[test]
fn streams_and_attempts_are_told_apart() {
    let (mut daemon, mut client) = Daemon::started("auto");
    let id = daemon.id();
    for attempt in 1..=3 {
        // The order of two streams is that in which they are read, so each waits until the other one has been.
        let go = |step: u32| daemon.dir.path().join(format!("go-{attempt}-{step}"));
        let wait = |step: u32| format!("while ! test -e {}; do sleep 0.01; done", go(step).display());
        let text = format!("echo out {attempt}; {}; echo err {attempt} >&2; {}; printf end{attempt}", wait(1), wait(2));
        client.tell(script(&id, attempt, &text));
        for (step, line) in [(1, format!("out {attempt}\n")), (2, format!("err {attempt}\n"))] {
            wait_until(&line, || daemon.log(&id).ends_with(line.as_bytes()));
            fs::write(go(step), "").unwrap();
        }
        client.wait_phase(&id, attempt, Phase::Empty);
        client.forget(&id, attempt, false);
    }
    let directory = daemon.state_dir().join("logs/test").join(&id);
    let read = |attempts, stream| {
        let filter = Filter { attempts, stream, ..Filter::default() };
        String::from_utf8(read_log(&directory, filter)).unwrap()
    };
    let of = |n: u64| format!("out {n}\nerr {n}\nend{n}");
    assert_eq!(read(Attempts::All, None), [of(1), of(2), of(3)].concat());
    assert_eq!(read(Attempts::Current, None), of(3));
    assert_eq!(read(Attempts::Previous, None), of(2));
    assert_eq!(read(Attempts::Only(1), None), of(1));
    assert_eq!(read(Attempts::Only(2), Some(Stream::Stderr)), "err 2\n");
    assert_eq!(read(Attempts::Only(9), None), "");
    assert_eq!(read(Attempts::Current, Some(Stream::Stdout)), "out 3\nend3");
    let tail = |lines, stream| {
        let filter = Filter { tail: Some(lines), stream, ..Filter::default() };
        String::from_utf8(read_log(&directory, filter)).unwrap()
    };
    assert_eq!(tail(0, None), "");
    assert_eq!(tail(1, None), "end3");
    assert_eq!(tail(2, None), "err 3\nend3");
    assert_eq!(tail(2, Some(Stream::Stderr)), "err 2\nerr 3\n");
    assert_eq!(tail(100, None), read(Attempts::All, None));

    // A quarter of a second later, another attempt: `since` begins with it.
    let pause = format!("while ! test -e {0}; do sleep 0.01; done; echo late", daemon.dir.path().join("go").display());
    client.tell(script(&id, 4, &pause));
    client.wait_phase(&id, 4, Phase::Running);
    let file = fs::metadata(directory.join("00000001.log")).unwrap();
    wait_until("time to pass", || file.modified().unwrap().elapsed().unwrap().as_millis() > 250);
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as i64;
    fs::write(daemon.dir.path().join("go"), "").unwrap();
    client.wait_phase(&id, 4, Phase::Empty);
    let filter = Filter { since: Some(since), ..Filter::default() };
    assert_eq!(read_log(&directory, filter), b"late\n");
}

#[test]
fn a_damaged_index_costs_the_labels_and_no_byte() {
    let (mut daemon, mut client) = Daemon::started("auto");
    let id = daemon.id();
    client.tell(script(&id, 1, "for i in 1 2 3 4 5 6 7 8; do echo $i; echo e$i >&2; done"));
    client.wait_phase(&id, 1, Phase::Empty);
    let directory = daemon.state_dir().join("logs/test").join(&id);
    let whole = daemon.log(&id);
    let index = directory.join("00000001.idx");
    let good = fs::read(&index).unwrap();
    for position in (0..good.len()).step_by(3) {
        let mut damaged = good.clone();
        damaged[position] ^= 0xff;
        fs::write(&index, damaged).unwrap();
        assert_eq!(daemon.log(&id), whole, "byte {position}");
    }
    for length in 0..good.len() {
        fs::write(&index, &good[..length]).unwrap();
        assert_eq!(daemon.log(&id), whole, "{length} bytes");
        for tail in [1, 3, 100] {
            let filter = Filter { tail: Some(tail), ..Filter::default() };
            let text = String::from_utf8(read_log(&directory, filter)).unwrap();
            assert_eq!(text.lines().count() as u64, tail.min(16));
        }
    }
    fs::remove_file(&index).unwrap();
    assert_eq!(daemon.log(&id), whole);
    let mut reader = Reader::open(&directory, Filter::default()).unwrap();
    let chunks = reader.poll().unwrap();
    assert!(chunks.iter().all(|chunk| chunk.stream == Stream::Stdout && chunk.at_nanos > 0));
    // The writer goes on in a file of its own.
    client.tell(script(&id, 2, "echo more"));
    client.wait_phase(&id, 2, Phase::Empty);
    assert_eq!(daemon.log(&id), [&whole[..], b"more\n"].concat());
}

#[test]
fn a_deleted_log_is_begun_anew() {
    let (mut daemon, mut client) = Daemon::started("auto");
    let id = daemon.id();
    client.tell(script(
        &id,
        1,
        "while read line; do :; done < /dev/null; i=0; while :; do echo $i; i=$((i+1)); sleep 0.01; done",
    ));
    let directory = daemon.state_dir().join("logs/test").join(&id);
    for _ in 0..3 {
        wait_until("output", || !daemon.log(&id).is_empty());
        // It may come back while it goes.
        wait_until("the directory to go", || fs::remove_dir_all(&directory).is_ok());
    }
    wait_until("output again", || !daemon.log(&id).is_empty());
    client.kill(&id, 1);
    client.wait_phase(&id, 1, Phase::Empty);
}

#[test]
fn old_files_are_removed_and_a_new_policy_counts_at_once() {
    let (mut daemon, mut client) = Daemon::started("auto");
    let id = daemon.id();
    let mut spawn = script(&id, 1, "while :; do echo 0123456789; done");
    spawn.log = Some(LogSettings { max_size: 20_000, max_files: 3, ..LogSettings::default() });
    client.tell(spawn);
    let directory = daemon.state_dir().join("logs/test").join(&id);
    let newest = || segments(&directory).unwrap().last().map_or(0, |file| file.sequence);
    wait_until("rotations", || newest() > 10);
    client.tell(LogPolicy {
        id: id.clone(),
        log: Some(LogSettings { max_size: 5000, max_files: 2, ..LogSettings::default() }),
    });
    client.sync();
    let then = newest();
    wait_until("more rotations", || newest() > then + 5);
    client.kill(&id, 1);
    client.wait_phase(&id, 1, Phase::Empty);
    let files = segments(&directory).unwrap();
    assert_eq!(files.len(), 2);
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 4, "an index each");
}

/// Mounts a small file system at `path`; false, and a word on stderr, when that is not permitted.
fn mount_small(test: &str, path: &std::path::Path, size: &str) -> bool {
    fs::create_dir_all(path).unwrap();
    let mounted = Program::new("mount")
        .args(["-t", "tmpfs", "-o", size, "tmpfs"])
        .arg(path)
        .status()
        .is_ok_and(|status| status.success());
    if !mounted {
        harness::skipped(test, "tmpfs cannot be mounted here");
    }
    mounted
}

struct Unmount(std::path::PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = Program::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_blocks_the_writer_and_loses_nothing() {
    let mut daemon = Daemon::new("auto");
    let logs = daemon.state_dir().join("logs");
    if !mount_small("a_full_disk_blocks_the_writer_and_loses_nothing", &logs, "size=512k") {
        return;
    }
    let _unmount = Unmount(logs.clone());
    let ballast = logs.join("ballast");
    fs::write(&ballast, vec![0; 300 << 10]).unwrap();
    let mut client = daemon.start();
    let (path, content) = random_file(&daemon, 400 << 10);
    let (blocked, dropped, ended) = (daemon.id(), daemon.id(), daemon.id());
    client.tell(script(&blocked, 1, &format!("cat {}", path.display())));
    client.wait("the disk to be full", |client| {
        let log = client.known.get(&(blocked.clone(), 1))?.state.log?;
        (log.blocked_errno == libc::ENOSPC).then_some(())
    });
    assert_eq!(client.known[&(blocked.clone(), 1)].state.phase(), Phase::Running);

    let mut spawn = script(&dropped, 1, &format!("cat {}", path.display()));
    spawn.log = Some(LogSettings { drop_when_blocked: true, ..LogSettings::default() });
    client.tell(spawn);
    let state = client.wait_phase(&dropped, 1, Phase::Empty);
    let log = state.log.unwrap();
    assert_eq!(log.written + log.dropped, content.len() as u64);
    assert!(log.dropped > 0);

    // An end does not wait for the disk, and the bytes wait in the pipe.
    client.tell(script(&ended, 1, "echo last words; exit 3"));
    let state = client.wait_phase(&ended, 1, Phase::Empty);
    assert_eq!(state.exit.unwrap().code(), Some(3));
    assert_eq!(daemon.log(&ended), b"");
    client.tell(script(&ended, 2, "echo and more; exit 4"));
    client.wait_phase(&ended, 2, Phase::Empty);
    client.forget(&ended, 1, false);

    fs::remove_file(ballast).unwrap();
    client.wait_phase(&blocked, 1, Phase::Empty);
    assert!(daemon.log(&blocked) == content);
    wait_until("the last words", || daemon.log(&ended) == b"last words\nand more\n");
    client.sync();
    let log = client.known[&(blocked, 1)].state.log.unwrap();
    assert_eq!((log.blocked_errno, log.written), (0, content.len() as u64));
}

#[test]
fn a_full_disk_refuses_a_start_and_forgets_no_end() {
    let mut daemon = Daemon::new("auto");
    let state_dir = daemon.state_dir();
    if !mount_small("a_full_disk_refuses_a_start_and_forgets_no_end", &state_dir, "size=64k") {
        return;
    }
    let _unmount = Unmount(state_dir.clone());
    let mut client = daemon.start();
    // So many that their ends take more room than one start: where that did not fit, these do not either.
    let running: Vec<String> = (0..40).map(|_| daemon.id()).collect();
    let refused = daemon.id();
    for id in &running {
        client.tell(script(id, 1, "exec sleep 1000"));
    }
    for id in &running {
        client.wait_phase(id, 1, Phase::Running);
    }
    let ballast = fs::File::create(state_dir.join("ballast")).unwrap();
    let mut size = 0;
    while ballast.write_at(&[0; 4096], size).is_ok() {
        size += 4096;
    }
    // Fill what is left of the journal's last page too.
    let mut attempts = 0;
    loop {
        attempts += 1;
        client.tell(script(&refused, attempts, "true"));
        let failed = client.wait("an outcome", |client| {
            let state = &client.known.get(&(refused.clone(), attempts))?.state;
            match state.phase() {
                Phase::FailedToStart => Some(true),
                Phase::Empty => Some(false),
                _ => None,
            }
        });
        if failed {
            break;
        }
    }
    let error = client.known[&(refused.clone(), attempts)].state.error.clone().unwrap();
    assert_eq!(error.stage(), ostler_keeper::wire::spawn_error::Stage::Journal);
    assert_eq!(error.errno, libc::ENOSPC);
    assert!(harness::marked(&refused).is_empty());
    for id in &running {
        client.kill(id, 1);
    }
    for id in &running {
        client.wait_phase(id, 1, Phase::Empty);
    }
    // The ends are written as soon as there is room, and a later daemon knows them.
    let journal = daemon.journal();
    let before = fs::metadata(&journal).unwrap().len();
    drop(ballast);
    fs::remove_file(state_dir.join("ballast")).unwrap();
    wait_until("the journal to catch up", || fs::metadata(&journal).unwrap().len() > before);
    daemon.kill_keeper();
    daemon.kill_controller(client);
    harness::wait_gone(daemon.relay_pid);
    let mut client = daemon.start();
    for id in &running {
        let state = client.wait_phase(id, 1, Phase::Empty);
        assert_eq!(state.exit.unwrap().signal(), Some(9));
    }
}

#[test]
fn a_noisy_workload_does_not_starve_the_others() {
    let (mut daemon, mut client) = Daemon::started("auto");
    let noisy = daemon.id();
    let mut spawn = script(&noisy, 1, "exec cat /dev/zero");
    spawn.log = Some(LogSettings { max_size: 1 << 20, max_files: 2, ..LogSettings::default() });
    client.tell(spawn);
    client.wait_phase(&noisy, 1, Phase::Running);
    for _ in 0..20 {
        let id = daemon.id();
        client.tell(script(&id, 1, "echo quiet"));
        client.wait_phase(&id, 1, Phase::Empty);
        assert_eq!(daemon.log(&id), b"quiet\n");
    }
    client.kill(&noisy, 1);
    client.wait_phase(&noisy, 1, Phase::Empty);
}
