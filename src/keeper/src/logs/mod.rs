//! Log files: their format, the keeper's [`writer`](self) of them, and the [`Reader`] for whoever serves them.
//!
//! A log directory holds `<sequence, 8 digits>.log`, the raw bytes of both streams in order of arrival, and beside each
//! `<sequence>.idx`, which says from which offset on bytes came from which stream, attempt and time. Only the keeper
//! writes. The reader never trusts the index: without a usable one everything is stdout, as old as the file.

mod reader;
mod writer;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub use reader::{Attempts, Chunk, Filter, Reader, Segment, Stream, segments};
pub(crate) use writer::{Drained, Log};

/// The first bytes of an index: a name and a version.
const INDEX_HEADER: [u8; 16] = *b"ostlridx\x01\0\0\0\0\0\0\0";

/// Size of the header and of each record after it, bytes.
const RECORD: usize = 16;

/// A record is due when the last one is older than this, nanoseconds.
const RECORD_EVERY: i64 = 100_000_000;

const OFFSET_BITS: u32 = 62;

/// What an index record says about the bytes from its offset on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    /// They came from this stream, at or after this Unix time in nanoseconds.
    Bytes { stream: Stream, at: i64 },
    /// They are an attempt's; a `Bytes` record follows.
    Attempt(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Record {
    offset: u64,
    mark: Mark,
}

impl Record {
    fn encode(self) -> [u8; RECORD] {
        let (tag, word) = match self.mark {
            Mark::Bytes { stream: Stream::Stdout, at } => (0, at as u64),
            Mark::Bytes { stream: Stream::Stderr, at } => (1, at as u64),
            Mark::Attempt(attempt) => (2, attempt),
        };
        let mut bytes = [0; RECORD];
        bytes[..8].copy_from_slice(&(self.offset | tag << OFFSET_BITS).to_le_bytes());
        bytes[8..].copy_from_slice(&word.to_le_bytes());
        bytes
    }

    fn decode(bytes: [u8; RECORD]) -> Option<Self> {
        let (first, second) = bytes.split_at(8);
        let first = u64::from_le_bytes(first.try_into().ok()?);
        let word = u64::from_le_bytes(second.try_into().ok()?);
        let bytes = |stream| Mark::Bytes { stream, at: word as i64 };
        let mark = match first >> OFFSET_BITS {
            0 => bytes(Stream::Stdout),
            1 => bytes(Stream::Stderr),
            2 => Mark::Attempt(word),
            _ => return None,
        };
        Some(Self { offset: first & ((1 << OFFSET_BITS) - 1), mark })
    }
}

fn log_path(directory: &Path, sequence: u64) -> PathBuf {
    directory.join(format!("{sequence:08}.log"))
}

fn index_path(directory: &Path, sequence: u64) -> PathBuf {
    directory.join(format!("{sequence:08}.idx"))
}

/// The sequence numbers of the log files there are, ascending. No directory means none.
fn sequences(directory: &Path) -> io::Result<Vec<u64>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        if let Some(sequence) = name
            .to_str()
            .and_then(|name| name.strip_suffix(".log"))
            .filter(|digits| digits.len() >= 8 && digits.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|digits| digits.parse().ok())
        {
            found.push(sequence);
        }
    }
    found.sort_unstable();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_encoding() {
        for mark in [
            Mark::Bytes { stream: Stream::Stdout, at: 1 },
            Mark::Bytes { stream: Stream::Stderr, at: i64::MAX },
            Mark::Attempt(7),
        ] {
            let record = Record { offset: (1 << OFFSET_BITS) - 1, mark };
            assert_eq!(Record::decode(record.encode()), Some(record));
        }
        assert_eq!(Record::decode([0xff; RECORD]), None);
    }
}
