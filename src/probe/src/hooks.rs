//! Hooks: each runs once, in a task of its own while it does, and is reported when it is over.
//!
//! When a hook runs, and what follows from its end, is decided by the planner of the instance. Here is how: a command in
//! a group that is killed whole at the timeout and when the command is over, or one HTTP request. What is reported has
//! no values of Secrets in it.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ostler_core::Span;
use ostler_core::kinds::{Hook, HookKind};
use ostler_core::verdict::Outcome;
use regex::bytes::Regex;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::AbortHandle;

use crate::exec::{self, Ended, Output, Plot, Site};
use crate::graves::{self, Group, Place};
use crate::{AllowList, Surroundings, http, net};

/// So many commands of hooks run at a time; the others wait, and their time does not count.
const COMMANDS: usize = 256;
/// So much of what a hook said last is told, bytes.
const TOLD: usize = 256;
/// The names of groups outside those of attempts begin so, and go on with the uid of the instance and an `@`.
const BESIDE: &str = "hook-";

/// A hook to run.
#[derive(Clone, Debug)]
pub struct HookOrder {
    /// `namespace/name` of the instance.
    pub id: Arc<str>,
    /// Uid of the instance.
    pub uid: String,
    /// The attempt that it runs for.
    pub attempt: u64,
    /// Which one.
    pub kind: HookKind,
    /// What to do.
    pub hook: Hook,
    /// Absolute path of the cgroup of the attempt; empty when there is none, or no attempt.
    pub cgroup: String,
    /// The ports of the instance, by name.
    pub ports: BTreeMap<String, u16>,
    /// What its command is run with; or why that cannot be told.
    pub surroundings: Result<Surroundings, String>,
    /// What is not to be told, whatever says it.
    pub secrets: Vec<String>,
}

/// A hook is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookReport {
    /// `namespace/name` of the instance.
    pub id: Arc<str>,
    /// The attempt that it ran for.
    pub attempt: u64,
    /// Which one.
    pub kind: HookKind,
    /// Whether it did what it should.
    pub succeeded: bool,
    /// What it said last, and how it ended if it failed; at most about 300 bytes.
    pub message: String,
    turn: u64,
    /// It came to an end by itself: what it left behind is being killed, and nothing of it keeps another one waiting.
    ended: bool,
}

/// Runs hooks, one at a time for each instance.
#[derive(Debug)]
pub struct Hooks {
    allow: AllowList,
    room: Arc<Semaphore>,
    reports: mpsc::UnboundedSender<HookReport>,
    under_way: HashMap<Arc<str>, (u64, AbortHandle)>,
    /// Where something may be left of a command.
    plots: HashMap<Arc<str>, Plot>,
    /// The directory with the groups of attempts; empty when there are no cgroups.
    root: PathBuf,
    turn: u64,
}

impl Hooks {
    /// Needs a runtime when hooks are run. Reports come in the order of what they report.
    pub fn new(allow: AllowList) -> (Self, mpsc::UnboundedReceiver<HookReport>) {
        let (reports, received) = mpsc::unbounded_channel();
        let hooks = Self {
            allow,
            room: Arc::new(Semaphore::new(COMMANDS)),
            reports,
            under_way: HashMap::new(),
            plots: HashMap::new(),
            root: PathBuf::new(),
            turn: 0,
        };
        (hooks, received)
    }

