//! `ostler upgrade`: replaces the running daemon by another binary.

use std::path::PathBuf;

use ostler_rpc::v1;

use crate::client::Client;
use crate::ctx::Ctx;
use crate::error::Error;
use crate::exit::Exit;

/// Replace the running daemon by another binary; workloads go on
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The new binary first proves that it understands the state of the old one; else the old one
stays.

Examples:
  ostler upgrade                              # the file the daemon was started from was replaced
  ostler upgrade --binary /opt/ostler-0.2/ostler")]
pub(crate) struct Args {
    /// The new binary [default: the path the daemon was started from]
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
}

pub(crate) async fn run(ctx: &mut Ctx, args: Args) -> Result<Exit, Error> {
    let binary = match args.binary {
        None => String::new(),
        Some(path) => {
            let absolute = std::fs::canonicalize(&path).map_err(|source| Error::File {
                what: "cannot find the binary",
                path,
                source,
            })?;
            absolute
                .into_os_string()
                .into_string()
                .map_err(|path| Error::failed(format!("the path {} is not UTF-8", path.display()), ""))?
        }
    };
    let client = Client::connect(&ctx.settings).await?;
    let mut api = client.api.clone();
    let answer = client.once(api.upgrade(v1::UpgradeRequest { binary })).await?;
    ctx.line(format_args!("daemon upgraded from {} to {}", answer.from_version, answer.to_version))?;
    Ok(Exit::Ok)
}
