//! The controller at the other end: starting it, hearing it, telling it.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventFlags};

use super::{Keeper, NOFILE_VARIABLE, Source};
use crate::logs::Log;
use crate::sys;
use crate::wire::{
    Channel, Command, Hello, OLDEST_PROTOCOL, PROTOCOL, Report, Reports, Request, SnapshotDone, command, start,
};

/// A controller that ran for this long is started again at once when it dies.
const PROVEN_AFTER: Duration = Duration::from_secs(10);

const RESTART_FIRST: Duration = Duration::from_millis(100);
const RESTART_MOST: Duration = Duration::from_secs(5);

/// How long a controller may live on without its connection before it is killed.
const DISCONNECTED_PATIENCE: Duration = Duration::from_secs(10);

/// How long a controller may take to end when the keeper does.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// The kernel limits how many descriptors may be under way; when to try again.
const DESCRIPTOR_RETRY: Duration = Duration::from_millis(10);

/// Packets read at a time, and how much may wait before the controller is not listened to.
const PACKETS_AT_ONCE: usize = 16;
const COMMANDS_WAITING: usize = 8192;
const REPORTS_WAITING: usize = 1024;

/// Bounds of one packet of reports; a State is a few hundred bytes and at most three descriptors.
const PACKET_BYTES: usize = 48 << 10;
const PACKET_DESCRIPTORS: usize = 200;

/// What is known of the controller.
#[derive(Debug)]
pub(super) struct Peer {
    channel: Option<Channel>,
    /// It has said Hello: what is reported makes sense to it.
    is_greeted: bool,
    /// Some controller of this daemon has said Hello: what ends the next ones is worth another try.
    has_begun: bool,
    /// The socket is full; what it is watched for at present.
    is_full: bool,
    watched_for: EventFlags,
    retry_at: Option<Instant>,
    process: Option<Process>,
    restart_at: Option<Instant>,
    restart_delay: Duration,
    kill_at: Option<Instant>,
    /// It asked for the end itself.
    pub(super) is_told_to_end: bool,
}

#[derive(Debug)]
struct Process {
    pid: i32,
    pidfd: Option<OwnedFd>,
    is_child: bool,
    since: Instant,
}

impl Peer {
    pub(super) fn new() -> Self {
        Self {
            channel: None,
            is_greeted: false,
            has_begun: false,
            is_full: false,
            watched_for: EventFlags::empty(),
            retry_at: None,
            process: None,
            restart_at: None,
            restart_delay: Duration::ZERO,
            kill_at: None,
            is_told_to_end: false,
        }
    }

    pub(super) fn is_connected(&self) -> bool {
        self.channel.is_some()
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        [self.restart_at, self.kill_at, self.retry_at].into_iter().flatten().min()
    }

    /// The controller's pid, when it is our child.
    pub(super) fn controller_pid(&self) -> Option<i32> {
        self.process.as_ref().filter(|process| process.is_child).map(|process| process.pid)
    }

    pub(super) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.channel.as_ref().map(Channel::as_fd)
    }

    /// Pid and pidfd, for a successor.
    pub(super) fn process(&self) -> Option<(i32, Option<BorrowedFd<'_>>)> {
        self.process.as_ref().map(|process| (process.pid, process.pidfd.as_ref().map(OwnedFd::as_fd)))
    }
}

impl Keeper {
    pub(super) fn say_who_holds_the_lock(&self) {
        // A full disk only costs the pid in the message to a second daemon.
        let _ = crate::lock::write_pid(self.lock.as_fd());
    }

    /// Starts the controller; a failure is tried again like a death.
    pub(super) fn start_controller(&mut self) {
        self.peer.restart_at = None;
        let nofile = self.workload_nofile.0.to_string();
        let started = Channel::pair().and_then(|(ours, theirs)| {
            let child = start::start(
                &self.controller_command.program,
                &self.controller_command.args,
                ("--keeper-fd", theirs.as_fd()),
                ("--lock-fd", self.lock.as_fd()),
                &[(NOFILE_VARIABLE, OsStr::new(&nofile))],
            )?;
            Ok((ours, child))
        });
        match started {
            Ok((ours, child)) => {
                let pid = child.id() as i32;
                self.peer.process =
                    Some(Process { pid, pidfd: sys::pidfd_open(pid).ok(), is_child: true, since: Instant::now() });
                self.attach(ours);
            }
            Err(error) => {
                sys::say(&format_args!(
                    "cannot start the controller {}: {error}",
                    self.controller_command.program.display()
                ));
                self.restart_later();
            }
        }
    }

