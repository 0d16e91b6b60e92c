//! The daemon of `ostler up`: one that already serves, or a child.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::time::Instant;

use crate::client::Client;
use crate::ctx::Ctx;
use crate::error::Error;

/// A daemon that has not opened its socket by then will not.
const STARTING: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(5);

pub(super) struct Daemon {
    /// Started here, and to be ended here.
    ours: bool,
    child: Option<Child>,
    log: PathBuf,
    /// Where this child's messages begin in the log.
    log_start: u64,
}

impl Daemon {
    /// Uses the daemon that serves the state directory, or starts one and waits until it does.
    pub(super) async fn find_or_start(ctx: &mut Ctx) -> Result<Self, Error> {
        let settings = ctx.settings.clone();
        let log = settings.state_dir.join("daemon.log");
        let Err(absent) = Client::connect_once(&settings).await else {
            ctx.note("using the daemon that already serves this directory")?;
            return Ok(Daemon { ours: false, child: None, log, log_start: 0 });
        };
        if settings.server.is_some() || !absent.is_transient() {
            return Err(absent);
        }
        let (file, log_start) = open_log(&settings.state_dir, &log)?;
        let failed = |source| Error::File { what: "cannot start the daemon", path: log.clone(), source };
        let child = Command::new(std::env::current_exe().map_err(failed)?)
            .arg("serve")
            .arg("--state-dir")
            .arg(&settings.state_dir)
            .args(["--on-shutdown", "leave"])
            .stdin(Stdio::null())
            .stdout(file.try_clone().map_err(failed)?)
            .stderr(file)
            // Ctrl-C is for us: we tell the daemon what it means.
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let mut daemon = Daemon { ours: true, child: Some(child), log: log.clone(), log_start };
        let deadline = Instant::now() + STARTING;
        loop {
            match Client::connect_once(&settings).await {
                Ok(_) => return Ok(daemon),
                Err(error) if !error.is_transient() || Instant::now() > deadline => return Err(error),
                Err(_) => {}
            }
            if let Some(child) = &mut daemon.child
                && let Some(status) = child.try_wait().map_err(failed)?
            {
                let said = daemon.last_words();
                return Err(Error::failed(
                    format!("the daemon did not start ({status}){said}"),
                    format!("its messages are in {}", daemon.log.display()),
                ));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Whether it was started here, and is to be ended here.
    pub(super) fn is_ours(&self) -> bool {
        self.ours
    }

    /// Whether its end will be seen by [`Daemon::ended`].
    pub(super) fn is_child(&self) -> bool {
        self.child.is_some()
    }

    /// Its child process has ended and was replaced by the daemon itself, which goes on.
    pub(super) fn adopt(&mut self) {
        self.child = None;
    }

    /// Waits until our child has ended and says how; for ever when there is none. Cancel-safe.
    pub(super) async fn ended(&mut self) -> Result<String, Error> {
        match &mut self.child {
            None => std::future::pending().await,
            Some(child) => {
                let status = child.wait().await?;
                Ok(format!("{status}{}", self.last_words()))
            }
        }
    }

    /// The last lines of its log, each on a line of its own.
    fn last_words(&self) -> String {
        let mut text = String::new();
        let read = File::open(&self.log).and_then(|mut file| {
            let end = file.seek(SeekFrom::End(0))?;
            file.seek(SeekFrom::Start(self.log_start.max(end.saturating_sub(4096))))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            text = String::from_utf8_lossy(&bytes).into_owned();
            Ok(())
        });
        if read.is_err() {
            return String::new();
        }
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(10)..].iter().flat_map(|line| ["\n  ", line]).collect()
    }
}

/// Opens the log for appending; the directory is for its owner only, as the daemon makes it.
fn open_log(dir: &Path, log: &Path) -> Result<(File, u64), Error> {
    let failed = |source| Error::File { what: "cannot write", path: log.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(log).map_err(failed)?;
    let start = file.metadata().map_err(failed)?.len();
    Ok((file, start))
}
