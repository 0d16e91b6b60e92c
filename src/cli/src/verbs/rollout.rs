//! `ostler rollout`: how a change reaches the instances of a Process, and back.

use std::io::Write as _;
use std::time::Duration;

use ostler_rpc::v1;
use ostler_rpc::v1::rollout_request::Action;
use serde_json::Value;
use tokio::time::Instant;

use crate::client::{Client, reference, selector};
use crate::conditions::{Progress, progress};
use crate::ctx::Ctx;
use crate::duration;
use crate::error::Error;
use crate::exit::Exit;
use crate::kinds::Kind;
use crate::output::json;
use crate::output::table::{Cell, Printer};
use crate::targets;
use crate::watch::{Change, Watcher};

/// Watch, pause, resume and undo changes of a process
#[derive(Debug, clap::Args)]
#[command(after_help = "\
`status` ends with 0 when the rollout is complete, with 1 when it has failed or was rolled
back, and with 4 when --timeout ran out.

Examples:
  ostler rollout status process/web
  ostler rollout history process/web --revision=2
  ostler rollout undo process/web
  ostler rollout pause process/web")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Wait until the rollout is complete, or has failed
    Status(StatusArgs),
    /// List the revisions that are kept
    History(HistoryArgs),
    /// Return to an earlier revision
    Undo(UndoArgs),
    /// Replace nothing until resumed
    Pause(Target),
    /// Go on
    Resume(Target),
    /// Replace every instance by one of the same revision
    Restart(Target),
}

#[derive(Debug, clap::Args)]
struct Target {
    /// process/NAME
    #[arg(required = true, value_name = "TARGET")]
    target: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct StatusArgs {
    #[command(flatten)]
    target: Target,
    /// Wait for the end; --watch=false tells how it is now
    #[arg(short = 'w', long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1,
          default_missing_value = "true")]
    watch: bool,
    /// How long to wait; 0: for ever
    #[arg(long, value_name = "DURATION", default_value = "0", value_parser = duration::parse)]
    timeout: Duration,
}

#[derive(Debug, clap::Args)]
struct HistoryArgs {
    #[command(flatten)]
    target: Target,
    /// Show what this revision was made from
    #[arg(long, value_name = "N")]
    revision: Option<u64>,
}

#[derive(Debug, clap::Args)]
struct UndoArgs {
    #[command(flatten)]
    target: Target,
    /// The revision to return to [default: the one before]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    to_revision: u64,
    /// Check and report, change nothing
    #[arg(long)]
    dry_run: bool,
}

impl Target {
    /// The names of the processes that are meant.
    fn names(&self) -> Result<Vec<String>, Error> {
        let mut names = Vec::new();
        for target in targets::parse_runnable(&self.target)? {
            if target.kind != Kind::Process || target.names.is_empty() {
                return Err(Error::usage("only processes, by name, have rollouts", "write process/NAME"));
            }
            names.extend(target.names);
        }
        Ok(names)
    }

    /// The one process that is meant.
    fn name(&self) -> Result<String, Error> {
        match self.names()?.as_slice() {
            [name] => Ok(name.clone()),
            _ => Err(Error::usage("one process at a time", "write process/NAME")),
        }
    }
}

pub(crate) async fn run(ctx: &mut Ctx, args: Args) -> Result<Exit, Error> {
    match args.command {
        Command::Status(args) => status(ctx, &args).await,
        Command::History(args) => history(ctx, &args).await,
        Command::Undo(args) => act(ctx, Action::Undo, &args.target, args.to_revision, args.dry_run).await,
        Command::Pause(target) => act(ctx, Action::Pause, &target, 0, false).await,
        Command::Resume(target) => act(ctx, Action::Resume, &target, 0, false).await,
        Command::Restart(target) => restart(ctx, &target).await,
    }
}

