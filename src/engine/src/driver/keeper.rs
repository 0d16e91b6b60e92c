//! The driver that talks to the keeper, and replaces it when it dies.

use std::collections::{HashMap, VecDeque};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::Duration;

use ostler_keeper::wire::{self, Channel, command, report};
use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, Ready};
use tracing::{error, info, warn};

use super::{Driver, DriverEvent};

/// How to start a keeper that takes over from a dead one.
#[derive(Clone, Debug)]
pub struct KeeperProgram {
    /// The program, absolute.
    pub program: PathBuf,
    /// Its arguments before the descriptor numbers.
    pub args: Vec<OsString>,
}

/// Talks to the keeper over its socket; holds duplicates of what the keeper holds, so that its death loses nothing.
pub struct KeeperDriver {
    /// None between the loss of a keeper and the start of the next.
    channel: Option<AsyncFd<Socket>>,
    program: KeeperProgram,
    lock: OwnedFd,
    version: String,
    outgoing: VecDeque<wire::Command>,
    held: HashMap<(String, u64), Held>,
}

/// The controller's duplicates for one attempt.
#[derive(Debug, Default)]
struct Held {
    pidfd: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

struct Socket(Channel);

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// How many commands go into one packet: the keeper begins while the next packet is made.
const BATCH: usize = 32;

impl KeeperDriver {
    /// Takes over the connection `socket` to the keeper that started this controller.
    pub fn connect(socket: OwnedFd, lock: OwnedFd, program: KeeperProgram, version: &str) -> io::Result<Self> {
        let mut driver = Self {
            channel: Some(asynchronous(Channel::new(socket))?),
            program,
            lock,
            version: version.to_owned(),
            outgoing: VecDeque::new(),
            held: HashMap::new(),
        };
        driver.outgoing.push_back(driver.hello().into());
        Ok(driver)
    }

    fn hello(&self) -> wire::Hello {
        wire::Hello {
            protocol: wire::PROTOCOL,
            oldest_protocol: wire::OLDEST_PROTOCOL,
            version: self.version.clone(),
            pid: i32::try_from(std::process::id()).unwrap_or_default(),
            ..wire::Hello::default()
        }
    }

    /// Starts another keeper and hands it everything this process holds. Blocks for the few milliseconds that takes:
    /// half a handover must not be left behind, and there is nothing else to do meanwhile.
    fn replace(&mut self) -> io::Result<()> {
        let (channel, pid) = wire::spawn_keeper(&self.program.program, &self.program.args, self.lock.as_fd())?;
        warn!(pid, attempts = self.held.len(), "started a new keeper in place of the lost one");
        send(&channel, self.hello().into(), &[])?;
        for ((id, attempt), held) in &self.held {
            let fds: Vec<BorrowedFd<'_>> =
                [&held.pidfd, &held.stdout, &held.stderr].into_iter().flatten().map(AsFd::as_fd).collect();
            let handoff = wire::Handoff {
                id: id.clone(),
                attempt: *attempt,
                has_pidfd: held.pidfd.is_some(),
                has_stdout: held.stdout.is_some(),
                has_stderr: held.stderr.is_some(),
            };
            send(&channel, handoff.into(), &fds)?;
        }
        send(&channel, wire::HandoffDone {}.into(), &[])?;
        self.channel = Some(asynchronous(channel)?);
        Ok(())
    }

    fn lost(&mut self, why: &io::Error) -> Vec<DriverEvent> {
        warn!(%why, "the keeper is gone");
        self.channel = None;
        // Commands that were not sent are decided anew from what the next keeper reports.
        self.outgoing.clear();
        vec![DriverEvent::Lost]
    }

    fn take(&mut self, reports: wire::Reports, fds: Vec<OwnedFd>) -> Vec<DriverEvent> {
        let mut fds = fds.into_iter();
        let mut events = Vec::with_capacity(reports.reports.len());
        for report in reports.reports {
            let Some(kind) = report.kind else { continue };
            events.push(match kind {
                report::Kind::Hello(hello) => DriverEvent::Hello(hello),
                report::Kind::SnapshotDone(_) => DriverEvent::Synced,
                report::Kind::Refused(refused) => DriverEvent::Refused(refused),
                report::Kind::Terminate(terminate) => DriverEvent::Terminate(terminate),
                report::Kind::UpgradeFailed(failed) => DriverEvent::UpgradeFailed(failed.why),
                report::Kind::State(state) => {
                    self.keep(&state, &mut fds);
                    DriverEvent::State(state)
                }
            });
        }
        events
    }

