//! Writes one log: pipe to file by splice(2), so bytes are neither looked at nor copied through this process, and a
//! kill at any instant leaves each byte either in the pipe or in the file.
//!
//! An index record is written before the bytes it covers, and the file's end is where writing goes on after a crash;
//! so index and file agree at every instant.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{INDEX_HEADER, Mark, RECORD, RECORD_EVERY, Record, Stream, index_path, log_path, sequences};
use crate::fail;
use crate::wire::{LogSettings, LogState};

/// The most bytes one splice moves: what a pipe holds by default, and by how much a file may exceed its limit.
const SPLICE: usize = 64 << 10;

/// How long a log that could not be written is left alone.
pub(crate) const RETRY: Duration = Duration::from_millis(250);

/// What came of moving bytes from a pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Drained {
    /// As much as was allowed was moved; there may be more.
    More,
    /// The pipe is empty for now.
    Empty,
    /// The pipe is empty and nobody can write to it any more.
    End,
    /// The log cannot be written; the bytes stay in the pipe.
    Blocked,
}

#[derive(Debug)]
struct Files {
    log: File,
    index: File,
}

/// The log of an instance.
#[derive(Debug)]
pub(crate) struct Log {
    /// Relative to the state directory.
    pub(crate) directory: Box<str>,
    pub(crate) settings: LogSettings,
    /// Instances that use it: more than one only when a name is used again before its last owner is forgotten.
    pub(crate) users: u32,
    /// Attempts whose pipes are read into it, the oldest first.
    pub(crate) sources: Vec<u32>,
    /// Whether it waits in the list of logs to try again.
    pub(crate) in_blocked_list: bool,
    written: u64,
    dropped: u64,
    blocked: Option<(i32, Instant)>,
    files: Option<Box<Files>>,
    /// The current file; 0 before the directory was looked at.
    sequence: u64,
    size: u64,
    index_size: u64,
    /// Stream, attempt and time of the last index record in the current file.
    last: Option<(Stream, u64, i64)>,
}

impl Log {
    pub(crate) fn new(directory: &str, settings: LogSettings) -> Self {
        Self {
            directory: directory.into(),
            settings,
            users: 0,
            sources: Vec::new(),
            in_blocked_list: false,
            written: 0,
            dropped: 0,
            blocked: None,
            files: None,
            sequence: 0,
            size: 0,
            index_size: 0,
            last: None,
        }
    }

    pub(crate) fn state(&self) -> LogState {
        LogState {
            written: self.written,
            dropped: self.dropped,
            blocked_errno: self.blocked.map_or(0, |(errno, _)| errno),
        }
    }

    /// Goes on counting where a predecessor stopped.
    pub(crate) fn resume_counts(&mut self, state: &LogState) {
        self.written = self.written.max(state.written);
        self.dropped = self.dropped.max(state.dropped);
    }

    /// Counts what is in the files, for want of anything better after a crash.
    pub(crate) fn count_files(&mut self, state_dir: &Path) {
        let directory = state_dir.join(&*self.directory);
        self.written = sequences(&directory)
            .unwrap_or_default()
            .into_iter()
            .filter_map(|sequence| fs::metadata(log_path(&directory, sequence)).ok())
            .map(|metadata| metadata.len())
            .sum();
    }

    /// When a blocked log is to be tried again.
    pub(crate) fn retry_at(&self) -> Option<Instant> {
        self.blocked.map(|(_, at)| at)
    }

    pub(crate) fn is_open(&self) -> bool {
        self.files.is_some()
    }

    /// Closes the files until the next byte; where to go on is remembered.
    pub(crate) fn close(&mut self) {
        self.files = None;
    }

