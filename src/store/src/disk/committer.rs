//! The one thread that decides, persists, publishes and answers, in groups.
//!
//! Only this thread changes the visible state, so it stages on top of it without holding readers up.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::oneshot;

use super::files::{Broken, Files};
use super::janitor::Signals;
use super::opening::Layout;
use super::witness::{self, HeadFile};
use crate::core::{Index, Shared, Staging, Stored};
use crate::{Durability, Error, Health, Op, Revision};

/// The most commits that are persisted together.
const GROUP_COMMITS: usize = 256;
/// The most bytes of values that are persisted together, unless one commit alone has more.
const GROUP_BYTES: usize = 4 << 20;
/// How long lazy commits may wait for company.
const LINGER: Duration = Duration::from_millis(20);
/// How often a disk that refuses writes is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// What a disk must take before the database is let near it again: a few segments of sled's.
const TRIAL_BYTES: usize = 2 << 20;

/// One submitted commit.
pub(crate) struct Job {
    pub(crate) ops: Vec<Op>,
    pub(crate) durability: Durability,
    pub(crate) answer: oneshot::Sender<Result<Revision, Error>>,
    pub(crate) submitted: Instant,
}

impl Job {
    fn bytes(&self) -> usize {
        let value = |op: &Op| match op {
            Op::Put { value, .. } => value.len(),
            Op::Delete { .. } => 0,
        };
        self.ops.iter().map(value).sum()
    }

    /// Whoever asked may have gone; the commit stands all the same.
    fn answer(self, result: Result<Revision, Error>) {
        let _ = self.answer.send(result);
    }
}

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    /// How many of them must not linger.
    prompt: usize,
    closing: bool,
}

/// Commits on their way to the committer.
#[derive(Default)]
pub(crate) struct Queue {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the job back when the store is closing.
    pub(crate) fn push(&self, job: Job) -> Result<(), Job> {
        let mut waiting = self.lock();
        if waiting.closing {
            return Err(job);
        }
        let prompt = job.durability != Durability::Lazy;
        waiting.prompt += usize::from(prompt);
        waiting.jobs.push_back(job);
        let count = waiting.jobs.len();
        drop(waiting);
        // A lazy one that joins others changes nothing for a committer that lingers.
        if prompt || count == 1 || count >= GROUP_COMMITS {
            self.arrived.notify_one();
        }
        Ok(())
    }

    pub(crate) fn close(&self) {
        self.lock().closing = true;
        self.arrived.notify_one();
    }

