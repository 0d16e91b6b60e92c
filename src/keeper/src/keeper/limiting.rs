//! The limits of attempts: set before the process exists, changed while it runs, and told.

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use super::Keeper;
use super::attempt::{Limited, Tree};
use super::spawn::failure;
use crate::cgroup::Root;
use crate::limits::{self, Controller, Place};
use crate::sys;
use crate::sys::launch::Limit as Rlimit;
use crate::wire::spawn_error::Stage;
use crate::wire::{Enforcement, Intent, Limit, SetLimits, Spawn, SpawnError};

/// What the process itself has to do for its limits.
#[derive(Debug, Default)]
pub(super) struct Process {
    /// Each `cgroup.procs` that it writes itself into.
    pub(super) procs: Vec<OwnedFd>,
    pub(super) open_files: Option<Rlimit>,
    pub(super) nice: Option<i32>,
}

/// The limits of an attempt that is about to be made, and where they go.
#[derive(Debug)]
pub(super) struct Planned {
    required: bool,
    pub(super) beside: Vec<Rc<Root>>,
    wanted: Vec<(Limit, i64, Result<Option<Place>, String>)>,
}

impl Planned {
    /// The paths of the groups besides that of the tree.
    pub(super) fn groups<'a>(&'a self, name: &'a str) -> impl Iterator<Item = String> + 'a {
        self.beside.iter().map(move |root| root.path.join(name).display().to_string())
    }

    /// Makes the groups and sets the limits on them.
    pub(super) fn apply(self, name: &str) -> Result<(Limited, Process), SpawnError> {
        let mut process = Process::default();
        for root in &self.beside {
            let procs = limits::make(root, name).and_then(|()| root.procs(name));
            let path = || root.path.join(name).display().to_string();
            process.procs.push(procs.map_err(|why| failure(Stage::Cgroup, &why, path()))?);
        }
        let mut enforced = Vec::with_capacity(self.wanted.len());
        for (limit, value, place) in self.wanted {
            let outcome = match place {
                Ok(Some(place)) => limits::set(place.root(), name, limit, value).map(|()| place.name()),
                Ok(None) => process.take(limit, value),
                Err(why) => Err(why),
            };
            enforced.push(told(limit, value, outcome));
        }
        refuse_if(self.required, &enforced)?;
        Ok((Limited { beside: self.beside, enforced }, process))
    }
}

impl Process {
    /// Takes note of a limit that the process sets itself.
    fn take(&mut self, limit: Limit, value: i64) -> Result<&'static str, String> {
        let is_root = rustix::process::geteuid().is_root();
        match limit {
            Limit::OpenFiles => {
                let count = value.cast_unsigned();
                // Nobody but root may raise it; a lower one that is in force limits all the more.
                let count = if is_root { count } else { count.min(sys::open_files_limit().1) };
                self.open_files = Some(Rlimit { resource: sys::OPEN_FILES, soft: count, hard: count });
                Ok("rlimit")
            }
            Limit::Nice => {
                let nice = value as i32;
                if !is_root && nice < rustix::process::getpriority_process(None).unwrap_or(0) {
                    return Err("only root may raise a priority".to_owned());
                }
                self.nice = Some(nice);
                Ok("setpriority")
            }
            Limit::Memory | Limit::Cpu | Limit::Processes | Limit::IoWeight | Limit::Unspecified => {
                Err("this keeper does not know the limit".to_owned())
            }
        }
    }
}

fn told(limit: Limit, value: i64, outcome: Result<&'static str, String>) -> Enforcement {
    let (by, why_not) = match outcome {
        Ok(by) => (by.to_owned(), String::new()),
        Err(why) => (String::new(), why),
    };
    Enforcement { limit: limit.into(), value, by, why_not }
}

/// Who requires limits is not started without one of them.
fn refuse_if(required: bool, enforced: &[Enforcement]) -> Result<(), SpawnError> {
    let missing: Vec<String> = enforced
        .iter()
        .filter(|one| required && one.by.is_empty())
        .map(|one| {
            format!("{}: {}", one.limit().as_str_name().trim_start_matches("LIMIT_").to_lowercase(), one.why_not)
        })
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(failure(Stage::Limits, &io::Error::from_raw_os_error(libc::EOPNOTSUPP), missing.join(", ")))
}

