//! The witness: a workload that tells what happened to it without asking the daemon.
//!
//! Its lines are numbered and checksummed, its journal is its own; see `ostler_tests::witness` for both formats.
//!
//! ```text
//! witness --dir DIR            journal, counts and locks, relative to the working directory
//!         --rate N             lines per second, until it is told to end
//!         --burst N            N lines as fast as they are taken
//!         --line BYTES         length of a line, newline included (100)
//!         --stderr-every K     every K-th line of --rate goes to stderr
//!         --blob KIND:BYTES    binary, endless or long
//!         --exit-after-ms N    ends by itself
//!         --exit-after-lines N ends by itself
//!         --exit               ends when the burst or blob is written
//!         --code N             its exit code then, and on SIGUSR1; derived from the attempt unless given
//!         --ignore-term        takes no notice of SIGTERM
//!         --grandchild         leaves a process in a session of its own that ignores SIGHUP and SIGTERM
//! ```

#![allow(unsafe_code, reason = "signal handlers, locks and exact writes are system calls")]

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ostler_tests::proc;
use ostler_tests::witness::{Blob, code_of, line, progress_file};

static TERM: AtomicBool = AtomicBool::new(false);
static LEAVE: AtomicBool = AtomicBool::new(false);

extern "C" fn on_term(_: libc::c_int) {
    TERM.store(true, Ordering::Relaxed);
}

extern "C" fn on_leave(_: libc::c_int) {
    LEAVE.store(true, Ordering::Relaxed);
}

/// Installs a handler that interrupts system calls.
fn handle(signal: libc::c_int, handler: usize) {
    // SAFETY: all zeros is a valid sigaction; the handlers only store to an atomic.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler;
        libc::sigaction(signal, &raw const action, std::ptr::null_mut());
    }
}

/// Waits, at most so long, until a signal arrives.
fn nap(most: Duration) {
    // A signal just before the call is noticed at its end, so it has to be short.
    let most = most.min(Duration::from_millis(50));
    let time = libc::timespec { tv_sec: 0, tv_nsec: most.as_nanos() as libc::c_long };
    // SAFETY: the time lives through the call, and nobody wants the remainder.
    unsafe { libc::nanosleep(&raw const time, std::ptr::null_mut()) };
}

fn main() {
    let mut options = Options::read(std::env::args().skip(1));
    std::fs::create_dir_all(&options.directory).expect("the journal's directory can be made");
    let journal = Journal::open(&options);
    if options.is_grandchild {
        grandchild(&journal);
    }
    handle(libc::SIGTERM, if options.ignore_term { libc::SIG_IGN } else { on_term as *const () as usize });
    handle(libc::SIGUSR1, on_leave as *const () as usize);
    let lock = File::create(options.directory.join(format!("{}.lock", journal.instance.replace('/', "_"))))
        .expect("the lock can be made");
    // SAFETY: a lock on an open file of our own.
    if unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
        journal.write("overlap", "");
    }
    journal.write("start", "");
    if options.grandchild {
        let own = std::env::current_exe().expect("/proc is mounted");
        let grandchild = Command::new(own).args(["--is-grandchild", "--dir"]).arg(&options.directory).spawn();
        // Left to itself: what becomes of it is what is tested.
        drop(grandchild.expect("a grandchild can be started"));
    }
    let code = options.code.take().unwrap_or_else(|| code_of(journal.number));
    let mut output = Output::new(&options, &journal);
    let told = options.run(&mut output);
    let code = if told == Told::Term { 0 } else { code };
    journal.write("stop", &format!(" {code}"));
    std::process::exit(code);
}

/// Lives until it is killed.
fn grandchild(journal: &Journal) -> ! {
    // SAFETY: a child of the witness leads no group, so it can lead a session.
    unsafe { libc::setsid() };
    handle(libc::SIGTERM, libc::SIG_IGN);
    handle(libc::SIGHUP, libc::SIG_IGN);
    journal.write("grandchild", "");
    loop {
        nap(Duration::from_secs(1));
    }
}

#[derive(Debug)]
struct Options {
    directory: PathBuf,
    rate: u32,
    burst: u64,
    length: usize,
    stderr_every: u64,
    blob: Option<(Blob, usize)>,
    exit_after: Option<Duration>,
    exit_after_lines: Option<u64>,
    exit: bool,
    code: Option<i32>,
    ignore_term: bool,
    grandchild: bool,
    is_grandchild: bool,
}

/// Why it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Term,
    Leave,
}

