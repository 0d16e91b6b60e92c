//! Limits of whole trees, by the controllers of cgroup v2 and v1.
//!
//! In v2 a controller works on the attempt's own group, once it is enabled on the way down to it. In v1 each controller
//! is a hierarchy of its own, in which the attempt gets another group of the same name; so too in the hybrid layout,
//! where v2 holds the tree and v1 the controllers. Where a controller works is found out when the first limit needs it.

use std::fs;
use std::io;
use std::path::Path;
use std::rc::Rc;

use crate::CgroupPreference;
use crate::cgroup::{Root, Version, daemon_group, v1_group};
use crate::wire::{Limit, Limits};

/// A controller of cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Controller {
    Memory,
    Cpu,
    Pids,
    Io,
}

impl Controller {
    pub(crate) const ALL: [Self; 4] = [Self::Memory, Self::Cpu, Self::Pids, Self::Io];

    /// Its name in v2 and in v1.
    const fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Memory => ("memory", "memory"),
            Self::Cpu => ("cpu", "cpu"),
            Self::Pids => ("pids", "pids"),
            Self::Io => ("io", "blkio"),
        }
    }

    /// The controller that enforces a limit; the others are the kernel's for each process.
    pub(crate) fn of(limit: Limit) -> Option<Self> {
        match limit {
            Limit::Memory => Some(Self::Memory),
            Limit::Cpu => Some(Self::Cpu),
            Limit::Processes => Some(Self::Pids),
            Limit::IoWeight => Some(Self::Io),
            Limit::OpenFiles | Limit::Nice | Limit::Unspecified => None,
        }
    }
}

/// Where a controller has its groups.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// In the group that holds the tree.
    Tree(Rc<Root>),
    /// In a group of its own beside that.
    Beside(Rc<Root>),
}

impl Place {
    pub(crate) fn root(&self) -> &Rc<Root> {
        match self {
            Self::Tree(root) | Self::Beside(root) => root,
        }
    }

    /// As it is published.
    pub(crate) fn name(&self) -> &'static str {
        match self.root().version {
            Version::V2 => "cgroup v2",
            Version::V1 { .. } => "cgroup v1",
        }
    }
}

/// What is known of the controllers of this machine.
#[derive(Debug)]
pub(crate) struct Controllers {
    preference: CgroupPreference,
    tree: Option<Rc<Root>>,
    /// Name of our directory in each hierarchy.
    name: String,
    known: [Option<Result<Place, String>>; 4],
}

impl Controllers {
    pub(crate) fn new(preference: CgroupPreference, tree: Option<Rc<Root>>, name: String) -> Self {
        Self { preference, tree, name, known: [const { None }; 4] }
    }

    /// Where it has its groups, or why it cannot be used.
    pub(crate) fn place(&mut self, controller: Controller) -> Result<Place, String> {
        if let Some(known) = &self.known[controller as usize] {
            return known.clone();
        }
        let found = self.find(controller);
        self.known[controller as usize].insert(found).clone()
    }

    fn find(&self, controller: Controller) -> Result<Place, String> {
        let (v2, v1) = controller.names();
        let (tries_v2, tries_v1) = match self.preference {
            CgroupPreference::Auto => (true, true),
            CgroupPreference::V2 => (true, false),
            CgroupPreference::V1 => (false, true),
            CgroupPreference::None => return Err("the daemon runs with --cgroups none".to_owned()),
        };
        let mut refusals = Vec::new();
        if let Some(root) = &self.tree {
            match root.version {
                Version::V2 if tries_v2 => match enable(root, v2) {
                    Ok(()) => return Ok(Place::Tree(root.clone())),
                    Err(why) => refusals.push(why),
                },
                Version::V1 { .. } if fs::exists(root.path.join(probe(controller))).is_ok_and(|exists| exists) => {
                    return Ok(Place::Tree(root.clone()));
                }
                Version::V2 | Version::V1 { .. } => {}
            }
        }
        if tries_v1 {
            match self.beside(v1) {
                Ok(root) => return Ok(Place::Beside(Rc::new(root))),
                Err(why) => refusals.push(why),
            }
        }
        if refusals.is_empty() {
            refusals.push("there is no cgroup to use".to_owned());
        }
        Err(refusals.join("; "))
    }

