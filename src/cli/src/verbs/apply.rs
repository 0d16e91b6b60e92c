//! `ostler apply`: makes the daemon's objects what the manifests say.

use std::collections::BTreeSet;
use std::time::Duration;

use ostler_manifest::Document;
use ostler_rpc::v1;
use serde_json::Value;
use tokio::time::Instant;

use crate::client::{Client, selector, show};
use crate::conditions::{Progress, Proving, progress, settled};
use crate::ctx::Ctx;
use crate::documents::{FileArgs, encode, locate};
use crate::duration;
use crate::error::Error;
use crate::exit::Exit;
use crate::kinds::Kind;
use crate::views;
use crate::watch::{Change, Watcher};

/// Create or update objects from manifests
#[derive(Debug, clap::Args)]
#[command(after_help = "\
All objects are written, or none when one of them is invalid. What is already as asked for
is not touched; use `ostler diff` to see what would happen to running processes, or -v to
see what will.

With --set, the objects belong to that set from then on; --prune deletes what the same set
brought earlier and is not in the manifests any more, in one step with what is applied.

Examples:
  ostler apply -f web.yaml
  ostler apply -f manifests -R --wait --timeout 30s
  generate | ostler apply -f - --dry-run
  ostler apply -f manifests -R --set shop --prune
  ostler apply -f web.yaml --force-conflicts   # also what was scaled or edited by hand")]
pub(crate) struct Args {
    #[command(flatten)]
    files: FileArgs,
    /// Check and report, change nothing
    #[arg(long)]
    dry_run: bool,
    /// Take over fields that others set to other values
    #[arg(long)]
    force_conflicts: bool,
    /// Name of who applies, for the ownership of fields
    #[arg(long, value_name = "NAME", default_value = MANAGER)]
    field_manager: String,
    #[command(flatten)]
    set: SetArgs,
    /// Wait until every applied process is ready, every applied job complete, and everything pruned gone
    #[arg(long, conflicts_with = "dry_run")]
    wait: bool,
    /// How long to wait; 0: for ever
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration::parse, requires = "wait")]
    timeout: Duration,
}

/// The set that objects are applied with.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct SetArgs {
    /// The set that the objects belong to: kept in their label ostler.dev/set
    #[arg(long, value_name = "NAME")]
    set: Option<String>,
    /// Delete what the set brought earlier and is not in the manifests
    #[arg(long, requires = "set")]
    prune: bool,
    /// Prune more than half of the set
    #[arg(long, requires = "prune")]
    allow_prune: bool,
}

pub(crate) async fn run(ctx: &mut Ctx, args: Args) -> Result<Exit, Error> {
    let documents = args.files.load(&ctx.settings)?;
    let mut client = Client::connect(&ctx.settings).await?;
    let Args { dry_run, force_conflicts, field_manager, set, .. } = args;
    let how = How { dry_run, force_conflicts, field_manager, set };
    let answer = send(&mut client, &documents, how).await?;
    report(ctx, &answer, args.dry_run)?;
    if args.wait {
        let deadline = (!args.timeout.is_zero()).then(|| Instant::now() + args.timeout);
        wait_ready(ctx, &answer, args.timeout).await?;
        super::delete::gone(ctx, &answer.pruned, deadline).await?;
    }
    Ok(Exit::Ok)
}

/// Who applies unless told otherwise.
pub(crate) const MANAGER: &str = "ostler apply";

/// How documents are applied.
pub(crate) struct How {
    pub(crate) dry_run: bool,
    pub(crate) force_conflicts: bool,
    pub(crate) field_manager: String,
    pub(crate) set: SetArgs,
}

impl Default for How {
    fn default() -> Self {
        Self { dry_run: false, force_conflicts: false, field_manager: MANAGER.to_owned(), set: SetArgs::default() }
    }
}

/// Applies documents; errors name their places in the files.
pub(crate) async fn send(client: &mut Client, documents: &[Document], how: How) -> Result<v1::ApplyResponse, Error> {
    let How { dry_run, force_conflicts, field_manager, set: SetArgs { set, prune, allow_prune } } = how;
    let request = v1::ApplyRequest {
        objects: encode(documents),
        dry_run,
        force_conflicts,
        field_manager,
        set: set.unwrap_or_default(),
        prune,
        allow_prune,
    };
    let mut api = client.api.clone();
    client.once(api.apply(request)).await.map_err(|error| locate(error, documents))
}

/// One line per object, and with -v what happens to running things.
pub(crate) fn report(ctx: &mut Ctx, answer: &v1::ApplyResponse, dry_run: bool) -> Result<(), Error> {
    let suffix = if dry_run { " (dry run)" } else { "" };
    for applied in &answer.results {
        let name = applied.object.as_ref().map(show).unwrap_or_default();
        let word = match applied.result() {
            v1::applied::Result::Created => "created",
            v1::applied::Result::Configured => "configured",
            v1::applied::Result::Unchanged => "unchanged",
            v1::applied::Result::Unspecified => "applied",
        };
        writeln!(ctx.out, "{name} {word}{suffix}")?;
        if dry_run || ctx.settings.verbose > 0 {
            for line in consequences(applied) {
                writeln!(ctx.out, "  {line}")?;
            }
        }
    }
    for pruned in &answer.pruned {
        writeln!(ctx.out, "{} pruned{suffix}", show(pruned))?;
    }
    if let Some(line) = answer.forecast.as_ref().and_then(order) {
        writeln!(ctx.out, "{line}")?;
    }
    ctx.out.flush()?;
    note_kept(ctx, answer)
}

