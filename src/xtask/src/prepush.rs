//! `cargo xtask prepush`: what CI runs, in the same order, with the cheap checks first.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, bail};

/// The checks: what each is for, and cargo's arguments.
const STEPS: [(&str, &[&str]); 4] = [
    ("formatting", &["fmt", "--all", "--check"]),
    ("lints", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]),
    ("generated files", &["run", "--quiet", "--package", "xtask", "--", "gen", "--check"]),
    ("tests", &["test", "--workspace"]),
];

/// Runs every check up to the first that fails.
pub(crate) fn run(root: &Path) -> anyhow::Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let started = Instant::now();
    for (number, (what, args)) in STEPS.iter().enumerate() {
        let command = format!("cargo {}", args.join(" "));
        let step = format!("{}/{} {what}", number + 1, STEPS.len());
        eprintln!("==> {step}: {command}");
        let began = Instant::now();
        let status = Command::new(&cargo).args(*args).current_dir(root).status().context("cannot run cargo")?;
        if !status.success() {
            bail!("{step} failed; again with: {command}");
        }
        eprintln!("==> {step}: ok, {:.0} s", began.elapsed().as_secs_f64());
    }
    eprintln!("==> all checks passed, {:.0} s", started.elapsed().as_secs_f64());
    Ok(())
}