    /// Keeps the descriptors that came with a state, and closes those of an attempt that is over.
    fn keep(&mut self, state: &wire::State, fds: &mut impl Iterator<Item = OwnedFd>) {
        let key = (state.id.clone(), state.attempt);
        let mut next = |there: bool| if there { fds.next() } else { None };
        let (pidfd, stdout, stderr) = (next(state.has_pidfd), next(state.has_stdout), next(state.has_stderr));
        match state.phase() {
            wire::Phase::Running | wire::Phase::Exited | wire::Phase::Stuck => {
                let held = self.held.entry(key).or_default();
                held.pidfd = pidfd.or(held.pidfd.take());
                held.stdout = stdout.or(held.stdout.take());
                held.stderr = stderr.or(held.stderr.take());
            }
            wire::Phase::Empty | wire::Phase::FailedToStart | wire::Phase::Unspecified => {
                // A full disk can leave bytes in the pipes of an attempt that is over; its descriptors are kept until
                // it is forgotten.
                if state.log.as_ref().is_none_or(|log| log.blocked_errno == 0) {
                    self.held.remove(&key);
                }
            }
        }
    }
}

impl Driver for KeeperDriver {
    fn submit(&mut self, command: wire::Command) {
        if let Some(command::Kind::Forget(forget)) = &command.kind {
            self.held.remove(&(forget.id.clone(), forget.attempt));
        }
        self.outgoing.push_back(command);
        if self.outgoing.len() >= BATCH {
            self.flush();
        }
    }

    fn flush(&mut self) {
        let Some(channel) = &self.channel else { return };
        while !self.outgoing.is_empty() {
            let count = self.outgoing.len().min(BATCH);
            let batch = request(self.outgoing.iter().take(count).cloned().collect());
            match channel.get_ref().0.send(&batch, &[]) {
                Ok(()) => drop(self.outgoing.drain(..count)),
                // A full socket is waited for, a broken one noticed, by `next`.
                Err(_) => return,
            }
        }
    }

    async fn next(&mut self) -> Vec<DriverEvent> {
        let mut pause = Duration::from_millis(20);
        while self.channel.is_none() {
            match self.replace() {
                Ok(()) => info!("handed everything to the new keeper"),
                Err(why) => {
                    error!(%why, "cannot start a keeper; trying again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(5));
                }
            }
        }
        loop {
            self.flush();
            let turn = match &self.channel {
                Some(channel) => turn(channel, !self.outgoing.is_empty()).await,
                None => Turn::Closed(io::ErrorKind::NotConnected.into()),
            };
            match turn {
                Turn::Got(reports, fds) => return self.take(reports, fds),
                Turn::Closed(why) => return self.lost(&why),
                Turn::Again => {}
            }
        }
    }
}

/// What one wait for the socket brought.
enum Turn {
    Got(wire::Reports, Vec<OwnedFd>),
    Closed(io::Error),
    Again,
}

/// Waits until there is something to read, or room to write when `writing`.
async fn turn(channel: &AsyncFd<Socket>, writing: bool) -> Turn {
    let interest = if writing { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
    let mut guard = match channel.ready(interest).await {
        Ok(guard) => guard,
        Err(why) => return Turn::Closed(why),
    };
    let result = channel.get_ref().0.recv::<wire::Reports>();
    match result {
        Ok(Some((reports, fds))) => Turn::Got(reports, fds),
        Ok(None) => Turn::Closed(io::ErrorKind::UnexpectedEof.into()),
        Err(why) if why.kind() == io::ErrorKind::WouldBlock => {
            // Edge-triggered: data that arrived since the attempt sets the readiness again. The caller tries to write
            // once more before it waits for the room that is cleared here.
            guard.clear_ready_matching(Ready::READABLE);
            if guard.ready().is_writable() && writing {
                guard.clear_ready_matching(Ready::WRITABLE);
            }
            Turn::Again
        }
        Err(why) => Turn::Closed(why),
    }
}

#[allow(unsafe_code, reason = "registering a descriptor with the runtime")]
fn asynchronous(channel: Channel) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: the channel owns its descriptor, gives it to nobody, and `AsyncFd` owns the channel until it is dropped.
    unsafe { AsyncFd::register_with_interest(Socket(channel), Interest::READABLE | Interest::WRITABLE) }
        .map_err(io::Error::from)
}

fn request(commands: Vec<wire::Command>) -> wire::Request {
    wire::Request { commands }
}

/// Sends one command to a keeper that is just starting, waiting for it to read.
fn send(channel: &Channel, command: wire::Command, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let request = request(vec![command]);
    loop {
        match channel.send(&request, fds) {
            Err(why) if why.kind() == io::ErrorKind::WouldBlock => {}
            done => return done,
        }
        let mut writable = [PollFd::new(channel.as_fd(), PollFlags::POLLOUT)];
        if poll(&mut writable, PollTimeout::from(5000_u16))? == 0 {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the new keeper does not read"));
        }
    }
}
