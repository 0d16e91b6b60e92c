//! The ends of processes: leaders that exit, trees that become empty, kills that take their time.

use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;

use super::attempt::{Kill, Life, Tree};
use super::{Keeper, Source};
use crate::cgroup::Version;
use crate::sys::PidfdExit;
use crate::wire::Exit;
use crate::{fail, sys};

/// A tree that was killed and lives longer than this is reported as stuck.
const STUCK_AFTER: Duration = Duration::from_secs(10);

/// How long an adopted leader may have ended without being collected before its exit is given up.
const ZOMBIE_PATIENCE: Duration = Duration::from_secs(5);

/// First and longest pause between looks at a tree that nothing tells about, milliseconds.
const CHECK_FIRST: u16 = 5;
const CHECK_MOST: u16 = 500;

const NO_PARENT: &str = "the keeper was not its parent, and this kernel tells the exit to nobody else";
const NOT_COLLECTED: &str = "it has ended, but its parent does not collect it";

impl Keeper {
    /// Collects every child that has ended. A leader's exit is recorded before the kernel forgets it.
    pub(super) fn reap(&mut self) {
        let mut strangers = false;
        while let Some(ended) = sys::peek_ended_child() {
            match self.by_pid.remove(&ended.pid) {
                Some(number) => {
                    let exit = Exit::from_wait_status(ended.status, sys::unix_nanos());
                    self.on_exit(number, exit);
                    sys::collect(ended.pid);
                }
                None if self.peer.controller_pid() == Some(ended.pid) => {
                    sys::collect(ended.pid);
                    self.on_controller_exit(ended.status);
                }
                None if self.preflight.as_ref().is_some_and(|preflight| preflight.pid == ended.pid) => {
                    sys::collect(ended.pid);
                    self.on_preflight(ended.status);
                }
                None => {
                    sys::collect(ended.pid);
                    strangers = true;
                }
            }
        }
        if strangers {
            // Orphans of workloads come to us; one that ended may have been the last of its tree.
            for number in self.watched.clone() {
                self.check_tree(number);
            }
        }
    }

    /// An adopted leader's pidfd has something to tell.
    pub(super) fn on_pidfd(&mut self, number: u32) {
        let Some(attempt) = self.attempts.get_mut(number) else {
            return;
        };
        if attempt.life != Life::Running || attempt.is_child {
            return;
        }
        let Some(pidfd) = &attempt.pidfd else { return };
        if !sys::is_readable(pidfd.as_fd()) {
            return;
        }
        let now = Instant::now();
        let exit = match sys::pidfd_exit(pidfd.as_fd()) {
            PidfdExit::Status(status) => Exit::from_wait_status(status, sys::unix_nanos()),
            PidfdExit::Unknowable => Exit::unknown(NO_PARENT, sys::unix_nanos()),
            PidfdExit::NotYet => {
                let since = *attempt.zombie_since.get_or_insert(now);
                if now < since + ZOMBIE_PATIENCE {
                    self.check_soon(number);
                    return;
                }
                Exit::unknown(NOT_COLLECTED, sys::unix_nanos())
            }
        };
        self.on_exit(number, exit);
    }

    /// The leader has exited: reads what it wrote, looks for survivors, records and reports.
    pub(super) fn on_exit(&mut self, number: u32, mut exit: Exit) {
        exit.oom_kills = self.oom_kills(number);
        let Some(attempt) = self.attempts.get_mut(number) else {
            return;
        };
        if attempt.life != Life::Running {
            return;
        }
        attempt.life = Life::Exited;
        attempt.exit = Some(Box::new(exit));
        attempt.zombie_since = None;
        let survivors = self.survivors(number);
        self.settle_output(number);
        fail::point("exit-before-ended");
        if survivors.is_empty() {
            self.become_empty(number);
        } else {
            if let Some(attempt) = self.attempts.get_mut(number) {
                attempt.survivors = survivors.len() as u32;
                if let Some(ended) = attempt.ended() {
                    self.journal.note(ended);
                }
            }
            self.await_empty(number);
        }
        fail::point("exit-after-ended");
        self.mark_dirty(number);
    }

    /// Nobody is left: what they wrote has been read, unless the disk would not take it.
    fn become_empty(&mut self, number: u32) {
        let Some(attempt) = self.attempts.get_mut(number) else {
            return;
        };
        attempt.life = Life::Empty;
        attempt.survivors = 0;
        attempt.stuck = false;
        attempt.kill = None;
        attempt.check_at = None;
        let pidfd = attempt.pidfd.take();
        if let Tree::Group { events, .. } = &mut attempt.tree {
            // Closing a descriptor takes it out of the epoll set.
            *events = None;
        }
        if let Some(ended) = attempt.ended() {
            self.journal.note(ended);
        }
        if let Some(pidfd) = pidfd {
            // The controller has a duplicate, so closing alone would not end the watching.
            self.unwatch(pidfd.as_fd());
        }
        self.watched.retain(|other| *other != number);
        self.release_output(number);
        self.mark_dirty(number);
    }

