//! The baselines: what the same work costs a loop of system calls.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use super::board::{self, Board};
use super::daemon::PATIENCE;
use super::sys;

/// Workers that the benchmark itself started, each with two pipes. Dropped, they are killed and reaped.
pub(crate) struct Workers {
    pids: Vec<i32>,
    #[allow(dead_code, reason = "held open for the workers")]
    pipes: Vec<OwnedFd>,
}

impl Workers {
    /// Starts so many in a loop, and tells how long it took until the last had begun, nanoseconds.
    pub(crate) fn spawn(board: &Board, number: usize) -> anyhow::Result<(Self, u64)> {
        let argv = board.argv(&[])?;
        let before = board.count()?;
        let mut workers = Self { pids: Vec::with_capacity(number), pipes: Vec::with_capacity(2 * number) };
        let start = sys::now();
        for _ in 0..number {
            workers.add(&argv)?;
        }
        let began = board.wait(before, number, PATIENCE)?;
        Ok((workers, board::last(&began) - start))
    }

    fn add(&mut self, argv: &[CString]) -> anyhow::Result<()> {
        let (stdout, out) = sys::pipe()?;
        let (stderr, err) = sys::pipe()?;
        self.pids.push(sys::posix_spawn(argv, out.as_fd(), err.as_fd())?);
        self.pipes.extend([stdout, stderr]);
        Ok(())
    }

    /// Ends and reaps all of them in two loops, and tells how long it took, nanoseconds.
    pub(crate) fn stop(mut self) -> anyhow::Result<u64> {
        let pids = std::mem::take(&mut self.pids);
        let start = sys::now();
        for pid in &pids {
            sys::kill(*pid, libc::SIGTERM);
        }
        for pid in &pids {
            sys::reap(*pid)?;
        }
        Ok(sys::now() - start)
    }

    /// Kills the only one, reaps it and starts another; the time from the kill until that one began, nanoseconds.
    pub(crate) fn replace(&mut self, board: &Board, argv: &[CString]) -> anyhow::Result<u64> {
        let before = board.count()?;
        let Some(pid) = self.pids.pop() else { anyhow::bail!("there is none to replace") };
        let start = sys::now();
        sys::kill(pid, libc::SIGKILL);
        sys::reap(pid)?;
        self.add(argv)?;
        Ok(board::last(&board.wait(before, 1, PATIENCE)?).saturating_sub(start))
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for pid in &self.pids {
            sys::kill(*pid, libc::SIGKILL);
            // A child that cannot be waited for is nobody's problem any more.
            let _ = sys::reap(*pid);
        }
    }
}

/// Copies what a writer of `bytes` bytes prints into a new file, and tells how long it took from its beginning to the
/// last byte, nanoseconds.
pub(crate) fn copy(board: &Board, bytes: u64, target: &Path) -> anyhow::Result<u64> {
    let argv = board.argv(&[&bytes.to_string()])?;
    let file = File::create(target)?;
    let before = board.count()?;
    let (stdout, out) = sys::pipe()?;
    let pid = sys::posix_spawn(&argv, out.as_fd(), out.as_fd())?;
    drop(out);
    let mut offset = 0;
    let copied = loop {
        match sys::splice(&stdout, &file, &mut offset) {
            Ok(0) => break Ok(sys::now()),
            Ok(_) => {}
            Err(error) => break Err(error),
        }
    };
    // Ends the writer if it still writes.
    drop(stdout);
    sys::reap(pid)?;
    let end = copied?;
    anyhow::ensure!(offset.cast_unsigned() == bytes, "{offset} of {bytes} bytes were copied");
    Ok(end - board::last(&board.wait(before, 1, PATIENCE)?))
}
