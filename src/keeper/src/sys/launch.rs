//! Turns a prepared description into a running process: clone3 with a shared address space, as vfork does it, so that
//! the cost does not depend on the size of the keeper or its number of descriptors.
//!
//! Everything is allocated before the clone. The child runs on a stack of its own, makes only raw system calls, and
//! tells through the shared memory where it failed; the parent sleeps until the child has called execve or is gone.

use std::ffi::{CString, c_char, c_int, c_void};
use std::io;
use std::mem;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::ptr;

use crate::wire::spawn_error::Stage;

/// libc has 0 here for some targets.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const STACK: usize = 64 << 10;
const CLOSE_RANGE_UNSHARE: u32 = 2;

/// How the child gets into its cgroup.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Join<'a> {
    /// There is none.
    Stay,
    /// Born in it: a directory of cgroup v2.
    Into(BorrowedFd<'a>),
    /// Writes itself into this `cgroup.procs`.
    Procs(BorrowedFd<'a>),
}

/// A resource limit of the child.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limit {
    pub(crate) resource: u32,
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

/// A process to be.
#[derive(Debug)]
pub(crate) struct Program<'a> {
    /// Paths to try in turn, as execvp does.
    pub(crate) candidates: &'a [CString],
    pub(crate) argv: &'a [CString],
    pub(crate) env: &'a [CString],
    pub(crate) working_dir: &'a CString,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    /// Supplementary groups to set; `None` leaves them alone.
    pub(crate) groups: Option<&'a [u32]>,
    pub(crate) umask: Option<u32>,
    pub(crate) limits: &'a [Limit],
    pub(crate) no_new_privileges: bool,
    pub(crate) nice: Option<i32>,
    pub(crate) oom_score_adj: Option<i32>,
    pub(crate) stdout: BorrowedFd<'a>,
    pub(crate) stderr: BorrowedFd<'a>,
    pub(crate) join: Join<'a>,
    /// Further `cgroup.procs` that it writes itself into.
    pub(crate) also: &'a [BorrowedFd<'a>],
    /// Kill the child should the keeper die before the child can be recognised as what it is.
    pub(crate) dies_with_keeper_before_exec: bool,
}

/// A process that has called execve.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
}

/// Why there is no process. A child that had been made was collected.
#[derive(Debug)]
pub(crate) struct LaunchError {
    pub(crate) stage: Stage,
    pub(crate) error: io::Error,
    /// Index of the candidate that counts, for [`Stage::Exec`].
    pub(crate) candidate: usize,
}

/// What the child needs, in memory that both see.
struct Shared {
    candidates: *const *const c_char,
    argv: *const *const c_char,
    env: *const *const c_char,
    working_dir: *const c_char,
    uid: Option<u32>,
    gid: Option<u32>,
    groups: *const u32,
    group_count: Option<usize>,
    umask: Option<u32>,
    limits: *const Limit,
    limit_count: usize,
    no_new_privileges: bool,
    nice: Option<i32>,
    oom_score_adj: [u8; 12],
    oom_score_adj_length: usize,
    slots: [RawFd; 3],
    shares_descriptors: bool,
    join_procs: RawFd,
    also: *const RawFd,
    also_count: usize,
    parent: i32,
    death_signal: bool,
    reset: *const i32,
    reset_count: usize,
    // written by the child
    stage: i32,
    errno: i32,
    candidate: usize,
}

/// The means to launch: a stack, and three low descriptor numbers that become 0, 1 and 2 of each child.
///
/// The child shares the descriptor table until it asks for a copy of its own, which the kernel then ends right after
/// the three; so a launch costs the same whether the keeper holds ten descriptors or ten thousand.
#[derive(Debug)]
pub(crate) struct Launcher {
    stack: *mut c_void,
    slots: [OwnedFd; 3],
    null: OwnedFd,
    reset: Vec<i32>,
    has_clone3: bool,
    shares_descriptors: bool,
}

impl Launcher {
    /// `ignored` are the signals to set back to their default in children.
    pub(crate) fn new(ignored: Vec<i32>) -> io::Result<Self> {
        // SAFETY: a new private mapping.
        let stack = unsafe {
            libc::mmap(
                ptr::null_mut(),
                STACK,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK,
                -1,
                0,
            )
        };
        if stack == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let null = super::open_null()?;
        let slot = || rustix::io::fcntl_dupfd_cloexec(&null, 3);
        let mut slots = [slot()?, slot()?, slot()?];
        slots.sort_by_key(std::os::fd::AsRawFd::as_raw_fd);
        // SAFETY: closes nothing: no descriptor has so high a number.
        let shares_descriptors = unsafe { libc::syscall(libc::SYS_close_range, u32::MAX, u32::MAX, 0_u32) } == 0;
        Ok(Self { stack, slots, null, reset: ignored, has_clone3: cfg!(target_arch = "x86_64"), shares_descriptors })
    }