    fn beside(&self, name: &str) -> Result<Root, String> {
        let parent = v1_group(name).ok_or_else(|| format!("no cgroup v1 hierarchy has the controller {name}"))?;
        let path = parent.join(&self.name);
        Root::create(Version::V1 { freezer: false }, &path).map_err(|why| format!("{}: {why}", path.display()))
    }

    /// The directories of v1 controllers that an earlier keeper may have left groups in.
    pub(crate) fn left_behind(&self) -> Vec<Rc<Root>> {
        if self.preference == CgroupPreference::None {
            return Vec::new();
        }
        let tree = self.tree.as_ref().map(|root| &root.path);
        Controller::ALL
            .into_iter()
            .filter_map(|controller| Some(v1_group(controller.names().1)?.join(&self.name)))
            .filter(|path| Some(path) != tree)
            .filter_map(|path| Root::open(Version::V1 { freezer: false }, &path).ok())
            .map(Rc::new)
            .collect()
    }

    /// The directories besides that of the trees.
    pub(crate) fn beside_roots(&self) -> impl Iterator<Item = &Rc<Root>> {
        self.known.iter().flatten().flatten().filter_map(|place| match place {
            Place::Tree(_) => None,
            Place::Beside(root) => Some(root),
        })
    }
}

/// A file that a v1 hierarchy has only with the controller.
const fn probe(controller: Controller) -> &'static str {
    match controller {
        Controller::Memory => "memory.limit_in_bytes",
        Controller::Cpu => "cpu.cfs_quota_us",
        Controller::Pids => "pids.max",
        Controller::Io => "blkio.bfq.weight",
    }
}

/// Makes a controller work in the groups below `root`.
fn enable(root: &Root, name: &str) -> Result<(), String> {
    let lists = |path: &Path| {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.split_ascii_whitespace().any(|word| word == name)
    };
    let on = format!("+{name}");
    let parent = root.path.parent().unwrap_or(&root.path);
    let subtree = root.path.join("cgroup.subtree_control");
    if lists(&subtree) {
        return Ok(());
    }
    if !lists(&root.path.join("cgroup.controllers")) {
        if !lists(&parent.join("cgroup.controllers")) {
            return Err(format!("{} has no controller {name}", parent.display()));
        }
        let file = parent.join("cgroup.subtree_control");
        let mut written = fs::write(&file, &on);
        // A group that passes controllers on has no processes of its own, unless it is the first of all.
        let is_busy =
            |written: &io::Result<()>| written.as_ref().is_err_and(|why| why.raw_os_error() == Some(libc::EBUSY));
        if is_busy(&written) && make_room(parent, root).is_ok() {
            written = fs::write(&file, &on);
        }
        if is_busy(&written) {
            return Err(format!(
                "{} has processes besides the daemon, so it cannot pass on the controller {name}; run the daemon as a \
                 service of its own (systemd: Delegate=yes)",
                parent.display()
            ));
        }
        written.map_err(|why| format!("{}: {why}", file.display()))?;
    }
    fs::write(&subtree, &on).map_err(|why| format!("{}: {why}", subtree.display()))
}

/// Moves the daemon, and nobody else, out of its group into one below that.
fn make_room(parent: &Path, root: &Root) -> io::Result<()> {
    let name = root.path.file_name().unwrap_or_default().to_string_lossy();
    let daemon = parent.join(daemon_group(&name));
    match fs::create_dir(&daemon) {
        Err(why) if why.kind() != io::ErrorKind::AlreadyExists => return Err(why),
        Ok(()) | Err(_) => {}
    }
    let own = std::process::id().cast_signed();
    let above = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    let program = |pid: i32| fs::read_link(format!("/proc/{pid}/exe")).ok();
    for pid in fs::read_to_string(parent.join("cgroup.procs"))?.lines().filter_map(|line| line.parse::<i32>().ok()) {
        let is_child = crate::procfs::stat(pid).is_some_and(|stat| stat.parent == own);
        // The controller is a child, or, when it started this keeper, the parent.
        if pid == own || is_child || (pid == above && program(pid).is_some() && program(pid) == program(own)) {
            fs::write(daemon.join("cgroup.procs"), pid.to_string())?;
        }
    }
    Ok(())
}

