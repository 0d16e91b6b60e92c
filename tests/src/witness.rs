//! What the witness writes, and the checker of it.
//!
//! The witness numbers and checksums its lines, keeps a journal of its own (one appending write per entry), counts the
//! lines it has written in a file per attempt, and holds a lock named after its instance for as long as it lives: the
//! kernel gives that lock to one process at a time and takes it back at its death, however that comes. So a second copy
//! betrays itself, and what the log has to hold is known without asking the daemon.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::proc::Identity;

/// One entry of the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A witness began.
    Start {
        /// Who and where.
        who: Who,
        /// Unix time, nanoseconds.
        at: u128,
    },
    /// A witness is about to exit.
    Stop {
        /// Who.
        who: Who,
        /// With this code.
        code: i32,
        /// Unix time, nanoseconds.
        at: u128,
    },
    /// A witness found another copy of its instance alive.
    Overlap {
        /// The second copy.
        who: Who,
    },
    /// A grandchild in a session of its own began.
    Grandchild {
        /// The grandchild; its attempt is that of its parent.
        who: Who,
    },
}

/// A process of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Who {
    /// `namespace/name`.
    pub instance: String,
    /// Uid of the instance.
    pub uid: String,
    /// Number of the attempt.
    pub attempt: u64,
    /// The process.
    pub process: Identity,
}

/// The exit code that belongs to an attempt.
pub fn code_of(attempt: u64) -> i32 {
    (1 + attempt % 199) as i32
}

/// Line number `sequence` of one stream of an attempt, `length` bytes with its newline.
pub fn line(attempt: &str, stream: char, sequence: u64, length: usize) -> Vec<u8> {
    let head = format!("w {attempt} {stream} {sequence} ");
    // The checksum and the newline.
    let tail = 9;
    let mut line = Vec::with_capacity(length);
    line.extend_from_slice(head.as_bytes());
    let filler = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let wanted = length.saturating_sub(head.len() + tail + 1);
    let first = (sequence % filler.len() as u64) as usize;
    line.extend(filler.iter().cycle().skip(first).take(wanted));
    line.push(b' ');
    let sum = crc32fast::hash(&line);
    line.extend_from_slice(format!("{sum:08x}\n").as_bytes());
    line
}

/// What a blob is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blob {
    /// Every byte there is, zeros and invalid UTF-8 included.
    Binary,
    /// Letters, and never a newline.
    Endless,
    /// Lines of one megabyte.
    Long,
}

impl Blob {
    /// By the word on the witness' command line.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "binary" => Some(Self::Binary),
            "endless" => Some(Self::Endless),
            "long" => Some(Self::Long),
            _ => None,
        }
    }

    /// The bytes: always the same ones.
    pub fn bytes(self, length: usize) -> Vec<u8> {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend_from_slice(&next().to_le_bytes());
        }
        bytes.truncate(length);
        match self {
            Self::Binary => {}
            Self::Endless | Self::Long => {
                for byte in &mut bytes {
                    *byte = b'a' + *byte % 26;
                }
            }
        }
        if self == Self::Long {
            for end in bytes.iter_mut().skip((1 << 20) - 1).step_by(1 << 20) {
                *end = b'\n';
            }
        }
        bytes
    }
}

/// The journal of all witnesses of one daemon.
#[derive(Clone, Debug)]
pub struct Journal {
    directory: PathBuf,
}

impl Journal {
    /// The journal in a directory, which need not exist yet.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Every entry, oldest first.
    pub fn entries(&self) -> Vec<Entry> {
        let text = fs::read_to_string(self.directory.join("journal")).unwrap_or_default();
        // Who reads while somebody writes can see the beginning of an entry.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        text[..whole]
            .lines()
            .map(|line| parse(line).unwrap_or_else(|| panic!("the journal has the line {line:?}")))
            .collect()
    }

    /// The witnesses of an instance (`namespace/name`) that were started, in order, with the times.
    pub fn starts(&self, instance: &str) -> Vec<(Who, u128)> {
        self.entries()
            .into_iter()
            .filter_map(|entry| match entry {
                Entry::Start { who, at } if who.instance == instance => Some((who, at)),
                Entry::Start { .. } | Entry::Stop { .. } | Entry::Overlap { .. } | Entry::Grandchild { .. } => None,
            })
            .collect()
    }