    /// Whether children can be born into a group of cgroup v2.
    pub(crate) fn bears_into_groups(&self) -> bool {
        self.has_clone3
    }

    /// Starts the program, or says why not.
    pub(crate) fn launch(&mut self, program: &Program<'_>) -> Result<Launched, LaunchError> {
        let failed = |stage, error| LaunchError { stage, error, candidate: 0 };
        let null_ended = |strings: &[CString]| {
            let mut pointers: Vec<*const c_char> = strings.iter().map(|s| s.as_ptr()).collect();
            pointers.push(ptr::null());
            pointers
        };
        let candidates = null_ended(program.candidates);
        let argv = null_ended(program.argv);
        let env = null_ended(program.env);
        let mut oom_score_adj = [0_u8; 12];
        let mut oom_score_adj_length = 0;
        if let Some(value) = program.oom_score_adj {
            let text = value.to_string();
            oom_score_adj_length = text.len();
            oom_score_adj[..text.len()].copy_from_slice(text.as_bytes());
        }
        for (slot, fd) in [(1, program.stdout), (2, program.stderr)] {
            self.set_slot(slot, fd).map_err(|error| failed(Stage::Pipe, error))?;
        }
        let also: Vec<RawFd> = program.also.iter().map(std::os::fd::AsRawFd::as_raw_fd).collect();
        let mut shared = Shared {
            candidates: candidates.as_ptr(),
            argv: argv.as_ptr(),
            env: env.as_ptr(),
            working_dir: program.working_dir.as_ptr(),
            uid: program.uid,
            gid: program.gid,
            groups: program.groups.map_or(ptr::null(), <[u32]>::as_ptr),
            group_count: program.groups.map(<[u32]>::len),
            umask: program.umask,
            limits: program.limits.as_ptr(),
            limit_count: program.limits.len(),
            no_new_privileges: program.no_new_privileges,
            nice: program.nice,
            oom_score_adj,
            oom_score_adj_length,
            slots: [0, 1, 2].map(|slot: usize| self.slots[slot].as_raw_fd()),
            shares_descriptors: self.shares_descriptors,
            join_procs: match program.join {
                Join::Procs(procs) => procs.as_raw_fd(),
                Join::Stay | Join::Into(_) => -1,
            },
            also: also.as_ptr(),
            also_count: also.len(),
            // SAFETY: getpid has no preconditions.
            parent: unsafe { libc::getpid() },
            death_signal: program.dies_with_keeper_before_exec,
            reset: self.reset.as_ptr(),
            reset_count: self.reset.len(),
            stage: 0,
            errno: 0,
            candidate: 0,
        };
        let into = match program.join {
            Join::Into(directory) => Some(directory),
            Join::Stay | Join::Procs(_) => None,
        };
        let cloned = self.clone(&mut shared, into);
        let emptied = (1..3).try_for_each(|slot| {
            let null = self.null.as_raw_fd();
            // SAFETY: both numbers are ours; the child has a table of its own by now.
            super::check(unsafe { libc::dup3(null, self.slots[slot].as_raw_fd(), libc::O_CLOEXEC) }).map(drop)
        });
        debug_assert!(emptied.is_ok(), "dup3 onto an open number cannot fail");
        let launched = cloned.map_err(|error| failed(Stage::Fork, error))?;
        // The child wrote through a pointer the compiler saw escape into the clone.
        if shared.stage == 0 {
            return Ok(launched);
        }
        super::collect_blocking(launched.pid);
        Err(LaunchError {
            stage: Stage::try_from(shared.stage).unwrap_or(Stage::Fork),
            error: io::Error::from_raw_os_error(shared.errno),
            candidate: shared.candidate,
        })
    }

    fn set_slot(&self, slot: usize, fd: BorrowedFd<'_>) -> io::Result<()> {
        // SAFETY: the target number is owned by this structure.
        super::check(unsafe { libc::dup3(fd.as_raw_fd(), self.slots[slot].as_raw_fd(), libc::O_CLOEXEC) }).map(drop)
    }