impl Options {
    fn read(mut words: impl Iterator<Item = String>) -> Self {
        let mut options = Self {
            directory: PathBuf::from("."),
            rate: 0,
            burst: 0,
            length: 100,
            stderr_every: 0,
            blob: None,
            exit_after: None,
            exit_after_lines: None,
            exit: false,
            code: None,
            ignore_term: false,
            grandchild: false,
            is_grandchild: false,
        };
        while let Some(word) = words.next() {
            let mut value = || words.next().unwrap_or_else(|| panic!("{word} needs a value"));
            let number = |text: String| text.parse::<u64>().unwrap_or_else(|_| panic!("{word} needs a number"));
            match word.as_str() {
                "--dir" => options.directory = PathBuf::from(value()),
                "--rate" => options.rate = number(value()) as u32,
                "--burst" => options.burst = number(value()),
                "--line" => options.length = number(value()) as usize,
                "--stderr-every" => options.stderr_every = number(value()),
                "--blob" => {
                    let text = value();
                    let (kind, length) = text.split_once(':').expect("KIND:BYTES");
                    options.blob = Blob::parse(kind).zip(length.parse().ok());
                }
                "--exit-after-ms" => options.exit_after = Some(Duration::from_millis(number(value()))),
                "--exit-after-lines" => options.exit_after_lines = Some(number(value())),
                "--exit" => options.exit = true,
                "--code" => options.code = Some(number(value()) as i32),
                "--ignore-term" => options.ignore_term = true,
                "--grandchild" => options.grandchild = true,
                "--is-grandchild" => options.is_grandchild = true,
                _ => panic!("what is {word}?"),
            }
        }
        options
    }

    fn run(&self, output: &mut Output) -> Told {
        let began = Instant::now();
        if let Some((blob, length)) = self.blob {
            write_all(0, &blob.bytes(length));
        }
        output.burst(self.burst);
        if self.exit {
            return Told::Leave;
        }
        let mut lines: u64 = 0;
        loop {
            if TERM.load(Ordering::Relaxed) {
                return Told::Term;
            }
            let over = self.exit_after.is_some_and(|after| began.elapsed() >= after)
                || self.exit_after_lines.is_some_and(|after| lines >= after);
            if over || LEAVE.load(Ordering::Relaxed) {
                return Told::Leave;
            }
            if self.rate == 0 {
                nap(self.exit_after.map_or(Duration::from_millis(50), |after| after.saturating_sub(began.elapsed())));
                continue;
            }
            let due = Duration::from_secs(lines) / self.rate;
            match due.checked_sub(began.elapsed()) {
                Some(early) if early > Duration::ZERO => nap(early),
                Some(_) | None => {
                    lines += 1;
                    let to_stderr = self.stderr_every > 0 && lines.is_multiple_of(self.stderr_every);
                    output.line(to_stderr);
                }
            }
        }
    }
}

struct Journal {
    file: File,
    instance: String,
    attempt: String,
    number: u64,
}

impl Journal {
    fn open(options: &Options) -> Self {
        let variable = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
        let attempt = variable("OSTLER_ATTEMPT");
        let number = attempt.rsplit('.').next().and_then(|text| text.parse().ok()).expect("UID.NUMBER");
        let file = OpenOptions::new().append(true).create(true).open(options.directory.join("journal"));
        Self {
            file: file.expect("the journal can be opened"),
            instance: format!("{}/{}", variable("OSTLER_NAMESPACE"), variable("OSTLER_INSTANCE")),
            attempt,
            number,
        }
    }

    fn write(&self, what: &str, more: &str) {
        let own = proc::identity(std::process::id().cast_signed()).expect("this process lives");
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let Self { instance, attempt, .. } = self;
        let entry = format!("{what} {instance} {attempt} {} {} {at}{more}\n", own.pid, own.start);
        // One write: entries of several witnesses do not mix.
        let written = (&self.file).write(entry.as_bytes());
        assert_eq!(written.ok(), Some(entry.len()), "the journal takes the entry");
    }
}

struct Output<'a> {
    journal: &'a Journal,
    length: usize,
    progress: File,
    /// Lines written to stdout and stderr.
    written: [u64; 2],
}

impl<'a> Output<'a> {
    fn new(options: &Options, journal: &'a Journal) -> Self {
        let progress = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(progress_file(&options.directory, &journal.attempt))
            .expect("no attempt is started twice");
        Self { journal, length: options.length, progress, written: [0, 0] }
    }

    fn line(&mut self, to_stderr: bool) {
        let (index, stream) = if to_stderr { (1, 'e') } else { (0, 'o') };
        let line = line(&self.journal.attempt, stream, self.written[index], self.length);
        write_all(index, &line);
        self.written[index] += 1;
        self.count();
    }

    /// Many lines, 64 KiB at a time, as programs that buffer their output write them.
    fn burst(&mut self, lines: u64) {
        let mut left = lines;
        while left > 0 {
            let many = left.min(((64 << 10) / self.length as u64).max(1));
            let first = self.written[0];
            let chunk: Vec<u8> =
                (first..first + many).flat_map(|n| line(&self.journal.attempt, 'o', n, self.length)).collect();
            write_all(0, &chunk);
            self.written[0] += many;
            self.count();
            left -= many;
        }
    }

    /// Says how much is written, for the checker.
    fn count(&self) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.written[0].to_le_bytes());
        bytes[8..].copy_from_slice(&self.written[1].to_le_bytes());
        self.progress.write_all_at(&bytes, 0).expect("the count can be kept");
    }
}

/// Writes everything, whatever signals arrive.
fn write_all(index: usize, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        // SAFETY: the buffer is valid for its length; 1 and 2 are this program's own outputs.
        let count = unsafe { libc::write(index as i32 + 1, bytes.as_ptr().cast(), bytes.len()) };
        if let Ok(count) = usize::try_from(count) {
            bytes = &bytes[count..];
        } else {
            let why = std::io::Error::last_os_error();
            assert_eq!(why.kind(), std::io::ErrorKind::Interrupted, "output is taken: {why}");
        }
    }
}
