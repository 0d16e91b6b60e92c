//! What was acknowledged survives kill -9, a full disk and, by the order of system calls, power loss.
//!
//! The victims are this very test binary, started again with one test that does nothing unless told by its environment.

mod common;

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{Home, commit, key, put, value};
use ostler_store::{DiskStore, Durability, Error, Health, Options, Store, check};

/// Names the role and carries its arguments.
const ROLE: &str = "OSTLER_STORE_TEST_ROLE";
const DIR: &str = "OSTLER_STORE_TEST_DIR";
const START: &str = "OSTLER_STORE_TEST_START";

const WRITERS: usize = 4;
const KEYS: usize = 8;

fn role(wrapper: &[&str], role: &str, dir: &Path) -> Command {
    let exe = std::env::current_exe().expect("this is a file");
    let mut words = wrapper.iter().map(|word| (*word).into()).collect::<Vec<_>>();
    words.push(exe.into_os_string());
    let mut command = Command::new(&words[0]);
    command
        .args(&words[1..])
        .args(["plays_its_role", "--exact", "--nocapture", "--test-threads=1"])
        .env(ROLE, role)
        .env(DIR, dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    command
}

/// Not a claim of its own: the other processes of the tests below.
#[test]
fn plays_its_role() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let dir = PathBuf::from(std::env::var_os(DIR).expect("the directory is given"));
    match role.as_str() {
        "writer" => writer(&dir),
        "sequence" => sequence(&dir),
        "filler" => filler(&dir),
        other => panic!("unknown role {other}"),
    }
}

/// One write each, so that lines are whole.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("{line}\n").as_bytes()).and_then(|()| out.flush()).expect("the parent listens");
}

fn length(n: usize) -> usize {
    match n % 10 {
        0 => 30_000,
        _ => n % 10 * 300,
    }
}

fn writer(dir: &Path) {
    let start: usize = std::env::var(START).expect("it is given").parse().expect("it is a number");
    say("opening");
    let store = DiskStore::open(&Options::new(dir)).expect("it opens");
    let next = AtomicUsize::new(start);
    std::thread::scope(|scope| {
        for thread in 0..WRITERS {
            let (store, next) = (&store, &next);
            scope.spawn(move || {
                let durabilities = [Durability::Durable, Durability::Crash, Durability::Lazy];
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    // Each writer has keys of its own, so that the last one it heard of is the least to be found.
                    let name = format!("{thread}-{}", n % KEYS);
                    let op = put(&name, [n.to_le_bytes().to_vec(), value(n, length(n))].concat());
                    commit(store, vec![op], durabilities[n % 3]).expect("it commits");
                    say(&format!("ack {name} {n}"));
                }
            });
        }
    });
}

fn kill(mut child: Child) {
    child.kill().expect("it can be killed");
    child.wait().expect("it can be waited for");
}