    fn clone(&mut self, shared: &mut Shared, into: Option<BorrowedFd<'_>>) -> io::Result<Launched> {
        let share_files = if self.shares_descriptors { libc::CLONE_FILES } else { 0 };
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | share_files;
        if self.has_clone3 {
            match self.clone3(shared, flags as u64, into) {
                Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
                    self.has_clone3 = false;
                }
                done => return done,
            }
        }
        if into.is_some() {
            // Only clone3 can; the caller probes before it relies on it.
            return Err(io::Error::from_raw_os_error(libc::ENOSYS));
        }
        let mut pidfd: c_int = -1;
        // SAFETY: the stack is ours alone and as long as stated, because the parent sleeps until the child has left it;
        // `child` never returns; `shared` outlives the child's use of it for the same reason.
        let pid = unsafe {
            libc::clone(
                child,
                self.stack.byte_add(STACK),
                flags | libc::SIGCHLD,
                ptr::from_mut(shared).cast(),
                &raw mut pidfd,
            )
        };
        let pid = super::check(pid)?;
        // SAFETY: the kernel has stored a new descriptor.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        Ok(Launched { pid, pidfd })
    }

    #[cfg(target_arch = "x86_64")]
    fn clone3(&mut self, shared: &mut Shared, flags: u64, into: Option<BorrowedFd<'_>>) -> io::Result<Launched> {
        let mut pidfd: c_int = -1;
        let arguments = libc::clone_args {
            flags: flags | CLONE_CLEAR_SIGHAND | if into.is_some() { CLONE_INTO_CGROUP } else { 0 },
            pidfd: (&raw mut pidfd) as u64,
            child_tid: 0,
            parent_tid: 0,
            exit_signal: libc::SIGCHLD as u64,
            stack: self.stack as u64,
            stack_size: STACK as u64,
            tls: 0,
            set_tid: 0,
            set_tid_size: 0,
            cgroup: into.map_or(0, |directory| directory.as_raw_fd() as u64),
        };
        let mut result = libc::SYS_clone3;
        // SAFETY: as for clone above. The child arrives with an empty, aligned stack and all other registers copied; it
        // calls `child(shared)`, which never returns. The kernel clobbers rcx and r11 only.
        unsafe {
            std::arch::asm!(
                "syscall",
                "test rax, rax",
                "jnz 2f",
                "xor ebp, ebp",
                "mov rdi, r9",
                "call r8",
                "ud2",
                "2:",
                inlateout("rax") result,
                in("rdi") &raw const arguments,
                in("rsi") mem::size_of::<libc::clone_args>(),
                in("r8") child as extern "C" fn(*mut c_void) -> c_int,
                in("r9") ptr::from_mut(shared),
                lateout("rcx") _,
                lateout("r11") _,
            );
        }
        if result < 0 {
            return Err(io::Error::from_raw_os_error(-result as i32));
        }
        // SAFETY: the kernel has stored a new descriptor.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        Ok(Launched { pid: result as i32, pidfd })
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn clone3(&mut self, _shared: &mut Shared, _flags: u64, _into: Option<BorrowedFd<'_>>) -> io::Result<Launched> {
        Err(io::Error::from_raw_os_error(libc::ENOSYS))
    }
}

/// Raw system calls: libc's set*id functions would signal the threads of a process that the child is not.
macro_rules! call {
    ($shared:ident, $stage:ident, $number:ident $(, $argument:expr)*) => {
        if libc::syscall(libc::$number $(, $argument)*) < 0 {
            fail($shared, Stage::$stage);
        }
    };
}

