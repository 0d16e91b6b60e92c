//! `ostler store`: looks after the store of a state directory.

use std::path::PathBuf;

use ostler_rpc::v1;

use crate::client::Client;
use crate::ctx::{Ctx, Settings};
use crate::error::Error;
use crate::exit::Exit;

/// Check, back up or restore the store
#[derive(Debug, clap::Args)]
#[command(after_help = "\
check and restore need the daemon to be ended; backup works either way. Nothing here touches
running processes.

Examples:
  ostler store check
  ostler store backup
  ostler store restore                      # the newest good backup
  ostler store restore backup/00000000000000000042.ostler-backup")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Read everything and verify every checksum
    Check,
    /// Write a checksummed backup into the state directory
    Backup,
    /// Replace the store by a backup; the old one is kept beside it
    Restore {
        /// The backup [default: the newest good one in the state directory]
        file: Option<PathBuf>,
    },
}

/// Work on the store of a daemon that does not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreArgs {
    /// Whose store.
    pub state_dir: PathBuf,
    /// What to do.
    pub command: StoreCommand,
}

/// What to do with a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreCommand {
    /// Verify it.
    Check,
    /// Write a backup.
    Backup,
    /// Replace it by this backup, or by the newest good one.
    Restore(Option<PathBuf>),
}

impl Args {
    /// What the binary has to do itself; nothing when a running daemon can.
    pub(crate) fn offline(&self, settings: &Settings) -> Option<StoreArgs> {
        let command = match &self.command {
            Command::Check => StoreCommand::Check,
            Command::Restore { file } => StoreCommand::Restore(file.clone()),
            Command::Backup => {
                if settings.server.is_some() || std::os::unix::net::UnixStream::connect(settings.socket()).is_ok() {
                    return None;
                }
                StoreCommand::Backup
            }
        };
        Some(StoreArgs { state_dir: settings.state_dir.clone(), command })
    }
}

/// Has the running daemon write a backup.
pub(crate) async fn backup(ctx: &mut Ctx) -> Result<Exit, Error> {
    let client = Client::connect(&ctx.settings).await?;
    let mut api = client.api.clone();
    let backup = client.once(api.backup(v1::BackupRequest {})).await?;
    ctx.line(format_args!("{} ({} entries at revision {})", backup.path, backup.entries, backup.revision))?;
    Ok(Exit::Ok)
}
