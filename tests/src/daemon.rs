//! A daemon of one test, with a state directory of its own, and everything it ever starts.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::proc::{self, Identity};
use crate::wait::{LIMIT, wait_until};
use crate::witness::{Journal, check_lines};
use crate::{copy_program, ostler_binary};

/// How a daemon is to be started.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    args: Vec<String>,
    env: Vec<(String, String)>,
    user: Option<u32>,
    wrapper: Vec<String>,
}

impl Setup {
    /// Further arguments of `ostler serve`.
    #[must_use]
    pub fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(|arg| (*arg).to_owned()));
        self
    }

    /// A variable of the daemon's environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Runs the daemon and its clients as this user and group; needs root.
    #[must_use]
    pub fn user(mut self, uid: u32) -> Self {
        self.user = Some(uid);
        self
    }

    /// A program and its arguments that start the daemon, such as `unshare --pid --fork`.
    #[must_use]
    pub fn wrapper(mut self, words: &[&str]) -> Self {
        self.wrapper = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// Makes the directory, without a daemon.
    pub fn prepare(self) -> Daemon {
        let root = crate::directory();
        let path = root.path().canonicalize().expect("it was just made");
        let mut binary = ostler_binary().to_owned();
        if let Some(uid) = self.user {
            // The target directory may be one that only its owner can enter.
            let copy = path.join("ostler");
            copy_program(&binary, &copy);
            fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).expect("it is our file");
            copy_program(&crate::witness_binary(), &path.join("witness"));
            chown(&path, Some(uid), Some(uid)).expect("root may give files away");
            binary = copy;
        }
        let state = path.join("state");
        Daemon { setup: self, root: Some(root), path, state, binary, child: Mutex::new(None), cgroup: Mutex::new(None) }
    }

    /// Starts a daemon and waits until it answers.
    pub fn start(self) -> Daemon {
        let daemon = self.prepare();
        daemon.serve();
        daemon
    }
}

/// What a command of the CLI came to.
#[derive(Clone, Debug)]
pub struct Output {
    /// Exit code; -1 when it was killed.
    pub code: i32,
    /// Standard output, as it came.
    pub bytes: Vec<u8>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// An instance as `ostler get instances -o json` shows it.
#[derive(Clone, Debug)]
pub struct Instance(pub Value);

impl Instance {
    /// Its name.
    pub fn name(&self) -> &str {
        self.0["metadata"]["name"].as_str().unwrap_or_default()
    }

    /// Its uid.
    pub fn uid(&self) -> &str {
        self.0["metadata"]["uid"].as_str().unwrap_or_default()
    }

    /// Its phase.
    pub fn phase(&self) -> &str {
        self.0["status"]["phase"].as_str().unwrap_or_default()
    }

    /// Why it is in its phase.
    pub fn reason(&self) -> &str {
        self.0["status"]["reason"].as_str().unwrap_or_default()
    }

    /// The process id of its leader.
    pub fn pid(&self) -> Option<i32> {
        self.0["status"]["pid"].as_i64().map(|pid| pid as i32)
    }

    /// Whether it is ready.
    pub fn ready(&self) -> bool {
        self.0["status"]["ready"].as_bool().unwrap_or_default()
    }

    /// How often it was started again.
    pub fn restarts(&self) -> u64 {
        self.0["status"]["restarts"].as_u64().unwrap_or_default()
    }

    /// The number of its current attempt.
    pub fn attempt(&self) -> u64 {
        self.0["status"]["attempt"].as_u64().unwrap_or_default()
    }

    /// How its last attempt ended.
    pub fn last_exit(&self) -> &Value {
        &self.0["status"]["lastExit"]
    }
}

/// A daemon under test. Everything it started ends with it, also when the test fails.
#[derive(Debug)]
pub struct Daemon {
    setup: Setup,
    root: Option<tempfile::TempDir>,
    path: PathBuf,
    state: PathBuf,
    binary: PathBuf,
    child: Mutex<Option<Child>>,
    cgroup: Mutex<Option<PathBuf>>,
}

impl Daemon {
    /// One with every default.
    pub fn start() -> Self {
        Setup::default().start()
    }

    /// The directory of the test: that of its manifests, and the one its processes run in.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The daemon's state directory.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// The program that is run.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// Goes on with another program, such as one that was copied for an upgrade.
    pub fn use_binary(&mut self, binary: PathBuf) {
        self.binary = binary;
    }

    /// The journal of the witnesses that this daemon runs.
    pub fn journal(&self) -> Journal {
        Journal::new(self.path.join("journal"))
    }

