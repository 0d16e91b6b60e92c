//! `ostler restart`, `stop` and `start`: one intent each, and waiting for it to come true.

use std::collections::BTreeMap;
use std::time::Duration;

use ostler_core::kinds::GROUP;
use ostler_rpc::v1;
use ostler_rpc::v1::act_request::Action;
use tokio::time::Instant;

use crate::client::{Client, selector, show};
use crate::conditions::Proving;
use crate::ctx::Ctx;
use crate::duration;
use crate::error::Error;
use crate::exit::Exit;
use crate::kinds::Kind;
use crate::targets::{self, Target};
use crate::views;
use crate::watch::{Change, Watcher};

/// What to act on.
#[derive(Debug, clap::Args)]
struct Choice {
    /// process/NAME…, instance/NAME…, group/NAME…; to stop and start also job/NAME…, cronjob/NAME…
    #[arg(required = true, value_name = "TARGET")]
    targets: Vec<String>,
    /// Only those with these labels
    #[arg(short = 'l', long, value_name = "LABELS")]
    selector: Option<String>,
    /// All of the kind
    #[arg(long)]
    all: bool,
    /// How long to wait; 0: for ever
    #[arg(long, value_name = "DURATION", default_value = "0", value_parser = duration::parse)]
    timeout: Duration,
}

/// Stop and start again, one instance at a time; a group all at once, in the order of its dependencies
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Clears backoff and an open circuit breaker.

Examples:
  ostler restart process/web
  ostler restart instance/web-0 --wait --timeout 30s
  ostler restart processes -l tier=front
  ostler restart group/backend                  # label ostler.dev/group: backend")]
pub(crate) struct RestartArgs {
    #[command(flatten)]
    choice: Choice,
    /// Wait until what was restarted is ready again
    #[arg(long)]
    wait: bool,
}

/// Stop, and stay stopped until started
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Waits until every process of the tree is gone. Jobs and cronjobs are suspended.

Examples:
  ostler stop process/web
  ostler stop instance/web-0 --no-wait
  ostler stop processes --all --timeout 1m")]
pub(crate) struct StopArgs {
    #[command(flatten)]
    choice: Choice,
    /// Return when the intent is stored
    #[arg(long)]
    no_wait: bool,
}

/// Start what is stopped, failed or waiting to be restarted
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Clears backoff and an open circuit breaker.

Examples:
  ostler start process/web
  ostler start instance/web-0 --wait")]
pub(crate) struct StartArgs {
    #[command(flatten)]
    choice: Choice,
    /// Wait until what was started is ready
    #[arg(long)]
    wait: bool,
}

pub(crate) async fn restart(ctx: &mut Ctx, args: RestartArgs) -> Result<Exit, Error> {
    run(ctx, Action::Restart, &args.choice, args.wait).await
}

pub(crate) async fn stop(ctx: &mut Ctx, args: StopArgs) -> Result<Exit, Error> {
    run(ctx, Action::Stop, &args.choice, !args.no_wait).await
}

pub(crate) async fn start(ctx: &mut Ctx, args: StartArgs) -> Result<Exit, Error> {
    run(ctx, Action::Start, &args.choice, args.wait).await
}

/// A kind without names, labels or --all would mean everything by accident.
pub(crate) fn require_choice(target: &Target, labels: Option<&str>, all: bool) -> Result<(), Error> {
    if target.names.is_empty() && labels.is_none() && !all {
        return Err(Error::usage(
            format!("which {}?", target.kind.plural()),
            format!("write {}/NAME, -l LABELS or --all", target.kind.singular()),
        ));
    }
    if !target.names.is_empty() && (labels.is_some() || all) {
        return Err(Error::usage("names cannot be combined with -l or --all", ""));
    }
    Ok(())
}

/// Adds "did you mean" where a single name was not found.
pub(crate) async fn suggest(client: &mut Client, error: Error, target: &Target, ctx: &Ctx) -> Error {
    match target.names.as_slice() {
        [name] if error.is_not_found() => client.suggest_name(error, target.kind, ctx.settings.namespace(), name).await,
        _ => error,
    }
}

/// The processes of a group, as a target and the labels that select them.
fn group(word: &str) -> Option<Result<(Target, String), Error>> {
    let (kind, name) = word.split_once('/')?;
    if !matches!(kind.to_ascii_lowercase().as_str(), "group" | "groups") {
        return None;
    }
    if let Err(why) = ostler_core::name::label_value(name)
        && !name.is_empty()
    {
        return Some(Err(Error::usage(format!("\"{name}\" is not the name of a group: {why}"), "")));
    }
    if name.is_empty() {
        return Some(Err(Error::usage("which group?", format!("write group/NAME, for the label {GROUP}: NAME"))));
    }
    Some(Ok((Target { kind: Kind::Process, names: Vec::new() }, format!("{GROUP}={name}"))))
}

