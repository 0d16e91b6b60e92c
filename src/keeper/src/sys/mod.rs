//! System calls that no crate wraps the way the keeper needs them.
#![allow(unsafe_code, reason = "this is where the system calls are made")]

pub(crate) mod launch;
mod memory;

pub use memory::release_memory;

use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::process::Pid;

/// Unix time in nanoseconds.
pub(crate) fn unix_nanos() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A child that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) pid: i32,
    /// As of wait(2).
    pub(crate) status: i32,
}

/// Some child that has ended and was not collected yet. It stays a zombie, and its exit status stays with it.
pub(crate) fn peek_ended_child() -> Option<Ended> {
    // SAFETY: siginfo_t is plain data for which all zeroes is a valid value.
    let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
    // SAFETY: the pointer is valid for the call.
    let result = unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, libc::WEXITED | libc::WNOHANG | libc::WNOWAIT) };
    // SAFETY: waitid has filled the fields that belong to SIGCHLD, or left the zeroes.
    let (pid, value) = unsafe { (info.si_pid(), info.si_status()) };
    if result < 0 || pid == 0 {
        return None;
    }
    let status = match info.si_code {
        libc::CLD_EXITED => (value & 0xff) << 8,
        libc::CLD_DUMPED => (value & 0x7f) | 0x80,
        _ => value & 0x7f,
    };
    Some(Ended { pid, status })
}

/// Collects the ended child `pid`.
pub(crate) fn collect(pid: i32) {
    loop {
        // SAFETY: a null status is allowed.
        let result = unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::WNOHANG) };
        if result >= 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return;
        }
    }
}

/// What a pidfd tells of the end of its process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PidfdExit {
    /// A wait status as of wait(2).
    Status(i32),
    /// Alive, or ended and not yet collected by its parent.
    NotYet,
    /// This kernel does not tell, or no longer.
    Unknowable,
}

#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroupid: u64,
    pids_and_ids: [u32; 11],
    exit_code: i32,
    rest: [u32; 4],
}

const _: () = assert!(mem::size_of::<PidfdInfo>() == 80);
const _: () = assert!(mem::offset_of!(PidfdInfo, exit_code) == 60);

const PIDFD_GET_INFO: u64 = 0xC050_FF0B;
const PIDFD_INFO_EXIT: u64 = 1 << 3;

/// Asks a pidfd for the exit status of its process (Linux 6.15 and newer; only after the process was collected, and
/// only if the pidfd was opened before that).
pub(crate) fn pidfd_exit(pidfd: BorrowedFd<'_>) -> PidfdExit {
    let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: the structure has the size that the request number states.
    let result = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO as _, &raw mut info) };
    if result < 0 {
        PidfdExit::Unknowable
    } else if info.mask & PIDFD_INFO_EXIT != 0 {
        PidfdExit::Status(info.exit_code)
    } else {
        PidfdExit::NotYet
    }
}

/// A pidfd for whatever process has this pid now; the caller checks that it is the one that was meant.
pub(crate) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?)
}

/// Sends a signal; 0 only asks whether the process could be signalled.
pub(crate) fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: a null siginfo is allowed.
    let result = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, std::ptr::null::<libc::siginfo_t>(), 0)
    };
    check(result as i32).map(drop)
}

/// Moves up to `length` bytes from a pipe into a file at `offset` (advanced), or into a device without one.
pub(crate) fn splice(
    pipe: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    offset: Option<&mut i64>,
    length: usize,
) -> io::Result<usize> {
    let offset = offset.map_or(std::ptr::null_mut(), std::ptr::from_mut);
    // SAFETY: the offset is null or valid for the call.
    let moved = unsafe {
        libc::splice(
            pipe.as_raw_fd(),
            std::ptr::null_mut(),
            to.as_raw_fd(),
            offset,
            length,
            libc::SPLICE_F_NONBLOCK | libc::SPLICE_F_MOVE,
        )
    };
    if moved < 0 { Err(io::Error::last_os_error()) } else { Ok(moved as usize) }
}

