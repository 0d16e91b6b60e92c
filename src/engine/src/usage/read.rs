//! Reading what a process tree uses: the kernel's files, held open where there are descriptors to spare.
//!
//! An open /proc/PID/stat speaks of one process for ever: when that is gone, reading fails, whoever has the number now.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;

use ostler_core::usage::{Io, Network};
use rustix::fs::{Mode, OFlags, open, stat};
use rustix::io::pread;

/// One process as /proc/PID/stat tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) parent: i32,
    pub(super) session: i32,
    /// Clock ticks, of itself and of the children it has collected.
    pub(super) ticks: u64,
    pub(super) threads: u32,
    pub(super) start_time: u64,
    pub(super) pages: u64,
    pub(super) is_dead: bool,
}

/// Reads one line of /proc/PID/stat. The name of the program may contain anything, so fields count from its last `)`.
pub(super) fn parse_stat(line: &[u8]) -> Option<Stat> {
    let rest = &line[line.iter().rposition(|byte| *byte == b')')? + 1..];
    let mut stat = Stat { parent: 0, session: 0, ticks: 0, threads: 0, start_time: 0, pages: 0, is_dead: false };
    // The first field behind the name is number 3 of proc_pid_stat(5).
    let mut number = 2;
    for field in rest.split(|byte| *byte == b' ').filter(|field| !field.is_empty()) {
        number += 1;
        match number {
            3 => stat.is_dead = matches!(field.first(), Some(b'Z' | b'X' | b'x')),
            4 => stat.parent = decimal(field) as i32,
            6 => stat.session = decimal(field) as i32,
            14..=17 => stat.ticks += decimal(field),
            20 => stat.threads = decimal(field) as u32,
            22 => stat.start_time = decimal(field),
            24 => {
                stat.pages = decimal(field);
                return Some(stat);
            }
            _ => {}
        }
    }
    None
}

/// A number at the beginning; what is none counts as 0, as does what is negative.
fn decimal(text: &[u8]) -> u64 {
    text.iter()
        .take_while(|byte| byte.is_ascii_digit())
        .fold(0, |number, byte| number.wrapping_mul(10).wrapping_add(u64::from(byte - b'0')))
}

/// Descriptors that custody, sockets, logs and probes need beside what is held for each instance.
const RESERVE: usize = 1024;
/// Descriptors that are held for each instance elsewhere, and one for a client that follows its log.
const FOR_EACH: usize = 4;

/// How many descriptors all trees may hold together.
#[derive(Debug)]
pub(super) struct Budget {
    held: Cell<usize>,
    allowed: Cell<usize>,
    most: usize,
    limit: usize,
}

impl Budget {
    /// At most `most`, and what is left of the `limit` of this process.
    pub(super) fn new(most: usize, limit: usize) -> Self {
        Self { held: Cell::new(0), allowed: Cell::new(most), most, limit }
    }

    /// Leaves what so many instances need; says whether more is held than is allowed now.
    pub(super) fn fit(&self, instances: usize) -> bool {
        let left = self.limit.saturating_sub(FOR_EACH.saturating_mul(instances) + RESERVE);
        self.allowed.set(self.most.min(left));
        self.held.get() > self.allowed.get()
    }

    /// Whether so little is held that it will not be too much again soon.
    pub(super) fn is_roomy(&self) -> bool {
        self.held.get() <= self.allowed.get() / 4 * 3
    }

    fn take(&self) -> bool {
        let is_left = self.held.get() < self.allowed.get();
        self.held.set(self.held.get() + usize::from(is_left));
        is_left
    }

    fn give(&self) {
        self.held.set(self.held.get() - 1);
    }
}

/// A file of the kernel that is read again and again.
#[derive(Debug, Default)]
pub(super) struct Held(Option<OwnedFd>);

impl Held {
    /// Reads it from its beginning into `buffer`; keeps it open if the budget allows. An error when it is gone.
    pub(super) fn read<'a>(&mut self, path: &str, buffer: &'a mut Vec<u8>, budget: &Budget) -> io::Result<&'a [u8]> {
        if let Some(file) = &self.0 {
            return read_all(file, buffer);
        }
        let file = open_file(path)?;
        if budget.take() {
            return read_all(self.0.insert(file), buffer);
        }
        read_all(&file, buffer)
    }

    pub(super) fn is_open(&self) -> bool {
        self.0.is_some()
    }

    pub(super) fn close(&mut self, budget: &Budget) {
        if self.0.take().is_some() {
            budget.give();
        }
    }
}

