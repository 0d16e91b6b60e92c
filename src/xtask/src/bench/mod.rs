//! `cargo xtask bench`: measures the release binary against raw baselines, in one run on one machine.
//!
//! Prints a table and writes all samples as JSON to `target/bench/<Unix time>.json`. A figure that misses its target is
//! a result, not a failure: only what could not be measured makes the command fail. Everything runs in a directory of
//! its own below `target/bench/`, so on the disk that holds the checkout, and is ended and removed afterwards.
//!
//! The client's side is measured too, so this command builds itself with optimisation and hands over to that.

mod board;
mod daemon;
mod figures;
mod raw;
mod report;
mod sys;

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};

use self::board::Board;
use self::daemon::Bench;
use self::figures::{ALL, Measurement};

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only these figures, by the names in the table
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,
    /// Repetitions of every measurement
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    reps: u16,
    /// Instances where the target says a thousand
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u16).range(20..=5000))]
    instances: u16,
    /// Instances where the target says ten thousand; fewer when the limit of open files does not allow so many
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u16).range(20..=10_000))]
    many: u16,
    /// Measure this binary instead of building one
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Both programs have been built: measure.
    #[arg(long, hide = true)]
    built: bool,
}

/// Measures. An error means that something could not be measured.
pub(crate) fn run(root: &Path, args: &Args) -> anyhow::Result<()> {
    for name in &args.only {
        if !ALL.iter().any(|measurement| measurement.name == name) {
            let names: Vec<&str> = ALL.iter().map(|measurement| measurement.name).collect();
            bail!("there is no figure {name:?}; there are {}", names.join(", "));
        }
    }
    let own = std::env::current_exe()?;
    let target = own.parent().and_then(Path::parent).context("this program is not in a target directory")?;
    if !args.built {
        return build(root, target);
    }
    let ostler = args.binary.clone().unwrap_or_else(|| target.join("release/ostler"));
    measure(args, &ostler, &target.join("bench"))
}

/// Builds what is measured and what measures, and becomes the latter.
fn build(root: &Path, target: &Path) -> anyhow::Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // One after the other: together they would share features that the released binary does not have.
    for package in ["ostler", "xtask"] {
        let status = Command::new(&cargo)
            .args(["build", "--release", "--package", package])
            .arg("--target-dir")
            .arg(target)
            .current_dir(root)
            .status()?;
        ensure!(status.success(), "{package} does not build");
    }
    let error = Command::new(target.join("release/xtask")).args(std::env::args_os().skip(1)).arg("--built").exec();
    Err(error).context("cannot run the benchmarks")
}

fn measure(args: &Args, ostler: &Path, results: &Path) -> anyhow::Result<()> {
    let started = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let directory = results.join(format!("run-{started}"));
    fs::create_dir_all(&directory)?;
    let directory = Directory(directory.canonicalize()?);
    let bench = Bench {
        ostler: ostler.canonicalize().with_context(|| format!("no binary at {}", ostler.display()))?,
        board: Board::new(&directory.0)?,
        reps: args.reps.into(),
        instances: args.instances.into(),
        many: args.many.into(),
        open_files: sys::raise_open_files()?,
        directory: directory.0.clone(),
    };
    let mut machine = machine(&bench)?;
    let (mut measured, mut failed): (Vec<report::Figure>, Vec<_>) = (Vec::new(), Vec::new());
    let path = results.join(format!("{started}.json"));
    for Measurement { name, what, run } in ALL {
        if !args.only.is_empty() && !args.only.iter().any(|only| only == name) {
            continue;
        }
        eprintln!("{name}: {what}");
        match run(&bench) {
            Ok(figures) => {
                for figure in &figures {
                    eprintln!("  {figure}");
                }
                measured.extend(figures);
            }
            Err(error) => {
                eprintln!("{name}: not measured: {error:#}");
                failed.push(name);
            }
        }
        machine["loadAverageAfter"] = load();
        // Each time: a run takes a quarter of an hour, and what it has measured is kept when it is ended before.
        let figures: Vec<Value> = measured.iter().map(report::Figure::json).collect();
        let document = json!({"at": started, "machine": machine, "figures": figures, "notMeasured": failed});
        fs::write(&path, serde_json::to_string_pretty(&document)?)?;
    }
    for (name, value) in machine.as_object().into_iter().flatten() {
        println!("{name}: {}", value.as_str().map_or_else(|| value.to_string(), str::to_owned));
    }
    println!();
    report::table(&mut std::io::stdout(), &measured)?;
    println!("\nwritten to {}", path.display());
    ensure!(failed.is_empty(), "not measured: {}", failed.join(", "));
    Ok(())
}

/// Where a run keeps its files; removed in the end.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("bench: cannot remove {}: {error}", self.0.display());
        }
    }
}

/// What the figures depend on.
fn machine(bench: &Bench) -> anyhow::Result<Value> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let path = CString::new(bench.directory.as_os_str().as_bytes())?;
    let file_system = match sys::file_system(&path)? {
        0xEF53 => "ext4".to_owned(),
        0x0102_1994 => "tmpfs: durability costs nothing here, those figures mean little".to_owned(),
        0x9123_683E => "btrfs".to_owned(),
        0x5846_5342 => "xfs".to_owned(),
        other => format!("{other:#x}"),
    };
    Ok(json!({
        "kernel": kernel.trim(),
        "cpus": std::thread::available_parallelism()?.get(),
        "fileSystem": file_system,
        "openFiles": bench.open_files,
        "repetitions": bench.reps,
        "loadAverageBefore": load(),
    }))
}

fn load() -> Value {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    Value::String(load.split_whitespace().take(3).collect::<Vec<_>>().join(" "))
}
