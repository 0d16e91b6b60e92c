//! Reads logs: any part of them, and on from there as they grow.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use super::{INDEX_HEADER, Mark, RECORD, RECORD_EVERY, Record, index_path, log_path, sequences};

/// The most bytes that one look at a file takes.
const BLOCK: usize = 64 << 10;

/// Which of its outputs a workload wrote to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A log file that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Its place in the order of files.
    pub sequence: u64,
    /// Where it is.
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
    /// Last written to, Unix time in nanoseconds.
    pub modified: i64,
}

/// The log files of a directory, the oldest first. A directory that does not exist has none.
pub fn segments(directory: &Path) -> io::Result<Vec<Segment>> {
    let mut found = Vec::new();
    for sequence in sequences(directory)? {
        let path = log_path(directory, sequence);
        // A file that was pruned since is not an error.
        if let Ok(metadata) = fs::metadata(&path) {
            found.push(Segment { sequence, path, size: metadata.len(), modified: modified(&metadata) });
        }
    }
    Ok(found)
}

fn modified(metadata: &fs::Metadata) -> i64 {
    metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec())
}

/// Whose output to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Attempts {
    /// Everything there is.
    #[default]
    All,
    /// The last attempt that has written anything, and those after it when the log is followed.
    Current,
    /// The attempt before that one.
    Previous,
    /// This attempt.
    Only(u64),
}

/// Which part of a log to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Filter {
    /// Whose output.
    pub attempts: Attempts,
    /// One stream, or both.
    pub stream: Option<Stream>,
    /// Not what was written before this Unix time in nanoseconds (to a tenth of a second, and never too little).
    pub since: Option<i64>,
    /// Only that many lines at the end of what is there now; a last line without a newline counts.
    pub tail: Option<u64>,
}

/// Successive bytes with the same origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Where the workload wrote them.
    pub stream: Stream,
    /// The attempt that wrote them; 0 when the index does not tell.
    pub attempt: u64,
    /// They were written at or (by a tenth of a second at most) after this Unix time in nanoseconds.
    pub at_nanos: i64,
    /// The bytes.
    pub data: Vec<u8>,
    /// The file they are in.
    pub sequence: u64,
    /// Where in the file they begin.
    pub offset: u64,
}

/// A place between two bytes of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    sequence: u64,
    offset: u64,
}

/// Bytes of one file with the same origin.
#[derive(Debug, Clone, Copy)]
struct Run {
    start: u64,
    stream: Stream,
    attempt: u64,
    at: i64,
}

/// A position in a log that moves forward, over rotations, as [`poll`](Self::poll) is called.
///
/// Holds two files open and a few blocks of memory, whatever the size of the log. Files that are pruned while they are
/// being read are read to their end.
#[derive(Debug)]
pub struct Reader {
    directory: PathBuf,
    stream: Option<Stream>,
    /// Nothing of other attempts than this one, when set.
    only: Option<u64>,
    /// Read nothing from here on: the end of the attempt that was asked for.
    until: Option<Place>,
    /// Where to begin, for a file that does not exist yet too.
    next: Place,
    attempt: u64,
    open: Option<OpenSegment>,
}

/// One file with its index, read forward.
#[derive(Debug)]
struct OpenSegment {
    sequence: u64,
    log: File,
    index: Index,
    offset: u64,
    current: Run,
    /// The run after `current`, once its record has been read.
    following: Option<Run>,
}

/// The records of an index, read forward in blocks.
#[derive(Debug)]
struct Index {
    file: Option<File>,
    at: u64,
    block: Vec<u8>,
    used: usize,
    attempt: u64,
    last_offset: u64,
}

impl Index {
    fn open(directory: &Path, sequence: u64, attempt: u64) -> Self {
        let file = File::open(index_path(directory, sequence)).ok().filter(|file| {
            let mut header = [0; RECORD];
            file.read_exact_at(&mut header, 0).is_ok() && header == INDEX_HEADER
        });
        Self { file, at: RECORD as u64, block: Vec::new(), used: 0, attempt, last_offset: 0 }
    }

