//! Buries commands of exec probes and hooks: kills what lives of them, and looks again until nothing is left.
//!
//! One thread, because everything here blocks. Each grave is looked at again after a while that grows as long as somebody
//! lives in it; marks in environments are looked for by one walk over all processes, for all graves at once.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// Variable in the environment of a command that tells whose it is: `UID/` of the instance, [`own`], and a number.
pub(crate) const MARK: &str = "OSTLER_PROBE";
/// The names of groups below that of an attempt begin so, and go on with [`own`].
pub(crate) const BELOW: &str = "probe-";
/// Between two looks, at least and, when somebody does not die, at most.
const PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What holds a command and its offspring together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// This directory.
    Cgroup(PathBuf),
    /// The value of [`MARK`].
    Mark(String),
    /// Any mark of an instance, by its uid, that another process than this one has given.
    Foreign(String),
}

/// A place, and the room that is free again when nobody is in it any more.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) place: Place,
    pub(crate) room: Option<Arc<OwnedSemaphorePermit>>,
}

enum Job {
    Bury(Option<Child>, Group, Option<oneshot::Sender<ExitStatus>>),
    Disturb(Place),
    Leftovers { uid: String, cgroup: PathBuf, room: Option<Arc<OwnedSemaphorePermit>> },
}

/// What the marks and groups of this process begin with, and of no other one.
pub(crate) fn own() -> &'static str {
    static OWN: OnceLock<String> = OnceLock::new();
    OWN.get_or_init(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        // Process ids come back, in a container even soon.
        format!("{}-{:x}-", std::process::id(), now.as_nanos())
    })
}

fn jobs() -> &'static mpsc::Sender<Job> {
    static JOBS: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    JOBS.get_or_init(|| {
        let (sender, receiver) = mpsc::channel();
        let spawned = std::thread::Builder::new().name("probe-bury".to_owned()).spawn(move || {
            Undertaker::default().work(&receiver);
        });
        if let Err(why) = spawned {
            tracing::error!(%why, "no thread to bury commands of exec probes");
        }
        sender
    })
}

/// Kills what is in the group, tells the status of the child, and removes the group when all are gone.
pub(crate) fn bury(child: Option<Child>, group: Group, told: Option<oneshot::Sender<ExitStatus>>) {
    let _ = jobs().send(Job::Bury(child, group, told));
}

/// Kills whoever is in the place now.
pub(crate) fn disturb(place: Place) {
    let _ = jobs().send(Job::Disturb(place));
}

/// Ends what an earlier controller has left behind of its commands of this instance: below this cgroup, or anywhere when
/// that is empty. The room is free when that is done.
pub(crate) fn bury_leftovers(uid: &str, cgroup: &str, room: Option<OwnedSemaphorePermit>) {
    let (uid, cgroup, room) = (uid.to_owned(), PathBuf::from(cgroup), room.map(Arc::new));
    let _ = jobs().send(Job::Leftovers { uid, cgroup, room });
}

/// A command that has ended or has to.
struct Grave {
    child: Option<Child>,
    group: Group,
    told: Option<oneshot::Sender<ExitStatus>>,
    /// So many looks in a row found nobody.
    quiet: u32,
    /// When to look again, and how long to wait after that.
    next: Instant,
    pause: Duration,
}

#[derive(Default)]
struct Undertaker {
    graves: Vec<Grave>,
    /// When to walk over the processes again, at the earliest.
    walk: Option<Instant>,
}

impl Undertaker {
    /// Ends when nobody can give it anything to do any more.
    fn work(&mut self, receiver: &mpsc::Receiver<Job>) {
        loop {
            let next = self.graves.iter().map(|grave| grave.next.max(self.earliest(grave))).min();
            let job = match next {
                None => receiver.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected),
                Some(next) => receiver.recv_timeout(next.saturating_duration_since(Instant::now())),
            };
            match job {
                Ok(job) => self.take(job),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
            // All there are: they share a walk. Who has waited is looked after however many come.
            for job in receiver.try_iter().take(256) {
                self.take(job);
            }
            self.look();
        }
    }

    /// The earliest time of a look into a grave.
    fn earliest(&self, grave: &Grave) -> Instant {
        match (&grave.group.place, self.walk) {
            (Place::Mark(_) | Place::Foreign(_), Some(walk)) => walk,
            (Place::Mark(_) | Place::Foreign(_), None) | (Place::Cgroup(_), _) => grave.next,
        }
    }

