//! A keeper as a real process, with the test as its controller.
#![allow(dead_code, reason = "each test program uses its part")]

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Program, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ostler_keeper::logs::{Filter, Reader};
use ostler_keeper::wire::{
    Channel, Command, Forget, Handoff, HandoffDone, Hello, Kill, LogSettings, PROTOCOL, Phase, Report, Reports,
    Request, Shutdown, Signal, Spawn, State, command, report, spawn_keeper,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal as Sig, kill_process};

/// Far more than anything here takes; a test that gets here has failed.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn custody() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let path = own.parent().unwrap().parent().unwrap().join("examples/custody");
    assert!(path.exists(), "build the examples first: cargo test does");
    path
}

pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited too long: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(crate) fn kill_9(pid: i32) {
    let _ = kill_process(Pid::from_raw(pid).unwrap(), Sig::KILL);
}

/// Whether a process runs (a zombie does not).
pub(crate) fn is_alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|line| Some(line.rsplit_once(") ")?.1.as_bytes()[0]))
        .is_some_and(|state| state != b'Z' && state != b'X')
}

pub(crate) fn wait_gone(pid: i32) {
    wait_until("a process to end", || !is_alive(pid));
}

/// The ways to hold trees together that this test can check here: those that this machine has, and for which this user
/// has the right. What is left out is said.
pub(crate) fn modes(test: &str) -> Vec<&'static str> {
    static FOUND: OnceLock<Vec<(&str, bool)>> = OnceLock::new();
    let found = FOUND.get_or_init(|| ["v2", "v1", "none"].map(|mode| (mode, Daemon::new(mode).can_start())).into());
    for (mode, _) in found.iter().filter(|(_, there)| !there) {
        skipped(test, &format!("there are no cgroups {mode} that this user can write"));
    }
    found.iter().filter(|(_, there)| *there).map(|(mode, _)| *mode).collect()
}

/// Says on the terminal, past the capture of the test harness, why a test checks nothing, or less, on this machine.
pub(crate) fn skipped(test: &str, why: &str) {
    // Straight to the descriptor: what `eprintln!` writes is only shown when a test fails.
    let _ = io::stderr().write_all(format!("SKIPPED {test}: {why}\n").as_bytes());
}

/// Makes a file that can be executed at once: another program writes it, because what this one has open for writing,
/// every child that it has just forked for another test has open, too.
pub(crate) fn make_program(path: &Path, text: &str, mode: u32) {
    let mode = format!("--mode={mode:o}");
    let mut install =
        Program::new("install").args([&mode, "/dev/stdin"]).arg(path).stdin(Stdio::piped()).spawn().unwrap();
    install.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(install.wait().unwrap().success(), "{}", path.display());
}

/// Ids that no other test, nor an earlier run, uses.
pub(crate) fn unique_id() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
    format!("t{}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed), nanos % 1_000_000)
}

/// What the controller knows of an attempt.
#[derive(Debug, Default)]
pub(crate) struct Known {
    pub(crate) state: State,
    pub(crate) pidfd: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
}

/// The controller's side.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) channel: Channel,
    pub(crate) known: HashMap<(String, u64), Known>,
    pub(crate) hellos: Vec<Hello>,
    pub(crate) snapshots: usize,
    pub(crate) others: Vec<report::Kind>,
    pub(crate) closed: bool,
}

impl Client {
    pub(crate) fn new(channel: Channel) -> Self {
        let client = Self {
            channel,
            known: HashMap::new(),
            hellos: Vec::new(),
            snapshots: 0,
            others: Vec::new(),
            closed: false,
        };
        client.tell(Hello {
            protocol: PROTOCOL,
            oldest_protocol: PROTOCOL,
            version: "test".to_owned(),
            ..Hello::default()
        });
        client
    }

    pub(crate) fn tell(&self, command: impl Into<Command>) {
        self.tell_all(vec![command.into()]);
    }

    pub(crate) fn tell_all(&self, commands: Vec<Command>) {
        let request = Request { commands };
        wait_until("room in the socket", || {
            match self.channel.send(&request, &[]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
                // A keeper that was told to die may be dead already.
                Ok(()) | Err(_) => true,
            }
        });
    }