#[test]
fn every_acknowledged_commit_survives_kill_9() {
    let home = Home::new();
    let mut acknowledged: HashMap<String, usize> = HashMap::new();
    let mut start = 0;
    let mut random = 12345_usize;
    for round in 0..50 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // 0 is in the middle of opening.
        let patience = match (random >> 33) % 5 {
            0 => 0,
            _ => (random >> 40) % 150,
        };
        let mut child = role(&[], "writer", &home.dir()).env(START, start.to_string()).spawn().expect("it starts");
        let mut lines = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut line = String::new();
        let mut opening = false;
        let mut acks = 0;
        while lines.read_line(&mut line).expect("it can be read") > 0 && line.ends_with('\n') {
            // The test harness has begun the line.
            opening |= line.ends_with("opening\n");
            if let ["ack", name, n] = line.split_whitespace().collect::<Vec<_>>()[..] {
                acknowledged.insert(name.to_owned(), n.parse().expect("it is a number"));
                acks += 1;
            }
            line.clear();
            if opening && acks == patience {
                break;
            }
        }
        assert!(opening, "round {round}: the writer did not start");
        child.kill().expect("it can be killed");
        // What it managed to say before it died counts, too.
        while lines.read_line(&mut line).expect("it can be read") > 0 && line.ends_with('\n') {
            if let ["ack", name, n] = line.split_whitespace().collect::<Vec<_>>()[..] {
                acknowledged.insert(name.to_owned(), n.parse().expect("it is a number"));
            }
            line.clear();
        }
        kill(child);

        if round % 3 == 0 && home.dir().join("sled").exists() {
            // Looked at without being repaired: the next writer finds what this one left.
            check(&home.options()).unwrap_or_else(|error| panic!("round {round}: {error}"));
        } else if round % 3 == 1 {
            let store = DiskStore::open(&home.options()).unwrap_or_else(|error| panic!("round {round}: {error}"));
            for (name, n) in &acknowledged {
                let entry = store.get(&key(name)).unwrap_or_else(|| panic!("round {round}: {name} is lost"));
                let (head, tail) = entry.value.split_first_chunk().expect("it has a number");
                let found = usize::from_le_bytes(*head);
                assert!(found >= *n, "round {round}: {name} fell back from {n} to {found}");
                assert_eq!(tail, value(found, length(found)), "round {round}: {name}");
            }
        }
        start = acknowledged.values().max().map_or(0, |n| n + 100);
    }
    assert!(acknowledged.len() >= WRITERS * KEYS / 2, "{}", acknowledged.len());
    let store = home.open();
    assert!(acknowledged.keys().all(|name| store.get(&key(name)).is_some()));
}

/// Says on the terminal, past the capture of the test harness, why a test checks nothing on this machine.
fn skipped(test: &str, why: &str) {
    // Straight to the descriptor: what `eprintln!` writes is only shown when a test fails.
    let _ = std::io::stderr().write_all(format!("SKIPPED {test}: {why}\n").as_bytes());
}

fn sequence(dir: &Path) {
    let store = DiskStore::open(&Options::new(dir)).expect("it opens");
    for n in 0..30 {
        commit(&store, vec![put("a", value(n, length(n)))], Durability::Durable).expect("it commits");
        say(&format!("ack {n}"));
    }
    store.close().expect("it closes");
}

#[test]
fn a_durable_commit_is_acknowledged_after_the_sync_of_the_database() {
    let home = Home::new();
    let trace = home.path().join("trace");
    let to = trace.to_string_lossy().into_owned();
    let wrapper = ["strace", "-f", "-y", "-e", "trace=pwrite64,fdatasync,write", "-o", &to];
    let traced = role(&wrapper, "sequence", &home.dir()).output();
    let worked = traced.as_ref().is_ok_and(|output| output.status.success());
    if !worked {
        assert!(
            !Command::new("strace").args(["-o", "/dev/null", "true"]).status().is_ok_and(|s| s.success()),
            "strace works, but not with the store: {traced:?}"
        );
        skipped("a_durable_commit_is_acknowledged_after_the_sync_of_the_database", "there is no strace that works");
        return;
    }
    let trace = fs::read_to_string(&trace).expect("there is a trace");
    // Completed calls in order; one that was interrupted in the log counts where it returns.
    let mut unfinished: HashMap<&str, &str> = HashMap::new();
    let (mut written, mut synced, mut acks) = (false, false, 0);
    for line in trace.lines() {
        let Some((pid, call)) = line.split_once(' ') else {
            continue;
        };
        let call = call.trim_start();
        if call.ends_with("<unfinished ...>") {
            unfinished.insert(pid, call);
            // An acknowledgement counts where it begins.
            if !call.starts_with("write(1") {
                continue;
            }
        }
        let begun = if call.starts_with("<... ") { unfinished.remove(pid).unwrap_or(call) } else { call };
        let on_database = begun.contains("/sled/db>") || begun.contains("/sled.new/db>");
        if begun.starts_with("pwrite64(") && on_database {
            (written, synced) = (true, false);
        } else if begun.starts_with("fdatasync(") && on_database && call.ends_with("= 0") {
            synced = written;
        } else if call.starts_with("write(1") && call.contains("\"ack ") {
            assert!(synced, "acknowledged before the sync: {line}");
            (written, synced) = (false, false);
            acks += 1;
        }
    }
    assert_eq!(acks, 30);
}

fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::yield_now();
    }
}

/// Takes all the space there is but one MiB.
fn fill_up(ballast: &Path) {
    let mut file = fs::File::create(ballast).expect("it can be created");
    let mut size = 0;
    for chunk in [1 << 20, 1 << 12] {
        while file.write_all(&vec![1; chunk]).is_ok() {
            size += chunk as u64;
        }
    }
    file.set_len(size - (1 << 20)).expect("it can be cut");
}

/// Runs on a small disk of its own and fills it, over and over.
fn filler(dir: &Path) {
    let options = Options::new(dir.join("store"));
    let ballast = dir.join("ballast");
    let store = DiskStore::open(&options).expect("it opens");
    let mut expected: HashMap<String, Vec<u8>> = HashMap::new();
    let mut n = 0;
    for round in 0..4 {
        fill_up(&ballast);
        let failure = loop {
            n += 1;
            assert!(n < 100_000, "the disk never fills");
            let name = n.to_string();
            let content = value(n, if round % 2 == 0 { 20_000 } else { 900 });
            let durability = if n % 2 == 0 { Durability::Durable } else { Durability::Crash };
            match commit(&store, vec![put(&name, content.clone())], durability) {
                Ok(_) => expected.insert(name, content),
                Err(error) => break error,
            };
        };
        assert!(matches!(failure, Error::ReadOnly { .. }), "{failure:?}");
        assert!(matches!(store.health(), Health::ReadOnly { .. }));
        let all_there = || {
            expected.iter().all(|(name, content)| store.get(&key(name)).is_some_and(|entry| entry.value == *content))
        };
        assert!(all_there(), "reads go on, and show what was acknowledged");
        assert_eq!(store.list("").entries.len(), expected.len());
        let revision = store.revision();
        let again = commit(&store, vec![put("0", "x")], Durability::Durable);
        assert!(matches!(again, Err(Error::ReadOnly { .. })), "{again:?}");
        assert_eq!(store.revision(), revision);

        fs::remove_file(&ballast).expect("it can be removed");
        wait_for("the disk to be taken again", || store.health() == Health::Ok);
        assert_eq!(store.revision(), revision);
        let mut watch = store.watch("", revision).expect("the history goes on");
        let name = n.to_string();
        let next = commit(&store, vec![put(&name, "after")], Durability::Durable);
        assert_eq!(next.ok(), Some(revision + 1));
        expected.insert(name, b"after".to_vec());
        assert!(matches!(watch.try_next(), Ok(Some(events)) if events.len() == 1));
    }
    store.close().expect("it closes");
    drop(store);
    let store = DiskStore::open(&options).expect("it opens");
    for (name, content) in expected {
        let found = store.get(&key(&name)).expect("it is there").value;
        assert_eq!(found, content, "{name}");
    }
    say("filled");
}

#[test]
fn a_full_disk_makes_the_store_read_only_until_there_is_room() {
    let home = Home::new();
    // In a mount namespace of its own, which ends with the process, and the disk with it.
    let mount = format!("mount -t tmpfs -o size=48m none {} && exec \"$@\"", home.path().display());
    let wrapper = ["unshare", "--mount", "sh", "-c", &mount, "sh"];
    let possible = Command::new(wrapper[0])
        .args(&wrapper[1..])
        .arg("true")
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !possible {
        skipped("a_full_disk_makes_the_store_read_only_until_there_is_room", "mounting a small disk is not permitted");
        return;
    }
    let output = role(&wrapper, "filler", home.path()).stderr(Stdio::piped()).output().expect("it starts");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("filled"), "{out}\n{err}");
}
