//! The harness of the end-to-end tests: a real daemon per test, a witness program, and checkers that do not believe the
//! daemon.
//!
//! Everything runs against the real binary with real processes. What the daemon says of itself is compared with what the
//! [`witness`] wrote into its own journal, with `/proc` and with the cgroups. Nothing here waits for a duration: only for
//! conditions, within a generous limit.
//!
//! The environment variable `OSTLER_TEST_SCALE` multiplies the counts of the tests that repeat something: 1 is what CI
//! runs; 20 makes the 50 kills of the daemon the 1,000 of the soak suite.

mod binary;
mod daemon;
pub mod manifest;
pub mod mounts;
mod places;
pub mod proc;
mod random;
mod wait;
pub mod witness;

pub use binary::{copy_program, make_program, ostler_binary, web_binary, witness_binary};
pub use daemon::{Daemon, Instance, Output, Setup};
pub use places::{directory, free_port};
pub use random::Random;
pub use wait::{LIMIT, wait_until, wait_within};

/// What CI's counts are multiplied by.
pub fn scale() -> usize {
    std::env::var("OSTLER_TEST_SCALE").ok().and_then(|text| text.parse().ok()).unwrap_or(1).max(1)
}

/// Whether this process may do what only root can; a test that needs it says so visibly and does nothing otherwise.
pub fn is_root() -> bool {
    proc::own_uid() == 0
}

/// Whether the kernel lets us limit memory, CPU and processes here.
pub fn can_limit() -> bool {
    let v2 = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    let v1 = |file: &str| std::fs::exists(format!("/sys/fs/cgroup/{file}")).is_ok_and(|exists| exists);
    is_root()
        && (v2.contains("memory") || (v1("memory/memory.limit_in_bytes") && v1("cpu/cpu.shares") && v1("pids/tasks")))
}

/// Says on the terminal, past the capture of the test harness, why a test checks nothing on this machine.
pub fn skipped(test: &str, why: &str) {
    use std::io::Write as _;
    // Straight to the descriptor: what `eprintln!` writes is only shown when a test fails.
    let _ = std::io::stderr().write_all(format!("SKIPPED {test}: {why}\n").as_bytes());
}