    /// Waits for the next group. `None` once closed and drained, an empty group when `wake` has passed.
    fn next(&self, wake: Option<Instant>) -> Option<Vec<Job>> {
        let mut waiting = self.lock();
        loop {
            let until = match waiting.jobs.front() {
                None if waiting.closing => return None,
                None => wake,
                Some(oldest) => {
                    let lingers = waiting.prompt == 0 && waiting.jobs.len() < GROUP_COMMITS && !waiting.closing;
                    let linger_end = oldest.submitted + LINGER;
                    if !lingers || linger_end <= Instant::now() {
                        return Some(take_group(&mut waiting));
                    }
                    Some(wake.map_or(linger_end, |wake| wake.min(linger_end)))
                }
            };
            waiting = match until {
                None => self.arrived.wait(waiting).unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Some(Vec::new());
                    }
                    self.arrived.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

fn take_group(waiting: &mut Waiting) -> Vec<Job> {
    let mut group = Vec::with_capacity(waiting.jobs.len().min(GROUP_COMMITS));
    let mut bytes = 0;
    while let Some(job) = waiting.jobs.front() {
        bytes += job.bytes();
        if group.len() == GROUP_COMMITS || (bytes > GROUP_BYTES && !group.is_empty()) {
            break;
        }
        waiting.prompt -= usize::from(job.durability != Durability::Lazy);
        group.extend(waiting.jobs.pop_front());
    }
    group
}

/// Why nothing can be written at the moment.
struct Refusing {
    why: Arc<str>,
    since: SystemTime,
    try_again: Instant,
}

/// The committer's own state.
pub(crate) struct Committer {
    pub(crate) shared: Arc<Shared>,
    pub(crate) queue: Arc<Queue>,
    pub(crate) signals: Arc<Signals>,
    pub(crate) layout: Layout,
    pub(crate) cache_bytes: u64,
    /// Closed for good while the disk refuses writes.
    pub(crate) files: Option<Files>,
    pub(crate) head: HeadFile,
    /// Told of every outcome.
    pub(crate) on_commit: Option<fn(Durability, Duration)>,
    refusing: Option<Refusing>,
}

impl Committer {
    pub(crate) fn new(
        shared: Arc<Shared>,
        queue: Arc<Queue>,
        signals: Arc<Signals>,
        layout: Layout,
        cache_bytes: u64,
        files: Files,
        head: HeadFile,
    ) -> Self {
        signals.set_database(files.handle());
        Self { shared, queue, signals, layout, cache_bytes, files: Some(files), head, on_commit: None, refusing: None }
    }

    /// Runs until the queue is closed and drained; returns why the end is not clean, if it is not.
    pub(crate) fn run(mut self) -> Result<(), Error> {
        while let Some(group) = self.queue.next(self.refusing.as_ref().map(|r| r.try_again)) {
            if self.refusing.as_ref().is_some_and(|r| r.try_again <= Instant::now()) {
                self.recover();
            }
            self.commit(group);
        }
        self.finish()
    }

    fn commit(&mut self, group: Vec<Job>) {
        if group.is_empty() {
            return;
        }
        if let Some(refusing) = &self.refusing {
            let why = Arc::clone(&refusing.why);
            return refuse(group.into_iter(), &why);
        }
        let durable = group.iter().any(|job| job.durability == Durability::Durable);
        let state = self.shared.read();
        let mut staging = Staging::on(&state);
        let mut decided = Vec::with_capacity(group.len());
        for mut job in group {
            let ops = std::mem::take(&mut job.ops);
            decided.push((staging.stage(ops), job));
        }
        let mut staged = staging.finish();
        drop(state);

        self.signals.writing(true);
        let persisted = self.persist(&mut staged, durable);
        self.signals.writing(false);
        if let Err(broken) = persisted {
            self.close_files();
            let why = self.refuse_because(&broken);
            // Conflicts, too: they may be with a commit of this very group.
            return refuse(decided.into_iter().map(|(_, job)| job), &why);
        }
        let changed = !staged.events.is_empty();
        self.shared.publish(staged);
        for (result, job) in decided {
            if let Some(told) = self.on_commit {
                told(job.durability, job.submitted.elapsed());
            }
            job.answer(result);
        }
        if changed {
            self.signals.committed(durable);
        }
    }

    fn persist(&mut self, staged: &mut crate::core::Staged, durable: bool) -> Result<(), Broken> {
        let Some(files) = &mut self.files else {
            return Err(Broken::Damage("the database is not open".to_owned()));
        };
        let was_synced = files.is_synced();
        if !staged.events.is_empty() {
            files.write(staged)?;
        }
        if durable {
            files.sync()?;
        }
        let synced = if files.is_synced() { staged.revision } else { self.head.head.durable };
        if !staged.events.is_empty() || files.is_synced() != was_synced {
            self.head.update(staged.revision, synced)?;
        }
        Ok(())
    }

    /// Also when it refuses already: the latest reason is the one to act on.
    fn refuse_because(&mut self, broken: &Broken) -> Arc<str> {
        let dir = self.layout.dir.display();
        let why: Arc<str> = format!("cannot write to {dir}: {}", broken.why()).into();
        let since = self.refusing.as_ref().map_or_else(SystemTime::now, |refusing| refusing.since);
        self.signals.set_health(Health::ReadOnly { why: why.to_string(), since });
        self.refusing = Some(Refusing { why: Arc::clone(&why), since, try_again: Instant::now() + RETRY });
        why
    }

    fn close_files(&mut self) {
        // The database closes with its last handle.
        self.signals.set_database(None);
        self.files = None;
    }

    fn recover(&mut self) {
        if let Err(broken) = self.reopen() {
            self.close_files();
            self.refuse_because(&broken);
        } else {
            self.refusing = None;
            self.signals.set_health(Health::Ok);
        }
    }

    /// Opens the files again and makes them hold what is visible: the write that failed may be in them or not, and
    /// nobody was told that it is.
    fn reopen(&mut self) -> Result<(), Broken> {
        self.try_disk()?;
        let (mut files, found) = Files::open(&self.layout.files(), self.cache_bytes)?;
        let list = self.shared.list("");
        let wanted: Index = list
            .entries
            .into_iter()
            .map(|entry| {
                let stored = Stored { value: entry.value, revision: entry.revision };
                (entry.key, stored)
            })
            .collect();
        files.reconcile(&found, &wanted, list.revision)?;
        files.sync()?;
        self.head.update(list.revision, list.revision)?;
        self.signals.set_database(files.handle());
        self.files = Some(files);
        Ok(())
    }

    fn try_disk(&self) -> Result<(), Broken> {
        use std::io::Write as _;
        let path = self.layout.dir.join("trial");
        let tried = witness::create_private(&path).and_then(|mut file| {
            file.write_all(&vec![0; TRIAL_BYTES])?;
            file.sync_all()
        });
        // Only a leftover file; it is written over the next time.
        let _ = std::fs::remove_file(&path);
        Ok(tried?)
    }

    fn finish(mut self) -> Result<(), Error> {
        if let Some(refusing) = &self.refusing {
            let why = Arc::clone(&refusing.why);
            return Err(Error::ReadOnly { why });
        }
        let revision = self.shared.read().revision;
        let synced = match &mut self.files {
            Some(files) => files.sync(),
            None => Ok(()),
        };
        self.close_files();
        synced
            .and_then(|()| Ok(self.head.update(revision, revision)?))
            .and_then(|()| Ok(witness::mark_clean(&self.layout.dir, &self.layout.files())?))
            .map_err(|broken| Error::ReadOnly { why: broken.why().into() })
    }
}

fn refuse(jobs: impl Iterator<Item = Job>, why: &Arc<str>) {
    for job in jobs {
        job.answer(Err(Error::ReadOnly { why: Arc::clone(why) }));
    }
}