    /// The exit codes that attempts of an instance meant to leave behind, by uid and number.
    pub fn codes(&self, instance: &str) -> BTreeMap<(String, u64), i32> {
        self.entries()
            .into_iter()
            .filter_map(|entry| match entry {
                Entry::Stop { who, code, .. } if who.instance == instance => Some(((who.uid, who.attempt), code)),
                Entry::Start { .. } | Entry::Stop { .. } | Entry::Overlap { .. } | Entry::Grandchild { .. } => None,
            })
            .collect()
    }

    /// The grandchildren of an instance.
    pub fn grandchildren(&self, instance: &str) -> Vec<Who> {
        self.entries()
            .into_iter()
            .filter_map(|entry| match entry {
                Entry::Grandchild { who } if who.instance == instance => Some(who),
                Entry::Start { .. } | Entry::Stop { .. } | Entry::Overlap { .. } | Entry::Grandchild { .. } => None,
            })
            .collect()
    }

    /// No instance ever had two copies, and no attempt was started twice.
    ///
    /// # Panics
    /// When one had.
    pub fn assert_single_copies(&self) {
        let mut seen = std::collections::HashSet::new();
        for entry in self.entries() {
            match entry {
                Entry::Overlap { who } => panic!("a second copy ran: {who:?}; journal: {:#?}", self.entries()),
                Entry::Start { who, .. } => {
                    assert!(seen.insert((who.uid.clone(), who.attempt)), "an attempt was started twice: {who:?}");
                }
                Entry::Stop { .. } | Entry::Grandchild { .. } => {}
            }
        }
    }

    /// Lines that an attempt has written to (stdout, stderr) for sure.
    pub fn written(&self, uid: &str, attempt: u64) -> (u64, u64) {
        let bytes = fs::read(progress_file(&self.directory, &format!("{uid}.{attempt}"))).unwrap_or_default();
        let number =
            |at: usize| bytes.get(at..at + 8).and_then(|part| part.try_into().ok()).map_or(0, u64::from_le_bytes);
        (number(0), number(8))
    }

    /// How many lines each attempt of an instance has written to a stream ('o' or 'e') by now.
    pub fn written_by(&self, instance: &str, uid: &str, stream: char) -> BTreeMap<u64, u64> {
        self.starts(instance)
            .into_iter()
            .filter(|(who, _)| who.uid == uid)
            .map(|(who, _)| {
                let (stdout, stderr) = self.written(uid, who.attempt);
                (who.attempt, if stream == 'o' { stdout } else { stderr })
            })
            .collect()
    }
}

/// Whether `output`, all that is kept of one stream of an instance, has every line that its attempts had `written`, in
/// order, once, unharmed; the number of lines, or what is wrong.
pub fn check_lines(uid: &str, stream: char, written: &BTreeMap<u64, u64>, output: &[u8]) -> Result<u64, String> {
    let mut next: BTreeMap<u64, u64> = BTreeMap::new();
    let mut last_attempt = 0;
    let mut lines = 0;
    for text in output.split_inclusive(|byte| *byte == b'\n') {
        let Some(read) = read_line(text) else {
            return Err(format!("broken line after {lines} good ones: {:?}", String::from_utf8_lossy(text)));
        };
        if read.uid != uid || read.stream != stream {
            return Err(format!("a line of {} {}", read.uid, read.stream));
        }
        if read.attempt < last_attempt {
            return Err(format!("attempt {} after {last_attempt}", read.attempt));
        }
        last_attempt = read.attempt;
        let expected = next.entry(read.attempt).or_default();
        if read.sequence != *expected {
            return Err(format!("attempt {}: line {} where {expected} should be", read.attempt, read.sequence));
        }
        *expected += 1;
        lines += 1;
    }
    for (attempt, wrote) in written {
        let kept = next.get(attempt).copied().unwrap_or_default();
        if kept < *wrote {
            return Err(format!("attempt {attempt} wrote {wrote} lines, {kept} are kept"));
        }
    }
    Ok(lines)
}

/// Where an attempt counts its lines.
pub fn progress_file(directory: &Path, attempt: &str) -> PathBuf {
    directory.join(format!("{attempt}.progress"))
}

