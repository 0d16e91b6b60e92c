//! Reading the output of instances through restarts of the daemon, and setting it into lines.
//!
//! Every chunk says where the next byte lies; a broken stream goes on exactly there, so nothing is lost and nothing
//! repeated. A chunk without that position cannot be continued after, and the error is passed on.

use std::collections::HashMap;
use std::io::{self, Write};
use std::time::Duration;

use ostler_rpc::v1;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::client::Client;
use crate::ctx::Settings;
use crate::error::Error;
use crate::kinds::Kind;

/// A daemon that is away for longer is not restarting.
const RECONNECT_FOR: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(50);

/// The output of one instance.
pub(crate) struct Tail {
    settings: Settings,
    request: v1::LogsRequest,
    client: Option<Client>,
    stream: Option<tonic::Streaming<v1::LogChunk>>,
    received: bool,
    lost_since: Option<Instant>,
}

impl Tail {
    pub(crate) fn new(settings: &Settings, request: v1::LogsRequest) -> Self {
        Tail { settings: settings.clone(), request, client: None, stream: None, received: false, lost_since: None }
    }

    /// The next chunk; nothing at the end, which following reaches only when the instance is gone.
    pub(crate) async fn next(&mut self) -> Result<Option<v1::LogChunk>, Error> {
        loop {
            let result = match &mut self.stream {
                None => self.open().await,
                Some(stream) => match stream.message().await {
                    Ok(Some(chunk)) => {
                        self.lost_since = None;
                        self.received = true;
                        self.request.resume = chunk.next;
                        return Ok(Some(chunk));
                    }
                    Ok(None) if !self.request.follow => return Ok(None),
                    Ok(None) => self.ended().await,
                    Err(status) => Err(status.into()),
                },
            };
            match result {
                Ok(()) => {}
                Err(error) if error.is_not_found() && (self.received || self.lost_since.is_some()) => return Ok(None),
                Err(error) => self.lost(error).await?,
            }
        }
    }

    async fn open(&mut self) -> Result<(), Error> {
        let mut client = if self.lost_since.is_some() {
            Client::connect_once(&self.settings).await?
        } else {
            Client::connect(&self.settings).await?
        };
        self.stream = Some(client.api.logs(self.request.clone()).await?.into_inner());
        self.client = Some(client);
        Ok(())
    }

    /// The daemon ended a stream that is followed: because the instance is gone, or because it ends itself.
    async fn ended(&mut self) -> Result<(), Error> {
        self.stream = None;
        if let Some(client) = &mut self.client {
            let mut api = client.api.clone();
            let object = crate::client::reference(Kind::Instance, &self.request.namespace, &self.request.instance);
            self.received = true;
            api.get(v1::GetRequest { object: Some(object), ..v1::GetRequest::default() }).await?;
        }
        Err(Error::Lost(Box::new(tonic::Status::unavailable("the daemon ended the stream"))))
    }

    async fn lost(&mut self, error: Error) -> Result<(), Error> {
        self.stream = None;
        // A daemon that was there and goes is restarting; one that was never there is not.
        let began = self.received || self.lost_since.is_some() || !matches!(error, Error::Unreachable { .. });
        // Where to go on is known, or nothing has been received that could be repeated.
        let exact = !self.request.previous && (self.request.resume.is_some() || !self.received);
        if !(error.is_transient() && began && (exact || self.request.resume.is_some())) {
            return Err(error);
        }
        let since = *self.lost_since.get_or_insert_with(Instant::now);
        if since.elapsed() > RECONNECT_FOR {
            return Err(error);
        }
        tokio::time::sleep(PAUSE).await;
        Ok(())
    }
}

/// What a task that reads an instance sends.
pub(crate) struct Piece {
    /// Index of the instance among those that are read.
    pub(crate) index: usize,
    /// A chunk, or how it ended.
    pub(crate) content: Result<v1::LogChunk, Option<Error>>,
}

/// Reads an instance in a task of its own.
pub(crate) fn spawn(index: usize, mut tail: Tail, pieces: mpsc::Sender<Piece>) {
    tokio::spawn(async move {
        loop {
            let content = match tail.next().await {
                Ok(Some(chunk)) => Ok(chunk),
                Ok(None) => Err(None),
                Err(error) => Err(Some(error)),
            };
            let ended = content.is_err();
            if pieces.send(Piece { index, content }).await.is_err() || ended {
                return;
            }
        }
    });
}

