//! The tree of commands and their flags.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::ctx::{Settings, default_state_dir, parse_server};
use crate::{duration, exit, verbs};

/// Ostler runs plain processes: declare them in YAML, apply, and it keeps exactly those running.
#[derive(Debug, Parser)]
#[command(
    name = "ostler",
    bin_name = "ostler",
    version,
    max_term_width = 100,
    after_help = format!("{EXAMPLES}\n\n{}", exit::HELP)
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "\
Examples:
  ostler up -f web.yaml            run it here, with logs, until Ctrl-C
  ostler serve &                   the daemon; workloads outlive it
  ostler apply -f web.yaml         declare processes
  ostler get instances -o wide     what runs, and how
  ostler logs process/web -f       what it says

Durations are written as 500ms, 30s, 5m, 1h30m or 2d. Kinds are processes (proc), jobs, cronjobs
(cj), instances (inst), namespaces (ns), configmaps (cm), secrets, sources (src), events (ev).";

/// Flags that every command takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Global {
    /// Directory of the daemon's state; the socket is in it
    /// [default: /var/lib/ostler for root, else ~/.local/state/ostler]
    #[arg(long, global = true, env = "OSTLER_STATE_DIR", value_name = "DIR", hide_env_values = true, help_heading = GLOBAL)]
    state_dir: Option<PathBuf>,
    /// Address of the daemon, instead of the socket in the state directory
    #[arg(long, global = true, env = "OSTLER_SERVER", value_name = "unix://PATH", value_parser = parse_server,
          hide_env_values = true, help_heading = GLOBAL)]
    server: Option<PathBuf>,
    /// Namespace to work in [default: default]
    #[arg(short, long, global = true, value_name = "NAME", help_heading = GLOBAL)]
    namespace: Option<String>,
    /// Longest time for a single answer of the daemon; 0: no limit
    #[arg(long, global = true, value_name = "DURATION", default_value = "1m", value_parser = duration::parse,
          help_heading = GLOBAL)]
    request_timeout: std::time::Duration,
    /// Say more
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = GLOBAL)]
    verbose: u8,
}

const GLOBAL: &str = "Global options";

impl Global {
    pub(crate) fn settings(self) -> Settings {
        Settings {
            namespace: self.namespace,
            state_dir: self.state_dir.unwrap_or_else(default_state_dir),
            server: self.server,
            request_timeout: Some(self.request_timeout).filter(|limit| !limit.is_zero()),
            verbose: self.verbose,
            traceparent: None,
            show_secrets: false,
        }
    }
}

/// One per verb; each has its own module.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Serve(verbs::serve::Args),
    Up(verbs::up::Args),
    Apply(verbs::apply::Args),
    Create(verbs::create::Args),
    Run(verbs::run::Args),
    Diff(verbs::diff::Args),
    Validate(verbs::validate::Args),
    Import(verbs::import::Args),
    Get(verbs::get::Args),
    Describe(verbs::describe::Args),
    Delete(verbs::delete::Args),
    Logs(verbs::logs::Args),
    Events(verbs::events::Args),
    Why(verbs::why::Args),
    Graph(verbs::graph::Args),
    Wait(verbs::wait::Args),
    Restart(verbs::act::RestartArgs),
    Stop(verbs::act::StopArgs),
    Start(verbs::act::StartArgs),
    Scale(verbs::scale::Args),
    Edit(verbs::edit::Args),
    Patch(verbs::patch::PatchArgs),
    Label(verbs::patch::LabelArgs),
    Annotate(verbs::patch::AnnotateArgs),
    Sync(verbs::sync::Args),
    Rollout(verbs::rollout::Args),
    Signal(verbs::signal::Args),
    Top(verbs::top::Args),
    Explain(verbs::explain::Args),
    Info(verbs::info::Args),
    Config(verbs::config::Args),
    Store(verbs::store::Args),
    Upgrade(verbs::upgrade::Args),
    Shutdown(verbs::shutdown::Args),
    Version(verbs::version::Args),
    Completion(verbs::completion::Args),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_tree_of_commands_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_an_example() {
        for command in Cli::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example"), "{} has no example", command.get_name());
            assert!(command.get_about().is_some(), "{} says nothing", command.get_name());
        }
    }

    #[test]
    fn kubectls_habits_are_understood() {
        for line in [
            "ostler get proc -A -l app=web -o jsonpath={.items[*].metadata.name}",
            "ostler get instances web-0 -n prod -o json -w",
            "ostler -n prod get all",
            "ostler apply -f a.yaml -f dir -R --wait --timeout 10s",
            "ostler diff -f -",
            "ostler delete process web --grace-period 0s --ignore-not-found --wait=false",
            "ostler logs web-0 -f --since 5m --tail 10",
            "ostler logs web-0 --previous",
            "ostler why process/web -o json",
            "ostler graph process/web -o dot",
            "ostler restart group/backend --wait",
            "ostler wait process/web --for=condition=Ready --timeout=10s",
            "ostler wait instance/web-0 --for=jsonpath={.status.phase}=Running",
            "ostler scale process/web --replicas=3 --current-replicas=2",
            "ostler rollout status process/web --watch=false --timeout 1m",
            "ostler rollout undo process/web --to-revision=2 --dry-run",
            "ostler rollout history processes web --revision=1",
            "ostler edit process/web",
            "ostler patch process/web --type merge -p {}",
            "ostler label process web a=b c- --overwrite",
            "ostler annotate processes -l a=b note=x",
            "ostler signal HUP process/web --tree",
            "ostler serve --state-dir /tmp/x --tick 500ms --cgroups none --on-shutdown stop",
            "ostler store restore --state-dir /tmp/x",
            "ostler up -d -f web.yaml",
            "ostler import Procfile web.service --from auto -o json --strict",
            "ostler top instances --sort-by memory",
            "ostler completion zsh",
            "ostler serve --watch apps --watch /srv/base",
            "ostler serve --config /etc/ostler.yaml --shutdown-deadline 30s --probe-allow 10.0.0.0/8",
            "ostler config show --origin -o json",
            "ostler config set tick=2s log=debug",
            "ostler config unset tick log",
            "ostler config reload",
            "ostler sync",
            "ostler create job now --from=cronjob/nightly --dry-run -o yaml",
            "ostler run --rm --name x -e A=b -- make -j4 --rm",
            "ostler run -d -- sleep 10",
            "ostler create configmap app --from-literal=a=b --from-file=x=y --from-env-file=z --dry-run -o yaml",
            "ostler create secret generic db --from-literal=a=b",
            "ostler get secret db -o yaml --show-secrets",
            "ostler sync apps source/base --allow-prune --timeout 10s",
            "ostler diff --source apps",
        ] {
            if let Err(error) = Cli::try_parse_from(line.split(' ')) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn what_makes_no_sense_is_a_usage_error() {
        for line in [
            "ostler",
            "ostler gte processes",
            "ostler apply",
            "ostler serve --tick soon",
            "ostler serve --cgroups v3",
            "ostler config set tick",
            "ostler config unset",
            "ostler get proc -o yml",
            "ostler wait process/web --for=nothing",
            "ostler scale process/web",
            "ostler run -d --rm -- true",
            "ostler run",
            "ostler create job now",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
        let error = Cli::try_parse_from(["ostler", "aply"]).unwrap_err().to_string();
        assert!(error.contains("apply"), "{error}");
    }
}
