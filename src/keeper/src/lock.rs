//! One daemon per state directory.
//!
//! The lock is an flock on one open file description that keeper and controller share, so it is held as long as
//! either of them lives. Workloads never inherit it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// The state directory could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another daemon uses the state directory.
    #[error(
        "another daemon{} uses {}; stop it first, or give this one its own --state-dir",
        pid.map_or_else(String::new, |pid| format!(" (pid {pid})")),
        state_dir.display()
    )]
    Held {
        /// The directory.
        state_dir: PathBuf,
        /// Who holds it, when the holder has said so.
        pid: Option<i32>,
    },
    /// The directory or the lock file cannot be used.
    #[error(
        "cannot {action} {}: {source}; the daemon needs a state directory that it can write to (--state-dir)",
        path.display()
    )]
    Unusable {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// Takes the state directory for this process and those that inherit the descriptor; creates it (mode 0700) when it
/// is missing. The lock is released when the last copy of the descriptor is closed.
pub fn lock(state_dir: &Path) -> Result<OwnedFd, LockError> {
    let unusable = |action, path: &Path, source| LockError::Unusable { action, path: path.to_owned(), source };
    if !state_dir.is_dir() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(state_dir)
            .map_err(|source| unusable("create", state_dir, source))?;
    }
    let path = state_dir.join("lock");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|source| unusable("open", &path, source))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            return Err(LockError::Held {
                state_dir: state_dir.to_owned(),
                pid: fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok()),
            });
        }
        Err(errno) => return Err(unusable("lock", &path, errno.into())),
    }
    // A full disk must not stop the daemon here: the pid in the file only serves the message above.
    let _ = write_pid(file.as_fd());
    Ok(file.into())
}

/// Names this process as the holder.
pub(crate) fn write_pid(lock: BorrowedFd<'_>) -> io::Result<()> {
    let file = File::from(lock.try_clone_to_owned()?);
    let text = format!("{}\n", std::process::id());
    file.write_all_at(text.as_bytes(), 0)?;
    file.set_len(text.len() as u64)?;
    (&file).flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_is_told_who_holds_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = dir.path().join("a/b");
        let held = lock(&state_dir).unwrap();
        match lock(&state_dir) {
            Err(LockError::Held { pid, .. }) => {
                assert_eq!(pid, Some(i32::try_from(std::process::id()).unwrap()));
            }
            other => panic!("{other:?}"),
        }
        drop(held);
        lock(&state_dir).unwrap();
    }

    #[test]
    fn an_unusable_directory_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let error = lock(&file.join("state")).unwrap_err();
        assert!(error.to_string().contains("file/state"), "{error}");
    }
}
