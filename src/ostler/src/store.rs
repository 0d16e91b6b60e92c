//! `ostler store`: works on the store of a state directory whose daemon does not run.

use std::process::ExitCode;

use ostler_cli::{StoreArgs, StoreCommand};
use ostler_store::{Occupied, OpenError, Options};

use crate::{fail, story};

/// Checks, backs up or restores. Holds the lock of the state directory meanwhile.
pub(crate) fn run(args: &StoreArgs) -> ExitCode {
    if !args.state_dir.is_dir() {
        eprintln!("error: there is no state directory {}; name it with --state-dir", args.state_dir.display());
        return ExitCode::FAILURE;
    }
    let _lock = match ostler_keeper::lock(&args.state_dir) {
        Ok(lock) => lock,
        Err(why) => return fail(&why),
    };
    let options = Options::new(args.state_dir.join("store"));
    match work(&options, args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {}", story(&why));
            if matches!(why, OpenError::Damaged { .. }) {
                eprintln!(
                    "hint: `ostler store restore` puts the newest good backup in its place and keeps the damaged files"
                );
            }
            ExitCode::FAILURE
        }
    }
}

fn work(options: &Options, args: &StoreArgs) -> Result<(), OpenError> {
    match &args.command {
        StoreCommand::Check => {
            let report = ostler_store::check(options)?;
            println!("{}: good, {} entries at revision {}", options.dir.display(), report.entries, report.revision);
        }
        StoreCommand::Backup => {
            let directory = args.state_dir.join("backup");
            std::fs::create_dir_all(&directory).map_err(|source| OpenError::Io {
                action: "create",
                path: directory.clone(),
                source,
            })?;
            let report = ostler_store::check(options)?;
            let to = ostler_store::backup::path_for(&directory, report.revision);
            if !to.exists() {
                ostler_store::back_up(options, &to)?;
            }
            println!("{} ({} entries at revision {})", to.display(), report.entries, report.revision);
        }
        StoreCommand::Restore(file) => {
            let directory = args.state_dir.join("backup");
            let from = match file {
                Some(file) => file.clone(),
                None => ostler_store::backup::newest_good(&directory).ok_or(OpenError::Missing { dir: directory })?,
            };
            let restored = ostler_store::restore(&from, options, Occupied::MoveAside)?;
            println!("restored {} entries from {}", restored.entries, from.display());
            if let Some(aside) = restored.moved_to {
                println!("the old store is kept in {}", aside.display());
            }
        }
    }
    Ok(())
}
