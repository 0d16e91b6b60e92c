//! The system calls that the standard library does not offer, and the raw baselines need.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::ptr;
use std::time::Duration;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn read_clock(clock: libc::clockid_t) -> io::Result<u64> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec; an unknown clock is an error.
    check(unsafe { libc::clock_gettime(clock, &raw mut time) })?;
    Ok(time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned())
}

/// Nanoseconds of CLOCK_MONOTONIC, the clock that the workers write down.
pub(crate) fn now() -> u64 {
    read_clock(libc::CLOCK_MONOTONIC).unwrap_or_default()
}

/// Nanoseconds of CPU time that all threads of a process have used, ended ones included.
pub(crate) fn cpu_time(pid: i32) -> io::Result<u64> {
    let mut clock = 0;
    // SAFETY: `clock` is valid to write; a pid that does not exist is an error.
    let error = unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    read_clock(clock)
}

/// A file in memory that other processes can open as `/proc/<our pid>/fd/<number>`.
pub(crate) fn memfd(name: &CStr) -> io::Result<File> {
    // SAFETY: `name` is a string; the flags are the system's.
    let fd = check(unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) })?;
    // SAFETY: just made, nobody else's.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// A pipe: reading end, writing end; nobody inherits them.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for two.
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) })?;
    // SAFETY: just made, nobody else's.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

/// Raises the soft limit of open files to the hard one, which is returned.
pub(crate) fn raise_open_files() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid rlimit, in both calls.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: as above.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) })?;
    Ok(limit.rlim_max)
}

/// Sends a signal; whether the process existed.
pub(crate) fn kill(pid: i32, signal: i32) -> bool {
    // SAFETY: no memory is involved.
    pid > 0 && unsafe { libc::kill(pid, signal) } == 0
}

/// Whether there is such a process, be it ended but not reaped.
pub(crate) fn exists(pid: i32) -> bool {
    kill(pid, 0)
}

/// Reaps a child; waits for its end.
pub(crate) fn reap(pid: i32) -> io::Result<()> {
    loop {
        // SAFETY: a null status is allowed.
        match check(unsafe { libc::waitpid(pid, ptr::null_mut(), 0) }) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result.map(drop),
        }
    }
}

/// Starts a program with the two descriptors as its standard output and error, the way any C program would.
pub(crate) fn posix_spawn(argv: &[CString], stdout: BorrowedFd<'_>, stderr: BorrowedFd<'_>) -> io::Result<i32> {
    let mut pointers: Vec<*mut libc::c_char> = argv.iter().map(|arg| arg.as_ptr().cast_mut()).collect();
    pointers.push(ptr::null_mut());
    let environment = [c"PATH=/usr/bin:/bin".as_ptr().cast_mut(), c"HOME=/".as_ptr().cast_mut(), ptr::null_mut()];
    let mut pid = 0;
    // SAFETY: zero is a valid bit pattern for what init overwrites; init precedes every use and destroy follows; the
    // vectors end with a null and their strings outlive the call.
    let error = unsafe {
        let mut actions: libc::posix_spawn_file_actions_t = std::mem::zeroed();
        libc::posix_spawn_file_actions_init(&raw mut actions);
        libc::posix_spawn_file_actions_adddup2(&raw mut actions, stdout.as_raw_fd(), 1);
        libc::posix_spawn_file_actions_adddup2(&raw mut actions, stderr.as_raw_fd(), 2);
        let error = libc::posix_spawn(
            &raw mut pid,
            pointers[0],
            &raw const actions,
            ptr::null(),
            pointers.as_ptr(),
            environment.as_ptr(),
        );
        libc::posix_spawn_file_actions_destroy(&raw mut actions);
        error
    };
    if error == 0 { Ok(pid) } else { Err(io::Error::from_raw_os_error(error)) }
}

/// Moves bytes from a pipe to a file at `offset`, which moves on; 0 at the end of the pipe.
pub(crate) fn splice(pipe: impl AsFd, file: impl AsFd, offset: &mut i64) -> io::Result<usize> {
    // SAFETY: both descriptors are open for the call, `offset` is valid to read and write.
    let moved = unsafe {
        libc::splice(
            pipe.as_fd().as_raw_fd(),
            ptr::null_mut(),
            file.as_fd().as_raw_fd(),
            offset,
            1 << 20,
            libc::SPLICE_F_MOVE,
        )
    };
    usize::try_from(moved).map_err(|_| io::Error::last_os_error())
}

/// The type of the file system a path is on, as a magic number.
pub(crate) fn file_system(path: &CStr) -> io::Result<i64> {
    // SAFETY: zero is a valid bit pattern for integers; `path` is a string.
    unsafe {
        let mut info: libc::statfs = std::mem::zeroed();
        check(libc::statfs(path.as_ptr(), &raw mut info))?;
        Ok(info.f_type)
    }
}

/// Between two looks at something that cannot wake us: short beside what is measured, long enough not to disturb it.
/// What is measured is taken from time stamps, so this adds nothing to it.
pub(crate) fn pause() {
    std::thread::sleep(Duration::from_micros(200));
}