    /// Where the cgroups of the attempts are; nothing when there are none.
    pub fn cgroup(&self) -> Option<PathBuf> {
        self.cgroup.lock().expect("no test thread panicked with it").clone()
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.path);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("OSTLER_") {
                command.env_remove(name);
            }
        }
        if let Some(uid) = self.setup.user {
            command.uid(uid).gid(uid);
        }
        command
    }

    /// Starts the daemon without waiting for anything. Its messages are in the file `serve.log`.
    pub fn spawn(&self, env: &[(&str, &str)]) {
        let mut command = match self.setup.wrapper.split_first() {
            None => self.command(&self.binary),
            Some((program, words)) => {
                let mut command = self.command(Path::new(program));
                command.args(words).arg(&self.binary);
                command
            }
        };
        let log = File::options().append(true).create(true).open(self.path.join("serve.log")).expect("it can be made");
        command
            .args(["serve", "--state-dir"])
            .arg(&self.state)
            .args(&self.setup.args)
            .envs(self.setup.env.iter().map(|(name, value)| (name, value)))
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("there are descriptors"))
            .stderr(log);
        let child = command.spawn().expect("the daemon can be started");
        self.reap();
        *self.child.lock().expect("no test thread panicked with it") = Some(child);
    }

    /// Starts the daemon and waits until it answers.
    pub fn serve(&self) {
        self.spawn(&[]);
        wait_until(format!("the daemon in {} to answer", self.state.display()), || {
            if let Some(code) = self.reap() {
                panic!("serve ended with code {code}: {}", self.log());
            }
            self.info()
        });
    }

    /// Waits until the daemon answers; what it says of itself.
    pub fn answers(&self) -> Value {
        wait_until(format!("the daemon in {} to answer", self.state.display()), || {
            self.reap();
            self.info()
        })
    }

    /// What the daemon says of itself now.
    pub fn info(&self) -> Option<Value> {
        let output = self.cli(&["info", "-o", "json"]);
        if output.code != 0 {
            return None;
        }
        let info: Value = serde_json::from_slice(&output.bytes).expect("info is JSON");
        let cgroups = info["cgroups"].as_str().unwrap_or_default();
        if let Some((mode, path)) = cgroups.split_once(' ')
            && mode != "none"
            && let Some(path) = path.split(' ').next().filter(|path| path.starts_with('/'))
        {
            *self.cgroup.lock().expect("no test thread panicked with it") = Some(PathBuf::from(path));
        }
        Some(info)
    }

    /// What the daemon has written to its terminal.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path.join("serve.log")).unwrap_or_default()
    }

    /// Collects the daemon if it has ended; its exit code, or -1.
    pub fn reap(&self) -> Option<i32> {
        let mut child = self.child.lock().expect("no test thread panicked with it");
        let status = child.as_mut()?.try_wait().expect("it is our child")?;
        Some(status.code().unwrap_or(-1))
    }

    /// Waits for the daemon that was started last to end; its exit code, or -1.
    pub fn ends(&self) -> i32 {
        wait_until("the daemon to end", || self.reap())
    }

    /// The daemon's processes of one role: `serve` or `keeper`, and `controller`.
    fn processes(&self, roles: &[&str]) -> Vec<Identity> {
        let state = self.state.to_string_lossy().into_owned();
        let found: Vec<(i32, Vec<String>)> = proc::all()
            .into_iter()
            .map(|pid| (pid, proc::arguments(pid)))
            .filter(|(_, arguments)| {
                arguments.first().is_some_and(|program| !program.ends_with("unshare"))
                    && arguments.get(1).is_some_and(|role| roles.contains(&role.as_str()))
                    && arguments.contains(&state)
            })
            .collect();
        // Between fork and exec, what one of them starts looks like itself.
        let is_copy = |pid: i32, arguments: &[String]| {
            proc::parent(pid).is_some_and(|parent| found.iter().any(|(it, same)| *it == parent && same == arguments))
        };
        let own = found.iter().filter(|(pid, arguments)| !is_copy(*pid, arguments));
        own.filter_map(|(pid, _)| proc::identity(*pid)).collect()
    }

    /// The keeper; nothing while it is being replaced.
    pub fn keeper(&self) -> Option<Identity> {
        self.processes(&["serve", "keeper"]).into_iter().next()
    }

    /// The controller; nothing while it is being replaced.
    pub fn controller(&self) -> Option<Identity> {
        self.processes(&["controller"]).into_iter().next()
    }

    fn kill(&self, victims: &[Identity]) {
        for victim in victims {
            proc::signal(*victim, libc::SIGKILL);
        }
        for victim in victims {
            wait_until(format!("{victim:?} to be gone"), || {
                self.reap();
                (!proc::lives(*victim)).then_some(())
            });
        }
    }

    /// kill -9 of the controller; returns when it is gone, not when there is another one.
    pub fn kill_controller(&self) -> Identity {
        let victim = wait_until("a controller to kill", || self.controller());
        self.kill(&[victim]);
        victim
    }

    /// kill -9 of the keeper; returns when it is gone, not when there is another one.
    pub fn kill_keeper(&self) -> Identity {
        let victim = wait_until("a keeper to kill", || self.keeper());
        self.kill(&[victim]);
        victim
    }

    /// kill -9 of both, so quickly that neither can replace the other; returns when nothing of the daemon lives.
    pub fn kill_both(&self) {
        wait_until("the daemon to be gone", || {
            let victims = self.processes(&["serve", "keeper", "controller"]);
            // Stopped first, so that none sees the other die.
            for victim in &victims {
                proc::signal(*victim, libc::SIGSTOP);
            }
            self.kill(&victims);
            (victims.is_empty() && self.is_free()).then_some(())
        });
    }

    /// Whether no process of any daemon holds the state directory: also none that is just between fork and exec.
    fn is_free(&self) -> bool {
        File::open(self.state.join("lock")).is_ok_and(|lock| lock.try_lock().is_ok())
    }

    /// Ends the daemon as an init system would, by SIGTERM; its exit code.
    pub fn terminate(&self) -> i32 {
        if let Some(keeper) = self.keeper() {
            proc::signal(keeper, libc::SIGTERM);
        }
        let code = self.ends();
        wait_until("the daemon to be gone", || self.is_free().then_some(()));
        code
    }

    /// Ends the daemon; its workloads go on.
    pub fn shutdown(&self) {
        self.ok(&["shutdown"]);
        wait_until("the daemon to be gone", || {
            self.reap();
            (self.processes(&["serve", "keeper", "controller"]).is_empty() && self.is_free()).then_some(())
        });
    }

    /// A client for this daemon, its directory set and nothing else.
    pub fn client(&self) -> Command {
        let mut command = self.command(&self.binary);
        command.env("OSTLER_STATE_DIR", &self.state);
        command
    }

    /// Runs a command of the CLI.
    pub fn cli(&self, args: &[&str]) -> Output {
        self.feed(args, b"")
    }

    /// Runs a command of the CLI with standard input.
    pub fn feed(&self, args: &[&str], input: &[u8]) -> Output {
        let mut command = self.client();
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the client can be started");
        let mut stdin = child.stdin.take().expect("it is piped");
        let output = std::thread::scope(|scope| {
            scope.spawn(move || {
                // A client that refuses early does not read to the end.
                let _ = stdin.write_all(input);
            });
            child.wait_with_output().expect("it is our child")
        });
        Output {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            bytes: output.stdout,
        }
    }

    /// Runs a command that has to succeed; its output.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.cli(args);
        assert_eq!(output.code, 0, "ostler {}: {}{}", args.join(" "), output.stdout, output.stderr);
        output.stdout
    }

    /// Runs a command that has to fail with this code; its message.
    #[track_caller]
    pub fn fails(&self, code: i32, args: &[&str]) -> String {
        let output = self.cli(args);
        assert_eq!(output.code, code, "ostler {}: {}{}", args.join(" "), output.stdout, output.stderr);
        output.stderr
    }

    /// Applies manifests; whatever comes of it.
    pub fn try_apply(&self, manifests: &str) -> Output {
        self.feed(&["apply", "-f", "-"], manifests.as_bytes())
    }

    /// Applies manifests, successfully; what the CLI says.
    #[track_caller]
    pub fn apply(&self, manifests: &str) -> String {
        let output = self.try_apply(manifests);
        assert_eq!(output.code, 0, "apply: {}{}", output.stdout, output.stderr);
        output.stdout
    }

    /// Applies manifests, and waits until every process is ready.
    #[track_caller]
    pub fn apply_ready(&self, manifests: &str) {
        let output = self.feed(&["apply", "-f", "-", "--wait", "--timeout", "1m"], manifests.as_bytes());
        assert_eq!(output.code, 0, "apply --wait: {}{}", output.stdout, output.stderr);
    }

    /// An object, parsed.
    #[track_caller]
    pub fn get(&self, kind: &str, name: &str) -> Value {
        serde_json::from_str(&self.ok(&["get", kind, name, "-o", "json"])).expect("an object is JSON")
    }

    /// Every instance of every namespace.
    #[track_caller]
    pub fn instances(&self) -> Vec<Instance> {
        let list = self.ok(&["get", "instances", "-A", "-o", "json"]);
        let list: Value = serde_json::from_str(&list).expect("a list is JSON");
        list["items"].as_array().expect("a list has items").iter().cloned().map(Instance).collect()
    }

    /// The instance of this name, in the namespace `default`.
    #[track_caller]
    pub fn instance(&self, name: &str) -> Instance {
        Instance(self.get("instance", name))
    }

    /// Waits until an instance is as wanted. A daemon that is just restarting is waited for.
    #[track_caller]
    pub fn instance_when(&self, name: &str, what: &str, mut wanted: impl FnMut(&Instance) -> bool) -> Instance {
        let began = Instant::now();
        loop {
            let output = self.cli(&["get", "instance", name, "-o", "json"]);
            let last = if output.code == 0 {
                let instance = Instance(serde_json::from_slice(&output.bytes).expect("an object is JSON"));
                if wanted(&instance) {
                    return instance;
                }
                instance.0["status"].to_string()
            } else {
                output.stderr
            };
            assert!(began.elapsed() < LIMIT, "waited in vain for {name} to be {what}: {last}");
        }
    }

    /// Waits until an instance is in a phase.
    #[track_caller]
    pub fn phase(&self, name: &str, phase: &str) -> Instance {
        self.instance_when(name, phase, |instance| instance.phase() == phase)
    }

    /// Waits until an instance runs; with the identity of its process.
    #[track_caller]
    pub fn running(&self, name: &str) -> Identity {
        // The end of a process is known a moment after it.
        let mut process = None;
        self.instance_when(name, "Running, and its process to live", |it| {
            process = it.pid().filter(|_| it.phase() == "Running").and_then(proc::identity);
            process.is_some()
        });
        process.expect("it was waited for")
    }

    /// Everything of one stream that is kept of an instance.
    #[track_caller]
    pub fn output(&self, name: &str, stream: &str) -> Vec<u8> {
        let output = self.cli(&["logs", name, "--all-attempts", "--stream", stream]);
        assert_eq!(output.code, 0, "logs {name}: {}", output.stderr);
        output.bytes
    }

    /// What a witness has written by now is all there, byte for byte; the number of lines that are.
    #[track_caller]
    pub fn assert_output_complete(&self, name: &str) -> u64 {
        let uid = self.instance(name).uid().to_owned();
        let full = format!("default/{name}");
        let mut total = 0;
        for (stream, letter) in [("stdout", 'o'), ("stderr", 'e')] {
            let written = self.journal().written_by(&full, &uid, letter);
            let began = Instant::now();
            loop {
                match check_lines(&uid, letter, &written, &self.output(name, stream)) {
                    Ok(lines) => {
                        total += lines;
                        break;
                    }
                    // What is still in the pipe is not lost; it is not long in there.
                    Err(why) => assert!(began.elapsed() < LIMIT, "{name} {stream}: {why}"),
                }
            }
        }
        total
    }

    /// No process of any attempt of an instance lives.
    pub fn assert_tree_gone(&self, uid: &str) {
        let cgroup = self.cgroup();
        let left = proc::of_instance(uid, cgroup.as_deref());
        assert!(left.is_empty(), "processes are left: {left:?}");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(60).collect();
            eprintln!("--- the daemon's last words:");
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
        let cgroup = self.cgroup.lock().ok().and_then(|it| it.clone());
        let began = Instant::now();
        // Until nothing is left: a dying daemon may have started something meanwhile.
        while began.elapsed() < Duration::from_secs(20) {
            let mut left = proc::around(&self.path);
            if let Some(cgroup) = &cgroup {
                left.extend(proc::members(cgroup));
            }
            // Examples run in the directory of their manifests, and nothing about them tells where their daemon is.
            left.extend(proc::descendants(&left));
            if left.is_empty() && (self.is_free() || !self.state.join("lock").exists()) {
                break;
            }
            // Stopped first, so that none sees another die and replaces it.
            for signal in [libc::SIGSTOP, libc::SIGKILL] {
                for process in &left {
                    proc::signal(*process, signal);
                }
            }
            self.reap();
        }
        if let Some(mut child) = self.child.lock().ok().and_then(|mut child| child.take()) {
            let _ = child.wait();
        }
        for cgroup in proc::groups_beside(cgroup.as_deref()).into_iter().chain(cgroup) {
            // What was just killed may take a moment to leave its group.
            while cgroup.exists() && began.elapsed() < Duration::from_secs(22) {
                for group in fs::read_dir(&cgroup).into_iter().flatten().flatten() {
                    if group.file_type().is_ok_and(|kind| kind.is_dir()) {
                        let _ = fs::remove_dir(group.path());
                    }
                }
                let _ = fs::remove_dir(&cgroup);
            }
        }
        // Files of instances that were just killed.
        if let Ok(state) = fs::metadata(&self.state) {
            let name = format!("ostler-{:x}-{:x}", state.dev(), state.ino());
            let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
            for home in [Some("/run".into()), runtime, Some("/dev/shm".into())].into_iter().flatten() {
                let _ = fs::remove_dir_all(home.join(&name));
            }
        }
        // Where the state directory is a disk of its own, it has to go first.
        let _ = crate::mounts::remove_disk(&self.state);
        drop(self.root.take());
    }
}
