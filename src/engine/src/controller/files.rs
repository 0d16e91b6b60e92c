//! ConfigMaps and Secrets as files: written before a start, replaced under a running process, removed when it is over.

use std::collections::BTreeMap;

use ostler_core::config::{self, Resolved};
use ostler_core::kinds::{EventType, Instance, OnFileChange, Phase};
use ostler_core::plan::Note;
use ostler_core::plan::instance::{AttemptState, StartError, StartErrorKind};
use ostler_core::{Span, Timestamp, signal};
use ostler_keeper::wire;
use tracing::warn;

use super::world::Id;
use super::{Controller, Request};
use crate::driver::Driver;
use crate::files::Content;
use crate::spawn;
use crate::vault::plain_hash;

/// What could not be written is tried again after this time.
const AGAIN: Span = Span::from_secs(5);

impl<D: Driver> Controller<D> {
    /// The hashes of what may change under a running process. What comes from a Secret tells nobody anything.
    fn hashes(&self, given: &Resolved) -> Result<BTreeMap<i32, String>, String> {
        config::live(&given.files)
            .into_iter()
            .map(|(signal, (bytes, secret))| {
                let hash = if secret { self.vault.hash(&bytes) } else { Ok(plain_hash(&bytes)) };
                Ok((signal, hash.map_err(|why| why.to_string())?))
            })
            .collect()
    }

    /// Writes the files that an instance is to find when it starts.
    pub(crate) fn write_files(&self, instance: &Instance, given: &Resolved, now: Timestamp) -> Result<(), StartError> {
        let spec = &*instance.spec.template;
        let Some(directory) = &given.directory else { return Ok(()) };
        let failed = |kind, message| StartError { kind, message, at: now };
        let bad = |why: String| {
            failed(
                StartErrorKind::BadEnvironment,
                format!("cannot write the files of spec.files to {directory}: {why}"),
            )
        };
        let owner = spawn::owner(spec).map_err(|why| failed(StartErrorKind::BadUser, why))?;
        let hashes = self.hashes(given).map_err(bad)?;
        let content = Content { spec, files: &given.files, hashes: &hashes, owner };
        self.files.write(&instance.metadata.uid, &content).map_err(|why| bad(why.to_string()))
    }

    /// What lies on disk is said to.
    pub(crate) fn tell_of_disk(&mut self, id: &Id, now: Timestamp) {
        let Some(entry) = self.world.instances.get(id) else { return };
        if entry.object.spec.template.files.is_empty() || !self.files.on_disk() {
            return;
        }
        let directory = self.files.path(&entry.object.metadata.uid);
        let note = Note {
            event_type: EventType::Warning,
            reason: "FilesOnDisk",
            message: format!(
                "its ConfigMaps and Secrets are files on disk, below {}: no directory in memory (/run, XDG_RUNTIME_DIR, \
                 /dev/shm) may be written by the daemon",
                directory.display()
            ),
        };
        self.tell(id, vec![note], now);
    }

    /// Replaces the files of a running instance whose content is another one now, and tells its main process; removes
    /// those of one that is over.
    pub(crate) fn tend_files(&mut self, id: &Id, now: Timestamp) {
        let Some(entry) = self.world.instances.get(id) else { return };
        let (spec, status) = (&entry.object.spec, &entry.object.status);
        if spec.template.files.is_empty() {
            return;
        }
        let uid = entry.object.metadata.uid.clone();
        let runs = entry.observed.attempts.iter().rev().find(|attempt| attempt.state == AttemptState::Running);
        let Some(attempt) = runs.map(|attempt| attempt.number) else {
            let observed = &entry.observed;
            let over = observed.synced
                && observed.starting.is_none()
                && observed.attempts.is_empty()
                && observed.hooks.is_none();
            if over && !status.is_live() {
                self.remove_files(&uid);
            }
            return;
        };
        // What is about to be replaced keeps what it has.
        let steady = status.phase == Phase::Running && status.revision == spec.revision;
        if !steady || !config::signals(&spec.template) {
            return;
        }
        let given = self.given(&entry.object);
        if given.missing.is_some() {
            return;
        }
        let Ok(hashes) = self.hashes(&given) else { return };
        let stale = self.files.stale(&uid, &hashes);
        if stale.is_empty() {
            return;
        }
        let template = std::sync::Arc::clone(&spec.template);
        let Ok(owner) = spawn::owner(&template) else { return };
        let content = Content { spec: &template, files: &given.files, hashes: &hashes, owner };
        for number in stale {
            let paths: Vec<&str> = template
                .files
                .iter()
                .filter(|file| file.on_change == OnFileChange::Signal && signal::parse(file.signal()) == Ok(number))
                .map(|file| file.path.as_str())
                .collect();
            let (paths, name) = (paths.join(", "), signal::name(number));
            let note = match self.files.replace(&uid, number, &content) {
                Ok(()) => {
                    self.driver.submit(wire::Signal { id: uid.clone(), attempt, signal: number, tree: false }.into());
                    self.driver.flush();
                    self.files.told(&uid, number);
                    let message = format!("new content of {paths}: {name} sent to the main process");
                    Note { event_type: EventType::Normal, reason: "FilesReplaced", message }
                }
                Err(why) => {
                    self.queue.add_at(Request::Instance(id.clone()), now + AGAIN);
                    let message = format!("cannot write the new content of {paths}: {why}; tried again every {AGAIN}");
                    Note { event_type: EventType::Warning, reason: "FilesNotReplaced", message }
                }
            };
            self.tell(id, vec![note], now);
        }
    }

    pub(crate) fn remove_files(&self, uid: &str) {
        if let Err(why) = self.files.remove(uid) {
            warn!(uid, %why, "cannot remove the files of an instance");
        }
    }

    /// Removes what was left behind by instances that nobody knows any more.
    pub(crate) fn sweep_files(&self) {
        let orphans = self.custody.orphans.values().map(|state| state.id.as_str());
        self.files.sweep(&self.world.by_uid.keys().map(|uid| &**uid).chain(orphans).collect());
    }
}
