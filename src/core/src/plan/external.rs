//! Which of the processes of a machine an External means, and what follows for its status.

use std::collections::{HashMap, HashSet};

use crate::kinds::{Condition, Discovery, External, ExternalPhase, ExternalStatus, Identity, Truth, set_condition};
use crate::plan::Note;
use crate::time::Timestamp;

/// How many candidates are told.
const TOLD: usize = 16;

/// A process of the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Process id.
    pub pid: i32,
    /// Of its parent.
    pub parent: i32,
    /// Clock ticks from boot to its start.
    pub start_time: u64,
    /// Name of the program.
    pub name: String,
    /// The words of its command line, joined by spaces; empty for threads of the kernel.
    pub command: String,
    /// Its cgroups, as the kernel names them.
    pub cgroups: Vec<String>,
}

/// Facts that are not told by the process itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hint {
    /// Nothing else is asked for.
    None,
    /// Exactly these, from a PID file or the table of sockets.
    Pids(Vec<i32>),
    /// It could not be read; why.
    Unknown(String),
}

/// What came of looking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Exactly one: process id and start time.
    Found(i32, u64),
    /// None; why.
    NotFound(String),
    /// Several, in order.
    Ambiguous(Vec<i32>),
}

/// What an External is looked for by, ready to be compared.
#[derive(Clone, Debug)]
pub enum Matcher {
    /// By what [`Hint::Pids`] tells.
    Hinted,
    /// By the command line.
    Command(regex::Regex),
    /// By the name of the program.
    Name(String),
    /// In this cgroup or below it.
    Cgroup(String),
    /// In a cgroup of this name.
    Unit(String),
}

impl Matcher {
    /// Reads what to look for.
    ///
    /// # Errors
    /// A regular expression that is none, or not exactly one way of looking; validation refuses both.
    pub fn new(discovery: &Discovery) -> Result<Self, String> {
        let Discovery { pid_file, command, name, port, cgroup, systemd_unit } = discovery;
        match (pid_file, command, name, port, cgroup, systemd_unit) {
            (Some(_), None, None, None, None, None) | (None, None, None, Some(_), None, None) => Ok(Self::Hinted),
            (None, Some(pattern), None, None, None, None) => {
                let built = regex::RegexBuilder::new(pattern).size_limit(1 << 20).build();
                built.map(Self::Command).map_err(|why| why.to_string())
            }
            (None, None, Some(name), None, None, None) => Ok(Self::Name(name.clone())),
            (None, None, None, None, Some(path), None) => Ok(Self::Cgroup(path.trim_end_matches('/').to_owned())),
            (None, None, None, None, None, Some(unit)) => Ok(Self::Unit(unit.clone())),
            _ => Err("exactly one of pidFile, command, name, port, cgroup and systemdUnit is needed".to_owned()),
        }
    }

    fn matches(&self, process: &Seen, hint: &Hint) -> bool {
        match self {
            Self::Hinted => matches!(hint, Hint::Pids(pids) if pids.contains(&process.pid)),
            Self::Command(pattern) => !process.command.is_empty() && pattern.is_match(&process.command),
            Self::Name(name) => process.name == *name,
            Self::Cgroup(path) => process.cgroups.iter().any(|cgroup| {
                cgroup.strip_prefix(path.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }),
            Self::Unit(unit) => process.cgroups.iter().any(|cgroup| cgroup.split('/').any(|part| part == unit)),
        }
    }
}

/// The tree of processes.
#[derive(Debug)]
pub struct Machine<'a> {
    by_pid: HashMap<i32, &'a Seen>,
    processes: &'a [Seen],
    /// The daemon's own processes and the leaders of its instances.
    own: &'a HashSet<i32>,
}

impl<'a> Machine<'a> {
    /// Puts processes in order. What is in `own`, and descends from it, is never found.
    pub fn new(processes: &'a [Seen], own: &'a HashSet<i32>) -> Self {
        Self { by_pid: processes.iter().map(|process| (process.pid, process)).collect(), processes, own }
    }

    /// From the parent up. Bounded: a list that was read while processes come and go may have a cycle.
    fn ancestors(&self, process: &Seen) -> impl Iterator<Item = i32> {
        std::iter::successors(Some(process.parent), move |pid| Some(self.by_pid.get(pid)?.parent))
            .take_while(|pid| *pid > 0)
            .take(256)
    }

    fn is_ours(&self, process: &Seen) -> bool {
        self.own.contains(&process.pid) || self.ancestors(process).any(|pid| self.own.contains(&pid))
    }