    /// Tells where the cgroups of attempts are (empty when there are none), and ends what an earlier controller has left
    /// behind of hooks that ran beside them: those of `instances`, each by id and uid.
    pub fn settle<'a>(&mut self, root: &str, instances: impl Iterator<Item = (&'a Arc<str>, &'a str)>) {
        self.root = PathBuf::from(root);
        if root.is_empty() {
            for (id, uid) in instances {
                let room = self.plots.entry(Arc::clone(id)).or_default().take();
                graves::bury_leftovers(uid, "", room);
            }
            return;
        }
        let ids: HashMap<&str, &Arc<str>> = instances.map(|(id, uid)| (uid, id)).collect();
        for entry in fs::read_dir(&self.root).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some((uid, rest)) = name.to_str().and_then(|name| name.strip_prefix(BESIDE)?.split_once('@')) else {
                continue;
            };
            if rest.starts_with(graves::own()) {
                continue;
            }
            let plot = ids.get(uid).map(|id| self.plots.entry(Arc::clone(id)).or_default());
            let room = plot.and_then(|plot| plot.take()).map(Arc::new);
            graves::bury(None, Group { place: Place::Cgroup(entry.path()), room }, None);
        }
    }

    /// Runs a hook, in place of any other one of the instance.
    pub fn run(&mut self, order: HookOrder) {
        self.cancel(&order.id);
        self.turn += 1;
        let turn = self.turn;
        let plot = order.hook.exec.as_ref().map(|_| self.plots.entry(Arc::clone(&order.id)).or_default().clone());
        let id = Arc::clone(&order.id);
        let group = if order.cgroup.is_empty() {
            (!self.root.as_os_str().is_empty()).then(|| self.root.join(format!("{BESIDE}{}@", order.uid)))
        } else {
            Site::below(&order.cgroup)
        };
        let report = HookReport {
            id: Arc::clone(&id),
            attempt: order.attempt,
            kind: order.kind,
            succeeded: false,
            message: "the hook broke off".to_owned(),
            turn,
            ended: false,
        };
        let report = Reporter { reports: self.reports.clone(), report };
        let job = Job { order, plot, group, allow: self.allow.clone(), room: Arc::clone(&self.room) };
        let task = tokio::spawn(async move {
            let mut report = report;
            let Came { succeeded, message, ended } = job.run().await;
            report.report = HookReport { succeeded, message, ended, ..report.report.clone() };
        });
        self.under_way.insert(id, (turn, task.abort_handle()));
    }

    /// Kills the hook of an instance that is under way; it is not reported.
    pub fn cancel(&mut self, id: &Arc<str>) {
        if let Some((_, task)) = self.under_way.remove(id) {
            task.abort();
        }
    }

    /// Takes note of a report; false when it is about a hook that was cancelled.
    pub fn finished(&mut self, report: &HookReport) -> bool {
        if self.under_way.get(&report.id).is_none_or(|(turn, _)| *turn != report.turn) {
            return false;
        }
        self.under_way.remove(&report.id);
        if report.ended {
            self.plots.remove(&report.id);
        }
        if self.plots.len() > 64 + 2 * self.under_way.len() {
            self.plots.retain(|_, plot| !plot.is_free());
        }
        true
    }
}

/// Reports when it is dropped, and so in any case.
struct Reporter {
    reports: mpsc::UnboundedSender<HookReport>,
    report: HookReport,
}

impl Drop for Reporter {
    fn drop(&mut self) {
        // The controller may be ending.
        let _ = self.reports.send(self.report.clone());
    }
}

/// A hook with everything that it needs.
struct Job {
    order: HookOrder,
    plot: Option<Plot>,
    group: Option<PathBuf>,
    allow: AllowList,
    room: Arc<Semaphore>,
}

/// What a hook came to.
struct Came {
    succeeded: bool,
    message: String,
    ended: bool,
}

impl Came {
    fn failed(message: impl Into<String>) -> Self {
        Self { succeeded: false, message: message.into(), ended: false }
    }
}

impl Job {
    async fn run(&self) -> Came {
        let surroundings = match &self.order.surroundings {
            Ok(surroundings) => surroundings,
            Err(why) => return Came::failed(why.as_str()),
        };
        match (&self.order.hook.exec, &self.plot) {
            (Some(exec), Some(plot)) => self.command(&exec.command, plot, surroundings).await,
            (_, _) => self.request().await,
        }
    }

