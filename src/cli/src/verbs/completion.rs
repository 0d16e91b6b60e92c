//! `ostler completion`: scripts that complete commands and flags in a shell.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::Cli;
use crate::ctx::Ctx;
use crate::error::Error;
use crate::exit::Exit;

/// Print the completion script of a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  source <(ostler completion bash)
  ostler completion zsh > ~/.zfunc/_ostler
  ostler completion fish > ~/.config/fish/completions/ostler.fish")]
pub(crate) struct Args {
    #[arg(value_enum)]
    shell: Shell,
}

pub(crate) fn run(ctx: &mut Ctx, args: &Args) -> Result<Exit, Error> {
    // Collected first: the generator panics when its writer fails.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "ostler", &mut script);
    ctx.out.write_all(&script)?;
    Ok(Exit::Ok)
}