    /// The next record that makes sense; `None` when there is none yet.
    fn next_record(&mut self) -> Option<Record> {
        loop {
            if self.used + RECORD > self.block.len() {
                let file = self.file.as_ref()?;
                self.block.resize(BLOCK, 0);
                self.used = 0;
                let read = read_up_to(file, &mut self.block, self.at).unwrap_or(0);
                let whole = read / RECORD * RECORD;
                self.block.truncate(whole);
                self.at += whole as u64;
                if whole == 0 {
                    return None;
                }
            }
            let bytes = self.block[self.used..self.used + RECORD].try_into().ok()?;
            self.used += RECORD;
            if let Some(record) = Record::decode(bytes)
                && record.offset >= self.last_offset
            {
                self.last_offset = record.offset;
                return Some(record);
            }
        }
    }

    /// The next run.
    fn next_run(&mut self) -> Option<Run> {
        loop {
            let record = self.next_record()?;
            match record.mark {
                Mark::Attempt(attempt) => self.attempt = attempt,
                Mark::Bytes { stream, at } => {
                    return Some(Run { start: record.offset, stream, attempt: self.attempt, at });
                }
            }
        }
    }
}

fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

impl OpenSegment {
    fn open(directory: &Path, sequence: u64, attempt: u64) -> io::Result<Self> {
        let log = File::open(log_path(directory, sequence))?;
        let at = modified(&log.metadata()?);
        let index = Index::open(directory, sequence, attempt);
        Ok(Self {
            sequence,
            log,
            index,
            offset: 0,
            current: Run { start: 0, stream: Stream::Stdout, attempt, at },
            following: None,
        })
    }

    /// Moves `current` to the run that the byte at `offset` belongs to, and returns where that run ends at most.
    fn locate(&mut self, size: u64) -> u64 {
        loop {
            if self.following.is_none() {
                self.following = self.index.next_run();
            }
            match self.following {
                Some(run) if run.start <= self.offset => {
                    self.current = run;
                    self.following = None;
                }
                Some(run) => return run.start.min(size),
                None => return size,
            }
        }
    }
}

impl Reader {
    /// Positions a reader at the beginning of what `filter` asks for. A log that does not exist yet reads as empty.
    pub fn open(directory: &Path, filter: Filter) -> io::Result<Self> {
        let all = sequences(directory)?;
        let first = Place { sequence: all.first().copied().unwrap_or(1), offset: 0 };
        let mut reader = Self {
            directory: directory.to_owned(),
            stream: filter.stream,
            only: None,
            until: None,
            next: first,
            attempt: 0,
            open: None,
        };
        reader.choose_attempt(&all, filter.attempts);
        if let Some(since) = filter.since {
            reader.skip_before(&all, since)?;
        }
        if let Some(lines) = filter.tail {
            reader.keep_last(&all, lines)?;
        }
        Ok(reader)
    }

    /// Narrows the part to read to an attempt. Without a usable index there are no attempts to tell apart.
    fn choose_attempt(&mut self, all: &[u64], wanted: Attempts) {
        if wanted == Attempts::All {
            return;
        }
        // Each attempt's output is one stretch of the log, in ascending order: the writer never goes back.
        let mut previous: Option<(u64, Place)> = None;
        let mut current: Option<(u64, Place)> = None;
        let mut end = None;
        for sequence in all {
            let mut index = Index::open(&self.directory, *sequence, 0);
            while let Some(record) = index.next_record() {
                let Mark::Attempt(attempt) = record.mark else {
                    continue;
                };
                let place = Place { sequence: *sequence, offset: record.offset };
                if current.is_none_or(|(last, _)| last != attempt) {
                    if let Attempts::Only(only) = wanted
                        && current.is_some_and(|(last, _)| last == only)
                    {
                        end = Some(place);
                        break;
                    }
                    previous = current;
                    current = Some((attempt, place));
                }
            }
            if end.is_some() {
                break;
            }
        }
        let end_of_log = Place { sequence: u64::MAX, offset: 0 };
        match (wanted, current, previous) {
            (Attempts::All, _, _) | (Attempts::Current, None, _) => {}
            (Attempts::Current, Some((attempt, place)), _) => {
                self.next = place;
                self.attempt = attempt;
            }
            (Attempts::Previous, Some((_, until)), Some((attempt, place))) => {
                self.next = place;
                self.attempt = attempt;
                self.only = Some(attempt);
                self.until = Some(until);
            }
            (Attempts::Previous, _, _) => self.until = Some(self.next),
            (Attempts::Only(only), current, _) => {
                self.only = Some(only);
                self.until = end;
                match current {
                    Some((attempt, place)) if attempt == only => self.next = place,
                    // Not written yet, or pruned: whatever comes, only this attempt's is of interest.
                    Some((attempt, _)) if attempt < only => {}
                    Some(_) => self.until = Some(self.next),
                    None => {}
                }
            }
        }
        debug_assert!(self.next <= end_of_log);
    }

