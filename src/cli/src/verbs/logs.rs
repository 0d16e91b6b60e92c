//! `ostler logs`: the output of instances, as they wrote it.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use ostler_rpc::v1::{self, logs_request::Stream};
use tokio::sync::mpsc;

use crate::client::{Client, selector};
use crate::ctx::Ctx;
use crate::duration;
use crate::error::Error;
use crate::exit::Exit;
use crate::kinds::{self, Kind};
use crate::tail::{Lines, Piece, Tail, prefix, spawn};
use crate::views;
use crate::watch::{Change, Watcher};

/// Print what instances wrote
#[derive(Debug, clap::Args)]
#[command(after_help = "\
One instance without --timestamps is printed byte for byte, stdout and stderr in order of
arrival. Following goes on through restarts of the instance and of the daemon; nothing is
lost or repeated.

Examples:
  ostler logs web-0
  ostler logs process/web -f --since 5m
  ostler logs web-0 --previous --stream stderr
  ostler logs -l app=web --tail 20 --timestamps")]
pub(crate) struct Args {
    /// INSTANCE, instance/NAME, or process/NAME or job/NAME for all its instances
    #[arg(value_name = "TARGET", required_unless_present = "selector")]
    target: Option<String>,
    /// Go on with what is written from now on
    #[arg(short, long)]
    follow: bool,
    /// Only what arrived within this time
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, conflicts_with = "since_time")]
    since: Option<Duration>,
    /// Only what arrived after this time (RFC 3339)
    #[arg(long, value_name = "TIME")]
    since_time: Option<Timestamp>,
    /// Only the last lines
    #[arg(long, value_name = "N")]
    tail: Option<u64>,
    /// Of the attempt before the current one
    #[arg(short, long, conflicts_with_all = ["all_attempts", "follow"])]
    previous: bool,
    /// Of every attempt that is kept
    #[arg(long)]
    all_attempts: bool,
    /// Of this attempt only; describe and events tell the numbers
    #[arg(long, value_name = "N", conflicts_with_all = ["previous", "all_attempts", "follow"])]
    attempt: Option<u64>,
    /// Begin lines with their time
    #[arg(long)]
    timestamps: bool,
    /// Only this stream
    #[arg(long, value_enum, default_value_t = Which::All)]
    stream: Which,
    /// Those with these labels
    #[arg(short = 'l', long, value_name = "LABELS", conflicts_with = "target")]
    selector: Option<String>,
    /// Begin lines with the name of the instance [default: when there are several]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    prefix: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Which {
    All,
    Stdout,
    Stderr,
}

pub(crate) async fn run(ctx: &mut Ctx, args: Args) -> Result<Exit, Error> {
    let namespace = ctx.settings.namespace().to_owned();
    match args.target.as_deref().map(target).transpose()? {
        Some((Kind::Instance, name)) => {
            one(ctx, &args, &namespace, &name).await?;
        }
        Some((kind, name)) => {
            let wanted = v1::Selector { fields: format!("owner={name}"), ..selector(Kind::Instance, &namespace) };
            // An unknown process or job is an error; one without instances is not.
            Client::connect(&ctx.settings).await?.get(kind, &namespace, &name).await?;
            several(ctx, &args, wanted).await?;
        }
        None => {
            let labels = args.selector.clone().unwrap_or_default();
            several(ctx, &args, v1::Selector { labels, ..selector(Kind::Instance, &namespace) }).await?;
        }
    }
    Ok(Exit::Ok)
}

/// A bare name is an instance's.
fn target(word: &str) -> Result<(Kind, String), Error> {
    let Some((kind, name)) = word.split_once('/') else { return Ok((Kind::Instance, word.to_owned())) };
    match kinds::parse(kind)? {
        kind @ (Kind::Process | Kind::Job | Kind::Instance) => Ok((kind, name.to_owned())),
        Kind::CronJob => {
            Err(Error::usage("a cronjob has no logs of its own", "name one of its jobs; see ostler get jobs"))
        }
        kind @ (Kind::Namespace | Kind::ConfigMap | Kind::Secret | Kind::Source | Kind::External | Kind::Event) => {
            Err(Error::usage(format!("{} have no logs", kind.plural()), "name a process, a job or an instance"))
        }
    }
}

fn request(args: &Args, namespace: &str, instance: &str) -> v1::LogsRequest {
    let since = match (args.since, args.since_time) {
        (Some(since), _) => {
            let ago = i128::try_from(since.as_nanos()).unwrap_or(i128::MAX);
            // 0 would mean everything.
            i64::try_from(Timestamp::now().as_nanosecond().saturating_sub(ago)).unwrap_or(1).max(1)
        }
        (None, Some(time)) => i64::try_from(time.as_nanosecond()).unwrap_or(i64::MAX).max(1),
        (None, None) => 0,
    };
    let stream = match args.stream {
        Which::All => Stream::All,
        Which::Stdout => Stream::Stdout,
        Which::Stderr => Stream::Stderr,
    };
    v1::LogsRequest {
        namespace: namespace.into(),
        instance: instance.into(),
        follow: args.follow,
        previous: args.previous,
        all_attempts: args.all_attempts,
        tail_lines: args.tail,
        since,
        stream: stream.into(),
        resume: None,
        attempt: args.attempt,
    }
}

