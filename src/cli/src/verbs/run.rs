//! `ostler run`: a command from the shell, run once under the daemon's custody.
//!
//! It is an ordinary Process that is never restarted, so everything that works on processes works on it, and the
//! manifest that `-o yaml` prints describes exactly it. In the foreground, its output is ours and so is its exit code;
//! whatever happens to the terminal or the daemon meanwhile, the command goes on.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::io::Write as _;
use std::path::Path;

use ostler_rpc::v1::{self, act_request::Action, logs_request::Stream};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::create::{check, make, print};
use crate::client::{Client, reference, selector};
use crate::ctx::Ctx;
use crate::error::Error;
use crate::exit::Exit;
use crate::kinds::Kind;
use crate::tail::{Piece, Tail, spawn};
use crate::views::{self, LastExit};
use crate::watch::{Change, Watcher};

/// Run a command once, here or detached
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The command runs in the current directory as a Process that is never restarted. Nothing of
this shell's environment is passed on but what -e says; $(NAME) and $$ are left as they are.

In the foreground its output is shown, and its exit code is that of `ostler run`: 128 and the
number of the signal that killed it, 127 when it could not be started. Ctrl-C stops the
command, a second Ctrl-C only looks away. Codes 1 to 4 may also mean that `ostler run` itself
failed; then it says \"error:\". Without --rm the Process stays, with its output, until it is deleted.

Examples:
  ostler run -- make -j4 test
  ostler run --rm -e LEVEL=debug -- ./import --all
  ostler run -d --name tunnel -- ssh -N -L 8080:db:80 gate
  ostler run --name tunnel -o yaml -- ssh -N -L 8080:db:80 gate > tunnel.yaml")]
pub(crate) struct Args {
    /// Name of the Process [default: the program's, and five random characters]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Delete it when it has ended
    #[arg(long, conflicts_with_all = ["detach", "output"])]
    rm: bool,
    /// Return when it is created
    #[arg(short, long, conflicts_with = "output")]
    detach: bool,
    /// Variable of its environment; repeatable
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Start nothing; print the manifest, yaml or json: applied, it adopts what an equal `run` has started
    #[arg(short, long, value_name = "FORMAT", value_parser = ["yaml", "json"])]
    output: Option<String>,
    /// The program and its arguments; no shell is involved
    #[arg(required = true, last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

pub(crate) async fn run(ctx: &mut Ctx, args: Args) -> Result<Exit, Error> {
    let directory = std::env::current_dir().map_err(|source| Error::File {
        what: "cannot find out the current directory",
        path: ".".into(),
        source,
    })?;
    let name = match &args.name {
        Some(name) => name.clone(),
        None => default_name(&args.command[0], RandomState::new().build_hasher().finish()),
    };
    let object = manifest(&name, ctx.settings.namespace(), &directory, &args.env, &args.command)?;
    check(&object)?;
    if let Some(format) = &args.output {
        print(ctx, &object, format)?;
        return Ok(Exit::Ok);
    }
    // Before anything is started: nobody who presses Ctrl-C from here on leaves something behind that he does not know.
    let interrupts = Interrupts::new()?;
    make(ctx, Kind::Process, &object).await?;
    if args.detach {
        ctx.line(format_args!("process/{name} created"))?;
        return Ok(Exit::Ok);
    }
    let exit = Foreground::new(ctx, &name).follow(ctx, interrupts).await?;
    if args.rm && exit != Exit::Interrupted {
        delete(ctx, &name).await?;
    }
    Ok(exit)
}

/// The Process that runs a command once.
fn manifest(name: &str, namespace: &str, directory: &Path, env: &[String], command: &[String]) -> Result<Value, Error> {
    let mut words: Vec<String> = command.iter().map(|word| literal(word)).collect();
    // As a manifest in the current directory would mean it.
    if command[0].contains('/') && !command[0].starts_with('/') {
        words[0] =
            directory.join(&words[0]).components().collect::<std::path::PathBuf>().to_string_lossy().into_owned();
    }
    let mut spec = json!({
        "command": words, "workingDir": directory.to_string_lossy(), "replicas": 1, "restartPolicy": "Never",
    });
    let mut variables = Vec::new();
    for pair in env {
        let (name, value) = pair.split_once('=').ok_or_else(|| {
            Error::usage(format!("--env {pair} has no value"), "write --env NAME=VALUE; VALUE may be empty")
        })?;
        variables.push(json!({"name": name, "value": literal(value)}));
    }
    if !variables.is_empty() {
        spec["env"] = json!(variables);
    }
    Ok(json!({
        "apiVersion": Kind::Process.api_version(), "kind": Kind::Process.name(),
        "metadata": {"name": name, "namespace": namespace}, "spec": spec,
    }))
}

/// A word that means itself where `$(NAME)` and `$$` are expanded.
fn literal(word: &str) -> String {
    let mut out = String::with_capacity(word.len());
    let mut rest = word;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let tail = rest[at..].trim_start_matches('$');
        let count = rest.len() - at - tail.len();
        let doubled = count > 1 || tail.starts_with('(');
        out.extend(std::iter::repeat_n('$', if doubled { 2 * count } else { count }));
        rest = tail;
    }
    out.push_str(rest);
    out
}