pub(super) fn open_file(path: &str) -> io::Result<OwnedFd> {
    Ok(open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Everything in a file, by as few calls as possible: what is shorter than the buffer has been read by the first.
pub(super) fn read_all<'a>(file: &OwnedFd, buffer: &'a mut Vec<u8>) -> io::Result<&'a [u8]> {
    if buffer.len() < 4096 {
        buffer.resize(4096, 0);
    }
    let mut length = 0;
    loop {
        let count = pread(file, &mut buffer[length..], length as u64)?;
        length += count;
        // The kernel hands out such files a page or less at a time; only a page that is nearly full has a successor.
        if count == 0 || length < 2048 {
            return Ok(&buffer[..length]);
        }
        if length == buffer.len() {
            if length >= 1 << 20 {
                return Ok(&buffer[..length]);
            }
            buffer.resize(length * 2, 0);
        }
    }
}

/// The pids in a `cgroup.procs`, of processes that our pid namespace sees.
pub(super) fn parse_pids(text: &[u8], pids: &mut Vec<i32>) {
    pids.extend(text.split(|byte| *byte == b'\n').map(|line| decimal(line) as i32).filter(|pid| *pid > 0));
}

/// `usage_usec` of a `cpu.stat` of cgroup v2, in nanoseconds.
pub(super) fn parse_cpu_stat(text: &[u8]) -> Option<u64> {
    Some(decimal(text.strip_prefix(b"usage_usec ")?) * 1000)
}

/// The number of descriptors a process has open.
pub(super) fn open_files(pid: i32) -> Option<u32> {
    let path = format!("/proc/{pid}/fd");
    // Since Linux 6.2 the size of the directory is the number of its entries.
    match stat(path.as_str()).ok()?.st_size {
        0 => Some(std::fs::read_dir(path).ok()?.count() as u32),
        count => u32::try_from(count).ok(),
    }
}

/// What a process, and the children it has collected, moved from and to storage.
pub(super) fn io_of(pid: i32, buffer: &mut Vec<u8>) -> Option<Io> {
    let file = open_file(&format!("/proc/{pid}/io")).ok()?;
    let text = read_all(&file, buffer).ok()?;
    let mut found = Io::default();
    for line in text.split(|byte| *byte == b'\n') {
        if let Some(number) = line.strip_prefix(b"read_bytes: ") {
            found.read = decimal(number);
        } else if let Some(number) = line.strip_prefix(b"write_bytes: ") {
            found.written = decimal(number);
        }
    }
    Some(found)
}

/// The memory of a process with shared pages divided among those who share them, bytes. Takes the kernel some time.
pub(super) fn pss(pid: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    Some(decimal(line.trim_start().as_bytes()) << 10)
}

/// The traffic of a process' network namespace, if that is another one than ours.
pub(super) fn network(pid: i32, own: u64) -> Network {
    let Ok(namespace) = stat(format!("/proc/{pid}/ns/net").as_str()) else { return Network::Unknown };
    if namespace.st_ino == own {
        return Network::Unsupported;
    }
    std::fs::read(format!("/proc/{pid}/net/dev")).map_or(Network::Unknown, |text| parse_net_dev(&text))
}

/// The inode of our own network namespace.
pub(super) fn own_network() -> u64 {
    stat("/proc/self/ns/net").map_or(0, |namespace| namespace.st_ino)
}

fn parse_net_dev(text: &[u8]) -> Network {
    let (mut received, mut sent) = (0, 0);
    for line in String::from_utf8_lossy(text).lines().skip(2) {
        let Some((interface, counts)) = line.split_once(':') else { continue };
        if interface.trim() == "lo" {
            continue;
        }
        let mut counts = counts.split_ascii_whitespace().map(|count| count.parse::<u64>().unwrap_or(0));
        received += counts.next().unwrap_or(0);
        sent += counts.nth(7).unwrap_or(0);
    }
    Network::Counted { received, sent }
}

/// Every process of the machine that lives, for trees that no cgroup holds together.
pub(super) fn everyone(buffer: &mut Vec<u8>) -> Vec<(i32, Stat)> {
    let Ok(directory) = std::fs::read_dir("/proc") else { return Vec::new() };
    directory
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid: i32| {
            let file = open_file(&format!("/proc/{pid}/stat")).ok()?;
            Some((pid, parse_stat(read_all(&file, buffer).ok()?)?))
        })
        .filter(|(_, stat)| !stat.is_dead)
        .collect()
}

