//! `logLine`: the output since the attempt's start, read forward once, over rotations.

use std::path::Path;

use ostler_core::kinds::{LogLine, LogStream};
use ostler_core::verdict::{Outcome, shorten};
use ostler_keeper::logs::{Attempts, Filter, Reader, Stream};
use regex::bytes::Regex;

/// The longest part of a line that is matched, bytes.
const LINE: usize = 64 << 10;
/// So much is read in one check, bytes; what is left is read by the next ones.
const MOST: usize = 16 << 20;

/// How far the output of an attempt was read, and what was found.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    reader: Option<Reader>,
    /// The begun line of each stream.
    partial: [Vec<u8>; 2],
    found: Option<Outcome>,
}

/// The expressions of a `logLine`.
#[derive(Clone, Debug)]
pub(crate) struct Patterns {
    pub(crate) good: Option<Regex>,
    pub(crate) bad: Option<Regex>,
}

impl Scan {
    /// Goes on from what was found before.
    pub(crate) fn resume(passed: bool, line: &LogLine) -> Self {
        // With a single expression that was found, nothing that comes can change it.
        let settled = passed && line.failure_pattern.is_none();
        Self { found: settled.then(|| Outcome::Passed("the line was found before".to_owned())), ..Self::default() }
    }

    /// Reads what has come since the last call. Blocks on the disk.
    pub(crate) fn check(&mut self, line: &LogLine, patterns: &Patterns, directory: &Path, attempt: u64) -> Outcome {
        if line.failure_pattern.is_none()
            && let Some(found) = &self.found
        {
            return found.clone();
        }
        if let Err(why) = self.read(line, patterns, directory, attempt) {
            return Outcome::CannotRun(format!("cannot read the log in {}: {why}", directory.display()));
        }
        if self.found.is_some() && line.failure_pattern.is_none() {
            // Descriptors are for those who wait.
            self.reader = None;
            self.partial = Default::default();
        }
        match &self.found {
            Some(found) => found.clone(),
            None if line.pattern.is_none() => Outcome::Passed("no line matches failurePattern".to_owned()),
            None => Outcome::Failed("no line matches pattern yet".to_owned()),
        }
    }

    fn read(&mut self, line: &LogLine, patterns: &Patterns, directory: &Path, attempt: u64) -> std::io::Result<()> {
        if self.reader.is_none() {
            let stream = line.stream.map(|stream| match stream {
                LogStream::Stdout => Stream::Stdout,
                LogStream::Stderr => Stream::Stderr,
            });
            let filter = Filter { attempts: Attempts::Only(attempt), stream, ..Filter::default() };
            self.reader = Some(Reader::open(directory, filter)?);
        }
        let mut read = 0;
        while read < MOST {
            let Some(reader) = &mut self.reader else { break };
            let chunks = reader.poll()?;
            if chunks.is_empty() {
                break;
            }
            for chunk in chunks {
                read += chunk.data.len();
                self.take(chunk.stream, &chunk.data, patterns);
            }
        }
        Ok(())
    }

    fn take(&mut self, stream: Stream, data: &[u8], patterns: &Patterns) {
        let index = match stream {
            Stream::Stdout => 0,
            Stream::Stderr => 1,
        };
        let mut rest = data;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (line, after) = (&rest[..end], &rest[end + 1..]);
            if self.partial[index].is_empty() {
                self.judge(line, patterns);
            } else {
                let mut whole = std::mem::take(&mut self.partial[index]);
                whole.extend_from_slice(&line[..line.len().min(LINE.saturating_sub(whole.len()))]);
                self.judge(&whole, patterns);
            }
            rest = after;
        }
        let partial = &mut self.partial[index];
        partial.extend_from_slice(&rest[..rest.len().min(LINE.saturating_sub(partial.len()))]);
    }

    fn judge(&mut self, line: &[u8], patterns: &Patterns) {
        let line = &line[..line.len().min(LINE)];
        let is = |regex: &Option<Regex>| regex.as_ref().is_some_and(|regex| regex.is_match(line));
        let said = || shorten(&String::from_utf8_lossy(&line[..line.len().min(1024)])).to_owned();
        if is(&patterns.bad) {
            self.found = Some(Outcome::Failed(said()));
        } else if is(&patterns.good) {
            self.found = Some(Outcome::Passed(said()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(good: Option<&str>, bad: Option<&str>) -> Patterns {
        let regex = |text: Option<&str>| text.map(|text| Regex::new(text).unwrap());
        Patterns { good: regex(good), bad: regex(bad) }
    }

    #[test]
    fn lines_are_put_together_per_stream_and_the_last_one_decides() {
        let mut scan = Scan::default();
        let patterns = patterns(Some("^ready$"), Some("fatal"));
        scan.take(Stream::Stdout, b"rea", &patterns);
        scan.take(Stream::Stderr, b"noise\nno", &patterns);
        assert_eq!(scan.found, None);
        scan.take(Stream::Stdout, b"dy\nmore", &patterns);
        assert_eq!(scan.found, Some(Outcome::Passed("ready".to_owned())));
        scan.take(Stream::Stderr, b"thing fatal\n", &patterns);
        assert_eq!(scan.found, Some(Outcome::Failed("nothing fatal".to_owned())));
        scan.take(Stream::Stdout, &vec![b'x'; 200_000], &patterns);
        assert!(scan.partial[0].len() <= LINE);
        scan.take(Stream::Stdout, b"\nready\n", &patterns);
        assert_eq!(scan.found, Some(Outcome::Passed("ready".to_owned())));
    }
}
