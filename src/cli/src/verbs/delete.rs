//! `ostler delete`: marks objects for deletion and waits until they are gone, processes included.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use ostler_core::graph::{self, Edges, Node};
use ostler_core::kinds::Dependency;
use ostler_rpc::v1;
use serde::Deserialize as _;
use serde_json::Value;
use tokio::time::Instant;

use crate::client::{Client, selector, show};
use crate::ctx::Ctx;
use crate::documents::FileArgs;
use crate::duration;
use crate::error::Error;
use crate::exit::Exit;
use crate::kinds::{self, Kind};
use crate::targets;
use crate::watch::{Change, Watcher};

/// Delete objects; their processes are stopped
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ostler delete process/web
  ostler delete processes -l tier=test
  ostler delete -f web.yaml --ignore-not-found
  ostler delete process web --grace-period 0s     # kill at once")]
pub(crate) struct Args {
    /// KIND NAME… or KIND/NAME…
    #[arg(value_name = "TARGET", required_unless_present = "filename", conflicts_with = "filename")]
    targets: Vec<String>,
    /// What these manifests declare: file, directory or - for stdin; repeatable
    #[arg(short, long, value_name = "FILE|DIR|-")]
    filename: Vec<PathBuf>,
    /// Go into subdirectories too
    #[arg(short = 'R', long, requires = "filename")]
    recursive: bool,
    /// Those with these labels
    #[arg(short = 'l', long, value_name = "LABELS", conflicts_with = "filename")]
    selector: Option<String>,
    /// All of the kind in the namespace
    #[arg(long, conflicts_with = "filename")]
    all: bool,
    /// Wait until they are gone
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, default_missing_value = "true",
          action = clap::ArgAction::Set)]
    wait: bool,
    /// How long to wait; 0: for ever
    #[arg(long, value_name = "DURATION", default_value = "0", value_parser = duration::parse)]
    timeout: Duration,
    /// Time between the stop signal and SIGKILL, instead of the process' own
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    grace_period: Option<Duration>,
    /// Succeed when something does not exist
    #[arg(long)]
    ignore_not_found: bool,
    /// Report, change nothing
    #[arg(long)]
    dry_run: bool,
}

pub(crate) async fn run(ctx: &mut Ctx, args: Args) -> Result<Exit, Error> {
    let wanted = wanted(ctx, &args)?;
    let mut client = Client::connect(&ctx.settings).await?;
    let suffix = if args.dry_run { " (dry run)" } else { "" };
    let mut deleted: Vec<v1::Reference> = Vec::new();
    let mut missing = None;
    for (kind, selector) in wanted {
        let request = v1::DeleteRequest {
            all: selector.names.is_empty(),
            selector: Some(selector.clone()),
            dry_run: args.dry_run,
            grace_period_ms: args.grace_period.map(|grace| u64::try_from(grace.as_millis()).unwrap_or(u64::MAX)),
        };
        let mut api = client.api.clone();
        match client.once(api.delete(request)).await {
            Ok(answer) => {
                for object in answer.objects {
                    ctx.line(format_args!("{} deleted{suffix}", show(&object)))?;
                    deleted.push(object);
                }
            }
            Err(error) if error.is_not_found() && args.ignore_not_found => {}
            Err(error) if error.is_not_found() => {
                let name = selector.names.first().cloned().unwrap_or_default();
                let error = client.suggest_name(error, kind, &selector.namespace, &name).await;
                // The others are deleted all the same; the last of several errors ends the command.
                if let Some(earlier) = missing.replace(error) {
                    earlier.report(&mut *ctx.err)?;
                }
            }
            Err(error) => return Err(error),
        }
    }
    if deleted.is_empty() && missing.is_none() && !args.ignore_not_found {
        ctx.note("No resources found")?;
    }
    if args.wait && !args.dry_run {
        let deadline = (!args.timeout.is_zero()).then(|| Instant::now() + args.timeout);
        gone(ctx, &deleted, deadline).await?;
    }
    missing.map_or(Ok(Exit::Ok), Err)
}

