//! A Source that is a checkout of a real Git repository: whatever happens to it, what runs is the last good revision.
//!
//! `OSTLER_TEST_COMMITS=200 cargo test -p ostler-tests --test gitops -- --nocapture` takes 200 steps, and says what they
//! came to; `OSTLER_TEST_SEED` makes them others.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use ostler_tests::{Daemon, Random, manifest, proc, scale, wait_until};
use serde_json::{Value, json};

/// What a commit declares.
#[derive(Clone, Debug, Default)]
struct Tree {
    /// File and version of each process.
    processes: BTreeMap<String, (String, u64)>,
    broken: bool,
}

struct Git(PathBuf);

impl Git {
    fn run(&self, args: &[&str]) -> String {
        let output = Command::new("git")
            .current_dir(&self.0)
            .args(["-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false"])
            .args(["-c", "init.defaultBranch=main", "-c", "gc.auto=0", "-c", "advice.detachedHead=false"])
            .args(args)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_SYSTEM", "/dev/null")
            .output()
            .expect("git is installed");
        assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Makes the files those of a tree, and commits.
    fn commit(&self, tree: &Tree, message: &str) {
        let wanted: BTreeSet<PathBuf> = tree.processes.values().map(|(file, _)| self.0.join(file)).collect();
        for directory in [self.0.clone(), self.0.join("more")] {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                if entry.path().is_file() && !wanted.contains(&entry.path()) {
                    fs::remove_file(entry.path()).unwrap();
                }
            }
        }
        fs::create_dir_all(self.0.join("more")).unwrap();
        for (name, (file, version)) in &tree.processes {
            let env = json!([{"name": "VERSION", "value": version.to_string()}]);
            let object = manifest::with(manifest::sleeper(name), "spec.env", env);
            // Left out, it would be the directory of the manifest, and a file that moves would move the process.
            let object = manifest::with(object, "spec.workingDir", json!(self.0.parent()));
            fs::write(self.0.join(file), object.to_string()).unwrap();
        }
        if tree.broken {
            fs::write(self.0.join("broken.yaml"), "apiVersion: ostler.dev/v1\nkind: Process\nspec: {comand: [a]}\n")
                .unwrap();
        }
        self.run(&["add", "-A"]);
        self.run(&["commit", "--quiet", "--allow-empty", "-m", message]);
    }

    fn head(&self) -> String {
        self.run(&["rev-parse", "HEAD"])
    }
}

fn file(name: &str, random: &mut Random) -> String {
    format!("{}{name}{}.yaml", ["", "more/"][random.below(2)], random.below(3))
}

/// Processes by name, with the versions that they run: from the kernel.
fn look(daemon: &Daemon) -> Option<BTreeMap<String, (u64, proc::Identity)>> {
    let output = daemon.cli(&["get", "instances", "-o", "json"]);
    let list: Value = serde_json::from_slice(&output.bytes).ok()?;
    let mut found = BTreeMap::new();
    for item in list["items"].as_array()? {
        let pid = item["status"]["pid"].as_i64()? as i32;
        let process = proc::identity(pid)?;
        let version = proc::variable(pid, "VERSION")?.parse().ok()?;
        found.insert(item["spec"]["process"].as_str()?.to_owned(), (version, process));
    }
    Some(found)
}

/// Waits until exactly the processes of a tree run, and returns them.
fn settled(daemon: &Daemon, tree: &Tree, what: &str) -> BTreeMap<String, (u64, proc::Identity)> {
    wait_until(format!("{what}: {tree:?} to run"), || {
        let found = look(daemon)?;
        let versions = found.iter().map(|(name, (version, _))| (name, *version));
        versions.eq(tree.processes.iter().map(|(name, (_, version))| (name, *version))).then_some(found)
    })
}

/// Waits until the Source has dealt with a commit; whether it is in force.
fn dealt_with(daemon: &Daemon, commit: &str) -> bool {
    wait_until(format!("commit {commit} to be dealt with"), || {
        let output = daemon.cli(&["get", "source", "apps", "-o", "json"]);
        let source: Value = serde_json::from_slice(&output.bytes).ok()?;
        let status = &source["status"];
        let is = |field: &str| status[field]["commit"] == commit;
        match status["sync"].as_str()? {
            "Synced" if is("revision") && is("lastAppliedRevision") => Some(true),
            "OutOfSync" if is("revision") && is("lastAttemptedRevision") => {
                let conditions = status["conditions"].as_array()?;
                let synced = conditions.iter().find(|it| it["type"] == "Synced")?;
                ["Invalid", "TooManyDeletions"].contains(&synced["reason"].as_str()?).then_some(false)
            }
            _ => None,
        }
    })
}

fn checkout(apps: &Path, branch: &str) -> String {
    let git = Git(apps.to_owned());
    git.run(&["fetch", "--quiet", "--prune", "origin"]);
    git.run(&["checkout", "--quiet", "--force", "-B", branch, &format!("origin/{branch}")]);
    git.head()
}