/// Prints one instance; its bytes unchanged unless lines were asked for.
async fn one(ctx: &mut Ctx, args: &Args, namespace: &str, name: &str) -> Result<(), Error> {
    let prefix = if args.prefix == Some(true) { prefix(name, 0, ctx.terminal.color) } else { String::new() };
    let raw = !args.timestamps && prefix.is_empty();
    let mut lines = Lines::new(args.timestamps);
    let mut tail = Tail::new(&ctx.settings, request(args, namespace, name));
    let mut first = true;
    loop {
        let chunk = match tail.next().await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => break,
            Err(error) if first && error.is_not_found() => {
                let mut client = Client::connect(&ctx.settings).await?;
                return Err(absent(&mut client, error, namespace, name).await);
            }
            Err(error) => {
                lines.finish(&mut *ctx.out, 0)?;
                return Err(error);
            }
        };
        first = false;
        if raw {
            ctx.out.write_all(&chunk.data)?;
        } else {
            lines.write(&mut *ctx.out, 0, &prefix, &chunk)?;
        }
        if args.follow {
            ctx.out.flush()?;
        }
    }
    lines.finish(&mut *ctx.out, 0)?;
    Ok(())
}

/// A process' name where an instance's is wanted is the usual mistake.
async fn absent(client: &mut Client, error: Error, namespace: &str, name: &str) -> Error {
    if client.get(Kind::Process, namespace, name).await.is_ok()
        && let Error::Server(mut server) = error
    {
        server.hint = format!("of all instances of the process: ostler logs process/{name}");
        return Error::Server(server);
    }
    client.suggest_name(error, Kind::Instance, namespace, name).await
}

/// Prints all instances that a selector matches: one after the other, or following, as they come.
async fn several(ctx: &mut Ctx, args: &Args, wanted: v1::Selector) -> Result<(), Error> {
    let mut client = Client::connect(&ctx.settings).await?;
    let mut instances = Vec::new();
    for object in client.list(wanted.clone()).await? {
        let instance: views::Instance = views::parse(&object.json)?;
        let namespace = instance.metadata.namespace.clone().unwrap_or_default();
        instances.push((instance.spec.ordinal, namespace, instance.metadata.name().to_owned()));
    }
    instances.sort();
    drop(client);
    if args.follow {
        return follow(ctx, args, wanted, instances.len() > 1).await;
    }
    if instances.is_empty() {
        return ctx.note("No instances found.");
    }
    let named = args.prefix.unwrap_or(instances.len() > 1);
    let mut lines = Lines::new(args.timestamps);
    for (index, (_, namespace, name)) in instances.iter().enumerate() {
        let prefix = if named { prefix(name, index, ctx.terminal.color) } else { String::new() };
        let mut tail = Tail::new(&ctx.settings, request(args, namespace, name));
        while let Some(chunk) = tail.next().await? {
            if prefix.is_empty() && !args.timestamps {
                ctx.out.write_all(&chunk.data)?;
            } else {
                lines.write(&mut *ctx.out, index, &prefix, &chunk)?;
            }
        }
        lines.finish(&mut *ctx.out, index)?;
    }
    Ok(())
}

/// Chunks that wait to be printed; more stay with the daemon.
const PIECES: usize = 64;

async fn follow(ctx: &mut Ctx, args: &Args, wanted: v1::Selector, several: bool) -> Result<(), Error> {
    let (sender, mut pieces) = mpsc::channel::<Piece>(PIECES);
    let mut watcher = Watcher::new(&ctx.settings, wanted);
    let mut lines = Lines::new(args.timestamps);
    let mut names: Vec<String> = Vec::new();
    let mut active = BTreeSet::new();
    let mut synced = false;
    while !synced || !active.is_empty() {
        tokio::select! {
            change = watcher.next() => match change? {
                Change::Present(seen) => {
                    let running = active.iter().any(|index: &usize| names[*index] == seen.name);
                    if running {
                        continue;
                    }
                    let meta = views::parse::<views::Bare>(&seen.json)?.metadata;
                    let mut request = request(args, meta.namespace.as_deref().unwrap_or_default(), &seen.name);
                    if synced {
                        // It is new: all of it is.
                        request.tail_lines = None;
                    }
                    active.insert(names.len());
                    spawn(names.len(), Tail::new(&ctx.settings, request), sender.clone());
                    names.push(seen.name);
                }
                Change::Gone(_) => {}
                Change::Synced => synced = true,
            },
            Some(piece) = pieces.recv() => {
                let name = &names[piece.index];
                match piece.content {
                    Ok(chunk) => {
                        let prefixed = args.prefix.unwrap_or(several || names.len() > 1);
                        if prefixed || args.timestamps {
                            let prefix =
                                if prefixed { prefix(name, piece.index, ctx.terminal.color) } else { String::new() };
                            lines.write(&mut *ctx.out, piece.index, &prefix, &chunk)?;
                        } else {
                            ctx.out.write_all(&chunk.data)?;
                        }
                    }
                    Err(error) => {
                        lines.finish(&mut *ctx.out, piece.index)?;
                        active.remove(&piece.index);
                        match error {
                            Some(error) if !error.is_not_found() => return Err(error),
                            Some(_) | None => {}
                        }
                    }
                }
                ctx.out.flush()?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_name_is_an_instance() {
        assert_eq!(target("web-0").unwrap(), (Kind::Instance, "web-0".into()));
        assert_eq!(target("inst/web-0").unwrap(), (Kind::Instance, "web-0".into()));
        assert_eq!(target("process/web").unwrap(), (Kind::Process, "web".into()));
        assert!(target("ns/default").is_err());
    }
}
