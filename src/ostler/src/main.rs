//! One binary: the command line, the keeper and the controller.
//!
//! The first argument decides, before anything else is initialised: `controller`, `keeper` and `keeper-check` are how
//! the daemon's processes start each other; everything else is for people.

mod controller;
mod flags;
mod keeper;
mod memory;
mod observe;
mod output;
mod store;

use std::process::ExitCode;

use ostler_cli::{Host, ServeArgs, StoreArgs};

/// The version of the program.
const VERSION: &str = env!("CARGO_PKG_VERSION");

struct Binary;

impl Host for Binary {
    fn serve(&self, args: ServeArgs) -> ExitCode {
        keeper::serve(&args)
    }

    fn store(&self, args: StoreArgs) -> ExitCode {
        store::run(&args)
    }
}

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    match args.nth(1).as_deref().and_then(std::ffi::OsStr::to_str) {
        Some("controller") => controller::run(args),
        Some("keeper") => keeper::run(args),
        Some("keeper-check") => keeper::check(args),
        _ => ostler_cli::run(std::env::args_os(), &Binary),
    }
}

/// Prints an error with its causes, the way every command does.
fn fail(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("error: {}", story(error));
    ExitCode::FAILURE
}

/// An error and its causes in one line.
fn story(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
