//! Externals: processes that Ostler did not start, found and watched.
//!
//! One thread looks: it reads the machine's processes once for everything that is due, and waits for the ends of what it
//! found. One task takes what it says to the store, to the events and to the sampler. Nothing here starts or stops
//! anything; [`signal`] is the one way to reach such a process, and it believes no stored process id.

mod facts;
mod watcher;

use std::collections::HashMap;
use std::sync::Arc;

use ostler_core::kinds::{External, ExternalPhase, Identity};
use ostler_core::object::parse_key;
use ostler_core::plan::external::{Finding, next};
use ostler_core::{Kind, Timestamp};
use ostler_store::{Durability, Expect, Key, Op, Store, WatchEnded};
use tracing::{debug, warn};

use self::watcher::{Order, Report, Watcher};
use crate::controller::Handle;
use crate::usage::{Id, Target};

/// How usage is kept of an External: apart from an instance of the same name.
pub fn usage_id(namespace: &str, name: &str) -> Id {
    format!("{}/{namespace}/{name}", Kind::External.plural()).into()
}

/// Keeps every External's status true, until the store is closed.
///
/// # Errors
/// There is no thread or descriptor for it.
pub async fn run(store: Arc<dyn Store>, handle: Handle) -> std::io::Result<()> {
    let boot_id = ostler_keeper::wire::boot_id()?;
    let (watcher, mut reports) = Watcher::start(Arc::clone(&store))?;
    let mut keeper = Statuses { store: Arc::clone(&store), handle, boot_id, watcher, generations: HashMap::new() };
    let prefix = format!("{}/", Kind::External.plural());
    loop {
        let snapshot = store.list(&prefix);
        keeper.generations.retain(|key, _| snapshot.entries.iter().any(|entry| entry.key == *key));
        for entry in &snapshot.entries {
            keeper.see(&entry.key, Some(&entry.value));
        }
        let Ok(mut watch) = store.watch(&prefix, snapshot.revision) else {
            tokio::task::yield_now().await;
            continue;
        };
        loop {
            tokio::select! {
                events = watch.next() => match events {
                    Ok(events) => {
                        for event in events {
                            let value = event.kind.value();
                            keeper.see(&event.key, value.map(|value| &**value));
                        }
                    }
                    Err(WatchEnded::Compacted(_)) => break,
                    Err(WatchEnded::Closed) => return Ok(()),
                },
                report = reports.recv() => match report {
                    Some(report) => keeper.take(report).await,
                    None => return Err(std::io::Error::other("the thread that looks for processes has ended")),
                },
            }
        }
    }
}

struct Statuses {
    store: Arc<dyn Store>,
    handle: Handle,
    boot_id: String,
    watcher: Watcher,
    /// What is looked for, by the generation of its spec.
    generations: HashMap<Key, (String, u64)>,
}

impl Statuses {
    /// Takes over what the API wrote.
    fn see(&mut self, key: &Key, value: Option<&[u8]>) {
        let external = value.and_then(|value| serde_json::from_slice::<External>(value).ok());
        let Some(external) = external else {
            self.generations.remove(key);
            self.watcher.send(Order::Forget(key.clone()));
            self.untrack(key);
            return;
        };
        let version = (external.metadata.uid, external.metadata.generation);
        if self.generations.get(key) != Some(&version) {
            self.generations.insert(key.clone(), version);
            let order = Order::Watch(key.clone(), external.metadata.generation, Box::new(external.spec));
            self.watcher.send(order);
        }
    }

    /// Writes what was found, unless it is known. An object that was changed in between is decided on anew.
    async fn take(&mut self, report: Report) {
        let Report { key, generation, finding, cgroup } = report;
        for _ in 0..16 {
            let Some(entry) = self.store.get(&key) else { return };
            let Ok(mut external) = serde_json::from_slice::<External>(&entry.value) else { return };
            if external.metadata.generation != generation {
                // It is being looked for by the new spec.
                return;
            }
            self.track(&key, &finding, &cgroup);
            let Some((status, notes)) = next(&external, &finding, &self.boot_id, now()) else { return };
            external.status = status;
            let Ok(value) = serde_json::to_vec(&external) else { return };
            let op = Op::put(key.clone(), value, Expect::Revision(entry.revision));
            match self.store.commit(vec![op], Durability::Lazy).await {
                Ok(_) => {
                    for note in notes {
                        // Only a daemon that is ending takes no more events.
                        let _ = self.handle.record(Kind::External, external.metadata.clone(), note).await;
                    }
                    return;
                }
                Err(ostler_store::Error::Conflict { .. }) => debug!(%key, "changed in between"),
                Err(why) => {
                    warn!(%key, %why, "not stored; looked for again");
                    self.watcher.send(Order::Again(key));
                    return;
                }
            }
        }
    }