/// What stays although it has left the set, and why a dry run would not be done.
pub(crate) fn note_kept(ctx: &mut Ctx, answer: &v1::ApplyResponse) -> Result<(), Error> {
    for kept in &answer.kept {
        ctx.note(format_args!("{} has left the set and stays: something is in it that is not of the set", show(kept)))?;
    }
    if !answer.refused.is_empty() {
        ctx.note(format_args!("This would be refused: {}; --allow-prune allows it", answer.refused))?;
    }
    Ok(())
}

/// What applying an object does: to instances, without restarting any, and by filling in what its manifest leaves out.
pub(crate) fn consequences(applied: &v1::Applied) -> Vec<String> {
    let mut lines = effects(&applied.effects);
    if !applied.in_place.is_empty() {
        lines.push(format!("without a restart: {}", few(applied.in_place.iter().map(String::as_str))));
    }
    if !applied.defaulted.is_empty() {
        lines.push(format!("defaulted: {}", few(applied.defaulted.iter().map(String::as_str))));
    }
    lines
}

/// "a, b and 3 more"
fn few<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    let rest = names.len().saturating_sub(MANY);
    let list = names.take(MANY).collect::<Vec<_>>().join(", ");
    if rest > 0 { format!("{list} and {rest} more") } else { list }
}

/// So many names fit into a line.
const MANY: usize = 10;

/// "order: restart db-0 → api-0, api-1 → start web-0"; nothing when nothing waits for anything else.
pub(crate) fn order(forecast: &v1::Forecast) -> Option<String> {
    let steps = &forecast.steps;
    if steps.last().is_none_or(|step| step.place < 2) {
        return None;
    }
    let namespace = |step: &v1::Step| step.instance.as_ref().map(|it| it.namespace.clone()).unwrap_or_default();
    let alone = steps.iter().all(|step| namespace(step) == namespace(&steps[0]));
    let mut line = "order:".to_owned();
    let (mut place, mut verb) = (0, "");
    for step in steps.iter().take(3 * MANY) {
        if place > 0 {
            line.push_str(if step.place == place { "," } else { " →" });
        }
        place = step.place;
        let next = word(step.kind());
        if next != verb {
            (verb, line) = (next, format!("{line} {next}"));
        }
        let instance = step.instance.as_ref().map(|it| it.name.as_str()).unwrap_or_default();
        line = if alone { format!("{line} {instance}") } else { format!("{line} {}/{instance}", namespace(step)) };
    }
    let rest = steps.len().saturating_sub(3 * MANY);
    if forecast.more {
        line.push_str(" → …");
    } else if rest > 0 {
        line = format!("{line} → {rest} more");
    }
    Some(line)
}

/// The verb of an effect.
fn word(kind: v1::effect::Kind) -> &'static str {
    match kind {
        v1::effect::Kind::Start => "start",
        v1::effect::Kind::Restart => "restart",
        v1::effect::Kind::Stop => "stop",
        v1::effect::Kind::Unspecified => "touch",
    }
}

/// "will restart web-0, web-1 (spec.command changed)": one line for instances that share what happens, and why.
pub(crate) fn effects(effects: &[v1::Effect]) -> Vec<String> {
    let mut groups: Vec<(v1::effect::Kind, &str, Vec<&str>)> = Vec::new();
    for effect in effects {
        let kind = effect.kind();
        match groups.iter_mut().find(|(other, why, _)| *other == kind && *why == effect.why) {
            Some((_, _, names)) => names.push(&effect.instance),
            None => groups.push((kind, &effect.why, vec![&effect.instance])),
        }
    }
    groups
        .into_iter()
        .map(|(kind, why, names)| {
            let (verb, list) = (word(kind), few(names.into_iter()));
            let why = if why.is_empty() { String::new() } else { format!(" ({why})") };
            format!("will {verb} {list}{why}")
        })
        .collect()
}

