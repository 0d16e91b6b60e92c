//! Streams the output of an instance, and goes on as it grows.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use notify::{RecursiveMode, Watcher};
use ostler_core::Kind;
use ostler_engine::log_dir;
use ostler_keeper::logs::{Attempts, Chunk, Filter, Reader};
use tokio::sync::mpsc;

use crate::error::{ApiError, Reason};
use crate::service::Service;

/// What to read.
#[derive(Clone, Debug)]
pub(crate) struct LogQuery {
    pub(crate) namespace: String,
    pub(crate) instance: String,
    pub(crate) follow: bool,
    pub(crate) filter: Filter,
    /// Nothing before this place.
    pub(crate) after: Option<(u64, u64)>,
}

/// How long a follower waits for a notification before it looks anyway: notifications can be lost.
const LOOK_ANYWAY: Duration = Duration::from_millis(500);

/// Chunks between reader and client; a slow client holds the reader up, never the writer.
const BUFFER: usize = 16;

impl Service {
    /// Starts a thread that reads. The stream ends with the log, or, when following, with the client or the instance.
    pub(crate) fn logs(&self, query: LogQuery) -> Result<mpsc::Receiver<Result<Chunk, ApiError>>, ApiError> {
        for part in [&query.namespace, &query.instance] {
            // Both become parts of a path.
            ostler_core::name::dns_label(part).map_err(ApiError::bad)?;
        }
        self.get(Kind::Instance, &query.namespace, &query.instance)?;
        let directory = self.daemon.state_dir.join(log_dir(&query.namespace, &query.instance));
        let (sender, receiver) = mpsc::channel(BUFFER);
        let service = self.clone();
        std::thread::Builder::new()
            .name("logs".to_owned())
            .spawn(move || {
                if let Err(why) = read(&service, &directory, &query, &sender) {
                    let message = format!("cannot read the log in {}: {why}", directory.display());
                    // The client may be gone, which is one way to end.
                    let _ = sender.blocking_send(Err(ApiError::new(Reason::InternalError, message)));
                }
            })
            .map_err(|why| ApiError::new(Reason::ServiceUnavailable, format!("no thread to read the log: {why}")))?;
        Ok(receiver)
    }

    fn instance_exists(&self, query: &LogQuery) -> bool {
        self.get(Kind::Instance, &query.namespace, &query.instance).is_ok()
    }
}

fn read(
    service: &Service,
    directory: &Path,
    query: &LogQuery,
    sender: &mpsc::Sender<Result<Chunk, ApiError>>,
) -> std::io::Result<()> {
    // Watched before the first read, or what is written in between would wait for the next look.
    let wake = query.follow.then(|| Wake::new(directory));
    let filter = if query.after.is_some() {
        Filter { attempts: Attempts::All, stream: query.filter.stream, since: None, tail: None }
    } else {
        query.filter
    };
    let mut reader = Reader::open(directory, filter)?;
    loop {
        let chunks = reader.poll()?;
        let idle = chunks.is_empty();
        for chunk in chunks {
            let Some(chunk) = cut(chunk, query.after) else { continue };
            if sender.blocking_send(Ok(chunk)).is_err() {
                return Ok(());
            }
        }
        if !idle {
            continue;
        }
        let Some(wake) = &wake else { return Ok(()) };
        if sender.is_closed() || !service.instance_exists(query) {
            return Ok(());
        }
        wake.wait();
    }
}

/// The part of a chunk that lies after a place.
fn cut(mut chunk: Chunk, after: Option<(u64, u64)>) -> Option<Chunk> {
    let Some((sequence, offset)) = after else { return Some(chunk) };
    if chunk.sequence < sequence {
        return None;
    }
    if chunk.sequence == sequence && chunk.offset < offset {
        let skip = usize::try_from(offset - chunk.offset).unwrap_or(usize::MAX);
        if skip >= chunk.data.len() {
            return None;
        }
        chunk.data.drain(..skip);
        chunk.offset = offset;
    }
    Some(chunk)
}

/// Wakes a follower when its log directory changes.
struct Wake {
    changes: std::sync::mpsc::Receiver<()>,
    _watcher: Option<notify::RecommendedWatcher>,
}

impl Wake {
    fn new(directory: &Path) -> Self {
        let (sender, changes) = sync_channel(1);
        let watched = watched(directory);
        let watcher = watcher(sender).and_then(|mut watcher| {
            watcher.watch(&watched, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        Self { changes, _watcher: watcher.ok() }
    }

    fn wait(&self) {
        match self.changes.recv_timeout(LOOK_ANYWAY) {
            Ok(()) | Err(RecvTimeoutError::Timeout) => {}
            // No watcher (the machine has no more inotify instances): look again after the time.
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(LOOK_ANYWAY),
        }
    }
}

fn watcher(sender: SyncSender<()>) -> notify::Result<notify::RecommendedWatcher> {
    notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if !event.is_ok_and(|event| event.kind.is_access()) {
            // Full: the follower will look anyway. Closed: nobody follows any more.
            let _ = sender.try_send(());
        }
    })
}

/// The directory itself, or its nearest ancestor that exists: logs are made with the first byte.
fn watched(directory: &Path) -> PathBuf {
    directory.ancestors().find(|path| path.is_dir()).unwrap_or(directory).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ostler_keeper::logs::Stream;

    fn chunk(sequence: u64, offset: u64, data: &str) -> Chunk {
        Chunk { stream: Stream::Stdout, attempt: 1, at_nanos: 0, data: data.into(), sequence, offset }
    }

    #[test]
    fn a_cursor_cuts_exactly() {
        let text = |chunk: Chunk, after| cut(chunk, after).map(|chunk| String::from_utf8(chunk.data).unwrap());
        assert_eq!(text(chunk(2, 10, "hello"), None).as_deref(), Some("hello"));
        assert_eq!(text(chunk(1, 10, "hello"), Some((2, 0))), None);
        assert_eq!(text(chunk(2, 10, "hello"), Some((2, 12))).as_deref(), Some("llo"));
        assert_eq!(text(chunk(2, 10, "hello"), Some((2, 15))), None);
        assert_eq!(text(chunk(3, 0, "hello"), Some((2, 15))).as_deref(), Some("hello"));
    }
}
