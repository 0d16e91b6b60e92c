//! What the kernel tells of processes, sockets and PID files.

use std::collections::HashSet;
use std::fs;

use ostler_core::kinds::Discovery;
use ostler_core::plan::external::{Hint, Seen};
use ostler_store::Store;
use serde::Deserialize;

/// Longest part of a command line that is looked at, bytes.
const COMMAND: usize = 16 << 10;

/// Every process of the machine that lives.
pub(super) fn processes() -> Vec<Seen> {
    pids().filter_map(process).collect()
}

fn pids() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn process(pid: i32) -> Option<Seen> {
    let (name, parent, start_time) = stat(pid)?;
    let mut words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    words.truncate(COMMAND);
    let command = String::from_utf8_lossy(&words).trim_end_matches('\0').replace('\0', " ");
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let cgroups = cgroups.lines().filter_map(|line| Some(line.splitn(3, ':').nth(2)?.to_owned())).collect();
    Some(Seen { pid, parent, start_time, name, command, cgroups })
}

/// Name, parent and start time; nothing when it is gone, or dead and not collected.
fn stat(pid: i32) -> Option<(String, i32, u64)> {
    parse_stat(&String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/stat")).ok()?))
}

/// The name of the program may contain anything, so it reaches to the last parenthesis.
fn parse_stat(line: &str) -> Option<(String, i32, u64)> {
    let (head, rest) = line.rsplit_once(')')?;
    let name = head.split_once('(')?.1.to_owned();
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    // Number 22 of proc_pid_stat(5); the parent was number 4.
    let start_time = fields.nth(17)?.parse().ok()?;
    (!matches!(state, "Z" | "X" | "x")).then_some((name, parent, start_time))
}

/// Clock ticks from boot to the start of a process that lives.
pub(super) fn start_time(pid: i32) -> Option<u64> {
    Some(stat(pid)?.2)
}

/// What an External is never: this daemon's processes, and the first process of each of its instances.
pub(super) fn own(store: &dyn Store) -> HashSet<i32> {
    #[derive(Deserialize)]
    struct Head {
        #[serde(default)]
        status: Status,
    }
    #[derive(Default, Deserialize)]
    struct Status {
        #[serde(default)]
        identity: Option<Leader>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Leader {
        pid: i32,
        start_time: u64,
    }
    let mut own = HashSet::new();
    own.extend(i32::try_from(std::process::id()));
    // The keeper, from which everything that it runs descends. After it is gone, something else is our parent.
    let keeper = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    if keeper > 1 && fs::read_link(format!("/proc/{keeper}/exe")).ok() == fs::read_link("/proc/self/exe").ok() {
        own.insert(keeper);
    }
    for entry in store.list("instances/").entries {
        let leader = serde_json::from_slice::<Head>(&entry.value).ok().and_then(|head| head.status.identity);
        // What was stored may be of a process that is gone, whose number somebody else has.
        own.extend(leader.filter(|leader| start_time(leader.pid) == Some(leader.start_time)).map(|leader| leader.pid));
    }
    own
}

/// What has to be read besides the processes.
pub(super) fn hint(discovery: &Discovery) -> Hint {
    if let Some(path) = &discovery.pid_file {
        return pid_file(path);
    }
    match discovery.port {
        Some(port) => listeners(port.get()),
        None => Hint::None,
    }
}

fn pid_file(path: &str) -> Hint {
    use std::io::Read as _;
    let mut text = String::new();
    let read = fs::File::open(path).and_then(|file| {
        // Opening a pipe or a device would wait; nobody else than a regular file holds a number.
        if !file.metadata()?.is_file() {
            return Err(std::io::Error::other("it is no regular file"));
        }
        file.take(64).read_to_string(&mut text)
    });
    match (read, text.split_ascii_whitespace().next().map(str::parse)) {
        (Err(why), _) => Hint::Unknown(format!("{path}: {why}")),
        (Ok(_), Some(Ok(pid))) => Hint::Pids(vec![pid]),
        (Ok(_), Some(Err(_)) | None) => Hint::Unknown(format!("{path} does not begin with a process id")),
    }
}

/// The processes that hold a socket that listens on a port.
fn listeners(port: u16) -> Hint {
    let mut inodes = HashSet::new();
    let mut unread = None;
    for table in ["/proc/self/net/tcp", "/proc/self/net/tcp6"] {
        match fs::read_to_string(table) {
            Ok(text) => inodes.extend(listening(&text, port)),
            Err(why) if why.kind() == std::io::ErrorKind::NotFound => {}
            Err(why) => unread = Some(format!("{table}: {why}")),
        }
    }
    if let Some(why) = unread.filter(|_| inodes.is_empty()) {
        return Hint::Unknown(why);
    }
    if inodes.is_empty() {
        return Hint::Unknown(format!("nobody listens on port {port}"));
    }
    let links: HashSet<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    let holds = |pid: &i32| {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        files
            .filter_map(|file| fs::read_link(file.path()).ok())
            .any(|link| link.to_str().is_some_and(|link| links.contains(link)))
    };
    let pids: Vec<i32> = pids().filter(holds).collect();
    if pids.is_empty() {
        return Hint::Unknown(format!("port {port} is served by a process that this daemon may not look into"));
    }
    Hint::Pids(pids)
}

/// The inodes of the listening sockets of a port in a table of /proc/net.
fn listening(table: &str, port: u16) -> Vec<u64> {
    let inode = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let local = fields.nth(1)?;
        let state = fields.nth(1)?;
        let found = u16::from_str_radix(local.rsplit(':').next()?, 16).ok()?;
        // 0A is LISTEN; the inode is six fields further.
        (found == port && state == "0A").then(|| fields.nth(5)?.parse().ok()).flatten()
    };
    table.lines().skip(1).filter_map(inode).collect()
}

/// The cgroup of a process when everything in it descends from that process, so that it can be counted as a whole;
/// else empty.
pub(super) fn sole_cgroup(processes: &[Seen], pid: i32) -> String {
    let Some(process) = processes.iter().find(|process| process.pid == pid) else { return String::new() };
    let [cgroup] = process.cgroups.as_slice() else { return String::new() };
    let path = format!("/sys/fs/cgroup{cgroup}");
    if cgroup == "/" || !fs::exists(format!("{path}/cgroup.procs")).unwrap_or(false) {
        return String::new();
    }
    let parent = |pid: i32| processes.iter().find(|other| other.pid == pid).map(|other| other.parent);
    let descends = |other: &Seen| {
        std::iter::successors(Some(other.pid), |pid| parent(*pid)).take(256).any(|ancestor| ancestor == pid)
    };
    let within = |other: &&Seen| {
        other
            .cgroups
            .iter()
            .any(|name| name.strip_prefix(cgroup.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
    };
    if processes.iter().filter(within).all(descends) { path } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_whatever_its_name() {
        let line = "42 (a) b (c)) S 7 42 42 0 -1 4194304 1 0 0 0 5 6 0 0 20 0 3 0 987654 1 2 3";
        assert_eq!(parse_stat(line), Some(("a) b (c)".to_owned(), 7, 987_654)));
        assert_eq!(parse_stat(&line.replace(" S ", " Z ")), None);
        assert_eq!(parse_stat("42 (a"), None);
    }

    #[test]
    fn this_process_is_among_those_of_the_machine() {
        let own = std::process::id() as i32;
        let all = processes();
        let seen = all.iter().find(|process| process.pid == own).unwrap();
        assert_eq!(Some(seen.start_time), start_time(own));
        assert!(!seen.command.is_empty() && !seen.name.is_empty());
    }

    #[test]
    fn who_listens_is_found_by_its_socket() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let Hint::Pids(pids) = listeners(port) else { panic!("somebody listens") };
        assert!(pids.contains(&(std::process::id() as i32)));
        drop(listener);
        // A child that another test has just forked has it until its exec.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while !matches!(listeners(port), Hint::Unknown(_)) {
            assert!(std::time::Instant::now() < deadline, "it is found although nobody listens");
        }
    }

    #[test]
    fn a_pid_file_holds_a_number_or_says_what_it_holds() {
        assert!(matches!(pid_file("/nonexistent/x.pid"), Hint::Unknown(why) if why.contains("x.pid")));
        assert!(matches!(pid_file("/dev/null"), Hint::Unknown(why) if why.contains("regular")));
        assert!(matches!(pid_file("/proc/version"), Hint::Unknown(why) if why.contains("process id")));
        assert_eq!(pid_file("/proc/self/stat"), Hint::Pids(vec![std::process::id() as i32]));
    }
}
