//! The command line of Ostler: parses arguments, talks to the API, prints.
//!
//! Knows the daemon only by its socket. What needs the engine itself (`serve`, the store of a daemon that does not run)
//! is handed to the binary through [`Host`].
//!
//! A command is one process that lives for milliseconds: one thread, one connection, no files read that were not named.

mod cli;
mod client;
mod conditions;
mod ctx;
mod documents;
mod duration;
mod error;
mod exit;
#[cfg(test)]
mod fake;
mod kinds;
mod output;
mod schema;
mod tail;
mod targets;
#[cfg(test)]
mod tests;
mod verbs;
mod views;
mod watch;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _};

pub use ctx::default_state_dir;
pub use verbs::serve::ServeArgs;
pub use verbs::store::{StoreArgs, StoreCommand};

use cli::{Cli, Command};
use ctx::{Ctx, Terminal};
use error::Error;
use exit::Exit;
use ostler_telemetry::CommandTrace;

/// What the binary does for the command line, because the command line does not link the engine.
pub trait Host {
    /// Runs the daemon until it is told to end.
    fn serve(&self, args: ServeArgs) -> ExitCode;
    /// Works on the store of a state directory whose daemon does not run.
    fn store(&self, args: StoreArgs) -> ExitCode;
}

/// Parses the arguments (the first is the program's name), does what they say, and reports on stderr what went wrong.
///
/// Exit codes: 0 done; 1 failed (`diff`: there are differences); 2 wrong usage (`diff`: failed); 3 no daemon; 4 timed
/// out; 130 interrupted.
pub fn run(args: impl Iterator<Item = OsString>, host: &dyn Host) -> ExitCode {
    let parsed = Cli::command().try_get_matches_from(args).and_then(|matches| {
        let verb = matches.subcommand_name().unwrap_or_default().to_owned();
        Ok((verb, Cli::from_arg_matches(&matches)?))
    });
    let (verb, cli) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => {
            // Nobody is left to tell when even this cannot be written.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Ok }.into();
        }
    };
    let mut settings = cli.global.settings();
    // Serving and repairing build their own runtime.
    let command = match cli.command {
        Command::Serve(args) => {
            return match args.resolve(settings.state_dir) {
                Ok(args) => host.serve(args),
                Err(error) => {
                    let _ = error.report(&mut io::stderr());
                    error.exit().into()
                }
            };
        }
        Command::Store(args) => match args.offline(&settings) {
            Some(args) => return host.store(args),
            None => Command::Store(args),
        },
        command => command,
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: cannot start: {error}");
            return Exit::Failure.into();
        }
    };
    let trace = CommandTrace::begin(&verb, env!("CARGO_PKG_VERSION"));
    settings.traceparent = trace.context();
    let out = io::BufWriter::with_capacity(64 << 10, io::stdout().lock());
    let mut ctx = Ctx::new(settings, Terminal::detect(), Box::new(out), Box::new(io::stderr()));
    let exit = runtime.block_on(dispatch(&mut ctx, command));
    // A watch or a follower that still has a task must not hold the process up.
    runtime.shutdown_background();
    trace.end(!matches!(exit, Exit::Ok));
    exit.into()
}

/// Runs a verb and reports its error.
async fn dispatch(ctx: &mut Ctx, command: Command) -> Exit {
    let diff = matches!(command, Command::Diff(_));
    let result = verb(ctx, command).await;
    let result = ctx.progress_done().and(result);
    let result = match (ctx.out.flush(), result) {
        (Err(error), Ok(_)) => Err(Error::Output(error)),
        (Ok(()) | Err(_), result) => result,
    };
    match result {
        Ok(exit) => exit,
        Err(error) if error.is_closed_pipe() => Exit::Ok,
        Err(error) => {
            // Nobody is left to tell when even this cannot be written.
            let _ = error.report(&mut *ctx.err);
            // For diff, 1 means that there are differences.
            match error.exit() {
                Exit::Failure if diff => Exit::Usage,
                exit @ (Exit::Ok
                | Exit::Failure
                | Exit::Usage
                | Exit::Unreachable
                | Exit::Timeout
                | Exit::Interrupted
                | Exit::Command(_)) => exit,
            }
        }
    }
}

async fn verb(ctx: &mut Ctx, command: Command) -> Result<Exit, Error> {
    match command {
        Command::Serve(_) => unreachable!("the host has served before there was a runtime"),
        Command::Up(args) => verbs::up::run(ctx, args).await,
        Command::Apply(args) => verbs::apply::run(ctx, args).await,
        Command::Create(args) => verbs::create::run(ctx, args).await,
        Command::Run(args) => verbs::run::run(ctx, args).await,
        Command::Diff(args) => verbs::diff::run(ctx, args).await,
        Command::Validate(args) => verbs::validate::run(ctx, &args),
        Command::Import(args) => verbs::import::run(ctx, &args),
        Command::Get(args) => verbs::get::run(ctx, args).await,
        Command::Describe(args) => verbs::describe::run(ctx, args).await,
        Command::Delete(args) => verbs::delete::run(ctx, args).await,
        Command::Logs(args) => verbs::logs::run(ctx, args).await,
        Command::Events(args) => verbs::events::run(ctx, args).await,
        Command::Why(args) => verbs::why::run(ctx, args).await,
        Command::Graph(args) => verbs::graph::run(ctx, args).await,
        Command::Wait(args) => verbs::wait::run(ctx, args).await,
        Command::Restart(args) => verbs::act::restart(ctx, args).await,
        Command::Stop(args) => verbs::act::stop(ctx, args).await,
        Command::Start(args) => verbs::act::start(ctx, args).await,
        Command::Scale(args) => verbs::scale::run(ctx, args).await,
        Command::Edit(args) => verbs::edit::run(ctx, args).await,
        Command::Patch(args) => verbs::patch::patch(ctx, args).await,
        Command::Label(args) => verbs::patch::label(ctx, args).await,
        Command::Annotate(args) => verbs::patch::annotate(ctx, args).await,
        Command::Sync(args) => verbs::sync::run(ctx, args).await,
        Command::Rollout(args) => verbs::rollout::run(ctx, args).await,
        Command::Signal(args) => verbs::signal::run(ctx, args).await,
        Command::Top(args) => verbs::top::run(ctx, args).await,
        Command::Explain(args) => verbs::explain::run(ctx, &args),
        Command::Info(args) => verbs::info::run(ctx, &args).await,
        Command::Config(args) => verbs::config::run(ctx, args).await,
        Command::Store(_) => verbs::store::backup(ctx).await,
        Command::Upgrade(args) => verbs::upgrade::run(ctx, args).await,
        Command::Shutdown(args) => verbs::shutdown::run(ctx, args).await,
        Command::Version(args) => verbs::version::run(ctx, &args).await,
        Command::Completion(args) => verbs::completion::run(ctx, &args),
    }
}
