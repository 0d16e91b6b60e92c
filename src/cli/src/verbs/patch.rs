//! `ostler patch`, `label` and `annotate`: changes to part of one object.

use std::path::PathBuf;

use ostler_rpc::v1;
use ostler_rpc::v1::patch_request::Type;
use serde_json::{Map, Value, json};

use crate::client::{Client, reference, selector, show};
use crate::ctx::Ctx;
use crate::error::Error;
use crate::exit::Exit;
use crate::kinds::Kind;
use crate::output::json::value;
use crate::targets::{self, Target};

/// Change fields of an object
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A merge patch sets what it mentions; null removes. Status and identity cannot be patched.

Examples:
  ostler patch process/web -p '{\"spec\": {\"stop\": {\"gracePeriod\": \"30s\"}}}'
  ostler patch process/web -p 'spec: {circuitBreaker: null}'
  ostler patch process/web --type json -p '[{\"op\": \"remove\", \"path\": \"/spec/env/0\"}]'")]
pub(crate) struct PatchArgs {
    /// KIND/NAME, or KIND NAME
    #[arg(required = true, value_name = "TARGET")]
    targets: Vec<String>,
    /// The patch, JSON or YAML
    #[arg(short, long, value_name = "PATCH", required_unless_present = "patch_file")]
    patch: Option<String>,
    /// File with the patch
    #[arg(long, value_name = "FILE", conflicts_with = "patch")]
    patch_file: Option<PathBuf>,
    /// How the patch is meant
    #[arg(long = "type", value_name = "merge|json", default_value = "merge")]
    kind: PatchType,
    /// Check and report, change nothing
    #[arg(long)]
    dry_run: bool,
}

/// How a patch is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum PatchType {
    /// RFC 7386
    Merge,
    /// RFC 6902
    Json,
}

/// Set or remove labels
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ostler label process/web tier=front
  ostler label process/web tier=back --overwrite
  ostler label processes --all owner-          # removes it")]
pub(crate) struct LabelArgs {
    #[command(flatten)]
    pairs: Pairs,
}

/// Set or remove annotations
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ostler annotate process/web contact=ops@example.org
  ostler annotate process/web contact-         # removes it")]
pub(crate) struct AnnotateArgs {
    #[command(flatten)]
    pairs: Pairs,
}

/// What to set on which objects.
#[derive(Debug, clap::Args)]
struct Pairs {
    /// KIND/NAME…, or KIND NAME…; then KEY=VALUE to set, KEY- to remove
    #[arg(required = true, value_name = "TARGET… KEY=VALUE… KEY-")]
    words: Vec<String>,
    /// Change what has another value
    #[arg(long)]
    overwrite: bool,
    /// Only those with these labels
    #[arg(short = 'l', long, value_name = "LABELS")]
    selector: Option<String>,
    /// All of the kind
    #[arg(long)]
    all: bool,
    /// Check and report, change nothing
    #[arg(long)]
    dry_run: bool,
}

pub(crate) async fn patch(ctx: &mut Ctx, args: PatchArgs) -> Result<Exit, Error> {
    let text = match (&args.patch, &args.patch_file) {
        (Some(text), _) => text.clone(),
        (None, Some(path)) => std::fs::read_to_string(path)
            .map_err(|why| Error::failed(format!("cannot read {}: {why}", path.display()), ""))?,
        (None, None) => String::new(),
    };
    let patch: Value = serde_yaml::from_str(&text)
        .map_err(|why| Error::usage(format!("the patch is neither JSON nor YAML: {why}"), ""))?;
    let kind = match args.kind {
        PatchType::Merge if !patch.is_object() => {
            return Err(Error::usage("a merge patch is a map", "write for example {\"spec\": {\"replicas\": 3}}"));
        }
        PatchType::Merge => Type::Merge,
        PatchType::Json => Type::Json,
    };
    let mut client = Client::connect(&ctx.settings).await?;
    for target in named(&args.targets)? {
        for name in &target.names {
            let request = v1::PatchRequest {
                object: Some(reference(target.kind, ctx.settings.namespace(), name)),
                r#type: kind.into(),
                patch: patch.to_string().into(),
                field_manager: "ostler patch".to_owned(),
                dry_run: args.dry_run,
                revision: 0,
            };
            let answer = send(&mut client, ctx, request).await?;
            report(ctx, &answer, "patched", args.dry_run)?;
        }
    }
    Ok(Exit::Ok)
}

pub(crate) async fn label(ctx: &mut Ctx, args: LabelArgs) -> Result<Exit, Error> {
    set(ctx, args.pairs, "labels", "labeled").await
}

pub(crate) async fn annotate(ctx: &mut Ctx, args: AnnotateArgs) -> Result<Exit, Error> {
    set(ctx, args.pairs, "annotations", "annotated").await
}

/// Targets that all have names.
pub(crate) fn named(words: &[String]) -> Result<Vec<Target>, Error> {
    let targets = targets::parse(words)?;
    match targets.iter().find(|target| target.names.is_empty()) {
        Some(target) => Err(Error::usage(
            format!("which {}?", target.kind.singular()),
            format!("write {}/NAME", target.kind.singular()),
        )),
        None => Ok(targets),
    }
}