async fn status(ctx: &mut Ctx, args: &StatusArgs) -> Result<Exit, Error> {
    let name = args.target.name()?;
    let deadline = (!args.timeout.is_zero()).then(|| Instant::now() + args.timeout);
    let namespace = ctx.settings.namespace().to_owned();
    // So that a name that does not exist is told at once, and by the daemon.
    Client::connect(&ctx.settings).await?.get(Kind::Process, &namespace, &name).await?;
    let wanted = v1::Selector { names: vec![name.clone()], ..selector(Kind::Process, &namespace) };
    let mut watcher = Watcher::new(&ctx.settings, wanted);
    let mut last = String::new();
    loop {
        let change = match deadline {
            None => watcher.next().await?,
            Some(deadline) => tokio::time::timeout_at(deadline, watcher.next())
                .await
                .map_err(|_| Error::Timeout(format!("waiting for the rollout of process/{name}: {last}")))??,
        };
        let object: Value = match change {
            Change::Present(seen) => serde_json::from_slice(&seen.json)?,
            Change::Gone(_) => return Err(Error::failed(format!("process/{name} was deleted meanwhile"), "")),
            Change::Synced => continue,
        };
        match progress(&object) {
            Progress::Complete(message) => {
                ctx.line(message)?;
                return Ok(Exit::Ok);
            }
            Progress::Failed(message) => {
                let hint = format!("see ostler describe process/{name}; ostler rollout undo process/{name} returns");
                return Err(Error::failed(message, hint));
            }
            Progress::Waiting(message) => {
                if message != last {
                    ctx.line(&message)?;
                    ctx.out.flush()?;
                }
                if !args.watch {
                    return Ok(Exit::Ok);
                }
                last = message;
            }
        }
    }
}

async fn history(ctx: &mut Ctx, args: &HistoryArgs) -> Result<Exit, Error> {
    let name = args.target.name()?;
    let namespace = ctx.settings.namespace().to_owned();
    let object = Client::connect(&ctx.settings).await?.get(Kind::Process, &namespace, &name).await?;
    let object: Value = serde_json::from_slice(&object.json)?;
    let status = &object["status"];
    let mut revisions: Vec<(u64, &str, Value)> = Vec::new();
    for past in status["revisions"].as_array().into_iter().flatten() {
        let cause = past["changeCause"].as_str().unwrap_or_default();
        revisions.push((past["number"].as_u64().unwrap_or_default(), cause, past["template"].clone()));
    }
    let cause = status["changeCause"].as_str().unwrap_or_default();
    revisions.push((status["revisionNumber"].as_u64().unwrap_or_default(), cause, object["spec"].clone()));
    revisions.sort_by_key(|(number, ..)| *number);
    if let Some(wanted) = args.revision {
        let Some((_, _, template)) = revisions.into_iter().find(|(number, ..)| *number == wanted) else {
            let message = format!("process/{name} has no revision {wanted}");
            return Err(Error::failed(message, format!("see ostler rollout history process/{name}")));
        };
        write!(ctx.out, "{}", json::yaml(&template)?)?;
        return Ok(Exit::Ok);
    }
    let mut rows = vec![vec![Cell::from("REVISION"), Cell::from("CHANGE-CAUSE")]];
    for (number, cause, _) in revisions {
        let cause = if cause.is_empty() { "<none>" } else { cause };
        rows.push(vec![Cell::from(number.to_string()), Cell::from(cause)]);
    }
    Printer::new(false).print(&mut ctx.out, &rows)?;
    Ok(Exit::Ok)
}

async fn act(ctx: &mut Ctx, action: Action, target: &Target, to: u64, dry_run: bool) -> Result<Exit, Error> {
    let names = target.names()?;
    let mut client = Client::connect(&ctx.settings).await?;
    let namespace = ctx.settings.namespace().to_owned();
    let suffix = if dry_run { " (dry run)" } else { "" };
    for name in names {
        let object = Some(reference(Kind::Process, &namespace, &name));
        let request = v1::RolloutRequest { action: action.into(), object, to_revision: to, dry_run };
        let mut api = client.api.clone();
        match client.once(api.rollout(request)).await {
            Ok(answer) => ctx.line(format_args!("process/{name} {}{suffix}", answer.message))?,
            Err(error) if error.is_not_found() && action != Action::Undo => {
                return Err(client.suggest_name(error, Kind::Process, &namespace, &name).await);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Exit::Ok)
}

async fn restart(ctx: &mut Ctx, target: &Target) -> Result<Exit, Error> {
    let names = target.names()?;
    let client = Client::connect(&ctx.settings).await?;
    let selector = v1::Selector { names, ..selector(Kind::Process, ctx.settings.namespace()) };
    let action = v1::act_request::Action::Restart.into();
    let mut api = client.api.clone();
    let answer =
        client.once(api.act(v1::ActRequest { action, selector: Some(selector), all: false, together: false })).await?;
    for acted in answer.results {
        let name = acted.object.as_ref().map(crate::client::show).unwrap_or_default();
        ctx.line(format_args!("{name} {}", acted.message))?;
    }
    Ok(Exit::Ok)
}