    /// Moves up to about `limit` bytes of an attempt's stream into the log.
    ///
    /// With `drop_when_blocked`, bytes that cannot be written go to `null` and are counted.
    pub(crate) fn drain(
        &mut self,
        state_dir: &Path,
        pipe: BorrowedFd<'_>,
        (stream, attempt): (Stream, u64),
        limit: usize,
        null: BorrowedFd<'_>,
    ) -> Drained {
        let mut moved = 0;
        while moved < limit {
            let blocked = self.blocked.is_some_and(|(_, retry)| Instant::now() < retry);
            let result = if blocked {
                Err(io::ErrorKind::Other.into())
            } else {
                self.splice_once(state_dir, pipe, stream, attempt)
            };
            let outcome = match result {
                Ok(Some(bytes)) => {
                    self.blocked = None;
                    self.written += bytes as u64;
                    moved += bytes;
                    continue;
                }
                Ok(None) => return emptiness(pipe),
                Err(error) => {
                    if !blocked {
                        let errno = error.raw_os_error().unwrap_or(libc::EIO);
                        self.blocked = Some((errno, Instant::now() + RETRY));
                        // A file that was removed or became unusable is opened anew the next time.
                        self.files = None;
                    }
                    if !self.settings.drop_when_blocked {
                        return Drained::Blocked;
                    }
                    crate::sys::splice(pipe, null, None, SPLICE)
                }
            };
            match outcome {
                Ok(0) | Err(_) => return emptiness(pipe),
                Ok(bytes) => {
                    self.dropped += bytes as u64;
                    moved += bytes;
                }
            }
        }
        Drained::More
    }

