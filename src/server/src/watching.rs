//! What a watch sends, and what becomes of one that is not read in time.
//!
//! A watch of objects has to be complete: when the history no longer reaches back to where the reader is, it ends, and
//! the reader lists again. A watch of events is a view of what happens: it goes on, leaves out the oldest that were not
//! read, and says how many.

use std::collections::VecDeque;

use ostler_rpc::v1;
use ostler_store::{Event, EventKind, Revision, Store, Watch, WatchEnded};
use tokio::sync::mpsc::Sender;
use tonic::Status;

use crate::error::{ApiError, Reason};
use crate::grpc::{PAGE, object};
use crate::secrets::Reveal;
use crate::select::Selection;
use crate::service::Service;

/// How many events wait for a reader.
const MOST: usize = 10_000;

type Batches = Sender<Result<v1::WatchBatch, Status>>;

/// One event of the store as a watcher with a selection sees it; None when it concerns nothing that was selected.
fn watch_event(event: &Event, selection: &Selection) -> Option<v1::WatchEvent> {
    use v1::watch_event::Type;
    let before = event.prior.as_ref().filter(|prior| selection.matches(&event.key, prior));
    let after = match &event.kind {
        EventKind::Put(value) => Some(value).filter(|value| selection.matches(&event.key, value)),
        EventKind::Delete => None,
    };
    let (kind, value) = match (before, after) {
        (None, None) => return None,
        (None, Some(value)) => (Type::Added, value),
        (Some(_), Some(value)) => (Type::Modified, value),
        (Some(value), None) => (Type::Deleted, value),
    };
    Some(v1::WatchEvent { r#type: kind.into(), object: Some(object(value, event.revision)), revision: event.revision })
}

fn ended(why: WatchEnded) -> Status {
    match why {
        WatchEnded::Compacted(why) => ApiError::new(Reason::Expired, why.to_string()).into(),
        WatchEnded::Closed => ApiError::new(Reason::ServiceUnavailable, "the daemon is ending").into(),
    }
}

/// Sends everything that happens, in order, until the reader is gone or too slow for the history.
pub(crate) async fn deliver(
    service: &Service,
    mut watch: Watch,
    selection: &Selection,
    reveal: Reveal,
    batches: &Batches,
) {
    let seen = |event: &Event| {
        let mut seen = watch_event(event, selection)?;
        if let Some(object) = &mut seen.object {
            match service.shown(selection.kind, &object.json, reveal) {
                Ok(json) => object.json = json,
                Err(why) => return Some(Err(why)),
            }
        }
        Some(Ok(seen))
    };
    loop {
        let batch = tokio::select! {
            batch = watch.next() => batch,
            () = batches.closed() => return,
        };
        let message = match batch {
            Ok(events) => {
                let events: Result<Vec<_>, ApiError> = events.iter().filter_map(seen).collect();
                match events {
                    Ok(events) if events.is_empty() => continue,
                    Ok(events) => Ok(v1::WatchBatch { events, missed: 0 }),
                    Err(why) => Err(why.into()),
                }
            }
            Err(why) => Err(ended(why)),
        };
        let over = message.is_err();
        if batches.send(message).await.is_err() || over {
            return;
        }
    }
}

/// What waits for a reader, and how many were left out before it.
#[derive(Default)]
struct Backlog {
    waiting: VecDeque<v1::WatchEvent>,
    missed: u64,
}

impl Backlog {
    fn push(&mut self, event: v1::WatchEvent) {
        if self.waiting.len() == MOST {
            self.waiting.pop_front();
            self.missed += 1;
        }
        self.waiting.push_back(event);
    }

    fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    fn take(&mut self) -> v1::WatchBatch {
        let events = self.waiting.drain(..self.waiting.len().min(PAGE)).collect();
        if self.waiting.is_empty() {
            // A burst makes it large, and it is empty almost always.
            self.waiting = VecDeque::new();
        }
        v1::WatchBatch { events, missed: std::mem::take(&mut self.missed) }
    }
}

/// Sends what happens until the reader is gone. The history is read at once, whether or not the reader keeps up.
pub(crate) async fn shed(store: &dyn Store, mut watch: Watch, selection: &Selection, batches: &Batches) {
    let mut backlog = Backlog::default();
    loop {
        let news = tokio::select! {
            biased;
            news = watch.next() => news,
            permit = batches.reserve(), if !backlog.is_empty() => {
                let Ok(permit) = permit else { return };
                permit.send(Ok(backlog.take()));
                continue;
            }
            () = batches.closed() => return,
        };
        match news {
            Ok(events) => {
                for event in events.iter().filter_map(|event| watch_event(event, selection)) {
                    backlog.push(event);
                }
            }
            // More was written at once than the history holds: what each event is now says how often it happened.
            Err(WatchEnded::Compacted(_)) => {
                let after = watch.revision();
                let snapshot = store.list(&selection.prefix());
                match store.watch(&selection.prefix(), snapshot.revision) {
                    Ok(anew) => watch = anew,
                    // It has moved on in between.
                    Err(_) => continue,
                }
                catch_up(&snapshot.entries, after, selection, &mut backlog);
            }
            Err(why @ WatchEnded::Closed) => {
                let _ = batches.send(Err(ended(why))).await;
                return;
            }
        }
    }
}

/// Everything that was written after a revision, in the order of writing.
fn catch_up(entries: &[ostler_store::Entry], after: Revision, selection: &Selection, backlog: &mut Backlog) {
    let mut changed: Vec<_> =
        entries.iter().filter(|entry| entry.revision > after && selection.matches(&entry.key, &entry.value)).collect();
    changed.sort_by_key(|entry| entry.revision);
    for entry in changed {
        backlog.push(v1::WatchEvent {
            r#type: v1::watch_event::Type::Modified.into(),
            object: Some(object(&entry.value, entry.revision)),
            revision: entry.revision,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use ostler_core::Kind;
    use ostler_store::{Durability, Expect, MemoryStore, Op};
    use serde_json::{Value, json};
    use tokio::sync::mpsc;

    fn put(n: usize, topic: &str) -> Op {
        let value = json!({"metadata": {"name": format!("e{n}")}, "topic": topic, "count": n}).to_string();
        Op::put(format!("events/default/e{n}").into(), value, Expect::Any)
    }

    fn count(event: &v1::WatchEvent) -> u64 {
        let value: Value = serde_json::from_slice(&event.object.as_ref().unwrap().json).unwrap();
        value["count"].as_u64().unwrap()
    }

    fn selection() -> Selection {
        let fields = "topic in (restart,health)".to_owned();
        Selection::parse(&v1::Selector { kind: Kind::Event.name().to_owned(), fields, ..v1::Selector::default() })
            .unwrap()
    }

    async fn commit(store: &dyn Store, ops: Vec<Op>) {
        store.commit(ops, Durability::Lazy).await.unwrap();
    }

    /// A reader that does not read while more than can wait happens.
    #[tokio::test]
    async fn a_reader_that_falls_behind_is_told_how_many_it_missed_and_goes_on() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let watch = store.watch("events/", store.revision()).unwrap();
        let (batches, mut read) = mpsc::channel(1);
        let pump = tokio::spawn({
            let store = Arc::clone(&store);
            async move { shed(&*store, watch, &selection(), &batches).await }
        });
        commit(&*store, vec![put(0, "restart")]).await;
        // The first batch fills the channel, so that everything after it has to wait.
        while read.is_empty() {
            tokio::task::yield_now().await;
        }
        let surplus = 25;
        for n in 1..=MOST + surplus {
            let topic = if n % 2 == 0 { "restart" } else { "health" };
            commit(&*store, vec![put(n, topic), put(100_000 + n, "lifecycle")]).await;
            tokio::task::yield_now().await;
        }
        let first = read.recv().await.unwrap().unwrap();
        assert_eq!((first.missed, first.events.len()), (0, 1));
        let mut counts = Vec::new();
        let mut missed = Vec::new();
        while counts.len() < MOST {
            let batch = read.recv().await.unwrap().unwrap();
            missed.push(batch.missed);
            counts.extend(batch.events.iter().map(count));
        }
        assert_eq!(missed[0], surplus as u64);
        assert!(missed[1..].iter().all(|missed| *missed == 0));
        let expected: Vec<u64> = (surplus as u64 + 1..=(MOST + surplus) as u64).collect();
        assert_eq!(counts, expected, "the latest, in order, of the topics that were asked for");
        commit(&*store, vec![put(77_777, "health")]).await;
        assert_eq!(count(&read.recv().await.unwrap().unwrap().events[0]), 77_777);
        drop(read);
        pump.await.unwrap();
    }

    /// A history that is shorter than what is written before the watch looks again.
    #[tokio::test]
    async fn a_watch_whose_history_is_gone_takes_what_is_there() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let watch = store.watch("events/", store.revision()).unwrap();
        let most = ostler_store::DEFAULT_HISTORY + 50;
        for n in 0..most {
            commit(&*store, vec![put(n, "restart")]).await;
        }
        let (batches, mut read) = mpsc::channel(1);
        let pump = tokio::spawn({
            let store = Arc::clone(&store);
            async move { shed(&*store, watch, &selection(), &batches).await }
        });
        let mut counts = Vec::new();
        while counts.len() < most {
            counts.extend(read.recv().await.unwrap().unwrap().events.iter().map(count));
        }
        assert_eq!(counts, (0..most as u64).collect::<Vec<_>>());
        drop(read);
        pump.await.unwrap();
    }
}
