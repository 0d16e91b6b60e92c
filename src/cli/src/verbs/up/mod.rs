//! `ostler up`: the daemon, the manifests and their output in one terminal, until Ctrl-C.

mod board;
mod daemon;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use ostler_rpc::v1::{self, act_request::Action};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::client::{Client, selector};
use crate::ctx::{Ctx, Settings};
use crate::documents::FileArgs;
use crate::duration;
use crate::error::Error;
use crate::exit::Exit;
use crate::kinds::Kind;
use crate::tail::{Lines, Piece, Tail, prefix, spawn};
use crate::verbs::apply::How;
use crate::views;
use crate::watch::{Change, Watcher};

use board::{Board, State};
use daemon::Daemon;

/// Run manifests here: daemon, processes, logs, until Ctrl-C
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Starts the daemon of the state directory, applies the manifests, and shows what runs and
what it says. Without -f, ostler.yaml or ostler.yml of the current directory is used where
it exists, else what the daemon already knows.

Ctrl-C stops everything and ends the daemon; a second Ctrl-C kills at once. Nothing is
deleted: the next `up` or `serve` starts it again. Where a daemon already serves the
directory, it is used: Ctrl-C then stops only the processes that were applied here, and the
daemon goes on. The daemon's own messages go to daemon.log in the state directory.

Examples:
  ostler up -f web.yaml
  ostler up -f manifests -R --state-dir ./state
  ostler up -d -f web.yaml && ostler wait process/web --for=condition=Ready")]
pub(crate) struct Args {
    /// File or directory with manifests, or - for stdin; repeatable
    #[arg(short, long, value_name = "FILE|DIR|-")]
    filename: Vec<PathBuf>,
    /// Go into subdirectories too
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Return when everything is applied; the daemon goes on
    #[arg(short, long)]
    detach: bool,
    /// Do not show output
    #[arg(long)]
    no_logs: bool,
    /// Kill what still lives so long after Ctrl-C
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = duration::parse)]
    deadline: Duration,
}

pub(crate) async fn run(ctx: &mut Ctx, args: Args) -> Result<Exit, Error> {
    let mut files = args.filename.clone();
    if files.is_empty() {
        files.extend(["ostler.yaml", "ostler.yml"].map(PathBuf::from).into_iter().find(|file| file.is_file()));
    }
    // Before anything is started: a broken manifest starts nothing.
    let documents =
        if files.is_empty() { Vec::new() } else { FileArgs::new(files, args.recursive).load(&ctx.settings)? };
    let mut daemon = Daemon::find_or_start(ctx).await?;
    let applied = match apply(ctx, &documents, daemon.is_ours()).await {
        Ok(applied) => applied,
        Err(error) => {
            if daemon.is_ours() && !args.detach {
                // Nobody asked for a daemon without what it was to run.
                stop(&ctx.settings, &Scope::Everything, args.deadline).await?;
                daemon.ended().await?;
            }
            return Err(error);
        }
    };
    if args.detach {
        let socket = ctx.settings.socket();
        ctx.note(format_args!("the daemon goes on; socket {}", socket.display()))?;
        return Ok(Exit::Ok);
    }
    let scope = if daemon.is_ours() || documents.is_empty() { Scope::Everything } else { Scope::Processes(applied) };
    live(ctx, &mut daemon, scope, &args).await
}

/// What is shown, and stopped at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Scope {
    Everything,
    /// Namespace and name of Processes.
    Processes(BTreeSet<(String, String)>),
}

impl Scope {
    fn contains(&self, namespace: &str, process: &str) -> bool {
        match self {
            Scope::Everything => true,
            Scope::Processes(processes) => processes.contains(&(namespace.to_owned(), process.to_owned())),
        }
    }
}