#[test]
fn what_runs_is_the_last_good_revision_of_a_repository() {
    let daemon = Daemon::start();
    let [origin, work, apps] = ["origin", "work", "apps"].map(|name| daemon.path().join(name));
    fs::create_dir(&origin).unwrap();
    Git(origin.clone()).run(&["init", "--quiet", "--bare"]);
    let here = Git(daemon.path().to_owned());
    here.run(&["clone", "--quiet", "origin", "work"]);
    let work = Git(work);
    let seed = std::env::var("OSTLER_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(20_261_121);
    let mut random = Random::new(seed);
    let mut tree = Tree::default();
    for number in 0..8 {
        let name = format!("p{number}");
        let file = file(&name, &mut random);
        tree.processes.insert(name, (file, 0));
    }
    work.commit(&tree, "first");
    work.run(&["branch", "-M", "main"]);
    work.run(&["push", "--quiet", "origin", "main"]);
    here.run(&["clone", "--quiet", "--branch", "main", "origin", "apps"]);
    let object = json!({"apiVersion": "ostler.dev/v1", "kind": "Source", "metadata": {"name": "apps"},
        "spec": {"path": apps, "interval": "24h"}});
    daemon.apply(&object.to_string());

    // The commits of each branch, the last one checked out.
    let mut branches: BTreeMap<String, Vec<Tree>> = [("main".to_owned(), vec![tree.clone()])].into();
    let mut branch = "main".to_owned();
    let mut good = tree.clone();
    assert!(dealt_with(&daemon, &work.head()));
    let mut running = settled(&daemon, &good, "the clone");
    let mut version = 0;
    let mut seen = BTreeSet::new();
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<usize>().ok());
    let began = Instant::now();
    let mut tally: BTreeMap<&str, usize> = BTreeMap::new();
    for step in 0..number("OSTLER_TEST_COMMITS").unwrap_or(40 * scale()) {
        let history = branches.get_mut(&branch).unwrap();
        let mut tree = history.last().unwrap().clone();
        let kind = match random.below(10) {
            // As long as it is broken, mostly somebody mends it.
            number if tree.broken && number < 6 => ["mend", "force-push"][random.below(2)],
            5 => "break",
            6 | 7 => "switch",
            8 if history.len() > 2 => "force-push",
            _ => "edit",
        };
        seen.insert(kind);
        *tally.entry(kind).or_default() += 1;
        match kind {
            "switch" => {
                branch = ["main", "next", "hotfix"][random.below(3)].to_owned();
                if branches.contains_key(&branch) {
                    work.run(&["checkout", "--quiet", &branch]);
                } else {
                    work.run(&["checkout", "--quiet", "-b", &branch]);
                    branches.insert(branch.clone(), vec![tree.clone()]);
                }
                tree = branches[&branch].last().unwrap().clone();
            }
            "force-push" if history.len() > 1 => {
                let back = 1 + random.below((history.len() - 1).min(3));
                work.run(&["reset", "--quiet", "--hard", &format!("HEAD~{back}")]);
                history.truncate(history.len() - back);
                tree = history.last().unwrap().clone();
            }
            _ => {
                tree.broken = kind == "break";
                for _ in 0..=random.below(3) {
                    version += 1;
                    let names: Vec<String> = tree.processes.keys().cloned().collect();
                    let chosen = names[random.below(names.len())].clone();
                    match random.below(6) {
                        0 if names.len() < 12 => {
                            let name = format!("n{version}");
                            let file = file(&name, &mut random);
                            tree.processes.insert(name, (file, version));
                        }
                        1 if names.len() > 4 => drop(tree.processes.remove(&chosen)),
                        // Only the file moves.
                        2 => tree.processes.get_mut(&chosen).unwrap().0 = file(&chosen, &mut random),
                        _ => tree.processes.get_mut(&chosen).unwrap().1 = version,
                    }
                }
                work.commit(&tree, &format!("{kind} {step}"));
                history.push(tree.clone());
            }
        }
        work.run(&["push", "--quiet", "--force", "origin", &branch]);
        let what = format!("seed {seed}, step {step} ({kind} on {branch})");
        let kill = random.below(8);
        if kill < 2 {
            *tally.entry("kill of the daemon").or_default() += 1;
        }
        if kill == 0 {
            daemon.kill_controller();
        }
        let commit = checkout(&apps, &branch);
        assert_eq!(commit, work.head());
        if kill == 1 {
            daemon.kill_controller();
        }
        let leaving = good.processes.keys().filter(|name| !tree.processes.contains_key(*name)).count();
        let too_many = leaving > (good.processes.len() / 2).max(1);
        let in_force = dealt_with(&daemon, &commit);
        assert_eq!(in_force, !tree.broken && !too_many, "{what}");
        if in_force {
            good = tree;
        } else if !tree.broken {
            settled(&daemon, &good, &what);
            daemon.answers();
            daemon.ok(&["sync", "apps", "--allow-prune"]);
            good = tree;
        }
        let after = settled(&daemon, &good, &what);
        let count = |test: &dyn Fn(&String, &proc::Identity) -> bool| {
            running.iter().filter(|(name, (_, process))| test(name, process)).count()
        };
        *tally.entry("prune").or_default() += count(&|name, _| !after.contains_key(name));
        *tally.entry("restart").or_default() +=
            count(&|name, process| after.get(name).is_some_and(|(_, now)| now != process));
        for (name, (version, process)) in &after {
            if let Some((before, same)) = running.get(name).filter(|(before, _)| before == version) {
                assert_eq!(process, same, "{what}: {name} was restarted with the version {before} that it had");
            }
        }
        for (name, (_, process)) in &running {
            let gone = after.get(name).is_none_or(|(_, now)| now != process);
            assert!(!gone || !proc::lives(*process), "{what}: {name} still lives");
        }
        running = after;
    }
    eprintln!("in {:?}: {tally:?}; none of the restarts without another version", began.elapsed());
    assert!(seen.len() >= 4, "{seen:?}");
}
