//! `ostler wait`: blocks until objects are as wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ostler_rpc::v1;
use serde_json::Value;
use tokio::time::Instant;

use crate::client::{Client, selector};
use crate::conditions::{For, Proving};
use crate::ctx::Ctx;
use crate::duration;
use crate::error::Error;
use crate::exit::Exit;
use crate::targets::{self, Target};
use crate::views;
use crate::watch::{Change, Watcher};

/// Wait until objects are as wanted
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A restart of the daemon meanwhile does not matter. Ends with code 4 when the time is over.

Examples:
  ostler wait process/web --for=condition=Ready --timeout=10s
  ostler wait instances -l app=web --for=jsonpath='{.status.phase}'=Running
  ostler wait process/web --for=delete")]
pub(crate) struct Args {
    /// KIND/NAME…, or KIND NAME…
    #[arg(required = true, value_name = "TARGET")]
    targets: Vec<String>,
    /// condition=NAME[=STATUS], delete, create or jsonpath='{.path}'[=VALUE]
    #[arg(long = "for", value_name = "WHAT")]
    what: For,
    /// How long to wait; 0: look once
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration::parse)]
    timeout: Duration,
    /// Those with these labels
    #[arg(short = 'l', long, value_name = "LABELS")]
    selector: Option<String>,
    /// All of the kind in the namespace
    #[arg(long)]
    all: bool,
}

pub(crate) async fn run(ctx: &mut Ctx, args: Args) -> Result<Exit, Error> {
    // Looking once still takes a round trip.
    let once = args.timeout.is_zero();
    let deadline = Instant::now() + if once { LOOK } else { args.timeout };
    let targets = targets::parse(&args.targets)?;
    if !once {
        daemon(ctx, deadline).await?;
    }
    for target in targets {
        super::act::require_choice(&target, args.selector.as_deref(), args.all)?;
        let mut wait = Wait { target, what: &args.what, pending: BTreeSet::new(), last: BTreeMap::new() };
        wait.pending.extend(wait.target.names.iter().cloned());
        let within = tokio::time::timeout_at(deadline, wait.run(ctx, &args)).await;
        match within {
            Ok(result) => result?,
            Err(_) => return Err(wait.timed_out()),
        }
    }
    Ok(Exit::Ok)
}

/// Longest time for a single look.
const LOOK: Duration = Duration::from_secs(10);