/// What is meant, each with the labels that select it if it is a group.
fn wanted(choice: &Choice) -> Result<Vec<(Target, Option<String>)>, Error> {
    let mut wanted = Vec::new();
    let mut others = Vec::new();
    for word in &choice.targets {
        match group(word) {
            Some(group) => {
                let (target, labels) = group?;
                if choice.selector.is_some() || choice.all {
                    return Err(Error::usage("a group cannot be combined with -l or --all", ""));
                }
                wanted.push((target, Some(labels)));
            }
            None => others.push(word.clone()),
        }
    }
    if !others.is_empty() {
        for target in targets::parse_runnable(&others)? {
            require_choice(&target, choice.selector.as_deref(), choice.all)?;
            wanted.push((target, None));
        }
    }
    Ok(wanted)
}

async fn run(ctx: &mut Ctx, action: Action, choice: &Choice, wait: bool) -> Result<Exit, Error> {
    let targets = wanted(choice)?;
    let mut client = Client::connect(&ctx.settings).await?;
    let deadline = (!choice.timeout.is_zero()).then(|| Instant::now() + choice.timeout);
    let namespace = ctx.settings.namespace().to_owned();
    for (target, group) in &targets {
        let before =
            if wait && action == Action::Restart { attempts(&mut client, &namespace).await? } else { BTreeMap::new() };
        let mut wanted = selector(target.kind, &namespace);
        wanted.names.clone_from(&target.names);
        wanted.labels = group.clone().or_else(|| choice.selector.clone()).unwrap_or_default();
        let request = v1::ActRequest {
            action: action.into(),
            selector: Some(wanted),
            all: choice.all,
            together: group.is_some(),
        };
        let mut api = client.api.clone();
        let answer = match client.once(api.act(request)).await {
            Ok(answer) => answer,
            Err(error) => return Err(suggest(&mut client, error, target, ctx).await),
        };
        if answer.results.is_empty() {
            match group {
                Some(labels) => ctx.note(format_args!("No processes with the label {labels} found."))?,
                None => ctx.note(format_args!("No {} found.", target.kind.plural()))?,
            }
        }
        let results: Vec<(String, String)> = answer
            .results
            .iter()
            .map(|acted| (acted.object.as_ref().map(show).unwrap_or_default(), acted.message.clone()))
            .collect();
        // A job starts its runs when it may; a cronjob has none.
        let waits = match target.kind {
            Kind::Process | Kind::Instance => true,
            Kind::Job => action == Action::Stop,
            Kind::CronJob
            | Kind::Namespace
            | Kind::ConfigMap
            | Kind::Secret
            | Kind::Source
            | Kind::External
            | Kind::Event => false,
        };
        if wait && waits && !results.is_empty() {
            let names = answer.results.iter().filter_map(|acted| Some(acted.object.as_ref()?.name.clone())).collect();
            settle(ctx, action, target.kind, names, &before, deadline).await?;
        }
        for (name, message) in results {
            ctx.line(format_args!("{name} {message}"))?;
        }
    }
    Ok(Exit::Ok)
}

async fn attempts(client: &mut Client, namespace: &str) -> Result<BTreeMap<String, u64>, Error> {
    let mut attempts = BTreeMap::new();
    for object in client.list(selector(Kind::Instance, namespace)).await? {
        let instance: views::Instance = views::parse(&object.json)?;
        let attempt = instance.status.as_ref().and_then(|status| status.attempt).unwrap_or(0);
        attempts.insert(instance.metadata.name().to_owned(), attempt);
    }
    Ok(attempts)
}

/// Whether an instance is where the action wants it.
fn done(action: Action, instance: &views::Instance, attempt_before: Option<u64>) -> bool {
    let attempt = instance.status.as_ref().and_then(|status| status.attempt).unwrap_or(0);
    match action {
        Action::Stop => matches!(instance.phase(), "Stopped" | "Lost"),
        Action::Start => instance.phase() == "Running" && instance.ready(),
        Action::Restart => {
            instance.phase() == "Running" && instance.ready() && attempt_before.is_none_or(|before| attempt > before)
        }
        Action::Unspecified => true,
    }
}

