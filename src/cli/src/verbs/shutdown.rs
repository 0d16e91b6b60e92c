//! `ostler shutdown`: ends the daemon, with or without what it runs.

use std::collections::BTreeMap;
use std::time::Duration;

use ostler_rpc::v1;
use tokio::time::Instant;

use crate::client::{Client, selector};
use crate::ctx::{Ctx, Settings};
use crate::duration;
use crate::error::Error;
use crate::exit::Exit;
use crate::kinds::Kind;
use crate::views;
use crate::watch::{Change, Watcher};

/// End the daemon
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Without --stop-instances the workloads go on, and the next `ostler serve` adopts them.

Examples:
  ostler shutdown
  ostler shutdown --stop-instances --deadline 30s")]
pub(crate) struct Args {
    /// Stop every instance first
    #[arg(long)]
    stop_instances: bool,
    /// Kill what still lives then
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = duration::parse, requires = "stop_instances")]
    deadline: Duration,
}

/// How long a daemon may take to go when it has nothing more to wait for.
const GOING: Duration = Duration::from_secs(10);

pub(crate) async fn run(ctx: &mut Ctx, args: Args) -> Result<Exit, Error> {
    let request = v1::ShutdownRequest {
        stop_instances: args.stop_instances,
        deadline_ms: u64::try_from(args.deadline.as_millis()).unwrap_or(u64::MAX),
    };
    let mut client = Client::connect(&ctx.settings).await?;
    let settings = ctx.settings.clone();
    let answer = client.api.shutdown(request);
    tokio::pin!(answer);
    let mut living = Living::new(&settings);
    let mut shown = ctx.terminal.stderr && args.stop_instances;
    loop {
        tokio::select! {
            result = &mut answer => {
                match result.map_err(Error::from) {
                    // It may end before its answer is out: that is what was asked for.
                    Ok(_) | Err(Error::Lost(_)) => break,
                    Err(error) => return Err(error),
                }
            }
            text = living.next(), if shown => match text {
                Some(text) => ctx.progress(&format!("waiting for {text}"))?,
                None => shown = false,
            },
        }
    }
    gone(&settings, args.deadline + GOING).await?;
    ctx.line(if args.stop_instances {
        "daemon ended, all instances stopped"
    } else {
        "daemon ended, instances go on"
    })?;
    Ok(Exit::Ok)
}

/// Waits until nobody answers at the socket and the state directory is free.
pub(crate) async fn gone(settings: &Settings, within: Duration) -> Result<(), Error> {
    let deadline = Instant::now() + within;
    loop {
        match Client::connect_once(settings).await {
            Err(Error::Unreachable { .. }) if !settings.is_held() => return Ok(()),
            Ok(_) | Err(Error::Unreachable { .. }) if Instant::now() > deadline => {
                return Err(Error::Timeout("waiting for the daemon to end".into()));
            }
            Ok(_) | Err(Error::Unreachable { .. }) => tokio::time::sleep(Duration::from_millis(5)).await,
            Err(error) => return Err(error),
        }
    }
}

/// The instances that are still there, for people who wait.
pub(crate) struct Living {
    watcher: Watcher,
    phases: BTreeMap<String, String>,
}

impl Living {
    pub(crate) fn new(settings: &Settings) -> Self {
        Living { watcher: Watcher::new(settings, selector(Kind::Instance, "")), phases: BTreeMap::new() }
    }

    /// The next description of what lives; nothing when the daemon can no longer tell.
    pub(crate) async fn next(&mut self) -> Option<String> {
        match self.watcher.next().await.ok()? {
            Change::Present(seen) => {
                let instance: views::Instance = views::parse(&seen.json).ok()?;
                if matches!(instance.phase(), "Stopped" | "Failed" | "Lost" | "Pending") {
                    self.phases.remove(&seen.name);
                } else {
                    self.phases.insert(seen.name, instance.phase().to_owned());
                }
            }
            Change::Gone(seen) => {
                self.phases.remove(&seen.name);
            }
            Change::Synced => {}
        }
        Some(describe(&self.phases))
    }
}

/// "3 instances: web-0 (Stopping), web-1 (Stopping), …"
fn describe(phases: &BTreeMap<String, String>) -> String {
    let mut names: Vec<String> = phases.iter().take(5).map(|(name, phase)| format!("{name} ({phase})")).collect();
    if phases.len() > names.len() {
        names.push("…".into());
    }
    match phases.len() {
        0 => "the daemon".into(),
        1 => names.join(""),
        count => format!("{count} instances: {}", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_waiting_line_names_whom_it_waits_for() {
        let phases = |count: usize| (0..count).map(|i| (format!("web-{i}"), "Stopping".to_owned())).collect();
        assert_eq!(describe(&phases(0)), "the daemon");
        assert_eq!(describe(&phases(1)), "web-0 (Stopping)");
        assert_eq!(describe(&phases(2)), "2 instances: web-0 (Stopping), web-1 (Stopping)");
        assert!(
            describe(&phases(9)).starts_with("9 instances: web-0 (Stopping), ")
                && describe(&phases(9)).ends_with(", …")
        );
    }
}