    fn take(&mut self, job: Job) {
        match job {
            Job::Bury(child, group, told) => self.dig(child, group, told),
            Job::Disturb(Place::Cgroup(path)) => kill_cgroup(&path),
            // Before it is executed it bears no mark.
            Job::Disturb(Place::Mark(_) | Place::Foreign(_)) => {}
            Job::Leftovers { uid, cgroup, room } if cgroup.as_os_str().is_empty() => {
                self.dig(None, Group { place: Place::Foreign(uid), room }, None);
            }
            Job::Leftovers { cgroup, room, .. } => {
                for entry in fs::read_dir(&cgroup).into_iter().flatten().flatten() {
                    let name = entry.file_name();
                    let rest = name.as_bytes().strip_prefix(BELOW.as_bytes());
                    if rest.is_some_and(|rest| !rest.starts_with(own().as_bytes())) {
                        let room = room.clone();
                        self.dig(None, Group { place: Place::Cgroup(entry.path()), room }, None);
                    }
                }
            }
        }
    }

    fn dig(&mut self, child: Option<Child>, group: Group, told: Option<oneshot::Sender<ExitStatus>>) {
        let mut grave = Grave { child, group, told, quiet: 0, next: Instant::now(), pause: PAUSE };
        // Somebody waits for the status, and the walk may be some way off.
        grave.collect();
        self.graves.push(grave);
    }

    /// Looks into the graves whose time it is.
    fn look(&mut self) {
        let now = Instant::now();
        let walks = self.walk.is_none_or(|walk| walk <= now);
        let mut marks = Marks::default();
        for (index, grave) in self.graves.iter().enumerate().filter(|(_, grave)| walks && grave.next <= now) {
            match &grave.group.place {
                Place::Cgroup(_) => {}
                Place::Mark(mark) => drop(marks.whole.insert(mark.clone().into_bytes(), index)),
                Place::Foreign(uid) => drop(marks.foreign.insert(uid.clone().into_bytes(), index)),
            }
        }
        let mut living = vec![false; self.graves.len()];
        if !marks.is_empty() {
            for (index, pidfd) in marks.walk() {
                living[index] = true;
                let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
            }
            // At most a fifth of a processor.
            self.walk = Some(Instant::now() + (now.elapsed() * 4).max(PAUSE));
        }
        let mut index = 0;
        self.graves.retain_mut(|grave| {
            let lives = living[index];
            index += 1;
            let looked = match &grave.group.place {
                Place::Cgroup(_) => grave.next <= now,
                Place::Mark(_) | Place::Foreign(_) => walks && grave.next <= now,
            };
            !looked || !grave.close(lives)
        });
        if self.graves.is_empty() {
            self.graves.shrink_to(64);
        }
    }
}

impl Grave {
    /// Kills the child, or tells its status.
    fn collect(&mut self) {
        if let Some(child) = &mut self.child {
            match child.try_wait() {
                Ok(Some(status)) => {
                    self.child = None;
                    if let Some(told) = self.told.take() {
                        let _ = told.send(status);
                    }
                }
                Ok(None) => {
                    let _ = child.kill();
                }
                Err(_) => self.child = None,
            }
        }
    }

    /// Kills what lives of it; true when nothing is left. `lives`: somebody with its mark was found.
    fn close(&mut self, lives: bool) -> bool {
        self.collect();
        let (empty, enough) = match &self.group.place {
            // A cgroup hides nobody.
            Place::Cgroup(path) => (close_cgroup(path), 1),
            // A process that is just being forked or executed cannot be seen by its environment.
            Place::Mark(_) | Place::Foreign(_) => (!lives, 4),
        };
        if empty && self.child.is_none() {
            self.quiet += 1;
            self.pause = PAUSE;
            self.group.room = None;
        } else {
            self.quiet = 0;
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        }
        self.next = Instant::now() + self.pause;
        self.quiet >= enough
    }
}

/// Kills who is in it.
fn kill_cgroup(path: &Path) {
    if fs::write(path.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    // cgroup v1: one by one, by a descriptor that is only used for who is still in the group.
    let members = || {
        let text = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse::<i32>().ok()).collect::<Vec<_>>()
    };
    let opened: Vec<(i32, OwnedFd)> = members()
        .into_iter()
        .filter_map(|pid| {
            let pidfd =
                rustix::process::pidfd_open(rustix::process::Pid::from_raw(pid)?, rustix::process::PidfdFlags::empty());
            Some((pid, pidfd.ok()?))
        })
        .collect();
    let still = members();
    for (pid, pidfd) in opened {
        if still.contains(&pid) {
            let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
        }
    }
}

