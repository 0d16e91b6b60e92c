//! `ostler signal`: sends a signal to what runs.

use ostler_rpc::v1;

use crate::client::{Client, selector, show};
use crate::ctx::Ctx;
use crate::error::Error;
use crate::exit::Exit;
use crate::targets;

/// Send a signal to instances
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A signal says nothing about what should run: an instance that it ends is restarted as its
policy says.

Examples:
  ostler signal HUP process/web              # every instance of it
  ostler signal SIGUSR1 instance/web-0
  ostler signal 15 process/web --tree        # children too")]
pub(crate) struct Args {
    /// Name with or without SIG, or number
    #[arg(value_name = "SIGNAL", value_parser = ostler_core::signal::parse)]
    signal: i32,
    /// process/NAME…, instance/NAME…, external/NAME…
    #[arg(required = true, value_name = "TARGET")]
    targets: Vec<String>,
    /// Every process of the tree, not only the first
    #[arg(long)]
    tree: bool,
    /// Only those with these labels
    #[arg(short = 'l', long, value_name = "LABELS")]
    selector: Option<String>,
    /// All of the kind
    #[arg(long)]
    all: bool,
}

pub(crate) async fn run(ctx: &mut Ctx, args: Args) -> Result<Exit, Error> {
    let targets = targets::parse_runnable(&args.targets)?;
    let mut client = Client::connect(&ctx.settings).await?;
    let mut sent = 0;
    for target in targets {
        super::act::require_choice(&target, args.selector.as_deref(), args.all)?;
        let mut wanted = selector(target.kind, ctx.settings.namespace());
        wanted.names.clone_from(&target.names);
        wanted.labels = args.selector.clone().unwrap_or_default();
        let request = v1::SignalRequest { selector: Some(wanted), all: args.all, signal: args.signal, tree: args.tree };
        let mut api = client.api.clone();
        let answer = match client.once(api.signal(request)).await {
            Ok(answer) => answer,
            Err(error) => return Err(super::act::suggest(&mut client, error, &target, ctx).await),
        };
        for instance in answer.instances {
            sent += 1;
            ctx.line(format_args!("{} sent {}", show(&instance), ostler_core::signal::name(args.signal)))?;
        }
    }
    if sent == 0 {
        ctx.note("No running instances found.")?;
    }
    Ok(Exit::Ok)
}
