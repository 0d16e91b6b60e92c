//! The journal: what was started, with which identity, and how it ended.
//!
//! It has to survive the death of keeper and controller, not a power loss (after which the boot id differs and nothing
//! runs any more), so there is no fsync. A record is one write; a torn one at the end is cut off when the file is
//! opened. When the disk is full an Intent fails, and with it the spawn; later records wait in memory for room.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use prost::Message as _;

use crate::wire::JournalRecord;

/// The journal is rewritten when it is longer than this and mostly superseded, bytes.
const REWRITE_ABOVE: u64 = 1 << 20;

#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    length: u64,
    /// Length at which it is worth looking whether a rewrite makes the file shorter.
    rewrite_at: u64,
    /// Encoded records that the disk had no room for.
    waiting: Vec<u8>,
}

impl Journal {
    /// Opens or creates the journal and returns the records in it.
    pub(crate) fn open(path: &Path) -> io::Result<(Self, Vec<JournalRecord>)> {
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let (records, length) = decode(&bytes);
        file.set_len(length)?;
        let journal = Self { path: path.to_owned(), file, length, rewrite_at: REWRITE_ABOVE, waiting: Vec::new() };
        Ok((journal, records))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a record before what it announces is done.
    pub(crate) fn append(&mut self, record: impl Into<JournalRecord>) -> io::Result<()> {
        self.write_waiting()?;
        let mut bytes = Vec::with_capacity(256);
        encode(&record.into(), &mut bytes);
        self.write(&bytes)
    }

    /// Records what has happened already: now, or as soon as there is room.
    pub(crate) fn note(&mut self, record: impl Into<JournalRecord>) {
        encode(&record.into(), &mut self.waiting);
        // The caller retries while `is_waiting`.
        let _ = self.write_waiting();
    }

    /// Whether records wait for room on the disk.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Tries again to write what waits.
    pub(crate) fn write_waiting(&mut self) -> io::Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let waiting = std::mem::take(&mut self.waiting);
        let result = self.write(&waiting);
        if result.is_err() {
            self.waiting = waiting;
        }
        result
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self.file.write_at(bytes, self.length) {
            Ok(written) if written == bytes.len() => {
                self.length += written as u64;
                Ok(())
            }
            // A partial record lies beyond `length`: the next write goes over it, and a reader stops before it.
            Ok(_) => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
            Err(error) => Err(error),
        }
    }

    /// Whether the journal has become long enough for [`rewrite`](Self::rewrite).
    pub(crate) fn is_long(&self) -> bool {
        self.length >= self.rewrite_at
    }

    /// Replaces the journal by these records, all of what is still of interest. A failure leaves the old one in use.
    pub(crate) fn rewrite(&mut self, records: impl Iterator<Item = JournalRecord>) -> io::Result<()> {
        let mut bytes = Vec::new();
        for record in records {
            encode(&record, &mut bytes);
        }
        // Whatever comes of this attempt, the next is not due before the file has grown again.
        self.rewrite_at = (self.length.max(bytes.len() as u64) * 2).max(REWRITE_ABOVE);
        let temporary = self.path.with_extension("new");
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all_at(&bytes, 0)?;
        fs::rename(&temporary, &self.path)?;
        self.file = file;
        self.length = bytes.len() as u64;
        self.rewrite_at = (self.length * 2).max(REWRITE_ABOVE);
        self.waiting.clear();
        Ok(())
    }
}

impl AsFd for Journal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn encode(record: &JournalRecord, to: &mut Vec<u8>) {
    let body = record.encode_to_vec();
    to.extend_from_slice(&(body.len() as u32).to_le_bytes());
    to.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
    to.extend_from_slice(&body);
}

/// The records up to the first that is torn or damaged, and the length they take.
fn decode(bytes: &[u8]) -> (Vec<JournalRecord>, u64) {
    let mut records = Vec::new();
    let mut at = 0;
    while let Some(header) = bytes.get(at..at + 8) {
        let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let sum = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
        let Some(body) = bytes.get(at + 8..at + 8 + length) else {
            break;
        };
        // An all-zero header would be a valid empty record; real records are never empty.
        if length == 0 || crc32fast::hash(body) != sum {
            break;
        }
        let Ok(record) = JournalRecord::decode(body) else {
            break;
        };
        records.push(record);
        at += 8 + length;
    }
    (records, at as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Forgotten;

    fn record(attempt: u64) -> JournalRecord {
        Forgotten { id: "an-instance".to_owned(), attempt }.into()
    }

    #[test]
    fn what_was_written_is_read_and_a_torn_tail_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (mut journal, records) = Journal::open(&path).unwrap();
        assert!(records.is_empty());
        for attempt in 1..=3 {
            journal.append(record(attempt)).unwrap();
        }
        drop(journal);
        let whole = fs::read(&path).unwrap();
        for cut in (whole.len() / 3 * 2 + 1)..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let (mut journal, records) = Journal::open(&path).unwrap();
            assert_eq!(records, [record(1), record(2)]);
            journal.append(record(9)).unwrap();
            let (_, records) = Journal::open(&path).unwrap();
            assert_eq!(records, [record(1), record(2), record(9)]);
        }
    }

    #[test]
    fn a_flipped_bit_ends_the_reading_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (mut journal, _) = Journal::open(&path).unwrap();
        journal.append(record(1)).unwrap();
        journal.append(record(2)).unwrap();
        drop(journal);
        let whole = fs::read(&path).unwrap();
        for position in whole.len() / 2..whole.len() {
            let mut damaged = whole.clone();
            damaged[position] ^= 0x10;
            assert_eq!(decode(&damaged).0, [record(1)]);
        }
    }

    #[test]
    fn rewriting_keeps_the_records_given_and_appending_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (mut journal, _) = Journal::open(&path).unwrap();
        for attempt in 1..=100 {
            journal.append(record(attempt)).unwrap();
        }
        journal.rewrite([record(100)].into_iter()).unwrap();
        journal.append(record(101)).unwrap();
        drop(journal);
        let (_, records) = Journal::open(&path).unwrap();
        assert_eq!(records, [record(100), record(101)]);
    }
}