async fn apply(
    ctx: &mut Ctx,
    documents: &[ostler_manifest::Document],
    ours: bool,
) -> Result<BTreeSet<(String, String)>, Error> {
    let mut processes = BTreeSet::new();
    if documents.is_empty() {
        return Ok(processes);
    }
    let mut client = Client::connect(&ctx.settings).await?;
    let answer = super::apply::send(&mut client, documents, How { force_conflicts: true, ..How::default() }).await?;
    super::apply::report(ctx, &answer, false)?;
    for object in answer.results.into_iter().filter_map(|applied| applied.object) {
        if object.kind == Kind::Process.name() {
            processes.insert((object.namespace, object.name));
        }
    }
    if !ours {
        // An earlier `up` may have stopped them.
        act(&mut client, Action::Start, &processes).await?;
    }
    Ok(processes)
}

async fn act(client: &mut Client, action: Action, processes: &BTreeSet<(String, String)>) -> Result<(), Error> {
    for (namespace, name) in processes {
        let wanted = v1::Selector { names: vec![name.clone()], ..selector(Kind::Process, namespace) };
        let request = v1::ActRequest { action: action.into(), selector: Some(wanted), all: false, together: false };
        let mut api = client.api.clone();
        client.once(api.act(request)).await?;
    }
    Ok(())
}

/// Asks the daemon to stop what is in scope; with everything in scope, to end too.
async fn stop(settings: &Settings, scope: &Scope, deadline: Duration) -> Result<(), Error> {
    let mut client = Client::connect(settings).await?;
    match scope {
        Scope::Processes(processes) => act(&mut client, Action::Stop, processes).await,
        Scope::Everything => {
            let deadline_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX).max(1);
            match client.api.shutdown(v1::ShutdownRequest { stop_instances: true, deadline_ms }).await {
                Ok(_) => Ok(()),
                Err(status) => match Error::from(status) {
                    // It may end before its answer is out.
                    Error::Lost(_) => Ok(()),
                    error => Err(error),
                },
            }
        }
    }
}

/// Chunks that wait to be printed; more stay with the daemon.
const PIECES: usize = 64;

struct Live {
    scope: Scope,
    board: Board,
    lines: Lines,
    names: Vec<String>,
    tailed: BTreeSet<(String, String)>,
    pieces: mpsc::Sender<Piece>,
    /// What was written before is not repeated. Unix time, nanoseconds.
    since: i64,
    logs: bool,
}

async fn live(ctx: &mut Ctx, daemon: &mut Daemon, scope: Scope, args: &Args) -> Result<Exit, Error> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let (sender, mut pieces) = mpsc::channel(PIECES);
    let now = jiff::Timestamp::now().as_nanosecond();
    let mut live = Live {
        scope,
        board: Board::new(ctx.terminal),
        lines: Lines::new(false),
        names: Vec::new(),
        tailed: BTreeSet::new(),
        pieces: sender,
        since: i64::try_from(now).unwrap_or(0).max(1),
        logs: !args.no_logs,
    };
    let mut watcher = Watcher::new(&ctx.settings, selector(Kind::Instance, ""));
    let mut watching = true;
    let (stopped, mut stopping) = mpsc::channel::<Result<(), Error>>(2);
    let mut interrupts = 0;
    let result = loop {
        tokio::select! {
            _ = interrupt.recv() => interrupts += 1,
            _ = terminate.recv() => interrupts += 1,
            status = daemon.ended() => {
                let status = status?;
                if interrupts > 0 {
                    break Ok(Exit::Ok);
                }
                // The keeper may have been killed: the controller then starts another and goes on serving.
                if Client::connect_once(&ctx.settings).await.is_err() {
                    break Err(Error::failed(format!("the daemon ended: {status}"), ""));
                }
                daemon.adopt();
                continue;
            }
            Some(result) = stopping.recv() => {
                match result {
                    Ok(()) if daemon.is_child() => {}
                    Ok(()) if daemon.is_ours() => {
                        super::shutdown::gone(&ctx.settings, args.deadline).await?;
                        break Ok(Exit::Ok);
                    }
                    Ok(()) if live.board.all_over() => break Ok(Exit::Ok),
                    Ok(()) => {}
                    Err(error) => break Err(error),
                }
                continue;
            }
            change = watcher.next(), if watching => {
                match change {
                    Ok(change) => live.change(ctx, change)?,
                    // It ends: what is left to see is that it has.
                    Err(_) if interrupts > 0 => watching = false,
                    Err(error) => break Err(error),
                }
                if interrupts > 0 && !daemon.is_ours() && live.board.all_over() {
                    break Ok(Exit::Ok);
                }
                continue;
            }
            Some(piece) = pieces.recv() => {
                live.piece(ctx, piece)?;
                continue;
            }
        }
        match (interrupts, daemon.is_ours()) {
            (1, true) => {
                live.board.note(ctx, "stopping everything; Ctrl-C again kills at once")?;
                request_stop(&ctx.settings, Scope::Everything, args.deadline, stopped.clone());
            }
            // Nothing was applied here: there is only looking to be ended.
            (1, false) if live.scope == Scope::Everything => break Ok(Exit::Ok),
            (1, false) => {
                live.board.note(ctx, "stopping what was applied, the daemon goes on; Ctrl-C again waits no longer")?;
                request_stop(&ctx.settings, live.scope.clone(), args.deadline, stopped.clone());
            }
            (2, true) => {
                live.board.note(ctx, "killing")?;
                request_stop(&ctx.settings, Scope::Everything, Duration::from_millis(1), stopped.clone());
            }
            (_, _) => break Ok(Exit::Interrupted),
        }
    };
    live.board.erase(ctx)?;
    result
}