    /// Moves one portion; `None` when there is nothing in the pipe.
    fn splice_once(
        &mut self,
        state_dir: &Path,
        pipe: BorrowedFd<'_>,
        stream: Stream,
        attempt: u64,
    ) -> io::Result<Option<usize>> {
        let now = crate::sys::unix_nanos();
        let full = self.settings.max_size > 0 && self.size >= self.settings.max_size;
        let due = self.last.is_none_or(|(last_stream, last_attempt, at)| {
            last_stream != stream || last_attempt != attempt || (now - at).unsigned_abs() >= RECORD_EVERY as u64
        });
        if self.files.is_none() || full || due {
            // Nothing is created or recorded for a pipe that is only at its end.
            if rustix::io::ioctl_fionread(pipe)? == 0 {
                return Ok(None);
            }
            self.prepare(state_dir, full)?;
            self.record(stream, attempt, now)?;
        }
        let Some(files) = &self.files else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let mut offset = self.size as i64;
        let result = loop {
            match crate::sys::splice(pipe, files.log.as_fd(), Some(&mut offset), SPLICE) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result,
            }
        };
        match result {
            Ok(0) => Ok(None),
            Ok(bytes) => {
                self.size += bytes as u64;
                Ok(Some(bytes))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes sure that the current file is open, ours, and has room.
    fn prepare(&mut self, state_dir: &Path, full: bool) -> io::Result<()> {
        let directory = state_dir.join(&*self.directory);
        if self.sequence == 0 {
            self.sequence = sequences(&directory)?.last().copied().unwrap_or(0);
        }
        if full {
            return self.begin_next(&directory);
        }
        if let Some(files) = &self.files {
            let metadata = files.log.metadata()?;
            if metadata.nlink() == 0 || metadata.len() < self.size {
                return self.begin_next(&directory);
            }
            return Ok(());
        }
        if self.sequence == 0 || !self.reopen(&directory)? {
            return self.begin_next(&directory);
        }
        Ok(())
    }

    /// Opens the current file to go on at its end; false when it is no longer fit for that.
    fn reopen(&mut self, directory: &Path) -> io::Result<bool> {
        let open = |path: &Path| match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        };
        let Some(log) = open(&log_path(directory, self.sequence))? else {
            return Ok(false);
        };
        let size = log.metadata()?.len();
        let Some(index) = open(&index_path(directory, self.sequence))? else {
            return Ok(false);
        };
        let mut header = [0; RECORD];
        let index_size = index.metadata()?.len() / RECORD as u64 * RECORD as u64;
        if index_size < RECORD as u64 || index.read_exact_at(&mut header, 0).is_err() || header != INDEX_HEADER {
            return Ok(false);
        }
        if index_size > RECORD as u64 {
            let mut bytes = [0; RECORD];
            index.read_exact_at(&mut bytes, index_size - RECORD as u64)?;
            if Record::decode(bytes).is_none_or(|record| record.offset > size) {
                return Ok(false);
            }
        }
        if size < self.size || (self.max_reached(size)) {
            return Ok(false);
        }
        if size != self.size || index_size != self.index_size {
            self.last = None;
        }
        self.size = size;
        self.index_size = index_size;
        self.files = Some(Box::new(Files { log, index }));
        Ok(true)
    }

    fn max_reached(&self, size: u64) -> bool {
        self.settings.max_size > 0 && size >= self.settings.max_size
    }

    /// Begins the next file. The old one stays in use when that fails.
    fn begin_next(&mut self, directory: &Path) -> io::Result<()> {
        let sequence = sequences(directory)?.last().copied().unwrap_or(0).max(self.sequence) + 1;
        let create =
            |path: &Path| OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path);
        // The index first: whoever sees the file finds what its bytes are.
        let index_path = index_path(directory, sequence);
        let index = match create(&index_path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
                create(&index_path)?
            }
            result => result?,
        };
        fail::point("rotate-indexed");
        let log = index.write_all_at(&INDEX_HEADER, 0).and_then(|()| create(&log_path(directory, sequence)));
        let log = match log {
            Ok(log) => log,
            Err(error) => {
                // The next attempt would use it again, but there may be none.
                let _ = fs::remove_file(&index_path);
                return Err(error);
            }
        };
        fail::point("rotate-created");
        self.sequence = sequence;
        self.size = 0;
        self.index_size = RECORD as u64;
        self.last = None;
        self.files = Some(Box::new(Files { log, index }));
        self.prune(directory);
        Ok(())
    }

    /// Removes rotated files beyond the limits. A failure only means that they stay until the next time.
    fn prune(&self, directory: &Path) {
        let (max_files, max_age) = (self.settings.max_files, self.settings.max_age_seconds);
        if max_files == 0 && max_age == 0 {
            return;
        }
        let Ok(sequences) = sequences(directory) else {
            return;
        };
        let surplus = match max_files {
            0 => 0,
            kept => sequences.len().saturating_sub(kept as usize),
        };
        let oldest = SystemTime::now().checked_sub(Duration::from_secs(max_age));
        for (position, sequence) in sequences.into_iter().enumerate() {
            let path = log_path(directory, sequence);
            let is_old = || {
                max_age > 0
                    && fs::metadata(&path)
                        .and_then(|metadata| metadata.modified())
                        .is_ok_and(|modified| oldest.is_some_and(|oldest| modified < oldest))
            };
            if sequence != self.sequence && (position < surplus || is_old()) {
                let _ = fs::remove_file(&path);
                let _ = fs::remove_file(index_path(directory, sequence));
            }
        }
    }

    /// Says in the index what the bytes from here on are.
    fn record(&mut self, stream: Stream, attempt: u64, at: i64) -> io::Result<()> {
        let Some(files) = &self.files else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let record = |mark| Record { offset: self.size, mark }.encode();
        let bytes = record(Mark::Bytes { stream, at });
        if self.last.is_some_and(|(_, last_attempt, _)| last_attempt == attempt) {
            files.index.write_all_at(&bytes, self.index_size)?;
            self.index_size += RECORD as u64;
        } else {
            let mut both = [0; 2 * RECORD];
            both[..RECORD].copy_from_slice(&record(Mark::Attempt(attempt)));
            both[RECORD..].copy_from_slice(&bytes);
            files.index.write_all_at(&both, self.index_size)?;
            self.index_size += 2 * RECORD as u64;
        }
        self.last = Some((stream, attempt, at));
        fail::point("index-recorded");
        Ok(())
    }
}

/// Whether an empty pipe will ever have bytes again.
fn emptiness(pipe: BorrowedFd<'_>) -> Drained {
    let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut polled = [PollFd::from_borrowed_fd(pipe, PollFlags::IN)];
    if poll(&mut polled, Some(&zero)).is_err() {
        return Drained::Empty;
    }
    let seen = polled[0].revents();
    if seen.contains(PollFlags::IN) {
        Drained::More
    } else if seen.contains(PollFlags::HUP) || seen.contains(PollFlags::ERR) {
        Drained::End
    } else {
        Drained::Empty
    }
}
