//! `ostler explain`: the fields of a kind, from the published schemas; needs no daemon.

use crate::ctx::Ctx;
use crate::error::Error;
use crate::exit::Exit;
use crate::schema;

/// Explain a kind or one of its fields
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ostler explain process
  ostler explain process.spec.stop
  ostler explain process.spec --recursive")]
pub(crate) struct Args {
    /// A kind, and the path of a field in it
    #[arg(value_name = "KIND[.FIELD…]")]
    path: String,
    /// All fields below it, with names and types only
    #[arg(long)]
    recursive: bool,
}

pub(crate) fn run(ctx: &mut Ctx, args: &Args) -> Result<Exit, Error> {
    let text = schema::explain(&args.path, args.recursive)?;
    ctx.out.write_all(text.as_bytes())?;
    Ok(Exit::Ok)
}