/// The child's life between clone and execve.
extern "C" fn child(shared: *mut c_void) -> c_int {
    // SAFETY: the parent sleeps, so this is the only user of the structure and all it points to, which is live. No
    // allocation, no lock and no unwinding happens here.
    unsafe {
        let shared = &mut *shared.cast::<Shared>();
        if shared.death_signal {
            call!(shared, Fork, SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            if libc::syscall(libc::SYS_getppid) != i64::from(shared.parent) {
                libc::_exit(127);
            }
        }
        call!(shared, Fork, SYS_setsid);
        let mut index = 0;
        while index < shared.reset_count {
            // All zeroes is SIG_DFL without flags.
            let default: super::KernelSigaction = [0; 8];
            libc::syscall(
                libc::SYS_rt_sigaction,
                *shared.reset.add(index),
                &raw const default,
                ptr::null_mut::<super::KernelSigaction>(),
                super::KERNEL_SIGSET,
            );
            index += 1;
        }
        if shared.join_procs >= 0 {
            call!(shared, Cgroup, SYS_write, shared.join_procs, c"0".as_ptr(), 1);
        }
        index = 0;
        while index < shared.also_count {
            call!(shared, Cgroup, SYS_write, *shared.also.add(index), c"0".as_ptr(), 1);
            index += 1;
        }
        index = 0;
        while index < shared.limit_count {
            let limit = &*shared.limits.add(index);
            let value = [limit.soft, limit.hard];
            call!(shared, Limits, SYS_prlimit64, 0, limit.resource, &raw const value, ptr::null_mut::<[u64; 2]>());
            index += 1;
        }
        if let Some(nice) = shared.nice {
            call!(shared, Limits, SYS_setpriority, libc::PRIO_PROCESS, 0, nice);
        }
        if shared.oom_score_adj_length > 0 {
            let file = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            if file < 0 {
                fail(shared, Stage::Limits);
            }
            call!(shared, Limits, SYS_write, file, shared.oom_score_adj.as_ptr(), shared.oom_score_adj_length);
            libc::close(file);
        }
        if let Some(umask) = shared.umask {
            libc::umask(umask as libc::mode_t);
        }
        if let Some(count) = shared.group_count {
            call!(shared, User, SYS_setgroups, count, shared.groups);
        }
        if let Some(gid) = shared.gid {
            call!(shared, User, SYS_setresgid, gid, gid, gid);
        }
        if let Some(uid) = shared.uid {
            call!(shared, User, SYS_setresuid, uid, uid, uid);
        }
        if shared.no_new_privileges {
            call!(shared, User, SYS_prctl, libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        }
        call!(shared, WorkingDir, SYS_chdir, shared.working_dir);
        if shared.shares_descriptors {
            call!(shared, Pipe, SYS_close_range, shared.slots[2] as u32 + 1, u32::MAX, CLOSE_RANGE_UNSHARE);
        }
        // In ascending order, and no slot is below 3, so no source is overwritten before it is used.
        index = 0;
        while index < 3 {
            call!(shared, Pipe, SYS_dup3, shared.slots[index], index as c_int, 0);
            index += 1;
        }
        if shared.death_signal {
            call!(shared, Fork, SYS_prctl, libc::PR_SET_PDEATHSIG, 0);
        }
        let nothing: u64 = 0;
        call!(shared, Fork, SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const nothing, ptr::null_mut::<u64>(), 8);
        let mut refused = None;
        index = 0;
        loop {
            let candidate = *shared.candidates.add(index);
            if candidate.is_null() {
                break;
            }
            shared.candidate = index;
            libc::syscall(libc::SYS_execve, candidate, shared.argv, shared.env);
            match *libc::__errno_location() {
                libc::ENOENT | libc::ENOTDIR => {}
                libc::EACCES => refused = refused.or(Some(index)),
                _ => fail(shared, Stage::Exec),
            }
            index += 1;
        }
        if let Some(index) = refused {
            shared.candidate = index;
            *libc::__errno_location() = libc::EACCES;
        }
        fail(shared, Stage::Exec)
    }
}

/// Tells the parent and ends the child.
///
/// # Safety
/// Only in the child.
unsafe fn fail(shared: &mut Shared, stage: Stage) -> ! {
    // SAFETY: errno is the one that the child shares with its sleeping parent.
    unsafe {
        shared.errno = *libc::__errno_location();
        shared.stage = stage as i32;
        libc::_exit(127)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd as _;

    #[test]
    fn without_clone3_processes_start_and_fail_all_the_same() {
        let mut launcher = Launcher::new(vec![libc::SIGPIPE]).unwrap();
        for (has_clone3, shares_descriptors) in [(true, true), (false, true), (false, false)] {
            launcher.has_clone3 &= has_clone3;
            launcher.shares_descriptors &= shares_descriptors;
            let (reader, writer) = io::pipe().unwrap();
            let mut program = Program {
                candidates: &[c"/no/such".into(), c"/bin/sh".into()],
                argv: &[c"sh".into(), c"-c".into(), c"echo $A; exit 3".into()],
                env: &[c"A=b".into()],
                working_dir: &c"/".into(),
                uid: None,
                gid: None,
                groups: None,
                umask: None,
                limits: &[],
                no_new_privileges: true,
                nice: None,
                oom_score_adj: None,
                stdout: writer.as_fd(),
                stderr: writer.as_fd(),
                join: Join::Stay,
                also: &[],
                dies_with_keeper_before_exec: false,
            };
            let launched = launcher.launch(&program).unwrap();
            let nowhere = [c"/no/such".into()];
            program.candidates = &nowhere;
            let error = launcher.launch(&program).unwrap_err();
            assert_eq!(error.stage, Stage::Exec);
            assert_eq!(error.error.raw_os_error(), Some(libc::ENOENT));
            drop(writer);
            assert_eq!(io::read_to_string(reader).unwrap(), "b\n");
            assert!(super::super::wait_readable(launched.pidfd.as_fd(), std::time::Duration::from_secs(30)));
            super::super::collect(launched.pid);
        }
    }
}