/// One selector per named object, so that a missing one does not keep the others.
fn wanted(ctx: &Ctx, args: &Args) -> Result<Vec<(Kind, v1::Selector)>, Error> {
    let one = |kind: Kind, namespace: &str, name: &str| {
        (kind, v1::Selector { names: vec![name.to_owned()], ..selector(kind, namespace) })
    };
    if !args.filename.is_empty() {
        let mut wanted = Vec::new();
        let documents = FileArgs::new(args.filename.clone(), args.recursive).load(&ctx.settings)?;
        let heights = heights(&documents.iter().map(|document| &document.json).collect::<Vec<_>>());
        let mut documents: Vec<_> = heights.into_iter().zip(documents).collect();
        documents.sort_by_key(|(height, _)| *height);
        for (_, document) in documents {
            let kind = kinds::parse(&document.kind)?;
            wanted.push(one(kind, document.namespace.as_deref().unwrap_or_default(), &document.name));
        }
        // What depends on others goes before them; of the rest, what was made last may need what was made first.
        wanted.reverse();
        return Ok(wanted);
    }
    let namespace = ctx.settings.namespace();
    let mut wanted = Vec::new();
    for target in targets::parse(&args.targets)? {
        super::act::require_choice(&target, args.selector.as_deref(), args.all)?;
        if target.names.is_empty() {
            let labels = args.selector.clone().unwrap_or_default();
            wanted.push((target.kind, v1::Selector { labels, ..selector(target.kind, namespace) }));
        }
        wanted.extend(target.names.iter().map(|name| one(target.kind, namespace, name)));
    }
    Ok(wanted)
}

/// How many of these objects, one after the other, have to be there before each one is started.
fn heights(objects: &[&Value]) -> Vec<usize> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let node = |object: &Value| {
        let metadata = &object["metadata"];
        Some(Node::new(Kind::parse(object["kind"].as_str()?)?, text(&metadata["namespace"]), text(&metadata["name"])))
    };
    let on = |object: &Value| -> Vec<Node> {
        let list = [&object["spec"]["dependsOn"], &object["spec"]["template"]["dependsOn"]];
        let list = list.into_iter().filter_map(Value::as_array).flatten();
        let list = list.filter_map(|it| Dependency::deserialize(it).ok());
        list.map(|it| Node::of(&it, object["metadata"]["namespace"].as_str().unwrap_or_default())).collect()
    };
    let edges: Edges = objects.iter().filter_map(|object| Some((node(object)?, on(object)))).collect();
    let heights = graph::heights(&edges);
    let height = |object: &Value| heights.get(&node(object)?).copied();
    objects.iter().map(|object| height(object).unwrap_or_default()).collect()
}

/// Waits until none of the objects is left.
pub(crate) async fn gone(ctx: &mut Ctx, objects: &[v1::Reference], deadline: Option<Instant>) -> Result<(), Error> {
    let mut groups: Vec<(String, String, BTreeSet<String>)> = Vec::new();
    for object in objects {
        match groups.iter_mut().find(|(kind, namespace, _)| *kind == object.kind && *namespace == object.namespace) {
            Some((_, _, names)) => {
                names.insert(object.name.clone());
            }
            None => {
                groups.push((object.kind.clone(), object.namespace.clone(), BTreeSet::from([object.name.clone()])));
            }
        }
    }
    for (kind, namespace, names) in groups {
        let selector = v1::Selector {
            kind: kind.clone(),
            namespace,
            names: names.into_iter().collect(),
            ..v1::Selector::default()
        };
        let mut watcher = Watcher::new(&ctx.settings, selector);
        // One that comes back meanwhile under the same name is another object.
        let mut left = BTreeSet::new();
        let mut synced = false;
        while !synced || !left.is_empty() {
            let change = match deadline {
                None => watcher.next().await?,
                Some(deadline) => tokio::time::timeout_at(deadline, watcher.next()).await.map_err(|_| {
                    let left: Vec<String> = left.iter().cloned().collect();
                    Error::Timeout(format!("waiting for {} to be gone", left.join(", ")))
                })??,
            };
            match change {
                Change::Present(seen) => {
                    if !synced {
                        left.insert(seen.name);
                    }
                }
                Change::Gone(seen) => {
                    left.remove(&seen.name);
                }
                Change::Synced => synced = true,
            }
            if synced && !left.is_empty() {
                let names: Vec<String> = left.iter().cloned().collect();
                ctx.progress(&format!("waiting for {} to be gone", names.join(", ")))?;
            }
        }
        ctx.progress_done()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_depends_on_others_is_higher_than_they_are() {
        let object = |kind: &str, name: &str, on: Value| {
            let spec = if kind == "Job" { json!({"template": {"dependsOn": on}}) } else { json!({"dependsOn": on}) };
            json!({"kind": kind, "metadata": {"name": name}, "spec": spec})
        };
        let objects = [
            object("Process", "web", json!([{"process": "db"}, {"job": "setup"}, {"process": "elsewhere"}])),
            object("Process", "db", json!([])),
            object("Job", "setup", json!([{"process": "db"}])),
            object("Process", "round", json!([{"process": "about"}])),
            object("Process", "about", json!([{"process": "round"}])),
        ];
        assert_eq!(heights(&objects.iter().collect::<Vec<_>>())[..3], [2, 0, 1]);
    }
}
