//! Writes without waiting: what changed is remembered, sent in batches, and reported when it is in the store.
//!
//! An object that changes again while a batch is under way is written once more afterwards, however often it changed.

use std::collections::HashSet;
use std::sync::Arc;

use ostler_core::{Span, Timestamp};
use ostler_store::{Durability, Error, Op, Revision, Store};
use tokio::sync::mpsc;

use super::world::Id;

/// So many changed instances are written at once.
const FEW: usize = 16;

/// What became of a commit.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) ticket: Ticket,
    pub(crate) result: Result<Revision, Error>,
}

/// What a commit was about.
#[derive(Debug)]
pub(crate) enum Ticket {
    /// The lazy lane: instances with the version that was written.
    Batch(Vec<(Id, u64)>),
    /// Records of instances that did not exist before, or whose spec changed.
    Records(Vec<(Id, u64)>),
    /// The record of an instance is deleted.
    Removed(Id),
    /// Status or removal of a process.
    Process(Id),
    /// Likewise of a job.
    Job(Id),
    /// Likewise of a cronjob, with the job it makes.
    CronJob(Id),
    /// Likewise of a namespace.
    Namespace(Id),
    /// Somebody waits for it.
    Reply(Vec<(Id, u64)>, tokio::sync::oneshot::Sender<Result<Revision, Error>>),
}

pub(crate) struct Writer {
    store: Arc<dyn Store>,
    dirty: HashSet<Id>,
    /// Since when there is something to write.
    dirty_since: Option<Timestamp>,
    batch_under_way: bool,
    /// After a failure nothing is tried before the next tick.
    held_back: bool,
    outcomes: mpsc::UnboundedSender<Outcome>,
    arrived: mpsc::UnboundedReceiver<Outcome>,
    pending: usize,
}

impl Writer {
    pub(crate) fn new(store: Arc<dyn Store>) -> Self {
        let (outcomes, arrived) = mpsc::unbounded_channel();
        Self {
            store,
            dirty: HashSet::new(),
            dirty_since: None,
            batch_under_way: false,
            held_back: false,
            outcomes,
            arrived,
            pending: 0,
        }
    }

    /// The instance has to be written, some time soon.
    pub(crate) fn mark(&mut self, id: &Id) {
        if !self.dirty.contains(id) {
            self.dirty.insert(id.clone());
        }
    }

    /// When the next batch goes, if nothing keeps it from going. The more instances change at the same time, the longer
    /// they wait: most of them change again in a moment, and need to be written once.
    pub(crate) fn batch_due(&mut self, now: Timestamp) -> Option<Timestamp> {
        if self.dirty.is_empty() {
            return None;
        }
        let since = *self.dirty_since.get_or_insert(now);
        self.may_batch().then(|| since + linger(self.dirty.len()))
    }

    /// Whether the instance had to be written; it has not any more.
    pub(crate) fn take_mark(&mut self, id: &Id) -> bool {
        let was_marked = self.dirty.remove(id);
        if self.dirty.is_empty() {
            self.dirty_since = None;
        }
        was_marked
    }

    /// What to put into the next batch, at most `most`; None when there is nothing to write or a batch is under way.
    pub(crate) fn next_batch(&mut self, most: usize) -> Option<Vec<Id>> {
        if self.batch_under_way || self.held_back || self.dirty.is_empty() {
            return None;
        }
        let ids: Vec<Id> = self.dirty.iter().take(most).cloned().collect();
        for id in &ids {
            self.dirty.remove(id);
        }
        if self.dirty.is_empty() {
            self.dirty_since = None;
        }
        Some(ids)
    }

    /// Whether a batch would be taken now.
    pub(crate) fn may_batch(&self) -> bool {
        !self.batch_under_way && !self.held_back
    }

    pub(crate) fn commit(&mut self, ops: Vec<Op>, durability: Durability, ticket: Ticket) {
        if matches!(ticket, Ticket::Batch(_)) {
            self.batch_under_way = true;
        }
        self.pending += 1;
        let commit = self.store.commit(ops, durability);
        let outcomes = self.outcomes.clone();
        tokio::spawn(async move {
            let result = commit.await;
            // The controller may have ended meanwhile; then nobody needs to know.
            let _ = outcomes.send(Outcome { ticket, result });
        });
    }

    /// Waits for the next outcome. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Outcome {
        match self.arrived.recv().await {
            Some(outcome) => {
                self.pending -= 1;
                if matches!(outcome.ticket, Ticket::Batch(_)) {
                    self.batch_under_way = false;
                }
                self.held_back |= outcome.result.as_ref().is_err_and(Error::is_retryable);
                outcome
            }
            // `self` holds a sender.
            None => std::future::pending().await,
        }
    }

    /// Lets writes be tried again after a failure.
    pub(crate) fn retry(&mut self) {
        self.held_back = false;
    }

    /// Whether everything that was marked is in the store.
    pub(crate) fn is_idle(&self) -> bool {
        self.pending == 0 && (self.dirty.is_empty() || self.held_back)
    }
}

/// How long a batch waits: not at all for a few instances, at most 100 ms for thousands.
fn linger(dirty: usize) -> Span {
    if dirty <= FEW { Span::ZERO } else { Span::from_micros((dirty as u64).saturating_mul(100).min(100_000)) }
}
