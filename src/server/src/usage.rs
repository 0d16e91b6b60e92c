//! CPU time and memory of instances, read from the kernel when somebody asks.

use std::collections::{HashMap, HashSet};
use std::fs;

use ostler_core::Kind;
use ostler_core::kinds::Instance;
use ostler_store::Entry;

/// What the processes of one instance use together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) pid: i32,
    /// Nanoseconds.
    pub(crate) cpu_time: u64,
    /// Bytes.
    pub(crate) rss: u64,
    pub(crate) processes: u32,
    pub(crate) threads: u32,
}

/// What the machine has.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Node {
    pub(crate) cpus: u32,
    pub(crate) memory_total: u64,
    pub(crate) memory_available: u64,
    pub(crate) load1: f64,
}

/// One process as /proc/PID/stat tells it.
#[derive(Clone, Debug)]
struct Stat {
    pid: i32,
    parent: i32,
    session: i32,
    ticks: u64,
    threads: u32,
    pages: u64,
}

/// Reads the usage of the instances in `entries` that run. Blocks: a look at every process of the machine.
pub(crate) fn read(entries: &[Entry]) -> Vec<Usage> {
    let stats = processes();
    let mut children: HashMap<i32, Vec<usize>> = HashMap::new();
    let mut sessions: HashMap<i32, Vec<usize>> = HashMap::new();
    for (index, stat) in stats.iter().enumerate() {
        children.entry(stat.parent).or_default().push(index);
        sessions.entry(stat.session).or_default().push(index);
    }
    let by_pid: HashMap<i32, usize> = stats.iter().enumerate().map(|(index, stat)| (stat.pid, index)).collect();
    let tick = 1_000_000_000 / rustix::param::clock_ticks_per_second().max(1);
    let page = rustix::param::page_size() as u64;
    let mut all = Vec::with_capacity(entries.len());
    for entry in entries {
        let Ok(instance) = serde_json::from_slice::<Instance>(&entry.value) else { continue };
        let Some(pid) = instance.status.pid else { continue };
        let mut usage = Usage {
            namespace: entry.key.namespace().to_owned(),
            name: entry.key.name().to_owned(),
            pid,
            ..Usage::default()
        };
        let mut members: HashSet<usize> = HashSet::new();
        let mut todo: Vec<usize> = by_pid.get(&pid).copied().into_iter().collect();
        todo.extend(sessions.get(&pid).into_iter().flatten());
        todo.extend(cgroup_members(pid).iter().filter_map(|pid| by_pid.get(pid)));
        while let Some(index) = todo.pop() {
            if members.insert(index) {
                todo.extend(children.get(&stats[index].pid).into_iter().flatten());
            }
        }
        for index in members {
            let stat = &stats[index];
            usage.cpu_time += stat.ticks * tick;
            usage.rss += stat.pages * page;
            usage.threads += stat.threads;
            usage.processes += 1;
        }
        all.push(usage);
    }
    all
}

/// The processes in the cgroup of a workload, so that those that left its session are counted too. Only a cgroup that
/// is ours (its path has our prefix) counts, or everything on the machine could be in it.
fn cgroup_members(pid: i32) -> Vec<i32> {
    let Ok(groups) = fs::read_to_string(format!("/proc/{pid}/cgroup")) else { return Vec::new() };
    let Some(path) = groups.lines().find_map(|line| line.strip_prefix("0::")).filter(|path| path.contains("/ostler-"))
    else {
        return Vec::new();
    };
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .iter()
        .find_map(|mount| fs::read_to_string(format!("{mount}{path}/cgroup.procs")).ok())
        .map(|text| text.lines().filter_map(|line| line.parse().ok()).collect())
        .unwrap_or_default()
}

fn processes() -> Vec<Stat> {
    let Ok(directory) = fs::read_dir("/proc") else { return Vec::new() };
    directory
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid: i32| parse(pid, &fs::read_to_string(format!("/proc/{pid}/stat")).ok()?))
        .collect()
}

/// Reads one line of /proc/PID/stat. The name of the program may contain anything, so fields count from its last `)`.
fn parse(pid: i32, line: &str) -> Option<Stat> {
    let fields: Vec<&str> = line[line.rfind(')')? + 1..].split_ascii_whitespace().collect();
    // The first of these is field 3 of proc_pid_stat(5).
    let field = |number: usize| fields.get(number - 3).and_then(|text| text.parse::<u64>().ok());
    Some(Stat {
        pid,
        parent: i32::try_from(field(4)?).ok()?,
        session: i32::try_from(field(6)?).ok()?,
        ticks: field(14)? + field(15)?,
        threads: u32::try_from(field(20)?).ok()?,
        pages: field(24)?,
    })
}

/// What the machine has, and how busy it is.
pub(crate) fn node() -> Node {
    let cpus = std::thread::available_parallelism().map_or(1, |count| count.get() as u32);
    let (memory_total, memory_available) = sysinfo::System::new()
        .map(|mut system| {
            system.refresh_memory();
            (system.total_memory(), system.available_memory())
        })
        .unwrap_or_default();
    let load1 = sysinfo::System::load_average().map(|load| load.one).unwrap_or_default();
    Node { cpus, memory_total, memory_available, load1 }
}

/// The selection of usage is one of instances.
pub(crate) const KIND: Kind = Kind::Instance;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_spaces_does_not_shift_the_fields() {
        let line = "7 (a b) c) S 3 7 7 0 -1 4194560 1 0 0 0 11 22 0 0 20 0 4 0 99 1000 256 1";
        let stat = parse(7, line).unwrap();
        assert_eq!((stat.parent, stat.session, stat.ticks, stat.threads, stat.pages), (3, 7, 33, 4, 256));
    }

    #[test]
    fn this_process_is_among_all() {
        let me = i32::try_from(std::process::id()).unwrap();
        let stats = processes();
        let stat = stats.iter().find(|stat| stat.pid == me).expect("we run");
        assert!(stat.pages > 0 && stat.threads >= 1);
    }
}