/// Blocks every signal that is not the consequence of a fault, for good, and ignores those whose default would be to
/// end or stop a daemon whose terminal or reader goes away.
pub(crate) fn take_over_signals() -> io::Result<OwnedFd> {
    // SAFETY: sigset_t is plain data that sigfillset initialises; the calls have no other memory effects, and the
    // caller has one thread.
    unsafe {
        let mut all: libc::sigset_t = mem::zeroed();
        libc::sigfillset(&raw mut all);
        for fault in
            [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP, libc::SIGABRT, libc::SIGSYS]
        {
            libc::sigdelset(&raw mut all, fault);
        }
        check(libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut()))?;
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
        libc::signal(libc::SIGHUP, libc::SIG_IGN);
        // An ignored SIGCHLD, inherited from a careless parent, would make the kernel throw exit codes away.
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
        let mut wanted: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut wanted);
        for signal in [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT] {
            libc::sigaddset(&raw mut wanted, signal);
        }
        let fd = check(libc::signalfd(-1, &raw const wanted, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Room for the kernel's own sigaction structure, whose first word is the handler on every architecture.
pub(crate) type KernelSigaction = [usize; 8];

/// The size of the kernel's signal sets, bytes.
pub(crate) const KERNEL_SIGSET: usize = 8;

/// Signals whose disposition is "ignored", which exec would pass on to a workload. Asked of the kernel itself, because
/// libc hides the signals it keeps for its own use.
pub(crate) fn ignored_signals() -> Vec<i32> {
    (1..=64)
        .filter(|signal| {
            let mut old: KernelSigaction = [0; 8];
            // SAFETY: a null new action only asks, and the buffer is larger than the kernel's structure.
            let result = unsafe {
                libc::syscall(
                    libc::SYS_rt_sigaction,
                    *signal,
                    std::ptr::null::<KernelSigaction>(),
                    &raw mut old,
                    KERNEL_SIGSET,
                )
            };
            result == 0 && old[0] == libc::SIG_IGN
        })
        .collect()
}

/// The next signal of a signalfd.
pub(crate) fn read_signal(signals: BorrowedFd<'_>) -> Option<i32> {
    let mut info = [0_u8; mem::size_of::<libc::signalfd_siginfo>()];
    match rustix::io::retry_on_intr(|| rustix::io::read(signals, &mut info)) {
        Ok(length) if length == info.len() => Some(i32::from_ne_bytes([info[0], info[1], info[2], info[3]])),
        Ok(_) | Err(_) => None,
    }
}

/// The number of the limit of open files; its type differs between C libraries.
#[allow(clippy::unnecessary_cast, reason = "not with every C library")]
pub(crate) const OPEN_FILES: u32 = libc::RLIMIT_NOFILE as u32;

/// Soft and hard limit of open files of this process.
pub(crate) fn open_files_limit() -> (u64, u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is valid for the call.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    (limit.rlim_cur, limit.rlim_max)
}

/// Sets the soft limit of open files of this process.
pub(crate) fn set_open_files_limit(soft: u64, hard: u64) {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the pointer is valid for the call. A refusal leaves the limit as it was, which is checked per spawn.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
}

/// Marks every descriptor from 3 on close-on-exec, whoever opened it.
pub(crate) fn close_all_on_exec() {
    // SAFETY: no descriptor is closed, only a flag is set.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, 4_u32) };
    if result == 0 {
        return;
    }
    let Ok(numbers) = std::fs::read_dir("/proc/self/fd") else {
        return;
    };
    for entry in numbers.flatten() {
        if let Some(number) = entry.file_name().to_str().and_then(|n| n.parse().ok())
            && number >= 3
        {
            let _ = set_cloexec(number, true);
        }
    }
}

/// Whether a descriptor number is closed by execve.
pub(crate) fn set_cloexec(fd: RawFd, closes: bool) -> io::Result<()> {
    let flags = if closes { libc::FD_CLOEXEC } else { 0 };
    // SAFETY: only a flag of the descriptor is changed.
    check(unsafe { libc::fcntl(fd, libc::F_SETFD, flags) }).map(drop)
}

/// Takes over a descriptor number that was inherited. Fails when it is not open.
pub(crate) fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: only asks.
    check(unsafe { libc::fcntl(fd, libc::F_GETFD) })?;
    // SAFETY: the descriptor is open, and the caller names each inherited number once.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The process at the other end of a socket pair.
pub(crate) fn peer_pid(socket: BorrowedFd<'_>) -> Option<i32> {
    rustix::net::sockopt::socket_peercred(socket).ok().map(|credentials| credentials.pid.as_raw_nonzero().get())
}

/// Whether a write to `fd` of up to a page would not block.
pub(crate) fn takes_output(fd: BorrowedFd<'_>) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut polled = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
    matches!(poll(&mut polled, Some(&zero)), Ok(1)) && polled[0].revents().contains(PollFlags::OUT)
}

/// Whether `fd` has something to read (for a pidfd: the process has ended).
pub(crate) fn is_readable(fd: BorrowedFd<'_>) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut polled = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    matches!(poll(&mut polled, Some(&zero)), Ok(1))
}

/// The inode number behind a descriptor.
pub(crate) fn inode(fd: impl AsFd) -> u64 {
    rustix::fs::fstat(fd).map_or(0, |stat| stat.st_ino)
}

/// A message for whoever watches the daemon's stderr; dropped rather than waited for.
pub(crate) fn say(message: &std::fmt::Arguments<'_>) {
    use std::io::Write as _;
    let stderr = io::stderr();
    if takes_output(stderr.as_fd()) {
        let text = format!("ostler keeper: {message}\n");
        let _ = (&stderr).write_all(text.as_bytes());
    }
}

/// `/dev/null` for reading and writing.
pub(crate) fn open_null() -> io::Result<OwnedFd> {
    let file = File::options().read(true).write(true).open("/dev/null")?;
    Ok(file.into())
}

/// Waits for a child that is about to end and collects it.
pub(crate) fn collect_blocking(pid: i32) {
    loop {
        // SAFETY: a null status is allowed.
        let result = unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
        if result >= 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return;
        }
    }
}

/// Waits until `fd` has something to read, or the patience ends.
pub(crate) fn wait_readable(fd: BorrowedFd<'_>, patience: std::time::Duration) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let deadline = std::time::Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        let mut polled = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
        match poll(&mut polled, Some(&left)) {
            Ok(ready) => return ready > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}
