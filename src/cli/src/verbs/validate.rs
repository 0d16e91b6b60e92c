//! `ostler validate`: checks manifests without a daemon.

use crate::ctx::Ctx;
use crate::documents::{FileArgs, show};
use crate::error::Error;
use crate::exit::Exit;

/// Check manifests without a daemon
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Finds everything that is wrong with the manifests by themselves. What depends on what is
already there (a port that is taken) is found by `ostler apply --dry-run`.

Examples:
  ostler validate -f web.yaml
  ostler validate -f manifests -R")]
pub(crate) struct Args {
    #[command(flatten)]
    files: FileArgs,
}

pub(crate) fn run(ctx: &mut Ctx, args: &Args) -> Result<Exit, Error> {
    let documents = args.files.load(&ctx.settings)?;
    for document in &documents {
        writeln!(ctx.out, "{} valid", show(document))?;
    }
    Ok(Exit::Ok)
}