/// The processes that descend from `leader` or are in its session.
pub(super) fn family(all: &[(i32, Stat)], leader: i32, pids: &mut Vec<i32>) {
    pids.extend(all.iter().filter(|(pid, stat)| *pid == leader || stat.session == leader).map(|(pid, _)| *pid));
    let mut index = 0;
    while let Some(parent) = pids.get(index).copied() {
        for (pid, stat) in all {
            if stat.parent == parent && !pids.contains(pid) {
                pids.push(*pid);
            }
        }
        index += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_spaces_does_not_shift_the_fields() {
        let line = b"7 (a b) c) S 3 7 8 0 -1 4194560 1 0 0 0 11 22 5 6 20 0 4 0 99 1000 256 1";
        let stat = parse_stat(line).unwrap();
        assert_eq!((stat.parent, stat.session, stat.ticks, stat.threads), (3, 8, 44, 4));
        assert_eq!((stat.start_time, stat.pages, stat.is_dead), (99, 256, false));
        for line in [&b""[..], b"1 (x", b"1 (x) S 1 2", b")"] {
            assert_eq!(parse_stat(line), None);
        }
    }

    #[test]
    fn the_kernels_tables_are_read() {
        assert_eq!(parse_cpu_stat(b"usage_usec 42\nuser_usec 1\n"), Some(42_000));
        assert_eq!(parse_cpu_stat(b"nr_periods 0\n"), None);
        let mut pids = Vec::new();
        parse_pids(b"12\n0\n7\n", &mut pids);
        assert_eq!(pids, [12, 7]);
        let net = b"Inter-|   Receive\n face |bytes\n    lo: 9 1 0 0 0 0 0 0 9 1 0 0 0 0 0 0\n  eth0: 100 1 0 0 0 0 0 0 200 2 0 0 0 0 0 0\n";
        assert_eq!(parse_net_dev(net), Network::Counted { received: 100, sent: 200 });
    }

    #[test]
    fn this_process_is_known_with_its_files() {
        let me = std::process::id().cast_signed();
        let mut buffer = Vec::new();
        let all = everyone(&mut buffer);
        assert!(all.iter().any(|(pid, stat)| *pid == me && stat.pages > 0 && stat.threads > 0));
        let before = open_files(me).unwrap();
        let more: Vec<_> = (0..50).map(|_| open_file("/dev/null").unwrap()).collect();
        assert!(open_files(me).unwrap() >= before.min(20) + 30);
        drop(more);
        assert!(pss(me).unwrap() > 0);
        assert!(io_of(me, &mut buffer).is_some());
        assert_eq!(network(me, own_network()), Network::Unsupported);
    }

    #[test]
    fn families_are_sessions_and_descendants() {
        let stat =
            |parent, session| Stat { parent, session, ticks: 0, threads: 1, start_time: 0, pages: 0, is_dead: false };
        let all =
            [(1, stat(0, 1)), (5, stat(1, 5)), (6, stat(5, 5)), (7, stat(6, 7)), (8, stat(1, 5)), (9, stat(1, 9))];
        let mut pids = Vec::new();
        family(&all, 5, &mut pids);
        pids.sort_unstable();
        assert_eq!(pids, [5, 6, 7, 8]);
    }

    #[test]
    fn a_file_is_kept_open_only_within_the_budget() {
        let (budget, mut buffer) = (Budget::new(1, usize::MAX), Vec::new());
        let (mut first, mut second) = (Held::default(), Held::default());
        assert!(first.read("/proc/self/stat", &mut buffer, &budget).is_ok());
        assert!(second.read("/proc/self/stat", &mut buffer, &budget).is_ok());
        assert!(first.0.is_some() && second.0.is_none());
        first.close(&budget);
        assert!(second.read("/proc/self/stat", &mut buffer, &budget).is_ok());
        assert!(second.0.is_some());
    }

    #[test]
    fn what_is_held_makes_room_for_instances() {
        let (budget, mut buffer) = (Budget::new(100, RESERVE + 100), Vec::new());
        let mut files: Vec<Held> = (0..60).map(|_| Held::default()).collect();
        assert!(!budget.fit(10));
        for file in &mut files {
            file.read("/proc/self/stat", &mut buffer, &budget).unwrap();
        }
        assert!(files.iter().all(Held::is_open) && !budget.fit(10) && budget.fit(11));
        for file in &mut files {
            if budget.is_roomy() {
                break;
            }
            file.close(&budget);
        }
        assert_eq!((files.iter().filter(|file| file.is_open()).count(), budget.fit(11)), (42, false));
        assert!(budget.fit(1000) && !budget.is_roomy());
    }
}