impl Keeper {
    /// Finds a place for each limit of a Spawn. Nothing is made yet.
    pub(super) fn plan_limits(&mut self, spawn: &Spawn) -> Result<Option<Planned>, SpawnError> {
        let Some(asked) = &spawn.limits else { return Ok(None) };
        let mut planned = Planned { required: asked.required, beside: Vec::new(), wanted: Vec::new() };
        for (limit, value) in limits::wanted(asked) {
            let place = match Controller::of(limit) {
                Some(controller) => self.controllers.place(controller).map(Some),
                None => Ok(None),
            };
            if let Ok(Some(Place::Beside(root))) = &place
                && !planned.beside.iter().any(|other| other.path == root.path)
            {
                planned.beside.push(root.clone());
            }
            planned.wanted.push((limit, value, place));
        }
        let refused: Vec<Enforcement> = planned
            .wanted
            .iter()
            .filter_map(|(limit, value, place)| Some(told(*limit, *value, Err(place.as_ref().err()?.clone()))))
            .collect();
        refuse_if(planned.required, &refused)?;
        Ok((!planned.wanted.is_empty()).then_some(planned))
    }

    /// The groups beside the tree that an Intent names, as far as they are still there.
    pub(super) fn limited_of(&mut self, intent: &Intent) -> Option<Box<Limited>> {
        if intent.limit_groups.is_empty() {
            return None;
        }
        let beside = intent.limit_groups.iter().filter_map(|group| self.root_of(group)).collect();
        Some(Box::new(Limited { beside, enforced: Vec::new() }))
    }

    /// Changes the limits of what runs, as far as it has groups for them.
    pub(super) fn set_limits(&mut self, asked: &SetLimits) {
        let Some(number) = self.current(&asked.id, asked.attempt) else { return };
        let Some(limits) = &asked.limits else { return };
        for (limit, value) in limits::wanted(limits) {
            let Some(controller) = Controller::of(limit) else { continue };
            let place = self.controllers.place(controller);
            let Some(attempt) = self.attempts.get_mut(number).filter(|attempt| !attempt.is_over()) else { return };
            let token = attempt.token();
            let Some(limited) = &mut attempt.limited else { return };
            let Some(known) = limited.enforced.iter_mut().find(|known| known.limit() == limit) else { continue };
            if known.value == value && !known.by.is_empty() {
                continue;
            }
            let outcome = place.and_then(|place| {
                // Its group is where it was made, which need not be where groups are made now.
                let beside = limited.beside.iter().find(|root| root.path == place.root().path);
                let tree = match &attempt.tree {
                    Tree::Group { root, .. } if root.path == place.root().path => Some(root),
                    Tree::Group { .. } | Tree::Marker { .. } => None,
                };
                let root = beside.or(tree).ok_or("it was started without a group for that; restart it")?;
                limits::set(root, &token, limit, value).map(|()| place.name())
            });
            *known = told(limit, value, outcome);
        }
        if let Some(started) = self.attempts.get(number).and_then(super::attempt::Attempt::started) {
            self.journal.note(started);
        }
        self.mark_dirty(number);
    }

    /// How many processes of an attempt the kernel has killed for want of memory.
    pub(super) fn oom_kills(&self, number: u32) -> u32 {
        let Some(attempt) = self.attempts.get(number) else { return 0 };
        let Some(limited) = &attempt.limited else { return 0 };
        let tree = match &attempt.tree {
            Tree::Group { root, .. } => Some(root),
            Tree::Marker { .. } => None,
        };
        let token = attempt.token();
        limited.beside.iter().chain(tree).find_map(|root| limits::oom_kills(root, &token)).unwrap_or(0)
    }

    /// Removes the groups of v1 controllers that belong to no attempt we know.
    pub(super) fn sweep_limit_groups(&mut self) {
        for root in self.controllers.left_behind() {
            let mut is_used = false;
            for name in root.names() {
                let parsed = name.rsplit_once('.').and_then(|(id, attempt)| Some((id, attempt.parse::<u64>().ok()?)));
                if parsed.is_some_and(|(id, attempt)| self.current(id, attempt).is_some()) {
                    is_used = true;
                } else {
                    self.chores.push_back(super::chores::Chore::Group { root: root.clone(), name, tries: 0 });
                }
            }
            if !is_used {
                root.remove_if_unused();
            }
        }
    }
}
