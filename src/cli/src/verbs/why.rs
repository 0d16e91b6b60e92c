//! `ostler why`: the chain of causes behind an object, in a few lines.
//!
//! What follows from what is decided in `ostler_core::why`; here its facts are fetched and its lines printed.

use ostler_core::Timestamp;
use ostler_core::graph::Node;
use ostler_core::kinds::{Event, Instance, Process};
use ostler_core::why::{self, Chain, Facts};
use ostler_rpc::v1;
use ostler_rpc::v1::logs_request::Stream;
use serde::de::DeserializeOwned;

use crate::client::{Client, selector};
use crate::ctx::Ctx;
use crate::error::Error;
use crate::exit::Exit;
use crate::kinds::{self, Kind};
use crate::output::Format;
use crate::output::json::{write_pretty, yaml};
use crate::tail::Tail;

/// Explain why something is as it is: what was asked for, how it ended, which policy decided, what comes next
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Of a process, the first instance that is in trouble is explained with it.

Examples:
  ostler why web-1
  ostler why process/web
  ostler why web-1 -o json")]
pub(crate) struct Args {
    /// An instance or a process: web-1, instance/web-1, process/web
    #[arg(value_name = "NAME")]
    target: String,
    /// json or yaml
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<Format>,
}

/// So many of its last lines are shown, each up to a length.
const WORDS: u64 = 3;
const LENGTH: usize = 200;

pub(crate) async fn run(ctx: &mut Ctx, args: Args) -> Result<Exit, Error> {
    let format = args.output.unwrap_or_default();
    let namespace = ctx.settings.namespace().to_owned();
    let mut client = Client::connect(&ctx.settings).await?;
    let chains = chains(ctx, &mut client, &namespace, &args.target).await?;
    match format {
        Format::Table => {
            for chain in &chains {
                writeln!(ctx.out, "{}: {}", chain.object, chain.summary)?;
                for link in &chain.links {
                    writeln!(ctx.out, "  {:<6}  {}", link.step.word(), link.text)?;
                }
            }
        }
        Format::Json => write_pretty(&mut *ctx.out, &serde_json::to_value(&chains)?)?,
        Format::Yaml => ctx.out.write_all(yaml(&serde_json::to_value(&chains)?)?.as_bytes())?,
        Format::Wide | Format::Name | Format::JsonPath(_) => {
            return Err(Error::usage("why is printed as text, json or yaml", "-o json"));
        }
    }
    Ok(Exit::Ok)
}

async fn chains(ctx: &Ctx, client: &mut Client, namespace: &str, target: &str) -> Result<Vec<Chain>, Error> {
    let (kind, name) = match target.split_once('/') {
        Some((kind, name)) => (Some(kinds::parse(kind)?), name),
        None => (None, target),
    };
    let is_process = match kind {
        Some(Kind::Process) => true,
        Some(Kind::Instance) => false,
        Some(other) => {
            return Err(Error::usage(
                format!("nothing is known about why a {} is as it is", other.singular()),
                "name a process or an instance",
            ));
        }
        // A bare name is an instance's, unless only a process has it.
        None => {
            find(client, Kind::Instance, namespace, name).await?.is_none()
                && find(client, Kind::Process, namespace, name).await?.is_some()
        }
    };
    if !is_process {
        let instance: Instance = parse(&client.get(Kind::Instance, namespace, name).await?)?;
        let process = find(client, Kind::Process, namespace, &instance.spec.process).await?;
        let process = process.as_ref().map(parse::<Process>).transpose()?;
        let siblings = instances(client, namespace, &instance.spec.process).await?;
        return Ok(vec![explain(ctx, client, &instance, process.as_ref(), &siblings).await?]);
    }
    let process: Process = parse(&client.get(Kind::Process, namespace, name).await?)?;
    let instances = instances(client, namespace, name).await?;
    let mut chains = vec![why::process(&process, &instances, now())];
    if let Some(troubled) = instances.iter().find(|instance| why::is_troubled(instance)) {
        chains.push(explain(ctx, client, troubled, Some(&process), &instances).await?);
    }
    Ok(chains)
}