/// Sends a patch; a name that does not exist gets the nearest one as a hint.
pub(crate) async fn send(
    client: &mut Client,
    ctx: &Ctx,
    request: v1::PatchRequest,
) -> Result<v1::PatchResponse, Error> {
    let wanted = request.object.clone().unwrap_or_default();
    let mut api = client.api.clone();
    match client.once(api.patch(request)).await {
        Ok(answer) => Ok(answer),
        Err(error) if error.is_not_found() => {
            let kind = Kind::parse(&wanted.kind).unwrap_or(Kind::Process);
            Err(client.suggest_name(error, kind, ctx.settings.namespace(), &wanted.name).await)
        }
        Err(error) => Err(error),
    }
}

/// "process/web patched"
pub(crate) fn report(ctx: &mut Ctx, answer: &v1::PatchResponse, verb: &str, dry_run: bool) -> Result<(), Error> {
    let Some(applied) = &answer.result else { return Ok(()) };
    let name = applied.object.as_ref().map(show).unwrap_or_default();
    let word = match applied.result() {
        v1::applied::Result::Unchanged => "unchanged",
        v1::applied::Result::Created | v1::applied::Result::Configured | v1::applied::Result::Unspecified => verb,
    };
    let suffix = if dry_run { " (dry run)" } else { "" };
    ctx.line(format_args!("{name} {word}{suffix}"))?;
    if ctx.settings.verbose > 0 {
        for line in super::apply::effects(&applied.effects) {
            ctx.line(format_args!("  {line}"))?;
        }
    }
    Ok(())
}

/// A key, and what it is set to; none: it is removed.
type Pair = (String, Option<String>);

/// The words that name objects, and what is to be set.
fn split(words: &[String]) -> Result<(Vec<String>, Vec<Pair>), Error> {
    // The name of an object never ends with a dash.
    let first = words.iter().position(|word| word.contains('=') || word.ends_with('-'));
    let Some(first) = first.filter(|first| *first > 0) else {
        return Err(Error::usage(
            "what should be set, and on what?",
            "write KIND/NAME KEY=VALUE, or KEY- to remove it",
        ));
    };
    let mut pairs = Vec::new();
    for word in &words[first..] {
        match (word.split_once('='), word.strip_suffix('-')) {
            (Some((key, value)), _) => pairs.push((key.to_owned(), Some(value.to_owned()))),
            (None, Some(key)) => pairs.push((key.to_owned(), None)),
            (None, None) => {
                return Err(Error::usage(format!("\"{word}\" is neither KEY=VALUE nor KEY-"), "name objects first"));
            }
        }
    }
    Ok((words[..first].to_vec(), pairs))
}

async fn set(ctx: &mut Ctx, args: Pairs, field: &str, verb: &str) -> Result<Exit, Error> {
    let (words, pairs) = split(&args.words)?;
    let targets = targets::parse(&words)?;
    let mut client = Client::connect(&ctx.settings).await?;
    for target in targets {
        super::act::require_choice(&target, args.selector.as_deref(), args.all)?;
        let mut wanted = selector(target.kind, ctx.settings.namespace());
        wanted.names.clone_from(&target.names);
        wanted.labels = args.selector.clone().unwrap_or_default();
        let objects = match client.list(wanted).await {
            Ok(objects) => objects,
            Err(error) => return Err(super::act::suggest(&mut client, error, &target, ctx).await),
        };
        for object in objects {
            let object = value(&object)?;
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            let known = &object["metadata"][field];
            if !args.overwrite {
                let is_taken = |(key, new): &&Pair| {
                    new.is_some() && known.get(key).is_some_and(|old| old.as_str() != new.as_deref())
                };
                if let Some((key, _)) = pairs.iter().find(is_taken) {
                    return Err(Error::failed(
                        format!("{}/{name} has {key}={} already", target.kind.singular(), known[key]),
                        "pass --overwrite to change it",
                    ));
                }
            }
            let changes: Map<String, Value> = pairs.iter().map(|(key, new)| (key.clone(), json!(new))).collect();
            let mut metadata = Map::new();
            metadata.insert(field.to_owned(), Value::Object(changes));
            let request = v1::PatchRequest {
                object: Some(reference(target.kind, ctx.settings.namespace(), name)),
                r#type: Type::Merge.into(),
                patch: json!({ "metadata": metadata }).to_string().into(),
                field_manager: format!("ostler {}", if field == "labels" { "label" } else { "annotate" }),
                dry_run: args.dry_run,
                revision: 0,
            };
            let answer = send(&mut client, ctx, request).await?;
            report(ctx, &answer, verb, args.dry_run)?;
        }
    }
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn objects_come_first_then_what_is_set() {
        let (objects, pairs) = split(&words("process/web a=b c- d=e=f")).unwrap();
        assert_eq!(objects, ["process/web"]);
        let pair = |key: &str, value: Option<&str>| (key.to_owned(), value.map(str::to_owned));
        assert_eq!(pairs, [pair("a", Some("b")), pair("c", None), pair("d", Some("e=f"))]);
        let (objects, pairs) = split(&words("process/web example.org/c-")).unwrap();
        assert_eq!((objects, pairs), (vec!["process/web".to_owned()], vec![pair("example.org/c", None)]));
        let (objects, _) = split(&words("process web db a=b")).unwrap();
        assert_eq!(objects, ["process", "web", "db"]);
        for text in ["process/web", "a=b", "process/web a=b junk"] {
            assert!(split(&words(text)).is_err(), "{text}");
        }
    }
}
