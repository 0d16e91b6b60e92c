//! The words of the contract: keys, entries, operations, events, and the future of a commit.

use std::borrow::Borrow;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::SystemTime;

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::Error;

/// The store-wide version counter. 0 is the empty store; each commit adds one.
pub type Revision = u64;

/// The path of an entry: `<kind plural>/<namespace>/<name>`; cluster-scoped kinds have an empty namespace.
///
/// Any string can be made a key, but only a well-formed one can be written: see [`Error::Invalid`].
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(Arc<str>);

impl Key {
    /// The key of `name` in `namespace` (empty for cluster-scoped kinds).
    pub fn new(plural: &str, namespace: &str, name: &str) -> Self {
        Self(format!("{plural}/{namespace}/{name}").into())
    }

    /// The whole path.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The kind's plural, the part before the first slash.
    pub fn plural(&self) -> &str {
        self.part(0)
    }

    /// The namespace, empty for cluster-scoped kinds.
    pub fn namespace(&self) -> &str {
        self.part(1)
    }

    /// The object's name.
    pub fn name(&self) -> &str {
        self.part(2)
    }

    fn part(&self, n: usize) -> &str {
        self.0.splitn(3, '/').nth(n).unwrap_or_default()
    }

    /// Why this key cannot be written, if so.
    pub(crate) fn flaw(&self) -> Option<&'static str> {
        let mut parts = self.0.split('/');
        let (plural, namespace, name) = (parts.next(), parts.next(), parts.next());
        let (Some(plural), Some(_), Some(name), None) = (plural, namespace, name, parts.next()) else {
            return Some("is not of the form <plural>/<namespace>/<name>");
        };
        if plural.is_empty() || name.is_empty() {
            return Some("has an empty kind or name");
        }
        if self.0.len() > crate::MAX_KEY_BYTES {
            return Some("is longer than 1,024 bytes");
        }
        if self.0.chars().any(char::is_control) {
            return Some("contains control characters");
        }
        None
    }
}

impl From<&str> for Key {
    fn from(path: &str) -> Self {
        Self(path.into())
    }
}

impl From<String> for Key {
    fn from(path: String) -> Self {
        Self(path.into())
    }
}

// `str` and `Key` order and compare alike, so ranges over a map of keys can be asked for by prefix.
impl Borrow<str> for Key {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// One stored value and the revision of the commit that wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it is.
    pub key: Key,
    /// The opaque value; cloning it copies nothing.
    pub value: Bytes,
    /// The commit that wrote it last.
    pub revision: Revision,
}

/// A consistent view of some entries. The default is the empty store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Sorted by key.
    pub entries: Vec<Entry>,
    /// The revision that this is the state of; watch from here to see every later change.
    pub revision: Revision,
}

/// What an operation requires of the entry it is about to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Nothing.
    Any,
    /// There is no entry at the key.
    Absent,
    /// There is an entry, last written at this revision.
    Revision(Revision),
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("anything"),
            Self::Absent => f.write_str("no entry"),
            Self::Revision(revision) => write!(f, "revision {revision}"),
        }
    }
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Writes the value, whether or not the key exists.
    Put {
        /// Where.
        key: Key,
        /// At most [`MAX_VALUE_BYTES`](crate::MAX_VALUE_BYTES).
        value: Bytes,
        /// The precondition.
        expect: Expect,
    },
    /// Removes the entry. Deleting an absent key with [`Expect::Any`] changes nothing and is no error.
    Delete {
        /// Where.
        key: Key,
        /// The precondition.
        expect: Expect,
    },
}

impl Op {
    /// A put with a precondition.
    pub fn put(key: Key, value: impl Into<Bytes>, expect: Expect) -> Self {
        Self::Put { key, value: value.into(), expect }
    }

    /// A delete with a precondition.
    pub fn delete(key: Key, expect: Expect) -> Self {
        Self::Delete { key, expect }
    }

    /// The key that is changed.
    pub fn key(&self) -> &Key {
        match self {
            Self::Put { key, .. } | Self::Delete { key, .. } => key,
        }
    }

    /// The precondition.
    pub fn expect(&self) -> Expect {
        match self {
            Self::Put { expect, .. } | Self::Delete { expect, .. } => *expect,
        }
    }
}

/// What an acknowledgement promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Survives power loss, on disks that honour flush.
    Durable,
    /// Survives kill -9: handed to the kernel.
    Crash,
    /// Like `Crash`, but may linger up to 20 ms to share a batch.
    Lazy,
}

/// One change of one key, as a watcher sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What changed.
    pub key: Key,
    /// The commit that changed it; the events of one commit share it and are in the commit's order.
    pub revision: Revision,
    /// How.
    pub kind: EventKind,
    /// The value before, if there was an entry: a watcher with a selector can tell that an object leaves it.
    pub prior: Option<Bytes>,
}

/// How a key changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// It has this value now.
    Put(Bytes),
    /// It is gone.
    Delete,
}

impl EventKind {
    /// The value that it has now; none when it is gone.
    pub fn value(&self) -> Option<&Bytes> {
        match self {
            Self::Put(value) => Some(value),
            Self::Delete => None,
        }
    }
}

/// Whether the store takes commits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It does.
    Ok,
    /// The disk refused a write. Reads and watches go on; commits fail with [`Error::ReadOnly`] until the disk takes
    /// writes again, which is tried about once a second.
    ReadOnly {
        /// What failed, for a person.
        why: String,
        /// When the first write failed.
        since: SystemTime,
    },
}

/// The outcome of a commit: a future of its revision. Dropping it does not cancel the commit.
#[must_use = "a commit can fail; only its outcome says whether it took effect"]
#[derive(Debug)]
pub struct Commit(Outcome);

#[derive(Debug)]
enum Outcome {
    Known(Option<Result<Revision, Error>>),
    Pending(oneshot::Receiver<Result<Revision, Error>>),
}

impl Commit {
    pub(crate) fn known(result: Result<Revision, Error>) -> Self {
        Self(Outcome::Known(Some(result)))
    }

    pub(crate) fn pending(receiver: oneshot::Receiver<Result<Revision, Error>>) -> Self {
        Self(Outcome::Pending(receiver))
    }

    /// Blocks this thread until the outcome is known. For threads outside of an async runtime: inside of one this
    /// panics, because it would stall the other tasks; await there.
    pub fn wait_blocking(self) -> Result<Revision, Error> {
        match self.0 {
            Outcome::Known(result) => result.unwrap_or(Err(Error::Closed)),
            Outcome::Pending(receiver) => receiver.blocking_recv().unwrap_or(Err(Error::Closed)),
        }
    }
}

impl Future for Commit {
    type Output = Result<Revision, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Outcome::Known(result) => Poll::Ready(result.take().unwrap_or(Err(Error::Closed))),
            // The committer drops its end without an answer only when it stops.
            Outcome::Pending(receiver) => {
                Pin::new(receiver).poll(cx).map(|answer| answer.unwrap_or(Err(Error::Closed)))
            }
        }
    }
}
