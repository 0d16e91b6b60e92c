//! `logLine`: the output since the attempt's start, read forward once, over rotations.

use std::path::Path;
use std::time::Instant;

use ostler_core::kinds::{LogLine, LogStream, ProbeStatus};
use ostler_core::verdict::{Outcome, shorten};
use ostler_keeper::logs::{Attempts, Filter, Reader, Stream};
use regex::bytes::Regex;

/// The longest part of a line that is matched, bytes.
const LINE: usize = 64 << 10;

/// How far the output of an attempt was read, and what was found.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    reader: Option<Reader>,
    /// The begun line of each stream.
    partial: [Vec<u8>; 2],
    found: Option<Outcome>,
    /// Bytes, for messages.
    read: u64,
}

/// The expressions of a `logLine`.
#[derive(Clone, Debug)]
pub(crate) struct Patterns {
    pub(crate) good: Option<Regex>,
    pub(crate) bad: Option<Regex>,
}

impl Scan {
    /// Goes on from what was found before, which holds until the log has been read as far as it was then.
    pub(crate) fn resume(known: Option<&ProbeStatus>, line: &LogLine) -> Self {
        let found = known.and_then(|known| {
            if known.failures > 0 && line.failure_pattern.is_some() {
                Some(Outcome::Failed(known.output.clone()))
            } else if known.passed {
                Some(Outcome::Passed("the line was found before".to_owned()))
            } else {
                None
            }
        });
        Self { found, ..Self::default() }
    }

    /// Reads what has come since the last call, and judges when it has seen all of it; gives up at `until`. Blocks on
    /// the disk.
    pub(crate) fn check(
        &mut self,
        line: &LogLine,
        patterns: &Patterns,
        directory: &Path,
        attempt: u64,
        until: Instant,
    ) -> Outcome {
        // With a single expression that was found, nothing that comes can change it.
        if line.failure_pattern.is_none()
            && let Some(found) = &self.found
        {
            return found.clone();
        }
        let all = match self.read(line, patterns, directory, attempt, until) {
            Ok(all) => all,
            Err(why) => return Outcome::CannotRun(format!("cannot read the log in {}: {why}", directory.display())),
        };
        if self.found.is_some() && line.failure_pattern.is_none() {
            // Descriptors are for those who wait.
            self.reader = None;
            self.partial = Default::default();
        } else if !all {
            // What comes later decides.
            return Outcome::CannotRun(format!("still reading the log, {} MiB so far", self.read >> 20));
        }
        match &self.found {
            Some(found) => found.clone(),
            None if line.pattern.is_none() => Outcome::Passed("no line matches failurePattern".to_owned()),
            None => Outcome::Failed("no line matches pattern yet".to_owned()),
        }
    }

    /// Reads on; whether to the end.
    fn read(
        &mut self,
        line: &LogLine,
        patterns: &Patterns,
        directory: &Path,
        attempt: u64,
        until: Instant,
    ) -> std::io::Result<bool> {
        if self.reader.is_none() {
            let stream = line.stream.map(|stream| match stream {
                LogStream::Stdout => Stream::Stdout,
                LogStream::Stderr => Stream::Stderr,
            });
            let filter = Filter { attempts: Attempts::Only(attempt), stream, ..Filter::default() };
            self.reader = Some(Reader::open(directory, filter)?);
        }
        while let Some(reader) = &mut self.reader {
            let chunks = reader.poll()?;
            if chunks.is_empty() {
                return Ok(true);
            }
            for chunk in chunks {
                self.read += chunk.data.len() as u64;
                self.take(chunk.stream, &chunk.data, patterns);
            }
            if Instant::now() >= until {
                return Ok(false);
            }
        }
        Ok(true)
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
    fn nothing_is_judged_before_all_of_it_has_been_read() {
        let directory = tempfile::tempdir().unwrap();
        let mut text = b"fatal\n".to_vec();
        text.extend(std::iter::repeat_n(*b"some text\n", 500_000).flatten());
        text.extend_from_slice(b"ready\n");
        std::fs::write(directory.path().join("00000001.log"), text).unwrap();
        // Everything is what attempt 1 wrote to stdout.
        let index = b"ostlridx\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x80\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        std::fs::write(directory.path().join("00000001.idx"), index).unwrap();
        let line: LogLine =
            serde_json::from_value(serde_json::json!({"pattern": "^ready", "failurePattern": "^fatal"})).unwrap();
        let patterns = patterns(line.pattern.as_deref(), line.failure_pattern.as_deref());
        let known = ProbeStatus { passed: true, ..ProbeStatus::default() };
        for known in [None, Some(&known)] {
            let mut scan = Scan::resume(known, &line);
            let mut waits = 0;
            // No time for more than one look.
            let found = loop {
                match scan.check(&line, &patterns, directory.path(), 1, Instant::now()) {
                    Outcome::CannotRun(why) => assert!(why.starts_with("still reading the log"), "{why}"),
                    found @ (Outcome::Passed(_) | Outcome::Failed(_)) => break found,
                }
                waits += 1;
            };
            assert_eq!(found, Outcome::Passed("ready".to_owned()));
            assert!(waits > 10, "{waits}");
        }
    }

    #[test]
    fn what_was_found_before_holds_when_the_log_no_longer_tells() {
        let directory = tempfile::tempdir().unwrap();
        let both: LogLine =
            serde_json::from_value(serde_json::json!({"pattern": "^ready", "failurePattern": "^fatal"})).unwrap();
        let patterns = patterns(both.pattern.as_deref(), both.failure_pattern.as_deref());
        let passed = ProbeStatus { passed: true, ..ProbeStatus::default() };
        let failing = ProbeStatus { failures: 1, output: "fatal: no".to_owned(), ..passed.clone() };
        for (known, expected) in [
            (&passed, Outcome::Passed("the line was found before".to_owned())),
            (&failing, Outcome::Failed("fatal: no".to_owned())),
        ] {
            let found = Scan::resume(Some(known), &both).check(&both, &patterns, directory.path(), 1, Instant::now());
            assert_eq!(found, expected);
        }
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