/// Waits for a daemon that starts or restarts.
async fn daemon(ctx: &mut Ctx, deadline: Instant) -> Result<(), Error> {
    let mut told = false;
    loop {
        match Client::connect_once(&ctx.settings).await {
            Ok(_) => return Ok(()),
            Err(error) if !error.is_transient() || Instant::now() >= deadline => return Err(error),
            Err(_) if told => {}
            Err(_) => {
                told = true;
                let socket = ctx.settings.socket();
                ctx.note(format_args!("waiting for the daemon at {}", socket.display()))?;
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

const PAUSE: Duration = Duration::from_millis(20);

struct Wait<'a> {
    target: Target,
    what: &'a For,
    /// Names that have not met it yet.
    pending: BTreeSet<String>,
    /// How each was when last seen.
    last: BTreeMap<String, String>,
}

impl Wait<'_> {
    async fn run(&mut self, ctx: &mut Ctx, args: &Args) -> Result<(), Error> {
        let wanted = v1::Selector {
            names: self.target.names.clone(),
            labels: args.selector.clone().unwrap_or_default(),
            ..selector(self.target.kind, ctx.settings.namespace())
        };
        let mut watcher = Watcher::new(&ctx.settings, wanted);
        let mut synced = false;
        let mut existing = BTreeSet::new();
        let mut proving = Proving::default();
        // Whoever looks once takes it as it is.
        let proves = self.what.is_readiness() && !args.timeout.is_zero();
        while !synced || !self.pending.is_empty() {
            let change = tokio::select! {
                change = watcher.next() => change?,
                name = proving.next() => {
                    self.met(ctx, &name)?;
                    continue;
                }
            };
            match change {
                Change::Present(seen) => {
                    let object: Value = serde_json::from_slice(&seen.json)?;
                    existing.insert(seen.name.clone());
                    let open = self.pending.contains(&seen.name) || (!synced && self.target.names.is_empty());
                    let met = open && self.what.met(&object);
                    let met = if proves { proving.see(&seen.name, &object, met) } else { met };
                    if met {
                        self.met(ctx, &seen.name)?;
                    } else if open {
                        self.pending.insert(seen.name.clone());
                        self.last.insert(seen.name, summary(&object));
                    }
                }
                Change::Gone(seen) => {
                    existing.remove(&seen.name);
                    proving.forget(&seen.name);
                    if self.pending.contains(&seen.name) {
                        match self.what {
                            For::Delete => self.met(ctx, &seen.name)?,
                            // It may come back, as it does when it is replaced.
                            For::Create | For::Condition { .. } | For::JsonPath { .. } => {
                                self.last.insert(seen.name, "deleted".into());
                            }
                        }
                    }
                }
                Change::Synced => {
                    if !std::mem::replace(&mut synced, true) {
                        self.absent(ctx, &existing).await?;
                        if args.timeout.is_zero() && !self.pending.is_empty() {
                            return Err(self.timed_out());
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn met(&mut self, ctx: &mut Ctx, name: &str) -> Result<(), Error> {
        self.pending.remove(name);
        ctx.line(format_args!("{}/{name} condition met", self.target.kind.singular()))
    }

    /// Deals with what does not exist.
    async fn absent(&mut self, ctx: &mut Ctx, existing: &BTreeSet<String>) -> Result<(), Error> {
        let kind = self.target.kind;
        for name in self.target.names.clone().iter().filter(|name| !existing.contains(*name)) {
            match self.what {
                For::Delete => self.met(ctx, name)?,
                For::Create => {}
                For::Condition { .. } | For::JsonPath { .. } => {
                    // Asked for by name, so that the error is the daemon's own; it may have come just now.
                    let mut client = Client::connect(&ctx.settings).await?;
                    let namespace = ctx.settings.namespace().to_owned();
                    client.get(kind, &namespace, name).await?;
                }
            }
        }
        let selected = self.target.names.is_empty() && existing.is_empty();
        match self.what {
            For::Condition { .. } | For::JsonPath { .. } | For::Create if selected => {
                Err(Error::failed("no matching resources found", ""))
            }
            For::Condition { .. } | For::JsonPath { .. } | For::Create | For::Delete => Ok(()),
        }
    }

    fn timed_out(&self) -> Error {
        let kind = self.target.kind.singular();
        let names: Vec<String> = self
            .pending
            .iter()
            .take(5)
            .map(|name| match self.last.get(name) {
                Some(last) if !last.is_empty() => format!("{kind}/{name} ({last})"),
                Some(_) | None => format!("{kind}/{name}"),
            })
            .collect();
        let rest = match self.pending.len().saturating_sub(names.len()) {
            0 => String::new(),
            rest => format!(" and {rest} more"),
        };
        if names.is_empty() {
            return Error::Timeout("waiting for the daemon".into());
        }
        Error::Timeout(format!("waiting for the condition on {}{rest}", names.join(", ")))
    }
}

/// How an object is, for the message when time is over.
fn summary(object: &Value) -> String {
    if object["kind"] == "Instance" {
        return serde_json::from_value::<views::Instance>(object.clone()).map(|it| it.why()).unwrap_or_default();
    }
    if object["kind"] == "Job" {
        return serde_json::from_value::<views::Job>(object.clone()).map(|it| it.summary()).unwrap_or_default();
    }
    if object["kind"] == "Source" {
        let conditions = object["status"]["conditions"].as_array();
        let synced = conditions.and_then(|all| all.iter().find(|condition| condition["type"] == "Synced"));
        let text = |field: &str| synced.and_then(|condition| condition[field].as_str()).unwrap_or_default();
        return match (text("reason"), text("message")) {
            ("", _) => "not looked at yet".to_owned(),
            (reason, "") => reason.to_owned(),
            (reason, message) => format!("{reason}: {message}"),
        };
    }
    let process = serde_json::from_value::<views::Process>(object.clone());
    let Ok(process) = process else { return String::new() };
    let conditions = process.status.as_ref().and_then(|status| status.conditions.as_ref());
    let message = ["Ready", "Available"]
        .iter()
        .find_map(|kind| views::condition(conditions, kind))
        .and_then(|condition| condition.message.clone())
        .filter(|message| !message.is_empty());
    message.unwrap_or_else(|| process.summary())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_source_says_why_it_is_not_synced() {
        let source = |conditions: Value| json!({"kind": "Source", "status": {"conditions": conditions}});
        assert_eq!(summary(&source(json!([]))), "not looked at yet");
        let healthy = json!({"type": "Healthy", "reason": "Degraded", "message": "process/web"});
        let broken = json!({"type": "Synced", "reason": "Invalid", "message": "a.yaml:1:1: no"});
        assert_eq!(summary(&source(json!([healthy, broken]))), "Invalid: a.yaml:1:1: no");
    }
}
