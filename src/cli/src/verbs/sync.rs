//! `ostler sync`: lets Sources apply what their directories hold now, and tells how that went.

use std::collections::BTreeSet;
use std::time::Duration;

use ostler_core::Timestamp;
use ostler_rpc::v1;
use tokio::time::Instant;

use crate::client::{Client, selector};
use crate::ctx::Ctx;
use crate::duration;
use crate::error::Error;
use crate::exit::Exit;
use crate::kinds::Kind;
use crate::views;
use crate::watch::{Change, Watcher};

/// Apply what the directories of Sources hold, now
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Changes in a directory are noticed without it. Waits for the result: the exit code is 1 when
a Source could not be applied, and what was in force before is then still in force.

Examples:
  ostler sync
  ostler sync apps
  ostler sync apps --allow-prune     # deletes however much has left the directory")]
pub(crate) struct Args {
    /// NAME… or source/NAME… [default: every Source that is not suspended]
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Delete as many objects as have left the directory, whatever maxDeletions says
    #[arg(long)]
    allow_prune: bool,
    /// How long to wait; 0: for ever
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration::parse)]
    timeout: Duration,
}

pub(crate) async fn run(ctx: &mut Ctx, args: Args) -> Result<Exit, Error> {
    let names = args.names.iter().map(|word| name(word)).collect::<Result<Vec<_>, _>>()?;
    let deadline = (!args.timeout.is_zero()).then(|| Instant::now() + args.timeout);
    let mut client = Client::connect(&ctx.settings).await?;
    let request = v1::SyncRequest { names: names.clone(), allow_prune: args.allow_prune };
    let mut api = client.api.clone();
    let answer = match client.once(api.sync(request)).await {
        Ok(answer) => answer,
        Err(error) if error.is_not_found() => {
            let name = names.first().cloned().unwrap_or_default();
            return Err(client.suggest_name(error, Kind::Source, "", &name).await);
        }
        Err(error) => return Err(error),
    };
    let requested: Timestamp = answer
        .requested_at
        .parse()
        .map_err(|why| Error::failed(format!("the daemon answered with a time that cannot be read: {why}"), ""))?;
    let mut pending: BTreeSet<String> = answer.sources.into_iter().map(|source| source.name).collect();
    if pending.is_empty() {
        ctx.note("No resources found")?;
        return Ok(Exit::Ok);
    }
    let mut failed = false;
    let wanted = v1::Selector { names: pending.iter().cloned().collect(), ..selector(Kind::Source, "") };
    let mut watcher = Watcher::new(&ctx.settings, wanted);
    while !pending.is_empty() {
        let waiting = pending.iter().cloned().collect::<Vec<_>>().join(", ");
        ctx.progress(&format!("waiting for {waiting}"))?;
        let change = match deadline {
            None => watcher.next().await?,
            Some(deadline) => tokio::time::timeout_at(deadline, watcher.next()).await.map_err(|_| {
                Error::Timeout(format!("waiting for {waiting} to be synced; see ostler describe source/NAME"))
            })??,
        };
        match change {
            Change::Present(seen) if pending.contains(&seen.name) => {
                let source: views::Source = views::parse(&seen.json)?;
                let status = source.status.unwrap_or_default();
                let handled = status.last_handled_sync.as_deref().and_then(|at| at.parse::<Timestamp>().ok());
                if handled < Some(requested) {
                    continue;
                }
                pending.remove(&seen.name);
                let synced = views::condition(status.conditions.as_ref(), "Synced");
                let message = synced.and_then(|condition| condition.message.clone()).unwrap_or_default();
                if status.sync.as_deref() == Some("Synced") {
                    ctx.line(format_args!("source/{} synced: {message}", seen.name))?;
                } else {
                    failed = true;
                    let reason = synced.and_then(|condition| condition.reason.clone()).unwrap_or_default();
                    ctx.note(format_args!("error: source/{} was not synced ({reason}):", seen.name))?;
                    for line in message.lines() {
                        ctx.note(format_args!("  {line}"))?;
                    }
                }
            }
            Change::Gone(seen) if pending.contains(&seen.name) => {
                return Err(Error::failed(format!("source/{} was deleted meanwhile", seen.name), ""));
            }
            Change::Present(_) | Change::Gone(_) | Change::Synced => {}
        }
    }
    Ok(if failed { Exit::Failure } else { Exit::Ok })
}

/// The name in `NAME` or `source/NAME`.
pub(crate) fn name(word: &str) -> Result<String, Error> {
    match word.split_once('/') {
        None => Ok(word.to_owned()),
        Some((kind, name)) if Kind::parse(kind) == Some(Kind::Source) && !name.is_empty() => Ok(name.to_owned()),
        Some(_) => Err(Error::usage(format!("\"{word}\" is not a Source"), "write NAME or source/NAME")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_named_with_and_without_their_kind() {
        for word in ["apps", "source/apps", "src/apps", "sources/apps"] {
            assert_eq!(name(word).unwrap(), "apps");
        }
        for word in ["process/apps", "source/", "/apps"] {
            assert!(name(word).is_err(), "{word}");
        }
    }
}