    fn skip_before(&mut self, all: &[u64], since: i64) -> io::Result<()> {
        let first = self.next.sequence;
        for sequence in all.iter().filter(|sequence| **sequence >= first) {
            let Ok(mut segment) = OpenSegment::open(&self.directory, *sequence, self.attempt) else {
                continue;
            };
            let metadata = segment.log.metadata()?;
            // The times of files come from a clock that stands still for some milliseconds at a time.
            if modified(&metadata).saturating_add(RECORD_EVERY) < since {
                self.next = Place { sequence: *sequence, offset: metadata.len() };
                continue;
            }
            if segment.index.file.is_none() {
                return Ok(());
            }
            while let Some(run) = segment.index.next_run() {
                // The bytes of a run are up to that much younger than its record says.
                if run.at.saturating_add(RECORD_EVERY) >= since {
                    self.next = self.next.max(Place { sequence: *sequence, offset: run.start });
                    return Ok(());
                }
            }
            self.next = self.next.max(Place { sequence: *sequence, offset: metadata.len() });
        }
        Ok(())
    }

    /// Moves the beginning so that only the last `lines` lines remain, reading backwards.
    fn keep_last(&mut self, all: &[u64], lines: u64) -> io::Result<()> {
        let mut left = lines;
        // A newline that ends the whole does not begin another line.
        let mut at_very_end = true;
        let mut start = None;
        for sequence in all.iter().rev() {
            if *sequence < self.next.sequence || self.until.is_some_and(|until| *sequence > until.sequence) {
                continue;
            }
            let Ok(log) = File::open(log_path(&self.directory, *sequence)) else {
                continue;
            };
            let size = log.metadata()?.len();
            let from = if *sequence == self.next.sequence { self.next.offset.min(size) } else { 0 };
            let mut end = match self.until {
                Some(until) if until.sequence == *sequence => until.offset.min(size),
                _ => size,
            };
            if start.is_none() {
                start = Some(Place { sequence: *sequence, offset: end });
            }
            let mut runs = RunsBackwards::open(&self.directory, *sequence);
            let mut block = vec![0; BLOCK];
            while end > from {
                let run = runs.containing(end - 1);
                let run_start = run.map_or(0, |(start, _)| start).max(from);
                let stream = run.map_or(Stream::Stdout, |(_, stream)| stream);
                if self.stream.is_some_and(|wanted| wanted != stream) {
                    end = run_start;
                    continue;
                }
                let begin = run_start.max(end.saturating_sub(BLOCK as u64));
                let part = &mut block[..(end - begin) as usize];
                let read = read_up_to(&log, part, begin)?;
                for position in (0..read).rev() {
                    if part[position] == b'\n' && !at_very_end {
                        left = left.saturating_sub(1);
                    }
                    if left == 0 {
                        self.next = Place { sequence: *sequence, offset: begin + position as u64 + 1 };
                        return Ok(());
                    }
                    at_very_end = false;
                }
                end = begin;
            }
        }
        if let Some(start) = start
            && lines == 0
        {
            self.next = start;
        }
        Ok(())
    }

