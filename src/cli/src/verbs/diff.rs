//! `ostler diff`: what an apply, or a sync of a Source, would change, and what it would do to running processes.

use std::path::PathBuf;

use ostler_rpc::v1;
use serde_json::Value;
use similar::TextDiff;

use crate::client::{Client, show};
use crate::ctx::Ctx;
use crate::documents::FileArgs;
use crate::error::Error;
use crate::exit::Exit;
use crate::kinds::Kind;
use crate::output::json::yaml;
use crate::output::table::Style;
use crate::verbs::apply::{How, SetArgs, note_kept};

/// Show what an apply, or a sync of a Source, would change and restart
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit codes: 0 no difference, 1 there are differences, more than 1 failed.

Examples:
  ostler diff -f web.yaml
  ostler diff -f manifests -R
  ostler diff -f manifests -R --set shop --prune
  ostler diff --source apps")]
pub(crate) struct Args {
    /// File or directory with manifests (.yaml, .yml, .json), or - for stdin; repeatable
    #[arg(short, long = "filename", value_name = "FILE|DIR|-", required_unless_present = "source")]
    filename: Vec<PathBuf>,
    /// Go into subdirectories too
    #[arg(short = 'R', long)]
    recursive: bool,
    /// What a sync of this Source would do
    #[arg(long, value_name = "NAME", conflicts_with_all = ["filename", "recursive", "set"])]
    source: Option<String>,
    /// As with `apply --force-conflicts`
    #[arg(long, conflicts_with = "source")]
    force_conflicts: bool,
    #[command(flatten)]
    set: SetArgs,
}

pub(crate) async fn run(ctx: &mut Ctx, args: Args) -> Result<Exit, Error> {
    if let Some(word) = &args.source {
        return source(ctx, &super::sync::name(word)?).await;
    }
    let documents = FileArgs::new(args.filename, args.recursive).load(&ctx.settings)?;
    let mut client = Client::connect(&ctx.settings).await?;
    let how = How { dry_run: true, force_conflicts: args.force_conflicts, set: args.set, ..How::default() };
    let answer = super::apply::send(&mut client, &documents, how).await?;
    let differs = show_all(ctx, &answer.results)?;
    for pruned in &answer.pruned {
        writeln!(ctx.out, "will prune {}", place(pruned))?;
    }
    show_order(ctx, answer.forecast.as_ref())?;
    ctx.out.flush()?;
    note_kept(ctx, &answer)?;
    Ok(if differs || !answer.pruned.is_empty() { Exit::Failure } else { Exit::Ok })
}

/// What a sync of a Source would change and delete.
async fn source(ctx: &mut Ctx, name: &str) -> Result<Exit, Error> {
    let mut client = Client::connect(&ctx.settings).await?;
    let mut api = client.api.clone();
    let request = v1::PreviewSourceRequest { name: name.to_owned() };
    let preview = match client.once(api.preview_source(request)).await {
        Ok(preview) => preview,
        Err(error) if error.is_not_found() => {
            return Err(client.suggest_name(error, Kind::Source, "", name).await);
        }
        Err(error) => return Err(error),
    };
    let differs = show_all(ctx, &preview.results)?;
    for deleted in &preview.deletes {
        writeln!(ctx.out, "will delete {}", place(deleted))?;
    }
    show_order(ctx, preview.forecast.as_ref())?;
    if !preview.refused.is_empty() {
        ctx.out.flush()?;
        ctx.note(format_args!("A sync would refuse this: {}", preview.refused))?;
    }
    Ok(if differs || !preview.deletes.is_empty() { Exit::Failure } else { Exit::Ok })
}

fn show_order(ctx: &mut Ctx, forecast: Option<&v1::Forecast>) -> Result<(), Error> {
    if let Some(line) = forecast.and_then(super::apply::order) {
        writeln!(ctx.out, "{line}")?;
    }
    Ok(())
}

fn place(reference: &v1::Reference) -> String {
    if reference.namespace.is_empty() {
        show(reference)
    } else {
        format!("{}/{}", reference.namespace, show(reference))
    }
}

/// Shows what differs, and whether anything does.
fn show_all(ctx: &mut Ctx, results: &[v1::Applied]) -> Result<bool, Error> {
    let mut differs = false;
    for applied in results {
        if applied.result() == v1::applied::Result::Unchanged {
            continue;
        }
        let reference = applied.object.clone().unwrap_or_default();
        let place = place(&reference);
        let before = shown(applied.before.as_ref())?;
        let after = shown(applied.after.as_ref())?;
        // Who sets a field is no difference to what runs.
        if before == after && applied.effects.is_empty() {
            continue;
        }
        differs = true;
        let text = unified(&before, &after, &place);
        if ctx.terminal.color {
            ctx.out.write_all(colored(&text).as_bytes())?;
        } else {
            ctx.out.write_all(text.as_bytes())?;
        }
        for line in super::apply::consequences(applied) {
            writeln!(ctx.out, "{line}")?;
        }
    }
    Ok(differs)
}

/// The part of an object that a manifest can change, as YAML.
fn shown(object: Option<&v1::Object>) -> Result<String, Error> {
    let Some(object) = object else { return Ok(String::new()) };
    let mut value: Value = serde_json::from_slice(&object.json)?;
    if let Some(fields) = value.as_object_mut() {
        fields.remove("status");
    }
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        // Set by the daemon, and different each time.
        for field in ["managedFields", "generation", "resourceVersion", "uid", "creationTimestamp"] {
            metadata.remove(field);
        }
    }
    yaml(&value)
}

fn unified(before: &str, after: &str, place: &str) -> String {
    TextDiff::from_lines(before, after)
        .unified_diff()
        .context_radius(3)
        .header(&format!("live/{place}"), &format!("applied/{place}"))
        .to_string()
}

fn colored(diff: &str) -> String {
    let mut out = String::new();
    for line in diff.lines() {
        let style = match line.as_bytes().first() {
            _ if line.starts_with("+++") || line.starts_with("---") => "\x1b[1m",
            Some(b'+') => Style::Good.escape(),
            Some(b'-') => Style::Bad.escape(),
            Some(b'@') => "\x1b[36m",
            Some(_) | None => "",
        };
        let end = if style.is_empty() { "" } else { "\x1b[0m" };
        out.extend([style, line, end, "\n"]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diff_shows_only_what_a_manifest_can_change() {
        let object = |command: &str, generation: u64| v1::Object {
            json: format!(
                r#"{{"kind":"Process","metadata":{{"name":"web","generation":{generation},"uid":"u"}},
                "spec":{{"command":["{command}"]}},"status":{{"replicas":{generation}}}}}"#
            )
            .into(),
            revision: generation,
        };
        let before = shown(Some(&object("a", 1))).unwrap();
        let after = shown(Some(&object("b", 2))).unwrap();
        assert_eq!(
            unified(&before, &after, "default/process/web"),
            "--- live/default/process/web\n+++ applied/default/process/web\n@@ -3,4 +3,4 @@\n   name: web\n spec:\n   \
             command:\n-  - a\n+  - b\n"
        );
    }

    #[test]
    fn a_new_object_is_all_additions() {
        let text = unified("", "kind: Process\n", "x");
        assert!(text.ends_with("@@ -0,0 +1 @@\n+kind: Process\n"), "{text}");
        assert!(colored(&text).contains("\x1b[32m+kind: Process\x1b[0m\n"));
    }
}
