//! The exit codes of every command: one place, because scripts rely on them.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done; for `diff`: no difference |
//! | 1 | the request failed: not found, invalid, refused, lost; for `diff`: there are differences |
//! | 2 | the command line is wrong; for `diff`: any failure of the request |
//! | 3 | the daemon cannot be reached |
//! | 4 | a `--timeout` or `--request-timeout` ran out |
//! | 130 | interrupted before the work was done |
//!
//! `run` in the foreground ends with the code of the command it ran.
//!
//! A reader that closes the pipe early (`ostler get … | head`) is no failure: 0.

/// How a command ended; converts into the code of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Ok,
    /// `diff` found differences, or a command failed.
    Failure,
    Usage,
    Unreachable,
    Timeout,
    Interrupted,
    /// What the command that `run` ran ended with.
    Command(u8),
}

impl Exit {
    pub(crate) fn code(self) -> u8 {
        match self {
            Exit::Ok => 0,
            Exit::Failure => 1,
            Exit::Usage => 2,
            Exit::Unreachable => 3,
            Exit::Timeout => 4,
            Exit::Interrupted => 130,
            Exit::Command(code) => code,
        }
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        exit.code().into()
    }
}

/// The table above, for `ostler --help`.
pub(crate) const HELP: &str = "\
Exit codes:
  0    done; diff: no difference
  1    the request failed (not found, invalid, refused); diff: there are differences
  2    wrong command line; diff: the request failed
  3    the daemon cannot be reached
  4    --timeout or --request-timeout ran out
  130  interrupted before the work was done
run ends with the exit code of its command.";
