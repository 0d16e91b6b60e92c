//! A daemon under measurement, and its end, whatever happens.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use super::board::Board;
use super::sys;

/// What the figures run with.
pub(crate) struct Bench {
    /// The binary that is measured.
    pub(crate) ostler: PathBuf,
    /// Everything of this run is below it, on the disk that is measured.
    pub(crate) directory: PathBuf,
    pub(crate) board: Board,
    /// Repetitions of every measurement.
    pub(crate) reps: usize,
    /// Instances where the target says a thousand.
    pub(crate) instances: usize,
    /// Instances where the target says ten thousand.
    pub(crate) many: usize,
    /// Hard limit of open files.
    pub(crate) open_files: u64,
}

/// Nothing that is waited for takes so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A running daemon with its own state directory. Dropped, it and all its workloads are ended.
pub(crate) struct Daemon<'a> {
    bench: &'a Bench,
    directory: PathBuf,
    child: Option<Child>,
}

impl<'a> Daemon<'a> {
    /// Starts a daemon; `name` is its state directory, which may exist from an earlier one.
    pub(crate) fn start(bench: &'a Bench, name: &str) -> anyhow::Result<Self> {
        Self::with(bench, name, &[])
    }

    /// The same with more flags for `serve`.
    pub(crate) fn with(bench: &'a Bench, name: &str, flags: &[&str]) -> anyhow::Result<Self> {
        let directory = bench.directory.join(name);
        let log = File::options().create(true).append(true).open(bench.directory.join(format!("{name}.log")))?;
        let child = command(&bench.ostler, &directory)
            .args(["serve", "--on-shutdown", "stop", "--log", "warn"])
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("cannot start the daemon")?;
        Ok(Self { bench, directory, child: Some(child) })
    }

    /// Starts a daemon and waits until it answers.
    pub(crate) fn ready(bench: &'a Bench, name: &str) -> anyhow::Result<Self> {
        let daemon = Self::start(bench, name)?;
        daemon.pids()?;
        Ok(daemon)
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// `ostler ARGS` for this daemon.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = command(&self.bench.ostler, &self.directory);
        command.args(args).stdin(Stdio::null());
        command
    }

    /// Runs `ostler ARGS` and returns what it printed.
    pub(crate) fn cli(&self, args: &[&str]) -> anyhow::Result<String> {
        let output = self.command(args).output()?;
        let messages = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "ostler {}: {}", args.join(" "), messages.trim());
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The processes of the daemon: keeper, controller. Waits for a daemon that is just starting.
    pub(crate) fn pids(&self) -> anyhow::Result<[i32; 2]> {
        let deadline = Instant::now() + PATIENCE;
        let info = loop {
            match self.cli(&["info", "-o", "json"]) {
                Ok(info) => break info,
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        let info: serde_json::Value = serde_json::from_str(&info)?;
        let pid = |name: &str| info[name].as_i64().and_then(|pid| i32::try_from(pid).ok()).context("no pid in info");
        Ok([pid("keeperPid")?, pid("controllerPid")?])
    }

    /// Writes a manifest beside the state directory.
    pub(crate) fn manifest(&self, name: &str, text: &str) -> anyhow::Result<String> {
        let path = self.bench.directory.join(name);
        fs::write(&path, text)?;
        Ok(path.display().to_string())
    }

    /// Waits until the daemon has nothing more to do, or `within` is over.
    pub(crate) fn settle(&self, within: Duration) -> anyhow::Result<()> {
        const LOOK: Duration = Duration::from_millis(500);
        let pids = self.pids()?;
        let deadline = Instant::now() + within;
        let mut before = cpu(&pids)?;
        while Instant::now() < deadline {
            std::thread::sleep(LOOK);
            let after = cpu(&pids)?;
            if after - before < 3_000_000 {
                break;
            }
            before = after;
        }
        Ok(())
    }

    /// Ends the daemon and everything that it runs.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        self.end()
    }

    fn end(&mut self) -> anyhow::Result<()> {
        let Some(child) = self.child.as_mut() else { return Ok(()) };
        let output = command(&self.bench.ostler, &self.directory)
            .args(["shutdown", "--stop-instances", "--deadline", "60s"])
            .stdin(Stdio::null())
            .output()?;
        // A daemon that went without being asked has left its workloads behind.
        ensure!(output.status.success(), "ostler shutdown: {}", String::from_utf8_lossy(&output.stderr).trim());
        let deadline = Instant::now() + PATIENCE;
        while child.try_wait()?.is_none() {
            ensure!(Instant::now() < deadline, "the daemon does not end");
            sys::pause();
        }
        self.child = None;
        Ok(())
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("bench: {error:#}; killing it");
        }
        let Some(mut child) = self.child.take() else { return };
        // The controller goes with its keeper here: it starts another one only while it lives itself.
        let own = i32::try_from(child.id()).unwrap_or(0);
        let children = fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap_or_default();
        for pid in children.split_whitespace().filter_map(|pid| pid.parse().ok()) {
            let is_controller = fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|path| path == self.bench.ostler);
            // Stopped first, so that neither replaces the other.
            if is_controller && sys::kill(own, libc::SIGSTOP) {
                sys::kill(pid, libc::SIGKILL);
            }
        }
        // It may be gone already.
        let _ = child.kill();
        let _ = child.wait();
        let began = self.bench.board.all().unwrap_or_default();
        let left: Vec<i32> = began.iter().map(|began| began.pid).filter(|pid| self.bench.board.owns(*pid)).collect();
        let groups: Vec<PathBuf> = left.iter().flat_map(|pid| cgroups(*pid)).collect();
        for pid in &left {
            sys::kill(*pid, libc::SIGKILL);
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while left.iter().any(|pid| sys::exists(*pid)) && Instant::now() < deadline {
            sys::pause();
        }
        for group in &groups {
            // The directory above goes with the last one in it.
            let _ = fs::remove_dir(group);
            let _ = group.parent().map(fs::remove_dir);
        }
    }
}

