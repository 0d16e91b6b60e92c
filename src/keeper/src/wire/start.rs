//! Starting the other side: a process that inherits a socket and the lock by number.
#![allow(unsafe_code, reason = "pre_exec makes two descriptors inheritable")]

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;

use super::Channel;

/// Starts `program args… <socket_flag> N <lock_flag> M`, in a process group of its own so that a Ctrl-C at the terminal
/// reaches it only through whom it is meant for. Only these two descriptors and the standard ones are inherited.
pub(crate) fn start(
    program: &Path,
    args: &[OsString],
    socket: (&str, BorrowedFd<'_>),
    lock: (&str, BorrowedFd<'_>),
    envs: &[(&str, &OsStr)],
) -> io::Result<Child> {
    // Duplicates above the standard numbers that std leaves to the child as they are; the numbers are the child's too.
    let socket_fd = rustix::io::fcntl_dupfd_cloexec(socket.1, 3)?;
    let lock_fd = rustix::io::fcntl_dupfd_cloexec(lock.1, 3)?;
    let numbers = [socket_fd.as_raw_fd(), lock_fd.as_raw_fd()];
    let mut command = std::process::Command::new(program);
    command
        .args(args)
        .arg(socket.0)
        .arg(numbers[0].to_string())
        .arg(lock.0)
        .arg(numbers[1].to_string())
        .envs(envs.iter().copied())
        .stdin(Stdio::null())
        .process_group(0);
    // SAFETY: these calls are async-signal-safe and nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            // std passes the mask on, and the keeper has blocked everything.
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
            libc::signal(libc::SIGHUP, libc::SIG_DFL);
            for number in numbers {
                if libc::fcntl(number, libc::F_SETFD, 0) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    command.spawn()
}

/// For the controller whose keeper died: starts `program args… --socket-fd N --lock-fd M` and returns the connection to
/// it and its pid. Say Hello next; the answer has `wants_handoff`.
///
/// The new keeper outlives this process. It is collected by a thread when it ends before that.
pub fn spawn_keeper(program: &Path, args: &[OsString], lock: BorrowedFd<'_>) -> io::Result<(Channel, u32)> {
    let (mine, theirs) = Channel::pair()?;
    let mut child = start(program, args, ("--socket-fd", theirs.as_fd()), ("--lock-fd", lock), &[])?;
    let pid = child.id();
    thread::Builder::new().name("keeper-reaper".to_owned()).spawn(move || child.wait())?;
    Ok((mine, pid))
}