/// "make-x7k2q" for /usr/bin/make.
fn default_name(program: &str, random: u64) -> String {
    let base = Path::new(program).file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let clean: String =
        base.chars().map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' }).collect();
    let clean: String = clean.trim_matches('-').chars().take(40).collect();
    let clean = clean.trim_end_matches('-');
    // Without vowels, so that no words come out; Kubernetes' choice.
    let letters = b"bcdfghjklmnpqrstvwxz2456789";
    let suffix: String = (0..5_u32)
        .scan(random, |rest, _| {
            let letter = letters[usize::try_from(*rest % letters.len() as u64).unwrap_or(0)];
            *rest /= letters.len() as u64;
            Some(char::from(letter))
        })
        .collect();
    format!("{}-{suffix}", if clean.is_empty() { "run" } else { clean })
}

struct Interrupts {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Interrupts {
    fn new() -> Result<Self, Error> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Chunks that wait to be printed; more stay with the daemon.
const PIECES: usize = 64;

/// A Process whose only instance is watched to its end.
struct Foreground {
    namespace: String,
    process: String,
    logs: v1::LogsRequest,
}

impl Foreground {
    fn new(ctx: &Ctx, process: &str) -> Self {
        let namespace = ctx.settings.namespace().to_owned();
        let instance = ostler_core::plan::process::instance_name(process, 0);
        let logs = v1::LogsRequest {
            namespace: namespace.clone(),
            instance,
            follow: true,
            all_attempts: true,
            ..v1::LogsRequest::default()
        };
        Self { namespace, process: process.to_owned(), logs }
    }

    async fn follow(&mut self, ctx: &mut Ctx, mut interrupts: Interrupts) -> Result<Exit, Error> {
        let wanted =
            v1::Selector { names: vec![self.logs.instance.clone()], ..selector(Kind::Instance, &self.namespace) };
        let mut watcher = Watcher::new(&ctx.settings, wanted);
        let (sender, mut pieces) = mpsc::channel::<Piece>(PIECES);
        let mut following = false;
        let mut interrupted = false;
        let ended = loop {
            tokio::select! {
                change = watcher.next() => match change? {
                    Change::Present(seen) => {
                        let instance: views::Instance = views::parse(&seen.json)?;
                        if matches!(instance.phase(), "Stopped" | "Failed" | "Lost") {
                            break instance;
                        }
                        if !std::mem::replace(&mut following, true) {
                            spawn(0, Tail::new(&ctx.settings, self.logs.clone()), sender.clone());
                        }
                    }
                    Change::Gone(_) => {
                        return Err(Error::failed(format!("process/{} was deleted meanwhile", self.process), ""));
                    }
                    Change::Synced => {}
                },
                Some(piece) = pieces.recv() => self.piece(ctx, piece)?,
                () = interrupts.next() => {
                    if interrupted {
                        ctx.note(format_args!("process/{} goes on stopping", self.process))?;
                        return Ok(Exit::Interrupted);
                    }
                    interrupted = true;
                    ctx.note(format_args!("stopping process/{}; Ctrl-C again waits no longer", self.process))?;
                    self.stop(ctx).await?;
                }
            }
        };
        drop(pieces);
        self.rest(ctx).await?;
        conclude(ctx, &ended)
    }

    fn piece(&mut self, ctx: &mut Ctx, piece: Piece) -> Result<(), Error> {
        match piece.content {
            Ok(chunk) => self.print(ctx, &chunk),
            // Its end is seen by the watch, and what is missing is read then.
            Err(None) => Ok(()),
            Err(Some(error)) if error.is_not_found() => Ok(()),
            Err(Some(error)) => Err(error),
        }
    }

