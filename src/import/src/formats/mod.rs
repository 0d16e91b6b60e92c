//! One module for each format.

pub(crate) mod compose;
pub(crate) mod hsu;
pub(crate) mod pm2;
pub(crate) mod procfile;
pub(crate) mod supervisord;
pub(crate) mod systemd;

use crate::notes::Notes;

/// Restarts wait from the end of a process there, and from its start here.
const DELAY: &str =
    "the delay counts from start to start here, so a process that ran for longer than that is restarted at once";

/// Says once for a file that nothing of the supervisor's own environment reaches the processes.
fn environment_is_not_inherited(notes: &mut Notes, whose: &str) {
    notes.hint(
        0,
        "",
        format!("variables of {whose} reach a process only if its env or inheritEnv names them; those that a command line uses are named"),
    );
}