    async fn command(&self, command: &[String], plot: &Plot, surroundings: &Surroundings) -> Came {
        let timeout = self.order.hook.timeout;
        let Ok(_turn) = self.room.acquire().await else { return Came::failed("the daemon ends") };
        let alone = async {
            let room = plot.taken().await?;
            if self.order.cgroup.is_empty() {
                return Some(room);
            }
            graves::bury_leftovers(&self.order.uid, &self.order.cgroup, Some(room));
            plot.taken().await
        };
        let Ok(Some(room)) = tokio::time::timeout(GONE, alone).await else {
            return Came::failed(HELD);
        };
        let site = Site { uid: &self.order.uid, group: self.group.clone(), surroundings };
        let mut output = Output::end();
        let ended = exec::run(command, &site, room, timeout, &mut output).await;
        let said = words(&output.kept, &self.order.secrets);
        let colon = if said.is_empty() { "" } else { ": " };
        let status = match ended {
            Ok(Ended::Exited(status)) => status,
            Ok(Ended::TimedOut) => return Came::failed(format!("not over within {timeout}, and killed{colon}{said}")),
            Err(why) => return Came::failed(why),
        };
        let succeeded = status.success();
        let message = match (status.code(), status.signal()) {
            (Some(0), _) => said,
            (Some(code), _) => format!("exit code {code}{colon}{said}"),
            (None, Some(signal)) => format!("ended by {}{colon}{said}", ostler_core::signal::name(signal)),
            (None, None) => format!("{status}{colon}{said}"),
        };
        Came { succeeded, message, ended: true }
    }

    async fn request(&self) -> Came {
        let Some(get) = &self.order.hook.http_get else { return Came::failed("there is nothing to do") };
        let timeout: Span = self.order.hook.timeout;
        let allow = self.allow.get();
        let ask = async {
            let port = match net::port(&get.port, &self.order.ports) {
                Ok(port) => port,
                Err(outcome) => return outcome,
            };
            let body = get.body_match.as_ref().and_then(|text| Regex::new(text).ok());
            http::check(get, port, body.as_ref(), &allow).await
        };
        match tokio::time::timeout(timeout.to_std(), ask).await {
            Ok(Outcome::Passed(said)) => {
                Came { succeeded: true, message: words(said.as_bytes(), &self.order.secrets), ended: true }
            }
            Ok(Outcome::Failed(why) | Outcome::CannotRun(why)) => {
                Came::failed(beginning(&redact(&why, &self.order.secrets)))
            }
            Err(_) => Came::failed(format!("no answer within {timeout}")),
        }
    }
}

/// So long it is waited until a command that was killed is gone.
const GONE: Duration = Duration::from_secs(30);
/// What is said when the command of the hook before is not gone.
const HELD: &str =
    "the command of the hook before was killed and is not gone; it may wait for a disk that does not answer";

/// The end of what was said, in one line, without secrets.
fn words(said: &[u8], secrets: &[String]) -> String {
    let said = line(&redact(&String::from_utf8_lossy(said), secrets));
    let from = said.len().saturating_sub(TOLD);
    let from = (from..said.len()).find(|at| said.is_char_boundary(*at)).unwrap_or(said.len());
    if from == 0 { said } else { format!("…{}", &said[from..]) }
}

/// The beginning likewise.
fn beginning(said: &str) -> String {
    let mut said = line(said);
    if said.len() > TOLD {
        let to = (0..=TOLD).rev().find(|at| said.is_char_boundary(*at)).unwrap_or(0);
        said.truncate(to);
        said.push('…');
    }
    said
}

fn line(said: &str) -> String {
    let lines: Vec<String> = said
        .lines()
        .map(|line| line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>().trim().to_owned())
        .filter(|line| !line.is_empty())
        .collect();
    lines.join("; ")
}

