//! What /proc says of processes.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};

/// The fields of /proc/PID/stat that tell processes apart and relate them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) state: u8,
    pub(crate) parent: i32,
    pub(crate) session: i32,
    /// Clock ticks since boot.
    pub(crate) start_time: u64,
}

impl Stat {
    /// Whether the process has ended.
    pub(crate) fn is_dead(self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x')
    }
}

/// Looks at one process; `None` when there is none.
pub(crate) fn stat(pid: i32) -> Option<Stat> {
    let mut buffer = [0_u8; 1024];
    let path = format!("/proc/{pid}/stat");
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let length = rustix::io::retry_on_intr(|| rustix::io::read(&file, &mut buffer)).ok()?;
    parse_stat(&buffer[..length])
}

/// The name of the program comes second, in parentheses, and may contain anything, parentheses and spaces included:
/// the last `)` ends it.
fn parse_stat(line: &[u8]) -> Option<Stat> {
    let end = line.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(&line[end + 1..]).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    let parent = fields.next()?.parse().ok()?;
    let _group = fields.next()?;
    let session = fields.next()?.parse().ok()?;
    // The fields from "state" on are numbered from 3; the start time is number 22.
    let start_time = fields.nth(22 - 7)?.parse().ok()?;
    Some(Stat { state, parent, session, start_time })
}

/// Whether the environment that a process was started with has this entry; `None` when it cannot be read,
/// or when there is none to read.
pub(crate) fn environment_has(pid: i32, entry: &[u8]) -> Option<bool> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    if environment.is_empty() {
        return None;
    }
    Some(environment.split(|byte| *byte == 0).any(|candidate| candidate == entry))
}

/// The pids of all processes.
pub(crate) fn processes() -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The pids of this process's children, ended ones that were not collected included. `None` when the kernel does not
/// tell.
pub(crate) fn own_children() -> Option<Vec<i32>> {
    let text = fs::read_to_string(format!("/proc/self/task/{}/children", std::process::id())).ok()?;
    text.split_ascii_whitespace().map(|pid| pid.parse().ok()).collect()
}

/// A new reading end of the pipe with this inode that process `pid` has open, wherever among its descriptors.
pub(crate) fn reopen_pipe(pid: i32, inode: u64) -> Option<OwnedFd> {
    let wanted = format!("pipe:[{inode}]");
    let directory = PathBuf::from(format!("/proc/{pid}/fd"));
    let has =
        |number: &str| fs::read_link(directory.join(number)).is_ok_and(|link| link.as_os_str() == wanted.as_str());
    let number = ["1", "2"].into_iter().find(|number| has(number)).map(str::to_owned).or_else(|| {
        fs::read_dir(&directory)
            .ok()?
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .find(|number| has(number))
    })?;
    let pipe =
        rustix::fs::open(directory.join(number), OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
            .ok()?;
    // The process may have replaced the descriptor in between.
    (crate::sys::inode(&pipe) == inode).then_some(pipe)
}

/// The inode of the pipe behind a descriptor number of another process, if it is a pipe.
pub(crate) fn pipe_inode(pid: i32, number: i32) -> Option<u64> {
    let link = fs::read_link(format!("/proc/{pid}/fd/{number}")).ok()?;
    link.to_str()?.strip_prefix("pipe:[")?.strip_suffix(']')?.parse().ok()
}

/// A descriptor for the same pipe that is open for reading and writing, so that its owner never gets SIGPIPE.
pub(crate) fn open_both_ways(pipe: std::os::fd::RawFd) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(format!("/proc/self/fd/{pipe}"), OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_spaces_does_not_shift_the_fields() {
        let line = b"42 (a) R 1 (b c) S 7 42 43 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2 3\n";
        let stat = parse_stat(line).unwrap();
        assert_eq!(stat.state, b'S');
        assert_eq!(stat.parent, 7);
        assert_eq!(stat.session, 43);
        assert_eq!(stat.start_time, 987_654);
    }

    #[test]
    fn this_process_is_found_and_a_missing_one_is_not() {
        let own = stat(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(!own.is_dead());
        assert!(own.start_time > 0);
        assert_eq!(stat(i32::MAX), None);
    }

    #[test]
    fn cut_lines_are_no_process() {
        for line in [&b""[..], b"1 (x", b"1 (x) S 1 2", b")"] {
            assert_eq!(parse_stat(line), None);
        }
    }
}
