//! Watching objects through restarts of the daemon.
//!
//! [`Watcher`] keeps what it has seen. After a lost connection it goes on from the last revision; when the history no
//! longer reaches back so far, it takes everything anew, leaves out what it knows, and reports as gone what is missing.
//! So its user sees each state once, as if nothing had happened.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use ostler_rpc::v1::{self, watch_event::Type};
use tokio::time::Instant;
use tonic::Code;

use crate::client::Client;
use crate::ctx::Settings;
use crate::error::Error;
use crate::views;

/// A daemon that is away for longer is not restarting.
const RECONNECT_FOR: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(50);

/// What happened to an object.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    /// Created, modified, or there when the watch began.
    Present(Seen),
    Gone(Seen),
    /// Everything that existed has been reported.
    Synced,
}

/// An object at a revision.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) name: String,
    pub(crate) json: Bytes,
    pub(crate) revision: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    namespace: String,
    name: String,
    uid: String,
}

/// A watch that survives the daemon.
pub(crate) struct Watcher {
    settings: Settings,
    selector: v1::Selector,
    stream: Option<tonic::Streaming<v1::WatchBatch>>,
    pending: VecDeque<Change>,
    known: HashMap<Key, Seen>,
    /// While everything is taken anew: what has come so far.
    replayed: Option<HashSet<Key>>,
    revision: u64,
    lost_since: Option<Instant>,
    missed: u64,
}

impl Watcher {
    /// Watches what exists and what happens from now on.
    pub(crate) fn new(settings: &Settings, selector: v1::Selector) -> Self {
        Watcher {
            settings: settings.clone(),
            selector,
            stream: None,
            pending: VecDeque::new(),
            known: HashMap::new(),
            replayed: None,
            revision: 0,
            lost_since: None,
            missed: 0,
        }
    }

    /// The next change. Cancel-safe. Fails when the daemon refuses the watch, is not there at the beginning, or stays
    /// away for a minute.
    pub(crate) async fn next(&mut self) -> Result<Change, Error> {
        loop {
            if let Some(change) = self.pending.pop_front() {
                return Ok(change);
            }
            let result = match &mut self.stream {
                None => self.open().await,
                Some(stream) => match stream.message().await {
                    Ok(Some(batch)) => self.take(batch),
                    Ok(None) => Err(Error::Lost(Box::new(tonic::Status::unavailable("the daemon ended the watch")))),
                    Err(status) if status.code() == Code::OutOfRange => {
                        self.restart();
                        Ok(())
                    }
                    Err(status) => Err(status.into()),
                },
            };
            if let Err(error) = result {
                self.lost(error).await?;
            }
        }
    }

    /// How many events the daemon left out since this was last asked, because they were not read in time.
    pub(crate) fn take_missed(&mut self) -> u64 {
        std::mem::take(&mut self.missed)
    }

    fn restart(&mut self) {
        self.revision = 0;
        self.stream = None;
    }

    async fn open(&mut self) -> Result<(), Error> {
        let mut client = Client::connect_once(&self.settings).await?;
        let request = v1::WatchRequest {
            selector: Some(self.selector.clone()),
            from_revision: self.revision,
            show_secrets: self.settings.show_secrets,
        };
        match client.api.watch(request).await {
            Ok(response) => {
                self.stream = Some(response.into_inner());
                self.replayed = (self.revision == 0).then(HashSet::new);
                Ok(())
            }
            Err(status) if status.code() == Code::OutOfRange && self.revision != 0 => {
                self.restart();
                Ok(())
            }
            Err(status) => Err(status.into()),
        }
    }

    /// Decides whether an error is worth another try, and pauses before it.
    async fn lost(&mut self, error: Error) -> Result<(), Error> {
        self.stream = None;
        if self.replayed.is_some() {
            // The replay did not come to its end: nothing says which revision it stands for.
            self.revision = 0;
        }
        let began = self.revision != 0 || !self.known.is_empty() || self.lost_since.is_some();
        let restarting = matches!(&error, Error::Unreachable { source, .. }
            if source.kind() == std::io::ErrorKind::ConnectionRefused);
        if !error.is_transient() || !(began || restarting || matches!(error, Error::Lost(_))) {
            return Err(error);
        }
        let since = *self.lost_since.get_or_insert_with(Instant::now);
        let patience = if began { RECONNECT_FOR } else { Duration::from_secs(2) };
        if since.elapsed() > patience {
            return Err(error);
        }
        tokio::time::sleep(PAUSE).await;
        Ok(())
    }

    fn take(&mut self, batch: v1::WatchBatch) -> Result<(), Error> {
        self.lost_since = None;
        self.missed += batch.missed;
        for event in batch.events {
            let kind = event.r#type();
            match (kind, event.object) {
                (Type::Bookmark, _) => self.bookmark(),
                (Type::Added | Type::Modified | Type::Deleted, Some(object)) => self.object(kind, object)?,
                (Type::Added | Type::Modified | Type::Deleted, None) | (Type::Unspecified, _) => {}
            }
            // Within a replay the events' revisions are older than the revision to go on from.
            if self.replayed.is_none() {
                self.revision = self.revision.max(event.revision);
            }
        }
        Ok(())
    }

    fn object(&mut self, kind: Type, object: v1::Object) -> Result<(), Error> {
        let meta = views::parse::<views::Bare>(&object.json)?.metadata;
        let key = Key {
            namespace: meta.namespace.unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.unwrap_or_default(),
        };
        let seen = Seen { name: meta.name.unwrap_or_default(), json: object.json, revision: object.revision };
        if kind == Type::Deleted {
            self.known.remove(&key);
            self.pending.push_back(Change::Gone(seen));
            return Ok(());
        }
        if let Some(replayed) = &mut self.replayed {
            replayed.insert(key.clone());
        }
        let old = self.known.insert(key, seen.clone());
        if old.is_none_or(|old| old.revision != seen.revision) {
            self.pending.push_back(Change::Present(seen));
        }
        Ok(())
    }

    fn bookmark(&mut self) {
        let Some(replayed) = self.replayed.take() else { return };
        let missing: Vec<Key> = self.known.keys().filter(|key| !replayed.contains(key)).cloned().collect();
        for key in missing {
            if let Some(seen) = self.known.remove(&key) {
                self.pending.push_back(Change::Gone(seen));
            }
        }
        self.pending.push_back(Change::Synced);
    }
}