/// The directories of a process' cgroups that a daemon has made for it.
fn cgroups(pid: i32) -> Vec<PathBuf> {
    let lines = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let mut found = Vec::new();
    for line in lines.lines().filter(|line| line.contains("/ostler-")) {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controller, path) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        let controller = controller.trim_start_matches("name=");
        found.extend(
            [
                format!("/sys/fs/cgroup{path}"),
                format!("/sys/fs/cgroup/unified{path}"),
                format!("/sys/fs/cgroup/{controller}{path}"),
            ]
            .into_iter()
            .map(PathBuf::from)
            .filter(|path| path.is_dir()),
        );
    }
    found
}

fn command(ostler: &Path, state_dir: &Path) -> Command {
    let mut command = Command::new(ostler);
    command.env_remove("OSTLER_SERVER").env_remove("OSTLER_LOG").env("OSTLER_STATE_DIR", state_dir);
    command
}

/// CPU time of all of them, nanoseconds.
pub(crate) fn cpu(pids: &[i32]) -> anyhow::Result<u64> {
    Ok(pids.iter().map(|pid| sys::cpu_time(*pid)).sum::<Result<u64, _>>()?)
}

/// Proportional share of memory of all of them, bytes.
pub(crate) fn pss(pids: &[i32]) -> anyhow::Result<u64> {
    let mut total = 0;
    for pid in pids {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let line = rollup.lines().find(|line| line.starts_with("Pss:")).context("smaps_rollup has no Pss")?;
        let kib: u64 = line.split_whitespace().nth(1).context("Pss has no value")?.parse()?;
        total += kib * 1024;
    }
    Ok(total)
}

/// A manifest of one process with so many copies of the worker.
pub(crate) fn process(name: &str, replicas: usize, command: &[String], more: &str) -> String {
    let quoted: Vec<String> = command.iter().map(|word| format!("{word:?}")).collect();
    format!(
        "apiVersion: ostler.dev/v1\nkind: Process\nmetadata:\n  name: {name}\nspec:\n  replicas: {replicas}\n  command: [{}]\n  workingDir: /\n  backoff: {{initial: 0s}}\n{more}",
        quoted.join(", ")
    )
}