    fn track(&self, key: &Key, finding: &Finding, cgroup: &str) {
        if let Finding::Found(pid, start_time) = finding {
            let target = Target { pid: *pid, start_time: *start_time, cgroup: cgroup.to_owned() };
            self.handle.usage().track(usage_id(key.namespace(), key.name()), target);
        } else {
            self.untrack(key);
        }
    }

    fn untrack(&self, key: &Key) {
        if let Some((_, namespace, name)) = parse_key(key.as_str()) {
            self.handle.usage().untrack(usage_id(namespace, name), None);
        }
    }
}

fn now() -> Timestamp {
    crate::clock::wall()
}

/// Why a signal was not sent.
#[derive(Debug, thiserror::Error)]
pub enum SignalError {
    /// The manifest does not name it.
    #[error("{signal} is not among spec.allowedSignals of external {name:?}, which are {allowed}")]
    NotAllowed {
        /// Of the External.
        name: String,
        /// Its name.
        signal: String,
        /// What is allowed.
        allowed: String,
    },
    /// There is nobody to send it to.
    #[error("external {name:?} is {phase}: there is no process to send a signal to")]
    NotFound {
        /// Of the External.
        name: String,
        /// Its phase.
        phase: &'static str,
    },
    /// The kernel refused.
    #[error("{signal} could not be sent to pid {pid} of external {name:?}: {source}")]
    Refused {
        /// Of the External.
        name: String,
        /// Its name.
        signal: String,
        /// The process.
        pid: i32,
        /// Why.
        source: std::io::Error,
    },
}

/// Whether a signal may be sent to the process that was found.
///
/// # Errors
/// The manifest does not allow it, or there is no such process.
pub fn check_signal(external: &External, number: i32) -> Result<&Identity, SignalError> {
    let name = || external.metadata.name.clone();
    let allowed = &external.spec.allowed_signals;
    if !allowed.iter().any(|word| ostler_core::signal::parse(word) == Ok(number)) {
        let allowed = if allowed.is_empty() { "none".to_owned() } else { allowed.join(", ") };
        return Err(SignalError::NotAllowed { name: name(), signal: ostler_core::signal::name(number), allowed });
    }
    let status = &external.status;
    let found = status.identity.as_ref().filter(|_| status.phase == ExternalPhase::Found);
    found.ok_or_else(|| SignalError::NotFound { name: name(), phase: status.phase.name() })
}

/// Sends a signal that the manifest allows to the process that was found, if it is still that one.
///
/// # Errors
/// Nothing was sent.
pub fn signal(external: &External, number: i32) -> Result<(), SignalError> {
    let identity = check_signal(external, number)?;
    let name = || external.metadata.name.clone();
    let handle =
        open(identity).ok_or_else(|| SignalError::NotFound { name: name(), phase: ExternalPhase::NotFound.name() })?;
    let sent = match rustix::process::Signal::from_named_raw(number) {
        Some(signal) => rustix::process::pidfd_send_signal(&handle, signal).map_err(std::io::Error::from),
        None => Err(std::io::ErrorKind::Unsupported.into()),
    };
    sent.map_err(|source| SignalError::Refused {
        name: name(),
        signal: ostler_core::signal::name(number),
        pid: identity.pid,
        source,
    })
}

/// A handle of exactly this process; nothing when it is gone, whoever has its number now.
fn open(identity: &Identity) -> Option<std::os::fd::OwnedFd> {
    if identity.boot_id != ostler_keeper::wire::boot_id().ok()? {
        return None;
    }
    let handle = watcher::pidfd(identity.pid).ok()?;
    // Read while the handle is held: the number cannot be given to another process without the handle saying so.
    (facts::start_time(identity.pid) == Some(identity.start_time)).then_some(handle)
}
