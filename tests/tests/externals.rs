//! Processes that Ostler did not start: found, watched, never touched unless the manifest allows it.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, Stdio};

use ostler_tests::{Daemon, manifest, wait_until};
use serde_json::{Value, json};

/// A process of this test, which listens on a port and says so.
struct Foreign {
    child: Child,
    port: u16,
}

impl Foreign {
    /// `word` tells it from everybody else's.
    fn start(word: &str) -> Self {
        Self::listen(word, 0)
    }

    fn listen(word: &str, port: u16) -> Self {
        let script = "import socket, sys, time\n\
                      s = socket.socket()\n\
                      s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n\
                      s.bind(('127.0.0.1', int(sys.argv[2])))\n\
                      s.listen()\n\
                      print(s.getsockname()[1], flush=True)\n\
                      time.sleep(100000)\n";
        let mut child = Command::new("python3")
            .args(["-c", script, word, &port.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .expect("there is Python");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("it says its port");
        Self { child, port: line.trim().parse().expect("a port") }
    }

    fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    fn end(mut self) {
        self.child.kill().expect("it is our child");
        self.child.wait().expect("it is our child");
    }

    /// How it ended, when somebody else ended it.
    fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.child.try_wait().expect("it is our child")
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn external(name: &str, spec: &Value) -> String {
    json!({"apiVersion": "ostler.dev/v1", "kind": "External", "metadata": {"name": name}, "spec": spec}).to_string()
}

/// A word that no other process has in its command line, of this run or another.
fn word(daemon: &Daemon, name: &str) -> String {
    format!("{name}-{}", daemon.path().file_name().expect("a directory").to_string_lossy())
}

fn phase(daemon: &Daemon, name: &str, phase: &str) -> Value {
    wait_until(format!("external/{name} to be {phase}"), || {
        let object = daemon.get("external", name);
        (object["status"]["phase"] == phase).then(|| object["status"].clone())
    })
}

fn found(daemon: &Daemon, name: &str, pid: i32) -> Value {
    wait_until(format!("external/{name} to be process {pid}"), || {
        let object = daemon.get("external", name);
        (object["status"]["pid"] == pid).then(|| object["status"].clone())
    })
}

#[test]
fn found_by_port_file_and_command_and_missed_at_once() {
    let daemon = Daemon::start();
    let mark = word(&daemon, "one");
    let first = Foreign::start(&mark);
    let port = first.port;
    let file = daemon.path().join("x.pid");
    std::fs::write(&file, format!("{}\n", first.pid())).unwrap();
    // Long enough that only the end of the process itself can say that it ended.
    daemon.apply(&external("by-port", &json!({"discovery": {"port": port}, "interval": "1h"})));
    daemon.apply(&external("by-file", &json!({"discovery": {"pidFile": file}, "interval": "1s"})));
    daemon.apply(&external("by-command", &json!({"discovery": {"command": mark}, "interval": "1s"})));
    for name in ["by-port", "by-file", "by-command"] {
        let status = found(&daemon, name, first.pid());
        assert_eq!(status["phase"], "Found");
        assert_eq!(status["identity"]["pid"], first.pid());
        daemon.ok(&["wait", &format!("external/{name}"), "--for=condition=Ready", "--timeout=60s"]);
    }
    let before = daemon.get("external", "by-command")["status"]["identity"].clone();
    wait_until("its usage", || {
        let top = daemon.ok(&["top", "externals", "--once", "--no-headers"]);
        (top.lines().filter(|line| line.starts_with("by-")).count() == 3).then_some(())
    });
    let page = daemon.ok(&["describe", "external/by-port"]);
    assert!(page.contains(&format!("port {port}")) && page.contains("Memory"), "{page}");
    first.end();
    phase(&daemon, "by-port", "NotFound");
    phase(&daemon, "by-file", "NotFound");
    let status = phase(&daemon, "by-command", "NotFound");
    assert!(status["pid"].is_null() && status["identity"].is_null(), "{status}");
    assert_eq!(daemon.cli(&["wait", "external/by-file", "--for=condition=Ready", "--timeout=100ms"]).code, 4);

    let second = Foreign::start(&mark);
    std::fs::write(&file, format!("{}\n", second.pid())).unwrap();
    let after = found(&daemon, "by-command", second.pid())["identity"].clone();
    assert_ne!(before, after);
    found(&daemon, "by-file", second.pid());
    let told = wait_until("the events", || {
        let list: Value = serde_json::from_str(&daemon.ok(&["events", "--topic", "external", "-o", "json"])).unwrap();
        let items = list["items"].as_array().unwrap().clone();
        let count = |reason: &str| {
            let item =
                items.iter().find(|item| item["reason"] == reason && item["involvedObject"]["name"] == "by-command");
            item.and_then(|item| item["count"].as_u64()).unwrap_or(0)
        };
        (count("Found") == 2 && count("Lost") == 1).then_some(items)
    });
    assert!(told.iter().all(|item| item["involvedObject"]["kind"] == "External"), "{told:?}");
}

#[test]
fn several_that_match_are_ambiguous_until_one_is_left() {
    let daemon = Daemon::start();
    let mark = word(&daemon, "pair");
    let (one, two) = (Foreign::start(&mark), Foreign::start(&mark));
    daemon.apply(&external("pair", &json!({"discovery": {"command": mark}, "interval": "1s"})));
    let status = phase(&daemon, "pair", "Ambiguous");
    let mut pids = [one.pid(), two.pid()];
    pids.sort_unstable();
    assert_eq!(status["candidates"], json!(pids));
    assert!(status["pid"].is_null());
    let said = daemon.fails(1, &["restart", "external/pair"]);
    assert!(said.contains("did not start"), "{said}");
    one.end();
    let status = found(&daemon, "pair", two.pid());
    assert!(status["candidates"].is_null(), "{status}");
}

#[test]
fn only_a_signal_that_is_allowed_is_sent() {
    let daemon = Daemon::start();
    let mark = word(&daemon, "signalled");
    let mut process = Foreign::start(&mark);
    let spec = json!({"discovery": {"command": mark}, "interval": "1s"});
    daemon.apply(&external("sig", &spec));
    found(&daemon, "sig", process.pid());
    let said = daemon.fails(1, &["signal", "TERM", "external/sig"]);
    assert!(said.contains("SIGTERM is not among spec.allowedSignals"), "{said}");
    daemon.apply(&external("sig", &manifest::with(spec, "allowedSignals", json!(["TERM"]))));
    let said = daemon.fails(1, &["signal", "KILL", "external/sig"]);
    assert!(said.contains("SIGKILL"), "{said}");
    assert!(process.ended().is_none(), "nothing may have reached it");
    let said = daemon.ok(&["signal", "TERM", "external/sig"]);
    assert!(said.contains("sent SIGTERM"), "{said}");
    assert_eq!(wait_until("its end", || process.ended()).signal(), Some(15));
    phase(&daemon, "sig", "NotFound");
    let said = daemon.fails(1, &["signal", "TERM", "external/sig"]);
    assert!(said.contains("NotFound"), "{said}");
}

#[test]
fn what_ostler_runs_is_no_external_and_deleting_one_ends_nothing() {
    let daemon = Daemon::start();
    let mark = word(&daemon, "own");
    let script = format!("sh -c 'sleep 100000; : {mark}' & wait; : {mark}");
    daemon.apply_ready(&manifest::shell("own", &script).to_string());
    let leader = daemon.running("own-0");
    daemon.apply(&external("own", &json!({"discovery": {"command": mark}, "interval": "1s"})));
    let daemons = format!("(serve|keeper|controller) .*{}", daemon.state().display());
    daemon.apply(&external("keeper", &json!({"discovery": {"command": daemons}, "interval": "1s"})));
    for name in ["own", "keeper"] {
        wait_until("it to be looked for", || {
            let status = daemon.get("external", name)["status"].clone();
            (status["observedGeneration"] == 1).then(|| assert_eq!(status["phase"], "NotFound", "{status}"))
        });
    }
    let mut process = Foreign::start(&mark);
    let before = found(&daemon, "own", process.pid());
    daemon.kill_both();
    daemon.serve();
    wait_until("it to be found again", || {
        let status = daemon.get("external", "own")["status"].clone();
        (status["identity"] == before["identity"]).then_some(())
    });
    daemon.ok(&["delete", "external/own", "external/keeper"]);
    assert_eq!(daemon.ok(&["get", "externals", "-o", "name"]), "");
    assert!(process.ended().is_none(), "deleting only stops watching");
    assert!(ostler_tests::proc::lives(leader));
}