    fn print(&mut self, ctx: &mut Ctx, chunk: &v1::LogChunk) -> Result<(), Error> {
        let to = if chunk.stream() == Stream::Stderr { &mut ctx.err } else { &mut ctx.out };
        to.write_all(&chunk.data)?;
        to.flush()?;
        self.logs.resume = chunk.next;
        Ok(())
    }

    /// What was written and not shown yet.
    async fn rest(&mut self, ctx: &mut Ctx) -> Result<(), Error> {
        let request = v1::LogsRequest { follow: false, ..self.logs.clone() };
        let mut tail = Tail::new(&ctx.settings, request);
        while let Some(chunk) = tail.next().await? {
            self.print(ctx, &chunk)?;
        }
        Ok(())
    }

    async fn stop(&self, ctx: &Ctx) -> Result<(), Error> {
        let wanted = v1::Selector { names: vec![self.process.clone()], ..selector(Kind::Process, &self.namespace) };
        let request =
            v1::ActRequest { action: Action::Stop.into(), selector: Some(wanted), all: false, together: false };
        let client = Client::connect(&ctx.settings).await?;
        let mut api = client.api.clone();
        client.once(api.act(request)).await?;
        Ok(())
    }
}

/// The exit code of the command, as a shell tells it.
fn conclude(ctx: &mut Ctx, instance: &views::Instance) -> Result<Exit, Error> {
    let last = instance.status.as_ref().and_then(|status| status.last_exit.clone()).unwrap_or_default();
    if let Some(code) = command_code(&last) {
        if last.error.is_some() {
            ctx.note(format_args!("error: {}", instance.why()))?;
        }
        return Ok(Exit::Command(code));
    }
    let hint = format!("see ostler describe instance/{}", instance.metadata.name());
    Err(Error::failed(format!("nobody knows how the command ended: {}", instance.why()), hint))
}

fn command_code(last: &LastExit) -> Option<u8> {
    if let Some(code) = last.code {
        return u8::try_from(code & 0xff).ok();
    }
    if last.error.is_some() {
        return Some(127);
    }
    let signal = last.signal.as_ref()?.as_u64()?;
    u8::try_from(128 + signal).ok()
}

async fn delete(ctx: &mut Ctx, name: &str) -> Result<(), Error> {
    let namespace = ctx.settings.namespace().to_owned();
    let client = Client::connect(&ctx.settings).await?;
    let mut api = client.api.clone();
    let wanted = v1::Selector { names: vec![name.to_owned()], ..selector(Kind::Process, &namespace) };
    let request = v1::DeleteRequest { selector: Some(wanted), ..v1::DeleteRequest::default() };
    client.once(api.delete(request)).await?;
    super::delete::gone(ctx, &[reference(Kind::Process, &namespace, name)], None).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_mean_themselves() {
        for word in ["echo", "$HOME", "$(date)", "$$", "a$", "$$$(X)", "$$$", "100$ $(Y", "$$x$(PORT)"] {
            let expanded = ostler_core::expand::expand(&literal(word), |_| Some("WRONG".to_owned()));
            assert_eq!(expanded, word);
        }
    }

    #[test]
    fn names_come_from_programs() {
        assert_eq!(default_name("/usr/bin/make", 0), "make-bbbbb");
        assert_eq!(default_name("./My_Tool.sh", 1), "my-tool-sh-cbbbb");
        assert_eq!(default_name("___", 0), "run-bbbbb");
        assert!(default_name(&"x".repeat(100), u64::MAX).len() <= 46);
    }

    #[test]
    fn a_manifest_means_the_same_from_anywhere() {
        let words = ["./import", "--all", "$$"].map(str::to_owned);
        let object = manifest("x", "default", Path::new("/srv/app"), &["A=b=c".to_owned()], &words).unwrap();
        check(&object).unwrap();
        assert_eq!(object["spec"]["command"], json!(["/srv/app/import", "--all", "$$$$"]));
        assert_eq!(object["spec"]["env"], json!([{"name": "A", "value": "b=c"}]));
        assert!(manifest("x", "default", Path::new("/"), &["A".to_owned()], &words).is_err());
    }

    #[test]
    fn codes_are_those_of_a_shell() {
        let code = |json: &str| command_code(&serde_json::from_str(json).unwrap());
        assert_eq!(code(r#"{"code":3}"#), Some(3));
        assert_eq!(code(r#"{"signal":9}"#), Some(137));
        assert_eq!(code(r#"{"error":"no such file"}"#), Some(127));
        assert_eq!(code(r#"{"unknown":"the keeper was gone"}"#), None);
    }
}
