//! The board on which workers write when they began, and the worker itself.

use std::ffi::CString;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use super::sys;

/// Bytes of a record: time and pid, native 64-bit numbers.
const RECORD: u64 = 16;

/// One worker's beginning.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Began {
    /// CLOCK_MONOTONIC, nanoseconds; the first thing it did.
    pub(crate) at: u64,
    pub(crate) pid: i32,
}

/// Where workers report. Records are appended whole, so the length says how many there are.
pub(crate) struct Board {
    file: File,
    path: PathBuf,
    worker: PathBuf,
}

impl Board {
    /// Compiles the worker into `directory`. The board itself is in memory: no disk delays a worker.
    pub(crate) fn new(directory: &Path) -> anyhow::Result<Self> {
        use std::os::fd::AsRawFd as _;
        let worker = directory.join("bench-worker");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bench/worker.rs");
        let status = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
            .args(["--edition", "2024", "-O", "-C", "panic=abort", "-C", "strip=symbols"])
            .args(["-C", "target-feature=+crt-static", "-C", "relocation-model=static", "-o"])
            .args([&worker, &source])
            .status()
            .context("cannot run rustc")?;
        ensure!(status.success(), "the worker does not compile");
        let file = sys::memfd(c"bench-board")?;
        let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()).into();
        Ok(Self { file, path, worker })
    }

    /// The worker's command line.
    pub(crate) fn command(&self, args: &[&str]) -> Vec<String> {
        let mut argv = vec![self.worker.display().to_string(), self.path.display().to_string()];
        argv.extend(args.iter().map(ToString::to_string));
        argv
    }

    /// The same for system calls.
    pub(crate) fn argv(&self, args: &[&str]) -> anyhow::Result<Vec<CString>> {
        Ok(self.command(args).into_iter().map(CString::new).collect::<Result<_, _>>()?)
    }

    /// How many workers have begun so far.
    pub(crate) fn count(&self) -> anyhow::Result<u64> {
        Ok(self.file.metadata()?.len() / RECORD)
    }

    /// Waits until `number` workers have begun since there were `before`, and returns those, in order of arrival.
    pub(crate) fn wait(&self, before: u64, number: usize, within: Duration) -> anyhow::Result<Vec<Began>> {
        let deadline = Instant::now() + within;
        while self.count()? < before + number as u64 {
            if Instant::now() > deadline {
                bail!("{} of {number} workers have begun within {within:?}", self.count()?.saturating_sub(before));
            }
            sys::pause();
        }
        self.read(before, number)
    }

    /// Every worker that has ever begun.
    pub(crate) fn all(&self) -> anyhow::Result<Vec<Began>> {
        self.read(0, usize::try_from(self.count()?)?)
    }

    fn read(&self, from: u64, number: usize) -> anyhow::Result<Vec<Began>> {
        let mut bytes = vec![0; number * RECORD as usize];
        self.file.read_exact_at(&mut bytes, from * RECORD)?;
        let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word: u64, byte| word << 8 | u64::from(*byte));
        Ok(bytes
            .chunks_exact(RECORD as usize)
            .map(|record| Began { at: word(&record[..8]), pid: word(&record[8..]) as i32 })
            .collect())
    }

    /// Whether a process runs our worker, so that it may be ended by its number.
    pub(crate) fn owns(&self, pid: i32) -> bool {
        std::fs::read_link(format!("/proc/{pid}/exe"))
            .is_ok_and(|path| path.as_os_str().as_bytes() == self.worker.as_os_str().as_bytes())
    }
}

/// When the last of them began.
pub(crate) fn last(began: &[Began]) -> u64 {
    began.iter().map(|began| began.at).max().unwrap_or_default()
}
