//! Tidying up that nobody waits for: done a little at a time when nothing else happens.

use std::fs;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::Keeper;
use crate::cgroup::Root;

/// Something to remove.
#[derive(Debug)]
pub(super) enum Chore {
    Group { root: Rc<Root>, name: String, tries: u8 },
    Directory(PathBuf),
}

/// Chores done before looking for events again.
const AT_ONCE: usize = 16;

/// Chores wait until nothing has happened for so long: while a thousand processes are stopped, removing the groups of
/// those that are gone holds up the others, here and in the kernel.
const QUIET: Duration = Duration::from_millis(20);
/// And no longer than this, then for a moment without an event.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often the removal of a group is tried; a process on its way out can hold it for a moment.
const TRIES: u8 = 50;

impl Keeper {
    /// Does some chores when their time has come; `is_idle`: there was no event.
    pub(super) fn mind_chores(&mut self, is_idle: bool) {
        if self.chores.is_empty() {
            self.chores_wait = None;
            return;
        }
        let now = Instant::now();
        let (since, until) = *self.chores_wait.get_or_insert((now, now + QUIET));
        if !is_idle {
            self.chores_wait = Some((since, (now + QUIET).min(since + PATIENCE)));
        } else if now >= until {
            self.do_chores();
        }
    }

    pub(super) fn do_chores(&mut self) {
        for _ in 0..AT_ONCE {
            let Some(chore) = self.chores.pop_front() else {
                return;
            };
            match chore {
                Chore::Group { root, name, tries } => {
                    if root.remove(&name).is_err() && tries < TRIES {
                        self.chores.push_back(Chore::Group { root, name, tries: tries + 1 });
                    }
                }
                Chore::Directory(path) => {
                    // What cannot be removed now is found again at the next start.
                    let _ = fs::remove_dir_all(path);
                }
            }
        }
    }

    /// Takes a log directory away at once, so that a successor of the same name begins anew, and removes it later.
    pub(super) fn remove_log_directory(&mut self, directory: &str) {
        let path = self.state_dir.join(directory);
        let trash = self.state_dir.join("trash");
        let _ = fs::create_dir(&trash);
        let unique = format!("{}-{}", std::process::id(), crate::sys::unix_nanos());
        let target = trash.join(unique);
        if fs::rename(&path, &target).is_ok() {
            self.chores.push_back(Chore::Directory(target));
        } else if path.exists() {
            let _ = fs::remove_dir_all(&path);
        }
        // The directory of the namespace goes with its last log; it stays if it is not empty.
        if let Some(parent) = path.parent()
            && parent != self.state_dir
            && parent.parent() != Some(&self.state_dir)
        {
            let _ = fs::remove_dir(parent);
        }
    }

    /// Removes what an earlier keeper did not get to.
    pub(super) fn find_trash(&mut self) {
        let Ok(entries) = fs::read_dir(self.state_dir.join("trash")) else {
            return;
        };
        for entry in entries.flatten() {
            self.chores.push_back(Chore::Directory(entry.path()));
        }
    }
}
