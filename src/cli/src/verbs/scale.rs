//! `ostler scale`: sets the number of copies of a Process.

use ostler_rpc::v1;

use crate::client::{Client, reference};
use crate::ctx::Ctx;
use crate::error::Error;
use crate::exit::Exit;
use crate::kinds::Kind;
use crate::targets;

/// Set how many copies of a process run
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ostler scale process/web --replicas=3
  ostler scale process/web --replicas=3 --current-replicas=2")]
pub(crate) struct Args {
    /// process/NAME…, or process NAME…
    #[arg(required = true, value_name = "TARGET")]
    targets: Vec<String>,
    /// How many
    #[arg(long, value_name = "N")]
    replicas: u32,
    /// Only if it has this many now
    #[arg(long, value_name = "N")]
    current_replicas: Option<u32>,
}

pub(crate) async fn run(ctx: &mut Ctx, args: Args) -> Result<Exit, Error> {
    let targets = targets::parse_runnable(&args.targets)?;
    let mut client = Client::connect(&ctx.settings).await?;
    for target in targets {
        if target.kind != Kind::Process || target.names.is_empty() {
            return Err(Error::usage("only processes by name can be scaled", "write process/NAME"));
        }
        for name in target.names {
            let namespace = ctx.settings.namespace().to_owned();
            let request = v1::ScaleRequest {
                object: Some(reference(Kind::Process, &namespace, &name)),
                replicas: args.replicas,
                current_replicas: args.current_replicas,
            };
            let mut api = client.api.clone();
            let answer = match client.once(api.scale(request)).await {
                Ok(answer) => answer,
                Err(error) if error.is_not_found() => {
                    return Err(client.suggest_name(error, Kind::Process, &namespace, &name).await);
                }
                Err(error) => return Err(error),
            };
            ctx.line(format_args!("process/{name} {}", if answer.changed { "scaled" } else { "unchanged" }))?;
        }
    }
    Ok(Exit::Ok)
}