/// Waits for the instances named, or for those of the processes named.
async fn settle(
    ctx: &mut Ctx,
    action: Action,
    kind: Kind,
    names: Vec<String>,
    before: &BTreeMap<String, u64>,
    deadline: Option<Instant>,
) -> Result<(), Error> {
    let mut wanted = selector(Kind::Instance, ctx.settings.namespace());
    match (kind, names.as_slice()) {
        (Kind::Process | Kind::Job, [name]) => wanted.fields = format!("owner={name}"),
        (Kind::Process | Kind::Job, _) => {}
        (
            Kind::Instance
            | Kind::Namespace
            | Kind::ConfigMap
            | Kind::Secret
            | Kind::CronJob
            | Kind::Source
            | Kind::External
            | Kind::Event,
            _,
        ) => {
            wanted.names.clone_from(&names);
        }
    }
    let mut watcher = Watcher::new(&ctx.settings, wanted);
    let mut waiting: BTreeMap<String, String> = BTreeMap::new();
    let mut proving = Proving::default();
    let mut synced = false;
    while !synced || !waiting.is_empty() {
        let next = async {
            tokio::select! {
                change = watcher.next() => change.map(Ok),
                name = proving.next() => Ok(Err(name)),
            }
        };
        let change = match deadline {
            None => next.await?,
            Some(deadline) => match tokio::time::timeout_at(deadline, next).await {
                Ok(change) => change?,
                Err(_) => return Err(Error::Timeout(format!("waiting for {}", list(&waiting)))),
            },
        };
        let change = match change {
            Ok(change) => change,
            Err(name) => {
                waiting.remove(&name);
                continue;
            }
        };
        match change {
            Change::Synced => synced = true,
            Change::Gone(seen) => {
                proving.forget(&seen.name);
                waiting.remove(&seen.name);
            }
            Change::Present(seen) => {
                let instance: views::Instance = views::parse(&seen.json)?;
                if matches!(kind, Kind::Process | Kind::Job) && !names.iter().any(|name| name == instance.process()) {
                    continue;
                }
                let failed = kind == Kind::Job && instance.phase() == "Failed";
                let done = done(action, &instance, before.get(&seen.name).copied());
                let object: serde_json::Value = serde_json::from_slice(&seen.json)?;
                let proven = if action == Action::Stop { done } else { proving.see(&seen.name, &object, done) };
                if failed || proven {
                    waiting.remove(&seen.name);
                } else if action == Action::Stop && instance.phase() == "Stuck" {
                    return Err(Error::failed(
                        format!("instance/{} cannot be killed: {}", seen.name, instance.why()),
                        "a process that hangs in the kernel ends when what it waits for does",
                    ));
                } else if action != Action::Stop && instance.phase() == "Failed" {
                    return Err(Error::failed(
                        format!("instance/{} is not started: {}", seen.name, instance.why()),
                        format!("see ostler describe instance/{}", seen.name),
                    ));
                } else {
                    waiting.insert(seen.name, instance.phase().to_owned());
                }
            }
        }
        if synced && !waiting.is_empty() {
            ctx.progress(&format!("waiting for {}", list(&waiting)))?;
        }
    }
    ctx.progress_done()
}

/// "web-0 (Stopping), web-1 (Stopping) and 8 more"
fn list(waiting: &BTreeMap<String, String>) -> String {
    let names: Vec<String> = waiting.iter().take(4).map(|(name, phase)| format!("{name} ({phase})")).collect();
    match waiting.len().saturating_sub(names.len()) {
        0 => names.join(", "),
        rest => format!("{} and {rest} more", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(json: &str) -> views::Instance {
        views::parse(json.as_bytes()).unwrap()
    }

    #[test]
    fn a_restart_is_done_when_a_later_attempt_is_ready() {
        let running = instance(r#"{"status":{"phase":"Running","ready":true,"attempt":4}}"#);
        assert!(done(Action::Restart, &running, Some(3)));
        assert!(!done(Action::Restart, &running, Some(4)));
        assert!(done(Action::Start, &running, None));
        assert!(!done(Action::Stop, &running, None));
        assert!(done(Action::Stop, &instance(r#"{"status":{"phase":"Stopped"}}"#), None));
    }

    #[test]
    fn groups_are_processes_with_a_label() {
        let choice = |words: &[&str]| Choice {
            targets: words.iter().map(ToString::to_string).collect(),
            selector: None,
            all: false,
            timeout: Duration::ZERO,
        };
        let found = wanted(&choice(&["group/backend", "process/web"])).unwrap();
        assert_eq!(found[0].1.as_deref(), Some("ostler.dev/group=backend"));
        assert_eq!((found[1].0.names.as_slice(), &found[1].1), (&["web".to_owned()][..], &None));
        assert!(wanted(&choice(&["group/"])).is_err());
        assert!(wanted(&choice(&["group/a b"])).is_err());
    }

    #[test]
    fn everything_is_chosen_only_explicitly() {
        let target =
            |names: &[&str]| Target { kind: Kind::Process, names: names.iter().map(ToString::to_string).collect() };
        assert!(require_choice(&target(&[]), None, false).is_err());
        assert!(require_choice(&target(&[]), Some("a=b"), false).is_ok());
        assert!(require_choice(&target(&[]), None, true).is_ok());
        assert!(require_choice(&target(&["web"]), None, true).is_err());
    }
}