    /// Takes what has come; waits a little for the first.
    pub(crate) fn listen(&mut self) {
        let mut polled = [PollFd::new(&self.channel, PollFlags::IN)];
        let moment = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        let _ = poll(&mut polled, Some(&moment));
        loop {
            match self.channel.recv::<Reports>() {
                Ok(Some((reports, fds))) => self.take(reports.reports, fds),
                Ok(None) => {
                    self.closed = true;
                    return;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn take(&mut self, reports: Vec<Report>, fds: Vec<OwnedFd>) {
        let mut fds = fds.into_iter();
        for report in reports {
            match report.kind.unwrap() {
                report::Kind::Hello(hello) => self.hellos.push(hello),
                report::Kind::SnapshotDone(_) => self.snapshots += 1,
                report::Kind::State(state) => {
                    let key = (state.id.clone(), state.attempt);
                    let known = self.known.entry(key).or_default();
                    if state.has_pidfd {
                        known.pidfd = fds.next();
                    }
                    if state.has_stdout {
                        known.stdout = fds.next();
                    }
                    if state.has_stderr {
                        known.stderr = fds.next();
                    }
                    known.state = state;
                }
                other => self.others.push(other),
            }
        }
        assert!(fds.next().is_none(), "descriptors nobody named");
    }

    pub(crate) fn wait<T>(&mut self, what: &str, mut condition: impl FnMut(&Self) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = condition(self) {
                return found;
            }
            assert!(
                Instant::now() < deadline,
                "waited too long: {what}; {:#?}",
                self.known.values().map(|k| &k.state).collect::<Vec<_>>()
            );
            assert!(!self.closed, "the keeper is gone: {what}");
            self.listen();
        }
    }

    pub(crate) fn wait_phase(&mut self, id: &str, attempt: u64, phase: Phase) -> State {
        self.wait(&format!("{id} to be {phase:?}"), |client| {
            let known = client.known.get(&(id.to_owned(), attempt))?;
            (known.state.phase() == phase).then(|| known.state.clone())
        })
    }

    pub(crate) fn wait_closed(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.closed {
            assert!(Instant::now() < deadline, "the keeper does not end");
            self.listen();
        }
    }

    pub(crate) fn wait_snapshot(&mut self) -> Hello {
        self.wait("the snapshot", |client| (client.snapshots > 0).then_some(()));
        self.hellos.last().unwrap().clone()
    }

    /// Everything said so far has been carried out when this returns.
    pub(crate) fn sync(&mut self) {
        let before = self.snapshots;
        self.tell(Hello { protocol: PROTOCOL, oldest_protocol: PROTOCOL, ..Hello::default() });
        self.wait("an answer", |client| (client.snapshots > before).then_some(()));
    }

    pub(crate) fn refusals(&self) -> Vec<String> {
        self.others
            .iter()
            .filter_map(|other| match other {
                report::Kind::Refused(refused) => Some(refused.why.clone()),
                _ => None,
            })
            .collect()
    }

    pub(crate) fn kill(&self, id: &str, attempt: u64) {
        self.tell(Kill { id: id.to_owned(), attempt });
    }

    pub(crate) fn signal(&self, id: &str, attempt: u64, signal: i32, tree: bool) {
        self.tell(Signal { id: id.to_owned(), attempt, signal, tree });
    }

    pub(crate) fn forget(&self, id: &str, attempt: u64, remove_logs: bool) {
        self.tell(Forget { id: id.to_owned(), attempt, remove_logs });
    }

    pub(crate) fn pid(&self, id: &str, attempt: u64) -> i32 {
        let known = &self.known[&(id.to_owned(), attempt)];
        known.state.identity.as_ref().unwrap().pid
    }
}

/// A spawn of a shell script.
pub(crate) fn script(id: &str, attempt: u64, text: &str) -> Spawn {
    Spawn {
        id: id.to_owned(),
        attempt,
        name: format!("test/{id}"),
        argv: vec![b"/bin/sh".to_vec(), b"-c".to_vec(), text.into()],
        env: vec![b"PATH=/usr/local/bin:/usr/bin:/bin".to_vec()],
        working_dir: "/".to_owned(),
        log_dir: format!("logs/test/{id}"),
        log: Some(LogSettings::default()),
        ..Spawn::default()
    }
}

/// A keeper with its state directory; everything it started is killed in the end.
#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) mode: &'static str,
    pub(crate) process: Option<Child>,
    pub(crate) failpoint: Option<String>,
    pub(crate) env: Vec<(&'static str, &'static str)>,
    listener: UnixListener,
    relay: Option<UnixStream>,
    pub(crate) relay_pid: i32,
    ids: Vec<String>,
    replacements: Vec<i32>,
    group: Option<PathBuf>,
}

impl Daemon {
    pub(crate) fn new(mode: &'static str) -> Self {
        // Short: the path of a unix socket has 108 bytes.
        let usual = std::env::temp_dir();
        let below = if usual.as_os_str().len() <= 60 { usual } else { PathBuf::from("/tmp") };
        let dir = tempfile::tempdir_in(below).unwrap();
        let listener = UnixListener::bind(dir.path().join("relay")).unwrap();
        listener.set_nonblocking(true).unwrap();
        Self {
            dir,
            mode,
            process: None,
            failpoint: None,
            env: Vec::new(),
            listener,
            relay: None,
            relay_pid: 0,
            ids: Vec::new(),
            replacements: Vec::new(),
            group: None,
        }
    }

    /// A running keeper and the connection to it, the snapshot received.
    pub(crate) fn started(mode: &'static str) -> (Self, Client) {
        let mut daemon = Self::new(mode);
        let client = daemon.start();
        (daemon, client)
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub(crate) fn id(&mut self) -> String {
        let id = unique_id();
        self.ids.push(id.clone());
        id
    }

    pub(crate) fn arguments(&self, command: &str) -> Vec<std::ffi::OsString> {
        vec![command.into(), self.state_dir().into(), self.mode.into(), self.dir.path().join("relay").into()]
    }

    fn program(&self) -> Program {
        let mut program = Program::new(custody());
        program.args(self.arguments("serve")).stdin(Stdio::null());
        program
    }

    /// Whether a keeper starts in this mode, rather than ending with an error.
    fn can_start(mut self) -> bool {
        self.process = Some(self.program().stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let mut accepted = None;
        wait_until("the keeper to start or to end", || {
            let ended = self.process.as_mut().unwrap().try_wait().unwrap().is_some();
            accepted = self.listener.accept().ok();
            accepted.is_some() || ended
        });
        let Some((stream, _)) = accepted else { return false };
        let mut client = self.greet(stream);
        self.meet(&mut client);
        self.shutdown(&mut client);
        self.wait_keeper();
        true
    }

    pub(crate) fn start(&mut self) -> Client {
        let mut program = self.program();
        if let Some(failpoint) = &self.failpoint {
            program.env("OSTLER_FAILPOINT", failpoint);
        }
        program.envs(self.env.iter().copied());
        self.process = Some(program.spawn().unwrap());
        let mut client = self.accept();
        self.meet(&mut client);
        client
    }

    /// Receives the snapshot, and learns where the groups are that have to go in the end.
    fn meet(&mut self, client: &mut Client) {
        let hello = client.wait_snapshot();
        if hello.cgroup_mode != "none" {
            self.group = Some(hello.cgroup_detail.into());
        }
    }

    /// The connection that the next controller the keeper starts passes on.
    pub(crate) fn accept(&mut self) -> Client {
        let mut accepted = None;
        wait_until("the controller to be started", || {
            accepted = self.listener.accept().ok();
            let ended = self.process.as_mut().and_then(|process| process.try_wait().unwrap());
            assert!(accepted.is_some() || ended.is_none(), "the keeper ended: {ended:?}");
            accepted.is_some()
        });
        let (stream, _) = accepted.unwrap();
        self.greet(stream)
    }

    fn greet(&mut self, stream: UnixStream) -> Client {
        let channel = Channel::new(stream.as_fd().try_clone_to_owned().unwrap());
        let mut received = None;
        wait_until("the connection", || {
            received = channel.recv::<Request>().ok().flatten();
            received.is_some()
        });
        let (request, mut fds) = received.unwrap();
        if let Some(command::Kind::Shutdown(shutdown)) = &request.commands[0].kind {
            self.relay_pid = shutdown.exit_code;
        }
        self.relay = Some(stream);
        Client::new(Channel::new(fds.remove(0)))
    }

    /// As a controller that ends, and takes the keeper with it.
    pub(crate) fn shutdown(&mut self, client: &mut Client) {
        client.tell(Shutdown { exit_code: 0 });
        self.relay = None;
        client.wait_closed();
    }

    /// kill -9 of the controller.
    pub(crate) fn kill_controller(&mut self, client: Client) {
        kill_9(self.relay_pid);
        self.relay = None;
        drop(client);
    }

    /// kill -9 of the keeper, collected.
    pub(crate) fn kill_keeper(&mut self) {
        let mut process = self.process.take().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Waits for a keeper that dies by itself.
    pub(crate) fn wait_keeper(&mut self) -> std::process::ExitStatus {
        let mut process = self.process.take().unwrap();
        let mut status = None;
        wait_until("the keeper to end", || {
            status = process.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// As a controller whose keeper died: starts another one, and hands over the descriptors of `old`.
    pub(crate) fn replace_keeper(&mut self, old: &Client) -> (Client, u32) {
        // The true controller's copy of the lock is with the relay, which is gone with its keeper's purpose.
        self.relay = None;
        if self.relay_pid != 0 {
            wait_gone(self.relay_pid);
        }
        let lock = ostler_keeper::lock(&self.state_dir()).unwrap();
        let (channel, pid) = spawn_keeper(&custody(), &self.arguments("keeper"), lock.as_fd()).unwrap();
        self.replacements.push(i32::try_from(pid).unwrap());
        let mut client = Client::new(channel);
        let hello = client.wait("Hello", |client| client.hellos.last().cloned());
        assert!(hello.wants_handoff);
        for ((id, attempt), known) in &old.known {
            let fds: Vec<_> =
                [&known.pidfd, &known.stdout, &known.stderr].into_iter().flatten().map(AsFd::as_fd).collect();
            let handoff = Handoff {
                id: id.clone(),
                attempt: *attempt,
                has_pidfd: known.pidfd.is_some(),
                has_stdout: known.stdout.is_some(),
                has_stderr: known.stderr.is_some(),
            };
            let request = Request { commands: vec![handoff.into()] };
            client.channel.send(&request, &fds).unwrap();
        }
        client.tell(HandoffDone {});
        client.wait_snapshot();
        (client, pid)
    }

    pub(crate) fn log(&self, id: &str) -> Vec<u8> {
        read_log(&self.state_dir().join("logs/test").join(id), Filter::default())
    }

    pub(crate) fn journal(&self) -> PathBuf {
        self.state_dir().join("keeper-0.journal")
    }
}

pub(crate) fn read_log(directory: &Path, filter: Filter) -> Vec<u8> {
    let mut reader = Reader::open(directory, filter).unwrap();
    let mut all = Vec::new();
    loop {
        let chunks = reader.poll().unwrap();
        if chunks.is_empty() {
            return all;
        }
        for chunk in chunks {
            all.extend(chunk.data);
        }
    }
}

/// The processes that carry the marker of this instance.
pub(crate) fn marked(id: &str) -> Vec<i32> {
    marked_any(&[id.to_owned()])
}

/// The processes that carry the marker of any of these instances.
fn marked_any(ids: &[String]) -> Vec<i32> {
    let is_marker = |entry: &[u8]| {
        let attempt = entry.strip_prefix(b"OSTLER_ATTEMPT=");
        attempt.is_some_and(|it| {
            ids.iter().any(|id| it.strip_prefix(id.as_bytes()).is_some_and(|it| it.starts_with(b".")))
        })
    };
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            fs::read(format!("/proc/{pid}/environ"))
                .is_ok_and(|environment| environment.split(|byte| *byte == 0).any(is_marker))
        })
        .filter(|pid| is_alive(*pid))
        .collect()
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
        self.relay = None;
        for pid in &self.replacements {
            // Not ours any more once it has ended and its number went to another program.
            let is_keeper = fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == custody());
            if is_keeper {
                kill_9(*pid);
                wait_gone(*pid);
            }
        }
        for _ in 0..100 {
            let pids = marked_any(&self.ids);
            if pids.is_empty() {
                break;
            }
            for pid in pids {
                kill_9(pid);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        // The groups go with what lived in them.
        let Some(root) = &self.group else { return };
        for group in fs::read_dir(root).into_iter().flatten().flatten() {
            for _ in 0..200 {
                // Whatever was just at its exec, and showed no marker.
                let procs = fs::read_to_string(group.path().join("cgroup.procs")).unwrap_or_default();
                procs.lines().filter_map(|pid| pid.parse().ok()).for_each(kill_9);
                let is_file = group.file_type().is_ok_and(|kind| kind.is_file());
                if is_file || fs::remove_dir(group.path()).is_ok() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        let _ = fs::remove_dir(root);
    }
}
