//! Developer commands: `cargo xtask gen`, `cargo xtask prepush`, `cargo xtask bench`.

mod bench;
mod r#gen;
mod prepush;

use std::path::PathBuf;

use clap::Parser;

#[derive(Parser)]
#[command(name = "xtask", about = "Developer commands of Ostler")]
enum Command {
    /// Regenerate Rust code from proto/ and the schemas in api/.
    Gen {
        /// Change nothing; fail when something is stale.
        #[arg(long)]
        check: bool,
    },
    /// Run what CI runs: formatting, lints, generated files, tests.
    Prepush,
    /// Measure the release binary against raw system calls on this machine.
    Bench(bench::Args),
}

/// The root of the workspace, wherever the command is run from.
fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::Gen { check } => r#gen::run(&root(), check),
        Command::Prepush => prepush::run(&root()),
        Command::Bench(args) => bench::run(&root(), &args),
    }
}
