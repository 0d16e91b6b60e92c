//! Measures the keeper beside what the kernel costs anyway: `cargo run --release -p ostler-keeper --example bench`.
//!
//! 1,000 spawns against a bare loop of posix_spawn with two pipes each; kill -9 to the report of Empty; a log against
//! a bare splice from pipe to file.
#![allow(unsafe_code, reason = "the baselines are bare system calls")]

use std::env;
use std::error::Error;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command as Program, Stdio};
use std::time::{Duration, Instant};

use ostler_keeper::wire::{
    Channel, Command, HandoffDone, Hello, Kill, LogSettings, PROTOCOL, Phase, Reports, Request, Shutdown, Spawn, State,
    report, spawn_keeper,
};
use ostler_keeper::{CgroupPreference, Config, ControllerCommand, Start, lock, run};
use rustix::event::{PollFd, PollFlags, poll};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const COUNT: usize = 1000;
const BYTES: usize = 1 << 30;

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().collect();
    if arguments.get(1).is_some_and(|argument| argument == "keeper") {
        std::process::exit(keeper(&arguments)?);
    }
    let base = env::temp_dir().join(format!("keeper-bench-{}", std::process::id()));
    for mode in ["v2", "v1", "none"].into_iter().filter(|mode| arguments.len() < 2 || arguments[1] == *mode) {
        measure(mode, &base.join(mode))?;
    }
    std::fs::remove_dir_all(base)?;
    Ok(())
}

fn keeper(arguments: &[String]) -> Result<i32> {
    let number = |name: &str| -> Result<OwnedFd> {
        let place = arguments.iter().position(|argument| argument == name);
        let number = place.and_then(|place| arguments.get(place + 1)).ok_or("descriptor")?;
        // SAFETY: inherited for this purpose, and taken once.
        Ok(unsafe { OwnedFd::from_raw_fd(number.parse()?) })
    };
    Ok(run(Config {
        state_dir: PathBuf::from(&arguments[2]),
        shard: 0,
        controller: ControllerCommand { program: "/bin/true".into(), args: Vec::new() },
        upgrade_args: Vec::new(),
        cgroups: match arguments[3].as_str() {
            "v2" => CgroupPreference::V2,
            "v1" => CgroupPreference::V1,
            _ => CgroupPreference::None,
        },
        version: "bench".to_owned(),
        start: Start::Orphaned { socket: number("--socket-fd")?, lock: number("--lock-fd")? },
    })?)
}

struct Peer(Channel);

impl Peer {
    fn tell(&self, command: impl Into<Command>) -> Result<()> {
        let request = Request { commands: vec![command.into()] };
        loop {
            match self.0.send(&request, &[]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    poll(&mut [PollFd::new(&self.0, PollFlags::OUT)], None)?;
                }
                result => return Ok(result?),
            }
        }
    }

    /// Reads reports until `done` says so.
    fn listen(&self, mut done: impl FnMut(&report::Kind) -> bool) -> Result<Vec<OwnedFd>> {
        let mut kept = Vec::new();
        loop {
            match self.0.recv::<Reports>() {
                Ok(Some((reports, fds))) => {
                    kept.extend(fds);
                    let mut is_done = false;
                    for kind in reports.reports.iter().filter_map(|report| report.kind.as_ref()) {
                        is_done |= done(kind);
                    }
                    if is_done {
                        return Ok(kept);
                    }
                }
                Ok(None) => return Err("the keeper is gone".into()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    poll(&mut [PollFd::new(&self.0, PollFlags::IN)], None)?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn wait_state(&self, id: &str, phase: Phase) -> Result<State> {
        let mut found = None;
        self.listen(|kind| {
            if let report::Kind::State(state) = kind
                && state.id == id
                && state.phase() == phase
            {
                found = Some(state.clone());
            }
            found.is_some()
        })?;
        found.ok_or_else(|| "no state".into())
    }
}

fn spawn(id: String, argv: &[&str]) -> Spawn {
    Spawn {
        name: format!("bench/{id}"),
        log_dir: format!("logs/bench/{id}"),
        id,
        attempt: 1,
        argv: argv.iter().map(|argument| argument.as_bytes().to_vec()).collect(),
        env: vec![b"PATH=/usr/bin:/bin".to_vec()],
        working_dir: "/".to_owned(),
        log: Some(LogSettings::default()),
        ..Spawn::default()
    }
}

fn resident_kilobytes(pid: i32) -> u64 {
    std::fs::read_to_string(format!("/proc/{pid}/status"))
        .ok()
        .and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("RssAnon:"))?;
            line.split_ascii_whitespace().nth(1)?.parse().ok()
        })
        .unwrap_or(0)
}