struct Line {
    uid: String,
    attempt: u64,
    stream: char,
    sequence: u64,
}

fn read_line(text: &[u8]) -> Option<Line> {
    let text = text.strip_suffix(b"\n")?;
    let (content, sum) = text.split_at_checked(text.len().checked_sub(8)?)?;
    if u32::from_str_radix(std::str::from_utf8(sum).ok()?, 16).ok()? != crc32fast::hash(content) {
        return None;
    }
    let mut words = std::str::from_utf8(content).ok()?.split(' ');
    if words.next()? != "w" {
        return None;
    }
    let (uid, attempt) = words.next()?.rsplit_once('.')?;
    Some(Line {
        uid: uid.to_owned(),
        attempt: attempt.parse().ok()?,
        stream: words.next()?.chars().next()?,
        sequence: words.next()?.parse().ok()?,
    })
}

fn parse(line: &str) -> Option<Entry> {
    let words: Vec<&str> = line.split(' ').collect();
    let (uid, attempt) = words.get(2)?.rsplit_once('.')?;
    let who = Who {
        instance: (*words.get(1)?).to_owned(),
        uid: uid.to_owned(),
        attempt: attempt.parse().ok()?,
        process: Identity { pid: words.get(3)?.parse().ok()?, start: words.get(4)?.parse().ok()? },
    };
    let at = words.get(5)?.parse().ok()?;
    match *words.first()? {
        "start" => Some(Entry::Start { who, at }),
        "stop" => Some(Entry::Stop { who, at, code: words.get(6)?.parse().ok()? }),
        "overlap" => Some(Entry::Overlap { who }),
        "grandchild" => Some(Entry::Grandchild { who }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(sequences: &[u64]) -> Vec<u8> {
        sequences.iter().flat_map(|sequence| line("u.1", 'o', *sequence, 100)).collect()
    }

    fn journal(lines: u64) -> (tempfile::TempDir, Journal) {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("journal"), "start a/b u.1 12 34 56\nstop a/b u.1 12 34 78 2\n").unwrap();
        let mut progress = lines.to_le_bytes().to_vec();
        progress.extend_from_slice(&0_u64.to_le_bytes());
        fs::write(progress_file(directory.path(), "u.1"), progress).unwrap();
        let journal = Journal::new(directory.path().to_owned());
        (directory, journal)
    }

    #[test]
    fn lines_have_the_length_that_was_asked_for() {
        for length in [80, 100, 4096, 1 << 20] {
            assert_eq!(line("some-uid.1", 'o', 7, length).len(), length);
        }
    }

    #[test]
    fn complete_output_passes() {
        let (_directory, journal) = journal(3);
        let written = journal.written_by("a/b", "u", 'o');
        assert_eq!(check_lines("u", 'o', &written, &log(&[0, 1, 2])), Ok(3));
        assert_eq!(journal.codes("a/b")[&("u".to_owned(), 1)], 2);
        journal.assert_single_copies();
    }

    #[test]
    fn harm_to_the_output_is_noticed() {
        let (_directory, journal) = journal(3);
        let written = journal.written_by("a/b", "u", 'o');
        let mut flipped = log(&[0, 1, 2]);
        flipped[150] ^= 1;
        let mut cut = log(&[0, 1, 2]);
        cut.pop();
        for (output, why) in [
            (log(&[0, 1]), "wrote 3 lines, 2 are kept"),
            (log(&[0, 2, 3]), "line 2 where 1 should be"),
            (log(&[0, 1, 1, 2]), "line 1 where 2 should be"),
            (flipped, "broken line after 1"),
            (cut, "broken line after 2"),
        ] {
            let error = check_lines("u", 'o', &written, &output).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        assert!(check_lines("v", 'o', &written, &log(&[0, 1, 2])).is_err());
        assert!(check_lines("u", 'e', &written, &log(&[0, 1, 2])).is_err());
    }

    #[test]
    #[should_panic(expected = "a second copy ran")]
    fn an_overlap_is_noticed() {
        let (directory, journal) = journal(0);
        let text = "start a/b u.1 12 34 56\noverlap a/b u.2 13 34 57\n";
        fs::write(directory.path().join("journal"), text).unwrap();
        journal.assert_single_copies();
    }
}