/// A line that is longer is written in parts: memory stays bounded whatever a process writes.
const LONGEST: usize = 1 << 20;

/// Sets the output of several instances and streams into whole lines with prefixes.
pub(crate) struct Lines {
    timestamps: bool,
    partial: HashMap<(usize, i32), Vec<u8>>,
}

impl Lines {
    pub(crate) fn new(timestamps: bool) -> Self {
        Lines { timestamps, partial: HashMap::new() }
    }

    /// Writes the lines that a chunk completes.
    pub(crate) fn write(
        &mut self,
        out: &mut dyn Write,
        index: usize,
        prefix: &str,
        chunk: &v1::LogChunk,
    ) -> io::Result<()> {
        let partial = self.partial.entry((index, chunk.stream)).or_default();
        for piece in chunk.data.split_inclusive(|byte| *byte == b'\n') {
            if partial.is_empty() {
                partial.extend_from_slice(prefix.as_bytes());
                if self.timestamps {
                    partial.extend_from_slice(timestamp(chunk.at).as_bytes());
                    partial.push(b' ');
                }
            }
            partial.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                out.write_all(partial)?;
                partial.clear();
            } else if partial.len() > LONGEST {
                out.write_all(partial)?;
                out.write_all(b"\n")?;
                partial.clear();
            }
        }
        Ok(())
    }

    /// Writes what has no end of line yet.
    pub(crate) fn finish(&mut self, out: &mut dyn Write, index: usize) -> io::Result<()> {
        let mut ended: Vec<_> = self.partial.extract_if(|(of, _), _| *of == index).collect();
        ended.sort();
        for (_, partial) in ended.iter().filter(|(_, partial)| !partial.is_empty()) {
            out.write_all(partial)?;
            out.write_all(b"\n")?;
        }
        Ok(())
    }
}

/// RFC 3339 with milliseconds; the time of a chunk is no more exact.
fn timestamp(nanoseconds: i64) -> String {
    let time = jiff::Timestamp::from_nanosecond(nanoseconds.into()).unwrap_or_default();
    format!("{time:.3}")
}

/// Colours of prefixes, in turn.
const COLORS: [&str; 6] = ["\x1b[36m", "\x1b[33m", "\x1b[32m", "\x1b[35m", "\x1b[34m", "\x1b[31m"];

/// "[web-0] ", coloured by its index.
pub(crate) fn prefix(name: &str, index: usize, color: bool) -> String {
    if color { format!("{}[{name}]\x1b[0m ", COLORS[index % COLORS.len()]) } else { format!("[{name}] ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(stream: i32, data: &[u8]) -> v1::LogChunk {
        v1::LogChunk { stream, data: data.to_vec().into(), ..v1::LogChunk::default() }
    }

    #[test]
    fn lines_of_several_streams_are_not_torn() {
        let (mut lines, mut out) = (Lines::new(false), Vec::new());
        lines.write(&mut out, 0, "[a] ", &chunk(1, b"one\ntw")).unwrap();
        lines.write(&mut out, 0, "[a] ", &chunk(2, b"err\n")).unwrap();
        lines.write(&mut out, 1, "[b] ", &chunk(1, b"x")).unwrap();
        lines.write(&mut out, 0, "[a] ", &chunk(1, b"o\n\n")).unwrap();
        lines.finish(&mut out, 1).unwrap();
        lines.finish(&mut out, 0).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "[a] one\n[a] err\n[a] two\n[a] \n[b] x\n");
    }

    #[test]
    fn timestamps_are_those_of_the_beginning_of_a_line() {
        let (mut lines, mut out) = (Lines::new(true), Vec::new());
        lines.write(&mut out, 0, "", &v1::LogChunk { at: 1_500_000_000, ..chunk(1, b"a") }).unwrap();
        lines.write(&mut out, 0, "", &v1::LogChunk { at: 9_000_000_000, ..chunk(1, b"b\n") }).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "1970-01-01T00:00:01.500Z ab\n");
    }

    #[test]
    fn endless_lines_do_not_grow_for_ever() {
        let (mut lines, mut out) = (Lines::new(false), Vec::new());
        for _ in 0..40 {
            lines.write(&mut out, 0, "", &chunk(1, &vec![b'x'; 64 << 10])).unwrap();
        }
        assert!(out.len() >= 2 << 20);
        assert!(lines.partial.values().map(Vec::len).sum::<usize>() <= LONGEST + (64 << 10));
    }
}
