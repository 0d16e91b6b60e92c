//! The processes of an attempt: who they are, and signals to them.
//!
//! With a cgroup the kernel knows. Without one, a process belongs to an attempt when its environment carries the
//! attempt's marker, when it was seen in the leader's session while the leader's pid could not be reused, or when its
//! parent belongs to it. A pid alone never counts: identities are compared with start times.

use std::collections::{HashMap, HashSet};
use std::os::fd::AsFd as _;
use std::time::Duration;

use super::Keeper;
use super::attempt::{Life, Tree};
use crate::procfs::{self, Stat};
use crate::{cgroup, sys};

/// Whether a process carries the marker. One that is just being replaced by execve shows no environment at all for a
/// moment; of an orphan that came to us this is worth waiting for.
fn shows_marker(pid: i32, marker: &[u8], is_orphan: bool) -> bool {
    for _ in 0..4 {
        match procfs::environment_has(pid, marker) {
            Some(has) => return has,
            None if is_orphan => std::thread::sleep(Duration::from_micros(500)),
            None => return false,
        }
    }
    false
}

impl Keeper {
    /// The living processes of the tree other than the leader.
    pub(super) fn survivors(&mut self, number: u32) -> Vec<i32> {
        let Some(attempt) = self.attempts.get(number) else {
            return Vec::new();
        };
        let token = attempt.token();
        let leader = attempt.pid;
        match &attempt.tree {
            Tree::Group { root, .. } => {
                if !root.is_populated(&token) {
                    return Vec::new();
                }
                let mut pids = root.pids(&token);
                // A leader that was seen to exit is not in the group any more.
                pids.retain(|pid| *pid != leader || attempt.life == Life::Exited);
                if pids.is_empty() && attempt.life == Life::Exited {
                    // Populated, yet nobody to be seen: on their way out, or in a pid namespace above ours.
                    pids.push(0);
                }
                pids
            }
            Tree::Marker { .. } => {
                if attempt.is_child && !self.has_strangers() {
                    return Vec::new();
                }
                self.scan(number)
            }
        }
    }

    /// Whether some child of this process is not the leader of an attempt. Orphans of workloads come to us, so without
    /// such a child no attempt whose leader has exited has a process left.
    fn has_strangers(&self) -> bool {
        let Some(children) = procfs::own_children() else {
            return true;
        };
        children.into_iter().any(|pid| {
            !self.by_pid.contains_key(&pid)
                && self.peer.controller_pid() != Some(pid)
                && self.preflight.as_ref().is_none_or(|p| p.pid != pid)
        })
    }

    /// Looks through all processes for those of an attempt without a cgroup, and remembers them.
    fn scan(&mut self, number: u32) -> Vec<i32> {
        let Some(attempt) = self.attempts.get_mut(number) else {
            return Vec::new();
        };
        let marker = format!("OSTLER_ATTEMPT={}.{}", attempt.id, attempt.attempt);
        let leader = (attempt.pid, attempt.start_time);
        let Tree::Marker { members } = &mut attempt.tree else {
            return Vec::new();
        };
        let own = std::process::id() as i32;
        let all: HashMap<i32, Stat> = procfs::processes()
            .into_iter()
            .filter(|pid| *pid != own)
            .filter_map(|pid| Some((pid, procfs::stat(pid)?)))
            .collect();
        // While the leader is there, if only as a zombie, the kernel gives its number to no other session.
        let session_is_ours = leader.0 != 0 && all.get(&leader.0).is_some_and(|stat| stat.start_time == leader.1);
        let mut found: HashSet<i32> = HashSet::new();
        for (pid, stat) in &all {
            let known = members.contains(&(*pid, stat.start_time));
            let in_session = session_is_ours && stat.session == leader.0;
            let is_leader = (*pid, stat.start_time) == leader;
            if known
                || in_session
                || is_leader
                || (stat.start_time >= leader.1 && shows_marker(*pid, marker.as_bytes(), stat.parent == own))
            {
                found.insert(*pid);
            }
        }
        loop {
            let children: Vec<i32> = all
                .iter()
                .filter(|(pid, stat)| {
                    !found.contains(pid)
                        && found.contains(&stat.parent)
                        && all.get(&stat.parent).is_some_and(|parent| parent.start_time <= stat.start_time)
                })
                .map(|(pid, _)| *pid)
                .collect();
            if children.is_empty() {
                break;
            }
            found.extend(children);
        }
        *members = found
            .iter()
            .filter(|pid| **pid != leader.0)
            .filter_map(|pid| {
                let stat = all.get(pid)?;
                (!stat.is_dead()).then_some((*pid, stat.start_time))
            })
            .collect();
        members.iter().map(|(pid, _)| *pid).collect()
    }

    /// A signal to the leader alone.
    pub(super) fn signal_leader(&self, number: u32, signal: i32) {
        if let Some(attempt) = self.attempts.get(number)
            && attempt.life == Life::Running
            && let Some(pidfd) = &attempt.pidfd
        {
            // It may have ended this instant, which its exit will tell.
            let _ = sys::pidfd_send_signal(pidfd.as_fd(), signal);
        }
    }

    /// A signal to every process of the tree.
    pub(super) fn signal_tree(&mut self, number: u32, signal: i32) {
        let Some(attempt) = self.attempts.get(number) else {
            return;
        };
        if attempt.is_over() || attempt.awaiting {
            return;
        }
        let token = attempt.token();
        if let Tree::Group { root, .. } = &attempt.tree {
            let root = root.clone();
            if signal == libc::SIGKILL {
                root.kill(&token);
            } else {
                root.signal(&token, signal);
            }
            return;
        }
        self.signal_leader(number, signal);
        for _ in 0..4 {
            let found = self.scan(number);
            let Some(Tree::Marker { members }) = self.attempts.get(number).map(|a| &a.tree) else {
                return;
            };
            let members = members.clone();
            let reached = cgroup::signal_all(signal, || {
                members
                    .iter()
                    .filter(|(pid, start)| {
                        procfs::stat(*pid).is_some_and(|stat| stat.start_time == *start && !stat.is_dead())
                    })
                    .map(|(pid, _)| *pid)
                    .collect()
            });
            // What was forked while this went on shows in the next look; only a kill has to reach it.
            if signal != libc::SIGKILL || reached == 0 || found.is_empty() {
                return;
            }
        }
    }
}
