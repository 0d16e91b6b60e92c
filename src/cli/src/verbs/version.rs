//! `ostler version`: what this binary is, and what the daemon is.

use ostler_rpc::v1;
use serde_json::json;

use crate::client::Client;
use crate::ctx::Ctx;
use crate::error::Error;
use crate::exit::Exit;
use crate::output::json::write_pretty;

/// Print the versions of this binary and of the daemon
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Without a daemon, only the version of this binary is printed; that is no failure.

Examples:
  ostler version
  ostler version --client -o json")]
pub(crate) struct Args {
    /// Do not ask the daemon
    #[arg(long)]
    client: bool,
    /// Print JSON
    #[arg(short, long, value_parser = ["json"])]
    output: Option<String>,
}

pub(crate) async fn run(ctx: &mut Ctx, args: &Args) -> Result<Exit, Error> {
    let client = env!("CARGO_PKG_VERSION");
    let server = if args.client {
        None
    } else {
        match Client::connect_once(&ctx.settings).await {
            Ok(client) => {
                let mut api = client.api.clone();
                Some(client.once(api.info(v1::InfoRequest {})).await?)
            }
            Err(Error::Unreachable { .. }) => None,
            Err(error) => return Err(error),
        }
    };
    if args.output.is_some() {
        let mut value = json!({"clientVersion": {"gitVersion": client}});
        if let Some(info) = &server {
            value["serverVersion"] = json!({"gitVersion": info.version});
            value["keeperVersion"] = json!({"gitVersion": info.keeper_version});
        }
        write_pretty(&mut *ctx.out, &value)?;
        return Ok(Exit::Ok);
    }
    writeln!(ctx.out, "Client: {client}")?;
    if let Some(info) = server {
        writeln!(ctx.out, "Server: {}", info.version)?;
        if !info.keeper_version.is_empty() && info.keeper_version != info.version {
            writeln!(ctx.out, "Keeper: {}", info.keeper_version)?;
        }
    }
    Ok(Exit::Ok)
}