/// A limit of CPU that is none yet.
const UNLIMITED: i64 = 0;

/// One thing to write for a limit.
#[derive(Debug, PartialEq, Eq)]
struct Setting {
    file: &'static str,
    text: String,
    /// It may be missing, or refused, without the limit being less of one.
    optional: bool,
}

/// The files of each version, and what goes into them.
fn settings(limit: Limit, version: Version, value: i64) -> Vec<Setting> {
    let must = |file, text: String| Setting { file, text, optional: false };
    let may = |file, text: String| Setting { file, text, optional: true };
    let is_v2 = version == Version::V2;
    match limit {
        Limit::Memory if is_v2 => vec![
            must("memory.max", value.to_string()),
            may("memory.swap.max", "0".to_owned()),
            may("memory.oom.group", "1".to_owned()),
        ],
        Limit::Memory => {
            vec![
                must("memory.limit_in_bytes", value.to_string()),
                may("memory.memsw.limit_in_bytes", value.to_string()),
            ]
        }
        Limit::Cpu if is_v2 => vec![must(
            "cpu.max",
            if value == UNLIMITED { "max 100000".to_owned() } else { format!("{} 100000", value * 100) },
        )],
        Limit::Cpu => {
            let quota = if value == UNLIMITED { "-1".to_owned() } else { (value * 100).to_string() };
            vec![must("cpu.cfs_period_us", "100000".to_owned()), must("cpu.cfs_quota_us", quota)]
        }
        Limit::Processes => vec![must("pids.max", value.to_string())],
        Limit::IoWeight if is_v2 => vec![must("io.weight", format!("default {value}"))],
        // 1 to 1000 with 100 as the middle, where v2 has 1 to 10000.
        Limit::IoWeight => vec![must("blkio.bfq.weight", value.clamp(1, 1000).to_string())],
        Limit::OpenFiles | Limit::Nice | Limit::Unspecified => Vec::new(),
    }
}

/// Sets a limit on a group.
pub(crate) fn set(root: &Root, name: &str, limit: Limit, value: i64) -> Result<(), String> {
    let mut pending = settings(limit, root.version, value);
    // Memory with swap may not be less than memory, so to raise them the second goes first.
    for _ in 0..2 {
        pending.retain(|setting| root.write(&format!("{name}/{}", setting.file), setting.text.as_bytes()).is_err());
    }
    let Some(setting) = pending.into_iter().find(|setting| !setting.optional) else { return Ok(()) };
    let file = format!("{name}/{}", setting.file);
    match root.write(&file, setting.text.as_bytes()) {
        Ok(()) => Ok(()),
        Err(why) => Err(format!("{}: {}: {why}", root.path.join(file).display(), setting.text)),
    }
}

/// How many processes of the group the kernel has killed for want of memory; none when it does not count there.
pub(crate) fn oom_kills(root: &Root, name: &str) -> Option<u32> {
    let file = match root.version {
        Version::V2 => "memory.events",
        Version::V1 { .. } => "memory.oom_control",
    };
    let text = root.read(&format!("{name}/{file}")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok())
}

/// The limits that are set, with their values.
pub(crate) fn wanted(limits: &Limits) -> impl Iterator<Item = (Limit, i64)> {
    let clamp = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    [
        limits.memory.map(|bytes| (Limit::Memory, clamp(bytes))),
        limits.cpu.map(|millis| (Limit::Cpu, i64::from(millis))),
        limits.processes.map(|count| (Limit::Processes, i64::from(count))),
        limits.io_weight.map(|weight| (Limit::IoWeight, i64::from(weight))),
        limits.open_files.map(|count| (Limit::OpenFiles, i64::from(count))),
        limits.nice.map(|nice| (Limit::Nice, i64::from(nice))),
    ]
    .into_iter()
    .flatten()
}