/// Takes secrets out of a text, also the lines of one that has several: what was kept may not have begun with the first.
fn redact(text: &str, secrets: &[String]) -> String {
    const SHORT: usize = 4;
    let lines = secrets.iter().flat_map(|secret| secret.lines()).map(str::trim).filter(|line| line.len() >= SHORT);
    let whole = secrets.iter().map(|secret| secret.trim()).filter(|secret| !secret.is_empty());
    let mut all: Vec<&str> = whole.chain(lines).collect();
    all.sort_unstable_by_key(|secret| std::cmp::Reverse(secret.len()));
    all.into_iter().fold(text.to_owned(), |text, secret| text.replace(secret, "***"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use ostler_core::kinds::HttpGet;
    use serde_json::json;

    use super::*;

    const SECRETS: [(&str, &str); 2] = [("TOKEN", "canary-1"), ("KEY", "line-one\nline-two")];

    fn surroundings() -> Surroundings {
        let mut env = BTreeMap::from([("PATH".to_owned(), std::env::var("PATH").unwrap())]);
        env.extend(SECRETS.map(|(name, value)| (name.to_owned(), value.to_owned())));
        Surroundings { env, working_dir: "/".into(), ..Surroundings::default() }
    }

    fn order(script: &str, timeout: Span) -> HookOrder {
        let exec = serde_json::from_value(json!({"command": ["sh", "-c", script]})).unwrap();
        HookOrder {
            id: "default/web-0".into(),
            uid: "hooks-test".to_owned(),
            attempt: 1,
            kind: HookKind::PreStart,
            hook: Hook { exec: Some(exec), timeout, ..Hook::default() },
            cgroup: String::new(),
            ports: BTreeMap::new(),
            surroundings: Ok(surroundings()),
            secrets: SECRETS.map(|(_, value)| value.to_owned()).into(),
        }
    }

    async fn report(reports: &mut mpsc::UnboundedReceiver<HookReport>) -> HookReport {
        tokio::time::timeout(Duration::from_secs(60), reports.recv()).await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn a_command_is_told_by_its_last_words_without_secrets() {
        let (mut hooks, mut reports) = Hooks::new(AllowList::default());
        let second = Span::from_secs(60);
        for (script, succeeded, message) in [
            ("echo hello", true, "hello"),
            ("echo a; echo \"$TOKEN\" >&2; exit 3", false, "exit code 3: a; ***"),
            ("echo \"$KEY\"; echo line-two; exit 1", false, "exit code 1: ***; ***"),
            ("kill -9 $$$$", false, "ended by SIGKILL"),
        ] {
            hooks.run(order(script, second));
            let report = report(&mut reports).await;
            assert!(hooks.finished(&report));
            assert_eq!((report.succeeded, report.message.as_str()), (succeeded, message), "{script}");
        }
        hooks.run(order("yes abcdefgh | head -c 100000; echo the end; exit 1", second));
        let report = report(&mut reports).await;
        assert!(report.message.ends_with("the end") && report.message.len() < 300, "{}", report.message);
    }

    #[tokio::test]
    async fn the_timeout_takes_everything_along_and_the_next_one_waits_for_that() {
        let (mut hooks, mut reports) = Hooks::new(AllowList::default());
        let directory = tempfile::tempdir().unwrap();
        let pid = directory.path().join("pid");
        let script = format!("setsid sleep 100000 & echo $! > {}; echo begun; wait", pid.display());
        hooks.run(order(&script, Span::from_secs(2)));
        let first = report(&mut reports).await;
        assert!(hooks.finished(&first));
        assert_eq!(first.message, "not over within 2s, and killed: begun");
        let pid = fs::read_to_string(&pid).unwrap();
        let status = Path::new("/proc").join(pid.trim());
        // Whoever has inherited it may not have reaped it yet.
        let gone = format!("test ! -d {0} || grep -q '^State:.*zombie' {0}/status", status.display());
        hooks.run(order(&gone, Span::from_secs(60)));
        let second = report(&mut reports).await;
        assert!(second.succeeded, "the one before is gone when the next begins: {second:?}");
    }

    #[tokio::test]
    async fn what_was_cancelled_is_not_taken_for_the_one_that_came_after() {
        let (mut hooks, mut reports) = Hooks::new(AllowList::default());
        hooks.run(order("sleep 100000", Span::from_secs(600)));
        hooks.run(order("echo second", Span::from_secs(60)));
        let mut told = Vec::new();
        while told.is_empty() {
            let report = report(&mut reports).await;
            if hooks.finished(&report) {
                told.push(report.message);
            }
        }
        assert_eq!(told, ["second"]);
    }

    #[tokio::test]
    async fn a_request_goes_to_nobody_else_than_a_probe_may_ask() {
        let (mut hooks, mut reports) = Hooks::new(AllowList::default());
        let get: HttpGet = serde_json::from_value(json!({"port": 80, "host": "192.0.2.1"})).unwrap();
        let hook = Hook { http_get: Some(get), ..Hook::default() };
        hooks.run(HookOrder { hook, ..order("", Span::ZERO) });
        let report = report(&mut reports).await;
        assert!(!report.succeeded && report.message.contains("--probe-allow"), "{}", report.message);
    }
}