fn request_stop(settings: &Settings, scope: Scope, deadline: Duration, done: mpsc::Sender<Result<(), Error>>) {
    let settings = settings.clone();
    tokio::spawn(async move {
        let result = stop(&settings, &scope, deadline).await;
        // Nobody listens when the daemon was quicker.
        let _ = done.send(result).await;
    });
}

impl Live {
    fn change(&mut self, ctx: &mut Ctx, change: Change) -> Result<(), Error> {
        let (seen, gone) = match change {
            Change::Present(seen) => (seen, false),
            Change::Gone(seen) => (seen, true),
            Change::Synced => return Ok(()),
        };
        let instance: views::Instance = views::parse(&seen.json)?;
        let namespace = instance.metadata.namespace.clone().unwrap_or_default();
        if !self.scope.contains(&namespace, instance.process()) {
            return Ok(());
        }
        let key = (namespace, seen.name);
        if gone {
            self.tailed.remove(&key);
            return self.board.remove(ctx, &key);
        }
        if self.logs && self.tailed.insert(key.clone()) {
            let request = v1::LogsRequest {
                namespace: key.0.clone(),
                instance: key.1.clone(),
                follow: true,
                since: self.since,
                ..v1::LogsRequest::default()
            };
            spawn(self.names.len(), Tail::new(&ctx.settings, request), self.pieces.clone());
            self.names.push(key.1.clone());
        }
        let order = (instance.process().to_owned(), instance.spec.ordinal.unwrap_or(0));
        self.board.update(ctx, key, &State::of(&instance, order))
    }

    fn piece(&mut self, ctx: &mut Ctx, piece: Piece) -> Result<(), Error> {
        self.board.erase(ctx)?;
        if let Ok(chunk) = piece.content {
            let prefix = prefix(&self.names[piece.index], piece.index, ctx.terminal.color);
            self.lines.write(&mut *ctx.out, piece.index, &prefix, &chunk)?;
        } else {
            // Whatever ended it is seen elsewhere: the instance is gone, or the daemon is.
            self.lines.finish(&mut *ctx.out, piece.index)?;
        }
        self.board.draw(ctx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_daemon_shows_only_what_was_applied() {
        let scope = Scope::Processes(BTreeSet::from([("default".to_owned(), "web".to_owned())]));
        assert!(scope.contains("default", "web"));
        assert!(!scope.contains("prod", "web"));
        assert!(Scope::Everything.contains("prod", "db"));
    }
}