/// Makes the group beside the tree; that it exists already is fine.
pub(crate) fn make(root: &Root, name: &str) -> io::Result<()> {
    match root.make(name) {
        Err(why) if why.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory that looks like a group with these files.
    fn group(version: Version, files: &[&str]) -> (tempfile::TempDir, Root) {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("g")).unwrap();
        for file in files {
            fs::write(directory.path().join("g").join(file), "").unwrap();
        }
        let root = Root::open(version, directory.path()).unwrap();
        (directory, root)
    }

    const V1: Version = Version::V1 { freezer: false };

    type Case = (Limit, i64, Version, &'static [(&'static str, &'static str)]);

    #[test]
    fn each_version_gets_its_own_files() {
        let cases: [Case; 11] = [
            (
                Limit::Memory,
                65536,
                Version::V2,
                &[("memory.max", "65536"), ("memory.swap.max", "0"), ("memory.oom.group", "1")],
            ),
            (Limit::Memory, 65536, V1, &[("memory.limit_in_bytes", "65536"), ("memory.memsw.limit_in_bytes", "65536")]),
            (Limit::Cpu, 1500, Version::V2, &[("cpu.max", "150000 100000")]),
            (Limit::Cpu, 250, V1, &[("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "25000")]),
            (Limit::Cpu, 0, Version::V2, &[("cpu.max", "max 100000")]),
            (Limit::Cpu, 0, V1, &[("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "-1")]),
            (Limit::Processes, 64, Version::V2, &[("pids.max", "64")]),
            (Limit::Processes, 64, V1, &[("pids.max", "64")]),
            (Limit::IoWeight, 5000, Version::V2, &[("io.weight", "default 5000")]),
            (Limit::IoWeight, 5000, V1, &[("blkio.bfq.weight", "1000")]),
            (Limit::OpenFiles, 5, V1, &[]),
        ];
        for (limit, value, version, written) in cases {
            let files: Vec<&str> = written.iter().map(|(file, _)| *file).collect();
            let (directory, root) = group(version, &files);
            set(&root, "g", limit, value).unwrap();
            for (file, text) in written {
                assert_eq!(fs::read_to_string(directory.path().join("g").join(file)).unwrap(), *text, "{file}");
            }
        }
    }

    #[test]
    fn what_is_missing_matters_only_where_it_is_the_limit() {
        let (_directory, root) = group(V1, &["memory.limit_in_bytes"]);
        set(&root, "g", Limit::Memory, 4096).unwrap();
        let why = set(&root, "g", Limit::Processes, 7).unwrap_err();
        assert!(why.contains("g/pids.max"), "{why}");
    }

    #[test]
    fn kills_for_want_of_memory_are_counted_in_both_versions() {
        for (version, file, text, count) in [
            (Version::V2, "memory.events", "low 0\noom 3\noom_kill 2\n", Some(2)),
            (V1, "memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n", Some(1)),
            (V1, "memory.oom_control", "oom_kill_disable 0\nunder_oom 0\n", None),
            (V1, "other", "", None),
        ] {
            let (directory, root) = group(version, &[file]);
            fs::write(directory.path().join("g").join(file), text).unwrap();
            assert_eq!(oom_kills(&root, "g"), count);
        }
    }

    #[test]
    fn a_controller_is_enabled_on_the_way_down() {
        let directory = tempfile::tempdir().unwrap();
        let (parent, own) = (directory.path(), directory.path().join("ostler-1"));
        fs::create_dir(&own).unwrap();
        fs::write(parent.join("cgroup.controllers"), "cpu memory pids\n").unwrap();
        let root = Root::open(Version::V2, &own).unwrap();
        enable(&root, "memory").unwrap();
        for path in [parent, &own] {
            assert_eq!(fs::read_to_string(path.join("cgroup.subtree_control")).unwrap(), "+memory");
        }
        let why = enable(&root, "io").unwrap_err();
        assert!(why.ends_with("has no controller io"), "{why}");
        fs::write(own.join("cgroup.subtree_control"), "memory").unwrap();
        fs::remove_file(parent.join("cgroup.controllers")).unwrap();
        enable(&root, "memory").unwrap();
    }

    #[test]
    fn without_cgroups_every_controller_says_why() {
        let mut none = Controllers::new(CgroupPreference::None, None, "ostler-1".to_owned());
        for controller in Controller::ALL {
            assert_eq!(none.place(controller).unwrap_err(), "the daemon runs with --cgroups none");
        }
        let mut v2 = Controllers::new(CgroupPreference::V2, None, "ostler-1".to_owned());
        assert_eq!(v2.place(Controller::Cpu).unwrap_err(), "there is no cgroup to use");
    }
}