/// Waits until every Process of an answer is what its spec asks for, and every Job is done. A Job that failed is an
/// error.
pub(crate) async fn wait_ready(ctx: &mut Ctx, answer: &v1::ApplyResponse, timeout: Duration) -> Result<(), Error> {
    let deadline = (!timeout.is_zero()).then(|| Instant::now() + timeout);
    let mut groups: Vec<(Kind, String, BTreeSet<String>)> = Vec::new();
    for object in answer.results.iter().filter_map(|applied| applied.object.as_ref()) {
        let Some(kind) = [Kind::Process, Kind::Job].into_iter().find(|kind| kind.name() == object.kind) else {
            continue;
        };
        match groups.iter_mut().find(|(known, namespace, _)| *known == kind && *namespace == object.namespace) {
            Some((_, _, names)) => {
                names.insert(object.name.clone());
            }
            None => groups.push((kind, object.namespace.clone(), BTreeSet::from([object.name.clone()]))),
        }
    }
    for (kind, namespace, mut pending) in groups {
        let wanted = v1::Selector { names: pending.iter().cloned().collect(), ..selector(kind, &namespace) };
        let (what, goal) = if kind == Kind::Job { ("job", "complete") } else { ("process", "ready") };
        let mut watcher = Watcher::new(&ctx.settings, wanted);
        let mut proving = Proving::default();
        while !pending.is_empty() {
            let names = pending.iter().cloned().collect::<Vec<_>>().join(", ");
            ctx.progress(&format!("waiting for {names}"))?;
            let next = async {
                tokio::select! {
                    change = watcher.next() => change.map(Ok),
                    name = proving.next() => Ok(Err(name)),
                }
            };
            let next = match deadline {
                None => next.await?,
                Some(deadline) => tokio::time::timeout_at(deadline, next).await.map_err(|_| {
                    Error::Timeout(format!("waiting for {names} to be {goal}; see ostler describe {what}/NAME"))
                })??,
            };
            let met = match next {
                Err(name) => Some(name),
                Ok(Change::Present(seen)) if !pending.contains(&seen.name) => None,
                Ok(Change::Present(seen)) if kind == Kind::Job => {
                    let job: views::Job = views::parse(&seen.json)?;
                    if let Some(reason) = job.failure() {
                        let hint = format!("see ostler logs job/{0} and ostler describe job/{0}", seen.name);
                        return Err(Error::failed(format!("job/{} failed: {reason}", seen.name), hint));
                    }
                    job.is_complete().then_some(seen.name)
                }
                Ok(Change::Present(seen)) => {
                    let object: Value = serde_json::from_slice(&seen.json)?;
                    if let Progress::Failed(message) = progress(&object) {
                        return Err(Error::failed(message, format!("see ostler describe process/{}", seen.name)));
                    }
                    proving.see(&seen.name, &object, settled(&object)).then_some(seen.name)
                }
                Ok(Change::Gone(seen)) if pending.contains(&seen.name) => {
                    return Err(Error::failed(format!("{what}/{} was deleted meanwhile", seen.name), ""));
                }
                Ok(Change::Gone(_) | Change::Synced) => None,
            };
            if let Some(name) = met.filter(|name| pending.remove(name)) {
                ctx.line(format_args!("{what}/{name} {goal}"))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_says_what_comes_together_and_what_after_it() {
        use v1::effect::Kind::{Restart, Start, Stop};
        let step = |kind: v1::effect::Kind, namespace: &str, name: &str, place: u32| v1::Step {
            kind: kind.into(),
            instance: Some(v1::Reference { kind: "Instance".into(), namespace: namespace.into(), name: name.into() }),
            place,
        };
        let mut steps = vec![step(Restart, "shop", "db-0", 1)];
        assert_eq!(order(&v1::Forecast { steps: steps.clone(), more: false }), None, "nothing waits");
        steps.extend([
            step(Restart, "shop", "web-0", 2),
            step(Start, "shop", "web-1", 2),
            step(Stop, "shop", "x-0", 3),
        ]);
        assert_eq!(
            order(&v1::Forecast { steps: steps.clone(), more: false }).unwrap(),
            "order: restart db-0 → web-0, start web-1 → stop x-0"
        );
        steps.truncate(1);
        steps.push(step(Restart, "data", "db-0", 2));
        assert_eq!(
            order(&v1::Forecast { steps: steps.clone(), more: true }).unwrap(),
            "order: restart shop/db-0 → data/db-0 → …"
        );
        let many = (0..100).map(|i| step(Restart, "shop", &format!("w-{i}"), i + 1)).collect();
        let line = order(&v1::Forecast { steps: many, more: false }).unwrap();
        assert!(line.ends_with("w-28 → w-29 → 70 more"), "{line}");
    }

    #[test]
    fn effects_with_one_reason_share_a_line() {
        let effect = |kind: v1::effect::Kind, instance: &str, why: &str| v1::Effect {
            kind: kind.into(),
            instance: instance.into(),
            why: why.into(),
        };
        let lines = effects(&[
            effect(v1::effect::Kind::Restart, "web-0", "spec.command changed"),
            effect(v1::effect::Kind::Restart, "web-1", "spec.command changed"),
            effect(v1::effect::Kind::Start, "web-2", ""),
        ]);
        assert_eq!(lines, ["will restart web-0, web-1 (spec.command changed)", "will start web-2"]);
        let many: Vec<_> = (0..12).map(|i| effect(v1::effect::Kind::Stop, &format!("w-{i}"), "")).collect();
        assert!(effects(&many)[0].ends_with("w-9 and 2 more"));
    }
}