async fn explain(
    ctx: &Ctx,
    client: &mut Client,
    instance: &Instance,
    process: Option<&Process>,
    siblings: &[Instance],
) -> Result<Chain, Error> {
    let metadata = &instance.metadata;
    let fields = format!("involvedObject.kind=Instance,involvedObject.uid={}", metadata.uid);
    let events = client.list(v1::Selector { fields, ..selector(Kind::Event, &metadata.namespace) }).await?;
    let events = events.iter().map(parse::<Event>).collect::<Result<Vec<_>, _>>()?;
    let last_words = last_words(ctx, instance).await?;
    let (kind, owner) = match &instance.spec.job {
        Some(share) => (Kind::Job, &share.name),
        None => (Kind::Process, &instance.spec.process),
    };
    let pending =
        v1::Selector { fields: "status.phase in (Pending,Failed)".to_owned(), ..selector(Kind::Instance, "") };
    let others = client.list(pending).await?;
    let mut waiters = others.iter().map(parse::<Instance>).collect::<Result<Vec<_>, _>>()?;
    let node = Node::new(kind, metadata.namespace.as_str(), owner.as_str());
    waiters.retain(|other| why::waits_for(other, &node));
    Ok(why::instance(&Facts {
        instance,
        process,
        siblings,
        waiters: &waiters,
        events: &events,
        last_words: &last_words,
        now: now(),
    }))
}

/// What the attempt that ended last wrote last: to stderr, or else to stdout.
async fn last_words(ctx: &Ctx, instance: &Instance) -> Result<Vec<String>, Error> {
    let Some(exit) = &instance.status.last_exit else { return Ok(Vec::new()) };
    for stream in [Stream::Stderr, Stream::Stdout] {
        let request = v1::LogsRequest {
            namespace: instance.metadata.namespace.clone(),
            instance: instance.metadata.name.clone(),
            attempt: Some(exit.attempt),
            tail_lines: Some(WORDS),
            stream: stream.into(),
            ..v1::LogsRequest::default()
        };
        let mut tail = Tail::new(&ctx.settings, request);
        let mut bytes = Vec::new();
        while let Some(chunk) = tail.next().await? {
            bytes.extend_from_slice(&chunk.data);
        }
        let lines: Vec<String> = String::from_utf8_lossy(&bytes).lines().filter_map(printable).collect();
        if !lines.is_empty() {
            return Ok(lines);
        }
    }
    Ok(Vec::new())
}

/// A line without what moves cursors, of bounded length; nothing for a blank one.
fn printable(line: &str) -> Option<String> {
    let line = line.trim_end();
    let clean: String = line.chars().filter(|c| !c.is_control()).take(LENGTH).collect();
    (!clean.trim().is_empty()).then_some(clean)
}

async fn find(client: &mut Client, kind: Kind, namespace: &str, name: &str) -> Result<Option<v1::Object>, Error> {
    let fields = format!("metadata.name={name}");
    Ok(client.list(v1::Selector { fields, ..selector(kind, namespace) }).await?.into_iter().next())
}

async fn instances(client: &mut Client, namespace: &str, process: &str) -> Result<Vec<Instance>, Error> {
    let fields = format!("owner={process}");
    let objects = client.list(v1::Selector { fields, ..selector(Kind::Instance, namespace) }).await?;
    let mut instances = objects.iter().map(parse::<Instance>).collect::<Result<Vec<_>, _>>()?;
    instances.sort_by_key(|instance| instance.spec.ordinal);
    Ok(instances)
}

fn parse<T: DeserializeOwned>(object: &v1::Object) -> Result<T, Error> {
    Ok(serde_json::from_slice(&object.json)?)
}

fn now() -> Timestamp {
    Timestamp::from_micros(jiff::Timestamp::now().as_microsecond())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_cannot_move_the_cursor() {
        assert_eq!(printable("\x1b[31mboom\x07\r").as_deref(), Some("[31mboom"));
        assert_eq!(printable("   "), None);
        assert_eq!(printable(&"x".repeat(500)).unwrap().len(), LENGTH);
    }
}