/// Kills who is in it; true when it is empty, and gone.
fn close_cgroup(path: &Path) -> bool {
    match fs::remove_dir(path) {
        Ok(()) => return true,
        Err(why) if why.kind() == io::ErrorKind::NotFound => return true,
        Err(_) => kill_cgroup(path),
    }
    // Whoever began a group below is killed with this one on v2.
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            close_cgroup(&entry.path());
        }
    }
    fs::remove_dir(path).is_ok()
}

/// The marks that are looked for, each with its grave.
#[derive(Default)]
struct Marks {
    whole: HashMap<Vec<u8>, usize>,
    foreign: HashMap<Vec<u8>, usize>,
}

impl Marks {
    fn is_empty(&self) -> bool {
        self.whole.is_empty() && self.foreign.is_empty()
    }

    /// The grave that the owner of this environment belongs into.
    fn find(&self, environment: &[u8]) -> Option<usize> {
        let values = environment
            .split(|byte| *byte == 0)
            .filter_map(|entry| entry.strip_prefix(MARK.as_bytes())?.strip_prefix(b"="));
        for value in values {
            if let Some(index) = self.whole.get(value) {
                return Some(*index);
            }
            let slash = value.iter().position(|byte| *byte == b'/')?;
            let (uid, given) = (&value[..slash], &value[slash + 1..]);
            if let Some(index) = self.foreign.get(uid).filter(|_| !given.starts_with(own().as_bytes())) {
                return Some(*index);
            }
        }
        None
    }

    /// The processes with one of the marks, each with its grave.
    fn walk(&self) -> Vec<(usize, OwnedFd)> {
        let mut found = Vec::new();
        let mut environment = Vec::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()).and_then(rustix::process::Pid::from_raw)
            else {
                continue;
            };
            let path = entry.path().join("environ");
            let mut grave = || {
                environment.clear();
                File::open(&path).and_then(|mut file| file.read_to_end(&mut environment)).ok()?;
                self.find(&environment)
            };
            let Some(index) = grave() else { continue };
            // Looked at once more when there is a descriptor: the number may have changed hands.
            if let Ok(pidfd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
                && grave() == Some(index)
            {
                found.push((index, pidfd));
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_tell_whose_a_command_is() {
        let marks = Marks {
            whole: HashMap::from([(b"a/1-2-3".to_vec(), 0)]),
            foreign: HashMap::from([(b"a".to_vec(), 1), (b"b".to_vec(), 2)]),
        };
        for (environment, expected) in [
            ("X=1\0OSTLER_PROBE=a/1-2-3\0", Some(0)),
            ("OSTLER_PROBE=a/1-2-34\0", Some(1)),
            ("OSTLER_PROBE=b/9-9-9\0Y=2\0", Some(2)),
            ("OSTLER_PROBE=c/9-9-9\0", None),
            ("OSTLER_PROBES=a/1-2-3\0", None),
            ("OSTLER_PROBE=a\0", None),
            ("", None),
        ] {
            assert_eq!(marks.find(environment.as_bytes()), expected, "{environment:?}");
        }
        assert_eq!(marks.find(format!("OSTLER_PROBE=b/{}7", own()).as_bytes()), None, "what this process began lives");
    }

    #[test]
    fn a_hundred_graves_are_closed_while_new_ones_come_all_the_time() {
        let (done, closed) = std::sync::mpsc::channel();
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let noise = std::sync::Arc::clone(&stop);
        // Never quiet for longer than a look takes.
        let noisy = std::thread::spawn(move || {
            let directory = tempfile::tempdir().unwrap();
            let mut number = 0_u64;
            while !noise.load(std::sync::atomic::Ordering::Relaxed) {
                number += 1;
                bury(None, Group { place: Place::Cgroup(directory.path().join(number.to_string())), room: None }, None);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let room = std::sync::Arc::new(tokio::sync::Semaphore::new(100));
        for index in 0..100 {
            let mark = format!("graves/{}{index}", own());
            let child = std::process::Command::new("sleep").arg("1000").env(MARK, &mark).spawn().unwrap();
            let permit = std::sync::Arc::clone(&room).try_acquire_owned().unwrap();
            bury(Some(child), Group { place: Place::Mark(mark), room: Some(Arc::new(permit)) }, None);
        }
        std::thread::spawn(move || {
            while room.available_permits() < 100 {
                std::thread::sleep(Duration::from_millis(5));
            }
            done.send(()).unwrap();
        });
        closed.recv_timeout(Duration::from_secs(60)).expect("all are buried");
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        noisy.join().unwrap();
    }
}
