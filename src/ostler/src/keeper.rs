//! `ostler serve` and its siblings: the keeper's ways to begin.

use std::ffi::OsString;
use std::os::fd::AsFd as _;
use std::process::ExitCode;

use ostler_cli::ServeArgs;
use ostler_keeper::{Config, ControllerCommand, Start};

use crate::flags::{Received, Shared};
use crate::{VERSION, fail};

/// The longest path that a unix socket can have on Linux, without the final NUL.
const LONGEST_SOCKET: usize = 107;

/// Runs the daemon: this process is the keeper, and starts the controller.
pub(crate) fn serve(args: &ServeArgs) -> ExitCode {
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(why) => {
            eprintln!("error: cannot find my own program file: {why}; is /proc mounted?");
            return ExitCode::FAILURE;
        }
    };
    let mut shared = Shared::new(args, program);
    let socket = shared.state_dir.join("ostler.sock");
    if socket.as_os_str().len() > LONGEST_SOCKET {
        eprintln!(
            "error: the path {} has {} characters, a socket may have {LONGEST_SOCKET}; use a shorter --state-dir",
            socket.display(),
            socket.as_os_str().len()
        );
        return ExitCode::FAILURE;
    }
    match ostler_keeper::lock(&shared.state_dir) {
        Ok(lock) => {
            // Workloads run elsewhere and the daemon may be started from anywhere: no relative path survives here.
            if let Ok(absolute) = shared.state_dir.canonicalize() {
                shared.state_dir = absolute;
            }
            let config = match ostler_config::Live::begin(&shared.given, &shared.state_dir) {
                Ok(config) => config,
                Err(why) => {
                    eprintln!("error: {why}");
                    eprintln!("the daemon was not started; correct the file, or choose another with --config");
                    return ExitCode::FAILURE;
                }
            };
            // The controller binds it, again whenever it is restarted, and goes on without; who chose the address is told
            // here.
            if let Some(address) = config.metrics_listen
                && let Err(why) = std::net::TcpListener::bind(address)
            {
                eprintln!(
                    "error: cannot serve metrics on {address}: {why}; choose another address with --metrics-listen"
                );
                return ExitCode::FAILURE;
            }
            shared.configure(&config);
            keep(&shared, Start::Fresh { lock })
        }
        Err(why) => fail(&why),
    }
}

/// A keeper that a controller started, or that took over from another program.
pub(crate) fn run(args: impl Iterator<Item = OsString>) -> ExitCode {
    let flags = Received::read(args);
    let begin = || {
        let shared = flags.shared()?;
        let start = if flags.has("state-fd") {
            Start::Resumed { state: flags.fd("state-fd")? }
        } else {
            Start::Orphaned { socket: flags.fd("socket-fd")?, lock: flags.fd("lock-fd")? }
        };
        Ok::<_, crate::flags::Missing>((shared, start))
    };
    match begin() {
        Ok((mut shared, start)) => {
            // After an upgrade this is the new program, and so must be what it starts.
            if matches!(start, Start::Resumed { .. })
                && let Ok(program) = std::env::current_exe()
            {
                shared.program = program;
            }
            keep(&shared, start)
        }
        Err(why) => fail(&why),
    }
}

/// Whether this program could take over from the keeper whose state is in an inherited memfd.
pub(crate) fn check(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let flags = Received::read(["--state-fd".into(), args.next().unwrap_or_default()].into_iter());
    match flags.fd("state-fd") {
        Ok(state) => match ostler_keeper::check_state(state.as_fd()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(why) => fail(&why),
        },
        Err(why) => fail(&why),
    }
}

fn keep(shared: &Shared, start: Start) -> ExitCode {
    let config = Config {
        state_dir: shared.state_dir.clone(),
        shard: 0,
        controller: ControllerCommand { program: shared.program.clone(), args: shared.to_args("controller") },
        upgrade_args: shared.to_args("keeper"),
        cgroups: shared.cgroups,
        version: VERSION.to_owned(),
        start,
    };
    match ostler_keeper::run(config) {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(why) => fail(&why),
    }
}