    /// Takes over a connection to a controller that runs already.
    pub(super) fn connect(&mut self, socket: OwnedFd, known: Option<(i32, Option<OwnedFd>, bool)>) {
        let known = known.or_else(|| {
            let pid = sys::peer_pid(socket.as_fd())?;
            Some((pid, sys::pidfd_open(pid).ok(), false))
        });
        self.peer.process = known.map(|(pid, pidfd, is_child)| Process { pid, pidfd, is_child, since: Instant::now() });
        self.attach(Channel::new(socket));
    }

    fn attach(&mut self, channel: Channel) {
        self.peer.is_greeted = false;
        self.peer.is_full = false;
        self.peer.kill_at = None;
        self.peer.watched_for = EventFlags::IN;
        if let Err(error) = self.watch(channel.as_fd(), Source::Socket, EventFlags::IN) {
            sys::say(&format_args!("cannot listen to the controller: {error}"));
        }
        self.peer.channel = Some(channel);
    }

    /// The controller to which a Hello was said by our predecessor need not say it again.
    pub(super) fn greet(&mut self) {
        self.peer.is_greeted = true;
        self.peer.has_begun = true;
        let hello = self.hello();
        self.outbox.push_back(hello.into());
    }

    pub(super) fn on_socket(&mut self, flags: EventFlags) {
        if flags.contains(EventFlags::OUT) {
            self.peer.is_full = false;
        }
        if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
            self.listen(PACKETS_AT_ONCE);
        }
    }

    /// Reads packets; the end of the connection ends it.
    fn listen(&mut self, packets: usize) {
        for _ in 0..packets {
            let Some(channel) = &self.peer.channel else {
                return;
            };
            match channel.recv::<Request>() {
                Ok(Some((request, fds))) => self.accept(request, fds),
                Ok(None) => {
                    self.disconnect();
                    return;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    sys::say(&format_args!("the controller makes no sense: {error}"));
                    self.disconnect();
                    self.peer.kill_at = Some(Instant::now());
                    return;
                }
            }
            if self.commands.len() > COMMANDS_WAITING {
                return;
            }
        }
    }

    /// The connection is gone. Commands that came through it are still carried out.
    fn disconnect(&mut self) {
        let Some(channel) = self.peer.channel.take() else {
            return;
        };
        self.unwatch(channel.as_fd());
        drop(channel);
        self.peer.is_greeted = false;
        self.peer.retry_at = None;
        self.outbox.clear();
        self.dirty.clear();
        self.snapshot_left = None;
        for number in self.attempts.numbers() {
            if let Some(attempt) = self.attempts.get_mut(number) {
                attempt.is_dirty = false;
                attempt.is_handed_out = false;
            }
        }
        if self.awaits_handoff {
            self.commands.push_back((
                Command { kind: Some(command::Kind::HandoffDone(crate::wire::HandoffDone {})) },
                Vec::new(),
            ));
        }
        let is_told = self.is_told_to_end();
        if self.terminate_by.is_some() && !is_told {
            self.ending = Some(0);
        }
        match &self.peer.process {
            Some(process) if process.is_child => {
                self.peer.kill_at = Some(Instant::now() + DISCONNECTED_PATIENCE);
            }
            Some(_) | None => {
                if !is_told {
                    self.peer.restart_at = Some(Instant::now());
                }
            }
        }
    }

    fn is_told_to_end(&self) -> bool {
        self.commands.iter().any(|(command, _)| matches!(command.kind, Some(command::Kind::Shutdown(_))))
    }

    /// Our controller has ended and was collected.
    pub(super) fn on_controller_exit(&mut self, status: i32) {
        // What it said last still counts.
        self.listen(usize::MAX);
        let lived = self.peer.process.take().map_or(Duration::ZERO, |process| process.since.elapsed());
        self.disconnect();
        self.peer.kill_at = None;
        if self.ending.is_some() || self.is_told_to_end() {
            return;
        }
        if !self.peer.has_begun && libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == crate::CANNOT_BEGIN {
            // It has said why. Whoever started the daemon has to know that it does not run; the workloads go on.
            self.ending = Some(1);
            return;
        }
        if lived >= PROVEN_AFTER {
            self.peer.restart_delay = Duration::ZERO;
        }
        let how = if libc::WIFSIGNALED(status) {
            format!("signal {}", libc::WTERMSIG(status))
        } else {
            format!("exit code {}", libc::WEXITSTATUS(status))
        };
        sys::say(&format_args!(
            "the controller ended ({how}); the workloads go on, it is started again in {} ms",
            self.peer.restart_delay.as_millis()
        ));
        self.restart_later();
    }

    fn restart_later(&mut self) {
        self.peer.restart_at = Some(Instant::now() + self.peer.restart_delay);
        self.peer.restart_delay = (self.peer.restart_delay * 2).clamp(RESTART_FIRST, RESTART_MOST);
    }

    pub(super) fn check_controller(&mut self, now: Instant) {
        if self.peer.retry_at.is_some_and(|at| now >= at) {
            self.peer.retry_at = None;
        }
        if self.peer.kill_at.is_some_and(|at| now >= at) {
            self.peer.kill_at = None;
            self.kill_controller();
        }
        if self.peer.restart_at.is_some_and(|at| now >= at) {
            self.start_controller();
        }
    }

    fn kill_controller(&self) {
        if let Some(pidfd) = self.peer.process.as_ref().and_then(|process| process.pidfd.as_ref()) {
            // It may have ended meanwhile.
            let _ = sys::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
        }
    }

    /// Sees the controller to its end, so that the state directory is free when this process has ended. One that did
    /// not ask for this must not live on: it would start another keeper.
    pub(super) fn end_controller(&mut self) {
        if !self.peer.is_told_to_end {
            self.kill_controller();
        }
        self.disconnect();
        let Some(process) = self.peer.process.take() else {
            return;
        };
        let Some(pidfd) = &process.pidfd else { return };
        if !sys::wait_readable(pidfd.as_fd(), END_PATIENCE) && process.is_child {
            // Only our own: one that merely used us is its parent's business.
            let _ = sys::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
            sys::wait_readable(pidfd.as_fd(), END_PATIENCE);
        }
        if process.is_child {
            sys::collect(process.pid);
        }
    }

    fn hello(&self) -> Hello {
        Hello {
            protocol: PROTOCOL,
            oldest_protocol: OLDEST_PROTOCOL,
            version: self.version.clone(),
            shard: self.shard,
            boot_id: self.boot_id.to_string(),
            cgroup_mode: self.trees.mode().to_owned(),
            cgroup_detail: self.trees.detail.clone(),
            pid: std::process::id() as i32,
            wants_handoff: self.awaits_handoff,
        }
    }

    pub(super) fn on_hello(&mut self, theirs: &Hello) {
        if theirs.oldest_protocol > PROTOCOL || theirs.protocol < OLDEST_PROTOCOL {
            sys::say(&format_args!(
                "the controller (version {}) speaks protocol {} to {}, this keeper {OLDEST_PROTOCOL} to {PROTOCOL}",
                theirs.version, theirs.oldest_protocol, theirs.protocol
            ));
            self.disconnect();
            self.peer.kill_at = Some(Instant::now());
            return;
        }
        self.greet();
        if !self.awaits_handoff {
            self.begin_snapshot(true);
        }
    }

    /// Queues every State, with descriptors unless the controller has them.
    pub(super) fn begin_snapshot(&mut self, with_descriptors: bool) {
        self.dirty.clear();
        for number in self.attempts.numbers() {
            let Some(attempt) = self.attempts.get_mut(number) else {
                continue;
            };
            if attempt.is_forgotten {
                continue;
            }
            attempt.is_dirty = true;
            if with_descriptors {
                attempt.is_handed_out = false;
            }
            self.dirty.push_back(number);
        }
        if self.dirty.is_empty() {
            self.outbox.push_back(SnapshotDone {}.into());
            self.snapshot_left = None;
        } else {
            self.snapshot_left = Some(self.dirty.len());
        }
    }

    /// Something about an attempt has changed.
    pub(super) fn mark_dirty(&mut self, number: u32) {
        if let Some(attempt) = self.attempts.get_mut(number)
            && !attempt.is_dirty
            && !attempt.is_forgotten
            && self.peer.channel.is_some()
        {
            attempt.is_dirty = true;
            self.dirty.push_back(number);
        }
    }

    /// Tells the controller what is new, as much as the socket takes.
    pub(super) fn flush(&mut self) {
        while self.flush_one() {}
        self.listen_for_what_matters();
    }

    /// Sends one packet; false when there is nothing to send or no room.
    fn flush_one(&mut self) -> bool {
        if self.peer.is_full || !self.peer.is_greeted || self.peer.retry_at.is_some() {
            return false;
        }
        if self.outbox.is_empty() && self.dirty.is_empty() {
            return false;
        }
        let Some(channel) = &self.peer.channel else {
            return false;
        };
        let mut reports = Vec::new();
        let mut fds: Vec<BorrowedFd<'_>> = Vec::new();
        let mut bytes = 0;
        let mut said = 0;
        for report in &self.outbox {
            if bytes >= PACKET_BYTES {
                break;
            }
            bytes += prost::Message::encoded_len(report) + 8;
            reports.push(report.clone());
            said += 1;
        }
        let mut stated = 0;
        for number in &self.dirty {
            if bytes >= PACKET_BYTES || fds.len() >= PACKET_DESCRIPTORS {
                break;
            }
            stated += 1;
            // Forgotten, or dropped, since it was queued.
            let Some(attempt) = self.attempts.get(*number).filter(|held| !held.is_forgotten) else {
                continue;
            };
            let log = self.logs.get(attempt.log);
            let mut state = attempt.state(log.map_or_else(Default::default, Log::state));
            if !attempt.is_handed_out {
                let [stdout, stderr] = &attempt.pipes;
                for (fd, has) in [
                    (&attempt.pidfd, &mut state.has_pidfd),
                    (stdout, &mut state.has_stdout),
                    (stderr, &mut state.has_stderr),
                ] {
                    if let Some(fd) = fd {
                        fds.push(fd.as_fd());
                        *has = true;
                    }
                }
            }
            let report = Report::from(state);
            bytes += prost::Message::encoded_len(&report) + 8;
            reports.push(report);
        }
        let result = if reports.is_empty() { Ok(()) } else { channel.send(&Reports { reports }, &fds) };
        match result {
            Ok(()) => {
                self.sent(said, stated);
                true
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.peer.is_full = true;
                false
            }
            Err(error) if matches!(error.raw_os_error(), Some(libc::ETOOMANYREFS | libc::ENOBUFS | libc::ENOMEM)) => {
                self.peer.retry_at = Some(Instant::now() + DESCRIPTOR_RETRY);
                false
            }
            // A dead peer shows as the end of the connection, after what it has said last.
            Err(_) => {
                self.peer.is_full = true;
                false
            }
        }
    }

    fn sent(&mut self, said: usize, stated: usize) {
        self.outbox.drain(..said);
        for number in self.dirty.drain(..stated) {
            if let Some(attempt) = self.attempts.get_mut(number) {
                attempt.is_dirty = false;
                attempt.is_handed_out = true;
            }
        }
        if let Some(left) = self.snapshot_left {
            let left = left.saturating_sub(stated);
            self.snapshot_left = (left > 0).then_some(left);
            if left == 0 {
                self.outbox.push_back(SnapshotDone {}.into());
            }
        }
    }

    /// Watches the socket for room only when it had none, and for commands only while answers find room.
    fn listen_for_what_matters(&mut self) {
        let Some(channel) = &self.peer.channel else {
            return;
        };
        let mut wanted = EventFlags::empty();
        if self.outbox.len() < REPORTS_WAITING && self.commands.len() < COMMANDS_WAITING {
            wanted |= EventFlags::IN;
        }
        if self.peer.is_full {
            wanted |= EventFlags::OUT;
        }
        if wanted != self.peer.watched_for {
            let data = epoll::EventData::new_u64(Source::Socket.token(&self.attempts));
            if epoll::modify(&self.epoll, channel.as_fd(), data, wanted).is_ok() {
                self.peer.watched_for = wanted;
            }
        }
    }
}
