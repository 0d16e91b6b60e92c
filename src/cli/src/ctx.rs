//! What every command gets: settings from flags and environment, the streams, and what the terminal can do.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::Error;

/// The directory of the daemon's state unless told otherwise: `/var/lib/ostler` for root, else `$XDG_STATE_HOME/ostler`,
/// else `~/.local/state/ostler`.
pub fn default_state_dir() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return "/var/lib/ostler".into();
    }
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    if let Some(state) = absolute("XDG_STATE_HOME") {
        return state.join("ostler");
    }
    let home = absolute("HOME").unwrap_or_else(|| "/".into());
    home.join(".local/state/ostler")
}

/// Global flags, resolved.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// As given by `-n`.
    pub(crate) namespace: Option<String>,
    pub(crate) state_dir: PathBuf,
    /// The socket given by `--server`; unset, it is in the state directory.
    pub(crate) server: Option<PathBuf>,
    /// For calls that answer once; unset: no limit.
    pub(crate) request_timeout: Option<Duration>,
    pub(crate) verbose: u8,
    /// The trace that this command belongs to, as W3C has it.
    pub(crate) traceparent: Option<String>,
    /// Reads show the values of Secrets.
    pub(crate) show_secrets: bool,
}

impl Settings {
    pub(crate) fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or("default")
    }

    /// Whether a daemon holds the lock of the state directory. Looks without taking it even for a moment, which could
    /// keep a daemon from starting; where the kernel does not tell, the answer is no.
    pub(crate) fn is_held(&self) -> bool {
        use std::os::unix::fs::MetadataExt as _;
        if self.server.is_some() {
            return false;
        }
        let Ok(metadata) = std::fs::metadata(self.state_dir.join("lock")) else { return false };
        let Ok(locks) = std::fs::read_to_string("/proc/locks") else { return false };
        let inode = format!(":{} ", metadata.ino());
        locks.lines().any(|line| line.contains("FLOCK") && line.contains(&inode))
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.server.clone().unwrap_or_else(|| self.state_dir.join("ostler.sock"))
    }
}

/// Reads `unix:///run/x.sock`, `unix:x.sock` or a plain path.
pub(crate) fn parse_server(text: &str) -> Result<PathBuf, String> {
    let path = text.strip_prefix("unix://").or_else(|| text.strip_prefix("unix:")).unwrap_or(text);
    if path.is_empty() || path.contains("://") {
        return Err("write unix://PATH".into());
    }
    Ok(Path::new(path).to_owned())
}

/// What the streams are connected to.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Terminal {
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
    /// stdout may carry colours.
    pub(crate) color: bool,
}

impl Terminal {
    pub(crate) fn detect() -> Self {
        let stdout = io::stdout().is_terminal();
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        Terminal { stdout, stderr: io::stderr().is_terminal(), color: stdout && !plain }
    }

    /// Columns and rows of the terminal at stdout; 80 by 24 when it does not say.
    pub(crate) fn size(self) -> (usize, usize) {
        if !self.stdout {
            return (80, 24);
        }
        match rustix::termios::tcgetwinsize(io::stdout()) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col.into(), size.ws_row.into()),
            Ok(_) | Err(_) => (80, 24),
        }
    }
}

/// Handed to every verb. Data goes to `out`, messages go to `err`.
pub(crate) struct Ctx {
    pub(crate) settings: Settings,
    pub(crate) terminal: Terminal,
    /// Buffered; flushed when the command ends and before it waits for anything.
    pub(crate) out: Box<dyn Write>,
    pub(crate) err: Box<dyn Write>,
    progress: bool,
}

impl Ctx {
    pub(crate) fn new(settings: Settings, terminal: Terminal, out: Box<dyn Write>, err: Box<dyn Write>) -> Self {
        Ctx { settings, terminal, out, err, progress: false }
    }

    /// Shows what is being waited for, on one line of a terminal that is rewritten; nothing elsewhere.
    pub(crate) fn progress(&mut self, text: &str) -> Result<(), Error> {
        if self.terminal.stderr {
            let (width, _) = self.terminal.size();
            let line: String = text.chars().take(width.saturating_sub(1)).collect();
            write!(self.err, "\r\x1b[K{line}")?;
            self.err.flush()?;
            self.progress = true;
        }
        Ok(())
    }

    /// Removes the progress line.
    pub(crate) fn progress_done(&mut self) -> Result<(), Error> {
        if std::mem::take(&mut self.progress) {
            write!(self.err, "\r\x1b[K")?;
            self.err.flush()?;
        }
        Ok(())
    }

    /// One line of data, visible at once.
    pub(crate) fn line(&mut self, text: impl std::fmt::Display) -> Result<(), Error> {
        self.progress_done()?;
        writeln!(self.out, "{text}")?;
        self.out.flush()?;
        Ok(())
    }

    /// One line for the user.
    pub(crate) fn note(&mut self, text: impl std::fmt::Display) -> Result<(), Error> {
        self.progress_done()?;
        writeln!(self.err, "{text}")?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_unix_sockets() {
        assert_eq!(parse_server("unix:///run/o.sock"), Ok("/run/o.sock".into()));
        assert_eq!(parse_server("unix:o.sock"), Ok("o.sock".into()));
        assert_eq!(parse_server("/run/o.sock"), Ok("/run/o.sock".into()));
        assert!(parse_server("http://localhost").is_err());
        assert!(parse_server("unix://").is_err());
    }
}
