//! The thread that looks: everything that is due shares one reading of the machine's processes, and the ends of what was
//! found wake it at once.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, mpsc as std_mpsc};
use std::time::{Duration, Instant};

use ostler_core::kinds::ExternalSpec;
use ostler_core::plan::external::{Finding, Machine, Matcher};
use ostler_store::{Key, Store};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::sync::mpsc;

use super::facts;

/// After the end of a process its successor, if one is started at once, gets so long to show itself before the next
/// regular look.
const SOON: Duration = Duration::from_millis(250);

/// What is asked of the thread.
pub(super) enum Order {
    /// What to look for, with the generation of the spec.
    Watch(Key, u64, Box<ExternalSpec>),
    Forget(Key),
    /// What was said did not reach the store.
    Again(Key),
}

/// What was found, and the cgroup of it if nothing else is in that.
pub(super) struct Report {
    pub(super) key: Key,
    /// Of the spec that it was looked for by.
    pub(super) generation: u64,
    pub(super) finding: Finding,
    pub(super) cgroup: String,
}

/// The thread's handle. It ends with it.
pub(super) struct Watcher {
    orders: Option<std_mpsc::Sender<Order>>,
    wake: Arc<OwnedFd>,
}

impl Watcher {
    pub(super) fn start(store: Arc<dyn Store>) -> std::io::Result<(Self, mpsc::UnboundedReceiver<Report>)> {
        let (orders, inbox) = std_mpsc::channel();
        let (reports, found) = mpsc::unbounded_channel();
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let mut looker = Looker { store, watched: HashMap::new(), due: BTreeSet::new(), reports };
        let bell = Arc::clone(&wake);
        std::thread::Builder::new()
            .name("externals".to_owned())
            .stack_size(256 << 10)
            .spawn(move || looker.run(&inbox, &bell))?;
        Ok((Self { orders: Some(orders), wake }, found))
    }

    pub(super) fn send(&self, order: Order) {
        if let Some(orders) = &self.orders {
            // A thread that is gone says so by closing its reports.
            let _ = orders.send(order);
        }
        self.ring();
    }

    fn ring(&self) {
        // Full means that it rings already.
        let _ = rustix::io::write(&*self.wake, &1_u64.to_ne_bytes());
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.orders = None;
        self.ring();
    }
}

struct Watched {
    generation: u64,
    spec: Box<ExternalSpec>,
    matcher: Result<Matcher, String>,
    due: Instant,
    said: Option<Finding>,
    /// Of what was found.
    handle: Option<OwnedFd>,
}

struct Looker {
    store: Arc<dyn Store>,
    watched: HashMap<Key, Watched>,
    due: BTreeSet<(Instant, Key)>,
    reports: mpsc::UnboundedSender<Report>,
}

impl Looker {
    fn run(&mut self, inbox: &std_mpsc::Receiver<Order>, bell: &OwnedFd) {
        loop {
            loop {
                match inbox.try_recv() {
                    Ok(order) => self.take(order),
                    Err(std_mpsc::TryRecvError::Empty) => break,
                    Err(std_mpsc::TryRecvError::Disconnected) => return,
                }
            }
            self.look();
            self.sleep(bell);
        }
    }

    fn take(&mut self, order: Order) {
        let now = Instant::now();
        match order {
            Order::Watch(key, generation, spec) => {
                if let Some(before) = self.watched.remove(&key) {
                    self.due.remove(&(before.due, key.clone()));
                }
                let matcher = Matcher::new(&spec.discovery);
                self.due.insert((now, key.clone()));
                self.watched.insert(key, Watched { generation, spec, matcher, due: now, said: None, handle: None });
            }
            Order::Forget(key) => {
                if let Some(before) = self.watched.remove(&key) {
                    self.due.remove(&(before.due, key));
                }
            }
            Order::Again(key) => {
                if let Some(watched) = self.watched.get_mut(&key) {
                    watched.said = None;
                }
            }
        }
    }

