//! The output of processes, read from the log files and given to the collector.
//!
//! On a thread of its own, that reads only as fast as the collector takes: what does not fit into the queue stays in the
//! files. A log is followed from where it stood when this controller began; those of newer instances from their
//! beginning.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use ostler_core::Kind;
use ostler_core::kinds::Instance;
use ostler_engine::log_dir;
use ostler_keeper::logs::{Attempts, Chunk, Filter, Reader, Stream};
use ostler_store::{Store, Watch};
use ostler_telemetry::{Output, Records};
use tracing::{debug, error};

/// How often the files are looked at.
const EVERY: Duration = Duration::from_millis(500);
/// Logs that are held open at the same time; each takes two descriptors.
const MOST: usize = 1000;
/// A longer line is cut in pieces of this size.
const LINE: usize = 16 << 10;
/// The least room to read for: what one look can bring.
const ROOM: usize = 1024;

/// One instance that is followed.
struct Follower {
    reader: Reader,
    namespace: String,
    process: String,
    name: String,
    uid: String,
    /// The beginning of a line whose end has not come, by stream.
    parts: [Vec<u8>; 2],
}

/// Ends the thread when dropped.
pub(crate) struct Forwarding(#[allow(dead_code, reason = "held for its drop")] Sender<()>);

/// Starts the thread.
pub(crate) fn forward(records: Records, store: Arc<dyn Store>, state_dir: PathBuf) -> Forwarding {
    let (alive, ended) = channel();
    let work = move || {
        let mut forwarder = Forwarder { records, store, state_dir, followers: HashMap::new(), watch: None };
        loop {
            forwarder.look();
            match ended.recv_timeout(EVERY) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(()) | Err(RecvTimeoutError::Disconnected) => {
                    forwarder.look();
                    return;
                }
            }
        }
    };
    if let Err(why) = std::thread::Builder::new().name("output".to_owned()).spawn(work) {
        error!(%why, "no thread to forward the output of processes");
    }
    Forwarding(alive)
}

struct Forwarder {
    records: Records,
    store: Arc<dyn Store>,
    state_dir: PathBuf,
    /// By uid.
    followers: HashMap<String, Follower>,
    /// Changes of instances; none before the first look, or after it fell behind.
    watch: Option<Watch>,
}

impl Forwarder {
    fn look(&mut self) {
        self.find();
        for follower in self.followers.values_mut() {
            while self.records.room() >= ROOM {
                match follower.reader.poll() {
                    Ok(chunks) if chunks.is_empty() => break,
                    Ok(chunks) => chunks.into_iter().for_each(|chunk| follower.take(&chunk, &self.records)),
                    Err(why) => {
                        debug!(instance = follower.name, %why, "cannot read its log");
                        break;
                    }
                }
            }
        }
    }

    /// Takes up instances that are new, and drops those that are gone.
    fn find(&mut self) {
        let prefix = format!("{}/", Kind::Instance.plural());
        let first = self.watch.is_none() && self.followers.is_empty();
        if let Some(watch) = &mut self.watch {
            match watch.try_next() {
                Ok(None) => return,
                Ok(Some(_)) => {}
                Err(_) => self.watch = None,
            }
        }
        let snapshot = self.store.list(&prefix);
        if self.watch.is_none() {
            self.watch = self.store.watch(&prefix, snapshot.revision).ok();
        }
        let mut gone: HashMap<String, Follower> = std::mem::take(&mut self.followers);
        for entry in snapshot.entries {
            let Ok(instance) = serde_json::from_slice::<Instance>(&entry.value) else { continue };
            let uid = instance.metadata.uid;
            if let Some(known) = gone.remove(&*uid) {
                self.followers.insert(uid, known);
                continue;
            }
            if self.followers.len() >= MOST || instance.status.attempt == 0 {
                continue;
            }
            let (namespace, name) = (instance.metadata.namespace, instance.metadata.name);
            let directory = self.state_dir.join(log_dir(&namespace, &name));
            let tail = first.then_some(0);
            let filter = Filter { attempts: Attempts::All, stream: None, since: None, tail };
            match Reader::open(&directory, filter) {
                Ok(reader) => {
                    let process = instance.spec.owner().to_owned();
                    let parts = [Vec::new(), Vec::new()];
                    self.followers.insert(uid.clone(), Follower { reader, namespace, process, name, uid, parts });
                }
                Err(why) => debug!(instance = name, %why, "cannot open its log"),
            }
        }
    }
}

impl Follower {
    fn take(&mut self, chunk: &Chunk, records: &Records) {
        let stderr = chunk.stream == Stream::Stderr;
        let mut rest = chunk.data.as_slice();
        while !rest.is_empty() {
            let part = &mut self.parts[usize::from(stderr)];
            let room = LINE - part.len();
            let end = rest.iter().take(room).position(|byte| *byte == b'\n');
            let taken = end.unwrap_or(rest.len().min(room));
            part.extend_from_slice(&rest[..taken]);
            rest = &rest[taken + usize::from(end.is_some())..];
            if end.is_some() || part.len() == LINE {
                let line = std::mem::take(part);
                records.put(&Output {
                    namespace: &self.namespace,
                    process: &self.process,
                    instance: &self.name,
                    uid: &self.uid,
                    attempt: chunk.attempt,
                    stderr,
                    at_nanos: chunk.at_nanos,
                    line: &line,
                });
            }
        }
    }
}
