//! The thread beside the committer: makes backups, and frees a write that is stuck inside of sled.
//!
//! It sleeps while nothing is written and no backup is due.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::files::unstick;
use super::opening::create_dir;
use crate::core::Shared;
use crate::{BackupError, Health, Revision, backup};

/// How often a write in progress is looked at, and how long one may take before it is helped along.
const LOOK: Duration = Duration::from_secs(1);

/// How the store's own backups fare.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackupStatus {
    /// The last one that was made since the store was opened: what revision it holds, and when it was made.
    pub last: Option<(Revision, SystemTime)>,
    /// Why the last attempt failed, if it did.
    pub error: Option<String>,
}

struct State {
    closing: bool,
    health: Health,
    backup: BackupStatus,
    database: Option<sled::Db>,
}

/// What committer, janitor and the store's callers tell each other.
pub(crate) struct Signals {
    state: Mutex<State>,
    wake: Condvar,
    start: Instant,
    /// Milliseconds from `start` to when the write in progress began, plus one; 0 when there is none.
    writing_since: AtomicU64,
    /// Something was written since the janitor looked.
    active: AtomicBool,
    /// Something durable is not in a backup yet.
    backup_wanted: AtomicBool,
}

impl Signals {
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                closing: false,
                health: Health::Ok,
                backup: BackupStatus::default(),
                database: None,
            }),
            wake: Condvar::new(),
            start: Instant::now(),
            writing_since: AtomicU64::new(0),
            active: AtomicBool::new(false),
            backup_wanted: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn health(&self) -> Health {
        self.lock().health.clone()
    }

    pub(crate) fn set_health(&self, health: Health) {
        self.lock().health = health;
    }

    pub(crate) fn backup_status(&self) -> BackupStatus {
        self.lock().backup.clone()
    }

    pub(crate) fn set_database(&self, database: Option<sled::Db>) {
        let old = std::mem::replace(&mut self.lock().database, database);
        // Closing it does I/O; not under the lock.
        drop(old);
    }

    pub(crate) fn writing(&self, begins: bool) {
        let since = if begins { self.start.elapsed().as_millis() as u64 + 1 } else { 0 };
        self.writing_since.store(since, Ordering::Relaxed);
        if begins && !self.active.swap(true, Ordering::AcqRel) {
            self.notify();
        }
    }

    pub(crate) fn committed(&self, durable: bool) {
        if durable && !self.backup_wanted.swap(true, Ordering::AcqRel) {
            self.active.store(true, Ordering::Release);
            self.notify();
        }
    }

    pub(crate) fn close(&self) {
        self.lock().closing = true;
        self.wake.notify_all();
    }

    /// Under the lock, so that a janitor that is about to wait does not miss it.
    fn notify(&self) {
        let state = self.lock();
        self.wake.notify_all();
        drop(state);
    }

    /// Waits for something to do; false when closing.
    fn wait(&self, busy: bool, due: Option<Instant>) -> bool {
        let state = self.lock();
        let state = if busy {
            // Being woken for every write would cost more than looking once in a while.
            self.wake.wait_timeout_while(state, LOOK, |state| !state.closing).unwrap_or_else(PoisonError::into_inner).0
        } else {
            let idle = |state: &mut State| !state.closing && !self.active.load(Ordering::Acquire);
            match due {
                None => self.wake.wait_while(state, idle).unwrap_or_else(PoisonError::into_inner),
                Some(due) => {
                    let left = due.saturating_duration_since(Instant::now());
                    self.wake.wait_timeout_while(state, left, idle).unwrap_or_else(PoisonError::into_inner).0
                }
            }
        };
        !state.closing
    }

    fn is_stuck(&self) -> bool {
        let since = self.writing_since.load(Ordering::Relaxed);
        let now = self.start.elapsed().as_millis() as u64 + 1;
        since != 0 && now.saturating_sub(since) >= LOOK.as_millis() as u64
    }
}

/// What the janitor works with.
pub(crate) struct Janitor {
    pub(crate) shared: Arc<Shared>,
    pub(crate) signals: Arc<Signals>,
    pub(crate) keeping: Keeping,
}

impl Janitor {
    pub(crate) fn run(self) {
        let mut busy = false;
        let mut not_before = Instant::now();
        loop {
            let wanted = self.signals.backup_wanted.load(Ordering::Acquire);
            if !self.signals.wait(busy, wanted.then_some(not_before)) {
                return;
            }
            busy = self.signals.active.swap(false, Ordering::AcqRel);
            if self.signals.is_stuck() {
                busy = true;
                let database = self.signals.lock().database.clone();
                if let Some(database) = database {
                    unstick(&database);
                }
            }
            if Instant::now() >= not_before && self.signals.backup_wanted.swap(false, Ordering::AcqRel) {
                if self.back_up().is_err() {
                    self.signals.backup_wanted.store(true, Ordering::Release);
                }
                not_before = Instant::now() + self.keeping.interval;
            }
        }
    }

    fn back_up(&self) -> Result<(), BackupError> {
        self.keeping.back_up(&self.shared, &self.signals)
    }
}

/// Where the store's own backups go, and how many are kept.
#[derive(Clone, Debug)]
pub(crate) struct Keeping {
    pub(crate) dir: std::path::PathBuf,
    pub(crate) keep: usize,
    pub(crate) interval: Duration,
}

impl Keeping {
    /// Makes a backup of the current revision unless there is one, and removes the oldest.
    pub(crate) fn back_up(&self, shared: &Shared, signals: &Signals) -> Result<(), BackupError> {
        let made = write_and_prune(shared, &self.dir, self.keep);
        let mut state = signals.lock();
        match made {
            Ok(revision) => {
                state.backup = BackupStatus { last: Some((revision, SystemTime::now())), error: None };
                Ok(())
            }
            Err(error) => {
                state.backup.error = Some(match std::error::Error::source(&error) {
                    Some(source) => format!("{error}: {source}"),
                    None => error.to_string(),
                });
                Err(error)
            }
        }
    }
}

fn write_and_prune(shared: &Shared, dir: &Path, keep: usize) -> Result<Revision, BackupError> {
    let io = |action: &'static str| move |source| BackupError::Io { action, path: dir.to_owned(), source };
    create_dir(dir).map_err(io("create"))?;
    let snapshot = shared.list("");
    let path = backup::path_for(dir, snapshot.revision);
    if !path.exists() {
        backup::write(&snapshot, &path)?;
    }
    backup::prune(dir, keep).map_err(io("remove old backups in"))?;
    Ok(snapshot.revision)
}