    /// What has come since the last call: at most 64 KiB, nothing when there is nothing yet. Call again at once until
    /// it is nothing, then when more may have come.
    ///
    /// # Errors
    /// Only when files cannot be read at all; a missing directory, file or index is not an error.
    pub fn poll(&mut self) -> io::Result<Vec<Chunk>> {
        let mut chunks = Vec::new();
        let mut room = BLOCK;
        while room > 0 {
            if self.open.is_none() && !self.open_next()? {
                break;
            }
            let Some(segment) = &mut self.open else { break };
            let metadata = segment.log.metadata()?;
            let mut size = metadata.len();
            if let Some(until) = self.until {
                if segment.sequence > until.sequence
                    || (segment.sequence == until.sequence && segment.offset >= until.offset)
                {
                    break;
                }
                if segment.sequence == until.sequence {
                    size = size.min(until.offset);
                }
            }
            if segment.offset >= size {
                if self.move_on(metadata.nlink() == 0)? {
                    continue;
                }
                break;
            }
            // The record of a byte is written before the byte, so an index read after the size covers it.
            let end = segment.locate(size).min(segment.offset + room as u64);
            let run = segment.current;
            self.attempt = run.attempt;
            let length = (end - segment.offset) as usize;
            let wanted = self.stream.is_none_or(|stream| stream == run.stream)
                && self.only.is_none_or(|only| only == run.attempt);
            if !wanted {
                segment.offset = end;
                continue;
            }
            let mut data = vec![0; length];
            let read = read_up_to(&segment.log, &mut data, segment.offset)?;
            if read == 0 {
                break;
            }
            data.truncate(read);
            chunks.push(Chunk {
                stream: run.stream,
                attempt: run.attempt,
                at_nanos: run.at,
                data,
                sequence: segment.sequence,
                offset: segment.offset,
            });
            segment.offset += read as u64;
            room -= read;
        }
        Ok(chunks)
    }

    /// Opens the file at `next`, or the first one after it.
    fn open_next(&mut self) -> io::Result<bool> {
        for sequence in sequences(&self.directory)? {
            if sequence < self.next.sequence {
                continue;
            }
            let Ok(mut segment) = OpenSegment::open(&self.directory, sequence, self.attempt) else {
                continue;
            };
            if sequence == self.next.sequence {
                segment.offset = self.next.offset;
            }
            self.open = Some(segment);
            return Ok(true);
        }
        Ok(false)
    }

    /// Leaves a file that was read to its end when it is not the last one any more.
    fn move_on(&mut self, is_removed: bool) -> io::Result<bool> {
        let Some(segment) = &self.open else {
            return Ok(false);
        };
        let next = segment.sequence + 1;
        if !is_removed && !log_path(&self.directory, next).exists() {
            return Ok(false);
        }
        let is_last = !sequences(&self.directory)?.iter().any(|sequence| *sequence >= next);
        // The writer may have added to the file between our look at its size and the rotation.
        let grown = segment.log.metadata()?.len() > segment.offset && self.until.is_none();
        if is_last {
            return Ok(false);
        }
        if !grown {
            self.next = Place { sequence: next, offset: 0 };
            self.open = None;
        }
        Ok(true)
    }
}

/// The runs of an index, looked up from the end towards the beginning.
#[derive(Debug)]
struct RunsBackwards {
    file: Option<File>,
    block: Vec<u8>,
    /// Where in the file the block begins.
    block_at: u64,
    /// How much of the block was not looked at yet, from its beginning.
    left: usize,
}

impl RunsBackwards {
    fn open(directory: &Path, sequence: u64) -> Self {
        let index = Index::open(directory, sequence, 0);
        let size = index
            .file
            .as_ref()
            .and_then(|file| file.metadata().ok())
            .map_or(RECORD as u64, |metadata| metadata.len() / RECORD as u64 * RECORD as u64);
        Self { file: index.file, block: Vec::new(), block_at: size, left: 0 }
    }

    /// The start and the stream of the run that the byte at `offset` belongs to; ask with descending offsets.
    fn containing(&mut self, offset: u64) -> Option<(u64, Stream)> {
        loop {
            if self.left == 0 {
                let file = self.file.as_ref()?;
                let length = (self.block_at - RECORD as u64).min(BLOCK as u64) as usize;
                if length == 0 {
                    return None;
                }
                self.block_at -= length as u64;
                self.block.resize(length, 0);
                if read_up_to(file, &mut self.block, self.block_at).ok()? < length {
                    return None;
                }
                self.left = length;
            }
            let bytes = self.block[self.left - RECORD..self.left].try_into().ok()?;
            match Record::decode(bytes) {
                Some(Record { offset: start, mark: Mark::Bytes { stream, .. } }) if start <= offset => {
                    return Some((start, stream));
                }
                Some(_) | None => self.left -= RECORD,
            }
        }
    }
}