fn measure(mode: &str, state_dir: &Path) -> Result<()> {
    let held = lock(state_dir)?;
    let arguments = ["keeper".into(), state_dir.into(), mode.into()];
    let (channel, _) = spawn_keeper(&env::current_exe()?, &arguments, held.as_fd())?;
    let peer = Peer(channel);
    peer.tell(Hello { protocol: PROTOCOL, oldest_protocol: PROTOCOL, ..Hello::default() })?;
    peer.tell(HandoffDone {})?;
    let mut pid = 0;
    peer.listen(|kind| {
        if let report::Kind::Hello(hello) = kind {
            pid = hello.pid;
        }
        matches!(kind, report::Kind::SnapshotDone(_))
    })?;

    let bare = bare_spawns()?;
    let before = resident_kilobytes(pid);
    let commands = (0..COUNT).map(|n| spawn(format!("s{n}"), &["/bin/sleep", "1000"]).into()).collect();
    let begin = Instant::now();
    peer.0.send(&Request { commands }, &[])?;
    let mut running = 0;
    let kept = peer.listen(|kind| {
        if let report::Kind::State(state) = kind {
            running += usize::from(state.phase() == Phase::Running);
        }
        running == COUNT
    })?;
    let ours = begin.elapsed();
    println!(
        "{mode}: {COUNT} spawns {ours:.0?}, bare posix_spawn {bare:.0?}: {:.2} x; {} bytes of memory each",
        ours.as_secs_f64() / bare.as_secs_f64(),
        (resident_kilobytes(pid).saturating_sub(before)) * 1024 / COUNT as u64
    );

    let mut latencies = Vec::new();
    for n in 0..300 {
        let id = format!("k{n}");
        peer.tell(spawn(id.clone(), &["/bin/sleep", "1000"]))?;
        let state = peer.wait_state(&id, Phase::Running)?;
        let victim = state.identity.ok_or("no pid")?.pid;
        std::thread::sleep(Duration::from_millis(2));
        let begin = Instant::now();
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(victim).ok_or("pid")?,
            rustix::process::Signal::KILL,
        )?;
        peer.wait_state(&id, Phase::Empty)?;
        latencies.push(begin.elapsed());
    }
    latencies.sort_unstable();
    let bare = bare_kills()?;
    println!(
        "{mode}: kill -9 to Empty: p50 {:.0?}, p99 {:.0?}; kill and wait without a keeper: p50 {bare:.0?}",
        latencies[latencies.len() / 2],
        latencies[latencies.len() * 99 / 100]
    );

    let bare = bare_splice(state_dir)?;
    let count = format!("count={}", BYTES >> 16);
    let begin = Instant::now();
    peer.tell(spawn("log".to_owned(), &["/bin/dd", "if=/dev/zero", "bs=64k", &count, "status=none"]))?;
    peer.wait_state("log", Phase::Empty)?;
    let ours = begin.elapsed();
    println!(
        "{mode}: log of 1 GiB {ours:.0?}, bare splice {bare:.0?}: {:.2} of its speed",
        bare.as_secs_f64() / ours.as_secs_f64()
    );

    drop(kept);
    for n in 0..COUNT {
        peer.tell(Kill { id: format!("s{n}"), attempt: 1 })?;
    }
    let mut gone = 0;
    peer.listen(|kind| {
        if let report::Kind::State(state) = kind {
            gone += usize::from(state.phase() == Phase::Empty);
        }
        gone == COUNT
    })?;
    for n in 0..COUNT {
        peer.tell(ostler_keeper::wire::Forget { id: format!("s{n}"), attempt: 1, remove_logs: true }).or_else(
            |_| {
                std::thread::sleep(Duration::from_millis(5));
                peer.tell(ostler_keeper::wire::Forget { id: format!("s{n}"), attempt: 1, remove_logs: true })
            },
        )?;
    }
    for id in (0..300).map(|n| format!("k{n}")).chain(["log".to_owned()]) {
        peer.tell(ostler_keeper::wire::Forget { id, attempt: 1, remove_logs: true })?;
    }
    peer.tell(Shutdown { exit_code: 0 })?;
    while peer.listen(|_| false).is_ok() {}
    Ok(())
}

/// What a supervisor cannot do without: two pipes and a process, a thousand times.
fn bare_spawns() -> Result<Duration> {
    let mut kept = Vec::new();
    let begin = Instant::now();
    for _ in 0..COUNT {
        kept.push(
            Program::new("/bin/sleep")
                .arg("1000")
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()?,
        );
    }
    let took = begin.elapsed();
    for child in &mut kept {
        child.kill()?;
        child.wait()?;
    }
    Ok(took)
}

/// kill -9 and wait, the median.
fn bare_kills() -> Result<Duration> {
    let mut latencies = Vec::new();
    for _ in 0..100 {
        let mut child = Program::new("/bin/sleep").arg("1000").spawn()?;
        std::thread::sleep(Duration::from_millis(2));
        let begin = Instant::now();
        child.kill()?;
        child.wait()?;
        latencies.push(begin.elapsed());
    }
    latencies.sort_unstable();
    Ok(latencies[latencies.len() / 2])
}

/// dd into a pipe, splice from it into a file.
fn bare_splice(directory: &Path) -> Result<Duration> {
    let path = directory.join("bare");
    let file = File::create(&path)?;
    let begin = Instant::now();
    let mut child = Program::new("/bin/dd")
        .args(["if=/dev/zero", "bs=64k", "status=none"])
        .arg(format!("count={}", BYTES >> 16))
        .stdout(Stdio::piped())
        .spawn()?;
    let pipe = child.stdout.take().ok_or("no pipe")?;
    let mut offset = 0_i64;
    loop {
        // SAFETY: the offset is valid for the call.
        let moved = unsafe {
            libc::splice(
                pipe.as_raw_fd(),
                std::ptr::null_mut(),
                file.as_raw_fd(),
                &raw mut offset,
                64 << 10,
                libc::SPLICE_F_MOVE,
            )
        };
        if moved <= 0 {
            break;
        }
    }
    let took = begin.elapsed();
    child.wait()?;
    std::fs::remove_file(path)?;
    Ok(took)
}