    fn schedule(&mut self, key: &Key, at: Instant) {
        if let Some(watched) = self.watched.get_mut(key) {
            self.due.remove(&(watched.due, key.clone()));
            watched.due = at;
            self.due.insert((at, key.clone()));
        }
    }

    /// Looks for everything that is due.
    fn look(&mut self) {
        let now = Instant::now();
        let due: Vec<Key> = self.due.iter().take_while(|(at, _)| *at <= now).map(|(_, key)| key.clone()).collect();
        if due.is_empty() {
            return;
        }
        let processes = facts::processes();
        let own = facts::own(&*self.store);
        let machine = Machine::new(&processes, &own);
        for key in due {
            let Some(watched) = self.watched.get_mut(&key) else { continue };
            let mut finding = match &watched.matcher {
                Ok(matcher) => machine.find(matcher, &facts::hint(&watched.spec.discovery)),
                Err(why) => Finding::NotFound(why.clone()),
            };
            let next = now + watched.spec.interval.to_std();
            if let Finding::Found(pid, start_time) = finding {
                if watched.said.as_ref() != Some(&finding) || watched.handle.is_none() {
                    // Opened after it was read, and read again: the number may have gone to another process in between.
                    watched.handle = pidfd(pid).ok().filter(|_| facts::start_time(pid) == Some(start_time));
                }
                if watched.handle.is_none() {
                    finding = Finding::NotFound("it ended while it was looked at".to_owned());
                }
            } else {
                watched.handle = None;
            }
            if watched.said.as_ref() != Some(&finding) {
                let cgroup = match &finding {
                    Finding::Found(pid, _) => facts::sole_cgroup(&processes, *pid),
                    Finding::NotFound(_) | Finding::Ambiguous(_) => String::new(),
                };
                watched.said = Some(finding.clone());
                // Without a receiver the daemon is ending.
                let _ = self.reports.send(Report { key: key.clone(), generation: watched.generation, finding, cgroup });
            }
            self.schedule(&key, next);
        }
    }

    /// Until something is due, ends, or is asked.
    fn sleep(&mut self, bell: &OwnedFd) {
        let timeout = self.due.first().map(|(at, _)| at.saturating_duration_since(Instant::now()));
        let timeout = timeout.map(|left| Timespec {
            tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        });
        let held: Vec<(&Key, &OwnedFd)> =
            self.watched.iter().filter_map(|(key, watched)| Some((key, watched.handle.as_ref()?))).collect();
        let mut waiting = vec![PollFd::new(bell, PollFlags::IN)];
        waiting.extend(held.iter().map(|(_, handle)| PollFd::from_borrowed_fd(handle.as_fd(), PollFlags::IN)));
        // An interrupted wait looks again, which does no harm.
        let _ = poll(&mut waiting, timeout.as_ref());
        let ended: Vec<Key> = waiting
            .iter()
            .skip(1)
            .zip(&held)
            .filter(|(wait, _)| !wait.revents().is_empty())
            .map(|(_, (key, _))| (*key).clone())
            .collect();
        let rang = !waiting[0].revents().is_empty();
        drop(waiting);
        if rang {
            let _ = rustix::io::read(bell, &mut [0; 8]);
        }
        let now = Instant::now();
        for key in ended {
            let Some(watched) = self.watched.get_mut(&key) else { continue };
            watched.handle = None;
            let finding = Finding::NotFound("it has ended".to_owned());
            watched.said = Some(finding.clone());
            let _ = self.reports.send(Report {
                key: key.clone(),
                generation: watched.generation,
                finding,
                cgroup: String::new(),
            });
            self.schedule(&key, now + SOON);
        }
    }
}

/// A handle of a process: it says when that process ends, whoever gets its number.
pub(super) fn pidfd(pid: i32) -> std::io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).ok_or_else(|| std::io::Error::other("no process has this number"))?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}