    /// Looks for a process.
    pub fn find(&self, matcher: &Matcher, hint: &Hint) -> Finding {
        if let Hint::Unknown(why) = hint {
            return Finding::NotFound(why.clone());
        }
        let matching: Vec<&Seen> = self
            .processes
            .iter()
            .filter(|process| process.pid != 1 && matcher.matches(process, hint) && !self.is_ours(process))
            .collect();
        let pids: HashSet<i32> = matching.iter().map(|process| process.pid).collect();
        let mut heads: Vec<&Seen> = matching
            .into_iter()
            .filter(|process| !self.ancestors(process).any(|pid| pid != process.pid && pids.contains(&pid)))
            .collect();
        heads.sort_by_key(|process| process.pid);
        match heads.as_slice() {
            [] => Finding::NotFound("no process matches".to_owned()),
            [one] => Finding::Found(one.pid, one.start_time),
            many => Finding::Ambiguous(many.iter().map(|process| process.pid).collect()),
        }
    }
}

/// The status that follows, and what is to be told; none when nothing has changed.
pub fn next(
    external: &External,
    finding: &Finding,
    boot_id: &str,
    now: Timestamp,
) -> Option<(ExternalStatus, Vec<Note>)> {
    let before = &external.status;
    let generation = Some(external.metadata.generation);
    let mut notes = Vec::new();
    let (phase, identity, candidates, message) = match finding {
        Finding::Found(pid, start_time) => {
            let identity = Identity { boot_id: boot_id.to_owned(), pid: *pid, start_time: *start_time };
            (ExternalPhase::Found, Some(identity), Vec::new(), format!("pid {pid}"))
        }
        Finding::NotFound(why) => (ExternalPhase::NotFound, None, Vec::new(), why.clone()),
        Finding::Ambiguous(pids) => {
            let message = format!("{} processes match and none of them began the others", pids.len());
            (ExternalPhase::Ambiguous, None, pids.iter().take(TOLD).copied().collect(), message)
        }
    };
    let moved = before.phase != phase || before.identity != identity;
    let ready = before.conditions.iter().find(|condition| condition.kind == "Ready");
    if !moved
        && before.candidates == candidates
        && before.observed_generation == generation
        && ready.is_some_and(|ready| ready.message == message)
    {
        return None;
    }
    if moved {
        if let Some(lost) = &before.identity {
            notes.push(Note::warning(
                "Lost",
                format!("pid {} is not it any more: it ended or does not match", lost.pid),
            ));
        }
        match phase {
            ExternalPhase::Found => notes.push(Note::normal("Found", message.clone())),
            ExternalPhase::Ambiguous => {
                let pids: Vec<String> = candidates.iter().map(ToString::to_string).collect();
                notes.push(Note::warning("Ambiguous", format!("{message}: {}", pids.join(", "))));
            }
            ExternalPhase::NotFound => {}
        }
    }
    let mut conditions = before.conditions.clone();
    let condition = Condition {
        kind: "Ready".to_owned(),
        status: Truth::from(phase == ExternalPhase::Found),
        reason: phase.name().to_owned(),
        message,
        observed_generation: generation,
        ..Condition::default()
    };
    set_condition(&mut conditions, condition, now);
    let status = ExternalStatus {
        phase,
        pid: identity.as_ref().map(|identity| identity.pid),
        identity,
        since: if moved || before.since.is_none() { Some(now) } else { before.since },
        candidates,
        observed_generation: generation,
        conditions,
    };
    Some((status, notes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn seen(pid: i32, parent: i32, name: &str, command: &str, cgroup: &str) -> Seen {
        Seen {
            pid,
            parent,
            start_time: 1000 + pid as u64,
            name: name.to_owned(),
            command: command.to_owned(),
            cgroups: vec![cgroup.to_owned()],
        }
    }

    fn machine() -> Vec<Seen> {
        vec![
            seen(1, 0, "init", "/sbin/init nginx", "/init.scope"),
            seen(2, 0, "kthreadd", "", "/"),
            seen(10, 1, "nginx", "nginx: master process", "/system.slice/nginx.service"),
            seen(11, 10, "nginx", "nginx: worker process", "/system.slice/nginx.service"),
            seen(12, 10, "nginx", "nginx: worker process", "/system.slice/nginx.service"),
            seen(20, 1, "python3", "python3 -m http.server 80", "/user.slice/a"),
            seen(21, 1, "python3", "python3 -m http.server 81", "/user.slice/ab"),
            seen(30, 1, "ostler", "ostler serve", "/ostler"),
            seen(31, 30, "python3", "python3 -m http.server 82", "/ostler/web"),
            seen(32, 31, "python3", "python3 -m http.server 82", "/ostler/web"),
        ]
    }

    fn find(discovery: serde_json::Value, hint: &Hint) -> Finding {
        let matcher = Matcher::new(&serde_json::from_value(discovery).unwrap()).unwrap();
        Machine::new(&machine(), &HashSet::from([30])).find(&matcher, hint)
    }

    #[test]
    fn exactly_what_is_meant_is_found() {
        let none = Finding::NotFound("no process matches".to_owned());
        for (discovery, expected) in [
            (json!({"name": "nginx"}), Finding::Found(10, 1010)),
            (json!({"name": "ngin"}), none.clone()),
            (json!({"command": "nginx"}), Finding::Found(10, 1010)),
            (json!({"command": "worker"}), Finding::Ambiguous(vec![11, 12])),
            (json!({"command": "http.server"}), Finding::Ambiguous(vec![20, 21])),
            (json!({"command": "^python3 .* 81$"}), Finding::Found(21, 1021)),
            (json!({"command": "http.server 82"}), none.clone()),
            (json!({"command": ""}), Finding::Ambiguous(vec![10, 20, 21])),
            (json!({"name": "init"}), none.clone()),
            (json!({"name": "ostler"}), none.clone()),
            (json!({"cgroup": "/user.slice/a"}), Finding::Found(20, 1020)),
            (json!({"cgroup": "/system.slice/"}), Finding::Found(10, 1010)),
            (json!({"cgroup": "/ostler"}), none.clone()),
            (json!({"systemdUnit": "nginx.service"}), Finding::Found(10, 1010)),
            (json!({"systemdUnit": "nginx"}), none),
        ] {
            assert_eq!(find(discovery.clone(), &Hint::None), expected, "{discovery}");
        }
    }

    #[test]
    fn hints_are_held_against_the_same_rules() {
        let file = || json!({"pidFile": "/run/x.pid"});
        assert_eq!(find(file(), &Hint::Pids(vec![20])), Finding::Found(20, 1020));
        assert_eq!(find(json!({"port": 80}), &Hint::Pids(vec![11, 10, 12])), Finding::Found(10, 1010));
        for not in [1, 30, 31, 32, 99] {
            assert!(matches!(find(file(), &Hint::Pids(vec![not])), Finding::NotFound(_)), "{not}");
        }
        assert_eq!(find(file(), &Hint::Unknown("no file".to_owned())), Finding::NotFound("no file".to_owned()));
    }

    #[test]
    fn a_list_with_a_cycle_ends() {
        let processes = [seen(5, 6, "a", "a", "/"), seen(6, 5, "b", "b", "/")];
        let matcher = Matcher::Name("a".to_owned());
        assert_eq!(Machine::new(&processes, &HashSet::new()).find(&matcher, &Hint::None), Finding::Found(5, 1005));
    }

    #[test]
    fn a_status_changes_when_something_else_is_found_and_only_then() {
        let mut external: External = serde_json::from_value(json!({
            "apiVersion": "ostler.dev/v1", "kind": "External", "metadata": {"name": "db"},
            "spec": {"discovery": {"name": "db"}},
        }))
        .unwrap();
        let at = Timestamp::from_micros;
        let none = Finding::NotFound("no process matches".to_owned());
        let steps = [
            (none.clone(), ExternalPhase::NotFound, vec![], 1),
            (Finding::Found(7, 70), ExternalPhase::Found, vec!["Found"], 2),
            (Finding::Found(7, 71), ExternalPhase::Found, vec!["Lost", "Found"], 3),
            (Finding::Ambiguous(vec![7, 8]), ExternalPhase::Ambiguous, vec!["Lost", "Ambiguous"], 4),
            (Finding::Ambiguous(vec![7, 8, 9]), ExternalPhase::Ambiguous, vec![], 4),
            (Finding::Found(8, 80), ExternalPhase::Found, vec!["Found"], 6),
            (none, ExternalPhase::NotFound, vec!["Lost"], 7),
        ];
        for (step, (finding, phase, reasons, since)) in (1..).zip(steps) {
            let (status, notes) = next(&external, &finding, "boot", at(step)).expect("a change");
            assert_eq!((status.phase, status.since), (phase, Some(at(since))), "{finding:?}");
            assert_eq!(notes.iter().map(|note| note.reason).collect::<Vec<_>>(), reasons, "{finding:?}");
            assert_eq!(status.conditions[0].status, Truth::from(phase == ExternalPhase::Found));
            external.status = status;
            assert!(next(&external, &finding, "boot", at(100)).is_none(), "{finding:?} is known");
        }
        let rebooted = Finding::Found(8, 80);
        let (status, _) = next(&external, &rebooted, "boot", at(9)).unwrap();
        external.status = status;
        assert_eq!(next(&external, &rebooted, "another boot", at(10)).unwrap().1.len(), 2);
    }
}
