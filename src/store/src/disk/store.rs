//! The store on disk, as callers see it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::committer::{Committer, Job, Queue};
use super::janitor::{BackupStatus, Janitor, Keeping, Signals};
use super::opening::{self, Layout, Opened};
use super::witness;
use crate::core::{DEFAULT_HISTORY, Shared, validate};
use crate::{
    BackupError, Commit, Compacted, Durability, Entry, Error, Health, Key, Op, OpenError, Revision, Snapshot, Store,
    Watch, backup,
};

/// Where a store is and how it is kept.
#[derive(Clone, Debug)]
pub struct Options {
    /// The store's directory; created, readable by the owner only, when it does not exist.
    pub dir: PathBuf,
    /// Where its backups go. `None`: the directory `backup` beside `dir`.
    pub backups: Option<PathBuf>,
    /// How many backups are kept.
    pub keep_backups: usize,
    /// The least time between two backups that the store makes by itself.
    pub backup_interval: Duration,
    /// How many events the history holds.
    pub history: usize,
    /// The size of sled's own cache in bytes. All entries are in memory anyway: small is right.
    pub cache_bytes: u64,
    /// The identity of the running kernel. `None`: the kernel is asked. Another one than the last time means that the
    /// machine has rebooted.
    pub boot_id: Option<String>,
    /// Told of every commit that has its outcome, and how long it took from its submission. Must not block.
    pub on_commit: Option<fn(Durability, Duration)>,
}

impl Options {
    /// The defaults, for a store in `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            backups: None,
            keep_backups: 3,
            backup_interval: Duration::from_secs(60),
            history: DEFAULT_HISTORY,
            cache_bytes: 1 << 20,
            boot_id: None,
            on_commit: None,
        }
    }

    pub(crate) fn layout(&self) -> Layout {
        Layout::new(&self.dir, self.backups.as_deref())
    }

    pub(crate) fn boot_id(&self) -> Result<String, OpenError> {
        match &self.boot_id {
            Some(id) => Ok(id.clone()),
            None => witness::boot_id().map_err(|source| OpenError::Io {
                action: "read the boot id from",
                path: "/proc/sys/kernel/random/boot_id".into(),
                source,
            }),
        }
    }
}

/// The [`Store`] on disk, in one directory, opened by one process at a time.
///
/// Dropping it closes it: [`close`](Store::close) says whether that worked.
pub struct DiskStore {
    shared: Arc<Shared>,
    queue: Arc<Queue>,
    signals: Arc<Signals>,
    keeping: Keeping,
    running: Mutex<Option<Running>>,
}

struct Running {
    committer: JoinHandle<Result<(), Error>>,
    janitor: JoinHandle<()>,
    /// Released when everything else is done.
    _lock: std::fs::File,
}

impl DiskStore {
    /// Opens the store, creating it if there is none.
    ///
    /// A store that lost or damaged anything acknowledged is refused with [`OpenError::Damaged`] and left as it is. One
    /// that was not closed (kill -9, power loss) is checked in a copy first.
    pub fn open(options: &Options) -> Result<Self, OpenError> {
        let layout = options.layout();
        let Opened { files, head, index, revision, lock } =
            opening::open(&layout, options.cache_bytes, &options.boot_id()?)?;
        let shared = Shared::new(index, revision, options.history);
        let queue = Arc::new(Queue::default());
        let signals = Arc::new(Signals::new());
        let keeping = Keeping {
            dir: layout.backups.clone(),
            keep: options.keep_backups.max(1),
            interval: options.backup_interval,
        };
        let io = layout.io("start the threads of the store in");
        let janitor = Janitor { shared: Arc::clone(&shared), signals: Arc::clone(&signals), keeping: keeping.clone() };
        let mut committer = Committer::new(
            Arc::clone(&shared),
            Arc::clone(&queue),
            Arc::clone(&signals),
            layout,
            options.cache_bytes,
            files,
            head,
        );
        committer.on_commit = options.on_commit;
        let janitor = Builder::new().name("store-janitor".to_owned()).spawn(move || janitor.run()).map_err(&io)?;
        let committer = Builder::new().name("store-committer".to_owned()).spawn(move || committer.run());
        let committer = match committer {
            Ok(committer) => committer,
            Err(error) => {
                signals.close();
                let _ = janitor.join();
                return Err(io(error));
            }
        };
        Ok(Self {
            shared,
            queue,
            signals,
            keeping,
            running: Mutex::new(Some(Running { committer, janitor, _lock: lock })),
        })
    }

    /// How the backups fare that the store makes by itself.
    pub fn backup_status(&self) -> BackupStatus {
        self.signals.backup_status()
    }

    fn stop(&self) -> Result<(), Error> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(running) = running else {
            return Ok(());
        };
        self.queue.close();
        let flushed = running.committer.join().unwrap_or(Err(Error::Closed));
        self.signals.close();
        let _ = running.janitor.join();
        self.shared.close();
        // A full disk may refuse the backup; what matters is in the store, and `backup_status` tells.
        let _ = self.keeping.back_up(&self.shared, &self.signals);
        flushed
    }
}

impl Drop for DiskStore {
    fn drop(&mut self) {
        // Nobody is left to tell; the next open finds out.
        let _ = self.stop();
    }
}

impl Store for DiskStore {
    fn get(&self, key: &Key) -> Option<Entry> {
        self.shared.get(key)
    }

    fn list(&self, prefix: &str) -> Snapshot {
        self.shared.list(prefix)
    }

    fn revision(&self) -> Revision {
        self.shared.read().revision
    }

    fn commit(&self, ops: Vec<Op>, durability: Durability) -> Commit {
        if let Err(error) = validate(&ops) {
            return Commit::known(Err(error));
        }
        let (answer, outcome) = oneshot::channel();
        let job = Job { ops, durability, answer, submitted: Instant::now() };
        match self.queue.push(job) {
            Ok(()) => Commit::pending(outcome),
            Err(_) => Commit::known(Err(Error::Closed)),
        }
    }

    fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, Compacted> {
        self.shared.watch(prefix, from)
    }

    fn trim_history(&self, bytes: usize) {
        self.shared.trim_history(bytes);
    }

    fn health(&self) -> Health {
        self.signals.health()
    }

    fn backup(&self, to: &Path) -> Result<Revision, BackupError> {
        backup::write(&self.shared.list(""), to)
    }

    fn close(&self) -> Result<(), Error> {
        self.stop()
    }
}
