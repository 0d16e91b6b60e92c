//! A keeper alone: what the tests start and kill, and a way to look at one.
//!
//! `custody serve STATE_DIR auto|v2|v1|none SOCKET` is a keeper whose controller passes its end of the connection on to
//! whoever listens at SOCKET. `custody keeper STATE_DIR MODE SOCKET --socket-fd N --lock-fd M` replaces one that died,
//! `custody keeper-check N` and `custody resume STATE_DIR MODE SOCKET --state-fd N` are the two halves of an upgrade.

use std::env;
use std::error::Error;
use std::ffi::OsString;
use std::io::Read as _;
use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ostler_keeper::wire::{Channel, Request, Shutdown};
use ostler_keeper::{CgroupPreference, Config, ControllerCommand, Start, check_state, lock, run};

fn main() -> ExitCode {
    match dispatch() {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(255)),
        Err(error) => {
            eprintln!("custody: {error}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch() -> Result<i32, Box<dyn Error>> {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    let text = |index: usize| arguments.get(index).and_then(|a| a.to_str()).unwrap_or("");
    match text(0) {
        "keeper-check" => {
            if env::var_os("CUSTODY_REFUSES_UPGRADES").is_some() {
                return Err("told to refuse".into());
            }
            check_state(inherited(text(1))?.as_fd())?;
            Ok(0)
        }
        "controller" => relay(Path::new(text(1)), &option(&arguments, "--keeper-fd")?),
        mode @ ("serve" | "keeper" | "resume") => {
            let state_dir = PathBuf::from(text(1));
            let start = match mode {
                "serve" => Start::Fresh { lock: lock(&state_dir)? },
                "keeper" => Start::Orphaned {
                    socket: inherited(&option(&arguments, "--socket-fd")?)?,
                    lock: inherited(&option(&arguments, "--lock-fd")?)?,
                },
                _ => Start::Resumed { state: inherited(&option(&arguments, "--state-fd")?)? },
            };
            let own = [text(1), text(2), text(3)].map(OsString::from);
            Ok(run(Config {
                state_dir,
                shard: 0,
                controller: ControllerCommand {
                    program: env::current_exe()?,
                    args: vec!["controller".into(), text(3).into()],
                },
                upgrade_args: [OsString::from("resume")].into_iter().chain(own).collect(),
                cgroups: match text(2) {
                    "v2" => CgroupPreference::V2,
                    "v1" => CgroupPreference::V1,
                    "none" => CgroupPreference::None,
                    _ => CgroupPreference::Auto,
                },
                version: mode.to_owned(),
                start,
            })?)
        }
        other => Err(format!("unknown command {other:?}").into()),
    }
}

fn option(arguments: &[OsString], name: &str) -> Result<String, Box<dyn Error>> {
    let place = arguments.iter().position(|argument| argument == name);
    let value = place.and_then(|place| arguments.get(place + 1)?.to_str());
    Ok(value.ok_or(format!("{name} is missing"))?.to_owned())
}

/// Takes over an inherited descriptor by its number.
#[allow(unsafe_code, reason = "a number on the command line is all there is")]
fn inherited(number: &str) -> Result<OwnedFd, Box<dyn Error>> {
    // SAFETY: whoever started this program made the descriptor for it, and it is taken once.
    Ok(unsafe { OwnedFd::from_raw_fd(number.parse()?) })
}

/// Gives the connection to the keeper away and lives as long as the receiver keeps its end of `socket`.
fn relay(socket: &Path, keeper_fd: &str) -> Result<i32, Box<dyn Error>> {
    let keeper = inherited(keeper_fd)?;
    let mut stream = UnixStream::connect(socket)?;
    let message = Request { commands: vec![Shutdown { exit_code: i32::try_from(std::process::id())? }.into()] };
    let channel = Channel::new(stream.as_fd().try_clone_to_owned()?);
    channel.send(&message, &[keeper.as_fd()])?;
    drop(keeper);
    let mut end = [0];
    let _ = stream.read(&mut end)?;
    Ok(0)
}