    /// Arranges to notice when the last survivor is gone.
    pub(super) fn await_empty(&mut self, number: u32) {
        let Some(attempt) = self.attempts.get_mut(number) else {
            return;
        };
        let token = attempt.token();
        if let Tree::Group { root, events } = &mut attempt.tree
            && root.version == Version::V2
            && events.is_none()
            && let Ok(file) = root.events(&token)
        {
            *events = Some(file);
            let watched = match self.attempts.get(number).map(|attempt| &attempt.tree) {
                Some(Tree::Group { events: Some(events), .. }) => {
                    self.watch(events.as_fd(), Source::Tree(number), EventFlags::PRI)
                }
                Some(Tree::Group { .. } | Tree::Marker { .. }) | None => return,
            };
            if watched.is_ok() {
                // It may have become empty before it was watched.
                if self.survivors(number).is_empty() {
                    self.check_tree(number);
                }
                return;
            }
        }
        self.check_soon(number);
    }

    /// Looks again after a pause that grows.
    pub(super) fn check_soon(&mut self, number: u32) {
        let Some(attempt) = self.attempts.get_mut(number) else {
            return;
        };
        attempt.check_every = (attempt.check_every * 2).clamp(CHECK_FIRST, CHECK_MOST);
        let pause = Duration::from_millis(u64::from(attempt.check_every));
        attempt.check_at = Some(Instant::now() + pause);
        if !self.watched.contains(&number) {
            self.watched.push(number);
        }
    }

    /// Looks at the tree of an attempt whose leader has exited.
    pub(super) fn check_tree(&mut self, number: u32) {
        if self.attempts.get(number).is_none_or(|attempt| attempt.life != Life::Exited || attempt.awaiting) {
            return;
        }
        let survivors = self.survivors(number);
        if survivors.is_empty() {
            self.settle_output(number);
            self.become_empty(number);
            return;
        }
        let Some(attempt) = self.attempts.get_mut(number) else {
            return;
        };
        if let Tree::Group { root, events: Some(events) } = &attempt.tree
            && root.version == Version::V2
        {
            // Only a read from the start re-arms the notification.
            let mut buffer = [0; 64];
            let _ = rustix::io::pread(events, &mut buffer, 0);
        }
        if attempt.survivors != survivors.len() as u32 {
            attempt.survivors = survivors.len() as u32;
            self.mark_dirty(number);
        }
    }

    /// SIGKILL to the tree, until it is empty.
    pub(super) fn kill(&mut self, number: u32) {
        let Some(attempt) = self.attempts.get_mut(number) else {
            return;
        };
        if attempt.is_over() || attempt.awaiting {
            return;
        }
        if attempt.kill.is_none() {
            attempt.kill = Some(Kill { since: Instant::now() });
            attempt.check_every = 0;
        }
        self.signal_tree(number, libc::SIGKILL);
        // One that moved itself out of its group is still ours by its pidfd.
        self.signal_leader(number, libc::SIGKILL);
        self.check_soon(number);
    }

    /// Looks at what is due to be looked at.
    pub(super) fn check_due(&mut self, now: Instant) {
        if self.watched.is_empty() {
            return;
        }
        for number in self.watched.clone() {
            let Some(attempt) = self.attempts.get_mut(number) else {
                continue;
            };
            if attempt.check_at.is_none_or(|at| now < at) {
                continue;
            }
            attempt.check_at = None;
            self.on_pidfd(number);
            self.check_tree(number);
            let Some(attempt) = self.attempts.get_mut(number) else {
                continue;
            };
            if attempt.is_over() {
                continue;
            }
            if let Some(kill) = attempt.kill {
                if !attempt.stuck && now >= kill.since + STUCK_AFTER {
                    attempt.stuck = true;
                    self.mark_dirty(number);
                }
                self.kill(number);
                continue;
            }
            let is_told = matches!(&attempt.tree, Tree::Group { events: Some(_), .. });
            if attempt.zombie_since.is_some() || (attempt.life == Life::Exited && !is_told) {
                self.check_soon(number);
            }
        }
        let attempts = &self.attempts;
        self.watched.retain(|number| attempts.get(*number).is_some_and(|attempt| attempt.check_at.is_some()));
    }
}
